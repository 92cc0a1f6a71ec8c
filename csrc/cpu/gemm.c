/* Linear layers: packing, forward, gradient of the input, gradient of the weights.
 *
 * Every product runs in tiles of accumulators that stay in registers. An element's operations come
 * in one order (start, then k = 0, 1, 2, ... fused), whatever the tile that it falls into: a row's
 * bits do not depend on the rows beside it.
 */
#include "cpu/cpu.h"

#include <stdbool.h>

#include "cpu/registers.h"

enum {
    NARROW_ROWS = 4,
    NARROW = 4, /* up to so many outputs a layer's weights are kept as rows, not as panels */
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

                vf_transpose_four(w + (int64_t)o * n_in + k, n_in,
                                  packed + (int64_t)k * DSB_PANEL + o, DSB_PANEL);
            }
        }
    }
    for (; k < n_in; k++) {
        for (int o = 0; o < DSB_PANEL; o++) {
            packed[(int64_t)k * DSB_PANEL + o] = o < columns ? w[(int64_t)o * n_in + k] : 0.0f;
        }
    }
}

/* n numbers, then zeros up to `width`. */
DSB_INLINE void
pad_row(const float *w, int n, float *to, int width)
{
    for (int c = 0; c < width; c += DSB_VL) {
        vf_store(to + c, c + DSB_VL <= n ? vf_load(w + c) : vf_load_part(w + c, n - c));
    }
}

static void
linear_pack(dsb_stream *stream, int n_in, int n_out, const float *w, float *packed)
{
    (void)stream;
    if (is_narrow(n_in, n_out)) {
        int pitch = (int)dsb_pitch(n_in);

        for (int o = 0; o < n_out; o++) {
            pad_row(w + o * n_in, n_in, packed + o * pitch, pitch);
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
        for (int64_t o = 0; o < n_out; o++) {
            pad_row(w + o * n_in + k, n_in - k, packed + (int64_t)k * n_out + o * DSB_PANEL,
                    DSB_PANEL);
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

/* Rows of x times one tile's panels: y = act(bias + x W) forward, y = x W (+ y) backward. */
typedef struct product_job {
    int n; /* columns of x */
    matrix x;
    const float *packed;
    float *z, *y;
    int64_t ldz, ldy;
    float bias[DSB_PANEL * PANELS]; /* forward only, as is `slope`; 1 stands for no activation */
    float slope;
    int beta; /* backward only */
} product_job;

DSB_INLINE void
product_tile(const product_job *job, bool forward, int rows, int width, int64_t r)
{
    vf acc[TILE][WIDTH], slope = vf_splat(job->slope);
    matrix x = {job->x.p + r * job->x.ld, job->x.ld};
    float *y = job->y + r * job->ldy;

    DSB_UNROLL
    for (int t = 0; t < rows * width; t++) {
        int i = t / width, v = t % width, c = v * DSB_VL;

        acc[i][v] = forward     ? vf_load(job->bias + c)
                    : job->beta ? vf_load(y + i * job->ldy + c)
                                : (vf){0};
    }
    multiply(rows, width, job->n, x, job->packed, (int64_t)job->n * DSB_PANEL, acc);
    if (forward && job->z != NULL) {
        DSB_UNROLL
        for (int t = 0; t < rows * width; t++) {
            int i = t / width, v = t % width;

            vf_store(job->z + (r + i) * job->ldz + v * DSB_VL, acc[i][v]);
        }
    }
    DSB_UNROLL
    for (int t = 0; t < rows * width; t++) {
        int i = t / width, v = t % width;
        vf out = forward ? vf_leaky_relu(acc[i][v], slope) : acc[i][v];

        vf_store(y + i * job->ldy + v * DSB_VL, out);
    }
}

DSB_INLINE void
product_rows(const product_job *job, bool forward, int width, int rows)
{
    int64_t r = 0;

    for (; r + TILE <= rows; r += TILE) {
        product_tile(job, forward, TILE, width, r);
    }
    if (TILE > 4 && r + 4 <= rows) {
        product_tile(job, forward, TILE > 4 ? 4 : 1, width, r);
        r += 4;
    }
    if (r + 2 <= rows) {
        product_tile(job, forward, 2, width, r);
        r += 2;
    }
    if (r < rows) {
        product_tile(job, forward, 1, width, r);
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

/* One row of a padded matrix: n numbers, then zeros. */
DSB_INLINE void
store_narrow(float *row, int n, const float *numbers, float slope)
{
    DSB_UNROLL
    for (int v = 0; v < PV; v++) {
        vf_store(row + v * DSB_VL, (vf){0});
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        row[i] = numbers[i] > 0.0f ? numbers[i] : numbers[i] * slope;
    }
}

/* Few outputs: a panel would be mostly zeros, so vectors run along k and their lanes are summed.
 * The last vector is masked, because x's padding is anything finite and may be somebody else's
 * columns. */
DSB_INLINE void
narrow_tile(const product_job *job, int n_out, int rows, int64_t r)
{
    int n_in = job->n;
    int64_t pitch = dsb_pitch(n_in);
    vf acc[NARROW_ROWS][NARROW];
    const float *x[NARROW_ROWS];

    DSB_UNROLL
    for (int i = 0; i < NARROW_ROWS; i++) {
        x[i] = job->x.p + (r + i < rows ? r + i : rows - 1) * job->x.ld;
        DSB_UNROLL
        for (int o = 0; o < n_out; o++) {
            acc[i][o] = (vf){0};
        }
    }
    for (int k = 0; k < n_in; k += DSB_VL) {
        vi mask = vi_first(n_in - k);

        DSB_UNROLL
        for (int i = 0; i < NARROW_ROWS; i++) {
            vf q = vf_select(mask, vf_load(x[i] + k), (vf){0});

            DSB_UNROLL
            for (int o = 0; o < n_out; o++) {
                acc[i][o] = vf_fma(q, vf_load(job->packed + o * pitch + k), acc[i][o]);
            }
        }
    }
    DSB_UNROLL
    for (int i = 0; i < NARROW_ROWS; i++) {
        float sum[NARROW];

        DSB_UNROLL
        for (int o = 0; o < n_out; o++) {
            sum[o] = vf_sum(acc[i][o]) + job->bias[o];
        }
        if (r + i < rows && job->z != NULL) {
            store_narrow(job->z + (r + i) * job->ldz, n_out, sum, 1.0f);
        }
        if (r + i < rows) {
            store_narrow(job->y + (r + i) * job->ldy, n_out, sum, job->slope);
        }
    }
}

static void
forward_narrow(const product_job *job, int n_out, int rows)
{
    for (int64_t r = 0; r < rows; r += NARROW_ROWS) {
        if (n_out == 1) {
            narrow_tile(job, 1, rows, r);
        } else if (n_out == 2) {
            narrow_tile(job, 2, rows, r);
        } else if (n_out == 3) {
            narrow_tile(job, 3, rows, r);
        } else {
            narrow_tile(job, NARROW, rows, r);
        }
    }
}

static void
linear_forward(dsb_stream *stream, int rows, int n_in, int n_out, const float *x, int64_t ldx,
               const float *packed, const float *b, dsb_activation act, float slope, float *z,
               int64_t ldz, float *y, int64_t ldy)
{
    product_job job = {.n = n_in, .x = {x, ldx}, .ldz = ldz, .ldy = ldy};

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
            product_rows(&job, true, WIDTH, rows);
        } else {
            product_rows(&job, true, PV, rows);
        }
        o += panels * DSB_PANEL;
    }
    if (act == DSB_SILU) {
        silu_rows(rows, n_out, y, ldy);
    }
}

/* ---- gradient of the input: dx = dy W ---- */

static void
linear_backward_input(dsb_stream *stream, int rows, int n_in, int n_out, const float *dy,
                      int64_t lddy, const float *packed_transposed, int beta, float *dx,
                      int64_t lddx)
{
    product_job job = {.n = n_out, .x = {dy, lddy}, .beta = beta, .ldy = lddx};

    (void)stream;
    for (int k = 0; k < n_in;) {
        job.packed = packed_transposed + (int64_t)k * n_out;
        job.y = dx + k;
        if (PANELS == 2 && n_in - k > DSB_PANEL) {
            product_rows(&job, false, WIDTH, rows);
            k += PANELS * DSB_PANEL;
        } else {
            product_rows(&job, false, PV, rows);
            k += DSB_PANEL;
        }
    }
}

/* ---- gradient of the weights: dW = dy^T x ---- */

/* An outer product summed over the rows: c[i][j] = sum of a[r][i] b[r][j], a one number at a time
 * and b in vectors. `swapped` stores c[j][i] instead, for a matrix whose rows are shorter than a
 * vector. */
typedef struct outer_job {
    int rows, n_a, n_b;
    matrix a, b;
    int beta, swapped;
    float *c;
    int64_t ldc;
} outer_job;

enum {
    TALL = DSB_VL == 16 ? 12 : TILE, /* numbers of a in a tile, with WIDTH vectors of b */
    THIN = DSB_VL == 16 ? 16 : TILE, /* and with one vector */
    LONG = DSB_VL / 4 + 4,           /* most vectors, with few numbers of a */
};

/* Where a tile does not lie in c as it is (a part of a vector, or swapped), it is built in a copy,
 * which this fills or puts back. */
static void
move_tile(const outer_job *job, bool put, int i0, int j0, int height, int columns, float *copy)
{
    int valid = job->n_b - j0 < columns ? job->n_b - j0 : columns;
    int64_t step_i = job->swapped ? 1 : job->ldc, step_j = job->swapped ? job->ldc : 1;

    if (!put) {
        memset(copy, 0, sizeof *copy * (size_t)(height * columns));
    }
    for (int i = 0; i < height; i++) {
        for (int j = 0; j < valid; j++) {
            float *c = job->c + (i0 + i) * step_i + (j0 + j) * step_j,
                  *own = &copy[i * columns + j];

            *(put ? c : own) = *(put ? own : c);
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
            move_tile(job, false, i0, j0, height, width * DSB_VL, copy);
        }
    }
    DSB_UNROLL
    for (int t = 0; t < height * width; t++) {
        const float *start = c + t / width * ldc + t % width * DSB_VL;

        acc[t / width][t % width] = job->beta ? vf_load(start) : (vf){0};
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
    for (int t = 0; t < height * width; t++) {
        vf_store(c + t / width * ldc + t % width * DSB_VL, acc[t / width][t % width]);
    }
    if (!direct) {
        move_tile(job, true, i0, j0, height, width * DSB_VL, copy);
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

    for (; job->n_b <= DSB_VL && i + THIN <= job->n_a; i += THIN) {
        outer_strip(job, THIN, 1, i);
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
    for (; c < n; c += DSB_VL) {
        sum_strip(1, rows, n, c, dy, beta, db);
    }
}

static void
linear_backward_weight(dsb_stream *stream, int rows, int n_in, int n_out, const float *x,
                       int64_t ldx, const float *dy, int64_t lddy, int beta, float *dw, float *db)
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
