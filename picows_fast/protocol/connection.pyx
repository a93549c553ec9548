# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""A WebSocket connection without I/O: received bytes in, events out, bytes to send (RFC 6455).

Owns the state of one connection behind the opening handshake: frames and messages, the closing handshake, answers to
PINGs, auto-ping, and what a violation leads to. Does not own: sockets, the clock, the opening handshake, TLS.
"""

from .codec cimport (
    FrameParser,
    WSCloseCode,
    WSCloseHandshake,
    WSFrame,
    WSMsgType,
    build_close_payload,
    close_info,
)
from .wire cimport pf_mask
from .messages cimport DEFAULT_FRAGMENTS, DEFAULT_MESSAGE_SIZE, MessageAssembler

from .codec import build_frame
from ..exceptions import WSPeerProtocolError
from .keepalive import PingAction
from ..states import WSDisconnectCause, WSState

cimport cython

from libc.stdint cimport uint8_t


cdef enum:
    DEFAULT_FRAME_SIZE = 10 * 1024 * 1024
    UNMASKED_AT_ONCE = 4096

cdef object OPEN = WSState.OPEN
cdef object CLOSING = WSState.CLOSING
cdef object CLOSED = WSState.CLOSED


@cython.final
@cython.auto_pickle(False)
cdef class Connection:
    """One WebSocket connection behind its opening handshake, without I/O.

    ::

        connection = Connection(is_client=True)
        connection.receive_data(sock.recv(65536))       # b"" says that the stream has ended
        for frame in connection:
            ...                     # a message, or a control frame
        sock.sendall(connection.data_to_send())
        if connection.must_end:
            sock.shutdown(socket.SHUT_WR)

    An event is a :class:`WSFrame`: a whole TEXT or BINARY message (or each frame as it came, with ``join_fragments``
    off), CLOSE, PONG, and PING if ``enable_auto_pong`` is off. After every call that can have something to send, send
    what :meth:`data_to_send` returns. Times are seconds of any clock; the caller passes them in.

    Read-only attributes:

    - ``is_client_side``: bool
    - ``state``: :class:`WSState`: OPEN, CLOSING or CLOSED
    - ``close_handshake``: :class:`WSCloseHandshake`, or None until the first CLOSE frame
    - ``disconnect_cause``: :class:`WSDisconnectCause`, or None while nothing ends the connection;
      ``disconnect_exception``: what went wrong, or None
    - ``must_end``: bool: when the data to send is sent, end the stream: nothing will follow

    :param is_client: this side is the client: frames to send are masked, received ones must not be (RFC 6455 5.1)
    :param join_fragments: give whole messages, with text checked (RFC 6455 5.4, 8.1)
    :param max_frame_size: bytes of payload that one received frame may have
    :param max_message_size: bytes of payload that one received message may have
    :param max_fragments: frames that one message may have
    :param check_unfinished_text: check text as it comes, even while its frame has not come whole
    :param allowed_rsv: reserved bits that a negotiated extension uses (RSV1=4, RSV2=2, RSV3=1)
    :param enable_auto_pong: answer PINGs (RFC 6455 5.5.2)
    :param enable_auto_close: answer the peer's CLOSE with its code (RFC 6455 5.5.1)
    :param close_timeout: seconds from the first reason to close until :attr:`deadline`
    :param auto_ping: a ``keepalive.AutoPing``, which says when to send PINGs and when to give up; or None
    :raises ValueError: a limit is negative, or allowed_rsv out of range
    """

    cdef:
        readonly bint is_client_side
        readonly object state
        readonly WSCloseHandshake close_handshake
        readonly object disconnect_cause
        readonly object disconnect_exception
        readonly bint must_end

        FrameParser parser
        MessageAssembler assembler  # None: frames are given as they come
        bytearray outgoing
        bint auto_pong, auto_close
        Py_ssize_t unfinished_checked   # bytes of the unfinished frame's text that were checked; -1: none are to be
        bint input_over             # nothing that comes counts any more
        bint at_end                 # the peer's stream has ended behind what was fed
        object end_error
        double close_timeout
        double now                  # when the caller last told the time
        double last_received
        object closing_deadline     # float, or None
        object auto_ping

    def __init__(self, *, bint is_client, bint join_fragments=True, Py_ssize_t max_frame_size=DEFAULT_FRAME_SIZE,
                 Py_ssize_t max_message_size=DEFAULT_MESSAGE_SIZE, Py_ssize_t max_fragments=DEFAULT_FRAGMENTS,
                 bint check_unfinished_text=False, int allowed_rsv=0, bint enable_auto_pong=True,
                 bint enable_auto_close=True, double close_timeout=10.0, auto_ping=None):
        self.is_client_side = is_client
        self.state = OPEN
        self.parser = FrameParser(is_client=is_client, max_frame_size=max_frame_size, allowed_rsv=allowed_rsv)
        if join_fragments:
            self.assembler = MessageAssembler(max_message_size=max_message_size, max_fragments=max_fragments)
        self.unfinished_checked = 0 if join_fragments and check_unfinished_text else -1
        self.outgoing = bytearray()
        self.auto_pong = enable_auto_pong
        self.auto_close = enable_auto_close
        if not close_timeout > 0:
            raise ValueError(f"close_timeout must be positive, got {close_timeout}")
        self.close_timeout = close_timeout
        self.auto_ping = auto_ping

    # --- In

    def receive_data(self, data, now=None):
        """Take bytes that came from the peer; events come from iterating. Empty data is the end of the stream.

        :param data: bytes-like
        :param now: seconds; needed for deadlines
        :raises TypeError: data is not bytes-like
        """
        self._tell_time(now)
        if len(data) == 0:
            self.at_end = True
            return
        if now is not None:
            self.last_received = self.now
        if not (self.input_over or self.at_end):
            self.parser.feed(data)

    def receive_eof(self, error=None, now=None):
        """The stream has ended: orderly, or with this error (an OSError). What was fed before comes first."""
        self._tell_time(now)
        self.at_end = True
        self.end_error = error

    def next_event(self):
        """Return the next :class:`WSFrame`, or None until more has come. Raises nothing: a violation ends the
        connection, and ``disconnect_exception`` has it."""
        cdef WSFrame frame
        while not self.input_over:
            try:
                frame = self.parser.next_frame()
                if frame is None:
                    if self.unfinished_checked >= 0 and not self._is_close_sent():
                        self._check_unfinished()
                    break
                if self.unfinished_checked > 0:
                    self.unfinished_checked = 0
                frame = self._on_frame(frame)
            except WSPeerProtocolError as error:
                self._fail(WSDisconnectCause.PROTOCOL_ERROR, error.code, error.close_reason, error)
                break
            if frame is not None:
                return frame
        if self.at_end and self.state is not CLOSED:
            self._ended()
        return None

    def __iter__(self):
        return self

    def __next__(self):
        frame = self.next_event()
        if frame is None:
            raise StopIteration
        return frame

    cdef int _check_unfinished(self) except -1:
        """Check what has come of the payload of the frame that is not complete yet."""
        cdef FrameParser parser = self.parser
        cdef const uint8_t *payload = parser._stored + parser._stored_start + parser.header_size
        cdef Py_ssize_t size = parser._stored_end - parser._stored_start - parser.header_size
        cdef Py_ssize_t piece
        cdef const uint8_t *shown
        cdef uint8_t[UNMASKED_AT_ONCE] unmasked
        if parser.wanted == 0 or parser.opcode >= WSMsgType.CLOSE or parser.rsv:
            return 0
        while self.unfinished_checked < size:
            piece = min(size - self.unfinished_checked, <Py_ssize_t> UNMASKED_AT_ONCE)
            shown = payload + self.unfinished_checked
            if parser.masked:
                # A copy: the parser unmasks the whole in place when it is there.
                pf_mask(unmasked, shown, <size_t> piece, parser.mask_key, <size_t> self.unfinished_checked)
                shown = unmasked
            self.unfinished_checked += piece
            self.assembler.check_unfinished(<int> parser.opcode, shown, piece)
        return 0

    cdef WSFrame _on_frame(self, WSFrame frame):
        """The event that a frame is, or None."""
        if frame.msg_type == WSMsgType.CLOSE:
            self._on_close(frame)
            return frame
        if self._is_close_sent():
            return None         # only the peer's CLOSE is awaited (RFC 6455 1.4)
        if frame.msg_type == WSMsgType.PING and self.auto_pong:
            self.send(WSMsgType.PONG, frame)
            return None
        if frame.msg_type == WSMsgType.PONG and self.auto_ping is not None and self.auto_ping.unanswered:
            self.auto_ping.pong_received(self.now)
            return None
        if self.assembler is None:
            return frame
        return self.assembler.add(frame)

    cdef int _on_close(self, WSFrame frame) except -1:
        cdef bytes payload = frame.get_payload_as_bytes()
        handshake = self._close_handshake()
        handshake.recv = close_info(payload)
        handshake.recv_then_sent = handshake.sent is None
        self._set_cause(
            WSDisconnectCause.CLOSE_FRAME if handshake.recv_then_sent else WSDisconnectCause.LOCAL_CLOSE, None
        )
        self._begin_closing()
        if handshake.sent is None and self.auto_close:
            self._send_close(build_close_payload(<int> frame.get_close_code(), None))
        self._both_closed()
        return 0

    cdef int _ended(self) except -1:
        """The peer's stream has ended."""
        self.input_over = True
        error = self.end_error
        if error is None:
            cause = WSDisconnectCause.PEER_FIN
        elif isinstance(error, ConnectionError):
            cause = WSDisconnectCause.PEER_RESET
        else:
            cause = WSDisconnectCause.NETWORK_ERROR
        self._set_cause(cause, error)
        self._close_now()
        return 0

    # --- Out

    def data_to_send(self):
        """Return the bytes to send, in order, and forget them; b"" if there are none."""
        if not self.outgoing:
            return b""
        data = bytes(self.outgoing)
        self.outgoing.clear()
        return data

    def send(self, WSMsgType msg_type, message=None, bint fin=True, bint rsv1=False, bint rsv2=False, bint rsv3=False):
        """Send one frame (RFC 6455 5.2). Parameters and errors are those of ``WSTransport.send``.

        :returns: bool: False if the frame goes nowhere, as the connection is closing or closed
        """
        cdef bytes frame = build_frame(
            msg_type, message, fin=fin, rsv1=rsv1, rsv2=rsv2, rsv3=rsv3, mask=self.is_client_side
        )
        if msg_type == WSMsgType.CLOSE:
            return self._send_close(b"" if message is None else bytes(
                message.encode() if isinstance(message, str) else message
            ))
        if not self._can_send():
            return False
        self.outgoing += frame
        return True

    def send_ping(self, message=None):
        """Send a PING frame (RFC 6455 5.5.2); returns as :meth:`send`."""
        return self.send(WSMsgType.PING, message)

    def send_pong(self, message=None):
        """Send a PONG frame (RFC 6455 5.5.3); returns as :meth:`send`."""
        return self.send(WSMsgType.PONG, message)

    def send_close(self, int close_code=WSCloseCode.NO_INFO, close_message=None, now=None):
        """Send a CLOSE frame (RFC 6455 5.5.1, 7.1.2): nothing can be sent after it.

        :returns: bool: False if a CLOSE was sent before, or the connection ends without
        :raises ValueError: a code that must not be sent, or a bad reason
        """
        self._tell_time(now)
        return self._send_close(build_close_payload(close_code, close_message))

    cdef bint _send_close(self, bytes payload) except -1:
        # Checked as send_close() checks it: a payload is given to send(), too.
        if len(payload) == 1:
            raise ValueError("the payload of CLOSE is empty or starts with a code of two bytes (RFC 6455 5.5.1)")
        if payload:
            build_close_payload((payload[0] << 8) | payload[1], payload[2:])
        if not self._can_send():
            return False
        self.outgoing += build_frame(WSMsgType.CLOSE, payload, mask=self.is_client_side)
        self._close_handshake().sent = close_info(payload)
        self._begin_closing()
        self._both_closed()
        return True

    # --- The end

    def disconnect(self, now=None):
        """End the connection without a closing handshake: what waits is sent, then the stream ends."""
        self._tell_time(now)
        if self.state is not CLOSED:
            self._set_cause(WSDisconnectCause.LOCAL_DISCONNECT, None)
            self._stop()

    def abort(self):
        """The stream is gone, or is to be dropped at once."""
        if self.state is not CLOSED:
            self._set_cause(WSDisconnectCause.LOCAL_ABORT, None)
            self.outgoing.clear()
            self._close_now()

    @property
    def deadline(self):
        """float: when :meth:`handle_deadline` is due, in seconds of the caller's clock; None: never."""
        if self.closing_deadline is not None or self.auto_ping is None or self.state is not OPEN:
            return self.closing_deadline
        return self.auto_ping.deadline

    def handle_deadline(self, now):
        """Do what is due: send a PING, give up a peer that does not answer, or end a closing that takes too long.
        Does nothing before :attr:`deadline`. What has arrived has to be received before."""
        self._tell_time(now)
        due = self.deadline
        if due is None or self.now < due:
            return
        if self.state is CLOSING:
            self._set_cause(WSDisconnectCause.CLOSE_TIMEOUT, None)
            self.outgoing.clear()
            self._close_now()
            return
        action = self.auto_ping.on_timer(self.now, self.last_received)
        if action == PingAction.DEAD:
            self._fail(WSDisconnectCause.PING_TIMEOUT, WSCloseCode.GOING_AWAY, b"no pong", None)
        elif action == PingAction.PING:
            self.auto_ping.ping_sent(self.now)
            self.send_ping()

    cdef int _fail(self, cause, int code, bytes reason, error) except -1:
        """Fail the connection (RFC 6455 7.1.7)."""
        self._set_cause(cause, error)
        self._send_close(build_close_payload(code, reason))
        self._stop()
        return 0

    cdef int _stop(self) except -1:
        """Neither direction goes on."""
        self.input_over = True
        self.must_end = True
        self._begin_closing()
        return 0

    cdef int _both_closed(self) except -1:
        handshake = self.close_handshake
        if handshake.recv is None or handshake.sent is None:
            return 0
        self.input_over = True
        # The server ends the TCP connection first (RFC 6455 7.1.1).
        self.must_end = self.must_end or not self.is_client_side
        return 0

    cdef int _begin_closing(self) except -1:
        if self.state is OPEN:
            self.state = CLOSING
            self.closing_deadline = self.now + self.close_timeout
        return 0

    cdef int _close_now(self) except -1:
        self.state = CLOSED
        self.input_over = self.must_end = True
        self.closing_deadline = None
        return 0

    cdef WSCloseHandshake _close_handshake(self):
        if self.close_handshake is None:
            self.close_handshake = WSCloseHandshake.__new__(WSCloseHandshake)
        return self.close_handshake

    cdef bint _is_close_sent(self) noexcept:
        return self.close_handshake is not None and self.close_handshake.sent is not None

    cdef bint _can_send(self) noexcept:
        return not (self.must_end or self._is_close_sent())

    cdef int _set_cause(self, cause, error) except -1:
        if self.disconnect_cause is None:
            self.disconnect_cause = cause
            self.disconnect_exception = error
        return 0

    cdef int _tell_time(self, now) except -1:
        if now is not None:
            self.now = now
        return 0

    def __repr__(self):
        side = "client" if self.is_client_side else "server"
        return f"<Connection {side} {self.state.name.lower()}>"
