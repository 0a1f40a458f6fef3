/* kern_avx512_math.c - matrix product, normalisation and the elementwise kernels for AVX-512.
 *
 * The matrix product works in register tiles of 16 sums (4 rows by 4 outputs, 2 by 8 or 1 by 16), whatever the shape: one vector of lanes for
 * each sum, folded together at the end of each chunk.  An element never knows which tile it was in. */
#include "kern_avx512.h"

#include <math.h>
#include <string.h>

enum { OUT_BLOCK = 8 }; /* outputs whose chunk of weights stays in L1 while the rows pass: 16 KiB */

typedef struct gemm_tile {
    const float *x, *w; /* at the tile's corner and the chunk's start */
    size_t x_stride, w_stride, y_stride;
    size_t n_k;   /* 1 .. KERN_CHUNK */
    size_t n_out; /* outputs that exist, at least 1; the tile computes the last of them again in place of those that don't */
    float *y;
    bool add; /* false for the first chunk */
} gemm_tile;

/* The chunk's part of n_r rows by 16 / n_r outputs. */
KERN_INLINE void gemm_tile_run(const gemm_tile *t, const int n_r)
{
    const int n_c = KERN_LANES / n_r;
    const float *w[KERN_LANES];
    __m512 acc[KERN_LANES];
    float sum[KERN_LANES];
    KERN_UNROLL for (int i = 0; i < KERN_LANES; i++) acc[i] = _mm512_setzero_ps();
    KERN_UNROLL for (int c = 0; c < n_c; c++) w[c] = t->w + kern_min_size((size_t)c, t->n_out - 1) * t->w_stride;
    size_t k = 0;
    for (; k + KERN_LANES <= t->n_k; k += KERN_LANES) {
        __m512 x[4];
        KERN_UNROLL for (int r = 0; r < n_r; r++) x[r] = _mm512_loadu_ps(t->x + (size_t)r * t->x_stride + k);
        KERN_UNROLL for (int c = 0; c < n_c; c++) {
            __m512 v = _mm512_loadu_ps(w[c] + k);
            KERN_UNROLL for (int r = 0; r < n_r; r++) acc[r * n_c + c] = _mm512_fmadd_ps(x[r], v, acc[r * n_c + c]);
        }
    }
    if (k < t->n_k) {
        __mmask16 rest = avx512_first(t->n_k - k);
        KERN_UNROLL for (int c = 0; c < n_c; c++) {
            __m512 v = _mm512_maskz_loadu_ps(rest, w[c] + k);
            KERN_UNROLL for (int r = 0; r < n_r; r++)
                acc[r * n_c + c] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, t->x + (size_t)r * t->x_stride + k), v, acc[r * n_c + c]);
        }
    }
    _mm512_storeu_ps(sum, avx512_fold16(acc));
    size_t n = kern_min_size((size_t)n_c, t->n_out);
    KERN_UNROLL for (int r = 0; r < n_r; r++) {
        float *y = t->y + (size_t)r * t->y_stride;
        for (size_t c = 0; c < n; c++) y[c] = t->add ? y[c] + sum[r * n_c + (int)c] : sum[r * n_c + (int)c];
    }
}

/* Rows [r, r + n_r) by outputs [j, end) of one chunk; t holds corner (0, 0). */
KERN_INLINE void gemm_rows(const gemm_tile *t, size_t r, size_t j, size_t end, const int n_r)
{
    gemm_tile u = *t;
    u.x += r * t->x_stride;
    for (; j < end; j += (size_t)(KERN_LANES / n_r)) {
        u.w = t->w + j * t->w_stride;
        u.y = t->y + r * t->y_stride + j;
        u.n_out = end - j;
        gemm_tile_run(&u, n_r);
    }
}

static void gemm(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_out, size_t n_in, float *y, size_t y_stride)
{
    size_t by_four = n_rows & ~(size_t)3;
    for (size_t r = 0; r < n_rows && !n_in; r++) memset(y + r * y_stride, 0, n_out * sizeof *y);
    for (size_t k = 0; k < n_in; k += KERN_CHUNK) {
        gemm_tile t = {.x = x + k, .w = w + k, .x_stride = x_stride, .w_stride = w_stride, .y_stride = y_stride, .y = y, .add = k > 0};
        t.n_k = kern_min_size(KERN_CHUNK, n_in - k);
        for (size_t j = 0; j < n_out && by_four; j += OUT_BLOCK)
            for (size_t r = 0; r < by_four; r += 4) gemm_rows(&t, r, j, kern_min_size(j + OUT_BLOCK, n_out), 4);
        if (n_rows & 2) gemm_rows(&t, by_four, 0, n_out, 2);
        if (n_rows & 1) gemm_rows(&t, n_rows - 1, 0, n_out, 1);
    }
}

/* The sum of squares is exact per product in f64, so fused or not is the same; lanes and tree are those of a dot product. */
static double square_sum(const float *x, size_t n)
{
    __m512d low = _mm512_setzero_pd(), high = low;
    size_t i = 0;
    for (; i + KERN_LANES <= n; i += KERN_LANES) {
        __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(x + i)), b = _mm512_cvtps_pd(_mm256_loadu_ps(x + i + 8));
        low = _mm512_fmadd_pd(a, a, low);
        high = _mm512_fmadd_pd(b, b, high);
    }
    if (i < n) {
        __m512 v = _mm512_maskz_loadu_ps(avx512_first(n - i), x + i);
        __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        low = _mm512_fmadd_pd(a, a, low);
        high = _mm512_fmadd_pd(b, b, high);
    }
    low = _mm512_add_pd(low, high);
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(low), _mm512_extractf64x4_pd(low, 1));
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

static void rms_norm(const float *x, const float *weight, size_t n, float eps, float *out)
{
    if (!n) return;
    double mean = square_sum(x, n) / (double)n + (double)eps;
    __m512d scale = _mm512_set1_pd(mean > 0 ? 1.0 / sqrt(mean) : 0.0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m512d v = _mm512_mul_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x + i)), scale);
        _mm256_storeu_ps(out + i, _mm512_cvtpd_ps(_mm512_mul_pd(v, _mm512_cvtps_pd(_mm256_loadu_ps(weight + i)))));
    }
    if (i < n) {
        __mmask8 some = (__mmask8)avx512_first(n - i);
        __m512d v = _mm512_mul_pd(_mm512_cvtps_pd(_mm256_maskz_loadu_ps(some, x + i)), scale);
        v = _mm512_mul_pd(v, _mm512_cvtps_pd(_mm256_maskz_loadu_ps(some, weight + i)));
        _mm256_mask_storeu_ps(out + i, some, _mm512_cvtpd_ps(v));
    }
}

/* v / (1 + e^-v) by t = e^-|v|, which cannot overflow: v / (1 + t), and below zero v t / (1 + t). */
static void swiglu(float *gate, const float *up, size_t n)
{
    __m512 zero = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        __m512 v = _mm512_maskz_loadu_ps(some, gate + i), t = avx512_exp(_mm512_sub_ps(zero, _mm512_abs_ps(v)));
        __m512 top = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, zero, _CMP_LT_OQ), v, t);
        __m512 silu = _mm512_div_ps(top, _mm512_add_ps(_mm512_set1_ps(1.0f), t));
        _mm512_mask_storeu_ps(gate + i, some, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(some, up + i)));
    }
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        _mm512_mask_storeu_ps(x + i, some, _mm512_add_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_maskz_loadu_ps(some, y + i)));
    }
}

/* Pairs that are adjacent: each element times its cosine, plus or minus the other one times its sine. */
static size_t rotate_adjacent(const float *x, const float *cos_sin, size_t n_pairs, float scale, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n_pairs; i += 8) {
        __m512 v = _mm512_loadu_ps(x + 2 * i), angles = _mm512_loadu_ps(cos_sin + 2 * i);
        __m512 own = _mm512_mul_ps(v, _mm512_moveldup_ps(angles)), other = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), _mm512_movehdup_ps(angles));
        __m512 sum = _mm512_mask_sub_ps(_mm512_add_ps(own, other), 0x5555, own, other);
        _mm512_storeu_ps(out + 2 * i, _mm512_mul_ps(sum, _mm512_set1_ps(scale)));
    }
    return i;
}

static size_t rotate_halves(const float *x, const float *cos_sin, size_t n_pairs, float scale, float *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    size_t i = 0;
    for (; i + KERN_LANES <= n_pairs; i += KERN_LANES) {
        __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + n_pairs), by = _mm512_set1_ps(scale);
        __m512 low = _mm512_loadu_ps(cos_sin + 2 * i), high = _mm512_loadu_ps(cos_sin + 2 * i + KERN_LANES);
        __m512 c = _mm512_permutex2var_ps(low, even, high), s = _mm512_permutex2var_ps(low, odd, high);
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s)), by));
        _mm512_storeu_ps(out + i + n_pairs, _mm512_mul_ps(_mm512_add_ps(_mm512_mul_ps(a, s), _mm512_mul_ps(b, c)), by));
    }
    return i;
}

static void rotate(const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out)
{
    size_t done = halves ? rotate_halves(x, cos_sin, n_pairs, scale, out) : rotate_adjacent(x, cos_sin, n_pairs, scale, out);
    if (done < n_pairs) kern_rotate_rest(done, x, cos_sin, n_pairs, halves, scale, out);
}

static void to_f16(const float *src, size_t n, kern_f16 *dst)
{
    for (size_t i = 0; i < n; i += KERN_LANES) {
        __mmask16 some = avx512_first(kern_min_size(KERN_LANES, n - i));
        _mm256_mask_storeu_epi16(dst + i, some, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(some, src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

void kern_fill_avx512_math(kern_table *t)
{
    t->gemm = gemm;
    t->rms_norm = rms_norm;
    t->swiglu = swiglu;
    t->add = add;
    t->rotate = rotate;
    t->to_f16 = to_f16;
}
