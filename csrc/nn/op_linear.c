/* linear: y = x W^T + b, with the activation behind it where the plan fuses one. */
#include "nn/op.h"

static dsb_status
linear_build(dsb_net *net, dsb_op *op, const char *name)
{
    int n_in = dsb_op_input(net, op, 0)->width, n_out = op->spec.width;
    int fan_in = op->spec.zero ? 0 : n_in;

    DSB_REQUIRE(n_out >= 1, "linear '%s': width must be at least 1, got %d", name, n_out);
    DSB_TRY(
        dsb_net_param(net, name, "weight", 2, (int64_t[]){n_out, n_in}, fan_in, &op->params[0]));
    DSB_TRY(dsb_net_param(net, name, "bias", 1, (int64_t[]){n_out}, fan_in, &op->params[1]));
    return DSB_OK;
}

static int64_t
linear_packed_forward(const dsb_net *net, const dsb_op *op)
{
    return dsb_pitch(op->spec.width) * dsb_pitch(dsb_op_input(net, op, 0)->width);
}

static int64_t
linear_packed_backward(const dsb_net *net, const dsb_op *op)
{
    return linear_packed_forward(net, op);
}

static void
linear_pack_forward(const dsb_backend *be, dsb_stream *stream, const dsb_net *net, const dsb_op *op,
                    const float *theta, float *packed)
{
    be->linear_pack(stream, dsb_op_input(net, op, 0)->width, op->spec.width,
                    theta + net->params[op->params[0]].offset, packed);
}

static void
linear_pack_backward(const dsb_backend *be, dsb_stream *stream, const dsb_net *net,
                     const dsb_op *op, const float *theta, float *packed)
{
    be->linear_pack_transposed(stream, dsb_op_input(net, op, 0)->width, op->spec.width,
                               theta + net->params[op->params[0]].offset, packed);
}

static void
linear_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_op *op = run->op, *fused = run->fused;
    bool saves_z = fused != NULL && run->fused_out.data != run->out.data;
    dsb_slot y = fused != NULL ? run->fused_out : run->out;

    run->be->linear_forward(run->stream, rows, dsb_op_input(run->net, op, 0)->width, op->spec.width,
                            run->in[0].data, run->in[0].ld, weights->packed + op->packed,
                            weights->theta + run->net->params[op->params[1]].offset,
                            fused != NULL ? fused->kind->activation : DSB_IDENTITY,
                            fused != NULL ? fused->spec.slope : 0.0f,
                            saves_z ? run->out.data : NULL, run->out.ld, y.data, y.ld);
}

/* y = x W^T + b:  dx = dy W,  dW = dy^T x,  db = sum over rows of dy. */
static void
linear_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                int beta)
{
    const dsb_op *op = run->op;
    int n_in = dsb_op_input(run->net, op, 0)->width, n_out = op->spec.width;

    if (grad != NULL) {
        run->be->linear_backward_weight(run->stream, rows, n_in, n_out, run->in[0].data,
                                        run->in[0].ld, run->d_out.data, run->d_out.ld, beta,
                                        grad + run->net->params[op->params[0]].offset,
                                        grad + run->net->params[op->params[1]].offset);
    }
    if (run->d_in[0].data != NULL) {
        run->be->linear_backward_input(run->stream, rows, n_in, n_out, run->d_out.data,
                                       run->d_out.ld,
                                       weights->packed_backward + op->packed_backward, run->beta[0],
                                       run->d_in[0].data, run->d_in[0].ld);
    }
}

const dsb_op_kind dsb_op_linear = {
    .name = "linear",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_INPUT,
    .build = linear_build,
    .packed_forward = linear_packed_forward,
    .packed_backward = linear_packed_backward,
    .pack_forward = linear_pack_forward,
    .pack_backward = linear_pack_backward,
    .forward = linear_forward,
    .backward = linear_backward,
};
