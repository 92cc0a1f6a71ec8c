/* Sums over pairs of points and distances along lines: values, sorting, and that nothing lies outside. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "exact/pair_sums.h"
#include "exact/sliced.h"
#include "fixture.h"
#include "test.h"

static float *
points(int64_t n, int dim)
{
    double *values = numbers((int)n * dim, 1.0);
    float *found = floats((int)n * dim, values);

    free(values);
    return found;
}

static double
square(int dim, const float *x, const float *y)
{
    double sum = 0.0;

    for (int c = 0; c < dim; c++) {
        double gap = (double)x[c] - (double)y[c];

        sum += gap * gap;
    }
    return sum;
}

/* Both functions, of x with y and of x with itself, against float64. `size` is that of the distances. */
static void
check_sums_of(int64_t n, const float *x, int64_t m, const float *y, int dim, double size)
{
    const dsb_backend *be = dsb_cpu_backend();
    float scale = (float)fmin(0.2 / (size * size), 1e30);

    for (int which = 0; which < 4; which++) {
        bool gaussian = which & 1, within = which & 2;
        const float *other = within ? x : y;
        int64_t many = within ? n : m;
        double want = 0.0, unit = gaussian ? 1.0 : size;
        dsb_pairs job;
        dsb_status status =
            dsb_pairs_init(&job, be, gaussian ? DSB_PAIR_GAUSSIAN : DSB_PAIR_DISTANCE, scale, n, x,
                           m, within ? NULL : y, dim);

        CHECK(status == DSB_OK);
        if (status != DSB_OK) {
            continue;
        }
        be->parallel(3, dsb_pairs_tasks(&job), dsb_pairs_task, &job);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < many; j++) {
                double r2 = square(dim, x + i * dim, other + j * dim);

                want += gaussian ? exp(-(double)scale * r2) : sqrt(r2);
            }
        }
        CHECK(fabs(dsb_pairs_total(&job) - want) <= 1e-6 * want + 1e-9 * unit * (double)(n * many));
        dsb_pairs_clear(&job);
    }
}

static void
check_pair_sums(int64_t n, int64_t m, int dim)
{
    float *x = points(n, dim), *y = points(m, dim);

    check_sums_of(n, x, m, y, dim, 1.0);
    guarded_free(x), guarded_free(y);
}

/* A cluster to every point but each fifth, which stands alone; `near` is the width of a cluster. With one cluster
 * all points are far from the origin and near each other. */
static float *
clustered(int64_t n, int dim, int clusters, double near, double size)
{
    double *values = doubles(n * dim);
    float *found;

    for (int64_t i = 0; i < n; i++) {
        for (int c = 0; c < dim; c++) {
            int sign = ((i % clusters + 1) * (c + 3) * 7) % 5 - 2;
            double noise = i % 5 == 4 ? draw_number() : near * draw_number();

            values[i * dim + c] = size * ((double)sign + noise);
        }
    }
    found = floats(n * dim, values);
    free(values);
    return found;
}

/* Near pairs, which products would lose, among far ones; the smallest and the largest numbers. */
static void
check_clusters(int dim)
{
    static const double sizes[] = {1e-40, 1e-17, 1e-12, 1.0, 1e9, 1e17, 3e17};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int clusters = 1; clusters < 20; clusters += 6) {
            float *x = clustered(70, dim, clusters, 1e-3, sizes[i]);
            float *y = clustered(51, dim, clusters, 1e-5, sizes[i]);

            /* what is below 2^-60 counts as 0 */
            check_sums_of(70, x, 51, y, dim, fmax(sizes[i], 1e-10));
            guarded_free(x), guarded_free(y);
        }
    }
}

/* One pair at a time, from nearest to as far apart as from the origin, and beyond. */
static void
check_single_pairs(int dim)
{
    const dsb_backend *be = dsb_cpu_backend();

    for (int k = 0; k < 400; k++) {
        float *x = points(1, dim), *y = points(1, dim);
        double apart = ldexp(1.0, k % 14 - 10), want;
        dsb_pairs job;
        dsb_status status;

        for (int c = 0; c < dim; c++) {
            /* across, or along */
            y[c] = (float)((double)x[c] + apart * (double)(k % 2 == 0 ? y[c] : x[c]));
        }
        want = sqrt(square(dim, x, y));
        status = dsb_pairs_init(&job, be, DSB_PAIR_DISTANCE, 0.0f, 1, x, 1, y, dim);
        CHECK(status == DSB_OK);
        if (status == DSB_OK) {
            be->parallel(1, dsb_pairs_tasks(&job), dsb_pairs_task, &job);
            CHECK(fabs(dsb_pairs_total(&job) - want) <= 2e-6 * want);
            dsb_pairs_clear(&job);
        }
        guarded_free(x), guarded_free(y);
    }
}

/* Squares that float32 just holds, in sums that it does not. */
static void
check_largest(int dim)
{
    const dsb_backend *be = dsb_cpu_backend();
    double size = sqrt(2.6e38 / dim);
    float *x = points(1, dim), *y = points(1, dim);
    dsb_pairs job;
    dsb_status status;

    for (int c = 0; c < dim; c++) {
        x[c] = (float)size;
        y[c] = (float)(0.05 * size);
    }
    status = dsb_pairs_init(&job, be, DSB_PAIR_DISTANCE, 0.0f, 1, x, 1, y, dim);
    CHECK(status == DSB_OK);
    if (status == DSB_OK) {
        double want = sqrt(square(dim, x, y));

        be->parallel(1, dsb_pairs_tasks(&job), dsb_pairs_task, &job);
        CHECK(fabs(dsb_pairs_total(&job) - want) <= 1e-6 * want);
        dsb_pairs_clear(&job);
    }
    guarded_free(x), guarded_free(y);
}

/* Of a set with itself, identical points: nothing, to the bit. */
static void
check_identical(int dim)
{
    enum { N = 90 };
    const dsb_backend *be = dsb_cpu_backend();
    float *x = points(N, dim);
    dsb_pairs job;
    dsb_status status;

    for (int i = 1; i < N; i++) {
        memcpy(x + i * dim, x, (size_t)dim * sizeof(float));
    }
    status = dsb_pairs_init(&job, be, DSB_PAIR_DISTANCE, 0.0f, N, x, N, x, dim);
    CHECK(status == DSB_OK);
    if (status == DSB_OK) {
        be->parallel(3, dsb_pairs_tasks(&job), dsb_pairs_task, &job);
        CHECK(dsb_pairs_total(&job) == 0.0);
        dsb_pairs_clear(&job);
    }
    guarded_free(x);
}

static int
by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

static void
check_sort(int64_t n)
{
    float *values = points(n, 1), *want = points(n, 1), *other = points(n, 1), *found;

    for (int64_t i = 0; i < n; i += 3) {
        values[i] = ldexpf(values[i], (int)(i % 200) - 100); /* all sizes of numbers */
    }
    if (n > 4) {
        values[n - 2] = 0.0f;
        values[1] = -0.0f;
        values[2] = values[3];
    }
    memcpy(want, values, (size_t)n * sizeof(float));
    qsort(want, (size_t)n, sizeof(float), by_value);
    found = dsb_sort_floats(n, values, other);
    CHECK(found == values || found == other);
    for (int64_t i = 0; i < n; i++) {
        CHECK(found[i] == want[i]);
    }
    guarded_free(values), guarded_free(want), guarded_free(other);
}

/* Both quantile functions on the grid of multiples of 1 / (n m). */
static double
line_distance(int power, int64_t n, const float *x, int64_t m, const float *y)
{
    double sum = 0.0;

    for (int64_t k = 0; k < n * m; k++) {
        double gap = fabs((double)x[k / m] - (double)y[k / n]);

        sum += power == 1 ? gap : gap * gap;
    }
    return sum / (double)(n * m);
}

static void
check_sliced(int64_t n, int64_t m, int dim)
{
    enum { DIRECTIONS = 11 };
    const dsb_backend *be = dsb_cpu_backend();
    float *x = points(n, dim), *y = points(m, dim), *u = points(DIRECTIONS, dim);
    float *a = points(n, 1), *b = points(m, 1);
    double out[DIRECTIONS];

    for (int power = 1; power <= 2; power++) {
        dsb_sliced job;
        dsb_status status =
            dsb_sliced_init(&job, be, 3, power, n, x, m, y, dim, DIRECTIONS, u, out);

        CHECK(status == DSB_OK);
        if (status != DSB_OK) {
            continue;
        }
        be->parallel(3, dsb_sliced_tasks(&job), dsb_sliced_task, &job);
        dsb_sliced_clear(&job);
        for (int k = 0; k < DIRECTIONS; k++) {
            double want;

            for (int64_t i = 0; i < n + m; i++) {
                const float *p = i < n ? x + i * dim : y + (i - n) * dim;
                double sum = 0.0;

                for (int c = 0; c < dim; c++) {
                    sum += (double)p[c] * (double)u[k * dim + c];
                }
                *(i < n ? a + i : b + i - n) = (float)sum;
            }
            qsort(a, (size_t)n, sizeof(float), by_value);
            qsort(b, (size_t)m, sizeof(float), by_value);
            want = line_distance(power, n, a, m, b);
            CHECK(fabs(out[k] - want) <= 1e-5 * (want + dim));
        }
    }
    guarded_free(x), guarded_free(y), guarded_free(u), guarded_free(a), guarded_free(b);
}

void
test_pairs(void)
{
    static const int sizes[][3] = {{1, 1, 1},    {1, 17, 2},   {16, 15, 3},  {65, 33, 4},
                                   {64, 128, 7}, {130, 67, 1}, {200, 9, 33}, {129, 191, 2}};
    static const int high[] = {7, 8, 9, 15, 16, 17, 18, 19, 50, 129};
    static const int64_t lengths[] = {1, 2, 31, 32, 33, 1000, (1 << 16) + 1};
    int64_t before = dsb_alloc_live();

    draw_start();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_pair_sums(sizes[i][0], sizes[i][1], sizes[i][2]);
        check_sliced(sizes[i][0], sizes[i][1], sizes[i][2]);
    }
    for (size_t i = 0; i < sizeof high / sizeof *high; i++) {
        check_pair_sums(67, 145, high[i]);
        check_clusters(high[i]);
        check_single_pairs(high[i]);
        check_largest(high[i]);
        check_identical(high[i]);
    }
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        check_sort(lengths[i]);
    }
    CHECK(dsb_alloc_live() == before);
}
