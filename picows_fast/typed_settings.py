"""The types of those settings that ``ws_connect`` and ``ws_create_server`` take beside their
written-out parameters: what type checkers read, and whoever wraps one of the two.

    async def connect(url: str, **settings: Unpack[ClientSettings]) -> None: ...

``options`` has each setting's default, check and documentation; a test compares names and types.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, TypedDict

__all__ = ["ClientSettings", "ServerSettings"]


class _ConnectionSettings(TypedDict, total=False):
    max_head_size: int
    max_header_count: int
    raise_if_not_sent: bool
    use_loop_transport: bool | None
    so_busy_poll: int | None
    so_prefer_busy_poll: bool | None
    so_incoming_cpu: int | None
    tcp_quickack: bool
    rx_timestamps: bool
    zero_copy_unsafe_ssl_write: bool | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None


class ClientSettings(_ConnectionSettings, total=False):
    """Of ``ws_connect``; see :class:`picows_fast.options.ClientOptions`."""

    user_agent: str | None
    redirect_keeps: Sequence[str]
    max_refusal_size: int
    server_hostname: str | None
    sock: socket.socket | None
    unix_path: str | bytes | os.PathLike[str] | None
    busy_poll: float
    local_addr: tuple[Any, ...] | None
    family: int
    proto: int
    flags: int
    happy_eyeballs_delay: float | None
    interleave: int | None


class ServerSettings(_ConnectionSettings, total=False):
    """Of ``ws_create_server``; see :class:`picows_fast.options.ServerOptions`."""

    family: int
    flags: int
    reuse_address: bool | None
    reuse_port: bool | None
    keep_alive: bool | None
    start_serving: bool
