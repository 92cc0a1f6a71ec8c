#include "ops.h"

#include <string.h>

/* Image `image` of `data`, whose images have `pixels` lines of c channels. */
static dsb_slot
slot_at(const bench *b, float *data, int64_t image, int64_t pixels, int c)
{
    dsb_slot slot = {data, dsb_pitch(c), b->ask.bf16 ? DSB_BFLOAT16 : DSB_FLOAT32};

    return dsb_slot_from(slot, image * pixels * dsb_pitch(c));
}

/* Float32 rows for a worker: [microbatch, n]. */
static dsb_slot
rows_at(const bench *b, int worker, int n)
{
    return dsb_float_slot(b->memory.rows + worker * b->microbatch * dsb_pitch(n), dsb_pitch(n));
}

static dsb_affine
affine_at(const bench *b, int worker, int c)
{
    const float *ab = b->memory.ab + (int64_t)worker * b->microbatch * 2 * dsb_pitch(c);

    return (dsb_affine){b->ask.affine ? ab : NULL, b->ask.silu};
}

static char *
scratch_at(const bench *b, int worker, size_t bytes)
{
    return b->memory.scratch + (size_t)worker * ((bytes + 63) / 64 * 64);
}

/* ---- convolutions ---- */

size_t
conv_scratch(const bench *b)
{
    dsb_conv conv = conv_of(&b->ask);
    const dsb_conv_passes *passes = &b->backend->conv[b->ask.precision];

    return (size_t)at_least((int64_t)passes->scratch_bytes(&conv, b->microbatch, false),
                            (int64_t)passes->scratch_bytes(&conv, b->microbatch, true));
}

static void
conv_forward(const bench *b, int64_t first, int worker)
{
    dsb_conv conv = conv_of(&b->ask);
    int n = b->microbatch;
    dsb_affine affine = affine_at(b, worker, conv.c_in);
    dsb_slot y = slot_at(b, b->memory.y, first, pixels_out(&b->ask), conv.c_out);
    dsb_epilogue epilogue = {.bias = b->memory.dw};

    if (b->ask.residual) {
        epilogue.residual =
            slot_at(b, b->memory.dy, (int64_t)worker * n, pixels_out(&b->ask), conv.c_out);
    }
    b->backend->conv[b->ask.precision].forward(
        NULL, &conv, n,
        slot_at(b, b->memory.hot, (int64_t)worker * n, pixels_in(&b->ask), conv.c_in), &affine,
        b->memory.packed, &epilogue, y, scratch_at(b, worker, conv_scratch(b)));
}

static void
conv_backward_input(const bench *b, int64_t first, int worker)
{
    dsb_conv conv = conv_of(&b->ask);
    int64_t mine = (int64_t)worker * b->microbatch;

    (void)first;
    b->backend->conv[b->ask.precision].backward_input(
        NULL, &conv, b->microbatch, slot_at(b, b->memory.dy, mine, pixels_out(&b->ask), conv.c_out),
        b->memory.packed, 0, slot_at(b, b->memory.dx, mine, pixels_in(&b->ask), conv.c_in),
        scratch_at(b, worker, conv_scratch(b)));
}

static void
conv_backward_weight(const bench *b, int64_t first, int worker)
{
    dsb_conv conv = conv_of(&b->ask);
    int64_t weights = (int64_t)conv.c_out * conv.kernel * conv.kernel * conv.c_in;
    float *dw = b->memory.dw + worker * dsb_pitch(weights + conv.c_out);
    dsb_affine affine = affine_at(b, worker, conv.c_in);

    b->backend->conv[b->ask.precision].backward_weight(
        NULL, &conv, b->microbatch, slot_at(b, b->memory.x, first, pixels_in(&b->ask), conv.c_in),
        &affine,
        slot_at(b, b->memory.dy, (int64_t)worker * b->microbatch, pixels_out(&b->ask), conv.c_out),
        1, dw, dw + weights, scratch_at(b, worker, conv_scratch(b)));
}

/* Once for a step, not for each microbatch: main() asks for a single task. */
static void
conv_pack(const bench *b, int64_t first, int worker)
{
    dsb_conv conv = conv_of(&b->ask);

    (void)first, (void)worker;
    for (int transposed = 0; transposed < 2; transposed++) {
        b->backend->conv[b->ask.precision].pack(NULL, &conv, transposed, b->memory.dw,
                                                b->memory.packed);
    }
}

/* ---- normalisation and attention ---- */

static dsb_group_norm
norm_at(const bench *b, int worker)
{
    const request *ask = &b->ask;
    dsb_group_norm norm = {.pixels = pixels_in(ask),
                           .c = ask->c,
                           .groups = ask->groups,
                           .silu = ask->silu,
                           .weight = b->memory.dw,
                           .bias = b->memory.dw};

    if (ask->scale) {
        norm.scale_shift = rows_at(b, worker, 2 * ask->c);
    }
    return norm;
}

static void
norm_statistics(const bench *b, int64_t first, int worker)
{
    dsb_group_norm norm = norm_at(b, worker);
    int64_t mine = (int64_t)worker * b->microbatch;

    (void)first;
    b->backend->group_norm_statistics(
        NULL, &norm, b->microbatch, slot_at(b, b->memory.hot, mine, norm.pixels, norm.c),
        b->memory.stats + mine * 2 * norm.groups, b->memory.ab + mine * 2 * dsb_pitch(norm.c));
}

/* The whole normalisation, for itself: of images that no one has touched just before. */
static void
norm_forward(const bench *b, int64_t first, int worker)
{
    dsb_group_norm norm = norm_at(b, worker);
    int64_t mine = (int64_t)worker * b->microbatch;
    dsb_slot x = slot_at(b, b->memory.x, first, norm.pixels, norm.c);
    float *ab = b->memory.ab + mine * 2 * dsb_pitch(norm.c);
    dsb_affine affine = {ab, norm.silu};

    b->backend->group_norm_statistics(NULL, &norm, b->microbatch, x,
                                      b->memory.stats + mine * 2 * norm.groups, ab);
    b->backend->affine(NULL, &affine, b->microbatch, norm.pixels, norm.c, x,
                       slot_at(b, b->memory.y, first, norm.pixels, norm.c));
}

static void
norm_backward(const bench *b, int64_t first, int worker)
{
    dsb_group_norm norm = norm_at(b, worker);
    int64_t mine = (int64_t)worker * b->microbatch;
    float *d_weight = b->memory.dw + dsb_pitch(norm.c) * (1 + 2 * worker);
    dsb_slot d_scale_shift = norm.scale_shift;

    if (b->ask.scale) {
        d_scale_shift = rows_at(b, b->threads + worker, 2 * norm.c);
    }
    b->backend->group_norm_backward(
        NULL, &norm, b->microbatch, slot_at(b, b->memory.x, first, norm.pixels, norm.c),
        b->memory.stats + mine * 2 * norm.groups, b->memory.ab + mine * 2 * dsb_pitch(norm.c),
        slot_at(b, b->memory.dy, mine, norm.pixels, norm.c), 0,
        slot_at(b, b->memory.dx, mine, norm.pixels, norm.c), 1, d_weight,
        d_weight + dsb_pitch(norm.c), 0, d_scale_shift);
}

static void
attention_forward(const bench *b, int64_t first, int worker)
{
    const request *ask = &b->ask;
    int pixels = pixels_in(ask);
    size_t bytes = b->backend->attention_scratch(pixels, ask->c, ask->heads);

    b->backend->attention(
        NULL, b->microbatch, pixels, ask->c, ask->heads,
        slot_at(b, b->memory.hot, (int64_t)worker * b->microbatch, pixels, 3 * ask->c),
        slot_at(b, b->memory.y, first, pixels, ask->c), scratch_at(b, worker, bytes));
}

static void
attention_backward(const bench *b, int64_t first, int worker)
{
    const request *ask = &b->ask;
    int pixels = pixels_in(ask);
    int64_t mine = (int64_t)worker * b->microbatch;
    size_t bytes = b->backend->attention_scratch(pixels, ask->c, ask->heads);

    b->backend->attention_backward(NULL, b->microbatch, pixels, ask->c, ask->heads,
                                   slot_at(b, b->memory.x, first, pixels, 3 * ask->c),
                                   slot_at(b, b->memory.dy, mine, pixels, ask->c), 0,
                                   slot_at(b, b->memory.dx, mine, pixels, 3 * ask->c),
                                   scratch_at(b, worker, bytes));
}

/* ---- the rest of a net ---- */

static void
add_images(const bench *b, int64_t first, int worker)
{
    int pixels = pixels_in(&b->ask);
    int64_t mine = (int64_t)worker * b->microbatch;

    b->backend->add(NULL, (int64_t)b->microbatch * pixels, b->ask.c,
                    slot_at(b, b->memory.hot, mine, pixels, b->ask.c),
                    slot_at(b, b->memory.dy, mine, pixels, b->ask.c),
                    slot_at(b, b->memory.y, first, pixels, b->ask.c));
}

/* A gradient that comes along a second way. */
static void
accumulate(const bench *b, int64_t first, int worker)
{
    int pixels = pixels_in(&b->ask);
    int64_t mine = (int64_t)worker * b->microbatch;

    (void)first;
    b->backend->copy(NULL, (int64_t)b->microbatch * pixels, b->ask.c,
                     slot_at(b, b->memory.dy, mine, pixels, b->ask.c), 1,
                     slot_at(b, b->memory.dx, mine, pixels, b->ask.c));
}

static void
row_to_image(const bench *b, int64_t first, int worker)
{
    int pixels = pixels_in(&b->ask);

    b->backend->row_to_image(NULL, b->microbatch, pixels, b->ask.c,
                             rows_at(b, worker, pixels * b->ask.c), 0,
                             slot_at(b, b->memory.y, first, pixels, b->ask.c));
}

static void
image_to_row(const bench *b, int64_t first, int worker)
{
    int pixels = pixels_in(&b->ask);

    (void)first;
    b->backend->image_to_row(
        NULL, b->microbatch, pixels, b->ask.c,
        slot_at(b, b->memory.hot, (int64_t)worker * b->microbatch, pixels, b->ask.c), 0,
        rows_at(b, worker, pixels * b->ask.c));
}

static void
linear_forward(const bench *b, int64_t first, int worker)
{
    const request *ask = &b->ask;

    (void)first;
    b->backend->linear_forward(
        NULL, b->microbatch, ask->c, ask->c_out, rows_at(b, worker, ask->c).data, dsb_pitch(ask->c),
        (const float *)b->memory.packed, b->memory.dw, DSB_IDENTITY, 0.0f, NULL, 0,
        rows_at(b, b->threads + worker, ask->c_out).data, dsb_pitch(ask->c_out));
}

static void
linear_backward(const bench *b, int64_t first, int worker)
{
    const request *ask = &b->ask;
    int64_t weights = (int64_t)ask->c * ask->c_out;
    float *dw = b->memory.dw + worker * dsb_pitch(weights + ask->c_out);
    float *dy = rows_at(b, b->threads + worker, ask->c_out).data;

    (void)first;
    b->backend->linear_backward_weight(NULL, b->microbatch, ask->c, ask->c_out,
                                       rows_at(b, worker, ask->c).data, dsb_pitch(ask->c), dy,
                                       dsb_pitch(ask->c_out), 1, dw, dw + weights);
    b->backend->linear_backward_input(NULL, b->microbatch, ask->c, ask->c_out, dy,
                                      dsb_pitch(ask->c_out), (const float *)b->memory.packed, 0,
                                      rows_at(b, worker, ask->c).data, dsb_pitch(ask->c));
}

/* ---- after the gradients: a task is a block of parameters ---- */

static void
reduce_lanes(const bench *b, int64_t first, int worker)
{
    int64_t stride = (int64_t)b->images * b->ask.c;
    double norm;

    (void)worker;
    b->backend->reduce_lanes(NULL, b->ask.lanes, stride, b->ask.c, b->memory.y + first * b->ask.c,
                             &norm);
}

static void
adam_step(const bench *b, int64_t first, int worker)
{
    int64_t stride = (int64_t)b->images * b->ask.c;
    dsb_adam adam = {0.9f, 0.999f, 1e-8f, 0.999f};
    dsb_step step = {1e-4f, 1.0f, 1.0f};
    float *planes = b->memory.y + first * b->ask.c;

    (void)worker;
    b->backend->adam_step(NULL, b->ask.c, &adam, &step, planes + 4 * stride, planes,
                          planes + stride, planes + 2 * stride, planes + 3 * stride);
}

/* ---- by name ---- */

pass
find_pass(const bench *b, int *known)
{
    const dsb_backend *be = b->backend;
    const dsb_conv_passes *conv = &be->conv[b->ask.precision];
    const struct {
        const char *name;
        int there;
        pass run;
    } passes[] = {
        {"conv_forward", conv->forward != NULL, conv_forward},
        {"conv_backward_input", conv->backward_input != NULL, conv_backward_input},
        {"conv_backward_weight", conv->backward_weight != NULL, conv_backward_weight},
        {"conv_pack", conv->pack != NULL, conv_pack},
        {"norm_statistics", be->group_norm_statistics != NULL, norm_statistics},
        {"norm_forward", be->group_norm_statistics != NULL && be->affine != NULL, norm_forward},
        {"norm_backward", be->group_norm_backward != NULL, norm_backward},
        {"attention_forward", be->attention != NULL, attention_forward},
        {"attention_backward", be->attention_backward != NULL, attention_backward},
        {"add", 1, add_images},
        {"accumulate", 1, accumulate},
        {"row_to_image", be->row_to_image != NULL, row_to_image},
        {"image_to_row", be->image_to_row != NULL, image_to_row},
        {"linear_forward", 1, linear_forward},
        {"linear_backward", 1, linear_backward},
        {"reduce_lanes", 1, reduce_lanes},
        {"adam_step", 1, adam_step},
    };

    *known = 0;
    for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++) {
        if (strcmp(passes[i].name, b->ask.name) == 0) {
            *known = 1;
            return passes[i].there ? passes[i].run : NULL;
        }
    }
    return NULL;
}
