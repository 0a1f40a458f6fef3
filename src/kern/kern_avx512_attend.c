/* kern_avx512_attend.c - attention over tiles of K and V rows, and the merge of partials, for AVX-512.
 *
 * Few queries (decode) read the half rows straight, converting as they load, and ask for the rows of the next tile; many (a prompt) first
 * convert the tile to floats once.  Conversion is exact and all else is the same code, so both give the same bits. */
#include "kern_attend.h"
#include "kern_avx512.h"

#include <float.h>
#include <string.h>

/* Into L2, one tile ahead: measured on Zen 4 at twice the rate of a prefetch into L1; two tiles ahead gained nothing. */
#define PREFETCH_HINT _MM_HINT_T1
enum { FEW = 16 }; /* queries up to which converting on every load is cheaper than a converted tile */

/* One tile for one call. */
typedef struct tile_step {
    const kern_attend_args *a;
    const kern_attend_work *w;
    const kern_tile *t;
    const unsigned char *const *rows; /* K row then V row of each position: halves in the store, or floats in the scratch */
    const unsigned char *const *next; /* the next tile's rows to ask for, or NULL */
} tile_step;

/* Sixteen elements from element i of a row. */
KERN_INLINE __m512 load_row(const unsigned char *row, size_t i, const bool half)
{
    return half ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i))) : _mm512_loadu_ps((const void *)(row + 4 * i));
}

KERN_INLINE void prefetch_rows(const unsigned char *const *rows, const int n, size_t from, size_t bytes)
{
    KERN_UNROLL for (int i = 0; i < n; i++)
        for (size_t b = 0; b < bytes; b += 64) _mm_prefetch((const void *)(rows[i] + from + b), PREFETCH_HINT);
}

/* Scores of n_q queries from q0 on with the first n positions, at least; KERN_TILE scores a query in w->s.  A score beyond the range of floats
 * becomes its largest (of either sign), so that differences of scores are numbers. */
KERN_INLINE void score_group(const tile_step *st, size_t q0, uint32_t n, const int n_q, const bool half)
{
    const int n_t = n_q == 3 ? 4 : KERN_LANES / n_q;
    const size_t dim = st->a->dim, stride = st->a->q_stride;
    const float *q = st->a->q + q0 * stride;
    for (uint32_t t = 0; t < n; t += (uint32_t)n_t) {
        const unsigned char *const *rows = st->rows + t;
        __m512 acc[KERN_LANES];
        float sum[KERN_LANES];
        KERN_UNROLL for (int i = 0; i < KERN_LANES; i++) acc[i] = _mm512_setzero_ps();
        if (st->next) prefetch_rows(st->next + t, n_t, 0, 2 * dim);
        for (size_t d = 0; d < dim; d += KERN_LANES) {
            __m512 qv[KERN_GROUP];
            KERN_UNROLL for (int g = 0; g < n_q; g++) qv[g] = _mm512_loadu_ps(q + (size_t)g * stride + d);
            KERN_UNROLL for (int i = 0; i < n_t; i++) {
                __m512 k = load_row(rows[i], d, half);
                KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g * n_t + i] = _mm512_fmadd_ps(qv[g], k, acc[g * n_t + i]);
            }
        }
        __m512 s = _mm512_max_ps(avx512_fold16(acc), _mm512_set1_ps(-FLT_MAX));
        _mm512_storeu_ps(sum, _mm512_min_ps(s, _mm512_set1_ps(FLT_MAX)));
        KERN_UNROLL for (int g = 0; g < n_q; g++) memcpy(st->w->s + g * KERN_TILE + t, sum + g * n_t, (size_t)n_t * sizeof(float));
    }
}

/* Scores to exponentials for query i, whose n >= 1 scores are at s: raises its maximum (and rescales what it has) if the tile has a larger one,
 * then adds to its sum. */
static void soften(const kern_attend_args *a, const kern_attend_work *w, size_t i, float *s, uint32_t n)
{
    uint32_t end = (n + KERN_LANES - 1) / KERN_LANES * KERN_LANES;
    for (uint32_t t = n; t < end; t++) s[t] = -INFINITY;
    __m512 most = _mm512_loadu_ps(s), sum = _mm512_setzero_ps();
    for (uint32_t t = KERN_LANES; t < end; t += KERN_LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(s + t));
    float m = _mm512_reduce_max_ps(most);
    if (m > w->m[i]) {
        __m512 c = avx512_exp(_mm512_set1_ps(w->m[i] - m));
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += KERN_LANES) _mm512_storeu_ps(o + d, _mm512_mul_ps(c, _mm512_loadu_ps(o + d)));
        w->l[i] *= _mm512_cvtss_f32(c);
        w->m[i] = m;
    }
    __m512 base = _mm512_set1_ps(w->m[i]);
    for (uint32_t t = 0; t < end; t += KERN_LANES) {
        __m512 p = avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(s + t), base));
        _mm512_storeu_ps(s + t, p);
        sum = _mm512_add_ps(sum, p);
    }
    w->l[i] += avx512_fold(sum);
}

/* o += p V for n_q queries and n_v vectors of elements from d on, positions [from, to). */
KERN_INLINE void value_block(const tile_step *st, const float *p, float *o, size_t d, uint32_t from, uint32_t to, const int n_q, const int n_v,
                             const bool half)
{
    const size_t stride = st->a->o_stride, dim = st->a->dim;
    __m512 acc[KERN_GROUP][4];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g][v] = _mm512_loadu_ps(o + (size_t)g * stride + d + (size_t)v * KERN_LANES);
    for (uint32_t t = from; t < to; t++) {
        __m512 x[4];
        if (st->next) prefetch_rows(st->next + t, 1, 2 * dim + 2 * d, 2 * KERN_LANES * (size_t)n_v);
        KERN_UNROLL for (int v = 0; v < n_v; v++) x[v] = load_row(st->rows[t], dim + d + (size_t)v * KERN_LANES, half);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m512 pg = _mm512_set1_ps(p[g * KERN_TILE + (int)t]);
            KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g][v] = _mm512_fmadd_ps(pg, x[v], acc[g][v]);
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) _mm512_storeu_ps(o + (size_t)g * stride + d + (size_t)v * KERN_LANES, acc[g][v]);
}

KERN_INLINE void value_group(const tile_step *st, const float *p, float *o, uint32_t from, uint32_t to, const int n_q, const bool half)
{
    size_t d = 0, dim = st->a->dim;
    for (; d + 4 * KERN_LANES <= dim; d += 4 * KERN_LANES) value_block(st, p, o, d, from, to, n_q, 4, half);
    for (; d + 2 * KERN_LANES <= dim; d += 2 * KERN_LANES) value_block(st, p, o, d, from, to, n_q, 2, half);
    if (d < dim) value_block(st, p, o, d, from, to, n_q, 1, half);
}

/* The tile's part of n_q <= KERN_GROUP queries from q0 on: what all of them see together, then each one's rest. */
KERN_INLINE void attend_group(const tile_step *st, size_t q0, const int n_q, const bool half)
{
    uint32_t n[KERN_GROUP], least = KERN_TILE, most = 0;
    float *s = st->w->s, *o = st->a->o + q0 * st->a->o_stride;
    for (int g = 0; g < n_q; g++) {
        n[g] = kern_tile_valid(st->a, st->t, q0 + (size_t)g);
        least = n[g] < least ? n[g] : least;
        most = n[g] > most ? n[g] : most;
    }
    score_group(st, q0, most, n_q, half);
    for (int g = 0; g < n_q; g++)
        if (n[g]) soften(st->a, st->w, q0 + (size_t)g, s + g * KERN_TILE, n[g]);
    if (least) value_group(st, s, o, 0, least, n_q, half);
    for (int g = 0; g < n_q; g++)
        if (n[g] > least) value_group(st, s + g * KERN_TILE, o + (size_t)g * st->a->o_stride, least, n[g], 1, half);
}

KERN_INLINE void attend_queries(tile_step st, const bool half)
{
    size_t q = 0;
    for (; q + KERN_GROUP <= st.a->n_q; q += KERN_GROUP) {
        attend_group(&st, q, KERN_GROUP, half);
        st.next = NULL; /* one group asks for all */
    }
    size_t rest = st.a->n_q - q;
    if (rest == 3) attend_group(&st, q, 3, half);
    if (rest == 2) attend_group(&st, q, 2, half);
    if (rest == 1) attend_group(&st, q, 1, half);
}

static void attend_from_halves(const tile_step *st)
{
    attend_queries(*st, true);
}

static void attend_from_floats(const tile_step *st)
{
    attend_queries(*st, false);
}

/* The tile's rows as floats; rows[] says where. */
static void convert_tile(const kern_attend_args *a, const kern_tile *t, float *tile, const unsigned char **rows)
{
    for (uint32_t i = 0; i < KERN_TILE; i++) {
        uint32_t from = i < t->n ? i : t->n - 1;
        rows[i] = (const unsigned char *)(tile + from * 2 * a->dim);
        for (size_t d = 0; d < 2 * a->dim && i < t->n; d += KERN_LANES) _mm512_storeu_ps(tile + i * 2 * a->dim + d, load_row(t->rows[i], d, true));
    }
}

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

static void attend(const kern_attend_args *a)
{
    kern_attend_work w = kern_attend_begin(a);
    kern_walk walk = kern_walk_begin(a);
    kern_tile tiles[2];
    const unsigned char *float_rows[KERN_TILE];
    kern_walk_next(&walk, &tiles[0]);
    for (int now = 0; tiles[now].n; now ^= 1) {
        const kern_tile *t = &tiles[now];
        kern_walk_next(&walk, &tiles[now ^ 1]);
        tile_step st = {.a = a, .w = &w, .t = t, .rows = t->rows, .next = tiles[now ^ 1].rows};
        if (a->f32) {
            st.next = NULL;
            attend_from_floats(&st);
        } else if (a->n_q <= FEW) {
            attend_from_halves(&st);
        } else {
            convert_tile(a, t, w.tile, float_rows);
            st.rows = float_rows;
            st.next = NULL;
            attend_from_floats(&st);
        }
    }
    finish(a, &w);
}

static void merge(float *oa, float *la, const float *ob, float lb, size_t dim)
{
    float wa, wb;
    if (lb == -INFINITY) return;
    if (*la == -INFINITY) {
        memcpy(oa, ob, dim * sizeof *oa);
        *la = lb;
        return;
    }
    kern_merge_weights(la, lb, &wa, &wb);
    __m512 a = _mm512_set1_ps(wa), b = _mm512_set1_ps(wb);
    for (size_t d = 0; d < dim; d += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, dim - d));
        __m512 v = _mm512_mul_ps(b, _mm512_maskz_loadu_ps(some, ob + d));
        _mm512_mask_storeu_ps(oa + d, some, _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(some, oa + d), v));
    }
}

void kern_fill_avx512_attend(kern_table *t)
{
    t->attend = attend;
    t->merge = merge;
}
