/* kern_neon_q8.c - attention over rows of bytes for AArch64 (kern_q8.h says what is rounded).
 *
 * Bytes are extended to 16 bits as they are loaded and multiplied by integers of 16 bits, summed by 32. */
#include "kern_neon.h"
#include "kern_q8.h"

#include <float.h>
#include <string.h>

enum { ROWS = 4 }; /* rows of a register tile of scores */

/* One tile for one block of queries. */
typedef struct tile_step {
    const kern_attend_args *a;
    q8_work *w;
    q8_walk *walk;
    const kern_tile *t;
    size_t q0; /* the block's first query */
} tile_step;

/* Weights of KERN_GROUP queries; step 0: all are zero. */
typedef struct tile_weights {
    int16_t w[KERN_GROUP][KERN_TILE];
    float step[KERN_GROUP];
} tile_weights;

KERN_INLINE float32x4_t within_floats(float32x4_t x)
{
    return vminnmq_f32(vmaxnmq_f32(x, vdupq_n_f32(-FLT_MAX)), vdupq_n_f32(FLT_MAX));
}

/* The n queries of the block for rows of one k_scale. */
static void prepare(const tile_step *st, size_t n, const float *k_scale)
{
    for (size_t i = 0; i < n; i++) {
        const float *q = st->a->q + (st->q0 + i) * st->a->q_stride;
        int16_t *out = st->w->q + i * st->w->q_stride;
        float32x4_t most = vdupq_n_f32(0);
        for (size_t d = 0; d < st->a->dim; d += NEON_LANES)
            most = vmaxnmq_f32(most, vabsq_f32(within_floats(vmulq_f32(vld1q_f32(q + d), vld1q_f32(k_scale + d)))));
        float largest = vmaxnmvq_f32(most);
        float inverse = largest >= KERN_Q8_LEAST ? KERN_Q8_MOST / largest : 0;
        st->w->step[i] = largest >= KERN_Q8_LEAST ? largest / KERN_Q8_MOST : 0;
        for (size_t d = 0; d < st->a->dim; d += NEON_LANES) {
            float32x4_t x = within_floats(vmulq_f32(vld1q_f32(q + d), vld1q_f32(k_scale + d)));
            vst1_s16(out + d, vmovn_s32(vcvtnq_s32_f32(vmulq_f32(x, vdupq_n_f32(inverse)))));
        }
    }
}

/* Scores of n_q queries from i on for the rows [from, to), whose k_scale the queries are prepared for. */
KERN_INLINE void score_group(const tile_step *st, q8_ask *ask, size_t i, uint32_t from, uint32_t to, const int n_q, const kern_hint hint)
{
    const size_t stride = st->w->q_stride;
    const int16_t *q = st->w->q + i * stride;
    for (uint32_t t = from; t < to; t += ROWS) {
        int32x4_t acc[KERN_GROUP][ROWS];
        const unsigned char *row[ROWS];
        KERN_UNROLL for (int g = 0; g < n_q; g++)
            KERN_UNROLL for (int k = 0; k < ROWS; k++) acc[g][k] = vdupq_n_s32(0);
        KERN_UNROLL for (uint32_t k = 0; k < ROWS; k++) row[k] = st->t->rows[t + k < to ? t + k : to - 1];
        for (size_t d = 0; d < st->a->dim; d += 8) {
            int16x8_t x[ROWS];
            if (d % 16 == 0) q8_ask_lines(ask, 1, hint);
            KERN_UNROLL for (int k = 0; k < ROWS; k++) x[k] = vmovl_s8(vld1_s8((const int8_t *)row[k] + d));
            KERN_UNROLL for (int g = 0; g < n_q; g++) {
                int16x8_t v = vld1q_s16(q + (size_t)g * stride + d);
                KERN_UNROLL for (int k = 0; k < ROWS; k++) {
                    acc[g][k] = vmlal_s16(acc[g][k], vget_low_s16(v), vget_low_s16(x[k]));
                    acc[g][k] = vmlal_high_s16(acc[g][k], v, x[k]);
                }
            }
        }
        uint32_t n = to - t < ROWS ? to - t : ROWS;
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            int32x4_t sum = vpaddq_s32(vpaddq_s32(acc[g][0], acc[g][1]), vpaddq_s32(acc[g][2], acc[g][3]));
            float s[ROWS];
            vst1q_f32(s, within_floats(vmulq_f32(vcvtq_f32_s32(sum), vdupq_n_f32(st->w->step[i + (size_t)g]))));
            memcpy(st->w->s + (i + (size_t)g) * KERN_TILE + t, s, n * sizeof *s);
        }
    }
}

/* Query q0 + i has a score, top, larger than any before: what it has is scaled to that. */
static void raise_maximum(const tile_step *st, size_t i, float top)
{
    float *m = &st->w->w.m[st->q0 + i], *o = st->a->o + (st->q0 + i) * st->a->o_stride;
    if (*m > -INFINITY) { /* else it has nothing */
        float32x4_t c = neon_exp(vdupq_n_f32(*m - top));
        for (size_t d = 0; d < st->a->dim; d += NEON_LANES) vst1q_f32(o + d, vmulq_f32(c, vld1q_f32(o + d)));
        st->w->w.l[st->q0 + i] *= vgetq_lane_f32(c, 0);
    }
    *m = top;
}

/* The weights of a tile, the largest being `largest`, as integers up to most; returns their sum. */
static int32_t to_integers(const float *w, float largest, float most, int16_t *out)
{
    float32x4_t inverse = vdupq_n_f32(most / largest);
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t t = 0; t < KERN_TILE; t += NEON_LANES) {
        int32x4_t x = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(w + t), inverse));
        sum = vaddq_s32(sum, x);
        vst1_s16(out + t, vmovn_s32(x));
    }
    return vaddvq_s32(sum);
}

/* Scores to weights for query q0 + i, which sees the first n of the tile, maybe none. */
static void soften(const tile_step *st, size_t i, uint32_t n, tile_weights *p, size_t g)
{
    const float *v_scale = st->walk->v_scale + st->t->base;
    float *s = st->w->s + i * KERN_TILE, *m = &st->w->w.m[st->q0 + i];
    float32x4_t most = vdupq_n_f32(-INFINITY), largest = vdupq_n_f32(0), sum[NEON_QUARTERS] = {largest, largest, largest, largest};
    for (uint32_t t = n; t < KERN_TILE; t++) s[t] = -INFINITY;
    for (size_t t = 0; t < KERN_TILE; t += NEON_LANES) most = vmaxnmq_f32(most, vld1q_f32(s + t));
    float top = vmaxnmvq_f32(most);
    if (top > *m) raise_maximum(st, i, top);
    for (size_t t = 0; t < KERN_TILE; t += NEON_LANES) {
        float32x4_t x = neon_exp(vsubq_f32(vld1q_f32(s + t), vdupq_n_f32(*m)));
        sum[t / NEON_LANES % NEON_QUARTERS] = vaddq_f32(sum[t / NEON_LANES % NEON_QUARTERS], x);
        x = vmulq_f32(x, vld1q_f32(v_scale + t));
        largest = vmaxnmq_f32(largest, x);
        vst1q_f32(s + t, x);
    }
    st->w->w.l[st->q0 + i] += neon_fold(sum);
    float w = vmaxnmvq_f32(largest);
    if (w < KERN_Q8_LEAST) {
        memset(p->w[g], 0, sizeof p->w[g]);
        p->step[g] = 0;
        return;
    }
    p->step[g] = w / KERN_Q8_BYTE;
    if (to_integers(s, w, KERN_Q8_BYTE, p->w[g]) >= KERN_Q8_FLAT) return;
    p->step[g] = w / KERN_Q8_MOST;
    to_integers(s, w, KERN_Q8_MOST, p->w[g]);
}

/* o += step * sums for sixteen elements from d on, of n_q queries from i on; the first n rows of the tile. */
KERN_INLINE void value_block(const tile_step *st, q8_ask *ask, const tile_weights *p, size_t i, size_t d, uint32_t n, const int n_q, const kern_hint hint)
{
    int32x4_t acc[KERN_GROUP][4];
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int v = 0; v < 4; v++) acc[g][v] = vdupq_n_s32(0);
    for (uint32_t t = 0; t < n; t++) {
        if (t % 4 == 0) q8_ask_lines(ask, 1, hint);
        int8x16_t bytes = vld1q_s8((const int8_t *)st->t->rows[t] + st->a->dim + d);
        int16x8_t x = vmovl_s8(vget_low_s8(bytes)), y = vmovl_high_s8(bytes);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            int16_t w = p->w[g][t];
            acc[g][0] = vmlal_n_s16(acc[g][0], vget_low_s16(x), w);
            acc[g][1] = vmlal_high_n_s16(acc[g][1], x, w);
            acc[g][2] = vmlal_n_s16(acc[g][2], vget_low_s16(y), w);
            acc[g][3] = vmlal_high_n_s16(acc[g][3], y, w);
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        if (!(p->step[g] > 0)) continue;
        float *o = st->a->o + (st->q0 + i + (size_t)g) * st->a->o_stride + d;
        KERN_UNROLL for (int v = 0; v < 4; v++)
            vst1q_f32(o + v * NEON_LANES, vfmaq_f32(vld1q_f32(o + v * NEON_LANES), vcvtq_f32_s32(acc[g][v]), vdupq_n_f32(p->step[g])));
    }
}

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
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim && w->l[i] > 0; d += NEON_LANES) vst1q_f32(o + d, vdivq_f32(vld1q_f32(o + d), vdupq_n_f32(w->l[i])));
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

void kern_fill_neon_q8(kern_table *t)
{
    t->attend_q8 = attend_q8;
}
