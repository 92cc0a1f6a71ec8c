/* The reference process pinned at both ends of a path, and what a net is to put out there.
 *
 * Purpose: bridge targets (arXiv:2303.16852). A path of one direction gives X_0 and X_N; between them the
 * reference is Gaussian, so that a state and the conditional mean of its neighbour are affine in the ends:
 * tables of coefficients, a row for each step of the direction that simulates.
 * Ownership: owns its tables. Threads: immutable once made.
 */
#ifndef DSB_BRIDGE_PINNED_H
#define DSB_BRIDGE_PINNED_H

#include "bridge/reference.h"

typedef struct dsb_pinned {
    int n;
    float *table;     /* state, noise, target: 3 n floats each, in this order */
    double *variance; /* of the neighbour given the state and the path's start */
} dsb_pinned;

#define DSB_PINNED_TABLES 3

/* For the net of direction `trained`, which learns from paths of the other one; "start" and "end" are those
 * of such a path, so that the start is where `trained` leads to. Row j, for the j-th step of the path:
 * `state`:  coefficients of start, end and m in the mean of the state that the net reads,
 * `noise`:  1, its deviation, 0,
 * `target`: coefficients of that state, of the start and of m in the mean to put out. */
dsb_status dsb_pinned_init(dsb_pinned *pinned, const dsb_reference *reference,
                           const dsb_schedule *schedule, dsb_direction trained) DSB_MUST_CHECK;
void dsb_pinned_clear(dsb_pinned *pinned);

#endif
