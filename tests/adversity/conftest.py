"""Fixtures for every test of this folder."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Garbage is collected for each measurement, so what was there before is left out of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
