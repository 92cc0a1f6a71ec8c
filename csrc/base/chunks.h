/* Long parallel work that can be stopped.
 *
 * Purpose: runs n tasks in parallel calls that take about DSB_CALL_SECONDS each, and asks between them
 * whether to stop. How many tasks go into a call follows from the time that the last one took; a task's
 * result depends on its number only. A task that takes long by itself asks the watch. Ownership: none.
 * Threads: one caller.
 */
#ifndef DSB_BASE_CHUNKS_H
#define DSB_BASE_CHUNKS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/pool.h"
#include "base/status.h"

#define DSB_CALL_SECONDS 0.02

/* Asks whether to stop (true). Called on the caller's thread, and often: it decides itself how seldom it
 * looks. */
typedef struct dsb_tick {
    bool (*stop)(void *context);
    void *context;
} dsb_tick;

/* A tick that tasks may ask while they run. */
typedef struct dsb_watch {
    dsb_tick tick; /* .stop NULL: never stops */
    _Atomic bool stopped;
} dsb_watch;

/* Whether to leave the work undone. Worker 0, which runs on the caller's thread, asks the tick; the others
 * hear of it. */
bool dsb_watch_stopped(dsb_watch *watch, int worker);

/* How a backend runs n tasks: dsb_pool_run, for one. */
typedef void (*dsb_parallel)(int max_workers, int64_t n, dsb_task run, void *context);

/* DSB_ERR_INTERRUPTED where the tick stopped it. */
dsb_status dsb_run_chunks(dsb_parallel parallel, int max_workers, int64_t n, dsb_task run,
                          void *context, dsb_watch *watch) DSB_MUST_CHECK;

#endif
