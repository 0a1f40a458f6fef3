/* kern_neon_pack.h - products of packed weights and integer activations for AArch64: pack.h's formula, compiled once without and once with the
 * instructions that sum four products of bytes (kern_neon_pack.c, kern_neondot_pack.c).
 *
 * A lane is an output; a block goes by in quarters of 4 outputs.  Weights are bytes that fit a signed one, those of eight bits after their top bit is flipped,
 * which takes the bias off.  The sums are exact, so both give the same bits. */
#ifndef SPW_KERN_NEON_PACK_H
#define SPW_KERN_NEON_PACK_H

#include <arm_neon.h>
#include <string.h>

#include "kern_simd.h"
#include "pack.h"

enum { NEON_PACK_AHEAD = 2048 }; /* weights ahead of those in use that are asked for */

/* The integers of one block for 4 outputs: vector q has 4 columns of each. */
typedef struct neon_quads {
    int8x16_t q[8];
} neon_quads;

typedef struct neon_scales {
    float32x4_t d, d2, m;
} neon_scales;

/* Moves bit `from` of every byte to bit 4, and the ones above it along. */
KERN_INLINE uint8x16_t neon_moved_to_4(uint8x16_t v, int from)
{
    return vshlq_u8(v, vdupq_n_s8((int8_t)(4 - from)));
}

KERN_INLINE uint8x16_t neon_or_bits(uint8x16_t a, uint8x16_t b, uint8_t mask)
{
    return vorrq_u8(a, vandq_u8(b, vdupq_n_u8(mask)));
}

/* p is at the quarter's first lane. */
KERN_INLINE neon_quads neon_load_quads(uint32_t type, const uint8_t *p)
{
    neon_quads w;
    uint8x16_t u[8];
    if (type == QUANT_Q8_0) {
        KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 64 * q), vdupq_n_u8(128)));
        return w;
    }
    KERN_UNROLL for (int v = 0; v < 4; v++) {
        uint8x16_t both = vld1q_u8(p + 64 * v);
        u[v] = vandq_u8(both, vdupq_n_u8(15));
        u[v + 4] = vshrq_n_u8(both, 4);
    }
    if (type == QUANT_Q6_K) {
        KERN_UNROLL for (int q = 0; q < 8; q++) u[q] = neon_or_bits(u[q], neon_moved_to_4(vld1q_u8(p + 256 + q / 4 * 64), q % 4 * 2), 0x30);
    } else if (pack_has_fifth_bits(type)) {
        uint8x16_t plane = vld1q_u8(p + 256);
        KERN_UNROLL for (int q = 0; q < 8; q++) u[q] = neon_or_bits(u[q], neon_moved_to_4(plane, q), 0x10);
    }
    KERN_UNROLL for (int q = 0; q < 8; q++) w.q[q] = vreinterpretq_s8_u8(u[q]);
    return w;
}

KERN_INLINE float32x4_t neon_halves_at(const uint8_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

KERN_INLINE uint8x8_t neon_four_bytes_at(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return vreinterpret_u8_u32(vdup_n_u32(v));
}

KERN_INLINE float32x4_t neon_bytes_at(const uint8_t *p)
{
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(neon_four_bytes_at(p)))));
}

KERN_INLINE float32x4_t neon_signed_bytes_at(const uint8_t *p)
{
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(neon_four_bytes_at(p))))));
}

/* Of block b, outputs 4 part .. 4 part + 3; p is the panel's scales. */
KERN_INLINE neon_scales neon_load_scales(uint32_t type, const uint8_t *p, size_t b, size_t part)
{
    neon_scales s;
    const uint8_t *super, *small;
    size_t g = b % PACK_SUPER;
    s.d2 = s.m = vdupq_n_f32(0);
    switch (type) {
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        s.d = neon_halves_at(p + 64 * b + 8 * part);
        s.m = neon_halves_at(p + 64 * b + 32 + 8 * part);
        return s;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        super = p + b / PACK_SUPER * 320 + 8 * part;
        small = p + b / PACK_SUPER * 320 + 64 + 32 * g + 4 * part;
        s.d = vmulq_f32(neon_halves_at(super), neon_bytes_at(small));
        s.m = vsubq_f32(vdupq_n_f32(0), vmulq_f32(neon_halves_at(super + 32), neon_bytes_at(small + 16)));
        return s;
    case QUANT_Q6_K:
        super = p + b / PACK_SUPER * 288 + 8 * part;
        small = p + b / PACK_SUPER * 288 + 32 + 32 * g + 4 * part;
        s.d = vmulq_f32(neon_halves_at(super), neon_signed_bytes_at(small));
        s.d2 = vmulq_f32(neon_halves_at(super), neon_signed_bytes_at(small + 16));
        return s;
    default: s.d = neon_halves_at(p + 32 * b + 8 * part); return s;
    }
}

#if defined(__ARM_FEATURE_DOTPROD)
/* Adds the sum over four quads; w and v are those of the first. */
KERN_INLINE int32x4_t neon_add_four(int32x4_t sum, const int8x16_t *w, const int8_t *v)
{
    int8x16_t x = vld1q_s8(v);
    sum = vdotq_laneq_s32(sum, w[0], x, 0);
    sum = vdotq_laneq_s32(sum, w[1], x, 1);
    sum = vdotq_laneq_s32(sum, w[2], x, 2);
    return vdotq_laneq_s32(sum, w[3], x, 3);
}

/* The sum over n quads of u * v, n 4 or 8. */
KERN_INLINE int32x4_t neon_sum_plane(uint32_t type, const int8x16_t *w, const int8_t *v, const int n)
{
    (void)type;
    int32x4_t sum = neon_add_four(vdupq_n_s32(0), w, v);
    return n > 4 ? neon_add_four(sum, w + 4, v + 16) : sum;
}
#else
KERN_INLINE int8x8_t neon_four_at(const int8_t *p)
{
    return vreinterpret_s8_u8(neon_four_bytes_at(p));
}

/* The sum over n quads of u * v.  Sums of 16 bits do not overflow: at most 8 * 31 * 128, 4 * 63 * 128 for Q6_K's half blocks; products of eight-bit
 * weights are widened one by one. */
KERN_INLINE int32x4_t neon_sum_plane(uint32_t type, const int8x16_t *w, const int8_t *v, const int n)
{
    if (type == QUANT_Q8_0) {
        int32x4_t low = vdupq_n_s32(0), high = low;
        KERN_UNROLL for (int q = 0; q < n; q++) {
            int8x8_t x = neon_four_at(v + 4 * q);
            low = vpadalq_s16(low, vmull_s8(vget_low_s8(w[q]), x));
            high = vpadalq_s16(high, vmull_s8(vget_high_s8(w[q]), x));
        }
        return vpaddq_s32(low, high);
    }
    int16x8_t low = vdupq_n_s16(0), high = low;
    KERN_UNROLL for (int q = 0; q < n; q++) {
        int8x8_t x = neon_four_at(v + 4 * q);
        low = vmlal_s8(low, vget_low_s8(w[q]), x);
        high = vmlal_s8(high, vget_high_s8(w[q]), x);
    }
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
#endif

/* Of quads [from, from + n); unbias is -128 times the sum of v. */
KERN_INLINE float32x4_t neon_words_sum(uint32_t type, const neon_quads *w, const pack_words *x, const int from, const int n, int32_t unbias)
{
    int32x4_t sum = vshlq_n_s32(neon_sum_plane(type, w->q + from, x->high + 4 * from, n), 8);
    sum = vaddq_s32(sum, neon_sum_plane(type, w->q + from, x->low + 4 * from, n));
    if (type != QUANT_Q8_0) sum = vaddq_s32(sum, vdupq_n_s32(unbias / (1 << (7 - pack_bias_bits(type)))));
    return vcvtq_f32_s32(sum);
}

/* Pairs of weights in one byte would not fit a signed one: each half goes by itself. */
KERN_INLINE float32x4_t neon_pairs_sum(uint32_t type, const neon_quads *w, const pack_pairs *x)
{
    int32x4_t sum = vshlq_n_s32(neon_sum_plane(type, w->q, x->high, 8), 8);
    sum = vaddq_s32(sum, neon_sum_plane(type, w->q, x->low, 4));
    sum = vmlaq_n_s32(sum, neon_sum_plane(type, w->q + 4, x->low, 4), pack_ratio(pack_kind_of(type)));
    if (pack_bias_bits(type)) sum = vaddq_s32(sum, vdupq_n_s32(x->unbias));
    return vcvtq_f32_s32(vshlq_s32(sum, vdupq_n_s32(x->shift)));
}

KERN_INLINE float32x4_t neon_add_block(uint32_t type, const neon_quads *w, const neon_scales *c, const uint8_t *at, float32x4_t s)
{
    if (pack_kind_of(type) == PACK_WORDS) {
        const pack_words *x = (const pack_words *)(const void *)at;
        if (type != QUANT_Q6_K) return vfmaq_f32(s, neon_words_sum(type, w, x, 0, 8, x->unbias), c->d);
        s = vfmaq_f32(s, neon_words_sum(type, w, x, 0, 4, x->unbias_first), c->d);
        return vfmaq_f32(s, neon_words_sum(type, w, x, 4, 4, x->unbias - x->unbias_first), c->d2);
    }
    const pack_pairs *x = (const pack_pairs *)(const void *)at;
    s = vfmaq_f32(s, neon_pairs_sum(type, w, x), c->d);
    return pack_has_minima(type) ? vfmaq_n_f32(s, c->m, x->sum) : s;
}

/* A group of rows by one panel. */
typedef struct neon_group {
    const kern_pack_args *a;
    const uint8_t *panel, *x;
    size_t n_rows, n_out;
    float *y;
} neon_group;

/* Rows are a plain loop: a block's part of a row is 16 products of vectors and more, beside which the load and the store of its sums are nothing. */
KERN_INLINE void neon_group_rows(uint32_t type, const neon_group *g)
{
    const size_t quad_bytes = pack_quad_bytes(type), x_bytes = pack_x_bytes(pack_kind_of(type)), n_rows = g->n_rows;
    size_t n_blocks = g->a->n_cols / PACK_COLS;
    const uint8_t *p = g->panel, *scales_at = p + n_blocks * quad_bytes, *x = g->x;
    float y[8][PACK_ROWS] = {{0}}, s[8][PACK_ROWS] = {{0}};
    for (size_t b = 0; b < n_blocks; b++, p += quad_bytes, x += n_rows * x_bytes) {
        for (size_t at = 0; at < quad_bytes && n_rows < 8; at += 64) __builtin_prefetch(p + NEON_PACK_AHEAD + at, 0, 3);
        for (size_t part = 0; part < 4; part++) {
            neon_quads w = neon_load_quads(type, p + 16 * part);
            neon_scales c = neon_load_scales(type, scales_at, b, part);
            for (size_t r = 0; r < n_rows; r++) {
                float *to = s[r] + 4 * part;
                vst1q_f32(to, neon_add_block(type, &w, &c, x + r * x_bytes, vld1q_f32(to)));
            }
        }
        if (b % PACK_SUPER < PACK_SUPER - 1 && b + 1 < n_blocks) continue;
        for (size_t r = 0; r < n_rows; r++) {
            float scale; /* in front of both kinds */
            memcpy(&scale, x + r * x_bytes, sizeof scale);
            for (size_t i = 0; i < PACK_ROWS; i += 4) vst1q_f32(y[r] + i, vfmaq_n_f32(vld1q_f32(y[r] + i), vld1q_f32(s[r] + i), scale));
            memset(s[r], 0, sizeof s[r]);
        }
    }
    for (size_t r = 0; r < n_rows; r++) memcpy(g->y + r * g->a->y_stride, y[r], g->n_out * sizeof(float));
}

KERN_INLINE void neon_dot(uint32_t type, const kern_pack_args *a)
{
    size_t row_bytes = a->n_cols / PACK_COLS * pack_x_bytes(pack_kind_of(type));
    for (size_t p = 0; p * PACK_ROWS < a->n_out; p++) {
        for (size_t row = 0, n; row < a->n_rows; row += n) {
            n = pack_group_rows(row, a->n_rows);
            neon_group g = {.a = a, .panel = (const uint8_t *)a->panel + p * a->panel_bytes, .x = (const uint8_t *)a->x + row * row_bytes, .n_rows = n};
            g.y = a->y + row * a->y_stride + p * PACK_ROWS;
            g.n_out = kern_min_size(a->n_out - p * PACK_ROWS, PACK_ROWS);
            neon_group_rows(type, &g);
        }
    }
}

#define NEON_PACK_DOT(name, type)             \
    static void name(const kern_pack_args *a) \
    {                                         \
        neon_dot(type, a);                    \
    }
NEON_PACK_DOT(neon_dot_q8_0, QUANT_Q8_0)
NEON_PACK_DOT(neon_dot_q4_0, QUANT_Q4_0)
NEON_PACK_DOT(neon_dot_q4_1, QUANT_Q4_1)
NEON_PACK_DOT(neon_dot_q5_0, QUANT_Q5_0)
NEON_PACK_DOT(neon_dot_q5_1, QUANT_Q5_1)
NEON_PACK_DOT(neon_dot_q4_k, QUANT_Q4_K)
NEON_PACK_DOT(neon_dot_q5_k, QUANT_Q5_K)
NEON_PACK_DOT(neon_dot_q6_k, QUANT_Q6_K)

static inline void neon_fill_pack_dots(kern_table *t)
{
    t->pack_dot[QUANT_Q8_0] = neon_dot_q8_0;
    t->pack_dot[QUANT_Q4_0] = neon_dot_q4_0;
    t->pack_dot[QUANT_Q4_1] = neon_dot_q4_1;
    t->pack_dot[QUANT_Q5_0] = neon_dot_q5_0;
    t->pack_dot[QUANT_Q5_1] = neon_dot_q5_1;
    t->pack_dot[QUANT_Q4_K] = neon_dot_q4_k;
    t->pack_dot[QUANT_Q5_K] = neon_dot_q5_k;
    t->pack_dot[QUANT_Q6_K] = neon_dot_q6_k;
}

#endif
