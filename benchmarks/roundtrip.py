"""Echo round trips of picows_fast against a peer, both sides on one core, alternating in one run.

    python -m benchmarks.roundtrip                     256 B, 8 KiB and 100 KB; plain and TLS;
    asyncio and uvloop python -m benchmarks.roundtrip --quick             the same in under three
    minutes python -m benchmarks.roundtrip --size 256 --loop uvloop --listener cython --peer
    websockets

A measurement is a server process and a client process of the same library, pinned to the same core:
the time of a round trip is then the CPU time of both sides, without the noise of wake-ups. The two
libraries take turns; what is quoted is the median of the pairwise ratios and their spread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import ssl
import statistics
import subprocess
import sys
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import peers

RESULTS = Path(__file__).resolve().parent / "results"
CERTIFICATE = Path(__file__).resolve().parent.parent / "picows_fast" / "cli" / "loopback.pem"


def _run(loop_name: str, main: Any) -> Any:
    if loop_name == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def _tls(is_server: bool) -> ssl.SSLContext:
    if is_server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        return context
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    context.check_hostname = False
    return context


def _pin(core: int | None) -> None:
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def _server_process(
    library: str, kind: str, loop: str, tls: bool, core: int | None, pipe: Connection
) -> None:
    _pin(core)
    _run(loop, peers.serve(library, kind, _tls(True) if tls else None, pipe.send))


def _client_process(
    library: str,
    kind: str,
    loop: str,
    tls: bool,
    core: int | None,
    pipe: Connection,
    port: int,
    size: int,
    seconds: float,
) -> None:
    _pin(core)
    context = _tls(False) if tls else None
    message = os.urandom(size)
    pipe.send(_run(loop, peers.request(library, kind, context, port, message, seconds)) / seconds)


def measure(
    library: str, kind: str, loop: str, tls: bool, size: int, seconds: float, core: int | None
) -> float:
    """Round trips per second of one library, in fresh processes."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(
        target=_server_process, args=(library, kind, loop, tls, core, there), daemon=True
    )
    server.start()
    try:
        if not here.poll(60):
            raise RuntimeError(f"the {library} server did not start")
        port = here.recv()
        client = spawn.Process(
            target=_client_process,
            args=(library, kind, loop, tls, core, there, port, size, seconds),
            daemon=True,
        )
        client.start()
        if not here.poll(60 + seconds):
            raise RuntimeError(f"the {library} client did not finish")
        rate: float = here.recv()
        client.join(30)
        return rate
    finally:
        server.kill()
        server.join()


def compare(
    arguments: argparse.Namespace, peer: str, kind: str, loop: str, tls: bool, size: int
) -> dict[str, Any]:
    ours, theirs = [], []
    for pair in range(arguments.pairs):
        libraries = ["picows_fast", peer] if pair % 2 == 0 else [peer, "picows_fast"]
        for library in libraries:
            rate = measure(library, kind, loop, tls, size, arguments.seconds, arguments.core)
            (ours if library == "picows_fast" else theirs).append(rate)
            print(".", end="", file=sys.stderr, flush=True)
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    return {
        "peer": peer,
        "listener": kind,
        "loop": loop,
        "tls": tls,
        "size": size,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu
        )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("picows", "websockets", "aiohttp", "uvloop")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, action="append", help="payload in bytes; repeatable")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], action="append")
    parser.add_argument("--listener", choices=["python", "cython"], action="append")
    parser.add_argument(
        "--peer", choices=peers.LIBRARIES[1:], action="append", help="default: picows"
    )
    parser.add_argument("--tls", choices=["no", "yes", "both"], default="both")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument(
        "--core", type=int, default=0, help="that both sides are pinned to; -1: none"
    )
    parser.add_argument(
        "--quick", action="store_true", help="256 B and 8 KiB, Cython listener, shorter"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "roundtrip.json")
    arguments = parser.parse_args()
    sizes = arguments.size or ([256, 8192] if arguments.quick else [256, 8192, 102_400])
    kinds = arguments.listener or (["cython"] if arguments.quick else ["cython", "python"])
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 0.5)
    if arguments.core < 0:
        arguments.core = None
    for library in peers.CALLBACK_LIBRARIES:
        if "cython" in kinds:
            peers.cython_listeners(library)
    rows = []
    print(
        f"{'peer':11} {'listener':8} {'loop':8} {'tls':4} {'bytes':>7} "
        f"{'ours/s':>9} {'peer/s':>9} {'ratio':>6}  spread"
    )
    for peer in arguments.peer or ["picows"]:
        for kind in kinds if peer in peers.CALLBACK_LIBRARIES else kinds[:1]:
            for tls in {"no": [False], "yes": [True], "both": [False, True]}[arguments.tls]:
                for loop in arguments.loop or ["uvloop", "asyncio"]:
                    for size in sizes:
                        row = compare(arguments, peer, kind, loop, tls, size)
                        rows.append(row)
                        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
                        print(
                            f"{peer:11} {kind:8} {loop:8} {'yes' if tls else 'no':4} {size:7} "
                            f"{row['ours']:9.0f} {row['theirs']:9.0f} {row['ratio']:6.2f}  "
                            f"{row['lowest']:.2f}..{row['highest']:.2f}",
                            flush=True,
                        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
