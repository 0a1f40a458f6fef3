/* kern_scalar.h - pieces that the plain C kernels share, written so that any compiler can vectorise them (kern_simd.h says what they must
 * compute). */
#ifndef SPW_KERN_SCALAR_H
#define SPW_KERN_SCALAR_H

#include <math.h>
#include <string.h>

#include "kern_simd.h"

KERN_INLINE float scalar_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* The tree over 16 lanes; a is overwritten. */
KERN_INLINE float scalar_fold(float *a)
{
    for (int i = 0; i < 8; i++) a[i] += a[i + 8];
    for (int i = 0; i < 4; i++) a[i] += a[i + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* Dot product of n <= KERN_CHUNK elements. */
static inline float scalar_dot(const float *x, const float *y, size_t n)
{
    float acc[KERN_LANES] = {0};
    size_t k = 0;
    for (; k + KERN_LANES <= n; k += KERN_LANES)
        for (size_t i = 0; i < KERN_LANES; i++) acc[i] += x[k + i] * y[k + i];
    for (size_t i = 0; k + i < n; i++) acc[i] += x[k + i] * y[k + i];
    return scalar_fold(acc);
}

/* e^d, d <= 0.  Adding and taking away 1.5 * 2^23 rounds to an integer, to nearest even. */
static inline float scalar_exp(float d)
{
    const float rounder = 12582912.0f;
    float x = d > KERN_EXP_MIN ? d : KERN_EXP_MIN;
    float n = x * KERN_LOG2E + rounder - rounder;
    float r = x - n * KERN_LN2_HIGH - n * KERN_LN2_LOW;
    float p = KERN_EXP_C7 * r + KERN_EXP_C6;
    p = p * r + KERN_EXP_C5;
    p = p * r + KERN_EXP_C4;
    p = p * r + KERN_EXP_C3;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return d >= KERN_EXP_MIN ? p * scalar_from_bits((uint32_t)((int32_t)n + 127) << 23) : 0.0f;
}

/* Exact.  Subnormal halves go by an integer, as bits of a subnormal float would be flushed in the workers. */
KERN_INLINE float scalar_from_half(kern_f16 h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, body = h & 0x7fffu;
    uint32_t bias = body >= 0x7c00u ? 224u << 23 : 112u << 23;
    float normal = scalar_from_bits(sign | ((body << 13) + bias));
    float small = (float)(int32_t)body * 0x1p-24f;
    return body >= 0x0400u ? normal : sign ? -small : small;
}

#endif
