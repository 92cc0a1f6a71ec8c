/* Images in memory with all that a kernel must not touch, for the tests of kernels.
 *
 * Purpose: random images of both types, also as slices of wider ones: other images' columns are NaN and must
 * stay so, padding holds huge numbers, blocks have their exact size for the sanitizers.
 * Ownership: image_new allocates, fixture_free frees. Threads: for one.
 */
#ifndef DSB_TESTS_IMAGE_FIXTURE_H
#define DSB_TESTS_IMAGE_FIXTURE_H

#include "backend.h"

typedef struct image {
    dsb_slot slot;
    void *block;
    int lines, c, before; /* before: columns of others in front of a slice, and behind it */
    double *value;        /* [lines][c], what was put in */
} image;

/* How the images of one case lie in memory, and what happens to results. */
typedef struct variant {
    dsb_dtype dtype;
    bool slice;
    int beta;
} variant;

/* n random numbers in [-scale, scale], exact in float32. */
double *numbers(size_t n, double scale);
float *floats(const double *x, size_t n);

image image_new(const variant *v, int lines, int c, double scale);
/* float32 rows: v, dv, scales. */
image rows_new(int rows, int n, bool slice, double scale);
void fixture_free(image *x);
double fixture_get(const image *x, int line, int64_t column);
/* Returns what was stored, which may be rounded. */
double fixture_set(const image *x, int line, int64_t column, double value);
/* The slot from line `first` on. */
dsb_slot fixture_from(const image *x, int first);

/* |got - want| within a tolerance, absolute and relative, and a rounding to bfloat16; never for NaN. */
bool is_close(double got, double want, double tolerance, bool half);
/* x holds want + beta times what it held; its padding is finite, what is not its own is as it was. */
void check_image(const char *what, const image *x, const double *want, int beta, double tolerance);
/* The same for n numbers that held `old` (NULL: anything). */
void check_floats(const char *what, const float *got, const double *want, const double *old,
                  size_t n, double tolerance);
bool same_bits(const image *a, int first_a, const image *b, int first_b, int lines);
/* Calls `check` for both types, slices and whole images, beta 0 and 1. */
void each_variant(void (*check)(const variant *v, const int *shape), const int *shape);

/* Group normalisation (test_norm.c). */
void test_norm(void);

#endif
