"""examples/: each one runs as its first lines say, and does what they say."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import trustme
from websockets.asyncio.server import ServerConnection

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport

from . import needs
from .commands import (  # noqa: F401
    ENVIRONMENT,
    Command,
    Commands,
    Result,
    commands_fixture,
    server,
)
from .conftest import ROOT
from .support import Recorder, raw_client, read_frame, serving, upgrade_request

EXAMPLES = ROOT / "examples"

# The event loop that matters is the example's.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


class Examples:
    """Runs the files of examples/."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def run(self, name: str, *arguments: object) -> list[str]:
        """Run an example to its end; the lines it printed."""
        return succeeded(await self._commands.run(*arguments, script=EXAMPLES / name))

    async def program(self, program: str, *arguments: object) -> list[str]:
        """Run a program that imports an example; the lines it printed."""
        return succeeded(await self._commands.run(*arguments, program=program))

    async def start(self, name: str, *arguments: object) -> Command:
        return await self._commands.start(*arguments, script=EXAMPLES / name)

    async def server(self, name: str, *arguments: object) -> tuple[Command, str]:
        """Start an example that listens; its URL as it says."""
        command = await self.start(name, *arguments)
        found = re.fullmatch(r"listening on (\S+)\n", await command.line())
        assert found is not None, await command.finish()
        return command, found[1]


def succeeded(result: Result) -> list[str]:
    assert (result.code, result.err) == (0, ""), result
    return result.out.splitlines()


async def stop(command: Command) -> list[str]:
    """End an example with Ctrl-C; the lines it printed since."""
    command.interrupt()
    return succeeded(await command.finish())


@pytest.fixture
async def examples(commands: Commands) -> AsyncIterator[Examples]:
    return Examples(commands)


@pytest.mark.parametrize("server", ["echo_server.py", "codec_trio.py"])
async def test_echo(examples: Examples, server: str) -> None:
    command, url = await examples.server(server, 0)
    lines = await examples.run("echo_client.py", url)
    assert lines[:4] == [
        "received one",
        "received two",
        "received three",
        "disconnected: LOCAL_CLOSE",
    ]
    assert lines[4].startswith("WSCloseHandshake(recv=WSCloseInfo(code=<WSCloseCode.OK: 1000>")
    assert await examples.run("codec_thread.py", url) == ["received hello", "closed with OK"]
    seen = ["client asks for /"] * 2 if server == "echo_server.py" else []
    assert await stop(command) == seen


async def test_trio_server_refuses(examples: Examples) -> None:
    command, url = await examples.server("codec_trio.py", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", picows_fast.parse_url(url).port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 426 ")
    writer.close()
    reader, writer = await raw_client(url)
    writer.write(picows_fast.build_frame(WSMsgType.TEXT, "not masked"))
    opcode, payload = await read_frame(reader)
    assert (opcode, payload[:2]) == (WSMsgType.CLOSE, b"\x03\xea")  # 1002
    writer.close()
    assert await stop(command) == []


async def test_async_iteration(examples: Examples) -> None:
    command, url = await examples.server("echo_server.py", 0)
    (line,) = await examples.run("async_iteration.py", url)
    found = re.fullmatch(r"1000 messages, at most (\d+) of them in the queue", line)
    assert found is not None
    assert int(found[1]) <= 100
    await stop(command)


async def test_async_iteration_has_whole_messages_and_an_end(examples: Examples) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(["first ", "second"])
        await connection.send(b"binary")

    program = (
        f"import asyncio, sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "from async_iteration import Messages, ws_connect\n"
        "async def main():\n"
        "    _, messages = await ws_connect(Messages, sys.argv[1], enable_auto_close=True)\n"
        "    print(*[[item async for item in messages] for _ in range(2)])\n"
        "asyncio.run(main())\n"
    )
    async with server(handler) as url:
        assert await examples.program(program, url) == ["['first second', b'binary'] []"]


async def test_many_symbols(examples: Examples) -> None:
    command, url = await examples.server("echo_server.py", 0)
    lines = await examples.run("many_symbols.py", url, "BTC", "ETH")
    assert sorted(lines) == ["2 symbols", "BTC 101.0", "ETH 102.0"]
    assert await stop(command) == ["client asks for /?symbol=BTC", "client asks for /?symbol=ETH"]
    lines = await examples.run("many_symbols.py", url, "BTC", "ETH")
    assert [line.split(":")[0] for line in lines[:2]] == [
        "BTC not connected",
        "ETH not connected",
    ]


class Exchange(WSListener):
    """Answers a subscription with two updates, then ends the connection in a way of its own."""

    def __init__(self, end: Callable[[WSTransport], None]) -> None:
        self.end = end

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        assert frame.get_payload_as_bytes() == b'{"op": "subscribe", "channel": "book"}'
        transport.send(WSMsgType.TEXT, '{"bid": 1}')
        transport.send(WSMsgType.TEXT, '{"bid": 2}')
        self.end(transport)


async def test_exchange_client_reconnects(examples: Examples) -> None:
    last: asyncio.Queue[WSTransport] = asyncio.Queue()
    ends = [lambda transport: transport.send_close(1012, "restart"), last.put_nowait]

    async with serving(lambda request: Exchange(ends.pop(0)), enable_auto_close=True) as url:
        client = await examples.start("exchange_client.py", url)
        updates = ["update {'bid': 1}\n", "update {'bid': 2}\n"]
        assert [await client.line() for _ in range(2)] == updates
        line = await client.line()
        assert "CLOSE_FRAME" in line
        assert "SERVICE_RESTART" in line
        assert [await client.line() for _ in range(2)] == updates
        transport = await asyncio.wait_for(last.get(), 20)
        assert await stop(client) == []
        await asyncio.wait_for(transport.wait_disconnected(), 20)
        assert transport.close_handshake.recv.code == picows_fast.WSCloseCode.GOING_AWAY


async def test_exchange_client_does_not_hammer(examples: Examples) -> None:
    """An exchange that has an update for it, and closes, is left alone for longer and longer."""

    async def handler(connection: ServerConnection) -> None:
        await connection.send('{"event": "banned"}')

    program = (
        f"import asyncio, random, sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import exchange_client\n"
        "bounds = []\n"
        "def uniform(lowest, highest):\n"
        "    bounds.append((lowest, highest))\n"
        "    return 0\n"
        "async def main():\n"
        "    task = asyncio.create_task(exchange_client.main(sys.argv[1]))\n"
        "    while len(bounds) < 8:\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(*bounds[:8])\n"
        "random.uniform = uniform\n"
        "asyncio.run(main())\n"
    )
    async with server(handler) as url:
        lines = await examples.program(program, url)
    highest = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert " ".join(f"(0.25, {bound})" for bound in highest) in lines


async def test_exchange_client_waits_for_a_server(examples: Examples) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        client = await examples.start(
            "exchange_client.py", f"ws://127.0.0.1:{sock.getsockname()[1]}/"
        )
        for _ in range(2):
            assert "ConnectionRefusedError" in await client.line()
        await stop(client)


async def test_exchange_client_ends_if_no_retry_can_help(examples: Examples) -> None:
    async with serving(lambda request: None) as url:
        client = await examples.start("exchange_client.py", url)
        assert "WSInvalidStatusError" in await client.line()
        result = await client.finish()
        assert (result.code, result.err) == (1, "no retry can help\n")


@pytest.mark.parametrize("arguments", [[], ["200"]], ids=["blocking", "spinning"])
async def test_latency_client(examples: Examples, arguments: list[str]) -> None:
    command, url = await examples.server("echo_server.py", 0)
    count, *lines = await examples.run("latency_client.py", url, *arguments)
    assert count == "1000 round trips"
    for line, name in zip(lines, ("", "", ", in the kernel", ", in the kernel"), strict=True):
        assert re.fullmatch(rf"(median|99th percentile){name} [\d.]+ us", line)
    await stop(command)


async def test_json_ping(examples: Examples) -> None:
    by_bytes, by_content = await examples.run("json_ping.py")
    assert by_bytes.startswith("ByBytes: 5 pongs, fastest ")
    assert by_content.startswith("ByContent: 5 pongs, fastest ")


async def test_fragments(examples: Examples) -> None:
    assert await examples.run("fragments.py") == ["bid 1 \N{EURO SIGN}"]


async def test_messages(examples: Examples) -> None:
    printed = await examples.run("messages.py")
    assert printed == ["1 \N{EURO SIGN}", "CLOSE: closed for today"]


async def test_fan_out_conflated(examples: Examples) -> None:
    assert await examples.run("fan_out_conflated.py") == [
        "slow now: 1, conflated: True",
        "both have the newest of each symbol: True",
        "accounted for: True",
    ]


class Reader(WSListener):
    def __init__(self) -> None:
        self.enough = asyncio.Event()
        self.numbers = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.numbers += 1
        if self.numbers == 1000:
            self.enough.set()


async def test_fanout_drops_the_slow(examples: Examples) -> None:
    command, url = await examples.server("fanout_server.py", 0, 50_000)
    transport, reader = await picows_fast.ws_connect(Reader, url)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", picows_fast.parse_url(url).port))
        slow.sendall(upgrade_request())
        seen = ""
        while "WRITE_BACKLOG" not in seen:
            seen += await command.line()
    assert "client is slow\n" in seen
    await asyncio.wait_for(reader.enough.wait(), 20)
    assert not transport.is_disconnected
    transport.send_close(1000)
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    command.interrupt()
    result = await command.finish()
    # What a client does is no more than INFO to the log.
    assert (result.code, result.err) == (0, "")


async def test_tls(examples: Examples, commands: Commands, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    trusted, chain, key = (commands.folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(trusted)
    certificate.private_key_pem.write_to_path(key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(chain, append=True)
    command, url = await examples.server("tls_server.py", chain, key, 0)
    lines = await examples.run("tls_client.py", url, trusted)
    assert lines == [
        "TLSv1.3, session resumed: False",
        "received hello",
        "TLSv1.3, session resumed: True",
        "received hello",
    ]
    assert await stop(command) == []


async def test_attach(examples: Examples) -> None:
    lines = await examples.run("attach.py")
    assert lines == ["received hello", "the server's side has ended"]


async def test_unix_socket(examples: Examples) -> None:
    assert await examples.run("unix_socket.py") == ["received hello", "left in the folder: []"]


async def http_get(port: int | None, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


async def test_async_authentication(examples: Examples) -> None:
    command, url = await examples.server("async_authentication.py", 0)
    headers = {"Authorization": "Bearer swordfish"}
    transport, client = await picows_fast.ws_connect(Recorder, url, extra_headers=headers)
    assert await client.frame() == (WSMsgType.TEXT, b"hello alice", True)
    transport.disconnect()
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    with pytest.raises(picows_fast.WSInvalidStatusError, match="401"):
        await picows_fast.ws_connect(Recorder, url)
    assert await stop(command) == ["127.0.0.1 has no valid token"]


async def test_health_page(examples: Examples) -> None:
    command, url = await examples.server("health_page.py", 0)
    port = int(url.removesuffix("/health").rpartition(":")[2])
    transport, client = await picows_fast.ws_connect(Recorder, f"ws://127.0.0.1:{port}/feed/me")
    assert await client.frame() == (WSMsgType.TEXT, b"hello /feed/me", True)
    head, body = (await http_get(port, "/health")).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"1 clients\n"
    head, body = (await http_get(port, "/metrics")).split(b"\r\n\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert b"\npicows_fast_connections 1\n" in body
    assert body.endswith(b"\ngreeted_total 1\n")
    assert b"new WebSocket" in await http_get(port, "/")
    assert (await http_get(port, "/favicon.ico")).startswith(b"HTTP/1.1 404 ")
    assert (await http_get(port, "/feed/me")).startswith(b"HTTP/1.1 426 ")
    transport.disconnect()
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert await stop(command) == []


@pytest.mark.parametrize("name", ["echo_server.py", "fanout_server.py"])
async def test_servers_end_in_order_on_sigterm(examples: Examples, name: str) -> None:
    command, url = await examples.server(name, 0)
    clients = [
        await picows_fast.ws_connect(WSListener, url, enable_auto_close=True) for _ in range(3)
    ]
    command.process.terminate()
    for transport, _ in clients:
        await asyncio.wait_for(transport.wait_disconnected(), 20)
        code = picows_fast.WSCloseCode.GOING_AWAY
        if name == "fanout_server.py":
            code = picows_fast.WSCloseCode.SERVICE_RESTART
        assert transport.close_handshake.recv.code == code
    succeeded(await command.finish())


@needs.reuse_port
async def test_several_processes(examples: Examples) -> None:
    command = await examples.start("several_processes.py", 0, 2)

    async def started() -> tuple[int, str]:
        found = re.fullmatch(r"process (\d+) serves (\S+)\n", await command.line())
        assert found is not None
        return int(found[1]), found[2]

    (one, url), (other, _) = await started(), await started()
    port = picows_fast.parse_url(url).port

    async def processes() -> set[int]:
        """Those that answer, once there are two of them."""
        found: set[int] = set()
        while len(found) < 2:
            answer = await http_get(port, "/process")
            found.add(int(answer.rpartition(b"\r\n")[2]))
        return found

    assert await asyncio.wait_for(processes(), 20) == {one, other}
    clients = [
        await picows_fast.ws_connect(WSListener, url, enable_auto_close=True) for _ in range(10)
    ]
    os.kill(one, signal.SIGTERM)
    assert await command.line() == "a process has ended\n"
    another, _ = await started()
    assert await asyncio.wait_for(processes(), 20) == {other, another}
    command.process.terminate()
    for transport, _ in clients:
        await asyncio.wait_for(transport.wait_disconnected(), 20)
        assert transport.close_handshake.recv.code == picows_fast.WSCloseCode.SERVICE_RESTART
    assert succeeded(await command.finish()) == []
    for number in (other, another):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


async def test_cython_client(examples: Examples, commands: Commands) -> None:
    folder = shutil.copytree(EXAMPLES / "cython_client", commands.folder / "cython_client")
    build = await asyncio.create_subprocess_exec(
        sys.executable,
        "setup.py",
        "build_ext",
        "--inplace",
        cwd=folder,
        env={**ENVIRONMENT, "CFLAGS": "-O0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await build.communicate()
    assert build.returncode == 0, output.decode()
    command, url = await examples.server("fanout_server.py", 0, 10_000)
    lines = succeeded(await commands.run(url, script=folder / "run.py"))
    assert lines == ["1000 frames, 1000 commas"]
    await stop(command)
