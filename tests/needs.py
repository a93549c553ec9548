"""What a test needs that not every machine has: marks that skip it there, and say why.

A need of a single test stands beside that test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator

import pytest

IS_LINUX = sys.platform == "linux"
IS_SANITIZED = os.environ.get("PICOWS_FAST_SANITIZE") == "1"  # `dev.py sanitize` says so


def can_bind(family: int, address: str) -> bool:
    try:
        with socket.socket(family) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


HAS_SECOND_LOOPBACK = can_bind(socket.AF_INET, "127.0.0.2")
HAS_FULL_DEVICE = os.path.exists("/dev/full")

epoll = pytest.mark.skipif(not IS_LINUX, reason="picows_fast's loop is for Linux")
arrival_times = pytest.mark.skipif(not IS_LINUX, reason="Linux notes when data comes")
descriptor_list = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="needs /proc/self/fd"
)
full_device = pytest.mark.skipif(not HAS_FULL_DEVICE, reason="needs /dev/full")
fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs and Unix sockets")
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
reuse_port = pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
ipv6 = pytest.mark.skipif(not can_bind(socket.AF_INET6, "::1"), reason="needs ::1")
second_loopback = pytest.mark.skipif(not HAS_SECOND_LOOPBACK, reason="needs 127.0.0.2")
c_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
c_reference = pytest.mark.skipif(
    not (IS_LINUX and shutil.which("cc")), reason="the C reference is for Linux with a C compiler"
)


@contextlib.contextmanager
def descriptors(number: int) -> Iterator[None]:
    """Let this process have that many open at once while the body runs, or skip the test."""
    resource = pytest.importorskip("resource")
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"needs {number} descriptors, the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def no_sanitizers(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(IS_SANITIZED, reason=reason)
