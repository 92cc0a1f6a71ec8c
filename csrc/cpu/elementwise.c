/* Elementwise operations over padded rows: whole vectors up to the pitch, no tails. */
#include "cpu/cpu.h"

#include <assert.h>
#include <math.h>

#include "cpu/lines.h"

/* Lines that lie one after another without gaps are one long line. */
static void
join_lines(int64_t *lines, int64_t *columns, int64_t ld1, int64_t ld2, int64_t ld3)
{
    if (ld1 == *columns && ld2 == *columns && ld3 == *columns) {
        *columns *= *lines;
        *lines = 1;
    }
}

DSB_INLINE void
activation_as(int half, dsb_activation act, float slope, int64_t lines, int64_t columns, dsb_slot x,
              dsb_slot y)
{
    vf factor = vf_splat(act == DSB_LEAKY_RELU ? slope : 1.0f);

    for (int64_t r = 0; r < lines; r++) {
        int64_t from = r * x.ld, to = r * y.ld;

        if (act == DSB_SILU) {
            for (int64_t c = 0; c < columns; c += DSB_VL) {
                vf_store_as(half, y.data, to + c, vf_silu(vf_load_as(half, x.data, from + c)));
            }
        } else {
            for (int64_t c = 0; c < columns; c += DSB_VL) {
                vf v = vf_load_as(half, x.data, from + c);

                vf_store_as(half, y.data, to + c, vf_leaky_relu(v, factor));
            }
        }
    }
}

static void
activation(dsb_stream *stream, dsb_activation act, float slope, int64_t lines, int n, dsb_slot x,
           dsb_slot y)
{
    int64_t columns = dsb_pitch(n);

    (void)stream;
    assert(x.dtype == y.dtype);
    join_lines(&lines, &columns, x.ld, y.ld, y.ld);
    if (x.dtype == DSB_BFLOAT16) {
        activation_as(1, act, slope, lines, columns, x, y);
    } else {
        activation_as(0, act, slope, lines, columns, x, y);
    }
}

/* d/dx of LeakyReLU is 1 where x > 0, which is where y > 0 (slope > 0), else the slope. */
DSB_INLINE void
activation_backward_as(int half, dsb_activation act, float slope, int64_t lines, int64_t columns,
                       dsb_slot saved, dsb_slot dy, int beta, dsb_slot dx)
{
    vf factor = vf_splat(act == DSB_LEAKY_RELU ? slope : 1.0f);

    for (int64_t r = 0; r < lines; r++) {
        int64_t s = r * saved.ld, from = r * dy.ld, to = r * dx.ld;

        for (int64_t c = 0; c < columns; c += DSB_VL) {
            vf d = vf_load_as(half, dy.data, from + c), at = vf_load_as(half, saved.data, s + c);

            if (act == DSB_SILU) {
                d *= vf_silu_slope(at);
            } else {
                d = vf_select(at > 0.0f, d, d * factor);
            }
            vf_store_as(half, dx.data, to + c, beta ? vf_load_as(half, dx.data, to + c) + d : d);
        }
    }
}

static void
activation_backward(dsb_stream *stream, dsb_activation act, float slope, int64_t lines, int n,
                    dsb_slot saved, dsb_slot dy, int beta, dsb_slot dx)
{
    int64_t columns = dsb_pitch(n);

    (void)stream;
    assert(saved.dtype == dx.dtype && dy.dtype == dx.dtype);
    join_lines(&lines, &columns, saved.ld, dy.ld, dx.ld);
    if (dx.dtype == DSB_BFLOAT16) {
        activation_backward_as(1, act, slope, lines, columns, saved, dy, beta, dx);
    } else {
        activation_backward_as(0, act, slope, lines, columns, saved, dy, beta, dx);
    }
}

DSB_INLINE void
add_as(int half, int64_t lines, int64_t columns, dsb_slot a, dsb_slot b, dsb_slot y)
{
    for (int64_t r = 0; r < lines; r++) {
        int64_t from_a = r * a.ld, from_b = r * b.ld, to = r * y.ld;

        for (int64_t c = 0; c < columns; c += DSB_VL) {
            vf_store_as(half, y.data, to + c,
                        vf_load_as(half, a.data, from_a + c) +
                            vf_load_as(half, b.data, from_b + c));
        }
    }
}

static void
add(dsb_stream *stream, int64_t lines, int n, dsb_slot a, dsb_slot b, dsb_slot y)
{
    int64_t columns = dsb_pitch(n);

    (void)stream;
    assert(a.dtype == y.dtype && b.dtype == y.dtype);
    join_lines(&lines, &columns, a.ld, b.ld, y.ld);
    if (y.dtype == DSB_BFLOAT16) {
        add_as(1, lines, columns, a, b, y);
    } else {
        add_as(0, lines, columns, a, b, y);
    }
}

DSB_INLINE void
copy_as(int half, int64_t lines, int n, dsb_slot x, int beta, dsb_slot y)
{
    int whole = n / DSB_VL * DSB_VL, rest = n - whole;

    for (int64_t r = 0; r < lines; r++) {
        int64_t from = r * x.ld, to = r * y.ld;

        for (int c = 0; c < whole; c += DSB_VL) {
            vf v = vf_load_as(half, x.data, from + c);

            vf_store_as(half, y.data, to + c, beta ? vf_load_as(half, y.data, to + c) + v : v);
        }
        if (rest > 0) {
            vf v = vf_load_part_as(half, x.data, from + whole, rest);

            v = beta ? vf_load_part_as(half, y.data, to + whole, rest) + v : v;
            vf_store_part_as(half, y.data, to + whole, v, rest);
        }
    }
}

static void
copy(dsb_stream *stream, int64_t lines, int n, dsb_slot x, int beta, dsb_slot y)
{
    (void)stream;
    assert(x.dtype == y.dtype);
    if (y.dtype == DSB_BFLOAT16) {
        copy_as(1, lines, n, x, beta, y);
    } else {
        copy_as(0, lines, n, x, beta, y);
    }
}

static void
zero(dsb_stream *stream, int64_t lines, int n, dsb_slot y)
{
    int64_t size = dsb_dtype_bytes(y.dtype);

    (void)stream;
    for (int64_t r = 0; r < lines; r++) {
        memset((char *)y.data + r * y.ld * size, 0, (size_t)(n * size));
    }
}

/* sin(x + quarter pi / 2): x is brought to [-pi/4, pi/4] by a pi/2 of three parts, the first two
 * short enough for exact products up to |x| ~ 10^4; then the Cephes polynomials, as in
 * base/philox.h. */
DSB_INLINE vf
sine(vf x, vi quarter)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vf t = vf_fma(x, vf_splat(0.636619772367581343f), vf_splat(magic));
    vf k = t - magic;
    vi q = (vi)t + quarter;
    vf r = vf_fma(k, vf_splat(-1.5703125f), x);
    vf r2, s, c;

    r = vf_fma(k, vf_splat(-4.837512969970703125e-4f), r);
    r = vf_fma(k, vf_splat(-7.54978995489188216e-8f), r);
    r2 = r * r;
    s = vf_fma(r2, vf_splat(-1.9515295891e-4f), vf_splat(8.3321608736e-3f));
    s = vf_fma(s, r2, vf_splat(-1.6666654611e-1f));
    s = vf_fma(s * r2, r, r);
    c = vf_fma(r2, vf_splat(2.443315711809948e-5f), vf_splat(-1.388731625493765e-3f));
    c = vf_fma(c, r2, vf_splat(4.166664568298827e-2f));
    c = vf_fma(c * r2, r2, vf_fma(r2, vf_splat(-0.5f), vf_splat(1.0f)));
    s = vf_select((q & 1) == 1, c, s);
    return (vf)((vi)s ^ (q & 2) << 30);
}

/* Frequencies and phases (in quarter turns) of columns c .. c + DSB_VL - 1; zero beyond n. A
 * frequency is the one before times a constant, in float64: exact to 10^-13 over any width in use.
 * */
static void
embedding_columns(dsb_embedding kind, int n, int c, float *frequency, int32_t *quarter)
{
    int half = n / 2, steps = kind == DSB_EMBED_SIN_COS ? half - 1 : half;
    double rate = steps > 0 ? -log(10000.0) / steps : 0.0, ratio = exp(rate), f = 0.0;

    for (int lane = 0; lane < DSB_VL; lane++) {
        int column = c + lane, i = column % half;

        f = lane == 0 || i == 0 ? exp(rate * i) : f * ratio;
        frequency[lane] = column < n ? (float)f : 0.0f;
        quarter[lane] = column < n && (kind == DSB_EMBED_COS_SIN) == (column < half);
    }
}

static void
embed(dsb_stream *stream, dsb_embedding kind, int rows, int n, const float *t, float *y,
      int64_t ldy)
{
    (void)stream;
    for (int64_t c = 0; c < dsb_pitch(n); c += DSB_VL) {
        float frequency[DSB_VL];
        int32_t quarter[DSB_VL];
        vf f;
        vi q;

        embedding_columns(kind, n, (int)c, frequency, quarter);
        memcpy(&f, frequency, sizeof f);
        memcpy(&q, quarter, sizeof q);
        for (int64_t r = 0; r < rows; r++) {
            vf_store(y + r * ldy + c, sine(f * t[r], q));
        }
    }
}

void
DSB_KERNEL(dsb_cpu_elementwise)(dsb_backend *table)
{
    table->activation = activation;
    table->activation_backward = activation_backward;
    table->add = add;
    table->copy = copy;
    table->zero = zero;
    table->embed = embed;
}
