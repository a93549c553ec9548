# See direct_tls.pyx.

from libc.stdint cimport int64_t, uint8_t

from .tcp cimport TcpStream


cdef extern from "records.h":
    ctypedef struct pf_records:
        uint8_t *data
        size_t filled


cdef extern from "stamped_source.h":
    ctypedef struct pf_stamps:
        int64_t software
        int64_t hardware

    ctypedef struct pf_source:
        int fd
        pf_stamps stamps


cdef class DirectTlsStream(TcpStream):
    cdef:
        void *ssl                   # of `tls`, which keeps it alive
        void *bio                   # of `ssl`, for what it writes
        pf_records records          # what it has written
        void *source_bio            # of `ssl`, for what it reads, where times of arrival are wanted; else NULL
        pf_source source            # what it reads
        object tls                  # ssl.SSLObject
        bytearray held              # written, but not made into records yet: during a handshake, or corked
        bint handshaking
        bint may_renegotiate        # TLS 1.2 or older, in which a handshake may begin anew
        bint read_over              # TLS has nothing more to read; what comes is not looked at
        bint failed                 # nor to write
        tuple found_end             # (StreamEnd, error) that a read found, and nobody was told of yet
        Py_ssize_t unread_answers   # bytes that reading made TLS send since there was no backlog
        object handshake_timeout    # seconds or None
        object timer                # of the handshake

    cdef int _advance_handshake(self) except -1
    cdef bint _read_records(self) except -1
    cdef int _handshake_over(self) except -1
    cdef int _end(self, int end, error) except -1
    cdef int _read_failed_with(self, int error, int system_error) except -1
    cdef int _tell_end(self) except -1
    cdef int _send_answers(self) except -1
    cdef bint _is_renegotiating(self) noexcept
    cdef int _open_records(self) except -1
    cdef int _encrypt(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _send_records(self) except -1
    cdef int _flush_held(self) except -1
