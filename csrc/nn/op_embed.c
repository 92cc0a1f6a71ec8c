/* embed: sinusoids of the time t, [sin, cos] or [cos, sin] (see dsb_embedding in backend.h). */
#include "nn/op.h"

static dsb_status
embed_build(dsb_net *net, dsb_op *op, const char *name)
{
    DSB_REQUIRE(op->spec.inputs[0] == net->ports[DSB_PORT_T], "embed '%s': its input must be t",
                name);
    DSB_REQUIRE(op->spec.width >= 4 && op->spec.width % 2 == 0,
                "embed '%s': width must be even and at least 4, got %d", name, op->spec.width);
    op->shape.width = op->spec.width;
    return DSB_OK;
}

static void
embed_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    (void)weights;
    run->be->embed(run->stream, run->op->spec.embedding, rows, run->op->shape.width,
                   run->in[0].data, run->out.data, run->out.ld);
}

/* Never called: t has no gradient. */
static void
embed_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
               int beta)
{
    (void)run;
    (void)weights;
    (void)rows;
    (void)grad;
    (void)beta;
}

const dsb_op_kind dsb_op_embed = {
    .name = "embed",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_NOTHING,
    .build = embed_build,
    .forward = embed_forward,
    .backward = embed_backward,
};
