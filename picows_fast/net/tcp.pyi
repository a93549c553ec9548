import asyncio
import socket

from typing_extensions import Self, disjoint_base

from .stream import ByteStream

@disjoint_base
class TcpStream(ByteStream):
    def __new__(cls, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> Self: ...
    def tune(
        self, *, busy_poll: float = 0.0, quick_ack: bool = False, timestamps: bool = False
    ) -> None: ...
    def note_peername(self, peername: object) -> None: ...
