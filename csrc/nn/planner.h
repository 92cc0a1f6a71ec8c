/* What a plan is made with: shared by plan.c (lifetimes and offsets) and fuse.c (what runs together and what
 * shares memory). Freed before the plan is handed out.
 */
#ifndef DSB_NN_PLANNER_H
#define DSB_NN_PLANNER_H

#include "nn/op.h"
#include "nn/plan.h"

/* A value that shares another's memory: from column `column` of `parent`. parent = -1: on its own. */
typedef struct dsb_alias {
    int parent;
    int64_t column;
} dsb_alias;

typedef struct dsb_planner {
    dsb_plan *plan;
    const dsb_net *net;
    bool *reaches;    /* value -> output depends on it */
    bool *wants_grad; /* value -> its gradient is needed on the way back */
    bool *single_row; /* value -> one row for all */
    bool *hidden;     /* value -> never stored, because two ops run as one */
    dsb_alias *forward, *backward;
} dsb_planner;

/* Whether the backward of `op` (-1: none) runs and reads `what`. */
static inline bool
dsb_planner_needs(const dsb_planner *p, int op, dsb_needs what)
{
    return op >= 0 && p->plan->ops[op].differs && (p->net->ops[op].kind->needs & what) != 0;
}

/* The one live op that reads a value with one consumer, or -1. */
int dsb_planner_reader(const dsb_planner *p, int value);
/* Decides what is fused: fused_by, ends, prologue, row, residual, hidden. */
void dsb_planner_fuse(dsb_planner *p);
/* Decides what shares memory: forward, backward. */
void dsb_planner_share(dsb_planner *p);

#endif
