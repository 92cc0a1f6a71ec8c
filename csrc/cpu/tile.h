/* Tiles: eight registers of 16 rows of 64 bytes, and the product of bfloat16 pairs into float32.
 *
 * Purpose: the operations that the tile kernels are written in. With -DDSB_TILE_TWIN they are plain C over
 * arrays, so that the kernels run on any machine; otherwise AMX's own instructions.
 * Ownership and threads: a kernel opens the tiles when it starts and closes them before it returns; the
 * registers are the thread's own. Registers are constants: 0 .. 5 accumulate, 4 .. 7 are factors.
 *
 * TDPBF16PS: of each row and column the even and the odd halves of the pairs are summed apart, each with one
 * rounding (to nearest, ties to even) a step; the two sums are added, then that to the accumulator. The
 * twin does the same: the product of two bfloat16 is exact in float32. The instruction takes subnormal
 * numbers for zero, the twin does not; no result that matters hangs on them.
 */
#ifndef DSB_CPU_TILE_H
#define DSB_CPU_TILE_H

#include <stdint.h>
#include <string.h>

#include "cpu/vector.h"

enum {
    TILE_ROWS = 16,
    TILE_COLUMNS = 16,                      /* of float32 */
    TILE_HALVES = 32,                       /* bfloat16 in a row: 16 pairs */
    TILE_NUMBERS = TILE_ROWS * TILE_HALVES, /* bfloat16 in a tile */
    TILE_FLOATS = TILE_ROWS * TILE_COLUMNS,
    TILE_BYTES = 64, /* of a row */
};

#if defined(DSB_TILE_TWIN)

typedef union tile {
    float single[TILE_ROWS][TILE_COLUMNS];
    uint16_t half[TILE_ROWS][TILE_HALVES];
} tile;

typedef struct tiles {
    tile registers[8];
} tiles;

/* Dirty, as registers are that somebody else has used. */
DSB_INLINE void
tiles_open(tiles *t)
{
    memset(t, 0xff, sizeof *t);
}

DSB_INLINE void
tiles_close(tiles *t)
{
    (void)t;
}

DSB_INLINE void
tile_zero(tiles *t, int to)
{
    memset(&t->registers[to], 0, sizeof t->registers[to]);
}

/* 16 rows, `stride` bytes apart. */
DSB_INLINE void
tile_load(tiles *t, int to, const void *from, int64_t stride)
{
    for (int r = 0; r < TILE_ROWS; r++) {
        memcpy(t->registers[to].half[r], (const char *)from + r * stride, TILE_BYTES);
    }
}

DSB_INLINE void
tile_store(const tiles *t, int from, void *to, int64_t stride)
{
    for (int r = 0; r < TILE_ROWS; r++) {
        memcpy((char *)to + r * stride, t->registers[from].half[r], TILE_BYTES);
    }
}

/* to[m][n] += sum over pairs k of a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1] */
static inline __attribute__((unused)) void
tile_dot(tiles *t, int to, int a, int b)
{
    for (int m = 0; m < TILE_ROWS; m++) {
        const uint16_t *row = t->registers[a].half[m];

        for (int n = 0; n < TILE_COLUMNS; n += DSB_VL) {
            float *sum = &t->registers[to].single[m][n];
            vf even = {0}, odd = {0};

            for (int k = 0; k < TILE_ROWS; k++) {
                vi pairs = (vi)vf_load(&t->registers[b].single[k][n]);
                vf low = (vf)(pairs << 16), high = (vf)(pairs & vi_splat(-65536));

                even += (vf)vi_splat((int32_t)((uint32_t)row[2 * k] << 16)) * low;
                odd += (vf)vi_splat((int32_t)((uint32_t)row[2 * k + 1] << 16)) * high;
            }
            vf_store(sum, vf_load(sum) + (even + odd));
        }
    }
}

/* What was written before is what later loads see. */
DSB_INLINE void
tile_fence(void)
{
}

#else

typedef struct tiles {
    char nothing; /* the registers are the processor's */
} tiles;

typedef struct tile_palette {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_palette;

DSB_INLINE void
tiles_open(tiles *t)
{
    static const tile_palette palette = {.palette = 1,
                                         .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                         .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

    t->nothing = 0;
    _tile_loadconfig(&palette);
}

DSB_INLINE void
tiles_close(tiles *t)
{
    (void)t;
    _tile_release();
}

/* The compiler's own functions take a register as a number that is written out. */
DSB_INLINE void
tile_zero(tiles *t, int to)
{
    (void)t;
    switch (to) {
    case 0:
        _tile_zero(0);
        break;
    case 1:
        _tile_zero(1);
        break;
    case 2:
        _tile_zero(2);
        break;
    case 3:
        _tile_zero(3);
        break;
    case 4:
        _tile_zero(4);
        break;
    default:
        _tile_zero(5);
    }
}

DSB_INLINE void
tile_load(tiles *t, int to, const void *from, int64_t stride)
{
    (void)t;
    switch (to) {
    case 0:
        _tile_loadd(0, from, stride);
        break;
    case 1:
        _tile_loadd(1, from, stride);
        break;
    case 2:
        _tile_loadd(2, from, stride);
        break;
    case 3:
        _tile_loadd(3, from, stride);
        break;
    case 4:
        _tile_loadd(4, from, stride);
        break;
    case 5:
        _tile_loadd(5, from, stride);
        break;
    case 6:
        _tile_loadd(6, from, stride);
        break;
    default:
        _tile_loadd(7, from, stride);
    }
}

DSB_INLINE void
tile_store(const tiles *t, int from, void *to, int64_t stride)
{
    (void)t;
    switch (from) {
    case 0:
        _tile_stored(0, to, stride);
        break;
    case 1:
        _tile_stored(1, to, stride);
        break;
    case 2:
        _tile_stored(2, to, stride);
        break;
    case 3:
        _tile_stored(3, to, stride);
        break;
    case 4:
        _tile_stored(4, to, stride);
        break;
    default:
        _tile_stored(5, to, stride);
    }
}

/* The products there are: 2 x 2 (accumulators 0 .. 3, factors 4, 5 and 6, 7), and up to six accumulators with
 * factors 6 and 7, or up to five with factors 5, 6 and 7. */
DSB_INLINE void
tile_dot(tiles *t, int to, int a, int b)
{
    (void)t;
    switch (to << 8 | a << 4 | b) {
    case 0x046:
        _tile_dpbf16ps(0, 4, 6);
        break;
    case 0x156:
        _tile_dpbf16ps(1, 5, 6);
        break;
    case 0x247:
        _tile_dpbf16ps(2, 4, 7);
        break;
    case 0x357:
        _tile_dpbf16ps(3, 5, 7);
        break;
    case 0x067:
        _tile_dpbf16ps(0, 6, 7);
        break;
    case 0x167:
        _tile_dpbf16ps(1, 6, 7);
        break;
    case 0x267:
        _tile_dpbf16ps(2, 6, 7);
        break;
    case 0x367:
        _tile_dpbf16ps(3, 6, 7);
        break;
    case 0x467:
        _tile_dpbf16ps(4, 6, 7);
        break;
    case 0x567:
        _tile_dpbf16ps(5, 6, 7);
        break;
    case 0x057:
        _tile_dpbf16ps(0, 5, 7);
        break;
    case 0x157:
        _tile_dpbf16ps(1, 5, 7);
        break;
    case 0x257:
        _tile_dpbf16ps(2, 5, 7);
        break;
    case 0x457:
        _tile_dpbf16ps(4, 5, 7);
        break;
    default:
        __builtin_unreachable();
    }
}

/* What was written before is what later loads see: the compiler's tile load does not say that it reads. */
DSB_INLINE void
tile_fence(void)
{
    __asm__ volatile("" ::: "memory");
}

#endif

#endif
