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

/* out[r] = sum over columns [from, to) of (u - bias) * v; unbias is their sum of v times minus the bias. */
static void sum_columns(int16_t u[PACK_COLS][PACK_ROWS], const int32_t *v, int from, int to, int32_t unbias, int32_t *out)
{
    for (int r = 0; r < PACK_ROWS; r++) out[r] = unbias;
    for (int k = from; k < to; k++)
        for (int r = 0; r < PACK_ROWS; r++) out[r] += u[k][r] * v[k];
}

static void add_words(uint32_t type, int16_t u[PACK_COLS][PACK_ROWS], const scales *c, const pack_words *x, float *s)
{
    int32_t v[PACK_COLS], sum[PACK_ROWS], part = 1 << (7 - pack_bias_bits(type));
    for (int k = 0; k < PACK_COLS; k++) v[k] = 256 * x->high[k] + x->low[k];
    if (type == QUANT_Q6_K) {
        sum_columns(u, v, 0, PACK_COLS / 2, x->unbias_first / part, sum);
        for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf((float)sum[r], c->d[r], s[r]);
        sum_columns(u, v, PACK_COLS / 2, PACK_COLS, (x->unbias - x->unbias_first) / part, sum);
        for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf((float)sum[r], c->d2[r], s[r]);
        return;
    }
    sum_columns(u, v, 0, PACK_COLS, x->unbias / part, sum);
    for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf((float)sum[r], c->d[r], s[r]);
}

static void add_pairs(uint32_t type, int16_t u[PACK_COLS][PACK_ROWS], const scales *c, const pack_pairs *x, float *s)
{
    int32_t v[PACK_COLS], sum[PACK_ROWS];
    for (int k = 0; k < PACK_COLS; k++) v[k] = 256 * x->high[k] + (k < PACK_COLS / 2 ? 1 : pack_ratio(pack_kind_of(type))) * x->low[k % (PACK_COLS / 2)];
    sum_columns(u, v, 0, PACK_COLS, pack_bias_bits(type) ? x->unbias : 0, sum);
    for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf((float)(sum[r] * (1 << x->shift)), c->d[r], s[r]);
    if (!pack_has_minima(type)) return;
    for (int r = 0; r < PACK_ROWS; r++) s[r] = fmaf(c->m[r], x->sum, s[r]);
}

/* One panel times a group of rows. */
static void panel_rows(uint32_t type, const kern_pack_args *a, const uint8_t *p, const uint8_t *x, size_t n_rows, float *out, size_t n_out)
{
    size_t n_blocks = a->n_cols / PACK_COLS, quad_bytes = pack_quad_bytes(type), x_bytes = pack_x_bytes(pack_kind_of(type));
    float y[8][PACK_ROWS] = {{0}}, s[8][PACK_ROWS] = {{0}};
    for (size_t b = 0; b < n_blocks; b++) {
        int16_t u[PACK_COLS][PACK_ROWS];
        scales c;
        load_columns(type, p + b * quad_bytes, u);
        load_scales(type, p + n_blocks * quad_bytes, b, &c);
        for (size_t r = 0; r < n_rows; r++, x += x_bytes) {
            float scale; /* in front of both kinds */
            memcpy(&scale, x, sizeof scale);
            if (pack_kind_of(type) == PACK_WORDS) add_words(type, u, &c, (const pack_words *)(const void *)x, s[r]);
            else add_pairs(type, u, &c, (const pack_pairs *)(const void *)x, s[r]);
            if (b % PACK_SUPER < PACK_SUPER - 1 && b + 1 < n_blocks) continue;
            for (int i = 0; i < PACK_ROWS; i++) y[r][i] = fmaf(s[r][i], scale, y[r][i]);
            memset(s[r], 0, sizeof s[r]);
        }
    }
    for (size_t r = 0; r < n_rows; r++) memcpy(out + r * a->y_stride, y[r], n_out * sizeof(float));
}

static void dot(uint32_t type, const kern_pack_args *a)
{
    size_t row_bytes = a->n_cols / PACK_COLS * pack_x_bytes(pack_kind_of(type));
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

/* The upper byte of v, so that the lower one is signed.  (An arithmetic shift, as every compiler makes it.) */
static int32_t upper(int32_t v)
{
    return (v + 128) >> 8;
}

static void words_of(const float *x, float scale, float inverse, void *to)
{
    pack_words *out = to;
    int32_t sum[2] = {0, 0};
    for (int k = 0; k < PACK_COLS; k++) {
        int32_t v = nearest(x[k] * inverse);
        sum[k / 16] += v;
        out->high[k] = (int8_t)upper(v);
        out->low[k] = (int8_t)(v - upper(v) * 256);
    }
    out->scale = scale;
    out->sum = (float)(sum[0] + sum[1]);
    out->unbias = -128 * (sum[0] + sum[1]);
    out->unbias_first = -128 * sum[0];
}

static void pairs_of(const float *x, pack_kind kind, float scale, float inverse, int32_t shift, void *to)
{
    pack_pairs *out = to;
    const pack_lattice l = pack_lattice_of(kind);
    int32_t sum = 0, ratio = pack_ratio(kind);
    for (int k = 0; k < PACK_COLS / 2; k++) {
        float y0 = x[k] * inverse, y1 = x[k + 16] * inverse, n = (float)nearest((l.ratio * y0 - y1) * (1.0f / 256));
        float r0 = y0 - n * l.across[0], r1 = y1 - n * l.across[1], m = (float)nearest((r0 + l.ratio * r1) * l.along);
        int32_t v0 = (int32_t)(n * l.across[0] + m), v1 = (int32_t)(n * l.across[1] + m * l.ratio), low = v0 - upper(v0) * 256;
        out->high[k] = (int8_t)upper(v0);
        out->high[k + 16] = (int8_t)((v1 - ratio * low) / 256);
        out->low[k] = (int8_t)low;
        sum += v0 + v1;
    }
    out->scale = scale;
    out->sum = (float)(sum * (1 << shift));
    out->unbias = sum * (ratio == 16 ? -8 : -16);
    out->shift = shift;
}

static float largest_of(const float *x)
{
    float most = 0;
    for (size_t k = 0; k < PACK_COLS; k++) {
        float size = fabsf(x[k]);
        if (!(size <= FLT_MAX)) return INFINITY;
        most = size > most ? size : most;
    }
    return most;
}

static void x_row(const float *x, size_t n_cols, pack_kind kind, void *out, size_t step)
{
    pack_x_row((pack_x_ops){largest_of, words_of, pairs_of}, x, n_cols, kind, out, step);
}

void kern_fill_scalar_pack(kern_table *t)
{
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
