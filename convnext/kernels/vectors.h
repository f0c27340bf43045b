#pragma once

/* Vectors of float of the CPU's own width, and their way to and from memory as float32 or bfloat16. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef uint8_t bvec __attribute__((vector_size(LANES)));
typedef int64_t idx;

INLINE uvec words_of(hvec h) {
#if defined(__AVX512F__) /* in one instruction */
    return (uvec)_mm512_cvtepu16_epi32((__m256i)h);
#else
    return __builtin_convertvector(h, uvec);
#endif
}

/* A vector's bytes as whole numbers, and numbers from 0 to 255 as bytes. */
INLINE ivec numbers_of(bvec b) {
#if defined(__AVX512F__) /* in one instruction */
    return (ivec)_mm512_cvtepu8_epi32((__m128i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)b));
#else
    return __builtin_convertvector(b, ivec);
#endif
}

INLINE bvec bytes_of(ivec v) {
#if defined(__AVX512F__)
    return (bvec)_mm512_cvtepi32_epi8((__m512i)v);
#else
    return __builtin_convertvector(__builtin_convertvector(v, hvec), bvec);
#endif
}

/* LANES bytes from p on, of which the first `count` exist; the others are zero. */
INLINE bvec load_bytes(const void *p, idx count) {
    bvec b = {0};
    memcpy(&b, p, count >= LANES ? LANES : count);
    return b;
}

/* LANES values from p on, of which the first `count` exist; the others are zero. `half`: they are bfloat16. */
INLINE vec load(const void *p, int half, idx count) {
    if (half) {
        hvec h = {0};
        if (count >= LANES) memcpy(&h, p, sizeof h);
        else memcpy(&h, p, 2 * count);
        return (vec)(words_of(h) << 16);
    }
    vec v = {0};
    if (count >= LANES) memcpy(&v, p, sizeof v);
    else memcpy(&v, p, 4 * count);
    return v;
}

/* Write the first `count` values, all of them where there are more. */
INLINE void store(void *p, int half, idx count, vec v) {
    if (half) {
#if defined(__AVX512BF16__)
        hvec h = (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
        uvec u = (uvec)v, nan = (uvec)(v != v);
        u = (u + 0x7fff + ((u >> 16) & 1)) >> 16; /* to the nearest, ties to even */
        hvec h = __builtin_convertvector((u & ~nan) | (0x7fc0 & nan), hvec);
#endif
        if (count >= LANES) memcpy(p, &h, sizeof h);
        else memcpy(p, &h, 2 * count);
    } else {
        if (count >= LANES) memcpy(p, &v, sizeof v);
        else memcpy(p, &v, 4 * count);
    }
}

/* What follows for each vector of a row of c values, which has `count` of them from i on: only of what is behind the last
   whole vector that is not known to be LANES when it is compiled, so that whole ones are not tested for it. */
#define EACH(i, c, ...)                      \
    {                                        \
        idx i = 0;                           \
        for (; i + LANES <= (c); i += LANES) { \
            const idx count = LANES;         \
            __VA_ARGS__                      \
        }                                    \
        if (i < (c)) {                       \
            const idx count = (c) - i;       \
            __VA_ARGS__                      \
        }                                    \
    }

/* The same, to memory that is not read soon: past the cache, where that can be done. `streamed` ends it. */
INLINE void stream(void *p, int half, idx count, vec v) {
#if defined(__AVX512BF16__)
    if (half && count >= LANES && (uintptr_t)p % 32 == 0) {
        _mm256_stream_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
        return;
    }
    if (!half && count >= LANES && (uintptr_t)p % 64 == 0) {
        _mm512_stream_ps((float *)p, (__m512)v);
        return;
    }
#endif
    store(p, half, count, v);
}

/* What was streamed is there for other threads, too. */
INLINE void streamed(void) {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

#define AHEAD 4096 /* bytes: what is read there will be needed by the time that it has come from memory */

/* Load as above from memory that is read in order, and have what is behind it brought into the cache. */
INLINE vec load_ahead(const void *p, int half, idx count) {
    if (!half || (uintptr_t)p % 64 < 32) __builtin_prefetch((const char *)p + AHEAD);
    return load(p, half, count);
}

/* Two vectors' values as bfloat16 in turn. */
INLINE uvec pairs_of(vec first, vec second) {
#if defined(__AVX512BF16__)
    const __m512i in_turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                             21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (uvec)_mm512_permutexvar_epi16(in_turn, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
    hvec low, high;
    store(&low, 1, LANES, first);
    store(&high, 1, LANES, second);
    return words_of(low) | words_of(high) << 16;
#endif
}

/* The same to memory: the first `count` of each. */
INLINE void store_pairs(void *p, idx count, vec first, vec second) {
    uvec pairs = pairs_of(first, second);
    if (count >= LANES) memcpy(p, &pairs, sizeof pairs);
    else memcpy(p, &pairs, 4 * count);
}

INLINE float total(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sums[LANES];
    memcpy(sums, &v, sizeof sums);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) sums[i] += sums[i + n];
    return sums[0];
#endif
}

INLINE idx least(idx a, idx b) { return a < b ? a : b; }

/* GOMP_parallel of the OpenMP runtime that PyTorch has loaded: calls the function once in each of its threads. */
typedef void parallel(void (*)(void *), void *, unsigned, unsigned);

INLINE void in_threads(parallel *start, unsigned threads, void (*work)(void *), void *job) {
    if (threads > 1) start(work, job, threads, 0);
    else work(job);
}
