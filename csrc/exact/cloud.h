/* Points as the kernels of entropic transport read them, and sums over them.
 *
 * Purpose: a cloud holds points coordinate by coordinate, divided by sqrt(2 variance), and for each its height
 * psi = potential + log weight. Heights and shifts are whole multiples of DSB_GRID, so that their sum is exact
 * in float32 whatever their size, and the rest of a height is a factor near 1 ("weight", 0 where there is none):
 * so log sum_j exp(psi_j - |x_i - y_j|^2 / (2 variance)) errs by a few units in the last place of the distances
 * that count, not of the potentials.
 * Ownership: a cloud owns its arrays. Threads: reading is free, filling is one thread's.
 */
#ifndef DSB_EXACT_CLOUD_H
#define DSB_EXACT_CLOUD_H

#include "backend.h"

#define DSB_GRID 0.0078125    /* 2^-7: sums up to 2^17 are exact */
#define DSB_MOST_COST 32768.0 /* the largest |x - y|^2 / (2 variance) that a plan is made for */
#define DSB_MOST_POTENTIAL 60000.0f /* heights and shifts */

#define DSB_MOST_SORTED 6 /* dimensions in which neighbours are worth finding */

typedef struct dsb_cloud {
    int64_t n, ld;
    int dim;
    float *x;               /* [dim][ld] */
    float *height, *weight; /* [ld] */
    /* Where points are sorted, so that neighbours in memory are neighbours in space; else NULL. */
    int64_t *order;    /* [n]: the number of the point in each place */
    float *low, *high; /* [dim][groups]: the box of each group of DSB_TRANSPORT_UNIT points */
    float *top;        /* [groups]: its largest height */
} dsb_cloud;

static inline int64_t
dsb_cloud_point(const dsb_cloud *cloud, int64_t place)
{
    return cloud->order != NULL ? cloud->order[place] : place;
}

static inline int64_t
dsb_cloud_groups(const dsb_cloud *cloud)
{
    return cloud->ld / DSB_TRANSPORT_UNIT;
}

/* `sorted` asks for an order, which is made where it helps. */
dsb_status dsb_cloud_init(dsb_cloud *cloud, const dsb_backend *be, int64_t n, int dim,
                          bool sorted) DSB_MUST_CHECK;
void dsb_cloud_clear(dsb_cloud *cloud, const dsb_backend *be);

/* Points [n, dim], C order. */
void dsb_cloud_place(dsb_cloud *cloud, const float *points, double variance);
/* One of them into place i of a cloud that is not sorted. */
void dsb_cloud_put(dsb_cloud *cloud, int64_t i, const float *point, double variance);
/* Heights of all points: potential[i] + log weight[i]; weight NULL: potential[i] alone, -infinity allowed. */
void dsb_cloud_raise(dsb_cloud *cloud, const double *potential, const double *weight);

/* The nearest multiple of DSB_GRID. */
float dsb_grid(double value);

/* The kernels' view of rows against columns. */
dsb_transport dsb_cloud_against(const dsb_cloud *rows, const dsb_cloud *columns);

/* Sums of rows first .. first + rows - 1, at most DSB_TRANSPORT_ROWS of them: sum[r] = sum_j exp(shift[r] +
 * psi_j - cost), finite and positive. shift comes as a guess that makes sums about 1, and is mended where it is
 * a bad one. Between sorted clouds groups of columns that add less than 1e-8 of a sum, all together, are left
 * out. `groups` is scratch, [groups of the columns]. */
void dsb_cloud_sums(const dsb_backend *be, const dsb_cloud *rows, const dsb_cloud *columns,
                    int64_t first, int n_rows, float *shift, double *sum, int32_t *groups);

#endif
