#include "image_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/philox.h"
#include "test.h"

enum { FOREIGN_FLOAT = 0x7fc12345, FOREIGN_HALF = 0x7fc1, SLICE = 16 };

static double
uniform(void)
{
    static uint64_t state = 1;

    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 33) / 1073741824.0 - 1.0;
}

double *
numbers(size_t n, double scale)
{
    double *x = malloc(sizeof *x * (n + 1));

    for (size_t i = 0; i < n; i++) {
        x[i] = (float)(scale * uniform());
    }
    return x;
}

float *
floats(const double *x, size_t n)
{
    float *y = malloc(sizeof *y * n);

    for (size_t i = 0; i < n; i++) {
        y[i] = (float)x[i];
    }
    return y;
}

static bool
is_half(const image *x)
{
    return x->slot.dtype == DSB_BFLOAT16;
}

/* Element (line, column), columns counted from the slice's first. */
static void *
element(const image *x, int line, int64_t column)
{
    return (char *)x->slot.data + (line * x->slot.ld + column) * dsb_dtype_bytes(x->slot.dtype);
}

double
fixture_get(const image *x, int line, int64_t column)
{
    uint32_t bits = 0;

    if (is_half(x)) {
        bits = (uint32_t) * (uint16_t *)element(x, line, column) << 16;
    } else {
        memcpy(&bits, element(x, line, column), sizeof bits);
    }
    return dsb_bits_float(bits);
}

double
fixture_set(const image *x, int line, int64_t column, double value)
{
    uint32_t bits = dsb_float_bits((float)value);

    if (is_half(x)) {
        *(uint16_t *)element(x, line, column) =
            (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else {
        memcpy(element(x, line, column), &bits, sizeof bits);
    }
    return fixture_get(x, line, column);
}

static bool
foreign_intact(const image *x, int line, int64_t column)
{
    uint32_t bits;

    if (is_half(x)) {
        return *(uint16_t *)element(x, line, column) == FOREIGN_HALF;
    }
    memcpy(&bits, element(x, line, column), sizeof bits);
    return bits == FOREIGN_FLOAT;
}

/* Random numbers; others' columns are NaN, the padding huge. */
image
image_new(const variant *v, int lines, int c, double scale)
{
    image x = {.lines = lines, .c = c, .before = v->slice ? SLICE : 0};
    int64_t pitch = dsb_pitch(c), ld = pitch + 2 * x.before, size = dsb_dtype_bytes(v->dtype);

    x.block = malloc((size_t)(lines * ld * size));
    x.slot = (dsb_slot){(char *)x.block + x.before * size, ld, v->dtype};
    x.value = malloc(sizeof *x.value * (size_t)lines * (size_t)c);
    for (int i = 0; i < lines; i++) {
        for (int64_t k = -x.before; k < pitch + x.before; k++) {
            uint32_t foreign = FOREIGN_FLOAT;

            if (k >= 0 && k < c) {
                x.value[i * c + k] = fixture_set(&x, i, k, scale * uniform());
            } else if (k >= c && k < pitch) {
                fixture_set(&x, i, k, (i + k) % 2 ? 1e30 : -3e29);
            } else if (is_half(&x)) {
                *(uint16_t *)element(&x, i, k) = FOREIGN_HALF;
            } else {
                memcpy(element(&x, i, k), &foreign, sizeof foreign);
            }
        }
    }
    return x;
}

image
rows_new(int rows, int n, bool slice, double scale)
{
    return image_new(&(variant){DSB_FLOAT32, slice, 0}, rows, n, scale);
}

void
fixture_free(image *x)
{
    free(x->block);
    free(x->value);
}

static void
fail(const char *what, int line, int column, double got, double want)
{
    printf("%s: [%d][%d] is %.9g, not %.9g\n", what, line, column, got, want);
    CHECK(!"as expected");
}

bool
is_close(double got, double want, double tolerance, bool half)
{
    return fabs(got - want) <= tolerance * (1.0 + fabs(want)) + (half ? fabs(want) / 256.0 : 0.0);
}

void
check_image(const char *what, const image *x, const double *want, int beta, double tolerance)
{
    for (int i = 0; i < x->lines; i++) {
        for (int64_t k = -x->before; k < dsb_pitch(x->c) + x->before; k++) {
            bool own = k >= 0 && k < dsb_pitch(x->c);

            if (k >= 0 && k < x->c) {
                double sum = want[i * x->c + k] + (beta ? x->value[i * x->c + k] : 0.0);

                if (!is_close(fixture_get(x, i, k), sum, tolerance, is_half(x))) {
                    fail(what, i, (int)k, fixture_get(x, i, k), sum);
                    return;
                }
            } else if (own ? !isfinite(fixture_get(x, i, k)) : !foreign_intact(x, i, k)) {
                fail(what, i, (int)k, fixture_get(x, i, k), own ? 0.0 : NAN);
                return;
            }
        }
    }
}

void
check_floats(const char *what, const float *got, const double *want, const double *old, size_t n,
             double tolerance)
{
    for (size_t i = 0; i < n; i++) {
        double sum = want[i] + (old != NULL ? old[i] : 0.0);

        if (!is_close(got[i], sum, tolerance, false)) {
            fail(what, 0, (int)i, got[i], sum);
            return;
        }
    }
}

dsb_slot
fixture_from(const image *x, int first)
{
    dsb_slot slot = x->slot;

    slot.data = element(x, first, 0);
    return slot;
}

bool
same_bits(const image *a, int first_a, const image *b, int first_b, int lines)
{
    bool same = true;

    for (int i = 0; i < lines; i++) {
        same = same && memcmp(element(a, first_a + i, 0), element(b, first_b + i, 0),
                              (size_t)a->c * (size_t)dsb_dtype_bytes(a->slot.dtype)) == 0;
    }
    return same;
}

void
each_variant(void (*check)(const variant *v, const int *shape), const int *shape)
{
    for (int i = 0; i < 8; i++) {
        variant v = {i & 1 ? DSB_BFLOAT16 : DSB_FLOAT32, i >> 1 & 1, i >> 2};

        check(&v, shape);
    }
}
