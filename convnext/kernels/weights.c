/* A linear layer's weights in the orders that the products take, with the factors of what is before or behind it. */

#include "product.h"

#define STRIP (2 * LANES) /* rows that a thread takes at a time */

typedef struct {
    idx half, paired, rows, columns;
    const float *weight, *row_factor, *column_factor, *shift, *bias;
    float *shifted; /* bias + weight shift, where there is a shift */
    void *same, *transposed;
    idx next;
    int failed;
} order;

/* Rows `first` and following, times the factors, to `out`; and what the shift adds to the bias. */
INLINE void scaled(const order *j, int half, idx first, idx n, char *out) {
    for (idx r = 0; r < n; r++) {
        float row = j->row_factor ? j->row_factor[first + r] : 1.0f;
        vec products = {0};
        for (idx c = 0; c < j->columns; c += LANES) {
            idx count = j->columns - c;
            vec v = load(j->weight + (first + r) * j->columns + c, 0, count);
            if (j->shift) products += v * load(j->shift + c, 0, count);
            if (j->column_factor) v *= load(j->column_factor + c, 0, count);
            store(out + (r * j->columns + c) * (half ? 2 : 4), half, count, v * row);
        }
        if (j->shift) j->shifted[first + r] = j->bias[first + r] + total(products);
    }
}

static void strip(const order *j, idx first, idx n, char *values, void *pairs) {
    idx columns = j->columns, size = j->half ? 2 : 4;
    char *same = j->same ? (char *)j->same + first * columns * size : 0;
    if (j->half) scaled(j, 1, first, n, values);
    else scaled(j, 0, first, n, values);
    if (j->half) pair_rows(n, columns, (uint16_t *)values, pairs);
    if (same) memcpy(same, j->paired ? pairs : values, n * columns * size);
    if (!j->transposed) return;
    if (j->half && !j->paired)
        transpose_words(n / 2, columns, pairs, columns, (uint32_t *)j->transposed + first / 2, j->rows / 2);
    else
        transpose_words(n, columns * size / 4, (uint32_t *)values, columns * size / 4,
                        (uint32_t *)j->transposed + first, j->rows);
}

static void order_work(void *data) {
    order *j = data;
    void *buffer;
    idx bytes = (STRIP * j->columns + LANES) * 4;
    if (posix_memalign(&buffer, 64, 2 * bytes)) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (idx first; (first = __atomic_fetch_add(&j->next, STRIP, __ATOMIC_RELAXED)) < j->rows;)
        strip(j, first, least(STRIP, j->rows - first), buffer, (char *)buffer + bytes);
    free(buffer);
}

/* A matrix (rows, columns) times a factor each row and each column, where there are any, to the right matrix of a
   product, as it is and transposed, where there is memory given for it; and where there is a shift, bias + weight shift.
   Of bfloat16, rows and columns are even. Returns nonzero where there was no memory. */
int weights_order(parallel *start, unsigned threads, idx half, idx paired, idx rows, idx columns, const float *weight,
                  const float *row_factor, const float *column_factor, const float *shift, const float *bias,
                  float *shifted, void *same, void *transposed) {
    order j = {.half = half, .paired = paired, .rows = rows, .columns = columns, .weight = weight,
               .row_factor = row_factor, .column_factor = column_factor, .shift = shift, .bias = bias,
               .shifted = shifted, .same = same, .transposed = transposed};
    in_threads(start, threads, order_work, &j);
    return j.failed;
}

typedef struct {
    idx sections, rows, columns;
    const float *sums, *weight, *factor, *shift, *dbias;
    float *dweight, *dfactor, *dshift;
    idx next;
} gradient;

INLINE vec sum_at(const gradient *g, idx r, idx c) {
    vec sum = {0};
    for (idx s = 0; s < g->sections; s++)
        sum += load(g->sums + (s * g->rows + r) * g->columns + c, 0, g->columns - c);
    return sum;
}

/* Row r of the sums is one of the weight's. */
INLINE void row_gradient(const gradient *g, idx r) {
    vec products = {0};
    float factor = g->factor ? g->factor[r] : 1.0f;
    for (idx c = 0; c < g->columns; c += LANES) {
        idx at = r * g->columns + c, count = g->columns - c;
        vec sum = sum_at(g, r, c);
        products += sum * load(g->weight + at, 0, count);
        store(g->dweight + at, 0, count, sum * factor);
    }
    if (g->dfactor) g->dfactor[r] = total(products);
}

/* Rows r and following of the sums are columns of the weight. */
INLINE void column_gradient(const gradient *g, idx r) {
    idx height = least(LANES, g->rows - r);
    vec products = {0}, shifts = {0}, factor = load(g->factor + r, 0, height), shift = load(g->shift + r, 0, height);
    for (idx c = 0; c < g->columns; c += LANES) {
        vec tile[LANES];
        for (int i = 0; i < LANES; i++) tile[i] = i < height ? sum_at(g, r + i, c) : (vec){0};
        transpose_tile(tile);
        for (int i = 0; i < least(LANES, g->columns - c); i++) {
            idx at = (c + i) * g->rows + r;
            vec weight = load(g->weight + at, 0, height);
            products += tile[i] * weight;
            shifts += weight * g->dbias[c + i];
            store(g->dweight + at, 0, height, tile[i] * factor + shift * g->dbias[c + i]);
        }
    }
    store(g->dfactor + r, 0, height, products);
    store(g->dshift + r, 0, height, shifts);
}

static void row_work(void *data) {
    gradient *g = data;
    for (idx r; (r = __atomic_fetch_add(&g->next, 1, __ATOMIC_RELAXED)) < g->rows;) row_gradient(g, r);
}

static void column_work(void *data) {
    gradient *g = data;
    for (idx r; (r = __atomic_fetch_add(&g->next, LANES, __ATOMIC_RELAXED)) < g->rows;) column_gradient(g, r);
}

/* From the sums (sections, rows, columns) of the gradient of factor * weight, a factor each row, those of both. */
int row_gradients(parallel *start, unsigned threads, idx sections, idx rows, idx columns, const float *sums,
                  const float *weight, const float *factor, float *dweight, float *dfactor) {
    gradient g = {.sections = sections, .rows = rows, .columns = columns, .sums = sums, .weight = weight,
                  .factor = factor, .dweight = dweight, .dfactor = dfactor};
    in_threads(start, threads, row_work, &g);
    return 0;
}

/* From the sums (sections, rows, columns) of the gradient of (weight * factor)^T, a factor each column of the weight
   (columns, rows), those of both; and what the weight and the shift get from the bias, to which weight shift was added. */
int column_gradients(parallel *start, unsigned threads, idx sections, idx rows, idx columns, const float *sums,
                     const float *weight, const float *factor, const float *shift, const float *dbias, float *dweight,
                     float *dfactor, float *dshift) {
    gradient g = {.sections = sections, .rows = rows, .columns = columns, .sums = sums, .weight = weight,
                  .factor = factor, .shift = shift, .dbias = dbias, .dweight = dweight, .dfactor = dfactor, .dshift = dshift};
    in_threads(start, threads, column_work, &g);
    return 0;
}
