"""picows_fast.cli.record and replay: to a file and back, with peers of another make."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from itertools import islice
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as websockets_connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from picows_fast.cli.book import generate_book
from picows_fast.cli.feedfile import read_feed

from . import needs
from .commands import (  # noqa: F401
    ENVIRONMENT,
    HANGS,
    LOOPS,
    Commands,
    closed,
    commands_fixture,
    echo,
    one_line,
    refusing_url,
    server,
    texts,
    write_feed,
)
from .support import until

# The event loop that matters is the command's, chosen by --loop.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


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
        one_line(await commands.run("record", url, "-o", out, "--force"), 1)
    assert texts(out) == ["earlier"]
    assert list(commands.folder.iterdir()) == [out]


async def greet(connection: ServerConnection) -> None:
    for number in range(3):
        await connection.send(f"message {number}")


GREETING = ["message 0", "message 1", "message 2"]


async def test_record_replaces_a_file_only_if_it_is_told_to(commands: Commands) -> None:
    out = write_feed(commands.folder / "out.gz", [(0, "earlier")])
    async with server(greet) as url:
        assert "--force" in one_line(await commands.run("record", url, "-o", out), 2)
        assert texts(out) == ["earlier"]
        link = commands.folder / "link.gz"
        link.symlink_to(out)
        assert (await commands.run("record", url, "-o", link, "--force")).code == 0
        assert link.is_symlink()
        assert texts(out) == GREETING
        # Of a recorder that was killed, or still runs.
        part = write_feed(commands.folder / "other.gz.part", [(0, "earlier")])
        other = commands.folder / "other.gz"
        assert f"{part} exists" in one_line(await commands.run("record", url, "-o", other), 2)
        assert texts(part) == ["earlier"]
        assert (await commands.run("record", url, "-o", other, "--force")).code == 0
        assert texts(other) == GREETING
    assert not part.exists()


@pytest.mark.parametrize(
    ("limits", "code"),
    [([], 0), (["--messages", "4"], 3), (["--seconds", "60"], 3), (["--messages", "3"], 0)],
)
async def test_record_of_a_server_that_closes(
    commands: Commands, limits: list[str], code: int
) -> None:
    out = commands.folder / "out.gz"
    async with server(greet) as url:
        result = await commands.run("record", url, "-o", out, *limits)
    assert result.code == code
    assert texts(out) == GREETING
    early = f"closed by the peer, code 1000, before {limits[0]} was reached" if limits else "closed"
    assert (early in result.err) == (limits != ["--messages", "3"])


async def test_record_of_nothing_but_binary_messages(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(b"binary")

    async with server(handler) as url:
        result = await commands.run("record", url, "-o", "out.gz")
    assert result.code == 1
    assert "out.gz: not written, no TEXT messages (1 binary messages came" in result.err
    assert list(commands.folder.iterdir()) == []


@needs.fifo
@pytest.mark.parametrize("kind", ["fifo", "socket", "stdout", "device"])
async def test_record_into_what_is_no_regular_file(commands: Commands, kind: str) -> None:
    out = commands.folder / "out"
    accepted = b""
    async with server(greet) as url:
        if kind == "fifo":
            os.mkfifo(out)
            reader = asyncio.create_task(asyncio.to_thread(out.read_bytes))
            result = await commands.run("record", url, "-o", out)
            accepted = await reader
            assert out.is_fifo()
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(out))
                listening.listen()
                listening.setblocking(False)
                accepting = asyncio.create_task(asyncio.get_running_loop().sock_accept(listening))
                result = await commands.run("record", url, "-o", out)
                connection, _ = await accepting
                with connection:
                    accepted = connection.recv(65536)
            assert out.is_socket()
        elif kind == "device":
            before = os.stat(os.devnull)
            result = await commands.run("record", url, "-o", os.devnull)
            assert os.stat(os.devnull) == before
        else:
            script = (
                f"echo first > file; {sys.executable} -m picows_fast record {url} -o /dev/stdout"
            )
            process = await asyncio.create_subprocess_shell(
                f"{script} >> file", cwd=commands.folder, env=ENVIRONMENT
            )
            assert await asyncio.wait_for(process.wait(), HANGS) == 0
            first, accepted = (commands.folder / "file").read_bytes().split(b"\n", 1)
            assert first == b"first"
    if kind != "stdout":
        assert result.code == 0, result
    if kind != "device":
        copy = commands.folder / "copy"
        copy.write_bytes(accepted)
        assert texts(copy) == GREETING


@needs.fifo
async def test_record_into_a_pipe_whose_reader_goes(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.send(os.urandom(50_000).hex())

    out = commands.folder / "out"
    os.mkfifo(out)
    async with server(handler) as url:
        command = await commands.start("record", url, "-o", out)
        with await asyncio.to_thread(open, out, "rb") as pipe:
            await asyncio.to_thread(pipe.read, 1000)
        result = await command.finish()
    assert "Broken pipe" in one_line(result, 1)


async def test_a_recorder_that_is_killed_loses_a_second_at_most(commands: Commands) -> None:
    flushed = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await greet(connection)
        await flushed.wait()
        command.process.kill()
        await connection.wait_closed()

    part = commands.folder / "out.gz.part"
    async with server(handler) as url:
        command = await commands.start("record", url, "-o", "out.gz")
        await until(lambda: part.exists() and part.stat().st_size, HANGS)
        flushed.set()
        await command.process.wait()
    assert list(commands.folder.iterdir()) == [part]
    assert list(read_feed(part, allow_cut_off=True))[-1][1] == "message 2"
    replay, url = await commands.replay(part)
    async with websockets_connect(url) as connection:
        assert [message async for message in connection] == GREETING
    replay.interrupt()
    result = await replay.finish()
    assert result.err == f"{part} is cut off: its 3 whole messages are published\n"


@needs.full_device
async def test_record_to_a_full_disk_is_told_when_it_is_flushed(commands: Commands) -> None:
    async def handler(connection: ServerConnection) -> None:
        await greet(connection)
        await connection.wait_closed()

    async with server(handler) as url:
        result = await commands.run("record", url, "-o", "/dev/full")
    assert "cannot write /dev/full: No space left" in one_line(result, 1)


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
    replay, url = await commands.replay(feed, "--repeat")
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


async def test_replay_ends_with_ctrl_c_though_a_client_does_not_read(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(n, "x" * 100_000) for n in range(10)])
    replay, url = await commands.replay(feed, "--speed", "max", "--repeat")
    async with websockets_connect(url, max_queue=1, compression=None) as slow:
        await slow.recv()
        replay.interrupt()
        assert await asyncio.wait_for(replay.process.wait(), HANGS) == 130
        slow.transport.abort()
    assert (await replay.finish()).err == ""


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
    assert str(port) in line
    assert "in use" in line
