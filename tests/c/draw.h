/* Random numbers of the tests: a sequence that starts anew where draw_start says so.
 *
 * Ownership: `doubles` allocates, the caller frees. Threads: one; each file that includes this has its own
 * sequence.
 */
#ifndef DSB_TESTS_DRAW_H
#define DSB_TESTS_DRAW_H

#include <stdlib.h>

#include "backend.h"
#include "base/philox.h"

static uint32_t drawn;

static inline void
draw_start(void)
{
    drawn = 0;
}

static inline uint32_t
draw(void)
{
    uint32_t words[4];

    dsb_philox(2024, drawn++, 0, 0, DSB_STREAM_USER, words);
    return words[0];
}

static inline int
draw_below(int n)
{
    return (int)dsb_uniform_below(draw(), (uint32_t)n);
}

/* In (-1, 1), a float32. */
static inline double
draw_number(void)
{
    return 2.0 * (double)dsb_uniform(draw()) - 1.0;
}

static inline dsb_dtype
draw_dtype(void)
{
    return draw_below(2) ? DSB_BFLOAT16 : DSB_FLOAT32;
}

/* n zeros. */
static inline double *
doubles(int64_t n)
{
    double *p = calloc((size_t)n, sizeof *p);

    if (p == NULL) {
        abort();
    }
    return p;
}

#endif
