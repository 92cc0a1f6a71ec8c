#include "guarded.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/memory.h"

enum { GUARD = 256, GUARD_BYTE = 0xa5, FOREIGN = 16 };

guarded
guarded_make(size_t bytes, int fill)
{
    guarded memory = {.bytes = bytes};

    if (dsb_alloc(bytes + 2 * GUARD, &memory.block) != DSB_OK) {
        abort();
    }
    memset(memory.block, GUARD_BYTE, bytes + 2 * GUARD);
    memory.data = memory.block + GUARD;
    memset(memory.data, fill, bytes);
    dsb_arena_close(memory.block, bytes + 2 * GUARD);
    dsb_arena_open(memory.data, bytes);
    return memory;
}

guarded
guarded_floats(int64_t n)
{
    return guarded_make(sizeof(float) * (size_t)n, 0);
}

bool
guarded_free(guarded *memory)
{
    bool intact = true;

    dsb_arena_open(memory->block, memory->bytes + 2 * GUARD);
    for (size_t i = 0; i < GUARD; i++) {
        intact = intact && memory->block[i] == GUARD_BYTE &&
                 memory->block[GUARD + memory->bytes + i] == GUARD_BYTE;
    }
    dsb_free(memory->block);
    *memory = (guarded){0};
    return intact;
}

uint16_t
bf16_from(double value)
{
    float single = (float)value; /* what is rounded twice is no worse than what a kernel does */
    uint32_t bits;

    memcpy(&bits, &single, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

double
bf16_value(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float single;

    memcpy(&single, &bits, sizeof single);
    return single;
}

static size_t
offset_of(const image *im, int64_t line, int column)
{
    return (size_t)(line * im->slot.ld + im->skip + column) *
           (size_t)dsb_dtype_bytes(im->slot.dtype);
}

static double
number_at(const image *im, int64_t line, int column)
{
    const char *p = (const char *)im->memory.data + offset_of(im, line, column);
    uint16_t half;
    float single;

    if (im->slot.dtype == DSB_BFLOAT16) {
        memcpy(&half, p, sizeof half);
        return bf16_value(half);
    }
    memcpy(&single, p, sizeof single);
    return single;
}

double
image_get(const image *im, int64_t line, int channel)
{
    return number_at(im, line, channel);
}

void
image_set(image *im, int64_t line, int channel, double value)
{
    char *p = (char *)im->memory.data + offset_of(im, line, channel);
    uint16_t half = bf16_from(value);
    float single = (float)value;

    if (im->slot.dtype == DSB_BFLOAT16) {
        memcpy(p, &half, sizeof half);
    } else {
        memcpy(p, &single, sizeof single);
    }
}

image
image_make(int64_t lines, int c, dsb_dtype dtype, bool slice)
{
    image im = {.lines = lines, .c = c, .skip = slice ? FOREIGN : 0};
    int64_t pitch = dsb_pitch(c), ld = pitch + 2 * im.skip;
    size_t bytes = (size_t)(lines * ld) * (size_t)dsb_dtype_bytes(dtype);

    im.memory = guarded_make(bytes, 0xff); /* NaN, in both types */
    im.before = guarded_make(bytes, 0xff);
    im.slot = (dsb_slot){im.memory.data, ld, dtype};
    for (int64_t line = 0; line < lines; line++) {
        memset((char *)im.memory.data + offset_of(&im, line, 0), 0,
               (size_t)pitch * (size_t)dsb_dtype_bytes(dtype));
    }
    im.slot = dsb_slot_from(im.slot, im.skip);
    image_soil(&im, 1e30);
    return im;
}

bool
image_free(image *im)
{
    bool intact = guarded_free(&im->memory);

    return guarded_free(&im->before) && intact;
}

dsb_slot
image_from(const image *im, int64_t line)
{
    return dsb_slot_from(im->slot, line * im->slot.ld);
}

void
image_soil(image *im, double size)
{
    for (int64_t line = 0; line < im->lines; line++) {
        for (int c = im->c; c < dsb_pitch(im->c); c++) {
            image_set(im, line, c, (line + c) % 2 ? size : -size);
        }
    }
}

void
image_soil_largest(image *im)
{
    image_soil(im, im->slot.dtype == DSB_BFLOAT16 ? bf16_value(0x7f7f) : (double)FLT_MAX);
}

void
image_remember(image *im)
{
    memcpy(im->before.data, im->memory.data, im->memory.bytes);
}

bool
image_unchanged(const image *im)
{
    return memcmp(im->before.data, im->memory.data, im->memory.bytes) == 0;
}

bool
image_foreign_unchanged(const image *im)
{
    const char *old = im->before.data, *new = im->memory.data;
    int pitch = (int)dsb_pitch(im->c), skip = im->skip;
    size_t foreign = (size_t)skip * (size_t)dsb_dtype_bytes(im->slot.dtype);
    bool same = true;

    for (int64_t line = 0; line < im->lines; line++) {
        size_t left = offset_of(im, line, -skip), right = offset_of(im, line, pitch);

        same = same && memcmp(old + left, new + left, foreign) == 0 &&
               memcmp(old + right, new + right, foreign) == 0;
        for (int c = im->c; c < pitch; c++) {
            same = same && isfinite(number_at(im, line, c));
        }
    }
    return same;
}

bool
image_same(const image *a, const image *b)
{
    size_t bytes = (size_t)a->c * (size_t)dsb_dtype_bytes(a->slot.dtype);

    for (int64_t line = 0; line < a->lines; line++) {
        if (memcmp((const char *)a->memory.data + offset_of(a, line, 0),
                   (const char *)b->memory.data + offset_of(b, line, 0), bytes) != 0) {
            return false;
        }
    }
    return true;
}
