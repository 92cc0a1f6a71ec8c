/* attention: y = softmax(q k^T / sqrt(d)) v over the pixels, for each head; the input holds q, k and v of one
 * head beside each other, heads outermost. */
#include "nn/op.h"

static dsb_status
attention_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *qkv = dsb_op_input(net, op, 0);

    DSB_TRY(dsb_op_wants_image(net, op, 0, name));
    DSB_REQUIRE(op->spec.heads >= 1 && qkv->width % (3 * op->spec.heads) == 0,
                "attention '%s': %d channels cannot be divided into q, k and v of %d heads", name,
                qkv->width, op->spec.heads);
    op->shape = *qkv;
    op->shape.width = qkv->width / 3;
    return DSB_OK;
}

static size_t
attention_scratch(const dsb_backend *be, const dsb_net *net, const dsb_op *op,
                  dsb_precision precision, int rows, bool backward)
{
    (void)net;
    (void)precision;
    (void)rows;
    (void)backward;
    return be->attention_scratch(dsb_pixels(&op->shape), op->shape.width, op->spec.heads);
}

static void
attention_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_op *op = run->op;

    (void)weights;
    run->be->attention(run->stream, rows, dsb_pixels(&op->shape), op->shape.width, op->spec.heads,
                       run->in[0], run->out, run->scratch);
    dsb_op_clear_padding(run, (int64_t)rows * dsb_pixels(&op->shape), op->shape.width, run->out);
}

static void
attention_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                   int beta)
{
    const dsb_op *op = run->op;

    (void)weights;
    (void)grad;
    (void)beta;
    run->be->attention_backward(run->stream, rows, dsb_pixels(&op->shape), op->shape.width,
                                op->spec.heads, run->in[0], run->d_out, run->beta[0], run->d_in[0],
                                run->scratch);
    dsb_op_clear_padding(run, (int64_t)rows * dsb_pixels(&op->shape), 3 * op->shape.width,
                         run->d_in[0]);
}

const dsb_op_kind dsb_op_attention = {
    .name = "attention",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_INPUT,
    .build = attention_build,
    .scratch = attention_scratch,
    .forward = attention_forward,
    .backward = attention_backward,
};
