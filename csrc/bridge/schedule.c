#include "bridge/schedule.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

dsb_status
dsb_schedule_init(dsb_schedule *schedule, int n, const double *g)
{
    *schedule = (dsb_schedule){.n = n};
    DSB_REQUIRE(n >= 1 && n <= DSB_MAX_STEPS, "a schedule has 1 to %d steps, got %d", DSB_MAX_STEPS,
                n);
    for (int k = 0; k < n; k++) {
        DSB_REQUIRE(g[k] >= 1e-30 && g[k] <= 1e30,
                    "step %d of the schedule must be positive (1e-30 .. 1e30), got %g", k, g[k]);
    }
    DSB_TRY(dsb_alloc(sizeof(double) * (size_t)(2 * n + 1), &schedule->g));
    schedule->t = schedule->g + n;
    memcpy(schedule->g, g, sizeof(double) * (size_t)n);
    for (int k = 0; k < n; k++) {
        schedule->t[k + 1] = schedule->t[k] + g[k];
    }
    schedule->span = schedule->t[n];
    return DSB_OK;
}

void
dsb_schedule_clear(dsb_schedule *schedule)
{
    dsb_free(schedule->g);
    *schedule = (dsb_schedule){.n = 0};
}

bool
dsb_schedule_symmetric(const dsb_schedule *schedule)
{
    for (int k = 0; k < schedule->n; k++) {
        double a = schedule->g[k], b = schedule->g[schedule->n - 1 - k];

        if (fabs(a - b) > 1e-9 * (a + b)) {
            return false;
        }
    }
    return true;
}

float
dsb_schedule_label(const dsb_schedule *schedule, double t)
{
    return (float)(1000.0 * t / schedule->span);
}

int
dsb_schedule_find(const dsb_schedule *schedule, dsb_direction direction, double t)
{
    int nearest = 0, j;

    for (int i = 1; i <= schedule->n; i++) {
        if (fabs(schedule->t[i] - t) < fabs(schedule->t[nearest] - t)) {
            nearest = i;
        }
    }
    j = direction == DSB_FORWARD ? nearest : schedule->n - nearest;
    return fabs(schedule->t[nearest] - t) <= 1e-6 * schedule->t[schedule->n] && j < schedule->n
               ? j
               : -1;
}

dsb_status
dsb_steps_init(dsb_steps *steps, const dsb_schedule *schedule, dsb_direction direction,
               dsb_convention convention, dsb_output output)
{
    int n = schedule->n;
    double mean_step = schedule->t[n] / n, elapsed = 0.0;

    *steps = (dsb_steps){.n = n};
    DSB_TRY(dsb_alloc((2 * sizeof(double) + 4 * sizeof(float)) * (size_t)n, &steps->g));
    steps->deviation = steps->g + n;
    steps->label = (float *)(steps->deviation + n);
    steps->train_gtw = steps->label + n;
    for (int j = 0; j < n; j++) {
        int k = dsb_step_in_time(direction, n, j);
        float *gtw = steps->train_gtw + 3 * j;

        if (convention == DSB_GRID) {
            int here = direction == DSB_FORWARD ? k : k + 1, there = 2 * k + 1 - here;

            steps->g[j] = schedule->g[k];
            steps->label[j] = dsb_schedule_label(schedule, schedule->t[here]);
            gtw[1] = dsb_schedule_label(schedule, schedule->t[there]);
        } else {
            steps->g[j] = schedule->g[j];
            elapsed += schedule->g[j];
            steps->label[j] = (float)elapsed;
            gtw[1] = (float)(schedule->span - elapsed);
        }
        steps->deviation[j] = sqrt(2.0 * steps->g[j]);
        gtw[0] = (float)steps->g[j];
        gtw[2] = output == DSB_OUTPUT_DRIFT ? (float)(steps->g[j] / mean_step) : 1.0f;
    }
    return DSB_OK;
}

void
dsb_steps_clear(dsb_steps *steps)
{
    dsb_free(steps->g);
    *steps = (dsb_steps){.n = 0};
}
