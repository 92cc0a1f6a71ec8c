/* Symmetric matrices in float64, small enough for one thread each.
 *
 * Purpose: what covariances of noise need: a factor, and eigenvalues that are not too small. Matrices are
 * [n, n] in C order. Ownership: the caller's memory only. Threads: pure functions.
 */
#ifndef DSB_BASE_SYMMETRIC_H
#define DSB_BASE_SYMMETRIC_H

#include "base/chunks.h"

/* l = the lower factor L of A - shift I = L L^T, zero above the diagonal; reads A on and above its diagonal.
 * False, and l of no use, where that matrix is not positive definite or not finite. */
bool dsb_cholesky(int n, const double *a, double shift, double *l);

/* X <- (L L^T)^{-1} X for `many` columns of a matrix whose rows are n apart. */
void dsb_cholesky_solve(int n, const double *l, int many, double *x);

/* Raises to `least` the eigenvalues of A that are below it: A += sum (least - lambda) v v^T over these.
 * Returns how many, or -1 with A as it was where the watch said to stop. `work` is [2][n][n]. */
int dsb_raise_eigenvalues(int n, double *a, double least, double *work, dsb_watch *watch,
                          int worker);

#endif
