/* Every convolution that the backend has, in each precision: against plain loops in float64, with guards
 * around every buffer, NaN in scratch and in foreign columns, large numbers in the padding, and each row
 * again on its own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
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
    bool affine, silu, bias, row, one_row, residual, in_place;
    variant how[4]; /* x, y, dx, dy */
    int beta;
    double share;                      /* of the sum of |products| that a result may be off */
    double *x, *w, *dy;                /* as the products take them */
    double *size_x, *size_w, *size_dy; /* magnitudes that their errors go by */
    image x_image, dy_image;
    float *ab, *weights; /* guarded */
} trial;

enum { X, Y, DX, DY };

/* ---- the case ---- */

/* As the products take it. */
static double
operand(const trial *t, double value)
{
    return t->precision == DSB_PRECISION_BF16 ? bf16_round(value) : value;
}

/* Draws x so that its rounding to bfloat16 does not hang on the last bits of f(a x + b). */
static void
draw_x(trial *t, int line, int channel)
{
    const float *ab = t->ab + line / t->pixels * 2 * dsb_pitch(t->conv.c_in);
    double a = t->affine ? (double)ab[channel] : 1.0;
    double b = t->affine ? (double)ab[dsb_pitch(t->conv.c_in) + channel] : 0.0;
    int64_t at = (int64_t)line * t->conv.c_in + channel;
    double value, size, slack;

    do {
        value = image_set(&t->x_image, line, channel, draw_number());
        size = fabs(a * value) + fabs(b);
        value = a * value + b;
        value = t->affine && t->silu ? value / (1.0 + exp(-value)) : value;
        slack = t->affine ? 1e-6 * size : 0.0;
    } while (bf16_round(value - slack) != bf16_round(value + slack));
    t->x[at] = operand(t, value);
    t->size_x[at] = t->affine ? size : fabs(value);
}

static void
draw_operands(trial *t)
{
    int64_t pitch = dsb_pitch(t->conv.c_in);

    for (int64_t i = 0; i < t->rows * 2 * pitch; i++) { /* zero in the padding */
        double value = draw_number() + (i / pitch % 2 ? 0.0 : 1.0);

        t->ab[i] = i % pitch < t->conv.c_in ? (float)value : 0.0f;
    }
    for (int64_t i = 0; i < t->nx; i++) {
        draw_x(t, (int)(i / t->conv.c_in), (int)(i % t->conv.c_in));
    }
    for (int64_t i = 0; i < t->nw; i++) {
        t->w[i] = operand(t, (double)t->weights[i]);
        t->size_w[i] = fabs(t->w[i]);
    }
    for (int64_t i = 0; i < t->ny; i++) {
        t->dy[i] = operand(t, t->dy_image.value[i]);
        t->size_dy[i] = fabs(t->dy[i]);
    }
}

static trial
trial_make(const dsb_conv_passes *passes, dsb_precision precision, const shape *s)
{
    dsb_conv conv = {s->h, s->w, s->c_in, s->c_out, s->kernel, s->stride, s->up};
    trial t = {.passes = passes, .precision = precision, .conv = conv, .rows = s->rows};

    /* Of up-sampled images: sums of rounded operands here, rounded sums there. */
    t.share =
        tolerance[precision] + (precision == DSB_PRECISION_BF16 && s->up == 2 ? 2.0 / 256 : 0);
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
        t.how[i].slice = draw_below(2);
        t.how[i].dtype = draw_below(2) ? DSB_BFLOAT16 : DSB_FLOAT32;
        t.how[i].soil =
            1e30; /* as what is added may come back in the padding, which has to be finite */
    }
    t.x = doubles(t.nx);
    t.size_x = doubles(t.nx);
    t.w = numbers(t.nw, 1.0);
    t.size_w = doubles(t.nw);
    t.dy = doubles(t.ny);
    t.size_dy = doubles(t.ny);
    t.ab = floats(t.rows * 2 * dsb_pitch(conv.c_in), NULL);
    t.weights = floats(t.nw, t.w);
    t.x_image = image_make(&t.how[X], t.rows * t.pixels, conv.c_in, 1.0);
    t.dy_image = image_make(&t.how[DY], t.rows * t.pixels_out, conv.c_out, 1.0);
    draw_operands(&t);
    return t;
}

static void
trial_free(trial *t)
{
    guarded_free(t->ab), guarded_free(t->weights);
    image_free(&t->x_image), image_free(&t->dy_image);
    free(t->x), free(t->size_x), free(t->w), free(t->size_w), free(t->dy), free(t->size_dy);
}

/* ---- what the passes share ---- */

static void *
packed_make(const trial *t, bool transposed)
{
    void *packed = guarded(t->passes->packed_bytes(&t->conv, transposed), 0xff);

    t->passes->pack(NULL, &t->conv, transposed, t->weights, packed);
    return packed;
}

/* Dirty: what is left of an earlier call is no zero. */
static void *
scratch_make(const trial *t, int rows, bool backward)
{
    return guarded(t->passes->scratch_bytes(&t->conv, rows, backward), 0xff);
}

/* Two images of the same numbers; NaN where `values` is false. */
static void
twins_make(image twins[2], const variant *how, int lines, int c, bool values)
{
    for (int k = 0; k < 2; k++) {
        twins[k] = image_make(how, lines, c, 1.0);
        for (int64_t i = 0; i < (int64_t)lines * c; i++) {
            image_set(&twins[k], (int)(i / c), i % c, values ? twins[0].value[i] : NAN);
        }
    }
}

/* ---- forward ---- */

typedef struct forward_buffers {
    void *packed;
    float *bias;
    image row, residual, y[2]; /* y[1] is made row by row */
} forward_buffers;

static forward_buffers
forward_make(const trial *t)
{
    int c = t->conv.c_out, lines = t->rows * t->pixels_out;
    variant residual = {t->how[Y].dtype, t->how[DX].slice, 0, t->how[Y].soil};
    forward_buffers f = {.packed = packed_make(t, false), .bias = floats(c, NULL)};

    for (int i = 0; i < c; i++) {
        f.bias[i] = (float)draw_number();
    }
    f.row = rows_make(&t->how[X], t->one_row ? 1 : t->rows, c, 1.0);
    f.residual = image_make(&residual, lines, c, 1.0);
    twins_make(f.y, &t->how[Y], lines, c, true);
    return f;
}

/* Rows `first` .. `first + rows - 1` into y. */
static void
forward_rows(const trial *t, const forward_buffers *f, int first, int rows, const image *y)
{
    int line = first * t->pixels_out;
    dsb_affine affine = {.silu = t->silu};
    dsb_epilogue epilogue = {.bias = t->bias ? f->bias : NULL};
    void *scratch = scratch_make(t, rows, false);

    if (t->affine) {
        affine.ab = t->ab + first * 2 * dsb_pitch(t->conv.c_in);
    }
    if (t->row) {
        epilogue.row = image_from(&f->row, t->one_row ? 0 : first);
        epilogue.row.ld = t->one_row ? 0 : epilogue.row.ld;
    }
    if (t->residual) {
        epilogue.residual = image_from(t->in_place ? y : &f->residual, line);
    }
    t->passes->forward(NULL, &t->conv, rows, image_from(&t->x_image, first * t->pixels), &affine,
                       f->packed, &epilogue, image_from(y, line), scratch);
    guarded_free(scratch);
}

/* What should stand in y, from what stood there, and the sum of magnitudes. */
static void
forward_truth(const trial *t, const forward_buffers *f, double *truth, double *size)
{
    int c = t->conv.c_out;

    for (int64_t i = 0; i < t->ny; i++) {
        int64_t row = t->one_row ? 0 : i / c / t->pixels_out;
        double terms[] = {
            t->bias ? (double)f->bias[i % c] : 0.0,
            t->row ? f->row.value[row * c + i % c] : 0.0,
            t->residual ? (t->in_place ? f->y[0] : f->residual).value[i] : 0.0,
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
    image_soil(&t->x_image, INFINITY);
    image_remember(&t->x_image);
    forward_rows(t, &f, 0, t->rows, &f.y[0]);
    CHECK(image_near(&f.y[0], truth, size, 0, t->share));
    CHECK(t->passes->scratch_bytes(&t->conv, 1, false) <=
          t->passes->scratch_bytes(&t->conv, t->rows, false));
    CHECK(image_unchanged(&t->x_image) && image_unchanged(&f.residual) && image_unchanged(&f.row));
    image_soil(&t->x_image, 0.25);
    image_soil(&f.residual, 1e20);
    for (int r = 0; r < t->rows; r++) {
        forward_rows(t, &f, r, 1, &f.y[1]);
    }
    CHECK(image_same(&f.y[0], 0, &f.y[1], 0, f.y[0].lines));
    guarded_free(f.packed), guarded_free(f.bias);
    image_free(&f.row), image_free(&f.residual), image_free(&f.y[0]), image_free(&f.y[1]);
    free(truth), free(size);
}

/* ---- gradient of the input ---- */

static void
input_rows(const trial *t, const void *packed, int first, int rows, const image *dx)
{
    void *scratch = scratch_make(t, rows, true);

    t->passes->backward_input(NULL, &t->conv, rows, image_from(&t->dy_image, first * t->pixels_out),
                              packed, t->beta, image_from(dx, first * t->pixels), scratch);
    guarded_free(scratch);
}

static void
test_backward_input(trial *t)
{
    void *packed = packed_make(t, true);
    image dx[2]; /* the second is made row by row */
    double *truth = doubles(t->nx), *size = doubles(t->nx);

    twins_make(dx, &t->how[DX], t->rows * t->pixels, t->conv.c_in, t->beta);
    for (int64_t i = 0; i < t->nx; i++) {
        truth[i] = t->beta ? dx[0].value[i] : 0.0;
        size[i] = fabs(truth[i]);
    }
    ref_conv(&t->conv, t->rows, REF_INPUT, truth, t->w, t->dy);
    ref_conv(&t->conv, t->rows, REF_INPUT, size, t->size_w, t->size_dy);
    image_soil(&t->dy_image, INFINITY);
    image_remember(&t->dy_image);
    input_rows(t, packed, 0, t->rows, &dx[0]);
    CHECK(image_near(&dx[0], truth, size, 0, t->share));
    CHECK(image_unchanged(&t->dy_image));
    image_soil(&t->dy_image, 0.25);
    for (int r = 0; r < t->rows; r++) {
        input_rows(t, packed, r, 1, &dx[1]);
    }
    CHECK(image_same(&dx[0], 0, &dx[1], 0, dx[0].lines));
    guarded_free(packed);
    image_free(&dx[0]), image_free(&dx[1]);
    free(truth), free(size);
}

/* ---- gradient of the weights ---- */

static void
weight_rows(const trial *t, float *dw, float *db)
{
    void *scratch = scratch_make(t, t->rows, true);
    dsb_affine affine = {.ab = t->affine ? t->ab : NULL, .silu = t->silu};

    t->passes->backward_weight(NULL, &t->conv, t->rows, t->x_image.slot, &affine, t->dy_image.slot,
                               t->beta, dw, db, scratch);
    guarded_free(scratch);
}

/* db sums dy as it is given, unrounded. */
static void
weight_truth(const trial *t, double *dw, double *size_dw, double *db, double *size_db)
{
    int c = t->conv.c_out;

    ref_conv(&t->conv, t->rows, REF_WEIGHT, t->x, dw, t->dy);
    ref_conv(&t->conv, t->rows, REF_WEIGHT, t->size_x, size_dw, t->size_dy);
    for (int64_t i = 0; i < t->ny; i++) {
        db[i % c] += t->dy_image.value[i];
        size_db[i % c] += fabs(t->dy_image.value[i]);
    }
}

static void
test_backward_weight(trial *t)
{
    int64_t n[2] = {t->nw, t->conv.c_out};
    float *result[2][2]; /* dw and db, made twice */
    double *truth[2], *size[2];

    for (int k = 0; k < 2; k++) {
        truth[k] = t->beta ? numbers(n[k], 1.0) : doubles(n[k]);
        size[k] = doubles(n[k]);
        for (int64_t i = 0; i < n[k]; i++) {
            size[k][i] = fabs(truth[k][i]);
        }
        result[0][k] = floats(n[k], t->beta ? truth[k] : NULL);
        result[1][k] = floats(n[k], t->beta ? truth[k] : NULL);
    }
    weight_truth(t, truth[0], size[0], truth[1], size[1]);
    for (int twice = 0; twice < 2; twice++) {
        image_soil(&t->x_image, twice ? INFINITY : 0.25);
        image_soil(&t->dy_image, twice ? INFINITY : 0.25);
        image_remember(&t->x_image);
        image_remember(&t->dy_image);
        weight_rows(t, result[twice][0], result[twice][1]);
        CHECK(image_unchanged(&t->x_image) && image_unchanged(&t->dy_image));
    }
    for (int k = 0; k < 2; k++) {
        CHECK(floats_near(result[0][k], truth[k], size[k], NULL, n[k], t->share));
        CHECK(memcmp(result[0][k], result[1][k], sizeof(float) * (size_t)n[k]) == 0);
        guarded_free(result[0][k]), guarded_free(result[1][k]);
        free(truth[k]), free(size[k]);
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
    trial t = trial_make(passes, precision, s);
    int before = test_failures();

    test_forward(&t);
    test_backward_input(&t);
    test_backward_weight(&t);
    trial_free(&t);
    if (test_failures() != before) {
        printf("convolution %d, %s: %dx%d, %d -> %d, kernel %d, stride %d, up %d, rows %d\n",
               number, names[precision], s->h, s->w, s->c_in, s->c_out, s->kernel, s->stride, s->up,
               s->rows);
    }
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
