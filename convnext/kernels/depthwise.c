/* Depthwise convolution of stride 1 with zeros around, and its gradients, for tensors stored channels last.

   A task is one image (or a few, one after the other) and some blocks of LANES neighbouring channels. They are copied,
   in the order of memory, to a buffer of the thread's own, in float, each block's rows between columns of zeros: it
   stays in the cache, and no sum needs a test for the border. A task writes to a place of its own and adds in one order,
   so that results do not depend on the number of threads. */

#include "vectors.h"

#define TILE 8             /* sums of a row held in registers at a time */
#define BUFFER (1 << 20)   /* bytes at most, where there is more than one block in it */
#define TASKS_PER_THREAD 4 /* at least, where there are as many blocks */

#define PAIRED 10          /* rows of an image from which two of the kernel's rows are summed up at a time */
#define UNROLLED _Pragma("GCC unroll 8") /* sums are in registers where no loop around them is left */

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
    idx size = half ? 2 : 4, next = j->h * width, channels = least(count * LANES, j->c - block * LANES);
    const char *p = (const char *)from + (image * j->h * j->w * j->c + block * LANES) * size;
    for (idx h = 0; h < j->h; h++, to += width) {
        for (idx b = 0; b < count; b++) {
            for (idx w = 0; w < left; w++) to[b * next + w] = (vec){0};
            for (idx w = left + j->w; w < width; w++) to[b * next + w] = (vec){0};
        }
        for (idx w = left; w < left + j->w; w++, p += j->c * size)
            EACH(i, channels, to[i / LANES * next + w] = load(p + i * size, half, count);)
    }
}

static void fetch(const job *j, const void *from, idx half, idx image, idx block, idx count, vec *to, idx left,
                  idx width) {
    if (half) fetch_rows(j, from, 1, image, block, count, to, left, width);
    else fetch_rows(j, from, 0, image, block, count, to, left, width);
}

/* Add to `tile` neighbouring sums of each of `count` rows what comes of one row of x: the first has the kernel's row
   `weight`, the second the row before that. What is loaded of x serves both. */
INLINE void add_taps(idx k, const vec *row, const vec *weight, int tile, int count, vec *sum) {
    for (idx l = 0; l < k; l++)
        for (int t = 0; t < tile; t++)
            for (int r = 0; r < count; r++) sum[r * tile + t] += weight[l - r * k] * row[l + t];
}

/* `tile` neighbouring sums of row h and, with a `count` of 2, of the next, from column w on. */
INLINE void outputs(const job *j, const vec *x, const vec *weight, vec bias, idx h, idx w, int tile, int count,
                    vec *sum) {
    idx k = j->k, pad = k / 2, width = j->w + k - 1, end = least(k, j->h + pad - h);
    for (int t = 0; t < count * tile; t++) sum[t] = bias;
    idx i = h < pad ? pad - h : 0;
    const vec *row = x + (h + i - pad) * width + w;
    if (count == 2 && i == 0) {
        add_taps(k, row, weight, tile, 1, sum);
        i++, row += width;
    }
    for (; i < end; i++, row += width) add_taps(k, row, weight + i * k, tile, count, sum);
    if (count == 2 && i == k && h + i - pad < j->h)
        add_taps(k, row, weight + (k - 1) * k, tile, 1, sum + tile);
}

/* Rows h to h + rows of one block of y, one or two, of which `start` is the first value. */
INLINE void write_rows(const job *j, const vec *x, const vec *weight, vec bias, idx h, int rows, char *start, int half,
                       idx count) {
    idx w = 0, size = half ? 2 : 4, next = j->c * size, left;
#define OUTPUTS(tile)                                                                                      \
    {                                                                                                      \
        vec sum[2 * (tile)];                                                                               \
        outputs(j, x, weight, bias, h, w, tile, rows, sum);                                                \
        for (int t = 0; t < rows * (tile); t++)                                                            \
            store(start + (w + t % (tile) + t / (tile) * j->w) * next, half, count, sum[t]);               \
        w += tile;                                                                                         \
    }
    while ((left = j->w - w) >= TILE) OUTPUTS(TILE)
    switch (left) {
#define REST(tile) case tile: OUTPUTS(tile) break;
        REST(1) REST(2) REST(3) REST(4) REST(5) REST(6) REST(7)
#undef REST
    }
#undef OUTPUTS
}

/* Add some rows of the blocks, all at once: what is added comes in the order of memory. */
INLINE void add_rows(const job *j, idx rows, char *y, const char *added, int half, idx channels) {
    idx size = half ? 2 : 4;
    for (idx w = 0; w < rows * j->w; w++, y += j->c * size, added += j->c * size)
        EACH(i, channels, {
            vec sum = load(y + i * size, half, count) + load(added + i * size, half, count);
            store(y + i * size, half, count, sum);
        })
}

static void forward_task(const job *j, idx task, vec *buffer) {
    idx image = task / groups(j), block = task % groups(j) * j->group, count = least(j->group, blocks(j) - block);
    idx padded = blocks(j) * LANES, k = j->k, width = j->w + k - 1, size = j->y_half ? 2 : 4;
    vec *weight = buffer, *x = weight + count * k * k;
    for (idx b = 0; b < count; b++)
        for (idx i = 0; i < k * k; i++)
            memcpy(weight + b * k * k + i, j->weight + i * padded + (block + b) * LANES, sizeof(vec));
    fetch(j, j->x, j->x_half, image, block, count, x, k / 2, width);
    for (idx h = 0; h < j->h; h += 2) {
        idx start = ((image * j->h + h) * j->w * j->c + block * LANES) * size, channels = j->c - block * LANES;
        int together = h + 1 < j->h ? 2 : 1;
        char *y = (char *)j->y + start;
        for (idx b = 0; b < count; b++) {
            vec bias;
            memcpy(&bias, j->bias + (block + b) * LANES, sizeof bias);
            const vec *rows = x + b * j->h * width, *factors = weight + b * k * k;
            idx left = channels - b * LANES;
            char *to = y + b * LANES * size;
#define WRITE(together, half) write_rows(j, rows, factors, bias, h, together, to, half, left)
            if (together == 2) {
                if (j->y_half) WRITE(2, 1);
                else WRITE(2, 0);
            } else {
                if (j->y_half) WRITE(1, 1);
                else WRITE(1, 0);
            }
#undef WRITE
        }
        channels = least(channels, count * LANES);
        if (j->added && j->y_half) add_rows(j, together, y, (const char *)j->added + start, 1, channels);
        else if (j->added) add_rows(j, together, y, (const char *)j->added + start, 0, channels);
    }
}

/* Add to the sums of `count` neighbouring weights, in one of the kernel's rows or in two, what comes of a row of dy: the
   first meets x from `row` on, the second the row behind it, which is `next` away. */
INLINE void add_row(idx width, const vec *row, idx next, const vec *d, int count, int rows, vec *sum) {
    idx w = 0;
#define COLUMNS(wide)                                                                                         \
    for (; w + wide <= width; w += wide)                                                                      \
        UNROLLED for (int at = 0; at < wide; at++)                                                            \
            UNROLLED for (int r = 0; r < rows; r++)                                                           \
                UNROLLED for (int t = 0; t < count; t++) sum[r * count + t] += d[w + at] * row[r * next + w + at + t];
    if (rows == 2) COLUMNS(4) /* a vector of x that is loaded once serves several columns */
    COLUMNS(1)
#undef COLUMNS
}

/* Add one image's part of the gradient of `count` neighbouring weights in row i of the kernel and, of `rows` two, in
   the next. */
INLINE void weight_sums(const job *j, const vec *x, const vec *dy, idx i, int count, int rows, float *to) {
    idx k = j->k, pad = k / 2, width = j->w + k - 1, last = j->h - 1, padded = blocks(j) * LANES;
    vec sum[2 * 7];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++) memcpy(sum + r * count + t, to + (r * k + t) * padded, sizeof(vec));
    idx h = i + rows - 1 < pad ? pad - i - rows + 1 : 0;
    for (; h < least(j->h, j->h + pad - i); h++) {
        idx at = h + i - pad; /* the row of x that the first meets */
        const vec *row = x + at * width, *d = dy + h * j->w;
        if (rows == 1) add_row(j->w, row, 0, d, count, 1, sum);
        else if (at < 0) add_row(j->w, row + width, 0, d, count, 1, sum + count);
        else if (at < last) add_row(j->w, row, width, d, count, 2, sum);
        else add_row(j->w, row, 0, d, count, 1, sum);
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++) memcpy(to + (r * k + t) * padded, sum + r * count + t, sizeof(vec));
}

/* Add one image's part of the gradient of all weights and the bias. */
static void image_sums(const job *j, const vec *x, const vec *dy, float *to) {
    idx k = j->k, padded = blocks(j) * LANES, rows = j->h < PAIRED ? 1 : 2;
    for (idx i = 0; i < k; i += rows)
        for (idx l = 0; l < k; l += 7) {
            float *at = to + (i * k + l) * padded;
            switch (k - l) {
#define COUNT(count, label)                                          \
    label:                                                           \
        if (i + rows <= k && rows == 2) weight_sums(j, x + l, dy, i, count, 2, at);   \
        else weight_sums(j, x + l, dy, i, count, 1, at);             \
        break;
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
