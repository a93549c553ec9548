"""When to ping and when to give up: auto-ping's policy and the book-keeping of round-trip
measurements.

Sans-IO: the clock is passed in (seconds, any monotonic origin), pings are sent and timers set by
the caller.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = ["AutoPing", "PingAction", "RoundTrips"]

# The value of WSAutoPingStrategy, which this module may not import.
_PING_WHEN_IDLE: Final = 1


class PingAction(IntEnum):
    """What is due when the timer fires."""

    WAIT = 0
    PING = 1
    DEAD = 2


class AutoPing:
    """Auto-ping of one connection.

    :param strategy: a ``WSAutoPingStrategy``
    :param idle_timeout: seconds of silence before a ping (PING_WHEN_IDLE), or between pings
    :param reply_timeout: seconds within which a pong must come; may exceed ``idle_timeout``
    :param now: when it begins, seconds
    """

    __slots__ = ("_idle_timeout", "_next_ping", "_reply_deadline", "_reply_timeout", "_when_idle")

    def __init__(
        self, strategy: int, idle_timeout: float, reply_timeout: float, now: float
    ) -> None:
        self._when_idle = strategy == _PING_WHEN_IDLE
        self._idle_timeout = idle_timeout
        self._reply_timeout = reply_timeout
        self._next_ping = now + idle_timeout
        self._reply_deadline: float | None = None

    @property
    def awaiting_pong(self) -> bool:
        """Whether a ping has not been answered yet."""
        return self._reply_deadline is not None

    @property
    def deadline(self) -> float:
        """When ``on_timer`` is due, in seconds of the clock that is passed in."""
        if self._reply_deadline is None:
            return self._next_ping
        if self._when_idle:
            return self._reply_deadline
        return min(self._next_ping, self._reply_deadline)

    def ping_sent(self, now: float) -> None:
        """A ping was sent. The oldest unanswered one sets the deadline for the pong."""
        self._next_ping = now + self._idle_timeout
        if self._reply_deadline is None:
            self._reply_deadline = now + self._reply_timeout

    def pong_received(self, now: float) -> None:
        """The peer answered; it is alive."""
        self._reply_deadline = None
        if self._when_idle:
            self._next_ping = now + self._idle_timeout

    def resumed(self, now: float) -> None:
        """Receiving was off until now: start anew, as silence said nothing about the peer."""
        self._reply_deadline = None
        self._next_ping = now + self._idle_timeout

    def on_timer(self, now: float, last_received: float) -> PingAction:
        """Return what is due. After PING the caller reports ``ping_sent``.

        :param last_received: when bytes last came from the peer, seconds
        """
        if self._reply_deadline is not None:
            if now >= self._reply_deadline:
                return PingAction.DEAD
            if self._when_idle:
                return PingAction.WAIT
        elif self._when_idle:
            self._next_ping = max(self._next_ping, last_received + self._idle_timeout)
        return PingAction.PING if now >= self._next_ping else PingAction.WAIT


class RoundTrips:
    """Which pong answers which measuring ping, however many were given up before.

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
    def outstanding(self) -> bool:
        """Whether a pong is still to come, wanted or not."""
        return self._unanswered > 0

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
