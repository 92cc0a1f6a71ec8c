/* Vectors: as wide as the instruction set that this file is compiled for.
 *
 * Purpose: the few operations the CPU kernels are written in; DSB_VL floats to a vector. Products
 * that are to be fused say so (vf_fma): a result does not hang on what a compiler contracts.
 * Ownership and threads: pure functions, no state. Included by csrc/cpu/<family>.c only.
 */
#ifndef DSB_CPU_VECTOR_H
#define DSB_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define DSB_VL 16
#elif defined(__AVX2__)
#define DSB_VL 8
#else
#define DSB_VL 4
#endif

#define DSB_INLINE static inline __attribute__((always_inline, unused))

/* In front of a loop whose trip count is a constant once inlined: its arrays become registers. */
#if defined(__clang__)
#define DSB_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DSB_UNROLL _Pragma("GCC unroll 32")
#endif

typedef float vf __attribute__((vector_size(4 * DSB_VL)));
typedef int32_t vi __attribute__((vector_size(4 * DSB_VL)));
typedef float vf_loose __attribute__((vector_size(4 * DSB_VL), aligned(4), may_alias));
typedef float v4f __attribute__((vector_size(16)));
typedef float v4f_loose __attribute__((vector_size(16), aligned(4), may_alias));

DSB_INLINE vf
vf_load(const float *p)
{
    return *(const vf_loose *)p;
}

DSB_INLINE void
vf_store(float *p, vf v)
{
    *(vf_loose *)p = v;
}

DSB_INLINE vf
vf_splat(float x)
{
    return x - (vf){0};
}

DSB_INLINE vi
vi_splat(int32_t x)
{
    return x + (vi){0};
}

/* DSB_VL bytes as numbers 0 .. 255 (convertvector takes compilers through single lanes). */
DSB_INLINE vf
vf_load_bytes(const uint8_t *p)
{
#if DSB_VL == 16
    vi v = (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)p));
#elif DSB_VL == 8
    vi v = (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i_u *)p));
#else
    int32_t bytes;
    vi v;

    memcpy(&bytes, p, sizeof bytes);
#if defined(__x86_64__)
    v = (vi)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
#else
    v = (vi)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_s32(vdup_n_s32(bytes)))));
#endif
#endif
    return __builtin_convertvector(v, vf);
}

/* mask ? a : b; a mask is the result of a comparison. */
DSB_INLINE vf
vf_select(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

/* bfloat16, the upper half of a float32: DSB_VL of them; rounded to nearest, ties to even, NaN quiet. */
DSB_INLINE vf
vf_load_bf16(const uint16_t *p)
{
#if DSB_VL == 16
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p)),
                                 16);
#elif DSB_VL == 8
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)p)), 16);
#elif defined(__x86_64__)
    return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i_u *)p));
#else
    return (vf)vshll_n_u16(vld1_u16(p), 16);
#endif
}

DSB_INLINE void
vf_store_bf16(uint16_t *p, vf v)
{
    vi bits = (vi)v, odd = (bits >> 16) & 1;
    vi rounded = (bits + 0x7fff) + odd;
#if DSB_VL == 16
    static const uint16_t upper[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    __m512i w =
        _mm512_mask_or_epi32((__m512i)rounded, nan, (__m512i)bits, _mm512_set1_epi32(0x400000));

    w = _mm512_permutexvar_epi16(_mm512_loadu_si512(upper), w);
    _mm256_storeu_si256((__m256i_u *)p, _mm512_castsi512_si256(w));
#else
    vi quiet = bits | 0x400000, high = (vi)vf_select(v == v, (vf)rounded, (vf)quiet);
#if DSB_VL == 8
    __m256i w = _mm256_srli_epi32((__m256i)high, 16);

    w = _mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0x08);
    _mm_storeu_si128((__m128i_u *)p, _mm256_castsi256_si128(w));
#elif defined(__x86_64__)
    __m128i w = _mm_srli_epi32((__m128i)high, 16);

    _mm_storel_epi64((__m128i_u *)p, _mm_packus_epi32(w, w));
#else
    vst1_u16(p, vshrn_n_u32((uint32x4_t)high, 16));
#endif
#endif
}

/* DSB_VL numbers from element i of memory that holds float32 or, with `half`, bfloat16. Where `half` is a
 * constant once inlined, the kernels exist twice and neither asks. */
DSB_INLINE vf
vf_load_as(int half, const void *p, int64_t i)
{
    return half ? vf_load_bf16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

DSB_INLINE void
vf_store_as(int half, void *p, int64_t i, vf v)
{
    if (half) {
        vf_store_bf16((uint16_t *)p + i, v);
    } else {
        vf_store((float *)p + i, v);
    }
}

/* a b + c, rounded once where the instruction set can. */
DSB_INLINE vf
vf_fma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

DSB_INLINE vf
vf_sqrt(vf v)
{
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
    return (vf)_mm_sqrt_ps((__m128)v);
#else
    return (vf)vsqrtq_f32((float32x4_t)v);
#endif
}

/* Lane numbers 0, 1, 2, ... */
DSB_INLINE vi
vi_lanes(void)
{
#if DSB_VL == 16
    return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif DSB_VL == 8
    return (vi){0, 1, 2, 3, 4, 5, 6, 7};
#else
    return (vi){0, 1, 2, 3};
#endif
}

/* The first n lanes (n <= 0: none; n >= DSB_VL: all). */
DSB_INLINE vi
vi_first(int64_t n)
{
    return vi_lanes() < vi_splat((int32_t)(n > DSB_VL ? DSB_VL : n));
}

/* p[0 .. n-1] and zeros; touches nothing beyond. */
DSB_INLINE vf
vf_load_part(const float *p, int64_t n)
{
#if defined(__AVX512F__)
    __mmask16 mask = n <= 0 ? 0 : n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);

    return (vf)_mm512_maskz_loadu_ps(mask, p);
#elif defined(__AVX2__)
    return (vf)_mm256_maskload_ps(p, (__m256i)vi_first(n));
#else
    vf v = {0};

    for (int i = 0; i < DSB_VL; i++) {
        if (i < n) {
            v[i] = p[i];
        }
    }
    return v;
#endif
}

DSB_INLINE void
vf_store_part(float *p, vf v, int64_t n)
{
#if defined(__AVX512F__)
    __mmask16 mask = n <= 0 ? 0 : n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);

    _mm512_mask_storeu_ps(p, mask, (__m512)v);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(p, (__m256i)vi_first(n), (__m256)v);
#else
    for (int i = 0; i < DSB_VL; i++) {
        if (i < n) {
            p[i] = v[i];
        }
    }
#endif
}

/* Sum of the lanes, by halves. */
DSB_INLINE float
vf_sum(vf v)
{
    v4f four;

#if DSB_VL == 16
    typedef float v8f __attribute__((vector_size(32)));
    v8f eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);

    four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
           __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#elif DSB_VL == 8
    four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
    four = v;
#endif
    four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
    return four[0] + four[1];
}

/* One 128-bit piece from each of the rows 0, 4, 8, ... that make a vector. */
DSB_INLINE vf
vf_load_pieces(const float *w, int64_t ld)
{
#if DSB_VL == 4
    (void)ld;
    return *(const v4f_loose *)w;
#else
    typedef float v8f __attribute__((vector_size(32)));
    v4f a = *(const v4f_loose *)w, b = *(const v4f_loose *)(w + 4 * ld);
    v8f low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#if DSB_VL == 8
    return low;
#else
    v4f c = *(const v4f_loose *)(w + 8 * ld), d = *(const v4f_loose *)(w + 12 * ld);
    v8f high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);

    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

/* The same shuffle in every 128-bit piece of two vectors. */
#if DSB_VL == 16
#define VF_PIECES(v, w, a, b, c, d)                                                        \
    __builtin_shufflevector(v, w, a, b, c, d, (a) + 4, (b) + 4, (c) + 4, (d) + 4, (a) + 8, \
                            (b) + 8, (c) + 8, (d) + 8, (a) + 12, (b) + 12, (c) + 12, (d) + 12)
#elif DSB_VL == 8
#define VF_PIECES(v, w, a, b, c, d) \
    __builtin_shufflevector(v, w, a, b, c, d, (a) + 4, (b) + 4, (c) + 4, (d) + 4)
#else
#define VF_PIECES(v, w, a, b, c, d) __builtin_shufflevector(v, w, a, b, c, d)
#endif

/* The first four columns of DSB_VL rows of w, transposed: four vectors, `ldt` floats apart. */
DSB_INLINE void
vf_transpose_four(const float *w, int64_t ld, float *to, int64_t ldt)
{
    enum { N = DSB_VL };
    vf a = vf_load_pieces(w, ld), b = vf_load_pieces(w + ld, ld);
    vf c = vf_load_pieces(w + 2 * ld, ld), d = vf_load_pieces(w + 3 * ld, ld);
    vf ab0 = VF_PIECES(a, b, 0, N, 1, N + 1), ab2 = VF_PIECES(a, b, 2, N + 2, 3, N + 3);
    vf cd0 = VF_PIECES(c, d, 0, N, 1, N + 1), cd2 = VF_PIECES(c, d, 2, N + 2, 3, N + 3);

    vf_store(to, VF_PIECES(ab0, cd0, 0, 1, N, N + 1));
    vf_store(to + ldt, VF_PIECES(ab0, cd0, 2, 3, N + 2, N + 3));
    vf_store(to + 2 * ldt, VF_PIECES(ab2, cd2, 0, 1, N, N + 1));
    vf_store(to + 3 * ldt, VF_PIECES(ab2, cd2, 2, 3, N + 2, N + 3));
}

DSB_INLINE vf
vf_abs(vf x)
{
    return (vf)((vi)x & 0x7fffffff);
}

/* NaN stays NaN. */
DSB_INLINE vf
vf_leaky_relu(vf x, vf slope)
{
    return vf_select(x > 0.0f, x, x * slope);
}

/* -|x| cut at -120, where exp is zero in float32. NaN stays NaN: a maximum is its second operand then. */
DSB_INLINE vf
vf_below(vf x)
{
    vf a = (vf)((vi)x | INT32_MIN), least = vf_splat(-120.0f);

#if DSB_VL == 16
    return (vf)_mm512_max_ps((__m512)least, (__m512)a);
#elif DSB_VL == 8
    return (vf)_mm256_max_ps((__m256)least, (__m256)a);
#elif defined(__x86_64__)
    return (vf)_mm_max_ps((__m128)least, (__m128)a);
#else
    return (vf)vmaxq_f32((float32x4_t)least, (float32x4_t)a);
#endif
}

/* a where x has no sign (NaN and zero may have one), else b. */
DSB_INLINE vf
vf_by_sign(vf x, vf a, vf b)
{
#if DSB_VL == 16
    return (vf)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)x), (__m512)a, (__m512)b);
#elif DSB_VL == 8
    return (vf)_mm256_blendv_ps((__m256)a, (__m256)b, (__m256)x);
#elif defined(__x86_64__)
    return (vf)_mm_blendv_ps((__m128)a, (__m128)b, (__m128)x);
#else
    return vf_select((vi)x < 0, b, a);
#endif
}

/* ---- functions of up to VF_MANY vectors ----
 * A processor looks ahead by some hundred instructions, and these are chains of thirty, each waiting for the
 * one before: it gets further where the chains of several vectors stand interleaved. */

enum { VF_MANY = 4 };

#if DSB_VL == 16
/* 2^(k/16) */
static const float vf_sixteenths[16] = {1.0f,        1.04427373f, 1.09050775f, 1.13878858f,
                                        1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
                                        1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                                        1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
#endif

/* e = exp(a), -120 <= a <= 0. With sixteen numbers to a vector a = (m + k / 16) ln 2 + r, |r| <= ln 2 / 32: the
 * table holds 2^(k/16), and the instruction that scales takes the whole part of m + k / 16. */
#if DSB_VL == 16
DSB_INLINE void
vf_exp_negative_many(int n, const vf *a, vf *e)
{
    const float magic = 786432.0f; /* 1.5 * 2^19: adding it rounds to sixteenths */
    vf t[VF_MANY], m[VF_MANY], r[VF_MANY];

    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        t[i] = vf_fma(a[i], vf_splat(1.44269504088896341f), vf_splat(magic));
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        m[i] = t[i] - magic;
        r[i] = vf_fma(m[i], vf_splat(-0.693147180559945f), a[i]);
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        e[i] = vf_fma(r[i], vf_splat(1.6666723788e-01f), vf_splat(5.0001621246e-01f));
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        e[i] = vf_fma(e[i], r[i], vf_splat(1.0f));
        t[i] = (vf)_mm512_permutexvar_ps((__m512i)t[i], _mm512_loadu_ps(vf_sixteenths));
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        r[i] *= t[i];
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        e[i] = vf_fma(e[i], r[i], t[i]);
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        e[i] = (vf)_mm512_scalef_ps((__m512)e[i], (__m512)m[i]);
    }
}
#else
/* As p 2^m with p in [0.70, 1.42]; the polynomial is minimax, its error 4e-9. */
DSB_INLINE void
vf_exp_negative_many(int n, const vf *a, vf *e)
{
    static const float factors[] = {
        8.3687454462e-3f, 4.1668388993e-2f, 1.6666521132e-1f, 4.9999994040e-1f, 1.0f, 1.0f};
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vf t[VF_MANY], r[VF_MANY];

    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        vf m;

        t[i] = vf_fma(a[i], vf_splat(1.44269504088896341f), vf_splat(magic));
        m = t[i] - magic;
        r[i] = vf_fma(m, vf_splat(-0.693359375f), a[i]);
        r[i] = vf_fma(m, vf_splat(2.12194440e-4f), r[i]);
        e[i] = vf_splat(1.3814539416e-3f);
    }
    DSB_UNROLL
    for (int k = 0; k < 6; k++) {
        DSB_UNROLL
        for (int i = 0; i < n; i++) {
            e[i] = vf_fma(e[i], r[i], vf_splat(factors[k]));
        }
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        /* 2^m in two factors, each of them normal; the integer is the low end of t */
        vi power = (vi)t[i] - 0x4b400000, half = power >> 1;

        e[i] = e[i] * (vf)((half + 127) << 23) * (vf)((power - half + 127) << 23);
    }
}
#endif

/* x = x / (1 + exp(-x)), written with exp(-|x|) so that nothing overflows. */
DSB_INLINE void
vf_silu_many(int n, vf *x)
{
    vf low[VF_MANY], e[VF_MANY];

    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        low[i] = vf_below(x[i]);
    }
    vf_exp_negative_many(n, low, e);
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        x[i] = vf_by_sign(x[i], x[i], low[i] * e[i]) / (e[i] + 1.0f);
    }
}

/* x = the derivative of SiLU, s (1 + x (1 - s)) with s = sigmoid(x): with e = exp(-|x|) and g = 1 / (1 + e)
 * g (1 + |x| e g) for positive x and g (e - |x| e g) for negative ones. */
DSB_INLINE void
vf_silu_slope_many(int n, vf *x)
{
    vf low[VF_MANY], e[VF_MANY], g[VF_MANY], one = vf_splat(1.0f);

    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        low[i] = vf_below(x[i]);
    }
    vf_exp_negative_many(n, low, e);
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        g[i] = one / (e[i] + one);
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        vf term = low[i] * e[i];

        term = (vf)((vi)term ^ (~(vi)x[i] & INT32_MIN)); /* it has the sign of x */
        x[i] = g[i] * vf_fma(term, g[i], vf_by_sign(x[i], one, e[i]));
    }
}

DSB_INLINE vf
vf_exp_negative(vf a)
{
    vf e;

    vf_exp_negative_many(1, &a, &e);
    return e;
}

DSB_INLINE vf
vf_silu(vf x)
{
    vf_silu_many(1, &x);
    return x;
}

DSB_INLINE vf
vf_silu_slope(vf x)
{
    vf_silu_slope_many(1, &x);
    return x;
}

#endif
