"""What of the whole suite is run for a change; `--thorough` runs all of it.

As far as is known, what is left out would find nothing that the rest does not:

* A test of connections has parameters: the event loop, the stream, the side which is ours, values
  of its own. Every two of their values are run together, not every combination of all. What
  test_core.py and test_streams.py test is run in every combination of loop, stream and side.
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
import itertools
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
PLACE = frozenset((LOOP, *STREAMS, *SIDES))
ON_EVERY_STREAM = ("test_core", "test_streams")
ON_OUR_LOOPS_TRANSPORT = re.compile(r"picows_fast-(.*\b)?loop\b")  # of a test's parameters


def covering(required: dict[pytest.Item, set[object]]) -> set[pytest.Item]:
    """Some of these tests, which have all that any of them has, chosen greedily: the one with the
    most that is new first."""
    missing: set[object] = set().union(*required.values())
    chosen: set[pytest.Item] = set()
    # How much is new in one never grows, so what was counted before is an upper bound.
    bounds = collections.defaultdict(list)
    for item, has in required.items():
        bounds[len(has)].append(item)
    for bound in range(max(bounds, default=0), 0, -1):
        for item in bounds.pop(bound, ()):
            new = required[item] & missing
            if len(new) == bound:
                chosen.add(item)
                missing -= new
            else:
                bounds[len(new)].append(item)
    return chosen


def required_of(item: pytest.Function) -> set[object]:
    """The values, and pairs of values, of a test's parameters."""
    # Some have no hash and are told apart by identity; pytest's indices count combinations.
    values = [
        (name, value if isinstance(value, (str, bytes, int)) else id(value))
        for name, value in sorted(item.callspec.params.items())
    ]
    required: set[object] = {*values, *itertools.combinations(values, 2)}
    if item.path.stem in ON_EVERY_STREAM:
        required.add(tuple(value for value in values if value[0] in PLACE))
    return required


def left_out_of_part(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """The tests that only a thorough run has."""
    groups: dict[tuple[object, ...], dict[pytest.Item, set[object]]]
    groups = collections.defaultdict(dict)
    left_out: set[pytest.Item] = set()
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        if ON_OUR_LOOPS_TRANSPORT.match(item.callspec.id) and item.path.stem != "test_core":
            left_out.add(item)
        elif any(name in PLACE for name in item.callspec.params):
            groups[item.parent, item.originalname][item] = required_of(item)
    for group in groups.values():
        left_out |= group.keys() - covering(group)
    return left_out
