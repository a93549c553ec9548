import asyncio
import socket

from typing_extensions import disjoint_base

from .stream import ByteStream

@disjoint_base
class TcpStream(ByteStream):
    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None: ...
