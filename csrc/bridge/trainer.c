#include "bridge/trainer.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/philox.h"

/* Beyond this the squares in Adam's second moment leave float32: the step is refused like a NaN, so that
 * theta, m and v stay finite. */
#define MAX_NORM_SQUARED 1e37

dsb_direction
dsb_bridge_direction(const dsb_bridge *bridge)
{
    return bridge->half_bridge % 2 == 0 ? DSB_BACKWARD : DSB_FORWARD;
}

/* ---- processes ---- */

dsb_status
dsb_bridge_process(dsb_bridge *bridge, dsb_direction direction, dsb_weights *weights,
                   dsb_process *process)
{
    const dsb_learner *learner = &bridge->learners[direction];

    *process = (dsb_process){.direction = direction,
                             .steps = &bridge->steps[direction],
                             .reference = &bridge->reference,
                             .output = bridge->config.output};
    if (direction == DSB_FORWARD && !learner->trained) {
        return DSB_OK; /* the reference */
    }
    if (!learner->trained) {
        return DSB_FAIL(DSB_ERR_STATE,
                        "the backward net has not been trained yet: call fit() first");
    }
    dsb_weights_pack(weights, dsb_learner_serving(learner), bridge->n_workers);
    process->weights = &weights->view;
    process->noise = bridge->noise[direction].values != NULL ? &bridge->noise[direction] : NULL;
    return DSB_OK;
}

/* ---- a gradient step ---- */

typedef struct batch {
    dsb_bridge *bridge;
    dsb_learner *learner;
    dsb_read_order order;
    int64_t position; /* row of the reading order */
    dsb_watch *watch;
} batch;

/* Row range of microbatch i. */
static int
microbatch_rows(const dsb_bridge *bridge, int i)
{
    int left = bridge->config.batch - i * bridge->config.microbatch;

    return left < bridge->config.microbatch ? left : bridge->config.microbatch;
}

static int
microbatches(const dsb_bridge *bridge)
{
    return (bridge->config.batch + bridge->config.microbatch - 1) / bridge->config.microbatch;
}

static void
load_microbatch(const batch *b, dsb_worker *worker, int i)
{
    const dsb_bridge *bridge = b->bridge;
    dsb_slot x = worker->train->inputs[DSB_PORT_X];
    float *t = worker->train->inputs[DSB_PORT_T].data;

    worker->train->draw = (dsb_draw){
        bridge->config.seed, dsb_stream_word(DSB_STREAM_DROPOUT, (uint32_t)bridge->half_bridge),
        (uint32_t)bridge->step, (uint32_t)(i * bridge->config.microbatch)};
    bridge->be->window_get(NULL, &bridge->cache.window, &b->order,
                           b->position + (int64_t)i * bridge->config.microbatch,
                           microbatch_rows(bridge, i), x.data, x.ld, worker->target,
                           dsb_pitch(bridge->cache.shape.dim), t != NULL ? t : worker->t,
                           worker->weight, NULL);
}

/* Lane i runs its contiguous share of the microbatches in order into its own gradient plane. */
static void
lane_task(void *context, int64_t lane, int worker_index)
{
    const batch *b = context;
    dsb_bridge *bridge = b->bridge;
    dsb_worker *worker = &bridge->workers[worker_index];
    dsb_exec *exec = worker->train;
    int lanes = bridge->config.lanes, n = microbatches(bridge), dim = (int)bridge->cache.shape.dim;
    int first = (int)(lane * n / lanes), last = (int)((lane + 1) * n / lanes);
    float scale = (float)(1.0 / ((double)bridge->config.batch * dim));
    double zero = 0.0;

    bridge->be->upload(&bridge->gradients.loss[lane], &zero, sizeof zero);
    for (int i = first; i < last && !dsb_watch_stopped(b->watch, worker_index); i++) {
        int rows = microbatch_rows(bridge, i);

        load_microbatch(b, worker, i);
        dsb_exec_forward(exec, &bridge->training.view, rows);
        bridge->be->weighted_square(NULL, rows, dim, exec->output.data, exec->output.ld,
                                    worker->target, dsb_pitch(dim), worker->weight, scale,
                                    exec->d_output.data, exec->d_output.ld,
                                    &bridge->gradients.loss[lane]);
        dsb_exec_backward(exec, &bridge->training.view, rows,
                          bridge->gradients.planes + lane * bridge->gradients.plane, i > first);
    }
}

/* The first number that is not finite, in words. Runs on the caller's thread after a step whose loss or
 * gradient was not finite; changes nothing. */
static const char *
find_nonfinite(const batch *b, const char **kind)
{
    dsb_bridge *bridge = b->bridge;
    const dsb_backend *be = bridge->be;
    const dsb_net *net = bridge->net;
    dsb_worker *worker = &bridge->workers[0];
    int dim = (int)bridge->cache.shape.dim;

    for (int i = 0; i < net->n_params; i++) {
        *kind = "parameter";
        if (be->first_nonfinite(
                1, net->params[i].size,
                dsb_float_slot(b->learner->planes[DSB_THETA] + net->params[i].offset, 0)) >= 0) {
            return net->params[i].name;
        }
    }
    for (int i = 0; i < microbatches(bridge); i++) {
        int rows = microbatch_rows(bridge, i);
        dsb_slot x = worker->train->inputs[DSB_PORT_X];
        const char *name;

        load_microbatch(b, worker, i);
        *kind = "simulated state or target of the other direction";
        if (be->first_nonfinite(rows, dim, x) >= 0 ||
            be->first_nonfinite(rows, dim, dsb_float_slot(worker->target, dsb_pitch(dim))) >= 0) {
            return "x";
        }
        *kind = "result of op";
        name = dsb_exec_find_nonfinite(worker->train, &bridge->training.view, rows);
        if (name != NULL) {
            return name;
        }
    }
    *kind = "gradient of parameter";
    for (int i = 0; i < net->n_params; i++) {
        if (be->first_nonfinite(
                1, net->params[i].size,
                dsb_float_slot(bridge->gradients.planes + net->params[i].offset, 0)) >= 0) {
            return net->params[i].name;
        }
    }
    *kind = "sum";
    return "loss";
}

static dsb_status
fail_nonfinite(const batch *b)
{
    const dsb_bridge *bridge = b->bridge;
    const char *kind, *name = find_nonfinite(b, &kind);

    return DSB_FAIL(
        DSB_ERR_NUMERIC,
        "NaN, infinity or overflow in step %lld of the %s half-bridge of iteration %lld: %s '%s'; "
        "the nets stand as before this step (go on from an earlier checkpoint with a lower "
        "learning rate, or with clip=)",
        (long long)bridge->step, dsb_direction_name(dsb_bridge_direction(bridge)),
        (long long)(bridge->half_bridge / 2 + 1), kind, name);
}

/* ---- windows ---- */

static dsb_supply
supply_of(const dsb_bridge *bridge)
{
    const dsb_bridge_config *c = &bridge->config;

    if (c->first_coupling == DSB_COUPLING_PAIRS && bridge->half_bridge < 2) {
        return DSB_ROW_BY_ROW;
    }
    if (c->first_coupling == DSB_COUPLING_INDEPENDENT && bridge->half_bridge == 0) {
        return DSB_INDEPENDENT;
    }
    return bridge->half_bridge == 0 && c->closed_form ? DSB_CLOSED_FORM : DSB_SIMULATED;
}

/* The process that simulates for the half-bridge under way. */
static dsb_status
prepare_other(dsb_bridge *bridge)
{
    if (bridge->simulating_for != bridge->half_bridge) {
        DSB_TRY(dsb_bridge_process(bridge, dsb_opposite(dsb_bridge_direction(bridge)),
                                   &bridge->simulating, &bridge->other));
        bridge->simulating_for = bridge->half_bridge;
    }
    return DSB_OK;
}

/* Returns their number. */
static int
get_walkers(const dsb_bridge *bridge, dsb_walker **walkers)
{
    for (int i = 0; i < bridge->n_workers; i++) {
        walkers[i] = bridge->workers[i].walker;
    }
    return bridge->n_workers;
}

static dsb_status
fill_window(dsb_bridge *bridge, dsb_watch *watch)
{
    dsb_direction trained = dsb_bridge_direction(bridge), other = dsb_opposite(trained);
    int64_t window = bridge->step / bridge->config.refresh;
    int64_t left = bridge->n_steps - window * bridge->config.refresh;
    dsb_walker *walkers[DSB_MAX_THREADS];
    dsb_process process;
    dsb_fill fill = {
        .seed = bridge->config.seed,
        .half_bridge = bridge->half_bridge,
        .window = window,
        .steps = (int)(left < bridge->config.refresh ? left : bridge->config.refresh),
        .source = &bridge->ends[other],
        .far = &bridge->ends[trained],
        .process = &process,
        .objective = bridge->objective,
        .pinned = &bridge->pinned[trained],
        .output = bridge->config.output,
        .walkers = walkers,
        .n_walkers = get_walkers(bridge, walkers),
        .watch = watch,
    };

    DSB_TRY(prepare_other(bridge));
    process = bridge->other;
    bridge->cache.shape.supply = supply_of(bridge);
    return dsb_cache_fill(&bridge->cache, &fill, &bridge->schedule);
}

/* ---- the end of a half-bridge ---- */

static void
end_half_bridge(dsb_bridge *bridge)
{
    bridge->half_bridge++;
    bridge->step = bridge->n_steps = 0;
    bridge->training_packed = false;
}

/* Estimates the covariances of the direction that was trained, and ends the half-bridge. */
static dsb_status
estimate_and_end(dsb_bridge *bridge, dsb_watch *watch)
{
    dsb_direction trained = dsb_bridge_direction(bridge);
    dsb_walker *walkers[DSB_MAX_THREADS];
    dsb_process generator, learnt;
    dsb_noise noise;
    dsb_residuals residuals = {
        .estimate = bridge->config.covariance,
        .generator = &generator,
        .learnt = &learnt,
        .start = &bridge->ends[dsb_opposite(trained)],
        .far = &bridge->ends[trained],
        .pinned = bridge->objective->supplier == DSB_END_POINTS ? &bridge->pinned[trained] : NULL,
        .supply = supply_of(bridge),
        .schedule = &bridge->schedule,
        .seed = bridge->config.seed,
        .half_bridge = bridge->half_bridge,
        .walkers = walkers,
        .n_walkers = get_walkers(bridge, walkers),
        .watch = watch,
    };

    DSB_TRY(prepare_other(bridge));
    generator = bridge->other;
    if (residuals.supply == DSB_CLOSED_FORM) { /* of the reference, whatever net there is */
        generator.weights = NULL;
        generator.noise = NULL;
    }
    DSB_TRY(dsb_bridge_process(bridge, trained, &bridge->sampling, &learnt));
    DSB_TRY(dsb_residuals_run(&residuals, &noise));
    dsb_noise_clear(&bridge->noise[trained]);
    bridge->noise[trained] = noise;
    bridge->estimated_rows += dsb_residuals_evaluations(&residuals);
    end_half_bridge(bridge);
    return DSB_OK;
}

/* ---- the loop ---- */

/* Makes room in the log for one more step; it grows by doubling, so that a half-bridge of any length may
 * begin. */
static dsb_status
reserve_log(dsb_bridge *bridge)
{
    int64_t capacity = bridge->log_capacity == 0 ? 4096 : 2 * bridge->log_capacity;
    float *log;

    if (bridge->step < bridge->log_capacity) {
        return DSB_OK;
    }
    DSB_TRY(dsb_alloc(2 * sizeof(float) * (size_t)capacity, &log));
    if (bridge->step > 0) {
        memcpy(log, bridge->loss, sizeof(float) * (size_t)bridge->step);
        memcpy(log + capacity, bridge->norm, sizeof(float) * (size_t)bridge->step);
    }
    dsb_free(bridge->loss);
    bridge->loss = log;
    bridge->norm = log + capacity;
    bridge->log_capacity = capacity;
    return DSB_OK;
}

dsb_status
dsb_bridge_begin(dsb_bridge *bridge, int64_t steps)
{
    dsb_cache_shape shape = bridge->cache.shape;

    if (bridge->n_steps != 0) {
        return DSB_FAIL(DSB_ERR_STATE, "a half-bridge is under way: %lld of %lld steps are done",
                        (long long)bridge->step, (long long)bridge->n_steps);
    }
    DSB_REQUIRE(steps >= 1 && steps <= INT32_MAX,
                "steps of a half-bridge must lie in 1 .. 2^31 - 1, got %lld", (long long)steps);
    DSB_REQUIRE(steps / bridge->config.refresh < 1 << 24,
                "a half-bridge has at most 2^24 windows: %lld steps need refresh >= %lld",
                (long long)steps, (long long)(steps >> 24) + 1);
    shape.supply = supply_of(bridge);
    DSB_REQUIRE(shape.supply != DSB_ROW_BY_ROW || (bridge->config.source.rows.data != NULL &&
                                                   bridge->config.prior.rows.data != NULL),
                "pairs are rows of two data sets, which are not both here");
    DSB_REQUIRE(dsb_cache_draws(&shape, steps) <= UINT32_MAX,
                "a half-bridge has at most 2^32 - 1 paths; %lld steps of batch %d need more",
                (long long)steps, bridge->config.batch);
    bridge->logged = 0;
    bridge->n_steps = steps;
    bridge->step = 0;
    bridge->training_packed = false;
    return DSB_OK;
}

/* The released code takes a new net for every half-bridge. The old one serves until the first step. */
static bool
starts_afresh(const dsb_bridge *bridge)
{
    return bridge->config.convention == DSB_OFFICIAL && bridge->half_bridge >= 2 &&
           bridge->step == 0;
}

static dsb_status
take_step(dsb_bridge *bridge, dsb_watch *watch)
{
    dsb_learner *learner = &bridge->learners[dsb_bridge_direction(bridge)];
    dsb_watch deaf = {.tick = {NULL, NULL}};
    batch b = {.bridge = bridge, .learner = learner, .watch = watch};
    double norm_squared, loss;

    DSB_TRY(reserve_log(bridge));
    DSB_TRY(fill_window(bridge, watch));
    if (starts_afresh(bridge)) {
        DSB_TRY(dsb_learner_reset(learner, bridge->config.seed, (uint32_t)bridge->half_bridge));
        learner->trained = true; /* it has taken the old one's place */
        b.watch = &deaf;         /* and must not stand there without a step */
    }
    b.order = dsb_cache_order(&bridge->cache, bridge->config.seed);
    b.position = bridge->step % bridge->config.refresh * bridge->config.batch;
    if (!bridge->training_packed) {
        dsb_weights_pack(&bridge->training, learner->planes[DSB_THETA], bridge->n_workers);
        bridge->training_packed = true;
    }
    bridge->be->parallel(bridge->n_workers, bridge->config.lanes, lane_task, &b);
    if (b.watch->stopped) { /* the step is taken anew when the run goes on */
        return DSB_ERR_INTERRUPTED;
    }
    dsb_gradients_reduce(&bridge->gradients, bridge->n_workers, &norm_squared, &loss);
    loss /= (double)bridge->config.batch * (double)bridge->cache.shape.dim;
    if (!(norm_squared < MAX_NORM_SQUARED && isfinite(loss))) {
        return fail_nonfinite(&b);
    }
    dsb_learner_step(learner, &bridge->gradients, &bridge->config.rate, &bridge->config.adam,
                     bridge->step, bridge->n_steps, norm_squared, bridge->n_workers);
    bridge->trained_rows += bridge->config.batch;
    dsb_weights_pack(&bridge->training, learner->planes[DSB_THETA], bridge->n_workers);
    bridge->loss[bridge->step] = (float)loss;
    bridge->norm[bridge->step] = (float)sqrt(norm_squared);
    bridge->logged = ++bridge->step;
    if (bridge->step == bridge->n_steps &&
        bridge->config.covariance.kind == DSB_COVARIANCE_REFERENCE) {
        end_half_bridge(bridge);
    }
    return DSB_OK;
}

dsb_status
dsb_bridge_run(dsb_bridge *bridge, int64_t steps, double seconds, dsb_tick tick, int64_t *done)
{
    int64_t half_bridge = bridge->half_bridge;
    double start = dsb_seconds();
    dsb_watch watch = {.tick = tick};

    *done = 0;
    if (bridge->n_steps == 0) {
        return DSB_FAIL(DSB_ERR_STATE, "no half-bridge is under way: call begin() first");
    }
    DSB_TRY(dsb_bridge_workers(bridge));
    if (bridge->step == bridge->n_steps) {
        return estimate_and_end(bridge, &watch);
    }
    while (*done < steps && bridge->half_bridge == half_bridge && bridge->step < bridge->n_steps &&
           (*done == 0 || dsb_seconds() < start + seconds)) {
        DSB_TRY(take_step(bridge, &watch));
        ++*done;
        if (tick.stop != NULL && tick.stop(tick.context)) {
            return DSB_ERR_INTERRUPTED;
        }
    }
    return DSB_OK;
}
