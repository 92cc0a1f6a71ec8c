/* What the kernels are compared with: plain loops in float64, written to be read.
 *
 * Purpose: one loop over the products of a convolution serves its three passes; on magnitudes in place of
 * numbers it gives the sum of |products| that an error is measured by. Images are [rows][h][w][c],
 * without padding. Ownership: the caller's. Threads: pure functions.
 */
#ifndef DSB_TESTS_REFERENCE_H
#define DSB_TESTS_REFERENCE_H

#include "backend.h"

typedef enum ref_pass { REF_FORWARD, REF_INPUT, REF_WEIGHT } ref_pass;

/* Adds to y = W * x (REF_FORWARD), to x the gradient W^T * y (REF_INPUT), or to w the gradient of the
 * weights from x and y (REF_WEIGHT). w [c_out][kernel][kernel][c_in]. */
void ref_conv(const dsb_conv *conv, int rows, ref_pass pass, double *x, double *w, double *y);

#endif
