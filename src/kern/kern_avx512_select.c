/* kern_avx512_select.c - scores of rows of halves, and the k largest of many scores, for AVX-512.
 *
 * Scores are bound by memory: the rows are read once for up to four queries.  The k largest are found by counting how many scores are at or above a middle; as
 * soon as few remain between the bounds, only those are kept. */
#include "kern_avx512.h"
#include "kern_select.h"

enum {
    SCORE_AHEAD = 8192,     /* bytes of rows that are asked for ahead */
    FEW = 2 * KERN_LANES,   /* keys that are compared with one another */
};

/* Scores of n_q queries with n_t rows, n_q * n_t <= KERN_LANES. */
KERN_INLINE void score_tile(const kern_score_args *a, size_t first, size_t q0, const int n_q, const int n_t)
{
    const kern_f16 *rows = a->rows + first * a->n;
    const float *q = a->q + q0 * a->q_stride;
    float total[KERN_LANES] = {0};
    for (size_t chunk = 0; chunk < a->n; chunk += KERN_CHUNK) {
        size_t end = chunk + kern_min_size(KERN_CHUNK, a->n - chunk);
        __m512 acc[KERN_LANES];
        KERN_UNROLL for (int i = 0; i < KERN_LANES; i++) acc[i] = _mm512_setzero_ps();
        for (size_t d = chunk; d < end; d += KERN_LANES) {
            __m512 qv[4];
            KERN_UNROLL for (int g = 0; g < n_q; g++) qv[g] = _mm512_loadu_ps(q + (size_t)g * a->q_stride + d);
            KERN_UNROLL for (int t = 0; t < n_t; t++) {
                const kern_f16 *at = rows + (size_t)t * a->n + d;
                if (d % 32 == 0 && q0 == 0) _mm_prefetch((const char *)at + SCORE_AHEAD, _MM_HINT_T1);
                __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
                KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g * n_t + t] = _mm512_fmadd_ps(qv[g], x, acc[g * n_t + t]);
            }
        }
        _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), avx512_fold16(acc)));
    }
    for (int g = 0; g < n_q; g++) memcpy(a->scores + (q0 + (size_t)g) * a->stride + first, total + g * n_t, (size_t)n_t * sizeof(float));
}

KERN_INLINE void score_queries(const kern_score_args *a, size_t first, const int n_t)
{
    size_t q = 0;
    for (; q + 4 <= a->n_q; q += 4) score_tile(a, first, q, 4, n_t);
    size_t rest = a->n_q - q;
    if (rest == 3) score_tile(a, first, q, 3, n_t);
    if (rest == 2) score_tile(a, first, q, 2, n_t);
    if (rest == 1) score_tile(a, first, q, 1, n_t);
}

/* One query takes 16 rows at a time, so that its sums fill the registers too. */
static void score_rows(const kern_score_args *a)
{
    size_t i = 0;
    if (a->n_q == 1)
        for (; i + 16 <= a->n_rows; i += 16) score_tile(a, i, 0, 1, 16);
    if (a->n_q == 2)
        for (; i + 8 <= a->n_rows; i += 8) score_tile(a, i, 0, 2, 8);
    for (; i + 4 <= a->n_rows; i += 4) score_queries(a, i, 4);
    for (; i < a->n_rows; i++) score_queries(a, i, 1);
}

/* ------------------------------------------------------------------------------------------------- top k ---- */

KERN_INLINE __m512i keys_of(__m512 scores)
{
    __m512i bits = _mm512_castps_si512(_mm512_add_ps(scores, _mm512_setzero_ps()));
    return _mm512_xor_si512(bits, _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1));
}

/* Keys of all scores; their least and largest. */
static void make_keys(const float *scores, size_t n, int32_t *keys, int32_t *least, int32_t *most)
{
    __m512i low = _mm512_set1_epi32(INT32_MAX), high = _mm512_set1_epi32(INT32_MIN);
    for (size_t i = 0; i < n; i += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        __m512i key = keys_of(_mm512_maskz_loadu_ps(some, scores + i));
        _mm512_mask_storeu_epi32(keys + i, some, key);
        low = _mm512_mask_min_epi32(low, some, low, key);
        high = _mm512_mask_max_epi32(high, some, high, key);
    }
    *least = _mm512_reduce_min_epi32(low);
    *most = _mm512_reduce_max_epi32(high);
}

/* Lanes count for themselves: moving every mask to an integer register would be the limit. */
static size_t count_from(const int32_t *keys, size_t n, int32_t from)
{
    __m512i bound = _mm512_set1_epi32(from), one = _mm512_set1_epi32(1), sum[4];
    size_t i = 0;
    KERN_UNROLL for (int v = 0; v < 4; v++) sum[v] = _mm512_setzero_si512();
    for (; i + 4 * KERN_LANES <= n; i += 4 * KERN_LANES)
        KERN_UNROLL for (int v = 0; v < 4; v++)
            sum[v] = _mm512_mask_add_epi32(sum[v], _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + i + v * KERN_LANES), bound), sum[v], one);
    for (; i < n; i += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        sum[0] = _mm512_mask_add_epi32(sum[0], _mm512_mask_cmpge_epi32_mask(some, _mm512_maskz_loadu_epi32(some, keys + i), bound), sum[0], one);
    }
    return (size_t)(uint32_t)_mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3])));
}

/* Moves the keys at or above low and below high to the front; returns how many.  Whole vectors are stored, of which the next one overwrites the rest: never beyond what has
 * been read. */
static size_t keep_between(int32_t *keys, size_t n, int32_t low, int32_t high)
{
    __m512i from = _mm512_set1_epi32(low), to = _mm512_set1_epi32(high);
    size_t kept = 0;
    for (size_t i = 0; i < n; i += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        __m512i key = _mm512_maskz_loadu_epi32(some, keys + i);
        __mmask16 in = _mm512_mask_cmpge_epi32_mask(_mm512_mask_cmplt_epi32_mask(some, key, to), key, from);
        size_t count = (size_t)__builtin_popcount(in);
        __m512i packed = _mm512_maskz_compress_epi32(in, key);
        if (i + KERN_LANES <= n) _mm512_storeu_si512(keys + kept, packed);
        else _mm512_mask_storeu_epi32(keys + kept, avx512_first(count), packed);
        kept += count;
    }
    return kept;
}

/* Lanes of ties that may still be taken: the first ones. */
KERN_INLINE __mmask16 first_ties(__mmask16 equal, size_t wanted)
{
    while ((size_t)__builtin_popcount(equal) > wanted) equal &= (__mmask16) ~(0x8000u >> (__builtin_clz(equal) - 16));
    return equal;
}

/* Numbers of the scores at or above high, and of the first `ties` from low on; k in all.  No branch depends on a score, but for ties. */
static void emit(const float *scores, size_t n, const select_search *s, size_t k, uint32_t *ids)
{
    const bool all = s->from_low == k;
    __m512i least = _mm512_set1_epi32(s->low), sure = _mm512_set1_epi32(s->high), number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t ties = k - s->above, at = 0;
    for (size_t i = 0; i < n; i += KERN_LANES, number = _mm512_add_epi32(number, _mm512_set1_epi32(KERN_LANES))) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        __m512i key = keys_of(_mm512_maskz_loadu_ps(some, scores + i));
        __mmask16 in = _mm512_mask_cmpge_epi32_mask(some, key, least);
        if (!all) {
            __mmask16 over = _mm512_mask_cmpge_epi32_mask(in, key, sure), equal = first_ties((__mmask16)(in & ~over), ties);
            ties -= (size_t)__builtin_popcount(equal);
            in = over | equal;
        }
        size_t count = (size_t)__builtin_popcount(in);
        __m512i packed = _mm512_maskz_compress_epi32(in, number);
        if (at + KERN_LANES <= k) _mm512_storeu_si512(ids + at, packed);
        else _mm512_mask_storeu_epi32(ids + at, avx512_first(count), packed);
        at += count;
    }
}

/* Ends a search whose n <= FEW keys are all that is left: the wanted one is found by counting what each of them has above it. */
static void finish_few(select_search *s, const int32_t *keys, size_t n, size_t dropped, size_t k)
{
    __mmask16 first = avx512_first(kern_min_size(KERN_LANES, n)), second = avx512_first(n - kern_min_size(KERN_LANES, n));
    __m512i a = _mm512_maskz_loadu_epi32(first, keys), b = _mm512_maskz_loadu_epi32(second, keys + KERN_LANES);
    for (size_t i = 0; i < n; i++) {
        __m512i key = _mm512_set1_epi32(keys[i]);
        size_t above = dropped + (size_t)__builtin_popcount(_mm512_mask_cmpgt_epi32_mask(first, a, key)) + (size_t)__builtin_popcount(_mm512_mask_cmpgt_epi32_mask(second, b, key));
        if (above >= k) continue;
        size_t from = dropped + (size_t)__builtin_popcount(_mm512_mask_cmpge_epi32_mask(first, a, key)) + (size_t)__builtin_popcount(_mm512_mask_cmpge_epi32_mask(second, b, key));
        if (from < k) continue;
        *s = (select_search){.low = keys[i], .high = keys[i] + 1, .from_low = from, .above = above};
        return;
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
        if (left <= FEW) {
            finish_few(&s, keys, left, dropped, k);
            break;
        }
        int32_t middle = select_middle(&s);
        select_narrow(&s, middle, dropped + count_from(keys, left, middle), k);
        size_t between = s.from_low - s.above;
        if (between > left / 4 && between > FEW) continue;
        left = keep_between(keys, left, s.low, s.high);
        dropped = s.above;
    }
    emit(scores, n, &s, k, ids);
}

void kern_fill_avx512_select(kern_table *t)
{
    t->score_rows = score_rows;
    t->top_k = top_k;
}
