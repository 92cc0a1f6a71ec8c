/* Times functions of the backend's table one by one, as a net calls them.
 *
 * `ops THREADS ROWS MICROBATCH REPEATS` reads lines `FUNCTION key=value ...` and answers each with the median
 * seconds that ROWS images take, microbatches dealt to the workers, or with `nan` where the table has no such
 * function. What an op has just been handed (its input, the gradient of its output) is written over again and
 * again by its worker, hence in a cache as in a net; what is kept or was kept for the backward pass lies
 * elsewhere for every image.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "ops.h"

enum { MAX_REPEATS = 101, MAX_KEYS = 16 };

/* ---- requests ---- */

static const struct {
    const char *key;
    size_t offset;
} keys[MAX_KEYS] = {
    {"h", offsetof(request, h)},
    {"w", offsetof(request, w)},
    {"c", offsetof(request, c)},
    {"c_out", offsetof(request, c_out)},
    {"kernel", offsetof(request, kernel)},
    {"stride", offsetof(request, stride)},
    {"up", offsetof(request, up)},
    {"precision", offsetof(request, precision)},
    {"bf16", offsetof(request, bf16)},
    {"groups", offsetof(request, groups)},
    {"heads", offsetof(request, heads)},
    {"affine", offsetof(request, affine)},
    {"silu", offsetof(request, silu)},
    {"scale", offsetof(request, scale)},
    {"residual", offsetof(request, residual)},
    {"lanes", offsetof(request, lanes)},
};

static int
parse(char *line, request *ask)
{
    char *word = strtok(line, " \n");

    *ask = (request){.h = 1, .w = 1, .c = 1, .c_out = 1, .kernel = 1, .stride = 1, .up = 1};
    if (word == NULL || strlen(word) >= sizeof ask->name) {
        return 0;
    }
    strcpy(ask->name, word);
    while ((word = strtok(NULL, " \n")) != NULL) {
        char *value = strchr(word, '=');
        int known = 0;

        if (value == NULL) {
            return 0;
        }
        *value = '\0';
        for (int i = 0; i < MAX_KEYS; i++) {
            if (strcmp(keys[i].key, word) == 0) {
                *(int *)((char *)ask + keys[i].offset) = atoi(value + 1);
                known = 1;
            }
        }
        if (!known) {
            return 0;
        }
    }
    return 1;
}

/* ---- memory ---- */

/* Numbers that are ordinary whether they are read as float32 or as pairs of bfloat16. */
static void
fill(uint32_t *words, size_t n)
{
    uint32_t state = 1;

    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        uint32_t half = (state >> 16 & 0x807fu) | 0x3f00u; /* .5 to 2, either sign */

        words[i] = half << 16 | half;
    }
}

static void
reserve(void *slot, size_t bytes)
{
    enum { BUFFERS = 16 };
    static struct {
        void *slot;
        size_t bytes;
    } held[BUFFERS];
    int i = 0;

    while (held[i].slot != NULL && held[i].slot != slot) {
        i++;
    }
    if (held[i].bytes < bytes) {
        void *block;

        dsb_free(*(void **)slot);
        if (dsb_alloc(bytes, &block) != DSB_OK) {
            fprintf(stderr, "ops: out of memory\n");
            exit(1);
        }
        fill(block, bytes / 4);
        memcpy(slot, &block, sizeof block);
        held[i].slot = slot;
        held[i].bytes = bytes;
    }
}

static void
reserve_all(bench *b)
{
    const request *ask = &b->ask;
    memory *m = &b->memory;
    int64_t workers = b->threads, wide = dsb_pitch(at_least(3 * ask->c, ask->c_out));
    int64_t pixels = at_least(pixels_in(ask), pixels_out(ask));
    size_t image = sizeof(float) * (size_t)(pixels * dsb_pitch(at_least(ask->c, ask->c_out)));
    size_t hot = (size_t)(workers * b->microbatch), row = sizeof(float) * (size_t)(pixels * wide);
    size_t weights = (size_t)dsb_pitch((int64_t)ask->kernel * ask->kernel * ask->c * ask->c_out +
                                       3 * dsb_pitch(at_least(ask->c, ask->c_out)));
    const dsb_conv_passes *passes = &b->backend->conv[ask->precision];
    size_t packed = sizeof(float) * weights * 4, scratch = 64;
    dsb_conv conv = conv_of(ask);

    if (ask->heads > 0) {
        image = row;
    } else if (ask->lanes > 0) {
        image = sizeof(float) * (size_t)ask->c * (size_t)ask->lanes;
    }
    if (strncmp(ask->name, "conv", 4) == 0) {
        packed = (size_t)at_least((int64_t)passes->packed_bytes(&conv, false),
                                  (int64_t)passes->packed_bytes(&conv, true));
        scratch = conv_scratch(b);
    } else if (ask->heads > 0) {
        scratch = b->backend->attention_scratch(pixels_in(ask), ask->c, ask->heads);
    }
    reserve(&m->x, image * (size_t)b->images);
    reserve(&m->y, image * (size_t)b->images);
    reserve(&m->hot, image * hot);
    reserve(&m->dy, image * hot);
    reserve(&m->dx, image * hot);
    reserve(&m->rows, 2 * row * hot);
    reserve(&m->ab, 2 * sizeof(float) * hot * (size_t)wide);
    reserve(&m->stats, 2 * sizeof(float) * hot * (size_t)at_least(ask->groups, 1));
    reserve(&m->dw, sizeof(float) * (size_t)(workers + 1) * 2 * weights);
    reserve(&m->packed, packed);
    reserve(&m->scratch, ((scratch + 63) / 64 * 64) * (size_t)workers);
}

/* ---- timing ---- */

static void
run_task(void *context, int64_t task, int worker)
{
    const bench *b = context;

    b->run(b, task * b->microbatch, worker);
}

static int
compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double
median_seconds(bench *b)
{
    double seconds[MAX_REPEATS];

    b->backend->parallel(b->threads, b->images / b->microbatch, run_task, b);
    for (int i = 0; i < b->repeats; i++) {
        double start = dsb_seconds();

        b->backend->parallel(b->threads, b->images / b->microbatch, run_task, b);
        seconds[i] = dsb_seconds() - start;
    }
    qsort(seconds, (size_t)b->repeats, sizeof seconds[0], compare);
    return seconds[b->repeats / 2];
}

/* Runs of the parameters and packing are not dealt out by images. */
static void
deal(bench *b, int rows, int microbatch)
{
    enum { BLOCK = 2048 }; /* as csrc/bridge/learner.c has it */

    b->images = rows;
    b->microbatch = microbatch;
    if (strcmp(b->ask.name, "conv_pack") == 0) {
        b->images = b->microbatch = 1;
    } else if (b->ask.lanes > 0) {
        b->images = (b->ask.c + BLOCK - 1) / BLOCK;
        b->microbatch = 1;
        b->ask.c = BLOCK;
    }
}

int
main(int argc, char **argv)
{
    bench b = {.backend = dsb_cpu_backend()};
    int rows = argc > 2 ? atoi(argv[2]) : 0, microbatch = argc > 3 ? atoi(argv[3]) : 0;
    char line[512];

    b.threads = argc > 1 ? atoi(argv[1]) : 0;
    b.repeats = argc > 4 ? atoi(argv[4]) : 0;
    if (b.threads < 1 || microbatch < 1 || rows < 1 || rows % microbatch != 0 || b.repeats < 1 ||
        b.repeats > MAX_REPEATS) {
        fprintf(stderr, "usage: ops THREADS ROWS MICROBATCH REPEATS; MICROBATCH divides ROWS\n");
        return 1;
    }
    if (dsb_pool_set_threads(b.threads) != DSB_OK) {
        fprintf(stderr, "ops: no threads\n");
        return 1;
    }
    while (fgets(line, sizeof line, stdin) != NULL) {
        int known = parse(line, &b.ask) && b.ask.precision < DSB_PRECISIONS;

        b.run = known ? find_pass(&b, &known) : NULL;
        if (!known) {
            fprintf(stderr, "ops: what is %s?\n", line);
            return 1;
        }
        if (b.run == NULL) {
            printf("nan\n");
        } else {
            deal(&b, rows, microbatch);
            reserve_all(&b);
            printf("%.9f\n", median_seconds(&b));
        }
        fflush(stdout);
    }
    return 0;
}
