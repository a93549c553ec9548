# See tcp.pyx. Declared for core and for streams that lie on a descriptor.

from libc.stdint cimport uint8_t

from .poller cimport Poller
from .stream cimport ByteStream


# (StreamEnd, OSError) for an errno.
cdef tuple system_end(int error)


cdef class TcpStream(ByteStream):
    cdef:
        int fd
        Poller poller           # of the loop; None: add_reader and add_writer
        long long busy_poll     # nanoseconds to go on reading after data came
        object scheduled        # asyncio's callbacks that wait for their turn; None: not known
        bint quick_ack          # TCP_QUICKACK is set again after each read
        bint stamped            # the kernel notes when data comes
        object sock
        object peername, sockname   # kept for after the end; None: the system is asked
        object sock_view        # of it, for others; None until somebody asks
        object ended_after      # last_received(), once closed
        bint reading            # the loop is to watch the descriptor for reading
        bint read_watched, write_watched    # it does (add_reader, add_writer)
        bint watching           # _watch() is at work
        bint tells_left         # `left` can be relied on
        bint left               # the last read may have left something that was there before it
        unsigned long watches   # how often it began to
        bint writing            # ... for writing
        bint shut               # our FIN is sent
        int put_error           # errno of put(), until put_over()
        int send_error          # errno that ended sending, 0 if none did; reading goes on until it ends too

    cdef bint _read_once(self) except -1
    cdef bint _read_later(self) except -1
    cdef bint _read_stamped(self) except -1
    cdef int _nothing_read(self, Py_ssize_t size) except -1
    cdef int _want_stamps(self) except -1
    cdef int _read_failed(self, int error) except -1
    cdef int _watch(self) except -1
    cdef int _settle_watches(self, int fd) except -1
    cdef int _wanted_events(self) noexcept
    cdef int _release(self) except -1
    cdef int _spin(self) except -1
    cdef int _after_read(self) noexcept
    cdef int start_reading(self) except -1
    cdef int _watch_dropped(self, unsigned long number) except -1
    cdef int _stop_reading(self) except -1
    cdef int _send_failed(self, int error) except -1
    cdef int _start_writing(self) except -1
    cdef int _stop_writing(self) except -1
    cdef int _shut(self) except -1
    cdef int put(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int put_over(self) except -1
    cdef int end_tcp(self) except -1
