/* Long parallel work that can be stopped.
 *
 * Purpose: runs n tasks in parallel calls that take about DSB_CALL_SECONDS each, and asks between them
 * whether to stop. How many tasks go into a call follows from the time that the last one took; a task's
 * result depends on its number only. Ownership: none. Threads: one caller.
 */
#ifndef DSB_BRIDGE_CHUNKS_H
#define DSB_BRIDGE_CHUNKS_H

#include <stdbool.h>

#include "backend.h"

#define DSB_CALL_SECONDS 0.02

/* Asks whether to stop (true). Called between parallel calls, on the caller's thread. */
typedef struct dsb_tick {
    bool (*stop)(void *context);
    void *context;
} dsb_tick;

/* DSB_ERR_INTERRUPTED where the tick stopped it. */
dsb_status dsb_run_chunks(const dsb_backend *be, int max_workers, int64_t n, dsb_task run,
                          void *context, dsb_tick tick) DSB_MUST_CHECK;

#endif
