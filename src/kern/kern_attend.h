/* kern_attend.h - what the attention kernels of every ISA share: scratch, the walk over tiles, the weights of a merge.
 *
 * The one thing to know: how many positions of a tile a query sees is a function of the query's own count, so masked positions are never
 * multiplied by zero but left out; a query's arithmetic is the same with or without them. */
#ifndef SPW_KERN_ATTEND_H
#define SPW_KERN_ATTEND_H

#include <math.h>

#include "kern_simd.h"

enum { KERN_GROUP = 4 }; /* queries per register tile */

/* The parts of a.scratch.  m, l: running maximum and sum of each query.  s: scores, then exponentials, of one group, KERN_TILE each.  tile:
 * KERN_TILE rows of 2 * dim floats. */
typedef struct kern_attend_work {
    float *m, *l, *s, *tile;
} kern_attend_work;

KERN_INLINE size_t kern_attend_pad(size_t n_q)
{
    return (n_q + KERN_LANES - 1) / KERN_LANES * KERN_LANES;
}

/* Lays out the scratch and sets every query to the empty set. */
static inline kern_attend_work kern_attend_begin(const kern_attend_args *a)
{
    kern_attend_work w;
    size_t pad = kern_attend_pad(a->n_q);
    w.m = a->scratch;
    w.l = w.m + pad;
    w.s = w.l + pad;
    w.tile = w.s + KERN_GROUP * KERN_TILE;
    for (size_t i = 0; i < a->n_q; i++) {
        w.m[i] = -INFINITY;
        w.l[i] = 0;
        for (size_t d = 0; d < a->dim; d++) a->o[i * a->o_stride + d] = 0;
    }
    return w;
}

/* Up to KERN_TILE positions: the first one's number in the joined spans, how many, and where each row is.  Entries from n on repeat the last row,
 * so that a register tile may run past n without reading what is not there.  The empty tile after the last one names the addresses that follow in
 * memory, never to be read but worth asking for: the caller's next call most likely goes on there. */
typedef struct kern_tile {
    uint32_t base, n;
    const unsigned char *rows[KERN_TILE];
} kern_tile;

typedef struct kern_walk {
    const kern_attend_args *a;
    size_t row_bytes;
    size_t span;     /* current span */
    uint32_t at;     /* next position in it */
    uint32_t base;   /* next position in all */
    uint32_t limit;  /* positions that some query sees; none beyond is read */
    uintptr_t end;   /* address after the last row handed out */
} kern_walk;

static inline kern_walk kern_walk_begin(const kern_attend_args *a)
{
    uint32_t n = 0, seen = 0;
    for (size_t i = 0; i < a->n_spans; i++) n += a->spans[i].n;
    for (size_t i = 0; i < a->n_q && a->n_valid; i++) seen = a->n_valid[i] > seen ? a->n_valid[i] : seen;
    if (a->n_valid && seen < n) n = seen;
    return (kern_walk){.a = a, .row_bytes = (a->f32 ? 8 : 4) * a->dim, .limit = a->n_q ? n : 0};
}

/* The next tile; n is 0 after the last. */
static inline void kern_walk_next(kern_walk *w, kern_tile *t)
{
    uint32_t left = w->limit - w->base, want = left < KERN_TILE ? left : KERN_TILE, n = 0;
    size_t row_bytes = w->row_bytes;
    t->base = w->base;
    t->n = want;
    while (n < want) {
        const kern_span *sp = &w->a->spans[w->span];
        uint32_t take = sp->n - w->at < want - n ? sp->n - w->at : want - n;
        const unsigned char *row = (const unsigned char *)sp->rows + w->at * row_bytes;
        for (uint32_t i = 0; i < take; i++) t->rows[n + i] = row + i * row_bytes;
        n += take;
        w->at += take;
        if (w->at == sp->n) w->span++, w->at = 0;
    }
    if (n) w->end = (uintptr_t)t->rows[n - 1] + row_bytes;
    for (uint32_t i = n; i < KERN_TILE; i++) t->rows[i] = n ? t->rows[n - 1] : (const unsigned char *)(w->end + i * row_bytes);
    w->base += want;
}

/* Positions of the tile that query i sees. */
KERN_INLINE uint32_t kern_tile_valid(const kern_attend_args *a, const kern_tile *t, size_t i)
{
    if (!a->n_valid) return t->n;
    uint32_t seen = a->n_valid[i] > t->base ? a->n_valid[i] - t->base : 0;
    return seen < t->n ? seen : t->n;
}

static inline float kern_attend_lse(float m, float l)
{
    return (float)((double)m + log((double)l));
}

/* Weights of two partials, both not empty, and the joint lse (in *la). */
static inline void kern_merge_weights(float *la, float lb, float *wa, float *wb)
{
    double a = (double)*la, b = (double)lb, m = a > b ? a : b, ea = exp(a - m), eb = exp(b - m), sum = ea + eb;
    *la = (float)(m + log(sum));
    *wa = (float)(ea / sum);
    *wb = (float)(eb / sum);
}

#endif
