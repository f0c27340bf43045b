/* A block's branch and its gradients: layer normalization, two linear layers around a GELU, and the residual sum.

   A thread takes some rows of channels, and of the hidden layer some columns at a time, through all of it, so that what
   is between stays in its core's cache and no thread waits for another; then the next rows. The sums of the matrix
   products are float32. With `half` set, the values that they multiply are bfloat16; `residual_half` says so of the
   block's input and output. */

#include "layer_norm.h"
#include "product.h"

typedef struct {
    product multiply;
    idx half, residual_half, rows, dim, width, chunk, block, positions;
    float eps;
    const void *x, *residual;         /* residual: the shortcut, or the gradient of the result */
    const void *linear1, *linear2;    /* as they are multiplied: (dim, width) and (width, dim) */
    const void *dlinear2, *dlinear1;  /* for the gradients: (dim, width) and (width, dim) */
    const float *bias1, *bias2, *factor;
    void *saved; /* hidden layer before its bias: of each block of columns all rows, one behind the other */
    void *out;   /* result, or gradient of x */
    float *dweight1, *dbias1, *dweight2, *dbias2; /* of each section of the rows; both weights' of (dim, width) */
    idx sections, next;
    int failed;
} job;

/* What one thread has between the operations on a chunk of rows. */
typedef struct {
    char *normal, *normal_t, *dbranch, *dbranch_t, *pairs; /* _t: transposed */
    float *scale, *branch, *hidden, *dhidden;
    char *active, *dactive, *dactive_rows; /* what is multiplied of the hidden layer and of its gradient */
} buffers;

/* 2^z for -126 <= z <= 127, to 2.5e-7 of it. */
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

/* The normal distribution's cumulative distribution function, to 1e-7, and its density times sqrt(2 pi).

   At -y it is exp(-y^2 / 2) times a slowly varying function of y, which is a polynomial in 1 / (1 + 0.31 y): fitted for
   the least largest error, 3e-8. */
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

INLINE vec within(vec x, float limit) {
#if defined(__AVX512F__) /* the second operand where one is not a number */
    return (vec)_mm512_max_ps(_mm512_set1_ps(-limit), _mm512_min_ps(_mm512_set1_ps(limit), (__m512)x));
#else
    vec most = x * 0 + limit;
    x = either(x > most, most, x);
    return either(x < -most, -most, x);
#endif
}

/* The distribution function to 3.4e-5, which bfloat16 does not tell from the exact one, in a third of the time; and
   GELU's slope, x times the density more, to 5.2e-4. Both are 1/2 at 0 and odd around it: polynomials in x^2, fitted
   for the least largest error up to 4, where they end at 1. */
INLINE vec coarse_normal(vec x, vec *slope) {
    vec t = within(x, 4.0f), s = t * t;
    vec p = -1.34257594e-9f * s + 1.076465e-7f, q = -1.29107907e-8f * s + 9.90355602e-7f;
    p = p * s - 3.76997764e-6f, q = q * s - 3.28102033e-5f;
    p = p * s + 7.67302117e-5f, q = q * s + 6.15666388e-4f;
    p = p * s - 1.02339371e-3f, q = q * s - 7.20348209e-3f;
    p = p * s + 9.58589371e-3f, q = q * s + 5.42779192e-2f;
    p = p * s - 6.60668984e-2f, q = q * s - 0.259653747f;
    p = p * s + 0.398805588f, q = q * s + 0.795758605f;
    *slope = t * q + 0.5f;
    return t * p + 0.5f;
}

/* GELU's factor of x, and its slope. */
INLINE vec gelu_factor(int half, vec x, vec *slope) {
    if (half) return coarse_normal(x, slope);
    vec density, integral = normal(x, &density);
    *slope = integral + x * density * 0.39894228f;
    return integral;
}

/* out = GELU(hidden + bias), which may be in the same memory; `saved` gets what was there. */
INLINE void gelu(int half, idx n, idx c, const float *bias, const float *hidden, void *out, void *saved) {
    for (idx r = 0; r < n; r++)
        EACH(i, c, {
            vec slope, v = get(hidden, 0, r * c + i, count), x = v + get(bias, 0, i, count);
            if (saved) stream(at(saved, half, r * c + i), half, count, v);
            put(out, half, r * c + i, count, x * gelu_factor(half, x, &slope));
        })
}

/* Where hidden and d are a vector of a row: GELU(hidden + bias), and in place of the result's gradient that of x. */
INLINE vec gelu_gradient(int half, int hidden_half, const void *hidden, const float *d, vec bias, idx count, vec *dx) {
    vec slope, x = get_ahead(hidden, hidden_half, 0, count) + bias, y = x * gelu_factor(half, x, &slope);
    *dx = get(d, 0, 0, count) * slope;
    return y;
}

/* What is multiplied of n rows of the hidden layer: out = GELU(hidden + bias), and from its gradient d that of
   hidden + bias, `dout`, and its sum over the rows. */
INLINE void hidden_gradient(int half, int hidden_half, idx n, idx c, const float *bias, const void *hidden,
                            const float *d, void *out, void *dout, float *sums) {
    for (idx r = 0; r < n; r++)
        EACH(i, c, {
            vec dx, y = gelu_gradient(half, hidden_half, at(hidden, hidden_half, r * c + i), d + r * c + i,
                                      get(bias, 0, i, count), count, &dx);
            put(out, half, r * c + i, count, y);
            put(dout, half, r * c + i, count, dx);
            put(sums, 0, i, count, get(sums, 0, i, count) + dx);
        })
}

/* The same, of bfloat16, with the rows of `out` and `dout` in pairs; `drows` gets the gradient once more, row by row. */
INLINE void hidden_gradient_paired(int hidden_half, idx n, idx c, const float *bias, const void *hidden,
                                   const float *d, void *out, void *dout, void *drows, float *sums) {
    idx r = 0;
    for (; r + 1 < n; r += 2)
        EACH(i, c, {
            vec b = get(bias, 0, i, count), dx, dx2;
            vec y = gelu_gradient(1, hidden_half, at(hidden, hidden_half, r * c + i), d + r * c + i, b, count, &dx);
            vec y2 = gelu_gradient(1, hidden_half, at(hidden, hidden_half, (r + 1) * c + i), d + (r + 1) * c + i, b,
                                   count, &dx2);
            put(drows, 1, r * c + i, count, dx);
            put(drows, 1, (r + 1) * c + i, count, dx2);
            store_pairs(at(out, 1, r * c + 2 * i), count, y, y2);
            store_pairs(at(dout, 1, r * c + 2 * i), count, dx, dx2);
            put(sums, 0, i, count, get(sums, 0, i, count) + (dx + dx2));
        })
    if (r == n) return;
    EACH(i, c, {
        vec dx, y = gelu_gradient(1, hidden_half, at(hidden, hidden_half, r * c + i), d + r * c + i,
                                  get(bias, 0, i, count), count, &dx);
        put(drows, 1, r * c + i, count, dx);
        store_pairs(at(out, 1, r * c + 2 * i), count, y, (vec){0});
        store_pairs(at(dout, 1, r * c + 2 * i), count, dx, (vec){0});
        put(sums, 0, i, count, get(sums, 0, i, count) + dx);
    })
}

/* The factor of the image that a row belongs to. */
INLINE float factor_of(const job *j, idx row) { return j->factor ? j->factor[row / j->positions] : 1.0f; }

/* Rows `first` and following: out = residual + factor * (branch + bias). */
INLINE void add(const job *j, int residual_half, idx first, idx n, const float *branch) {
    idx c = j->dim;
    for (idx r = 0; r < n; r++) {
        float factor = factor_of(j, first + r);
        EACH(i, c, {
            vec v = get(branch, 0, r * c + i, count) + get(j->bias2, 0, i, count);
            idx index = (first + r) * c + i;
            vec old = get_ahead(j->residual, residual_half, index, count);
            stream(at(j->out, residual_half, index), residual_half, count, old + v * factor);
        })
    }
}

/* Rows `first` and following: out = factor * residual, and its sum over the rows. */
INLINE void scale_residual(const job *j, int half, int residual_half, idx first, idx n, void *out, float *sums) {
    idx c = j->dim;
    for (idx r = 0; r < n; r++) {
        float factor = factor_of(j, first + r);
        EACH(i, c, {
            vec v = get_ahead(j->residual, residual_half, (first + r) * c + i, count) * factor;
            put(out, half, r * c + i, count, v);
            put(sums, 0, i, count, get(sums, 0, i, count) + v);
        })
    }
}

INLINE void forward(const job *j, int half, int residual_half, idx first, idx n, buffers b) {
    idx dim = j->dim, width = j->width, pair = j->multiply.paired ? 2 : 1;
    normalize(half, half, n, dim, j->eps, at(j->x, half, first * dim), 0, 0, b.normal, b.scale);
    for (idx w = 0; w < width; w += j->block) {
        idx c = least(j->block, width - w);
        void *saved = j->saved ? at(j->saved, half, w * j->rows + first * c) : 0;
        float *hidden = saved && !half ? saved : b.hidden;
        multiply(&j->multiply, n, c, dim, b.normal, dim, at(j->linear1, half, w * pair), width, 0, hidden, c);
        gelu(half, n, c, j->bias1 + w, hidden, b.hidden, half ? saved : 0);
        multiply(&j->multiply, n, dim, c, b.hidden, c, at(j->linear2, half, w * dim), dim, w > 0, b.branch, dim);
    }
    add(j, residual_half, first, n, b.branch);
}

INLINE void backward(const job *j, int half, int residual_half, int paired, idx section, idx first, idx n, int more,
                     buffers b) {
    idx dim = j->dim, width = j->width, pair = paired ? 2 : 1, even = paired ? n + n % 2 : n, padded = n + n % 2;
    normalize(half, half, n, dim, j->eps, at(j->x, half, first * dim), 0, 0, b.normal, b.scale);
    scale_residual(j, half, residual_half, first, n, b.dbranch, j->dbias2 + section * dim);
    transpose(half, n, dim, b.normal, b.normal_t, padded, b.pairs);
    transpose(half, n, dim, b.dbranch, b.dbranch_t, padded, b.pairs);
    for (idx w = 0; w < width; w += j->block) {
        idx c = least(j->block, width - w);
        float *sums = j->dbias1 + section * width + w, *to = j->dweight1 + section * dim * width + w;
        multiply(&j->multiply, n, c, dim, b.dbranch, dim, at(j->dlinear2, half, w * pair), width, 0, b.dhidden, c);
        const void *hidden = j->saved ? at(j->saved, half, w * j->rows + first * c) : b.hidden;
        if (!j->saved)
            multiply(&j->multiply, n, c, dim, b.normal, dim, at(j->linear1, half, w * pair), width, 0, b.hidden, c);
        const float *bias = j->bias1 + w;
#define FROM(hidden_half)                                                                                          \
    if (paired) hidden_gradient_paired(hidden_half, n, c, bias, hidden, b.dhidden, b.active, b.dactive, b.dactive_rows, \
                                       sums);                                                                       \
    else hidden_gradient(half, hidden_half, n, c, bias, hidden, b.dhidden, b.active, b.dactive, sums);
        if (j->saved) {
            FROM(half)
        } else {
            FROM(0)
        }
#undef FROM
        multiply(&j->multiply, dim, c, even, b.normal_t, padded, b.dactive, c, more, to, width);
        to = j->dweight2 + section * dim * width + w;
        multiply(&j->multiply, dim, c, even, b.dbranch_t, padded, b.active, c, more, to, width);
        multiply(&j->multiply, n, dim, c, paired ? b.dactive_rows : b.dactive, c, at(j->dlinear1, half, w * dim), dim,
                 w > 0, b.branch, dim);
    }
    normalize_gradient(half, half, n, dim, b.branch, b.normal, b.scale, at(j->out, half, first * dim));
}

/* The buffers in one piece of memory, each of whole vectors; its start is to be freed.

   The products give the same sums each time only to the same alignment, of 64 bytes. */
static void *allocate(job *j, int gradient, buffers *b) {
    idx rows = j->chunk + 2, narrow = (rows * j->dim + LANES - 1) / LANES, wide = (rows * j->block + LANES - 1) / LANES;
    idx scale = (rows + LANES - 1) / LANES;
    idx sizes[] = {narrow, narrow, wide, scale, narrow, narrow, narrow, narrow, wide, wide, wide, wide};
    void **at[] = {(void **)&b->normal, (void **)&b->branch, (void **)&b->hidden, (void **)&b->scale,
                   (void **)&b->normal_t, (void **)&b->dbranch, (void **)&b->dbranch_t, (void **)&b->pairs,
                   (void **)&b->dhidden, (void **)&b->active, (void **)&b->dactive, (void **)&b->dactive_rows};
    int count = gradient ? 12 : 4;
    idx all = 0;
    for (int i = 0; i < count; i++) all += sizes[i];
    void *start;
    if (posix_memalign(&start, 64, all * sizeof(vec))) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    vec *next = start;
    for (int i = 0; i < count; i++) *at[i] = next, next += sizes[i];
    return start;
}

/* A loop for each combination of types, without tests for them inside. */
#define FOR_TYPES(call, ...)                                   \
    if (!j->half) call(j, 0, 0, __VA_ARGS__);                  \
    else if (!j->residual_half) call(j, 1, 0, __VA_ARGS__);    \
    else call(j, 1, 1, __VA_ARGS__);

/* Take chunks until there are none. */
static void forward_work(void *data) {
    job *j = data;
    buffers b;
    void *start = allocate(j, 0, &b);
    if (!start) return;
    for (idx first; (first = __atomic_fetch_add(&j->next, j->chunk, __ATOMIC_RELAXED)) < j->rows;) {
        FOR_TYPES(forward, first, least(j->chunk, j->rows - first), b)
    }
    streamed();
    free(start);
}

/* Take sections of the rows, a chunk at a time: the sums over a section are the same whichever thread takes it. */
static void backward_work(void *data) {
    job *j = data;
    buffers b;
    void *start = allocate(j, 1, &b);
    if (!start) return;
    for (idx section; (section = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->sections;) {
        idx end = (section + 1) * j->rows / j->sections;
        idx begin = section * j->rows / j->sections;
        for (idx first = begin; first < end; first += j->chunk) {
            idx n = least(j->chunk, end - first);
            int more = first > begin; /* sums to add to */
            if (j->multiply.paired) {
                FOR_TYPES(backward, 1, section, first, n, more, b)
            } else {
                FOR_TYPES(backward, 0, section, first, n, more, b)
            }
        }
    }
    streamed();
    free(start);
}

/* out = residual + factor * linear2(gelu(linear1(normalize(x)))). Returns nonzero where there was no memory. */
int mlp_forward(parallel *start, unsigned threads, void *function, idx kind, idx half, idx residual_half, idx rows,
                idx dim, idx width, idx chunk, idx block, idx positions, float eps, const void *x, const void *shortcut,
                const void *linear1, const float *bias1, const void *linear2, const float *bias2, const float *factor,
                void *saved, void *out) {
    job j = {.multiply = product_of(function, kind, half), .half = half, .residual_half = residual_half, .rows = rows,
             .dim = dim, .width = width, .chunk = chunk, .block = block, .positions = positions, .eps = eps, .x = x,
             .residual = shortcut, .linear1 = linear1, .bias1 = bias1, .linear2 = linear2, .bias2 = bias2,
             .factor = factor, .saved = saved, .out = out};
    in_threads(start, threads, forward_work, &j);
    return j.failed;
}

/* From the gradient of `out` that of x, and those of the linear layers, by `sections`; of the biases, added to zeros. */
int mlp_backward(parallel *start, unsigned threads, void *function, idx kind, idx half, idx residual_half, idx rows,
                 idx dim, idx width, idx chunk, idx block, idx positions, float eps, const void *x, const void *dout,
                 const void *linear1, const float *bias1, const void *dlinear1, const void *dlinear2,
                 const float *factor, void *saved, void *dx, idx sections, float *dweight1, float *dbias1,
                 float *dweight2, float *dbias2) {
    job j = {.multiply = product_of(function, kind, half), .half = half, .residual_half = residual_half, .rows = rows,
             .dim = dim, .width = width, .chunk = chunk, .block = block, .positions = positions, .eps = eps, .x = x,
             .residual = dout, .linear1 = linear1, .bias1 = bias1, .dlinear1 = dlinear1, .dlinear2 = dlinear2,
             .factor = factor, .saved = saved, .out = dx, .sections = sections, .dweight1 = dweight1,
             .dbias1 = dbias1, .dweight2 = dweight2, .dbias2 = dbias2};
    in_threads(start, threads, backward_work, &j);
    return j.failed;
}
