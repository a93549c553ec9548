# See tls.pyx. Declared for core.

from libc.stdint cimport uint8_t

from .stream cimport ByteStream


cdef class TlsStream(ByteStream):
    cdef:
        ByteStream lower
        object incoming         # ssl.MemoryBIO: records received
        object outgoing         # ssl.MemoryBIO: records to send
        object tls              # ssl.SSLObject
        bint handshaking
        bint close_notify_seen
        bint failed
        Py_ssize_t unread_answers   # bytes that reading made TLS send since the stream below had no backlog
        object read_error       # found by a read, and not reported yet
        object handshake_timeout    # seconds or None
        object timer                # of the handshake

    cdef int _handshake_over(self) except -1
    cdef int _advance(self) except -1
    cdef int _read(self) except -1
    cdef bint _has_records(self) except -1
    cdef int _discard(self) except -1
    cdef int _fail(self, error) except -1
    cdef int _encrypt(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _send_records(self) except -1
    cdef int _shut(self) except -1
