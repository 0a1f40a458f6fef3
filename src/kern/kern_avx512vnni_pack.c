/* kern_avx512vnni_pack.c - products of packed weights and integer activations with AVX-512 VNNI (pack.h has the formats and the order of sums).
 *
 * A lane is an output.  vpdpbusd multiplies a quad of weights, unsigned, by four activations that are the same in every lane.  There are two ways, with the same bits.
 * Few rows: a panel's weights are unpacked in registers as they come from memory, which is the limit.  Many rows: PACK_SUPER blocks of two panels are unpacked into
 * L1 once, and tiles of 4 rows by 2 panels run over them; the limit are the 16 (pairs: 12) vpdpbusd of a block, row and panel, one a cycle.  A broadcast serves both panels
 * because loads come one a cycle too. */
#include <float.h>
#include <immintrin.h>

#include "kern_avx512.h"
#include "kern_avx512vnni.h"
#include "kern_pack_ask.h"
#include "pack.h"

/* The integers of one block; of types that take pairs, pair[v] is q[v] + ratio * q[v + 4]. */
typedef struct quads {
    __m512i q[8], pair[4];
} quads;

/* What a block multiplies its sums by: d, for Q6_K of each half block, and the minimum. */
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
        w.pair[v] = both;
    }
    if (type == QUANT_Q6_K) {
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = or_bits(w.q[q], moved_to_4(_mm512_load_si512(p + 256 + q / 4 * 64), q % 4 * 2), 0x30);
    } else if (pack_has_fifth_bits(type)) {
        __m512i plane = _mm512_load_si512(p + 256);
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = or_bits(w.q[q], moved_to_4(plane, q), 0x10);
        KERN_UNROLL for (int v = 0; v < 4; v++) w.pair[v] = _mm512_add_epi8(w.q[v], _mm512_sub_epi8(_mm512_slli_epi16(w.q[v + 4], 3), w.q[v + 4]));
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

/* Four activations in every lane. */
KERN_INLINE __m512i four_at(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* The sum over n quads of u * v. */
KERN_INLINE __m512i sum_quads(const __m512i *w, const int8_t *v, const int n)
{
    __m512i sum = _mm512_setzero_si512();
    KERN_UNROLL for (int q = 0; q < n; q++) sum = _mm512_dpbusd_epi32(sum, w[q], four_at(v + 4 * q));
    return sum;
}

/* high is in units of 256. */
KERN_INLINE __m512i put_together(__m512i high, __m512i low)
{
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

/* ------------------------------------------------------------------------------------------- few rows ---- */

/* The sum over quads [from, from + n), from what takes 128 off. */
KERN_INLINE __m512 few_words(uint32_t type, const quads *w, const pack_words *x, const int from, const int n, int32_t unbias)
{
    __m512i sum = put_together(sum_quads(w->q + from, x->high + 4 * from, n), sum_quads(w->q + from, x->low + 4 * from, n));
    return _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(unbias >> (7 - pack_bias_bits(type)))));
}

KERN_INLINE __m512 few_pairs(uint32_t type, const quads *w, const pack_pairs *x)
{
    __m512i sum = put_together(sum_quads(w->q, x->high, 8), sum_quads(w->pair, x->low, 4));
    if (pack_bias_bits(type)) sum = _mm512_add_epi32(sum, _mm512_set1_epi32(x->unbias));
    return _mm512_cvtepi32_ps(_mm512_sllv_epi32(sum, _mm512_set1_epi32(x->shift)));
}

KERN_INLINE __m512 add_block(uint32_t type, const quads *w, const scales *c, const uint8_t *at, __m512 s)
{
    if (pack_kind_of(type) == PACK_WORDS) {
        const pack_words *x = (const pack_words *)(const void *)at;
        if (type != QUANT_Q6_K) return _mm512_fmadd_ps(few_words(type, w, x, 0, 8, x->unbias), c->d, s);
        s = _mm512_fmadd_ps(few_words(type, w, x, 0, 4, x->unbias_first), c->d, s);
        return _mm512_fmadd_ps(few_words(type, w, x, 4, 4, x->unbias - x->unbias_first), c->d2, s);
    }
    const pack_pairs *x = (const pack_pairs *)(const void *)at;
    s = _mm512_fmadd_ps(few_pairs(type, w, x), c->d, s);
    return pack_has_minima(type) ? _mm512_fmadd_ps(c->m, _mm512_set1_ps(x->sum), s) : s;
}

/* The scale lies in front of both kinds. */
KERN_INLINE __m512 scale_at(const uint8_t *x)
{
    float scale;
    memcpy(&scale, x, sizeof scale);
    return _mm512_set1_ps(scale);
}

/* A group of n_rows by one panel. */
typedef struct few_job {
    const kern_pack_args *a;
    const uint8_t *panel, *x;
    float *y;
    size_t n_out;
} few_job;

KERN_INLINE void few_rows(uint32_t type, const few_job *j, const size_t n_rows)
{
    const size_t quad_bytes = pack_quad_bytes(type), x_bytes = pack_x_bytes(pack_kind_of(type));
    size_t n_blocks = j->a->n_cols / PACK_COLS;
    const uint8_t *p = j->panel, *scales_at = p + n_blocks * quad_bytes, *x = j->x;
    kern_ask ask = kern_ask_from(p, j->a->tuning);
    __m512 y[4];
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) y[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks;) {
        size_t end = kern_min_size(b + PACK_SUPER, n_blocks);
        __m512 s[4];
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) s[r] = _mm512_setzero_ps();
        for (; b < end; b++, p += quad_bytes, x += n_rows * x_bytes) {
            kern_ask_on(&ask, quad_bytes, pack_scale_bytes(type));
            quads w = load_quads(type, p);
            scales c = load_scales(type, scales_at, b);
            KERN_UNROLL for (size_t r = 0; r < n_rows; r++) s[r] = add_block(type, &w, &c, x + r * x_bytes, s[r]);
        }
        const uint8_t *last = x - n_rows * x_bytes;
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) y[r] = _mm512_fmadd_ps(s[r], scale_at(last + r * x_bytes), y[r]);
    }
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) _mm512_mask_storeu_ps(j->y + r * j->a->y_stride, avx512_first(j->n_out), y[r]);
}

/* ------------------------------------------------------------------------------------------- many rows ---- */

enum { PANELS = 2, TILE_ROWS = 4, GROUP = 8 };

/* PACK_SUPER blocks of both panels: quads, words with a bias of 128, and behind the eight of pairs the four summed ones; scales as floats, of Q6_K those of each half block. */
typedef struct unpacked {
    uint8_t quads[PACK_SUPER][PANELS][12][64];
    float d[PACK_SUPER][PANELS][PACK_ROWS], d2[PACK_SUPER][PANELS][PACK_ROWS]; /* m in place of d2 */
} unpacked;

KERN_INLINE void unpack(uint32_t type, const uint8_t *panel, size_t n_blocks, size_t from, size_t n, size_t slot, unpacked *to)
{
    const bool words = pack_kind_of(type) == PACK_WORDS;
    const uint8_t *p = panel + from * pack_quad_bytes(type), *scales_at = panel + n_blocks * pack_quad_bytes(type);
    const __m512i lift = _mm512_set1_epi8((char)(words ? 128 - (1 << pack_bias_bits(type)) : 0));
    for (size_t b = 0; b < n; b++, p += pack_quad_bytes(type)) {
        quads w = load_quads(type, p);
        scales c = load_scales(type, scales_at, from + b);
        KERN_UNROLL for (int q = 0; q < 8; q++) _mm512_store_si512(to->quads[b][slot][q], _mm512_add_epi8(w.q[q], lift));
        KERN_UNROLL for (int v = 0; v < 4 && !words; v++) _mm512_store_si512(to->quads[b][slot][8 + v], w.pair[v]);
        _mm512_store_ps(to->d[b][slot], c.d);
        _mm512_store_ps(to->d2[b][slot], pack_has_minima(type) ? c.m : c.d2);
    }
}

/* Rows of a tile; x is the first block of its first row. */
typedef struct tile {
    const unpacked *w;
    size_t n_blocks; /* 1 .. PACK_SUPER */
    const uint8_t *x;
    size_t step; /* from one block of x to the next */
    float *y;
    size_t y_stride;
    __mmask16 outs[PANELS];
    bool first; /* y is yet to be written */
} tile;

/* One row, sums over n quads of both panels, times d and added to s.  Written in the order of use: each broadcast serves both panels and is gone. */
KERN_INLINE void add_half_block(__m512i w[PANELS][8], const pack_words *v, const int from, __m512i unbias, const float d[PANELS][PACK_ROWS], __m512 *s)
{
    __m512i low[PANELS] = {unbias, unbias}, high[PANELS] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    KERN_UNROLL for (int q = from; q < from + 4; q++) {
        __m512i four = four_at(v->high + 4 * q);
        KERN_UNROLL for (int p = 0; p < PANELS; p++) high[p] = _mm512_dpbusd_epi32(high[p], w[p][q], four);
        four = four_at(v->low + 4 * q);
        KERN_UNROLL for (int p = 0; p < PANELS; p++) low[p] = _mm512_dpbusd_epi32(low[p], w[p][q], four);
    }
    KERN_UNROLL for (int p = 0; p < PANELS; p++) s[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(put_together(high[p], low[p])), _mm512_load_ps(d[p]), s[p]);
}

/* Q6_K: sums end after half a block, so rows follow each other and the weights stay. */
KERN_INLINE void add_half_words_tile(const unpacked *u, size_t b, const uint8_t *x, __m512 s[TILE_ROWS][PANELS])
{
    __m512i w[PANELS][8];
    KERN_UNROLL for (int p = 0; p < PANELS; p++)
        KERN_UNROLL for (int q = 0; q < 8; q++) w[p][q] = _mm512_load_si512(u->quads[b][p][q]);
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
        const pack_words *v = (const pack_words *)(const void *)x + r;
        __m512i unbias = _mm512_set1_epi32(v->unbias), first = _mm512_set1_epi32(v->unbias_first);
        add_half_block(w, v, 0, first, u->d[b], s[r]);
        add_half_block(w, v, 4, _mm512_sub_epi32(unbias, first), u->d2[b], s[r]);
    }
}

/* Q8_0: a quad goes by for all rows and both bytes of their activations, sixteen sums of which none waits for another (2 % over rows one after the other; Q6_K loses as much). */
KERN_INLINE void add_words_tile(const unpacked *u, size_t b, const uint8_t *x, __m512 s[TILE_ROWS][PANELS])
{
    const pack_words *v = (const pack_words *)(const void *)x;
    __m512i low[TILE_ROWS][PANELS], high[TILE_ROWS][PANELS];
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++)
        KERN_UNROLL for (int p = 0; p < PANELS; p++) low[r][p] = _mm512_set1_epi32(v[r].unbias), high[r][p] = _mm512_setzero_si512();
    KERN_UNROLL for (int q = 0; q < 8; q++) {
        __m512i w[PANELS];
        KERN_UNROLL for (int p = 0; p < PANELS; p++) w[p] = _mm512_load_si512(u->quads[b][p][q]);
        KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            __m512i four = four_at(v[r].high + 4 * q);
            KERN_UNROLL for (int p = 0; p < PANELS; p++) dot_bytes(high[r][p], w[p], four);
            four = four_at(v[r].low + 4 * q);
            KERN_UNROLL for (int p = 0; p < PANELS; p++) dot_bytes(low[r][p], w[p], four);
        }
    }
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++)
        KERN_UNROLL for (int p = 0; p < PANELS; p++)
            s[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(put_together(high[r][p], low[r][p])), _mm512_load_ps(u->d[b][p]), s[r][p]);
}

/* Adds the sums over n quads; v is of the first row. */
KERN_INLINE void add_pair_quads(const uint8_t w[PANELS][12][64], const int from, const int8_t *v, const int n, __m512i sum[TILE_ROWS][PANELS])
{
    KERN_UNROLL for (int q = 0; q < n; q++) {
        __m512i u[PANELS];
        KERN_UNROLL for (int p = 0; p < PANELS; p++) u[p] = _mm512_load_si512(w[p][from + q]);
        KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            __m512i four = four_at(v + (size_t)r * sizeof(pack_pairs) + 4 * q);
            KERN_UNROLL for (int p = 0; p < PANELS; p++) dot_bytes(sum[r][p], u[p], four);
        }
    }
}

/* Three planes of weights do not fit the registers: a quad goes by for all rows, whose sums stay. */
KERN_INLINE void add_pairs_tile(uint32_t type, const unpacked *u, size_t b, const uint8_t *x, __m512 s[TILE_ROWS][PANELS])
{
    const pack_pairs *v = (const pack_pairs *)(const void *)x;
    __m512i sum[TILE_ROWS][PANELS];
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    add_pair_quads(u->quads[b], 0, v->high, 8, sum);
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++)
        KERN_UNROLL for (int p = 0; p < PANELS; p++) sum[r][p] = _mm512_slli_epi32(sum[r][p], 8);
    add_pair_quads(u->quads[b], 8, v->low, 4, sum);
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++, v++) {
        KERN_UNROLL for (int p = 0; p < PANELS; p++) {
            if (pack_bias_bits(type)) sum[r][p] = _mm512_add_epi32(sum[r][p], _mm512_set1_epi32(v->unbias));
            __m512 shifted = _mm512_cvtepi32_ps(_mm512_sllv_epi32(sum[r][p], _mm512_set1_epi32(v->shift)));
            s[r][p] = _mm512_fmadd_ps(shifted, _mm512_load_ps(u->d[b][p]), s[r][p]);
            if (pack_has_minima(type)) s[r][p] = _mm512_fmadd_ps(_mm512_load_ps(u->d2[b][p]), _mm512_set1_ps(v->sum), s[r][p]);
        }
    }
}

KERN_INLINE void run_tile(uint32_t type, const tile *t)
{
    const uint8_t *x = t->x;
    __m512 s[TILE_ROWS][PANELS];
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++) s[r][0] = s[r][1] = _mm512_setzero_ps();
    for (size_t b = 0; b < t->n_blocks; b++, x += t->step) {
        if (type == QUANT_Q6_K) add_half_words_tile(t->w, b, x, s);
        else if (pack_kind_of(type) == PACK_WORDS) add_words_tile(t->w, b, x, s);
        else add_pairs_tile(type, t->w, b, x, s);
    }
    KERN_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
        __m512 scale = scale_at(t->x + (size_t)r * pack_x_bytes(pack_kind_of(type)));
        KERN_UNROLL for (int p = 0; p < PANELS; p++) {
            float *y = t->y + (size_t)r * t->y_stride + p * PACK_ROWS;
            __m512 before = t->first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(t->outs[p], y);
            _mm512_mask_storeu_ps(y, t->outs[p], _mm512_fmadd_ps(s[r][p], scale, before));
        }
    }
}

/* The groups of 8 rows. */
KERN_INLINE void many_rows(uint32_t type, const kern_pack_args *a)
{
    const size_t x_bytes = pack_x_bytes(pack_kind_of(type));
    size_t n_blocks = a->n_cols / PACK_COLS, row_bytes = n_blocks * x_bytes;
    const uint8_t *panel = a->panel, *second = a->n_out > PACK_ROWS ? panel + a->panel_bytes : panel; /* its outputs are masked where there is none */
    _Alignas(64) unpacked w;
    tile t = {.w = &w, .step = GROUP * x_bytes, .y_stride = a->y_stride};
    t.outs[0] = avx512_first(kern_min_size(a->n_out, PACK_ROWS));
    t.outs[1] = avx512_first(a->n_out > PACK_ROWS ? a->n_out - PACK_ROWS : 0);
    for (size_t from = 0; from < n_blocks; from += PACK_SUPER) {
        t.n_blocks = kern_min_size(PACK_SUPER, n_blocks - from);
        t.first = from == 0;
        unpack(type, panel, n_blocks, from, t.n_blocks, 0, &w);
        unpack(type, second, n_blocks, from, t.n_blocks, 1, &w);
        for (size_t row = 0; row + GROUP <= a->n_rows; row += GROUP) {
            for (size_t r = 0; r < GROUP; r += TILE_ROWS) {
                t.x = (const uint8_t *)a->x + row * row_bytes + from * GROUP * x_bytes + r * x_bytes;
                t.y = a->y + (row + r) * a->y_stride;
                run_tile(type, &t);
            }
        }
    }
}

KERN_INLINE void dot(uint32_t type, const kern_pack_args *a)
{
    size_t row = a->n_rows / GROUP * GROUP, row_bytes = a->n_cols / PACK_COLS * pack_x_bytes(pack_kind_of(type));
    if (row) many_rows(type, a);
    for (size_t n; row < a->n_rows; row += n) {
        n = pack_group_rows(row, a->n_rows);
        for (size_t p = 0; p * PACK_ROWS < a->n_out; p++) {
            few_job j = {.a = a, .panel = (const uint8_t *)a->panel + p * a->panel_bytes, .x = (const uint8_t *)a->x + row * row_bytes};
            j.y = a->y + row * a->y_stride + p * PACK_ROWS;
            j.n_out = kern_min_size(a->n_out - p * PACK_ROWS, PACK_ROWS);
            if (n == 4) few_rows(type, &j, 4);
            else if (n == 2) few_rows(type, &j, 2);
            else few_rows(type, &j, 1);
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

static inline float largest_of(const float *x)
{
    __m512 a = _mm512_abs_ps(_mm512_loadu_ps(x)), b = _mm512_abs_ps(_mm512_loadu_ps(x + 16)), most = _mm512_set1_ps(FLT_MAX);
    __mmask16 bad = _mm512_cmp_ps_mask(a, most, _CMP_NLE_UQ) | _mm512_cmp_ps_mask(b, most, _CMP_NLE_UQ);
    return bad ? INFINITY : _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

static inline void put_bytes(int8_t *to, __m512i v)
{
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(v));
}

/* The upper byte of v, so that the lower one is signed. */
KERN_INLINE __m512i upper(__m512i v)
{
    return _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
}

static inline void words_of(const float *x, float scale, float inverse, void *to)
{
    pack_words *out = to;
    int32_t sum[2];
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(inverse)));
        sum[i] = _mm512_reduce_add_epi32(v);
        put_bytes(out->high + 16 * i, upper(v));
        put_bytes(out->low + 16 * i, v);
    }
    out->scale = scale;
    out->sum = (float)(sum[0] + sum[1]);
    out->unbias = -128 * (sum[0] + sum[1]);
    out->unbias_first = -128 * sum[0];
}

static inline void pairs_of(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *to)
{
    pack_pairs *out = to;
    const pack_lattice l = pack_lattice_of(kind);
    const __m512 by = _mm512_set1_ps(inverse), ratio = _mm512_set1_ps(l.ratio), a0 = _mm512_set1_ps(l.across[0]), a1 = _mm512_set1_ps(l.across[1]);
    __m512 y0 = _mm512_mul_ps(_mm512_loadu_ps(x), by), y1 = _mm512_mul_ps(_mm512_loadu_ps(x + 16), by);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_mul_ps(ratio, y0), y1), _mm512_set1_ps(1.0f / 256)), 0);
    __m512 r0 = _mm512_sub_ps(y0, _mm512_mul_ps(n, a0)), r1 = _mm512_sub_ps(y1, _mm512_mul_ps(n, a1));
    __m512 m = _mm512_roundscale_ps(_mm512_mul_ps(_mm512_add_ps(r0, _mm512_mul_ps(ratio, r1)), _mm512_set1_ps(l.along)), 0);
    __m512i v0 = _mm512_cvtps_epi32(_mm512_add_ps(_mm512_mul_ps(n, a0), m)), v1 = _mm512_cvtps_epi32(_mm512_add_ps(_mm512_mul_ps(n, a1), _mm512_mul_ps(m, ratio)));
    __m512i low = _mm512_sub_epi32(v0, _mm512_slli_epi32(upper(v0), 8));
    int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(v0, v1));
    put_bytes(out->high, upper(v0));
    put_bytes(out->high + 16, _mm512_srai_epi32(_mm512_sub_epi32(v1, _mm512_mullo_epi32(low, _mm512_set1_epi32(pack_ratio(kind)))), 8));
    put_bytes(out->low, low);
    out->scale = scale;
    out->sum = (float)(sum * (1 << shift));
    out->unbias = sum * (kind == PACK_PAIRS_16 ? -8 : -16);
    out->shift = shift;
}

static void x_row(const float *x, size_t n_cols, pack_kind kind, void *out, size_t step)
{
    pack_x_row((pack_x_ops){largest_of, words_of, pairs_of}, x, n_cols, kind, out, step);
}

void kern_fill_avx512vnni_pack(kern_table *t)
{
    kern_fill_avx512_pack_few(t);
    t->pack_form = PACK_SPLIT;
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
