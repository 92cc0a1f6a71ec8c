/* The pool: a process's worker threads.
 *
 * Purpose: runs n independent tasks; which worker takes which task is left to chance, so a task's
 * result may depend on its number only. A worker's index (0 = the caller) selects its scratch memory.
 * Threads: several callers may run at once; while one holds the pool the others work alone, with the
 * same results. A child of fork() starts with no workers and makes its own.
 */
#ifndef DSB_BASE_POOL_H
#define DSB_BASE_POOL_H

#include <stdint.h>

#include "base/status.h"

#define DSB_MAX_THREADS 256

typedef void (*dsb_task)(void *context, int64_t task, int worker);

/* Runs task 0 .. n-1 on at most `max_workers` workers and returns when all are done. */
void dsb_pool_run(int max_workers, int64_t n, dsb_task run, void *context);

/* The number of threads in use, the caller's included; by default one for each processor granted. */
int dsb_pool_threads(void);
dsb_status dsb_pool_set_threads(int threads) DSB_MUST_CHECK;

#endif
