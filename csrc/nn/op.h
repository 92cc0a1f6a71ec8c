/* What an op is: the table of its functions, and what a plan hands to them.
 *
 * Purpose: an op lives in one file op_*.c with forward beside backward and enters the table in op.c.
 * Ownership: a dsb_op_run points into the arena of one worker. Threads: functions touch only that.
 */
#ifndef DSB_NN_OP_H
#define DSB_NN_OP_H

#include "nn/net.h"

typedef struct dsb_op_run {
    const dsb_backend *be;
    dsb_stream *stream;
    const dsb_net *net;
    const dsb_op *op;
    const dsb_op *fused; /* the activation that this op applies on its way out, or NULL */
    bool single_row;     /* the result depends on t alone, and t is the same for all rows */
    dsb_slot in[DSB_MAX_INPUTS], out;
    dsb_slot fused_out; /* result of the fused activation; equals `out` where that is not saved */
    dsb_slot d_in[DSB_MAX_INPUTS], d_out;
    int beta[DSB_MAX_INPUTS]; /* overwrite (0) or accumulate (1) into d_in */
} dsb_op_run;

/* Memory shared by all workers during one pass. */
typedef struct dsb_op_weights {
    const float *theta;           /* plane */
    const float *packed;          /* net->packed_forward floats */
    const float *packed_backward; /* net->packed_backward floats, NULL when only forward runs */
} dsb_op_weights;

typedef enum dsb_needs {
    DSB_NEEDS_NOTHING = 0,
    DSB_NEEDS_INPUT = 1, /* the backward reads the op's inputs */
    DSB_NEEDS_OUTPUT = 2,
} dsb_needs;

typedef struct dsb_op_kind {
    const char *name;
    int min_inputs, max_inputs;
    dsb_activation activation; /* not DSB_IDENTITY: may be fused into the linear op before it */
    int needs;                 /* of dsb_needs */
    /* Checks the spec, sets op->spec.width and declares parameters. */
    dsb_status (*build)(dsb_net *net, dsb_op *op, const char *name);
    /* Sizes of the packed weights in floats, and their making; NULL where there are none. */
    int64_t (*packed_forward)(const dsb_net *net, const dsb_op *op);
    int64_t (*packed_backward)(const dsb_net *net, const dsb_op *op);
    void (*pack_forward)(const dsb_backend *be, dsb_stream *stream, const dsb_net *net,
                         const dsb_op *op, const float *theta, float *packed);
    void (*pack_backward)(const dsb_backend *be, dsb_stream *stream, const dsb_net *net,
                          const dsb_op *op, const float *theta, float *packed);
    void (*forward)(const dsb_op_run *run, const dsb_op_weights *weights, int rows);
    /* `grad` is the lane's gradient plane, or NULL (vjp); `beta` says whether it accumulates. */
    void (*backward)(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                     int beta);
} dsb_op_kind;

/* The kind called `name`, or NULL. */
const dsb_op_kind *dsb_op_find(const char *name);
/* All kinds, for messages: "linear, add, ...". */
const char *dsb_op_names(void);

extern const dsb_op_kind dsb_op_linear, dsb_op_leaky_relu, dsb_op_silu, dsb_op_add, dsb_op_concat,
    dsb_op_embed;

static inline const dsb_value *
dsb_op_input(const dsb_net *net, const dsb_op *op, int i)
{
    return &net->values[op->spec.inputs[i]];
}

/* For build functions: appends a parameter to the net. */
dsb_status dsb_net_param(dsb_net *net, const char *prefix, const char *suffix, int rank,
                         const int64_t *shape, int fan_in, int *param) DSB_MUST_CHECK;

#endif
