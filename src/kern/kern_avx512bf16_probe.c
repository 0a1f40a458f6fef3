/* kern_avx512bf16_probe.c - the bf16 peak of AVX-512: half of plain f32 on some processors, twice on others. */
#include <immintrin.h>

#include "kern_probe.h"
#include "kern_simd.h"

enum { CHAINS = 12 };

double kern_avx512bf16_peak(size_t rounds, float *sink)
{
    __m512 a[CHAINS];
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f)), y = _mm512_cvtne2ps_pbh(_mm512_set1_ps(-0.5f), _mm512_set1_ps(0.5f));
    KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_ps((float)i);
    for (size_t k = 0; k < rounds; k++) {
        KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm512_dpbf16_ps(a[i], x, y);
    }
    KERN_UNROLL for (int i = 1; i < CHAINS; i++) a[0] = _mm512_add_ps(a[0], a[i]);
    *sink = _mm512_reduce_add_ps(a[0]);
    return 2.0 * 32 * CHAINS * (double)rounds;
}
