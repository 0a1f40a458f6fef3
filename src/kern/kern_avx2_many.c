/* kern_avx2_many.c - attention of many queries to tiles of K and V, in integers of 16 bits (kern.h has the arithmetic).
 *
 * A tile is converted once, into what vpmaddwd multiplies: keys with pairs of channels side by side and positions in lanes, values with pairs of positions side by side and
 * channels in lanes, both in blocks of KERN_LANES lanes, one block behind the other.  Then groups of up to 6 queries pass over it: scores, weights, values.
 * Bound: 2 * n * dim / 16 vpmaddwd and as many vpaddd a query; on Zen 4 such a pair takes 0.63 cycles. */
#include <float.h>

#include "kern_avx2.h"
#include "kern_many.h"

enum {
    HALVES = KERN_LANES / AVX2_LANES, /* of a block: the sums of a group take 12 registers, its pairs 2, a query's pair and a product the others */
    WEIGH_VECTORS = 4,                /* of scores that become weights together */
};

/* A pair of words, whatever it was written as. */
typedef int32_t __attribute__((may_alias)) word_pair;

KERN_INLINE __m256 halves_at(const kern_f16 *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

KERN_INLINE __m256i pairs_at(const int32_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

KERN_INLINE void store_pairs(int32_t *p, __m256i x)
{
    _mm256_store_si256((__m256i *)(void *)p, x);
}

/* ------------------------------------------------------------------------------------------------- tiles ---- */

/* The middle of each channel's values and the size of a step, MANY_K_MOST (MANY_V_MOST) of which are half their range. */
static void find_ranges(const kern_f16 *rows, size_t n, size_t dim, const many_work *w)
{
    const __m256 half = _mm256_set1_ps(0.5f);
    for (size_t c = 0; c < 2 * dim; c += KERN_LANES) {
        const __m256 part = _mm256_set1_ps(c < dim ? 1.0f / MANY_K_MOST : 1.0f / MANY_V_MOST);
        __m256 low[HALVES], high[HALVES];
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) low[h] = high[h] = halves_at(rows + c + h * AVX2_LANES);
        for (size_t t = 1; t < n; t++)
            KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
                __m256 x = halves_at(rows + t * 2 * dim + c + h * AVX2_LANES);
                low[h] = _mm256_min_ps(low[h], x), high[h] = _mm256_max_ps(high[h], x);
            }
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
            __m256 a = _mm256_mul_ps(low[h], half), b = _mm256_mul_ps(high[h], half);
            _mm256_storeu_ps(w->mid + c + h * AVX2_LANES, _mm256_add_ps(a, b));
            _mm256_storeu_ps(w->step + c + h * AVX2_LANES, _mm256_mul_ps(_mm256_sub_ps(b, a), part));
        }
    }
}

/* 1 / x, 0 where x is too small for it. */
KERN_INLINE __m256 inverse_of(__m256 x)
{
    return _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0f), x), _mm256_cmp_ps(x, _mm256_set1_ps(1e-30f), _CMP_GT_OQ));
}

/* Eight channels from c on of one row as integers; inverse: of the step. */
KERN_INLINE __m256i integers_at(const kern_f16 *row, size_t c, __m256 mid, __m256 inverse)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(halves_at(row + c), mid), inverse));
}

/* Lane i of vector j becomes lane j of vector i. */
KERN_INLINE void transpose8(__m256i *v)
{
    __m256i t[8];
    KERN_UNROLL for (int i = 0; i < 8; i += 2) t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]), t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    KERN_UNROLL for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]), v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]), v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    }
    KERN_UNROLL for (int i = 0; i < 8; i++) v[i] = t[i];
}

/* Keys of 8 positions from t on, 16 channels from c on.  Positions from n on repeat the last one: nothing comes of them. */
static void convert_keys(const kern_f16 *rows, size_t n, size_t t, size_t dim, size_t c, const many_work *w)
{
    __m256 mid[HALVES], inverse[HALVES];
    KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
        mid[h] = _mm256_loadu_ps(w->mid + c + h * AVX2_LANES);
        inverse[h] = inverse_of(_mm256_loadu_ps(w->step + c + h * AVX2_LANES));
    }
    __m256i v[8];
    KERN_UNROLL for (size_t i = 0; i < 8; i++) {
        const kern_f16 *row = rows + (t + i < n ? t + i : n - 1) * 2 * dim;
        v[i] = _mm256_packs_epi32(integers_at(row, c, mid[0], inverse[0]), integers_at(row, c + AVX2_LANES, mid[1], inverse[1]));
    }
    transpose8(v);
    int32_t *out = w->k + t / KERN_LANES * (dim / 2 * KERN_LANES) + c / 2 * KERN_LANES + t % KERN_LANES;
    KERN_UNROLL for (size_t i = 0; i < 4; i += 2) { /* packs: pairs 0, 1, 4, 5 and 2, 3, 6, 7 */
        store_pairs(out + (i * 2) * KERN_LANES, v[i]), store_pairs(out + (i * 2 + 1) * KERN_LANES, v[i + 1]);
        store_pairs(out + (i * 2 + 2) * KERN_LANES, v[i + 4]), store_pairs(out + (i * 2 + 3) * KERN_LANES, v[i + 5]);
    }
}

static void convert_values(const kern_f16 *rows, size_t n, size_t dim, const many_work *w)
{
    for (size_t c = 0; c < dim; c += AVX2_LANES) {
        __m256 mid = _mm256_loadu_ps(w->mid + dim + c), inverse = inverse_of(_mm256_loadu_ps(w->step + dim + c));
        int32_t *out = w->v + c / KERN_LANES * (KERN_MANY / 2 * KERN_LANES) + c % KERN_LANES;
        for (size_t t = 0; t < n; t += 2, out += KERN_LANES) {
            __m256i a = integers_at(rows + t * 2 * dim + dim, c, mid, inverse), b = _mm256_setzero_si256();
            if (t + 1 < n) b = integers_at(rows + (t + 1) * 2 * dim + dim, c, mid, inverse);
            store_pairs(out, _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa));
        }
    }
}

/* ------------------------------------------------------------------------------------------------ groups ---- */

/* x = 2^x for x from -126 to 0, of n vectors step by step: each is one chain of operations, and the next chain is too far away for the processor to begin it.  The sum with
 * round has the whole part in its last bits. */
KERN_INLINE void exp2_of(__m256 *x, const int n)
{
    const __m256 round = _mm256_set1_ps(0x1.8p23f);
    __m256 p[WEIGH_VECTORS], scale[WEIGH_VECTORS];
    KERN_UNROLL for (int i = 0; i < n; i++) {
        __m256 sum = _mm256_add_ps(x[i], round);
        x[i] = _mm256_sub_ps(x[i], _mm256_sub_ps(sum, round));
        scale[i] = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(sum), 23), _mm256_castps_si256(_mm256_set1_ps(1.0f))));
    }
    KERN_UNROLL for (int i = 0; i < n; i++) p[i] = _mm256_fmadd_ps(_mm256_set1_ps(MANY_EXP2_C4), x[i], _mm256_set1_ps(MANY_EXP2_C3));
    KERN_UNROLL for (int i = 0; i < n; i++) p[i] = _mm256_fmadd_ps(p[i], x[i], _mm256_set1_ps(MANY_EXP2_C2));
    KERN_UNROLL for (int i = 0; i < n; i++) p[i] = _mm256_fmadd_ps(p[i], x[i], _mm256_set1_ps(MANY_EXP2_C1));
    KERN_UNROLL for (int i = 0; i < n; i++) p[i] = _mm256_fmadd_ps(p[i], x[i], _mm256_set1_ps(MANY_EXP2_C0));
    KERN_UNROLL for (int i = 0; i < n; i++) x[i] = _mm256_mul_ps(p[i], scale[i]);
}

/* Sixteen integers as words, saturated. */
KERN_INLINE void store_words(int16_t *p, __m256i lower, __m256i upper)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(lower, upper), 0xd8));
}

/* sum += products of words.  Through the intrinsic gcc keeps products to add them as a tree, and more than the registers hold; behind a barrier for each sum it copies every one. */
KERN_INLINE void add_products(__m256i *sum, __m256i a, __m256i b)
{
    __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(_mm256_madd_epi16(a, b)));
}

KERN_INLINE void prepare(const kern_many *a, const many_work *w, size_t q0, const int n_q, many_group *g)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 sum[AVX2_LANES], base[AVX2_LANES];
    float most[AVX2_LANES] = {0}, inverse[AVX2_LANES];
    KERN_UNROLL for (int r = 0; r < AVX2_LANES; r++) sum[r] = base[r] = _mm256_setzero_ps();
    KERN_UNROLL for (int r = 0; r < n_q; r++) {
        const float *q = a->q + (q0 + (size_t)r) * a->dim;
        __m256 sums[HALVES], bases[HALVES], largest = _mm256_setzero_ps();
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) sums[h] = bases[h] = _mm256_setzero_ps();
        for (size_t c = 0; c < a->dim; c += KERN_LANES)
            KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
                size_t i = c + h * AVX2_LANES;
                __m256 x = _mm256_loadu_ps(q + i), size = _mm256_andnot_ps(sign, _mm256_mul_ps(x, _mm256_loadu_ps(w->step + i)));
                bases[h] = _mm256_fmadd_ps(x, _mm256_loadu_ps(w->mid + i), bases[h]);
                largest = _mm256_max_ps(largest, size);
                sums[h] = _mm256_add_ps(sums[h], size);
            }
        most[r] = avx2_largest(largest);
        sum[r] = _mm256_add_ps(sums[0], sums[1]), base[r] = _mm256_add_ps(bases[0], bases[1]);
    }
    __m256 log2_e = _mm256_set1_ps(KERN_LOG2E), by_size = _mm256_div_ps(_mm256_loadu_ps(most), _mm256_set1_ps(MANY_Q_MOST));
    __m256 step = _mm256_max_ps(by_size, _mm256_div_ps(avx2_fold8(sum), _mm256_set1_ps(MANY_SUM_MOST)));
    __m256 some = _mm256_cmp_ps(step, _mm256_set1_ps(1e-30f), _CMP_GT_OQ);
    _mm256_storeu_ps(g->base, avx2_within_floats(_mm256_mul_ps(avx2_fold8(base), log2_e)));
    _mm256_storeu_ps(g->step, _mm256_and_ps(_mm256_mul_ps(step, log2_e), some));
    _mm256_storeu_ps(inverse, inverse_of(step));
    KERN_UNROLL for (int r = 0; r < n_q; r++) {
        const float *q = a->q + (q0 + (size_t)r) * a->dim;
        const __m256 inv = _mm256_set1_ps(inverse[r]);
        for (size_t c = 0; c < a->dim; c += KERN_LANES) {
            __m256i x[HALVES];
            KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
                size_t i = c + h * AVX2_LANES;
                x[h] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(q + i), _mm256_loadu_ps(w->step + i)), inv));
            }
            store_words(w->q + (size_t)r * a->dim + c, x[0], x[1]);
        }
    }
}

/* Scores with the block of positions from t on. */
KERN_INLINE void score_block(const many_work *w, size_t dim, size_t t, const int n_q, const many_group *g)
{
    __m256i acc[MANY_QUERIES][HALVES];
    KERN_UNROLL for (int r = 0; r < n_q; r++)
        KERN_UNROLL for (int h = 0; h < HALVES; h++) acc[r][h] = _mm256_setzero_si256();
    const int32_t *k = w->k + t * (dim / 2);
    for (size_t j = 0; j < dim / 2; j++, k += KERN_LANES) {
        __m256i low = pairs_at(k), high = pairs_at(k + AVX2_LANES);
        KERN_UNROLL for (int r = 0; r < n_q; r++) {
            __m256i q = _mm256_set1_epi32(*(const word_pair *)(const void *)(w->q + (size_t)r * dim + 2 * j));
            add_products(&acc[r][0], low, q);
            add_products(&acc[r][1], high, q);
        }
    }
    KERN_UNROLL for (int r = 0; r < n_q; r++) {
        __m256 step = _mm256_set1_ps(g->step[r]), base = _mm256_set1_ps(g->base[r]);
        KERN_UNROLL for (int h = 0; h < HALVES; h++)
            _mm256_store_ps(w->s + (size_t)r * KERN_MANY + t + (size_t)h * AVX2_LANES, avx2_within_floats(_mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][h]), step, base)));
    }
}

/* Weights of one query's n scores. */
KERN_INLINE void weigh(const many_work *w, int r, size_t n, many_group *g)
{
    enum { STEP = WEIGH_VECTORS * AVX2_LANES };
    float *s = w->s + r * KERN_MANY;
    int16_t *p = w->p + r * KERN_MANY;
    size_t end = (n + STEP - 1) / STEP * STEP;
    for (size_t t = n; t < end; t++) s[t] = -INFINITY;
    __m256 x[WEIGH_VECTORS];
    KERN_UNROLL for (int i = 0; i < WEIGH_VECTORS; i++) x[i] = _mm256_load_ps(s + i * AVX2_LANES);
    for (size_t t = STEP; t < end; t += STEP)
        KERN_UNROLL for (int i = 0; i < WEIGH_VECTORS; i++) x[i] = _mm256_max_ps(x[i], _mm256_load_ps(s + t + i * AVX2_LANES));
    float most = avx2_largest(_mm256_max_ps(_mm256_max_ps(x[0], x[1]), _mm256_max_ps(x[2], x[3])));
    const __m256 base = _mm256_set1_ps(most), least = _mm256_set1_ps(-126.0f), steps = _mm256_set1_ps(MANY_P_MOST);
    __m256i sum = _mm256_setzero_si256(), y[WEIGH_VECTORS];
    for (size_t t = 0; t < end; t += STEP) {
        KERN_UNROLL for (int i = 0; i < WEIGH_VECTORS; i++) x[i] = _mm256_max_ps(_mm256_sub_ps(_mm256_load_ps(s + t + i * AVX2_LANES), base), least);
        exp2_of(x, WEIGH_VECTORS);
        KERN_UNROLL for (int i = 0; i < WEIGH_VECTORS; i++) y[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], steps));
        KERN_UNROLL for (int i = 0; i < WEIGH_VECTORS; i++) sum = _mm256_add_epi32(sum, y[i]);
        KERN_UNROLL for (int i = 0; i < WEIGH_VECTORS; i += 2) store_words(p + t + i * AVX2_LANES, y[i], y[i + 1]);
    }
    g->most[r] = most;
    g->sum[r] = (float)avx2_sum(sum);
}

/* o of n_q queries, the block of channels from c on. */
KERN_INLINE void value_block(const kern_many *a, const many_work *w, size_t q0, size_t c, size_t n, const int n_q, const float *keep, const float *scale, const many_group *g)
{
    __m256i acc[MANY_QUERIES][HALVES];
    KERN_UNROLL for (int r = 0; r < n_q; r++)
        KERN_UNROLL for (int h = 0; h < HALVES; h++) acc[r][h] = _mm256_setzero_si256();
    const int32_t *at = w->v + c * (KERN_MANY / 2);
    for (size_t t = 0; t < n; t += 2, at += KERN_LANES) {
        __m256i low = pairs_at(at), high = pairs_at(at + AVX2_LANES);
        KERN_UNROLL for (int r = 0; r < n_q; r++) {
            __m256i p = _mm256_set1_epi32(*(const word_pair *)(const void *)(w->p + (size_t)r * KERN_MANY + t));
            add_products(&acc[r][0], low, p);
            add_products(&acc[r][1], high, p);
        }
    }
    KERN_UNROLL for (int h = 0; h < HALVES; h++) {
        size_t i = c + (size_t)h * AVX2_LANES;
        __m256 mid = _mm256_loadu_ps(w->mid + a->dim + i), step = _mm256_loadu_ps(w->step + a->dim + i);
        KERN_UNROLL for (int r = 0; r < n_q; r++) {
            float *o = a->o + (q0 + (size_t)r) * a->dim + i;
            __m256 x = _mm256_fmadd_ps(mid, _mm256_set1_ps(g->sum[r]), _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][h]), step));
            _mm256_storeu_ps(o, _mm256_fmadd_ps(x, _mm256_set1_ps(scale[r]), _mm256_mul_ps(_mm256_loadu_ps(o), _mm256_set1_ps(keep[r]))));
        }
    }
}

KERN_INLINE void group(const kern_many *a, const many_work *w, size_t q0, size_t n, const int n_q)
{
    many_group g = {.step = {0}};
    float keep[AVX2_LANES], scale[AVX2_LANES];
    prepare(a, w, q0, n_q, &g);
    for (size_t t = 0; t < n; t += KERN_LANES) score_block(w, a->dim, t, n_q, &g);
    KERN_UNROLL for (int r = 0; r < n_q; r++) weigh(w, r, n, &g);

    const __m256i some = avx2_first(n_q);
    __m256 least = _mm256_set1_ps(-126.0f), old = _mm256_maskload_ps(a->m + q0, some), now = _mm256_loadu_ps(g.most);
    __m256 most = _mm256_max_ps(old, now), factor[] = {_mm256_max_ps(_mm256_sub_ps(old, most), least), _mm256_max_ps(_mm256_sub_ps(now, most), least)};
    exp2_of(factor, 2);
    _mm256_storeu_ps(keep, factor[0]), _mm256_storeu_ps(scale, factor[1]);
    _mm256_maskstore_ps(a->m + q0, some, most);
    __m256 l = _mm256_fmadd_ps(_mm256_loadu_ps(g.sum), factor[1], _mm256_mul_ps(_mm256_maskload_ps(a->l + q0, some), factor[0]));
    _mm256_maskstore_ps(a->l + q0, some, l);

    for (size_t c = 0; c < a->dim; c += KERN_LANES) value_block(a, w, q0, c, n, n_q, keep, scale, &g);
}

static void many_tile(const kern_many *a, const void *rows, uint32_t n)
{
    if (!n || !a->n_q) return;
    many_work w = many_lay_out(a->scratch, a->dim);
    find_ranges(rows, n, a->dim, &w);
    for (size_t t = 0; t < (n + KERN_LANES - 1) / KERN_LANES * KERN_LANES; t += AVX2_LANES)
        for (size_t c = 0; c < a->dim; c += KERN_LANES) convert_keys(rows, n, t, a->dim, c, &w);
    convert_values(rows, n, a->dim, &w);
    size_t q = 0;
    for (; q + MANY_QUERIES <= a->n_q; q += MANY_QUERIES) group(a, &w, q, n, MANY_QUERIES);
    for (; q + 2 <= a->n_q; q += 2) group(a, &w, q, n, 2);
    for (; q < a->n_q; q++) group(a, &w, q, n, 1);
}

static void many_end(const kern_many *a, float *lse)
{
    for (size_t i = 0; i < a->n_q; i++) {
        float *o = a->o + i * a->dim;
        lse[i] = many_lse(a->m[i], a->l[i]);
        if (!(a->l[i] > 0)) continue;
        __m256 l = _mm256_set1_ps(a->l[i]);
        for (size_t c = 0; c < a->dim; c += AVX2_LANES) _mm256_storeu_ps(o + c, _mm256_div_ps(_mm256_loadu_ps(o + c), l));
    }
}

void kern_fill_avx2_many(kern_table *t)
{
    t->many_tile = many_tile;
    t->many_end = many_end;
}
