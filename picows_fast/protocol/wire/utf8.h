/*
 * Incremental UTF-8 validation (RFC 3629): no surrogates, no overlong forms, nothing above
 * U+10FFFF. Text may be fed in any cuts; a bad byte is noticed when it is fed, not at the end of
 * its character or message. Nothing is decoded, and nothing is known here of messages or close
 * frames.
 *
 * The state between two bytes of a character is what the next byte has to satisfy:
 *
 *     bits 0..1    continuation bytes still due, 1..3
 *     bits 8..15   smallest allowed value of the next byte
 *     bits 16..23  largest allowed value of the next byte
 *
 * Only the byte after the lead has a range other than 80..BF; that narrower range is what excludes
 * overlong forms (E0, F0), surrogates (ED) and values above U+10FFFF (F4).
 *
 * Plain C99: no Python.h, no allocation, no I/O.
 */
#ifndef PF_WIRE_UTF8_H
#define PF_WIRE_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(PF_NO_SIMD)
#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define PF_UTF8_SSE2 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#define PF_UTF8_NEON 1
#endif
#endif

typedef uint32_t pf_utf8_state;

#define PF_UTF8_ACCEPT 0u
#define PF_UTF8_REJECT 0xFFFFFFFFu

#define PF_UTF8_DUE(count, low, high) \
    ((uint32_t)(count) | ((uint32_t)(low) << 8) | ((uint32_t)(high) << 16))

/* The state after the lead byte of a character of two to four bytes. */
static inline pf_utf8_state pf_utf8_lead(unsigned byte)
{
    if (byte < 0xC2) /* a continuation byte, or the lead of an overlong form of U+0000..U+007F */
        return PF_UTF8_REJECT;
    if (byte < 0xE0)
        return PF_UTF8_DUE(1, 0x80, 0xBF);
    if (byte < 0xF0)
        return PF_UTF8_DUE(2, byte == 0xE0 ? 0xA0 : 0x80, byte == 0xED ? 0x9F : 0xBF);
    if (byte < 0xF5)
        return PF_UTF8_DUE(3, byte == 0xF0 ? 0x90 : 0x80, byte == 0xF4 ? 0x8F : 0xBF);
    return PF_UTF8_REJECT;
}

/* The state after one more byte of an unfinished character. */
static inline pf_utf8_state pf_utf8_continue(pf_utf8_state state, unsigned byte)
{
    const unsigned due = state & 3u;

    if (byte < ((state >> 8) & 0xFFu) || byte > ((state >> 16) & 0xFFu))
        return PF_UTF8_REJECT;
    return due == 1 ? PF_UTF8_ACCEPT : PF_UTF8_DUE(due - 1, 0x80, 0xBF);
}

/* How many bytes at the start of `data` are ASCII for certain: whole blocks only, so up to 15 more
 * may follow. */
static inline size_t pf_utf8_skip_ascii(const uint8_t *data, size_t size)
{
    size_t i = 0;

#if defined(PF_UTF8_SSE2)
    for (; size - i >= 64; i += 64) {
        const __m128i *block = (const __m128i *)(const void *)(data + i);
        const __m128i a = _mm_or_si128(_mm_loadu_si128(block), _mm_loadu_si128(block + 1));
        const __m128i b = _mm_or_si128(_mm_loadu_si128(block + 2), _mm_loadu_si128(block + 3));
        if (_mm_movemask_epi8(_mm_or_si128(a, b)))
            break;
    }
    for (; size - i >= 16; i += 16)
        if (_mm_movemask_epi8(_mm_loadu_si128((const __m128i *)(const void *)(data + i))))
            return i;
#elif defined(PF_UTF8_NEON)
    for (; size - i >= 64; i += 64) {
        const uint8x16_t a = vorrq_u8(vld1q_u8(data + i), vld1q_u8(data + i + 16));
        const uint8x16_t b = vorrq_u8(vld1q_u8(data + i + 32), vld1q_u8(data + i + 48));
        if (vmaxvq_u8(vorrq_u8(a, b)) & 0x80)
            break;
    }
    for (; size - i >= 16; i += 16)
        if (vmaxvq_u8(vld1q_u8(data + i)) & 0x80)
            return i;
#endif
    for (; size - i >= 8; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, 8);
        if (word & 0x8080808080808080u)
            return i;
    }
    return i;
}

/* The size of the character of two to four bytes that begins at `data`, 0 if it is not valid.
 * Four bytes must be readable. Says the same as the state machine, for characters that have
 * arrived whole. */
static inline size_t pf_utf8_character(const uint8_t *data)
{
    const unsigned lead = data[0], next = data[1];

    if (lead < 0xE0)
        return lead >= 0xC2 && (next & 0xC0) == 0x80 ? 2 : 0;
    if (lead < 0xF0) {
        if ((next & 0xC0) != 0x80 || (data[2] & 0xC0) != 0x80)
            return 0;
        if ((lead == 0xE0 && next < 0xA0) || (lead == 0xED && next > 0x9F))
            return 0;
        return 3;
    }
    if (lead > 0xF4 || (next & 0xC0) != 0x80 || (data[2] & 0xC0) != 0x80 ||
        (data[3] & 0xC0) != 0x80)
        return 0;
    if ((lead == 0xF0 && next < 0x90) || (lead == 0xF4 && next > 0x8F))
        return 0;
    return 4;
}

/*
 * Feeds `size` bytes and returns the new state: PF_UTF8_ACCEPT at a character boundary,
 * PF_UTF8_REJECT once the text cannot become valid any more (it then stays so), any other value
 * inside a character. A text begins with PF_UTF8_ACCEPT, and is valid if it ends with it.
 */
static inline pf_utf8_state pf_utf8_feed(pf_utf8_state state, const uint8_t *data, size_t size)
{
    if (state == PF_UTF8_REJECT)
        return state;
    for (;;) {
        while (state != PF_UTF8_ACCEPT) {
            if (size == 0)
                return state;
            state = pf_utf8_continue(state, *data++);
            size--;
            if (state == PF_UTF8_REJECT)
                return state;
        }
        while (size >= 4) {
            size_t valid = 0;
            if (data[0] < 0x80) {
                /* One ASCII byte alone, like the space between two words of another script, is not
                 * worth the look at a whole block. */
                if (data[1] < 0x80)
                    valid = pf_utf8_skip_ascii(data, size);
                while (valid < size && data[valid] < 0x80)
                    valid++;
            } else {
                valid = pf_utf8_character(data);
                if (valid == 0)
                    return PF_UTF8_REJECT;
            }
            data += valid;
            size -= valid;
        }
        while (size > 0 && *data < 0x80) {
            data++;
            size--;
        }
        if (size == 0)
            return PF_UTF8_ACCEPT;
        state = pf_utf8_lead(*data++);
        size--;
        if (state == PF_UTF8_REJECT)
            return state;
    }
}

#endif
