/* Sums in float64 of vectors of float32.
 *
 * Purpose: 16 partial sums, number i adding to sum i mod 16, and their tree: the same order for every
 * instruction set. Ownership and threads: pure functions, no state. Included by csrc/cpu/<family>.c only.
 */
#ifndef DSB_CPU_WIDE_H
#define DSB_CPU_WIDE_H

#include "cpu/vector.h"

enum { PARTS = 16, GROUPS = PARTS / DSB_VL };

typedef double vd __attribute__((vector_size(4 * DSB_VL)));

/* Two vectors of float64 to a vector of float32. */
typedef struct wide {
    vd low, high;
} wide;

DSB_INLINE wide
widen(vf v)
{
    wide w;

#if DSB_VL == 16
    w.low = __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), vd);
    w.high =
        __builtin_convertvector(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), vd);
#elif DSB_VL == 8
    w.low = __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3), vd);
    w.high = __builtin_convertvector(__builtin_shufflevector(v, v, 4, 5, 6, 7), vd);
#else
    w.low = (vd){v[0], v[1]};
    w.high = (vd){v[2], v[3]};
#endif
    return w;
}

/* The partial sums, as a binary tree. */
static inline double
sum_parts(const wide *sums)
{
    double part[PARTS];

    memcpy(part, sums, sizeof part);
    for (int n = PARTS / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) {
            part[i] = part[2 * i] + part[2 * i + 1];
        }
    }
    return part[0];
}

#endif
