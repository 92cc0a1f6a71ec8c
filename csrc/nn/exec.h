/* An exec is a plan bound to one worker's arena, ready to run; weights are what all workers share.
 *
 * Purpose: `forward` reads the input slots and fills the output slot; `backward` reads d_output and
 * fills a gradient plane (train) or d_x (vjp). Nothing is allocated after creation.
 * Ownership: an exec owns its arena and borrows its plan. Threads: one worker at a time.
 */
#ifndef DSB_NN_EXEC_H
#define DSB_NN_EXEC_H

#include "nn/op.h"
#include "nn/plan.h"

typedef struct dsb_exec {
    const dsb_plan *plan;
    const dsb_backend *be;
    char *arena;
    dsb_op_run *runs;
    dsb_draw draw; /* of dropout: set before a forward in training, kept until its backward */
    dsb_slot inputs[DSB_PORTS]; /* data NULL: the net has no such input */
    dsb_slot output, d_output, d_x;
} dsb_exec;

dsb_status dsb_exec_create(const dsb_plan *plan, const dsb_backend *be,
                           dsb_exec **out) DSB_MUST_CHECK;
void dsb_exec_destroy(dsb_exec *exec);

void dsb_exec_forward(dsb_exec *exec, const dsb_op_weights *weights, int rows);
/* `beta` 0 overwrites the plane `grad` (except gaps and dead parameters), 1 adds to it. */
void dsb_exec_backward(dsb_exec *exec, const dsb_op_weights *weights, int rows, float *grad,
                       int beta);

/* Runs forward op by op; the name of the first value that is not finite, or NULL. */
const char *dsb_exec_find_nonfinite(dsb_exec *exec, const dsb_op_weights *weights, int rows);

/* Weights ready for use: a borrowed plane and its packed copies, in one block. */
typedef struct dsb_weights {
    const dsb_net *net;
    const dsb_backend *be;
    dsb_precision precision;
    dsb_op_weights view;
    void **packed; /* [2][n_ops]: as they are, and transposed */
    char *block;
} dsb_weights;

dsb_status dsb_weights_init(dsb_weights *weights, const dsb_net *net, const dsb_backend *be,
                            dsb_precision precision, bool backward) DSB_MUST_CHECK;
void dsb_weights_clear(dsb_weights *weights);
size_t dsb_weights_bytes(const dsb_net *net, const dsb_backend *be, dsb_precision precision,
                         bool backward);
/* Binds the plane and packs it; call again whenever the plane's content has changed. */
void dsb_weights_pack(dsb_weights *weights, const float *theta, int max_workers);

#endif
