/* Objectives: what the net of one direction is trained on.
 *
 * Purpose: one table. A *trajectory* supplier turns a simulated step X -> X' of the other direction into
 * the mean that the trained net should put out at X'; an *end points* supplier takes the two ends of a path
 * only, and draws states between them (see pinned.h). How the mean becomes the net's output is the window's
 * business.
 * Ownership and threads: constant table; the functions work on one walker.
 */
#ifndef DSB_BRIDGE_OBJECTIVE_H
#define DSB_BRIDGE_OBJECTIVE_H

#include "bridge/sampler.h"

typedef enum dsb_supplier { DSB_TRAJECTORY, DSB_END_POINTS } dsb_supplier;

typedef struct dsb_objective {
    const char *name;
    dsb_supplier supplier;
    bool evaluates; /* whether `target` evaluates the map once more */
    /* target = the mean to regress on for the pair X (rows `x`, with its mean under step j in `mean`) and
     * X' (the walker's x). NULL for a supplier of end points. */
    void (*target)(dsb_walker *walker, const dsb_process *process, int j, int rows, const float *x,
                   const float *mean, float *target);
    /* The same for the reference, where E[X | X_0, X'] = `expected` is known: rows with steps k[r]; `mix`
     * is that of dsb_reference_tables. */
    void (*closed_form)(dsb_walker *walker, int rows, const float *mix, const int32_t *k,
                        const float *expected, float *target);
} dsb_objective;

/* The objective called `name` ("dsb", "simplified", "bridge"), or NULL. */
const dsb_objective *dsb_objective_find(const char *name);

#endif
