# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The connection: :class:`WSListener`, which users subclass, and :class:`WSTransport`, which they call.

Owns the connection's state, what is called when, and its one failure path. How bytes move is the stream's
business, what they mean the parser's and the handshake's, when to ping the auto-ping policy's.
"""

import asyncio
import logging
import operator
import time
import weakref
from types import FunctionType, MethodType

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from .codec cimport (
    MAX_HEADER_SIZE,
    build_close_payload,
    check_frame,
    new_frame,
    new_mask_key,
    peer_error,
    write_frame,
)
from .net.stream cimport StreamEnd, new_receive_buffer
from .traffic cimport SharedTraffic, count_frame, traffic_stats
from .wire cimport PF_FRAME_OK, pf_mask, pf_write_frame_header

from .codec import WSCloseCode as CloseCode
from .codec import WSMsgType as MsgType
from .exceptions import WSConnectionClosedError, WSHandshakeError, WSPeerProtocolError, WSProtocolError
from .http_messages import WSUpgradeResponse, WSUpgradeResponseWithListener, encode_response
from .keepalive import AutoPing, PingAction, RoundTrips
from .states import WSDisconnectCause, WSState
from .stats import TransportStats

cimport cython


cdef extern from "net/clock.h" nogil:
    double pf_monotonic()

cdef extern from *:
    """
    #include <stddef.h>

    #define PF_FRAME_SLOT offsetof(struct __pyx_vtabstruct_11picows_fast_4core_WSListener, on_ws_frame)

    /* 1: whether Python overrides the method is not looked up again. */
    #define pf_call_frame_slot(listener, transport, frame) \
        (listener)->__pyx_vtab->on_ws_frame(listener, transport, frame, 1)
    """
    size_t PF_FRAME_SLOT
    object pf_call_frame_slot(WSListener listener, WSTransport transport, WSFrame frame)

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    object PyObject_Vectorcall(object function, PyObject **args, size_t nargsf, PyObject *kwnames)
    void *PyVectorcall_Function(object function)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

#: Log level below DEBUG for events of the data path.
PICOWS_DEBUG_LL = 9

cdef enum:
    CONNECTING = 0      # WSState's values
    OPEN = 1
    CLOSING = 2
    CLOSED = 3

cdef enum:
    # Frames are put together in a buffer before they are sent. All connections of an event loop share one, as
    # nothing remains in it; loops in other threads have their own, since encrypting releases the GIL.
    SCRATCH_SIZE = 256 * 1024
    # Unmasked payloads above this go out from where they are: by then a copy costs more than a second vector.
    COPY_LIMIT = 16 * 1024

cdef object _scratch_buffers = weakref.WeakKeyDictionary()

# A frame object that no callback kept serves the next batch of frames, of whatever connection.
cdef WSFrame _spare_frame = None

cdef dict _CAUSES = {
    StreamEnd.FIN: WSDisconnectCause.PEER_FIN,
    StreamEnd.RESET: WSDisconnectCause.PEER_RESET,
    StreamEnd.FAILED: WSDisconnectCause.NETWORK_ERROR,
    StreamEnd.TLS_CLOSE_NOTIFY: WSDisconnectCause.TLS_CLOSE_NOTIFY,
    StreamEnd.TLS_TRUNCATED: WSDisconnectCause.TLS_TRUNCATED,
    StreamEnd.TLS_FAILED: WSDisconnectCause.TLS_ERROR,
}

cdef tuple _STATES = tuple(WSState)

# Who shows it may make a WSTransport.
cdef object _maker = object()


# --- What users see of the closing handshake ---------------------------------------------------------

@cython.final
cdef class WSCloseInfo:
    """What one CLOSE frame said (RFC 6455 5.5.1).

    ``code`` is a :class:`WSCloseCode`, or an int for a code of the application's own (3000-4999);
    ``reason`` is a str, or None if there was none.
    """

    def __repr__(self):
        return f"WSCloseInfo(code={self.code!r}, reason={self.reason!r})"


@cython.final
cdef class WSCloseHandshake:
    """The closing handshake so far (RFC 6455 7.1.2).

    ``recv`` and ``sent`` are :class:`WSCloseInfo`, or None while that CLOSE has not happened;
    ``recv_then_sent`` is True if the peer began.
    """

    def __repr__(self):
        return f"WSCloseHandshake(recv={self.recv!r}, sent={self.sent!r}, recv_then_sent={self.recv_then_sent})"


cdef WSCloseInfo close_info(bytes payload):
    cdef WSCloseInfo info = WSCloseInfo.__new__(WSCloseInfo)
    cdef int code = 0
    if len(payload) >= 2:
        code = int.from_bytes(payload[:2], "big")
        if len(payload) > 2:
            info.reason = payload[2:].decode()
    try:
        info.code = CloseCode(code)
    except ValueError:
        info.code = code
    return info


cdef bytes close_payload_of(error):
    """What CLOSE says when this was raised: a WSProtocolError chooses it, if it is made as it should be."""
    if isinstance(error, WSProtocolError):
        try:
            if error.code != WSCloseCode.NO_INFO:
                return build_close_payload(error.code, error.close_reason)
        except Exception:
            pass        # a subclass with a mind of its own; the error itself is told as it is
    return build_close_payload(WSCloseCode.INTERNAL_ERROR, None)


cdef object as_runtime_error(error):
    """For a future, which takes no StopIteration; and who waits would take a CancelledError for one of its own."""
    wrapped = RuntimeError(f"the application's code raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


cdef int forget_frames(error) except -1:
    """A frame in a traceback keeps its callers' frames, one of which may be setting up this very connection."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    return 0


# --- Listener --------------------------------------------------------------------------------------

cdef class WSListener:
    """Base of what receives a connection's events. All methods are plain calls from the event loop.

    A method that raises ends the connection with close code 1011, or with what a raised
    :class:`WSProtocolError` says, unless ``disconnect_on_exception`` is off. Which methods are overridden is
    found out once, when the connection is made.
    """

    cpdef on_ws_connected(self, WSTransport transport):
        """The opening handshake is done; frames can be sent."""

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        """A frame has come: data, CLOSE, and the PINGs and PONGs that are not handled automatically.

        Fragments come one by one, as they are (RFC 6455 5.4).
        """

    cpdef on_ws_disconnected(self, WSTransport transport):
        """The connection is gone and everything it held is released. Comes once, if on_ws_connected came."""

    cpdef send_user_specific_ping(self, WSTransport transport):
        """Auto-ping is due. Sends a PING frame; override it to send what the peer understands as one."""
        if transport is None:
            raise TypeError("transport must be a WSTransport, got None")
        transport.send_ping()

    cpdef is_user_specific_pong(self, WSFrame frame):
        """Return whether this frame answers a ping. Asked only while an answer is expected.

        A frame that is one does not reach on_ws_frame. By default: any PONG.
        """
        if frame is None:
            raise TypeError("frame must be a WSFrame, got None")
        return frame.msg_type == WSMsgType.PONG

    cpdef pause_writing(self):
        """More bytes than ``write_high_watermark`` wait for the peer. Sending goes on working."""

    cpdef resume_writing(self):
        """No more than ``write_low_watermark`` bytes wait for the peer."""

    cdef int _unfinished_payload(self, WSTransport transport, int opcode, const uint8_t *data,
                                 Py_ssize_t size) except -1:
        return 0


# They are called by name, as the vtable does not have a `def` in a Cython class. on_ws_frame is where that costs:
# see how_to_call().
cdef object _BASE_ON_WS_FRAME = WSListener.__dict__["on_ws_frame"]
cdef object _BASE_IS_PONG = WSListener.__dict__["is_user_specific_pong"]
cdef object _BASE_PING = WSListener.__dict__["send_user_specific_ping"]


cdef object who_overrides(WSListener listener, str name, object base):
    """The class that overrides this method; the listener itself, if it does; else None."""
    if name in getattr(listener, "__dict__", ()):
        return listener
    for cls in type(listener).__mro__:
        found = cls.__dict__.get(name)
        if found is base:
            return None
        if found is not None:
            return cls
    return None


cdef inline void *slot_of(object vtable, size_t slot) except NULL:
    return (<void**> (<char*> PyCapsule_GetPointer(vtable, NULL) + slot))[0]


cdef ListenerCall how_to_call(WSListener listener, str name, object base, size_t slot) except *:
    who = who_overrides(listener, name, base)
    if who is None:
        return CALL_NOTHING
    own = None if who is listener else who.__dict__.get("__pyx_vtable__")
    if own is None:
        return CALL_PYTHON
    # A Cython class: only `cpdef` puts a method into the vtable, `def` does not.
    if slot_of(own, slot) == slot_of(who.__base__.__pyx_vtable__, slot):
        return CALL_PYTHON
    return CALL_VTABLE


cdef class _Outbox:

    cdef int may_write(self) except -1:
        return 0

    cdef int write_before(self) except -1:
        return 0

    cdef int ended(self) except -1:
        return 0


# --- Transport -------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class WSTransport(StreamHandler):
    """One WebSocket connection, as the application sees it.

    Made by ``ws_connect`` and ``ws_create_server``. Its methods belong to the event loop's thread and raise
    RuntimeError elsewhere. Sending after CLOSE, or when the connection is gone, does nothing.

    Read-only attributes, besides the properties:

    - ``request``, :class:`WSUpgradeRequest`, and ``response``, :class:`WSUpgradeResponse`: the opening handshake
    - ``subprotocol``: str, or None if none was negotiated (RFC 6455 1.9)
    - ``close_handshake``: :class:`WSCloseHandshake`, or None until the first CLOSE frame
    - ``disconnect_cause``: :class:`WSDisconnectCause`, or None while connected; ``disconnect_exception``: what went
      wrong, or None if nothing did
    - ``is_client_side``, ``is_secure``, ``is_close_frame_sent``, ``is_disconnected``: bool
    - ``underlying_transport``: what carries the bytes, with ``get_extra_info()`` and the rest of what can be read of
      an :class:`asyncio.Transport`
    """

    # Not in __init__, which __new__() and copying do without: the methods take every field to be set.
    def __cinit__(self, *arguments):
        if len(arguments) != 1 or arguments[0] is not _maker:
            raise TypeError("WSTransport objects are made by ws_connect and ws_create_server")

    @property
    def state(self):
        """WSState: connecting, open, closing or closed."""
        return _STATES[self.state_code]

    @property
    def listener(self):
        """WSListener: who gets this connection's events; None before and after."""
        return self.ws_listener

    @property
    def ssl_session(self):
        """ssl.SSLSession: to give to ``ws_connect(ssl_session=...)``; None without TLS.

        With TLS 1.3 it comes after the handshake, usually with the first data.
        """
        tls = None if self.stream is None else self.stream.get_extra_info("ssl_object")
        return None if tls is None else tls.session

    @property
    def write_backlog(self):
        """int: bytes that were sent by the application and not yet taken by the operating system."""
        return 0 if self.stream is None else self.stream.backlog_size()

    @property
    def is_reading_paused(self):
        """bool: whether pause_reading() is in effect."""
        return self.stream is not None and self.stream.reading_paused

    def stats(self):
        """Return what was counted so far, and what is now, as :class:`TransportStats`; also after the end."""
        cdef double difference = time.time() - pf_monotonic()   # of the clocks
        last_received = self.stream.last_received()
        if last_received is None and self.timed:
            last_received = self.last_received
        return TransportStats(
            received=traffic_stats(self.traffic.received),
            sent=traffic_stats(self.traffic.sent),
            messages_joined=self.messages_joined,
            backlog_bytes=self.write_backlog,
            backlog_highest_bytes=self.backlog_highest,
            reading_pauses=self.reading_pauses,
            writing_pauses=self.writing_pauses,
            pings_sent=self.pings_sent,
            round_trip_ns=None if self.round_trip < 0 else int(self.round_trip * 1e9),
            round_trip_smoothed_ns=None if self.round_trip < 0 else int(self.smoothed_round_trip * 1e9),
            connected_at_ns=None if self.parser is None else int((difference + self.connected_at) * 1e9),
            last_received_at_ns=None if last_received is None else int((difference + last_received) * 1e9),
        )

    def __repr__(self):
        side = "client" if self.is_client_side else "server"
        return f"<WSTransport {side} {_STATES[self.state_code].name.lower()} at {id(self):#x}>"

    cdef int _check_thread(self, str method) except -1:
        if PyThread_get_thread_ident() != self.thread_id:
            raise RuntimeError(
                f"{method}() must be called from the event loop's thread; use loop.call_soon_threadsafe()"
            )
        return 0

    # --- Sending

    cpdef send(self, WSMsgType msg_type, message, bint fin=True, bint rsv1=False, bint rsv2=False, bint rsv3=False):
        """Send one frame (RFC 6455 5.2, 6.1).

        :param msg_type: a :class:`WSMsgType`
        :param message: payload: str (sent as UTF-8), bytes-like or None; it may be reused at once
        :param fin: False if fragments of the same message follow
        :param rsv1: reserved bit, for extensions; likewise rsv2, rsv3
        :raises ValueError: reserved opcode; a control frame that is fragmented or above 125 bytes; a bad close code
        :raises TypeError: message is neither str, bytes-like nor None
        :raises RuntimeError: called from another thread
        """
        cdef Py_buffer view
        cdef const char *text
        cdef Py_ssize_t size = 0
        cdef unsigned int rsv = (4 if rsv1 else 0) | (2 if rsv2 else 0) | (1 if rsv3 else 0)
        self._check_thread("send")
        if isinstance(message, bytes):
            self._send_frame(msg_type, <const uint8_t*> PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), fin, rsv)
        elif isinstance(message, str):
            text = PyUnicode_AsUTF8AndSize(message, &size)
            self._send_frame(msg_type, <const uint8_t*> text, size, fin, rsv)
        elif message is None:
            self._send_frame(msg_type, NULL, 0, fin, rsv)
        else:
            PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
            try:
                self._send_frame(msg_type, <const uint8_t*> view.buf, view.len, fin, rsv)
            finally:
                PyBuffer_Release(&view)

    cpdef send_reuse_external_bytearray(self, WSMsgType msg_type, bytearray buffer, Py_ssize_t msg_offset,
                                        bint fin=True, bint rsv1=False, bint rsv2=False, bint rsv3=False):
        """Send ``buffer[msg_offset:]`` as one frame, using the 14 bytes before it for the frame's header.

        What those bytes hold afterwards is undefined; the payload is unchanged, and free for reuse.

        :param msg_offset: bytes; at least 14
        :raises ValueError: msg_offset is below 14 or behind the end, or as for :meth:`send`
        """
        cdef Py_buffer view
        if buffer is None:
            raise TypeError("buffer must be a bytearray, got None")
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)     # it must not be resized meanwhile
        try:
            if not MAX_HEADER_SIZE <= msg_offset <= view.len:
                raise ValueError(f"msg_offset must be in {MAX_HEADER_SIZE}..{view.len}, got {msg_offset}")
            self.send_reuse_external_buffer(
                msg_type, <char*> view.buf + msg_offset, view.len - msg_offset, fin, rsv1, rsv2, rsv3
            )
        finally:
            PyBuffer_Release(&view)

    cdef int send_reuse_external_buffer(self, WSMsgType msg_type, char* buffer, Py_ssize_t size, bint fin=True,
                                        bint rsv1=False, bint rsv2=False, bint rsv3=False) except -1:
        cdef unsigned int rsv = (4 if rsv1 else 0) | (2 if rsv2 else 0) | (1 if rsv3 else 0)
        cdef Py_ssize_t header_size
        cdef uint8_t[MAX_HEADER_SIZE] header
        self._check_thread("send_reuse_external_buffer")
        if self.is_client_side or msg_type == WSMsgType.CLOSE or size <= COPY_LIMIT // 16:
            # Masking makes a copy anyway, and leaves the caller's bytes as they are.
            return self._send_frame(msg_type, <const uint8_t*> buffer, size, fin, rsv)
        check_frame(msg_type, fin, size)
        if not self._can_send():
            return 0
        if msg_type < WSMsgType.CLOSE and (self.outbox is not None or self.in_message == fin):
            self._sending_data(fin)
        header_size = <Py_ssize_t> pf_write_frame_header(header, <unsigned int> msg_type, fin, rsv, <size_t> size, NULL)
        memcpy(buffer - header_size, header, <size_t> header_size)
        self._count_sent(msg_type, size)
        self.stream.write(<const uint8_t*> buffer - header_size, header_size + size, NULL, 0)
        if self.outbox is not None and not self.in_message:
            self.outbox.may_write()
        return self._check_backlog()

    cdef int _send_frame(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                         unsigned int rsv) except -1:
        cdef uint8_t[MAX_HEADER_SIZE] header
        cdef Py_ssize_t header_size
        if msg_type != WSMsgType.TEXT and msg_type != WSMsgType.BINARY:
            check_frame(msg_type, fin, size)
            if msg_type == WSMsgType.CLOSE:
                return self._send_close_payload(PyBytes_FromStringAndSize(<const char*> payload, size))
        if not self._can_send():
            return 0
        if msg_type < WSMsgType.CLOSE and (self.outbox is not None or self.in_message == fin):
            self._sending_data(fin)
        if self.trace:
            self.logger.log(PICOWS_DEBUG_LL, "%r: sending %s, %d bytes", self, MsgType(msg_type).name, size)
        self._count_sent(msg_type, size)
        if size <= (SCRATCH_SIZE if self.is_client_side else COPY_LIMIT):
            size = write_frame(self.scratch, <unsigned int> msg_type, fin, rsv, payload, size, self.is_client_side)
            self.stream.write(self.scratch, size, NULL, 0)
        elif self.is_client_side:
            self._send_large_masked(msg_type, payload, size, fin, rsv)
        else:
            header_size = <Py_ssize_t> pf_write_frame_header(
                header, <unsigned int> msg_type, fin, rsv, <size_t> size, NULL
            )
            self.stream.write(header, header_size, payload, size)
        if self.outbox is not None and not self.in_message:
            self.outbox.may_write()
        return self._check_backlog()

    cdef int _count_sent(self, int msg_type, Py_ssize_t size) noexcept:
        count_frame(&self.traffic.sent[msg_type], size)
        if self.shared_traffic != NULL:
            count_frame(&self.shared_traffic.sent[msg_type], size)
        return 0

    cdef bint _can_send(self) noexcept:
        return not (self.state_code == CONNECTING or self.is_close_frame_sent or self.stream.closing)

    cdef int _sending_data(self, bint fin) except -1:
        """The application sends a data frame: no frame of an outbox may come between fragments (RFC 6455 5.4)."""
        if self.outbox is not None and not self.in_message:
            self.outbox.write_before()
        self.in_message = not fin
        return 0

    cdef int _end_outbox(self) except -1:
        cdef _Outbox outbox = self.outbox
        if outbox is not None:
            self.outbox = None
            outbox.ended()
        return 0

    cdef int _send_large_masked(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                                unsigned int rsv) except -1:
        # In pieces that stay in the cache, rather than a copy of the whole.
        cdef uint8_t[4] key
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t piece
        cdef Py_ssize_t header_size
        new_mask_key(key)
        header_size = <Py_ssize_t> pf_write_frame_header(
            self.scratch, <unsigned int> msg_type, fin, rsv, <size_t> size, key
        )
        while done < size:
            piece = min(size - done, <Py_ssize_t> SCRATCH_SIZE)
            pf_mask(self.scratch + header_size, payload + done, <size_t> piece, key, <size_t> done)
            self.stream.write(self.scratch, header_size + piece, NULL, 0)
            done += piece
            header_size = 0
        return 0

    cdef int _check_backlog(self) except -1:
        """A whole frame was written: does the peer keep up?"""
        cdef Py_ssize_t size = self.stream.backlog_size()
        if size == 0 or self.stream.closing:
            return 0
        self.backlog_highest = max(self.backlog_highest, size)
        if 0 <= self.max_backlog < size:
            self._set_cause(WSDisconnectCause.WRITE_BACKLOG, None)
            self.receiving = False
            self.stream.abort()
            self.logger.warning(
                "%r: %d bytes waited for a peer that does not read; max_write_backlog is %d",
                self, size, self.max_backlog,
            )
            return 0
        return self.stream.check_high_watermark()

    cpdef send_ping(self, message=None):
        """Send a PING frame (RFC 6455 5.5.2).

        :param message: str, bytes-like or None; at most 125 bytes
        :raises ValueError: message is too long
        """
        self.send(WSMsgType.PING, message)

    cpdef send_pong(self, message=None):
        """Send a PONG frame (RFC 6455 5.5.3).

        :param message: str, bytes-like or None; at most 125 bytes
        :raises ValueError: message is too long
        """
        self.send(WSMsgType.PONG, message)

    cpdef send_close(self, close_code=WSCloseCode.NO_INFO, close_message=None):
        """Send a CLOSE frame (RFC 6455 5.5.1, 7.1.2): nothing more can be sent.

        The peer has ``close_timeout`` seconds to finish; what it sends until its own CLOSE is dropped.

        :param close_code: :class:`WSCloseCode` or int in 3000..4999; NO_INFO or None sends none
        :param close_message: reason: str, UTF-8 bytes-like or None; at most 123 bytes
        :raises ValueError: a code that must not be sent, or a bad reason
        :raises RuntimeError: called from another thread
        """
        self._check_thread("send_close")
        self._send_close_payload(build_close_payload(0 if close_code is None else close_code, close_message))

    cdef int _send_close_payload(self, bytes payload) except -1:
        cdef Py_ssize_t size
        if len(payload) == 1:
            raise ValueError("the payload of CLOSE is empty or starts with a code of two bytes (RFC 6455 5.5.1)")
        if payload and build_close_payload((payload[0] << 8) | payload[1], payload[2:]) != payload:
            raise ValueError("close code 0 must not be sent (RFC 6455 7.4)")
        if not self._can_send():
            return 0
        if self.outbox is not None:
            self.outbox.write_before()
            self._end_outbox()
            if not self._can_send():
                return 0
        if self.trace:
            self.logger.log(PICOWS_DEBUG_LL, "%r: sending CLOSE, %d bytes", self, len(payload))
        size = write_frame(
            self.scratch, WSMsgType.CLOSE, True, 0, <const uint8_t*> PyBytes_AS_STRING(payload), len(payload),
            self.is_client_side,
        )
        self._count_sent(WSMsgType.CLOSE, len(payload))
        self.stream.write(self.scratch, size, NULL, 0)
        self.is_close_frame_sent = True
        self.held_pong = None
        if self.close_handshake is None:
            self.close_handshake = WSCloseHandshake.__new__(WSCloseHandshake)
        self.close_handshake.sent = close_info(payload)
        self.close_handshake.recv_then_sent = self.close_handshake.recv is not None
        if self.close_handshake.recv_then_sent:
            return self._after_close_received()
        self._arm_closing()
        if self.stream.reading_paused:
            # The peer's CLOSE may be behind data, all of which is dropped now.
            self.receiving = True
            self.stream.resume_reading()
        return 0

    cpdef cork(self):
        """Hold back what is sent from now on, until :meth:`uncork`: it leaves in one system call. Calls nest."""
        self._check_thread("cork")
        if self.stream is not None and not self.stream.closing:
            self.stream.cork()

    cpdef uncork(self):
        """Send what was held back since :meth:`cork`."""
        self._check_thread("uncork")
        if self.stream is not None:
            self.stream.uncork()
            if self.outbox is not None:
                self.outbox.may_write()

    # --- Flow control and the end, as asked for

    cpdef pause_reading(self):
        """Stop receiving: no frame is given out until :meth:`resume_reading`, and TCP slows the peer down.

        The peer's PONGs and CLOSE are not seen either, so auto-ping holds back.
        """
        self._check_thread("pause_reading")
        if self.state_code == OPEN and not self.stream.reading_paused:
            self.stream.pause_reading()
            self.receiving = False
            self.reading_pauses += 1

    cpdef resume_reading(self):
        """Receive again; frames that had arrived already come first."""
        self._check_thread("resume_reading")
        if self.stream is not None and self.stream.reading_paused and not self.stream.closing:
            self.receiving = True
            if self.timed:
                self.last_received = pf_monotonic()
                self.auto_ping.resumed(self.last_received)
            self.stream.resume_reading()

    cpdef disconnect(self, bint graceful=True):
        """End the connection without a closing handshake; send CLOSE first to have one. No frame comes any more.

        :param graceful: send what waits, then end the stream in order, within ``close_timeout`` seconds;
            else drop everything at once
        :raises RuntimeError: called from another thread
        """
        self._check_thread("disconnect")
        if self.state_code == CLOSED or self.stream is None:
            return
        self.receiving = False
        if graceful and self.state_code != CONNECTING:
            self._set_cause(WSDisconnectCause.LOCAL_DISCONNECT, None)
            self._close_stream()
        else:
            self._set_cause(WSDisconnectCause.LOCAL_ABORT, None)
            self.stream.abort()

    async def wait_disconnected(self):
        """Wait until the connection is gone and ``on_ws_disconnected`` has returned.

        May be cancelled, and called any number of times.

        :raises BaseException: client side: what a listener's method raised first, unless
            ``disconnect_on_exception`` is off
        :raises WSPeerProtocolError: client side: the peer violated the protocol
        """
        if self.disconnected_future is None:
            if self.state_code == CLOSED:
                return
            self.disconnected_future = self.loop.create_future()
        await asyncio.shield(self.disconnected_future)

    # --- Opening handshake

    def _connect(self):
        """Client: send the request; return the future of the listener."""
        self.connected_future = self.loop.create_future()
        self.stream.start()
        self._send_http(self.handshake.request_bytes())
        return self.connected_future

    def _serve(self):
        """Server: await a request."""
        if self.options.websocket_handshake_timeout is not None:
            self._arm(self.options.websocket_handshake_timeout)
        self.stream.start()

    cdef Py_ssize_t _handshake_data(self, uint8_t *data, Py_ssize_t size) except -1:
        handshake = self.handshake
        try:
            message = handshake.receive_data(PyBytes_FromStringAndSize(<char*> data, size))
            if message is None:
                return size
            if self.is_client_side:
                self._upgraded(
                    self.listener_factory(handshake.request, message), handshake.request, message
                )
            else:
                self._serve_request(message)
        except BaseException as error:
            if self.state_code != CONNECTING:
                raise       # on_ws_connected's, or the log's; the connection is ended
            self._refuse(error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise
        if self.state_code == CONNECTING or self.stream.closing:
            return size
        return size - <Py_ssize_t> len(handshake.trailing_data)

    cdef int _serve_request(self, request) except -1:
        self.request = request
        listener = self.listener_factory(request)
        response = None
        if listener is None:
            response = WSUpgradeResponse.create_error_response(404)
        elif isinstance(listener, WSUpgradeResponseWithListener):
            response = listener.response
            listener = listener.listener
        elif isinstance(listener, WSUpgradeResponse) and listener.status != 101:
            response = listener
        if response is not None and response.status != 101:
            self._send_http(self.handshake.finish(response))
            if self.server is not None:
                self.server.connection_answered(self, response.status)
            self._set_cause(WSDisconnectCause.HANDSHAKE_FAILED, None)
            return self._close_stream()
        if not isinstance(listener, WSListener):
            raise TypeError(
                "ws_listener_factory must return a WSListener, a WSUpgradeResponse or None, "
                f"got {type(listener).__name__}"
            )
        return self._upgraded(listener, request, self.handshake.accept(response))

    cdef int _send_http(self, message) except -1:
        cdef bytes head = message if isinstance(message, bytes) else encode_response(message)
        self.stream.write(<const uint8_t*> PyBytes_AS_STRING(head), len(head), NULL, 0)
        return 0

    cdef int _upgraded(self, listener, request, response) except -1:
        """The opening handshake succeeded: find out what the listener overrides, and tell it."""
        if not isinstance(listener, WSListener):
            raise TypeError(f"ws_listener_factory must return a WSListener, got {type(listener).__name__}")
        options = self.options
        self.request = request
        self.response = response
        self.subprotocol = self.handshake.subprotocol
        self.parser = FrameParser(
            is_client=self.is_client_side, max_frame_size=options.max_frame_size,
            validate_sequence=options.validate_sequence,
            # An extension may use any of the bits; which one does is beyond a frame-level API.
            allowed_rsv=7 if "Sec-WebSocket-Extensions" in response.headers else 0,
        )
        self.frame_call = how_to_call(listener, "on_ws_frame", _BASE_ON_WS_FRAME, PF_FRAME_SLOT)
        if self.frame_call == CALL_PYTHON:
            method = listener.on_ws_frame
            if type(method) is MethodType and type(method.__func__) is FunctionType and method.__self__ is listener:
                # The method object between us and the function costs a fifth of the call.
                method = method.__func__
                self.frame_function = <Vectorcall> PyVectorcall_Function(method)
                self.frame_call = CALL_FUNCTION
            self.frame_method = method
        self.unfinished_shown = 0 if (<WSListener> listener).watches_unfinished else -1
        self.asks_pong = who_overrides(listener, "is_user_specific_pong", _BASE_IS_PONG) is not None
        self.trace = self.logger.isEnabledFor(PICOWS_DEBUG_LL)
        # Nothing above has told anybody yet, and so it can still be refused.
        if not self.is_client_side:
            self._send_http(response)
        self._disarm()
        self.ws_listener = listener
        self.handshake = None
        self.listener_factory = None
        self.state_code = OPEN
        self.receiving = True
        self.stream.coalescing = options.coalesce_writes
        self.connected_at = self.last_received = pf_monotonic()
        if options.enable_auto_ping:
            self.timed = True
            self.auto_ping = AutoPing(
                int(options.auto_ping_strategy), options.auto_ping_idle_timeout, options.auto_ping_reply_timeout,
                self.last_received,
            )
            self._arm(self.auto_ping.deadline - self.last_received)
        if self.server is not None:
            self.server.connection_opened(self)
        try:
            (<object> self.ws_listener).on_ws_connected(self)
            if self.logger.isEnabledFor(logging.DEBUG):
                self.logger.debug("%r: open, %s", self, request.path)
        except BaseException as error:
            self._callback_failed(error, "on_ws_connected")
        if self.connected_future is not None and not self.connected_future.done():
            self.connected_future.set_result(listener)
        # It refers to the listener, which usually refers to this object.
        self.connected_future = None
        return 0

    cdef int _refuse(self, error) except -1:
        """The opening handshake failed on what the peer sent, or on the factory."""
        if self.is_client_side:
            return self._handshake_failed(WSDisconnectCause.HANDSHAKE_FAILED, error)
        if self.stream.closing:
            return 0
        refusal = self.handshake.reject(error)
        self._send_http(refusal)
        self._set_cause(WSDisconnectCause.HANDSHAKE_FAILED, error)
        self._close_stream()
        if self.server is not None:
            self.server.connection_refused(self, refusal.status, error)
        if refusal.status == 500:
            # Its text is for the operator, not for the peer.
            self.logger.error("%r: ws_listener_factory failed", self, exc_info=error)
        else:
            self.logger.info("%r: refused: %s", self, error)
        return 0

    cdef int _handshake_failed(self, cause, error) except -1:
        self._set_cause(cause, error)
        # KeyboardInterrupt and SystemExit are raised to the event loop; a task that was given them would raise them
        # again.
        if (self.connected_future is not None and not self.connected_future.done()
                and not isinstance(error, (KeyboardInterrupt, SystemExit))):
            if isinstance(error, (StopIteration, asyncio.CancelledError)):
                error = as_runtime_error(error)
            self.connected_future.set_exception(error)
        self.stream.abort()
        return 0

    # --- Frames in

    cdef Py_ssize_t stream_data(self, uint8_t *data, Py_ssize_t size, object owner) except -1:
        cdef Py_ssize_t used
        if self.state_code != CONNECTING:
            return self._frames(data, size, owner)
        used = self._handshake_data(data, size)
        if used < size:
            used += self._frames(data + used, size - used, owner)
        return used

    cdef Py_ssize_t stream_wanted(self) noexcept:
        return 0 if self.parser is None else self.parser.wanted

    cdef Py_ssize_t _frames(self, uint8_t *data, Py_ssize_t size, object owner) except -1:
        """Give out the frames in these bytes; return how many bytes were used."""
        global _spare_frame
        cdef FrameParser parser = self.parser
        cdef WSFrame frame = _spare_frame
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t taken
        if parser.close_received:
            return size     # nothing behind a CLOSE counts (RFC 6455 5.5.1)
        if self.timed:
            self.last_received = pf_monotonic()
        _spare_frame = None
        if frame is None:
            frame = new_frame()
        frame._owner = owner
        frame.recv_timestamp_ns = self.stream.arrived
        frame.recv_hardware_timestamp_ns = self.stream.arrived_by_hardware
        if self.receiving:
            parser.start(data, size)
        while self.receiving and parser.look == PF_FRAME_OK:
            try:
                while self.receiving and parser.look == PF_FRAME_OK:
                    if Py_REFCNT(frame) != 1:
                        # A callback kept it. (One that raised after keeping it, too.)
                        frame._keep()
                        frame = new_frame()
                        frame._owner = owner
                        frame.recv_timestamp_ns = self.stream.arrived
                        frame.recv_hardware_timestamp_ns = self.stream.arrived_by_hardware
                    taken = parser.take(data + used, size - used, frame)
                    if taken < 0:
                        break
                    used += taken
                    self._on_frame(frame)
            except BaseException as error:
                self._callback_failed(error, "on_ws_frame")
        if Py_REFCNT(frame) == 1:
            frame._owner = None
            _spare_frame = frame
        else:
            frame._keep()
        if self.stream.closing:
            return size
        if parser.close_received:
            self._after_close_received()
            return size
        if parser.look < 0 and self.receiving:
            self._peer_failed(peer_error(parser.look))
            return size
        if self.unfinished_shown >= 0 and self.receiving:
            if used:
                self.unfinished_shown = 0
            self._show_unfinished(data + used, size - used)
        return used

    cdef int _on_frame(self, WSFrame frame) except -1:
        count_frame(&self.traffic.received[<int> frame.msg_type], frame.payload_size)
        if self.shared_traffic != NULL:
            count_frame(&self.shared_traffic.received[<int> frame.msg_type], frame.payload_size)
        if frame.msg_type == WSMsgType.CLOSE:
            return self._on_close_frame(frame)
        if self.is_close_frame_sent:
            return 0        # only the peer's CLOSE is awaited
        if self.pong_expected and self._is_pong(frame) and self._is_awaited(frame):
            return self._on_pong(frame)
        if frame.msg_type == WSMsgType.PING and self.options.enable_auto_pong:
            return self._answer_ping(frame)
        return self._deliver(frame)

    cdef int _deliver(self, WSFrame frame) except -1:
        cdef PyObject *args[3]
        if self.trace:
            self.logger.log(PICOWS_DEBUG_LL, "%r: received %r", self, frame)
        if self.frame_call == CALL_VTABLE:
            pf_call_frame_slot(self.ws_listener, self, frame)
        elif self.frame_call != CALL_NOTHING:
            args[0] = <PyObject*> self.ws_listener
            args[1] = <PyObject*> self
            args[2] = <PyObject*> frame
            if self.frame_call == CALL_FUNCTION:
                self.frame_function(<PyObject*> self.frame_method, args, 3, NULL)
            else:
                PyObject_Vectorcall(self.frame_method, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
        return 0

    cdef int _show_unfinished(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Show the listener what it has not seen yet of the data frame that begins here."""
        cdef FrameParser parser = self.parser
        cdef const uint8_t *payload
        cdef Py_ssize_t piece
        if parser.wanted == 0 or parser.opcode >= WSMsgType.CLOSE or parser.rsv or self.is_close_frame_sent:
            return 0
        size -= parser.header_size
        try:
            while self.unfinished_shown < size:
                piece = size - self.unfinished_shown
                payload = data + parser.header_size + self.unfinished_shown
                if parser.masked:
                    # A copy is unmasked: the parser unmasks the whole in place when it is there.
                    piece = min(piece, <Py_ssize_t> SCRATCH_SIZE)
                    pf_mask(self.scratch, payload, <size_t> piece, parser.mask_key, <size_t> self.unfinished_shown)
                    payload = self.scratch
                self.unfinished_shown += piece
                self.ws_listener._unfinished_payload(self, <int> parser.opcode, payload, piece)
        except BaseException as error:
            self._callback_failed(error, "on_ws_frame")
        return 0

    cdef int _answer_ping(self, WSFrame frame) except -1:
        # A peer that floods PINGs and does not read gets the newest answer only (RFC 6455 5.5.3).
        if self.stream.writing_paused:
            self.held_pong = frame.get_payload_as_bytes()
        else:
            self._send_frame(WSMsgType.PONG, <const uint8_t*> frame.payload_ptr, frame.payload_size, True, 0)
        return 0

    cdef int _on_close_frame(self, WSFrame frame) except -1:
        if self.close_handshake is None:
            self.close_handshake = WSCloseHandshake.__new__(WSCloseHandshake)
        self.close_handshake.recv = close_info(frame.get_payload_as_bytes())
        self._set_cause(WSDisconnectCause.CLOSE_FRAME, None)
        self.state_code = CLOSING
        return self._deliver(frame)

    cdef int _after_close_received(self) except -1:
        """The peer's CLOSE was given out: do what is left of the closing handshake."""
        cdef bytes answer
        if self.stream.closing:
            return 0
        if not self.is_close_frame_sent:
            if not self.options.enable_auto_close:
                return self._arm_closing()      # the application has until then to answer
            code = self.close_handshake.recv.code
            answer = build_close_payload(code, None)
            return self._send_close_payload(answer)
        if self.is_client_side:
            # The server ends the TCP connection first (RFC 6455 7.1.1).
            return self._arm_closing()
        return self._close_stream()

    # --- Auto-ping and round-trip time

    cdef bint _is_pong(self, WSFrame frame) except -1:
        if not self.asks_pong:
            return frame.msg_type == WSMsgType.PONG
        return bool((<object> self.ws_listener).is_user_specific_pong(frame))

    cdef bint _is_awaited(self, WSFrame frame) except -1:
        """Whether this pong is for us: the application may have pinged, too."""
        if self.auto_ping is not None and self.auto_ping.awaiting_pong:
            return True
        return self.round_trips is not None and self.round_trips.is_awaited(frame.get_payload_as_bytes())

    cdef int _on_pong(self, WSFrame frame) except -1:
        cdef bytes payload = frame.get_payload_as_bytes() if frame is not None else b""
        cdef double now = pf_monotonic()
        if self.auto_ping is not None:
            self.auto_ping.pong_received(now)
            if not self.stream.closing and self.state_code == OPEN:
                self._arm(self.auto_ping.deadline - now)
        if self.round_trips is not None and self.round_trips.pong_received(payload):
            self._took(now - self.measuring_ping_sent)
            if self.pong_waiter is not None and not self.pong_waiter.done():
                self.pong_waiter.set_result(now)
        elif self.auto_ping_sent:
            self._took(now - self.auto_ping_sent)
        self.auto_ping_sent = 0
        return self._update_pong_expected()

    cdef int _took(self, double seconds) noexcept:
        """A ping was answered."""
        if self.round_trip < 0:
            self.smoothed_round_trip = seconds
        else:
            self.smoothed_round_trip += (seconds - self.smoothed_round_trip) / 8     # RFC 6298 2.3
        self.round_trip = seconds
        return 0

    cdef int _update_pong_expected(self) except -1:
        self.pong_expected = (
            (self.auto_ping is not None and self.auto_ping.awaiting_pong)
            or (self.round_trips is not None and self.round_trips.outstanding)
        )
        return 0

    cpdef notify_user_specific_pong_received(self):
        """Tell auto-ping that a pong has come, from on_ws_frame: for pongs that only parsing can tell.

        ``is_user_specific_pong`` then returns False always. Does nothing if no pong is expected.
        """
        self._check_thread("notify_user_specific_pong_received")
        if self.pong_expected:
            self._on_pong(None)

    cdef object _ping(self):
        """Returns what the listener raised, None if nothing."""
        self.pings_sent += 1
        try:
            (<object> self.ws_listener).send_user_specific_ping(self)
        except BaseException as error:
            self._callback_failed(error, "send_user_specific_ping")
            return error
        return None

    async def measure_roundtrip_time(self, rounds):
        """Ping the peer and return how long each pong took (RFC 6455 5.5.2).

        May be cancelled, and called while another measurement runs: it waits for that one. Auto-ping does not ping
        meanwhile, but goes on watching for a dead peer.

        :param rounds: how many
        :returns: list of float, seconds
        :raises ValueError: rounds is negative
        :raises TypeError: rounds is not an int
        :raises WSConnectionClosedError: the connection ended, or is ending
        :raises BaseException: what ``send_user_specific_ping`` raised
        """
        self._check_thread("measure_roundtrip_time")
        rounds = operator.index(rounds)
        if rounds < 0:
            raise ValueError(f"rounds must not be negative, got {rounds}")
        if self.measure_lock is None:
            self.measure_lock = asyncio.Lock()
        times = []
        async with self.measure_lock:
            for _ in range(rounds):
                times.append(await self._measure_once())
        return times

    async def _measure_once(self):
        if self.state_code != OPEN or self.is_close_frame_sent:
            raise WSConnectionClosedError(cause=self.disconnect_cause)
        numbered = not self.asks_pong and (
            who_overrides(self.ws_listener, "send_user_specific_ping", _BASE_PING) is None
        )
        if self.round_trips is None:
            self.round_trips = RoundTrips(numbered)
        if (not numbered and not self.round_trips.outstanding
                and self.auto_ping is not None and self.auto_ping.awaiting_pong):
            self.round_trips.next_payload()     # the answer to auto-ping's comes first
        started = self.measuring_ping_sent = pf_monotonic()
        if not numbered:
            error = self._ping()
            if error is not None:
                raise error
        waiter = self.pong_waiter = self.loop.create_future()
        payload = self.round_trips.next_payload()
        if self.auto_ping is not None:
            self.auto_ping.ping_sent(started)
            self._arm(self.auto_ping.deadline - started)
        self._update_pong_expected()
        if numbered:
            self.pings_sent += 1
            self.send_ping(payload)
        try:
            return await waiter - started
        finally:
            if self.pong_waiter is waiter:
                self.pong_waiter = None

    # --- Deadlines: one timer handle, for what the state says

    cdef int _arm(self, double delay) except -1:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(max(delay, 0.0), self._on_timer)
        return 0

    cdef int _disarm(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    cdef int _arm_closing(self) except -1:
        """Enter CLOSING; its deadline runs from the first reason to enter it."""
        if not self.closing_armed:
            self.closing_armed = True
            self.state_code = CLOSING
            self._arm(self.options.close_timeout)
        return 0

    def _on_timer(self):
        self.timer = None
        if self.state_code == OPEN:
            self._on_ping_timer()
        elif self.state_code == CONNECTING:
            self._on_handshake_timeout()
        elif self.state_code == CLOSING:
            self._set_cause(WSDisconnectCause.CLOSE_TIMEOUT, None)
            self.receiving = False
            self.stream.abort()

    cdef int _on_ping_timer(self) except -1:
        cdef double now = pf_monotonic()
        if self.stream.reading_paused:
            # Nothing can arrive, so silence says nothing about the peer.
            self.auto_ping.resumed(now)
            return self._arm(self.auto_ping.deadline - now)
        action = self.auto_ping.on_timer(now, self.last_received)
        if action == PingAction.DEAD:
            self._fail(WSDisconnectCause.PING_TIMEOUT, build_close_payload(WSCloseCode.GOING_AWAY, b"no pong"), None)
            self.logger.info("%r: no pong within %s s", self, self.options.auto_ping_reply_timeout)
            return 0
        if action == PingAction.PING:
            # Of several that are awaited, no answer tells which it is for.
            if self.pong_waiter is None:
                self.auto_ping_sent = 0 if self.auto_ping.awaiting_pong else now
            self.auto_ping.ping_sent(now)
            self._update_pong_expected()
            if self.pong_waiter is None:
                self._ping()
        if self.state_code == OPEN:
            self._arm(self.auto_ping.deadline - now)
        return 0

    cdef int _on_handshake_timeout(self) except -1:
        self._set_cause(WSDisconnectCause.HANDSHAKE_TIMEOUT, None)
        return self._refuse(TimeoutError("the opening handshake was not finished in time"))

    # --- The end: first what is to be done, then what is to be logged, which may run anybody's code and raise

    cdef int _set_cause(self, cause, error) except -1:
        if self.disconnect_cause is None:
            self.disconnect_cause = cause
            self.disconnect_exception = error
        return 0

    cdef int _callback_failed(self, error, str method) except -1:
        """A listener's method raised."""
        cdef bint fatal, ends, told
        if isinstance(error, WSPeerProtocolError):
            return self._peer_failed(error)     # found by a listener, and the peer's doing all the same
        fatal = not isinstance(error, Exception)
        ends = self.options.disconnect_on_exception or fatal or method == "on_ws_connected"
        told = ends and self.is_client_side and self.callback_error is None
        if told:
            self.callback_error = error     # for wait_disconnected(), whatever else ends the connection
        if ends:
            self._fail(WSDisconnectCause.CALLBACK_ERROR, close_payload_of(error), error)
        if not told:
            self.logger.error("%r: %s raised", self, method, exc_info=error)
        if fatal and not isinstance(error, asyncio.CancelledError):
            raise error     # KeyboardInterrupt and SystemExit are the event loop's business
        return 0

    cdef int _peer_failed(self, error) except -1:
        """The peer's frames break the protocol, whoever found it out."""
        self._fail(WSDisconnectCause.PROTOCOL_ERROR, close_payload_of(error), error)
        self.logger.info("%r: %s", self, error)
        return 0

    cdef int _fail(self, cause, bytes close_payload, error) except -1:
        """The one way in which a connection fails (RFC 6455 7.1.7): CLOSE, flush, FIN, deadline, abort."""
        self.receiving = False
        if self.state_code == CLOSED or self.stream.closing:
            return 0
        self._set_cause(cause, error)
        if not self.is_close_frame_sent:
            self._send_close_payload(close_payload)
        return self._close_stream()

    cdef int _close_stream(self) except -1:
        self._arm_closing()
        self.receiving = False
        if self.outbox is not None:
            self.outbox.write_before()
            self._end_outbox()
        self.stream.close()
        return 0

    cdef int stream_end(self, int end, object error) except -1:
        """The peer has ended the stream, in whatever way."""
        cause = _CAUSES[end]
        if self.state_code == CONNECTING:
            if error is None or end == StreamEnd.TLS_TRUNCATED:
                try:
                    self.handshake.receive_eof()
                except WSHandshakeError as eof_error:
                    error = eof_error
            forget_frames(error)
            if end == StreamEnd.TLS_FAILED:
                # The stream still has an alert to send.
                if self.connected_future is not None and not self.connected_future.done():
                    self.connected_future.set_exception(error)
                self._set_cause(cause, error)
                self._close_stream()
            else:
                self._handshake_failed(cause, error)
            if not self.is_client_side:
                self.logger.info("%r: opening handshake not finished: %s", self, error)
            return 0
        self._set_cause(cause, error)
        return self._close_stream()

    cdef int stream_pause_writing(self) except -1:
        self.writing_pauses += 1
        if self.ws_listener is not None and self.state_code != CLOSED:
            try:
                (<object> self.ws_listener).pause_writing()
            except BaseException as error:
                self._callback_failed(error, "pause_writing")
        return 0

    cdef int stream_resume_writing(self) except -1:
        cdef bytes pong = self.held_pong
        if pong is not None:
            self.held_pong = None
            self._send_frame(WSMsgType.PONG, <const uint8_t*> PyBytes_AS_STRING(pong), len(pong), True, 0)
        if self.ws_listener is not None and self.state_code != CLOSED:
            try:
                (<object> self.ws_listener).resume_writing()
            except BaseException as error:
                self._callback_failed(error, "resume_writing")
        return 0

    cdef int stream_drained(self) except -1:
        return 0 if self.outbox is None else self.outbox.may_write()

    cdef int stream_closed(self) except -1:
        """Everything the stream held is released. Comes once."""
        cdef WSListener listener = self.ws_listener
        self._disarm()
        self.receiving = False
        self.state_code = CLOSED
        self.is_disconnected = True
        self.handshake = self.listener_factory = self.frame_method = self.listener_state = None
        if self.disconnect_cause is None:
            self.disconnect_cause = WSDisconnectCause.LOCAL_ABORT
        self._end_outbox()
        try:
            if listener is not None:
                (<object> listener).on_ws_disconnected(self)
        except BaseException as error:
            self._callback_failed(error, "on_ws_disconnected")
        finally:
            self.ws_listener = None
            if self.server is not None:
                self.server.detach(self)
                self.server = None
            self._settle_futures()
        if self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug("%r: %s", self, self.disconnect_cause.name)
        return 0

    def _settle_futures(self):
        """Answer everybody who waits for something of this connection."""
        cause = self.disconnect_cause
        for future in (self.connected_future, self.pong_waiter):
            if future is not None and not future.done():
                future.set_exception(WSConnectionClosedError(f"the connection is closed ({cause.name})", cause))
        self.connected_future = None
        error = self.callback_error
        if isinstance(error, (StopIteration, asyncio.CancelledError)):
            error = as_runtime_error(error)
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            error = None        # the event loop has had it
        elif error is None and self.is_client_side and cause == WSDisconnectCause.PROTOCOL_ERROR:
            error = self.disconnect_exception
        if error is not None:
            if self.disconnected_future is None:
                self.disconnected_future = self.loop.create_future()
            self.disconnected_future.set_exception(error)
            if self.callback_error is None:
                # asyncio reports an error that nobody asks for. A callback's own is worth that; a
                # stranger's is not.
                self.disconnected_future.exception()
        elif self.disconnected_future is not None:
            self.disconnected_future.set_result(None)


def new_transport(loop, ByteStream stream not None, options, handshake, listener_factory, logger,
                  bint is_client_side, bint is_secure, server=None):
    """Return the transport of a connected stream, whose bytes are an opening handshake.

    Internal: for ``client`` and ``server``, which go on with ``_connect()`` and ``_serve()``.
    """
    cdef WSTransport transport = WSTransport.__new__(WSTransport, _maker)
    transport.thread_id = PyThread_get_thread_ident()
    transport.loop = loop
    transport.logger = logger
    transport.options = options
    transport.stream = stream
    transport.underlying_transport = stream
    transport.handshake = handshake
    transport.listener_factory = listener_factory
    transport.is_client_side = is_client_side
    transport.is_secure = is_secure
    transport.server = server
    transport.round_trip = -1
    traffic = getattr(server, "traffic", None)
    if traffic is not None:
        transport.shared_traffic = &(<SharedTraffic?> traffic).counters
        transport.shared_traffic_owner = traffic
    scratch = _scratch_buffers.get(loop)
    if scratch is None:
        scratch = _scratch_buffers[loop] = new_receive_buffer(SCRATCH_SIZE + MAX_HEADER_SIZE)
    transport.scratch_owner = scratch
    transport.scratch = transport.scratch_owner.data
    transport.max_backlog = -1 if options.max_write_backlog is None else options.max_write_backlog
    stream.handler = transport
    stream.own_buffer_size = options.read_buffer_init_size
    stream.set_write_buffer_limits(high=options.write_high_watermark, low=options.write_low_watermark)
    return transport
