# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: auto_pickle=False
"""How a stream finds the selector that can call it in C, if its event loop has one."""


cdef class Poller:
    """What a loop's selector is that calls streams by itself. Has nothing for Python code."""

    cdef int watch(self, ByteStream stream, int fd, int events, long long spin) except -1:
        raise NotImplementedError


cdef Poller poller_of(loop):
    selector = getattr(loop, "_selector", None)
    return selector if isinstance(selector, Poller) else None
