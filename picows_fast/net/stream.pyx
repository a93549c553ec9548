# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""What every ByteStream has in common: receive buffers, the backlog, watermarks, the one end.

The implementations (``tcp``, ``tls_fd``, ``tls_bio``, ``loop_transport``) say how bytes are got and given.
"""

import socket
import sys
import time
import weakref

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.string cimport memcpy, memmove

cdef extern from "Python.h":
    # Not of an object: Cython holds a reference of its own to an attribute that it passes.
    Py_ssize_t Py_REFCNT(PyObject *)


cdef enum:
    # One read takes this much at most, so a flooding peer gets its turn and no more; behind a larger unit, the size of
    # that one.
    READ_SPACE_SIZE = 256 * 1024
    # A read into less room than this is not worth its system call: a fresh buffer is made instead.
    READ_SPACE_MINIMUM = 16 * 1024
    # An unfinished unit up to this size is copied in front of the next read; above, it gets a buffer of its own
    # that grows with what really arrives, so that each byte is moved a bounded number of times.
    SMALL_PENDING = 4 * 1024
    # The memory of a large unit is kept for the next one, until this many reads in a row did without: the C library
    # would give it back to the system, which takes a page fault for every 4 KiB to have it again.
    LARGE_KEPT_FOR = 64
    # An empty backlog keeps this much memory for the next time.
    BACKLOG_KEPT = 16 * 1024

    # Where Linux's struct tcp_info has the milliseconds since data came: 8 bytes, then the twelfth of 4 bytes.
    TCP_LAST_DATA_RECV = 8 + 11 * 4

# Has another meaning on other systems.
cdef object _TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None


# --- Receive buffers -----------------------------------------------------------------------------

cdef class ReceiveBuffer:
    """Memory that bytes are received into. Has nothing for Python code."""

    def __dealloc__(self):
        PyMem_Free(self.data)


cdef ReceiveBuffer new_receive_buffer(Py_ssize_t capacity):
    cdef ReceiveBuffer buffer = ReceiveBuffer.__new__(ReceiveBuffer)
    buffer.data = <uint8_t*> PyMem_Malloc(<size_t> capacity)
    if buffer.data == NULL:
        raise MemoryError()
    buffer.capacity = capacity
    return buffer


cdef class ReadSpace:
    """Where the streams of one event loop read into. Has nothing for Python code."""

    def __cinit__(self, Py_ssize_t capacity=READ_SPACE_SIZE):
        self.buffer = new_receive_buffer(capacity)

    cdef int settle(self, Py_ssize_t filled) noexcept:
        """Find where the next read may go: over these bytes, unless somebody still looks at them."""
        if Py_REFCNT(<PyObject*> self.buffer) == 1:
            self.base = 0
        else:
            # Going on behind what is held fills a buffer before it is given away: small views kept from many
            # reads hold one buffer together, not one each.
            self.base = (filled + 63) & ~63
        return 0

    cdef ReceiveBuffer take_large(self, Py_ssize_t capacity):
        """Memory for a large unit."""
        cdef ReceiveBuffer buffer = self.large
        if buffer is None or buffer.capacity < capacity:
            return new_receive_buffer(capacity)
        self.large = None
        return buffer

    cdef int give_large(self, ReceiveBuffer buffer) except -1:
        """Keep the memory of a large unit for the next, unless somebody still looks at it. The caller has the only
        other reference."""
        if Py_REFCNT(<PyObject*> buffer) == 1 and (self.large is None or self.large.capacity < buffer.capacity):
            self.large = buffer
            self.reads_without = 0
        return 0

    cdef int read_without_large(self) except -1:
        """A read had no use for the memory of a large unit."""
        self.reads_without += 1
        if self.reads_without > LARGE_KEPT_FOR:
            self.large = None
        return 0


cdef object _read_spaces = weakref.WeakKeyDictionary()


cdef ReadSpace read_space(object loop, int depth):
    """The space of streams of this loop that lie on `depth` others: those of a stack read inside each other."""
    spaces = _read_spaces.get(loop)
    if spaces is None:
        spaces = _read_spaces[loop] = {}
    space = spaces.get(depth)
    if space is None:
        space = spaces[depth] = ReadSpace()
    return space


# --- Streams -------------------------------------------------------------------------------------

cdef class StreamHandler:
    """Who is told of a stream's events, by C methods. Has nothing for Python code."""

    cdef Py_ssize_t stream_data(self, uint8_t *data, Py_ssize_t size, object owner) except -1:
        return size

    cdef Py_ssize_t stream_wanted(self) noexcept:
        return 0

    cdef int stream_end(self, int end, object error) except -1:
        return 0

    cdef int stream_closed(self) except -1:
        return 0

    cdef int stream_pause_writing(self) except -1:
        return 0

    cdef int stream_resume_writing(self) except -1:
        return 0

    cdef int stream_drained(self) except -1:
        return 0

    cdef int stream_broken(self, error) except -1:
        return 0

    cdef bint stream_asked(self, int what) except -1:
        return False

    cdef bint stream_write(self, const uint8_t *data, Py_ssize_t size) except -1:
        return False


# The handler of a stream that has none (yet, or any more), and who keeps memory for one without a loop, so that C
# calls never meet None.
cdef StreamHandler _nobody = StreamHandler.__new__(StreamHandler)
cdef ReadSpace _nowhere = ReadSpace(0)


cdef class ByteStream(StreamHandler):
    """Bytes in order, both ways. Has the surface of :class:`asyncio.Transport`.

    ``close``, ``abort``, ``pause_reading``, ``resume_reading`` and ``write`` do what the connection above does when it
    is asked for the same, so that its state, its deadlines and its counters agree.

    Read-only attributes: ``loop``; ``reading_paused``, ``writing_paused``, as bool; ``closing``, whether the stream is
    being ended; ``closed``, whether everything is released.
    """

    # This one and those of the implementations leave nothing to an __init__, which Python code can skip or call twice.
    def __cinit__(self, *args, **kwargs):
        self.handler = _nobody
        self.keeper = _nowhere
        self.reads_at_once = True
        self.arrived = self.arrived_by_hardware = -1

    def __dealloc__(self):
        PyMem_Free(self.backlog)

    # --- in

    cpdef start(self):
        """Begin to receive."""
        raise NotImplementedError

    def push(self, bytes data):
        """Take bytes that came elsewhere, once, before start(). They come first."""
        if data:
            self._save(<const uint8_t*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def is_taken(self):
        """Return True if the stream has somebody that it tells of its bytes, or is closed."""
        return self.closing or self.handler is not _nobody

    cdef Py_ssize_t reserve(self, uint8_t **where) except -1:
        """Where the next bytes go, and how many may. received() must follow in the same call from the loop."""
        cdef Py_ssize_t held = self.pending_end - self.pending_start
        cdef Py_ssize_t wanted, capacity
        cdef ReceiveBuffer buffer
        cdef ReadSpace space = self.space
        if held > SMALL_PENDING:
            wanted = self.handler.stream_wanted()
            capacity = self.pending.capacity - self.pending_start
            if capacity == held:
                try:
                    self._grow()
                except MemoryError as error:
                    self.broken(error)
                    raise
                capacity = self.pending.capacity
            where[0] = self.pending.data + self.pending_end
            # Not a byte more than the unit has: what follows it belongs into the shared space.
            return (min(wanted, capacity) if wanted > held else capacity) - held
        buffer = self.keeper.large
        self.reads_large = held == 0 and self.expected and buffer is not None and buffer.capacity >= self.expected
        if self.reads_large:
            where[0] = buffer.data
            return self.expected
        if space.busy or space.buffer.capacity - space.base < READ_SPACE_MINIMUM:
            space = self._fresh_space()
        buffer = space.buffer
        if held:
            memcpy(buffer.data + space.base, self.pending.data + self.pending_start, <size_t> held)
        where[0] = buffer.data + space.base + held
        return buffer.capacity - space.base - held

    cdef ReadSpace _fresh_space(self):
        """The space has no room, or another stream's handler is looking at it."""
        cdef ReadSpace space = self.space
        try:
            if space.busy:
                space = self.space = ReadSpace()
            else:
                space.buffer = new_receive_buffer(space.buffer.capacity)
                space.base = 0
        except MemoryError as error:
            self.broken(error)
            raise
        return space

    cdef int received(self, Py_ssize_t size) except -1:
        """`size` bytes are where reserve() said: show them to the handler, keep what it does not use."""
        cdef Py_ssize_t held = self.pending_end - self.pending_start
        cdef Py_ssize_t used
        cdef uint8_t *data
        cdef ReadSpace space = self.space
        # A callback may bring the connection to its end, which would free what runs it.
        cdef StreamHandler handler = self.handler
        if self.reads_large:
            self.reads_large = False
            self.pending = self.keeper.take_large(size)
            self.pending_start = 0
            self.pending_end = size
            return self.deliver_pending()
        if held > SMALL_PENDING:
            self.pending_end += size
            return self.deliver_pending()
        self.pending = None
        self.pending_start = self.pending_end = 0
        data = space.buffer.data + space.base
        size += held
        space.busy = self.delivering = True
        try:
            used = handler.stream_data(data, size, space.buffer)
            if used < size and not self.closing:
                self._save(data + used, size - used)
        except BaseException as error:
            self.broken(error)
            raise
        finally:
            space.busy = self.delivering = False
            space.settle(space.base + size)
            if self.reentered:
                self._delivery_over()
        if self.keeper.large is not None:
            self.keeper.read_without_large()
        return 0

    cdef int receive_copy(self, bytes data) except -1:
        """Show the handler bytes that were received elsewhere."""
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t piece
        cdef uint8_t *where
        while done < PyBytes_GET_SIZE(data) and not (self.closing or self.space is None):
            piece = min(self.reserve(&where), PyBytes_GET_SIZE(data) - done)
            memcpy(where, PyBytes_AS_STRING(data) + done, <size_t> piece)
            done += piece
            self.received(piece)
        return 0

    cdef int _delivery_over(self) except -1:
        """What a loop inside the callback wanted to read can be read now."""
        self.reentered = False
        if not self.closed:
            self.loop.call_soon(self._deliver_turn)
        return 0

    cdef int broken(self, error) except -1:
        """Received bytes are lost: what follows them would be taken for something else."""
        try:
            self.handler.stream_broken(error)
        finally:
            if not self.closing:
                self.drop()
        return 0

    cdef int deliver_pending(self) except -1:
        """Show the handler what is kept."""
        cdef ReceiveBuffer buffer = self.pending
        cdef Py_ssize_t size = self.pending_end - self.pending_start
        cdef Py_ssize_t used
        cdef StreamHandler handler = self.handler
        if buffer is None:
            return 0
        self.delivering = True
        try:
            used = handler.stream_data(buffer.data + self.pending_start, size, buffer)
            self.pending_start += used
            if used == size or self.closing:
                self.pending = None
                self.pending_start = self.pending_end = 0
                self.expected = size if size > READ_SPACE_SIZE and self.reads_at_once else 0
            elif size - used <= SMALL_PENDING < buffer.capacity:
                self._save(buffer.data + self.pending_start, size - used)
            else:
                return 0
        except BaseException as error:
            self.broken(error)
            raise
        finally:
            self.delivering = False
            if self.reentered:
                self._delivery_over()
        if buffer.capacity > SMALL_PENDING:
            self.keeper.give_large(buffer)
        return 0

    cdef int _save(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Keep unused bytes in a buffer of our own, with room to grow if the unit is a large one."""
        cdef ReceiveBuffer buffer
        if size > SMALL_PENDING:
            buffer = self.keeper.take_large(self._large_capacity(size))
        else:
            buffer = new_receive_buffer(size)
        memcpy(buffer.data, data, <size_t> size)
        self.pending = buffer
        self.pending_start = 0
        self.pending_end = size
        return 0

    cdef int _grow(self) except -1:
        """The buffer of an unfinished large unit is full."""
        cdef ReceiveBuffer buffer = self.pending
        cdef Py_ssize_t size = self.pending_end - self.pending_start
        cdef Py_ssize_t capacity
        cdef void *grown
        # Two references are ours. Where somebody else has one, or other units are in front, what is held is copied.
        if self.pending_start or Py_REFCNT(<PyObject*> buffer) > 2:
            return self._save(buffer.data + self.pending_start, size)
        capacity = self._large_capacity(size)
        grown = PyMem_Realloc(buffer.data, <size_t> capacity)
        if grown == NULL:
            raise MemoryError()
        buffer.data = <uint8_t*> grown
        buffer.capacity = capacity
        return 0

    cdef Py_ssize_t _large_capacity(self, Py_ssize_t size) except -1:
        """Room for the whole of an unfinished unit of which this much has come, or for the next part of it."""
        # Four times what has come, not what a header claims: memory follows what the peer really sends.
        cdef Py_ssize_t capacity = max(4 * size, self.own_buffer_size)
        cdef Py_ssize_t wanted = self.handler.stream_wanted()
        return wanted if size < wanted < capacity else capacity

    def _deliver_turn(self):
        # What is kept comes before anything that a read finds, the end above all. On some loops a reader that is
        # added now is called before this is.
        if self.delivering:
            self.reentered = True
            return
        if not self.closing and not self.reading_paused:
            self.deliver_pending()
        if not self.closing and not self.reading_paused:
            self.read_on()

    cdef int read_on(self) except -1:
        raise NotImplementedError

    cdef int descriptor_ready(self, bint readable, bint writable) except -1:
        return 0

    cdef int pause(self) except -1:
        """Stop receiving. What the kernel has buffered stays there, and the peer is slowed down by TCP."""
        raise NotImplementedError

    cdef int resume(self) except -1:
        """Receive again."""
        raise NotImplementedError

    cdef int report_end(self, int end, object error) except -1:
        if self.end_seen or self.closed:
            return 0
        self.end_seen = True
        if self.closing:
            # Our side has been waiting for this, or still has something to send, or no longer can.
            if self.backlog_size() == 0 or end in (StreamEnd.RESET, StreamEnd.FAILED, StreamEnd.TLS_FAILED):
                self.finish()
            return 0
        return self.handler.stream_end(end, error)

    # --- out

    cdef int writev(self, const uint8_t *head, Py_ssize_t head_size,
                    const uint8_t *body, Py_ssize_t body_size) except -1:
        raise NotImplementedError

    cdef int flush(self) except -1:
        """Send what the backlog holds, as far as it goes."""
        raise NotImplementedError

    cdef Py_ssize_t backlog_size(self) noexcept:
        return self.backlog_end - self.backlog_start

    cdef int begin_unit(self) except -1:
        self.in_unit = True
        return 0

    cdef int end_unit(self) except -1:
        self.in_unit = False
        if self.backlog_end and self.corks == 0:
            if self.coalescing:
                self.schedule_flush()
            else:
                self.flush()
        return 0

    cdef int append_backlog(self, const uint8_t *head, Py_ssize_t head_size,
                            const uint8_t *body, Py_ssize_t body_size) except -1:
        if self._make_backlog_room(head_size + body_size) < 0:
            return self.out_of_memory()
        if head_size:
            memcpy(self.backlog + self.backlog_end, head, <size_t> head_size)
            self.backlog_end += head_size
        if body_size:
            memcpy(self.backlog + self.backlog_end, body, <size_t> body_size)
            self.backlog_end += body_size
        return 0

    cdef int _make_backlog_room(self, Py_ssize_t size) noexcept:
        """Returns -1 if there is no memory."""
        cdef Py_ssize_t held = self.backlog_end - self.backlog_start
        cdef Py_ssize_t capacity
        cdef void *grown
        if self.backlog_start and self.backlog_start >= held and self.backlog_capacity - self.backlog_end < size:
            memmove(self.backlog, self.backlog + self.backlog_start, <size_t> held)
            self.backlog_start = 0
            self.backlog_end = held
        if self.backlog_capacity - self.backlog_end < size:
            capacity = max(2 * self.backlog_capacity, self.backlog_end + size)
            grown = PyMem_Realloc(self.backlog, <size_t> capacity)
            if grown == NULL:
                return -1
            self.backlog = <uint8_t*> grown
            self.backlog_capacity = capacity
        return 0

    cdef int out_of_memory(self) except -1:
        raise NotImplementedError

    cdef int backlog_sent(self, Py_ssize_t size) except -1:
        self.backlog_start += size
        if self.backlog_start == self.backlog_end:
            self.backlog_start = self.backlog_end = 0
            if self.backlog_capacity > BACKLOG_KEPT:
                PyMem_Free(self.backlog)
                self.backlog = NULL
                self.backlog_capacity = 0
        if self.writing_paused and self.backlog_size() <= self.low_watermark and not self.closed:
            self.writing_paused = False
            self.handler.stream_resume_writing()
        if self.drain_wanted and self.backlog_size() == 0 and not (self.closed or self.write_failed):
            self.drain_wanted = False
            self.handler.stream_drained()
        return 0

    cdef int check_high_watermark(self) except -1:
        if not self.writing_paused and self.backlog_size() > self.high_watermark:
            self.writing_paused = True
            self.handler.stream_pause_writing()
        return 0

    cdef int note_writing_paused(self, bint paused) except -1:
        self.writing_paused = paused
        return 0

    cdef int want_drain(self) except -1:
        self.drain_wanted = True
        return 0

    cdef bint take_back(self, Py_ssize_t size) noexcept:
        return False

    cdef int cork(self) except -1:
        """Hold back what is written until the matching uncork(), so that it leaves together."""
        self.corks += 1
        return 0

    cdef int uncork(self) except -1:
        if self.corks:
            self.corks -= 1
            if self.corks == 0 and self.backlog_size() and not self.closed:
                self.flush()
        return 0

    cdef int schedule_flush(self) except -1:
        if not self.flush_scheduled:
            self.flush_scheduled = True
            try:
                self.loop.call_soon(self._flush_turn)
            except MemoryError:
                self._flush_turn()      # now, rather than never
        return 0

    def _flush_turn(self):
        self.flush_scheduled = False
        if not self.closed and self.corks == 0:
            self.flush()

    # --- end

    cdef int end(self) except -1:
        """Send what was written, then end the stream in order."""
        raise NotImplementedError

    cdef int drop(self) except -1:
        """End the stream at once; what was not sent is lost."""
        if not self.closed:
            self.closing = True
            self.finish()
        return 0

    cdef int finish(self) except -1:
        """Free what is held and tell the handler. Implementations release what they own first."""
        self.closing = self.closed = True
        self.keeper.large = None    # may have been for this stream only
        self.pending = None
        self.pending_start = self.pending_end = 0
        self.backlog_lost += self.backlog_end - self.backlog_start
        self.backlog_start = self.backlog_end = self.backlog_capacity = 0
        PyMem_Free(self.backlog)
        self.backlog = NULL
        try:
            if not self.loop.is_closed():
                self.loop.call_soon(self._tell_closed)
                return 0
        except BaseException:
            # No memory, or a signal's: the handler is told all the same. A second call does nothing.
            self._tell_closed()
            raise
        self._tell_closed()
        return 0

    def _tell_closed(self):
        cdef StreamHandler handler = self.handler
        self.handler = _nobody
        handler.stream_closed()

    # --- the surface of asyncio.Transport: what changes something is asked of the layer above, if there is one

    def close(self):
        """End the connection in order, like ``WSTransport.disconnect()``."""
        if not self.handler.stream_asked(StreamRequest.CLOSE):
            self.end()

    def abort(self):
        """End the connection at once, like ``WSTransport.disconnect(graceful=False)``: what was not sent is lost."""
        if not self.handler.stream_asked(StreamRequest.ABORT):
            self.drop()

    def pause_reading(self):
        """Stop receiving, like ``WSTransport.pause_reading()``."""
        if not self.handler.stream_asked(StreamRequest.PAUSE):
            self.pause()

    def resume_reading(self):
        """Receive again, like ``WSTransport.resume_reading()``."""
        if not self.handler.stream_asked(StreamRequest.RESUME):
            self.resume()

    def write(self, data):
        """Send raw bytes, behind everything that was sent before. They are dropped once CLOSE was sent.

        They bypass the framing: anything but whole frames (RFC 6455 5.2) breaks the connection, and is not counted.

        :param data: bytes-like; it may be reused at once
        :raises TypeError: data is not bytes-like
        :raises RuntimeError: called from another thread
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not self.handler.stream_write(<const uint8_t*> view.buf, view.len):
                self.writev(<const uint8_t*> view.buf, view.len, NULL, 0)
        finally:
            PyBuffer_Release(&view)

    def writelines(self, list_of_data):
        """Send several pieces of raw bytes as :meth:`write` does."""
        self.write(b"".join(list_of_data))

    def note_extra_info(self, dict extra):
        """Have get_extra_info() say this, whatever the system does."""
        self.noted = extra

    def get_extra_info(self, name, default=None):
        """Return what is known of the connection: ``socket``, ``peername``, ``sockname``, ``ssl_object``, ..."""
        return default

    def last_received(self):
        """Return when the operating system took in data of the peer's last, seconds of the monotonic clock, to some
        milliseconds; None if that cannot be told: not TCP, not Linux, or closed but for a descriptor of our own."""
        sock = self.get_extra_info("socket")
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, TCP_LAST_DATA_RECV + 4)
        except (AttributeError, OSError, ValueError):
            return None
        if len(info) < TCP_LAST_DATA_RECV + 4:
            return None
        return time.monotonic() - int.from_bytes(info[TCP_LAST_DATA_RECV:], sys.byteorder) / 1000

    def has_unread(self):
        """Return True if the operating system has bytes, or an end, that will be read in the next turns of the loop.
        False where that cannot be told."""
        return False

    def read_now(self):
        """Read once, without waiting for the loop to say that there is something. Does nothing where that cannot be
        done."""

    def is_closing(self):
        """Return True once the stream is closing or closed."""
        return self.closing

    def is_reading(self):
        """Return True while bytes are being received."""
        return not (self.reading_paused or self.closing or self.end_seen)

    def get_write_buffer_size(self):
        """Return the bytes that were written and not sent yet."""
        return self.backlog_size()

    def get_write_buffer_limits(self):
        """Return (low, high), the watermarks in bytes."""
        return self.low_watermark, self.high_watermark

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the watermarks in bytes.

        :raises ValueError: not 0 <= low <= high
        """
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"the watermarks must satisfy 0 <= low <= high, got low={low}, high={high}")
        self.high_watermark = high
        self.low_watermark = low
