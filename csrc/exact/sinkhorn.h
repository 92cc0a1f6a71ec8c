/* Sinkhorn's iteration between two weighted samples, with the matrix never stored.
 *
 * Purpose: potentials f, g of the plan P_ij = a_i b_j exp(f_i + g_j - |x_i - y_j|^2 / (2 variance)), by half
 * steps that each fit one end: g_j = -log sum_i a_i exp(f_i - cost), and f likewise. A half step is one
 * half-bridge of iterative proportional fitting (arXiv:2106.01357, section 2.2).
 * Ownership: everything is borrowed for the call. Threads: one caller, rows are tasks of the pool; the bits do
 * not depend on the number of threads.
 */
#ifndef DSB_EXACT_SINKHORN_H
#define DSB_EXACT_SINKHORN_H

#include "base/chunks.h"
#include "backend.h"

typedef enum dsb_side { DSB_SOURCE, DSB_TARGET, DSB_SIDES } dsb_side;

typedef struct dsb_sample {
    int64_t n;
    const float *points;  /* [n, dim] */
    const double *weight; /* [n], >= 0; each its own potential stays finite, also where it is 0 */
    double *potential;    /* [n], in and out */
} dsb_sample;

typedef struct dsb_sinkhorn {
    int dim;
    double variance; /* of the reference's transition */
    dsb_sample end[DSB_SIDES];
    dsb_side first;   /* the end that the first half step fits */
    int64_t most;     /* half steps */
    double tolerance; /* stop where the marginal that is not fitted errs by less, in L1; 0: never */
    /* out; errors and seconds have room for most + 1 */
    int64_t done; /* half steps */
    double *
        errors; /* [done + 1]: error of the marginal about to be fitted, before each step and at last */
    double *seconds; /* [done + 1]: when each was known, from the start of the call */
    double *masses;  /* [max(n)]: the plan's own masses at the end that is not fitted, `loose` */
    dsb_side loose;
    double *every; /* NULL, or [most][max(n)]: the potential that each half step has found */
} dsb_sinkhorn;

dsb_status dsb_sinkhorn_run(const dsb_backend *be, dsb_sinkhorn *s, dsb_tick tick) DSB_MUST_CHECK;

#endif
