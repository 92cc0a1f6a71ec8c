/* The time grid and what follows from it: steps, times, labels told to the nets, loss weights.
 *
 * Purpose: states 0 (data) .. N (prior), t_0 = 0, t_{k+1} = t_k + g_k. A dsb_steps is the list of steps
 * in the order in which one direction simulates them, so that the sampler knows no convention.
 * Ownership: a schedule owns its arrays. Threads: immutable once made.
 */
#ifndef DSB_BRIDGE_SCHEDULE_H
#define DSB_BRIDGE_SCHEDULE_H

#include <stdbool.h>

#include "backend.h"

#define DSB_MAX_STEPS 100000

typedef enum dsb_direction { DSB_BACKWARD, DSB_FORWARD } dsb_direction;

static inline dsb_direction
dsb_opposite(dsb_direction direction)
{
    return direction == DSB_BACKWARD ? DSB_FORWARD : DSB_BACKWARD;
}

static inline const char *
dsb_direction_name(dsb_direction direction)
{
    return direction == DSB_BACKWARD ? "backward" : "forward";
}

/* Step j of n in the order in which a direction simulates is step k in the order of time, and the other way
 * round. */
static inline int
dsb_step_in_time(dsb_direction direction, int n, int j)
{
    return direction == DSB_FORWARD ? j : n - 1 - j;
}

/* DSB_GRID: state i has label tau_i = 1000 t_i / T; F_k is told tau_k and B_{k+1} is told tau_{k+1},
 * everywhere. DSB_OFFICIAL: the released code as it is: step j of either direction takes the j-th step
 * size and is told t_{j+1}, while the other net is trained on that pair with T - t_{j+1}. */
typedef enum dsb_convention { DSB_GRID, DSB_OFFICIAL } dsb_convention;

typedef struct dsb_steps {
    int n;
    double *g;         /* step sizes in the order of simulation */
    double *deviation; /* of the noise: sqrt(2 g) */
    float *label;      /* told to the net that simulates */
    float
        *train_gtw; /* 3 a step: g, label and loss weight for the net that is trained on the pair */
} dsb_steps;

typedef struct dsb_schedule {
    int n;
    double *g, *t; /* n steps, n + 1 times */
    double span;   /* T of the labels; that of the training schedule where this one is another */
} dsb_schedule;

/* Copies g. Fails unless 1 <= n <= DSB_MAX_STEPS and every step is positive and finite. */
dsb_status dsb_schedule_init(dsb_schedule *schedule, int n, const double *g) DSB_MUST_CHECK;
void dsb_schedule_clear(dsb_schedule *schedule);
bool dsb_schedule_symmetric(const dsb_schedule *schedule);

dsb_status dsb_steps_init(dsb_steps *steps, const dsb_schedule *schedule, dsb_direction direction,
                          dsb_convention convention, dsb_output output) DSB_MUST_CHECK;
void dsb_steps_clear(dsb_steps *steps);

/* Label of the continuous time t under DSB_GRID: 1000 t / T. */
float dsb_schedule_label(const dsb_schedule *schedule, double t);

/* The step (in order of simulation) by which this direction leaves the state at time t, or -1 where t is
 * no state of the grid or the direction's last one. */
int dsb_schedule_find(const dsb_schedule *schedule, dsb_direction direction, double t);

#endif
