/* conv: y = W * x + b over images, kernel 3 or 1. The group_norm before it is applied while x is read,
 * what is added behind it while y is written, where the plan says so. */
#include "nn/op.h"

static dsb_conv
geometry(const dsb_net *net, const dsb_op *op)
{
    const dsb_shape *x = dsb_op_input(net, op, 0);

    return (dsb_conv){.h = x->h,
                      .w = x->w,
                      .c_in = x->width,
                      .c_out = op->shape.width,
                      .kernel = op->spec.kernel,
                      .stride = op->spec.stride,
                      .up = op->spec.up ? 2 : 1};
}

static dsb_status
conv_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *x = dsb_op_input(net, op, 0);
    int64_t k = op->spec.kernel, n_in = x->width, n_out = op->spec.width;
    dsb_init init = op->spec.zero ? DSB_INIT_ZERO : DSB_INIT_UNIFORM;
    int fan_in = (int)(n_in * k * k);
    dsb_conv conv;

    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    DSB_REQUIRE(k == 1 || k == 3, "conv '%s': kernel must be 1 or 3, got %d", name,
                op->spec.kernel);
    DSB_REQUIRE(op->spec.stride == 1 || op->spec.stride == 2,
                "conv '%s': stride must be 1 or 2, got %d", name, op->spec.stride);
    DSB_REQUIRE(!op->spec.up || op->spec.stride == 1, "conv '%s': up-sampling needs stride 1",
                name);
    DSB_REQUIRE(n_out >= 1, "conv '%s': width must be at least 1, got %d", name, op->spec.width);
    DSB_TRY(dsb_net_param(net, name, "weight", 4, (int64_t[]){n_out, k, k, n_in}, init, fan_in,
                          &op->params[0]));
    DSB_TRY(dsb_net_param(net, name, "bias", 1, (int64_t[]){n_out}, init, fan_in, &op->params[1]));
    op->shape = (dsb_shape){op->spec.width, 1, 1, true};
    conv = geometry(net, op);
    op->shape.h = dsb_conv_out(&conv, x->h);
    op->shape.w = dsb_conv_out(&conv, x->w);
    return DSB_OK;
}

static size_t
conv_packed_bytes(const dsb_backend *be, const dsb_net *net, const dsb_op *op,
                  dsb_precision precision, bool transposed)
{
    dsb_conv conv = geometry(net, op);

    return be->conv[precision].packed_bytes(&conv, transposed);
}

static void
conv_pack(const dsb_backend *be, dsb_stream *stream, const dsb_net *net, const dsb_op *op,
          dsb_precision precision, bool transposed, const float *theta, void *packed)
{
    dsb_conv conv = geometry(net, op);

    be->conv[precision].pack(stream, &conv, transposed, dsb_op_param(net, op, 0, theta), packed);
}

static size_t
conv_scratch(const dsb_backend *be, const dsb_net *net, const dsb_op *op, dsb_precision precision,
             int rows, bool backward)
{
    dsb_conv conv = geometry(net, op);

    return be->conv[precision].scratch_bytes(&conv, rows, backward);
}

/* The image that the convolution reads, and what it makes of it. */
static dsb_slot
source(const dsb_op_run *run, int rows, dsb_affine *affine)
{
    *affine = (dsb_affine){NULL, false};
    if (run->prologue == NULL) {
        return run->in[0];
    }
    *affine = dsb_group_norm_affine(run->prologue, rows);
    return run->prologue->in[0];
}

static void
conv_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    dsb_conv conv = geometry(run->net, run->op);
    dsb_epilogue epilogue = {.bias = dsb_op_param(run->net, run->op, 1, weights->theta),
                             .row = run->row,
                             .residual = run->residual};
    dsb_affine affine;
    dsb_slot x = source(run, rows, &affine);

    run->be->conv[run->precision].forward(run->stream, &conv, rows, x, &affine,
                                          weights->packed[run->index], &epilogue, run->last,
                                          run->scratch);
}

/* dW = sum over pixels of dy x, shifted by the tap;  dx = dy convolved with the flipped W^T. */
static void
conv_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    dsb_conv conv = geometry(run->net, run->op);
    const dsb_conv_passes *passes = &run->be->conv[run->precision];

    if (grad != NULL) {
        dsb_affine affine;
        dsb_slot x = source(run, rows, &affine);

        passes->backward_weight(run->stream, &conv, rows, x, &affine, run->d_out, beta,
                                dsb_op_param(run->net, run->op, 0, grad),
                                dsb_op_param(run->net, run->op, 1, grad), run->scratch);
    }
    if (run->d_in[0].data != NULL) {
        passes->backward_input(run->stream, &conv, rows, run->d_out,
                               weights->packed_transposed[run->index], run->beta[0], run->d_in[0],
                               run->scratch);
    }
}

const dsb_op_kind dsb_op_conv = {
    .name = "conv",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_INPUT,
    .build = conv_build,
    .packed_bytes = conv_packed_bytes,
    .pack = conv_pack,
    .scratch = conv_scratch,
    .forward = conv_forward,
    .backward = conv_backward,
};
