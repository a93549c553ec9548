# See tls.pyx. Declared for core.

from libc.stdint cimport uint8_t

from .stream cimport ByteStream


cdef class TlsStream(ByteStream):
    cdef:
        ByteStream lower
        object incoming         # ssl.MemoryBIO: records received
        object outgoing         # ssl.MemoryBIO: records to send
        object tls              # ssl.SSLObject
        object view             # of it, for others
        # A call of `tls` is under way, or what it made is being given to the stream below. It may run anybody's code,
        # and no other may begin meanwhile. `again`: something was to be done in that time.
        bint calling, again
        bytes message           # what stands before the backlog: TLS has taken message_done bytes of it; or None
        Py_ssize_t message_done
        bint handshaking
        bint close_notify_seen
        bint failed
        bint shut               # our close_notify is made, or there is none to be made; what comes is thrown away
        tuple lower_end         # (StreamEnd, error) of the stream below that came during a call
        Py_ssize_t unread_answers   # bytes that reading made TLS send since the stream below had no backlog
        object read_error       # found by a read, and not reported yet
        object handshake_timeout    # seconds or None
        object timer                # of the handshake

    cdef int _advance(self) except -1
    cdef int _call_over(self) except -1
    cdef int _broken_off(self, error) except -1
    cdef int _shake_hands(self) except -1
    cdef int _handshake_over(self) except -1
    cdef int _read(self) except -1
    cdef bint _has_records(self) except -1
    cdef bytes _read_record(self)
    cdef int _answer(self) except -1
    cdef int _fail(self, error) except -1
    cdef bint _waits(self) noexcept
    cdef int _forget_message(self) except -1
    cdef bint _next_message(self) except -1
    cdef int _encrypt(self) except -1
    cdef int _send_records(self) except -1
    cdef int _shut(self) except -1
