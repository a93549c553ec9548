"""A WebSocket transport for asyncio: frames are parsed where they were received and handed to a
plain method.

The names below are the public API, together with what ``picows_fast.core`` offers to cimport.
"""

import sys as _sys

from ._version import __version__
from .attaching import attach
from .client.connect import connect, ws_connect
from .core import WSAutoPingStrategy, WSListener, WSTransport
from .exceptions import (
    WSConnectionClosedError,
    WSError,
    WSHandshakeError,
    WSInvalidHeaderError,
    WSInvalidMessageError,
    WSInvalidStatusError,
    WSInvalidUpgradeError,
    WSInvalidURL,
    WSPeerProtocolError,
    WSProtocolError,
    WSProxyError,
    WSViolation,
    is_transient,
)
from .loop import new_event_loop, run
from .options import ClientOptions, ServerOptions
from .protocol.codec import (
    FrameParser,
    WSCloseCode,
    WSCloseHandshake,
    WSCloseInfo,
    WSFrame,
    WSMsgType,
    build_close_payload,
    build_frame,
)
from .protocol.http.messages import (
    HandshakeLimits,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from .protocol.upgrade import ClientHandshake, Negotiated, ServerHandshake
from .protocol.url import WSParsedURL, parse_url
from .server.create import serve, ws_create_server
from .server.limits import ServerStats
from .server.server import Server
from .states import WSDisconnectCause, WSState
from .stats import FrameCount, TrafficStats, TransportStats
from .transport.sender import PICOWS_DEBUG_LL

# A free-threaded interpreter has turned the GIL on for the modules above, unless told not to.
if not getattr(_sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("picows_fast needs the GIL: run Python without PYTHON_GIL=0 and -X gil=0")

__all__ = [
    "PICOWS_DEBUG_LL",
    "ClientHandshake",
    "ClientOptions",
    "FrameCount",
    "FrameParser",
    "HandshakeLimits",
    "Negotiated",
    "Server",
    "ServerHandshake",
    "ServerOptions",
    "ServerStats",
    "TrafficStats",
    "TransportStats",
    "WSAutoPingStrategy",
    "WSCloseCode",
    "WSCloseHandshake",
    "WSCloseInfo",
    "WSConnectionClosedError",
    "WSDisconnectCause",
    "WSError",
    "WSFrame",
    "WSHandshakeError",
    "WSInvalidHeaderError",
    "WSInvalidMessageError",
    "WSInvalidStatusError",
    "WSInvalidURL",
    "WSInvalidUpgradeError",
    "WSListener",
    "WSMsgType",
    "WSParsedURL",
    "WSPeerProtocolError",
    "WSProtocolError",
    "WSProxyError",
    "WSState",
    "WSTransport",
    "WSUpgradeRequest",
    "WSUpgradeResponse",
    "WSUpgradeResponseWithListener",
    "WSViolation",
    "__version__",
    "attach",
    "build_close_payload",
    "build_frame",
    "connect",
    "is_transient",
    "new_event_loop",
    "parse_url",
    "run",
    "serve",
    "ws_connect",
    "ws_create_server",
]
