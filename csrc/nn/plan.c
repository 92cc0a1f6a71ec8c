#include "nn/plan.h"

#include <assert.h>
#include <limits.h>
#include <string.h>

#include "base/arena.h"
#include "base/memory.h"
#include "nn/op.h"

/* A value that shares another's memory: from column `column` of `parent`. parent = -1: on its own. */
typedef struct alias {
    int parent;
    int64_t column;
} alias;

/* What the planner works with; freed before the plan is handed out. */
typedef struct planner {
    dsb_plan *plan;
    const dsb_net *net;
    bool keep;
    bool *reaches;    /* value -> output depends on it */
    bool *wants_grad; /* value -> its gradient is needed on the way back */
    bool *single_row; /* value -> one row for all */
    alias *forward, *backward;
} planner;

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
mark_live(planner *p)
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
mark_gradients(planner *p)
{
    const dsb_net *net = p->net;

    if (p->plan->mode == DSB_INFER) {
        return;
    }
    if (p->plan->mode == DSB_VJP) {
        p->wants_grad[net->ports[DSB_PORT_X]] = true;
    }
    for (int i = 0; i < net->n_ops; i++) {
        const dsb_op *op = &net->ops[i];
        bool depends = p->plan->mode == DSB_TRAIN && op->params[0] >= 0;

        for (int j = 0; j < op->spec.n_inputs; j++) {
            depends |= p->wants_grad[op->spec.inputs[j]];
        }
        p->plan->ops[i].differs = depends && p->plan->ops[i].live;
        p->wants_grad[op->output] = p->plan->ops[i].differs;
    }
}

static void
mark_single_rows(planner *p)
{
    const dsb_net *net = p->net;

    if (p->plan->mode != DSB_INFER || p->keep) {
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
        /* The output is read row by row. */
        p->single_row[op->output] = single && op->output != net->output;
    }
}

/* ---- who shares memory with whom ---- */

static bool
is_activation(const dsb_op *op)
{
    return op->kind->activation != DSB_IDENTITY;
}

static bool
needs(const dsb_plan *plan, int op, dsb_needs what)
{
    return op >= 0 && plan->ops[op].differs && (plan->net->ops[op].kind->needs & what) != 0;
}

/* An activation directly behind a linear op that nobody else reads is applied by the linear op. */
static void
fuse_activations(planner *p)
{
    const dsb_net *net = p->net;

    for (int i = 0; i < net->n_ops; i++) {
        p->plan->ops[i].fuses = -1;
    }
    for (int i = 0; i < net->n_ops; i++) {
        const dsb_op *op = &net->ops[i];
        const dsb_value *x = dsb_op_input(net, op, 0);

        if (p->plan->ops[i].live && is_activation(op) && x->op >= 0 && x->consumers == 1 &&
            net->ops[x->op].kind == &dsb_op_linear) {
            p->plan->ops[i].fused = true;
            p->plan->ops[x->op].fuses = i;
        }
    }
}

/* An activation overwrites its input where no backward reads that input, and its gradient dy -> dx in
 * place always. */
static void
alias_activation(planner *p, int i)
{
    const dsb_op *op = &p->net->ops[i];
    int x = op->spec.inputs[0], maker = p->net->values[x].op;

    if (maker < 0 || p->net->values[x].consumers != 1) {
        return;
    }
    /* A concat's slices are results of other ops, whose backwards may read them. */
    if (p->net->ops[maker].kind == &dsb_op_concat) {
        return;
    }
    if (!needs(p->plan, i, DSB_NEEDS_INPUT) && !needs(p->plan, maker, DSB_NEEDS_OUTPUT) &&
        p->single_row[x] == p->single_row[op->output]) {
        p->forward[x] = (alias){op->output, 0};
    }
    if (p->wants_grad[x]) {
        p->backward[x] = (alias){op->output, 0};
    }
}

/* An input of a concat that nobody else reads is a slice of the result, where columns fall on lines. */
static void
alias_concat(planner *p, int i)
{
    const dsb_op *op = &p->net->ops[i];
    int64_t column = 0;

    for (int j = 0; j < op->spec.n_inputs; j++) {
        int v = op->spec.inputs[j];
        const dsb_value *value = &p->net->values[v];
        bool fits = value->op >= 0 && value->consumers == 1 && column % DSB_PANEL == 0 &&
                    value->width % DSB_PANEL == 0;

        if (fits && p->single_row[v] == p->single_row[op->output]) {
            p->forward[v] = (alias){op->output, column};
        }
        if (fits && p->wants_grad[v]) {
            p->backward[v] = (alias){op->output, column};
        }
        column += value->width;
    }
}

static void
share_memory(planner *p)
{
    for (int v = 0; v < p->net->n_values; v++) {
        p->forward[v].parent = p->backward[v].parent = -1;
    }
    fuse_activations(p);
    for (int i = 0; i < p->net->n_ops && !p->keep; i++) {
        if (!p->plan->ops[i].live) {
            continue;
        }
        if (is_activation(&p->net->ops[i])) {
            alias_activation(p, i);
        } else if (p->net->ops[i].kind == &dsb_op_concat) {
            alias_concat(p, i);
        }
    }
}

/* ---- buffers and their lifetimes ---- */

static int
root_of(const alias *aliases, int value, int64_t *column)
{
    *column = 0;
    while (aliases[value].parent >= 0) {
        *column += aliases[value].column;
        value = aliases[value].parent;
    }
    return value;
}

static void
extend(dsb_buffer *buffer, int first, int last)
{
    buffer->first = first < buffer->first ? first : buffer->first;
    buffer->last = last > buffer->last ? last : buffer->last;
}

static void
place_value(planner *p, int v, bool gradient, int first, int last)
{
    dsb_plan *plan = p->plan;
    dsb_place *places = gradient ? plan->gradients : plan->places;
    int64_t column;
    int root = root_of(gradient ? p->backward : p->forward, v, &column);
    bool is_t = root == p->net->ports[DSB_PORT_T];
    int64_t pitch = is_t ? 1 : dsb_pitch(p->net->values[root].width);
    int64_t rows = p->single_row[root] && !gradient ? 1 : plan->rows;

    if (places[root].buffer < 0) {
        places[root].buffer = plan->n_buffers;
        plan->buffers[plan->n_buffers++] =
            (dsb_buffer){.bytes = (size_t)(rows * pitch) * sizeof(float),
                         .first = INT_MAX,
                         .last = -1,
                         .value = root,
                         .gradient = gradient};
    }
    places[v].buffer = places[root].buffer;
    places[v].column = column;
    places[v].ld = p->single_row[root] && !gradient ? 0 : pitch;
    extend(&plan->buffers[places[v].buffer], first, last);
}

static void
place_values(planner *p)
{
    const dsb_net *net = p->net;

    for (int v = 0; v < net->n_values; v++) {
        int op = net->values[v].op, first = op < 0 ? 0 : forward_time(op);
        int last = op < 0 || v == net->output ? end_time(net) : first;

        if (!p->reaches[v] && op >= 0) {
            continue;
        }
        if (op >= 0 && p->plan->ops[op].fused) { /* the linear op before it writes it */
            first = forward_time(dsb_op_input(net, &net->ops[op], 0)->op);
        }
        if (needs(p->plan, op, DSB_NEEDS_OUTPUT)) {
            last = backward_time(net, op);
        }
        for (int i = 0; i < net->n_ops; i++) {
            for (int j = 0; j < net->ops[i].spec.n_inputs && p->plan->ops[i].live; j++) {
                if (net->ops[i].spec.inputs[j] == v) {
                    int used = needs(p->plan, i, DSB_NEEDS_INPUT) ? backward_time(net, i)
                                                                  : forward_time(i);

                    last = used > last ? used : last;
                }
            }
        }
        place_value(p, v, false, p->keep ? 0 : first, p->keep ? end_time(net) : last);
    }
}

/* A gradient lives from its first writer, the last op that reads the value, to the value's own op. */
static void
place_gradients(planner *p)
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
        place_value(p, v, true, p->keep ? 0 : first, p->keep ? end_time(net) : last);
    }
}

/* The first write of a gradient overwrites, the others add. */
static dsb_status
decide_beta(planner *p)
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
assign_offsets(planner *p)
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
allocate(planner *p)
{
    size_t n = (size_t)p->net->n_values, n_ops = (size_t)p->net->n_ops + 1;

    DSB_TRY(dsb_alloc(sizeof *p->plan->buffers * 2 * n, &p->plan->buffers));
    DSB_TRY(dsb_alloc(sizeof *p->plan->places * n, &p->plan->places));
    DSB_TRY(dsb_alloc(sizeof *p->plan->gradients * n, &p->plan->gradients));
    DSB_TRY(dsb_alloc(sizeof *p->plan->ops * n_ops, &p->plan->ops));
    DSB_TRY(dsb_alloc(sizeof *p->reaches * n, &p->reaches));
    DSB_TRY(dsb_alloc(sizeof *p->wants_grad * n, &p->wants_grad));
    DSB_TRY(dsb_alloc(sizeof *p->single_row * n, &p->single_row));
    DSB_TRY(dsb_alloc(sizeof *p->forward * n, &p->forward));
    DSB_TRY(dsb_alloc(sizeof *p->backward * n, &p->backward));
    for (size_t v = 0; v < n; v++) {
        p->plan->places[v].buffer = p->plan->gradients[v].buffer = -1;
    }
    return DSB_OK;
}

static dsb_status
make_plan(planner *p)
{
    DSB_TRY(allocate(p));
    mark_live(p);
    mark_gradients(p);
    mark_single_rows(p);
    share_memory(p);
    place_values(p);
    place_gradients(p);
    DSB_TRY(decide_beta(p));
    return assign_offsets(p);
}

dsb_status
dsb_plan_create(const dsb_net *net, dsb_mode mode, int rows, bool keep, dsb_plan **out)
{
    planner p = {.net = net, .keep = keep};
    dsb_status status;

    *out = NULL;
    assert(net->output >= 0);
    DSB_REQUIRE(rows >= 1 && rows <= 1 << 20, "rows of a plan must lie in 1 .. %d, got %d", 1 << 20,
                rows);
    DSB_TRY(dsb_alloc(sizeof *p.plan, &p.plan));
    p.plan->net = net;
    p.plan->mode = mode;
    p.plan->rows = rows;
    status = make_plan(&p);
    dsb_free(p.reaches);
    dsb_free(p.wants_grad);
    dsb_free(p.single_row);
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
