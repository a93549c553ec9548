"""picows_fast and picows: listeners whose methods are called, in Python and in Cython.

`code` says what the listeners do. "same": both libraries run the same lines. "best": each does what
is fastest with it. "stamped": picows_fast does that, with rx_timestamps. "channel": picows_fast
publishes by `layers.broadcast`, picows sends in a loop.
The Cython listeners are in listeners.pyx.in, for both.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..measuring import OURS
from ..slices import alarm
from .extension import built

# library -> module to cimport
CIMPORTED = {"picows_fast": "picows_fast.core", "picows": "picows.picows"}
MAX_FRAME_SIZE = 2**25  # bytes; above every size that is measured
SOURCE = Path(__file__).with_name("listeners.pyx.in")


def cython_listeners(library: str) -> Any:
    """Build the Cython listeners for a library, if they are older than it, and import them."""
    module = importlib.import_module(CIMPORTED[library])
    source = SOURCE.read_text().replace("@MODULE@", CIMPORTED[library])
    return built(f"listeners_{library}", source, Path(str(module.__file__)).stat().st_mtime)


def python_listeners(library: str) -> Any:
    """A class whose attributes are named like those of the Cython module."""
    module = importlib.import_module(library)
    close, binary = module.WSMsgType.CLOSE, module.WSMsgType.BINARY
    base: type = module.WSListener

    class EchoServerSame(base):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == close:
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_memoryview())

    class EchoServerOfFrames(base):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == close:
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame)

    class EchoClient(base):  # type: ignore[misc]
        def __init__(self, message: bytes) -> None:
            self.message = message
            self.requests = 0

        def on_ws_connected(self, transport: Any) -> None:
            self.transport = transport

        def start(self, stopped: asyncio.Future[None]) -> None:
            self.stopped = stopped
            self.running = True
            self.transport.send(binary, self.message)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            self.requests += 1
            if self.running:
                transport.send(binary, self.message)
            else:
                self.stopped.set_result(None)

    class Flooded(base):  # type: ignore[misc]
        def __init__(self, ended: asyncio.Future[None]) -> None:
            self.ended = ended

        def on_ws_connected(self, transport: Any) -> None:
            self.start = time.process_time()

        def on_ws_disconnected(self, transport: Any) -> None:
            if not self.ended.done():
                self.ended.set_result(None)

    class TakeNothing(Flooded):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            pass

    class TakeBytes(Flooded):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            frame.get_payload_as_bytes()

    class TakeCount(Flooded):
        frames = 0

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            self.frames += frame.msg_type != close

    def send_to_all(transports: list[Any], message: bytes, count: int) -> None:
        for _ in range(count):
            for transport in transports:
                transport.send(binary, message)

    def send_to_all_corked(transports: list[Any], message: bytes, count: int) -> None:
        for transport in transports:
            transport.cork()
            for _ in range(count):
                transport.send(binary, message)
            transport.uncork()

    class Listeners:
        pass

    found = {name: value for name, value in locals().items() if callable(value)}
    for name, value in found.items():
        setattr(Listeners, name, staticmethod(value))
    # picows takes no frame, but a memoryview is what its own examples send.
    Listeners.EchoServerBest = EchoServerOfFrames if library == OURS else EchoServerSame  # type: ignore[attr-defined]
    return Listeners


class CallbackServer:
    def __init__(self, server: Any, connected: list[Any], state: dict[str, Any]) -> None:
        self.port: int = server.sockets[0].getsockname()[1]
        self._server = server
        self._connected = connected
        self._state = state

    def connections(self) -> int:
        return len(self._connected)

    def clogged(self) -> bool:
        return self._state["paused"] > 0

    async def send_to_all(self, message: bytes, count: int) -> None:
        send = self._state["corked" if count > 1 and self._state["corked"] else "plain"]
        send(self._connected, message, count)


class ChannelServer(CallbackServer):
    """Publishes to a channel that every connection has subscribed to."""

    def clogged(self) -> bool:
        return bool(self._state["channel"].slow)

    async def send_to_all(self, message: bytes, count: int) -> None:
        publish = self._state["channel"].publish
        binary = self._state["binary"]
        for _ in range(count):
            publish(binary, message)

    def publish_stamped(self, size: int, count: int, keys: int) -> None:
        """Publish messages that begin with the time at which they are, in ns; keys come in turn."""
        channel = self._state["channel"]
        rest = bytes(size - 8)
        for number in range(count):
            stamp = time.monotonic_ns().to_bytes(8, sys.byteorder)
            channel.publish(self._state["binary"], stamp + rest, number % keys)

    def fill_last(self) -> None:
        """Send to the client that came last until its connection takes no more."""
        transport = self._connected[-1]
        while not transport.underlying_transport.get_write_buffer_size():
            transport.send(self._state["binary"], bytes(65536))

    def waiting(self) -> tuple[int, int]:
        """Messages that wait for the client that is furthest behind, and their bytes."""
        subscriptions = list(self._state["channel"])
        return (
            max(one.waiting for one in subscriptions),
            max(one.waiting_bytes for one in subscriptions),
        )


class CallbackPeer:
    def __init__(self, library: str, listener: str, code: str) -> None:
        self._library = library
        self._module = importlib.import_module(library)
        self._code = code
        self._listeners = (cython_listeners if listener == "cython" else python_listeners)(library)

    async def serve(self, tls: ssl.SSLContext | None, handler: str) -> CallbackServer:
        is_best = self._code in ("best", "stamped")
        echo = getattr(self._listeners, "EchoServerBest" if is_best else "EchoServerSame")
        connected: list[Any] = []
        can_cork = is_best and hasattr(self._module.WSTransport, "cork")
        state: dict[str, Any] = {
            "paused": 0,
            "plain": self._listeners.send_to_all,
            "corked": self._listeners.send_to_all_corked if can_cork else None,
        }

        if self._code == "channel" and self._library == OURS:
            from picows_fast.layers.broadcast import Channel, SlowConsumer

            state["channel"] = Channel(policy=SlowConsumer.CONFLATE)
            state["binary"] = self._module.WSMsgType.BINARY

        class Idle(self._module.WSListener):  # type: ignore[misc, name-defined]
            """Knows its connections, and answers nothing but CLOSE."""

            def on_ws_connected(self, transport: Any) -> None:
                connected.append(transport)
                if "channel" in state:
                    state["channel"].subscribe(transport)

            def on_ws_disconnected(self, transport: Any) -> None:
                connected.remove(transport)

            def pause_writing(self) -> None:
                state["paused"] += 1

            def resume_writing(self) -> None:
                state["paused"] -= 1

        listener = echo if handler == "echo" else Idle
        options: dict[str, Any] = {}
        if self._code == "coalesce" and self._library == OURS:
            options["coalesce_writes"] = True
        if self._code == "stamped" and self._library == OURS:
            options["rx_timestamps"] = True
        server = await self._module.ws_create_server(
            lambda request: listener(),
            "127.0.0.1",
            0,
            ssl=tls,
            backlog=1024,
            max_frame_size=MAX_FRAME_SIZE,
            **options,
        )
        kind = ChannelServer if "channel" in state else CallbackServer
        return kind(server, connected, state)

    async def _connect(self, factory: Any, tls: ssl.SSLContext | None, port: int) -> Any:
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
        options = {"rx_timestamps": True} if self._code == "stamped" else {}
        return await self._module.ws_connect(
            factory, url, ssl_context=tls, max_frame_size=MAX_FRAME_SIZE, **options
        )

    async def echo(
        self, tls: ssl.SSLContext | None, port: int, message: bytes, connections: int
    ) -> Callable[[float], Awaitable[int]]:
        clients = [self._listeners.EchoClient(message) for _ in range(connections)]
        for client in clients:
            await self._connect(lambda client=client: client, tls, port)

        async def round_trips(seconds: float) -> int:
            loop = asyncio.get_running_loop()
            before = sum(client.requests for client in clients)
            all_stopped = [loop.create_future() for _ in clients]
            for client, stopped in zip(clients, all_stopped, strict=True):
                client.start(stopped)
            await alarm(seconds)
            for client in clients:
                client.running = False
            await asyncio.gather(*all_stopped)
            return sum(client.requests for client in clients) - before

        return round_trips

    async def flood(self, tls: ssl.SSLContext | None, port: int, take: str) -> dict[str, Any]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        factory = getattr(self._listeners, f"Take{take.title()}")
        _, listener = await self._connect(lambda: factory(ended), tls, port)
        await ended
        result = {"cpu": time.process_time() - listener.start}
        if take == "count":
            result["frames"] = listener.frames
        return result

    async def turns_server(self, message: bytes) -> int:
        """Serve: a frame of any client's is answered with one to each. Gives the port."""
        transports: list[Any] = []
        self._kept = server = await self._module.ws_create_server(
            lambda request: self._listeners.ToAll(transports, message), "127.0.0.1", 0, backlog=1024
        )
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def turns(
        self, port: int, connections: int, pause: float, seconds: float
    ) -> dict[str, Any]:
        """Take a frame on each of many connections, turn by turn; CPU seconds and frames.

        `pause`: seconds that this side sleeps before each turn, so that all frames are there.
        """
        state = self._listeners.Turns(connections, pause)
        transports = []
        for _ in range(connections):
            transport, _ = await self._connect(lambda: self._listeners.OneOfMany(state), None, port)
            transports.append(transport)
        transports[0].send(self._module.WSMsgType.BINARY, b"next")
        await asyncio.sleep(seconds / 8)
        cpu, frames = time.process_time(), state.frames
        await asyncio.sleep(seconds)
        return {"cpu": time.process_time() - cpu, "frames": state.frames - frames}

    async def send_many(self, port: int, message: bytes, count: int) -> None:
        transport, _ = await self._connect(self._module.WSListener, None, port)
        self._listeners.send_to_all([transport], message, count)
