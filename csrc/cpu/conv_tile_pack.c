/* Weights for convolutions on tiles:
 * [blocks of 32 outputs][tap][32 inputs][part, the rest first][16 outputs][16 pairs of inputs][16][2]: in
 * the order in which a block reads them. Zero beyond the channels. */
#include "cpu/conv_tile.h"

size_t
DSB_KERNEL(dsb_conv_tile_packed_bytes)(int parts, const dsb_conv *conv, bool transposed)
{
    int64_t inputs = transposed ? conv->c_out : conv->c_in;
    int64_t outputs = transposed ? conv->c_in : conv->c_out;

    return (size_t)(conv->kernel * conv->kernel * parts * round_up(inputs, TILE_HALVES) *
                    round_up(outputs, TILE_COLUMNS)) *
           sizeof(uint16_t);
}

/* n <= 16 numbers as bfloat16, then zeros; `rest` stores what that leaves instead. */
DSB_INLINE void
round_weights(bool rest, const float *w, int64_t n, uint16_t *to)
{
    for (int c = 0; c < TILE_COLUMNS; c += DSB_VL) {
        vf v = vf_load_part(w + c, n - c);

        half_store(to + c, v);
        if (rest) {
            half_store(to + c, v - vf_load_bf16(to + c));
        }
    }
}

/* The tile from input i and output o on, w[o][i] with outputs `ld` apart. */
static void
pack_tile(bool rest, const float *w, int64_t ld, int inputs, int outputs, uint16_t *to)
{
    uint16_t rows[TILE_COLUMNS][TILE_HALVES];
    float pairs[TILE_FLOATS];

    for (int o = 0; o < TILE_COLUMNS; o++) {
        int n = o < outputs ? inputs : 0;

        round_weights(rest, w + (n > 0 ? o * ld : 0), n, rows[o]);
        round_weights(rest, w + (n > 16 ? o * ld + 16 : 0), n - 16, rows[o] + 16);
    }
    memcpy(pairs, rows, sizeof pairs);
    for (int o = 0; o < TILE_COLUMNS; o += DSB_VL) {
        for (int k = 0; k < TILE_ROWS; k += 4) {
            vf_transpose_four(pairs + o * TILE_COLUMNS + k, TILE_COLUMNS,
                              (float *)to + k * TILE_COLUMNS + o, TILE_COLUMNS);
        }
    }
}

/* The same of w[i][o] with inputs `ld` apart. */
static void
pack_tile_transposed(bool rest, const float *w, int64_t ld, int inputs, int outputs, uint16_t *to)
{
    for (int i = 0; i < TILE_HALVES; i += 2) {
        uint16_t rows[2][TILE_COLUMNS];

        for (int k = 0; k < 2; k++) {
            int n = i + k < inputs ? outputs : 0;

            round_weights(rest, w + (n > 0 ? (i + k) * ld : 0), n, rows[k]);
        }
        pair_row(rows[0], rows[1], to + i * TILE_COLUMNS);
    }
}

void
DSB_KERNEL(dsb_conv_tile_pack)(int parts, const dsb_conv *conv, bool transposed, const float *w,
                               void *packed)
{
    int inputs = transposed ? conv->c_out : conv->c_in;
    int outputs = transposed ? conv->c_in : conv->c_out;
    int taps = conv->kernel * conv->kernel,
        blocks = (int)round_up(inputs, TILE_HALVES) / TILE_HALVES;
    int64_t ld = (int64_t)taps * conv->c_in;
    uint16_t *to = packed;

    for (int o = 0; o < outputs; o += 2 * TILE_COLUMNS) {
        for (int n = 0; n < taps * blocks; n++) {
            int at = n / blocks, i = n % blocks * TILE_HALVES;

            for (int part = parts - 1; part >= 0; part--) {
                for (int c = o; c < o + 2 * TILE_COLUMNS && c < outputs; c += TILE_COLUMNS) {
                    if (transposed) {
                        pack_tile_transposed(part, w + i * ld + (int64_t)at * conv->c_in + c, ld,
                                             inputs - i, outputs - c < 16 ? outputs - c : 16, to);
                    } else {
                        pack_tile(part, w + c * ld + (int64_t)at * conv->c_in + i, ld,
                                  inputs - i < TILE_HALVES ? inputs - i : TILE_HALVES, outputs - c,
                                  to);
                    }
                    to += TILE_NUMBERS;
                }
            }
        }
    }
}
