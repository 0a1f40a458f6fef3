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

/* times * the sum over quads [from, from + n) of u * v, v bytes; widened every `step` quads, before the sums of 16 bits could overflow. */
KERN_INLINE __m256i sum_bytes(const __m256i *w, const int8_t *v, int from, int n, int step, short times)
{
    __m256i sum = _mm256_setzero_si256();
    KERN_UNROLL for (int at = from; at < from + n; at += step) {
        __m256i pairs = _mm256_maddubs_epi16(w[at], four_at(v + 4 * at));
        KERN_UNROLL for (int q = at + 1; q < at + step; q++) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[q], four_at(v + 4 * q)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(times)));
    }
    return sum;
}

KERN_INLINE __m256i sum_plane(uint32_t type, const quads *w, const int8_t *v, int from, int n)
{
    if (type == QUANT_Q8_0) return _mm256_add_epi32(sum_bytes(w->q, v, from, n, 8, 1), sum_bytes(w->high, v, from, n, 8, 16));
    return sum_bytes(w->q, v, from, n, type == QUANT_Q6_K ? 2 : pack_has_fifth_bits(type) ? 4 : 8, 1);
}

/* unbias is -128 times the sum of v. */
KERN_INLINE __m256 sum_quads(uint32_t type, const quads *w, const pack_x *x, int from, int n, bool fine, int32_t unbias)
{
    __m256i sum = sum_plane(type, w, x->hi, from, n);
    if (fine) sum = _mm256_add_epi32(_mm256_slli_epi32(sum, 8), sum_plane(type, w, x->lo, from, n));
    if (pack_bias_bits(type)) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(unbias >> (7 - pack_bias_bits(type))));
    return _mm256_cvtepi32_ps(sum);
}

KERN_INLINE __m256 add_block(uint32_t type, const quads *w, const scales *c, const pack_x *x, bool fine, __m256 s)
{
    if (type == QUANT_Q6_K) {
        s = _mm256_fmadd_ps(sum_quads(type, w, x, 0, 4, fine, x->unbias_first), c->d, s);
        return _mm256_fmadd_ps(sum_quads(type, w, x, 4, 4, fine, x->unbias - x->unbias_first), c->d2, s);
    }
    s = _mm256_fmadd_ps(sum_quads(type, w, x, 0, 8, fine, x->unbias), c->d, s);
    return pack_has_minima(type) ? _mm256_fmadd_ps(c->m, _mm256_set1_ps(x->sum), s) : s;
}

/* A group of rows by one panel. */
typedef struct group_job {
    const kern_pack_args *a;
    const uint8_t *panel, *x;
    float *y;
    size_t n_out;
} group_job;

KERN_INLINE void half_rows(uint32_t type, const group_job *j, bool fine, size_t n_rows, size_t half)
{
    const size_t quad_bytes = pack_quad_bytes(type), x_bytes = fine ? PACK_X_FINE : PACK_X_COARSE;
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
            KERN_UNROLL for (size_t r = 0; r < n_rows; r++) s[r] = add_block(type, &w, &c, (const pack_x *)(const void *)(x + r * x_bytes), fine, s[r]);
        }
        const uint8_t *last = x - n_rows * x_bytes;
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++)
            y[r] = _mm256_fmadd_ps(s[r], _mm256_set1_ps(((const pack_x *)(const void *)(last + r * x_bytes))->scale), y[r]);
    }
    size_t at = 8 * half;
    if (j->n_out <= at) return;
    for (size_t r = 0; r < n_rows; r++) {
        float out[8];
        _mm256_storeu_ps(out, y[r]);
        memcpy(j->y + r * j->a->y_stride + at, out, kern_min_size(j->n_out - at, 8) * sizeof *out);
    }
}

KERN_INLINE void group_rows(uint32_t type, const group_job *j, bool fine, size_t n_rows)
{
    for (size_t half = 0; half < 2; half++) {
        switch (n_rows) {
        case 8: half_rows(type, j, fine, 8, half); break;
        case 4: half_rows(type, j, fine, 4, half); break;
        case 2: half_rows(type, j, fine, 2, half); break;
        default: half_rows(type, j, fine, 1, half);
        }
    }
}

KERN_INLINE void dot(uint32_t type, const kern_pack_args *a, bool fine)
{
    size_t row_bytes = a->n_cols / PACK_COLS * (fine ? PACK_X_FINE : PACK_X_COARSE);
    for (size_t p = 0; p * PACK_ROWS < a->n_out; p++) {
        for (size_t row = 0, n; row < a->n_rows; row += n) {
            n = pack_group_rows(row, a->n_rows);
            group_job j = {.a = a, .panel = (const uint8_t *)a->panel + p * a->panel_bytes, .x = (const uint8_t *)a->x + row * row_bytes};
            j.y = a->y + row * a->y_stride + p * PACK_ROWS;
            j.n_out = kern_min_size(a->n_out - p * PACK_ROWS, PACK_ROWS);
            group_rows(type, &j, fine, n);
        }
    }
}

#define PACK_DOT(name, type)                  \
    static void name(const kern_pack_args *a) \
    {                                         \
        if (a->fine) dot(type, a, true);      \
        else dot(type, a, false);             \
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

KERN_INLINE float largest_of(__m256 v)
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

/* The largest size of n_blocks blocks, or infinity when one of them is no finite number. */
static inline float largest_in(const float *x, size_t n_blocks)
{
    __m256 most = _mm256_setzero_ps(), bad = most;
    for (size_t i = 0; i < 4 * n_blocks; i++) {
        __m256 size = absolute(_mm256_loadu_ps(x + 8 * i));
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(size, _mm256_set1_ps(FLT_MAX), _CMP_NLE_UQ));
        most = _mm256_max_ps(most, size);
    }
    return _mm256_movemask_ps(bad) ? INFINITY : largest_of(most);
}

static inline void quantise_block(const float *x, float scale, float inverse, bool fine, pack_x *out)
{
    __m256i v[4], high[4];
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
        high[i] = fine ? _mm256_srai_epi32(_mm256_add_epi32(v[i], _mm256_set1_epi32(128)), 8) : v[i];
    }
    int32_t first = sum_of(_mm256_add_epi32(v[0], v[1])), sum = first + sum_of(_mm256_add_epi32(v[2], v[3]));
    out->scale = scale;
    out->sum = (float)sum;
    out->unbias = -128 * sum;
    out->unbias_first = -128 * first;
    put_bytes(out->hi, high);
    if (!fine) return;
    KERN_UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_sub_epi32(v[i], _mm256_slli_epi32(high[i], 8));
    put_bytes(out->lo, v);
}

static void pack_x_row(const float *x, size_t n_cols, bool fine, void *out, size_t step)
{
    uint8_t *to = out;
    for (size_t left = n_cols / PACK_COLS; left;) {
        size_t n = kern_min_size(left, PACK_SUPER);
        float most = largest_in(x, n), scale = pack_x_scale(most, fine), inverse = pack_x_inverse(most, fine);
        for (left -= n; n; n--, x += PACK_COLS, to += step) {
            if (most > FLT_MAX) pack_x_broken((pack_x *)(void *)to, fine);
            else quantise_block(x, scale, inverse, fine, (pack_x *)(void *)to);
        }
    }
}

void kern_fill_avx2_pack(kern_table *t)
{
    kern_fill_avx2_pack_few(t);
    t->pack_x = pack_x_row;
    t->pack_dot[QUANT_Q8_0] = dot_q8_0;
    t->pack_dot[QUANT_Q4_0] = dot_q4_0;
    t->pack_dot[QUANT_Q4_1] = dot_q4_1;
    t->pack_dot[QUANT_Q5_0] = dot_q5_0;
    t->pack_dot[QUANT_Q5_1] = dot_q5_1;
    t->pack_dot[QUANT_Q4_K] = dot_q4_k;
    t->pack_dot[QUANT_Q5_K] = dot_q5_k;
    t->pack_dot[QUANT_Q6_K] = dot_q6_k;
}
