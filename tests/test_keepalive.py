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
from picows_fast.protocol.keepalive import AutoPing, PingAction, RoundTrips

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

    def paused(self, now):
        self.policy.paused(now)

    def resumed(self, now):
        self.policy.resumed(now, self.last_received)


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
    "data is a sign of life": (IDLE, 10, 5, "10 PING, 14 data, 15 WAIT, 24 PING, 29 DEAD", 29),
    "data before the ping is not": (IDLE, 10, 5, "2 data, 10 WAIT, 12 PING, 17 DEAD", 17),
    "a pong behind data": (IDLE, 10, 5, "10 PING, 14 data, 15 WAIT, 20 pong, 24 WAIT, 30 PING", 35),
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
    "a pause is no silence": (IDLE, 10, 5, "9 paused, 29 WAIT, 40 resumed, 40 WAIT, 41 PING", 46),
    "silence before and after a pause": (
        IDLE,
        10,
        5,
        "4 data, 6 paused, 40 resumed, 47 WAIT, 48 PING, 53 DEAD",
        53,
    ),
    "a pause while a pong is due": (
        IDLE,
        10,
        5,
        "10 PING, 12 paused, 40 WAIT, 40 resumed, 42.9 WAIT, 43 DEAD",
        43,
    ),
    "a pause behind data": (IDLE, 10, 5, "10 PING, 11 data, 12 paused, 32 resumed, 41 PING", 46),
    "many short pauses": (
        IDLE,
        10,
        5,
        "4 paused, 5 resumed, 9 paused, 10 resumed, 11 WAIT, 12 PING, 13 paused, 14 resumed, "
        "18 DEAD",
        18,
    ),
    "a pause does not put a periodic ping off": (
        PERIODIC,
        10,
        5,
        "9 paused, 10 PING, 12 resumed, 16.9 WAIT, 17 DEAD",
        17,
    ),
    "periodic pings go on in a long pause": (
        PERIODIC,
        10,
        5,
        "9 paused, 10 PING, 20 PING, 30 PING, 35 resumed, 39.9 WAIT, 40 DEAD",
        40,
    ),
    "a pause while a periodic ping's pong is due": (
        PERIODIC,
        10,
        5,
        "10 PING, 12 paused, 15 WAIT, 16 resumed, 18 WAIT, 19 DEAD",
        19,
    ),
    "resumed without a pause": (IDLE, 10, 5, "9 resumed, 10 PING", 15),
    "paused twice": (IDLE, 10, 5, "2 paused, 4 paused, 6 resumed, 13 WAIT, 14 PING", 19),
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
def test_unanswered_pings(strategy):
    policy = AutoPing(strategy, 10, 5, 0)
    assert policy.unanswered == 0
    policy.ping_sent(10)
    policy.ping_sent(12)  # a measurement's: the first one still sets the deadline
    assert policy.unanswered == 2
    assert policy.deadline == 15
    policy.pong_received(13)
    assert policy.unanswered == 1  # its pong is still to come
    policy.pong_received(13.5)
    policy.pong_received(14)  # unasked
    assert policy.unanswered == 0


def test_pings_that_the_peer_passed_over_are_forgotten():
    """It may answer only the newest of several (RFC 6455 5.5.3)."""
    policy = AutoPing(PERIODIC, 2, 7, 0)
    for now in (2, 4, 6):
        policy.ping_sent(now)
    assert not policy.is_in_doubt
    policy.pong_received(8)
    assert policy.unanswered == 2  # these can still be answered in time
    assert policy.is_in_doubt
    policy.ping_sent(12)
    policy.pong_received(13.5)
    assert policy.unanswered == 1
    policy.ping_sent(20)
    policy.pong_received(21)
    assert policy.unanswered == 1
    policy.pong_received(22, answers_newest=True)
    assert not policy.is_in_doubt
    policy.ping_sent(30)
    policy.ping_sent(32)
    assert policy.pong_received(33, answers_newest=True) is None
    assert policy.unanswered == 0
    policy.ping_sent(34)
    assert policy.pong_received(34.5) == 0.5


def test_pongs_that_lie_unread_in_a_pause_are_waited_for():
    policy = AutoPing(PERIODIC, 2, 1, 0)
    policy.paused(1)
    for now in range(2, 30, 2):
        assert policy.on_timer(now, 0) == PING
        policy.ping_sent(now)
    policy.resumed(30, 0)
    for left in range(14, 0, -1):
        assert policy.unanswered == left
        policy.pong_received(30)
    assert policy.unanswered == 0


#: What happens, "=" before the seconds of the round trip that the pong behind it tells.
@pytest.mark.parametrize(
    ("events", "trips"),
    [
        ("1 ping, 1.5 pong", [0.5]),
        ("1 ping, 1.5 pong, 3 ping, 3.25 pong", [0.5, 0.25]),
        ("1 ping, 1.5 pong, 2 pong", [0.5, None]),
        ("1 ping, 2 ping, 2.5 pong, 3 ping, 3.5 pong, 4 ping, 4.5 pong", [None, None, None]),
        ("1 ping, 2 ping, 2.5 pong, 2.7 pong, 3 ping, 3.5 pong", [None, None, 0.5]),
        ("1 ping, 2 paused, 3 resumed, 3.5 pong", [None]),
        ("1 paused, 2 ping, 3 resumed, 3.5 pong, 4 ping, 4.5 pong", [None, 0.5]),
    ],
)
def test_round_trips_are_certain_or_not_told(events, trips):
    policy = AutoPing(PERIODIC, 1, 50, 0)
    found = []
    for step in events.split(", "):
        now, event = float(step.split()[0]), step.split()[1]
        if event == "ping":
            policy.ping_sent(now)
        elif event == "pong":
            found.append(policy.pong_received(now))
        elif event == "paused":
            policy.paused(now)
        else:
            policy.resumed(now, 0)
    assert found == trips


@BOTH
def test_an_answer_that_was_looked_for_late_is_due_anew(strategy):
    policy = AutoPing(strategy, 10, 5, 0)
    policy.ping_sent(10)
    assert policy.on_timer(17, 0) == DEAD
    policy.extend(17)
    assert policy.on_timer(21, 0) != DEAD
    assert policy.on_timer(22, 0) == DEAD


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

    def pauses(self, now):
        """(begin, end) of each; the last may go on."""
        begin = None
        for moment, event in [*self.events, (now, "resumed")]:
            if event == "paused" and begin is None:
                begin = moment
            elif event == "resumed" and begin is not None:
                yield begin, moment
                begin = None

    def is_paused(self):
        return [event for _, event in self.events if event in ("paused", "resumed")][-1:] == [
            "paused"
        ]

    def reading(self, since, now):
        """Seconds in which bytes could be received."""
        return now - since - sum(max(0, end - max(begin, since)) for begin, end in self.pauses(now))

    def asked_since(self):
        """When the oldest ping was sent that nothing has answered."""
        since = None
        for moment, event in self.events:
            if event == "ping" and since is None:
                since = moment
            elif event == "pong" or (
                event == "data" and self.strategy == IDLE and since is not None and moment > since
            ):
                since = None
        return since

    def due(self, now):
        since = self.asked_since()
        if since is not None and not self.is_paused() and self.reading(since, now) >= self.reply:
            return DEAD
        if self.strategy == PERIODIC:
            return PING if now >= self.last("start", "ping") + self.idle else WAIT
        if since is not None or self.is_paused():
            return WAIT
        silence = self.reading(self.last("start", "ping", "pong", "data"), now)
        return PING if silence >= self.idle else WAIT


steps = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from(["timer", "timer", "deadline", "data", "pong", "paused", "resumed"]),
    ),
    max_size=40,
)


def tell(scene, model, event, now):
    """Nothing comes while reading is paused."""
    if not (model.is_paused() and event in ("data", "pong")):
        getattr(scene, event)(now)
        model.add(now, event)


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
            if scene.policy.deadline != math.inf:
                now = max(now, scene.policy.deadline)
            event = "timer"
        if event != "timer":
            tell(scene, model, event, now)
            continue
        expected = model.due(now)
        assert scene.timer(now) == expected
        if expected == DEAD:
            return
        if expected == PING:
            model.add(now, "ping")


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
        for moment in range(now, int(min(now + delay, deadline - 1)) + 1):
            assert model.due(moment) == WAIT, moment
        if event not in ("timer", "deadline"):
            now += delay
            tell(scene, model, event, now)
        elif deadline != math.inf:
            now = max(now + delay, deadline)
            action = scene.timer(now)
            if action == DEAD:
                return
            if action == PING:
                model.add(now, "ping")
            assert scene.policy.deadline > now


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


@pytest.mark.parametrize("strategy", [1, 2])
def test_one_pause_is_bounded(strategy):
    policy = AutoPing(strategy, 10, 10, 0.0, 50.0)
    policy.paused(5.0)
    policy.resumed(50.0, 50.0)
    policy.paused(54.0)
    assert policy.deadline <= 104.0
    assert policy.on_timer(103.9, 50.0) != PingAction.DEAD
    assert policy.on_timer(104.0, 50.0) == PingAction.DEAD
