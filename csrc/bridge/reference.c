#include "bridge/reference.h"

#include <math.h>

dsb_status
dsb_reference_init(dsb_reference *reference, const dsb_backend *be, int64_t dim, const float *mean,
                   double precision)
{
    *reference = (dsb_reference){.be = be, .dim = dim, .precision = (float)precision};
    DSB_REQUIRE(precision >= 0.0 && isfinite(precision),
                "the variance of the reference must be positive, got 1 / %g", precision);
    DSB_TRY(be->alloc(sizeof(float) * (size_t)dsb_pitch(dim), &reference->mean));
    be->upload(reference->mean, mean, sizeof(float) * (size_t)dim);
    return DSB_OK;
}

void
dsb_reference_clear(dsb_reference *reference)
{
    if (reference->be != NULL) {
        reference->be->free(reference->mean);
    }
    *reference = (dsb_reference){.be = NULL};
}

void
dsb_reference_tables(const dsb_reference *reference, const dsb_schedule *schedule, float *next,
                     float *mean, float *mix)
{
    double product = 1.0, variance = 0.0; /* A_k, V_k */

    for (int k = 0; k < schedule->n; k++) {
        double a = 1.0 - schedule->g[k] * (double)reference->precision;
        double next_product = a * product, next_variance = a * a * variance + 2.0 * schedule->g[k];

        next[3 * k] = (float)next_product;
        next[3 * k + 1] = (float)sqrt(next_variance);
        next[3 * k + 2] = (float)(1.0 - next_product);
        mean[3 * k] = (float)product;
        mean[3 * k + 1] = (float)(variance * a / sqrt(next_variance));
        mean[3 * k + 2] = (float)(1.0 - product);
        mix[3 * k] = (float)(1.0 - a);
        mix[3 * k + 1] = (float)a;
        mix[3 * k + 2] = 0.0f;
        product = next_product;
        variance = next_variance;
    }
}
