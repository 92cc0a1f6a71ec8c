/* Attention over the pixels of an image, one head of one row after another, in float32.
 *
 * A block of queries at a time meets all keys: scores never take more than SCORES numbers, and the
 * backward pass makes them again. All products are one loop of register tiles over operands that are
 * gathered, padded with zeros, in the scratch.
 */
#include "cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "cpu/lines.h"
#include "cpu/registers.h"

enum {
    SCORES = 32768, /* numbers of a block of scores */
};

/* ---- products ---- */

/* Element (i, k) is p[i row + k column]: a matrix, or its transpose. */
typedef struct operand {
    const float *p;
    int64_t row, column;
} operand;

/* Element (k, j) is p[k ld + j / 16 panel + j % 16]: rows of numbers (panel 16), or panels of 16 columns (ld 16). */
typedef struct panels {
    const float *p;
    int64_t ld, panel;
} panels;

/* `rows` x `width` vectors of y = a b (+ y), sums over n. */
DSB_INLINE void
tile(int rows, int width, int n, operand a, panels b, int beta, float *y, int64_t ld)
{
    vf sum[TILE][WIDTH] = {{{0}}};

    for (int k = 0; k < n; k++) {
        vf w[WIDTH];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            w[v] = vf_load(b.p + k * b.ld + v / PV * b.panel + v % PV * DSB_VL);
        }
        DSB_UNROLL
        for (int i = 0; i < rows; i++) {
            vf q = vf_splat(a.p[i * a.row + k * a.column]);

            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                sum[i][v] = vf_fma(q, w[v], sum[i][v]);
            }
        }
    }
    DSB_UNROLL
    for (int i = 0; i < rows; i++) {
        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            float *to = y + i * ld + v * DSB_VL;

            vf_store(to, beta ? vf_load(to) + sum[i][v] : sum[i][v]);
        }
    }
}

/* One column of tiles, `width` vectors wide. */
DSB_INLINE void
tile_column(int width, int rows, int n, operand a, panels b, int beta, float *y, int64_t ld)
{
    int i = 0;

    for (; i + TILE <= rows; i += TILE) {
        operand at = {a.p + i * a.row, a.row, a.column};

        tile(TILE, width, n, at, b, beta, y + i * ld, ld);
    }
    for (; TILE > 4 && i + 4 <= rows; i += 4) {
        operand at = {a.p + i * a.row, a.row, a.column};

        tile(TILE > 4 ? 4 : 1, width, n, at, b, beta, y + i * ld, ld);
    }
    for (; i + 2 <= rows; i += 2) {
        operand at = {a.p + i * a.row, a.row, a.column};

        tile(2, width, n, at, b, beta, y + i * ld, ld);
    }
    for (; i < rows; i++) {
        operand at = {a.p + i * a.row, a.row, a.column};

        tile(1, width, n, at, b, beta, y + i * ld, ld);
    }
}

/* y = a b (+ y), y [rows, columns] in whole panels. */
static void
product(int rows, int64_t columns, int n, operand a, panels b, int beta, float *y, int64_t ld)
{
    int64_t j = 0;

    for (; j + PANELS * DSB_PANEL <= columns; j += PANELS * DSB_PANEL) {
        panels at = {b.p + j / DSB_PANEL * b.panel, b.ld, b.panel};

        tile_column(WIDTH, rows, n, a, at, beta, y + j, ld);
    }
    for (; j < columns; j += DSB_PANEL) {
        panels at = {b.p + j / DSB_PANEL * b.panel, b.ld, b.panel};

        tile_column(PV, rows, n, a, at, beta, y + j, ld);
    }
}

/* ---- scratch ---- */

/* The operands of a head. Rows of d numbers are padded to `wide`, rows of scores to `keys`, and these lie one
 * panel further apart, so that a column of them does not fall into one set of a cache. */
typedef struct workspace {
    int pixels, block; /* block: queries at a time */
    int d, wide;
    int64_t keys, ld;
    float *key, *value;                 /* [keys][wide] */
    float *key_columns, *value_columns; /* [keys / 16][wide][16] */
    float *query, *out, *d_out;         /* [block][wide] */
    float *score, *d_score;             /* [block][ld] */
    float *d_key, *d_value;             /* [keys][wide] */
} workspace;

/* The next n numbers; without a base they are only counted. */
static float *
take(float *base, int64_t *used, int64_t n)
{
    int64_t first = *used;

    *used += n;
    return base != NULL ? base + first : NULL;
}

/* Returns how many numbers it takes. */
static int64_t
lay_out(workspace *s, int pixels, int d, float *base)
{
    int64_t block, image, rows, scores, used = 0;

    s->pixels = pixels;
    s->d = d;
    s->wide = (int)dsb_pitch(d);
    s->keys = dsb_pitch(pixels);
    s->ld = s->keys + DSB_PANEL;
    block = SCORES / s->ld / DSB_PANEL * DSB_PANEL;
    block = block < DSB_PANEL ? DSB_PANEL : block;
    s->block = block < pixels ? (int)block : pixels;
    image = s->keys * s->wide;
    rows = (int64_t)s->block * s->wide;
    scores = s->block * s->ld;
    s->key = take(base, &used, image);
    s->value = take(base, &used, image);
    s->key_columns = take(base, &used, image);
    s->value_columns = take(base, &used, image);
    s->query = take(base, &used, rows);
    s->out = take(base, &used, rows);
    s->score = take(base, &used, scores);
    s->d_out = take(base, &used, rows);
    s->d_score = take(base, &used, scores);
    s->d_key = take(base, &used, image);
    s->d_value = take(base, &used, image);
    return used;
}

static size_t
attention_scratch(int pixels, int c, int heads)
{
    workspace s;

    return sizeof(float) * (size_t)lay_out(&s, pixels, c / heads, NULL);
}

/* to [n][wide] = factor x: n lines of d channels from number `first` of an image. */
DSB_INLINE void
fetch_as(int half, dsb_slot x, int64_t first, int64_t n, int d, float factor, float *to)
{
    int64_t wide = dsb_pitch(d);

    for (int64_t p = 0; p < n; p++) {
        for (int64_t j = 0; j < wide; j += DSB_VL) {
            int64_t i = first + p * x.ld + j;
            vf v = j + DSB_VL <= d ? vf_load_as(half, x.data, i)
                                   : vf_load_part_as(half, x.data, i, d - j);

            vf_store(to + p * wide + j, v * factor);
        }
    }
}

/* The reverse: x = factor from (+ x). */
DSB_INLINE void
deliver_as(int half, const float *from, int64_t n, int d, float factor, int beta, dsb_slot x,
           int64_t first)
{
    int64_t wide = dsb_pitch(d);

    for (int64_t p = 0; p < n; p++) {
        for (int64_t j = 0; j < d; j += DSB_VL) {
            int64_t i = first + p * x.ld + j;
            vf v = vf_load(from + p * wide + j) * factor;

            if (j + DSB_VL <= d) {
                vf_store_as(half, x.data, i, beta ? vf_load_as(half, x.data, i) + v : v);
            } else {
                v = beta ? vf_load_part_as(half, x.data, i, d - j) + v : v;
                vf_store_part_as(half, x.data, i, v, d - j);
            }
        }
    }
}

static void
fetch(dsb_slot x, int64_t first, int64_t n, int d, float factor, float *to)
{
    if (x.dtype == DSB_BFLOAT16) {
        fetch_as(1, x, first, n, d, factor, to);
    } else {
        fetch_as(0, x, first, n, d, factor, to);
    }
}

static void
deliver(const float *from, int64_t n, int d, float factor, int beta, dsb_slot x, int64_t first)
{
    if (x.dtype == DSB_BFLOAT16) {
        deliver_as(1, from, n, d, factor, beta, x, first);
    } else {
        deliver_as(0, from, n, d, factor, beta, x, first);
    }
}

/* Keys or values of a head as rows, with zeros up to whole panels. */
static void
fetch_image(const workspace *s, dsb_slot x, int64_t first, float *to)
{
    int64_t used = (int64_t)s->pixels * s->wide;

    fetch(x, first, s->pixels, s->d, 1.0f, to);
    memset(to + used, 0, sizeof *to * (size_t)(s->keys * s->wide - used));
}

/* Rows to panels of 16 of them: to[panel][j][row]. */
static void
transpose(const workspace *s, const float *from, float *to)
{
    for (int64_t p = 0; p < s->keys; p += DSB_VL) {
        float *panel = to + p / DSB_PANEL * DSB_PANEL * s->wide + p % DSB_PANEL;

        for (int j = 0; j < s->wide; j += 4) {
            vf_transpose_four(from + p * s->wide + j, s->wide, panel + (int64_t)j * DSB_PANEL,
                              DSB_PANEL);
        }
    }
}

/* ---- softmax ---- */

/* exp(x - top) for x <= top; NaN stays NaN. */
DSB_INLINE vf
exp_below(vf x, vf top)
{
    return vf_exp_negative(vf_below(x - top));
}

/* The rows of `score` to exp(score - its maximum), zero behind the last key; inverse[i] = 1 / their sum. */
static void
exponentials(const workspace *s, int rows, float *inverse)
{
    int64_t whole = s->pixels / DSB_VL * DSB_VL, n = s->pixels;

    for (int i = 0; i < rows; i++) {
        float *row = s->score + i * s->ld, top;
        vf most = vf_splat(row[0]), sum = {0}, last;

        for (int64_t j = 0; j < whole; j += DSB_VL) {
            vf v = vf_load(row + j);

            most = vf_select(v > most, v, most);
        }
        top = most[0];
        for (int k = 1; k < DSB_VL; k++) {
            top = most[k] > top ? most[k] : top;
        }
        for (int64_t j = whole; j < n; j++) {
            top = row[j] > top ? row[j] : top;
        }
        for (int64_t j = 0; j < whole; j += DSB_VL) {
            vf v = exp_below(vf_load(row + j), vf_splat(top));

            vf_store(row + j, v);
            sum += v;
        }
        for (int64_t j = whole; j < s->keys; j += DSB_VL) {
            last = exp_below(vf_load(row + j), vf_splat(top));
            last = vf_select(vi_first(n - j), last, (vf){0});
            vf_store(row + j, last);
            sum += last;
        }
        inverse[i] = 1.0f / vf_sum(sum);
    }
}

/* ---- forward ---- */

static void
attend(const workspace *s, dsb_slot qkv, int64_t first, dsb_slot y, int64_t first_y)
{
    float inverse[SCORES / DSB_PANEL], factor = 1.0f / sqrtf((float)s->d);

    fetch_image(s, qkv, first + s->d, s->key);
    transpose(s, s->key, s->key_columns);
    fetch_image(s, qkv, first + 2 * s->d, s->value);
    for (int q = 0; q < s->pixels; q += s->block) {
        int rows = s->pixels - q < s->block ? s->pixels - q : s->block;
        operand query = {s->query, s->wide, 1}, score = {s->score, s->ld, 1};
        panels keys = {s->key_columns, DSB_PANEL, (int64_t)s->wide * DSB_PANEL};
        panels values = {s->value, s->wide, DSB_PANEL};

        fetch(qkv, first + q * qkv.ld, rows, s->d, factor, s->query);
        product(rows, s->keys, s->d, query, keys, 0, s->score, s->ld);
        exponentials(s, rows, inverse);
        product(rows, s->wide, s->pixels, score, values, 0, s->out, s->wide);
        for (int i = 0; i < rows; i++) {
            deliver(s->out + (int64_t)i * s->wide, 1, s->d, inverse[i], 0, y,
                    first_y + (q + i) * y.ld);
        }
    }
}

static void
attention(dsb_stream *stream, int rows, int pixels, int c, int heads, dsb_slot qkv, dsb_slot y,
          void *scratch)
{
    workspace s;

    (void)stream;
    assert(qkv.dtype == y.dtype);
    lay_out(&s, pixels, c / heads, scratch);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t h = 0; h < heads; h++) {
            attend(&s, qkv, r * pixels * qkv.ld + h * 3 * s.d, y, r * pixels * y.ld + h * s.d);
        }
    }
}

/* ---- backward ----
 *
 * With f = 1 / sqrt(d): S = f Q K^T, P = softmax of its rows, Y = P V. Then
 *     dV = P^T dY,  dP = dY V^T,
 *     dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik),  because dP_ij / dS_ik = P_ij (1[j = k] - P_ik),
 *     dQ = f dS K,  dK = f dS^T Q.
 * P is made again for a block of queries at a time; dV and dK are sums over the blocks, in their order.
 */

/* P in place of exponentials, and dS in place of dP. */
static void
score_gradients(const workspace *s, int rows, const float *inverse)
{
    for (int64_t i = 0; i < rows; i++) {
        float *p = s->score + i * s->ld, *d = s->d_score + i * s->ld;
        vf sum = {0}, factor = vf_splat(inverse[i]), mean;

        for (int64_t j = 0; j < s->keys; j += DSB_VL) {
            vf v = vf_load(p + j) * factor;

            vf_store(p + j, v);
            sum = vf_fma(v, vf_load(d + j), sum);
        }
        mean = vf_splat(vf_sum(sum));
        for (int64_t j = 0; j < s->keys; j += DSB_VL) {
            vf_store(d + j, vf_load(p + j) * (vf_load(d + j) - mean));
        }
    }
}

/* A block of queries: its dQ, and its part of dK and dV. The query is kept as f Q. */
static void
backward_block(const workspace *s, int rows, int beta)
{
    float inverse[SCORES / DSB_PANEL];
    int64_t panel = (int64_t)s->wide * DSB_PANEL;
    operand query = {s->query, s->wide, 1}, d_out = {s->d_out, s->wide, 1};
    operand d_score = {s->d_score, s->ld, 1};
    operand score_columns = {s->score, 1, s->ld}, d_score_columns = {s->d_score, 1, s->ld};
    panels keys = {s->key_columns, DSB_PANEL, panel}, values = {s->value_columns, DSB_PANEL, panel};
    panels key_rows = {s->key, s->wide, DSB_PANEL}, query_rows = {s->query, s->wide, DSB_PANEL};
    panels d_out_rows = {s->d_out, s->wide, DSB_PANEL};

    product(rows, s->keys, s->d, query, keys, 0, s->score, s->ld);
    exponentials(s, rows, inverse);
    product(rows, s->keys, s->d, d_out, values, 0, s->d_score, s->ld);
    score_gradients(s, rows, inverse);
    product(rows, s->wide, s->pixels, d_score, key_rows, 0, s->out, s->wide);
    product(s->pixels, s->wide, rows, score_columns, d_out_rows, beta, s->d_value, s->wide);
    product(s->pixels, s->wide, rows, d_score_columns, query_rows, beta, s->d_key, s->wide);
}

static void
attend_backward(const workspace *s, dsb_slot qkv, int64_t first, dsb_slot dy, int64_t first_y,
                int beta, dsb_slot d_qkv, int64_t first_d)
{
    float factor = 1.0f / sqrtf((float)s->d);

    fetch_image(s, qkv, first + s->d, s->key);
    transpose(s, s->key, s->key_columns);
    fetch_image(s, qkv, first + 2 * s->d, s->value);
    transpose(s, s->value, s->value_columns);
    for (int q = 0; q < s->pixels; q += s->block) {
        int rows = s->pixels - q < s->block ? s->pixels - q : s->block;

        fetch(qkv, first + q * qkv.ld, rows, s->d, factor, s->query);
        fetch(dy, first_y + q * dy.ld, rows, s->d, 1.0f, s->d_out);
        backward_block(s, rows, q > 0);
        deliver(s->out, rows, s->d, factor, beta, d_qkv, first_d + q * d_qkv.ld);
    }
    deliver(s->d_key, s->pixels, s->d, 1.0f, beta, d_qkv, first_d + s->d);
    deliver(s->d_value, s->pixels, s->d, 1.0f, beta, d_qkv, first_d + 2 * s->d);
}

static void
attention_backward(dsb_stream *stream, int rows, int pixels, int c, int heads, dsb_slot qkv,
                   dsb_slot dy, int beta, dsb_slot d_qkv, void *scratch)
{
    workspace s;

    (void)stream;
    assert(qkv.dtype == d_qkv.dtype && dy.dtype == d_qkv.dtype);
    lay_out(&s, pixels, c / heads, scratch);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t h = 0; h < heads; h++) {
            attend_backward(&s, qkv, r * pixels * qkv.ld + h * 3 * s.d, dy,
                            r * pixels * dy.ld + h * s.d, beta, d_qkv,
                            r * pixels * d_qkv.ld + h * 3 * s.d);
        }
    }
}

void
DSB_KERNEL(dsb_cpu_attention)(dsb_backend *table)
{
    table->attention_scratch = attention_scratch;
    table->attention = attention;
    table->attention_backward = attention_backward;
}
