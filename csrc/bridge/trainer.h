/* The trainer: both directions' nets, and the loop that trains them in turn.
 *
 * Purpose: half-bridge h = 0, 1, 2, ... trains the backward net when h is even and the forward net when
 * it is odd, on what the other direction simulates (h = 0: the reference). It ends with the estimate of the
 * covariances that the trained direction then simulates with, where these are not the reference's. The
 * position (h, step, steps) with planes and covariances is the whole state: everything else is a function
 * of it and of the seed.
 * Ownership: owns planes, caches and workers; borrows the net and the rows of its ends.
 * Threads: one caller at a time (the border keeps a lock); it spreads the work over the pool.
 */
#ifndef DSB_BRIDGE_TRAINER_H
#define DSB_BRIDGE_TRAINER_H

#include "bridge/cache.h"
#include "bridge/learner.h"
#include "bridge/residuals.h"

/* One end: rows of data, or where `rows.data` is NULL a Gaussian N(mean, L L^T), L = deviation I where
 * `factor` is NULL. */
typedef struct dsb_end {
    dsb_rows rows;
    const float *mean, *factor; /* [dim], [dim, dim] host */
    float deviation;
} dsb_end;

/* What a supplier of end points has before there is a net: the reference's ends (its half-bridges are then
 * those of iterative proportional fitting), ends drawn apart from each other (iterative Markovian fitting),
 * or rows of both ends that belong together, for both directions; those are asked for when a half-bridge
 * begins, as a bridge may be made to draw samples only. */
typedef enum dsb_coupling {
    DSB_COUPLING_REFERENCE,
    DSB_COUPLING_INDEPENDENT,
    DSB_COUPLING_PAIRS
} dsb_coupling;

typedef struct dsb_bridge_config {
    const dsb_net *net;
    dsb_end source, prior;
    const float *reference_mean;
    double reference_precision;
    int n;
    const double *g;
    dsb_convention convention; /* official also means: fresh nets and Adam for every half-bridge */
    dsb_output output;
    const char *objective;
    dsb_coupling first_coupling; /* for a supplier of end points */
    bool closed_form, antithetic;
    int batch, microbatch, lanes; /* microbatch, lanes 0: the defaults */
    int refresh, reuse;
    int64_t cache_bytes; /* 0: no bound */
    dsb_rate rate;
    dsb_adam adam;
    uint64_t seed;
    dsb_precision precision; /* one that the backend has */
    dsb_estimate covariance; /* of the kind REFERENCE: nothing is estimated */
} dsb_bridge_config;

typedef struct dsb_memory {
    size_t planes, gradients, activations, weights, cache, ends, covariances, total;
} dsb_memory;

typedef struct dsb_position {
    int64_t half_bridge, step,
        steps; /* steps 0: not begun; step == steps: the estimate is missing */
    int64_t adam_steps[2];
    bool trained[2];
} dsb_position;

typedef struct dsb_worker {
    dsb_exec *train;
    dsb_walker *walker;
    float *target, *weight,
        *t; /* [microbatch, pitch], [microbatch] each; t serves nets without time */
} dsb_worker;

typedef struct dsb_bridge {
    dsb_bridge_config config; /* with defaults filled in; its pointers are not kept */
    const dsb_backend *be;
    const dsb_net *net;
    const dsb_objective *objective;
    dsb_schedule schedule;
    dsb_reference reference;
    dsb_source
        ends[2]; /* where each direction starts: backward at the prior, forward at the data */
    dsb_steps steps[2];
    dsb_pinned pinned[2]; /* for the net of each direction */
    dsb_learner learners[2];
    dsb_noise noise[2]; /* without values: the reference's */
    dsb_gradients gradients;
    dsb_weights training, simulating, sampling;
    dsb_process other;      /* that simulates for the current half-bridge */
    int64_t simulating_for; /* the half-bridge for which `other` is ready; -1: none */
    bool training_packed;
    dsb_plan *train_plan, *infer_plan;
    dsb_worker *workers; /* [DSB_MAX_THREADS] */
    int n_workers;
    dsb_cache cache;
    int64_t half_bridge, step, n_steps;
    float *loss, *norm; /* host, one a step of the current or last half-bridge */
    int64_t logged, log_capacity;
    int64_t trained_rows;   /* of all gradient steps since it was made */
    int64_t estimated_rows; /* that a net took in estimates of covariances */
} dsb_bridge;

dsb_status dsb_bridge_create(const dsb_bridge_config *config, const dsb_backend *be,
                             dsb_bridge **out) DSB_MUST_CHECK;
void dsb_bridge_destroy(dsb_bridge *bridge);
dsb_memory dsb_bridge_memory(const dsb_bridge *bridge);

/* Rows that went through a net since the bridge was made: to simulate for the cache and to estimate
 * covariances, and forth and back in gradient steps. The reference is no net. */
typedef struct dsb_evaluations {
    int64_t simulation, training;
} dsb_evaluations;

dsb_evaluations dsb_bridge_evaluations(const dsb_bridge *bridge);

/* Starts the next half-bridge, of `steps` gradient steps. */
dsb_status dsb_bridge_begin(dsb_bridge *bridge, int64_t steps) DSB_MUST_CHECK;

/* At most `steps` gradient steps, not beyond the half-bridge, returning at the first step boundary after
 * `seconds`. *done counts them. Where all are done and covariances are estimated, the next call does that,
 * which ends the half-bridge. `tick` may stop it earlier, within a step or an estimate too, which then counts
 * for nothing (DSB_ERR_INTERRUPTED).
 * On failure everything stands as after the last whole step. */
dsb_status dsb_bridge_run(dsb_bridge *bridge, int64_t steps, double seconds, dsb_tick tick,
                          int64_t *done) DSB_MUST_CHECK;

dsb_direction dsb_bridge_direction(const dsb_bridge *bridge); /* of the current half-bridge */
dsb_position dsb_bridge_position(const dsb_bridge *bridge);
/* Moves to a saved position; the planes are set by their owner. `loss`, `norm`: `position->step` numbers. */
dsb_status dsb_bridge_set_position(dsb_bridge *bridge, const dsb_position *position,
                                   const float *loss, const float *norm) DSB_MUST_CHECK;
/* After a plane or a covariance was written from outside. */
void dsb_bridge_planes_changed(dsb_bridge *bridge);
/* The covariances of a direction, saved before: `values` as in dsb_noise, NULL: the reference's again. */
dsb_status dsb_bridge_set_covariance(dsb_bridge *bridge, dsb_direction direction,
                                     const double *values, int64_t raised) DSB_MUST_CHECK;

/* Draws request->n rows on `direction`; `g` NULL: the training schedule. request->start is filled in. */
dsb_status dsb_bridge_sample(dsb_bridge *bridge, dsb_direction direction, int n, const double *g,
                             dsb_sample_request *request, dsb_tick tick) DSB_MUST_CHECK;
/* out = drift of `direction` per unit of its own time at x [n, dim], t [n]. */
dsb_status dsb_bridge_drift(dsb_bridge *bridge, dsb_direction direction, int64_t n, const float *x,
                            const float *t, float *out, dsb_tick tick) DSB_MUST_CHECK;

/* Rows of a microbatch and number of lanes where none are given: a fixed function of net and batch. And the
 * particles that walk together, which decide no bit. */
int dsb_default_chunk(const dsb_net *net);
int dsb_default_microbatch(const dsb_net *net, int batch);
int dsb_default_lanes(int batch, int microbatch);

/* Checks what can be checked without a backend and fills in what was left open. */
dsb_status dsb_config_complete(dsb_bridge_config *config) DSB_MUST_CHECK;
dsb_cache_shape dsb_config_cache_shape(const dsb_bridge_config *config);

/* For the files beside: enough workers for what the pool has now. */
dsb_status dsb_bridge_workers(dsb_bridge *bridge) DSB_MUST_CHECK;
/* The process of a direction, its net's serving plane packed into `weights`. */
dsb_status dsb_bridge_process(dsb_bridge *bridge, dsb_direction direction, dsb_weights *weights,
                              dsb_process *process) DSB_MUST_CHECK;

#endif
