#include "exact/pair_sums.h"

#include "base/memory.h"

enum {
    ROWS = DSB_PAIR_ROWS, /* of a task: with two panels of columns they stay in a near cache */
    ENOUGH = 256,         /* tasks that keep any number of threads busy */
};

int64_t
dsb_panels_floats(int64_t n, int64_t dim)
{
    return dsb_pitch(n) * dim;
}

void
dsb_panels_pack(int64_t n, int64_t dim, const float *rows, float *panels)
{
    for (int64_t first = 0; first < n; first += DSB_PANEL) {
        float *panel = panels + first * dim;
        int64_t left = n - first < DSB_PANEL ? n - first : DSB_PANEL;

        for (int64_t c = 0; c < dim; c++) {
            for (int64_t i = 0; i < DSB_PANEL; i++) {
                panel[c * DSB_PANEL + i] = i < left ? rows[(first + i) * dim + c] : 0.0f;
            }
        }
    }
}

dsb_status
dsb_pairs_init(dsb_pairs *job, const dsb_backend *be, dsb_pair_function f, float scale, int64_t n,
               const float *x, int64_t m, const float *y, int64_t dim)
{
    bool within = y == NULL;
    dsb_status status;

    *job = (dsb_pairs){.be = be,
                       .f = f,
                       .scale = scale,
                       .within = within,
                       .n = n,
                       .m = within ? n : m,
                       .dim = dim,
                       .x = x,
                       .blocks = (n + ROWS - 1) / ROWS,
                       .chunks = 1};
    if (job->blocks < ENOUGH) {
        int64_t most = (job->m + ROWS - 1) / ROWS;

        job->chunks = (ENOUGH + job->blocks - 1) / job->blocks;
        job->chunks = job->chunks < most ? job->chunks : most;
    }
    status = dsb_alloc((size_t)dsb_panels_floats(job->m, dim) * sizeof(float), &job->panels);
    if (status == DSB_OK) {
        status = dsb_alloc((size_t)(2 * dsb_pitch(job->m)) * sizeof(float), &job->norms);
    }
    if (status == DSB_OK) {
        status = dsb_alloc((size_t)dsb_pairs_tasks(job) * sizeof(double), &job->sums);
    }
    if (status != DSB_OK) {
        dsb_pairs_clear(job);
        return status;
    }
    dsb_panels_pack(job->m, dim, within ? x : y, job->panels);
    be->pair_norms(NULL, job->m, dim, job->panels, job->norms);
    return DSB_OK;
}

void
dsb_pairs_clear(dsb_pairs *job)
{
    dsb_free(job->panels);
    dsb_free(job->norms);
    dsb_free(job->sums);
    job->panels = NULL;
    job->norms = NULL;
    job->sums = NULL;
}

int64_t
dsb_pairs_tasks(const dsb_pairs *job)
{
    return job->blocks * job->chunks;
}

/* The sum of the rows [first, first + rows) against the columns [low, high), low in multiples of 16. */
static double
part(const dsb_pairs *job, int64_t first, int rows, int64_t low, int64_t high)
{
    return low >= high ? 0.0
                       : job->be->pair_sum(NULL, job->f, job->scale, rows, job->dim,
                                           job->x + first * job->dim, high - low,
                                           job->panels + low * job->dim, job->norms + 2 * low);
}

void
dsb_pairs_task(void *context, int64_t task, int worker)
{
    const dsb_pairs *job = context;
    int64_t first = task / job->chunks * ROWS;
    int64_t last = first + ROWS < job->n ? first + ROWS : job->n;
    int64_t chunk = task % job->chunks, span = (job->m + job->chunks - 1) / job->chunks;
    int64_t low, high;
    double sum;

    (void)worker;
    span = (span + ROWS - 1) / ROWS * ROWS; /* a block of the diagonal lies in one chunk */
    low = chunk * span;
    high = low + span < job->m ? low + span : job->m;
    if (!job->within) {
        sum = part(job, first, (int)(last - first), low, high);
    } else {
        /* The square on the diagonal once, what lies right of it for both triangles. */
        sum =
            low <= first && first < high ? part(job, first, (int)(last - first), first, last) : 0.0;
        sum += 2.0 * part(job, first, (int)(last - first), low > last ? low : last, high);
    }
    job->sums[task] = sum;
}

double
dsb_pairs_total(const dsb_pairs *job)
{
    double total = 0.0;

    for (int64_t i = 0; i < dsb_pairs_tasks(job); i++) {
        total += job->sums[i];
    }
    return total;
}
