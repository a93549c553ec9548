"""Benchmarks: ratios against peers in one run, never absolute times. Not part of the tests."""
