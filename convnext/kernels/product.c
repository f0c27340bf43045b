/* A product alone, to see that it is right and to measure it. */

#include "product.h"

typedef struct {
    product multiply;
    idx m, n, k, times, next;
    const void *a, *b;
    float *c;
} job;

static void work(void *data) {
    job *j = data;
    idx thread = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
    float *c = j->c + thread * j->m * j->n;
    for (idx i = 0; i < j->times; i++) multiply(&j->multiply, j->m, j->n, j->k, j->a, j->k, j->b, j->n, 0, c, j->n);
}

/* c (threads, m, n): in each thread a (m, k) b (k, n), as often as said. In the kernels, too, a product is called in a
   thread, where a BLAS does not start its own. */
int product_alone(parallel *start, unsigned threads, void *function, idx kind, idx half, idx m, idx n, idx k, idx times,
                  const void *a, const void *b, float *c) {
    job j = {.multiply = product_of(function, kind, half), .m = m, .n = n, .k = k, .times = times, .a = a, .b = b,
             .c = c};
    in_threads(start, threads, work, &j);
    return 0;
}
