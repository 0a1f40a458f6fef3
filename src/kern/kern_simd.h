/* kern_simd.h - what the arithmetic kernels of every ISA share: the fixed summation order and the constants of the exponential.
 *
 * The one thing to know: a dot product has KERN_LANES independent sums, lane i taking the elements whose index is i modulo KERN_LANES, in ascending
 * order; at the end of a chunk of at most KERN_CHUNK elements the lanes are folded by one tree (i with i + 8, then + 4, + 2, + 1), and chunk sums
 * are added in order.  Which element meets which is thus a function of the length alone, and AVX2 (two vectors) and AVX-512 (one) agree to the
 * bit. */
#ifndef SPW_KERN_SIMD_H
#define SPW_KERN_SIMD_H

#include "kern.h"

enum { KERN_LANES = 16, KERN_CHUNK = 512 }; /* KERN_CHUNK is a multiple of KERN_LANES */

/* Tile shapes are constants of inlined functions: unless everything unrolls, the accumulators would live in memory.  Under a sanitizer they may:
 * its checks in every copy of every step would keep the compiler busy for minutes. */
#if defined(__SANITIZE_ADDRESS__)
#define KERN_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define KERN_SANITIZED
#endif
#endif
#if defined(KERN_SANITIZED)
#define KERN_INLINE static inline
#define KERN_UNROLL
#elif defined(__clang__)
#define KERN_INLINE static inline __attribute__((always_inline))
#define KERN_UNROLL _Pragma("unroll")
#else
#define KERN_INLINE static inline __attribute__((always_inline))
#define KERN_UNROLL _Pragma("GCC unroll 16")
#endif

/* e^d for d <= 0: n = round(d / ln 2), r = d - n ln 2 in two steps (the high part has 15 bits, so n times it is exact), then the series of e^r to
 * degree 7 (|r| <= 0.35: the next term is below 6e-9) times 2^n.  Below KERN_EXP_MIN the result is 0: so it is never subnormal, and flushing
 * changes nothing. */
#define KERN_EXP_MIN (-87.0f)
#define KERN_LOG2E 1.44269504f
#define KERN_LN2_HIGH 0x1.62e4p-1f
#define KERN_LN2_LOW 1.42860682e-6f
#define KERN_EXP_C7 (1.0f / 5040.0f)
#define KERN_EXP_C6 (1.0f / 720.0f)
#define KERN_EXP_C5 (1.0f / 120.0f)
#define KERN_EXP_C4 (1.0f / 24.0f)
#define KERN_EXP_C3 (1.0f / 6.0f)

static inline size_t kern_min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* kern_rotate_fn for pairs from, from + 1, ...: what vectors leave over.  Not inline, as it must be compiled without FMA: gcc 12 fuses this pattern (fmaddsub) even where
 * contraction is off. */
void kern_rotate_rest(size_t from, const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out);

#endif
