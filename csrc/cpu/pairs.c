/* Sums over all pairs of two sets of points, and projections of points on directions.
 *
 * Points are read in panels of 16, coordinate by coordinate, so that a vector holds one coordinate of
 * neighbouring points; a tile is some rows against one panel, in eight vectors:
 *
 *     rows x[0], x[1], ...  (broadcast)        panel [dim][16]
 *     d = y - x,  r2 += d d  over coordinates,  f(r2) summed over the rows,  then added in float64
 *
 * Squared distances are sums of squared differences, never |x|^2 + |y|^2 - 2 <x, y>, which loses near
 * pairs far from the origin. */
#include "cpu/cpu.h"
#include "cpu/wide.h"

enum { TILE_ROWS = DSB_VL / 2, TILE = TILE_ROWS * GROUPS };

/* sqrt(r2) of `n` vectors, to within 2 units of the last place. */
DSB_INLINE void
roots(int n, vf *r2)
{
#if DSB_VL == 16
    /* r2 times an estimate of 1 / sqrt(r2) to 14 bits and a step of Newton's: a third of the instruction's
     * time. The floor keeps 0 times infinity away; what lies below counts as 0. */
    const vf half = vf_splat(0.5f), least = vf_splat(0x1p-120f);
    vf e[TILE], h[TILE];

    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        e[i] = (vf)_mm512_rsqrt14_ps(_mm512_max_ps((__m512)r2[i], (__m512)least));
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        r2[i] *= e[i];
        h[i] = e[i] * half;
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        h[i] = vf_fma(-r2[i], h[i], half);
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        r2[i] = vf_fma(r2[i], h[i], r2[i]);
    }
#else
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        r2[i] = vf_sqrt(r2[i]);
    }
#endif
}

/* exp(-scale r2) of `n` vectors. */
DSB_INLINE void
kernels(int n, vf scale, vf *r2)
{
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        r2[i] = vf_below(r2[i] * scale);
    }
    DSB_UNROLL
    for (int i = 0; i < n; i += VF_MANY) {
        vf_exp_negative_many(n - i < VF_MANY ? n - i : VF_MANY, r2 + i, r2 + i);
    }
}

/* Adds f of `rows` rows against the first `left` points of a panel to the sums. */
DSB_INLINE void
tile(dsb_pair_function f, int rows, float scale, int64_t dim, const float *x, const float *panel,
     int64_t left, wide *sums)
{
    vf r2[TILE];

    DSB_UNROLL
    for (int i = 0; i < rows * GROUPS; i++) {
        r2[i] = (vf){0};
    }
    for (int64_t c = 0; c < dim; c++) {
        DSB_UNROLL
        for (int g = 0; g < GROUPS; g++) {
            vf y = vf_load(panel + c * PARTS + g * DSB_VL);

            DSB_UNROLL
            for (int r = 0; r < rows; r++) {
                vf d = y - vf_splat(x[r * dim + c]);

                r2[g * rows + r] = vf_fma(d, d, r2[g * rows + r]);
            }
        }
    }
    if (f == DSB_PAIR_DISTANCE) {
        roots(rows * GROUPS, r2);
    } else {
        kernels(rows * GROUPS, vf_splat(scale), r2);
    }
    DSB_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        vf sum = r2[g * rows];
        wide w;

        DSB_UNROLL
        for (int r = 1; r < rows; r++) {
            sum += r2[g * rows + r];
        }
        if (left < PARTS) {
            sum = vf_select(vi_first(left - g * DSB_VL), sum, (vf){0});
        }
        w = widen(sum);
        sums[g].low += w.low;
        sums[g].high += w.high;
    }
}

DSB_INLINE double
pair_sum_as(dsb_pair_function f, float scale, int rows, int64_t dim, const float *x,
            int64_t columns, const float *panels)
{
    wide sums[GROUPS] = {{{0}, {0}}};

    for (int64_t first = 0; first < columns; first += PARTS) {
        const float *panel = panels + first * dim;
        int r = 0;

        for (; r + TILE_ROWS <= rows; r += TILE_ROWS) {
            tile(f, TILE_ROWS, scale, dim, x + r * dim, panel, columns - first, sums);
        }
        for (; r < rows; r++) {
            tile(f, 1, scale, dim, x + r * dim, panel, columns - first, sums);
        }
    }
    return sum_parts(sums);
}

/* With the dimension a constant the loop over coordinates disappears: worth it where it is short. */
#define BY_DIM(f)                                                    \
    switch (dim) {                                                   \
    case 1:                                                          \
        return pair_sum_as(f, scale, rows, 1, x, columns, panels);   \
    case 2:                                                          \
        return pair_sum_as(f, scale, rows, 2, x, columns, panels);   \
    case 3:                                                          \
        return pair_sum_as(f, scale, rows, 3, x, columns, panels);   \
    default:                                                         \
        return pair_sum_as(f, scale, rows, dim, x, columns, panels); \
    }

static double
pair_sum(dsb_stream *stream, dsb_pair_function f, float scale, int rows, int64_t dim,
         const float *x, int64_t columns, const float *panels)
{
    (void)stream;
    if (f == DSB_PAIR_DISTANCE) {
        BY_DIM(DSB_PAIR_DISTANCE)
    }
    BY_DIM(DSB_PAIR_GAUSSIAN)
}

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
    table->pair_sum = pair_sum;
    table->project = project;
}
