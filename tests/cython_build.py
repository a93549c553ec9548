"""Builds the modules of `tests/cython_user` outside of the project, as their users would."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import picows_fast

SOURCES = Path(__file__).parent / "cython_user"
PACKAGE_PARENT = Path(picows_fast.__file__).parent.parent

# No include path, no macros, no libraries: what a plain setup.py says.
SETUP = """\
from Cython.Build import cythonize
from setuptools import setup

setup(name="third-party", ext_modules=cythonize("*.pyx"))
"""


def build(folder: Path, sources: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Write these sources and a setup.py to a folder, and build there."""
    for name, text in sources.items():
        (folder / name).write_text(text)
    (folder / "setup.py").write_text(SETUP)
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT), "CFLAGS": "-O0"}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def load(folder: Path, name: str) -> ModuleType:
    """Import a module that was built there."""
    (path,) = (path for path in folder.glob(f"{name}.*") if path.suffix in (".so", ".pyd"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def user_sources() -> dict[str, str]:
    """The sources, with the one change that a program for picows needs."""
    sources = {path.name: path.read_text() for path in SOURCES.glob("*.pyx")}
    sources["ported.pyx"] = sources["ported.pyx"].replace("picows.picows", "picows_fast.core")
    return sources
