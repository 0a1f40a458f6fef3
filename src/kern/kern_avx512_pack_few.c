/* kern_avx512_pack_few.c - few rows times weights of halves or floats as they lie in the file, for AVX-512.
 *
 * Two outputs at a time, each with its sum of 16 lanes in the order of gemm (kern_simd.h), so the bits are those of the path for many rows.  Memory-bound: the weights
 * of two outputs are adjacent, so their lines are asked for in the order of addresses, whatever the order of use. */
#include "kern_avx512.h"
#include "kern_pack_ask.h"

enum { OUTS = 2 }; /* streams of weights: four are read a tenth slower, eight a quarter (Zen 4, one thread) */

/* 16 weights; of first_weights_at those under the mask, the others 0. */
KERN_INLINE __m512 weights_at(uint32_t type, const uint8_t *p)
{
    if (type == QUANT_F32) return _mm512_loadu_ps(p);
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return type == QUANT_F16 ? _mm512_cvtph_ps(v) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

KERN_INLINE __m512 first_weights_at(uint32_t type, const uint8_t *p, __mmask16 first)
{
    if (type == QUANT_F32) return _mm512_maskz_loadu_ps(first, p);
    __m256i v = _mm256_maskz_loadu_epi16(first, p);
    return type == QUANT_F16 ? _mm512_cvtph_ps(v) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* Columns [k0, k0 + n) of n_rows rows by OUTS outputs, n <= KERN_CHUNK. */
KERN_INLINE void few_chunk(uint32_t type, const kern_few_args *a, const uint8_t *const *w, size_t k0, size_t n, kern_ask *ask, __m512 acc[][OUTS], const size_t n_rows)
{
    const size_t bytes = type == QUANT_F32 ? 4 : 2;
    KERN_UNROLL for (size_t r = 0; r < n_rows; r++)
        KERN_UNROLL for (int c = 0; c < OUTS; c++) acc[r][c] = _mm512_setzero_ps();
    size_t k = k0, end = k0 + n;
    for (; k + KERN_LANES <= end; k += KERN_LANES) {
        kern_ask_on(ask, OUTS * KERN_LANES * bytes, 0);
        __m512 x[KERN_FEW_ROWS];
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) x[r] = _mm512_loadu_ps(a->x + r * a->x_stride + k);
        KERN_UNROLL for (int c = 0; c < OUTS; c++) {
            __m512 v = weights_at(type, w[c] + k * bytes);
            KERN_UNROLL for (size_t r = 0; r < n_rows; r++) acc[r][c] = _mm512_fmadd_ps(x[r], v, acc[r][c]);
        }
    }
    if (k == end) return;
    __mmask16 rest = avx512_first(end - k);
    KERN_UNROLL for (int c = 0; c < OUTS; c++) {
        __m512 v = first_weights_at(type, w[c] + k * bytes, rest);
        KERN_UNROLL for (size_t r = 0; r < n_rows; r++) acc[r][c] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, a->x + r * a->x_stride + k), v, acc[r][c]);
    }
}

KERN_INLINE void few_rows(uint32_t type, const kern_few_args *a, const size_t n_rows)
{
    const size_t row_bytes = a->n_cols * (type == QUANT_F32 ? 4 : 2);
    for (size_t j = 0; j < a->n_out; j += OUTS) {
        size_t n_out = kern_min_size(OUTS, a->n_out - j);
        const uint8_t *w[OUTS];
        kern_ask ask = kern_ask_from((const uint8_t *)a->w + j * row_bytes, a->tuning);
        KERN_UNROLL for (size_t c = 0; c < OUTS; c++) w[c] = (const uint8_t *)a->w + (j + kern_min_size(c, n_out - 1)) * row_bytes;
        for (size_t k = 0; k < a->n_cols; k += KERN_CHUNK) {
            __m512 acc[KERN_FEW_ROWS][OUTS];
            few_chunk(type, a, w, k, kern_min_size(KERN_CHUNK, a->n_cols - k), &ask, acc, n_rows);
            KERN_UNROLL for (size_t r = 0; r < n_rows; r++) {
                float *y = a->y + r * a->y_stride + j, sum[OUTS];
                KERN_UNROLL for (int c = 0; c < OUTS; c++) sum[c] = avx512_fold(acc[r][c]);
                for (size_t c = 0; c < n_out; c++) y[c] = k ? y[c] + sum[c] : sum[c];
            }
        }
    }
}

KERN_INLINE void few(uint32_t type, const kern_few_args *a)
{
    switch (a->n_rows) {
    case 1: few_rows(type, a, 1); return;
    case 2: few_rows(type, a, 2); return;
    case 3: few_rows(type, a, 3); return;
    case 4: few_rows(type, a, 4); return;
    default: return;
    }
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

void kern_fill_avx512_pack_few(kern_table *t)
{
    t->few[QUANT_F16] = few_f16;
    t->few[QUANT_BF16] = few_bf16;
    t->few[QUANT_F32] = few_f32;
}
