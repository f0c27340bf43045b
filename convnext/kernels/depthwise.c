/* Depthwise convolution of stride 1 with zeros around, and its gradients, for tensors stored channels last.

   A task is one image (or a few, one after the other) and LANES neighbouring channels. Their rows are copied to a
   buffer of the thread's own, in float, between columns of zeros: it stays in the cache, and no sum needs a test for
   the border. A task writes to a place of its own and adds in one order, so that results do not depend on the number
   of threads. */

#include "vectors.h"

#define TILE 8 /* sums held in registers at a time */

typedef struct {
    const void *x, *dy;  /* (n, h, w, c) */
    const void *added;   /* (n, h, w, c), of y's type; or none */
    void *y;             /* (n, h, w, c) */
    const float *weight; /* (k, k, padded c) */
    const float *bias;   /* (padded c) */
    float *sums;         /* (parts, k * k + 1, padded c): of the weights' gradient, then the bias's */
    idx n, h, w, c, k, parts;
    idx x_half, y_half, dy_half;
    idx next;   /* task to be taken */
    int failed; /* no memory */
} job;

INLINE idx blocks(const job *j) { return (j->c + LANES - 1) / LANES; }

/* Rows of `width` vectors, j->w of them the block's channels of one image, `left` zeros before, the rest behind. */
INLINE void fetch(const job *j, const void *from, int half, idx image, idx block, vec *to, idx left, idx width) {
    idx size = half ? 2 : 4;
    const char *p = (const char *)from + (image * j->h * j->w * j->c + block * LANES) * size;
    for (idx h = 0; h < j->h; h++, to += width) {
        for (idx w = 0; w < left; w++) to[w] = (vec){0};
        for (idx w = 0; w < j->w; w++, p += j->c * size) to[left + w] = load(p, half, j->c - block * LANES);
        for (idx w = left + j->w; w < width; w++) to[w] = (vec){0};
    }
}

/* `tile` neighbouring sums of row h, from column w on. */
INLINE void outputs(const job *j, const vec *x, const vec *weight, vec bias, idx h, idx w, int tile, vec *sum) {
    idx k = j->k, pad = k / 2, width = j->w + k - 1;
    for (int t = 0; t < tile; t++) sum[t] = bias;
    for (idx i = h < pad ? pad - h : 0; i < least(k, j->h + pad - h); i++) {
        const vec *row = x + (h + i - pad) * width + w;
        for (idx l = 0; l < k; l++)
            for (int t = 0; t < tile; t++) sum[t] += weight[i * k + l] * row[l + t];
    }
}

static void forward_task(const job *j, idx task, vec *buffer) {
    idx image = task / blocks(j), block = task % blocks(j), padded = blocks(j) * LANES, k = j->k;
    idx size = j->y_half ? 2 : 4, step = j->c * size;
    vec bias, *weight = buffer, *x = weight + k * k;
    memcpy(&bias, j->bias + block * LANES, sizeof bias);
    for (idx i = 0; i < k * k; i++) memcpy(weight + i, j->weight + i * padded + block * LANES, sizeof(vec));
    fetch(j, j->x, j->x_half, image, block, x, k / 2, j->w + k - 1);
    idx place = (image * j->h * j->w * j->c + block * LANES) * size, count = j->c - block * LANES;
    for (idx h = 0; h < j->h; h++) {
        idx w = 0;
#define OUTPUTS(tile)                                                                                   \
    for (; w + tile <= j->w; w += tile) {                                                               \
        vec sum[tile];                                                                                  \
        outputs(j, x, weight, bias, h, w, tile, sum);                                                   \
        for (int t = 0; t < tile; t++, place += step) {                                                 \
            if (j->added) sum[t] += load((const char *)j->added + place, j->y_half, count);             \
            store((char *)j->y + place, j->y_half, count, sum[t]);                                      \
        }                                                                                               \
    }
        OUTPUTS(TILE)
        OUTPUTS(4)
        OUTPUTS(1)
#undef OUTPUTS
    }
}

/* Add one image's part of the gradient of `count` neighbouring weights in the kernel's row i. */
INLINE void weight_sums(const job *j, const vec *x, const vec *dy, idx i, int count, float *to) {
    idx pad = j->k / 2, width = j->w + j->k - 1, padded = blocks(j) * LANES;
    vec sum[TILE];
    for (int t = 0; t < count; t++) memcpy(sum + t, to + t * padded, sizeof(vec));
    for (idx h = i < pad ? pad - i : 0; h < least(j->h, j->h + pad - i); h++) {
        const vec *row = x + (h + i - pad) * width, *d = dy + h * j->w;
        for (idx w = 0; w < j->w; w++)
            for (int t = 0; t < count; t++) sum[t] += d[w] * row[w + t];
    }
    for (int t = 0; t < count; t++) memcpy(to + t * padded, sum + t, sizeof(vec));
}

/* Add one image's part of the gradient of all weights and the bias. */
static void image_sums(const job *j, const vec *x, const vec *dy, float *to) {
    idx k = j->k, padded = blocks(j) * LANES;
    for (idx i = 0; i < k; i++)
        for (idx l = 0; l < k; l += 7) {
            float *at = to + (i * k + l) * padded;
            switch (k - l) {
#define COUNT(count, label) label: weight_sums(j, x + l, dy, i, count, at); break;
                COUNT(1, case 1) COUNT(2, case 2) COUNT(3, case 3) COUNT(4, case 4) COUNT(5, case 5) COUNT(6, case 6)
                COUNT(7, default)
#undef COUNT
            }
        }
    vec sum = load(to + k * k * padded, 0, LANES);
    for (idx p = 0; p < j->h * j->w; p++) sum += dy[p];
    store(to + k * k * padded, 0, LANES, sum);
}

static void gradient_task(const job *j, idx task, vec *buffer) {
    idx part = task / blocks(j), block = task % blocks(j), padded = blocks(j) * LANES, rows = j->k * j->k + 1;
    vec *x = buffer, *dy = x + j->h * (j->w + j->k - 1);
    float *to = j->sums + part * rows * padded + block * LANES;
    for (idx i = 0; i < rows; i++) memset(to + i * padded, 0, sizeof(vec));
    for (idx image = part * j->n / j->parts; image < (part + 1) * j->n / j->parts; image++) {
        fetch(j, j->x, j->x_half, image, block, x, j->k / 2, j->w + j->k - 1);
        fetch(j, j->dy, j->dy_half, image, block, dy, 0, j->w);
        image_sums(j, x, dy, to);
    }
}

/* Take tasks until there are none. */
static void work(job *j, void (*task)(const job *, idx, vec *), idx tasks) {
    void *buffer;
    if (posix_memalign(&buffer, sizeof(vec), (2 * j->h * (j->w + j->k) + j->k * j->k) * sizeof(vec))) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (idx number; (number = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < tasks;) task(j, number, buffer);
    free(buffer);
}

static void forward_work(void *data) {
    job *j = data;
    work(j, forward_task, j->n * blocks(j));
}

static void gradient_work(void *data) {
    job *j = data;
    work(j, gradient_task, j->parts * blocks(j));
}

/* y = x * weight + bias + added. Returns nonzero where there was no memory. */
int depthwise_forward(parallel *start, unsigned threads, const void *x, idx x_half, const float *weight,
                      const float *bias, const void *added, void *y, idx y_half, idx n, idx h, idx w, idx c, idx k) {
    job j = {.x = x, .x_half = x_half, .weight = weight, .bias = bias, .added = added, .y = y, .y_half = y_half,
             .n = n, .h = h, .w = w, .c = c, .k = k};
    in_threads(start, threads, forward_work, &j);
    return j.failed;
}

/* The gradients of weight and bias, summed over each of `parts` groups of images. */
int depthwise_gradient(parallel *start, unsigned threads, const void *x, idx x_half, const void *dy, idx dy_half,
                       float *sums, idx parts, idx n, idx h, idx w, idx c, idx k) {
    job j = {.x = x, .x_half = x_half, .dy = dy, .dy_half = dy_half, .sums = sums, .parts = parts,
             .n = n, .h = h, .w = w, .c = c, .k = k};
    in_threads(start, threads, gradient_work, &j);
    return j.failed;
}

int lanes(void) { return LANES; }
