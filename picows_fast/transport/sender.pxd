# The sending half of a connection: what `WSTransport.send` and its like do. core.pxd has the rest; users cimport that.
#
# Owns: how a frame becomes bytes of the stream, in the order of the calls; that nothing follows CLOSE; the limit on
# what waits for the peer; the counters of frames. Does not own: what is received, when a connection ends and why, any
# timer.

from ..protocol.codec cimport WSMsgType
from ..net.stream cimport ByteStream, ReceiveBuffer, StreamHandler
from .counters cimport TrafficCounters

from libc.stdint cimport uint8_t


cdef enum:
    CONNECTING = 0      # WSState's values
    OPEN = 1
    CLOSING = 2
    CLOSED = 3

cdef enum:
    # Frames are put together in a buffer before they are sent. All connections of an event loop share one, as
    # nothing remains in it; loops in other threads have their own, since encrypting releases the GIL.
    SCRATCH_SIZE = 1024 * 1024


# Internal: what a layer keeps for one transport between the application and the stream, and when it is told what.
cdef class _Outbox:
    # The stream takes frames again: its backlog is empty, or a message that was sent in fragments is complete.
    cdef int may_write(self) except -1
    # The application sends a data frame now, or CLOSE: what only waits for the end of the turn goes ahead of it.
    cdef int write_before(self) except -1
    # Nothing more can be sent. Comes once; the transport has forgotten this object.
    cdef int ended(self) except -1


cdef class FrameSender(StreamHandler):
    cdef:
        readonly bint is_client_side
        readonly bint is_close_frame_sent

        # --- internal from here on
        unsigned long thread_id
        object logger
        ByteStream stream
        int state_code              # WSState
        uint8_t *scratch            # where frames are put together; shared by the connections of this loop
        ReceiveBuffer scratch_owner
        Py_ssize_t max_backlog      # bytes; -1: no limit
        _Outbox outbox              # of picows_fast.layers; None if there is none
        bint in_message             # the application is between two fragments of a message
        bint trace                  # frames are logged, at PICOWS_DEBUG_LL
        bint raises_if_not_sent     # the setting raise_if_not_sent

        # statistics
        TrafficCounters traffic
        TrafficCounters *shared_traffic     # of the server; NULL for a client
        object shared_traffic_owner
        Py_ssize_t backlog_highest  # bytes

    # `buffer` has room for the frame's header, 14 bytes, in front of it. It is not changed behind that, and free for
    # reuse when the call returns. Returns 1 if the frame was taken, 0 if it went nowhere; raises what send() does.
    cdef int send_reuse_external_buffer(self, WSMsgType msg_type, char* buffer, Py_ssize_t size, bint fin=*,
                                        bint rsv1=*, bint rsv2=*, bint rsv3=*) except -1
    cpdef send(self, WSMsgType msg_type, message, bint fin=*, bint rsv1=*, bint rsv2=*, bint rsv3=*)
    cpdef send_reuse_external_bytearray(self, WSMsgType msg_type, bytearray buffer, Py_ssize_t msg_offset,
                                        bint fin=*, bint rsv1=*, bint rsv2=*, bint rsv3=*)
    cpdef send_ping(self, message=*)
    cpdef send_pong(self, message=*)
    cpdef send_close(self, close_code=*, close_message=*)
    cpdef cork(self)
    cpdef uncork(self)

    # --- internal
    # Those that send return 1 if the frame was taken, 0 if it went nowhere. They raise nothing for that.
    cdef int _share_scratch(self, loop) except -1
    cdef int _check_thread(self, str method) except -1
    cdef int _send_frame(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                         unsigned int rsv) except -1
    cdef int _send_large_masked(self, int msg_type, const uint8_t *payload, Py_ssize_t size, bint fin,
                                unsigned int rsv) except -1
    cdef int _count_sent(self, int msg_type, Py_ssize_t size) noexcept
    cdef int _written(self) except -1
    cdef int _check_backlog(self) except -1
    cdef bint _can_send(self) noexcept
    cdef object _not_sent(self, int msg_type)
    cdef int _sending_data(self, bint fin) except -1
    cdef int _end_outbox(self) except -1
    cdef int _send_close_payload(self, bytes payload) except -1

    # --- for WSTransport to fill in
    # What send() raises if the frame went nowhere.
    cdef object _closed_error(self, str message)
    # More than max_backlog bytes wait for the peer.
    cdef int _backlog_exceeded(self, Py_ssize_t size) except -1
    # CLOSE was written, with this payload.
    cdef int _close_sent(self, bytes payload) except -1
