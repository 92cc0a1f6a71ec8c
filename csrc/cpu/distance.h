/* Squared distances between rows and panels of points, a tile at a time, in registers.
 *
 * Purpose: r2 in two forms. Differences, sum_c (x_c - y_c)^2, err by units in the last place of r2 itself, and cost a
 * subtraction and an FMA a coordinate. Products take, of every four coordinates (Winograd 1968),
 *
 *     (x0 + y1) (x1 + y0) = x0 y0 + x1 y1 + x0 x1 + y0 y1        and        x2 y2, x3 y3 as they are:
 *
 *     |x - y|^2 = h(x) + h(y) - 2 (the sum of all this),         h(x) = |x|^2 + 2 sum x0 x1,
 *
 * three FMAs and two additions instead of four and four. A processor with units for each (all Zen) is then faster
 * than its FMAs alone would be, 1.3 times on Zen 5; with more of Winograd's form the additions would take longer
 * than the FMAs, and where one unit does both, five instructions still take the place of eight. What products lose
 * is relative to |x|^2 + |y|^2, so they serve only where r2 is more than an eighth of that (all_far): a distance in
 * 50 dimensions then errs by 3 units of its last place (rms, 16 at most) where it is that small, by less than one
 * where the points are as far apart as from the origin, to either side.
 * Ownership and threads: pure functions, no state. Included by csrc/cpu/pairs.c only.
 */
#ifndef DSB_CPU_DISTANCE_H
#define DSB_CPU_DISTANCE_H

#include <math.h>
#include <stdbool.h>

#include "cpu/wide.h"

enum {
#if DSB_VL == 16
    TILE_ROWS = 8,
    PANELS = 2,
#elif DSB_VL == 8 || defined(__aarch64__)
    TILE_ROWS = 4,
    PANELS = 1,
#else
    TILE_ROWS = 2,
    PANELS = 1,
#endif
    WIDTH = PANELS * GROUPS, /* vectors of a row of a full tile */
    TILE = TILE_ROWS * WIDTH,
    PRODUCTS_FROM = 16, /* dimensions; below, what stands around them costs more than they save */
    QUAD = 4,           /* coordinates, of which the first two go by Winograd's form */
};

DSB_INLINE vf
vf_min(vf a, vf b)
{
#if DSB_VL == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif DSB_VL == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b);
#endif
}

/* Whether a comparison holds in all lanes. */
DSB_INLINE bool
vi_all(vi mask)
{
#if DSB_VL == 16
    return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif DSB_VL == 8
    return _mm256_movemask_ps((__m256)mask) == 0xff;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask) == 0xf;
#else
    return vminvq_u32((uint32x4_t)mask) == UINT32_MAX;
#endif
}

/* Vector v of coordinate c of the panels from `panel` on. */
DSB_INLINE vf
load(int64_t dim, const float *panel, int64_t c, int v)
{
    return vf_load(panel + (v / GROUPS * dim + c) * PARTS + v % GROUPS * DSB_VL);
}

DSB_INLINE void
by_differences(int rows, int width, int64_t dim, const float *x, const float *panel, vf *r2)
{
    vf acc[TILE];

    DSB_UNROLL
    for (int i = 0; i < rows * width; i++) {
        acc[i] = (vf){0};
    }
    for (int64_t c = 0; c < dim; c++) {
        vf y[WIDTH];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            y[v] = load(dim, panel, c, v);
        }
        DSB_UNROLL
        for (int r = 0; r < rows; r++) {
            vf q = vf_splat(x[r * dim + c]);

            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                vf d = y[v] - q;

                acc[r * width + v] = vf_fma(d, d, acc[r * width + v]);
            }
        }
    }
    DSB_UNROLL
    for (int i = 0; i < rows * width; i++) {
        r2[i] = acc[i];
    }
}

/* sum += x_c y_c. */
DSB_INLINE void
multiply_one(int rows, int width, int64_t dim, const float *x, const float *panel, int64_t c,
             vf *sum)
{
    vf y[WIDTH];

    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        y[v] = load(dim, panel, c, v);
    }
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        vf q = vf_splat(x[r * dim + c]);

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            sum[r * width + v] = vf_fma(q, y[v], sum[r * width + v]);
        }
    }
}

/* sum += (x_c + y_c+1) (x_c+1 + y_c). */
DSB_INLINE void
multiply_two(int rows, int width, int64_t dim, const float *x, const float *panel, int64_t c,
             vf *sum)
{
    vf y0[WIDTH], y1[WIDTH];

    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        y0[v] = load(dim, panel, c, v);
        y1[v] = load(dim, panel, c + 1, v);
    }
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        vf x0 = vf_splat(x[r * dim + c]), x1 = vf_splat(x[r * dim + c + 1]);

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            sum[r * width + v] = vf_fma(x0 + y1[v], x1 + y0[v], sum[r * width + v]);
        }
    }
}

DSB_INLINE void
by_products(int rows, int width, int64_t dim, const float *x, const float *x_norms,
            const float *panel, const float *y_norms, vf *r2)
{
    vf acc[TILE];

    int64_t c = 0;

    DSB_UNROLL
    for (int i = 0; i < rows * width; i++) {
        acc[i] = (vf){0};
    }
    for (; c + QUAD <= dim; c += QUAD) {
        multiply_two(rows, width, dim, x, panel, c, acc);
        multiply_one(rows, width, dim, x, panel, c + 2, acc);
        multiply_one(rows, width, dim, x, panel, c + 3, acc);
    }
    for (; c < dim; c++) {
        multiply_one(rows, width, dim, x, panel, c, acc);
    }
    DSB_UNROLL
    for (int i = 0; i < rows * width; i++) {
        vf h = load(2, y_norms, 0, i % width) + vf_splat(x_norms[i / width]);

        acc[i] = vf_fma(acc[i], vf_splat(-2.0f), h);
    }
    DSB_UNROLL
    for (int i = 0; i < rows * width; i++) {
        r2[i] = acc[i];
    }
}

#if DSB_VL == 16
#define differences by_differences
#define products by_products
#else
/* With sixteen registers, functions by themselves: else gcc keeps some for what stands around the loops over
 * coordinates, and the sums of those in memory. There is one width. */
static __attribute__((noinline)) void
differences(int rows, int width, int64_t dim, const float *x, const float *panel, vf *r2)
{
    (void)width;
    if (rows > 1) {
        by_differences(TILE_ROWS, WIDTH, dim, x, panel, r2);
    } else {
        by_differences(1, WIDTH, dim, x, panel, r2);
    }
}

static __attribute__((noinline)) void
products(int rows, int width, int64_t dim, const float *x, const float *x_norms, const float *panel,
         const float *y_norms, vf *r2)
{
    (void)width;
    if (rows > 1) {
        by_products(TILE_ROWS, WIDTH, dim, x, x_norms, panel, y_norms, r2);
    } else {
        by_products(1, WIDTH, dim, x, x_norms, panel, y_norms, r2);
    }
}
#endif

/* Whether every pair is so far apart that products will do: r2 > (|x|^2 + |y|^2) / 8, with the longest of the rows
 * for all of them. */
DSB_INLINE bool
all_far(int rows, int width, float x_near, const float *y_norms, const vf *r2)
{
    bool far = true;

    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        vf least = r2[v];

        DSB_UNROLL
        for (int r = 1; r < rows; r++) {
            least = vf_min(least, r2[r * width + v]);
        }
        far &= vi_all(least > load(2, y_norms, 1, v) + vf_splat(x_near));
    }
    return far;
}

/* Of at most 16 points, `between` floats apart, with coordinates `next` floats apart: h(x), and |x|^2 / 8. Near the
 * largest numbers h or a sum could overflow where r2 does not: there are only differences. */
DSB_INLINE void
norms_of(int n, int64_t dim, const float *x, int64_t between, int64_t next, float *h, float *near)
{
    double square[PARTS] = {0}, cross[PARTS] = {0};

    for (int64_t c = 0; c < dim; c++) {
        bool two = c % QUAD == 0 && c + QUAD <= dim;

        for (int i = 0; i < n; i++) {
            double a = (double)x[i * between + c * next];

            square[i] += a * a;
            cross[i] += two ? a * (double)x[i * between + (c + 1) * next] : 0.0;
        }
    }
    for (int i = 0; i < n; i++) {
        bool fits = square[i] < 0x1p120;

        h[i] = fits ? (float)(square[i] + 2.0 * cross[i]) : 0.0f;
        near[i] = fits ? (float)(square[i] / 8.0) : INFINITY;
    }
}

#endif
