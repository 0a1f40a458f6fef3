/* kern_index_code.h - what the kernels of the index share: where things lie in codes, prepared queries and scratch, which groups a scan walks over, and its numbers.
 *
 * The one thing to know: sums of integers are exact, so the scan's only roundings are those below, the same operations in every vector ISA:
 *
 *   query    integers = round(q / step), step such that those of a chunk of 24 channels add up to a byte at most; total = the sum of their absolute values, half = total / 2 rounded down
 *   sum      n = the sum of the integers that agree with signs, less half; so S = (2 n - (total odd)) * step
 *   kept     when (n * a + 2^14) >> 15 >= threshold for a head; a: the scale as an integer of 15 bits in units of the largest exponent of the page
 *   estimate fma(scale, fma((float)n, slope, base), offset), offset the mean's part; with all planes that of 2^(P-1) S_0, and then for each further plane the same of it, the estimate
 *            so far in the place of offset */
#ifndef SPW_KERN_INDEX_CODE_H
#define SPW_KERN_INDEX_CODE_H

#include <math.h>
#include <string.h>

#include "kern_index.h"
#include "kern_simd.h"

enum {
    INDEX_CHUNK = 3,        /* adjacent bytes of signs, 24 channels, whose sums of integers fit a byte */
    INDEX_CHUNK_BYTES = 256, /* of one head's tables for a chunk, at most: four of 64 entries, or six of 16 */
    INDEX_FULL = 64 + 48,   /* kept positions that are enough for refining 64 of them: those have been asked for some time ago */
    INDEX_WAITING = 512,    /* places for kept positions that wait */
    INDEX_STEPS = 8,        /* groups that are scanned together */
    INDEX_SOME = 64,        /* pages that tell how large errors are */
    INDEX_ROOM = (INDEX_STEPS + 1) * KERN_INDEX_GROUP, /* for what is kept of them, and a vector more */
};
/* The integers of a chunk add up to this and half of each of 24 more by rounding. */
#define INDEX_MOST 242.0f
/* A smaller sum of a chunk has no finite reciprocal, and no influence. */
#define INDEX_LEAST 1e-30f
#define INDEX_HALF_MOST 65504.0f
/* Votes need no more of an exponential than e^d = 2^n e^r, n = round(d / ln 2), r = d - n ln 2 in one step and its series to degree 5: some parts in a million, where positions that compete
 * differ by more.  Below KERN_EXP_MIN a vote is as at it. */
#define INDEX_LN2 0.693147181f

/* ---- where things lie ------------------------------------------------------------------------------- */

typedef struct index_layout {
    size_t groups, row_bytes, group_bytes; /* groups of 64; bytes of one plane of a position; of a group's signs */
    size_t outer_bytes;                    /* of a position's other planes */
    size_t scales, mean, outer, bytes;     /* offsets of the areas behind the signs; the whole */
} index_layout;

static inline size_t index_round_up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static inline index_layout index_layout_of(size_t n_rows, size_t dim, unsigned planes)
{
    index_layout l = {.groups = (n_rows + KERN_INDEX_GROUP - 1) / KERN_INDEX_GROUP, .row_bytes = dim / 8, .group_bytes = KERN_INDEX_GROUP * dim / 8};
    l.scales = l.groups * l.group_bytes;
    l.mean = l.scales + l.groups * KERN_INDEX_GROUP * sizeof(kern_f16);
    l.outer = index_round_up(l.mean + dim * sizeof(kern_f16));
    l.outer_bytes = (planes - 1) * l.row_bytes;
    l.bytes = l.outer + index_round_up(n_rows * l.outer_bytes);
    return l;
}

/* The byte of each row of a group's signs in which a position is. */
KERN_INLINE size_t index_entry(size_t position)
{
    return 2 * (position % 32) + position / 32;
}

/* The step between levels, in root mean squares: of those that Gaussian values are coded best with.  And what a scale is multiplied with to make the best one of the signs alone:
 * E|r| / (E rc / E cc), in deviations of Gaussian r .79788 / .49902, / .29300 and / .16751 of two, three and four planes. */
KERN_INLINE float index_level_step(unsigned planes)
{
    return planes < 3 ? 1 : planes == 3 ? 0.586f : 0.335f;
}

KERN_INLINE float index_sign_factor(unsigned planes)
{
    return planes < 2 ? 1 : planes == 2 ? 1.59890f : planes == 3 ? 2.72314f : 4.76325f;
}

/* What is left of the variance of Gaussian r behind its levels; and (r / mean |r|)^2 of it on the mean. */
KERN_INLINE float index_left(unsigned planes)
{
    return planes < 2 ? 0.36338f : planes == 2 ? 0.11885f : planes == 3 ? 0.03744f : 0.01154f;
}
#define INDEX_HALF_PI 1.57079633f

/* The square from which on |r| is at least i steps, for a mean square. */
KERN_INLINE float index_limit(float mean_square, unsigned planes, int i)
{
    const float far = (float)i * index_level_step(planes);
    return mean_square * (far * far);
}

/* A half; what is too large or not a number is the largest one. */
static inline kern_f16 index_half(float v)
{
    if (!(v <= INDEX_HALF_MOST)) v = INDEX_HALF_MOST;
    return kern_f32_to_f16(v < -INDEX_HALF_MOST ? -INDEX_HALF_MOST : v);
}

KERN_INLINE size_t index_chunks(size_t dim)
{
    return (dim / 8 + INDEX_CHUNK - 1) / INDEX_CHUNK;
}

/* A prepared query: of each head the rotated floats, step and total; tables, 64-byte aligned. */
typedef struct index_query {
    float *rotated, *step;
    int32_t *total;
    uint8_t *tables;
    size_t table_bytes; /* of a head */
} index_query;

static inline size_t index_table_bytes(size_t dim)
{
    return index_chunks(dim) * INDEX_CHUNK_BYTES;
}

static inline size_t index_query_numbers(size_t n_q, size_t dim)
{
    return n_q * dim + 2 * KERN_MAX_G;
}

static inline index_query index_query_at(const void *prepared, size_t n_q, size_t dim)
{
    float *at = (float *)(uintptr_t)prepared, *step = at + n_q * dim;
    return (index_query){.rotated = at, .step = step, .total = (int32_t *)(void *)(step + KERN_MAX_G), .tables = (uint8_t *)(at + index_query_numbers(n_q, dim)),
                         .table_bytes = index_table_bytes(dim)};
}

/* Parts of scratch.  sums: n of a group's positions, of each head; room for two groups.  Of kept positions of INDEX_STEPS groups, one after the other: n, of each head INDEX_ROOM; scale;
 * number of the group * KERN_INDEX_GROUP + position.  Scale and outer planes of kept positions that wait for those. */
typedef struct index_scratch {
    int16_t *sums;
    int16_t *kept_sums;
    kern_f16 *kept_scales;
    uint16_t *kept_numbers;
    float *waiting_scale;
    const uint8_t **waiting_outer;
    uint8_t *turned; /* outer planes of 64 kept positions, each laid out as a group's signs */
} index_scratch;

static inline index_scratch index_scratch_at(void *scratch, size_t n_q)
{
    index_scratch s = {.sums = scratch};
    s.kept_sums = s.sums + 2 * n_q * KERN_INDEX_GROUP;
    s.kept_scales = (kern_f16 *)(void *)(s.kept_sums + n_q * INDEX_ROOM);
    s.kept_numbers = (uint16_t *)(void *)(s.kept_scales + INDEX_ROOM);
    s.waiting_scale = (float *)(void *)(s.kept_numbers + INDEX_ROOM);
    s.waiting_outer = (const uint8_t **)(void *)(s.waiting_scale + INDEX_WAITING);
    s.turned = (uint8_t *)(s.waiting_outer + INDEX_WAITING);
    return s;
}

static inline size_t index_scratch_bytes(size_t n_q, size_t dim)
{
    return ((2 * KERN_INDEX_GROUP + INDEX_ROOM) * n_q + 2 * INDEX_ROOM) * sizeof(int16_t) + INDEX_WAITING * (sizeof(float) + sizeof(uint8_t *)) + (KERN_INDEX_PLANES - 1) * (dim / 8) * KERN_INDEX_GROUP;
}

/* ---- the groups of a scan --------------------------------------------------------------------------- */

/* A group that is scanned. */
typedef struct index_step {
    const uint8_t *code; /* of its page */
    const uint8_t *outer;
    size_t at, from;     /* its number in the page; its first position */
    uint64_t mask;       /* which of its positions are scanned */
    size_t page;         /* which of the pages of these steps it is of */
    /* What should be asked for: the signs of a group that is scanned later; and still later, for they are wanted INDEX_STEPS groups before it, what a page has beside signs. */
    const uint8_t *later_signs, *later_rest;
} index_step;

typedef struct index_walk {
    const kern_index_scan *a;
    index_layout layout;
    size_t next;         /* the next group, counted from the first page */
    size_t ahead, there; /* so many of the groups that are scanned ahead signs are asked for; so many pages there are */
    index_step steps[INDEX_STEPS];
    size_t n_steps, n_pages;
    const uint8_t *pages[INDEX_STEPS]; /* the codes of the steps' pages */
} index_walk;

/* ahead: so many positions ahead signs are asked for; when groups are left out, those of the next steps are. */
static inline index_walk index_walk_begin(const kern_index_scan *a, size_t ahead)
{
    const size_t scanned = (a->end + a->page_rows - 1) / a->page_rows;
    index_walk w = {.a = a, .layout = index_layout_of(a->page_rows, a->dim, a->planes), .ahead = INDEX_STEPS, .there = a->n_pages > scanned ? a->n_pages : scanned};
    w.next = (a->first / a->page_rows * w.layout.groups + a->every - 1) / a->every * a->every;
    if (a->every == 1) w.ahead = (ahead + a->page_rows - 1) / a->page_rows * w.layout.groups;
    return w;
}

/* The page of a group; *at: which group of it that is. */
static inline size_t index_walk_page(const index_walk *w, size_t group, size_t *at)
{
    size_t page = w->layout.groups == 2 ? group / 2 : group / w->layout.groups;
    *at = group - page * w->layout.groups;
    return page;
}

/* The code of that page, or when it is not there the last one's. */
static inline const uint8_t *index_walk_code(const index_walk *w, size_t group, size_t *at)
{
    size_t page = index_walk_page(w, group, at);
    return w->a->pages[page < w->there ? page : w->there - 1];
}

/* The next steps; false when there are none. */
static inline bool index_walk_next(index_walk *w)
{
    const kern_index_scan *a = w->a;
    w->n_steps = w->n_pages = 0;
    for (; w->n_steps < INDEX_STEPS; w->next += a->every) {
        size_t at, later_at, page = index_walk_page(w, w->next, &at), from = page * a->page_rows + at * KERN_INDEX_GROUP;
        if (from >= a->end) break;
        size_t n = kern_min_size(KERN_INDEX_GROUP, a->page_rows - at * KERN_INDEX_GROUP), high = kern_min_size(n, a->end - from);
        if (from + n <= a->first) continue;
        uint64_t mask = high < KERN_INDEX_GROUP ? (UINT64_C(1) << high) - 1 : UINT64_MAX;
        if (from < a->first) mask &= UINT64_MAX << (a->first - from);
        const uint8_t *code = a->pages[page], *rest = index_walk_code(w, w->next + (w->ahead + INDEX_STEPS) * a->every, &later_at);
        const uint8_t *later = index_walk_code(w, w->next + w->ahead * a->every, &later_at);
        if (!w->n_pages || w->pages[w->n_pages - 1] != code) w->pages[w->n_pages++] = code;
        w->steps[w->n_steps++] = (index_step){.code = code, .outer = a->outer ? a->outer[page] : code + w->layout.outer, .at = at, .from = from, .mask = mask, .page = w->n_pages - 1,
                                              .later_signs = later + later_at * w->layout.group_bytes, .later_rest = rest};
    }
    return w->n_steps > 0;
}

/* ---- the state of a scan ---------------------------------------------------------------------------- */

/* Of each head; those that do not exist have zeros.  Numbers of 16 bits stand in both halves of 32, which vectors are filled with faster. */
typedef struct index_state {
    const kern_index_scan *a;
    index_query q;
    index_scratch s;
    index_layout at;
    bool refine;
    size_t n_kept, n_packed, n_waiting, first_waiting; /* packed: of the groups at hand, not yet among the kept */
    float slope[KERN_MAX_G], base[KERN_MAX_G];             /* of what signs add to estimates; those of each further plane are half of the one's before */
    float inverse[KERN_MAX_G];                             /* 1 / (slope of estimates from signs alone) */
    float bar[KERN_MAX_G];                                 /* threshold + norm */
    uint32_t start_all[KERN_MAX_G], start_odd[KERN_MAX_G]; /* what sums start from, so that they come out less half: of all bytes, of the odd ones */
    float offset[INDEX_STEPS * KERN_MAX_G];                /* of the steps' pages, as the next two; index_place says where */
    uint32_t threshold[INDEX_STEPS * KERN_MAX_G];
    int exponent[INDEX_STEPS];                             /* the largest of a page's scales */
} index_state;

static inline uint32_t index_twice(int v)
{
    return (uint32_t)(uint16_t)v * 0x10001u;
}

/* Four pages and four heads fill a vector. */
KERN_INLINE size_t index_place(size_t page, size_t head)
{
    return (page / 4 * (KERN_MAX_G / 4) + head / 4) * 16 + page % 4 * 4 + head % 4;
}

static inline index_state index_state_begin(const kern_index_scan *a)
{
    index_state s = {.a = a, .q = index_query_at(a->query, a->n_q, a->dim), .s = index_scratch_at(a->scratch, a->n_q), .at = index_layout_of(a->page_rows, a->dim, a->planes),
                     .refine = a->refine && a->planes > 1};
    const float sign = index_sign_factor(a->planes), factor = s.refine ? (float)(1 << (a->planes - 1)) : sign;
    for (size_t g = 0; g < a->n_q; g++) {
        int half = s.q.total[g] >> 1;
        float step = s.q.step[g], odd = (float)(s.q.total[g] & 1);
        s.start_odd[g] = index_twice(-half);
        s.start_all[g] = index_twice(-half - half * 256);
        s.slope[g] = 2 * factor * step;
        s.base[g] = -factor * step * odd;
        s.inverse[g] = step > 0 ? 1 / (2 * sign * step) : 1 / INDEX_LEAST; /* all sums are 0 then */
        s.bar[g] = a->threshold + (a->norm ? a->norm[g] : 0);
    }
    return s;
}

/* What turns what a sum is compared with into integers of the page whose largest exponent is given: t = (bar - offset) * inverse * power, cut to 16 bits and rounded to nearest even.  A
 * scale of bits b is (1024 + b % 1024) * 2^(b / 1024 - 25), or a * 2^(exponent - 29), so a sum n times a / 2^15 is worth slope * 2^(exponent - 14) each.  Halves below the
 * normal ones count as somewhat more. */
static inline float index_power(int exponent)
{
    uint32_t bits = (uint32_t)(14 - exponent + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* Asks, with the first group of a page or with each when groups are left out, for what a later page has beside signs, into L2. */
static inline void index_ask_rest(const index_state *s, const index_step *step)
{
    if (step->at && s->a->every == 1) return;
    for (size_t i = s->at.scales; i < s->at.mean + s->a->dim * sizeof(kern_f16); i += 64) __builtin_prefetch(step->later_rest + i, 0, 2);
}

/* Lets the positions of mask wait for their outer planes, and asks for those, into L2.  Their scales are there already. */
static inline void index_wait(index_state *s, const index_step *step, uint64_t mask)
{
    const uint8_t *outer = step->outer + step->at * KERN_INDEX_GROUP * s->at.outer_bytes;
    const uint8_t **to = s->s.waiting_outer + s->first_waiting + s->n_waiting;
    for (; mask; mask &= mask - 1) {
        *to = outer + (size_t)__builtin_ctzll(mask) * s->at.outer_bytes;
        __builtin_prefetch(*to++, 0, 2);
    }
    s->n_waiting = (size_t)(to - s->s.waiting_outer) - s->first_waiting;
}

/* The first 64 waiting positions, or all, are done.  Makes room for a group. */
static inline void index_wait_end(index_state *s)
{
    size_t n = kern_min_size(s->n_waiting, KERN_INDEX_GROUP);
    s->first_waiting += n, s->n_waiting -= n;
    if (s->first_waiting + INDEX_FULL + 2 * KERN_INDEX_GROUP <= INDEX_WAITING) return;
    memmove(s->s.waiting_scale, s->s.waiting_scale + s->first_waiting, s->n_waiting * sizeof *s->s.waiting_scale);
    memmove(s->s.waiting_outer, s->s.waiting_outer + s->first_waiting, s->n_waiting * sizeof *s->s.waiting_outer);
    s->first_waiting = 0;
}

#endif
