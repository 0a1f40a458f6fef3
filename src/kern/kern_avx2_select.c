/* kern_avx2_select.c - scores of rows of halves, and the k largest of many scores, for AVX2 (kern_select.h has the search).
 *
 * The lanes of a score are two vectors; both are kept at once, for two queries and three rows at most. */
#include "kern_avx2.h"
#include "kern_select.h"

enum { SCORE_AHEAD = 8192 }; /* bytes of rows that are asked for ahead */

KERN_INLINE __m256 halves_at(const kern_f16 *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Scores of n_q queries with n_t rows, n_q * n_t <= 6. */
KERN_INLINE void score_tile(const kern_score_args *a, size_t first, size_t q0, const int n_q, const int n_t)
{
    const kern_f16 *rows = a->rows + first * a->n;
    const float *q = a->q + q0 * a->q_stride;
    float total[6] = {0};
    for (size_t chunk = 0; chunk < a->n; chunk += KERN_CHUNK) {
        size_t end = chunk + kern_min_size(KERN_CHUNK, a->n - chunk);
        __m256 low[6], high[6];
        KERN_UNROLL for (int i = 0; i < n_q * n_t; i++) low[i] = high[i] = _mm256_setzero_ps();
        for (size_t d = chunk; d < end; d += KERN_LANES) {
            KERN_UNROLL for (int t = 0; t < n_t; t++) {
                const kern_f16 *at = rows + (size_t)t * a->n + d;
                if (d % 32 == 0 && q0 == 0) _mm_prefetch((const char *)at + SCORE_AHEAD, _MM_HINT_T1);
                __m256 x = halves_at(at), y = halves_at(at + AVX2_LANES);
                KERN_UNROLL for (int g = 0; g < n_q; g++) {
                    const float *qg = q + (size_t)g * a->q_stride + d;
                    low[g * n_t + t] = _mm256_fmadd_ps(_mm256_loadu_ps(qg), x, low[g * n_t + t]);
                    high[g * n_t + t] = _mm256_fmadd_ps(_mm256_loadu_ps(qg + AVX2_LANES), y, high[g * n_t + t]);
                }
            }
        }
        KERN_UNROLL for (int i = 0; i < n_q * n_t; i++) total[i] += avx2_fold(low[i], high[i]);
    }
    for (int g = 0; g < n_q; g++)
        for (int t = 0; t < n_t; t++) a->scores[(q0 + (size_t)g) * a->stride + first + (size_t)t] = total[g * n_t + t];
}

static void score_rows(const kern_score_args *a)
{
    size_t i = 0;
    for (; i + 3 <= a->n_rows; i += 3) {
        size_t q = 0;
        for (; q + 2 <= a->n_q; q += 2) score_tile(a, i, q, 2, 3);
        if (q < a->n_q) score_tile(a, i, q, 1, 3);
    }
    for (; i < a->n_rows; i++)
        for (size_t q = 0; q < a->n_q; q++) score_tile(a, i, q, 1, 1);
}

/* ------------------------------------------------------------------------------------------------- top k ---- */

KERN_INLINE __m256i keys_of(__m256 scores)
{
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(scores, _mm256_setzero_ps()));
    return _mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1));
}

/* Keys of all scores; their least and largest. */
static void make_keys(const float *scores, size_t n, int32_t *keys, int32_t *least, int32_t *most)
{
    __m256i low = _mm256_set1_epi32(INT32_MAX), high = _mm256_set1_epi32(INT32_MIN);
    int32_t lows[AVX2_LANES], highs[AVX2_LANES];
    size_t i = 0;
    for (; i + AVX2_LANES <= n; i += AVX2_LANES) {
        __m256i key = keys_of(_mm256_loadu_ps(scores + i));
        _mm256_storeu_si256((__m256i *)(void *)(keys + i), key);
        low = _mm256_min_epi32(low, key);
        high = _mm256_max_epi32(high, key);
    }
    _mm256_storeu_si256((__m256i *)(void *)lows, low);
    _mm256_storeu_si256((__m256i *)(void *)highs, high);
    for (int l = 1; l < AVX2_LANES; l++) {
        lows[0] = lows[l] < lows[0] ? lows[l] : lows[0];
        highs[0] = highs[l] > highs[0] ? highs[l] : highs[0];
    }
    for (; i < n; i++) {
        keys[i] = select_key(scores[i]);
        lows[0] = keys[i] < lows[0] ? keys[i] : lows[0];
        highs[0] = keys[i] > highs[0] ? keys[i] : highs[0];
    }
    *least = lows[0], *most = highs[0];
}

/* A key above the bound is minus one in its lane: two sums of those. */
static size_t count_from(const int32_t *keys, size_t n, int32_t from)
{
    __m256i bound = _mm256_set1_epi32(from - 1), a = _mm256_setzero_si256(), b = a; /* from is above the least key */
    int32_t sums[AVX2_LANES];
    size_t i = 0, count = 0;
    for (; i + 2 * AVX2_LANES <= n; i += 2 * AVX2_LANES) {
        a = _mm256_sub_epi32(a, _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(keys + i)), bound));
        b = _mm256_sub_epi32(b, _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(keys + i + AVX2_LANES)), bound));
    }
    _mm256_storeu_si256((__m256i *)(void *)sums, _mm256_add_epi32(a, b));
    for (int l = 0; l < AVX2_LANES; l++) count += (uint32_t)sums[l];
    for (; i < n; i++) count += keys[i] >= from;
    return count;
}

/* Moves the keys at or above low and below high to the front; returns how many. */
static size_t keep_between(int32_t *keys, size_t n, int32_t low, int32_t high)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t key = keys[i];
        keys[kept] = key;
        kept += key >= low && key < high;
    }
    return kept;
}

/* Numbers of the scores at or above high, and of the first `ties` from low on. */
static void emit(const float *scores, size_t n, const select_search *s, size_t ties, uint32_t *ids)
{
    __m256i bound = _mm256_set1_epi32(s->low - 1);
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        unsigned some = 0xff;
        if (i + AVX2_LANES <= n) some = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(keys_of(_mm256_loadu_ps(scores + i)), bound)));
        for (; some; some &= some - 1) {
            size_t at = i + (size_t)__builtin_ctz(some);
            if (at >= n) return;
            int32_t key = select_key(scores[at]);
            if (key < s->low || (key < s->high && !ties)) continue;
            ties -= key < s->high;
            *ids++ = (uint32_t)at;
        }
    }
}

static void top_k(const float *scores, size_t n, size_t k, uint32_t *ids, uint32_t *scratch)
{
    int32_t *keys = (int32_t *)(void *)scratch, least, most;
    if (!k) return;
    make_keys(scores, n, keys, &least, &most);
    select_search s = {.low = least, .high = most + 1, .from_low = n}; /* keys of numbers are below INT32_MAX */
    size_t left = n, dropped = 0; /* keys still looked at; scores above them all */
    while (select_open(&s, k)) {
        int32_t middle = select_middle(&s);
        select_narrow(&s, middle, dropped + count_from(keys, left, middle), k);
        if (s.from_low - s.above > left / 8) continue;
        left = keep_between(keys, left, s.low, s.high);
        dropped = s.above;
    }
    emit(scores, n, &s, k - s.above, ids);
}

void kern_fill_avx2_select(kern_table *t)
{
    t->score_rows = score_rows;
    t->top_k = top_k;
}
