from typing_extensions import disjoint_base

from ..core import WSListener, WSTransport
from ..protocol.codec import WSFrame, WSMsgType
from ..protocol.messages import MessageAssembler as MessageAssembler

@disjoint_base
class WSMessageListener(WSListener):
    @property
    def max_message_size(self) -> int: ...
    @property
    def max_fragments(self) -> int: ...
    def __init__(
        self,
        *,
        max_message_size: int = ...,
        max_fragments: int = ...,
        check_unfinished_text: bool = False,
    ) -> None: ...
    def on_ws_message(
        self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame, /
    ) -> None: ...
    def on_ws_control(self, transport: WSTransport, frame: WSFrame, /) -> None: ...
