"""Everything a developer runs, on a fresh machine too: needs Python 3.10+ with venv, and a C
compiler.

    python3 dev.py demo [options]       the demo, built and running
    python3 dev.py test [pytest args]   the tests
    python3 dev.py conformance [options]   the Autobahn test suite; needs a Python 2.7
    python3 dev.py lint | types | sanitize | bench [options] | build | clean

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
EXTENSIONS = (
    "codec",
    "core",
    "net.stream",
    "net.tcp",
    "net.tls",
    "net.direct_tls",
    "net.foreign",
    "layers.messages",
)


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the checkout; end this program with its exit code if it fails."""
    result = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=False
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


def build(**environment: str) -> None:
    run(
        PYTHON,
        "setup.py",
        "-q",
        "build_ext",
        "--inplace",
        *(["--force"] if environment else []),
        **environment,
    )


def demo(arguments: list[str]) -> None:
    run(PYTHON, "-m", "picows_fast", "demo", *arguments)


def test(arguments: list[str]) -> None:
    run(PYTHON, "-m", "pytest", *arguments)


def lint(arguments: list[str]) -> None:
    run(PYTHON, "-m", "ruff", "check", ".", *arguments)
    run(PYTHON, "-m", "ruff", "format", "--check", ".")


def types(arguments: list[str]) -> None:
    run(PYTHON, "-m", "mypy", *arguments)
    modules = [f"picows_fast.{name}" for name in EXTENSIONS]
    run(PYTHON, "-m", "mypy.stubtest", *modules, "--allowlist", "tests/stubtest_allowlist.txt")


def sanitize(arguments: list[str]) -> None:
    """The tests with AddressSanitizer and UndefinedBehaviorSanitizer in the extension modules."""
    build(PICOWS_FAST_SANITIZE="1")
    try:
        libraries = [
            subprocess.run(
                ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libubsan.so", "libstdc++.so")
        ]
        run(
            PYTHON,
            "-m",
            "pytest",
            *arguments,
            LD_PRELOAD=" ".join(libraries),
            ASAN_OPTIONS="detect_leaks=0",
            PYTHONMALLOC="malloc",
            PICOWS_FAST_SANITIZE="1",
        )
    finally:
        build(PICOWS_FAST_SANITIZE="0")


def conformance(arguments: list[str]) -> None:
    run(PYTHON, "-m", "tests.conformance.run", *arguments)


def bench(arguments: list[str]) -> None:
    run(PYTHON, "-m", "benchmarks.roundtrip", *arguments)


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
    "lint": lint,
    "types": types,
    "sanitize": sanitize,
    "conformance": conformance,
    "bench": bench,
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
