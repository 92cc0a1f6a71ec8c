/* Entropic transport against plain loops in float64, at awkward sizes. */
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "exact/cloud.h"
#include "exact/conditional.h"
#include "exact/sinkhorn.h"

enum { MOST = 701, MOST_DIM = 9 };

static float x[MOST * MOST_DIM], y[MOST * MOST_DIM];
static double a[MOST], b[MOST], f[MOST], g[MOST], masses[MOST], errors[64], seconds[64];

/* Points that differ, in no order; weights of which every fifth is zero. */
static void
fill(int n, int dim, float spread, float *points, double *weight)
{
    uint32_t state = (uint32_t)(n * 31 + dim);
    double total = 0.0;

    for (int i = 0; i < n * dim; i++) {
        state = state * 1664525u + 1013904223u;
        points[i] = spread * ((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    for (int i = 0; i < n; i++) {
        weight[i] = n > 5 && i % 5 == 4 ? 0.0 : 1.0 + (double)(i % 3);
        total += weight[i];
    }
    for (int i = 0; i < n; i++) {
        weight[i] /= total;
    }
}

static double
cost(int dim, const float *p, const float *q, double variance)
{
    double square = 0.0;

    for (int k = 0; k < dim; k++) {
        square += ((double)p[k] - (double)q[k]) * ((double)p[k] - (double)q[k]);
    }
    return square / (2.0 * variance);
}

/* -log sum_j w_j exp(potential_j - cost) */
static double
fitted(int dim, const float *p, int n, const float *points, const double *potential,
       const double *weight, double variance)
{
    double most = -INFINITY, sum = 0.0;

    for (int j = 0; j < n; j++) {
        if (weight[j] > 0.0) {
            most = fmax(most, potential[j] - cost(dim, p, points + j * dim, variance));
        }
    }
    for (int j = 0; j < n; j++) {
        if (weight[j] > 0.0) {
            sum += weight[j] * exp(potential[j] - cost(dim, p, points + j * dim, variance) - most);
        }
    }
    return -most - log(sum);
}

static dsb_sinkhorn
problem(int n, int m, int dim, double variance, int64_t most)
{
    dsb_sinkhorn s = {.dim = dim,
                      .variance = variance,
                      .end = {{n, x, a, f}, {m, y, b, g}},
                      .first = DSB_TARGET,
                      .most = most,
                      .errors = errors,
                      .seconds = seconds,
                      .masses = masses};

    fill(n, dim, 3.0f, x, a);
    fill(m, dim, 2.0f, y, b);
    memset(f, 0, sizeof f);
    memset(g, 0, sizeof g);
    return s;
}

/* Good to four units in the last place of the largest cost: points lie in [-3, 3] and [-2, 2]. */
static bool
agree(double found, double wanted, int dim, double variance)
{
    float most = (float)(25.0 * dim / (2.0 * variance));

    return fabs(found - wanted) < 1e-5 + 4.0 * (double)(nextafterf(most, INFINITY) - most);
}

/* One half step, then another, each against the formula. */
static void
test_steps(int n, int m, int dim, double variance)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_tick deaf = {NULL, NULL};
    dsb_sinkhorn s = problem(n, m, dim, variance, 1);
    bool close = true;

    CHECK(dsb_sinkhorn_run(be, &s, deaf) == DSB_OK);
    CHECK(s.done == 1 && s.loose == DSB_SOURCE);
    for (int j = 0; j < m; j++) {
        close = close && agree(g[j], fitted(dim, y + j * dim, n, x, f, a, variance), dim, variance);
    }
    CHECK(close);
    s.first = DSB_SOURCE;
    CHECK(dsb_sinkhorn_run(be, &s, deaf) == DSB_OK);
    for (int i = 0; i < n; i++) {
        close = close && agree(f[i], fitted(dim, x + i * dim, m, y, g, b, variance), dim, variance);
    }
    CHECK(close);
}

/* Means and draws with columns of which some have no weight. */
static void
test_conditional(int n, int m, int dim, double variance)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_tick deaf = {NULL, NULL};
    static double psi[MOST], sums[MOST], means[MOST * 2], uniform[MOST];
    static float values[MOST * 2];
    static int64_t picked[MOST];
    dsb_columns columns = {m, dim, y, psi, variance};
    bool close = true, inside = true;

    problem(n, m, dim, variance, 1);
    for (int j = 0; j < m; j++) {
        psi[j] = b[j] > 0.0 ? log(b[j]) : -INFINITY;
        values[2 * j] = (float)j / (float)m;
        values[2 * j + 1] = 1.0f;
    }
    for (int i = 0; i < n; i++) {
        uniform[i] = (i + 0.5) / n;
    }
    CHECK(dsb_conditional_mean(be, &columns, n, x, 2, values, sums, means, deaf) == DSB_OK);
    CHECK(dsb_conditional_pick(be, &columns, n, x, uniform, picked, deaf) == DSB_OK);
    for (int i = 0; i < n; i++) {
        double wanted = -fitted(dim, x + i * dim, m, y, g, b, variance), mean = 0.0, below = 0.0;

        for (int j = 0; j < m; j++) {
            double p = b[j] > 0.0
                           ? exp(psi[j] - cost(dim, x + i * dim, y + j * dim, variance) - wanted)
                           : 0.0;

            mean += p * (double)values[2 * j];
            below += j < picked[i] ? p : 0.0;
        }
        close = close && fabs(sums[i] - wanted) < 1e-2 && fabs(means[2 * i] - mean) < 1e-2;
        close = close && fabs(means[2 * i + 1] - 1.0) < 1e-5;
        inside = inside && picked[i] >= 0 && picked[i] < m && b[picked[i]] > 0.0;
        close = close && below < uniform[i] + 1e-2;
    }
    CHECK(close);
    CHECK(inside);
}

static bool
stop_at_once(void *context)
{
    (void)context;
    return true;
}

static void
test_refusals(void)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_tick deaf = {NULL, NULL}, hasty = {stop_at_once, NULL};
    dsb_sinkhorn s = problem(70, 40, 2, 1.0, 3);

    CHECK(dsb_sinkhorn_run(be, &s, hasty) == DSB_ERR_INTERRUPTED);
    s.variance = 0.0;
    CHECK(dsb_sinkhorn_run(be, &s, deaf) == DSB_ERR_VALUE);
    s = problem(70, 40, 2, 1.0, 3);
    a[3] = -1.0;
    CHECK(dsb_sinkhorn_run(be, &s, deaf) == DSB_ERR_VALUE);
    for (int64_t n = 1, status = DSB_ERR_MEMORY; status != DSB_OK; n++) {
        s = problem(70, 40, 2, 1.0, 3);
        dsb_alloc_fail_at(n);
        status = dsb_sinkhorn_run(be, &s, deaf);
        dsb_alloc_fail_at(0);
        CHECK(status == DSB_OK || status == DSB_ERR_MEMORY);
    }
}

void
test_exact(void)
{
    static const int dims[] = {1, 2, 3, 5, 6, 7, 9};

    for (size_t k = 0; k < sizeof dims / sizeof dims[0]; k++) {
        test_steps(1, 1, dims[k], 1.0);
        test_steps(701, 33, dims[k], 0.5);
        test_steps(65, 640, dims[k], 0.02); /* from a cold start nothing is within reach */
        test_conditional(5, 1, dims[k], 1.0);
        test_conditional(67, 601, dims[k], 0.5);
        test_conditional(67, 50, dims[k], 1e-7); /* in float64 */
    }
    test_refusals();
}
