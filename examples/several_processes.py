"""One server process for each core, all on one port: the kernel spreads new connections over them.

python examples/several_processes.py [port] [processes]

SIGTERM or Ctrl-C ends all of them in order. A process that ends by itself is started again, so
`kill -TERM` of one after the other is a restart during which the port is always served: each tells
its clients to come back (close code 1012), over two seconds, and they find the others.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process

from picows_fast import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)
from picows_fast.layers.routing import Router

HOST = "127.0.0.1"
routes = Router()


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


@routes.websocket("/")
def echo(request: WSUpgradeRequest) -> WSListener:
    return Echo()


@routes.http("/process")
def process(request: WSUpgradeRequest) -> str:
    return f"{os.getpid()}\n"


def stopping() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def work(port: int) -> None:
    """One of the processes."""
    stop = stopping()
    loop = asyncio.get_running_loop()

    def parent_is_gone() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, parent_is_gone)  # nothing is ever written there
    # Limits are for each process: with four of them, this is 40,000 connections.
    server = await ws_create_server(routes, HOST, port, reuse_port=True, max_connections=10_000)
    print("ready", flush=True)
    await stop.wait()
    await server.shutdown(code=WSCloseCode.SERVICE_RESTART, timeout=10, spread=2)


async def start(port: int) -> Process:
    # In a session of its own: Ctrl-C is for this process, which passes it on.
    command = (sys.executable, __file__, "worker", str(port))
    child = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    assert child.stdout is not None
    await child.stdout.readline()
    return child


async def keep_running(port: int, child: Process, stop: asyncio.Event) -> None:
    told = asyncio.create_task(stop.wait())
    while True:
        ended = asyncio.create_task(child.wait())
        await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            break
        print(f"process {child.pid} ended with {child.returncode}", flush=True)
        if child.returncode:
            await asyncio.sleep(1)  # what fails at once must not be started as fast as it fails
        child = await start(port)
    if child.returncode is None:
        child.terminate()
    await ended


async def main(port: int, count: int) -> None:
    stop = stopping()
    # Keeps the port for us while no process has it; it does not listen, so it gets no connection.
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((HOST, port))
        port = reserved.getsockname()[1]
        children = [await start(port) for _ in range(count)]
        print(f"listening on ws://{HOST}:{port}/", flush=True)
        await asyncio.gather(*(keep_running(port, child, stop) for child in children))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        asyncio.run(work(int(sys.argv[2])))
    else:
        defaults = ["9001", str(os.cpu_count() or 1)]
        asyncio.run(main(*map(int, sys.argv[1:] + defaults[len(sys.argv) - 1 :])))
