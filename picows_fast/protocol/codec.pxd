# Frames: what a WebSocket frame is, how bytes become frames and frames become bytes (RFC 6455 5).
#
# Sans-IO: nothing here knows of asyncio, sockets or callbacks. Byte-level work is in wire/*.h.
# User code cimports these names from picows_fast.core.

#
# No C header is included from here, so that user code needs no include path to cimport it.

from libc.stdint cimport uint8_t, uint32_t


cpdef enum WSMsgType:
    """What a frame is: its opcode (RFC 6455 5.2)."""
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


cpdef enum WSCloseCode:
    """Why a connection is closed (RFC 6455 7.4.1, and IANA's registry).

    NO_INFO stands for "no code in the frame"; it and ABNORMAL_CLOSURE never appear on the wire.
    """
    NO_INFO = 0
    OK = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL_CLOSURE = 1006
    INVALID_TEXT = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


cdef enum:
    MAX_HEADER_SIZE = 14    # bytes: 2 + 8 of length + 4 of mask key
    MAX_CONTROL_SIZE = 125  # bytes of payload (RFC 6455 5.5)


# One received frame.
#
# Inside a callback, payload_ptr points into the receive buffer. The object may be kept: once the
# callback has returned, a kept frame has its own copy of the payload (payload_ptr then points to that),
# and a kept memoryview keeps its buffer. A *pointer* copied out of payload_ptr is good only until the
# callback returns.
cdef class WSFrame:
    cdef:
        char* payload_ptr
        readonly Py_ssize_t payload_size    # bytes
        readonly Py_ssize_t tail_size       # bytes that follow this frame in the receive buffer
        readonly WSMsgType msg_type
        readonly bint fin
        readonly bint rsv1
        readonly bint rsv2
        readonly bint rsv3
        readonly bint last_in_buffer        # no complete frame follows in the receive buffer
        # When the kernel received the data that completed it, nanoseconds; -1: not known, None to Python code.
        readonly long long recv_timestamp_ns            # CLOCK_REALTIME
        readonly long long recv_hardware_timestamp_ns   # the network device's clock

        object _owner                       # keeps the memory behind payload_ptr alive
        Py_ssize_t _exports                 # memoryviews of the payload that are alive

    cpdef bytes get_payload_as_bytes(self)
    cpdef str get_payload_as_utf8_text(self)
    cpdef str get_payload_as_ascii_text(self)
    cpdef object get_payload_as_memoryview(self)

    cpdef WSCloseCode get_close_code(self)
    cpdef bytes get_close_message(self)
    cpdef str get_close_reason(self)

    # Nanoseconds since recv_timestamp_ns; -1: not known.
    cdef long long age(self) noexcept nogil

    cdef int _keep(self) noexcept


# The reading half: a cursor over bytes that somebody else holds.
#
# start() looks at the frame under the cursor; while `look` is PF_FRAME_OK, take() hands it over, moves on
# and looks at the next. A negative `look` or result is a PF_ERR_* code. Neither sends, logs or closes.
cdef class FrameParser:
    cdef:
        # The header of the frame under the cursor.
        unsigned int opcode, rsv    # RSV1=4, RSV2=2, RSV3=1
        bint fin, masked
        uint8_t[4] mask_key
        Py_ssize_t header_size, payload_size
        int ordinary                # its first byte if it is a whole unmasked message, else -1
        int look                    # PF_FRAME_OK, PF_FRAME_INCOMPLETE or PF_ERR_*
        Py_ssize_t wanted           # size of the incomplete frame, header included; 0: not known yet
        bint expect_masked          # this side is the server (RFC 6455 5.1)
        bint validate_sequence
        unsigned int allowed_rsv    # bits that a negotiated extension uses
        bint in_message             # a fragmented message is under way
        readonly bint close_received
        Py_ssize_t max_frame_size
        int short_size              # payloads of a one-byte length that are not above max_frame_size

        # for feed() and next_frame() only
        uint8_t *_stored
        Py_ssize_t _stored_start, _stored_end, _stored_capacity

    cdef int start(self, const uint8_t *data, Py_ssize_t size) noexcept
    cdef int _make_room(self, Py_ssize_t extra) except -1
    cdef Py_ssize_t take(self, uint8_t *data, Py_ssize_t size, WSFrame frame) noexcept


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


# Writes header and payload to `out` (payload_size + MAX_HEADER_SIZE bytes at most), masked with a
# fresh key if `masked`. Returns the number of bytes written.
cdef Py_ssize_t write_frame(
    uint8_t *out, unsigned int opcode, bint fin, unsigned int rsv,
    const uint8_t *payload, Py_ssize_t payload_size, bint masked,
) except -1

# One whole frame of a server's, as bytes. `message` is str, bytes-like or None; anything else raises TypeError.
cdef bytes unmasked_frame(int msg_type, message)

# Writes a fresh mask key (4 bytes) from a cryptographic generator (RFC 6455 10.3).
cdef int new_mask_key(uint8_t *key) except -1

# Raises ValueError if no frame of these properties may be sent (RFC 6455 5.5).
cdef int check_frame(int opcode, bint fin, Py_ssize_t payload_size) except -1

cpdef bytes build_close_payload(int code, reason=*)

cdef WSFrame new_frame()
# The exception for a PF_ERR_* code that the parser gave for the frame that begins at data[0]; it says what was seen.
cdef object frame_error(FrameParser parser, const uint8_t *data, Py_ssize_t size)
# How many bytes of a text that goes on from `state` (pf_utf8_state) come before the one that makes it no UTF-8.
cdef Py_ssize_t utf8_error_offset(uint32_t state, const uint8_t *data, Py_ssize_t size) noexcept
cdef WSCloseInfo close_info(bytes payload)
