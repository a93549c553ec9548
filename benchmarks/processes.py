"""The processes that are measured: starting them on a core, talking with them, ending them.

Both kinds, the C reference and `benchmarks.worker`, speak the same way: they print JSON objects, a
line each, on standard output; some read commands from standard input, a line each, and end with it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .measuring import UnavailableError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
BUILT = RESULTS / "built"
CERTIFICATE = ROOT / "picows_fast" / "cli" / "loopback.pem"
PATIENCE = 60.0  # seconds that a process may take beyond what it was asked to


def cores() -> tuple[int, int]:
    """The core of what is measured, and that of what drives it: another one, if there is one."""
    if not hasattr(os, "sched_getaffinity"):
        return 0, 0
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def compiled(source: Path, *options: str, libraries: tuple[str, ...] = ()) -> Path:
    """Compile a C program or library, if it has changed; gives the file."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise UnavailableError("no C compiler")
    command = [compiler, "-O3", "-march=native", *options]
    wire = ROOT / "picows_fast" / "protocol" / "wire"
    headers = [*source.parent.glob("*.h"), *wire.glob("*.h")]
    made_of = [source, *sorted(headers)]
    content = b"".join(path.read_bytes() for path in made_of) + " ".join(command).encode()
    target = BUILT / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not target.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        result = subprocess.run(
            [*command, "-o", str(unfinished), str(source), *libraries],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise UnavailableError(f"{source.name} does not compile: {result.stderr.strip()}")
        unfinished.rename(target)
    return target


@functools.cache
def reference(tls: bool) -> Path:
    """The C reference; without TLS it needs nothing but a compiler."""
    if sys.platform != "linux":
        raise UnavailableError("the C reference is for Linux")
    source = HERE / "reference.c"
    if tls:
        return compiled(source, "-DWITH_TLS", libraries=("-lssl", "-lcrypto"))
    return compiled(source)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Meanwhile this thread is on one core; a process that it starts stays there."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


class Process:
    """A process that speaks JSON lines."""

    def __init__(self, command: list[str], core: int | None) -> None:
        # No more of our path than that: found elsewhere, the same modules leave another heap.
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        with pinned(core):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)

    def answer(self, patience: float = 0) -> dict[str, Any]:
        """The next object it prints. RuntimeError: it ended or fell silent instead."""
        try:
            line = self._lines.get(timeout=PATIENCE + patience)
        except queue.Empty:
            raise RuntimeError(f"{self._process.args!r} is silent") from None
        if line is None:
            self._readers[1].join(5)
            text = "".join(self._errors[-20:])
            raise RuntimeError(f"{self._process.args!r} ended: {text}")
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        return answer

    def ask(self, command: str, patience: float = 0, **arguments: Any) -> dict[str, Any]:
        """Give a command, return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self.answer(patience)

    def finish(self) -> dict[str, Any]:
        """End its standard input, return the answer to that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.answer()

    def wait(self) -> None:
        """Wait until it ends by itself."""
        self._process.wait(PATIENCE)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def running(command: list[str], core: int | None) -> Iterator[Process]:
    process = Process(command, core)
    try:
        yield process
    finally:
        process.end()


def in_c(
    command: str, core: int | None, tls: bool = False, **options: Any
) -> contextlib.AbstractContextManager[Process]:
    """A command of the C reference."""
    arguments = [f"{name}={value}" for name, value in options.items() if value is not None]
    if tls:
        arguments.append(f"tls={CERTIFICATE}")
    return running([str(reference(tls)), command, *arguments], core)


def in_python(
    role: str, core: int | None, prefix: tuple[str, ...] = (), **specification: Any
) -> contextlib.AbstractContextManager[Process]:
    """A worker process; see benchmarks.worker for roles."""
    text = json.dumps({"role": role, **specification})
    return running([*prefix, sys.executable, "-m", "benchmarks.worker", text], core)
