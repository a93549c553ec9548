# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""TLS on a descriptor that we own: OpenSSL reads it by itself, called from C.

Everything about TLS is decided by the caller's :class:`ssl.SSLContext`, which also makes the handshake: the ``ssl``
module's own object is used, with the descriptor in place of the memory BIO that it would read from, and one that joins
the records of a write (``records.h``) in place of that which it would write to. Records are read and written through
the OpenSSL that the ``ssl`` module has loaded, without a Python call.

Where that cannot be had with certainty (:data:`AVAILABLE` is False, or :meth:`DirectTlsStream.create` returns None),
``tls.TlsStream`` does the same by public means.

Some calls into OpenSSL can run anybody's code: those of a handshake, be it the first or a later one of TLS 1.2, call
back into Python (SNI, pre-shared keys), and a handshake goes through the ``ssl`` module. Such a call is given no memory
that others use, and while it runs, nothing else calls the same SSL object. All others run no Python code.
"""

import ssl as ssl_module
import sys

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.limits cimport INT_MAX
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cimport cython

from .stream cimport StreamEnd
from .tcp cimport TcpStream, system_end
from .overdue import Overdue
from .tls_bio import TLS_INFO, TlsView


cdef extern from "openssl/lookup.h":
    ctypedef struct pf_openssl:
        int (*SSL_read)(void *ssl, void *data, int size)
        int (*SSL_write)(void *ssl, const void *data, int size)
        int (*SSL_shutdown)(void *ssl)
        int (*SSL_get_error)(const void *handle, int result)
        int (*SSL_has_pending)(const void *handle)
        int (*SSL_in_init)(const void *handle)
        int (*SSL_renegotiate_pending)(const void *handle)
        void (*SSL_set_read_ahead)(void *handle, int yes)
        void (*SSL_set_default_read_buffer_len)(void *handle, size_t size)
        void (*ERR_clear_error)()
        unsigned long (*ERR_peek_error)()
        void (*ERR_error_string_n)(unsigned long error, char *text, size_t size)
        unsigned long (*OpenSSL_version_num)()
        const char *(*OpenSSL_version)(int what)

    enum:
        PF_SSL_ERROR_WANT_READ
        PF_SSL_ERROR_SYSCALL
        PF_SSL_ERROR_ZERO_RETURN

    int pf_openssl_load(pf_openssl *library, const char *path)
    void *pf_ssl_of(const pf_openssl *library, object tls, object type, object context)
    void *pf_descriptor_attach(const pf_openssl *library, void *handle, int fd)
    void pf_descriptor_forget(const pf_openssl *library, void *bio)
    void pf_descriptor_detach(const pf_openssl *library, void *bio)
    void pf_ssl_survive_eof(const pf_openssl *library, void *handle)
    bint pf_ssl_is_at_eof(const pf_openssl *library, const void *handle)

cdef extern from "openssl/records.h":
    enum:
        PF_RECORDS_SENT

    int pf_records_open(pf_records *records)
    void pf_records_close(pf_records *records)
    void *pf_records_attach(const pf_openssl *library, void *handle, pf_records *records)
    void pf_records_detach(const pf_openssl *library, void *bio, pf_records *records)


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define PF_FREE_THREADED 1
    #else
    #define PF_FREE_THREADED 0
    #endif
    """
    enum:
        PF_FREE_THREADED

cdef extern from "openssl/stamped_source.h":
    void *pf_source_attach(const pf_openssl *library, void *handle, pf_source *source)
    void pf_source_detach(const pf_openssl *library, void *bio)


cdef enum:
    # A record carries this much plaintext at most (RFC 8446 5.1).
    RECORD_SIZE = 16 * 1024
    # Between two of these it is seen to that the records have gone.
    PIECE_SIZE = 64 * 1024
    # A peer may ask for an answer with each KeyUpdate (RFC 8446 4.6.3). This much of them may wait for a peer that does
    # not read.
    MAX_UNREAD_ANSWERS = 64 * 1024
    # One system call fetches several records.
    READ_AHEAD = 128 * 1024
    # A system call has one time of arrival: less is fetched where that is wanted, and each record given out by itself.
    STAMPED_READ_AHEAD = 20 * 1024
    STAMPED_RECORDS = 64

# What stands for an error of OpenSSL's where it has noted none: our own BIO could not take the records.
cdef unsigned long NO_MEMORY = ~<unsigned long> 0

cdef pf_openssl openssl
cdef object WantRead = ssl_module.SSLWantReadError

# Who shows it may make a stream: one without OpenSSL's objects must not come into Python code's hands.
cdef object _maker = object()


# _ssl._SSLSocket, of which a known version of OpenSSL's SSL object is a part.
cdef object _socket_type = None


def is_openssl(version):
    """Whether a library that calls itself this is OpenSSL. Others have its functions, and its name in their version."""
    return version.startswith("OpenSSL ") and "compatible" not in version


def _is_available():
    """Whether the ssl module's OpenSSL was found and is laid out as expected; tried on an object of its own."""
    global _socket_type
    if sys.implementation.name != "cpython" or PF_FREE_THREADED:
        return False
    try:
        import _ssl
        path = _ssl.__file__.encode()
        _socket_type = _ssl._SSLSocket
    except (ImportError, AttributeError):
        return False        # built in, or not there
    if not is_openssl(ssl_module.OPENSSL_VERSION) or pf_openssl_load(&openssl, path) != 0:
        return False
    if (openssl.OpenSSL_version_num() != ssl_module.OPENSSL_VERSION_NUMBER
            or openssl.OpenSSL_version(0).decode("ascii", "replace") != ssl_module.OPENSSL_VERSION):
        return False
    # A server's object needs no host name, for which idna would be imported.
    context = ssl_module.SSLContext(ssl_module.PROTOCOL_TLS_SERVER)
    tls = context.wrap_bio(ssl_module.MemoryBIO(), ssl_module.MemoryBIO(), server_side=True)
    return pf_ssl_of(&openssl, tls._sslobj, _socket_type, context) != NULL


#: Whether DirectTlsStream can be used with this Python.
AVAILABLE = _is_available()


cdef object openssl_error(unsigned long noted):
    """What OpenSSL noted."""
    cdef char[256] text
    openssl.ERR_error_string_n(noted, text, sizeof(text))
    return ssl_module.SSLError(ssl_module.SSL_ERROR_SSL, text.decode("utf-8", "replace"))


def _calls_into_python(tls, context):
    """Whether reading and writing call Python code that would be passed over, or that nothing here is prepared for."""
    return getattr(context, "_msg_callback", None) is not None or any(
        getattr(type(tls), name, None) is not getattr(ssl_module.SSLObject, name)
        for name in ("read", "write", "unwrap")
    )


cdef class DirectTlsStream(TcpStream):
    """TLS over a connected, non-blocking socket, which it owns from now on. Made by :meth:`create`."""

    def __cinit__(self, loop, sock, maker=None):
        if maker is not _maker:
            raise TypeError("DirectTlsStream objects are made by DirectTlsStream.create()")
        self.can_take_back = False      # what is encrypted is committed

    def __dealloc__(self):
        if self.bio != NULL:
            pf_records_detach(&openssl, self.bio, &self.records)
        if self.source_bio != NULL:
            pf_source_detach(&openssl, self.source_bio)
        if self.descriptor_bio != NULL:
            pf_descriptor_detach(&openssl, self.descriptor_bio)

    @staticmethod
    def create(loop, sock, context, *, bint server_side=False, server_hostname=None, session=None,
               handshake_timeout=None):
        """Return a stream, or None if this context's objects are not what is known, or have ``read`` or ``write`` of
        their own.

        :param context: :class:`ssl.SSLContext`
        :param server_hostname: str for SNI and verification, None for a server
        :param session: :class:`ssl.SSLSession` to resume, or None
        :param handshake_timeout: seconds, or None
        """
        cdef DirectTlsStream stream
        cdef void *found
        if not AVAILABLE:
            return None
        tls = context.wrap_bio(
            ssl_module.MemoryBIO(), ssl_module.MemoryBIO(),
            server_side=server_side, server_hostname=server_hostname, session=session
        )
        owner = getattr(tls, "_sslobj", None)
        found = pf_ssl_of(&openssl, owner, _socket_type, context)
        if found == NULL or _calls_into_python(tls, context):
            return None
        stream = DirectTlsStream(loop, sock, _maker)
        stream.descriptor_bio = pf_descriptor_attach(&openssl, found, stream.fd)
        if stream.descriptor_bio == NULL:
            return None
        stream.bio = pf_records_attach(&openssl, found, &stream.records)
        if stream.bio == NULL:
            return None
        stream.ssl = found
        stream.ssl_owner = owner
        stream.tls = tls
        stream.view = TlsView(tls)
        stream.held = bytearray()
        stream.handshaking = stream.may_renegotiate = True
        stream.handshake_timeout = handshake_timeout
        pf_ssl_survive_eof(&openssl, found)
        openssl.SSL_set_read_ahead(found, 1)
        openssl.SSL_set_default_read_buffer_len(found, READ_AHEAD)
        return stream

    cpdef start(self):
        """Begin the handshake. What is written before its end is sent after it."""
        if self.handshake_timeout is not None:
            self.timer = self.loop.call_later(self.handshake_timeout, self._on_handshake_timeout)
        self.start_reading()
        self._advance_handshake()

    cdef int _advance_handshake(self) except -1:
        cdef int end = 0
        problem = None
        if self.calling:
            return 0
        self._open_records()
        self.calling = True
        try:
            self.tls.do_handshake()
            self.handshaking = False
        except WantRead:
            pass
        except (ssl_module.SSLEOFError, ssl_module.SSLZeroReturnError):
            end = StreamEnd.TLS_TRUNCATED
            problem = ssl_module.SSLEOFError(ssl_module.SSL_ERROR_EOF, "the connection ended")
        except ssl_module.SSLSyscallError as error:     # how older Pythons put it
            end = StreamEnd.RESET
            problem = ConnectionResetError("the connection was reset during the TLS handshake")
            problem.__cause__ = error
        except (ssl_module.SSLError, ssl_module.CertificateError) as error:
            end = StreamEnd.TLS_FAILED
            problem = error
        except OSError as error:
            end = StreamEnd.RESET if isinstance(error, ConnectionError) else StreamEnd.FAILED
            problem = error
        except Exception as error:      # of a subclass of SSLObject, or no memory
            end = StreamEnd.TLS_FAILED
            problem = error
        finally:
            self.calling = False
            self._send_records()    # be it an alert that tells the peer why
        if self.closing or self.failed:
            return 0
        if end:
            return self._end(end, problem)
        if self.handshaking:
            return 0
        self.may_renegotiate = self.tls.version() != "TLSv1.3"
        self._handshake_over()
        return self._flush_held()

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
        if self.handshaking and not self.closing:
            self._end(StreamEnd.TLS_FAILED, TimeoutError("the TLS handshake was not finished in time"))

    cdef int _end(self, int end, error) except -1:
        """Nothing more can be read. Our side may go on, unless TLS itself is broken."""
        self.read_over = True
        self.found_end = None
        if end not in (StreamEnd.TLS_CLOSE_NOTIFY, StreamEnd.TLS_TRUNCATED) or self.handshaking or self.closing:
            self.failed = self.write_failed = True
            self._forget_held()
        if self.closing:
            return self._end_tls()
        self._stop_reading()
        self.fin_awaited = end == StreamEnd.TLS_FAILED and not isinstance(error, TimeoutError)
        return self.report_end(end, error)

    cdef int _forget_held(self) except -1:
        self.backlog_lost += PyByteArray_GET_SIZE(self.held)
        PyByteArray_Resize(self.held, 0)
        return 0

    # --- in

    cdef int _want_stamps(self) except -1:
        TcpStream._want_stamps(self)
        if self.stamped:
            self.source.fd = self.fd
            self.source.stamps.software = self.source.stamps.hardware = -1
            self.source_bio = pf_source_attach(&openssl, self.ssl, &self.source)
            if self.source_bio == NULL:
                raise MemoryError()
            openssl.SSL_set_default_read_buffer_len(self.ssl, STAMPED_READ_AHEAD)
        return 0

    cdef bint _read_once(self) except -1:
        cdef bint came
        cdef int records = 1
        if self.delivering and not self.closing:
            return self._read_later()
        came = self._read_records()
        if not self.stamped:
            return came
        # A record at a time, as the next one may have come later.
        while came and self.reading and not self.closing and not self.read_over and self.found_end is None:
            if not self._has_more():
                break
            if records == STAMPED_RECORDS:
                self.loop.call_soon(self._on_readable)
                break
            records += 1
            if not self._read_records():
                break       # the beginning of one
        return came

    cdef bint _read_records(self) except -1:
        cdef uint8_t *where
        cdef Py_ssize_t room, filled, answered
        if self.handshaking and not self.read_over:
            self._advance_handshake()
            if self.handshaking:
                return False
        if self.found_end is not None:
            self._tell_end()
            return False
        if self.read_over:
            return TcpStream._read_once(self)
        if not self.reading or self.calling:
            return False
        if self.may_renegotiate:
            return self._read_with_care()
        self._open_records()
        # No Python code runs until received().
        room = self.reserve(&where)
        filled = self._read_into(where, room)
        answered = self._put_answers()
        if filled and not self.closing:
            self.received(filled)
            if self.quick_ack:
                self._after_read()
        self._reading_done(answered)
        if filled == room and self.reading and not self.read_over:
            # OpenSSL may hold more, of which no event tells.
            self.loop.call_soon(self._on_readable)
        return filled > 0

    cdef bint _read_with_care(self) except -1:
        """The same where OpenSSL may call back in the midst of a read: what that runs can read and write as it likes,
        but not what is on this stack."""
        cdef uint8_t[RECORD_SIZE] record
        cdef Py_ssize_t filled, answered
        cdef Py_ssize_t done = 0
        while self.reading and not (self.read_over or self.closed):
            self._open_records()
            self.calling = True
            filled = self._read_into(record, RECORD_SIZE)
            self.calling = False
            answered = self._put_answers()
            try:
                if self.end_wanted:
                    self.end_wanted = False
                    self.end()
                if filled and not self.closing:
                    self.receive_copy(PyBytes_FromStringAndSize(<char*> record, filled))
            except BaseException as error:
                self.broken(error)
                raise
            if filled and self.quick_ack:
                self._after_read()
            self._reading_done(answered)
            done += filled
            if not filled or self.stamped or not self._has_more():
                break
            if done >= READ_AHEAD:
                self.loop.call_soon(self._on_readable)
                break
        return done > 0

    @cython.final
    cdef bint _has_more(self) noexcept:
        """Whether OpenSSL has something to go on with, without a system call."""
        return openssl.SSL_has_pending(self.ssl) or (
            self.may_renegotiate and openssl.SSL_renegotiate_pending(self.ssl)
        )

    @cython.final
    cdef Py_ssize_t _read_into(self, uint8_t *where, Py_ssize_t room) noexcept:
        """Read records until there is no room, or there are no more. Returns how many bytes came; how the stream ended
        is noted."""
        cdef Py_ssize_t filled = 0
        cdef int size
        while filled < room:
            openssl.ERR_clear_error()
            size = openssl.SSL_read(self.ssl, where + filled, <int> min(room - filled, <Py_ssize_t> INT_MAX))
            if size <= 0:
                self._note_failure(size)
                break
            filled += size
            if self.stamped:
                self.arrived = self.source.stamps.software
                self.arrived_by_hardware = self.source.stamps.hardware
                break
            if self.may_renegotiate or not self._has_more():
                break
        return filled

    cdef int _note_failure(self, int size) noexcept:
        """Note why nothing could be read, before something else changes what tells it."""
        cdef int system_error = errno if size < 0 else 0     # 0 is the end of the descriptor
        cdef int error = openssl.SSL_get_error(self.ssl, size)
        if error == PF_SSL_ERROR_WANT_READ:
            return 0
        if error == PF_SSL_ERROR_SYSCALL and system_error:
            self.noted_end = StreamEnd.FAILED
            self.noted_error = <unsigned long> system_error
        elif error == PF_SSL_ERROR_SYSCALL or pf_ssl_is_at_eof(&openssl, self.ssl):
            self.noted_end = StreamEnd.TLS_TRUNCATED
        elif error == PF_SSL_ERROR_ZERO_RETURN:
            self.noted_end = StreamEnd.TLS_CLOSE_NOTIFY
        else:
            self.noted_end = StreamEnd.TLS_FAILED
            self.noted_error = openssl.ERR_peek_error()
        # The next one who calls OpenSSL, for another connection, would take it for his own.
        openssl.ERR_clear_error()
        return 0

    @cython.final
    cdef Py_ssize_t _put_answers(self) except -1:
        """Reading may have made OpenSSL answer something. Returns how many bytes."""
        cdef Py_ssize_t size = <Py_ssize_t> self.records.filled
        if size:
            if self.backlog_end == 0:
                self.unread_answers = 0
            self.unread_answers += size
            try:
                self._put_records()
            except BaseException as error:
                self.broken(error)      # what was read is not given out any more
                raise
        if self.records.data != NULL:
            pf_records_close(&self.records)
        return size

    @cython.final
    cdef int _reading_done(self, Py_ssize_t answered) except -1:
        """What was read has been given out: do what else followed from it."""
        if answered:
            self.put_over()
        if self.closed or self.read_over:
            return 0
        if self.noted_end:
            self._find_end()
        elif answered and self.unread_answers > MAX_UNREAD_ANSWERS and self.backlog_end:
            # One read may make many. A peer is to blame if they wait for it.
            self.found_end = (
                StreamEnd.TLS_FAILED, ssl_module.SSLError("the peer asks for key updates and does not read them")
            )
        if self.found_end is not None:
            # What came before it has been given out, unless the handler paused in the midst of that.
            if self.closing or not self.reading_paused:
                self._tell_end()
        elif PyByteArray_GET_SIZE(self.held) and not self.corks:
            # A write may have waited for what was read, be it only the rest of a renegotiation.
            return self._flush_held()
        return 0

    cdef int _find_end(self) except -1:
        """Say how the stream ended, by what was noted."""
        cdef int end = self.noted_end
        self.noted_end = 0
        if end == StreamEnd.FAILED:
            self.found_end = system_end(<int> self.noted_error)
        elif end == StreamEnd.TLS_FAILED:
            self.found_end = end, openssl_error(self.noted_error)
        elif end == StreamEnd.TLS_CLOSE_NOTIFY:
            self.found_end = end, None
        elif self.send_error:
            self.found_end = system_end(self.send_error)
        else:
            self.found_end = end, ssl_module.SSLEOFError(
                ssl_module.SSL_ERROR_EOF, "the connection ended without a TLS close_notify alert"
            )
        return 0

    cdef int _tell_end(self) except -1:
        end, error = self.found_end
        return self._end(end, error)

    cdef int resume(self) except -1:
        if self.reading_paused and not self.closing:
            self.reading_paused = False
            self.loop.call_soon(self._deliver_turn)
        return 0

    cdef int read_on(self) except -1:
        TcpStream.read_on(self)
        if not self.closed:
            self._read_once()       # OpenSSL may hold records from before the pause
        return 0

    # --- out

    cdef int writev(self, const uint8_t *head, Py_ssize_t head_size,
                    const uint8_t *body, Py_ssize_t body_size) except -1:
        cdef uint8_t[RECORD_SIZE] record
        cdef Py_ssize_t joined = 0
        if self.closing or self.send_error or self.failed:
            return 0
        if self.calling or self.handshaking or PyByteArray_GET_SIZE(self.held) or self.corks or self.coalescing:
            # What is held together becomes one record, too.
            self._hold(head, head_size, body, body_size)
            if not (self.calling or self.handshaking or self.corks or self.in_unit):
                self.schedule_flush()
            return 0
        self._open_records()
        # No Python code runs until put_over().
        if body_size and head_size < RECORD_SIZE:
            # Head and body share the first record, rather than make one of a few bytes.
            joined = min(body_size, RECORD_SIZE - head_size)
            memcpy(record, head, <size_t> head_size)
            memcpy(record + head_size, body, <size_t> joined)
            self._encrypt(record, head_size + joined)
        else:
            self._encrypt(head, head_size)
        if body_size > joined:
            self._encrypt(body + joined, body_size - joined)
        return self._send_records()

    cdef int _hold(self, const uint8_t *head, Py_ssize_t head_size,
                   const uint8_t *body, Py_ssize_t body_size) except -1:
        """Keep two pieces until TLS takes them: both, or neither and out_of_memory() is called."""
        cdef Py_ssize_t before = PyByteArray_GET_SIZE(self.held)
        try:
            PyByteArray_Resize(self.held, before + head_size + body_size)
        except MemoryError:
            return self.out_of_memory()
        memcpy(PyByteArray_AS_STRING(self.held) + before, head, <size_t> head_size)
        if body_size:
            memcpy(PyByteArray_AS_STRING(self.held) + before + head_size, body, <size_t> body_size)
        return 0

    cdef bint _is_renegotiating(self) noexcept:
        """Whether nothing must be written, as SSL_write would make the handshake that the server wished for, and take
        data that comes before the server's answer for a violation. SSL_read makes it, too, and allows for that.
        """
        return openssl.SSL_in_init(self.ssl) or openssl.SSL_renegotiate_pending(self.ssl)

    @cython.final
    cdef int _encrypt(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Make records of it; hold what TLS will not take before it has read something. Runs no Python code."""
        cdef Py_ssize_t done = 0
        cdef int written
        if self.noted_write_error:
            return 0
        if PyByteArray_GET_SIZE(self.held) or (self.may_renegotiate and self._is_renegotiating()):
            return self._hold(data, size, NULL, 0)
        while done < size:
            openssl.ERR_clear_error()
            written = openssl.SSL_write(self.ssl, data + done, <int> min(size - done, <Py_ssize_t> PIECE_SIZE))
            if written > 0:
                done += written
                if done < size and self.records.filled >= <size_t> PF_RECORDS_SENT:
                    self._put_records()
                    if self.send_error:
                        return 0
                continue
            if openssl.SSL_get_error(self.ssl, written) == PF_SSL_ERROR_WANT_READ:
                return self._hold(data + done, size - done, NULL, 0)
            self.noted_write_error = openssl.ERR_peek_error() or NO_MEMORY
            openssl.ERR_clear_error()
            return 0
        return 0

    cdef int end_unit(self) except -1:
        TcpStream.end_unit(self)
        if PyByteArray_GET_SIZE(self.held) and not (self.handshaking or self.corks):
            self.schedule_flush()
        return 0

    cdef bint take_back(self, Py_ssize_t size) noexcept:
        return False

    cdef int flush(self) except -1:
        self._flush_held()
        return 0 if self.closed else TcpStream.flush(self)

    cdef int _flush_held(self) except -1:
        cdef bytes held
        if PyByteArray_GET_SIZE(self.held) and not (self.calling or self.handshaking or self.failed):
            self._open_records()
            held = bytes(self.held)
            PyByteArray_Resize(self.held, 0)
            self._encrypt(<const uint8_t*> PyBytes_AS_STRING(held), PyBytes_GET_SIZE(held))
            self._send_records()
            if not self.closed:
                self.backlog_sent(0)
            if self.closing and not (self.read_over or PyByteArray_GET_SIZE(self.held)):
                return self._end_tls()
        return 0

    @cython.final
    cdef int _open_records(self) except -1:
        """Let TLS write, until the next _send_records()."""
        if pf_records_open(&self.records) < 0:
            raise MemoryError()
        return 0

    @cython.final
    cdef int _put_records(self) except -1:
        """Send what TLS has written so far, or put it behind the backlog. Runs no Python code, unless out of memory."""
        cdef Py_ssize_t size = <Py_ssize_t> self.records.filled
        self.records.filled = 0
        return self.put(self.records.data, size)

    @cython.final
    cdef int _send_records(self) except -1:
        """Send what TLS has written, and let others have the memory."""
        cdef unsigned long noted
        if self.records.data != NULL:
            if self.records.filled:
                self._put_records()
            pf_records_close(&self.records)
            if self.put_error or self.backlog_end:
                self.put_over()
        if self.noted_write_error:
            noted = self.noted_write_error
            self.noted_write_error = 0
            if noted == NO_MEMORY:
                return self._end(StreamEnd.TLS_FAILED, ssl_module.SSLError("no memory for TLS records"))
            return self._end(StreamEnd.TLS_FAILED, openssl_error(noted))
        return 0

    cdef Py_ssize_t backlog_size(self) noexcept:
        return self.backlog_end - self.backlog_start + PyByteArray_GET_SIZE(self.held)

    # --- end

    cdef int end(self) except -1:
        if self.closing:
            return 0
        if self.calling and not self.handshaking:
            self.end_wanted = True
            return 0
        self.corks = 0
        self._flush_held()
        if self.closing:
            return 0
        if PyByteArray_GET_SIZE(self.held) and not (
            self.handshaking or self.failed or self.send_error or self.read_over
        ):
            # TLS takes it when it has read the rest of a renegotiation. What else it reads is thrown away.
            self.closing = True
            self.pending = None
            self.pending_start = self.pending_end = 0
            return self.start_reading()
        return self._end_tls()

    cdef int _end_tls(self) except -1:
        """Send our close_notify, then end TCP in order: what comes until the peer's FIN is thrown away, as it does not
        matter whether it is good TLS."""
        self.closing = True
        if not (self.handshaking or self.failed or self.send_error):
            self._open_records()
            openssl.ERR_clear_error()
            # Once: a second call would read what the peer has sent, too.
            openssl.SSL_shutdown(self.ssl)
            openssl.ERR_clear_error()
            self._send_records()
        self.read_over = True
        self.found_end = None
        self._forget_held()
        if self.closed:
            return 0
        if self.fin_awaited:
            self.end_seen = False       # it was TLS' own; the descriptor's has not come
        return self.end_tcp()

    cdef int _shut(self) except -1:
        return TcpStream._shut(self) if self.read_over else 0

    cdef int finish(self) except -1:
        self.source.fd = -1
        if self.descriptor_bio != NULL:
            pf_descriptor_forget(&openssl, self.descriptor_bio)
        self._handshake_over()
        self._forget_held()
        return TcpStream.finish(self)

    def get_extra_info(self, name, default=None):
        if name in TLS_INFO:
            return TLS_INFO[name](self.view)
        return TcpStream.get_extra_info(self, name, default)
