/* kern_avx512_index.c - the index of keys for AVX-512 without VBMI: one look-up adds up to four channels for 64 positions (kern_avx512_index.h has the rest). */
#include "kern_avx512_index.h"

KERN_INLINE void index_spread(const uint8_t *signs, int n_bytes, __m512i *v)
{
    const __m512i low = _mm512_set1_epi8(15);
    KERN_UNROLL for (int i = 0; i < n_bytes; i++) {
        __m512i bytes = _mm512_load_si512(signs + i * KERN_INDEX_GROUP);
        v[2 * i] = _mm512_and_si512(bytes, low);
        v[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    }
}

KERN_INLINE __m512i index_look(const __m512i *v, const uint8_t *tables, int n_bytes)
{
    __m512i sum = _mm512_setzero_si512();
    KERN_UNROLL for (int i = 0; i < 2 * n_bytes; i++) {
        __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)(const void *)(tables + i * 16)));
        sum = _mm512_add_epi8(sum, _mm512_shuffle_epi8(table, v[i]));
    }
    return sum;
}

KERN_INLINE __m512i index_list(uint64_t mask)
{
    const __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint8_t list[64 + KERN_LANES];
    size_t n = 0;
    for (int m = 0; m < 64; m += KERN_LANES) {
        __mmask16 some = (__mmask16)(mask >> m);
        __m512i found = _mm512_maskz_compress_epi32(some, _mm512_add_epi32(number, _mm512_set1_epi32(m)));
        _mm_storeu_si128((__m128i *)(void *)(list + n), _mm512_cvtepi32_epi8(found));
        n += (size_t)__builtin_popcount(some);
    }
    return _mm512_loadu_si512(list);
}

static void make_tables(const int16_t *whole, size_t dim, uint8_t *tables)
{
    const __m128i number = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (size_t d = 0; d < dim; d += 4) {
        const int16_t *n = whole + d;
        int start = 0;
        for (size_t b = 0; b < 4; b++) start += n[b] < 0 ? -n[b] : 0;
        __m128i v = _mm_set1_epi8((char)start);
        KERN_UNROLL for (int b = 0; b < 4; b++) v = _mm_mask_add_epi8(v, _mm_test_epi8_mask(number, _mm_set1_epi8((char)(1 << b))), v, _mm_set1_epi8((char)n[b]));
        _mm_store_si128((__m128i *)(void *)(tables + d / 24 * INDEX_CHUNK_BYTES + d % 24 / 4 * 16), v);
    }
}

static void prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared)
{
    index_prepare(q, q_stride, n_q, dim, prepared, make_tables);
}

/* ---- votes ------------------------------------------------------------------------------------------ */

static void lse(const float *estimates, size_t stride, size_t n, size_t n_q, float *out)
{
    for (size_t g = 0; g < n_q; g++) {
        const float *e = estimates + g * stride;
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (size_t i = 0; i < n; i += KERN_LANES) {
            __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
            most = _mm512_mask_max_ps(most, some, most, _mm512_maskz_loadu_ps(some, e + i));
        }
        const float top = _mm512_reduce_max_ps(most);
        for (size_t i = 0; i < n; i += KERN_LANES) {
            __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
            sum = _mm512_mask_add_ps(sum, some, sum, avx512_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, e + i), _mm512_set1_ps(top))));
        }
        out[g] = n ? top + logf(avx512_fold(sum)) : -INFINITY;
    }
}

/* e^d with what is enough for votes (kern_index_code.h). */
KERN_INLINE __m512 index_vote(__m512 d)
{
    __m512 x = _mm512_max_ps(_mm512_min_ps(d, _mm512_set1_ps(KERN_INDEX_VOTE)), _mm512_set1_ps(KERN_EXP_MIN));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(KERN_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(INDEX_LN2), x), p = _mm512_fmadd_ps(_mm512_set1_ps(KERN_EXP_C5), r, _mm512_set1_ps(KERN_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KERN_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* Votes of n_v vectors. */
KERN_INLINE void vote_tile(const float *estimates, size_t stride, size_t n_q, const float *lse_of, bool largest, __mmask16 some, const int n_v, float *out)
{
    __m512 vote[4];
    KERN_UNROLL for (int v = 0; v < n_v; v++) vote[v] = _mm512_setzero_ps();
    for (size_t g = 0; g < n_q; g++) {
        const __m512 at = _mm512_set1_ps(lse_of[g]);
        KERN_UNROLL for (int v = 0; v < n_v; v++) {
            __m512 x = index_vote(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, estimates + g * stride + v * KERN_LANES), at));
            vote[v] = largest ? _mm512_max_ps(vote[v], x) : _mm512_add_ps(vote[v], x);
        }
    }
    KERN_UNROLL for (int v = 0; v < n_v; v++) _mm512_mask_storeu_ps(out + v * KERN_LANES, some, vote[v]);
}

static void votes(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse_of, bool largest, float *out)
{
    size_t i = 0;
    for (; i + 4 * KERN_LANES <= n; i += 4 * KERN_LANES) {
        if (largest) vote_tile(estimates + i, stride, n_q, lse_of, true, 0xffff, 4, out + i);
        else vote_tile(estimates + i, stride, n_q, lse_of, false, 0xffff, 4, out + i);
    }
    for (; i < n; i += KERN_LANES) vote_tile(estimates + i, stride, n_q, lse_of, largest, avx512_first(kern_min_size(KERN_LANES, n - i)), 1, out + i);
}

void kern_fill_avx512_index(kern_table *t)
{
    t->index_code = index_make_code;
    t->index_query = prepare;
    t->index_scan = scan;
    t->index_lse = lse;
    t->index_votes = votes;
    t->index_mean = index_make_mean;
    t->index_mix = index_mix;
}
