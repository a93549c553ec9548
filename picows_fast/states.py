"""The states of a connection, what leads from one to the next, and why a connection ended.

Tables only: ``core`` follows them, the documentation's diagram is made from them.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["TRANSITIONS", "NamedIntEnum", "WSDisconnectCause", "WSState"]

# The presentation types of an int's format specification; any other specification is for the name.
_INT_PRESENTATIONS = "bcdeEfFgGnoxX%"


class NamedIntEnum(IntEnum):
    """An IntEnum whose ``str()`` and ``format()`` give the member's name, on every Python.

    ``%d`` and format specifications of an int, such as ``:d``, give the value.
    """

    def __str__(self) -> str:
        return self.name

    def __format__(self, format_spec: str) -> str:
        if format_spec and format_spec[-1] in _INT_PRESENTATIONS:
            return int.__format__(self, format_spec)
        return format(self.name, format_spec)


class WSState(NamedIntEnum):
    """The state of a connection, ``WSTransport.state`` (RFC 6455 4.1, 7.1.3, 7.1.4)."""

    CONNECTING = 0
    """The opening handshake is under way; nothing can be sent."""
    OPEN = 1
    """Frames go both ways."""
    CLOSING = 2
    """A CLOSE was sent or received, or the stream is being ended; a deadline runs."""
    CLOSED = 3
    """The connection is gone and ``on_ws_disconnected`` was called."""


#: (state, what happens, next state)
TRANSITIONS: tuple[tuple[WSState, str, WSState], ...] = (
    (WSState.CONNECTING, "opening handshake succeeds", WSState.OPEN),
    (WSState.CONNECTING, "handshake refused: the response is sent", WSState.CLOSING),
    (WSState.CONNECTING, "peer gone, deadline, abort", WSState.CLOSED),
    (WSState.OPEN, "send_close(), disconnect()", WSState.CLOSING),
    (WSState.OPEN, "CLOSE received", WSState.CLOSING),
    (WSState.OPEN, "protocol error, callback error, ping timeout", WSState.CLOSING),
    (WSState.OPEN, "peer ends the stream", WSState.CLOSING),
    (WSState.OPEN, "disconnect(graceful=False), backlog limit, reset", WSState.CLOSED),
    (WSState.CLOSING, "the stream has ended on both sides", WSState.CLOSED),
    (WSState.CLOSING, "close_timeout", WSState.CLOSED),
)


class WSDisconnectCause(NamedIntEnum):
    """What ended a connection: the first of these that happened,
    ``WSTransport.disconnect_cause``."""

    CLOSE_FRAME = 1
    """The peer sent CLOSE first; ``close_handshake`` has the codes (RFC 6455 7.1.5)."""
    LOCAL_DISCONNECT = 2
    """``disconnect()`` was called, or ``underlying_transport.close()``."""
    LOCAL_ABORT = 3
    """``disconnect(graceful=False)`` was called, or ``underlying_transport.abort()``."""
    CALLBACK_ERROR = 4
    """A listener's method raised; ``disconnect_exception`` is what."""
    PROTOCOL_ERROR = 5
    """The peer violated RFC 6455; ``disconnect_exception`` says how."""
    PING_TIMEOUT = 6
    """No answer came in ``auto_ping_reply_timeout``, or a pause exceeded ``max_reading_pause``."""
    CLOSE_TIMEOUT = 7
    """We sent CLOSE, and no CLOSE came back within ``close_timeout``."""
    WRITE_BACKLOG = 8
    """More than ``max_write_backlog`` bytes waited for a peer that does not read."""
    PEER_FIN = 9
    """The peer ended the TCP stream without CLOSE (1006 in RFC 6455's terms)."""
    PEER_RESET = 10
    """The connection was reset (RST)."""
    NETWORK_ERROR = 11
    """The operating system gave up on the connection; ``disconnect_exception`` is its error."""
    TLS_CLOSE_NOTIFY = 12
    """The peer ended TLS in order, but without CLOSE."""
    TLS_TRUNCATED = 13
    """The TCP stream ended without TLS close_notify: data may have been cut off (RFC 8446 6.1)."""
    TLS_ERROR = 14
    """TLS failed; ``disconnect_exception`` is the :class:`ssl.SSLError`."""
    HANDSHAKE_FAILED = 15
    """The opening handshake was refused or failed."""
    HANDSHAKE_TIMEOUT = 16
    """The opening handshake was not finished in time."""
    INTERNAL_ERROR = 17
    """Our side failed, for lack of memory, say; ``disconnect_exception`` is why."""
    LOCAL_CLOSE = 18
    """We sent CLOSE first, and the peer answered it; ``close_handshake`` has the codes."""
    LOCAL_REFUSAL = 19
    """A listener's method raised WSProtocolError to refuse (RFC 6455 7.1.7)."""
