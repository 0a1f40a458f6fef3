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
 * Activations.  Each block of a row is x = scale * v with an integer v: coarse, 8 bits, scale = the largest |x| / 127; or fine, 16 bits,
 * v = 256 hi + lo, scale = the largest |x| / 32512; the largest of PACK_SUPER blocks, which share their scale (fewer at the end of a row).  Either way the sum over a
 * block is an exact integer, whatever unit computes it:
 *
 *   s = sum over PACK_SUPER blocks, ascending, in f32, from 0: s = fma((float)(sum of (u - bias) * v), d, s), then, with minima, s = fma(m, (float)(sum of v), s)
 *   y = sum over these, ascending, in f32, from 0: y = fma(s, scale, y)
 *
 * with d, m as dequantisation has them (quant.h), so d * sc and -(dmin * mn) for the types with super-blocks, and half blocks for Q6_K.
 *
 * Rows of activations lie in groups of 8, 4, 2 and 1 rows, as many eights as there are first: a row's place depends on the number of rows, its integers do not. */
#ifndef SPW_PACK_H
#define SPW_PACK_H

#include <math.h>
#include <string.h>

#include "quant.h"

enum { PACK_ROWS = 16, PACK_COLS = 32, PACK_SUPER = 8 /* blocks that share a d in the types with super-blocks */ };

/* One block of one row of activations; without lo (PACK_X_COARSE bytes) or with it. */
typedef struct pack_x {
    float scale;
    float sum;                    /* of v */
    int32_t unbias, unbias_first; /* -128 times the sum of v: over the block, and over its first half */
    int8_t hi[PACK_COLS];
    int8_t lo[PACK_COLS];
} pack_x;
enum { PACK_X_FINE = sizeof(pack_x), PACK_X_COARSE = sizeof(pack_x) - PACK_COLS };

/* Below this the largest |x| counts as 0: its reciprocal times 32512 would not be finite. */
#define PACK_LEAST 1e-30f

/* The scale of blocks whose largest |x| is most, and what x is multiplied by before it is rounded; both finite when most is. */
static inline float pack_x_scale(float most, bool fine)
{
    return most > PACK_LEAST ? most / (fine ? 32512.0f : 127.0f) : 0.0f;
}

static inline float pack_x_inverse(float most, bool fine)
{
    return most > PACK_LEAST ? (fine ? 32512.0f : 127.0f) / most : 0.0f;
}

/* What blocks with an infinity or a NaN among them become: NaN in every product. */
static inline void pack_x_broken(pack_x *x, bool fine)
{
    memset(x, 0, fine ? PACK_X_FINE : PACK_X_COARSE);
    x->scale = NAN;
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
