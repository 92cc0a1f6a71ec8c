/* The kernels of images but convolutions and normalisation: both types, odd shapes, slices of wider images,
 * padding full of garbage, inputs that must not change, results overwritten or accumulated, in place where
 * that is allowed, and the bits of a row alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "reference.h"
#include "test.h"

/* ---- attention ---- */

/* rows, pixels, c, heads */
static void
check_attention(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], heads = shape[3], lines = rows * pixels;
    image qkv = image_make(v, lines, 3 * c, 2.0), y = image_make(v, lines, c, 1.0);
    image dy = image_make(v, lines, c, 1.0), d = image_make(v, lines, 3 * c, 1.0);
    image one = image_make(v, pixels, c, 1.0), d_one = image_make(v, pixels, 3 * c, 1.0);
    size_t bytes = be->attention_scratch(pixels, c, heads);
    double *want = doubles(3 * lines * c);
    void *scratch = guarded(bytes, 0xff);
    int last = lines - pixels;

    be->attention(NULL, rows, pixels, c, heads, qkv.slot, y.slot, scratch);
    ref_attention(rows, pixels, c, heads, qkv.value, want);
    CHECK(image_near(&y, want, NULL, 0, 1e-5));
    memset(scratch, 0xff, bytes);
    be->attention_backward(NULL, rows, pixels, c, heads, qkv.slot, dy.slot, v->beta, d.slot,
                           scratch);
    ref_attention_backward(rows, pixels, c, heads, qkv.value, dy.value, want);
    CHECK(image_near(&d, want, NULL, v->beta, 5e-5));
    CHECK(image_unchanged(&qkv) && image_unchanged(&dy));

    be->attention(NULL, 1, pixels, c, heads, image_from(&qkv, last), one.slot, scratch);
    CHECK(image_same(&y, last, &one, 0, pixels));
    be->attention_backward(NULL, rows, pixels, c, heads, qkv.slot, dy.slot, 0, d.slot, scratch);
    be->attention_backward(NULL, 1, pixels, c, heads, image_from(&qkv, last), image_from(&dy, last),
                           0, d_one.slot, scratch);
    CHECK(image_same(&d, last, &d_one, 0, pixels));
    image_free(&qkv), image_free(&y), image_free(&dy), image_free(&d);
    image_free(&one), image_free(&d_one);
    guarded_free(scratch);
    free(want);
}

static void
check_reference_attention(void)
{
    enum { ROWS = 2, PIXELS = 3, C = 4, HEADS = 2, N = ROWS * PIXELS * C };
    double *qkv = numbers(3 * N, 1.5), *dy = numbers(N, 1.0), y[N], d[3 * N];

    ref_attention_backward(ROWS, PIXELS, C, HEADS, qkv, dy, d);
    for (int i = 0; i < 3 * N; i++) {
        double before = qkv[i], difference = 0.0;

        for (int sign = -1; sign <= 1; sign += 2) {
            qkv[i] = before + sign * 1e-5;
            ref_attention(ROWS, PIXELS, C, HEADS, qkv, y);
            for (int j = 0; j < N; j++) {
                difference += sign * dy[j] * y[j] / 2e-5;
            }
        }
        qkv[i] = before;
        CHECK(fabs(difference - d[i]) < 1e-7);
    }
    free(qkv), free(dy);
}

static void
test_attention(void)
{
    static const int shapes[][4] = {
        {2, 16, 64, 2}, {2, 49, 64, 4}, {1, 49, 128, 1}, {2, 1, 3, 1},  {2, 5, 6, 2},
        {2, 33, 40, 2}, {1, 17, 20, 4}, {1, 250, 32, 2}, {1, 64, 7, 7}, {3, 2, 16, 1},
    };

    check_reference_attention();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        each_variant(check_attention, shapes[i], INFINITY);
    }
    /* several blocks of queries */
    check_attention(&(variant){DSB_FLOAT32, true, 1, INFINITY}, (int[]){1, 600, 16, 1});
    check_attention(&(variant){DSB_BFLOAT16, false, 0, INFINITY}, (int[]){1, 1024, 8, 1});
}

/* ---- resampling ---- */

/* rows, h, w, c */
static void
check_resampling(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], h = shape[1], w = shape[2], c = shape[3], lines = rows * h * w;
    image small = image_make(v, lines, c, 1.0), large = image_make(v, 4 * lines, c, 1.0);
    image up = image_make(v, 4 * lines, c, 1.0), down = image_make(v, lines, c, 1.0);
    double *want = doubles(4 * lines * c);

    be->upsample(NULL, rows, h, w, c, 0.7f, small.slot, v->beta, up.slot);
    ref_upsample(rows, h, w, c, 0.7f, small.value, want);
    CHECK(image_near(&up, want, NULL, v->beta, 1e-6));
    be->downsample(NULL, rows, h, w, c, 0.25f, large.slot, v->beta, down.slot);
    ref_downsample(rows, h, w, c, 0.25, large.value, want);
    CHECK(image_near(&down, want, NULL, v->beta, 1e-6));
    CHECK(image_unchanged(&small) && image_unchanged(&large));
    image_free(&small), image_free(&large), image_free(&up), image_free(&down);
    free(want);
}

/* ---- rows beside images ---- */

/* rows, pixels, c */
static void
check_rows(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], lines = rows * pixels;
    image x = image_make(v, lines, c, 1.0), y = image_make(v, lines, c, 1.0);
    image row = rows_make(v, rows, c, 1.0), sum = rows_make(v, rows, c, 1.0);
    image one = rows_make(v, 1, c, 1.0);
    double *want = doubles(lines * c);

    be->sum_pixels(NULL, rows, pixels, c, x.slot, v->beta, sum.slot);
    for (int i = 0; i < lines * c; i++) {
        want[i / c / pixels * c + i % c] += x.value[i];
    }
    CHECK(image_near(&sum, want, NULL, v->beta, 1e-6 + 2e-8 * pixels)); /* partial sums round too */
    be->sum_pixels(NULL, rows, pixels, c, x.slot, 0, sum.slot);
    be->sum_pixels(NULL, 1, pixels, c, image_from(&x, lines - pixels), 0, one.slot);
    CHECK(image_same(&sum, rows - 1, &one, 0, 1));

    for (int i = 0; i < lines * c; i++) {
        want[i] = x.value[i] + row.value[i / c / pixels * c + i % c];
    }
    be->add_row(NULL, rows, pixels, c, x.slot, row.slot, y.slot);
    CHECK(image_near(&y, want, NULL, 0, 1e-6));
    CHECK(image_unchanged(&x) && image_unchanged(&row));
    be->add_row(NULL, rows, pixels, c, x.slot, row.slot, x.slot);
    CHECK(image_same(&x, 0, &y, 0, lines));
    row.slot.ld = 0; /* one row for all images */
    be->add_row(NULL, rows, pixels, c, y.slot, row.slot, y.slot);
    for (int i = 0; i < lines * c; i++) {
        want[i] = image_get(&x, i / c, i % c) + row.value[i % c];
    }
    CHECK(image_near(&y, want, NULL, 0, 1e-6));
    image_free(&x), image_free(&y), image_free(&row), image_free(&sum), image_free(&one);
    free(want);
}

/* rows, pixels, c */
static void
check_vectors(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], lines = rows * pixels, n = pixels * c;
    image y = image_make(v, lines, c, 1.0), row = rows_make(v, rows, n, 1.0);
    double *image_of_row = doubles(rows * n);
    double *row_of_image = doubles(rows * n);

    for (int i = 0; i < rows * n; i++) {
        int r = i / n, p = i % n / c, k = i % c;

        image_of_row[i] = row.value[r * n + k * pixels + p];
        row_of_image[r * n + k * pixels + p] = y.value[i];
    }
    if (v->slice) {
        be->image_to_row(NULL, rows, pixels, c, y.slot, v->beta, row.slot);
        CHECK(image_near(&row, row_of_image, NULL, v->beta, 1e-6) && image_unchanged(&y));
    } else {
        be->row_to_image(NULL, rows, pixels, c, row.slot, v->beta, y.slot);
        CHECK(image_near(&y, image_of_row, NULL, v->beta, 1e-6) && image_unchanged(&row));
        for (int64_t k = c; k < dsb_pitch(c) && !v->beta; k++) {
            CHECK(image_get(&y, lines - 1, k) == 0.0);
        }
    }
    image_free(&y), image_free(&row);
    free(image_of_row), free(row_of_image);
}

/* rows, pixels, c: the mask is exact, and a row's is the same when it is drawn alone. NaN can be dropped. */
static void
check_dropout(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], lines = rows * pixels;
    dsb_draw at = {.seed = 12345678901u, .stream = 7, .step = 3, .sample = 0xfffffffeu};
    dsb_draw last = at;
    image x = image_make(v, lines, c, 1.0), y = image_make(v, lines, c, 1.0);
    image one = image_make(v, pixels, c, 1.0);
    double *want = doubles(lines * c);
    int kept = 0;

    for (int i = 0; i < lines * c; i++) {
        if (ref_keeps(&at, 0.3f, (uint32_t)(i / c / pixels), i % (pixels * c))) {
            want[i] = x.value[i] / (1.0 - 0.3f);
            kept++;
        } else {
            image_set(&x, i / c, i % c, NAN);
        }
    }
    CHECK(lines * c < 1000 || fabs(kept / (double)(lines * c) - 0.7) < 0.1);
    image_remember(&x);
    be->dropout(NULL, &at, 0.3f, rows, pixels, c, x.slot, v->beta, y.slot);
    CHECK(image_near(&y, want, NULL, v->beta, 1e-6) && image_unchanged(&x));
    be->dropout(NULL, &at, 0.3f, rows, pixels, c, x.slot, 0, y.slot);
    last.sample += (uint32_t)(rows - 1);
    be->dropout(NULL, &last, 0.3f, 1, pixels, c, image_from(&x, lines - pixels), 0, one.slot);
    CHECK(image_same(&y, lines - pixels, &one, 0, pixels));
    be->dropout(NULL, &at, 0.3f, rows, pixels, c, x.slot, 0, x.slot);
    CHECK(image_same(&x, 0, &y, 0, lines));
    be->dropout(NULL, &at, 0.0f, rows, pixels, c, y.slot, 0, x.slot);
    CHECK(image_same(&x, 0, &y, 0, lines));
    image_free(&x), image_free(&y), image_free(&one);
    free(want);
}

/* rows, classes, n */
static void
check_lookup(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], classes = shape[1], n = shape[2], all = classes * n;
    image y = image_make(v, rows, n, 1.0), dy = image_make(v, rows, n, 1.0);
    double *table = numbers(all, 1.0), *want = doubles(rows * n);
    double *d_want = doubles(all);
    float *t = floats(all, table), *d = floats(all, table), *label = floats(rows, NULL);

    for (int r = 0; r < rows; r++) {
        int k = r * 5 % classes / 2; /* some twice, some never */

        label[r] = (float)k;
        for (int j = 0; j < n; j++) {
            want[r * n + j] = table[k * n + j];
            d_want[k * n + j] += dy.value[r * n + j];
        }
    }
    be->lookup(NULL, rows, classes, n, label, t, y.slot);
    CHECK(image_near(&y, want, NULL, 0, 1e-6));
    be->lookup_backward(NULL, rows, classes, n, label, dy.slot, v->beta, d);
    CHECK(floats_near(d, d_want, NULL, v->beta ? table : NULL, all, 1e-6));
    CHECK(image_unchanged(&dy));
    image_free(&y), image_free(&dy);
    guarded_free(t), guarded_free(d), guarded_free(label);
    free(table), free(want), free(d_want);
}

/* ---- elementwise ---- */

/* lines, n */
static void
check_elementwise(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int lines = shape[0], n = shape[1], all = lines * n;
    image x = image_make(v, lines, n, 8.0), b = image_make(v, lines, n, 1.0);
    double *want = doubles(all);

    for (int kind = 0; kind < 6; kind++) {
        image y = image_make(v, lines, n, 1.0);
        bool silu = kind % 2;
        dsb_activation act = silu ? DSB_SILU : DSB_LEAKY_RELU;

        for (int i = 0; i < all; i++) {
            double u = x.value[i], s = b.value[i], slope = u > 0.0 ? 1.0 : 0.2f;

            want[i] = kind == 4   ? u + s
                      : kind == 5 ? u
                      : kind >= 2 ? s * (silu ? ref_silu_slope(u) : slope)
                                  : (silu ? ref_silu(u) : u * slope);
        }
        if (kind == 4) {
            be->add(NULL, lines, n, x.slot, b.slot, y.slot);
        } else if (kind == 5) {
            be->copy(NULL, lines, n, x.slot, v->beta, y.slot);
        } else if (kind >= 2) {
            be->activation_backward(NULL, act, 0.2f, lines, n, x.slot, b.slot, v->beta, y.slot);
        } else {
            be->activation(NULL, act, 0.2f, lines, n, x.slot, y.slot);
        }
        CHECK(image_near(&y, want, NULL, kind == 4 || kind < 2 ? 0 : v->beta, 1e-6));
        image_free(&y);
    }
    CHECK(image_unchanged(&x) && image_unchanged(&b));
    image_free(&x), image_free(&b);
    free(want);
}

/* copy writes n columns and no more. */
static void
check_copy(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    image x = image_make(v, shape[0], shape[1], 1.0), y = image_make(v, shape[0], shape[1], 1.0);
    double before = image_get(&y, 0, dsb_pitch(shape[1]) - 1);

    be->copy(NULL, shape[0], shape[1], x.slot, v->beta, y.slot);
    CHECK(shape[1] % DSB_PANEL == 0 || image_get(&y, 0, dsb_pitch(shape[1]) - 1) == before);
    image_free(&x), image_free(&y);
}

/* lines, n: the first that is no number, wherever it stands; garbage beside it is not read. copy and
 * first_nonfinite also serve a row without padding. */
static void
check_nonfinite(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int lines = shape[0], n = shape[1];
    size_t bytes = (size_t)n * (size_t)dsb_dtype_bytes(v->dtype);
    image x = image_make(v, lines, n, 1.0);
    dsb_slot exact = {guarded(bytes, 0xff), n, v->dtype};

    be->copy(NULL, 1, n, x.slot, 0, exact);
    CHECK(memcmp(exact.data, x.slot.data, bytes) == 0);
    CHECK(be->first_nonfinite(1, n, exact) == -1);
    guarded_free(exact.data);
    CHECK(be->first_nonfinite(lines, n, x.slot) == -1);
    for (int i = lines * n - 1; i >= 0; i--) {
        double old = image_get(&x, i / n, i % n);

        image_set(&x, i / n, i % n, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
        CHECK(be->first_nonfinite(lines, n, x.slot) == i);
        if (i % 2) {
            image_set(&x, i / n, i % n, old);
        }
    }
    image_free(&x);
}

/* SiLU and its slope over all that float32 can hold. */
static void
check_silu(void)
{
    enum { N = 4096 };
    const dsb_backend *be = dsb_cpu_backend();
    image x = rows_make(&(variant){0}, 1, N, 1.0), y = rows_make(&(variant){0}, 1, N, 1.0);
    image slope = rows_make(&(variant){0}, 1, N, 1.0), one = rows_make(&(variant){0}, 1, N, 1.0);
    const double edges[] = {NAN,   INFINITY, -INFINITY, 3e38,   -3e38,
                            120.0, -120.0,   1e-30,     -1e-40, 0.0};
    const int n_edges = sizeof edges / sizeof *edges;

    for (int i = 0; i < N; i++) {
        double scale = i % 4 == 0 ? 130.0 : i % 4 == 1 ? 25.0 : i % 4 == 2 ? 2.0 : 1e-3;

        image_set(&x, 0, i, i < n_edges ? edges[i] : scale * x.value[i]);
        image_set(&one, 0, i, 1.0);
    }
    be->activation(NULL, DSB_SILU, 0.0f, 1, N, x.slot, y.slot);
    be->activation_backward(NULL, DSB_SILU, 0.0f, 1, N, x.slot, one.slot, 0, slope.slot);
    CHECK(isnan(image_get(&y, 0, 0)) && isnan(image_get(&slope, 0, 0)));
    CHECK(image_get(&y, 0, 1) == INFINITY && image_get(&slope, 0, 1) == 1.0);
    CHECK(image_get(&y, 0, 2) == 0.0 && image_get(&slope, 0, 2) == 0.0);
    for (int i = 3; i < N; i++) {
        double at = image_get(&x, 0, i), want = ref_silu(at), want_slope = ref_silu_slope(at);

        CHECK(fabs(image_get(&y, 0, i) - want) <= 4e-7 * fabs(want) + 2e-43);
        CHECK(fabs(image_get(&slope, 0, i) - want_slope) <= 4e-7 * fabs(want_slope) + 1e-7);
    }
    image_free(&x), image_free(&y), image_free(&slope), image_free(&one);
}

/* Where padding is added to padding, as the contract allows, the sums have to be finite: 1e30. */
static void
test_others(void)
{
    static const int resampled[][4] = {{2, 3, 5, 3}, {1, 1, 1, 1}, {3, 4, 4, 64}, {1, 2, 7, 32}};
    static const int images[][3] = {{3, 49, 64},  {2, 5, 1},  {1, 67, 3},  {2, 130, 5}, {2, 1, 5},
                                    {2, 130, 20}, {1, 9, 96}, {1, 3, 300}, {2, 784, 1}};
    static const int tables[][3] = {{7, 4, 64}, {1, 1, 3}, {16, 10, 33}};
    static const int lines[][2] = {{1, 1}, {3, 5}, {5, 16}, {2, 32}, {4, 50}, {1, 300}};

    for (size_t i = 0; i < sizeof resampled / sizeof *resampled; i++) {
        each_variant(check_resampling, resampled[i], 1e30);
    }
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
        each_variant(check_rows, images[i], 1e30);
        each_variant(check_vectors, images[i], INFINITY);
        each_variant(check_dropout, images[i], 1e30);
    }
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        each_variant(check_lookup, tables[i], INFINITY);
    }
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        each_variant(check_elementwise, lines[i], 1e30);
        each_variant(check_copy, lines[i], INFINITY);
        each_variant(check_nonfinite, lines[i], INFINITY);
    }
    check_silu();
}

void
test_images(void)
{
    draw_start();
    test_attention();
    test_others();
}
