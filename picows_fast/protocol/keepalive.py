"""When to ping and when to give up: auto-ping's policy and the book-keeping of round-trip
measurements.

Sans-IO: the clock is passed in (seconds, any monotonic origin), pings are sent and timers set by
the caller.
"""

from __future__ import annotations

import math
from collections import deque
from enum import IntEnum
from typing import Final

__all__ = ["AutoPing", "PingAction", "RoundTrips"]

# The value of WSAutoPingStrategy, which this module may not import.
_PING_WHEN_IDLE: Final = 1

# Pings that can be remembered while reading is paused, where their pongs lie.
_MOST_UNANSWERED: Final = 4096


class PingAction(IntEnum):
    """What is due when the timer fires."""

    WAIT = 0
    PING = 1
    DEAD = 2


class AutoPing:
    """Auto-ping of one connection.

    PING_WHEN_IDLE asks a silent peer for a sign of life, and every byte is one. PING_PERIODICALLY
    is strict: only a pong is an answer. Time in which the application has paused reading counts
    neither as silence nor as time to answer in, and does not put a periodic ping off.

    :param strategy: a ``WSAutoPingStrategy``
    :param idle_timeout: seconds of silence before a ping (PING_WHEN_IDLE), or between pings
    :param reply_timeout: seconds within which the answer must come; may exceed ``idle_timeout``
    :param now: when it begins, seconds
    :param max_pause: seconds of one pause behind which the peer counts as dead
    """

    __slots__ = (
        "_asked_at",
        "_idle_timeout",
        "_is_in_doubt",
        "_max_pause",
        "_measured_since",
        "_next_ping",
        "_paused_at",
        "_reply_deadline",
        "_reply_timeout",
        "_unanswered",
        "_when_idle",
    )

    def __init__(
        self,
        strategy: int,
        idle_timeout: float,
        reply_timeout: float,
        now: float,
        max_pause: float = math.inf,
    ) -> None:
        self._when_idle = strategy == _PING_WHEN_IDLE
        self._idle_timeout = idle_timeout
        self._reply_timeout = reply_timeout
        self._max_pause = max_pause
        self._next_ping = now + idle_timeout
        # When a ping was sent that the peer has to react to, and by when it has to.
        self._asked_at = now
        self._reply_deadline: float | None = None
        self._paused_at: float | None = None
        # When each ping was sent that has had no pong, and the one whose pong tells a round trip.
        self._unanswered: deque[float] = deque(maxlen=_MOST_UNANSWERED)
        self._measured_since: float | None = None
        self._is_in_doubt = False

    @property
    def is_in_doubt(self) -> bool:
        """Whether a pong came of which nobody knows which ping it answers. The next ping should
        tell itself from those before."""
        return self._is_in_doubt

    @property
    def unanswered(self) -> int:
        """How many pings have had no pong yet, whatever else came from the peer."""
        return len(self._unanswered)

    @property
    def deadline(self) -> float:
        """When ``on_timer`` is due, in seconds of the clock that is passed in; infinite if not
        before ``resumed``."""
        if self._paused_at is not None:
            end = self._paused_at + self._max_pause
            return end if self._when_idle else min(end, self._next_ping)
        if self._reply_deadline is None:
            return self._next_ping
        return min(self._next_ping, self._reply_deadline)

    def ping_sent(self, now: float) -> None:
        """A ping was sent. The oldest one without an answer sets the deadline for it."""
        self._next_ping = now + self._idle_timeout
        # Of several that are on their way, no pong tells which it is for.
        alone = not self._unanswered and self._paused_at is None
        self._measured_since = now if alone else None
        self._unanswered.append(now)
        if self._reply_deadline is None:
            self._asked_at = now
            self._reply_deadline = now + self._reply_timeout

    def put_off(self, now: float) -> None:
        """A ping was due and not sent: the next one is due as if it had been."""
        self._next_ping = now + self._idle_timeout

    def pong_received(self, now: float, answers_newest: bool = False) -> float | None:
        """The peer answered; it is alive. Return the seconds that the round trip took, None if
        they are not certain.

        :param answers_newest: the pong tells that it answers the ping that was sent last
        """
        self._reply_deadline = None
        if self._when_idle:
            self._next_ping = now + self._idle_timeout
        measured_since, self._measured_since = self._measured_since, None
        unanswered = self._unanswered
        if answers_newest:
            unanswered.clear()
        elif unanswered:
            unanswered.popleft()
        # A peer may answer only the newest of several PINGs (RFC 6455 5.5.3): it has passed over
        # those that it had time enough for.
        while unanswered and unanswered[0] < now - self._reply_timeout:
            unanswered.popleft()
        self._is_in_doubt = bool(unanswered)
        return None if measured_since is None else now - measured_since

    def extend(self, now: float) -> None:
        """The pong may still come: it was not looked for in time. It is due anew."""
        self._reply_deadline = now + self._reply_timeout

    def paused(self, now: float) -> None:
        """From now on nothing is received."""
        if self._paused_at is None:
            self._paused_at = now
            self._measured_since = None  # the pong may lie unread

    def resumed(self, now: float, last_received: float) -> None:
        """Receiving was off since ``paused``. Does nothing without that.

        :param last_received: when bytes last came from the peer, seconds
        """
        paused_at = self._paused_at
        if paused_at is None:
            return
        self._note_received(last_received)
        self._paused_at = None
        if self._reply_deadline is not None:
            self._reply_deadline += now - max(paused_at, self._asked_at)
        if self._when_idle:
            self._next_ping += now - paused_at
        for i, sent in enumerate(self._unanswered):
            self._unanswered[i] = sent + now - max(paused_at, sent)

    def on_timer(self, now: float, last_received: float) -> PingAction:
        """Return what is due. After PING the caller reports ``ping_sent`` or ``put_off``.

        :param last_received: when bytes last came from the peer, seconds
        """
        self._note_received(last_received)
        is_paused = self._paused_at is not None
        if self._paused_at is not None and now >= self._paused_at + self._max_pause:
            return PingAction.DEAD
        if self._reply_deadline is not None and not is_paused and now >= self._reply_deadline:
            return PingAction.DEAD
        if is_paused and self._when_idle:
            return PingAction.WAIT
        if now < self._next_ping:
            return PingAction.WAIT
        if self._when_idle and self._reply_deadline is not None:
            self._next_ping = now + self._idle_timeout  # to look again whether bytes have come
            return PingAction.WAIT
        return PingAction.PING

    def _note_received(self, last_received: float) -> None:
        """PING_WHEN_IDLE: any byte ends the silence."""
        if not self._when_idle:
            return
        if self._reply_deadline is None:
            self._next_ping = max(self._next_ping, last_received + self._idle_timeout)
        elif last_received > self._asked_at:
            self._reply_deadline = None
            self._next_ping = last_received + self._idle_timeout


class RoundTrips:
    """Which pong answers which measuring ping, or auto-ping's that overlap, however many were given
    up before.

    A PING frame carries a number, which its PONG echoes (RFC 6455 5.5.3), so an answer is told from
    a late one. A ping of the user's own making carries none: each is taken to be answered once, in
    order.

    :param numbered: whether the measuring pings are PING frames that carry `next_payload`
    """

    __slots__ = ("_numbered", "_sent", "_unanswered")

    def __init__(self, numbered: bool) -> None:
        self._numbered = numbered
        self._sent = 0
        self._unanswered = 0

    @property
    def is_numbered(self) -> bool:
        """Whether a pong tells which ping it answers."""
        return self._numbered

    @property
    def outstanding(self) -> bool:
        """Whether a pong is still to come, wanted or not."""
        return self._unanswered > 0

    @property
    def unanswered(self) -> int:
        """How many pongs are still to come, wanted or not."""
        return self._unanswered

    def next_payload(self) -> bytes:
        """A measuring ping is being sent: return the payload for a PING frame."""
        self._sent += 1
        self._unanswered += 1
        return self._sent.to_bytes(8, "big")

    def is_awaited(self, payload: bytes) -> bool:
        """Return whether this pong answers any measuring ping."""
        if not self._numbered:
            return self._unanswered > 0
        number = int.from_bytes(payload, "big") if len(payload) == 8 else 0
        return self._sent - self._unanswered < number <= self._sent

    def pong_received(self, payload: bytes) -> bool:
        """Return whether this pong answers the newest measuring ping; earlier ones count as
        answered with it."""
        if not self.is_awaited(payload):
            return False
        if self._numbered:
            self._unanswered = self._sent - int.from_bytes(payload, "big")
        else:
            self._unanswered -= 1
        return self._unanswered == 0
