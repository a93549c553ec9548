import asyncio
from collections.abc import Callable

from typing_extensions import disjoint_base

from .stream import ByteStream

@disjoint_base
class ForeignStream(ByteStream):
    @property
    def protocol(self) -> asyncio.BufferedProtocol: ...
    @property
    def transport(self) -> asyncio.Transport | None: ...
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_connected: Callable[[], object] | None = None,
    ) -> None: ...
    def attach(self, transport: asyncio.Transport) -> None: ...
