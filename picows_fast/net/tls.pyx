# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""A ByteStream that speaks TLS over another ByteStream.

Everything about TLS is decided by the caller's :class:`ssl.SSLContext`: verification, ALPN, SNI, client
certificates, sessions. Records pass through the ``ssl`` module's memory BIOs, so the stream below needs no
descriptor: TCP, a foreign transport, or another TLS stream (a proxy reached over TLS).

Owns the order of events of one TLS connection, among them what a read or write that needs the other direction does.
"""

import ssl

from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from .stream cimport ByteStream, StreamEnd, read_space

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

#: what get_extra_info() tells of TLS, as asyncio's transports do
TLS_INFO = {
    "ssl_object": lambda tls: tls,
    "sslcontext": lambda tls: tls.context,
    "peercert": lambda tls: tls.getpeercert(),
    "cipher": lambda tls: tls.cipher(),
    "compression": lambda tls: tls.compression(),
}


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
        while True:
            piece = min(size - used, <Py_ssize_t> PIECE_SIZE)
            self.incoming.write(PyMemoryView_FromMemory(<char*> data + used, piece, PyBUF_READ))
            used += piece
            self._advance()
            if used == size or self.failed or self.closed:
                return size
            if self.reading_paused and not self.closing:
                return used     # the stream below keeps the rest

    cdef int stream_end(self, int end, object error) except -1:
        if self.closed or self.failed:
            return 0
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
        if self.failed or self.closed:
            return 0
        try:
            if self.handshaking:
                try:
                    self.tls.do_handshake()
                except (WantRead, WantWrite):
                    return self._send_records()
                self.handshaking = False
                self._handshake_over()
                self._send_records()
                if self.backlog_end:
                    self.flush()
            waiting = self.backlog_end != 0
            self._read()
            # A write that waits for a renegotiation would take data that comes in the midst of it for a violation, so
            # that has to be read before.
            if waiting and self.backlog_end and not (self.failed or self.closed):
                self.flush()
        except (TlsError, CertificateError) as error:
            self._fail(error)
        return 0

    cdef int _handshake_over(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    def _on_handshake_timeout(self):
        self.timer = None
        self._fail(TimeoutError("the TLS handshake was not finished in time"))

    cdef int _read(self) except -1:
        cdef uint8_t *where
        cdef Py_ssize_t room, filled, size
        while self._has_records() and not (
            self.reading_paused or self.closing or self.close_notify_seen or self.read_error is not None
        ):
            room = self.reserve(&where)
            filled = 0
            # A record at a time, until the room is full or the records are used up. To ask without need would
            # cost an exception.
            while filled < room and self._has_records():
                try:
                    size = self.tls.read(
                        room - filled, PyMemoryView_FromMemory(<char*> where + filled, room - filled, PyBUF_WRITE)
                    )
                except (WantRead, WantWrite):
                    break
                except ZeroReturn:
                    size = 0
                except TlsError as error:
                    # What came before the bad record is good, and given out first.
                    self.read_error = error
                    break
                if size == 0:
                    self.close_notify_seen = True
                    break
                filled += size
            if filled == 0:
                break
            self.received(filled)
            if self.closed:
                return 0
        if self.read_error is not None and not self.reading_paused:
            return self._fail(self.read_error)
        if self.closing and not self.close_notify_seen:
            self._discard()
        # Reading may have had something to say (KeyUpdate, an alert), and may have been what a write waited for.
        if self.outgoing.pending:
            if self.lower.backlog_size() == 0:
                self.unread_answers = 0
            self.unread_answers += self.outgoing.pending
            self._send_records()
            # One read may make many. A peer is to blame if they wait for it.
            if self.unread_answers > MAX_UNREAD_ANSWERS and self.lower.backlog_size():
                return self._fail(ssl.SSLError("the peer asks for key updates and does not read them"))
        if self.close_notify_seen and not self.end_seen and (self.closing or not self.reading_paused):
            self.report_end(StreamEnd.TLS_CLOSE_NOTIFY, None)
        return 0

    cdef bint _has_records(self) except -1:
        return self.incoming.pending or self.tls.pending()

    cdef int _discard(self) except -1:
        try:
            while self.tls.read(RECORD_SIZE):
                pass
            self.close_notify_seen = True
        except ZeroReturn:
            self.close_notify_seen = True
        except (WantRead, WantWrite):
            pass
        return 0

    cdef int _fail(self, error) except -1:
        self.failed = True
        try:
            self._send_records()    # the alert that tells the peer why
        finally:
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
        cdef Py_ssize_t joined
        cdef uint8_t[RECORD_SIZE] record
        if self.closing or self.failed:
            return 0
        if self.handshaking or self.backlog_end or self.corks or self.coalescing or self.in_unit:
            self.append_backlog(head, head_size, body, body_size)
            if not (self.corks or self.handshaking or self.in_unit or self.failed):
                self.schedule_flush()
            return 0
        try:
            if body_size and head_size < RECORD_SIZE:
                # Head and body share the first record: the peer gets both with one read.
                joined = min(body_size, RECORD_SIZE - head_size)
                memcpy(record, head, <size_t> head_size)
                memcpy(record + head_size, body, <size_t> joined)
                self._encrypt(record, head_size + joined)
                self._encrypt(body + joined, body_size - joined)
            else:
                self._encrypt(head, head_size)
                self._encrypt(body, body_size)
            self._send_records()
        except TlsError as error:
            self._fail(error)
        return 0

    cdef int _encrypt(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Make records of it; keep for later what TLS will not take before it has read something."""
        cdef Py_ssize_t done = 0
        if self.backlog_end:
            return self.append_backlog(data, size, NULL, 0)
        while done < size:
            try:
                done += self.tls.write(PyMemoryView_FromMemory(
                    <char*> data + done, min(size - done, <Py_ssize_t> PIECE_SIZE), PyBUF_READ
                ))
            except (WantRead, WantWrite):
                return self.append_backlog(data + done, size - done, NULL, 0)
            if done < size:
                self._send_records()
        return 0

    cdef int flush(self) except -1:
        cdef Py_ssize_t done = 0
        error = None
        if self.handshaking or self.failed:
            return 0
        try:
            while self.backlog_start + done < self.backlog_end:
                done += self.tls.write(PyMemoryView_FromMemory(
                    <char*> self.backlog + self.backlog_start + done,
                    min(self.backlog_end - self.backlog_start - done, <Py_ssize_t> PIECE_SIZE), PyBUF_READ
                ))
                if self.backlog_start + done < self.backlog_end:
                    self._send_records()
        except (WantRead, WantWrite):
            pass
        except TlsError as failure:
            error = failure
        # The records go down before the bytes in them count as sent: they may only have moved to the backlog below.
        self._send_records()
        if self.closed:
            return 0
        self.backlog_sent(done)
        if error is not None:
            return self._fail(error)
        self.check_high_watermark()
        if self.closing and self.backlog_end == 0:
            self._shut()
        return 0

    cdef int out_of_memory(self) except -1:
        self.failed = True
        return self.report_end(StreamEnd.FAILED, MemoryError("no memory for what was to be sent"))

    cdef int _send_records(self) except -1:
        cdef bytes records = self.outgoing.read()
        if records:
            self.lower.writev(<const uint8_t*> PyBytes_AS_STRING(records), PyBytes_GET_SIZE(records), NULL, 0)
            self.write_failed = self.failed or self.lower.write_failed
        return 0

    cdef int check_high_watermark(self) except -1:
        ByteStream.check_high_watermark(self)
        return self.lower.note_writing_paused(self.writing_paused)

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
        return self.backlog_end - self.backlog_start + self.lower.backlog_size()

    # --- end

    cdef int end(self) except -1:
        if self.closing:
            return 0
        self.closing = True
        self.pending = None
        self.pending_start = self.pending_end = 0
        self.corks = 0
        if self.handshaking or self.failed or self.lower.closed:
            self.lower.end()
            return 0
        self.lower.resume()
        if self.backlog_end:
            self.flush()
        else:
            self._shut()
        return 0

    cdef int _shut(self) except -1:
        """Send our close_notify, then let the stream below end in order."""
        try:
            self.tls.unwrap()
        except TlsError:
            pass        # it wants to read the peer's; the stream below waits for its FIN all the same
        self._send_records()
        self.lower.end()
        return 0

    cdef int drop(self) except -1:
        if not self.closed:
            self.closing = True
            self.lower.drop()
        return 0

    cdef int finish(self) except -1:
        if not self.closed:
            self._handshake_over()
            self.lower.drop()
            self.backlog_lost += self.lower.backlog_lost
            ByteStream.finish(self)
        return 0

    def set_write_buffer_limits(self, high=None, low=None):
        ByteStream.set_write_buffer_limits(self, high, low)
        self.lower.set_write_buffer_limits(high, low)

    def last_received(self):
        return self.lower.last_received()

    def get_extra_info(self, name, default=None):
        if name in TLS_INFO:
            return TLS_INFO[name](self.tls)
        return self.lower.get_extra_info(name, default)
