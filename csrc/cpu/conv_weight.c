/* Outer products summed over pixels: the gradients of a convolution's weights and bias.
 *
 * dw[o][tap][i] = sum over pixels of dy[pixel][o] x[pixel + tap][i]. The taps of a kernel's row stand
 * one behind the other in dw and in a copy of x alike, so a row of dw is `kernel` runs of kernel * c_in
 * numbers. A tile, some numbers of dy times some vectors of a run, stays in registers over a block of
 * pixels and is then added to dw: the longer the block, the less dw moves, but x has to stay near. Sums
 * of blocks, not one chain over all pixels, also keep the rounding small. Where c_in is tiny, all taps of
 * a pixel are gathered into one run. A word of the copies is a float32, or the same channel of two images
 * as bfloat16.
 */
#include "cpu/cpu.h"

#include "cpu/conv_repeat.h"

static const dsb_word OUTER_WORD = CONV_PAIRS ? DSB_WORD_IMAGES : DSB_WORD_FLOAT;

enum {
#if DSB_VL == 16 || defined(__aarch64__)
    OUTER_TALL = 8,     /* numbers of dy in a tile, */
    OUTER_WIDE = 3,     /* with so many vectors of x, */
    OUTER_LONG = 6,     /* or so many with at most half as many numbers */
    OUTER_PIXELS = 400, /* of a block, about */
    OUTER_GROUP = 512,  /* pixels of small images that are copied together */
#elif DSB_VL == 8
    OUTER_TALL = 4,
    OUTER_WIDE = 3,
    OUTER_LONG = 4,
    OUTER_PIXELS = 128,
    OUTER_GROUP = 256,
#else
    OUTER_TALL = 4,
    OUTER_WIDE = 2,
    OUTER_LONG = 3,
    OUTER_PIXELS = 128,
    OUTER_GROUP = 256,
#endif
    OUTER_SPAN = 128,        /* lines of dy that are summed one by one */
    OUTER_REPEATED = 128,    /* pixels of a block where x was up-sampled */
    OUTER_GATHERED = 3 * 16, /* kernel^2 c_in up to which the taps are gathered */
};

typedef struct outer_job {
    const float *x;
    const int64_t *at; /* where each pixel's run begins, in words */
    const float *dy;
    int64_t lddy;
    int64_t pixels;
    int length; /* numbers of the run */
    int n_out;
    int beta;
    float *dw;
    int64_t lddw;
} outer_job;

DSB_INLINE void
outer_tile(const outer_job *job, int height, int width, int64_t o, int64_t j)
{
    vf acc[OUTER_TALL][OUTER_LONG];
    const float *x = job->x + j, *dy = job->dy + o;
    const int64_t *at = job->at;
    float *dw = job->dw + o * job->lddw + j;
    int64_t left = job->length - j;

    DSB_UNROLL
    for (int t = 0; t < height * width; t++) {
        acc[t / width][t % width] = (vf){0};
    }
    for (int64_t p = 0; p < job->pixels; p++) {
        const float *from = x + at[p];
        vf b[OUTER_LONG];

        DSB_UNROLL
        for (int v = 0; v < width; v++) {
            b[v] = vf_load(from + v * DSB_VL);
        }
        DSB_UNROLL
        for (int i = 0; i < height; i++) {
            vf q = vf_splat(dy[i]);

            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                acc[i][v] = conv_product(q, b[v], acc[i][v]);
            }
        }
        dy += job->lddy;
    }
    DSB_UNROLL
    for (int t = 0; t < height * width; t++) {
        float *to = dw + t / width * job->lddw + t % width * DSB_VL;
        int64_t n = left - t % width * DSB_VL;
        vf sum = acc[t / width][t % width];

        vf_store_part(to, job->beta ? vf_load_part(to, n) + sum : sum, n);
    }
}

/* `height` numbers of dy times up to OUTER_LONG vectors. */
DSB_INLINE void
outer_some(const outer_job *job, int height, int width, int64_t o, int64_t j)
{
    enum { FIVE = OUTER_LONG > 4 ? 5 : 1, SIX = OUTER_LONG > 5 ? 6 : 1 };
    enum { FOUR = OUTER_LONG > 3 ? 4 : 1, THREE = OUTER_LONG > 2 ? 3 : 1 };

    if (width == 1) {
        outer_tile(job, height, 1, o, j);
    } else if (width == 2) {
        outer_tile(job, height, 2, o, j);
    } else if (width == 3) {
        outer_tile(job, height, THREE, o, j);
    } else if (width == 4) {
        outer_tile(job, height, FOUR, o, j);
    } else if (width == 5) {
        outer_tile(job, height, FIVE, o, j);
    } else {
        outer_tile(job, height, SIX, o, j);
    }
}

DSB_INLINE void
outer_tall(const outer_job *job, int width, int64_t o, int64_t j)
{
    if (width == 1) {
        outer_tile(job, OUTER_TALL, 1, o, j);
    } else if (width == 2) {
        outer_tile(job, OUTER_TALL, 2, o, j);
    } else {
        outer_tile(job, OUTER_TALL, OUTER_WIDE, o, j);
    }
}

/* Numbers first .. end - 1 of dy times the whole run, cut into nearly equal pieces of at most `most`
 * vectors; the vectors of x stay in the cache while all of dy comes by. */
DSB_INLINE void
outer_strips(const outer_job *job, int height, int most, int first, int end)
{
    int vectors = (job->length + DSB_VL - 1) / DSB_VL, pieces = (vectors + most - 1) / most;
    int done = 0;

    for (int n = 0; n < pieces; n++) {
        int width = (vectors - done) / (pieces - n);

        for (int64_t o = first; o + height <= end; o += height) {
            if (height == OUTER_TALL) {
                outer_tall(job, width, o, done * DSB_VL);
            } else {
                outer_some(job, height, width, o, done * DSB_VL);
            }
        }
        done += width;
    }
}

static void
run_all(const outer_job *job)
{
    int n = job->n_out, o = n / OUTER_TALL * OUTER_TALL;

    outer_strips(job, OUTER_TALL, OUTER_WIDE, 0, o);
    if (OUTER_TALL > 4 && n - o >= 4) {
        outer_strips(job, OUTER_TALL > 4 ? 4 : 1, OUTER_LONG, o, o + 4);
        o += 4;
    }
    if (n - o >= 2) {
        outer_strips(job, 2, OUTER_LONG, o, o + 2);
        o += 2;
    }
    if (n > o) {
        outer_strips(job, 1, OUTER_LONG, o, o + 1);
    }
}

/* db = sum of all lines of dy (+ db), in spans: one chain would round more. */
DSB_INLINE void
outer_bias_strip(int half, int vectors, int64_t lines, int64_t c, int columns, dsb_slot dy,
                 int beta, float *db)
{
    vf sum[4];

    DSB_UNROLL
    for (int v = 0; v < vectors; v++) {
        sum[v] = beta ? vf_load_part(db + c + v * DSB_VL, columns - c - v * DSB_VL) : (vf){0};
    }
    for (int64_t first = 0; first < lines; first += OUTER_SPAN) {
        int64_t end = lines - first < OUTER_SPAN ? lines : first + OUTER_SPAN;
        vf part[2][4] = {0}; /* every other line, so that two additions are under way */

        for (int64_t n = first; n + 1 < end; n += 2) {
            DSB_UNROLL
            for (int t = 0; t < 2 * vectors; t++) {
                int64_t line = n + t / vectors, at = line * dy.ld + c + t % vectors * DSB_VL;

                part[t / vectors][t % vectors] += vf_load_as(half, dy.data, at);
            }
        }
        for (int v = 0; v < vectors && (end - first) % 2 == 1; v++) {
            part[0][v] += vf_load_as(half, dy.data, (end - 1) * dy.ld + c + v * DSB_VL);
        }
        DSB_UNROLL
        for (int v = 0; v < vectors; v++) {
            sum[v] += part[0][v] + part[1][v];
        }
    }
    DSB_UNROLL
    for (int v = 0; v < vectors; v++) {
        vf_store_part(db + c + v * DSB_VL, sum[v], columns - c - v * DSB_VL);
    }
}

static void
sum_bias(int64_t lines, int columns, dsb_slot dy, int beta, float *db)
{
    bool half = dy.dtype == DSB_BFLOAT16;

    for (int64_t c = 0; c < columns;) {
        bool wide = columns - c > 3 * DSB_VL;

        if (wide && half) {
            outer_bias_strip(1, 4, lines, c, columns, dy, beta, db);
        } else if (wide) {
            outer_bias_strip(0, 4, lines, c, columns, dy, beta, db);
        } else if (half) {
            outer_bias_strip(1, 1, lines, c, columns, dy, beta, db);
        } else {
            outer_bias_strip(0, 1, lines, c, columns, dy, beta, db);
        }
        c += wide ? 4 * DSB_VL : DSB_VL;
    }
}

/* ---- the pass ---- */

/* How a call goes about it; sizes in words. */
typedef struct outer_plan {
    dsb_frame x, dy;
    int units, group; /* images, or pairs of them; how many are copied at a time */
    int64_t pixels;   /* of a unit: those of y, or of x where it was up-sampled */
    bool gather;
    int64_t at_words, x_words, column_words, dy_words;
    int64_t x_image, x_line, x_pixel; /* between images, rows and pixels of x */
} outer_plan;

static outer_plan
make_plan(const dsb_conv *conv, int rows)
{
    int ho = dsb_conv_out(conv, conv->h), wo = dsb_conv_out(conv, conv->w);
    int up = conv->up, taps = conv->kernel * conv->kernel;
    outer_plan plan = {
        .x = {conv->h, conv->w, conv->c_in, up == 2 ? 0 : conv->kernel / 2},
        .dy = {ho / up, wo / up, conv->c_out, 0},
        .units = CONV_PAIRS ? (rows + 1) / 2 : rows,
        .pixels = (int64_t)(ho / up) * (wo / up),
        .gather = conv->kernel == 3 && taps * conv->c_in <= OUTER_GATHERED && up == 1,
        .x_pixel = conv->c_in,
    };
    int64_t group = OUTER_GROUP / plan.pixels, pixels;

    plan.x_image = dsb_frame_image(OUTER_WORD, &plan.x);
    plan.x_line = dsb_frame_row(OUTER_WORD, &plan.x);
    plan.group = group < 1 ? 1 : group > plan.units ? plan.units : (int)group;
    pixels = plan.group * plan.pixels;
    plan.at_words = dsb_pitch((plan.gather ? 4 : 2) * pixels);
    plan.x_words = dsb_pitch(plan.group * plan.x_image + DSB_PAD_SLACK);
    plan.dy_words = dsb_pitch(pixels * conv->c_out + DSB_PAD_SLACK);
    if (plan.gather) {
        plan.column_words = dsb_pitch(pixels * taps * conv->c_in + DSB_PAD_SLACK);
    }
    if (up == 2) {
        int64_t block = pixels < OUTER_REPEATED ? pixels : OUTER_REPEATED;

        plan.dy_words = dsb_pitch(block * taps * conv->c_out + DSB_PAD_SLACK);
        plan.column_words = conv_repeat_work(conv->c_out);
    }
    return plan;
}

size_t
DSB_KERNEL(dsb_conv_weight_scratch)(const dsb_conv *conv, int rows)
{
    outer_plan plan = make_plan(conv, rows);

    return sizeof(float) *
           (size_t)(plan.at_words + plan.x_words + plan.column_words + plan.dy_words);
}

/* Units first .. first + count - 1 into their frames. */
static void
copy_units(const dsb_frame *frame, int rows, dsb_slot slot, const dsb_affine *affine, int first,
           int count, float *to)
{
    int64_t image = dsb_frame_image(OUTER_WORD, frame), pixels = (int64_t)frame->h * frame->w;

    for (int i = 0; i < count; i++) {
        int n = OUTER_WORD == DSB_WORD_IMAGES ? 2 * (first + i) : first + i;
        dsb_source one = dsb_source_of(slot, affine, n, pixels, frame->c), two = one;

        if (OUTER_WORD == DSB_WORD_IMAGES) {
            two = dsb_source_of(slot, affine, n + 1, pixels, frame->c);
            two.data = n + 1 < rows ? two.data : NULL;
        }
        dsb_pad_image(OUTER_WORD, frame, &one, &two, to + i * image);
    }
}

/* All taps of each pixel, one behind the other. */
static void
gather(int64_t pixels, int kernel, int length, int64_t row, const int64_t *at, const float *x,
       float *to)
{
    for (int64_t p = 0; p < pixels; p++) {
        for (int k = 0; k < kernel; k++) {
            for (int i = 0; i < length; i += DSB_VL) {
                vf_store(to + i, vf_load(x + at[p] + k * row + i));
            }
            to += length;
        }
    }
}

/* Blocks of pixels, and in each the runs of the kernel. */
static void
blocks(outer_job *job, int64_t pixels, int runs, int64_t x_run, int beta)
{
    outer_job all = *job;
    int64_t count = (pixels + OUTER_PIXELS - 1) / OUTER_PIXELS, done = 0;

    for (int64_t n = 0; n < count; n++) {
        job->pixels = (pixels - done) / (count - n);
        job->at = all.at + done;
        job->dy = all.dy + done * all.lddy;
        job->beta = beta || n > 0;
        for (int run = 0; run < runs; run++) {
            job->x = all.x + run * x_run;
            job->dw = all.dw + run * (int64_t)all.length;
            run_all(job);
        }
        done += job->pixels;
    }
    *job = all;
}

/* The same where x was up-sampled: each tap has numbers of its own to multiply it with. `first` counts
 * the pixels of the units before. */
static void
blocks_repeated(const dsb_conv *conv, int rows, dsb_slot dy, outer_job *job, int64_t first,
                int64_t pixels, int beta, float *work, float *sums)
{
    outer_job all = *job;
    int taps = conv->kernel * conv->kernel;
    int64_t count = (pixels + OUTER_REPEATED - 1) / OUTER_REPEATED, done = 0;

    job->lddy = (int64_t)taps * conv->c_out;
    for (int64_t n = 0; n < count; n++) {
        job->pixels = (pixels - done) / (count - n);
        job->at = all.at + done;
        job->beta = beta || n > 0;
        conv_sum_repeats(OUTER_WORD, conv, rows, dy, first + done, job->pixels, work, sums);
        for (int t = 0; t < taps; t++) {
            job->dy = sums + (taps - 1 - t) * conv->c_out;
            job->dw = all.dw + (int64_t)t * conv->c_in;
            run_all(job);
        }
        done += job->pixels;
    }
    *job = all;
}

/* Where each pixel's runs begin, and from there on where they do once gathered. */
static void
fill_at(const outer_plan *plan, int stride, int gathered, int64_t *at)
{
    int64_t pixels = plan->group * plan->pixels;

    for (int64_t p = 0; p < pixels; p++) {
        int64_t in = p % plan->pixels, i = in / plan->dy.w, j = in % plan->dy.w;

        at[p] = p / plan->pixels * plan->x_image + stride * (i * plan->x_line + j * plan->x_pixel);
    }
    for (int64_t p = 0; plan->gather && p < pixels; p++) {
        at[pixels + p] = p * gathered;
    }
}

static void
backward_weight(dsb_stream *stream, const dsb_conv *conv, int rows, dsb_slot x,
                const dsb_affine *affine, dsb_slot dy, int beta, float *dw, float *db,
                void *scratch)
{
    outer_plan plan = make_plan(conv, rows);
    bool plain = affine == NULL || affine->ab == NULL;
    bool x_in_place = !CONV_PAIRS && plan.x.border == 0 && plain && x.dtype == DSB_FLOAT32;
    bool dy_in_place = !CONV_PAIRS && dy.dtype == DSB_FLOAT32;
    int length = conv->kernel * conv->c_in, taps = conv->kernel * conv->kernel;
    int64_t *at = scratch;
    float *copy = (float *)scratch + plan.at_words, *columns = copy + plan.x_words;
    float *dy_copy = columns + plan.column_words;
    outer_job job = {.n_out = conv->c_out, .dw = dw, .lddw = (int64_t)taps * conv->c_in};

    (void)stream;
    if (x_in_place) {
        plan.x_pixel = x.ld;
        plan.x_line = conv->w * x.ld;
        plan.x_image = conv->h * plan.x_line;
    }
    if (db != NULL) {
        sum_bias(rows * plan.pixels * conv->up * conv->up, conv->c_out, dy, beta, db);
    }
    fill_at(&plan, conv->stride, taps * conv->c_in, at);
    job.lddy = dy_in_place ? dy.ld : conv->c_out;
    job.at = plan.gather ? at + plan.group * plan.pixels : at;
    job.length = plan.gather ? taps * conv->c_in : length;
    for (int first = 0; first < plan.units; first += plan.group) {
        int count = plan.units - first < plan.group ? plan.units - first : plan.group;
        int64_t pixels = count * plan.pixels;

        job.x = x_in_place ? (const float *)x.data + first * plan.x_image : copy;
        if (!x_in_place) {
            copy_units(&plan.x, rows, x, affine, first, count, copy);
        }
        if (conv->up == 2) {
            job.length = conv->c_in;
            blocks_repeated(conv, rows, dy, &job, first * plan.pixels, pixels, beta || first > 0,
                            columns, dy_copy);
            continue;
        }
        job.dy = dy_in_place ? (const float *)dy.data + first * plan.pixels * dy.ld : dy_copy;
        if (!dy_in_place) {
            copy_units(&plan.dy, rows, dy, NULL, first, count, dy_copy);
        }
        if (plan.gather) {
            gather(pixels, conv->kernel, length, plan.x_line, at, copy, columns);
            job.x = columns;
        }
        blocks(&job, pixels, plan.gather ? 1 : conv->kernel, plan.x_line, beta || first > 0);
    }
}

void
DSB_KERNEL(dsb_cpu_conv_weight)(dsb_backend *table)
{
    table->conv[CONV_PAIRS ? DSB_PRECISION_BF16 : DSB_PRECISION_FLOAT32].backward_weight =
        backward_weight;
}
