"""Everything a developer runs, on a fresh machine too: needs Python 3.10+ with venv, and a C
compiler.

    python3 dev.py demo [options]       the demo, built and running
    python3 dev.py test [pytest args]   the tests
    python3 dev.py transports [pytest args]   the tests with the transports of other systems
    python3 dev.py conformance [options]   the Autobahn test suite; needs a Python 2.7
    python3 dev.py fuzz [SECONDS] [TARGET ...]   the fuzzers; needs clang and atheris
    python3 dev.py soak [SECONDS] [options]   random clients, servers and faults
    python3 dev.py bench [options]      the benchmarks: --quick, --only NAMES, ...; --help tells
    python3 dev.py sanitize [pytest args]   the tests with address and undefined behaviour checks
    python3 dev.py coverage [pytest args]   the lines that tests reach; needs Python 3.10 or 3.11
    python3 dev.py docs                 the documentation, in build/docs; its examples are run
    python3 dev.py dist                 sdist and wheel in dist/, installed and tried out elsewhere
    python3 dev.py lint | types | build | clean

The first call makes a virtual environment in .venv (or where $VENV says) and builds the package in
place; later ones build what has changed. Tests that need a compiler or emulator that is not
installed say so and are skipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv"))
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EXTENSIONS = sorted(
    ".".join(path.relative_to(ROOT / "picows_fast").with_suffix("").parts)
    for path in (ROOT / "picows_fast").rglob("*.pyx")
)


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> None:
    """Run a command in the checkout; end this program with its exit code if it fails."""
    result = subprocess.run(
        [str(part) for part in command], cwd=folder, env=os.environ | environment, check=False
    )
    if result.returncode:
        sys.exit(result.returncode)


def prepare() -> None:
    """Make the environment if it is missing or older than what it is made from, and build what has
    changed."""
    made_from = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "dev.py").read_bytes()
    digest = hashlib.sha256(made_from).hexdigest()
    stamp = VENV / "made-from"
    if not stamp.exists() or stamp.read_text() != digest:
        print(f"making the environment in {VENV} ...", flush=True)
        venv.create(VENV, with_pip=True, clear=True)
        pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--upgrade", "pip>=25.1")
        run(*pip, "setuptools>=77", "Cython>=3.1")
        run(*pip, "--no-build-isolation", "--editable", ".")
        run(*pip, "--group", "dev")
        stamp.write_text(digest)
    else:
        build()


def build(folder: Path = ROOT, **environment: str) -> None:
    run(PYTHON, "setup.py", "-q", "build_ext", "--inplace", folder=folder, **environment)


def copy_sources(folder: Path) -> None:
    """Make `folder` a copy of the checkout, without what was built there; its own builds stay."""

    def ignored(_: str, names: list[str]) -> set[str]:
        generated = {name.removesuffix(".pyx") + ".c" for name in names if name.endswith(".pyx")}
        return {
            name
            for name in names
            if name in generated or name == "__pycache__" or name.endswith((".so", ".pyd"))
        }

    shutil.rmtree(folder / "tests", ignore_errors=True)  # a test that is gone must not run
    folder.mkdir(parents=True, exist_ok=True)
    for path in ROOT.iterdir():
        if path.name.startswith(".") or path in (VENV, ROOT / "build", ROOT / "dist"):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(path, folder)


def demo(arguments: list[str]) -> None:
    run(PYTHON, "-m", "picows_fast", "demo", *arguments)


def test(arguments: list[str]) -> None:
    # Most tests wait for a peer most of the time, so more may run at once than there are cores.
    run(PYTHON, "-m", "pytest", *(arguments or ["-n", "4"]))


def transports(arguments: list[str]) -> None:
    """The tests with what connections use on other systems: TLS through Python's ssl objects, then
    the event loop's transports."""
    for name in ("tls-bio", "loop"):
        run(PYTHON, "-m", "pytest", f"--transport={name}", *(arguments or ["-n", "4"]))


def lint(arguments: list[str]) -> None:
    run(PYTHON, "-m", "ruff", "check", ".", *arguments)
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    # Its rules for lines come from pycodestyle, which it looks for on the path.
    path = os.pathsep.join([str(PYTHON.parent), os.environ["PATH"]])
    folders = ("picows_fast", "fuzz", "tests", "examples")
    run(PYTHON, "-m", "cython_lint.cython_lint", *folders, PATH=path)


def types(arguments: list[str]) -> None:
    run(PYTHON, "-m", "mypy", *arguments)
    run(PYTHON, "-m", "pyright", "--pythonpath", PYTHON)
    modules = [f"picows_fast.{name}" for name in EXTENSIONS]
    run(PYTHON, "-m", "mypy.stubtest", *modules, "--allowlist", "tests/stubtest_allowlist.txt")


def sanitize(arguments: list[str]) -> None:
    """The tests with sanitizers in the extension modules, which are built in a copy."""
    copy = ROOT / "build" / "sanitize"
    copy_sources(copy)
    build(copy, PICOWS_FAST_SANITIZE="1")
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    # Every Python that the tests start has to load the sanitizers' runtime first; compilers, and
    # the programs that they build, must not. So Python is started by a script that says so, and
    # forgets it once it runs. The quarantine is what is kept of freed memory, to notice its use; by
    # default it is larger than what the tests of memory allow.
    asan = f"detect_leaks=0:quarantine_size_mb=8:log_path={copy / 'report'}"
    python = copy / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'export LD_PRELOAD="{" ".join(libraries)}"\n'
        f'export ASAN_OPTIONS="${{ASAN_OPTIONS:-{asan}}}" UBSAN_OPTIONS=print_stacktrace=1\n'
        f'exec "{PYTHON}" "$@"\n'
    )
    python.chmod(0o755)
    (copy / "sitecustomize.py").write_text(
        f"import os, sys\n\nos.environ.pop('LD_PRELOAD', None)\nsys.executable = {str(python)!r}\n"
    )
    feeds = os.environ.get("PICOWS_FAST_FEEDS", str(ROOT.parent / "shared" / "feeds"))
    environment = {"PYTHONMALLOC": "malloc", "PYTHONPATH": str(copy), "PICOWS_FAST_FEEDS": feeds}
    environment |= {"PICOWS_FAST_SANITIZE": "1", "ASAN_OPTIONS": asan}
    for report in copy.glob("report.*"):
        report.unlink()
    try:
        # Without --capture=sys, pytest would swallow the last words of its own process.
        run(python, "-m", "pytest", "--capture=sys", *arguments, folder=copy, **environment)
    finally:
        reports = sorted(copy.glob("report.*"))
        for report in reports:
            print(report.read_text(errors="replace"))
    if reports:  # in a process that a test started, and did not notice
        sys.exit(1)


def coverage(arguments: list[str]) -> None:
    """Which lines the tests reach, in a copy that is built with line tracing, against the floors.

    Not measured: what takes long and reaches no lines of its own.
    """
    version = subprocess.check_output(
        [PYTHON, "-c", "import sys; print(sys.version_info[:2] < (3, 12))"], text=True
    )
    if version.strip() != "True":
        sys.exit("coverage of Cython needs Python 3.10 or 3.11: newer ones trace in another way")
    run(PYTHON, "-m", "pip", "install", "--quiet", "--group", "coverage")
    copy = ROOT / "build" / "coverage"
    copy_sources(copy)
    build(copy, PICOWS_FAST_TRACE="1")
    feeds = os.environ.get("PICOWS_FAST_FEEDS", str(ROOT.parent / "shared" / "feeds"))
    environment = {"PYTHONPATH": str(copy), "PICOWS_FAST_FEEDS": feeds}
    cover = (PYTHON, "-m", "coverage")
    run(*cover, "erase", folder=copy)
    left_out = ("adversity", "conformance", "hardening", "test_benchmarks.py", "test_interop.py")
    left_out += ("test_fuzz_corpus.py", "test_loop_asyncio.py", "test_packaging.py")
    left_out += ("test_sanitizers.py", "test_wire.py")
    # Nor on every event loop: tracing takes its time, and the lines are the same.
    chosen = "not uvloop or uvloop_that_is_not_installed"
    tests = arguments or ["-n", "4", "-k", chosen, "--timeout=600"]
    tests += [] if arguments else [f"--ignore=tests/{name}" for name in left_out]
    command = [*map(str, cover), "run", "-m", "pytest", "-q", *tests]
    tested = subprocess.run(command, cwd=copy, env=os.environ | environment, check=False)
    run(*cover, "combine", "--quiet", folder=copy)
    run(*cover, "json", "--quiet", folder=copy)
    run(*cover, "report", "--skip-covered", folder=copy)
    if not arguments:
        run(PYTHON, "-m", "tests.coverage_floors", copy / "coverage.json")
    sys.exit(tested.returncode)


def fuzz(arguments: list[str]) -> None:
    # If there is no atheris for this Python, the fuzzers say so.
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--group", "fuzz"]
    subprocess.run(pip, cwd=ROOT, check=False)
    run(PYTHON, "-m", "fuzz", *arguments)


def soak(arguments: list[str]) -> None:
    run(PYTHON, "-m", "tests.soak", *arguments)


def conformance(arguments: list[str]) -> None:
    run(PYTHON, "-m", "tests.conformance.run", *arguments)


def bench(arguments: list[str]) -> None:
    run(PYTHON, "-m", "pip", "install", "--quiet", "--group", "bench")
    run(PYTHON, "-m", "benchmarks", *arguments)


def docs(arguments: list[str]) -> None:
    """The documentation as HTML, with warnings as errors, and its doctests."""
    run(PYTHON, "-m", "pip", "install", "--quiet", "--group", "docs")
    for builder in ("html", "doctest"):
        output = ROOT / "build" / "docs" / builder
        run(PYTHON, "-m", "sphinx", "-q", "-W", "-b", builder, "docs", output, *arguments)
    print(f"see {ROOT / 'build' / 'docs' / 'html' / 'index.html'}")


def dist(arguments: list[str]) -> None:
    """The sdist, the wheel made from it, and both tried out in environments of their own."""
    run(PYTHON, "-m", "pip", "install", "--quiet", "--group", "dist")
    # Here cibuildwheel is at hand, which says whether it takes its settings.
    run(PYTHON, "-m", "pytest", "-q", "tests/test_packaging.py")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run(PYTHON, "-m", "build", "--outdir", "dist")
    run(PYTHON, "-m", "tests.distribution", "dist", *arguments)


def clean(arguments: list[str]) -> None:
    """Remove the environment and everything that was built."""
    made = (".venv-wstest", "build", "dist", "picows_fast.egg-info")
    for folder in (VENV, *(ROOT / name for name in made)):
        shutil.rmtree(folder, ignore_errors=True)
    for name in EXTENSIONS:
        path = ROOT / "picows_fast" / name.replace(".", "/")
        for built in (path.with_suffix(".c"), *path.parent.glob(f"{path.name}.*.so")):
            built.unlink(missing_ok=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "test": test,
    "transports": transports,
    "lint": lint,
    "types": types,
    "sanitize": sanitize,
    "fuzz": fuzz,
    "soak": soak,
    "conformance": conformance,
    "bench": bench,
    "coverage": coverage,
    "dist": dist,
    "docs": docs,
    "build": lambda arguments: None,
    "clean": clean,
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit((__doc__ or "").strip())
    name, *arguments = sys.argv[1:]
    try:
        if name != "clean":
            prepare()
        COMMANDS[name](arguments)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
