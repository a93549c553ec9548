"""benchmarks/: every workload runs, in a tiny size, with every library; what it counts is right.

Nothing here says how fast anything is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    accept,
    fanout,
    flood,
    latency,
    mask,
    masksend,
    memory,
    report,
    roundtrip,
    slices,
    stalled,
)
from benchmarks.measuring import (
    OURS,
    Case,
    Measure,
    Progress,
    Row,
    Session,
    Settings,
    UnavailableError,
    contestants,
    run,
)
from benchmarks.peers import BARE, CALLBACKS, REFERENCE, STREAMS, bare
from benchmarks.peers.callbacks import cython_listeners
from benchmarks.peers.extension import built
from benchmarks.processes import CERTIFICATE, ROOT, in_c, in_python
from picows_fast import WSMsgType, ws_connect, ws_create_server

from . import needs
from .support import Echo, Recorder

LIBRARIES = (*CALLBACKS, *STREAMS)
SECONDS = 0.02

pytestmark = [
    needs.c_reference,
    needs.no_sanitizers("other libraries and valgrind for the most part, which cannot run them"),
]
# The loop that matters is the worker's.
on_one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    if request.param and not Path("/usr/include/openssl/ssl.h").exists():
        pytest.skip("OpenSSL's headers are not installed")
    return bool(request.param)


@pytest.fixture(scope="session")
def built_listeners() -> None:
    """A worker would compile them while somebody waits for its first answer."""
    for library in CALLBACKS:
        cython_listeners(library)
    built("bare", bare.SOURCE.read_text())


in_cython = pytest.mark.usefixtures("built_listeners")


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
@pytest.mark.parametrize("library", [*LIBRARIES, REFERENCE])
async def test_clients_echo_in_their_slices_only(library: str, tls: bool) -> None:
    """Round trips are counted exactly, and none is made while another pair has its turn."""
    listeners: list[Echo] = []

    def factory(request: Any) -> Echo:
        listeners.append(Echo())
        return listeners[-1]

    server = await ws_create_server(factory, "127.0.0.1", 0, ssl=server_context() if tls else None)
    request = {
        "port": server.sockets[0].getsockname()[1],
        "size": 1000,
        "seconds": SECONDS,
        "tls": tls,
    }
    if library == REFERENCE:
        starting = in_c("echo", None, **request)
    else:
        starting = in_python("echo", None, library=library, loop="asyncio", **request)
    try:
        with starting as client:
            assert await asyncio.to_thread(client.answer) == {"ready": 1}
            answers = [await asyncio.to_thread(client.ask, "echo") for _ in range(2)]
        (listener,) = listeners
        await listener.closed()
    finally:
        server.close()
        await server.wait_closed()
    assert all(answer["count"] > 0 for answer in answers)
    echoed = [payload for kind, payload, _ in listener.frames if kind == WSMsgType.BINARY]
    assert len(echoed) == sum(answer["count"] for answer in answers)
    assert len(set(echoed)) == 1  # every one unmasked to the same
    assert len(echoed[0]) == 1000


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
    with roundtrip.pair(library, 300, tls, "asyncio", "python", "best", SECONDS) as measure:
        assert all(measure() > 0 for _ in range(3))


@in_cython
@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, roundtrip.BARE_SIZE])
def test_roundtrip_of_a_bare_callback(size: int) -> None:
    with roundtrip.pair(BARE, size, False, "uvloop", "cython", "best", SECONDS) as measure:
        assert all(measure() > 0 for _ in range(2))


@in_cython
@pytest.mark.parametrize("library", CALLBACKS)
@pytest.mark.parametrize("code", ["best", "same"])
def test_roundtrip_in_cython(library: str, code: str) -> None:
    with roundtrip.pair(library, 100_000, False, "uvloop", "cython", code, SECONDS) as measure:
        assert measure() > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_roundtrip_on_many_connections(library: str) -> None:
    pair = roundtrip.pair(library, 300, False, "uvloop", "python", "best", SECONDS, 20)
    with pair as measure:
        assert measure() > 0


def test_roundtrip_on_our_own_loop() -> None:
    with roundtrip.pair(OURS, 300, False, "own", "python", "best", SECONDS) as measure:
        assert measure() > 0


@in_cython
@pytest.mark.parametrize("one_core", [True, False], ids=["one-core", "two-cores"])
@pytest.mark.parametrize("name", latency.CONTESTANTS)
def test_latency(name: str, one_core: bool) -> None:
    library, loop = latency.CONTESTANTS[name]
    with latency.pair(library, loop, one_core, SECONDS) as measure:
        assert all(measure() > 0 for _ in range(2))


@pytest.mark.parametrize("library", LIBRARIES)
def test_flood_counts_every_frame(library: str, tls: bool) -> None:
    # It raises if the library took another number of frames than were sent.
    assert flood.measure(library, tls, "asyncio", "python", "count", SECONDS, size=100) > 0


@in_cython
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


@in_cython
@pytest.mark.parametrize("code", ["same", "best", "coalesce"])
@pytest.mark.parametrize("listener", ["python", "cython"])
def test_fanout_of_joined_frames(code: str, listener: str, tls: bool) -> None:
    value = fanout.measure(OURS, 3, 16, tls, "uvloop", listener, code, SECONDS)
    assert 0 < value < math.inf


@in_cython
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
@in_cython
def test_masksend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masksend, "COUNT", 50)
    value = masksend.measure(OURS)
    assert 50 < value < 50_000


# --- turns and ratios


def compare(
    measures: Mapping[str, Measure | Session], **options: Any
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


class Sessions:
    """Contestants that note what happens to them, and give what they are told, slice by slice."""

    def __init__(self, **values: list[float]) -> None:
        self.events: list[str] = []
        self.contestants = {name: self._session(name, iter(values[name])) for name in values}

    def _session(self, name: str, values: Iterator[float]) -> Session:
        def measure() -> float:
            self.events.append(name)
            try:
                return next(values)
            except StopIteration:
                raise RuntimeError("no more") from None

        @contextlib.contextmanager
        def opened() -> Iterator[Measure]:
            self.events.append(f"+{name}")
            yield measure
            self.events.append(f"-{name}")

        return Session(opened)


def test_sessions_take_turns_in_slices_and_the_median_of_a_round_counts() -> None:
    ours = [2.0, 100.0, 4.0, 6.0, 6.0, 6.0, 9.0, 9.0, 0.0]
    sessions = Sessions(**{OURS: ours, "b": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0]})
    (row,), said = compare(sessions.contestants, slices=3)
    first = f"+{OURS} {OURS} +b b b {OURS} {OURS} b -b -{OURS}"
    second = f"+b b +{OURS} {OURS} {OURS} b b {OURS} -{OURS} -b"
    assert " ".join(sessions.events) == f"{first} {second} {first}"
    assert (row.ratio, row.lowest, row.highest, row.pairs) == (3.0, 2.0, 4.5, 3)
    assert (row.ours, row.theirs) == (6.0, 2.0)
    assert said == []


def test_a_session_that_fails_in_a_slice_is_left_out() -> None:
    sessions = Sessions(**{OURS: [1.0] * 9, "a": [1.0] * 4, "b": [1.0] * 9})
    (row,), said = compare(sessions.contestants, slices=3)
    assert (row.peer, row.pairs) == ("b", 3)
    assert said == ["FAILED: w 1, a: no more"]
    assert sessions.events.count("+a") == sessions.events.count("-a") == 2
    sessions = Sessions(**{OURS: [1.0], "b": [1.0] * 9})
    assert compare(sessions.contestants, slices=3) == ([], [f"FAILED: w 1, {OURS}: no more"])
    assert sessions.events[-2:] == ["-b", f"-{OURS}"]


def test_slices_make_a_measurement() -> None:
    assert slices.count(0.001) == 1
    assert slices.count(0.6) == 20


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
