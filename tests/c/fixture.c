#include "fixture.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/memory.h"
#include "base/philox.h"
#include "test.h"

/* A block: how long the data are, a guard, the data, a guard. */
enum { HEAD = 64, GUARD = 256, GUARD_BYTE = 0xa5, FOREIGN = 16 };

/* ---- numbers ---- */

static uint32_t drawn;

static uint32_t
draw(void)
{
    uint32_t words[4];

    dsb_philox(2024, drawn++, 0, 0, DSB_STREAM_USER, words);
    return words[0];
}

void
draw_start(void)
{
    drawn = 0;
}

int
draw_below(int n)
{
    return (int)dsb_uniform_below(draw(), (uint32_t)n);
}

double
draw_number(void)
{
    return 2.0 * (double)dsb_uniform(draw()) - 1.0;
}

double *
doubles(int64_t n)
{
    double *x = calloc((size_t)n, sizeof *x);

    if (x == NULL) {
        abort();
    }
    return x;
}

double *
numbers(int64_t n, double scale)
{
    double *x = doubles(n);

    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(scale * draw_number());
    }
    return x;
}

double
bf16_round(double value)
{
    /* What is rounded twice is no worse than what a kernel does. */
    uint32_t bits = dsb_float_bits((float)value);

    return (double)dsb_bits_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

/* ---- memory ---- */

void *
guarded(size_t bytes, int fill)
{
    unsigned char *block;

    if (dsb_alloc(HEAD + bytes + 2 * GUARD, &block) != DSB_OK) {
        abort();
    }
    memcpy(block, &bytes, sizeof bytes);
    memset(block + HEAD, GUARD_BYTE, bytes + 2 * GUARD);
    memset(block + HEAD + GUARD, fill, bytes);
    dsb_arena_close(block, HEAD + bytes + 2 * GUARD);
    dsb_arena_open(block + HEAD + GUARD, bytes);
    return block + HEAD + GUARD;
}

float *
floats(int64_t n, const double *x)
{
    float *y = guarded(sizeof *y * (size_t)n, 0xff);

    for (int64_t i = 0; i < n && x != NULL; i++) {
        y[i] = (float)x[i];
    }
    return y;
}

void
guarded_free(void *data)
{
    unsigned char *guard = (unsigned char *)data - GUARD, *block = guard - HEAD;
    size_t bytes;

    dsb_arena_open(block, HEAD);
    memcpy(&bytes, block, sizeof bytes);
    dsb_arena_open(block, HEAD + bytes + 2 * GUARD);
    for (size_t i = 0; i < GUARD; i++) {
        if (guard[i] != GUARD_BYTE || guard[GUARD + bytes + i] != GUARD_BYTE) {
            printf("written beside a block of %zu bytes\n", bytes);
            CHECK(!"guards are intact");
            break;
        }
    }
    dsb_free(block);
}

/* ---- images ---- */

/* Columns count from the slice's first. */
static char *
element(const image *im, int64_t line, int64_t column)
{
    return (char *)im->slot.data + (line * im->slot.ld + column) * dsb_dtype_bytes(im->slot.dtype);
}

double
image_get(const image *im, int line, int64_t column)
{
    uint32_t bits;
    uint16_t half;

    if (im->slot.dtype == DSB_BFLOAT16) {
        memcpy(&half, element(im, line, column), sizeof half);
        bits = (uint32_t)half << 16;
    } else {
        memcpy(&bits, element(im, line, column), sizeof bits);
    }
    return dsb_bits_float(bits);
}

double
image_set(const image *im, int line, int64_t column, double value)
{
    bool is_half = im->slot.dtype == DSB_BFLOAT16;
    float single = (float)(is_half ? bf16_round(value) : value);
    uint32_t bits = dsb_float_bits(single);
    uint16_t half = (uint16_t)(bits >> 16);

    memcpy(element(im, line, column), is_half ? (void *)&half : &bits, is_half ? 2 : 4);
    return single;
}

image
image_make(const variant *v, int lines, int c, double scale)
{
    image im = {.lines = lines, .c = c, .skip = v->slice ? FOREIGN : 0};
    int64_t ld = dsb_pitch(c) + 2 * im.skip;

    im.block = guarded((size_t)(lines * ld * dsb_dtype_bytes(v->dtype)), 0xff);
    im.before = malloc((size_t)(lines * ld * dsb_dtype_bytes(v->dtype)));
    im.slot = dsb_slot_from((dsb_slot){im.block, ld, v->dtype}, im.skip);
    im.value = numbers((int64_t)lines * c, scale);
    for (int64_t i = 0; i < (int64_t)lines * c; i++) {
        im.value[i] = image_set(&im, (int)(i / c), i % c, im.value[i]);
    }
    image_soil(&im, v->soil);
    image_remember(&im);
    return im;
}

image
rows_make(const variant *v, int rows, int n, double scale)
{
    return image_make(&(variant){DSB_FLOAT32, v->slice, 0, v->soil}, rows, n, scale);
}

static bool
foreign_unchanged(const image *im)
{
    size_t bytes = (size_t)(im->skip * dsb_dtype_bytes(im->slot.dtype));
    bool same = true;

    for (int line = 0; line < im->lines; line++) {
        const char *left = element(im, line, -im->skip);
        const char *right = element(im, line, dsb_pitch(im->c));

        same = same && memcmp(left, im->before + (left - im->block), bytes) == 0 &&
               memcmp(right, im->before + (right - im->block), bytes) == 0;
    }
    return same;
}

void
image_free(image *im)
{
    CHECK(foreign_unchanged(im));
    guarded_free(im->block);
    free(im->before);
    free(im->value);
}

dsb_slot
image_from(const image *im, int line)
{
    return dsb_slot_from(im->slot, line * im->slot.ld);
}

void
image_soil(image *im, double size)
{
    bool is_half = im->slot.dtype == DSB_BFLOAT16;

    size = fmin(size, is_half ? (double)dsb_bits_float(0x7f7f0000) : (double)FLT_MAX);
    for (int line = 0; line < im->lines; line++) {
        for (int64_t k = im->c; k < dsb_pitch(im->c); k++) {
            image_set(im, line, k, (line + k) % 2 ? size : -size);
        }
    }
}

static size_t
block_bytes(const image *im)
{
    return (size_t)(im->lines * im->slot.ld * dsb_dtype_bytes(im->slot.dtype));
}

void
image_remember(image *im)
{
    memcpy(im->before, im->block, block_bytes(im));
}

bool
image_unchanged(const image *im)
{
    return memcmp(im->before, im->block, block_bytes(im)) == 0;
}

bool
image_same(const image *a, int first_a, const image *b, int first_b, int lines)
{
    bool same = true;

    for (int i = 0; i < lines; i++) {
        same = same && memcmp(element(a, first_a + i, 0), element(b, first_b + i, 0),
                              (size_t)(a->c * dsb_dtype_bytes(a->slot.dtype))) == 0;
    }
    return same;
}

/* ---- comparisons ---- */

bool
is_near(double got, double want, double slack, dsb_dtype dtype)
{
    return fabs(got - want) <= slack + (dtype == DSB_BFLOAT16 ? fabs(want) / 256.0 : 0.0);
}

bool
image_near(const image *x, const double *want, const double *size, int beta, double share)
{
    for (int line = 0; line < x->lines; line++) {
        for (int64_t k = 0; k < dsb_pitch(x->c); k++) {
            int64_t i = (int64_t)line * x->c + k;
            double got = image_get(x, line, k), sum = NAN;
            bool good = isfinite(got);

            if (k < x->c) {
                sum = want[i] + (beta ? x->value[i] : 0.0);
                good = is_near(got, sum, share * (size ? size[i] : 1.0 + fabs(sum)), x->slot.dtype);
            }
            if (!good) {
                printf("%d lines of %d, [%d][%lld]: %.9g, not %.9g\n", x->lines, x->c, line,
                       (long long)k, got, sum);
                return false;
            }
        }
    }
    return foreign_unchanged(x);
}

bool
floats_near(const float *got, const double *want, const double *size, const double *old, int64_t n,
            double share)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = want[i] + (old != NULL ? old[i] : 0.0);

        if (!is_near(got[i], sum, share * (size ? size[i] : 1.0 + fabs(sum)), DSB_FLOAT32)) {
            printf("number %lld of %lld: %.9g, not %.9g\n", (long long)i, (long long)n,
                   (double)got[i], sum);
            return false;
        }
    }
    return true;
}

void
each_variant(void (*check)(const variant *v, const int *shape), const int *shape, double soil)
{
    for (int i = 0; i < 8; i++) {
        variant v = {i & 1 ? DSB_BFLOAT16 : DSB_FLOAT32, i >> 1 & 1, i >> 2, soil};
        int before = test_failures();

        check(&v, shape);
        if (test_failures() != before) {
            printf("with %s, slice %d, beta %d, shape {%d, %d, ...}\n",
                   i & 1 ? "bfloat16" : "float32", v.slice, v.beta, shape[0], shape[1]);
        }
    }
}
