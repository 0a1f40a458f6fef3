/* kern_avx2_attend.c - attention over tiles of K and V rows, and the merge of partials, for AVX2 with FMA and F16C.
 *
 * Few queries (decode) read the half rows straight, converting as they load, and ask for rows ahead as the tuning says; many (a prompt) first
 * convert the tile to floats once.  Conversion is exact and all else is the same code, so both give the same bits. */
#include "kern_attend.h"
#include "kern_avx2.h"

#include <float.h>
#include <limits.h>
#include <string.h>

enum {
    FEW = 16,  /* queries up to which converting on every load is cheaper than a converted tile */
    LINE = 64, /* bytes of a cache line */
};

/* What a row holds, and the hint that it is asked for with: a hint is part of the instruction, so each has code of its own. */
typedef enum row_form { ROWS_F32, ROWS_F16_T0, ROWS_F16_T1 } row_form;

/* One tile for one call. */
typedef struct tile_step {
    const kern_attend_args *a;
    const kern_attend_work *w;
    const kern_tile *t;
    const unsigned char *const *rows; /* K row then V row of each position: halves in the store, or floats in the scratch */
    const unsigned char *const *next; /* the row to ask for next, or NULL */
    const unsigned char *const *last; /* the last one to ask for in this tile */
    size_t row_bytes, asked;          /* bytes of the row at *next that have been asked for */
    unsigned every, turn;             /* groups of queries, each of which asks for its share: one time in so many; times until the next one */
} tile_step;

/* Eight elements from element i of a row. */
KERN_INLINE __m256 load_row(const unsigned char *row, size_t i, const row_form form)
{
    return form != ROWS_F32 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i))) : _mm256_loadu_ps((const void *)(row + 4 * i));
}

/* Asks for the next n lines, in the order of memory and in step with what the arithmetic uses: a processor drops what is asked for when too much is on its way,
 * and its own prefetcher goes along with an order that it knows. */
KERN_INLINE void ask_lines(tile_step *st, const int n, const row_form form)
{
    if (form == ROWS_F32 || --st->turn) return;
    st->turn = st->every;
    KERN_UNROLL for (int i = 0; i < n; i++) {
        const void *p = *st->next + st->asked;
        if (form == ROWS_F16_T0) _mm_prefetch(p, _MM_HINT_T0);
        else _mm_prefetch(p, _MM_HINT_T1);
        st->asked += LINE;
        if (st->asked < st->row_bytes) continue;
        st->asked = 0;
        if (st->next < st->last) st->next++;
    }
}

/* One half of the lanes, from element `first` (0 or 8) of every 16, of the dot products of n_q queries and n_t rows. */
KERN_INLINE void score_half(tile_step *st, const float *q, const unsigned char *const *rows, size_t first, __m256 *acc, const int n_q,
                            const int n_t, const row_form form)
{
    const size_t dim = st->a->dim, stride = st->a->q_stride;
    KERN_UNROLL for (int i = 0; i < AVX2_LANES; i++) acc[i] = _mm256_setzero_ps();
    for (size_t d = first; d < dim; d += KERN_LANES) {
        __m256 qv[KERN_GROUP];
        if (n_t >= 4) ask_lines(st, n_t / 4, form);
        else if (d % (2 * KERN_LANES) == first) ask_lines(st, 1, form);
        KERN_UNROLL for (int g = 0; g < n_q; g++) qv[g] = _mm256_loadu_ps(q + (size_t)g * stride + d);
        KERN_UNROLL for (int i = 0; i < n_t; i++) {
            __m256 k = load_row(rows[i], d, form);
            KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g * n_t + i] = _mm256_fmadd_ps(qv[g], k, acc[g * n_t + i]);
        }
    }
}

/* Scores of n_q queries from q0 on with the first n positions, at least; KERN_TILE scores a query in w->s.  A score beyond the range of floats
 * becomes its largest (of either sign), so that differences of scores are numbers. */
KERN_INLINE void score_group(tile_step *st, size_t q0, uint32_t n, const int n_q, const row_form form)
{
    const int n_t = n_q == 3 ? 2 : AVX2_LANES / n_q;
    const float *q = st->a->q + q0 * st->a->q_stride;
    for (uint32_t t = 0; t < n; t += (uint32_t)n_t) {
        __m256 low[AVX2_LANES], high[AVX2_LANES];
        float sum[AVX2_LANES];
        score_half(st, q, st->rows + t, 0, low, n_q, n_t, form);
        score_half(st, q, st->rows + t, AVX2_LANES, high, n_q, n_t, form);
        KERN_UNROLL for (int i = 0; i < AVX2_LANES; i++) low[i] = _mm256_add_ps(low[i], high[i]);
        __m256 s = _mm256_max_ps(avx2_fold8(low), _mm256_set1_ps(-FLT_MAX));
        _mm256_storeu_ps(sum, _mm256_min_ps(s, _mm256_set1_ps(FLT_MAX)));
        KERN_UNROLL for (int g = 0; g < n_q; g++) memcpy(st->w->s + g * KERN_TILE + t, sum + g * n_t, (size_t)n_t * sizeof(float));
    }
}

KERN_INLINE float largest_lane(__m256 v)
{
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

/* Scores to exponentials for query i, whose n >= 1 scores are at s: raises its maximum (and rescales what it has) if the tile has a larger one,
 * then adds to its sum. */
static void soften(const kern_attend_args *a, const kern_attend_work *w, size_t i, float *s, uint32_t n)
{
    uint32_t end = (n + KERN_LANES - 1) / KERN_LANES * KERN_LANES;
    for (uint32_t t = n; t < end; t++) s[t] = -INFINITY;
    __m256 most = _mm256_loadu_ps(s), low = _mm256_setzero_ps(), high = low;
    for (uint32_t t = AVX2_LANES; t < end; t += AVX2_LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(s + t));
    float m = largest_lane(most);
    if (m > w->m[i]) {
        __m256 c = avx2_exp(_mm256_set1_ps(w->m[i] - m));
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += AVX2_LANES) _mm256_storeu_ps(o + d, _mm256_mul_ps(c, _mm256_loadu_ps(o + d)));
        w->l[i] *= _mm256_cvtss_f32(c);
        w->m[i] = m;
    }
    __m256 base = _mm256_set1_ps(w->m[i]);
    for (uint32_t t = 0; t < end; t += KERN_LANES) {
        __m256 p = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + t), base)), r = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + t + AVX2_LANES), base));
        _mm256_storeu_ps(s + t, p);
        _mm256_storeu_ps(s + t + AVX2_LANES, r);
        low = _mm256_add_ps(low, p);
        high = _mm256_add_ps(high, r);
    }
    w->l[i] += avx2_fold(low, high);
}

/* o += p V for n_q queries and n_v vectors of elements from d on, positions [from, to). */
KERN_INLINE void value_block(tile_step *st, const float *p, float *o, size_t d, uint32_t from, uint32_t to, const int n_q, const int n_v,
                             const row_form form)
{
    const bool ask = d % (2 * KERN_LANES) == 0;
    const size_t stride = st->a->o_stride, dim = st->a->dim;
    __m256 acc[KERN_GROUP][4];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g][v] = _mm256_loadu_ps(o + (size_t)g * stride + d + (size_t)v * AVX2_LANES);
    for (uint32_t t = from; t < to; t++) {
        __m256 pg[KERN_GROUP];
        if (ask) ask_lines(st, 1, form);
        KERN_UNROLL for (int g = 0; g < n_q; g++) pg[g] = _mm256_set1_ps(p[g * KERN_TILE + (int)t]);
        KERN_UNROLL for (int v = 0; v < n_v; v++) {
            __m256 x = load_row(st->rows[t], dim + d + (size_t)v * AVX2_LANES, form);
            KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g][v] = _mm256_fmadd_ps(pg[g], x, acc[g][v]);
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) _mm256_storeu_ps(o + (size_t)g * stride + d + (size_t)v * AVX2_LANES, acc[g][v]);
}

KERN_INLINE void value_group(tile_step *st, const float *p, float *o, uint32_t from, uint32_t to, const int n_q, const row_form form)
{
    size_t d = 0, dim = st->a->dim;
    for (; d + 4 * AVX2_LANES <= dim && n_q <= 3; d += 4 * AVX2_LANES) value_block(st, p, o, d, from, to, n_q, 4, form);
    for (; d < dim; d += 2 * AVX2_LANES) value_block(st, p, o, d, from, to, n_q, 2, form);
}

/* The tile's part of n_q <= KERN_GROUP queries from q0 on: what all of them see together, then each one's rest. */
KERN_INLINE void attend_group(tile_step *st, size_t q0, const int n_q, const row_form form)
{
    uint32_t n[KERN_GROUP], least = KERN_TILE, most = 0;
    float *s = st->w->s, *o = st->a->o + q0 * st->a->o_stride;
    for (int g = 0; g < n_q; g++) {
        n[g] = kern_tile_valid(st->a, st->t, q0 + (size_t)g);
        least = n[g] < least ? n[g] : least;
        most = n[g] > most ? n[g] : most;
    }
    score_group(st, q0, most, n_q, form);
    for (int g = 0; g < n_q; g++)
        if (n[g]) soften(st->a, st->w, q0 + (size_t)g, s + g * KERN_TILE, n[g]);
    if (least) value_group(st, s, o, 0, least, n_q, form);
    for (int g = 0; g < n_q; g++)
        if (n[g] > least) value_group(st, s + g * KERN_TILE, o + (size_t)g * st->a->o_stride, least, n[g], 1, form);
}

KERN_INLINE void attend_queries(tile_step st, const row_form form)
{
    size_t q = 0;
    st.every = (unsigned)((st.a->n_q + KERN_GROUP - 1) / KERN_GROUP);
    st.turn = st.next ? st.every : UINT_MAX; /* which no tile counts down */
    for (; q + KERN_GROUP <= st.a->n_q; q += KERN_GROUP) attend_group(&st, q, KERN_GROUP, form);
    size_t rest = st.a->n_q - q;
    if (rest == 3) attend_group(&st, q, 3, form);
    if (rest == 2) attend_group(&st, q, 2, form);
    if (rest == 1) attend_group(&st, q, 1, form);
}

static void attend_halves_t0(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T0);
}

static void attend_halves_t1(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T1);
}

static void attend_floats(tile_step *st)
{
    attend_queries(*st, ROWS_F32);
}

/* The tile's rows as floats; rows[] says where. */
static void convert_tile(const kern_attend_args *a, const kern_tile *t, float *tile, const unsigned char **rows)
{
    for (uint32_t i = 0; i < KERN_TILE; i++) {
        uint32_t from = i < t->n ? i : t->n - 1;
        rows[i] = (const unsigned char *)(tile + from * 2 * a->dim);
        for (size_t d = 0; d < 2 * a->dim && i < t->n; d += AVX2_LANES) _mm256_storeu_ps(tile + i * 2 * a->dim + d, load_row(t->rows[i], d, ROWS_F16_T1));
    }
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

static void attend(const kern_attend_args *a)
{
    kern_attend_work w = kern_attend_begin(a);
    kern_hint hint = a->tuning ? a->tuning->hint : KERN_TUNING_DEFAULT.hint;
    kern_walk walk = kern_walk_begin(a);
    kern_tile t;
    const unsigned char *float_rows[KERN_TILE];
    if (!a->f32 && a->n_q <= FEW && hint != KERN_HINT_NONE) kern_walk_touch(&walk, a);
    for (kern_walk_next(&walk, &t); t.n; kern_walk_next(&walk, &t)) {
        tile_step st = {.a = a, .w = &w, .t = &t, .rows = t.rows, .last = t.next + t.n - 1, .row_bytes = walk.row_bytes};
        if (a->f32) {
            attend_floats(&st);
        } else if (a->n_q <= FEW) {
            st.next = hint == KERN_HINT_NONE ? NULL : t.next;
            if (hint == KERN_HINT_T0) attend_halves_t0(&st);
            else attend_halves_t1(&st);
        } else {
            convert_tile(a, &t, w.tile, float_rows);
            st.rows = float_rows;
            attend_floats(&st);
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
    __m256 a = _mm256_set1_ps(wa), b = _mm256_set1_ps(wb);
    size_t d = 0;
    for (; d + AVX2_LANES <= dim; d += AVX2_LANES) {
        __m256 v = _mm256_mul_ps(b, _mm256_loadu_ps(ob + d));
        _mm256_storeu_ps(oa + d, _mm256_fmadd_ps(a, _mm256_loadu_ps(oa + d), v));
    }
    for (; d < dim; d++) oa[d] = fmaf(wa, oa[d], wb * ob[d]);
}

void kern_fill_avx2_attend(kern_table *t)
{
    t->attend = attend;
    t->merge = merge;
}
