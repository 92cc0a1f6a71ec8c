/* Every convolution that the backend has, in each precision: against plain loops in float64, with guards
 * around every buffer, NaN in scratch and in foreign columns, large numbers in the padding, and each row
 * again on its own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "draw.h"
#include "guarded.h"
#include "reference.h"
#include "test.h"

typedef struct shape {
    int h, w, c_in, c_out, kernel, stride, up, rows;
} shape;

/* Single pixels, single channels, images narrower and wider than a vector or a tile, borders that a stride
 * skips, channels on and off 16 and 32, many channels, many small images (which a kernel may group), and
 * what a U-Net has. */
static const shape shapes[] = {
    {1, 1, 1, 1, 3, 1, 1, 1},     {1, 1, 5, 3, 1, 1, 1, 2},     {1, 1, 17, 32, 3, 2, 1, 3},
    {1, 1, 3, 5, 3, 1, 2, 2},     {2, 2, 3, 1, 3, 2, 1, 5},     {1, 1, 33, 17, 1, 2, 1, 4},
    {1, 40, 8, 8, 3, 1, 1, 2},    {40, 1, 8, 8, 3, 2, 1, 2},    {2, 70, 16, 8, 3, 1, 1, 1},
    {5, 3, 16, 16, 3, 1, 1, 3},   {7, 7, 96, 96, 3, 1, 1, 2},   {8, 8, 32, 64, 3, 2, 1, 3},
    {33, 31, 3, 17, 3, 1, 1, 2},  {31, 33, 5, 5, 3, 2, 1, 2},   {9, 8, 32, 17, 3, 1, 2, 3},
    {14, 14, 64, 32, 1, 1, 1, 2}, {13, 6, 96, 33, 1, 2, 1, 3},  {4, 4, 96, 160, 3, 1, 1, 4},
    {28, 28, 1, 32, 3, 1, 1, 2},  {2, 3, 320, 48, 3, 1, 1, 3},  {3, 2, 48, 272, 3, 2, 1, 2},
    {4, 4, 16, 16, 3, 1, 1, 50},  {1, 1, 40, 24, 1, 1, 1, 67},  {64, 64, 16, 3, 3, 1, 1, 1},
    {5, 5, 32, 32, 3, 1, 2, 13},  {17, 16, 32, 48, 3, 1, 1, 3}, {16, 17, 32, 32, 3, 2, 1, 5},
    {6, 7, 64, 1, 3, 1, 1, 5},    {50, 3, 17, 5, 3, 2, 1, 2},   {12, 12, 5, 96, 1, 1, 2, 2},
    {26, 41, 3, 97, 3, 1, 1, 1},
};

enum { SHAPES = sizeof shapes / sizeof *shapes, RANDOM_SHAPES = 40, ROUNDS = 2 };

/* Of the sum of |products|: what float32 sums lose, and what bfloat16 parts leave out (three terms of at
 * most 2^-16 each). bfloat16 is compared on rounded operands. */
static const double tolerance[DSB_PRECISIONS] = {
    [DSB_PRECISION_FLOAT32] = 3e-6,
    [DSB_PRECISION_BF16X3] = 4.8e-5,
    [DSB_PRECISION_BF16] = 3e-6,
};
static const char *const names[DSB_PRECISIONS] = {"float32", "bf16x3", "bf16"};

/* A case: what is convolved, how it lies in memory, and the operands as float64. */
typedef struct trial {
    const dsb_conv_passes *passes;
    dsb_precision precision;
    dsb_conv conv;
    int rows, pixels, pixels_out; /* of an image */
    int64_t nx, nw, ny;           /* numbers in the images, in the weights */
    bool affine, silu, bias, row, one_row, residual, in_place, slice[4];
    dsb_dtype dtype[4]; /* of x, y, dx, dy, as `slice` */
    int beta, number;
    double *x, *w, *dy;                /* as the products take them */
    double *size_x, *size_w, *size_dy; /* magnitudes that their errors go by */
    image x_image, dy_image;
    guarded ab, weights;
} trial;

enum { X, Y, DX, DY };

static void
expect(const trial *t, bool holds, const char *what)
{
    const dsb_conv *c = &t->conv;

    if (!holds) {
        printf("convolution %d, %s, %s: %dx%d, %d -> %d, kernel %d, stride %d, up %d, rows %d\n",
               t->number, names[t->precision], what, c->h, c->w, c->c_in, c->c_out, c->kernel,
               c->stride, c->up, t->rows);
    }
    CHECK(holds);
}

/* ---- the case ---- */

/* Draws x so that its rounding to bfloat16 does not hang on the last bits of f(a x + b). */
static void
draw_x(trial *t, int64_t line, int channel)
{
    const float *ab = (const float *)t->ab.data + line / t->pixels * 2 * dsb_pitch(t->conv.c_in);
    double a = t->affine ? (double)ab[channel] : 1.0;
    double b = t->affine ? (double)ab[dsb_pitch(t->conv.c_in) + channel] : 0.0;
    int64_t at = line * t->conv.c_in + channel;
    double value, size, slack;

    do {
        image_set(&t->x_image, line, channel, draw_number());
        value = image_get(&t->x_image, line, channel);
        size = fabs(a * value) + fabs(b);
        value = a * value + b;
        value = t->affine && t->silu ? value / (1.0 + exp(-value)) : value;
        slack = t->affine ? 1e-6 * size : 0.0;
    } while (bf16_from(value - slack) != bf16_from(value + slack));
    t->x[at] = t->precision == DSB_PRECISION_BF16 ? bf16_value(bf16_from(value)) : value;
    t->size_x[at] = t->affine ? size : fabs(value);
}

static void
draw_operands(trial *t)
{
    int64_t pitch = dsb_pitch(t->conv.c_in);
    float *ab = t->ab.data, *w = t->weights.data;

    for (int64_t i = 0; i < t->rows * 2 * pitch; i++) { /* zero in the padding */
        double value = draw_number() + (i / pitch % 2 ? 0.0 : 1.0);

        ab[i] = i % pitch < t->conv.c_in ? (float)value : 0.0f;
    }
    for (int64_t i = 0; i < t->nx; i++) {
        draw_x(t, i / t->conv.c_in, (int)(i % t->conv.c_in));
    }
    for (int64_t i = 0; i < t->nw; i++) {
        w[i] = (float)draw_number();
        t->w[i] = t->precision == DSB_PRECISION_BF16 ? bf16_value(bf16_from(w[i])) : (double)w[i];
        t->size_w[i] = fabs(t->w[i]);
    }
    for (int64_t i = 0; i < t->ny; i++) {
        int64_t line = i / t->conv.c_out;
        int channel = (int)(i % t->conv.c_out);
        double value;

        image_set(&t->dy_image, line, channel, draw_number());
        value = image_get(&t->dy_image, line, channel);
        t->dy[i] = t->precision == DSB_PRECISION_BF16 ? bf16_value(bf16_from(value)) : value;
        t->size_dy[i] = fabs(t->dy[i]);
    }
}

static trial
trial_make(const dsb_conv_passes *passes, dsb_precision precision, const shape *s, int number)
{
    trial t = {.passes = passes, .precision = precision, .rows = s->rows, .number = number};
    dsb_conv conv = {s->h, s->w, s->c_in, s->c_out, s->kernel, s->stride, s->up};

    t.conv = conv;
    t.pixels = s->h * s->w;
    t.pixels_out = dsb_conv_out(&conv, s->h) * dsb_conv_out(&conv, s->w);
    t.nx = (int64_t)s->rows * t.pixels * s->c_in;
    t.nw = (int64_t)s->c_out * s->kernel * s->kernel * s->c_in;
    t.ny = (int64_t)s->rows * t.pixels_out * s->c_out;
    t.affine = draw_below(3) > 0;
    t.silu = draw_below(2);
    t.bias = draw_below(2);
    t.row = draw_below(2);
    t.one_row = draw_below(2);
    t.residual = draw_below(2);
    t.in_place = draw_below(2);
    t.beta = draw_below(2);
    for (int i = X; i <= DY; i++) {
        t.slice[i] = draw_below(2);
        t.dtype[i] = draw_dtype();
    }
    t.x = doubles(t.nx);
    t.size_x = doubles(t.nx);
    t.w = doubles(t.nw);
    t.size_w = doubles(t.nw);
    t.dy = doubles(t.ny);
    t.size_dy = doubles(t.ny);
    t.ab = guarded_floats(t.rows * 2 * dsb_pitch(conv.c_in));
    t.weights = guarded_floats(t.nw);
    t.x_image = image_make(t.rows * t.pixels, conv.c_in, t.dtype[X], t.slice[X]);
    t.dy_image = image_make(t.rows * t.pixels_out, conv.c_out, t.dtype[DY], t.slice[DY]);
    draw_operands(&t);
    return t;
}

static void
trial_free(trial *t)
{
    double *arrays[] = {t->x, t->size_x, t->w, t->size_w, t->dy, t->size_dy};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        free(arrays[i]);
    }
    expect(t, guarded_free(&t->ab), "guards of the affine");
    expect(t, guarded_free(&t->weights), "guards of the weights");
    expect(t, image_free(&t->x_image), "guards of x");
    expect(t, image_free(&t->dy_image), "guards of dy");
}

/* ---- what the passes share ---- */

static guarded
packed_make(const trial *t, bool transposed)
{
    guarded packed = guarded_make(t->passes->packed_bytes(&t->conv, transposed), 0xff);

    t->passes->pack(NULL, &t->conv, transposed, t->weights.data, packed.data);
    return packed;
}

/* Dirty: what is left of an earlier call is no zero. */
static guarded
scratch_make(const trial *t, int rows, bool backward)
{
    return guarded_make(t->passes->scratch_bytes(&t->conv, rows, backward), 0xff);
}

/* result[i] is within the tolerance of truth[i]; a NaN is not. */
static bool
near(const trial *t, double result, double truth, double size, dsb_dtype dtype)
{
    double rounding = dtype == DSB_BFLOAT16 ? 0.003907 : 1.2e-7; /* half of the last bit */
    double share = tolerance[t->precision];

    if (t->precision == DSB_PRECISION_BF16 && t->conv.up == 2) {
        share += 2 * 0.003907; /* sums of rounded operands here, rounded sums there */
    }
    return fabs(result - truth) <= share * size + rounding * fabs(truth);
}

static bool
image_near(const trial *t, const image *im, const double *truth, const double *size)
{
    for (int64_t i = 0; i < im->lines * im->c; i++) {
        double result = image_get(im, i / im->c, (int)(i % im->c));

        if (!near(t, result, truth[i], size[i], im->slot.dtype)) {
            printf("line %lld, channel %d: %g, not %g\n", (long long)(i / im->c), (int)(i % im->c),
                   result, truth[i]);
            return false;
        }
    }
    return true;
}

/* ---- forward ---- */

typedef struct forward_buffers {
    guarded packed, bias;
    image row, residual, y, again; /* `again`: y made row by row */
} forward_buffers;

static void
draw_image(image *im)
{
    for (int64_t i = 0; i < im->lines * im->c; i++) {
        image_set(im, i / im->c, (int)(i % im->c), draw_number());
    }
    image_remember(im);
}

static forward_buffers
forward_make(const trial *t)
{
    int c = t->conv.c_out, lines = t->rows * t->pixels_out;
    forward_buffers f = {.packed = packed_make(t, false), .bias = guarded_floats(c)};

    for (int i = 0; i < c; i++) {
        ((float *)f.bias.data)[i] = (float)draw_number();
    }
    f.row = image_make(t->one_row ? 1 : t->rows, c, DSB_FLOAT32, t->slice[X]);
    f.residual = image_make(lines, c, t->dtype[Y], t->slice[DX]);
    f.y = image_make(lines, c, t->dtype[Y], t->slice[Y]);
    f.again = image_make(lines, c, t->dtype[Y], t->slice[Y]);
    draw_image(&f.row);
    draw_image(&f.residual);
    draw_image(&f.y);
    for (int64_t i = 0; i < (int64_t)lines * c; i++) {
        image_set(&f.again, i / c, (int)(i % c), image_get(&f.y, i / c, (int)(i % c)));
    }
    image_remember(&f.again);
    return f;
}

/* Rows `first` .. `first + rows - 1` into y. */
static void
forward_rows(const trial *t, const forward_buffers *f, int first, int rows, image *y)
{
    int64_t line = (int64_t)first * t->pixels_out;
    dsb_affine affine = {.silu = t->silu};
    dsb_epilogue epilogue = {.bias = t->bias ? f->bias.data : NULL};
    guarded scratch = scratch_make(t, rows, false);

    if (t->affine) {
        affine.ab = (const float *)t->ab.data + first * 2 * dsb_pitch(t->conv.c_in);
    }
    if (t->row) {
        epilogue.row = image_from(&f->row, t->one_row ? 0 : first);
        epilogue.row.ld = t->one_row ? 0 : epilogue.row.ld;
    }
    if (t->residual) {
        epilogue.residual = image_from(t->in_place ? y : &f->residual, line);
    }
    t->passes->forward(NULL, &t->conv, rows, image_from(&t->x_image, (int64_t)first * t->pixels),
                       &affine, f->packed.data, &epilogue, image_from(y, line), scratch.data);
    expect(t, guarded_free(&scratch), "guards of the scratch, forward");
}

/* What should stand in y, from what stood there, and the sum of magnitudes. */
static void
forward_truth(const trial *t, const forward_buffers *f, double *truth, double *size)
{
    int c = t->conv.c_out;

    for (int64_t i = 0; i < t->ny; i++) {
        int64_t line = i / c, row = t->one_row ? 0 : line / t->pixels_out;
        int o = (int)(i % c);
        double terms[] = {
            t->bias ? (double)((const float *)f->bias.data)[o] : 0.0,
            t->row ? image_get(&f->row, row, o) : 0.0,
            t->residual ? image_get(t->in_place ? &f->y : &f->residual, line, o) : 0.0,
        };

        truth[i] = terms[0] + terms[1] + terms[2];
        size[i] = fabs(terms[0]) + fabs(terms[1]) + fabs(terms[2]);
    }
    ref_conv(&t->conv, t->rows, REF_FORWARD, t->x, t->w, truth);
    ref_conv(&t->conv, t->rows, REF_FORWARD, t->size_x, t->size_w, size);
}

static void
test_forward(trial *t)
{
    forward_buffers f = forward_make(t);
    double *truth = doubles(t->ny), *size = doubles(t->ny);

    forward_truth(t, &f, truth, size);
    image_soil_largest(&t->x_image);
    image_remember(&t->x_image);
    forward_rows(t, &f, 0, t->rows, &f.y);
    expect(t, image_near(t, &f.y, truth, size), "forward");
    expect(t,
           t->passes->scratch_bytes(&t->conv, 1, false) <=
               t->passes->scratch_bytes(&t->conv, t->rows, false),
           "fewer rows need no more scratch");
    expect(t, image_foreign_unchanged(&f.y), "columns beside y");
    expect(t,
           image_unchanged(&t->x_image) && image_unchanged(&f.residual) && image_unchanged(&f.row),
           "what forward reads");
    image_soil(&t->x_image, 0.25);
    image_soil(&f.residual, 1e20);
    for (int r = 0; r < t->rows; r++) {
        forward_rows(t, &f, r, 1, &f.again);
    }
    expect(t, image_same(&f.y, &f.again), "forward, row by row");
    expect(t, guarded_free(&f.packed) && guarded_free(&f.bias), "guards of weights or bias");
    expect(t, image_free(&f.row) && image_free(&f.residual), "guards of what is added");
    expect(t, image_free(&f.y), "guards of y");
    expect(t, image_free(&f.again), "guards of y, row by row");
    free(truth);
    free(size);
}

/* ---- gradient of the input ---- */

static void
input_rows(const trial *t, const guarded *packed, int first, int rows, image *dx)
{
    guarded scratch = scratch_make(t, rows, true);

    t->passes->backward_input(
        NULL, &t->conv, rows, image_from(&t->dy_image, (int64_t)first * t->pixels_out),
        packed->data, t->beta, image_from(dx, (int64_t)first * t->pixels), scratch.data);
    expect(t, guarded_free(&scratch), "guards of the scratch, gradient of the input");
}

static void
test_backward_input(trial *t)
{
    int c = t->conv.c_in;
    guarded packed = packed_make(t, true);
    image dx[2];
    double *truth = doubles(t->nx), *size = doubles(t->nx);

    for (int i = 0; i < 2; i++) {
        dx[i] = image_make((int64_t)t->rows * t->pixels, c, t->dtype[DX], t->slice[DX]);
    }
    for (int64_t i = 0; i < t->nx; i++) {
        double old = t->beta ? draw_number() : NAN;

        for (int k = 0; k < 2; k++) {
            image_set(&dx[k], i / c, (int)(i % c), old);
        }
        truth[i] = t->beta ? image_get(&dx[0], i / c, (int)(i % c)) : 0.0;
        size[i] = fabs(truth[i]);
    }
    ref_conv(&t->conv, t->rows, REF_INPUT, truth, t->w, t->dy);
    ref_conv(&t->conv, t->rows, REF_INPUT, size, t->size_w, t->size_dy);
    image_soil_largest(&t->dy_image);
    image_remember(&t->dy_image);
    image_remember(&dx[0]);
    input_rows(t, &packed, 0, t->rows, &dx[0]);
    expect(t, image_near(t, &dx[0], truth, size), "gradient of the input");
    expect(t, image_foreign_unchanged(&dx[0]), "columns beside dx");
    expect(t, image_unchanged(&t->dy_image), "what the gradient of the input reads");
    image_soil(&t->dy_image, 0.25);
    for (int r = 0; r < t->rows; r++) {
        input_rows(t, &packed, r, 1, &dx[1]);
    }
    expect(t, image_same(&dx[0], &dx[1]), "gradient of the input, row by row");
    expect(t, guarded_free(&packed), "guards of the transposed weights");
    expect(t, image_free(&dx[0]), "guards of dx");
    expect(t, image_free(&dx[1]), "guards of dx, row by row");
    free(truth);
    free(size);
}

/* ---- gradient of the weights ---- */

static void
weight_rows(const trial *t, guarded *dw, guarded *db)
{
    guarded scratch = scratch_make(t, t->rows, true);
    dsb_affine affine = {.ab = t->affine ? t->ab.data : NULL, .silu = t->silu};

    t->passes->backward_weight(NULL, &t->conv, t->rows, t->x_image.slot, &affine, t->dy_image.slot,
                               t->beta, dw->data, db->data, scratch.data);
    expect(t, guarded_free(&scratch), "guards of the scratch, gradient of the weights");
}

/* db sums dy as it is given, unrounded. */
static void
weight_truth(const trial *t, double *dw, double *size_dw, double *db, double *size_db)
{
    int c = t->conv.c_out;

    ref_conv(&t->conv, t->rows, REF_WEIGHT, t->x, dw, t->dy);
    ref_conv(&t->conv, t->rows, REF_WEIGHT, t->size_x, size_dw, t->size_dy);
    for (int64_t i = 0; i < t->ny; i++) {
        double value = image_get(&t->dy_image, i / c, (int)(i % c));

        db[i % c] += value;
        size_db[i % c] += fabs(value);
    }
}

static bool
floats_near(const trial *t, int64_t n, const float *result, const double *truth, const double *size)
{
    for (int64_t i = 0; i < n; i++) {
        if (!near(t, (double)result[i], truth[i], size[i], DSB_FLOAT32)) {
            printf("number %lld: %g, not %g\n", (long long)i, (double)result[i], truth[i]);
            return false;
        }
    }
    return true;
}

static void
test_backward_weight(trial *t)
{
    int64_t n[2] = {t->nw, t->conv.c_out};
    guarded result[2][2]; /* dw and db, made twice */
    double *truth[2], *size[2];

    for (int k = 0; k < 2; k++) {
        truth[k] = doubles(n[k]);
        size[k] = doubles(n[k]);
        result[0][k] = guarded_floats(n[k]);
        result[1][k] = guarded_floats(n[k]);
        for (int64_t i = 0; i < n[k]; i++) {
            float old = t->beta ? (float)draw_number() : NAN;

            ((float *)result[0][k].data)[i] = ((float *)result[1][k].data)[i] = old;
            truth[k][i] = t->beta ? (double)old : 0.0;
            size[k][i] = fabs(truth[k][i]);
        }
    }
    weight_truth(t, truth[0], size[0], truth[1], size[1]);
    for (int twice = 0; twice < 2; twice++) {
        image_soil(&t->x_image, twice ? 0.25 : 1e10);
        image_soil_largest(twice ? &t->x_image : &t->dy_image);
        image_remember(&t->x_image);
        image_remember(&t->dy_image);
        weight_rows(t, &result[twice][0], &result[twice][1]);
        expect(t, image_unchanged(&t->x_image) && image_unchanged(&t->dy_image),
               "what the gradient of the weights reads");
    }
    expect(t, floats_near(t, n[0], result[0][0].data, truth[0], size[0]),
           "gradient of the weights");
    expect(t, floats_near(t, n[1], result[0][1].data, truth[1], size[1]), "gradient of the bias");
    for (int k = 0; k < 2; k++) {
        expect(t, memcmp(result[0][k].data, result[1][k].data, result[0][k].bytes) == 0,
               "gradients of weights and bias, other padding");
        expect(t, guarded_free(&result[0][k]) && guarded_free(&result[1][k]), "guards of dw or db");
        free(truth[k]);
        free(size[k]);
    }
}

/* ---- all of them ---- */

static shape
random_shape(void)
{
    static const int channels[] = {1, 3, 5, 8, 16, 17, 24, 32, 33, 48};
    enum { CHANNELS = sizeof channels / sizeof *channels };
    shape s = {.h = 1 + draw_below(19), .w = 1 + draw_below(19), .rows = 1 + draw_below(5)};

    s.c_in = channels[draw_below(CHANNELS)];
    s.c_out = channels[draw_below(CHANNELS)];
    s.kernel = draw_below(3) ? 3 : 1;
    s.stride = 1 + draw_below(2);
    s.up = s.stride == 1 ? 1 + draw_below(2) : 1;
    return s;
}

static void
test_shape(const dsb_conv_passes *passes, dsb_precision precision, const shape *s, int number)
{
    trial t = trial_make(passes, precision, s, number);

    test_forward(&t);
    test_backward_input(&t);
    test_backward_weight(&t);
    trial_free(&t);
}

void
test_conv(void)
{
    const dsb_backend *backend = dsb_cpu_backend();

    for (int p = 0; p < DSB_PRECISIONS; p++) {
        const dsb_conv_passes *passes = &backend->conv[p];
        int number = 0;

        if (passes->forward == NULL) {
            continue;
        }
        draw_start();
        for (; number < ROUNDS * SHAPES; number++) {
            test_shape(passes, (dsb_precision)p, &shapes[number % SHAPES], number);
        }
        for (; number < ROUNDS * SHAPES + RANDOM_SHAPES; number++) {
            shape s = random_shape();

            test_shape(passes, (dsb_precision)p, &s, number);
        }
    }
}
