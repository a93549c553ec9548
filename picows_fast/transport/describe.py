"""What the log says of a connection: how it is named, how it began, and how it ended.

Owns the wording. Whoever runs the connection decides when something is told, and on which level.

No line has a secret. Of a URL there are scheme, host and port: venues put listen keys and API keys
into the path, tokens into the query. Headers and their values are never told. What the peer chose,
such as a close reason, is escaped, and no longer than RFC 6455 allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exceptions import close_text
from ..states import WSDisconnectCause

if TYPE_CHECKING:
    from ..protocol.codec import WSCloseHandshake
    from ..protocol.url import WSParsedURL

# Of the text of an error, which may quote what the peer has sent.
_MAX_ERROR_LENGTH = 300


def server_text(url: WSParsedURL) -> str:
    """The server that a client's connection leads to."""
    return f"{url.scheme}://{url.host_header}"


def peer_text(peername: Any) -> str:
    """The client that a server's connection comes from, given what the socket says of it."""
    if isinstance(peername, tuple) and len(peername) >= 2:
        host, port = peername[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(peername, bytes):  # an abstract Unix address
        peername = peername.decode("utf-8", "backslashreplace")
    return f"unix:{peername}" if isinstance(peername, str) else "unknown peer"


def opening_text(subprotocol: str | None, configured: Any) -> str:
    """That the opening handshake succeeded.

    The subprotocol is told if it is one of the server's own: clients send tokens as subprotocols.
    """
    if subprotocol is not None and configured is not None and subprotocol in configured:
        return f"opened, subprotocol {subprotocol}"
    return "opened"


def error_text(error: object) -> str:
    """The text of an error, on one line; of one that cannot say it, the type."""
    try:
        text = str(error)
    except Exception:
        return type(error).__name__
    if len(text) > _MAX_ERROR_LENGTH:
        text = text[:_MAX_ERROR_LENGTH] + "..."
    if not text.isprintable():
        text = repr(text)
    return text


def ending_text(
    cause: WSDisconnectCause,
    error: BaseException | None,
    close_handshake: WSCloseHandshake | None,
    lifetime: float,
    backlog_lost: int,
) -> str:
    """How an opened connection ended; `lifetime` in seconds, `backlog_lost` in bytes."""
    parts = [f"ended after {lifetime:.3f} s: {cause}"]
    if error is not None:
        name = type(error).__name__
        # What a callback raised may have any text, and was told with its traceback.
        is_told = cause == WSDisconnectCause.CALLBACK_ERROR
        parts.append(name if is_told else f"{name}: {error_text(error)}")
    if close_handshake is not None:
        if close_handshake.recv is not None:
            parts.append(close_text(close_handshake.recv.code, close_handshake.recv.reason))
        if close_handshake.sent is not None:
            code = int(close_handshake.sent.code)
            parts.append(f"CLOSE {code} sent" if code else "CLOSE sent")
    if backlog_lost:
        parts.append(f"{backlog_lost} bytes were not sent")
    return ", ".join(parts)
