"""The file format of recorded feeds: reading, checking, writing.

A feed file is gzip. Each line is a JSON array ``[microseconds, text]``: the time since the first
message, and the message itself. Nothing here knows about WebSocket, asyncio or pacing.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

# Microseconds. No recording is that long, and every clock can still count to it.
_TIME_LIMIT = 2**63


class FeedError(Exception):
    """A feed file cannot be read; the text names the file and, where there is one, the line."""


class FeedSummary(NamedTuple):
    """What a whole feed file holds."""

    messages: int
    payload_bytes: int
    """Size of all messages in UTF-8."""
    microseconds: int
    """Time of the last message."""


def _parse_line(line: bytes) -> tuple[int, str]:
    """One line's time and text; ValueError says what is wrong with it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(entry, list) or len(entry) != 2:
        raise ValueError("not a JSON array [microseconds, text]")
    microseconds, text = entry
    if not isinstance(microseconds, int) or isinstance(microseconds, bool):
        raise ValueError("the time must be a whole number of microseconds")
    if not 0 <= microseconds < _TIME_LIMIT:
        raise ValueError(f"the time must be 0 to {_TIME_LIMIT - 1} microseconds")
    if not isinstance(text, str):
        raise ValueError("the message must be a JSON string")
    if not text.isascii():
        # A lone surrogate is legal JSON, but cannot be sent as UTF-8.
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("the message is not valid Unicode") from None
    return microseconds, text


def read_feed(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield (microseconds since the first message, text) for each message of a feed file.

    Reads as it goes: memory does not grow with the file. Raises FeedError for a file that cannot
    be opened, is not gzip, is cut short, or has a line that is not in the format.
    """
    name = os.fspath(path)
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = _parse_line(line)
                except ValueError as error:
                    raise FeedError(f"{name}, line {number}: {error}") from None
                yield entry
    except EOFError:
        raise FeedError(f"{name}, line {number + 1}: the gzip data is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        where = f"{name}, line {number + 1}" if number else name
        raise FeedError(f"{where}: not readable as gzip ({error})") from None
    except OSError as error:
        raise FeedError(f"{name}: {error.strerror or error}") from None


def repeat_feed(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """As `read_feed`, for ever: each time it goes on where the time of the last message ended.

    Raises FeedError, too, once the file holds no messages.
    """
    offset = 0
    while True:
        last: int | None = None
        for last, text in read_feed(path):
            yield offset + last, text
        if last is None:
            raise _no_messages(path)
        offset += last


def _no_messages(path: str | os.PathLike[str]) -> FeedError:
    return FeedError(f"{os.fspath(path)}: holds no messages")


def check_feed(path: str | os.PathLike[str]) -> FeedSummary:
    """Read a feed file through once, so that a fault is found before anybody is served.

    Raises FeedError as `read_feed` does, and for a file without messages.
    """
    messages = payload_bytes = duration = 0
    for microseconds, text in read_feed(path):
        messages += 1
        payload_bytes += utf8_size(text)
        duration = microseconds
    if not messages:
        raise _no_messages(path)
    return FeedSummary(messages, payload_bytes, duration)


def utf8_size(text: str) -> int:
    """Bytes that a text takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class FeedWriter:
    """Writes a feed file; it appears under its name when it is complete.

    Until `close`, the data is in ``<path>.part``, so that an earlier recording stays whole while
    its successor is being made. Raises OSError where the file system does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.messages = 0
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a directory")
        self._part = self.path.with_name(self.path.name + ".part")
        self._file = gzip.GzipFile(self._part, "wb", compresslevel=6)

    def write(self, microseconds: int, text: str) -> None:
        """Append one message, `microseconds` after the first one."""
        line = json.dumps([microseconds, text], separators=(",", ":"))
        self._file.write(line.encode("ascii") + b"\n")
        self.messages += 1

    def close(self) -> None:
        """Complete the file and give it its name. Does nothing the second time."""
        if not self._file.closed:
            self._file.close()
            os.replace(self._part, self.path)

    def discard(self) -> None:
        """Drop what was written; a file that already had the name stays. Nothing after `close`."""
        if not self._file.closed:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> FeedWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
