"""The seeds of the fuzzers, and every input that once failed, on each test run.

Needs neither clang nor a fuzzing engine: the fuzzers in Python are called with each file, the one
in C is built as a program that reads files. What a fuzzer checks is in its own module.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"
MAX_FILES = 400
MAX_BYTES = 200 * 1024


def inputs(*targets: str) -> list[Path]:
    folders = [FUZZ / kind / target for kind in ("corpus", "crashes") for target in targets]
    return sorted(path for folder in folders for path in folder.glob("*") if path.is_file())


@pytest.mark.parametrize(
    "path",
    inputs("parser", "messages", "handshake"),
    ids=lambda path: f"{path.parent.name}-{path.name[:20]}",
)
def test_input(path: Path) -> None:
    target = importlib.import_module(f"fuzz.{path.parent.name}_fuzzer")
    target.one_input(path.read_bytes())


@pytest.mark.skipif(sys.platform == "win32", reason="the command line is that of a POSIX compiler")
@pytest.mark.parametrize("options", [[], ["-DPF_NO_SIMD"]], ids=["simd", "scalar"])
def test_wire(options: list[str], tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    program = tmp_path / "wire_fuzzer"
    package = FUZZ.parent / "picows_fast"
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
    done = subprocess.run(
        [compiler, *warnings, "-O1", "-DPF_FUZZ_REPLAY", *options, f"-I{package}"]
        + [str(FUZZ / "wire_fuzzer.c"), "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = inputs("wire")
    done = subprocess.run([program, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(files)} files\n"


@pytest.mark.parametrize("target", ["wire", "parser", "messages", "handshake"])
def test_there_are_seeds(target: str) -> None:
    assert inputs(target)


def test_seeds_stay_few_and_small() -> None:
    files = inputs("wire", "parser", "messages", "handshake")
    assert len(files) < MAX_FILES
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
