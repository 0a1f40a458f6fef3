/* kern_avx512vnni_many.c - attention of many queries to tiles of K and V, in integers of 16 bits (kern.h has the arithmetic).
 *
 * A tile is converted once: keys with pairs of channels side by side and positions in lanes, [dim / 2][KERN_MANY], values with pairs of positions side by side and
 * channels in lanes, [KERN_MANY / 2][dim], which is what vpdpwssd multiplies.  Then groups of up to 6 queries pass over it: scores, weights, values.
 * Bound: 2 * n * dim / 32 vpdpwssd a query, one a cycle. */
#include <float.h>

#include "kern_avx512.h"
#include "kern_avx512vnni.h"
#include "kern_many.h"

KERN_INLINE __m512 halves_at(const kern_f16 *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* ------------------------------------------------------------------------------------------------- tiles ---- */

/* The middle of each channel's values and the size of a step, MANY_K_MOST (MANY_V_MOST) of which are half their range. */
static void find_ranges(const kern_f16 *rows, size_t n, size_t dim, const many_work *w)
{
    for (size_t c = 0; c < 2 * dim; c += KERN_LANES) {
        __m512 low = halves_at(rows + c), high = low;
        for (size_t t = 1; t < n; t++) {
            __m512 x = halves_at(rows + t * 2 * dim + c);
            low = _mm512_min_ps(low, x), high = _mm512_max_ps(high, x);
        }
        __m512 half = _mm512_set1_ps(0.5f), a = _mm512_mul_ps(low, half), b = _mm512_mul_ps(high, half);
        _mm512_storeu_ps(w->mid + c, _mm512_add_ps(a, b));
        _mm512_storeu_ps(w->step + c, _mm512_mul_ps(_mm512_sub_ps(b, a), _mm512_set1_ps(c < dim ? 1.0f / MANY_K_MOST : 1.0f / MANY_V_MOST)));
    }
}

/* Sixteen channels from c on of one row as integers; inverse: of the step. */
KERN_INLINE __m512i integers_at(const kern_f16 *row, size_t c, __m512 mid, __m512 inverse)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(halves_at(row + c), mid), inverse));
}

KERN_INLINE __m512 inverse_of(__m512 step)
{
    __mmask16 some = _mm512_cmp_ps_mask(step, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
    return _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), step);
}

/* Lane i of vector j becomes lane j of vector i. */
KERN_INLINE void transpose16(__m512i *v)
{
    __m512i t[16];
    KERN_UNROLL for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    KERN_UNROLL for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), b = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88), d = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88), t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd), t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    KERN_UNROLL for (int i = 0; i < 16; i++) v[i] = t[i];
}

/* Keys of 16 positions from t on, 32 channels from c on (or the last 16).  Positions from n on repeat the last one: nothing comes of them. */
static void convert_keys(const kern_f16 *rows, size_t n, size_t t, size_t dim, size_t c, const many_work *w)
{
    bool both = c + 2 * KERN_LANES <= dim;
    __m512 mid_a = _mm512_loadu_ps(w->mid + c), inverse_a = inverse_of(_mm512_loadu_ps(w->step + c)), mid_b = mid_a, inverse_b = inverse_a;
    if (both) mid_b = _mm512_loadu_ps(w->mid + c + KERN_LANES), inverse_b = inverse_of(_mm512_loadu_ps(w->step + c + KERN_LANES));
    __m512i v[16];
    for (size_t i = 0; i < 16; i++) {
        const kern_f16 *row = rows + (t + i < n ? t + i : n - 1) * 2 * dim;
        __m256i a = _mm512_cvtepi32_epi16(integers_at(row, c, mid_a, inverse_a)), b = a;
        if (both) b = _mm512_cvtepi32_epi16(integers_at(row, c + KERN_LANES, mid_b, inverse_b));
        v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    transpose16(v);
    for (size_t j = 0; j < (both ? 16u : 8u); j++) _mm512_store_si512(w->k + (c / 2 + j) * KERN_MANY + t, v[j]);
}

static void convert_values(const kern_f16 *rows, size_t n, size_t dim, const many_work *w)
{
    for (size_t c = 0; c < dim; c += KERN_LANES) {
        __m512 mid = _mm512_loadu_ps(w->mid + dim + c), inverse = inverse_of(_mm512_loadu_ps(w->step + dim + c));
        for (size_t t = 0; t < n; t += 2) {
            __m512i a = integers_at(rows + t * 2 * dim + dim, c, mid, inverse), b = _mm512_setzero_si512();
            if (t + 1 < n) b = integers_at(rows + (t + 1) * 2 * dim + dim, c, mid, inverse);
            _mm512_storeu_si512(w->v + t / 2 * dim + c, _mm512_mask_blend_epi16(0xaaaaaaaau, a, _mm512_slli_epi32(b, 16)));
        }
    }
}

/* ------------------------------------------------------------------------------------------------ groups ---- */

/* 2^x for x from -126 to 0. */
KERN_INLINE __m512 exp2_of(__m512 x)
{
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(MANY_EXP2_C4), r, _mm512_set1_ps(MANY_EXP2_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MANY_EXP2_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MANY_EXP2_C1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MANY_EXP2_C0));
    return _mm512_scalef_ps(p, n);
}

KERN_INLINE __m512 within_floats(__m512 x)
{
    return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-FLT_MAX)), _mm512_set1_ps(FLT_MAX));
}

KERN_INLINE float query_step(float largest, float sum)
{
    const float by_size = largest / MANY_Q_MOST, by_sum = sum / MANY_SUM_MOST;
    return by_size > by_sum ? by_size : by_sum;
}

KERN_INLINE void prepare(const kern_many *a, const many_work *w, size_t q0, const int n_q, many_group *g)
{
    __m512 most[MANY_QUERIES], sum[KERN_LANES], base[KERN_LANES];
    float sums[KERN_LANES];
    KERN_UNROLL for (int r = 0; r < KERN_LANES; r++) sum[r] = base[r] = _mm512_setzero_ps();
    KERN_UNROLL for (int r = 0; r < n_q; r++) {
        const float *q = a->q + (q0 + (size_t)r) * a->dim;
        most[r] = _mm512_setzero_ps();
        for (size_t c = 0; c < a->dim; c += KERN_LANES) {
            __m512 x = _mm512_loadu_ps(q + c), size = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_loadu_ps(w->step + c)));
            base[r] = _mm512_fmadd_ps(x, _mm512_loadu_ps(w->mid + c), base[r]);
            most[r] = _mm512_max_ps(most[r], size);
            sum[r] = _mm512_add_ps(sum[r], size);
        }
    }
    _mm512_storeu_ps(g->base, within_floats(_mm512_mul_ps(avx512_fold16(base), _mm512_set1_ps(KERN_LOG2E))));
    _mm512_storeu_ps(sums, avx512_fold16(sum));
    KERN_UNROLL for (int r = 0; r < n_q; r++) {
        const float *q = a->q + (q0 + (size_t)r) * a->dim;
        float step = query_step(_mm512_reduce_max_ps(most[r]), sums[r]);
        __m512 inverse = _mm512_set1_ps(step > 1e-30f ? 1.0f / step : 0.0f);
        g->step[r] = step > 1e-30f ? step * KERN_LOG2E : 0.0f;
        for (size_t c = 0; c < a->dim; c += KERN_LANES) {
            __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(q + c), _mm512_loadu_ps(w->step + c)), inverse);
            _mm256_storeu_si256((__m256i *)(void *)(w->q + (size_t)r * a->dim + c), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
        }
    }
}

/* Scores with n_v vectors of positions from vector v0 on. */
KERN_INLINE void score_part(const many_work *w, size_t dim, int v0, const int n_q, const int n_v, const many_group *g)
{
    __m512i acc[MANY_QUERIES][4];
    KERN_UNROLL for (int r = 0; r < n_q; r++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[r][v] = _mm512_setzero_si512();
    const int32_t *k = w->k + v0 * KERN_LANES;
    for (size_t j = 0; j < dim / 2; j++, k += KERN_MANY) {
        __m512i x[4];
        KERN_UNROLL for (int v = 0; v < n_v; v++) x[v] = _mm512_load_si512(k + v * KERN_LANES);
        KERN_UNROLL for (int r = 0; r < n_q; r++) {
            __m512i q = _mm512_set1_epi32(*(const dot_lane *)(const void *)(w->q + (size_t)r * dim + 2 * j));
            KERN_UNROLL for (int v = 0; v < n_v; v++) dot_words(acc[r][v], x[v], q);
        }
    }
    KERN_UNROLL for (int r = 0; r < n_q; r++) {
        __m512 step = _mm512_set1_ps(g->step[r]), base = _mm512_set1_ps(g->base[r]);
        KERN_UNROLL for (int v = 0; v < n_v; v++)
            _mm512_store_ps(w->s + r * KERN_MANY + (v0 + v) * KERN_LANES, within_floats(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][v]), step, base)));
    }
}

/* Weights of one query's n scores. */
KERN_INLINE void weigh(const many_work *w, int r, size_t n, many_group *g)
{
    float *s = w->s + r * KERN_MANY;
    int16_t *p = w->p + r * KERN_MANY;
    size_t end = (n + KERN_LANES - 1) / KERN_LANES * KERN_LANES;
    for (size_t t = n; t < end; t++) s[t] = -INFINITY;
    __m512 largest = _mm512_load_ps(s);
    for (size_t t = KERN_LANES; t < end; t += KERN_LANES) largest = _mm512_max_ps(largest, _mm512_load_ps(s + t));
    float most = _mm512_reduce_max_ps(largest);
    __m512 base = _mm512_set1_ps(most), least = _mm512_set1_ps(-126.0f), steps = _mm512_set1_ps(MANY_P_MOST);
    __m512i sum = _mm512_setzero_si512();
    for (size_t t = 0; t < end; t += KERN_LANES) {
        __m512 x = _mm512_max_ps(_mm512_sub_ps(_mm512_load_ps(s + t), base), least);
        __m512i weight = _mm512_cvtps_epi32(_mm512_mul_ps(exp2_of(x), steps));
        sum = _mm512_add_epi32(sum, weight);
        _mm256_store_si256((__m256i *)(void *)(p + t), _mm512_cvtepi32_epi16(weight));
    }
    g->most[r] = most;
    g->sum[r] = (float)_mm512_reduce_add_epi32(sum);
}

/* o of n_q queries, n_v vectors of channels from c on. */
KERN_INLINE void value_part(const kern_many *a, const many_work *w, size_t q0, size_t c, size_t n, const int n_q, const int n_v, const float *keep, const float *scale,
                            const many_group *g)
{
    __m512i acc[MANY_QUERIES][4];
    KERN_UNROLL for (int r = 0; r < n_q; r++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[r][v] = _mm512_setzero_si512();
    const int32_t *at = w->v + c;
    for (size_t t = 0; t < n; t += 2, at += a->dim) {
        __m512i x[4];
        KERN_UNROLL for (int v = 0; v < n_v; v++) x[v] = _mm512_loadu_si512(at + v * KERN_LANES);
        KERN_UNROLL for (int r = 0; r < n_q; r++) {
            __m512i p = _mm512_set1_epi32(*(const dot_lane *)(const void *)(w->p + r * KERN_MANY + t));
            KERN_UNROLL for (int v = 0; v < n_v; v++) dot_words(acc[r][v], x[v], p);
        }
    }
    KERN_UNROLL for (int v = 0; v < n_v; v++) {
        size_t i = c + (size_t)v * KERN_LANES;
        __m512 mid = _mm512_loadu_ps(w->mid + a->dim + i), step = _mm512_loadu_ps(w->step + a->dim + i);
        KERN_UNROLL for (int r = 0; r < n_q; r++) {
            float *o = a->o + (q0 + (size_t)r) * a->dim + i;
            __m512 x = _mm512_fmadd_ps(mid, _mm512_set1_ps(g->sum[r]), _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), step));
            _mm512_storeu_ps(o, _mm512_fmadd_ps(x, _mm512_set1_ps(scale[r]), _mm512_mul_ps(_mm512_loadu_ps(o), _mm512_set1_ps(keep[r]))));
        }
    }
}

KERN_INLINE void group(const kern_many *a, const many_work *w, size_t q0, size_t n, const int n_q)
{
    many_group g = {.step = {0}};
    float keep[KERN_LANES], scale[KERN_LANES];
    int n_v = (int)((n + KERN_LANES - 1) / KERN_LANES), v = 0;
    prepare(a, w, q0, n_q, &g);
    for (; v + 4 <= n_v; v += 4) score_part(w, a->dim, v, n_q, 4, &g);
    for (; v < n_v; v++) score_part(w, a->dim, v, n_q, 1, &g);
    KERN_UNROLL for (int r = 0; r < n_q; r++) weigh(w, r, n, &g);

    __mmask16 some = avx512_first((size_t)n_q);
    __m512 least = _mm512_set1_ps(-126.0f), old = _mm512_maskz_loadu_ps(some, a->m + q0), now = _mm512_maskz_loadu_ps(some, g.most);
    __m512 most = _mm512_max_ps(old, now), kept = exp2_of(_mm512_max_ps(_mm512_sub_ps(old, most), least)), scaled = exp2_of(_mm512_max_ps(_mm512_sub_ps(now, most), least));
    _mm512_storeu_ps(keep, kept), _mm512_storeu_ps(scale, scaled);
    _mm512_mask_storeu_ps(a->m + q0, some, most);
    __m512 l = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, g.sum), scaled, _mm512_mul_ps(_mm512_maskz_loadu_ps(some, a->l + q0), kept));
    _mm512_mask_storeu_ps(a->l + q0, some, l);

    size_t c = 0;
    for (; c + 4 * KERN_LANES <= a->dim; c += 4 * KERN_LANES) value_part(a, w, q0, c, n, n_q, 4, keep, scale, &g);
    for (; c < a->dim; c += KERN_LANES) value_part(a, w, q0, c, n, n_q, 1, keep, scale, &g);
}

static void many_tile(const kern_many *a, const void *rows, uint32_t n)
{
    if (!n || !a->n_q) return;
    many_work w = many_lay_out(a->scratch, a->dim);
    find_ranges(rows, n, a->dim, &w);
    for (size_t t = 0; t < n; t += KERN_LANES)
        for (size_t c = 0; c < a->dim; c += 2 * KERN_LANES) convert_keys(rows, n, t, a->dim, c, &w);
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
        __m512 l = _mm512_set1_ps(a->l[i]);
        for (size_t c = 0; c < a->dim; c += KERN_LANES) _mm512_storeu_ps(o + c, _mm512_div_ps(_mm512_loadu_ps(o + c), l));
    }
}

void kern_fill_avx512vnni_many(kern_table *t)
{
    t->many_tile = many_tile;
    t->many_end = many_end;
}
