"""How a fuzzer's input becomes decisions: numbers, choices, pieces.

Any bytes are a valid input, and a small change of the input makes a small change of what it means,
which is what guides a fuzzer. Knows nothing of WebSocket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Reads an input from its beginning; what lies behind its end is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def byte(self) -> int:
        if self._position >= len(self._data):
            return 0
        self._position += 1
        return self._data[self._position - 1]

    def chance(self, percent: int) -> bool:
        """True for the largest bytes, so that the zeros behind the end are False."""
        return self.byte() >= 256 - 256 * percent // 100

    def choice(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def take(self, size: int) -> bytes:
        taken = self._data[self._position : self._position + size]
        self._position += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))


def pieces(data: bytes, cuts: int) -> Iterator[bytes]:
    """`data` in pieces, as a byte of the input chooses.

    Up to 127: pieces of one size. Above: any mixture, which may have empty ones. What is long gets
    larger pieces, so that their number stays some hundred.
    """
    state = cuts
    position = 0
    while position < len(data):
        if cuts < 128:
            size = max(cuts + 1, len(data) // 512)
        else:
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            size = (state >> 16) % (1 + 2 * (cuts - 127))
            if state < 1 << 29:
                size *= 1 + len(data) // 64
        yield data[position : position + size]
        position += size


def xor(payload: bytes, key: bytes) -> bytes:
    """The payload masked or unmasked (RFC 6455 5.3), as one large number."""
    stream = (key * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
    return number.to_bytes(len(payload), "big")
