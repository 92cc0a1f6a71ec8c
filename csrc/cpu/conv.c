/* Convolutions: packing, forward, gradient of the input.
 *
 * Compiled for float32 and, with AVX512_BF16, for pairs of channels as bfloat16: a word is either.
 */
#include "cpu/cpu.h"

#include "cpu/conv_narrow.h"
#include "cpu/conv_repeat.h"

/* ---- packing: [panel of 16 columns][tap][word][16], zeros beyond the last column ---- */

static size_t
packed_bytes(const dsb_conv *conv, bool transposed)
{
    int64_t taps = transposed ? conv->kernel * conv->kernel : conv_forward_taps(conv);
    int columns = transposed ? conv->c_in : conv->c_out;
    int words = dsb_words(CONV_WORD, transposed ? conv->c_out : conv->c_in);

    return sizeof(float) * (size_t)(dsb_pitch(columns) * taps * words); /* narrow ones fit in too */
}

/* 16 words, `one` and behind it `two` rounded where a word is a pair. */
DSB_INLINE void
pack_line(const float *one, const float *two, float *packed)
{
    DSB_UNROLL
    for (int c = 0; c < DSB_PANEL; c += DSB_VL) {
        if (CONV_PAIRS) {
            pad_store_pair(packed, c, vf_load(one + c), vf_load(two + c));
        } else {
            vf_store(packed + c, vf_load(one + c));
        }
    }
}

/* A rectangle of taps of a 3x3 kernel that meet the same pixel. */
typedef struct tap_set {
    int i, j, rows, columns;
} tap_set;

/* Tap `tap` of those that the forward pass has. Up-sampled images are not made: the four places of a
 * pixel, 2a + u and 2b + v, have a 2x2 kernel each, which sees the pixels a - 1 + u and a + u. */
static tap_set
forward_taps(const dsb_conv *conv, int tap)
{
    int u = tap >> 3 & 1, v = tap >> 2 & 1, s = tap >> 1 & 1, t = tap & 1;

    if (conv_forward_taps(conv) != CONV_REPEATED_TAPS) {
        return (tap_set){tap / conv->kernel, tap % conv->kernel, 1, 1};
    }
    return (tap_set){s * (1 + u), t * (1 + v), 1 + (u ^ s), 1 + (v ^ t)};
}

/* Up to 16 outputs from `o` on, 16 inputs from `i` on, of the sum of some taps; zeros beyond. */
static void
load_block(const dsb_conv *conv, const float *w, tap_set set, int64_t o, int64_t i,
           float block[DSB_PANEL][DSB_PANEL])
{
    int kernel = conv->kernel;

    for (int n = 0; n < DSB_PANEL; n++) {
        for (int c = 0; c < DSB_PANEL; c += DSB_VL) {
            vf sum = {0};

            for (int t = 0; t < set.rows * set.columns && o + n < conv->c_out; t++) {
                int a = set.i + t / set.columns, b = set.j + t % set.columns;
                int64_t at = (((o + n) * kernel + a) * kernel + b) * conv->c_in + i + c;

                sum += vf_load_part(w + at, conv->c_in - i - c);
            }
            vf_store(&block[n][c], sum);
        }
    }
}

/* Columns are the rows of w. */
static void
pack_forward(const dsb_conv *conv, const float *w, float *packed)
{
    int taps = conv_forward_taps(conv), per_word = CONV_PAIRS ? 2 : 1;
    float block[DSB_PANEL][DSB_PANEL], turned[DSB_PANEL][DSB_PANEL];

    for (int64_t o = 0; o < conv->c_out; o += DSB_PANEL) {
        for (int t = 0; t < taps; t++) {
            for (int64_t i = 0; i < conv->c_in; i += DSB_PANEL) {
                load_block(conv, w, forward_taps(conv, t), o, i, block);
                for (int k = 0; k < DSB_PANEL; k += 4) {
                    for (int c = 0; c < DSB_PANEL; c += DSB_VL) {
                        vf_transpose_four(&block[c][k], DSB_PANEL, &turned[k][c], DSB_PANEL);
                    }
                }
                for (int k = 0; k < DSB_PANEL && i + k < conv->c_in; k += per_word) {
                    pack_line(turned[k], turned[k + per_word - 1], packed);
                    packed += DSB_PANEL;
                }
            }
        }
    }
}

/* Columns are the columns of w, words its rows; the taps from last to first. */
static void
pack_transposed(const dsb_conv *conv, const float *w, float *packed)
{
    int taps = conv->kernel * conv->kernel, per_word = CONV_PAIRS ? 2 : 1;
    float block[DSB_PANEL][DSB_PANEL];

    for (int64_t i = 0; i < conv->c_in; i += DSB_PANEL) {
        for (int t = taps - 1; t >= 0; t--) {
            tap_set set = {t / conv->kernel, t % conv->kernel, 1, 1};

            for (int64_t o = 0; o < conv->c_out; o += DSB_PANEL) {
                load_block(conv, w, set, o, i, block);
                for (int k = 0; k < DSB_PANEL && o + k < conv->c_out; k += per_word) {
                    pack_line(block[k], block[k + per_word - 1], packed);
                    packed += DSB_PANEL;
                }
            }
        }
    }
}

static void
pack(dsb_stream *stream, const dsb_conv *conv, bool transposed, const float *w, void *packed)
{
    (void)stream;
    if (transposed) {
        pack_transposed(conv, w, packed);
    } else if (conv_is_narrow(conv)) {
        pack_narrow(conv, w, packed);
    } else {
        pack_forward(conv, w, packed);
    }
}

/* ---- the two passes: where they read and work ---- */

static dsb_slot
slot_line(dsb_slot slot, int64_t line)
{
    return dsb_slot_from(slot, line * slot.ld);
}

/* How many images are copied at a time. */
static int
group_size(int64_t image_words, int rows)
{
    int64_t group = CONV_GROUP_BYTES / 4 / image_words;

    return group < 1 ? 1 : group > rows ? rows : (int)group;
}

/* The memory of a pass: copies of a group of images (or the sums of a band of rows, where the gradient
 * is to an up-sampled image), numbers to add. */
typedef struct conv_scratch {
    int group;              /* of images, or of rows */
    int64_t add, work, end; /* where these begin, in words */
} conv_scratch;

static conv_scratch
lay_out_scratch(const dsb_conv *conv, int rows, bool backward)
{
    dsb_frame frame = backward ? conv_frame_backward(conv) : conv_frame_forward(conv);
    bool repeated = backward && conv->up == 2;
    int64_t image = dsb_frame_image(CONV_WORD, &frame);
    conv_scratch s;

    if (repeated) {
        image = (int64_t)conv->w * conv->kernel * conv->kernel * dsb_words(CONV_WORD, conv->c_out);
        rows *= conv->h;
    }
    s.group = group_size(image, rows);
    s.add = dsb_pitch(s.group * image + DSB_PAD_SLACK);
    s.work = s.add + (backward ? dsb_pitch(conv->c_in) : s.group * dsb_pitch(conv->c_out));
    s.end = s.work + (repeated ? conv_repeat_work(conv->c_out) : 0);
    return s;
}

static size_t
scratch_bytes(const dsb_conv *conv, int rows, bool backward)
{
    size_t bytes = sizeof(float) * (size_t)lay_out_scratch(conv, rows, backward).end;
    size_t weight = backward ? DSB_KERNEL(dsb_conv_weight_scratch)(conv, rows) : 0;

    return bytes > weight ? bytes : weight;
}

/* The images that a job reads: where they stand, or as copies. */
typedef struct conv_input {
    dsb_frame frame;
    dsb_slot slot;
    const dsb_affine *affine;
    float *copy; /* NULL: in place */
    int words;   /* from pixel to pixel */
    int64_t line, image;
} conv_input;

static conv_input
make_input(const dsb_frame *frame, dsb_slot slot, const dsb_affine *affine, float *copy)
{
    bool plain = affine == NULL || affine->ab == NULL;
    bool own = CONV_PAIRS ? slot.dtype == DSB_BFLOAT16 && slot.ld % 2 == 0 &&
                                (uintptr_t)slot.data % sizeof(float) == 0
                          : slot.dtype == DSB_FLOAT32;
    conv_input in = {*frame, slot, affine, copy, dsb_words(CONV_WORD, frame->c), 0, 0};

    in.line = dsb_frame_row(CONV_WORD, frame);
    in.image = dsb_frame_image(CONV_WORD, frame);
    if (frame->border == 0 && plain && own) {
        in.copy = NULL;
        in.words = (int)(CONV_PAIRS ? slot.ld / 2 : slot.ld);
        in.line = (int64_t)frame->w * in.words;
        in.image = frame->h * in.line;
    }
    return in;
}

/* Images first .. first + images - 1. */
static const float *
read_input(const conv_input *in, int64_t first, int images)
{
    const dsb_frame *frame = &in->frame;

    if (in->copy == NULL) {
        return (const float *)in->slot.data + first * in->image;
    }
    for (int i = 0; i < images; i++) {
        dsb_source source =
            dsb_source_of(in->slot, in->affine, first + i, (int64_t)frame->h * frame->w, frame->c);

        dsb_pad_image(CONV_WORD, frame, &source, NULL, in->copy + i * in->image);
    }
    return in->copy;
}

/* add[image] = bias + the image's row, zeros for what is absent. */
static void
fill_add(const dsb_epilogue *epilogue, int images, int64_t first, int columns, float *add)
{
    int64_t pitch = dsb_pitch(columns);

    for (int64_t i = 0; i < images; i++) {
        for (int64_t c = 0; c < pitch; c += DSB_VL) {
            vf sum = {0};

            if (epilogue != NULL && epilogue->bias != NULL) {
                sum = vf_load_part(epilogue->bias + c, columns - c);
            }
            if (epilogue != NULL && epilogue->row.data != NULL) {
                const float *row = epilogue->row.data;

                sum += vf_load(row + (first + i) * epilogue->row.ld + c);
            }
            vf_store(add + i * pitch + c, sum);
        }
    }
}

/* All taps of a kernel over a copy with a border for them: a run for each row. */
static void
square_runs(conv_job *job, int kernel, int words, const conv_input *in)
{
    job->runs = kernel;
    job->length = kernel * words;
    for (int i = 0; i < kernel; i++) {
        job->x_run[i] = i * in->line;
        job->w_run[i] = (int64_t)i * kernel * words * DSB_PANEL;
    }
    job->w_panel = (int64_t)kernel * kernel * words * DSB_PANEL;
}

/* ---- forward ---- */

static dsb_slot
residual_of(const dsb_epilogue *epilogue)
{
    return epilogue != NULL ? epilogue->residual : (dsb_slot){0};
}

/* The places (2a + u, 2b + v) of an up-sampled image. */
static void
run_place(const dsb_conv *conv, const conv_input *in, int u, int v, dsb_slot y, dsb_slot residual,
          conv_job *job)
{
    int words = dsb_words(CONV_WORD, conv->c_in), line = 2 * u * conv->w + v;

    job->runs = conv->kernel == 3 ? 2 : 1;
    job->length = job->runs * words;
    for (int s = 0; s < job->runs && conv->kernel == 3; s++) {
        job->x_run[s] = (u + s) * in->line + (int64_t)v * in->words;
        job->w_run[s] = ((u * 2 + v) * 4 + s * 2) * (int64_t)words * DSB_PANEL;
    }
    job->w_panel = (int64_t)conv_forward_taps(conv) * words * DSB_PANEL;
    job->y = slot_line(y, line);
    job->residual = slot_line(residual, line);
    run_job(job);
}

static void
forward(dsb_stream *stream, const dsb_conv *conv, int rows, dsb_slot x, const dsb_affine *affine,
        const void *packed, const dsb_epilogue *epilogue, dsb_slot y, void *scratch)
{
    conv_scratch layout = lay_out_scratch(conv, rows, false);
    dsb_frame frame = conv_frame_forward(conv);
    conv_input in = make_input(&frame, x, affine, scratch);
    float *add = (float *)scratch + layout.add;
    int ho = dsb_conv_out(conv, conv->h), wo = dsb_conv_out(conv, conv->w);
    conv_job job = {
        .rows = conv_flat(conv) ? 1 : ho / conv->up,
        .pixels = conv_flat(conv) ? ho * wo : wo / conv->up,
        .x_image = in.image,
        .x_row = conv->stride * in.line,
        .x_pixel = conv->stride * in.words,
        .w = packed,
        .columns = conv->c_out,
        .y_image = (int64_t)ho * wo,
        .y_row = conv->up * wo,
        .y_pixel = conv->up,
        .add = add,
        .add_image = dsb_pitch(conv->c_out),
    };

    (void)stream;
    square_runs(&job, conv->kernel, dsb_words(CONV_WORD, conv->c_in), &in);
    for (int first = 0; first < rows; first += layout.group) {
        int64_t line = first * job.y_image;
        dsb_slot residual;

        job.images = rows - first < layout.group ? rows - first : layout.group;
        job.x = read_input(&in, first, job.images);
        job.y = slot_line(y, line);
        job.residual = residual = slot_line(residual_of(epilogue), line);
        fill_add(epilogue, job.images, first, conv->c_out, add);
        if (conv_is_narrow(conv)) {
            run_narrow_job(&job);
        } else if (conv->up == 1) {
            run_job(&job);
        } else {
            for (int n = 0; n < 4; n++) {
                run_place(conv, &in, n / 2, n % 2, slot_line(y, line), residual, &job);
            }
        }
    }
}

/* ---- gradient of the input: dy convolved with the kernel turned round ---- */

/* Stride 2, the pixels (2a + i, 2b + j) of dx: dy (a, b) has reached them by the middle of the kernel's
 * row where i = 0, and where i = 1 by its one end, and dy (a + 1, b) by the other; likewise columns. */
static void
run_parity(const dsb_conv *conv, const conv_input *in, int i, int j, dsb_slot dx, int beta,
           conv_job *job)
{
    int kernel = conv->kernel, middle = kernel / 2, words = dsb_words(CONV_WORD, conv->c_out);
    int down = kernel == 3 ? 1 + i : 1 - i, right = kernel == 3 ? 1 + j : 1 - j;

    job->runs = down * right;
    job->length = words;
    for (int n = 0; n < job->runs; n++) {
        int a = n / right, b = n % right;
        int tap_i = i == 0 ? middle : 2 * a, tap_j = j == 0 ? middle : 2 * b;

        job->x_run[n] = (a + middle) * in->line + (int64_t)(b + middle) * in->words;
        job->w_run[n] = (int64_t)(tap_i * kernel + tap_j) * words * DSB_PANEL;
    }
    job->rows = (conv->h - i + 1) / 2;
    job->pixels = (conv->w - j + 1) / 2;
    job->y = slot_line(dx, i * conv->w + j);
    job->residual = beta ? job->y : (dsb_slot){0};
    if (job->rows > 0 && job->pixels > 0) {
        run_job(job);
    }
}

/* Of an up-sampled image: the sums of dy that the taps have seen, band by band, times the taps. */
static void
backward_repeated(const dsb_conv *conv, int rows, dsb_slot dy, const float *packed, int beta,
                  dsb_slot dx, float *scratch)
{
    conv_scratch layout = lay_out_scratch(conv, rows, true);
    int taps = conv->kernel * conv->kernel, words = taps * dsb_words(CONV_WORD, conv->c_out);
    conv_job job = {
        .runs = 1,
        .length = words,
        .images = 1,
        .pixels = conv->w,
        .x = scratch,
        .x_row = (int64_t)conv->w * words,
        .x_pixel = words,
        .w = packed,
        .w_panel = (int64_t)words * DSB_PANEL,
        .columns = conv->c_in,
        .y_row = conv->w,
        .y_pixel = 1,
        .add = scratch + layout.add,
    };

    fill_add(NULL, 1, 0, conv->c_in, scratch + layout.add);
    for (int64_t row = 0; row < (int64_t)rows * conv->h; row += layout.group) {
        int64_t left = (int64_t)rows * conv->h - row;

        job.rows = left < layout.group ? (int)left : layout.group;
        conv_sum_repeats(CONV_WORD, conv, rows, dy, row * conv->w, (int64_t)job.rows * conv->w,
                         scratch + layout.work, scratch);
        job.y = slot_line(dx, row * conv->w);
        job.residual = beta ? job.y : (dsb_slot){0};
        run_job(&job);
    }
}

static void
backward_input(dsb_stream *stream, const dsb_conv *conv, int rows, dsb_slot dy,
               const void *packed_transposed, int beta, dsb_slot dx, void *scratch)
{
    conv_scratch layout = lay_out_scratch(conv, rows, true);
    dsb_frame frame = conv_frame_backward(conv);
    conv_input in = make_input(&frame, dy, NULL, scratch);
    float *add = (float *)scratch + layout.add;
    bool flat = conv_flat(conv);
    conv_job job = {
        .rows = flat ? 1 : frame.h,
        .pixels = flat ? frame.h * frame.w : frame.w,
        .x_image = in.image,
        .x_row = in.line,
        .x_pixel = in.words,
        .w = packed_transposed,
        .columns = conv->c_in,
        .y_image = (int64_t)conv->h * conv->w,
        .y_row = conv->stride * conv->w,
        .y_pixel = conv->stride,
        .add = add,
    };

    (void)stream;
    if (conv->up == 2) {
        backward_repeated(conv, rows, dy, packed_transposed, beta, dx, scratch);
        return;
    }
    square_runs(&job, conv->kernel, dsb_words(CONV_WORD, conv->c_out), &in);
    fill_add(NULL, 1, 0, conv->c_in, add);
    for (int first = 0; first < rows; first += layout.group) {
        dsb_slot to = slot_line(dx, first * job.y_image);

        job.images = rows - first < layout.group ? rows - first : layout.group;
        job.x = read_input(&in, first, job.images);
        if (conv->stride == 2) {
            for (int n = 0; n < 4; n++) {
                run_parity(conv, &in, n / 2, n % 2, to, beta, &job);
            }
        } else {
            job.y = to;
            job.residual = beta ? to : (dsb_slot){0};
            run_job(&job);
        }
    }
}

void
DSB_KERNEL(dsb_cpu_conv)(dsb_backend *table)
{
    dsb_conv_passes *passes = &table->conv[CONV_PAIRS ? DSB_PRECISION_BF16 : DSB_PRECISION_FLOAT32];

    passes->packed_bytes = packed_bytes;
    passes->pack = pack;
    passes->scratch_bytes = scratch_bytes;
    passes->forward = forward;
    passes->backward_input = backward_input;
}
