"""Runs CPython's own tests of asyncio on picows_fast's loop: python -m tests.asyncio_suite MODULE

MODULE is one of `test.test_asyncio` (test_events, ...), or test_selectors, which is run on the
selector alone. Every selector event loop that asks for epoll, or for no selector in particular,
gets picows_fast's. With --stock nothing is changed. Tests can be named behind the module, as
unittest names them. Prints a JSON object: how many tests ran, and the ids of those that failed.
"""

from __future__ import annotations

import argparse
import asyncio.unix_events
import importlib
import io
import json
import selectors
import sys
import unittest
from typing import Any

from picows_fast.loop.selector import LoopSelector


def use_our_selector() -> None:
    stock_init = asyncio.unix_events._UnixSelectorEventLoop.__init__

    def __init__(self: Any, selector: Any = None) -> None:  # noqa: N807
        if selector is not None and not isinstance(selector, selectors.EpollSelector):
            stock_init(self, selector)
            return
        if selector is not None:
            selector.close()
        ours = LoopSelector()
        stock_init(self, ours)
        ours.attach(self)

    asyncio.unix_events._UnixSelectorEventLoop.__init__ = __init__  # type: ignore[method-assign]


def selector_tests() -> unittest.TestSuite:
    """The tests of epoll's selector, with ours in its place."""
    module: Any = importlib.import_module("test.test_selectors")

    class Patchable(LoopSelector):
        """The tests replace methods of the selector's."""

    class LoopSelectorTestCase(module.EpollSelectorTestCase):  # type: ignore[misc, name-defined]
        SELECTOR = Patchable

    return unittest.defaultTestLoader.loadTestsFromTestCase(LoopSelectorTestCase)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--stock", action="store_true")
    arguments = parser.parse_args()
    loader = unittest.defaultTestLoader
    if arguments.module == "test_selectors":
        suite = selector_tests()
    else:
        if not arguments.stock:
            use_our_selector()
        name = f"test.test_asyncio.{arguments.module}"
        suite = loader.loadTestsFromNames(arguments.tests or [name])
    output = io.StringIO()
    result = unittest.TextTestRunner(output, verbosity=2, buffer=True).run(suite)
    failed = [test.id() for test, _ in result.failures + result.errors]
    if failed:
        print(output.getvalue(), file=sys.stderr)
    print(json.dumps({"run": result.testsRun, "failed": sorted(set(failed))}))


if __name__ == "__main__":
    main()
