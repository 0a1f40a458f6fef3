/* kern_scalar_attend.c - attention over tiles of K and V rows, and the merge of partials, in plain C, f32.
 *
 * Every tile is converted to floats once, and then each query passes over it on its own. */
#include "kern_attend.h"
#include "kern_scalar.h"

#include <float.h>

static void convert_tile(const kern_attend_args *a, const kern_tile *t, float *tile)
{
    size_t width = 2 * a->dim;
    for (uint32_t i = 0; i < t->n; i++) {
        const kern_f16 *row = (const void *)t->rows[i];
        if (a->f32) memcpy(tile + i * width, row, width * sizeof *tile);
        else for (size_t d = 0; d < width; d++) tile[i * width + d] = scalar_from_half(row[d]);
    }
}

/* A score beyond the range of floats becomes its largest (of either sign; not a number counts as the lowest), so that differences of scores are
 * numbers. */
static float score(const float *q, const float *k, size_t dim)
{
    float s = 0;
    for (size_t d = 0; d < dim; d += KERN_CHUNK) s += scalar_dot(q + d, k + d, kern_min_size(KERN_CHUNK, dim - d));
    s = s > -FLT_MAX ? s : -FLT_MAX;
    return s < FLT_MAX ? s : FLT_MAX;
}

/* The tile's first n positions for query i. */
static void attend_query(const kern_attend_args *a, const kern_attend_work *w, size_t i, uint32_t n)
{
    float *o = a->o + i * a->o_stride, *s = w->s, most = -INFINITY, sum[KERN_LANES] = {0};
    const size_t dim = a->dim;
    for (uint32_t t = 0; t < n; t++) {
        s[t] = score(a->q + i * a->q_stride, w->tile + t * 2 * dim, dim);
        most = s[t] > most ? s[t] : most;
    }
    if (most > w->m[i]) {
        float c = scalar_exp(w->m[i] - most);
        for (size_t d = 0; d < dim; d++) o[d] *= c;
        w->l[i] *= c;
        w->m[i] = most;
    }
    for (uint32_t t = 0; t < n; t++) s[t] = scalar_exp(s[t] - w->m[i]);
    for (uint32_t t = 0; t < n; t++) sum[t % KERN_LANES] += s[t];
    w->l[i] += scalar_fold(sum);
    for (uint32_t t = 0; t < n; t++) {
        const float *v = w->tile + t * 2 * dim + dim;
        for (size_t d = 0; d < dim; d++) o[d] += s[t] * v[d];
    }
}

static void attend(const kern_attend_args *a)
{
    kern_attend_work w = kern_attend_begin(a);
    kern_walk walk;
    kern_walk_begin(&walk, a);
    kern_tile t;
    for (kern_walk_next(&walk, &t); t.n; kern_walk_next(&walk, &t)) {
        convert_tile(a, &t, w.tile);
        for (size_t i = 0; i < a->n_q; i++) {
            uint32_t n = kern_tile_valid(a, &t, i);
            if (n) attend_query(a, &w, i, n);
        }
    }
    for (size_t i = 0; i < a->n_q; i++) {
        float l = w.l[i];
        a->lse[i] = l > 0 ? kern_attend_lse(w.m[i], l) : -INFINITY;
        for (size_t d = 0; d < a->dim && l > 0; d++) a->o[i * a->o_stride + d] /= l;
    }
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
    for (size_t d = 0; d < dim; d++) oa[d] = wa * oa[d] + wb * ob[d];
}

void kern_fill_scalar_attend(kern_table *t)
{
    t->attend = attend;
    t->merge = merge;
}
