#include "bridge/pinned.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

/* What the reference does from state 0 to k, and from k to N. */
typedef struct legs {
    double *before, *variance; /* X_k given X_0: before x + (1 - before) m, variance I */
    double *after, *rest;      /* X_N given X_k: after x + (1 - after) m, rest I */
} legs;

static dsb_status
init_legs(legs *l, double precision, const dsb_schedule *schedule)
{
    int n = schedule->n;

    DSB_TRY(dsb_alloc(4 * sizeof(double) * (size_t)(n + 1), &l->before));
    l->variance = l->before + n + 1;
    l->after = l->variance + n + 1;
    l->rest = l->after + n + 1;
    l->before[0] = l->after[n] = 1.0;
    l->variance[0] = l->rest[n] = 0.0;
    for (int k = 0; k < n; k++) {
        double a = 1.0 - schedule->g[k] * precision;

        l->before[k + 1] = a * l->before[k];
        l->variance[k + 1] = a * a * l->variance[k] + 2.0 * schedule->g[k];
    }
    for (int k = n - 1; k >= 0; k--) { /* summed from its end: a difference of variances cancels */
        l->rest[k] = l->after[k + 1] * l->after[k + 1] * 2.0 * schedule->g[k] + l->rest[k + 1];
        l->after[k] = l->after[k + 1] * (1.0 - schedule->g[k] * precision);
    }
    return DSB_OK;
}

/* X_i given both ends is N(p X_0 + q X_N + c m, r I), by Bayes' rule. */
static void
pin(const legs *l, int n, int i, bool from_source, float *state, float *noise)
{
    double p = l->rest[i] * l->before[i] / l->variance[n],
           q = l->after[i] * l->variance[i] / l->variance[n],
           c = l->rest[i] / l->variance[n] * (1.0 - l->before[i]) - q * (1.0 - l->after[i]);

    state[0] = (float)(from_source ? p : q);
    state[1] = (float)(from_source ? q : p);
    state[2] = (float)c;
    noise[0] = 1.0f;
    noise[1] = (float)sqrt(l->variance[i] * (l->rest[i] / l->variance[n]));
    noise[2] = 0.0f;
}

dsb_status
dsb_pinned_init(dsb_pinned *pinned, const dsb_reference *reference, const dsb_schedule *schedule,
                dsb_direction trained)
{
    int n = schedule->n;
    double precision = (double)reference->precision;
    float *state, *noise, *target;
    legs l;

    *pinned = (dsb_pinned){.n = n};
    DSB_TRY(dsb_alloc((sizeof(double) + 3 * DSB_PINNED_TABLES * sizeof(float)) * (size_t)n,
                      &pinned->variance));
    state = pinned->table = (float *)(pinned->variance + n);
    noise = state + 3 * n;
    target = noise + 3 * n;
    DSB_TRY(init_legs(&l, precision, schedule));
    for (int j = 0; j < n; j++) {
        int k = trained == DSB_BACKWARD ? j : n - 1 - j;
        double doubled = 2.0 * schedule->g[k], a = 1.0 - schedule->g[k] * precision, near, far;

        if (trained == DSB_BACKWARD) { /* E[X_k | X_0, X_{k+1}] */
            pin(&l, n, k + 1, true, state + 3 * j, noise + 3 * j);
            near = l.variance[k] * a / l.variance[k + 1];
            far = l.before[k] * doubled / l.variance[k + 1];
            pinned->variance[j] = doubled * (l.variance[k] / l.variance[k + 1]);
        } else { /* E[X_{k+1} | X_k, X_N] */
            pin(&l, n, k, false, state + 3 * j, noise + 3 * j);
            near = a * (l.rest[k + 1] / l.rest[k]);
            far = l.after[k + 1] * doubled / l.rest[k];
            pinned->variance[j] = doubled * (l.rest[k + 1] / l.rest[k]);
        }
        target[3 * j] = (float)near;
        target[3 * j + 1] = (float)far;
        target[3 * j + 2] = (float)(1.0 - near - far);
    }
    dsb_free(l.before);
    return DSB_OK;
}

void
dsb_pinned_clear(dsb_pinned *pinned)
{
    dsb_free(pinned->variance);
    *pinned = (dsb_pinned){.n = 0};
}
