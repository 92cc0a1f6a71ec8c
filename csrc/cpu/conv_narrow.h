/* Convolutions to very few channels: the forward pass of an image net's last layer.
 *
 * Purpose: a panel would be mostly zeros, so weights stand as rows, [c_out][tap][word], vectors run along
 * the words of a run, and their lanes are summed at the end. Where a run ends within a vector, both
 * factors are masked: behind a run stands anything.
 * Ownership and threads: pure functions on the caller's memory. Included by conv.c only.
 */
#ifndef DSB_CPU_CONV_NARROW_H
#define DSB_CPU_CONV_NARROW_H

#include "cpu/conv_run.h"

enum { NARROW = 4, NARROW_PIXELS = 4 };

DSB_INLINE bool
conv_is_narrow(const dsb_conv *conv)
{
    return conv->c_out <= NARROW && conv->c_in >= 2 * DSB_PANEL && conv->up == 1;
}

DSB_INLINE void
narrow_tile(const conv_job *job, int outputs, const conv_piece *piece, int count)
{
    int64_t row = job->w_panel / DSB_PANEL; /* words of an output's weights */
    vf acc[NARROW_PIXELS][NARROW];

    DSB_UNROLL
    for (int t = 0; t < NARROW_PIXELS * outputs; t++) {
        acc[t / outputs][t % outputs] = (vf){0};
    }
    for (int run = 0; run < job->runs; run++) {
        const float *w = job->w + job->w_run[run] / DSB_PANEL;

        for (int64_t k = 0; k < job->length; k += DSB_VL) {
            vi mask = vi_first(job->length - k);
            vf weights[NARROW];

            DSB_UNROLL
            for (int o = 0; o < outputs; o++) {
                weights[o] = vf_select(mask, vf_load(w + o * row + k), (vf){0});
            }
            DSB_UNROLL
            for (int p = 0; p < NARROW_PIXELS; p++) {
                vf x = vf_select(mask, vf_load(piece[p].x + job->x_run[run] + k), (vf){0});

                DSB_UNROLL
                for (int o = 0; o < outputs; o++) {
                    acc[p][o] = conv_product(x, weights[o], acc[p][o]);
                }
            }
        }
    }
    for (int p = 0; p < count; p++) {
        float line[DSB_PANEL] = {0};

        DSB_UNROLL
        for (int o = 0; o < outputs; o++) {
            line[o] = vf_sum(acc[p][o]) + piece[p].add[o];
        }
        conv_finish(job, 1, CONV_PV, piece[p].y, 0, line);
    }
}

static void
run_narrow_job(const conv_job *job)
{
    conv_walk walk = conv_walk_begin(job);
    conv_piece pieces[NARROW_PIXELS];

    while (walk.left > 0) {
        int count = conv_walk_next(job, &walk, NARROW_PIXELS, pieces);

        if (job->columns == 1) {
            narrow_tile(job, 1, pieces, count);
        } else if (job->columns == 2) {
            narrow_tile(job, 2, pieces, count);
        } else if (job->columns == 3) {
            narrow_tile(job, 3, pieces, count);
        } else {
            narrow_tile(job, NARROW, pieces, count);
        }
    }
}

/* Each store spills over what comes next, the last one over the slack. */
static void
pack_narrow(const dsb_conv *conv, const float *w, float *packed)
{
    int64_t lines = (int64_t)conv->c_out * conv->kernel * conv->kernel;

    for (int64_t n = 0; n < lines; n++) {
        for (int i = 0; i < conv->c_in; i += DSB_VL) {
            pad_store(CONV_WORD, packed, i, vf_load_part(w + i, conv->c_in - i), (vf){0});
        }
        w += conv->c_in;
        packed += dsb_words(CONV_WORD, conv->c_in);
    }
}

#endif
