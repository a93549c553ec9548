"""conformance: what is expected of the Autobahn suite, and that a difference is seen."""

from __future__ import annotations

import json

import pytest

from .conformance import run

EXPECTED = json.loads(run.EXPECTED.read_text())
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}


def test_nothing_but_ok_is_expected():
    assert len(EXPECTED) == 301
    assert list(EXPECTED) == sorted(EXPECTED, key=run.in_order)
    for case, found in EXPECTED.items():
        assert found == (["INFORMATIONAL"] * 2 if case in INFORMATIONAL else ["OK", "OK"])


def test_all_groups_but_compression_are_there():
    assert {case.split(".")[0] for case in EXPECTED} == {*map(str, range(1, 8)), "9", "10"}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (["NON-STRICT", "OK"], "6.4.3: NON-STRICT/OK, expected OK/OK"),
        (["OK", "UNCLEAN"], "6.4.3: OK/UNCLEAN, expected OK/OK"),
        (None, "6.4.3: missing, expected OK/OK"),
    ],
)
def test_a_difference_is_told(found, line):
    results = {case: both for case, both in EXPECTED.items() if case != "6.4.3"}
    if found is not None:
        results["6.4.3"] = found
    assert run.differences(EXPECTED, results) == [line]
    assert run.differences(EXPECTED, EXPECTED) == []


def test_the_summary_counts():
    results = EXPECTED | {"1.1.1": ["FAILED", "UNCLEAN"], "1.1.2": ["NON-STRICT", "WRONG CODE"]}
    del results["7.1.6"]
    assert run.summary(results, EXPECTED) == (
        "cases=301 OK=296 NON-STRICT=1 INFORMATIONAL=2 UNIMPLEMENTED=0 FAILED=1 "
        "bad-close=2 missing=1"
    )
