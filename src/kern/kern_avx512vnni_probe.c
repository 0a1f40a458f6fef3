/* kern_avx512vnni_probe.c - the int8 peak of AVX-512 with VNNI. */
#include <immintrin.h>

#include "kern_probe.h"
#include "kern_simd.h"

enum { CHAINS = 12 };

double kern_avx512vnni_peak_int8(size_t rounds, float *sink)
{
    __m512i a[CHAINS], x = _mm512_set1_epi8(3);
    KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_epi32(i);
    for (size_t k = 0; k < rounds; k++) {
        KERN_UNROLL for (int i = 0; i < CHAINS; i++) a[i] = _mm512_dpbusd_epi32(a[i], x, x);
    }
    KERN_UNROLL for (int i = 1; i < CHAINS; i++) a[0] = _mm512_add_epi32(a[0], a[i]);
    *sink = (float)_mm512_reduce_add_epi32(a[0]);
    return 2.0 * 64 * CHAINS * (double)rounds;
}
