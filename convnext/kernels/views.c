/* Random views of 8-bit images (n, h, w, c): resized crops and affine transforms, in whole numbers, as PyTorch's. */

#include "vectors.h"

/* For each length of an area, less 1, and each pixel of a result's row or column: the first pixel that it sees of the
   area, and `taps` weights from there on, that are too large by so many binary digits. */
typedef struct {
    const idx *first;
    const int32_t *weights, *digits;
    idx taps;
} windows;

typedef struct {
    const uint8_t *pixels; /* (any number, h, w, c) */
    const idx *images, *areas; /* (n), and (n, 4): top, left, height, width */
    const uint8_t *flipped;     /* (n) */
    uint8_t *made;             /* (n, size, size, c) */
    windows by;
    idx n, h, w, c, size;
    idx next; /* image to be taken */
    int failed;
} cropping;

/* The sum of `taps` vectors of bytes that lie `step` apart by their weights, as bytes. */
INLINE bvec weighed(const uint8_t *p, idx step, idx count, const int32_t *weights, idx taps, int digits) {
    ivec sum = (ivec){0} + (1 << (digits - 1));
    for (idx k = 0; k < taps; k++) sum += numbers_of(load_bytes(p + k * step, count)) * weights[k];
    sum >>= digits;
    sum &= sum >= 0;
    ivec over = sum > 255;
    return bytes_of((sum & ~over) | (over & 255));
}

/* A pixel's bytes; of one with three, four, where there is another one behind it that comes later. */
INLINE void copy_pixel(uint8_t *to, const uint8_t *from, idx c, int last) {
    if (c == 3 && !last) memcpy(to, from, 4);
    else
        for (idx i = 0; i < c; i++) to[i] = from[i];
}

/* Rows of the area from `from` on, as many as a vector holds, along their length into `to`, of rows (size, c). Pixels of
   one column are neighbours when they are `interleaved`. */
INLINE void along_rows(const cropping *j, idx c, const uint8_t *from, idx rows, idx width, int flipped,
                       uint8_t *interleaved, uint8_t *to) {
    for (idx r = 0; r < rows; r++)
        for (idx x = 0; x < width; x++)
            copy_pixel(interleaved + x * LANES + r * c, from + (r * j->w + x) * c, c,
                       x + 1 == width || (r + 1) * c >= LANES);
    const idx *first = j->by.first + (width - 1) * j->size;
    const int32_t *weights = j->by.weights + (width - 1) * j->size * j->by.taps;
    int digits = j->by.digits[width - 1];
    for (idx o = 0; o < j->size; o++) {
        idx x = flipped ? j->size - 1 - o : o;
        bvec sums = weighed(interleaved + first[x] * LANES, LANES, LANES, weights + x * j->by.taps, j->by.taps, digits);
        uint8_t values[LANES];
        memcpy(values, &sums, sizeof values);
        for (idx r = 0; r < rows; r++)
            copy_pixel(to + (r * j->size + o) * c, values + r * c, c, o + 1 == j->size || (r + 1) * c >= LANES);
    }
}

/* All of an area; `rows` holds it when it is resized along its rows. What lies beyond it there has weights of 0. */
INLINE void crop(const cropping *j, idx c, idx image, uint8_t *interleaved, uint8_t *rows) {
    const idx *area = j->areas + 4 * image, height = area[2], width = area[3], length = j->size * c;
    const uint8_t *from = j->pixels + ((j->images[image] * j->h + area[0]) * j->w + area[1]) * c;
    for (idx r = 0, together = LANES / c; r < height; r += together)
        along_rows(j, c, from + r * j->w * c, least(together, height - r), width, j->flipped[image], interleaved,
                   rows + r * length);
    const idx *first = j->by.first + (height - 1) * j->size;
    const int32_t *weights = j->by.weights + (height - 1) * j->size * j->by.taps;
    int digits = j->by.digits[height - 1];
    uint8_t *to = j->made + image * j->size * length;
    for (idx y = 0; y < j->size; y++, to += length)
        EACH(i, length, {
            const uint8_t *p = rows + first[y] * length + i;
            bvec sums = weighed(p, length, count, weights + y * j->by.taps, j->by.taps, digits);
            memcpy(to + i, &sums, least(count, LANES));
        })
}

static void crop_work(void *data) {
    cropping *j = data;
    idx for_interleaved = (j->w + j->by.taps) * LANES;
    uint8_t *buffer = calloc(1, for_interleaved + (j->h + j->by.taps) * j->size * j->c);
    if (!buffer) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    for (idx n; buffer && (n = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->n;) {
        if (j->c == 3) crop(j, 3, n, buffer, buffer + for_interleaved);
        else crop(j, j->c, n, buffer, buffer + for_interleaved);
    }
    free(buffer);
}

/* Areas of images, resized, and from right to left where they are flipped. A vector holds a pixel at least. */
int resized_crops(parallel *start, unsigned threads, const void *pixels, const void *images, const void *areas,
                 const void *flipped, void *made, const void *first, const void *weights, const void *digits, idx taps,
                 idx n, idx h, idx w, idx c, idx size) {
    windows by = {.first = first, .weights = weights, .digits = digits, .taps = taps};
    cropping j = {.pixels = pixels, .images = images, .areas = areas, .flipped = flipped, .made = made, .by = by,
                  .n = n, .h = h, .w = w, .c = c, .size = size};
    in_threads(start, threads, crop_work, &j);
    return j.failed;
}

/* As in data/batch_ops.py. */
#define POSITION_BITS 17 /* of a position behind the point */
#define WEIGHT_BITS 11   /* of an interpolation's weights */
#define TOGETHER 16      /* rows that a thread takes at once: to take one is to wait for the other threads */

typedef struct {
    const uint8_t *pixels; /* (n, size, size, c) */
    const int32_t *matrices, *fill; /* (n, 2, 3), and (c) */
    uint8_t *made;                  /* as pixels */
    int across, down;               /* whether what is seen lies between two columns, and between two rows */
    idx n, size, c;
    idx next; /* row to be taken */
} transform;

/* Where a coordinate of half a pixel's middle less is: the two pixels next to it, and the second one's weight. */
INLINE void around(int32_t position, idx size, idx *before, idx *behind, int32_t *weight) {
    int32_t from_middle = position - (1 << (POSITION_BITS - 1));
    idx first = from_middle >> POSITION_BITS;
    *weight = (from_middle >> (POSITION_BITS - WEIGHT_BITS)) & ((1 << WEIGHT_BITS) - 1);
    *before = first < 0 ? 0 : least(first, size - 1);
    *behind = first + 1 < 0 ? 0 : least(first + 1, size - 1);
}

INLINE int32_t between(int interpolated, int32_t before, int32_t behind, int32_t weight) {
    return interpolated ? (behind - before) * weight + (before << WEIGHT_BITS) : before;
}

INLINE void affine_row(const transform *j, idx c, int across, int down, idx row) {
    idx image = row / j->size, middle = 2 * (row % j->size) + 1;
    const uint8_t *pixels = j->pixels + image * j->size * j->size * c;
    const int32_t *by = j->matrices + 6 * image, end = j->size << POSITION_BITS;
    int32_t x_of_row = by[1] * middle + by[2], y_of_row = by[4] * middle + by[5];
    uint8_t *to = j->made + row * j->size * c;
    for (idx column = 0; column < j->size; column++, to += c) {
        int32_t x = by[0] * (2 * column + 1) + x_of_row, y = by[3] * (2 * column + 1) + y_of_row, wx, wy;
        if (x < 0 || x >= end || y < 0 || y >= end) {
            for (idx i = 0; i < c; i++) to[i] = j->fill[i];
            continue;
        }
        idx left, right, above, below;
        around(x, j->size, &left, &right, &wx);
        around(y, j->size, &above, &below, &wy);
        const uint8_t *first = pixels + above * j->size * c, *second = pixels + below * j->size * c;
        for (idx i = 0; i < c; i++) {
            int32_t upper = between(across, first[left * c + i], first[right * c + i], wx);
            int32_t lower = between(across, second[left * c + i], second[right * c + i], wx);
            to[i] = between(down, upper, lower, wy) >> (WEIGHT_BITS * (across + down));
        }
    }
}

INLINE void affine_any_row(const transform *j, idx row) {
    if (j->c != 3) affine_row(j, j->c, j->across, j->down, row);
    else if (j->across && j->down) affine_row(j, 3, 1, 1, row);
    else if (j->across) affine_row(j, 3, 1, 0, row);
    else if (j->down) affine_row(j, 3, 0, 1, row);
    else affine_row(j, 3, 0, 0, row);
}

static void affine_work(void *data) {
    transform *j = data;
    idx rows = j->n * j->size;
    for (idx r; (r = __atomic_fetch_add(&j->next, TOGETHER, __ATOMIC_RELAXED)) < rows;)
        for (idx end = least(r + TOGETHER, rows); r < end; r++) affine_any_row(j, r);
}

/* Square images, each by its matrix; the fill where that looks outside. */
int affine(parallel *start, unsigned threads, const void *pixels, const void *matrices, const void *fill, void *made,
                idx across, idx down, idx n, idx size, idx c) {
    transform j = {.pixels = pixels, .matrices = matrices, .fill = fill, .made = made, .across = across, .down = down,
                .n = n, .size = size, .c = c};
    in_threads(start, threads, affine_work, &j);
    return 0;
}
