#include "bridge/cache.h"

#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

int64_t
dsb_cache_units(const dsb_cache_shape *shape, int steps)
{
    int64_t reads = (int64_t)steps * shape->batch / shape->group;

    return (reads + shape->reuse - 1) / shape->reuse;
}

static int64_t
paths_of(const dsb_cache_shape *shape, int steps)
{
    return (dsb_cache_units(shape, steps) + shape->n - 1) / shape->n;
}

int64_t
dsb_cache_stored(const dsb_cache_shape *shape, int steps)
{
    return shape->supply == DSB_SIMULATED ? paths_of(shape, steps) * shape->n
                                          : dsb_cache_units(shape, steps);
}

static int64_t
capacity_of(const dsb_cache_shape *shape)
{
    return dsb_cache_stored(shape, shape->refresh) * shape->group;
}

bool
dsb_cache_countable(const dsb_cache_shape *shape)
{
    return capacity_of(shape) <= UINT32_MAX;
}

int64_t
dsb_cache_draws(const dsb_cache_shape *shape, int64_t steps)
{
    int64_t each = shape->supply == DSB_SIMULATED ? paths_of(shape, shape->refresh)
                                                  : dsb_cache_units(shape, shape->refresh);

    return ((steps + shape->refresh - 1) / shape->refresh) * each;
}

size_t
dsb_cache_bytes(const dsb_cache_shape *shape)
{
    return sizeof(float) * (size_t)(capacity_of(shape) * dsb_window_row(shape->dim));
}

dsb_status
dsb_cache_init(dsb_cache *cache, const dsb_backend *be, const dsb_cache_shape *shape)
{
    *cache = (dsb_cache){.be = be, .shape = *shape, .filled_half_bridge = -1};
    cache->window.dim = shape->dim;
    cache->capacity = capacity_of(shape);
    DSB_TRY(be->alloc(sizeof(int32_t) * DSB_MAX_CHUNK * DSB_MAX_THREADS, &cache->k));
    DSB_TRY(be->alloc(sizeof(float) * 12 * (size_t)shape->n, &cache->next));
    cache->state = cache->next;
    cache->noise = cache->mean = cache->next + 3 * shape->n;
    cache->target = cache->mix = cache->mean + 3 * shape->n;
    cache->gtw = cache->mix + 3 * shape->n;
    return DSB_OK;
}

void
dsb_cache_clear(dsb_cache *cache)
{
    if (cache->be != NULL) {
        cache->be->free(cache->window.rows);
        cache->be->free(cache->k);
        cache->be->free(cache->next);
    }
    *cache = (dsb_cache){.be = NULL};
}

/* One fill in progress. */
typedef struct filling {
    dsb_cache *cache;
    const dsb_fill *fill;
    int64_t total;      /* paths, or units that need none */
    int64_t first_path; /* number of the window's first within the half-bridge */
} filling;

static void
put(const filling *f, dsb_walker *walker, int rows, const float *x, const float *target,
    const float *gtw, const int32_t *k, int64_t unit, int member)
{
    int group = f->cache->shape.group;

    walker->be->window_put(NULL, f->fill->output, rows, x, walker->ld, target, walker->ld, gtw, k,
                           walker->ids, &f->cache->window, unit * group + member, group);
}

/* Number of rows of a task, whose first is `first` of the window. */
static int
rows_of(const filling *f, const dsb_walker *walker, int64_t first)
{
    return f->total - first < walker->chunk ? (int)(f->total - first) : walker->chunk;
}

static void
draw_starts(const filling *f, dsb_walker *walker, int64_t first, int rows, float *x)
{
    uint32_t h = (uint32_t)f->fill->half_bridge;
    dsb_starts starts = {f->fill->seed, dsb_stream_word(DSB_STREAM_ORDER, h),
                         dsb_stream_word(DSB_STREAM_PRIOR, h)};

    dsb_source_draw(f->fill->source, &starts, first, rows, x, walker->ld, walker->noise, walker->ld,
                    walker->ids);
}

/* x' = mean + factor noise into the walker's state, and the pair's row into the window. */
static void
supply(const filling *f, dsb_walker *walker, int j, int rows, int64_t unit, int member,
       float factor)
{
    const dsb_fill *fill = f->fill;
    int dim = (int)walker->dim;
    int64_t ld = walker->ld;

    walker->be->combine(NULL, rows, dim, 1.0f, walker->mean, ld, factor, walker->noise, ld, 0.0f,
                        NULL, walker->x, ld);
    fill->objective->target(walker, fill->process, j, rows, walker->kept, walker->mean,
                            walker->target);
    put(f, walker, rows, walker->x, walker->target, f->cache->gtw + 3 * j, NULL, unit, member);
}

/* A chunk of paths, all steps; unit j * paths + path is the pair of step j. The antithetic partner
 * 2 mean - x' goes first, so that the state goes on from x'. */
static void
simulate_chunk(void *context, int64_t task, int worker)
{
    const filling *f = context;
    const dsb_fill *fill = f->fill;
    dsb_walker *walker = fill->walkers[worker];
    const dsb_backend *be = walker->be;
    int64_t path = task * walker->chunk, first = f->first_path + path;
    int rows = rows_of(f, walker, path);

    draw_starts(f, walker, first, rows, walker->x);
    for (int j = 0; j < fill->process->steps->n && !dsb_watch_stopped(fill->watch, worker); j++) {
        dsb_draw at = {fill->seed, dsb_stream_word(DSB_STREAM_NOISE, (uint32_t)fill->half_bridge),
                       (uint32_t)j, (uint32_t)first};
        int64_t unit = j * f->total + path;
        float factor;

        be->copy(NULL, rows, (int)walker->dim, dsb_float_slot(walker->x, walker->ld), 0,
                 dsb_float_slot(walker->kept, walker->ld));
        dsb_walker_mean(walker, fill->process, j, rows, walker->mean);
        factor = dsb_walker_noise(walker, fill->process, &at, j, rows);
        if (f->cache->shape.group == 2) {
            supply(f, walker, j, rows, unit, 1, -factor);
        }
        supply(f, walker, j, rows, unit, 0, factor);
    }
}

/* ---- between two ends ---- */

/* States between the ends of paths, starts in `kept` and ends in x, for the steps k[r]; their noise stands
 * in `noise`, which an antithetic partner turns over. */
static void
supply_pinned(const filling *f, dsb_walker *walker, const int32_t *k, int rows, int64_t unit)
{
    const dsb_cache *cache = f->cache;
    const dsb_backend *be = walker->be;
    const float *m = f->fill->process->reference->mean;
    int dim = (int)walker->dim;
    int64_t ld = walker->ld;

    be->combine_by_step(NULL, rows, dim, cache->state, k, walker->kept, ld, walker->x, ld, m,
                        walker->mean, ld);
    for (int member = 0; member < cache->shape.group; member++) {
        if (member == 1) {
            be->combine(NULL, rows, dim, -1.0f, walker->noise, ld, 0.0f, NULL, 0, 0.0f, NULL,
                        walker->noise, ld);
        }
        be->combine_by_step(NULL, rows, dim, cache->noise, k, walker->mean, ld, walker->noise, ld,
                            NULL, walker->mean2, ld);
        be->combine_by_step(NULL, rows, dim, cache->target, k, walker->mean2, ld, walker->kept, ld,
                            m, walker->target, ld);
        put(f, walker, rows, walker->mean2, walker->target, cache->gtw, k, unit, member);
    }
}

/* A chunk of paths to their ends; then unit j * paths + path is a draw between these. */
static void
simulate_ends_chunk(void *context, int64_t task, int worker)
{
    const filling *f = context;
    const dsb_fill *fill = f->fill;
    dsb_walker *walker = fill->walkers[worker];
    const dsb_backend *be = walker->be;
    uint32_t h = (uint32_t)fill->half_bridge;
    int64_t path = task * walker->chunk, first = f->first_path + path, ld = walker->ld;
    int rows = rows_of(f, walker, path), dim = (int)walker->dim, n = fill->process->steps->n;
    int32_t steps[DSB_MAX_CHUNK], *k = f->cache->k + worker * DSB_MAX_CHUNK;

    draw_starts(f, walker, first, rows, walker->x);
    be->copy(NULL, rows, dim, dsb_float_slot(walker->x, ld), 0, dsb_float_slot(walker->kept, ld));
    for (int j = 0; j < n && !dsb_watch_stopped(fill->watch, worker); j++) {
        dsb_draw at = {fill->seed, dsb_stream_word(DSB_STREAM_NOISE, h), (uint32_t)j,
                       (uint32_t)first};

        dsb_walker_step(walker, fill->process, &at, j, rows);
    }
    for (int j = 0; j < n && !dsb_watch_stopped(fill->watch, worker); j++) {
        dsb_draw at = {fill->seed, dsb_stream_word(DSB_STREAM_PINNED, h), (uint32_t)j,
                       (uint32_t)first};

        for (int r = 0; r < rows; r++) {
            steps[r] = j;
        }
        be->upload(k, steps, sizeof *steps * (size_t)rows);
        be->normals(NULL, &at, rows, dim, walker->noise, ld);
        supply_pinned(f, walker, k, rows, j * f->total + path);
    }
}

/* ---- without simulation ---- */

/* Steps of units first .., uniform, and normals for them. */
static const int32_t *
draw_steps(const filling *f, dsb_walker *walker, int64_t first, int rows, int worker)
{
    uint32_t stream = dsb_stream_word(DSB_STREAM_PAIR, (uint32_t)f->fill->half_bridge), bits[4];
    int32_t steps[DSB_MAX_CHUNK], *k = f->cache->k + worker * DSB_MAX_CHUNK;
    dsb_draw at = {f->fill->seed, stream, 1, (uint32_t)first};

    for (int r = 0; r < rows; r++) {
        dsb_philox(f->fill->seed, stream, 0, (uint32_t)(first + r), 0, bits);
        steps[r] = (int32_t)dsb_uniform_below(bits[0], (uint32_t)f->cache->shape.n);
    }
    walker->be->upload(k, steps, sizeof *steps * (size_t)rows);
    walker->be->normals(NULL, &at, rows, (int)walker->dim, walker->noise, walker->ld);
    return k;
}

/* A chunk of independent pairs of the reference: X_0, k uniform, then X_{k+1} and E[X_k | X_0, X_{k+1}]. */
static void
draw_chunk(void *context, int64_t task, int worker)
{
    const filling *f = context;
    const dsb_fill *fill = f->fill;
    const dsb_cache *cache = f->cache;
    dsb_walker *walker = fill->walkers[worker];
    const dsb_backend *be = walker->be;
    const float *m = fill->process->reference->mean;
    int64_t unit = task * walker->chunk, first = f->first_path + unit, ld = walker->ld;
    int rows = rows_of(f, walker, unit), dim = (int)walker->dim;
    const int32_t *k;

    draw_starts(f, walker, first, rows, walker->kept);
    k = draw_steps(f, walker, first, rows, worker);
    for (int member = 0; member < cache->shape.group; member++) {
        if (member == 1) {
            be->combine(NULL, rows, dim, -1.0f, walker->noise, ld, 0.0f, NULL, 0, 0.0f, NULL,
                        walker->noise, ld);
        }
        be->combine_by_step(NULL, rows, dim, cache->next, k, walker->kept, ld, walker->noise, ld, m,
                            walker->x, ld);
        be->combine_by_step(NULL, rows, dim, cache->mean, k, walker->kept, ld, walker->noise, ld, m,
                            walker->mean, ld);
        fill->objective->closed_form(walker, rows, cache->mix, k, walker->mean, walker->target);
        put(f, walker, rows, walker->x, walker->target, cache->gtw, k, unit, member);
    }
}

/* A chunk of states between points of both ends, each with ends and a step of its own. Rows that belong
 * together are drawn in one order. */
static void
draw_ends_chunk(void *context, int64_t task, int worker)
{
    const filling *f = context;
    const dsb_fill *fill = f->fill;
    dsb_walker *walker = fill->walkers[worker];
    int64_t unit = task * walker->chunk, first = f->first_path + unit, ld = walker->ld;
    int rows = rows_of(f, walker, unit);
    uint32_t h = (uint32_t)fill->half_bridge;
    bool together = f->cache->shape.supply == DSB_ROW_BY_ROW;
    dsb_starts starts = {fill->seed,
                         dsb_stream_word(together ? DSB_STREAM_ORDER : DSB_STREAM_FAR, h),
                         dsb_stream_word(DSB_STREAM_FAR, h)};
    const int32_t *k;

    dsb_source_draw(fill->far, &starts, first, rows, walker->x, ld, walker->noise, ld, walker->ids);
    draw_starts(f, walker, first, rows, walker->kept);
    k = draw_steps(f, walker, first, rows, worker);
    supply_pinned(f, walker, k, rows, unit);
}

static bool
pins(const dsb_cache *cache, const dsb_fill *fill)
{
    return cache->shape.supply == DSB_SIMULATED ? fill->objective->supplier == DSB_END_POINTS
                                                : cache->shape.supply != DSB_CLOSED_FORM;
}

/* The tables are small; they are made again for each window. */
static dsb_status
upload_tables(dsb_cache *cache, const dsb_fill *fill, const dsb_schedule *schedule)
{
    size_t n = (size_t)cache->shape.n;
    float *host;

    DSB_TRY(dsb_alloc(sizeof(float) * 12 * n, &host));
    if (pins(cache, fill)) {
        memcpy(host, fill->pinned->table, sizeof(float) * 9 * n);
    } else if (cache->shape.supply == DSB_CLOSED_FORM) {
        dsb_reference_tables(fill->process->reference, schedule, host, host + 3 * n, host + 6 * n);
    }
    memcpy(host + 9 * n, fill->process->steps->train_gtw, sizeof(float) * 3 * n);
    cache->be->upload(cache->next, host, sizeof(float) * 12 * n);
    dsb_free(host);
    return DSB_OK;
}

dsb_status
dsb_cache_fill(dsb_cache *cache, const dsb_fill *fill, const dsb_schedule *schedule)
{
    const dsb_cache_shape *shape = &cache->shape;
    filling f = {.cache = cache,
                 .fill = fill,
                 .total = shape->supply == DSB_SIMULATED ? paths_of(shape, fill->steps)
                                                         : dsb_cache_units(shape, fill->steps),
                 .first_path = dsb_cache_draws(shape, fill->window * shape->refresh)};
    dsb_task chunk = shape->supply == DSB_CLOSED_FORM ? draw_chunk
                     : shape->supply != DSB_SIMULATED ? draw_ends_chunk
                     : pins(cache, fill)              ? simulate_ends_chunk
                                                      : simulate_chunk;

    if (cache->filled_half_bridge == fill->half_bridge && cache->filled_window == fill->window &&
        cache->filled_steps == fill->steps) {
        return DSB_OK;
    }
    cache->filled_half_bridge = -1;
    if (cache->window.rows == NULL) {
        DSB_TRY(
            cache->be->alloc(sizeof(float) * (size_t)(cache->capacity * dsb_window_row(shape->dim)),
                             &cache->window.rows));
    }
    DSB_TRY(upload_tables(cache, fill, schedule));
    DSB_TRY(dsb_run_chunks(cache->be->parallel, fill->n_walkers,
                           dsb_chunks(f.total, fill->walkers[0]->chunk), chunk, &f, fill->watch));
    if (shape->supply == DSB_SIMULATED && fill->process->weights != NULL) {
        cache->evaluated +=
            f.total * shape->n * (1 + (fill->objective->evaluates ? shape->group : 0));
    }
    cache->filled_half_bridge = fill->half_bridge;
    cache->filled_window = fill->window;
    cache->filled_steps = fill->steps;
    return DSB_OK;
}

dsb_read_order
dsb_cache_order(const dsb_cache *cache, uint64_t seed)
{
    return (dsb_read_order){
        .seed = seed,
        .stream = dsb_stream_word(DSB_STREAM_SHUFFLE, (uint32_t)cache->filled_half_bridge),
        .window = (uint32_t)cache->filled_window,
        .units = dsb_cache_units(&cache->shape, cache->filled_steps),
        .stored = dsb_cache_stored(&cache->shape, cache->filled_steps),
        .group = cache->shape.group,
    };
}
