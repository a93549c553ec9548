# cython: language_level=3
"""A histogram that is filled without the GIL and without Python objects, outside of the package."""

from picows_fast.layers.histogram cimport LatencyHistogram


def record_squares(LatencyHistogram histogram not None, long long count):
    """Record 0, 1, 4, 9, ..."""
    cdef long long number
    with nogil:
        for number in range(count):
            histogram.record(number * number)


def median(LatencyHistogram histogram not None):
    cdef long long value
    with nogil:
        value = histogram.value_at(50)
    return value
