/* kern_avx512vnni_pack.c - products of packed weights and integer activations with AVX-512 VNNI (pack.h has the formats and the order of sums).
 *
 * A lane is an output.  vpdpbusd multiplies a quad of weights, unsigned, by four activations that come broadcast from memory.  The quads of a block are unpacked once for
 * up to 8 rows; what a row computes is the same whatever the number.  Bounds: memory for few rows (a panel's bytes once), for many the
 * 8 (fine: 16) vpdpbusd of a block and row, one a cycle. */
#include <float.h>
#include <immintrin.h>

#include "kern_avx512.h"
#include "pack.h"

/* Bytes of weights.  Measured on Zen 4: one thread reads at 0.61-0.74 of the sequential rate, with 6 KiB at 0.46-0.57; 64 KiB is no better. */
enum { AHEAD = 24576 };

/* The integers of one block. */
typedef struct quads {
    __m512i q[8];
} quads;

/* What a block multiplies its sums by: d of each half block (only Q6_K has two), and the minimum. */
typedef struct scales {
    __m512 d, d2, m;
} scales;

KERN_INLINE __m512i low_bits(__m512i v, int mask)
{
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}

/* a | (b & mask): one instruction. */
KERN_INLINE __m512i or_bits(__m512i a, __m512i b, int mask)
{
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8((char)mask), 0xf8);
}

/* Moves bit `from` of every byte, and those above it, to bit 4.  (Compilers disagree on the type of the shift: literals suit all.) */
KERN_INLINE __m512i moved_to_4(__m512i v, int from)
{
    switch (from) {
    case 0: return _mm512_slli_epi16(v, 4);
    case 1: return _mm512_slli_epi16(v, 3);
    case 2: return _mm512_slli_epi16(v, 2);
    case 3: return _mm512_slli_epi16(v, 1);
    case 5: return _mm512_srli_epi16(v, 1);
    case 6: return _mm512_srli_epi16(v, 2);
    case 7: return _mm512_srli_epi16(v, 3);
    default: return v;
    }
}

KERN_INLINE quads load_quads(uint32_t type, const uint8_t *p)
{
    quads w;
    if (type == QUANT_Q8_0) {
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = _mm512_load_si512(p + 64 * q);
        return w;
    }
    KERN_UNROLL for (int v = 0; v < 4; v++) {
        __m512i both = _mm512_load_si512(p + 64 * v);
        w.q[v] = low_bits(both, 15);
        w.q[v + 4] = low_bits(_mm512_srli_epi16(both, 4), 15);
    }
    if (type == QUANT_Q6_K) {
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = or_bits(w.q[q], moved_to_4(_mm512_load_si512(p + 256 + q / 4 * 64), q % 4 * 2), 0x30);
    } else if (pack_has_fifth_bits(type)) {
        __m512i plane = _mm512_load_si512(p + 256);
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = or_bits(w.q[q], moved_to_4(plane, q), 0x10);
    }
    return w;
}

KERN_INLINE __m512 halves_at(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)p));
}

KERN_INLINE __m512 bytes_at(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

KERN_INLINE __m512 signed_bytes_at(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

/* Of block b; p is the panel's scales. */
KERN_INLINE scales load_scales(uint32_t type, const uint8_t *p, size_t b)
{
    scales s;
    const uint8_t *super;
    size_t g = b % PACK_SUPER;
    s.d2 = s.m = _mm512_setzero_ps();
    switch (type) {
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        s.d = halves_at(p + 64 * b);
        s.m = halves_at(p + 64 * b + 32);
        return s;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        super = p + b / PACK_SUPER * 320;
        s.d = _mm512_mul_ps(halves_at(super), bytes_at(super + 64 + 32 * g));
        s.m = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(halves_at(super + 32), bytes_at(super + 80 + 32 * g)));
        return s;
    case QUANT_Q6_K:
        super = p + b / PACK_SUPER * 288;
        s.d = _mm512_mul_ps(halves_at(super), signed_bytes_at(super + 32 + 32 * g));
        s.d2 = _mm512_mul_ps(halves_at(super), signed_bytes_at(super + 48 + 32 * g));
        return s;
    default: s.d = halves_at(p + 32 * b); return s;
    }
}

/* Asks for the integers of one block, AHEAD bytes early: a panel is one stream, and the next panel follows it. */
KERN_INLINE void ask_for(const uint8_t *p, size_t bytes, kern_hint hint)
{
    const char *ahead = (const char *)p + AHEAD;
    if (hint == KERN_HINT_T1)
        for (size_t at = 0; at < bytes; at += 64) _mm_prefetch(ahead + at, _MM_HINT_T1);
    else if (hint == KERN_HINT_T0)
        for (size_t at = 0; at < bytes; at += 64) _mm_prefetch(ahead + at, _MM_HINT_T0);
}

/* Four activations in every lane. */
KERN_INLINE __m512i four_at(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* Sum over quads [from, from + n) of u * v. */
KERN_INLINE __m512i sum_quads(const quads *w, const pack_x *x, int from, int n, bool fine)
{
    __m512i high = _mm512_setzero_si512(), low = high;
    KERN_UNROLL for (int q = 0; q < n; q++) high = _mm512_dpbusd_epi32(high, w->q[from + q], four_at(x->hi + 4 * (from + q)));
    if (!fine) return high;
    KERN_UNROLL for (int q = 0; q < n; q++) low = _mm512_dpbusd_epi32(low, w->q[from + q], four_at(x->lo + 4 * (from + q)));
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

KERN_INLINE __m512 unbiased(uint32_t type, __m512i sum, __m512i sum_x)
{
    if (pack_bias_bits(type)) sum = _mm512_sub_epi32(sum, _mm512_slli_epi32(sum_x, (unsigned)pack_bias_bits(type)));
    return _mm512_cvtepi32_ps(sum);
}

KERN_INLINE __m512 add_block(uint32_t type, const quads *w, const scales *s, const pack_x *x, bool fine, __m512 y)
{
    __m512 scale = _mm512_set1_ps(x->scale);
    __m512i sum = _mm512_set1_epi32(x->sum);
    if (type == QUANT_Q6_K) {
        __m512i first = _mm512_set1_epi32(x->sum_first);
        y = _mm512_fmadd_ps(unbiased(type, sum_quads(w, x, 0, 4, fine), first), _mm512_mul_ps(s->d, scale), y);
        return _mm512_fmadd_ps(unbiased(type, sum_quads(w, x, 4, 4, fine), _mm512_sub_epi32(sum, first)), _mm512_mul_ps(s->d2, scale), y);
    }
    y = _mm512_fmadd_ps(unbiased(type, sum_quads(w, x, 0, 8, fine), sum), _mm512_mul_ps(s->d, scale), y);
    if (pack_has_minima(type)) y = _mm512_fmadd_ps(s->m, _mm512_set1_ps(x->scaled_sum), y);
    return y;
}

KERN_INLINE void panel_rows(uint32_t type, const kern_pack_args *a, bool fine, size_t n_rows)
{
    const size_t quad_bytes = pack_quad_bytes(type), x_bytes = fine ? PACK_X_FINE : PACK_X_COARSE;
    const kern_hint hint = a->tuning ? a->tuning->hint : KERN_TUNING_DEFAULT.hint;
    size_t n_blocks = a->n_cols / PACK_COLS;
    const uint8_t *p = a->panel, *s = p + n_blocks * quad_bytes, *x = a->x;
    __m512 y[8];
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) y[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++, p += quad_bytes) {
        if (n_rows < 8) ask_for(p, quad_bytes, hint);
        quads w = load_quads(type, p);
        scales sc = load_scales(type, s, b);
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++, x += x_bytes) y[r] = add_block(type, &w, &sc, (const pack_x *)(const void *)x, fine, y[r]);
    }
    __mmask16 outs = avx512_first(a->n_out);
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) _mm512_mask_storeu_ps(a->y + r * a->y_stride, outs, y[r]);
}

KERN_INLINE void panel(uint32_t type, const kern_pack_args *a, bool fine)
{
    switch (a->n_rows) {
    case 8: panel_rows(type, a, fine, 8); return;
    case 4: panel_rows(type, a, fine, 4); return;
    case 2: panel_rows(type, a, fine, 2); return;
    default: panel_rows(type, a, fine, 1);
    }
}

#define PACK_DOT(name, type)                       \
    static void name(const kern_pack_args *a)      \
    {                                              \
        if (a->fine) panel(type, a, true);         \
        else panel(type, a, false);                \
    }
PACK_DOT(dot_q8_0, QUANT_Q8_0)
PACK_DOT(dot_q4_0, QUANT_Q4_0)
PACK_DOT(dot_q4_1, QUANT_Q4_1)
PACK_DOT(dot_q5_0, QUANT_Q5_0)
PACK_DOT(dot_q5_1, QUANT_Q5_1)
PACK_DOT(dot_q4_k, QUANT_Q4_K)
PACK_DOT(dot_q5_k, QUANT_Q5_K)
PACK_DOT(dot_q6_k, QUANT_Q6_K)

/* One block of activations. */
static inline void quantise_block(const float *x, bool fine, pack_x *out)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16), largest = _mm512_set1_ps(FLT_MAX);
    if (_mm512_cmp_ps_mask(_mm512_abs_ps(a), largest, _CMP_NLE_UQ) | _mm512_cmp_ps_mask(_mm512_abs_ps(b), largest, _CMP_NLE_UQ)) {
        pack_x_broken(out, fine);
        return;
    }
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    float steps = fine ? 32512.0f : 127.0f, inverse = most > PACK_LEAST ? steps / most : 0.0f;
    __m512 scale = _mm512_set1_ps(inverse);
    __m512i va = _mm512_cvtps_epi32(_mm512_mul_ps(a, scale)), vb = _mm512_cvtps_epi32(_mm512_mul_ps(b, scale));
    out->scale = most > PACK_LEAST ? most / steps : 0.0f;
    out->sum_first = _mm512_reduce_add_epi32(va);
    out->sum = out->sum_first + _mm512_reduce_add_epi32(vb);
    out->scaled_sum = out->scale * (float)out->sum;
    __m512i half = _mm512_set1_epi32(128), ha = va, hb = vb;
    if (fine) ha = _mm512_srai_epi32(_mm512_add_epi32(va, half), 8), hb = _mm512_srai_epi32(_mm512_add_epi32(vb, half), 8);
    _mm_storeu_si128((__m128i *)(void *)out->hi, _mm512_cvtepi32_epi8(ha));
    _mm_storeu_si128((__m128i *)(void *)(out->hi + 16), _mm512_cvtepi32_epi8(hb));
    if (!fine) return;
    _mm_storeu_si128((__m128i *)(void *)out->lo, _mm512_cvtepi32_epi8(_mm512_sub_epi32(va, _mm512_slli_epi32(ha, 8))));
    _mm_storeu_si128((__m128i *)(void *)(out->lo + 16), _mm512_cvtepi32_epi8(_mm512_sub_epi32(vb, _mm512_slli_epi32(hb, 8))));
}

static void pack_x_row(const float *x, size_t n_cols, bool fine, void *out, size_t step)
{
    uint8_t *to = out;
    for (size_t k = 0; k < n_cols; k += PACK_COLS, to += step) quantise_block(x + k, fine, (pack_x *)(void *)to);
}

void kern_fill_avx512vnni_pack(kern_table *t)
{
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
