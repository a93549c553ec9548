/*
 * Fuzzes picows_fast/protocol/wire: frame headers, masking, UTF-8. Each part is held against a naive
 * implementation in this file, written from the RFCs and sharing nothing with the headers.
 *
 * Every buffer that is handed over is a heap block of exactly its size, so that AddressSanitizer
 * sees the first byte read or written outside of it. Which part runs, and how input is cut, is
 * chosen by bytes of the input.
 *
 * Built with -fsanitize=fuzzer it is a libFuzzer target. With PF_FUZZ_REPLAY any compiler builds a
 * program that runs the files it is given.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire/frame.h"
#include "protocol/wire/mask.h"
#include "protocol/wire/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "wire_fuzzer.c:%d: wrong: %s\n", __LINE__, #condition);               \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

/* A copy in a block of exactly its size; never NULL, so that a size of 0 is a block too. */
static uint8_t *exact_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    CHECK(copy != NULL);
    if (size)
        memcpy(copy, data, size);
    return copy;
}

/* Sizes of pieces, from a byte of the input: single bytes, equal pieces, or any mixture. */
typedef struct cutter {
    uint32_t state;
    unsigned choice;
} cutter;

static size_t next_piece(cutter *cuts, size_t left)
{
    size_t piece;

    if (cuts->choice < 128) {
        piece = cuts->choice + 1u;
    } else {
        cuts->state = cuts->state * 1664525u + 1013904223u;
        piece = (cuts->state >> 16) % (1u + 2u * (cuts->choice - 127u)); /* may be empty */
    }
    return piece < left ? piece : left;
}

/* --- Frame headers ---------------------------------------------------------------------------- */

/* RFC 6455 5.2 read as a table of fields; what is wrong first, byte by byte, is reported. */
static int naive_header(const uint8_t *data, size_t size, pf_frame_header *out)
{
    static const int data_opcodes[16] = {1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    static const int control_opcodes[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0};
    unsigned opcode, length;
    size_t length_size, i;
    uint64_t value = 0;

    if (size == 0)
        return PF_FRAME_INCOMPLETE;
    opcode = data[0] % 16;
    if (!data_opcodes[opcode] && !control_opcodes[opcode])
        return PF_ERR_RESERVED_OPCODE;
    if (control_opcodes[opcode] && data[0] < 128)
        return PF_ERR_CONTROL_FRAGMENTED;
    if (size == 1)
        return PF_FRAME_INCOMPLETE;
    length = data[1] % 128;
    if (control_opcodes[opcode] && length >= 126)
        return PF_ERR_CONTROL_TOO_LONG;
    length_size = length == 127 ? 8 : length == 126 ? 2 : 0;
    if (length_size == 8 && size > 2 && data[2] >= 128)
        return PF_ERR_LENGTH_MSB_SET;
    if (size < 2 + length_size)
        return PF_FRAME_INCOMPLETE;
    for (i = 0; i < length_size; i++)
        value = value * 256 + data[2 + i];
    if (length_size == 0)
        value = length;
    if ((length_size == 2 && value <= 125) || (length_size == 8 && value <= 65535))
        return PF_ERR_LENGTH_NOT_MINIMAL;
    memset(out, 0, sizeof *out);
    out->payload_size = value;
    out->opcode = (uint8_t)opcode;
    out->fin = data[0] >= 128;
    out->rsv = data[0] / 16 % 8;
    out->masked = data[1] >= 128;
    out->header_size = (uint8_t)(2 + length_size + (out->masked ? 4 : 0));
    if (size < out->header_size)
        return PF_FRAME_INCOMPLETE;
    if (out->masked)
        memcpy(out->mask_key, data + 2 + length_size, 4);
    return PF_FRAME_OK;
}

static int same_header(const pf_frame_header *a, const pf_frame_header *b)
{
    return a->payload_size == b->payload_size && a->opcode == b->opcode && a->fin == b->fin &&
           a->rsv == b->rsv && a->masked == b->masked && a->header_size == b->header_size &&
           memcmp(a->mask_key, b->mask_key, 4) == 0;
}

/* Every beginning of the input: a result, once there is one, does not change with more bytes. */
static void fuzz_read_header(const uint8_t *data, size_t size)
{
    int settled = PF_FRAME_INCOMPLETE;
    size_t arrived;

    if (size > 20)
        size = 20;
    for (arrived = 0; arrived <= size; arrived++) {
        uint8_t *copy = exact_copy(data, arrived);
        pf_frame_header header, expected;
        int result;

        memset(&header, 0xA5, sizeof header);
        result = pf_read_frame_header(copy, arrived, &header);
        CHECK(result == naive_header(copy, arrived, &expected));
        CHECK(settled == PF_FRAME_INCOMPLETE || result == settled);
        settled = result;
        if (result == PF_FRAME_OK) {
            uint8_t *written = malloc(header.header_size);
            CHECK(written != NULL);
            CHECK(same_header(&header, &expected));
            CHECK(arrived >= header.header_size);
            CHECK(pf_frame_header_size(header.payload_size, header.masked) == header.header_size);
            CHECK(pf_write_frame_header(written, header.opcode, header.fin, header.rsv,
                                        header.payload_size,
                                        header.masked ? header.mask_key : NULL) ==
                  header.header_size);
            CHECK(memcmp(written, copy, header.header_size) == 0);
            free(written);
        }
        free(copy);
    }
}

/* Any fields: what is written is read back as it was. */
static void fuzz_write_header(const uint8_t *data, size_t size)
{
    static const unsigned opcodes[] = {0, 1, 2, 8, 9, 10};
    pf_frame_header header;
    uint64_t payload_size = 0;
    unsigned opcode, rsv;
    size_t written, i;
    int fin, masked;
    uint8_t *out;

    if (size < 15)
        return;
    opcode = opcodes[data[0] % 6];
    fin = data[1] & 1;
    rsv = (data[1] >> 1) & 7;
    masked = (data[1] >> 4) & 1;
    for (i = 0; i < 8; i++)
        payload_size = payload_size << 8 | data[2 + i];
    payload_size &= INT64_MAX;
    payload_size >>= data[10] % 64;
    written = pf_frame_header_size(payload_size, masked);
    CHECK(written >= PF_MIN_FRAME_HEADER_SIZE && written <= PF_MAX_FRAME_HEADER_SIZE);
    out = malloc(written);
    CHECK(out != NULL);
    CHECK(pf_write_frame_header(out, opcode, fin, rsv, payload_size, masked ? data + 11 : NULL) ==
          written);
    for (i = 0; i < written; i++) {
        uint8_t *copy = exact_copy(out, i);
        pf_frame_header ignored;
        int result = pf_read_frame_header(copy, i, &ignored);
        CHECK(result == naive_header(copy, i, &ignored));
        free(copy);
    }
    if (opcode < 8 || (fin && payload_size <= PF_MAX_CONTROL_PAYLOAD_SIZE)) {
        CHECK(pf_read_frame_header(out, written, &header) == PF_FRAME_OK);
        CHECK(header.opcode == opcode && header.fin == fin && header.rsv == rsv);
        CHECK(header.payload_size == payload_size && header.masked == masked);
        CHECK(header.header_size == written);
        CHECK(!masked || memcmp(header.mask_key, data + 11, 4) == 0);
    } else {
        CHECK(pf_read_frame_header(out, written, &header) ==
              (fin ? PF_ERR_CONTROL_TOO_LONG : PF_ERR_CONTROL_FRAGMENTED));
    }
    free(out);
}

/* RFC 6455 7.4.1 and the registry, entry by entry. */
static void fuzz_close_code(const uint8_t *data, size_t size)
{
    static const unsigned registered[] = {1000, 1001, 1002, 1003, 1007, 1008,
                                          1009, 1010, 1011, 1012, 1013, 1014};
    unsigned code;
    size_t i;
    int valid;

    for (; size >= 2; data += 2, size -= 2) {
        code = data[0] * 256u + data[1];
        valid = code / 1000 == 3 || code / 1000 == 4;
        for (i = 0; i < sizeof registered / sizeof *registered; i++)
            valid |= code == registered[i];
        CHECK(!!pf_close_code_valid(code) == valid);
    }
}

/* --- Masking ---------------------------------------------------------------------------------- */

enum { LARGEST_OFFSET = 64 };

/* All implementations agree with a byte loop; so do any pieces, each with its phase. The payload is
 * repeated up to sizes that the input itself would hardly reach. */
static void fuzz_mask(const uint8_t *data, size_t size)
{
    const uint8_t *key = data;
    cutter cuts;
    size_t phase, offset, payload_size, done, i;
    uint8_t *payload, *expected;
    int implementation;

    if (size < 10)
        return;
    phase = data[4];
    offset = data[5] % (LARGEST_OFFSET + 1);
    cuts.choice = data[6];
    cuts.state = data[6];
    payload_size = (size_t)(data[7] | data[8] << 8) % 9000;
    data += 9;
    size -= 9;

    payload = malloc(payload_size + 1);
    expected = malloc(payload_size + 1);
    CHECK(payload != NULL && expected != NULL);
    for (i = 0; i < payload_size; i++) {
        payload[i] = (uint8_t)(data[i % size] + i / size);
        expected[i] = payload[i] ^ key[(i + phase) % 4];
    }

    for (implementation = 0; implementation <= PF_MASK_IMPLEMENTATIONS; implementation++) {
        const uint32_t key_word = pf_mask_key_word(key, phase);
        const pf_mask_function function = pf_mask_get(implementation);
        uint8_t *in, *out;

        if (function == NULL)
            continue;
        /* Block and payload end together; the offset gives any alignment. */
        in = malloc(offset + payload_size + 1);
        out = malloc(offset + payload_size + 1);
        CHECK(in != NULL && out != NULL);
        in = realloc(in, offset + payload_size + (offset + payload_size == 0));
        out = realloc(out, offset + payload_size + (offset + payload_size == 0));
        CHECK(in != NULL && out != NULL);
        memset(in, 0x5A, offset);
        memset(out, 0x5A, offset);
        memcpy(in + offset, payload, payload_size);
        function(out + offset, in + offset, payload_size, key_word);
        CHECK(memcmp(out + offset, expected, payload_size) == 0);
        CHECK(memcmp(in + offset, payload, payload_size) == 0);
        function(in + offset, in + offset, payload_size, key_word);
        CHECK(memcmp(in + offset, expected, payload_size) == 0);
        for (i = 0; i < offset; i++)
            CHECK(in[i] == 0x5A && out[i] == 0x5A);
        free(in);
        free(out);
    }

    for (done = 0; done < payload_size;) {
        size_t piece = next_piece(&cuts, payload_size - done);
        uint8_t *copy = exact_copy(payload + done, piece);
        pf_mask(copy, copy, piece, key, phase + done);
        CHECK(memcmp(copy, expected + done, piece) == 0);
        free(copy);
        done += piece;
    }
    CHECK(strlen(pf_mask_implementation()) > 0);
    free(payload);
    free(expected);
}

/* --- UTF-8 ------------------------------------------------------------------------------------ */

/* Decodes one character to its number and judges that (RFC 3629 3), where the header judges bytes.
 * Returns its size; 0 if `size` bytes are a beginning of one; -1 if they can be none. */
static int naive_character(const uint8_t *data, size_t size)
{
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t number, last;
    int due, length;

    if (data[0] < 0x80)
        return 1;
    if (data[0] >= 0xC0 && data[0] < 0xE0)
        length = 2;
    else if (data[0] >= 0xE0 && data[0] < 0xF0)
        length = 3;
    else if (data[0] >= 0xF0 && data[0] < 0xF8)
        length = 4;
    else
        return -1;
    number = data[0] & (0xFFu >> (length + 1));
    for (due = length - 1; due > 0; due--) {
        if ((size_t)(length - due) >= size)
            break;
        if ((data[length - due] & 0xC0) != 0x80)
            return -1;
        number = number << 6 | (data[length - due] & 0x3F);
    }
    /* With `due` bytes to come, every number from `number` to `last` is possible. */
    number <<= 6 * due;
    last = number | ((1u << (6 * due)) - 1);
    if (last < smallest[length] || number > 0x10FFFF || (number >= 0xD800 && last <= 0xDFFF))
        return -1;
    return due ? 0 : length;
}

static void fuzz_utf8(const uint8_t *data, size_t size)
{
    pf_utf8_state state = PF_UTF8_ACCEPT;
    uint8_t *boundary;
    size_t bad, done = 0, i;
    cutter cuts;

    if (size < 1)
        return;
    cuts.choice = data[0];
    cuts.state = data[0];
    data++;
    size--;

    /* boundary[i]: a character ends before byte i; bad: bytes after which the text is hopeless */
    boundary = calloc(size + 1, 1);
    CHECK(boundary != NULL);
    bad = size + 1;
    for (i = 0; i < size && bad > size;) {
        int length = naive_character(data + i, size - i);
        boundary[i] = 1;
        if (length < 0) {
            for (bad = i + 1; naive_character(data + i, bad - i) >= 0; bad++)
                ;
        } else if (length == 0) {
            break;
        } else {
            i += (size_t)length;
            boundary[i] = 1;
        }
    }
    boundary[0] = 1;

    {
        uint8_t *copy = exact_copy(data, size);
        pf_utf8_state whole = pf_utf8_feed(PF_UTF8_ACCEPT, copy, size);
        CHECK((whole == PF_UTF8_REJECT) == (bad <= size));
        CHECK((whole == PF_UTF8_ACCEPT) == (bad > size && boundary[size]));
        free(copy);
    }
    while (done < size) {
        size_t piece = next_piece(&cuts, size - done);
        uint8_t *copy = exact_copy(data + done, piece);
        state = pf_utf8_feed(state, copy, piece);
        free(copy);
        done += piece;
        CHECK((state == PF_UTF8_REJECT) == (bad <= done));
        if (bad > done)
            CHECK((state == PF_UTF8_ACCEPT) == boundary[done]);
    }
    free(boundary);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    switch (data[0] % 5) {
    case 0:
        fuzz_read_header(data + 1, size - 1);
        break;
    case 1:
        fuzz_write_header(data + 1, size - 1);
        break;
    case 2:
        fuzz_mask(data + 1, size - 1);
        break;
    case 3:
        fuzz_utf8(data + 1, size - 1);
        break;
    default:
        fuzz_close_code(data + 1, size - 1);
    }
    return 0;
}

#ifdef PF_FUZZ_REPLAY
int main(int count, char **paths)
{
    static uint8_t data[1 << 20];
    int i;

    for (i = 1; i < count; i++) {
        FILE *file = fopen(paths[i], "rb");
        size_t size;
        if (file == NULL) {
            perror(paths[i]);
            return 2;
        }
        size = fread(data, 1, sizeof data, file);
        fclose(file);
        fprintf(stderr, "%s\n", paths[i]);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%d files\n", count - 1);
    return 0;
}
#endif
