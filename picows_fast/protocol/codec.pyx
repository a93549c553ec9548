# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Frames: parsing bytes into :class:`WSFrame` and building frames as bytes (RFC 6455 5).

Owns the frame object and its lifetime, the parser's state (fragmentation, CLOSE seen), the mask keys, and what
CLOSE frames say.
Does no I/O: feed a :class:`FrameParser` from asyncio, a thread, trio or an HTTP/2 stream.
"""

import os

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memmove

from .wire cimport (
    PF_ERR_CLOSE_CODE,
    PF_ERR_CLOSE_PAYLOAD_SHORT,
    PF_ERR_CLOSE_REASON_UTF8,
    PF_ERR_CONTROL_FRAGMENTED,
    PF_ERR_CONTROL_TOO_LONG,
    PF_ERR_EXPECTED_CONTINUATION,
    PF_ERR_FRAME_TOO_BIG,
    PF_ERR_MASKED,
    PF_ERR_RESERVED_OPCODE,
    PF_ERR_RSV_SET,
    PF_ERR_UNEXPECTED_CONTINUATION,
    PF_ERR_UNMASKED,
    PF_FRAME_INCOMPLETE,
    PF_FRAME_OK,
    PF_UTF8_ACCEPT,
    PF_UTF8_REJECT,
    pf_close_code_valid,
    pf_frame_header,
    pf_frame_header_size,
    pf_mask,
    pf_read_frame_header,
    pf_utf8_feed,
    pf_write_frame_header,
)

from ..exceptions import VIOLATIONS, WSPeerProtocolError

cimport cython


cdef extern from *:
    """
    #include <time.h>

    /* Unix time. Only asked where there are times of arrival to compare it with, which Windows does not have. */
    static inline long long pf_realtime_ns(void)
    {
    #ifdef _WIN32
        return 0;
    #else
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
    #endif
    }
    """
    long long pf_realtime_ns() nogil

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


# --- Mask keys -----------------------------------------------------------------------------------

cdef uint8_t[4096] _key_pool
cdef Py_ssize_t _keys_used = 4096


def _forget_mask_keys():
    """Drop the drawn keys, so that a forked child does not send the ones its parent will send."""
    global _keys_used
    _keys_used = sizeof(_key_pool)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_mask_keys)


cdef int _draw_mask_keys() except -1:
    global _keys_used
    cdef bytes drawn = os.urandom(sizeof(_key_pool))
    memcpy(_key_pool, PyBytes_AS_STRING(drawn), sizeof(_key_pool))
    _keys_used = 0
    return 0


cdef int new_mask_key(uint8_t *key) except -1:
    global _keys_used
    if _keys_used == sizeof(_key_pool):
        _draw_mask_keys()
    memcpy(key, &_key_pool[_keys_used], 4)
    _keys_used += 4
    return 0


# --- Building ------------------------------------------------------------------------------------

cdef int check_frame(int opcode, bint fin, Py_ssize_t payload_size) except -1:
    if opcode & ~0xB or opcode == 3 or opcode == 11:
        raise ValueError(f"msg_type must be a WSMsgType, got {opcode}")
    if opcode >= WSMsgType.CLOSE:
        if not fin:
            raise ValueError("a control frame must not be fragmented (RFC 6455 5.5)")
        if payload_size > MAX_CONTROL_SIZE:
            raise ValueError(
                f"a control frame carries at most {MAX_CONTROL_SIZE} bytes (RFC 6455 5.5), got {payload_size}"
            )
    return 0


cdef Py_ssize_t write_frame(
    uint8_t *out, unsigned int opcode, bint fin, unsigned int rsv,
    const uint8_t *payload, Py_ssize_t payload_size, bint masked,
) except -1:
    cdef uint8_t[4] key
    cdef size_t header_size
    if masked:
        new_mask_key(key)
        header_size = pf_write_frame_header(out, opcode, fin, rsv, <size_t> payload_size, key)
        pf_mask(out + header_size, payload, <size_t> payload_size, key, 0)
    else:
        header_size = pf_write_frame_header(out, opcode, fin, rsv, <size_t> payload_size, NULL)
        if payload_size:
            memcpy(out + header_size, payload, <size_t> payload_size)
    return <Py_ssize_t> header_size + payload_size


def build_frame(msg_type, payload=None, *, bint fin=True, bint rsv1=False, bint rsv2=False,
                bint rsv3=False, bint mask=False):
    """Return one frame as bytes (RFC 6455 5.2).

    :param msg_type: a :class:`WSMsgType`
    :param payload: str (sent as UTF-8), bytes-like or None
    :param mask: mask the payload with a fresh key, as a client must (RFC 6455 5.3)
    :raises ValueError: reserved opcode, or a control frame that is fragmented or above 125 bytes
    :raises TypeError: payload is neither str, bytes-like nor None
    """
    cdef Py_buffer view
    cdef Py_ssize_t size
    cdef bytes out
    if not isinstance(msg_type, int):
        raise TypeError(f"build_frame() takes a WSMsgType first, then the payload; got {type(msg_type).__name__} first")
    if payload is None:
        payload = b""
    elif isinstance(payload, str):
        payload = payload.encode()
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        check_frame(msg_type, fin, view.len)
        size = <Py_ssize_t> pf_frame_header_size(<size_t> view.len, mask) + view.len
        out = PyBytes_FromStringAndSize(NULL, size)
        write_frame(<uint8_t*> PyBytes_AS_STRING(out), <unsigned int> msg_type, fin,
                    rsv_bits(rsv1, rsv2, rsv3), <const uint8_t*> view.buf, view.len, mask)
    finally:
        PyBuffer_Release(&view)
    return out


cdef bytes unmasked_frame(int msg_type, message):
    cdef Py_buffer view
    cdef const char *text
    cdef Py_ssize_t size = 0
    if isinstance(message, bytes):
        return unmasked_frame_of(msg_type, PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message))
    if isinstance(message, str):
        text = PyUnicode_AsUTF8AndSize(message, &size)
        return unmasked_frame_of(msg_type, text, size)
    if message is None:
        return unmasked_frame_of(msg_type, NULL, 0)
    PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    try:
        return unmasked_frame_of(msg_type, <const char*> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef inline bytes unmasked_frame_of(int msg_type, const char *payload, Py_ssize_t size):
    cdef Py_ssize_t header_size = <Py_ssize_t> pf_frame_header_size(<size_t> size, False)
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, header_size + size)
    write_frame(
        <uint8_t*> PyBytes_AS_STRING(frame), <unsigned int> msg_type, True, 0, <const uint8_t*> payload, size, False
    )
    return frame


cdef inline unsigned int rsv_bits(bint rsv1, bint rsv2, bint rsv3) noexcept:
    return (4 if rsv1 else 0) | (2 if rsv2 else 0) | (1 if rsv3 else 0)


cpdef bytes build_close_payload(int code, reason=None):
    """Return the payload of a CLOSE frame (RFC 6455 5.5.1).

    :param code: close code; ``WSCloseCode.NO_INFO`` makes an empty payload
    :param reason: str, UTF-8 bytes-like or None
    :raises ValueError: a code that must not be sent (RFC 6455 7.4), a reason without a code, above 123 bytes,
        or not UTF-8
    """
    cdef bytes encoded
    if reason is None:
        encoded = b""
    elif isinstance(reason, str):
        encoded = reason.encode()
    else:
        encoded = bytes(memoryview(reason))
    if code == WSCloseCode.NO_INFO:
        if encoded:
            raise ValueError("a close reason needs a close code (RFC 6455 5.5.1)")
        return b""
    if code < 0 or not pf_close_code_valid(<unsigned int> code):
        raise ValueError(f"close code {code} must not be sent (RFC 6455 7.4)")
    if len(encoded) > MAX_CONTROL_SIZE - 2:
        raise ValueError(f"a close reason has at most 123 bytes (RFC 6455 5.5), got {len(encoded)}")
    cdef const uint8_t *data = <const uint8_t*> PyBytes_AS_STRING(encoded)
    if pf_utf8_feed(PF_UTF8_ACCEPT, data, <size_t> len(encoded)) != PF_UTF8_ACCEPT:
        raise ValueError("a close reason must be UTF-8 (RFC 6455 5.5.1)")
    return code.to_bytes(2, "big") + encoded


# --- Frames --------------------------------------------------------------------------------------

# The garbage collector must not show a frame that waits for its next use, and a frame is in no cycle.
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class WSFrame:
    """One received frame (RFC 6455 5.2): a view into the receive buffer while the callback runs.

    A frame may be kept: after the callback it holds a copy of its payload. A memoryview of the payload stays
    valid too. Frames are made by the parser, not by users.

    Read-only attributes: ``msg_type``, a :class:`WSMsgType`; ``fin``, ``rsv1``, ``rsv2``, ``rsv3``, the header's bits
    as bool; ``payload_size``, bytes; ``tail_size``, the bytes that follow this frame in the receive buffer;
    ``last_in_buffer``, whether no complete frame follows there.

    With the setting ``rx_timestamps``, ``recv_timestamp_ns`` tells when the kernel received the data that completed the
    frame, Unix time in nanoseconds, and ``recv_hardware_timestamp_ns`` when the network device did, nanoseconds of its
    own clock; None where that is not known. Frames of one read have the time of the last segment in it.
    """

    def __cinit__(self):
        self.payload_ptr = b""
        self.recv_timestamp_ns = self.recv_hardware_timestamp_ns = -1

    def __init__(self):
        raise TypeError("WSFrame objects are made by FrameParser")

    cpdef bytes get_payload_as_bytes(self):
        """Return a copy of the payload."""
        return PyBytes_FromStringAndSize(self.payload_ptr, self.payload_size)

    cpdef str get_payload_as_utf8_text(self):
        """Return the payload decoded from UTF-8.

        :raises UnicodeDecodeError: the payload is not valid UTF-8, such as a fragment cut inside a character
        """
        return PyUnicode_DecodeUTF8(self.payload_ptr, self.payload_size, NULL)

    cpdef str get_payload_as_ascii_text(self):
        """Return the payload decoded from ASCII, which is cheaper than UTF-8.

        :raises UnicodeDecodeError: the payload has a byte above 127
        """
        return PyUnicode_DecodeASCII(self.payload_ptr, self.payload_size, NULL)

    cpdef object get_payload_as_memoryview(self):
        """Return a read-only memoryview of the payload, without a copy.

        It stays valid for as long as it is kept; it then keeps the receive buffer that it points into (up to
        some hundred KiB), so copy small payloads that are kept for long.
        """
        return memoryview(self)

    cpdef WSCloseCode get_close_code(self):
        """Return the close code of a CLOSE frame, ``WSCloseCode.NO_INFO`` if it has none (RFC 6455 7.1.5)."""
        cdef const uint8_t *payload = <const uint8_t*> self.payload_ptr
        if self.msg_type != WSMsgType.CLOSE or self.payload_size < 2:
            return WSCloseCode.NO_INFO
        return <WSCloseCode> ((payload[0] << 8) | payload[1])

    cpdef bytes get_close_message(self):
        """Return the close reason as UTF-8 bytes, None if there is none (RFC 6455 7.1.6)."""
        if self.msg_type != WSMsgType.CLOSE or self.payload_size <= 2:
            return None
        return PyBytes_FromStringAndSize(self.payload_ptr + 2, self.payload_size - 2)

    cpdef str get_close_reason(self):
        """Return the close reason as str, None if there is none (RFC 6455 7.1.6)."""
        if self.msg_type != WSMsgType.CLOSE or self.payload_size <= 2:
            return None
        return PyUnicode_DecodeUTF8(self.payload_ptr + 2, self.payload_size - 2, NULL)

    def age_ns(self):
        """Return the nanoseconds since ``recv_timestamp_ns``: how long the frame waited; None if that is not known.

        Both are the system's real-time clock: if that was set meanwhile, this is off by as much.
        """
        return None if self.recv_timestamp_ns < 0 else self.age()

    cdef long long age(self) noexcept nogil:
        return -1 if self.recv_timestamp_ns < 0 else pf_realtime_ns() - self.recv_timestamp_ns

    cdef int _keep(self) noexcept:
        # Called when the callback is over and somebody still holds the frame. Existing views point into the
        # buffer, so they keep it; without views the buffer is better left to the next read. So it is if there is no
        # memory for a copy.
        cdef bytes copy
        if self._exports == 0 and type(self._owner) is not bytes:
            try:
                copy = PyBytes_FromStringAndSize(self.payload_ptr, self.payload_size)
            except MemoryError:
                return 0
            self.payload_ptr = PyBytes_AS_STRING(copy)
            self._owner = copy
        return 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.payload_ptr, self.payload_size, True, flags)
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._exports -= 1

    def __len__(self):
        return self.payload_size

    def __repr__(self):
        return (
            f"WSFrame({(<object> _msg_type_objects[self.msg_type & 15]).name}, fin={self.fin}, "
            f"rsv1={self.rsv1}, rsv2={self.rsv2}, rsv3={self.rsv3}, "
            f"last_in_buffer={self.last_in_buffer}, payload_size={self.payload_size}, tail_size={self.tail_size})"
        )

    def __reduce__(self):
        raise TypeError("WSFrame cannot be pickled; take its payload")


cdef WSFrame new_frame():
    return WSFrame.__new__(WSFrame)


# What Cython makes of a readonly enum attribute builds an enum object on every read. The members are fixed,
# so the attribute hands out the existing ones instead.
cdef extern from "Python.h":
    ctypedef object (*getter)(object, void*)
    ctypedef struct PyGetSetDef:
        const char *name
        getter get
        void *set
        const char *doc
        void *closure
    object PyDescr_NewGetSet(PyTypeObject *type, PyGetSetDef *getset)

cdef (PyObject*)[16] _msg_type_objects
cdef tuple _msg_types = tuple(WSMsgType)
cdef PyGetSetDef _msg_type_getset, _timestamp_getset, _hardware_timestamp_getset


cdef object _get_msg_type(object self, void *closure):
    return <object> _msg_type_objects[(<WSFrame> self).msg_type & 15]


# What is -1 to C code is None to Python code.
cdef object _get_timestamp(object self, void *closure):
    cdef long long stamp = (<WSFrame> self).recv_timestamp_ns
    return None if stamp < 0 else stamp


cdef object _get_hardware_timestamp(object self, void *closure):
    cdef long long stamp = (<WSFrame> self).recv_hardware_timestamp_ns
    return None if stamp < 0 else stamp


cdef extern from *:
    """
    static int pf_replace_attribute(PyObject *type, const char *name, PyObject *descriptor) {
        int result = PyDict_SetItemString(((PyTypeObject *)type)->tp_dict, name, descriptor);
        PyType_Modified((PyTypeObject *)type);
        return result;
    }
    """
    int pf_replace_attribute(object type, const char *name, object descriptor) except -1


cdef int _install(PyGetSetDef *attribute, const char *name, getter get, const char *doc) except -1:
    attribute.name = name
    attribute.get = get
    attribute.doc = doc
    return pf_replace_attribute(WSFrame, name, PyDescr_NewGetSet(<PyTypeObject*> WSFrame, attribute))


for _member in _msg_types:
    _msg_type_objects[<int> _member] = <PyObject*> _member
del _member
_install(&_msg_type_getset, "msg_type", _get_msg_type, "WSMsgType: the opcode (RFC 6455 5.2)")
_install(
    &_timestamp_getset, "recv_timestamp_ns", _get_timestamp,
    "int: when the kernel received the data that completed the frame, Unix time in nanoseconds; None if not known",
)
_install(
    &_hardware_timestamp_getset, "recv_hardware_timestamp_ns", _get_hardware_timestamp,
    "int: when the network device did, nanoseconds of its own clock; None if not known",
)


# --- Parsing -------------------------------------------------------------------------------------

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # A parser whose bytes are used up keeps this much memory for the next ones.
    STORED_KEPT = 64 * 1024


cdef object frame_error(FrameParser parser, const uint8_t *data, Py_ssize_t size):
    cdef pf_frame_header head
    cdef int error = parser.look
    cdef object opcode = data[0] & 0xF if size else None
    violation = VIOLATIONS[error][0]
    if error in (PF_ERR_FRAME_TOO_BIG, PF_ERR_RSV_SET, PF_ERR_CLOSE_CODE, PF_ERR_CLOSE_REASON_UTF8):
        if pf_read_frame_header(data, <size_t> size, &head) != PF_FRAME_OK:
            return WSPeerProtocolError(violation)
    if error == PF_ERR_FRAME_TOO_BIG:
        limit = parser.max_frame_size
        return WSPeerProtocolError(
            violation, f"{head.payload_size} bytes, max_frame_size is {limit}", size=head.payload_size, limit=limit
        )
    if error == PF_ERR_RSV_SET:
        bits = head.rsv & ~parser.allowed_rsv
        names = " and ".join(name for name, bit in (("RSV1", 4), ("RSV2", 2), ("RSV3", 1)) if bits & bit)
        return WSPeerProtocolError(violation, names, seen=bits)
    if error == PF_ERR_CLOSE_CODE:      # take() has unmasked the payload
        code = (data[head.header_size] << 8) | data[head.header_size + 1]
        return WSPeerProtocolError(violation, str(code), seen=code)
    if error == PF_ERR_CLOSE_REASON_UTF8:
        offset = utf8_error_offset(
            PF_UTF8_ACCEPT, data + head.header_size + 2, <Py_ssize_t> head.payload_size - 2
        )
        return WSPeerProtocolError(violation, f"byte {offset}", offset=offset)
    if error == PF_ERR_RESERVED_OPCODE:
        return WSPeerProtocolError(violation, str(opcode), seen=opcode)
    if error in (PF_ERR_CONTROL_FRAGMENTED, PF_ERR_CONTROL_TOO_LONG, PF_ERR_EXPECTED_CONTINUATION):
        return WSPeerProtocolError(violation, (<object> _msg_type_objects[opcode]).name, seen=opcode)
    return WSPeerProtocolError(violation)


cdef Py_ssize_t utf8_error_offset(uint32_t state, const uint8_t *data, Py_ssize_t size) noexcept:
    cdef Py_ssize_t offset
    for offset in range(size):
        state = pf_utf8_feed(state, data + offset, 1)
        if state == PF_UTF8_REJECT:
            return offset
    return size


@cython.final
@cython.auto_pickle(False)
cdef class FrameParser:
    """Turns received bytes, cut anywhere, into frames (RFC 6455 5, reading half). Does no I/O.

    ::

        parser = FrameParser(is_client=True)
        parser.feed(data)
        for frame in parser:
            ...

    ``close_received``, read-only, tells whether a CLOSE frame has come.

    :param is_client: this side is the client, so frames must come unmasked; a server's must be masked
    :param max_frame_size: bytes of payload that one frame may have
    :param validate_sequence: check the order of data frames and the reserved bits (RFC 6455 5.2, 5.4)
    :param allowed_rsv: reserved bits that a negotiated extension uses (RSV1=4, RSV2=2, RSV3=1)
    :raises ValueError: max_frame_size is negative or allowed_rsv out of range
    """

    def __init__(self, *, bint is_client, Py_ssize_t max_frame_size=10 * 1024 * 1024,
                 bint validate_sequence=True, int allowed_rsv=0):
        if max_frame_size < 0:
            raise ValueError(f"max_frame_size must not be negative, got {max_frame_size}")
        if not 0 <= allowed_rsv <= 7:
            raise ValueError(f"allowed_rsv must be in 0..7, got {allowed_rsv}")
        self.expect_masked = not is_client
        self.max_frame_size = min(max_frame_size, PY_SSIZE_T_MAX - MAX_HEADER_SIZE)
        self.short_size = <int> min(max_frame_size, <Py_ssize_t> 125)
        self.validate_sequence = validate_sequence
        self.allowed_rsv = <unsigned int> allowed_rsv
        self.look = PF_FRAME_INCOMPLETE

    def __dealloc__(self):
        PyMem_Free(self._stored)

    cdef int start(self, const uint8_t *data, Py_ssize_t size) noexcept:
        """Look at the frame that begins at data[0]; sets and returns `look`."""
        cdef pf_frame_header head
        cdef Py_ssize_t total
        cdef int look = pf_read_frame_header(data, <size_t> size, &head)
        self.wanted = 0
        if look == PF_FRAME_OK:
            if head.masked != self.expect_masked:
                look = PF_ERR_UNMASKED if self.expect_masked else PF_ERR_MASKED
            elif head.payload_size > <uint64_t> self.max_frame_size:
                look = PF_ERR_FRAME_TOO_BIG
            elif self.validate_sequence and (head.rsv & ~self.allowed_rsv):
                look = PF_ERR_RSV_SET
            elif self.validate_sequence and head.opcode < WSMsgType.CLOSE and (head.opcode == 0) != self.in_message:
                look = PF_ERR_EXPECTED_CONTINUATION if self.in_message else PF_ERR_UNEXPECTED_CONTINUATION
            else:
                self.opcode = head.opcode
                self.rsv = head.rsv
                self.fin = head.fin
                self.masked = head.masked
                memcpy(self.mask_key, head.mask_key, 4)
                self.header_size = head.header_size
                self.payload_size = <Py_ssize_t> head.payload_size
                # Not a last CONTINUATION, behind which none may follow, nor what is masked with a key of its own.
                self.ordinary = data[0] if head.fin and 0 < head.opcode < WSMsgType.CLOSE and not head.masked else -1
                total = self.header_size + self.payload_size
                if total > size:
                    self.wanted = total
                    look = PF_FRAME_INCOMPLETE
        self.look = look
        return look

    cdef Py_ssize_t take(self, uint8_t *data, Py_ssize_t size, WSFrame frame) noexcept:
        """Fill `frame` with the frame at data[0], which start() found complete; look at the one behind it.

        Returns the bytes that it took, or a PF_ERR_* code if it must not be delivered.
        """
        cdef uint8_t *payload = data + self.header_size
        cdef Py_ssize_t payload_size = self.payload_size
        cdef Py_ssize_t taken = self.header_size + payload_size
        cdef const uint8_t *following = data + taken
        cdef int error
        if self.masked:
            pf_mask(payload, payload, <size_t> payload_size, self.mask_key, 0)
        frame.payload_ptr = <char*> payload
        frame.payload_size = payload_size
        frame.tail_size = size - taken
        frame.msg_type = <WSMsgType> self.opcode
        frame.fin = self.fin
        frame.rsv1 = (self.rsv >> 2) & 1
        frame.rsv2 = (self.rsv >> 1) & 1
        frame.rsv3 = self.rsv & 1
        if self.opcode < WSMsgType.CLOSE:
            self.in_message = not self.fin
        elif self.opcode == WSMsgType.CLOSE:
            error = check_close_payload(payload, payload_size)
            if error:
                self.look = error
                return error
            # What follows a CLOSE is discarded (RFC 6455 5.5.1).
            self.close_received = True
            self.look = PF_FRAME_INCOMPLETE
            self.wanted = 0
            frame.last_in_buffer = True
            return taken
        size -= taken
        # A flood is of frames like the one before: whole short messages, which need no more looks than these.
        if (
            size >= 2 and following[0] == self.ordinary and following[1] <= self.short_size
            and size - 2 >= following[1]
        ):
            self.header_size = 2
            self.payload_size = following[1]
            frame.last_in_buffer = False
        else:
            frame.last_in_buffer = self.start(following, size) != PF_FRAME_OK
        return taken

    def feed(self, data):
        """Add received bytes (bytes-like). Frames come from :meth:`next_frame` or by iterating.

        :raises TypeError: data is not bytes-like
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.close_received or self.look < 0:
                return
            self._make_room(view.len)
            if view.len:
                memcpy(self._stored + self._stored_end, view.buf, <size_t> view.len)
                self._stored_end += view.len
        finally:
            PyBuffer_Release(&view)

    cdef int _make_room(self, Py_ssize_t extra) except -1:
        cdef Py_ssize_t filled = self._stored_end - self._stored_start
        cdef Py_ssize_t capacity
        cdef void *grown
        if self._stored_start and self._stored_start >= filled:
            # Moving what is left costs no more than reading what was taken did.
            memmove(self._stored, self._stored + self._stored_start, <size_t> filled)
            self._stored_start = 0
            self._stored_end = filled
        if self._stored_capacity - self._stored_end < extra:
            capacity = max(2 * self._stored_capacity, self._stored_end + extra, 256)
            grown = PyMem_Realloc(self._stored, <size_t> capacity)
            if grown == NULL:
                raise MemoryError()
            self._stored = <uint8_t*> grown
            self._stored_capacity = capacity
        return 0

    def next_frame(self):
        """Return the next complete :class:`WSFrame`, None if more bytes are needed.

        After a CLOSE frame, nothing more comes (RFC 6455 5.5.1).

        :raises WSPeerProtocolError: the bytes violate RFC 6455; every later call raises it again
        """
        cdef Py_ssize_t size = self._stored_end - self._stored_start
        cdef Py_ssize_t taken
        cdef uint8_t *data
        cdef WSFrame frame
        if self.close_received:
            return None
        if self.look >= 0:
            if size == 0:
                return None
            data = self._stored + self._stored_start
            if self.start(data, size) == PF_FRAME_OK:
                frame = new_frame()
                taken = self.take(data, size, frame)
                if taken > 0:
                    self._stored_start += taken
                    frame._keep()
                    if self._stored_start == self._stored_end and self._stored_capacity > STORED_KEPT:
                        PyMem_Free(self._stored)
                        self._stored = NULL
                        self._stored_start = self._stored_end = self._stored_capacity = 0
                    if self.look < 0:
                        # found by looking ahead; it is reported when its turn comes
                        self.look = PF_FRAME_INCOMPLETE
                    return frame
        if self.look < 0:
            raise frame_error(self, self._stored + self._stored_start, size)
        return None

    @property
    def buffered(self):
        """int: bytes that were fed and do not make a frame yet."""
        return self._stored_end - self._stored_start

    def __iter__(self):
        return self

    def __next__(self):
        frame = self.next_frame()
        if frame is None:
            raise StopIteration
        return frame


cdef int check_close_payload(const uint8_t *payload, Py_ssize_t size) noexcept:
    """0, or the PF_ERR_* code for the payload of a CLOSE frame (RFC 6455 5.5.1)."""
    if size == 0:
        return 0
    if size == 1:
        return PF_ERR_CLOSE_PAYLOAD_SHORT
    if not pf_close_code_valid((<unsigned int> payload[0] << 8) | payload[1]):
        return PF_ERR_CLOSE_CODE
    if pf_utf8_feed(PF_UTF8_ACCEPT, payload + 2, <size_t> size - 2) != PF_UTF8_ACCEPT:
        return PF_ERR_CLOSE_REASON_UTF8
    return 0


# --- The closing handshake -----------------------------------------------------------------------

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
    """What this payload of a good CLOSE frame says."""
    cdef WSCloseInfo info = WSCloseInfo.__new__(WSCloseInfo)
    cdef int code = 0
    if len(payload) >= 2:
        code = int.from_bytes(payload[:2], "big")
        if len(payload) > 2:
            info.reason = payload[2:].decode()
    try:
        info.code = WSCloseCode(code)
    except ValueError:
        info.code = code
    return info
