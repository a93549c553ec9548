# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""A ByteStream that speaks TLS over another ByteStream.

Everything about TLS is decided by the caller's :class:`ssl.SSLContext`: verification, ALPN, SNI, client
certificates, sessions. Records pass through the ``ssl`` module's memory BIOs, so the stream below needs no
descriptor: TCP, a foreign transport, or another TLS stream (a proxy reached over TLS).

Owns the order of events of one TLS connection, among them what a read or write that needs the other direction does.

Each call of the ``ssl`` module can run anybody's code: a subclass of ``ssl.SSLObject``, a signal handler, a finalizer.
So such a call is given objects that own their memory, and while it runs, nothing else calls the same SSL object: what
is asked for meanwhile is done afterwards.
"""

import io
import ssl

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from .stream cimport ByteStream, StreamEnd, read_space

from .overdue import Overdue

cdef enum:
    # A record carries this much plaintext at most (RFC 8446 5.1); a write of exactly this makes one record.
    RECORD_SIZE = 16 * 1024
    # A memory BIO never gives back what it once needed, so bytes pass through it in pieces of about this size.
    PIECE_SIZE = 64 * 1024
    # A peer may ask for an answer with each KeyUpdate (RFC 8446 4.6.3). This much of them may wait for a peer that does
    # not read.
    MAX_UNREAD_ANSWERS = 64 * 1024

cdef object WantRead = ssl.SSLWantReadError
cdef object WantWrite = ssl.SSLWantWriteError
cdef object ZeroReturn = ssl.SSLZeroReturnError
cdef object TlsError = ssl.SSLError
cdef object CertificateError = ssl.CertificateError

#: Methods of the SSL object that would take bytes from the stream, or put some between its own.
USED_BY_THE_STREAM = frozenset({"do_handshake", "read", "unwrap", "verify_client_post_handshake", "write"})

#: what get_extra_info() tells of TLS, as asyncio's transports do; given a TlsView
TLS_INFO = {
    "ssl_object": lambda tls: tls,
    "sslcontext": lambda tls: tls.context,
    "peercert": lambda tls: tls.getpeercert(),
    "cipher": lambda tls: tls.cipher(),
    "compression": lambda tls: tls.compression(),
}


cdef class TlsView:
    """What ``get_extra_info("ssl_object")`` gives: a connection's :class:`ssl.SSLObject`, to be asked, not used.

    Everything can be asked that the SSL object tells, also after the end. What would read, write or change something
    raises :class:`io.UnsupportedOperation`, which is an OSError, or AttributeError.
    """

    cdef object tls

    def __cinit__(self, tls):
        self.tls = tls

    @property
    def __class__(self):
        return type(self.tls)

    def __getattr__(self, name):
        if name in USED_BY_THE_STREAM:
            raise io.UnsupportedOperation(
                f"ssl_object.{name}: the connection reads and writes by itself; use transport.send() and disconnect()"
            )
        return getattr(self.tls, name)

    def __setattr__(self, name, value):
        raise AttributeError(f"ssl_object.{name} cannot be set: the SSL object belongs to the connection")

    def __dir__(self):
        return [name for name in dir(self.tls) if name not in USED_BY_THE_STREAM]

    def __repr__(self):
        return f"<TlsView of {self.tls!r}>"


cdef class TlsStream(ByteStream):
    """TLS over `lower`, which it owns from now on.

    :param context: :class:`ssl.SSLContext`
    :param server_side: bool
    :param server_hostname: str for SNI and verification, None for a server
    :param session: :class:`ssl.SSLSession` to resume, or None
    :param handshake_timeout: seconds, or None
    """

    def __cinit__(self, ByteStream lower not None, context, *, bint server_side=False, server_hostname=None,
                  session=None, handshake_timeout=None):
        self.loop = lower.loop
        self.lower = lower
        self.depth = lower.depth + 1
        self.space = read_space(lower.loop, self.depth)
        self.keeper = read_space(lower.loop, 0)
        self.handshake_timeout = handshake_timeout
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname, session=session
        )
        self.view = TlsView(self.tls)
        self.handshaking = True
        self.set_write_buffer_limits()
        lower.handler = self

    cpdef start(self):
        """Begin the handshake. What is written before its end is sent after it."""
        self.lower.start()
        if self.handshake_timeout is not None:
            self.timer = self.loop.call_later(self.handshake_timeout, self._on_handshake_timeout)
        self._advance()

    # --- in: from the stream below

    cdef Py_ssize_t stream_data(self, uint8_t *data, Py_ssize_t size, object owner) except -1:
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t piece
        self.arrived = self.lower.arrived
        self.arrived_by_hardware = self.lower.arrived_by_hardware
        while not (self.shut or self.failed or self.closed):
            piece = min(size - used, <Py_ssize_t> PIECE_SIZE)
            self.incoming.write(PyBytes_FromStringAndSize(<char*> data + used, piece))
            used += piece
            self._advance()
            if used == size:
                break
            if self.reading_paused and not self.closing:
                return used     # the stream below keeps the rest
        return size

    cdef int stream_end(self, int end, object error) except -1:
        if self.closed or self.failed:
            return 0
        if self.calling:
            self.lower_end = (end, error)
            self.again = True
            return 0
        if self.closing and not self.shut:
            return self.finish()        # what TLS has not taken yet, it would take only after having read more
        if end == StreamEnd.FIN:
            if self.close_notify_seen:
                end = StreamEnd.TLS_CLOSE_NOTIFY
            else:
                end = StreamEnd.TLS_TRUNCATED
                error = ssl.SSLEOFError(
                    ssl.SSL_ERROR_EOF,
                    "the connection ended" if self.handshaking
                    else "the connection ended without a TLS close_notify alert",
                )
        self.report_end(end, error)
        return 0

    cdef int stream_closed(self) except -1:
        if not self.closed:
            self.finish()
        return 0

    cdef int stream_resume_writing(self) except -1:
        return self.backlog_sent(0)

    cdef int stream_drained(self) except -1:
        return self.backlog_sent(0)

    cdef int _advance(self) except -1:
        """Bytes came from below, or something waits to be written: do whatever TLS allows now."""
        cdef bint waiting
        if self.calling:
            self.again = True
            return 0
        if self.handshaking:
            self._shake_hands()
        if self.handshaking or self.failed or self.shut or self.closed:
            return 0
        waiting = self._waits()
        self._read()
        # A write that waits for a renegotiation would take data that comes in the midst of it for a violation, so
        # that has to be read before.
        if waiting and self.corks == 0:
            self.flush()
        return 0

    cdef int _call_over(self) except -1:
        """The SSL object may be called again."""
        self.calling = False
        if self.again:
            self.again = False
            if not self.closed:
                self.loop.call_soon(self._again_turn)
        return 0

    def _again_turn(self):
        if self.closed:
            return
        self._advance()
        if self.corks == 0:
            self.flush()
        if self.lower_end is not None and not self.calling:
            end, error = self.lower_end
            self.lower_end = None
            self.stream_end(end, error)

    cdef int _broken_off(self, error) except -1:
        """A call of the SSL object ended in a way that does not tell what it has done, so nothing can follow."""
        if isinstance(error, Exception):
            return self._fail(error)
        problem = ssl.SSLError(f"a call of the ssl module was broken off by {type(error).__name__}")
        problem.__cause__ = error
        self._fail(problem)
        raise error

    cdef int _shake_hands(self) except -1:
        """Go on with the handshake."""
        cdef bint done = False
        problem = None
        if self.failed or self.shut or self.closed:
            return 0
        self.calling = True
        try:
            self.tls.do_handshake()
            done = True
        except (WantRead, WantWrite):
            pass
        except Exception as error:
            problem = error
        finally:
            try:
                self._send_records()
            finally:
                self._call_over()
        if problem is not None:
            return self._fail(problem)
        if done:
            self.handshaking = False
            self._handshake_over()
            if self.backlog_end and not self.corks:
                self.flush()
        return 0

    cdef int _handshake_over(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    def _on_handshake_timeout(self):
        self.timer = Overdue(self.loop, self, self._on_handshake_overdue)
        self.read_now()

    def _on_handshake_overdue(self):
        self.timer = None
        if self.handshaking:
            self._fail(TimeoutError("the TLS handshake was not finished in time"))

    cdef int _read(self) except -1:
        cdef bytes data
        if self.delivering and not self.closing:
            self.reentered = True
            return 0
        while self._has_records() and not (
            (self.reading_paused and not self.closing) or self.close_notify_seen or self.failed or self.shut
            or self.closed or self.read_error is not None
        ):
            try:
                data = self._read_record()
                if data is not None:
                    self.receive_copy(data)
            except BaseException as error:
                self.broken(error)
                raise
            if data is None:
                break
        if self.failed or self.shut or self.closed:
            return 0
        if self.read_error is not None and not self.reading_paused:
            return self._fail(self.read_error)
        self._answer()
        if self.close_notify_seen and not (self.end_seen or self.failed or self.closing or self.reading_paused):
            self.report_end(StreamEnd.TLS_CLOSE_NOTIFY, None)
        return 0

    cdef bint _has_records(self) except -1:
        # To read without need would cost an exception.
        return self.incoming.pending or self.tls.pending()

    cdef bytes _read_record(self):
        """The plaintext of the next record; None if there is no whole one, or no more."""
        data = problem = None
        self.calling = True
        try:
            data = self.tls.read(RECORD_SIZE)
            if not isinstance(data, bytes):
                raise TypeError(f"{type(self.tls).__name__}.read() must return bytes, got {type(data).__name__}")
        except (WantRead, WantWrite):
            pass
        except ZeroReturn:
            self.close_notify_seen = True
        except TlsError as error:
            # What came before the bad record is good, and given out first.
            self.read_error = error
        except BaseException as error:
            data = None
            problem = error
        finally:
            self._call_over()
        if problem is not None:
            self._broken_off(problem)
        if data == b"":
            self.close_notify_seen = True
            return None
        return data

    cdef int _answer(self) except -1:
        """Reading may have had something to say (KeyUpdate, an alert), and may have been what a write waited for."""
        if self.calling or not self.outgoing.pending:
            return 0
        if self.lower.backlog_size() == 0:
            self.unread_answers = 0
        self.unread_answers += self.outgoing.pending
        self.calling = True
        try:
            self._send_records()
        finally:
            self._call_over()
        # One read may make many. A peer is to blame if they wait for it.
        if self.unread_answers > MAX_UNREAD_ANSWERS and self.lower.backlog_size():
            return self._fail(ssl.SSLError("the peer asks for key updates and does not read them"))
        return 0

    cdef int _fail(self, error) except -1:
        if self.failed or self.closed:
            return 0
        self.failed = self.write_failed = True
        self._forget_message()
        try:
            if not self.calling:
                self._send_records()    # the alert that tells the peer why
        finally:
            if self.closing:
                self.lower.end()      # the peer's FIN is awaited all the same
            else:
                self.report_end(StreamEnd.TLS_FAILED, error)
        return 0

    cdef int pause(self) except -1:
        if not self.closing:
            self.reading_paused = True
            self.lower.pause()
        return 0

    cdef int resume(self) except -1:
        if self.reading_paused and not self.closing:
            self.reading_paused = False
            self.loop.call_soon(self._deliver_turn)
        return 0

    cdef int read_on(self) except -1:
        # Records that came before the pause produce no event below, and come before what the stream below has next.
        self._advance()
        if not self.closing and not self.reading_paused:
            self.lower.resume()
        return 0

    cdef int stream_broken(self, error) except -1:
        return self.handler.stream_broken(error)

    # --- out

    cdef int writev(self, const uint8_t *head, Py_ssize_t head_size,
                    const uint8_t *body, Py_ssize_t body_size) except -1:
        cdef bytes message
        if self.closing or self.failed:
            return 0
        if (self.calling or self.handshaking or self.message is not None or self.backlog_end or self.corks
                or self.coalescing or self.in_unit):
            self.append_backlog(head, head_size, body, body_size)
            if self.calling:
                self.again = True
            elif not (self.corks or self.handshaking or self.in_unit or self.failed):
                self.schedule_flush()
            return 0
        # One object, so that head and body share the first record: the peer gets both with one read.
        try:
            message = PyBytes_FromStringAndSize(NULL, head_size + body_size)
        except MemoryError:
            return self.out_of_memory()
        memcpy(PyBytes_AS_STRING(message), head, <size_t> head_size)
        if body_size:
            memcpy(PyBytes_AS_STRING(message) + head_size, body, <size_t> body_size)
        self.message = message
        self.message_done = 0
        return self._encrypt()

    cdef bint _waits(self) noexcept:
        """Whether something was written that TLS has not taken."""
        return self.message is not None or self.backlog_end != 0

    cdef int _forget_message(self) except -1:
        if self.message is not None:
            self.backlog_lost += PyBytes_GET_SIZE(self.message) - self.message_done
            self.message = None
        return 0

    cdef bint _next_message(self) except -1:
        """See to it that `message` is what is to be encrypted next. Returns False if there is nothing."""
        cdef Py_ssize_t size = self.backlog_end - self.backlog_start
        if self.message is None and size:
            size = min(size, <Py_ssize_t> PIECE_SIZE)
            self.message = PyBytes_FromStringAndSize(<char*> self.backlog + self.backlog_start, size)
            self.message_done = 0
            self.backlog_start += size
            if self.backlog_start == self.backlog_end:
                self.backlog_start = self.backlog_end = 0
        return self.message is not None

    cdef int _encrypt(self) except -1:
        """Make records of what was written, as far as TLS takes it before it has read something."""
        cdef bytes message
        cdef Py_ssize_t size, taken
        problem = None
        self.calling = True
        try:
            while not (self.failed or self.closed or self.lower.closed) and self._next_message():
                message = self.message
                size = min(PyBytes_GET_SIZE(message) - self.message_done, <Py_ssize_t> PIECE_SIZE)
                piece = message if size == PyBytes_GET_SIZE(message) else (
                    PyMemoryView_FromObject(message)[self.message_done:self.message_done + size]
                )
                taken = self.tls.write(piece)
                if not 0 < taken <= size:
                    raise ValueError(f"{type(self.tls).__name__}.write() must return 1..{size}, got {taken}")
                if self.message is message:     # else the stream has ended
                    self.message_done += taken
                    if self.message_done == PyBytes_GET_SIZE(message):
                        self.message = None
                self._send_records()
        except (WantRead, WantWrite):
            pass
        except BaseException as error:
            problem = error
        finally:
            self._call_over()
        return 0 if problem is None else self._broken_off(problem)

    cdef int flush(self) except -1:
        if self.handshaking or self.failed or self.shut or self.closed:
            return 0
        if self.calling:
            self.again = True
            return 0
        if self._waits():
            self._encrypt()
            if self.closed:
                return 0
            # The records are below now. They count as long as they wait there.
            self.backlog_sent(0)
            if self.failed or self.closed:
                return 0
            self.check_high_watermark()
        if self.closing and not self._waits():
            self._shut()
        return 0

    cdef int out_of_memory(self) except -1:
        self.failed = self.write_failed = True
        return self.report_end(StreamEnd.FAILED, MemoryError("no memory for what was to be sent"))

    cdef int _send_records(self) except -1:
        """Give the stream below what TLS has made. No other call may do so meanwhile: `calling` is set."""
        cdef bytes records = self.outgoing.read()
        if records:
            self.lower.writev(<const uint8_t*> PyBytes_AS_STRING(records), PyBytes_GET_SIZE(records), NULL, 0)
            self.write_failed = self.failed or self.lower.write_failed
        return 0

    cdef int check_high_watermark(self) except -1:
        ByteStream.check_high_watermark(self)
        self.lower.note_writing_paused(self.writing_paused)
        # It may have sent everything in the midst of that, when it did not know yet that somebody waits.
        return self.backlog_sent(0) if self.writing_paused else 0

    cdef int note_writing_paused(self, bint paused) except -1:
        self.writing_paused = paused
        return self.lower.note_writing_paused(paused)

    cdef int backlog_sent(self, Py_ssize_t size) except -1:
        ByteStream.backlog_sent(self, size)
        self.lower.note_writing_paused(self.writing_paused)
        if self.drain_wanted:
            self.lower.want_drain()
        return 0

    cdef int want_drain(self) except -1:
        self.drain_wanted = True
        return self.lower.want_drain()

    cdef Py_ssize_t backlog_size(self) noexcept:
        cdef Py_ssize_t size = self.backlog_end - self.backlog_start + self.lower.backlog_size()
        return size if self.message is None else size + PyBytes_GET_SIZE(self.message) - self.message_done

    # --- end

    cdef int end(self) except -1:
        if self.closing:
            return 0
        self.closing = True
        self.pending = None
        self.pending_start = self.pending_end = 0
        self.corks = 0
        if self.handshaking or self.failed or self.lower.closed:
            self.shut = True
            self.lower.end()
            return 0
        self.lower.resume()
        return self.flush()

    cdef int _shut(self) except -1:
        """Send our close_notify, then let the stream below end in order: what comes until the peer's FIN is thrown
        away, as it does not matter whether it is good TLS."""
        if self.shut:
            return 0
        self.shut = self.calling = True
        try:
            try:
                self.tls.unwrap()
            except TlsError:
                pass        # close_notify is made; the peer's has not come, or data stands before it
            self._send_records()
        finally:
            self.calling = self.again = False
            self.lower.end()
        return 0

    cdef int drop(self) except -1:
        if not self.closed:
            self.closing = self.shut = True
            self.lower.drop()
        return 0

    cdef int finish(self) except -1:
        if not self.closed:
            self.shut = True
            self.lower_end = None
            self._forget_message()
            self._handshake_over()
            self.lower.drop()
            self.backlog_lost += self.lower.backlog_lost
            ByteStream.finish(self)
        return 0

    def set_write_buffer_limits(self, high=None, low=None):
        ByteStream.set_write_buffer_limits(self, high, low)
        self.lower.set_write_buffer_limits(high, low)

    def has_unread(self):
        return self.lower.has_unread()

    def read_now(self):
        self.lower.read_now()

    def last_received(self):
        return self.lower.last_received()

    def get_extra_info(self, name, default=None):
        if name in TLS_INFO:
            return TLS_INFO[name](self.view)
        return self.lower.get_extra_info(name, default)
