/* kern_ref_attend.c - attention and merge, slow and obvious: each query on its own, first the largest score, then the sums, in f64 with libm; and the
 * size of the scratch, which is the same for every ISA. */
#include "kern_many.h"

#include <string.h>

size_t kern_attend_scratch(size_t n_q, size_t dim)
{
    if (dim < 64) dim = 64; /* what rows of bytes need does not shrink with dim */
    return (2 * kern_attend_pad(n_q) + KERN_GROUP * KERN_TILE + 2 * dim * KERN_TILE) * sizeof(float);
}

size_t kern_many_scratch(size_t dim)
{
    return 4 * KERN_MANY * dim + 16 * dim + MANY_QUERIES * (6 * KERN_MANY + 2 * dim) + 64;
}

/* Element i of row t of a span: K from 0 on, V from dim on. */
static double element(const kern_attend_args *a, const kern_span *span, size_t t, size_t i)
{
    i += t * 2 * a->dim;
    return a->f32 ? (double)((const float *)span->rows)[i] : (double)kern_f16_to_f32(((const kern_f16 *)span->rows)[i]);
}

static double score(const kern_attend_args *a, const float *q, const kern_span *span, size_t t)
{
    double sum = 0;
    for (size_t d = 0; d < a->dim; d++) sum += (double)q[d] * element(a, span, t, d);
    return sum;
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

static void attend(const kern_attend_args *a)
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
                double p = exp(score(a, q, &a->spans[s], t) - m);
                l += p;
                for (size_t d = 0; d < a->dim; d++) o[d] += p * element(a, &a->spans[s], t, a->dim + d);
            }
        }
        a->lse[i] = n ? (float)(m + log(l)) : -INFINITY;
        for (size_t d = 0; d < a->dim; d++) a->o[i * a->o_stride + d] = n ? (float)(o[d] / l) : 0;
    }
}

static void merge(float *oa, float *la, const float *ob, float lb, size_t dim)
{
    if (lb == -INFINITY) return;
    if (*la == -INFINITY) {
        memcpy(oa, ob, dim * sizeof *oa);
        *la = lb;
        return;
    }
    double a = (double)*la, b = (double)lb, m = fmax(a, b), lse = m + log(exp(a - m) + exp(b - m));
    for (size_t d = 0; d < dim; d++) oa[d] = (float)(exp(a - lse) * (double)oa[d] + exp(b - lse) * (double)ob[d]);
    *la = (float)lse;
}

void kern_fill_ref_attend(kern_table *t)
{
    t->attend = attend;
    t->merge = merge;
}
