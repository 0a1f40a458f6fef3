/* kern_avx2_probe.c - the arithmetic peaks of AVX2 with FMA: twelve independent chains hide the latency of the units. */
#include <immintrin.h>

#include "kern_probe.h"
#include "kern_simd.h"

enum { CHAINS = 12 };

static float sum_of(__m256 v)
{
    float lane[8], sum = 0;
    _mm256_storeu_ps(lane, v);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

double kern_avx2_peak_f32(size_t rounds, float *sink)
{
    __m256 a[CHAINS], m = _mm256_set1_ps(0.75f), c = _mm256_set1_ps(0.25f);
    KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm256_set1_ps((float)i);
    for (size_t k = 0; k < rounds; k++) {
        KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm256_fmadd_ps(a[i], m, c);
    }
    KERN_UNROLL for (int i = 1; i < CHAINS; i++) a[0] = _mm256_add_ps(a[0], a[i]);
    *sink = sum_of(a[0]);
    return 2.0 * 8 * CHAINS * (double)rounds;
}

/* The multiplier is hidden from the compiler in every step, or it would see that all products are the same. */
double kern_avx2_peak_int8(size_t rounds, float *sink)
{
    __m256i a[CHAINS], x = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm256_set1_epi32(i);
    for (size_t k = 0; k < rounds; k++) {
        KERN_UNROLL for (int i = 0; i < CHAINS; i++) {
            __asm__("" : "+x"(x));
            a[i] = _mm256_add_epi32(a[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), ones));
        }
    }
    KERN_UNROLL for (int i = 1; i < CHAINS; i++) a[0] = _mm256_add_epi32(a[0], a[i]);
    *sink = sum_of(_mm256_cvtepi32_ps(a[0]));
    return 2.0 * 32 * CHAINS * (double)rounds;
}
