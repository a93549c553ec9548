"""What the sdist and the wheel must hold, and whether they work away from the checkout.

    python -m tests.distribution dist        checks the two archives in that folder

It looks into both, installs each into a fresh environment in a temporary folder, runs the demo,
builds and imports a module that cimports the package, and runs tests against the installed wheel.
`dev.py dist` builds the archives and calls this. Needs the package index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The tests that say most about an installation: they must pass without the sources at hand.
TESTS = (
    "test_client",
    "test_codec",
    "test_core",
    "test_cython",
    "test_examples",
    "test_exports",
    "test_messages",
    "test_server",
)

# What an sdist has for those who change the package or repackage it.
PROJECT_FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile"} | {
    "README.md",
    "dev.py",
    "pyproject.toml",
    "setup.py",
}
PROJECT_FOLDERS = ("benchmarks", "docs", "examples", "fuzz", "picows_fast", "tests")
BUILT = (".so", ".pyd", ".pyc")
# Written in C, not by Cython.
C_SOURCES = {"benchmarks/mask.c", "benchmarks/reference.c", "fuzz/wire_fuzzer.c"} | {
    "tests/wire/test_wire.c"
}


def headers_of_declarations(package: Path) -> set[str]:
    """The package's C headers that its .pxd files name: users' compilers may ask for these."""
    headers = {path.name: path for path in package.rglob("*.h")}
    named = set()
    for declarations in package.rglob("*.pxd"):
        for name in re.findall(r'cdef extern from "([^"<>]+)"', declarations.read_text()):
            if Path(name).name in headers:
                named.add(headers[Path(name).name].relative_to(package.parent).as_posix())
    return named


def expected_in_wheel(source: Path) -> set[str]:
    """The package's files that a wheel must have, but for the extension modules."""
    package = source / "picows_fast"
    wanted = {
        path.relative_to(source).as_posix()
        for path in package.rglob("*")
        if path.suffix in (".py", ".pyi", ".pxd", ".pem", ".html") or path.name == "py.typed"
    }
    return wanted | headers_of_declarations(package)


def extension_modules(source: Path) -> set[str]:
    """The modules written in Cython, as paths without a suffix."""
    return {
        path.relative_to(source).with_suffix("").as_posix()
        for path in (source / "picows_fast").rglob("*.pyx")
    }


def problems_of_sdist(names: set[str], source: Path) -> list[str]:
    """What is missing in an sdist with these files (without its top folder), or too much."""
    wanted = PROJECT_FILES | {
        path.relative_to(source).as_posix()
        for folder in PROJECT_FOLDERS
        for path in (source / folder).rglob("*")
        if path.suffix
        in (".py", ".pyx", ".pxd", ".pyi", ".h", ".md", ".in", ".json", ".pem", ".txt")
        and not {"__pycache__", "_build", "results"} & set(path.parts)
    }
    wanted |= expected_in_wheel(source)
    found = [f"missing: {name}" for name in sorted(wanted - names)]
    for name in sorted(names):
        if name.endswith(BUILT) or (name.endswith(".c") and name not in C_SOURCES):
            found.append(f"built, not source: {name}")
    return found


def problems_of_wheel(names: set[str], source: Path) -> list[str]:
    """What is missing in a wheel with these files, or too much."""
    modules = extension_modules(source)
    binaries = {name for name in names if name.endswith((".so", ".pyd"))}
    found = [
        f"missing: {module}"
        for module in sorted(modules)
        if not any(name.startswith(f"{module}.") for name in binaries)
    ]
    rest = {name for name in names - binaries if ".dist-info/" not in name}
    wanted = expected_in_wheel(source)
    found += [f"missing: {name}" for name in sorted(wanted - rest)]
    found += [f"too much: {name}" for name in sorted(rest - wanted)]
    found += [
        f"too much: {name}" for name in sorted(binaries) if name[: name.find(".")] not in modules
    ]
    return found


def run(*command: str | Path, folder: Path) -> None:
    """Run a command in that folder, with no trace of the checkout in its environment."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print("$", " ".join(map(str, command)), flush=True)
    subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=True)


def install(archive: Path, folder: Path) -> Path:
    """Install an archive and nothing else into a new environment; its Python."""
    environment = folder / f"venv-{archive.suffix.removeprefix('.')}"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--upgrade", "pip>=25.1", folder=folder)
    run(*pip, archive, folder=folder)
    return python


def try_out(python: Path, source: Path) -> None:
    """The demo; then a module of a user's that cimports the installed package."""
    code = "import picows_fast; print(picows_fast.__file__, picows_fast.__version__)"
    run(python, "-c", code, folder=source)
    run(python, "-m", "picows_fast", "demo", "--seconds", "2", folder=source)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "Cython>=3.1", "setuptools>=77", folder=source)
    example = source / "examples" / "cython_client"
    run(python, "setup.py", "-q", "build_ext", "--inplace", folder=example)
    code = "import fast_listener; print(fast_listener.TickCounter(limit=1).frames, 'frames')"
    run(python, "-c", code, folder=example)


def main(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    for archive in (sdist, wheel):
        print(f"{archive.name}: {archive.stat().st_size / 1024:.0f} KiB")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with tarfile.open(sdist) as tar:
            tar.extractall(folder, filter="data")
        source = folder / sdist.name.removesuffix(".tar.gz")
        files = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
        problems = problems_of_sdist(files, ROOT)
        problems += problems_of_wheel(set(zipfile.ZipFile(wheel).namelist()), ROOT)
        if problems:
            sys.exit("\n".join(problems))
        # What is tested must be what was installed.
        (source / "picows_fast").rename(folder / "not_to_be_imported")
        try_out(install(sdist, folder), source)
        python = install(wheel, folder)
        try_out(python, source)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--group", "test", folder=source)
        tests = [f"tests/{name}.py" for name in TESTS]
        run(python, "-m", "pytest", "-q", "-n", "4", *tests, folder=source)
    print("the sdist and the wheel are fit for use")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
