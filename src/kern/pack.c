/* pack.c - repacking of weights (pack.h), by words of four bytes: a lane of a quad is a word of the file, its nibbles or bits moved.
 *
 * Little-endian only, like the weights themselves.  Layouts in the file: kern_ref_quant.c. */
#include "pack.h"

#include <string.h>

#include "quant_scales.h"

static const pack_layout layouts[QUANT_TYPES] = {
    [QUANT_Q8_0] = {32, 1},
    [QUANT_Q4_0] = {32, 1},
    [QUANT_Q4_1] = {64, 1},
    [QUANT_Q5_0] = {32, 1},
    [QUANT_Q5_1] = {64, 1},
    [QUANT_Q4_K] = {64 + 8 * 32, PACK_SUPER},
    [QUANT_Q5_K] = {64 + 8 * 32, PACK_SUPER},
    [QUANT_Q6_K] = {32 + 16 * 16, PACK_SUPER},
};

const pack_layout *pack_get(uint32_t type)
{
    return type < QUANT_TYPES && layouts[type].scale_bytes ? &layouts[type] : NULL;
}

size_t pack_panel_bytes(uint32_t type, uint64_t cols)
{
    const pack_layout *l = pack_get(type);
    uint64_t row;
    if (!l || !quant_bytes(type, cols, &row) || row > SIZE_MAX / (4 * PACK_ROWS)) return 0;
    size_t n_blocks = (size_t)cols / PACK_COLS, scales = n_blocks / l->scale_blocks * l->scale_bytes;
    return (n_blocks * pack_quad_bytes(type) + scales + 63) / 64 * 64;
}

/* The words of a block in one lane: word q has columns 4q .. 4q+3, a byte each. */
typedef struct lane {
    uint32_t word[8];
} lane;

static lane nibbles_of_16(const uint8_t *qs)
{
    uint32_t w[4];
    lane l;
    memcpy(w, qs, sizeof w);
    for (int i = 0; i < 4; i++) l.word[i] = w[i] & 0x0f0f0f0fu, l.word[4 + i] = w[i] >> 4 & 0x0f0f0f0fu;
    return l;
}

/* Bits shift, shift + 1 ... under mask (a byte's) of 32 bytes. */
static lane bits_of_32(const uint8_t *p, int shift, uint32_t mask)
{
    lane l;
    memcpy(l.word, p, sizeof l.word);
    for (int q = 0; q < 8; q++) l.word[q] = l.word[q] >> shift & mask * 0x01010101u;
    return l;
}

static void add_above_4(lane *l, lane high)
{
    for (int q = 0; q < 8; q++) l->word[q] |= high.word[q] << 4;
}

/* Bit j of the 32-bit qh becomes bit 4 of column j. */
static void add_fifth_bits(lane *l, const uint8_t *qh)
{
    uint32_t bits;
    memcpy(&bits, qh, sizeof bits);
    for (int q = 0; q < 8; q++) {
        uint32_t four = bits >> 4 * q & 15u;
        l->word[q] |= ((four & 1u) | (four & 2u) << 7 | (four & 4u) << 14 | (four & 8u) << 21) << 4;
    }
}

/* The values of block b of a row, unsigned. */
static lane lane_of(uint32_t type, const uint8_t *row, size_t b)
{
    size_t s = b / PACK_SUPER, g = b % PACK_SUPER;
    lane l;
    switch (type) {
    case QUANT_Q8_0:
        memcpy(l.word, row + 34 * b + 2, sizeof l.word);
        for (int q = 0; q < 8; q++) l.word[q] ^= 0x80808080u;
        return l;
    case QUANT_Q4_0: return nibbles_of_16(row + 18 * b + 2);
    case QUANT_Q4_1: return nibbles_of_16(row + 20 * b + 4);
    case QUANT_Q5_0:
        l = nibbles_of_16(row + 22 * b + 6);
        add_fifth_bits(&l, row + 22 * b + 2);
        return l;
    case QUANT_Q5_1:
        l = nibbles_of_16(row + 24 * b + 8);
        add_fifth_bits(&l, row + 24 * b + 4);
        return l;
    case QUANT_Q4_K: return bits_of_32(row + 144 * s + 16 + g / 2 * 32, (int)(g % 2 * 4), 15);
    case QUANT_Q5_K:
        l = bits_of_32(row + 176 * s + 48 + g / 2 * 32, (int)(g % 2 * 4), 15);
        add_above_4(&l, bits_of_32(row + 176 * s + 16, (int)g, 1));
        return l;
    default: /* Q6_K: two blocks share 32 bytes of ql, four share 32 of qh */
        l = bits_of_32(row + 210 * s + g / 4 * 64 + g % 2 * 32, (int)(g % 4 / 2 * 4), 15);
        add_above_4(&l, bits_of_32(row + 210 * s + 128 + g / 4 * 32, (int)(g % 4 * 2), 3));
        return l;
    }
}

static void put_word(uint8_t *out, size_t at, uint32_t word)
{
    memcpy(out + 64 * at, &word, sizeof word);
}

/* Lane r of a block's integers; out is at the lane. */
static void put_lane(uint32_t type, lane l, uint8_t *out)
{
    uint32_t high[2] = {0, 0};
    if (type == QUANT_Q8_0) {
        for (size_t q = 0; q < 8; q++) put_word(out, q, l.word[q]);
        return;
    }
    for (size_t v = 0; v < 4; v++) put_word(out, v, (l.word[v] & 0x0f0f0f0fu) | (l.word[v + 4] & 0x0f0f0f0fu) << 4);
    if (type == QUANT_Q6_K) {
        for (int q = 0; q < 8; q++) high[q / 4] |= (l.word[q] >> 4 & 0x03030303u) << 2 * (q % 4);
        put_word(out, 4, high[0]);
        put_word(out, 5, high[1]);
    } else if (pack_has_fifth_bits(type)) {
        for (int q = 0; q < 8; q++) high[0] |= (l.word[q] >> 4 & 0x01010101u) << q;
        put_word(out, 4, high[0]);
    }
}

/* Row r's scales of the group of blocks number i. */
static void put_scales(uint32_t type, const uint8_t *row, size_t i, size_t r, uint8_t *out)
{
    const uint8_t *from = row + i * quant_get(type)->block_bytes;
    uint8_t scales[16];
    uint8_t *d = out + 2 * r, *m = out + 2 * PACK_ROWS + 2 * r, *small;
    switch (type) {
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        memcpy(d, from, 2), memcpy(m, from + 2, 2);
        return;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        memcpy(d, from, 2), memcpy(m, from + 2, 2);
        quant_unpack_q4_k(from + 4, scales);
        small = out + 4 * PACK_ROWS + r;
        for (size_t g = 0; g < 8; g++) small[32 * g] = scales[g], small[32 * g + 16] = scales[8 + g];
        return;
    case QUANT_Q6_K:
        memcpy(d, from + 208, 2);
        small = out + 2 * PACK_ROWS + r;
        for (size_t g = 0; g < 16; g++) small[16 * g] = from[192 + g];
        return;
    default: memcpy(d, from, 2);
    }
}

void pack_panel(uint32_t type, const uint8_t *rows, size_t row_bytes, size_t n_rows, size_t cols, uint8_t *out)
{
    const pack_layout *l = &layouts[type];
    size_t n_blocks = cols / PACK_COLS, n_groups = n_blocks / l->scale_blocks, quad_bytes = pack_quad_bytes(type);
    uint8_t *scales = out + n_blocks * quad_bytes;
    if (n_rows < PACK_ROWS) memset(out, 0, pack_panel_bytes(type, cols));
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *row = rows + r * row_bytes;
        for (size_t b = 0; b < n_blocks; b++) put_lane(type, lane_of(type, row, b), out + b * quad_bytes + 4 * r);
        for (size_t i = 0; i < n_groups; i++) put_scales(type, row, i, r, scales + i * l->scale_bytes);
    }
}
