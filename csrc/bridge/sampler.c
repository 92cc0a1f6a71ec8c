#include "bridge/sampler.h"

#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

#define SCRATCH 5 /* matrices of the state's shape */

static size_t
block_floats(const dsb_plan *infer_plan)
{
    int64_t dim = dsb_net_dim(infer_plan->net), rows = infer_plan->request.rows;

    return (size_t)(rows * (SCRATCH * dsb_pitch(dim) + dim));
}

size_t
dsb_walker_bytes(const dsb_plan *infer_plan)
{
    return infer_plan->bytes + block_floats(infer_plan) * sizeof(float);
}

dsb_status
dsb_walker_create(const dsb_plan *infer_plan, const dsb_backend *be, dsb_walker **out)
{
    int64_t dim = dsb_net_dim(infer_plan->net);
    int64_t matrix = infer_plan->request.rows * dsb_pitch(dim);
    dsb_walker *walker;
    dsb_status status;

    *out = NULL;
    DSB_TRY(dsb_alloc(sizeof *walker, &walker));
    walker->be = be;
    walker->dim = dim;
    walker->chunk = infer_plan->request.rows;
    walker->ld = dsb_pitch(dim);
    status = dsb_exec_create(infer_plan, be, &walker->exec);
    if (status == DSB_OK) {
        status = be->alloc(block_floats(infer_plan) * sizeof(float), &walker->block);
    }
    if (status != DSB_OK) {
        dsb_walker_destroy(walker);
        return status;
    }
    walker->x = walker->exec->inputs[DSB_PORT_X].data;
    walker->mean = walker->block;
    walker->mean2 = walker->mean + matrix;
    walker->noise = walker->mean2 + matrix;
    walker->target = walker->noise + matrix;
    walker->kept = walker->target + matrix;
    walker->compact = walker->kept + matrix;
    *out = walker;
    return DSB_OK;
}

void
dsb_walker_destroy(dsb_walker *walker)
{
    if (walker != NULL) {
        dsb_exec_destroy(walker->exec);
        walker->be->free(walker->block);
        dsb_free(walker);
    }
}

/* The output of the process' net (or of the reference, as a drift) at the walker's x, and its kind. */
static dsb_slot
evaluate(dsb_walker *walker, const dsb_process *process, int j, int rows, float *scratch,
         dsb_output *kind)
{
    const dsb_reference *reference = process->reference;

    if (process->weights == NULL) {
        walker->be->reference_drift(NULL, rows, (int)walker->dim, reference->mean,
                                    reference->precision, walker->x, walker->ld, scratch,
                                    walker->ld);
        *kind = DSB_OUTPUT_DRIFT;
        return dsb_float_slot(scratch, walker->ld);
    }
    if (walker->exec->inputs[DSB_PORT_T].data != NULL) {
        walker->be->upload(walker->exec->inputs[DSB_PORT_T].data, &process->steps->label[j],
                           sizeof(float));
    }
    dsb_exec_forward(walker->exec, process->weights, rows);
    *kind = process->output;
    return walker->exec->output;
}

void
dsb_walker_mean(dsb_walker *walker, const dsb_process *process, int j, int rows, float *mean)
{
    dsb_output kind;
    dsb_slot o = evaluate(walker, process, j, rows, mean, &kind);

    walker->be->mean_from_output(NULL, kind, rows, (int)walker->dim, (float)process->steps->g[j],
                                 walker->x, walker->ld, o.data, o.ld, mean, walker->ld);
}

void
dsb_walker_drift(dsb_walker *walker, const dsb_process *process, int j, int rows, float *drift)
{
    float inverse = (float)(1.0 / process->steps->g[j]);
    dsb_output kind;
    dsb_slot o = evaluate(walker, process, j, rows, drift, &kind);

    walker->be->combine(NULL, rows, (int)walker->dim, kind == DSB_OUTPUT_DRIFT ? 1.0f : inverse,
                        o.data, o.ld, -inverse, kind == DSB_OUTPUT_MEAN ? walker->x : NULL,
                        walker->ld, 0.0f, NULL, drift, walker->ld);
}

float
dsb_walker_noise(dsb_walker *walker, const dsb_process *process, const dsb_draw *at, int j,
                 int rows)
{
    const dsb_noise *noise = process->noise;
    bool full = noise != NULL && noise->kind == DSB_COVARIANCE_FULL;
    float *z = full ? walker->mean2 : walker->noise;

    walker->be->normals(NULL, at, rows, (int)walker->dim, z, walker->ld);
    return noise == NULL ? (float)process->steps->deviation[j]
                         : dsb_noise_shape(noise, dsb_step_in_time(process->direction, noise->n, j),
                                           rows, z, walker->noise, walker->ld);
}

void
dsb_walker_step(dsb_walker *walker, const dsb_process *process, const dsb_draw *at, int j, int rows)
{
    float factor = 0.0f;

    dsb_walker_mean(walker, process, j, rows, walker->mean);
    if (at != NULL) {
        factor = dsb_walker_noise(walker, process, at, j, rows);
    }
    walker->be->combine(NULL, rows, (int)walker->dim, 1.0f, walker->mean, walker->ld, factor,
                        at != NULL ? walker->noise : NULL, walker->ld, 0.0f, NULL, walker->x,
                        walker->ld);
}

void
dsb_walker_load(dsb_walker *walker, const float *host, int rows)
{
    walker->be->upload(walker->compact, host, sizeof(float) * (size_t)(rows * walker->dim));
    walker->be->copy(NULL, rows, (int)walker->dim, dsb_float_slot(walker->compact, walker->dim), 0,
                     dsb_float_slot(walker->x, walker->ld));
}

void
dsb_walker_store(dsb_walker *walker, const float *rows_of, int rows, float *host)
{
    walker->be->copy(NULL, rows, (int)walker->dim, dsb_float_slot(rows_of, walker->ld), 0,
                     dsb_float_slot(walker->compact, walker->dim));
    walker->be->download(host, walker->compact, sizeof(float) * (size_t)(rows * walker->dim));
}

/* State number `state` of each row of a path [n, steps + 1, dim]. */
static void
store_state(dsb_walker *walker, const dsb_sample_request *request, int64_t first, int rows,
            int states, int state)
{
    for (int r = 0; r < rows; r++) {
        dsb_walker_store(walker, walker->x + r * walker->ld, 1,
                         request->out + ((first + r) * states + state) * walker->dim);
    }
}

void
dsb_walker_sample(dsb_walker *walker, const dsb_process *process, const dsb_sample_request *request,
                  int64_t first, int rows, dsb_watch *watch, int worker)
{
    uint32_t direction = (uint32_t)process->direction;
    dsb_starts starts = {request->seed, dsb_stream_word(DSB_STREAM_START, direction),
                         dsb_stream_word(DSB_STREAM_START, 2 + direction)};
    int n = process->steps->n, dim = (int)walker->dim;
    int64_t ld = walker->ld;

    if (request->x != NULL) {
        dsb_walker_load(walker, request->x + first * dim, rows);
    } else {
        dsb_source_draw(request->start, &starts, first, rows, walker->x, ld, walker->noise, ld,
                        walker->ids);
    }
    if (request->paths) {
        store_state(walker, request, first, rows, n + 1, 0);
    }
    for (int j = 0; j < n && !dsb_watch_stopped(watch, worker); j++) {
        bool noisy = j + 1 < n || request->final_noise;
        dsb_draw at = {request->seed, dsb_stream_word(DSB_STREAM_SAMPLE, direction), (uint32_t)j,
                       (uint32_t)first};

        dsb_walker_step(walker, process, noisy ? &at : NULL, j, rows);
        if (request->paths) {
            store_state(walker, request, first, rows, n + 1, j + 1);
        }
    }
    if (!request->paths) {
        dsb_walker_store(walker, walker->x, rows, request->out + first * dim);
    }
}
