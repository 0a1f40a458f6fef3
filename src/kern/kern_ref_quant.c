/* kern_ref_quant.c - dequantisation, slow and obvious: what every other ISA must reproduce bit for bit.
 *
 * A weight tensor is a plain run of blocks of 1, 32 or 256 values; numbers of more than one byte are little-endian and nothing is aligned.
 * The order of operations is part of the contract: every product and every sum is rounded on its own, scales are multiplied together
 * first, products come before sums.  Of the computed values only MXFP4's can be f32 subnormals (scales that no real model uses); where those are
 * flushed they are zero.
 *
 * In the layouts below d and m are halves unless said otherwise, and [n] counts bytes. */
#include "kern.h"

#include <string.h>

static float half_at(const uint8_t *p)
{
    return kern_f16_to_f32((kern_f16)(p[0] | p[1] << 8));
}

static void dequant_f32(const void *src, size_t n, float *dst)
{
    if (n) memcpy(dst, src, n * sizeof *dst);
}

static void dequant_f16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (size_t i = 0; i < n; i++) dst[i] = half_at(b + 2 * i);
}

/* The upper half of an f32. */
static void dequant_bf16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)b[2 * i] << 16 | (uint32_t)b[2 * i + 1] << 24;
        memcpy(&dst[i], &bits, 4);
    }
}

/* ---- blocks of 32 ----------------------------------------------------------------------
 *
 * Four-bit values lie in qs[16]: the low nibble of qs[j] is value j, the high nibble value j + 16.  The fifth bit of value j is bit j of
 * the 32-bit qh. */

/* | d | qs[16] |   d * (q - 8) */
static void dequant_q4_0(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 32, b += 18, dst += 32) {
        float d = half_at(b);
        const uint8_t *qs = b + 2;
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)((qs[j] & 15) - 8);
            dst[j + 16] = d * (float)((qs[j] >> 4) - 8);
        }
    }
}

/* | d | m | qs[16] |   d * q + m */
static void dequant_q4_1(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 32, b += 20, dst += 32) {
        float d = half_at(b), m = half_at(b + 2);
        const uint8_t *qs = b + 4;
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)(qs[j] & 15) + m;
            dst[j + 16] = d * (float)(qs[j] >> 4) + m;
        }
    }
}

/* Value j of a block with five-bit values, 0 .. 31. */
static int five_bits(const uint8_t *qh, const uint8_t *qs, int j)
{
    int nibble = j < 16 ? qs[j] & 15 : qs[j - 16] >> 4;
    return nibble | (qh[j / 8] >> j % 8 & 1) << 4;
}

/* | d | qh[4] | qs[16] |   d * (q - 16) */
static void dequant_q5_0(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 32, b += 22, dst += 32) {
        float d = half_at(b);
        for (int j = 0; j < 32; j++) dst[j] = d * (float)(five_bits(b + 2, b + 6, j) - 16);
    }
}

/* | d | m | qh[4] | qs[16] |   d * q + m */
static void dequant_q5_1(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 32, b += 24, dst += 32) {
        float d = half_at(b), m = half_at(b + 2);
        for (int j = 0; j < 32; j++) dst[j] = d * (float)five_bits(b + 4, b + 8, j) + m;
    }
}

/* | d | q[32], signed |   q * d */
static void dequant_q8_0(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 32, b += 34, dst += 32) {
        float d = half_at(b);
        for (int j = 0; j < 32; j++) dst[j] = (float)(int8_t)b[2 + j] * d;
    }
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* | d | qs[16] |   d * values[q]: the sixteen levels are not evenly spaced */
static void dequant_iq4_nl(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 32, b += 18, dst += 32) {
        float d = half_at(b);
        const uint8_t *qs = b + 2;
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)iq4_values[qs[j] & 15];
            dst[j + 16] = d * (float)iq4_values[qs[j] >> 4];
        }
    }
}

/* | e[1] | qs[16] |   2^(e - 128) * twice the value of a four-bit float (sign 1, exponent 2, fraction 1) */
static void dequant_mxfp4(const void *src, size_t n, float *dst)
{
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const uint8_t *b = src;
    for (; n; n -= 32, b += 17, dst += 32) {
        uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
        float d;
        memcpy(&d, &bits, 4);
        const uint8_t *qs = b + 1;
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)doubled[qs[j] & 15];
            dst[j + 16] = d * (float)doubled[qs[j] >> 4];
        }
    }
}

/* ---- super-blocks of 256: scales of scales -------------------------------------------------- */

/* | scales[16] | qs[64] | d | dmin |   (d * sc) * q - (dmin * mn)
 *
 * Group g of 16 values has sc in the low and mn in the high nibble of scales[g].  Each half of 128 values owns 32 bytes of qs; bits 2s, 2s+1 of its
 * byte l are value 32 s + l of the half. */
static void dequant_q2_k(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 256, b += 84, dst += 256) {
        const uint8_t *scales = b, *qs = b + 16;
        float d = half_at(b + 80), dmin = half_at(b + 82);
        for (int i = 0; i < 256; i++) {
            float dl = d * (float)(scales[i / 16] & 15), ml = dmin * (float)(scales[i / 16] >> 4);
            int q = qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
            dst[i] = dl * (float)q - ml;
        }
    }
}

/* | hmask[32] | qs[64] | scales[12] | d |   (d * (sc - 32)) * (q - (h ? 0 : 4))
 *
 * q as in Q2_K; h of value 32 i + l is bit i of hmask[l].  The sixteen six-bit sc: the low four bits of number g are in the low (g < 8) or high
 * nibble of scales[g % 8], its upper two are bits 2 (g / 4), 2 (g / 4) + 1 of scales[8 + g % 4]. */
static void dequant_q3_k(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 256, b += 110, dst += 256) {
        const uint8_t *hmask = b, *qs = b + 32, *scales = b + 96;
        float d = half_at(b + 108);
        for (int i = 0; i < 256; i++) {
            int g = i / 16;
            int sc = (scales[g % 8] >> g / 8 * 4 & 15) | (scales[8 + g % 4] >> g / 4 * 2 & 3) << 4;
            int q = (qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - (hmask[i % 32] >> i / 32 & 1 ? 0 : 4);
            dst[i] = d * (float)(sc - 32) * (float)q;
        }
    }
}

/* Scale and minimum, six bits each, of group g of 32 values of Q4_K and Q5_K:
 *
 *   byte 0-3   EEAAAAAA   sc of groups 0-3, and the upper two bits of sc of groups 4-7
 *   byte 4-7   eeaaaaaa   mn likewise
 *   byte 8-11  eeeeEEEE   the lower four bits of mn and sc of groups 4-7 */
static void scale_min(const uint8_t *scales, int g, int *sc, int *mn)
{
    if (g < 4) *sc = scales[g] & 63, *mn = scales[4 + g] & 63;
    else *sc = (scales[4 + g] & 15) | scales[g - 4] >> 6 << 4, *mn = scales[4 + g] >> 4 | scales[g] >> 6 << 4;
}

/* | d | dmin | scales[12] | qs[128] |   (d * sc) * q - (dmin * mn)
 *
 * 32 bytes of qs hold two groups: the low nibbles the even one, the high nibbles the odd one. */
static void dequant_q4_k(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 256, b += 144, dst += 256) {
        float d = half_at(b), dmin = half_at(b + 2);
        for (int g = 0; g < 8; g++) {
            int sc, mn;
            scale_min(b + 4, g, &sc, &mn);
            const uint8_t *qs = b + 16 + g / 2 * 32;
            float dl = d * (float)sc, ml = dmin * (float)mn;
            for (int l = 0; l < 32; l++) dst[32 * g + l] = dl * (float)(qs[l] >> g % 2 * 4 & 15) - ml;
        }
    }
}

/* | d | dmin | scales[12] | qh[32] | qs[128] |   as Q4_K; the fifth bit of value l of group g is bit g of qh[l] */
static void dequant_q5_k(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 256, b += 176, dst += 256) {
        float d = half_at(b), dmin = half_at(b + 2);
        for (int g = 0; g < 8; g++) {
            int sc, mn;
            scale_min(b + 4, g, &sc, &mn);
            const uint8_t *qh = b + 16, *qs = b + 48 + g / 2 * 32;
            float dl = d * (float)sc, ml = dmin * (float)mn;
            for (int l = 0; l < 32; l++) dst[32 * g + l] = dl * (float)((qs[l] >> g % 2 * 4 & 15) | (qh[l] >> g & 1) << 4) - ml;
        }
    }
}

/* | ql[128] | qh[64] | scales[16], signed | d |   (d * scales[g]) * (q - 32), groups of 16
 *
 * Each half of 128 values owns 64 bytes of ql (low nibbles: its first 64 values, high nibbles: the others) and 32 bytes of qh (bits 2s, 2s+1
 * of byte l: the upper two bits of value 32 s + l). */
static void dequant_q6_k(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 256, b += 210, dst += 256) {
        const int8_t *scales = (const int8_t *)b + 192;
        float d = half_at(b + 208);
        for (int i = 0; i < 256; i++) {
            const uint8_t *ql = b + i / 128 * 64, *qh = b + 128 + i / 128 * 32;
            int q = (ql[i % 64] >> i % 128 / 64 * 4 & 15) | (qh[i % 32] >> i % 128 / 32 * 2 & 3) << 4;
            dst[i] = d * (float)scales[i / 16] * (float)(q - 32);
        }
    }
}

/* | d | scales_h[2] | scales_l[4] | qs[128] |   (d * (sc - 32)) * values[q], groups of 32
 *
 * sc of group g: the low four bits are nibble g of scales_l, the upper two are bits 2g, 2g+1 of scales_h.  A group's qs are as in IQ4_NL. */
static void dequant_iq4_xs(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n; n -= 256, b += 136, dst += 256) {
        float d = half_at(b);
        int scales_h = b[2] | b[3] << 8;
        for (int g = 0; g < 8; g++) {
            int sc = (b[4 + g / 2] >> g % 2 * 4 & 15) | (scales_h >> 2 * g & 3) << 4;
            float dl = d * (float)(sc - 32);
            const uint8_t *qs = b + 8 + 16 * g;
            for (int j = 0; j < 16; j++) {
                dst[32 * g + j] = dl * (float)iq4_values[qs[j] & 15];
                dst[32 * g + j + 16] = dl * (float)iq4_values[qs[j] >> 4];
            }
        }
    }
}

void kern_fill_ref_quant(kern_table *t)
{
    t->dequant[QUANT_F32] = dequant_f32;
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
