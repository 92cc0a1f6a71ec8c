/* Memory with guards, and images in it, to see what a kernel reads and writes.
 *
 * Purpose: a block is as long as asked for to the byte, between guards that are poisoned under
 * AddressSanitizer and compared in other builds. An image may be a slice of a wider one, whose other
 * columns are NaN; its padding is large finite numbers.
 * Ownership: *_make allocates, *_free checks the guards and frees. Threads: one.
 */
#ifndef DSB_TESTS_GUARDED_H
#define DSB_TESTS_GUARDED_H

#include "backend.h"

typedef struct guarded {
    unsigned char *block;
    void *data;
    size_t bytes;
} guarded;

guarded guarded_make(size_t bytes, int fill);
guarded guarded_floats(int64_t n);
/* False where something was written beside the block. */
bool guarded_free(guarded *memory);

typedef struct image {
    guarded memory, before; /* `before`: the bytes as image_remember saw them */
    dsb_slot slot;
    int64_t lines;
    int c, skip; /* skip: columns of the wider image before the slice */
} image;

/* `slice`: 16 foreign columns on each side. Everything is zero but the foreign columns and the padding. */
image image_make(int64_t lines, int c, dsb_dtype dtype, bool slice);
bool image_free(image *im);

double image_get(const image *im, int64_t line, int channel);
void image_set(image *im, int64_t line, int channel, double value);
/* The image from line `line` on. */
dsb_slot image_from(const image *im, int64_t line);

/* Fills the padding with numbers of this size, or with the largest there are. */
void image_soil(image *im, double size);
void image_soil_largest(image *im);
/* After image_remember: no bit has changed, or none of the foreign columns' (and the padding is finite). */
void image_remember(image *im);
bool image_unchanged(const image *im);
bool image_foreign_unchanged(const image *im);
/* The channels, not the padding, agree bit by bit. */
bool image_same(const image *a, const image *b);

uint16_t bf16_from(double value); /* to nearest, ties to even; of finite numbers */
double bf16_value(uint16_t bits);

#endif
