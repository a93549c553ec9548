# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Messages: fragments joined within limits, text checked as it arrives (RFC 6455 5.4, 8.1).

Owns the fragments of the message under way and nothing else: what a violation does to the connection is the caller's
business, extensions are not known here.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcpy

from .codec cimport WSMsgType, new_frame, utf8_error_offset
from .wire cimport (
    PF_ERR_EXPECTED_CONTINUATION,
    PF_ERR_MESSAGE_TOO_BIG,
    PF_ERR_RSV_SET,
    PF_ERR_TEXT_UTF8,
    PF_ERR_TOO_MANY_FRAGMENTS,
    PF_ERR_UNEXPECTED_CONTINUATION,
    PF_UTF8_ACCEPT,
    PF_UTF8_REJECT,
    pf_utf8_feed,
)

from ..exceptions import VIOLATIONS, WSPeerProtocolError

cimport cython


cdef enum:
    # Bytes that the first fragment reserves at least.
    SMALLEST_BUFFER = 256


cdef class JoinedPayload:
    """The payload of a joined message. Has nothing for Python code."""

    def __dealloc__(self):
        PyMem_Free(self.data)


cdef int check_limits(Py_ssize_t max_message_size, Py_ssize_t max_fragments) except -1:
    if max_message_size < 0:
        raise ValueError(f"max_message_size must not be negative, got {max_message_size}")
    if max_fragments < 1:
        raise ValueError(f"max_fragments must be positive, got {max_fragments}")
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class MessageAssembler:
    """Joins the frames of one connection into messages (RFC 6455 5.4). Does no I/O.

    ::

        parser = FrameParser(is_client=True)
        assembler = MessageAssembler()
        parser.feed(data)
        for frame in parser:
            message = assembler.add(frame)
            if message is not None:
                ...                     # TEXT, BINARY, or a control frame

    It holds as many bytes as the unfinished message has, rounded up to the double at most.

    :param max_message_size: bytes of payload that one message may have
    :param max_fragments: frames that one message may have; empty ones count
    :raises ValueError: max_message_size is negative or max_fragments not positive
    """

    def __init__(self, *, Py_ssize_t max_message_size=DEFAULT_MESSAGE_SIZE,
                 Py_ssize_t max_fragments=DEFAULT_FRAGMENTS):
        check_limits(max_message_size, max_fragments)
        self.max_message_size = max_message_size
        self.max_fragments = max_fragments
        self.text_state = PF_UTF8_ACCEPT

    @property
    def buffered(self):
        """int: bytes of the message that is not complete yet."""
        return 0 if self.joined is None else self.size

    cpdef WSFrame add(self, WSFrame frame):
        """Return the message that this frame completes, as a frame; None if fragments are missing.

        A message in one frame is that frame itself, without a copy. A control frame is returned as it is: it may come
        between two fragments.

        :raises WSPeerProtocolError: the order of frames is wrong, a reserved bit is set, text is not UTF-8, or a limit
            was exceeded; every later data frame raises it again
        :raises MemoryError: the fragments are lost; every later data frame raises WSPeerProtocolError
        """
        cdef WSFrame message = frame
        cdef int error
        if frame is None:
            raise TypeError("frame must be a WSFrame, got None")
        if frame.msg_type >= WSMsgType.CLOSE:
            return frame
        error = self._check(frame)
        if error:
            raise self._failure(error)
        if not frame.fin or self.fragments > 1:
            try:
                self._join(frame)
                if not frame.fin:
                    return None
                message = self._finish(frame)
            except MemoryError:
                # A message with a gap must not be completed, nor the next one be taken for its rest.
                self.error = PF_ERR_MESSAGE_TOO_BIG
                self.joined = None
                raise
        self.msg_type = WSMsgType.CONTINUATION
        return message

    cdef int _check(self, WSFrame frame) noexcept:
        """Count this frame in; 0, or what is wrong."""
        cdef const uint8_t *payload = <const uint8_t*> frame.payload_ptr
        cdef Py_ssize_t ahead = min(self.checked_ahead, frame.payload_size)
        cdef uint32_t before
        if self.error:
            return self.error
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            return PF_ERR_RSV_SET
        if frame.msg_type != WSMsgType.CONTINUATION:
            if self.msg_type != WSMsgType.CONTINUATION:
                return PF_ERR_EXPECTED_CONTINUATION
            self.msg_type = frame.msg_type
            self.fragments = 0
            self.size = 0
        elif self.msg_type == WSMsgType.CONTINUATION:
            return PF_ERR_UNEXPECTED_CONTINUATION
        self.fragments += 1
        if self.fragments > self.max_fragments:
            return PF_ERR_TOO_MANY_FRAGMENTS
        if frame.payload_size > self.max_message_size - self.size:
            self.seen = self.size + frame.payload_size
            return PF_ERR_MESSAGE_TOO_BIG
        if self.msg_type == WSMsgType.TEXT:
            self.checked_ahead = 0
            before = self.text_state
            self.text_state = pf_utf8_feed(before, payload + ahead, <size_t> (frame.payload_size - ahead))
            if self.text_state != PF_UTF8_ACCEPT and (frame.fin or self.text_state == PF_UTF8_REJECT):
                self.seen = self.size + ahead + utf8_error_offset(before, payload + ahead, frame.payload_size - ahead)
                return PF_ERR_TEXT_UTF8
        return 0

    cdef int check_unfinished(self, int opcode, const uint8_t *data, Py_ssize_t size) except -1:
        cdef int error = self.error
        cdef int msg_type = self.msg_type
        cdef uint32_t before = self.text_state
        cdef Py_ssize_t joined = self.size if opcode == WSMsgType.CONTINUATION else 0
        if opcode != WSMsgType.CONTINUATION:
            if msg_type != WSMsgType.CONTINUATION:
                error = PF_ERR_EXPECTED_CONTINUATION
            msg_type = opcode
        elif msg_type == WSMsgType.CONTINUATION:
            error = PF_ERR_UNEXPECTED_CONTINUATION
        if not error and msg_type == WSMsgType.TEXT:
            self.text_state = pf_utf8_feed(before, data, <size_t> size)
            if self.text_state == PF_UTF8_REJECT:
                self.seen = joined + self.checked_ahead + utf8_error_offset(before, data, size)
                error = PF_ERR_TEXT_UTF8
            self.checked_ahead += size
        if error:
            raise self._failure(error)
        return 0

    cdef int _join(self, WSFrame frame) except -1:
        cdef Py_ssize_t needed = self.size + frame.payload_size
        cdef Py_ssize_t capacity = needed
        cdef void *grown
        if self.joined is None:
            self.joined = JoinedPayload.__new__(JoinedPayload)
        if self.joined.data == NULL or needed > self.joined.capacity:
            if not frame.fin:       # by doubling, as more will come
                capacity = min(max(2 * needed, <Py_ssize_t> SMALLEST_BUFFER), self.max_message_size)
            grown = PyMem_Realloc(self.joined.data, <size_t> capacity)
            if grown == NULL:
                raise MemoryError()
            self.joined.data = <uint8_t*> grown
            self.joined.capacity = capacity
        memcpy(self.joined.data + self.size, frame.payload_ptr, <size_t> frame.payload_size)
        self.size = needed
        return 0

    cdef WSFrame _finish(self, WSFrame last):
        """The message, which owns the joined bytes from now on."""
        cdef WSFrame message = new_frame()
        cdef JoinedPayload joined = self.joined
        cdef void *fitted = PyMem_Realloc(joined.data, <size_t> self.size)
        if fitted != NULL:
            joined.data = <uint8_t*> fitted
            joined.capacity = self.size
        self.joined = None
        message.payload_ptr = <char*> joined.data
        message.payload_size = self.size
        message.tail_size = last.tail_size
        message.last_in_buffer = last.last_in_buffer
        message.recv_timestamp_ns = last.recv_timestamp_ns
        message.recv_hardware_timestamp_ns = last.recv_hardware_timestamp_ns
        message.fin = True
        message.msg_type = <WSMsgType> self.msg_type
        message._owner = joined
        return message

    cdef object _failure(self, int error):
        self.error = error
        self.joined = None
        violation = VIOLATIONS[error].violation
        if error == PF_ERR_TEXT_UTF8:
            return WSPeerProtocolError(violation, f"byte {self.seen}", offset=self.seen)
        if error == PF_ERR_MESSAGE_TOO_BIG and self.seen:
            return WSPeerProtocolError(
                violation, f"{self.seen} bytes so far, max_message_size is {self.max_message_size}",
                size=self.seen, limit=self.max_message_size,
            )
        if error == PF_ERR_TOO_MANY_FRAGMENTS:
            return WSPeerProtocolError(
                violation, f"max_fragments is {self.max_fragments}", size=self.fragments, limit=self.max_fragments
            )
        return WSPeerProtocolError(violation)
