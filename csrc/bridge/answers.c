/* What a trained bridge answers: samples, paths, drifts. */
#include <math.h>

#include "bridge/trainer.h"

/* Whether the process' net answers at any time; otherwise at the states of the grid only. */
static bool
is_continuous(const dsb_bridge *bridge, const dsb_process *process)
{
    return process->weights == NULL ||
           (bridge->config.output == DSB_OUTPUT_DRIFT && bridge->config.convention == DSB_GRID);
}

typedef struct sampling {
    dsb_bridge *bridge;
    const dsb_process *process;
    const dsb_sample_request *request;
    dsb_watch *watch;
} sampling;

static void
sample_chunk(void *context, int64_t task, int worker)
{
    const sampling *s = context;
    dsb_walker *walker = s->bridge->workers[worker].walker;
    int64_t first = task * walker->chunk, left = s->request->n - first;

    dsb_walker_sample(walker, s->process, s->request, first,
                      left < walker->chunk ? (int)left : walker->chunk, s->watch, worker);
}

static dsb_status
check_span(const dsb_bridge *bridge, const dsb_schedule *other)
{
    DSB_REQUIRE(fabs(other->span - bridge->schedule.span) <= 1e-6 * bridge->schedule.span,
                "another schedule must end at the same T, %g; got %g", bridge->schedule.span,
                other->span);
    return DSB_OK;
}

dsb_status
dsb_bridge_sample(dsb_bridge *bridge, dsb_direction direction, int n, const double *g,
                  dsb_sample_request *request, dsb_tick tick)
{
    dsb_process process;
    dsb_watch watch = {.tick = tick};
    sampling s = {.bridge = bridge, .process = &process, .request = request, .watch = &watch};
    dsb_schedule schedule = {.n = 0};
    dsb_steps steps = {.n = 0};
    dsb_status status = DSB_OK;

    DSB_REQUIRE(request->n >= 1 && request->n <= UINT32_MAX,
                "n must lie in 1 .. 2^32 - 1, got %lld", (long long)request->n);
    DSB_TRY(dsb_bridge_workers(bridge));
    DSB_TRY(dsb_bridge_process(bridge, direction, &bridge->sampling, &process));
    request->start = &bridge->ends[direction];
    if (g != NULL) {
        DSB_REQUIRE(is_continuous(bridge, &process),
                    "sampling on another schedule needs a net that puts out drifts: "
                    "output='drift' and convention='grid'");
        DSB_TRY(dsb_schedule_init(&schedule, n, g));
        status = check_span(bridge, &schedule);
    }
    if (g != NULL && status == DSB_OK) {
        status = dsb_steps_init(&steps, &schedule, direction, bridge->config.convention,
                                bridge->config.output);
        process.steps = &steps;
        process.noise = NULL; /* estimates belong to the steps of training */
    }
    if (status == DSB_OK) {
        status = dsb_run_chunks(bridge->be->parallel, bridge->n_workers,
                                dsb_chunks(request->n, bridge->workers[0].walker->chunk),
                                sample_chunk, &s, &watch);
    }
    dsb_steps_clear(&steps);
    dsb_schedule_clear(&schedule);
    return status;
}

typedef struct drifting {
    dsb_bridge *bridge;
    const dsb_process *process;
    int64_t n;
    const float *x, *t;
    float *out;
    dsb_watch *watch;
} drifting;

/* A chunk of rows; neighbours with equal t go together. */
static void
drift_chunk(void *context, int64_t task, int worker)
{
    const drifting *d = context;
    const dsb_bridge *bridge = d->bridge;
    dsb_walker *walker = bridge->workers[worker].walker;
    const dsb_steps *steps = &bridge->steps[d->process->direction];
    int64_t dim = walker->dim, first = task * walker->chunk;
    int64_t last = first + walker->chunk < d->n ? first + walker->chunk : d->n;
    double g = 1.0;
    float label;
    dsb_steps one = {.n = 1, .g = &g, .label = &label};
    dsb_process process = *d->process;

    process.steps = &one;
    for (int64_t r = first, end; r < last && !dsb_watch_stopped(d->watch, worker); r = end) {
        for (end = r + 1; end < last && d->t[end] == d->t[r];) {
            end++;
        }
        if (is_continuous(bridge, d->process)) {
            label = dsb_schedule_label(&bridge->schedule, (double)d->t[r]);
        } else {
            int j = dsb_schedule_find(&bridge->schedule, process.direction, (double)d->t[r]);

            g = steps->g[j];
            label = steps->label[j];
        }
        dsb_walker_load(walker, d->x + r * dim, (int)(end - r));
        dsb_walker_drift(walker, &process, 0, (int)(end - r), walker->mean);
        dsb_walker_store(walker, walker->mean, (int)(end - r), d->out + r * dim);
    }
}

static dsb_status
check_times(const dsb_bridge *bridge, const dsb_process *process, int64_t n, const float *t)
{
    double span = bridge->schedule.span;

    for (int64_t r = 0; r < n; r++) {
        double time = (double)t[r];

        DSB_REQUIRE(time >= 0.0 && time <= span * (1.0 + 1e-6), "t must lie in [0, %g], got %g",
                    span, time);
        DSB_REQUIRE(is_continuous(bridge, process) ||
                        dsb_schedule_find(&bridge->schedule, process->direction, time) >= 0,
                    "t = %g is no state that the %s process leaves; a net with output='drift' and "
                    "convention='grid' answers at any t",
                    time, dsb_direction_name(process->direction));
    }
    return DSB_OK;
}

dsb_status
dsb_bridge_drift(dsb_bridge *bridge, dsb_direction direction, int64_t n, const float *x,
                 const float *t, float *out, dsb_tick tick)
{
    dsb_process process;
    dsb_watch watch = {.tick = tick};
    drifting d = {bridge, &process, n, x, t, out, &watch};

    DSB_TRY(dsb_bridge_workers(bridge));
    DSB_TRY(dsb_bridge_process(bridge, direction, &bridge->sampling, &process));
    DSB_TRY(check_times(bridge, &process, n, t));
    return dsb_run_chunks(bridge->be->parallel, bridge->n_workers,
                          dsb_chunks(n, bridge->workers[0].walker->chunk), drift_chunk, &d, &watch);
}
