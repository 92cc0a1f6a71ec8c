/* A plan says where every tensor of a pass stands in one arena.
 *
 * Purpose: net + rows + mode -> lifetimes, offsets, what is fused, which gradient writes overwrite and
 * which accumulate; so that nothing is allocated in a step and memory is known before it is taken.
 * Ownership: a plan borrows its net. Threads: immutable once made; one serves all workers.
 *
 * Time runs 0 (inputs), 1 .. n (forward), n + 1 (loss), n + 2 .. 2n + 1 (backward, last op first).
 */
#ifndef DSB_NN_PLAN_H
#define DSB_NN_PLAN_H

#include "nn/net.h"

typedef enum dsb_mode {
    DSB_INFER, /* forward only; all rows share one t */
    DSB_TRAIN, /* forward, and the gradient of the parameters */
    DSB_VJP,   /* forward, and the gradient of the input x */
} dsb_mode;

typedef struct dsb_buffer {
    size_t offset, bytes;
    int first, last; /* alive from .. to, both included */
    int value;       /* the value that gives it its size, and whether it is that value's gradient */
    bool gradient;
} dsb_buffer;

typedef struct dsb_place {
    int buffer;     /* -1: none */
    int64_t column; /* where the value's columns begin in the buffer's rows */
    int64_t ld;     /* floats from row to row; 0: one row for all */
} dsb_place;

typedef struct dsb_plan_op {
    bool live;    /* its result reaches the output */
    bool fused;   /* an activation that the linear op before it applies */
    int fuses;    /* that activation's op, for the linear op; -1: none */
    bool differs; /* its backward runs */
    int beta[DSB_MAX_INPUTS];
} dsb_plan_op;

typedef struct dsb_plan {
    const dsb_net *net;
    dsb_mode mode;
    int rows;
    dsb_buffer *buffers;
    int n_buffers;
    dsb_place *places;    /* of the values */
    dsb_place *gradients; /* of their gradients */
    dsb_plan_op *ops;
    size_t bytes; /* of the arena */
} dsb_plan;

/* `keep` gives every value memory of its own for the whole pass: the reference that plans with reuse
 * must equal bit for bit. */
dsb_status dsb_plan_create(const dsb_net *net, dsb_mode mode, int rows, bool keep,
                           dsb_plan **out) DSB_MUST_CHECK;
void dsb_plan_destroy(dsb_plan *plan);

#endif
