"""The sdist and the wheel: what they hold, and what pyproject.toml says about them.

`dev.py dist` builds both for real and installs them, see distribution.py.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from .conftest import ROOT
from .coverage_floors import problems
from .distribution import (
    extension_modules,
    headers_of_declarations,
    problems_of_sdist,
    problems_of_wheel,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the C that was generated, so that nothing is generated anew."""
    folder = tmp_path_factory.mktemp("source")

    def ignored(directory: str, names: list[str]) -> set[str]:
        return {n for n in names if n in ("__pycache__", "results", "_build") or n.endswith(".so")}

    for folder_name in ("benchmarks", "docs", "examples", "fuzz", "picows_fast", "tests"):
        shutil.copytree(ROOT / folder_name, folder / folder_name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    return folder


def setup(source: Path, *arguments: str | Path) -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", *map(str, arguments)],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_sdist(source: Path, tmp_path: Path) -> None:
    setup(source, "sdist", "--dist-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar if member.isfile()}
    assert problems_of_sdist(names, source) == []
    # and it would be noticed
    assert "missing: picows_fast/core.pyx" in problems_of_sdist(
        names - {"picows_fast/core.pyx"}, source
    )
    assert problems_of_sdist(names | {"picows_fast/core.c"}, source) == [
        "built, not source: picows_fast/core.c"
    ]


def test_wheel(source: Path, tmp_path: Path) -> None:
    setup(source, "build_py", "--build-lib", tmp_path)
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    binaries = {f"{module}.cpython-313.so" for module in extension_modules(source)}
    assert problems_of_wheel(names | binaries, source) == []
    # and it would be noticed
    assert problems_of_wheel(names | binaries | {"picows_fast/core.pyx"}, source) == [
        "too much: picows_fast/core.pyx"
    ]
    assert "missing: picows_fast/py.typed" in problems_of_wheel(binaries, source)
    assert "missing: picows_fast/core" in problems_of_wheel(names, source)


def test_headers_of_the_wheel() -> None:
    names = {Path(name).name for name in headers_of_declarations(ROOT / "picows_fast")}
    assert names == {"frame.h", "mask.h", "utf8.h", "records.h", "stamped_source.h"}


def test_lists_of_modules_agree() -> None:
    """Of what is built, cleaned, checked and packaged."""
    modules = {
        name.removeprefix("picows_fast/").replace("/", ".") for name in extension_modules(ROOT)
    }
    developer = runpy.run_path(str(ROOT / "dev.py"), run_name="dev")
    assert set(developer["EXTENSIONS"]) == modules
    packages = PROJECT["tool"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "picows_fast").rglob("__init__.py")
    }
    assert set(packages["setuptools"]["packages"]) == folders


def test_every_command_has_a_target_and_is_documented() -> None:
    developer = (ROOT / "dev.py").read_text(encoding="utf-8")
    commands = set(re.findall(r'^    "(\w+)": ', developer, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+):.*##", makefile, re.MULTILINE)) == commands | {"help"}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == commands | {"help"}
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for command in commands:
        assert f"`{command}`" in contributing
        assert f"dev.py {command}" in developer or f"| {command}" in developer


def test_coverage_floors() -> None:
    found = {"picows_fast/core.pyx": 90, "picows_fast/new.py": 100}
    assert problems({"picows_fast/core.pyx": 91, "picows_fast/gone.py": 1}, found) == [
        "picows_fast/core.pyx: 90 %, floor 91 %",
        "picows_fast/gone.py: not measured",
        "picows_fast/new.py: no floor",
    ]
    assert problems({name: percent - 1 for name, percent in found.items()}, found) == []


def test_every_package_is_packaged() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "picows_fast").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_extras() -> None:
    assert set(PROJECT["project"]["optional-dependencies"]) >= {"cli", "plot", "proxy", "uvloop"}
    required = {re.match(r"[\w-]+", text)[0] for text in PROJECT["project"]["dependencies"]}  # type: ignore[index]
    assert required == {"aiohappyeyeballs", "async-timeout", "httptools", "multidict"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in required:
        assert f"| {name} |" in readme


def test_tests_of_wheels_exist() -> None:
    for options in (PROJECT["tool"]["cibuildwheel"], PROJECT["tool"]["cibuildwheel"]["windows"]):
        for name in re.findall(r"tests/\w+\.py", " ".join(options["test-command"])):
            assert (ROOT / name).exists()


@pytest.mark.skipif(not importlib.util.find_spec("cibuildwheel"), reason="needs cibuildwheel")
@pytest.mark.parametrize("platform", ["linux", "macos", "windows"])
def test_cibuildwheel_takes_its_settings(platform: str) -> None:
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    result = subprocess.run(
        [*command, "--platform", platform], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    identifiers = result.stdout.split()
    systems = {
        "linux": [
            f"{libc}linux_{cpu}" for libc in ("many", "musl") for cpu in ("x86_64", "aarch64")
        ],
        "macos": ["macosx_x86_64", "macosx_arm64"],
        "windows": ["win_amd64"],
    }[platform]
    versions = ["cp310", "cp311", "cp312", "cp313", "cp314"]
    assert sorted(identifiers) == sorted(f"{v}-{s}" for v in versions for s in systems)
