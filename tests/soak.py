"""Random clients and servers, faults and restarts, for hours if you like: `dev.py soak [SECONDS]`.

Our servers over each kind of stream, with clients of ours, of websockets and of aiohttp, and ones
that break every rule; servers of websockets and aiohttp with clients of ours. Every message comes
back, so its order and content are compared. About once a minute the clients are left to end, and
what is open then must be what was open after the warm-up. Meanwhile the handler of a signal
sends on any of the connections, in the midst of whatever is done then.

The random choices follow from the seed, which is printed; what they meet depends on timing.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import importlib
import logging
import os
import random
import signal
import ssl
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import aiohttp
import aiohttp.web
import trustme
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.exceptions

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSState, WSTransport
from picows_fast.layers.messages import WSMessageListener

from .adversity.checks import KIB, MIB, resident_bytes
from .support import raw_client

LOOPS = ("asyncio", "uvloop", "picows_fast")
CLIENTS = 24  # at a time
WARM_UP = 30.0  # seconds
ROUND = 60.0  # seconds between two checks
PATIENCE = 30.0  # seconds for anything that must happen
GROWTH = 32 * MIB  # bytes that the process may occupy more than after the warm-up
BACKLOG = 16 * MIB
SIGNALS = 0.003  # seconds between two signals

#: What may end a client's connection while its server is restarted.
EXPECTED = (
    OSError,
    EOFError,
    asyncio.TimeoutError,
    picows_fast.WSError,
    websockets.exceptions.WebSocketException,
    aiohttp.ClientError,
)

SIZES = (0, 1, 5, 125, 126, 1000, 5000, 65535, 65536, 70_000, 300_000)

counts: collections.Counter[str] = collections.Counter()
failures: list[str] = []


def fail(text: str) -> None:
    failures.append(text)
    print(f"FAILED: {text}", file=sys.stderr, flush=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Checked:
    """What every listener of ours checks: the order of its events."""

    def begin(self) -> None:
        self.events = 0  # 0: new, 1: connected, 2: disconnected
        self.gone = asyncio.Event()

    def connected(self) -> None:
        if self.events != 0:
            fail("on_ws_connected came twice, or late")
        self.events = 1
        counts["opened"] += 1

    def received(self) -> None:
        if self.events != 1:
            fail("a frame before on_ws_connected or after on_ws_disconnected")

    def disconnected(self) -> None:
        if self.events != 1:
            fail("on_ws_disconnected came twice, or without on_ws_connected")
        self.events = 2
        counts["closed"] += 1
        self.gone.set()


def describe(listener: Any) -> str:
    """For the message of a failure."""
    transport = listener.transport
    stream = transport.underlying_transport
    return (
        f"{type(listener).__name__} {transport!r} {type(stream).__name__}, "
        f"backlog {transport.write_backlog}, reading {stream.is_reading()}, "
        f"paused {transport.is_reading_paused}, writing paused {stream.writing_paused}, "
        f"closing {stream.closing}, {listener.events} events"
    )


#: Servers' listeners by the address of their clients.
others: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


class Served(WSListener, Checked):
    """A server's listener, found by the address of its client."""

    def __init__(self) -> None:
        self.begin()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.connected()
        self.transport = transport
        others[transport.underlying_transport.get_extra_info("peername")] = self

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.disconnected()


class EchoFrames(Served):
    """A server's: each frame comes back as it is; who does not read is not read from."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.received()
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
        elif frame.msg_type != WSMsgType.PONG:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class EchoMessages(Served, WSMessageListener):
    """A server's: each message comes back whole."""

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: Any) -> None:
        self.received()
        transport.send(msg_type, payload)


class Expecting:
    """Messages on their way to the server and back."""

    def __init__(self, choices: random.Random) -> None:
        self.choices = choices
        self.sent = 0
        self.sending = False  # a message, which no other one may come between
        self.waiting: collections.deque[str | bytes] = collections.deque()
        self.changed = asyncio.Event()

    def make(self, size: int | None = None) -> str | bytes:
        """The next message, of this size or any; it begins with its number."""
        if size is None:
            size = self.choices.choice(SIZES)
            if self.choices.random() < 0.02:
                size = self.choices.randrange(1_500_000)
        self.sent += 1
        counts["messages"] += 1
        counts["bytes"] += size
        message: str | bytes
        if self.choices.random() < 0.5:
            message = f"{self.sent}:" + self.choices.choice("aéπ😀") * (size // 4)
        else:
            message = b"%d:" % self.sent + self.choices.randbytes(min(size, 100)) * (size // 100)
        self.waiting.append(message)
        return message

    def came(self, message: str | bytes) -> None:
        if not self.waiting or self.waiting.popleft() != message:
            fail(f"not the message that was due: {message[:50]!r}, {len(message)} long")
        counts["echoes"] += 1
        self.changed.set()


class Client(WSMessageListener, Checked):
    def __init__(self, expecting: Expecting) -> None:
        self.begin()
        self.expecting = expecting

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.connected()
        self.transport = transport

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: Any) -> None:
        self.received()
        # Text comes checked, as its bytes.
        data = bytes(payload) if not isinstance(payload, str) else payload
        self.expecting.came(
            data.decode() if msg_type == WSMsgType.TEXT and isinstance(data, bytes) else data
        )

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.disconnected()
        self.expecting.changed.set()


# --- Servers


class OurServer:
    """A server of ours that is restarted now and then; `url` is where it is now. It changes before
    the clients of the old one are sent away.
    """

    def __init__(self, tls: ssl.SSLContext | None, **options: Any) -> None:
        self.tls = tls
        self.options = options

    def __repr__(self) -> str:
        return f"ours, {'TLS' if self.tls else 'plain'}, {self.options}"

    async def start(self) -> None:
        self.server = await picows_fast.ws_create_server(
            lambda request: random.choice((EchoFrames, EchoMessages))(),
            "127.0.0.1",
            0,
            ssl=self.tls,
            max_write_backlog=BACKLOG,
            close_timeout=2,
            websocket_handshake_timeout=2,
            enable_auto_ping=True,
            auto_ping_idle_timeout=1,
            auto_ping_reply_timeout=10,
            **self.options,
        )
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"{'wss' if self.tls else 'ws'}://127.0.0.1:{port}/"

    async def stop(self, in_order: bool) -> None:
        self.server.close()
        if in_order:
            self.server.close_clients()
        else:
            self.server.abort_clients()
        await asyncio.wait_for(self.server.wait_closed(), PATIENCE)

    async def restart(self, in_order: bool) -> None:
        counts["restarts"] += 1
        old = self.server
        await self.start()
        new, self.server = self.server, old
        try:
            await self.stop(in_order)
        finally:
            self.server = new


@contextlib.contextmanager
def unless_restarted(server: OurServer) -> Iterator[None]:
    """What a client of another make meets fails the run, unless its server is restarted."""
    url = server.url
    try:
        yield
    except EXPECTED as error:
        if server.url == url:
            fail(f"a client of another make at {server}: {error!r}")


class TheirServer(NamedTuple):
    library: str
    url: str


async def websockets_server(stack: contextlib.AsyncExitStack) -> TheirServer:
    async def handler(connection: Any) -> None:
        with contextlib.suppress(websockets.exceptions.WebSocketException):
            async for message in connection:
                await connection.send(message)

    server = await stack.enter_async_context(
        websockets.asyncio.server.serve(handler, "127.0.0.1", 0, max_size=None, close_timeout=2)
    )
    return TheirServer("websockets", f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/")


async def aiohttp_server(stack: contextlib.AsyncExitStack) -> TheirServer:
    async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        connection = aiohttp.web.WebSocketResponse(max_msg_size=0, timeout=2)
        await connection.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for message in connection:
                if message.type == aiohttp.WSMsgType.TEXT:
                    await connection.send_str(message.data)
                elif message.type == aiohttp.WSMsgType.BINARY:
                    await connection.send_bytes(message.data)
        return connection

    application = aiohttp.web.Application()
    application.router.add_get("/", handler)
    runner = aiohttp.web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    return TheirServer("aiohttp", f"ws://127.0.0.1:{runner.addresses[0][1]}/")


# --- Clients: each lives through one connection


class Soak:
    def __init__(self, choices: random.Random) -> None:
        self.choices = choices
        self.signalled = random.Random(choices.random())
        self.handling = False
        self.talking: list[tuple[WSTransport, Expecting]] = []

    async def run(self, seconds: float) -> None:
        authority = trustme.CA()
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(server_tls)
        self.client_tls = ssl.create_default_context()
        authority.configure_trust(self.client_tls)
        self.servers = [
            OurServer(tls, use_loop_transport=use_loop)
            for tls in (None, server_tls)
            for use_loop in (False, True)
        ]
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: fail(f"the event loop was told of {context}")
        )
        async with contextlib.AsyncExitStack() as stack:
            self.session = await stack.enter_async_context(aiohttp.ClientSession())
            self.others = [await websockets_server(stack), await aiohttp_server(stack)]
            for server in self.servers:
                await server.start()
            self.started = time.monotonic()
            self.baseline: tuple[int, int, int] | None = None
            end = self.started + seconds
            warm = min(WARM_UP, seconds / 4)
            while time.monotonic() < end and not failures:
                await self.round(min(time.monotonic() + (ROUND if self.baseline else warm), end))
                await self.check()
            for server in self.servers:
                await server.stop(in_order=True)

    async def round(self, until: float) -> None:
        """Keep clients going, and restart servers, until then; all clients have ended after it."""

        async def work() -> None:
            while time.monotonic() < until and not failures:
                kind = self.choices.choices(KINDS, WEIGHTS)[0]
                counts[kind.__name__] += 1
                try:
                    await asyncio.wait_for(kind(self), 2 * PATIENCE)
                except asyncio.TimeoutError:
                    fail(f"a client hangs: {kind.__name__}")
                except Exception as error:
                    fail(f"{kind.__name__}: {error!r}")

        async def restarts() -> None:
            while time.monotonic() < until - 5 and not failures:
                await asyncio.sleep(self.choices.uniform(0.5, 3))
                server = self.choices.choice(self.servers)
                await server.restart(self.choices.random() < 0.5)

        await asyncio.gather(restarts(), *[work() for _ in range(CLIENTS)])

    async def check(self) -> None:
        """Nothing but the servers is left, and memory is where it was."""
        for _ in range(int(PATIENCE)):
            if counts["opened"] == counts["closed"]:
                break
            await asyncio.sleep(1)
        await asyncio.sleep(0.5)
        gc.collect()
        state = resident_bytes(), descriptors(), len(asyncio.all_tasks())
        transports = sum(type(thing) is WSTransport for thing in gc.get_objects())
        open_now = counts["opened"] - counts["closed"]
        elapsed = time.monotonic() - self.started
        connections = sum(counts[kind.__name__] for kind in KINDS)
        print(
            f"{elapsed:6.0f} s: {connections:,} clients, {counts['opened']:,} connections of ours, "
            f"{counts['echoes']:,} of {counts['messages']:,} messages came back, "
            f"{counts['bytes'] / MIB:,.0f} MiB, {counts['restarts']} restarts; "
            f"{open_now} open, {transports} transports, {state[0] / MIB:.1f} MiB, "
            f"{state[1]} descriptors, {state[2]} tasks",
            flush=True,
        )
        if open_now or transports:
            fail(f"{open_now} connections are open, {transports} transports are alive")
        if self.baseline is None:
            self.baseline = state
            return
        if state[0] > self.baseline[0] + GROWTH:
            fail(f"{(state[0] - self.baseline[0]) / KIB:.0f} KiB more than after the warm-up")
        if state[1:] != self.baseline[1:]:
            fail(f"descriptors and tasks: {state[1:]}, after the warm-up {self.baseline[1:]}")

    # --- of ours

    async def connect(self, url: str, expecting: Expecting) -> tuple[WSTransport, Client]:
        transport, listener = await picows_fast.ws_connect(
            lambda: Client(expecting),
            url,
            ssl_context=self.client_tls,
            use_loop_transport=self.choices.random() < 0.3,
            coalesce_writes=self.choices.random() < 0.3,
            enable_auto_ping=self.choices.random() < 0.5,
            auto_ping_idle_timeout=1,
            auto_ping_reply_timeout=10,
            max_frame_size=4 * MIB,
            close_timeout=5,
        )
        assert isinstance(listener, Client)
        return transport, listener

    async def talk(
        self, transport: WSTransport, listener: Client, expecting: Expecting, done: list[int]
    ) -> None:
        """Some of everything that a client may do in order."""
        choices = self.choices
        for _ in range(choices.randrange(1, 30)):
            action = choices.randrange(10)
            done.append(action)
            if action < 4:
                self.send(transport, expecting)
            elif action == 4:
                transport.cork()
                for _ in range(choices.randrange(20)):
                    self.send(transport, expecting)
                transport.uncork()
            elif action == 5:
                transport.pause_reading()
                await asyncio.sleep(choices.uniform(0, 0.05))
                transport.resume_reading()
            elif action == 6:
                await transport.measure_roundtrip_time(choices.randrange(1, 4))
            elif action == 7:
                await asyncio.sleep(choices.uniform(0, 0.02))
            else:
                await self.echoed(listener, expecting)

    def on_signal(self, *_: object) -> None:
        """Send a message on a connection of ours, or a ping in the midst of another message."""
        if self.handling:
            return  # a handler is interrupted by the next signal, too
        self.handling = True
        try:
            self.send_anywhere()
        finally:
            self.handling = False

    def send_anywhere(self) -> None:
        counts["signals"] += 1
        served = list(others.values())
        if served and self.signalled.random() < 0.5:
            self.signalled.choice(served).transport.send_ping(b"by signal")
        elif self.talking:
            transport, expecting = self.signalled.choice(self.talking)
            if expecting.sending:
                transport.send_ping(b"by signal")
            elif transport.state == WSState.OPEN:
                message = expecting.make(self.signalled.choice((0, 100, 5000)))
                is_text = isinstance(message, str)
                transport.send(WSMsgType.TEXT if is_text else WSMsgType.BINARY, message)

    def send(self, transport: WSTransport, expecting: Expecting) -> None:
        expecting.sending = True
        try:
            self.send_message(transport, expecting)
        finally:
            expecting.sending = False

    def send_message(self, transport: WSTransport, expecting: Expecting) -> None:
        message = expecting.make()
        kind = WSMsgType.TEXT if isinstance(message, str) else WSMsgType.BINARY
        data = message.encode() if isinstance(message, str) else message
        pieces = self.choices.choice((1, 1, 1, 2, 5))
        for i in range(pieces):
            part = data[len(data) * i // pieces : len(data) * (i + 1) // pieces]
            transport.send(kind if i == 0 else WSMsgType.CONTINUATION, part, i == pieces - 1)
            if self.choices.random() < 0.1:
                transport.send_ping(b"between")

    async def echoed(self, listener: Client, expecting: Expecting) -> None:
        """Wait until every message has come back, or the connection is gone."""
        while expecting.waiting and not listener.gone.is_set():
            expecting.changed.clear()
            await asyncio.wait_for(expecting.changed.wait(), PATIENCE)

    async def ours(self) -> None:
        """Talks, and ends in some way."""
        expecting = Expecting(self.choices)
        server = self.choice_of_server()
        url = server.url

        def is_undisturbed() -> bool:
            return server.url == url

        try:
            transport, listener = await self.connect(url, expecting)
        except EXPECTED as error:
            if is_undisturbed():
                fail(f"cannot connect to {server}: {error!r}")
            return
        done: list[int] = []
        try:
            self.talking.append((transport, expecting))
            try:
                await self.talk(transport, listener, expecting, done)
            finally:
                self.talking.remove((transport, expecting))
            how = self.choices.random()
            if how < 0.6:
                await self.echoed(listener, expecting)
                lost = len(expecting.waiting)
                transport.send_close(1000)
            elif how < 0.8:
                lost = 0
                transport.disconnect()
            else:
                lost = 0
                transport.disconnect(graceful=False)
            await asyncio.wait_for(transport.wait_disconnected(), PATIENCE)
            if is_undisturbed() and (
                lost or (how < 0.6 and transport.close_handshake.recv is None)
            ):
                fail(f"{lost} messages lost, {transport.disconnect_cause}")
        except picows_fast.WSConnectionClosedError:
            if is_undisturbed():
                raise
        except asyncio.TimeoutError:
            here = transport.underlying_transport.get_extra_info("sockname")
            fail(
                f"hangs: {describe(listener)} at {server}, "
                f"{len(expecting.waiting)} messages to come; did {done}; at the other end: "
                f"{describe(others[here]) if here in others else None}"
            )
        finally:
            transport.disconnect(graceful=False)
            await asyncio.wait_for(listener.gone.wait(), PATIENCE)

    def choice_of_server(self) -> OurServer | TheirServer:
        return self.choices.choice([*self.servers, *self.others])

    async def cancelled(self) -> None:
        """Changes its mind while it connects."""
        url = self.choices.choice(self.servers).url
        task = asyncio.ensure_future(self.connect(url, Expecting(self.choices)))
        await asyncio.sleep(self.choices.uniform(0, 0.01))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():  # it had come to its end before
            with contextlib.suppress(*EXPECTED):
                transport, _ = task.result()
                transport.disconnect(graceful=False)
                await transport.wait_disconnected()

    # --- of others

    async def by_websockets(self) -> None:
        server = self.choices.choice(self.servers)
        expecting = Expecting(self.choices)
        with unless_restarted(server):
            async with websockets.asyncio.client.connect(
                server.url,
                ssl=self.client_tls if server.tls else None,
                max_size=None,
                proxy=None,
                close_timeout=2,
            ) as connection:
                for _ in range(self.choices.randrange(20)):
                    message = expecting.make()
                    if len(message) > 10 and self.choices.random() < 0.3:
                        await connection.send([message[:5], message[5:]])
                    else:
                        await connection.send(message)
                    expecting.came(await asyncio.wait_for(connection.recv(), PATIENCE))

    async def by_aiohttp(self) -> None:
        server = self.choices.choice(self.servers)
        expecting = Expecting(self.choices)
        with unless_restarted(server):
            async with self.session.ws_connect(
                server.url, ssl=self.client_tls if server.tls else True, max_msg_size=0
            ) as connection:
                for _ in range(self.choices.randrange(20)):
                    message = expecting.make()
                    if isinstance(message, str):
                        await connection.send_str(message)
                    else:
                        await connection.send_bytes(message)
                    answer = await asyncio.wait_for(connection.receive(), PATIENCE)
                    if answer.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                        raise aiohttp.ClientError(f"{answer.type!r} for a message")
                    expecting.came(answer.data)

    async def by_nobody(self) -> None:
        """A socket that does what no client should."""
        choices = self.choices
        server = choices.choice(self.servers)
        tls = self.client_tls if server.tls else None
        # uvloop's transports raise RuntimeError when they have been closed from the other side, and
        # raw_client AssertionError when a server that is being stopped answers 503.
        with contextlib.suppress(*EXPECTED, RuntimeError, AssertionError):
            if choices.random() < 0.3:
                parsed = picows_fast.parse_url(server.url)
                reader, writer = await asyncio.open_connection(parsed.host, parsed.port)
                writer.write(choices.choice((b"", b"GET / HTTP/1.1\r\n", choices.randbytes(300))))
            else:
                reader, writer = await raw_client(server.url, tls=tls)
            try:
                for _ in range(choices.randrange(10)):
                    action = choices.randrange(6)
                    frame = picows_fast.build_frame(
                        WSMsgType.BINARY, choices.randbytes(choices.choice(SIZES)), mask=True
                    )
                    if action == 0:
                        writer.write(choices.randbytes(choices.randrange(200)))
                    elif action == 1:
                        writer.write(frame[: choices.randrange(len(frame))])
                    elif action == 2:
                        writer.write(frame * choices.randrange(10))
                    elif action == 3:
                        await asyncio.sleep(choices.uniform(0, 0.5))
                    elif action == 4 and writer.can_write_eof():
                        writer.write_eof()
                        await asyncio.sleep(choices.uniform(0, 0.1))
                        break
                    else:
                        with contextlib.suppress(asyncio.TimeoutError):
                            await asyncio.wait_for(reader.read(choices.randrange(1, 100_000)), 0.05)
            finally:
                writer.transport.abort()
                with contextlib.suppress(*EXPECTED):
                    await writer.wait_closed()


KINDS: list[Callable[[Soak], Awaitable[None]]] = [
    Soak.ours,
    Soak.cancelled,
    Soak.by_websockets,
    Soak.by_aiohttp,
    Soak.by_nobody,
]
WEIGHTS = [10, 3, 2, 2, 4]


class Loud(logging.Handler):
    """Nothing of what clients do is an error of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        counts[record.levelname] += 1
        if record.levelno >= logging.ERROR:
            fail(f"logged: {record.getMessage()} {record.exc_info}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Random clients, servers and faults.")
    parser.add_argument("seconds", nargs="?", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.loop}, {arguments.seconds:g} s", flush=True)
    random.seed(seed)
    logging.getLogger("picows_fast").addHandler(Loud(logging.WARNING))
    logging.getLogger("asyncio").addHandler(Loud(logging.ERROR))
    soak = Soak(random.Random(seed))
    loop = importlib.import_module(arguments.loop).new_event_loop()
    try:
        signal.signal(signal.SIGALRM, soak.on_signal)
        signal.setitimer(signal.ITIMER_REAL, SIGNALS, SIGNALS)
        loop.run_until_complete(soak.run(arguments.seconds))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        loop.close()
    names = ", ".join(f"{counts[kind.__name__]:,} {kind.__name__}" for kind in KINDS)
    print(
        f"clients: {names}; {counts['signals']:,} signals, {counts['WARNING']} warnings, "
        f"{len(failures)} failures, seed {seed}"
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
