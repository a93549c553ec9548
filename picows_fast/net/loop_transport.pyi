import asyncio
from collections.abc import Callable

from typing_extensions import Self, disjoint_base

from .stream import ByteStream

@disjoint_base
class ForeignStream(ByteStream):
    @property
    def protocol(self) -> asyncio.BufferedProtocol: ...
    @property
    def transport(self) -> asyncio.Transport | None: ...
    def __new__(
        cls,
        loop: asyncio.AbstractEventLoop,
        on_connected: Callable[[asyncio.Transport], object] | None = None,
    ) -> Self: ...
    def attach(self, transport: asyncio.Transport) -> None: ...
    def push(self, data: bytes) -> None: ...
    def give_up(self) -> None: ...
