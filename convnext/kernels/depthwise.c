/* Depthwise convolution of stride 1 with zeros around, and its gradients, for tensors stored channels last.

   A task is one image (or a few, one after the other) and some blocks of LANES neighbouring channels. They are copied,
   in the order of memory, to a buffer of the thread's own, in float, each block's rows between columns of zeros: it
   stays in the cache, and no sum needs a test for the border. Where the CPU multiplies pairs of bfloat16, and has to give
   no more, there are pairs of rows in place of floats. A task writes to a place of its own and adds in one order,
   so that results do not depend on the number of threads. */

#include "vectors.h"

#define TILE 8             /* sums of a row held in registers at a time */
#define BUFFER (1 << 20)   /* bytes at most, where there is more than one block in it */
#define TASKS_PER_THREAD 4 /* at least, where there are as many blocks */

#if defined(__AVX512BF16__)
#define DOTS 1
INLINE vec dot(vec sum, vec a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
}
#else
#define DOTS 0
INLINE vec dot(vec sum, vec a, vec b) { return sum + a * b; } /* not called */
#endif

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
            EACH(i, channels, to[i / LANES * next + w] = load_ahead(p + i * size, half, count);)
    }
}

static void fetch(const job *j, const void *from, idx half, idx image, idx block, idx count, vec *to, idx left,
                  idx width) {
    if (half) fetch_rows(j, from, 1, image, block, count, to, left, width);
    else fetch_rows(j, from, 0, image, block, count, to, left, width);
}

/* Of pairs of rows: the first row that there is of those `first` and following, which may be before the image by one;
   and how many pairs it takes. */
INLINE idx pairs(const job *j, idx first) { return (j->h - first + 1) / 2; }

/* The same in pairs of bfloat16, of row `first` with the one behind it, and so on; `rows` of pairs lie between blocks. */
INLINE void fetch_row_pairs(const job *j, const void *from, int half, idx image, idx block, idx count, vec *to, idx left,
                            idx width, idx first, idx rows) {
    idx size = half ? 2 : 4, next = rows * width, channels = least(count * LANES, j->c - block * LANES);
    const char *start = (const char *)from + (image * j->h * j->w * j->c + block * LANES) * size;
    for (idx h = first; h < j->h; h += 2, to += width) {
        for (idx b = 0; b < count; b++) {
            for (idx w = 0; w < left; w++) to[b * next + w] = (vec){0};
            for (idx w = left + j->w; w < width; w++) to[b * next + w] = (vec){0};
        }
        const char *p = start + h * j->w * j->c * size, *q = p + j->w * j->c * size;
        for (idx w = left; w < left + j->w; w++, p += j->c * size, q += j->c * size)
            EACH(i, channels, {
                vec one = h < 0 ? (vec){0} : load_ahead(p + i * size, half, count);
                vec two = h + 1 == j->h ? (vec){0} : load_ahead(q + i * size, half, count);
                uvec both = half ? (uvec)one >> 16 | (uvec)two : pairs_of(one, two);
                to[i / LANES * next + w] = (vec)both;
            })
    }
}

static void fetch_pairs(const job *j, const void *from, idx half, idx image, idx block, idx count, vec *to, idx left,
                        idx width, idx first, idx rows) {
    if (half) fetch_row_pairs(j, from, 1, image, block, count, to, left, width, first, rows);
    else fetch_row_pairs(j, from, 0, image, block, count, to, left, width, first, rows);
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

/* The same from pairs of rows, where h is even: the kernel's rows are in pairs, too, and once more for the next row of
   sums, which meets the same pairs of x one row later. A row that only one of the two meets is times zero for the other,
   which makes NaN of an infinity: the result is not finite in either case. */
INLINE void dots(const job *j, const vec *x, const vec *weight, vec bias, idx h, idx w, int tile, int count, vec *sum) {
    idx k = j->k, first = -(k / 2 % 2), width = j->w + k - 1, half = (k + 1) / 2;
    for (int t = 0; t < count * tile; t++) sum[t] = bias;
    for (idx i = 0; i < half; i++) {
        idx at = h - k / 2 + 2 * i; /* the first row of x of the pair */
        if (at < first || at >= j->h) continue;
        const vec *row = x + (at - first) / 2 * width + w, *factor = weight + i * k;
        for (idx l = 0; l < k; l++)
            for (int t = 0; t < tile; t++)
                for (int r = 0; r < count; r++)
                    sum[r * tile + t] = dot(sum[r * tile + t], factor[r * half * k + l], row[l + t]);
    }
}

/* The kernel's rows in pairs for `dots`: from the first on, then from before the first, where there are zeros. */
INLINE void pair_weights(const job *j, idx block, vec *to) {
    idx k = j->k, padded = blocks(j) * LANES;
    for (idx start = 0; start > -2; start--)
        for (idx i = start; i < k + start + 1; i += 2)
            for (idx l = 0; l < k; l++) {
                const float *p = j->weight + (i * k + l) * padded + block * LANES;
                vec one = i < 0 ? (vec){0} : load(p, 0, LANES);
                vec two = i + 1 == k ? (vec){0} : load(p + k * padded, 0, LANES);
                *to++ = (vec)pairs_of(one, two);
            }
}

/* Rows h to h + rows of one block of y, one or two, of which `start` is the first value; it has `channels` in all. */
INLINE void write_rows(const job *j, const vec *x, const vec *weight, vec bias, idx h, int rows, char *start,
                       idx channels, int half, int paired, idx count) {
    idx w = 0, next = channels * (half ? 2 : 4), left;
#define OUTPUTS(tile)                                                                                      \
    {                                                                                                      \
        vec sum[2 * (tile)];                                                                               \
        if (paired) dots(j, x, weight, bias, h, w, tile, rows, sum);                                       \
        else outputs(j, x, weight, bias, h, w, tile, rows, sum);                                           \
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

/* Some rows of the blocks, all at once, as what is added comes in the order of memory: y = sums + added. */
INLINE void add_rows(const job *j, idx rows, const vec *sums, idx count, const char *added, char *y, int half,
                     idx channels) {
    idx size = half ? 2 : 4;
    for (idx w = 0; w < rows * j->w; w++, sums += count, y += j->c * size, added += j->c * size)
        EACH(i, channels, stream(y + i * size, half, count, sums[i / LANES] + load_ahead(added + i * size, half, count));)
}

INLINE void forward_blocks(const job *j, int paired, idx task, vec *buffer) {
    idx image = task / groups(j), block = task % groups(j) * j->group, count = least(j->group, blocks(j) - block);
    idx padded = blocks(j) * LANES, k = j->k, width = j->w + k - 1, size = j->y_half ? 2 : 4, first = -(k / 2 % 2);
    idx rows_of_x = paired ? pairs(j, first) : j->h, taps = paired ? k * (k + 1) : k * k;
    vec *weight = buffer, *x = weight + count * taps, *sums = x + count * rows_of_x * width;
    for (idx b = 0; b < count; b++) {
        if (paired) pair_weights(j, block + b, weight + b * taps);
        else
            for (idx i = 0; i < k * k; i++)
                memcpy(weight + b * taps + i, j->weight + i * padded + (block + b) * LANES, sizeof(vec));
    }
    if (paired) fetch_pairs(j, j->x, j->x_half, image, block, count, x, k / 2, width, first, rows_of_x);
    else fetch(j, j->x, j->x_half, image, block, count, x, k / 2, width);
    for (idx h = 0; h < j->h; h += 2) {
        idx start = ((image * j->h + h) * j->w * j->c + block * LANES) * size, channels = j->c - block * LANES;
        int together = h + 1 < j->h ? 2 : 1;
        char *y = (char *)j->y + start;
        for (idx b = 0; b < count; b++) {
            vec bias;
            memcpy(&bias, j->bias + (block + b) * LANES, sizeof bias);
            const vec *rows = x + b * rows_of_x * width, *factors = weight + b * taps;
#define WRITE(to, channels, half, left)                                                                        \
    if (together == 2) write_rows(j, rows, factors, bias, h, 2, (char *)(to), channels, half, paired, left);   \
    else write_rows(j, rows, factors, bias, h, 1, (char *)(to), channels, half, paired, left);
            if (j->added) {
                WRITE(sums + b, count * LANES, 0, LANES)
            } else if (j->y_half) {
                WRITE(y + b * LANES * 2, j->c, 1, channels - b * LANES)
            } else {
                WRITE(y + b * LANES * 4, j->c, 0, channels - b * LANES)
            }
#undef WRITE
        }
        channels = least(channels, count * LANES);
        const char *added = (const char *)j->added + start;
        if (j->added && j->y_half) add_rows(j, together, sums, count, added, y, 1, channels);
        else if (j->added) add_rows(j, together, sums, count, added, y, 0, channels);
    }
    streamed();
}

static void forward_task(const job *j, idx task, vec *buffer) {
    if (DOTS && (j->x_half || j->y_half)) forward_blocks(j, 1, task, buffer);
    else forward_blocks(j, 0, task, buffer);
}

/* Add to the sums of `count` neighbouring weights, in one of the kernel's rows or in two, what comes of a row of dy: the
   first meets x from `row` on, the second the row behind it, which is `next` away. */
INLINE void add_row(idx width, const vec *row, idx next, const vec *d, int count, int rows, int paired, vec *sum) {
    idx w = 0;
#define COLUMNS(wide)                                                                                         \
    for (; w + wide <= width; w += wide)                                                                      \
        UNROLLED for (int at = 0; at < wide; at++)                                                            \
            UNROLLED for (int r = 0; r < rows; r++)                                                           \
                UNROLLED for (int t = 0; t < count; t++) {                                                    \
                    vec v = row[r * next + w + at + t], *to = sum + r * count + t;                            \
                    *to = paired ? dot(*to, d[w + at], v) : *to + d[w + at] * v;                              \
                }
    if (rows == 2) COLUMNS(4) /* a vector of x that is loaded once serves several columns */
    COLUMNS(1)
#undef COLUMNS
}

/* Where row h of x begins; in pairs of rows, that which h is the first of, where those of odd h stand behind the others. */
INLINE const vec *row_of(const job *j, const vec *x, idx h, int paired) {
    idx width = j->w + j->k - 1;
    if (!paired) return x + h * width;
    return h % 2 ? x + (pairs(j, 0) + (h + 1) / 2) * width : x + h / 2 * width;
}

/* Add one image's part of the gradient of `count` neighbouring weights in row i of the kernel and, of `rows` two, in
   the next. */
INLINE void weight_sums(const job *j, const vec *x, const vec *dy, idx i, int count, int rows, int paired, float *to) {
    idx k = j->k, pad = k / 2, padded = blocks(j) * LANES, first = paired ? -1 : 0;
    vec sum[2 * 7];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++) memcpy(sum + r * count + t, to + (r * k + t) * padded, sizeof(vec));
    for (idx h = 0; h < j->h; h += paired ? 2 : 1, dy += j->w) {
        idx at = h + i - pad; /* the row of x that the first meets */
        int one = at >= first && at < j->h, two = rows == 2 && at + 1 >= first && at + 1 < j->h;
        const vec *row = row_of(j, x, at, paired), *next = row_of(j, x, at + 1, paired);
        if (one && two) add_row(j->w, row, next - row, dy, count, 2, paired, sum);
        else if (one) add_row(j->w, row, 0, dy, count, 1, paired, sum);
        else if (two) add_row(j->w, next, 0, dy, count, 1, paired, sum + count);
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++) memcpy(to + (r * k + t) * padded, sum + r * count + t, sizeof(vec));
}

/* Add one image's part of the gradient of all weights and the bias. */
INLINE void image_sums(const job *j, const vec *x, const vec *dy, int paired, float *to) {
    idx k = j->k, padded = blocks(j) * LANES, rows = j->h < PAIRED ? 1 : 2;
    for (idx i = 0; i < k; i += rows)
        for (idx l = 0; l < k; l += 7) {
            float *at = to + (i * k + l) * padded;
            switch (k - l) {
#define COUNT(count, label)                                          \
    label:                                                           \
        if (i + rows <= k && rows == 2) weight_sums(j, x + l, dy, i, count, 2, paired, at);   \
        else weight_sums(j, x + l, dy, i, count, 1, paired, at);             \
        break;
                COUNT(1, case 1) COUNT(2, case 2) COUNT(3, case 3) COUNT(4, case 4) COUNT(5, case 5) COUNT(6, case 6)
                COUNT(7, default)
#undef COUNT
            }
        }
    vec sum = load(to + k * k * padded, 0, LANES);
    const vec one = (vec)pairs_of((vec){0} + 1.0f, (vec){0} + 1.0f);
    idx rows_of_dy = paired ? pairs(j, 0) : j->h;
    for (idx p = 0; p < rows_of_dy * j->w; p++) sum = paired ? dot(sum, dy[p], one) : sum + dy[p];
    store(to + k * k * padded, 0, LANES, sum);
}

INLINE void gradient_blocks(const job *j, int paired, idx task, vec *buffer) {
    idx section = task / groups(j), block = task % groups(j) * j->group, count = least(j->group, blocks(j) - block);
    idx padded = blocks(j) * LANES, rows = j->k * j->k + 1, width = j->w + j->k - 1;
    idx rows_of_x = paired ? pairs(j, 0) + pairs(j, -1) : j->h, rows_of_dy = paired ? pairs(j, 0) : j->h;
    vec *x = buffer, *dy = x + count * rows_of_x * width;
    float *to = j->sums + section * rows * padded + block * LANES;
    for (idx i = 0; i < rows; i++) memset(to + i * padded, 0, count * sizeof(vec));
    for (idx image = section * j->n / j->sections; image < (section + 1) * j->n / j->sections; image++) {
        if (paired) {
            fetch_pairs(j, j->x, j->x_half, image, block, count, x, j->k / 2, width, 0, rows_of_x);
            fetch_pairs(j, j->x, j->x_half, image, block, count, x + pairs(j, 0) * width, j->k / 2, width, -1, rows_of_x);
            fetch_pairs(j, j->dy, j->dy_half, image, block, count, dy, 0, j->w, 0, rows_of_dy);
        } else {
            fetch(j, j->x, j->x_half, image, block, count, x, j->k / 2, width);
            fetch(j, j->dy, j->dy_half, image, block, count, dy, 0, j->w);
        }
        for (idx b = 0; b < count; b++)
            image_sums(j, x + b * rows_of_x * width, dy + b * rows_of_dy * j->w, paired, to + b * LANES);
    }
}

static void gradient_task(const job *j, idx task, vec *buffer) {
    if (DOTS && (j->x_half || j->dy_half)) gradient_blocks(j, 1, task, buffer);
    else gradient_blocks(j, 0, task, buffer);
}

static idx block_vectors(const job *j) { return 2 * (j->h + 1) * (j->w + j->k) + j->k * (j->k + 1); }

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
