#include "base/tensor.h"

#include <stdio.h>

int64_t
dsb_dtype_bytes(dsb_dtype dtype)
{
    static const int64_t bytes[] = {
        [DSB_FLOAT32] = 4, [DSB_UINT8] = 1, [DSB_INT64] = 8, [DSB_FLOAT64] = 8, [DSB_BFLOAT16] = 2};

    return bytes[dtype];
}

const char *
dsb_dtype_name(dsb_dtype dtype)
{
    static const char *const names[] = {[DSB_FLOAT32] = "float32",
                                        [DSB_UINT8] = "uint8",
                                        [DSB_INT64] = "int64",
                                        [DSB_FLOAT64] = "float64",
                                        [DSB_BFLOAT16] = "bfloat16"};

    return names[dtype];
}

int64_t
dsb_tensor_elements(const dsb_tensor *tensor)
{
    int64_t n = 1;

    for (int i = 0; i < tensor->rank; i++) {
        n *= tensor->shape[i];
    }
    return n;
}

bool
dsb_tensor_contiguous(const dsb_tensor *tensor)
{
    int64_t expected = 1;

    for (int i = tensor->rank - 1; i >= 0; i--) {
        if (tensor->shape[i] == 0) {
            return true; /* nothing is strided, whatever the strides say */
        }
        if (tensor->shape[i] != 1 && tensor->strides[i] != expected) {
            return false;
        }
        expected *= tensor->shape[i];
    }
    return true;
}

/* "(5, any, 2)"; -1 is written "any". */
static void
format_shape(const int64_t *shape, int rank, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "(");

    for (int i = 0; i < rank && used < size; i++) {
        const char *comma = i + 1 < rank ? ", " : rank == 1 ? "," : "";

        used += (size_t)(shape[i] < 0 ? snprintf(text + used, size - used, "any%s", comma)
                                      : snprintf(text + used, size - used, "%lld%s",
                                                 (long long)shape[i], comma));
    }
    if (used < size) {
        snprintf(text + used, size - used, ")");
    }
}

dsb_status
dsb_tensor_require(const dsb_tensor *tensor, const char *name, dsb_dtype dtype, int rank,
                   const int64_t *shape)
{
    char wanted[96], came[96];
    bool fits = tensor->rank == rank;

    if (tensor->dtype != dtype) {
        return DSB_FAIL(DSB_ERR_TYPE, "%s: expected dtype %s, got %s", name, dsb_dtype_name(dtype),
                        dsb_dtype_name(tensor->dtype));
    }
    for (int i = 0; fits && i < rank; i++) {
        fits = shape[i] < 0 || shape[i] == tensor->shape[i];
    }
    if (!fits) {
        format_shape(shape, rank, wanted, sizeof wanted);
        format_shape(tensor->shape, tensor->rank, came, sizeof came);
        return DSB_FAIL(DSB_ERR_VALUE, "%s: expected shape %s, got %s", name, wanted, came);
    }
    DSB_REQUIRE(dsb_tensor_contiguous(tensor), "%s: expected a C-contiguous array", name);
    return DSB_OK;
}
