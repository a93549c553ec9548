"""Which lines the inputs reach: ``python -m fuzz coverage [--seeds]``.

All inputs that there are, of fuzz/corpus, fuzz/crashes and what runs have left in
build/fuzz/corpus, are replayed in a build for gcov in build/fuzz/lines (gcc; neither clang nor
atheris). With --seeds, only those that are committed.

C and Cython are counted by gcov, Python by coverage.py. A line of Cython is reached if the first
machine code that Cython's generated C has for it ran; what runs when a module is imported, as
definitions and constants do, is not counted. Headers in C are compiled with and without SIMD,
unused functions included, and a line is reached if it is in either.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .__main__ import BUILD, ROOT, TARGETS, copy_sources

COPY = BUILD / "lines"
WIRE = (
    "picows_fast/protocol/wire/frame.h",
    "picows_fast/protocol/wire/mask.h",
    "picows_fast/protocol/wire/utf8.h",
)
CYTHON = (
    "picows_fast/protocol/codec.pyx",
    "picows_fast/layers/messages.pyx",
    "picows_fast/protocol/http/quick.pyx",
)
PURE = (
    "picows_fast/protocol/upgrade.py",
    "picows_fast/protocol/http/messages.py",
    "picows_fast/protocol/url.py",
    "picows_fast/protocol/origins.py",
)

_WIRE_FLAGS = (
    "-std=c99", "-O0", "-g", "--coverage", "-fkeep-static-functions", "-fkeep-inline-functions",
    "-DPF_FUZZ_REPLAY", "-Ipicows_fast",
)  # fmt: skip

Lines = dict[int, bool]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz coverage", description="lines reached")
    parser.add_argument("--seeds", action="store_true", help="only by committed inputs")
    options = parser.parse_args(arguments)
    folders = [ROOT / "fuzz" / "corpus", ROOT / "fuzz" / "crashes"]
    if not options.seeds:
        folders.append(BUILD / "corpus")
    copy_sources(COPY)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=COPY, env={**os.environ, "PICOWS_FAST_COVERAGE": "1"}, check=True,
    )  # fmt: skip
    for counted in COPY.rglob("*.gcda"):
        counted.unlink()

    reached: dict[str, Lines] = {}
    for number, flag in enumerate(([], ["-DPF_NO_SIMD"])):
        add(reached, wire_lines(f"wire{number}", flag, folders))
    subprocess.run(
        [sys.executable, "-m", "fuzz.lines", *map(str, folders)],
        cwd=COPY, env={**os.environ, "PYTHONPATH": str(COPY)}, check=True,
    )  # fmt: skip
    for name in CYTHON:
        add(reached, {name: cython_lines(name)})
    for name, lines in json.loads((COPY / "python.json").read_text()).items():
        add(reached, {name: {int(line): hit for line, hit in lines.items()}})
    report(reached)


def inputs(target: str, folders: Iterable[Path]) -> list[Path]:
    found = (path for folder in folders for path in (folder / target).glob("*"))
    return sorted(path for path in found if path.is_file())


def add(reached: dict[str, Lines], more: dict[str, Lines]) -> None:
    for name, lines in more.items():
        known = reached.setdefault(name, {})
        for line, hit in lines.items():
            known[line] = known.get(line, False) or hit


def report(reached: dict[str, Lines]) -> None:
    print(f"{'':32} {'lines':>5} {'reached':>7}        not reached")
    for name in (*WIRE, *CYTHON, *PURE):
        lines = reached[name]
        hit = sum(lines.values())
        missed = " ".join(ranges(sorted(line for line in lines if not lines[line]), sorted(lines)))
        print(f"{name:32} {len(lines):5} {hit:7} {100 * hit / len(lines):5.1f}%  {missed}")


def ranges(missed: list[int], lines: list[int]) -> Iterator[str]:
    """`missed` in short; a range goes on over lines without code."""
    place = {line: index for index, line in enumerate(lines)}
    start = 0
    for index, line in enumerate(missed):
        last = index + 1 == len(missed)
        if last or place[missed[index + 1]] != place[line] + 1:
            first = missed[start]
            yield str(first) if first == line else f"{first}-{line}"
            start = index + 1


# --- C and Cython --------------------------------------------------------------------------------


def wire_lines(program: str, flags: list[str], folders: Iterable[Path]) -> dict[str, Lines]:
    source = ROOT / "fuzz" / "wire_fuzzer.c"
    compiler = shutil.which("gcc") or sys.exit("to be installed first: gcc")
    command = [compiler, *_WIRE_FLAGS, *flags, str(source), "-o", program]
    subprocess.run(command, cwd=COPY, check=True)
    files = [str(path) for path in inputs("wire", folders)]
    for start in range(0, len(files), 1000):  # a command line has a limit
        subprocess.run(
            [f"./{program}", *files[start : start + 1000]],
            cwd=COPY, check=True, capture_output=True,
        )  # fmt: skip
    (notes,) = COPY.glob(f"{program}-*.gcno")
    return {name: lines for name, lines in gcov(notes).items() if name in WIRE}


def gcov(notes: Path) -> dict[str, Lines]:
    """The lines that have code, of each source by its path in the copy."""
    done = subprocess.run(
        ["gcov", "--json-format", "--stdout", str(notes)], cwd=COPY, check=True, capture_output=True
    )
    text = gzip.decompress(done.stdout) if done.stdout[:2] == b"\x1f\x8b" else done.stdout
    found: dict[str, Lines] = {}
    for file in json.loads(text)["files"]:
        path = (COPY / file["file"]).resolve()
        if not path.is_relative_to(COPY):
            continue
        lines = found.setdefault(str(path.relative_to(COPY)), {})
        for line in file["lines"]:
            number = line["line_number"]
            lines[number] = lines.get(number, False) or line["count"] > 0
    return found


_MARK = re.compile(r'\s*/\* "(?P<file>[^"]+)":(?P<line>\d+)$')
_FUNCTION = re.compile(r"^[^\s#/{}].*\)\s*\{?$")


def cython_lines(name: str) -> Lines:
    """From the marks that Cython puts before the code of each line of its source."""
    generated = str(Path(name).with_suffix(".c"))
    (notes,) = COPY.glob(f"build/temp.*/{Path(name).with_suffix('.gcno')}")
    counted = gcov(notes)[generated]
    lines: Lines = {}
    marked = 0
    importing = False
    for number, text in enumerate((COPY / generated).read_text().splitlines(), 1):
        mark = _MARK.match(text)
        if mark is not None:
            marked = int(mark["line"]) if mark["file"] == name else 0
        elif _FUNCTION.match(text):
            importing = "__pyx_pymod_exec" in text
        elif text == "}":
            marked = 0
            importing = False
        if marked and not importing and number in counted:
            lines[marked] = lines.get(marked, False) or counted[number]
            marked = 0
    return lines


# --- Python --------------------------------------------------------------------------------------


def replay(folders: list[Path]) -> None:
    """In a process of its own, which lives in the copy: gcov's counters are written at its end."""
    import coverage

    counter = coverage.Coverage(
        data_file=None, config_file=False, include=[str(ROOT / name) for name in PURE]
    )
    counter.start()
    for target in TARGETS:
        if target == "wire":
            continue
        one_input = importlib.import_module(f"fuzz.{target}_fuzzer").one_input
        for path in inputs(target, folders):
            one_input(path.read_bytes())
    counter.stop()
    found = {}
    for name in PURE:
        _, statements, _, missing, _ = counter.analysis2(str(ROOT / name))
        found[name] = {line: line not in missing for line in statements}
    (ROOT / "python.json").write_text(json.dumps(found))


if __name__ == "__main__":
    replay([Path(folder) for folder in sys.argv[1:]])
