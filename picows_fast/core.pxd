# What users subclass, call and cimport: the listener and the transport.
#
# A .pyx that cimports from here needs no include path and links against nothing. Methods that are `cpdef` can be
# overridden and called at C speed; fields below "internal" may change in any release.

from .codec cimport FrameParser, WSCloseCode, WSFrame, WSMsgType
from .net.stream cimport ByteStream, ReceiveBuffer, StreamHandler
from .traffic cimport TrafficCounters

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t


cpdef enum WSAutoPingStrategy:
    """When auto-ping sends a ping: after silence, or all the time."""
    PING_WHEN_IDLE = 1
    PING_PERIODICALLY = 2


# What one CLOSE frame said (RFC 6455 5.5.1).
cdef class WSCloseInfo:
    cdef:
        readonly object code        # WSCloseCode, or int for a code of the application's own
        readonly str reason         # None if there was none


# The closing handshake so far (RFC 6455 7.1.2); each half is None until it happened.
cdef class WSCloseHandshake:
    cdef:
        readonly WSCloseInfo recv
        readonly WSCloseInfo sent
        readonly bint recv_then_sent


# What Python.h calls vectorcallfunc.
ctypedef object (*Vectorcall)(PyObject *function, PyObject *const *args, size_t nargsf, PyObject *kwnames)


# How a listener's method is called; found out once, when the connection is made.
cdef enum ListenerCall:
    CALL_NOTHING        # nobody overrides it
    CALL_VTABLE         # overridden in Cython
    CALL_PYTHON         # overridden in Python
    CALL_FUNCTION       # ... by an ordinary function of its class


cdef class WSListener:
    cdef:
        object __weakref__

        # --- internal: for picows_fast.layers
        bint watches_unfinished     # _unfinished_payload() is wanted; read when the connection is made

    cpdef on_ws_connected(self, WSTransport transport)
    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame)
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


# Internal: what a layer keeps for one transport between the application and the stream, and when it is told what.
cdef class _Outbox:
    # The stream takes frames again: its backlog is empty, or a message that was sent in fragments is complete.
    cdef int may_write(self) except -1
    # The application sends a data frame now, or CLOSE: what only waits for the end of the turn goes ahead of it.
    cdef int write_before(self) except -1
    # Nothing more can be sent. Comes once; the transport has forgotten this object.
    cdef int ended(self) except -1


cdef class WSTransport(StreamHandler):
    cdef:
        object __weakref__

        readonly object underlying_transport    # has get_extra_info() and the rest of asyncio.Transport's surface
        readonly object request                 # WSUpgradeRequest
        readonly object response                # WSUpgradeResponse
        readonly object subprotocol             # str, None if none was negotiated (RFC 6455 1.9)
        readonly WSCloseHandshake close_handshake   # None until the first CLOSE frame
        readonly object disconnect_cause        # WSDisconnectCause, None while connected
        readonly object disconnect_exception    # what went wrong, None if nothing did
        readonly bint is_client_side
        readonly bint is_secure
        readonly bint is_close_frame_sent
        readonly bint is_disconnected

        # --- internal from here on
        unsigned long thread_id
        object loop
        object logger
        object options              # ConnectionOptions
        ByteStream stream
        int state_code              # WSState
        WSListener ws_listener
        object server               # where the server counts this connection; None for a client

        # opening handshake
        object handshake            # ClientHandshake or ServerHandshake; None afterwards
        object listener_factory
        object connected_future     # client: what ws_connect waits for

        # frames in
        FrameParser parser
        bint receiving              # frames are given out: not paused, not being ended
        ListenerCall frame_call
        object frame_method         # the bound method for CALL_PYTHON, the function for CALL_FUNCTION
        Vectorcall frame_function
        object listener_state       # what a listener of picows_fast.layers keeps about this connection
        Py_ssize_t unfinished_shown  # bytes that _unfinished_payload() got of this frame; -1: it is not wanted
        bint trace                  # frames are logged, at PICOWS_DEBUG_LL
        bint asks_pong              # is_user_specific_pong() is overridden

        # frames out
        uint8_t *scratch            # where frames are put together; shared by the connections of this loop
        ReceiveBuffer scratch_owner
        Py_ssize_t max_backlog      # bytes; -1: no limit
        bytes held_pong             # the newest PONG, which waits for the backlog to shrink
        _Outbox outbox              # of picows_fast.layers; None if there is none
        bint in_message             # the application is between two fragments of a message

        # time
        bint closing_armed          # ... and it is the closing deadline
        object timer                # the one timer handle: handshake, auto-ping or closing deadline
        object auto_ping            # AutoPing or None
        object round_trips          # RoundTrips or None
        object pong_waiter          # future of a measurement
        object measure_lock
        bint pong_expected
        bint timed                  # last_received is kept
        double last_received        # seconds of the monotonic clock

        # statistics
        TrafficCounters traffic
        TrafficCounters *shared_traffic     # of the server; NULL for a client
        object shared_traffic_owner
        uint64_t messages_joined    # by picows_fast.layers
        uint64_t reading_pauses, writing_pauses, pings_sent
        Py_ssize_t backlog_highest  # bytes
        double auto_ping_sent       # when the one ping that is awaited was; 0: none is, or several are
        double measuring_ping_sent  # when the newest was
        double round_trip, smoothed_round_trip  # seconds; -1: there was none
        double connected_at         # seconds of the monotonic clock

        object disconnected_future  # made when somebody waits, or there is an error to tell
        object callback_error       # client: what a listener's method raised first

    # `buffer` has room for the frame's header, 14 bytes, in front of it. It is not changed behind that, and free for
    # reuse when the call returns.
    cdef int send_reuse_external_buffer(self, WSMsgType msg_type, char* buffer, Py_ssize_t size, bint fin=*,
                                        bint rsv1=*, bint rsv2=*, bint rsv3=*) except -1
    cpdef send(self, WSMsgType msg_type, message, bint fin=*, bint rsv1=*, bint rsv2=*, bint rsv3=*)
    cpdef send_reuse_external_bytearray(self, WSMsgType msg_type, bytearray buffer, Py_ssize_t msg_offset,
                                        bint fin=*, bint rsv1=*, bint rsv2=*, bint rsv3=*)
    cpdef send_ping(self, message=*)
    cpdef send_pong(self, message=*)
    cpdef send_close(self, close_code=*, close_message=*)
    cpdef disconnect(self, bint graceful=*)
    cpdef notify_user_specific_pong_received(self)
    cpdef pause_reading(self)
    cpdef resume_reading(self)
    cpdef cork(self)
    cpdef uncork(self)

    # --- internal
    cdef int _check_thread(self, str method) except -1
    cdef int _send_frame(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                         unsigned int rsv) except -1
    cdef int _send_large_masked(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                                unsigned int rsv) except -1
    cdef int _check_backlog(self) except -1
    cdef bint _can_send(self) noexcept
    cdef int _sending_data(self, bint fin) except -1
    cdef int _end_outbox(self) except -1
    cdef int _send_close_payload(self, bytes payload) except -1
    cdef int _answer_ping(self, WSFrame frame) except -1
    cdef Py_ssize_t _handshake_data(self, uint8_t *data, Py_ssize_t size) except -1
    cdef int _upgraded(self, listener, request, response) except -1
    cdef int _serve_request(self, request) except -1
    cdef int _send_http(self, message) except -1
    cdef int _refuse(self, error) except -1
    cdef int _handshake_failed(self, cause, error) except -1
    cdef Py_ssize_t _frames(self, uint8_t *data, Py_ssize_t size, object owner) except -1
    cdef int _on_frame(self, WSFrame frame) except -1
    cdef int _deliver(self, WSFrame frame) except -1
    cdef int _show_unfinished(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _on_close_frame(self, WSFrame frame) except -1
    cdef int _after_close_received(self) except -1
    cdef bint _is_pong(self, WSFrame frame) except -1
    cdef bint _is_awaited(self, WSFrame frame) except -1
    cdef int _on_pong(self, WSFrame frame) except -1
    cdef int _count_sent(self, int msg_type, Py_ssize_t size) noexcept
    cdef int _took(self, double seconds) noexcept
    cdef int _update_pong_expected(self) except -1
    cdef object _ping(self)
    cdef int _callback_failed(self, error, str method) except -1
    cdef int _peer_failed(self, error) except -1
    cdef int _fail(self, cause, bytes close_payload, error) except -1
    cdef int _set_cause(self, cause, error) except -1
    cdef int _close_stream(self) except -1
    cdef int _arm(self, double delay) except -1
    cdef int _disarm(self) except -1
    cdef int _arm_closing(self) except -1
    cdef int _on_ping_timer(self) except -1
    cdef int _on_handshake_timeout(self) except -1


# How to call a method of that name; `base` is the one that counts as not overridden, `slot` its offset in the vtable.
cdef ListenerCall how_to_call(WSListener listener, str name, object base, size_t slot) except *
