/* Products of image copies with packed weights: the forward pass and the gradient of the input.
 *
 * Purpose: both are sums over a few runs, words that stand one behind the other at every pixel of a
 * zero-bordered copy (three pixels of a row for a 3x3 kernel), times weights that stand likewise in
 * [panel][tap][word][16]. Tiles of pixels times vectors of output channels stay in registers over all
 * runs. A number's operations come in one order, whatever the tile that it falls into: a row's bits do
 * not depend on the rows beside it. A word is a float32 or a pair of bfloat16 .
 * Ownership and threads: pure functions on the caller's memory. Included by conv.c and conv_bf16.c.
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
    CONV_ROWS = 3,                      /* most image rows of a tile */
    CONV_RUNS = 9,
    CONV_GROUP_BYTES = 192 << 10, /* small images are copied together, up to so much */
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

/* A tile's piece of a row. */
typedef struct conv_piece {
    const float *x, *add;
    int64_t y; /* line of the first pixel */
} conv_piece;

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
           vf acc[CONV_PIXELS][CONV_WIDTH])
{
    const dsb_slot *y = &job->y, *residual = &job->residual;
    dsb_dtype own = CONV_PAIRS ? DSB_BFLOAT16 : DSB_FLOAT32;

    DSB_UNROLL
    for (int v = 0; v < vectors; v++) {
        vf add = vf_load(piece->add + column + v * DSB_VL);

        DSB_UNROLL
        for (int p = 0; p < pixels; p++) {
            acc[p][v] += add;
        }
    }
    if (y->dtype != own || residual->data != NULL) {
        float sums[CONV_PIXELS * CONV_WIDTH * DSB_VL];

        DSB_UNROLL
        for (int t = 0; t < pixels * vectors; t++) {
            vf_store(sums + t * DSB_VL, acc[t / vectors][t % vectors]);
        }
        conv_finish(job, pixels, vectors, piece->y, column, sums);
        return;
    }
    DSB_UNROLL
    for (int t = 0; t < pixels * vectors; t++) {
        int64_t line = piece->y + t / vectors * job->y_pixel;

        vf_store_as(CONV_PAIRS, y->data, line * y->ld + column + t % vectors * DSB_VL,
                    acc[t / vectors][t % vectors]);
    }
}

/* `rows` pieces of `pixels` pixels each, times `vectors` vectors of columns. */
DSB_INLINE void
conv_tile(const conv_job *job, int rows, int pixels, int vectors, const conv_piece *pieces,
          int64_t column)
{
    vf acc[CONV_ROWS][CONV_PIXELS][CONV_WIDTH];
    const float *panel = job->w + column / DSB_PANEL * job->w_panel;
    int64_t step = job->x_pixel;

    DSB_UNROLL
    for (int t = 0; t < rows * pixels * vectors; t++) {
        acc[t / vectors / pixels][t / vectors % pixels][t % vectors] = (vf){0};
    }
    for (int run = 0; run < job->runs; run++) {
        const float *weights = panel + job->w_run[run], *x[CONV_ROWS];

        DSB_UNROLL
        for (int i = 0; i < rows; i++) {
            x[i] = pieces[i].x + job->x_run[run];
        }
        for (int64_t k = 0; k < job->length; k++) {
            vf w[CONV_WIDTH];

            DSB_UNROLL
            for (int v = 0; v < vectors; v++) {
                w[v] = vf_load(weights + v / CONV_PV * job->w_panel + k * DSB_PANEL +
                               v % CONV_PV * DSB_VL);
            }
            DSB_UNROLL
            for (int t = 0; t < rows * pixels; t++) {
                int i = t / pixels, p = t % pixels;
                vf q = vf_splat(x[i][p * step + k]);

                DSB_UNROLL
                for (int v = 0; v < vectors; v++) {
                    acc[i][p][v] = conv_product(q, w[v], acc[i][p][v]);
                }
            }
        }
    }
    DSB_UNROLL
    for (int i = 0; i < rows; i++) {
        conv_store(job, pixels, vectors, &pieces[i], column, acc[i]);
    }
}

/* A tile of so many pixels of one row, where a tile can be so large. */
DSB_INLINE void
conv_row_tile(const conv_job *job, int pixels, int vectors, const conv_piece *piece, int64_t column)
{
    if (pixels <= CONV_PIXELS) {
        conv_tile(job, 1, pixels <= CONV_PIXELS ? pixels : 1, vectors, piece, column);
    }
}

DSB_INLINE void
conv_one_row(const conv_job *job, int pixels, int vectors, const conv_piece *piece, int64_t column)
{
    switch (pixels) {
    case 1:
        conv_row_tile(job, 1, vectors, piece, column);
        break;
    case 2:
        conv_row_tile(job, 2, vectors, piece, column);
        break;
    case 3:
        conv_row_tile(job, 3, vectors, piece, column);
        break;
    case 4:
        conv_row_tile(job, 4, vectors, piece, column);
        break;
    case 5:
        conv_row_tile(job, 5, vectors, piece, column);
        break;
    case 6:
        conv_row_tile(job, 6, vectors, piece, column);
        break;
    case 7:
        conv_row_tile(job, 7, vectors, piece, column);
        break;
    case 8:
        conv_row_tile(job, 8, vectors, piece, column);
        break;
    case 9:
        conv_row_tile(job, 9, vectors, piece, column);
        break;
    case 10:
        conv_row_tile(job, 10, vectors, piece, column);
        break;
    case 11:
        conv_row_tile(job, 11, vectors, piece, column);
        break;
    case 12:
        conv_row_tile(job, 12, vectors, piece, column);
        break;
    case 13:
        conv_row_tile(job, 13, vectors, piece, column);
        break;
    default:
        conv_row_tile(job, 14, vectors, piece, column);
        break;
    }
}

/* Image rows to a tile: several where they are short and registers are many. */
DSB_INLINE int
conv_tile_rows(int pixels)
{
    if (CONV_PIXELS < 14 || pixels > 7) {
        return 1;
    }
    return pixels == 4 ? 3 : 2;
}

/* A full tile over `rows` > 1 whole rows. */
DSB_INLINE void
conv_many_rows(const conv_job *job, int rows, int pixels, const conv_piece *pieces, int64_t column)
{
    enum { MANY = CONV_PIXELS == 14 };

    if (!MANY) {
        return;
    }
    if (rows == 3) {
        conv_tile(job, MANY ? 3 : 1, MANY ? 4 : 1, CONV_WIDTH, pieces, column);
    } else if (pixels == 7) {
        conv_tile(job, MANY ? 2 : 1, MANY ? 7 : 1, CONV_WIDTH, pieces, column);
    } else if (pixels == 6) {
        conv_tile(job, MANY ? 2 : 1, MANY ? 6 : 1, CONV_WIDTH, pieces, column);
    } else if (pixels == 5) {
        conv_tile(job, MANY ? 2 : 1, MANY ? 5 : 1, CONV_WIDTH, pieces, column);
    } else if (pixels == 4) {
        conv_tile(job, MANY ? 2 : 1, MANY ? 4 : 1, CONV_WIDTH, pieces, column);
    } else if (pixels == 3) {
        conv_tile(job, MANY ? 2 : 1, MANY ? 3 : 1, CONV_WIDTH, pieces, column);
    } else if (pixels == 2) {
        conv_tile(job, MANY ? 2 : 1, MANY ? 2 : 1, CONV_WIDTH, pieces, column);
    } else {
        conv_tile(job, MANY ? 2 : 1, 1, CONV_WIDTH, pieces, column);
    }
}

/* Row `row` of all the rows of all images, from pixel `pixel` on. */
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

/* One row in pieces of nearly the same length. */
DSB_INLINE void
conv_cut_row(const conv_job *job, int vectors, int64_t row, int64_t column)
{
    int pieces = (job->pixels + CONV_PIXELS - 1) / CONV_PIXELS, done = 0;

    for (int n = 0; n < pieces; n++) {
        int pixels = (job->pixels - done) / (pieces - n);
        conv_piece piece = conv_piece_at(job, row, done);

        conv_one_row(job, pixels, vectors, &piece, column);
        done += pixels;
    }
}

/* All rows times a full tile's columns, or those of one panel. */
static void
conv_columns(const conv_job *job, bool full, int64_t column)
{
    int64_t rows = (int64_t)job->images * job->rows, r = 0;
    int many = conv_tile_rows(job->pixels);

    for (; full && many > 1 && r + many <= rows; r += many) {
        conv_piece pieces[CONV_ROWS];

        for (int i = 0; i < many; i++) {
            pieces[i] = conv_piece_at(job, r + i, 0);
        }
        conv_many_rows(job, many, job->pixels, pieces, column);
    }
    for (; r < rows; r++) {
        if (full) {
            conv_cut_row(job, CONV_WIDTH, r, column);
        } else {
            conv_cut_row(job, CONV_PV, r, column);
        }
    }
}

static void
run_job(const conv_job *job)
{
    int64_t column = 0;

    for (; CONV_PANELS == 2 && job->columns - column > DSB_PANEL; column += 2 * DSB_PANEL) {
        conv_columns(job, true, column);
    }
    for (; column < job->columns; column += DSB_PANEL) {
        conv_columns(job, CONV_PANELS == 1, column);
    }
}

#endif
