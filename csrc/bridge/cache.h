/* The cache: the training rows of one window of gradient steps.
 *
 * Purpose: window w of a half-bridge holds what its steps read and nothing else: paths of the other
 * direction simulated to both sides of every step, or to their ends and pinned there, or pairs that need no
 * simulation: of the reference in closed form, or pinned between points of both ends. Content depends on (seed, half-bridge, window) and the frozen other net only, so
 * it is never saved. Ownership: owns its rows. Threads: filled by all workers, each on its own chunks.
 */
#ifndef DSB_BRIDGE_CACHE_H
#define DSB_BRIDGE_CACHE_H

#include "base/chunks.h"
#include "bridge/objective.h"
#include "bridge/pinned.h"

/* Where the pairs of a half-bridge come from. */
typedef enum dsb_supply {
    DSB_SIMULATED,   /* paths of the other direction, n pairs each */
    DSB_CLOSED_FORM, /* pairs of the reference */
    DSB_INDEPENDENT, /* ends drawn apart from each other, a state between them */
    DSB_ROW_BY_ROW   /* the same row of both ends, a state between them */
} dsb_supply;

typedef struct dsb_cache_shape {
    int64_t dim;
    int batch, refresh, reuse;
    int group; /* rows of a unit: 1, or 2 for antithetic pairs */
    int n;     /* steps of a path */
    dsb_supply supply;
} dsb_cache_shape;

typedef struct dsb_cache {
    const dsb_backend *be;
    dsb_cache_shape shape;
    dsb_window window;
    int64_t capacity;              /* rows; they are allocated when the first window is filled */
    int32_t *k;                    /* steps of rows: [workers][DSB_MAX_CHUNK] */
    float *gtw;                    /* the trainee's table */
    float *next, *mean, *mix;      /* those of dsb_reference_tables, */
    float *state, *noise, *target; /* or those of dsb_pinned: the same memory */
    int64_t filled_half_bridge, filled_window; /* -1: nothing */
    int filled_steps;
    int64_t evaluated; /* rows that a net simulated with, in all windows so far */
} dsb_cache;

/* Everything that a fill reads. */
typedef struct dsb_fill {
    uint64_t seed;
    int64_t half_bridge, window;
    int steps;                      /* gradient steps that will read the window */
    const dsb_source *source, *far; /* where the other direction starts, and the trained one */
    const dsb_process *process;     /* the other direction */
    const dsb_objective *objective;
    const dsb_pinned *pinned; /* of the trained net */
    dsb_output output;        /* of the trained net */
    dsb_walker **walkers;
    int n_walkers;
    dsb_watch *watch;
} dsb_fill;

/* Units read by `steps` gradient steps, and units that are stored for them. */
int64_t dsb_cache_units(const dsb_cache_shape *shape, int steps);
int64_t dsb_cache_stored(const dsb_cache_shape *shape, int steps);
/* Whether a window's rows can be numbered with 32 bits; the sizes below are right only then. */
bool dsb_cache_countable(const dsb_cache_shape *shape);
/* Counters of Philox draws (paths, or units that need none) that `steps` gradient steps use up. */
int64_t dsb_cache_draws(const dsb_cache_shape *shape, int64_t steps);
size_t dsb_cache_bytes(const dsb_cache_shape *shape);

dsb_status dsb_cache_init(dsb_cache *cache, const dsb_backend *be,
                          const dsb_cache_shape *shape) DSB_MUST_CHECK;
void dsb_cache_clear(dsb_cache *cache);

/* Makes the cache hold this window, doing nothing when it does; `schedule` is that of
 * the closed form. DSB_ERR_INTERRUPTED leaves it empty. */
dsb_status dsb_cache_fill(dsb_cache *cache, const dsb_fill *fill,
                          const dsb_schedule *schedule) DSB_MUST_CHECK;

/* The order in which the filled window is read. */
dsb_read_order dsb_cache_order(const dsb_cache *cache, uint64_t seed);

#endif
