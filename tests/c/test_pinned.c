/* Tables of the pinned reference, against chains conditioned by their tridiagonal precision. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "bridge/pinned.h"
#include "fixture.h"
#include "test.h"

/* X_i given X_first and X_last: left X_first + right X_last + centre m, and its variance. */
typedef struct conditional {
    long double left, right, centre, variance;
} conditional;

/* The precision of X_{first+1} .. X_{last-1} given both ends: row k of its triangle, and what the ends and m
 * push it to. */
typedef struct row {
    long double diagonal, upper, push[3];
} row;

static row
row_of(const double *g, double precision, int first, int last, int k)
{
    long double before = 1.0L / (2.0L * g[k - 1]), after = 1.0L / (2.0L * g[k]);
    long double u = 1.0L - (long double)g[k - 1] * precision,
                a = 1.0L - (long double)g[k] * precision;

    return (row){.diagonal = before + a * a * after,
                 .upper = -a * after,
                 .push = {k - 1 == first ? u * before : 0.0L, k + 1 == last ? a * after : 0.0L,
                          (1.0L - u) * before - a * (1.0L - a) * after}};
}

/* Takes the row `done` out of its neighbour. */
static void
eliminate(const row *done, long double link, row *next)
{
    long double share = link / done->diagonal;

    next->diagonal -= share * link;
    for (int c = 0; c < 3; c++) {
        next->push[c] -= share * done->push[c];
    }
}

static conditional
condition(const double *g, double precision, int first, int last, int i)
{
    row alone, left, right;
    long double sum[3], diagonal;

    if (i == first || i == last) {
        return (conditional){.left = i == first, .right = i == last};
    }
    alone = row_of(g, precision, first, last, i);
    left = row_of(g, precision, first, last, first + 1);
    right = row_of(g, precision, first, last, last - 1);
    for (int k = first + 1; k < i; k++) {
        row next = row_of(g, precision, first, last, k + 1);

        eliminate(&left, left.upper, &next);
        left = next;
    }
    for (int k = last - 1; k > i; k--) {
        row next = row_of(g, precision, first, last, k - 1);

        eliminate(&right, next.upper, &next);
        right = next;
    }
    diagonal = left.diagonal + right.diagonal - alone.diagonal; /* both hold it */
    for (int c = 0; c < 3; c++) {
        sum[c] = left.push[c] + right.push[c] - alone.push[c];
    }
    return (conditional){sum[0] / diagonal, sum[1] / diagonal, sum[2] / diagonal, 1.0L / diagonal};
}

static bool
near(double got, long double want, double share)
{
    return fabsl(got - want) <= share * fabsl(want) + 1e-14L;
}

static void
check_direction(const dsb_schedule *schedule, double precision, dsb_direction trained)
{
    int n = schedule->n;
    float mean = 0.0f;
    dsb_reference reference;
    dsb_pinned pinned;

    CHECK(dsb_reference_init(&reference, dsb_cpu_backend(), 1, &mean, precision) == DSB_OK);
    CHECK(dsb_pinned_init(&pinned, &reference, schedule, trained) == DSB_OK);
    for (int j = 0; j < n; j++) {
        bool back = trained == DSB_BACKWARD;
        int k = back ? j : n - 1 - j, read = back ? k + 1 : k, put = back ? k : k + 1;
        const float *state = pinned.table + 3 * j, *noise = state + 3 * n, *target = noise + 3 * n;
        conditional s = condition(schedule->g, precision, 0, n, read);
        conditional t = condition(schedule->g, precision, back ? 0 : k, back ? k + 1 : n, put);

        CHECK(near((double)state[0], back ? s.left : s.right, FLT_EPSILON));
        CHECK(near((double)state[1], back ? s.right : s.left, FLT_EPSILON));
        CHECK(near((double)state[2], s.centre, 1e-6));
        CHECK(noise[0] == 1.0f && noise[2] == 0.0f);
        CHECK(near((double)noise[1], sqrtl(s.variance), FLT_EPSILON));
        CHECK(near((double)target[0], back ? t.right : t.left, FLT_EPSILON));
        CHECK(near((double)target[1], back ? t.left : t.right, FLT_EPSILON));
        CHECK(near((double)target[2], t.centre, 1e-6));
        CHECK(near(pinned.variance[j], t.variance, 1e-11));
    }
    dsb_pinned_clear(&pinned);
    dsb_reference_clear(&reference);
}

static void
check_pinned(int n, const double *g, double precision)
{
    dsb_schedule schedule;

    CHECK(dsb_schedule_init(&schedule, n, g) == DSB_OK);
    check_direction(&schedule, precision, DSB_BACKWARD);
    check_direction(&schedule, precision, DSB_FORWARD);
    dsb_schedule_clear(&schedule);
}

void
test_pinned(void)
{
    enum { MANY = 600 };
    static const double uneven[] = {0.02, 0.4, 0.1, 1e-5, 0.13}, turning[] = {2.0, 0.5, 3.0, 2.0};
    int64_t before = dsb_alloc_live();
    double g[MANY];

    for (int n = 1; n <= 5; n++) {
        check_pinned(n, uneven, 0.0);
        check_pinned(n, uneven, 0.5);
    }
    check_pinned(4, turning, 0.5); /* a = 0, 3/4, -1/2, 0 */
    for (int k = 0; k < MANY; k++) {
        g[k] = 0.5;
    }
    check_pinned(MANY, g, 1.0); /* A = 2^-600: both ends are forgotten */
    check_pinned(MANY, g, 0.0);
    for (int k = 0; k < MANY; k++) { /* 1e-5 to .1 and back */
        g[k] = 1e-5 * pow(1e4, 1.0 - fabs(2.0 * k / (MANY - 1.0) - 1.0));
    }
    check_pinned(MANY, g, 0.0);
    check_pinned(MANY, g, 0.25);
    CHECK(dsb_alloc_live() == before);
}
