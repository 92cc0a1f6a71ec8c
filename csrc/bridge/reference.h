/* The reference process: F_k(x) = x + g_k (m - x) / v, a discretised Ornstein-Uhlenbeck process towards
 * N(m, v I); v -> infinity is Brownian motion.
 *
 * Purpose: the first forward process. Being linear it needs no simulation: X_k given X_0 is Gaussian.
 * Ownership: owns its mean and tables. Threads: immutable once made.
 */
#ifndef DSB_BRIDGE_REFERENCE_H
#define DSB_BRIDGE_REFERENCE_H

#include "bridge/schedule.h"

typedef struct dsb_reference {
    const dsb_backend *be;
    int64_t dim;
    float *mean;     /* [pitch(dim)] device */
    float precision; /* 1 / v; 0: Brownian */
} dsb_reference;

dsb_status dsb_reference_init(dsb_reference *reference, const dsb_backend *be, int64_t dim,
                              const float *mean, double precision) DSB_MUST_CHECK;
void dsb_reference_clear(dsb_reference *reference);

/* Coefficients of X_0, z and m, three a step, for pairs (k, k + 1) drawn in closed form:
 * `next`: X_{k+1} = A_{k+1} X_0 + V_{k+1}^{1/2} z + (1 - A_{k+1}) m, and
 * `mean`: E[X_k | X_0, X_{k+1}] = A_k X_0 + V_k a_k V_{k+1}^{-1/2} z + (1 - A_k) m (the same z), where
 * a_k = 1 - g_k / v, A_k = a_0 .. a_{k-1}, V_{k+1} = a_k^2 V_k + 2 g_k, V_0 = 0.
 * `mix`: coefficients of X_{k+1} and of that mean in target (12): 1 - a_k and a_k (and 0). */
void dsb_reference_tables(const dsb_reference *reference, const dsb_schedule *schedule, float *next,
                          float *mean, float *mix);

#endif
