/* Group normalisation: values, all gradients, inputs that must not change, the bits of a row alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "reference.h"
#include "test.h"

/* rows, pixels, c, groups, options: 1 SiLU, 2 scale and shift, 4 in place */
static void
check_norm(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], groups = shape[3], lines = rows * pixels;
    bool silu = shape[4] & 1, scaled = shape[4] & 2, in_place = shape[4] & 4;
    int pitch = (int)dsb_pitch(c);
    image x = image_make(v, lines, c, 2.0), y = image_make(v, lines, c, 1.0);
    image dy = image_make(v, lines, c, 1.0), dx = image_make(v, lines, c, 1.0);
    image ss = rows_make(v, rows, 2 * c, 0.7), dss = rows_make(v, rows, 2 * c, 1.0);
    double *weight = numbers(c, 1.0), *bias = numbers(c, 1.0), *old = numbers(c, 1.0);
    double *want = doubles(lines * c), *want_dss = doubles(2 * rows * c);
    double *want_dw = doubles(c), *want_db = doubles(c);
    float *w = floats(c, weight), *b = floats(c, bias), *dw = floats(c, old), *db = floats(c, old);
    float *stats = floats(2 * rows * groups, NULL), *ab = floats(2 * rows * pitch, NULL);
    ref_norm ref = {rows, pixels, c, groups, silu, weight, bias, scaled ? ss.value : NULL};
    dsb_group_norm norm = {pixels, c, groups, silu, w, b, scaled ? ss.slot : (dsb_slot){0}};
    dsb_affine f = {ab, silu};
    int beta = in_place ? 0 : v->beta;
    double largest = 0.0, kept; /* dz is rounded where dx holds it between the passes */

    be->group_norm_statistics(NULL, &norm, rows, x.slot, stats, ab);
    for (int i = 0; i < rows * groups; i++) {
        const float *found = stats + i / groups * 2 * groups + i % groups;
        double mean, inverse;

        ref_moments(&ref, x.value, i / groups, i % groups, &mean, &inverse);
        CHECK(is_near(found[0], mean, 1e-6 * (1.0 + fabs(mean)), DSB_FLOAT32));
        CHECK(is_near(found[groups], inverse, 1e-5 * (1.0 + inverse), DSB_FLOAT32));
        largest = fmax(largest, inverse);
    }
    for (int i = 0; i < 2 * rows * pitch; i++) {
        CHECK(i % pitch < c || ab[i] == 0.0f);
    }
    be->affine(NULL, &f, rows, pixels, c, x.slot, y.slot);
    ref_group_norm(&ref, x.value, want);
    CHECK(image_near(&y, want, NULL, 0, 3e-5));

    ref_group_norm_backward(&ref, x.value, dy.value, want, want_dw, want_db, want_dss);
    be->group_norm_backward(NULL, &norm, rows, x.slot, stats, ab, dy.slot, beta,
                            in_place ? dy.slot : dx.slot, v->beta, dw, db, v->beta,
                            scaled ? dss.slot : (dsb_slot){0});
    kept = silu && !beta && v->dtype == DSB_BFLOAT16 ? largest / 256.0 : 0.0;
    CHECK(image_near(in_place ? &dy : &dx, want, NULL, beta, 2e-4 + kept));
    CHECK(floats_near(dw, want_dw, NULL, v->beta ? old : NULL, c, 2e-4));
    CHECK(floats_near(db, want_db, NULL, v->beta ? old : NULL, c, 2e-4));
    CHECK(image_near(&dss, scaled ? want_dss : dss.value, NULL, scaled ? v->beta : 0, 2e-4));
    CHECK(image_unchanged(&x) && image_unchanged(in_place ? &dx : &dy) && image_unchanged(&ss));

    /* y may be x, and nothing but dx may be wanted. */
    be->affine(NULL, &f, rows, pixels, c, x.slot, x.slot);
    CHECK(image_same(&x, 0, &y, 0, lines));
    be->group_norm_backward(NULL, &norm, rows, y.slot, stats, ab, y.slot, 0, dx.slot, 0, NULL, NULL,
                            0, (dsb_slot){0});
    image_free(&x), image_free(&y), image_free(&dy), image_free(&dx);
    image_free(&ss), image_free(&dss);
    free(weight), free(bias), free(old), free(want), free(want_dss), free(want_dw), free(want_db);
    guarded_free(w), guarded_free(b), guarded_free(dw), guarded_free(db);
    guarded_free(stats), guarded_free(ab);
}

/* The last of three rows alone. */
static void
check_norm_row(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int pixels = shape[1], c = shape[2], groups = shape[3], last = 2 * pixels;
    int pitch = (int)dsb_pitch(c);
    image x = image_make(v, 3 * pixels, c, 2.0), y = image_make(v, 3 * pixels, c, 1.0);
    image dx = image_make(v, 3 * pixels, c, 1.0), one = image_make(v, pixels, c, 1.0);
    double *weight = numbers(c, 1.0);
    float *w = floats(c, weight), *stats = floats(8 * groups, NULL), *ab = floats(8 * pitch, NULL);
    dsb_group_norm norm = {pixels, c, groups, true, w, w, {0}};
    dsb_affine f = {ab, true}, f_one = {ab + 6 * pitch, true};

    be->group_norm_statistics(NULL, &norm, 3, x.slot, stats, ab);
    be->group_norm_statistics(NULL, &norm, 1, image_from(&x, last), stats + 6 * groups,
                              ab + 6 * pitch);
    CHECK(memcmp(stats + 4 * groups, stats + 6 * groups, 8 * (size_t)groups) == 0);
    CHECK(memcmp(ab + 4 * pitch, ab + 6 * pitch, 8 * (size_t)pitch) == 0);
    be->affine(NULL, &f, 3, pixels, c, x.slot, y.slot);
    be->affine(NULL, &f_one, 1, pixels, c, image_from(&x, last), one.slot);
    CHECK(image_same(&y, last, &one, 0, pixels));
    be->group_norm_backward(NULL, &norm, 3, x.slot, stats, ab, y.slot, 0, dx.slot, 0, NULL, NULL, 0,
                            (dsb_slot){0});
    be->group_norm_backward(NULL, &norm, 1, image_from(&x, last), stats + 6 * groups,
                            ab + 6 * pitch, image_from(&y, last), 0, one.slot, 0, NULL, NULL, 0,
                            (dsb_slot){0});
    CHECK(image_same(&dx, last, &one, 0, pixels));
    image_free(&x), image_free(&y), image_free(&dx), image_free(&one);
    guarded_free(w), guarded_free(stats), guarded_free(ab);
    free(weight);
}

/* Many pixels with a mean far from zero. */
static void
check_norm_accuracy(int groups)
{
    enum { PIXELS = 4096, C = 16 };
    const dsb_backend *be = dsb_cpu_backend();
    image x = rows_make(&(variant){0}, PIXELS, C, 1.7320508),
          y = rows_make(&(variant){0}, PIXELS, C, 1.0);
    double weight[C], bias[C] = {0}, *want = doubles(PIXELS * C);
    float w[C], b[C] = {0}, stats[2 * C], ab[2 * C];
    ref_norm ref = {1, PIXELS, C, groups, false, weight, bias, NULL};
    dsb_group_norm norm = {PIXELS, C, groups, false, w, b, {0}};

    for (int i = 0; i < PIXELS * C; i++) {
        x.value[i] = image_set(&x, i / C, i % C, x.value[i] + 100.0);
        weight[i % C] = w[i % C] = 1.0f;
    }
    be->group_norm_statistics(NULL, &norm, 1, x.slot, stats, ab);
    be->affine(NULL, &(dsb_affine){ab, false}, 1, PIXELS, C, x.slot, y.slot);
    ref_group_norm(&ref, x.value, want);
    CHECK(image_near(&y, want, NULL, 0, 5e-5));
    image_free(&x), image_free(&y);
    free(want);
}

/* The reference's gradients against differences of its values, by a random cotangent. */
static void
check_reference_norm(void)
{
    enum { ROWS = 2, PIXELS = 3, C = 6, N = ROWS * PIXELS * C, SS = ROWS * 2 * C };
    double *x = numbers(N, 1.0), *dy = numbers(N, 1.0), *weight = numbers(C, 1.0);
    double *bias = numbers(C, 1.0), *ss = numbers(SS, 1.0);
    double dx[N], dw[C], db[C], dss[SS], y[N];
    ref_norm ref = {ROWS, PIXELS, C, 3, true, weight, bias, ss};
    struct {
        double *at, *gradient;
        int n;
    } inputs[] = {{x, dx, N}, {weight, dw, C}, {bias, db, C}, {ss, dss, SS}};

    ref_group_norm_backward(&ref, x, dy, dx, dw, db, dss);
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < inputs[k].n; i++) {
            double before = inputs[k].at[i], difference = 0.0;

            for (int sign = -1; sign <= 1; sign += 2) {
                inputs[k].at[i] = before + sign * 1e-5;
                ref_group_norm(&ref, x, y);
                for (int j = 0; j < N; j++) {
                    difference += sign * dy[j] * y[j] / 2e-5;
                }
            }
            inputs[k].at[i] = before;
            CHECK(fabs(difference - inputs[k].gradient[i]) < 1e-7);
        }
    }
    free(x), free(dy), free(weight), free(bias), free(ss);
}

void
test_norm(void)
{
    static const int shapes[][5] = {
        {3, 16, 64, 32, 3}, {1, 49, 128, 32, 1}, {2, 130, 96, 32, 7}, {3, 1, 1, 1, 3},
        {2, 5, 3, 3, 2},    {2, 67, 5, 1, 1},    {2, 9, 32, 1, 6},    {2, 7, 96, 3, 0},
        {2, 3, 20, 4, 5},   {1, 3, 1040, 1, 3},  {1, 2, 900, 300, 3}, {2, 65, 48, 16, 4},
        {1, 4, 512, 32, 2}, {1, 200, 16, 16, 1},
    };

    draw_start();
    check_reference_norm();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        each_variant(check_norm, shapes[i], INFINITY);
        each_variant(check_norm_row, shapes[i], INFINITY);
    }
    for (int groups = 1; groups <= 16; groups *= 4) {
        check_norm_accuracy(groups);
    }
}
