"""Cython modules of the benchmarks, compiled when they are first wanted."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..processes import BUILT


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in here with the same file, where there are such locks."""
    with path.open("w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def built(name: str, source: str, newer_than: float = 0) -> Any:
    """Import a module; compile it first, if it was not, from this source, since `newer_than`.

    `newer_than`: seconds since the epoch.
    """
    folder = BUILT / str(sys.implementation.cache_tag)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{name}.lock"):
        target = folder / f"{name}.pyx"
        binary = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        is_fresh = (
            binary.exists()
            and target.exists()
            and target.read_text() == source
            and binary.stat().st_mtime > newer_than
        )
        if not is_fresh:
            target.write_text(source)
            cythonize = "from Cython.Build.Cythonize import main; main()"
            subprocess.run(
                [sys.executable, "-c", cythonize, "-i", "-f", "-q", target.name],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)
