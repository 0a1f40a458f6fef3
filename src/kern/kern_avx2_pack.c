/* kern_avx2_pack.c - products of packed weights and integer activations with AVX2: the bits of pack.h's formula without VNNI.
 *
 * A lane is an output; a panel goes by in two halves of 8.  vpmaddubsw adds pairs of products in 16 bits, which must not saturate: a pair of weights of b bits
 * is at most 2 * 2^b * 128, so a few quads are summed in 16 bits before they are widened, and eight-bit weights are taken as two nibbles. */
#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "kern_pack_ask.h"
#include "pack.h"

/* The integers of one block; of eight-bit weights, high are the upper nibbles and q the lower. */
typedef struct quads {
    __m256i q[8], high[8];
} quads;

typedef struct scales {
    __m256 d, d2, m;
} scales;

KERN_INLINE __m256i quad_at(const uint8_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

KERN_INLINE __m256i low_bits(__m256i v, int mask)
{
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}

KERN_INLINE __m256i or_bits(__m256i a, __m256i b, int mask)
{
    return _mm256_or_si256(a, low_bits(b, mask));
}

/* Moves bit `from` of every byte, and those above it, to bit 4. */
KERN_INLINE __m256i moved_to_4(__m256i v, int from)
{
    return from < 4 ? _mm256_slli_epi16(v, 4 - from) : from > 4 ? _mm256_srli_epi16(v, from - 4) : v;
}

/* p is at the half's first lane. */
KERN_INLINE quads load_quads(uint32_t type, const uint8_t *p)
{
    quads w;
    if (type == QUANT_Q8_0) {
        KERN_UNROLL for (int q = 0; q < 8; q++) {
            __m256i both = quad_at(p + 64 * q);
            w.q[q] = low_bits(both, 15);
            w.high[q] = low_bits(_mm256_srli_epi16(both, 4), 15);
        }
        return w;
    }
    KERN_UNROLL for (int v = 0; v < 4; v++) {
        __m256i both = quad_at(p + 64 * v);
        w.q[v] = low_bits(both, 15);
        w.q[v + 4] = low_bits(_mm256_srli_epi16(both, 4), 15);
    }
    if (type == QUANT_Q6_K) {
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = or_bits(w.q[q], moved_to_4(quad_at(p + 256 + q / 4 * 64), q % 4 * 2), 0x30);
    } else if (pack_has_fifth_bits(type)) {
        __m256i plane = quad_at(p + 256);
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = or_bits(w.q[q], moved_to_4(plane, q), 0x10);
    }
    return w;
}

KERN_INLINE __m256 halves_at(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)p));
}

KERN_INLINE __m256 bytes_at(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

KERN_INLINE __m256 signed_bytes_at(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

/* Of block b, outputs 8 half .. 8 half + 7; p is the panel's scales. */
KERN_INLINE scales load_scales(uint32_t type, const uint8_t *p, size_t b, size_t half)
{
    scales s;
    const uint8_t *super, *small;
    size_t g = b % PACK_SUPER;
    s.d2 = s.m = _mm256_setzero_ps();
    switch (type) {
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        s.d = halves_at(p + 64 * b + 16 * half);
        s.m = halves_at(p + 64 * b + 32 + 16 * half);
        return s;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        super = p + b / PACK_SUPER * 320 + 16 * half;
        small = p + b / PACK_SUPER * 320 + 64 + 32 * g + 8 * half;
        s.d = _mm256_mul_ps(halves_at(super), bytes_at(small));
        s.m = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_mul_ps(halves_at(super + 32), bytes_at(small + 16)));
        return s;
    case QUANT_Q6_K:
        super = p + b / PACK_SUPER * 288 + 16 * half;
        small = p + b / PACK_SUPER * 288 + 32 + 32 * g + 8 * half;
        s.d = _mm256_mul_ps(halves_at(super), signed_bytes_at(small));
        s.d2 = _mm256_mul_ps(halves_at(super), signed_bytes_at(small + 16));
        return s;
    default: s.d = halves_at(p + 32 * b + 16 * half); return s;
    }
}

KERN_INLINE __m256i four_at(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

/* times * the sum over n quads of u * v, v bytes; widened every `step` quads, before the sums of 16 bits could overflow. */
KERN_INLINE __m256i sum_bytes(const __m256i *w, const int8_t *v, int n, int step, int times)
{
    __m256i sum = _mm256_setzero_si256();
    KERN_UNROLL for (int at = 0; at < n; at += step) {
        __m256i pairs = _mm256_maddubs_epi16(w[at], four_at(v + 4 * at));
        KERN_UNROLL for (int q = at + 1; q < at + step; q++) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[q], four_at(v + 4 * q)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16((short)times)));
    }
    return sum;
}

/* high is in units of 256. */
KERN_INLINE __m256i put_together(__m256i high, __m256i low)
{
    return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low);
}

KERN_INLINE __m256i sum_plane(uint32_t type, const quads *w, const int8_t *v, int from, int n)
{
    if (type == QUANT_Q8_0) return _mm256_add_epi32(sum_bytes(w->q, v, n, 8, 1), sum_bytes(w->high, v, n, 8, 16));
    return sum_bytes(w->q + from, v + 4 * from, n, 2, 1);
}

/* unbias is -128 times the sum of v. */
KERN_INLINE __m256 words_sum(uint32_t type, const quads *w, const pack_words *x, int from, int n, int32_t unbias)
{
    __m256i sum = put_together(sum_plane(type, w, x->high, from, n), sum_plane(type, w, x->low, from, n));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(unbias >> (7 - pack_bias_bits(type)))));
}

/* vpmaddubsw would saturate for pairs of weights in one byte: each half goes by itself. */
KERN_INLINE __m256 pairs_sum(uint32_t type, const quads *w, const pack_pairs *x)
{
    __m256i low = _mm256_add_epi32(sum_bytes(w->q, x->low, 4, 4, 1), sum_bytes(w->q + 4, x->low, 4, 4, pack_ratio(pack_kind_of(type))));
    __m256i sum = put_together(sum_bytes(w->q, x->high, 8, pack_has_fifth_bits(type) ? 4 : 8, 1), low);
    if (pack_bias_bits(type)) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(x->unbias));
    return _mm256_cvtepi32_ps(_mm256_sllv_epi32(sum, _mm256_set1_epi32(x->shift)));
}

KERN_INLINE __m256 add_block(uint32_t type, const quads *w, const scales *c, const uint8_t *at, __m256 s)
{
    if (pack_kind_of(type) == PACK_WORDS) {
        const pack_words *x = (const pack_words *)(const void *)at;
        if (type != QUANT_Q6_K) return _mm256_fmadd_ps(words_sum(type, w, x, 0, 8, x->unbias), c->d, s);
        s = _mm256_fmadd_ps(words_sum(type, w, x, 0, 4, x->unbias_first), c->d, s);
        return _mm256_fmadd_ps(words_sum(type, w, x, 4, 4, x->unbias - x->unbias_first), c->d2, s);
    }
    const pack_pairs *x = (const pack_pairs *)(const void *)at;
    s = _mm256_fmadd_ps(pairs_sum(type, w, x), c->d, s);
    return pack_has_minima(type) ? _mm256_fmadd_ps(c->m, _mm256_set1_ps(x->sum), s) : s;
}

/* The scale lies in front of both kinds. */
KERN_INLINE __m256 scale_at(const uint8_t *x)
{
    float scale;
    memcpy(&scale, x, sizeof scale);
    return _mm256_set1_ps(scale);
}

/* A group of rows by one panel. */
typedef struct group_job {
    const kern_pack_args *a;
    const uint8_t *panel, *x;
    float *y;
    size_t n_out;
} group_job;

KERN_INLINE void half_rows(uint32_t type, const group_job *j, size_t n_rows, size_t half)
{
    const size_t quad_bytes = pack_quad_bytes(type), x_bytes = pack_x_bytes(pack_kind_of(type));
    size_t n_blocks = j->a->n_cols / PACK_COLS;
    const uint8_t *p = j->panel, *scales_at = p + n_blocks * quad_bytes, *x = j->x;
    kern_ask ask = kern_ask_from(p, j->a->tuning);
    __m256 y[8];
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) y[r] = _mm256_setzero_ps();
    for (size_t b = 0; b < n_blocks;) {
        size_t end = kern_min_size(b + PACK_SUPER, n_blocks);
        __m256 s[8];
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) s[r] = _mm256_setzero_ps();
        for (; b < end; b++, p += quad_bytes, x += n_rows * x_bytes) {
            if (n_rows < 8 && half == 0) kern_ask_on(&ask, quad_bytes, pack_scale_bytes(type));
            quads w = load_quads(type, p + 32 * half);
            scales c = load_scales(type, scales_at, b, half);
            KERN_UNROLL for (size_t r = 0; r < n_rows; r++) s[r] = add_block(type, &w, &c, x + r * x_bytes, s[r]);
        }
        const uint8_t *last = x - n_rows * x_bytes;
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) y[r] = _mm256_fmadd_ps(s[r], scale_at(last + r * x_bytes), y[r]);
    }
    size_t at = 8 * half;
    if (j->n_out <= at) return;
    for (size_t r = 0; r < n_rows; r++) {
        float out[8];
        _mm256_storeu_ps(out, y[r]);
        memcpy(j->y + r * j->a->y_stride + at, out, kern_min_size(j->n_out - at, 8) * sizeof *out);
    }
}

KERN_INLINE void group_rows(uint32_t type, const group_job *j, size_t n_rows)
{
    for (size_t half = 0; half < 2; half++) {
        switch (n_rows) {
        case 8: half_rows(type, j, 8, half); break;
        case 4: half_rows(type, j, 4, half); break;
        case 2: half_rows(type, j, 2, half); break;
        default: half_rows(type, j, 1, half);
        }
    }
}

KERN_INLINE void dot(uint32_t type, const kern_pack_args *a)
{
    size_t row_bytes = a->n_cols / PACK_COLS * pack_x_bytes(pack_kind_of(type));
    for (size_t p = 0; p * PACK_ROWS < a->n_out; p++) {
        for (size_t row = 0, n; row < a->n_rows; row += n) {
            n = pack_group_rows(row, a->n_rows);
            group_job j = {.a = a, .panel = (const uint8_t *)a->panel + p * a->panel_bytes, .x = (const uint8_t *)a->x + row * row_bytes};
            j.y = a->y + row * a->y_stride + p * PACK_ROWS;
            j.n_out = kern_min_size(a->n_out - p * PACK_ROWS, PACK_ROWS);
            group_rows(type, &j, n);
        }
    }
}

#define PACK_DOT(name, type)                  \
    static void name(const kern_pack_args *a) \
    {                                         \
        dot(type, a);                         \
    }
PACK_DOT(dot_q8_0, QUANT_Q8_0)
PACK_DOT(dot_q4_0, QUANT_Q4_0)
PACK_DOT(dot_q4_1, QUANT_Q4_1)
PACK_DOT(dot_q5_0, QUANT_Q5_0)
PACK_DOT(dot_q5_1, QUANT_Q5_1)
PACK_DOT(dot_q4_k, QUANT_Q4_K)
PACK_DOT(dot_q5_k, QUANT_Q5_K)
PACK_DOT(dot_q6_k, QUANT_Q6_K)

KERN_INLINE __m256 absolute(__m256 v)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}

KERN_INLINE float largest_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

KERN_INLINE int32_t sum_of(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* 4 x 8 integers of -128 .. 127 as bytes, in order. */
KERN_INLINE void put_bytes(int8_t *to, const __m256i *v)
{
    __m256i a = _mm256_packs_epi32(v[0], v[1]), b = _mm256_packs_epi32(v[2], v[3]);
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)to, bytes);
}

static inline float largest_of(const float *x)
{
    __m256 most = _mm256_setzero_ps(), bad = most;
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m256 size = absolute(_mm256_loadu_ps(x + 8 * i));
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(size, _mm256_set1_ps(FLT_MAX), _CMP_NLE_UQ));
        most = _mm256_max_ps(most, size);
    }
    return _mm256_movemask_ps(bad) ? INFINITY : largest_lane(most);
}

/* The upper byte of v, so that the lower one is signed. */
KERN_INLINE __m256i upper(__m256i v)
{
    return _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(128)), 8);
}

KERN_INLINE __m256i lower(__m256i v)
{
    return _mm256_sub_epi32(v, _mm256_slli_epi32(upper(v), 8));
}

static inline void words_of(const float *x, float scale, float inverse, pack_words *out)
{
    __m256i high[4], low[4];
    int32_t sum[2] = {0, 0};
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
        sum[i / 2] += sum_of(v);
        high[i] = upper(v);
        low[i] = lower(v);
    }
    put_bytes(out->high, high);
    put_bytes(out->low, low);
    out->scale = scale;
    out->sum = (float)(sum[0] + sum[1]);
    out->unbias = -128 * (sum[0] + sum[1]);
    out->unbias_first = -128 * sum[0];
}

KERN_INLINE __m256 nearest(__m256 v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline void pairs_of(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, pack_pairs *out)
{
    const pack_lattice l = pack_lattice_of(kind);
    const __m256 by = _mm256_set1_ps(inverse), ratio = _mm256_set1_ps(l.ratio), a0 = _mm256_set1_ps(l.across[0]), a1 = _mm256_set1_ps(l.across[1]);
    __m256i high[4], low[4], sum = _mm256_setzero_si256();
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256 y0 = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by), y1 = _mm256_mul_ps(_mm256_loadu_ps(x + 16 + 8 * i), by);
        __m256 n = nearest(_mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(ratio, y0), y1), _mm256_set1_ps(1.0f / 256)));
        __m256 r0 = _mm256_sub_ps(y0, _mm256_mul_ps(n, a0)), r1 = _mm256_sub_ps(y1, _mm256_mul_ps(n, a1));
        __m256 m = nearest(_mm256_mul_ps(_mm256_add_ps(r0, _mm256_mul_ps(ratio, r1)), _mm256_set1_ps(l.along)));
        __m256i v0 = _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(n, a0), m)), v1 = _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(n, a1), _mm256_mul_ps(m, ratio)));
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(v0, v1));
        low[i] = low[i + 2] = lower(v0);
        high[i] = upper(v0);
        high[i + 2] = _mm256_srai_epi32(_mm256_sub_epi32(v1, _mm256_mullo_epi32(low[i], _mm256_set1_epi32(pack_ratio(kind)))), 8);
    }
    int8_t bytes[PACK_COLS];
    put_bytes(out->high, high);
    put_bytes(bytes, low);
    memcpy(out->low, bytes, sizeof out->low);
    int32_t total = sum_of(sum);
    out->scale = scale;
    out->sum = (float)(total * (1 << shift));
    out->unbias = total * (kind == PACK_PAIRS_16 ? -8 : -16);
    out->shift = shift;
}

static void x_row(const float *x, size_t n_cols, pack_kind kind, void *out, size_t step)
{
    pack_x_row((pack_x_ops){largest_of, words_of, pairs_of}, x, n_cols, kind, out, step);
}

void kern_fill_avx2_pack(kern_table *t)
{
    kern_fill_avx2_pack_few(t);
    t->pack_x = x_row;
    t->pack_dot[QUANT_Q8_0] = dot_q8_0;
    t->pack_dot[QUANT_Q4_0] = dot_q4_0;
    t->pack_dot[QUANT_Q4_1] = dot_q4_1;
    t->pack_dot[QUANT_Q5_0] = dot_q5_0;
    t->pack_dot[QUANT_Q5_1] = dot_q5_1;
    t->pack_dot[QUANT_Q4_K] = dot_q4_k;
    t->pack_dot[QUANT_Q5_K] = dot_q5_k;
    t->pack_dot[QUANT_Q6_K] = dot_q6_k;
}
