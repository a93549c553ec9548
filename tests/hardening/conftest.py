"""Fixtures for tests that put a listener of ours opposite a raw peer, on either side."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from .peers import against_peer


@pytest.fixture
def facing_peer(side: str, io_options: dict[str, bool]) -> Callable[..., Any]:
    """`peers.against_peer` for each side and each way of moving bytes."""
    return functools.partial(against_peer, side, **io_options)


@pytest.fixture
def facing_tls_peer(
    side: str,
    io_options: dict[str, bool],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> Callable[..., Any]:
    """The same over TLS."""
    return functools.partial(against_peer, side, tls=(server_tls, client_tls), **io_options)
