# See direct_tls.pyx.

from libc.stdint cimport int64_t, uint8_t

from .tcp cimport TcpStream


cdef extern from "openssl/records.h":
    ctypedef struct pf_records:
        uint8_t *data
        size_t filled


cdef extern from "openssl/stamped_source.h":
    ctypedef struct pf_stamps:
        int64_t software
        int64_t hardware

    ctypedef struct pf_source:
        int fd
        pf_stamps stamps


cdef class DirectTlsStream(TcpStream):
    cdef:
        void *ssl                   # of `tls`
        object ssl_owner            # what keeps it alive: `tls` might be given another one
        void *bio                   # of `ssl`, for what it writes
        pf_records records          # what it has written
        void *descriptor_bio        # of `ssl`, for what it reads
        void *source_bio            # of `ssl`, for what it reads, where times of arrival are wanted; else NULL
        pf_source source            # what it reads
        object tls                  # ssl.SSLObject
        object view                 # of it, for others
        bytearray held              # written, but not made into records yet: during a handshake, or corked
        # A call of `ssl` is under way that may run anybody's code: no other may begin meanwhile. `end_wanted`: the
        # stream was to be ended in that time.
        bint calling, end_wanted
        bint handshaking
        bint may_renegotiate        # TLS 1.2 or older, in which a handshake may begin anew
        bint read_over              # TLS has nothing more to read; what comes is not looked at
        bint failed                 # nor to write
        int noted_end               # StreamEnd that a read came upon, or 0; see _find_end()
        unsigned long noted_error   # OpenSSL's or the system's number of what it failed with
        unsigned long noted_write_error     # OpenSSL's number of what a write failed with, or 0
        tuple found_end             # (StreamEnd, error) that a read found, and nobody was told of yet
        bint fin_awaited            # the end that was reported is TLS' own; the peer may still be sending
        Py_ssize_t unread_answers   # bytes that reading made TLS send since there was no backlog
        object handshake_timeout    # seconds or None
        object timer                # of the handshake

    cdef int _advance_handshake(self) except -1
    cdef bint _read_records(self) except -1
    cdef int _handshake_over(self) except -1
    cdef int _end(self, int end, error) except -1
    cdef int _forget_held(self) except -1
    cdef bint _read_with_care(self) except -1
    cdef bint _has_more(self) noexcept
    cdef Py_ssize_t _read_into(self, uint8_t *where, Py_ssize_t room) noexcept
    cdef int _note_failure(self, int size) noexcept
    cdef Py_ssize_t _put_answers(self) except -1
    cdef int _reading_done(self, Py_ssize_t answered) except -1
    cdef int _find_end(self) except -1
    cdef int _tell_end(self) except -1
    cdef bint _is_renegotiating(self) noexcept
    cdef int _open_records(self) except -1
    cdef int _hold(self, const uint8_t *head, Py_ssize_t head_size,
                   const uint8_t *body, Py_ssize_t body_size) except -1
    cdef int _encrypt(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _put_records(self) except -1
    cdef int _send_records(self) except -1
    cdef int _flush_held(self) except -1
    cdef int _end_tls(self) except -1
