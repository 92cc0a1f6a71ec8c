/* Weights for convolutions on tiles:
 * [blocks of 32 outputs][weight][32 inputs][part, the rest first][16 outputs][16 pairs of inputs][16][2]: in
 * the order in which a block reads them. Zero beyond the channels. */
#include "cpu/conv_tile.h"

size_t
DSB_KERNEL(dsb_conv_tile_packed_bytes)(int parts, const dsb_conv *conv, bool transposed)
{
    int64_t inputs = transposed ? conv->c_out : conv->c_in;
    int64_t outputs = transposed ? conv->c_in : conv->c_out;

    return (size_t)(packed_edge(conv) * packed_edge(conv) * parts * round_up(inputs, TILE_HALVES) *
                    round_up(outputs, TILE_COLUMNS)) *
           sizeof(uint16_t);
}

/* What a tile is made of: the sum of n kernels' weights, `at` numbers behind w. */
typedef struct source {
    const float *w;
    int64_t ld, at[4];
    int n;
} source;

/* n <= 16 numbers `from` on as bfloat16, then zeros; `rest` stores what that leaves instead. */
DSB_INLINE void
round_weights(bool rest, const source *s, int64_t from, int n, uint16_t *to)
{
    for (int c = 0; c < TILE_COLUMNS; c += DSB_VL) {
        vf v = {0};

        for (int k = 0; k < s->n && c < n; k++) {
            v += vf_load_part(s->w + s->at[k] + from + c, n - c);
        }
        half_store(to + c, v);
        if (rest) {
            half_store(to + c, v - vf_load_bf16(to + c));
        }
    }
}

/* A tile of w[o][i] from output o and input i on, outputs `ld` apart. */
static void
pack_tile(bool rest, const source *s, int64_t o, int64_t i, int outputs, int inputs, uint16_t *to)
{
    uint16_t rows[TILE_COLUMNS][TILE_HALVES];
    float pairs[TILE_FLOATS];

    for (int k = 0; k < TILE_COLUMNS; k++) {
        int n = k < outputs ? inputs : 0;

        round_weights(rest, s, (o + k) * s->ld + i, n, rows[k]);
        round_weights(rest, s, (o + k) * s->ld + i + 16, n - 16, rows[k] + 16);
    }
    memcpy(pairs, rows, sizeof pairs);
    for (int k = 0; k < TILE_COLUMNS; k += DSB_VL) {
        for (int p = 0; p < TILE_ROWS; p += 4) {
            vf_transpose_four(pairs + k * TILE_COLUMNS + p, TILE_COLUMNS,
                              (float *)to + p * TILE_COLUMNS + k, TILE_COLUMNS);
        }
    }
}

/* The same of w[i][o], inputs `ld` apart. */
static void
pack_tile_transposed(bool rest, const source *s, int64_t o, int64_t i, int outputs, int inputs,
                     uint16_t *to)
{
    for (int k = 0; k < TILE_HALVES; k += 2) {
        uint16_t rows[2][TILE_COLUMNS];

        for (int pair = 0; pair < 2; pair++) {
            round_weights(rest, s, (i + k + pair) * s->ld + o, k + pair < inputs ? outputs : 0,
                          rows[pair]);
        }
        pair_row(rows[0], rows[1], to + k * TILE_COLUMNS);
    }
}

/* The tiles of one tap from output o and input i on, in the order in which a block loads them; returns their
 * end. */
static uint16_t *
pack_step(int parts, bool transposed, const source *s, int64_t o, int64_t i, int outputs,
          int inputs, uint16_t *to)
{
    inputs = inputs < TILE_HALVES ? inputs : TILE_HALVES;
    for (int part = parts - 1; part >= 0; part--) {
        for (int c = 0; c < 2 * TILE_COLUMNS && c < outputs; c += TILE_COLUMNS) {
            int left = outputs - c < TILE_COLUMNS ? outputs - c : TILE_COLUMNS;

            if (transposed) {
                pack_tile_transposed(part, s, o + c, i, left, inputs, to);
            } else {
                pack_tile(part, s, o + c, i, left, inputs, to);
            }
            to += TILE_NUMBERS;
        }
    }
    return to;
}

/* Packed weight number `weight`: one of the kernel's own, or a sum of 1, 2 or 4. */
static void
source_start(source *s, const dsb_conv *conv, int weight)
{
    static const int first[] = {0, 1, 0, 2}, count[] = {1, 2, 2, 1};
    int v = weight / 4, u = weight % 4;

    s->n = 0;
    if (!has_summed_weights(conv)) {
        s->at[s->n++] = (int64_t)weight * conv->c_in;
        return;
    }
    for (int k = 0; k < count[v] * count[u]; k++) {
        int y = first[v] + k / count[u], x = first[u] + k % count[u];

        s->at[s->n++] = (int64_t)(y * conv->kernel + x) * conv->c_in;
    }
}

void
DSB_KERNEL(dsb_conv_tile_pack)(int parts, const dsb_conv *conv, bool transposed, const float *w,
                               void *packed)
{
    int inputs = transposed ? conv->c_out : conv->c_in;
    int outputs = transposed ? conv->c_in : conv->c_out;
    int weights = packed_edge(conv) * packed_edge(conv);
    source s = {.w = w, .ld = (int64_t)conv->kernel * conv->kernel * conv->c_in};
    uint16_t *to = packed;

    for (int o = 0; o < outputs; o += 2 * TILE_COLUMNS) {
        for (int weight = 0; weight < weights; weight++) {
            source_start(&s, conv, weight);
            for (int i = 0; i < inputs; i += TILE_HALVES) {
                to = pack_step(parts, transposed, &s, o, i, outputs - o, inputs - i, to);
            }
        }
    }
}
