"""keepalive: when to ping and when to give up, with a clock of the test's own.

What a connection makes of it is tested in test_auto_ping.py, but for the order of unnumbered pongs.
"""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import picows_fast
from picows_fast import WSAutoPingStrategy, WSMsgType
from picows_fast.keepalive import AutoPing, PingAction, RoundTrips

from .support import TextPings, raw_server, read_frame, server_frame

WAIT, PING, DEAD = PingAction.WAIT, PingAction.PING, PingAction.DEAD
IDLE = WSAutoPingStrategy.PING_WHEN_IDLE
PERIODIC = WSAutoPingStrategy.PING_PERIODICALLY
BOTH = pytest.mark.parametrize("strategy", [IDLE, PERIODIC], ids=["idle", "periodic"])


class Scene:
    """A policy and the caller that it wants: reports pings, remembers when bytes came."""

    def __init__(self, strategy, idle, reply, now=0):
        self.policy = AutoPing(strategy, idle, reply, now)
        self.last_received = now

    def timer(self, now):
        action = self.policy.on_timer(now, self.last_received)
        if action == PING:
            self.policy.ping_sent(now)
        return action

    def data(self, now):
        self.last_received = now

    def pong(self, now):
        self.last_received = now
        self.policy.pong_received(now)

    def resumed(self, now):
        self.last_received = now
        self.policy.resumed(now)


#: (strategy, idle timeout, reply timeout, what happens when, deadline at the end). WAIT, PING and
#: DEAD are what the timer says.
STORIES = {
    "silence": (IDLE, 10, 5, "9.9 WAIT, 10 PING", 15),
    "silence, periodic": (PERIODIC, 10, 5, "9.9 WAIT, 10 PING", 15),
    "no pong": (IDLE, 10, 5, "10 PING, 14.9 WAIT, 15 DEAD", 15),
    "no pong, periodic": (PERIODIC, 10, 5, "10 PING, 14.9 WAIT, 15 DEAD", 15),
    "data puts the ping off": (IDLE, 10, 5, "7 data, 10 WAIT, 16.9 WAIT", 17),
    "data, then silence": (IDLE, 10, 5, "7 data, 10 WAIT, 17 PING", 22),
    "data does not put a periodic ping off": (PERIODIC, 10, 5, "9 data, 10 PING", 15),
    "data is no pong": (IDLE, 10, 5, "10 PING, 14 data, 15 DEAD", 15),
    "data is no pong, periodic": (PERIODIC, 10, 5, "10 PING, 14 data, 15 DEAD", 15),
    "pong in time": (IDLE, 10, 5, "10 PING, 12 pong, 15 WAIT", 22),
    "pong in time, periodic": (PERIODIC, 10, 5, "10 PING, 12 pong, 15 WAIT", 20),
    "pong at the last moment": (IDLE, 10, 5, "10 PING, 14.999 pong, 15 WAIT", 24.999),
    "late pong that is seen before the timer": (IDLE, 10, 5, "10 PING, 15.5 pong, 16 WAIT", 25.5),
    "pong that nobody asked for": (IDLE, 10, 5, "3 pong, 10 WAIT", 13),
    "pong that nobody asked for, periodic": (PERIODIC, 10, 5, "3 pong, 10 PING", 15),
    "reply above idle": (IDLE, 2, 7, "2 PING, 4 WAIT, 8.9 WAIT, 9 DEAD", 9),
    "reply above idle, periodic: pings go on, the oldest one counts": (
        PERIODIC,
        2,
        7,
        "2 PING, 4 PING, 6 PING, 8 PING, 9 DEAD",
        9,
    ),
    "reply above idle, periodic, answered": (PERIODIC, 2, 7, "2 PING, 4 PING, 5 pong, 6 PING", 8),
    "reply equals idle": (PERIODIC, 5, 5, "5 PING, 10 DEAD", 10),
    "reply equals idle, answered": (PERIODIC, 5, 5, "5 PING, 6 pong, 10 PING", 15),
    "timer long overdue": (IDLE, 10, 5, "50 PING, 54 WAIT", 55),
    "timer long overdue, periodic: one ping, not five": (PERIODIC, 10, 20, "50 PING, 51 WAIT", 60),
    "receiving was off": (IDLE, 10, 5, "9 resumed, 10 WAIT", 19),
    "receiving was off, periodic": (PERIODIC, 10, 5, "9 resumed, 10 WAIT", 19),
    "receiving was off while a pong was due": (
        IDLE,
        10,
        5,
        "10 PING, 40 resumed, 40 WAIT, 50 PING",
        55,
    ),
    "the whole life": (
        IDLE,
        10,
        5,
        "8 data, 10 WAIT, 18 PING, 19 pong, 23 WAIT, 29 PING, 30 data, 33 pong, 43 PING, 48 DEAD",
        48,
    ),
}


@pytest.mark.parametrize("start", [0.0, 1000.0, -500.0])
@pytest.mark.parametrize("name", STORIES)
def test_story(name, start):
    """The clock's origin does not matter."""
    strategy, idle, reply, events, deadline = STORIES[name]
    scene = Scene(strategy, idle, reply, start)
    for step in events.split(", "):
        moment, event = step.split()
        now = start + float(moment)
        if event in PingAction.__members__:
            assert scene.timer(now) == PingAction[event], moment
        else:
            getattr(scene, event)(now)
    assert math.isclose(scene.policy.deadline, start + deadline)


@BOTH
def test_awaiting_pong(strategy):
    policy = AutoPing(strategy, 10, 5, 0)
    assert not policy.awaiting_pong
    policy.ping_sent(10)
    assert policy.awaiting_pong
    policy.ping_sent(12)  # a measurement's: the first one still sets the deadline
    assert policy.deadline == 15
    policy.pong_received(13)
    assert not policy.awaiting_pong
    policy.ping_sent(20)
    policy.resumed(21)
    assert not policy.awaiting_pong
    assert policy.deadline == 31


@BOTH
def test_a_ping_of_somebody_else_puts_ours_off(strategy):
    policy = AutoPing(strategy, 10, 100, 0)
    policy.ping_sent(8)
    assert policy.on_timer(10, 0) == WAIT
    policy.pong_received(11)
    assert policy.deadline == (21 if strategy == IDLE else 18)


# --- Against a model -----------------------------------------------------------------------------


class Model:
    """What the policy promises, said by looking back over everything that has happened."""

    def __init__(self, strategy, idle, reply):
        self.strategy, self.idle, self.reply = strategy, idle, reply
        self.events = [(0, "start")]

    def add(self, now, event):
        self.events.append((now, event))

    def last(self, *names):
        return max(moment for moment, event in self.events if event in names)

    def unanswered_since(self):
        """When the oldest ping was sent that nothing has answered or excused."""
        since = None
        for moment, event in self.events:
            if event == "ping" and since is None:
                since = moment
            elif event in ("pong", "resumed"):
                since = None
        return since

    def due(self, now):
        since = self.unanswered_since()
        if since is not None and now >= since + self.reply:
            return DEAD
        if self.strategy == IDLE:
            if since is not None:
                return WAIT
            silent_since = self.last("start", "ping", "pong", "data", "resumed")
        else:
            silent_since = self.last("start", "ping", "resumed")
        return PING if now >= silent_since + self.idle else WAIT


steps = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from(["timer", "timer", "deadline", "data", "pong", "resumed"]),
    ),
    max_size=40,
)


@BOTH
@settings(max_examples=400, database=None)
@given(idle=st.integers(1, 20), reply=st.integers(1, 20), steps=steps)
def test_agrees_with_the_model(strategy, idle, reply, steps):
    scene = Scene(strategy, idle, reply)
    model = Model(strategy, idle, reply)
    now = 0
    for delay, event in steps:
        now += delay
        if event == "deadline":
            now = max(now, scene.policy.deadline)
            event = "timer"
        if event != "timer":
            getattr(scene, event)(now)
            model.add(now, event)
            continue
        expected = model.due(now)
        assert scene.timer(now) == expected
        if expected == DEAD:
            return
        if expected == PING:
            model.add(now, "ping")
        assert scene.policy.awaiting_pong == (model.unanswered_since() is not None)


@BOTH
@settings(max_examples=400, database=None)
@given(idle=st.integers(1, 20), reply=st.integers(1, 20), steps=steps)
def test_deadline_is_neither_missed_nor_spun_on(strategy, idle, reply, steps):
    """Before the deadline nothing is due; at it, something is, or the next one lies ahead."""
    scene = Scene(strategy, idle, reply)
    model = Model(strategy, idle, reply)
    now = 0
    for delay, event in steps:
        deadline = scene.policy.deadline
        for moment in range(now, min(now + delay, deadline - 1) + 1):
            assert model.due(moment) == WAIT, moment
        now = max(now + delay, deadline) if event in ("timer", "deadline") else now + delay
        if event in ("timer", "deadline"):
            action = scene.timer(now)
            if action == DEAD:
                return
            if action == PING:
                model.add(now, "ping")
            assert scene.policy.deadline > now
        else:
            getattr(scene, event)(now)
            model.add(now, event)


@BOTH
@pytest.mark.parametrize(("idle", "reply"), [(10, 3), (3, 10), (5, 5)])
def test_a_dead_peer_is_noticed_in_bounded_time(strategy, idle, reply):
    """By nothing but timers at the deadlines, however late in its life the peer dies."""
    for dies_at in range(60):
        scene = Scene(strategy, idle, reply)
        now, pinged = 0, []
        while True:
            now = scene.policy.deadline
            action = scene.timer(now)
            if action == DEAD:
                break
            if action == PING:
                pinged.append(now)
                if now < dies_at:
                    scene.pong(now)
        assert now <= dies_at + idle + reply
        assert now - pinged[0] >= reply


# --- Round trips ---------------------------------------------------------------------------------


def test_a_pong_answers_its_ping():
    trips = RoundTrips(numbered=True)
    assert not trips.outstanding
    for _ in range(3):
        payload = trips.next_payload()
        assert len(payload) <= 125
        assert trips.outstanding
        assert trips.pong_received(payload)
        assert not trips.outstanding


def test_payloads_differ():
    trips = RoundTrips(numbered=True)
    assert len({trips.next_payload() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("given_up", [1, 2, 5])
def test_a_late_pong_is_told_from_the_answer(given_up):
    trips = RoundTrips(numbered=True)
    late = [trips.next_payload() for _ in range(given_up)]
    payload = trips.next_payload()
    for pong in late:
        assert not trips.pong_received(pong)
        assert trips.outstanding
    assert trips.pong_received(payload)
    assert not trips.outstanding


def test_an_answer_settles_the_pings_before_it():
    """A peer may answer only the newest of several PINGs (RFC 6455 5.5.3)."""
    trips = RoundTrips(numbered=True)
    late = trips.next_payload()
    payload = trips.next_payload()
    assert trips.pong_received(payload)
    assert not trips.outstanding
    assert not trips.pong_received(late)


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", bytes(7), bytes(8), bytes(9), b"\xff" * 8, (2).to_bytes(8, "big"), b"p" * 125],
)
def test_pongs_of_other_pings_do_not_count(payload):
    trips = RoundTrips(numbered=True)
    assert not trips.pong_received(payload)
    ours = trips.next_payload()
    assert not trips.pong_received(payload)
    assert trips.outstanding
    assert trips.pong_received(ours)
    assert not trips.pong_received(ours)  # once is enough


def test_unnumbered_pongs_come_in_order():
    trips = RoundTrips(numbered=False)
    assert not trips.pong_received(b"")
    trips.next_payload()
    assert trips.pong_received(b"anything")
    trips.next_payload()  # given up
    trips.next_payload()  # given up
    trips.next_payload()
    assert [trips.pong_received(b"") for _ in range(3)] == [False, False, True]
    assert not trips.outstanding
    assert not trips.pong_received(b"")


@settings(max_examples=400, database=None)
@given(
    st.lists(
        st.one_of(st.just("ping"), st.integers(0, 30), st.binary(min_size=7, max_size=9)),
        max_size=40,
    )
)
def test_numbered_round_trips_against_a_model(steps):
    """Pongs in any order, twice or never: the answer is the newest ping's, and comes once."""
    trips = RoundTrips(numbered=True)
    sent, answered = [], -1
    for step in steps:
        if step == "ping":
            sent.append(trips.next_payload())
            continue
        payload = sent[step] if isinstance(step, int) and step < len(sent) else step
        if isinstance(payload, int):
            continue
        number = sent.index(payload) if payload in sent else -1
        newest = number == len(sent) - 1 and number > answered
        assert trips.pong_received(payload) == newest
        answered = max(answered, number)
        assert trips.outstanding == (answered < len(sent) - 1)


# --- On a connection -----------------------------------------------------------------------------


async def test_unnumbered_measurement_does_not_take_the_answer_to_auto_ping():
    """Every measurement: what auto-ping still waits for is answered first."""
    asked, writers = [], []
    arrived = asyncio.Event()

    async def peer(reader, writer):
        writers.append(writer)
        while True:
            asked.append(await read_frame(reader))
            arrived.set()

    async def pings(count):
        while len(asked) < count:
            arrived.clear()
            await asyncio.wait_for(arrived.wait(), 20)

    async with raw_server(peer) as url:
        transport, _listener = await picows_fast.ws_connect(
            TextPings,
            url,
            enable_auto_ping=True,
            auto_ping_idle_timeout=0.05,
            auto_ping_reply_timeout=60,
        )
        for answered in range(2):
            await pings(2 * answered + 1)  # auto-ping's
            measuring = asyncio.create_task(transport.measure_roundtrip_time(1))
            await pings(2 * answered + 2)
            writers[0].write(server_frame(WSMsgType.TEXT, b"pong"))
            await asyncio.wait({measuring}, timeout=0.05)
            assert not measuring.done()
            writers[0].write(server_frame(WSMsgType.TEXT, b"pong"))
            assert len(await asyncio.wait_for(measuring, 20)) == 1
        transport.disconnect(graceful=False)
