/* What the kernels are compared with: plain loops in float64, as the comments of backend.h define them.
 *
 * Purpose: written to be read. Images are [rows][h][w][c], or [rows][pixels][c], without padding.
 * Ownership: results go into the caller's arrays. Threads: pure functions.
 */
#ifndef DSB_TESTS_REFERENCE_H
#define DSB_TESTS_REFERENCE_H

#include "backend.h"

typedef enum ref_pass { REF_FORWARD, REF_INPUT, REF_WEIGHT } ref_pass;

/* Adds to y = W * x (REF_FORWARD), to x the gradient W^T * y (REF_INPUT), or to w the gradient of the
 * weights from x and y (REF_WEIGHT). w [c_out][kernel][kernel][c_in]. On magnitudes in place of numbers
 * it gives the sum of |products| that an error is measured by. */
void ref_conv(const dsb_conv *conv, int rows, ref_pass pass, double *x, double *w, double *y);

typedef struct ref_norm {
    int rows, pixels, c, groups;
    bool silu;
    const double *weight, *bias; /* [c] */
    const double *scale_shift;   /* [rows][2 c], or NULL */
} ref_norm;

double ref_silu(double x);
double ref_silu_slope(double x);

/* mean and 1 / deviation of a row's group */
void ref_moments(const ref_norm *norm, const double *x, int row, int group, double *mean,
                 double *inverse);
void ref_group_norm(const ref_norm *norm, const double *x, double *y);
/* Overwrites dx, d_weight, d_bias and d_scale_shift. */
void ref_group_norm_backward(const ref_norm *norm, const double *x, const double *dy, double *dx,
                             double *d_weight, double *d_bias, double *d_scale_shift);

void ref_attention(int rows, int pixels, int c, int heads, const double *qkv, double *y);
void ref_attention_backward(int rows, int pixels, int c, int heads, const double *qkv,
                            const double *dy, double *d_qkv);

void ref_upsample(int rows, int h, int w, int c, double factor, const double *x, double *y);
void ref_downsample(int rows, int h, int w, int c, double factor, const double *x, double *y);

/* Whether dropout keeps element `e` of row `row` (counted from the draw's first). */
bool ref_keeps(const dsb_draw *at, float rate, uint32_t row, int64_t e);

#endif
