/* kern_avx512_index.h - the scan of the index for AVX-512.  The file that includes this one has defined how a chunk of signs is looked up: in tables of 16 bytes, or with VBMI in
 * tables of 64.
 *
 * The one thing to know: a group's 64 positions are the bytes of a vector.  A table has, for each pattern of signs, the sum of the query's integers that agree with it; sums of a
 * chunk fit bytes, those of chunks are widened to 16 bits: the even bytes' as the sum of everything minus 256 times that of the odd ones.  Kept positions
 * wait until there are many, and their second planes have arrived. */
#ifndef SPW_KERN_AVX512_INDEX_H
#define SPW_KERN_AVX512_INDEX_H

#include "kern_avx512.h"
#include "kern_index_code.h"

enum {
    INDEX_HEADS = 8,         /* heads whose sums are in registers at once */
    INDEX_FULL = 64 + 48,    /* so many waiting positions are enough: the first 64 have been asked for some time ago */
    INDEX_AHEAD = 6144,      /* bytes that are asked for ahead */
};

/* One chunk of n_bytes <= 3 bytes a position, 64 apart: spread: what a table is asked for.  look: the sum over one head's tables. */
KERN_INLINE void index_spread(const uint8_t *signs, int n_bytes, __m512i *v);
KERN_INLINE __m512i index_look(const __m512i *v, const uint8_t *tables, int n_bytes);

/* ---- sums ------------------------------------------------------------------------------------------- */

KERN_INLINE void add_chunk(const uint8_t *signs, const uint8_t *tables, size_t table_bytes, const int n_q, const int n_bytes, __m512i *all, __m512i *odd)
{
    __m512i v[2 * INDEX_CHUNK];
    index_spread(signs, n_bytes, v);
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        __m512i sum = index_look(v, tables + (size_t)g * table_bytes, n_bytes);
        all[g] = _mm512_add_epi16(all[g], sum);
        odd[g] = _mm512_add_epi16(odd[g], _mm512_srli_epi16(sum, 8));
    }
}

/* Sums of n_q heads over 64 positions: 16 bits, positions 0-31 in low and the others in high. */
KERN_INLINE void add_signs(const uint8_t *signs, size_t row_bytes, const uint8_t *tables, size_t table_bytes, const int n_q, __m512i *low, __m512i *high)
{
    KERN_UNROLL for (int g = 0; g < n_q; g++) low[g] = high[g] = _mm512_setzero_si512();
    size_t j = 0;
    for (; j + INDEX_CHUNK <= row_bytes; j += INDEX_CHUNK, tables += INDEX_CHUNK_TABLES * INDEX_TABLE)
        add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 3, low, high);
    if (row_bytes - j == 2) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 2, low, high);
    if (row_bytes - j == 1) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 1, low, high);
    KERN_UNROLL for (int g = 0; g < n_q; g++) low[g] = _mm512_sub_epi16(low[g], _mm512_slli_epi16(high[g], 8));
}

/* Sums of 16 positions, of the four quarters of a group, as floats. */
KERN_INLINE __m512 quarter(__m512i low, __m512i high, int m)
{
    __m512i half = m < 2 ? low : high;
    __m256i q = m % 2 ? _mm512_extracti64x4_epi64(half, 1) : _mm512_castsi512_si256(half);
    return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(q));
}

KERN_INLINE __m512 halves_at(const kern_f16 *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)p));
}

/* ---- the scan --------------------------------------------------------------------------------------- */

/* What a scan knows.  A score is offset + z, z = scale * (sum * slope + base). */
typedef struct index_state {
    const kern_index_scan *a;
    index_query q;
    index_scratch s;
    index_layout at;
    float slope[KERN_MAX_G], base[KERN_MAX_G];   /* of signs */
    float offset[KERN_MAX_G], over[KERN_MAX_G];  /* the mean's part of the current page; less the head's norm */
    size_t n_kept, n_waiting;
    bool refine;
} index_state;

/* The mean's part of all heads' scores. */
static void page_offsets(index_state *s, const kern_f16 *mean)
{
    const size_t dim = s->a->dim, n_q = s->a->n_q;
    for (size_t g = 0; g < n_q; g += 4) {
        __m512 acc[4];
        const float *q[4];
        KERN_UNROLL for (size_t i = 0; i < 4; i++) {
            q[i] = s->q.rotated + kern_min_size(g + i, n_q - 1) * dim;
            acc[i] = _mm512_setzero_ps();
        }
        for (size_t d = 0; d < dim; d += KERN_LANES) {
            __m512 m = halves_at(mean + d);
            KERN_UNROLL for (int i = 0; i < 4; i++) acc[i] = _mm512_fmadd_ps(_mm512_loadu_ps(q[i] + d), m, acc[i]);
        }
        for (size_t i = 0; i < 4 && g + i < n_q; i++) {
            s->offset[g + i] = avx512_fold(acc[i]);
            s->over[g + i] = s->offset[g + i] - (s->a->norm ? s->a->norm[g + i] : 0);
        }
    }
}

/* z of a group for heads first .. first + n_q - 1 into scratch; best of the comparable estimates. */
KERN_INLINE void scan_heads(index_state *s, const uint8_t *signs, const __m512 *scale, size_t first, const int n_q, __m512 *best)
{
    __m512i low[INDEX_HEADS], high[INDEX_HEADS];
    add_signs(signs, s->at.row_bytes, s->q.tables + first * s->q.table_bytes, s->q.table_bytes, n_q, low, high);
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        size_t head = first + (size_t)g;
        __m512 slope = _mm512_set1_ps(s->slope[head]), base = _mm512_set1_ps(s->base[head]), over = _mm512_set1_ps(s->over[head]);
        KERN_UNROLL for (int m = 0; m < 4; m++) {
            __m512 z = _mm512_mul_ps(scale[m], _mm512_fmadd_ps(quarter(low[g], high[g], m), slope, base));
            _mm512_store_ps(s->s.z + head * KERN_INDEX_GROUP + m * KERN_LANES, z);
            best[m] = _mm512_max_ps(best[m], _mm512_add_ps(z, over));
        }
    }
}

KERN_INLINE void scan_all_heads(index_state *s, const uint8_t *signs, const __m512 *scale, __m512 *best)
{
    size_t n_q = s->a->n_q, g = 0;
    for (; g + INDEX_HEADS <= n_q; g += INDEX_HEADS) scan_heads(s, signs, scale, g, INDEX_HEADS, best);
    switch (n_q - g) {
    case 1: scan_heads(s, signs, scale, g, 1, best); break;
    case 2: scan_heads(s, signs, scale, g, 2, best); break;
    case 3: scan_heads(s, signs, scale, g, 3, best); break;
    case 4: scan_heads(s, signs, scale, g, 4, best); break;
    case 5: scan_heads(s, signs, scale, g, 5, best); break;
    case 6: scan_heads(s, signs, scale, g, 6, best); break;
    case 7: scan_heads(s, signs, scale, g, 7, best); break;
    default: break;
    }
}

/* ---- second planes ---------------------------------------------------------------------------------- */

/* Bytes 0-15 of rows 0-63 turned into the layout of a group: lane l of what is loaded has rows 8 l .. 8 l + 7 and 32 more, and each lane is turned by itself. */
KERN_INLINE void turn_rows(const uint8_t *const *rows, size_t at, size_t n_bytes, uint8_t *out)
{
    __mmask16 some = avx512_first(kern_min_size(n_bytes, 16));
    __m512i v[16], w[16];
    KERN_UNROLL for (int k = 0; k < 16; k++) {
        const uint8_t *const *row = rows + 32 * (k % 2) + k / 2;
        v[k] = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(some, row[0] + at));
        v[k] = _mm512_inserti32x4(v[k], _mm_maskz_loadu_epi8(some, row[8] + at), 1);
        v[k] = _mm512_inserti32x4(v[k], _mm_maskz_loadu_epi8(some, row[16] + at), 2);
        v[k] = _mm512_inserti32x4(v[k], _mm_maskz_loadu_epi8(some, row[24] + at), 3);
    }
    KERN_UNROLL for (int k = 0; k < 8; k++) {
        w[2 * k] = _mm512_unpacklo_epi8(v[k], v[k + 8]);
        w[2 * k + 1] = _mm512_unpackhi_epi8(v[k], v[k + 8]);
    }
    KERN_UNROLL for (int k = 0; k < 8; k++) {
        v[2 * k] = _mm512_unpacklo_epi8(w[k], w[k + 8]);
        v[2 * k + 1] = _mm512_unpackhi_epi8(w[k], w[k + 8]);
    }
    KERN_UNROLL for (int k = 0; k < 8; k++) {
        w[2 * k] = _mm512_unpacklo_epi8(v[k], v[k + 8]);
        w[2 * k + 1] = _mm512_unpackhi_epi8(v[k], v[k + 8]);
    }
    KERN_UNROLL for (int k = 0; k < 8; k++) {
        v[2 * k] = _mm512_unpacklo_epi8(w[k], w[k + 8]);
        v[2 * k + 1] = _mm512_unpackhi_epi8(w[k], w[k + 8]);
    }
    KERN_UNROLL for (size_t k = 0; k < 16; k++)
        if (k < n_bytes) _mm512_store_si512(out + k * KERN_INDEX_GROUP, v[k]);
}

/* Adds what the second plane says to the estimates of the first n <= 64 waiting positions: scale * (2 S + U) is z * 2 / KERN_INDEX_SIGN and scale * U. */
KERN_INLINE void refine_heads(index_state *s, const __m512 *scale, size_t first, size_t n, const int n_q)
{
    __m512i low[INDEX_HEADS], high[INDEX_HEADS];
    const __m512 more = _mm512_set1_ps(2 / KERN_INDEX_SIGN - 1);
    float *estimates = s->a->estimates + s->n_kept - s->n_waiting;
    add_signs(s->s.turned, s->at.row_bytes, s->q.tables + first * s->q.table_bytes, s->q.table_bytes, n_q, low, high);
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        size_t head = first + (size_t)g;
        const __m512 slope = _mm512_set1_ps(2 * s->q.step[head]), base = _mm512_set1_ps(-s->q.step[head] * s->q.total[head]);
        KERN_UNROLL for (size_t m = 0; m < 4; m++) {
            float *at = estimates + head * s->a->stride + m * KERN_LANES;
            __mmask16 some = avx512_first(n > m * KERN_LANES ? kern_min_size(n - m * KERN_LANES, KERN_LANES) : 0);
            __m512 u = _mm512_mul_ps(scale[m], _mm512_fmadd_ps(quarter(low[g], high[g], (int)m), slope, base));
            u = _mm512_fmadd_ps(_mm512_load_ps(s->s.waiting_z + head * INDEX_PENDING + m * KERN_LANES), more, u);
            _mm512_mask_storeu_ps(at, some, _mm512_add_ps(_mm512_maskz_loadu_ps(some, at), u));
        }
    }
}

static void refine(index_state *s)
{
    const size_t n = kern_min_size(s->n_waiting, KERN_INDEX_GROUP), left = s->n_waiting - n, n_q = s->a->n_q;
    __m512 scale[4];
    for (size_t i = n; i < KERN_INDEX_GROUP; i++) s->s.waiting_u[i] = s->s.waiting_u[0];
    for (size_t j = 0; j < s->at.row_bytes; j += 16) turn_rows(s->s.waiting_u, j, s->at.row_bytes - j, s->s.turned + j * KERN_INDEX_GROUP);
    KERN_UNROLL for (int m = 0; m < 4; m++) scale[m] = _mm512_load_ps(s->s.waiting_scale + m * KERN_LANES);
    size_t g = 0;
    for (; g + 4 <= n_q; g += 4) refine_heads(s, scale, g, n, 4);
    for (; g < n_q; g++) refine_heads(s, scale, g, n, 1);
    memmove(s->s.waiting_u, s->s.waiting_u + n, left * sizeof *s->s.waiting_u);
    for (size_t i = 0; i < left; i += KERN_LANES) {
        _mm512_store_ps(s->s.waiting_scale + i, _mm512_loadu_ps(s->s.waiting_scale + n + i));
        for (g = 0; g < n_q; g++) {
            float *z = s->s.waiting_z + g * INDEX_PENDING + i;
            _mm512_store_ps(z, _mm512_loadu_ps(z + n));
        }
    }
    s->n_waiting = left;
}

/* ---- kept positions --------------------------------------------------------------------------------- */

/* Appends the positions of mask, of the group whose first position is from. */
static void keep(index_state *s, const index_walk *w, const __m512 *scale, uint64_t mask)
{
    const __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const size_t n_q = s->a->n_q;
    size_t at[4], n = 0;
    for (int m = 0; m < 4; m++) {
        __mmask16 some = (__mmask16)(mask >> 16 * m);
        __m512i id = _mm512_add_epi32(number, _mm512_set1_epi32((int)(w->from + (size_t)m * KERN_LANES)));
        at[m] = n;
        _mm512_storeu_si512(s->a->ids + s->n_kept + n, _mm512_maskz_compress_epi32(some, id));
        if (s->refine) _mm512_storeu_ps(s->s.waiting_scale + s->n_waiting + n, _mm512_maskz_compress_ps(some, scale[m]));
        n += (size_t)__builtin_popcount(some);
    }
    for (size_t g = 0; g < n_q; g++) {
        const __m512 offset = _mm512_set1_ps(s->offset[g]);
        const float *z = s->s.z + g * KERN_INDEX_GROUP;
        float *estimates = s->a->estimates + g * s->a->stride + s->n_kept, *waiting = s->s.waiting_z + g * INDEX_PENDING + s->n_waiting;
        KERN_UNROLL for (int m = 0; m < 4; m++) {
            __m512 some = _mm512_maskz_compress_ps((__mmask16)(mask >> 16 * m), _mm512_load_ps(z + m * KERN_LANES));
            _mm512_storeu_ps(estimates + at[m], _mm512_add_ps(some, offset));
            if (s->refine) _mm512_storeu_ps(waiting + at[m], some);
        }
    }
    if (s->refine) {
        const uint8_t *u = w->code + s->at.outer + w->at * KERN_INDEX_GROUP * s->at.row_bytes;
        const uint8_t **to = s->s.waiting_u + s->n_waiting;
        for (; mask; mask &= mask - 1) {
            const uint8_t *row = u + (size_t)__builtin_ctzll(mask) * s->at.row_bytes;
            _mm_prefetch(row, _MM_HINT_T0);
            *to++ = row;
        }
        s->n_waiting += n;
    }
    s->n_kept += n;
}

/* Asks for the same group of a later page. */
KERN_INLINE void ask_ahead(const index_state *s, const index_walk *w, size_t ahead, size_t last)
{
    size_t page = w->from / s->a->page_rows + ahead;
    if (page > last) return;
    const uint8_t *code = s->a->pages[page];
    for (size_t i = 0; i < s->at.group_bytes; i += 64) _mm_prefetch(code + w->at * s->at.group_bytes + i, _MM_HINT_T1);
    for (size_t i = 0; i < KERN_INDEX_GROUP * sizeof(kern_f16); i += 64) _mm_prefetch(code + s->at.scales + w->at * KERN_INDEX_GROUP * sizeof(kern_f16) + i, _MM_HINT_T1);
    if (w->at == 0)
        for (size_t i = s->at.mean; i < s->at.mean + s->a->dim * sizeof(kern_f16); i += 64) _mm_prefetch(code + i, _MM_HINT_T1);
}

static size_t scan(const kern_index_scan *a)
{
    index_state s = {.a = a, .q = index_query_at(a->query, a->n_q, a->dim), .s = index_scratch_at(a->scratch, a->n_q), .at = index_layout_of(a->page_rows, a->dim, a->planes),
                     .refine = a->refine && a->planes == 2};
    const float sign = a->planes == 2 ? KERN_INDEX_SIGN : 1;
    const size_t ahead = 1 + INDEX_AHEAD / (s.at.mean + a->dim * sizeof(kern_f16)), last = a->end ? (a->end - 1) / a->page_rows : 0;
    const __m512 threshold = _mm512_set1_ps(a->threshold);
    const uint8_t *code = NULL;
    for (size_t g = 0; g < a->n_q; g++) {
        s.slope[g] = 2 * sign * s.q.step[g];
        s.base[g] = -sign * s.q.step[g] * s.q.total[g];
    }
    index_walk w = index_walk_begin(a);
    while (index_walk_next(&w)) {
        const kern_f16 *scales = (const kern_f16 *)(const void *)(w.code + s.at.scales) + w.at * KERN_INDEX_GROUP;
        __m512 scale[4], best[4];
        if (a->every == 1) ask_ahead(&s, &w, ahead, last);
        if (w.code != code) page_offsets(&s, (const kern_f16 *)(const void *)(w.code + s.at.mean));
        code = w.code;
        KERN_UNROLL for (int m = 0; m < 4; m++) {
            scale[m] = halves_at(scales + m * KERN_LANES);
            best[m] = _mm512_set1_ps(-INFINITY);
        }
        scan_all_heads(&s, w.code + w.at * s.at.group_bytes, scale, best);
        uint64_t mask = 0;
        KERN_UNROLL for (int m = 0; m < 4; m++) mask |= (uint64_t)_mm512_cmp_ps_mask(best[m], threshold, _CMP_GE_OQ) << 16 * m;
        mask &= (w.high < 64 ? (UINT64_C(1) << w.high) - 1 : UINT64_MAX) & UINT64_MAX << w.low;
        if (!mask) continue;
        keep(&s, &w, scale, mask);
        while (s.n_waiting >= INDEX_FULL) refine(&s);
    }
    while (s.n_waiting) refine(&s);
    return s.n_kept;
}

#endif
