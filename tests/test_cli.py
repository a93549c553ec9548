"""picows_fast.cli: the commands as a user runs them, each in its own process, with real peers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from websockets.asyncio.client import connect as websockets_connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import picows_fast.cli
from picows_fast.cli.book import generate_book
from picows_fast.cli.feedfile import FeedWriter, read_feed
from picows_fast.cli.live import LatencyHistogram, format_bytes, format_duration

LOOPS = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") else [])
# The commands run in a folder of the test, and still import the package that the test imported.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
CERTIFICATE = Path(picows_fast.cli.__file__).with_name("loopback.pem")
# Seconds after which a command hangs. Nothing here takes a tenth of that.
HANGS = 60

Handler = Callable[[ServerConnection], Awaitable[None]]


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """A running command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin = process.stdin
        self.stdout = process.stdout

    async def line(self) -> str:
        """The next line of its stdout."""
        return (await asyncio.wait_for(self.stdout.readline(), HANGS)).decode()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def finish(self, stdin: bytes | None = None) -> Result:
        """Write `stdin`, close it, wait for the end. Whatever happened, no traceback was shown."""
        out, err = await asyncio.wait_for(self.process.communicate(stdin), HANGS)
        assert self.process.returncode is not None
        result = Result(self.process.returncode, out.decode(), err.decode())
        assert "Traceback" not in result.err
        assert "Warning" not in result.err
        return result


class Commands:
    """Starts commands; kills at the end what a failed test left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: object, program: str | None = None) -> Command:
        python = ["-c", program] if program else ["-m", "picows_fast"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-X",
            "dev",
            *python,
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=ENVIRONMENT,
            limit=1 << 24,
        )
        self.started.append(process)
        return Command(process)

    async def run(
        self, *arguments: object, stdin: bytes = b"", program: str | None = None
    ) -> Result:
        return await (await self.start(*arguments, program=program)).finish(stdin)

    async def replay(self, *arguments: object) -> tuple[Command, str]:
        """A `replay` that listens, and its URL."""
        command = await self.start("replay", *arguments, "--port", 0)
        await command.line()
        found = re.search(r"ws://\S+", await command.line())
        assert found is not None
        return command, found[0]


@pytest.fixture
async def commands(tmp_path: Path) -> AsyncIterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    for process in commands.started:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def server(handler: Handler, **options: object) -> AsyncIterator[str]:
    """A WebSocket server of another make; yields its URL."""
    async with serve(handler, "127.0.0.1", 0, **options) as running:  # type: ignore[arg-type]
        port = next(iter(running.sockets)).getsockname()[1]
        yield f"{'wss' if options.get('ssl') else 'ws'}://127.0.0.1:{port}/"


@contextlib.contextmanager
def refusing_url() -> Iterator[str]:
    """A URL whose port is taken, but by a socket that does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{sock.getsockname()[1]}/"


def one_line(result: Result, exit_code: int) -> str:
    """The one line on stderr that explains a failure."""
    assert result.code == exit_code, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("picows_fast: ")
    return lines[0]


def write_feed(path: Path, messages: Iterator[tuple[int, str]] | list[tuple[int, str]]) -> Path:
    with FeedWriter(path) as writer:
        for microseconds, text in messages:
            writer.write(microseconds, text)
    return path


def texts(path: Path) -> list[str]:
    return [text for _, text in read_feed(path)]


# Arguments and help


@pytest.mark.parametrize("command", [None, "demo", "connect", "record", "replay"])
async def test_help_has_examples(commands: Commands, command: str | None) -> None:
    result = await commands.run(*filter(None, [command]), "--help")
    assert result.code == 0
    assert "examples:" in result.out
    assert f"python -m picows_fast {command or 'demo'}" in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["trade"], "invalid choice"),
        (["demo", "--clients", "0"], "--clients"),
        (["demo", "--clients", "many"], "--clients"),
        (["demo", "--seconds", "-1"], "--seconds"),
        (["demo", "--seconds", "nan"], "--seconds"),
        (["demo", "--rate", "0"], "--rate"),
        (["demo", "--loop", "trio"], "--loop"),
        (["demo", "--speed", "10"], "--speed is for a recorded feed"),
        (["demo", "--feed", "x", "--rate", "10"], "--rate is for the generated order book"),
        (["demo", "--feed", "x", "--speed", "fast"], "--speed"),
        (["demo", "--feed", "x", "--speed", "0"], "--speed"),
        (["connect"], "URL"),
        (["connect", "ws://h/", "-H", "no colon"], "Name: value"),
        (["connect", "ws://h/", "--wait", "-1"], "--wait"),
        (["record", "ws://h/"], "-o"),
        (["record", "ws://h/", "-o", "x", "--messages", "0"], "--messages"),
        (["replay"], "FILE"),
        (["replay", "x", "--port", "65536"], "--port"),
        (["replay", "x", "--speed", "inf"], "--speed"),
    ],
)
async def test_bad_arguments(commands: Commands, arguments: list[str], reason: str) -> None:
    result = await commands.run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert reason in result.err.splitlines()[-1]


async def test_uvloop_that_is_not_installed(commands: Commands) -> None:
    program = (
        "import sys; sys.modules['uvloop'] = None; from picows_fast.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = await commands.run("demo", "--loop", "uvloop", program=program)
    assert "pip install 'picows_fast[uvloop]'" in one_line(result, 2)


@pytest.mark.parametrize("command", [["connect"], ["record", "-o", "out"]])
@pytest.mark.parametrize("url", ["http:/", "ftp://127.0.0.1/", "ws://127.0.0.1:99999/"])
async def test_bad_url(commands: Commands, command: list[str], url: str) -> None:
    one_line(await commands.run(*command, url), 2)
    assert list(commands.folder.iterdir()) == []


@pytest.mark.parametrize("command", [["connect"], ["record", "-o", "out"]])
async def test_connection_refused(commands: Commands, command: list[str]) -> None:
    with refusing_url() as url:
        line = one_line(await commands.run(*command, url.replace("//", "//user:secret@")), 1)
    assert url in line
    assert "secret" not in line
    assert list(commands.folder.iterdir()) == []


@pytest.mark.parametrize("command", [["connect"], ["record", "-o", "out"]])
async def test_server_that_is_no_websocket_server(commands: Commands, command: list[str]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as http:
        port = http.sockets[0].getsockname()[1]
        line = one_line(await commands.run(*command, f"ws://127.0.0.1:{port}/"), 1)
    assert "404" in line


async def test_header_that_would_inject_another(commands: Commands) -> None:
    with refusing_url() as url:
        one_line(await commands.run("connect", url, "-H", "A: b\r\nC: d"), 2)


# demo


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
async def test_demo(commands: Commands, loop: str, tls: bool) -> None:
    arguments = ["--seconds", "1.5", "--rate", "400", "--clients", "3", "--loop", loop]
    result = await commands.run("demo", *arguments, *(["--tls"] if tls else []))
    assert result.code == 0, result
    assert result.err == ""
    live = [line for line in result.out.splitlines() if "msg/s" in line]
    assert len(live) >= 1
    assert re.search(r"p50 .* p99 .* max ", live[0])
    published = int(re.search(r"published +(\d+) messages", result.out)[1])  # type: ignore[index]
    assert f"received     {3 * published:,} messages" in result.out
    # The schedule allows 600, and a machine that is busy elsewhere fewer.
    assert 0 < published <= 601
    assert re.search(rf"event loop +{loop}$", result.out, re.M)
    assert re.search(r"TLS +" + ("yes, certificate verified" if tls else "no"), result.out)
    assert "every client received every message, in order, unchanged" in result.out
    assert "\r" not in result.out


@pytest.mark.parametrize("loop", LOOPS)
async def test_demo_publishes_a_feed_that_is_larger_than_what_may_be_on_its_way(
    commands: Commands, loop: str
) -> None:
    feed = write_feed(commands.folder / "feed", [(n, f"{n} \u20ac") for n in range(40_000)])
    result = await commands.run("demo", "--feed", feed, "--speed", "max", "--loop", loop)
    assert result.code == 0, result
    assert "published    40,000 messages" in result.out
    assert "received     160,000 messages" in result.out
    assert "in order, unchanged" in result.out


async def test_demo_with_large_messages_waits_for_its_clients(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, f"{n}" * 100_000) for n in range(300)])
    result = await commands.run("demo", "--feed", feed, "--speed", "max", "--tls")
    assert result.code == 0, result
    assert "published    300 messages" in result.out


async def test_demo_starts_a_feed_again_if_it_ends_before_its_time(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(n * 1000, f"{n}") for n in range(5)])
    result = await commands.run("demo", "--feed", feed, "--speed", "10", "--seconds", "1")
    assert result.code == 0, result
    assert int(re.search(r"published +([\d,]+) ", result.out)[1].replace(",", "")) > 5  # type: ignore[index]
    assert "in order, unchanged" in result.out


async def test_demo_ends_early_with_ctrl_c(commands: Commands) -> None:
    command = await commands.start("demo", "--seconds", 600, "--rate", 100)
    await command.line()
    await command.line()
    assert "msg/s" in await command.line()
    command.interrupt()
    result = await command.finish()
    assert result.code == 0, result
    assert "Summary" in result.out
    assert "every client received every message" in result.out
    assert result.err == ""


SPOILED = """
import sys
from picows_fast import WSMsgType
from picows_fast.cli import main
from picows_fast.cli.demo import Exchange
from picows_fast.cli.publish import Subscriber

def publish_one(self, payload):
    self.published.add(payload)
    for number, subscriber in enumerate(self._subscribers):
        if number == 1 and self.published.count == 3:
            spoil(subscriber.transport, payload)
        else:
            subscriber.transport.send(WSMsgType.TEXT, payload)

Exchange.publish_one = publish_one
spoil = {spoil}
sys.exit(main(["demo", "--clients", "2", "--rate", "100", "--seconds", "30"]))
"""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("lambda transport, payload: None", "message 3 is not what was published"),
        (
            "lambda transport, payload: transport.send(WSMsgType.TEXT, payload[:-1] + b'x')",
            "message 3 is not what was published",
        ),
        (
            "lambda transport, payload: transport.send(WSMsgType.BINARY, payload)",
            "message 3 is not what was published",
        ),
        (
            "lambda transport, payload: [transport.send(WSMsgType.TEXT, payload)] * 1"
            " + [transport.send(WSMsgType.TEXT, payload)]",
            "message 4 ",
        ),
        ("lambda transport, payload: transport.disconnect(graceful=False)", "connection lost"),
        ("lambda transport, payload: transport.send_close(1011)", "code 1011"),
    ],
)
async def test_demo_notices_what_does_not_arrive(
    commands: Commands, spoil: str, reason: str
) -> None:
    result = await commands.run(program=SPOILED.replace("{spoil}", spoil))
    assert result.code == 1, result
    failed = [line for line in result.out.splitlines() if line.startswith("  FAILED")]
    assert len(failed) == 1
    assert reason in result.out
    assert "verified" not in result.out


async def test_demo_refuses_more_clients_than_files_may_be_open(commands: Commands) -> None:
    program = (
        "import resource, sys; from picows_fast.cli import main;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100));"
        "sys.exit(main(['demo', '--clients', '100']))"
    )
    assert "the limit is 100" in one_line(await commands.run(program=program), 2)


@pytest.mark.parametrize("command", [["demo", "--feed"], ["replay"]])
async def test_bad_feed_file_is_named_with_its_line(commands: Commands, command: list[str]) -> None:
    feed = commands.folder / "bad.jsonl.gz"
    feed.write_bytes(gzip.compress(b'[0,"a"]\n[1,2]\n'))
    line = one_line(await commands.run(*command, feed), 1)
    assert f"{feed}, line 2: the message must be a JSON string" in line
    assert "No such file" in one_line(await commands.run(*command, "missing"), 1)


async def test_live_line_rewrites_itself_on_a_terminal(commands: Commands) -> None:
    output, code = await run_on_terminal(
        commands, "demo", "--seconds", "1.2", "--rate", "100", "--clients", "1"
    )
    assert code == 0
    assert len(re.findall(r"\r +\d+\.\d s .*? msg/s [^\r\n]*\x1b\[K", output)) >= 2
    assert "every client received every message" in output


async def run_on_terminal(
    commands: Commands, *arguments: str, typed: bytes = b""
) -> tuple[str, int]:
    """Run a command whose stdin, stdout and stderr are a terminal; its output and exit code."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "picows_fast",
            *arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=commands.folder,
            env=ENVIRONMENT,
        )
        commands.started.append(process)
        os.write(ours, typed)
        read = bytearray()
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, lambda: read.extend(os.read(ours, 65536)))
        try:
            code = await asyncio.wait_for(process.wait(), HANGS)
            os.set_blocking(ours, False)
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(ours, 65536):
                    read.extend(chunk)
        finally:
            loop.remove_reader(ours)
    finally:
        os.close(ours)
        os.close(theirs)
    return read.decode(), code


def test_certificate_of_the_demo_is_for_loopback_and_lasts() -> None:
    pem = CERTIFICATE.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERTIFICATE") :])
    assert certificate.not_valid_before_utc.year <= 2020
    assert certificate.not_valid_after_utc.year >= 2100
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(str(name.value) for name in names) == ["127.0.0.1", "::1", "localhost"]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


# connect


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def closed(connection: ServerConnection) -> int:
    """The code that the client closed with."""
    await connection.wait_closed()
    return connection.close_code or 0


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


@pytest.mark.parametrize("bad_frame", [b"\x81\x02\xff\xfe", b"\x83\x00", b"\x81\x80abcd"])
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


# record and replay


async def test_record_stops_after_its_messages(commands: Commands) -> None:
    subscriptions = []

    async def handler(connection: ServerConnection) -> None:
        subscriptions.extend([await connection.recv(), await connection.recv()])
        try:
            for number in range(10_000):
                await connection.send(f"message {number} \u20ac")
        except ConnectionClosed:
            pass

    out = commands.folder / "out.gz"
    async with server(handler) as url:
        subscribe = ["--send", '{"op":1}', "--send", "\u20ac"]
        result = await commands.run("record", url, "-o", out, *subscribe, "--messages", 100)
    assert result.code == 0, result
    assert subscriptions == ['{"op":1}', "\u20ac"]
    assert texts(out) == [f"message {number} \u20ac" for number in range(100)]
    assert "100 messages" in result.err
    assert list(commands.folder.iterdir()) == [out]


async def test_record_keeps_the_time_of_each_message(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await asyncio.sleep(0.2)
        await connection.send("first")
        await asyncio.sleep(0.1)
        await connection.send("second")

    out = commands.folder / "out.gz"
    async with server(handler) as url:
        await commands.run("record", url, "-o", out)
    (first, _), (second, _) = read_feed(out)
    assert first == 0
    assert second >= 50_000


async def test_record_stops_after_its_time(commands: Commands) -> None:
    out = commands.folder / "out.gz"
    async with server(echo) as url:
        result = await commands.run("record", url, "-o", out, "--send", "a", "--seconds", "0.5")
    assert result.code == 0
    assert texts(out) == ["a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_record_is_complete_after_a_signal(commands: Commands, number: int) -> None:
    codes: asyncio.Queue[int] = asyncio.Queue()

    async def handler(connection: ServerConnection) -> None:
        await connection.send("message")
        # The answer to a ping says that the message before it has been taken.
        await (await connection.ping())
        command.process.send_signal(number)
        codes.put_nowait(await closed(connection))

    out = commands.folder / "out.gz"
    async with server(handler) as url:
        command = await commands.start("record", url, "-o", out)
        result = await command.finish()
        assert await asyncio.wait_for(codes.get(), HANGS) == 1000
    assert result.code == 128 + number
    assert texts(out) == ["message"]
    assert list(commands.folder.iterdir()) == [out]


async def test_record_of_a_connection_that_is_lost(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("message")
        await (await connection.ping())
        connection.transport.abort()

    out = commands.folder / "out.gz"
    async with server(handler) as url:
        result = await commands.run("record", url, "-o", out)
    assert result.code == 1
    assert "connection lost" in result.err
    assert texts(out) == ["message"]


async def test_record_leaves_out_binary_messages_and_says_so(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("text")
        await connection.send(b"binary")
        await connection.send(["in ", "fragments"])

    out = commands.folder / "out.gz"
    async with server(handler) as url:
        result = await commands.run("record", url, "-o", out)
    assert result.code == 0
    assert texts(out) == ["text", "in fragments"]
    assert "1 binary messages left out" in result.err


async def test_record_keeps_an_earlier_recording_if_it_cannot_connect(commands: Commands) -> None:
    out = write_feed(commands.folder / "out.gz", [(0, "earlier")])
    with refusing_url() as url:
        one_line(await commands.run("record", url, "-o", out), 1)
    assert texts(out) == ["earlier"]
    assert list(commands.folder.iterdir()) == [out]


async def test_record_to_a_place_that_cannot_be_written(commands: Commands) -> None:
    line = one_line(await commands.run("record", "ws://127.0.0.1/", "-o", "missing/out"), 2)
    assert "missing/out: No such file or directory" in line
    line = one_line(await commands.run("record", "ws://127.0.0.1/", "-o", "."), 2)
    assert "directory" in line


async def test_record_to_a_disk_that_is_full(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        try:
            while True:
                await connection.send(os.urandom(50_000).hex())
        except ConnectionClosed:
            pass

    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from picows_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    async with server(handler) as url:
        result = await commands.run("record", url, "-o", "out", program=program)
    assert "File too large" in one_line(result, 1)


@pytest.mark.parametrize("loop", LOOPS)
async def test_recorded_feed_is_replayed_unchanged(commands: Commands, loop: str) -> None:
    messages = [
        *islice(generate_book(5000.0), 3000),
        (600_000, ""),
        (600_000, '\x00 \u20ac \U0001f4c8 \\ "'),
        (600_001, "x" * 1_000_000),
    ]
    feed = write_feed(commands.folder / "feed", messages)
    copy = commands.folder / "copy"
    replay, url = await commands.replay(feed, "--speed", "max", "--loop", loop)
    first = await commands.run("record", url, "-o", copy, "--loop", loop)
    second = await commands.run("record", url, "-o", commands.folder / "again", "--loop", loop)
    replay.interrupt()
    assert (await replay.finish()).code == 130
    assert (first.code, second.code) == (0, 0)
    assert texts(copy) == [text for _, text in messages]
    assert texts(commands.folder / "again") == texts(copy)

    # What was recorded is a feed like the one it came from.
    replay, url = await commands.replay(copy, "--speed", "max", "--loop", loop)
    async with websockets_connect(url, max_size=None, compression=None) as connection:
        assert [message async for message in connection] == [text for _, text in messages]
    assert (connection.close_code, connection.close_reason) == (1000, "end of feed")
    replay.interrupt()
    await replay.finish()


async def test_replay_keeps_the_times(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, "a"), (100_000, "b"), (400_000, "c")])
    clock = asyncio.get_running_loop().time
    for speed, factor in (("1", 1.0), ("10", 10.0)):
        replay, url = await commands.replay(feed, "--speed", speed)
        async with websockets_connect(url) as connection:
            await connection.recv()
            start = clock()
            assert await connection.recv() == "b"
            assert await connection.recv() == "c"
            # Late is what a busy machine is; early is wrong. 20 ms for the first message's way.
            assert clock() - start >= 0.4 / factor - 0.02
        replay.interrupt()
        await replay.finish()


async def test_replay_repeats_until_the_client_leaves(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, "a"), (1000, "b")])
    for option in ("--repeat", "--loop-feed"):
        replay, url = await commands.replay(feed, option)
        async with websockets_connect(url) as connection:
            assert [await connection.recv() for _ in range(6)] == ["a", "b"] * 3
        replay.interrupt()
        assert (await replay.finish()).code == 130


def resident_memory(process: asyncio.subprocess.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
async def test_replay_does_not_queue_for_a_slow_client(commands: Commands) -> None:
    size, count = 100_000, 1_000
    feed = write_feed(
        commands.folder / "feed", [(n, f"{n:08} ".ljust(size, "x")) for n in range(100)]
    )
    replay, url = await commands.replay(feed, "--speed", "max", "--repeat")
    async with websockets_connect(url, max_queue=1, compression=None, ping_interval=None) as slow:
        async with websockets_connect(url, compression=None) as fast:
            for _ in range(50):
                await fast.recv()
            before = resident_memory(replay.process)
            for _ in range(count):
                await fast.recv()
            grown = resident_memory(replay.process) - before
        # What the fast client received meanwhile would be queued for the slow one.
        assert grown < size * count / 4
        # It has missed nothing, and is not too late.
        for n in range(300):
            message = await slow.recv()
            assert message[:8] == f"{n % 100:08}"
        # Closing would wait until all that is on its way has been read.
        slow.transport.abort()
    replay.interrupt()
    assert (await replay.finish()).code == 130


async def test_replay_tells_its_clients_that_it_goes_away(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, "a"), (3_600_000_000, "b")])
    replay, url = await commands.replay(feed)
    async with websockets_connect(url) as one, websockets_connect(url) as other:
        assert await one.recv() == "a"
        assert await other.recv() == "a"
        await other.send("what clients send is ignored")
        replay.interrupt()
        await asyncio.wait_for(asyncio.gather(one.wait_closed(), other.wait_closed()), HANGS)
        assert (one.close_code, other.close_code) == (1001, 1001)
    result = await replay.finish()
    assert result.code == 130
    assert result.err == ""


async def test_replay_goes_on_when_a_client_is_gone(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, "a"), (100_000, "b")])
    replay, url = await commands.replay(feed)
    async with websockets_connect(url) as lost:
        await lost.recv()
        lost.transport.abort()
    async with websockets_connect(url) as connection:
        assert [message async for message in connection] == ["a", "b"]
    replay.interrupt()
    result = await replay.finish()
    assert (result.code, result.err) == (130, "")


async def test_replay_of_a_file_that_is_spoiled_meanwhile(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, "a")])
    replay, url = await commands.replay(feed)
    feed.write_bytes(b"spoiled")
    async with websockets_connect(url) as connection:
        await asyncio.wait_for(connection.wait_closed(), HANGS)
        assert connection.close_code == 1011
    replay.interrupt()
    assert "not readable as gzip" in (await replay.finish()).err


async def test_replay_on_a_port_that_is_taken(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, "a")])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line(await commands.run("replay", feed, "--port", port), 1)
    assert f"127.0.0.1:{port}" in line


# The generated order book


def test_book_is_the_same_for_the_same_seed() -> None:
    first = list(islice(generate_book(1000.0, seed=3), 200))
    assert list(islice(generate_book(1000.0, seed=3), 200)) == first
    assert list(islice(generate_book(1000.0, seed=4), 200)) != first


def test_book_keeps_its_rate_and_sizes() -> None:
    messages = list(islice(generate_book(4000.0), 8001))
    assert [microseconds for microseconds, _ in messages] == [n * 250 for n in range(8001)]
    sizes = sorted(len(text) for _, text in messages)
    assert sizes[0] >= 100
    assert sizes[-1] <= 600
    kinds = [json.loads(text)["type"] for _, text in messages]
    assert 0.1 < kinds.count("trade") / len(kinds) < 0.3


def test_book_never_crosses() -> None:
    books: dict[str, tuple[dict[float, float], dict[float, float]]] = {}
    updates: dict[str, int] = {}
    for number, (_, text) in enumerate(islice(generate_book(1000.0), 20_000), 1):
        message = json.loads(text)
        assert message["seq"] == number
        bids, asks = books.setdefault(message["symbol"], ({}, {}))
        if message["type"] == "trade":
            best = min(asks) if message["side"] == "buy" else max(bids)
            assert float(message["price"]) == best
            assert float(message["size"]) > 0
            continue
        assert message["first_update"] == updates.get(message["symbol"], 0) + 1
        updates[message["symbol"]] = message["last_update"]
        for side, changes in ((bids, message["bids"]), (asks, message["asks"])):
            for price, size in changes:
                if size == "0":
                    del side[float(price)]
                else:
                    assert float(size) > 0
                    side[float(price)] = float(size)
        assert len(bids) <= 20
        assert len(asks) <= 20
        assert not bids or not asks or max(bids) < min(asks)
    assert len(books) == 3


# Figures


def test_percentiles_are_within_a_64th() -> None:
    values = [n * n % 7_919_993 for n in range(1, 30_000)] + [0, 1, 127, 128, 2**40, 2**64 - 1]
    one, other, both = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    for value in values[::2]:
        one.add(value)
    for value in values[1::2]:
        other.add(value)
    both.merge(one)
    both.merge(other)
    values.sort()
    assert both.count == len(values)
    assert both.max == 2**64 - 1
    for percent in (0, 1, 10, 50, 90, 99, 99.9, 100):
        exact = values[max(0, -int(-len(values) * percent // 100) - 1)]
        assert exact <= both.percentile(percent) <= exact * (1 + 1 / 64)
    assert both.percentile(100) == 2**64 - 1


def test_percentile_of_nothing() -> None:
    assert LatencyHistogram().percentile(99) == 0


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (85_240, "85.2 us"),
        (999_400, "999 us"),
        (999_600, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (2_100_000_000, "2.10 s"),
        (7_200_000_000_000, "7,200 s"),
    ],
)
def test_durations_are_readable(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (4_914_000, "4.91 MB"),
        (999_700, "1.00 MB"),
        (12_000_000_000, "12.0 GB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert format_bytes(count) == text
