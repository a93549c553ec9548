"""The tree: each module has the test file that covers it, and no file is long."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "picows_fast"
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")).replace("\\", "/")
    for path in PACKAGE.rglob("*.py*")
    if path.suffix in (".py", ".pyx") and "__pycache__" not in path.parts
)

# A module is covered by test_<its name>.py, but for these.
COVERED_BY = {
    # Names and nothing else.
    "__init__": "test_exports",
    "_version": "test_packaging",
    "layers/__init__": "test_layering",
    "net/__init__": "test_layering",
    # What is in it is inherited, called or held by a connection, and tested on one.
    "callbacks": "test_callback_errors",
    "sending": "test_core",
    "traffic": "test_stats",
    # The streams do the same, whatever is below them, and go through the same tests.
    "net/foreign": "test_streams",
    "net/open": "test_streams",
    "net/stream": "test_streams",
    "net/tcp": "test_streams",
    "net/tls": "test_streams",
    "net/poller": "test_loop",
    "net/tuning": "test_loop",
    "loop/__init__": "test_loop",
    "loop/selector": "test_loop",
    "layers/hdr_encoding": "test_histogram",
    # The command line is tested by running it.
    "__main__": "test_cli",
    "cli/__init__": "test_cli",
    "cli/demo": "test_cli",
    "cli/runtime": "test_cli",
    "cli/client": "test_connect_command",
    "cli/connection": "test_record_replay",
    "cli/connect": "test_connect_command",
    "cli/plot": "test_cli_plot",
    "cli/publish": "test_record_replay",
    "cli/record": "test_record_replay",
    "cli/replay": "test_record_replay",
}

# More lines than a file should have, and why.
LONG = {
    "picows_fast/core.pyx": 1000,  # docs/architecture.md, the last decision
    "picows_fast/layers/broadcast.pyx": 950,  # likewise
}


def test_exceptions_are_modules():
    assert set(COVERED_BY) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_module_has_its_test_file(module):
    name = COVERED_BY.get(module, f"test_{Path(module).name}")
    assert (ROOT / "tests" / f"{name}.py").is_file()


def test_no_file_of_the_package_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h")
    }
    assert lengths
    assert {name: n for name, n in lengths.items() if n > LONG.get(name, 900)} == {}
