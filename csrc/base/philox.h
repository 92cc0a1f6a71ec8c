/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): randomness as a function of a counter.
 *
 * Purpose: any number can be drawn anywhere by anyone: key = seed, counter = (stream, step, sample,
 * element). Only integer and IEEE-exact operations are used, so that every machine draws the same bits;
 * files that include this are compiled without contraction (-std=c11, or -ffp-contract=off).
 * Ownership and threads: pure functions, no state.
 */
#ifndef DSB_BASE_PHILOX_H
#define DSB_BASE_PHILOX_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Streams: what a number is drawn for. They occupy the low byte of the counter's first word, the
 * half-bridge's number the rest, so that no two draws of a run share a counter. */
typedef enum dsb_stream_id {
    DSB_STREAM_INIT = 1,  /* initial weights: step = parameter, sample = element / 4 */
    DSB_STREAM_ORDER = 2, /* order in which source rows start paths: step = epoch */
    DSB_STREAM_PRIOR = 3, /* Gaussian starts: sample = path */
    DSB_STREAM_NOISE = 4, /* noise of a simulated step: step = state, sample = path */
    DSB_STREAM_SHUFFLE =
        5,               /* order in which a window of the cache is read: step = window and pass */
    DSB_STREAM_PAIR = 6, /* closed-form first half-bridge: step index and noise of a pair */
    DSB_STREAM_SAMPLE = 7,   /* sample() and paths(): step = state, sample = row */
    DSB_STREAM_START = 8,    /* sample(): rows or Gaussian draws to start from */
    DSB_STREAM_USER = 9,     /* random numbers handed to Python */
    DSB_STREAM_DROPOUT = 10, /* masks: step = gradient step, sample = row and number of the op */
    DSB_STREAM_PINNED =
        11, /* a state between the ends of a path: step = step of the path, sample = path */
    DSB_STREAM_RESIDUAL = 12, /* noise of the paths that covariances are estimated from: as NOISE */
    DSB_STREAM_RESIDUAL_START = 13, /* their starts: as ORDER or PRIOR, of which an end has one */
    DSB_STREAM_RESIDUAL_FAR = 15,   /* points of the other end, independent of these */
    DSB_STREAM_FAR = 14, /* starts at the other end, independent of those above: 2 and 3 in one */
} dsb_stream_id;

static inline uint32_t
dsb_stream_word(dsb_stream_id stream, uint32_t half_bridge)
{
    return (uint32_t)stream | half_bridge << 8;
}

static inline __attribute__((always_inline)) void
dsb_philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;

        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Uniform in (0, 1): (2k + 1) 2^-24 with 23 random bits, exact in float32. */
static inline float
dsb_uniform(uint32_t bits)
{
    return (float)(int32_t)((bits >> 9) * 2u + 1u) * 5.9604644775390625e-8f;
}

/* Uniform integer in [0, n): the high word of a product; the bias is below n / 2^32. */
static inline uint32_t
dsb_uniform_below(uint32_t bits, uint32_t n)
{
    return (uint32_t)((uint64_t)bits * n >> 32);
}

static inline uint32_t
dsb_float_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float
dsb_bits_float(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Box-Muller: two words to two independent normals, from + - * fma sqrt only (each correctly rounded).
 * ln on [sqrt(1/2), sqrt(2)) and sin, cos on [-pi/4, pi/4] are the classic Cephes polynomials. The
 * uniform has 23 bits, so |z| <= sqrt(2 * 24 ln 2) = 5.77. */
static inline __attribute__((always_inline)) void
dsb_box_muller(uint32_t a, uint32_t b, float *z0, float *z1)
{
    float u = dsb_uniform(a);
    uint32_t bits = dsb_float_bits(u);
    int32_t e = (int32_t)(bits - 0x3f3504f3u) >> 23;
    float f = dsb_bits_float(bits - ((uint32_t)e << 23)) - 1.0f;
    float fe = (float)e, f2 = f * f;
    float p = 7.0376836292e-2f;
    float y, ln, radius, t, t2, s, c, sine, cosine;
    uint32_t quadrant;

    p = __builtin_fmaf(p, f, -1.1514610310e-1f);
    p = __builtin_fmaf(p, f, 1.1676998740e-1f);
    p = __builtin_fmaf(p, f, -1.2420140846e-1f);
    p = __builtin_fmaf(p, f, 1.4249322787e-1f);
    p = __builtin_fmaf(p, f, -1.6668057665e-1f);
    p = __builtin_fmaf(p, f, 2.0000714765e-1f);
    p = __builtin_fmaf(p, f, -2.4999993993e-1f);
    p = __builtin_fmaf(p, f, 3.3333331174e-1f);
    y = p * f * f2;
    y = __builtin_fmaf(fe, -2.12194440e-4f, y);
    y = __builtin_fmaf(f2, -0.5f, y);
    ln = __builtin_fmaf(fe, 0.693359375f, f + y);
    radius = __builtin_sqrtf(-2.0f * ln);

    quadrant = (b + 0x20000000u) >> 30;
    t = (float)(int32_t)(b - (quadrant << 30)) * 1.4629180792671596e-9f; /* pi/2 * 2^-30 */
    t2 = t * t;
    s = __builtin_fmaf(-1.9515295891e-4f, t2, 8.3321608736e-3f);
    s = __builtin_fmaf(s, t2, -1.6666654611e-1f);
    s = __builtin_fmaf(s * t2, t, t);
    c = __builtin_fmaf(2.443315711809948e-5f, t2, -1.388731625493765e-3f);
    c = __builtin_fmaf(c, t2, 4.166664568298827e-2f);
    c = __builtin_fmaf(c * t2, t2, __builtin_fmaf(-0.5f, t2, 1.0f));
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    *z0 = radius * dsb_bits_float(dsb_float_bits(cosine) ^ ((quadrant + 1) & 2) << 30);
    *z1 = radius * dsb_bits_float(dsb_float_bits(sine) ^ (quadrant & 2) << 30);
}

/* A random permutation of 0 .. n-1 that needs no memory: a Feistel network of eight rounds on the
 * smallest even-or-odd power of two >= n, walked along its cycle until it lands inside (on average
 * fewer than two steps). The round keys are one Philox draw each. */
typedef struct dsb_permutation {
    uint64_t n;
    uint32_t keys[8];
    int low_bits, high_bits;
} dsb_permutation;

/* The network's round function: 32 bits of well-mixed hash of (x, key). */
static inline uint32_t
dsb_mix(uint32_t x, uint32_t key)
{
    x = (x ^ key) * 0xCC9E2D51u;
    x ^= x >> 15;
    x *= 0x1B873593u;
    x ^= x >> 13;
    x += key;
    x *= 0x85EBCA6Bu;
    return x ^ x >> 16;
}

void dsb_permutation_init(dsb_permutation *p, uint64_t n, uint64_t seed, uint32_t stream_word,
                          uint32_t step);
uint64_t dsb_permute(const dsb_permutation *p, uint64_t i);

#endif
