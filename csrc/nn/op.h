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
    int index; /* of the op in the net */
    dsb_precision precision;
    bool training;       /* the pass has a backward for the parameters: dropout is on */
    bool single_row;     /* the result depends on t alone, and t is the same for all rows */
    const dsb_op *fused; /* the activation that a linear op applies on its way out, or NULL */
    const struct dsb_op_run *prologue; /* the group_norm that a convolution applies to its input */
    dsb_slot in[DSB_MAX_INPUTS], out;  /* data NULL: the value is never stored */
    dsb_slot last; /* result of what is fused behind; equals `out` where that is not saved */
    dsb_slot row, residual; /* what a convolution adds on its way out */
    dsb_slot d_in[DSB_MAX_INPUTS], d_out;
    int beta[DSB_MAX_INPUTS]; /* overwrite (0) or accumulate (1) into d_in */
    float *saved;             /* from the op's forward to its backward; see dsb_op_kind */
    void *scratch;            /* of the worker */
    const dsb_draw *draw;     /* where dropout draws: `sample` is the first row's */
} dsb_op_run;

/* Memory shared by all workers during one pass; packed weights by op. */
typedef struct dsb_op_weights {
    const float *theta;                             /* plane */
    void *const *packed, *const *packed_transposed; /* the latter NULL when only forward runs */
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
    bool in_place;             /* y may overwrite x, and dx dy: element by element, first input */
    int needs;                 /* of dsb_needs */
    /* Checks the spec, sets op->shape and declares parameters. */
    dsb_status (*build)(dsb_net *net, dsb_op *op, const char *name);
    /* Packed weights, in bytes, and their making; NULL where there are none. */
    size_t (*packed_bytes)(const dsb_backend *be, const dsb_net *net, const dsb_op *op,
                           dsb_precision precision, bool transposed);
    void (*pack)(const dsb_backend *be, dsb_stream *stream, const dsb_net *net, const dsb_op *op,
                 dsb_precision precision, bool transposed, const float *theta, void *packed);
    /* Floats that live from forward to backward beside the result, and bytes that live during a call;
     * NULL: none. */
    int64_t (*saved)(const dsb_net *net, const dsb_op *op, int rows);
    size_t (*scratch)(const dsb_backend *be, const dsb_net *net, const dsb_op *op,
                      dsb_precision precision, int rows, bool backward);
    void (*forward)(const dsb_op_run *run, const dsb_op_weights *weights, int rows);
    /* `grad` is the lane's gradient plane, or NULL (vjp); `beta` says whether it accumulates. */
    void (*backward)(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                     int beta);
} dsb_op_kind;

/* The kind called `name`, or NULL. */
const dsb_op_kind *dsb_op_find(const char *name);
/* All kinds, for messages, written to `text`: "linear, add, ...". */
const char *dsb_op_names(char *text, size_t size);

extern const dsb_op_kind dsb_op_linear, dsb_op_leaky_relu, dsb_op_silu, dsb_op_add, dsb_op_concat,
    dsb_op_embed, dsb_op_lookup, dsb_op_image, dsb_op_flatten, dsb_op_conv, dsb_op_group_norm,
    dsb_op_attention, dsb_op_upsample, dsb_op_pool, dsb_op_dropout;

static inline const dsb_shape *
dsb_op_input(const dsb_net *net, const dsb_op *op, int i)
{
    return &net->values[op->spec.inputs[i]].shape;
}

static inline int
dsb_pixels(const dsb_shape *shape)
{
    return shape->h * shape->w;
}

/* A parameter of the op in a plane; NULL where there is no plane. */
static inline float *
dsb_op_param(const dsb_net *net, const dsb_op *op, int i, const float *plane)
{
    return plane != NULL ? (float *)plane + net->params[op->params[i]].offset : NULL;
}

/* For build functions: appends a parameter to the net. */
dsb_status dsb_net_param(dsb_net *net, const char *prefix, const char *suffix, int rank,
                         const int64_t *shape, dsb_init init, int fan_in,
                         int *param) DSB_MUST_CHECK;
/* For build functions: fails unless input i is an image. */
dsb_status dsb_op_wants_image(const dsb_net *net, const dsb_op *op, int i,
                              const char *name) DSB_MUST_CHECK;

/* Clears what stands behind the n columns of lines that belong to y alone. */
void dsb_op_clear_padding(const dsb_op_run *run, int64_t lines, int n, dsb_slot y);
/* y = x (+ y) in n columns of such lines, and nothing stands behind them. */
void dsb_op_copy(const dsb_op_run *run, int64_t lines, int n, dsb_slot x, int beta, dsb_slot y);

/* What a group_norm leaves for the convolution that applies it. */
dsb_affine dsb_group_norm_affine(const dsb_op_run *run, int rows);

#endif
