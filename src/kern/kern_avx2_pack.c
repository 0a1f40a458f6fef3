/* kern_avx2_pack.c - products of packed weights and integer activations with AVX2: the bits of pack.h's formula without VNNI.
 *
 * A lane is an output, a panel two vectors of 8.  Activations are whole: 16-bit weights, even columns of a quad and odd ones, times pairs of them by vpmaddwd, which adds
 * two products in 32 bits.  No sum over a block overflows: 255 * 32767 * 32 < 2^31.  (vpmaddubsw takes twice as many columns but only a byte of each activation, and saturates.)
 *
 * Few rows take the weights as they are read.  Groups of eight take them from a copy made once for MANY_ROWS rows: columns as 16-bit integers, scales as floats. */
#include <float.h>
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kern_pack_ask.h"
#include "pack.h"

enum {
    HALVES = 2,     /* vectors of a panel's outputs */
    QUADS = PACK_COLS / 4,
    TILE_ROWS = 4,  /* by HALVES: as many sums as registers hold beside the operands */
    MANY_ROWS = 64, /* of a copy, which by then costs nothing */
};

/* Makes v a value of its own in a register: otherwise gcc makes one tree of a block's sums, and stores the products until it is done, or loads nibbles again for each
 * mask. */
#define KEPT(v) __asm__("" : "+x"(v))

/* Of a block of a row, of either kind. */
enum { X_BYTES = sizeof(pack_whole_words) };
_Static_assert(sizeof(pack_whole_pairs) == X_BYTES && offsetof(pack_whole_pairs, v) == offsetof(pack_whole_words, v), "both kinds alike");

/* Four columns of 8 outputs as 16-bit integers: 0 and 2, 1 and 3. */
typedef struct columns {
    __m256i even, odd;
} columns;

typedef struct scales {
    __m256 d, d2, m;
} scales;

/* A block of a panel, ready for many rows. */
typedef struct ready {
    columns w[QUADS][HALVES];
    scales c[HALVES];
} ready;

KERN_INLINE __m256i vector_at(const uint8_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

KERN_INLINE __m256i low_bits(__m256i v, int mask)
{
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}

/* Moves bit `from` of every byte, and those above it, to bit 4. */
KERN_INLINE __m256i moved_to_4(__m256i v, int from)
{
    return from < 4 ? _mm256_slli_epi16(v, 4 - from) : from > 4 ? _mm256_srli_epi16(v, from - 4) : v;
}

/* Quad q of the block whose integers start at p, outputs 8 half .. 8 half + 7. */
KERN_INLINE columns load_columns(uint32_t type, const uint8_t *p, int q, int half)
{
    p += 32 * half;
    __m256i w = vector_at(p + 64 * (type == QUANT_Q8_0 ? q : q % 4));
    if (type != QUANT_Q8_0) {
        const __m256i nibble = _mm256_set1_epi16(15);
        if (type != QUANT_Q6_K && !pack_has_fifth_bits(type)) {
            if (q < 4) return (columns){_mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16(w, 8), nibble)};
            return (columns){_mm256_and_si256(_mm256_srli_epi16(w, 4), nibble), _mm256_srli_epi16(w, 12)};
        }
        w = low_bits(q < 4 ? w : _mm256_srli_epi16(w, 4), 15);
        __m256i more = type == QUANT_Q6_K ? moved_to_4(vector_at(p + 256 + q / 4 * 64), q % 4 * 2) : moved_to_4(vector_at(p + 256), q);
        w = _mm256_or_si256(w, low_bits(more, type == QUANT_Q6_K ? 0x30 : 0x10));
    }
    return (columns){_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16(w, 8)};
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

KERN_INLINE bool has_supers(uint32_t type)
{
    return type == QUANT_Q4_K || type == QUANT_Q5_K || type == QUANT_Q6_K;
}

/* What PACK_SUPER blocks share: those of block b, outputs 8 half .. 8 half + 7; p is the panel's scales. */
KERN_INLINE scales load_super(uint32_t type, const uint8_t *p, size_t b, size_t half)
{
    scales s;
    s.d = s.d2 = s.m = _mm256_setzero_ps();
    if (!has_supers(type)) return s;
    p += b * pack_scale_bytes(type) + 16 * half;
    s.d = halves_at(p);
    if (type != QUANT_Q6_K) s.m = halves_at(p + 32);
    return s;
}

/* Of block b; m is what pack.h subtracts in the types with super-blocks, and adds in the others. */
KERN_INLINE scales load_scales(uint32_t type, const uint8_t *p, const scales *super, size_t b, size_t half)
{
    scales s = *super;
    if (!has_supers(type)) {
        p += b * pack_scale_bytes(type) + 16 * half;
        s.d = halves_at(p);
        if (pack_has_minima(type)) s.m = halves_at(p + 32);
        return s;
    }
    p += b / PACK_SUPER * PACK_SUPER * pack_scale_bytes(type) + (type == QUANT_Q6_K ? 32 : 64) + 32 * (b % PACK_SUPER) + 8 * half;
    if (type == QUANT_Q6_K) {
        s.d2 = _mm256_mul_ps(s.d, signed_bytes_at(p + 16));
        s.d = _mm256_mul_ps(s.d, signed_bytes_at(p));
    } else {
        s.d = _mm256_mul_ps(s.d, bytes_at(p));
        s.m = _mm256_mul_ps(s.m, bytes_at(p + 16));
    }
    return s;
}

KERN_INLINE __m256i int_at(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

KERN_INLINE __m256 float_at(const void *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_ps(v);
}

/* Where a block's weights come from: the panel, or a copy made ready. */
typedef struct source {
    const uint8_t *panel;
    const ready *copy;
} source;

/* sum[r][h] += the sum over quads [from, from + n) of u * v; x is at the v of row 0, rows are X_BYTES apart. */
KERN_INLINE void add_quads(uint32_t type, source w, const uint8_t *x, size_t n_rows, int from, int n, __m256i (*sum)[HALVES])
{
    KERN_UNROLL for (int q = from; q < from + n; q++) {
        columns u[HALVES];
        KERN_UNROLL for (int h = 0; h < HALVES; h++) u[h] = w.copy ? w.copy->w[q][h] : load_columns(type, w.panel, q, h);
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) {
            const uint8_t *at = x + r * X_BYTES + 8 * q;
            __m256i even = int_at(at), odd = int_at(at + 4);
            KERN_UNROLL for (int h = 0; h < HALVES; h++) sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(u[h].even, even));
            KERN_UNROLL for (int h = 0; h < HALVES; h++) KEPT(sum[r][h]);
            KERN_UNROLL for (int h = 0; h < HALVES; h++) sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(u[h].odd, odd));
            KERN_UNROLL for (int h = 0; h < HALVES; h++) KEPT(sum[r][h]);
        }
    }
}

/* The same over a block of nibbles for one row, without moving two of the four in 16 bits: their sums are 16 and 256 times too large until the end.  They fit:
 * 15 * 256 * 32767 * 2 * 4 < 2^31. */
KERN_INLINE void add_nibbles(const uint8_t *p, const uint8_t *x, __m256i *sum)
{
    const __m256i nibble = _mm256_set1_epi16(15), second = _mm256_set1_epi16(0xf0), third = _mm256_set1_epi16(0xf00);
    __m256i by_16[HALVES], by_256[HALVES];
    KERN_UNROLL for (int h = 0; h < HALVES; h++) by_16[h] = by_256[h] = _mm256_setzero_si256();
    KERN_UNROLL for (int q = 0; q < QUADS / 2; q++) {
        const uint8_t *at = x + 8 * q, *beyond = at + 8 * QUADS / 2;
        __m256i even = int_at(at), odd = int_at(at + 4), even_beyond = int_at(beyond), odd_beyond = int_at(beyond + 4);
        KERN_UNROLL for (int h = 0; h < HALVES; h++) {
            __m256i w = vector_at(p + 64 * q + 32 * h);
            KEPT(w);
            sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(_mm256_and_si256(w, nibble), even));
            KEPT(sum[h]);
            sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(_mm256_srli_epi16(w, 12), odd_beyond));
            by_16[h] = _mm256_add_epi32(by_16[h], _mm256_madd_epi16(_mm256_and_si256(w, second), even_beyond));
            by_256[h] = _mm256_add_epi32(by_256[h], _mm256_madd_epi16(_mm256_and_si256(w, third), odd));
            KEPT(sum[h]);
            KEPT(by_16[h]);
            KEPT(by_256[h]);
        }
    }
    KERN_UNROLL for (int h = 0; h < HALVES; h++) {
        __m256i both = _mm256_srai_epi32(_mm256_add_epi32(_mm256_srai_epi32(by_256[h], 4), by_16[h]), 4);
        sum[h] = _mm256_add_epi32(sum[h], both);
    }
}

/* Of words, part 0 or 1 of Q6_K's two; unbias is -128 times the sum of v. */
KERN_INLINE void add_words(uint32_t type, source w, const scales *c, const uint8_t *x, size_t n_rows, int part, __m256 (*s)[HALVES])
{
    const bool by_halves = type == QUANT_Q6_K;
    __m256i sum[TILE_ROWS][HALVES];
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) {
        const pack_whole_words *at = (const pack_whole_words *)(const void *)(x + r * X_BYTES);
        __m256i unbias = _mm256_srai_epi32(int_at(by_halves ? &at->unbias_of[part] : &at->unbias), 7 - pack_bias_bits(type));
        sum[r][0] = sum[r][1] = unbias;
    }
    add_quads(type, w, x + offsetof(pack_whole_words, v), n_rows, part * QUADS / 2, by_halves ? QUADS / 2 : QUADS, sum);
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++)
        KERN_UNROLL for (int h = 0; h < HALVES; h++) s[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]), part ? c[h].d2 : c[h].d, s[r][h]);
}

KERN_INLINE void add_pairs(uint32_t type, source w, const scales *c, const uint8_t *x, size_t n_rows, __m256 (*s)[HALVES])
{
    __m256i sum[TILE_ROWS][HALVES];
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) {
        const pack_whole_pairs *at = (const pack_whole_pairs *)(const void *)(x + r * X_BYTES);
        sum[r][0] = sum[r][1] = pack_bias_bits(type) ? int_at(&at->unbias) : _mm256_setzero_si256();
    }
    const uint8_t *v = x + offsetof(pack_whole_pairs, v);
    if (!w.copy && !pack_has_fifth_bits(type) && n_rows == 1) add_nibbles(w.panel, v, sum[0]);
    else add_quads(type, w, v, n_rows, 0, QUADS, sum);
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) {
        const pack_whole_pairs *at = (const pack_whole_pairs *)(const void *)(x + r * X_BYTES);
        __m256i shift = int_at(&at->shift);
        KERN_UNROLL for (int h = 0; h < HALVES; h++) {
            s[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_sllv_epi32(sum[r][h], shift)), c[h].d, s[r][h]);
            if (!pack_has_minima(type)) continue;
            s[r][h] = has_supers(type) ? _mm256_fnmadd_ps(c[h].m, float_at(&at->sum), s[r][h]) : _mm256_fmadd_ps(c[h].m, float_at(&at->sum), s[r][h]);
        }
    }
}

KERN_INLINE void add_block(uint32_t type, source w, const scales *c, const uint8_t *x, size_t n_rows, __m256 (*s)[HALVES])
{
    if (pack_kind_of(type) != PACK_WORDS) {
        add_pairs(type, w, c, x, n_rows, s);
        return;
    }
    add_words(type, w, c, x, n_rows, 0, s);
    if (type == QUANT_Q6_K) add_words(type, w, c, x, n_rows, 1, s);
}

/* y = fma(s, scale, y); the scale lies in front of both kinds. */
KERN_INLINE void add_super(const uint8_t *x, size_t n_rows, __m256 (*s)[HALVES], __m256 (*y)[HALVES])
{
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++)
        KERN_UNROLL for (int h = 0; h < HALVES; h++) y[r][h] = _mm256_fmadd_ps(s[r][h], float_at(x + r * X_BYTES), y[r][h]);
}

/* A panel's product. */
typedef struct panel_job {
    const kern_pack_args *a;
    const uint8_t *panel;
    float *y;
    size_t n_out, n_blocks;
} panel_job;

static void put_row(const panel_job *j, size_t row, const __m256 *y)
{
    float out[PACK_ROWS];
    KERN_UNROLL for (int h = 0; h < HALVES; h++) _mm256_storeu_ps(out + 8 * h, y[h]);
    memcpy(j->y + row * j->a->y_stride, out, j->n_out * sizeof *out);
}

/* A group of n_rows <= TILE_ROWS rows, the first of them number row, straight from the panel. */
KERN_INLINE void few_rows(uint32_t type, const panel_job *j, size_t row, size_t n_rows)
{
    const size_t quad_bytes = pack_quad_bytes(type);
    const uint8_t *p = j->panel, *scales_at = p + j->n_blocks * quad_bytes, *x = (const uint8_t *)j->a->x + row * j->n_blocks * X_BYTES;
    kern_ask ask = kern_ask_from(p, j->a->tuning);
    __m256 y[TILE_ROWS][HALVES];
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++) y[r][0] = y[r][1] = _mm256_setzero_ps();
    for (size_t b = 0; b < j->n_blocks;) {
        size_t end = kern_min_size(b + PACK_SUPER, j->n_blocks);
        __m256 s[TILE_ROWS][HALVES];
        scales super[HALVES];
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) s[r][0] = s[r][1] = _mm256_setzero_ps();
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) super[h] = load_super(type, scales_at, b, h);
        for (; b < end; b++, p += quad_bytes, x += n_rows * X_BYTES) {
            kern_ask_on(&ask, quad_bytes, pack_scale_bytes(type));
            scales c[HALVES];
            KERN_UNROLL for (size_t h = 0; h < HALVES; h++) c[h] = load_scales(type, scales_at, &super[h], b, h);
            add_block(type, (source){.panel = p}, c, x, n_rows, s);
        }
        add_super(x - n_rows * X_BYTES, n_rows, s, y);
    }
    for (size_t r = 0; r < n_rows; r++) put_row(j, row + r, y[r]);
}

/* n_blocks <= PACK_SUPER blocks from number b on. */
KERN_INLINE void make_ready(uint32_t type, const panel_job *j, size_t b, size_t n_blocks, ready *out)
{
    const size_t quad_bytes = pack_quad_bytes(type);
    const uint8_t *scales_at = j->panel + j->n_blocks * quad_bytes;
    scales super[HALVES];
    KERN_UNROLL for (size_t h = 0; h < HALVES; h++) super[h] = load_super(type, scales_at, b, h);
    for (size_t i = 0; i < n_blocks; i++) {
        const uint8_t *p = j->panel + (b + i) * quad_bytes;
        KERN_UNROLL for (int q = 0; q < QUADS; q++)
            KERN_UNROLL for (int h = 0; h < HALVES; h++) out[i].w[q][h] = load_columns(type, p, q, h);
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) out[i].c[h] = load_scales(type, scales_at, &super[h], b + i, h);
    }
}

/* Groups of 8: n_rows <= MANY_ROWS rows from number row on. */
KERN_INLINE void many_rows(uint32_t type, const panel_job *j, size_t row, size_t n_rows)
{
    const uint8_t *x = (const uint8_t *)j->a->x + row * j->n_blocks * X_BYTES;
    ready w[PACK_SUPER];
    __m256 y[MANY_ROWS][HALVES];
    for (size_t r = 0; r < n_rows; r++) y[r][0] = y[r][1] = _mm256_setzero_ps();
    for (size_t b = 0; b < j->n_blocks; b += PACK_SUPER) {
        size_t n = kern_min_size(PACK_SUPER, j->n_blocks - b);
        make_ready(type, j, b, n, w);
        for (size_t r = 0; r < n_rows; r += TILE_ROWS) {
            const uint8_t *at = x + (r / 8 * 8 * j->n_blocks + b * 8 + r % 8) * X_BYTES;
            __m256 s[TILE_ROWS][HALVES];
            KERN_UNROLL for (size_t i = 0; i < TILE_ROWS; i++) s[i][0] = s[i][1] = _mm256_setzero_ps();
            for (size_t i = 0; i < n; i++) add_block(type, (source){.copy = &w[i]}, w[i].c, at + i * 8 * X_BYTES, TILE_ROWS, s);
            add_super(at, TILE_ROWS, s, y + r);
        }
    }
    for (size_t r = 0; r < n_rows; r++) put_row(j, row + r, y[r]);
}

KERN_INLINE void panel_rows(uint32_t type, const panel_job *j)
{
    const size_t n_rows = j->a->n_rows;
    size_t row = 0;
    for (size_t n; row + 8 <= n_rows; row += n) {
        n = kern_min_size(n_rows - row, MANY_ROWS) / 8 * 8;
        many_rows(type, j, row, n);
    }
    for (size_t n; row < n_rows; row += n) {
        n = pack_group_rows(row, n_rows);
        if (n == 4) few_rows(type, j, row, 4);
        else if (n == 2) few_rows(type, j, row, 2);
        else few_rows(type, j, row, 1);
    }
}

KERN_INLINE void dot(uint32_t type, const kern_pack_args *a)
{
    for (size_t o = 0; o < a->n_out; o += PACK_ROWS) {
        panel_job j = {.a = a, .panel = (const uint8_t *)a->panel + o / PACK_ROWS * a->panel_bytes, .y = a->y + o};
        j.n_out = kern_min_size(a->n_out - o, PACK_ROWS);
        j.n_blocks = a->n_cols / PACK_COLS;
        panel_rows(type, &j);
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

/* 4 x 8 integers of 16 bits, the columns of each quad in the order 0 2 1 3. */
KERN_INLINE void put_whole(int16_t *to, const __m256i *v)
{
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256i a = _mm256_shuffle_epi32(v[2 * i], 0xd8), b = _mm256_shuffle_epi32(v[2 * i + 1], 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(to + 16 * i), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
    }
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

static inline void words_of(const float *x, float scale, float inverse, void *to)
{
    pack_whole_words *out = to;
    __m256i v[4];
    int32_t sum[2];
    KERN_UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        sum[i] = sum_of(_mm256_add_epi32(v[2 * i], v[2 * i + 1]));
        out->unbias_of[i] = -128 * sum[i];
    }
    put_whole(out->v, v);
    out->scale = scale;
    out->unbias = -128 * (sum[0] + sum[1]);
}

KERN_INLINE __m256 nearest(__m256 v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline void pairs_of(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *to)
{
    pack_whole_pairs *out = to;
    const pack_lattice l = pack_lattice_of(kind);
    const __m256 by = _mm256_set1_ps(inverse), ratio = _mm256_set1_ps(l.ratio), a0 = _mm256_set1_ps(l.across[0]), a1 = _mm256_set1_ps(l.across[1]);
    __m256i v[4], sum = _mm256_setzero_si256();
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256 y0 = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by), y1 = _mm256_mul_ps(_mm256_loadu_ps(x + 16 + 8 * i), by);
        __m256 n = nearest(_mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(ratio, y0), y1), _mm256_set1_ps(1.0f / 256)));
        __m256 r0 = _mm256_sub_ps(y0, _mm256_mul_ps(n, a0)), r1 = _mm256_sub_ps(y1, _mm256_mul_ps(n, a1));
        __m256 m = nearest(_mm256_mul_ps(_mm256_add_ps(r0, _mm256_mul_ps(ratio, r1)), _mm256_set1_ps(l.along)));
        v[i] = _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(n, a0), m));
        v[i + 2] = _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(n, a1), _mm256_mul_ps(m, ratio)));
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(v[i], v[i + 2]));
    }
    put_whole(out->v, v);
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
    t->pack_form = PACK_WHOLE;
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
