#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/philox.h"

/* ---- convolution ---- */

/* All products of one output pixel with one tap. */
static void
conv_products(int c_in, int c_out, int64_t taps, ref_pass pass, double *x, double *w, double *y)
{
    for (int o = 0; o < c_out; o++) {
        double *v = w + o * taps * c_in;

        for (int i = 0; i < c_in; i++) {
            switch (pass) {
            case REF_FORWARD:
                y[o] += x[i] * v[i];
                break;
            case REF_INPUT:
                x[i] += y[o] * v[i];
                break;
            case REF_WEIGHT:
                v[i] += y[o] * x[i];
                break;
            }
        }
    }
}

void
ref_conv(const dsb_conv *conv, int rows, ref_pass pass, double *x, double *w, double *y)
{
    int kernel = conv->kernel, before = (kernel - 1) / 2;
    int ho = dsb_conv_out(conv, conv->h), wo = dsb_conv_out(conv, conv->w);
    int taps = kernel * kernel, places = rows * ho * wo * taps;

    for (int n = 0; n < places; n++) {
        int tap = n % taps, pixel = n / taps, row = pixel / (ho * wo);
        int v = pixel / wo % ho * conv->stride + tap / kernel - before; /* in the image scaled up */
        int u = pixel % wo * conv->stride + tap % kernel - before;

        if (v >= 0 && v < conv->h * conv->up && u >= 0 && u < conv->w * conv->up) {
            int64_t at = (int64_t)(row * conv->h + v / conv->up) * conv->w + u / conv->up;

            conv_products(conv->c_in, conv->c_out, taps, pass, x + at * conv->c_in,
                          w + tap * conv->c_in, y + (int64_t)pixel * conv->c_out);
        }
    }
}

/* ---- group normalisation ---- */

double
ref_silu(double x)
{
    return x / (1.0 + exp(-x));
}

double
ref_silu_slope(double x)
{
    double s = 1.0 / (1.0 + exp(-x));

    return s * (1.0 + x * (1.0 - s));
}

void
ref_moments(const ref_norm *norm, const double *x, int row, int group, double *mean,
            double *inverse)
{
    int size = norm->c / norm->groups;
    double n = (double)norm->pixels * size, sum = 0.0, squares = 0.0;

    for (int p = 0; p < norm->pixels; p++) {
        for (int k = group * size; k < (group + 1) * size; k++) {
            sum += x[(row * norm->pixels + p) * norm->c + k];
        }
    }
    *mean = sum / n;
    for (int p = 0; p < norm->pixels; p++) {
        for (int k = group * size; k < (group + 1) * size; k++) {
            double d = x[(row * norm->pixels + p) * norm->c + k] - *mean;

            squares += d * d;
        }
    }
    *inverse = 1.0 / sqrt(squares / n + DSB_GROUP_NORM_EPSILON);
}

static double
scale_of(const ref_norm *norm, int row, int k)
{
    return norm->scale_shift != NULL ? 1.0 + norm->scale_shift[row * 2 * norm->c + k] : 1.0;
}

static double
shift_of(const ref_norm *norm, int row, int k)
{
    return norm->scale_shift != NULL ? norm->scale_shift[row * 2 * norm->c + norm->c + k] : 0.0;
}

void
ref_group_norm(const ref_norm *norm, const double *x, double *y)
{
    int c = norm->c, size = c / norm->groups;

    for (int r = 0; r < norm->rows; r++) {
        for (int k = 0; k < c; k++) {
            double mean, inverse;

            ref_moments(norm, x, r, k / size, &mean, &inverse);
            for (int p = 0; p < norm->pixels; p++) {
                int i = (r * norm->pixels + p) * c + k;
                double n = norm->weight[k] * (x[i] - mean) * inverse + norm->bias[k];
                double z = n * scale_of(norm, r, k) + shift_of(norm, r, k);

                y[i] = norm->silu ? ref_silu(z) : z;
            }
        }
    }
}

/* One group of one row; d_weight and d_bias accumulate. */
static void
backward_group(const ref_norm *norm, int row, int group, const double *x, const double *dy,
               double *dx, double *d_weight, double *d_bias, double *d_scale_shift)
{
    int c = norm->c, size = c / norm->groups;
    double mean, inverse, n = (double)norm->pixels * size, mean_g = 0.0, mean_gx = 0.0;

    ref_moments(norm, x, row, group, &mean, &inverse);
    for (int pass = 0; pass < 2; pass++) {
        for (int p = 0; p < norm->pixels; p++) {
            for (int k = group * size; k < (group + 1) * size; k++) {
                int i = (row * norm->pixels + p) * c + k;
                double scale = scale_of(norm, row, k), hat = (x[i] - mean) * inverse;
                double normal = norm->weight[k] * hat + norm->bias[k];
                double z = normal * scale + shift_of(norm, row, k);
                double dz = dy[i] * (norm->silu ? ref_silu_slope(z) : 1.0);
                double g = dz * norm->weight[k] * scale;

                if (pass == 1) {
                    dx[i] = inverse * (g - mean_g - hat * mean_gx);
                    continue;
                }
                mean_g += g / n;
                mean_gx += g * hat / n;
                d_weight[k] += dz * scale * hat;
                d_bias[k] += dz * scale;
                d_scale_shift[row * 2 * c + k] += dz * normal;
                d_scale_shift[row * 2 * c + c + k] += dz;
            }
        }
    }
}

void
ref_group_norm_backward(const ref_norm *norm, const double *x, const double *dy, double *dx,
                        double *d_weight, double *d_bias, double *d_scale_shift)
{
    size_t c = (size_t)norm->c;

    memset(d_weight, 0, sizeof *d_weight * c);
    memset(d_bias, 0, sizeof *d_bias * c);
    memset(d_scale_shift, 0, sizeof *d_scale_shift * 2 * c * (size_t)norm->rows);
    for (int r = 0; r < norm->rows; r++) {
        for (int g = 0; g < norm->groups; g++) {
            backward_group(norm, r, g, x, dy, dx, d_weight, d_bias, d_scale_shift);
        }
    }
}

/* ---- attention ---- */

/* Where channel k of q (part 0), k (1) or v (2) of a head and pixel stands in an image of 3 c channels. */
static int
place(int row, int pixels, int c, int heads, int pixel, int head, int part, int k)
{
    int d = c / heads;

    return (row * pixels + pixel) * 3 * c + (head * 3 + part) * d + k;
}

/* p[j] = the weight of pixel j for the query of pixel i. */
static void
weights_of(int row, int pixels, int c, int heads, int head, int i, const double *qkv, double *p)
{
    int d = c / heads;
    double most = -INFINITY, sum = 0.0;

    for (int j = 0; j < pixels; j++) {
        p[j] = 0.0;
        for (int k = 0; k < d; k++) {
            p[j] += qkv[place(row, pixels, c, heads, i, head, 0, k)] *
                    qkv[place(row, pixels, c, heads, j, head, 1, k)] / sqrt(d);
        }
        most = fmax(most, p[j]);
    }
    for (int j = 0; j < pixels; j++) {
        p[j] = exp(p[j] - most);
        sum += p[j];
    }
    for (int j = 0; j < pixels; j++) {
        p[j] /= sum;
    }
}

void
ref_attention(int rows, int pixels, int c, int heads, const double *qkv, double *y)
{
    int d = c / heads;
    double *p = malloc(sizeof *p * (size_t)pixels);

    for (int query = 0; query < rows * heads * pixels; query++) {
        int i = query % pixels, head = query / pixels % heads, row = query / pixels / heads;

        weights_of(row, pixels, c, heads, head, i, qkv, p);
        for (int k = 0; k < d; k++) {
            double sum = 0.0;

            for (int j = 0; j < pixels; j++) {
                sum += p[j] * qkv[place(row, pixels, c, heads, j, head, 2, k)];
            }
            y[(row * pixels + i) * c + head * d + k] = sum;
        }
    }
    free(p);
}

void
ref_attention_backward(int rows, int pixels, int c, int heads, const double *qkv, const double *dy,
                       double *d_qkv)
{
    int d = c / heads;
    double *p = malloc(sizeof *p * (size_t)pixels), *dp = malloc(sizeof *dp * (size_t)pixels);

    memset(d_qkv, 0, sizeof *d_qkv * 3 * (size_t)rows * (size_t)pixels * (size_t)c);
    for (int query = 0; query < rows * heads * pixels; query++) {
        int i = query % pixels, head = query / pixels % heads, row = query / pixels / heads;
        const double *dyi = dy + (row * pixels + i) * c + head * d;
        double mean = 0.0;

        weights_of(row, pixels, c, heads, head, i, qkv, p);
        for (int j = 0; j < pixels; j++) {
            dp[j] = 0.0;
            for (int k = 0; k < d; k++) {
                int v = place(row, pixels, c, heads, j, head, 2, k);

                dp[j] += dyi[k] * qkv[v];
                d_qkv[v] += p[j] * dyi[k];
            }
            mean += p[j] * dp[j];
        }
        for (int j = 0; j < pixels; j++) {
            double ds = p[j] * (dp[j] - mean) / sqrt(d);

            for (int k = 0; k < d; k++) {
                int q = place(row, pixels, c, heads, i, head, 0, k);
                int key = place(row, pixels, c, heads, j, head, 1, k);

                d_qkv[q] += ds * qkv[key];
                d_qkv[key] += ds * qkv[q];
            }
        }
    }
    free(p);
    free(dp);
}

/* ---- resampling, dropout ---- */

void
ref_upsample(int rows, int h, int w, int c, double factor, const double *x, double *y)
{
    for (int line = 0; line < rows * 2 * h; line++) {
        for (int p = 0; p < 2 * w; p++) {
            for (int k = 0; k < c; k++) {
                y[(line * 2 * w + p) * c + k] = factor * x[(line / 2 * w + p / 2) * c + k];
            }
        }
    }
}

void
ref_downsample(int rows, int h, int w, int c, double factor, const double *x, double *y)
{
    memset(y, 0, sizeof *y * (size_t)rows * (size_t)h * (size_t)w * (size_t)c);
    for (int line = 0; line < rows * 2 * h; line++) {
        for (int p = 0; p < 2 * w; p++) {
            for (int k = 0; k < c; k++) {
                y[(line / 2 * w + p / 2) * c + k] += factor * x[(line * 2 * w + p) * c + k];
            }
        }
    }
}

bool
ref_keeps(const dsb_draw *at, float rate, uint32_t row, int64_t e)
{
    uint32_t words[4];

    dsb_philox(at->seed, at->stream, at->step, at->sample + row, (uint32_t)(e / 4), words);
    return dsb_uniform(words[e % 4]) >= rate;
}
