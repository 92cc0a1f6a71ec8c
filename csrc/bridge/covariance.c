#include "bridge/covariance.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/symmetric.h"

int64_t
dsb_covariance_size(dsb_covariance kind, int64_t dim)
{
    switch (kind) {
    case DSB_COVARIANCE_SCALAR:
        return 1;
    case DSB_COVARIANCE_DIAGONAL:
        return dim;
    case DSB_COVARIANCE_FULL:
        return dim * dim;
    default:
        return 0;
    }
}

/* Floats of a step's factor on the device; a scalar's is taken from the value. */
static int64_t
factor_size(dsb_covariance kind, int64_t dim)
{
    int64_t pitch = dsb_pitch(dim);

    return kind == DSB_COVARIANCE_FULL       ? pitch * pitch
           : kind == DSB_COVARIANCE_DIAGONAL ? pitch
                                             : 0;
}

size_t
dsb_noise_bytes(dsb_covariance kind, int n, int64_t dim)
{
    return (size_t)n * (sizeof(double) * (size_t)dsb_covariance_size(kind, dim) +
                        sizeof(float) * (size_t)factor_size(kind, dim));
}

/* Workers that settle, and what each of them needs: numbers of the host (two matrices, or a row), and floats
 * of the device (a matrix that is not packed yet). */
static int
settlers(int n, int workers)
{
    return workers < n ? workers : n;
}

static int64_t
work_size(dsb_covariance kind, int64_t dim)
{
    return kind == DSB_COVARIANCE_FULL ? 2 * dim * dim : dim;
}

static int64_t
plain_size(dsb_covariance kind, int64_t dim)
{
    return kind == DSB_COVARIANCE_FULL ? dim * dim : 0;
}

size_t
dsb_noise_work_bytes(dsb_covariance kind, int n, int64_t dim, int workers)
{
    return kind == DSB_COVARIANCE_REFERENCE
               ? 0
               : (size_t)settlers(n, workers) * (sizeof(double) * (size_t)work_size(kind, dim) +
                                                 sizeof(float) * (size_t)plain_size(kind, dim)) +
                     sizeof(int) * (size_t)n;
}

dsb_status
dsb_noise_init(dsb_noise *noise, const dsb_backend *be, dsb_covariance kind, int n, int64_t dim)
{
    int64_t size = dsb_covariance_size(kind, dim), factor = factor_size(kind, dim);
    dsb_status status;

    *noise = (dsb_noise){.be = be, .kind = kind, .n = n, .dim = dim};
    DSB_TRY(dsb_alloc(sizeof(double) * (size_t)(n * size), &noise->values));
    if (factor > 0) {
        status = be->alloc(sizeof(float) * (size_t)(n * factor), &noise->factors);
        if (status != DSB_OK) {
            dsb_noise_clear(noise);
            return status;
        }
    }
    return DSB_OK;
}

void
dsb_noise_clear(dsb_noise *noise)
{
    dsb_free(noise->values);
    if (noise->be != NULL) {
        noise->be->free(noise->factors);
    }
    *noise = (dsb_noise){.be = NULL};
}

/* ---- settling ---- */

enum { INDEFINITE = -1 }; /* in place of the number of eigenvalues that were raised */

typedef struct settling {
    dsb_noise *noise;
    const double *least;
    double *work; /* [workers][work_size()] */
    float *plain; /* device [workers][plain_size()] */
    int *raised;  /* [n] */
    dsb_watch *watch;
} settling;

static int
settle_matrix(const settling *s, int64_t k, double *work, int worker)
{
    const dsb_noise *noise = s->noise;
    int dim = (int)noise->dim, raised = 0;
    int64_t size = noise->dim * noise->dim;
    double *q = noise->values + k * size;
    float *rounded = (float *)(work + size), *plain = s->plain + worker * size;

    if (s->least != NULL) {
        raised = dsb_raise_eigenvalues(dim, q, s->least[k], work, s->watch, worker);
    }
    if (raised < 0) {
        return 0; /* told to stop: nobody will look */
    }
    if (!dsb_cholesky(dim, q, 0.0, work)) {
        return INDEFINITE;
    }
    for (int64_t i = 0; i < size; i++) {
        rounded[i] = (float)work[i];
    }
    noise->be->upload(plain, rounded, sizeof *rounded * (size_t)size);
    noise->be->linear_pack(NULL, dim, dim, plain,
                           noise->factors + k * factor_size(noise->kind, dim));
    return raised;
}

/* A scalar or a diagonal. */
static int
settle_numbers(const settling *s, int64_t k, double *work)
{
    const dsb_noise *noise = s->noise;
    int64_t size = dsb_covariance_size(noise->kind, noise->dim);
    double *q = noise->values + k * size;
    float *deviation = (float *)work;
    int raised = 0;

    for (int64_t i = 0; i < size; i++) {
        if (s->least != NULL && q[i] < s->least[k]) {
            q[i] = s->least[k];
            raised++;
        }
        if (!(q[i] > 0.0 && q[i] < INFINITY)) {
            return INDEFINITE;
        }
        deviation[i] = (float)sqrt(q[i]);
    }
    if (noise->factors != NULL) {
        noise->be->upload(noise->factors + k * factor_size(noise->kind, noise->dim), deviation,
                          sizeof *deviation * (size_t)size);
    }
    return raised;
}

static void
settle_step(void *context, int64_t k, int worker)
{
    const settling *s = context;
    double *work = s->work + worker * work_size(s->noise->kind, s->noise->dim);

    s->raised[k] = s->noise->kind == DSB_COVARIANCE_FULL ? settle_matrix(s, k, work, worker)
                                                         : settle_numbers(s, k, work);
}

/* The counts of all steps in one, or the first that cannot be a covariance. */
static dsb_status
count_raised(dsb_noise *noise, const int *raised)
{
    for (int k = 0; k < noise->n; k++) {
        if (raised[k] == INDEFINITE) {
            return DSB_FAIL(DSB_ERR_NUMERIC,
                            "the covariance of step %d is not finite and positive definite", k);
        }
        noise->raised += raised[k];
    }
    return DSB_OK;
}

dsb_status
dsb_noise_settle(dsb_noise *noise, const double *least, int workers, dsb_watch *watch)
{
    settling s = {.noise = noise, .least = least, .watch = watch};
    int some = settlers(noise->n, workers);
    dsb_status status;
    int64_t numbers = some * work_size(noise->kind, noise->dim);
    size_t plain = sizeof(float) * (size_t)(some * plain_size(noise->kind, noise->dim));

    DSB_TRY(dsb_alloc(sizeof(double) * (size_t)numbers + sizeof(int) * (size_t)noise->n, &s.work));
    s.raised = (int *)(s.work + numbers);
    status = plain > 0 ? noise->be->alloc(plain, &s.plain) : DSB_OK;
    if (status == DSB_OK) {
        status = dsb_run_chunks(noise->be->parallel, some, noise->n, settle_step, &s, watch);
    }
    if (status == DSB_OK) {
        status = count_raised(noise, s.raised);
    }
    noise->be->free(s.plain);
    dsb_free(s.work);
    return status;
}

/* ---- use ---- */

float
dsb_noise_shape(const dsb_noise *noise, int k, int rows, const float *z, float *y, int64_t ld)
{
    int dim = (int)noise->dim;
    const float *factor =
        noise->factors != NULL ? noise->factors + k * factor_size(noise->kind, dim) : NULL;

    switch (noise->kind) {
    case DSB_COVARIANCE_FULL:
        noise->be->linear_forward(NULL, rows, dim, dim, z, ld, factor, NULL, DSB_IDENTITY, 0.0f,
                                  NULL, 0, y, ld);
        return 1.0f;
    case DSB_COVARIANCE_DIAGONAL:
        noise->be->scale_columns(NULL, rows, dim, factor, z, ld, y, ld);
        return 1.0f;
    default:
        return (float)sqrt(noise->values[k]);
    }
}
