"""What a connection leaves for the garbage collector: nothing. Whatever ends it, reference counts
alone free its objects, so that a server with thousands of short connections needs no collections,
and nobody's memory waits for one.

The exception is one that the application's own code raised: its traceback refers to that code's
variables, the transport among them, and the transport keeps it as `disconnect_exception`. One
collection frees both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import ssl
import types
import weakref
from collections import Counter

import pytest

import picows_fast
from picows_fast import WSCloseCode, WSListener, WSMsgType

from ..peers import TIMEOUT, connected, listening_socket
from ..support import accept_response, serving

PACKAGE = os.path.dirname(picows_fast.__file__)


def is_ours(thing):
    """Whether the garbage collector's object is the package's, or code of the package in the midst
    of running."""
    if isinstance(thing, types.FrameType):
        return thing.f_code.co_filename.startswith(PACKAGE)
    if isinstance(thing, types.CoroutineType):
        return thing.cr_code.co_filename.startswith(PACKAGE)
    if isinstance(thing, types.FunctionType):
        return (thing.__module__ or "").startswith("picows_fast") and thing.__closure__ is not None
    module = type(thing).__module__  # of a type that C makes, it may be a descriptor
    return isinstance(module, str) and module.startswith(("picows_fast", __name__))


def census():
    """How many objects of ours there are, by type."""
    return Counter(type(thing).__qualname__ for thing in gc.get_objects() if is_ours(thing))


@contextlib.contextmanager
def no_collections():
    logging.disable()  # pytest keeps what is logged, the transport included
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


class Witness(WSListener):
    """Refers to its transport, as listeners do; each method is told apart by what `act` does."""

    def __init__(self, act=lambda name, transport, frame: None):
        self.act = act
        self.transport = None
        self.names = []
        self.changed = asyncio.Event()

    def note(self, name, transport, frame=None):
        self.names.append(name)
        self.changed.set()
        self.act(name, transport, frame)

    def on_ws_connected(self, transport):
        self.transport = transport
        self.note("connected", transport)

    def on_ws_frame(self, transport, frame):
        self.note(frame.msg_type.name, transport, frame)

    def on_ws_disconnected(self, transport):
        self.note("disconnected", transport)

    def pause_writing(self):
        self.note("pause", self.transport)

    async def until(self, name):
        async def wait():
            while name not in self.names:
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), TIMEOUT)


async def freed(live, *arguments, collected=0):
    """Run the coroutine function twice, and then check that its third run leaves nothing behind
    that was not there before. `live` returns weak references to what must be gone.

    The first runs fill caches: the spare frame, shared buffers, what is imported on first use.
    """
    for _ in range(2):
        await live(*arguments)
    await turns(lambda: True)  # all of them: what is freed late must not be counted below
    with no_collections():
        before = census()
        references = await live(*arguments)
        left = await turns(lambda: census() - before)
        alive = [reference() for reference in references if reference() is not None]
        assert not left, who_holds(left)
        assert not alive
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage = [thing for thing in gc.garbage if is_ours(thing)]
        assert not garbage


async def turns(left):
    """What `left()` returns when some turns of the loop have passed: loops free what their
    transports and timers held a little later."""
    for turn in range(40):
        await asyncio.sleep(0 if turn < 20 else 0.002)
        if turn > 3 and not left():
            break
    return left()


async def ended(transport):
    """Wait for the end. Were its error raised here, the traceback would refer to our variables."""
    await asyncio.wait([asyncio.ensure_future(transport.wait_disconnected())], timeout=TIMEOUT)


def who_holds(left):
    """For the message of a failure."""
    things = [thing for thing in gc.get_objects() if is_ours(thing)]
    lines = []
    for thing in things:
        if type(thing).__qualname__ in left:
            holders = [
                type(holder).__qualname__
                for holder in gc.get_referrers(thing)
                if holder is not things and not isinstance(holder, types.FrameType)
            ]
            lines.append(f"{type(thing).__qualname__} held by {holders}")
    return "\n".join([str(dict(left)), *lines])


# --- Ends of an open connection


async def we_close(pair):
    pair.transport.send_close(1000, "bye")
    await pair.peer.read_close()
    await pair.peer.send_close(1000)
    pair.peer.fin()


async def peer_closes(pair):
    await pair.peer.send_close(1000, "bye")
    await pair.listener.until("CLOSE")
    pair.transport.send_close(1000)
    pair.peer.fin()


async def we_disconnect(pair):
    pair.transport.disconnect()
    pair.peer.fin()


async def we_abort(pair):
    pair.transport.disconnect(graceful=False)


async def we_abort_with_a_backlog(pair):
    pair.transport.send(WSMsgType.BINARY, bytes(3_000_000))
    pair.transport.disconnect(graceful=False)


async def close_timeout(pair):
    pair.transport.send_close(1000)


async def peer_ends(pair):
    pair.peer.fin()


async def peer_resets(pair):
    pair.peer.reset()


async def peer_violates(pair):
    await pair.peer.send(WSMsgType.CONTINUATION, b"of nothing")
    pair.peer.fin()


async def peer_never_answers(pair):
    await pair.listener.until("disconnected")


async def peer_never_reads(pair):
    pair.transport.send(WSMsgType.BINARY, bytes(5_000_000))


async def frame_unfinished(pair):
    await pair.peer.send_bytes(pair.peer.frame(WSMsgType.BINARY, bytes(300_000))[:-1])
    await asyncio.sleep(0.01)
    pair.peer.fin()


async def frames_kept(pair):
    for size in (5, 1000, 100_000):
        await pair.peer.send(WSMsgType.BINARY, bytes(size))
    await pair.peer.send(WSMsgType.TEXT, b"last")
    await pair.listener.until("TEXT")
    pair.transport.disconnect(graceful=False)


async def waited_for(pair):
    """With everybody that may wait: one goes on, one is cancelled."""
    waits = [asyncio.ensure_future(pair.transport.wait_disconnected()) for _ in range(2)]
    measuring = asyncio.ensure_future(pair.transport.measure_roundtrip_time(3))
    await asyncio.sleep(0.001)
    waits[0].cancel()
    pair.transport.disconnect(graceful=False)
    await asyncio.wait([*waits, measuring])
    assert isinstance(measuring.exception(), picows_fast.WSConnectionClosedError)


PINGING = {
    "enable_auto_ping": True,
    "auto_ping_idle_timeout": 0.01,
    "auto_ping_reply_timeout": 0.01,
}

#: (what ends it, options)
ENDS = {
    "we close": (we_close, {}),
    "peer closes": (peer_closes, {}),
    "peer closes, auto-close": (peer_closes, {"enable_auto_close": True}),
    "we disconnect": (we_disconnect, {}),
    "we abort": (we_abort, {}),
    "we abort with a backlog": (we_abort_with_a_backlog, {}),
    "close timeout": (close_timeout, {}),
    "peer ends": (peer_ends, {}),
    "peer resets": (peer_resets, {}),
    "peer violates": (peer_violates, {}),
    "peer never answers": (peer_never_answers, PINGING),
    "peer never reads": (peer_never_reads, {"max_write_backlog": 100_000}),
    "frame unfinished": (frame_unfinished, {}),
    "frames kept": (frames_kept, {}),
    "waited for": (waited_for, {}),
}


@pytest.mark.parametrize("end", ENDS)
async def test_ended(link, end):
    """Transport, stream, listener, request, response, frames, server and factory are gone, without
    one collection."""

    async def live():
        ending, options = ENDS[end]
        kept = []

        def act(name, transport, frame):
            if frame is not None:
                kept.append(frame)
                kept.append(memoryview(frame.get_payload_as_memoryview()))

        listener = Witness(act)
        async with link(listener, close_timeout=0.02, **options) as pair:
            await ending(pair)
            await listener.until("disconnected")
            pair.peer.close()
            transport = pair.transport
            references = [weakref.ref(listener), weakref.ref(transport), weakref.ref(act)]
            references.append(weakref.ref(transport.underlying_transport))
            del pair
        await ended(transport)
        return references

    await freed(live)


async def test_what_a_callback_raised(link):
    """The error's traceback refers to the callback's arguments. A collection frees it all."""

    async def live(method):
        def act(name, transport, frame):
            if name == method:
                raise LookupError(name)

        listener = Witness(act)
        async with link(listener, close_timeout=0.02) as pair:
            await pair.peer.send(WSMsgType.TEXT, b"data")
            if method == "disconnected":
                pair.transport.disconnect(graceful=False)
            await listener.until("disconnected")
            with contextlib.suppress(LookupError):
                await pair.transport.wait_disconnected()
            return [weakref.ref(listener), weakref.ref(pair.transport)]

    for method in ("connected", "TEXT", "disconnected"):
        with no_collections():
            await live(method)
            await turns(lambda: True)
            gc.collect()
            before = census()
            references = await live(method)
            await turns(lambda: True)
            gc.collect()
            assert not census() - before
            assert [reference() for reference in references] == [None, None]
            assert not gc.garbage


# --- Connections that never open


@contextlib.asynccontextmanager
async def answering(answer, tls=None):
    """A listening socket that sends `answer(request head)` to everybody; gives its port."""

    async def serve(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if hasattr(server, "close_clients"):
            server.close_clients()
        await asyncio.sleep(0.001)


ANSWERS = {
    "not HTTP": lambda head: b"SSH-2.0\r\n\r\n",
    "nothing": lambda head: b"",
    "half": lambda head: accept_response(head)[:50],
    "404": lambda head: b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nbody",
    "wrong key": lambda head: accept_response(head.replace(b"Key: ", b"Key: x")),
    "redirect in a circle": lambda head: (
        b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"
    ),
    "frame in the handshake": lambda head: accept_response(head) + b"\x83\x00",
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_ws_connect_is_answered_badly(answer, tls, io_options, server_tls, client_tls):
    async with answering(ANSWERS[answer], server_tls if tls else None) as port:

        async def live():
            def factory():
                return Witness()

            url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
            try:
                transport, _ = await picows_fast.ws_connect(
                    factory, url, ssl_context=client_tls, close_timeout=0.1, **io_options
                )
                await ended(transport)
            except (picows_fast.WSError, OSError):
                pass
            return [weakref.ref(factory)]

        await freed(live)


async def test_ws_connect_reaches_nobody(io_options, server_tls, client_tls):
    """Refused, no such name, no trust, nobody answers in time."""
    with contextlib.closing(listening_socket()) as silent:
        closed = listening_socket()
        closed.close()

        async def live(url, **options):
            def factory():
                return Witness()

            with contextlib.suppress(OSError, picows_fast.WSError, ValueError):
                await picows_fast.ws_connect(factory, url, **options, **io_options)
            return [weakref.ref(factory)]

        port = silent.getsockname()[1]
        for scheme in ("ws", "wss"):
            await freed(
                functools.partial(live, websocket_handshake_timeout=0.02),
                f"{scheme}://127.0.0.1:{port}/",
            )
        async with serving(lambda request: Witness(), tls=server_tls) as url:
            await freed(functools.partial(live, ssl_context=ssl.create_default_context()), url)
        await freed(live, "ws://127.0.0.1:1/")
        await freed(live, "no URL")


async def test_ws_connect_cancelled(io_options, server_tls, client_tls):
    """In any turn of the loop."""
    async with serving(lambda request: Witness(), tls=server_tls) as url:

        async def live(turn):
            def factory():
                return Witness()

            task = asyncio.ensure_future(
                picows_fast.ws_connect(factory, url, ssl_context=client_tls, **io_options)
            )
            if turn is None:
                await asyncio.wait([task], timeout=TIMEOUT)
            for _ in range(turn or 0):
                await asyncio.sleep(0)
            if task.done():
                transport, _ = task.result()
                transport.disconnect(graceful=False)
                await transport.wait_disconnected()
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0.005)  # the server's side ends, too
            return [weakref.ref(factory)]

        await live(None)  # shared buffers are made on first use
        for turn in (0, 1, 2, 3, 5, 8, 13):
            await freed(live, turn)


REQUESTS = {
    "refused": (lambda request: None, 404),
    "factory fails": (lambda request: 1 / 0, 500),
    "no listener": (lambda request: "text", 500),
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_server_refuses(kind, io_options):
    factory, status = REQUESTS[kind]
    async with serving(factory, close_timeout=0.1, **io_options) as url:

        async def live():
            with pytest.raises(picows_fast.WSInvalidStatusError) as caught:
                await picows_fast.ws_connect(Witness, url)
            assert caught.value.response.status == status
            del caught
            return []

        await freed(live)


async def test_server_with_clients_in_every_state(io_options, server_tls, client_tls):
    """A server, its factory and its clients' ends are gone when it has closed."""

    async def live(tls):
        listeners = weakref.WeakSet()

        def factory(request):
            listener = Witness()
            listeners.add(listener)
            return listener

        server = await picows_fast.ws_create_server(
            factory, "127.0.0.1", 0, ssl=tls, websocket_handshake_timeout=5, **io_options
        )
        port = server.sockets[0].getsockname()[1]
        silent = []
        for said in (b"", b"GET / HTTP/1.1\r\nHost: ", b"\x16\x03"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            silent.append(writer)
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
        clients = [
            await picows_fast.ws_connect(Witness, url, ssl_context=client_tls) for _ in range(3)
        ]
        clients[0][0].send_close(WSCloseCode.OK)
        await asyncio.sleep(0.005)
        server.close()
        server.close_clients()
        await asyncio.sleep(0.01)
        server.abort_clients()
        await asyncio.wait_for(server.wait_closed(), TIMEOUT)
        for transport, _ in clients:
            transport.disconnect(graceful=False)
            await transport.wait_disconnected()
        for writer in silent:
            writer.transport.abort()
        references = [weakref.ref(factory), weakref.ref(server)]
        del server, transport, writer
        clients.clear()
        silent.clear()
        await asyncio.sleep(0.005)
        assert not listeners
        return references

    for tls in (None, server_tls):
        await freed(live, tls)


async def test_whole_messages(side):
    """The messages layer's listener, which keeps what is unfinished."""
    from picows_fast.layers.messages import WSMessageListener

    class Messages(WSMessageListener):
        def on_ws_connected(self, transport):
            self.transport = transport

        def on_ws_message(self, transport, msg_type, payload):
            self.last = payload

    async def live():
        listener = Messages()
        async with connected(side, listener) as pair:
            await pair.peer.send(WSMsgType.TEXT, b"whole")
            await pair.peer.send(WSMsgType.BINARY, bytes(100_000), fin=False)
            await asyncio.sleep(0.005)
            pair.peer.fin()
            await pair.transport.wait_disconnected()
            return [weakref.ref(listener), weakref.ref(pair.transport)]

    await freed(live)
