/* kern_neon_pack.c - activations as integers, and products of packed weights with them, for any AArch64 processor (kern_neon_pack.h). */
#include <float.h>

#include "kern_neon_pack.h"

/* 4 x 4 integers of -128 .. 127 as bytes, in order. */
KERN_INLINE int8x16_t narrowed(const int32x4_t *v)
{
    int16x8_t a = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])), b = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
    return vcombine_s8(vmovn_s16(a), vmovn_s16(b));
}

static inline float largest_of(const float *x)
{
    float32x4_t most = vdupq_n_f32(0);
    uint32x4_t good = vdupq_n_u32(UINT32_MAX);
    KERN_UNROLL for (int i = 0; i < 8; i++) {
        float32x4_t size = vabsq_f32(vld1q_f32(x + 4 * i));
        good = vandq_u32(good, vcleq_f32(size, vdupq_n_f32(FLT_MAX)));
        most = vmaxq_f32(most, size);
    }
    return vminvq_u32(good) == 0 ? INFINITY : vmaxvq_f32(most);
}

/* The upper byte of v, so that the lower one is signed. */
KERN_INLINE int32x4_t upper(int32x4_t v)
{
    return vshrq_n_s32(vaddq_s32(v, vdupq_n_s32(128)), 8);
}

KERN_INLINE int32x4_t lower(int32x4_t v)
{
    return vsubq_s32(v, vshlq_n_s32(upper(v), 8));
}

static inline void words_of(const float *x, float scale, float inverse, void *to)
{
    pack_words *out = to;
    int32x4_t high[8], low[8];
    int32_t sum[2] = {0, 0};
    KERN_UNROLL for (int i = 0; i < 8; i++) {
        int32x4_t v = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse));
        sum[i / 4] += vaddvq_s32(v);
        high[i] = upper(v);
        low[i] = lower(v);
    }
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        vst1q_s8(out->high + 16 * i, narrowed(high + 4 * i));
        vst1q_s8(out->low + 16 * i, narrowed(low + 4 * i));
    }
    out->scale = scale;
    out->sum = (float)(sum[0] + sum[1]);
    out->unbias = -128 * (sum[0] + sum[1]);
    out->unbias_first = -128 * sum[0];
}

static inline void pairs_of(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *to)
{
    pack_pairs *out = to;
    const pack_lattice l = pack_lattice_of(kind);
    int32x4_t high[8], low[4], sum = vdupq_n_s32(0);
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        float32x4_t y0 = vmulq_n_f32(vld1q_f32(x + 4 * i), inverse), y1 = vmulq_n_f32(vld1q_f32(x + 16 + 4 * i), inverse);
        float32x4_t n = vrndnq_f32(vmulq_n_f32(vsubq_f32(vmulq_n_f32(y0, l.ratio), y1), 1.0f / 256));
        float32x4_t r0 = vsubq_f32(y0, vmulq_n_f32(n, l.across[0])), r1 = vsubq_f32(y1, vmulq_n_f32(n, l.across[1]));
        float32x4_t m = vrndnq_f32(vmulq_n_f32(vaddq_f32(r0, vmulq_n_f32(r1, l.ratio)), l.along));
        int32x4_t v0 = vcvtnq_s32_f32(vaddq_f32(vmulq_n_f32(n, l.across[0]), m)), v1 = vcvtnq_s32_f32(vaddq_f32(vmulq_n_f32(n, l.across[1]), vmulq_n_f32(m, l.ratio)));
        sum = vaddq_s32(sum, vaddq_s32(v0, v1));
        low[i] = lower(v0);
        high[i] = upper(v0);
        high[i + 4] = vshrq_n_s32(vmlsq_n_s32(v1, low[i], pack_ratio(kind)), 8);
    }
    int32_t total = vaddvq_s32(sum);
    vst1q_s8(out->high, narrowed(high));
    vst1q_s8(out->high + 16, narrowed(high + 4));
    vst1q_s8(out->low, narrowed(low));
    out->scale = scale;
    out->sum = (float)(total * (1 << shift));
    out->unbias = total * (kind == PACK_PAIRS_16 ? -8 : -16);
    out->shift = shift;
}

static void x_row(const float *x, size_t n_cols, pack_kind kind, void *out, size_t step)
{
    pack_x_row((pack_x_ops){largest_of, words_of, pairs_of}, x, n_cols, kind, out, step);
}

void kern_fill_neon_pack(kern_table *t)
{
    t->pack_x = x_row;
    neon_fill_pack_dots(t);
}
