# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The connection: :class:`WSListener`, which users subclass, and :class:`WSTransport`, which they call.

Owns the connection's state, what is called when, and its one failure path. How bytes move is the stream's
business, what they mean the parser's and the handshake's, when to ping the auto-ping policy's.
"""

import asyncio
import inspect
import itertools
import logging
import math
import operator
import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint8_t

from .transport.dispatch cimport (
    CALL_FUNCTION,
    CALL_NOTHING,
    CALL_PYTHON,
    CALL_VTABLE,
    as_runtime_error,
    close_payload_of,
    forget_frames,
    function_of,
    how_to_call,
    refusal_of,
    who_overrides,
)
from .protocol.codec cimport build_close_payload, close_info, frame_error, new_frame
from .net.stream cimport ByteStream, StreamEnd, StreamRequest
from .transport.sender cimport CLOSED, CLOSING, CONNECTING, OPEN, SCRATCH_SIZE
from .transport.counters cimport OPCODES, SharedTraffic, count_frame, traffic_stats
from .protocol.wire cimport PF_FRAME_OK, pf_mask

from .transport.callables import async_method_error, check_listener_class, discard_awaitable, is_async
from .transport.describe import ending_text, error_text, opening_text, peer_text, server_text
from .exceptions import WSConnectionClosedError, WSPeerProtocolError
from .protocol.http.messages import WSUpgradeResponse, WSUpgradeResponseWithListener, encode_response
from .protocol.keepalive import AutoPing, PingAction, RoundTrips
from .net.overdue import Overdue
from .transport.sender import PICOWS_DEBUG_LL
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

# Seconds between two looks at whether a PONG that waits for another one can be sent.
cdef double HELD_PONG_POLL = 0.05

# Seconds that last_received() of a stream may be late by.
cdef double KERNEL_TICK = 0.02

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

# The class of the last listener, whose methods were found to be plain: most programs have one.
cdef object _checked_class = None

# The slots of layers.
cdef object _slot_numbers = itertools.count()

# Who shows it may make a WSTransport.
cdef object _maker = object()


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

    cpdef on_ws_closing(self, WSTransport transport):
        """The end has begun: the state is CLOSING, whoever began it. ``disconnect_cause`` says why; it is None behind
        our own CLOSE.

        Comes once, before on_ws_disconnected. If the peer's CLOSE began it, that frame reaches on_ws_frame after
        this, and frames can still be sent until it is answered; else nothing more can be sent. If the connection is
        gone at once, as by ``disconnect(graceful=False)``, it comes right before on_ws_disconnected.
        """

    cpdef on_ws_disconnected(self, WSTransport transport):
        """The connection is gone and everything it held is released. Comes once, if on_ws_connected came."""

    cpdef send_user_specific_ping(self, WSTransport transport):
        """Auto-ping is due. Sends a PING frame; override it to send what the peer understands as one."""
        if transport is None:
            raise TypeError("transport must be a WSTransport, got None")
        # Not by send_ping(), which may raise: that nothing can be sent is told by the end.
        transport._check_thread("send_ping")
        transport._send_frame(WSMsgType.PING, NULL, 0, True, 0)

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


# --- Transport -------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class WSTransport(FrameSender):
    """One WebSocket connection, as the application sees it.

    Made by ``ws_connect``, ``ws_create_server`` and ``attach``. Its methods belong to the event loop's thread and raise
    RuntimeError elsewhere. Sending after CLOSE, or when the connection is gone, does nothing.

    Read-only attributes, besides the properties:

    - ``request``, :class:`WSUpgradeRequest`, and ``response``, :class:`WSUpgradeResponse`: the opening handshake; None
      if ``attach`` was not given them
    - ``negotiated``: :class:`Negotiated`: the subprotocol and the extensions (RFC 6455 1.9)
    - ``close_handshake``: :class:`WSCloseHandshake`, or None until the first CLOSE frame
    - ``disconnect_cause``: :class:`WSDisconnectCause`, or None while connected; ``disconnect_exception``: what went
      wrong, or None if nothing did
    - ``is_client_side``, ``is_secure``, ``is_close_frame_sent``, ``is_disconnected``: bool
    - ``underlying_transport``: what carries the bytes, with ``get_extra_info()`` and the rest of the surface of an
      :class:`asyncio.Transport`; its ``write()`` sends raw bytes, past the framing
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
    def subprotocol(self):
        """str: ``negotiated.subprotocol``; None if none was negotiated (RFC 6455 1.9)."""
        return None if self.negotiated is None else self.negotiated.subprotocol

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
        """bool: whether reading is paused, by pause_reading() or by a layer whose queue is full."""
        return self.pause_owners != 0

    def stats(self):
        """Return what was counted so far, and what is now, as :class:`TransportStats`; also after the end."""
        cdef double difference = time.time() - pf_monotonic()   # of the clocks
        last_received = self.stream.last_received()
        if last_received is None and self.timed:
            last_received = self.last_received
        last_data = self.last_data_received()
        return TransportStats(
            received=traffic_stats(self.traffic.received),
            sent=traffic_stats(self.traffic.sent),
            messages_joined=self.messages_joined,
            backlog_bytes=self.write_backlog,
            backlog_highest_bytes=self.backlog_highest,
            backlog_lost_bytes=self.stream.backlog_lost,
            reading_pauses=self.reading_pauses,
            writing_pauses=self.writing_pauses,
            pings_sent=self.pings_sent,
            round_trip_ns=None if self.round_trip < 0 else int(self.round_trip * 1e9),
            round_trip_smoothed_ns=None if self.round_trip < 0 else int(self.smoothed_round_trip * 1e9),
            connected_at_ns=None if self.parser is None else int((difference + self.connected_at) * 1e9),
            last_received_at_ns=None if last_received is None else int((difference + last_received) * 1e9),
            last_data_received_at_ns=None if last_data < 0 else int((difference + last_data) * 1e9),
        )

    def __repr__(self):
        """Says who is at the other end, and nothing that might be a secret."""
        if self.url is not None:
            place = f"client {server_text(self.url)}"
        else:
            side = "client" if self.is_client_side else "server"
            place = f"{side} {peer_text(self.stream.get_extra_info('peername'))}"
        return f"<WSTransport {place} {_STATES[self.state_code].name.lower()} at {id(self):#x}>"

    # --- Flow control and the end, as asked for

    cpdef pause_reading(self):
        """Stop receiving: no frame is given out until :meth:`resume_reading`, and TCP slows the peer down.

        The peer's PONGs and CLOSE are not seen either, so auto-ping does not count this time. Calling it twice does
        nothing more.

        :raises RuntimeError: called from another thread
        """
        self._check_thread("pause_reading")
        if self.state_code == OPEN:
            self.pause_for(PauseOwner.USER)

    cpdef resume_reading(self):
        """Receive again; frames that had arrived already come first.

        A layer that has paused reading for its own queue goes on pausing it.

        :raises RuntimeError: called from another thread
        """
        self._check_thread("resume_reading")
        self.resume_for(PauseOwner.USER)

    cdef int pause_for(self, PauseOwner owner) except -1:
        cdef int others = self.pause_owners
        if others & owner or self.state_code > OPEN or self.stream.closing:
            return 0
        self.pause_owners |= owner
        if others == 0:
            self.receiving = False
            self.reading_pauses += 1
            self.stream.pause()
            if self.auto_ping is not None and self.pause_owners:
                self.auto_ping.paused(pf_monotonic())
                if self.options.max_reading_pause is not None:
                    self._arm_ping()
        return 0

    cdef int resume_for(self, PauseOwner owner) except -1:
        if not self.pause_owners & owner or self.stream.closing:
            return 0
        self.pause_owners &= ~owner
        return 0 if self.pause_owners else self._read_again()

    cdef int _read_again(self) except -1:
        """Nobody pauses reading any more."""
        self.pause_owners = 0
        self.receiving = self.state_code != CONNECTING
        if self.auto_ping is not None:
            self.auto_ping.resumed(pf_monotonic(), self.last_received)
            if self.timer is None:
                self._arm_ping()
        self.stream.resume()
        return 0

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
            self.stream.drop()

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
        future = self.connected_future = self.loop.create_future()
        try:
            self.stream.start()
            self._send_http(self.handshake.request_bytes())
        except BaseException:
            self.connected_future = None
            if not future.cancel():
                future.exception()      # nobody else will ask for it
            raise
        return future

    def _serve(self):
        """Server: await a request. The deadline is kept by the server, which is told how it went."""
        self.stream.start()

    def _attached(self, listener, request, response):
        """The opening handshake is somebody else's, and done. Tell the listener first, then begin to receive."""
        self._upgraded(listener, request, response, False)
        self.stream.start()

    def _handshake_timed_out(self):
        if self.state_code == CONNECTING:
            self._on_deadline()

    def _has_been_silent(self):
        """Server: whether it is connected, and no byte of a request has come."""
        if self.state_code != CONNECTING or self.handshake.has_begun:
            return False
        return self._has_tls()

    def _has_tls(self):
        """Whether the TLS handshake is done, or there is none."""
        tls = self.stream.get_extra_info("ssl_object")
        return tls is None or tls.version() is not None

    cdef Py_ssize_t _handshake_data(self, uint8_t *data, Py_ssize_t size) except -1:
        handshake = self.handshake
        try:
            message = handshake.receive_data(PyBytes_FromStringAndSize(<char*> data, size))
            if message is None:
                return size
            if self.is_client_side:
                self._upgraded(
                    self.listener_factory(handshake.request, message), handshake.request, message, False
                )
            else:
                self._serve_request(message)
        except BaseException as error:
            if self.state_code != CONNECTING:
                raise       # on_ws_connected's, or the log's; the connection is ended
            self._refuse(error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise
        if self.stream.closing or (self.state_code == CONNECTING and self.factory_task is None):
            return size
        size -= <Py_ssize_t> len(handshake.trailing_data)
        handshake.trailing_data = b""   # the stream keeps them
        return size

    cdef int _serve_request(self, request) except -1:
        self.request = request
        request._stream = self.stream
        if self.check_limits is not None and request.is_upgrade:
            self.check_limits()
        return self._answer_request(self.listener_factory(request), False)

    cdef int _await_factory(self, awaitable) except -1:
        """The factory answers later: its task runs until then, and the request waits in CONNECTING."""
        try:
            self.factory_task = asyncio.ensure_future(awaitable, loop=self.loop)
            self.factory_task.add_done_callback(self._factory_done)
        except BaseException:
            discard_awaitable(awaitable)
            raise
        return 0

    def _factory_done(self, task):
        """The awaited factory has returned or raised."""
        cdef bint is_wanted = task is self.factory_task and not self.stream.closing
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if not is_wanted:
            if isinstance(error, Exception):
                self.logger.error("%r: ws_listener_factory failed after the end", self, exc_info=error)
            return
        try:
            if error is not None:
                self._refuse(error)     # the loop has had KeyboardInterrupt and SystemExit already
            else:
                self._accept_late(task.result())
        except BaseException as failure:
            # What came behind the request was not given out.
            self.stream.broken(failure)
            raise
        finally:
            self.factory_task = None

    cdef int _accept_late(self, listener) except -1:
        try:
            # Before on_ws_connected, which may pause reading itself. What waits is given out in a later turn.
            self.resume_for(PauseOwner.HANDSHAKE)
            self._answer_request(listener, True)
        except BaseException as error:
            if self.state_code != CONNECTING:
                raise       # on_ws_connected's, or the log's
            self._refuse(error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise
        return 0

    cdef int _cancel_factory(self) except -1:
        """The connection ends without its answer."""
        task = self.factory_task
        self.factory_task = None
        if task is not None:
            task.cancel()
        return 0

    cdef int _answer_request(self, listener, bint is_late) except -1:
        """Answer with what the factory returned, at once or late."""
        request = self.request
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
            self._close_stream()
            # Health checks are not news.
            self.logger.log(logging.INFO if response.status >= 400 else logging.DEBUG,
                            "%r: answered with %d", self, response.status)
            return 0
        if not isinstance(listener, WSListener):
            if not is_late and inspect.isawaitable(listener):
                if self.stream.closing:     # the factory has ended the connection
                    discard_awaitable(listener)
                    return 0
                return self._await_factory(listener)
            raise TypeError(
                "ws_listener_factory must return a WSListener, a WSUpgradeResponse or None, "
                f"got {discard_awaitable(listener)}"
            )
        if is_late and self.check_limits is not None:
            self.check_limits()     # others have come meanwhile
        return self._upgraded(listener, request, self.handshake.accept(response), True)

    cdef int _send_http(self, message) except -1:
        cdef bytes head = message if isinstance(message, bytes) else encode_response(message)
        self.stream.writev(<const uint8_t*> PyBytes_AS_STRING(head), len(head), NULL, 0)
        return 0

    cdef int _upgraded(self, listener, request, response, bint sends_response) except -1:
        """The opening handshake succeeded: find out what the listener overrides, and tell it."""
        global _checked_class
        if not isinstance(listener, WSListener):
            raise TypeError(
                "ws_listener_factory must be a plain function that returns a WSListener, "
                f"got {discard_awaitable(listener)}"
            )
        if type(listener) is not _checked_class:
            check_listener_class(type(listener), WSListener)
            _checked_class = type(listener)
        options = self.options
        self.request = request
        self.response = response
        self.negotiated = self.handshake.negotiated
        self.parser = FrameParser(
            is_client=self.is_client_side, max_frame_size=options.max_frame_size,
            validate_sequence=options.validate_sequence,
            allowed_rsv=self.negotiated.allowed_rsv,
        )
        self.frame_call = how_to_call(listener, "on_ws_frame", _BASE_ON_WS_FRAME, PF_FRAME_SLOT)
        if self.frame_call == CALL_PYTHON:
            self.frame_method = listener.on_ws_frame
            function = function_of(listener, self.frame_method)
            if function is not None:
                # The method object between us and the function costs a fifth of the call.
                self.frame_method = function
                self.frame_function = <Vectorcall> PyVectorcall_Function(function)
                self.frame_call = CALL_FUNCTION
            elif is_async(self.frame_method):
                raise async_method_error(type(listener), "on_ws_frame")
        self.unfinished_shown = 0 if (<WSListener> listener).watches_unfinished else -1
        self.asks_pong = who_overrides(listener, "is_user_specific_pong", _BASE_IS_PONG) is not None
        self.trace = self.logger.isEnabledFor(PICOWS_DEBUG_LL)
        # Nothing above has told anybody yet, and so it can still be refused.
        if sends_response:
            self._send_http(response)
        self._disarm()
        self.ws_listener = listener
        self.handshake = None
        self.listener_factory = self.check_limits = None
        self.state_code = OPEN
        self.receiving = self.pause_owners == 0
        self.stream.coalescing = options.coalesce_writes
        self.connected_at = self.last_received = pf_monotonic()
        if options.enable_auto_ping:
            self.timed = True
            self.auto_ping = AutoPing(
                int(options.auto_ping_strategy), options.auto_ping_idle_timeout, options.auto_ping_reply_timeout,
                self.last_received,
                math.inf if options.max_reading_pause is None else options.max_reading_pause,
            )
            if self.pause_owners:
                self.auto_ping.paused(self.last_received)
            self._arm_ping()
        if self.server is not None:
            self.server.connection_opened(self)
        if self.logger.isEnabledFor(logging.INFO):
            own = None if self.is_client_side else options.subprotocols
            self.logger.info("%r: %s", self, opening_text(self.subprotocol, own))
        try:
            (<object> self.ws_listener).on_ws_connected(self)
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
            self.logger.info("%r: refused with %d: %s", self, refusal.status, error_text(error))
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
        self.stream.drop()
        return 0

    # --- Frames in

    cdef Py_ssize_t stream_data(self, uint8_t *data, Py_ssize_t size, object owner) except -1:
        cdef Py_ssize_t used
        if self.state_code != CONNECTING:
            return self._frames(data, size, owner)
        used = 0 if self.factory_task is not None else self._handshake_data(data, size)
        if used < size:
            if self.factory_task is not None:
                # The stream keeps these bytes, TCP what follows. Until some come, reading tells that the peer leaves.
                self.pause_for(PauseOwner.HANDSHAKE)
                return used
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
        # A loop inside a callback may bring the connection to its end, which would free what is being called.
        cdef WSListener _listener = self.ws_listener
        if parser.close_received:
            return size     # nothing behind a CLOSE counts (RFC 6455 5.5.1)
        if self.timed:
            if self._data_frames() != self.data_frames_timed:
                self.data_timed = self.last_received
                self.data_frames_timed = self._data_frames()
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
            if Py_REFCNT(frame) != 1:
                # A callback kept it. (One that raised after keeping it, too.)
                frame._keep()
                frame = new_frame()
                frame._owner = owner
                frame.recv_timestamp_ns = self.stream.arrived
                frame.recv_hardware_timestamp_ns = self.stream.arrived_by_hardware
            try:
                while self.receiving and parser.look == PF_FRAME_OK and Py_REFCNT(frame) == 1:
                    taken = parser.take(data + used, size - used, frame)
                    if taken < 0:
                        break
                    used += taken
                    self._on_frame(frame)
            except BaseException as error:
                self._callback_failed(error, "on_ws_frame")
        if Py_REFCNT(frame) == 1:
            frame._owner = None
            frame.payload_size = 0
            _spare_frame = frame
        else:
            frame._keep()
        if self.stream.closing:
            return size
        if parser.close_received:
            self._after_close_received()
            return size
        if parser.look < 0 and self.receiving:
            self._peer_failed(frame_error(parser, data + used, size - used))
            return size
        if self.unfinished_shown >= 0 and self.receiving:
            if used:
                self.unfinished_shown = 0
            self._show_unfinished(data + used, size - used)
        return used

    cdef uint64_t _data_frames(self) noexcept:
        """How many data frames have come."""
        return (
            self.traffic.received[<int> WSMsgType.CONTINUATION].frames
            + self.traffic.received[<int> WSMsgType.TEXT].frames
            + self.traffic.received[<int> WSMsgType.BINARY].frames
        )

    cdef int keep_times(self) noexcept:
        if not self.timed:
            self.timed = True
            self.last_received = pf_monotonic()
            self.data_frames_timed = self._data_frames()
        return 0

    cdef double last_data_received(self) noexcept:
        if not self.timed or self._data_frames() == self.data_frames_timed:
            return self.data_timed
        return self.last_received

    cdef int _on_frame(self, WSFrame frame) except -1:
        count_frame(&self.traffic.received[<int> frame.msg_type], frame.payload_size)
        if self.shared_traffic != NULL:
            count_frame(&self.shared_traffic.received[<int> frame.msg_type], frame.payload_size)
        if frame.msg_type >= WSMsgType.CLOSE or self.pong_expected or self.is_close_frame_sent:
            return self._on_special_frame(frame)
        if self.frame_call == CALL_VTABLE and not self.trace:
            pf_call_frame_slot(self.ws_listener, self, frame)   # at once: _deliver() is for all cases
            return 0
        return self._deliver(frame)

    cdef int _on_special_frame(self, WSFrame frame) except -1:
        """It may not be for the listener."""
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
        if self._must_hold_pong():
            self.held_pong = frame.get_payload_as_bytes()
            return self._send_held_pong()
        self.held_pong = None
        return self._send_pong(<const uint8_t*> frame.payload_ptr, frame.payload_size)

    cdef bint _must_hold_pong(self) noexcept:
        """Whether a PONG waits in the backlog of a paused connection: as long as more waits than was sent behind it."""
        return self.stream.writing_paused and self.pong_waits_since >= 0 and (
            self._sent_at_least() - self.pong_waits_since < self.stream.backlog_size()
        )

    cdef long long _sent_at_least(self) noexcept:
        """Bytes of all frames that were sent, with the smallest headers."""
        cdef long long size = 0
        for opcode in range(OPCODES):
            size += 2 * self.traffic.sent[opcode].frames + self.traffic.sent[opcode].payload_bytes
        return size

    cdef int _send_pong(self, const uint8_t *payload, Py_ssize_t size) except -1:
        cdef bint was_paused = self.stream.writing_paused
        self._send_frame(WSMsgType.PONG, payload, size, True, 0)
        self.pong_waits_since = self._sent_at_least() if was_paused else -1
        return 0

    cdef int _send_held_pong(self) except -1:
        """Send it, or look again after a while: no event tells that the one before it has left."""
        cdef bytes pong = self.held_pong
        if pong is None:
            return 0
        if not self._must_hold_pong():
            self.held_pong = None
            return self._send_pong(<const uint8_t*> PyBytes_AS_STRING(pong), len(pong))
        if self.pong_timer is None:
            self.pong_timer = self.loop.call_later(HELD_PONG_POLL, self._on_pong_timer)
        return 0

    def _on_pong_timer(self):
        self.pong_timer = None
        self._send_held_pong()

    cdef int _forget_pong(self) except -1:
        self.held_pong = None
        if self.pong_timer is not None:
            self.pong_timer.cancel()
            self.pong_timer = None
        return 0

    cdef int _on_close_frame(self, WSFrame frame) except -1:
        if self.close_handshake is None:
            self.close_handshake = WSCloseHandshake.__new__(WSCloseHandshake)
        self.close_handshake.recv = close_info(frame.get_payload_as_bytes())
        self.close_handshake.recv_then_sent = not self.is_close_frame_sent
        self._set_cause(
            WSDisconnectCause.LOCAL_CLOSE if self.is_close_frame_sent else WSDisconnectCause.CLOSE_FRAME, None
        )
        self._arm_closing()     # before the callback, in which the loop may run
        self.close_undelivered = True
        self._tell_closing()
        self.close_undelivered = False
        return self._deliver(frame) if self.receiving else 0

    cdef int _close_sent(self, bytes payload) except -1:
        self._forget_pong()
        if self.close_handshake is None:
            self.close_handshake = WSCloseHandshake.__new__(WSCloseHandshake)
        self.close_handshake.sent = close_info(payload)
        if self.close_handshake.recv_then_sent:
            return self._after_close_received()
        self._arm_closing()
        if self.pause_owners:
            self._read_again()      # the peer's CLOSE may be behind data, all of which is dropped now
        return self._tell_closing()

    cdef int _after_close_received(self) except -1:
        """The peer's CLOSE was given out: do what is left of the closing handshake."""
        cdef bytes answer
        if self.stream.closing or self.close_undelivered:
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
        if self.auto_ping is not None and self.auto_ping.unanswered:
            return True
        return self.round_trips is not None and self.round_trips.is_awaited(frame.get_payload_as_bytes())

    cdef int _on_pong(self, WSFrame frame) except -1:
        cdef bytes payload = frame.get_payload_as_bytes() if frame is not None else b""
        cdef double now = pf_monotonic()
        cdef bint is_newest = self.round_trips is not None and self.round_trips.pong_received(payload)
        seconds = None
        if self.auto_ping is not None:
            seconds = self.auto_ping.pong_received(now, is_newest and self.round_trips.is_numbered)
            self._arm_ping()
        if is_newest:
            if self.measuring_ping_sent:
                self._took(now - self.measuring_ping_sent)
            if self.pong_waiter is not None and not self.pong_waiter.done():
                self.pong_waiter.set_result(now)
        elif seconds is not None and (not payload or self.asks_pong or self._pings_otherwise()):
            self._took(seconds)
        return self._update_pong_expected()

    cdef bint _pings_otherwise(self) except -1:
        """Whether auto-ping sends something else than an empty PING, which an empty PONG answers."""
        return who_overrides(self.ws_listener, "send_user_specific_ping", _BASE_PING) is not None

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
            (self.auto_ping is not None and self.auto_ping.unanswered)
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

    cdef int _numbered_ping(self) except -1:
        """Auto-ping: pings and pongs overlap, so the next pong has to tell which PING it answers."""
        if self.round_trips is None:
            self.round_trips = RoundTrips(True)
        self.measuring_ping_sent = 0
        self.pings_sent += 1
        self.send_ping(self.round_trips.next_payload())
        return 0

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
            raise self._closed_error("the round trip was not measured")
        numbered = not (self.asks_pong or self._pings_otherwise())
        if self.round_trips is None:
            self.round_trips = RoundTrips(numbered)
        if not numbered and self.auto_ping is not None:
            while self.round_trips.unanswered < self.auto_ping.unanswered:
                self.round_trips.next_payload()     # the answers to auto-ping's come first
        started = self.measuring_ping_sent = pf_monotonic()
        if not numbered:
            error = self._ping()
            if error is not None:
                raise error
        waiter = self.pong_waiter = self.loop.create_future()
        payload = self.round_trips.next_payload()
        if self.auto_ping is not None:
            self.auto_ping.ping_sent(started)
            self._arm_ping()
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
        try:
            self._disarm()
            self.timer = self.loop.call_later(max(delay, 0.0), self._on_timer)
        except MemoryError as error:
            # Without its deadline the connection might stay for ever.
            self._set_cause(WSDisconnectCause.NETWORK_ERROR, error)
            self.stream.drop()
        return 0

    cdef int _disarm(self) except -1:
        timer = self.timer
        self.timer = None
        if timer is not None:
            timer.cancel()
        return 0

    cdef int _arm_closing(self) except -1:
        """Enter CLOSING; its deadline runs from the first reason to enter it."""
        if not self.closing_armed:
            self.closing_armed = True
            self.state_code = CLOSING
            self._arm(self.options.close_timeout)
        return 0

    cdef int _arm_ping(self) except -1:
        if self.state_code == OPEN:
            due = self.auto_ping.deadline
            if due != math.inf:     # else resume_reading() arms it
                self._arm(due - pf_monotonic())
        return 0

    def _on_timer(self):
        self.timer = None
        if self.state_code == OPEN:
            self._on_ping_timer(False)
        else:
            self._on_deadline()

    cdef int _on_deadline(self) except -1:
        """A deadline has passed: read first, then judge."""
        self._disarm()
        self.timer = Overdue(self.loop, self.stream, self._judge)
        self.stream.read_now()
        return 0

    def _judge(self):
        self.timer = None
        if self.state_code == OPEN:
            self._on_ping_timer(True)
        elif self.state_code == CONNECTING:
            self._on_handshake_timeout()
        elif self.state_code == CLOSING:
            self._set_cause(WSDisconnectCause.CLOSE_TIMEOUT, None)
            self.receiving = False
            self.stream.drop()

    cdef int _on_ping_timer(self, bint judging) except -1:
        cdef double now = pf_monotonic()
        cdef double last_received = self.last_received
        if judging:
            # Bytes that TLS cannot use yet are a sign of life, too.
            heard = self.stream.last_received()
            if heard is not None:
                last_received = max(last_received, <double> heard - KERNEL_TICK)
        action = self.auto_ping.on_timer(now, last_received)
        if action == PingAction.DEAD:
            if not judging:
                self.overdue_since = now
                return self._on_deadline()
            if self.last_received >= self.overdue_since:
                # Bytes lay unread, which may have held the peer up, too.
                self.auto_ping.extend(now)
                return self._arm_ping()
            self._fail(WSDisconnectCause.PING_TIMEOUT, build_close_payload(WSCloseCode.GOING_AWAY, b"no pong"), None)
            if self.state_code == CLOSING:
                self._arm(0)        # nobody waits for a dead peer's CLOSE
            if self.pause_owners:
                self.logger.info("%r: reading was paused for %s s", self, self.options.max_reading_pause)
            else:
                self.logger.info("%r: no pong within %s s", self, self.options.auto_ping_reply_timeout)
            return 0
        if action == PingAction.PING and self.pong_waiter is not None:
            self.auto_ping.put_off(now)     # a measurement's ping is under way
        elif action == PingAction.PING:
            in_doubt = self.auto_ping.is_in_doubt
            self.auto_ping.ping_sent(now)
            self._update_pong_expected()
            if in_doubt and not (self.asks_pong or self._pings_otherwise()):
                self._numbered_ping()
            else:
                self._ping()
        return self._arm_ping()

    cdef int _on_handshake_timeout(self) except -1:
        self._set_cause(WSDisconnectCause.HANDSHAKE_TIMEOUT, None)
        if self.factory_task is not None:
            return self._refuse(self.handshake.unanswered_error())
        return self._refuse(TimeoutError("the opening handshake was not finished in time"))

    # --- The end: first what is to be done, then what is to be logged, which may run anybody's code and raise

    cdef object _closed_error(self, str message):
        recv = None if self.close_handshake is None else self.close_handshake.recv
        if recv is None:
            return WSConnectionClosedError(message, self.disconnect_cause)
        return WSConnectionClosedError(message, self.disconnect_cause, recv.code, recv.reason)

    cdef int _set_cause(self, cause, error) except -1:
        if self.disconnect_cause is None:
            self.disconnect_cause = cause
            self.disconnect_exception = error
        return 0

    cdef int _callback_failed(self, error, str method) except -1:
        """A listener's method raised."""
        cdef bint fatal, ends
        if isinstance(error, WSPeerProtocolError):
            return self._peer_failed(error)     # found by a listener, and the peer's doing all the same
        if isinstance(error, WSConnectionClosedError) and (not self._can_send() or self.stream.write_failed):
            # Of raise_if_not_sent: the connection ends already, and what began that is the cause.
            self.logger.info("%r: %s: %s", self, method, error)
            return 0
        refused = refusal_of(error) is not None
        fatal = not isinstance(error, Exception)
        ends = self.options.disconnect_on_exception or fatal or refused or method == "on_ws_connected"
        if ends and self.is_client_side and self.callback_error is None:
            self.callback_error = error     # for wait_disconnected(), whatever else ends the connection
        if ends:
            self._fail(
                WSDisconnectCause.LOCAL_REFUSAL if refused else WSDisconnectCause.CALLBACK_ERROR,
                close_payload_of(error), error,
            )
        if refused:
            self.logger.info("%r: %s refuses: %s", self, method, error_text(error))
        else:
            self.logger.error("%r: %s raised", self, method, exc_info=error)
        if fatal and not isinstance(error, asyncio.CancelledError):
            raise error     # KeyboardInterrupt and SystemExit are the event loop's business
        return 0

    cdef int _peer_failed(self, error) except -1:
        """The peer's frames break the protocol, whoever found it out."""
        self._fail(WSDisconnectCause.PROTOCOL_ERROR, close_payload_of(error), error)
        self.logger.info("%r: the peer breaks the protocol: %s", self, error_text(error))
        return 0

    cdef int _fail(self, cause, bytes close_payload, error) except -1:
        """The one way in which a connection fails (RFC 6455 7.1.7): CLOSE, flush, FIN, deadline, abort."""
        self.receiving = False
        if self.state_code == CLOSED or self.stream.closing:
            return 0
        self._set_cause(cause, error)
        try:
            if not self.is_close_frame_sent:
                self._send_close_payload(close_payload)
        finally:
            self._close_stream()
        return 0

    cdef int _close_stream(self) except -1:
        if self.state_code != CLOSED:
            self.state_code = CLOSING
        self.receiving = False
        try:
            if self.factory_task is not None:
                self._cancel_factory()
            if self.outbox is not None:
                self.outbox.write_before()
                self._end_outbox()
            self.stream.end()
        finally:
            # Where the peer has ended its side already, nothing is left to wait for.
            if not self.stream.closed:
                self._arm_closing()
        return self._tell_closing()

    cdef int _tell_closing(self) except -1:
        """The end has begun: tell the listener, once."""
        if self.closing_told or self.ws_listener is None:
            return 0
        self.closing_told = True
        try:
            (<object> self.ws_listener).on_ws_closing(self)
        except BaseException as error:
            self._callback_failed(error, "on_ws_closing")
        return 0

    cdef int stream_end(self, int end, object error) except -1:
        """The peer has ended the stream, in whatever way."""
        cause = _CAUSES[end]
        if self.state_code == CONNECTING:
            if end != StreamEnd.TLS_TRUNCATED or self._has_tls():
                error = self.handshake.end_error(None if end == StreamEnd.TLS_TRUNCATED else error)
                if error is None and self.factory_task is not None:
                    error = ConnectionAbortedError("the client ended the connection before its request was answered")
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
                self.logger.info("%r: opening handshake not finished: %s", self, error_text(error))
            return 0
        self._set_cause(cause, error)
        return self._close_stream()

    cdef int stream_broken(self, error) except -1:
        """Received bytes are lost, so nothing that follows can be read: fail the connection."""
        forget_frames(error)
        if self.state_code == CONNECTING:
            return self._handshake_failed(WSDisconnectCause.INTERNAL_ERROR, error)
        return self._fail(
            WSDisconnectCause.INTERNAL_ERROR, build_close_payload(WSCloseCode.INTERNAL_ERROR, None), error
        )

    cdef bint stream_asked(self, int what) except -1:
        if what == StreamRequest.PAUSE:
            self.pause_reading()
        elif what == StreamRequest.RESUME:
            self.resume_reading()
        else:
            self.disconnect(what == StreamRequest.CLOSE)
        return True

    cdef int _backlog_exceeded(self, Py_ssize_t size) except -1:
        self._set_cause(WSDisconnectCause.WRITE_BACKLOG, None)
        self.receiving = False
        self.stream.drop()
        self.logger.info(
            "%r: %d bytes waited for a peer that does not read; max_write_backlog is %d", self, size, self.max_backlog,
        )
        return 0

    cdef int stream_pause_writing(self) except -1:
        self.writing_pauses += 1
        if self.ws_listener is not None and self.state_code != CLOSED:
            try:
                (<object> self.ws_listener).pause_writing()
            except BaseException as error:
                self._callback_failed(error, "pause_writing")
        return 0

    cdef int stream_resume_writing(self) except -1:
        self.pong_waits_since = -1
        if self.ws_listener is not None and self.state_code != CLOSED:
            try:
                (<object> self.ws_listener).resume_writing()
            except BaseException as error:
                self._callback_failed(error, "resume_writing")
        # Behind the callback: it may pause writing again.
        return self._send_held_pong()

    cdef int stream_drained(self) except -1:
        return 0 if self.outbox is None else self.outbox.may_write()

    cdef int stream_closed(self) except -1:
        """Everything the stream held is released. Comes once."""
        cdef WSListener listener = self.ws_listener
        self.receiving = False
        if self.disconnect_cause is None:
            self.disconnect_cause = WSDisconnectCause.LOCAL_ABORT
        self.state_code = CLOSING
        try:
            self._cancel_factory()
            self._disarm()
            self._forget_pong()
            self._tell_closing()
        finally:
            self._told_closing(listener)
        return 0

    cdef int _told_closing(self, WSListener listener) except -1:
        self.state_code = CLOSED
        self.is_disconnected = True
        self.handshake = self.listener_factory = self.check_limits = self.frame_method = self.layer_states = None
        try:
            self._end_outbox()
        finally:
            self._tell_disconnected(listener)
        return 0

    cdef int _tell_disconnected(self, WSListener listener) except -1:
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
        if self.parser is None:
            self.logger.debug("%r: %s", self, self.disconnect_cause)
        elif self.logger.isEnabledFor(logging.INFO):
            self.logger.info("%r: %s", self, ending_text(
                self.disconnect_cause, self.disconnect_exception, self.close_handshake,
                pf_monotonic() - self.connected_at, self.stream.backlog_lost,
            ))
        return 0

    def _settle_futures(self):
        """Answer everybody who waits for something of this connection."""
        cause = self.disconnect_cause
        for future in (self.connected_future, self.pong_waiter):
            if future is not None and not future.done():
                future.set_exception(self._closed_error("the connection is closed"))
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
            self.disconnected_future.exception()    # the log has it: asyncio need not report that nobody asks for it
        elif self.disconnected_future is not None:
            self.disconnected_future.set_result(None)


cdef Py_ssize_t new_slot() except -1:
    return next(_slot_numbers)


cdef int set_layer_state(WSTransport transport, Py_ssize_t slot, object state) except -1:
    cdef list states = transport.layer_states
    if states is None:
        states = transport.layer_states = []
    states.extend([None] * (slot + 1 - len(states)))
    states[slot] = state
    return 0


def new_transport(loop, ByteStream stream not None, options, handshake, listener_factory, logger,
                  bint is_client_side, bint is_secure, server=None, url=None, check_limits=None):
    """Return the transport of a connected stream, whose bytes are an opening handshake or follow one.

    Internal: for ``client``, ``admission`` and ``attaching``, which go on with ``_connect()``, ``_serve()`` and
    ``_attached()``.
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
    transport.check_limits = check_limits
    transport.is_client_side = is_client_side
    transport.is_secure = is_secure
    transport.server = server
    transport.url = url
    transport.round_trip = transport.pong_waits_since = transport.data_timed = -1
    traffic = getattr(server, "traffic", None)
    if traffic is not None:
        transport.shared_traffic = &(<SharedTraffic?> traffic).counters
        transport.shared_traffic_owner = traffic
    transport.raises_if_not_sent = options.raise_if_not_sent
    transport._share_scratch(loop)
    transport.max_backlog = -1 if options.max_write_backlog is None else options.max_write_backlog
    stream.handler = transport
    stream.own_buffer_size = options.read_buffer_init_size
    stream.set_write_buffer_limits(high=options.write_high_watermark, low=options.write_low_watermark)
    return transport
