# cython: language_level=3
# An object whose buffer is not just memory: code runs when it is taken, and when it is given back.

from cpython.buffer cimport PyBuffer_FillInfo


cdef class Exporter:
    """Exports `data`; calls `act()` before each export and after it."""

    cdef bytes data
    cdef object act

    def __init__(self, bytes data, act):
        self.data = data
        self.act = act

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.act()
        PyBuffer_FillInfo(view, self, <void*> <const char*> self.data, len(self.data), True, flags)

    def __releasebuffer__(self, Py_buffer *view):
        self.act()
