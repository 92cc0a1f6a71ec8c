#include "exact/sinkhorn.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "exact/cloud.h"

typedef struct pass {
    const dsb_backend *be;
    const dsb_cloud *rows, *columns;
    const double *potential;
    double *fitted;  /* the potential that fits this end */
    int32_t *groups; /* scratch of each worker */
    dsb_watch *watch;
} pass;

/* fitted_i = -log sum_j exp(psi_j - cost_ij) for a block of rows. The potential they have is a good guess of
 * it: what is left to a sum is then about 1. */
static void
fit_block(void *context, int64_t task, int worker)
{
    const pass *p = context;
    int64_t first = task * DSB_TRANSPORT_ROWS;
    int64_t left = p->rows->n - first;
    int rows = left < DSB_TRANSPORT_ROWS ? (int)left : DSB_TRANSPORT_ROWS;
    float shift[DSB_TRANSPORT_ROWS];
    double sum[DSB_TRANSPORT_ROWS];

    if (dsb_watch_stopped(p->watch, worker)) {
        return;
    }
    for (int r = 0; r < rows; r++) {
        shift[r] = dsb_grid(p->potential[dsb_cloud_point(p->rows, first + r)]);
    }
    dsb_cloud_sums(p->be, p->rows, p->columns, first, rows, shift, sum,
                   p->groups + worker * dsb_cloud_groups(p->columns));
    for (int r = 0; r < rows; r++) {
        p->fitted[dsb_cloud_point(p->rows, first + r)] = (double)shift[r] - log(sum[r]);
    }
}

typedef struct work {
    const dsb_backend *be;
    dsb_sinkhorn *s;
    dsb_cloud cloud[DSB_SIDES];
    int64_t rows;    /* max(n) */
    double *fitted;  /* [rows] */
    int32_t *groups; /* for each worker */
    int workers;
    dsb_watch watch;
    double start;
} work;

/* What would fit `end`, and by how much its marginal errs now: sum_i w_i |exp(old_i - fitted_i) - 1|. */
static dsb_status
look(work *w, dsb_side end, double *error)
{
    dsb_sinkhorn *s = w->s;
    const dsb_sample *own = &s->end[end], *other = &s->end[1 - end];
    dsb_cloud *columns = &w->cloud[1 - end];
    pass p = {.be = w->be,
              .rows = &w->cloud[end],
              .columns = columns,
              .potential = own->potential,
              .fitted = w->fitted,
              .groups = w->groups,
              .watch = &w->watch};

    dsb_cloud_raise(columns, other->potential, other->weight);
    DSB_TRY(dsb_run_chunks(w->be->parallel, w->workers,
                           (own->n + DSB_TRANSPORT_ROWS - 1) / DSB_TRANSPORT_ROWS, fit_block, &p,
                           &w->watch));
    *error = 0.0;
    for (int64_t i = 0; i < own->n; i++) {
        s->masses[i] =
            own->weight[i] > 0.0 ? own->weight[i] * exp(own->potential[i] - w->fitted[i]) : 0.0;
        *error += fabs(s->masses[i] - own->weight[i]);
    }
    s->loose = end;
    s->errors[s->done] = *error;
    s->seconds[s->done] = dsb_seconds() - w->start;
    return DSB_OK;
}

static dsb_status
iterate(work *w)
{
    dsb_sinkhorn *s = w->s;
    dsb_side end = s->first;

    for (s->done = 0;; s->done++, end = 1 - end) {
        double error;

        DSB_TRY(look(w, end, &error));
        /* Before the first step no marginal need fit. */
        if (s->done == s->most || (s->done > 0 && error < s->tolerance)) {
            return DSB_OK;
        }
        for (int64_t i = 0; i < s->end[end].n; i++) {
            double fitted = w->fitted[i];

            if (!(fabs(fitted) < (double)DSB_MOST_POTENTIAL)) {
                return DSB_FAIL(DSB_ERR_NUMERIC,
                                "the potential of row %lld has grown to %g, beyond what the "
                                "arithmetic holds",
                                (long long)i, fitted);
            }
            s->end[end].potential[i] = fitted;
        }
        if (s->every != NULL) {
            memcpy(s->every + s->done * w->rows, s->end[end].potential,
                   sizeof *s->every * (size_t)s->end[end].n);
        }
    }
}

static dsb_status
check(const dsb_sinkhorn *s)
{
    DSB_REQUIRE(s->dim >= 1 && s->variance > 0.0 && isfinite(s->variance) && s->most >= 0,
                "expected a dimension, a positive variance and a number of steps");
    for (int e = 0; e < DSB_SIDES; e++) {
        const dsb_sample *end = &s->end[e];
        double total = 0.0;

        DSB_REQUIRE(end->n >= 1, "expected at least one point at each end");
        for (int64_t i = 0; i < end->n; i++) {
            DSB_REQUIRE(end->weight[i] >= 0.0, "weights must not be negative, got %g",
                        end->weight[i]);
            DSB_REQUIRE(fabs(end->potential[i]) < (double)DSB_MOST_POTENTIAL,
                        "potentials must lie within %g, got %g", (double)DSB_MOST_POTENTIAL,
                        end->potential[i]);
            total += end->weight[i];
        }
        DSB_REQUIRE(total > 0.0 && isfinite(total), "weights must have a finite positive sum");
    }
    return DSB_OK;
}

dsb_status
dsb_sinkhorn_run(const dsb_backend *be, dsb_sinkhorn *s, dsb_tick tick)
{
    work w = {.be = be,
              .s = s,
              .rows = s->end[0].n > s->end[1].n ? s->end[0].n : s->end[1].n,
              .workers = be->workers(),
              .watch = {.tick = tick},
              .start = dsb_seconds()};
    dsb_status status;

    DSB_TRY(check(s));
    status = be->alloc(sizeof(double) * (size_t)w.rows, &w.fitted);
    for (int e = 0; e < DSB_SIDES && status == DSB_OK; e++) {
        status = dsb_cloud_init(&w.cloud[e], be, s->end[e].n, s->dim, true);
        if (status == DSB_OK) {
            dsb_cloud_place(&w.cloud[e], s->end[e].points, s->variance);
        }
    }
    if (status == DSB_OK) {
        status = be->alloc(sizeof *w.groups * (size_t)(w.workers * dsb_transport_pitch(w.rows) /
                                                       DSB_TRANSPORT_UNIT),
                           &w.groups);
    }
    if (status == DSB_OK) {
        status = iterate(&w);
    }
    for (int e = 0; e < DSB_SIDES; e++) {
        dsb_cloud_clear(&w.cloud[e], be);
    }
    be->free(w.fitted);
    be->free(w.groups);
    return status;
}
