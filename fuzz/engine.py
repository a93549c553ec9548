"""Runs one fuzzer written in Python: ``python -m fuzz.engine TARGET [libFuzzer options]``.

Guided by coverage, and needs atheris. The extension modules report coverage if they were built with
PICOWS_FAST_FUZZ=1; the modules in Python are instrumented here, when they are imported.
"""

from __future__ import annotations

import importlib
import sys

import atheris

_PURE_MODULES = [
    "picows_fast.protocol.upgrade",
    "picows_fast.protocol.http.messages",
    "picows_fast.protocol.origins",
    "picows_fast.protocol.url",
]


def main() -> None:
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=_PURE_MODULES):
        target = importlib.import_module(f"fuzz.{name}_fuzzer")
    # To merge, libFuzzer starts itself again through a shell by its first argument.
    program = f"{sys.executable} -m fuzz.engine {name}"
    atheris.Setup([program, *arguments], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
