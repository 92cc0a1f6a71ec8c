#include "reference.h"

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
