"""Promises about hostile peers and awkward moments, each tested on real sockets.

One test, or one parametrised test, for each promise; its docstring says the promise.
"""
