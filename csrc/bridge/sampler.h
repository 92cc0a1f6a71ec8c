/* The sampler: simulates one direction of the chain for a chunk of particles.
 *
 * Purpose: X' = mean_j(X) + L_j z, step by step; the same code fills the cache, draws samples and
 * returns paths. Noise depends on (seed, stream, step, path) only, so chunks of any size agree.
 * Ownership: a process borrows everything; a walker owns the memory of one worker.
 * Threads: one walker a worker.
 */
#ifndef DSB_BRIDGE_SAMPLER_H
#define DSB_BRIDGE_SAMPLER_H

#include "base/chunks.h"
#include "bridge/covariance.h"
#include "bridge/reference.h"
#include "bridge/schedule.h"
#include "bridge/source.h"
#include "nn/exec.h"

#define DSB_MAX_CHUNK 64 /* particles that walk together, at most; see dsb_default_chunk */

static inline int64_t
dsb_chunks(int64_t particles, int chunk)
{
    return (particles + chunk - 1) / chunk;
}

/* One direction of the chain, ready to run. */
typedef struct dsb_process {
    dsb_direction direction;
    const dsb_steps *steps;
    const dsb_op_weights *weights; /* NULL: the reference process */
    const dsb_reference *reference;
    const dsb_noise *noise; /* NULL: the reference's, of deviation sqrt(2 g) */
    dsb_output output;
} dsb_process;

/* One worker's memory: an exec in infer mode, whose input x is the state, and rows of scratch. */
typedef struct dsb_walker {
    const dsb_backend *be;
    int64_t dim, ld;
    int chunk; /* rows at most, as the plan has them */
    dsb_exec *exec;
    float *x;                                    /* the state, [chunk, ld] */
    float *mean, *mean2, *noise, *target, *kept; /* the same shape */
    float *compact;                              /* [chunk, dim] */
    uint32_t ids[DSB_MAX_CHUNK];
    float *block;
} dsb_walker;

dsb_status dsb_walker_create(const dsb_plan *infer_plan, const dsb_backend *be,
                             dsb_walker **out) DSB_MUST_CHECK;
void dsb_walker_destroy(dsb_walker *walker);
size_t dsb_walker_bytes(const dsb_plan *infer_plan);

/* mean = the mean of the state after step j from the walker's x, which is left as it is. */
void dsb_walker_mean(dsb_walker *walker, const dsb_process *process, int j, int rows, float *mean);

/* drift = (mean - x) / g at step j's label, without the rounding of that difference where the net puts out
 * drifts. */
void dsb_walker_drift(dsb_walker *walker, const dsb_process *process, int j, int rows,
                      float *drift);

/* The noise of step j drawn at `at` is the factor returned times walker->noise. Writes over mean2. */
float dsb_walker_noise(dsb_walker *walker, const dsb_process *process, const dsb_draw *at, int j,
                       int rows);

/* The walker's x from X_j to X_{j+1}, whose mean is left in walker->mean; `at` NULL: without noise. */
void dsb_walker_step(dsb_walker *walker, const dsb_process *process, const dsb_draw *at, int j,
                     int rows);

/* Host memory <-> rows of the walker, through its compact buffer. */
void dsb_walker_load(dsb_walker *walker, const float *host, int rows);
void dsb_walker_store(dsb_walker *walker, const float *rows_of, int rows, float *host);

/* What sample() and paths() ask for. */
typedef struct dsb_sample_request {
    const dsb_source *start; /* where rows are drawn when x is NULL */
    const float *x;          /* host [n, dim] */
    int64_t n;
    uint64_t seed;
    bool final_noise, paths;
    float *out; /* host [n, dim] or [n, steps + 1, dim] */
} dsb_sample_request;

/* Rows first .. first + rows - 1 of the request, rows <= walker->chunk, as worker `worker`; given up where
 * the watch says so. */
void dsb_walker_sample(dsb_walker *walker, const dsb_process *process,
                       const dsb_sample_request *request, int64_t first, int rows, dsb_watch *watch,
                       int worker);

#endif
