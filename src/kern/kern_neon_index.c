/* kern_neon_index.c - the index of keys for NEON (kern_index_code.h has the numbers).
 *
 * A group's 64 positions are the bytes of four vectors, its quarters: quarter c has positions 8 c .. 8 c + 7 in the even bytes, and those 32 further in the odd ones.  One look-up adds
 * four channels for 16 positions; sums are kept in bytes for a chunk, and in 16 bits beyond, where the even bytes' are the sum of everything less 256 times that of the odd ones. */
#include "kern_neon.h"

typedef struct index_lanes {
    float32x4_t v[NEON_QUARTERS];
} index_lanes;
#include "kern_index_make.h"

enum {
    INDEX_HEADS = 4,    /* heads whose sums are in registers at once */
    INDEX_AHEAD = 640,  /* so many positions ahead are asked for into L2 */
    QUARTER = 16,       /* bytes */
};

/* ---- lanes ------------------------------------------------------------------------------------------ */

KERN_INLINE index_lanes lanes_load(const float *p)
{
    return (index_lanes){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}

KERN_INLINE index_lanes lanes_halves(const kern_f16 *p)
{
    index_lanes x;
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) x.v[c] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + c * NEON_LANES)));
    return x;
}

KERN_INLINE void lanes_store(float *p, index_lanes x)
{
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) vst1q_f32(p + c * NEON_LANES, x.v[c]);
}

KERN_INLINE index_lanes lanes_fill(float v)
{
    return (index_lanes){{vdupq_n_f32(v), vdupq_n_f32(v), vdupq_n_f32(v), vdupq_n_f32(v)}};
}

KERN_INLINE index_lanes lanes_add(index_lanes a, index_lanes b)
{
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) a.v[c] = vaddq_f32(a.v[c], b.v[c]);
    return a;
}

KERN_INLINE index_lanes lanes_sub(index_lanes a, index_lanes b)
{
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) a.v[c] = vsubq_f32(a.v[c], b.v[c]);
    return a;
}

KERN_INLINE index_lanes lanes_mul(index_lanes a, index_lanes b)
{
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) a.v[c] = vmulq_f32(a.v[c], b.v[c]);
    return a;
}

KERN_INLINE index_lanes lanes_abs(index_lanes x)
{
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) x.v[c] = vabsq_f32(x.v[c]);
    return x;
}

KERN_INLINE float lanes_fold(index_lanes x)
{
    return neon_fold(x.v);
}

KERN_INLINE float32x4_t butterfly(float32x4_t x, int h)
{
    const uint32_t odd[NEON_LANES] = {0, UINT32_MAX, 0, UINT32_MAX};
    float32x4_t other = h == 1 ? vrev64q_f32(x) : vextq_f32(x, x, 2), add = vaddq_f32(x, other), sub = vsubq_f32(other, x);
    return h == 1 ? vbslq_f32(vld1q_u32(odd), sub, add) : vcombine_f32(vget_low_f32(add), vget_high_f32(sub));
}

KERN_INLINE index_lanes lanes_butterfly(index_lanes x, int h)
{
    const int step = h / NEON_LANES; /* in vectors: 2, 1, or 0 within one */
    index_lanes y;
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++)
        y.v[c] = !step ? butterfly(x.v[c], h) : c & step ? vsubq_f32(x.v[c & ~step], x.v[c]) : vaddq_f32(x.v[c], x.v[c | step]);
    return y;
}

/* Bits of a quarter's lanes that are all ones. */
KERN_INLINE unsigned lanes_bits(uint32x4_t lanes, int quarter)
{
    const uint32_t bit[NEON_LANES] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(lanes, vld1q_u32(bit))) << 4 * quarter;
}

KERN_INLINE unsigned lanes_signs(index_lanes r)
{
    unsigned bits = 0;
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) bits |= lanes_bits(vcgeq_f32(r.v[c], vdupq_n_f32(0)), c);
    return bits;
}

KERN_INLINE index_lanes lanes_beyond(index_lanes r, float limit, unsigned *where)
{
    index_lanes two;
    *where = 0;
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) {
        uint32x4_t beyond = vcgtq_f32(vmulq_f32(r.v[c], r.v[c]), vdupq_n_f32(limit));
        *where |= lanes_bits(beyond, c);
        two.v[c] = vbslq_f32(beyond, vdupq_n_f32(2), vdupq_n_f32(0));
    }
    return two;
}

static void make_tables(const int16_t *whole, size_t dim, uint8_t *tables)
{
    const uint8_t count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const uint8x16_t number = vld1q_u8(count);
    for (size_t d = 0; d < dim; d += 4) {
        const int16_t *n = whole + d;
        int start = 0;
        for (size_t b = 0; b < 4; b++) start += n[b] < 0 ? -n[b] : 0;
        uint8x16_t v = vdupq_n_u8((uint8_t)start);
        KERN_UNROLL for (int b = 0; b < 4; b++) v = vaddq_u8(v, vandq_u8(vtstq_u8(number, vdupq_n_u8((uint8_t)(1 << b))), vdupq_n_u8((uint8_t)n[b])));
        vst1q_u8(tables + d / 24 * INDEX_CHUNK_BYTES + d % 24 / 4 * 16, v);
    }
}

static void prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared)
{
    index_prepare(q, q_stride, n_q, dim, prepared, make_tables);
}

/* ---- sums ------------------------------------------------------------------------------------------- */

KERN_INLINE void add_chunk(const uint8_t *signs, const uint8_t *tables, size_t table_bytes, const int n_q, const int n_bytes, uint16x8_t *all, uint16x8_t *odd)
{
    uint8x16_t sum[INDEX_HEADS];
    KERN_UNROLL for (int g = 0; g < n_q; g++) sum[g] = vdupq_n_u8(0);
    KERN_UNROLL for (int i = 0; i < n_bytes; i++) {
        uint8x16_t bytes = vld1q_u8(signs + i * KERN_INDEX_GROUP), low = vandq_u8(bytes, vdupq_n_u8(15)), high = vshrq_n_u8(bytes, 4);
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            const uint8_t *table = tables + (size_t)g * table_bytes + i * 32;
            sum[g] = vaddq_u8(sum[g], vaddq_u8(vqtbl1q_u8(vld1q_u8(table), low), vqtbl1q_u8(vld1q_u8(table + 16), high)));
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        uint16x8_t pairs = vreinterpretq_u16_u8(sum[g]);
        all[g] = vaddq_u16(all[g], pairs);
        odd[g] = vsraq_n_u16(odd[g], pairs, 8);
    }
}

/* n of heads first .. first + n_q - 1 over one quarter of the positions whose signs these are: those of its even and of its odd bytes. */
KERN_INLINE void add_signs(const index_state *s, const uint8_t *signs, size_t first, const int n_q, uint16x8_t *even, uint16x8_t *odd)
{
    const size_t row_bytes = s->at.row_bytes, table_bytes = s->q.table_bytes;
    const uint8_t *tables = s->q.tables + first * table_bytes;
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        even[g] = vdupq_n_u16((uint16_t)s->start_all[first + (size_t)g]);
        odd[g] = vdupq_n_u16((uint16_t)s->start_odd[first + (size_t)g]);
    }
    size_t j = 0;
    for (; j + INDEX_CHUNK <= row_bytes; j += INDEX_CHUNK, tables += INDEX_CHUNK_BYTES) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 3, even, odd);
    if (row_bytes - j == 2) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 2, even, odd);
    if (row_bytes - j == 1) add_chunk(signs + j * KERN_INDEX_GROUP, tables, table_bytes, n_q, 1, even, odd);
    KERN_UNROLL for (int g = 0; g < n_q; g++) even[g] = vsubq_u16(even[g], vshlq_n_u16(odd[g], 8));
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

/* Four of eight numbers as floats. */
KERN_INLINE float32x4_t four(uint16x8_t n, int high)
{
    int16x8_t all = vreinterpretq_s16_u16(n);
    return vcvtq_f32_s32(vmovl_s16(high ? vget_high_s16(all) : vget_low_s16(all)));
}

KERN_INLINE float32x4_t halves_at(const kern_f16 *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

/* ---- outer planes ----------------------------------------------------------------------------------- */

KERN_INLINE uint8x16_t row_bytes(const uint8_t *row, const size_t n)
{
    uint8_t some[16] = {0};
    if (n == 16) return vld1q_u8(row);
    memcpy(some, row, n);
    return vld1q_u8(some);
}

/* n_bytes <= 16 of rows 0-63 turned into the layout of a group: quarter c has rows 8 c .. 8 c + 7 and 32 more. */
KERN_INLINE void turn_some(const uint8_t *const *rows, size_t at, const size_t n_bytes, uint8_t *out)
{
    for (size_t c = 0; c < NEON_QUARTERS; c++) {
        uint8x16_t v[16], w[16];
        KERN_UNROLL for (size_t k = 0; k < 16; k++) v[k] = row_bytes(rows[8 * c + 32 * (k % 2) + k / 2] + at, n_bytes);
        KERN_UNROLL for (int round = 0; round < 2; round++) {
            KERN_UNROLL for (int k = 0; k < 8; k++) {
                w[2 * k] = vzip1q_u8(v[k], v[k + 8]);
                w[2 * k + 1] = vzip2q_u8(v[k], v[k + 8]);
            }
            KERN_UNROLL for (int k = 0; k < 8; k++) {
                v[2 * k] = vzip1q_u8(w[k], w[k + 8]);
                v[2 * k + 1] = vzip2q_u8(w[k], w[k + 8]);
            }
        }
        KERN_UNROLL for (size_t k = 0; k < 16; k++)
            if (k < n_bytes) vst1q_u8(out + k * KERN_INDEX_GROUP + QUARTER * c, v[k]);
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
KERN_INLINE void refine_heads(index_state *s, unsigned plane, size_t c, size_t first, const int n_q)
{
    uint16x8_t sums[2][INDEX_HEADS];
    const float share = 1 / (float)(1 << plane);
    add_signs(s, s->s.turned + (plane - 1) * s->at.group_bytes + QUARTER * c, first, n_q, sums[0], sums[1]);
    for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const float32x4_t slope = vdupq_n_f32(s->slope[head] * share), base = vdupq_n_f32(s->base[head] * share);
        KERN_UNROLL for (size_t m = 0; m < 4; m++) {
            const size_t at = 8 * c + 32 * (m / 2) + NEON_LANES * (m % 2);
            float *estimates = s->a->estimates + head * s->a->stride + s->n_kept - s->n_waiting + at;
            float32x4_t scale = vld1q_f32(s->s.waiting_scale + s->first_waiting + at), u = vfmaq_f32(base, four(sums[m / 2][g], m % 2), slope);
            vst1q_f32(estimates, vfmaq_f32(vld1q_f32(estimates), scale, u));
        }
    }
}

static void refine(index_state *s)
{
    const uint8_t **rows = s->s.waiting_outer + s->first_waiting;
    for (size_t i = s->n_waiting; i < KERN_INDEX_GROUP; i++) rows[i] = rows[0];
    turn_rows(rows, s->at.outer_bytes, s->s.turned);
    for (unsigned p = 1; p < s->a->planes; p++)
        for (size_t c = 0; c < NEON_QUARTERS; c++) FOR_HEADS(s->a->n_q, refine_heads, s, p, c);
    index_wait_end(s);
}

/* ---- pages ------------------------------------------------------------------------------------------ */

/* The largest exponent of a page's scales. */
static int page_exponent(const index_state *s, const uint8_t *code)
{
    const kern_f16 *scales = (const kern_f16 *)(const void *)(code + s->at.scales);
    uint16x8_t most = vld1q_u16(scales);
    for (size_t i = 8; i < s->at.groups * KERN_INDEX_GROUP; i += 8) most = vmaxq_u16(most, vld1q_u16(scales + i));
    return vmaxvq_u16(most) >> 10;
}

static float page_offset(const float *q, const kern_f16 *mean, size_t dim)
{
    float32x4_t acc[NEON_QUARTERS];
    KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) acc[c] = vdupq_n_f32(0);
    for (size_t d = 0; d < dim; d += KERN_LANES)
        KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) acc[c] = vfmaq_f32(acc[c], vld1q_f32(q + d + NEON_LANES * c), halves_at(mean + d + NEON_LANES * c));
    return neon_fold(acc);
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
            s->threshold[index_place(page, head)] = index_twice(vcvtns_s32_f32(t > -32768 ? t : -32768));
        }
    }
}

/* ---- the scan --------------------------------------------------------------------------------------- */

/* Scales as integers of 15 bits in units of the page's largest exponent. */
KERN_INLINE int16x8_t whole_scales(const kern_f16 *scales, int exponent)
{
    uint16x8_t b = vld1q_u16(scales), fraction = vorrq_u16(vandq_u16(b, vdupq_n_u16(0x3ff)), vdupq_n_u16(0x400));
    int16x8_t left = vsubq_s16(vreinterpretq_s16_u16(vshrq_n_u16(b, 10)), vdupq_n_s16((int16_t)exponent));
    return vreinterpretq_s16_u16(vshlq_u16(vshlq_n_u16(fraction, 4), left));
}

/* Sums of a quarter of a group into scratch; bad keeps the lanes, even and odd, of those that no head finds good enough. */
KERN_INLINE void scan_heads(index_state *s, const index_step *step, size_t c, const int16x8_t *scale, uint16x8_t *bad, size_t first, const int n_q)
{
    uint16x8_t sums[2][INDEX_HEADS];
    add_signs(s, step->code + step->at * s->at.group_bytes + QUARTER * c, first, n_q, sums[0], sums[1]);
    for (int g = 0; g < n_q; g++) {
        const size_t head = first + (size_t)g;
        const int16x8_t threshold = vdupq_n_s16((int16_t)s->threshold[index_place(step->page, head)]);
        KERN_UNROLL for (int odd = 0; odd < 2; odd++) {
            int16x8_t n = vreinterpretq_s16_u16(sums[odd][g]);
            vst1q_s16(s->s.sums + head * KERN_INDEX_GROUP + 8 * c + 32 * (size_t)odd, n);
            bad[odd] = vandq_u16(bad[odd], vcgtq_s16(threshold, vqrdmulhq_s16(n, scale[odd])));
        }
    }
}

/* One bit for each of eight lanes that are not set. */
KERN_INLINE uint64_t other_lanes(uint16x8_t lanes)
{
    const uint16_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vaddvq_u16(vbicq_u16(vld1q_u16(bit), lanes));
}

static uint64_t scan_quarter(index_state *s, const index_step *step, const kern_f16 *scales, size_t c)
{
    int16x8_t scale[2] = {whole_scales(scales + 8 * c, s->exponent[step->page]), whole_scales(scales + 8 * c + 32, s->exponent[step->page])};
    uint16x8_t bad[2] = {vdupq_n_u16(UINT16_MAX), vdupq_n_u16(UINT16_MAX)};
    FOR_HEADS(s->a->n_q, scan_heads, s, step, c, scale, bad);
    return (other_lanes(bad[0]) | other_lanes(bad[1]) << 32) << 8 * c;
}

/* Writes the positions of mask and their estimates as far as signs go. */
static void keep(index_state *s, const index_step *step, const kern_f16 *scales, uint64_t mask)
{
    uint8_t list[KERN_INDEX_GROUP + NEON_LANES] = {0};
    size_t n = 0;
    for (uint64_t left = mask; left; left &= left - 1) list[n++] = (uint8_t)__builtin_ctzll(left);
    for (size_t i = 0; i < n; i += NEON_LANES) {
        const uint8_t *at = list + i;
        const kern_f16 halves[NEON_LANES] = {scales[at[0]], scales[at[1]], scales[at[2]], scales[at[3]]};
        const float32x4_t scale = halves_at(halves);
        for (size_t j = 0; j < NEON_LANES; j++) s->a->ids[s->n_kept + i + j] = (uint32_t)(step->from + at[j]);
        if (s->refine) vst1q_f32(s->s.waiting_scale + s->first_waiting + s->n_waiting + i, scale);
        for (size_t g = 0; g < s->a->n_q; g++) {
            const int16_t *all = s->s.sums + g * KERN_INDEX_GROUP;
            const int32_t sums[NEON_LANES] = {all[at[0]], all[at[1]], all[at[2]], all[at[3]]};
            float32x4_t z = vfmaq_f32(vdupq_n_f32(s->base[g]), vcvtq_f32_s32(vld1q_s32(sums)), vdupq_n_f32(s->slope[g]));
            vst1q_f32(s->a->estimates + g * s->a->stride + s->n_kept + i, vfmaq_f32(vdupq_n_f32(s->offset[index_place(step->page, g)]), scale, z));
        }
    }
    if (s->refine) index_wait(s, step, mask);
    s->n_kept += n;
}

/* Asks for a later group. */
static void ask_ahead(const index_state *s, const index_step *step)
{
    for (size_t i = 0; i < s->at.group_bytes; i += 64) __builtin_prefetch(step->later_signs + i, 0, 2);
    index_ask_rest(s, step);
}

static size_t scan(const kern_index_scan *a)
{
    index_state s = index_state_begin(a);
    for (index_walk w = index_walk_begin(a, INDEX_AHEAD); index_walk_next(&w);) {
        begin_pages(&s, &w);
        for (size_t i = 0; i < w.n_steps; i++) {
            const index_step *step = &w.steps[i];
            const kern_f16 *scales = (const kern_f16 *)(const void *)(step->code + s.at.scales) + step->at * KERN_INDEX_GROUP;
            ask_ahead(&s, step);
            uint64_t mask = 0;
            for (size_t c = 0; c < NEON_QUARTERS; c++) mask |= scan_quarter(&s, step, scales, c);
            mask &= step->mask;
            if (mask) keep(&s, step, scales, mask);
            while (s.n_waiting >= INDEX_FULL) refine(&s);
        }
    }
    while (s.n_waiting) refine(&s);
    return s.n_kept;
}

/* ---- votes ------------------------------------------------------------------------------------------ */

static void lse(const float *estimates, size_t stride, size_t n, size_t n_q, float *out)
{
    for (size_t g = 0; g < n_q; g++) {
        const float *e = estimates + g * stride;
        float32x4_t sum[NEON_QUARTERS];
        float top = -INFINITY;
        for (size_t i = 0; i < n; i++) top = e[i] > top ? e[i] : top;
        KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) sum[c] = vdupq_n_f32(0);
        for (size_t i = 0; i < n; i += KERN_LANES) {
            float x[KERN_LANES];
            for (size_t l = 0; l < KERN_LANES; l++) x[l] = i + l < n ? e[i + l] : -INFINITY;
            KERN_UNROLL for (int c = 0; c < NEON_QUARTERS; c++) sum[c] = vaddq_f32(sum[c], neon_exp(vsubq_f32(vld1q_f32(x + c * NEON_LANES), vdupq_n_f32(top))));
        }
        out[g] = n ? top + logf(neon_fold(sum)) : -INFINITY;
    }
}

/* e^d with what is enough for votes (kern_index_code.h). */
KERN_INLINE float32x4_t index_vote(float32x4_t d)
{
    float32x4_t x = vmaxnmq_f32(vminnmq_f32(d, vdupq_n_f32(KERN_INDEX_VOTE)), vdupq_n_f32(KERN_EXP_MIN)), n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(KERN_LOG2E)));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(INDEX_LN2)), p = vfmaq_f32(vdupq_n_f32(KERN_EXP_C4), vdupq_n_f32(KERN_EXP_C5), r);
    p = vfmaq_f32(vdupq_n_f32(KERN_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}

static void votes(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse_of, bool largest, float *out)
{
    for (size_t i = 0; i < n; i += NEON_LANES) {
        const size_t some = kern_min_size(n - i, NEON_LANES);
        float32x4_t vote = vdupq_n_f32(0);
        float four_votes[NEON_LANES];
        for (size_t g = 0; g < n_q; g++) {
            float32x4_t v = index_vote(vsubq_f32(neon_load_first(estimates + g * stride + i, some), vdupq_n_f32(lse_of[g])));
            vote = largest ? vmaxq_f32(vote, v) : vaddq_f32(vote, v);
        }
        vst1q_f32(four_votes, vote);
        memcpy(out + i, four_votes, some * sizeof *out);
    }
}

void kern_fill_neon_index(kern_table *t)
{
    t->index_code = index_make_code;
    t->index_query = prepare;
    t->index_scan = scan;
    t->index_lse = lse;
    t->index_votes = votes;
    t->index_mean = index_make_mean;
    t->index_mix = index_mix;
}
