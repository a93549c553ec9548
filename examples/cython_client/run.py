"""Connects the compiled listener: python run.py [url]. Build it first, see README.md."""

import asyncio
import sys

from fast_listener import TickCounter

from picows_fast import ws_connect


async def main(url: str) -> None:
    listener = TickCounter(limit=1000)
    transport, _ = await ws_connect(lambda: listener, url)
    await transport.wait_disconnected()
    print(f"{listener.frames} frames, {listener.commas} commas")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"))
