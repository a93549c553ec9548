"""The client side that `connect` and `record` share: options, connecting, messages."""

from __future__ import annotations

import argparse
import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from picows_fast import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSInvalidURL,
    WSMsgType,
    WSTransport,
    ws_connect,
)
from picows_fast.layers.messages import WSMessageListener

from .connection import CLOSE_TIMEOUT, WritableListener
from .runtime import CommandError

# Bytes. Above what any market data feed sends, below what would hurt this machine.
MAX_MESSAGE_SIZE = 64 * 1024 * 1024

_CLEAN_CODES = (WSCloseCode.NO_INFO, WSCloseCode.OK, WSCloseCode.GOING_AWAY)


class MessageListener(WritableListener, WSMessageListener):
    """Tells text from binary messages and follows the backpressure.

    Subclasses override `on_text` and `on_binary`. An OSError that these raise is a fault of this
    side's output, not of the connection: it is kept in `fault`, and the connection closed.
    """

    def __init__(self) -> None:
        super().__init__(max_message_size=MAX_MESSAGE_SIZE)
        self.fault: OSError | None = None

    def on_text(self, text: str) -> None:
        """A TEXT message has come."""

    def on_binary(self, payload: bytes) -> None:
        """A BINARY message has come."""

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        if self.fault is not None:
            return
        try:
            if msg_type == WSMsgType.BINARY:
                self.on_binary(payload.get_payload_as_bytes())
            else:
                self.on_text(payload.get_payload_as_utf8_text())
        except OSError as error:
            self.fail(transport, error)

    def fail(self, transport: WSTransport, error: OSError) -> None:
        """This side's output does not work: close, and let `wait_end` tell."""
        if self.fault is None:
            self.fault = error
            transport.send_close(WSCloseCode.GOING_AWAY)
            transport.disconnect()


def describe_end(transport: WSTransport) -> tuple[str, bool]:
    """How the peer ended the connection, in words, and whether that was a clean end."""
    handshake = transport.close_handshake
    received = handshake.recv if handshake is not None else None
    if received is None:
        text = "connection lost without a CLOSE frame"
        if transport.disconnect_cause is not None:
            text += f": {transport.disconnect_cause.name.lower().replace('_', ' ')}"
        return text, False
    code = int(received.code)
    text = f"closed by the peer, code {code}" if code else "closed by the peer, without a code"
    if received.reason:
        text += f" ({printable(received.reason)})"
    return text, code in _CLEAN_CODES


def printable(text: str) -> str:
    """The text with control characters spelled out: a peer does not get to drive the terminal."""
    return "".join(
        char if char.isprintable() or char in "\t\n" else ascii(char)[1:-1] for char in text
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"a header is 'Name: value', got {text!r}")
    return name.strip(), value.strip()


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Where and how to connect; `open_connection` reads the result."""
    parser.add_argument("url", metavar="URL", help="ws://host:port/path or wss://host/path")
    group = parser.add_argument_group("connecting")
    group.add_argument(
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        dest="headers",
        type=_header,
        action="append",
        default=[],
        help="add a header to the opening handshake; may be repeated",
    )
    group.add_argument(
        "--subprotocol",
        metavar="NAME",
        dest="subprotocols",
        action="append",
        help="offer a subprotocol to the server; may be repeated, the preferred one first",
    )
    group.add_argument(
        "--proxy",
        metavar="URL",
        help="connect through a proxy: http://, https://, socks4:// or socks5://[user:pass@]host:port",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="wss: accept any certificate. For tests only: anybody on the way can read along",
    )


_Listener = TypeVar("_Listener", bound=MessageListener)


async def open_connection(
    args: argparse.Namespace, listener_factory: Callable[[], _Listener], **options: Any
) -> tuple[WSTransport, _Listener]:
    """Connect as the command line says; CommandError in one line if that fails."""
    ssl_context = None
    if args.insecure:
        ssl_context = ssl.create_default_context()
        ssl_context.check_hostname = False
        ssl_context.verify_mode = ssl.CERT_NONE
    try:
        connected = await ws_connect(
            listener_factory,
            args.url,
            ssl_context=ssl_context,
            extra_headers=args.headers,
            subprotocols=args.subprotocols,
            proxy=args.proxy,
            enable_auto_close=True,
            close_timeout=CLOSE_TIMEOUT,
            **options,
        )
    except WSInvalidURL as error:
        raise CommandError(str(error), 2) from error
    except (asyncio.TimeoutError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise CommandError(f"{_shown(args.url)}: {reason}") from error
    except (OSError, WSError) as error:
        # Before ValueError: a certificate that is not trusted is both.
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandError(f"{_shown(args.url)}: {reason}") from error
    except (ValueError, ImportError) as error:
        # An argument that only the library can judge, or a proxy without python-socks.
        raise CommandError(str(error), 2) from error
    return connected


async def wait_end(transport: WSTransport, listener: MessageListener) -> None:
    """Wait until the connection has ended; CommandError if that was a fault on this side of it.

    BrokenPipeError means that nobody reads the command's output any more.
    """
    try:
        await transport.wait_disconnected()
    except (WSError, OSError) as error:
        raise CommandError(str(error)) from error
    if isinstance(listener.fault, BrokenPipeError):
        raise listener.fault
    if listener.fault is not None:
        raise CommandError(str(listener.fault)) from listener.fault


async def close(transport: WSTransport) -> None:
    """Close with 1000 and wait for the end. Cancelled meanwhile, it drops the connection."""
    try:
        transport.send_close(WSCloseCode.OK)
        await transport.wait_disconnected()
    except asyncio.CancelledError:
        transport.disconnect(graceful=False)
        raise
    except (WSError, OSError):
        # The connection is over either way; what ended the command has been reported.
        pass


def _shown(url: str) -> str:
    """The URL without user name and password: error lines end up in logs."""
    return re.sub(r"//[^/?#]*@", "//", url)
