#include "base/chunks.h"

#include "base/clock.h"

typedef struct call {
    dsb_task run;
    void *context;
    int64_t first;
} call;

static void
run_task(void *context, int64_t task, int worker)
{
    const call *c = context;

    c->run(c->context, c->first + task, worker);
}

bool
dsb_watch_stopped(dsb_watch *watch, int worker)
{
    if (worker == 0 && !watch->stopped && watch->tick.stop != NULL &&
        watch->tick.stop(watch->tick.context)) {
        watch->stopped = true;
    }
    return watch->stopped;
}

dsb_status
dsb_run_chunks(dsb_parallel parallel, int max_workers, int64_t n, dsb_task run, void *context,
               dsb_watch *watch)
{
    call c = {run, context, 0};
    int64_t span = max_workers;

    while (c.first < n) {
        int64_t now = n - c.first < span ? n - c.first : span;
        double start = dsb_seconds(), took;

        parallel(max_workers, now, run_task, &c);
        c.first += now;
        if (dsb_watch_stopped(watch, 0)) {
            return DSB_ERR_INTERRUPTED;
        }
        took = dsb_seconds() - start;
        if (took < DSB_CALL_SECONDS / 2.0) {
            span *= 2;
        } else if (took > DSB_CALL_SECONDS * 2.0 && span > max_workers) {
            span /= 2;
        }
    }
    return DSB_OK;
}
