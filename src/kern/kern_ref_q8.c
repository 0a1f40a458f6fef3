/* kern_ref_q8.c - sealing rows into bytes and attention over them, slow and obvious: each query on its own, scores from exact integers, first the
 * largest score, then the sums in f64 with weights that are not rounded. */
#include "kern_q8.h"

#include <float.h>
#include <string.h>

/* Infinities and what is not a number count as the largest half. */
static float value(kern_f16 h)
{
    uint16_t magnitude = h & 0x7fff;
    return kern_f16_to_f32((kern_f16)((h & 0x8000) | (magnitude > 0x7bff ? 0x7bff : magnitude)));
}

static int8_t quantise_value(kern_f16 h, float most)
{
    return most > 0 ? (int8_t)lrintf(value(h) * (127 / most)) : 0;
}

static void quantise(const kern_f16 *rows, size_t n_rows, size_t dim, int8_t *out, float *k_scale, float *v_scale)
{
    for (size_t d = 0; d < dim; d++) {
        float most = 0;
        for (size_t i = 0; i < n_rows; i++) most = fmaxf(most, fabsf(value(rows[i * 2 * dim + d])));
        for (size_t i = 0; i < n_rows; i++) out[i * 2 * dim + d] = quantise_value(rows[i * 2 * dim + d], most);
        k_scale[d] = most / 127;
    }
    for (size_t i = 0; i < n_rows; i++) {
        const kern_f16 *v = rows + i * 2 * dim + dim;
        float most = 0;
        for (size_t d = 0; d < dim; d++) most = fmaxf(most, fabsf(value(v[d])));
        for (size_t d = 0; d < dim; d++) out[i * 2 * dim + dim + d] = quantise_value(v[d], most);
        v_scale[i] = most / 127;
    }
}

static float scaled(const float *q, const kern_span *span, size_t d)
{
    return fmaxf(-FLT_MAX, fminf(FLT_MAX, q[d] * span->k_scale[d]));
}

/* Score of row t of a span: the query as integers in steps, times the row's bytes. */
static double score(const kern_attend_args *a, const float *q, const kern_span *span, size_t t)
{
    const int8_t *k = (const int8_t *)span->rows + t * 2 * a->dim;
    float most = 0;
    int64_t sum = 0;
    for (size_t d = 0; d < a->dim; d++) most = fmaxf(most, fabsf(scaled(q, span, d)));
    if (most < KERN_Q8_LEAST) return 0;
    for (size_t d = 0; d < a->dim; d++) sum += lrintf(scaled(q, span, d) * (KERN_Q8_MOST / most)) * k[d];
    return (double)sum * (double)(most / KERN_Q8_MOST);
}

/* The largest score of the first n positions. */
static double largest_score(const kern_attend_args *a, const float *q, uint32_t n)
{
    double m = -INFINITY;
    for (size_t s = 0; s < a->n_spans; s++) {
        for (uint32_t i = 0; i < a->spans[s].n && n; i++, n--) m = fmax(m, score(a, q, &a->spans[s], i));
    }
    return m;
}

static void attend_q8(const kern_attend_args *a)
{
    double *o = a->scratch; /* dim sums, in the place of the float tile */
    uint32_t total = 0;
    for (size_t s = 0; s < a->n_spans; s++) total += a->spans[s].n;
    for (size_t i = 0; i < a->n_q; i++) {
        const float *q = a->q + i * a->q_stride;
        uint32_t n = a->n_valid ? a->n_valid[i] : total, left = n;
        double m = largest_score(a, q, n), l = 0;
        memset(o, 0, a->dim * sizeof *o);
        for (size_t s = 0; s < a->n_spans; s++) {
            for (uint32_t t = 0; t < a->spans[s].n && left; t++, left--) {
                const int8_t *v = (const int8_t *)a->spans[s].rows + t * 2 * a->dim + a->dim;
                double p = exp(score(a, q, &a->spans[s], t) - m);
                l += p;
                for (size_t d = 0; d < a->dim; d++) o[d] += p * (double)a->spans[s].v_scale[t] * v[d];
            }
        }
        a->lse[i] = n ? (float)(m + log(l)) : -INFINITY;
        for (size_t d = 0; d < a->dim; d++) a->o[i * a->o_stride + d] = n ? (float)(o[d] / l) : 0;
    }
}

void kern_fill_ref_q8(kern_table *t)
{
    t->quantise_q8 = quantise;
    t->attend_q8 = attend_q8;
}
