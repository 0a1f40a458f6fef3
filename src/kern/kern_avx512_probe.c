/* kern_avx512_probe.c - the f32 peak of AVX-512: twelve independent chains hide the latency of the units. */
#include <immintrin.h>

#include "kern_probe.h"
#include "kern_simd.h"

enum { CHAINS = 12 };

double kern_avx512_peak_f32(size_t rounds, float *sink)
{
    __m512 a[CHAINS], m = _mm512_set1_ps(0.75f), c = _mm512_set1_ps(0.25f);
    KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_ps((float)i);
    for (size_t k = 0; k < rounds; k++) {
        KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm512_fmadd_ps(a[i], m, c);
    }
    KERN_UNROLL for (int i = 1; i < CHAINS; i++) a[0] = _mm512_add_ps(a[0], a[i]);
    *sink = _mm512_reduce_add_ps(a[0]);
    return 2.0 * 16 * CHAINS * (double)rounds;
}
