import ssl
from collections.abc import Callable
from typing import Any

from typing_extensions import Self, disjoint_base

from .stream import ByteStream

USED_BY_THE_STREAM: frozenset[str]
TLS_INFO: dict[str, Callable[[ssl.SSLObject], Any]]

@disjoint_base
class TlsView:
    def __new__(cls, tls: ssl.SSLObject) -> Self: ...
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: object, /) -> None: ...
    def __dir__(self) -> list[str]: ...

@disjoint_base
class TlsStream(ByteStream):
    def __new__(
        cls,
        lower: ByteStream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        handshake_timeout: float | None = None,
    ) -> Self: ...
