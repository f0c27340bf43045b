/* Matrix products of others, called by address, and the orders of values that they take. */

#include "vectors.h"

/* Fortran's SGEMM, or the same from bfloat16: c = a b + beta c, column by column. */
typedef void gemm(const char *, const char *, const int *, const int *, const int *, const float *, const void *,
                  const int *, const void *, const int *, const float *, float *, const int *);

/* oneDNN's, as libtorch exports it: c = a b, or c += a b, row by row; with the last set, b's rows are in pairs. */
typedef void brgemm(idx, idx, idx, idx, idx, idx, _Bool, const void *, const void *, float *, _Bool);

typedef struct {
    gemm *blas;
    brgemm *blocks; /* or this one */
    int paired;     /* the right matrix has its rows in pairs, value by value */
} product;

enum { BLAS, BRGEMM };

INLINE product product_of(void *function, idx kind, idx half) {
    product p = {0};
    if (kind == BRGEMM) p.blocks = (brgemm *)function, p.paired = half;
    else p.blas = (gemm *)function;
    return p;
}

/* c (m, n) = a (m, k) b (k, n), or c += a b, row by row, each with the distance from one row to the next. */
INLINE void multiply(const product *p, idx m, idx n, idx k, const void *a, idx a_stride, const void *b, idx b_stride,
                     int add, float *c, idx c_stride) {
    if (p->blocks) {
        p->blocks(m, n, k, a_stride, b_stride, c_stride, add, a, b, c, p->paired);
        return;
    }
    int rows = m, columns = n, depth = k, lda = a_stride, ldb = b_stride, ldc = c_stride;
    float one = 1.0f, beta = add;
    /* The transposed matrices' product, in the other order, has the same values at the same addresses. */
    p->blas("n", "n", &columns, &rows, &depth, &one, b, &ldb, a, &lda, &beta, c, &ldc);
}

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define INTERLEAVED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INTERLEAVED(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* Change rows and columns of LANES x LANES words of 32 bits.

   To interleave the first half of the rows with the second moves the highest bit of a value's place, of row and column
   together, behind the lowest: after as many times as a row's number has bits, rows and columns have changed. */
INLINE void transpose_tile(vec tile[LANES]) {
    vec next[LANES];
    for (int bits = LANES; bits > 1; bits /= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = INTERLEAVED(tile[i], tile[i + LANES / 2], LOW);
            next[2 * i + 1] = INTERLEAVED(tile[i], tile[i + LANES / 2], HIGH);
        }
        memcpy(tile, next, sizeof next);
    }
}

/* Turn a matrix (rows, columns) of words to (columns, rows). */
INLINE void transpose_words(idx rows, idx columns, const uint32_t *in, idx in_stride, uint32_t *out, idx out_stride) {
    for (idx r = 0; r < rows; r += LANES)
        for (idx c = 0; c < columns; c += LANES) {
            idx height = least(LANES, rows - r), width = least(LANES, columns - c);
            vec tile[LANES];
            for (int i = 0; i < LANES; i++)
                tile[i] = i < height ? load(in + (r + i) * in_stride + c, 0, width) : (vec){0};
            transpose_tile(tile);
            for (int i = 0; i < width; i++) store(out + (c + i) * out_stride + r, 0, height, tile[i]);
        }
}

/* Put each two rows of bfloat16 value by value into one of words; zeros beside the last of an odd number. */
INLINE void pair_rows(idx rows, idx columns, const uint16_t *in, uint32_t *out) {
    for (idx r = 0; r < rows; r += 2, in += 2 * columns, out += columns)
        EACH(c, columns, {
            uvec first = (uvec)load(in + c, 1, count) >> 16;
            uvec second = r + 1 < rows ? (uvec)load(in + columns + c, 1, count) : (uvec){0};
            store(out + c, 0, count, (vec)(first | second));
        })
}

/* Turn (rows, columns) to (columns, rows), of `stride` values each; `pairs` is for as many values as there are. */
INLINE void transpose(int half, idx rows, idx columns, const void *in, void *out, idx stride, void *pairs) {
    if (!half) {
        transpose_words(rows, columns, in, columns, out, stride);
        return;
    }
    pair_rows(rows, columns, in, pairs);
    transpose_words((rows + 1) / 2, columns, pairs, columns, out, stride / 2);
}
