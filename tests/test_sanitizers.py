"""That `make sanitize` can find anything: planted bugs are reported, and no module is left out.

Only there: what other commands build has no sanitizers, and they skip all of this.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev import EXTENSIONS

from . import needs

pytestmark = pytest.mark.skipif(not needs.IS_SANITIZED, reason="for `make sanitize` only")

BUGS = {
    "read_behind_a_block": "heap-buffer-overflow",
    "write_before_a_block": "heap-buffer-overflow",
    "use_a_freed_block": "heap-use-after-free",
    "free_twice": "double-free",
    "read_behind_an_array": "insufficient space for an object",
    "overflow_an_int": "signed integer overflow",
    "shift_too_far": "shift exponent 32 is too large",
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_ends_the_process_with_a_report(bug: str, tmp_path: Path) -> None:
    # The report goes where it does not make the whole run fail.
    options = f"detect_leaks=0:log_path={tmp_path / 'report'}"
    done = subprocess.run(
        [sys.executable, "-c", f"from tests import planted; planted.{bug}(); print('survived')"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "ASAN_OPTIONS": options},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr + "".join(path.read_text() for path in tmp_path.glob("report.*"))
    assert done.returncode != 0
    assert "survived" not in done.stdout
    assert BUGS[bug] in said, said
    assert "planted" in said


@pytest.mark.parametrize("name", EXTENSIONS)
def test_every_extension_module_is_instrumented(name: str) -> None:
    path = importlib.import_module(f"picows_fast.{name}").__file__
    assert path is not None
    code = Path(path).read_bytes()
    assert b"__asan_report_load" in code
    assert b"__ubsan_handle" in code
