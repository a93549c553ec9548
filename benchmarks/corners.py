"""What other benchmarks leave out: the first frame of a connection, and frames that come in pieces.

- `first`: connect, upgrade, one frame there and back, close.
- `pieces`: frames of 16 KiB that arrive in ten pieces each, so that none is whole when it is read.
- `both ways`: sixteen frames of 1 KiB on their way in each direction at any time.

The client is a plain blocking socket on another core, the same for all libraries. What counts is
the CPU time of the echo server.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

from picows_fast import WSMsgType, build_frame

from .measuring import Case, Settings, contestants
from .peers import CALLBACKS, STREAMS
from .processes import cores, in_python, pinned

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)
PIECES = 10
PIECE_PAUSE = 50e-6  # seconds, for the server to take what came
ON_THEIR_WAY = 16


class Client:
    """A blocking connection that has upgraded."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(REQUEST % base64.b64encode(os.urandom(16)))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.sock.recv(1)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise RuntimeError(f"the server answered {head!r}")

    def receive(self, size: int) -> None:
        while size:
            size -= len(self.sock.recv(min(size, 65536)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def frames(size: int) -> tuple[bytes, int]:
    """A client's frame of that payload, and how long the server's echo of it is."""
    payload = bytes(size)
    masked = build_frame(WSMsgType.BINARY, payload, mask=True)
    return masked, len(build_frame(WSMsgType.BINARY, payload, mask=False))


def first(port: int, end: float) -> int:
    frame, size = frames(256)
    count = 0
    while time.monotonic() < end:
        with Client(port) as client:
            client.sock.sendall(frame)
            client.receive(size)
        count += 1
    return count


def pieces(port: int, end: float) -> int:
    frame, size = frames(16 * 1024)
    cuts = [len(frame) * at // PIECES for at in range(PIECES + 1)]
    parts = [frame[start:stop] for start, stop in pairwise(cuts)]
    count = 0
    with Client(port) as client:
        while time.monotonic() < end:
            for part in parts:
                client.sock.sendall(part)
                pause_end = time.perf_counter() + PIECE_PAUSE
                while time.perf_counter() < pause_end:
                    pass
            client.receive(size)
            count += 1
    return count


def both_ways(port: int, end: float) -> int:
    frame, size = frames(1024)
    count = 0
    with Client(port) as client:
        client.sock.sendall(frame * ON_THEIR_WAY)
        while time.monotonic() < end:
            client.receive(size)
            client.sock.sendall(frame)
            count += 1
        client.receive(size * ON_THEIR_WAY)
    return count + ON_THEIR_WAY


WORK: dict[str, Callable[[int, float], int]] = {
    "first": first,
    "pieces": pieces,
    "both ways": both_ways,
}


def measure(library: str, work: str, seconds: float) -> float:
    """How often, per second of the server's CPU time."""
    core, other = cores()
    with in_python("server", core, library=library, loop="uvloop", tls=False) as serving:
        port = serving.answer()["port"]
        with pinned(other):
            WORK[work](port, 0)  # what is made once is not counted
            before = serving.ask("cpu")["cpu"]
            count = WORK[work](port, time.monotonic() + seconds)
            after = serving.ask("cpu")["cpu"]
    return float(count / (after - before))


def cases(settings: Settings) -> Iterator[Case]:
    for work in WORK:
        yield Case(
            "corners",
            {"work": work, "loop": "uvloop", "listener": "python"},
            "per CPU s",
            contestants(
                settings, (*CALLBACKS, *STREAMS), measure, work=work, seconds=settings.seconds
            ),
        )
