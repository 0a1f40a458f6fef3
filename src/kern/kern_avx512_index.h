/* kern_avx512_index.h - the index for AVX-512.  The file that includes this one has defined how a chunk of signs is looked up, in tables of 16 bytes or with VBMI of 64, and how
 * bits become numbers.
 *
 * The one thing to know: a group's 64 positions are the bytes of a vector.  A table has, for each pattern of signs, the sum of the query's integers that agree with it; sums of a
 * chunk fit bytes, those of chunks are widened to 16 bits: the even bytes' as the sum of everything less 256 times that of the odd ones.  Whether a position is kept is
 * decided by integers; floats are made of those that are.  Outer planes are added for 64 of them at a time, when they have arrived. */
#ifndef SPW_KERN_AVX512_INDEX_H
#define SPW_KERN_AVX512_INDEX_H

#include "kern_avx512.h"

typedef __m512 index_lanes;
#include "kern_index_make.h"

enum {
    INDEX_HEADS = 8,         /* heads whose sums are in registers at once */
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

KERN_INLINE void add_chunk(const uint8_t *signs, const uint8_t *later, const uint8_t *tables, size_t table_bytes, const int n_q, const int n_bytes, __m512i *all, __m512i *odd)
{
    __m512i v[2 * INDEX_CHUNK];
    index_spread(signs, n_bytes, v);
    KERN_UNROLL for (int i = 0; i < n_bytes; i++) {
        _mm_prefetch(later + i * KERN_INDEX_GROUP, _MM_HINT_T1);
        _mm_prefetch(signs + INDEX_NEAR + i * KERN_INDEX_GROUP, _MM_HINT_T0);
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        __m512i sum = index_look(v, tables + (size_t)g * table_bytes, n_bytes);
        all[g] = _mm512_add_epi16(all[g], sum);
        odd[g] = _mm512_add_epi16(odd[g], _mm512_srli_epi16(sum, 8));
    }
}

/* n of heads first .. first + n_q - 1 over 64 positions: 0-31 in low and the others in high.  Asks for the signs of later, a few lines at a time: of many at once some are dropped. */
KERN_INLINE void add_signs(const index_state *s, const uint8_t *signs, const uint8_t *later, size_t first, const int n_q, __m512i *low, __m512i *high)
{
    const size_t row_bytes = s->at.row_bytes, table_bytes = s->q.table_bytes;
    const uint8_t *tables = s->q.tables + first * table_bytes;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        low[g] = _mm512_set1_epi32((int)s->start_all[first + (size_t)g]);
        high[g] = _mm512_set1_epi32((int)s->start_odd[first + (size_t)g]);
    }
    size_t j = 0;
    for (; j + INDEX_CHUNK <= row_bytes; j += INDEX_CHUNK, tables += INDEX_CHUNK_BYTES) add_chunk(signs + j * KERN_INDEX_GROUP, later + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 3, low, high);
    if (row_bytes - j == 2) add_chunk(signs + j * KERN_INDEX_GROUP, later + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 2, low, high);
    if (row_bytes - j == 1) add_chunk(signs + j * KERN_INDEX_GROUP, later + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 1, low, high);
    KERN_UNROLL for (int g = 0; g < n_q; g++) low[g] = _mm512_sub_epi16(low[g], _mm512_slli_epi16(high[g], 8));
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
    add_signs(s, signs, signs, first, n_q, low, high);
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

/* Sums of a group into scratch; adds which positions are good enough to *mask. */
KERN_INLINE void scan_heads(index_state *s, const index_step *step, const uint8_t *later, __m512i scale_low, __m512i scale_high, uint64_t *mask, size_t first, const int n_q)
{
    __m512i low[INDEX_HEADS], high[INDEX_HEADS];
    add_signs(s, step->code + step->at * s->at.group_bytes, later + step->at * s->at.group_bytes, first, n_q, low, high);
    __mmask32 low_mask = 0, high_mask = 0;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const __m512i threshold = _mm512_set1_epi32((int)s->threshold[index_place(step->page, head)]);
        _mm512_store_si512(s->s.sums + head * KERN_INDEX_GROUP, low[g]);
        _mm512_store_si512(s->s.sums + head * KERN_INDEX_GROUP + 32, high[g]);
        low_mask |= _mm512_cmpge_epi16_mask(_mm512_mulhrs_epi16(low[g], scale_low), threshold);
        high_mask |= _mm512_cmpge_epi16_mask(_mm512_mulhrs_epi16(high[g], scale_high), threshold);
    }
    *mask |= low_mask | (uint64_t)high_mask << 32;
}

/* Sixteen of 64 numbers. */
KERN_INLINE __m256i pick(const void *numbers, __m512i which)
{
    const int16_t *n = numbers;
    return _mm512_castsi512_si256(_mm512_permutex2var_epi16(_mm512_load_si512(n), which, _mm512_load_si512(n + 32)));
}

/* Writes the positions of mask and their estimates as far as signs go. */
static void keep(index_state *s, const index_step *step, const kern_f16 *scales, uint64_t mask)
{
    const size_t n = (size_t)__builtin_popcountll(mask), n_q = s->a->n_q;
    uint8_t list[64];
    _mm512_storeu_si512(list, index_list(mask));
    for (size_t i = 0; i < n; i += KERN_LANES) {
        const __m128i sixteen = _mm_loadu_si128((const __m128i *)(const void *)(list + i));
        const __m512i which = _mm512_castsi256_si512(_mm256_cvtepu8_epi16(sixteen));
        const __m512 scale = _mm512_cvtph_ps(pick(scales, which));
        _mm512_storeu_si512(s->a->ids + s->n_kept + i, _mm512_add_epi32(_mm512_set1_epi32((int)step->from), _mm512_cvtepu8_epi32(sixteen)));
        if (s->refine) _mm512_storeu_ps(s->s.waiting_scale + s->first_waiting + s->n_waiting + i, scale);
        for (size_t g = 0; g < n_q; g++) {
            __m512 sums = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(pick(s->s.sums + g * KERN_INDEX_GROUP, which)));
            __m512 z = _mm512_fmadd_ps(sums, _mm512_set1_ps(s->slope[g]), _mm512_set1_ps(s->base[g]));
            _mm512_storeu_ps(s->a->estimates + g * s->a->stride + s->n_kept + i, _mm512_fmadd_ps(scale, z, _mm512_set1_ps(s->offset[index_place(step->page, g)])));
        }
    }
    if (s->refine) index_wait(s, step, mask);
    s->n_kept += n;
}

/* Scans a group, and asks for the same one of a later page. */
static void scan_step(index_state *s, const index_step *step, const uint8_t *later)
{
    const kern_f16 *scales = (const kern_f16 *)(const void *)(step->code + s->at.scales) + step->at * KERN_INDEX_GROUP;
    const int exponent = s->exponent[step->page];
    const size_t ahead = s->at.scales + step->at * KERN_INDEX_GROUP * sizeof(kern_f16);
    uint64_t mask = 0;
    for (size_t i = 0; i < KERN_INDEX_GROUP * sizeof(kern_f16); i += 64) _mm_prefetch(later + ahead + i, _MM_HINT_T1);
    for (size_t i = s->at.mean; step->at == 0 && i < s->at.mean + s->a->dim * sizeof(kern_f16); i += 64) _mm_prefetch(later + i, _MM_HINT_T1);
    FOR_HEADS(s->a->n_q, scan_heads, s, step, later, whole_scales(scales, exponent), whole_scales(scales + 32, exponent), &mask);
    mask &= step->mask;
    if (mask) keep(s, step, scales, mask);
    while (s->n_waiting >= INDEX_FULL) refine(s);
}

static size_t scan(const kern_index_scan *a)
{
    index_state s = index_state_begin(a);
    const size_t ahead = (INDEX_AHEAD + a->page_rows - 1) / a->page_rows, n_pages = (a->end + a->page_rows - 1) / a->page_rows;
    for (index_walk w = index_walk_begin(a); index_walk_next(&w);) {
        begin_pages(&s, &w);
        for (size_t i = 0; i < w.n_steps; i++) {
            size_t later = w.steps[i].from / a->page_rows + ahead;
            scan_step(&s, &w.steps[i], a->every == 1 && later < n_pages ? a->pages[later] : w.steps[i].code);
        }
    }
    while (s.n_waiting) refine(&s);
    return s.n_kept;
}

#endif
