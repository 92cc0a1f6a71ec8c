#include "nn/exec.h"

#include <assert.h>

#include "base/arena.h"
#include "base/memory.h"

static dsb_slot
slot_at(const dsb_exec *exec, const dsb_place *place)
{
    if (place->buffer < 0) {
        return dsb_float_slot(NULL, 0);
    }
    return dsb_float_slot((float *)(exec->arena + exec->plan->buffers[place->buffer].offset) +
                              place->column,
                          place->ld);
}

static void
bind_op(dsb_exec *exec, int i)
{
    const dsb_plan *plan = exec->plan;
    const dsb_net *net = plan->net;
    const dsb_op *op = &net->ops[i];
    dsb_op_run *run = &exec->runs[i];

    *run = (dsb_op_run){.be = exec->be, .net = net, .op = op};
    for (int j = 0; j < op->spec.n_inputs; j++) {
        run->in[j] = slot_at(exec, &plan->places[op->spec.inputs[j]]);
        run->d_in[j] = slot_at(exec, &plan->gradients[op->spec.inputs[j]]);
        run->beta[j] = plan->ops[i].beta[j];
    }
    run->out = slot_at(exec, &plan->places[op->output]);
    run->d_out = slot_at(exec, &plan->gradients[op->output]);
    run->single_row = run->out.data != NULL && run->out.ld == 0;
    if (plan->ops[i].fuses >= 0) {
        run->fused = &net->ops[plan->ops[i].fuses];
        run->fused_out = slot_at(exec, &plan->places[run->fused->output]);
    }
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

static void
run_forward(dsb_exec *exec, const dsb_op_weights *weights, int rows, int i)
{
    const dsb_op_run *run = &exec->runs[i];

    if (exec->plan->ops[i].live && !exec->plan->ops[i].fused) {
        run->op->kind->forward(run, weights, run->single_row ? 1 : rows);
    }
}

void
dsb_exec_forward(dsb_exec *exec, const dsb_op_weights *weights, int rows)
{
    assert(rows >= 1 && rows <= exec->plan->rows);
    for (int i = 0; i < exec->plan->net->n_ops; i++) {
        run_forward(exec, weights, rows, i);
    }
}

void
dsb_exec_backward(dsb_exec *exec, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    assert(exec->plan->mode != DSB_INFER);
    assert((grad != NULL) == (exec->plan->mode == DSB_TRAIN));
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
        const dsb_op *last = run->fused != NULL ? run->fused : run->op;
        dsb_slot out = run->fused != NULL ? run->fused_out : run->out;

        run_forward(exec, weights, rows, i);
        if (exec->plan->ops[i].live && !exec->plan->ops[i].fused &&
            exec->be->first_nonfinite(run->single_row ? 1 : rows, last->spec.width, out) >= 0) {
            return net->values[last->output].name;
        }
    }
    return NULL;
}

/* ---- weights ---- */

size_t
dsb_weights_bytes(const dsb_net *net, bool backward)
{
    return sizeof(float) * (size_t)(net->packed_forward + (backward ? net->packed_backward : 0));
}

dsb_status
dsb_weights_init(dsb_weights *weights, const dsb_net *net, const dsb_backend *be, bool backward)
{
    *weights = (dsb_weights){.net = net, .be = be};
    DSB_TRY(be->alloc(sizeof(float) * (size_t)net->packed_forward, &weights->packed));
    if (backward) {
        dsb_status status =
            be->alloc(sizeof(float) * (size_t)net->packed_backward, &weights->packed_backward);

        if (status != DSB_OK) {
            dsb_weights_clear(weights);
            return status;
        }
    }
    weights->view.packed = weights->packed;
    weights->view.packed_backward = weights->packed_backward;
    return DSB_OK;
}

void
dsb_weights_clear(dsb_weights *weights)
{
    if (weights->be != NULL) {
        weights->be->free(weights->packed);
        weights->be->free(weights->packed_backward);
    }
    *weights = (dsb_weights){.net = NULL};
}

static void
pack_task(void *context, int64_t i, int worker)
{
    dsb_weights *weights = context;
    const dsb_op *op = &weights->net->ops[i];
    const float *theta = weights->view.theta;

    (void)worker;
    if (op->kind->pack_forward != NULL) {
        op->kind->pack_forward(weights->be, NULL, weights->net, op, theta,
                               weights->packed + op->packed);
        if (weights->packed_backward != NULL) {
            op->kind->pack_backward(weights->be, NULL, weights->net, op, theta,
                                    weights->packed_backward + op->packed_backward);
        }
    }
}

void
dsb_weights_pack(dsb_weights *weights, const float *theta, int max_workers)
{
    weights->view.theta = theta;
    weights->be->parallel(max_workers, weights->net->n_ops, pack_task, weights);
}
