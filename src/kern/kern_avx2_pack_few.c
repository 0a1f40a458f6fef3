/* kern_avx2_pack_few.c - few rows times weights of halves or floats as they lie in the file, for AVX2.
 *
 * Sums of 16 lanes in the order of gemm (kern_simd.h), lanes 0-7 and 8-15 side by side, for two outputs and one row or two.  The bits are those of the path for many rows.
 * Memory-bound: the outputs' weights are adjacent, so their lines are asked for in the order of addresses, whatever the order of use. */
#include <string.h>

#include "kern_avx2.h"
#include "kern_pack_ask.h"

enum { OUTS = 2, ROWS = 2, SUMS = OUTS * ROWS }; /* at once; a sum is two vectors */

KERN_INLINE __m256 weights_at(uint32_t type, const uint8_t *p)
{
    if (type == QUANT_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
    return type == QUANT_F16 ? _mm256_cvtph_ps(v) : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* The next n <= 16 columns, given by their weights and activations, of n_rows rows by OUTS outputs. */
KERN_INLINE void few_step(uint32_t type, const uint8_t *const *w, const float *const *x, __m256 *low, __m256 *high, const int n_rows)
{
    const size_t bytes = type == QUANT_F32 ? 4 : 2;
    KERN_UNROLL for (int c = 0; c < OUTS; c++) {
        __m256 a = weights_at(type, w[c]), b = weights_at(type, w[c] + AVX2_LANES * bytes);
        KERN_UNROLL for (int r = 0; r < n_rows; r++) {
            int i = r * OUTS + c;
            low[i] = _mm256_fmadd_ps(_mm256_loadu_ps(x[r]), a, low[i]);
            high[i] = _mm256_fmadd_ps(_mm256_loadu_ps(x[r] + AVX2_LANES), b, high[i]);
        }
    }
}

/* Columns [k, end), at most KERN_CHUNK, of n_rows rows by OUTS outputs. */
KERN_INLINE void few_chunk(uint32_t type, const kern_few_args *a, const uint8_t *const *w, size_t k, size_t end, kern_ask *ask, float *sum, const int n_rows)
{
    const size_t bytes = type == QUANT_F32 ? 4 : 2;
    __m256 low[SUMS], high[SUMS];
    const uint8_t *wk[OUTS];
    const float *xk[ROWS];
    KERN_UNROLL for (int i = 0; i < OUTS * n_rows; i++) low[i] = high[i] = _mm256_setzero_ps();
    for (; k + KERN_LANES <= end; k += KERN_LANES) {
        kern_ask_on(ask, OUTS * KERN_LANES * bytes, 0);
        KERN_UNROLL for (size_t c = 0; c < OUTS; c++) wk[c] = w[c] + k * bytes;
        KERN_UNROLL for (int r = 0; r < n_rows; r++) xk[r] = a->x + (size_t)r * a->x_stride + k;
        few_step(type, wk, xk, low, high, n_rows);
    }
    if (k < end) {
        uint8_t w_rest[OUTS][KERN_LANES * 4] = {{0}};
        float x_rest[ROWS][KERN_LANES] = {{0}};
        for (size_t c = 0; c < OUTS; c++) memcpy(w_rest[c], w[c] + k * bytes, (end - k) * bytes), wk[c] = w_rest[c];
        for (int r = 0; r < n_rows; r++) memcpy(x_rest[r], a->x + (size_t)r * a->x_stride + k, (end - k) * sizeof(float)), xk[r] = x_rest[r];
        few_step(type, wk, xk, low, high, n_rows);
    }
    KERN_UNROLL for (int i = 0; i < OUTS * n_rows; i++) sum[i] = avx2_fold(low[i], high[i]);
}

/* Rows [r0, r0 + n_rows). */
KERN_INLINE void few_rows(uint32_t type, const kern_few_args *whole, size_t r0, const int n_rows)
{
    const size_t row_bytes = whole->n_cols * (type == QUANT_F32 ? 4 : 2);
    kern_few_args a = *whole;
    a.x += r0 * a.x_stride;
    for (size_t j = 0; j < a.n_out; j += OUTS) {
        size_t n_out = kern_min_size(OUTS, a.n_out - j);
        const uint8_t *w[OUTS];
        kern_ask ask = kern_ask_from((const uint8_t *)a.w + j * row_bytes, a.tuning);
        KERN_UNROLL for (size_t c = 0; c < OUTS; c++) w[c] = (const uint8_t *)a.w + (j + kern_min_size(c, n_out - 1)) * row_bytes;
        for (size_t k = 0; k < a.n_cols; k += KERN_CHUNK) {
            float sum[SUMS];
            few_chunk(type, &a, w, k, kern_min_size(k + KERN_CHUNK, a.n_cols), &ask, sum, n_rows);
            for (size_t r = 0; r < (size_t)n_rows; r++) {
                float *y = a.y + (r0 + r) * a.y_stride + j;
                for (size_t c = 0; c < n_out; c++) y[c] = k ? y[c] + sum[r * OUTS + c] : sum[r * OUTS + c];
            }
        }
    }
}

KERN_INLINE void few(uint32_t type, const kern_few_args *a)
{
    size_t r = 0;
    for (; r + 2 <= a->n_rows; r += 2) few_rows(type, a, r, 2);
    if (r < a->n_rows) few_rows(type, a, r, 1);
}

static void few_f16(const kern_few_args *a)
{
    few(QUANT_F16, a);
}

static void few_bf16(const kern_few_args *a)
{
    few(QUANT_BF16, a);
}

static void few_f32(const kern_few_args *a)
{
    few(QUANT_F32, a);
}

void kern_fill_avx2_pack_few(kern_table *t)
{
    t->few[QUANT_F16] = few_f16;
    t->few[QUANT_BF16] = few_bf16;
    t->few[QUANT_F32] = few_f32;
}
