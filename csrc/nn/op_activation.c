/* leaky_relu and silu: y = f(x) elementwise. */
#include "nn/op.h"

static dsb_status
activation_build(dsb_net *net, dsb_op *op, const char *name)
{
    op->shape = *dsb_op_input(net, op, 0);
    if (op->kind->activation == DSB_LEAKY_RELU) {
        DSB_REQUIRE(op->spec.slope > 0.0f && op->spec.slope <= 1.0f,
                    "leaky_relu '%s': slope must lie in (0, 1], got %g", name,
                    (double)op->spec.slope);
    }
    return DSB_OK;
}

static void
activation_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    run->be->activation(run->stream, run->op->kind->activation, run->op->spec.slope,
                        (int64_t)rows * dsb_pixels(y), y->width, run->in[0], run->out);
}

/* dx = dy f'(x). LeakyReLU keeps the sign, so y tells f' and x need not be kept; SiLU needs x:
 * f'(x) = s (1 + x (1 - s)) with s = 1 / (1 + e^-x). */
static void
activation_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                    int beta)
{
    const dsb_shape *y = &run->op->shape;
    dsb_slot saved = run->op->kind->needs == DSB_NEEDS_OUTPUT ? run->out : run->in[0];

    (void)weights;
    (void)grad;
    (void)beta;
    run->be->activation_backward(run->stream, run->op->kind->activation, run->op->spec.slope,
                                 (int64_t)rows * dsb_pixels(y), y->width, saved, run->d_out,
                                 run->beta[0], run->d_in[0]);
}

const dsb_op_kind dsb_op_leaky_relu = {
    .name = "leaky_relu",
    .min_inputs = 1,
    .max_inputs = 1,
    .activation = DSB_LEAKY_RELU,
    .in_place = true,
    .needs = DSB_NEEDS_OUTPUT,
    .build = activation_build,
    .forward = activation_forward,
    .backward = activation_backward,
};

const dsb_op_kind dsb_op_silu = {
    .name = "silu",
    .min_inputs = 1,
    .max_inputs = 1,
    .activation = DSB_SILU,
    .in_place = true,
    .needs = DSB_NEEDS_INPUT,
    .build = activation_build,
    .forward = activation_forward,
    .backward = activation_backward,
};
