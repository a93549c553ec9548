# LoopSelector: the selector of picows_fast.new_event_loop().
#
# Owns: the epoll descriptor and the alarm, who watches which descriptor, waiting. Does not own: the event loop, which
# is asyncio's; what a stream does when it is ready.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ..net.poller cimport Poller
from ..net.stream cimport ByteStream


cdef extern from "<sys/epoll.h>":
    struct epoll_event:
        uint32_t events


# Who watches a descriptor. What it refers to is kept alive by LoopSelector.streams.
cdef struct Watched:
    void *stream            # ByteStream; NULL: a file object of somebody else, or nobody
    void *context           # contextvars.Context that the stream is called in
    uint32_t events         # PollEvents
    uint32_t generation     # counts who has watched this descriptor: tells an event of a former one
    int64_t spin            # nanoseconds
    # The stream that is being called; by its address, as the number may become another one's meanwhile. NULL: none.
    void *entered
    bint missed             # ... and was to be called meanwhile


cdef class LoopSelector(Poller):
    cdef:
        object __weakref__
        int epoll_fd                # -1: closed
        object loop                 # who select() looks after; None: nobody, and select() is as any selector's
        object scheduled            # its callbacks that wait for their turn
        int64_t busy_poll           # nanoseconds to spin before blocking
        dict keys                   # fd -> SelectorKey of file objects
        dict streams                # fd -> (stream, context)
        object map                  # what get_map() returns
        Watched *watched            # by descriptor
        int watched_size
        uint64_t selects            # counts calls of select(): tells of one inside a callback
        uint64_t hot                # who received last, as in its events; HOT_NOBODY
        object context              # the one that this select() has entered; None
        ByteStream failed           # whose callback raised, until _call_failed(); None
        bint interrupted            # the loop was stopped
        # A timer of the kernel's, watched by epoll: a limit that outlasts many waits is given once, not to each wait.
        int alarm_fd                # -1: not made yet, or it cannot be
        int64_t alarm               # when it goes off; 0: it is not set
        bint cut_short              # the last wait with a limit ended before

    cdef list _select(self, epoll_event *events, int room, timeout)
    cdef int _wait(self, epoll_event *events, int room, int64_t deadline, int64_t *now, bint inside) except -1
    cdef int64_t _time_left(self, int64_t deadline, int64_t *now, bint inside) except -2
    cdef bint _set_alarm(self, int64_t deadline) except -1
    cdef int _close_descriptors(self) noexcept
    cdef int _tell(self, epoll_event *events, int found, bint inside, list ready) except -1
    cdef int _expect(self, uint64_t next, uint64_t after_next) noexcept
    cdef int _descriptor(self, fileobj) except -1
    cdef int _control(self, int operation, int fd, int events) except -1
    cdef Watched *_slot(self, int fd) except NULL
    cdef int _forget(self, int fd) except -1
    cdef int _watch_anew(self, ByteStream stream, int fd, int events, long long spin) except -1
    cdef int _forget_stream(self, int fd) except -1
    cdef bint _is_current(self, uint64_t event_data) noexcept
    cdef int _call(self, uint64_t event_data, uint32_t happened) noexcept
    cdef int _call_again(self, uint32_t fd) noexcept
    cdef int _call_failed(self) except -1
    cdef bint _read_hot(self) except -1
    cdef int _switch(self, object context) noexcept
    cdef int _leave(self) except -1
    cdef object _stream_key(self, int fd)
