"""An allocator that fails at the n-th call within the package, for every n of a conversation.

Whatever it was needed for: the conversation goes on in step, or this connection fails and is told
so. No frame is invented, none is lost on a connection that goes on, none is cut by another, and
nothing waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from picows_fast import WSMsgType, WSState
from picows_fast.net import loop_transport

from ..cython_build import load
from ..support import until
from .conversation import STREAMS, NoDirectTls, Talker, World

PATIENCE = 3  # seconds
OUR_SIZES = (30, 40, 150_000, 126, 60_000, 20, 0)
PEERS_SIZES = (30, 40, 126, 5000, 25, 400_000, 25, 70_000, 30)


@pytest.fixture
def failing(cython_folder):
    module = load(cython_folder, "failing")
    module.install()
    yield module
    module.uninstall()


LOOP_METHODS = ("call_soon", "call_later", "call_at", "add_reader", "add_writer")
# What cannot be released is left behind, whatever we do.
RELEASING = ("remove_reader", "remove_writer")
NEVER_FAIL = (*RELEASING, "abort", "close")


@contextlib.contextmanager
def watched(failing, monkeypatch):
    """What the event loop and its transports call of ours runs with an allocator that may fail."""
    loop = asyncio.get_running_loop()

    def arming(method):
        def call(*arguments, **options):
            arguments = [
                failing.Armed(one)
                if type(getattr(one, "__self__", None)).__module__.startswith("picows_fast")
                else one
                for one in arguments
            ]
            return method(*arguments, **options)

        wrapper = failing.Unarmed if method.__name__ in NEVER_FAIL else failing.Atomic
        return wrapper(call)

    class Transport:
        """The event loop's, each of whose methods does nothing if there is no memory."""

        def __init__(self, transport):
            self.transport = transport

        def __getattr__(self, name):
            wrapper = failing.Unarmed if name in NEVER_FAIL else failing.Atomic
            return wrapper(getattr(self.transport, name))

    for name in LOOP_METHODS + RELEASING:
        setattr(loop, name, arming(getattr(loop, name)))
    make = loop_transport._Protocol.__init__

    def make_armed(protocol, stream):
        make(protocol, stream)
        for name in type(protocol).__slots__:
            setattr(protocol, name, failing.Armed(getattr(protocol, name)))
        protocol.connection_made = lambda transport: stream._connection_made(Transport(transport))

    monkeypatch.setattr(loop_transport._Protocol, "__init__", make_armed)
    yield
    for name in LOOP_METHODS + RELEASING:
        delattr(loop, name)


class FailingWorld(World):
    """One connection; what the listener and the test themselves do has memory enough."""

    def make_listener(self, line):
        listener = Talker(line)
        for name in ("on_ws_frame", "on_ws_disconnected", "pause_writing", "resume_writing"):
            setattr(listener, name, self.failing.Unarmed(getattr(listener, name)))
        return listener


# --- Conversations


async def talk(world):
    """Frames of every size both ways, fragments, a backlog, pings."""
    (line,) = world.lines
    talking = asyncio.ensure_future(line.peer_talks(PEERS_SIZES))
    with contextlib.suppress(MemoryError):
        world.armed(line.transport.send_ping)(b"of ours")
    for size in OUR_SIZES:
        line.send("traffic", size)
        await asyncio.sleep(0)
    await line.peer_pings()
    await asyncio.wait([talking], timeout=PATIENCE)
    await until(line.settled, PATIENCE)


def end(line, how, method, argument):
    """End the connection, with a second try if the first one has raised."""
    line.end(how)
    try:
        line.world.armed(method)(argument)
    except MemoryError:
        method(argument)


async def close(world):
    """Our CLOSE behind a backlog."""
    (line,) = world.lines
    line.send("traffic", 150_000)
    end(line, "close", line.transport.send_close, 1000)
    await until(line.settled, PATIENCE)


async def peer_closes(world):
    (line,) = world.lines
    line.send("traffic", 150_000)
    line.end("peer")
    await line.peer_sends(line.peer.frame(WSMsgType.CLOSE, b"\x03\xe8"))
    await until(line.settled, PATIENCE)


async def abort(world):
    (line,) = world.lines
    line.send("traffic", 150_000)
    end(line, "abort", line.transport.disconnect, False)
    await until(line.settled, PATIENCE)


CONVERSATIONS = {"talk": talk, "close": close, "peer closes": peer_closes, "abort": abort}


async def run(world, conversation, number, length):
    """What goes wrong when this allocation fails; None if nothing."""
    failing = world.failing
    world.begin()
    failing.start(number, length)
    problem = ""
    try:
        await conversation(world)
    except asyncio.TimeoutError:
        problem = "hangs"
    world.counted = failing.count()
    failing.start(0, 0)
    (line,) = world.lines
    try:
        line.check(may_fail=True)
    except Exception as error:
        problem += f" {error!r:.300}"
    return problem


# TLS in TLS has the event loop's own below ours, which leaves sockets behind if a protocol raises.
@pytest.mark.parametrize("stream", [name for name in STREAMS if name != "tls-in-tls"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_failing_allocator(conversation, stream, tls_contexts, failing, thorough, monkeypatch):
    if stream == "memory-tls":
        monkeypatch.setattr("picows_fast.net.open.DirectTlsStream", NoDirectTls)
    trouble = []

    async def sweep(side, first, step):
        """Every allocation, or some: until there is none of that number."""
        number = first
        while number:
            world = FailingWorld(stream, side, tls_contexts, count=1, close_timeout=0.2)
            world.failing = failing
            world.armed = failing.Armed
            async with world.opened():
                while number:
                    problem = await run(world, CONVERSATIONS[conversation], number, 1)
                    if problem:
                        trouble.append(f"{side} at {number}: {problem}")
                    number = 0 if number > world.counted else number + step
                    if problem or world.lines[0].transport.state != WSState.OPEN:
                        break

    async def main():
        with watched(failing, monkeypatch):
            await sweep("client", 1, 1 if thorough else 7)
            await sweep("server", 1 if thorough else 4, 1 if thorough else 7)

    asyncio.run(main())
    assert not trouble, "\n".join(trouble)
