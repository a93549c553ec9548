"""Auto-ping, auto-pong and round-trip times of real connections. The policy: test_keepalive.py."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

import picows_fast
from picows_fast import (
    WSAutoPingStrategy,
    WSCloseCode,
    WSConnectionClosedError,
    WSDisconnectCause,
    WSMsgType,
    WSState,
)

from .peers import TIMEOUT, Contexts, connected
from .support import Echo, Recorder, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")

PING, PONG, TEXT = WSMsgType.PING, WSMsgType.PONG, WSMsgType.TEXT


def pinging(idle=0.01, reply=10.0, strategy=WSAutoPingStrategy.PING_WHEN_IDLE, **more):
    return {
        "enable_auto_ping": True,
        "auto_ping_idle_timeout": idle,
        "auto_ping_reply_timeout": reply,
        "auto_ping_strategy": strategy,
        "close_timeout": 0.1,
        **more,
    }


strategies = pytest.mark.parametrize("strategy", list(WSAutoPingStrategy), ids=lambda s: s.name)


class JsonPings(Recorder):
    """Pings as an exchange may want them: a JSON message each way."""

    sent = 0

    def send_user_specific_ping(self, transport):
        self.sent += 1
        transport.send(TEXT, json.dumps({"op": "ping", "id": self.sent}))
        self._note("ping")

    def is_user_specific_pong(self, frame):
        self._note("asked")
        return frame.msg_type == TEXT and b'"pong"' in frame.get_payload_as_bytes()


# --- Auto-ping


@strategies
async def test_pongs_keep_a_connection(link, strategy):
    async with link(**pinging(strategy=strategy, reply=2)) as pair:
        for _ in range(5):
            assert await pair.peer.read_frame() == (PING, b"")
            await pair.peer.send(PONG)
        assert pair.transport.state == WSState.OPEN
    assert pair.listener.frames == []  # answers are consumed


@strategies
async def test_dead_peer(link, strategy):
    async with link(**pinging(strategy=strategy, reply=0.03)) as pair:
        assert (await pair.peer.read_frame())[0] == PING
        code, reason = await pair.peer.read_close()
        assert code == WSCloseCode.GOING_AWAY
        assert reason
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT
        assert pair.transport.disconnect_exception is None
        await asyncio.wait_for(pair.transport.wait_disconnected(), TIMEOUT)


async def test_data_is_no_answer_to_periodic_pings(link):
    """A peer that sends data but answers no ping is given up."""
    options = pinging(strategy=WSAutoPingStrategy.PING_PERIODICALLY, reply=0.1)
    async with link(**options) as pair:
        assert (await pair.peer.read_frame())[0] == PING
        for _ in range(3):
            await pair.peer.send(TEXT, "busy")
            await asyncio.sleep(0.01)
        assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY


@pytest.mark.parametrize("scheme", ["plain", "tls"])
async def test_any_byte_is_a_sign_of_life_when_idle(scheme, server_tls, client_tls):
    """Be it of a frame that is not finished, or of a TLS record that is not."""
    contexts = Contexts(server_tls, client_tls) if scheme == "tls" else None
    options = pinging(idle=0.05, reply=0.15)
    async with connected("client", contexts=contexts, **options) as pair:
        assert (await pair.peer.read_frame())[0] == PING
        data = pair.peer.encrypt(pair.peer.frame(WSMsgType.BINARY, bytes(100)))
        is_told = pair.peer.tls is None or sys.platform == "linux"
        for i in range(20 if is_told else 0):
            await pair.peer.send_raw(data[i : i + 1])
            await asyncio.sleep(0.02)
        assert pair.transport.state == WSState.OPEN
        assert pair.listener.frames == []
        assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "reads nothing"])
async def test_nobody_waits_for_a_dead_peer(link, reads):
    """The listener is told at the deadline, not close_timeout later."""
    async with link(small_buffers=True, **pinging(reply=0.03, close_timeout=3 * TIMEOUT)) as pair:
        if not reads:
            pair.transport.send(WSMsgType.BINARY, bytes(1_000_000))
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT
        if reads:
            assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY


async def test_no_ping_while_data_comes_when_idle_is_asked_for(link):
    async with link(**pinging(idle=0.2)) as pair:
        for _ in range(30):
            await pair.peer.send(TEXT, "busy")
            await asyncio.sleep(0.01)
        await pair.listener.until(lambda: len(pair.listener.frames) == 30)
        # 0.3 s or more have passed; a ping would be in the system's buffer by now.
        with pytest.raises(BlockingIOError):
            raise_if_data(pair.peer)
        assert (await pair.peer.read_frame())[0] == PING


def raise_if_data(peer):
    data = peer.sock.recv(65536)
    assert peer.tls is not None, data
    peer.receive(data)  # session tickets of TLS 1.3
    raise BlockingIOError


async def test_periodic_pings_come_although_data_comes(link):
    async with link(**pinging(idle=0.02, strategy=WSAutoPingStrategy.PING_PERIODICALLY)) as pair:

        async def chatter():
            while True:
                await pair.peer.send(TEXT, "busy")
                await asyncio.sleep(0.002)

        talking = asyncio.create_task(chatter())
        for _ in range(3):
            assert (await pair.peer.read_frame())[0] == PING
            await pair.peer.send(PONG)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_pong_that_nobody_waits_for_is_delivered(link):
    async with link() as pair:
        await pair.peer.send(PONG, "unasked")
        assert await pair.listener.frame() == (PONG, b"unasked", True)
    async with link(**pinging(idle=100)) as pair:
        await pair.peer.send(PONG, "unasked")
        assert await pair.listener.frame() == (PONG, b"unasked", True)


class PausesAtPing(Recorder):
    """Reads no more when the first PING has gone."""

    has_pinged = False

    def send_user_specific_ping(self, transport):
        transport.send_ping()
        if not self.has_pinged:
            self.has_pinged = True
            transport.pause_reading()


@strategies
async def test_paused_reading_does_not_kill(link, strategy):
    """The answers may well be there, unread: silence says nothing."""
    options = pinging(idle=0.02, reply=0.04, strategy=strategy)
    async with link(PausesAtPing(), **options) as pair:
        assert (await pair.peer.read_frame())[0] == PING
        assert pair.transport.is_reading_paused
        await pair.peer.send(PONG)
        await asyncio.sleep(0.15)
        assert pair.transport.state == WSState.OPEN
        pair.transport.resume_reading()
        # From here on it is pinged, and found dead, as before.
        while (await pair.peer.read_frame())[0] == PING:
            pass
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


async def test_a_queue_that_is_full_does_not_kill(link, listeners):
    """The time counts from the first owner's pause to the last one's end."""
    queue, _ = listeners.pause_owners
    async with link(**pinging(idle=0.03, reply=0.05)) as pair:
        transport = pair.transport
        listeners.pause_for(transport, queue)
        await asyncio.sleep(0.06)
        transport.pause_reading()
        listeners.resume_for(transport, queue)
        await asyncio.sleep(0.12)
        assert transport.state == WSState.OPEN
        transport.resume_reading()
        await pair.listener.closed()
        assert transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


@strategies
async def test_a_pause_has_a_bound(link, strategy):
    """No break in it: a pause that ended in time does not count."""
    options = pinging(idle=20, reply=20, strategy=strategy)
    async with link(**options, max_reading_pause=0.2) as pair:
        transport = pair.transport
        for _ in range(4):
            transport.pause_reading()
            await asyncio.sleep(0.07)
            transport.resume_reading()
        assert transport.state == WSState.OPEN
        transport.pause_reading()
        await pair.listener.closed()
        assert transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


class PausesOften(Recorder):
    """Reads with a short pause behind each frame, as a bounded queue makes them."""

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        transport.pause_reading()
        asyncio.get_running_loop().call_later(0.002, transport.resume_reading)


@pytest.mark.parametrize("answers", [True, False], ids=["alive", "answers nothing"])
async def test_many_pauses_keep_the_period(link, answers):
    """Pings go out in time, and a peer that answers none is found."""
    options = pinging(idle=0.05, reply=0.1, strategy=WSAutoPingStrategy.PING_PERIODICALLY)
    async with link(PausesOften(), **options) as pair:

        async def chatter():
            while True:
                await pair.peer.send(TEXT, "busy")
                await asyncio.sleep(0.005)

        talking = asyncio.create_task(chatter())
        if answers:
            for _ in range(10):
                assert (await pair.peer.read_frame())[0] == PING
                await pair.peer.send(PONG)
            assert pair.transport.state == WSState.OPEN
            assert pair.transport.stats().reading_pauses > 10
        else:
            await pair.listener.closed()
            assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_pauses_do_not_hide_a_silent_peer(link):
    async with link(**pinging(idle=0.1, reply=0.1)) as pair:
        while pair.transport.state == WSState.OPEN:
            pair.transport.pause_reading()
            await asyncio.sleep(0.002)
            pair.transport.resume_reading()
            await asyncio.sleep(0.02)
        assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


async def test_a_pause_when_nothing_was_due(link):
    """Auto-ping goes on behind it, although its timer had nothing to wait for."""
    async with link(**pinging(idle=0.05)) as pair:
        pair.transport.pause_reading()
        await asyncio.sleep(0.15)
        pair.transport.resume_reading()
        assert (await pair.peer.read_frame())[0] == PING


def run_nested(seconds):
    """Run the event loop in a callback of its own, as nest_asyncio and debuggers do."""
    loop = asyncio.get_running_loop()
    due = len(loop._ready)
    until = loop.time() + seconds
    while loop.time() < until:
        loop.call_later(0.01, lambda: None)
        loop._run_once()
    for _ in range(due):
        loop.call_soon(lambda: None)  # for those that the outer turn counts on


async def test_the_time_of_a_ping_is_not_the_deadline_of_closing(link):
    """The listener runs the loop in its callback for CLOSE, beyond the time of the next ping."""

    if not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        pytest.skip("this loop cannot be run from within")

    class RunsTheLoop(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            if frame.msg_type == WSMsgType.CLOSE:
                run_nested(0.15)
                self.is_there = not transport.underlying_transport.is_closing()
                transport.send_close(1000)

    async with link(RunsTheLoop(), **pinging(idle=0.05, close_timeout=TIMEOUT)) as pair:
        await pair.peer.send_close(1000)
        assert await pair.peer.read_close() == (1000, "")
        pair.peer.close()
        await pair.listener.closed()
        assert pair.listener.is_there
        assert pair.transport.disconnect_cause == WSDisconnectCause.CLOSE_FRAME


async def test_no_ping_after_close(link):
    async with link(**pinging(idle=0.01, close_timeout=20)) as pair:
        pair.transport.send_close(1000)
        while (frame := await pair.peer.read_frame())[0] == PING:
            pass
        assert frame[0] == WSMsgType.CLOSE
        await asyncio.sleep(0.05)
        pair.transport.disconnect()
        assert await pair.peer.read_to_end() == b""
        pair.peer.close()
        await pair.listener.closed()


# --- Pings of the application's own


@strategies
async def test_own_pings(link, strategy):
    # Not so often that one leaves before the last was answered: the second answer would be heard.
    async with link(JsonPings(), **pinging(idle=0.1, strategy=strategy, reply=5)) as pair:
        for i in range(1, 4):
            kind, payload = await pair.peer.read_frame()
            assert (kind, json.loads(payload)["op"]) == (TEXT, "ping")
            await pair.peer.send(TEXT, "a message in between")
            await pair.peer.send(TEXT, json.dumps({"op": "pong", "id": i}))
        await pair.listener.until(lambda: len(pair.listener.frames) >= 3)
    assert {frame[1] for frame in pair.listener.frames} == {b"a message in between"}


async def test_answers_that_overlap(link):
    """The round trip is longer than the time between pings: every answer is known for one, and
    none tells a round trip.
    """
    options = pinging(idle=0.02, reply=20, strategy=WSAutoPingStrategy.PING_PERIODICALLY)
    async with link(JsonPings(), **options) as pair:
        for _ in range(3):
            await pair.peer.read_frame()
        for _ in range(10):
            await pair.peer.read_frame()
            await pair.peer.send(TEXT, '{"op": "pong"}')
        await pair.peer.send(TEXT, "behind")
        await pair.listener.frame()
        assert pair.listener.frames == [(TEXT, b"behind", True)]
        assert pair.transport.stats().round_trip_ns is None


async def test_a_number_ends_the_doubt(link):
    """A PONG came for one of two PINGs: the next one says which it is, and so does its PONG."""
    options = pinging(idle=0.05, reply=20, strategy=WSAutoPingStrategy.PING_PERIODICALLY)
    async with link(**options) as pair:
        for _ in range(2):
            assert await pair.peer.read_frame() == (PING, b"")
        await pair.peer.send(PONG)  # perhaps for the newest only (RFC 6455 5.5.3)
        _, number = await pair.peer.read_frame()
        assert number != b""
        await pair.peer.send(PONG, number)
        assert await pair.peer.read_frame() == (PING, b"")
        assert pair.transport.stats().round_trip_ns is None
        await pair.peer.send(PONG)
        assert (await pair.peer.read_frame())[0] == PING
        assert pair.transport.stats().round_trip_ns is not None
    assert pair.listener.frames == []


async def test_a_pong_for_the_applications_ping_tells_no_round_trip(link):
    async with link(**pinging()) as pair:
        assert (await pair.peer.read_frame())[0] == PING
        await pair.peer.send(PONG, "for an earlier one")
        assert (await pair.peer.read_frame())[0] == PING  # it is a sign of life all the same
        assert pair.transport.stats().round_trip_ns is None


async def test_own_pings_of_a_dead_peer(link):
    async with link(JsonPings(), **pinging(reply=0.03)) as pair:
        assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.PING_TIMEOUT


async def test_a_pong_is_only_asked_for_while_one_is_expected(link):
    async with link(JsonPings(), **pinging(idle=100)) as pair:
        await pair.peer.send(TEXT, '{"op": "pong"}')
        await pair.peer.send(PONG)
        await pair.listener.frame(1)
        assert "asked" not in pair.listener.events


async def test_real_pongs_do_not_count_for_own_pings(link):
    async with link(JsonPings(), **pinging(reply=0.1)) as pair:
        await pair.peer.read_frame()
        await pair.peer.send(PONG, "not what was asked")
        assert (await pair.listener.frame())[0] == PONG
        assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY


async def test_notify_user_specific_pong_received(link):
    """For answers that only parsing can tell: the listener says so, from on_ws_frame."""

    class Parsing(JsonPings):
        def is_user_specific_pong(self, frame):
            return False

        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            if json.loads(frame.get_payload_as_bytes())["op"] == "pong":
                transport.notify_user_specific_pong_received()
                transport.notify_user_specific_pong_received()

    async with link(Parsing(), **pinging(reply=0.5)) as pair:
        for i in range(4):
            assert (await pair.peer.read_frame())[0] == TEXT
            await pair.peer.send(TEXT, '{"op": "pong"}')
            await pair.listener.frame(i)
        pair.transport.notify_user_specific_pong_received()  # unasked: nothing happens
        assert pair.transport.state == WSState.OPEN
        assert (await pair.peer.read_close())[0] == WSCloseCode.GOING_AWAY


# --- Auto-pong


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(125))])
async def test_pings_are_answered_with_their_payload(link, payload):
    async with link() as pair:
        await pair.peer.send(PING, payload)
        assert await pair.peer.read_frame() == (PONG, payload)
        await pair.peer.send(TEXT, "behind")
        await pair.listener.frame()
    assert pair.listener.frames == [(TEXT, b"behind", True)]


async def test_pings_in_the_midst_of_a_message(link):
    async with link() as pair:
        await pair.peer.send_bytes(
            pair.peer.frame(TEXT, "one", fin=False)
            + pair.peer.frame(PING, "1")
            + pair.peer.frame(WSMsgType.CONTINUATION, "two")
            + pair.peer.frame(PING, "2")
        )
        assert await pair.peer.read_frame() == (PONG, b"1")
        assert await pair.peer.read_frame() == (PONG, b"2")
    assert [frame[1] for frame in pair.listener.frames] == [b"one", b"two"]


async def test_auto_pong_off(link):
    async with link(enable_auto_pong=False) as pair:
        await pair.peer.send(PING, "mine")
        assert await pair.listener.frame() == (PING, b"mine", True)
        pair.transport.send_pong(b"by hand")
        assert await pair.peer.read_frame() == (PONG, b"by hand")


async def test_pings_are_not_answered_after_close(link):
    async with link() as pair:
        pair.transport.send_close(1000)
        await pair.peer.send(PING, "late")
        assert await pair.peer.read_close() == (1000, "")
        pair.transport.disconnect()
        assert await pair.peer.read_to_end() == b""


# --- measure_roundtrip_time


async def answer_pings(peer):
    while True:
        kind, payload = await peer.read_frame()
        if kind == PING:
            await peer.send(PONG, payload)
        elif b"ping" in payload:
            await peer.send(TEXT, '{"op": "pong"}')


@pytest.fixture
async def answering():
    """Starts tasks that answer pings; ends them."""
    tasks = []

    def start(peer):
        tasks.append(asyncio.create_task(answer_pings(peer)))

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("auto_ping", [False, True], ids=["alone", "auto-ping on"])
@pytest.mark.parametrize("listener", [Recorder, JsonPings], ids=["PING", "own pings"])
async def test_measuring(link, answering, listener, auto_ping):
    async with link(listener(), **pinging(idle=0.02) if auto_ping else {}) as pair:
        answering(pair.peer)
        times = await asyncio.wait_for(pair.transport.measure_roundtrip_time(5), TIMEOUT)
        assert len(times) == 5
        assert all(0 < time < TIMEOUT for time in times)
        if auto_ping:
            await asyncio.sleep(0.05)
        assert len(await pair.transport.measure_roundtrip_time(1)) == 1
        assert await pair.transport.measure_roundtrip_time(0) == []
    assert pair.listener.frames == []


async def test_measured_time_is_the_time_it_takes(link):
    async with link() as pair:
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(1))
        kind, payload = await pair.peer.read_frame()
        assert kind == PING
        await asyncio.sleep(0.05)
        await pair.peer.send(PONG, payload)
        (time,) = await asyncio.wait_for(measuring, TIMEOUT)
        assert time > 0.03  # clocks are coarse


@pytest.mark.parametrize("listener", [Recorder, JsonPings], ids=["PING", "own pings"])
async def test_measuring_many_at_once(link, answering, listener):
    async with link(listener(), **pinging(idle=0.02)) as pair:
        answering(pair.peer)
        results = await asyncio.wait_for(
            asyncio.gather(*(pair.transport.measure_roundtrip_time(n) for n in range(6))), TIMEOUT
        )
        assert [len(times) for times in results] == list(range(6))


@pytest.mark.parametrize("listener", [Recorder, JsonPings], ids=["PING", "own pings"])
async def test_cancelled_measurement(link, listener):
    """A late answer to a given-up ping is not taken for the next one's."""
    async with link(listener()) as pair:
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(1))
        _, first = await pair.peer.read_frame()
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(1))
        _, second = await pair.peer.read_frame()
        own = listener is JsonPings
        await pair.peer.send(TEXT if own else PONG, '{"op": "pong"}' if own else first)
        await pair.peer.send(TEXT, "marker")
        await pair.listener.frame()
        assert not measuring.done()
        await pair.peer.send(TEXT if own else PONG, '{"op": "pong"}' if own else second)
        assert len(await asyncio.wait_for(measuring, TIMEOUT)) == 1
    assert [frame[1] for frame in pair.listener.frames] == [b"marker"]


async def test_pongs_for_the_applications_own_pings_are_delivered(link):
    """While a measurement runs, and after one that was given up without an answer."""
    async with link() as pair:
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(1))
        _, number = await pair.peer.read_frame()
        await pair.peer.send(PONG, "mine")
        assert await pair.listener.frame(0) == (PONG, b"mine", True)
        await pair.peer.send(PONG)
        assert await pair.listener.frame(1) == (PONG, b"", True)
        measuring.cancel()
        await pair.peer.send(PONG, "again")
        assert await pair.listener.frame(2) == (PONG, b"again", True)
        await pair.peer.send(PONG, number)  # late, and still ours
        await pair.peer.send(PONG, number)  # but only once
        assert await pair.listener.frame(3) == (PONG, number, True)


@pytest.mark.parametrize("way", ["peer", "disconnect", "abort", "CLOSE"])
async def test_measuring_while_the_connection_ends(link, way):
    async with link(enable_auto_close=True) as pair:
        measuring = [
            asyncio.create_task(pair.transport.measure_roundtrip_time(2)) for _ in range(3)
        ]
        await pair.peer.read_frame()
        if way == "CLOSE":
            await pair.peer.send_close(1000)
            await pair.peer.read_close()
        elif way != "peer":
            pair.transport.disconnect(graceful=way == "disconnect")
        pair.peer.close()
        for task in measuring:
            with pytest.raises(WSConnectionClosedError) as caught:
                await asyncio.wait_for(task, TIMEOUT)
            assert caught.value.cause == pair.transport.disconnect_cause
        with pytest.raises(WSConnectionClosedError):
            await pair.transport.measure_roundtrip_time(1)


async def test_measuring_after_close_was_sent(link):
    async with link() as pair:
        pair.transport.send_close()
        with pytest.raises(WSConnectionClosedError):
            await pair.transport.measure_roundtrip_time(1)


async def test_measuring_a_dead_peer_with_auto_ping(link):
    async with link(**pinging(idle=100, reply=0.05)) as pair:
        with pytest.raises(WSConnectionClosedError) as caught:
            await asyncio.wait_for(pair.transport.measure_roundtrip_time(1), TIMEOUT)
        assert caught.value.cause == WSDisconnectCause.PING_TIMEOUT


async def test_auto_ping_holds_back_while_measuring(link):
    async with link(**pinging(idle=0.01, strategy=WSAutoPingStrategy.PING_PERIODICALLY)) as pair:
        assert await pair.peer.read_frame() == (PING, b"")
        await pair.peer.send(PONG)
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(1))
        while (payload := (await pair.peer.read_frame())[1]) == b"":
            await pair.peer.send(PONG)
        await asyncio.sleep(0.05)
        await pair.peer.send(PONG, payload)
        await asyncio.wait_for(measuring, TIMEOUT)
        kinds = [await pair.peer.read_frame() for _ in range(2)]
        assert kinds == [(PING, b"")] * 2


async def test_own_ping_that_fails_while_measuring(link, caplog):
    """The caller gets what the listener raised, and later measurements are not put out of step."""

    class Once(JsonPings):
        def send_user_specific_ping(self, transport):
            if not self.sent:
                self.sent = 1
                raise LookupError("no id for a ping")
            super().send_user_specific_ping(transport)

    async with link(Once(), disconnect_on_exception=False) as pair:
        with pytest.raises(LookupError):
            await asyncio.wait_for(pair.transport.measure_roundtrip_time(1), TIMEOUT)
        assert caplog.records
        measuring = asyncio.create_task(pair.transport.measure_roundtrip_time(1))
        await pair.peer.read_frame()
        await pair.peer.send(TEXT, '{"op": "pong"}')
        assert len(await asyncio.wait_for(measuring, TIMEOUT)) == 1


@pytest.mark.parametrize(
    ("rounds", "error"), [(-1, ValueError), ("1", TypeError), (1.5, TypeError)]
)
async def test_bad_rounds(link, rounds, error):
    async with link() as pair:
        with pytest.raises(error):
            await pair.transport.measure_roundtrip_time(rounds)


async def test_both_sides_ping_and_measure():
    listener = Echo()
    async with serving(lambda request: listener, **pinging(idle=0.01, reply=5)) as url:
        transport, client = await picows_fast.ws_connect(
            Recorder, url, **pinging(idle=0.01, reply=5)
        )
        await listener.until(lambda: listener.transport)
        await asyncio.wait_for(
            asyncio.gather(
                transport.measure_roundtrip_time(10),
                listener.transport.measure_roundtrip_time(10),
                asyncio.sleep(0.1),
            ),
            TIMEOUT,
        )
        transport.send(TEXT, "still fine")
        await client.frame()
        assert [frame[0] for frame in client.frames] == [TEXT]
        transport.disconnect(graceful=False)
        await client.closed()
