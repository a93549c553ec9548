/*
 * The frame header of RFC 6455 5.2: reading one, writing one, and the codes of everything that can
 * be wrong with a frame.
 *
 * What can be judged from one header alone is judged here. What needs more than that belongs to the
 * codec: the role of the endpoint (must frames be masked?), the frames before (is a continuation
 * due?), negotiated extensions (which RSV bits are allowed?), limits and payloads. Their error
 * codes are listed here all the same, so that one table covers them all.
 *
 * Plain C99: no Python.h, no allocation, no I/O.
 */
#ifndef PF_WIRE_FRAME_H
#define PF_WIRE_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    PF_MIN_FRAME_HEADER_SIZE = 2,
    PF_MAX_FRAME_HEADER_SIZE = 14,
    PF_MAX_CONTROL_PAYLOAD_SIZE = 125
};

/* Opcodes, RFC 6455 5.2; 3..7 and 11..15 are reserved. Bit 3 marks control frames. */
enum {
    PF_OPCODE_CONTINUATION = 0x0,
    PF_OPCODE_TEXT = 0x1,
    PF_OPCODE_BINARY = 0x2,
    PF_OPCODE_CLOSE = 0x8,
    PF_OPCODE_PING = 0x9,
    PF_OPCODE_PONG = 0xA
};

/* What a reader returns: progress, or a violation (negative). */
enum {
    PF_FRAME_INCOMPLETE = 0, /* more bytes are needed; none seen so far is wrong */
    PF_FRAME_OK = 1,

    /* Found by pf_read_frame_header. */
    PF_ERR_RESERVED_OPCODE = -1,    /* 5.2: opcodes 3..7 and 11..15 */
    PF_ERR_CONTROL_FRAGMENTED = -2, /* 5.5: a control frame without FIN */
    PF_ERR_CONTROL_TOO_LONG = -3,   /* 5.5: a control frame with more than 125 bytes of payload */
    PF_ERR_LENGTH_NOT_MINIMAL = -4, /* 5.2: a length in more bytes than it needs */
    PF_ERR_LENGTH_MSB_SET = -5,     /* 5.2: a 64-bit length with its most significant bit set */

    /* Found by the codec. */
    PF_ERR_RSV_SET = -6,                  /* 5.2: an RSV bit that no negotiated extension defines */
    PF_ERR_UNMASKED = -7,                 /* 5.1: an unmasked frame from a client */
    PF_ERR_MASKED = -8,                   /* 5.1: a masked frame from a server */
    PF_ERR_FRAME_TOO_BIG = -9,            /* 10.4: a payload above the local limit */
    PF_ERR_UNEXPECTED_CONTINUATION = -10, /* 5.4: a continuation with no message to continue */
    PF_ERR_EXPECTED_CONTINUATION = -11,   /* 5.4: a new message inside a fragmented one */
    PF_ERR_CLOSE_PAYLOAD_SHORT = -12,     /* 5.5.1: a CLOSE payload of one byte */
    PF_ERR_CLOSE_CODE = -13,              /* 7.4: a close code that must not be sent */
    PF_ERR_CLOSE_REASON_UTF8 = -14,       /* 5.5.1: a close reason that is not UTF-8 */

    /* Found by who joins fragments. */
    PF_ERR_TEXT_UTF8 = -15,         /* 8.1: a text message that is not UTF-8 */
    PF_ERR_MESSAGE_TOO_BIG = -16,   /* 10.4: a message above the local limit */
    PF_ERR_TOO_MANY_FRAGMENTS = -17 /* 10.4: a message in more frames than the local limit */
};

typedef struct pf_frame_header {
    uint64_t payload_size;
    uint8_t opcode;      /* 0..15 */
    uint8_t fin;         /* 0 or 1 */
    uint8_t rsv;         /* three bits: RSV1 = 4, RSV2 = 2, RSV3 = 1 */
    uint8_t masked;      /* 0 or 1 */
    uint8_t header_size; /* bytes, 2..14 */
    uint8_t mask_key[4]; /* in wire order; zero if not masked */
} pf_frame_header;

/* Lengths above 125, apart from the hot path: returns the bytes up to and including the length
 * (4 or 10), PF_FRAME_INCOMPLETE or an error. */
static inline int pf_read_extended_length(const uint8_t *data, size_t size, uint64_t *payload_size)
{
    uint64_t length = 0;
    size_t i;

    if (data[0] & 0x08)
        return PF_ERR_CONTROL_TOO_LONG;
    if ((data[1] & 0x7F) == 126) {
        if (size < 4)
            return PF_FRAME_INCOMPLETE;
        length = ((uint64_t)data[2] << 8) | data[3];
        if (length < 126)
            return PF_ERR_LENGTH_NOT_MINIMAL;
        *payload_size = length;
        return 4;
    }
    if (size > 2 && (data[2] & 0x80))
        return PF_ERR_LENGTH_MSB_SET;
    if (size < 10)
        return PF_FRAME_INCOMPLETE;
    for (i = 2; i < 10; i++)
        length = (length << 8) | data[i];
    if (length <= 0xFFFF)
        return PF_ERR_LENGTH_NOT_MINIMAL;
    *payload_size = length;
    return 10;
}

/*
 * Reads the frame header at `data`, of which `size` bytes have arrived; never looks behind them.
 * Returns PF_FRAME_OK, PF_FRAME_INCOMPLETE or an error code; `*out` is meaningful after PF_FRAME_OK
 * only. A wrong bit is reported as soon as it has arrived: opcode and FIN with the first byte, the
 * size of a control frame with the second, other lengths once they are complete.
 */
static inline int pf_read_frame_header(const uint8_t *data, size_t size, pf_frame_header *out)
{
    /* Bit n is set if n = FIN << 4 | opcode may begin a frame: one test for both rules. */
    const uint32_t legal = 0x07070007u;
    unsigned first, second, opcode;
    size_t header_size = PF_MIN_FRAME_HEADER_SIZE;
    uint64_t payload_size;

    if (size < 1)
        return PF_FRAME_INCOMPLETE;
    first = data[0];
    opcode = first & 0x0Fu;
    if (!((legal >> (opcode | ((first & 0x80u) >> 3))) & 1u))
        return (legal >> (opcode | 0x10u)) & 1u ? PF_ERR_CONTROL_FRAGMENTED
                                                : PF_ERR_RESERVED_OPCODE;
    if (size < 2)
        return PF_FRAME_INCOMPLETE;
    second = data[1];
    payload_size = second & 0x7Fu;
    if (payload_size > 125) {
        int result = pf_read_extended_length(data, size, &payload_size);
        if (result <= 0)
            return result;
        header_size = (size_t)result;
    }
    if (second & 0x80u) {
        if (size < header_size + 4)
            return PF_FRAME_INCOMPLETE;
        memcpy(out->mask_key, data + header_size, 4);
        header_size += 4;
    } else {
        memset(out->mask_key, 0, 4);
    }
    out->payload_size = payload_size;
    out->opcode = (uint8_t)opcode;
    out->fin = (uint8_t)(first >> 7);
    out->rsv = (uint8_t)((first >> 4) & 7u);
    out->masked = (uint8_t)(second >> 7);
    out->header_size = (uint8_t)header_size;
    return PF_FRAME_OK;
}

/* Bytes that the header of a frame with this payload takes: 2..14. */
static inline size_t pf_frame_header_size(uint64_t payload_size, int masked)
{
    size_t size = payload_size <= 125 ? 2 : payload_size <= 0xFFFF ? 4 : 10;

    return masked ? size + 4 : size;
}

/*
 * Writes a frame header to `out` and returns its size, pf_frame_header_size(payload_size, masked);
 * no byte behind it is touched. `rsv` is as in pf_frame_header, `payload_size` at most 2^63 - 1.
 * `mask_key` holds 4 bytes, or is NULL for an unmasked frame. Nothing is checked: whether the frame
 * is legal is the caller's business.
 */
static inline size_t pf_write_frame_header(uint8_t *out, unsigned opcode, int fin, unsigned rsv,
                                           uint64_t payload_size, const uint8_t *mask_key)
{
    const unsigned mask_bit = mask_key ? 0x80u : 0u;
    size_t size;
    size_t i;

    out[0] = (uint8_t)((fin ? 0x80u : 0u) | ((rsv & 7u) << 4) | (opcode & 0x0Fu));
    if (payload_size <= 125) {
        out[1] = (uint8_t)(mask_bit | (unsigned)payload_size);
        size = 2;
    } else if (payload_size <= 0xFFFF) {
        out[1] = (uint8_t)(mask_bit | 126u);
        out[2] = (uint8_t)(payload_size >> 8);
        out[3] = (uint8_t)payload_size;
        size = 4;
    } else {
        out[1] = (uint8_t)(mask_bit | 127u);
        for (i = 0; i < 8; i++)
            out[2 + i] = (uint8_t)(payload_size >> (56 - 8 * i));
        size = 10;
    }
    if (mask_key) {
        memcpy(out + size, mask_key, 4);
        size += 4;
    }
    return size;
}

/* May this close code appear on the wire? RFC 6455 7.4 and the IANA registry it founds:
 * 1000-1003, 1007-1014, and 3000-4999 for libraries and applications. 1004 is reserved; 1005,
 * 1006 and 1015 are for local use only. */
static inline int pf_close_code_valid(unsigned code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

#endif
