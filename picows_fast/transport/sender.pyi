from typing import Final

from typing_extensions import Buffer, disjoint_base

from ..net.stream import StreamHandler
from ..protocol.codec import WSCloseCode, WSMsgType

PICOWS_DEBUG_LL: Final = 9

@disjoint_base
class FrameSender(StreamHandler):
    @property
    def is_client_side(self) -> bool: ...
    @property
    def is_close_frame_sent(self) -> bool: ...
    def send(
        self,
        msg_type: WSMsgType,
        message: str | Buffer | None,
        fin: bool = True,
        rsv1: bool = False,
        rsv2: bool = False,
        rsv3: bool = False,
    ) -> bool: ...
    def send_reuse_external_bytearray(
        self,
        msg_type: WSMsgType,
        buffer: bytearray,
        msg_offset: int,
        fin: bool = True,
        rsv1: bool = False,
        rsv2: bool = False,
        rsv3: bool = False,
    ) -> bool: ...
    def send_ping(self, message: str | Buffer | None = None) -> bool: ...
    def send_pong(self, message: str | Buffer | None = None) -> bool: ...
    def send_close(
        self,
        close_code: int | None = WSCloseCode.NO_INFO,
        close_message: str | Buffer | None = None,
    ) -> bool: ...
    def cork(self) -> None: ...
    def uncork(self) -> None: ...
