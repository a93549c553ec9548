# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""A ByteStream that owns a connected stream socket (TCP or Unix): ``add_reader`` and system calls in C.

A loop whose selector is a Poller watches the descriptor without ``add_reader``, and calls in C, too. One readiness
event is one ``recv`` into the shared buffer; one write is one ``send``. POSIX only.
"""

import collections
import os
import socket

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ECONNABORTED, ECONNRESET, EINTR, ENOMEM, EPIPE, errno
from libc.stdint cimport int64_t, uint8_t

from .poller cimport POLL_CAME, POLL_EDGE, POLL_LEFT, POLL_READ, POLL_WRITE, poller_of
from .stream cimport ByteStream, StreamEnd, read_space


cdef extern from *:
    """
    #include <sys/types.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <errno.h>
    #include <poll.h>
    #include <stddef.h>
    #include <string.h>
    #include <time.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>

    static inline int64_t pf_now(void)
    {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }

    static inline void pf_quick_ack(int fd)
    {
    #ifdef TCP_QUICKACK
        int yes = 1;

        (void)setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof yes);
    #else
        (void)fd;
    #endif
    }

    static inline int pf_readable(int fd)
    {
        struct pollfd one = {fd, POLLIN, 0};

        return poll(&one, 1, 0) > 0;
    }

    static inline int would_block(int error)
    {
        return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
    }

    /* Milliseconds since the system took in data of the peer's last; -1 where that cannot be told. */
    static inline int64_t pf_since_data(int fd)
    {
    #if defined(__linux__) && defined(TCP_INFO)
        struct tcp_info info;
        socklen_t size = sizeof info;
        const socklen_t needed = offsetof(struct tcp_info, tcpi_last_data_recv) + sizeof info.tcpi_last_data_recv;

        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && size >= needed)
            return info.tcpi_last_data_recv;
    #else
        (void)fd;
    #endif
        return -1;
    }

    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* SO_NOSIGPIPE is set instead where that exists */
    #endif

    static inline ssize_t pf_send(int fd, const void *data, size_t size)
    {
        return send(fd, data, size, MSG_NOSIGNAL);
    }

    static inline ssize_t pf_send_two(int fd, const void *head, size_t head_size,
                                      const void *body, size_t body_size)
    {
        struct iovec parts[2];
        struct msghdr message;

        parts[0].iov_base = (void *)head;
        parts[0].iov_len = head_size;
        parts[1].iov_base = (void *)body;
        parts[1].iov_len = body_size;
        memset(&message, 0, sizeof message);
        message.msg_iov = parts;
        message.msg_iovlen = 2;
        return sendmsg(fd, &message, MSG_NOSIGNAL);
    }

    static inline ssize_t pf_recv(int fd, void *data, size_t size)
    {
        return recv(fd, data, size, 0);
    }
    """
    int64_t pf_now() nogil
    int64_t pf_since_data(int fd) nogil
    void pf_quick_ack(int fd) nogil
    bint pf_readable(int fd) nogil
    bint would_block(int error) nogil
    Py_ssize_t pf_send(int fd, const void *data, size_t size) nogil
    Py_ssize_t pf_send_two(int fd, const void *head, size_t head_size, const void *body, size_t body_size) nogil
    Py_ssize_t pf_recv(int fd, void *data, size_t size) nogil


cdef extern from "timestamps.h":
    ctypedef struct pf_stamps:
        int64_t software
        int64_t hardware

    int pf_stamps_enable(int fd)
    Py_ssize_t pf_recv_stamped(int fd, void *data, size_t size, pf_stamps *stamps)

cdef enum:
    # A read has one time of arrival, so what came in a burst is taken in pieces of this size. All of them together are
    # no more than a read without times would take.
    STAMPED_READ = 16 * 1024
    STAMPED_READS = 16


cdef tuple system_end(int error):
    end = StreamEnd.RESET if error in (ECONNRESET, EPIPE, ECONNABORTED) else StreamEnd.FAILED
    return end, OSError(error, os.strerror(error))


cdef class SocketView:
    """What ``get_extra_info("socket")`` gives: options and addresses of a stream's socket, as asyncio's transports show
    them.

    It cannot read or close. After the end its ``fileno()`` is -1, and what asks the system raises OSError.
    """

    cdef object sock

    def __cinit__(self, sock):
        self.sock = sock

    @property
    def family(self):
        """socket.AddressFamily."""
        return self.sock.family

    @property
    def type(self):
        """socket.SocketKind."""
        return self.sock.type

    @property
    def proto(self):
        """int: the protocol, ``socket.IPPROTO_TCP`` for one."""
        return self.sock.proto

    def fileno(self):
        """Return the descriptor, -1 after the end."""
        return self.sock.fileno()

    def dup(self):
        """Return a socket of the caller's own for the same connection."""
        return self.sock.dup()

    def get_inheritable(self):
        """Return whether child processes inherit the descriptor."""
        return self.sock.get_inheritable()

    def getsockopt(self, *args):
        """As :meth:`socket.socket.getsockopt`."""
        return self.sock.getsockopt(*args)

    def setsockopt(self, *args):
        """As :meth:`socket.socket.setsockopt`."""
        self.sock.setsockopt(*args)

    def getpeername(self):
        """As :meth:`socket.socket.getpeername`."""
        return self.sock.getpeername()

    def getsockname(self):
        """As :meth:`socket.socket.getsockname`."""
        return self.sock.getsockname()

    def send(self, data, flags=0):
        """As :meth:`socket.socket.send`: bytes go to the peer past all that waits, past framing and TLS. For tests of
        what a peer makes of them; the stream's own ``write()`` keeps the order."""
        return self.sock.send(data, flags)

    def gettimeout(self):
        """Return 0: the socket never blocks."""
        return 0

    def settimeout(self, value):
        """Accept 0 only.

        :raises ValueError: value is not 0
        """
        if value != 0:
            raise ValueError(f"settimeout(): the socket of a connection never blocks: value must be 0, got {value!r}")

    def setblocking(self, flag):
        """Accept False only.

        :raises ValueError: flag is true
        """
        if flag:
            raise ValueError("setblocking(): the socket of a connection never blocks, so flag must be False")

    def __repr__(self):
        return f"<SocketView of {self.sock!r}>"


cdef class _Watch:
    # What add_reader() gets. uvloop drops it unasked when the descriptor has an error, after a last call, whatever is
    # left to read then; the stream hears of that because nothing but the loop holds this object.
    cdef TcpStream stream
    cdef unsigned long number

    def ready(self):
        if self.stream._read_once() and self.stream.busy_poll > 0:
            self.stream._spin()

    def __del__(self):
        if self.stream is not None:
            self.stream._watch_dropped(self.number)


cdef class TcpStream(ByteStream):
    """A stream over a connected, non-blocking socket, which it owns from now on."""

    # `more` is what a subclass's own takes.
    def __cinit__(self, loop, sock, *more):
        self.fd = -1
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        self.poller = poller_of(loop)
        self.space = self.keeper = read_space(loop, 0)
        # A read that takes less than it may leaves nothing. On a Unix socket it may: reads end where descriptors were
        # sent.
        if self.poller is not None:
            # Nor is it promised of multipath TCP.
            self.tells_left = (
                type(self) is TcpStream
                and sock.family in (socket.AF_INET, socket.AF_INET6)
                and sock.proto in (0, socket.IPPROTO_TCP)
            )
        self.can_take_back = True
        self.set_write_buffer_limits()
        if hasattr(socket, "SO_NOSIGPIPE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_NOSIGPIPE, 1)

    # --- in

    def tune(self, *, double busy_poll=0.0, bint quick_ack=False, bint timestamps=False):
        """Spend CPU time for latency, or for knowing of it. To be called before start().

        :param busy_poll: seconds to go on reading after data came; the loop of a Poller does that by itself
        :param quick_ack: acknowledge at once whatever comes (Linux; no effect elsewhere)
        :param timestamps: have the kernel note when data comes (Linux, TCP; no effect elsewhere)
        """
        if timestamps:
            self._want_stamps()
        self.busy_poll = <long long> (busy_poll * 1e9)
        self.quick_ack = quick_ack
        scheduled = getattr(self.loop, "_ready", None)
        self.scheduled = scheduled if isinstance(scheduled, collections.deque) else None

    def _on_readable(self):
        if self._read_once() and self.busy_poll > 0:
            self._spin()

    cdef int _spin(self) except -1:
        """Go on reading for busy_poll in all, whatever comes, so that the loop's turn has an end."""
        cdef int64_t until = pf_now() + self.busy_poll
        cdef int64_t now = 0
        while self.reading and now < until and not self.scheduled:
            self._read_once()
            with nogil:         # other threads want to run, too
                now = pf_now()
            PyErr_CheckSignals()
        return 0

    cdef int _after_read(self) noexcept:
        if self.quick_ack and self.fd >= 0:
            pf_quick_ack(self.fd)
        return 0

    cdef int descriptor_ready(self, bint readable, bint writable) except -1:
        cdef bint came = readable and self._read_once()
        if writable and self.writing:
            self.flush()
        return (POLL_CAME if came else 0) | (POLL_LEFT if self.left else 0)

    cdef int _watch(self) except -1:
        """Have the loop watch the descriptor for what is wanted now."""
        cdef int fd = self.fd
        cdef bint failed = False
        if self.watching:
            return 0        # code that runs in the midst of a call below wants something else: that call sees to it
        self.watching = True
        try:
            self._settle_watches(fd)
        except MemoryError:
            failed = True
            self.reading = self.writing = False
            self._settle_watches(fd)
        finally:
            self.watching = False
            if self.closed:
                self.sock.close()
        return self.out_of_memory() if failed and not self.closed else 0

    cdef int _wanted_events(self) noexcept:
        cdef int events = POLL_WRITE if self.writing else 0
        if self.reading:
            events |= POLL_READ | POLL_EDGE if self.tells_left else POLL_READ
        return events

    cdef int _settle_watches(self, int fd) except -1:
        cdef _Watch watch
        cdef int events
        if self.poller is not None:
            while True:
                events = self._wanted_events()
                self.poller.watch(self, fd, events, self.busy_poll if events else 0)
                if events == self._wanted_events():
                    return 0
        while True:
            if self.reading and not self.read_watched:
                self.watches += 1
                watch = _Watch.__new__(_Watch)
                watch.stream = self
                watch.number = self.watches
                self.loop.add_reader(fd, watch.ready)
                self.read_watched = True
            elif self.read_watched and not self.reading:
                self.loop.remove_reader(fd)
                self.read_watched = False
            elif self.writing and not self.write_watched:
                self.loop.add_writer(fd, self._on_writable)
                self.write_watched = True
            elif self.write_watched and not self.writing:
                self.loop.remove_writer(fd)
                self.write_watched = False
            else:
                return 0

    cdef bint _read_once(self) except -1:
        """One system call. Returns whether bytes came."""
        cdef uint8_t *where
        cdef Py_ssize_t room, size
        if not self.reading:
            return False
        if self.delivering and not self.closing:
            return self._read_later()
        if self.stamped:
            return self._read_stamped()
        room = self.reserve(&where)
        size = pf_recv(self.fd, where, <size_t> room)
        self.left = size == room
        if size > 0:
            if not self.closing:    # else nobody is interested any more: only the peer's FIN is awaited
                self.received(size)
                if self.quick_ack:
                    self._after_read()
            return True
        self._nothing_read(size)
        return False

    cdef bint _read_later(self) except -1:
        """A loop inside the handler's callback must not read. It would find the descriptor readable again and again."""
        self.reentered = True
        self._stop_reading()
        return False

    cdef bint _read_stamped(self) except -1:
        """The same with times of arrival: several system calls when much has come."""
        cdef uint8_t *where
        cdef Py_ssize_t room, size
        cdef pf_stamps stamps
        cdef int reads = 0
        while self.reading and reads < STAMPED_READS:
            room = min(self.reserve(&where), <Py_ssize_t> STAMPED_READ)
            size = pf_recv_stamped(self.fd, where, <size_t> room, &stamps)
            self.left = size == room
            if size <= 0:
                self._nothing_read(size)
                break
            reads += 1
            if not self.closing:
                self.arrived = stamps.software
                self.arrived_by_hardware = stamps.hardware
                self.received(size)
                if self.quick_ack:
                    self._after_read()
            if size < room:
                break
        return reads > 0

    cdef int _want_stamps(self) except -1:
        self.stamped = pf_stamps_enable(self.fd) == 0
        return 0

    cdef int _nothing_read(self, Py_ssize_t size) except -1:
        """A read returned 0 or -1."""
        if size == 0 and self.send_error == ECONNRESET:
            # The send has taken the error; what is left to read looks like an orderly end.
            self._read_failed(ECONNRESET)
        elif size == 0:
            self._stop_reading()
            self.report_end(StreamEnd.FIN, None)
        elif not would_block(errno):
            self._read_failed(errno)
        else:
            self.left = errno == EINTR
        return 0

    cdef int _read_failed(self, int error) except -1:
        self._stop_reading()
        self.send_error = error
        self.write_failed = True
        end, exception = system_end(error)
        self.report_end(end, exception)
        return 0

    def note_peername(self, peername):
        """Say what getpeername() would, as accept() has said it already."""
        self.peername = peername

    cpdef start(self):
        if self.reading_paused and not self.closing:
            return      # resume() starts
        if self.pending is not None and not self.closing:
            self.loop.call_soon(self._deliver_turn)
        else:
            self.start_reading()

    cdef int start_reading(self) except -1:
        if not self.reading and not self.closed and not self.end_seen:
            self.reading = True
            return self._watch()
        return 0

    cdef int _watch_dropped(self, unsigned long number) except -1:
        if self.reading and number == self.watches and not self.closed and not self.loop.is_closed():
            self.loop.call_soon(self._after_watch_dropped, number)
        return 0

    def _after_watch_dropped(self, number):
        cdef int error
        if not self.reading or number != self.watches or self.closed:
            return
        if self._read_once():
            self.loop.call_soon(self._after_watch_dropped, number)
        elif self.reading and not self.closed:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._read_failed(error)
            else:
                self._stop_reading()
                self.start_reading()

    cdef int _stop_reading(self) except -1:
        if self.reading:
            self.reading = False
            return self._watch()
        return 0

    cdef int pause(self) except -1:
        if not self.closing:
            self.reading_paused = True
            self._stop_reading()
        return 0

    cdef int resume(self) except -1:
        if self.reading_paused and not self.closing:
            self.reading_paused = False
            if self.pending is not None:
                self.loop.call_soon(self._deliver_turn)
            else:
                self.start_reading()
        return 0

    cdef int read_on(self) except -1:
        self.start_reading()
        if self.send_error:
            self._after_send_failed()
        return 0

    # --- out

    cdef int writev(self, const uint8_t *head, Py_ssize_t head_size,
                    const uint8_t *body, Py_ssize_t body_size) except -1:
        cdef Py_ssize_t sent
        if self.closing or self.send_error:
            return 0
        if self.backlog_end or self.corks or self.coalescing:
            self.append_backlog(head, head_size, body, body_size)
            if not (self.corks or self.in_unit or self.writing or self.send_error):
                self.schedule_flush()
            return 0
        if body_size:
            sent = pf_send_two(self.fd, head, <size_t> head_size, body, <size_t> body_size)
        else:
            sent = pf_send(self.fd, head, <size_t> head_size)
        if sent == head_size + body_size:
            return 0
        if sent < 0:
            if not would_block(errno):
                return self._send_failed(errno)
            sent = 0
        if sent < head_size:
            self.append_backlog(head + sent, head_size - sent, body, body_size)
        else:
            self.append_backlog(body + (sent - head_size), head_size + body_size - sent, NULL, 0)
        if not (self.in_unit or self.send_error):
            self._start_writing()
        return 0

    cdef int end_unit(self) except -1:
        self.in_unit = False
        if self.backlog_end and not (self.corks or self.writing):
            if self.coalescing:
                self.schedule_flush()
            else:
                self._start_writing()
        return 0

    cdef int put(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Send, or put behind the backlog, without running Python code; put_over() must follow."""
        cdef Py_ssize_t sent = 0
        if self.send_error or self.put_error or self.closed:
            return 0
        if self.backlog_end == 0:
            sent = pf_send(self.fd, data, <size_t> size)
            if sent < 0:
                if not would_block(errno):
                    self.put_error = errno
                    return 0
                sent = 0
        return 0 if sent == size else self.append_backlog(data + sent, size - sent, NULL, 0)

    cdef int put_over(self) except -1:
        cdef int error = self.put_error
        if error:
            self.put_error = 0
            return self._send_failed(error)
        if self.backlog_end and not (self.writing or self.in_unit or self.closed):
            return self._start_writing()
        return 0

    cdef int out_of_memory(self) except -1:
        return self._send_failed(ENOMEM)

    cdef bint take_back(self, Py_ssize_t size) noexcept:
        if self.backlog_end - self.backlog_start <= size:
            return False
        self.backlog_end -= size
        return True

    cdef int flush(self) except -1:
        cdef Py_ssize_t size = self.backlog_end - self.backlog_start
        cdef Py_ssize_t sent
        if size and not self.send_error:
            sent = pf_send(self.fd, self.backlog + self.backlog_start, <size_t> size)
            if sent < 0:
                if not would_block(errno):
                    return self._send_failed(errno)
                sent = 0
            self.backlog_sent(sent)
            if self.closed:
                return 0
        if self.backlog_end:
            self._start_writing()
            self.check_high_watermark()
        else:
            self._stop_writing()
            if self.closing:
                self._shut()
        return 0

    def _on_writable(self):
        if not self.closed:
            self.flush()

    cdef int _send_failed(self, int error) except -1:
        # What the peer sent before it went away (a CLOSE, say) may still be waiting to be read: reading
        # finds the end of the stream behind it and reports that.
        self.send_error = error
        self.write_failed = True
        self._stop_writing()
        self.backlog_lost += self.backlog_end - self.backlog_start
        self.backlog_sent(self.backlog_end - self.backlog_start)
        if self.closed:
            return 0
        try:
            self.loop.call_soon(self._after_send_failed)
        except MemoryError:
            return self.finish() if self.closing else self._read_failed(error)
        return 0

    def _after_send_failed(self):
        if self.delivering:
            self.reentered = True       # the end comes behind what the handler has not come to yet
        elif self._read_once() and not self.closed:
            self.loop.call_soon(self._after_send_failed)
        elif not self.end_seen and not self.closed:
            self._read_failed(self.send_error)
        elif self.closing and not self.closed:
            self.finish()       # the end was seen before

    cdef int _start_writing(self) except -1:
        if not self.writing:
            self.writing = True
            return self._watch()
        return 0

    cdef int _stop_writing(self) except -1:
        if self.writing:
            self.writing = False
            return self._watch()
        return 0

    # --- end

    cdef int end(self) except -1:
        return 0 if self.closing else self.end_tcp()

    cdef int end_tcp(self) except -1:
        self.closing = True
        self.pending = None
        self.pending_start = self.pending_end = 0
        self.corks = 0
        if self.send_error:
            self.finish()
            return 0
        # Reads are thrown away from here on; a peer that is blocked in its own send could not read ours.
        self.start_reading()
        self.flush()
        return 0

    cdef int _shut(self) except -1:
        """Everything is sent: send our FIN and wait for the peer's.

        Closing a descriptor with unread bytes makes the kernel reset the connection, which can destroy
        what we sent last on its way.
        """
        if self.shut:
            return 0
        self.shut = True
        if self.end_seen:
            return self.finish()
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self.finish()
        return 0

    cdef int finish(self) except -1:
        if self.closed:
            return 0
        # Each step whatever happens in those before: the loop must not watch a number that is another socket's soon.
        try:
            self.peername = self.get_extra_info("peername")
            self.sockname = self.get_extra_info("sockname")
            self.ended_after = self.last_received()
        finally:
            self._release()
        return 0

    cdef int _release(self) except -1:
        try:
            self.reading = self.writing = False
            self._watch()
        finally:
            self.fd = -1
            try:
                if not self.watching:   # else _watch() closes it
                    self.sock.close()
            finally:
                ByteStream.finish(self)
        return 0

    def has_unread(self):
        return self.reading and not self.closed and pf_readable(self.fd)

    def read_now(self):
        self._read_once()

    def last_received(self):
        cdef int64_t milliseconds
        if self.closed:
            return self.ended_after
        milliseconds = pf_since_data(self.fd)
        return None if milliseconds < 0 else pf_now() / 1e9 - milliseconds / 1e3

    def get_extra_info(self, name, default=None):
        if self.noted is not None and name in self.noted:
            return self.noted[name]
        if name == "socket":
            if self.sock_view is None:
                self.sock_view = SocketView(self.sock)
            return self.sock_view
        try:
            if name == "peername":
                return self.peername if self.peername is not None else self.sock.getpeername()
            if name == "sockname":
                return self.sockname if self.sockname is not None else self.sock.getsockname()
        except OSError:
            pass
        return default
