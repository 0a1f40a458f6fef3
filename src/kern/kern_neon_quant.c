/* kern_neon_quant.c - dequantisation for AArch64.
 *
 * Packed bits become one signed byte a value, in the order of dst; then sixteen at a time are widened, converted and scaled by the reference's own
 * operations.  F32 keeps the reference's copy.  Layouts: kern_ref_quant.c. */
#include "kern.h"
#include "quant_scales.h"

#include <arm_neon.h>

static inline float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

static inline uint16x8_t load_words(const uint8_t *p) /* eight, at any address */
{
    return vreinterpretq_u16_u8(vld1q_u8(p));
}

static void dequant_f16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n >= 8; n -= 8, b += 16, dst += 8) {
        float16x8_t v = vreinterpretq_f16_u16(load_words(b));
        vst1q_f32(dst, vcvt_f32_f16(vget_low_f16(v)));
        vst1q_f32(dst + 4, vcvt_high_f32_f16(v));
    }
    for (size_t i = 0; i < n; i++) {
        kern_f16 h;
        memcpy(&h, b + 2 * i, 2);
        dst[i] = kern_f16_to_f32(h);
    }
}

static void dequant_bf16(const void *src, size_t n, float *dst)
{
    const uint8_t *b = src;
    for (; n >= 8; n -= 8, b += 16, dst += 8) {
        uint16x8_t v = load_words(b);
        vst1q_f32(dst, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)));
        vst1q_f32(dst + 4, vreinterpretq_f32_u32(vshll_high_n_u16(v, 16)));
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)b[2 * i] << 16 | (uint32_t)b[2 * i + 1] << 24;
        memcpy(&dst[i], &bits, 4);
    }
}

/* ---- values to f32 --------------------------------------------------------------------------- */

/* v[0..4): the 16 bytes as floats. */
static inline float32x4x4_t bytes_to_f32(int8x16_t q)
{
    int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_high_s8(q);
    return (float32x4x4_t){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}

/* dst[0..16) = d * q */
static inline void put16(int8x16_t q, float d, float *dst)
{
    float32x4x4_t v = bytes_to_f32(q);
    for (int i = 0; i < 4; i++) vst1q_f32(dst + 4 * i, vmulq_n_f32(v.val[i], d));
}

/* dst[0..16) = d * q + m.  A minimum that is to be subtracted comes negated: a - m and a + (-m) are the same bits. */
static inline void put16_plus(int8x16_t q, float d, float m, float *dst)
{
    float32x4x4_t v = bytes_to_f32(q);
    for (int i = 0; i < 4; i++) vst1q_f32(dst + 4 * i, vaddq_f32(vmulq_n_f32(v.val[i], d), vdupq_n_f32(m)));
}

static inline void put32(int8x16x2_t q, float d, float *dst)
{
    put16(q.val[0], d, dst), put16(q.val[1], d, dst + 16);
}

static inline void put32_plus(int8x16x2_t q, float d, float m, float *dst)
{
    put16_plus(q.val[0], d, m, dst), put16_plus(q.val[1], d, m, dst + 16);
}

/* ---- bits to bytes ------------------------------------------------------------------------------ */

static inline int8x16_t low_nibbles(uint8x16_t v)
{
    return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
}

static inline int8x16_t high_nibbles(uint8x16_t v)
{
    return vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
}

/* The low nibbles of 16 bytes, then the high ones. */
static inline int8x16x2_t nibbles_at(const uint8_t *qs)
{
    uint8x16_t v = vld1q_u8(qs);
    return (int8x16x2_t){{low_nibbles(v), high_nibbles(v)}};
}

/* The same, 16 values each, minus offset. */
static inline int8x16x2_t nibbles_less(const uint8_t *qs, int8_t offset)
{
    int8x16x2_t q = nibbles_at(qs);
    return (int8x16x2_t){{vsubq_s8(q.val[0], vdupq_n_s8(offset)), vsubq_s8(q.val[1], vdupq_n_s8(offset))}};
}

/* `set` in every byte whose bit of the 16 at p is set. */
static inline uint8x16_t spread_bits(const uint8_t *p, uint8_t set)
{
    const uint8x8_t bit_of = vcreate_u8(0x8040201008040201u);
    return vandq_u8(vcombine_u8(vtst_u8(vdup_n_u8(p[0]), bit_of), vtst_u8(vdup_n_u8(p[1]), bit_of)), vdupq_n_u8(set));
}

/* Nibbles at qs with a fifth bit each from the 32 at qh. */
static inline int8x16x2_t five_bits_at(const uint8_t *qh, const uint8_t *qs)
{
    int8x16x2_t q = nibbles_at(qs);
    return (int8x16x2_t){{vorrq_s8(q.val[0], vreinterpretq_s8_u8(spread_bits(qh, 16))), vorrq_s8(q.val[1], vreinterpretq_s8_u8(spread_bits(qh + 2, 16)))}};
}

/* The bits of `mask` of 16 bytes at p, moved right by shift. */
static inline uint8x16_t bits_at(const uint8_t *p, int shift, uint8_t mask)
{
    return vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)-shift)), vdupq_n_u8(mask));
}

/* ---- blocks of 32 ------------------------------------------------------------------------------ */

static void dequant_q4_0(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) put32(nibbles_less(b + 2, 8), half_at(b), dst);
}

static void dequant_q4_1(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 20, dst += 32) put32_plus(nibbles_at(b + 4), half_at(b), half_at(b + 2), dst);
}

static void dequant_q5_0(const void *src, size_t n, float *dst)
{
    const int8x16_t offset = vdupq_n_s8(16);
    for (const uint8_t *b = src; n; n -= 32, b += 22, dst += 32) {
        int8x16x2_t q = five_bits_at(b + 2, b + 6);
        put32((int8x16x2_t){{vsubq_s8(q.val[0], offset), vsubq_s8(q.val[1], offset)}}, half_at(b), dst);
    }
}

static void dequant_q5_1(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 24, dst += 32) put32_plus(five_bits_at(b + 4, b + 8), half_at(b), half_at(b + 2), dst);
}

static void dequant_q8_0(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 32, b += 34, dst += 32) {
        const int8_t *q = (const int8_t *)b + 2;
        put32((int8x16x2_t){{vld1q_s8(q), vld1q_s8(q + 16)}}, half_at(b), dst);
    }
}

/* dst[0..32) = d * the levels that the nibbles at qs name. */
static inline void put_levels(int8x16_t levels, const uint8_t *qs, float d, float *dst)
{
    uint8x16_t v = vld1q_u8(qs);
    put16(vqtbl1q_s8(levels, vandq_u8(v, vdupq_n_u8(15))), d, dst);
    put16(vqtbl1q_s8(levels, vshrq_n_u8(v, 4)), d, dst + 16);
}

static const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t mxfp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void dequant_iq4_nl(const void *src, size_t n, float *dst)
{
    const int8x16_t levels = vld1q_s8(iq4_levels);
    for (const uint8_t *b = src; n; n -= 32, b += 18, dst += 32) put_levels(levels, b + 2, half_at(b), dst);
}

static void dequant_mxfp4(const void *src, size_t n, float *dst)
{
    const int8x16_t levels = vld1q_s8(mxfp4_levels);
    for (const uint8_t *b = src; n; n -= 32, b += 17, dst += 32) {
        uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
        float d;
        memcpy(&d, &bits, 4);
        put_levels(levels, b + 1, d, dst);
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------ */

/* out[0..16) = d * the 16 bytes, of which `offset` is taken off first. */
static inline void scale_all(const uint8_t *bytes, int8_t offset, float d, float out[16])
{
    put16(vsubq_s8(vreinterpretq_s8_u8(vld1q_u8(bytes)), vdupq_n_s8(offset)), d, out);
}

/* dl[0..7] = d * scale, dl[8..15] = -(dmin * minimum). */
static inline void scale_q4_k(const uint8_t *b, float dl[16])
{
    uint8_t bytes[16];
    quant_unpack_q4_k(b + 4, bytes);
    float32x4x4_t v = bytes_to_f32(vreinterpretq_s8_u8(vld1q_u8(bytes)));
    for (int i = 0; i < 4; i++) vst1q_f32(dl + 4 * i, vmulq_n_f32(v.val[i], i < 2 ? half_at(b) : -half_at(b + 2)));
}

static void dequant_q2_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 84, dst += 256) {
        float dl[16], ml[16];
        uint8x16_t scales = vld1q_u8(b);
        put16(low_nibbles(scales), half_at(b + 80), dl);
        put16(high_nibbles(scales), -half_at(b + 82), ml);
        for (int g = 0; g < 16; g++) {
            uint8x16_t q = bits_at(b + 16 + g / 8 * 32 + g % 2 * 16, g % 8 / 2 * 2, 3);
            put16_plus(vreinterpretq_s8_u8(q), dl[g], ml[g], dst + 16 * g);
        }
    }
}

static void dequant_q3_k(const void *src, size_t n, float *dst)
{
    const uint8x16_t four = vdupq_n_u8(4);
    for (const uint8_t *b = src; n; n -= 256, b += 110, dst += 256) {
        uint8_t bytes[16];
        float dl[16];
        quant_unpack_q3_k(b + 96, bytes);
        scale_all(bytes, 32, half_at(b + 108), dl);
        for (int g = 0; g < 16; g++) {
            uint8x16_t q = bits_at(b + 32 + g / 8 * 32 + g % 2 * 16, g % 8 / 2 * 2, 3);
            uint8x16_t third = vtstq_u8(vld1q_u8(b + g % 2 * 16), vdupq_n_u8((uint8_t)(1 << g / 2)));
            put16(vreinterpretq_s8_u8(vsubq_u8(q, vbicq_u8(four, third))), dl[g], dst + 16 * g);
        }
    }
}

static void dequant_q4_k(const void *src, size_t n, float *dst)
{
    for (const uint8_t *b = src; n; n -= 256, b += 144, dst += 256) {
        float dl[16];
        scale_q4_k(b, dl);
        for (int g = 0; g < 8; g += 2) { /* two groups share their bytes */
            uint8x16_t v = vld1q_u8(b + 16 + 16 * g), w = vld1q_u8(b + 32 + 16 * g);
            put32_plus((int8x16x2_t){{low_nibbles(v), low_nibbles(w)}}, dl[g], dl[8 + g], dst + 32 * g);
            put32_plus((int8x16x2_t){{high_nibbles(v), high_nibbles(w)}}, dl[g + 1], dl[9 + g], dst + 32 * g + 32);
        }
    }
}

static void dequant_q5_k(const void *src, size_t n, float *dst)
{
    const uint8x16_t sixteen = vdupq_n_u8(16);
    for (const uint8_t *b = src; n; n -= 256, b += 176, dst += 256) {
        float dl[16];
        scale_q4_k(b, dl);
        for (int g = 0; g < 16; g++) { /* half a group */
            uint8x16_t four = bits_at(b + 48 + g / 4 * 32 + g % 2 * 16, g / 2 % 2 * 4, 15);
            uint8x16_t fifth = vandq_u8(vtstq_u8(vld1q_u8(b + 16 + g % 2 * 16), vdupq_n_u8((uint8_t)(1 << g / 2))), sixteen);
            put16_plus(vreinterpretq_s8_u8(vorrq_u8(four, fifth)), dl[g / 2], dl[8 + g / 2], dst + 16 * g);
        }
    }
}

static void dequant_q6_k(const void *src, size_t n, float *dst)
{
    const int8x16_t offset = vdupq_n_s8(32);
    for (const uint8_t *b = src; n; n -= 256, b += 210, dst += 256) {
        float dl[16];
        scale_all(b + 192, 0, half_at(b + 208), dl);
        for (int g = 0; g < 16; g++) {
            uint8x16_t four = bits_at(b + g / 8 * 64 + g % 4 * 16, g % 8 / 4 * 4, 15);
            uint8x16_t two = bits_at(b + 128 + g / 8 * 32 + g % 2 * 16, g % 8 / 2 * 2, 3);
            put16(vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(four, vshlq_n_u8(two, 4))), offset), dl[g], dst + 16 * g);
        }
    }
}

static void dequant_iq4_xs(const void *src, size_t n, float *dst)
{
    const int8x16_t levels = vld1q_s8(iq4_levels);
    for (const uint8_t *b = src; n; n -= 256, b += 136, dst += 256) {
        uint8_t bytes[16] = {0};
        float dl[16];
        quant_unpack_iq4_xs(b + 2, bytes);
        scale_all(bytes, 32, half_at(b), dl);
        for (int g = 0; g < 8; g++) put_levels(levels, b + 8 + 16 * g, dl[g], dst + 32 * g);
    }
}

void kern_fill_neon_quant(kern_table *t)
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
