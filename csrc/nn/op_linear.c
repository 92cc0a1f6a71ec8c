/* linear: y = x W^T + b, with the activation behind it where the plan fuses one. */
#include "nn/op.h"

static dsb_status
linear_build(dsb_net *net, dsb_op *op, const char *name)
{
    int n_in = dsb_op_input(net, op, 0)->width, n_out = op->spec.width;
    dsb_init init = op->spec.zero ? DSB_INIT_ZERO : DSB_INIT_UNIFORM;

    DSB_REQUIRE(!dsb_op_input(net, op, 0)->image,
                "linear '%s': its input is an image; a convolution with kernel 1 does it", name);
    DSB_REQUIRE(n_out >= 1, "linear '%s': width must be at least 1, got %d", name, n_out);
    DSB_TRY(dsb_net_param(net, name, "weight", 2, (int64_t[]){n_out, n_in}, init, n_in,
                          &op->params[0]));
    DSB_TRY(dsb_net_param(net, name, "bias", 1, (int64_t[]){n_out}, init, n_in, &op->params[1]));
    op->shape.width = n_out;
    return DSB_OK;
}

static size_t
linear_packed_bytes(const dsb_backend *be, const dsb_net *net, const dsb_op *op,
                    dsb_precision precision, bool transposed)
{
    (void)be;
    (void)precision;
    (void)transposed;
    return sizeof(float) *
           (size_t)(dsb_pitch(op->shape.width) * dsb_pitch(dsb_op_input(net, op, 0)->width));
}

static void
linear_pack(const dsb_backend *be, dsb_stream *stream, const dsb_net *net, const dsb_op *op,
            dsb_precision precision, bool transposed, const float *theta, void *packed)
{
    (void)precision;
    (transposed ? be->linear_pack_transposed
                : be->linear_pack)(stream, dsb_op_input(net, op, 0)->width, op->shape.width,
                                   dsb_op_param(net, op, 0, theta), packed);
}

static void
linear_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_op *op = run->op, *fused = run->fused;
    bool saves_z = run->last.data != run->out.data;

    run->be->linear_forward(
        run->stream, rows, dsb_op_input(run->net, op, 0)->width, op->shape.width, run->in[0].data,
        run->in[0].ld, weights->packed[run->index], dsb_op_param(run->net, op, 1, weights->theta),
        fused != NULL ? fused->kind->activation : DSB_IDENTITY,
        fused != NULL ? fused->spec.slope : 0.0f, saves_z ? run->out.data : NULL, run->out.ld,
        run->last.data, run->last.ld);
}

/* y = x W^T + b:  dx = dy W,  dW = dy^T x,  db = sum over rows of dy. */
static void
linear_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                int beta)
{
    const dsb_op *op = run->op;
    int n_in = dsb_op_input(run->net, op, 0)->width, n_out = op->shape.width;

    if (grad != NULL) {
        run->be->linear_backward_weight(run->stream, rows, n_in, n_out, run->in[0].data,
                                        run->in[0].ld, run->d_out.data, run->d_out.ld, beta,
                                        dsb_op_param(run->net, op, 0, grad),
                                        dsb_op_param(run->net, op, 1, grad));
    }
    if (run->d_in[0].data != NULL) {
        run->be->linear_backward_input(run->stream, rows, n_in, n_out, run->d_out.data,
                                       run->d_out.ld, weights->packed_transposed[run->index],
                                       run->beta[0], run->d_in[0].data, run->d_in[0].ld);
    }
}

const dsb_op_kind dsb_op_linear = {
    .name = "linear",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_INPUT,
    .build = linear_build,
    .packed_bytes = linear_packed_bytes,
    .pack = linear_pack,
    .forward = linear_forward,
    .backward = linear_backward,
};
