/* kern_avx2_index.c - the index of keys for AVX2 (kern_index_code.h has the numbers).
 *
 * A group's 64 positions are the bytes of two vectors, its halves: half h has positions 16 h .. 16 h + 15 in the even bytes, and those 32 further in the odd ones.  One look-up adds four
 * channels for 32 positions; sums are kept in bytes for a chunk, and in 16 bits beyond, where the even bytes' are the sum of everything less 256 times that of the odd ones. */
#include "kern_avx2_list.h"

typedef struct index_lanes {
    __m256 low, high;
} index_lanes;
#include "kern_index_make.h"

enum {
    INDEX_HEADS = 4,    /* heads whose sums are in registers at once; as many as lie together (index_place) */
    INDEX_AHEAD = 640,  /* so many positions ahead are asked for into L2 */
    INDEX_FEW = 12,     /* kept positions of a group up to which they are taken one after the other */
    INDEX_LATE = 48,    /* places for such positions whose estimates are not made yet: INDEX_FULL - 64 at most, so that those refined have theirs */
};

/* ---- lanes ------------------------------------------------------------------------------------------ */

KERN_INLINE index_lanes lanes_load(const float *p) { return (index_lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + AVX2_LANES)}; }
KERN_INLINE index_lanes lanes_halves(const kern_f16 *p)
{
    const __m128i *at = (const __m128i *)(const void *)p;
    return (index_lanes){_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}

KERN_INLINE void lanes_store(float *p, index_lanes x) { _mm256_storeu_ps(p, x.low), _mm256_storeu_ps(p + AVX2_LANES, x.high); }
KERN_INLINE index_lanes lanes_fill(float v) { return (index_lanes){_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
KERN_INLINE index_lanes lanes_add(index_lanes a, index_lanes b) { return (index_lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
KERN_INLINE index_lanes lanes_sub(index_lanes a, index_lanes b) { return (index_lanes){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
KERN_INLINE index_lanes lanes_mul(index_lanes a, index_lanes b) { return (index_lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
KERN_INLINE float lanes_fold(index_lanes x) { return avx2_fold(x.low, x.high); }

KERN_INLINE index_lanes lanes_abs(index_lanes x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (index_lanes){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

KERN_INLINE __m256 butterfly(__m256 x, int h)
{
    if (h == 1) {
        __m256 other = _mm256_permute_ps(x, 0xb1);
        return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), 0xaa);
    }
    if (h == 2) {
        __m256 other = _mm256_permute_ps(x, 0x4e);
        return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), 0xcc);
    }
    __m256 other = _mm256_permute2f128_ps(x, x, 1);
    return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), 0xf0);
}

KERN_INLINE index_lanes lanes_butterfly(index_lanes x, int h)
{
    if (h == 8) return (index_lanes){_mm256_add_ps(x.low, x.high), _mm256_sub_ps(x.low, x.high)};
    return (index_lanes){butterfly(x.low, h), butterfly(x.high, h)};
}

KERN_INLINE unsigned lanes_bits(__m256 low, __m256 high)
{
    return (unsigned)_mm256_movemask_ps(low) | (unsigned)_mm256_movemask_ps(high) << AVX2_LANES;
}

KERN_INLINE unsigned lanes_signs(index_lanes r)
{
    const __m256 zero = _mm256_setzero_ps();
    return lanes_bits(_mm256_cmp_ps(r.low, zero, _CMP_GE_OQ), _mm256_cmp_ps(r.high, zero, _CMP_GE_OQ));
}

KERN_INLINE index_lanes lanes_beyond(index_lanes r, float limit, unsigned *where)
{
    const __m256 least = _mm256_set1_ps(limit), two = _mm256_set1_ps(2);
    __m256 low = _mm256_cmp_ps(_mm256_mul_ps(r.low, r.low), least, _CMP_GT_OQ), high = _mm256_cmp_ps(_mm256_mul_ps(r.high, r.high), least, _CMP_GT_OQ);
    *where = lanes_bits(low, high);
    return (index_lanes){_mm256_and_ps(low, two), _mm256_and_ps(high, two)};
}

static void make_tables(const int16_t *whole, size_t dim, uint8_t *tables)
{
    const __m128i number = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (size_t d = 0; d < dim; d += 4) {
        const int16_t *n = whole + d;
        int start = 0;
        for (size_t b = 0; b < 4; b++) start += n[b] < 0 ? -n[b] : 0;
        __m128i v = _mm_set1_epi8((char)start);
        KERN_UNROLL for (int b = 0; b < 4; b++) {
            __m128i bit = _mm_set1_epi8((char)(1 << b));
            v = _mm_add_epi8(v, _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(number, bit), bit), _mm_set1_epi8((char)n[b])));
        }
        _mm_store_si128((__m128i *)(void *)(tables + d / 24 * INDEX_CHUNK_BYTES + d % 24 / 4 * 16), v);
    }
}

static void prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared)
{
    index_prepare(q, q_stride, n_q, dim, prepared, make_tables);
}

/* ---- sums ------------------------------------------------------------------------------------------- */

/* Of each head and half.  While chunks are added, even has what all bytes add up to as numbers of 16 bits. */
typedef struct index_sums {
    __m256i even[INDEX_HEADS][2], odd[INDEX_HEADS][2];
} index_sums;

KERN_INLINE __m256i load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

/* One chunk of n_bytes <= 3 bytes a position.  Heads share what is made of the bytes, halves what is read of tables; asks for the chunk of a later group, a
 * line at a time: of many at once some are dropped. */
KERN_INLINE void add_chunk(const uint8_t *signs, const uint8_t *later, const uint8_t *tables, size_t table_bytes, const int n_q, const int n_bytes, index_sums *sums)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sum[INDEX_HEADS][2];
    KERN_UNROLL for (int i = 0; i < n_bytes; i++) {
        __m256i low[2], high[2];
        _mm_prefetch(later + i * KERN_INDEX_GROUP, _MM_HINT_T1);
        KERN_UNROLL for (int h = 0; h < 2; h++) {
            __m256i bytes = load(signs + i * KERN_INDEX_GROUP + 32 * h);
            AVX2_KEPT(bytes);
            low[h] = _mm256_and_si256(bytes, nibble), high[h] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
        }
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            const __m128i *at = (const __m128i *)(const void *)(tables + (size_t)g * table_bytes + i * 32);
            __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(at)), next = _mm256_broadcastsi128_si256(_mm_load_si128(at + 1));
            KERN_UNROLL for (int h = 0; h < 2; h++) {
                __m256i some = _mm256_shuffle_epi8(table, low[h]);
                sum[g][h] = i ? _mm256_add_epi8(sum[g][h], some) : some;
                AVX2_KEPT(sum[g][h]);
            }
            KERN_UNROLL for (int h = 0; h < 2; h++) {
                sum[g][h] = _mm256_add_epi8(sum[g][h], _mm256_shuffle_epi8(next, high[h]));
                AVX2_KEPT(sum[g][h]);
            }
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int h = 0; h < 2; h++) {
            sums->even[g][h] = _mm256_add_epi16(sums->even[g][h], sum[g][h]);
            AVX2_KEPT(sums->even[g][h]);
            sums->odd[g][h] = _mm256_add_epi16(sums->odd[g][h], _mm256_srli_epi16(sum[g][h], 8));
            AVX2_KEPT(sums->odd[g][h]);
        }
}

/* n of heads first .. first + n_q - 1 over the 64 positions whose signs these are. */
KERN_INLINE void add_signs(const index_state *s, const uint8_t *signs, const uint8_t *later, size_t first, const int n_q, index_sums *sums)
{
    const size_t row_bytes = s->at.row_bytes, table_bytes = s->q.table_bytes;
    const uint8_t *tables = s->q.tables + first * table_bytes;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        sums->even[g][0] = sums->even[g][1] = _mm256_set1_epi32((int)s->start_all[first + (size_t)g]);
        sums->odd[g][0] = sums->odd[g][1] = _mm256_set1_epi32((int)s->start_odd[first + (size_t)g]);
    }
    size_t j = 0;
    for (; j + INDEX_CHUNK <= row_bytes; j += INDEX_CHUNK, tables += INDEX_CHUNK_BYTES)
        add_chunk(signs + j * KERN_INDEX_GROUP, later + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, INDEX_CHUNK, sums);
    if (row_bytes - j == 2) add_chunk(signs + j * KERN_INDEX_GROUP, later + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 2, sums);
    if (row_bytes - j == 1) add_chunk(signs + j * KERN_INDEX_GROUP, later + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 1, sums);
    KERN_UNROLL for (int g = 0; g < n_q; g++)
        KERN_UNROLL for (int h = 0; h < 2; h++) sums->even[g][h] = _mm256_sub_epi16(sums->even[g][h], _mm256_slli_epi16(sums->odd[g][h], 8));
}

/* Calls fn(..., first, n) for all heads, as many at once as there are registers for. */
#define FOR_HEADS(n_q, fn, ...)                                                                     \
    do {                                                                                            \
        size_t first_ = 0, n_ = (n_q);                                                              \
        for (; first_ + INDEX_HEADS <= n_; first_ += INDEX_HEADS) fn(__VA_ARGS__, first_, INDEX_HEADS); \
        if (n_ - first_ == 3) fn(__VA_ARGS__, first_, 3);                                           \
        if (n_ - first_ == 2) fn(__VA_ARGS__, first_, 2);                                           \
        if (n_ - first_ == 1) fn(__VA_ARGS__, first_, 1);                                           \
    } while (0)

/* Eight of 16 numbers as floats. */
KERN_INLINE __m256 eight(__m256i n, int high)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(high ? _mm256_extracti128_si256(n, 1) : _mm256_castsi256_si128(n)));
}

/* ---- outer planes ----------------------------------------------------------------------------------- */

KERN_INLINE __m128i row_bytes(const uint8_t *row, const size_t n)
{
    uint8_t some[16] = {0};
    if (n == 16) return _mm_loadu_si128((const __m128i *)(const void *)row);
    if (n == 8) return _mm_loadl_epi64((const __m128i *)(const void *)row);
    memcpy(some, row, n);
    return _mm_loadu_si128((const __m128i *)(const void *)some);
}

/* n_bytes <= 16 of rows 0-63 turned into the layout of a group: lane l of what is loaded for half h has rows 16 h + 8 l .. 16 h + 8 l + 7 and 32 more, and each lane is turned by itself. */
KERN_INLINE void turn_some(const uint8_t *const *rows, size_t at, const size_t n_bytes, uint8_t *out)
{
    for (size_t h = 0; h < 2; h++) {
        __m256i v[16], w[16];
        KERN_UNROLL for (size_t k = 0; k < 16; k++) {
            const uint8_t *const *row = rows + 16 * h + 32 * (k % 2) + k / 2;
            v[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(row_bytes(row[0] + at, n_bytes)), row_bytes(row[8] + at, n_bytes), 1);
        }
        KERN_UNROLL for (int round = 0; round < 2; round++) {
            KERN_UNROLL for (int k = 0; k < 8; k++) {
                w[2 * k] = _mm256_unpacklo_epi8(v[k], v[k + 8]);
                w[2 * k + 1] = _mm256_unpackhi_epi8(v[k], v[k + 8]);
            }
            KERN_UNROLL for (int k = 0; k < 8; k++) {
                v[2 * k] = _mm256_unpacklo_epi8(w[k], w[k + 8]);
                v[2 * k + 1] = _mm256_unpackhi_epi8(w[k], w[k + 8]);
            }
        }
        KERN_UNROLL for (size_t k = 0; k < 16; k++)
            if (k < n_bytes) _mm256_store_si256((__m256i *)(void *)(out + k * KERN_INDEX_GROUP + 32 * h), v[k]);
    }
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
KERN_INLINE void refine_heads(index_state *s, unsigned plane, size_t first, const int n_q)
{
    index_sums sums;
    const uint8_t *signs = s->s.turned + (plane - 1) * s->at.group_bytes;
    const float share = 1 / (float)(1 << plane);
    add_signs(s, signs, signs, first, n_q, &sums);
    for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const __m256 slope = _mm256_set1_ps(s->slope[head] * share), base = _mm256_set1_ps(s->base[head] * share);
        float *estimates = s->a->estimates + head * s->a->stride + s->n_kept - s->n_waiting;
        KERN_UNROLL for (size_t m = 0; m < 8; m++) {
            const size_t at = AVX2_LANES * m;
            __m256i n = m < 4 ? sums.even[g][m / 2] : sums.odd[g][m / 2 % 2];
            __m256 scale = _mm256_loadu_ps(s->s.waiting_scale + s->first_waiting + at), u = _mm256_fmadd_ps(eight(n, m % 2), slope, base);
            _mm256_storeu_ps(estimates + at, _mm256_fmadd_ps(scale, u, _mm256_loadu_ps(estimates + at)));
        }
    }
}

static void refine(index_state *s)
{
    const uint8_t **rows = s->s.waiting_outer + s->first_waiting;
    for (size_t i = s->n_waiting; i < KERN_INDEX_GROUP; i++) rows[i] = rows[0];
    turn_rows(rows, s->at.outer_bytes, s->s.turned);
    for (unsigned p = 1; p < s->a->planes; p++) FOR_HEADS(s->a->n_q, refine_heads, s, p);
    index_wait_end(s);
}

/* ---- pages ------------------------------------------------------------------------------------------ */

/* The largest exponent of a page's scales, which are read in the order they lie in: out of order they come from memory later. */
static int page_exponent(const index_state *s, const uint8_t *code)
{
    const uint8_t *scales = code + s->at.scales;
    __m256i most = load(scales);
    for (size_t i = 32; i < s->at.groups * KERN_INDEX_GROUP * sizeof(kern_f16); i += 32) most = _mm256_max_epu16(most, load(scales + i));
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    return (0xffff - (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)))) & 0xffff)) >> 10;
}

/* Of n_q <= 4 heads the dot products with a page's mean, the upper lanes added to the lower ones. */
KERN_INLINE void page_products(const kern_f16 *mean, const float *q, size_t dim, const int n_q, __m256 *products)
{
    __m256 low[4], high[4];
    KERN_UNROLL for (int i = 0; i < n_q; i++) low[i] = high[i] = _mm256_setzero_ps();
    for (size_t d = 0; d < dim; d += KERN_LANES) {
        const __m128i *m = (const __m128i *)(const void *)(mean + d);
        __m256 x = _mm256_cvtph_ps(_mm_load_si128(m)), y = _mm256_cvtph_ps(_mm_load_si128(m + 1));
        KERN_UNROLL for (int i = 0; i < n_q; i++) {
            low[i] = _mm256_fmadd_ps(_mm256_loadu_ps(q + (size_t)i * dim + d), x, low[i]);
            high[i] = _mm256_fmadd_ps(_mm256_loadu_ps(q + (size_t)i * dim + d + AVX2_LANES), y, high[i]);
        }
    }
    KERN_UNROLL for (int i = 0; i < 4; i++) products[i] = i < n_q ? _mm256_add_ps(low[i], high[i]) : _mm256_setzero_ps();
}

/* Offsets and thresholds of two pages and n_q <= 4 heads. */
KERN_INLINE void page_tile(index_state *s, const uint8_t *const *codes, size_t page, __m256 power, size_t head, const int n_q)
{
    __m256 products[8];
    for (int p = 0; p < 2; p++) page_products((const kern_f16 *)(const void *)(codes[p] + s->at.mean), s->q.rotated + head * s->a->dim, s->a->dim, n_q, products + 4 * p);
    __m256 bar = _mm256_broadcast_ps((const __m128 *)(const void *)(s->bar + head)), inverse = _mm256_broadcast_ps((const __m128 *)(const void *)(s->inverse + head));
    __m256 offset = avx2_fold8(products), t = _mm256_mul_ps(_mm256_mul_ps(_mm256_sub_ps(bar, offset), inverse), power);
    __m256i n = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(t, _mm256_set1_ps(32767)), _mm256_set1_ps(-32768)));
    _mm256_storeu_ps(s->offset + index_place(page, head), offset);
    _mm256_storeu_si256((__m256i *)(void *)(s->threshold + index_place(page, head)), _mm256_blend_epi16(n, _mm256_slli_epi32(n, 16), 0xaa));
}

static void begin_pages(index_state *s, const index_walk *w)
{
    for (size_t page = 0; page < w->n_pages; page++) s->exponent[page] = page_exponent(s, w->pages[page]);
    if (w->n_pages % 2) s->exponent[w->n_pages] = s->exponent[w->n_pages - 1];
    for (size_t page = 0; page < w->n_pages; page += 2) {
        const uint8_t *const codes[2] = {w->pages[page], w->pages[kern_min_size(page + 1, w->n_pages - 1)]};
        const __m256 power = _mm256_setr_m128(_mm_set1_ps(index_power(s->exponent[page])), _mm_set1_ps(index_power(s->exponent[page + 1])));
        FOR_HEADS(s->a->n_q, page_tile, s, codes, page, power);
    }
}

/* ---- the scan --------------------------------------------------------------------------------------- */

/* Scales as integers of 15 bits in units of the page's largest exponent: a fraction of 16 bits times the power of two that is left, 2^15 at most.  The table has the bytes of powers from
 * place 8 on, zeros before: places below 0 read as zeros too.  first, of each byte, is what its place is counted from: the exponent that is 15 less than the largest for the upper byte, and
 * 23 less for the lower one. */
KERN_INLINE __m256i whole_scales(const kern_f16 *scales, __m256i first)
{
    const __m256i powers = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, (char)128));
    __m256i b = load(scales), fraction = _mm256_or_si256(_mm256_slli_epi16(b, 5), _mm256_set1_epi16(INT16_MIN));
    __m256i places = _mm256_sub_epi8(_mm256_mullo_epi16(_mm256_srli_epi16(b, 10), _mm256_set1_epi16(0x0101)), first);
    return _mm256_mulhi_epu16(fraction, _mm256_shuffle_epi8(powers, places));
}

/* Sums of a group, of heads first .. first + n_q - 1. */
KERN_INLINE void sum_heads(const index_state *s, const index_step *step, int16_t *to, size_t first, const int n_q)
{
    index_sums sums;
    add_signs(s, step->code + step->at * s->at.group_bytes, step->later_signs, first, n_q, &sums);
    to += first * KERN_INDEX_GROUP;
    KERN_UNROLL for (int g = 0; g < n_q; g++, to += KERN_INDEX_GROUP)
        KERN_UNROLL for (int m = 0; m < 4; m++) _mm256_store_si256((__m256i *)(void *)(to + 16 * m), m < 2 ? sums.even[g][m] : sums.odd[g][m - 2]);
}

/* Sums of a group, of all heads; asks for a later one. */
static void sum_group(const index_state *s, const index_step *step, int16_t *sums)
{
    index_ask_rest(s, step);
    FOR_HEADS(s->a->n_q, sum_heads, s, step, sums);
}

/* One bit for each of 32 lanes. */
KERN_INLINE uint32_t lane_bits(__m256i a, __m256i b)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8));
}

/* How the numbers of kept positions come to the front: eight shuffles, and where what each leaves is put. */
typedef struct index_packing {
    __m128i pairs[8];
    size_t to[8];
} index_packing;

/* Also writes the kept positions of mask. */
KERN_INLINE index_packing packing_of(uint64_t mask, size_t from, uint32_t *ids)
{
    index_packing p;
    size_t n = 0;
    KERN_UNROLL for (size_t i = 0; i < 8; i++) {
        const unsigned some = (unsigned)(mask >> 8 * i) & 255;
        const __m128i list = avx2_list(some);
        p.pairs[i] = avx2_list_pairs(list), p.to[i] = n;
        _mm256_storeu_si256((__m256i *)(void *)(ids + n), _mm256_add_epi32(_mm256_set1_epi32((int)(from + 8 * i)), _mm256_cvtepu8_epi32(list)));
        n += (size_t)__builtin_popcount(some);
    }
    return p;
}

/* Packs 64 numbers.  Whole vectors are written, never beyond what has been read: to may be from. */
KERN_INLINE void pack(const index_packing *p, const void *from, void *to)
{
    const uint16_t *in = from;
    uint16_t *out = to;
    KERN_UNROLL for (size_t i = 0; i < 8; i++)
        _mm_storeu_si128((__m128i *)(void *)(out + p->to[i]), _mm_shuffle_epi8(_mm_load_si128((const __m128i *)(const void *)(in + 8 * i)), p->pairs[i]));
}

/* What the estimates of the last kept positions are yet to be made from, sums of each head and scales: so far they are only the mean's part. */
typedef struct index_late {
    size_t n;
    int16_t sums[KERN_MAX_G][KERN_INDEX_GROUP]; /* INDEX_LATE of a row count */
    kern_f16 scales[INDEX_LATE];
} index_late;

/* Scales of n positions as floats, also for those that wait. */
KERN_INLINE void take_scales(const index_state *s, const kern_f16 *halves, size_t n, float *scale, float *waiting)
{
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(halves + i)));
        _mm256_storeu_ps(scale + i, x);
        if (s->refine) _mm256_storeu_ps(waiting + i, x);
    }
}

/* What signs make of eight sums of a head, added to offset. */
KERN_INLINE __m256 signs_part(const int16_t *sums, __m256 scale, __m256 slope, __m256 base, __m256 offset)
{
    __m256 z = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)sums)));
    return _mm256_fmadd_ps(scale, _mm256_fmadd_ps(z, slope, base), offset);
}

/* Makes the estimates of what is late, as far as signs go. */
static void end_late(index_state *s, index_late *late)
{
    const size_t n = late->n;
    float scale[INDEX_LATE], *estimates = s->a->estimates + s->n_kept - n;
    take_scales(s, late->scales, n, scale, s->s.waiting_scale + s->first_waiting + s->n_waiting - (s->refine ? n : 0));
    for (size_t g = 0; g < s->a->n_q; g++, estimates += s->a->stride) {
        const __m256 slope = _mm256_set1_ps(s->slope[g]), base = _mm256_set1_ps(s->base[g]);
        for (size_t i = 0; i < n; i += AVX2_LANES)
            _mm256_storeu_ps(estimates + i, signs_part(late->sums[g] + i, _mm256_loadu_ps(scale + i), slope, base, _mm256_loadu_ps(estimates + i)));
    }
    late->n = 0;
}

/* Takes the sums of the positions of mask, of heads first .. first + n_q - 1, one position after the other; with the first heads also all else. */
KERN_INLINE void keep_heads(index_state *s, index_late *late, const index_step *step, const kern_f16 *scales, const int16_t *sums, uint64_t mask, size_t first, const int n_q)
{
    int16_t *to = late->sums[first] + late->n;
    sums += first * KERN_INDEX_GROUP;
    if (first > 0) {
        for (; mask; mask &= mask - 1, to++) {
            const size_t at = (size_t)__builtin_ctzll(mask);
            KERN_UNROLL for (size_t g = 0; g < (size_t)n_q; g++) to[g * KERN_INDEX_GROUP] = sums[g * KERN_INDEX_GROUP + at];
        }
        return;
    }
    const size_t outer_bytes = s->refine ? s->at.outer_bytes : 0;
    const uint8_t *outer = s->refine ? step->outer + step->at * KERN_INDEX_GROUP * outer_bytes : step->code, **rows = s->s.waiting_outer + s->first_waiting + s->n_waiting;
    const uint32_t from = (uint32_t)step->from;
    uint32_t *ids = s->a->ids + s->n_kept;
    kern_f16 *halves = late->scales + late->n;
    for (size_t i = 0; mask; mask &= mask - 1, i++) {
        const size_t at = (size_t)__builtin_ctzll(mask);
        ids[i] = from + (uint32_t)at;
        halves[i] = scales[at];
        rows[i] = outer + at * outer_bytes;
        _mm_prefetch(outer + at * outer_bytes, _MM_HINT_T1);
        KERN_UNROLL for (size_t g = 0; g < (size_t)n_q; g++) to[g * KERN_INDEX_GROUP + i] = sums[g * KERN_INDEX_GROUP + at];
    }
}

/* Keeps the few positions of mask.  Estimates are made of some dozens at once: soon, vectors of what is written one by one would have to be waited for. */
static void keep_few(index_state *s, index_late *late, const index_step *step, const kern_f16 *scales, const int16_t *sums, uint64_t mask)
{
    const size_t n = (size_t)__builtin_popcountll(mask);
    float *estimates = s->a->estimates + s->n_kept;
    FOR_HEADS(s->a->n_q, keep_heads, s, late, step, scales, sums, mask);
    for (size_t g = 0; g < s->a->n_q; g++, estimates += s->a->stride) {
        const __m256 offset = _mm256_set1_ps(s->offset[index_place(step->page, g)]);
        KERN_UNROLL for (size_t i = 0; i < INDEX_FEW; i += AVX2_LANES) _mm256_storeu_ps(estimates + i, offset);
    }
    s->n_kept += n;
    if (s->refine) s->n_waiting += n;
    late->n += n;
    if (late->n + INDEX_FEW > INDEX_LATE) end_late(s, late);
}

/* Keeps the positions of mask and makes their estimates as far as signs go.  What is packed is read late: written in other pieces, it has to be waited for. */
static void keep_many(index_state *s, const index_step *step, const kern_f16 *scales, int16_t *sums, uint64_t mask)
{
    const size_t n = (size_t)__builtin_popcountll(mask), n_q = s->a->n_q;
    const index_packing p = packing_of(mask, step->from, s->a->ids + s->n_kept);
    float *estimates = s->a->estimates + s->n_kept, *waiting = s->s.waiting_scale + s->first_waiting + s->n_waiting, scale[KERN_INDEX_GROUP];
    kern_f16 halves[KERN_INDEX_GROUP];
    pack(&p, scales, halves);
    for (size_t g = 0; g < n_q; g++) pack(&p, sums + g * KERN_INDEX_GROUP, sums + g * KERN_INDEX_GROUP);
    if (s->refine) index_wait(s, step, mask);
    take_scales(s, halves, n, scale, waiting);
    for (size_t g = 0; g < n_q; g++, sums += KERN_INDEX_GROUP, estimates += s->a->stride) {
        const __m256 slope = _mm256_set1_ps(s->slope[g]), base = _mm256_set1_ps(s->base[g]), offset = _mm256_set1_ps(s->offset[index_place(step->page, g)]);
        for (size_t i = 0; i < n; i += AVX2_LANES) _mm256_storeu_ps(estimates + i, signs_part(sums + i, _mm256_loadu_ps(scale + i), slope, base, offset));
    }
    s->n_kept += n;
}

/* Finds what of a group is good enough for one of the heads, and keeps that.  bad, 16 positions a vector, has the lanes of those that no head finds good enough. */
static void judge_group(index_state *s, index_late *late, const index_step *step, int16_t *sums)
{
    const kern_f16 *scales = (const kern_f16 *)(const void *)(step->code + s->at.scales) + step->at * KERN_INDEX_GROUP;
    const uint32_t *thresholds = s->threshold + index_place(step->page, 0);
    const int most = s->exponent[step->page];
    const __m256i first = _mm256_set1_epi16((short)(((most - 15) & 255) << 8 | ((most - 23) & 255)));
    __m256i scale[4], bad[4];
    KERN_UNROLL for (int m = 0; m < 4; m++) {
        scale[m] = whole_scales(scales + 16 * m, first);
        bad[m] = _mm256_set1_epi8(-1);
    }
    const int16_t *of = sums;
    for (size_t g = 0; g < s->a->n_q; g++, of += KERN_INDEX_GROUP) {
        const __m256i threshold = _mm256_set1_epi32((int)thresholds[index_place(0, g)]);
        KERN_UNROLL for (int m = 0; m < 4; m++) bad[m] = _mm256_and_si256(bad[m], _mm256_cmpgt_epi16(threshold, _mm256_mulhrs_epi16(scale[m], load(of + 16 * m))));
    }
    uint64_t mask = ~(lane_bits(bad[0], bad[1]) | (uint64_t)lane_bits(bad[2], bad[3]) << 32) & step->mask;
    if (__builtin_popcountll(mask) > INDEX_FEW) {
        if (late->n) end_late(s, late);
        keep_many(s, step, scales, sums, mask);
    } else if (mask) keep_few(s, late, step, scales, sums, mask);
    while (s->n_waiting >= INDEX_FULL) refine(s);
}

/* A group is judged when the next one's sums have been begun: what takes long then, and what is not foreseen, overlaps with those. */
static size_t scan(const kern_index_scan *a)
{
    index_state s = index_state_begin(a);
    index_late late;
    int16_t *const sums[2] = {s.s.sums, s.s.sums + a->n_q * KERN_INDEX_GROUP};
    late.n = 0;
    for (index_walk w = index_walk_begin(a, INDEX_AHEAD); index_walk_next(&w);) {
        begin_pages(&s, &w);
        for (size_t i = 0; i <= w.n_steps; i++) {
            if (i < w.n_steps) sum_group(&s, &w.steps[i], sums[i % 2]);
            if (i > 0) judge_group(&s, &late, &w.steps[i - 1], sums[(i - 1) % 2]);
        }
    }
    if (late.n) end_late(&s, &late);
    while (s.n_waiting) refine(&s);
    return s.n_kept;
}

/* ---- votes ------------------------------------------------------------------------------------------ */

/* Lanes 0-7 and 8-15 of 16 floats, fill where there are none. */
KERN_INLINE void load_first(const float *p, size_t n, float fill, __m256 *x)
{
    KERN_UNROLL for (int v = 0; v < 2; v++) {
        __m256i some = avx2_first((int)n - AVX2_LANES * v);
        x[v] = _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p + AVX2_LANES * v, some), _mm256_castsi256_ps(some));
    }
}

KERN_INLINE float largest_of(const float *e, size_t n)
{
    __m256 top[2] = {_mm256_set1_ps(-INFINITY), _mm256_set1_ps(-INFINITY)};
    size_t i = 0;
    for (; i + KERN_LANES <= n; i += KERN_LANES)
        KERN_UNROLL for (int v = 0; v < 2; v++) top[v] = _mm256_max_ps(_mm256_loadu_ps(e + i + AVX2_LANES * v), top[v]);
    top[0] = _mm256_max_ps(top[0], top[1]);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(top[0]), _mm256_extractf128_ps(top[0], 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    float most = _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
    for (; i < n; i++) most = e[i] > most ? e[i] : most;
    return most;
}

static void lse(const float *estimates, size_t stride, size_t n, size_t n_q, float *out)
{
    for (size_t g = 0; g < n_q; g++) {
        const float *e = estimates + g * stride;
        const float top = largest_of(e, n);
        __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t i = 0; i < n; i += KERN_LANES) {
            __m256 x[2];
            if (i + KERN_LANES <= n) x[0] = _mm256_loadu_ps(e + i), x[1] = _mm256_loadu_ps(e + i + AVX2_LANES);
            else load_first(e + i, n - i, -INFINITY, x);
            KERN_UNROLL for (int v = 0; v < 2; v++) sum[v] = _mm256_add_ps(sum[v], avx2_exp(_mm256_sub_ps(x[v], _mm256_set1_ps(top))));
        }
        out[g] = n ? top + logf(avx2_fold(sum[0], sum[1])) : -INFINITY;
    }
}

/* e^d with what is enough for votes (kern_index_code.h). */
KERN_INLINE __m256 index_vote(__m256 d)
{
    __m256 x = _mm256_max_ps(_mm256_min_ps(d, _mm256_set1_ps(KERN_INDEX_VOTE)), _mm256_set1_ps(KERN_EXP_MIN));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(KERN_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(INDEX_LN2), x), p = _mm256_fmadd_ps(_mm256_set1_ps(KERN_EXP_C5), r, _mm256_set1_ps(KERN_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KERN_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}

/* Votes of n_v vectors of positions; of one alone, which lanes. */
KERN_INLINE void vote_some(const float *estimates, size_t stride, size_t n_q, const float *lse_of, const bool largest, const int n_v, __m256i some, float *out)
{
    __m256 vote[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t g = 0; g < n_q; g++, estimates += stride) {
        const __m256 of_head = _mm256_set1_ps(lse_of[g]);
        KERN_UNROLL for (int v = 0; v < n_v; v++) {
            __m256 e = n_v == 1 ? _mm256_maskload_ps(estimates, some) : _mm256_loadu_ps(estimates + AVX2_LANES * v), x = index_vote(_mm256_sub_ps(e, of_head));
            vote[v] = largest ? _mm256_max_ps(vote[v], x) : _mm256_add_ps(vote[v], x);
        }
    }
    KERN_UNROLL for (int v = 0; v < n_v; v++) {
        if (n_v == 1) _mm256_maskstore_ps(out, some, vote[v]);
        else _mm256_storeu_ps(out + AVX2_LANES * v, vote[v]);
    }
}

KERN_INLINE void vote_all(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse_of, const bool largest, float *out)
{
    const __m256i all = _mm256_set1_epi32(-1);
    size_t i = 0;
    for (; i + 2 * AVX2_LANES <= n; i += 2 * AVX2_LANES) vote_some(estimates + i, stride, n_q, lse_of, largest, 2, all, out + i);
    for (; i < n; i += AVX2_LANES) vote_some(estimates + i, stride, n_q, lse_of, largest, 1, avx2_first((int)(n - i)), out + i);
}

static void votes(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse_of, bool largest, float *out)
{
    if (largest) vote_all(estimates, stride, n, n_q, lse_of, true, out);
    else vote_all(estimates, stride, n, n_q, lse_of, false, out);
}

void kern_fill_avx2_index(kern_table *t)
{
    t->index_code = index_make_code;
    t->index_query = prepare;
    t->index_scan = scan;
    t->index_lse = lse;
    t->index_votes = votes;
    t->index_mean = index_make_mean;
    t->index_mix = index_mix;
}
