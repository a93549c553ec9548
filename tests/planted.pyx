# cython: language_level=3
"""Bugs on purpose, one for each thing that the sanitizers have to notice. Built only with
PICOWS_FAST_SANITIZE=1, by the same setup.py and flags as the package; called by test_sanitizers.py.
"""

from libc.limits cimport INT_MAX
from libc.stdlib cimport free, malloc


cdef volatile unsigned char *block(Py_ssize_t size):
    """Written through `volatile`, so that the compiler neither sees nor removes what is wrong."""
    cdef volatile unsigned char *data = <volatile unsigned char*> malloc(size)
    cdef Py_ssize_t i
    for i in range(size):
        data[i] = i & 0x7F
    return data


def read_behind_a_block():
    cdef volatile unsigned char *data = block(125)
    return data[125]


def write_before_a_block():
    cdef volatile unsigned char *data = block(125)
    data[-1] = 1


def use_a_freed_block():
    cdef volatile unsigned char *data = block(125)
    free(<void*> data)
    return data[0]


def free_twice():
    cdef volatile unsigned char *data = block(125)
    free(<void*> data)
    free(<void*> data)


def read_behind_an_array():
    cdef unsigned char header[14]
    cdef volatile unsigned char *data = header
    cdef volatile Py_ssize_t position = 14
    data[0] = 1
    return data[position]


def overflow_an_int():
    cdef volatile int value = INT_MAX
    return value + value


def shift_too_far():
    cdef volatile int places = 32
    return 1 << places
