/* Residual covariances: the noise that a direction should simulate with, from fresh paths.
 *
 * Purpose: a half-bridge ends with net R of one direction trained on paths of the other, the generator
 * Y_{j+1} = H_j(Y_j) + L_j z with covariances Q^H. For trajectory objectives, over paths of their own,
 *     Q^R_j = E[res res^T] + D (Q^H_j - E[nz nz^T]) D^T,  res = Y_j - R(Y_{j+1}),  nz = Y_{j+1} - H_j(Y_j),
 * with the regression D = E[res nz^T] E[nz nz^T]^{-1}: the mean of res res^T with a control variate, as
 * E[nz nz^T] = Q^H_j is known. In small steps res ~ -nz, D ~ -I, and most of the spread cancels. For
 * objectives of end points, over states pinned between the ends of paths of their own, with the conditional
 * mean m of the neighbour given the path's start,
 *     Q^R_j = Var I + E[(m - R)(m - R)^T],
 * the law of total variance.
 * Ownership: memory of its own while it runs. Threads: one caller; it spreads the work.
 */
#ifndef DSB_BRIDGE_RESIDUALS_H
#define DSB_BRIDGE_RESIDUALS_H

#include "bridge/cache.h"
#include "bridge/moments.h"

#define DSB_MAX_PATHS (1 << 24)
/* Where eigenvalues are raised to: this times g_k. */
#define DSB_LEAST_COVARIANCE 0.05

/* What covariances are estimated from, and how. */
typedef struct dsb_estimate {
    dsb_covariance kind; /* not the reference's */
    int paths;
} dsb_estimate;

typedef struct dsb_residuals {
    dsb_estimate estimate;
    const dsb_process *generator, *learnt;
    const dsb_source *start;  /* of the generator's paths, */
    const dsb_source *far;    /* and where those of the learnt net start */
    const dsb_pinned *pinned; /* of the learnt net; NULL for trajectory objectives */
    dsb_supply supply;
    const dsb_schedule *schedule;
    uint64_t seed;
    int64_t half_bridge;
    dsb_walker **walkers;
    int n_walkers;
    dsb_watch *watch;
} dsb_residuals;

/* Bytes that an estimate takes, besides the noise that it makes. */
size_t dsb_residuals_bytes(const dsb_estimate *estimate, int n, int64_t dim, int workers);

/* Rows that it puts through a net. */
int64_t dsb_residuals_evaluations(const dsb_residuals *residuals);

/* Makes the noise of `learnt`, settled. Nothing is made on failure. */
dsb_status dsb_residuals_run(const dsb_residuals *residuals, dsb_noise *out) DSB_MUST_CHECK;

#endif
