/* Layer normalization of feature maps, to memory in the order that the next operation takes. */

#include "layer_norm.h"

#define LINES 8 /* that a thread takes at a time */

typedef struct {
    idx half, out_half;           /* of x and its gradient; of the result and its gradient */
    idx lines, width, dim, patch; /* of all images: lines of `width` pixels of `dim` channels */
    float eps;
    const void *x, *dout;
    const float *weight, *bias;
    void *out;   /* or the gradient of x */
    float *sums; /* of each section: the weight's gradient, and the bias's */
    idx sections, next;
    int failed;
} job;

/* Of the result the pixels of a square of `patch` by `patch` stand one behind the other, then those of the square beside
   it. A line of x is in runs there: how many pixels long they are, where the first begins, and from one to the next. */
INLINE idx run_of(const job *j) { return j->patch > 1 ? j->patch : j->width; }
INLINE idx start_of(const job *j, idx line) {
    return (line / j->patch * j->patch * j->width + line % j->patch * j->patch) * j->dim;
}
INLINE idx step_of(const job *j) { return run_of(j) * j->patch * j->dim; }

INLINE void forward(const job *j, int half, int out_half, idx line, float *scale) {
    idx dim = j->dim, run = run_of(j), to = start_of(j, line);
    for (idx w = 0; w < j->width; w += run, to += step_of(j))
        normalize(half, out_half, run, dim, j->eps, at(j->x, half, (line * j->width + w) * dim), j->weight, j->bias,
                  at(j->out, out_half, to), scale);
}

/* Of n rows, at most TOGETHER; `made` and `dmade` are for them without weight and bias. */
INLINE void gradient(const job *j, int half, int out_half, idx n, const void *x, const void *dout, void *dx,
                     float *made, float *dmade, float *sums) {
    idx c = j->dim;
    float scale[TOGETHER];
    normalize_rows(half, 0, n, c, j->eps, x, 0, 0, made, scale);
    EACH(i, c, {
        vec dweight = get(sums, 0, i, count), dbias = get(sums, 0, c + i, count), weight = get(j->weight, 0, i, count);
        for (idx r = 0; r < n; r++) {
            vec v = get_ahead(dout, out_half, r * c + i, count);
            dweight += v * get(made, 0, r * c + i, count);
            dbias += v;
            put(dmade, 0, r * c + i, count, v * weight);
        }
        put(sums, 0, i, count, dweight);
        put(sums, 0, c + i, count, dbias);
    })
    normalize_gradient(0, half, n, c, dmade, made, scale, dx);
}

INLINE void backward(const job *j, int half, int out_half, idx line, float *made, float *sums) {
    idx dim = j->dim, run = run_of(j), to = start_of(j, line);
    for (idx w = 0; w < j->width; w += run, to += step_of(j))
        for (idx r = 0; r < run;) {
            idx n = run - r < TOGETHER ? run - r : TOGETHER, from = (line * j->width + w + r) * dim;
            const void *x = at(j->x, half, from), *dout = at(j->dout, out_half, to + r * dim);
            void *dx = at(j->out, half, from);
            float *dmade = made + TOGETHER * dim;
            if (n == TOGETHER) gradient(j, half, out_half, TOGETHER, x, dout, dx, made, dmade, sums);
            else if (n == 2) gradient(j, half, out_half, 2, x, dout, dx, made, dmade, sums);
            else n = 1, gradient(j, half, out_half, 1, x, dout, dx, made, dmade, sums);
            r += n;
        }
}

/* A loop for each combination of types, without tests for them inside. */
#define FOR_TYPES(call, ...)                                      \
    if (j->half && j->out_half) call(j, 1, 1, __VA_ARGS__);       \
    else if (j->half) call(j, 1, 0, __VA_ARGS__);                 \
    else if (j->out_half) call(j, 0, 1, __VA_ARGS__);             \
    else call(j, 0, 0, __VA_ARGS__);

static float *allocate(job *j, idx values) {
    void *start;
    if (!posix_memalign(&start, 64, values * sizeof(float))) return start;
    __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Take lines until there are none. */
static void forward_work(void *data) {
    job *j = data;
    float *scale = allocate(j, run_of(j));
    if (!scale) return;
    for (idx first; (first = __atomic_fetch_add(&j->next, LINES, __ATOMIC_RELAXED)) < j->lines;)
        for (idx line = first; line < least(first + LINES, j->lines); line++) {
            FOR_TYPES(forward, line, scale)
        }
    free(scale);
}

/* Take sections of the lines: the sums over a section are the same whichever thread takes it. */
static void backward_work(void *data) {
    job *j = data;
    float *made = allocate(j, 2 * TOGETHER * j->dim);
    if (!made) return;
    for (idx section; (section = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->sections;) {
        float *sums = j->sums + section * 2 * j->dim;
        memset(sums, 0, 2 * j->dim * sizeof(float));
        idx end = (section + 1) * j->lines / j->sections;
        for (idx line = section * j->lines / j->sections; line < end; line++) {
            FOR_TYPES(backward, line, made, sums)
        }
    }
    streamed();
    free(made);
}

/* The pixels of `lines` by `width`, normalized over their `dim` channels. Returns nonzero where there was no memory. */
int layer_norm_forward(parallel *start, unsigned threads, idx half, idx out_half, idx lines, idx width, idx dim,
                       idx patch, float eps, const void *x, const float *weight, const float *bias, void *out) {
    job j = {.half = half, .out_half = out_half, .lines = lines, .width = width, .dim = dim, .patch = patch, .eps = eps,
             .x = x, .weight = weight, .bias = bias, .out = out};
    in_threads(start, threads, forward_work, &j);
    return j.failed;
}

/* From the gradient of `out` that of x, and those of weight and bias by sections (sections, 2, dim). */
int layer_norm_backward(parallel *start, unsigned threads, idx half, idx out_half, idx lines, idx width, idx dim,
                        idx patch, float eps, const void *x, const float *weight, const void *dout, void *dx,
                        idx sections, float *sums) {
    job j = {.half = half, .out_half = out_half, .lines = lines, .width = width, .dim = dim, .patch = patch, .eps = eps,
             .x = x, .weight = weight, .dout = dout, .out = dx, .sections = sections, .sums = sums};
    in_threads(start, threads, backward_work, &j);
    return j.failed;
}
