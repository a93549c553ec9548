"""Deadlines that pass while nobody reads: what has arrived by then is read, then it is judged."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import time

import pytest

import picows_fast
from picows_fast import WSAutoPingStrategy, WSDisconnectCause, WSMsgType, WSState
from picows_fast.net.overdue import Overdue

from .peers import UPGRADE_REQUEST, Peer, check_end, connect_socket, listening_socket
from .support import (
    Recorder,
    accept_response,
    address,
    raw_server,
    read_frame,
    server_frame,
    serving,
    until,
)

pytestmark = pytest.mark.usefixtures("leaves_nothing")

PING, PONG, TEXT = WSMsgType.PING, WSMsgType.PONG, WSMsgType.TEXT


# --- The mechanism


class Unread:
    """A stream that has something for so many turns."""

    def __init__(self, turns):
        self.turns = turns
        self.asked = 0

    def has_unread(self):
        self.asked += 1
        self.turns -= 1
        return self.turns > 0


async def turns_until_judged(stream, **options):
    judged = asyncio.Event()
    Overdue(asyncio.get_running_loop(), stream, judged.set, **options)
    for turn in range(1000):
        await asyncio.sleep(0)
        if judged.is_set():
            return turn
    raise AssertionError("never judged")


async def test_what_is_readable_is_read_before_the_judgement():
    """What becomes readable in this very turn, too."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    events = []
    with ours, theirs:
        ours.setblocking(False)
        loop.add_reader(ours, lambda: events.append(ours.recv(10)))
        done = asyncio.Event()
        Overdue(loop, None, lambda: (events.append("judged"), done.set()))
        theirs.send(b"pong")
        await asyncio.wait_for(done.wait(), 20)
        loop.remove_reader(ours)
    assert events == [b"pong", "judged"]


async def test_as_long_as_there_is_something_unread():
    few = await turns_until_judged(Unread(0))
    assert await turns_until_judged(Unread(50)) == few + 48
    assert await turns_until_judged(None, turns=10) == few + 8


async def test_a_flood_does_not_put_the_judgement_off_for_ever():
    stream = Unread(10**9)
    assert await turns_until_judged(stream) < 300


async def test_cancelled():
    judged = []
    overdue = Overdue(asyncio.get_running_loop(), None, lambda: judged.append(1))
    await asyncio.sleep(0)
    overdue.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert judged == []


# --- On connections


def block(seconds):
    """Hold the event loop up."""
    time.sleep(seconds)


async def held_up(act, seconds):
    """Have this happen while the event loop is held up, in a callback for a descriptor: timers may
    come next.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    ours, theirs = socket.socketpair()

    def on_readable():
        loop.remove_reader(ours)
        act()
        block(seconds)
        done.set_result(None)

    with ours, theirs:
        ours.setblocking(False)
        loop.add_reader(ours, on_readable)
        theirs.send(b"x")
        await done


class Slow(Recorder):
    """A callback that takes longer than every deadline, while the peer answers."""

    def __init__(self):
        super().__init__()
        self.pair = None
        self.answer = b""
        self.has_slept = False

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        if frame.msg_type == TEXT and not self.has_slept:
            self.has_slept = True
            self.before_the_sleep(transport)
            if self.answer:
                peer = self.pair.peer
                peer.sock.send(peer.encrypt(self.answer))
            block(0.15)

    def before_the_sleep(self, transport):
        pass


@pytest.mark.parametrize("strategy", list(WSAutoPingStrategy), ids=lambda s: s.name)
@pytest.mark.parametrize("behind", [0, 200], ids=["alone", "behind data"])
async def test_a_pong_that_lies_unread(link, strategy, behind):
    listener = Slow()
    async with link(
        listener,
        enable_auto_ping=True,
        auto_ping_idle_timeout=0.05,
        auto_ping_reply_timeout=0.1,
        auto_ping_strategy=strategy,
    ) as pair:
        listener.pair = pair
        data = pair.peer.frame(WSMsgType.BINARY, bytes(1000)) * behind
        listener.answer = data + pair.peer.frame(PONG)
        assert (await pair.peer.read_frame())[0] == PING
        await pair.peer.send(TEXT, "slow")
        assert (await pair.peer.read_frame())[0] == PING  # the next one
        assert pair.transport.state == WSState.OPEN
        assert len(listener.frames) == 1 + behind
        # And a peer that is silent is found all the same.
        await check_end(pair, WSDisconnectCause.PING_TIMEOUT)


async def test_a_close_that_lies_unread(link):
    class Closing(Slow):
        def before_the_sleep(self, transport):
            transport.send_close(1000)

    listener = Closing()
    async with link(listener, close_timeout=0.1) as pair:
        listener.pair = pair
        listener.answer = pair.peer.frame(WSMsgType.CLOSE, b"\x03\xe8")
        await pair.peer.send(TEXT, "slow")
        await check_end(pair, WSDisconnectCause.LOCAL_CLOSE)
    assert pair.transport.close_handshake.recv.code == 1000


async def test_no_close_that_lies_unread(link):
    class Closing(Slow):
        def before_the_sleep(self, transport):
            transport.send_close(1000)

    listener = Closing()
    async with link(listener, close_timeout=0.1) as pair:
        await pair.peer.send(TEXT, "slow")
        await check_end(pair, WSDisconnectCause.CLOSE_TIMEOUT)


async def test_a_request_that_lies_unread(io_options):
    """The server is held up when it comes; whoever runs next finds the answer there."""
    async with serving(
        lambda request: Recorder(), websocket_handshake_timeout=0.1, **io_options
    ) as url:
        silent = socket.create_connection(address(url))
        late = socket.create_connection(address(url))
        with silent, late:
            await asyncio.sleep(0.03)  # they are accepted
            await held_up(lambda: late.sendall(UPGRADE_REQUEST), 0.2)
            answers = []
            for sock in (late, silent):
                sock.setblocking(False)
                answers.append(await asyncio.get_running_loop().sock_recv(sock, 100))
    assert answers[0].startswith(b"HTTP/1.1 101 ")
    assert answers[1].startswith(b"HTTP/1.1 408 ")


async def test_a_tls_flight_that_lies_unread(server_tls, client_tls, io_options):
    """The client's Finished comes while the server is held up."""
    async with serving(
        lambda request: Recorder(),
        tls=server_tls,
        ssl_handshake_timeout=0.3,
        websocket_handshake_timeout=None,
        **io_options,
    ) as url:
        peer = Peer(await connect_socket(address(url)), is_client=True, context=client_tls)
        while True:
            try:
                peer.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await peer.send_raw(peer.encrypt(b""))
                await peer._receive()
        await held_up(lambda: peer.sock.send(peer.encrypt(b"")), 0.4)
        await peer.send_bytes(UPGRADE_REQUEST)
        assert (await peer.read_head()).startswith(b"HTTP/1.1 101 ")
        peer.close()


async def test_a_response_that_lies_unread(io_options):
    """The client is held up when it comes; and one that does not come in time is told."""
    loop = asyncio.get_running_loop()
    for answers in (True, False):
        with listening_socket() as listening:
            connecting = asyncio.create_task(
                picows_fast.ws_connect(
                    Recorder,
                    f"ws://127.0.0.1:{listening.getsockname()[1]}/",
                    websocket_handshake_timeout=0.1,
                    **io_options,
                )
            )
            sock, _ = await loop.sock_accept(listening)
            with sock:
                head = await loop.sock_recv(sock, 10_000)
                if answers:
                    sock.send(accept_response(head))
                block(0.2)
                if not answers:
                    with pytest.raises(asyncio.TimeoutError):
                        await connecting
                    continue
                transport, _ = await connecting
                transport.disconnect(graceful=False)
                await transport.wait_disconnected()


STOPPED = """
import asyncio, sys
import picows_fast

class Client(picows_fast.WSListener):
    def send_user_specific_ping(self, transport):
        transport.send_ping()
        print("ping", flush=True)

async def main():
    transport, _ = await picows_fast.ws_connect(
        Client, sys.argv[1], enable_auto_ping=True, auto_ping_idle_timeout=0.1,
        auto_ping_reply_timeout=0.5, enable_auto_close=True,
        auto_ping_strategy=picows_fast.WSAutoPingStrategy.PING_PERIODICALLY,
    )
    await transport.wait_disconnected()
    print(transport.disconnect_cause.name, flush=True)

try:
    import uvloop
except ImportError:
    asyncio.run(main())
else:
    uvloop.run(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
async def test_a_stopped_process():
    """The pong arrives while the process is stopped for longer than the deadline."""
    answered = asyncio.Event()

    async def peer(reader, writer):
        assert (await read_frame(reader))[0] == PING
        child.send_signal(signal.SIGSTOP)
        await until(lambda: _state_of(child.pid) == "T")
        writer.write(server_frame(PONG))
        await asyncio.sleep(0.7)
        child.send_signal(signal.SIGCONT)
        assert (await read_frame(reader))[0] == PING
        writer.write(server_frame(WSMsgType.CLOSE, b"\x03\xe8"))
        answered.set()
        while (await read_frame(reader))[0] != WSMsgType.CLOSE:
            pass
        writer.close()

    async with raw_server(peer) as url:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STOPPED, url, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            await asyncio.wait_for(answered.wait(), 30)
            assert (await child.stdout.readline()) == b"ping\n"
            while (line := await asyncio.wait_for(child.stdout.readline(), 20)) == b"ping\n":
                pass
            assert line == b"CLOSE_FRAME\n"
            await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


def _state_of(pid):
    if not os.path.exists("/proc/self/stat"):
        return "T"
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]
