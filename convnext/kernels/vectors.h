/* Vectors of float of the CPU's own width, and their way to and from memory as float32 or bfloat16. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
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
typedef int64_t idx;

/* LANES values from p on, of which the first `count` exist; the others are zero. `half`: they are bfloat16. */
INLINE vec load(const void *p, int half, idx count) {
    if (half) {
        hvec h = {0};
        if (count >= LANES) memcpy(&h, p, sizeof h);
        else memcpy(&h, p, 2 * count);
        return (vec)(__builtin_convertvector(h, uvec) << 16);
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

INLINE idx least(idx a, idx b) { return a < b ? a : b; }

/* GOMP_parallel of the OpenMP runtime that PyTorch has loaded: calls the function once in each of its threads. */
typedef void parallel(void (*)(void *), void *, unsigned, unsigned);

INLINE void in_threads(parallel *start, unsigned threads, void (*work)(void *), void *job) {
    if (threads > 1) start(work, job, threads, 0);
    else work(job);
}
