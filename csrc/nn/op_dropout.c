/* dropout: in training y = x / (1 - rate) with probability 1 - rate, else 0; the mask is a function of where
 * the run stands (dsb_draw), so that the backward draws it again. Otherwise y = x. */
#include "nn/op.h"

#define MAX_DROPOUTS 256 /* its number stands above the row's in the counter */
#define ROW_BITS 24

static dsb_status
dropout_build(dsb_net *net, dsb_op *op, const char *name)
{
    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    DSB_REQUIRE(op->spec.rate >= 0.0f && op->spec.rate < 1.0f,
                "dropout '%s': rate must lie in [0, 1), got %g", name, (double)op->spec.rate);
    DSB_REQUIRE(net->n_dropouts < MAX_DROPOUTS, "a net has at most %d dropouts", MAX_DROPOUTS);
    op->shape = *dsb_op_input(net, op, 0);
    return DSB_OK;
}

static void
mask(const dsb_op_run *run, int rows, dsb_slot x, int beta, dsb_slot y)
{
    const dsb_op *op = run->op;
    int pixels = dsb_pixels(&op->shape), c = op->shape.width;

    if (run->training && op->spec.rate > 0.0f) {
        dsb_draw at = *run->draw;

        at.sample |= (uint32_t)op->number << ROW_BITS;
        run->be->dropout(run->stream, &at, op->spec.rate, rows, pixels, c, x, beta, y);
    } else if (x.data != y.data) {
        dsb_op_copy(run, (int64_t)rows * pixels, c, x, beta, y);
    }
}

static void
dropout_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    (void)weights;
    mask(run, rows, run->in[0], 0, run->out);
}

/* dx = the same mask applied to dy. */
static void
dropout_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                 int beta)
{
    (void)weights;
    (void)grad;
    (void)beta;
    mask(run, rows, run->d_out, run->beta[0], run->d_in[0]);
}

const dsb_op_kind dsb_op_dropout = {
    .name = "dropout",
    .min_inputs = 1,
    .max_inputs = 1,
    .in_place = true,
    .needs = DSB_NEEDS_NOTHING,
    .build = dropout_build,
    .forward = dropout_forward,
    .backward = dropout_backward,
};
