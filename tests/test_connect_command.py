"""picows_fast.cli.connect: piped, typed and from files, against servers of another make."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import sys

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from . import needs
from .commands import (  # noqa: F401
    CERTIFICATE,
    ENVIRONMENT,
    HANGS,
    Commands,
    Result,
    closed,
    commands_fixture,
    echo,
    one_line,
    run_on_terminal,
    server,
    texts,
)

# The event loop that matters is the command's, chosen by --loop.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo", ["one", "two"]),
        (b"", []),
        (b"\n", [""]),
        ("\u20ac\n".encode(), ["\u20ac"]),
        (b"x" * 300_000 + b"\nend\n", ["x" * 300_000, "end"]),
    ],
)
async def test_connect_sends_lines_and_prints_answers(
    commands: Commands, typed: bytes, messages: list[str]
) -> None:
    received = []
    codes = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            received.append(message)
            await connection.send(message)
        codes.append(await closed(connection))

    async with server(handler) as url:
        result = await commands.run("connect", url, stdin=typed)
    assert received == messages
    assert result.out == "".join(message + "\n" for message in messages)
    assert result.code == 0
    assert codes == [1000]


async def test_connect_sends_a_long_input_in_order(commands: Commands) -> None:
    lines = [f"line {n} " + "x" * (n % 200) for n in range(20_000)]

    async def handler(connection: ServerConnection) -> None:
        for _ in lines:
            await connection.send(await connection.recv())

    async with server(handler) as url:
        stdin = "\n".join(lines).encode()
        result = await commands.run("connect", url, "--wait", "inf", stdin=stdin)
    assert result.code == 0
    assert result.out.splitlines() == lines


async def test_connect_reads_from_a_file_and_waits_until_the_server_closes(
    commands: Commands,
) -> None:
    async def handler(connection: ServerConnection) -> None:
        assert await connection.recv() == "from a file"
        await asyncio.sleep(0.3)
        await connection.send("late answer")

    (commands.folder / "lines").write_bytes(b"from a file")
    program = (
        "import os, sys; os.dup2(os.open('lines', os.O_RDONLY), 0);"
        "from picows_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf", program=program)
    assert result.out == "late answer\n"
    assert result.code == 0
    assert "closed by the peer, code 1000" in result.err


async def test_connect_without_stdin(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("hello")

    program = (
        "import os, sys; os.close(0); from picows_fast.cli import main;sys.exit(main(sys.argv[1:]))"
    )
    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf", program=program)
    assert (result.code, result.out) == (0, "hello\n")


async def test_connect_refuses_input_that_is_not_utf8(commands: Commands) -> None:
    received = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            received.append(message)

    async with server(handler) as url:
        result = await commands.run("connect", url, stdin=b"good\nb\xffd\nnot sent\n")
    assert result.code == 1
    assert "standard input, line 2: not valid UTF-8" in result.err.splitlines()[-1]
    assert received == ["good"]


async def test_connect_sends_headers_and_offers_subprotocols(commands: Commands) -> None:
    seen = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers)

    async with server(handler, subprotocols=["v2"]) as url:
        headers = ["-H", "X-Key: a: b", "--header", "X-Other:c"]
        protocols = ["--subprotocol", "v1", "--subprotocol", "v2"]
        result = await commands.run("connect", url, *headers, *protocols)
    assert result.code == 0
    assert seen[0]["X-Key"] == "a: b"
    assert seen[0]["X-Other"] == "c"
    assert "subprotocol v2" in result.err


async def test_connect_shows_round_trip_times(commands: Commands) -> None:
    async with server(echo) as url:
        arguments = ["--ping", "--ping-interval", "0.05", "--wait", "1"]
        result = await commands.run("connect", url, *arguments)
    assert result.code == 0
    assert len(re.findall(r"^\* round trip \d[\d.]* (?:us|ms)$", result.err, re.M)) >= 2


async def test_connect_shows_pings_of_the_server(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await (await connection.ping(b"12345"))

    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf")
    assert "* ping from the peer, 5 bytes" in result.err
    assert result.code == 0


async def test_connect_joins_fragments_and_shows_binary(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(["fragments ", "of one ", "message"])
        await connection.send(b"\x00\x01\xff")
        await connection.send([b"\x02" * 60, b"\x03" * 40])
        await connection.send("\x1b[2J")

    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf")
    lines = result.out.splitlines()
    assert lines[0] == "fragments of one message"
    assert lines[1] == "[binary, 3 bytes] 00 01 ff"
    assert lines[2] == "[binary, 100 bytes] " + "02 " * 60 + "03 " * 4 + "..."
    assert lines[3] == "\x1b[2J"


async def test_connect_on_a_terminal(commands: Commands) -> None:
    received = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            received.append(message)
            await connection.send("\x1b[2J\x07 " + message.upper())

    async with server(handler) as url:
        output, code = await run_on_terminal(commands, "connect", url, typed=b"hello\nbye\n\x04")
    assert code == 0
    assert received == ["hello", "bye"]
    # A message cannot send the terminal control sequences.
    assert r"\x1b[2J\x07 HELLO" in output
    assert "\x1b[2J" not in output


@pytest.mark.parametrize(
    ("close_code", "exit_code"), [(1000, 0), (1001, 0), (1008, 1), (1011, 1), (4321, 1)]
)
async def test_connect_exit_code_tells_how_the_peer_closed(
    commands: Commands, close_code: int, exit_code: int
) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.close(close_code, "the \x1b reason")

    async with server(handler) as url:
        command = await commands.start("connect", url)
        code = await asyncio.wait_for(command.process.wait(), HANGS)
        result = await command.finish()
    assert code == exit_code
    assert rf"closed by the peer, code {close_code} (the \x1b reason)" in result.err


async def test_connect_exit_code_when_the_connection_is_lost(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf")
    assert result.code == 1
    assert "connection lost" in result.err


@pytest.mark.parametrize(
    "bad_frame",
    [b"\x81\x02\xff\xfe", b"\x83\x00", b"\x81\x80abcd", b"\x01\x01\xe2\x80\x01x"],
    ids=["not UTF-8", "reserved opcode", "masked", "not UTF-8 in fragments"],
)
async def test_connect_exit_code_when_the_peer_breaks_the_protocol(
    commands: Commands, bad_frame: bytes
) -> None:
    async def handler(connection: ServerConnection) -> None:
        connection.transport.write(bad_frame)
        await connection.wait_closed()

    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf")
    assert result.code == 1
    assert len(result.err.splitlines()) == 2, result.err


async def test_connect_ends_with_ctrl_c(commands: Commands) -> None:
    codes: asyncio.Queue[int] = asyncio.Queue()

    async def handler(connection: ServerConnection) -> None:
        await connection.send("connected")
        codes.put_nowait(await closed(connection))

    async with server(handler) as url:
        command = await commands.start("connect", url)
        assert await command.line() == "connected\n"
        command.interrupt()
        assert await asyncio.wait_for(codes.get(), HANGS) == 1000
        assert await asyncio.wait_for(command.process.wait(), HANGS) == 130
        await command.finish()


async def test_connect_ends_while_it_connects(commands: Commands) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.setblocking(False)
        command = await commands.start("connect", f"ws://127.0.0.1:{silent.getsockname()[1]}/")
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        with connection:
            command.interrupt()
            result = await command.finish()
    assert result.code == 130
    assert result.err == ""


async def test_connect_into_a_pipe_that_closes(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        try:
            while True:
                await connection.send("x" * 10_000)
        except ConnectionClosed:
            pass

    async with server(handler) as url:
        command = await commands.start("connect", url, "--wait", "inf")
        await command.line()
        command.stdout._transport.close()  # type: ignore[attr-defined]
        assert await asyncio.wait_for(command.process.wait(), HANGS) == 1
        await command.finish()


async def test_connect_to_a_certificate_that_nobody_vouches_for(commands: Commands) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with server(echo, ssl=context) as url:
        result = await commands.run("connect", url, stdin=b"hello\n")
        assert "certificate" in one_line(result, 1).lower()
        result = await commands.run("connect", url, "--insecure", stdin=b"hello\n")
    assert (result.code, result.out) == (0, "hello\n")


async def test_connect_through_a_proxy(commands: Commands) -> None:
    targets = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        targets.append(request.split()[1])
        host, _, port = targets[0].rpartition(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

        async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(forward(reader, server_writer), forward(server_reader, writer))

    async with server(echo) as url, await asyncio.start_server(tunnel, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        arguments = ["--proxy", f"http://127.0.0.1:{port}"]
        result = await commands.run("connect", url, *arguments, stdin=b"hello\n")
    assert (result.code, result.out) == (0, "hello\n")
    assert targets == [url.removeprefix("ws://").rstrip("/")]


@needs.fork
async def test_standard_streams_that_are_closed(commands: Commands) -> None:
    """As a service or cron may start a command. Sockets must not get their numbers."""

    async def shell(redirections: str, *arguments: str) -> Result:
        process = await asyncio.create_subprocess_shell(
            f"exec {sys.executable} -m picows_fast {' '.join(arguments)} {redirections}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ENVIRONMENT,
            cwd=commands.folder,
        )
        out, err = await asyncio.wait_for(process.communicate(), HANGS)
        assert process.returncode is not None
        assert b"Traceback" not in err
        return Result(process.returncode, out.decode(), err.decode())

    async with server(echo) as url:
        result = await shell(">&-", "connect", url)
        assert "standard output is closed" in one_line(result, 1)
        assert (await shell("<&- 2>&-", "connect", url, "--wait", "0")).code == 0
        result = await shell(
            "<&- >&- 2>&-", "record", url, "-o", "out", "--send", "x", "--messages=1"
        )
        assert (result.code, texts(commands.folder / "out")) == (0, ["x"])
        if needs.HAS_FULL_DEVICE:
            result = await shell("</dev/null >/dev/full", "replay", "out")
            assert "No space left" in one_line(result, 1)


@needs.full_device
async def test_connect_to_standard_output_that_is_full(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("x")
        await connection.wait_closed()

    program = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1);"
    program += "from picows_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    async with server(handler) as url:
        result = await commands.run("connect", url, "--wait", "inf", program=program)
    assert result.code == 1
    assert result.err.splitlines()[-1] == "picows_fast: [Errno 28] No space left on device"
