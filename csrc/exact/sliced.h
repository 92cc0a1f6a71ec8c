/* Wasserstein distances of two samples along lines.
 *
 * Purpose: for each of many directions u, W_p^p of the samples projected on u: project, sort, compare
 * the quantile functions. Ownership: a job owns its packed points and the workers' memory, and borrows
 * the directions and the results; clear it. Threads: dsb_sliced_task runs on any number of workers at
 * once, the rest on one. A direction's result depends on that direction only.
 */
#ifndef DSB_EXACT_SLICED_H
#define DSB_EXACT_SLICED_H

#include "backend.h"

typedef struct dsb_sliced {
    const dsb_backend *be;
    int64_t n, m, dim, directions;
    int power;      /* p, 1 or 2 */
    int together;   /* directions of a task */
    const float *u; /* [directions, dim] */
    float *panels;  /* of x and then of y */
    float *scratch; /* of each worker: projections, and a copy to sort into */
    int64_t each;   /* floats of scratch */
    double *out;    /* [directions] */
} dsb_sliced;

dsb_status dsb_sliced_init(dsb_sliced *job, const dsb_backend *be, int workers, int power,
                           int64_t n, const float *x, int64_t m, const float *y, int64_t dim,
                           int64_t directions, const float *u, double *out) DSB_MUST_CHECK;
void dsb_sliced_clear(dsb_sliced *job);
int64_t dsb_sliced_tasks(const dsb_sliced *job);
void dsb_sliced_task(void *job, int64_t task, int worker);

/* Sorts n finite numbers, -0 before 0; `other` has room for n. The result is where it returns. */
float *dsb_sort_floats(int64_t n, float *values, float *other);
/* int |Qx - Qy|^p of two sorted samples of n and m numbers, n m < 2^62. */
double dsb_line_distance(int power, int64_t n, const float *x, int64_t m, const float *y);

#endif
