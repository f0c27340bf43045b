/* Depthwise convolution of stride 1 with zeros around, and its gradients, for tensors stored channels last.

   A task is one image (or a few, one after the other) and some blocks of LANES neighbouring channels. They are copied,
   in the order of memory, to a buffer of the thread's own, in float, each block's rows between columns of zeros: it
   stays in the cache, and no sum needs a test for the border. A task writes to a place of its own and adds in one order,
   so that results do not depend on the number of threads. */

#include "vectors.h"

#define TILE 8             /* sums held in registers at a time */
#define BUFFER (1 << 20)   /* bytes at most, where there is more than one block in it */
#define TASKS_PER_THREAD 4 /* at least, where there are as many blocks */

typedef struct {
    const void *x, *dy;  /* (n, h, w, c) */
    const void *added;   /* (n, h, w, c), of y's type; or none */
    void *y;             /* (n, h, w, c) */
    const float *weight; /* (k, k, padded c) */
    const float *bias;   /* (padded c) */
    float *sums;         /* (sections, k * k + 1, padded c): of the weights' gradient, then the bias's */
    idx n, h, w, c, k, sections;
    idx group; /* blocks of a task */
    idx x_half, y_half, dy_half;
    idx next;   /* task to be taken */
    int failed; /* no memory */
} job;

INLINE idx blocks(const job *j) { return (j->c + LANES - 1) / LANES; }

INLINE idx groups(const job *j) { return (blocks(j) + j->group - 1) / j->group; }

/* For each of `count` blocks of one image, rows of `width` vectors, of which j->w are its own: `left` zeros are before
   them, the other zeros behind. */
INLINE void fetch_rows(const job *j, const void *from, int half, idx image, idx block, idx count, vec *to, idx left,
                       idx width) {
    idx size = half ? 2 : 4, next = j->h * width;
    const char *p = (const char *)from + (image * j->h * j->w * j->c + block * LANES) * size;
    for (idx h = 0; h < j->h; h++, to += width) {
        for (idx b = 0; b < count; b++) {
            for (idx w = 0; w < left; w++) to[b * next + w] = (vec){0};
            for (idx w = left + j->w; w < width; w++) to[b * next + w] = (vec){0};
        }
        for (idx w = 0; w < j->w; w++, p += j->c * size)
            for (idx b = 0; b < count; b++)
                to[b * next + left + w] = load(p + b * LANES * size, half, j->c - (block + b) * LANES);
    }
}

static void fetch(const job *j, const void *from, idx half, idx image, idx block, idx count, vec *to, idx left,
                  idx width) {
    if (half) fetch_rows(j, from, 1, image, block, count, to, left, width);
    else fetch_rows(j, from, 0, image, block, count, to, left, width);
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

/* Row h of one block of y, of which `start` is the first value. */
INLINE void write_row(const job *j, const vec *x, const vec *weight, vec bias, idx h, char *start, int half, idx count) {
    idx w = 0, size = half ? 2 : 4;
#define OUTPUTS(tile)                                                                        \
    for (; w + tile <= j->w; w += tile) {                                                    \
        vec sum[tile];                                                                       \
        outputs(j, x, weight, bias, h, w, tile, sum);                                        \
        for (int t = 0; t < tile; t++, start += j->c * size) store(start, half, count, sum[t]); \
    }
    OUTPUTS(TILE)
    OUTPUTS(4)
    OUTPUTS(1)
#undef OUTPUTS
}

/* Add row h of the blocks, all at once: what is added comes in the order of memory. */
INLINE void add_row(const job *j, char *y, const char *added, int half, idx count) {
    idx size = half ? 2 : 4;
    for (idx w = 0; w < j->w; w++, y += j->c * size, added += j->c * size)
        for (idx i = 0; i < count; i += LANES) {
            vec sum = load(y + i * size, half, count - i) + load(added + i * size, half, count - i);
            store(y + i * size, half, count - i, sum);
        }
}

static void forward_task(const job *j, idx task, vec *buffer) {
    idx image = task / groups(j), block = task % groups(j) * j->group, count = least(j->group, blocks(j) - block);
    idx padded = blocks(j) * LANES, k = j->k, width = j->w + k - 1, size = j->y_half ? 2 : 4;
    vec *weight = buffer, *x = weight + count * k * k;
    for (idx b = 0; b < count; b++)
        for (idx i = 0; i < k * k; i++)
            memcpy(weight + b * k * k + i, j->weight + i * padded + (block + b) * LANES, sizeof(vec));
    fetch(j, j->x, j->x_half, image, block, count, x, k / 2, width);
    for (idx h = 0; h < j->h; h++) {
        idx start = ((image * j->h + h) * j->w * j->c + block * LANES) * size, channels = j->c - block * LANES;
        char *y = (char *)j->y + start;
        for (idx b = 0; b < count; b++) {
            vec bias;
            memcpy(&bias, j->bias + (block + b) * LANES, sizeof bias);
            const vec *rows = x + b * j->h * width, *factors = weight + b * k * k;
            idx left = channels - b * LANES;
            if (j->y_half) write_row(j, rows, factors, bias, h, y + b * LANES * size, 1, left);
            else write_row(j, rows, factors, bias, h, y + b * LANES * size, 0, left);
        }
        channels = least(channels, count * LANES);
        if (j->added && j->y_half) add_row(j, y, (const char *)j->added + start, 1, channels);
        else if (j->added) add_row(j, y, (const char *)j->added + start, 0, channels);
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
    idx section = task / groups(j), block = task % groups(j) * j->group, count = least(j->group, blocks(j) - block);
    idx padded = blocks(j) * LANES, rows = j->k * j->k + 1, width = j->w + j->k - 1;
    vec *x = buffer, *dy = x + count * j->h * width;
    float *to = j->sums + section * rows * padded + block * LANES;
    for (idx i = 0; i < rows; i++) memset(to + i * padded, 0, count * sizeof(vec));
    for (idx image = section * j->n / j->sections; image < (section + 1) * j->n / j->sections; image++) {
        fetch(j, j->x, j->x_half, image, block, count, x, j->k / 2, width);
        fetch(j, j->dy, j->dy_half, image, block, count, dy, 0, j->w);
        for (idx b = 0; b < count; b++)
            image_sums(j, x + b * j->h * width, dy + b * j->h * j->w, to + b * LANES);
    }
}

static idx block_vectors(const job *j) { return 2 * j->h * (j->w + j->k) + j->k * j->k; }

/* Take tasks until there are none. */
static void work(job *j, void (*task)(const job *, idx, vec *), idx tasks) {
    void *buffer;
    if (posix_memalign(&buffer, sizeof(vec), j->group * block_vectors(j) * sizeof(vec))) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (idx number; (number = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < tasks;) task(j, number, buffer);
    free(buffer);
}

/* As many blocks to a task as the buffer holds, and as leave enough tasks, of `sections` each. */
static idx group_of(const job *j, idx sections, idx threads) {
    idx most = BUFFER / (block_vectors(j) * (idx)sizeof(vec));
    most = least(most, blocks(j) * sections / (threads * TASKS_PER_THREAD));
    return most < 1 ? 1 : least(most, blocks(j));
}

static void forward_work(void *data) {
    job *j = data;
    work(j, forward_task, j->n * groups(j));
}

static void gradient_work(void *data) {
    job *j = data;
    work(j, gradient_task, j->sections * groups(j));
}

/* y = x * weight + bias + added. Returns nonzero where there was no memory. */
int depthwise_forward(parallel *start, unsigned threads, const void *x, idx x_half, const float *weight,
                      const float *bias, const void *added, void *y, idx y_half, idx n, idx h, idx w, idx c, idx k) {
    job j = {.x = x, .x_half = x_half, .weight = weight, .bias = bias, .added = added, .y = y, .y_half = y_half,
             .n = n, .h = h, .w = w, .c = c, .k = k};
    j.group = group_of(&j, n, threads);
    in_threads(start, threads, forward_work, &j);
    return j.failed;
}

/* The gradients of weight and bias, summed over each of `sections` groups of images. */
int depthwise_gradient(parallel *start, unsigned threads, const void *x, idx x_half, const void *dy, idx dy_half,
                       float *sums, idx sections, idx n, idx h, idx w, idx c, idx k) {
    job j = {.x = x, .x_half = x_half, .dy = dy, .dy_half = dy_half, .sums = sums, .sections = sections,
             .n = n, .h = h, .w = w, .c = c, .k = k};
    j.group = group_of(&j, sections, threads);
    in_threads(start, threads, gradient_work, &j);
    return j.failed;
}

int lanes(void) { return LANES; }
