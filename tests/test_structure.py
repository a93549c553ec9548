"""The tree: modules have test files, names that nothing else checks are right, no file is long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import distribution
from .conftest import ON_OUR_LOOP, ROOT
from .thoroughness import ON_EVERY_STREAM, SIDES, STREAMS

PACKAGE = ROOT / "picows_fast"
TESTS = ROOT / "tests"
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
    "client/__init__": "test_layering",
    "protocol/http/__init__": "test_layering",
    "server/__init__": "test_layering",
    "transport/__init__": "test_layering",
    # Named for what they do, where the folder says for whom.
    "client/connect": "test_client",
    "client/dial": "test_connecting",
    "net/listen": "test_listening",
    "net/tls_fd": "test_direct_tls",
    "protocol/http/messages": "test_http_messages",
    "protocol/http/quick": "test_upgrade_request",
    "protocol/upgrade": "test_handshake",
    "server/create": "test_server",
    "server/limits": "test_connections",
    "server/server": "test_serving",
    "protocol/__init__": "test_layering",
    # What is in it is inherited, called or held by a connection, and tested on one.
    "transport/dispatch": "test_callback_errors",
    "transport/sender": "test_core",
    "transport/logs": "test_logging",
    "transport/describe": "test_logging",
    "typed_settings": "test_options",
    "transport/counters": "test_stats",
    # The streams do the same, whatever is below them, and go through the same tests.
    "net/loop_transport": "test_streams",
    "net/stream": "test_streams",
    "net/tcp": "test_streams",
    "net/tls_bio": "test_tls_streams",
    "net/poller": "test_loop",
    "net/sockopts": "test_loop",
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
    "picows_fast/core.pyx": 1400,  # docs/architecture.md, the last decision
    "picows_fast/layers/broadcast.pyx": 1250,  # likewise
}


def test_exceptions_are_modules():
    assert set(COVERED_BY) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_module_has_its_test_file(module):
    name = COVERED_BY.get(module, f"test_{Path(module).name}")
    assert (TESTS / f"{name}.py").is_file()


def test_names_of_tests_are_those_of_files():
    """pytest says nothing of a name that no file has."""
    stems = {path.stem for path in TESTS.rglob("*") if path.suffix == ".py" or path.is_dir()}
    assert ON_OUR_LOOP | {*ON_EVERY_STREAM, *distribution.TESTS} <= stems
    # Not all of them are part of an sdist.
    for file in (ROOT / "dev.py", ROOT / ".ci" / "run", *ROOT.glob(".github/workflows/*.yml")):
        if file.exists():
            assert set(re.findall(r"\b(test_\w+)\.py\b", file.read_text(encoding="utf-8"))) <= stems


@pytest.mark.parametrize("name", [*SIDES, *STREAMS])
def test_what_combinations_are_made_of_exists(name):
    """Under another name it would be one of a test's own values, of which a part is run."""
    fixture = re.compile(rf"^def {name}\(", re.MULTILINE)
    assert any(fixture.search(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py"))


def test_no_file_of_the_package_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h")
    }
    assert lengths
    assert {name: n for name, n in lengths.items() if n > LONG.get(name, 900)} == {}
