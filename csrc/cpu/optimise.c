/* Loss, sum of the lanes' gradients, Adam. Sums that decide something run in float64, in an order
 * that is the same for every instruction set: number i adds to partial sum i mod 16. */
#include "cpu/cpu.h"
#include "cpu/lines.h"
#include "cpu/wide.h"

static void
weighted_square(dsb_stream *stream, int rows, int dim, const float *o, int64_t ldo,
                const float *target, int64_t ldt, const float *weight, float scale, float *d_o,
                int64_t lddo, double *loss)
{
    wide sums[GROUPS] = {{{0}, {0}}};

    (void)stream;
    for (int64_t r = 0; r < rows; r++) {
        float factor = 2.0f * scale * weight[r];
        double w = weight[r];

        for (int64_t c = 0; c < dsb_pitch(dim); c += PARTS) {
            DSB_UNROLL
            for (int g = 0; g < GROUPS; g++) {
                int64_t i = c + g * DSB_VL;
                vf d = vf_load(o + r * ldo + i) - vf_load(target + r * ldt + i);
                wide e;

                if (i + DSB_VL > dim) {
                    d = vf_select(vi_first(dim - i), d, (vf){0});
                }
                e = widen(d);
                sums[g].low += e.low * e.low * w;
                sums[g].high += e.high * e.high * w;
                vf_store(d_o + r * lddo + i, d * factor);
            }
        }
    }
    *loss += sum_parts(sums);
}

/* Sums over 2, 4, 8 planes of one vector each: a binary tree. */
DSB_INLINE vf
sum_two(int64_t stride, const float *p, int64_t n)
{
    return n >= DSB_VL ? vf_load(p) + vf_load(p + stride)
                       : vf_load_part(p, n) + vf_load_part(p + stride, n);
}

DSB_INLINE vf
sum_four(int64_t stride, const float *p, int64_t n)
{
    return sum_two(stride, p, n) + sum_two(stride, p + 2 * stride, n);
}

DSB_INLINE vf
sum_eight(int64_t stride, const float *p, int64_t n)
{
    return sum_four(stride, p, n) + sum_four(stride, p + 4 * stride, n);
}

/* More than eight lanes: sums of eight, joined like the digits of a binary counter. */
static vf
sum_many(int lanes, int64_t stride, const float *p, int64_t n)
{
    vf stack[32] = {{0}};
    int top = 0;

    for (int i = 0; i < lanes / 8; i++) {
        vf v = sum_eight(stride, p + (int64_t)i * 8 * stride, n);

        for (int carry = i; carry & 1; carry >>= 1) {
            v = stack[--top] + v;
        }
        stack[top++] = v;
    }
    return stack[0];
}

DSB_INLINE vf
sum_planes(int lanes, int64_t stride, const float *p, int64_t n)
{
    switch (lanes) {
    case 1:
        return n >= DSB_VL ? vf_load(p) : vf_load_part(p, n);
    case 2:
        return sum_two(stride, p, n);
    case 4:
        return sum_four(stride, p, n);
    case 8:
        return sum_eight(stride, p, n);
    default:
        return sum_many(lanes, stride, p, n);
    }
}

DSB_INLINE void
reduce_range(int lanes, int64_t stride, int64_t n, float *planes, wide *sums)
{
    for (int64_t c = 0; c < n; c += PARTS) {
        DSB_UNROLL
        for (int g = 0; g < GROUPS; g++) {
            int64_t i = c + g * DSB_VL, left = n - i;
            float *p = planes + i;
            vf v = {0};
            wide e;

            if (left >= DSB_VL) {
                v = sum_planes(lanes, stride, p, DSB_VL);
                vf_store(p, v);
            } else if (left > 0) {
                v = sum_planes(lanes, stride, p, left);
                vf_store_part(p, v, left);
            }
            e = widen(v);
            sums[g].low += e.low * e.low;
            sums[g].high += e.high * e.high;
        }
    }
}

static void
reduce_lanes(dsb_stream *stream, int lanes, int64_t stride, int64_t n, float *planes,
             double *norm_squared)
{
    wide sums[GROUPS] = {{{0}, {0}}};

    (void)stream;
    switch (lanes) {
    case 1:
        reduce_range(1, stride, n, planes, sums);
        break;
    case 2:
        reduce_range(2, stride, n, planes, sums);
        break;
    case 4:
        reduce_range(4, stride, n, planes, sums);
        break;
    case 8:
        reduce_range(8, stride, n, planes, sums);
        break;
    default:
        reduce_range(lanes, stride, n, planes, sums);
        break;
    }
    *norm_squared = sum_parts(sums);
}

typedef struct adam_factors {
    vf clip, keep1, new1, keep2, new2, rate, root, epsilon, keep_ema, new_ema;
} adam_factors;

/* g' = clip g; m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2;
 * theta -= rate m / (sqrt(v) root + epsilon); ema = e ema + (1 - e) theta. */
DSB_INLINE void
adam_vector(const adam_factors *f, vf g, vf *theta, vf *m, vf *v, vf *ema)
{
    vf step;

    g *= f->clip;
    *m = vf_fma(f->keep1, *m, f->new1 * g);
    *v = vf_fma(f->keep2, *v, f->new2 * g * g);
    step = f->rate * *m / vf_fma(vf_sqrt(*v), f->root, f->epsilon);
    *theta -= step;
    *ema = vf_fma(f->keep_ema, *ema, f->new_ema * *theta);
}

DSB_INLINE void
adam_range(const adam_factors *f, int averages, int64_t n, const float *grad, float *theta,
           float *m, float *v, float *ema)
{
    int64_t i = 0, left;
    vf t, m1, v1, e = {0};

    for (; i + DSB_VL <= n; i += DSB_VL) {
        t = vf_load(theta + i);
        m1 = vf_load(m + i);
        v1 = vf_load(v + i);
        if (averages) {
            e = vf_load(ema + i);
        }
        adam_vector(f, vf_load(grad + i), &t, &m1, &v1, &e);
        vf_store(theta + i, t);
        vf_store(m + i, m1);
        vf_store(v + i, v1);
        if (averages) {
            vf_store(ema + i, e);
        }
    }
    left = n - i;
    if (left == 0) {
        return;
    }
    t = vf_load_part(theta + i, left);
    m1 = vf_load_part(m + i, left);
    v1 = vf_load_part(v + i, left);
    if (averages) {
        e = vf_load_part(ema + i, left);
    }
    adam_vector(f, vf_load_part(grad + i, left), &t, &m1, &v1, &e);
    vf_store_part(theta + i, t, left);
    vf_store_part(m + i, m1, left);
    vf_store_part(v + i, v1, left);
    if (averages) {
        vf_store_part(ema + i, e, left);
    }
}

static void
adam_step(dsb_stream *stream, int64_t n, const dsb_adam *adam, const dsb_step *step,
          const float *grad, float *theta, float *m, float *v, float *ema)
{
    adam_factors f = {
        .clip = vf_splat(step->clip),
        .keep1 = vf_splat(adam->beta1),
        .new1 = vf_splat(1.0f - adam->beta1),
        .keep2 = vf_splat(adam->beta2),
        .new2 = vf_splat(1.0f - adam->beta2),
        .rate = vf_splat(step->rate),
        .root = vf_splat(step->root),
        .epsilon = vf_splat(adam->epsilon),
        .keep_ema = vf_splat(adam->ema),
        .new_ema = vf_splat(1.0f - adam->ema),
    };

    (void)stream;
    if (ema != NULL) {
        adam_range(&f, 1, n, grad, theta, m, v, ema);
    } else {
        adam_range(&f, 0, n, grad, theta, m, v, NULL);
    }
}

/* x - x is zero for numbers, NaN for the rest. */
DSB_INLINE int64_t
first_nonfinite_as(int half, int64_t lines, int64_t n, dsb_slot x)
{
    for (int64_t r = 0; r < lines; r++) {
        int64_t row = r * x.ld;
        vf bad = {0};

        for (int64_t c = 0; c < n; c += DSB_VL) {
            vf v = c + DSB_VL <= n ? vf_load_as(half, x.data, row + c)
                                   : vf_load_part_as(half, x.data, row + c, n - c);

            bad += v - v;
        }
        if (vf_sum(bad) == 0.0f) {
            continue;
        }
        for (int64_t c = 0; c < n; c++) {
            float v = load_one_as(half, x.data, row + c);

            if (v - v != 0.0f) {
                return r * n + c;
            }
        }
    }
    return -1;
}

static int64_t
first_nonfinite(int64_t lines, int64_t n, dsb_slot x)
{
    return x.dtype == DSB_BFLOAT16 ? first_nonfinite_as(1, lines, n, x)
                                   : first_nonfinite_as(0, lines, n, x);
}

void
DSB_KERNEL(dsb_cpu_optimise)(dsb_backend *table)
{
    table->weighted_square = weighted_square;
    table->reduce_lanes = reduce_lanes;
    table->adam_step = adam_step;
    table->first_nonfinite = first_nonfinite;
}
