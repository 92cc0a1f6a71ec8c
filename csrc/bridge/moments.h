/* Second moments of residuals, and covariances from them.
 *
 * Purpose: of rows x (residuals) and y (noise whose covariance Q is known), both of mean [rows, dim],
 *     E[x x^T] + D (Q - E[y y^T]) D^T,   D = E[x y^T] E[y y^T]^{-1}:
 * the mean of x x^T with y as a control variate. What D explains of x is known exactly, and only the rest is
 * estimated; no eigenvalue can be negative. Or E[x x^T] alone. Sums are float32 within 64 rows and float64
 * beyond, in a fixed order; of diagonals float64. Matrices, or diagonals where no more is wanted.
 * Ownership: owns its memory. Threads: one caller; it spreads the work.
 */
#ifndef DSB_BRIDGE_MOMENTS_H
#define DSB_BRIDGE_MOMENTS_H

#include "bridge/covariance.h"

typedef struct dsb_moments {
    const dsb_backend *be;
    dsb_covariance kind; /* not the reference's */
    int64_t dim, ld;
    int rows, workers;
    bool both;              /* whether there is a y */
    double *xx, *yx, *yy;   /* host [dim, dim], or diagonals [pitch]; rows of yx are those of y */
    double *factor, *moved; /* host, full only: of yy, and (Q - yy) D^T */
    void *sums,
        *host; /* device, host: [workers][panel of rows, dim] floats; of diagonals [pitch] doubles */
} dsb_moments;

dsb_status dsb_moments_init(dsb_moments *moments, const dsb_backend *be, dsb_covariance kind,
                            int rows, int64_t dim, bool both, int workers) DSB_MUST_CHECK;
void dsb_moments_clear(dsb_moments *moments);
size_t dsb_moments_bytes(dsb_covariance kind, int64_t dim, int workers);

/* Sums over rows of x and y (device memory, dsb_pitch(dim) apart); *finite: whether all of them are. */
dsb_status dsb_moments_take(dsb_moments *moments, const float *x, const float *y, dsb_watch *watch,
                            bool *finite) DSB_MUST_CHECK;

/* The covariance, symmetric, of dsb_covariance_size() numbers. With y, whose covariance is `known`, as large,
 * or variance I where that is NULL; without y E[x x^T] + variance I. Uses the sums up. */
dsb_status dsb_moments_covariance(dsb_moments *moments, const double *known, double variance,
                                  dsb_watch *watch, double *out) DSB_MUST_CHECK;

#endif
