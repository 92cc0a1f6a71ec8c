#include "bridge/residuals.h"

#include "base/memory.h"
#include "base/philox.h"

/* One estimate in progress. */
typedef struct estimating {
    const dsb_residuals *asked;
    dsb_noise *out;
    dsb_moments moments;
    int64_t dim, ld;
    float *paths;       /* device [3][paths, ld], in which lie: */
    float *state, *end; /* states of paths; starts and ends of those that are pinned */
    float *res, *nz;    /* residuals, R's or m - R; the noise of the step */
    int j;              /* the generator's step */
} estimating;

static size_t
path_bytes(const dsb_estimate *estimate, int64_t dim)
{
    return 3 * sizeof(float) * (size_t)(estimate->paths * dsb_pitch(dim));
}

size_t
dsb_residuals_bytes(const dsb_estimate *estimate, int n, int64_t dim, int workers)
{
    dsb_covariance kind = estimate->kind;
    size_t work = dsb_noise_work_bytes(kind, n, dim, workers),
           sums = path_bytes(estimate, dim) + dsb_moments_bytes(kind, dim, workers);

    return work > sums ? work : sums; /* the sums are over when their results are settled */
}

/* Whether both ends are drawn, and not one from the other. */
static bool
draws_ends(const dsb_residuals *residuals)
{
    return residuals->supply == DSB_INDEPENDENT || residuals->supply == DSB_ROW_BY_ROW;
}

int64_t
dsb_residuals_evaluations(const dsb_residuals *residuals)
{
    int nets = residuals->generator->weights != NULL && !draws_ends(residuals) ? 2 : 1;

    return (int64_t)nets * residuals->estimate.paths * residuals->schedule->n;
}

/* ---- trajectories ---- */

/* Rows of a task, whose first path is `first`. */
static int
rows_of(const estimating *e, int64_t first)
{
    int64_t left = e->asked->estimate.paths - first, chunk = e->asked->walkers[0]->chunk;

    return (int)(left < chunk ? left : chunk);
}

static void
draw(const estimating *e, const dsb_source *source, dsb_stream_id stream, int64_t first,
     dsb_walker *walker, float *x)
{
    uint32_t word = dsb_stream_word(stream, (uint32_t)e->asked->half_bridge);
    dsb_starts starts = {e->asked->seed, word, word};

    dsb_source_draw(source, &starts, first, rows_of(e, first), x, e->ld, walker->noise, walker->ld,
                    walker->ids);
}

static dsb_draw
draw_at(const estimating *e, int step, int64_t path)
{
    return (dsb_draw){e->asked->seed,
                      dsb_stream_word(DSB_STREAM_RESIDUAL, (uint32_t)e->asked->half_bridge),
                      (uint32_t)step, (uint32_t)path};
}

static void
start_chunk(void *context, int64_t task, int worker)
{
    const estimating *e = context;
    dsb_walker *walker = e->asked->walkers[worker];
    int64_t first = task * walker->chunk;

    draw(e, e->asked->start, DSB_STREAM_RESIDUAL_START, first, walker, e->state + first * e->ld);
}

/* One step of a chunk of paths, Y_j to Y_{j+1}, with Y_j - R(Y_{j+1}) in res and its noise in nz. */
static void
step_chunk(void *context, int64_t task, int worker)
{
    const estimating *e = context;
    const dsb_residuals *asked = e->asked;
    dsb_walker *walker = asked->walkers[worker];
    const dsb_backend *be = walker->be;
    int64_t ld = e->ld, first = task * walker->chunk;
    int rows = rows_of(e, first), dim = (int)e->dim;
    float *y = e->state + first * ld;
    dsb_draw at = draw_at(e, e->j, first);

    be->copy(NULL, rows, dim, dsb_float_slot(y, ld), 0, dsb_float_slot(walker->x, ld));
    dsb_walker_step(walker, asked->generator, &at, e->j, rows);
    be->combine(NULL, rows, dim, 1.0f, walker->x, ld, -1.0f, walker->mean, ld, 0.0f, NULL,
                e->nz + first * ld, ld);
    dsb_walker_mean(walker, asked->learnt, e->out->n - 1 - e->j, rows, walker->mean);
    be->combine(NULL, rows, dim, 1.0f, y, ld, -1.0f, walker->mean, ld, 0.0f, NULL,
                e->res + first * ld, ld);
    be->copy(NULL, rows, dim, dsb_float_slot(walker->x, ld), 0, dsb_float_slot(y, ld));
}

/* ---- between ends ---- */

/* A chunk of pairs of ends, as the half-bridge had them, into state and end. */
static void
ends_chunk(void *context, int64_t task, int worker)
{
    const estimating *e = context;
    const dsb_residuals *asked = e->asked;
    dsb_walker *walker = asked->walkers[worker];
    int64_t ld = e->ld, first = task * walker->chunk;
    int rows = rows_of(e, first), dim = (int)e->dim;
    dsb_slot start = dsb_float_slot(e->state + first * ld, ld),
             end = dsb_float_slot(e->end + first * ld, ld), x = dsb_float_slot(walker->x, ld);

    start_chunk(context, task, worker);
    if (draws_ends(asked)) { /* rows that belong together are drawn in one order */
        draw(e, asked->far,
             asked->supply == DSB_ROW_BY_ROW ? DSB_STREAM_RESIDUAL_START : DSB_STREAM_RESIDUAL_FAR,
             first, walker, end.data);
        return;
    }
    walker->be->copy(NULL, rows, dim, start, 0, x);
    for (int j = 0; j < e->out->n && !dsb_watch_stopped(asked->watch, worker); j++) {
        dsb_draw at = draw_at(e, j, first);

        dsb_walker_step(walker, asked->generator, &at, j, rows);
    }
    walker->be->copy(NULL, rows, dim, x, 0, end);
}

/* A draw between the ends of each path of a chunk, and m - R there in res. */
static void
pin_chunk(void *context, int64_t task, int worker)
{
    const estimating *e = context;
    const dsb_residuals *asked = e->asked;
    dsb_walker *walker = asked->walkers[worker];
    const dsb_backend *be = walker->be;
    int64_t ld = e->ld, first = task * walker->chunk;
    int rows = rows_of(e, first), dim = (int)e->dim, n = e->out->n;
    const float *m = asked->generator->reference->mean, *start = e->state + first * ld,
                *end = e->end + first * ld, *state = asked->pinned->table + 3 * e->j,
                *noise = state + 3 * n, *target = noise + 3 * n;
    dsb_draw at = draw_at(e, n + e->j, first);

    be->combine(NULL, rows, dim, state[0], start, ld, state[1], end, ld, state[2], m, walker->mean,
                ld);
    be->normals(NULL, &at, rows, dim, walker->noise, ld);
    be->combine(NULL, rows, dim, noise[0], walker->mean, ld, noise[1], walker->noise, ld, 0.0f,
                NULL, walker->x, ld);
    be->combine(NULL, rows, dim, target[0], walker->x, ld, target[1], start, ld, target[2], m,
                walker->target, ld);
    dsb_walker_mean(walker, asked->learnt, n - 1 - e->j, rows, walker->mean);
    be->combine(NULL, rows, dim, 1.0f, walker->target, ld, -1.0f, walker->mean, ld, 0.0f, NULL,
                e->res + first * ld, ld);
}

/* ---- the estimate ---- */

/* `run` for all chunks of paths. */
static dsb_status
for_paths(estimating *e, dsb_task run)
{
    const dsb_residuals *asked = e->asked;

    return dsb_run_chunks(e->out->be->parallel, asked->n_walkers,
                          dsb_chunks(asked->estimate.paths, asked->walkers[0]->chunk), run, e,
                          asked->watch);
}

static dsb_status
estimate_step(estimating *e)
{
    const dsb_residuals *asked = e->asked;
    const dsb_noise *noise = asked->generator->noise;
    int k = dsb_step_in_time(asked->generator->direction, e->out->n, e->j);
    int64_t at = k * dsb_covariance_size(e->out->kind, e->dim);
    bool pinned = asked->pinned != NULL, finite;

    DSB_TRY(for_paths(e, pinned ? pin_chunk : step_chunk));
    DSB_TRY(dsb_moments_take(&e->moments, e->res, e->nz, asked->watch, &finite));
    if (!finite) {
        return DSB_FAIL(DSB_ERR_NUMERIC,
                        "NaN, infinity or overflow in the covariance of step %d, at the end of the "
                        "%s half-bridge of iteration %lld; the nets stand as after its last "
                        "gradient step (go on from an earlier checkpoint with a lower learning "
                        "rate, or with clip=)",
                        k, dsb_direction_name(asked->learnt->direction),
                        (long long)(asked->half_bridge / 2 + 1));
    }
    return dsb_moments_covariance(&e->moments, noise == NULL ? NULL : noise->values + at,
                                  pinned ? asked->pinned->variance[e->j]
                                         : 2.0 * asked->schedule->g[k],
                                  asked->watch, e->out->values + at);
}

static dsb_status
estimate(estimating *e)
{
    const dsb_residuals *asked = e->asked;
    const dsb_backend *be = e->out->be;
    bool pinned = asked->pinned != NULL;
    int64_t matrix = asked->estimate.paths * e->ld;

    DSB_TRY(be->alloc(path_bytes(&asked->estimate, e->dim), &e->paths));
    DSB_TRY(dsb_moments_init(&e->moments, be, e->out->kind, asked->estimate.paths, e->dim, !pinned,
                             asked->n_walkers));
    e->state = e->paths;
    e->res = e->paths + matrix;
    e->nz = e->end =
        e->paths + 2 * matrix; /* ends are for those that are pinned, which lack the other */
    DSB_TRY(for_paths(e, pinned ? ends_chunk : start_chunk));
    for (e->j = 0; e->j < e->out->n; e->j++) {
        DSB_TRY(estimate_step(e));
    }
    return DSB_OK;
}

/* Bounds the eigenvalues; the sums' memory is free again. */
static dsb_status
settle(const dsb_residuals *asked, dsb_noise *out)
{
    double *least;
    dsb_status status;

    DSB_TRY(dsb_alloc(sizeof *least * (size_t)out->n, &least));
    for (int k = 0; k < out->n; k++) {
        least[k] = DSB_LEAST_COVARIANCE * asked->schedule->g[k];
    }
    status = dsb_noise_settle(out, least, asked->n_walkers, asked->watch);
    dsb_free(least);
    return status;
}

dsb_status
dsb_residuals_run(const dsb_residuals *residuals, dsb_noise *out)
{
    const dsb_walker *walker = residuals->walkers[0];
    const dsb_backend *be = walker->be;
    estimating e = {.asked = residuals, .out = out, .dim = walker->dim, .ld = walker->ld};
    dsb_status status;

    DSB_TRY(dsb_noise_init(out, be, residuals->estimate.kind, residuals->schedule->n, walker->dim));
    status = estimate(&e);
    be->free(e.paths);
    dsb_moments_clear(&e.moments);
    if (status == DSB_OK) {
        status = settle(residuals, out);
    }
    if (status != DSB_OK) {
        dsb_noise_clear(out);
    }
    return status;
}
