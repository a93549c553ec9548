/*
 * XOR masking of payloads (RFC 6455 5.3), with the widest vectors that pay off on the running CPU.
 *
 * Bounds are exact: no byte outside [src, src + size) is read and none outside [dst, dst + size) is
 * written, not even with its own value. Any alignment and any size will do; `dst` is `src` or does
 * not overlap it. Where mask keys come from is not decided here.
 *
 * Every implementation has the same shape. A size that is not a multiple of the vector ends with a
 * vector that overlaps the one before. In place, masking a byte twice would unmask it: therefore
 * whatever overlaps is loaded before anything is stored.
 *
 * PF_NO_SIMD leaves only the scalar implementation. Plain C99: no Python.h, no allocation, no I/O.
 */
#ifndef PF_WIRE_MASK_H
#define PF_WIRE_MASK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* clang-cl hides intrinsics that are not enabled for the whole file: it gets the scalar loop, which
 * it vectorizes. */
#if !defined(PF_NO_SIMD) && !(defined(_MSC_VER) && defined(__clang__))
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define PF_MASK_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#endif
#elif (defined(__aarch64__) && !defined(__AARCH64EB__)) || defined(_M_ARM64)
#include <arm_neon.h>
#define PF_MASK_ARM64 1
#endif
#endif

/* MSVC compiles every intrinsic everywhere; the others have to be told per function. */
#if defined(__GNUC__) || defined(__clang__)
#define PF_MASK_TARGET(features) __attribute__((target(features)))
#define PF_MASK_LOAD_POINTER(pointer) __atomic_load_n(&(pointer), __ATOMIC_RELAXED)
#define PF_MASK_STORE_POINTER(pointer, value) __atomic_store_n(&(pointer), value, __ATOMIC_RELAXED)
#else
#define PF_MASK_TARGET(features)
#define PF_MASK_LOAD_POINTER(pointer) (pointer)
#define PF_MASK_STORE_POINTER(pointer, value) ((pointer) = (value))
#endif

enum {
    PF_MASK_SCALAR,
    PF_MASK_SSE2,
    PF_MASK_AVX2,
    PF_MASK_AVX512,
    PF_MASK_NEON,
    PF_MASK_IMPLEMENTATIONS /* how many there are */
};

/* An implementation gets the key as the 32-bit word that its bytes form in memory, see
 * pf_mask_key_word; it takes any size. */
typedef void (*pf_mask_function)(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word);

/* The key word to go on with `offset` bytes later. The test of the byte order is a constant to the
 * compiler. */
static inline uint32_t pf_mask_advance(uint32_t key_word, size_t offset)
{
    const uint16_t one = 1;
    const unsigned bits = 8u * (unsigned)(offset & 3u);
    uint8_t little_endian;

    memcpy(&little_endian, &one, 1);
    return little_endian ? (key_word >> bits) | (key_word << ((32u - bits) & 31u))
                         : (key_word << bits) | (key_word >> ((32u - bits) & 31u));
}

static inline uint32_t pf_mask_key_word(const uint8_t key[4], size_t phase)
{
    uint32_t key_word;

    memcpy(&key_word, key, 4);
    return pf_mask_advance(key_word, phase);
}

/* Fewer than 16 bytes. */
static inline void pf_mask_short(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    const uint32_t tail_key = pf_mask_advance(key_word, size);

    if (size >= 8) {
        uint64_t head, tail;
        memcpy(&head, src, 8);
        memcpy(&tail, src + size - 8, 8);
        head ^= ((uint64_t)key_word << 32) | key_word;
        tail ^= ((uint64_t)tail_key << 32) | tail_key;
        memcpy(dst, &head, 8);
        memcpy(dst + size - 8, &tail, 8);
    } else if (size >= 4) {
        uint32_t head, tail;
        memcpy(&head, src, 4);
        memcpy(&tail, src + size - 4, 4);
        head ^= key_word;
        tail ^= tail_key;
        memcpy(dst, &head, 4);
        memcpy(dst + size - 4, &tail, 4);
    } else {
        uint8_t key[4];
        size_t i;
        memcpy(key, &key_word, 4);
        for (i = 0; i < size; i++)
            dst[i] = (uint8_t)(src[i] ^ key[i]);
    }
}

static inline void pf_mask_scalar(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    const uint64_t key = ((uint64_t)key_word << 32) | key_word;
    uint64_t word, tail;
    size_t i;

    if (size < 16) {
        pf_mask_short(dst, src, size, key_word);
        return;
    }
    memcpy(&tail, src + size - 8, 8);
    for (i = 0; i + 8 < size; i += 8) {
        memcpy(&word, src + i, 8);
        word ^= key;
        memcpy(dst + i, &word, 8);
    }
    key_word = pf_mask_advance(key_word, size);
    tail ^= ((uint64_t)key_word << 32) | key_word;
    memcpy(dst + size - 8, &tail, 8);
}

/*
 * One implementation with vectors of W bytes, for sizes of at least W. Up to 8 W: half of the
 * vectors from the start, half from the end. Above: one unaligned vector at the start, rounds of
 * 4 W whose stores are aligned (a store that crosses a cache line costs as much as two), and 4 W at
 * the end.
 */
#define PF_MASK_BODY(W, VECTOR, LOAD, STORE, XOR, FILL)                                           \
    do {                                                                                          \
        const uint8_t *const src_end = src + size;                                                \
        uint8_t *const dst_end = dst + size;                                                      \
        const VECTOR key = FILL(key_word);                                                        \
        const VECTOR tail_key = FILL(pf_mask_advance(key_word, size));                            \
        const VECTOR h0 = XOR(LOAD(src), key);                                                    \
        const VECTOR t0 = XOR(LOAD(src_end - (W)), tail_key);                                     \
        if (size > 2 * (W)) {                                                                     \
            const VECTOR t1 = XOR(LOAD(src_end - 2 * (W)), tail_key);                             \
            if (size <= 4 * (W)) {                                                                \
                const VECTOR h1 = XOR(LOAD(src + (W)), key);                                      \
                STORE(dst + (W), h1);                                                             \
            } else {                                                                              \
                const VECTOR t2 = XOR(LOAD(src_end - 3 * (W)), tail_key);                         \
                const VECTOR t3 = XOR(LOAD(src_end - 4 * (W)), tail_key);                         \
                if (size <= 8 * (W)) {                                                            \
                    const VECTOR h1 = XOR(LOAD(src + (W)), key);                                  \
                    const VECTOR h2 = XOR(LOAD(src + 2 * (W)), key);                              \
                    const VECTOR h3 = XOR(LOAD(src + 3 * (W)), key);                              \
                    STORE(dst + (W), h1);                                                         \
                    STORE(dst + 2 * (W), h2);                                                     \
                    STORE(dst + 3 * (W), h3);                                                     \
                } else {                                                                          \
                    size_t i = (W) - ((uintptr_t)dst & ((W)-1));                                  \
                    const VECTOR aligned_key = FILL(pf_mask_advance(key_word, i));                \
                    do {                                                                          \
                        const VECTOR v0 = XOR(LOAD(src + i), aligned_key);                        \
                        const VECTOR v1 = XOR(LOAD(src + i + (W)), aligned_key);                  \
                        const VECTOR v2 = XOR(LOAD(src + i + 2 * (W)), aligned_key);              \
                        const VECTOR v3 = XOR(LOAD(src + i + 3 * (W)), aligned_key);              \
                        STORE(dst + i, v0);                                                       \
                        STORE(dst + i + (W), v1);                                                 \
                        STORE(dst + i + 2 * (W), v2);                                             \
                        STORE(dst + i + 3 * (W), v3);                                             \
                        i += 4 * (W);                                                             \
                    } while (size - i > 4 * (W));                                                 \
                }                                                                                 \
                STORE(dst_end - 4 * (W), t3);                                                     \
                STORE(dst_end - 3 * (W), t2);                                                     \
            }                                                                                     \
            STORE(dst_end - 2 * (W), t1);                                                         \
        }                                                                                         \
        STORE(dst, h0);                                                                           \
        STORE(dst_end - (W), t0);                                                                 \
    } while (0)

#if defined(PF_MASK_X86)

#define PF_MASK_LOAD_128(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define PF_MASK_STORE_128(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define PF_MASK_FILL_128(k) _mm_set1_epi32((int)(k))
#define PF_MASK_LOAD_256(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define PF_MASK_STORE_256(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define PF_MASK_FILL_256(k) _mm256_set1_epi32((int)(k))
#define PF_MASK_LOAD_512(p) _mm512_loadu_si512((const void *)(p))
#define PF_MASK_STORE_512(p, v) _mm512_storeu_si512((void *)(p), v)
#define PF_MASK_FILL_512(k) _mm512_set1_epi32((int)(k))

static inline void pf_mask_sse2(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    if (size < 16)
        pf_mask_short(dst, src, size, key_word);
    else
        PF_MASK_BODY(16, __m128i, PF_MASK_LOAD_128, PF_MASK_STORE_128, _mm_xor_si128,
                     PF_MASK_FILL_128);
}

PF_MASK_TARGET("avx2")
static inline void pf_mask_avx2(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    if (size < 32)
        pf_mask_sse2(dst, src, size, key_word);
    else
        PF_MASK_BODY(32, __m256i, PF_MASK_LOAD_256, PF_MASK_STORE_256, _mm256_xor_si256,
                     PF_MASK_FILL_256);
}

/* Wider vectors gain nothing on short payloads: their stores cross cache lines more often. */
#define PF_MASK_AVX512_MIN_SIZE 1024

PF_MASK_TARGET("avx512f")
static inline void pf_mask_avx512(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    if (size < PF_MASK_AVX512_MIN_SIZE)
        pf_mask_avx2(dst, src, size, key_word);
    else
        PF_MASK_BODY(64, __m512i, PF_MASK_LOAD_512, PF_MASK_STORE_512, _mm512_xor_si512,
                     PF_MASK_FILL_512);
}

#elif defined(PF_MASK_ARM64)

static inline void pf_mask_neon(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    if (size < 16)
        pf_mask_short(dst, src, size, key_word);
    else
#define PF_MASK_FILL_NEON(k) vreinterpretq_u8_u32(vdupq_n_u32(k))
        PF_MASK_BODY(16, uint8x16_t, vld1q_u8, vst1q_u8, veorq_u8, PF_MASK_FILL_NEON);
}

#endif

#if defined(PF_MASK_X86)

/* The best of SSE2, AVX2 and AVX-512 that CPU and operating system support. */
static inline int pf_mask_cpu_level(void)
{
#if defined(_MSC_VER)
    int leaf1[4], leaf7[4];
    unsigned long long saved;
    __cpuidex(leaf7, 0, 0);
    if (leaf7[0] < 7)
        return PF_MASK_SSE2;
    __cpuidex(leaf1, 1, 0);
    __cpuidex(leaf7, 7, 0);
    if (!(leaf1[2] & (1 << 27))) /* OSXSAVE: without it there is no XGETBV */
        return PF_MASK_SSE2;
    saved = _xgetbv(0); /* which registers the operating system saves */
    if ((saved & 0xE6) == 0xE6 && (leaf7[1] & (1 << 16)) && (leaf7[1] & (1 << 5)))
        return PF_MASK_AVX512;
    if ((saved & 0x06) == 0x06 && (leaf7[1] & (1 << 5)))
        return PF_MASK_AVX2;
    return PF_MASK_SSE2;
#else
    if (__builtin_cpu_supports("avx512f"))
        return PF_MASK_AVX512;
    if (__builtin_cpu_supports("avx2"))
        return PF_MASK_AVX2;
    return PF_MASK_SSE2;
#endif
}

#endif

/* The implementation that pf_mask uses for long payloads. */
static inline int pf_mask_best(void)
{
#if defined(PF_MASK_X86)
    return pf_mask_cpu_level();
#elif defined(PF_MASK_ARM64)
    return PF_MASK_NEON;
#else
    return PF_MASK_SCALAR;
#endif
}

/* The implementation of a PF_MASK_ number, or NULL where this CPU or this build has none. */
static inline pf_mask_function pf_mask_get(int implementation)
{
#if defined(PF_MASK_X86)
    const int level = pf_mask_cpu_level();

    if (implementation == PF_MASK_AVX512 && level >= PF_MASK_AVX512)
        return pf_mask_avx512;
    if (implementation == PF_MASK_AVX2 && level >= PF_MASK_AVX2)
        return pf_mask_avx2;
    if (implementation == PF_MASK_SSE2)
        return pf_mask_sse2;
#elif defined(PF_MASK_ARM64)
    if (implementation == PF_MASK_NEON)
        return pf_mask_neon;
#endif
    return implementation == PF_MASK_SCALAR ? pf_mask_scalar : (pf_mask_function)0;
}

/* "avx512", "avx2", "sse2", "neon" or "scalar": what pf_mask uses for long payloads. */
static inline const char *pf_mask_implementation(void)
{
    switch (pf_mask_best()) {
    case PF_MASK_AVX512:
        return "avx512";
    case PF_MASK_AVX2:
        return "avx2";
    case PF_MASK_SSE2:
        return "sse2";
    case PF_MASK_NEON:
        return "neon";
    default:
        return "scalar";
    }
}

#if defined(PF_MASK_X86)

static void pf_mask_resolve(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word);

/* Starts with the function that asks the CPU, once, and puts the answer here. */
static pf_mask_function pf_mask_selected = pf_mask_resolve;

static void pf_mask_resolve(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key_word)
{
    const pf_mask_function function = pf_mask_get(pf_mask_best());

    PF_MASK_STORE_POINTER(pf_mask_selected, function);
    function(dst, src, size, key_word);
}

#endif

/* dst[i] = src[i] ^ key[(i + phase) & 3] for i in 0 .. size - 1: `phase` is the offset in the
 * payload that `src` begins at. `dst` is `src` or does not overlap it. */
static inline void pf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t key[4],
                           size_t phase)
{
    const uint32_t key_word = pf_mask_key_word(key, phase);

#if defined(PF_MASK_X86)
    if (size <= 64)
        pf_mask_sse2(dst, src, size, key_word);
    else
        PF_MASK_LOAD_POINTER(pf_mask_selected)(dst, src, size, key_word);
#elif defined(PF_MASK_ARM64)
    pf_mask_neon(dst, src, size, key_word);
#else
    pf_mask_scalar(dst, src, size, key_word);
#endif
}

#endif
