/* The kernels of images but convolutions and normalisation: both types, odd shapes, slices of wider images,
 * padding full of garbage, results overwritten or accumulated, in place where that is allowed, and the
 * bits of a row alone. */
#include "image_fixture.h"
#include "reference_images.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- attention ---- */

/* rows, pixels, c, heads */
static void
check_attention(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], heads = shape[3], lines = rows * pixels;
    size_t all = (size_t)lines * (size_t)c;
    image qkv = image_new(v, lines, 3 * c, 2.0), y = image_new(v, lines, c, 1.0);
    image dy = image_new(v, lines, c, 1.0), d = image_new(v, lines, 3 * c, 1.0);
    image one = image_new(v, pixels, c, 1.0), d_one = image_new(v, pixels, 3 * c, 1.0);
    double *want = malloc(sizeof *want * 3 * all);
    void *scratch = malloc(be->attention_scratch(pixels, c, heads));
    int last = lines - pixels;

    memset(scratch, 0xff, be->attention_scratch(pixels, c, heads));
    be->attention(NULL, rows, pixels, c, heads, qkv.slot, y.slot, scratch);
    ref_attention(rows, pixels, c, heads, qkv.value, want);
    check_image("attention", &y, want, 0, 1e-5);
    memset(scratch, 0xff, be->attention_scratch(pixels, c, heads));
    be->attention_backward(NULL, rows, pixels, c, heads, qkv.slot, dy.slot, v->beta, d.slot,
                           scratch);
    ref_attention_backward(rows, pixels, c, heads, qkv.value, dy.value, want);
    check_image("d_qkv of attention", &d, want, v->beta, 5e-5);

    be->attention(NULL, 1, pixels, c, heads, fixture_from(&qkv, last), one.slot, scratch);
    CHECK(same_bits(&y, last, &one, 0, pixels));
    be->attention_backward(NULL, rows, pixels, c, heads, qkv.slot, dy.slot, 0, d.slot, scratch);
    be->attention_backward(NULL, 1, pixels, c, heads, fixture_from(&qkv, last),
                           fixture_from(&dy, last), 0, d_one.slot, scratch);
    CHECK(same_bits(&d, last, &d_one, 0, pixels));
    fixture_free(&qkv), fixture_free(&y), fixture_free(&dy), fixture_free(&d);
    fixture_free(&one), fixture_free(&d_one);
    free(want), free(scratch);
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
        each_variant(check_attention, shapes[i]);
    }
    /* several blocks of queries */
    check_attention(&(variant){DSB_FLOAT32, true, 1}, (int[]){1, 600, 16, 1});
    check_attention(&(variant){DSB_BFLOAT16, false, 0}, (int[]){1, 1024, 8, 1});
}

/* ---- resampling ---- */

/* rows, h, w, c */
static void
check_resampling(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], h = shape[1], w = shape[2], c = shape[3], lines = rows * h * w;
    image small = image_new(v, lines, c, 1.0), large = image_new(v, 4 * lines, c, 1.0);
    image up = image_new(v, 4 * lines, c, 1.0), down = image_new(v, lines, c, 1.0);
    double *want = malloc(sizeof *want * 4 * (size_t)lines * (size_t)c);

    be->upsample(NULL, rows, h, w, c, 0.7f, small.slot, v->beta, up.slot);
    ref_upsample(rows, h, w, c, 0.7f, small.value, want);
    check_image("upsample", &up, want, v->beta, 1e-6);
    be->downsample(NULL, rows, h, w, c, 0.25f, large.slot, v->beta, down.slot);
    ref_downsample(rows, h, w, c, 0.25, large.value, want);
    check_image("downsample", &down, want, v->beta, 1e-6);
    fixture_free(&small), fixture_free(&large), fixture_free(&up), fixture_free(&down);
    free(want);
}

/* ---- rows beside images ---- */

/* rows, pixels, c */
static void
check_rows(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], lines = rows * pixels;
    image x = image_new(v, lines, c, 1.0), y = image_new(v, lines, c, 1.0);
    image row = rows_new(rows, c, v->slice, 1.0), sum = rows_new(rows, c, v->slice, 1.0);
    image one = rows_new(1, c, v->slice, 1.0);
    double *want = calloc((size_t)lines * (size_t)c, sizeof *want);

    be->sum_pixels(NULL, rows, pixels, c, x.slot, v->beta, sum.slot);
    for (int i = 0; i < lines * c; i++) {
        want[i / c / pixels * c + i % c] += x.value[i];
    }
    check_image("sum of pixels", &sum, want, v->beta, 1e-6);
    be->sum_pixels(NULL, rows, pixels, c, x.slot, 0, sum.slot);
    be->sum_pixels(NULL, 1, pixels, c, fixture_from(&x, lines - pixels), 0, one.slot);
    CHECK(same_bits(&sum, rows - 1, &one, 0, 1));

    for (int i = 0; i < lines * c; i++) {
        want[i] = x.value[i] + row.value[i / c / pixels * c + i % c];
    }
    be->add_row(NULL, rows, pixels, c, x.slot, row.slot, y.slot);
    check_image("image and row", &y, want, 0, 1e-6);
    be->add_row(NULL, rows, pixels, c, x.slot, row.slot, x.slot);
    CHECK(same_bits(&x, 0, &y, 0, lines));
    row.slot.ld = 0; /* one row for all images */
    be->add_row(NULL, rows, pixels, c, y.slot, row.slot, y.slot);
    for (int i = 0; i < lines * c; i++) {
        want[i] = fixture_get(&x, i / c, i % c) + row.value[i % c];
    }
    check_image("image and one row", &y, want, 0, 1e-6);
    fixture_free(&x), fixture_free(&y), fixture_free(&row), fixture_free(&sum), fixture_free(&one);
    free(want);
}

/* rows, pixels, c */
static void
check_vectors(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], pixels = shape[1], c = shape[2], lines = rows * pixels, n = pixels * c;
    image y = image_new(v, lines, c, 1.0), row = rows_new(rows, n, v->slice, 1.0);
    double *image_of_row = malloc(sizeof(double) * (size_t)(rows * n));
    double *row_of_image = malloc(sizeof(double) * (size_t)(rows * n));

    for (int i = 0; i < rows * n; i++) {
        int r = i / n, p = i % n / c, k = i % c;

        image_of_row[i] = row.value[r * n + k * pixels + p];
        row_of_image[r * n + k * pixels + p] = y.value[i];
    }
    if (v->slice) {
        be->image_to_row(NULL, rows, pixels, c, y.slot, v->beta, row.slot);
        check_image("image to row", &row, row_of_image, v->beta, 1e-6);
    } else {
        be->row_to_image(NULL, rows, pixels, c, row.slot, v->beta, y.slot);
        check_image("row to image", &y, image_of_row, v->beta, 1e-6);
        for (int64_t k = c; k < dsb_pitch(c) && !v->beta; k++) {
            CHECK(fixture_get(&y, lines - 1, k) == 0.0);
        }
    }
    fixture_free(&y), fixture_free(&row);
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
    image x = image_new(v, lines, c, 1.0), y = image_new(v, lines, c, 1.0);
    image one = image_new(v, pixels, c, 1.0);
    double *want = calloc((size_t)lines * (size_t)c, sizeof *want);
    int kept = 0;

    for (int i = 0; i < lines * c; i++) {
        if (ref_keeps(&at, 0.3f, (uint32_t)(i / c / pixels), i % (pixels * c))) {
            want[i] = x.value[i] / (1.0 - 0.3f);
            kept++;
        } else {
            fixture_set(&x, i / c, i % c, NAN);
        }
    }
    CHECK(lines * c < 1000 || fabs(kept / (double)(lines * c) - 0.7) < 0.1);
    be->dropout(NULL, &at, 0.3f, rows, pixels, c, x.slot, v->beta, y.slot);
    check_image("dropout", &y, want, v->beta, 1e-6);
    be->dropout(NULL, &at, 0.3f, rows, pixels, c, x.slot, 0, y.slot);
    last.sample += (uint32_t)(rows - 1);
    be->dropout(NULL, &last, 0.3f, 1, pixels, c, fixture_from(&x, lines - pixels), 0, one.slot);
    CHECK(same_bits(&y, lines - pixels, &one, 0, pixels));
    be->dropout(NULL, &at, 0.3f, rows, pixels, c, x.slot, 0, x.slot);
    CHECK(same_bits(&x, 0, &y, 0, lines));
    be->dropout(NULL, &at, 0.0f, rows, pixels, c, y.slot, 0, x.slot);
    CHECK(same_bits(&x, 0, &y, 0, lines));
    fixture_free(&x), fixture_free(&y), fixture_free(&one);
    free(want);
}

/* rows, classes, n */
static void
check_lookup(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int rows = shape[0], classes = shape[1], n = shape[2];
    size_t all = (size_t)classes * (size_t)n;
    image y = image_new(v, rows, n, 1.0), dy = image_new(v, rows, n, 1.0);
    double *table = numbers(all, 1.0), *want = malloc(sizeof *want * (size_t)rows * (size_t)n);
    double *d_want = calloc(all, sizeof *d_want);
    float *t = floats(table, all), *d = floats(table, all), label[16];

    for (int r = 0; r < rows; r++) {
        int k = r * 5 % classes / 2; /* some twice, some never */

        label[r] = (float)k;
        for (int j = 0; j < n; j++) {
            want[r * n + j] = table[k * n + j];
            d_want[k * n + j] += dy.value[r * n + j];
        }
    }
    be->lookup(NULL, rows, classes, n, label, t, y.slot);
    check_image("lookup", &y, want, 0, 1e-6);
    be->lookup_backward(NULL, rows, classes, n, label, dy.slot, v->beta, d);
    check_floats("d_table", d, d_want, v->beta ? table : NULL, all, 1e-6);
    fixture_free(&y), fixture_free(&dy);
    free(table), free(want), free(d_want), free(t), free(d);
}

/* ---- elementwise ---- */

/* lines, n */
static void
check_elementwise(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int lines = shape[0], n = shape[1], all = lines * n;
    image x = image_new(v, lines, n, 8.0), b = image_new(v, lines, n, 1.0);
    double *want = malloc(sizeof *want * (size_t)all);

    for (int kind = 0; kind < 6; kind++) {
        image y = image_new(v, lines, n, 1.0);
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
        check_image("elementwise", &y, want, kind == 4 || kind < 2 ? 0 : v->beta, 1e-6);
        fixture_free(&y);
    }
    fixture_free(&x), fixture_free(&b);
    free(want);
}

/* copy writes n columns and no more. */
static void
check_copy(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    image x = image_new(v, shape[0], shape[1], 1.0), y = image_new(v, shape[0], shape[1], 1.0);
    double before = fixture_get(&y, 0, dsb_pitch(shape[1]) - 1);

    be->copy(NULL, shape[0], shape[1], x.slot, v->beta, y.slot);
    CHECK(shape[1] % DSB_PANEL == 0 || fixture_get(&y, 0, dsb_pitch(shape[1]) - 1) == before);
    fixture_free(&x), fixture_free(&y);
}

/* lines, n: the first that is no number, wherever it stands; garbage beside it is not read. copy and
 * first_nonfinite also serve a row without padding. */
static void
check_nonfinite(const variant *v, const int *shape)
{
    const dsb_backend *be = dsb_cpu_backend();
    int lines = shape[0], n = shape[1];
    size_t bytes = (size_t)n * (size_t)dsb_dtype_bytes(v->dtype);
    image x = image_new(v, lines, n, 1.0);
    dsb_slot exact = {malloc(bytes), n, v->dtype};

    be->copy(NULL, 1, n, x.slot, 0, exact);
    CHECK(memcmp(exact.data, x.slot.data, bytes) == 0);
    CHECK(be->first_nonfinite(1, n, exact) == -1);
    free(exact.data);
    CHECK(be->first_nonfinite(lines, n, x.slot) == -1);
    for (int i = lines * n - 1; i >= 0; i--) {
        double old = fixture_get(&x, i / n, i % n);

        fixture_set(&x, i / n, i % n, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
        CHECK(be->first_nonfinite(lines, n, x.slot) == i);
        if (i % 2) {
            fixture_set(&x, i / n, i % n, old);
        }
    }
    fixture_free(&x);
}

/* SiLU and its slope over all that float32 can hold. */
static void
check_silu(void)
{
    enum { N = 4096 };
    const dsb_backend *be = dsb_cpu_backend();
    image x = rows_new(1, N, false, 1.0), y = rows_new(1, N, false, 1.0);
    image slope = rows_new(1, N, false, 1.0), one = rows_new(1, N, false, 1.0);
    const double edges[] = {NAN,   INFINITY, -INFINITY, 3e38,   -3e38,
                            120.0, -120.0,   1e-30,     -1e-40, 0.0};
    const int n_edges = sizeof edges / sizeof *edges;

    for (int i = 0; i < N; i++) {
        double scale = i % 4 == 0 ? 130.0 : i % 4 == 1 ? 25.0 : i % 4 == 2 ? 2.0 : 1e-3;

        fixture_set(&x, 0, i, i < n_edges ? edges[i] : scale * x.value[i]);
        fixture_set(&one, 0, i, 1.0);
    }
    be->activation(NULL, DSB_SILU, 0.0f, 1, N, x.slot, y.slot);
    be->activation_backward(NULL, DSB_SILU, 0.0f, 1, N, x.slot, one.slot, 0, slope.slot);
    CHECK(isnan(fixture_get(&y, 0, 0)) && isnan(fixture_get(&slope, 0, 0)));
    CHECK(fixture_get(&y, 0, 1) == INFINITY && fixture_get(&slope, 0, 1) == 1.0);
    CHECK(fixture_get(&y, 0, 2) == 0.0 && fixture_get(&slope, 0, 2) == 0.0);
    for (int i = 3; i < N; i++) {
        double at = fixture_get(&x, 0, i), want = ref_silu(at), want_slope = ref_silu_slope(at);

        CHECK(fabs(fixture_get(&y, 0, i) - want) <= 4e-7 * fabs(want) + 2e-43);
        CHECK(fabs(fixture_get(&slope, 0, i) - want_slope) <= 4e-7 * fabs(want_slope) + 1e-7);
    }
    fixture_free(&x), fixture_free(&y), fixture_free(&slope), fixture_free(&one);
}

static void
test_others(void)
{
    static const int resampled[][4] = {{2, 3, 5, 3}, {1, 1, 1, 1}, {3, 4, 4, 64}, {1, 2, 7, 32}};
    static const int images[][3] = {{3, 49, 64},  {2, 5, 1},  {1, 67, 3},  {2, 130, 5}, {2, 1, 5},
                                    {2, 130, 20}, {1, 9, 96}, {1, 3, 300}, {2, 784, 1}};
    static const int tables[][3] = {{7, 4, 64}, {1, 1, 3}, {16, 10, 33}};
    static const int lines[][2] = {{1, 1}, {3, 5}, {5, 16}, {2, 32}, {4, 50}, {1, 300}};

    for (size_t i = 0; i < sizeof resampled / sizeof *resampled; i++) {
        each_variant(check_resampling, resampled[i]);
    }
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
        each_variant(check_rows, images[i]);
        each_variant(check_vectors, images[i]);
        each_variant(check_dropout, images[i]);
    }
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        each_variant(check_lookup, tables[i]);
    }
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        each_variant(check_elementwise, lines[i]);
        each_variant(check_copy, lines[i]);
        each_variant(check_nonfinite, lines[i]);
    }
    check_silu();
}

void
test_images(void)
{
    test_norm();
    test_attention();
    test_others();
}
