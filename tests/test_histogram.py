"""LatencyHistogram: against sorted data, from Cython, and in HdrHistogram's encoding."""

from __future__ import annotations

import base64
import math
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from picows_fast.layers import hdr_encoding
from picows_fast.layers.histogram import LatencyHistogram

from .cython_build import load

HOUR = 3_600_000_000_000
PERCENTS = (0.0, 1.0, 10.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0)

# Small ones and large ones alike: uniform ones would nearly all be minutes.
latencies = st.integers(0, 42).flatmap(lambda bits: st.integers(0, min(2**bits, HOUR)))


def recorded(values: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    return histogram


@pytest.fixture(scope="session")
def timing(cython_folder: Path) -> ModuleType:
    """tests/cython_user/timing.pyx, built and imported."""
    return load(cython_folder, "timing")


@settings(derandomize=True)
@given(st.lists(latencies, min_size=1, max_size=200))
def test_agrees_with_sorted_data(values):
    histogram = recorded(values)
    ordered = sorted(values)
    assert histogram.count == len(histogram) == len(values)
    assert (histogram.min, histogram.max) == (ordered[0], ordered[-1])
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    for percent in PERCENTS:
        exact = ordered[max(math.ceil(percent / 100 * len(values)), 1) - 1]
        assert exact <= histogram.percentile(percent) <= exact + exact / 100


@settings(derandomize=True)
@given(st.lists(latencies), st.lists(latencies))
def test_merged_is_recorded_together(first, second):
    histogram = recorded(first)
    other = recorded(second)
    histogram.merge(other)
    together = recorded(first + second)
    assert histogram.buckets() == together.buckets()
    assert (histogram.min, histogram.max) == (together.min, together.max)
    assert histogram.mean == pytest.approx(together.mean)
    assert other.buckets() == recorded(second).buckets()


def test_every_bucket_is_narrow_and_next_to_the_last():
    edges = {0, 1, 255, 256, 257, HOUR}
    edges |= {
        min(2**bits + more, HOUR) for bits in range(8, 42) for more in (-1, 0, 1, 2**bits // 3)
    }
    end = -1
    for lowest, highest, count in recorded(sorted(edges)).buckets():
        assert end < lowest <= highest
        assert highest - lowest < max(lowest / 100, 1)
        assert count == sum(lowest <= edge <= highest for edge in edges)
        end = highest


def test_empty():
    histogram = LatencyHistogram()
    assert (histogram.count, histogram.min, histogram.max, histogram.mean) == (0, 0, 0, 0.0)
    assert histogram.percentile(99) == 0
    assert histogram.buckets() == []
    histogram.merge(LatencyHistogram())
    assert histogram.count == 0


def test_outside_of_the_range():
    histogram = recorded([-5, 2 * HOUR, 2**63 - 1])
    assert (histogram.min, histogram.max) == (0, HOUR)
    assert histogram.percentile(100) == HOUR
    with pytest.raises(OverflowError):
        histogram.record(2**63)
    assert histogram.count == 3


def test_reset():
    histogram = recorded([1000, 2000])
    histogram.reset()
    assert (histogram.count, histogram.max, histogram.buckets()) == (0, 0, [])
    histogram.record(5)
    assert (histogram.min, histogram.max, histogram.mean) == (5, 5, 5.0)


def test_memory_is_fixed():
    histogram = LatencyHistogram()
    before = sys.getsizeof(histogram)
    for bits in range(42):
        histogram.record(2**bits)
    assert before == sys.getsizeof(histogram) < 37 * 1024


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan, math.inf])
def test_percent_is_checked(percent):
    with pytest.raises(ValueError, match="percent"):
        LatencyHistogram().percentile(percent)


def test_wrong_types():
    histogram = LatencyHistogram()
    with pytest.raises(TypeError):
        histogram.merge(None)
    with pytest.raises(TypeError):
        histogram.record("5")


def test_from_cython(timing):
    histogram = LatencyHistogram()
    timing.record_squares(histogram, 1001)
    assert histogram.count == 1001
    assert histogram.max == 1_000_000
    assert timing.median(histogram) == histogram.percentile(50)
    assert 250_000 <= histogram.percentile(50) <= 252_500


# --- HdrHistogram's encoding


@settings(derandomize=True)
@given(st.lists(latencies))
def test_encoding_and_back(values):
    histogram = recorded(values)
    again = LatencyHistogram.from_hdr(histogram.to_hdr())
    assert again.buckets() == histogram.buckets()
    assert again.to_hdr() == histogram.to_hdr()


def test_agrees_with_hdrhistogram():
    values = [0, 1, 255, 256, 257, 10**6, 10**6, 10**9, 12_345_678_901, HOUR]
    theirs = HdrHistogram(1, HOUR, 2)
    for value in values:
        theirs.record_value(value)
    ours = recorded(values)
    # zlib may be told to try less hard: what counts is what it packs.
    unpacked = [
        zlib.decompress(base64.b64decode(text)[8:]) for text in (ours.to_hdr(), theirs.encode())
    ]
    assert unpacked[0] == unpacked[1]
    assert LatencyHistogram.from_hdr(theirs.encode()).buckets() == ours.buckets()
    decoded = HdrHistogram.decode(ours.to_hdr())
    for percent in PERCENTS[1:]:
        assert decoded.get_value_at_percentile(percent) >= ours.percentile(percent)


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_other_precisions(digits):
    theirs = HdrHistogram(1, HOUR, digits)
    values = [3, 1000, 777_777, 123_456_789]
    for value in values:
        theirs.record_value(value)
    read = LatencyHistogram.from_hdr(theirs.encode())
    assert read.count == len(values)
    assert read.max == pytest.approx(values[-1], rel=10**-digits)


def packed(payload: bytes) -> str:
    data = zlib.compress(payload)
    head = (0x1C849314).to_bytes(4, "big") + len(data).to_bytes(4, "big")
    return base64.b64encode(head + data).decode()


def inside(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text)[8:])


GOOD = recorded([1, 500, 10**9]).to_hdr()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        GOOD[:-8],
        GOOD[8:],
        packed(b""),
        packed(inside(GOOD)[:-1]),
        packed(b"\0" * 4 + inside(GOOD)[4:]),
        packed(inside(GOOD)[:8] + b"\0\0\0\1" + inside(GOOD)[12:]),
        packed(inside(GOOD)[:12] + b"\0\0\0\x09" + inside(GOOD)[16:]),
        # 2**62 empty buckets, then something
        packed(
            inside(GOOD)[:4] + (10).to_bytes(4, "big") + inside(GOOD)[8:40] + b"\xff" * 9 + b"\2"
        ),
        # three counts of 2**62
        packed(
            inside(GOOD)[:4]
            + (27).to_bytes(4, "big")
            + inside(GOOD)[8:40]
            + (b"\x80" * 8 + b"\x80") * 3
        ),
    ],
    ids=[
        "empty",
        "text",
        "cut",
        "cookie",
        "no header",
        "counts cut",
        "inner cookie",
        "offset",
        "digits",
        "large value",
        "large count",
    ],
)
def test_damaged_text(text):
    with pytest.raises(ValueError):
        LatencyHistogram.from_hdr(text)


def test_a_bomb_is_not_unpacked():
    text = packed(inside(GOOD)[:40] + bytes(100 * 1024 * 1024))
    with pytest.raises(ValueError, match="too large"):
        list(hdr_encoding.decode(text))
