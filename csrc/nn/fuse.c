/* Which ops run as one, and which values share memory. */
#include "nn/planner.h"

int
dsb_planner_reader(const dsb_planner *p, int value)
{
    for (int i = 0; i < p->net->n_ops && p->net->values[value].consumers == 1; i++) {
        const dsb_op *op = &p->net->ops[i];

        for (int j = 0; j < op->spec.n_inputs; j++) {
            if (op->spec.inputs[j] == value) {
                return p->plan->ops[i].live ? i : -1;
            }
        }
    }
    return -1;
}

static bool
same_shape(const dsb_shape *a, const dsb_shape *b)
{
    return a->image == b->image && a->width == b->width && a->h == b->h && a->w == b->w;
}

/* ---- ops that run as one ---- */

/* An activation directly behind a linear op that nobody else reads is applied by the linear op. */
static void
fuse_activation(dsb_planner *p, int i)
{
    int reader = dsb_planner_reader(p, p->net->ops[i].output);

    if (reader >= 0 && p->net->ops[reader].kind->activation != DSB_IDENTITY) {
        p->plan->ops[reader].fused_by = i;
        p->plan->ops[i].ends = reader;
    }
}

/* A group_norm that only a convolution reads is applied by it while it reads. */
static void
fuse_norm(dsb_planner *p, int i)
{
    int v = p->net->ops[i].output, reader = dsb_planner_reader(p, v);

    if (reader >= 0 && p->net->ops[reader].kind == &dsb_op_conv) {
        p->plan->ops[i].fused_by = reader;
        p->plan->ops[reader].prologue = i;
        p->hidden[v] = true;
    }
}

/* What is added to a convolution's result that nobody else reads, and was there before it, is added by it:
 * one vector and one image at most. */
static void
fuse_adds(dsb_planner *p, int i)
{
    dsb_plan_op *conv = &p->plan->ops[i];

    for (;;) {
        int v = p->net->ops[conv->ends].output, reader = dsb_planner_reader(p, v), other, *slot;
        const dsb_op *add;

        if (reader < 0 || p->net->ops[reader].kind != &dsb_op_add) {
            return;
        }
        add = &p->net->ops[reader];
        other = add->spec.inputs[add->spec.inputs[0] == v];
        slot = p->net->values[other].shape.image ? &conv->residual : &conv->row;
        if (*slot >= 0 || p->net->values[other].op > i) {
            return;
        }
        *slot = other;
        p->plan->ops[reader].fused_by = i;
        p->hidden[v] = true;
        conv->ends = reader;
    }
}

void
dsb_planner_fuse(dsb_planner *p)
{
    for (int i = 0; i < p->net->n_ops; i++) {
        dsb_plan_op *op = &p->plan->ops[i];

        op->ends = i;
        op->fused_by = op->prologue = op->row = op->residual = op->saved = -1;
    }
    for (int i = 0; i < p->net->n_ops; i++) {
        const dsb_op_kind *kind = p->net->ops[i].kind;

        if (!p->plan->ops[i].live) {
            continue;
        }
        if (kind == &dsb_op_linear) {
            fuse_activation(p, i);
        } else if (kind == &dsb_op_group_norm) {
            fuse_norm(p, i);
        } else if (kind == &dsb_op_conv) {
            fuse_adds(p, i);
        }
    }
}

/* ---- values that share memory ---- */

/* Whether `x` may be overwritten by the result of its one reader. */
static bool
expendable(const dsb_planner *p, int x, int result)
{
    int maker = p->net->values[x].op;

    return maker >= 0 && p->net->values[x].consumers == 1 && !p->hidden[x] &&
           /* A concat's slices are results of other ops, whose backwards may read them. */
           p->net->ops[maker].kind != &dsb_op_concat &&
           !dsb_planner_needs(p, maker, DSB_NEEDS_OUTPUT) &&
           p->single_row[x] == p->single_row[result];
}

/* An op that works in place overwrites its input where no backward reads that input, and its gradient
 * dy -> dx always. */
static void
share_in_place(dsb_planner *p, int i)
{
    const dsb_op *op = &p->net->ops[i];
    int x = op->spec.inputs[0], maker = p->net->values[x].op;

    if (expendable(p, x, op->output) && !p->hidden[op->output] &&
        !dsb_planner_needs(p, i, DSB_NEEDS_INPUT)) {
        p->forward[x] = (dsb_alias){op->output, 0};
    }
    if (maker >= 0 && p->net->values[x].consumers == 1 &&
        p->net->ops[maker].kind != &dsb_op_concat && p->wants_grad[x]) {
        p->backward[x] = (dsb_alias){op->output, 0};
    }
}

/* A sum overwrites one of its terms. The gradient of a term that a convolution made is that of the sum: a
 * convolution's backward only reads it. */
static void
share_add(dsb_planner *p, int i)
{
    const dsb_op *op = &p->net->ops[i];
    bool taken = false;

    for (int j = 0; j < 2; j++) {
        int x = op->spec.inputs[j], maker = p->net->values[x].op;

        if (!same_shape(&p->net->values[x].shape, &op->shape)) {
            continue;
        }
        if (!taken && expendable(p, x, op->output) && !p->hidden[op->output]) {
            p->forward[x] = (dsb_alias){op->output, 0};
            taken = true;
        }
        if (p->wants_grad[x] && p->net->values[x].consumers == 1 && maker >= 0 &&
            (p->hidden[x] || p->net->ops[maker].kind == &dsb_op_conv)) {
            p->backward[x] = (dsb_alias){op->output, 0};
        }
    }
}

/* Whether the concat `i` is the first to write the gradient of its input j: nobody behind it reads it. */
static bool
writes_first(const dsb_planner *p, int i, int j)
{
    int v = p->net->ops[i].spec.inputs[j];

    for (int k = i; k < p->net->n_ops; k++) {
        const dsb_op *op = &p->net->ops[k];

        for (int m = 0; m < (k == i ? j : op->spec.n_inputs); m++) {
            if (op->spec.inputs[m] == v && p->plan->ops[k].live) {
                return false;
            }
        }
    }
    return true;
}

/* An input of a concat is a slice of the result, where columns fall on lines: whoever else reads it reads the
 * slice. */
static void
share_concat(dsb_planner *p, int i)
{
    const dsb_op *op = &p->net->ops[i];
    int64_t column = 0;

    for (int j = 0; j < op->spec.n_inputs; j++) {
        int v = op->spec.inputs[j];
        const dsb_value *value = &p->net->values[v];
        bool fits =
            value->op >= 0 && column % DSB_PANEL == 0 && value->shape.width % DSB_PANEL == 0;

        if (fits && p->forward[v].parent < 0 && p->single_row[v] == p->single_row[op->output]) {
            p->forward[v] = (dsb_alias){op->output, column};
        }
        if (fits && p->backward[v].parent < 0 && p->wants_grad[v] && writes_first(p, i, j)) {
            p->backward[v] = (dsb_alias){op->output, column};
        }
        column += value->shape.width;
    }
}

void
dsb_planner_share(dsb_planner *p)
{
    for (int v = 0; v < p->net->n_values; v++) {
        p->forward[v].parent = p->backward[v].parent = -1;
    }
    for (int i = 0; i < p->net->n_ops && !p->plan->request.keep; i++) {
        const dsb_op_kind *kind = p->net->ops[i].kind;

        if (!p->plan->ops[i].live) {
            continue;
        }
        if (kind->in_place) {
            share_in_place(p, i);
        } else if (kind == &dsb_op_add) {
            share_add(p, i);
        } else if (kind == &dsb_op_concat) {
            share_concat(p, i);
        }
    }
}
