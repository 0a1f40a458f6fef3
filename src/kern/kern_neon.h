/* kern_neon.h - pieces that the NEON kernels share: the lane tree, the exponential, short loads (kern_simd.h says what they must compute).
 *
 * The 16 lanes of a sum are four vectors, the quarters: lanes 0-3, 4-7, 8-11 and 12-15.  A register tile is always 16 vectors: few sums keep all
 * their quarters at once, many keep one and pass over the data four times.  Which it was cannot be told from the result. */
#ifndef SPW_KERN_NEON_H
#define SPW_KERN_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "kern_simd.h"

enum { NEON_LANES = 4, NEON_QUARTERS = 4, NEON_TILE = 16, NEON_COLUMNS = 4 }; /* lanes; quarters; vectors of a tile; outputs or positions of a tile */

/* Four lane sums at once: lane i of the result is the tree over the quarters q[4 i .. 4 i + 3]. */
KERN_INLINE float32x4_t neon_fold4(const float32x4_t *q)
{
    float64x2_t v[4];
    KERN_UNROLL for (int i = 0; i < 4; i++)
        v[i] = vreinterpretq_f64_f32(vaddq_f32(vaddq_f32(q[4 * i], q[4 * i + 2]), vaddq_f32(q[4 * i + 1], q[4 * i + 3])));
    float32x4_t a = vaddq_f32(vreinterpretq_f32_f64(vtrn1q_f64(v[0], v[1])), vreinterpretq_f32_f64(vtrn2q_f64(v[0], v[1])));
    float32x4_t b = vaddq_f32(vreinterpretq_f32_f64(vtrn1q_f64(v[2], v[3])), vreinterpretq_f32_f64(vtrn2q_f64(v[2], v[3])));
    return vpaddq_f32(a, b);
}

/* One lane sum, the same tree. */
KERN_INLINE float neon_fold(const float32x4_t *q)
{
    float32x4_t v = vaddq_f32(vaddq_f32(q[0], q[2]), vaddq_f32(q[1], q[3]));
    float32x2_t h = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(h, 0) + vget_lane_f32(h, 1);
}

/* Maxima take the number where the other is none, as those of AVX do here. */
KERN_INLINE float32x4_t neon_exp(float32x4_t d)
{
    float32x4_t least = vdupq_n_f32(KERN_EXP_MIN), one = vdupq_n_f32(1.0f), x = vmaxnmq_f32(d, least);
    float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(KERN_LOG2E)));
    float32x4_t r = vfmsq_f32(vfmsq_f32(x, n, vdupq_n_f32(KERN_LN2_HIGH)), n, vdupq_n_f32(KERN_LN2_LOW));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(KERN_EXP_C6), vdupq_n_f32(KERN_EXP_C7), r);
    p = vfmaq_f32(vdupq_n_f32(KERN_EXP_C5), p, r);
    p = vfmaq_f32(vdupq_n_f32(KERN_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(KERN_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(one, p, r);
    p = vfmaq_f32(one, p, r);
    int32x4_t scale = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    uint32x4_t kept = vandq_u32(vcgeq_f32(d, least), vreinterpretq_u32_f32(vmulq_f32(p, vreinterpretq_f32_s32(scale))));
    return vreinterpretq_f32_u32(kept);
}

/* The first n <= 4 floats at p, zeros behind them. */
KERN_INLINE float32x4_t neon_load_first(const float *p, size_t n)
{
    float v[NEON_LANES] = {0};
    memcpy(v, p, n * sizeof *p);
    return vld1q_f32(v);
}

#endif
