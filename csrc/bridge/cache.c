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
    return shape->closed_form ? dsb_cache_units(shape, steps) : paths_of(shape, steps) * shape->n;
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
    int64_t each = shape->closed_form ? dsb_cache_units(shape, shape->refresh)
                                      : paths_of(shape, shape->refresh);

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
    cache->mean = cache->next + 3 * shape->n;
    cache->mix = cache->mean + 3 * shape->n;
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
    int64_t total;      /* paths, or units in closed form */
    int64_t first_path; /* number of the window's first within the half-bridge */
    const float *gtw;   /* device copy of the trainee's table */
} filling;

static void
put(const filling *f, dsb_walker *walker, int rows, const float *x, const float *target,
    const float *gtw, const int32_t *k, int64_t unit, int member)
{
    int group = f->cache->shape.group;

    walker->be->window_put(NULL, f->fill->output, rows, x, walker->ld, target, walker->ld, gtw, k,
                           walker->ids, &f->cache->window, unit * group + member, group);
}

/* x' = mean + sign deviation z into the walker's state, and the pair's row into the window. */
static void
supply(const filling *f, dsb_walker *walker, int j, int rows, int64_t unit, int member, float sign)
{
    const dsb_fill *fill = f->fill;
    int dim = (int)walker->dim;
    int64_t ld = walker->ld;

    walker->be->combine(NULL, rows, dim, 1.0f, walker->mean, ld,
                        sign * (float)fill->process->steps->deviation[j], walker->noise, ld, 0.0f,
                        NULL, walker->x, ld);
    fill->objective->target(walker, fill->process, j, rows, walker->kept, walker->mean,
                            walker->target);
    put(f, walker, rows, walker->x, walker->target, f->gtw + 3 * j, NULL, unit, member);
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
    uint32_t h = (uint32_t)fill->half_bridge;
    int64_t path = task * walker->chunk, first = f->first_path + path;
    int rows = f->total - path < walker->chunk ? (int)(f->total - path) : walker->chunk;
    dsb_starts starts = {fill->seed, dsb_stream_word(DSB_STREAM_ORDER, h),
                         dsb_stream_word(DSB_STREAM_PRIOR, h)};

    dsb_source_draw(fill->source, &starts, first, rows, walker->x, walker->ld, walker->noise,
                    walker->ld, walker->ids);
    for (int j = 0; j < fill->process->steps->n && !dsb_watch_stopped(fill->watch, worker); j++) {
        dsb_draw at = {fill->seed, dsb_stream_word(DSB_STREAM_NOISE, h), (uint32_t)j,
                       (uint32_t)first};
        int64_t unit = j * f->total + path;

        be->copy(NULL, rows, (int)walker->dim, dsb_float_slot(walker->x, walker->ld), 0,
                 dsb_float_slot(walker->kept, walker->ld));
        dsb_walker_mean(walker, fill->process, j, rows, walker->mean);
        be->normals(NULL, &at, rows, (int)walker->dim, walker->noise, walker->ld);
        if (f->cache->shape.group == 2) {
            supply(f, walker, j, rows, unit, 1, -1.0f);
        }
        supply(f, walker, j, rows, unit, 0, 1.0f);
    }
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
    uint32_t h = (uint32_t)fill->half_bridge, stream = dsb_stream_word(DSB_STREAM_PAIR, h), bits[4];
    int64_t unit = task * walker->chunk, first = f->first_path + unit, ld = walker->ld;
    int rows = f->total - unit < walker->chunk ? (int)(f->total - unit) : walker->chunk,
        dim = (int)walker->dim;
    int32_t steps[DSB_MAX_CHUNK], *k = cache->k + worker * DSB_MAX_CHUNK;
    dsb_starts starts = {fill->seed, dsb_stream_word(DSB_STREAM_ORDER, h),
                         dsb_stream_word(DSB_STREAM_PRIOR, h)};
    dsb_draw at = {fill->seed, stream, 1, (uint32_t)first};

    for (int r = 0; r < rows; r++) {
        dsb_philox(fill->seed, stream, 0, (uint32_t)(first + r), 0, bits);
        steps[r] = (int32_t)dsb_uniform_below(bits[0], (uint32_t)cache->shape.n);
    }
    be->upload(k, steps, sizeof *steps * (size_t)rows);
    dsb_source_draw(fill->source, &starts, first, rows, walker->kept, ld, walker->noise, ld,
                    walker->ids);
    be->normals(NULL, &at, rows, dim, walker->noise, ld);
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

/* The tables of the reference and of the trained net are small; they are made again for each window. */
static dsb_status
upload_tables(dsb_cache *cache, const dsb_fill *fill, const dsb_schedule *schedule)
{
    size_t n = (size_t)cache->shape.n;
    float *host;

    DSB_TRY(dsb_alloc(sizeof(float) * 12 * n, &host));
    if (schedule != NULL) {
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
                 .gtw = cache->gtw,
                 .first_path = dsb_cache_draws(shape, fill->window * shape->refresh)};

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
    DSB_TRY(upload_tables(cache, fill, shape->closed_form ? schedule : NULL));
    f.total =
        shape->closed_form ? dsb_cache_units(shape, fill->steps) : paths_of(shape, fill->steps);
    DSB_TRY(dsb_run_chunks(cache->be->parallel, fill->n_walkers,
                           dsb_chunks(f.total, fill->walkers[0]->chunk),
                           shape->closed_form ? draw_chunk : simulate_chunk, &f, fill->watch));
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
