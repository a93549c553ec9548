"""HTTP heads in pieces, for the tests of what reads them, and a way to feed them to a handshake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from picows_fast.protocol.upgrade import ClientHandshake, ServerHandshake


def cuttings(data: bytes) -> Iterator[list[bytes]]:
    """The data whole, byte by byte, and in two pieces cut at every place."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]


def receive(handshake: ClientHandshake | ServerHandshake, pieces: list[bytes]) -> tuple[Any, bytes]:
    """(the peer's message, what follows it), or (None, b"") if more is needed."""
    for index, piece in enumerate(pieces):
        message = handshake.receive_data(piece)
        if message is not None:
            return message, handshake.trailing_data + b"".join(pieces[index + 1 :])
    return None, b""
