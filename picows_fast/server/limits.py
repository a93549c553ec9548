"""The connections of one server: how many there are, from where, how they came and how they ended.

Owns the counting and the limits that follow from it. Holds no socket, sends nothing, keeps no
time: ``server`` reports what happens here, and asks whether one more may come. Nothing is done
per frame, and no question is answered by going over the connections.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar

from ..states import WSDisconnectCause
from ..stats import TrafficStats

__all__ = ["REFUSAL_REASONS", "ConnectionTable", "ServerStats", "address_key"]

C = TypeVar("C")

MAX_CONNECTIONS: Final = "max_connections"
MAX_CONNECTIONS_PER_IP: Final = "max_connections_per_ip"
MAX_PENDING_HANDSHAKES: Final = "max_pending_handshakes"
CLOSED: Final = "closed"
ERROR: Final = "error"
PROXY_PROTOCOL: Final = "proxy_protocol"

#: What ``ServerStats.refused`` counts: a limit that was reached, or what was wrong.
REFUSAL_REASONS: Final = (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_IP,
    MAX_PENDING_HANDSHAKES,
    CLOSED,
    "origin",
    "timeout",
    "request",
    ERROR,
    PROXY_PROTOCOL,
)
# Of refusals that are no limit's, by their status; all others are "request".
_REASON_OF_STATUS: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: "origin",
    HTTPStatus.REQUEST_TIMEOUT: "timeout",
    HTTPStatus.INTERNAL_SERVER_ERROR: ERROR,
}

NO_TRAFFIC: Final = TrafficStats()

# Handshakes that one address may have under way at once, if max_connections_per_ip is no larger.
_HANDSHAKES_PER_IP: Final = 32


@dataclass(frozen=True)
class ServerStats:
    """What a server has counted, and what it has at this moment.

    ``accepted == opened + abandoned + handshakes`` and the sums of ``answered`` and ``refused``;
    ``opened == connections`` and the sum of ``closed``.
    """

    accepted: int
    """Connections that were accepted from the listening sockets."""
    handshakes: int
    """Now: connections that have had no response yet."""
    leaving: int
    """Now: connections that were answered otherwise than by 101, and have not ended yet."""
    connections: int
    """Now: WebSocket connections, from the 101 response to ``on_ws_disconnected``."""
    opened: int
    """Handshakes that became a WebSocket connection."""
    answered: Mapping[int, int]
    """Responses that the factory chose, 404 for None among them, by status."""
    refused: Mapping[str, int]
    """Requests that the server refused by itself, by reason: the limit that was reached
    ("max_connections" ...), "closed" (it came as the server stopped listening), "origin",
    "timeout", "request" (not valid) or "error": the factory failed, or the connection could not be
    set up, and was closed without a response. "proxy_protocol": a trusted proxy sent no valid
    PROXY header, and was closed likewise."""
    abandoned: int
    """Connections that ended before their request was there, or before it was answered."""
    closed: Mapping[WSDisconnectCause, int]
    """WebSocket connections that have ended, by cause."""
    received: TrafficStats = NO_TRAFFIC
    """Frames that came on all connections, those that have ended among them."""
    sent: TrafficStats = NO_TRAFFIC
    """Frames that were sent on all connections, those that have ended among them."""


class ConnectionTable(Generic[C]):
    """Every connection is in its handshake, open or leaving; with ``max_per_ip`` its address is
    known, too.

    :param max_connections: WebSocket connections, None: no limit
    :param max_per_ip: WebSocket connections of one address, None: no limit
    :param max_handshakes: connections that are no WebSocket yet, or will not be one, None: no limit
    """

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        max_per_ip: int | None = None,
        max_handshakes: int | None = None,
    ) -> None:
        self._max_connections = max_connections
        self._max_per_ip = max_per_ip
        self._max_handshakes = max_handshakes
        self._handshakes: set[C] = set()
        self._leaving: set[C] = set()
        self._open: set[C] = set()
        # For max_per_ip, and empty without: the keys of connections, and the counts of keys.
        self._keys: dict[C, str] = {}
        self._pending_of: dict[str, int] = {}
        self._open_of: dict[str, int] = {}
        self._accepted = self._opened = self._abandoned = 0
        self._answered: Counter[int] = Counter()
        self._refused: Counter[str] = Counter()
        self._closed: Counter[WSDisconnectCause] = Counter()

    def __iter__(self) -> Iterator[C]:
        """All of them, as they are now; they may end meanwhile."""
        return iter((*self._open, *self._handshakes, *self._leaving))

    def __len__(self) -> int:
        return len(self._open) + len(self._handshakes) + len(self._leaving)

    def open_connections(self) -> tuple[C, ...]:
        """Those that are WebSockets, as they are now."""
        return tuple(self._open)

    def handshakes(self) -> tuple[C, ...]:
        """Those that have had no response yet, as they are now."""
        return tuple(self._handshakes)

    def is_in_handshake(self, connection: C) -> bool:
        """Whether it has had no response yet."""
        return connection in self._handshakes

    @property
    def has_room(self) -> bool:
        """Whether max_handshakes lets another connection in."""
        pending = len(self._handshakes) + len(self._leaving)
        return self._max_handshakes is None or pending < self._max_handshakes

    # --- whether one more may come

    def reason_to_turn_away(self, key: str | None) -> str | None:
        """Why a connection is not even to be read from; None if it may come in."""
        if not self.has_room:
            return MAX_PENDING_HANDSHAKES
        # One address must not take everybody's handshakes. This is for floods: requests that are
        # more than max_per_ip are answered in order.
        if self._max_per_ip is None or key is None:
            return None
        if self._pending_of.get(key, 0) < max(self._max_per_ip, _HANDSHAKES_PER_IP):
            return None
        return MAX_CONNECTIONS_PER_IP

    def reason_to_refuse(self, key: str | None) -> str | None:
        """Why a handshake must not become a WebSocket connection; None if it may."""
        if self._max_connections is not None and len(self._open) >= self._max_connections:
            return MAX_CONNECTIONS
        if self._max_per_ip is None or key is None or self._open_of.get(key, 0) < self._max_per_ip:
            return None
        return MAX_CONNECTIONS_PER_IP

    # --- what happens

    def turned_away(self, reason: str) -> None:
        """A connection was accepted and ended unread, for what ``reason_to_turn_away`` said or an
        error."""
        self._accepted += 1
        self._refused[reason] += 1

    def attach(self, connection: C, key: str | None) -> None:
        """A connection was accepted; its handshake begins. ``key``: see ``address_key``."""
        self._accepted += 1
        self._handshakes.add(connection)
        if self._max_per_ip is not None and key is not None:
            self._keys[connection] = key
            _increment(self._pending_of, key)

    def withdraw(self, connection: C) -> None:
        """It counts as if it had never come: another is attached in its place."""
        self._accepted -= 1
        self._handshakes.discard(connection)

    def opened(self, connection: C) -> None:
        """Its handshake succeeded."""
        self._handshakes.discard(connection)
        self._open.add(connection)
        self._opened += 1
        key = self._keys.get(connection)
        if key is not None:
            _decrement(self._pending_of, key)
            _increment(self._open_of, key)

    def answered(self, connection: C, status: int) -> None:
        """Its request got another response than 101, which the application chose."""
        self._answered[int(status)] += 1
        self._leave(connection)

    def refused(self, connection: C, status: int, reason: str | None) -> None:
        """Its request was refused; ``reason`` is the limit, None: as the status says."""
        self._refused[reason or _REASON_OF_STATUS.get(status, "request")] += 1
        self._leave(connection)

    def _leave(self, connection: C) -> None:
        self._handshakes.discard(connection)
        self._leaving.add(connection)

    def detach(self, connection: C, cause: WSDisconnectCause | None) -> None:
        """It has ended. Does nothing if it is not attached."""
        key = self._keys.pop(connection, None)
        if connection in self._open:
            self._open.discard(connection)
            self._closed[WSDisconnectCause.LOCAL_ABORT if cause is None else cause] += 1
            if key is not None:
                _decrement(self._open_of, key)
            return
        if connection in self._handshakes:
            self._handshakes.discard(connection)
            self._abandoned += 1
        self._leaving.discard(connection)
        if key is not None:
            _decrement(self._pending_of, key)

    def stats(
        self, received: TrafficStats = NO_TRAFFIC, sent: TrafficStats = NO_TRAFFIC
    ) -> ServerStats:
        return ServerStats(
            accepted=self._accepted,
            handshakes=len(self._handshakes),
            leaving=len(self._leaving),
            connections=len(self._open),
            opened=self._opened,
            answered=dict(self._answered),
            refused={reason: self._refused[reason] for reason in REFUSAL_REASONS},
            abandoned=self._abandoned,
            closed={cause: self._closed[cause] for cause in WSDisconnectCause},
            received=received,
            sent=sent,
        )


# Not a Counter: a key that counts nothing is not kept, as there are as many as the internet has
# addresses, and deleting from a Counter is slow.


def _increment(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def _decrement(counts: dict[str, int], key: str) -> None:
    count = counts[key]
    if count > 1:
        counts[key] = count - 1
    else:
        del counts[key]


def address_key(address: Any) -> str | None:
    """What an accepted connection's peer address counts as for max_connections_per_ip.

    An IPv4 address as it is, also where an IPv6 socket has it (RFC 4291 2.5.5.2); an IPv6 address
    by its first 64 bits, of which a host or a home has the rest to choose from. None if there is
    no IP address: a Unix socket.
    """
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return None
    host = address[0]
    if ":" not in host:
        return host  # IPv4, as the system writes it
    try:
        ip = ipaddress.IPv6Address(host)
    except ValueError:
        return None  # Bluetooth
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    if ip.is_link_local or ip.is_loopback:
        return host  # all neighbours have the same 64 bits
    return str(ipaddress.IPv6Address(int(ip) >> 64 << 64)) + "/64"
