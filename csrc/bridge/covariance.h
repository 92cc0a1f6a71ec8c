/* The noise of one direction's steps: X' = mean_k(X) + L_k z, z ~ N(0, I), Q_k = L_k L_k^T.
 *
 * Purpose: DSB takes the reference's covariance, Q_k = 2 g_k I; one that was estimated from residuals is
 * q_k I, diag(q_k) or a full matrix. Covariances are counted in the order of time, k = 0 .. n - 1, whichever
 * way the direction runs. A direction without an estimate has none of this: NULL stands for the reference's.
 * Ownership: owns values and factors. Threads: immutable once settled.
 */
#ifndef DSB_BRIDGE_COVARIANCE_H
#define DSB_BRIDGE_COVARIANCE_H

#include "base/chunks.h"
#include "bridge/schedule.h"

typedef enum dsb_covariance {
    DSB_COVARIANCE_REFERENCE,
    DSB_COVARIANCE_SCALAR,
    DSB_COVARIANCE_DIAGONAL,
    DSB_COVARIANCE_FULL
} dsb_covariance;

#define DSB_MAX_FULL 512 /* dimension of full covariances, at most */

typedef struct dsb_noise {
    const dsb_backend *be;
    dsb_covariance kind;
    int n;
    int64_t dim;
    double *values; /* host: Q_k, dsb_covariance_size() numbers a step; NULL: the reference's */
    float *factors; /* device: L_k, of a step [pitch(dim)] (diagonal) or packed as weights (full) */
    int64_t raised; /* eigenvalues that were below their bound */
} dsb_noise;

/* Numbers that tell Q_k: 0, 1, dim or dim^2. */
int64_t dsb_covariance_size(dsb_covariance kind, int64_t dim);

/* Room for n steps; the values are to be filled in, and settled. */
dsb_status dsb_noise_init(dsb_noise *noise, const dsb_backend *be, dsb_covariance kind, int n,
                          int64_t dim) DSB_MUST_CHECK;
void dsb_noise_clear(dsb_noise *noise);
/* Bytes that it holds, and those that settling it takes besides. */
size_t dsb_noise_bytes(dsb_covariance kind, int n, int64_t dim);
size_t dsb_noise_work_bytes(dsb_covariance kind, int n, int64_t dim, int workers);

/* Raises the eigenvalues of Q_k below least[k] to it, counting them (`least` NULL: none), and makes the
 * factors. DSB_ERR_NUMERIC where one is not finite and positive definite. */
dsb_status dsb_noise_settle(dsb_noise *noise, const double *least, int workers,
                            dsb_watch *watch) DSB_MUST_CHECK;

/* Standard normals to noise of step k: L_k z is the factor returned times y. y is z, of full covariances
 * another matrix. */
float dsb_noise_shape(const dsb_noise *noise, int k, int rows, const float *z, float *y,
                      int64_t ld);

#endif
