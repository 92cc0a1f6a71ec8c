/* Images laid out for the convolutions: pixels without gaps between them, zeros around.
 *
 * Purpose: one copy that also applies the affine and SiLU and converts.
 * The copy consists of 32-bit words: a float32 (DSB_WORD_FLOAT), a pair of channels as bfloat16
 * (DSB_WORD_CHANNELS, an odd last channel beside zero) or the same channel of two images as bfloat16
 * (DSB_WORD_IMAGES). A pixel has dsb_words() of them. Whole vectors are stored in ascending order,
 * each over what the one before has spilled; the last spills over at most DSB_PAD_SLACK words.
 * Ownership and threads: pure functions. Included by csrc/cpu/conv*.c only.
 */
#ifndef DSB_CPU_CONV_PAD_H
#define DSB_CPU_CONV_PAD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "backend.h"
#include "cpu/vector.h"

enum { DSB_PAD_SLACK = 16 }; /* words behind a copy that may be written and read */

typedef enum dsb_word { DSB_WORD_FLOAT, DSB_WORD_CHANNELS, DSB_WORD_IMAGES } dsb_word;

/* The shape of a copy. */
typedef struct dsb_frame {
    int h, w, c; /* of the source */
    int border;  /* zeros on each side */
} dsb_frame;

DSB_INLINE int
dsb_words(dsb_word word, int c)
{
    return word == DSB_WORD_CHANNELS ? (c + 1) / 2 : c;
}

/* Words in a row of a copy, and in an image. */
DSB_INLINE int64_t
dsb_frame_row(dsb_word word, const dsb_frame *frame)
{
    return (int64_t)(frame->w + 2 * frame->border) * dsb_words(word, frame->c);
}

DSB_INLINE int64_t
dsb_frame_image(dsb_word word, const dsb_frame *frame)
{
    return (frame->h + 2 * frame->border) * dsb_frame_row(word, frame);
}

/* One image of a slot and the affine of its row. */
typedef struct dsb_source {
    const void *data; /* NULL: zeros */
    int64_t ld;
    int half;        /* bfloat16 */
    const float *ab; /* a [pitch] and b [pitch], or NULL */
    bool silu;
} dsb_source;

DSB_INLINE dsb_source
dsb_source_of(dsb_slot x, const dsb_affine *affine, int64_t row, int64_t pixels, int c)
{
    bool has = affine != NULL && affine->ab != NULL;
    int64_t bytes = dsb_dtype_bytes(x.dtype);
    dsb_source source = {(const char *)x.data + row * pixels * x.ld * bytes, x.ld,
                         x.dtype == DSB_BFLOAT16, NULL, has && affine->silu};

    if (has) {
        source.ab = affine->ab + row * 2 * dsb_pitch(c);
    }
    return source;
}

/* Channels i .. i + DSB_VL - 1 of a pixel at `at` numbers from the start; zero from channel c on. */
DSB_INLINE vf
pad_value(const dsb_source *source, int half, int kind, int c, int64_t at, int i)
{
    vf v = vf_load_as(half, source->data, at + i);

    if (kind > 0) {
        v = vf_fma(vf_load(source->ab + i), v, vf_load(source->ab + dsb_pitch(c) + i));
    }
    if (kind > 1) {
        v = vf_silu(v);
    }
    return i + DSB_VL <= c ? v : vf_select(vi_first(c - i), v, (vf){0});
}

/* The instruction rounds as vf_store_bf16() does, but takes subnormal numbers for zero. */
DSB_INLINE void
conv_store_bf16(void *to, int64_t i, vf v)
{
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i_u *)((uint16_t *)to + i), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    vf_store_bf16((uint16_t *)to + i, v);
#endif
}

/* Words of two numbers as bfloat16, the first one in the lower half. */
DSB_INLINE void
pad_store_pair(float *to, int i, vf low, vf high)
{
#if defined(__AVX512BF16__)
    const __m512i by_turns =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);

    vf_store(to + i, (vf)_mm512_permutexvar_epi16(by_turns, both));
#else
    uint16_t bits[2][DSB_VL];

    vf_store_bf16(bits[0], low);
    vf_store_bf16(bits[1], high);
    for (int n = 0; n < DSB_VL; n++) {
        uint32_t word = bits[0][n] | (uint32_t)bits[1][n] << 16;

        memcpy(to + i + n, &word, sizeof word);
    }
#endif
}

/* One vector of words. */
DSB_INLINE void
pad_store(dsb_word word, float *to, int i, vf one, vf two)
{
    if (word == DSB_WORD_IMAGES) {
        pad_store_pair(to, i, one, two);
    } else if (word == DSB_WORD_CHANNELS) {
        conv_store_bf16(to, i, one);
    } else {
        vf_store(to + i, one);
    }
}

/* A row of pixels; `kind` is 0 (x as it is), 1 (affine) or 2 (affine and SiLU). */
DSB_INLINE void
pad_row_as(dsb_word word, int half, int kind, const dsb_frame *frame, const dsb_source *source,
           const dsb_source *other, int64_t line, float *to)
{
    int words = dsb_words(word, frame->c);
    bool both = word == DSB_WORD_IMAGES && other->data != NULL;

    for (int j = 0; j < frame->w; j++) {
        int64_t at = (line + j) * source->ld;

        for (int i = 0; i < frame->c; i += DSB_VL) {
            vf one = pad_value(source, half, kind, frame->c, at, i);
            vf two = both ? pad_value(other, half, kind, frame->c, at, i) : (vf){0};

            pad_store(word, to, i, one, two);
        }
        to += words;
    }
}

DSB_INLINE void
pad_row(dsb_word word, const dsb_frame *frame, const dsb_source *source, const dsb_source *other,
        int64_t line, float *to)
{
    int kind = source->ab == NULL ? 0 : source->silu ? 2 : 1;

    if (source->half) {
        if (kind == 0) {
            pad_row_as(word, 1, 0, frame, source, other, line, to);
        } else if (kind == 1) {
            pad_row_as(word, 1, 1, frame, source, other, line, to);
        } else {
            pad_row_as(word, 1, 2, frame, source, other, line, to);
        }
    } else if (kind == 0) {
        pad_row_as(word, 0, 0, frame, source, other, line, to);
    } else if (kind == 1) {
        pad_row_as(word, 0, 1, frame, source, other, line, to);
    } else {
        pad_row_as(word, 0, 2, frame, source, other, line, to);
    }
}

DSB_INLINE void
pad_zero(float *to, int64_t words)
{
    memset(to, 0, sizeof *to * (size_t)words);
}

/* One image into its frame, or two that share their words (`other`; its data NULL: zeros). */
DSB_INLINE void
dsb_pad_image(dsb_word word, const dsb_frame *frame, const dsb_source *source,
              const dsb_source *other, float *to)
{
    int64_t row = dsb_frame_row(word, frame);
    int64_t side = (int64_t)frame->border * dsb_words(word, frame->c);

    pad_zero(to, frame->border * row);
    to += frame->border * row;
    for (int i = 0; i < frame->h; i++) {
        pad_zero(to, side);
        pad_row(word, frame, source, other, (int64_t)i * frame->w, to + side);
        pad_zero(to + row - side, side);
        to += row;
    }
    pad_zero(to, frame->border * row);
}

/* ---- what the kernels of convolutions share ---- */

/* A file's products are of float32, or where it is compiled with AVX512_BF16 of pairs of bfloat16. */
#if defined(__AVX512BF16__)
enum { CONV_PAIRS = 1 };
#else
enum { CONV_PAIRS = 0 };
#endif

/* acc + w x, or acc + w0 x0 + w1 x1. */
DSB_INLINE vf
conv_product(vf x, vf w, vf acc)
{
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)w);
#else
    return vf_fma(x, w, acc);
#endif
}

/* A kernel that reads each pixel once, in the order in which they stand. */
DSB_INLINE bool
conv_flat(const dsb_conv *conv)
{
    return conv->kernel == 1 && conv->stride == 1 && conv->up == 1;
}

/* Taps of packed weights. Up-sampling by repeating pixels makes four kernels of 2x2 taps of a 3x3 one. */
enum { CONV_REPEATED_TAPS = 16 };

DSB_INLINE int
conv_forward_taps(const dsb_conv *conv)
{
    return conv->up == 2 && conv->kernel == 3 ? CONV_REPEATED_TAPS : conv->kernel * conv->kernel;
}

DSB_INLINE dsb_frame
conv_frame_forward(const dsb_conv *conv)
{
    return (dsb_frame){conv->h, conv->w, conv->c_in, conv->kernel / 2};
}

/* Of dy: beyond it the gradient is zero. */
DSB_INLINE dsb_frame
conv_frame_backward(const dsb_conv *conv)
{
    return (dsb_frame){dsb_conv_out(conv, conv->h), dsb_conv_out(conv, conv->w), conv->c_out,
                       conv->kernel / 2};
}

/* Words that the gradient of the weights needs (conv_weight.c). */
size_t DSB_KERNEL(dsb_conv_weight_scratch)(const dsb_conv *conv, int rows);

#endif
