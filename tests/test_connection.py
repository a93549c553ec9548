"""The sans-IO connection: two of them, one and an independent peer, and real sockets."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterable
from typing import Any

import pytest
import websockets.sync.client
import websockets.sync.server
import wsproto.connection
import wsproto.events
from hypothesis import given
from hypothesis import strategies as st

import picows_fast
from picows_fast import (
    WSDisconnectCause,
    WSFrame,
    WSMsgType,
    WSPeerProtocolError,
    WSState,
    WSViolation,
    build_frame,
)
from picows_fast.protocol.connection import Connection
from picows_fast.protocol.keepalive import AutoPing
from picows_fast.protocol.upgrade import ClientHandshake, ServerHandshake

TEXT, BINARY, CLOSE = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CLOSE
PING, PONG, CONTINUATION = WSMsgType.PING, WSMsgType.PONG, WSMsgType.CONTINUATION

Event = tuple[WSMsgType, bytes]


def events(connection: Connection) -> list[Event]:
    return [(frame.msg_type, frame.get_payload_as_bytes()) for frame in connection]


def pair(**options: Any) -> tuple[Connection, Connection]:
    """A client and a server."""
    return Connection(is_client=True, **options), Connection(is_client=False, **options)


def pass_on(sender: Connection, receiver: Connection) -> list[Event]:
    """What the receiver makes of what the sender has to send."""
    data = sender.data_to_send()
    if data:
        receiver.receive_data(data)
    return events(receiver)


def other(is_client: bool, *frames: bytes | tuple[Any, ...], **options: Any) -> Connection:
    """A connection that was given these frames by its peer."""
    connection = Connection(is_client=is_client, **options)
    for frame in frames:
        data = frame if isinstance(frame, bytes) else build_frame(*frame, mask=not is_client)
        connection.receive_data(data)
    return connection


@pytest.fixture(params=[True, False], ids=["client", "server"])
def is_client(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- Messages and control frames


def test_messages_both_ways():
    client, server = pair()
    assert client.send(TEXT, "grüße")
    assert client.send(BINARY, memoryview(b"\0\1"))
    assert pass_on(client, server) == [(TEXT, "grüße".encode()), (BINARY, b"\0\1")]
    assert server.send(TEXT, None)
    assert pass_on(server, client) == [(TEXT, b"")]
    assert client.data_to_send() == server.data_to_send() == b""
    assert client.state is server.state is WSState.OPEN


def test_fragments_are_joined_or_not(is_client):
    frames = [(TEXT, b"\xc3", False), (PING, b"now"), (CONTINUATION, b"\xbc", True)]
    data = b"".join(
        build_frame(kind, payload, fin=fin[0] if fin else True, mask=not is_client)
        for kind, payload, *fin in frames
    )
    joined = other(is_client, data)
    assert events(joined) == [(TEXT, "ü".encode())]
    apart = other(is_client, data, join_fragments=False)
    assert events(apart) == [(TEXT, b"\xc3"), (CONTINUATION, b"\xbc")]
    for connection in (joined, apart):
        peer = other(not is_client, connection.data_to_send())
        assert events(peer) == [(PONG, b"now")]


def test_every_cut(is_client):
    data = b"".join(
        build_frame(kind, payload, mask=not is_client)
        for kind, payload in [
            (TEXT, "ü" * 70),
            (PING, b""),
            (BINARY, bytes(300)),
            (CLOSE, b"\x03\xe8"),
        ]
    )
    whole = other(is_client, data)
    expected = events(whole)
    assert [kind for kind, _ in expected] == [TEXT, BINARY, CLOSE]
    for cut in range(1, len(data)):
        connection = other(is_client, data[:cut])
        seen = events(connection)
        connection.receive_data(data[cut:])
        assert seen + events(connection) == expected
        assert connection.state is whole.state


def test_pings_are_given_if_they_are_not_answered(is_client):
    connection = other(is_client, (PING, b"x"), (PONG, b"y"), enable_auto_pong=False)
    assert events(connection) == [(PING, b"x"), (PONG, b"y")]
    assert connection.data_to_send() == b""


def test_an_event_stays_valid(is_client):
    connection = other(is_client, (TEXT, b"first"))
    frame = next(connection)
    connection.receive_data(build_frame(TEXT, b"later", mask=not is_client))
    assert events(connection) == [(TEXT, b"later")]
    assert bytes(frame.get_payload_as_memoryview()) == b"first"


# --- The closing handshake


def test_closing_handshake():
    client, server = pair(close_timeout=5)
    assert client.send_close(1001, "so long", now=100.0)
    assert client.state is WSState.CLOSING
    assert client.deadline == 105.0
    assert not client.send(TEXT, "too late")
    assert not client.send_close(1000)
    server.send(TEXT, "in flight")
    crossing = server.data_to_send()
    assert pass_on(client, server) == [(CLOSE, b"\x03\xe9so long")]
    assert server.must_end, "the server ends the stream first (RFC 6455 7.1.1)"
    assert server.disconnect_cause is WSDisconnectCause.CLOSE_FRAME
    assert server.close_handshake.recv_then_sent
    client.receive_data(crossing)
    assert events(client) == [], "data behind our CLOSE is dropped"
    assert pass_on(server, client) == [(CLOSE, b"\x03\xe9")]
    assert not client.must_end
    client.receive_eof()
    assert events(client) == []
    assert client.state is WSState.CLOSED
    assert client.deadline is None
    assert client.disconnect_cause is WSDisconnectCause.LOCAL_CLOSE
    assert client.close_handshake.sent.code == client.close_handshake.recv.code == 1001
    assert not client.close_handshake.recv_then_sent


def test_a_close_that_the_application_answers():
    client, server = pair(enable_auto_close=False)
    client.send_close(3000)
    assert pass_on(client, server) == [(CLOSE, b"\x0b\xb8")]
    assert server.state is WSState.CLOSING
    assert not server.must_end
    assert server.send(TEXT, "last words")
    assert server.send(CLOSE, b"\x0b\xb9")
    assert server.must_end
    assert server.data_to_send().endswith(b"\x0b\xb9")


@pytest.mark.parametrize("code", [1005, 1006, 999, 5000])
def test_codes_that_must_not_be_sent(is_client, code):
    connection = Connection(is_client=is_client)
    with pytest.raises(ValueError, match=str(code)):
        connection.send_close(code)
    with pytest.raises(ValueError, match=str(code)):
        connection.send(CLOSE, code.to_bytes(2, "big"))
    with pytest.raises(ValueError, match="two bytes"):
        connection.send(CLOSE, b"\x03")
    assert connection.state is WSState.OPEN
    assert connection.data_to_send() == b""


# --- Violations and other ends


@pytest.mark.parametrize(
    ("data", "violation", "code"),
    [
        (lambda mask: build_frame(TEXT, b"\xff", mask=mask), WSViolation.TEXT_UTF8, 1007),
        (lambda mask: build_frame(TEXT, bytes(101), mask=mask), WSViolation.FRAME_TOO_BIG, 1009),
        (
            lambda mask: (
                build_frame(TEXT, bytes(60), fin=False, mask=mask)
                + build_frame(CONTINUATION, bytes(60), mask=mask)
            ),
            WSViolation.MESSAGE_TOO_BIG,
            1009,
        ),
        (
            lambda mask: build_frame(CONTINUATION, b"", mask=mask),
            WSViolation.UNEXPECTED_CONTINUATION,
            1002,
        ),
        (lambda mask: build_frame(TEXT, b"", mask=not mask), None, 1002),
        (lambda mask: build_frame(TEXT, b"", rsv1=True, mask=mask), WSViolation.RSV_SET, 1002),
    ],
    ids=["text", "frame", "message", "continuation", "mask", "rsv"],
)
def test_violations(is_client, data, violation, code):
    mask = not is_client
    connection = Connection(is_client=is_client, max_frame_size=100, max_message_size=100)
    connection.receive_data(build_frame(TEXT, b"good", mask=mask) + data(mask))
    assert events(connection) == [(TEXT, b"good")], "what came before is delivered"
    assert connection.state is WSState.CLOSING
    assert connection.must_end
    assert connection.disconnect_cause is WSDisconnectCause.PROTOCOL_ERROR
    assert isinstance(connection.disconnect_exception, WSPeerProtocolError)
    assert violation in (None, connection.disconnect_exception.violation)
    peer = other(not is_client, connection.data_to_send())
    ((kind, payload),) = events(peer)
    assert (kind, int.from_bytes(payload[:2], "big")) == (CLOSE, code)
    connection.receive_data(build_frame(TEXT, b"more", mask=mask))
    assert events(connection) == []
    assert not connection.send(TEXT, "no")


def test_unfinished_text_is_checked(is_client):
    """A byte that cannot be UTF-8 fails the connection though its frame has not come whole."""
    text = b"x" * 5000 + b"\xc3\xc3" + b"y" * 5000
    data = build_frame(TEXT, text, mask=not is_client)
    for size in (5000, 5010):
        connection = other(is_client, data[:10], data[10:size], check_unfinished_text=True)
        assert events(connection) == []
        connection.receive_data(data[size:-1])
        assert events(connection) == []
        assert connection.disconnect_cause is WSDisconnectCause.PROTOCOL_ERROR
    late = other(is_client, data[:-1])
    assert events(late) == []
    assert late.state is WSState.OPEN


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, WSDisconnectCause.PEER_FIN),
        (ConnectionResetError(), WSDisconnectCause.PEER_RESET),
        (TimeoutError(), WSDisconnectCause.NETWORK_ERROR),
    ],
)
def test_the_stream_ends(is_client, error, cause):
    connection = other(
        is_client, (TEXT, b"last"), build_frame(TEXT, b"cut", mask=not is_client)[:3]
    )
    connection.receive_eof(error)
    assert events(connection) == [(TEXT, b"last")]
    assert connection.state is WSState.CLOSED
    assert connection.must_end
    assert connection.disconnect_cause is cause
    assert connection.disconnect_exception is error
    connection.receive_data(b"after the end")
    assert events(connection) == []


def test_empty_data_is_the_end(is_client):
    connection = Connection(is_client=is_client)
    connection.receive_data(b"")
    assert connection.next_event() is None
    assert connection.disconnect_cause is WSDisconnectCause.PEER_FIN


def test_disconnect_and_abort(is_client):
    connection = Connection(is_client=is_client, close_timeout=2)
    connection.send(TEXT, "waits")
    connection.disconnect(now=1.0)
    assert connection.must_end
    assert connection.deadline == 3.0
    assert connection.data_to_send() != b""
    connection.abort()
    assert connection.state is WSState.CLOSED
    assert connection.disconnect_cause is WSDisconnectCause.LOCAL_DISCONNECT
    gone = Connection(is_client=is_client)
    gone.send(TEXT, "lost")
    gone.abort()
    assert gone.data_to_send() == b""
    assert gone.disconnect_cause is WSDisconnectCause.LOCAL_ABORT


# --- Time


def test_close_timeout(is_client):
    connection = Connection(is_client=is_client, close_timeout=5)
    connection.send_close(1000, now=10.0)
    connection.handle_deadline(14.9)
    assert connection.state is WSState.CLOSING
    connection.handle_deadline(15.0)
    assert connection.state is WSState.CLOSED
    assert connection.disconnect_cause is WSDisconnectCause.CLOSE_TIMEOUT


def test_auto_ping(is_client):
    connection = Connection(is_client=is_client, auto_ping=AutoPing(1, 10.0, 3.0, 0.0))
    assert connection.deadline == 10.0
    connection.handle_deadline(10.0)
    peer = other(not is_client, connection.data_to_send())
    assert events(peer) == []
    connection.receive_data(peer.data_to_send(), now=11.0)
    assert events(connection) == [], "the awaited PONG is no event"
    connection.handle_deadline(connection.deadline)
    assert connection.data_to_send() != b""
    connection.handle_deadline(connection.deadline)
    assert connection.disconnect_cause is WSDisconnectCause.PING_TIMEOUT
    assert connection.must_end


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_bad_close_timeout(value):
    with pytest.raises(ValueError, match="close_timeout"):
        Connection(is_client=True, close_timeout=value)


# --- An independent peer: wsproto


def wsproto_peer(is_client: bool) -> wsproto.connection.Connection:
    kind = wsproto.connection.ConnectionType
    return wsproto.connection.Connection(kind.CLIENT if is_client else kind.SERVER)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text(max_size=300)),
        st.tuples(st.just("bytes"), st.binary(max_size=300)),
        st.tuples(st.just("ping"), st.binary(max_size=125)),
        st.tuples(st.just("close"), st.sampled_from([1000, 1001, 3000, 4999])),
    ),
    max_size=12,
)


@given(is_client=st.booleans(), ours=ACTIONS, theirs=ACTIONS, data=st.data())
def test_conversations_with_wsproto(is_client, ours, theirs, data):
    """Both sides talk at will, bytes are cut anywhere; each is told what the other said."""
    connection, peer = Connection(is_client=is_client), wsproto_peer(not is_client)
    peer_open = True
    said: dict[str, list[Any]] = {"ours": [], "theirs": []}
    heard: dict[str, list[Any]] = {"ours": [], "theirs": []}
    to_peer = to_us = b""
    parts: list[Any] = []

    def deliver_to_us(chunk: bytes) -> None:
        if chunk:
            connection.receive_data(chunk)
        heard["theirs"] += [event for event in events(connection) if event[0] is not PONG]

    def deliver_to_peer(chunk: bytes) -> bytes:
        nonlocal peer_open
        answers = b""
        if not chunk:
            return answers
        peer.receive_data(chunk)
        for event in peer.events():
            if isinstance(event, wsproto.events.Ping):
                answers += peer.send(event.response()) if peer_open else b""
            elif isinstance(event, wsproto.events.CloseConnection):
                heard["ours"].append((CLOSE, event.code))
                if peer_open:
                    answers += peer.send(event.response())
                    said["theirs"].append((CLOSE, event.code.to_bytes(2, "big")))
                peer_open = False
            elif isinstance(event, (wsproto.events.TextMessage, wsproto.events.BytesMessage)):
                if not parts:
                    parts.append(TEXT if isinstance(event, wsproto.events.TextMessage) else BINARY)
                parts.append(event.data)
                if event.message_finished:
                    kind, *pieces = parts
                    whole = "".join(pieces).encode() if kind is TEXT else b"".join(pieces)
                    heard["ours"].append((kind, whole))
                    parts.clear()
        return answers

    for mine, their in itertools.zip_longest(ours, theirs):
        if mine is not None:
            kind, value = mine
            if kind == "close":
                if connection.send_close(value):
                    said["ours"].append((CLOSE, value))
            elif kind == "ping":
                connection.send_ping(value)
            elif connection.send(TEXT if kind == "text" else BINARY, value):
                payload = value.encode() if kind == "text" else value
                said["ours"].append((TEXT if kind == "text" else BINARY, payload))
        if their is not None and peer_open:
            kind, value = their
            if kind == "close":
                to_us += peer.send(wsproto.events.CloseConnection(code=value))
                said["theirs"].append((CLOSE, value.to_bytes(2, "big")))
                peer_open = False
            elif kind == "ping":
                to_us += peer.send(wsproto.events.Ping(payload=value))
            elif kind == "text":
                to_us += peer.send(wsproto.events.TextMessage(data=value))
                said["theirs"].append((TEXT, value.encode()))
            else:
                to_us += peer.send(wsproto.events.BytesMessage(data=value))
                said["theirs"].append((BINARY, value))
        to_peer += connection.data_to_send()
        cut = data.draw(st.integers(0, len(to_us)))
        deliver_to_us(to_us[:cut])
        to_us = to_us[cut:]
        to_peer += connection.data_to_send()
        cut = data.draw(st.integers(0, len(to_peer)))
        to_us += deliver_to_peer(to_peer[:cut])
        to_peer = to_peer[cut:]
    for _ in range(3):
        deliver_to_us(to_us)
        to_us = deliver_to_peer(to_peer + connection.data_to_send())
        to_peer = b""

    closed = any(kind is CLOSE for kind, _ in said["ours"] + said["theirs"])
    assert (connection.state is not WSState.OPEN) == closed
    # Data behind our own CLOSE is dropped; their CLOSE is not.
    data_heard = [event for event in heard["theirs"] if event[0] is not CLOSE]
    assert data_heard == said["theirs"][: len(data_heard)]
    assert heard["theirs"][len(data_heard) :] == said["theirs"][len(said["theirs"]) - closed :]
    assert heard["ours"][: len(said["ours"])] == said["ours"][: len(heard["ours"])]
    if not closed:
        assert heard["theirs"] == said["theirs"]
        assert heard["ours"] == said["ours"]
    assert connection.disconnect_cause in (
        None,
        WSDisconnectCause.CLOSE_FRAME,
        WSDisconnectCause.LOCAL_CLOSE,
    )


# --- Plain blocking sockets, and another library at the other end


def talk(sock: socket.socket, connection: Connection, data: Iterable[bytes] = ()) -> list[WSFrame]:
    """Echo messages until the connection has ended."""
    got = []
    for chunk in (*data, None):
        received = chunk
        while True:
            if received is not None:
                connection.receive_data(received)
            for frame in connection:
                got.append(frame)
                if frame.msg_type in (TEXT, BINARY):
                    connection.send(frame.msg_type, frame)
            with contextlib.suppress(OSError):
                sock.sendall(connection.data_to_send())
            if connection.must_end:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
            if chunk is not None or connection.state is WSState.CLOSED:
                break
            received = sock.recv(65536)
    return got


def test_a_server_over_a_blocking_socket():
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listening.accept()
        with sock:
            handshake = ServerHandshake()
            while handshake.receive_data(sock.recv(65536)) is None:
                pass
            sock.sendall(handshake.accept().to_bytes())
            behind = [handshake.trailing_data] if handshake.trailing_data else []
            talk(sock, Connection(is_client=False), behind)

    thread = threading.Thread(target=serve)
    thread.start()
    port = listening.getsockname()[1]
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/", compression=None) as peer:
        peer.send(["frag", "ments"])
        assert peer.recv() == "fragments"
        assert peer.ping().wait(20)
        peer.send(b"x" * 100_000)
        assert peer.recv() == b"x" * 100_000
    assert (peer.close_code, peer.close_reason) == (1000, "")
    thread.join(20)
    listening.close()


def test_a_client_over_a_blocking_socket():
    def serve(peer: Any) -> None:
        peer.send("one")
        assert peer.recv() == "one"
        peer.close(1001, "enough")

    with websockets.sync.server.serve(serve, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as sock:
            handshake = ClientHandshake(picows_fast.parse_url(f"ws://127.0.0.1:{port}/"))
            sock.sendall(handshake.request_bytes())
            while handshake.receive_data(sock.recv(65536)) is None:
                pass
            connection = Connection(is_client=True)
            behind = [handshake.trailing_data] if handshake.trailing_data else []
            got = talk(sock, connection, behind)
        server.shutdown()
        thread.join(20)
    assert [frame.msg_type for frame in got] == [TEXT, CLOSE]
    assert connection.disconnect_cause is WSDisconnectCause.CLOSE_FRAME
    assert connection.close_handshake is not None
    assert connection.close_handshake.recv.reason == "enough"
