/* Lines of numbers, parts of a vector and single numbers.
 *
 * Purpose: what kernels for lines of any length need beside vector.h, for float32 and, with `half`,
 * bfloat16; of a part, nothing beyond its n numbers is touched.
 * Ownership and threads: pure functions, no state. Included by csrc/cpu/<family>.c only.
 */
#ifndef DSB_CPU_LINES_H
#define DSB_CPU_LINES_H

#include "cpu/vector.h"

/* Numbers i .. i + n - 1 and zeros (n <= 0: zeros; n >= DSB_VL: a whole vector). */
DSB_INLINE vf
vf_load_part_as(int half, const void *p, int64_t i, int64_t n)
{
    if (!half) {
        return vf_load_part((const float *)p + i, n);
    } else {
#if DSB_VL == 16
        __mmask16 mask = n <= 0 ? 0 : n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
        __m256i v = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)p + i);

        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16);
#else
        uint16_t lanes[DSB_VL] = {0};

        for (int k = 0; k < DSB_VL; k++) {
            if (k < n) {
                lanes[k] = ((const uint16_t *)p)[i + k];
            }
        }
        return vf_load_bf16(lanes);
#endif
    }
}

DSB_INLINE void
vf_store_part_as(int half, void *p, int64_t i, vf v, int64_t n)
{
    if (!half) {
        vf_store_part((float *)p + i, v, n);
    } else {
        uint16_t lanes[DSB_VL];

        vf_store_bf16(lanes, v);
        for (int k = 0; k < DSB_VL; k++) {
            if (k < n) {
                ((uint16_t *)p)[i + k] = lanes[k];
            }
        }
    }
}

DSB_INLINE float
load_one_as(int half, const void *p, int64_t i)
{
    uint32_t bits;
    float x;

    if (!half) {
        return ((const float *)p)[i];
    }
    bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounded as vf_store_bf16 rounds. */
DSB_INLINE void
store_one_as(int half, void *p, int64_t i, float x)
{
    uint32_t bits;

    if (!half) {
        ((float *)p)[i] = x;
        return;
    }
    memcpy(&bits, &x, sizeof bits);
    bits = x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
}

/* Lines of numbers from element `first` on. */
typedef struct dsb_lines {
    void *p;
    int64_t first, ld;
} dsb_lines;

DSB_INLINE vf
load_line(int half, dsb_lines x, int64_t line, int j)
{
    return vf_load_as(half, x.p, x.first + line * x.ld + j);
}

DSB_INLINE void
store_line(int half, dsb_lines x, int64_t line, int j, vf v)
{
    vf_store_as(half, x.p, x.first + line * x.ld + j, v);
}

DSB_INLINE dsb_lines
from_column(dsb_lines x, int64_t column)
{
    x.first += column;
    return x;
}

/* Asks for what will be read (or, with `write`, written) later, once for each line of cache. */
DSB_INLINE void
prefetch_line(int half, int write, dsb_lines x, int64_t line, int j)
{
    int64_t size = half ? 2 : 4;
    uintptr_t at = (uintptr_t)x.p + (uintptr_t)((x.first + line * x.ld + j) * size);

    if (j * size % 64 == 0 && write) {
        __builtin_prefetch((const void *)at, 1);
    } else if (j * size % 64 == 0) {
        __builtin_prefetch((const void *)at, 0);
    }
}

#endif
