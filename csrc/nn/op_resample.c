/* upsample: each pixel twice in both directions.  pool: the mean of 2 x 2 pixels. */
#include "nn/op.h"

static dsb_status
upsample_build(dsb_net *net, dsb_op *op, const char *name)
{
    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    op->shape = *dsb_op_input(net, op, 0);
    op->shape.h *= 2;
    op->shape.w *= 2;
    return DSB_OK;
}

static void
upsample_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_shape *x = dsb_op_input(run->net, run->op, 0);

    (void)weights;
    run->be->upsample(run->stream, rows, x->h, x->w, x->width, 1.0f, run->in[0], 0, run->out);
}

/* dx = the sum of dy over the four copies. */
static void
upsample_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                  int beta)
{
    const dsb_shape *x = dsb_op_input(run->net, run->op, 0);

    (void)weights;
    (void)grad;
    (void)beta;
    run->be->downsample(run->stream, rows, x->h, x->w, x->width, 1.0f, run->d_out, run->beta[0],
                        run->d_in[0]);
}

static dsb_status
pool_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *x = dsb_op_input(net, op, 0);

    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    DSB_REQUIRE(x->h % 2 == 0 && x->w % 2 == 0,
                "pool '%s': height and width must be even, got %d x %d", name, x->h, x->w);
    op->shape = (dsb_shape){x->width, x->h / 2, x->w / 2, true};
    return DSB_OK;
}

static void
pool_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    run->be->downsample(run->stream, rows, y->h, y->w, y->width, 0.25f, run->in[0], 0, run->out);
}

/* dx = dy / 4 at each of the four. */
static void
pool_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    (void)grad;
    (void)beta;
    run->be->upsample(run->stream, rows, y->h, y->w, y->width, 0.25f, run->d_out, run->beta[0],
                      run->d_in[0]);
}

const dsb_op_kind dsb_op_upsample = {
    .name = "upsample",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_NOTHING,
    .build = upsample_build,
    .forward = upsample_forward,
    .backward = upsample_backward,
};

const dsb_op_kind dsb_op_pool = {
    .name = "pool",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_NOTHING,
    .build = pool_build,
    .forward = pool_forward,
    .backward = pool_backward,
};
