/* What happens between two calls of a net: drifts, steps, and the rows of the cache. */
#include "cpu/cpu.h"

#include <assert.h>

#include "base/philox.h"
#include "cpu/vector.h"
#include "cpu/wide.h"

/* A vector of one row [n] that has no padding. */
DSB_INLINE vf
load_row(const float *row, int64_t c, int64_t n)
{
    return c + DSB_VL <= n ? vf_load(row + c) : vf_load_part(row + c, n - c);
}

/* The same, out: writes columns c .. n-1 at most. */
DSB_INLINE void
store_row(float *row, int64_t c, int64_t n, vf v)
{
    if (c + DSB_VL <= n) {
        vf_store(row + c, v);
    } else {
        vf_store_part(row + c, v, n - c);
    }
}

/* A vector of a row of bytes. */
DSB_INLINE vf
load_bytes(const uint8_t *row, int64_t c, int64_t n)
{
    uint8_t part[DSB_VL] = {0};

    if (c + DSB_VL <= n) {
        return vf_load_bytes(row + c);
    }
    for (int i = 0; i < n - c; i++) {
        part[i] = row[c + i];
    }
    return vf_load_bytes(part);
}

static void
scale_row(const dsb_rows *data, int64_t id, float *x)
{
    int64_t dim = data->dim;
    const uint8_t *bytes = (const uint8_t *)data->data + id * dim;
    const float *floats = (const float *)data->data + id * dim;
    vf scale = vf_splat(data->scale), shift = vf_splat(data->shift);

    for (int64_t c = 0; c < dim; c += DSB_VL) {
        vf v = data->dtype == DSB_UINT8 ? load_bytes(bytes, c, dim) : load_row(floats, c, dim);

        store_row(x, c, dim, vf_fma(v, scale, shift));
    }
}

static void
gather_rows(dsb_stream *stream, const dsb_rows *data, int rows, const int64_t *ids, float *x,
            int64_t ldx)
{
    int64_t width = dsb_pitch(data->dim) < ldx ? dsb_pitch(data->dim) : ldx;

    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        scale_row(data, ids[r], x + r * ldx);
        for (int64_t c = data->dim; c < width; c++) {
            x[r * ldx + c] = 0.0f;
        }
    }
}

static void
reference_drift(dsb_stream *stream, int rows, int dim, const float *m, float inverse_v,
                const float *x, int64_t ldx, float *o, int64_t ldo)
{
    (void)stream;
    for (int64_t c = 0; c < dsb_pitch(dim); c += DSB_VL) {
        vf mean = load_row(m, c, dim);

        for (int64_t r = 0; r < rows; r++) {
            vf_store(o + r * ldo + c, (mean - vf_load(x + r * ldx + c)) * inverse_v);
        }
    }
}

static void
mean_from_output(dsb_stream *stream, dsb_output kind, int rows, int dim, float g, const float *x,
                 int64_t ldx, const float *o, int64_t ldo, float *mean, int64_t ldm)
{
    vf factor = vf_splat(kind == DSB_OUTPUT_STEP ? 1.0f : g);

    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < dsb_pitch(dim); c += DSB_VL) {
            vf out = vf_load(o + r * ldo + c);

            if (kind != DSB_OUTPUT_MEAN) {
                out = vf_fma(factor, out, vf_load(x + r * ldx + c));
            }
            vf_store(mean + r * ldm + c, out);
        }
    }
}

/* One row of y = a x + b z + c m, each term after the first fused. */
DSB_INLINE void
combine_row(int dim, const float *factors, const float *x, const float *z, const float *m, float *y)
{
    vf a = vf_splat(factors[0]), b = vf_splat(factors[1]), c = vf_splat(factors[2]);

    for (int64_t i = 0; i < dsb_pitch(dim); i += DSB_VL) {
        vf v = a * vf_load(x + i);

        if (z != NULL) {
            v = vf_fma(b, vf_load(z + i), v);
        }
        if (m != NULL) {
            v = vf_fma(c, load_row(m, i, dim), v);
        }
        vf_store(y + i, v);
    }
}

static void
combine(dsb_stream *stream, int rows, int dim, float a, const float *x, int64_t ldx, float b,
        const float *z, int64_t ldz, float c, const float *m, float *y, int64_t ldy)
{
    const float factors[3] = {a, b, c};

    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        combine_row(dim, factors, x + r * ldx, z != NULL ? z + r * ldz : NULL, m, y + r * ldy);
    }
}

static void
combine_by_step(dsb_stream *stream, int rows, int dim, const float *table, const int32_t *k,
                const float *x, int64_t ldx, const float *z, int64_t ldz, const float *m, float *y,
                int64_t ldy)
{
    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        combine_row(dim, table + 3 * (int64_t)k[r], x + r * ldx, z != NULL ? z + r * ldz : NULL, m,
                    y + r * ldy);
    }
}

static void
scale_columns(dsb_stream *stream, int rows, int dim, const float *w, const float *x, int64_t ldx,
              float *y, int64_t ldy)
{
    (void)stream;
    for (int64_t c = 0; c < dsb_pitch(dim); c += DSB_VL) {
        vf factor = load_row(w, c, dim);

        for (int64_t r = 0; r < rows; r++) {
            vf_store(y + r * ldy + c, factor * vf_load(x + r * ldx + c));
        }
    }
}

/* A product of two float32 is exact in float64, so that contraction changes no bit. */
static void
sum_products(dsb_stream *stream, int rows, int dim, const float *x, int64_t ldx, const float *y,
             int64_t ldy, double *sums)
{
    (void)stream;
    for (int64_t c = 0; c < dsb_pitch(dim); c += DSB_VL) {
        wide sum;

        memcpy(&sum, sums + c, sizeof sum);
        for (int64_t r = 0; r < rows; r++) {
            wide a = widen(vf_load(x + r * ldx + c)), b = widen(vf_load(y + r * ldy + c));

            sum.low += a.low * b.low;
            sum.high += a.high * b.high;
        }
        memcpy(sums + c, &sum, sizeof sum);
    }
}

/* ---- the window ---- */

static void
window_put(dsb_stream *stream, dsb_output kind, int rows, const float *x, int64_t ldx,
           const float *mean, int64_t ldm, const float *table_gtw, const int32_t *k,
           const uint32_t *ids, const dsb_window *window, int64_t row0, int64_t stride)
{
    int64_t dim = window->dim, length = dsb_window_row(dim);

    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        const float *gtw = k != NULL ? table_gtw + 3 * (int64_t)k[r] : table_gtw;
        float *row = window->rows + (row0 + r * stride) * length, *target = row + dim;
        vf g = vf_splat(kind == DSB_OUTPUT_DRIFT ? gtw[0] : 1.0f);
        uint32_t id = ids != NULL ? ids[r] : 0;

        for (int64_t c = 0; c < dim; c += DSB_VL) {
            vf at = load_row(x + r * ldx, c, dim), to = load_row(mean + r * ldm, c, dim);

            if (kind != DSB_OUTPUT_MEAN) {
                to = (to - at) / g;
            }
            store_row(row, c, dim, at);
            store_row(target, c, dim, to);
        }
        target[dim] = gtw[1];
        target[dim + 1] = gtw[2];
        memcpy(target + dim + 2, &id, sizeof id);
    }
}

enum { AHEAD = 64 }; /* rows that are found, and asked for, before the first of them is read */

/* One pass through the network of dsb_permute (base/philox.c) for `n` numbers below 2^32, in place;
 * a plain loop that becomes vectors, as the order of reading is needed for every row of training. */
static void
scramble(const dsb_permutation *p, int n, uint32_t *numbers)
{
    uint32_t low_mask = ((uint32_t)1 << p->low_bits) - 1,
             high_mask = ((uint32_t)1 << p->high_bits) - 1;
    uint32_t low_bits = (uint32_t)p->low_bits;

    for (int i = 0; i < n; i++) {
        uint32_t low = numbers[i] & low_mask, high = numbers[i] >> low_bits, x;

        DSB_UNROLL
        for (int round = 0; round < 8; round++) {
            x = dsb_mix(round & 1 ? low : high, p->keys[round]);
            if (round & 1) {
                high ^= x & high_mask;
            } else {
                low ^= x & low_mask;
            }
        }
        numbers[i] = high << low_bits | low;
    }
}

/* numbers[i] = dsb_permute(p, numbers[i]): those that land outside are collected and go on. */
static void
permute(const dsb_permutation *p, int n, uint32_t *numbers)
{
    uint32_t walking[AHEAD];
    int place[AHEAD], left = 0;

    scramble(p, n, numbers);
    for (int i = 0; i < n; i++) {
        walking[left] = numbers[i];
        place[left] = i;
        left += numbers[i] >= p->n;
    }
    while (left > 0) {
        int still = 0;

        scramble(p, left, walking);
        for (int i = 0; i < left; i++) {
            uint32_t number = walking[i];
            int at = place[i];

            numbers[at] = number;
            walking[still] = number;
            place[still] = at;
            still += number >= p->n;
        }
        left = still;
    }
}

/* Units number first .. first + n - 1 in the order of reading. Pass 0 reads the first `units` of a
 * permutation of all that is stored; later passes read the same set, shuffled once more. */
static void
find_units(const dsb_read_order *order, const dsb_permutation *stored, int64_t first, int n,
           uint32_t *units)
{
    dsb_permutation again;

    for (int done = 0; done < n;) {
        int64_t pass = (first + done) / order->units, i = (first + done) % order->units;
        int count = order->units - i < n - done ? (int)(order->units - i) : n - done;

        for (int j = 0; j < count; j++) {
            units[done + j] = (uint32_t)(i + j);
        }
        if (pass > 0) {
            dsb_permutation_init(&again, (uint64_t)order->units, order->seed, order->stream,
                                 order->window | (uint32_t)pass << 24);
            permute(&again, count, units + done);
        }
        done += count;
    }
    permute(stored, n, units);
}

static void
read_row(const float *row, int64_t dim, float *x, float *target)
{
    for (int64_t c = 0; c < dsb_pitch(dim); c += DSB_VL) {
        vf_store(x + c, load_row(row, c, dim));
        vf_store(target + c, load_row(row + dim, c, dim));
    }
}

static void
window_get(dsb_stream *stream, const dsb_window *window, const dsb_read_order *order,
           int64_t position, int rows, float *x, int64_t ldx, float *target, int64_t ldt, float *t,
           float *weight, uint32_t *ids)
{
    int64_t dim = window->dim, length = dsb_window_row(dim), group = order->group;
    dsb_permutation stored;

    (void)stream;
    assert(order->stored <= UINT32_MAX && position % group == 0 && rows % group == 0);
    dsb_permutation_init(&stored, (uint64_t)order->stored, order->seed, order->stream,
                         order->window);
    for (int64_t r0 = 0; r0 < rows; r0 += AHEAD * group) {
        int units = rows - r0 < AHEAD * group ? (int)((rows - r0) / group) : AHEAD;
        uint32_t found[AHEAD];

        find_units(order, &stored, (position + r0) / group, units, found);
        for (int i = 0; i < units; i++) {
            const float *from = window->rows + found[i] * group * length;

            __builtin_prefetch(from);
            __builtin_prefetch(from + group * length - 1);
        }
        for (int64_t i = 0; i < units * group; i++) {
            const float *from = window->rows + (found[i / group] * group + i % group) * length;
            int64_t r = r0 + i;

            read_row(from, dim, x + r * ldx, target + r * ldt);
            t[r] = from[2 * dim];
            weight[r] = from[2 * dim + 1];
            if (ids != NULL) {
                memcpy(&ids[r], from + 2 * dim + 2, sizeof ids[r]);
            }
        }
    }
}

void
DSB_KERNEL(dsb_cpu_simulate)(dsb_backend *table)
{
    table->gather_rows = gather_rows;
    table->reference_drift = reference_drift;
    table->mean_from_output = mean_from_output;
    table->combine = combine;
    table->combine_by_step = combine_by_step;
    table->scale_columns = scale_columns;
    table->sum_products = sum_products;
    table->window_put = window_put;
    table->window_get = window_get;
}
