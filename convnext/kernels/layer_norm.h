/* Layer normalization of rows of channels, and its gradient, inside of a thread. */

#pragma once

#include "vectors.h"

INLINE void *at(const void *p, int half, idx i) { return (char *)p + i * (half ? 2 : 4); }
INLINE vec get(const void *p, int half, idx i, idx count) { return load(at(p, half, i), half, count); }
INLINE vec get_ahead(const void *p, int half, idx i, idx count) { return load_ahead(at(p, half, i), half, count); }
INLINE void put(void *p, int half, idx i, idx count, vec v) { store(at(p, half, i), half, count, v); }

#define TOGETHER 4 /* rows whose sums do not wait for each other */

/* out = (x - mean) * scale * weight + bias, where scale = 1 / standard deviation, for `n` rows of c values, at most
   TOGETHER; without weight and bias where there is none. */
INLINE void normalize_rows(int half, int out_half, idx n, idx c, float eps, const void *x, const float *weight,
                           const float *bias, void *out, float *scale) {
    vec sum[TOGETHER], squares[TOGETHER];
    float mean[TOGETHER];
    for (int r = 0; r < n; r++) sum[r] = squares[r] = (vec){0};
    EACH(i, c, for (int r = 0; r < n; r++) sum[r] += get_ahead(x, half, r * c + i, count);)
    for (int r = 0; r < n; r++) mean[r] = total(sum[r]) / c;
    EACH(i, c, for (int r = 0; r < n; r++) {
        vec v = get(x, half, r * c + i, count) - mean[r];
        if (count < LANES) v = load(&v, 0, count); /* zeros again behind the last channel */
        squares[r] += v * v;
    })
    for (int r = 0; r < n; r++) scale[r] = 1.0f / __builtin_sqrtf(total(squares[r]) / c + eps);
    EACH(i, c, for (int r = 0; r < n; r++) {
        vec v = (get(x, half, r * c + i, count) - mean[r]) * scale[r];
        if (weight) v = v * get(weight, 0, i, count) + get(bias, 0, i, count);
        put(out, out_half, r * c + i, count, v);
    })
}

/* The same of any number of rows. */
INLINE void normalize(int half, int out_half, idx n, idx c, float eps, const void *x, const float *weight,
                      const float *bias, void *out, float *scale) {
    idx r = 0;
    for (; r + TOGETHER <= n; r += TOGETHER)
        normalize_rows(half, out_half, TOGETHER, c, eps, at(x, half, r * c), weight, bias, at(out, out_half, r * c),
                       scale + r);
    for (; r < n; r++)
        normalize_rows(half, out_half, 1, c, eps, at(x, half, r * c), weight, bias, at(out, out_half, r * c), scale + r);
}

/* From the gradient d of what `normalize` made, without weight and bias, that of its input. */
INLINE void normalize_gradient(int half, int out_half, idx n, idx c, const float *d, const void *made,
                               const float *scale, void *out) {
    for (idx r = 0; r < n; r++) {
        vec sum = {0}, products = {0};
        EACH(i, c, {
            vec v = get(d, 0, r * c + i, count);
            sum += v;
            products += v * get(made, half, r * c + i, count);
        })
        float mean = total(sum) / c, slope = total(products) / c;
        EACH(i, c, {
            vec v = get(d, 0, r * c + i, count) - mean - slope * get(made, half, r * c + i, count);
            stream(at(out, out_half, r * c + i), out_half, count, v * scale[r]);
        })
    }
}
