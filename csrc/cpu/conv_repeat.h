/* The gradient of a convolution whose input was up-sampled by repeating pixels.
 *
 * Purpose: a pixel of the small image stands at 2 x 2 places of the large one, and what a tap does with
 * it there it does with the sum: dx[p] = sum over taps of w[tap] s[p][tap] and dw[tap] = sum over p of
 * s[p][tap] x[p], where s[p][tap] sums dy over the 2 x 2 pixels that the tap reached from there. That is
 * a quarter of the products. Taps are numbered from last to first, as in transposed weights.
 * Ownership and threads: pure functions. Included by csrc/cpu/conv*.c only.
 */
#ifndef DSB_CPU_CONV_REPEAT_H
#define DSB_CPU_CONV_REPEAT_H

#include "cpu/conv_pad.h"

/* Floats that conv_sum_repeats works in: the sums of a pixel, twice, and zeros. */
DSB_INLINE int64_t
conv_repeat_work(int c)
{
    return 19 * dsb_pitch(c);
}

/* sums[tap][pitch] of pixel (i, j) of the small image; zeros from channel c on. */
DSB_INLINE void
conv_sum_pixel(int half, const dsb_conv *conv, dsb_slot dy, int i, int j, const float *zeros,
               float *sums)
{
    int h = 2 * conv->h, w = 2 * conv->w, c = conv->c_out, skip = conv->kernel == 3 ? 0 : 1;
    int64_t pitch = dsb_pitch(c);
    const void *at[4][4];

    for (int a = 0; a < 4; a++) {
        for (int b = 0; b < 4; b++) {
            int64_t row = 2 * i - 1 + a, column = 2 * j - 1 + b;
            bool in = row >= 0 && row < h && column >= 0 && column < w;

            at[a][b] = in ? dsb_slot_from(dy, (row * w + column) * dy.ld).data : zeros;
        }
    }
    for (int64_t k = 0; k < pitch; k += DSB_VL) {
        vf pairs[4][3];

        DSB_UNROLL
        for (int a = 0; a < 4; a++) {
            DSB_UNROLL
            for (int b = 0; b < 3; b++) {
                pairs[a][b] = vf_load_as(half, at[a][b], k) + vf_load_as(half, at[a][b + 1], k);
            }
        }
        for (int n = 0; n < conv->kernel * conv->kernel; n++) {
            int a = n / conv->kernel + skip, b = n % conv->kernel + skip;
            vf sum = pairs[a][b] + pairs[a + 1][b];

            vf_store(sums + n * pitch + k,
                     k + DSB_VL <= c ? sum : vf_select(vi_first(c - k), sum, (vf){0}));
        }
    }
}

/* Words [pixel][tap] of pixels first .. first + count - 1, counted through all images, or through all
 * pairs of images. */
DSB_INLINE void
conv_sum_repeats(dsb_word word, const dsb_conv *conv, int rows, dsb_slot dy, int64_t first,
                 int64_t count, float *work, float *to)
{
    int c = conv->c_out, words = dsb_words(word, c), taps = conv->kernel * conv->kernel;
    int64_t pitch = dsb_pitch(c), pixels = (int64_t)conv->h * conv->w;
    int together = word == DSB_WORD_IMAGES ? 2 : 1, half = dy.dtype == DSB_BFLOAT16;
    bool direct = word == DSB_WORD_FLOAT && pitch == c;
    float *zeros = work + 18 * pitch;

    memset(work, 0, sizeof *work * (size_t)conv_repeat_work(c));
    for (int64_t p = first; p < first + count; p++) {
        int64_t image = p / pixels * together;
        int i = (int)(p % pixels / conv->w), j = (int)(p % conv->w);

        for (int n = 0; n < together; n++) {
            float *sums = direct ? to : work + n * 9 * pitch;
            dsb_slot source = dsb_slot_from(dy, (image + n) * 4 * pixels * dy.ld);

            if (image + n >= rows) {
                memset(sums, 0, sizeof *sums * (size_t)(9 * pitch));
            } else if (half) {
                conv_sum_pixel(1, conv, source, i, j, zeros, sums);
            } else {
                conv_sum_pixel(0, conv, source, i, j, zeros, sums);
            }
        }
        for (int t = 0; t < taps && !direct; t++) {
            for (int k = 0; k < c; k += DSB_VL) {
                const float *sums = work + t * pitch + k;

                pad_store(word, to + t * words, k, vf_load(sums), vf_load(sums + 9 * pitch));
            }
        }
        to += taps * words;
    }
}

#endif
