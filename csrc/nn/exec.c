#include "nn/exec.h"

#include <assert.h>

#include "base/arena.h"
#include "base/memory.h"

static dsb_slot
slot_at(const dsb_exec *exec, const dsb_place *place)
{
    dsb_slot slot = {NULL, place->ld, place->dtype};

    if (place->buffer >= 0) {
        slot.data = exec->arena + exec->plan->buffers[place->buffer].offset;
    }
    return dsb_slot_from(slot, place->column);
}

static dsb_slot
slot_of(const dsb_exec *exec, int value)
{
    return value >= 0 ? slot_at(exec, &exec->plan->places[value]) : dsb_float_slot(NULL, 0);
}

static void *
memory_of(const dsb_exec *exec, int buffer)
{
    return buffer >= 0 ? exec->arena + exec->plan->buffers[buffer].offset : NULL;
}

static void
bind_op(dsb_exec *exec, int i)
{
    const dsb_plan *plan = exec->plan;
    const dsb_plan_op *planned = &plan->ops[i];
    const dsb_net *net = plan->net;
    const dsb_op *op = &net->ops[i];
    dsb_op_run *run = &exec->runs[i];

    *run = (dsb_op_run){.be = exec->be,
                        .net = net,
                        .op = op,
                        .index = i,
                        .precision = plan->request.precision,
                        .training = plan->request.mode == DSB_TRAIN,
                        .draw = &exec->draw};
    for (int j = 0; j < op->spec.n_inputs; j++) {
        run->in[j] = slot_of(exec, op->spec.inputs[j]);
        run->d_in[j] = slot_at(exec, &plan->gradients[op->spec.inputs[j]]);
        run->beta[j] = planned->beta[j];
    }
    run->out = slot_of(exec, op->output);
    run->d_out = slot_at(exec, &plan->gradients[op->output]);
    run->single_row = run->out.data != NULL && run->out.ld == 0;
    run->last = slot_of(exec, net->ops[planned->ends].output);
    if (planned->ends != i && net->ops[planned->ends].kind->activation != DSB_IDENTITY) {
        run->fused = &net->ops[planned->ends];
    }
    run->prologue = planned->prologue >= 0 ? &exec->runs[planned->prologue] : NULL;
    run->row = slot_of(exec, planned->row);
    run->residual = slot_of(exec, planned->residual);
    run->saved = memory_of(exec, planned->saved);
    run->scratch = memory_of(exec, plan->scratch);
}

dsb_status
dsb_exec_create(const dsb_plan *plan, const dsb_backend *be, dsb_exec **out)
{
    const dsb_net *net = plan->net;
    dsb_exec *exec;
    dsb_status status;

    *out = NULL;
    DSB_TRY(dsb_alloc(sizeof *exec, &exec));
    exec->plan = plan;
    exec->be = be;
    status = dsb_alloc(sizeof *exec->runs * (size_t)(net->n_ops + 1), &exec->runs);
    if (status == DSB_OK) {
        status = be->alloc(plan->bytes, &exec->arena);
    }
    if (status != DSB_OK) {
        dsb_exec_destroy(exec);
        return status;
    }
    dsb_arena_close(exec->arena, plan->bytes);
    for (int i = 0; i < plan->n_buffers; i++) {
        dsb_arena_open(exec->arena + plan->buffers[i].offset, plan->buffers[i].bytes);
    }
    for (int i = 0; i < net->n_ops; i++) {
        bind_op(exec, i);
    }
    for (int i = 0; i < DSB_PORTS; i++) {
        if (net->ports[i] >= 0) {
            exec->inputs[i] = slot_at(exec, &plan->places[net->ports[i]]);
        }
    }
    exec->output = slot_at(exec, &plan->places[net->output]);
    exec->d_output = slot_at(exec, &plan->gradients[net->output]);
    exec->d_x = slot_at(exec, &plan->gradients[net->ports[DSB_PORT_X]]);
    *out = exec;
    return DSB_OK;
}

void
dsb_exec_destroy(dsb_exec *exec)
{
    if (exec != NULL) {
        if (exec->arena != NULL) {
            dsb_arena_open(exec->arena, exec->plan->bytes);
        }
        exec->be->free(exec->arena);
        dsb_free(exec->runs);
        dsb_free(exec);
    }
}

/* Whether the forward of op i is all done by an op before it. */
static bool
done_before(const dsb_exec *exec, int i)
{
    int by = exec->plan->ops[i].fused_by;

    return by >= 0 && by < i;
}

static void
run_forward(dsb_exec *exec, const dsb_op_weights *weights, int rows, int i)
{
    const dsb_op_run *run = &exec->runs[i];

    if (exec->plan->ops[i].live && !done_before(exec, i)) {
        run->op->kind->forward(run, weights, run->single_row ? 1 : rows);
    }
}

void
dsb_exec_forward(dsb_exec *exec, const dsb_op_weights *weights, int rows)
{
    assert(rows >= 1 && rows <= exec->plan->request.rows);
    for (int i = 0; i < exec->plan->net->n_ops; i++) {
        run_forward(exec, weights, rows, i);
    }
}

void
dsb_exec_backward(dsb_exec *exec, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    assert(exec->plan->request.mode != DSB_INFER);
    assert((grad != NULL) == (exec->plan->request.mode == DSB_TRAIN));
    for (int i = exec->plan->net->n_ops - 1; i >= 0; i--) {
        if (exec->plan->ops[i].differs) {
            exec->runs[i].op->kind->backward(&exec->runs[i], weights, rows, grad, beta);
        }
    }
}

const char *
dsb_exec_find_nonfinite(dsb_exec *exec, const dsb_op_weights *weights, int rows)
{
    const dsb_net *net = exec->plan->net;

    for (int i = 0; i < net->n_ops; i++) {
        const dsb_op_run *run = &exec->runs[i];
        const dsb_op *last = &net->ops[exec->plan->ops[i].ends];
        int64_t lines = run->single_row ? 1 : (int64_t)rows * dsb_pixels(&last->shape);

        run_forward(exec, weights, rows, i);
        if (exec->plan->ops[i].live && !done_before(exec, i) && run->last.data != NULL &&
            exec->be->first_nonfinite(lines, last->shape.width, run->last) >= 0) {
            return net->values[last->output].name;
        }
    }
    return NULL;
}

/* ---- weights ---- */

/* Bytes of the packed weights of op i, and so much that the next begins on a line. */
static size_t
packed_bytes(const dsb_net *net, const dsb_backend *be, dsb_precision precision, int i,
             bool transposed)
{
    const dsb_op *op = &net->ops[i];
    size_t bytes = op->kind->packed_bytes != NULL
                       ? op->kind->packed_bytes(be, net, op, precision, transposed)
                       : 0;

    return (bytes + 63) / 64 * 64;
}

size_t
dsb_weights_bytes(const dsb_net *net, const dsb_backend *be, dsb_precision precision, bool backward)
{
    size_t bytes = 0;

    for (int i = 0; i < net->n_ops; i++) {
        for (int transposed = 0; transposed <= backward; transposed++) {
            bytes += packed_bytes(net, be, precision, i, transposed);
        }
    }
    return bytes;
}

dsb_status
dsb_weights_init(dsb_weights *weights, const dsb_net *net, const dsb_backend *be,
                 dsb_precision precision, bool backward)
{
    size_t n = (size_t)net->n_ops, offset = 0;
    dsb_status status;

    *weights = (dsb_weights){.net = net, .be = be, .precision = precision};
    DSB_TRY(dsb_alloc(sizeof *weights->packed * (2 * n + 1), &weights->packed));
    status = be->alloc(dsb_weights_bytes(net, be, precision, backward), &weights->block);
    if (status != DSB_OK) {
        dsb_weights_clear(weights);
        return status;
    }
    for (int i = 0; i < net->n_ops; i++) {
        for (int transposed = 0; transposed <= backward; transposed++) {
            weights->packed[(size_t)transposed * n + (size_t)i] = weights->block + offset;
            offset += packed_bytes(net, be, precision, i, transposed);
        }
    }
    weights->view.packed = weights->packed;
    weights->view.packed_transposed = backward ? weights->packed + n : NULL;
    return DSB_OK;
}

void
dsb_weights_clear(dsb_weights *weights)
{
    if (weights->be != NULL) {
        weights->be->free(weights->block);
        dsb_free(weights->packed);
    }
    *weights = (dsb_weights){.net = NULL};
}

static void
pack_task(void *context, int64_t i, int worker)
{
    dsb_weights *weights = context;
    const dsb_op *op = &weights->net->ops[i / 2];
    bool transposed = i % 2;
    void *const *packed = transposed ? weights->view.packed_transposed : weights->view.packed;

    (void)worker;
    if (op->kind->pack != NULL && packed != NULL) {
        op->kind->pack(weights->be, NULL, weights->net, op, weights->precision, transposed,
                       weights->view.theta, packed[i / 2]);
    }
}

void
dsb_weights_pack(dsb_weights *weights, const float *theta, int max_workers)
{
    weights->view.theta = theta;
    weights->be->parallel(max_workers, 2 * weights->net->n_ops, pack_task, weights);
}
