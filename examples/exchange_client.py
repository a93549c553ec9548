"""Follow a feed and stay connected. python examples/exchange_client.py [url], Ctrl-C ends it."""

import asyncio
import contextlib
import json
import random
import sys
import time

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

SHORTEST_PAUSE, FIRST_PAUSE, LONGEST_PAUSE, STABLE = 0.25, 1.0, 30.0, 60.0  # seconds


class Feed(WSListener):
    connected_at = good_for = 0.0  # seconds

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.connected_at = time.monotonic()
        transport.send(WSMsgType.TEXT, json.dumps({"op": "subscribe", "channel": "book"}))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.good_for = time.monotonic() - self.connected_at
            print("update", json.loads(frame.get_payload_as_utf8_text()), flush=True)


async def follow(url: str, feed: Feed) -> None:
    # Auto-ping finds a dead peer: a PING after 10 s of silence, the end if 10 s bring no PONG.
    ws, _ = await ws_connect(lambda: feed, url, enable_auto_ping=True, enable_auto_close=True)
    try:
        await ws.wait_disconnected()  # raises what Feed's methods raise: our own faults
    except asyncio.CancelledError:  # Ctrl-C: take leave, which takes close_timeout at most
        ws.send_close(picows_fast.WSCloseCode.GOING_AWAY)
        await ws.wait_disconnected()
        raise
    print(f"disconnected: {ws.disconnect_cause!r} {ws.close_handshake}", flush=True)


async def main(url: str) -> None:
    longest = FIRST_PAUSE
    while True:
        feed = Feed()
        try:
            await follow(url, feed)
        except (OSError, asyncio.TimeoutError, picows_fast.WSError) as error:
            print(f"no connection: {error!r}", flush=True)
            if not picows_fast.is_transient(error):
                sys.exit("no retry can help")
        # An exchange may greet and close: only updates for a while say that all is well again.
        longest = FIRST_PAUSE if feed.good_for > STABLE else longest
        # At random, lest all clients of a restarted exchange come back in the same moment.
        await asyncio.sleep(random.uniform(SHORTEST_PAUSE, longest))
        longest = min(2 * longest, LONGEST_PAUSE)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"))
