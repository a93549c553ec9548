"""A conversation between a client and a server of ours, cut at every byte, in every direction and
way.

The proxy remembers what it passed on, so the test knows which frames arrived whole and in which
phase each endpoint was.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import picows_fast
from picows_fast import (
    FrameParser,
    WSDisconnectCause,
    WSError,
    WSFrame,
    WSInvalidMessageError,
    WSMsgType,
    WSState,
    WSTransport,
)

from ..peers import Contexts
from ..support import Recorder
from .checks import KIB, Leftovers, log_below, memory_below
from .proxy import CUTS, FaultyProxy, Flow

pytestmark = pytest.mark.usefixtures("leaves_nothing")

DIRECTIONS = ("up", "down")  # from the client, from the server

# Whatever a cut does, it ends a connection in this many seconds at most.
DEADLINES = {"close_timeout": 0.3, "websocket_handshake_timeout": 5}

Cause = WSDisconnectCause
END_CAUSES = {
    "plain": {
        "fin": {Cause.PEER_FIN},
        "half": {Cause.PEER_FIN},
        "reset": {Cause.PEER_RESET},
    },
    "tls": {
        "fin": {Cause.TLS_TRUNCATED},
        # Who is cut off says close_notify before it ends its own stream.
        "half": {Cause.TLS_TRUNCATED, Cause.TLS_CLOSE_NOTIFY},
        "reset": {Cause.PEER_RESET},
    },
}


class Client(Recorder):
    """Speaks first, answers a fragmented message by another, says CLOSE when that is answered."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        transport.send(WSMsgType.TEXT, "hello")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if frame.msg_type == WSMsgType.CONTINUATION and frame.fin:
            transport.send(WSMsgType.BINARY, bytes(range(130)), fin=False)
            transport.send_ping("and you?")
            transport.send(WSMsgType.CONTINUATION, b"", fin=True)
        elif frame.msg_type == WSMsgType.BINARY:
            transport.send_close(1000, "bye")


class Server(Recorder):
    """The other part of the conversation. CLOSE is answered by the library."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        super().on_ws_frame(transport, frame)
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, "fr", fin=False)
            transport.send_ping("still there?")
            transport.send(WSMsgType.CONTINUATION, "", fin=False)
            transport.send(WSMsgType.CONTINUATION, "agments", fin=True)
        elif frame.msg_type == WSMsgType.CONTINUATION:
            transport.send(WSMsgType.BINARY, b"")


class Scene:
    """A server of ours, a proxy in front of it, and conversations through it, one after the
    other.
    """

    def __init__(self, contexts: Contexts | None = None, **options: Any) -> None:
        self.contexts = contexts
        self.options = options | DEADLINES
        self.up = self.down = Flow()
        self.servers: list[Server] = []

    async def __aenter__(self) -> Scene:
        def factory(request: object) -> Server:
            self.servers.append(Server())
            return self.servers[-1]

        self._server = await picows_fast.ws_create_server(
            factory,
            "127.0.0.1",
            0,
            ssl=self.contexts and self.contexts.server,
            enable_auto_close=True,
            **self.options,
        )
        self._proxy = FaultyProxy(
            self._server.sockets[0].getsockname(),
            lambda number: (self.up, self.down),
            scheme="wss" if self.contexts else "ws",
        )
        await self._proxy.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._proxy.__aexit__(*exc_info)
        self._server.close()
        self._server.abort_clients()
        await asyncio.wait_for(self._server.wait_closed(), 20)

    async def converse(
        self, up: Flow, down: Flow
    ) -> tuple[Client, Server | None, Exception | None]:
        """One conversation: the listeners, and what ws_connect raised."""
        self.up, self.down = up, down
        self.servers.clear()
        client = Client()
        error = None
        try:
            transport, _ = await picows_fast.ws_connect(
                lambda: client,
                self._proxy.url,
                ssl_context=self.contexts and self.contexts.client,
                **self.options,
            )
        except (WSError, OSError) as caught:
            # Its traceback has this frame in it, and all that is in the frame.
            error = caught.with_traceback(None)
        else:
            await asyncio.wait_for(transport.wait_disconnected(), 20)
        for server in self.servers:
            await server.closed()
        await asyncio.wait_for(self._proxy.passages[-1].is_over.wait(), 20)
        self._proxy.passages.clear()
        return client, self.servers[0] if self.servers else None, error


def delivered(stream: bytes, *, to_client: bool) -> list[Any] | None:
    """The frames that a listener is given of these bytes; None if the opening handshake is not
    whole.
    """
    _, end, frames = stream.partition(b"\r\n\r\n")
    if not end:
        return None
    parser = FrameParser(is_client=to_client)
    parser.feed(frames)
    found = []
    while (frame := parser.next_frame()) is not None:
        if frame.msg_type not in (WSMsgType.PING, WSMsgType.PONG):
            found.append((frame.msg_type, frame.get_payload_as_bytes(), bool(frame.fin)))
    return found


# What each side writes, and so how many TLS records it makes, close_notify left out.
WRITES = {
    "up": ["request", "frame", "pong", "frame", "ping", "frame", "frame"],
    "down": ["response", "frame", "ping", "frame", "frame", "pong", "frame", "frame"],
}


def whole_records(stream: bytes) -> list[int]:
    """Where each whole TLS record of application data ends (RFC 8446 5.1)."""
    ends = []
    at = 0
    while at + 5 <= len(stream):
        kind, size = stream[at], int.from_bytes(stream[at + 3 : at + 5], "big")
        at += 5 + size
        if kind == 23 and at <= len(stream):
            ends.append(at)
    return ends


def closed(transport: WSTransport) -> Cause:
    """The cause when the closing handshake was done: it is the client that begins it."""
    return Cause.LOCAL_CLOSE if transport.is_client_side else Cause.CLOSE_FRAME


def without_pongs(listener: Recorder) -> list[Any]:
    return [frame for frame in listener.frames if frame[0] != WSMsgType.PONG]


def check_end(
    listener: Recorder | None,
    whole: list[Any] | None,
    *,
    cut: str,
    causes: set[Cause],
    where: str,
) -> None:
    """What holds for either endpoint, given the frames that reached it whole."""
    if listener is None or not listener.events:
        # Data that a reset overtakes may be lost.
        assert whole is None or cut == "reset", where
        return
    assert listener.events[0] == "connected", where
    assert listener.events.count("connected") == 1, where
    assert listener.events.count("disconnected") == 1, where
    assert listener.events[-1] == "disconnected", where
    assert whole is not None, where
    frames = without_pongs(listener)
    assert frames == whole[: len(frames)], where
    if cut != "reset":
        assert frames == whole, where

    transport = listener.transport
    assert transport is not None
    assert transport.state == WSState.CLOSED, where
    assert transport.write_backlog == 0, where
    if frames and frames[-1][0] == WSMsgType.CLOSE:
        assert transport.disconnect_cause == closed(transport), where
    else:
        assert transport.disconnect_cause in causes, (where, transport.disconnect_cause)
        assert transport.close_handshake is None or transport.close_handshake.recv is None, where


class Reference:
    """The conversation when nobody interferes: what is needed to tell how far a cut one came."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.sent: dict[str, bytes] = {}
        self.frames: dict[str, list[Any]] = {}
        self._leading: dict[str, int] = {}

    async def __aenter__(self) -> Reference:
        flows = {"up": Flow(), "down": Flow()}
        client, server, error = await self.scene.converse(flows["up"], flows["down"])
        assert error is None
        assert server is not None
        for direction, receiver in (("up", server), ("down", client)):
            assert receiver.transport.disconnect_cause == closed(receiver.transport)
            self.frames[direction] = without_pongs(receiver)
            self.sent[direction] = bytes(flows[direction].forwarded)
            # TLS 1.3 has the end of its handshake, tickets and close_notify in such records too.
            records = len(whole_records(self.sent[direction])) - self._close_notify_records
            self._leading[direction] = records - len(WRITES[direction])
        assert [frame[0] for frame in self.frames["down"]] == [1, 0, 0, 2, 8]
        assert [frame[0] for frame in self.frames["up"]] == [1, 2, 0, 8]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    @property
    def _close_notify_records(self) -> int:
        contexts = self.scene.contexts
        return int(bool(contexts and contexts.client.maximum_version != ssl.TLSVersion.TLSv1_2))

    def whole(self, direction: str, stream: bytes, *, is_ended: bool) -> list[Any] | None:
        """The frames that arrived whole in these bytes; None if the opening handshake did not.

        `is_ended`: the sender itself ended the stream in order.
        """
        if self.scene.contexts is None:
            return delivered(stream, to_client=direction == "down")
        count = len(whole_records(stream)) - self._leading[direction]
        if is_ended:
            count -= self._close_notify_records
        if count < 1:
            return None
        return self.frames[direction][: WRITES[direction][:count].count("frame")]


async def check_cut(reference: Reference, direction: str, cut: str, place: int) -> None:
    """Cut one conversation, and check both ends of it."""
    where = f"{cut} at byte {place} of {direction}"
    flows = {"up": Flow(), "down": Flow()}
    flows[direction] = Flow(cut_at=place, cut=cut)
    scene = reference.scene
    client, server, error = await scene.converse(flows["up"], flows["down"])
    causes = END_CAUSES["tls" if scene.contexts else "plain"][cut]
    if client.events:
        assert error is None, where
    else:
        allowed: list[type[Exception]] = [WSInvalidMessageError]
        if scene.contexts:
            allowed.append(ssl.SSLEOFError)  # in the midst of the TLS handshake
        if cut == "reset":
            allowed.append(ConnectionError)
        assert isinstance(error, tuple(allowed)), (where, error)
    for receiver, flow in ((client, "down"), (server, "up")):
        # A client that has not come through the opening handshake just goes away.
        is_ended = cut == "half" and flow != direction and error is None
        whole = reference.whole(flow, bytes(flows[flow].forwarded), is_ended=is_ended)
        check_end(receiver, whole, cut=cut, causes=causes, where=f"{flow} stream, {where}")


def every_byte(stream: bytes) -> Iterable[int]:
    return range(len(stream) + 1)


def around_records(stream: bytes) -> Iterable[int]:
    """Every eleventh byte, and the ends of records with the bytes before and behind."""
    ends = {end + offset for end in whole_records(stream) for offset in (-1, 0, 1)}
    return sorted(ends | set(range(0, len(stream), 11)))


async def cut_everywhere(
    scene: Scene, direction: str, cut: str, places: Callable[[bytes], Iterable[int]]
) -> int:
    count = 0
    async with scene, Reference(scene) as reference:
        leftovers = Leftovers()
        for place in places(reference.sent[direction]):
            await check_cut(reference, direction, cut, place)
            await leftovers.none(f"{cut} at byte {place} of {direction}")
            count += 1
    return count


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cut", CUTS)
async def test_cut_at_every_byte(direction, cut, caplog):
    """TCP: every byte of the opening handshake, the frames and the closing handshake."""
    with log_below(caplog, logging.WARNING):
        assert await cut_everywhere(Scene(), direction, cut, every_byte) > 150


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cut", CUTS)
async def test_cut_over_a_transport_of_the_loop(direction, cut, caplog):
    """The same over asyncio's and uvloop's own transports, at every fifth byte."""
    scene = Scene(use_loop_transport=True)
    with log_below(caplog, logging.WARNING):
        assert (
            await cut_everywhere(scene, direction, cut, lambda stream: every_byte(stream)[::5]) > 30
        )


@pytest.fixture(scope="module", params=["TLSv1_2", "TLSv1_3"])
def tls(request, server_tls, authority):
    """Contexts for one version of TLS: they differ in what a record shows to those who cannot read
    it.
    """
    version = getattr(ssl.TLSVersion, request.param)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.maximum_version = client.minimum_version = version
    return Contexts(server_tls, client)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cut", CUTS)
async def test_cut_below_tls(direction, cut, tls, caplog):
    """TLS handshake, records and close_notify: a truncated stream is told from an ended one."""
    with log_below(caplog, logging.WARNING):
        assert await cut_everywhere(Scene(tls), direction, cut, around_records) > 50


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cut", CUTS)
async def test_cut_below_tls_over_a_transport_of_the_loop(direction, cut, tls, caplog):
    scene = Scene(tls, use_loop_transport=True)
    with log_below(caplog, logging.WARNING):
        assert (
            await cut_everywhere(scene, direction, cut, lambda stream: around_records(stream)[::7])
            > 10
        )


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_memory_of_cut_conversations(is_tls, io_options, server_tls, client_tls):
    """At its highest a conversation takes less than 300 KiB, over the loop's transports, which have
    a buffer each, 700 KiB; of forty cut ones less than 64 KiB stays.
    """
    contexts = Contexts(server_tls, client_tls) if is_tls else None
    peak = 700 * KIB if io_options["use_loop_transport"] else 300 * KIB
    async with (
        Scene(contexts, **io_options) as scene,
        Reference(scene) as reference,
        memory_below(peak=peak, held=64 * KIB),
    ):
        for number in range(40):
            direction, cut = DIRECTIONS[number % 2], CUTS[number // 2 % 3]
            place = len(reference.sent[direction]) * number // 40
            await check_cut(reference, direction, cut, place)
