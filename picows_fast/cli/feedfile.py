"""The file format of recorded feeds: reading, checking, writing.

A feed file is gzip. Each line is a JSON array ``[microseconds, text]``: the time since the first
message, and the message itself. Nothing here knows about WebSocket, asyncio or pacing.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

# Microseconds. No recording is that long, and every clock can still count to it.
_TIME_LIMIT = 2**63


class FeedError(Exception):
    """A feed file cannot be read; the text names the file and, where there is one, the line."""


class FeedCutOffError(FeedError):
    """The file ends in the midst of its gzip data, as when its recorder was killed."""


class FeedSummary(NamedTuple):
    """What a feed file holds."""

    messages: int
    payload_bytes: int
    """Size of all messages in UTF-8."""
    microseconds: int
    """Time of the last message."""
    is_cut_off: bool
    """Whether the file ends in the midst of its data; what is whole is counted."""


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


def read_feed(
    path: str | os.PathLike[str], *, allow_cut_off: bool = False
) -> Iterator[tuple[int, str]]:
    """Yield (microseconds since the first message, text) for each message of a feed file.

    Reads as it goes: memory does not grow with the file. Raises FeedError for a file that cannot
    be opened, is not gzip, or has a line that is not in the format; FeedCutOffError behind the last
    whole line of one that is cut short, unless that is allowed.
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
        if not allow_cut_off:
            raise FeedCutOffError(
                f"{name}, line {number + 1}: the gzip data is cut short"
            ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        where = f"{name}, line {number + 1}" if number else name
        raise FeedError(f"{where}: not readable as gzip ({error})") from None
    except OSError as error:
        raise FeedError(f"{name}: {error.strerror or error}") from None


def repeat_feed(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """As `read_feed`, for ever: each time it goes on where the time of the last message ended.

    A file that is cut off starts again behind its last whole line.

    Raises FeedError, too, once the file holds no messages.
    """
    offset = 0
    while True:
        last: int | None = None
        for last, text in read_feed(path, allow_cut_off=True):
            yield offset + last, text
        if last is None:
            raise _no_messages(path)
        offset += last


def _no_messages(path: str | os.PathLike[str]) -> FeedError:
    return FeedError(f"{os.fspath(path)}: holds no messages")


def check_feed(path: str | os.PathLike[str]) -> FeedSummary:
    """Read a feed file through once, so that a fault is found before anybody is served.

    Raises FeedError as `read_feed` does, and for what is no regular file, as that cannot be read
    again, or holds no whole message.
    """
    if not Path(path).is_file() and Path(path).exists() and not Path(path).is_dir():
        raise FeedError(f"{os.fspath(path)}: not a regular file")
    messages = payload_bytes = duration = 0
    is_cut_off = False
    try:
        for microseconds, text in read_feed(path):
            messages += 1
            payload_bytes += utf8_size(text)
            duration = microseconds
    except FeedCutOffError:
        if not messages:
            raise
        is_cut_off = True
    if not messages:
        raise _no_messages(path)
    return FeedSummary(messages, payload_bytes, duration, is_cut_off)


def cut_off_note(path: str | os.PathLike[str], summary: FeedSummary) -> str:
    """What the user of a file that is cut off is told."""
    return f"{os.fspath(path)} is cut off: its {summary.messages:,} whole messages are published"


def utf8_size(text: str) -> int:
    """Bytes that a text takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class FeedWriter:
    """Writes a feed file; it appears under its name when it is complete.

    Until `close`, the data is in ``<path>.part``. What has the name and is no regular file (a
    FIFO, a device, a socket) is written into, and so is this program's standard output.

    Raises FileExistsError if there is a file of either name, unless it may be replaced, and OSError
    where the file system does.
    """

    def __init__(self, path: str | os.PathLike[str], *, replace: bool = False) -> None:
        self.path = Path(path)
        self.messages = 0
        self._may_replace = replace
        self._has_unflushed = False
        # A link stays one: its target is what is written.
        self._target = Path(os.path.realpath(path))
        self._part: Path | None = None
        self._file = self._open()
        self._compressor = zlib.compressobj(wbits=31)  # gzip

    def _open(self) -> IO[bytes]:
        status = self.path.stat() if self.path.exists() else None
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{self.path} is a directory")
        if status is not None and stat.S_ISSOCK(status.st_mode):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(os.fspath(self.path))
                return connection.makefile("wb")
        if status is not None and _is_standard_output(status):
            return open(os.dup(1), "wb")  # to open its name would truncate a file
        if status is not None and not stat.S_ISREG(status.st_mode):
            return open(self.path, "wb")
        self._part = self._target.with_name(self._target.name + ".part")
        if self._may_replace:
            return open(self._part, "wb")
        if status is not None:
            raise FileExistsError(f"{self.path} exists")
        try:
            return open(self._part, "xb")
        except FileExistsError:
            raise FileExistsError(
                f"{self._part} exists: a recording that is under way or was cut off"
            ) from None

    def write(self, microseconds: int, text: str) -> None:
        """Append one message, `microseconds` after the first one."""
        line = json.dumps([microseconds, text], separators=(",", ":"))
        self._file.write(self._compressor.compress(line.encode("ascii") + b"\n"))
        self._has_unflushed = True
        self.messages += 1

    def flush(self) -> None:
        """Give what was written to the operating system: it is readable if this process dies."""
        if self._has_unflushed and not self._file.closed:
            self._has_unflushed = False
            self._file.write(self._compressor.flush(zlib.Z_SYNC_FLUSH))
            self._file.flush()

    def close(self) -> None:
        """Complete the file and give it its name. Does nothing the second time."""
        if self._file.closed:
            return
        with self._file:
            self._file.write(self._compressor.flush())
        if self._part is None:
            return
        if not self._may_replace and self._target.exists():
            raise FileExistsError(f"{self.path} exists by now; the recording is in {self._part}")
        os.replace(self._part, self._target)

    def discard(self) -> None:
        """Drop what was written; a file that already had the name stays. Nothing after `close`."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        if self._part is not None:
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


def _is_standard_output(status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.fstat(1))
    except OSError:
        return False
