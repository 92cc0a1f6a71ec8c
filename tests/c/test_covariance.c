/* Covariances of noise: eigenvalues that are raised, the kernels, and noise of a given covariance. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/symmetric.h"
#include "bridge/covariance.h"
#include "fixture.h"
#include "test.h"

static bool
stop_now(void *context)
{
    (void)context;
    return true;
}

/* An orthogonal matrix, vectors in rows: Gram and Schmidt, twice. */
static double *
rotation(int n)
{
    double *v = numbers((int64_t)n * n, 1.0);

    for (int i = 0; i < n; i++) {
        for (int pass = 0; pass < 2; pass++) {
            double norm = 0.0;

            for (int j = 0; j < i; j++) {
                double dot = 0.0;

                for (int c = 0; c < n; c++) {
                    dot += v[i * n + c] * v[j * n + c];
                }
                for (int c = 0; c < n; c++) {
                    v[i * n + c] -= dot * v[j * n + c];
                }
            }
            for (int c = 0; c < n; c++) {
                norm += v[i * n + c] * v[i * n + c];
            }
            for (int c = 0; c < n; c++) {
                v[i * n + c] /= sqrt(norm);
            }
        }
    }
    return v;
}

/* sum of lambda v v^T */
static double *
with_eigenvalues(int n, const double *v, const double *lambda)
{
    double *a = doubles((int64_t)n * n);

    for (int e = 0; e < n; e++) {
        for (int i = 0; i < n; i++) {
            for (int c = 0; c < n; c++) {
                a[i * n + c] += lambda[e] * v[e * n + i] * v[e * n + c];
            }
        }
    }
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < i; c++) {
            a[i * n + c] = a[c * n + i];
        }
    }
    return a;
}

static double
most_apart(int64_t n, const double *a, const double *b)
{
    double most = 0.0;

    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs(a[i] - b[i]));
    }
    return most;
}

/* Eigenvalues 1, 2, .. of which the first `low` are replaced by 1e-3 times a number that may be negative. */
static void
check_raising(int n, int low)
{
    double *v = rotation(n), *lambda = doubles(n), *wanted = doubles(n), *work = doubles(2 * n * n);
    double *a, *raised, *before = doubles((int64_t)n * n);
    dsb_watch deaf = {.tick = {NULL, NULL}}, halt = {.tick = {stop_now, NULL}};

    for (int e = 0; e < n; e++) {
        lambda[e] = e < low ? 1e-3 * (e % 3 - 1) : 1.0 + e;
        wanted[e] = fmax(lambda[e], 0.05);
    }
    a = with_eigenvalues(n, v, lambda);
    raised = with_eigenvalues(n, v, wanted);
    memcpy(before, a, sizeof *a * (size_t)(n * n));
    CHECK(dsb_raise_eigenvalues(n, a, 0.05, work, &halt, 0) == (low > 0 ? -1 : 0));
    CHECK(memcmp(a, before, sizeof *a * (size_t)(n * n)) == 0);
    CHECK(dsb_raise_eigenvalues(n, a, 0.05, work, &deaf, 0) == low);
    CHECK(most_apart((int64_t)n * n, a, raised) < 1e-12 * n);
    CHECK(low > 0 || memcmp(a, before, sizeof *a * (size_t)(n * n)) == 0);
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < i; c++) {
            CHECK(a[i * n + c] == a[c * n + i]);
        }
    }
    CHECK(dsb_cholesky(n, a, 0.0, work));
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < n; c++) {
            double product = 0.0;

            CHECK(c <= i || work[i * n + c] == 0.0);
            for (int k = 0; k < n; k++) {
                product += work[i * n + k] * work[c * n + k];
            }
            CHECK(fabs(product - a[i * n + c]) < 1e-12 * n);
        }
    }
    CHECK(!dsb_cholesky(n, a, n + 1.0, work)); /* beyond the largest eigenvalue */
    a[0] = NAN;
    CHECK(!dsb_cholesky(n, a, 0.0, work));
    free(v);
    free(lambda);
    free(wanted);
    free(work);
    free(a);
    free(raised);
    free(before);
}

/* The kernels, with what stands in the padding and in other columns left alone. */
static void
check_kernels(int rows, int dim)
{
    const dsb_backend *be = dsb_cpu_backend();
    variant whole = {.soil = 1e30};
    image x = rows_make(&whole, rows, dim, 2.0), y = rows_make(&whole, rows, dim, 3.0);
    double *values = numbers(dim, 1.5), *product = doubles((int64_t)rows * dim);
    int64_t pitch = dsb_pitch(dim);
    float *w = floats(dim, values);
    double *sums = doubles(pitch);

    for (int c = 0; c < dim; c++) {
        double sum = sums[c] = c - 2.0;

        for (int r = 0; r < rows; r++) {
            sum += image_get(&x, r, c) * image_get(&y, r, c);
            product[r * dim + c] = image_get(&x, r, c) * (double)w[c];
        }
        values[c] = sum;
    }
    be->sum_products(NULL, rows, dim, x.slot.data, x.slot.ld, y.slot.data, y.slot.ld, sums);
    for (int c = 0; c < dim; c++) {
        CHECK(fabs(sums[c] - values[c]) <= 1e-13 * rows);
    }
    be->scale_columns(NULL, rows, dim, w, x.slot.data, x.slot.ld, y.slot.data, y.slot.ld);
    CHECK(image_near(&y, product, NULL, 0, 1e-7));
    guarded_free(w);
    free(values);
    free(product);
    free(sums);
    image_free(&x);
    image_free(&y);
}

/* L of each kind, read off by unit vectors, times itself is Q. */
static void
check_noise(dsb_covariance kind, int dim)
{
    enum { N = 3 };
    const dsb_backend *be = dsb_cpu_backend();
    int64_t size = dsb_covariance_size(kind, dim), ld = dsb_pitch(dim);
    double *v = rotation(dim), *lambda = doubles(dim), least[N] = {1e-4, 1e-4, 0.3};
    float *z, *y;
    dsb_watch deaf = {.tick = {NULL, NULL}};
    dsb_noise noise;

    CHECK(dsb_noise_init(&noise, be, kind, N, dim) == DSB_OK);
    CHECK(be->alloc(sizeof *z * (size_t)(2 * dim * ld), &z) == DSB_OK);
    y = z + dim * ld;
    for (int k = 0; k < N; k++) {
        double *q;

        for (int e = 0; e < dim; e++) {
            lambda[e] = 0.2 + k + e;
        }
        q = kind == DSB_COVARIANCE_FULL ? with_eigenvalues(dim, v, lambda) : lambda;
        memcpy(noise.values + k * size, q, sizeof *q * (size_t)size);
        if (q != lambda) {
            free(q);
        }
    }
    noise.values[2 * size] = kind == DSB_COVARIANCE_FULL ? noise.values[2 * size] : 0.2;
    CHECK(dsb_noise_settle(&noise, least, 2, &deaf) == DSB_OK);
    CHECK(noise.raised == (kind != DSB_COVARIANCE_FULL));
    for (int k = 0; k < N; k++) {
        double factor, slack = 1e-6 * (dim + 4);

        for (int i = 0; i < dim; i++) {
            memset(z + i * ld, 0, sizeof *z * (size_t)ld);
            z[i * ld + i] = 1.0f;
        }
        factor =
            (double)dsb_noise_shape(&noise, k, dim, z, kind == DSB_COVARIANCE_FULL ? y : z, ld);
        for (int i = 0; i < dim; i++) {
            for (int c = 0; c < dim; c++) {
                const float *l = kind == DSB_COVARIANCE_FULL ? y : z;
                double got = 0.0, want = 0.0;

                for (int u = 0; u < dim; u++) { /* unit vector u came out as column u of L */
                    got += (double)l[u * ld + i] * (double)l[u * ld + c] * factor * factor;
                }
                if (kind == DSB_COVARIANCE_FULL) {
                    want = noise.values[k * size + i * dim + c];
                } else if (i == c) {
                    want = noise.values[k * size + (kind == DSB_COVARIANCE_DIAGONAL ? i : 0)];
                }
                CHECK(fabs(got - want) < slack * (1.0 + fabs(want)));
            }
        }
    }
    noise.values[size] = -1.0;
    CHECK(dsb_noise_settle(&noise, NULL, 1, &deaf) == DSB_ERR_NUMERIC);
    CHECK(strstr(dsb_last_message(), "step 1") != NULL);
    dsb_noise_clear(&noise);
    be->free(z);
    free(v);
    free(lambda);
}

void
test_covariance(void)
{
    draw_start();
    for (int n = 1; n <= 40; n += 3) {
        check_raising(n, 0);
        check_raising(n, (n + 1) / 2);
        check_raising(n, n);
    }
    for (int dim = 1; dim <= 50; dim += 7) {
        check_kernels(1, dim);
        check_kernels(67, dim);
    }
    for (int kind = DSB_COVARIANCE_SCALAR; kind <= DSB_COVARIANCE_FULL; kind++) {
        check_noise((dsb_covariance)kind, 1);
        check_noise((dsb_covariance)kind, 5);
        check_noise((dsb_covariance)kind, 33);
    }
}
