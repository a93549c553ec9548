"""What connections of all commands have in common, whichever side they are on."""

from __future__ import annotations

import asyncio
from typing import Any

from picows_fast import WSListener, WSTransport

# Seconds that the peer gets to answer our CLOSE: a person waits for the prompt.
CLOSE_TIMEOUT = 2.0


class WritableListener(WSListener):
    """A listener that can be waited for with `await listener.writable.wait()` before it sends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.writable = asyncio.Event()
        """Set while the connection takes more to send, and once it has ended."""
        self.writable.set()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()
