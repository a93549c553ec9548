"""Connections that talk in frames which say what they are, and a check of what came of them.

Each payload begins with its source, number and size, and ends with a checksum: a frame that was
invented, cut, lost, swapped or filled with another connection's bytes is told by itself. The peers
are plain sockets (`peers.Peer`) with a parser of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from picows_fast import WSDisconnectCause, WSFrame, WSListener, WSMsgType, WSState, WSTransport

from ..frames import xor
from ..peers import Contexts, Peer, connected
from ..proxies import Proxy

#: every way of moving bytes: (TLS, options); "memory" is TLS without the direct path to OpenSSL
STREAMS = {
    "plain": (False, {}),
    "tls": (True, {}),
    "memory-tls": (True, {}),
    "loop": (False, {"use_loop_transport": True}),
    "tls-loop": (True, {"use_loop_transport": True}),
    "tls-in-tls": (True, {}),
}


class NoDirectTls:
    """Takes the place of DirectTlsStream where there is none."""

    @staticmethod
    def create(*arguments: Any, **options: Any) -> None:
        return None


def payload(source: str, number: int, size: int) -> bytes:
    """A payload of about this size that says which one it is."""
    head = f"{source}:{number}:{size}:".encode()
    body = (head * (size // len(head) + 1))[: max(size - 8, len(head))]
    return body + b"%08x" % zlib.crc32(body)


def read_payload(data: bytes) -> tuple[str, int]:
    """Source and number of a payload that is right from the first byte to the last."""
    source, number, size, _ = data.split(b":", 3)
    assert data == payload(source.decode(), int(number), int(size)), data[:80]
    return source.decode(), int(number)


def parse(data: bytearray, masked: bool) -> list[tuple[int, bytes]]:
    """Take the whole frames from the front of `data`: [(opcode, unmasked payload)]."""
    frames = []
    while len(data) >= 2:
        size, at = data[1] & 0x7F, 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        if masked:
            at += 4
        if len(data) < at + size:
            break
        assert data[0] & 0x70 == 0, "reserved bits"
        assert bool(data[1] & 0x80) == masked, "masking"
        content = bytes(data[at : at + size])
        frames.append(
            (data[0] & 0x0F, xor(content, bytes(data[at - 4 : at])) if masked else content)
        )
        del data[: at + size]
    return frames


@dataclasses.dataclass
class Sent:
    """A frame that was given to send(); `done` once that has returned whether it was `taken`, or
    has raised, when nobody knows."""

    source: str
    number: int
    done: bool = False
    taken: bool | None = True


class Talker(WSListener):
    """Keeps what comes, and answers every third frame. Each method is a moment of its world's."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.events: list[str] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = self.line.transport = transport
        self.events.append("connected")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        line = self.line
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(1000)
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            line.received.append(frame.get_payload_as_bytes())
            line.world.moment("on_ws_frame")
            # What was received must still be what it was.
            assert frame.get_payload_as_bytes() == line.received[-1]
            if len(line.received) % 3 == 0:
                line.send("reply", 40)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.events.append("disconnected")
        self.line.world.moment("on_ws_disconnected")

    def pause_writing(self) -> None:
        self.events.append("pause")
        self.line.world.moment("pause_writing")

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.line.world.moment("resume_writing")

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        self.line.world.moment("send_user_specific_ping")
        transport.send_ping()

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        self.line.world.moment("is_user_specific_pong")
        return frame.msg_type == WSMsgType.PONG


class Line:
    """A connection of ours and its peer, and what both have said to each other."""

    transport: WSTransport
    peer: Peer
    writing: asyncio.Lock  # the peer's

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.listener = world.make_listener(self)
        self.numbers: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what has been checked."""
        self.sent: list[Sent] = []  # ours
        self.got: list[bytes] = []  # by the peer
        self.given: list[bytes] = []  # the peer's
        self.received: list[bytes] = []  # by us
        self.closes: list[bytes] = []  # CLOSE frames that the peer got
        self.ending: str | None = None  # how the connection was told to end
        self.required: list[Sent] = []  # what had been sent before
        self.errors: list[BaseException] = []

    # --- ours

    def note(self, source: str, number: int) -> Sent:
        """Expect the peer to get this, from now on."""
        self.sent.append(Sent(source, number))
        return self.sent[-1]

    def send(self, source: str, size: int) -> None:
        source = f"{self.number}{source}"
        number = self.numbers[source] = self.numbers.get(source, -1) + 1
        entry = self.note(source, number)
        message = self.world.wrap(payload(source, number, size))
        try:
            entry.taken = self.world.armed(self.transport.send)(WSMsgType.BINARY, message)
        except MemoryError:
            entry.taken = None
        entry.done = True

    def end(self, how: str) -> None:
        """To be called before the connection is told to end."""
        if self.ending is None:
            self.ending = how
            self.required = [entry for entry in self.sent if entry.done and entry.taken]

    # --- the peer's

    async def run_peer(self) -> None:
        try:
            while await self.peer.more():
                for opcode, content in parse(self.peer.data, masked=not self.peer.is_client):
                    if opcode == WSMsgType.CLOSE:
                        self.closes.append(content)
                        await self.peer_sends(self.peer.frame(WSMsgType.CLOSE, content[:2]))
                        if not self.peer.is_client:
                            self.peer.fin()
                    elif opcode == WSMsgType.PING:
                        await self.peer_sends(self.peer.frame(WSMsgType.PONG, content))
                    elif opcode != WSMsgType.PONG:
                        self.got.append(content)
        except Exception as error:
            self.errors.append(error)
        self.peer.ended = True
        self.peer.close()

    async def peer_sends(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError, OSError):  # the check finds what is missing
            async with self.writing:
                await self.peer.send_bytes(data)

    async def peer_pings(self) -> None:
        await self.peer_sends(self.peer.frame(WSMsgType.PING, b"of the peer"))

    async def peer_talks(self, sizes: list[int]) -> None:
        """Frames of these sizes, some of them fragments, in writes that end anywhere."""
        data = bytearray()
        for i, size in enumerate(sizes):
            source = f"{self.number}peer"
            number = self.numbers[source] = self.numbers.get(source, -1) + 1
            self.given.append(payload(source, number, size))
            kind = WSMsgType.CONTINUATION if i % 3 else WSMsgType.BINARY
            data += self.peer.frame(kind, self.given[-1], fin=i % 3 == 2 or i == len(sizes) - 1)
        cuts = [0, len(data) // 9, len(data) // 2, len(data) - 3, len(data)]
        with contextlib.suppress(ConnectionError, OSError):
            async with self.writing:
                for start, end in itertools.pairwise(cuts):
                    await self.peer.send_bytes(bytes(data[start:end]))
                    await asyncio.sleep(0)

    # --- the check

    def settled(self) -> bool:
        if self.ending is None and self.transport.state == WSState.OPEN and not self.peer.ended:
            taken = sum(entry.taken is True for entry in self.sent)
            return len(self.got) >= taken and len(self.received) >= len(self.given)
        return "disconnected" in self.listener.events and self.peer.ended

    def check(self, may_fail: bool = False) -> None:
        """Whole frames in order, both ways; the end that was asked for, or none."""
        for error in self.errors:
            raise error
        assert self.received == self.given[: len(self.received)], "frames in"
        arrived = [read_payload(data) for data in self.got]
        known = {(entry.source, entry.number) for entry in self.sent}
        assert set(arrived) <= known, f"invented: {set(arrived) - known}"
        assert len(set(arrived)) == len(arrived), "twice"
        for source in {entry.source for entry in self.sent}:
            numbers = [number for name, number in arrived if name == source]
            assert numbers == sorted(numbers), f"order of {source}: {numbers}"
        required = self.sent if self.ending is None else self.required
        lost = {(e.source, e.number) for e in required if e.taken} - set(arrived)
        events = self.listener.events
        if may_fail and (self.ending is not None or self.transport.state != WSState.OPEN):
            assert events.count("disconnected") == 1, events
            assert self.transport.state == WSState.CLOSED, self.transport
            assert self.peer.ended, "the peer was not told"
            return
        if self.ending is None:
            assert self.transport.state == WSState.OPEN, (
                f"ended: {self.transport.disconnect_cause} {self.transport.disconnect_exception!r}"
            )
            assert not lost, f"lost: {lost}"
            assert may_fail or all(entry.taken for entry in self.sent), "refused"
            assert len(self.received) == len(self.given), "frames in are missing"
            assert not self.closes
            assert "disconnected" not in events
            return
        assert events.count("disconnected") == 1
        assert self.transport.state == WSState.CLOSED
        assert self.transport.disconnect_cause in ENDS[self.ending], self.transport.disconnect_cause
        if self.ending == "abort":
            return
        if self.world.stream == "tls-in-tls":
            return  # a proxy gives up both directions when one fails
        assert not lost, f"lost at the end: {lost}"
        assert not self.peer.data, f"{len(self.peer.data)} bytes of a cut frame"
        assert len(self.closes) == (self.ending == "close")


CAUSE = WSDisconnectCause
#: what may be told as the cause of an end that was asked for in this way
ENDS = {
    "close": {CAUSE.CLOSE_FRAME, getattr(CAUSE, "LOCAL_CLOSE", CAUSE.CLOSE_FRAME)},
    "graceful": {CAUSE.LOCAL_DISCONNECT, CAUSE.LOCAL_ABORT},
    "abort": {CAUSE.LOCAL_ABORT},
}


class World:
    """Some connections of one event loop. `hook`, if there is one, is told each moment's name."""

    def __init__(
        self, stream: str, side: str, contexts: Contexts, count: int = 2, **options: Any
    ) -> None:
        tls, how = STREAMS[stream]
        self.stream = stream
        self.side = "client" if stream == "tls-in-tls" else side
        self.contexts = contexts
        self.tls = tls
        self.options = {"max_write_backlog": None, "close_timeout": 5, **how, **options}
        self.count = count
        self.hook: Callable[[str], None] | None = None
        self.wrap: Callable[[bytes], Any] = bytes  # what is sent
        self.armed: Callable[[Any], Any] = lambda function: function  # how send() is called
        self.lines: list[Line] = []

    def moment(self, name: str) -> None:
        if self.hook is not None:
            self.hook(name)

    def begin(self) -> None:
        for line in self.lines:
            line.begin()

    def make_listener(self, line: Line) -> Talker:
        return Talker(line)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[World]:
        async with contextlib.AsyncExitStack() as stack:
            options = dict(self.options)
            if self.stream == "tls-in-tls":
                proxy = await stack.enter_async_context(
                    Proxy("http", ssl_context=self.contexts.server)
                )
                options |= {"proxy": proxy.url(), "proxy_ssl_context": self.contexts.client}
            for number in range(self.count):
                line = Line(self, number)
                link = await stack.enter_async_context(
                    connected(
                        self.side,
                        line.listener,
                        contexts=self.contexts if self.tls else None,
                        small_buffers=True,
                        **options,
                    )
                )
                line.transport, line.peer = link.transport, link.peer
                line.writing = asyncio.Lock()
                task = asyncio.ensure_future(line.run_peer())
                stack.push_async_callback(finish, task)
                self.lines.append(line)
            yield self
            self.hook = None


async def finish(task: asyncio.Task[None]) -> None:
    while not task.done():
        task.cancel()  # asyncio.wait_for() of Python 3.11 may swallow one
        await asyncio.wait([task], timeout=0.05)
