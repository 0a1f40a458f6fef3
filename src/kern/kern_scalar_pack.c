/* kern_scalar_pack.c - products of packed weights and integer activations in plain C: pack.h's formula as it stands there.
 *
 * The integers are exact and the floats go by fmaf, so the bits are those of every other ISA. */
#include <float.h>

#include "kern_scalar.h"
#include "pack.h"

typedef struct scales {
    float d[PACK_ROWS], d2[PACK_ROWS], m[PACK_ROWS];
} scales;

/* One block by columns, so that a compiler finds lanes side by side: u[k][r] is column k of row r. */
static void load_columns(uint32_t type, const uint8_t *p, int16_t u[PACK_COLS][PACK_ROWS])
{
    for (int k = 0; k < PACK_COLS; k++) {
        int q = k / 4, i = k % 4;
        for (int r = 0; r < PACK_ROWS; r++) {
            int at = 4 * r + i, v;
            if (type == QUANT_Q8_0) v = p[64 * q + at];
            else v = p[64 * (q % 4) + at] >> q / 4 * 4 & 15;
            if (type == QUANT_Q6_K) v |= (p[256 + q / 4 * 64 + at] >> q % 4 * 2 & 3) << 4;
            else if (pack_has_fifth_bits(type)) v |= (p[256 + at] >> q & 1) << 4;
            u[k][r] = (int16_t)v;
        }
    }
}

static float half_of(const uint8_t *p, int r)
{
    kern_f16 h;
    memcpy(&h, p + 2 * r, sizeof h);
    return scalar_from_half(h);
}

static void load_scales(uint32_t type, const uint8_t *p, size_t b, scales *s)
{
    size_t g = b % PACK_SUPER;
    const uint8_t *super;
    for (int r = 0; r < PACK_ROWS; r++) {
        switch (type) {
        case QUANT_Q4_1:
        case QUANT_Q5_1:
            s->d[r] = half_of(p + 64 * b, r);
            s->m[r] = half_of(p + 64 * b + 32, r);
            break;
        case QUANT_Q4_K:
        case QUANT_Q5_K:
            super = p + b / PACK_SUPER * 320;
            s->d[r] = half_of(super, r) * (float)super[64 + 32 * g + (size_t)r];
            s->m[r] = 0.0f - half_of(super + 32, r) * (float)super[80 + 32 * g + (size_t)r];
            break;
        case QUANT_Q6_K:
            super = p + b / PACK_SUPER * 288;
            s->d[r] = half_of(super, r) * (float)(int8_t)super[32 + 32 * g + (size_t)r];
            s->d2[r] = half_of(super, r) * (float)(int8_t)super[48 + 32 * g + (size_t)r];
            break;
        default: s->d[r] = half_of(p + 32 * b, r);
        }
    }
}

/* out[r] = sum over columns [from, to) of (u - bias) * v; unbias is -128 times their sum of v. */
static void sum_columns(uint32_t type, int16_t u[PACK_COLS][PACK_ROWS], const int16_t *v, int from, int to, int32_t unbias, float *out)
{
    int32_t sum[PACK_ROWS] = {0};
    for (int k = from; k < to; k++)
        for (int r = 0; r < PACK_ROWS; r++) sum[r] += u[k][r] * v[k];
    unbias = pack_bias_bits(type) ? unbias / (1 << (7 - pack_bias_bits(type))) : 0;
    for (int r = 0; r < PACK_ROWS; r++) out[r] = (float)(sum[r] + unbias);
}

static void add_block(uint32_t type, int16_t u[PACK_COLS][PACK_ROWS], const scales *c, const pack_x *x, bool fine, float *s)
{
    int16_t v[PACK_COLS];
    float sum[PACK_ROWS];
    for (int k = 0; k < PACK_COLS; k++) v[k] = (int16_t)(fine ? 256 * x->hi[k] + x->lo[k] : x->hi[k]);
    if (type == QUANT_Q6_K) {
        sum_columns(type, u, v, 0, PACK_COLS / 2, x->unbias_first, sum);
        for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf(sum[r], c->d[r], s[r]);
        sum_columns(type, u, v, PACK_COLS / 2, PACK_COLS, x->unbias - x->unbias_first, sum);
        for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf(sum[r], c->d2[r], s[r]);
        return;
    }
    sum_columns(type, u, v, 0, PACK_COLS, x->unbias, sum);
    for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf(sum[r], c->d[r], s[r]);
    if (!pack_has_minima(type)) return;
    for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf(c->m[r], x->sum, s[r]);
}

/* One panel times a group of rows. */
static void panel_rows(uint32_t type, const kern_pack_args *a, const uint8_t *p, const uint8_t *x, size_t n_rows, float *out, size_t n_out)
{
    size_t n_blocks = a->n_cols / PACK_COLS, quad_bytes = pack_quad_bytes(type), x_bytes = a->fine ? PACK_X_FINE : PACK_X_COARSE;
    float y[8][PACK_ROWS] = {{0}}, s[8][PACK_ROWS] = {{0}};
    for (size_t b = 0; b < n_blocks; b++) {
        int16_t u[PACK_COLS][PACK_ROWS];
        scales c;
        load_columns(type, p + b * quad_bytes, u);
        load_scales(type, p + n_blocks * quad_bytes, b, &c);
        for (size_t r = 0; r < n_rows; r++, x += x_bytes) {
            const pack_x *v = (const pack_x *)(const void *)x;
            add_block(type, u, &c, v, a->fine, s[r]);
            if (b % PACK_SUPER < PACK_SUPER - 1 && b + 1 < n_blocks) continue;
            for (int i = 0; i < PACK_ROWS; i++) y[r][i] = fmaf(s[r][i], v->scale, y[r][i]);
            memset(s[r], 0, sizeof s[r]);
        }
    }
    for (size_t r = 0; r < n_rows; r++) memcpy(out + r * a->y_stride, y[r], n_out * sizeof(float));
}

static void dot(uint32_t type, const kern_pack_args *a)
{
    size_t row_bytes = a->n_cols / PACK_COLS * (a->fine ? PACK_X_FINE : PACK_X_COARSE);
    for (size_t row = 0, n; row < a->n_rows; row += n) {
        n = pack_group_rows(row, a->n_rows);
        for (size_t j = 0; j < a->n_out; j += PACK_ROWS) {
            const uint8_t *panel = (const uint8_t *)a->panel + j / PACK_ROWS * a->panel_bytes, *x = (const uint8_t *)a->x + row * row_bytes;
            panel_rows(type, a, panel, x, n, a->y + row * a->y_stride + j, kern_min_size(a->n_out - j, PACK_ROWS));
        }
    }
}

#define PACK_DOT(name, type)                  \
    static void name(const kern_pack_args *a) \
    {                                         \
        dot(type, a);                       \
    }
PACK_DOT(dot_q8_0, QUANT_Q8_0)
PACK_DOT(dot_q4_0, QUANT_Q4_0)
PACK_DOT(dot_q4_1, QUANT_Q4_1)
PACK_DOT(dot_q5_0, QUANT_Q5_0)
PACK_DOT(dot_q5_1, QUANT_Q5_1)
PACK_DOT(dot_q4_k, QUANT_Q4_K)
PACK_DOT(dot_q5_k, QUANT_Q5_K)
PACK_DOT(dot_q6_k, QUANT_Q6_K)

/* Nearest integer, to even, of |v| <= 32513. */
static int32_t nearest(float v)
{
    const float rounder = 12582912.0f; /* 1.5 * 2^23 */
    return (int32_t)(v + rounder - rounder);
}

static void quantise_block(const float *x, float scale, float inverse, bool fine, pack_x *out)
{
    int32_t sum[2] = {0, 0};
    for (int k = 0; k < PACK_COLS; k++) {
        int32_t v = nearest(x[k] * inverse), high = v;
        sum[k / 16] += v;
        if (fine) {
            high = (v + 128) >> 8; /* an arithmetic shift, as every compiler makes it */
            out->lo[k] = (int8_t)(v - high * 256);
        }
        out->hi[k] = (int8_t)high;
    }
    out->scale = scale;
    out->sum = (float)(sum[0] + sum[1]);
    out->unbias = -128 * (sum[0] + sum[1]);
    out->unbias_first = -128 * sum[0];
}

/* The largest size of n floats, or infinity when one of them is no finite number. */
static float largest_of(const float *x, size_t n)
{
    float most = 0;
    for (size_t k = 0; k < n; k++) {
        float size = fabsf(x[k]);
        if (!(size <= FLT_MAX)) return INFINITY;
        most = size > most ? size : most;
    }
    return most;
}

static void pack_x_row(const float *x, size_t n_cols, bool fine, void *out, size_t step)
{
    uint8_t *to = out;
    for (size_t left = n_cols / PACK_COLS; left;) {
        size_t n = kern_min_size(left, PACK_SUPER);
        float most = largest_of(x, n * PACK_COLS), scale = pack_x_scale(most, fine), inverse = pack_x_inverse(most, fine);
        for (left -= n; n; n--, x += PACK_COLS, to += step) {
            if (most > FLT_MAX) pack_x_broken((pack_x *)(void *)to, fine);
            else quantise_block(x, scale, inverse, fine, (pack_x *)(void *)to);
        }
    }
}

void kern_fill_scalar_pack(kern_table *t)
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
