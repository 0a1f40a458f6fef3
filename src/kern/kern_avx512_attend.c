/* kern_avx512_attend.c - attention over tiles of K and V rows, and the merge of partials, for AVX-512.
 *
 * Few queries (decode) read the half rows straight, converting as they load, and ask for rows ahead as the tuning says; many (a prompt) first
 * convert the tile to floats once.  Conversion is exact and all else is the same code, so both give the same bits. */
#include "kern_attend.h"
#include "kern_avx512.h"

#include <float.h>
#include <string.h>

enum {
    FEW = 16,  /* queries up to which converting on every load is cheaper than a converted tile */
    LINE = 64, /* bytes of a cache line */
    L1_SHARE = 16 << 10, /* bytes of a tile that stays in L1 beside all else */
};

/* What a row holds, and the hint that it is asked for with: a hint is part of the instruction, so each has code of its own. */
typedef enum row_form { ROWS_F32, ROWS_F16_T0, ROWS_F16_T1 } row_form;

/* How many of a tile's lines a group of queries asks for, in halves. */
typedef enum ask_part { ASK_NONE, ASK_HALF, ASK_ALL } ask_part;

/* One tile for one call. */
typedef struct tile_step {
    const kern_attend_args *a;
    const kern_attend_work *w;
    const kern_tile *t;
    const unsigned char *const *rows; /* K row then V row of each position: halves in the store, or floats in the scratch */
    const unsigned char *const *next; /* the row to ask for next, or NULL */
    const unsigned char *const *last; /* the last one to ask for in this tile */
    size_t row_bytes, asked;          /* bytes of the row at *next that have been asked for */
    const unsigned char *const *near; /* rows that are asked for into L1 while others are scored, */
    size_t near_at;                   /* from this byte of each on */
    bool leads;                       /* the first group of queries is at work: the rows are in L1 or L2 for those behind it */
} tile_step;

/* Sixteen elements from element i of a row. */
KERN_INLINE __m512 load_row(const unsigned char *row, size_t i, const row_form form)
{
    return form != ROWS_F32 ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i))) : _mm512_loadu_ps((const void *)(row + 4 * i));
}

/* Asks for the next n lines, in the order of memory and in step with what the arithmetic uses: when too much is on its way a processor drops what is
 * asked for or lets the arithmetic wait, and its own prefetcher goes along with an order that it knows. */
KERN_INLINE void ask_lines(tile_step *st, const int n, const row_form form)
{
    if (form == ROWS_F32 || !st->next) return;
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

/* Whether this group of queries may ask from nearby as well: where rows are asked for from afar into L2, and not yet nearer than that. */
KERN_INLINE bool asks_near(const tile_step *st, const row_form form, const ask_part part)
{
    return form == ROWS_F16_T1 && part != ASK_NONE && (part == ASK_ALL || st->leads);
}

/* The rows that follow position t in the order in which a tile of n positions is read: keys, then values. */
KERN_INLINE void set_near(tile_step *st, uint32_t t, uint32_t n)
{
    bool keys = t + KERN_NEAR < n;
    st->near = st->rows + (keys ? t + KERN_NEAR : t + KERN_NEAR - n);
    st->near_at = keys ? 0 : 2 * st->a->dim;
}

/* One slice of sixteen elements, from d on, of the lane sums of n_q queries and n_t rows, in acc[query * n_t + row]: all rows one after the other, so that slices of queries stay in
 * registers. */
KERN_INLINE void add_slice(tile_step *st, const float *q, const unsigned char *const *rows, size_t d, __m512 *acc, const int n_q, const int n_t, const row_form form,
                           const ask_part part, const kern_order order)
{
    const size_t stride = st->a->q_stride;
    __m512 qv[KERN_GROUP];
    if (part != ASK_NONE) ask_lines(st, (n_t / 2 * (int)part + 1) / ASK_ALL, form);
    if (asks_near(st, form, part) && order == KERN_ORDER_SHORT && 2 * d % LINE == 0)
        KERN_UNROLL for (int i = 0; i < n_t; i++) _mm_prefetch((const void *)(st->near[i] + st->near_at + 2 * d), _MM_HINT_T0);
    if (part == ASK_ALL && order == KERN_ORDER_LONG && 2 * d % LINE == 0 && KERN_TILE * st->row_bytes <= L1_SHARE)
        KERN_UNROLL for (int i = 0; i < n_t; i++) _mm_prefetch((const void *)(rows[i] + 2 * (st->a->dim + d)), _MM_HINT_T0);
    KERN_UNROLL for (int g = 0; g < n_q; g++) qv[g] = _mm512_loadu_ps(q + (size_t)g * stride + d);
    KERN_UNROLL for (int i = 0; i < n_t; i++) {
        __m512 k = load_row(rows[i], d, form);
        KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g * n_t + i] = _mm512_fmadd_ps(qv[g], k, acc[g * n_t + i]);
    }
}

/* The same sums row by row: with one or two queries memory is the limit, and it is fastest read in its own order.  So the values of a row are asked for
 * as well, but for single rows, where that costs more than it gains.  Scores take longer than values here, so they ask for more lines than they use (one query: three of four). */
KERN_INLINE void dots_by_row(tile_step *st, const float *q, const unsigned char *const *rows, __m512 *acc, const int n_q, const int n_t,
                             const row_form form, const ask_part part, const kern_order order)
{
    const size_t dim = st->a->dim, stride = st->a->q_stride;
    KERN_UNROLL for (int i = 0; i < n_t; i++) {
        for (size_t d = 0; d < dim; d += KERN_LANES) {
            if (2 * d % LINE == 0 && (part == ASK_ALL || (part == ASK_HALF && 2 * d % (2 * LINE) == 0)))
                ask_lines(st, n_q == 1 && 2 * d % (2 * LINE) == 0 ? 2 : 1, form);
            if (2 * d % LINE == 0 && asks_near(st, form, part)) _mm_prefetch((const void *)(rows[i + KERN_NEAR] + 2 * d), _MM_HINT_T0);
            if (2 * d % LINE == 0 && asks_near(st, form, part) && order != KERN_ORDER_SINGLE) _mm_prefetch((const void *)(rows[i] + 2 * (dim + d)), _MM_HINT_T0);
            __m512 k = load_row(rows[i], d, form);
            KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g * n_t + i] = _mm512_fmadd_ps(_mm512_loadu_ps(q + (size_t)g * stride + d), k, acc[g * n_t + i]);
        }
    }
}

/* Sixteen folded sums, [n_q][n_t], are scores of n_t positions from t on; what is beyond the range of floats becomes its largest (of either sign), so that differences of scores are numbers. */
KERN_INLINE void put_scores(const tile_step *st, uint32_t t, __m512 folded, const int n_q, const int n_t)
{
    float sum[KERN_LANES];
    __m512 s = _mm512_max_ps(folded, _mm512_set1_ps(-FLT_MAX));
    _mm512_storeu_ps(sum, _mm512_min_ps(s, _mm512_set1_ps(FLT_MAX)));
    KERN_UNROLL for (int g = 0; g < n_q; g++) memcpy(st->w->s + g * KERN_TILE + t, sum + g * n_t, (size_t)n_t * sizeof(float));
}

/* Three or four queries.  The sums of four positions are folded between the slices of the next four: what a processor has in flight ends about where a fold does, so one in a
 * single piece keeps the products behind it waiting (7 to 8 % of the whole attention).  Not for short blocks: blocks of 16 take a tenth longer so, and are
 * no faster with both orders in one function. */
KERN_INLINE void score_apart(tile_step *st, const float *q, uint32_t n, const int n_q, const row_form form, const ask_part part, const kern_order order)
{
    enum { N_T = 4 };
    const size_t dim = st->a->dim;
    __m512 half[8];
    for (uint32_t t = 0; t < n; t += N_T) {
        const unsigned char *const *rows = st->rows + t;
        __m512 acc[KERN_LANES];
        size_t d = 0;
        KERN_UNROLL for (int i = 0; i < KERN_LANES; i++) acc[i] = _mm512_setzero_ps();
        if (t) {
            add_slice(st, q, rows, 0, acc, n_q, N_T, form, part, order);
            avx512_fold_4(half);
            if (dim > KERN_LANES) add_slice(st, q, rows, KERN_LANES, acc, n_q, N_T, form, part, order);
            avx512_fold_2(half);
            if (dim > 2 * KERN_LANES) add_slice(st, q, rows, 2 * KERN_LANES, acc, n_q, N_T, form, part, order);
            put_scores(st, t - N_T, avx512_fold_1(half), n_q, N_T);
            d = 3 * KERN_LANES;
        }
        for (; d < dim; d += KERN_LANES) add_slice(st, q, rows, d, acc, n_q, N_T, form, part, order);
        avx512_fold_8(acc);
        KERN_UNROLL for (int i = 0; i < 8; i++) half[i] = acc[i];
    }
    if (!n) return;
    avx512_fold_4(half);
    avx512_fold_2(half);
    put_scores(st, (n - 1) / N_T * N_T, avx512_fold_1(half), n_q, N_T);
}

/* Scores of n_q queries from q0 on with the first n positions, at least; KERN_TILE scores a query in w->s. */
KERN_INLINE void score_group(tile_step *st, size_t q0, uint32_t n, const int n_q, const row_form form, const ask_part part, const kern_order order)
{
    const int n_t = n_q == 3 ? 4 : KERN_LANES / n_q;
    const float *q = st->a->q + q0 * st->a->q_stride;
    if (n_q > 2 && order != KERN_ORDER_SHORT) {
        score_apart(st, q, n, n_q, form, part, order);
        return;
    }
    for (uint32_t t = 0; t < n; t += (uint32_t)n_t) {
        const unsigned char *const *rows = st->rows + t;
        __m512 acc[KERN_LANES];
        KERN_UNROLL for (int i = 0; i < KERN_LANES; i++) acc[i] = _mm512_setzero_ps();
        set_near(st, t, n);
        if (n_q <= 2) dots_by_row(st, q, rows, acc, n_q, n_t, form, part, order);
        else for (size_t d = 0; d < st->a->dim; d += KERN_LANES) add_slice(st, q, rows, d, acc, n_q, n_t, form, part, order);
        put_scores(st, t, avx512_fold16(acc), n_q, n_t);
    }
}

/* Scores to exponentials for query i, whose n >= 1 scores are at s: raises its maximum (and rescales what it has) if the tile has a larger one,
 * then adds to its sum.  n_lines are asked for with every sixteen, so that the memory does not rest meanwhile. */
KERN_INLINE void soften_and_ask(tile_step *st, size_t i, float *s, uint32_t n, const int n_lines, const row_form form)
{
    const kern_attend_args *a = st->a;
    const kern_attend_work *w = st->w;
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
        if (n_lines > 0) ask_lines(st, n_lines, form);
        __m512 p = avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(s + t), base));
        _mm512_storeu_ps(s + t, p);
        sum = _mm512_add_ps(sum, p);
    }
    w->l[i] += avx512_fold(sum);
}

static void soften(tile_step *st, size_t i, float *s, uint32_t n)
{
    soften_and_ask(st, i, s, n, 0, ROWS_F32);
}

/* What follows n_v vectors of values from d on, of position t, in the order in which a tile of n positions is read: those of later positions, the next vectors of the first ones, the next tile's keys. */
KERN_INLINE const unsigned char *near_value(const tile_step *st, uint32_t t, uint32_t n, size_t d, const int n_v)
{
    size_t dim = st->a->dim, next = d + (size_t)n_v * KERN_LANES;
    if (t + KERN_NEAR < n) return st->rows[t + KERN_NEAR] + 2 * (dim + d);
    return next < dim ? st->rows[t + KERN_NEAR - n] + 2 * (dim + next) : st->rows[t + KERN_NEAR];
}

/* o += p V for n_q queries and n_v vectors of elements from d on, positions [from, to). */
KERN_INLINE void value_block(tile_step *st, const float *p, float *o, size_t d, uint32_t from, uint32_t to, const int n_q, const int n_v,
                             const row_form form, const ask_part part, const kern_order order)
{
    const size_t stride = st->a->o_stride, dim = st->a->dim;
    const bool near = asks_near(st, form, part) && order == KERN_ORDER_SHORT && n_q > 2;
    __m512 acc[KERN_GROUP][8];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g][v] = _mm512_loadu_ps(o + (size_t)g * stride + d + (size_t)v * KERN_LANES);
    for (uint32_t t = from; t < to; t++) {
        __m512 x[8];
        if (part != ASK_NONE) ask_lines(st, n_q == 1 ? n_v / 4 : ((n_v + 1) / 2 * (int)part + 1) / ASK_ALL, form); /* dots_by_row has asked for more */
        if (near) {
            const unsigned char *coming = near_value(st, t, to, d, n_v);
            KERN_UNROLL for (int v = 0; v < n_v; v += 2) _mm_prefetch((const void *)(coming + 2 * v * KERN_LANES), _MM_HINT_T0);
        }
        KERN_UNROLL for (int v = 0; v < n_v; v++) x[v] = load_row(st->rows[t], dim + d + (size_t)v * KERN_LANES, form);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m512 pg = _mm512_set1_ps(p[g * KERN_TILE + (int)t]);
            KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g][v] = _mm512_fmadd_ps(pg, x[v], acc[g][v]);
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) _mm512_storeu_ps(o + (size_t)g * stride + d + (size_t)v * KERN_LANES, acc[g][v]);
}

KERN_INLINE void value_group(tile_step *st, const float *p, float *o, uint32_t from, uint32_t to, const int n_q, const row_form form, const ask_part part,
                             const kern_order order)
{
    size_t d = 0, dim = st->a->dim;
    for (; d + 8 * KERN_LANES <= dim && n_q == 1; d += 8 * KERN_LANES) value_block(st, p, o, d, from, to, n_q, 8, form, part, order);
    for (; d + 4 * KERN_LANES <= dim; d += 4 * KERN_LANES) value_block(st, p, o, d, from, to, n_q, 4, form, part, order);
    for (; d + 2 * KERN_LANES <= dim; d += 2 * KERN_LANES) value_block(st, p, o, d, from, to, n_q, 2, form, part, order);
    if (d < dim) value_block(st, p, o, d, from, to, n_q, 1, form, part, order);
}

/* The tile's part of n_q <= KERN_GROUP queries from q0 on: what all of them see together, then each one's rest. */
KERN_INLINE void attend_group(tile_step *st, size_t q0, const int n_q, const row_form form, const ask_part part, const kern_order order)
{
    uint32_t n[KERN_GROUP], least = KERN_TILE, most = 0;
    float *s = st->w->s, *o = st->a->o + q0 * st->a->o_stride;
    for (int g = 0; g < n_q; g++) {
        n[g] = kern_tile_valid(st->a, st->t, q0 + (size_t)g);
        least = n[g] < least ? n[g] : least;
        most = n[g] > most ? n[g] : most;
    }
    st->leads = q0 == 0;
    score_group(st, q0, most, n_q, form, part, order);
    for (int g = 0; g < n_q; g++) {
        if (!n[g]) continue;
        if (asks_near(st, form, part) && order == KERN_ORDER_SHORT && n_q > 2) soften_and_ask(st, q0 + (size_t)g, s + g * KERN_TILE, n[g], 2 * (int)part, form);
        else soften(st, q0 + (size_t)g, s + g * KERN_TILE, n[g]);
    }
    if (least) value_group(st, s, o, 0, least, n_q, form, part, order);
    for (int g = 0; g < n_q; g++)
        if (n[g] > least) value_group(st, s + g * KERN_TILE, o + (size_t)g * st->a->o_stride, least, n[g], 1, form, ASK_NONE, order);
}

/* One group asks for all lines of the tile; where the second group is about as long, each asks for half of them, evenly over the whole time. */
KERN_INLINE void attend_queries(tile_step st, const row_form form, const kern_order order)
{
    size_t q = 0, n_q = st.a->n_q;
    bool asks = form != ROWS_F32 && st.next;
    if (asks && n_q == 6) { /* twice three is a tenth faster than four and two */
        attend_group(&st, 0, 3, form, ASK_HALF, order);
        attend_group(&st, 3, 3, form, ASK_HALF, order);
        return;
    }
    if (asks && n_q > KERN_GROUP + 2) {
        attend_group(&st, 0, KERN_GROUP, form, ASK_HALF, order);
        if (n_q == KERN_GROUP + 3) attend_group(&st, KERN_GROUP, 3, form, ASK_HALF, order);
        else attend_group(&st, KERN_GROUP, KERN_GROUP, form, ASK_HALF, order);
        q = kern_min_size(n_q, 2 * KERN_GROUP);
    } else if (asks && n_q >= KERN_GROUP) {
        attend_group(&st, 0, KERN_GROUP, form, ASK_ALL, order);
        q = KERN_GROUP;
    } else if (asks) {
        if (n_q == 3) attend_group(&st, 0, 3, form, ASK_ALL, order);
        if (n_q == 2) attend_group(&st, 0, 2, form, ASK_ALL, order);
        if (n_q == 1) attend_group(&st, 0, 1, form, ASK_ALL, order);
        return;
    }
    for (; q + KERN_GROUP <= n_q; q += KERN_GROUP) attend_group(&st, q, KERN_GROUP, form, ASK_NONE, order);
    if (n_q - q == 3) attend_group(&st, q, 3, form, ASK_NONE, order);
    if (n_q - q == 2) attend_group(&st, q, 2, form, ASK_NONE, order);
    if (n_q - q == 1) attend_group(&st, q, 1, form, ASK_NONE, order);
}

static void attend_stream_t0(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T0, KERN_ORDER_STREAM);
}

static void attend_stream_t1(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T1, KERN_ORDER_STREAM);
}

static void attend_short_t0(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T0, KERN_ORDER_SHORT);
}

static void attend_long_t1(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T1, KERN_ORDER_LONG);
}

static void attend_short_t1(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T1, KERN_ORDER_SHORT);
}

static void attend_single_t1(tile_step *st)
{
    attend_queries(*st, ROWS_F16_T1, KERN_ORDER_SINGLE);
}

static void attend_floats(tile_step *st)
{
    attend_queries(*st, ROWS_F32, KERN_ORDER_STREAM);
}

static void attend_halves(tile_step *st, kern_hint hint, kern_order order)
{
    static void (*const by_order[])(tile_step *) = {[KERN_ORDER_SINGLE] = attend_single_t1, [KERN_ORDER_SHORT] = attend_short_t1, [KERN_ORDER_LONG] = attend_long_t1, [KERN_ORDER_STREAM] = attend_stream_t1};
    if (hint == KERN_HINT_T0) (order == KERN_ORDER_SHORT ? attend_short_t0 : attend_stream_t0)(st);
    else by_order[order](st);
}

/* The tile's rows as floats; rows[] says where. */
static void convert_tile(const kern_attend_args *a, const kern_tile *t, float *tile, const unsigned char **rows)
{
    for (uint32_t i = 0; i < KERN_TILE; i++) {
        uint32_t from = i < t->n ? i : t->n - 1;
        rows[i] = (const unsigned char *)(tile + from * 2 * a->dim);
        for (size_t d = 0; d < 2 * a->dim && i < t->n; d += KERN_LANES) _mm512_storeu_ps(tile + i * 2 * a->dim + d, load_row(t->rows[i], d, ROWS_F16_T1));
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
    kern_hint hint = a->tuning ? a->tuning->hint : KERN_TUNING_DEFAULT.hint;
    kern_walk walk;
    kern_walk_begin(&walk, a);
    kern_tile t;
    const unsigned char *float_rows[KERN_TILE];
    const kern_order order = kern_walk_order(&walk, a->n_spans);
    if (!a->f32 && a->n_q <= FEW && hint != KERN_HINT_NONE) kern_walk_touch(&walk, a);
    for (kern_walk_next(&walk, &t); t.n; kern_walk_next(&walk, &t)) {
        tile_step st = {.a = a, .w = &w, .t = &t, .rows = t.rows, .last = t.next + t.n - 1, .row_bytes = walk.row_bytes};
        if (a->f32) {
            attend_floats(&st);
        } else if (a->n_q <= FEW) {
            st.next = hint == KERN_HINT_NONE ? NULL : t.next;
            attend_halves(&st, hint, order);
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
