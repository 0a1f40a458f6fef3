/* kern_avx2_pack.h - what the two files of products of packed weights with AVX2 share: loads of a panel and of its scales.
 *
 * A lane is an output, a panel two vectors of 8. */
#ifndef SPW_KERN_AVX2_PACK_H
#define SPW_KERN_AVX2_PACK_H

#include <string.h>

#include "kern_avx2.h"
#include "pack.h"

enum { HALVES = 2 }; /* vectors of a panel's outputs */

KERN_INLINE __m256i vector_at(const uint8_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

KERN_INLINE __m256i low_bits(__m256i v, int mask)
{
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}

/* Moves bit `from` of every byte, and those above it, to bit 4. */
KERN_INLINE __m256i moved_to_4(__m256i v, int from)
{
    return from < 4 ? _mm256_slli_epi16(v, 4 - from) : from > 4 ? _mm256_srli_epi16(v, from - 4) : v;
}

/* Quad q as bytes, of types of less than 8 bits; w has its nibbles, more its bits beyond these. */
KERN_INLINE __m256i quad_of(uint32_t type, __m256i w, __m256i more, int q)
{
    w = low_bits(q < 4 ? w : _mm256_srli_epi16(w, 4), 15);
    if (type == QUANT_Q6_K) return _mm256_or_si256(w, low_bits(moved_to_4(more, q % 4 * 2), 0x30));
    return pack_has_fifth_bits(type) ? _mm256_or_si256(w, low_bits(moved_to_4(more, q), 0x10)) : w;
}

typedef struct scales {
    __m256 d, d2, m;
} scales;

KERN_INLINE __m256 halves_at(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)p));
}

KERN_INLINE __m256 bytes_at(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

KERN_INLINE __m256 signed_bytes_at(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

KERN_INLINE bool has_supers(uint32_t type)
{
    return type == QUANT_Q4_K || type == QUANT_Q5_K || type == QUANT_Q6_K;
}

/* What PACK_SUPER blocks share: those of block b, outputs 8 half .. 8 half + 7; p is the panel's scales. */
KERN_INLINE scales load_super(uint32_t type, const uint8_t *p, size_t b, size_t half)
{
    scales s;
    s.d = s.d2 = s.m = _mm256_setzero_ps();
    if (!has_supers(type)) return s;
    p += b * pack_scale_bytes(type) + 16 * half;
    s.d = halves_at(p);
    if (type != QUANT_Q6_K) s.m = halves_at(p + 32);
    return s;
}

/* Of block b; m is what pack.h subtracts in the types with super-blocks, and adds in the others. */
KERN_INLINE scales load_scales(uint32_t type, const uint8_t *p, const scales *super, size_t b, size_t half)
{
    scales s = *super;
    if (!has_supers(type)) {
        p += b * pack_scale_bytes(type) + 16 * half;
        s.d = halves_at(p);
        if (pack_has_minima(type)) s.m = halves_at(p + 32);
        return s;
    }
    p += b / PACK_SUPER * PACK_SUPER * pack_scale_bytes(type) + (type == QUANT_Q6_K ? 32 : 64) + 32 * (b % PACK_SUPER) + 8 * half;
    if (type == QUANT_Q6_K) {
        s.d2 = _mm256_mul_ps(s.d, signed_bytes_at(p + 16));
        s.d = _mm256_mul_ps(s.d, signed_bytes_at(p));
    } else {
        s.d = _mm256_mul_ps(s.d, bytes_at(p));
        s.m = _mm256_mul_ps(s.m, bytes_at(p + 16));
    }
    return s;
}

KERN_INLINE __m256i int_at(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

KERN_INLINE __m256 float_at(const void *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_ps(v);
}

/* One panel of weights of 4 to 6 bits times a row alone (pack_alone_words, pack_alone_pairs): PACK_ROWS sums. */
void avx2_pack_one(uint32_t type, const uint8_t *panel, size_t n_blocks, const void *x, const kern_tuning *tuning, float *y);

#endif
