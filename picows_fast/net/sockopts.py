"""Socket options that trade CPU time for latency, set on a socket before it is used.

Python's ``socket`` module does not name all of them; the numbers are those of Linux.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

__all__ = ["tune_socket"]

# option -> (name, number on Linux)
_OPTIONS = {
    "so_busy_poll": ("SO_BUSY_POLL", 46),
    "so_prefer_busy_poll": ("SO_PREFER_BUSY_POLL", 69),
    "so_incoming_cpu": ("SO_INCOMING_CPU", 49),
}
# The one with 64-bit times, and the older one; by software and by hardware, in system and raw time.
_SO_TIMESTAMPING = (65, 37)
_STAMPS = 1 << 3 | 1 << 4 | 1 << 2 | 1 << 6


def tune_socket(
    sock: Any,
    *,
    so_busy_poll: int | None = None,
    so_prefer_busy_poll: bool | None = None,
    so_incoming_cpu: int | None = None,
    rx_timestamps: bool = False,
) -> None:
    """Set the options that are not None. A listening socket hands them down to what it accepts.

    :param sock: a socket, or what a transport shows of one
    :param so_busy_poll: microseconds
    :param rx_timestamps: have the kernel note when data comes, if it can; that begins some moments
        after the first socket asked for it
    :raises OSError: the system does not allow it or does not know it; the message names the option
    """
    values = {
        "so_busy_poll": so_busy_poll,
        "so_prefer_busy_poll": so_prefer_busy_poll,
        "so_incoming_cpu": so_incoming_cpu,
    }
    if rx_timestamps and sys.platform == "linux":
        for number in _SO_TIMESTAMPING:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, number, _STAMPS)
                break
    for option, value in values.items():
        if value is None:
            continue
        name, number = _OPTIONS[option]
        if sys.platform != "linux":
            raise OSError(f"{option}: this system has no {name}")
        try:
            sock.setsockopt(socket.SOL_SOCKET, number, int(value))
        except OSError as error:
            raise OSError(error.errno, f"{option}: cannot set {name}: {error.strerror}") from error
