/* What a block does between its matrix products, on rows of channels: layer normalization, GELU, and the residual sum.

   Each thread takes a share of the rows, and sums over rows are kept apart for each share. With `half` set, values are
   bfloat16; `residual_half` says so of the block's input and output. */

#include "vectors.h"

typedef struct {
    const void *in, *other;
    void *out, *second;
    const float *bias, *factor;
    float *scale, *sums;
    idx rows, columns, shares, first, per_factor;
    idx half, residual_half;
    float eps;
    idx next; /* share to be taken */
} job;

INLINE vec get(const void *p, int half, idx i, idx count) { return load((const char *)p + i * (half ? 2 : 4), half, count); }
INLINE void put(void *p, int half, idx i, idx count, vec v) { store((char *)p + i * (half ? 2 : 4), half, count, v); }

INLINE float total(vec v) {
    float sums[LANES];
    memcpy(sums, &v, sizeof sums);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) sums[i] += sums[i + n];
    return sums[0];
}

/* 2^z for -126 <= z <= 127, to 1e-7 of it. */
INLINE vec power_of_two(vec z) {
    vec rounded = z + 0x1.8p23f; /* the nearest whole number is in the low bits */
    vec r = z - (rounded - 0x1.8p23f);
    vec p = 1.3276466e-3f * r + 9.6755413e-3f;
    p = p * r + 5.5507133e-2f;
    p = p * r + 0.2402212f;
    p = p * r + 0.69314697f;
    p = p * r + 1.0f;
    return (vec)((ivec)p + ((ivec)rounded << 23));
}

INLINE vec either(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

INLINE vec reciprocal(vec x) {
#if defined(__AVX512F__) /* a division takes longer than all the rest of `normal` */
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* The normal distribution's integral up to x, to 1e-7, and its density times sqrt(2 pi).

   The integral up to -y is exp(-y^2 / 2) times a slow function of y, which is a polynomial in 1 / (1 + 0.31 y): fitted
   for the least largest error, 2e-8. */
INLINE vec normal(vec x, vec *density) {
    vec y = (vec)((ivec)x & 0x7fffffff), z = x * x * -0.72134752f;
    ivec far = z < -126.0f;
    *density = either(far, (vec){0}, power_of_two(either(far, (vec){0}, z)));
    vec t = reciprocal(1.0f + 0.31f * y);
    vec p = -0.14075897f * t + 0.59242585f;
    p = p * t - 0.4146666f;
    p = p * t + 0.41159467f;
    p = p * t + 4.1814301e-2f;
    p = p * t + 9.5907747e-3f;
    vec below = p * *density;
    return either(x < 0.0f, below, 1.0f - below);
}

/* Rows `from` to `to` of each function below. */
#define ROWS(name) INLINE void name##_rows(const job *j, int half, int residual_half, idx from, idx to, float *sums)
#define EACH(i) for (idx i = 0, count = c; i < c; i += LANES, count -= LANES)

/* out = (in - mean) * scale, where scale = 1 / deviation. */
ROWS(normalize) {
    (void)residual_half, (void)sums;
    idx c = j->columns;
    float extra = (float)(-c & (LANES - 1)); /* lanes behind the last channel: they hold zeros */
    for (idx r = from; r < to; r++) {
        vec sum = {0}, squares = {0};
        EACH(i) sum += get(j->in, half, r * c + i, count);
        float mean = total(sum) / c;
        EACH(i) {
            vec v = get(j->in, half, r * c + i, count) - mean;
            squares += v * v;
        }
        float scale = 1.0f / __builtin_sqrtf((total(squares) - extra * mean * mean) / c + j->eps);
        j->scale[r] = scale;
        EACH(i) put(j->out, half, r * c + i, count, (get(j->in, half, r * c + i, count) - mean) * scale);
    }
}

/* From the gradient `in` of what `normalize` made, `other`, that of its input. */
ROWS(normalize_gradient) {
    (void)residual_half, (void)sums;
    idx c = j->columns;
    for (idx r = from; r < to; r++) {
        vec sum = {0}, product = {0};
        EACH(i) {
            vec d = get(j->in, half, r * c + i, count);
            sum += d;
            product += d * get(j->other, half, r * c + i, count);
        }
        float mean = total(sum) / c, slope = total(product) / c, scale = j->scale[r];
        EACH(i) {
            vec d = get(j->in, half, r * c + i, count), x = get(j->other, half, r * c + i, count);
            put(j->out, half, r * c + i, count, (d - mean - x * slope) * scale);
        }
    }
}

/* out = GELU(in + bias). */
ROWS(gelu) {
    (void)residual_half, (void)sums;
    idx c = j->columns;
    for (idx r = from; r < to; r++)
        EACH(i) {
            vec density, x = get(j->in, half, r * c + i, count) + get(j->bias, 0, i, count);
            put(j->out, half, r * c + i, count, x * normal(x, &density));
        }
}

/* The same, and from the gradient `second` of that the one of in + bias in its place, and its sum over the rows. */
ROWS(gelu_gradient) {
    (void)residual_half;
    idx c = j->columns;
    for (idx r = from; r < to; r++)
        EACH(i) {
            vec density, x = get(j->in, half, r * c + i, count) + get(j->bias, 0, i, count);
            vec integral = normal(x, &density);
            vec d = get(j->second, half, r * c + i, count) * (integral + x * density * 0.39894228f);
            put(j->out, half, r * c + i, count, x * integral);
            put(j->second, half, r * c + i, count, d);
            put(sums, 0, i, count, get(sums, 0, i, count) + d);
        }
}

/* The factor of the image that a row belongs to. */
INLINE float factor_of(const job *j, idx row) { return j->factor ? j->factor[(j->first + row) / j->per_factor] : 1.0f; }

/* out = other + factor * (in + bias). */
ROWS(add) {
    (void)sums;
    idx c = j->columns;
    for (idx r = from; r < to; r++) {
        float factor = factor_of(j, r);
        EACH(i) {
            vec x = get(j->in, half, r * c + i, count) + get(j->bias, 0, i, count);
            put(j->out, residual_half, r * c + i, count, get(j->other, residual_half, r * c + i, count) + x * factor);
        }
    }
}

/* out = factor * in, and its sum over the rows. */
ROWS(scale) {
    idx c = j->columns;
    for (idx r = from; r < to; r++) {
        float factor = factor_of(j, r);
        EACH(i) {
            vec x = get(j->in, residual_half, r * c + i, count) * factor;
            put(j->out, half, r * c + i, count, x);
            put(sums, 0, i, count, get(sums, 0, i, count) + x);
        }
    }
}

/* A loop for each combination of types, without tests for them inside. */
#define WORK(name)                                                                                           \
    static void name##_work(void *data) {                                                                    \
        job *j = data;                                                                                       \
        for (idx share; (share = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->shares;) {          \
            idx from = share * j->rows / j->shares, to = (share + 1) * j->rows / j->shares;                  \
            float *sums = j->sums ? j->sums + share * j->columns : 0;                                        \
            if (!j->half) name##_rows(j, 0, 0, from, to, sums);                                              \
            else if (!j->residual_half) name##_rows(j, 1, 0, from, to, sums);                                \
            else name##_rows(j, 1, 1, from, to, sums);                                                       \
        }                                                                                                    \
    }
WORK(normalize)
WORK(normalize_gradient)
WORK(gelu)
WORK(gelu_gradient)
WORK(add)
WORK(scale)

int mlp_normalize(parallel *start, unsigned threads, idx rows, idx columns, idx half, const void *x, void *out,
                  float *scale, float eps) {
    job j = {.in = x, .out = out, .scale = scale, .eps = eps, .rows = rows, .columns = columns, .shares = threads,
             .half = half};
    in_threads(start, threads, normalize_work, &j);
    return 0;
}

int mlp_normalize_gradient(parallel *start, unsigned threads, idx rows, idx columns, idx half, const void *d,
                           const void *x, float *scale, void *out) {
    job j = {.in = d, .other = x, .out = out, .scale = scale, .rows = rows, .columns = columns, .shares = threads,
             .half = half};
    in_threads(start, threads, normalize_gradient_work, &j);
    return 0;
}

int mlp_gelu(parallel *start, unsigned threads, idx rows, idx columns, idx half, const void *x, const float *bias,
             void *out) {
    job j = {.in = x, .bias = bias, .out = out, .rows = rows, .columns = columns, .shares = threads, .half = half};
    in_threads(start, threads, gelu_work, &j);
    return 0;
}

int mlp_gelu_gradient(parallel *start, unsigned threads, idx rows, idx columns, idx half, const void *x,
                      const float *bias, void *out, void *d, float *sums) {
    job j = {.in = x, .bias = bias, .out = out, .second = d, .sums = sums, .rows = rows, .columns = columns,
             .shares = threads, .half = half};
    in_threads(start, threads, gelu_gradient_work, &j);
    return 0;
}

int mlp_add(parallel *start, unsigned threads, idx rows, idx columns, idx half, idx residual_half, const void *x,
            const float *bias, const void *shortcut, void *out, const float *factor, idx first, idx per_factor) {
    job j = {.in = x, .bias = bias, .other = shortcut, .out = out, .factor = factor, .first = first,
             .per_factor = per_factor, .rows = rows, .columns = columns, .shares = threads, .half = half,
             .residual_half = residual_half};
    in_threads(start, threads, add_work, &j);
    return 0;
}

int mlp_scale(parallel *start, unsigned threads, idx rows, idx columns, idx half, idx residual_half, const void *x,
              void *out, float *sums, const float *factor, idx first, idx per_factor) {
    job j = {.in = x, .out = out, .sums = sums, .factor = factor, .first = first, .per_factor = per_factor,
             .rows = rows, .columns = columns, .shares = threads, .half = half, .residual_half = residual_half};
    in_threads(start, threads, scale_work, &j);
    return 0;
}
