/* What ops.c asks of the backend's table, and ops_passes.c calls.
 *
 * Ownership: main() holds the memory of all requests. Threads: a pass runs on several workers at once.
 */
#ifndef DSB_BENCH_OPS_H
#define DSB_BENCH_OPS_H

#include "backend.h"

/* What a line asks for. */
typedef struct request {
    char name[32];
    int h, w, c, c_out, kernel, stride, up, precision, bf16, groups, heads;
    int affine, silu, scale, residual, lanes; /* lanes: planes of gradients, for reduce_lanes */
} request;

/* Memory of a request. Hot slots hold a microbatch for each worker, cold ones every image. */
typedef struct memory {
    float *x, *y, *dy, *dx;        /* cold, cold, hot, hot */
    float *hot;                    /* an input that was just made */
    float *rows, *ab, *stats, *dw; /* small things, for each worker */
    char *packed, *scratch;
} memory;

typedef struct bench bench;
/* Does what is asked for the images from `first` on. */
typedef void (*pass)(const bench *b, int64_t first, int worker);

struct bench {
    const dsb_backend *backend;
    request ask;
    memory memory;
    pass run;
    int threads, images, microbatch, repeats;
};

static inline int64_t
at_least(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline dsb_conv
conv_of(const request *ask)
{
    return (dsb_conv){ask->h, ask->w, ask->c, ask->c_out, ask->kernel, ask->stride, ask->up};
}

static inline int
pixels_in(const request *ask)
{
    return ask->h * ask->w;
}

static inline int
pixels_out(const request *ask)
{
    dsb_conv conv = conv_of(ask);

    return dsb_conv_out(&conv, ask->h) * dsb_conv_out(&conv, ask->w);
}

/* The pass of the request's name; NULL where the backend has not got it, *known = 0 where nobody has. */
pass find_pass(const bench *b, int *known);
/* Of a convolution that is asked for, for a worker. */
size_t conv_scratch(const bench *b);

#endif
