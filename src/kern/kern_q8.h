/* kern_q8.h - what the kernels of 8-bit rows share: the numbers of their arithmetic, and where rows and scales are.
 *
 * The one thing to know: sums of integers are exact, so how a kernel groups rows, queries and elements cannot change a bit.  What is rounded is this, the same
 * operations in every vector ISA:
 *
 *   query    x[d] = q[d] * k_scale[d], between -FLT_MAX and FLT_MAX; most = the largest |x|; integers = round(x * (KERN_Q8_MOST / most)), step = most / KERN_Q8_MOST
 *   score    (float)(sum of integers * bytes) * step, between -FLT_MAX and FLT_MAX
 *   weights  w = p * v_scale, p the exponential; most = the largest w of the tile's positions; integers = round(w * (KERN_Q8_BYTE / most)), step = most / KERN_Q8_BYTE;
 *            where these sum to less than KERN_Q8_FLAT integers and step as above
 *   output   o = fma((float)(sum of integers * bytes), step, o) */
#ifndef SPW_KERN_Q8_H
#define SPW_KERN_Q8_H

#include "kern_attend.h"

/* The largest integer of a scaled query and of a weight: 127 * 256, so that either is two bytes. */
#define KERN_Q8_MOST 32512.0f
/* The largest weight of a flat tile: one byte is enough where the sum of such weights is KERN_Q8_FLAT at least, four times the largest.  Each is wrong by half at most, so all 64 together by a
 * thirty-second of the sum if all err one way, by 0.2 % of it (standard deviation) as they do; beside a peak most of the others would round to 0. */
#define KERN_Q8_BYTE 255.0f
#define KERN_Q8_FLAT (4 * 255)
/* A sum of integers is below 2^31, so with steps up to this scores are finite. */
#define KERN_Q8_STEP 1e29f
/* Below this the largest |x| of a query and the largest weight of a tile count as 0, with step 0: their reciprocals would not be finite. */
#define KERN_Q8_LEAST 1e-30f

enum {
    Q8_BLOCK = 32, /* queries whose integers and scores are kept at once */
    Q8_DIM_STEP = 64, /* rows of integers are zero up to a multiple of this */
};

/* The parts of a.scratch, behind m and l.  s: scores of a tile, KERN_TILE for each query of a block.  q: their integers, q_stride apart.  quads: the same as 256 hi + lo, both
 * signed bytes; q8_work_quads says where. */
typedef struct q8_work {
    kern_attend_work w;
    size_t q_stride;
    float *s;
    int16_t *q;
    int32_t *quads;
    float step[Q8_BLOCK];
    int32_t bias[Q8_BLOCK]; /* -128 * the sum of the integers */
    bool large;             /* a step is so large that a score may not be finite, and must be cut to FLT_MAX; of kernels that do not cut all (AVX-512) */
} q8_work;

static inline void q8_work_begin(q8_work *w, const kern_attend_args *a)
{
    w->w = kern_attend_begin(a);
    w->q_stride = (a->dim + Q8_DIM_STEP - 1) / Q8_DIM_STEP * Q8_DIM_STEP;
    w->s = w->w.s;
    w->quads = (int32_t *)(void *)(w->s + Q8_BLOCK * KERN_TILE);
    w->q = (int16_t *)(void *)(w->quads + Q8_BLOCK * w->q_stride / 2);
}

/* For each KERN_GROUP queries of a block and each quad of elements: for each query four hi (from the result on, for query i and its elements from d on), then four lo. */
static inline int32_t *q8_work_quads(const q8_work *w, size_t i, size_t d)
{
    return w->quads + (i / KERN_GROUP * w->q_stride / 4 + d / 4) * 2 * KERN_GROUP + i % KERN_GROUP * 2;
}

/* Positions up to end, from where the run before ends, whose spans have one k_scale. */
typedef struct q8_run {
    const float *k_scale;
    uint32_t end;
} q8_run;

typedef struct q8_walk {
    kern_walk rows;
    uint32_t run, n_runs; /* the one that holds the next position to be scored; how many there are */
    q8_run runs[KERN_SPAN];
    const kern_span *coming; /* the spans that will be read next */
    size_t n_coming;
    float v_scale[KERN_SPAN]; /* of each position, zero up to the end of its tile */
} q8_walk;

static inline void q8_walk_begin(q8_walk *w, const kern_attend_args *a)
{
    uint32_t n = 0, n_runs = 0;
    for (size_t s = 0; s < a->n_spans; s++) __builtin_prefetch(a->spans[s].v_scale, 0, 3); /* those of single positions are all in lines of their own: they come together */
    kern_walk_over(&w->rows, a, 2 * a->dim, 2 * kern_ahead(a)); /* a row is done with in half the time that one of halves takes */
    w->run = 0;
    w->coming = a->ahead, w->n_coming = a->n_ahead;
    for (size_t s = 0; s < a->n_spans && n < KERN_SPAN; s++) {
        const kern_span *span = &a->spans[s];
        uint32_t take = span->n < KERN_SPAN - n ? span->n : KERN_SPAN - n;
        if (take && !(n_runs && w->runs[n_runs - 1].k_scale == span->k_scale)) w->runs[n_runs++].k_scale = span->k_scale;
        for (uint32_t i = 0; i < take; i++) w->v_scale[n + i] = span->v_scale[i];
        n += take;
        if (take) w->runs[n_runs - 1].end = n;
    }
    for (; n % KERN_TILE; n++) w->v_scale[n] = 0;
    w->n_runs = n_runs;
}

/* Asks for scales when a run begins.  Of single positions each run is another page's: those of a later run, of the channels.  A page's rows take so long that those of all runs may be asked for one call
 * ahead, with each run those of the coming span of the same number, of its positions too. */
static inline void q8_walk_ask(const q8_walk *w)
{
    enum { AHEAD = 5, WORTH = 32 }; /* runs; rows of a span that are worth it */
    const size_t later = w->run + (size_t)AHEAD, dim = w->rows.row_bytes / 2;
    for (size_t i = 0; later < w->n_runs && i < dim; i += 16) __builtin_prefetch(w->runs[later].k_scale + i, 0, 3);
    const kern_span *coming = w->run < w->n_coming ? &w->coming[w->run] : NULL;
    if (!coming || coming->n < WORTH || !coming->k_scale) return;
    for (size_t i = 0; i < dim; i += 16) __builtin_prefetch(coming->k_scale + i, 0, 3);
    for (size_t i = 0; i < coming->n; i += 16) __builtin_prefetch(coming->v_scale + i, 0, 3);
}

/* The run that holds position at, and in *end the end of its part of the tile. */
static inline const float *q8_walk_run(q8_walk *w, const kern_tile *t, uint32_t at, uint32_t *end)
{
    if (at == 0) q8_walk_ask(w);
    while (w->runs[w->run].end <= at) w->run++, q8_walk_ask(w);
    const q8_run *run = &w->runs[w->run];
    *end = run->end < t->base + t->n ? run->end : t->base + t->n;
    return run->k_scale;
}

/* How many rows that run has. */
static inline uint32_t q8_walk_rows(const q8_walk *w)
{
    return w->runs[w->run].end - (w->run ? w->runs[w->run - 1].end : 0);
}

/* What is asked for ahead, line by line in the order of memory and in step with what the arithmetic uses. */
typedef struct q8_ask {
    const unsigned char *at, *end; /* within the row at *next; at == NULL: nothing is asked for */
    const unsigned char *const *next, *const *last;
    size_t row_bytes;
    bool near; /* rows are asked for from nearby as well, by kernels that do so */
} q8_ask;

static inline q8_ask q8_ask_begin(const q8_walk *w, const kern_tile *t, bool ask)
{
    if (!ask) return (q8_ask){.at = NULL};
    size_t row_bytes = w->rows.row_bytes;
    return (q8_ask){.at = t->next[0], .end = t->next[0] + row_bytes, .next = t->next, .last = t->next + t->n - 1, .row_bytes = row_bytes};
}

KERN_INLINE void q8_ask_lines(q8_ask *c, const int n, const kern_hint hint)
{
    enum { LINE = 64 };
    const int lines = c->at ? n : 0;
    KERN_UNROLL for (int i = 0; i < lines; i++) {
        if (hint == KERN_HINT_T0) __builtin_prefetch(c->at, 0, 3);
        else __builtin_prefetch(c->at, 0, 2);
        c->at += LINE;
        if (c->at < c->end) continue;
        if (c->next < c->last) c->next++;
        c->at = *c->next;
        c->end = c->at + c->row_bytes;
    }
}

#endif
