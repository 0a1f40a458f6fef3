/* kern_avx2.h - pieces that the AVX2 kernels share: the lane tree and the exponential (kern_simd.h says what they must compute).
 *
 * The 16 lanes of a sum are two vectors, lanes 0-7 and 8-15.  Register tiles keep one of the two at a time and pass over the data twice: twice
 * as many sums fit. */
#ifndef SPW_KERN_AVX2_H
#define SPW_KERN_AVX2_H

#include <float.h>
#include <immintrin.h>

#include "kern_simd.h"

enum { AVX2_LANES = 8 };

/* Eight lane sums at once: lane i of the result is the tree over v[i], whose lanes i and i + 8 are already added.  Each step halves the vectors:
 * of two, one keeps its lower part and the other its upper part in place (a blend), the rest changes sides (one shuffle), and the sum holds both;
 * v is overwritten. */
KERN_INLINE __m256 avx2_fold8(__m256 *v)
{
    KERN_UNROLL for (int i = 0; i < 4; i++)
        v[i] = _mm256_add_ps(_mm256_blend_ps(v[i], v[i + 4], 0xf0), _mm256_permute2f128_ps(v[i], v[i + 4], 0x21));
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256d cross = _mm256_shuffle_pd(_mm256_castps_pd(v[i]), _mm256_castps_pd(v[i + 2]), 0x5);
        v[i] = _mm256_add_ps(_mm256_blend_ps(v[i], v[i + 2], 0xcc), _mm256_castpd_ps(cross));
    }
    return _mm256_add_ps(_mm256_blend_ps(v[0], v[1], 0xaa), _mm256_permute_ps(_mm256_blend_ps(v[0], v[1], 0x55), 0xb1));
}

/* One lane sum, the same tree. */
KERN_INLINE float avx2_fold(__m256 low, __m256 high)
{
    __m256 h = _mm256_add_ps(low, high);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

/* Makes the vector v a value of its own in a register.  gcc 12 otherwise makes one tree of sums of integers, and keeps what it adds in memory until the tree is done. */
#define AVX2_KEPT(v) __asm__("" : "+x"(v))

KERN_INLINE __m256 avx2_exp(__m256 d)
{
    __m256 least = _mm256_set1_ps(KERN_EXP_MIN), x = _mm256_max_ps(d, least);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(KERN_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(KERN_LN2_LOW), _mm256_fnmadd_ps(n, _mm256_set1_ps(KERN_LN2_HIGH), x));
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(KERN_EXP_C7), r, _mm256_set1_ps(KERN_EXP_C6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KERN_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KERN_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KERN_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_cmp_ps(d, least, _CMP_GE_OQ), _mm256_mul_ps(p, _mm256_castsi256_ps(scale)));
}

KERN_INLINE __m256 avx2_within_floats(__m256 x)
{
    return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-FLT_MAX)), _mm256_set1_ps(FLT_MAX));
}

KERN_INLINE float avx2_largest(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

KERN_INLINE int32_t avx2_sum(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* A mask of the first n lanes; n <= 0 is none, n >= 8 all. */
KERN_INLINE __m256i avx2_first(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#endif
