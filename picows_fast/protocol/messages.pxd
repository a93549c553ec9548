# Messages: the fragments of RFC 6455 5.4 joined and checked, for listeners and for code without asyncio.
#
# A message is a WSFrame with `fin`: the received one if it came in one frame, else one that owns the joined payload.
# What the lifetime of a frame is holds for it, too: see codec.pxd.

from .codec cimport WSFrame

from libc.stdint cimport uint8_t, uint32_t


cdef enum:
    DEFAULT_MESSAGE_SIZE = 10 * 1024 * 1024
    DEFAULT_FRAGMENTS = 65536

# Raises ValueError, naming the parameter.
cdef int check_limits(Py_ssize_t max_message_size, Py_ssize_t max_fragments) except -1


# The payload of a joined message, which the message's frame keeps alive. Not part of the Python API.
cdef class JoinedPayload:
    cdef:
        uint8_t *data
        Py_ssize_t capacity


# Turns frames into messages. One for each connection.
cdef class MessageAssembler:
    cdef:
        readonly Py_ssize_t max_message_size    # bytes
        readonly Py_ssize_t max_fragments

        # --- internal
        int msg_type                # of the message under way; CONTINUATION: none is
        Py_ssize_t fragments        # frames of it so far
        Py_ssize_t size             # bytes of it so far
        JoinedPayload joined        # these bytes, with room to grow; None while there are none to keep
        uint32_t text_state         # pf_utf8_state behind them
        Py_ssize_t checked_ahead    # bytes of the unfinished frame that went into text_state
        int error                   # PF_ERR_*, once something was wrong
        Py_ssize_t seen             # the size that was too big, or the offset of what is no text

    # The message that this frame completes, None if fragments are missing. A control frame is returned as it is.
    cpdef WSFrame add(self, WSFrame frame)

    # --- internal
    # Bytes of the payload of a frame that has not come whole, each once. Raises what add() would.
    cdef int check_unfinished(self, int opcode, const uint8_t *data, Py_ssize_t size) except -1
    cdef int _check(self, WSFrame frame) noexcept
    cdef int _join(self, WSFrame frame) except -1
    cdef WSFrame _finish(self, WSFrame last)
    cdef object _failure(self, int error)
