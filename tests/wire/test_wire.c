/*
 * Tests of the headers in picows_fast/protocol/wire, without Python: built and run by tests/test_wire.py
 * with several compilers, options and CPUs. Bounds are proved by memory that cannot be read: inputs
 * and outputs end (or begin) at a guard page.
 *
 * Prints one line per group and the masking implementations it ran; returns 1 if a check failed.
 * The argument "quick" thins out the exhaustive loops, for emulated CPUs.
 */
#define _DEFAULT_SOURCE 1

#include "protocol/wire/frame.h"
#include "protocol/wire/mask.h"
#include "protocol/wire/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned long checks;
static unsigned long failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        checks++;                                                                                  \
        if (!(condition) && failures++ < 20)                                                       \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
    } while (0)

/* ---- memory between two guard pages ---- */

typedef struct {
    uint8_t *start; /* the byte before it cannot be touched */
    uint8_t *end;   /* nor can this one */
} guarded;

static guarded guarded_allocate(size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inner = (size + page - 1) / page * page;
    void *mapped = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guarded memory;

    if (mapped == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    memory.start = (uint8_t *)mapped + page;
    memory.end = memory.start + inner;
    if (mprotect(memory.start, inner, PROT_READ | PROT_WRITE) != 0) {
        perror("mprotect");
        exit(2);
    }
    return memory;
}

static guarded scratch; /* one page, for whatever is short */

/* ---- frame headers ---- */

/* Reads a header whose bytes end at a guard page. */
static int read_guarded(const uint8_t *data, size_t size, pf_frame_header *out)
{
    uint8_t *copy = scratch.end - size;

    memcpy(copy, data, size);
    return pf_read_frame_header(copy, size, out);
}

static int header_fields_equal(const pf_frame_header *a, const pf_frame_header *b)
{
    return a->payload_size == b->payload_size && a->opcode == b->opcode && a->fin == b->fin &&
           a->rsv == b->rsv && a->masked == b->masked && a->header_size == b->header_size &&
           memcmp(a->mask_key, b->mask_key, 4) == 0;
}

static void check_round_trip(const pf_frame_header *header)
{
    static const size_t trailing_sizes[] = {0, 1, 13, 100};
    const size_t header_size = pf_frame_header_size(header->payload_size, header->masked);
    uint8_t bytes[PF_MAX_FRAME_HEADER_SIZE + 100];
    pf_frame_header read;
    size_t size, i;

    memset(bytes, 0xA5, sizeof bytes);
    CHECK(header_size == header->header_size);
    CHECK(pf_write_frame_header(bytes, header->opcode, header->fin, header->rsv,
                                header->payload_size,
                                header->masked ? header->mask_key : NULL) == header_size);
    for (i = header_size; i < sizeof bytes; i++)
        CHECK(bytes[i] == 0xA5);
    for (size = 0; size < header_size; size++)
        CHECK(read_guarded(bytes, size, &read) == PF_FRAME_INCOMPLETE);
    for (i = 0; i < sizeof trailing_sizes / sizeof *trailing_sizes; i++) {
        memset(&read, 0xFF, sizeof read);
        CHECK(read_guarded(bytes, header_size + trailing_sizes[i], &read) == PF_FRAME_OK);
        CHECK(header_fields_equal(header, &read));
    }
}

static void test_frame_round_trips(void)
{
    static const struct {
        uint64_t payload_size;
        uint8_t header_size;
    } sizes[] = {
        {0, 2},          {1, 2},      {124, 2},      {125, 2},
        {126, 4},        {127, 4},    {128, 4},      {255, 4},
        {256, 4},        {65534, 4},  {65535, 4},    {65536, 10},
        {65537, 10},     {0xFFFFFFFFu, 10},          {(uint64_t)1 << 32, 10},
        {0x0102030405060708u, 10},    {0x7FFFFFFFFFFFFFFFu, 10},
    };
    static const uint8_t opcodes[] = {0, 1, 2, 8, 9, 10};
    static const uint8_t keys[][4] = {{0, 0, 0, 0}, {1, 2, 3, 4}, {0xFF, 0x80, 0x7F, 0xFE}};
    size_t s, o, k;
    unsigned fin, rsv;

    for (s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (o = 0; o < sizeof opcodes; o++)
            for (fin = 0; fin < 2; fin++)
                for (rsv = 0; rsv < 8; rsv++)
                    for (k = 0; k < 4; k++) {
                        pf_frame_header header;
                        if (opcodes[o] >= 8 && (!fin || sizes[s].payload_size > 125))
                            continue;
                        memset(&header, 0, sizeof header);
                        header.payload_size = sizes[s].payload_size;
                        header.opcode = opcodes[o];
                        header.fin = (uint8_t)fin;
                        header.rsv = (uint8_t)rsv;
                        header.header_size = sizes[s].header_size;
                        if (k < 3) {
                            header.masked = 1;
                            header.header_size = (uint8_t)(header.header_size + 4);
                            memcpy(header.mask_key, keys[k], 4);
                        }
                        check_round_trip(&header);
                    }
}

/* Headers as RFC 6455 5.7 prints them: reader and writer must not only agree with each other. */
static void test_frame_rfc_examples(void)
{
    static const uint8_t hello[] = {0x81, 0x05, 'H', 'e', 'l', 'l', 'o'};
    static const uint8_t masked_hello[] = {0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f,
                                           0x9f, 0x4d, 0x51, 0x58};
    static const uint8_t first_fragment[] = {0x01, 0x03, 'H', 'e', 'l'};
    static const uint8_t bytes_256[] = {0x82, 0x7E, 0x01, 0x00};
    static const uint8_t bytes_64k[] = {0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0};
    uint8_t payload[5];
    uint8_t written[PF_MAX_FRAME_HEADER_SIZE];
    pf_frame_header header;

    CHECK(read_guarded(hello, sizeof hello, &header) == PF_FRAME_OK);
    CHECK(header.opcode == PF_OPCODE_TEXT && header.fin == 1 && header.rsv == 0);
    CHECK(header.masked == 0 && header.header_size == 2 && header.payload_size == 5);

    CHECK(read_guarded(masked_hello, sizeof masked_hello, &header) == PF_FRAME_OK);
    CHECK(header.masked == 1 && header.header_size == 6 && header.payload_size == 5);
    pf_mask(payload, masked_hello + 6, 5, header.mask_key, 0);
    CHECK(memcmp(payload, "Hello", 5) == 0);
    CHECK(pf_write_frame_header(written, PF_OPCODE_TEXT, 1, 0, 5, masked_hello + 2) == 6);
    CHECK(memcmp(written, masked_hello, 6) == 0);

    CHECK(read_guarded(first_fragment, sizeof first_fragment, &header) == PF_FRAME_OK);
    CHECK(header.opcode == PF_OPCODE_TEXT && header.fin == 0 && header.payload_size == 3);

    CHECK(read_guarded(bytes_256, sizeof bytes_256, &header) == PF_FRAME_OK);
    CHECK(header.opcode == PF_OPCODE_BINARY && header.payload_size == 256);
    CHECK(pf_write_frame_header(written, PF_OPCODE_BINARY, 1, 0, 256, NULL) == 4);
    CHECK(memcmp(written, bytes_256, 4) == 0);

    CHECK(read_guarded(bytes_64k, sizeof bytes_64k, &header) == PF_FRAME_OK);
    CHECK(header.payload_size == 65536 && header.header_size == 10);
    CHECK(pf_write_frame_header(written, PF_OPCODE_BINARY, 1, 0, 65536, NULL) == 10);
    CHECK(memcmp(written, bytes_64k, 10) == 0);

    /* RSV1 is the highest of the three bits. */
    CHECK(pf_write_frame_header(written, PF_OPCODE_TEXT, 1, 4, 0, NULL) == 2);
    CHECK(written[0] == 0xC1);
}

static int expected_after_first_byte(unsigned first)
{
    const unsigned opcode = first & 15;

    if ((opcode >= 3 && opcode <= 7) || opcode >= 11)
        return PF_ERR_RESERVED_OPCODE;
    if (opcode >= 8 && !(first & 0x80))
        return PF_ERR_CONTROL_FRAGMENTED;
    return PF_FRAME_INCOMPLETE;
}

/* Every first byte alone, and every pair of first bytes, alone and with more behind. */
static void test_frame_first_bytes(void)
{
    unsigned first, second;
    pf_frame_header header;

    CHECK(pf_read_frame_header(NULL, 0, &header) == PF_FRAME_INCOMPLETE);
    for (first = 0; first < 256; first++) {
        uint8_t bytes[14] = {0};
        bytes[0] = (uint8_t)first;
        CHECK(read_guarded(bytes, 1, &header) == expected_after_first_byte(first));
        for (second = 0; second < 256; second++) {
            int expected = expected_after_first_byte(first);
            bytes[1] = (uint8_t)second;
            if (expected == PF_FRAME_INCOMPLETE) {
                if ((first & 8) && (second & 127) > 125)
                    expected = PF_ERR_CONTROL_TOO_LONG;
                else if (second <= 125)
                    expected = PF_FRAME_OK;
            }
            CHECK(read_guarded(bytes, 2, &header) == expected);
            if (expected < 0)
                CHECK(read_guarded(bytes, 14, &header) == expected);
        }
    }
}

static void test_frame_lengths(void)
{
    static const uint64_t too_small[] = {0, 1, 125, 126, 127, 255, 256, 65534, 65535};
    static const uint64_t too_large[] = {(uint64_t)1 << 63, ((uint64_t)1 << 63) + 65536,
                                         UINT64_MAX};
    uint8_t bytes[14] = {0x82, 126};
    pf_frame_header header;
    unsigned length, mask_bit, i;
    size_t size, n;

    for (length = 0; length <= 0xFFFF; length++) {
        bytes[2] = (uint8_t)(length >> 8);
        bytes[3] = (uint8_t)length;
        CHECK(read_guarded(bytes, 2, &header) == PF_FRAME_INCOMPLETE);
        CHECK(read_guarded(bytes, 3, &header) == PF_FRAME_INCOMPLETE);
        if (length < 126) {
            CHECK(read_guarded(bytes, 4, &header) == PF_ERR_LENGTH_NOT_MINIMAL);
        } else {
            CHECK(read_guarded(bytes, 4, &header) == PF_FRAME_OK);
            CHECK(header.payload_size == length && header.header_size == 4);
        }
    }
    for (mask_bit = 0; mask_bit <= 0x80; mask_bit += 0x80) {
        bytes[1] = (uint8_t)(127 | mask_bit);
        for (n = 0; n < sizeof too_small / sizeof *too_small; n++) {
            for (i = 0; i < 8; i++)
                bytes[2 + i] = (uint8_t)(too_small[n] >> (56 - 8 * i));
            for (size = 2; size < 10; size++)
                CHECK(read_guarded(bytes, size, &header) == PF_FRAME_INCOMPLETE);
            for (size = 10; size <= 14; size++)
                CHECK(read_guarded(bytes, size, &header) == PF_ERR_LENGTH_NOT_MINIMAL);
        }
        for (n = 0; n < sizeof too_large / sizeof *too_large; n++) {
            for (i = 0; i < 8; i++)
                bytes[2 + i] = (uint8_t)(too_large[n] >> (56 - 8 * i));
            CHECK(read_guarded(bytes, 2, &header) == PF_FRAME_INCOMPLETE);
            for (size = 3; size <= 14; size++)
                CHECK(read_guarded(bytes, size, &header) == PF_ERR_LENGTH_MSB_SET);
        }
    }
}

static void test_error_codes(void)
{
    static const int codes[] = {
        PF_ERR_RESERVED_OPCODE,       PF_ERR_CONTROL_FRAGMENTED,
        PF_ERR_CONTROL_TOO_LONG,      PF_ERR_LENGTH_NOT_MINIMAL,
        PF_ERR_LENGTH_MSB_SET,        PF_ERR_RSV_SET,
        PF_ERR_UNMASKED,              PF_ERR_MASKED,
        PF_ERR_FRAME_TOO_BIG,         PF_ERR_UNEXPECTED_CONTINUATION,
        PF_ERR_EXPECTED_CONTINUATION, PF_ERR_CLOSE_PAYLOAD_SHORT,
        PF_ERR_CLOSE_CODE,            PF_ERR_CLOSE_REASON_UTF8,
        PF_ERR_TEXT_UTF8,             PF_ERR_MESSAGE_TOO_BIG,
        PF_ERR_TOO_MANY_FRAGMENTS,
    };
    int i;

    for (i = 0; i < (int)(sizeof codes / sizeof *codes); i++)
        CHECK(codes[i] == -1 - i);
}

static void test_close_codes(void)
{
    static const uint16_t registered[] = {1000, 1001, 1002, 1003, 1007, 1008,
                                          1009, 1010, 1011, 1012, 1013, 1014};
    unsigned code;

    for (code = 0; code <= 0x10000; code++) {
        int valid = code / 1000 == 3 || code / 1000 == 4;
        size_t i;
        for (i = 0; i < sizeof registered / sizeof *registered; i++)
            valid |= registered[i] == code;
        CHECK(pf_close_code_valid(code) == valid);
    }
    CHECK(!pf_close_code_valid(0xFFFFFFFFu));
}

/* ---- masking ---- */

enum { MASK_MAX_SIZE = 600, MASK_ALIGNMENTS = 65, CANARY = 64, LARGE_SIZE = (1 << 20) + 77 };

static const uint8_t mask_key[4] = {0x9C, 0x01, 0x80, 0x5A};
static guarded mask_source, mask_target;
static uint8_t *mask_text;        /* what is masked */
static uint8_t *mask_expected[4]; /* the result, for each phase */
static uint8_t *mask_arena;       /* unguarded: canaries on both sides instead */

/* A PF_MASK_ number, or -1 for pf_mask itself. */
static void mask_with(int implementation, uint8_t *dst, const uint8_t *src, size_t size,
                      size_t phase)
{
    if (implementation < 0)
        pf_mask(dst, src, size, mask_key, phase);
    else
        pf_mask_get(implementation)(dst, src, size, pf_mask_key_word(mask_key, phase));
}

static int all_bytes_are(const uint8_t *data, size_t size, uint8_t value)
{
    size_t i;

    for (i = 0; i < size; i++)
        if (data[i] != value)
            return 0;
    return 1;
}

/* Into the arena, `alignment` bytes after an address divisible by 64. In place if src is NULL. */
static void check_mask_in_arena(int implementation, const uint8_t *src, size_t alignment,
                                size_t size, size_t phase)
{
    uint8_t *dst = mask_arena + CANARY + alignment;

    memset(dst - CANARY, 0xA5, size + 2 * CANARY);
    if (src == NULL) {
        memcpy(dst, mask_text, size);
        src = dst;
    }
    mask_with(implementation, dst, src, size, phase);
    CHECK(memcmp(dst, mask_expected[phase & 3], size) == 0);
    CHECK(all_bytes_are(dst - CANARY, CANARY, 0xA5));
    CHECK(all_bytes_are(dst + size, CANARY, 0xA5));
}

static void check_mask_at_guard(int implementation, uint8_t *dst, const uint8_t *text, size_t size,
                                size_t phase)
{
    if (text == NULL) {
        memcpy(dst, mask_text, size);
        text = dst;
    } else {
        memset(dst, 0xA5, size);
    }
    mask_with(implementation, dst, text, size, phase);
    CHECK(memcmp(dst, mask_expected[phase & 3], size) == 0);
}

static void check_mask_size(int implementation, size_t size, size_t alignments)
{
    uint8_t *const source_start = mask_source.start, *const source_end = mask_source.end - size;
    uint8_t *const target_start = mask_target.start, *const target_end = mask_target.end - size;
    size_t phase, alignment;

    memcpy(source_start, mask_text, size);
    memcpy(source_end, mask_text, size);
    for (phase = 0; phase < 4; phase++) {
        check_mask_at_guard(implementation, target_start, NULL, size, phase);
        check_mask_at_guard(implementation, target_end, NULL, size, phase);
        check_mask_at_guard(implementation, target_start, source_end, size, phase);
        check_mask_at_guard(implementation, target_end, source_start, size, phase);
        for (alignment = 0; alignment < alignments; alignment++) {
            uint8_t *const unaligned = mask_arena + CANARY + alignment;
            check_mask_in_arena(implementation, NULL, alignment, size, phase);
            check_mask_in_arena(implementation, source_start, alignment, size, phase);
            check_mask_in_arena(implementation, source_end, alignment, size, phase);
            memcpy(unaligned, mask_text, size);
            check_mask_at_guard(implementation, target_start, unaligned, size, phase);
            check_mask_at_guard(implementation, target_end, unaligned, size, phase);
            CHECK(memcmp(unaligned, mask_text, size) == 0);
        }
    }
}

static void test_mask(int quick)
{
    static const size_t large[] = {639,  640,  641,   1023,  1024,  1025,  1087, 1152,      1153,
                                   4095, 4096, 4097,  8191,  16383, 65535, 65536, 65537,
                                   (1 << 20) - 1, 1 << 20, LARGE_SIZE};
    static const char *const names[] = {"scalar", "sse2", "avx2", "avx512", "neon"};
    uint8_t *arena = malloc(LARGE_SIZE + 4 * CANARY);
    int implementation;
    size_t size, i, phase;

    /* The very first call is the one that looks at the CPU. */
    {
        uint8_t data[200] = {0};
        pf_mask(data, data, sizeof data, mask_key, 3);
        for (i = 0; i < sizeof data; i++)
            CHECK(data[i] == mask_key[(i + 3) & 3]);
    }
    mask_source = guarded_allocate((size_t)2 * LARGE_SIZE); /* two copies of a text, apart */
    mask_target = guarded_allocate((size_t)LARGE_SIZE);
    mask_text = malloc(LARGE_SIZE);
    if (arena == NULL || mask_text == NULL)
        exit(2);
    mask_arena = arena + (64 - (uintptr_t)arena % 64);
    for (i = 0; i < LARGE_SIZE; i++)
        mask_text[i] = (uint8_t)((i * 2654435761u) >> 13);
    for (phase = 0; phase < 4; phase++) {
        mask_expected[phase] = malloc(LARGE_SIZE);
        if (mask_expected[phase] == NULL)
            exit(2);
        for (i = 0; i < LARGE_SIZE; i++)
            mask_expected[phase][i] = (uint8_t)(mask_text[i] ^ mask_key[(i + phase) & 3]);
    }

    for (implementation = -1; implementation < PF_MASK_IMPLEMENTATIONS; implementation++) {
        if (implementation >= 0) {
            if (pf_mask_get(implementation) == NULL)
                continue;
            printf("mask implementation: %s\n", names[implementation]);
        }
        for (size = 0; size <= MASK_MAX_SIZE; size += quick && size > 300 ? 7 : 1)
            check_mask_size(implementation, size, quick ? 17 : MASK_ALIGNMENTS);
        for (i = 0; i < sizeof large / sizeof *large; i++)
            check_mask_size(implementation, large[i],
                            large[i] > 5000 ? 3 : quick ? 17 : MASK_ALIGNMENTS);
    }

    /* The phase counts modulo 4 however far into the payload it is. */
    for (i = 0; i < 4; i++) {
        check_mask_in_arena(-1, NULL, 1, 50, SIZE_MAX - i);
        check_mask_in_arena(-1, NULL, 1, 500, SIZE_MAX - i);
        check_mask_in_arena(-1, NULL, 1, 50, ((size_t)1 << 31) + i);
    }
    pf_mask(NULL, NULL, 0, mask_key, 1);

    CHECK(pf_mask_get(PF_MASK_SCALAR) != NULL);
    CHECK(pf_mask_get(pf_mask_best()) != NULL);
    CHECK(pf_mask_get(-1) == NULL && pf_mask_get(PF_MASK_IMPLEMENTATIONS) == NULL);
    CHECK(strcmp(pf_mask_implementation(), names[pf_mask_best()]) == 0);
    printf("mask selected: %s\n", pf_mask_implementation());

    for (phase = 0; phase < 4; phase++)
        free(mask_expected[phase]);
    free(mask_text);
    free(arena);
}

/* Fragments masked one after the other, each with the phase where the last one stopped, are the
 * payload masked at once. */
static void test_mask_in_pieces(void)
{
    uint8_t text[200], whole[200], pieces[200];
    size_t i, cut;

    for (i = 0; i < sizeof text; i++)
        text[i] = (uint8_t)(i * 37);
    pf_mask(whole, text, sizeof text, mask_key, 0);
    for (cut = 0; cut <= sizeof text; cut++) {
        memcpy(pieces, text, sizeof text);
        pf_mask(pieces, pieces, cut, mask_key, 0);
        pf_mask(pieces + cut, pieces + cut, sizeof text - cut, mask_key, cut);
        CHECK(memcmp(pieces, whole, sizeof text) == 0);
    }
}

/* ---- UTF-8 ---- */

/* The reference knows only how a code point is encoded: what is no encoding, and no beginning of
 * one, is not UTF-8. */
static uint8_t begins_encoding_2[1 << 16];
static uint8_t *begins_encoding_3;

static size_t encode(uint32_t code_point, uint8_t out[4])
{
    if (code_point < 0x80) {
        out[0] = (uint8_t)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (uint8_t)(0xC0 | code_point >> 6);
        out[1] = (uint8_t)(0x80 | (code_point & 63));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = (uint8_t)(0xE0 | code_point >> 12);
        out[1] = (uint8_t)(0x80 | (code_point >> 6 & 63));
        out[2] = (uint8_t)(0x80 | (code_point & 63));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | code_point >> 18);
    out[1] = (uint8_t)(0x80 | (code_point >> 12 & 63));
    out[2] = (uint8_t)(0x80 | (code_point >> 6 & 63));
    out[3] = (uint8_t)(0x80 | (code_point & 63));
    return 4;
}

static int is_encoding(const uint8_t *data, size_t size)
{
    uint32_t code_point = data[0];
    uint8_t encoded[4];

    if (size == 2)
        code_point = (data[0] & 31u) << 6 | (data[1] & 63u);
    else if (size == 3)
        code_point = (data[0] & 15u) << 12 | (data[1] & 63u) << 6 | (data[2] & 63u);
    else if (size == 4)
        code_point = (data[0] & 7u) << 18 | (data[1] & 63u) << 12 | (data[2] & 63u) << 6 |
                     (data[3] & 63u);
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF))
        return 0;
    return encode(code_point, encoded) == size && memcmp(encoded, data, size) == 0;
}

static size_t index_3(const uint8_t *data)
{
    return (size_t)data[0] << 16 | (size_t)data[1] << 8 | data[2];
}

enum { VALID, UNFINISHED, INVALID };

static int classify(const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t length = 1;
        while (length <= 4 && length <= size && !is_encoding(data, length))
            length++;
        if (length > 4)
            return INVALID;
        if (length > size) {
            if (size == 1)
                return data[0] >= 0xC2 && data[0] <= 0xF4 ? UNFINISHED : INVALID;
            return (size == 2 ? begins_encoding_2[data[0] << 8 | data[1]]
                              : begins_encoding_3[index_3(data)])
                       ? UNFINISHED
                       : INVALID;
        }
        data += length;
        size -= length;
    }
    return VALID;
}

static int kind_of_state(pf_utf8_state state)
{
    return state == PF_UTF8_ACCEPT ? VALID : state == PF_UTF8_REJECT ? INVALID : UNFINISHED;
}

/* Whole, byte by byte (each prefix judged), and with bytes behind that let whole characters be read
 * at once. */
static void check_utf8_sequence(const uint8_t *data, size_t size)
{
    pf_utf8_state state = PF_UTF8_ACCEPT;
    uint8_t *padded = scratch.end - 8;
    const int expected = classify(data, size);
    size_t i;

    CHECK(kind_of_state(pf_utf8_feed(PF_UTF8_ACCEPT, data, size)) == expected);
    for (i = 0; i < size; i++)
        state = pf_utf8_feed(state, data + i, 1);
    CHECK(kind_of_state(state) == expected);
    memset(padded, 'a', 8);
    memcpy(padded, data, size);
    CHECK(kind_of_state(pf_utf8_feed(PF_UTF8_ACCEPT, padded, 8)) ==
          (expected == VALID ? VALID : INVALID));
}

static void test_utf8_sequences(int quick)
{
    static const uint8_t edges[] = {0x00, 0x01, 0x41, 0x7F, 0x80, 0x81, 0x8F, 0x90, 0x91, 0x9F,
                                    0xA0, 0xA1, 0xAF, 0xB0, 0xBE, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
                                    0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFE, 0xFF};
    const size_t edge_count = sizeof edges;
    uint32_t code_point, n;
    uint8_t data[4];
    size_t i, j, k;

    begins_encoding_3 = calloc((size_t)1 << 24, 1);
    if (begins_encoding_3 == NULL)
        exit(2);
    for (code_point = 0x80; code_point <= 0x10FFFF; code_point++) {
        const size_t size = encode(code_point, data);
        if (code_point >= 0xD800 && code_point <= 0xDFFF)
            continue;
        if (size > 2)
            begins_encoding_2[data[0] << 8 | data[1]] = 1;
        if (size > 3)
            begins_encoding_3[index_3(data)] = 1;
    }

    for (n = 0; n < 1u << 8; n++) {
        data[0] = (uint8_t)n;
        check_utf8_sequence(data, 1);
    }
    for (n = 0; n < 1u << 16; n++) {
        data[0] = (uint8_t)(n >> 8);
        data[1] = (uint8_t)n;
        check_utf8_sequence(data, 2);
    }
    for (n = 0; n < 1u << 24; n += quick ? 13 : 1) {
        data[0] = (uint8_t)(n >> 16);
        data[1] = (uint8_t)(n >> 8);
        data[2] = (uint8_t)n;
        check_utf8_sequence(data, 3);
    }
    for (n = quick ? 0xE0 : 0; n < 256; n++)
        for (i = 0; i < edge_count; i++)
            for (j = 0; j < edge_count; j++)
                for (k = 0; k < edge_count; k++) {
                    data[0] = (uint8_t)n;
                    data[1] = edges[i];
                    data[2] = edges[j];
                    data[3] = edges[k];
                    check_utf8_sequence(data, 4);
                }
    /* Every code point there is, and every surrogate. */
    for (code_point = 0; code_point <= 0x10FFFF; code_point++) {
        const size_t size = encode(code_point, data);
        const int surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
        CHECK(kind_of_state(pf_utf8_feed(PF_UTF8_ACCEPT, data, size)) ==
              (surrogate ? INVALID : VALID));
    }
    free(begins_encoding_3);
}

/* ASCII is skipped in blocks: a byte that is not must be noticed wherever in a block it is, and
 * nothing behind the text may be looked at. */
static void test_utf8_ascii_blocks(void)
{
    const guarded memory = guarded_allocate(4096);
    size_t size, bad, start;

    for (size = 0; size <= 200; size++) {
        uint8_t *text = memory.end - size;
        memset(text, 'x', size);
        CHECK(pf_utf8_feed(PF_UTF8_ACCEPT, text, size) == PF_UTF8_ACCEPT);
        for (bad = 0; bad < size; bad++) {
            text[bad] = 0xFF;
            CHECK(pf_utf8_feed(PF_UTF8_ACCEPT, text, size) == PF_UTF8_REJECT);
            text[bad] = 0xC3;
            CHECK(kind_of_state(pf_utf8_feed(PF_UTF8_ACCEPT, text, size)) ==
                  (bad + 1 == size ? UNFINISHED : INVALID));
            if (bad + 1 < size) {
                text[bad + 1] = 0xA4;
                CHECK(pf_utf8_feed(PF_UTF8_ACCEPT, text, size) == PF_UTF8_ACCEPT);
                text[bad + 1] = 'x';
            }
            text[bad] = 'x';
        }
    }
    for (start = 0; start < 64; start++) {
        uint8_t *text = memory.start + start;
        memset(text, 'x', 300);
        text[299] = 0x80;
        CHECK(pf_utf8_feed(PF_UTF8_ACCEPT, text, 299) == PF_UTF8_ACCEPT);
        CHECK(pf_utf8_feed(PF_UTF8_ACCEPT, text, 300) == PF_UTF8_REJECT);
    }
    CHECK(pf_utf8_feed(PF_UTF8_ACCEPT, NULL, 0) == PF_UTF8_ACCEPT);
}

static void test_utf8_cuts(void)
{
    static const struct {
        const char *text;
        int kind;
    } samples[] = {
        {"{\"stream\":\"btcusdt@depth\",\"data\":{\"b\":[[\"0.0024\",\"10\"]],\"a\":[]}}", VALID},
        {"price 1.20 \xE2\x82\xAC, na\xC3\xAFve \xF0\x9F\x9A\x80 \xE5\xA4\xA9\xE5\x9C\xB0", VALID},
        {"\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF\xC2\x80\xDF\xBF",
         VALID},
        {"\xD0\xA1\xD1\x8A\xD0\xB5\xD1\x88\xD1\x8C \xD0\xB6\xD0\xB5 \xD0\xB5\xD1\x89\xD1\x91",
         VALID},
        {"a long stretch of plain text, then a surrogate: \xED\xA0\x80 and more text", INVALID},
        {"overlong \xC0\xAF, sixteen and more bytes", INVALID},
        {"above the last plane \xF4\x90\x80\x80 text", INVALID},
        {"ends inside a character \xF0\x9F\x9A", UNFINISHED},
        {"\xE2\x82\xAC\xE2\x82", UNFINISHED},
    };
    size_t s, first, second;

    for (s = 0; s < sizeof samples / sizeof *samples; s++) {
        const uint8_t *text = (const uint8_t *)samples[s].text;
        const size_t size = strlen(samples[s].text);
        const pf_utf8_state whole = pf_utf8_feed(PF_UTF8_ACCEPT, text, size);

        CHECK(kind_of_state(whole) == samples[s].kind);
        for (first = 0; first <= size; first++)
            for (second = first; second <= size; second++) {
                pf_utf8_state state = pf_utf8_feed(PF_UTF8_ACCEPT, text, first);
                state = pf_utf8_feed(state, text + first, second - first);
                CHECK(pf_utf8_feed(state, text + second, size - second) == whole);
            }
    }
    CHECK(pf_utf8_feed(PF_UTF8_REJECT, (const uint8_t *)"plain", 5) == PF_UTF8_REJECT);
    CHECK(pf_utf8_feed(PF_UTF8_REJECT, NULL, 0) == PF_UTF8_REJECT);
}

static void done(const char *group)
{
    printf("%s: %lu checks, %lu failed\n", group, checks, failures);
}

int main(int argc, char **argv)
{
    const int quick = argc > 1 && strcmp(argv[1], "quick") == 0;

    scratch = guarded_allocate(4096);
    test_frame_round_trips();
    test_frame_rfc_examples();
    test_frame_first_bytes();
    test_frame_lengths();
    test_error_codes();
    test_close_codes();
    done("frame");
    test_mask(quick);
    test_mask_in_pieces();
    done("mask");
    test_utf8_sequences(quick);
    test_utf8_ascii_blocks();
    test_utf8_cuts();
    done("utf8");
    return failures ? 1 : 0;
}
