/* kern_avx512_quant.c - dequantisation with AVX-512 (F, BW, DQ, VL).
 *
 * Most types of up to five bits are looked up rather than computed: the sixteen (or fewer) values that a block can hold are
 * computed once, by the reference's own operations, and a permute picks them by the packed bits; it ignores the bits above its index, so that nothing
 * has to be masked.  What is left is bound by the stores of dst.  Layouts: kern_ref_quant.c. */
#include "kern.h"
#include "quant_scales.h"

#include <immintrin.h>

static inline __m512 half_at(const uint8_t *p) /* in all lanes */
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)h));
}

static inline __m512 levels_from(float first) /* first, first + 1, ... */
{
    __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_ps(steps, _mm512_set1_ps(first));
}

static inline __m512 levels_of_four(float first) /* first .. first + 3 in every quarter */
{
    return _mm512_add_ps(_mm512_broadcast_f32x4(_mm_setr_ps(0, 1, 2, 3)), _mm512_set1_ps(first));
}

static inline __m512 levels_iq4(void)
{
    return _mm512_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}

static inline __m512i bytes_at(const uint8_t *p) /* 16 bytes, one a lane */
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

static void dequant_f16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n >= 16; n -= 16, b += 32, dst += 16) _mm512_storeu_ps(dst, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)b)));
    __mmask16 rest = (__mmask16)((1u << n) - 1);
    _mm512_mask_storeu_ps(dst, rest, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(rest, b)));
}

static inline __m512 bf16_to_f32(__m256i v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

static void dequant_bf16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n >= 16; n -= 16, b += 32, dst += 16) _mm512_storeu_ps(dst, bf16_to_f32(_mm256_loadu_si256((const __m256i *)b)));
    __mmask16 rest = (__mmask16)((1u << n) - 1);
    _mm512_mask_storeu_ps(dst, rest, bf16_to_f32(_mm256_maskz_loadu_epi16(rest, b)));
}

/* ---- blocks of 32 -------------------------------------------------------------------------- */

/* 32 values from 16 bytes of nibbles. */
static inline void put_nibbles(const uint8_t *qs, __m512 table, float *dst)
{
    __m512i q = bytes_at(qs);
    _mm512_storeu_ps(dst, _mm512_permutexvar_ps(q, table));
    _mm512_storeu_ps(dst + 16, _mm512_permutexvar_ps(_mm512_srli_epi32(q, 4), table));
}

/* 16 values of five bits: the low four of each lane of q, and one of high that chooses the table. */
static inline void put_five_bits(__m512i q, __mmask16 high, __m512 table_low, __m512 table_high, float *dst)
{
    _mm512_storeu_ps(dst, _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(q, table_low), high, q, table_high));
}

static void dequant_q4_0(const void *src, size_t n, float *dst)
{
    const __m512 levels = levels_from(-8);
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) put_nibbles(b + 2, _mm512_mul_ps(half_at(b), levels), dst);
}

static void dequant_q4_1(const void *src, size_t n, float *dst)
{
    const __m512 levels = levels_from(0);
    for (const uint8_t *b = src; n; n -= 32, b += 20, dst += 32)
        put_nibbles(b + 4, _mm512_add_ps(_mm512_mul_ps(half_at(b), levels), half_at(b + 2)), dst);
}

static void dequant_q5_0(const void *src, size_t n, float *dst)
{
    const __m512 low = levels_from(-16), high = levels_from(0);
    for (const uint8_t *b = src; n; n -= 32, b += 22, dst += 32) {
        __m512 d = half_at(b), table_low = _mm512_mul_ps(d, low), table_high = _mm512_mul_ps(d, high);
        uint32_t qh;
        memcpy(&qh, b + 2, 4);
        __m512i q = bytes_at(b + 6);
        put_five_bits(q, (__mmask16)qh, table_low, table_high, dst);
        put_five_bits(_mm512_srli_epi32(q, 4), (__mmask16)(qh >> 16), table_low, table_high, dst + 16);
    }
}

static void dequant_q5_1(const void *src, size_t n, float *dst)
{
    const __m512 low = levels_from(0), high = levels_from(16);
    for (const uint8_t *b = src; n; n -= 32, b += 24, dst += 32) {
        __m512 d = half_at(b), m = half_at(b + 2);
        __m512 table_low = _mm512_add_ps(_mm512_mul_ps(d, low), m), table_high = _mm512_add_ps(_mm512_mul_ps(d, high), m);
        uint32_t qh;
        memcpy(&qh, b + 4, 4);
        __m512i q = bytes_at(b + 8);
        put_five_bits(q, (__mmask16)qh, table_low, table_high, dst);
        put_five_bits(_mm512_srli_epi32(q, 4), (__mmask16)(qh >> 16), table_low, table_high, dst + 16);
    }
}

static inline __m512 signed_bytes_to_f32(__m128i v)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
}

static void dequant_q8_0(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 34, dst += 32) {
        __m512 d = half_at(b);
        for (int i = 0; i < 32; i += 16)
            _mm512_storeu_ps(dst + i, _mm512_mul_ps(signed_bytes_to_f32(_mm_loadu_si128((const __m128i *)(b + 2 + i))), d));
    }
}

static void dequant_iq4_nl(const void *src, size_t n, float *dst)
{
    const __m512 levels = levels_iq4();
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) put_nibbles(b + 2, _mm512_mul_ps(half_at(b), levels), dst);
}

static void dequant_mxfp4(const void *src, size_t n, float *dst)
{
    const __m512 levels = _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    for (const uint8_t *b = src; n; n -= 32, b += 17, dst += 32) {
        uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
        put_nibbles(b + 1, _mm512_mul_ps(_mm512_castsi512_ps(_mm512_set1_epi32((int)bits)), levels), dst);
    }
}

/* ---- super-blocks of 256 --------------------------------------------------------------------
 *
 * The products of the scales are kept in a small array: a broadcast from memory costs no execution port. */

/* out[g] = d * the g-th of 16 bytes, of which `offset` is taken off first. */
static inline void scale_all(__m128i bytes, int offset, __m512 d, float out[16])
{
    _mm512_storeu_ps(out, _mm512_mul_ps(d, signed_bytes_to_f32(_mm_sub_epi8(bytes, _mm_set1_epi8((char)offset)))));
}

/* dl[0..7] = d * scale, dl[8..15] = dmin * minimum. */
static inline void scale_q4_k(const uint8_t *b, float dl[16])
{
    uint8_t bytes[16];
    quant_unpack_q4_k(b + 4, bytes);
    scale_all(_mm_loadu_si128((const __m128i *)bytes), 0, _mm512_mask_blend_ps(0xff00, half_at(b), half_at(b + 2)), dl);
}

static inline __m512 table_with_min(__m512 levels, float dl, float ml)
{
    return _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(dl), levels), _mm512_set1_ps(ml));
}

/* 32 values of one byte: two groups of 16. */
static inline void put_signed(__m256i q, const float dl[2], float *dst)
{
    _mm512_storeu_ps(dst, _mm512_mul_ps(_mm512_set1_ps(dl[0]), signed_bytes_to_f32(_mm256_castsi256_si128(q))));
    _mm512_storeu_ps(dst + 16, _mm512_mul_ps(_mm512_set1_ps(dl[1]), signed_bytes_to_f32(_mm256_extracti128_si256(q, 1))));
}

static void dequant_q2_k(const void *src, size_t n, float *dst)
{
    const __m512 levels = levels_of_four(0);
    for (const uint8_t *b = src; n; n -= 256, b += 84, dst += 256) {
        float dl[16], ml[16];
        __m128i scales = _mm_loadu_si128((const __m128i *)b), nibble = _mm_set1_epi8(15);
        scale_all(_mm_and_si128(scales, nibble), 0, half_at(b + 80), dl);
        scale_all(_mm_and_si128(_mm_srli_epi16(scales, 4), nibble), 0, half_at(b + 82), ml);
        for (int part = 0; part < 4; part++) { /* 16 bytes of qs are four groups; a permute within quarters looks at two bits */
            __m512i q = bytes_at(b + 16 + 16 * part);
            for (int s = 0; s < 4; s++, q = _mm512_srli_epi32(q, 2)) {
                int g = part / 2 * 8 + part % 2 + 2 * s;
                _mm512_storeu_ps(dst + 16 * g, _mm512_permutevar_ps(table_with_min(levels, dl[g], ml[g]), q));
            }
        }
    }
}

static void dequant_q3_k(const void *src, size_t n, float *dst)
{
    const __m256i two_bits = _mm256_set1_epi8(3), four = _mm256_set1_epi8(4);
    for (const uint8_t *b = src; n; n -= 256, b += 110, dst += 256) {
        uint8_t bytes[16];
        float dl[16];
        quant_unpack_q3_k(b + 96, bytes);
        scale_all(_mm_loadu_si128((const __m128i *)bytes), 32, half_at(b + 108), dl);
        __m256i hmask = _mm256_loadu_si256((const __m256i *)b);
        for (int half = 0; half < 2; half++) {
            __m256i qs = _mm256_loadu_si256((const __m256i *)(b + 32 + 32 * half));
            for (int s = 0; s < 4; s++, qs = _mm256_srli_epi16(qs, 2)) {
                int pair = 4 * half + s;
                __mmask32 is_low = _mm256_testn_epi8_mask(hmask, _mm256_set1_epi8((char)(1 << pair)));
                __m256i q = _mm256_and_si256(qs, two_bits);
                put_signed(_mm256_mask_sub_epi8(q, is_low, q, four), dl + 2 * pair, dst + 32 * pair);
            }
        }
    }
}

static void dequant_q4_k(const void *src, size_t n, float *dst)
{
    const __m512 levels = levels_from(0);
    for (const uint8_t *b = src; n; n -= 256, b += 144, dst += 256) {
        float dl[16];
        scale_q4_k(b, dl);
        for (int g = 0; g < 8; g += 2) { /* two groups share their bytes */
            const uint8_t *qs = b + 16 + 16 * g;
            __m512i q0 = bytes_at(qs), q1 = bytes_at(qs + 16);
            __m512 even = table_with_min(levels, dl[g], dl[8 + g]), odd = table_with_min(levels, dl[g + 1], dl[9 + g]);
            _mm512_storeu_ps(dst + 32 * g, _mm512_permutexvar_ps(q0, even));
            _mm512_storeu_ps(dst + 32 * g + 16, _mm512_permutexvar_ps(q1, even));
            _mm512_storeu_ps(dst + 32 * g + 32, _mm512_permutexvar_ps(_mm512_srli_epi32(q0, 4), odd));
            _mm512_storeu_ps(dst + 32 * g + 48, _mm512_permutexvar_ps(_mm512_srli_epi32(q1, 4), odd));
        }
    }
}

static void dequant_q5_k(const void *src, size_t n, float *dst)
{
    const __m512 low = levels_from(0), high = levels_from(16);
    for (const uint8_t *b = src; n; n -= 256, b += 176, dst += 256) {
        float dl[16];
        scale_q4_k(b, dl);
        __m256i qh = _mm256_loadu_si256((const __m256i *)(b + 16));
        for (int g = 0; g < 8; g++) {
            const uint8_t *qs = b + 48 + g / 2 * 32;
            unsigned shift = (unsigned)(g % 2 * 4);
            __mmask32 fifth = _mm256_test_epi8_mask(qh, _mm256_set1_epi8((char)(1 << g)));
            __m512 table_low = table_with_min(low, dl[g], dl[8 + g]), table_high = table_with_min(high, dl[g], dl[8 + g]);
            put_five_bits(_mm512_srli_epi32(bytes_at(qs), shift), (__mmask16)fifth, table_low, table_high, dst + 32 * g);
            put_five_bits(_mm512_srli_epi32(bytes_at(qs + 16), shift), (__mmask16)(fifth >> 16), table_low, table_high, dst + 32 * g + 16);
        }
    }
}

/* 32 values of six bits, from bytes whose low nibble holds four and from bytes whose bits 4 and 5 hold two. */
static inline void put_six_bits(__m256i four, __m256i two, const float dl[2], float *dst)
{
    __m256i q = _mm256_or_si256(_mm256_and_si256(four, _mm256_set1_epi8(15)), _mm256_and_si256(two, _mm256_set1_epi8(0x30)));
    put_signed(_mm256_sub_epi8(q, _mm256_set1_epi8(32)), dl, dst);
}

static void dequant_q6_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 210, dst += 256) {
        float dl[16];
        scale_all(_mm_loadu_si128((const __m128i *)(b + 192)), 0, half_at(b + 208), dl);
        for (int half = 0; half < 2; half++) {
            __m256i l0 = _mm256_loadu_si256((const __m256i *)(b + 64 * half)), l1 = _mm256_loadu_si256((const __m256i *)(b + 64 * half + 32));
            __m256i h = _mm256_loadu_si256((const __m256i *)(b + 128 + 32 * half));
            const float *scale = dl + 8 * half;
            float *out = dst + 128 * half;
            put_six_bits(l0, _mm256_slli_epi16(h, 4), scale, out);
            put_six_bits(l1, _mm256_slli_epi16(h, 2), scale + 2, out + 32);
            put_six_bits(_mm256_srli_epi16(l0, 4), h, scale + 4, out + 64);
            put_six_bits(_mm256_srli_epi16(l1, 4), _mm256_srli_epi16(h, 2), scale + 6, out + 96);
        }
    }
}

static void dequant_iq4_xs(const void *src, size_t n, float *dst)
{
    const __m512 levels = levels_iq4();
    for (const uint8_t *b = src; n; n -= 256, b += 136, dst += 256) {
        uint8_t bytes[8];
        float dl[16];
        quant_unpack_iq4_xs(b + 2, bytes);
        scale_all(_mm_loadl_epi64((const __m128i *)bytes), 32, half_at(b), dl);
        for (int g = 0; g < 8; g++) put_nibbles(b + 8 + 16 * g, _mm512_mul_ps(_mm512_set1_ps(dl[g]), levels), dst + 32 * g);
    }
}

void kern_fill_avx512_quant(kern_table *t)
{
    t->dequant[QUANT_F16] = dequant_f16;
    t->dequant[QUANT_BF16] = dequant_bf16;
    t->dequant[QUANT_Q4_0] = dequant_q4_0;
    t->dequant[QUANT_Q4_1] = dequant_q4_1;
    t->dequant[QUANT_Q5_0] = dequant_q5_0;
    t->dequant[QUANT_Q5_1] = dequant_q5_1;
    t->dequant[QUANT_Q8_0] = dequant_q8_0;
    t->dequant[QUANT_Q2_K] = dequant_q2_k;
    t->dequant[QUANT_Q3_K] = dequant_q3_k;
    t->dequant[QUANT_Q4_K] = dequant_q4_k;
    t->dequant[QUANT_Q5_K] = dequant_q5_k;
    t->dequant[QUANT_Q6_K] = dequant_q6_k;
    t->dequant[QUANT_IQ4_NL] = dequant_iq4_nl;
    t->dequant[QUANT_IQ4_XS] = dequant_iq4_xs;
    t->dequant[QUANT_MXFP4] = dequant_mxfp4;
}
