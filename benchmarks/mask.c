/*
 * Times masking in place, as the benchmark `mask` asks for it: picows_fast's, a peer's, and memcpy
 * beside them. A shared library without Python; each function returns nanoseconds per call.
 */
#define _GNU_SOURCE
#include "protocol/wire/mask.h"

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

/* As payloads lie in a receive buffer: one behind the other, `offset` bytes behind a cache line. */
enum { WORKING_SET = 256 * 1024, LINE = 64 };

typedef struct {
    void *memory;
    uint8_t *first;
    size_t stride, end;
} payloads;

static int allocate(payloads *all, size_t size, size_t offset)
{
    size_t count;
    all->stride = (size + offset + LINE - 1) / LINE * LINE;
    count = all->stride < WORKING_SET ? WORKING_SET / all->stride : 1;
    all->end = count * all->stride;
    if (posix_memalign(&all->memory, 4096, all->end + LINE))
        return 0;
    memset(all->memory, 'x', all->end + LINE);
    all->first = (uint8_t *)all->memory + offset;
    return 1;
}

/* Nanoseconds for one CALL with the payload `data`, which is at `position`; all of them once before. */
#define TIMED(CALL)                                                                               \
    do {                                                                                          \
        const long warm_up = (long)(all.end / all.stride);                                        \
        size_t position = 0;                                                                      \
        double start = 0;                                                                         \
        long i;                                                                                   \
        for (i = -warm_up; i < calls; i++) {                                                      \
            uint8_t *data = all.first + position;                                                 \
            if (i == 0)                                                                           \
                start = now();                                                                    \
            CALL;                                                                                 \
            __asm__ volatile("" : : "r"(data) : "memory"); /* every call counts */                \
            position += all.stride;                                                               \
            if (position == all.end)                                                              \
                position = 0;                                                                     \
        }                                                                                         \
        result = (now() - start) / (double)calls;                                                 \
    } while (0)

double time_ours(size_t size, size_t offset, long calls)
{
    static const uint8_t key[4] = {1, 2, 3, 4};
    payloads all;
    double result;
    if (!allocate(&all, size, offset))
        return -1;
    TIMED(pf_mask(data, data, size, key, 0));
    free(all.memory);
    return result;
}

double time_peer(peer_function peer, size_t size, size_t offset, long calls)
{
    payloads all;
    double result;
    if (!allocate(&all, size, offset))
        return -1;
    TIMED(peer(data, size, 0, 0x04030201, data));
    free(all.memory);
    return result;
}

double time_memcpy(size_t size, size_t offset, long calls)
{
    payloads all, source;
    double result;
    if (!allocate(&all, size, offset) || !allocate(&source, size, offset))
        return -1;
    TIMED(memcpy(data, source.first + position, size));
    free(all.memory);
    free(source.memory);
    return result;
}
