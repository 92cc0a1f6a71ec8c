/* Sums over all pairs of two sets of points, of distances or of a Gaussian kernel.
 *
 * Purpose: what energy distance and MMD are made of, in memory O(n + m). The pairs are cut into tasks by
 * their numbers alone, and the tasks' sums added in order, so that the sum is the same for any number of
 * threads. Ownership: a job owns its packed points and the tasks' sums, and borrows the rows; clear it.
 * Threads: dsb_pairs_task runs on any number of workers at once, the rest on one.
 */
#ifndef DSB_EXACT_PAIR_SUMS_H
#define DSB_EXACT_PAIR_SUMS_H

#include "backend.h"

/* Points in panels of 16: [ceil(n / 16)][dim][16], zero beyond n. */
int64_t dsb_panels_floats(int64_t n, int64_t dim);
void dsb_panels_pack(int64_t n, int64_t dim, const float *rows, float *panels);

typedef struct dsb_pairs {
    const dsb_backend *be;
    dsb_pair_function f;
    float scale;
    bool within; /* the pairs of x with itself, each unordered pair computed once */
    int64_t n, m, dim;
    const float *x;         /* [n, dim] */
    float *panels, *norms;  /* of y, or of x itself */
    int64_t blocks, chunks; /* of rows and of columns; their product is the number of tasks */
    double *sums;           /* of the tasks */
} dsb_pairs;

/* y NULL: the pairs of x with itself, (i, i) included and each other pair twice. */
dsb_status dsb_pairs_init(dsb_pairs *job, const dsb_backend *be, dsb_pair_function f, float scale,
                          int64_t n, const float *x, int64_t m, const float *y,
                          int64_t dim) DSB_MUST_CHECK;
void dsb_pairs_clear(dsb_pairs *job);
int64_t dsb_pairs_tasks(const dsb_pairs *job);
void dsb_pairs_task(void *job, int64_t task, int worker);
/* The sum over all pairs, once every task has run. */
double dsb_pairs_total(const dsb_pairs *job);

#endif
