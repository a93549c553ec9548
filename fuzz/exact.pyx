# cython: language_level=3
"""Drives FrameParser.start and take, and MessageAssembler behind them, as a connection does.

The parser gets blocks of exactly the bytes that arrived: FrameParser.feed keeps spare room behind its bytes, where
AddressSanitizer sees nothing wrong. Here the first byte behind them is out of bounds. Built for fuzzing only.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from picows_fast.protocol.codec cimport FrameParser, WSFrame, new_frame
from picows_fast.protocol.messages cimport MessageAssembler

from picows_fast import WSPeerProtocolError


def read_exact(FrameParser parser, chunks, MessageAssembler assembler=None):
    """What `chunks` give: frames (described) or messages, the error code or 0, bytes when it came.

    With an assembler, unfinished frames are shown to it, too.
    """
    cdef list seen = []
    cdef uint8_t *data = NULL
    cdef uint8_t *grown
    cdef bytes chunk
    cdef Py_ssize_t size = 0, arrived = 0, position, taken, shown = 0
    cdef WSFrame frame, message
    try:
        for chunk in chunks:
            arrived += len(chunk)
            grown = <uint8_t*> malloc(size + len(chunk) or 1)
            if grown == NULL:
                raise MemoryError()
            if size:
                memcpy(grown, data, size)
            memcpy(grown + size, <const uint8_t*> <char*> chunk, len(chunk))
            free(data)
            data = grown
            size += len(chunk)
            position = 0
            parser.start(data, size)
            while parser.look == 1:
                frame = new_frame()
                taken = parser.take(data + position, size - position, frame)
                if taken < 0:
                    return seen, taken, arrived
                check_frame(parser, frame, data, size, position, taken)
                position += taken
                shown = 0
                if assembler is None:
                    seen.append((int(frame.msg_type), frame.get_payload_as_bytes(), bool(frame.fin),
                                 4 * frame.rsv1 + 2 * frame.rsv2 + frame.rsv3))
                else:
                    message = assembler.add(frame)
                    if message is not None:
                        seen.append((int(message.msg_type), message.get_payload_as_bytes()))
                    check_memory(assembler)
            if parser.look < 0:
                return seen, parser.look, arrived
            if parser.close_received:
                break
            if parser.wanted and parser.wanted <= size - position:
                raise AssertionError("an incomplete frame wants no more than there is")
            size -= position
            memmove(data, data + position, size)
            if assembler is not None and shows(parser) and size > parser.header_size:
                shown = show_unfinished(parser, assembler, data, size, shown)
        return seen, 0, arrived
    except WSPeerProtocolError as error:
        if assembler is None:
            raise
        return seen, int(error.violation), arrived
    finally:
        free(data)


cdef int check_frame(FrameParser parser, WSFrame frame, uint8_t *data, Py_ssize_t size,
                     Py_ssize_t position, Py_ssize_t taken) except -1:
    if frame.payload_ptr < <char*> data or frame.payload_ptr + frame.payload_size > <char*> data + size:
        raise AssertionError("payload lies outside of the bytes that arrived")
    if not 0 < taken <= size - position or frame.tail_size != size - position - taken:
        raise AssertionError("wrong count of bytes taken")
    if frame.last_in_buffer != (parser.look != 1):
        raise AssertionError("last_in_buffer is wrong")
    return 0


cdef int check_memory(MessageAssembler assembler) except -1:
    if assembler.joined is not None and (
        assembler.joined.capacity > max(2 * assembler.size, 256)
        or assembler.size > assembler.max_message_size
    ):
        raise AssertionError("more memory than is documented")
    return 0


cdef bint shows(FrameParser parser):
    return parser.wanted and parser.opcode < 8 and not parser.rsv


cdef Py_ssize_t show_unfinished(FrameParser parser, MessageAssembler assembler, const uint8_t *data,
                                Py_ssize_t size, Py_ssize_t shown) except -1:
    """The bytes of the payload that are new, unmasked, in a block of their own."""
    cdef Py_ssize_t piece = size - parser.header_size - shown
    cdef Py_ssize_t i
    cdef uint8_t *block = <uint8_t*> malloc(piece or 1)
    if block == NULL:
        raise MemoryError()
    try:
        for i in range(piece):
            block[i] = data[parser.header_size + shown + i]
            if parser.masked:
                block[i] ^= parser.mask_key[(shown + i) & 3]
        assembler.check_unfinished(<int> parser.opcode, block, piece)
    finally:
        free(block)
    return shown + piece
