"""What of the whole suite is run for a change; `--thorough` runs all of it.

As far as is known, what is left out would find nothing that the rest does not:

* A test that has values of its own beside the event loop, the stream and the side which is ours
  runs each value on one of the sides for each loop and stream, and the next value on the other. So
  every combination of the three is run, with half of the values.
* The event loop's own transports on picows_fast's loop, but in test_core.py: they are asyncio's,
  tested on asyncio's loop here, and on ours by CPython's own tests (test_loop_asyncio.py).
* Where a test does not say how many examples Hypothesis makes, as that of streams which the codec
  and an independent parser read, 400 are made for 5,000.
* Builds of the C headers with sanitizers go through every thirteenth sequence of three bytes, as
  emulated ones always do; the others through all of them.
* Loops other than asyncio's open a fifth of the connections of test_scale.py.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import hypothesis
import pytest

# No deadline: how long an example takes is a matter of the machine's load.
hypothesis.settings.register_profile("thorough", max_examples=5000, deadline=None)
hypothesis.settings.register_profile("part", max_examples=400, deadline=None)

LOOP = "_asyncio_loop_factory"
SIDES = ("side", "our_side", "connect")  # `connect` of adversity/test_callbacks.py has both
STREAMS = ("link", "io_options", "contexts", "tls", "tls_contexts", "transmission")
ON_EVERY_STREAM = "test_core"
ON_OUR_LOOPS_TRANSPORT = re.compile(r"picows_fast-(.*\b)?loop\b")  # of a test's parameters


def left_out_of_part(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """The tests that only a thorough run has."""
    places: collections.Counter[tuple[object, ...]] = collections.Counter()
    chosen: dict[pytest.Item, tuple[tuple[object, ...], bool]] = {}
    left_out: set[pytest.Item] = set()
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        if ON_OUR_LOOPS_TRANSPORT.match(item.callspec.id) and item.path.stem != ON_EVERY_STREAM:
            left_out.add(item)
            continue
        indices = item.callspec.indices
        if not any(name in indices for name in SIDES):
            continue
        axes = [indices.get(name, 0) for name in (LOOP, *STREAMS, *SIDES)]
        combination = (item.parent, item.originalname, *axes)
        chosen[item] = combination, (places[combination] + sum(axes)) % 2 == 0
        places[combination] += 1
    return left_out | {
        item
        for item, (combination, is_its_turn) in chosen.items()
        if places[combination] > 1 and not is_its_turn
    }
