/* kern_index_code.h - what the kernels of the index share: where things lie in codes, queries and scratch, and how codes and queries are made.
 *
 * The one thing to know: sixteen rows are worked on side by side, one in each lane, so everything here is plain C that a compiler turns into vectors without changing
 * an order of sums.  Compiled with every ISA's flags, it is the same bits. */
#ifndef SPW_KERN_INDEX_CODE_H
#define SPW_KERN_INDEX_CODE_H

#include <math.h>
#include <string.h>

#include "kern_index.h"
#include "kern_simd.h"

enum {
    INDEX_CHUNK = 3,      /* adjacent bytes of signs, 24 channels, whose sums of integers fit a byte */
    INDEX_TABLE = 64,     /* bytes of tables for 6 channels at most (kern_index_query_bytes counts those) */
    INDEX_CHUNK_TABLES = 4,
};
/* The sum of a chunk's integers is at most this and half of each of 24 more by rounding. */
#define INDEX_MOST 242.0f
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

KERN_INLINE size_t index_chunks(size_t dim)
{
    return (dim / 8 + INDEX_CHUNK - 1) / INDEX_CHUNK;
}

/* A prepared query: of each head the rotated floats; what one step of its integers is, their sum, both as floats; tables, 64-byte aligned. */
typedef struct index_query {
    float *rotated, *step, *total;
    uint8_t *tables;
    size_t table_bytes; /* of a head */
} index_query;

static inline size_t index_table_bytes(size_t dim)
{
    return index_chunks(dim) * INDEX_CHUNK_TABLES * INDEX_TABLE;
}

static inline size_t index_query_floats(size_t n_q, size_t dim)
{
    return n_q * dim + 2 * KERN_MAX_G;
}

static inline index_query index_query_at(const void *prepared, size_t n_q, size_t dim)
{
    float *at = (float *)(uintptr_t)prepared, *step = at + n_q * dim;
    return (index_query){.rotated = at, .step = step, .total = step + KERN_MAX_G, .tables = (uint8_t *)(at + index_query_floats(n_q, dim)),
                         .table_bytes = index_table_bytes(dim)};
}

/* ---- rotation --------------------------------------------------------------------------------------- */

typedef float index_lanes[KERN_LANES];

/* One Hadamard transform of n channels, a power of two, in every lane. */
static inline void index_hadamard(index_lanes *x, size_t n)
{
    const float norm = 1.0f / sqrtf((float)n);
    for (size_t h = 1; h < n; h *= 2) {
        for (size_t i = 0; i < n; i += 2 * h) {
            for (size_t j = i; j < i + h; j++) {
                float *restrict a = x[j], *restrict b = x[j + h];
                for (int l = 0; l < KERN_LANES; l++) {
                    float u = a[l], v = b[l];
                    a[l] = u + v, b[l] = u - v;
                }
            }
        }
    }
    for (size_t i = 0; i < n; i++)
        for (int l = 0; l < KERN_LANES; l++) x[i][l] *= norm;
}

static inline void index_rotate(index_lanes *x, size_t dim)
{
    size_t at = 0, largest = 1;
    while (2 * largest <= dim) largest *= 2;
    for (size_t n = largest; n; n /= 2)
        if (dim & n) index_hadamard(x + at, n), at += n;
    if (largest == dim) return;
    for (size_t n = largest; n; n /= 2)
        if (dim & n) at -= n, index_hadamard(x + at, n);
}

/* n <= 16 rows into lanes; the others are zero. */
static inline void index_load(index_lanes *x, const float *rows, size_t stride, size_t n, size_t dim)
{
    if (n < KERN_LANES) memset(x, 0, dim * sizeof *x);
    for (size_t l = 0; l < n; l++)
        for (size_t d = 0; d < dim; d++) x[d][l] = rows[l * stride + d];
}

/* ---- codes ------------------------------------------------------------------------------------------ */

/* A half; what is too large or not a number is the largest one. */
static inline kern_f16 index_half(float v)
{
    if (!(v <= INDEX_HALF_MOST)) v = INDEX_HALF_MOST;
    return kern_f32_to_f16(v < -INDEX_HALF_MOST ? -INDEX_HALF_MOST : v);
}

/* The rotated mean as halves, and what those are. */
static inline void index_mean(const float *k, size_t stride, size_t n_rows, size_t dim, kern_f16 *halves, float *mean)
{
    index_lanes x[KERN_INDEX_DIM];
    float sum[KERN_INDEX_DIM] = {0};
    for (size_t i = 0; i < n_rows; i++)
        for (size_t d = 0; d < dim; d++) sum[d] += k[i * stride + d];
    for (size_t d = 0; d < dim; d++) sum[d] /= (float)n_rows;
    index_load(x, sum, dim, 1, dim);
    index_rotate(x, dim);
    for (size_t d = 0; d < dim; d++) {
        halves[d] = index_half(x[d][0]);
        mean[d] = kern_f16_to_f32(halves[d]);
    }
}

/* What each lane's scale comes from, in ascending order of channels; limit: the mean square. */
static inline void index_factors(index_lanes *x, const float *mean, size_t dim, unsigned planes, float *limit, float *scale)
{
    float square[KERN_LANES] = {0}, sum[KERN_LANES] = {0}, outer[KERN_LANES] = {0};
    for (size_t d = 0; d < dim; d++) {
        for (int l = 0; l < KERN_LANES; l++) {
            x[d][l] -= mean[d];
            square[l] += x[d][l] * x[d][l];
        }
    }
    for (int l = 0; l < KERN_LANES; l++) limit[l] = square[l] / (float)dim;
    for (size_t d = 0; d < dim; d++) {
        for (int l = 0; l < KERN_LANES; l++) {
            float r = fabsf(x[d][l]), level = planes == 2 && r * r > limit[l] ? 3.0f : 1.0f;
            sum[l] += r * level;
            outer[l] += level;
        }
    }
    /* Squares of levels: 1 and 9, so 1 more than 4 (level - 1). */
    for (int l = 0; l < KERN_LANES; l++) scale[l] = sum[l] / (4.0f * outer[l] - 3.0f * (float)dim);
}

/* Bytes 8 j .. 8 j + 7 of all lanes: signs s and u. */
static inline void index_bits(index_lanes *x, const float *limit, uint32_t *s, uint32_t *u)
{
    for (int l = 0; l < KERN_LANES; l++) s[l] = u[l] = 0;
    for (int b = 0; b < 8; b++) {
        for (int l = 0; l < KERN_LANES; l++) {
            float r = x[b][l];
            uint32_t sign = r >= 0, far = r * r > limit[l];
            s[l] |= sign << b;
            u[l] |= (sign ^ far ^ 1u) << b;
        }
    }
}

static inline void index_make_code(const float *k, size_t stride, size_t n_rows, size_t dim, unsigned planes, void *code)
{
    const index_layout at = index_layout_of(n_rows, dim, planes);
    index_lanes x[KERN_INDEX_DIM];
    float mean[KERN_INDEX_DIM], limit[KERN_LANES], scale[KERN_LANES];
    uint8_t *out = code;
    kern_f16 *scales = (kern_f16 *)(void *)(out + at.scales);
    memset(code, 0, at.bytes);
    index_mean(k, stride, n_rows, dim, (kern_f16 *)(void *)(out + at.mean), mean);
    for (size_t i = 0; i < n_rows; i += KERN_LANES) {
        size_t n = kern_min_size(KERN_LANES, n_rows - i);
        uint8_t *signs = out + i / KERN_INDEX_GROUP * at.group_bytes;
        index_load(x, k + i * stride, stride, n, dim);
        index_rotate(x, dim);
        index_factors(x, mean, dim, planes, limit, scale);
        for (size_t l = 0; l < n; l++) scales[i + l] = index_half(scale[l]);
        for (size_t j = 0; j < at.row_bytes; j++) {
            uint32_t s[KERN_LANES], u[KERN_LANES];
            index_bits(x + 8 * j, limit, s, u);
            for (size_t l = 0; l < n; l++) signs[j * KERN_INDEX_GROUP + index_entry(i % KERN_INDEX_GROUP + l)] = (uint8_t)s[l];
            if (planes == 2)
                for (size_t l = 0; l < n; l++) out[at.outer + (i + l) * at.row_bytes + j] = (uint8_t)u[l];
        }
    }
}

/* ---- queries ---------------------------------------------------------------------------------------- */

typedef int16_t index_whole[KERN_LANES];

/* Rounds rotated queries, one in each lane: whole = round(q / step), step such that the integers of a chunk add up to a byte; total of all of them. */
static inline void index_round(index_lanes *q, size_t dim, index_whole *whole, float *step, float *total)
{
    const float rounder = 12582912.0f;
    float most[KERN_LANES] = {0}, by[KERN_LANES];
    for (size_t d = 0; d < dim; d += 8 * INDEX_CHUNK) {
        float sum[KERN_LANES] = {0};
        for (size_t i = d; i < kern_min_size(dim, d + 8 * INDEX_CHUNK); i++)
            for (int l = 0; l < KERN_LANES; l++) sum[l] += fabsf(q[i][l]);
        for (int l = 0; l < KERN_LANES; l++) most[l] = sum[l] > most[l] ? sum[l] : most[l];
    }
    for (int l = 0; l < KERN_LANES; l++) {
        step[l] = most[l] > 1e-30f ? most[l] / INDEX_MOST : 0; /* less has no finite reciprocal, and no influence */
        by[l] = step[l] > 0 ? 1.0f / step[l] : 0;
        total[l] = 0;
    }
    for (size_t d = 0; d < dim; d++) {
        for (int l = 0; l < KERN_LANES; l++) {
            float n = q[d][l] * by[l] + rounder - rounder;
            total[l] += fabsf(n);
            whole[d][l] = (int16_t)n;
        }
    }
}

/* Makes one head's tables from lane `lane` of the integers. */
typedef void index_tables_fn(index_whole *whole, size_t dim, size_t lane, uint8_t *tables);

KERN_INLINE void index_prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared, index_tables_fn *make_tables)
{
    const index_query p = index_query_at(prepared, n_q, dim);
    index_lanes x[KERN_INDEX_DIM];
    index_whole whole[KERN_INDEX_DIM];
    for (size_t first = 0; first < n_q; first += KERN_LANES) {
        size_t n = kern_min_size(KERN_LANES, n_q - first);
        index_load(x, q + first * q_stride, q_stride, n, dim);
        index_rotate(x, dim);
        index_round(x, dim, whole, p.step + first, p.total + first);
        for (size_t l = 0; l < n; l++) {
            for (size_t d = 0; d < dim; d++) p.rotated[(first + l) * dim + d] = x[d][l];
            make_tables(whole, dim, l, p.tables + (first + l) * p.table_bytes);
        }
    }
}

/* ---- scans ------------------------------------------------------------------------------------------ */

enum { INDEX_PENDING = 192 }; /* kept positions at most that wait for their second plane */

/* Parts of scratch.  z: a group's estimates without the mean's part, of each head.  Of kept positions that wait: z (INDEX_PENDING for each head), scale, bytes of u. */
typedef struct index_scratch {
    float *z, *waiting_z, *waiting_scale;
    const uint8_t **waiting_u;
    uint8_t *turned; /* bytes of u of 64 kept positions, laid out as a group's signs */
} index_scratch;

static inline index_scratch index_scratch_at(void *scratch, size_t n_q)
{
    index_scratch s = {.z = scratch};
    s.waiting_z = s.z + n_q * KERN_INDEX_GROUP;
    s.waiting_scale = s.waiting_z + n_q * INDEX_PENDING;
    s.waiting_u = (const uint8_t **)(void *)(s.waiting_scale + INDEX_PENDING);
    s.turned = (uint8_t *)(s.waiting_u + INDEX_PENDING);
    return s;
}

static inline size_t index_scratch_bytes(size_t n_q, size_t dim)
{
    size_t floats = n_q * (KERN_INDEX_GROUP + INDEX_PENDING) + INDEX_PENDING;
    return floats * sizeof(float) + INDEX_PENDING * sizeof(uint8_t *) + index_chunks(dim) * INDEX_CHUNK * KERN_INDEX_GROUP;
}

/* The groups of a scan, one after the other. */
typedef struct index_walk {
    const kern_index_scan *a;
    size_t groups;       /* of a page */
    size_t page, group;  /* the next one, group counted in its page */
    const uint8_t *code; /* of the current group's page */
    size_t at, from;     /* the current group's number in its page; its first position */
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
        size_t from = w->page * a->page_rows + w->group * KERN_INDEX_GROUP, at = w->group, page = w->page;
        if (from >= a->end) return false;
        if (++w->group == w->groups) w->group = 0, w->page++;
        size_t n = kern_min_size(KERN_INDEX_GROUP, a->page_rows - at * KERN_INDEX_GROUP);
        if (from + n <= a->first || (a->every > 1 && (page * w->groups + at) % a->every)) continue;
        w->code = a->pages[page];
        w->at = at, w->from = from;
        w->low = from < a->first ? a->first - from : 0;
        w->high = kern_min_size(n, a->end - from);
        return true;
    }
}

#endif
