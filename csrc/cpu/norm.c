/* Group normalisation: statistics, what is left to apply (a x + b, SiLU), and all gradients.
 *
 * Sums run over pixels in vectors of channels, BLOCK pixels at a time so that float32 stays accurate over
 * any number of them; channels are folded into groups at the end. A row is finished before the next is
 * begun: its second pass finds the image in cache.
 */
#include "cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "cpu/groups.h"
#include "cpu/lines.h"

enum {
    BLOCK = 64, /* pixels whose sum is one register */
    STRIP = 16, /* the same in the backward pass: lines of three images stay in the nearest cache */
    CHAINS = 8, /* sums that run side by side */
    SPAN = 512, /* channels whose sums are kept on the stack, a multiple of DSB_PANEL */
    GROUPS = 256 /* groups whose sums are kept on the stack, a multiple of DSB_PANEL */
};

static int
smaller(int a, int b)
{
    return a < b ? a : b;
}

/* ---- forward ---- */

/* total[] += sums over `pixels` lines of x, or of (x - mean)^2, in `width` vectors. */
DSB_INLINE void
sum_block(int half, bool squares, int width, int pixels, dsb_lines x, const float *mean,
          float *total)
{
    vf sum[CHAINS] = {{0}};
    int chains = CHAINS / width, p = 0;

    for (; p < pixels; p += chains) {
        int last = chains < pixels - p ? CHAINS : (pixels - p) * width;

        DSB_UNROLL
        for (int i = 0; i < CHAINS; i++) {
            int v = i % width * DSB_VL;

            if (i < last) {
                vf u = load_line(half, x, p + i / width, v);

                u = squares ? u - vf_load(mean + v) : u;
                sum[i] = squares ? vf_fma(u, u, sum[i]) : sum[i] + u;
            }
        }
    }
    DSB_UNROLL
    for (int i = width; i < CHAINS; i++) {
        sum[i % width] += sum[i];
    }
    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        vf_store(total + v * DSB_VL, vf_load(total + v * DSB_VL) + sum[v]);
    }
}

/* total[c], up to the pitch: sums over the pixels of an image. */
DSB_INLINE void
sum_channels(int half, bool squares, int pixels, int c, dsb_lines x, const float *mean,
             float *total)
{
    int columns = (int)dsb_pitch(c);

    memset(total, 0, sizeof *total * (size_t)columns);
    for (int first = 0; first < pixels; first += BLOCK) {
        int n = smaller(pixels - first, BLOCK), j = 0;

        for (; j + VF_MANY * DSB_VL <= columns; j += VF_MANY * DSB_VL) {
            dsb_lines at = from_column(x, first * x.ld + j);

            sum_block(half, squares, VF_MANY, n, at, mean + j, total + j);
        }
        for (; j + 2 * DSB_VL <= columns; j += 2 * DSB_VL) {
            dsb_lines at = from_column(x, first * x.ld + j);

            sum_block(half, squares, 2, n, at, mean + j, total + j);
        }
        for (; j < columns; j += DSB_VL) {
            dsb_lines at = from_column(x, first * x.ld + j);

            sum_block(half, squares, 1, n, at, mean + j, total + j);
        }
    }
}

/* With mean and 1 / deviation of each channel in b and a: the factors of
 * (weight (x - mean) / deviation + bias) (1 + scale) + shift = a x + b. */
static void
fold_factors(const dsb_group_norm *norm, const float *scale, float *a, float *b)
{
    int c = norm->c;

    for (int j = 0; j < (int)dsb_pitch(c); j += DSB_VL) {
        int64_t n = c - j;
        vf factor = vf_load(a + j) * vf_load_part(norm->weight + j, n);
        vf offset = vf_load_part(norm->bias + j, n) - vf_load(b + j) * factor;

        if (scale != NULL) {
            vf s = vf_load_part(scale + j, n) + 1.0f;

            factor *= s;
            offset = vf_fma(offset, s, vf_load_part(scale + c + j, n));
        }
        vf_store(a + j, factor);
        vf_store(b + j, offset);
    }
}

/* A row of the scales, the shifts behind it, or NULL. */
static const float *
scale_row(const dsb_slot *slot, int64_t r)
{
    return slot->data != NULL ? (const float *)slot->data + r * slot->ld : NULL;
}

/* One row. `ab` holds sums and what was spread from them until it receives the factors. */
DSB_INLINE void
statistics_as(int half, const dsb_group_norm *norm, dsb_lines x, const float *scale, float *mean,
              float *inverse, float *ab)
{
    int c = norm->c, groups = norm->groups, size = c / groups;
    float *a = ab, *b = ab + dsb_pitch(c), part = 1.0f / ((float)norm->pixels * (float)size);

    sum_channels(half, false, norm->pixels, c, x, b, a);
    memset(mean, 0, sizeof *mean * (size_t)groups);
    gather(size, 0, c, a, mean);
    for (int g = 0; g < groups; g++) {
        mean[g] *= part;
    }
    spread(size, 0, c, mean, b);
    sum_channels(half, true, norm->pixels, c, x, b, a);
    memset(inverse, 0, sizeof *inverse * (size_t)groups);
    gather(size, 0, c, a, inverse);
    for (int g = 0; g < groups; g++) {
        inverse[g] = 1.0f / sqrtf(inverse[g] * part + DSB_GROUP_NORM_EPSILON);
    }
    spread(size, 0, c, inverse, a);
    fold_factors(norm, scale, a, b);
}

static void
group_norm_statistics(dsb_stream *stream, const dsb_group_norm *norm, int rows, dsb_slot x,
                      float *stats, float *ab)
{
    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        dsb_lines image = {x.data, r * norm->pixels * x.ld, x.ld};
        const float *scale = scale_row(&norm->scale_shift, r);
        float *mean = stats + r * 2 * norm->groups, *inverse = mean + norm->groups;
        float *factors = ab + r * 2 * dsb_pitch(norm->c);

        if (x.dtype == DSB_BFLOAT16) {
            statistics_as(1, norm, image, scale, mean, inverse, factors);
        } else {
            statistics_as(0, norm, image, scale, mean, inverse, factors);
        }
    }
}

/* `width` vectors of a pixel, at numbers `from` and `to`; the offsets lie `columns` behind the factors a. */
DSB_INLINE void
affine_vectors(int half, bool silu, int width, const float *a, int64_t columns, const void *x,
               int64_t from, void *y, int64_t to)
{
    vf v[VF_MANY];

    DSB_UNROLL
    for (int i = 0; i < width; i++) {
        v[i] = vf_load_as(half, x, from + i * DSB_VL);
        if (a != NULL) {
            v[i] = vf_fma(v[i], vf_load(a + i * DSB_VL), vf_load(a + columns + i * DSB_VL));
        }
    }
    if (silu) {
        vf_silu_many(width, v);
    }
    DSB_UNROLL
    for (int i = 0; i < width; i++) {
        vf_store_as(half, y, to + i * DSB_VL, v[i]);
    }
}

DSB_INLINE void
affine_as(int half, bool silu, const float *ab, int rows, int pixels, int c, dsb_slot x, dsb_slot y)
{
    int64_t columns = dsb_pitch(c), step = VF_MANY * DSB_VL;

    for (int64_t r = 0; r < rows; r++) {
        const float *a = ab != NULL ? ab + r * 2 * columns : NULL;

        for (int64_t p = r * pixels; p < (r + 1) * pixels; p++) {
            int64_t from = p * x.ld, to = p * y.ld, j = 0;

            for (; j + step <= columns; j += step) {
                affine_vectors(half, silu, VF_MANY, a != NULL ? a + j : NULL, columns, x.data,
                               from + j, y.data, to + j);
            }
            for (; j < columns; j += DSB_VL) {
                affine_vectors(half, silu, 1, a != NULL ? a + j : NULL, columns, x.data, from + j,
                               y.data, to + j);
            }
        }
    }
}

static void
affine(dsb_stream *stream, const dsb_affine *affine, int rows, int pixels, int c, dsb_slot x,
       dsb_slot y)
{
    (void)stream;
    assert(x.dtype == y.dtype);
    if (y.dtype == DSB_BFLOAT16) {
        if (affine->silu) {
            affine_as(1, true, affine->ab, rows, pixels, c, x, y);
        } else {
            affine_as(1, false, affine->ab, rows, pixels, c, x, y);
        }
    } else if (affine->silu) {
        affine_as(0, true, affine->ab, rows, pixels, c, x, y);
    } else {
        affine_as(0, false, affine->ab, rows, pixels, c, x, y);
    }
}

/* ---- backward ----
 *
 * y = f(z), z = n (1 + scale) + shift = a x + b, n = weight xhat + bias, xhat = (x - mean) inverse.
 * Pass 1 takes for each channel of a row, over its pixels,
 *     D = sum dz, E = sum dz xhat, with dz = dy f'(a x + b);
 * then d_shift = D, d_scale = sum dz n = weight E + bias D, and summed over rows
 *     d_bias = sum (1 + scale) D, d_weight = sum (1 + scale) E.
 * With g = dz weight (1 + scale), the gradient to xhat, and means over the M numbers of a group,
 *     dx = inverse (g - mean(g) - xhat mean(g xhat)):
 * mean and deviation depend on x too, and what g has along 1 and along xhat is lost. Pass 2 writes it as
 *     dx = a dz + q (x - mean) + s, q = - inverse^2 mean(g xhat), s = - inverse mean(g),
 * where M mean(g) = sum weight (1 + scale) D and M mean(g xhat) = sum weight (1 + scale) E over the group's
 * channels. Where dx is overwritten it holds dz between the passes, in bfloat16 rounded like any image.
 */

/* A row: what is read, and numbers for each channel of a span. */
typedef struct backward_row {
    const dsb_group_norm *norm;
    dsb_lines x, dy, dx;
    const float *scale;          /* NULL: none */
    const float *mean, *inverse; /* of groups */
    const float *ab;
    float *d_weight, *d_bias, *d_scale; /* NULL: not wanted; the shifts' gradients follow d_scale */
    int beta, beta_param, beta_scale;
} backward_row;

typedef struct span {
    int first, n; /* channels; a multiple of DSB_PANEL but for the last */
    float mean[SPAN], inverse[SPAN];
    float one[SPAN], other[SPAN]; /* D and E, then those of g, then s and q */
} span;

/* dz of `width` vectors of pixel p, from x and dy; a begins where dy does, b lies `pitch` behind. */
DSB_INLINE void
take_slopes(int half, bool silu, int width, const float *a, int64_t pitch, dsb_lines dy, int64_t p,
            const vf *x, vf *d)
{
    vf slope[VF_MANY];

    if (silu) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            int j = v * DSB_VL;

            slope[v] = vf_fma(x[v], vf_load(a + j), vf_load(a + pitch + j));
        }
        vf_silu_slope_many(width, slope);
    }
    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        d[v] = load_line(half, dy, p, v * DSB_VL);
        if (silu) {
            d[v] *= slope[v];
        }
    }
}

/* D and E / inverse of `width` vectors from s->first + j on grow by pixels begin .. end - 1. Where `keep`,
 * dz is stored in dx, for pass 2 to find it. */
DSB_INLINE void
sum_gradient_block(const backward_row *row, int half, bool silu, bool keep, int width, int begin,
                   int end, int j, span *s)
{
    int64_t at = s->first + j, pitch = dsb_pitch(row->norm->c);
    dsb_lines from = from_column(row->x, at), dy = from_column(row->dy, at);
    dsb_lines to = from_column(row->dx, at);
    const float *a = row->ab + at;
    vf d_sum[VF_MANY] = {{0}}, e_sum[VF_MANY] = {{0}};

    for (int p = begin; p < end; p++) {
        vf x[VF_MANY], d[VF_MANY];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            x[v] = load_line(half, from, p, v * DSB_VL);
            /* a strip ahead: hardware does not foresee columns of a strip */
            prefetch_line(half, 0, from, p + STRIP, v * DSB_VL);
            prefetch_line(half, 0, dy, p + STRIP, v * DSB_VL);
            if (keep) {
                prefetch_line(half, 1, to, p + STRIP, v * DSB_VL);
            }
        }
        take_slopes(half, silu, width, a, pitch, dy, p, x, d);
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            if (keep) {
                store_line(half, to, p, v * DSB_VL, d[v]);
            }
            d_sum[v] += d[v];
            e_sum[v] = vf_fma(d[v], x[v] - vf_load(s->mean + j + v * DSB_VL), e_sum[v]);
        }
    }
    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        float *one = s->one + j + v * DSB_VL, *other = s->other + j + v * DSB_VL;

        vf_store(one, vf_load(one) + d_sum[v]);
        vf_store(other, vf_load(other) + e_sum[v]);
    }
}

DSB_INLINE void
sum_gradients(const backward_row *row, int half, bool silu, bool keep, span *s)
{
    int pixels = row->norm->pixels, columns = (int)dsb_pitch(s->n), step = VF_MANY * DSB_VL;

    memset(s->one, 0, sizeof *s->one * (size_t)columns);
    memset(s->other, 0, sizeof *s->other * (size_t)columns);
    for (int first = 0; first < pixels; first += STRIP) {
        int end = smaller(pixels, first + STRIP), j = 0;

        for (; j + step <= columns; j += step) {
            sum_gradient_block(row, half, silu, keep, VF_MANY, first, end, j, s);
        }
        for (; j < columns; j += DSB_VL) {
            sum_gradient_block(row, half, silu, keep, 1, first, end, j, s);
        }
    }
}

/* to[0 .. n-1] = v (+ itself). */
DSB_INLINE void
put_part(int beta, float *to, vf v, int64_t n)
{
    vf_store_part(to, beta ? vf_load_part(to, n) + v : v, n);
}

/* The gradients of the parameters; leaves weight (1 + scale) D and weight (1 + scale) E. */
static void
finish_channels(const backward_row *row, span *s)
{
    int c = row->norm->c;

    for (int j = 0; j < s->n; j += DSB_VL) {
        int64_t n = s->n - j, at = s->first + j;
        vf d = vf_load(s->one + j), e = vf_load(s->other + j) * vf_load(s->inverse + j);
        vf weight = vf_load_part(row->norm->weight + at, n), g = vf_splat(1.0f);

        if (row->scale != NULL) {
            g += vf_load_part(row->scale + at, n);
        }
        if (row->d_scale != NULL) {
            vf bias = vf_load_part(row->norm->bias + at, n);

            put_part(row->beta_scale, row->d_scale + at, weight * e + bias * d, n);
            put_part(row->beta_scale, row->d_scale + c + at, d, n);
        }
        if (row->d_weight != NULL) {
            put_part(row->beta_param, row->d_weight + at, g * e, n);
        }
        if (row->d_bias != NULL) {
            put_part(row->beta_param, row->d_bias + at, g * d, n);
        }
        vf_store(s->one + j, weight * g * d);
        vf_store(s->other + j, weight * g * e);
    }
}

/* dx of `width` vectors of channels from s->first + j on, pixels begin .. end - 1. */
DSB_INLINE void
write_block(const backward_row *row, int half, bool silu, bool keep, int width, int begin, int end,
            int j, const span *s)
{
    int64_t at = s->first + j, pitch = dsb_pitch(row->norm->c);
    dsb_lines from = from_column(row->x, at), dy = from_column(row->dy, at);
    dsb_lines to = from_column(row->dx, at);
    const float *a = row->ab + at;
    int beta = row->beta;
    vf factor[VF_MANY], slope[VF_MANY], offset[VF_MANY];

    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        int k = j + v * DSB_VL;

        factor[v] = vf_load(a + v * DSB_VL);
        slope[v] = vf_load(s->other + k);
        offset[v] = vf_load(s->one + k) - slope[v] * vf_load(s->mean + k);
    }
    for (int p = begin; p < end; p++) {
        vf x[VF_MANY], d[VF_MANY];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            x[v] = load_line(half, from, p, v * DSB_VL);
            if (keep) {
                d[v] = load_line(half, to, p, v * DSB_VL);
            }
        }
        if (!keep) {
            take_slopes(half, silu, width, a, pitch, dy, p, x, d);
        }
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            vf u = vf_fma(d[v], factor[v], vf_fma(x[v], slope[v], offset[v]));

            store_line(half, to, p, v * DSB_VL, beta ? load_line(half, to, p, v * DSB_VL) + u : u);
        }
    }
}

DSB_INLINE void
write_dx(const backward_row *row, int half, bool silu, bool keep, const span *s)
{
    int pixels = row->norm->pixels, columns = (int)dsb_pitch(s->n), step = VF_MANY * DSB_VL;

    for (int first = 0; first < pixels; first += STRIP) {
        int end = smaller(pixels, first + STRIP), j = 0;

        for (; j + step <= columns; j += step) {
            write_block(row, half, silu, keep, VF_MANY, first, end, j, s);
        }
        for (; j < columns; j += DSB_VL) {
            write_block(row, half, silu, keep, 1, first, end, j, s);
        }
    }
}

/* Groups first .. first + n - 1 of a row, in spans of channels. Both begin on a multiple of DSB_PANEL, so that
 * no vector belongs to two of them. */
DSB_INLINE void
backward_groups(const backward_row *row, int half, bool silu, bool keep, int first, int n)
{
    int size = row->norm->c / row->norm->groups, begin = first * size, channels = n * size;
    const float *mean = row->mean + first, *inverse = row->inverse + first;
    float one[GROUPS] = {0}, other[GROUPS] = {0};
    float part = 1.0f / ((float)size * (float)row->norm->pixels);
    span s;

    for (int skip = 0; skip < channels; skip += SPAN) {
        s.first = begin + skip;
        s.n = smaller(channels - skip, SPAN);
        spread(size, skip, s.n, mean, s.mean);
        spread(size, skip, s.n, inverse, s.inverse);
        sum_gradients(row, half, silu, keep, &s);
        finish_channels(row, &s);
        gather(size, skip, s.n, s.one, one);
        gather(size, skip, s.n, s.other, other);
    }
    for (int g = 0; g < n; g++) {
        one[g] *= -inverse[g] * part;
        other[g] *= -inverse[g] * inverse[g] * part;
    }
    for (int skip = 0; skip < channels; skip += SPAN) {
        s.first = begin + skip;
        s.n = smaller(channels - skip, SPAN);
        spread(size, skip, s.n, mean, s.mean);
        spread(size, skip, s.n, one, s.one);
        spread(size, skip, s.n, other, s.other);
        write_dx(row, half, silu, keep, &s);
    }
}

DSB_INLINE void
backward_as(const backward_row *row, int half, int first, int n)
{
    if (!row->norm->silu) {
        backward_groups(row, half, false, false, first, n);
    } else if (row->beta) {
        backward_groups(row, half, true, false, first, n);
    } else {
        backward_groups(row, half, true, true, first, n);
    }
}

static void
group_norm_backward(dsb_stream *stream, const dsb_group_norm *norm, int rows, dsb_slot x,
                    const float *stats, const float *ab, dsb_slot dy, int beta, dsb_slot dx,
                    int beta_param, float *d_weight, float *d_bias, int beta_scale,
                    dsb_slot d_scale_shift)
{
    (void)stream;
    assert(x.dtype == dx.dtype && dy.dtype == dx.dtype);
    for (int64_t r = 0; r < rows; r++) {
        const float *mean = stats + r * 2 * norm->groups;
        int64_t line = r * norm->pixels;
        backward_row row = {
            .norm = norm,
            .x = {x.data, line * x.ld, x.ld},
            .dy = {dy.data, line * dy.ld, dy.ld},
            .dx = {dx.data, line * dx.ld, dx.ld},
            .scale = scale_row(&norm->scale_shift, r),
            .mean = mean,
            .inverse = mean + norm->groups,
            .ab = ab + r * 2 * dsb_pitch(norm->c),
            .d_weight = d_weight,
            .d_bias = d_bias,
            .d_scale = (float *)scale_row(&d_scale_shift, r),
            .beta = beta,
            .beta_param = beta_param || r > 0,
            .beta_scale = beta_scale,
        };

        for (int g = 0; g < norm->groups; g += GROUPS) {
            int n = smaller(norm->groups - g, GROUPS);

            if (x.dtype == DSB_BFLOAT16) {
                backward_as(&row, 1, g, n);
            } else {
                backward_as(&row, 0, g, n);
            }
        }
    }
}

void
DSB_KERNEL(dsb_cpu_norm)(dsb_backend *table)
{
    table->group_norm_statistics = group_norm_statistics;
    table->affine = affine;
    table->group_norm_backward = group_norm_backward;
}
