# What users subclass, call and cimport: the listener and the transport.
#
# A .pyx that cimports from here needs no include path and links against nothing. Methods that are `cpdef` can be
# overridden and called at C speed; fields below "internal" may change in any release.

from .transport.dispatch cimport ListenerCall
from .protocol.codec cimport FrameParser, WSCloseCode, WSCloseHandshake, WSCloseInfo, WSFrame, WSMsgType
from .transport.sender cimport FrameSender

from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t


cpdef enum WSAutoPingStrategy:
    """When auto-ping sends a ping: after silence, or all the time."""
    PING_WHEN_IDLE = 1
    PING_PERIODICALLY = 2


# Who pauses reading: a connection reads when nobody does.
cdef enum PauseOwner:
    USER = 1            # pause_reading()
    QUEUE = 2           # a layer whose queue is full
    HANDSHAKE = 4       # bytes behind a request that is not answered yet


# What Python.h calls vectorcallfunc.
ctypedef object (*Vectorcall)(PyObject *function, PyObject *const *args, size_t nargsf, PyObject *kwnames)


cdef class WSListener:
    cdef:
        object __weakref__

        # --- internal: for picows_fast.layers
        bint watches_unfinished     # _unfinished_payload() is wanted; read when the connection is made

    cpdef on_ws_connected(self, WSTransport transport)
    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame)
    cpdef on_ws_closing(self, WSTransport transport)
    cpdef on_ws_disconnected(self, WSTransport transport)

    cpdef send_user_specific_ping(self, WSTransport transport)
    cpdef is_user_specific_pong(self, WSFrame frame)

    cpdef pause_writing(self)
    cpdef resume_writing(self)

    # --- internal: for picows_fast.layers
    # Part of a data frame has come, and nothing wrong with its header was found. `data` is what came of the payload
    # since the last call, unmasked; it lasts until this returns, or something is sent. All of the payload, what was
    # shown included, comes with on_ws_frame. An exception is treated as one of on_ws_frame.
    cdef int _unfinished_payload(self, WSTransport transport, int opcode, const uint8_t *data,
                                 Py_ssize_t size) except -1


# What it sends with is in sending.pxd.
cdef class WSTransport(FrameSender):
    cdef:
        object __weakref__

        readonly object underlying_transport    # has get_extra_info() and the rest of asyncio.Transport's surface
        readonly object request                 # WSUpgradeRequest
        readonly object response                # WSUpgradeResponse
        readonly object negotiated              # Negotiated: subprotocol and extensions (RFC 6455 1.9)
        readonly WSCloseHandshake close_handshake   # None until the first CLOSE frame
        readonly object disconnect_cause        # WSDisconnectCause, None while connected
        readonly object disconnect_exception    # what went wrong, None if nothing did
        readonly bint is_secure
        readonly bint is_disconnected

        # --- internal from here on
        object loop
        object options              # ConnectionOptions
        WSListener ws_listener
        object url                  # client: WSParsedURL of the server; None for a server
        object server               # where the server counts this connection; None for a client

        # opening handshake
        object handshake            # ClientHandshake or ServerHandshake; None afterwards
        object listener_factory
        object check_limits         # server: raises if there must not be one more WebSocket connection, or None
        object factory_task         # server: a factory that is awaited; None if none is
        object connected_future     # client: what ws_connect waits for

        # frames in
        FrameParser parser
        bint receiving              # frames are given out: not paused, not being ended
        int pause_owners            # who pauses reading: PauseOwner bits; 0: nobody
        ListenerCall frame_call
        object frame_method         # the bound method for CALL_PYTHON, the function for CALL_FUNCTION
        Vectorcall frame_function
        list layer_states           # what each layer keeps about this connection, by its slot; None: nothing
        Py_ssize_t unfinished_shown  # bytes that _unfinished_payload() got of this frame; -1: it is not wanted
        bint asks_pong              # is_user_specific_pong() is overridden

        # frames out
        # While writing is paused, one PONG may be in the backlog; the newest of those behind it is held here until that
        # one has left. How much had been sent before it, as _sent_at_least() says; -1: none is known to be there.
        bytes held_pong
        long long pong_waits_since
        object pong_timer

        # time
        bint closing_armed          # close_timeout runs
        bint closing_told           # on_ws_closing() was called
        bint close_undelivered      # it is being called for the peer's CLOSE, which on_ws_frame gets next
        object timer                # the one timer handle: handshake, auto-ping or closing deadline
        object auto_ping            # AutoPing or None
        object round_trips          # RoundTrips or None
        object pong_waiter          # future of a measurement
        object measure_lock
        bint pong_expected
        # Times of reading are kept: for auto-ping, or because a layer has asked with keep_times(). Seconds of the
        # monotonic clock.
        bint timed
        double last_received
        # When the newest of the first `data_frames_timed` data frames came; those behind them came with last_received.
        # -1: there were none.
        double data_timed
        uint64_t data_frames_timed
        double overdue_since        # when a pong was found missing, and reading on began

        # statistics
        uint64_t messages_joined    # by picows_fast.layers
        uint64_t reading_pauses, writing_pauses, pings_sent
        double measuring_ping_sent  # when the newest of round_trips was; 0: auto-ping sent it
        double round_trip, smoothed_round_trip  # seconds; -1: there was none
        double connected_at         # seconds of the monotonic clock

        object disconnected_future  # made when somebody waits, or there is an error to tell
        object callback_error       # client: what a listener's method raised first

    cpdef disconnect(self, bint graceful=*)
    cpdef notify_user_specific_pong_received(self)
    cpdef pause_reading(self)
    cpdef resume_reading(self)

    # --- internal: for picows_fast.layers and the opening handshake
    # Stop receiving until the same owner resumes, and nobody else pauses. Each does nothing when called twice, and
    # behind our CLOSE, which resumes for all owners: the peer's is awaited.
    cdef int pause_for(self, PauseOwner owner) except -1
    cdef int resume_for(self, PauseOwner owner) except -1

    # Have last_data_received() know from now on. Reading costs a look at the clock more.
    cdef int keep_times(self) noexcept
    # When the last data frame (TEXT, BINARY, CONTINUATION) came, seconds of the monotonic clock; -1: not known. It is
    # the time of the read that brought its end. PING and PONG do not count.
    cdef double last_data_received(self) noexcept

    # --- internal
    cdef uint64_t _data_frames(self) noexcept
    cdef int _read_again(self) except -1
    cdef int _answer_ping(self, WSFrame frame) except -1
    cdef bint _must_hold_pong(self) noexcept
    cdef int _send_pong(self, const uint8_t *payload, Py_ssize_t size) except -1
    cdef int _send_held_pong(self) except -1
    cdef int _forget_pong(self) except -1
    cdef long long _sent_at_least(self) noexcept
    cdef Py_ssize_t _handshake_data(self, uint8_t *data, Py_ssize_t size) except -1
    cdef int _upgraded(self, listener, request, response, bint sends_response) except -1
    cdef int _serve_request(self, request) except -1
    cdef int _answer_request(self, listener, bint is_late) except -1
    cdef int _await_factory(self, awaitable) except -1
    cdef int _accept_late(self, listener) except -1
    cdef int _cancel_factory(self) except -1
    cdef int _send_http(self, message) except -1
    cdef int _refuse(self, error) except -1
    cdef int _handshake_failed(self, cause, error) except -1
    cdef Py_ssize_t _frames(self, uint8_t *data, Py_ssize_t size, object owner) except -1
    cdef int _on_frame(self, WSFrame frame) except -1
    cdef int _on_special_frame(self, WSFrame frame) except -1
    cdef int _deliver(self, WSFrame frame) except -1
    cdef int _show_unfinished(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _on_close_frame(self, WSFrame frame) except -1
    cdef int _after_close_received(self) except -1
    cdef bint _is_pong(self, WSFrame frame) except -1
    cdef bint _is_awaited(self, WSFrame frame) except -1
    cdef int _on_pong(self, WSFrame frame) except -1
    cdef int _took(self, double seconds) noexcept
    cdef int _update_pong_expected(self) except -1
    cdef object _ping(self)
    cdef int _numbered_ping(self) except -1
    cdef int _callback_failed(self, error, str method) except -1
    cdef int _peer_failed(self, error) except -1
    cdef int _fail(self, cause, bytes close_payload, error) except -1
    cdef int _set_cause(self, cause, error) except -1
    cdef int _close_stream(self) except -1
    cdef int _tell_closing(self) except -1
    cdef int _arm(self, double delay) except -1
    cdef int _disarm(self) except -1
    cdef int _told_closing(self, WSListener listener) except -1
    cdef int _tell_disconnected(self, WSListener listener) except -1
    cdef int _arm_closing(self) except -1
    cdef int _arm_ping(self) except -1
    cdef int _on_deadline(self) except -1
    cdef int _on_ping_timer(self, bint judging) except -1
    cdef bint _pings_otherwise(self) except -1
    cdef int _on_handshake_timeout(self) except -1


# --- internal: for picows_fast.layers
# The number of a slot for what one layer keeps about each connection. A layer asks once, when it is imported.
cdef Py_ssize_t new_slot() except -1
# Keep this about a connection until its end.
cdef int set_layer_state(WSTransport transport, Py_ssize_t slot, object state) except -1

cdef inline object layer_state(WSTransport transport, Py_ssize_t slot):
    """What the layer keeps about this connection; None: nothing."""
    cdef list states = transport.layer_states
    return None if states is None or slot >= PyList_GET_SIZE(states) else states[slot]
