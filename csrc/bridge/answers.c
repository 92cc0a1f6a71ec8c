/* What a trained bridge answers: samples, paths, drifts. */
#include <math.h>

#include "bridge/trainer.h"

typedef struct sampling {
    dsb_bridge *bridge;
    const dsb_process *process;
    const dsb_sample_request *request;
    int64_t first_chunk;
} sampling;

static void
sample_chunk(void *context, int64_t task, int worker)
{
    const sampling *s = context;
    int64_t first = (s->first_chunk + task) * DSB_CHUNK, left = s->request->n - first;

    dsb_walker_sample(s->bridge->workers[worker].walker, s->process, s->request, first,
                      left < DSB_CHUNK ? (int)left : DSB_CHUNK);
}

static dsb_status
run_chunks(sampling *s, dsb_tick tick)
{
    int64_t chunks = (s->request->n + DSB_CHUNK - 1) / DSB_CHUNK, span = 32 * s->bridge->n_workers;

    for (; s->first_chunk < chunks; s->first_chunk += span) {
        int64_t n = chunks - s->first_chunk < span ? chunks - s->first_chunk : span;

        s->bridge->be->parallel(s->bridge->n_workers, n, sample_chunk, s);
        if (tick.stop != NULL && tick.stop(tick.context)) {
            return DSB_ERR_INTERRUPTED;
        }
    }
    return DSB_OK;
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
    sampling s = {.bridge = bridge, .process = &process, .request = request};
    dsb_schedule schedule = {.n = 0};
    dsb_steps steps = {.n = 0};
    dsb_status status = DSB_OK;

    DSB_REQUIRE(request->n >= 1 && request->n <= UINT32_MAX,
                "n must lie in 1 .. 2^32 - 1, got %lld", (long long)request->n);
    DSB_TRY(dsb_bridge_workers(bridge));
    DSB_TRY(dsb_bridge_process(bridge, direction, &bridge->sampling, &process));
    request->start = &bridge->ends[direction];
    if (g != NULL) {
        DSB_REQUIRE(
            process.weights == NULL || (bridge->config.output == DSB_OUTPUT_DRIFT &&
                                        bridge->config.convention == DSB_GRID),
            "sampling on another schedule needs a net that puts out drifts: output='drift' and "
            "convention='grid'");
        DSB_TRY(dsb_schedule_init(&schedule, n, g));
        status = check_span(bridge, &schedule);
    }
    if (g != NULL && status == DSB_OK) {
        status = dsb_steps_init(&steps, &schedule, direction, bridge->config.convention,
                                bridge->config.output);
        process.steps = &steps;
    }
    if (status == DSB_OK) {
        status = run_chunks(&s, tick);
    }
    dsb_steps_clear(&steps);
    dsb_schedule_clear(&schedule);
    return status;
}

/* Neighbouring rows with equal t go together. */
dsb_status
dsb_bridge_drift(dsb_bridge *bridge, dsb_direction direction, int64_t n, const float *x,
                 const float *t, float *out)
{
    bool continuous =
        bridge->config.output == DSB_OUTPUT_DRIFT && bridge->config.convention == DSB_GRID;
    dsb_walker *walker;
    const dsb_steps *steps = &bridge->steps[direction];
    dsb_process process;
    double g = 1.0;
    float label = 0.0f;
    dsb_steps one = {.n = 1, .g = &g, .label = &label};
    int64_t dim = dsb_net_dim(bridge->net);

    DSB_TRY(dsb_bridge_workers(bridge));
    DSB_TRY(dsb_bridge_process(bridge, direction, &bridge->sampling, &process));
    walker = bridge->workers[0].walker;
    process.steps = &one;
    for (int64_t r = 0, rows; r < n; r += rows) {
        double time = (double)t[r];

        for (rows = 1; rows < DSB_CHUNK && r + rows < n && t[r + rows] == t[r];) {
            rows++;
        }
        DSB_REQUIRE(time >= 0.0 && time <= bridge->schedule.t[bridge->schedule.n] * (1.0 + 1e-6),
                    "t must lie in [0, %g], got %g", bridge->schedule.t[bridge->schedule.n], time);
        if (continuous || process.weights == NULL) {
            label = dsb_schedule_label(&bridge->schedule, time);
        } else {
            int j = dsb_schedule_find(&bridge->schedule, direction, time);

            DSB_REQUIRE(j >= 0,
                        "t = %g is no state that the %s process leaves; a net with output='drift' "
                        "and convention='grid' answers at any t",
                        time, direction == DSB_BACKWARD ? "backward" : "forward");
            g = steps->g[j];
            label = steps->label[j];
        }
        dsb_walker_load(walker, x + r * dim, (int)rows);
        dsb_walker_drift(walker, &process, 0, (int)rows, walker->mean);
        dsb_walker_store(walker, walker->mean, (int)rows, out + r * dim);
    }
    return DSB_OK;
}
