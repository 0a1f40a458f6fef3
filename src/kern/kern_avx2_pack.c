/* kern_avx2_pack.c - products of packed weights and integer activations with AVX2: the bits of pack.h's formula without VNNI.
 *
 * Activations are whole: 16-bit weights, even columns of a quad and odd ones, times pairs of them by vpmaddwd, which adds two products in 32 bits.  No sum over a block
 * overflows: 255 * 32767 * 32 < 2^31.  A row alone is split, for kern_avx2_pack_one.c, but for weights of 8 bits: vpmaddubsw would saturate.
 *
 * Few rows take the weights as they are read.  Groups of eight take them from a copy made once for MANY_ROWS rows: columns as 16-bit integers, scales as floats. */
#include <float.h>
#include <stddef.h>

#include "kern_avx2_pack.h"
#include "kern_pack_ask.h"

enum {
    QUADS = PACK_COLS / 4,
    TILE_ROWS = 4,  /* by HALVES: as many sums as registers hold beside the operands */
    MANY_ROWS = 64, /* of a copy, which by then costs nothing */
};

/* Of a block of a row in a group, of either kind. */
enum { X_BYTES = sizeof(pack_whole_words) };
_Static_assert(sizeof(pack_whole_pairs) == X_BYTES && offsetof(pack_whole_pairs, v) == offsetof(pack_whole_words, v), "both kinds alike");

/* Four columns of 8 outputs as 16-bit integers: 0 and 2, 1 and 3. */
typedef struct columns {
    __m256i even, odd;
} columns;

/* A block of a panel, ready for many rows. */
typedef struct ready {
    columns w[QUADS][HALVES];
    scales c[HALVES];
} ready;

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
        w = quad_of(type, w, vector_at(p + 256 + (type == QUANT_Q6_K ? q / 4 * 64 : 0)), q);
    }
    return (columns){_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16(w, 8)};
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
            KERN_UNROLL for (int h = 0; h < HALVES; h++) AVX2_KEPT(sum[r][h]);
            KERN_UNROLL for (int h = 0; h < HALVES; h++) sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(u[h].odd, odd));
            KERN_UNROLL for (int h = 0; h < HALVES; h++) AVX2_KEPT(sum[r][h]);
        }
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
    add_quads(type, w, v, n_rows, 0, QUADS, sum);
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

/* A group of n_rows <= TILE_ROWS rows, the first of them number row, straight from the panel; a row alone only times weights of 8 bits. */
KERN_INLINE void few_rows(uint32_t type, const panel_job *j, size_t row, size_t n_rows)
{
    const size_t quad_bytes = pack_quad_bytes(type), step = pack_step_bytes(PACK_WHOLE, pack_kind_of(type), n_rows);
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
        for (; b < end; b++, p += quad_bytes, x += step) {
            kern_ask_on(&ask, quad_bytes, pack_scale_bytes(type));
            scales c[HALVES];
            KERN_UNROLL for (size_t h = 0; h < HALVES; h++) c[h] = load_scales(type, scales_at, &super[h], b, h);
            add_block(type, (source){.panel = p}, c, x, n_rows, s);
        }
        add_super(x - step, n_rows, s, y);
    }
    for (size_t r = 0; r < n_rows; r++) put_row(j, row + r, y[r]);
}

static void one_row(uint32_t type, const panel_job *j, size_t row)
{
    float out[PACK_ROWS];
    avx2_pack_one(type, j->panel, j->n_blocks, (const uint8_t *)j->a->x + row * j->n_blocks * X_BYTES, j->a->tuning, out);
    memcpy(j->y + row * j->a->y_stride, out, j->n_out * sizeof *out);
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
        else if (type == QUANT_Q8_0) few_rows(type, j, row, 1);
        else one_row(type, j, row);
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

/* Two times 8 integers as 16 of 16 bits. */
KERN_INLINE __m256i shorts_of(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* 4 x 8 integers of 16 bits, the columns of each quad in the order 0 2 1 3. */
KERN_INLINE void put_whole(int16_t *to, const __m256i *v)
{
    KERN_UNROLL for (int i = 0; i < 2; i++)
        _mm256_storeu_si256((__m256i *)(void *)(to + 16 * i), shorts_of(_mm256_shuffle_epi32(v[2 * i], 0xd8), _mm256_shuffle_epi32(v[2 * i + 1], 0xd8)));
}

/* The low byte of each of 16 integers, with its sign, and what is left of it by 256. */
KERN_INLINE __m256i low_of(__m256i v)
{
    return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
}

KERN_INLINE __m256i high_of(__m256i v, __m256i low)
{
    return _mm256_srai_epi16(_mm256_sub_epi16(v, low), 8);
}

/* Two times 16 integers that are bytes. */
KERN_INLINE __m256i bytes_of(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
}

static inline float largest_of(const float *x)
{
    __m256 most = _mm256_setzero_ps(), bad = most;
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m256 size = absolute(_mm256_loadu_ps(x + 8 * i));
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(size, _mm256_set1_ps(FLT_MAX), _CMP_NLE_UQ));
        most = _mm256_max_ps(most, size);
    }
    return _mm256_movemask_ps(bad) ? INFINITY : avx2_largest(most);
}

KERN_INLINE void put_words(const float *x, float scale, float inverse, __m256i *v, pack_whole_words *out)
{
    int32_t sum[2];
    KERN_UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        sum[i] = avx2_sum(_mm256_add_epi32(v[2 * i], v[2 * i + 1]));
        out->unbias_of[i] = -128 * sum[i];
    }
    put_whole(out->v, v);
    out->scale = scale;
    out->unbias = -128 * (sum[0] + sum[1]);
}

static inline void words_of(const float *x, float scale, float inverse, void *to)
{
    __m256i v[4];
    put_words(x, scale, inverse, v, to);
}

static inline void words_alone(const float *x, float scale, float inverse, void *to)
{
    pack_alone_words *out = to;
    __m256i v[4];
    put_words(x, scale, inverse, v, &out->whole);
    __m256i a = shorts_of(v[0], v[1]), b = shorts_of(v[2], v[3]), low_a = low_of(a), low_b = low_of(b);
    _mm256_storeu_si256((__m256i *)(void *)out->high, bytes_of(high_of(a, low_a), high_of(b, low_b)));
    _mm256_storeu_si256((__m256i *)(void *)out->low, bytes_of(low_a, low_b));
}

KERN_INLINE __m256 nearest(__m256 v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* A block of pairs; returns its sum. */
KERN_INLINE int32_t nearest_pairs(const float *x, pack_kind kind, float inverse, __m256i *v)
{
    const pack_lattice l = pack_lattice_of(kind);
    const __m256 by = _mm256_set1_ps(inverse), ratio = _mm256_set1_ps(l.ratio), a0 = _mm256_set1_ps(l.across[0]), a1 = _mm256_set1_ps(l.across[1]);
    __m256i sum = _mm256_setzero_si256();
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256 y0 = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by), y1 = _mm256_mul_ps(_mm256_loadu_ps(x + 16 + 8 * i), by);
        __m256 n = nearest(_mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(ratio, y0), y1), _mm256_set1_ps(1.0f / 256)));
        __m256 r0 = _mm256_sub_ps(y0, _mm256_mul_ps(n, a0)), r1 = _mm256_sub_ps(y1, _mm256_mul_ps(n, a1));
        __m256 m = nearest(_mm256_mul_ps(_mm256_add_ps(r0, _mm256_mul_ps(ratio, r1)), _mm256_set1_ps(l.along)));
        v[i] = _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(n, a0), m));
        v[i + 2] = _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(n, a1), _mm256_mul_ps(m, ratio)));
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(v[i], v[i + 2]));
    }
    return avx2_sum(sum);
}

static inline void pairs_of(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *to)
{
    pack_whole_pairs *out = to;
    __m256i v[4];
    int32_t total = nearest_pairs(x, kind, inverse, v);
    put_whole(out->v, v);
    out->scale = scale;
    out->sum = (float)(total * (1 << shift));
    out->unbias = total * (kind == PACK_PAIRS_16 ? -8 : -16);
    out->shift = shift;
}

static inline void pairs_alone(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *to)
{
    pack_alone_pairs *out = to;
    const int32_t by[3] = {256, 1, pack_ratio(kind)};
    __m256i v[4];
    int32_t total = nearest_pairs(x, kind, inverse, v);
    __m256i a = shorts_of(v[0], v[1]), b = shorts_of(v[2], v[3]), low = low_of(a);
    __m256i high_b = high_of(b, _mm256_mullo_epi16(low, _mm256_set1_epi16((int16_t)by[2])));
    _mm256_storeu_si256((__m256i *)(void *)out->high, bytes_of(high_of(a, low), high_b));
    _mm_storeu_si128((__m128i *)(void *)out->low, _mm256_castsi256_si128(bytes_of(low, low)));
    out->scale = scale;
    out->sum = (float)(total * (1 << shift));
    out->unbias = total * (1 << shift) * (kind == PACK_PAIRS_16 ? -8 : -16);
    for (int i = 0; i < 3; i++) out->by[i][0] = out->by[i][1] = (int16_t)(by[i] * (1 << shift));
}

static void x_row(const float *x, size_t n_cols, pack_kind kind, void *out, size_t step)
{
    const bool alone = step == pack_step_bytes(PACK_WHOLE, kind, 1); /* no multiple of X_BYTES */
    if (alone) pack_x_row((pack_x_ops){largest_of, words_alone, pairs_alone}, x, n_cols, kind, out, step);
    else pack_x_row((pack_x_ops){largest_of, words_of, pairs_of}, x, n_cols, kind, out, step);
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
