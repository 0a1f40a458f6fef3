/* pack.h - weights in the layout that the integer units like, and activations as integers: formats, sizes, repacking.
 *
 * Weights.  A panel is PACK_ROWS rows (outputs) of a weight over all its columns; rows that the weight lacks are zero.  Columns go in blocks of
 * PACK_COLS.  First come the integers of all blocks, then the scales of all blocks:
 *
 *   integers   a quad is 64 bytes: lane r (4 bytes) holds 4 adjacent columns of row r, unsigned.  Quad q of a block has its columns 4q .. 4q+3.
 *              Q8_0   8 quads, the value plus 128
 *              others 4 x 64 bytes: the lower four bits of quad v in the low nibbles, those of quad v + 4 in the high nibbles; then
 *              Q5_*   64 bytes: bit q of byte i is bit 4 of byte i of quad q
 *              Q6_K   2 x 64 bytes: bits 2s, 2s+1 of byte i are bits 4, 5 of byte i of quad s, then of quad s + 4
 *   scales     Q8_0, Q4_0, Q5_0    each block: half d[16]
 *              Q4_1, Q5_1          each block: half d[16], half m[16]
 *              Q4_K, Q5_K          each 8 blocks: half d[16], half dmin[16], then for each block u8 sc[16], u8 mn[16]
 *              Q6_K                each 8 blocks: half d[16], then for each half block s8 sc[16]
 *
 * So a panel takes the bytes that its rows take in the file (zero rows and rounding to 64 bytes aside), every load is aligned, and both runs are
 * read front to back.
 *
 * Activations.  A block of a row is x = scale * 2^shift * v with integers v; PACK_SUPER blocks (fewer at the end of a row) share their scale.  There are two kinds.
 *
 *   words   for weights of 6 and 8 bits: v is any integer of 16 bits, 256 high + low; scale = the largest |x| / 32512, shift = 0
 *   pairs   for weights of 4 and 5 bits: columns k and k + 16 share a low byte, v[k] = 256 high[k] + low[k], v[k + 16] = 256 high[k + 16] + ratio * low[k]; scale = the
 *           largest |x| / 30400 / 64, 2^shift = 64 down to 1, as small as the block's own largest |x| allows
 *
 * What pairs are for: with u for weights, the sum over a block is 256 * sum of (u * high) + sum of ((u[k] + ratio * u[k + 16]) * low[k]), three products of bytes for two
 * columns in place of four, as long as u[k] + ratio * u[k + 16] is a byte: ratio is 16 for weights of 4 bits, whose nibbles lie in a byte just so, and 7 for those of 5.
 * Their v are a lattice, 256 points in a square of 256 by 256.  Its rows are 16 apart for the ratio 16, which makes an activation one of 12 bits, and 36 for the ratio 7,
 * where only v[k] is rounded to such steps and v[k + 16] to a fifth of them.  The shift gives back what a common scale takes from small blocks.
 *
 * Units that multiply integers of 16 bits take the same v whole (AVX2: vpmaddwd, one product a column), where several rows share the work on the weights; for a row alone
 * bytes need less of it (pack_alone_pairs).  The form, split or whole, belongs to the table of kernels; v does not depend on it.
 *
 * Either way the sum over a block is an exact integer, whatever unit computes it:
 *
 *   s = sum over PACK_SUPER blocks, ascending, in f32, from 0: s = fma((float)(sum of (u - bias) * v) * 2^shift, d, s), then, with minima,
 *       s = fma(m, (float)(sum of v) * 2^shift, s)
 *   y = sum over these, ascending, in f32, from 0: y = fma(s, scale, y)
 *
 * with d, m as dequantisation has them (quant.h), so d * sc and -(dmin * mn) for the types with super-blocks, and half blocks for Q6_K.
 *
 * Rows of activations lie in groups of 8, 4, 2 and 1 rows, as many eights as there are first: a row's place depends on the number of rows, its integers do not. */
#ifndef SPW_PACK_H
#define SPW_PACK_H

#include <math.h>
#include <string.h>

#include "kern.h"

enum { PACK_ROWS = 16, PACK_COLS = 32, PACK_SUPER = 8 /* blocks that share a d in the types with super-blocks */ };

/* One block of one row of activations, split. */
typedef struct pack_words {
    float scale;
    float sum;                    /* of v */
    int32_t unbias, unbias_first; /* -128 times the sum of v: over the block, and over its first half */
    int8_t high[PACK_COLS];
    int8_t low[PACK_COLS];
} pack_words;

typedef struct pack_pairs {
    float scale;
    float sum;      /* of v, times 2^shift */
    int32_t unbias; /* the sum of v times -8 (ratio 16: Q4_0) or -16 (ratio 7: Q5_0) */
    int32_t shift;
    int8_t high[PACK_COLS];
    int8_t low[PACK_COLS / 2];
} pack_pairs;

/* The same whole.  The four columns of a quad lie in the order 0 2 1 3: a lane of weights becomes 16-bit integers two at a time, the even bytes by a mask and the odd ones by
 * a shift. */
typedef struct pack_whole_words {
    float scale;
    int32_t unbias;       /* -128 times the sum of v */
    int32_t unbias_of[2]; /* the same over each half of the block */
    int16_t v[PACK_COLS];
} pack_whole_words;

typedef struct pack_whole_pairs {
    float scale;
    float sum;             /* as in pack_pairs, and so the next two */
    int32_t unbias, shift;
    int16_t v[PACK_COLS];
} pack_whole_pairs;

/* In the form PACK_WHOLE, a row that is alone in its group.  Words are there in both forms, as those of 8 bits want them whole.  Of pairs, the sums over high bytes and over low
 * ones of the first and the last 16 columns differ in their factors only, which take 2^shift with them: 16-bit integers, twice for the two of a lane. */
typedef struct pack_alone_words {
    pack_whole_words whole;
    int8_t high[PACK_COLS]; /* as in pack_words */
    int8_t low[PACK_COLS];
} pack_alone_words;

typedef struct pack_alone_pairs {
    float scale;
    float sum;        /* as in pack_pairs */
    int32_t unbias;   /* as in pack_pairs, times 2^shift */
    int16_t by[3][2]; /* 256, 1 and ratio, times 2^shift: of high, of low over the first 16 columns and over the others */
    int8_t high[PACK_COLS];
    int8_t low[PACK_COLS / 2];
} pack_alone_pairs;

static inline pack_kind pack_kind_of(uint32_t type)
{
    switch (type) {
    case QUANT_Q4_0:
    case QUANT_Q4_1:
    case QUANT_Q4_K: return PACK_PAIRS_16;
    case QUANT_Q5_0:
    case QUANT_Q5_1:
    case QUANT_Q5_K: return PACK_PAIRS_7;
    default: return PACK_WORDS;
    }
}

static inline int pack_ratio(pack_kind kind)
{
    return kind == PACK_PAIRS_16 ? 16 : 7;
}

/* Bytes of a block of a row, split. */
static inline size_t pack_x_bytes(pack_kind kind)
{
    return kind == PACK_WORDS ? sizeof(pack_words) : sizeof(pack_pairs);
}

/* Bytes of a block of a row in the form of a table. */
static inline size_t pack_form_bytes(pack_form form, pack_kind kind)
{
    if (form == PACK_SPLIT) return pack_x_bytes(kind);
    return kind == PACK_WORDS ? sizeof(pack_whole_words) : sizeof(pack_whole_pairs);
}

/* Bytes from a block of a row in a group of n rows to the row's next one. */
static inline size_t pack_step_bytes(pack_form form, pack_kind kind, size_t n)
{
    if (form == PACK_SPLIT || n > 1) return n * pack_form_bytes(form, kind);
    return kind == PACK_WORDS ? sizeof(pack_alone_words) : sizeof(pack_alone_pairs);
}

/* How a pair y, in steps of 1, is rounded to the lattice: n = nearest((ratio * y0 - y1) / 256), then m = nearest((r0 + ratio * r1) * along) of what n * across leaves,
 * so v = n * across + m * (1, ratio).  (Babai 1986: the nearest plane, then the nearest point on it.) */
typedef struct pack_lattice {
    float ratio, across[2], along;
} pack_lattice;

static inline pack_lattice pack_lattice_of(pack_kind kind)
{
    return kind == PACK_PAIRS_16 ? (pack_lattice){16, {16, 0}, 1.0f / 257} : (pack_lattice){7, {36, -4}, 1.0f / 50};
}

enum { PACK_MAX_SHIFT = 6 };

/* Below this the largest |x| counts as 0: its reciprocal times 32512, or 30400 * 64, would not be finite. */
#define PACK_LEAST 1e-30f

/* Turns one row into blocks of a kind, step bytes apart, by the functions of an ISA.  largest: of PACK_COLS sizes |x|, or infinity when one of them is no finite number.
 * words, pairs: one block in the form of the ISA's table, whose x are multiplied by inverse before they are rounded. */
typedef struct pack_x_ops {
    float (*largest)(const float *x);
    void (*words)(const float *x, float scale, float inverse, void *out);
    void (*pairs)(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *out);
} pack_x_ops;

/* How many times the largest size of a block can be doubled without exceeding that of all, at most PACK_MAX_SHIFT: the difference of their exponents, one less when the
 * block's mantissa is the larger one. */
static inline int32_t pack_doublings(float most, float block)
{
    int32_t a, b;
    memcpy(&a, &most, sizeof a);
    memcpy(&b, &block, sizeof b);
    int32_t n = (a - b) >> 23;
    return n < PACK_MAX_SHIFT ? n : PACK_MAX_SHIFT;
}

/* Where an x is no finite number the scale is none either, which makes NaN of every product. */
static inline void pack_x_row(const pack_x_ops ops, const float *x, size_t n_cols, pack_kind kind, uint8_t *to, size_t step)
{
    static const float zeros[PACK_COLS] = {0};
    for (size_t left = n_cols / PACK_COLS; left;) {
        size_t n = left < PACK_SUPER ? left : PACK_SUPER;
        float largest[PACK_SUPER], most = 0;
        for (size_t b = 0; b < n; b++) {
            largest[b] = ops.largest(x + b * PACK_COLS);
            most = largest[b] > most ? largest[b] : most;
        }
        const float steps = kind == PACK_WORDS ? 32512.0f : 30400.0f;
        float scale = most > PACK_LEAST ? most / steps : 0, inverse = most > PACK_LEAST ? steps / most : 0;
        if (kind != PACK_WORDS) scale *= 1.0f / (1 << PACK_MAX_SHIFT);
        bool bad = isinf(most);
        if (bad) scale = NAN, inverse = 0;
        for (size_t b = 0; b < n; b++, x += PACK_COLS, to += step) {
            const float *from = bad ? zeros : x;
            if (kind == PACK_WORDS) {
                ops.words(from, scale, inverse, to);
            } else {
                int32_t n_doubled = pack_doublings(most, largest[b]);
                ops.pairs(from, kind, scale, inverse * (float)(1 << n_doubled), PACK_MAX_SHIFT - n_doubled, to);
            }
        }
        left -= n;
    }
}

/* Rows of the group that starts at row. */
static inline size_t pack_group_rows(size_t row, size_t n_rows)
{
    size_t left = n_rows - row;
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/* The binary logarithm of what is added to a type's integers to make them unsigned, at most 7; 0: nothing is. */
static inline int pack_bias_bits(uint32_t type)
{
    return type == QUANT_Q8_0 ? 7 : type == QUANT_Q4_0 ? 3 : type == QUANT_Q5_0 ? 4 : type == QUANT_Q6_K ? 5 : 0;
}

static inline bool pack_has_minima(uint32_t type)
{
    return type == QUANT_Q4_1 || type == QUANT_Q5_1 || type == QUANT_Q4_K || type == QUANT_Q5_K;
}

static inline bool pack_has_fifth_bits(uint32_t type)
{
    return type == QUANT_Q5_0 || type == QUANT_Q5_1 || type == QUANT_Q5_K;
}

/* Bytes of a block's integers: 512, 320, 384 or 256. */
static inline size_t pack_quad_bytes(uint32_t type)
{
    return type == QUANT_Q8_0 ? 512 : type == QUANT_Q6_K ? 384 : pack_has_fifth_bits(type) ? 320 : 256;
}

/* Bytes of scales that come with a block, those of its super-block shared out. */
static inline size_t pack_scale_bytes(uint32_t type)
{
    if (type == QUANT_Q6_K) return (32 + 16 * 16) / PACK_SUPER;
    if (type == QUANT_Q4_K || type == QUANT_Q5_K) return (64 + 8 * 32) / PACK_SUPER;
    return pack_has_minima(type) ? 64 : 32;
}

typedef struct pack_layout {
    uint32_t scale_bytes;  /* of scale_blocks blocks */
    uint32_t scale_blocks; /* 1 or PACK_SUPER */
} pack_layout;

/* NULL: the type has no packed form. */
const pack_layout *pack_get(uint32_t type);
/* Bytes of one panel, a multiple of 64; cols is a multiple of the type's block.  0: the type has no packed form, or the product wraps. */
size_t pack_panel_bytes(uint32_t type, uint64_t cols);
/* Fills one panel (64-byte aligned) from n_rows <= PACK_ROWS rows of a weight as they lie in the file, row_bytes apart. */
void pack_panel(uint32_t type, const uint8_t *rows, size_t row_bytes, size_t n_rows, size_t cols, uint8_t *out);

#endif
