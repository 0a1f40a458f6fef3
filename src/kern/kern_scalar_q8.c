/* kern_scalar_q8.c - sealing rows into bytes and attention over them in plain C (kern_q8.h says what is rounded; without fused operations, so the bits
 * of the vector ISAs differ). */
#include "kern_q8.h"
#include "kern_scalar.h"

#include <float.h>

/* ---- sealing ------------------------------------------------------------------------------------------------------ */

KERN_INLINE uint16_t magnitude(kern_f16 h)
{
    uint16_t m = h & 0x7fff;
    return m < 0x7bff ? m : 0x7bff;
}

/* To nearest even, |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction. */
KERN_INLINE int32_t nearest(float x)
{
    return (int32_t)(x + 12582912.0f - 12582912.0f);
}

KERN_INLINE int8_t quantise_value(kern_f16 h, float inverse)
{
    return (int8_t)nearest(scalar_from_half((kern_f16)((h & 0x8000) | magnitude(h))) * inverse);
}

/* The scale of values whose largest magnitude is most, and what turns them into bytes; 0 where all are 0. */
static float scale_of(uint16_t most, float *inverse)
{
    float largest = scalar_from_half(most);
    *inverse = most ? 127 / largest : 0;
    return largest / 127;
}

static void quantise(const kern_f16 *rows, size_t n_rows, size_t dim, int8_t *out, float *k_scale, float *v_scale)
{
    enum { AT_ONCE = 64 };
    const size_t width = 2 * dim;
    for (size_t d = 0; d < dim; d += AT_ONCE) {
        uint16_t most[AT_ONCE] = {0};
        float inverse[AT_ONCE];
        size_t n = kern_min_size(AT_ONCE, dim - d);
        for (size_t i = 0; i < n_rows; i++)
            for (size_t k = 0; k < n; k++) most[k] = magnitude(rows[i * width + d + k]) > most[k] ? magnitude(rows[i * width + d + k]) : most[k];
        for (size_t k = 0; k < n; k++) k_scale[d + k] = scale_of(most[k], &inverse[k]);
        for (size_t i = 0; i < n_rows; i++)
            for (size_t k = 0; k < n; k++) out[i * width + d + k] = quantise_value(rows[i * width + d + k], inverse[k]);
    }
    for (size_t i = 0; i < n_rows; i++) {
        const kern_f16 *v = rows + i * width + dim;
        uint16_t most = 0;
        float inverse;
        for (size_t d = 0; d < dim; d++) most = magnitude(v[d]) > most ? magnitude(v[d]) : most;
        v_scale[i] = scale_of(most, &inverse);
        for (size_t d = 0; d < dim; d++) out[i * width + dim + d] = quantise_value(v[d], inverse);
    }
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

KERN_INLINE float within_floats(float x)
{
    x = x > -FLT_MAX ? x : -FLT_MAX;
    return x < FLT_MAX ? x : FLT_MAX;
}

/* Query i as integers for rows of one k_scale; returns their step. */
static float prepare(const kern_attend_args *a, size_t i, const float *k_scale, int16_t *out)
{
    const float *q = a->q + i * a->q_stride;
    float most = 0;
    for (size_t d = 0; d < a->dim; d++) {
        float x = fabsf(within_floats(q[d] * k_scale[d]));
        most = x > most ? x : most;
    }
    float inverse = most < KERN_Q8_LEAST ? 0 : KERN_Q8_MOST / most;
    for (size_t d = 0; d < a->dim; d++) out[d] = (int16_t)nearest(within_floats(q[d] * k_scale[d]) * inverse);
    return most < KERN_Q8_LEAST ? 0 : most / KERN_Q8_MOST;
}

static void score_query(const kern_attend_args *a, q8_walk *walk, const kern_tile *t, size_t i, uint32_t n, int16_t *q, float *s)
{
    walk->run = 0;
    for (uint32_t at = t->base, end; at < t->base + n; at = end) {
        float step = prepare(a, i, q8_walk_run(walk, t, at, &end), q);
        for (uint32_t k = at - t->base; k < n && k < end - t->base; k++) {
            const int8_t *row = (const int8_t *)t->rows[k];
            int32_t sum = 0;
            for (size_t d = 0; d < a->dim; d++) sum += q[d] * row[d];
            s[k] = within_floats((float)sum * step);
        }
    }
}

/* The tile's first n positions for query i, whose scores are at s. */
static void attend_query(const kern_attend_args *a, const q8_work *w, const kern_tile *t, const float *v_scale, size_t i, uint32_t n)
{
    float *o = a->o + i * a->o_stride, *s = w->s, *m = &w->w.m[i], *l = &w->w.l[i], most = -INFINITY, sum[KERN_LANES] = {0};
    int32_t sums[KERN_Q8_DIM] = {0};
    for (uint32_t k = 0; k < n; k++) most = s[k] > most ? s[k] : most;
    if (most > *m) {
        float c = scalar_exp(*m - most);
        for (size_t d = 0; d < a->dim; d++) o[d] *= c;
        *l *= c;
        *m = most;
    }
    float largest = 0;
    for (uint32_t k = 0; k < n; k++) {
        s[k] = scalar_exp(s[k] - *m);
        sum[k % KERN_LANES] += s[k];
        s[k] *= v_scale[k];
        largest = s[k] > largest ? s[k] : largest;
    }
    *l += scalar_fold(sum);
    if (largest < KERN_Q8_LEAST) return;
    int32_t total = 0;
    for (uint32_t k = 0; k < n; k++) total += nearest(s[k] * (KERN_Q8_BYTE / largest));
    const float range = total >= KERN_Q8_FLAT ? KERN_Q8_BYTE : KERN_Q8_MOST;
    for (uint32_t k = 0; k < n; k++) {
        const int8_t *v = (const int8_t *)t->rows[k] + a->dim;
        int32_t weight = nearest(s[k] * (range / largest));
        for (size_t d = 0; d < a->dim; d++) sums[d] += weight * v[d];
    }
    for (size_t d = 0; d < a->dim; d++) o[d] += (float)sums[d] * (largest / range);
}

static void attend_q8(const kern_attend_args *a)
{
    q8_work w;
    q8_walk walk;
    kern_tile t;
    q8_work_begin(&w, a);
    q8_walk_begin(&walk, a);
    for (kern_walk_next(&walk.rows, &t); t.n; kern_walk_next(&walk.rows, &t)) {
        for (size_t i = 0; i < a->n_q; i++) {
            uint32_t n = kern_tile_valid(a, &t, i);
            if (!n) continue;
            score_query(a, &walk, &t, i, n, w.q, w.s);
            attend_query(a, &w, &t, walk.v_scale + t.base, i, n);
        }
    }
    for (size_t i = 0; i < a->n_q; i++) {
        float l = w.w.l[i];
        a->lse[i] = l > 0 ? kern_attend_lse(w.w.m[i], l) : -INFINITY;
        for (size_t d = 0; d < a->dim && l > 0; d++) a->o[i * a->o_stride + d] /= l;
    }
}

void kern_fill_scalar_q8(kern_table *t)
{
    t->quantise_q8 = quantise;
    t->attend_q8 = attend_q8;
}
