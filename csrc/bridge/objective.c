#include "bridge/objective.h"

#include <string.h>

/* Equations (12) and (13) of De Bortoli et al. (2021), for the pair X -> X' simulated with the maps F:
 *     target = X' + F(X) - F(X'),
 * both maps at the step's own label. `mean` is F(X). */
static void
dsb_target(dsb_walker *walker, const dsb_process *process, int j, int rows, const float *x,
           const float *mean, float *target)
{
    const dsb_backend *be = walker->be;
    int dim = (int)walker->dim;
    int64_t ld = walker->ld;

    (void)x;
    dsb_walker_mean(walker, process, j, rows, walker->mean2);
    be->combine(NULL, rows, dim, 1.0f, mean, ld, -1.0f, walker->mean2, ld, 0.0f, NULL, target, ld);
    be->combine(NULL, rows, dim, 1.0f, walker->x, ld, 1.0f, target, ld, 0.0f, NULL, target, ld);
}

/* F is affine for the reference, so X' + F(E) - F(X') = (1 - a) X' + a E is the conditional expectation
 * of the target given X_0 and X' (Rao-Blackwell). */
static void
dsb_closed_form(dsb_walker *walker, int rows, const float *mix, const int32_t *k,
                const float *expected, float *target)
{
    walker->be->combine_by_step(NULL, rows, (int)walker->dim, mix, k, walker->x, walker->ld,
                                expected, walker->ld, NULL, target, walker->ld);
}

/* S-DSB: the target is X itself; another population limit than (12), at half the evaluations. */
static void
simplified_target(dsb_walker *walker, const dsb_process *process, int j, int rows, const float *x,
                  const float *mean, float *target)
{
    (void)process;
    (void)j;
    (void)mean;
    walker->be->copy(NULL, rows, (int)walker->dim, dsb_float_slot(x, walker->ld), 0,
                     dsb_float_slot(target, walker->ld));
}

/* E[X | X_0, X'] itself: what the reference pinned at X_0 and X_N gives as well, once X_N is drawn from it. */
static void
simplified_closed_form(dsb_walker *walker, int rows, const float *mix, const int32_t *k,
                       const float *expected, float *target)
{
    (void)mix;
    (void)k;
    walker->be->copy(NULL, rows, (int)walker->dim, dsb_float_slot(expected, walker->ld), 0,
                     dsb_float_slot(target, walker->ld));
}

static const dsb_objective objectives[] = {
    {"dsb", DSB_TRAJECTORY, true, dsb_target, dsb_closed_form},
    {"simplified", DSB_TRAJECTORY, false, simplified_target, simplified_closed_form},
    {"bridge", DSB_END_POINTS, false, NULL, simplified_closed_form},
};

const dsb_objective *
dsb_objective_find(const char *name)
{
    for (size_t i = 0; i < sizeof objectives / sizeof *objectives; i++) {
        if (strcmp(objectives[i].name, name) == 0) {
            return &objectives[i];
        }
    }
    return NULL;
}
