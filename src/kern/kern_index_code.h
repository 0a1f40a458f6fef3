/* kern_index_code.h - what the kernels of the index share: where things lie in codes, prepared queries and scratch, which groups a scan walks over, and its numbers.
 *
 * The one thing to know: sums of integers are exact, so the scan's only roundings are those below, the same operations in every vector ISA:
 *
 *   query    integers = round(q / step), step such that those of a chunk of 24 channels add up to a byte at most; total = the sum of their absolute values, half = total / 2 rounded down
 *   sum      n = the sum of the integers that agree with signs, less half; so S = (2 n - (total odd)) * step
 *   kept     when (n * a + 2^14) >> 15 >= threshold for a head; a: the scale as an integer of 15 bits in units of the largest exponent of the page
 *   estimate fma(scale, fma((float)n, slope, base), offset), offset the mean's part; with both planes n is 2 n of s + n of u */
#ifndef SPW_KERN_INDEX_CODE_H
#define SPW_KERN_INDEX_CODE_H

#include <math.h>
#include <string.h>

#include "kern_index.h"
#include "kern_simd.h"

enum {
    INDEX_CHUNK = 3,        /* adjacent bytes of signs, 24 channels, whose sums of integers fit a byte */
    INDEX_CHUNK_BYTES = 256, /* of one head's tables for a chunk, at most: four of 64 entries, or six of 16 */
    INDEX_FULL = 64 + 48,   /* kept positions that are enough for finishing 64 of them: those have been asked for some time ago */
    INDEX_WAITING = 224,    /* kept positions that can wait: INDEX_FULL, a group, and what a vector writes behind that */
};
/* The integers of a chunk add up to this and half of each of 24 more by rounding. */
#define INDEX_MOST 242.0f
/* A smaller sum of a chunk has no finite reciprocal, and no influence. */
#define INDEX_LEAST 1e-30f
#define INDEX_HALF_MOST 65504.0f

/* ---- where things lie ------------------------------------------------------------------------------- */

typedef struct index_layout {
    size_t groups, row_bytes, group_bytes; /* groups of 64; bytes of a position's signs; of a group's */
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
    l.bytes = l.outer + (planes == 2 ? index_round_up(n_rows * l.row_bytes) : 0);
    return l;
}

/* The byte of each row of a group's signs in which a position is. */
KERN_INLINE size_t index_entry(size_t position)
{
    return 2 * (position % 32) + position / 32;
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

/* Parts of scratch.  sums: n of a group's positions, of each head.  Of kept positions that wait: n (INDEX_WAITING for each head), scale, bytes of u. */
typedef struct index_scratch {
    int16_t *sums, *waiting_n;
    kern_f16 *waiting_scale;
    const uint8_t **waiting_u;
    uint8_t *turned; /* bytes of u of 64 kept positions, laid out as a group's signs */
} index_scratch;

static inline index_scratch index_scratch_at(void *scratch, size_t n_q)
{
    index_scratch s = {.sums = scratch};
    s.waiting_n = s.sums + n_q * KERN_INDEX_GROUP;
    s.waiting_scale = (kern_f16 *)(void *)(s.waiting_n + n_q * INDEX_WAITING);
    s.waiting_u = (const uint8_t **)(void *)(s.waiting_scale + INDEX_WAITING);
    s.turned = (uint8_t *)(s.waiting_u + INDEX_WAITING);
    return s;
}

static inline size_t index_scratch_bytes(size_t n_q, size_t dim)
{
    size_t halves = n_q * (KERN_INDEX_GROUP + INDEX_WAITING) + INDEX_WAITING;
    return halves * sizeof(kern_f16) + INDEX_WAITING * sizeof(uint8_t *) + index_chunks(dim) * INDEX_CHUNK * KERN_INDEX_GROUP;
}

/* ---- the groups of a scan --------------------------------------------------------------------------- */

typedef struct index_walk {
    const kern_index_scan *a;
    size_t groups;       /* of a page */
    size_t page, group;  /* the next one, group counted in its page */
    const uint8_t *code; /* of the current group's page */
    size_t at, from;     /* the current group's number in its page; its first position */
    bool is_new;         /* the current group is the first one of its page that is scanned */
    size_t low, high;    /* which of its positions are scanned */
} index_walk;

static inline index_walk index_walk_begin(const kern_index_scan *a)
{
    return (index_walk){.a = a, .groups = (a->page_rows + KERN_INDEX_GROUP - 1) / KERN_INDEX_GROUP, .page = a->first / a->page_rows};
}

static inline bool index_walk_next(index_walk *w)
{
    const kern_index_scan *a = w->a;
    for (;;) {
        size_t at = w->group, page = w->page, from = page * a->page_rows + at * KERN_INDEX_GROUP;
        if (from >= a->end) return false;
        if (++w->group == w->groups) w->group = 0, w->page++;
        size_t n = kern_min_size(KERN_INDEX_GROUP, a->page_rows - at * KERN_INDEX_GROUP);
        if (from + n <= a->first || (a->every > 1 && (page * w->groups + at) % a->every)) continue;
        w->is_new = w->code != a->pages[page];
        w->code = a->pages[page];
        w->at = at, w->from = from;
        w->low = from < a->first ? a->first - from : 0;
        w->high = kern_min_size(n, a->end - from);
        return true;
    }
}

/* ---- the state of a scan ---------------------------------------------------------------------------- */

/* Of each head; those that do not exist have zeros.  Numbers of 16 bits stand in both halves of 32, which vectors are filled with faster. */
typedef struct index_state {
    const kern_index_scan *a;
    index_query q;
    index_scratch s;
    index_layout at;
    bool refine;
    size_t n_kept, n_waiting;
    float slope[KERN_MAX_G], base[KERN_MAX_G];             /* of estimates as they are asked for */
    float inverse[KERN_MAX_G];                             /* 1 / (slope of estimates from signs) */
    float bar[KERN_MAX_G];                                 /* threshold + norm */
    float offset[KERN_MAX_G];                              /* of the current page, as the next two */
    uint32_t threshold[KERN_MAX_G];
    int exponent;                                          /* the largest of its scales */
    uint32_t start_all[KERN_MAX_G], start_odd[KERN_MAX_G]; /* what sums start from, so that they come out less half: of all bytes, of the odd ones */
} index_state;

static inline uint32_t index_twice(int v)
{
    return (uint32_t)(uint16_t)v * 0x10001u;
}

static inline index_state index_state_begin(const kern_index_scan *a)
{
    index_state s = {.a = a, .q = index_query_at(a->query, a->n_q, a->dim), .s = index_scratch_at(a->scratch, a->n_q), .at = index_layout_of(a->page_rows, a->dim, a->planes),
                     .refine = a->refine && a->planes == 2};
    const float sign = a->planes == 2 ? KERN_INDEX_SIGN : 1;
    for (size_t g = 0; g < a->n_q; g++) {
        int half = s.q.total[g] >> 1;
        float step = s.q.step[g], odd = (float)(s.q.total[g] & 1);
        s.start_odd[g] = index_twice(-half);
        s.start_all[g] = index_twice(-half - half * 256);
        s.slope[g] = s.refine ? 2 * step : 2 * sign * step;
        s.base[g] = s.refine ? -3 * step * odd : -sign * step * odd;
        s.inverse[g] = step > 0 ? 1 / (2 * sign * step) : 1 / INDEX_LEAST; /* all sums are 0 then */
        s.bar[g] = a->threshold + (a->norm ? a->norm[g] : 0);
    }
    return s;
}

/* 2^n, n in the range of normal numbers. */
static inline float index_power(int n)
{
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* Of a page whose offsets are known: its largest exponent, and from which integer on a position is kept.  A scale of bits b is (1024 + b % 1024) * 2^(b / 1024 - 25), or
 * a * 2^(exponent - 29), so a sum n times a / 2^15 is worth slope * 2^(exponent - 14) each.  Halves below the normal ones count as somewhat more. */
static inline void index_page_begin(index_state *s, const kern_f16 *scales)
{
    const float rounder = 12582912.0f;
    kern_f16 most = 0;
    for (size_t i = 0; i < s->at.groups * KERN_INDEX_GROUP; i++) most = scales[i] > most ? scales[i] : most;
    s->exponent = most >> 10;
    const float power = index_power(14 - s->exponent);
    for (size_t first = 0; first < s->a->n_q; first += KERN_LANES) {
        for (size_t g = first; g < first + KERN_LANES; g++) {
            float t = (s->bar[g] - s->offset[g]) * s->inverse[g] * power;
            t = t < 32767 ? t : 32767;
            t = t > -32768 ? t : -32768;
            s->threshold[g] = (uint32_t)(int)(t + rounder - rounder) & 0xffff;
            s->threshold[g] |= s->threshold[g] << 16;
        }
    }
}

/* Which of a group's positions are scanned, bit by bit. */
static inline uint64_t index_walk_mask(const index_walk *w)
{
    return (w->high < 64 ? (UINT64_C(1) << w->high) - 1 : UINT64_MAX) & UINT64_MAX << w->low;
}

/* Lets the positions of mask wait for their u, and asks for it. */
static inline void index_wait_for_u(index_state *s, const index_walk *w, uint64_t mask)
{
    const uint8_t *u = w->code + s->at.outer + w->at * KERN_INDEX_GROUP * s->at.row_bytes;
    for (const uint8_t **to = s->s.waiting_u + s->n_waiting; mask; mask &= mask - 1) {
        *to = u + (size_t)__builtin_ctzll(mask) * s->at.row_bytes;
        __builtin_prefetch(*to++);
    }
}

#endif
