import ssl

from typing_extensions import disjoint_base

from .stream import ByteStream

@disjoint_base
class TlsStream(ByteStream):
    def __init__(
        self,
        lower: ByteStream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        handshake_timeout: float | None = None,
    ) -> None: ...
