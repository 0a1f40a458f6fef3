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
    SCORE_ROWS = 8,  /* rows of a register tile of scores, at most */
    SCORE_SUMS = 12, /* and sums: eight of them would just cover the latency of two FMAs a cycle, if nothing ever came between */
};

/* sum += x * y, all in registers: left to itself, gcc 12 loads an operand again for each use, and of twelve sums has one or two in memory. */
#define ADD_PRODUCT(sum, x, y) __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y))

/* Hides where p points: what is stored there is then no longer in registers, which are short. */
#define IN_MEMORY(p) __asm__("" : "+r"(p) : : "memory")

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
    bool near;                        /* keys are asked for into L1 as well, by the first group of queries */
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

/* Elements d to d + 8 of the dot products of n_q queries and n_t rows.  Of the side with fewer vectors all stay in registers, of the other one at a time:
 * twelve sums leave four registers.  A sum begins with its first product, as a register of zeros would be one too many; so it may be -0 where it would
 * be 0, which no exponential shows. */
KERN_INLINE void score_step(const tile_step *st, const float *q, const unsigned char *const *rows, size_t d, __m256 *acc, const int n_q, const int n_t,
                            const row_form form, const bool begin)
{
    const size_t stride = st->a->q_stride;
    __m256 k[SCORE_ROWS], qv[KERN_GROUP];
    if (n_t <= n_q) {
        KERN_UNROLL for (int i = 0; i < n_t; i++) k[i] = load_row(rows[i], d, form);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            qv[0] = _mm256_loadu_ps(q + (size_t)g * stride + d);
            KERN_UNROLL for (int i = 0; i < n_t; i++) {
                if (begin) acc[g * n_t + i] = _mm256_mul_ps(qv[0], k[i]);
                else ADD_PRODUCT(acc[g * n_t + i], qv[0], k[i]);
            }
        }
    } else {
        KERN_UNROLL for (int g = 0; g < n_q; g++) qv[g] = _mm256_loadu_ps(q + (size_t)g * stride + d);
        KERN_UNROLL for (int i = 0; i < n_t; i++) {
            k[0] = load_row(rows[i], d, form);
            KERN_UNROLL for (int g = 0; g < n_q; g++) {
                if (begin) acc[g * n_t + i] = _mm256_mul_ps(qv[g], k[0]);
                else ADD_PRODUCT(acc[g * n_t + i], qv[g], k[0]);
            }
        }
    }
}

/* The keys of rows that are scored a little later. */
KERN_INLINE void ask_near(const tile_step *st, const unsigned char *const *rows, const int n_t)
{
    for (size_t at = 0; at < 2 * st->a->dim; at += LINE)
        KERN_UNROLL for (int i = 0; i < n_t; i++) _mm_prefetch((const void *)(rows[i + KERN_NEAR] + at), _MM_HINT_T0);
}

/* One half of the lanes, from element `first` (0 or 8) of every 16, of the dot products of n_q queries and n_t rows; asks for a line for every two that the
 * tile's keys have. */
KERN_INLINE void score_half(tile_step *st, const float *q, const unsigned char *const *rows, size_t first, __m256 *acc, const int n_q,
                            const int n_t, const row_form form)
{
    const size_t dim = st->a->dim;
    for (size_t d = 0; d < dim && n_t < 4 && !first; d += 2 * KERN_LANES) ask_lines(st, n_t, form);
    if (n_t >= 4) ask_lines(st, n_t / 4, form);
    if (form == ROWS_F16_T1 && !first && st->near) ask_near(st, rows, n_t);
    score_step(st, q, rows, first, acc, n_q, n_t, form, true);
    for (size_t d = first + KERN_LANES; d < dim; d += KERN_LANES) {
        if (n_t >= 4) ask_lines(st, n_t / 4, form);
        score_step(st, q, rows, d, acc, n_q, n_t, form, false);
    }
}

/* Whether gcc must be told that the sums of one half do not stay in registers during the other; with one or four queries its own choice is as fast. */
KERN_INLINE bool sums_in_memory(const int n_q)
{
    return n_q == 2 || n_q == 3;
}

/* Lane sums of n_q queries and n_t rows, not yet folded: AVX2_LANES of them a query in sums. */
KERN_INLINE void score_rows(tile_step *st, const float *q, const unsigned char *const *rows, __m256 *sums, const int n_q, const int n_t,
                            const row_form form)
{
    __m256 acc[SCORE_SUMS];
    score_half(st, q, rows, 0, acc, n_q, n_t, form);
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int i = 0; i < n_t; i++) sums[g * AVX2_LANES + i] = acc[g * n_t + i];
    if (sums_in_memory(n_q)) IN_MEMORY(sums);
    score_half(st, q, rows, AVX2_LANES, acc, n_q, n_t, form);
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int i = 0; i < n_t; i++) sums[g * AVX2_LANES + i] = _mm256_add_ps(sums[g * AVX2_LANES + i], acc[g * n_t + i]);
}

/* Scores of n_q queries from q0 on with the first n positions, at least; KERN_TILE scores a query in w->s.  A score beyond the range of floats
 * becomes its largest (of either sign), so that differences of scores are numbers. */
KERN_INLINE void score_group(tile_step *st, size_t q0, uint32_t n, const int n_q, const row_form form)
{
    const float *q = st->a->q + q0 * st->a->q_stride;
    for (uint32_t t = 0; t < n; t += AVX2_LANES) {
        const unsigned char *const *rows = st->rows + t;
        __m256 lanes[KERN_GROUP * AVX2_LANES], *sums = lanes;
        if (sums_in_memory(n_q)) IN_MEMORY(sums);
        if (n_q == 4) {
            score_rows(st, q, rows, sums, n_q, 3, form);
            score_rows(st, q, rows + 3, sums + 3, n_q, 3, form);
            score_rows(st, q, rows + 6, sums + 6, n_q, 2, form);
        } else if (n_q > 1) {
            score_rows(st, q, rows, sums, n_q, 4, form);
            score_rows(st, q, rows + 4, sums + 4, n_q, 4, form);
        } else {
            score_rows(st, q, rows, sums, n_q, 8, form);
        }
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m256 s = _mm256_max_ps(avx2_fold8(sums + g * AVX2_LANES), _mm256_set1_ps(-FLT_MAX));
            _mm256_storeu_ps(st->w->s + g * KERN_TILE + t, _mm256_min_ps(s, _mm256_set1_ps(FLT_MAX)));
        }
    }
}

/* The largest of n >= 1 scores; those that fill up the last lanes become minus infinity. */
KERN_INLINE float largest_score(float *s, uint32_t n)
{
    uint32_t end = (n + KERN_LANES - 1) / KERN_LANES * KERN_LANES;
    for (uint32_t t = n; t < end; t++) s[t] = -INFINITY;
    __m256 most = _mm256_loadu_ps(s);
    for (uint32_t t = AVX2_LANES; t < end; t += AVX2_LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(s + t));
    return avx2_largest(most);
}

/* Raises the maximum of query i to m and rescales what it has. */
static void raise_maximum(const kern_attend_args *a, const kern_attend_work *w, size_t i, float m)
{
    __m256 c = avx2_exp(_mm256_set1_ps(w->m[i] - m));
    float *o = a->o + i * a->o_stride;
    for (size_t d = 0; d < a->dim; d += AVX2_LANES) _mm256_storeu_ps(o + d, _mm256_mul_ps(c, _mm256_loadu_ps(o + d)));
    w->l[i] *= _mm256_cvtss_f32(c);
    w->m[i] = m;
}

/* Scores to exponentials for n_q queries from q0 on, of n[g] scores each: raises a maximum if the tile has a larger one, then adds to the sum.  All
 * maxima come first: no exponential then waits for a chain of shuffles. */
KERN_INLINE void soften(const kern_attend_args *a, const kern_attend_work *w, size_t q0, const uint32_t *n, const int n_q)
{
    float m[KERN_GROUP];
    KERN_UNROLL for (int g = 0; g < n_q; g++) m[g] = n[g] ? largest_score(w->s + g * KERN_TILE, n[g]) : -INFINITY;
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        if (m[g] > w->m[q0 + (size_t)g]) raise_maximum(a, w, q0 + (size_t)g, m[g]);
    for (int g = 0; g < n_q; g++) {
        float *s = w->s + g * KERN_TILE;
        __m256 base = _mm256_set1_ps(w->m[q0 + (size_t)g]), low = _mm256_setzero_ps(), high = low;
        for (uint32_t t = 0; t < n[g]; t += KERN_LANES) {
            __m256 p = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + t), base)), r = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + t + AVX2_LANES), base));
            _mm256_storeu_ps(s + t, p);
            _mm256_storeu_ps(s + t + AVX2_LANES, r);
            low = _mm256_add_ps(low, p);
            high = _mm256_add_ps(high, r);
        }
        w->l[q0 + (size_t)g] += avx2_fold(low, high);
    }
}

/* o += p V for n_q queries and n_v vectors of elements from d on, positions [from, to). */
KERN_INLINE void value_block(tile_step *st, const float *p, float *o, size_t d, uint32_t from, uint32_t to, const int n_q, const int n_v,
                             const row_form form)
{
    const size_t apart = 2 * KERN_LANES; /* elements for which a line is asked for: at most one multiple is in a block */
    const bool ask = (d + apart - 1) / apart * apart < d + (size_t)n_v * AVX2_LANES;
    const size_t stride = st->a->o_stride, dim = st->a->dim;
    __m256 acc[KERN_GROUP][4];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g][v] = _mm256_loadu_ps(o + (size_t)g * stride + d + (size_t)v * AVX2_LANES);
    for (uint32_t t = from; t < to; t++) {
        __m256 x[4], pg[KERN_GROUP];
        if (ask) ask_lines(st, 1, form);
        if (n_v <= n_q) { /* as score_step */
            KERN_UNROLL for (int v = 0; v < n_v; v++) x[v] = load_row(st->rows[t], dim + d + (size_t)v * AVX2_LANES, form);
            KERN_UNROLL for (int g = 0; g < n_q; g++) {
                pg[0] = _mm256_set1_ps(p[g * KERN_TILE + (int)t]);
                KERN_UNROLL for (int v = 0; v < n_v; v++) ADD_PRODUCT(acc[g][v], pg[0], x[v]);
            }
        } else {
            KERN_UNROLL for (int g = 0; g < n_q; g++) pg[g] = _mm256_set1_ps(p[g * KERN_TILE + (int)t]);
            KERN_UNROLL for (int v = 0; v < n_v; v++) {
                x[0] = load_row(st->rows[t], dim + d + (size_t)v * AVX2_LANES, form);
                KERN_UNROLL for (int g = 0; g < n_q; g++) ADD_PRODUCT(acc[g][v], pg[g], x[0]);
            }
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) _mm256_storeu_ps(o + (size_t)g * stride + d + (size_t)v * AVX2_LANES, acc[g][v]);
}

/* Twelve sums where there are three queries or four; the last four vectors of four queries are two times two. */
KERN_INLINE void value_group(tile_step *st, const float *p, float *o, uint32_t from, uint32_t to, const int n_q, const row_form form)
{
    size_t d = 0, dim = st->a->dim;
    for (; d + 4 * AVX2_LANES <= dim && n_q <= 3; d += 4 * AVX2_LANES) value_block(st, p, o, d, from, to, n_q, 4, form);
    for (; d + 3 * AVX2_LANES <= dim && d + 4 * AVX2_LANES != dim && n_q > 3; d += 3 * AVX2_LANES) value_block(st, p, o, d, from, to, n_q, 3, form);
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
    st->near = false;
    soften(st->a, st->w, q0, n, n_q);
    if (least) value_group(st, s, o, 0, least, n_q, form);
    for (int g = 0; g < n_q; g++)
        if (n[g] > least) value_group(st, s + g * KERN_TILE, o + (size_t)g * st->a->o_stride, least, n[g], 1, form);
}

KERN_INLINE void attend_queries(tile_step st, const row_form form)
{
    size_t q = 0;
    st.every = (unsigned)((st.a->n_q + KERN_GROUP - 1) / KERN_GROUP);
    st.turn = st.next ? st.every : UINT_MAX; /* which no tile counts down */
    size_t left = st.a->n_q; /* 5 are 3 and 2, 6 are 3 and 3: one query by itself costs half of four */
    for (; left >= KERN_GROUP && left != 5 && left != 6; q += KERN_GROUP, left -= KERN_GROUP) attend_group(&st, q, KERN_GROUP, form);
    for (; left >= 3; q += 3, left -= 3) attend_group(&st, q, 3, form);
    if (left == 2) attend_group(&st, q, 2, form);
    if (left == 1) attend_group(&st, q, 1, form);
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
            st.near = st.next && (order == KERN_ORDER_SHORT || (order > KERN_ORDER_SHORT && a->n_q <= 2)); /* more queries gain nothing, or lose, over what is a stream */
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
