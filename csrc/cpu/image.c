/* Images: resampling, sums over pixels, the way from vectors and back, dropout, tables of rows. */
#include "cpu/cpu.h"

#include <assert.h>
#include <stdbool.h>

#include "base/philox.h"
#include "cpu/lines.h"

static bool
is_half(dsb_slot x)
{
    return x.dtype == DSB_BFLOAT16;
}

/* y = v (+ y) at number i. */
DSB_INLINE void
put(int half, int beta, dsb_slot y, int64_t i, vf v)
{
    vf_store_as(half, y.data, i, beta ? vf_load_as(half, y.data, i) + v : v);
}

/* ---- resampling: each is the other's transpose ---- */

DSB_INLINE void
upsample_as(int half, int64_t lines, int w, int c, float factor, dsb_slot x, int beta, dsb_slot y)
{
    int64_t columns = dsb_pitch(c);

    for (int64_t line = 0; line < lines; line++) { /* of pixels: rows * h of them */
        for (int64_t p = 0; p < w; p++) {
            int64_t from = (line * w + p) * x.ld, to = (line * 4 * w + 2 * p) * y.ld;
            int64_t below = to + 2 * w * y.ld;

            for (int64_t j = 0; j < columns; j += DSB_VL) {
                vf v = vf_load_as(half, x.data, from + j) * factor;

                put(half, beta, y, to + j, v);
                put(half, beta, y, to + y.ld + j, v);
                put(half, beta, y, below + j, v);
                put(half, beta, y, below + y.ld + j, v);
            }
        }
    }
}

static void
upsample(dsb_stream *stream, int rows, int h, int w, int c, float factor, dsb_slot x, int beta,
         dsb_slot y)
{
    (void)stream;
    assert(x.dtype == y.dtype);
    if (is_half(y)) {
        upsample_as(1, (int64_t)rows * h, w, c, factor, x, beta, y);
    } else {
        upsample_as(0, (int64_t)rows * h, w, c, factor, x, beta, y);
    }
}

DSB_INLINE void
downsample_as(int half, int64_t lines, int w, int c, float factor, dsb_slot x, int beta, dsb_slot y)
{
    int64_t columns = dsb_pitch(c);

    for (int64_t line = 0; line < lines; line++) {
        for (int64_t p = 0; p < w; p++) {
            int64_t from = (line * 4 * w + 2 * p) * x.ld, to = (line * w + p) * y.ld;
            int64_t below = from + 2 * w * x.ld;

            for (int64_t j = 0; j < columns; j += DSB_VL) {
                vf upper =
                    vf_load_as(half, x.data, from + j) + vf_load_as(half, x.data, from + x.ld + j);
                vf lower = vf_load_as(half, x.data, below + j) +
                           vf_load_as(half, x.data, below + x.ld + j);

                put(half, beta, y, to + j, (upper + lower) * factor);
            }
        }
    }
}

static void
downsample(dsb_stream *stream, int rows, int h, int w, int c, float factor, dsb_slot x, int beta,
           dsb_slot y)
{
    (void)stream;
    assert(x.dtype == y.dtype);
    if (is_half(y)) {
        downsample_as(1, (int64_t)rows * h, w, c, factor, x, beta, y);
    } else {
        downsample_as(0, (int64_t)rows * h, w, c, factor, x, beta, y);
    }
}

/* ---- a row of numbers beside an image: forward, and the gradient to the row ---- */

DSB_INLINE void
add_row_as(int half, int rows, int pixels, int c, dsb_slot x, dsb_slot v, dsb_slot y)
{
    int64_t columns = dsb_pitch(c);

    for (int64_t r = 0; r < rows; r++) {
        const float *added = (const float *)v.data + r * v.ld;

        for (int64_t p = r * pixels; p < (r + 1) * pixels; p++) {
            for (int64_t j = 0; j < columns; j += DSB_VL) {
                vf_store_as(half, y.data, p * y.ld + j,
                            vf_load_as(half, x.data, p * x.ld + j) + vf_load(added + j));
            }
        }
    }
}

static void
add_row(dsb_stream *stream, int rows, int pixels, int c, dsb_slot x, dsb_slot v, dsb_slot y)
{
    (void)stream;
    assert(x.dtype == y.dtype && !is_half(v));
    if (is_half(y)) {
        add_row_as(1, rows, pixels, c, x, v, y);
    } else {
        add_row_as(0, rows, pixels, c, x, v, y);
    }
}

/* Sums of sums over BLOCK pixels, so that the error grows with the root of their number. */
DSB_INLINE void
sum_pixels_as(int half, int rows, int pixels, int c, dsb_slot dy, int beta, dsb_slot dv)
{
    enum { BLOCK = 64, CHAINS = 4 };
    int64_t columns = dsb_pitch(c);

    for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; j < columns; j += DSB_VL) {
            int64_t image = r * pixels * dy.ld + j;
            vf total = {0};

            for (int first = 0; first < pixels; first += BLOCK) {
                int end = pixels - first < BLOCK ? pixels : first + BLOCK, p = first;
                vf sum[CHAINS] = {{0}};

                for (; p + CHAINS <= end; p += CHAINS) {
                    DSB_UNROLL
                    for (int i = 0; i < CHAINS; i++) {
                        sum[i] += vf_load_as(half, dy.data, image + (p + i) * dy.ld);
                    }
                }
                for (; p < end; p++) {
                    sum[0] += vf_load_as(half, dy.data, image + p * dy.ld);
                }
                total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
            }
            put(0, beta, dv, r * dv.ld + j, total);
        }
    }
}

static void
sum_pixels(dsb_stream *stream, int rows, int pixels, int c, dsb_slot dy, int beta, dsb_slot dv)
{
    (void)stream;
    assert(!is_half(dv));
    if (is_half(dy)) {
        sum_pixels_as(1, rows, pixels, c, dy, beta, dv);
    } else {
        sum_pixels_as(0, rows, pixels, c, dy, beta, dv);
    }
}

/* ---- vectors [c][pixels] and images [pixels][c] ---- */

DSB_INLINE void
row_to_image_as(int half, int rows, int pixels, int c, dsb_slot v, int beta, dsb_slot y)
{
    int64_t columns = dsb_pitch(c);

    for (int64_t r = 0; r < rows; r++) {
        const float *from = (const float *)v.data + r * v.ld;

        for (int64_t p = 0; p < pixels; p++) {
            int64_t to = (r * pixels + p) * y.ld;

            for (int64_t j = 0; j < columns && !beta; j += DSB_VL) {
                vf_store_as(half, y.data, to + j, (vf){0});
            }
            for (int64_t j = 0; j < c; j++) {
                float x = from[j * pixels + p];

                store_one_as(half, y.data, to + j,
                             beta ? load_one_as(half, y.data, to + j) + x : x);
            }
        }
    }
}

static void
row_to_image(dsb_stream *stream, int rows, int pixels, int c, dsb_slot v, int beta, dsb_slot y)
{
    (void)stream;
    assert(!is_half(v));
    if (is_half(y)) {
        row_to_image_as(1, rows, pixels, c, v, beta, y);
    } else {
        row_to_image_as(0, rows, pixels, c, v, beta, y);
    }
}

DSB_INLINE void
image_to_row_as(int half, int rows, int pixels, int c, dsb_slot y, int beta, dsb_slot v)
{
    int64_t n = (int64_t)pixels * c, width = dsb_pitch(n) < v.ld ? dsb_pitch(n) : v.ld;

    for (int64_t r = 0; r < rows; r++) {
        float *to = (float *)v.data + r * v.ld;
        int64_t from = r * pixels * y.ld;

        for (int64_t j = 0; j < c; j++) {
            for (int64_t p = 0; p < pixels; p++) {
                float x = load_one_as(half, y.data, from + p * y.ld + j);

                to[j * pixels + p] = beta ? to[j * pixels + p] + x : x;
            }
        }
        for (int64_t i = n; i < width && !beta; i++) {
            to[i] = 0.0f;
        }
    }
}

static void
image_to_row(dsb_stream *stream, int rows, int pixels, int c, dsb_slot y, int beta, dsb_slot v)
{
    (void)stream;
    assert(!is_half(v));
    if (is_half(y)) {
        image_to_row_as(1, rows, pixels, c, y, beta, v);
    } else {
        image_to_row_as(0, rows, pixels, c, y, beta, v);
    }
}

/* ---- dropout ---- */

enum { QUADS = 64, DRAWN = 4 * QUADS }; /* numbers of a row that are drawn at once */

/* keep[i] = `factor` or 0 for elements 4 quad .. 4 quad + DRAWN - 1 of the row. The draws are integers
 * and the comparison is exact: the same mask on every machine. */
static void
draw_mask(const dsb_draw *at, uint32_t sample, uint32_t quad, float rate, float factor, float *keep)
{
    uint32_t bits[4][QUADS];
    uint64_t seed = at->seed;
    uint32_t stream = at->stream, step = at->step;

    for (uint32_t j = 0; j < QUADS; j++) {
        uint32_t out[4];

        dsb_philox(seed, stream, step, sample, quad + j, out);
        bits[0][j] = out[0];
        bits[1][j] = out[1];
        bits[2][j] = out[2];
        bits[3][j] = out[3];
    }
    for (int j = 0; j < QUADS; j++) {
        for (int i = 0; i < 4; i++) {
            keep[4 * j + i] = dsb_uniform(bits[i][j]) >= rate ? factor : 0.0f;
        }
    }
}

/* Lines of c channels, drawn one behind another without their padding. Whatever stands in a dropped
 * place, NaN or not, becomes zero. */
DSB_INLINE void
dropout_as(int half, const dsb_draw *at, float rate, int rows, int pixels, int c, dsb_slot x,
           int beta, dsb_slot y)
{
    float keep[DRAWN + DSB_VL] = {0}, factor = 1.0f / (1.0f - rate);
    int64_t n = (int64_t)pixels * c;

    for (int64_t r = 0; r < rows; r++) {
        int64_t drawn = 0, element = 0; /* keep[] ends before element `drawn` */
        int64_t line = r * pixels, column = 0;

        while (element < n) {
            int64_t left = drawn - element, place = DRAWN - left;
            int64_t take = c - column < DSB_VL ? c - column : DSB_VL;

            if (left < take) {
                uint32_t quad = (uint32_t)(element / 4);

                draw_mask(at, at->sample + (uint32_t)r, quad, rate, factor, keep);
                drawn = 4 * (int64_t)quad + DRAWN;
                place = element % 4;
            }
            vf k = vf_load(keep + place), v = vf_load_as(half, x.data, line * x.ld + column);

            put(half, beta, y, line * y.ld + column, vf_select(k > 0.0f, v * k, (vf){0}));
            element += take;
            column += take;
            if (column == c) {
                column = 0;
                line++;
            }
        }
    }
}

static void
dropout(dsb_stream *stream, const dsb_draw *at, float rate, int rows, int pixels, int c, dsb_slot x,
        int beta, dsb_slot y)
{
    (void)stream;
    assert(x.dtype == y.dtype);
    if (is_half(y)) {
        dropout_as(1, at, rate, rows, pixels, c, x, beta, y);
    } else {
        dropout_as(0, at, rate, rows, pixels, c, x, beta, y);
    }
}

/* ---- a table of rows, chosen by label ---- */

DSB_INLINE void
lookup_as(int half, int rows, int n, const float *label, const float *table, dsb_slot y)
{
    int64_t columns = dsb_pitch(n);

    for (int64_t r = 0; r < rows; r++) {
        const float *from = table + (int64_t)label[r] * n;

        for (int64_t j = 0; j < columns; j += DSB_VL) {
            vf_store_as(half, y.data, r * y.ld + j, vf_load_part(from + j, n - j));
        }
    }
}

static void
lookup(dsb_stream *stream, int rows, int classes, int n, const float *label, const float *table,
       dsb_slot y)
{
    (void)stream;
    (void)classes;
    if (is_half(y)) {
        lookup_as(1, rows, n, label, table, y);
    } else {
        lookup_as(0, rows, n, label, table, y);
    }
}

DSB_INLINE void
lookup_backward_as(int half, int rows, int n, const float *label, dsb_slot dy, float *d_table)
{
    for (int64_t r = 0; r < rows; r++) {
        float *to = d_table + (int64_t)label[r] * n;

        for (int64_t j = 0; j < n; j += DSB_VL) {
            vf v = vf_load_as(half, dy.data, r * dy.ld + j);

            vf_store_part(to + j, vf_load_part(to + j, n - j) + v, n - j);
        }
    }
}

static void
lookup_backward(dsb_stream *stream, int rows, int classes, int n, const float *label, dsb_slot dy,
                int beta, float *d_table)
{
    (void)stream;
    if (!beta) {
        memset(d_table, 0, sizeof *d_table * (size_t)classes * (size_t)n);
    }
    if (is_half(dy)) {
        lookup_backward_as(1, rows, n, label, dy, d_table);
    } else {
        lookup_backward_as(0, rows, n, label, dy, d_table);
    }
}

void
DSB_KERNEL(dsb_cpu_image)(dsb_backend *table)
{
    table->upsample = upsample;
    table->downsample = downsample;
    table->add_row = add_row;
    table->sum_pixels = sum_pixels;
    table->row_to_image = row_to_image;
    table->image_to_row = image_to_row;
    table->dropout = dropout;
    table->lookup = lookup;
    table->lookup_backward = lookup_backward;
}
