/* kern_avx512vnni_q8.c - attention over rows of bytes for AVX-512 with VNNI (kern_q8.h says what is rounded).
 *
 * Scores of two queries or more: sixteen rows are transposed in registers, so that a lane is a position, and vpdpbusd multiplies quads of their elements by
 * quads of every query, which come broadcast from memory.  One query, or a few rows that share a scale: the tree over the lanes of vpdpwssd.  Values: four
 * rows interleaved for vpdpbusd, weights being one byte, or two beside a peak.  All sums are exact: every way gives the same bits.
 * Bounds: memory for few queries (2 * n * dim bytes), else 3 vpdpbusd per query, position and 64 elements (4 with two bytes), one a cycle. */
#include "kern_avx512.h"
#include "kern_avx512vnni.h"
#include "kern_q8.h"

#include <float.h>
#include <string.h>

enum {
    FEW_ROWS = 4, /* rows of one scale up to which the tree is cheaper */
    FEW = 1,      /* queries, likewise */
    LINE = 64,    /* bytes of a cache line */
    ASK_KEYS = 6, ASK_VALUES = 2, /* lines asked for with sixteen elements of sixteen keys, with 64 of four values: keys take the longer.  By the tree as many as before: more gain nothing */
};

/* One tile for one block of queries. */
typedef struct tile_step {
    const kern_attend_args *a;
    q8_work *w;
    q8_walk *walk;
    const kern_tile *t;
    size_t q0; /* the block's first query */
} tile_step;

/* Weights of KERN_GROUP queries, 256 hi + lo; a lane is four positions.  step 0: all are zero.  wide: hi is written; else all of it counts as 0. */
typedef struct tile_weights {
    _Alignas(64) int32_t hi[KERN_GROUP][KERN_TILE / 4];
    _Alignas(64) int32_t lo[KERN_GROUP][KERN_TILE / 4];
    float step[KERN_GROUP];
    bool wide;
} tile_weights;

KERN_INLINE __m512 within_floats(__m512 x)
{
    return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-FLT_MAX)), _mm512_set1_ps(FLT_MAX));
}

/* ---- queries as integers --------------------------------------------------------------------------------------------- */

/* Sixteen elements from d on of query i, scaled for rows of one k_scale, as integers. */
KERN_INLINE __m512i query_slice(const tile_step *st, size_t i, const float *k_scale, float inverse, size_t d)
{
    const float *q = st->a->q + (st->q0 + i) * st->a->q_stride;
    if (d >= st->a->dim) return _mm512_setzero_si512();
    __m512 x = within_floats(_mm512_mul_ps(_mm512_loadu_ps(q + d), _mm512_loadu_ps(k_scale + d)));
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
}

/* One query as 16 bits. */
KERN_INLINE void query_words(const tile_step *st, size_t i, const float *k_scale, float inverse)
{
    int16_t *words = st->w->q + i * st->w->q_stride;
    for (size_t d = 0; d < st->w->q_stride; d += KERN_LANES)
        _mm256_store_si256((__m256i *)(void *)(words + d), _mm512_cvtepi32_epi16(query_slice(st, i, k_scale, inverse, d)));
}

/* One query as two signed bytes each; returns the sum of its integers in lanes. */
KERN_INLINE __m512i query_quads(const tile_step *st, size_t i, const float *k_scale, float inverse)
{
    __m512i sum = _mm512_setzero_si512();
    for (size_t d = 0; d < st->w->q_stride; d += KERN_LANES) {
        __m512i v = query_slice(st, i, k_scale, inverse, d);
        sum = _mm512_add_epi32(sum, v);
        __m128i lo = _mm512_cvtepi32_epi8(v), hi = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8));
        __m128d first = _mm_castsi128_pd(_mm_unpacklo_epi32(hi, lo)), second = _mm_castsi128_pd(_mm_unpackhi_epi32(hi, lo));
        double *quads = (double *)(void *)q8_work_quads(st->w, i, d);
        _mm_storel_pd(quads, first), _mm_storeh_pd(quads + KERN_GROUP, first);
        _mm_storel_pd(quads + 2 * KERN_GROUP, second), _mm_storeh_pd(quads + 3 * KERN_GROUP, second);
    }
    return sum;
}

/* The n queries of the block for rows of one k_scale; tree: as these want them. */
static void prepare(const tile_step *st, size_t n, const float *k_scale, bool tree)
{
    const size_t dim = st->a->dim;
    float inverse[Q8_BLOCK];
    st->w->large = false;
    for (size_t i = 0; i < n; i++) {
        const float *q = st->a->q + (st->q0 + i) * st->a->q_stride;
        __m512 most = _mm512_setzero_ps();
        for (size_t d = 0; d < dim; d += KERN_LANES)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_mul_ps(_mm512_loadu_ps(q + d), _mm512_loadu_ps(k_scale + d))));
        float largest = _mm512_reduce_max_ps(_mm512_min_ps(most, _mm512_set1_ps(FLT_MAX)));
        inverse[i] = largest >= KERN_Q8_LEAST ? KERN_Q8_MOST / largest : 0;
        st->w->step[i] = largest >= KERN_Q8_LEAST ? largest / KERN_Q8_MOST : 0;
        st->w->large |= st->w->step[i] > KERN_Q8_STEP;
    }
    for (size_t i = 0; i < n; i++) {
        if (tree) query_words(st, i, k_scale, inverse[i]);
        else st->w->bias[i] = -128 * _mm512_reduce_add_epi32(query_quads(st, i, k_scale, inverse[i]));
    }
}

/* Of n rows from t on, the line with byte `at`, into L1 (kern_attend.h says why). */
KERN_INLINE void ask_near(const tile_step *st, const q8_ask *ask, uint32_t t, size_t at, const int n, const kern_hint hint)
{
    const unsigned char *const *rows = st->t->rows + (t < KERN_TILE ? t : KERN_TILE);
    if (hint == KERN_HINT_T0 || !ask->near) return;
    KERN_UNROLL for (int i = 0; i < n; i++) _mm_prefetch((const void *)(rows[i] + at), _MM_HINT_T0);
}

/* ---- scores ---------------------------------------------------------------------------------------------------------- */

/* avx512_fold16 for integers. */
KERN_INLINE __m512i fold16(__m512i *v)
{
    KERN_UNROLL for (int i = 0; i < 8; i++)
        v[i] = _mm512_add_epi32(_mm512_mask_blend_epi32(0xff00, v[i], v[i + 8]), _mm512_shuffle_i32x4(v[i], v[i + 8], 0x4e));
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m512i cross = _mm512_mask_blend_epi32(0x0f0f, v[i], v[i + 4]);
        v[i] = _mm512_add_epi32(_mm512_mask_blend_epi32(0xf0f0, v[i], v[i + 4]), _mm512_shuffle_i32x4(cross, cross, 0xb1));
    }
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castsi512_pd(v[i]), b = _mm512_castsi512_pd(v[i + 2]);
        v[i] = _mm512_add_epi32(_mm512_mask_blend_epi32(0xcccc, v[i], v[i + 2]), _mm512_castpd_si512(_mm512_shuffle_pd(a, b, 0x55)));
    }
    __m512i cross = _mm512_mask_blend_epi32(0x5555, v[0], v[1]);
    return _mm512_add_epi32(_mm512_mask_blend_epi32(0xaaaa, v[0], v[1]), _mm512_shuffle_epi32(cross, 0xb1));
}

/* Scores of n_q queries from i on for the rows [from, to), by the tree.  The last vector of K may reach into V: the query is zero there. */
KERN_INLINE void tree_group(const tile_step *st, q8_ask *ask, size_t i, uint32_t from, uint32_t to, const int n_q, const kern_hint hint)
{
    const int n_t = n_q == 3 ? 4 : KERN_LANES / n_q;
    const size_t dim = st->a->dim, stride = st->w->q_stride;
    const int16_t *q = st->w->q + i * stride;
    float steps[KERN_LANES] = {0}, sum[KERN_LANES];
    for (int g = 0; g < n_q; g++)
        for (int k = 0; k < n_t; k++) steps[g * n_t + k] = st->w->step[i + (size_t)g];
    __m512 step = _mm512_loadu_ps(steps);
    for (uint32_t t = from; t < to; t += (uint32_t)n_t) {
        __m512i acc[KERN_LANES];
        const unsigned char *row[KERN_LANES];
        KERN_UNROLL for (int k = 0; k < KERN_LANES; k++) acc[k] = _mm512_setzero_si512();
        for (size_t d = 0; d < dim; d += LINE) ask_near(st, ask, t + KERN_NEAR, d, n_t, hint);
        KERN_UNROLL for (int k = 0; k < n_t; k++) row[k] = st->t->rows[t + (uint32_t)k < to ? t + (uint32_t)k : to - 1];
        for (size_t d = 0; d < dim; d += 32) {
            __m512i qv[KERN_GROUP];
            q8_ask_lines(ask, n_t / 2, hint);
            KERN_UNROLL for (int g = 0; g < n_q; g++) qv[g] = _mm512_loadu_si512(q + (size_t)g * stride + d);
            KERN_UNROLL for (int k = 0; k < n_t; k++) {
                __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(row[k] + d)));
                KERN_UNROLL for (int g = 0; g < n_q; g++) dot_words(acc[g * n_t + k], qv[g], x);
            }
        }
        _mm512_storeu_ps(sum, within_floats(_mm512_mul_ps(_mm512_cvtepi32_ps(fold16(acc)), step)));
        uint32_t n = to - t < (uint32_t)n_t ? to - t : (uint32_t)n_t;
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            float *s = st->w->s + (i + (size_t)g) * KERN_TILE + t;
            if (n == (uint32_t)n_t) memcpy(s, sum + g * n_t, (size_t)n_t * sizeof *s);
            else memcpy(s, sum + g * n_t, n * sizeof *s);
        }
    }
}

KERN_INLINE __m256i two_rows(const unsigned char *first, const unsigned char *second)
{
    __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)first));
    return _mm256_inserti128_si256(x, _mm_loadu_si128((const __m128i *)(const void *)second), 1);
}

/* Sixteen elements of sixteen rows, plus 128: lane i of k[e] is quad e of row i. */
KERN_INLINE void quads_of_rows(const unsigned char *const *row, size_t d, __m512i *k)
{
    __m512i x[4]; /* 128-bit part b of x[j]: row 4 b + j */
    KERN_UNROLL for (int j = 0; j < 4; j++) {
        __m512i lower = _mm512_castsi256_si512(two_rows(row[j] + d, row[j + 4] + d));
        x[j] = _mm512_xor_si512(_mm512_inserti64x4(lower, two_rows(row[j + 8] + d, row[j + 12] + d), 1), _mm512_set1_epi8(-128));
    }
    __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), e = _mm512_unpackhi_epi32(x[2], x[3]);
    k[0] = _mm512_unpacklo_epi64(a, c);
    k[1] = _mm512_unpackhi_epi64(a, c);
    k[2] = _mm512_unpacklo_epi64(b, e);
    k[3] = _mm512_unpackhi_epi64(b, e);
}

/* Scores of n_q queries from i on for up to sixteen rows from t on, the last of them at end - 1: a lane is a position. */
KERN_INLINE void lanes_group(const tile_step *st, q8_ask *ask, size_t i, uint32_t t, uint32_t end, const int n_q, const kern_hint hint)
{
    const int32_t *q = q8_work_quads(st->w, i, 0);
    const uint32_t first = t < KERN_TILE - KERN_LANES ? t : KERN_TILE - KERN_LANES; /* of sixteen rows that the tile has */
    const unsigned char *const *row = st->t->rows + first;
    const __mmask16 wanted = (__mmask16)(avx512_first(kern_min_size(end - first, KERN_LANES)) & ~avx512_first(t - first));
    __m512i hi[KERN_GROUP], lo[KERN_GROUP];
    KERN_UNROLL for (int g = 0; g < n_q; g++) hi[g] = _mm512_setzero_si512(), lo[g] = _mm512_set1_epi32(st->w->bias[i + (size_t)g]);
    for (size_t d = 0; d < st->a->dim; d += 16) {
        __m512i k[4];
        load_anew(row);
        if (d % LINE == 0) ask_near(st, ask, first + KERN_LANES, d, KERN_LANES, hint);
        quads_of_rows(row, d, k);
        q8_ask_lines(ask, ASK_KEYS, hint);
        KERN_UNROLL for (int e = 0; e < 4; e++) {
            KERN_UNROLL for (int g = 0; g < n_q; g++) {
                dot_quads(hi[g], k[e], q + e * 2 * KERN_GROUP + 2 * g);
                dot_quads(lo[g], k[e], q + e * 2 * KERN_GROUP + 2 * g + 1);
            }
        }
        q += 4 * 2 * KERN_GROUP;
    }
    float *s = st->w->s + i * KERN_TILE + first;
    const float *step = st->w->step + i;
    const bool large = st->w->large;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi[g], 8), lo[g])), _mm512_set1_ps(step[g]));
        if (large) x = within_floats(x);
        _mm512_mask_storeu_ps(s + g * KERN_TILE, wanted, x);
    }
}

KERN_INLINE void score_group(const tile_step *st, q8_ask *ask, size_t i, uint32_t from, uint32_t to, bool tree, const int n_q, const kern_hint hint)
{
    if (tree) tree_group(st, ask, i, from, to, n_q, hint);
    else
        for (uint32_t t = from; t < to; t += KERN_LANES) lanes_group(st, ask, i, t, to, n_q, hint);
}

/* Scores of the block's n queries for the rows [from, to), whose k_scale the queries are prepared for. */
KERN_INLINE void score_rows(const tile_step *st, q8_ask *ask, size_t n, uint32_t from, uint32_t to, bool tree, const kern_hint hint)
{
    size_t i = 0;
    for (; i + KERN_GROUP <= n; i += KERN_GROUP) score_group(st, ask, i, from, to, tree, KERN_GROUP, hint);
    if (n - i == 3) score_group(st, ask, i, from, to, tree, 3, hint);
    if (n - i == 2) score_group(st, ask, i, from, to, tree, 2, hint);
    if (n - i == 1) score_group(st, ask, i, from, to, tree, 1, hint);
}

/* ---- weights --------------------------------------------------------------------------------------------------------- */

/* Query q0 + i has a score, top, larger than any before: what it has is scaled to that. */
static void raise_maximum(const tile_step *st, size_t i, float top)
{
    float *m = &st->w->w.m[st->q0 + i], *o = st->a->o + (st->q0 + i) * st->a->o_stride;
    if (*m > -INFINITY) { /* else it has nothing */
        __m512 c = avx512_exp(_mm512_set1_ps(*m - top));
        for (size_t d = 0; d < st->a->dim; d += KERN_LANES) _mm512_storeu_ps(o + d, _mm512_mul_ps(c, _mm512_loadu_ps(o + d)));
        st->w->w.l[st->q0 + i] *= _mm512_cvtss_f32(c);
    }
    *m = top;
}

/* Scores to weights for n_q queries from i on, of which query g sees the first n[g] of the tile, maybe none. */
KERN_INLINE void soften_group(const tile_step *st, size_t i, const uint32_t *n, tile_weights *p, const int n_q)
{
    float *m = &st->w->w.m[st->q0 + i], *l = &st->w->w.l[st->q0 + i], top[KERN_GROUP], w[KERN_GROUP];
    const float *s = st->w->s + i * KERN_TILE, *v_scale = st->walk->v_scale + st->t->base;
    __m512 x[KERN_GROUP][4], sum[KERN_GROUP], largest[KERN_GROUP];
    bool peaked[KERN_GROUP];
    p->wide = n_q == 1; /* whose limit is memory: reading rows once gains nothing, and asking for their lines in fewer places costs (docs/PERF.md) */
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        __mmask64 seen = n[g] < KERN_TILE ? ((__mmask64)1 << n[g]) - 1 : UINT64_MAX;
        KERN_UNROLL for (int v = 0; v < 4; v++)
            x[g][v] = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(seen >> v * KERN_LANES), s + g * KERN_TILE + v * KERN_LANES);
        top[g] = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(x[g][0], x[g][1]), _mm512_max_ps(x[g][2], x[g][3])));
    }
    for (int g = 0; g < n_q; g++)
        if (top[g] > m[g]) raise_maximum(st, i + (size_t)g, top[g]);
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        KERN_UNROLL for (int v = 0; v < 4; v++) {
            x[g][v] = avx512_exp(_mm512_sub_ps(x[g][v], _mm512_set1_ps(m[g])));
            sum[g] = v ? _mm512_add_ps(sum[g], x[g][v]) : x[g][v];
            x[g][v] = _mm512_mul_ps(x[g][v], _mm512_loadu_ps(v_scale + v * KERN_LANES));
            largest[g] = v ? _mm512_max_ps(largest[g], x[g][v]) : x[g][v];
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        l[g] += avx512_fold(sum[g]);
        w[g] = _mm512_reduce_max_ps(largest[g]);
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        __m512i w8[4], all;
        bool some = w[g] >= KERN_Q8_LEAST;
        __m512 inverse = _mm512_set1_ps(some ? KERN_Q8_BYTE / w[g] : 0);
        KERN_UNROLL for (int v = 0; v < 4; v++) {
            w8[v] = _mm512_cvtps_epi32(_mm512_mul_ps(x[g][v], inverse));
            all = v ? _mm512_add_epi32(all, w8[v]) : w8[v];
            _mm_store_si128((__m128i *)(void *)(p->lo[g] + v * 4), _mm512_cvtepi32_epi8(w8[v]));
        }
        p->step[g] = some ? w[g] / KERN_Q8_BYTE : 0;
        peaked[g] = some && _mm512_reduce_add_epi32(all) < KERN_Q8_FLAT;
        p->wide |= peaked[g];
    }
    if (!p->wide) return;
    for (int g = 0; g < n_q; g++) {
        if (!peaked[g]) {
            _mm512_store_si512(p->hi[g], _mm512_setzero_si512());
            continue;
        }
        __m512 inverse = _mm512_set1_ps(KERN_Q8_MOST / w[g]);
        p->step[g] = w[g] / KERN_Q8_MOST;
        KERN_UNROLL for (int v = 0; v < 4; v++) {
            __m512i w16 = _mm512_cvtps_epi32(_mm512_mul_ps(x[g][v], inverse));
            _mm_store_si128((__m128i *)(void *)(p->hi[g] + v * 4), _mm512_cvtepi32_epi8(_mm512_srli_epi32(w16, 8)));
            _mm_store_si128((__m128i *)(void *)(p->lo[g] + v * 4), _mm512_cvtepi32_epi8(w16));
        }
    }
}

static void soften(const tile_step *st, size_t i, const uint32_t *n, tile_weights *p, int n_q)
{
    if (n_q == KERN_GROUP) soften_group(st, i, n, p, KERN_GROUP);
    else if (n_q == 3) soften_group(st, i, n, p, 3);
    else if (n_q == 2) soften_group(st, i, n, p, 2);
    else soften_group(st, i, n, p, 1);
}

/* ---- values ---------------------------------------------------------------------------------------------------------- */

/* The four vectors that four rows' 64 elements from d on make, or the lower or the upper two of them: lane (4 bytes) e of 128-bit part b of vector j has element
 * d + 16 b + 4 j + e of each row. */
KERN_INLINE void interleave(const tile_step *st, uint32_t t, size_t d, __mmask64 some, const bool lower, const bool upper, __m512i *out)
{
    __m512i r[4];
    const unsigned char *const *rows = st->t->rows + t;
    const size_t at = st->a->dim + d;
    KERN_UNROLL for (int k = 0; k < 4; k++) r[k] = some == UINT64_MAX ? _mm512_loadu_si512(rows[k] + at) : _mm512_maskz_loadu_epi8(some, rows[k] + at);
    if (lower) {
        __m512i ab = _mm512_unpacklo_epi8(r[0], r[1]), cd = _mm512_unpacklo_epi8(r[2], r[3]);
        *out++ = _mm512_unpacklo_epi16(ab, cd);
        *out++ = _mm512_unpackhi_epi16(ab, cd);
    }
    if (upper) {
        __m512i ab = _mm512_unpackhi_epi8(r[0], r[1]), cd = _mm512_unpackhi_epi8(r[2], r[3]);
        *out++ = _mm512_unpacklo_epi16(ab, cd);
        *out++ = _mm512_unpackhi_epi16(ab, cd);
    }
}

/* Sums over the first n rows (rounded up to 4) of n_q queries, whose weights are single bytes. */
KERN_INLINE void value_bytes(const tile_step *st, q8_ask *ask, const tile_weights *p, size_t d, __mmask64 some, uint32_t n, __m512i sum[][4], const int n_q,
                             const kern_hint hint)
{
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int j = 0; j < 4; j++) sum[g][j] = _mm512_setzero_si512();
    for (uint32_t t = 0; t < n; t += 4) {
        __m512i v[4];
        q8_ask_lines(ask, ASK_VALUES, hint);
        ask_near(st, ask, t + KERN_NEAR, st->a->dim + d, 4, hint);
        interleave(st, t, d, some, true, true, v);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m512i w = _mm512_set1_epi32(p->lo[g][t / 4]);
            KERN_UNROLL for (int j = 0; j < 4; j++) dot_bytes(sum[g][j], w, v[j]);
        }
    }
}

/* The same for weights of two bytes, and for two of the vectors. */
KERN_INLINE void value_half(const tile_step *st, q8_ask *ask, const tile_weights *p, size_t d, __mmask64 some, uint32_t n, __m512i sum[][4], const bool upper,
                            const int n_q, const kern_hint hint)
{
    __m512i hi[KERN_GROUP][2], lo[KERN_GROUP][2];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int j = 0; j < 2; j++) hi[g][j] = lo[g][j] = _mm512_setzero_si512();
    for (uint32_t t = 0; t < n; t += 4) {
        __m512i v[2];
        q8_ask_lines(ask, n_q == 1 ? 2 : ASK_VALUES / 2, hint);
        if (!upper) ask_near(st, ask, t + KERN_NEAR, st->a->dim + d, 4, hint);
        interleave(st, t, d, some, !upper, upper, v);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m512i h = _mm512_set1_epi32(p->hi[g][t / 4]), l = _mm512_set1_epi32(p->lo[g][t / 4]);
            KERN_UNROLL for (int j = 0; j < 2; j++) {
                dot_bytes(hi[g][j], h, v[j]);
                dot_bytes(lo[g][j], l, v[j]);
            }
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int j = 0; j < 2; j++) sum[g][2 * upper + j] = _mm512_add_epi32(_mm512_slli_epi32(hi[g][j], 8), lo[g][j]);
}

/* o += step * sums for up to 64 elements of one query, whose vectors are put in order: part b of vector j becomes part j of vector b. */
KERN_INLINE void add_sums(float *o, const __m512i *sum, float step, size_t n)
{
    __m512i a = _mm512_shuffle_i32x4(sum[0], sum[1], 0x44), b = _mm512_shuffle_i32x4(sum[0], sum[1], 0xee);
    __m512i c = _mm512_shuffle_i32x4(sum[2], sum[3], 0x44), e = _mm512_shuffle_i32x4(sum[2], sum[3], 0xee);
    __m512i x[4] = {_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xdd), _mm512_shuffle_i32x4(b, e, 0x88), _mm512_shuffle_i32x4(b, e, 0xdd)};
    KERN_UNROLL for (size_t v = 0; v < 4; v++)
        if (v * KERN_LANES < n)
            _mm512_storeu_ps(o + v * KERN_LANES, _mm512_fmadd_ps(_mm512_cvtepi32_ps(x[v]), _mm512_set1_ps(step), _mm512_loadu_ps(o + v * KERN_LANES)));
}

KERN_INLINE void value_group(const tile_step *st, q8_ask *ask, const tile_weights *p, size_t i, uint32_t n, const int n_q, const kern_hint hint)
{
    const size_t dim = st->a->dim;
    for (size_t d = 0; d < dim; d += 64) {
        size_t here = kern_min_size(64, dim - d);
        __m512i sum[KERN_GROUP][4];
        __mmask64 some = here == 64 ? UINT64_MAX : ((__mmask64)1 << here) - 1;
        if (p->wide) {
            value_half(st, ask, p, d, some, n, sum, false, n_q, hint);
            value_half(st, ask, p, d, some, n, sum, true, n_q, hint);
        } else if (here == 64) value_bytes(st, ask, p, d, UINT64_MAX, n, sum, n_q, hint);
        else value_bytes(st, ask, p, d, some, n, sum, n_q, hint);
        KERN_UNROLL for (int g = 0; g < n_q; g++)
            if (p->step[g] > 0) add_sums(st->a->o + (st->q0 + i + (size_t)g) * st->a->o_stride + d, sum[g], p->step[g], here);
    }
}

/* ---- a tile ---------------------------------------------------------------------------------------------------------- */

KERN_INLINE void attend_group(const tile_step *st, q8_ask *ask, size_t i, const int n_q, const kern_hint hint)
{
    tile_weights p;
    uint32_t n[KERN_GROUP], most = 0;
    for (int g = 0; g < n_q; g++) {
        n[g] = kern_tile_valid(st->a, st->t, st->q0 + i + (size_t)g);
        most = n[g] > most ? n[g] : most;
    }
    if (!most) return;
    soften(st, i, n, &p, n_q);
    value_group(st, ask, &p, i, most, n_q, hint);
}

/* The tile's part of the block's n queries. */
KERN_INLINE void attend_tile(const tile_step *st, q8_ask ask, size_t n, const kern_hint hint)
{
    uint32_t end, last = st->t->base + st->t->n;
    for (uint32_t at = st->t->base; at < last; at = end) {
        uint32_t run = st->walk->run;
        const float *k_scale = q8_walk_run(st->walk, st->t, at, &end);
        const bool tree = n <= FEW || q8_walk_rows(st->walk) <= FEW_ROWS;
        if (at == 0 || st->walk->run != run) prepare(st, n, k_scale, tree);
        score_rows(st, &ask, n, at - st->t->base, end - st->t->base, tree, hint);
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

/* ---- a call ---------------------------------------------------------------------------------------------------------- */

static void finish(const kern_attend_args *a, const kern_attend_work *w)
{
    for (size_t i = 0; i < a->n_q; i++) {
        a->lse[i] = w->l[i] > 0 ? kern_attend_lse(w->m[i], w->l[i]) : -INFINITY;
        if (!(w->l[i] > 0)) continue;
        __m512 l = _mm512_set1_ps(w->l[i]);
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += KERN_LANES) _mm512_storeu_ps(o + d, _mm512_div_ps(_mm512_loadu_ps(o + d), l));
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
    const kern_order order = kern_walk_order(&walk.rows, a->n_spans);
    const bool near = hint == KERN_HINT_T1 && a->n_q <= (order == KERN_ORDER_SINGLE ? 0 : order == KERN_ORDER_SHORT ? KERN_GROUP : 1); /* where more queries gain nothing, or lose 4 % */
    if (near && order == KERN_ORDER_SHORT) kern_walk_touch(&walk.rows, a);
    for (size_t q0 = 0; q0 < a->n_q; q0 += Q8_BLOCK) {
        size_t n = kern_min_size(Q8_BLOCK, a->n_q - q0);
        walk.rows.base = walk.run = 0;
        for (kern_walk_next(&walk.rows, &t); t.n; kern_walk_next(&walk.rows, &t)) {
            tile_step st = {.a = a, .w = &w, .walk = &walk, .t = &t, .q0 = q0};
            q8_ask ask = q8_ask_begin(&walk, &t, hint != KERN_HINT_NONE && q0 == 0);
            ask.near = near;
            if (hint == KERN_HINT_T0) attend_tile_t0(&st, ask, n);
            else attend_tile_t1(&st, ask, n);
        }
    }
    finish(a, &w.w);
}

void kern_fill_avx512vnni_q8(kern_table *t)
{
    t->attend_q8 = attend_q8;
}
