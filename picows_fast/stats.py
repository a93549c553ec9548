"""What is counted of a connection, as it is told: immutable, with units in the names.

Owns the names. Counting is done in C: ``transport.counters`` has the counters of frames, ``core``
the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["FrameCount", "TrafficStats", "TransportStats"]


class FrameCount(NamedTuple):
    """How many frames, and the bytes of payload in them."""

    frames: int = 0
    """Number of frames."""
    payload_bytes: int = 0
    """Bytes, without the frames' headers."""


_NOTHING: Final = FrameCount()


@dataclass(frozen=True)
class TrafficStats:
    """The frames that went in one direction, by type (RFC 6455 5.2)."""

    continuation: FrameCount = _NOTHING
    """Fragments of a message but for the first."""
    text: FrameCount = _NOTHING
    """TEXT frames, first fragments among them."""
    binary: FrameCount = _NOTHING
    """BINARY frames, first fragments among them."""
    close: FrameCount = _NOTHING
    """CLOSE frames."""
    ping: FrameCount = _NOTHING
    """PING frames."""
    pong: FrameCount = _NOTHING
    """PONG frames."""

    @property
    def by_type(self) -> dict[str, FrameCount]:
        """The counts by name."""
        return {
            "continuation": self.continuation,
            "text": self.text,
            "binary": self.binary,
            "close": self.close,
            "ping": self.ping,
            "pong": self.pong,
        }

    @property
    def total(self) -> FrameCount:
        """The sum over all types."""
        counts = self.by_type.values()
        return FrameCount(
            sum(count.frames for count in counts), sum(count.payload_bytes for count in counts)
        )


@dataclass(frozen=True)
class TransportStats:
    """What happened on a connection so far, and what is now."""

    received: TrafficStats
    """Frames that came and broke no rule, whether they were given to the listener or not."""
    sent: TrafficStats
    """Frames that were sent, be it into the backlog."""
    messages_joined: int
    """Messages of several frames that ``layers.messages`` put together."""
    backlog_bytes: int
    """Now: bytes that were sent and that the operating system has not taken yet."""
    backlog_highest_bytes: int
    """The most that ``backlog_bytes`` has been after a frame was sent."""
    backlog_lost_bytes: int
    """Bytes that were sent by the application and that the operating system never took, counted
    when the connection ends without them. 0 does not say that everything arrived: what the system
    took may be lost on its way. Over TLS with its overhead, where the bytes were encrypted. Over a
    transport of the event loop's, a reset leaves no more to count than what waited before it."""
    reading_pauses: int
    """How often the connection stopped receiving, by ``pause_reading`` or for the queue of a layer.
    Pauses that overlap count once."""
    writing_pauses: int
    """How often the backlog went above ``write_high_watermark``."""
    pings_sent: int
    """Pings of auto-ping and of ``measure_roundtrip_time``, whatever they were sent as."""
    round_trip_ns: int | None
    """The last round trip of these pings that is certain, nanoseconds; None before the first. Pings
    that overlap tell none."""
    round_trip_smoothed_ns: int | None
    """The round trips smoothed: each new one counts for an eighth, as in RFC 6298 2.3."""
    connected_at_ns: int | None
    """When the opening handshake was done, Unix time in nanoseconds; None before."""
    last_received_at_ns: int | None
    """When bytes came last, Unix time in nanoseconds; None if it is not known. On TCP and Linux the
    operating system tells, to some milliseconds. Elsewhere, and once a connection over a transport
    of the loop's has ended, it is known with auto-ping only."""
    last_data_received_at_ns: int | None
    """When the last data frame (TEXT, BINARY, CONTINUATION: RFC 6455 5.6) came, Unix time in
    nanoseconds; PING and PONG do not count. A frame comes with the read that brings its end. None
    before the first, and without auto-ping."""
