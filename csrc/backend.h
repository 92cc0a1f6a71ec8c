/* The one table between mathematics and machines.
 *
 * Purpose: csrc/nn and csrc/bridge call these functions and know no device; csrc/cpu (and csrc/cuda)
 * fill the table. Pointers are device memory unless said otherwise; matrices are row-major float32.
 * Ownership: nothing here keeps a pointer. Threads: each function may run on several workers at once
 * on memory of their own; a CPU function is single-threaded, a GPU function is queued on `stream`.
 *
 * Rows are padded: a row of n numbers has a pitch of at least dsb_pitch(n) floats, so that kernels load
 * and store whole vectors and need no tails. What stands in the padding is finite in forward passes
 * and is never read back into a result. A row's result does not depend on the rows beside it.
 *
 * "beta" is 0 (overwrite) or 1 (accumulate) and says what a backward function does to its output.
 */
#ifndef DSB_BACKEND_H
#define DSB_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "base/tensor.h"

#define DSB_PANEL 16 /* columns of a weight panel, and the unit of a row's pitch, in floats */

static inline int64_t
dsb_pitch(int64_t n)
{
    return (n + DSB_PANEL - 1) / DSB_PANEL * DSB_PANEL;
}

typedef struct dsb_stream dsb_stream; /* a queue of the device; NULL on the CPU */

/* Rows of numbers `ld` apart (0: one row, repeated), or the pixels of images, a line of channels each.
 * Images are NHWC: rows * pixels lines, image behind image; float32, or bfloat16 where a plan keeps them
 * so. A leading dimension beyond the pitch makes it a slice of the channels of a wider image. */
typedef struct dsb_slot {
    void *data; /* NULL: nothing there, or nothing wanted */
    int64_t ld;
    dsb_dtype dtype; /* float32 or bfloat16 */
} dsb_slot;

static inline dsb_slot
dsb_float_slot(const float *data, int64_t ld)
{
    return (dsb_slot){(void *)data, ld, DSB_FLOAT32};
}

/* The slot from column `column` on. */
static inline dsb_slot
dsb_slot_from(dsb_slot slot, int64_t column)
{
    if (slot.data != NULL) {
        slot.data = (char *)slot.data + column * dsb_dtype_bytes(slot.dtype);
    }
    return slot;
}

typedef enum dsb_activation { DSB_IDENTITY, DSB_LEAKY_RELU, DSB_SILU } dsb_activation;

/* How a net's output o becomes the mean of the next state: o, x + o, or x + g o. */
typedef enum dsb_output { DSB_OUTPUT_MEAN, DSB_OUTPUT_STEP, DSB_OUTPUT_DRIFT } dsb_output;

/* Sinusoidal embeddings of width 2h: [sin, cos] with frequencies 10000^(-i/(h-1)), as the released MLP,
 * or [cos, sin] with 10000^(-i/h), as improved-diffusion. */
typedef enum dsb_embedding { DSB_EMBED_SIN_COS, DSB_EMBED_COS_SIN } dsb_embedding;

/* How the products of a convolution are taken: in float32; as three products of bfloat16 parts, x w ~
 * x1 w1 + x1 w2 + x2 w1 with x = x1 + x2 and w = w1 + w2; of operands rounded to bfloat16. Sums are float32.
 * With up-sampling an operand may be the float32 sum of up to four weights, or of four numbers of dy. */
typedef enum dsb_precision {
    DSB_PRECISION_FLOAT32,
    DSB_PRECISION_BF16X3,
    DSB_PRECISION_BF16,
    DSB_PRECISIONS
} dsb_precision;

/* y = W * x + b over images x [h, w, c_in], y [ho, wo, c_out]: odd kernel, (kernel - 1) / 2 zeros around,
 * after nearest up-sampling by `up`. Weights are [c_out][kernel][kernel][c_in] in a plane.
 * ho = (h up - 1) / stride + 1. */
typedef struct dsb_conv {
    int h, w, c_in, c_out;
    int kernel; /* 1 or 3 */
    int stride; /* 1 or 2 */
    int up;     /* 1 or 2; 2 only with stride 1 */
} dsb_conv;

static inline int
dsb_conv_out(const dsb_conv *conv, int n)
{
    return (n * conv->up - 1) / conv->stride + 1;
}

/* f(a x + b) with a and b for each row and channel: what is left of a normalisation once its statistics
 * are known. f is SiLU or nothing. */
typedef struct dsb_affine {
    const float *ab; /* [rows][2][dsb_pitch(c)], a and then b; NULL: x as it is */
    bool silu;
} dsb_affine;

/* What is added to a convolution before it is stored; each may be absent. */
typedef struct dsb_epilogue {
    const float *bias; /* [c_out]; nothing may be read behind it */
    dsb_slot row;      /* float32 [rows, c_out]: added to every pixel of its row */
    dsb_slot residual; /* an image like y; it may be y */
} dsb_epilogue;

/* The three passes of a convolution in one precision; all NULL where the backend has not got it.
 * The affine is applied to x while it is read; what lies outside the image is zero after it. x, y, dx and
 * dy may each be float32 or bfloat16. `scratch` has scratch_bytes() bytes, belongs to the worker, and holds
 * nothing between calls. A packed copy serves all workers. A row's result does not depend on the others. */
typedef struct dsb_conv_passes {
    size_t (*packed_bytes)(const dsb_conv *conv, bool transposed);
    void (*pack)(dsb_stream *, const dsb_conv *conv, bool transposed, const float *w, void *packed);
    size_t (*scratch_bytes)(const dsb_conv *conv, int rows, bool backward);
    void (*forward)(dsb_stream *, const dsb_conv *conv, int rows, dsb_slot x,
                    const dsb_affine *affine, const void *packed, const dsb_epilogue *epilogue,
                    dsb_slot y, void *scratch);
    /* dx = W^T * dy (+ dx): the gradient to what the affine makes of x. */
    void (*backward_input)(dsb_stream *, const dsb_conv *conv, int rows, dsb_slot dy,
                           const void *packed_transposed, int beta, dsb_slot dx, void *scratch);
    /* dw [c_out][kernel][kernel][c_in] and db = sum of dy over rows and pixels, both (+ themselves). */
    void (*backward_weight)(dsb_stream *, const dsb_conv *conv, int rows, dsb_slot x,
                            const dsb_affine *affine, dsb_slot dy, int beta, float *dw, float *db,
                            void *scratch);
} dsb_conv_passes;

/* y = silu?(n (1 + scale) + shift), n = weight (x - mean) / deviation + bias, mean and deviation over the
 * pixels and channels of each group of each row. c is a multiple of groups. */
typedef struct dsb_group_norm {
    int pixels, c, groups;
    bool silu;
    const float *weight, *bias; /* [c] */
    dsb_slot scale_shift;       /* float32 [rows, 2 c], scale and then shift; data NULL: none */
} dsb_group_norm;

#define DSB_GROUP_NORM_EPSILON 1e-5f

/* Rows of a data set: value * scale + shift. */
typedef struct dsb_rows {
    const void *data; /* [n, dim], C order */
    dsb_dtype dtype;  /* float32 or uint8 */
    int64_t n, dim;
    float scale, shift;
} dsb_rows;

/* Where a Philox draw stands: see base/philox.h. */
typedef struct dsb_draw {
    uint64_t seed;
    uint32_t stream; /* dsb_stream_word() */
    uint32_t step;
    uint32_t sample; /* of the first row; rows count upwards */
} dsb_draw;

/* A window of the cache: training rows, each of dsb_window_row(dim) floats:
 * x[dim] | target[dim] | t | weight | id of the source row (the bits of a uint32). */
typedef struct dsb_window {
    float *rows;
    int64_t dim;
} dsb_window;

static inline int64_t
dsb_window_row(int64_t dim)
{
    return 2 * dim + 3;
}

/* The order in which a window is read: position p stands for unit permute(p mod units) of pass p / units.
 * `group` neighbouring rows (1, or 2 for antithetic pairs) make a unit. */
typedef struct dsb_read_order {
    uint64_t seed;
    uint32_t stream; /* dsb_stream_word(DSB_STREAM_SHUFFLE, half-bridge) */
    uint32_t window; /* number of the window; the pass is added in the high byte of `step` */
    int64_t units;   /* read in each pass */
    int64_t stored;  /* units in the window, >= units */
    int group;
} dsb_read_order;

/* Rows x_i against columns y_j, both coordinate by coordinate: x[k * ldx + i], y[k * ldy + j].
 * e_ij = shift_i + height_j - |x_i - y_j|^2 with the differences taken first, so that its error is relative to
 * the distance and not to the coordinates. Leading dimensions are multiples of DSB_TRANSPORT_UNIT; what stands
 * behind the last point is finite, and the weight of such a column is 0. */
typedef struct dsb_transport {
    int dim;
    int64_t ldx, ldy;
    const float *x, *y;
    const float *height, *weight; /* [ldy]; weights are 0 or near 1 */
} dsb_transport;

#define DSB_TRANSPORT_UNIT 32 /* columns of a group, which a kernel takes at once */
#define DSB_TRANSPORT_ROWS 64 /* rows of a call, at most; their first is a multiple of 4 */
#define DSB_TRANSPORT_RUN 512 /* columns that are summed in float32; sums of runs are float64 */

static inline int64_t
dsb_transport_pitch(int64_t n)
{
    return (n + DSB_TRANSPORT_UNIT - 1) / DSB_TRANSPORT_UNIT * DSB_TRANSPORT_UNIT;
}

static inline int64_t
dsb_transport_runs(int64_t ldy)
{
    return (ldy + DSB_TRANSPORT_RUN - 1) / DSB_TRANSPORT_RUN;
}

/* What changes from step to step: one small struct, all that a device has to be told before a recorded
 * step is replayed. */
typedef struct dsb_step {
    float rate; /* learning rate / (1 - beta1^t) */
    float root; /* 1 / sqrt(1 - beta2^t) */
    float clip; /* factor that brings the gradient's norm to the bound, at most 1 */
} dsb_step;

typedef struct dsb_adam {
    float beta1, beta2, epsilon;
    float ema; /* 0: no average is kept */
} dsb_adam;

/* What is summed over pairs of points at squared distance r2: sqrt(r2), or exp(-scale r2). */
typedef enum dsb_pair_function { DSB_PAIR_DISTANCE, DSB_PAIR_GAUSSIAN } dsb_pair_function;

#define DSB_PAIR_ROWS 64 /* rows of a call, at most */

typedef struct dsb_backend {
    const char *name; /* "cpu" */
    const char *isa;  /* instruction set: "x86-64-v4", ... */
    dsb_device device;

    /* ---- memory and work ---- */
    dsb_status (*alloc)(size_t bytes, void *out) DSB_MUST_CHECK; /* zeroed, 64-byte aligned */
    void (*free)(void *block);
    void (*upload)(void *to, const void *from, size_t bytes);   /* host to device */
    void (*download)(void *to, const void *from, size_t bytes); /* device to host */
    int (*workers)(void);                                       /* how many tasks run at once */
    void (*parallel)(int max_workers, int64_t n, dsb_task run, void *context);

    /* ---- linear: y = x W^T + b, W [n_out, n_in] as PyTorch keeps it ----
     * A packed copy in panels of DSB_PANEL columns is made once per change of W and shared by workers:
     * forward [ceil(n_out/16)][n_in][16], zero beyond n_out; transposed [ceil(n_in/16)][n_out][16].
     * A backend may lay the same space out otherwise: the CPU keeps up to 4 outputs as rows. */
    void (*linear_pack)(dsb_stream *, int n_in, int n_out, const float *w, float *packed);
    void (*linear_pack_transposed)(dsb_stream *, int n_in, int n_out, const float *w,
                                   float *packed);
    /* y = act(z), z = x W^T + b; z is stored too where `z` is not NULL. */
    void (*linear_forward)(dsb_stream *, int rows, int n_in, int n_out, const float *x, int64_t ldx,
                           const float *packed, const float *b, dsb_activation act, float slope,
                           float *z, int64_t ldz, float *y, int64_t ldy);
    /* dx = dy W (+ dx) */
    void (*linear_backward_input)(dsb_stream *, int rows, int n_in, int n_out, const float *dy,
                                  int64_t lddy, const float *packed_transposed, int beta, float *dx,
                                  int64_t lddx);
    /* dW = dy^T x (+ dW), db = sum over rows of dy (+ db); dW is [n_out, n_in] without padding. */
    void (*linear_backward_weight)(dsb_stream *, int rows, int n_in, int n_out, const float *x,
                                   int64_t ldx, const float *dy, int64_t lddy, int beta, float *dw,
                                   float *db);

    /* ---- elementwise; n counts columns or channels, lines are rows or rows * pixels ----
     * All slots of a call have one dtype. */
    void (*activation)(dsb_stream *, dsb_activation act, float slope, int64_t lines, int n,
                       dsb_slot x, dsb_slot y);
    /* dx = dy act'(.) (+ dx). `saved` is y for LeakyReLU (slope > 0) and x for SiLU. dx may be dy. */
    void (*activation_backward)(dsb_stream *, dsb_activation act, float slope, int64_t lines, int n,
                                dsb_slot saved, dsb_slot dy, int beta, dsb_slot dx);
    void (*add)(dsb_stream *, int64_t lines, int n, dsb_slot a, dsb_slot b, dsb_slot y);
    /* y = x (+ y); only columns 0 .. n-1 are written, so y may be a slice. */
    void (*copy)(dsb_stream *, int64_t lines, int n, dsb_slot x, int beta, dsb_slot y);
    /* y = 0 in columns 0 .. n-1. */
    void (*zero)(dsb_stream *, int64_t lines, int n, dsb_slot y);
    /* y[r, :] = embedding of t[r]; t has pitch 1. `n` is even. */
    void (*embed)(dsb_stream *, dsb_embedding kind, int rows, int n, const float *t, float *y,
                  int64_t ldy);

    /* ---- images: see dsb_slot; `v` and `dv` are float32 rows. Outside of convolutions the images of a call
     * have one dtype. ---- */
    dsb_conv_passes conv[DSB_PRECISIONS];
    /* stats [rows][2][groups]: mean and 1 / deviation, in two passes; ab [rows][2][dsb_pitch(c)] as dsb_affine
     * wants it, zero in the padding. */
    void (*group_norm_statistics)(dsb_stream *, const dsb_group_norm *norm, int rows, dsb_slot x,
                                  float *stats, float *ab);
    /* y = f(a x + b); y may be x. */
    void (*affine)(dsb_stream *, const dsb_affine *affine, int rows, int pixels, int c, dsb_slot x,
                   dsb_slot y);
    /* All gradients of group_norm; dx (+ dx) may be dy; d_weight and d_bias (beta_param) are [c], NULL where
     * not wanted; d_scale_shift (beta_scale) like norm->scale_shift. */
    void (*group_norm_backward)(dsb_stream *, const dsb_group_norm *norm, int rows, dsb_slot x,
                                const float *stats, const float *ab, dsb_slot dy, int beta,
                                dsb_slot dx, int beta_param, float *d_weight, float *d_bias,
                                int beta_scale, dsb_slot d_scale_shift);
    /* y = softmax(q k^T / sqrt(d)) v over the pixels, for each row and head on its own. qkv has 3 c channels:
     * heads outermost, [heads][q, k, v][d = c / heads]. Softmax in float32. */
    size_t (*attention_scratch)(int pixels, int c, int heads);
    void (*attention)(dsb_stream *, int rows, int pixels, int c, int heads, dsb_slot qkv,
                      dsb_slot y, void *scratch);
    void (*attention_backward)(dsb_stream *, int rows, int pixels, int c, int heads, dsb_slot qkv,
                               dsb_slot dy, int beta, dsb_slot d_qkv, void *scratch);
    /* y [2h, 2w] = factor x [h, w] at each of 2 x 2 pixels (+ y). */
    void (*upsample)(dsb_stream *, int rows, int h, int w, int c, float factor, dsb_slot x,
                     int beta, dsb_slot y);
    /* y [h, w] = factor times the sum of 2 x 2 pixels of x [2h, 2w] (+ y). */
    void (*downsample)(dsb_stream *, int rows, int h, int w, int c, float factor, dsb_slot x,
                       int beta, dsb_slot y);
    /* y = x + v of the row; x may be y. */
    void (*add_row)(dsb_stream *, int rows, int pixels, int c, dsb_slot x, dsb_slot v, dsb_slot y);
    /* dv [rows, c] = sum of dy over the pixels (+ dv). */
    void (*sum_pixels)(dsb_stream *, int rows, int pixels, int c, dsb_slot dy, int beta,
                       dsb_slot dv);
    /* Between vectors v that hold an image channel by channel, [c][pixels], and images y [pixels][c]. */
    void (*row_to_image)(dsb_stream *, int rows, int pixels, int c, dsb_slot v, int beta,
                         dsb_slot y);
    void (*image_to_row)(dsb_stream *, int rows, int pixels, int c, dsb_slot y, int beta,
                         dsb_slot v);
    /* y = x / (1 - rate) where a uniform number >= rate, else 0 (+ y); element e = pixel * c + channel of row r
     * draws word e % 4 of the counter (stream, step, sample + r, e / 4). y may be x. */
    void (*dropout)(dsb_stream *, const dsb_draw *at, float rate, int rows, int pixels, int c,
                    dsb_slot x, int beta, dsb_slot y);
    /* y[r, :] = table[label[r], :]; label holds whole numbers in [0, classes). And d_table (+ itself). */
    void (*lookup)(dsb_stream *, int rows, int classes, int n, const float *label,
                   const float *table, dsb_slot y);
    void (*lookup_backward)(dsb_stream *, int rows, int classes, int n, const float *label,
                            dsb_slot dy, int beta, float *d_table);

    /* ---- simulation ---- */
    /* out[r, :] = standard normals, counter (stream, step, sample + r, element / 4). */
    void (*normals)(dsb_stream *, const dsb_draw *at, int rows, int dim, float *out, int64_t ld);
    /* x[r, :] = row ids[r] of the data (ids in host memory). */
    void (*gather_rows)(dsb_stream *, const dsb_rows *data, int rows, const int64_t *ids, float *x,
                        int64_t ldx);
    /* o = (m - x) / v: the drift of the reference process; inverse_v = 0 is Brownian. m [dim]. */
    void (*reference_drift)(dsb_stream *, int rows, int dim, const float *m, float inverse_v,
                            const float *x, int64_t ldx, float *o, int64_t ldo);
    /* mean = o, x + o or x + g o. mean may be o. */
    void (*mean_from_output)(dsb_stream *, dsb_output kind, int rows, int dim, float g,
                             const float *x, int64_t ldx, const float *o, int64_t ldo, float *mean,
                             int64_t ldm);
    /* y = a x + b z + c m, elementwise; z or m NULL leaves its term out; m is one row [dim]. */
    void (*combine)(dsb_stream *, int rows, int dim, float a, const float *x, int64_t ldx, float b,
                    const float *z, int64_t ldz, float c, const float *m, float *y, int64_t ldy);
    /* The same with factors per row, table[k[r] * 3 + {0, 1, 2}] (table and k in device memory). */
    void (*combine_by_step)(dsb_stream *, int rows, int dim, const float *table, const int32_t *k,
                            const float *x, int64_t ldx, const float *z, int64_t ldz,
                            const float *m, float *y, int64_t ldy);
    /* y = x times w, one row [dim]; y may be x. */
    void (*scale_columns)(dsb_stream *, int rows, int dim, const float *w, const float *x,
                          int64_t ldx, float *y, int64_t ldy);
    /* sums[c] += sum over rows of x[r, c] y[r, c], in float64 and in the order of rows; sums are written up to
     * a multiple of DSB_PANEL. */
    void (*sum_products)(dsb_stream *, int rows, int dim, const float *x, int64_t ldx,
                         const float *y, int64_t ldy, double *sums);
    /* Inverse of mean_from_output: what the net should put out at x so that the mean is `mean`. The
     * row is stored: unit r of the window at row0 + r * stride. g, t, weight: one number, or one for
     * each row where `k` is given: table_gtw[k[r] * 3 + ...]. */
    void (*window_put)(dsb_stream *, dsb_output kind, int rows, const float *x, int64_t ldx,
                       const float *mean, int64_t ldm, const float *table_gtw, const int32_t *k,
                       const uint32_t *ids, const dsb_window *window, int64_t row0, int64_t stride);
    /* Rows position .. position + rows - 1 of the reading order into a microbatch. */
    void (*window_get)(dsb_stream *, const dsb_window *window, const dsb_read_order *order,
                       int64_t position, int rows, float *x, int64_t ldx, float *target,
                       int64_t ldt, float *t, float *weight, uint32_t *ids);

    /* ---- entropic transport: rows first .. first + rows - 1, whose shifts are shift[0 .. rows - 1] ---- */
    /* sum[r] = sum_j w_j exp(e_rj), |e| < 1.5e5; infinite or 0 where it is beyond float32. Only over the columns
     * of n_groups groups of DSB_TRANSPORT_UNIT neighbours, whose numbers are in `groups`. */
    void (*transport_sum)(dsb_stream *, const dsb_transport *t, int64_t first, int rows,
                          const float *shift, int64_t n_groups, const int32_t *groups, double *sum);
    /* The same over all columns, apart for each run of them: runs[r * dsb_transport_runs(ldy) + k]. */
    void (*transport_runs)(dsb_stream *, const dsb_transport *t, int64_t first, int rows,
                           const float *shift, double *runs);
    /* most[r] = max of e_rj over columns with a weight. */
    void (*transport_most)(dsb_stream *, const dsb_transport *t, int64_t first, int rows,
                           const float *shift, float *most);
    /* sum as above, and mean[r * n + v] = sum_j w_j exp(e_rj) values[v * ldy + j], v < n; e <= 80. */
    void (*transport_mean)(dsb_stream *, const dsb_transport *t, int64_t first, int rows,
                           const float *shift, int n, const float *values, double *sum,
                           double *mean);
    /* terms[k] = w_j exp(e_rj), j = column + k, k < n, of one row, which may be any; e <= 80. `column` is a
     * multiple of DSB_TRANSPORT_RUN, n <= DSB_TRANSPORT_RUN a multiple of DSB_TRANSPORT_UNIT. */
    void (*transport_terms)(dsb_stream *, const dsb_transport *t, int64_t row, float shift,
                            int64_t column, int n, float *terms);

    /* ---- training ---- */
    /* sum of w |o - y|^2 over rows and columns is added to *loss (device memory);
     * d_o = 2 scale w (o - y), zero in the padding. */
    void (*weighted_square)(dsb_stream *, int rows, int dim, const float *o, int64_t ldo,
                            const float *target, int64_t ldt, const float *weight, float scale,
                            float *d_o, int64_t lddo, double *loss);
    /* planes[0][i] = sum over lanes of planes[lane][i], as a binary tree; *norm_squared = its sum of
     * squares (in float64), over i in [0, n); planes are `stride` floats apart. */
    void (*reduce_lanes)(dsb_stream *, int lanes, int64_t stride, int64_t n, float *planes,
                         double *norm_squared);
    /* One pass of clip, Adam (Kingma & Ba, algorithm 1, with PyTorch's epsilon outside the root) and
     * moving average over n parameters; ema NULL: none. With rate 0 the average is theta itself. */
    void (*adam_step)(dsb_stream *, int64_t n, const dsb_adam *adam, const dsb_step *step,
                      const float *grad, float *theta, float *m, float *v, float *ema);
    /* Number of the first entry of x [lines, n] that is NaN or infinite, or -1. */
    int64_t (*first_nonfinite)(int64_t lines, int64_t n, dsb_slot x);

    /* ---- sums over pairs of points ----
     * Points as rows [n][dim], or in panels: [ceil(n / 16)][dim][16], zero beyond n. */
    /* What pair_sum wants to know of the panels' points: norms [ceil(n / 16)][2][16]. */
    void (*pair_norms)(dsb_stream *, int64_t n, int64_t dim, const float *panels, float *norms);
    /* The sum of f(|x_r - y_j|^2) over at most DSB_PAIR_ROWS rows x_r and the first `columns` points of the
     * panels, each distance to some ten units of its last place; fastest for points around the origin. */
    double (*pair_sum)(dsb_stream *, dsb_pair_function f, float scale, int rows, int64_t dim,
                       const float *x, int64_t columns, const float *panels, const float *norms);
    /* out[k][i] = <u_k, x_i>, u [directions][dim]; out is written up to a multiple of 16. */
    void (*project)(dsb_stream *, int64_t n, int64_t dim, const float *panels, int directions,
                    const float *u, float *out, int64_t ldo);
} dsb_backend;

/* The CPU's table for the instruction set in use (see cpu/cpu.c). Never NULL. */
const dsb_backend *dsb_cpu_backend(void);

#endif
