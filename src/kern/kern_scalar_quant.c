/* kern_scalar_quant.c - dequantisation in plain C, where that beats the reference's: for processors without a vector kernel of their own.
 *
 * Bits are first unpacked to one signed byte a value, in the order of dst; the byte loops and the scaling loops have constant lengths and
 * no branches, so compilers turn them into whatever vectors the baseline has.  The other types keep the reference.
 * Layouts: kern_ref_quant.c. */
#include "kern.h"
#include "quant_scales.h"

static inline float half_at(const uint8_t *p)
{
    return kern_f16_to_f32((kern_f16)(p[0] | p[1] << 8));
}

/* As kern_f16_to_f32, without branches. */
static void dequant_f16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (size_t i = 0; i < n; i++) {
        uint32_t h = b[2 * i] | (uint32_t)b[2 * i + 1] << 8, magnitude = h & 0x7fffu, bits;
        float subnormal = (float)(int32_t)magnitude * 0x1p-24f;
        memcpy(&bits, &subnormal, 4);
        uint32_t normal = (magnitude << 13) + (112u << 23), special = (magnitude << 13) | 0x7f800000u | (uint32_t)(magnitude > 0x7c00u) << 22;
        bits = magnitude < 0x0400u ? bits : normal;
        bits = magnitude < 0x7c00u ? bits : special;
        bits |= (h & 0x8000u) << 16;
        memcpy(&dst[i], &bits, 4);
    }
}

/* ---- 32 values at a time ------------------------------------------------------------------------ */

/* dst = d * q */
static inline void put16(const int8_t *restrict q, float d, float *restrict dst)
{
    for (int i = 0; i < 16; i++) dst[i] = d * (float)q[i];
}

/* dst = d * q + m.  A minimum that is to be subtracted comes negated: a - m and a + (-m) are the same bits. */
static inline void put16_plus(const int8_t *restrict q, float d, float m, float *restrict dst)
{
    for (int i = 0; i < 16; i++) dst[i] = d * (float)q[i] + m;
}

static inline void put32(const int8_t *q, float d, float *dst)
{
    put16(q, d, dst), put16(q + 16, d, dst + 16);
}

static inline void put32_plus(const int8_t *q, float d, float m, float *dst)
{
    put16_plus(q, d, m, dst), put16_plus(q + 16, d, m, dst + 16);
}

/* The low nibbles of 16 bytes, then the high ones, less offset. */
static inline void unpack_nibbles(const uint8_t *restrict qs, int offset, int8_t *restrict q)
{
    for (int j = 0; j < 16; j++) q[j] = (int8_t)((qs[j] & 15) - offset);
    for (int j = 0; j < 16; j++) q[j + 16] = (int8_t)((qs[j] >> 4) - offset);
}

/* The same with a fifth bit each from the 32 at qh. */
static inline void unpack_five_bits(const uint8_t *restrict qh, const uint8_t *restrict qs, int offset, int8_t *restrict q)
{
    int8_t fifth[32];
    for (int j = 0; j < 32; j++) fifth[j] = (int8_t)((qh[j / 8] >> j % 8 & 1) << 4);
    for (int j = 0; j < 16; j++) q[j] = (int8_t)(((qs[j] & 15) | fifth[j]) - offset);
    for (int j = 0; j < 16; j++) q[j + 16] = (int8_t)(((qs[j] >> 4) | fifth[j + 16]) - offset);
}

static void dequant_q4_0(const void *src, size_t n, float *dst)
{
    int8_t q[32];
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) unpack_nibbles(b + 2, 8, q), put32(q, half_at(b), dst);
}

static void dequant_q4_1(const void *src, size_t n, float *dst)
{
    int8_t q[32];
    for (const uint8_t *b = src; n; n -= 32, b += 20, dst += 32) unpack_nibbles(b + 4, 0, q), put32_plus(q, half_at(b), half_at(b + 2), dst);
}

static void dequant_q5_0(const void *src, size_t n, float *dst)
{
    int8_t q[32];
    for (const uint8_t *b = src; n; n -= 32, b += 22, dst += 32) unpack_five_bits(b + 2, b + 6, 16, q), put32(q, half_at(b), dst);
}

static void dequant_q5_1(const void *src, size_t n, float *dst)
{
    int8_t q[32];
    for (const uint8_t *b = src; n; n -= 32, b += 24, dst += 32)
        unpack_five_bits(b + 4, b + 8, 0, q), put32_plus(q, half_at(b), half_at(b + 2), dst);
}

static void dequant_q8_0(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 34, dst += 32) put32((const int8_t *)b + 2, half_at(b), dst);
}

/* ---- super-blocks of 256 -------------------------------------------------------------------------- */

static void dequant_q2_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 84, dst += 256) {
        float d = half_at(b + 80), dmin = half_at(b + 82);
        for (int g = 0; g < 16; g++) {
            const uint8_t *qs = b + 16 + g / 8 * 32 + g % 2 * 16;
            int shift = g % 8 / 2 * 2;
            int8_t q[16];
            for (int l = 0; l < 16; l++) q[l] = (int8_t)(qs[l] >> shift & 3);
            put16_plus(q, d * (float)(b[g] & 15), -(dmin * (float)(b[g] >> 4)), dst + 16 * g);
        }
    }
}

static void dequant_q3_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 110, dst += 256) {
        uint8_t scales[16];
        quant_unpack_q3_k(b + 96, scales);
        float d = half_at(b + 108);
        for (int g = 0; g < 16; g++) {
            const uint8_t *qs = b + 32 + g / 8 * 32 + g % 2 * 16, *hmask = b + g % 2 * 16;
            int shift = g % 8 / 2 * 2, bit = g / 2;
            int8_t q[16];
            for (int l = 0; l < 16; l++) q[l] = (int8_t)(((qs[l] >> shift & 3) | (hmask[l] >> bit & 1) << 2) - 4);
            put16(q, d * (float)(scales[g] - 32), dst + 16 * g);
        }
    }
}

static void dequant_q4_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 144, dst += 256) {
        uint8_t scales[16];
        quant_unpack_q4_k(b + 4, scales);
        float d = half_at(b), dmin = half_at(b + 2);
        for (int g = 0; g < 8; g++) {
            const uint8_t *qs = b + 16 + g / 2 * 32;
            int shift = g % 2 * 4;
            int8_t q[32];
            for (int l = 0; l < 32; l++) q[l] = (int8_t)(qs[l] >> shift & 15);
            put32_plus(q, d * (float)scales[g], -(dmin * (float)scales[8 + g]), dst + 32 * g);
        }
    }
}

static void dequant_q5_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 176, dst += 256) {
        uint8_t scales[16];
        quant_unpack_q4_k(b + 4, scales);
        float d = half_at(b), dmin = half_at(b + 2);
        for (int g = 0; g < 8; g++) {
            const uint8_t *qh = b + 16, *qs = b + 48 + g / 2 * 32;
            int shift = g % 2 * 4;
            int8_t q[32];
            for (int l = 0; l < 32; l++) q[l] = (int8_t)((qs[l] >> shift & 15) | (qh[l] >> g & 1) << 4);
            put32_plus(q, d * (float)scales[g], -(dmin * (float)scales[8 + g]), dst + 32 * g);
        }
    }
}

static void dequant_q6_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 210, dst += 256) {
        float d = half_at(b + 208);
        for (int g = 0; g < 16; g++) {
            const uint8_t *ql = b + g / 8 * 64 + g % 4 * 16, *qh = b + 128 + g / 8 * 32 + g % 2 * 16;
            int shift = g % 8 / 4 * 4, shift_high = g % 8 / 2 * 2;
            int8_t q[16];
            for (int l = 0; l < 16; l++) q[l] = (int8_t)(((ql[l] >> shift & 15) | (qh[l] >> shift_high & 3) << 4) - 32);
            put16(q, d * (float)(int8_t)b[192 + g], dst + 16 * g);
        }
    }
}

void kern_fill_scalar_quant(kern_table *t)
{
    t->dequant[QUANT_F16] = dequant_f16;
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
}
