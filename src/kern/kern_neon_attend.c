/* kern_neon_attend.c - attention over tiles of K and V rows, and the merge of partials, for AArch64.
 *
 * Few queries (decode) read the half rows straight, converting as they load, and ask for rows ahead as the tuning says; many (a prompt) first
 * convert the tile to floats once.  Conversion is exact and all else is the same code, so both give the same bits. */
#include "kern_attend.h"
#include "kern_neon.h"

#include <float.h>

enum { FEW = 16 }; /* queries up to which converting on every load is cheaper than a converted tile */

/* What a row holds, and the hint that it is asked for with: a hint is part of the instruction, so each has code of its own. */
typedef enum row_form { ROWS_F32, ROWS_F16_T0, ROWS_F16_T1 } row_form;

/* One tile for one call. */
typedef struct tile_step {
    const kern_attend_args *a;
    const kern_attend_work *w;
    const kern_tile *t;
    const unsigned char *const *rows; /* K row then V row of each position: halves in the store, or floats in the scratch */
    const unsigned char *const *next; /* rows to ask for, one a position, or NULL */
} tile_step;

/* Four elements from element i of a row. */
KERN_INLINE float32x4_t load_row(const unsigned char *row, size_t i, const row_form form)
{
    return form != ROWS_F32 ? vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(row + 2 * i))) : vreinterpretq_f32_u8(vld1q_u8(row + 4 * i));
}

KERN_INLINE void prefetch_rows(const unsigned char *const *rows, const int n, size_t from, size_t bytes, const row_form form)
{
    KERN_UNROLL for (int i = 0; i < n; i++)
        for (size_t b = 0; b < bytes; b += 64) {
            if (form == ROWS_F16_T0) __builtin_prefetch(rows[i] + from + b, 0, 3);
            else __builtin_prefetch(rows[i] + from + b, 0, 2);
        }
}

/* Quarters [first, first + n_p) of the dot products of n_q queries and 4 rows.  acc: n_p quarters of a product, then those of the next; a query's
 * products are adjacent. */
KERN_INLINE void score_quarters(const tile_step *st, const float *q, const unsigned char *const *rows, int first, float32x4_t *acc, const int n_q,
                                const int n_p, const row_form form)
{
    const size_t dim = st->a->dim, stride = st->a->q_stride;
    KERN_UNROLL for (int i = 0; i < n_q * NEON_COLUMNS * n_p; i++) acc[i] = vdupq_n_f32(0);
    for (size_t d = (size_t)first * NEON_LANES; d < dim; d += KERN_LANES) {
        float32x4_t qv[NEON_QUARTERS];
        KERN_UNROLL for (int g = 0; g < n_q; g++)
            KERN_UNROLL for (int p = 0; p < n_p; p++) qv[g * n_p + p] = vld1q_f32(q + (size_t)g * stride + d + (size_t)p * NEON_LANES);
        KERN_UNROLL for (int i = 0; i < NEON_COLUMNS; i++) {
            KERN_UNROLL for (int p = 0; p < n_p; p++) {
                float32x4_t k = load_row(rows[i], d + (size_t)p * NEON_LANES, form);
                KERN_UNROLL for (int g = 0; g < n_q; g++) {
                    float32x4_t *s = acc + (g * NEON_COLUMNS + i) * n_p + p;
                    *s = vfmaq_f32(*s, qv[g * n_p + p], k);
                }
            }
        }
    }
}

/* Scores of n_q queries from q0 on with the first n positions, at least; KERN_TILE scores a query in w->s.  A score beyond the range of floats
 * becomes its largest (of either sign), so that differences of scores are numbers. */
KERN_INLINE void score_group(const tile_step *st, size_t q0, uint32_t n, const int n_q, const row_form form)
{
    const int n_p = n_q > 2 ? 1 : NEON_QUARTERS / n_q;
    const float *q = st->a->q + q0 * st->a->q_stride;
    for (uint32_t t = 0; t < n; t += NEON_COLUMNS) {
        float32x4_t all[KERN_GROUP * NEON_COLUMNS * NEON_QUARTERS], part[NEON_TILE];
        if (st->next) prefetch_rows(st->next + t, NEON_COLUMNS, 0, 2 * st->a->dim, form);
        for (int first = 0; first < NEON_QUARTERS; first += n_p) {
            score_quarters(st, q, st->rows + t, first, part, n_q, n_p, form);
            KERN_UNROLL for (int i = 0; i < n_q * NEON_COLUMNS * n_p; i++) all[i / n_p * NEON_QUARTERS + first + i % n_p] = part[i];
        }
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            float32x4_t s = vmaxnmq_f32(neon_fold4(all + g * NEON_COLUMNS * NEON_QUARTERS), vdupq_n_f32(-FLT_MAX));
            vst1q_f32(st->w->s + g * KERN_TILE + t, vminnmq_f32(s, vdupq_n_f32(FLT_MAX)));
        }
    }
}

/* Scores to exponentials for query i, whose n >= 1 scores are at s: raises its maximum (and rescales what it has) if the tile has a larger one,
 * then adds to its sum. */
static void soften(const kern_attend_args *a, const kern_attend_work *w, size_t i, float *s, uint32_t n)
{
    uint32_t end = (n + KERN_LANES - 1) / KERN_LANES * KERN_LANES;
    for (uint32_t t = n; t < end; t++) s[t] = -INFINITY;
    float32x4_t most = vld1q_f32(s), sum[NEON_QUARTERS];
    for (uint32_t t = NEON_LANES; t < end; t += NEON_LANES) most = vmaxq_f32(most, vld1q_f32(s + t));
    float m = vmaxvq_f32(most);
    if (m > w->m[i]) {
        float c = vgetq_lane_f32(neon_exp(vdupq_n_f32(w->m[i] - m)), 0);
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += NEON_LANES) vst1q_f32(o + d, vmulq_n_f32(vld1q_f32(o + d), c));
        w->l[i] *= c;
        w->m[i] = m;
    }
    float32x4_t base = vdupq_n_f32(w->m[i]);
    KERN_UNROLL for (int p = 0; p < NEON_QUARTERS; p++) sum[p] = vdupq_n_f32(0);
    for (uint32_t t = 0; t < end; t += KERN_LANES) {
        KERN_UNROLL for (int p = 0; p < NEON_QUARTERS; p++) {
            float32x4_t e = neon_exp(vsubq_f32(vld1q_f32(s + t + p * NEON_LANES), base));
            vst1q_f32(s + t + p * NEON_LANES, e);
            sum[p] = vaddq_f32(sum[p], e);
        }
    }
    w->l[i] += neon_fold(sum);
}

/* o += p V for n_q queries and n_v vectors of elements from d on, positions [from, to); n_q * n_v is at most NEON_TILE. */
KERN_INLINE void value_block(const tile_step *st, const float *p, float *o, size_t d, uint32_t from, uint32_t to, const int n_q, const int n_v,
                             const row_form form)
{
    const size_t stride = st->a->o_stride, dim = st->a->dim;
    float32x4_t acc[NEON_TILE];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g * n_v + v] = vld1q_f32(o + (size_t)g * stride + d + (size_t)v * NEON_LANES);
    for (uint32_t t = from; t < to; t++) {
        float32x4_t x[NEON_TILE / 2];
        if (st->next) prefetch_rows(st->next + t, 1, 2 * dim + 2 * d, 2 * NEON_LANES * (size_t)n_v, form);
        KERN_UNROLL for (int v = 0; v < n_v; v++) x[v] = load_row(st->rows[t], dim + d + (size_t)v * NEON_LANES, form);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            float pg = p[g * KERN_TILE + (int)t];
            KERN_UNROLL for (int v = 0; v < n_v; v++) acc[g * n_v + v] = vfmaq_n_f32(acc[g * n_v + v], x[v], pg);
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < n_v; v++) vst1q_f32(o + (size_t)g * stride + d + (size_t)v * NEON_LANES, acc[g * n_v + v]);
}

KERN_INLINE void value_group(const tile_step *st, const float *p, float *o, uint32_t from, uint32_t to, const int n_q, const row_form form)
{
    size_t d = 0, dim = st->a->dim;
    for (; d + 8 * NEON_LANES <= dim && n_q <= 2; d += 8 * NEON_LANES) value_block(st, p, o, d, from, to, n_q, 8, form);
    for (; d < dim; d += 4 * NEON_LANES) value_block(st, p, o, d, from, to, n_q, 4, form);
}

/* The tile's part of n_q <= KERN_GROUP queries from q0 on: what all of them see together, then each one's rest. */
KERN_INLINE void attend_group(const tile_step *st, size_t q0, const int n_q, const row_form form)
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
    for (; q + KERN_GROUP <= st.a->n_q; q += KERN_GROUP) {
        attend_group(&st, q, KERN_GROUP, form);
        st.next = NULL; /* one group asks for all */
    }
    size_t rest = st.a->n_q - q;
    if (rest == 3) attend_group(&st, q, 3, form);
    if (rest == 2) attend_group(&st, q, 2, form);
    if (rest == 1) attend_group(&st, q, 1, form);
}

static void attend_halves_t0(const tile_step *st)
{
    attend_queries(*st, ROWS_F16_T0);
}

static void attend_halves_t1(const tile_step *st)
{
    attend_queries(*st, ROWS_F16_T1);
}

static void attend_floats(const tile_step *st)
{
    attend_queries(*st, ROWS_F32);
}

/* The tile's rows as floats; rows[] says where. */
static void convert_tile(const kern_attend_args *a, const kern_tile *t, float *tile, const unsigned char **rows)
{
    for (uint32_t i = 0; i < KERN_TILE; i++) {
        uint32_t from = i < t->n ? i : t->n - 1;
        rows[i] = (const unsigned char *)(tile + from * 2 * a->dim);
        for (size_t d = 0; d < 2 * a->dim && i < t->n; d += NEON_LANES) vst1q_f32(tile + i * 2 * a->dim + d, load_row(t->rows[i], d, ROWS_F16_T1));
    }
}

static void finish(const kern_attend_args *a, const kern_attend_work *w)
{
    for (size_t i = 0; i < a->n_q; i++) {
        a->lse[i] = w->l[i] > 0 ? kern_attend_lse(w->m[i], w->l[i]) : -INFINITY;
        if (!(w->l[i] > 0)) continue;
        float32x4_t l = vdupq_n_f32(w->l[i]);
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += NEON_LANES) vst1q_f32(o + d, vdivq_f32(vld1q_f32(o + d), l));
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
    for (kern_walk_next(&walk, &t); t.n; kern_walk_next(&walk, &t)) {
        tile_step st = {.a = a, .w = &w, .t = &t, .rows = t.rows};
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
    size_t d = 0;
    for (; d + NEON_LANES <= dim; d += NEON_LANES) vst1q_f32(oa + d, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(ob + d), wb), vld1q_f32(oa + d), wa));
    for (; d < dim; d++) oa[d] = fmaf(wa, oa[d], wb * ob[d]);
}

void kern_fill_neon_attend(kern_table *t)
{
    t->attend = attend;
    t->merge = merge;
}
