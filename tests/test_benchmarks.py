"""benchmarks/: every workload runs, in a tiny size, with every library; what it counts is right.

Nothing here says how fast anything is.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accept, fanout, flood, mask, masksend, memory, report, roundtrip, stalled
from benchmarks.measuring import (
    OURS,
    Case,
    Progress,
    Row,
    Settings,
    UnavailableError,
    contestants,
    run,
)
from benchmarks.peers import CALLBACKS, REFERENCE, STREAMS
from benchmarks.processes import CERTIFICATE, ROOT, in_c
from picows_fast import WSMsgType, ws_connect, ws_create_server

from .support import Echo, Recorder

LIBRARIES = (*CALLBACKS, *STREAMS)
SECONDS = 0.02

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the C reference is for Linux"),
    pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler"),
    pytest.mark.skipif(
        os.environ.get("PICOWS_FAST_SANITIZE") == "1",
        reason="other libraries and valgrind for the most part, and sanitizers cannot run in it",
    ),
]
# The loop that matters is the worker's.
on_one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    if request.param and not Path("/usr/include/openssl/ssl.h").exists():
        pytest.skip("OpenSSL's headers are not installed")
    return bool(request.param)


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE))


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


# --- the C reference


@on_one_loop
async def test_reference_server_echoes(tls: bool) -> None:
    payloads = [bytes(range(256)) * 300, *(b"x" * size for size in (0, 1, 125, 126, 65536))]
    with in_c("serve", None, tls) as server:
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.answer()['port']}/"
        transport, client = await ws_connect(
            Recorder, url, ssl_context=client_context() if tls else None
        )
        for payload in payloads:
            transport.send(WSMsgType.BINARY, payload)
        await client.frame(len(payloads) - 1)
        assert client.frames == [(WSMsgType.BINARY, payload, True) for payload in payloads]
        transport.send_close(1000)
        await client.closed()


@on_one_loop
async def test_reference_client_sends_what_it_gets_back(tls: bool) -> None:
    listeners: list[Echo] = []

    def factory(request: Any) -> Echo:
        listeners.append(Echo())
        return listeners[-1]

    server = await ws_create_server(factory, "127.0.0.1", 0, ssl=server_context() if tls else None)
    port = server.sockets[0].getsockname()[1]
    try:
        with in_c("echo", None, tls, port=port, size=1000, seconds=SECONDS) as client:
            answer = await asyncio.to_thread(client.answer)
            await listeners[0].closed()
    finally:
        server.close()
        await server.wait_closed()
    payloads = {payload for _, payload, _ in listeners[0].frames}
    assert len(listeners[0].frames) == answer["count"] > 0
    assert len(payloads) == 1  # every one unmasked to the same
    assert len(payloads.pop()) == 1000


@on_one_loop
async def test_reference_says_what_is_wrong() -> None:
    with (
        in_c("echo", None, port=1, size=10, seconds=SECONDS) as client,
        pytest.raises(RuntimeError, match="connect"),
    ):
        client.answer()


# --- the workloads


@pytest.mark.parametrize("library", [*LIBRARIES, REFERENCE])
def test_roundtrip(library: str, tls: bool) -> None:
    rate = roundtrip.measure(library, 300, tls, "asyncio", "python", "best", SECONDS)
    assert rate > 0


@pytest.mark.parametrize("library", CALLBACKS)
@pytest.mark.parametrize("code", ["best", "same"])
def test_roundtrip_in_cython(library: str, code: str) -> None:
    assert roundtrip.measure(library, 100_000, False, "uvloop", "cython", code, SECONDS) > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_roundtrip_on_many_connections(library: str) -> None:
    rate = roundtrip.measure(library, 300, False, "uvloop", "python", "best", SECONDS, 20)
    assert rate > 0


def test_roundtrip_on_our_own_loop() -> None:
    assert roundtrip.measure(OURS, 300, False, "own", "python", "best", SECONDS) > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_flood_counts_every_frame(library: str, tls: bool) -> None:
    # It raises if the library took another number of frames than were sent.
    assert flood.measure(library, tls, "asyncio", "python", "count", SECONDS, size=100) > 0


@pytest.mark.parametrize("library", CALLBACKS)
@pytest.mark.parametrize("take", ["nothing", "bytes", "count"])
def test_flood_in_cython(library: str, take: str) -> None:
    assert flood.measure(library, False, "uvloop", "cython", take, SECONDS, size=1000) > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_flood_of_a_recorded_feed(library: str, feeds: Path) -> None:
    if not (feeds / "kraken.jsonl.gz").is_file():
        pytest.skip("the feed is absent")
    assert flood.measure(library, False, "asyncio", "python", "count", SECONDS, feed="kraken") > 0


def test_a_feed_that_is_absent_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flood, "FOLDER", tmp_path)
    flood.feed_stream.cache_clear()
    with pytest.raises(UnavailableError, match="coinbase"):
        flood.feed_stream("coinbase")


@pytest.mark.parametrize("library", LIBRARIES)
def test_fanout(library: str) -> None:
    value = fanout.measure(library, 5, 3, False, "asyncio", "python", "same", SECONDS)
    assert 0 < value < math.inf


@pytest.mark.parametrize("code", ["same", "best", "coalesce"])
@pytest.mark.parametrize("listener", ["python", "cython"])
def test_fanout_of_joined_frames(code: str, listener: str, tls: bool) -> None:
    value = fanout.measure(OURS, 3, 16, tls, "uvloop", listener, code, SECONDS)
    assert 0 < value < math.inf


@pytest.mark.parametrize("library", CALLBACKS)
@pytest.mark.parametrize("listener", ["python", "cython"])
def test_fanout_by_a_channel(library: str, listener: str, tls: bool) -> None:
    value = fanout.measure(library, 3, 16, tls, "uvloop", listener, "channel", SECONDS)
    assert 0 < value < math.inf


@pytest.mark.parametrize("clients", [0, 1])
def test_stalled(clients: int) -> None:
    # It raises if a client has not every message, or the stalled one more than the newest.
    assert stalled.measure(clients, 3, 20, SECONDS, "asyncio") > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_accept(library: str, tls: bool) -> None:
    assert accept.measure(library, tls, "asyncio", SECONDS) > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_memory(library: str, tls: bool) -> None:
    assert memory.measure(library, tls, "asyncio", 30) >= 0


@pytest.mark.parametrize("name", [OURS, "picows", "memcpy"])
def test_mask(name: str) -> None:
    assert mask.measure(name, 64, 0, 0.001) > 0


@pytest.mark.skipif(not shutil.which("valgrind"), reason="there is no valgrind")
def test_masksend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masksend, "COUNT", 50)
    value = masksend.measure(OURS)
    assert 50 < value < 50_000


# --- turns and ratios


def compare(
    measures: dict[str, Callable[[], float]], **options: Any
) -> tuple[list[Row], list[str]]:
    case = Case("w", {"size": "1"}, "x/s", measures, **options)
    said: list[str] = []
    return run(case, Settings(rounds=3), Progress(0), said.append), said


def test_pairs_alternate_and_the_median_of_their_ratios_counts() -> None:
    order: list[str] = []
    values = {OURS: iter([2.0, 40.0, 6.0]), "peer": iter([1.0, 10.0, 2.0])}

    def measure(name: str) -> Callable[[], float]:
        def once() -> float:
            order.append(name)
            return next(values[name])

        return once

    (row,), said = compare({OURS: measure(OURS), "peer": measure("peer")})
    assert order == [OURS, "peer", "peer", OURS, OURS, "peer"]
    assert (row.ratio, row.lowest, row.highest, row.pairs) == (3.0, 2.0, 4.0, 3)
    assert (row.ours, row.theirs) == (6.0, 2.0)
    assert said == []


@pytest.mark.parametrize(
    ("error", "word"), [(UnavailableError, "skipped"), (RuntimeError, "FAILED")]
)
def test_a_peer_that_cannot_be_measured_is_left_out(error: type[Exception], word: str) -> None:
    def broken() -> float:
        raise error("no such thing")

    rows, said = compare({OURS: lambda: 4.0, "broken": broken, "peer": lambda: 2.0})
    assert [row.peer for row in rows] == ["peer"]
    assert said == [f"{word}: w 1, broken: no such thing"]
    rows, said = compare({OURS: broken, "peer": lambda: 2.0})
    assert rows == []
    assert len(said) == 1


def test_peers_and_labels_are_chosen() -> None:
    settings = Settings(peers=("b",), where={"size": ("1", "2")})
    assert list(contestants(settings, ["a", "b", OURS], lambda name: 1.0)) == [OURS, "b"]
    assert settings.wants({"size": "2"})
    assert settings.wants({"loop": "uvloop"})
    assert not settings.wants({"size": "3"})


# --- the command


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_command_writes_a_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    result = command(
        "--quick", "--only", "accept,mask", "--where", "tls=plain", "--where", "size=64",
        "--rounds", "1", "--seconds", str(SECONDS), "--json", file,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "accept, handshakes/CPU s" in result.stdout
    content = json.loads(file.read_text())
    assert content["machine"]["versions"]["picows"]
    rows = [Row(**row) for row in content["rows"]]
    assert {(row.workload, row.peer) for row in rows} == {
        ("accept", "picows"), ("mask", "picows"), ("mask", "memcpy"),
    }  # fmt: skip
    assert all(report.line(row) in result.stdout for row in rows)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "nothing"], "no workload 'nothing'"),
        (["--where", "size"], "LABEL=VALUE"),
        (["--only", "mask", "--where", "size=3"], "no case"),
    ],
)
def test_command_refuses(arguments: list[str], reason: str) -> None:
    result = command(*arguments)
    assert result.returncode != 0
    assert reason in result.stderr


def test_command_lists_cases() -> None:
    result = command("--list", "--only", "roundtrip", "--where", "size=256")
    assert result.returncode == 0
    assert "roundtrip  size=256 tls=plain loop=uvloop listener=cython code=best" in result.stdout
    assert "size=8192" not in result.stdout


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    machine = {"cpu": "a CPU", "python": "3.13", "versions": {"picows": "2.3.1"}}
    labels = {"tls": "plain", "loop": "uvloop", "listener": "cython", "code": "best", "size": "256"}
    rows = [
        Row("roundtrip", labels, "x/s", True, "picows", 2.0, 1.0, 2.0, 1.8, 2.1, 5),
        Row("mask", {"size": "64", "offset": "0"}, "GB/s", True, "picows", 2, 1, 2, 2, 2, 5),
        Row("many", {"size": "64"}, "x/s", True, "picows, uvloop", 2.0, 1.0, 2.0, 1.8, 2.1, 5),
    ]
    results = tmp_path / "results.json"
    content = {"machine": machine, "rows": [vars(row) for row in rows]}
    results.write_text(json.dumps(content))
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.plots", str(results), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == ["latency.svg", "mask.svg", "roundtrip.svg"]
