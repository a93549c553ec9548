"""The libraries under test, each behind the same few calls.

`callbacks` is for picows_fast and picows, whose API is the same; `streams` for those whose users
await messages; `bare` for none, to see what the event loop takes. Imported in worker processes
only; `peer` is how they get one.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from ..measuring import UnavailableError

CALLBACKS = ("picows_fast", "picows")
STREAMS = ("picows.websockets", "websockets", "aiohttp")
REFERENCE = "C"
BARE = "bare callback"


class Server(Protocol):
    """A running server."""

    port: int

    def connections(self) -> int:
        """How many are open."""

    def clogged(self) -> bool:
        """A client does not keep up: to send more would measure queues."""

    async def send_to_all(self, message: bytes, count: int) -> None:
        """Send a message `count` times to every client."""


class Peer(Protocol):
    """A library."""

    async def serve(self, tls: ssl.SSLContext | None, handler: str) -> Server:
        """Serve on loopback. `handler`: echo or idle."""

    async def echo(
        self, tls: ssl.SSLContext | None, port: int, message: bytes, connections: int
    ) -> Callable[[float], Awaitable[int]]:
        """Connect.

        Gives a function that has a message echoed for so many seconds, one at a time on each
        connection, and ends with the last answer: how many round trips that were.
        """

    async def flood(self, tls: ssl.SSLContext | None, port: int, take: str) -> dict[str, Any]:
        """Take frames until the connection ends.

        `take`: "nothing", "bytes" or "count". Gives "cpu", seconds from the open connection on,
        and for "count" also "frames".
        """

    async def turns_server(self, message: bytes) -> int:
        """Serve: a frame of any client's is answered with one to each. Gives the port."""

    async def turns(
        self, port: int, connections: int, pause: float, seconds: float
    ) -> dict[str, Any]:
        """Take a frame on each of many connections, turn by turn. Gives "cpu" and "frames".

        `pause`: seconds to sleep before each turn, so that all frames are there.
        """

    async def send_many(self, port: int, message: bytes, count: int) -> None:
        """Send that often, in a row, and nothing else that costs instructions."""


def peer(specification: dict[str, Any]) -> Peer:
    """The library that a worker's specification names."""
    name = specification["library"]
    try:
        if name in CALLBACKS:
            from .callbacks import CallbackPeer

            return CallbackPeer(
                name, specification.get("listener", "python"), specification.get("code", "best")
            )
        if name == BARE:
            from .bare import BarePeer

            return cast(Peer, BarePeer())
        from .streams import AiohttpPeer, WebsocketsPeer

        return AiohttpPeer() if name == "aiohttp" else WebsocketsPeer(name)
    except ImportError as error:
        raise UnavailableError(f"{name} cannot be imported: {error}") from None
