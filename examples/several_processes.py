"""One server process per core, all on one port: the kernel spreads new connections over them.

python examples/several_processes.py [port] [processes]
SIGTERM or Ctrl-C ends all in order. A process that ends is started again, so `kill -TERM` one after
the other restarts all. Their clients get 1012, and find the others.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import wait

from picows_fast import WSListener, ws_create_server
from picows_fast.layers.routing import Router

HOST = "127.0.0.1"
spawn = multiprocessing.get_context("spawn")
routes = Router()
routes.websocket("/")(lambda request: WSListener())
routes.http("/process")(lambda request: f"{os.getpid()}\n")


async def serve(port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # Limits are for each process: with four of them, this is 40,000 connections.
    server = await ws_create_server(routes, HOST, port, reuse_port=True, max_connections=10_000)
    print(f"process {os.getpid()} serves ws://{HOST}:{port}/", flush=True)
    await stop.wait()
    await server.shutdown(code=1012, timeout=10, spread=2)


def work(port: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says SIGTERM
    asyncio.run(serve(port))


def main(port: int, count: int) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    with socket.socket() as reserved:  # the port stays ours; not listening, it gets no connection
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((HOST, port))
        try:
            while True:
                while len(multiprocessing.active_children()) < count:
                    spawn.Process(target=work, args=reserved.getsockname()[1:]).start()
                wait([process.sentinel for process in multiprocessing.active_children()])
                print("a process has ended", flush=True)
                time.sleep(0.2)  # one that fails at once must not keep this one busy
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()  # and Python waits for all of them when it ends


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] + ["9001", str(os.cpu_count())][len(sys.argv) - 1 :]))
