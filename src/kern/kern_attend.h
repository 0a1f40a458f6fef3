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
 * so that a register tile may run past n without reading what is not there.  next: for each position an address worth asking for now. */
typedef struct kern_tile {
    uint32_t base, n;
    const unsigned char *const *rows, *const *next;
} kern_tile;

/* Where every row of a call is, and where those that follow it are: single positions, blocks and whole spans are the same from here on. */
typedef struct kern_walk {
    size_t row_bytes;
    uint32_t base;  /* next position */
    uint32_t limit; /* positions that some query sees; none beyond is read */
    uint32_t ahead; /* positions from a row to the one that is asked for with it */
    const unsigned char *rows[KERN_SPAN + KERN_AHEAD + KERN_LANES]; /* the last ones: a register tile may ask beyond its rows */
    const unsigned char *last[KERN_TILE + KERN_LANES]; /* rows of a tile that is not full */
} kern_walk;

/* Writes the addresses of the spans' rows to rows[n..end) as far as there are any; returns how many entries are then filled. */
static inline uint32_t kern_walk_list(const kern_span *spans, size_t n_spans, size_t row_bytes, const unsigned char **rows, uint32_t n, uint32_t end)
{
    for (size_t i = 0; i < n_spans && n < end; i++) {
        const unsigned char *row = spans[i].rows;
        uint32_t take = spans[i].n < end - n ? spans[i].n : end - n;
        rows[n] = row;
        for (uint32_t k = 1; k < take; k++) rows[n + k] = row + k * row_bytes;
        n += take;
    }
    return n;
}

/* Positions from a row of halves to the one that is asked for with it, as the call's tuning has it. */
static inline uint32_t kern_ahead(const kern_attend_args *a)
{
    return a->tuning ? a->tuning->ahead : KERN_TUNING_DEFAULT.ahead;
}

static inline void kern_walk_over(kern_walk *w, const kern_attend_args *a, size_t row_bytes, uint32_t ahead)
{
    uint32_t n = kern_walk_list(a->spans, a->n_spans, row_bytes, w->rows, 0, KERN_SPAN), seen = 0;
    w->ahead = ahead < KERN_AHEAD ? ahead : KERN_AHEAD;
    w->row_bytes = row_bytes;
    uint32_t end = n + w->ahead, listed = kern_walk_list(a->ahead, a->n_ahead, row_bytes, w->rows, n, end);
    for (; listed < end + KERN_LANES; listed++) w->rows[listed] = listed ? w->rows[listed - 1] : NULL;
    for (size_t i = 0; i < a->n_q && a->n_valid; i++) seen = a->n_valid[i] > seen ? a->n_valid[i] : seen;
    if (a->n_valid && seen < n) n = seen;
    w->base = 0;
    w->limit = a->n_q ? n : 0;
}

static inline void kern_walk_begin(kern_walk *w, const kern_attend_args *a)
{
    kern_walk_over(w, a, (a->f32 ? 8 : 4) * a->dim, kern_ahead(a));
}

/* The next tile; n is 0 after the last. */
static inline void kern_walk_next(kern_walk *w, kern_tile *t)
{
    uint32_t left = w->limit - w->base, n = left < KERN_TILE ? left : KERN_TILE;
    *t = (kern_tile){.base = w->base, .n = n, .rows = w->rows + w->base, .next = w->rows + w->base + w->ahead};
    w->base += n;
    if (n == 0 || n == KERN_TILE) return;
    for (uint32_t i = 0; i < KERN_TILE + KERN_LANES; i++) w->last[i] = t->rows[i < n ? i : n - 1];
    t->rows = w->last;
}

enum { KERN_PAGE = 4096, KERN_BLOCK_ROWS = 8 }; /* the smallest page that a host may map; rows of a span from which on it is a block */

/* Asks for one line of each page of the first n rows.  Where a host maps the memory of a virtual machine in small pages, the first access to a block waits
 * for a walk through tables that no cache holds, even when it only asks ahead, and the arithmetic waits with it: walks that start together overlap. */
static inline void kern_touch_pages(const kern_span *spans, size_t n_spans, size_t row_bytes, uint32_t n)
{
    uintptr_t last = 0;
    for (size_t i = 0; i < n_spans && n > 0; i++) {
        uint32_t take = spans[i].n < n ? spans[i].n : n;
        uintptr_t at = (uintptr_t)spans[i].rows, end = at + take * row_bytes;
        n -= take;
        for (; at < end; at = (at | (KERN_PAGE - 1)) + 1) {
            if (at / KERN_PAGE != last) __builtin_prefetch((const void *)at, 0, 2);
            last = at / KERN_PAGE;
        }
    }
}

/* The pages of a call's rows and of those that are asked for with them.  Single positions are better walked to one by one: together they are too many. */
static inline void kern_walk_touch(const kern_walk *w, const kern_attend_args *a)
{
    if (w->limit < a->n_spans * KERN_BLOCK_ROWS) return;
    kern_touch_pages(a->spans, a->n_spans, w->row_bytes, w->limit);
    kern_touch_pages(a->ahead, a->n_ahead, w->row_bytes, w->ahead);
}

/* How a call's rows lie, by the rows of a span on average, which decides what is asked for: a stream the processor's own prefetcher follows, short blocks end before it does, and to single rows there is nothing
 * to follow. */
typedef enum kern_order { KERN_ORDER_SINGLE, KERN_ORDER_SHORT, KERN_ORDER_LONG, KERN_ORDER_STREAM } kern_order;
enum { KERN_LONG_ROWS = 48, KERN_STREAM_ROWS = 192 };

static inline kern_order kern_walk_order(const kern_walk *w, size_t n_spans)
{
    if (w->limit < n_spans * KERN_BLOCK_ROWS) return KERN_ORDER_SINGLE;
    return w->limit < n_spans * KERN_LONG_ROWS ? KERN_ORDER_SHORT : w->limit < n_spans * KERN_STREAM_ROWS ? KERN_ORDER_LONG : KERN_ORDER_STREAM;
}

/* Rows from the arithmetic to one that is asked for into L1, besides what the tuning asks for from afar into L2: a processor may leave the latter out as long as little of what they brought was used, and of the former what is more than
 * some forty lines at a time.  4 and 8 are a little worse, 16 as good. */
enum { KERN_NEAR = 12 };

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
