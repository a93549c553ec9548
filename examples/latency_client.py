"""Measure round trips on the loop that stays in C: python latency_client.py URL [BUSY_POLL_US]

Sends a message of 256 B, waits for its echo, a thousand times, and prints percentiles of the round
trip, and of the part of it in which the answer waited in the kernel for this program. With
BUSY_POLL_US, the loop spins for as many microseconds before it blocks. Pin the process to a core of
its own for steady figures: taskset -c 3 python ...
"""

from __future__ import annotations

import gc
import sys
import time

import picows_fast
from picows_fast import WSFrame, WSListener, WSMsgType, WSTransport
from picows_fast.layers.histogram import LatencyHistogram

MESSAGE = bytes(256)
ROUND_TRIPS = 1_000


class Client(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        self.round_trips = LatencyHistogram()
        self.waits = LatencyHistogram()
        self.send(transport)

    def send(self, transport: WSTransport) -> None:
        self.sent = time.perf_counter_ns()
        transport.send(WSMsgType.BINARY, MESSAGE)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            self.round_trips.record(time.perf_counter_ns() - self.sent)
            self.waits.record(frame.age_ns() or 0)
            if self.round_trips.count < ROUND_TRIPS:
                self.send(transport)
            else:
                transport.disconnect()


async def main(url: str) -> None:
    transport, client = await picows_fast.ws_connect(Client, url, rx_timestamps=True)
    # Collect what connecting left behind now, and nothing while it matters.
    gc.collect()
    gc.freeze()
    gc.disable()
    await transport.wait_disconnected()
    print(f"{client.round_trips.count} round trips", flush=True)
    for name, times in (("", client.round_trips), (", in the kernel", client.waits)):
        print(f"median{name} {times.percentile(50) / 1000:.1f} us")
        print(f"99th percentile{name} {times.percentile(99) / 1000:.1f} us")


if __name__ == "__main__":
    microseconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    picows_fast.run(main(sys.argv[1]), busy_poll=microseconds / 1e6)
