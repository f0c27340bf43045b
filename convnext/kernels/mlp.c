/* A block's branch and its gradients: layer normalization, two linear layers around a GELU, and the residual sum.

   A thread takes some rows of channels through all of it, so that what is between stays in its core's cache and no
   thread waits for another; then the next rows. The matrix products are BLAS's, whose results are float32. With `half`
   set, the values that it multiplies are bfloat16; `residual_half` says so of the block's input and output. */

#include "vectors.h"

/* Fortran's SGEMM, or the same from bfloat16: c = a b + beta c, column by column. */
typedef void gemm(const char *, const char *, const int *, const int *, const int *, const float *, const void *,
                  const int *, const void *, const int *, const float *, float *, const int *);

typedef struct {
    gemm *multiply;
    idx half, residual_half, rows, dim, width, chunk, positions;
    float eps;
    const void *x, *residual, *weight1, *weight2; /* residual: the shortcut, or the gradient of the result */
    const float *bias1, *bias2, *factor;
    void *saved, *out; /* hidden layer before its bias; result, or gradient of x */
    float *dweight1, *dbias1, *dweight2, *dbias2; /* of each section of the rows */
    idx sections, next;
    int failed;
} job;

/* What one thread has between the operations on a chunk of rows. */
typedef struct {
    char *normal, *dbranch;
    float *scale, *hidden, *dhidden, *branch;
} buffers;

INLINE void *at(const void *p, int half, idx i) { return (char *)p + i * (half ? 2 : 4); }
INLINE vec get(const void *p, int half, idx i, idx count) { return load(at(p, half, i), half, count); }
INLINE void put(void *p, int half, idx i, idx count, vec v) { store(at(p, half, i), half, count, v); }

/* c = a b + beta c, row by row: c of (m, n), and n or t says whether a and b are as they are multiplied or transposed. */
static void product(const job *j, const char *kinds, idx m, idx n, idx k, const void *a, const void *b, float beta,
                    float *c) {
    int rows = m, columns = n, depth = k, a_stride = kinds[0] == 't' ? m : k, b_stride = kinds[1] == 't' ? k : n;
    float one = 1.0f;
    /* The transposed matrices' product, in the other order, has the same values at the same addresses. */
    j->multiply(kinds + 1, kinds, &columns, &rows, &depth, &one, b, &b_stride, a, &a_stride, &beta, c, &columns);
}

INLINE float total(vec v) {
    float sums[LANES];
    memcpy(sums, &v, sizeof sums);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) sums[i] += sums[i + n];
    return sums[0];
}

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

#define EACH(i) for (idx i = 0, count = c; i < c; i += LANES, count -= LANES)

/* out = (x - mean) * scale, where scale = 1 / standard deviation, for n rows. */
INLINE void normalize(int half, idx n, idx c, float eps, const void *x, void *out, float *scale) {
    for (idx r = 0; r < n; r++) {
        vec sum = {0}, squares = {0};
        EACH(i) sum += get(x, half, r * c + i, count);
        float mean = total(sum) / c;
        EACH(i) {
            vec v = get(x, half, r * c + i, count) - mean;
            v = load(&v, 0, count); /* zeros again behind the last channel */
            squares += v * v;
        }
        scale[r] = 1.0f / __builtin_sqrtf(total(squares) / c + eps);
        EACH(i) put(out, half, r * c + i, count, (get(x, half, r * c + i, count) - mean) * scale[r]);
    }
}

/* From the gradient d of what `normalize` made that of its input. */
INLINE void normalize_gradient(int half, idx n, idx c, const float *d, const void *made, const float *scale, void *out) {
    for (idx r = 0; r < n; r++) {
        vec sum = {0}, products = {0};
        EACH(i) {
            vec v = get(d, 0, r * c + i, count);
            sum += v;
            products += v * get(made, half, r * c + i, count);
        }
        float mean = total(sum) / c, slope = total(products) / c;
        EACH(i) {
            vec v = get(d, 0, r * c + i, count) - mean - slope * get(made, half, r * c + i, count);
            put(out, half, r * c + i, count, v * scale[r]);
        }
    }
}

/* GELU(hidden + bias) in the same place, which may be narrower there; `saved` gets what was there. */
INLINE void gelu(int half, idx n, idx c, const float *bias, const float *hidden, void *out, void *saved) {
    for (idx r = 0; r < n; r++)
        EACH(i) {
            vec density, v = get(hidden, 0, r * c + i, count), x = v + get(bias, 0, i, count);
            if (saved) put(saved, half, r * c + i, count, v);
            put(out, half, r * c + i, count, x * normal(x, &density));
        }
}

/* out = GELU(hidden + bias), and in place of its gradient d that of hidden + bias, and the sum of that over the rows. */
INLINE void gelu_gradient(int half, int hidden_half, idx n, idx c, const float *bias, const void *hidden, void *out,
                          float *d, float *sums) {
    for (idx r = 0; r < n; r++)
        EACH(i) {
            vec density, x = get(hidden, hidden_half, r * c + i, count) + get(bias, 0, i, count);
            vec integral = normal(x, &density);
            vec dx = get(d, 0, r * c + i, count) * (integral + x * density * 0.39894228f);
            put(out, half, r * c + i, count, x * integral);
            put(d, half, r * c + i, count, dx);
            put(sums, 0, i, count, get(sums, 0, i, count) + dx);
        }
}

/* The factor of the image that a row belongs to. */
INLINE float factor_of(const job *j, idx row) { return j->factor ? j->factor[row / j->positions] : 1.0f; }

/* Rows `first` and following: out = residual + factor * (branch + bias). */
INLINE void add(const job *j, int residual_half, idx first, idx n, const float *branch) {
    idx c = j->dim;
    for (idx r = 0; r < n; r++) {
        float factor = factor_of(j, first + r);
        EACH(i) {
            vec v = get(branch, 0, r * c + i, count) + get(j->bias2, 0, i, count);
            idx index = (first + r) * c + i;
            put(j->out, residual_half, index, count, get(j->residual, residual_half, index, count) + v * factor);
        }
    }
}

/* Rows `first` and following: out = factor * residual, and its sum over the rows. */
INLINE void scale_residual(const job *j, int half, int residual_half, idx first, idx n, void *out, float *sums) {
    idx c = j->dim;
    for (idx r = 0; r < n; r++) {
        float factor = factor_of(j, first + r);
        EACH(i) {
            vec v = get(j->residual, residual_half, (first + r) * c + i, count) * factor;
            put(out, half, r * c + i, count, v);
            put(sums, 0, i, count, get(sums, 0, i, count) + v);
        }
    }
}

INLINE void forward(const job *j, int half, int residual_half, idx first, idx n, buffers b) {
    idx dim = j->dim, width = j->width;
    void *saved = j->saved ? at(j->saved, half, first * width) : 0;
    float *hidden = saved && !half ? saved : b.hidden;
    normalize(half, n, dim, j->eps, at(j->x, half, first * dim), b.normal, b.scale);
    product(j, "nt", n, width, dim, b.normal, j->weight1, 0.0f, hidden);
    gelu(half, n, width, j->bias1, hidden, b.hidden, half ? saved : 0);
    product(j, "nt", n, dim, width, b.hidden, j->weight2, 0.0f, b.branch);
    add(j, residual_half, first, n, b.branch);
}

INLINE void backward(const job *j, int half, int residual_half, idx section, idx first, idx n, buffers b) {
    idx dim = j->dim, width = j->width;
    const void *hidden = j->saved ? at(j->saved, half, first * width) : b.hidden;
    normalize(half, n, dim, j->eps, at(j->x, half, first * dim), b.normal, b.scale);
    if (!j->saved) product(j, "nt", n, width, dim, b.normal, j->weight1, 0.0f, b.hidden);
    scale_residual(j, half, residual_half, first, n, b.dbranch, j->dbias2 + section * dim);
    product(j, "nn", n, width, dim, b.dbranch, j->weight2, 0.0f, b.dhidden);
    float *sums = j->dbias1 + section * width;
    if (j->saved) gelu_gradient(half, half, n, width, j->bias1, hidden, b.hidden, b.dhidden, sums);
    else gelu_gradient(half, 0, n, width, j->bias1, hidden, b.hidden, b.dhidden, sums);
    product(j, "tn", dim, width, n, b.dbranch, b.hidden, 1.0f, j->dweight2 + section * dim * width);
    product(j, "tn", width, dim, n, b.dhidden, b.normal, 1.0f, j->dweight1 + section * dim * width);
    product(j, "nn", n, dim, width, b.dhidden, j->weight1, 0.0f, b.branch);
    normalize_gradient(half, n, dim, b.branch, b.normal, b.scale, at(j->out, half, first * dim));
}

/* Six buffers in one piece of memory, each of whole vectors; its start is to be freed.

   BLAS gives the same sums each time only to the same alignment, of 64 bytes. */
static void *allocate(job *j, int gradient, buffers *b) {
    idx narrow = (j->chunk * j->dim + LANES - 1) / LANES, wide = (j->chunk * j->width + LANES - 1) / LANES;
    idx scale = (j->chunk + LANES - 1) / LANES;
    void *start;
    if (posix_memalign(&start, 64, (3 * narrow + 2 * wide + scale) * sizeof(vec))) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    vec *next = start;
    b->hidden = (float *)next, next += wide;
    b->branch = (float *)next, next += narrow;
    b->normal = (char *)next, next += narrow;
    b->scale = (float *)next, next += scale;
    b->dbranch = (char *)next, next += gradient ? narrow : 0;
    b->dhidden = (float *)next;
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
        for (idx first = section * j->rows / j->sections; first < end; first += j->chunk) {
            FOR_TYPES(backward, section, first, least(j->chunk, end - first), b)
        }
    }
    free(start);
}

/* out = residual + factor * linear2(gelu(linear1(normalize(x)))). Returns nonzero where there was no memory. */
int mlp_forward(parallel *start, unsigned threads, gemm *multiply, idx half, idx residual_half, idx rows, idx dim,
                idx width, idx chunk, idx positions, float eps, const void *x, const void *shortcut,
                const void *weight1, const float *bias1, const void *weight2, const float *bias2, const float *factor,
                void *saved, void *out) {
    job j = {.multiply = multiply, .half = half, .residual_half = residual_half, .rows = rows, .dim = dim,
             .width = width, .chunk = chunk, .positions = positions, .eps = eps, .x = x, .residual = shortcut,
             .weight1 = weight1, .bias1 = bias1, .weight2 = weight2, .bias2 = bias2, .factor = factor, .saved = saved,
             .out = out};
    in_threads(start, threads, forward_work, &j);
    return j.failed;
}

/* From the gradient of `out` that of x, and those of the linear layers, added to what is there, by `sections`. */
int mlp_backward(parallel *start, unsigned threads, gemm *multiply, idx half, idx residual_half, idx rows, idx dim,
                 idx width, idx chunk, idx positions, float eps, const void *x, const void *dout, const void *weight1,
                 const float *bias1, const void *weight2, const float *factor, void *saved, void *dx, idx sections,
                 float *dweight1, float *dbias1, float *dweight2, float *dbias2) {
    job j = {.multiply = multiply, .half = half, .residual_half = residual_half, .rows = rows, .dim = dim,
             .width = width, .chunk = chunk, .positions = positions, .eps = eps, .x = x, .residual = dout,
             .weight1 = weight1, .bias1 = bias1, .weight2 = weight2, .factor = factor, .saved = saved, .out = dx,
             .sections = sections, .dweight1 = dweight1, .dbias1 = dbias1, .dweight2 = dweight2, .dbias2 = dbias2};
    in_threads(start, threads, backward_work, &j);
    return j.failed;
}
