/* kern_neon_pack.c - activations as integers, and products of packed weights with them, for any AArch64 processor (kern_neon_pack.h). */
#include <float.h>

#include "kern_neon_pack.h"

/* 4 x 4 integers of -128 .. 127 as bytes, in order. */
KERN_INLINE int8x16_t narrowed(const int32x4_t *v)
{
    int16x8_t a = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])), b = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
    return vcombine_s8(vmovn_s16(a), vmovn_s16(b));
}

KERN_INLINE int32_t sum_of(const int32x4_t *v)
{
    return vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3])));
}

/* The largest size of n_blocks blocks, or infinity when one of them is no finite number. */
static inline float largest_of(const float *x, size_t n_blocks)
{
    float32x4_t most = vdupq_n_f32(0);
    uint32x4_t good = vdupq_n_u32(UINT32_MAX);
    for (size_t i = 0; i < 8 * n_blocks; i++) {
        float32x4_t size = vabsq_f32(vld1q_f32(x + 4 * i));
        good = vandq_u32(good, vcleq_f32(size, vdupq_n_f32(FLT_MAX)));
        most = vmaxq_f32(most, size);
    }
    return vminvq_u32(good) == 0 ? INFINITY : vmaxvq_f32(most);
}

static inline void quantise_block(const float *x, float scale, float inverse, bool fine, pack_x *out)
{
    int32x4_t v[8], high[8];
    KERN_UNROLL for (int i = 0; i < 8; i++) {
        v[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse));
        high[i] = fine ? vshrq_n_s32(vaddq_s32(v[i], vdupq_n_s32(128)), 8) : v[i];
    }
    int32_t first = sum_of(v), sum = first + sum_of(v + 4);
    out->scale = scale;
    out->sum = (float)sum;
    out->unbias = -128 * sum;
    out->unbias_first = -128 * first;
    vst1q_s8(out->hi, narrowed(high));
    vst1q_s8(out->hi + 16, narrowed(high + 4));
    if (!fine) return;
    KERN_UNROLL for (int i = 0; i < 8; i++) v[i] = vsubq_s32(v[i], vshlq_n_s32(high[i], 8));
    vst1q_s8(out->lo, narrowed(v));
    vst1q_s8(out->lo + 16, narrowed(v + 4));
}

static void pack_x_row(const float *x, size_t n_cols, bool fine, void *out, size_t step)
{
    uint8_t *to = out;
    for (size_t left = n_cols / PACK_COLS; left;) {
        size_t n = kern_min_size(left, PACK_SUPER);
        float most = largest_of(x, n), scale = pack_x_scale(most, fine), inverse = pack_x_inverse(most, fine);
        for (left -= n; n; n--, x += PACK_COLS, to += step) {
            if (most > FLT_MAX) pack_x_broken((pack_x *)(void *)to, fine);
            else quantise_block(x, scale, inverse, fine, (pack_x *)(void *)to);
        }
    }
}

void kern_fill_neon_pack(kern_table *t)
{
    t->pack_x = pack_x_row;
    neon_fill_pack_dots(t);
}
