/* Linear layers: packing, forward, gradient of the input, gradient of the weights.
 *
 * Every product runs in tiles of accumulators that stay in registers. An element's operations come in
 * one order (start, then k = 0, 1, 2, ... fused), whatever the tile that it falls into, so that a row's
 * bits do not depend on the rows beside it.
 */
#include "cpu/cpu.h"
#include "cpu/vector.h"

#include <stdbool.h>

enum {
    PV = DSB_PANEL / DSB_VL, /* vectors in a panel */
#if DSB_VL == 16
    TILE = 8,    /* rows of a tile of the forward pass, outputs of one of the weight gradient */
    PANELS = 2,  /* panels of a tile */
#elif DSB_VL == 8
    TILE = 6,
    PANELS = 1,
#elif defined(__aarch64__)
    TILE = 5,
    PANELS = 1,
#else
    TILE = 3,
    PANELS = 1,
#endif
    WIDTH = PANELS * PV, /* vectors of a full tile */
    NARROW = 4,          /* up to so many outputs a layer's weights are kept as rows, not as panels */
};

typedef struct matrix {
    const float *p;
    int64_t ld;
} matrix;

static bool
is_narrow(int n_in, int n_out)
{
    return n_out <= NARROW && n_in >= DSB_PANEL;
}

/* ---- packing ---- */

/* One 128-bit piece from each of the rows 0, 4, 8, ... that make a vector. */
DSB_INLINE vf
load_pieces(const float *w, int64_t ld)
{
#if DSB_VL == 4
    (void)ld;
    return *(const v4f_loose *)w;
#else
    typedef float v8f __attribute__((vector_size(32)));
    v4f a = *(const v4f_loose *)w, b = *(const v4f_loose *)(w + 4 * ld);
    v8f low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#if DSB_VL == 8
    return low;
#else
    v4f c = *(const v4f_loose *)(w + 8 * ld), d = *(const v4f_loose *)(w + 12 * ld);
    v8f high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);

    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

/* The same shuffle in every 128-bit piece of two vectors. */
#if DSB_VL == 16
#define PIECES(v, w, a, b, c, d)                                                               \
    __builtin_shufflevector(v, w, a, b, c, d, (a) + 4, (b) + 4, (c) + 4, (d) + 4, (a) + 8, (b) + 8, \
                            (c) + 8, (d) + 8, (a) + 12, (b) + 12, (c) + 12, (d) + 12)
#elif DSB_VL == 8
#define PIECES(v, w, a, b, c, d) \
    __builtin_shufflevector(v, w, a, b, c, d, (a) + 4, (b) + 4, (c) + 4, (d) + 4)
#else
#define PIECES(v, w, a, b, c, d) __builtin_shufflevector(v, w, a, b, c, d)
#endif

/* Columns k .. k+3 of DSB_VL rows of w, transposed: four vectors, DSB_PANEL floats apart. */
DSB_INLINE void
transpose_four(const float *w, int64_t ld, float *packed)
{
    enum { N = DSB_VL };
    vf a = load_pieces(w, ld), b = load_pieces(w + ld, ld);
    vf c = load_pieces(w + 2 * ld, ld), d = load_pieces(w + 3 * ld, ld);
    vf ab0 = PIECES(a, b, 0, N, 1, N + 1), ab2 = PIECES(a, b, 2, N + 2, 3, N + 3);
    vf cd0 = PIECES(c, d, 0, N, 1, N + 1), cd2 = PIECES(c, d, 2, N + 2, 3, N + 3);

    vf_store(packed, PIECES(ab0, cd0, 0, 1, N, N + 1));
    vf_store(packed + DSB_PANEL, PIECES(ab0, cd0, 2, 3, N + 2, N + 3));
    vf_store(packed + 2 * DSB_PANEL, PIECES(ab2, cd2, 0, 1, N, N + 1));
    vf_store(packed + 3 * DSB_PANEL, PIECES(ab2, cd2, 2, 3, N + 2, N + 3));
}

/* One panel: packed[k][o] = w[o][k], o below `columns`, zero beyond. */
static void
pack_panel(int n_in, int columns, const float *w, float *packed)
{
    int k = 0;

    if (columns == DSB_PANEL) {
        for (; k + 4 <= n_in; k += 4) {
            DSB_UNROLL
            for (int v = 0; v < PV; v++) {
                int o = v * DSB_VL;

                transpose_four(w + (int64_t)o * n_in + k, n_in, packed + (int64_t)k * DSB_PANEL + o);
            }
        }
    }
    for (; k < n_in; k++) {
        for (int o = 0; o < DSB_PANEL; o++) {
            packed[(int64_t)k * DSB_PANEL + o] = o < columns ? w[(int64_t)o * n_in + k] : 0.0f;
        }
    }
}

static void
linear_pack(dsb_stream *stream, int n_in, int n_out, const float *w, float *packed)
{
    (void)stream;
    if (is_narrow(n_in, n_out)) {
        int64_t pitch = dsb_pitch(n_in);

        for (int o = 0; o < n_out; o++) {
            for (int k = 0; k < pitch; k += DSB_VL) {
                vf_store(packed + o * pitch + k, vf_load_part(w + (int64_t)o * n_in + k, n_in - k));
            }
        }
        return;
    }
    for (int o = 0; o < n_out; o += DSB_PANEL) {
        int columns = n_out - o < DSB_PANEL ? n_out - o : DSB_PANEL;

        pack_panel(n_in, columns, w + (int64_t)o * n_in, packed + (int64_t)o * n_in);
    }
}

static void
linear_pack_transposed(dsb_stream *stream, int n_in, int n_out, const float *w, float *packed)
{
    (void)stream;
    for (int k = 0; k < n_in; k += DSB_PANEL) {
        float *panel = packed + (int64_t)k * n_out;

        for (int o = 0; o < n_out; o++) {
            DSB_UNROLL
            for (int v = 0; v < PV; v++) {
                int c = k + v * DSB_VL;
                const float *from = w + (int64_t)o * n_in + c;

                vf_store(panel + (int64_t)o * DSB_PANEL + v * DSB_VL,
                         c + DSB_VL <= n_in ? vf_load(from) : vf_load_part(from, n_in - c));
            }
        }
    }
}

/* ---- products with a packed matrix ---- */

/* acc[i][v] += x[i][0 .. n-1] times the columns of PV-vector panels, `panel` floats apart. */
DSB_INLINE void
multiply(int rows, int width, int n, matrix x, const float *packed, int64_t panel,
         vf acc[TILE][WIDTH])
{
    for (int k = 0; k < n; k++) {
        vf w[WIDTH];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            w[v] = vf_load(packed + (v / PV) * panel + (int64_t)k * DSB_PANEL + v % PV * DSB_VL);
        }
        DSB_UNROLL
        for (int i = 0; i < rows; i++) {
            vf q = vf_splat(x.p[i * x.ld + k]);

            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                acc[i][v] = vf_fma(q, w[v], acc[i][v]);
            }
        }
    }
}

typedef struct forward_job {
    int n_in;
    matrix x;
    const float *packed;
    float bias[DSB_PANEL * PANELS];
    float slope; /* 1 stands for no activation */
    float *z, *y;
    int64_t ldz, ldy;
} forward_job;

DSB_INLINE void
forward_tile(const forward_job *job, int rows, int width, int64_t r)
{
    vf acc[TILE][WIDTH], slope = vf_splat(job->slope);
    matrix x = {job->x.p + r * job->x.ld, job->x.ld};

    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        vf bias = vf_load(job->bias + v * DSB_VL);

        DSB_UNROLL
        for (int i = 0; i < rows; i++) {
            acc[i][v] = bias;
        }
    }
    multiply(rows, width, job->n_in, x, job->packed, (int64_t)job->n_in * DSB_PANEL, acc);
    if (job->z != NULL) {
        DSB_UNROLL
        for (int i = 0; i < rows; i++) {
            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                vf_store(job->z + (r + i) * job->ldz + v * DSB_VL, acc[i][v]);
            }
        }
    }
    DSB_UNROLL
    for (int i = 0; i < rows; i++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            vf_store(job->y + (r + i) * job->ldy + v * DSB_VL, vf_leaky_relu(acc[i][v], slope));
        }
    }
}

DSB_INLINE void
forward_rows(const forward_job *job, int width, int rows)
{
    int64_t r = 0;

    for (; r + TILE <= rows; r += TILE) {
        forward_tile(job, TILE, width, r);
    }
    if (TILE > 4 && r + 4 <= rows) {
        forward_tile(job, TILE > 4 ? 4 : 1, width, r);
        r += 4;
    }
    if (r + 2 <= rows) {
        forward_tile(job, 2, width, r);
        r += 2;
    }
    if (r < rows) {
        forward_tile(job, 1, width, r);
    }
}

/* SiLU is too long to sit in every tile: it goes over what the tiles have stored. */
static void
silu_rows(int rows, int n, float *y, int64_t ldy)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < dsb_pitch(n); c += DSB_VL) {
            vf_store(y + r * ldy + c, vf_silu(vf_load(y + r * ldy + c)));
        }
    }
}

/* Few outputs: a panel would be mostly zeros, so vectors run along k and their lanes are summed. The
 * last vector is masked, because x's padding is anything finite and may be somebody else's columns. */
DSB_INLINE void
narrow_tile(const forward_job *job, int n_out, int rows, int64_t r)
{
    enum { ROWS = 4 };
    int n_in = job->n_in, full = n_in / DSB_VL * DSB_VL;
    int64_t pitch = dsb_pitch(n_in);
    vf acc[ROWS][NARROW];
    const float *x[ROWS];

    DSB_UNROLL
    for (int i = 0; i < ROWS; i++) {
        x[i] = job->x.p + (r + i < rows ? r + i : rows - 1) * job->x.ld;
        DSB_UNROLL
        for (int o = 0; o < n_out; o++) {
            acc[i][o] = (vf){0};
        }
    }
    for (int k = 0; k < n_in; k += DSB_VL) {
        vi mask = vi_first(n_in - k);

        DSB_UNROLL
        for (int i = 0; i < ROWS; i++) {
            vf q = k < full ? vf_load(x[i] + k) : vf_select(mask, vf_load(x[i] + k), (vf){0});

            DSB_UNROLL
            for (int o = 0; o < n_out; o++) {
                acc[i][o] = vf_fma(q, vf_load(job->packed + o * pitch + k), acc[i][o]);
            }
        }
    }
    DSB_UNROLL
    for (int i = 0; i < ROWS; i++) {
        float sum[NARROW];

        DSB_UNROLL
        for (int o = 0; o < n_out; o++) {
            sum[o] = vf_sum(acc[i][o]) + job->bias[o];
        }
        if (r + i < rows) {
            float *y = job->y + (r + i) * job->ldy, *z = job->z + (r + i) * job->ldz;

            DSB_UNROLL
            for (int v = 0; v < PV; v++) {
                vf_store(y + v * DSB_VL, (vf){0});
            }
            DSB_UNROLL
            for (int o = 0; o < n_out; o++) {
                y[o] = sum[o] > 0.0f ? sum[o] : sum[o] * job->slope;
                if (job->z != NULL) {
                    z[o] = sum[o];
                }
            }
        }
    }
}

static void
forward_narrow(const forward_job *job, int n_out, int rows)
{
    for (int64_t r = 0; r < rows; r += 4) {
        switch (n_out) {
        case 1:
            narrow_tile(job, 1, rows, r);
            break;
        case 2:
            narrow_tile(job, 2, rows, r);
            break;
        case 3:
            narrow_tile(job, 3, rows, r);
            break;
        default:
            narrow_tile(job, 4, rows, r);
            break;
        }
    }
}

static void
linear_forward(dsb_stream *stream, int rows, int n_in, int n_out, const float *x, int64_t ldx,
               const float *packed, const float *b, dsb_activation act, float slope, float *z,
               int64_t ldz, float *y, int64_t ldy)
{
    forward_job job = {.n_in = n_in, .x = {x, ldx}, .ldz = ldz, .ldy = ldy};

    (void)stream;
    job.slope = act == DSB_LEAKY_RELU ? slope : 1.0f;
    for (int o = 0; o < n_out;) {
        int left = n_out - o, panels = PANELS == 2 && left > DSB_PANEL ? 2 : 1;

        job.packed = packed + (int64_t)o * n_in;
        job.z = z != NULL ? z + o : NULL;
        job.y = y + o;
        for (int c = 0; c < panels * DSB_PANEL; c += DSB_VL) { /* b ends with its last number */
            vf_store(job.bias + c, b != NULL ? vf_load_part(b + o + c, left - c) : (vf){0});
        }
        if (is_narrow(n_in, n_out)) {
            forward_narrow(&job, n_out, rows);
        } else if (panels == 2) {
            forward_rows(&job, WIDTH, rows);
        } else {
            forward_rows(&job, PV, rows);
        }
        o += panels * DSB_PANEL;
    }
    if (act == DSB_SILU) {
        silu_rows(rows, n_out, y, ldy);
    }
}

/* ---- gradient of the input: dx = dy W ---- */

DSB_INLINE void
input_tile(int rows, int width, int n_out, matrix dy, const float *packed, int beta, float *dx,
           int64_t lddx)
{
    vf acc[TILE][WIDTH];

    DSB_UNROLL
    for (int i = 0; i < rows; i++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            acc[i][v] = beta ? vf_load(dx + i * lddx + v * DSB_VL) : (vf){0};
        }
    }
    multiply(rows, width, n_out, dy, packed, (int64_t)n_out * DSB_PANEL, acc);
    DSB_UNROLL
    for (int i = 0; i < rows; i++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            vf_store(dx + i * lddx + v * DSB_VL, acc[i][v]);
        }
    }
}

DSB_INLINE void
input_rows(int width, int rows, int n_out, matrix dy, const float *packed, int beta, float *dx,
           int64_t lddx)
{
    for (int r = 0; r < rows;) {
        int left = rows - r;
        matrix from = {dy.p + r * dy.ld, dy.ld};
        float *to = dx + r * lddx;

        if (left >= TILE) {
            input_tile(TILE, width, n_out, from, packed, beta, to, lddx);
            r += TILE;
        } else if (TILE > 4 && left >= 4) {
            input_tile(TILE > 4 ? 4 : 1, width, n_out, from, packed, beta, to, lddx);
            r += 4;
        } else if (left >= 2) {
            input_tile(2, width, n_out, from, packed, beta, to, lddx);
            r += 2;
        } else {
            input_tile(1, width, n_out, from, packed, beta, to, lddx);
            r += 1;
        }
    }
}

static void
linear_backward_input(dsb_stream *stream, int rows, int n_in, int n_out, const float *dy, int64_t lddy,
                      const float *packed_transposed, int beta, float *dx, int64_t lddx)
{
    matrix from = {dy, lddy};

    (void)stream;
    for (int k = 0; k < n_in;) {
        const float *panel = packed_transposed + (int64_t)k * n_out;

        if (PANELS == 2 && n_in - k > DSB_PANEL) {
            input_rows(WIDTH, rows, n_out, from, panel, beta, dx + k, lddx);
            k += PANELS * DSB_PANEL;
        } else {
            input_rows(PV, rows, n_out, from, panel, beta, dx + k, lddx);
            k += DSB_PANEL;
        }
    }
}

/* ---- gradient of the weights: dW = dy^T x ---- */

/* An outer product summed over the rows: c[i][j] = sum of a[r][i] b[r][j], a one number at a time and
 * b in vectors. `swapped` stores c[j][i] instead, for a matrix whose rows are shorter than a vector. */
typedef struct outer_job {
    int rows, n_a, n_b;
    matrix a, b;
    int beta, swapped;
    float *c;
    int64_t ldc;
} outer_job;

enum {
#if DSB_VL == 16
    TALL = 12, /* numbers of a in a tile, with WIDTH vectors of b */
    THIN = 16, /* and with one vector */
    LONG = 8,  /* most vectors of a tile with few numbers of a */
#else
    TALL = TILE,
    THIN = TILE,
    LONG = DSB_VL == 8 ? 6 : 4,
#endif
};

/* Where a tile does not lie in c as it is (a part of a vector, or swapped), it is built in a copy. */
static void
fetch_tile(const outer_job *job, int i0, int j0, int height, int columns, float *tile)
{
    for (int i = 0; i < height; i++) {
        for (int j = 0; j < columns; j++) {
            int64_t row = job->swapped ? j0 + j : i0 + i, column = job->swapped ? i0 + i : j0 + j;

            tile[i * columns + j] = j0 + j < job->n_b ? job->c[row * job->ldc + column] : 0.0f;
        }
    }
}

static void
put_tile(const outer_job *job, int i0, int j0, int height, int columns, const float *tile)
{
    int valid = job->n_b - j0 < columns ? job->n_b - j0 : columns;

    if (job->swapped) {
        for (int j = 0; j < valid; j++) {
            for (int i = 0; i < height; i++) {
                job->c[(j0 + j) * job->ldc + i0 + i] = tile[i * columns + j];
            }
        }
        return;
    }
    for (int i = 0; i < height; i++) {
        for (int j = 0; j < valid; j++) {
            job->c[(i0 + i) * job->ldc + j0 + j] = tile[i * columns + j];
        }
    }
}

DSB_INLINE void
outer_tile(const outer_job *job, int height, int width, int i0, int j0)
{
    vf acc[THIN][LONG];
    float copy[THIN * LONG * DSB_VL];
    const float *a = job->a.p + i0, *b = job->b.p + j0;
    int64_t lda = job->a.ld, ldb = job->b.ld, ldc = job->ldc;
    bool direct = !job->swapped && job->n_b - j0 >= width * DSB_VL;
    float *c = job->c + i0 * ldc + j0;

    if (!direct) {
        c = copy;
        ldc = width * DSB_VL;
        if (job->beta) {
            fetch_tile(job, i0, j0, height, width * DSB_VL, copy);
        }
    }
    DSB_UNROLL
    for (int i = 0; i < height; i++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            acc[i][v] = job->beta ? vf_load(c + i * ldc + v * DSB_VL) : (vf){0};
        }
    }
    for (int r = 0; r < job->rows; r++) {
        vf w[LONG];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            w[v] = vf_load(b + v * DSB_VL);
        }
        DSB_UNROLL
        for (int i = 0; i < height; i++) {
            vf q = vf_splat(a[i]);

            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                acc[i][v] = vf_fma(q, w[v], acc[i][v]);
            }
        }
        a += lda;
        b += ldb;
    }
    DSB_UNROLL
    for (int i = 0; i < height; i++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            vf_store(c + i * ldc + v * DSB_VL, acc[i][v]);
        }
    }
    if (!direct) {
        put_tile(job, i0, j0, height, width * DSB_VL, copy);
    }
}

/* `height` numbers of a against all of b, in tiles of at most `width` vectors. */
DSB_INLINE void
outer_strip(const outer_job *job, int height, int width, int i)
{
    int j = 0;

    for (; job->n_b - j > (width - 1) * DSB_VL; j += width * DSB_VL) {
        outer_tile(job, height, width, i, j);
    }
    if (width > 4 && job->n_b - j > 3 * DSB_VL) {
        outer_tile(job, height, width > 4 ? 4 : 1, i, j);
        j += 4 * DSB_VL;
    }
    if (width > 2 && job->n_b - j > DSB_VL) {
        outer_tile(job, height, width > 2 ? 2 : 1, i, j);
        j += 2 * DSB_VL;
    }
    for (; width > 1 && j < job->n_b; j += DSB_VL) {
        outer_tile(job, height, 1, i, j);
    }
}

static void
outer(const outer_job *job)
{
    int i = 0;

    if (job->n_b <= DSB_VL) {
        for (; i + THIN <= job->n_a; i += THIN) {
            outer_strip(job, THIN, 1, i);
        }
    }
    for (; i + TALL <= job->n_a; i += TALL) {
        outer_strip(job, TALL, WIDTH, i);
    }
    for (; TALL > 8 && i + 8 <= job->n_a; i += 8) {
        outer_strip(job, TALL > 8 ? 8 : 1, WIDTH, i);
    }
    for (; TALL > 4 && i + 4 <= job->n_a; i += 4) {
        outer_strip(job, TALL > 4 ? 4 : 1, LONG / 2, i);
    }
    for (; i + 2 <= job->n_a; i += 2) {
        outer_strip(job, 2, LONG, i);
    }
    for (; i < job->n_a; i++) {
        outer_strip(job, 1, LONG, i);
    }
}

/* Up to `width` vectors of db = column sums of dy (+ db), from column c on. */
DSB_INLINE void
sum_strip(int width, int rows, int n, int c, matrix dy, int beta, float *db)
{
    vf sum[8];

    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        sum[v] = beta ? vf_load_part(db + c + v * DSB_VL, n - c - v * DSB_VL) : (vf){0};
    }
    for (int64_t r = 0; r < rows; r++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            sum[v] += vf_load(dy.p + r * dy.ld + c + v * DSB_VL);
        }
    }
    DSB_UNROLL
    for (int v = 0; v < width; v++) {
        vf_store_part(db + c + v * DSB_VL, sum[v], n - c - v * DSB_VL);
    }
}

static void
sum_columns(int rows, int n, matrix dy, int beta, float *db)
{
    int c = 0;

    for (; n - c > 7 * DSB_VL; c += 8 * DSB_VL) {
        sum_strip(8, rows, n, c, dy, beta, db);
    }
    for (; n - c > DSB_VL; c += 2 * DSB_VL) {
        sum_strip(2, rows, n, c, dy, beta, db);
    }
    for (; c < n; c += DSB_VL) {
        sum_strip(1, rows, n, c, dy, beta, db);
    }
}

static void
linear_backward_weight(dsb_stream *stream, int rows, int n_in, int n_out, const float *x, int64_t ldx,
                       const float *dy, int64_t lddy, int beta, float *dw, float *db)
{
    outer_job job = {.rows = rows, .beta = beta, .c = dw, .ldc = n_in};
    int64_t wide_in = (n_in + DSB_VL - 1) / DSB_VL * DSB_VL;
    int64_t wide_out = (n_out + DSB_VL - 1) / DSB_VL * DSB_VL;

    (void)stream;
    job.swapped = 2 * n_in * wide_out <= wide_in * n_out;
    job.n_a = job.swapped ? n_in : n_out;
    job.n_b = job.swapped ? n_out : n_in;
    job.a = job.swapped ? (matrix){x, ldx} : (matrix){dy, lddy};
    job.b = job.swapped ? (matrix){dy, lddy} : (matrix){x, ldx};
    if (db != NULL) { /* first: it brings dy into the cache in the order of memory */
        sum_columns(rows, n_out, (matrix){dy, lddy}, beta, db);
    }
    outer(&job);
}

void
DSB_KERNEL(dsb_cpu_gemm)(dsb_backend *table)
{
    table->linear_pack = linear_pack;
    table->linear_pack_transposed = linear_pack_transposed;
    table->linear_forward = linear_forward;
    table->linear_backward_input = linear_backward_input;
    table->linear_backward_weight = linear_backward_weight;
}
