"""Follow a feed and stay connected: subscribe, notice a dead peer, reconnect with growing pauses.

python examples/exchange_client.py [url]        Ctrl-C ends it
"""

import asyncio
import contextlib
import json
import random
import sys

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds


class Feed(WSListener):
    updates = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, json.dumps({"op": "subscribe", "channel": "book"}))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.updates += 1
            print("update", json.loads(frame.get_payload_as_utf8_text()), flush=True)


async def follow(url: str, feed: Feed) -> None:
    # Auto-ping finds a dead peer: a PING after 10 s of silence, the end if 10 s bring no PONG.
    transport, _ = await picows_fast.ws_connect(
        lambda: feed, url, enable_auto_ping=True, enable_auto_close=True
    )
    try:
        await transport.wait_disconnected()  # raises what Feed's methods raise: our own faults
    except asyncio.CancelledError:  # Ctrl-C: take leave, which takes close_timeout at most
        transport.send_close(picows_fast.WSCloseCode.GOING_AWAY)
        await transport.wait_disconnected()
        raise
    print(f"disconnected: {transport.disconnect_cause!r} {transport.close_handshake}", flush=True)


async def main(url: str) -> None:
    pause = FIRST_PAUSE
    while True:
        feed = Feed()
        try:
            await follow(url, feed)
        except (OSError, asyncio.TimeoutError, picows_fast.WSError) as error:
            print(f"no connection: {error!r}", flush=True)
        pause = FIRST_PAUSE if feed.updates else min(2 * pause, LONGEST_PAUSE)
        # A random part, lest all clients of a restarted exchange come back in the same moment.
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"))
