/* Sixteen lanes of fp32, and the few operations that the kernels need, for each instruction set.
 *
 * Every operation gives the same bits everywhere: one rounding where IEEE 754 defines it (fma included),
 * integer arithmetic that is exact, and no operation whose order of summation is left open.
 */
#ifndef GPT2_SIMD_H
#define GPT2_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

INLINE int32_t i_quad(const int8_t *x) { int32_t quad; memcpy(&quad, x, 4); return quad; }

/* to[k, c] = from[c, k] for four rows and columns; the strides are in floats. */
#if defined(__SSE__)
#include <immintrin.h>
INLINE void transpose4(const float *from, size_t from_stride, float *to, size_t to_stride) {
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride), c = _mm_loadu_ps(from + 2 * from_stride),
           d = _mm_loadu_ps(from + 3 * from_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a), _mm_storeu_ps(to + to_stride, b);
    _mm_storeu_ps(to + 2 * to_stride, c), _mm_storeu_ps(to + 3 * to_stride, d);
}
#else
INLINE void transpose4(const float *from, size_t from_stride, float *to, size_t to_stride) {
    for (size_t c = 0; c < 4; c++)
        for (size_t k = 0; k < 4; k++) to[k * to_stride + c] = from[c * from_stride + k];
}
#endif

#if defined(__AVX512F__)
/* ---------------------------------------------------------------- AVX-512 with VNNI */
#include <immintrin.h>

#define TILE_COLUMNS(rows) 4 /* vectors of columns of a tile of so many rows */
#define WIDE_PANEL_ROWS 12   /* more rows than this share one conversion to fp32 of a block of a panel */
#define DOT_COLUMNS(rows) 4
#define QUAD_BYTES 4 /* of four inputs, beside weights of 8 bits */
#define DOT_ROWS 3

typedef __m512 vf;
typedef __m512i vi;

INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf v_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void v_store_f16(void *p, vf x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf v_load_bf16(const void *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE vf v_load_i8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vf v_set1(float x) { return _mm512_set1_ps(x); }
INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf v_where_greater(vf a, vf b, vf yes, vf no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
INLINE vf v_first(vf x, int n) { /* the first n lanes, the others zero; n may be anything */
    return _mm512_maskz_mov_ps((__mmask16)(n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1), x);
}
INLINE vf v_scale2(vf x, vf shifted) { /* x * 2^n, n in the low bits of ``shifted`` */
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n));
}
INLINE void v_store_i8(int8_t *p, vf x) { /* rounded to nearest even */
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

/* Integer products: the weights are stored with an offset, as bytes without sign. */
INLINE vi i_start(int32_t offset, int32_t sum) { return _mm512_set1_epi32(-offset * sum); }
INLINE vi i_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vi i_dot8(vi acc, vi w, const int8_t *x) { return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(i_quad(x))); }
INLINE vi i_dot4(vi acc, vi w, const int8_t *x) { return i_dot8(acc, w, x); }
INLINE vi i_low(vi w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
INLINE vi i_high(vi w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
INLINE void i_store(uint8_t *p, vi x) { _mm512_storeu_si512(p, x); }
INLINE vf i_float(vi x) { return _mm512_cvtepi32_ps(x); }

#elif defined(__AVX2__)
/* ---------------------------------------------------------------- AVX2, FMA, F16C; AVX-VNNI where it is */
#include <immintrin.h>

#define TILE_COLUMNS(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define WIDE_PANEL_ROWS 96 /* converting for each tile, 24 rows take three quarters of the time */
#define DOT_COLUMNS(rows) ((rows) == 1 ? 4 : 1)
#define DOT_ROWS 3

typedef struct { __m256 a, b; } vf;
typedef struct { __m256i a, b; } vi;
#define EACH2(type, expression_a, expression_b) ((type){(expression_a), (expression_b)})

INLINE vf v_load(const float *p) { return EACH2(vf, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void v_store(float *p, vf x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE vf v_load_f16(const void *p) {
    const __m128i *q = (const __m128i *)p;
    return EACH2(vf, _mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1)));
}
INLINE void v_store_f16(void *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 bf16_half(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE vf v_load_bf16(const void *p) { return EACH2(vf, bf16_half(p), bf16_half((const __m128i *)p + 1)); }
INLINE __m256 i8_half(const void *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vf v_load_i8(const void *p) { return EACH2(vf, i8_half(p), i8_half((const char *)p + 8)); }
INLINE vf v_set1(float x) { return EACH2(vf, _mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE vf v_add(vf x, vf y) { return EACH2(vf, _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
INLINE vf v_sub(vf x, vf y) { return EACH2(vf, _mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
INLINE vf v_mul(vf x, vf y) { return EACH2(vf, _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
INLINE vf v_div(vf x, vf y) { return EACH2(vf, _mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
INLINE vf v_fma(vf x, vf y, vf z) {
    return EACH2(vf, _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
INLINE vf v_max(vf x, vf y) { return EACH2(vf, _mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
INLINE vf v_min(vf x, vf y) { return EACH2(vf, _mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
INLINE vf v_where_greater(vf x, vf y, vf yes, vf no) {
    return EACH2(vf, _mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
                 _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)));
}
INLINE vf v_first(vf x, int n) {
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
    __m256 high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
    return EACH2(vf, _mm256_and_ps(x.a, low), _mm256_and_ps(x.b, high));
}
INLINE __m256 scale2_half(__m256 x, __m256 shifted) {
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n));
}
INLINE vf v_scale2(vf x, vf shifted) {
    return EACH2(vf, scale2_half(x.a, shifted.a), scale2_half(x.b, shifted.b));
}
INLINE void v_store_i8(int8_t *p, vf x) {
    __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
    __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(low, high));
}

INLINE vi i_load(const uint8_t *p) {
    return EACH2(vi, _mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1));
}
INLINE void i_store(uint8_t *p, vi x) {
    _mm256_storeu_si256((__m256i *)p, x.a), _mm256_storeu_si256((__m256i *)p + 1, x.b);
}
INLINE vi i_low(vi w) {
    __m256i mask = _mm256_set1_epi8(15);
    return EACH2(vi, _mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask));
}
INLINE vi i_high(vi w) {
    __m256i mask = _mm256_set1_epi8(15);
    return EACH2(vi, _mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask),
                 _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask));
}
INLINE vf i_float(vi x) { return EACH2(vf, _mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)); }
#if defined(__AVXVNNI__)
INLINE vi i_start(int32_t offset, int32_t sum) {
    return EACH2(vi, _mm256_set1_epi32(-offset * sum), _mm256_set1_epi32(-offset * sum));
}
INLINE vi i_dot8(vi acc, vi w, const int8_t *x) {
    __m256i wide = _mm256_set1_epi32(i_quad(x));
    return EACH2(vi, _mm256_dpbusd_avx_epi32(acc.a, w.a, wide), _mm256_dpbusd_avx_epi32(acc.b, w.b, wide));
}
INLINE vi i_dot4(vi acc, vi w, const int8_t *x) { return i_dot8(acc, w, x); }
#define QUAD_BYTES 4
#else
INLINE vi i_start(int32_t offset, int32_t sum) {
    return EACH2(vi, _mm256_set1_epi32(-offset * sum), _mm256_set1_epi32(-offset * sum));
}
/* Beside weights of 8 bits, inputs are 16 bits wide: first the even ones of a quad, then the odd ones. */
#define QUAD_BYTES 8
INLINE void i_widen(const int8_t *x, int8_t *to) { /* 8 quads */
    __m256i both = _mm256_loadu_si256((const __m256i *)x), odd = _mm256_srai_epi16(both, 8);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8);
    __m256i a = _mm256_unpacklo_epi32(even, odd), b = _mm256_unpackhi_epi32(even, odd);
    _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i *)to + 1, _mm256_permute2x128_si256(a, b, 0x31));
}
/* Nothing happens to x. Without it gcc adds in another order, which needs more registers than there are. */
INLINE __m256i in_order(__m256i x) {
    __asm__("" : "+x"(x));
    return x;
}
INLINE __m256i wide_half(__m256i acc, __m256i w, __m256i even, __m256i odd) {
    acc = in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), even)));
    return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd)));
}
INLINE vi i_dot8(vi acc, vi w, const int8_t *x) {
    __m256i even = _mm256_set1_epi32(i_quad(x)), odd = _mm256_set1_epi32(i_quad(x + 4));
    return EACH2(vi, wide_half(acc.a, w.a, even, odd), wide_half(acc.b, w.b, even, odd));
}
INLINE __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
    /* The sums of two products stay below 2^15: 15 * 127 * 2. */
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
INLINE vi i_dot4(vi acc, vi w, const int8_t *x) {
    __m256i wide = _mm256_set1_epi32(i_quad(x));
    return EACH2(vi, dot_half(acc.a, w.a, wide), dot_half(acc.b, w.b, wide));
}
#endif

#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
/* ---------------------------------------------------------------- NEON with dot products */
#include <arm_neon.h>

#define TILE_COLUMNS(rows) ((rows) == 1 ? 4 : 1)
#define WIDE_PANEL_ROWS 12
#define DOT_COLUMNS(rows) 1
#define QUAD_BYTES 4 /* of four inputs, beside weights of 8 bits */
#define DOT_ROWS 3

typedef struct { float32x4_t v[4]; } vf;
typedef struct { int32x4_t v[4]; } vi;
#define EACH4(type, e) ((type){{(e(0)), (e(1)), (e(2)), (e(3))}})

#define E(i) vld1q_f32(p + 4 * i)
INLINE vf v_load(const float *p) { return EACH4(vf, E); }
#undef E
INLINE void v_store(float *p, vf x) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]); }
#define E(i) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)p + 4 * i)))
INLINE vf v_load_f16(const void *p) { return EACH4(vf, E); }
#undef E
INLINE void v_store_f16(void *p, vf x) {
    for (int i = 0; i < 4; i++) vst1_u16((uint16_t *)p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
#define E(i) vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)p + 4 * i), 16))
INLINE vf v_load_bf16(const void *p) { return EACH4(vf, E); }
#undef E
INLINE vf v_load_i8(const void *p) {
    int8x16_t bytes = vld1q_s8((const int8_t *)p);
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (vf){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
#define E(i) vdupq_n_f32(x)
INLINE vf v_set1(float x) { return EACH4(vf, E); }
#undef E
#define BINARY(name, operation)                                                                              \
    INLINE vf name(vf x, vf y) {                                                                              \
        return (vf){{operation(x.v[0], y.v[0]), operation(x.v[1], y.v[1]), operation(x.v[2], y.v[2]),         \
                     operation(x.v[3], y.v[3])}};                                                             \
    }
BINARY(v_add, vaddq_f32)
BINARY(v_sub, vsubq_f32)
BINARY(v_mul, vmulq_f32)
BINARY(v_div, vdivq_f32)
#undef BINARY
#define E(i) vfmaq_f32(z.v[i], x.v[i], y.v[i])
INLINE vf v_fma(vf x, vf y, vf z) { return EACH4(vf, E); }
#undef E
#define E(i) vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), yes.v[i], no.v[i])
INLINE vf v_where_greater(vf x, vf y, vf yes, vf no) { return EACH4(vf, E); }
#undef E
INLINE vf v_max(vf x, vf y) { return v_where_greater(x, y, x, y); }
INLINE vf v_min(vf x, vf y) { return v_where_greater(y, x, x, y); }
INLINE vf v_first(vf x, int n) {
    static const int32_t lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < 4; i++) {
        uint32x4_t kept = vcltq_s32(vld1q_s32(lane + 4 * i), vdupq_n_s32(n));
        x.v[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.v[i]), kept));
    }
    return x;
}
#define E(i)                                                                                                  \
    vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x.v[i]),                                            \
                                    vshlq_n_s32(vreinterpretq_s32_f32(shifted.v[i]), 23)))
INLINE vf v_scale2(vf x, vf shifted) { return EACH4(vf, E); }
#undef E
INLINE void v_store_i8(int8_t *p, vf x) {
    int16x8_t low = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.v[0])), vqmovn_s32(vcvtnq_s32_f32(x.v[1])));
    int16x8_t high = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.v[2])), vqmovn_s32(vcvtnq_s32_f32(x.v[3])));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

INLINE vi i_start(int32_t offset, int32_t sum) {
    /* Bytes of 8-bit weights get their sign back (`i_dot8`); those of 4 bits keep their offset. */
    int32x4_t start = vdupq_n_s32(offset == 128 ? 0 : -offset * sum);
    return (vi){{start, start, start, start}};
}
#define E(i) vreinterpretq_s32_u8(vld1q_u8(p + 16 * i))
INLINE vi i_load(const uint8_t *p) { return EACH4(vi, E); }
#undef E
INLINE void i_store(uint8_t *p, vi x) {
    for (int i = 0; i < 4; i++) vst1q_u8(p + 16 * i, vreinterpretq_u8_s32(x.v[i]));
}
#define E(i)                                                                                                  \
    vdotq_s32(acc.v[i], veorq_s8(vreinterpretq_s8_s32(w.v[i]), vdupq_n_s8(-128)), wide)
INLINE vi i_dot8(vi acc, vi w, const int8_t *x) {
    int8x16_t wide = vreinterpretq_s8_s32(vdupq_n_s32(i_quad(x)));
    return EACH4(vi, E);
}
#undef E
#define E(i) vdotq_s32(acc.v[i], vreinterpretq_s8_s32(w.v[i]), wide)
INLINE vi i_dot4(vi acc, vi w, const int8_t *x) {
    int8x16_t wide = vreinterpretq_s8_s32(vdupq_n_s32(i_quad(x)));
    return EACH4(vi, E);
}
#undef E
#define E(i) vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(w.v[i]), vdupq_n_u8(15)))
INLINE vi i_low(vi w) { return EACH4(vi, E); }
#undef E
#define E(i) vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(w.v[i]), 4))
INLINE vi i_high(vi w) { return EACH4(vi, E); }
#undef E
#define E(i) vcvtq_f32_s32(x.v[i])
INLINE vf i_float(vi x) { return EACH4(vf, E); }
#undef E

#else
/* ---------------------------------------------------------------- portable C */
#define TILE_COLUMNS(rows) ((rows) == 1 ? 4 : 1)
#define WIDE_PANEL_ROWS 12
#define DOT_COLUMNS(rows) 1
#define QUAD_BYTES 4 /* of four inputs, beside weights of 8 bits */
#define DOT_ROWS 1

typedef struct { float v[LANES]; } vf;
typedef union { uint8_t b[4 * LANES]; int32_t v[LANES]; } vi;
#define EACH(i) for (int i = 0; i < LANES; i++)

INLINE float f32_of_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t bits_of_f32(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
INLINE float f32_of_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
    if (exponent == 31) return f32_of_bits(sign | 0x7F800000 | fraction << 13);
    if (exponent) return f32_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction * 0x1p-24f;
    return sign ? -small : small;
}
INLINE uint16_t f16_of_f32(float x) {
    uint32_t bits = bits_of_f32(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (rest >> 13 & 0x3FF));
    if (rest >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* rounds to more than 65504 */
    if (rest < 0x38800000) { /* below the smallest normal: a multiple of 2^-24 */
        float scaled = f32_of_bits(rest) * 0x1p24f;
        return (uint16_t)(sign | (uint32_t)rintf(scaled));
    }
    uint32_t rounded = rest + 0xFFF + (rest >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}
INLINE vf v_load(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
INLINE void v_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf v_load_f16(const void *p) {
    uint16_t half[LANES]; vf x; memcpy(half, p, sizeof half);
    EACH(i) x.v[i] = f32_of_f16(half[i]);
    return x;
}
INLINE void v_store_f16(void *p, vf x) {
    uint16_t half[LANES];
    EACH(i) half[i] = f16_of_f32(x.v[i]);
    memcpy(p, half, sizeof half);
}
INLINE vf v_load_bf16(const void *p) {
    uint16_t half[LANES]; vf x; memcpy(half, p, sizeof half);
    EACH(i) x.v[i] = f32_of_bits((uint32_t)half[i] << 16);
    return x;
}
INLINE vf v_load_i8(const void *p) {
    const int8_t *byte = p; vf x;
    EACH(i) x.v[i] = (float)byte[i];
    return x;
}
INLINE vf v_set1(float x) { vf y; EACH(i) y.v[i] = x; return y; }
INLINE vf v_add(vf x, vf y) { EACH(i) x.v[i] += y.v[i]; return x; }
INLINE vf v_sub(vf x, vf y) { EACH(i) x.v[i] -= y.v[i]; return x; }
INLINE vf v_mul(vf x, vf y) { EACH(i) x.v[i] *= y.v[i]; return x; }
INLINE vf v_div(vf x, vf y) { EACH(i) x.v[i] /= y.v[i]; return x; }
INLINE vf v_fma(vf x, vf y, vf z) { EACH(i) z.v[i] = fmaf(x.v[i], y.v[i], z.v[i]); return z; }
INLINE vf v_max(vf x, vf y) { EACH(i) x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i]; return x; }
INLINE vf v_min(vf x, vf y) { EACH(i) x.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i]; return x; }
INLINE vf v_where_greater(vf x, vf y, vf yes, vf no) {
    EACH(i) yes.v[i] = x.v[i] > y.v[i] ? yes.v[i] : no.v[i];
    return yes;
}
INLINE vf v_first(vf x, int n) { for (int i = n < 0 ? 0 : n; i < LANES; i++) x.v[i] = 0; return x; }
INLINE vf v_scale2(vf x, vf shifted) {
    EACH(i) x.v[i] = f32_of_bits(bits_of_f32(x.v[i]) + (bits_of_f32(shifted.v[i]) << 23));
    return x;
}
INLINE void v_store_i8(int8_t *p, vf x) { EACH(i) p[i] = (int8_t)rintf(x.v[i]); }

INLINE vi i_start(int32_t offset, int32_t sum) { vi x; EACH(i) x.v[i] = -offset * sum; return x; }
INLINE vi i_load(const uint8_t *p) { vi x; memcpy(&x, p, sizeof x); return x; }
INLINE void i_store(uint8_t *p, vi x) { memcpy(p, &x, sizeof x); }
INLINE vi i_dot8(vi acc, vi w, const int8_t *x) {
    EACH(i) for (int j = 0; j < 4; j++) acc.v[i] += (int32_t)w.b[4 * i + j] * x[j];
    return acc;
}
INLINE vi i_dot4(vi acc, vi w, const int8_t *x) { return i_dot8(acc, w, x); }
INLINE vi i_low(vi w) { for (int i = 0; i < 4 * LANES; i++) w.b[i] &= 15; return w; }
INLINE vi i_high(vi w) { for (int i = 0; i < 4 * LANES; i++) w.b[i] >>= 4; return w; }
INLINE vf i_float(vi x) { vf y; EACH(i) y.v[i] = (float)x.v[i]; return y; }
#endif

INLINE float v_sum(vf x) { /* a fixed tree: halves, quarters, pairs */
    float lane[LANES];
    v_store(lane, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
INLINE float v_most(vf x) {
    float lane[LANES];
    v_store(lane, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

#endif
