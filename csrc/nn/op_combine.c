/* add: y = a + b.  concat: y = [a, b, ...] along the columns. */
#include "nn/op.h"

static dsb_status
add_build(dsb_net *net, dsb_op *op, const char *name)
{
    int a = dsb_op_input(net, op, 0)->width, b = dsb_op_input(net, op, 1)->width;

    DSB_REQUIRE(a == b, "add '%s': widths must be equal, got %d and %d", name, a, b);
    op->spec.width = a;
    return DSB_OK;
}

static void
add_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    (void)weights;
    run->be->add(run->stream, rows, run->op->spec.width, run->in[0], run->in[1], run->out);
}

/* da = dy, db = dy. */
static void
add_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    (void)weights;
    (void)grad;
    (void)beta;
    for (int i = 0; i < 2; i++) {
        if (run->d_in[i].data != NULL) {
            run->be->copy(run->stream, rows, run->op->spec.width, run->d_out, run->beta[i],
                          run->d_in[i]);
        }
    }
}

static dsb_status
concat_build(dsb_net *net, dsb_op *op, const char *name)
{
    (void)name;
    op->spec.width = 0;
    for (int i = 0; i < op->spec.n_inputs; i++) {
        op->spec.width += dsb_op_input(net, op, i)->width;
    }
    return DSB_OK;
}

/* An input that the plan laid as a slice of the result is there already. */
static void
concat_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    int64_t column = 0;

    (void)weights;
    for (int i = 0; i < run->op->spec.n_inputs; i++) {
        int width = dsb_op_input(run->net, run->op, i)->width;

        dsb_slot slice = dsb_slot_from(run->out, column);

        if (run->in[i].data != slice.data) {
            run->be->copy(run->stream, rows, width, run->in[i], 0, slice);
        }
        column += width;
    }
}

/* Each input's gradient is its slice of dy. */
static void
concat_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                int beta)
{
    int64_t column = 0;

    (void)weights;
    (void)grad;
    (void)beta;
    for (int i = 0; i < run->op->spec.n_inputs; i++) {
        int width = dsb_op_input(run->net, run->op, i)->width;

        dsb_slot slice = dsb_slot_from(run->d_out, column);

        if (run->d_in[i].data != NULL && run->d_in[i].data != slice.data) {
            run->be->copy(run->stream, rows, width, slice, run->beta[i], run->d_in[i]);
        }
        column += width;
    }
}

const dsb_op_kind dsb_op_add = {
    .name = "add",
    .min_inputs = 2,
    .max_inputs = 2,
    .needs = DSB_NEEDS_NOTHING,
    .build = add_build,
    .forward = add_forward,
    .backward = add_backward,
};

const dsb_op_kind dsb_op_concat = {
    .name = "concat",
    .min_inputs = 2,
    .max_inputs = DSB_MAX_INPUTS,
    .needs = DSB_NEEDS_NOTHING,
    .build = concat_build,
    .forward = concat_forward,
    .backward = concat_backward,
};
