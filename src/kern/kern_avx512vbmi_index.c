/* kern_avx512vbmi_index.c - the index of keys with AVX-512 VBMI and VBMI2: one look-up adds up to six channels for 64 positions (kern_avx512_index.h has the rest).
 *
 * A chunk's three bytes are four look-ups: the low six bits of each, and the three pairs of high bits together. */
#include "kern_avx512_index.h"

/* vpermb looks at the low six bits of a byte alone, so what shifts of 16-bit lanes move above them does no harm.  Of a last chunk of one or two bytes the fourth table has
 * zeros for the pairs that are not there. */
KERN_INLINE void index_spread(const uint8_t *signs, int n_bytes, __m512i *v)
{
    KERN_UNROLL for (int i = 0; i < n_bytes; i++) v[i] = _mm512_load_si512(signs + i * KERN_INDEX_GROUP);
    v[3] = _mm512_srli_epi16(v[0], 6);
    if (n_bytes > 1) v[3] = _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x03), v[3], _mm512_srli_epi16(v[1], 4), 0xca);
    if (n_bytes > 2) v[3] = _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x0f), v[3], _mm512_srli_epi16(v[2], 2), 0xca);
}

KERN_INLINE __m512i index_look(const __m512i *v, const uint8_t *tables, int n_bytes)
{
    __m512i a = _mm512_permutexvar_epi8(v[0], _mm512_load_si512(tables)), b = _mm512_permutexvar_epi8(v[3], _mm512_load_si512(tables + 3 * 64));
    if (n_bytes > 1) a = _mm512_add_epi8(a, _mm512_permutexvar_epi8(v[1], _mm512_load_si512(tables + 64)));
    if (n_bytes > 2) b = _mm512_add_epi8(b, _mm512_permutexvar_epi8(v[2], _mm512_load_si512(tables + 2 * 64)));
    return _mm512_add_epi8(a, b);
}

/* Entry i: the sum of the six channels' integers that agree with the bits of i.  All negative ones agree with 0, and each bit adds its integer. */
KERN_INLINE __m512i table_of(const int16_t *n)
{
    static const uint64_t has_bit[] = {0xaaaaaaaaaaaaaaaau, 0xccccccccccccccccu, 0xf0f0f0f0f0f0f0f0u, 0xff00ff00ff00ff00u, 0xffff0000ffff0000u, 0xffffffff00000000u};
    int start = 0;
    for (int b = 0; b < 6; b++) start += n[b] < 0 ? -n[b] : 0;
    __m512i v = _mm512_set1_epi8((char)start);
    KERN_UNROLL for (int b = 0; b < 6; b++) v = _mm512_mask_add_epi8(v, has_bit[b], v, _mm512_set1_epi8((char)n[b]));
    return v;
}

KERN_INLINE __m512i index_list(uint64_t mask)
{
    static const uint8_t number[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                       32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    return _mm512_maskz_compress_epi8(mask, _mm512_loadu_si512(number));
}

static void make_tables(const int16_t *whole, size_t dim, uint8_t *tables)
{
    for (size_t d = 0; d < dim; d += 8 * INDEX_CHUNK, tables += INDEX_CHUNK_BYTES) {
        int16_t pairs[2 * INDEX_CHUNK] = {0};
        for (size_t j = 0; j < INDEX_CHUNK && d + 8 * j < dim; j++) {
            const int16_t *n = whole + d + 8 * j;
            _mm512_store_si512(tables + j * 64, table_of(n));
            pairs[2 * j] = n[6], pairs[2 * j + 1] = n[7];
        }
        _mm512_store_si512(tables + 3 * 64, table_of(pairs));
    }
}

static void prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared)
{
    index_prepare(q, q_stride, n_q, dim, prepared, make_tables);
}

void kern_fill_avx512vbmi_index(kern_table *t)
{
    t->index_query = prepare;
    t->index_scan = scan;
}
