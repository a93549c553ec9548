"""states: the table is complete, and connections move along it and no other way."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import inspect
import itertools
import json
import re
import socket
import struct

import pytest

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSDisconnectCause,
    WSListener,
    WSMsgType,
    WSState,
    WSViolation,
    states,
)
from picows_fast.states import TRANSITIONS

from .support import (
    Recorder,
    accept_response,
    address,
    client_frame,
    raw_client,
    raw_server,
    read_frame,
    read_head,
    server_frame,
    serving,
)

CONNECTING, OPEN, CLOSING, CLOSED = WSState

STEPS = {(before, after) for before, _, after in TRANSITIONS}


# --- The table -----------------------------------------------------------------------------------


def test_every_state_is_in_the_table_and_reachable():
    reached = {CONNECTING}
    for _ in WSState:
        reached |= {after for before, after in STEPS if before in reached}
    assert reached == set(WSState)


def test_every_state_leads_to_closed_and_closed_nowhere():
    ends = {CLOSED}
    for _ in WSState:
        ends |= {before for before, after in STEPS if after in ends}
    assert ends == set(WSState)
    assert not [row for row in TRANSITIONS if row[0] == CLOSED]


def test_states_only_go_forward():
    assert all(before < after for before, after in STEPS)
    assert list(WSState) == sorted(WSState)


def test_rows_are_distinct_and_say_what_happens():
    assert len(set(TRANSITIONS)) == len(TRANSITIONS)
    for before, what, after in TRANSITIONS:
        assert type(before) is type(after) is WSState
        assert what == what.strip() != ""


def documented(enum):
    """Members of the enum whose line in the source is followed by a text."""
    body = ast.parse(inspect.getsource(enum)).body[0].body
    return {
        member.targets[0].id
        for member, text in itertools.pairwise(body)
        if isinstance(member, ast.Assign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and text.value.value.strip()
    }


@pytest.mark.parametrize("enum", [WSState, WSDisconnectCause, WSViolation])
def test_members_are_their_names_in_text(enum):
    for member in enum:
        assert f"{member}" == str(member) == f"{member!s}" == member.name
        assert f"{member:>30}|" == member.name.rjust(30) + "|"
        assert f"{member:d}" == "%d" % member == str(member.value)  # noqa: UP031
        assert json.dumps({"x": member}) == f'{{"x": {member.value}}}'


@pytest.mark.parametrize("enum", [WSState, WSDisconnectCause])
def test_every_member_is_described(enum):
    assert enum.__doc__
    assert documented(enum) == set(enum.__members__)


def test_calls_and_options_that_the_texts_name_exist():
    """`name()` is a method of the transport, a lower-case name with underscores anything public."""
    text = inspect.getsource(states)
    for name in re.findall(r"(\w+)\(", " ".join(what for _, what, _ in TRANSITIONS)):
        assert hasattr(picows_fast.WSTransport, name), name
    known = {*dir(picows_fast.WSTransport), *dir(WSListener)}
    known |= {*inspect.signature(picows_fast.ws_connect).parameters}
    for name in re.findall(r"``(?:WSTransport\.)?([a-z]+(?:_[a-z]+)+)(?:\(.*?\))?``", text):
        assert name in known, name


# --- Connections ---------------------------------------------------------------------------------


class Watched(Recorder):
    """Notes the state at every event and, once it has a transport, in every turn of the loop."""

    def __init__(self, act=lambda transport, frame: None):
        super().__init__()
        self.act = act
        self.states = []
        self.at = {}

    def _note(self, event):
        super()._note(event)
        if self.transport is not None:
            self.at.setdefault(event, self.transport.state)
            self.note_state()

    def note_state(self):
        state = self.transport.state
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def on_ws_connected(self, transport):
        super().on_ws_connected(transport)
        self.watch()

    def watch(self):
        self.note_state()
        if self.states[-1] != CLOSED:
            asyncio.get_running_loop().call_soon(self.watch)

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        self.act(transport, frame)
        self.note_state()

    def check(self, *expected):
        """The states it went through; the first is what on_ws_connected saw."""
        assert tuple(self.states) == expected
        steps = {(CONNECTING, self.states[0]), *itertools.pairwise(self.states)}
        assert steps <= STEPS
        assert self.at["connected"] == OPEN
        assert self.at["disconnected"] == CLOSED
        assert self.transport.is_disconnected


def reset(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def end_orderly(listener, reader, writer, frame):
    writer.write(frame(WSMsgType.CLOSE, b"\x03\xe8"))
    await read_frame(reader)


async def end_by_us(listener, reader, writer, frame):
    listener.transport.send_close(WSCloseCode.OK)
    assert listener.transport.state == CLOSING
    await read_frame(reader)
    writer.write(frame(WSMsgType.CLOSE, b"\x03\xe8"))


async def end_by_disconnect(listener, reader, writer, frame):
    listener.transport.disconnect()
    assert listener.transport.state == CLOSING
    await reader.read()


async def end_by_abort(listener, reader, writer, frame):
    listener.transport.disconnect(graceful=False)
    await reader.read()


async def end_by_violation(listener, reader, writer, frame):
    writer.write(b"\x83\x00")
    await reader.read()


async def end_by_callback(listener, reader, writer, frame):
    writer.write(frame(WSMsgType.TEXT, b"raise"))
    await reader.read()


async def end_by_fin(listener, reader, writer, frame):
    writer.write_eof()
    await reader.read()


async def end_by_reset(listener, reader, writer, frame):
    reset(writer)
    await listener.closed()


async def end_by_close_timeout(listener, reader, writer, frame):
    listener.transport.send_close()
    await listener.closed()


async def end_by_ping_timeout(listener, reader, writer, frame):
    await reader.read()


async def end_by_backlog(listener, reader, writer, frame):
    payload = bytes(1 << 20)
    while listener.transport.disconnect_cause is None:
        listener.transport.send(WSMsgType.BINARY, payload)
    await listener.closed()


Cause = WSDisconnectCause
BY_CLOSING = (OPEN, CLOSING, CLOSED)

#: (how the connection ends, its states, the cause, settings)
ENDS = [
    (end_orderly, BY_CLOSING, Cause.CLOSE_FRAME, {}),
    (end_by_us, BY_CLOSING, Cause.LOCAL_CLOSE, {}),
    (end_by_disconnect, BY_CLOSING, Cause.LOCAL_DISCONNECT, {}),
    (end_by_abort, (OPEN, CLOSED), Cause.LOCAL_ABORT, {}),
    (end_by_violation, BY_CLOSING, Cause.PROTOCOL_ERROR, {}),
    (end_by_callback, BY_CLOSING, Cause.CALLBACK_ERROR, {}),
    (end_by_fin, BY_CLOSING, Cause.PEER_FIN, {}),
    (end_by_reset, BY_CLOSING, Cause.PEER_RESET, {}),
    (end_by_close_timeout, BY_CLOSING, Cause.CLOSE_TIMEOUT, {"close_timeout": 0.05}),
    (
        end_by_ping_timeout,
        BY_CLOSING,
        Cause.PING_TIMEOUT,
        {
            "enable_auto_ping": True,
            "auto_ping_idle_timeout": 0.05,
            "auto_ping_reply_timeout": 0.05,
        },
    ),
    (end_by_backlog, (OPEN, CLOSED), Cause.WRITE_BACKLOG, {"max_write_backlog": 1 << 20}),
]
ends = pytest.mark.parametrize(
    ("end", "expected", "cause", "options"), ENDS, ids=[end[0].__name__ for end in ENDS]
)


def raise_on_text(transport, frame):
    if frame.msg_type == WSMsgType.TEXT:
        raise ValueError("as the test wants")


def answer_close(transport, frame):
    raise_on_text(transport, frame)
    if frame.msg_type == WSMsgType.CLOSE:
        assert transport.state == CLOSING
        transport.send_close(WSCloseCode.OK)


@ends
async def test_states_of_a_client(end, expected, cause, options, io_options):
    listener = Watched(answer_close)

    async def peer(reader, writer):
        await listener.until(lambda: listener.transport is not None)
        await end(listener, reader, writer, server_frame)

    async with raw_server(peer) as url:
        transport, _ = await picows_fast.ws_connect(lambda: listener, url, **options, **io_options)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert transport.disconnect_cause == cause
    listener.check(*expected)


@ends
async def test_states_of_a_server(end, expected, cause, options, io_options):
    listener = Watched(answer_close)
    async with serving(lambda request: listener, **options, **io_options) as url:
        reader, writer = await raw_client(url)
        await asyncio.wait_for(end(listener, reader, writer, client_frame), 20)
        writer.close()
        await listener.closed()
    assert listener.transport.disconnect_cause == cause
    listener.check(*expected)


async def test_calls_in_any_state_move_it_forward_or_not_at_all(io_options):
    """Every call that ends a connection, in every order, twice."""
    calls = {
        "close": lambda transport: transport.send_close(),
        "disconnect": lambda transport: transport.disconnect(),
        "abort": lambda transport: transport.disconnect(graceful=False),
    }
    async with serving(lambda request: Watched(answer_close), **io_options) as url:
        for first in calls.values():
            for second in calls.values():
                for third in calls.values():
                    listener = Watched()
                    transport, _ = await picows_fast.ws_connect(
                        lambda it=listener: it, url, **io_options
                    )
                    seen = [transport.state]
                    for call in (first, second, third):
                        call(transport)
                        seen.append(transport.state)
                        assert seen == sorted(seen)
                    await asyncio.wait_for(transport.wait_disconnected(), 20)
                    assert transport.state == CLOSED
                    for call in calls.values():
                        call(transport)
                        assert transport.state == CLOSED
                    assert listener.states[-1] == CLOSED
                    assert listener.events.count("disconnected") == 1


async def test_frames_can_be_sent_from_on_ws_connected(io_options):
    """Neither side's transport is handed out before it is open."""
    seen = []

    class Both(Watched):
        def on_ws_connected(self, transport):
            seen.append(transport.state)
            transport.send(WSMsgType.TEXT, "at once")
            super().on_ws_connected(transport)

    async with serving(lambda request: Both(), **io_options) as url:
        transport, listener = await picows_fast.ws_connect(Both, url, **io_options)
        assert await listener.frame() == (WSMsgType.TEXT, b"at once", True)
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()
    assert seen == [OPEN, OPEN]


def all_transports():
    return [item for item in gc.get_objects() if type(item) is picows_fast.WSTransport]


async def peer_refused(reader, writer):
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read()


async def peer_gone(reader, writer):
    writer.close()


async def peer_gone_by_reset(reader, writer):
    reset(writer)


async def peer_silent(reader, writer):
    await reader.read()


@pytest.mark.parametrize(
    ("act", "expected", "cause"),
    [
        (peer_refused, (CONNECTING, CLOSING, CLOSED), Cause.HANDSHAKE_FAILED),
        (peer_gone, (CONNECTING, CLOSED), Cause.PEER_FIN),
        (peer_gone_by_reset, (CONNECTING, CLOSED), Cause.PEER_RESET),
        (peer_silent, (CONNECTING, CLOSING, CLOSED), Cause.HANDSHAKE_TIMEOUT),
    ],
)
async def test_states_before_the_opening_handshake_is_over(act, expected, cause, io_options):
    """Nobody is given such a transport, so the garbage collector has to find it."""
    timeout = 0.05 if act is peer_silent else 20
    async with serving(
        lambda request: Recorder(), websocket_handshake_timeout=timeout, **io_options
    ) as url:
        before = all_transports()
        reader, writer = await asyncio.open_connection(*address(url))
        found = []
        while not found:
            await asyncio.sleep(0)
            found = [item for item in all_transports() if all(item is not old for old in before)]
        (transport,) = found
        seen = [transport.state]
        await act(reader, writer)
        while seen[-1] != CLOSED:
            if transport.state != seen[-1]:
                seen.append(transport.state)
            writer.close()
            await asyncio.sleep(0)
    assert tuple(seen) == expected
    assert set(itertools.pairwise(seen)) <= STEPS
    assert transport.disconnect_cause == cause


async def test_close_that_comes_with_the_opening_handshake(io_options):
    """CONNECTING, OPEN, CLOSING and CLOSED follow from one read."""
    listener = Watched(answer_close)

    async def peer(reader, writer):
        head = await read_head(reader)
        writer.write(accept_response(head) + server_frame(WSMsgType.CLOSE, b"\x03\xe8"))
        writer.write_eof()
        await reader.read()

    async with raw_server(peer, upgrade=False) as url:
        transport, _ = await picows_fast.ws_connect(lambda: listener, url, **io_options)
        await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert listener.at["connected"] == OPEN
    assert listener.at["frame"] == CLOSING
    listener.check(OPEN, CLOSING, CLOSED)
