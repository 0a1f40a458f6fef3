/* kern_index_make.h - making codes, preparing queries, and mean values, for every ISA with vectors.
 *
 * The one thing to know: the file that includes this one has defined index_lanes, 16 floats, and what can be done with them.  Each of those operations is exact or rounded once in each
 * lane, and sums over channels are those of 16 lanes, folded by the tree of kern_simd.h: so codes are the same bits everywhere. */
#ifndef SPW_KERN_INDEX_MAKE_H
#define SPW_KERN_INDEX_MAKE_H

#include "kern_index_code.h"

KERN_INLINE index_lanes lanes_load(const float *p);
KERN_INLINE index_lanes lanes_halves(const kern_f16 *p);
KERN_INLINE void lanes_store(float *p, index_lanes x);
KERN_INLINE index_lanes lanes_fill(float v);
KERN_INLINE index_lanes lanes_add(index_lanes a, index_lanes b);
KERN_INLINE index_lanes lanes_sub(index_lanes a, index_lanes b);
KERN_INLINE index_lanes lanes_mul(index_lanes a, index_lanes b);
KERN_INLINE index_lanes lanes_abs(index_lanes x);
KERN_INLINE float lanes_fold(index_lanes x);
/* Lane i: x[i] + x[i + h] where bit h of i is 0, otherwise x[i - h] - x[i]. */
KERN_INLINE index_lanes lanes_butterfly(index_lanes x, int h);
/* Bits: r >= 0. */
KERN_INLINE unsigned lanes_signs(index_lanes r);
/* 2 where r * r > limit, 0 elsewhere; bits: where. */
KERN_INLINE index_lanes lanes_beyond(index_lanes r, float limit, unsigned *where);

enum { INDEX_MIX_VECTORS = 4 }; /* whose sums are in registers */

/* ---- rotation --------------------------------------------------------------------------------------- */

enum { INDEX_VECTORS = KERN_INDEX_DIM / KERN_LANES };

KERN_INLINE void index_hadamard_of(index_lanes *x, const size_t n)
{
    const index_lanes norm = lanes_fill(1.0f / sqrtf((float)(n * KERN_LANES)));
    KERN_UNROLL for (size_t i = 0; i < n; i++) x[i] = lanes_butterfly(lanes_butterfly(lanes_butterfly(lanes_butterfly(x[i], 1), 2), 4), 8);
    KERN_UNROLL for (size_t h = 1; h < n; h *= 2) {
        KERN_UNROLL for (size_t i = 0; i < n / 2; i++) {
            const size_t j = i / h * 2 * h + i % h;
            index_lanes a = x[j], b = x[j + h];
            x[j] = lanes_add(a, b);
            x[j + h] = lanes_sub(a, b);
        }
    }
    KERN_UNROLL for (size_t i = 0; i < n; i++) x[i] = lanes_mul(x[i], norm);
}

/* One Hadamard transform of n vectors, a power of two. */
static inline void index_hadamard(index_lanes *x, size_t n)
{
    switch (n) {
    case 1: index_hadamard_of(x, 1); break;
    case 2: index_hadamard_of(x, 2); break;
    case 4: index_hadamard_of(x, 4); break;
    case 8: index_hadamard_of(x, 8); break;
    case 16: index_hadamard_of(x, 16); break;
    default: index_hadamard_of(x, 32); break;
    }
}

/* n vectors of floats at row, rotated. */
static inline void index_rotate(const float *row, size_t n, index_lanes *x)
{
    size_t at = 0, largest = 1;
    for (size_t i = 0; i < n; i++) x[i] = lanes_load(row + i * KERN_LANES);
    while (2 * largest <= n) largest *= 2;
    for (size_t m = largest; m; m /= 2)
        if (n & m) index_hadamard(x + at, m), at += m;
    if (largest == n) return;
    for (size_t m = largest; m; m /= 2)
        if (n & m) at -= m, index_hadamard(x + at, m);
}

/* ---- codes ------------------------------------------------------------------------------------------ */

/* Vector i of the sum of rows. */
KERN_INLINE index_lanes index_sum(const float *k, size_t stride, size_t n_rows, size_t i)
{
    index_lanes sum = lanes_load(k + i * KERN_LANES);
    for (size_t r = 1; r < n_rows; r++) sum = lanes_add(sum, lanes_load(k + r * stride + i * KERN_LANES));
    return sum;
}

/* The rotated mean as halves, and what those are. */
static inline void index_rotated_mean(const float *k, size_t stride, size_t n_rows, size_t n, kern_f16 *halves, float *mean)
{
    index_lanes x[INDEX_VECTORS];
    for (size_t i = 0; i < n; i++) lanes_store(mean + i * KERN_LANES, index_sum(k, stride, n_rows, i));
    for (size_t d = 0; d < n * KERN_LANES; d++) mean[d] /= (float)n_rows;
    index_rotate(mean, n, x);
    for (size_t i = 0; i < n; i++) lanes_store(mean + i * KERN_LANES, x[i]);
    for (size_t d = 0; d < n * KERN_LANES; d++) {
        halves[d] = index_half(mean[d]);
        mean[d] = kern_f16_to_f32(halves[d]);
    }
}

/* The levels of the absolute values of 16 channels, and the bits of all planes: of number i of the steps' borders that r is beyond, those planes change whose weight divides i. */
static inline index_lanes index_levels(index_lanes r, float mean_square, unsigned planes, unsigned *bits)
{
    index_lanes level = lanes_fill(1);
    const unsigned signs = bits[0] = lanes_signs(r);
    for (unsigned p = 1; p < planes; p++) bits[p] = ~signs;
    for (int i = 1; i < 1 << (planes - 1); i++) {
        unsigned beyond;
        level = lanes_add(level, lanes_beyond(r, index_limit(mean_square, planes, i), &beyond));
        for (unsigned p = 1; p < planes; p++)
            if (i % (1 << (planes - 1 - p)) == 0) bits[p] ^= beyond;
    }
    return level;
}

/* One position: its bytes of signs KERN_INDEX_GROUP apart, those of the other planes one after the other.  Returns the scale. */
static inline float index_row(const float *k, const float *mean, size_t n, unsigned planes, uint8_t *signs, uint8_t *outer)
{
    index_lanes x[INDEX_VECTORS], square = lanes_fill(0), sum = square, squares = square;
    index_rotate(k, n, x);
    for (size_t i = 0; i < n; i++) {
        x[i] = lanes_sub(x[i], lanes_load(mean + i * KERN_LANES));
        square = lanes_add(square, lanes_mul(x[i], x[i]));
    }
    const float mean_square = lanes_fold(square) / (float)(n * KERN_LANES);
    for (size_t i = 0; i < n; i++) {
        unsigned bits[KERN_INDEX_PLANES];
        index_lanes level = index_levels(x[i], mean_square, planes, bits);
        sum = lanes_add(sum, lanes_mul(lanes_abs(x[i]), level));
        squares = lanes_add(squares, lanes_mul(level, level));
        signs[2 * i * KERN_INDEX_GROUP] = (uint8_t)bits[0];
        signs[(2 * i + 1) * KERN_INDEX_GROUP] = (uint8_t)(bits[0] >> 8);
        for (unsigned p = 1; p < planes; p++) outer[2 * ((p - 1) * n + i)] = (uint8_t)bits[p], outer[2 * ((p - 1) * n + i) + 1] = (uint8_t)(bits[p] >> 8);
    }
    return lanes_fold(sum) / lanes_fold(squares);
}

static inline void index_make_code(const float *k, size_t stride, size_t n_rows, size_t dim, unsigned planes, void *code)
{
    const index_layout at = index_layout_of(n_rows, dim, planes);
    const size_t n = dim / KERN_LANES;
    float mean[KERN_INDEX_DIM] = {0};
    uint8_t *out = code;
    kern_f16 *scales = (kern_f16 *)(void *)(out + at.scales);
    memset(code, 0, at.bytes);
    index_rotated_mean(k, stride, n_rows, n, (kern_f16 *)(void *)(out + at.mean), mean);
    for (size_t i = 0; i < n_rows; i++) {
        uint8_t *signs = out + i / KERN_INDEX_GROUP * at.group_bytes + index_entry(i % KERN_INDEX_GROUP);
        scales[i] = index_half(index_row(k + i * stride, mean, n, planes, signs, out + at.outer + i * at.outer_bytes));
    }
}

/* ---- queries ---------------------------------------------------------------------------------------- */

/* step such that the integers of each chunk add up to a byte. */
static inline float index_step_of(const float *q, size_t dim)
{
    float most = 0;
    for (size_t d = 0; d < dim; d += 8 * INDEX_CHUNK) {
        float sum[8] = {0};
        for (size_t i = d; i < kern_min_size(dim, d + 8 * INDEX_CHUNK); i += 8)
            for (size_t j = 0; j < 8; j++) sum[j] += fabsf(q[i + j]);
        float all = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
        most = all > most ? all : most;
    }
    return most > INDEX_LEAST ? most / INDEX_MOST : 0;
}

/* Integers of a rotated query; returns the sum of their absolute values.  Adding and taking away 1.5 * 2^23 rounds to an integer, to nearest even. */
static inline int index_round(const float *q, size_t dim, float step, int16_t *whole)
{
    const float rounder = 12582912.0f, by = step > 0 ? 1.0f / step : 0;
    int total = 0;
    for (size_t d = 0; d < dim; d++) {
        int n = (int)(q[d] * by + rounder - rounder);
        whole[d] = (int16_t)n;
        total += n < 0 ? -n : n;
    }
    return total;
}

/* Makes one head's tables from its integers. */
typedef void index_tables_fn(const int16_t *whole, size_t dim, uint8_t *tables);

KERN_INLINE void index_prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared, index_tables_fn *make_tables)
{
    const index_query p = index_query_at(prepared, n_q, dim);
    for (size_t g = 0; g < n_q; g++) {
        index_lanes x[INDEX_VECTORS];
        int16_t whole[KERN_INDEX_DIM];
        float *rotated = p.rotated + g * dim;
        index_rotate(q + g * q_stride, dim / KERN_LANES, x);
        for (size_t i = 0; i < dim / KERN_LANES; i++) lanes_store(rotated + i * KERN_LANES, x[i]);
        p.step[g] = index_step_of(rotated, dim);
        p.total[g] = index_round(rotated, dim, p.step[g], whole);
        make_tables(whole, dim, p.tables + g * p.table_bytes);
    }
}

/* ---- means ------------------------------------------------------------------------------------------ */

static inline void index_make_mean(const float *v, size_t stride, size_t n_rows, size_t dim, kern_f16 *mean)
{
    float sum[KERN_LANES];
    for (size_t i = 0; i < dim / KERN_LANES; i++) {
        lanes_store(sum, index_sum(v, stride, n_rows, i));
        for (size_t j = 0; j < KERN_LANES; j++) mean[i * KERN_LANES + j] = index_half(sum[j] / (float)n_rows);
    }
}

/* n_v vectors from number `at` on. */
KERN_INLINE void index_mix_tile(const float *weights, const kern_f16 *const *means, size_t n, size_t at, const int n_v, float *o)
{
    index_lanes sum[INDEX_MIX_VECTORS];
    KERN_UNROLL for (int v = 0; v < n_v; v++) sum[v] = lanes_fill(0);
    for (size_t i = 0; i < n; i++) {
        const index_lanes w = lanes_fill(weights[i]);
        KERN_UNROLL for (int v = 0; v < n_v; v++) sum[v] = lanes_add(sum[v], lanes_mul(w, lanes_halves(means[i] + (at + (size_t)v) * KERN_LANES)));
    }
    KERN_UNROLL for (int v = 0; v < n_v; v++) lanes_store(o + (at + (size_t)v) * KERN_LANES, sum[v]);
}

static inline void index_mix(const float *weights, const kern_f16 *const *means, size_t n, size_t dim, float *o)
{
    size_t at = 0;
    for (; at + INDEX_MIX_VECTORS <= dim / KERN_LANES; at += INDEX_MIX_VECTORS) index_mix_tile(weights, means, n, at, INDEX_MIX_VECTORS, o);
    for (; at < dim / KERN_LANES; at++) index_mix_tile(weights, means, n, at, 1, o);
}

#endif
