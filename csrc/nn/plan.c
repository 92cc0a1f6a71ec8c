#include "nn/plan.h"

#include <assert.h>
#include <limits.h>
#include <string.h>

#include "base/arena.h"
#include "base/memory.h"
#include "nn/planner.h"

static int
forward_time(int op)
{
    return op + 1;
}

static int
backward_time(const dsb_net *net, int op)
{
    return 2 * net->n_ops + 1 - op;
}

static int
end_time(const dsb_net *net)
{
    return 2 * net->n_ops + 2;
}

/* ---- what depends on what ---- */

static void
mark_live(dsb_planner *p)
{
    const dsb_net *net = p->net;

    p->reaches[net->output] = true;
    for (int i = net->n_ops - 1; i >= 0; i--) {
        const dsb_op *op = &net->ops[i];

        p->plan->ops[i].live = p->reaches[op->output];
        for (int j = 0; j < op->spec.n_inputs && p->reaches[op->output]; j++) {
            p->reaches[op->spec.inputs[j]] = true;
        }
    }
}

/* Training differentiates what depends on a parameter, vjp what depends on x. */
static void
mark_gradients(dsb_planner *p)
{
    const dsb_net *net = p->net;

    if (p->plan->request.mode == DSB_INFER) {
        return;
    }
    if (p->plan->request.mode == DSB_VJP) {
        p->wants_grad[net->ports[DSB_PORT_X]] = true;
    }
    for (int i = 0; i < net->n_ops; i++) {
        const dsb_op *op = &net->ops[i];
        bool depends = p->plan->request.mode == DSB_TRAIN && op->params[0] >= 0;

        for (int j = 0; j < op->spec.n_inputs; j++) {
            depends |= p->wants_grad[op->spec.inputs[j]];
        }
        p->plan->ops[i].differs = depends && p->plan->ops[i].live;
        p->wants_grad[op->output] = p->plan->ops[i].differs;
    }
}

static void
mark_single_rows(dsb_planner *p)
{
    const dsb_net *net = p->net;

    if (p->plan->request.mode != DSB_INFER || p->plan->request.keep) {
        return;
    }
    if (net->ports[DSB_PORT_T] >= 0) {
        p->single_row[net->ports[DSB_PORT_T]] = true;
    }
    for (int i = 0; i < net->n_ops; i++) {
        const dsb_op *op = &net->ops[i];
        bool single = true;

        for (int j = 0; j < op->spec.n_inputs; j++) {
            single &= p->single_row[op->spec.inputs[j]];
        }
        /* The output is read row by row, and images are made for every row. */
        p->single_row[op->output] = single && op->output != net->output && !op->shape.image;
    }
}

/* ---- buffers and their lifetimes ---- */

static int
root_of(const dsb_alias *aliases, int value, int64_t *column)
{
    *column = 0;
    while (aliases[value].parent >= 0) {
        *column += aliases[value].column;
        value = aliases[value].parent;
    }
    return value;
}

/* Images are bfloat16 where the products are; but what is only flattened behind a convolution, the net's
 * output as a rule, keeps the precision of the sum. */
static dsb_dtype
type_of(const dsb_planner *p, int v)
{
    const dsb_value *value = &p->net->values[v];
    int reader;

    if (!value->shape.image || p->plan->request.precision != DSB_PRECISION_BF16) {
        return DSB_FLOAT32;
    }
    reader = dsb_planner_reader(p, v);
    if (reader >= 0 && p->net->ops[reader].kind == &dsb_op_flatten && value->op >= 0 &&
        p->net->ops[value->op].kind == &dsb_op_conv) {
        return DSB_FLOAT32;
    }
    return DSB_BFLOAT16;
}

/* Enters a buffer that lives from .. to, both included; all of the pass where nothing is reused. */
static int
add_buffer(dsb_planner *p, dsb_buffer_use use, int value, size_t bytes, int first, int last)
{
    dsb_plan *plan = p->plan;

    plan->buffers[plan->n_buffers] =
        (dsb_buffer){.bytes = bytes, .first = first, .last = last, .use = use, .value = value};
    return plan->n_buffers++;
}

static void
place_value(dsb_planner *p, int v, bool gradient, int first, int last)
{
    dsb_plan *plan = p->plan;
    dsb_place *places = gradient ? plan->gradients : plan->places;
    int64_t column;
    int root = root_of(gradient ? p->backward : p->forward, v, &column);
    const dsb_shape *shape = &p->net->values[root].shape;
    bool number = root == p->net->ports[DSB_PORT_T] || root == p->net->ports[DSB_PORT_LABEL];
    int64_t pitch = number ? 1 : dsb_pitch(shape->width);
    bool single = p->single_row[root] && !gradient;
    int64_t lines = single ? 1 : (int64_t)plan->request.rows * dsb_pixels(shape);
    dsb_buffer *buffer;

    if (plan->request.keep) {
        first = 0;
        last = end_time(p->net);
    }
    if (places[root].buffer < 0) {
        size_t bytes = (size_t)(lines * pitch * dsb_dtype_bytes(type_of(p, root)));

        places[root].buffer =
            add_buffer(p, gradient ? DSB_USE_GRADIENT : DSB_USE_VALUE, root, bytes, INT_MAX, -1);
    }
    places[v].buffer = places[root].buffer;
    places[v].column = column;
    places[v].ld = single ? 0 : pitch;
    places[v].dtype = type_of(p, root);
    buffer = &plan->buffers[places[v].buffer];
    buffer->first = first < buffer->first ? first : buffer->first;
    buffer->last = last > buffer->last ? last : buffer->last;
}

/* When the forward of op i reads its inputs last: where it is done by another op, there. */
static int
read_time(const dsb_planner *p, int i)
{
    int by = p->plan->ops[i].fused_by;

    return forward_time(by >= 0 ? by : i);
}

static void
place_values(dsb_planner *p)
{
    const dsb_net *net = p->net;

    for (int v = 0; v < net->n_values; v++) {
        int op = net->values[v].op, by = op < 0 ? -1 : p->plan->ops[op].fused_by;
        int first = op < 0 ? 0 : forward_time(by >= 0 && by < op ? by : op);
        int last = op < 0 || v == net->output ? end_time(net) : first;

        if ((!p->reaches[v] && op >= 0) || p->hidden[v]) {
            continue;
        }
        if (dsb_planner_needs(p, op, DSB_NEEDS_OUTPUT)) {
            last = backward_time(net, op);
        }
        for (int i = 0; i < net->n_ops; i++) {
            for (int j = 0; j < net->ops[i].spec.n_inputs && p->plan->ops[i].live; j++) {
                if (net->ops[i].spec.inputs[j] == v) {
                    int used = dsb_planner_needs(p, i, DSB_NEEDS_INPUT) ? backward_time(net, i)
                                                                        : read_time(p, i);

                    last = used > last ? used : last;
                }
            }
        }
        place_value(p, v, false, first, last);
    }
}

/* A gradient lives from its first writer, the last op that reads the value, to the value's own op. */
static void
place_gradients(dsb_planner *p)
{
    const dsb_net *net = p->net;

    for (int v = 0; v < net->n_values; v++) {
        int op = net->values[v].op;
        int first = v == net->output ? net->n_ops + 1 : INT_MAX;
        int last = op < 0 ? end_time(net) : backward_time(net, op);

        if (!p->wants_grad[v] || !p->reaches[v]) {
            continue;
        }
        for (int i = 0; i < net->n_ops; i++) {
            for (int j = 0; j < net->ops[i].spec.n_inputs && p->plan->ops[i].differs; j++) {
                if (net->ops[i].spec.inputs[j] == v && backward_time(net, i) < first) {
                    first = backward_time(net, i);
                }
            }
        }
        place_value(p, v, true, first, last);
    }
}

/* What ops keep beside their results, and the one scratch that serves whichever runs. */
static void
place_memory_of_ops(dsb_planner *p, const dsb_backend *be)
{
    const dsb_net *net = p->net;
    const dsb_plan_request *request = &p->plan->request;
    size_t scratch = 0;

    for (int i = 0; i < net->n_ops; i++) {
        const dsb_op *op = &net->ops[i];
        dsb_plan_op *planned = &p->plan->ops[i];

        if (planned->live && op->kind->saved != NULL) {
            size_t bytes = sizeof(float) * (size_t)op->kind->saved(net, op, request->rows);
            int last = planned->differs ? backward_time(net, i) : read_time(p, i);

            planned->saved =
                add_buffer(p, DSB_USE_SAVED, op->output, bytes, request->keep ? 0 : forward_time(i),
                           request->keep ? end_time(net) : last);
        }
        for (int back = 0; back < 2 && planned->live && op->kind->scratch != NULL; back++) {
            size_t bytes =
                back && !planned->differs
                    ? 0
                    : op->kind->scratch(be, net, op, request->precision, request->rows, back);

            scratch = bytes > scratch ? bytes : scratch;
        }
    }
    p->plan->scratch =
        scratch > 0 ? add_buffer(p, DSB_USE_SCRATCH, net->output, scratch, 0, end_time(net)) : -1;
}

/* The first write of a gradient overwrites, the others add. */
static dsb_status
decide_beta(dsb_planner *p)
{
    bool *written;

    DSB_TRY(dsb_alloc(sizeof *written * (size_t)p->net->n_values, &written));
    for (int i = p->net->n_ops - 1; i >= 0; i--) {
        const dsb_op *op = &p->net->ops[i];

        for (int j = 0; j < op->spec.n_inputs && p->plan->ops[i].differs; j++) {
            p->plan->ops[i].beta[j] = written[op->spec.inputs[j]];
            written[op->spec.inputs[j]] = true;
        }
    }
    dsb_free(written);
    return DSB_OK;
}

/* ---- offsets ---- */

static bool
collide(const dsb_buffer *a, const dsb_buffer *b, size_t offset)
{
    return a->first <= b->last && b->first <= a->last &&
           offset < b->offset + dsb_piece_bytes(b->bytes) &&
           b->offset < offset + dsb_piece_bytes(a->bytes);
}

/* First fit, the large ones first: a buffer takes the lowest place that is free during its life. */
static dsb_status
assign_offsets(dsb_planner *p)
{
    dsb_plan *plan = p->plan;
    int *order;

    DSB_TRY(dsb_alloc(sizeof *order * (size_t)(plan->n_buffers + 1), &order));
    for (int i = 0; i < plan->n_buffers; i++) {
        int j = i;

        for (; j > 0 && plan->buffers[order[j - 1]].bytes < plan->buffers[i].bytes; j--) {
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
    for (int i = 0; i < plan->n_buffers; i++) {
        dsb_buffer *buffer = &plan->buffers[order[i]];
        size_t offset = 0;

        for (int j = 0; j < i;) {
            const dsb_buffer *other = &plan->buffers[order[j]];

            if (collide(buffer, other, offset)) {
                offset = other->offset + dsb_piece_bytes(other->bytes);
                j = 0;
            } else {
                j++;
            }
        }
        buffer->offset = offset;
        if (offset + dsb_piece_bytes(buffer->bytes) > plan->bytes) {
            plan->bytes = offset + dsb_piece_bytes(buffer->bytes);
        }
    }
    dsb_free(order);
    return DSB_OK;
}

/* ---- putting it together ---- */

static dsb_status
allocate(dsb_planner *p)
{
    size_t n = (size_t)p->net->n_values, n_ops = (size_t)p->net->n_ops + 1;

    DSB_TRY(dsb_alloc(sizeof *p->plan->buffers * (2 * n + n_ops), &p->plan->buffers));
    DSB_TRY(dsb_alloc(sizeof *p->plan->places * n, &p->plan->places));
    DSB_TRY(dsb_alloc(sizeof *p->plan->gradients * n, &p->plan->gradients));
    DSB_TRY(dsb_alloc(sizeof *p->plan->ops * n_ops, &p->plan->ops));
    DSB_TRY(dsb_alloc(sizeof *p->reaches * n, &p->reaches));
    DSB_TRY(dsb_alloc(sizeof *p->wants_grad * n, &p->wants_grad));
    DSB_TRY(dsb_alloc(sizeof *p->single_row * n, &p->single_row));
    DSB_TRY(dsb_alloc(sizeof *p->hidden * n, &p->hidden));
    DSB_TRY(dsb_alloc(sizeof *p->forward * n, &p->forward));
    DSB_TRY(dsb_alloc(sizeof *p->backward * n, &p->backward));
    for (size_t v = 0; v < n; v++) {
        p->plan->places[v].buffer = p->plan->gradients[v].buffer = -1;
    }
    return DSB_OK;
}

static dsb_status
make_plan(dsb_planner *p, const dsb_backend *be)
{
    DSB_TRY(allocate(p));
    mark_live(p);
    mark_gradients(p);
    mark_single_rows(p);
    dsb_planner_fuse(p);
    dsb_planner_share(p);
    place_values(p);
    place_gradients(p);
    place_memory_of_ops(p, be);
    DSB_TRY(decide_beta(p));
    return assign_offsets(p);
}

dsb_status
dsb_plan_create(const dsb_net *net, const dsb_backend *be, const dsb_plan_request *request,
                dsb_plan **out)
{
    dsb_planner p = {.net = net};
    dsb_status status;

    *out = NULL;
    assert(net->output >= 0 && be->conv[request->precision].forward != NULL);
    DSB_REQUIRE(request->rows >= 1 && request->rows <= 1 << 20,
                "rows of a plan must lie in 1 .. %d, got %d", 1 << 20, request->rows);
    DSB_TRY(dsb_alloc(sizeof *p.plan, &p.plan));
    p.plan->net = net;
    p.plan->request = *request;
    status = make_plan(&p, be);
    dsb_free(p.reaches);
    dsb_free(p.wants_grad);
    dsb_free(p.single_row);
    dsb_free(p.hidden);
    dsb_free(p.forward);
    dsb_free(p.backward);
    if (status != DSB_OK) {
        dsb_plan_destroy(p.plan);
        return status;
    }
    *out = p.plan;
    return DSB_OK;
}

void
dsb_plan_destroy(dsb_plan *plan)
{
    if (plan != NULL) {
        dsb_free(plan->buffers);
        dsb_free(plan->places);
        dsb_free(plan->gradients);
        dsb_free(plan->ops);
        dsb_free(plan);
    }
}
