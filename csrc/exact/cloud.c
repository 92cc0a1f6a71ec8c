#include "exact/cloud.h"

#include <assert.h>
#include <math.h>

/* Sums outside of this have lost terms, or are about to overflow. */
static const double least_sum = 1e-2, most_sum = 1e30;

enum { TOGETHER = 16 }; /* rows that share a list of groups */

/* The height of columns without weight: below every shift, so that no infinity meets the factor 0. */
static const float nowhere = -100000.0f;

dsb_status
dsb_cloud_init(dsb_cloud *cloud, const dsb_backend *be, int64_t n, int dim, bool sorted)
{
    bool boxes = sorted && dim <= DSB_MOST_SORTED;
    int64_t ld = dsb_transport_pitch(n);
    size_t line = sizeof(float) * (size_t)ld,
           groups = sizeof(float) * (size_t)ld / DSB_TRANSPORT_UNIT;
    struct {
        void *to;
        size_t bytes;
        bool wanted;
    } parts[] = {
        {&cloud->x, line * (size_t)dim, true},
        {&cloud->height, line, true},
        {&cloud->weight, line, true},
        {&cloud->order, sizeof *cloud->order * (size_t)n, boxes},
        {&cloud->low, groups * (size_t)dim, boxes},
        {&cloud->high, groups * (size_t)dim, boxes},
        {&cloud->top, groups, boxes},
    };

    *cloud = (dsb_cloud){.n = n, .ld = ld, .dim = dim};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        dsb_status status = DSB_OK;

        if (parts[i].wanted) {
            status = be->alloc(parts[i].bytes, parts[i].to);
        }
        if (status != DSB_OK) {
            dsb_cloud_clear(cloud, be);
            return status;
        }
    }
    return DSB_OK;
}

void
dsb_cloud_clear(dsb_cloud *cloud, const dsb_backend *be)
{
    be->free(cloud->x);
    be->free(cloud->height);
    be->free(cloud->weight);
    be->free(cloud->order);
    be->free(cloud->low);
    be->free(cloud->high);
    be->free(cloud->top);
    *cloud = (dsb_cloud){.n = 0};
}

void
dsb_cloud_put(dsb_cloud *cloud, int64_t i, const float *point, double variance)
{
    double factor = 1.0 / sqrt(2.0 * variance);

    for (int k = 0; k < cloud->dim; k++) {
        cloud->x[k * cloud->ld + i] = (float)(factor * (double)point[k]);
    }
}

/* ---- order ---- */

typedef struct sorting {
    const float *points;
    int dim;
    int64_t *order;
} sorting;

/* The coordinate in which points order[first .. last - 1] reach furthest. */
static int
widest(const sorting *s, int64_t first, int64_t last)
{
    float most = -1.0f;
    int found = 0;

    for (int k = 0; k < s->dim; k++) {
        float low = s->points[s->order[first] * s->dim + k], high = low;

        for (int64_t i = first + 1; i < last; i++) {
            float value = s->points[s->order[i] * s->dim + k];

            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        if (high - low > most) {
            most = high - low;
            found = k;
        }
    }
    return found;
}

/* Quickselect: the points with the smallest coordinates k come to first .. middle - 1. Ties go by number, so
 * that equal points do not make it slow. */
static void
split(sorting *s, int64_t first, int64_t last, int64_t middle, int k)
{
    while (last - first > 1) {
        int64_t pivot = s->order[first + (last - first) / 2], i = first, j = last - 1;
        float value = s->points[pivot * s->dim + k];

        while (i <= j) {
            int64_t a = s->order[i], b = s->order[j];
            float at_a = s->points[a * s->dim + k], at_b = s->points[b * s->dim + k];

            if (at_a < value || (at_a == value && a < pivot)) {
                i++;
            } else if (at_b > value || (at_b == value && b > pivot)) {
                j--;
            } else {
                s->order[i++] = b;
                s->order[j--] = a;
            }
        }
        if (middle <= j) {
            last = j + 1;
        } else if (middle >= i) {
            first = i;
        } else {
            return;
        }
    }
}

/* Halves along the widest coordinate, down to groups: the depth is the logarithm of their number. */
static void
sort_points(sorting *s, int64_t first, int64_t last)
{
    int64_t groups = (last - first + DSB_TRANSPORT_UNIT - 1) / DSB_TRANSPORT_UNIT;
    int64_t middle = first + (groups + 1) / 2 * DSB_TRANSPORT_UNIT;

    if (groups > 1) {
        split(s, first, last, middle, widest(s, first, last));
        sort_points(s, first, middle);
        sort_points(s, middle, last);
    }
}

static void
make_boxes(dsb_cloud *cloud)
{
    int64_t groups = dsb_cloud_groups(cloud);

    for (int k = 0; k < cloud->dim; k++) {
        for (int64_t g = 0; g < groups; g++) {
            int64_t first = g * DSB_TRANSPORT_UNIT, last = first + DSB_TRANSPORT_UNIT;
            float low = INFINITY, high = -INFINITY;

            for (int64_t i = first; i < last && i < cloud->n; i++) {
                low = fminf(low, cloud->x[k * cloud->ld + i]);
                high = fmaxf(high, cloud->x[k * cloud->ld + i]);
            }
            cloud->low[k * groups + g] = low;
            cloud->high[k * groups + g] = high;
        }
    }
}

void
dsb_cloud_place(dsb_cloud *cloud, const float *points, double variance)
{
    if (cloud->order != NULL) {
        sorting s = {points, cloud->dim, cloud->order};

        for (int64_t i = 0; i < cloud->n; i++) {
            cloud->order[i] = i;
        }
        sort_points(&s, 0, cloud->n);
    }
    for (int64_t i = 0; i < cloud->n; i++) {
        dsb_cloud_put(cloud, i, points + dsb_cloud_point(cloud, i) * cloud->dim, variance);
    }
    if (cloud->order != NULL) {
        make_boxes(cloud);
    }
}

/* ---- heights ---- */

float
dsb_grid(double value)
{
    return (float)(nearbyint(value / DSB_GRID) * DSB_GRID);
}

void
dsb_cloud_raise(dsb_cloud *cloud, const double *potential, const double *weight)
{
    for (int64_t i = 0; i < cloud->ld; i++) {
        double psi = -INFINITY;
        bool used;

        if (i < cloud->n) {
            int64_t point = dsb_cloud_point(cloud, i);

            psi = potential[point] + (weight != NULL ? log(weight[point]) : 0.0);
        }
        used = psi > -INFINITY;
        cloud->height[i] = used ? dsb_grid(psi) : nowhere;
        cloud->weight[i] = used ? (float)exp(psi - (double)cloud->height[i]) : 0.0f;
        assert(!used || fabsf(cloud->height[i]) <= 1.5f * DSB_MOST_POTENTIAL);
    }
    for (int64_t g = 0; cloud->top != NULL && g < dsb_cloud_groups(cloud); g++) {
        cloud->top[g] = nowhere;
        for (int64_t i = g * DSB_TRANSPORT_UNIT; i < (g + 1) * DSB_TRANSPORT_UNIT; i++) {
            cloud->top[g] = fmaxf(cloud->top[g], cloud->height[i]);
        }
    }
}

dsb_transport
dsb_cloud_against(const dsb_cloud *rows, const dsb_cloud *columns)
{
    return (dsb_transport){.dim = rows->dim,
                           .ldx = rows->ld,
                           .ldy = columns->ld,
                           .x = rows->x,
                           .y = columns->x,
                           .height = columns->height,
                           .weight = columns->weight};
}

/* ---- sums ---- */

static bool
is_bad(double sum)
{
    return !(sum >= least_sum && sum <= most_sum);
}

/* Groups of columns whose bound on exp(e), over all of some rows, is not negligible: `left_out` is the logarithm
 * of what is. Returns how many. */
static int64_t
find_groups(const dsb_cloud *rows, const dsb_cloud *columns, int64_t first, int n_rows,
            const float *shift, float left_out, int32_t *groups)
{
    int64_t all = dsb_cloud_groups(columns), n = 0;
    float low[DSB_MOST_SORTED], high[DSB_MOST_SORTED], most = shift[0];

    for (int k = 0; k < rows->dim; k++) {
        const float *x = rows->x + k * rows->ld + first;

        low[k] = high[k] = x[0];
        for (int r = 1; r < n_rows; r++) {
            low[k] = x[r] < low[k] ? x[r] : low[k];
            high[k] = x[r] > high[k] ? x[r] : high[k];
        }
    }
    for (int r = 1; r < n_rows; r++) {
        most = shift[r] > most ? shift[r] : most;
    }
    for (int64_t g = 0; g < all; g++) {
        float square = 0.0f;

        for (int k = 0; k < rows->dim; k++) {
            float above = columns->low[k * all + g] - high[k];
            float below = low[k] - columns->high[k * all + g];
            float gap = above > below ? above : below;

            gap = gap > 0.0f ? gap : 0.0f;
            square += gap * gap;
        }
        groups[n] = (int32_t)g;
        n += most + columns->top[g] - square > left_out;
    }
    return n;
}

static int64_t
all_groups(const dsb_cloud *columns, int32_t *groups)
{
    int64_t all = dsb_cloud_groups(columns);

    for (int64_t g = 0; g < all; g++) {
        groups[g] = (int32_t)g;
    }
    return all;
}

void
dsb_cloud_sums(const dsb_backend *be, const dsb_cloud *rows, const dsb_cloud *columns,
               int64_t first, int n_rows, float *shift, double *sum, int32_t *groups)
{
    dsb_transport t = dsb_cloud_against(rows, columns);
    float most[DSB_TRANSPORT_ROWS], left_out = (float)log(1e-8 * least_sum / (double)columns->n);
    int64_t n = 0;
    int bad = 0;

    if (rows->order == NULL) {
        n = all_groups(columns, groups);
        be->transport_sum(NULL, &t, first, n_rows, shift, n, groups, sum);
    } else {
        for (int r = 0; r < n_rows; r += TOGETHER) {
            int some = n_rows - r < TOGETHER ? n_rows - r : TOGETHER;

            n = find_groups(rows, columns, first + r, some, shift + r, left_out, groups);
            be->transport_sum(NULL, &t, first + r, some, shift + r, n, groups, sum + r);
        }
    }
    for (int r = 0; r < n_rows; r++) {
        bad += is_bad(sum[r]);
    }
    if (bad == 0) {
        return;
    }
    /* The largest term becomes about 1; rows whose sums were good keep shift and sum. */
    be->transport_most(NULL, &t, first, n_rows, shift, most);
    n = all_groups(columns, groups);
    for (int r = 0; r < n_rows; r++) {
        if (is_bad(sum[r])) {
            double again[TOGETHER];
            int block = r / 4 * 4; /* rows are taken from multiples of four on */

            shift[r] -= dsb_grid((double)most[r]);
            be->transport_sum(NULL, &t, first + block, r - block + 1, shift + block, n, groups,
                              again);
            sum[r] = again[r - block];
        }
    }
}
