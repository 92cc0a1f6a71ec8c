/* Making and unmaking a bridge, its memory and its position. What it is told is completed in configure.c, the
 * loop is in trainer.c. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "bridge/trainer.h"

#define SPARE ((size_t)8 << 20) /* bytes left to everybody else */

/* ---- memory ---- */

/* Both directions' covariances, the new ones beside the old, and the estimate. */
static size_t
covariance_bytes(const dsb_bridge_config *c, int workers)
{
    dsb_covariance kind = c->covariance.kind;
    int64_t dim = dsb_net_dim(c->net);

    return kind == DSB_COVARIANCE_REFERENCE
               ? 0
               : 3 * dsb_noise_bytes(kind, c->n, dim) +
                     dsb_residuals_bytes(&c->covariance, c->n, dim, workers);
}

static dsb_memory
memory_of(const dsb_bridge_config *c, const dsb_backend *be, const dsb_plan *train,
          const dsb_plan *infer)
{
    int workers = be->workers();
    dsb_cache_shape shape = dsb_config_cache_shape(c);
    int64_t row = dsb_pitch(shape.dim) + 2;
    dsb_memory m = {
        .planes = 2 * dsb_learner_bytes(c->net, c->adam.ema > 0.0f),
        .gradients = dsb_gradients_bytes(c->net, c->lanes),
        .activations = (size_t)workers * (train->bytes + dsb_walker_bytes(infer) +
                                          sizeof(float) * (size_t)(c->microbatch * row)),
        .weights = dsb_weights_bytes(c->net, be, c->precision, true) +
                   2 * dsb_weights_bytes(c->net, be, c->precision, false),
        .cache = dsb_cache_bytes(&shape),
        .ends = dsb_source_bytes(shape.dim, c->source.factor != NULL) +
                dsb_source_bytes(shape.dim, c->prior.factor != NULL),
        .covariances = covariance_bytes(c, workers),
    };

    m.total = m.planes + m.gradients + m.activations + m.weights + m.cache + m.ends + m.covariances;
    return m;
}

/* Whether a bridge of another configuration would fit; its plan for training is made for the purpose. */
static dsb_status
fits(const dsb_bridge *bridge, const dsb_bridge_config *c, size_t available, bool *answer)
{
    dsb_plan_request request = {DSB_TRAIN, c->microbatch, false, c->precision};
    dsb_plan *train;

    DSB_TRY(dsb_plan_create(c->net, bridge->be, &request, &train));
    *answer = memory_of(c, bridge->be, train, bridge->infer_plan).total <= available;
    dsb_plan_destroy(train);
    return DSB_OK;
}

/* Doubles *what, a member of c, towards `most` as long as it fits. */
static dsb_status
enlarge(const dsb_bridge *bridge, size_t available, dsb_bridge_config *c, int *what, int most)
{
    bool larger = true;

    while (larger && *what < most) {
        int now = *what;

        *what = now > most / 2 ? most : 2 * now;
        DSB_TRY(fits(bridge, c, available, &larger));
        *what = larger ? *what : now;
    }
    return DSB_OK;
}

/* Makes the windows of the cache smaller, then microbatches, then the batch with its lanes, until it fits or
 * cannot; then the first two as large again as fits. */
static dsb_status
shrink(const dsb_bridge *bridge, size_t available, dsb_bridge_config *c, bool *answer)
{
    int least = c->antithetic ? 2 : 1, refresh = c->refresh, microbatch = c->microbatch;

    DSB_TRY(fits(bridge, c, available, answer));
    while (!*answer && (c->refresh > 1 || c->microbatch > least || c->batch > least)) {
        if (c->refresh > 1) {
            c->refresh /= 2;
        } else if (c->microbatch > least) {
            c->microbatch = c->microbatch / 2 / least * least;
        } else {
            c->batch = c->batch / 2 / least * least;
            c->lanes = dsb_default_lanes(c->batch, microbatch);
        }
        DSB_TRY(fits(bridge, c, available, answer));
    }
    if (*answer) {
        int most = c->batch / c->lanes; /* each lane has a microbatch */

        DSB_TRY(enlarge(bridge, available, c, &c->microbatch,
                        most < microbatch ? most / least * least : microbatch));
        DSB_TRY(enlarge(bridge, available, c, &c->refresh, refresh));
    }
    return DSB_OK;
}

/* Appends ", name=value" where the value has to be given. */
static void
advise(char *text, size_t size, bool needed, const char *name, int value)
{
    size_t n = strlen(text);

    if (needed) {
        snprintf(text + n, size - n, "%s%s=%d", n > 0 ? ", " : "", name, value);
    }
}

/* Foresees running out of memory: says what is needed, what there is, and what would fit. */
static dsb_status
check_memory(const dsb_bridge *bridge)
{
    const dsb_bridge_config *asked = &bridge->config;
    dsb_bridge_config c = *asked;
    size_t granted = dsb_memory_available(),
           available = granted - (granted < SPARE ? granted : SPARE);
    dsb_memory m = memory_of(asked, bridge->be, bridge->train_plan, bridge->infer_plan);
    double mib = 1.0 / (1 << 20);
    char advice[128] = "";
    bool answer;

    if (m.total <= available) {
        return DSB_OK;
    }
    DSB_TRY(shrink(bridge, available, &c, &answer));
    if (answer) {
        bool odd = c.lanes != dsb_default_lanes(c.batch, c.microbatch);

        advise(advice, sizeof advice, c.batch != asked->batch, "batch", c.batch);
        advise(advice, sizeof advice, c.microbatch != asked->microbatch, "microbatch",
               c.microbatch);
        advise(advice, sizeof advice, odd || c.lanes != asked->lanes, "lanes", c.lanes);
        advise(advice, sizeof advice, c.refresh != asked->refresh, "refresh", c.refresh);
    }
    return DSB_FAIL(
        DSB_ERR_MEMORY,
        "out of memory: %.0f MiB are needed (nets %.0f, gradients %.0f, packed weights %.0f, "
        "activations %.0f, cache %.0f, covariances %.0f) and %.0f MiB are available; %s would %s",
        (double)m.total * mib, (double)m.planes * mib, (double)m.gradients * mib,
        (double)m.weights * mib, (double)m.activations * mib, (double)m.cache * mib,
        (double)m.covariances * mib, (double)granted * mib,
        answer                        ? advice
        : m.covariances > m.total / 2 ? "covariance='diagonal', or fewer covariance_paths,"
                                      : "a smaller net, or fewer threads,",
        answer ? "fit" : "need less");
}

dsb_memory
dsb_bridge_memory(const dsb_bridge *bridge)
{
    return memory_of(&bridge->config, bridge->be, bridge->train_plan, bridge->infer_plan);
}

dsb_evaluations
dsb_bridge_evaluations(const dsb_bridge *bridge)
{
    return (dsb_evaluations){bridge->cache.evaluated + bridge->estimated_rows,
                             bridge->trained_rows};
}

/* ---- making ---- */

static dsb_status
init_end(dsb_source *source, const dsb_backend *be, const dsb_end *end, int64_t dim,
         const char *name)
{
    if (end->rows.data == NULL) {
        DSB_REQUIRE(end->mean != NULL, "%s: expected rows or a Gaussian", name);
        return dsb_source_gaussian(source, be, dim, end->mean, end->deviation, end->factor);
    }
    DSB_REQUIRE(end->rows.dim == dim, "%s has %lld columns where the net has %lld", name,
                (long long)end->rows.dim, (long long)dim);
    return dsb_source_rows(source, be, &end->rows);
}

static dsb_status
init_model(dsb_bridge *bridge, const dsb_bridge_config *c)
{
    int64_t dim = dsb_net_dim(c->net);

    DSB_REQUIRE(c->net->values[c->net->output].shape.width == dim,
                "a bridge's net puts out rows as wide as x, %lld; this one's are %d",
                (long long)dim, c->net->values[c->net->output].shape.width);
    DSB_REQUIRE(c->net->ports[DSB_PORT_COND] < 0 && c->net->ports[DSB_PORT_LABEL] < 0,
                "a bridge feeds x and t only; this net asks for more");
    bridge->objective = dsb_objective_find(c->objective);
    DSB_TRY(dsb_schedule_init(&bridge->schedule, c->n, c->g));
    DSB_REQUIRE(
        c->convention != DSB_OFFICIAL || dsb_schedule_symmetric(&bridge->schedule),
        "the official convention takes the steps in the same order in both directions, which is "
        "right for a symmetric schedule only");
    DSB_TRY(dsb_reference_init(&bridge->reference, bridge->be, dim, c->reference_mean,
                               c->reference_precision));
    DSB_TRY(init_end(&bridge->ends[DSB_FORWARD], bridge->be, &c->source, dim, "source"));
    DSB_TRY(init_end(&bridge->ends[DSB_BACKWARD], bridge->be, &c->prior, dim, "prior"));
    for (int i = 0; i < 2; i++) {
        DSB_TRY(dsb_steps_init(&bridge->steps[i], &bridge->schedule, (dsb_direction)i,
                               c->convention, c->output));
        DSB_TRY(dsb_pinned_init(&bridge->pinned[i], &bridge->reference, &bridge->schedule,
                                (dsb_direction)i));
    }
    return DSB_OK;
}

/* Nothing large is allocated before this. */
static dsb_status
init_plans(dsb_bridge *bridge)
{
    const dsb_bridge_config *c = &bridge->config;
    dsb_plan_request train = {DSB_TRAIN, c->microbatch, false, c->precision};
    dsb_plan_request infer = {DSB_INFER, dsb_default_chunk(c->net), false, c->precision};

    DSB_TRY(dsb_plan_create(bridge->net, bridge->be, &train, &bridge->train_plan));
    DSB_TRY(dsb_plan_create(bridge->net, bridge->be, &infer, &bridge->infer_plan));
    return check_memory(bridge);
}

static dsb_status
init_memory(dsb_bridge *bridge)
{
    const dsb_bridge_config *c = &bridge->config;
    const dsb_net *net = bridge->net;
    dsb_cache_shape shape = dsb_config_cache_shape(c);

    for (int i = 0; i < 2; i++) {
        DSB_TRY(dsb_learner_init(&bridge->learners[i], net, bridge->be, c->adam.ema > 0.0f));
        DSB_TRY(dsb_learner_reset(&bridge->learners[i], c->seed, (uint32_t)i));
    }
    DSB_TRY(dsb_gradients_init(&bridge->gradients, net, bridge->be, c->lanes));
    DSB_TRY(dsb_weights_init(&bridge->training, net, bridge->be, c->precision, true));
    DSB_TRY(dsb_weights_init(&bridge->simulating, net, bridge->be, c->precision, false));
    DSB_TRY(dsb_weights_init(&bridge->sampling, net, bridge->be, c->precision, false));
    DSB_TRY(dsb_cache_init(&bridge->cache, bridge->be, &shape));
    DSB_TRY(dsb_alloc(sizeof *bridge->workers * DSB_MAX_THREADS, &bridge->workers));
    return dsb_bridge_workers(bridge);
}

dsb_status
dsb_bridge_create(const dsb_bridge_config *config, const dsb_backend *be, dsb_bridge **out)
{
    dsb_bridge_config complete = *config;
    dsb_bridge *bridge;
    dsb_status status;

    *out = NULL;
    DSB_TRY(dsb_config_complete(&complete));
    DSB_TRY(dsb_alloc(sizeof *bridge, &bridge));
    bridge->config = complete;
    bridge->be = be;
    bridge->net = config->net;
    bridge->simulating_for = -1;
    status = init_plans(bridge);
    if (status == DSB_OK) {
        status = init_model(bridge, config);
    }
    if (status == DSB_OK) {
        status = init_memory(bridge);
    }
    if (status != DSB_OK) {
        dsb_bridge_destroy(bridge);
        return status;
    }
    bridge->config.g = NULL;
    bridge->config.reference_mean = NULL;
    bridge->config.objective = bridge->objective->name;
    *out = bridge;
    return DSB_OK;
}

static void
clear_worker(const dsb_bridge *bridge, dsb_worker *worker)
{
    dsb_exec_destroy(worker->train);
    dsb_walker_destroy(worker->walker);
    bridge->be->free(worker->target);
    *worker = (dsb_worker){.train = NULL};
}

void
dsb_bridge_destroy(dsb_bridge *bridge)
{
    if (bridge == NULL) {
        return;
    }
    for (int i = 0; i < bridge->n_workers; i++) {
        clear_worker(bridge, &bridge->workers[i]);
    }
    dsb_free(bridge->workers);
    dsb_cache_clear(&bridge->cache);
    dsb_weights_clear(&bridge->training);
    dsb_weights_clear(&bridge->simulating);
    dsb_weights_clear(&bridge->sampling);
    dsb_gradients_clear(&bridge->gradients);
    for (int i = 0; i < 2; i++) {
        dsb_learner_clear(&bridge->learners[i]);
        dsb_source_clear(&bridge->ends[i]);
        dsb_steps_clear(&bridge->steps[i]);
        dsb_pinned_clear(&bridge->pinned[i]);
        dsb_noise_clear(&bridge->noise[i]);
    }
    dsb_reference_clear(&bridge->reference);
    dsb_schedule_clear(&bridge->schedule);
    dsb_plan_destroy(bridge->train_plan);
    dsb_plan_destroy(bridge->infer_plan);
    dsb_free(bridge->loss);
    dsb_free(bridge);
}

static dsb_status
init_worker(dsb_bridge *bridge, dsb_worker *worker)
{
    size_t rows = (size_t)bridge->config.microbatch,
           pitch = (size_t)dsb_pitch(dsb_net_dim(bridge->net));

    DSB_TRY(dsb_exec_create(bridge->train_plan, bridge->be, &worker->train));
    DSB_TRY(dsb_walker_create(bridge->infer_plan, bridge->be, &worker->walker));
    DSB_TRY(bridge->be->alloc(sizeof(float) * rows * (pitch + 2), &worker->target));
    worker->weight = worker->target + rows * pitch;
    worker->t = worker->weight + rows;
    return DSB_OK;
}

dsb_status
dsb_bridge_workers(dsb_bridge *bridge)
{
    int wanted = bridge->be->workers();

    while (bridge->n_workers < wanted) {
        dsb_worker *worker = &bridge->workers[bridge->n_workers];
        dsb_status status = init_worker(bridge, worker);

        if (status != DSB_OK) {
            clear_worker(bridge, worker);
            return status;
        }
        bridge->n_workers++;
    }
    return DSB_OK;
}

/* ---- position ---- */

dsb_position
dsb_bridge_position(const dsb_bridge *bridge)
{
    dsb_position p = {bridge->half_bridge, bridge->step, bridge->n_steps, {0, 0}, {false, false}};

    for (int i = 0; i < 2; i++) {
        p.adam_steps[i] = bridge->learners[i].adam_steps;
        p.trained[i] = bridge->learners[i].trained;
    }
    return p;
}

dsb_status
dsb_bridge_set_position(dsb_bridge *bridge, const dsb_position *position, const float *loss,
                        const float *norm)
{
    size_t step = (size_t)position->step;
    float *log = NULL;

    DSB_REQUIRE(position->half_bridge >= 0 && position->half_bridge < 1 << 24,
                "half_bridge must lie in 0 .. 2^24 - 1, got %lld",
                (long long)position->half_bridge);
    DSB_REQUIRE(position->steps >= 0 && position->steps <= INT32_MAX && position->step >= 0 &&
                    (position->steps == 0 ? position->step == 0
                     : bridge->config.covariance.kind == DSB_COVARIANCE_REFERENCE
                         ? position->step < position->steps
                         : position->step <= position->steps),
                "step %lld of %lld is no position in a half-bridge", (long long)position->step,
                (long long)position->steps);
    DSB_REQUIRE(position->adam_steps[0] >= 0 && position->adam_steps[1] >= 0,
                "the optimisers' step counts must not be negative");
    if (step > 0) {
        DSB_TRY(dsb_alloc(2 * sizeof(float) * step, &log));
        memcpy(log, loss, sizeof(float) * step);
        memcpy(log + step, norm, sizeof(float) * step);
    }
    dsb_free(bridge->loss);
    bridge->loss = log;
    bridge->norm = log != NULL ? log + step : NULL;
    bridge->log_capacity = position->step;
    bridge->logged = position->step;
    bridge->half_bridge = position->half_bridge;
    bridge->step = position->step;
    bridge->n_steps = position->steps;
    for (int i = 0; i < 2; i++) {
        bridge->learners[i].adam_steps = position->adam_steps[i];
        bridge->learners[i].trained = position->trained[i];
    }
    dsb_bridge_planes_changed(bridge);
    return DSB_OK;
}

void
dsb_bridge_planes_changed(dsb_bridge *bridge)
{
    bridge->simulating_for = -1;
    bridge->training_packed = false;
    bridge->cache.filled_half_bridge = -1;
}

dsb_status
dsb_bridge_set_covariance(dsb_bridge *bridge, dsb_direction direction, const double *values,
                          int64_t raised)
{
    dsb_covariance kind = bridge->config.covariance.kind;
    int64_t dim = dsb_net_dim(bridge->net), size = dsb_covariance_size(kind, dim);
    dsb_watch deaf = {.tick = {NULL, NULL}};
    dsb_noise noise = {.be = NULL};
    dsb_status status;

    if (values != NULL) {
        DSB_TRY(dsb_noise_init(&noise, bridge->be, kind, bridge->schedule.n, dim));
        memcpy(noise.values, values, sizeof *values * (size_t)(bridge->schedule.n * size));
        noise.raised = raised;
        status = dsb_noise_settle(&noise, NULL, bridge->n_workers, &deaf);
        if (status != DSB_OK) {
            dsb_noise_clear(&noise);
            return status;
        }
    }
    dsb_noise_clear(&bridge->noise[direction]);
    bridge->noise[direction] = noise;
    dsb_bridge_planes_changed(bridge);
    return DSB_OK;
}
