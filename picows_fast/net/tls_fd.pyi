import asyncio
import socket
import ssl

from typing_extensions import disjoint_base

from .tcp import TcpStream

AVAILABLE: bool

def is_openssl(version: str) -> bool: ...

@disjoint_base
class DirectTlsStream(TcpStream):
    @staticmethod
    def create(
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        handshake_timeout: float | None = None,
    ) -> DirectTlsStream | None: ...
