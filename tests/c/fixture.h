/* What the tests of kernels share: random numbers, memory with guards, images in it, comparisons.
 *
 * Purpose: a block is as long as asked for to the byte, between guards that are poisoned under
 * AddressSanitizer and compared in other builds. An image may be a slice of a wider one, whose other
 * columns are NaN and have to stay; its padding is large finite numbers.
 * Ownership: guarded_free and image_free check and free; doubles and numbers are for free(). Threads: one.
 */
#ifndef DSB_TESTS_FIXTURE_H
#define DSB_TESTS_FIXTURE_H

#include "backend.h"

/* Starts the sequence of random numbers anew. */
void draw_start(void);
int draw_below(int n);
double draw_number(void); /* in (-1, 1), a float32 */

double *doubles(int64_t n);               /* zeros */
double *numbers(int64_t n, double scale); /* random float32 up to +-scale */

/* Every byte is `fill`: 0xff is NaN in both types. */
void *guarded(size_t bytes, int fill);
/* A guarded copy of x; NaN if that is NULL. */
float *floats(int64_t n, const double *x);
void guarded_free(void *data);

/* How an image lies in memory; for each_variant also whether results are added to it. */
typedef struct variant {
    dsb_dtype dtype;
    bool slice; /* 16 foreign columns on each side */
    int beta;
    double soil; /* the size of the numbers in the padding, as image_soil takes it */
} variant;

typedef struct image {
    dsb_slot slot;
    int lines, c, skip; /* skip: columns of the wider image before the slice, and behind it */
    char *block;        /* the wider image */
    char *before;       /* its bytes as image_remember saw them; image_make does remember */
    double *value;      /* [lines][c], what it was made of */
} image;

/* Random numbers up to +-scale. */
image image_make(const variant *v, int lines, int c, double scale);
/* float32 rows: v, dv, scales. */
image rows_make(const variant *v, int rows, int n, double scale);
/* Checks the foreign columns too. */
void image_free(image *im);

double image_get(const image *im, int line, int64_t column);
/* Returns what was stored, which may be rounded. */
double image_set(const image *im, int line, int64_t column, double value);
double bf16_round(double value); /* to nearest, ties to even */
/* The image from line `line` on. */
dsb_slot image_from(const image *im, int line);

/* Fills the padding with numbers of this size; INFINITY: the largest finite ones of the type. */
void image_soil(image *im, double size);
void image_remember(image *im);
bool image_unchanged(const image *im);
/* The channels of these lines, not the padding, agree bit by bit. */
bool image_same(const image *a, int first_a, const image *b, int first_b, int lines);

/* |got - want| is within the slack and, of a bfloat16, half of its last bit; never for NaN. */
bool is_near(double got, double want, double slack, dsb_dtype dtype);
/* x holds want + beta times what it was made of, within share * size[i] (size NULL: 1 + |value|); its
 * padding is finite and the foreign columns are as they were. Prints the first number that is not. */
bool image_near(const image *x, const double *want, const double *size, int beta, double share);
/* The same for n numbers that held `old` (NULL: anything). */
bool floats_near(const float *got, const double *want, const double *size, const double *old,
                 int64_t n, double share);

/* Calls `check` for both types, slices and whole images, beta 0 and 1; names those that fail. */
void each_variant(void (*check)(const variant *v, const int *shape), const int *shape, double soil);

#endif
