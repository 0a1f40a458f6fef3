/* kern_avx2_select.c - scores of rows of halves, and the k largest of many scores, for AVX2 (kern_select.h has the search).
 *
 * The lanes of a score are two vectors; both are kept at once, for two queries and three rows at most. */
#include <math.h>

#include "kern_avx2_list.h"
#include "kern_select.h"

enum {
    SCORE_AHEAD = 8192, /* bytes of rows that are asked for ahead */
    SAMPLE = 128,       /* keys that tell where to begin, */
    SAMPLE_LEAST = 512, /* where there are so many */
    FEW = 16,           /* keys, two vectors of them, among which the wanted one is found at once */
};

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

KERN_INLINE __m256i load_keys(const int32_t *keys)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)keys);
}

KERN_INLINE unsigned lane_bits(__m256i lanes)
{
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(lanes));
}

KERN_INLINE int32_t least_lane(__m256i v)
{
    __m128i q = _mm_min_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    q = _mm_min_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_min_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}

/* Keys of all n >= 1 scores; their least and largest.  With all bits turned, the largest is the least. */
static void make_keys(const float *scores, size_t n, int32_t *keys, int32_t *least, int32_t *most)
{
    __m256i low = _mm256_set1_epi32(INT32_MAX), high = _mm256_set1_epi32(INT32_MIN);
    size_t i = 0;
    for (; i + AVX2_LANES <= n; i += AVX2_LANES) {
        __m256i key = keys_of(_mm256_loadu_ps(scores + i));
        _mm256_storeu_si256((__m256i *)(void *)(keys + i), key);
        low = _mm256_min_epi32(low, key);
        high = _mm256_max_epi32(high, key);
    }
    for (; i < n; i++) {
        __m256i key = _mm256_set1_epi32(keys[i] = select_key(scores[i]));
        low = _mm256_min_epi32(low, key);
        high = _mm256_max_epi32(high, key);
    }
    *least = least_lane(low);
    *most = ~least_lane(_mm256_xor_si256(high, _mm256_set1_epi32(-1)));
}

/* How many keys are at or above `from`.  A key below is minus one in its lane: sums of those. */
static size_t count_from(const int32_t *keys, size_t n, int32_t from)
{
    const __m256i bound = _mm256_set1_epi32(from);
    __m256i a = _mm256_setzero_si256(), b = a;
    size_t i = 0;
    for (; i + 2 * AVX2_LANES <= n; i += 2 * AVX2_LANES) {
        a = _mm256_add_epi32(a, _mm256_cmpgt_epi32(bound, load_keys(keys + i)));
        b = _mm256_add_epi32(b, _mm256_cmpgt_epi32(bound, load_keys(keys + i + AVX2_LANES)));
    }
    for (; i < n; i += AVX2_LANES) {
        __m256i some = avx2_first((int)(n - i));
        a = _mm256_add_epi32(a, _mm256_and_si256(some, _mm256_cmpgt_epi32(bound, _mm256_maskload_epi32(keys + i, some))));
    }
    a = _mm256_add_epi32(a, b);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return n - (uint32_t)-_mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/* Moves the keys at or above low and below high to the front; returns how many.  Whole vectors are stored, of which the next one overwrites the rest: never beyond what has
 * been read. */
static size_t keep_between(int32_t *keys, size_t n, int32_t low, int32_t high)
{
    const __m256i from = _mm256_set1_epi32(low), to = _mm256_set1_epi32(high);
    size_t kept = 0, i = 0;
    for (; i + AVX2_LANES <= n; i += AVX2_LANES) {
        __m256i key = load_keys(keys + i);
        unsigned in = lane_bits(_mm256_andnot_si256(_mm256_cmpgt_epi32(from, key), _mm256_cmpgt_epi32(to, key)));
        _mm256_storeu_si256((__m256i *)(void *)(keys + kept), _mm256_permutevar8x32_epi32(key, _mm256_cvtepu8_epi32(avx2_list(in))));
        kept += (size_t)__builtin_popcount(in);
    }
    for (; i < n; i++) {
        int32_t key = keys[i];
        keys[kept] = key;
        kept += key >= low && key < high;
    }
    return kept;
}

/* Ends a search whose n <= FEW keys are all that is left: the wanted one is found by counting what each of them has above it. */
static void finish_few(select_search *s, const int32_t *keys, size_t n, size_t dropped, size_t k)
{
    const __m256i a = _mm256_maskload_epi32(keys, avx2_first((int)n)), b = _mm256_maskload_epi32(keys + AVX2_LANES, avx2_first((int)n - AVX2_LANES));
    const unsigned some = (1u << n) - 1;
    for (size_t i = 0; i < n; i++) {
        __m256i key = _mm256_set1_epi32(keys[i]);
        unsigned over = (lane_bits(_mm256_cmpgt_epi32(a, key)) | lane_bits(_mm256_cmpgt_epi32(b, key)) << AVX2_LANES) & some;
        unsigned equal = (lane_bits(_mm256_cmpeq_epi32(a, key)) | lane_bits(_mm256_cmpeq_epi32(b, key)) << AVX2_LANES) & some;
        size_t above = dropped + (size_t)__builtin_popcount(over), from = above + (size_t)__builtin_popcount(equal);
        if (above >= k || from < k) continue;
        *s = (select_search){.low = keys[i], .high = keys[i] + 1, .from_low = from, .above = above};
        return;
    }
}

/* Lanes of ties that may still be taken: the first ones. */
KERN_INLINE unsigned first_ties(unsigned equal, size_t wanted)
{
    while ((size_t)__builtin_popcount(equal) > wanted) equal &= ~(1u << (31 - __builtin_clz(equal)));
    return equal;
}

/* Numbers of the scores at or above high, and of the first ones from low on; k in all.  No branch depends on a score, but for ties. */
static void emit(const float *scores, size_t n, const select_search *s, size_t k, uint32_t *ids)
{
    const bool all = s->from_low == k;
    const __m256i least = _mm256_set1_epi32(s->low), sure = _mm256_set1_epi32(s->high);
    size_t ties = k - s->above;
    for (size_t i = 0, at = 0; at < k; i += AVX2_LANES) {
        const bool whole = i + AVX2_LANES <= n;
        const __m256i key = keys_of(whole ? _mm256_loadu_ps(scores + i) : _mm256_maskload_ps(scores + i, avx2_first((int)(n - i))));
        unsigned in = ~lane_bits(_mm256_cmpgt_epi32(least, key)) & (whole ? 0xffu : (1u << (n - i)) - 1);
        if (!all) {
            unsigned over = in & ~lane_bits(_mm256_cmpgt_epi32(sure, key)), equal = first_ties(in & ~over, ties);
            ties -= (size_t)__builtin_popcount(equal);
            in = over | equal;
        }
        size_t count = (size_t)__builtin_popcount(in);
        __m256i numbers = _mm256_add_epi32(_mm256_set1_epi32((int)i), _mm256_cvtepu8_epi32(avx2_list(in)));
        if (at + AVX2_LANES <= k) _mm256_storeu_si256((__m256i *)(void *)(ids + at), numbers);
        else _mm256_maskstore_epi32((int *)(void *)(ids + at), avx2_first((int)count), numbers);
        at += count;
    }
}

/* Goes on with a search over n keys, which lose their order. */
static void search(select_search *s, int32_t *keys, size_t n, size_t k)
{
    size_t dropped = 0; /* keys above those still looked at */
    while (select_open(s, k)) {
        const size_t between = s->from_low - s->above;
        if (n <= FEW) {
            finish_few(s, keys, n, dropped, k);
            return;
        }
        if (between <= n / 4 || between <= FEW) {
            n = keep_between(keys, n, s->low, s->high);
            dropped = s->above;
            continue;
        }
        int32_t middle = select_middle(s);
        select_narrow(s, middle, dropped + count_from(keys, n, middle), k);
    }
}

/* Begins a search with a key that a sample says somewhat more than k keys reach: halving comes near it in many passes over all keys. */
static void begin_near(select_search *s, const int32_t *keys, size_t n, size_t k)
{
    int32_t some[SAMPLE];
    const float share = (float)k / (float)n * SAMPLE;
    const size_t wanted = (size_t)(share + 2 * sqrtf(share)) + 2;
    if (n < SAMPLE_LEAST || wanted >= SAMPLE / 2) return;
    for (size_t i = 0, step = n / SAMPLE; i < SAMPLE; i++) some[i] = keys[i * step];
    select_search near = {.low = s->low, .high = s->high, .from_low = SAMPLE};
    search(&near, some, SAMPLE, wanted);
    if (near.low > s->low) select_narrow(s, near.low, count_from(keys, n, near.low), k);
}

static void top_k(const float *scores, size_t n, size_t k, uint32_t *ids, uint32_t *scratch)
{
    int32_t *keys = (int32_t *)(void *)scratch, least, most;
    if (!k) return;
    make_keys(scores, n, keys, &least, &most);
    select_search s = {.low = least, .high = most + 1, .from_low = n}; /* keys of numbers are below INT32_MAX */
    begin_near(&s, keys, n, k);
    search(&s, keys, n, k);
    emit(scores, n, &s, k, ids);
}

void kern_fill_avx2_select(kern_table *t)
{
    t->score_rows = score_rows;
    t->top_k = top_k;
}
