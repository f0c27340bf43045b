/* Max-pooling of squares side by side, and its gradient, for tensors stored channels last.

   The first keeps, in a byte, which position of a square had its largest value, so that the second writes each value of
   the gradient once and reads nothing else. Rows and columns that fill no square have no part in it. */

#include "vectors.h"

typedef struct {
    const void *from; /* x (n, h, w, c), or y's gradient */
    void *to;         /* y (n, h / side, w / side, c), or x's gradient */
    uint8_t *at;      /* as y */
    idx half, n, h, w, c, side;
    idx next; /* row of squares to be taken */
} pooling;

/* The first `count` of bfloat16 values, past the cache. */
INLINE void put_half(void *p, idx count, hvec h) {
#if defined(__AVX512F__)
    if (count >= LANES && (uintptr_t)p % 32 == 0) {
        _mm256_stream_si256((__m256i *)p, (__m256i)h);
        return;
    }
#endif
    if (count >= LANES) memcpy(p, &h, sizeof h);
    else memcpy(p, &h, 2 * count);
}

/* The same of float32 values with these bits, which came from bfloat16 where that is what is written. */
INLINE void put(void *p, int half, idx count, uvec bits) {
    if (!half) stream(p, 0, count, (vec)bits);
#if defined(__AVX512F__) /* in one instruction */
    else put_half(p, count, (hvec)_mm512_cvtepi32_epi16((__m512i)(bits >> 16)));
#else
    else put_half(p, count, __builtin_convertvector(bits >> 16, hvec));
#endif
}

/* Of each channel in a square the largest value and its position; a NaN counts as larger than all before it. */
INLINE void largest(const pooling *j, int half, idx side, const char *x, char *y, uint8_t *at) {
    idx size = half ? 2 : 4;
    EACH(i, j->c, {
        uvec most = (uvec)load_ahead(x + i * size, half, count);
        uvec position = {0};
        for (idx a = 0; a < side; a++)
            for (idx b = !a; b < side; b++) {
                vec v = load_ahead(x + ((a * j->w + b) * j->c + i) * size, half, count);
                uvec larger = (uvec)((v > (vec)most) | (v != v));
                most = ((uvec)v & larger) | (most & ~larger);
                position = (((uvec){0} + (uint32_t)(a * side + b)) & larger) | (position & ~larger);
            }
        put(y + i * size, half, count, most);
        bvec bytes = bytes_of((ivec)position);
        memcpy(at + i, &bytes, least(count, LANES));
    })
}

INLINE void forward_row(const pooling *j, int half, idx side, idx row) {
    idx rows = j->h / side, columns = j->w / side, size = half ? 2 : 4;
    const char *x = (const char *)j->from + (row / rows * j->h + row % rows * side) * j->w * j->c * size;
    for (idx o = 0, to = row * columns * j->c; o < columns; o++, to += j->c)
        largest(j, half, side, x + o * side * j->c * size, (char *)j->to + to * size, j->at + to);
}

/* The gradients of those squares whose largest value is at this position, and zero for the others. */
INLINE void where(int half, idx count, const uint8_t *at, int position, const char *dy, char *dx) {
    bvec bytes = load_bytes(at, count);
    if (half) {
        hvec values = {0};
        memcpy(&values, dy, 2 * least(count, LANES));
        put_half(dx, count, values & (hvec)(__builtin_convertvector(bytes, hvec) == (uint16_t)position));
    } else {
        uvec here = (uvec)(numbers_of(bytes) == position);
        put(dx, 0, count, (uvec)load(dy, 0, count) & here);
    }
}

INLINE void backward_row(const pooling *j, int half, idx side, idx row) {
    idx rows = j->h / side, columns = j->w / side, size = half ? 2 : 4, width = j->w * j->c * size;
    const char *dy = (const char *)j->from + row * columns * j->c * size;
    const uint8_t *at = j->at + row * columns * j->c;
    char *dx = (char *)j->to + (row / rows * j->h + row % rows * side) * width;
    for (idx a = 0; a < side; a++, dx += width) {
        for (idx w = 0; w < columns * side; w++) {
            idx from = w / side * j->c;
            int position = a * side + w % side;
            EACH(i, j->c, where(half, count, at + from + i, position, dy + (from + i) * size, dx + (w * j->c + i) * size);)
        }
        memset(dx + columns * side * j->c * size, 0, (j->w - columns * side) * j->c * size);
    }
    if (row % rows == rows - 1) memset(dx, 0, (j->h - rows * side) * width);
}

/* A side of two is known when it is compiled. */
#define ROWS(name)                                                                    \
    static void name##_work(void *data) {                                             \
        pooling *j = data;                                                            \
        idx rows = j->n * (j->h / j->side);                                           \
        for (idx r; (r = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < rows;) { \
            if (j->half && j->side == 2) name##_row(j, 1, 2, r);                      \
            else if (j->half) name##_row(j, 1, j->side, r);                           \
            else if (j->side == 2) name##_row(j, 0, 2, r);                            \
            else name##_row(j, 0, j->side, r);                                        \
        }                                                                             \
        streamed();                                                                   \
    }

ROWS(forward)
ROWS(backward)

/* y = the largest of each square of x, and its position. */
int max_pool_forward(parallel *start, unsigned threads, const void *x, idx half, void *y, void *at, idx n, idx h, idx w,
                     idx c, idx side) {
    pooling j = {.from = x, .to = y, .at = at, .half = half, .n = n, .h = h, .w = w, .c = c, .side = side};
    in_threads(start, threads, forward_work, &j);
    return 0;
}

/* x's gradient, from y's and the positions. */
int max_pool_backward(parallel *start, unsigned threads, const void *dy, idx half, void *dx, void *at, idx n, idx h,
                      idx w, idx c, idx side) {
    pooling j = {.from = dy, .to = dx, .at = at, .half = half, .n = n, .h = h, .w = w, .c = c, .side = side};
    in_threads(start, threads, backward_work, &j);
    return 0;
}
