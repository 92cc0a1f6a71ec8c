/* What the C tests share: CHECK counts a failure and goes on. */
#ifndef DSB_TESTS_TEST_H
#define DSB_TESTS_TEST_H

#include <stdbool.h>

#include "nn/plan.h"

#define CHECK(condition) test_check((condition), #condition, __FILE__, __LINE__)

void test_check(bool holds, const char *condition, const char *file, int line);
/* How many have failed so far. */
int test_failures(void);

/* One pass over rows of fixed inputs; output, then gradient plane or gradient of x, into `result`, which has
 * room for rows * dim * 2 + plane floats. */
dsb_status test_run_pass(const dsb_net *net, const dsb_plan_request *request, float *result);

/* Small nets of every op for images: plans with and without reuse (test_image_nets.c). */
void test_image_nets(void);
/* Every convolution pass the backend has, against plain loops in float64 (test_conv.c). */
void test_conv(void);
/* The other kernels for images, against plain loops in float64 (test_norm.c, test_images.c). */
void test_norm(void);
void test_images(void);
/* Sums over pairs of points and distances along lines, against plain loops in float64 (test_pairs.c). */
void test_pairs(void);
/* The reference pinned at both ends, against chains conditioned in another way (test_pinned.c). */
void test_pinned(void);
/* Entropic transport (test_exact.c). */
void test_exact(void);
/* Covariances of noise: matrices, kernels, factors (test_covariance.c). */
void test_covariance(void);

#endif
