/* A plan says where every tensor of a pass stands in one arena.
 *
 * Purpose: net + rows + mode + precision -> types, lifetimes, offsets, what is fused, which gradient
 * writes overwrite and which accumulate; so that nothing is allocated in a step and memory is known before
 * it is taken.
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

typedef struct dsb_plan_request {
    dsb_mode mode;
    int rows;
    /* Every value has memory of its own for the whole pass: the reference that plans with reuse must equal
     * bit for bit. */
    bool keep;
    dsb_precision precision; /* bf16: images are kept in bfloat16 too */
} dsb_plan_request;

typedef enum dsb_buffer_use {
    DSB_USE_VALUE,
    DSB_USE_GRADIENT,
    DSB_USE_SAVED,   /* what an op keeps from its forward to its backward */
    DSB_USE_SCRATCH, /* of whichever op runs */
} dsb_buffer_use;

typedef struct dsb_buffer {
    size_t offset, bytes;
    int first, last; /* alive from .. to, both included */
    dsb_buffer_use use;
    int value; /* the value that gives it its size, or its op's result */
} dsb_buffer;

typedef struct dsb_place {
    int buffer;     /* -1: none */
    int64_t column; /* where the value's columns begin in the buffer's rows */
    int64_t ld;     /* numbers from line to line; 0: one row for all */
    dsb_dtype dtype;
} dsb_place;

/* What is fused: a linear op applies the activation behind it; a convolution applies the group_norm before
 * it to what it reads, and adds what is added behind it. Ops are named by their number; -1: none. */
typedef struct dsb_plan_op {
    bool live;         /* its result reaches the output */
    bool differs;      /* its backward runs */
    int fused_by;      /* the op that does this one's forward, or the rest of it for a group_norm */
    int ends;          /* linear, conv: the op whose result it writes, at least its own */
    int prologue;      /* conv: the group_norm it applies */
    int row, residual; /* conv: values that it adds */
    int saved;         /* buffer */
    int beta[DSB_MAX_INPUTS];
} dsb_plan_op;

typedef struct dsb_plan {
    const dsb_net *net;
    dsb_plan_request request;
    dsb_buffer *buffers;
    int n_buffers;
    int scratch;          /* buffer, -1: none */
    dsb_place *places;    /* of the values */
    dsb_place *gradients; /* of their gradients */
    dsb_plan_op *ops;
    size_t bytes; /* of the arena */
} dsb_plan;

dsb_status dsb_plan_create(const dsb_net *net, const dsb_backend *be,
                           const dsb_plan_request *request, dsb_plan **out) DSB_MUST_CHECK;
void dsb_plan_destroy(dsb_plan *plan);

#endif
