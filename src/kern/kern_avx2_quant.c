/* kern_avx2_quant.c - dequantisation with AVX2 and F16C.
 *
 * Packed bits become one signed byte a value, in the order of dst; then sixteen at a time are widened, converted and scaled by the reference's own
 * operations.  F32 keeps the reference's copy.  Layouts: kern_ref_quant.c. */
#include "kern.h"
#include "quant_scales.h"

#include <immintrin.h>

static inline __m256 half_at(const uint8_t *p) /* in all lanes */
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _mm256_cvtph_ps(_mm_set1_epi16((short)h));
}

static inline __m128i load16(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

static inline __m256i load32(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

static void dequant_f16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n >= 8; n -= 8, b += 16, dst += 8) _mm256_storeu_ps(dst, _mm256_cvtph_ps(load16(b)));
    for (size_t i = 0; i < n; i++) {
        kern_f16 h;
        memcpy(&h, b + 2 * i, 2);
        dst[i] = kern_f16_to_f32(h);
    }
}

static void dequant_bf16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n >= 8; n -= 8, b += 16, dst += 8) _mm256_storeu_ps(dst, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(b)), 16)));
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)b[2 * i] << 16 | (uint32_t)b[2 * i + 1] << 24;
        memcpy(&dst[i], &bits, 4);
    }
}

/* ---- values to f32 --------------------------------------------------------------------------- */

static inline __m256 low_bytes_to_f32(__m128i q)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

/* dst[0..16) = d * q */
static inline void put16(__m128i q, __m256 d, float *dst)
{
    _mm256_storeu_ps(dst, _mm256_mul_ps(d, low_bytes_to_f32(q)));
    _mm256_storeu_ps(dst + 8, _mm256_mul_ps(d, low_bytes_to_f32(_mm_unpackhi_epi64(q, q))));
}

/* dst[0..16) = d * q + m.  A minimum that is to be subtracted comes negated: a - m and a + (-m) are the same bits. */
static inline void put16_plus(__m128i q, __m256 d, __m256 m, float *dst)
{
    _mm256_storeu_ps(dst, _mm256_add_ps(_mm256_mul_ps(d, low_bytes_to_f32(q)), m));
    _mm256_storeu_ps(dst + 8, _mm256_add_ps(_mm256_mul_ps(d, low_bytes_to_f32(_mm_unpackhi_epi64(q, q))), m));
}

static inline void put32(__m256i q, __m256 d, float *dst)
{
    put16(_mm256_castsi256_si128(q), d, dst);
    put16(_mm256_extracti128_si256(q, 1), d, dst + 16);
}

static inline void put32_plus(__m256i q, __m256 d, __m256 m, float *dst)
{
    put16_plus(_mm256_castsi256_si128(q), d, m, dst);
    put16_plus(_mm256_extracti128_si256(q, 1), d, m, dst + 16);
}

/* ---- blocks of 32 ------------------------------------------------------------------------------ */

/* The low nibbles of 16 bytes, then the high ones. */
static inline __m256i nibbles_at(const uint8_t *qs)
{
    __m128i v = load16(qs);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
}

/* 16 in every byte whose bit of the 32 at p is set. */
static inline __m256i fifth_bits_at(const uint8_t *p)
{
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x((long long)0x8040201008040201u);
    int bits;
    memcpy(&bits, p, 4);
    __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte_of), bit_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit_of), _mm256_set1_epi8(16));
}

static void dequant_q4_0(const void *src, size_t n, float *dst)
{
    const __m256i offset = _mm256_set1_epi8(8);
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) put32(_mm256_sub_epi8(nibbles_at(b + 2), offset), half_at(b), dst);
}

static void dequant_q4_1(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 20, dst += 32) put32_plus(nibbles_at(b + 4), half_at(b), half_at(b + 2), dst);
}

static void dequant_q5_0(const void *src, size_t n, float *dst)
{
    const __m256i offset = _mm256_set1_epi8(16);
    for (const uint8_t *b = src; n; n -= 32, b += 22, dst += 32)
        put32(_mm256_sub_epi8(_mm256_or_si256(nibbles_at(b + 6), fifth_bits_at(b + 2)), offset), half_at(b), dst);
}

static void dequant_q5_1(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 24, dst += 32)
        put32_plus(_mm256_or_si256(nibbles_at(b + 8), fifth_bits_at(b + 4)), half_at(b), half_at(b + 2), dst);
}

static void dequant_q8_0(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 34, dst += 32) {
        __m256 d = half_at(b);
        for (int i = 0; i < 32; i += 8) _mm256_storeu_ps(dst + i, _mm256_mul_ps(low_bytes_to_f32(_mm_loadl_epi64((const __m128i *)(b + 2 + i))), d));
    }
}

static inline __m256i levels_iq4(void)
{
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113));
}

static void dequant_iq4_nl(const void *src, size_t n, float *dst)
{
    const __m256i levels = levels_iq4();
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) put32(_mm256_shuffle_epi8(levels, nibbles_at(b + 2)), half_at(b), dst);
}

static void dequant_mxfp4(const void *src, size_t n, float *dst)
{
    const __m256i levels = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    for (const uint8_t *b = src; n; n -= 32, b += 17, dst += 32) {
        uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
        put32(_mm256_shuffle_epi8(levels, nibbles_at(b + 1)), _mm256_castsi256_ps(_mm256_set1_epi32((int)bits)), dst);
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------
 *
 * The products of the scales are kept in a small array: a broadcast from memory costs no execution port. */

/* out[0..16) = d * the 16 bytes, of which `offset` is taken off first. */
static inline void scale_all(__m128i bytes, int offset, __m256 d, float out[16])
{
    put16(_mm_sub_epi8(bytes, _mm_set1_epi8((char)offset)), d, out);
}

static inline __m256 negate(__m256 v)
{
    return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}

/* dl[0..7] = d * scale, dl[8..15] = -(dmin * minimum). */
static inline void scale_q4_k(const uint8_t *b, float dl[16])
{
    uint8_t bytes[16];
    quant_unpack_q4_k(b + 4, bytes);
    __m128i v = load16(bytes);
    _mm256_storeu_ps(dl, _mm256_mul_ps(half_at(b), low_bytes_to_f32(v)));
    _mm256_storeu_ps(dl + 8, _mm256_mul_ps(negate(half_at(b + 2)), low_bytes_to_f32(_mm_unpackhi_epi64(v, v))));
}

static void dequant_q2_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 84, dst += 256) {
        float dl[16], ml[16];
        __m128i scales = load16(b), nibble = _mm_set1_epi8(15);
        scale_all(_mm_and_si128(scales, nibble), 0, half_at(b + 80), dl);
        scale_all(_mm_and_si128(_mm_srli_epi16(scales, 4), nibble), 0, negate(half_at(b + 82)), ml);
        for (int g = 0; g < 16; g += 2) {
            __m256i q = _mm256_and_si256(_mm256_srli_epi16(load32(b + 16 + g / 8 * 32), g % 8), _mm256_set1_epi8(3));
            put16_plus(_mm256_castsi256_si128(q), _mm256_set1_ps(dl[g]), _mm256_set1_ps(ml[g]), dst + 16 * g);
            put16_plus(_mm256_extracti128_si256(q, 1), _mm256_set1_ps(dl[g + 1]), _mm256_set1_ps(ml[g + 1]), dst + 16 * g + 16);
        }
    }
}

static void dequant_q3_k(const void *src, size_t n, float *dst)
{
    const __m256i four = _mm256_set1_epi8(4);
    for (const uint8_t *b = src; n; n -= 256, b += 110, dst += 256) {
        uint8_t bytes[16];
        float dl[16];
        quant_unpack_q3_k(b + 96, bytes);
        scale_all(load16(bytes), 32, half_at(b + 108), dl);
        __m256i hmask = load32(b);
        for (int g = 0; g < 16; g += 2) {
            __m256i q = _mm256_and_si256(_mm256_srli_epi16(load32(b + 32 + g / 8 * 32), g % 8), _mm256_set1_epi8(3));
            __m256i bit = _mm256_and_si256(hmask, _mm256_set1_epi8((char)(1 << g / 2)));
            q = _mm256_sub_epi8(q, _mm256_and_si256(_mm256_cmpeq_epi8(bit, _mm256_setzero_si256()), four));
            put16(_mm256_castsi256_si128(q), _mm256_set1_ps(dl[g]), dst + 16 * g);
            put16(_mm256_extracti128_si256(q, 1), _mm256_set1_ps(dl[g + 1]), dst + 16 * g + 16);
        }
    }
}

static void dequant_q4_k(const void *src, size_t n, float *dst)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    for (const uint8_t *b = src; n; n -= 256, b += 144, dst += 256) {
        float dl[16];
        scale_q4_k(b, dl);
        for (int g = 0; g < 8; g += 2) { /* two groups share their bytes */
            __m256i v = load32(b + 16 + 16 * g);
            put32_plus(_mm256_and_si256(v, nibble), _mm256_set1_ps(dl[g]), _mm256_set1_ps(dl[8 + g]), dst + 32 * g);
            v = _mm256_srli_epi16(v, 4);
            put32_plus(_mm256_and_si256(v, nibble), _mm256_set1_ps(dl[g + 1]), _mm256_set1_ps(dl[9 + g]), dst + 32 * g + 32);
        }
    }
}

static void dequant_q5_k(const void *src, size_t n, float *dst)
{
    const __m256i nibble = _mm256_set1_epi8(15), sixteen = _mm256_set1_epi8(16);
    for (const uint8_t *b = src; n; n -= 256, b += 176, dst += 256) {
        float dl[16];
        scale_q4_k(b, dl);
        __m256i qh = load32(b + 16);
        for (int g = 0; g < 8; g++) {
            __m256i four = _mm256_and_si256(_mm256_srli_epi16(load32(b + 48 + g / 2 * 32), g % 2 * 4), nibble);
            __m256i bit = _mm256_set1_epi8((char)(1 << g));
            __m256i fifth = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(qh, bit), bit), sixteen);
            put32_plus(_mm256_or_si256(four, fifth), _mm256_set1_ps(dl[g]), _mm256_set1_ps(dl[8 + g]), dst + 32 * g);
        }
    }
}

/* 32 values of six bits, from bytes whose low nibble holds four and from bytes whose bits 4 and 5 hold two. */
static inline void put_six_bits(__m256i four, __m256i two, const float dl[2], float *dst)
{
    __m256i q = _mm256_or_si256(_mm256_and_si256(four, _mm256_set1_epi8(15)), _mm256_and_si256(two, _mm256_set1_epi8(0x30)));
    q = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
    put16(_mm256_castsi256_si128(q), _mm256_set1_ps(dl[0]), dst);
    put16(_mm256_extracti128_si256(q, 1), _mm256_set1_ps(dl[1]), dst + 16);
}

static void dequant_q6_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 210, dst += 256) {
        float dl[16];
        scale_all(load16(b + 192), 0, half_at(b + 208), dl);
        for (int half = 0; half < 2; half++) {
            __m256i l0 = load32(b + 64 * half), l1 = load32(b + 64 * half + 32), h = load32(b + 128 + 32 * half);
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
    const __m256i levels = levels_iq4();
    for (const uint8_t *b = src; n; n -= 256, b += 136, dst += 256) {
        uint8_t bytes[16] = {0};
        float dl[16];
        quant_unpack_iq4_xs(b + 2, bytes);
        scale_all(load16(bytes), 32, half_at(b), dl);
        for (int g = 0; g < 8; g++) put32(_mm256_shuffle_epi8(levels, nibbles_at(b + 8 + 16 * g)), _mm256_set1_ps(dl[g]), dst + 32 * g);
    }
}

void kern_fill_avx2_quant(kern_table *t)
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
