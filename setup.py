"""Builds the extension modules. Everything else about the package is in pyproject.toml.

PICOWS_FAST_SANITIZE=1 builds them with AddressSanitizer and UndefinedBehaviorSanitizer, and a
module with bugs that they have to find.
PICOWS_FAST_FUZZ=1 builds them with both for libFuzzer, and adds what only fuzzing needs; for clang.
PICOWS_FAST_COVERAGE=1 builds them, and what only fuzzing needs, for gcov.
PICOWS_FAST_TRACE=1 builds them with line tracing, for the coverage of Cython code.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("PICOWS_FAST_SANITIZE") == "1"
FUZZ = os.environ.get("PICOWS_FAST_FUZZ") == "1"
COVERAGE = os.environ.get("PICOWS_FAST_COVERAGE") == "1"
TRACE = os.environ.get("PICOWS_FAST_TRACE") == "1"

# POSIX system calls; elsewhere the streams lie on asyncio's transports. epoll and timerfd.
ONLY_ON = {
    "net.poller": sys.platform != "win32",
    "net.tcp": sys.platform != "win32",
    "net.tls_fd": sys.platform != "win32",
    "loop.selector": sys.platform == "linux",
}
PACKAGE = Path(__file__).parent / "picows_fast"
modules = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.pyx")
)
modules = [module for module in modules if ONLY_ON.get(module, True)]

names = [f"picows_fast.{module}" for module in modules]
if FUZZ or COVERAGE:
    names.append("fuzz.exact")
if SANITIZE:
    names.append("tests.planted")

# -g1 names lines in backtraces and profiles; the wheels for Linux are stripped of it.
compile_args = [] if sys.platform == "win32" else ["-O3", "-g1"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if SANITIZE or FUZZ:
    sanitizers = f"-fsanitize={'fuzzer-no-link,' if FUZZ else ''}address,undefined"
    # Python's own -fwrapv would make signed overflow something that is not worth reporting.
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv"]
    compile_args += ["-fno-sanitize-recover=all", sanitizers]
    if FUZZ:
        # For clang it includes NULL + 0, which Cython computes for calls without arguments.
        compile_args.append("-fno-sanitize=pointer-overflow")
    link_args = [sanitizers]
if COVERAGE:
    compile_args = ["-O0", "-g", "--coverage"]
    link_args = ["--coverage"]
if TRACE:
    macros.append(("CYTHON_TRACE_NOGIL", "1"))

setup(
    ext_modules=cythonize(
        [
            Extension(
                name,
                [f"{name.replace('.', '/')}.pyx"],
                include_dirs=["picows_fast", "picows_fast/net"],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
                define_macros=macros,
            )
            for name in names
        ],
        compiler_directives={"linetrace": TRACE},
    ),
)
