/* kern_avx512.h - pieces that the AVX-512 kernels share: the lane tree and the exponential (kern_simd.h says what they must compute). */
#ifndef SPW_KERN_AVX512_H
#define SPW_KERN_AVX512_H

#include <immintrin.h>

#include "kern_simd.h"

/* Sixteen lane sums at once: lane i of the result is the tree over the lanes of v[i].  Each step halves the vectors: of two, one keeps its lower
 * part and the other its upper part in place (a blend), the rest changes sides (one shuffle), and the sum holds both; v is overwritten.  avx512_fold_8 to _1 are the steps, for who has
 * something to do between them: to 8, 4 and 2 vectors, and one. */
KERN_INLINE void avx512_fold_8(__m512 *v)
{
    KERN_UNROLL for (int i = 0; i < 8; i++)
        v[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, v[i], v[i + 8]), _mm512_shuffle_f32x4(v[i], v[i + 8], 0x4e));
}

KERN_INLINE void avx512_fold_4(__m512 *v)
{
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m512 cross = _mm512_mask_blend_ps(0x0f0f, v[i], v[i + 4]);
        v[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, v[i], v[i + 4]), _mm512_shuffle_f32x4(cross, cross, 0xb1));
    }
}

KERN_INLINE void avx512_fold_2(__m512 *v)
{
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castps_pd(v[i]), b = _mm512_castps_pd(v[i + 2]);
        v[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, v[i], v[i + 2]), _mm512_castpd_ps(_mm512_shuffle_pd(a, b, 0x55)));
    }
}

KERN_INLINE __m512 avx512_fold_1(const __m512 *v)
{
    __m512 cross = _mm512_mask_blend_ps(0x5555, v[0], v[1]);
    return _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, v[0], v[1]), _mm512_permute_ps(cross, 0xb1));
}

KERN_INLINE __m512 avx512_fold16(__m512 *v)
{
    avx512_fold_8(v);
    avx512_fold_4(v);
    avx512_fold_2(v);
    return avx512_fold_1(v);
}

/* One lane sum, the same tree. */
KERN_INLINE float avx512_fold(__m512 v)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

KERN_INLINE __m512 avx512_exp(__m512 d)
{
    __m512 least = _mm512_set1_ps(KERN_EXP_MIN), x = _mm512_max_ps(d, least);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(KERN_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(KERN_LN2_LOW), _mm512_fnmadd_ps(n, _mm512_set1_ps(KERN_LN2_HIGH), x));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(KERN_EXP_C7), r, _mm512_set1_ps(KERN_EXP_C6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KERN_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KERN_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KERN_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(d, least, _CMP_GE_OQ), p, n);
}

/* The first n lanes, n <= 16. */
KERN_INLINE __mmask16 avx512_first(size_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

#endif
