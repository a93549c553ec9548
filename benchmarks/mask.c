/*
 * Times masking in place, as the benchmark `mask` asks for it: picows_fast's, a peer's, and memcpy
 * beside them. A shared library without Python; each function returns nanoseconds per call.
 */
#define _GNU_SOURCE
#include "wire/mask.h"

#include <stdlib.h>
#include <time.h>

/* picows 2.3.1: masks from `start` on, with a key that is rotated already; returns where it ended. */
typedef size_t (*peer_function)(uint8_t *in, size_t size, size_t start, uint32_t key, uint8_t *out);

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* Memory on a page of its own, `offset` bytes behind its start: a payload follows a header. */
static uint8_t *new_buffer(size_t size, size_t offset, void **memory)
{
    if (posix_memalign(memory, 4096, size + offset + 64))
        return NULL;
    memset(*memory, 'x', size + offset + 64);
    return (uint8_t *)*memory + offset;
}

#define TIMED(CALL)                                                                               \
    do {                                                                                          \
        double start;                                                                             \
        CALL;                                                                                     \
        start = now();                                                                            \
        for (i = 0; i < calls; i++) {                                                             \
            CALL;                                                                                 \
            __asm__ volatile("" : : "r"(data) : "memory"); /* every call counts */                \
        }                                                                                         \
        result = (now() - start) / (double)calls;                                                 \
    } while (0)

double time_ours(size_t size, size_t offset, long calls)
{
    static const uint8_t key[4] = {1, 2, 3, 4};
    void *memory;
    uint8_t *data = new_buffer(size, offset, &memory);
    double result = -1;
    long i;
    if (data)
        TIMED(pf_mask(data, data, size, key, 0));
    free(memory);
    return result;
}

double time_peer(peer_function peer, size_t size, size_t offset, long calls)
{
    void *memory;
    uint8_t *data = new_buffer(size, offset, &memory);
    double result = -1;
    long i;
    if (data)
        TIMED(peer(data, size, 0, 0x04030201, data));
    free(memory);
    return result;
}

double time_memcpy(size_t size, size_t offset, long calls)
{
    void *memory, *memory2;
    uint8_t *data = new_buffer(size, offset, &memory), *source = new_buffer(size, offset, &memory2);
    double result = -1;
    long i;
    if (data && source)
        TIMED(memcpy(data, source, size));
    free(memory);
    free(memory2);
    return result;
}
