/* What is read off a plan: conditional means, and pairs drawn from it.
 *
 * Purpose: at any point z, the law of the other end j ~ exp(psi_j - |z - y_j|^2 / (2 variance)), with psi_j =
 * potential + log weight: its normaliser, the mean of values given with the columns, draws. Any distance and
 * any variance: where float32 would not do, rows are done again in float64.
 * Ownership: everything is borrowed for the call. Threads: as in sinkhorn.h.
 */
#ifndef DSB_EXACT_CONDITIONAL_H
#define DSB_EXACT_CONDITIONAL_H

#include "base/chunks.h"
#include "backend.h"

typedef struct dsb_columns {
    int64_t n;
    int dim;
    const float *points; /* [n, dim] */
    const double *psi;   /* [n]; -infinity: a column without weight; not all of them */
    double variance;
} dsb_columns;

/* For rows z [n, dim]: log_sum [n], the log of the normaliser, and mean [n, n_values] of values [columns,
 * n_values]. */
dsb_status dsb_conditional_mean(const dsb_backend *be, const dsb_columns *columns, int64_t n,
                                const float *z, int n_values, const float *values, double *log_sum,
                                double *mean, dsb_tick tick) DSB_MUST_CHECK;

/* The column of each row by its uniform number in (0, 1): the first at which the cumulative sum reaches it. */
dsb_status dsb_conditional_pick(const dsb_backend *be, const dsb_columns *columns, int64_t n,
                                const float *z, const double *uniform, int64_t *picked,
                                dsb_tick tick) DSB_MUST_CHECK;

#endif
