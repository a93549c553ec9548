"""Builds the fuzzers and runs them: ``python -m fuzz [SECONDS] [TARGET ...]``.

    coverage    (alone) which lines the inputs reach; see lines.py

    --jobs N    that many targets at once (default: 1)
    --seed N    makes a run repeatable, given the same corpus (default: a new one every time)
    --merge     afterwards, write the smallest inputs that together reach the same into fuzz/corpus

All that is built, and the corpus that grows from run to run, lies in build/fuzz; the package in the
checkout is left alone. An input that fails is kept in fuzz/crashes, and the exit code is 1.
Needs clang with its libFuzzer and atheris.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fuzz"
TARGETS = ("wire", "parser", "messages", "handshake")

WIRE_FLAGS = (
    "-std=c99", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
# Seconds for one input, MiB in one allocation, MiB of the process: nothing may come near.
LIMITS = ("-timeout=20", "-malloc_limit_mb=64", "-rss_limit_mb=3000")
# What was freed is kept for a while, to notice its use; the default is 256 MiB.
SANITIZER_OPTIONS = "detect_leaks=0:quarantine_size_mb=32"

# Of the merged corpus, what is worth committing.
MERGED_FILES = 40
MERGED_FILE_SIZE = 1200


class Result(NamedTuple):
    executions: int
    seconds: int
    edges: int
    features: int
    crashes: list[Path]
    status: int


def missing() -> list[str]:
    """What has to be installed first."""
    found = []
    clang = shutil.which("clang")
    if clang is None:
        found.append("clang (Debian: clang)")
    else:
        probe = subprocess.run(
            [clang, "-x", "c", "-", "-fsanitize=fuzzer", "-o", os.devnull],
            input="int LLVMFuzzerTestOneInput(const char *d, long s) { return d && s < 0; }",
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if probe.returncode:
            found.append("clang's libFuzzer (Debian: libclang-rt-14-dev)")
    if runtime() is None:
        found.append("atheris (from the package index: pip install atheris)")
    return found


def runtime() -> Path | None:
    """The library with libFuzzer and AddressSanitizer that atheris brings."""
    try:
        import atheris
    except ImportError:
        return None
    return Path(atheris.path()) / "asan_with_fuzzer.so"


def copy_sources(copy: Path) -> None:
    for name in ("picows_fast", "fuzz"):
        ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__", "corpus", "crashes")
        shutil.copytree(ROOT / name, copy / name, dirs_exist_ok=True, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)


def build() -> Path:
    """Build into a copy of the sources; gives the folder to run in."""
    copy = BUILD / "copy"
    copy_sources(copy)
    compilers = {"CC": "clang", "LDSHARED": "clang -shared", "PICOWS_FAST_FUZZ": "1"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=copy, env={**os.environ, **compilers}, check=True,
    )  # fmt: skip
    subprocess.run(
        ["clang", *WIRE_FLAGS, "-Ipicows_fast", ROOT / "fuzz/wire_fuzzer.c", "-o", "wire_fuzzer"],
        cwd=copy, check=True,
    )  # fmt: skip
    return copy


def command(target: str, copy: Path) -> tuple[list[str], Mapping[str, str]]:
    """The command of a fuzzer, without options, and its environment."""
    if target == "wire":
        return [str(copy / "wire_fuzzer")], {**os.environ, "ASAN_OPTIONS": SANITIZER_OPTIONS}
    environment = {
        **os.environ,
        "ASAN_OPTIONS": SANITIZER_OPTIONS,
        "LD_PRELOAD": str(runtime()),
        # A block of its own for every object: what is read or written beside it is noticed.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(copy),
    }
    return [sys.executable, "-m", "fuzz.engine", target], environment


def fuzz(target: str, copy: Path, seconds: int, seed: int) -> Result:
    """Run one fuzzer; its output goes to build/fuzz/TARGET.log."""
    corpus, seeds = BUILD / "corpus" / target, ROOT / "fuzz" / "corpus" / target
    crashes = ROOT / "fuzz" / "crashes" / target
    for folder in (corpus, seeds, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    known = set(crashes.iterdir())
    program, environment = command(target, copy)
    options = [f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1", *LIMITS]
    arguments = [*program, *options, f"-artifact_prefix={crashes}/", str(corpus), str(seeds)]
    log = BUILD / f"{target}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            arguments, cwd=copy, env=environment, check=False,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    text = log.read_text(errors="replace")
    progress = re.findall(r"^#(\d+)\t.* cov: (\d+) ft: (\d+) ", text, re.MULTILINE)
    _, edges, features = map(int, progress[-1]) if progress else (0, 0, 0)
    executed = re.search(r"^stat::number_of_executed_units: (\d+)", text, re.MULTILINE)
    total = re.search(r"^Done \d+ runs in (\d+) second", text, re.MULTILINE)
    return Result(
        int(executed[1]) if executed else 0, int(total[1]) if total else 0, edges, features,
        sorted(set(crashes.iterdir()) - known), done.returncode,
    )  # fmt: skip


def merge(target: str, copy: Path) -> None:
    """Make the committed seeds of a target anew, from them and what was found since.

    Seeds with a name that somebody gave them stay.
    """
    seeds = ROOT / "fuzz" / "corpus" / target
    program, environment = command(target, copy)
    grown = BUILD / "corpus" / target
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*program, "-merge=1", f"-max_len={MERGED_FILE_SIZE}", folder, str(seeds), str(grown)],
            cwd=copy, env=environment, capture_output=True, check=True,
        )  # fmt: skip
        inputs = [path for path in Path(folder).iterdir() if path.stat().st_size > 4]
        inputs.sort(key=lambda path: path.stat().st_size)
        for path in seeds.iterdir():
            if re.fullmatch("[0-9a-f]{40}", path.name):
                path.unlink()
        # Every so many of them, by size, so that all sizes have their share.
        for path in inputs[:: -(-len(inputs) // MERGED_FILES) or 1]:
            shutil.copy(path, seeds)


def print_result(target: str, result: Result, seconds: int) -> None:
    speed = result.executions // max(result.seconds or seconds, 1)
    outcome = "ok"
    if result.status or result.crashes:
        outcome = ", ".join(str(path.relative_to(ROOT)) for path in result.crashes)
        outcome = f"FAILED: {outcome or 'no input'}, see {BUILD.relative_to(ROOT)}/{target}.log"
    print(
        f"{target:10} {result.executions:11,} {speed:9,} {result.edges:6,} "
        f"{result.features:8,}  {outcome}", flush=True,
    )  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["coverage"]:
        from . import lines  # needs coverage.py, which nothing else here does

        lines.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="fuzz picows_fast")
    parser.add_argument("seconds", nargs="?", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true")
    options = parser.parse_args()
    for target in options.targets:
        if target not in TARGETS:
            parser.error(f"{target} is not one of {', '.join(TARGETS)}")
    needed = missing()
    if needed:
        sys.exit(f"to be installed first: {'; '.join(needed)}")

    copy = build()
    targets = options.targets or TARGETS
    failed = []
    print(f"{'':10} {'executions':>11} {'a second':>9} {'edges':>6} {'features':>8}  result")
    with ThreadPoolExecutor(options.jobs) as threads:
        results = threads.map(lambda name: fuzz(name, copy, options.seconds, options.seed), targets)
        for target, result in zip(targets, results, strict=True):
            if result.status or result.crashes:
                failed.append(target)
            print_result(target, result, options.seconds)
            if options.merge:
                merge(target, copy)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
