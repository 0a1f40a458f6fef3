/* kern_avx2_index.c - the index of keys for AVX2 (kern_index_code.h has the numbers).
 *
 * A group's 64 positions are the bytes of two vectors, its halves: half h has positions 16 h .. 16 h + 15 in the even bytes, and those 32 further in the odd ones.  One look-up adds four
 * channels for 32 positions; sums are kept in bytes for a chunk, and in 16 bits beyond, where the even bytes' are the sum of everything less 256 times that of the odd ones. */
#include "kern_avx2.h"

typedef struct index_lanes {
    __m256 low, high;
} index_lanes;
#include "kern_index_make.h"

enum {
    INDEX_HEADS = 4,    /* heads whose sums are in registers at once */
    INDEX_AHEAD = 640,  /* so many positions ahead are asked for into L2 */
};

/* ---- lanes ------------------------------------------------------------------------------------------ */

KERN_INLINE index_lanes lanes_load(const float *p) { return (index_lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + AVX2_LANES)}; }
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

KERN_INLINE __m256 levels(__m256 r, float limit, unsigned *signs, unsigned *outer)
{
    __m256 far = _mm256_cmp_ps(_mm256_mul_ps(r, r), _mm256_set1_ps(limit), _CMP_GT_OQ);
    *signs = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(r, _mm256_setzero_ps(), _CMP_GE_OQ));
    *outer = (unsigned)_mm256_movemask_ps(far);
    return _mm256_blendv_ps(_mm256_set1_ps(1), _mm256_set1_ps(3), far);
}

KERN_INLINE index_lanes lanes_levels(index_lanes r, float limit, unsigned *signs, unsigned *outer)
{
    unsigned high_signs, high_outer;
    index_lanes level = {levels(r.low, limit, signs, outer), levels(r.high, limit, &high_signs, &high_outer)};
    *signs |= high_signs << AVX2_LANES;
    *outer |= high_outer << AVX2_LANES;
    return level;
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

KERN_INLINE __m256i load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

KERN_INLINE void add_chunk(const uint8_t *signs, const uint8_t *tables, size_t table_bytes, const int n_q, const int n_bytes, __m256i *all, __m256i *odd)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sum[INDEX_HEADS];
    KERN_UNROLL for (int g = 0; g < n_q; g++) sum[g] = _mm256_setzero_si256();
    KERN_UNROLL for (int i = 0; i < n_bytes; i++) {
        __m256i bytes = load(signs + i * KERN_INDEX_GROUP), low = _mm256_and_si256(bytes, nibble), high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            const __m128i *table = (const __m128i *)(const void *)(tables + (size_t)g * table_bytes + i * 32);
            sum[g] = _mm256_add_epi8(sum[g], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(table)), low));
            sum[g] = _mm256_add_epi8(sum[g], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(table + 1)), high));
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        all[g] = _mm256_add_epi16(all[g], sum[g]);
        odd[g] = _mm256_add_epi16(odd[g], _mm256_srli_epi16(sum[g], 8));
    }
}

/* n of heads first .. first + n_q - 1 over one half of the positions whose signs these are: those of its even and of its odd bytes. */
KERN_INLINE void add_signs(const index_state *s, const uint8_t *signs, size_t first, const int n_q, __m256i *even, __m256i *odd)
{
    const size_t row_bytes = s->at.row_bytes, table_bytes = s->q.table_bytes;
    const uint8_t *tables = s->q.tables + first * table_bytes;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        even[g] = _mm256_set1_epi32((int)s->start_all[first + (size_t)g]);
        odd[g] = _mm256_set1_epi32((int)s->start_odd[first + (size_t)g]);
    }
    size_t j = 0;
    for (; j + INDEX_CHUNK <= row_bytes; j += INDEX_CHUNK, tables += INDEX_CHUNK_BYTES) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 3, even, odd);
    if (row_bytes - j == 2) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 2, even, odd);
    if (row_bytes - j == 1) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 1, even, odd);
    KERN_UNROLL for (int g = 0; g < n_q; g++) even[g] = _mm256_sub_epi16(even[g], _mm256_slli_epi16(odd[g], 8));
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

/* ---- second planes ---------------------------------------------------------------------------------- */

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

/* Adds what u says to the estimates of the first 64 waiting positions, for heads first .. first + n_q - 1.  When fewer wait, what stands behind them is of no meaning, and there is room. */
KERN_INLINE void refine_heads(index_state *s, size_t h, size_t first, const int n_q)
{
    __m256i sums[2][INDEX_HEADS];
    add_signs(s, s->s.turned + 32 * h, first, n_q, sums[0], sums[1]);
    for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const __m256 slope = _mm256_set1_ps(s->slope[head] / 2), base = _mm256_set1_ps(s->base[head] / 2);
        KERN_UNROLL for (size_t m = 0; m < 4; m++) {
            const size_t at = 16 * h + 32 * (m / 2) + AVX2_LANES * (m % 2);
            float *estimates = s->a->estimates + head * s->a->stride + s->n_kept - s->n_waiting + at;
            __m256 scale = _mm256_loadu_ps(s->s.waiting_scale + s->first_waiting + at), u = _mm256_fmadd_ps(eight(sums[m / 2][g], m % 2), slope, base);
            _mm256_storeu_ps(estimates, _mm256_fmadd_ps(scale, u, _mm256_loadu_ps(estimates)));
        }
    }
}

static void refine(index_state *s)
{
    const uint8_t **u = s->s.waiting_u + s->first_waiting;
    for (size_t i = s->n_waiting; i < KERN_INDEX_GROUP; i++) u[i] = u[0];
    turn_rows(u, s->at.row_bytes, s->s.turned);
    for (size_t h = 0; h < 2; h++) FOR_HEADS(s->a->n_q, refine_heads, s, h);
    index_wait_end(s);
}

/* ---- pages ------------------------------------------------------------------------------------------ */

/* The largest exponent of a page's scales. */
static int page_exponent(const index_state *s, const uint8_t *code)
{
    const uint8_t *scales = code + s->at.scales;
    __m256i most = load(scales);
    for (size_t i = 32; i < s->at.groups * KERN_INDEX_GROUP * sizeof(kern_f16); i += 32) most = _mm256_max_epu16(most, load(scales + i));
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    return (0xffff - (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)))) & 0xffff)) >> 10;
}

static float page_offset(const float *q, const kern_f16 *mean, size_t dim)
{
    __m256 low = _mm256_setzero_ps(), high = low;
    for (size_t d = 0; d < dim; d += KERN_LANES) {
        __m256i m = load(mean + d);
        low = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_cvtph_ps(_mm256_castsi256_si128(m)), low);
        high = _mm256_fmadd_ps(_mm256_loadu_ps(q + d + AVX2_LANES), _mm256_cvtph_ps(_mm256_extracti128_si256(m, 1)), high);
    }
    return avx2_fold(low, high);
}

static void begin_pages(index_state *s, const index_walk *w)
{
    for (size_t page = 0; page < w->n_pages; page++) {
        const kern_f16 *mean = (const kern_f16 *)(const void *)(w->pages[page] + s->at.mean);
        s->exponent[page] = page_exponent(s, w->pages[page]);
        const float power = index_power(s->exponent[page]);
        for (size_t head = 0; head < s->a->n_q; head++) {
            float offset = page_offset(s->q.rotated + head * s->a->dim, mean, s->a->dim), t = (s->bar[head] - offset) * s->inverse[head] * power;
            t = t < 32767 ? t : 32767;
            s->offset[index_place(page, head)] = offset;
            s->threshold[index_place(page, head)] = index_twice(_mm_cvtss_si32(_mm_set_ss(t > -32768 ? t : -32768)));
        }
    }
}

/* ---- the scan --------------------------------------------------------------------------------------- */

/* Scales as integers of 15 bits in units of the page's largest exponent. */
KERN_INLINE __m128i whole_scales(const kern_f16 *scales, int exponent)
{
    __m256i b = _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i *)(const void *)scales));
    __m256i fraction = _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi32(0x3ff)), _mm256_set1_epi32(0x400));
    __m256i n = _mm256_srlv_epi32(_mm256_slli_epi32(fraction, 4), _mm256_sub_epi32(_mm256_set1_epi32(exponent), _mm256_srli_epi32(b, 10)));
    return _mm_packus_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
}

/* Sums of half a group into scratch; *even and *odd keep the lanes of those that no head finds good enough. */
KERN_INLINE void scan_heads(index_state *s, const index_step *step, size_t h, const __m256i *scale, __m256i *bad, size_t first, const int n_q)
{
    __m256i sums[2][INDEX_HEADS];
    add_signs(s, step->code + step->at * s->at.group_bytes + 32 * h, first, n_q, sums[0], sums[1]);
    for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const __m256i threshold = _mm256_set1_epi32((int)s->threshold[index_place(step->page, head)]);
        KERN_UNROLL for (int odd = 0; odd < 2; odd++) {
            _mm256_store_si256((__m256i *)(void *)(s->s.sums + head * KERN_INDEX_GROUP + 16 * h + 32 * (size_t)odd), sums[odd][g]);
            bad[odd] = _mm256_and_si256(bad[odd], _mm256_cmpgt_epi16(threshold, _mm256_mulhrs_epi16(sums[odd][g], scale[odd])));
        }
    }
}

/* One bit for each of 16 lanes. */
KERN_INLINE uint64_t lane_bits(__m256i lanes)
{
    return (uint64_t)_mm_movemask_epi8(_mm_packs_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1)));
}

static uint64_t scan_half(index_state *s, const index_step *step, const kern_f16 *scales, size_t h)
{
    __m256i scale[2], bad[2] = {_mm256_set1_epi8(-1), _mm256_set1_epi8(-1)};
    KERN_UNROLL for (int odd = 0; odd < 2; odd++) {
        const kern_f16 *at = scales + 16 * h + 32 * (size_t)odd;
        scale[odd] = _mm256_setr_m128i(whole_scales(at, s->exponent[step->page]), whole_scales(at + 8, s->exponent[step->page]));
    }
    FOR_HEADS(s->a->n_q, scan_heads, s, step, h, scale, bad);
    return ((lane_bits(bad[0]) | lane_bits(bad[1]) << 32) ^ 0x0000ffff0000ffffu) << 16 * h;
}

/* Eight of 64 numbers. */
KERN_INLINE __m128i pick(const void *numbers, const uint8_t *which)
{
    const uint16_t *n = numbers;
    uint16_t some[8];
    for (int i = 0; i < 8; i++) some[i] = n[which[i]];
    return _mm_loadu_si128((const __m128i *)(const void *)some);
}

/* Writes the positions of mask and their estimates as far as signs go. */
static void keep(index_state *s, const index_step *step, const kern_f16 *scales, uint64_t mask)
{
    uint8_t list[KERN_INDEX_GROUP + AVX2_LANES] = {0};
    size_t n = 0;
    for (uint64_t left = mask; left; left &= left - 1) list[n++] = (uint8_t)__builtin_ctzll(left);
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        const __m256 scale = _mm256_cvtph_ps(pick(scales, list + i));
        const __m256i number = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(list + i)));
        _mm256_storeu_si256((__m256i *)(void *)(s->a->ids + s->n_kept + i), _mm256_add_epi32(_mm256_set1_epi32((int)step->from), number));
        if (s->refine) _mm256_storeu_ps(s->s.waiting_scale + s->first_waiting + s->n_waiting + i, scale);
        for (size_t g = 0; g < s->a->n_q; g++) {
            __m256 sums = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(pick(s->s.sums + g * KERN_INDEX_GROUP, list + i)));
            __m256 z = _mm256_fmadd_ps(sums, _mm256_set1_ps(s->slope[g]), _mm256_set1_ps(s->base[g]));
            _mm256_storeu_ps(s->a->estimates + g * s->a->stride + s->n_kept + i, _mm256_fmadd_ps(scale, z, _mm256_set1_ps(s->offset[index_place(step->page, g)])));
        }
    }
    if (s->refine) index_wait(s, step, mask);
    s->n_kept += n;
}

/* Asks for the same group of a later page. */
static void ask_ahead(const index_state *s, const index_step *step, size_t page)
{
    const char *code = s->a->pages[page], *signs = code + step->at * s->at.group_bytes, *scales = code + s->at.scales + step->at * KERN_INDEX_GROUP * sizeof(kern_f16);
    for (size_t i = 0; i < s->at.group_bytes; i += 64) _mm_prefetch(signs + i, _MM_HINT_T1);
    for (size_t i = 0; i < KERN_INDEX_GROUP * sizeof(kern_f16); i += 64) _mm_prefetch(scales + i, _MM_HINT_T1);
    for (size_t i = s->at.mean; step->at == 0 && i < s->at.mean + s->a->dim * sizeof(kern_f16); i += 64) _mm_prefetch(code + i, _MM_HINT_T1);
}

static size_t scan(const kern_index_scan *a)
{
    index_state s = index_state_begin(a);
    const size_t ahead = (INDEX_AHEAD + a->page_rows - 1) / a->page_rows, n_pages = (a->end + a->page_rows - 1) / a->page_rows;
    for (index_walk w = index_walk_begin(a); index_walk_next(&w);) {
        begin_pages(&s, &w);
        for (size_t i = 0; i < w.n_steps; i++) {
            const index_step *step = &w.steps[i];
            const kern_f16 *scales = (const kern_f16 *)(const void *)(step->code + s.at.scales) + step->at * KERN_INDEX_GROUP;
            if (a->every == 1 && step->from / a->page_rows + ahead < n_pages) ask_ahead(&s, step, step->from / a->page_rows + ahead);
            uint64_t mask = scan_half(&s, step, scales, 0) | scan_half(&s, step, scales, 1);
            mask &= step->mask;
            if (mask) keep(&s, step, scales, mask);
            while (s.n_waiting >= INDEX_FULL) refine(&s);
        }
    }
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

static void lse(const float *estimates, size_t stride, size_t n, size_t n_q, float *out)
{
    for (size_t g = 0; g < n_q; g++) {
        const float *e = estimates + g * stride;
        __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        float top = -INFINITY;
        for (size_t i = 0; i < n; i++) top = e[i] > top ? e[i] : top;
        for (size_t i = 0; i < n; i += KERN_LANES) {
            __m256 x[2];
            load_first(e + i, kern_min_size(n - i, KERN_LANES), -INFINITY, x);
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

static void votes(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse_of, bool largest, float *out)
{
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        const __m256i some = avx2_first((int)kern_min_size(n - i, AVX2_LANES));
        __m256 vote = _mm256_setzero_ps();
        for (size_t g = 0; g < n_q; g++) {
            __m256 v = index_vote(_mm256_sub_ps(_mm256_maskload_ps(estimates + g * stride + i, some), _mm256_set1_ps(lse_of[g])));
            vote = largest ? _mm256_max_ps(vote, v) : _mm256_add_ps(vote, v);
        }
        _mm256_maskstore_ps(out + i, some, vote);
    }
}

void kern_fill_avx2_index(kern_table *t)
{
    t->index_code = index_make_code;
    t->index_query = prepare;
    t->index_scan = scan;
    t->index_lse = lse;
    t->index_votes = votes;
}
