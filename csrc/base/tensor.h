/* Tensor: a view of somebody's numbers, with dtype, shape, strides and device.
 *
 * Purpose: what crosses the border between Python and the core. Inside, ops pass plain pointers and
 * sizes. Ownership: a view owns nothing. Threads: plain data.
 */
#ifndef DSB_BASE_TENSOR_H
#define DSB_BASE_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define DSB_MAX_RANK 4

typedef enum dsb_dtype {
    DSB_FLOAT32,
    DSB_UINT8,
    DSB_INT64,
    DSB_FLOAT64,
    DSB_BFLOAT16 /* inside the core only */
} dsb_dtype;

typedef enum dsb_device { DSB_CPU = 1, DSB_CUDA = 2 } dsb_device; /* DLPack's numbers */

typedef struct dsb_tensor {
    void *data;
    dsb_dtype dtype;
    dsb_device device;
    int rank;
    int64_t shape[DSB_MAX_RANK];
    int64_t strides[DSB_MAX_RANK]; /* in elements */
} dsb_tensor;

int64_t dsb_dtype_bytes(dsb_dtype dtype);
const char *dsb_dtype_name(dsb_dtype dtype);

int64_t dsb_tensor_elements(const dsb_tensor *tensor);
bool dsb_tensor_contiguous(const dsb_tensor *tensor);

/* Fails, naming the argument, what was wanted and what came, unless `tensor` has this dtype, this rank,
 * this shape (-1: any size) and C order. */
dsb_status dsb_tensor_require(const dsb_tensor *tensor, const char *name, dsb_dtype dtype, int rank,
                              const int64_t *shape) DSB_MUST_CHECK;

#endif
