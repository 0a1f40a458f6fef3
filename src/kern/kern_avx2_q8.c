/* kern_avx2_q8.c - sealing rows into bytes and attention over them for AVX2 (kern_q8.h says what is rounded).
 *
 * Bytes are extended to 16 bits as they are loaded and multiplied by integers of 16 bits, two products to a sum: with queries as they are, and with the weights of two
 * rows, whose values are interleaved.  (vpmaddubsw takes bytes, but its sums of two products do not fit.)
 * Bounds: memory for few queries (2 * n * dim bytes), else 2 / 16 of vpmaddwd per query, position and element, two a cycle. */
#include "kern_avx2.h"
#include "kern_q8.h"

#include <float.h>
#include <string.h>

/* ---- sealing --------------------------------------------------------------------------------------------------------- */

/* Sixteen halves; infinities and what is not a number become the largest. */
KERN_INLINE __m256i halves(const kern_f16 *p)
{
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p), low = _mm256_set1_epi16(0x7fff);
    return _mm256_or_si256(_mm256_andnot_si256(low, h), _mm256_min_epu16(_mm256_and_si256(h, low), _mm256_set1_epi16(0x7bff)));
}

KERN_INLINE __m256i magnitudes(const kern_f16 *p)
{
    return _mm256_and_si256(halves(p), _mm256_set1_epi16(0x7fff));
}

KERN_INLINE __m256 lower_floats(__m256i h)
{
    return _mm256_cvtph_ps(_mm256_castsi256_si128(h));
}

KERN_INLINE __m256 upper_floats(__m256i h)
{
    return _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}

/* 127 / most, 0 where that is 0. */
KERN_INLINE __m256 inverse_of(__m256 most)
{
    return _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(127), most), _mm256_cmp_ps(most, _mm256_setzero_ps(), _CMP_GT_OQ));
}

KERN_INLINE void store_bytes(int8_t *out, __m256i h, __m256 lower, __m256 upper)
{
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(lower_floats(h), lower)), b = _mm256_cvtps_epi32(_mm256_mul_ps(upper_floats(h), upper));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)out, bytes);
}

static void quantise(const kern_f16 *rows, size_t n_rows, size_t dim, int8_t *out, float *k_scale, float *v_scale)
{
    const size_t width = 2 * dim;
    const __m256 steps = _mm256_set1_ps(127);
    for (size_t d = 0; d < dim; d += KERN_LANES) {
        __m256i most = _mm256_setzero_si256();
        for (size_t i = 0; i < n_rows; i++) most = _mm256_max_epu16(most, magnitudes(rows + i * width + d));
        __m256 lower = lower_floats(most), upper = upper_floats(most);
        _mm256_storeu_ps(k_scale + d, _mm256_div_ps(lower, steps));
        _mm256_storeu_ps(k_scale + d + AVX2_LANES, _mm256_div_ps(upper, steps));
        lower = inverse_of(lower), upper = inverse_of(upper);
        for (size_t i = 0; i < n_rows; i++) store_bytes(out + i * width + d, halves(rows + i * width + d), lower, upper);
    }
    for (size_t i = 0; i < n_rows; i++) {
        const kern_f16 *v = rows + i * width + dim;
        __m256i most = _mm256_setzero_si256();
        for (size_t d = 0; d < dim; d += KERN_LANES) most = _mm256_max_epu16(most, magnitudes(v + d));
        /* vphminposuw finds the least of eight. */
        __m128i least = _mm_xor_si128(_mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1)), _mm_set1_epi16(-1));
        __m128i largest = _mm_xor_si128(_mm_minpos_epu16(least), _mm_set1_epi16(-1));
        __m256 size = _mm256_broadcastss_ps(_mm_cvtph_ps(largest)), inverse = inverse_of(size);
        v_scale[i] = _mm256_cvtss_f32(_mm256_div_ps(size, steps));
        for (size_t d = 0; d < dim; d += KERN_LANES) store_bytes(out + i * width + dim + d, halves(v + d), inverse, inverse);
    }
}

/* ---- queries as integers --------------------------------------------------------------------------------------------- */

/* One tile for one block of queries. */
typedef struct tile_step {
    const kern_attend_args *a;
    q8_work *w;
    q8_walk *walk;
    const kern_tile *t;
    size_t q0; /* the block's first query */
} tile_step;

/* Weights of KERN_GROUP queries; a lane is two positions.  step 0: all are zero. */
typedef struct tile_weights {
    _Alignas(32) int32_t pairs[KERN_GROUP][KERN_TILE / 2];
    float step[KERN_GROUP];
} tile_weights;

KERN_INLINE __m256 within_floats(__m256 x)
{
    return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-FLT_MAX)), _mm256_set1_ps(FLT_MAX));
}

KERN_INLINE float largest_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Rounds sixteen floats to integers of 16 bits, which they fit. */
KERN_INLINE __m256i rounded(__m256 lower, __m256 upper)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(lower), _mm256_cvtps_epi32(upper)), 0xd8);
}

/* The n queries of the block for rows of one k_scale. */
static void prepare(const tile_step *st, size_t n, const float *k_scale)
{
    const size_t dim = st->a->dim;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i++) {
        const float *q = st->a->q + (st->q0 + i) * st->a->q_stride;
        int16_t *out = st->w->q + i * st->w->q_stride;
        __m256 most = _mm256_setzero_ps();
        for (size_t d = 0; d < dim; d += AVX2_LANES)
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_mul_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(k_scale + d))));
        float largest = largest_lane(_mm256_min_ps(most, _mm256_set1_ps(FLT_MAX)));
        __m256 inverse = _mm256_set1_ps(largest >= KERN_Q8_LEAST ? KERN_Q8_MOST / largest : 0);
        st->w->step[i] = largest >= KERN_Q8_LEAST ? largest / KERN_Q8_MOST : 0;
        for (size_t d = 0; d < dim; d += KERN_LANES) {
            __m256 x = within_floats(_mm256_mul_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(k_scale + d)));
            __m256 y = within_floats(_mm256_mul_ps(_mm256_loadu_ps(q + d + AVX2_LANES), _mm256_loadu_ps(k_scale + d + AVX2_LANES)));
            _mm256_storeu_si256((__m256i *)(void *)(out + d), rounded(_mm256_mul_ps(x, inverse), _mm256_mul_ps(y, inverse)));
        }
    }
}

/* ---- scores ---------------------------------------------------------------------------------------------------------- */

/* avx2_fold8 for integers. */
KERN_INLINE __m256i fold8(__m256i *v)
{
    KERN_UNROLL for (int i = 0; i < 4; i++)
        v[i] = _mm256_add_epi32(_mm256_blend_epi32(v[i], v[i + 4], 0xf0), _mm256_permute2x128_si256(v[i], v[i + 4], 0x21));
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256d cross = _mm256_shuffle_pd(_mm256_castsi256_pd(v[i]), _mm256_castsi256_pd(v[i + 2]), 0x5);
        v[i] = _mm256_add_epi32(_mm256_blend_epi32(v[i], v[i + 2], 0xcc), _mm256_castpd_si256(cross));
    }
    return _mm256_add_epi32(_mm256_blend_epi32(v[0], v[1], 0xaa), _mm256_shuffle_epi32(_mm256_blend_epi32(v[0], v[1], 0x55), 0xb1));
}

KERN_INLINE __m256i bytes_at(const unsigned char *p)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Scores of n_q queries from i on for the rows [from, to), whose k_scale the queries are prepared for. */
KERN_INLINE void score_group(const tile_step *st, q8_ask *ask, size_t i, uint32_t from, uint32_t to, const int n_q, const kern_hint hint)
{
    const int n_t = n_q == 3 ? 2 : AVX2_LANES / n_q;
    const size_t dim = st->a->dim, stride = st->w->q_stride;
    const int16_t *q = st->w->q + i * stride;
    float steps[AVX2_LANES] = {0}, sum[AVX2_LANES];
    for (int g = 0; g < n_q; g++)
        for (int k = 0; k < n_t; k++) steps[g * n_t + k] = st->w->step[i + (size_t)g];
    for (uint32_t t = from; t < to; t += (uint32_t)n_t) {
        __m256i acc[AVX2_LANES];
        const unsigned char *row[AVX2_LANES];
        KERN_UNROLL for (int k = 0; k < AVX2_LANES; k++) acc[k] = _mm256_setzero_si256();
        KERN_UNROLL for (int k = 0; k < n_t; k++) row[k] = st->t->rows[t + (uint32_t)k < to ? t + (uint32_t)k : to - 1];
        for (size_t d = 0; d < dim; d += KERN_LANES) {
            if (n_t > 2 || d % 32 == 0) q8_ask_lines(ask, (n_t + 3) / 4, hint);
            KERN_UNROLL for (int k = 0; k < n_t; k++) {
                __m256i x = bytes_at(row[k] + d);
                KERN_UNROLL for (int g = 0; g < n_q; g++) {
                    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(q + (size_t)g * stride + d));
                    acc[g * n_t + k] = _mm256_add_epi32(acc[g * n_t + k], _mm256_madd_epi16(v, x));
                }
            }
        }
        _mm256_storeu_ps(sum, within_floats(_mm256_mul_ps(_mm256_cvtepi32_ps(fold8(acc)), _mm256_loadu_ps(steps))));
        uint32_t n = to - t < (uint32_t)n_t ? to - t : (uint32_t)n_t;
        for (int g = 0; g < n_q; g++) memcpy(st->w->s + (i + (size_t)g) * KERN_TILE + t, sum + g * n_t, n * sizeof *sum);
    }
}

/* ---- weights --------------------------------------------------------------------------------------------------------- */

/* Query q0 + i has a score, top, larger than any before: what it has is scaled to that. */
static void raise_maximum(const tile_step *st, size_t i, float top)
{
    float *m = &st->w->w.m[st->q0 + i], *o = st->a->o + (st->q0 + i) * st->a->o_stride;
    if (*m > -INFINITY) { /* else it has nothing */
        __m256 c = avx2_exp(_mm256_set1_ps(*m - top));
        for (size_t d = 0; d < st->a->dim; d += AVX2_LANES) _mm256_storeu_ps(o + d, _mm256_mul_ps(c, _mm256_loadu_ps(o + d)));
        st->w->w.l[st->q0 + i] *= _mm256_cvtss_f32(c);
    }
    *m = top;
}

/* Scores to weights for query q0 + i, which sees the first n of the tile, maybe none. */
static void soften(const tile_step *st, size_t i, uint32_t n, tile_weights *p, size_t g)
{
    const float *v_scale = st->walk->v_scale + st->t->base;
    float *s = st->w->s + i * KERN_TILE, *m = &st->w->w.m[st->q0 + i];
    for (uint32_t t = n; t < KERN_TILE; t++) s[t] = -INFINITY;
    __m256 most = _mm256_loadu_ps(s), low = _mm256_setzero_ps(), high = low, largest = low;
    for (size_t t = AVX2_LANES; t < KERN_TILE; t += AVX2_LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(s + t));
    float top = largest_lane(most);
    if (top > *m) raise_maximum(st, i, top);
    __m256 base = _mm256_set1_ps(*m);
    for (size_t t = 0; t < KERN_TILE; t += KERN_LANES) {
        __m256 x = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + t), base)), y = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + t + AVX2_LANES), base));
        low = _mm256_add_ps(low, x);
        high = _mm256_add_ps(high, y);
        x = _mm256_mul_ps(x, _mm256_loadu_ps(v_scale + t));
        y = _mm256_mul_ps(y, _mm256_loadu_ps(v_scale + t + AVX2_LANES));
        largest = _mm256_max_ps(largest, _mm256_max_ps(x, y));
        _mm256_storeu_ps(s + t, x);
        _mm256_storeu_ps(s + t + AVX2_LANES, y);
    }
    st->w->w.l[st->q0 + i] += avx2_fold(low, high);
    float w = largest_lane(largest);
    __m256 inverse = _mm256_set1_ps(w >= KERN_Q8_LEAST ? KERN_Q8_MOST / w : 0);
    p->step[g] = w >= KERN_Q8_LEAST ? w / KERN_Q8_MOST : 0;
    for (size_t t = 0; t < KERN_TILE; t += KERN_LANES) {
        __m256 x = _mm256_mul_ps(_mm256_loadu_ps(s + t), inverse), y = _mm256_mul_ps(_mm256_loadu_ps(s + t + AVX2_LANES), inverse);
        _mm256_store_si256((__m256i *)(void *)(p->pairs[g] + t / 2), rounded(x, y));
    }
}

/* ---- values ---------------------------------------------------------------------------------------------------------- */

/* o += step * sums for sixteen elements from d on, of n_q queries from i on; the first n rows (rounded up to 2) of the tile. */
KERN_INLINE void value_block(const tile_step *st, q8_ask *ask, const tile_weights *p, size_t i, size_t d, uint32_t n, const int n_q, const kern_hint hint)
{
    __m256i lower[KERN_GROUP], upper[KERN_GROUP]; /* elements 0-3 and 8-11; 4-7 and 12-15 */
    const size_t at = st->a->dim + d;
    KERN_UNROLL for (int g = 0; g < n_q; g++) lower[g] = upper[g] = _mm256_setzero_si256();
    for (uint32_t t = 0; t < n; t += 2) {
        if (t % 4 == 0) q8_ask_lines(ask, 1, hint);
        __m256i a = bytes_at(st->t->rows[t] + at), b = bytes_at(st->t->rows[t + 1] + at);
        __m256i x = _mm256_unpacklo_epi16(a, b), y = _mm256_unpackhi_epi16(a, b);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m256i w = _mm256_set1_epi32(p->pairs[g][t / 2]);
            lower[g] = _mm256_add_epi32(lower[g], _mm256_madd_epi16(w, x));
            upper[g] = _mm256_add_epi32(upper[g], _mm256_madd_epi16(w, y));
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        if (!(p->step[g] > 0)) continue;
        float *o = st->a->o + (st->q0 + i + (size_t)g) * st->a->o_stride + d;
        __m256 step = _mm256_set1_ps(p->step[g]);
        __m256 x = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lower[g], upper[g], 0x20)), y = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lower[g], upper[g], 0x31));
        _mm256_storeu_ps(o, _mm256_fmadd_ps(x, step, _mm256_loadu_ps(o)));
        _mm256_storeu_ps(o + AVX2_LANES, _mm256_fmadd_ps(y, step, _mm256_loadu_ps(o + AVX2_LANES)));
    }
}

/* ---- a tile, a call -------------------------------------------------------------------------------------------------- */

KERN_INLINE void attend_group(const tile_step *st, q8_ask *ask, size_t i, const int n_q, const kern_hint hint)
{
    tile_weights p;
    uint32_t most = 0;
    for (size_t g = 0; g < (size_t)n_q; g++) {
        uint32_t n = kern_tile_valid(st->a, st->t, st->q0 + i + g);
        soften(st, i + g, n, &p, g);
        most = n > most ? n : most;
    }
    for (size_t d = 0; d < st->a->dim && most; d += KERN_LANES) value_block(st, ask, &p, i, d, most, n_q, hint);
}

/* The tile's part of the block's n queries. */
KERN_INLINE void attend_tile(const tile_step *st, q8_ask ask, size_t n, const kern_hint hint)
{
    uint32_t end, base = st->t->base, last = base + st->t->n;
    for (uint32_t at = base; at < last; at = end) {
        uint32_t run = st->walk->run;
        const float *k_scale = q8_walk_run(st->walk, st->t, at, &end);
        if (at == 0 || st->walk->run != run) prepare(st, n, k_scale);
        size_t i = 0;
        for (; i + KERN_GROUP <= n; i += KERN_GROUP) score_group(st, &ask, i, at - base, end - base, KERN_GROUP, hint);
        if (n - i == 3) score_group(st, &ask, i, at - base, end - base, 3, hint);
        if (n - i == 2) score_group(st, &ask, i, at - base, end - base, 2, hint);
        if (n - i == 1) score_group(st, &ask, i, at - base, end - base, 1, hint);
    }
    size_t i = 0;
    for (; i + KERN_GROUP <= n; i += KERN_GROUP) attend_group(st, &ask, i, KERN_GROUP, hint);
    if (n - i == 3) attend_group(st, &ask, i, 3, hint);
    if (n - i == 2) attend_group(st, &ask, i, 2, hint);
    if (n - i == 1) attend_group(st, &ask, i, 1, hint);
}

static void attend_tile_t0(const tile_step *st, q8_ask ask, size_t n)
{
    attend_tile(st, ask, n, KERN_HINT_T0);
}

static void attend_tile_t1(const tile_step *st, q8_ask ask, size_t n)
{
    attend_tile(st, ask, n, KERN_HINT_T1);
}

static void finish(const kern_attend_args *a, const kern_attend_work *w)
{
    for (size_t i = 0; i < a->n_q; i++) {
        a->lse[i] = w->l[i] > 0 ? kern_attend_lse(w->m[i], w->l[i]) : -INFINITY;
        if (!(w->l[i] > 0)) continue;
        __m256 l = _mm256_set1_ps(w->l[i]);
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += AVX2_LANES) _mm256_storeu_ps(o + d, _mm256_div_ps(_mm256_loadu_ps(o + d), l));
    }
}

static void attend_q8(const kern_attend_args *a)
{
    kern_hint hint = a->tuning ? a->tuning->hint : KERN_TUNING_DEFAULT.hint;
    q8_work w;
    q8_walk walk;
    kern_tile t;
    q8_work_begin(&w, a);
    q8_walk_begin(&walk, a);
    for (size_t q0 = 0; q0 < a->n_q; q0 += Q8_BLOCK) {
        size_t n = kern_min_size(Q8_BLOCK, a->n_q - q0);
        walk.rows.base = walk.run = 0;
        for (kern_walk_next(&walk.rows, &t); t.n; kern_walk_next(&walk.rows, &t)) {
            tile_step st = {.a = a, .w = &w, .walk = &walk, .t = &t, .q0 = q0};
            q8_ask ask = q8_ask_begin(&walk, &t, hint != KERN_HINT_NONE && q0 == 0);
            if (hint == KERN_HINT_T0) attend_tile_t0(&st, ask, n);
            else attend_tile_t1(&st, ask, n);
        }
    }
    finish(a, &w.w);
}

void kern_fill_avx2_q8(kern_table *t)
{
    t->quantise_q8 = quantise;
    t->attend_q8 = attend_q8;
}
