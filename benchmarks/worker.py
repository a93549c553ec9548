"""What runs in a process that is measured: ``python -m benchmarks.worker SPECIFICATION``.

Not for people: `benchmarks.processes` starts it and reads its answers. The specification is a JSON
object: role, library, loop, tls, and what the role needs.

    server  echo or idle, until standard input ends; answers the commands "cpu", "usage", "fanout"
            and, if it has a channel, "paced"
    echo    a client that sends one message at a time, for `seconds` at each line of standard input
    flood   a client that takes what comes until the connection ends
    turns_server, turns   many connections that get a frame each, turn by turn (in Cython)
    send    a client that sends a number of messages at once (in Cython), and ends
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .measuring import OURS, UnavailableError
from .peers import Server, peer
from .processes import CERTIFICATE


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def tls_context(is_server: bool) -> ssl.SSLContext:
    if is_server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        return context
    return ssl.create_default_context(cafile=str(CERTIFICATE))


def resident_bytes() -> int:
    """What this process has in memory. smaps_rollup is exact where statm is an estimate."""
    gc.collect()
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except OSError:
            raise UnavailableError("resident memory is read from /proc") from None
        return pages * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


async def fan_out(server: Server, size: int, messages: int, seconds: float) -> dict[str, float]:
    """Send to all clients, turn by turn; CPU seconds and how many messages that were."""
    message = bytes(size)
    end = time.monotonic() + seconds
    turns = 0
    cpu = time.process_time()
    while time.monotonic() < end:
        if server.clogged():
            await asyncio.sleep(0.001)
            continue
        await server.send_to_all(message, messages)
        turns += 1
        await asyncio.sleep(0)
    return {
        "cpu": time.process_time() - cpu,
        "messages": turns * messages * server.connections(),
    }


async def publish_paced(
    server: Any,
    size: int,
    messages: int,
    keys: int,
    interval: float,
    seconds: float,
    stalled: int,
) -> dict[str, float]:
    """Publish in turns that begin `interval` seconds after each other; what waited in the end."""
    loop = asyncio.get_running_loop()
    if stalled:
        server.fill_last()
    start = loop.time()
    turns = 0
    while loop.time() - start < seconds:
        server.publish_stamped(size, messages, keys)
        turns += 1
        await asyncio.sleep(max(0.0, start + turns * interval - loop.time()))
    waiting, waiting_bytes = server.waiting()
    return {"messages": turns * messages, "waiting": waiting, "waiting_bytes": waiting_bytes}


async def serve(specification: dict[str, Any]) -> None:
    server = await peer(specification).serve(
        tls_context(True) if specification["tls"] else None, specification.get("handler", "echo")
    )
    answer(port=server.port)
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()
    os.set_blocking(0, False)

    def read() -> None:
        data = os.read(0, 65536)
        if not data:
            loop.remove_reader(0)
        commands.put_nowait(data.decode())

    loop.add_reader(0, read)
    while line := await commands.get():
        command = json.loads(line)
        name = command.pop("command")
        if name == "cpu":
            answer(cpu=time.process_time())
        elif name == "usage":
            answer(rss=resident_bytes(), open=server.connections())
        elif name == "paced":
            answer(**await publish_paced(server, **command))
        else:
            answer(**await fan_out(server, **command))


async def echo(specification: dict[str, Any]) -> None:
    library = peer(specification)
    round_trips = await library.echo(
        tls_context(False) if specification["tls"] else None,
        specification["port"],
        os.urandom(specification["size"]),
        specification.get("connections", 1),
    )
    answer(ready=1)
    # This blocks the loop: what it watches while it is measured is its connections alone.
    for _ in sys.stdin:
        start = time.perf_counter()
        count = await round_trips(specification["seconds"])
        answer(count=count, seconds=time.perf_counter() - start)


async def flood(specification: dict[str, Any]) -> None:
    library = peer(specification)
    context = tls_context(False) if specification["tls"] else None
    answer(**await library.flood(context, specification["port"], specification["take"]))


async def turns_server(specification: dict[str, Any]) -> None:
    answer(port=await peer(specification).turns_server(bytes(specification["size"])))
    await asyncio.Event().wait()


async def turns(specification: dict[str, Any]) -> None:
    named = {name: specification[name] for name in ("port", "connections", "pause", "seconds")}
    answer(**await peer(specification).turns(**named))


async def send(specification: dict[str, Any]) -> None:
    await peer(specification).send_many(
        specification["port"], bytes(specification["size"]), specification["count"]
    )
    answer(sent=specification["count"])


def main() -> None:
    specification = json.loads(sys.argv[1])
    roles = {"server": serve, "echo": echo, "flood": flood, "send": send}
    roles |= {"turns_server": turns_server, "turns": turns}
    role = roles[specification["role"]]
    if specification.get("threaded"):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    # "own" is picows_fast's loop; the others then have what is fastest for them.
    if specification["loop"] == "own" and specification["library"] == OURS:
        from picows_fast.loop import new_event_loop

        loop = new_event_loop(busy_poll=specification.get("busy_poll", 0.0))
    elif specification["loop"] in ("uvloop", "own"):
        try:
            import uvloop
        except ImportError:
            answer(unavailable="uvloop is not installed")
            return
        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(role(specification))
    except UnavailableError as error:
        answer(unavailable=str(error))
    # What is still open is for the kernel to close: nothing after this is measured.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
