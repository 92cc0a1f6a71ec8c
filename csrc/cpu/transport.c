/* Sums over pairs of points, exp(shift + height - |x - y|^2), whose matrix is never stored.
 *
 * A block of ROWS rows shares the loads of a vector of columns, and their chains of instructions stand
 * interleaved. Columns are taken in runs: a run stays in a near cache while all rows of a call pass over it,
 * and its float32 sum, of positive terms, is short enough to be good to a few units in the last place. */
#include "cpu/cpu.h"

#include <float.h>

#include "cpu/vector.h"

enum { ROWS = 4, RUN = DSB_TRANSPORT_RUN, VALUES = 4 };

DSB_INLINE vf
vf_most(vf a, vf b)
{
#if DSB_VL == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif DSB_VL == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

/* e = exp(e). Instructions that scale by a power of two take any e up to 1.5e5 in size; without them e is
 * cut off where exp is 0 or infinite in float32. */
DSB_INLINE void
plain_exp(int n, vf *e)
{
#if DSB_VL < 16
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        vf low = vf_most(e[i], vf_splat(-120.0f));

        e[i] = vf_select(low < 100.0f, low, vf_splat(100.0f));
    }
#endif
    vf_exp_negative_many(n, e, e);
}

/* e of ROWS rows from i on, the vectors of columns at j. */
DSB_INLINE void
exponents(int dim, int vectors, const dsb_transport *t, int64_t i, const float *shift, int64_t j,
          vf *e)
{
    DSB_UNROLL
    for (int v = 0; v < vectors; v++) {
        vf height = vf_load(t->height + j + v * DSB_VL);

        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            e[v * ROWS + r] = height + shift[r];
        }
    }
    for (int k = 0; k < dim; k++) {
        const float *x = t->x + k * t->ldx + i;

        DSB_UNROLL
        for (int v = 0; v < vectors; v++) {
            vf y = vf_load(t->y + k * t->ldy + j + v * DSB_VL);

            DSB_UNROLL
            for (int r = 0; r < ROWS; r++) {
                vf gap = y - x[r];

                e[v * ROWS + r] = vf_fma(-gap, gap, e[v * ROWS + r]);
            }
        }
    }
}

/* The shifts of ROWS rows from r on; zeros behind the last. */
DSB_INLINE void
load_shifts(const float *shift, int r, int rows, float block[ROWS])
{
    for (int k = 0; k < ROWS; k++) {
        block[k] = r + k < rows ? shift[r + k] : 0.0f;
    }
}

/* ---- sums ---- */

/* total[r] += w exp(e) over the group of columns at j. */
DSB_INLINE void
add_group(int dim, const dsb_transport *t, int64_t i, const float *shift, int64_t j, vf *total)
{
    enum { AT_ONCE = DSB_VL == 16 ? 2 : 1 };

    DSB_UNROLL
    for (int part = 0; part < DSB_TRANSPORT_UNIT / DSB_VL; part += AT_ONCE) {
        vf e[AT_ONCE * ROWS];

        exponents(dim, AT_ONCE, t, i, shift, j + part * DSB_VL, e);
        DSB_UNROLL
        for (int v = 0; v < AT_ONCE; v++) {
            vf w = vf_load(t->weight + j + (part + v) * DSB_VL);

            plain_exp(ROWS, e + v * ROWS);
            DSB_UNROLL
            for (int r = 0; r < ROWS; r++) {
                total[r] = vf_fma(w, e[v * ROWS + r], total[r]);
            }
        }
    }
}

/* ROWS rows over groups; `groups` NULL: those from `first` on. */
DSB_INLINE void
sum_groups(int dim, const dsb_transport *t, int64_t i, const float *shift, int64_t first,
           const int32_t *groups, int64_t n_groups, double *sum)
{
    enum { GROUPS = RUN / DSB_TRANSPORT_UNIT }; /* of a run */

    for (int64_t g = 0; g < n_groups; g += GROUPS) {
        int64_t last = g + GROUPS < n_groups ? g + GROUPS : n_groups;
        vf total[ROWS] = {{0}};

        for (int64_t k = g; k < last; k++) {
            int64_t group = groups != NULL ? groups[k] : first + k;

            add_group(dim, t, i, shift, group * DSB_TRANSPORT_UNIT, total);
        }
        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            sum[r] += (double)vf_sum(total[r]);
        }
    }
}

static void
sum_rows(const dsb_transport *t, int64_t i, const float *shift, int64_t first,
         const int32_t *groups, int64_t n_groups, double *sum)
{
    switch (t->dim) {
    case 1:
        sum_groups(1, t, i, shift, first, groups, n_groups, sum);
        break;
    case 2:
        sum_groups(2, t, i, shift, first, groups, n_groups, sum);
        break;
    case 3:
        sum_groups(3, t, i, shift, first, groups, n_groups, sum);
        break;
    default:
        sum_groups(t->dim, t, i, shift, first, groups, n_groups, sum);
    }
}

static void
transport_sum(dsb_stream *stream, const dsb_transport *t, int64_t first, int rows,
              const float *shift, int64_t n_groups, const int32_t *groups, double *sum)
{
    enum { GROUPS = RUN / DSB_TRANSPORT_UNIT };

    (void)stream;
    for (int r = 0; r < rows; r++) {
        sum[r] = 0.0;
    }
    for (int64_t g = 0; g < n_groups; g += GROUPS) {
        int64_t count = n_groups - g < GROUPS ? n_groups - g : GROUPS;

        for (int r = 0; r < rows; r += ROWS) {
            float block[ROWS];
            double part[ROWS] = {0.0};

            load_shifts(shift, r, rows, block);
            sum_rows(t, first + r, block, 0, groups + g, count, part);
            for (int k = 0; k < ROWS && r + k < rows; k++) {
                sum[r + k] += part[k];
            }
        }
    }
}

static void
transport_runs(dsb_stream *stream, const dsb_transport *t, int64_t first, int rows,
               const float *shift, double *runs)
{
    enum { GROUPS = RUN / DSB_TRANSPORT_UNIT };
    int64_t n_runs = dsb_transport_runs(t->ldy), all = t->ldy / DSB_TRANSPORT_UNIT;

    (void)stream;
    for (int64_t run = 0; run < n_runs; run++) {
        int64_t from = run * GROUPS, count = all - from < GROUPS ? all - from : GROUPS;

        for (int r = 0; r < rows; r += ROWS) {
            float block[ROWS];
            double part[ROWS] = {0.0};

            load_shifts(shift, r, rows, block);
            sum_rows(t, first + r, block, from, NULL, count, part);
            for (int k = 0; k < ROWS && r + k < rows; k++) {
                runs[(r + k) * n_runs + run] = part[k];
            }
        }
    }
}

/* ---- the largest exponent ---- */

DSB_INLINE void
most_run(int dim, int vectors, const dsb_transport *t, int64_t i, const float *shift, int64_t first,
         int64_t last, vf *most)
{
    for (int64_t j = first; j < last; j += vectors * DSB_VL) {
        vf e[2 * ROWS];

        exponents(dim, vectors, t, i, shift, j, e);
        DSB_UNROLL
        for (int v = 0; v < vectors; v++) {
            vi used = vf_load(t->weight + j + v * DSB_VL) > 0.0f;

            DSB_UNROLL
            for (int r = 0; r < ROWS; r++) {
                most[r] = vf_most(most[r], vf_select(used, e[v * ROWS + r], vf_splat(-FLT_MAX)));
            }
        }
    }
}

static void
transport_most(dsb_stream *stream, const dsb_transport *t, int64_t first, int rows,
               const float *shift, float *most)
{
    (void)stream;
    for (int r = 0; r < rows; r++) {
        most[r] = -FLT_MAX;
    }
    for (int64_t a = 0; a < t->ldy; a += RUN) {
        int64_t b = a + RUN < t->ldy ? a + RUN : t->ldy;

        for (int r = 0; r < rows; r += ROWS) {
            float block[ROWS];
            vf top[ROWS];

            load_shifts(shift, r, rows, block);
            for (int k = 0; k < ROWS; k++) {
                top[k] = vf_splat(-FLT_MAX);
            }
            if (t->dim == 2) {
                most_run(2, 1, t, first + r, block, a, b, top);
            } else {
                most_run(t->dim, 2, t, first + r, block, a, b, top);
            }
            for (int k = 0; k < ROWS && r + k < rows; k++) {
                for (int lane = 0; lane < DSB_VL; lane++) {
                    most[r + k] = top[k][lane] > most[r + k] ? top[k][lane] : most[r + k];
                }
            }
        }
    }
}

/* ---- weighted means, and single terms ---- */

/* Terms of ROWS rows over columns first .. last - 1, RUN apart. */
DSB_INLINE void
terms_run(const dsb_transport *t, int64_t i, const float *shift, int64_t first, int64_t last,
          float *terms)
{
    for (int64_t j = first; j < last; j += DSB_VL) {
        vf e[ROWS], w = vf_load(t->weight + j);

        exponents(t->dim, 1, t, i, shift, j, e);
        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            e[r] = vf_most(e[r], vf_splat(-120.0f));
        }
        plain_exp(ROWS, e);
        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            vf_store(terms + r * RUN + j - first, w * e[r]);
        }
    }
}

/* ROWS times VALUES sums over a run of n columns; values are ldv apart. */
DSB_INLINE void
products_run(int count, const float *terms, const float *values, int64_t ldv, int64_t n,
             float sums[ROWS][VALUES])
{
    vf total[ROWS][VALUES] = {{{0}}};

    for (int64_t j = 0; j < n; j += DSB_VL) {
        vf p[ROWS];

        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            p[r] = vf_load(terms + r * RUN + j);
        }
        DSB_UNROLL
        for (int v = 0; v < count; v++) {
            vf value = vf_load(values + v * ldv + j);

            DSB_UNROLL
            for (int r = 0; r < ROWS; r++) {
                total[r][v] = vf_fma(p[r], value, total[r][v]);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        for (int v = 0; v < count; v++) {
            sums[r][v] = vf_sum(total[r][v]);
        }
    }
}

/* Adds what a run of columns gives to `live` rows. */
static void
mean_run(const dsb_transport *t, const float *terms, int live, int64_t first, int64_t last, int n,
         const float *values, double *sum, double *mean)
{
    for (int r = 0; r < live; r++) {
        vf total = {0};

        for (int64_t j = 0; j < last - first; j += DSB_VL) {
            total += vf_load(terms + r * RUN + j);
        }
        sum[r] += (double)vf_sum(total);
    }
    for (int v = 0; v < n; v += VALUES) {
        int count = n - v < VALUES ? n - v : VALUES;
        const float *from = values + v * t->ldy + first;
        float sums[ROWS][VALUES];

        if (count == VALUES) {
            products_run(VALUES, terms, from, t->ldy, last - first, sums);
        } else {
            for (int k = 0; k < count; k++) {
                float one[ROWS][VALUES];

                products_run(1, terms, from + k * t->ldy, t->ldy, last - first, one);
                for (int r = 0; r < ROWS; r++) {
                    sums[r][k] = one[r][0];
                }
            }
        }
        for (int r = 0; r < live; r++) {
            for (int k = 0; k < count; k++) {
                mean[r * n + v + k] += (double)sums[r][k];
            }
        }
    }
}

static void
transport_mean(dsb_stream *stream, const dsb_transport *t, int64_t first, int rows,
               const float *shift, int n, const float *values, double *sum, double *mean)
{
    float terms[ROWS * RUN];

    (void)stream;
    for (int r = 0; r < rows; r++) {
        sum[r] = 0.0;
        for (int v = 0; v < n; v++) {
            mean[r * n + v] = 0.0;
        }
    }
    for (int64_t a = 0; a < t->ldy; a += RUN) {
        int64_t b = a + RUN < t->ldy ? a + RUN : t->ldy;

        for (int r = 0; r < rows; r += ROWS) {
            float block[ROWS];
            int live = rows - r < ROWS ? rows - r : ROWS;

            load_shifts(shift, r, rows, block);
            terms_run(t, first + r, block, a, b, terms);
            mean_run(t, terms, live, a, b, n, values, sum + r, mean + r * n);
        }
    }
}

static void
transport_terms(dsb_stream *stream, const dsb_transport *t, int64_t row, float shift,
                int64_t column, int n, float *terms)
{
    float block[ROWS], all[ROWS * RUN];
    int64_t i = row / ROWS * ROWS;

    (void)stream;
    for (int k = 0; k < ROWS; k++) {
        block[k] = shift;
    }
    terms_run(t, i, block, column, column + n, all);
    memcpy(terms, all + (row - i) * RUN, sizeof *terms * (size_t)n);
}

void
DSB_KERNEL(dsb_cpu_transport)(dsb_backend *table)
{
    table->transport_sum = transport_sum;
    table->transport_runs = transport_runs;
    table->transport_most = transport_most;
    table->transport_mean = transport_mean;
    table->transport_terms = transport_terms;
}
