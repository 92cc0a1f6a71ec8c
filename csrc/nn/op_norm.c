/* group_norm: y = silu?(n (1 + scale) + shift), n = weight (x - mean) / deviation + bias over the pixels and
 * channels of each group; scale and shift are a vector input, if any. Its forward takes the statistics;
 * the convolution behind it applies them where the plan fuses the two, and y is never stored. */
#include "nn/op.h"

static dsb_status
norm_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *x = dsb_op_input(net, op, 0);
    int64_t c = x->width;

    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    DSB_REQUIRE(op->spec.groups >= 1 && x->width % op->spec.groups == 0,
                "group_norm '%s': %d channels cannot be divided into %d groups", name, x->width,
                op->spec.groups);
    if (op->spec.n_inputs == 2) {
        const dsb_shape *v = dsb_op_input(net, op, 1);

        DSB_REQUIRE(!v->image && v->width == 2 * x->width,
                    "group_norm '%s': scale and shift of %d channels are a vector of %d numbers, "
                    "got %d",
                    name, x->width, 2 * x->width, v->width);
    }
    DSB_TRY(dsb_net_param(net, name, "weight", 1, &c, DSB_INIT_ONE, 0, &op->params[0]));
    DSB_TRY(dsb_net_param(net, name, "bias", 1, &c, DSB_INIT_ZERO, 0, &op->params[1]));
    op->shape = *x;
    return DSB_OK;
}

static int64_t
stats_floats(const dsb_op *op, int rows)
{
    return dsb_pitch(2 * (int64_t)rows * op->spec.groups);
}

static int64_t
norm_saved(const dsb_net *net, const dsb_op *op, int rows)
{
    (void)net;
    return stats_floats(op, rows) + 2 * rows * dsb_pitch(op->shape.width);
}

dsb_affine
dsb_group_norm_affine(const dsb_op_run *run, int rows)
{
    return (dsb_affine){run->saved + stats_floats(run->op, rows), run->op->spec.silu};
}

static dsb_group_norm
describe(const dsb_op_run *run, const dsb_op_weights *weights)
{
    const dsb_op *op = run->op;

    return (dsb_group_norm){.pixels = dsb_pixels(&op->shape),
                            .c = op->shape.width,
                            .groups = op->spec.groups,
                            .silu = op->spec.silu,
                            .weight = dsb_op_param(run->net, op, 0, weights->theta),
                            .bias = dsb_op_param(run->net, op, 1, weights->theta),
                            .scale_shift =
                                op->spec.n_inputs == 2 ? run->in[1] : dsb_float_slot(NULL, 0)};
}

static void
norm_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    dsb_group_norm norm = describe(run, weights);
    dsb_affine affine = dsb_group_norm_affine(run, rows);

    run->be->group_norm_statistics(run->stream, &norm, rows, run->in[0], run->saved,
                                   run->saved + stats_floats(run->op, rows));
    if (run->out.data != NULL) {
        run->be->affine(run->stream, &affine, rows, norm.pixels, norm.c, run->in[0], run->out);
    }
}

static void
norm_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    dsb_group_norm norm = describe(run, weights);
    dsb_slot d_scale_shift = norm.scale_shift.data != NULL ? run->d_in[1] : dsb_float_slot(NULL, 0);
    bool wanted =
        run->d_in[0].data != NULL; /* an input of the net may not be: dy makes room then */

    run->be->group_norm_backward(
        run->stream, &norm, rows, run->in[0], run->saved, dsb_group_norm_affine(run, rows).ab,
        run->d_out, wanted ? run->beta[0] : 0, wanted ? run->d_in[0] : run->d_out, beta,
        dsb_op_param(run->net, run->op, 0, grad), dsb_op_param(run->net, run->op, 1, grad),
        run->beta[1], d_scale_shift);
}

const dsb_op_kind dsb_op_group_norm = {
    .name = "group_norm",
    .min_inputs = 1,
    .max_inputs = 2,
    .in_place = true,
    .needs = DSB_NEEDS_INPUT,
    .build = norm_build,
    .saved = norm_saved,
    .forward = norm_forward,
    .backward = norm_backward,
};
