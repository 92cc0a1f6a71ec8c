/* A learner: one net with its planes and what a gradient step does to them.
 *
 * Purpose: theta | m | v | ema of one direction, all in the net's layout; lanes of gradients are shared
 * by both directions and belong to the trainer.
 * Ownership: owns its planes. Threads: one trainer at a time.
 */
#ifndef DSB_BRIDGE_LEARNER_H
#define DSB_BRIDGE_LEARNER_H

#include "bridge/schedule.h"
#include "nn/exec.h"

typedef enum dsb_plane { DSB_THETA, DSB_MOMENT1, DSB_MOMENT2, DSB_EMA, DSB_PLANES } dsb_plane;

typedef struct dsb_rate {
    double rate;
    bool cosine;        /* rate (1 + cos(pi step / steps)) / 2, else constant */
    double clip;        /* bound of the gradient's norm; 0: none */
    bool fresh_average; /* whether the average forgets what was before the half-bridge */
} dsb_rate;

typedef struct dsb_learner {
    const dsb_net *net;
    const dsb_backend *be;
    float *planes[DSB_PLANES]; /* device; the last is NULL when no average is kept */
    int64_t adam_steps;        /* t of the bias correction */
    bool trained;              /* it has had a step since it was made */
} dsb_learner;

dsb_status dsb_learner_init(dsb_learner *learner, const dsb_net *net, const dsb_backend *be,
                            bool ema) DSB_MUST_CHECK;
void dsb_learner_clear(dsb_learner *learner);
size_t dsb_learner_bytes(const dsb_net *net, bool ema);

/* New initial weights (see dsb_net_init), the average equal to them, moments zero. */
dsb_status dsb_learner_reset(dsb_learner *learner, uint64_t seed, uint32_t draw) DSB_MUST_CHECK;

/* The plane that simulation and sampling read: the average where there is one. */
const float *dsb_learner_serving(const dsb_learner *learner);

/* Gradient lanes and the partial sums of their reduction. */
typedef struct dsb_gradients {
    const dsb_backend *be;
    int lanes;
    int64_t plane;
    float *planes; /* [lanes][plane] */
    int n_blocks;
    double *norms; /* [n_blocks] */
    double *loss;  /* [lanes] */
} dsb_gradients;

dsb_status dsb_gradients_init(dsb_gradients *gradients, const dsb_net *net, const dsb_backend *be,
                              int lanes) DSB_MUST_CHECK;
void dsb_gradients_clear(dsb_gradients *gradients);
size_t dsb_gradients_bytes(const dsb_net *net, int lanes);

/* Sums the lanes into plane 0; the squared norm of the sum and the loss, in fixed order. */
void dsb_gradients_reduce(dsb_gradients *gradients, int max_workers, double *norm_squared,
                          double *loss);

/* Clip, Adam and average with the reduced gradient: step `step` of `steps` of the half-bridge. */
void dsb_learner_step(dsb_learner *learner, const dsb_gradients *gradients, const dsb_rate *rate,
                      const dsb_adam *adam, int64_t step, int64_t steps, double norm_squared,
                      int max_workers);

#endif
