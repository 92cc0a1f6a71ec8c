/* A source: where the paths of one end start, a data set or a Gaussian N(m, L L^T).
 *
 * Purpose: path i starts at a row that depends on (seed, half-bridge, i) only. Data are visited in
 * epochs, each a fresh permutation, so that every row serves equally often.
 * Ownership: borrows the rows, owns mean and factor. Threads: immutable once made.
 */
#ifndef DSB_BRIDGE_SOURCE_H
#define DSB_BRIDGE_SOURCE_H

#include <stdbool.h>

#include "backend.h"

typedef struct dsb_source {
    const dsb_backend *be;
    int64_t dim;
    bool gaussian;
    dsb_rows rows;
    float *mean;   /* [pitch(dim)] */
    float *factor; /* L, packed as the weights of a linear op; NULL: deviation I */
    float deviation;
} dsb_source;

dsb_status dsb_source_rows(dsb_source *source, const dsb_backend *be,
                           const dsb_rows *rows) DSB_MUST_CHECK;
/* `factor`: L [dim, dim] in C order, host memory; NULL: L = deviation I. */
dsb_status dsb_source_gaussian(dsb_source *source, const dsb_backend *be, int64_t dim,
                               const float *mean, float deviation,
                               const float *factor) DSB_MUST_CHECK;
/* Bytes that a Gaussian takes while it is made. */
size_t dsb_source_bytes(int64_t dim, bool factor);
void dsb_source_clear(dsb_source *source);

/* Which random numbers starts are drawn from: a stream for the order of the rows, one for normals. */
typedef struct dsb_starts {
    uint64_t seed;
    uint32_t order_stream, normal_stream; /* dsb_stream_word() */
} dsb_starts;

/* Fills x [rows, dim] and ids with the starts of paths first .. first + rows - 1; z [rows, dim] is
 * scratch. */
void dsb_source_draw(const dsb_source *source, const dsb_starts *starts, int64_t first, int rows,
                     float *x, int64_t ldx, float *z, int64_t ldz, uint32_t *ids);

#endif
