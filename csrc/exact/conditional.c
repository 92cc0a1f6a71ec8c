#include "exact/conditional.h"

#include <assert.h>
#include <math.h>

#include "exact/cloud.h"

/* Beyond the first the grid of heights and shifts is too fine for float32. Coordinates are rounded, which
 * changes an exponent by about twice the distance times the rounding: no more than the second is let pass. */
static const double most_exact = 60000.0, most_rounding = 4e-3;

/* What one worker needs, and what all share. */
typedef struct reading {
    const dsb_backend *be;
    const dsb_columns *columns;
    int64_t n;
    const float *z;
    int n_values;
    const float *values;    /* as given, [columns, n_values] */
    const float *by_column; /* [n_values][ld] */
    dsb_cloud cloud;        /* the columns */
    dsb_cloud *rows;        /* one of DSB_TRANSPORT_ROWS points for each worker */
    int workers;
    double most_height; /* of the columns with a weight, in size */
    double top;         /* the largest of those heights */
    double widest;      /* coordinate of a column */
    const double *uniform;
    double *log_sum, *mean;
    int64_t *picked;
    double *runs; /* for each worker [DSB_TRANSPORT_ROWS][runs] */
    dsb_watch *watch;
} reading;

/* ---- rows in float64 ---- */

static double
exponent(const dsb_columns *c, const float *z, int64_t j)
{
    double square = 0.0;

    for (int k = 0; k < c->dim; k++) {
        double gap = (double)z[k] - (double)c->points[j * c->dim + k];

        square += gap * gap;
    }
    return c->psi[j] - square / (2.0 * c->variance);
}

static double
largest(const dsb_columns *c, const float *z)
{
    double most = -INFINITY;

    for (int64_t j = 0; j < c->n; j++) {
        most = fmax(most, exponent(c, z, j));
    }
    return most;
}

static void
mean_in_double(const reading *q, int64_t i)
{
    const dsb_columns *c = q->columns;
    const float *z = q->z + i * c->dim;
    double most = largest(c, z), sum = 0.0, *mean = q->mean + i * q->n_values;

    for (int v = 0; v < q->n_values; v++) {
        mean[v] = 0.0;
    }
    for (int64_t j = 0; j < c->n; j++) {
        double p = exp(exponent(c, z, j) - most);

        sum += p;
        for (int v = 0; v < q->n_values; v++) {
            mean[v] += p * (double)q->values[j * q->n_values + v];
        }
    }
    q->log_sum[i] = most + log(sum);
    for (int v = 0; v < q->n_values; v++) {
        mean[v] /= sum;
    }
}

static void
pick_in_double(const reading *q, int64_t i)
{
    const dsb_columns *c = q->columns;
    const float *z = q->z + i * c->dim;
    double most = largest(c, z), sum = 0.0, wanted;

    for (int64_t j = 0; j < c->n; j++) {
        sum += exp(exponent(c, z, j) - most);
    }
    wanted = q->uniform[i] * sum;
    sum = 0.0;
    for (int64_t j = 0; j < c->n; j++) {
        double p = exp(exponent(c, z, j) - most);

        sum += p;
        if (p > 0.0) {
            q->picked[i] = j;
            if (sum >= wanted) {
                return;
            }
        }
    }
}

/* ---- blocks of rows ---- */

/* Loads a block and finds shifts that make the largest exponent of each row about 0; rows for which float32
 * will not do are marked. Returns how many rows there are. */
static int
load_block(const reading *q, int64_t task, int worker, dsb_transport *t, float *shift, bool *far)
{
    dsb_cloud *rows = &q->rows[worker];
    int64_t first = task * DSB_TRANSPORT_ROWS;
    int n = q->n - first < DSB_TRANSPORT_ROWS ? (int)(q->n - first) : DSB_TRANSPORT_ROWS;
    float most[DSB_TRANSPORT_ROWS];

    for (int r = 0; r < n; r++) {
        dsb_cloud_put(rows, r, q->z + (first + r) * rows->dim, q->columns->variance);
        shift[r] = 0.0f;
    }
    *t = dsb_cloud_against(rows, &q->cloud);
    q->be->transport_most(NULL, t, 0, n, shift, most);
    for (int r = 0; r < n; r++) {
        far[r] = !(fabs((double)most[r]) + q->most_height < most_exact &&
                   sqrt(fmax(q->top - (double)most[r], 1.0)) * q->widest * 0x1p-22 < most_rounding);
        shift[r] = far[r] ? 0.0f : -dsb_grid((double)most[r]);
    }
    return n;
}

static void
mean_block(void *context, int64_t task, int worker)
{
    const reading *q = context;
    int64_t first = task * DSB_TRANSPORT_ROWS;
    dsb_transport t;
    float shift[DSB_TRANSPORT_ROWS];
    bool far[DSB_TRANSPORT_ROWS];
    double sum[DSB_TRANSPORT_ROWS], *mean = q->mean + first * q->n_values;
    int n;

    if (dsb_watch_stopped(q->watch, worker)) {
        return;
    }
    n = load_block(q, task, worker, &t, shift, far);
    q->be->transport_mean(NULL, &t, 0, n, shift, q->n_values, q->by_column, sum, mean);
    for (int r = 0; r < n; r++) {
        if (far[r]) {
            mean_in_double(q, first + r);
            continue;
        }
        q->log_sum[first + r] = log(sum[r]) - (double)shift[r];
        for (int v = 0; v < q->n_values; v++) {
            mean[r * q->n_values + v] /= sum[r];
        }
    }
}

/* The first column at which the sum up to it reaches `wanted`; the last with a weight if rounding keeps it
 * from that. */
static int64_t
find_column(const reading *q, const dsb_transport *t, int row, float shift, const double *runs,
            double wanted)
{
    int64_t n_runs = dsb_transport_runs(t->ldy), run = 0, found = -1;
    float terms[DSB_TRANSPORT_RUN];

    while (run + 1 < n_runs && runs[run] < wanted) {
        wanted -= runs[run++];
    }
    for (; found < 0; run--) {
        int64_t column = run * DSB_TRANSPORT_RUN, left = t->ldy - column;
        int n = left < DSB_TRANSPORT_RUN ? (int)left : DSB_TRANSPORT_RUN;
        double sum = 0.0;

        q->be->transport_terms(NULL, t, row, shift, column, n, terms);
        for (int k = 0; k < n && !(found >= 0 && sum >= wanted); k++) {
            sum += (double)terms[k];
            found = terms[k] > 0.0f ? column + k : found;
        }
        if (run == 0) {
            break;
        }
    }
    assert(found >= 0 && found < q->columns->n);
    return found;
}

static void
pick_block(void *context, int64_t task, int worker)
{
    const reading *q = context;
    int64_t first = task * DSB_TRANSPORT_ROWS, n_runs = dsb_transport_runs(q->cloud.ld);
    double *runs = q->runs + worker * DSB_TRANSPORT_ROWS * n_runs;
    dsb_transport t;
    float shift[DSB_TRANSPORT_ROWS];
    bool far[DSB_TRANSPORT_ROWS];
    int n;

    if (dsb_watch_stopped(q->watch, worker)) {
        return;
    }
    n = load_block(q, task, worker, &t, shift, far);
    q->be->transport_runs(NULL, &t, 0, n, shift, runs);
    for (int r = 0; r < n; r++) {
        double sum = 0.0;

        for (int64_t k = 0; k < n_runs; k++) {
            sum += runs[r * n_runs + k];
        }
        if (far[r]) {
            pick_in_double(q, first + r);
        } else {
            q->picked[first + r] =
                find_column(q, &t, r, shift[r], runs + r * n_runs, q->uniform[first + r] * sum);
        }
    }
}

/* ---- the calls ---- */

static dsb_status
check(const dsb_columns *c, int64_t n)
{
    double most = -INFINITY;

    DSB_REQUIRE(c->dim >= 1 && c->n >= 1 && n >= 0 && c->variance > 0.0 && isfinite(c->variance),
                "expected points and a positive variance");
    for (int64_t j = 0; j < c->n; j++) {
        DSB_REQUIRE(!isnan(c->psi[j]) && c->psi[j] < (double)DSB_MOST_POTENTIAL &&
                        (c->psi[j] > -(double)DSB_MOST_POTENTIAL || isinf(c->psi[j])),
                    "potentials must lie within %g, got %g", (double)DSB_MOST_POTENTIAL, c->psi[j]);
        most = fmax(most, c->psi[j]);
    }
    DSB_REQUIRE(isfinite(most), "no column has a weight");
    return DSB_OK;
}

/* How high and how far the columns lie. */
static void
measure(reading *q)
{
    const dsb_cloud *cloud = &q->cloud;
    float low = INFINITY, high = -INFINITY, widest = 0.0f;

    for (int64_t j = 0; j < cloud->n; j++) {
        if (cloud->weight[j] > 0.0f) {
            low = cloud->height[j] < low ? cloud->height[j] : low;
            high = cloud->height[j] > high ? cloud->height[j] : high;
        }
    }
    for (int64_t j = 0; j < cloud->ld * cloud->dim; j++) {
        float size = fabsf(cloud->x[j]);

        widest = size > widest ? size : widest;
    }
    q->top = (double)high;
    q->most_height = fmax(fabs((double)low), fabs((double)high));
    q->widest = (double)widest;
}

static dsb_status
prepare(reading *q)
{
    const dsb_columns *c = q->columns;
    int64_t blocks = (q->n + DSB_TRANSPORT_ROWS - 1) / DSB_TRANSPORT_ROWS;

    q->workers = q->be->workers();
    q->workers = blocks < q->workers ? (int)blocks : q->workers;
    DSB_TRY(dsb_cloud_init(&q->cloud, q->be, c->n, c->dim, false));
    dsb_cloud_place(&q->cloud, c->points, c->variance);
    dsb_cloud_raise(&q->cloud, c->psi, NULL);
    measure(q);
    DSB_TRY(q->be->alloc(sizeof *q->rows * (size_t)(q->workers + 1), &q->rows));
    for (int w = 0; w < q->workers; w++) {
        DSB_TRY(dsb_cloud_init(&q->rows[w], q->be, DSB_TRANSPORT_ROWS, c->dim, false));
    }
    return DSB_OK;
}

static void
clear(reading *q)
{
    for (int w = 0; w < q->workers && q->rows != NULL; w++) {
        dsb_cloud_clear(&q->rows[w], q->be);
    }
    dsb_cloud_clear(&q->cloud, q->be);
    q->be->free(q->rows);
    q->be->free(q->runs);
}

static dsb_status
run(reading *q, dsb_task block)
{
    int64_t blocks = (q->n + DSB_TRANSPORT_ROWS - 1) / DSB_TRANSPORT_ROWS;

    return dsb_run_chunks(q->be->parallel, q->workers, blocks, block, q, q->watch);
}

dsb_status
dsb_conditional_mean(const dsb_backend *be, const dsb_columns *columns, int64_t n, const float *z,
                     int n_values, const float *values, double *log_sum, double *mean,
                     dsb_tick tick)
{
    dsb_watch watch = {.tick = tick};
    reading q = {.be = be,
                 .columns = columns,
                 .n = n,
                 .z = z,
                 .n_values = n_values,
                 .values = values,
                 .log_sum = log_sum,
                 .mean = mean,
                 .watch = &watch};
    float *by_column = NULL;
    dsb_status status;

    DSB_TRY(check(columns, n));
    status = prepare(&q);
    if (status == DSB_OK && n_values > 0) {
        status = be->alloc(sizeof(float) * (size_t)(n_values * q.cloud.ld), &by_column);
    }
    if (status == DSB_OK) {
        for (int64_t j = 0; j < columns->n; j++) {
            for (int v = 0; v < n_values; v++) {
                by_column[v * q.cloud.ld + j] = values[j * n_values + v];
            }
        }
        q.by_column = by_column;
        status = run(&q, mean_block);
    }
    be->free(by_column);
    clear(&q);
    return status;
}

dsb_status
dsb_conditional_pick(const dsb_backend *be, const dsb_columns *columns, int64_t n, const float *z,
                     const double *uniform, int64_t *picked, dsb_tick tick)
{
    dsb_watch watch = {.tick = tick};
    reading q = {.be = be,
                 .columns = columns,
                 .n = n,
                 .z = z,
                 .uniform = uniform,
                 .picked = picked,
                 .watch = &watch};
    size_t row = sizeof(double) * DSB_TRANSPORT_ROWS;
    dsb_status status;

    DSB_TRY(check(columns, n));
    status = prepare(&q);
    if (status == DSB_OK) {
        row *= (size_t)dsb_transport_runs(q.cloud.ld);
        status = be->alloc(row * (size_t)q.workers, &q.runs);
    }
    if (status == DSB_OK) {
        status = run(&q, pick_block);
    }
    clear(&q);
    return status;
}
