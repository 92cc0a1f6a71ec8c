/* The monotonic clock, in seconds. */
#ifndef DSB_BASE_CLOCK_H
#define DSB_BASE_CLOCK_H

#include <time.h>

static inline double
dsb_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
