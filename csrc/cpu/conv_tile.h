/* What the tile convolutions share: the flat space of places, taps, and reading images into it.
 *
 * Purpose: all images of a call become one line of places: an image is a grid, each grid row ends with one
 * empty place and each image with one empty row (3x3; none for 1x1), so that a tap is a constant distance
 * whatever the border, and a tile is 16 consecutive places. Empty places hold zeros as operands; results
 * there are dropped. Strides and scaling up are taken apart by parity: the side that has four pixels to a
 * place of the grid lies in four planes.
 *     forward, stride 2: x in planes, 9 taps.         Gradient: dx in planes of 1, 2, 2 and 4 taps.
 *     forward, up 2:     y in planes, 4 taps each.    Gradient: dy in planes, 16 taps.
 * Ownership: everything lies in the caller's scratch. Threads: one worker.
 */
#ifndef DSB_CPU_CONV_TILE_H
#define DSB_CPU_CONV_TILE_H

#include <stdbool.h>

#include "cpu/cpu.h"
#include "cpu/tile.h"

enum { MAX_TAPS = 16 };

/* Packed weights: conv_tile_pack.c. `parts` is 1 for bf16 and 2 for bf16x3, here and below. */
size_t DSB_KERNEL(dsb_conv_tile_packed_bytes)(int parts, const dsb_conv *conv, bool transposed);
void DSB_KERNEL(dsb_conv_tile_pack)(int parts, const dsb_conv *conv, bool transposed,
                                    const float *w, void *packed);
/* The gradient of the weights and its scratch: conv_tile_weight.c. */
size_t DSB_KERNEL(dsb_conv_tile_weight_bytes)(int parts, const dsb_conv *conv, int rows);
void DSB_KERNEL(dsb_conv_tile_weight)(int parts, const dsb_conv *conv, int rows, dsb_slot x,
                                      const dsb_affine *affine, dsb_slot dy, int beta, float *dw,
                                      float *db, void *scratch);

DSB_INLINE int64_t
round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Vector work between tile instructions, spread evenly: so much that it is worth a call, and not so much that
 * the processor cannot look beyond it to the next tile instructions. What is left at the end is little. */
typedef struct pace {
    int64_t rate, due; /* in units of 2^-16 */
} pace;

DSB_INLINE pace
pace_of(int64_t work, int64_t steps)
{
    return (pace){steps > 0 ? ((work << 16) + steps - 1) / steps : 0, 0};
}

/* What to do in this step: nothing, or at least `worth`. */
DSB_INLINE int64_t
pace_next(pace *p, int64_t worth)
{
    int64_t now;

    p->due += p->rate;
    now = p->due >> 16;
    if (now < worth) {
        return 0;
    }
    p->due &= 0xffff;
    return now;
}

/* ---- places ---- */

typedef struct space {
    int rows, h, w;    /* images, and the grid of one */
    int height, pitch; /* the grid with its empty row and column */
    int64_t places;    /* up to the last that counts */
    int64_t halo;      /* how far a tap reaches */
} space;

DSB_INLINE space
space_of(const dsb_conv *conv, int rows)
{
    int ho = dsb_conv_out(conv, conv->h), wo = dsb_conv_out(conv, conv->w);
    int gap = conv->kernel / 2;
    space s = {.rows = rows, .h = ho < conv->h ? ho : conv->h, .w = wo < conv->w ? wo : conv->w};

    s.height = s.h + gap;
    s.pitch = s.w + gap;
    s.halo = gap * (s.pitch + 1);
    s.places = (int64_t)rows * s.height * s.pitch - s.halo;
    return s;
}

typedef struct place {
    int row, y, x;
} place;

/* `at` may be negative, by no more than the halo. */
DSB_INLINE place
place_of(const space *s, int64_t at)
{
    int64_t image = (int64_t)s->height * s->pitch, inside = (at + image) % image;

    return (place){(int)((at + image) / image) - 1, (int)(inside / s->pitch),
                   (int)(inside % s->pitch)};
}

/* On by n places of the same grid row. */
DSB_INLINE void
place_skip(const space *s, place *p, int n)
{
    p->x += n;
    if (p->x == s->pitch) {
        p->x = 0;
        if (++p->y == s->height) {
            p->y = 0;
            p->row++;
        }
    }
}

/* The line of the image that a place has in a plane, -1 where there is none; places are `step` pixels apart. */
DSB_INLINE int64_t
place_line(const space *s, const place *p, int step, int plane, int h, int w)
{
    int y = p->y * step + plane / 2, x = p->x * step + plane % 2;

    if (p->row < 0 || p->row >= s->rows || p->y >= s->h || p->x >= s->w || y >= h || x >= w) {
        return -1;
    }
    return ((int64_t)p->row * h + y) * w + x;
}

/* ---- taps ---- */

typedef struct tap {
    int weight, plane; /* of the kernel, and of what is read */
    int64_t shift;     /* in places */
} tap;

/* A 3x3 kernel after scaling up by two: in one direction a fine pixel sees two coarse ones, and each through
 * one weight or two. So the kernel is kept as 4 x 4 sums: of weights {0}, {1, 2}, {0, 1}, {2} in a direction,
 * the first two for even fine pixels, the others for odd ones. */
DSB_INLINE bool
has_summed_weights(const dsb_conv *conv)
{
    return conv->up == 2 && conv->kernel == 3;
}

/* Packed weights in one direction. */
DSB_INLINE int
packed_edge(const dsb_conv *conv)
{
    return has_summed_weights(conv) ? 4 : conv->kernel;
}

/* The taps of one direction, at most 4, that reach plane `to` (0 or 1) of the result. Input pixel q and output
 * pixel p meet in tap n + (kernel - 1) / 2 where p stride + n = q up + r, r < up; with a unit of the grid being
 * `stride up` fine pixels, what is left of either side is its plane. */
DSB_INLINE int
line_taps(const dsb_conv *conv, bool transposed, int to, tap *taps)
{
    int n = 0, coarse = conv->stride * conv->up - 1;
    int planes = transposed ? conv->up : conv->stride;

    for (int r = 0; r < (transposed ? conv->up : 1); r++) {
        for (int k = 0; k < conv->kernel; k++) {
            int away = k - conv->kernel / 2, at = transposed ? to + r - away : to + away;

            if (transposed && conv->stride == 2 && at % 2 != 0) {
                continue;
            }
            taps[n++] = (tap){.weight = k, .plane = at & (planes - 1), .shift = at >> coarse};
        }
    }
    return n;
}

/* The same with summed weights: forward, the coarse pixels p - 1 and p for an even fine one, p and p + 1 for an
 * odd one; the gradient comes from the fine pixels 2 p - 1 .. 2 p + 2. */
DSB_INLINE int
line_taps_summed(bool transposed, int to, tap *taps)
{
    static const int weights[] = {3, 1, 2, 0};

    if (!transposed) {
        taps[0] = (tap){.weight = to * 2, .shift = to - 1};
        taps[1] = (tap){.weight = to * 2 + 1, .shift = to};
        return 2;
    }
    for (int k = 0; k < 4; k++) {
        taps[k] = (tap){.weight = weights[k], .plane = (k - 1) & 1, .shift = (k - 1) >> 1};
    }
    return 4;
}

/* All taps that reach plane `to` of the result, of packed weights or (`summed` false) of the kernel's own;
 * returns how many, at most MAX_TAPS. */
static inline __attribute__((unused)) int
list_taps(const space *s, const dsb_conv *conv, bool summed, bool transposed, int to,
          tap taps[MAX_TAPS])
{
    tap line[2][4];
    int count[2], n = 0;

    summed = summed && has_summed_weights(conv);
    for (int i = 0; i < 2; i++) {
        int plane = i == 0 ? to / 2 : to % 2;

        count[i] = summed ? line_taps_summed(transposed, plane, line[i])
                          : line_taps(conv, transposed, plane, line[i]);
    }
    for (int i = 0; i < count[0] * count[1]; i++) {
        tap v = line[0][i / count[1]], u = line[1][i % count[1]];

        taps[n++] = (tap){.weight = v.weight * (summed ? 4 : conv->kernel) + u.weight,
                          .plane = v.plane * 2 + u.plane,
                          .shift = v.shift * s->pitch + u.shift};
    }
    return n;
}

/* ---- reading images ---- */

DSB_INLINE void
half_store(uint16_t *to, vf v)
{
#if defined(__AVX512BF16__)
    __m256bh halves = _mm512_cvtneps_pbh((__m512)v);

    memcpy(to, &halves, sizeof halves);
#else
    vf_store_bf16(to, v);
#endif
}

/* 16 numbers as bfloat16 and, with two parts, what that leaves, also as bfloat16. */
DSB_INLINE void
half_parts(int parts, vf v, uint16_t *to, int64_t part)
{
    half_store(to, v);
    if (parts == 2) {
        half_store(to + part, v - vf_load_bf16(to));
    }
}

/* Pairs of bfloat16, each in the upper half of its number: a below b. */
DSB_INLINE vf
vf_pairs(vi a, vi b)
{
    typedef uint32_t bits __attribute__((vector_size(4 * DSB_VL)));

    return (vf)((vi)((bits)a >> 16) | b);
}

/* A row of a tile of pairs: 16 pairs (a[i], b[i]). */
DSB_INLINE void
pair_row(const uint16_t *a, const uint16_t *b, void *to)
{
    for (int c = 0; c < TILE_COLUMNS; c += DSB_VL) {
        vf_store((float *)to + c, vf_pairs((vi)vf_load_bf16(a + c), (vi)vf_load_bf16(b + c)));
    }
}

enum { AS_IT_IS, AFFINE, AFFINE_SILU };

/* Vectors that are read at once: they divide a group of 32 channels. */
enum { AT_ONCE = TILE_HALVES / DSB_VL < VF_MANY ? TILE_HALVES / DSB_VL : VF_MANY };

/* Reads an image into lines of bfloat16: one for each place from `at` on, the channels rounded up to 32 with
 * zeros; [plane][part][line][channel]. */
typedef struct reader {
    const space *space;
    dsb_slot image;
    const float *ab;
    int mode, parts;
    int h, w, c, step, planes; /* planes: 1, or 4 */
    int wide;                  /* channels of a line */
    int64_t part;              /* numbers from part to part */
    uint16_t *to;              /* line of the place `at` */
    int64_t left;              /* places */
    place at;
    int plane, group;
    int64_t line; /* of the image, at this place in this plane; -1: zeros */
} reader;

/* n groups of 32 channels, of which `left` numbers are channels and the rest zeros. */
DSB_INLINE void
read_groups(int half, int mode, int parts, const reader *r, int n, uint16_t *to)
{
    const int64_t c0 = r->group * TILE_HALVES, i = r->line * r->image.ld + c0;
    const float *a = r->ab, *b = r->ab;
    int left = r->c - (int)c0;

    if (mode != AS_IT_IS) {
        a += r->at.row * 2 * dsb_pitch(r->c) + c0;
        b = a + dsb_pitch(r->c);
    }
    for (int c = 0; c < n * TILE_HALVES; c += AT_ONCE * DSB_VL) {
        vf v[AT_ONCE];

        DSB_UNROLL
        for (int k = 0; k < AT_ONCE; k++) {
            int d = c + k * DSB_VL;

            v[k] = (vf){0};
            if (d < left) {
                v[k] = vf_load_as(half, r->image.data, i + d);
                v[k] = mode == AS_IT_IS ? v[k] : vf_fma(vf_load(a + d), v[k], vf_load(b + d));
            }
        }
        if (mode == AFFINE_SILU) {
            vf_silu_many(AT_ONCE, v);
        }
        DSB_UNROLL
        for (int k = 0; k < AT_ONCE; k++) {
            int d = c + k * DSB_VL;

            if (left - d < DSB_VL) {
                v[k] = vf_select(vi_first(left - d), v[k], (vf){0});
            }
            half_parts(parts, v[k], to + d, r->part);
        }
    }
}

DSB_INLINE void
read_groups_as(int half, int mode, const reader *r, int n, uint16_t *to)
{
    if (r->parts == 2) {
        read_groups(half, mode, 2, r, n, to);
    } else {
        read_groups(half, mode, 1, r, n, to);
    }
}

/* n groups of the channels of one place in one plane. */
DSB_INLINE void
read_place(const reader *r, int n)
{
    uint16_t *to = r->to + r->plane * r->parts * r->part + r->group * TILE_HALVES;

    if (r->line < 0) {
        for (int p = 0; p < r->parts; p++) {
            memset(to + p * r->part, 0, (size_t)n * TILE_BYTES);
        }
        return;
    }
    switch (r->mode * 2 + (r->image.dtype == DSB_BFLOAT16)) {
    case 2 * AS_IT_IS:
        read_groups_as(0, AS_IT_IS, r, n, to);
        break;
    case 2 * AS_IT_IS + 1:
        read_groups_as(1, AS_IT_IS, r, n, to);
        break;
    case 2 * AFFINE:
        read_groups_as(0, AFFINE, r, n, to);
        break;
    case 2 * AFFINE + 1:
        read_groups_as(1, AFFINE, r, n, to);
        break;
    case 2 * AFFINE_SILU:
        read_groups_as(0, AFFINE_SILU, r, n, to);
        break;
    default:
        read_groups_as(1, AFFINE_SILU, r, n, to);
    }
}

/* Reads up to n pieces: groups of 32 channels. */
static __attribute__((noinline, unused)) void
read_some(reader *r, int64_t n)
{
    int groups = r->wide / TILE_HALVES;

    while (n > 0 && r->left > 0) {
        int some = groups - r->group < n ? groups - r->group : (int)n;

        if (r->group == 0) {
            r->line = place_line(r->space, &r->at, r->step, r->plane, r->h, r->w);
        }
        read_place(r, some);
        n -= some;
        r->group += some;
        if (r->group == groups) {
            r->group = 0;
            if (++r->plane == r->planes) {
                r->plane = 0;
                r->to += r->wide;
                r->left--;
                place_skip(r->space, &r->at, 1);
            }
        }
    }
}

/* Places from `first` on into a buffer of `lines` lines. */
DSB_INLINE void
reader_start(reader *r, int64_t first, int64_t places, uint16_t *to, int64_t lines)
{
    r->at = place_of(r->space, first);
    r->plane = r->group = 0;
    r->left = places;
    r->to = to;
    r->part = lines * r->wide;
}

DSB_INLINE int64_t
reader_pieces(const reader *r, int64_t places)
{
    return places * r->planes * (r->wide / TILE_HALVES);
}

/* Numbers in a buffer of `lines` lines. */
DSB_INLINE int64_t
reader_numbers(const reader *r, int64_t lines)
{
    return lines * r->planes * r->parts * r->wide;
}

DSB_INLINE reader
reader_of_input(const dsb_conv *conv, int parts, dsb_slot x, const dsb_affine *affine)
{
    reader r = {.image = x, .parts = parts, .h = conv->h, .w = conv->w};

    r.c = conv->c_in;
    r.wide = (int)round_up(r.c, TILE_HALVES);
    r.step = conv->stride;
    r.planes = conv->stride == 2 && conv->kernel == 3 ? 4 : 1;
    if (affine != NULL && affine->ab != NULL) {
        r.ab = affine->ab;
        r.mode = affine->silu ? AFFINE_SILU : AFFINE;
    }
    return r;
}

DSB_INLINE reader
reader_of_output(const dsb_conv *conv, int parts, dsb_slot dy)
{
    reader r = {.image = dy, .parts = parts};

    r.h = dsb_conv_out(conv, conv->h);
    r.w = dsb_conv_out(conv, conv->w);
    r.c = conv->c_out;
    r.wide = (int)round_up(r.c, TILE_HALVES);
    r.step = conv->up;
    r.planes = conv->up == 2 ? 4 : 1;
    return r;
}

#endif
