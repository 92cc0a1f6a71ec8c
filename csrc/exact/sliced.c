#include "exact/sliced.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "exact/pair_sums.h"

enum {
    TOGETHER = 8,   /* directions for which the points are read once */
    FITS = 1 << 20, /* numbers of scratch that a second cache holds */
    FEW = 1 << 16,  /* so many are sorted by 11 bits at a time: 2048 lists, 3 passes; more by 8 */
    SMALL = 32,     /* so few by insertion */
    MAX_DIGITS = 2048,
    MAX_PASSES = 4,
};

/* ---- sorting ---- */

typedef uint32_t __attribute__((may_alias)) word; /* a float, or its key in its place */

/* Bits that are ordered as unsigned integers like the numbers they stand for, and back. */
static inline uint32_t
key_of(uint32_t bits)
{
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

static inline uint32_t
bits_of(uint32_t key)
{
    return key ^ (~(uint32_t)((int32_t)key >> 31) | 0x80000000u);
}

static void
insert(int64_t n, float *values)
{
    for (int64_t i = 1; i < n; i++) {
        float v = values[i];
        int64_t j = i;

        for (; j > 0 && values[j - 1] > v; j--) {
            values[j] = values[j - 1];
        }
        values[j] = v;
    }
}

/* Least significant digits first: one reading counts the digits of all passes. */
static float *
sort_digits(int bits, int64_t n, float *values, float *other)
{
    uint32_t count[MAX_PASSES][MAX_DIGITS];
    int passes = (31 + bits) / bits, digits = 1 << bits;
    uint32_t mask = (uint32_t)digits - 1;
    word *from = (word *)values, *to = (word *)other;

    for (int p = 0; p < passes; p++) {
        memset(count[p], 0, (size_t)digits * sizeof(uint32_t));
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t key = key_of(from[i]);

        from[i] = key;
        for (int p = 0; p < passes; p++) {
            count[p][key >> p * bits & mask]++;
        }
    }
    for (int p = 0; p < passes; p++) {
        uint32_t *place = count[p], before = 0;
        word *swap = from;

        for (int d = 0; d < digits; d++) {
            uint32_t here = place[d];

            place[d] = before;
            before += here;
        }
        for (int64_t i = 0; i < n; i++) {
            uint32_t key = from[i];

            to[place[key >> p * bits & mask]++] = p == passes - 1 ? bits_of(key) : key;
        }
        from = to;
        to = swap;
    }
    return (float *)from;
}

float *
dsb_sort_floats(int64_t n, float *values, float *other)
{
    if (n <= SMALL) {
        insert(n, values);
        return values;
    }
    return n <= FEW ? sort_digits(11, n, values, other) : sort_digits(8, n, values, other);
}

/* ---- distances on a line ---- */

static inline double
cost(int power, float a, float b)
{
    double d = (double)a - (double)b;

    return power == 1 ? fabs(d) : d * d;
}

static double
equal_sizes(int power, int64_t n, const float *x, const float *y)
{
    double sums[4] = {0.0};
    int64_t i = 0;

    for (; i + 4 <= n; i += 4) {
        for (int k = 0; k < 4; k++) {
            sums[k] += cost(power, x[i + k], y[i + k]);
        }
    }
    for (; i < n; i++) {
        sums[0] += cost(power, x[i], y[i]);
    }
    return (sums[0] + sums[1] + (sums[2] + sums[3])) / (double)n;
}

double
dsb_line_distance(int power, int64_t n, const float *x, int64_t m, const float *y)
{
    double sum = 0.0;
    int64_t at = 0; /* times 1 / (n m), so that the steps of both quantile functions are whole */

    if (n == m) {
        return equal_sizes(power, n, x, y);
    }
    for (int64_t i = 0, j = 0; i < n && j < m;) {
        int64_t end_x = (i + 1) * m, end_y = (j + 1) * n;
        int64_t end = end_x < end_y ? end_x : end_y;

        sum += (double)(end - at) * cost(power, x[i], y[j]);
        at = end;
        i += end == end_x;
        j += end == end_y;
    }
    return sum / ((double)n * (double)m);
}

/* ---- all directions ---- */

dsb_status
dsb_sliced_init(dsb_sliced *job, const dsb_backend *be, int workers, int power, int64_t n,
                const float *x, int64_t m, const float *y, int64_t dim, int64_t directions,
                const float *u, double *out)
{
    int64_t both = dsb_pitch(n) + dsb_pitch(m), first = dsb_panels_floats(n, dim);
    dsb_status status;

    *job = (dsb_sliced){.be = be,
                        .n = n,
                        .m = m,
                        .dim = dim,
                        .directions = directions,
                        .power = power,
                        .together = TOGETHER,
                        .u = u,
                        .out = out};
    while (job->together > 1 && job->together * both > FITS) {
        job->together /= 2;
    }
    job->each = (job->together + 1) * both;
    status = dsb_alloc((size_t)(first + dsb_panels_floats(m, dim)) * sizeof(float), &job->panels);
    if (status == DSB_OK) {
        status = dsb_alloc((size_t)workers * (size_t)job->each * sizeof(float), &job->scratch);
    }
    if (status != DSB_OK) {
        dsb_sliced_clear(job);
        return status;
    }
    dsb_panels_pack(n, dim, x, job->panels);
    dsb_panels_pack(m, dim, y, job->panels + first);
    return DSB_OK;
}

void
dsb_sliced_clear(dsb_sliced *job)
{
    dsb_free(job->panels);
    dsb_free(job->scratch);
    job->panels = NULL;
    job->scratch = NULL;
}

int64_t
dsb_sliced_tasks(const dsb_sliced *job)
{
    return (job->directions + job->together - 1) / job->together;
}

void
dsb_sliced_task(void *context, int64_t task, int worker)
{
    const dsb_sliced *job = context;
    int64_t first = task * job->together, left = job->directions - first;
    int many = left < job->together ? (int)left : job->together;
    int64_t px = dsb_pitch(job->n), py = dsb_pitch(job->m);
    const float *u = job->u + first * job->dim;
    float *x = job->scratch + worker * job->each;
    float *y = x + job->together * px, *spare = y + job->together * py;

    job->be->project(NULL, job->n, job->dim, job->panels, many, u, x, px);
    job->be->project(NULL, job->m, job->dim, job->panels + dsb_panels_floats(job->n, job->dim),
                     many, u, y, py);
    for (int k = 0; k < many; k++) {
        const float *a = dsb_sort_floats(job->n, x + k * px, spare);
        const float *b = dsb_sort_floats(job->m, y + k * py, spare + px);

        job->out[first + k] = dsb_line_distance(job->power, job->n, a, job->m, b);
    }
}
