# Cython's view of wire/: what is declared there, under the same names, with their documentation in
# the headers. The C compiler finds the headers through the package's own directory as include path.

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "protocol/wire/frame.h" nogil:
    enum:
        PF_MIN_FRAME_HEADER_SIZE
        PF_MAX_FRAME_HEADER_SIZE
        PF_MAX_CONTROL_PAYLOAD_SIZE

    enum:
        PF_OPCODE_CONTINUATION
        PF_OPCODE_TEXT
        PF_OPCODE_BINARY
        PF_OPCODE_CLOSE
        PF_OPCODE_PING
        PF_OPCODE_PONG

    enum:
        PF_FRAME_INCOMPLETE
        PF_FRAME_OK
        PF_ERR_RESERVED_OPCODE
        PF_ERR_CONTROL_FRAGMENTED
        PF_ERR_CONTROL_TOO_LONG
        PF_ERR_LENGTH_NOT_MINIMAL
        PF_ERR_LENGTH_MSB_SET
        PF_ERR_RSV_SET
        PF_ERR_UNMASKED
        PF_ERR_MASKED
        PF_ERR_FRAME_TOO_BIG
        PF_ERR_UNEXPECTED_CONTINUATION
        PF_ERR_EXPECTED_CONTINUATION
        PF_ERR_CLOSE_PAYLOAD_SHORT
        PF_ERR_CLOSE_CODE
        PF_ERR_CLOSE_REASON_UTF8
        PF_ERR_TEXT_UTF8
        PF_ERR_MESSAGE_TOO_BIG
        PF_ERR_TOO_MANY_FRAGMENTS

    ctypedef struct pf_frame_header:
        uint64_t payload_size
        uint8_t opcode
        uint8_t fin
        uint8_t rsv
        uint8_t masked
        uint8_t header_size
        uint8_t mask_key[4]

    int pf_read_frame_header(const uint8_t *data, size_t size, pf_frame_header *out)
    size_t pf_frame_header_size(uint64_t payload_size, int masked)
    size_t pf_write_frame_header(uint8_t *out, unsigned opcode, int fin, unsigned rsv,
                                 uint64_t payload_size, const uint8_t *mask_key)
    int pf_close_code_valid(unsigned code)


cdef extern from "protocol/wire/mask.h" nogil:
    void pf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key, size_t phase)
    const char *pf_mask_implementation()


cdef extern from "protocol/wire/utf8.h" nogil:
    ctypedef uint32_t pf_utf8_state

    const pf_utf8_state PF_UTF8_ACCEPT
    const pf_utf8_state PF_UTF8_REJECT

    pf_utf8_state pf_utf8_feed(pf_utf8_state state, const uint8_t *data, size_t size)
