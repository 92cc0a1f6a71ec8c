/* Sums over all pairs of two sets of points, and projections of points on directions.
 *
 * Points are read in panels of 16, coordinate by coordinate, so that a vector holds one coordinate of
 * neighbouring points; a tile is some rows against one or two panels, in registers:
 *
 *     rows x[0], x[1], ...  (broadcast)        panels [dim][16]
 *     r2 over coordinates,  f(r2) summed over the rows,  then added in float64
 *
 * distance.h has r2, by differences or, in high dimension, by products; a tile with pairs too near for products is
 * done by differences. */
#include "cpu/cpu.h"

#include <assert.h>

#include "cpu/distance.h"

/* ---- functions of squared distances ---- */

/* The sum of sqrt(r2) over rows, to within 2 units of the last place; `width` vectors lie from row to row. */
DSB_INLINE vf
sum_roots(int rows, int width, const vf *r2)
{
    vf sum = {0};
#if DSB_VL == 16
    /* r2 times an estimate e of 1 / sqrt(r2) to 14 bits, and a step of Newton's, g + g (1 - g e) / 2, of which the
     * halves are taken together, in sums that do not wait for each other. The floor keeps 0 times infinity away; what
     * lies below counts as 0. */
    vf twice[4] = {{0}}, part[4] = {{0}}, e[TILE_ROWS], g[TILE_ROWS];

    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        __m512 safe = _mm512_max_ps((__m512)r2[r * width], _mm512_set1_ps(0x1p-120f));

        e[r] = (vf)_mm512_rsqrt14_ps(safe);
        g[r] = r2[r * width] * e[r];
    }
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        vf rest = vf_fma(-g[r], e[r], vf_splat(1.0f));

        part[r % 4] += g[r];
        twice[r % 4] = vf_fma(g[r], rest, twice[r % 4]);
    }
    sum = (part[0] + part[1]) + (part[2] + part[3]);
    sum = vf_fma((twice[0] + twice[1]) + (twice[2] + twice[3]), vf_splat(0.5f), sum);
#else
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        sum += vf_sqrt(r2[r * width]);
    }
#endif
    return sum;
}

/* e = exp(-scale e) of rows, e >= 0. With sixteen numbers to a vector as vf_exp_negative_many does it, but with the
 * factor in the first steps: 2^(m + k / 16 + u), |u| <= 1 / 32. */
DSB_INLINE void
kernels(int rows, float scale, vf *e)
{
#if DSB_VL == 16
    const vf magic = vf_splat(786432.0f); /* 1.5 * 2^19: adding it rounds to sixteenths */
    const vf factor = vf_splat((float)(-1.4426950408889634 * (double)scale));
    const vf most = vf_splat(-170.0f) / factor; /* exp is zero in float32 from there on */
    vf t[TILE_ROWS], m[TILE_ROWS];

    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        e[r] = vf_min(most, e[r]);
        t[r] = vf_fma(e[r], factor, magic);
        m[r] = t[r] - magic;
        e[r] = vf_fma(e[r], factor, -m[r]);
        t[r] = (vf)_mm512_permutexvar_ps((__m512i)t[r], _mm512_loadu_ps(vf_sixteenths));
    }
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        vf slope = vf_fma(e[r], vf_splat(5.5504109e-2f), vf_splat(2.4022651e-1f));

        slope = vf_fma(slope, e[r], vf_splat(6.9314718e-1f));
        e[r] = vf_fma(slope, e[r] * t[r], t[r]);
        e[r] = (vf)_mm512_scalef_ps((__m512)e[r], (__m512)m[r]);
    }
#else
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        e[r] = vf_below(e[r] * vf_splat(scale));
    }
    DSB_UNROLL
    for (int r = 0; r < rows; r += VF_MANY) {
        vf_exp_negative_many(rows - r < VF_MANY ? rows - r : VF_MANY, e + r, e + r);
    }
#endif
}

/* The sum of exp(-scale r2) over rows. */
DSB_INLINE vf
sum_kernels(int rows, int width, float scale, const vf *r2)
{
    vf sum = {0}, e[TILE_ROWS];

    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        e[r] = r2[r * width];
    }
    kernels(rows, scale, e);
    DSB_UNROLL
    for (int r = 0; r < rows; r++) {
        sum += e[r];
    }
    return sum;
}

/* ---- sums ---- */

typedef struct pair_job {
    float scale;
    const float *x, *panels, *norms;
    int64_t columns;
    float x_norms[DSB_PAIR_ROWS], x_near[DSB_PAIR_ROWS];
    bool near; /* the last tile had a near pair: the next one likely has, too */
    wide sums[GROUPS];
} pair_job;

DSB_INLINE void
tile(dsb_pair_function f, int rows, int width, int64_t dim, bool high, pair_job *job, int r,
     int64_t first)
{
    const float *x = job->x + r * dim, *x_norms = job->x_norms + r;
    const float *panel = job->panels + first * dim, *y_norms = job->norms + 2 * first;
    vf r2[TILE];
    bool far = false;

    if (high && !job->near) {
        products(rows, width, dim, x, x_norms, panel, y_norms, r2);
        far = all_far(rows, width, job->x_near[r], y_norms, r2);
    }
    if (!high) {
        by_differences(rows, width, dim, x, panel, r2);
    } else if (!far) {
        differences(rows, width, dim, x, panel, r2);
        job->near = !all_far(rows, width, job->x_near[r], y_norms, r2);
    }
    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        vf sum = f == DSB_PAIR_DISTANCE ? sum_roots(rows, width, r2 + v)
                                        : sum_kernels(rows, width, job->scale, r2 + v);
        wide w;

        if (job->columns - first < width * DSB_VL) {
            sum = vf_select(vi_first(job->columns - first - v * DSB_VL), sum, (vf){0});
        }
        w = widen(sum);
        job->sums[v % GROUPS].low += w.low;
        job->sums[v % GROUPS].high += w.high;
    }
}

DSB_INLINE void
tiles(dsb_pair_function f, int rows, int width, int64_t dim, bool high, pair_job *job,
      int64_t first)
{
    int r = 0;

    for (; r + TILE_ROWS <= rows; r += TILE_ROWS) {
        tile(f, TILE_ROWS, width, dim, high, job, r, first);
    }
    for (; r < rows; r++) {
        tile(f, 1, width, dim, high, job, r, first);
    }
}

/* The rows of a tile share the longest one's bound. */
static void
row_norms(int rows, int64_t dim, pair_job *job)
{
    for (int r = 0; r < rows; r += PARTS) {
        norms_of(rows - r < PARTS ? rows - r : PARTS, dim, job->x + r * dim, dim, 1,
                 job->x_norms + r, job->x_near + r);
    }
    for (int r = 0; r + TILE_ROWS <= rows; r += TILE_ROWS) {
        for (int i = 1; i < TILE_ROWS; i++) {
            job->x_near[r] = fmaxf(job->x_near[r], job->x_near[r + i]);
        }
    }
}

DSB_INLINE double
pair_sum_as(dsb_pair_function f, int rows, int64_t dim, bool high, pair_job *job)
{
    int64_t first = 0;

    if (high) {
        row_norms(rows, dim, job);
    }
    for (; job->columns - first > (PANELS - 1) * PARTS; first += PANELS * PARTS) {
        tiles(f, rows, WIDTH, dim, high, job, first);
    }
    if (first < job->columns) {
        tiles(f, rows, GROUPS, dim, high, job, first);
    }
    return sum_parts(job->sums);
}

/* A function for each, since gcc uses registers badly in one large one. With the dimension a constant the loop over
 * coordinates disappears: worth it where it is short. */
#define PAIR_SUM(name, f, dim, high)                                                   \
    static __attribute__((noinline)) double name(int rows, int64_t any, pair_job *job) \
    {                                                                                  \
        (void)any;                                                                     \
        return pair_sum_as(f, rows, dim, high, job);                                   \
    }

PAIR_SUM(distances_1, DSB_PAIR_DISTANCE, 1, false)
PAIR_SUM(distances_2, DSB_PAIR_DISTANCE, 2, false)
PAIR_SUM(distances_3, DSB_PAIR_DISTANCE, 3, false)
PAIR_SUM(distances_low, DSB_PAIR_DISTANCE, any, false)
PAIR_SUM(distances_high, DSB_PAIR_DISTANCE, any, true)
PAIR_SUM(kernels_1, DSB_PAIR_GAUSSIAN, 1, false)
PAIR_SUM(kernels_2, DSB_PAIR_GAUSSIAN, 2, false)
PAIR_SUM(kernels_3, DSB_PAIR_GAUSSIAN, 3, false)
PAIR_SUM(kernels_low, DSB_PAIR_GAUSSIAN, any, false)
PAIR_SUM(kernels_high, DSB_PAIR_GAUSSIAN, any, true)

static double
pair_sum(dsb_stream *stream, dsb_pair_function f, float scale, int rows, int64_t dim,
         const float *x, int64_t columns, const float *panels, const float *norms)
{
    static double (*const sums[][5])(int, int64_t, pair_job *) = {
        [DSB_PAIR_DISTANCE] = {distances_1, distances_2, distances_3, distances_low,
                               distances_high},
        [DSB_PAIR_GAUSSIAN] = {kernels_1, kernels_2, kernels_3, kernels_low, kernels_high},
    };
    pair_job job = {.scale = scale, .x = x, .panels = panels, .norms = norms, .columns = columns};

    (void)stream;
    assert(rows <= DSB_PAIR_ROWS);
    return sums[f][dim <= 3 ? dim - 1 : dim < PRODUCTS_FROM ? 3 : 4](rows, dim, &job);
}

static void
pair_norms(dsb_stream *stream, int64_t n, int64_t dim, const float *panels, float *norms)
{
    (void)stream;
    for (int64_t first = 0; first < n; first += PARTS) {
        norms_of(PARTS, dim, panels + first * dim, 1, PARTS, norms + 2 * first,
                 norms + 2 * first + PARTS);
    }
}

/* ---- projections ---- */

/* `n` directions, all of a panel's points at once. */
DSB_INLINE void
project_panel(int n, int64_t dim, const float *panel, const float *u, float *out, int64_t ldo)
{
    vf sum[TILE];

    DSB_UNROLL
    for (int i = 0; i < n * GROUPS; i++) {
        sum[i] = (vf){0};
    }
    for (int64_t c = 0; c < dim; c++) {
        DSB_UNROLL
        for (int g = 0; g < GROUPS; g++) {
            vf x = vf_load(panel + c * PARTS + g * DSB_VL);

            DSB_UNROLL
            for (int i = 0; i < n; i++) {
                sum[g * n + i] = vf_fma(x, vf_splat(u[i * dim + c]), sum[g * n + i]);
            }
        }
    }
    DSB_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        DSB_UNROLL
        for (int i = 0; i < n; i++) {
            vf_store(out + i * ldo + g * DSB_VL, sum[g * n + i]);
        }
    }
}

static void
project(dsb_stream *stream, int64_t n, int64_t dim, const float *panels, int directions,
        const float *u, float *out, int64_t ldo)
{
    (void)stream;
    for (int64_t first = 0; first < n; first += PARTS) {
        const float *panel = panels + first * dim;
        int k = 0;

        for (; k + TILE_ROWS <= directions; k += TILE_ROWS) {
            project_panel(TILE_ROWS, dim, panel, u + k * dim, out + k * ldo + first, ldo);
        }
        for (; k < directions; k++) {
            project_panel(1, dim, panel, u + k * dim, out + k * ldo + first, ldo);
        }
    }
}

void
DSB_KERNEL(dsb_cpu_pairs)(dsb_backend *table)
{
    table->pair_norms = pair_norms;
    table->pair_sum = pair_sum;
    table->project = project;
}
