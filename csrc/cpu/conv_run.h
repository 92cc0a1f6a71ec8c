/* Products of image copies with packed weights: the forward pass and the gradient of the input.
 *
 * Purpose: both are sums over a few runs, words that stand one behind the other at every pixel of a
 * zero-bordered copy (three pixels of a row for a 3x3 kernel), times weights that stand likewise in
 * [panel][tap][word][16]. Tiles of pixels times vectors of output channels stay in registers over all
 * runs. A number's operations come in one order, whatever the tile that it falls into: a row's bits do
 * not depend on the rows beside it. A word is a float32 or a pair of bfloat16.
 * Ownership and threads: pure functions on the caller's memory. Included by conv.c.
 */
#ifndef DSB_CPU_CONV_RUN_H
#define DSB_CPU_CONV_RUN_H

#include "cpu/conv_pad.h"

static const dsb_word CONV_WORD = CONV_PAIRS ? DSB_WORD_CHANNELS : DSB_WORD_FLOAT;

enum {
    CONV_PV = DSB_PANEL / DSB_VL, /* vectors in a panel */
#if DSB_VL == 16
    CONV_PIXELS = 14, /* of a tile */
    CONV_PANELS = 2,
#elif DSB_VL == 8
    CONV_PIXELS = 6,
    CONV_PANELS = 1,
#elif defined(__aarch64__)
    CONV_PIXELS = 5,
    CONV_PANELS = 1,
#else
    CONV_PIXELS = 3,
    CONV_PANELS = 1,
#endif
    CONV_WIDTH = CONV_PANELS * CONV_PV, /* vectors of a full tile */
    /* A tile is some pixels of one row, or of two or three short rows. Where vectors are narrow, general
     * registers suffice for a pointer to each pixel: there it is any pixels, each a piece of its own. */
    CONV_BY_ROWS = CONV_PIXELS == 14,
    CONV_PIECES = CONV_BY_ROWS ? 3 : CONV_PIXELS,
    CONV_LENGTH = CONV_BY_ROWS ? CONV_PIXELS : 1, /* most pixels of a piece */
    CONV_RUNS = 4,
    CONV_GROUP_BYTES = 192 << 10, /* small images are copied together, up to so much */
    /* Words whose products are one chain of sums, which then are summed themselves: a single chain over all
     * 9 c words would lose three times as much. Rounded operands lose more than either. */
    CONV_SPAN = CONV_PAIRS ? 1 << 20 : 96,
};

/* Rows of output pixels, all made from the same runs. Lines, rows and images of x in words, of y in
 * lines; x and y are at the first pixel that is made. */
typedef struct conv_job {
    int runs, length; /* of each run, in words */
    int64_t x_run[CONV_RUNS], w_run[CONV_RUNS];
    int images, rows, pixels;
    const float *x;
    int64_t x_image, x_row, x_pixel;
    const float *w;
    int64_t w_panel;
    int columns; /* of y */
    dsb_slot y, residual;
    int64_t y_image, y_row, y_pixel;
    const float *add; /* [images][pitch]: added to every pixel */
    int64_t add_image;
} conv_job;

/* Neighbouring pixels of a tile. */
typedef struct conv_piece {
    const float *x, *add;
    int64_t y; /* line of the first pixel */
} conv_piece;

/* From pixel `pixel` of row `row` on, rows counted through all images. */
DSB_INLINE conv_piece
conv_piece_at(const conv_job *job, int64_t row, int64_t pixel)
{
    int64_t image = row / job->rows, i = row % job->rows;
    conv_piece piece = {
        .x = job->x + image * job->x_image + i * job->x_row + pixel * job->x_pixel,
        .add = job->add + image * job->add_image,
        .y = image * job->y_image + i * job->y_row + pixel * job->y_pixel,
    };

    return piece;
}

/* The end of a tile where y or the residual are not of the kind that its own code knows. */
static void
conv_finish(const conv_job *job, int pixels, int vectors, int64_t line, int64_t column,
            const float *sums)
{
    const dsb_slot *y = &job->y, *residual = &job->residual;

    for (int p = 0; p < pixels; p++, line += job->y_pixel) {
        for (int v = 0; v < vectors; v++) {
            int64_t c = column + v * DSB_VL;
            vf sum = vf_load(sums + (p * vectors + v) * DSB_VL);

            if (residual->data != NULL) {
                sum += vf_load_as(residual->dtype == DSB_BFLOAT16, residual->data,
                                  line * residual->ld + c);
            }
            vf_store_as(y->dtype == DSB_BFLOAT16, y->data, line * y->ld + c, sum);
        }
    }
}

DSB_INLINE void
conv_store(const conv_job *job, int pixels, int vectors, const conv_piece *piece, int64_t column,
           vf acc[CONV_LENGTH][CONV_WIDTH])
{
    const dsb_slot *y = &job->y;

    DSB_UNROLL
    for (int v = 0; v < vectors; v++) {
        vf add = vf_load(piece->add + column + v * DSB_VL);

        DSB_UNROLL
        for (int p = 0; p < pixels; p++) {
            acc[p][v] += add;
        }
    }
    if (y->dtype != (CONV_PAIRS ? DSB_BFLOAT16 : DSB_FLOAT32) || job->residual.data != NULL) {
        float sums[CONV_LENGTH * CONV_WIDTH * DSB_VL];

        DSB_UNROLL
        for (int t = 0; t < pixels * vectors; t++) {
            vf_store(sums + t * DSB_VL, acc[t / vectors][t % vectors]);
        }
        conv_finish(job, pixels, vectors, piece->y, column, sums);
        return;
    }
    DSB_UNROLL
    for (int t = 0; t < pixels * vectors; t++) {
        int64_t to =
            (piece->y + t / vectors * job->y_pixel) * y->ld + column + t % vectors * DSB_VL;

        if (CONV_PAIRS) {
            conv_store_bf16(y->data, to, acc[t / vectors][t % vectors]);
        } else {
            vf_store((float *)y->data + to, acc[t / vectors][t % vectors]);
        }
    }
}

/* acc += the products of the words first .. last - 1 of a run. */
DSB_INLINE void
conv_span(const conv_job *job, int pieces, int pixels, int vectors, const float *const *x,
          const float *weights, int64_t first, int64_t last,
          vf acc[CONV_PIECES][CONV_LENGTH][CONV_WIDTH])
{
    int64_t step = job->x_pixel;

    for (int64_t k = first; k < last; k++) {
        vf w[CONV_WIDTH];

        DSB_UNROLL
        for (int v = 0; v < vectors; v++) {
            w[v] = vf_load(weights + v / CONV_PV * job->w_panel + k * DSB_PANEL +
                           v % CONV_PV * DSB_VL);
        }
        DSB_UNROLL
        for (int t = 0; t < pieces * pixels; t++) {
            int i = t / pixels, p = t % pixels;
            vf q = vf_splat(x[i][p * step + k]);

            DSB_UNROLL
            for (int v = 0; v < vectors; v++) {
                acc[i][p][v] = conv_product(q, w[v], acc[i][p][v]);
            }
        }
    }
}

/* sums += acc, which begins again; sums = 0 where they begin too. */
DSB_INLINE void
conv_add_spans(bool begin, int pieces, int pixels, int vectors,
               vf acc[CONV_PIECES][CONV_LENGTH][CONV_WIDTH],
               vf sums[CONV_PIECES][CONV_LENGTH][CONV_WIDTH])
{
    DSB_UNROLL
    for (int t = 0; t < pieces * pixels * vectors; t++) {
        int i = t / vectors / pixels, p = t / vectors % pixels, v = t % vectors;

        sums[i][p][v] = begin ? (vf){0} : sums[i][p][v] + acc[i][p][v];
        acc[i][p][v] = (vf){0};
    }
}

/* `pieces` pieces of `pixels` pixels each, times `vectors` vectors of columns; the first `count` are
 * wanted. */
DSB_INLINE void
conv_tile(const conv_job *job, int pieces, int pixels, int vectors, const conv_piece *piece,
          int count, int64_t column)
{
    vf acc[CONV_PIECES][CONV_LENGTH][CONV_WIDTH], sums[CONV_PIECES][CONV_LENGTH][CONV_WIDTH];
    const float *panel = job->w + column / DSB_PANEL * job->w_panel;
    int64_t length = 0; /* of the chain in acc */

    conv_add_spans(true, pieces, pixels, vectors, acc, sums);
    for (int run = 0; run < job->runs; run++) {
        const float *x[CONV_PIECES];

        DSB_UNROLL
        for (int i = 0; i < pieces; i++) {
            x[i] = piece[i].x + job->x_run[run];
        }
        for (int64_t k = 0; k < job->length; k += CONV_SPAN) {
            int64_t end = job->length - k < CONV_SPAN ? job->length : k + CONV_SPAN;

            if (length + end - k > CONV_SPAN) {
                conv_add_spans(false, pieces, pixels, vectors, acc, sums);
                length = 0;
            }
            conv_span(job, pieces, pixels, vectors, x, panel + job->w_run[run], k, end, acc);
            length += end - k;
        }
    }
    conv_add_spans(false, pieces, pixels, vectors, acc, sums);
    DSB_UNROLL
    for (int i = 0; i < pieces; i++) {
        if (i < count) {
            conv_store(job, pixels, vectors, &piece[i], column, sums[i]);
        }
    }
}

/* ---- tiles of any pixels ---- */

/* Pixel by pixel through all images. */
typedef struct conv_walk {
    int64_t row, left; /* pixels that are still to come */
    int pixel;
    conv_piece at;
} conv_walk;

DSB_INLINE conv_walk
conv_walk_begin(const conv_job *job)
{
    return (conv_walk){0, (int64_t)job->images * job->rows * job->pixels, 0,
                       conv_piece_at(job, 0, 0)};
}

/* The next `n` pixels, the last one again where they end; returns how many there were. */
DSB_INLINE int
conv_walk_next(const conv_job *job, conv_walk *walk, int n, conv_piece *pieces)
{
    int count = walk->left < n ? (int)walk->left : n;

    for (int i = 0; i < n; i++) {
        if (i >= count) {
            pieces[i] = pieces[i - 1];
            continue;
        }
        pieces[i] = walk->at;
        walk->at.x += job->x_pixel;
        walk->at.y += job->y_pixel;
        walk->left--;
        if (++walk->pixel == job->pixels && walk->left > 0) {
            walk->pixel = 0;
            walk->at = conv_piece_at(job, ++walk->row, 0);
        }
    }
    return count;
}

/* All pixels times a panel. */
static void
conv_each_pixel(const conv_job *job, int64_t column)
{
    conv_walk walk = conv_walk_begin(job);
    conv_piece pieces[CONV_PIECES];

    while (walk.left > 0) {
        int count = conv_walk_next(job, &walk, CONV_PIECES, pieces);

        conv_tile(job, CONV_PIECES, 1, CONV_PV, pieces, count, column);
    }
}

/* ---- tiles of rows ---- */

/* A tile of this shape, where tiles are of rows. */
DSB_INLINE void
conv_row_tile(const conv_job *job, int pieces, int pixels, int vectors, const conv_piece *piece,
              int count, int64_t column)
{
    if (CONV_BY_ROWS) {
        conv_tile(job, pieces, CONV_BY_ROWS ? pixels : 1, vectors, piece, count, column);
    }
}

/* 7 .. 14 pixels of a row. */
DSB_INLINE void
conv_long_piece(const conv_job *job, int pixels, int vectors, const conv_piece *piece,
                int64_t column)
{
    switch (pixels) {
    case 7:
        conv_row_tile(job, 1, 7, vectors, piece, 1, column);
        break;
    case 8:
        conv_row_tile(job, 1, 8, vectors, piece, 1, column);
        break;
    case 9:
        conv_row_tile(job, 1, 9, vectors, piece, 1, column);
        break;
    case 10:
        conv_row_tile(job, 1, 10, vectors, piece, 1, column);
        break;
    case 11:
        conv_row_tile(job, 1, 11, vectors, piece, 1, column);
        break;
    case 12:
        conv_row_tile(job, 1, 12, vectors, piece, 1, column);
        break;
    case 13:
        conv_row_tile(job, 1, 13, vectors, piece, 1, column);
        break;
    default:
        conv_row_tile(job, 1, 14, vectors, piece, 1, column);
        break;
    }
}

/* Rows of up to 7 pixels: two or three of them, of which `count` are wanted. */
DSB_INLINE void
conv_short_rows(const conv_job *job, int vectors, const conv_piece *pieces, int count,
                int64_t column)
{
    switch (job->pixels) {
    case 1:
        conv_row_tile(job, 2, 1, vectors, pieces, count, column);
        break;
    case 2:
        conv_row_tile(job, 2, 2, vectors, pieces, count, column);
        break;
    case 3:
        conv_row_tile(job, 2, 3, vectors, pieces, count, column);
        break;
    case 4:
        conv_row_tile(job, 3, 4, vectors, pieces, count, column);
        break;
    case 5:
        conv_row_tile(job, 2, 5, vectors, pieces, count, column);
        break;
    case 6:
        conv_row_tile(job, 2, 6, vectors, pieces, count, column);
        break;
    default:
        conv_row_tile(job, 2, 7, vectors, pieces, count, column);
        break;
    }
}

/* All rows times `vectors` vectors. Long rows are cut into pieces of nearly the same length; the last
 * tile of short rows repeats the last row. */
DSB_INLINE void
conv_each_row(const conv_job *job, int vectors, int64_t column)
{
    int64_t rows = (int64_t)job->images * job->rows;
    int some = job->pixels > 7 ? 1 : job->pixels == 4 ? 3 : 2;
    int cuts = (job->pixels + CONV_LENGTH - 1) / CONV_LENGTH;

    for (int64_t row = 0; row < rows; row += some) {
        conv_piece pieces[CONV_PIECES];

        for (int i = 0; i < some; i++) {
            pieces[i] = conv_piece_at(job, row + i < rows ? row + i : rows - 1, 0);
        }
        if (some > 1) {
            conv_short_rows(job, vectors, pieces, rows - row < some ? (int)(rows - row) : some,
                            column);
            continue;
        }
        for (int n = cuts, left = job->pixels; n > 0; n--) {
            int pixels = left / n;

            conv_long_piece(job, pixels, vectors, pieces, column);
            pieces->x += pixels * job->x_pixel;
            pieces->y += pixels * job->y_pixel;
            left -= pixels;
        }
    }
}

static void
run_job(const conv_job *job)
{
    int64_t column = 0;

    if (!CONV_BY_ROWS) {
        for (; column < job->columns; column += DSB_PANEL) {
            conv_each_pixel(job, column);
        }
        return;
    }
    for (; job->columns - column > DSB_PANEL; column += 2 * DSB_PANEL) {
        conv_each_row(job, CONV_WIDTH, column);
    }
    if (column < job->columns) {
        conv_each_row(job, CONV_PV, column);
    }
}

#endif
