# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""A ByteStream over an asyncio transport that somebody else made: Windows' proactor, custom loops, proxies.

Owns the receive buffer that the transport reads into; the descriptor and the queue of what could not be sent
are the transport's.
"""

import asyncio
import select

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from .stream cimport ByteStream, ReadSpace, ReceiveBuffer, StreamEnd, StreamHandler, new_receive_buffer, read_space


cdef enum:
    RECEIVE_SIZE = 64 * 1024

# Seconds between two looks at a transport that does not tell when its buffer is empty.
cdef double DRAIN_POLL = 0.005


def _raise(error):
    raise error


def _selects_readable(int descriptor):
    if not hasattr(select, "poll"):     # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class _Protocol(asyncio.BufferedProtocol):
    """What the foreign transport calls; asyncio wants a Python class here."""

    __slots__ = (
        "buffer_updated", "connection_lost", "connection_made", "eof_received", "get_buffer", "pause_writing",
        "resume_writing",
    )

    def __init__(self, stream):
        self.get_buffer = stream._get_buffer
        self.buffer_updated = stream._buffer_updated
        self.eof_received = stream._eof_received
        self.connection_made = stream._connection_made
        self.connection_lost = stream._connection_lost
        self.pause_writing = stream._pause_writing
        self.resume_writing = stream._resume_writing


cdef class _Nobody(StreamHandler):
    # Stands in until the stream has its handler: the transport exists some turns of the loop earlier, and a peer
    # that speaks or leaves at once is not to be lost.
    cdef:
        int end
        object error

    cdef Py_ssize_t stream_data(self, uint8_t *data, Py_ssize_t size, object owner) except -1:
        return 0

    cdef int stream_end(self, int end, object error) except -1:
        self.end = end
        self.error = error
        return 0


cdef class _Window:
    # What get_buffer() gives. A loop may have the kernel fill it later (overlapped I/O), when the stream has moved on
    # or is gone: the memory stays until buffer_updated(), or for as long as the loop holds the view.
    cdef:
        uint8_t *data
        Py_ssize_t size
        ReceiveBuffer owner
        ReceiveBuffer pending       # the stream's when it was given, with its bytes
        Py_ssize_t held

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, False, flags)


cdef class ForeignStream(ByteStream):
    """A stream over any :class:`asyncio.Transport`: connect it with ``protocol``. ``transport`` is None until then.

    :param on_connected: called with the transport when it is there, or None
    """

    cdef:
        readonly object protocol
        readonly object transport
        object peername, sockname   # some loops' transports do not know them any more at the end
        object on_connected
        _Window window          # what get_buffer() gave, until buffer_updated() says how much of it was filled
        _Nobody early           # what came before start()
        bytearray behind        # came while the handler was looking at what came before; None if nothing did
        int end_behind          # StreamEnd that came behind that, or 0
        object error_behind
        bint lost               # connection_lost() has come
        bint transport_paused   # pause_writing() has come: more than `mark` bytes wait in the transport
        Py_ssize_t mark         # both of the transport's watermarks; -1: not set yet
        bint look_scheduled
        bint giving             # transport.write() runs

    def __cinit__(self, loop, on_connected=None):
        self.loop = loop
        self.on_connected = on_connected
        # A transport may fill the buffer in another turn than it asked for it, so it cannot be a shared one.
        self.space = ReadSpace(RECEIVE_SIZE)
        self.keeper = read_space(loop, 0)
        self.reads_at_once = False
        self.mark = -1
        ByteStream.set_write_buffer_limits(self)
        self.protocol = _Protocol(self)
        self.handler = self.early = _Nobody.__new__(_Nobody)

    def attach(self, transport):
        """Take over a transport that is connected already."""
        transport.set_protocol(self.protocol)
        self._connection_made(transport)
        # A transport whose last protocol was told of the peer's end does not tell it again, unless it is paused first.
        if transport.is_reading():
            transport.pause_reading()
        transport.resume_reading()

    def push(self, bytes data):
        """Take bytes that the transport has given to a protocol before this one. To be called behind attach()."""
        self.receive_copy(data)

    def is_taken(self):
        return self.closing or self.handler is not self.early

    def give_up(self):
        """Abort a stream that nobody has yet. The transport may be gone without a connection_lost()."""
        self.drop()
        self.protocol = self.transport = None   # they refer to this object

    # --- what the transport calls

    def _connection_made(self, transport):
        self.transport = transport
        if self.closed:
            transport.abort()
            return
        try:
            self.peername = transport.get_extra_info("peername")
            self.sockname = transport.get_extra_info("sockname")
            self._set_transport_limits()
            if self.backlog_end:
                self.flush()
            if self.on_connected is not None:
                on_connected = self.on_connected
                self.on_connected = None
                on_connected(transport)
        except BaseException:
            self.abort()        # nobody else has it, or can tell that it is there
            raise

    def _get_buffer(self, sizehint):
        cdef _Window window
        cdef ReceiveBuffer pending
        if self.lost:
            return bytearray(1)     # a transport that asks after connection_lost()
        self.window = window = _Window.__new__(_Window)
        if self.delivering:
            window.owner = new_receive_buffer(RECEIVE_SIZE)
            window.data = window.owner.data
            window.size = RECEIVE_SIZE
            window.held = -1
            return memoryview(window)
        window.size = self.reserve(&window.data)
        window.owner = self.space.buffer
        pending = self.pending      # it may have grown just now
        if pending is not None and pending.data <= window.data < pending.data + pending.capacity:
            window.owner = pending
        window.pending = pending
        window.held = self.pending_end - self.pending_start
        return memoryview(window)

    def _buffer_updated(self, Py_ssize_t size):
        cdef _Window window = self.window
        cdef bint is_in_place
        self.window = None
        if self.closing or self.lost:
            return
        if window is None or not 0 <= size <= window.size:
            given = 0 if window is None else window.size
            raise ValueError(f"buffer_updated() must be given 0..{given}, got {size}")
        if self._must_wait():
            self._note_behind(window, size)
            return
        is_in_place = window.pending is self.pending and window.held == self.pending_end - self.pending_start
        window.pending = None
        try:
            if is_in_place:
                window.owner = None     # nobody fills it any more; held, it could not be used again
                self.received(size)
            else:
                # What these bytes follow was used while they were on their way.
                self.receive_copy(PyBytes_FromStringAndSize(<char*> window.data, size))
        except (KeyboardInterrupt, SystemExit) as error:
            # Some loops' transports take these for an error of the connection. A call of the loop's own ends it.
            self.loop.call_soon(_raise, error)

    cdef bint _must_wait(self) noexcept:
        """Whether what comes must wait: a loop inside the handler's callback has brought it."""
        return (self.delivering or self.behind is not None) and not self.closing

    cdef int _note_behind(self, _Window window, Py_ssize_t size) except -1:
        if self.behind is None:
            self.behind = bytearray()
        self.behind += PyBytes_FromStringAndSize(<char*> window.data, size)
        self.reentered = self.delivering
        if not self.lost and self.transport.is_reading():
            self.transport.pause_reading()
        return 0

    cdef int _end_of_input(self, int end, error) except -1:
        if not self._must_wait():
            return self.report_end(end, error)
        self.end_behind = end
        self.error_behind = error
        self.reentered = self.delivering
        return 0

    def _eof_received(self):
        self._end_of_input(StreamEnd.FIN, None)
        # The transport stays open for what is still to be sent; close() and abort() end it. (TLS of the loop's own,
        # below a proxy's tunnel, has no half-open state and asks not to be told so.)
        return self.transport.can_write_eof()

    def _connection_lost(self, error):
        self.lost = True
        self.protocol = None    # it refers to this object
        # Nothing comes any more, and the application may keep its transport for long.
        self.window = None
        if not self._must_wait():
            self.space = None
        if error is not None:
            error.__traceback__ = None      # its frames, the transport's, hold what get_buffer() gave
        if self.closing:
            self.finish()
        elif error is None:
            self._end_of_input(StreamEnd.FIN, None)
        elif isinstance(error, ConnectionError):
            self._end_of_input(StreamEnd.RESET, error)
        else:
            self._end_of_input(StreamEnd.FAILED, error)

    def _pause_writing(self):
        # Comes out of transport.write(), perhaps in the midst of a unit: check_high_watermark() passes it on.
        self.transport_paused = True

    def _resume_writing(self):
        # Not at once: asyncio's transport does not bear an abort() in this call.
        self.transport_paused = False
        self.loop.call_soon(self._resume_turn)

    def _resume_turn(self):
        """The transport's buffer may have shrunk to what is waited for."""
        if self.writing_paused and not self.closed and self.backlog_size() <= self.low_watermark:
            self.note_writing_paused(False)
            self.handler.stream_resume_writing()
        if self.drain_wanted and not self.closed and self.backlog_size() == 0:
            self.drain_wanted = False
            self._set_transport_limits()
            self.handler.stream_drained()
        # What we have ourselves is flushed soon, which leads here again.
        if self.backlog_end == 0:
            self._look_later()

    cdef int _look_later(self) except -1:
        """Look again after a while, if the transport does not tell: not every one does as its watermarks say."""
        if (self.writing_paused or self.drain_wanted) and not (
            self.transport_paused or self.look_scheduled or self.closed or self.lost
        ):
            self.look_scheduled = True
            self.loop.call_later(DRAIN_POLL, self._look)
        return 0

    def _look(self):
        self.look_scheduled = False
        if not self.closed:
            self._resume_turn()

    # --- in

    cpdef start(self):
        cdef _Nobody early = self.early
        self.early = None
        if early is not None and (self.pending is not None or early.end):
            # The peer's end, which uvloop may tell before the next turn, comes behind that; read_on() resumes.
            if self.transport is not None and not self.lost and self.transport.is_reading():
                self.transport.pause_reading()
            self.loop.call_soon(self._early_turn, early.end, early.error)

    def _early_turn(self, int end, error):
        self._deliver_turn()
        if end and not self.closed:
            self.end_seen = False
            self.report_end(end, error)

    cdef int pause(self) except -1:
        if not self.closing:
            self.reading_paused = True
            if not self.lost and self.transport.is_reading():
                self.transport.pause_reading()
        return 0

    cdef int resume(self) except -1:
        if self.reading_paused and not self.closing:
            self.reading_paused = False
            if self.pending is not None or self.behind is not None or self.end_behind:
                self.loop.call_soon(self._deliver_turn)
            else:
                self._resume_transport()
        return 0

    cdef int read_on(self) except -1:
        cdef bytes data
        cdef int end
        if self.behind is not None:
            data = bytes(self.behind)
            self.behind = None
            self.receive_copy(data)
        if self.lost:
            self.space = None
        if self.end_behind and not (self.delivering or self.reading_paused or self.closed):
            end = self.end_behind
            error = self.error_behind
            self.end_behind = 0
            self.error_behind = None
            return self.report_end(end, error)
        return 0 if self.closing or self.reading_paused else self._resume_transport()

    cdef int _resume_transport(self) except -1:
        if not (self.lost or self.end_seen or self.transport.is_reading()):
            self.transport.resume_reading()
        return 0

    # --- out

    cdef int writev(self, const uint8_t *head, Py_ssize_t head_size,
                    const uint8_t *body, Py_ssize_t body_size) except -1:
        cdef bytes joined
        if self.closing or self.write_failed:
            return 0
        if self.transport is None or self.corks or self.coalescing or self.backlog_end or self.in_unit or (
            self.giving
        ):
            self.append_backlog(head, head_size, body, body_size)
            if not (self.corks or self.in_unit or self.closed) and self.transport is not None:
                self.schedule_flush()
            return 0
        # The transport may queue the very object that it is given, so it gets one that nobody else has.
        joined = PyBytes_FromStringAndSize(NULL, head_size + body_size)
        memcpy(PyBytes_AS_STRING(joined), head, <size_t> head_size)
        if body_size:
            memcpy(PyBytes_AS_STRING(joined) + head_size, body, <size_t> body_size)
        # From here on Python code runs, which may change what was to be sent.
        return 0 if self._has_failed() else self._give(joined)

    cdef int _give(self, bytes data) except -1:
        # No loop's transport bears a second write() in the midst of one: the backlog keeps what is written meanwhile.
        self.giving = True
        try:
            self.transport.write(data)
        except BaseException as error:
            # Nobody knows how much of it was sent, so nothing may follow.
            self.giving = False
            self._fail(error)
            if not isinstance(error, MemoryError):
                raise
        finally:
            self.giving = False
        return 0

    cdef int _fail(self, error) except -1:
        self.backlog_start = self.backlog_end = 0
        self.report_end(StreamEnd.FAILED, error)
        return self.drop()

    cdef bint _has_failed(self) except -1:
        """Whether the transport ends by itself, which connection_lost() tells some turns later. asyncio's logs a
        warning of each write from then on."""
        if self.lost or (self.transport is not None and not self.closing and self.transport.is_closing()):
            self.write_failed = True
        return self.write_failed

    cdef int out_of_memory(self) except -1:
        return self._fail(MemoryError("no memory for what was to be sent"))

    cdef int flush(self) except -1:
        cdef bytes joined
        if self.backlog_end == 0 or self.transport is None or self.giving or self._has_failed():
            return 0
        joined = PyBytes_FromStringAndSize(
            <char*> self.backlog + self.backlog_start, self.backlog_end - self.backlog_start
        )
        self.backlog_start = self.backlog_end = 0
        self._give(joined)
        if (self.writing_paused or self.drain_wanted) and not self.transport_paused:
            self.loop.call_soon(self._resume_turn)
        return 0

    cdef int check_high_watermark(self) except -1:
        if not (self.writing_paused or self.closing) and self.backlog_size() > self.high_watermark:
            self.note_writing_paused(True)
            self.handler.stream_pause_writing()
        return 0

    cdef int note_writing_paused(self, bint paused) except -1:
        self.writing_paused = paused
        self._set_transport_limits()
        return self._look_later()

    cdef Py_ssize_t backlog_size(self) noexcept:
        cdef Py_ssize_t size = self.backlog_end - self.backlog_start
        if self.transport is not None and not self.lost:
            try:
                size += self.transport.get_write_buffer_size()
            except Exception:
                pass        # an ended transport of a foreign loop; it holds nothing
        return size

    # --- end

    cdef int end(self) except -1:
        if self.closing:
            return 0
        self.corks = 0
        self.flush()
        self.closing = True
        self.pending = None
        self.pending_start = self.pending_end = 0
        if self.giving:
            self.loop.call_soon(self._end_turn)
            return 0
        return self._end_transport()

    def _end_turn(self):
        if not self.closed:
            self.flush()
            self._end_transport()

    cdef int _end_transport(self) except -1:
        if self.lost or self.transport is None:
            self.finish()
            return 0
        self._resume_transport()    # to see the peer's FIN
        if self.end_seen or not self.transport.can_write_eof():
            self.transport.close()
            return 0
        try:
            self.transport.write_eof()
        except OSError:
            self.finish()       # the peer has reset the connection, and the transport has not seen it yet
        return 0

    cdef int report_end(self, int end, object error) except -1:
        if self.closing and not self.closed:
            # Our FIN is sent or queued and the peer's has come: the transport sends what it holds and ends.
            self.end_seen = True
            self.transport.close()
            return 0
        return ByteStream.report_end(self, end, error)

    cdef int finish(self) except -1:
        if not self.closed:
            self.backlog_lost += self.backlog_size() - (self.backlog_end - self.backlog_start)
            if self.transport is not None and not self.lost:
                if self.giving:
                    self.loop.call_soon(self.transport.abort)
                else:
                    self.transport.abort()
            ByteStream.finish(self)
        return 0

    def set_write_buffer_limits(self, high=None, low=None):
        ByteStream.set_write_buffer_limits(self, high, low)
        self._set_transport_limits()

    cdef int _set_transport_limits(self) except -1:
        """Have the transport tell when its buffer shrinks to what is waited for. It tells of its low watermark only if
        it was above the high one, so they are the same; how much waits in all is compared with ours here."""
        cdef Py_ssize_t mark = 0 if self.drain_wanted and not self.writing_paused else self.low_watermark
        if mark != self.mark and self.transport is not None and not self.lost:
            self.mark = mark
            self.transport.set_write_buffer_limits(high=mark, low=mark)
        return 0

    cdef int want_drain(self) except -1:
        self.drain_wanted = True
        self._set_transport_limits()
        return self._look_later()   # what it holds may have been written before its mark was 0

    def has_unread(self):
        if self.lost or self.end_seen or self.transport is None or not self.transport.is_reading():
            return False
        sock = self.transport.get_extra_info("socket")
        try:
            return bool(sock is not None and _selects_readable(sock.fileno()))
        except (OSError, ValueError):
            return False        # it is closed

    def get_extra_info(self, name, default=None):
        if self.noted is not None and name in self.noted:
            return self.noted[name]
        if name == "peername" and self.peername is not None:
            return self.peername
        if name == "sockname" and self.sockname is not None:
            return self.sockname
        return default if self.transport is None else self.transport.get_extra_info(name, default)
