/* kern_avx512_index.h - the index for AVX-512.  The file that includes this one has defined how a chunk of signs is looked up, in tables of 16 bytes or with VBMI of 64, and how
 * bits become numbers.
 *
 * The one thing to know: a group's 64 positions are the bytes of a vector.  A table has, for each pattern of signs, the sum of the query's integers that agree with it; sums of a
 * chunk fit bytes, those of chunks are widened to 16 bits: the even bytes' as the sum of everything less 256 times that of the odd ones.  Whether a position is kept is
 * decided by integers.  Of several groups those that are kept are packed first, and then floats made of them.  Outer planes are added for 64 of them at a time, when they have arrived. */
#ifndef SPW_KERN_AVX512_INDEX_H
#define SPW_KERN_AVX512_INDEX_H

#include "kern_avx512.h"

typedef __m512 index_lanes;
#include "kern_index_make.h"

enum {
    INDEX_HEADS = 8,         /* heads whose sums are in registers at once, */
    INDEX_PAIR = 2, INDEX_PAIR_HEADS = 4, /* or for so many heads those of two groups */
    INDEX_AHEAD = 640,       /* so many positions ahead are asked for into L2, */
    INDEX_NEAR = 1024,       /* and so many bytes ahead into L1 */
};

/* One chunk of n_bytes <= 3 bytes a position, 64 apart: spread: what a table is asked for.  look: the sum over one head's tables. */
KERN_INLINE void index_spread(const uint8_t *signs, int n_bytes, __m512i *v);
KERN_INLINE __m512i index_look(const __m512i *v, const uint8_t *tables, int n_bytes);
/* The numbers of the bits of mask, bytes, one after the other. */
KERN_INLINE __m512i index_list(uint64_t mask);

/* ---- lanes ------------------------------------------------------------------------------------------ */

KERN_INLINE index_lanes lanes_load(const float *p) { return _mm512_loadu_ps(p); }
KERN_INLINE index_lanes lanes_halves(const kern_f16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
KERN_INLINE void lanes_store(float *p, index_lanes x) { _mm512_storeu_ps(p, x); }
KERN_INLINE index_lanes lanes_fill(float v) { return _mm512_set1_ps(v); }
KERN_INLINE index_lanes lanes_add(index_lanes a, index_lanes b) { return _mm512_add_ps(a, b); }
KERN_INLINE index_lanes lanes_sub(index_lanes a, index_lanes b) { return _mm512_sub_ps(a, b); }
KERN_INLINE index_lanes lanes_mul(index_lanes a, index_lanes b) { return _mm512_mul_ps(a, b); }
KERN_INLINE index_lanes lanes_abs(index_lanes x) { return _mm512_abs_ps(x); }
KERN_INLINE float lanes_fold(index_lanes x) { return avx512_fold(x); }

KERN_INLINE index_lanes lanes_butterfly(index_lanes x, int h)
{
    const __mmask16 upper = h == 1 ? 0xaaaa : h == 2 ? 0xcccc : h == 4 ? 0xf0f0 : 0xff00;
    index_lanes other = h == 1   ? _mm512_permute_ps(x, 0xb1)
                        : h == 2 ? _mm512_permute_ps(x, 0x4e)
                        : h == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
                                 : _mm512_shuffle_f32x4(x, x, 0x4e);
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), upper, other, x);
}

KERN_INLINE unsigned lanes_signs(index_lanes r)
{
    return _mm512_cmp_ps_mask(r, _mm512_setzero_ps(), _CMP_GE_OQ);
}

KERN_INLINE index_lanes lanes_beyond(index_lanes r, float limit, unsigned *where)
{
    __mmask16 beyond = _mm512_cmp_ps_mask(_mm512_mul_ps(r, r), _mm512_set1_ps(limit), _CMP_GT_OQ);
    *where = beyond;
    return _mm512_maskz_mov_ps(beyond, _mm512_set1_ps(2));
}

/* ---- sums ------------------------------------------------------------------------------------------- */

/* Signs of one or two groups, and of those that are asked for. */
typedef struct sign_rows {
    const uint8_t *now[INDEX_PAIR], *later[INDEX_PAIR];
} sign_rows;

/* A chunk of n_bytes bytes, from byte `at` of each row on, of n_groups groups: a table that is loaded serves all of them.  all, odd: [n_groups][n_q]. */
KERN_INLINE void add_chunk(const sign_rows *r, size_t at, const uint8_t *tables, size_t table_bytes, const int n_groups, const int n_q, const int n_bytes, __m512i *all, __m512i *odd)
{
    __m512i v[INDEX_PAIR][2 * INDEX_CHUNK];
    KERN_UNROLL for (int k = 0; k < n_groups; k++) {
        index_spread(r->now[k] + at * KERN_INDEX_GROUP, n_bytes, v[k]);
        KERN_UNROLL for (int i = 0; i < n_bytes; i++) {
            _mm_prefetch(r->later[k] + (at + (size_t)i) * KERN_INDEX_GROUP, _MM_HINT_T1);
            _mm_prefetch(r->now[k] + INDEX_NEAR + (at + (size_t)i) * KERN_INDEX_GROUP, _MM_HINT_T0);
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        KERN_UNROLL for (int k = 0; k < n_groups; k++) {
            __m512i sum = index_look(v[k], tables + (size_t)g * table_bytes, n_bytes);
            all[k * n_q + g] = _mm512_add_epi16(all[k * n_q + g], sum);
            odd[k * n_q + g] = _mm512_add_epi16(odd[k * n_q + g], _mm512_srli_epi16(sum, 8));
        }
    }
}

/* n of heads first .. first + n_q - 1 over 64 positions of each group: 0-31 in low and the others in high.  Asks for the signs of later, a few lines at a time: of many at once some are
 * dropped. */
KERN_INLINE void add_signs(const index_state *s, const sign_rows *r, size_t first, const int n_groups, const int n_q, __m512i *low, __m512i *high)
{
    const size_t row_bytes = s->at.row_bytes, table_bytes = s->q.table_bytes;
    const uint8_t *tables = s->q.tables + first * table_bytes;
    KERN_UNROLL for (int i = 0; i < n_groups * n_q; i++) {
        low[i] = _mm512_set1_epi32((int)s->start_all[first + (size_t)(i % n_q)]);
        high[i] = _mm512_set1_epi32((int)s->start_odd[first + (size_t)(i % n_q)]);
    }
    size_t j = 0;
    for (; j + INDEX_CHUNK <= row_bytes; j += INDEX_CHUNK, tables += INDEX_CHUNK_BYTES) add_chunk(r, j, tables, table_bytes, n_groups, n_q, 3, low, high);
    if (row_bytes - j == 2) add_chunk(r, j, tables, table_bytes, n_groups, n_q, 2, low, high);
    if (row_bytes - j == 1) add_chunk(r, j, tables, table_bytes, n_groups, n_q, 1, low, high);
    KERN_UNROLL for (int i = 0; i < n_groups * n_q; i++) low[i] = _mm512_sub_epi16(low[i], _mm512_slli_epi16(high[i], 8));
}

/* Calls fn(..., first, n) for all heads, as many at once as there are registers for. */
#define FOR_HEADS(n_q, fn, ...)                                                                     \
    do {                                                                                            \
        size_t first_ = 0, n_ = (n_q);                                                              \
        for (; first_ + INDEX_HEADS <= n_; first_ += INDEX_HEADS) fn(__VA_ARGS__, first_, INDEX_HEADS); \
        switch (n_ - first_) {                                                                      \
        case 1: fn(__VA_ARGS__, first_, 1); break;                                                  \
        case 2: fn(__VA_ARGS__, first_, 2); break;                                                  \
        case 3: fn(__VA_ARGS__, first_, 3); break;                                                  \
        case 4: fn(__VA_ARGS__, first_, 4); break;                                                  \
        case 5: fn(__VA_ARGS__, first_, 5); break;                                                  \
        case 6: fn(__VA_ARGS__, first_, 6); break;                                                  \
        case 7: fn(__VA_ARGS__, first_, 7); break;                                                  \
        default: break;                                                                             \
        }                                                                                           \
    } while (0)

/* ---- finishing -------------------------------------------------------------------------------------- */

KERN_INLINE __m128i row_bytes(const uint8_t *row, const size_t n)
{
    if (n == 16) return _mm_loadu_si128((const __m128i *)(const void *)row);
    if (n == 8) return _mm_loadl_epi64((const __m128i *)(const void *)row);
    return _mm_maskz_loadu_epi8(avx512_first(n), row);
}

/* n_bytes <= 16 of rows 0-63 turned into the layout of a group: lane l of what is loaded has rows 8 l .. 8 l + 7 and 32 more, and each lane is turned by itself. */
KERN_INLINE void turn_some(const uint8_t *const *rows, size_t at, const size_t n_bytes, uint8_t *out)
{
    __m512i v[16], w[16];
    KERN_UNROLL for (int k = 0; k < 16; k++) {
        const uint8_t *const *row = rows + 32 * (k % 2) + k / 2;
        v[k] = _mm512_castsi128_si512(row_bytes(row[0] + at, n_bytes));
        v[k] = _mm512_inserti32x4(v[k], row_bytes(row[8] + at, n_bytes), 1);
        v[k] = _mm512_inserti32x4(v[k], row_bytes(row[16] + at, n_bytes), 2);
        v[k] = _mm512_inserti32x4(v[k], row_bytes(row[24] + at, n_bytes), 3);
    }
    KERN_UNROLL for (int round = 0; round < 2; round++) {
        KERN_UNROLL for (int k = 0; k < 8; k++) {
            w[2 * k] = _mm512_unpacklo_epi8(v[k], v[k + 8]);
            w[2 * k + 1] = _mm512_unpackhi_epi8(v[k], v[k + 8]);
        }
        KERN_UNROLL for (int k = 0; k < 8; k++) {
            v[2 * k] = _mm512_unpacklo_epi8(w[k], w[k + 8]);
            v[2 * k + 1] = _mm512_unpackhi_epi8(w[k], w[k + 8]);
        }
    }
    KERN_UNROLL for (size_t k = 0; k < 16; k++)
        if (k < n_bytes) _mm512_store_si512(out + k * KERN_INDEX_GROUP, v[k]);
}

static void turn_rows(const uint8_t *const *rows, size_t row_length, uint8_t *out)
{
    for (size_t at = 0; at < row_length; at += 16, out += 16 * KERN_INDEX_GROUP) {
        size_t n = kern_min_size(row_length - at, 16);
        if (n == 16) turn_some(rows, at, 16, out);
        else if (n == 8) turn_some(rows, at, 8, out);
        else turn_some(rows, at, n, out);
    }
}

/* Adds what plane number plane says to the estimates of the first 64 waiting positions, for heads first .. first + n_q - 1.  When fewer wait, what stands behind them is of no meaning, and
 * there is room. */
KERN_INLINE void refine_heads(index_state *s, const __m512 *scale, unsigned plane, size_t first, const int n_q)
{
    __m512i low[INDEX_HEADS], high[INDEX_HEADS];
    const uint8_t *signs = s->s.turned + (plane - 1) * s->at.group_bytes;
    const float share = 1 / (float)(1 << plane);
    add_signs(s, &(sign_rows){{signs}, {signs}}, first, 1, n_q, low, high);
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const __m512 slope = _mm512_set1_ps(s->slope[head] * share), base = _mm512_set1_ps(s->base[head] * share);
        float *estimates = s->a->estimates + head * s->a->stride + s->n_kept - s->n_waiting;
        KERN_UNROLL for (int m = 0; m < 4; m++) {
            __m512i half = m < 2 ? low[g] : high[g];
            __m256i n = m % 2 ? _mm512_extracti64x4_epi64(half, 1) : _mm512_castsi512_si256(half);
            __m512 u = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(n)), slope, base);
            _mm512_storeu_ps(estimates + m * KERN_LANES, _mm512_fmadd_ps(scale[m], u, _mm512_loadu_ps(estimates + m * KERN_LANES)));
        }
    }
}

static void refine(index_state *s)
{
    const uint8_t **rows = s->s.waiting_outer + s->first_waiting;
    __m512 scale[4];
    for (size_t i = s->n_waiting; i < KERN_INDEX_GROUP; i++) rows[i] = rows[0];
    turn_rows(rows, s->at.outer_bytes, s->s.turned);
    KERN_UNROLL for (int m = 0; m < 4; m++) scale[m] = _mm512_loadu_ps(s->s.waiting_scale + s->first_waiting + m * KERN_LANES);
    for (unsigned p = 1; p < s->a->planes; p++) FOR_HEADS(s->a->n_q, refine_heads, s, scale, p);
    index_wait_end(s);
}

/* ---- pages ------------------------------------------------------------------------------------------ */

/* The largest exponent of a page's scales. */
KERN_INLINE int page_exponent(const index_state *s, const uint8_t *code)
{
    const kern_f16 *scales = (const kern_f16 *)(const void *)(code + s->at.scales);
    __m512i most = _mm512_load_si512(scales);
    for (size_t i = 32; i < s->at.groups * KERN_INDEX_GROUP; i += 32) most = _mm512_max_epu16(most, _mm512_load_si512(scales + i));
    __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
    __m128i quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return (0xffff - (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)))) & 0xffff)) >> 10;
}

/* Offsets and thresholds of four pages and four heads. */
KERN_INLINE void page_tile(index_state *s, const uint8_t *const *codes, size_t page, size_t head, __m512 power)
{
    const size_t dim = s->a->dim;
    const kern_f16 *mean[4];
    const float *q[4];
    __m512 acc[16];
    KERN_UNROLL for (size_t i = 0; i < 4; i++) {
        mean[i] = (const kern_f16 *)(const void *)(codes[i] + s->at.mean);
        q[i] = s->q.rotated + kern_min_size(head + i, s->a->n_q - 1) * dim;
    }
    KERN_UNROLL for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_ps();
    for (size_t d = 0; d < dim; d += KERN_LANES) {
        __m512 x[4];
        KERN_UNROLL for (int i = 0; i < 4; i++) x[i] = _mm512_loadu_ps(q[i] + d);
        KERN_UNROLL for (int p = 0; p < 4; p++) {
            __m512 m = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)(mean[p] + d)));
            KERN_UNROLL for (int i = 0; i < 4; i++) acc[4 * p + i] = _mm512_fmadd_ps(x[i], m, acc[4 * p + i]);
        }
    }
    __m512 offset = avx512_fold16(acc), bar = _mm512_broadcast_f32x4(_mm_loadu_ps(s->bar + head)), inverse = _mm512_broadcast_f32x4(_mm_loadu_ps(s->inverse + head));
    __m512 t = _mm512_mul_ps(_mm512_mul_ps(_mm512_sub_ps(bar, offset), inverse), power);
    __m512i n = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(t, _mm512_set1_ps(32767)), _mm512_set1_ps(-32768)));
    _mm512_storeu_ps(s->offset + index_place(page, head), offset);
    _mm512_storeu_si512(s->threshold + index_place(page, head), _mm512_mask_blend_epi16(0xaaaaaaaa, n, _mm512_slli_epi32(n, 16)));
}

static void begin_pages(index_state *s, const index_walk *w)
{
    const __m512i by_four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (size_t page = 0; page < w->n_pages; page += 4) {
        const uint8_t *codes[4];
        float power[4];
        for (size_t i = 0; i < 4; i++) {
            codes[i] = w->pages[kern_min_size(page + i, w->n_pages - 1)];
            s->exponent[page + i] = page_exponent(s, codes[i]);
            power[i] = index_power(s->exponent[page + i]);
        }
        __m512 powers = _mm512_permutexvar_ps(by_four, _mm512_castps128_ps512(_mm_setr_ps(power[0], power[1], power[2], power[3])));
        for (size_t head = 0; head < s->a->n_q; head += 4) page_tile(s, codes, page, head, powers);
    }
}

/* ---- the scan --------------------------------------------------------------------------------------- */

/* Scales as integers of 15 bits in units of the page's largest exponent. */
KERN_INLINE __m512i whole_scales(const kern_f16 *scales, int exponent)
{
    __m512i b = _mm512_load_si512(scales);
    __m512i fraction = _mm512_ternarylogic_epi64(b, _mm512_set1_epi16(0x3ff), _mm512_set1_epi16(0x400), 0xea);
    return _mm512_srlv_epi16(_mm512_slli_epi16(fraction, 4), _mm512_sub_epi16(_mm512_set1_epi16((short)exponent), _mm512_srli_epi16(b, 10)));
}

KERN_INLINE void store_half(void *to, __m512i v)
{
    _mm256_storeu_si256(to, _mm512_castsi512_si256(v));
}

/* Kept positions of a group, whose number among those of the walk is given, and their sums: [n_q] each. */
KERN_INLINE void pack_kept(index_state *s, const kern_f16 *scales, size_t number, uint64_t mask, size_t n_q, const __m512i *low, const __m512i *high)
{
    const __m512i list = index_list(mask), first = _mm512_set1_epi16((short)(number * KERN_INDEX_GROUP)), scale_low = _mm512_load_si512(scales), scale_high = _mm512_load_si512(scales + 32);
    const size_t n = (size_t)__builtin_popcountll(mask);
    kern_f16 *to_scales = s->s.kept_scales + s->n_packed;
    uint16_t *to_numbers = s->s.kept_numbers + s->n_packed;
    int16_t *to_sums = s->s.kept_sums + s->n_packed;
    if (n <= 16) {
        const __m512i which = _mm512_castsi256_si512(_mm256_cvtepu8_epi16(_mm512_castsi512_si128(list)));
        store_half(to_scales, _mm512_permutex2var_epi16(scale_low, which, scale_high));
        store_half(to_numbers, _mm512_add_epi16(which, first));
        KERN_UNROLL for (size_t g = 0; g < n_q; g++) store_half(to_sums + g * INDEX_ROOM, _mm512_permutex2var_epi16(low[g], which, high[g]));
    } else {
        uint8_t numbers[64];
        _mm512_storeu_si512(numbers, list);
        for (size_t i = 0; i < n; i += 32) {
            const __m512i which = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(numbers + i)));
            _mm512_storeu_si512(to_scales + i, _mm512_permutex2var_epi16(scale_low, which, scale_high));
            _mm512_storeu_si512(to_numbers + i, _mm512_add_epi16(which, first));
            KERN_UNROLL for (size_t g = 0; g < n_q; g++) _mm512_storeu_si512(to_sums + g * INDEX_ROOM + i, _mm512_permutex2var_epi16(low[g], which, high[g]));
        }
    }
    s->n_packed += n;
}

KERN_INLINE const kern_f16 *scales_of(const index_state *s, const index_step *step)
{
    return (const kern_f16 *)(const void *)(step->code + s->at.scales) + step->at * KERN_INDEX_GROUP;
}

/* Which positions of a group are good enough for one of these heads. */
KERN_INLINE uint64_t judge(const index_state *s, const index_step *step, const __m512i *low, const __m512i *high, size_t first, const int n_q)
{
    const kern_f16 *scales = scales_of(s, step);
    const __m512i scale_low = whole_scales(scales, s->exponent[step->page]), scale_high = whole_scales(scales + 32, s->exponent[step->page]);
    __mmask32 low_mask = 0, high_mask = 0;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        const __m512i threshold = _mm512_set1_epi32((int)s->threshold[index_place(step->page, first + (size_t)g)]);
        low_mask |= _mm512_cmpge_epi16_mask(_mm512_mulhrs_epi16(low[g], scale_low), threshold);
        high_mask |= _mm512_cmpge_epi16_mask(_mm512_mulhrs_epi16(high[g], scale_high), threshold);
    }
    return low_mask | (uint64_t)high_mask << 32;
}

/* Of n adjacent steps the signs, and those to ask for. */
KERN_INLINE sign_rows signs_of(const index_state *s, const index_step *steps, const int n)
{
    sign_rows r = {{NULL}, {NULL}};
    KERN_UNROLL for (int k = 0; k < n; k++) {
        r.now[k] = steps[k].code + steps[k].at * s->at.group_bytes;
        r.later[k] = steps[k].later_signs;
    }
    return r;
}

/* Of n_groups adjacent steps from number `at` on: what is kept, and its sums for all heads. */
KERN_INLINE void scan_all(index_state *s, const index_walk *w, size_t at, const int n_groups, const int n_q)
{
    __m512i low[INDEX_HEADS], high[INDEX_HEADS];
    const sign_rows r = signs_of(s, w->steps + at, n_groups);
    add_signs(s, &r, 0, n_groups, n_q, low, high);
    KERN_UNROLL for (int k = 0; k < n_groups; k++) {
        const index_step *step = &w->steps[at + (size_t)k];
        uint64_t mask = judge(s, step, low + k * n_q, high + k * n_q, 0, n_q) & step->mask;
        if (mask) pack_kept(s, scales_of(s, step), at + (size_t)k, mask, (size_t)n_q, low + k * n_q, high + k * n_q);
    }
}

/* For more heads than there are registers for: sums of some of them into scratch. */
KERN_INLINE void scan_some(index_state *s, const index_step *step, uint64_t *mask, size_t first, const int n_q)
{
    __m512i low[INDEX_HEADS], high[INDEX_HEADS];
    const sign_rows r = signs_of(s, step, 1);
    add_signs(s, &r, first, 1, n_q, low, high);
    *mask |= judge(s, step, low, high, first, n_q);
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        int16_t *to = s->s.sums + (first + (size_t)g) * KERN_INDEX_GROUP;
        _mm512_store_si512(to, low[g]);
        _mm512_store_si512(to + 32, high[g]);
    }
}

/* The same for one step and more heads. */
static void scan_many(index_state *s, const index_walk *w, size_t at)
{
    const index_step *step = &w->steps[at];
    __m512i low[KERN_MAX_G], high[KERN_MAX_G];
    uint64_t mask = 0;
    FOR_HEADS(s->a->n_q, scan_some, s, step, &mask);
    mask &= step->mask;
    for (size_t g = 0; g < s->a->n_q; g++) {
        low[g] = _mm512_load_si512(s->s.sums + g * KERN_INDEX_GROUP);
        high[g] = _mm512_load_si512(s->s.sums + g * KERN_INDEX_GROUP + 32);
    }
    pack_kept(s, scales_of(s, step), at, mask, s->a->n_q, low, high);
}

static void scan_pair(index_state *s, const index_walk *w, size_t at)
{
    for (size_t k = 0; k < INDEX_PAIR; k++) index_ask_rest(s, &w->steps[at + k]);
    switch (s->a->n_q) {
    case 1: scan_all(s, w, at, INDEX_PAIR, 1); break;
    case 2: scan_all(s, w, at, INDEX_PAIR, 2); break;
    case 3: scan_all(s, w, at, INDEX_PAIR, 3); break;
    default: scan_all(s, w, at, INDEX_PAIR, INDEX_PAIR_HEADS); break;
    }
}

static void scan_single(index_state *s, const index_walk *w, size_t at)
{
    index_ask_rest(s, &w->steps[at]);
    switch (s->a->n_q) {
    case 1: scan_all(s, w, at, 1, 1); break;
    case 2: scan_all(s, w, at, 1, 2); break;
    case 3: scan_all(s, w, at, 1, 3); break;
    case 4: scan_all(s, w, at, 1, 4); break;
    case 5: scan_all(s, w, at, 1, 5); break;
    case 6: scan_all(s, w, at, 1, 6); break;
    case 7: scan_all(s, w, at, 1, 7); break;
    case 8: scan_all(s, w, at, 1, 8); break;
    default: scan_many(s, w, at); break;
    }
}

/* Of up to 64 packed positions from number `at` on: ids and estimates as far as signs go; the positions wait for their outer planes, which are asked for, into L2. */
static void keep(index_state *s, const index_walk *w, size_t at, size_t n)
{
    int32_t from[KERN_LANES] = {0}, page[KERN_LANES] = {0}; /* of each step */
    const uint8_t *outer[INDEX_STEPS];
    for (size_t i = 0; i < w->n_steps; i++) {
        from[i] = (int32_t)w->steps[i].from;
        page[i] = (int32_t)(w->steps[i].page / 4 * KERN_LANES + w->steps[i].page % 4 * 4);
        outer[i] = w->steps[i].outer + w->steps[i].at * KERN_INDEX_GROUP * s->at.outer_bytes;
    }
    const __m512i from_of = _mm512_loadu_si512(from), page_of = _mm512_loadu_si512(page);
    for (size_t i = 0; i < n; i += KERN_LANES) {
        const __m512i number = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(s->s.kept_numbers + at + i)));
        const __m512i step = _mm512_srli_epi32(number, 6), place = _mm512_permutexvar_epi32(step, page_of);
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(s->s.kept_scales + at + i)));
        _mm512_storeu_si512(s->a->ids + s->n_kept + i, _mm512_add_epi32(_mm512_permutexvar_epi32(step, from_of), _mm512_and_si512(number, _mm512_set1_epi32(63))));
        if (s->refine) _mm512_storeu_ps(s->s.waiting_scale + s->first_waiting + s->n_waiting + i, scale);
        for (size_t g = 0; g < s->a->n_q; g++) {
            const float *offsets = s->offset + index_place(0, g / 4 * 4);
            const __m512i which = _mm512_add_epi32(place, _mm512_set1_epi32((int)(g % 4)));
            const __m512 offset = _mm512_permutex2var_ps(_mm512_loadu_ps(offsets), which, _mm512_loadu_ps(offsets + index_place(4, 0)));
            const __m512i sums = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(s->s.kept_sums + g * INDEX_ROOM + at + i)));
            const __m512 z = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(s->slope[g]), _mm512_set1_ps(s->base[g]));
            _mm512_storeu_ps(s->a->estimates + g * s->a->stride + s->n_kept + i, _mm512_fmadd_ps(scale, z, offset));
        }
    }
    s->n_kept += n;
    if (!s->refine) return;
    const uint8_t **to = s->s.waiting_outer + s->first_waiting + s->n_waiting;
    for (size_t i = 0; i < n; i++) {
        const uint16_t number = (uint16_t)s->s.kept_numbers[at + i];
        to[i] = outer[number / KERN_INDEX_GROUP] + number % KERN_INDEX_GROUP * s->at.outer_bytes;
        _mm_prefetch(to[i], _MM_HINT_T1);
    }
    s->n_waiting += n;
    while (s->n_waiting >= INDEX_FULL) refine(s);
}

static size_t scan(const kern_index_scan *a)
{
    index_state s = index_state_begin(a);
    for (index_walk w = index_walk_begin(a, INDEX_AHEAD); index_walk_next(&w);) {
        begin_pages(&s, &w);
        size_t i = 0;
        for (; a->n_q <= INDEX_PAIR_HEADS && i + INDEX_PAIR <= w.n_steps; i += INDEX_PAIR) scan_pair(&s, &w, i);
        for (; i < w.n_steps; i++) scan_single(&s, &w, i);
        for (size_t at = 0; at < s.n_packed; at += KERN_INDEX_GROUP) keep(&s, &w, at, kern_min_size(KERN_INDEX_GROUP, s.n_packed - at));
        s.n_packed = 0;
    }
    while (s.n_waiting) refine(&s);
    return s.n_kept;
}

#endif
