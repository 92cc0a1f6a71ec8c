/* image and flatten: between vectors that hold an image channel by channel (NCHW, as users keep them) and
 * images (NHWC, as the kernels want them). */
#include "nn/op.h"

static dsb_status
image_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *x = dsb_op_input(net, op, 0);
    int h = op->spec.h, w = op->spec.w;

    DSB_REQUIRE(!x->image, "image '%s': its input is an image already", name);
    DSB_REQUIRE(h >= 1 && w >= 1 && (int64_t)h * w <= x->width && x->width % (h * w) == 0,
                "image '%s': %d numbers are no whole channels of %d x %d pixels", name, x->width, h,
                w);
    op->shape = (dsb_shape){x->width / (h * w), h, w, true};
    return DSB_OK;
}

static void
image_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    run->be->row_to_image(run->stream, rows, dsb_pixels(y), y->width, run->in[0], 0, run->out);
}

static void
image_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
               int beta)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    (void)grad;
    (void)beta;
    run->be->image_to_row(run->stream, rows, dsb_pixels(y), y->width, run->d_out, run->beta[0],
                          run->d_in[0]);
}

static dsb_status
flatten_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *x = dsb_op_input(net, op, 0);

    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    op->shape.width = x->width * dsb_pixels(x);
    return DSB_OK;
}

static void
flatten_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_shape *x = dsb_op_input(run->net, run->op, 0);

    (void)weights;
    run->be->image_to_row(run->stream, rows, dsb_pixels(x), x->width, run->in[0], 0, run->out);
}

static void
flatten_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                 int beta)
{
    const dsb_shape *x = dsb_op_input(run->net, run->op, 0);

    (void)weights;
    (void)grad;
    (void)beta;
    run->be->row_to_image(run->stream, rows, dsb_pixels(x), x->width, run->d_out, run->beta[0],
                          run->d_in[0]);
}

const dsb_op_kind dsb_op_image = {
    .name = "image",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_NOTHING,
    .build = image_build,
    .forward = image_forward,
    .backward = image_backward,
};

const dsb_op_kind dsb_op_flatten = {
    .name = "flatten",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_NOTHING,
    .build = flatten_build,
    .forward = flatten_forward,
    .backward = flatten_backward,
};
