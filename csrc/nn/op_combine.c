/* add: y = a + b; b may be a vector that every pixel of the image a gets.  concat: y = [a, b, ...] along the
 * columns or channels. */
#include "nn/op.h"

static dsb_status
add_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *a = dsb_op_input(net, op, 0), *b = dsb_op_input(net, op, 1);

    DSB_REQUIRE(a->width == b->width, "add '%s': widths must be equal, got %d and %d", name,
                a->width, b->width);
    DSB_REQUIRE(a->image || !b->image, "add '%s': the image comes first, the vector behind it",
                name);
    DSB_REQUIRE(!b->image || (a->h == b->h && a->w == b->w),
                "add '%s': sizes must be equal, got %d x %d and %d x %d", name, a->h, a->w, b->h,
                b->w);
    op->shape = *a;
    return DSB_OK;
}

/* A vector that every pixel of an image gets. */
static bool
is_row(const dsb_op_run *run)
{
    return run->op->shape.image && !dsb_op_input(run->net, run->op, 1)->image;
}

static void
add_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    if (is_row(run)) {
        run->be->add_row(run->stream, rows, dsb_pixels(y), y->width, run->in[0], run->in[1],
                         run->out);
    } else {
        run->be->add(run->stream, (int64_t)rows * dsb_pixels(y), y->width, run->in[0], run->in[1],
                     run->out);
    }
}

/* da = dy, db = dy, summed over the pixels where b is a vector. What shares the memory of dy has it. */
static void
add_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad, int beta)
{
    const dsb_shape *y = &run->op->shape;

    (void)weights;
    (void)grad;
    (void)beta;
    for (int i = 0; i < 2; i++) {
        if (run->d_in[i].data == NULL || run->d_in[i].data == run->d_out.data) {
            continue;
        }
        if (i == 1 && is_row(run)) {
            run->be->sum_pixels(run->stream, rows, dsb_pixels(y), y->width, run->d_out,
                                run->beta[i], run->d_in[i]);
        } else {
            dsb_op_copy(run, (int64_t)rows * dsb_pixels(y), y->width, run->d_out, run->beta[i],
                        run->d_in[i]);
        }
    }
}

static dsb_status
concat_build(dsb_net *net, dsb_op *op, const char *name)
{
    const dsb_shape *first = dsb_op_input(net, op, 0);

    op->shape = *first;
    op->shape.width = 0;
    for (int i = 0; i < op->spec.n_inputs; i++) {
        const dsb_shape *x = dsb_op_input(net, op, i);

        DSB_REQUIRE(x->image == first->image && x->h == first->h && x->w == first->w,
                    "concat '%s': expected %s of one size, input %d is another", name,
                    first->image ? "images" : "vectors", i);
        op->shape.width += x->width;
    }
    return DSB_OK;
}

/* An input that the plan laid as a slice of the result is there already. */
static void
concat_forward(const dsb_op_run *run, const dsb_op_weights *weights, int rows)
{
    int64_t column = 0, lines = (int64_t)rows * dsb_pixels(&run->op->shape);

    (void)weights;
    for (int i = 0; i < run->op->spec.n_inputs; i++) {
        int width = dsb_op_input(run->net, run->op, i)->width;
        dsb_slot slice = dsb_slot_from(run->out, column);

        if (run->in[i].data != slice.data) {
            run->be->copy(run->stream, lines, width, run->in[i], 0, slice);
        }
        column += width;
    }
    dsb_op_clear_padding(run, lines, (int)column, run->out);
}

/* Each input's gradient is its slice of dy. */
static void
concat_backward(const dsb_op_run *run, const dsb_op_weights *weights, int rows, float *grad,
                int beta)
{
    int64_t column = 0, lines = (int64_t)rows * dsb_pixels(&run->op->shape);

    (void)weights;
    (void)grad;
    (void)beta;
    for (int i = 0; i < run->op->spec.n_inputs; i++) {
        int width = dsb_op_input(run->net, run->op, i)->width;
        dsb_slot slice = dsb_slot_from(run->d_out, column);

        if (run->d_in[i].data != NULL && run->d_in[i].data != slice.data) {
            dsb_op_copy(run, lines, width, slice, run->beta[i], run->d_in[i]);
        }
        column += width;
    }
}

const dsb_op_kind dsb_op_add = {
    .name = "add",
    .min_inputs = 2,
    .max_inputs = 2,
    .needs = DSB_NEEDS_NOTHING,
    .build = add_build,
    .forward = add_forward,
    .backward = add_backward,
};

const dsb_op_kind dsb_op_concat = {
    .name = "concat",
    .min_inputs = 2,
    .max_inputs = DSB_MAX_INPUTS,
    .needs = DSB_NEEDS_NOTHING,
    .build = concat_build,
    .forward = concat_forward,
    .backward = concat_backward,
};
