/* lookup: the row of a table that a label names. */
#include "nn/op.h"

static dsb_status
lookup_build(dsb_net *net, dsb_op *op, const char *name)
{
    DSB_REQUIRE(op->spec.inputs[0] == net->ports[DSB_PORT_LABEL],
                "lookup '%s': its input must be label", name);
    DSB_REQUIRE(op->spec.classes >= 1 && op->spec.classes <= 1 << 20,
                "lookup '%s': classes must lie in 1 .. %d, got %d", name, 1 << 20,
                op->spec.classes);
    DSB_REQUIRE(op->spec.width >= 1, "lookup '%s': width must be at least 1, got %d", name,
                op->spec.width);
    DSB_TRY(dsb_net_param(net, name, "weight", 2, (int64_t[]){op->spec.classes, op->spec.width},
                          DSB_INIT_NORMAL, 0, &op->params[0]));
    op->shape.width = op->spec.width;
    return DSB_OK;
}

static void
lookup_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    run->be->lookup(run->stream, rows, run->op->spec.classes, run->op->shape.width, run->in[0].data,
                    dsb_op_param(run->net, run->op, 0, weights->theta), run->out);
}

/* The gradient of a table's row is the sum of dy over the rows that named it. */
static void
lookup_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                int beta)
{
    (void)weights;
    if (grad != NULL) {
        run->be->lookup_backward(run->stream, rows, run->op->spec.classes, run->op->shape.width,
                                 run->in[0].data, run->d_out, beta,
                                 dsb_op_param(run->net, run->op, 0, grad));
    }
}

const dsb_op_kind dsb_op_lookup = {
    .name = "lookup",
    .min_inputs = 1,
    .max_inputs = 1,
    .needs = DSB_NEEDS_INPUT,
    .build = lookup_build,
    .forward = lookup_forward,
    .backward = lookup_backward,
};
