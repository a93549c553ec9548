"""CPython's own tests of asyncio and of selectors, on picows_fast's loop; see asyncio_suite."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import needs

pytestmark = needs.epoll

MODULES = [
    "test_buffered_proto",
    "test_events",
    "test_runners",
    "test_selector_events",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_streams",
    "test_subprocess",
    "test_unix_events",
]

# Tests that pass on the stock loop and not on ours, with the reason: none.
DIFFERENCES: dict[str, str] = {}


def run_suite(*arguments: str) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.asyncio_suite", *arguments],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    if result.stderr:
        print(result.stderr)  # pytest shows it if the test fails
    outcome: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return outcome


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


@pytest.mark.timeout(320)
@pytest.mark.parametrize("module", MODULES)
def test_asyncio(module):
    if not is_installed(f"test.test_asyncio.{module}"):
        pytest.skip("this Python comes without its tests, or without this one")
    ours = run_suite(module)
    assert ours["run"]
    failed = set(ours["failed"]) - set(DIFFERENCES)
    if failed:
        # What fails on the stock loop, too, is no difference.
        failed -= set(run_suite("--stock", module, *sorted(failed))["failed"])
    assert not failed


def test_selectors():
    if not is_installed("test.test_selectors"):
        pytest.skip("this Python comes without its tests")
    outcome = run_suite("test_selectors")
    assert outcome["run"]
    assert not outcome["failed"]
