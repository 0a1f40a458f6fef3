/* kern_avx2_math.c - matrix product, normalisation and the elementwise kernels for AVX2 with FMA and F16C.
 *
 * The matrix product works in register tiles of 8 sums (2 rows by 4 outputs, or 1 by 8), whatever the shape: lanes 0-7 over the chunk, then
 * lanes 8-15, folded together at the end.  An element never knows which tile it was in. */
#include "kern_avx2.h"

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

/* One half of the lanes, from element `first` (0 or 8) of every 16, for n_r rows by 8 / n_r outputs. */
KERN_INLINE void gemm_half(const gemm_tile *t, const float *const *w, size_t first, __m256 *acc, const int n_r)
{
    const int n_c = AVX2_LANES / n_r;
    KERN_UNROLL for (int i = 0; i < AVX2_LANES; i++) acc[i] = _mm256_setzero_ps();
    size_t k = first;
    for (; k + AVX2_LANES <= t->n_k; k += KERN_LANES) {
        __m256 x[2];
        KERN_UNROLL for (int r = 0; r < n_r; r++) x[r] = _mm256_loadu_ps(t->x + (size_t)r * t->x_stride + k);
        KERN_UNROLL for (int c = 0; c < n_c; c++) {
            __m256 v = _mm256_loadu_ps(w[c] + k);
            KERN_UNROLL for (int r = 0; r < n_r; r++) acc[r * n_c + c] = _mm256_fmadd_ps(x[r], v, acc[r * n_c + c]);
        }
    }
    if (k >= t->n_k) return;
    __m256i rest = avx2_first((int)(t->n_k - k));
    KERN_UNROLL for (int c = 0; c < n_c; c++) {
        __m256 v = _mm256_maskload_ps(w[c] + k, rest);
        KERN_UNROLL for (int r = 0; r < n_r; r++)
            acc[r * n_c + c] = _mm256_fmadd_ps(_mm256_maskload_ps(t->x + (size_t)r * t->x_stride + k, rest), v, acc[r * n_c + c]);
    }
}

/* The chunk's part of n_r rows by 8 / n_r outputs. */
KERN_INLINE void gemm_tile_run(const gemm_tile *t, const int n_r)
{
    const int n_c = AVX2_LANES / n_r;
    const float *w[AVX2_LANES];
    __m256 low[AVX2_LANES], high[AVX2_LANES];
    float sum[AVX2_LANES];
    KERN_UNROLL for (int c = 0; c < n_c; c++) w[c] = t->w + kern_min_size((size_t)c, t->n_out - 1) * t->w_stride;
    gemm_half(t, w, 0, low, n_r);
    gemm_half(t, w, AVX2_LANES, high, n_r);
    KERN_UNROLL for (int i = 0; i < AVX2_LANES; i++) low[i] = _mm256_add_ps(low[i], high[i]);
    _mm256_storeu_ps(sum, avx2_fold8(low));
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
    for (; j < end; j += (size_t)(AVX2_LANES / n_r)) {
        u.w = t->w + j * t->w_stride;
        u.y = t->y + r * t->y_stride + j;
        u.n_out = end - j;
        gemm_tile_run(&u, n_r);
    }
}

static void gemm(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_out, size_t n_in, float *y, size_t y_stride)
{
    size_t by_two = n_rows & ~(size_t)1;
    for (size_t r = 0; r < n_rows && !n_in; r++) memset(y + r * y_stride, 0, n_out * sizeof *y);
    for (size_t k = 0; k < n_in; k += KERN_CHUNK) {
        gemm_tile t = {.x = x + k, .w = w + k, .x_stride = x_stride, .w_stride = w_stride, .y_stride = y_stride, .y = y, .add = k > 0};
        t.n_k = kern_min_size(KERN_CHUNK, n_in - k);
        for (size_t j = 0; j < n_out && by_two; j += OUT_BLOCK)
            for (size_t r = 0; r < by_two; r += 2) gemm_rows(&t, r, j, kern_min_size(j + OUT_BLOCK, n_out), 2);
        if (n_rows & 1) gemm_rows(&t, n_rows - 1, 0, n_out, 1);
    }
}

/* acc[i]: lanes 4 i to 4 i + 3 of the 16. */
KERN_INLINE void add_squares(__m256d *acc, __m256 low, __m256 high)
{
    __m128 parts[4] = {_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1), _mm256_castps256_ps128(high), _mm256_extractf128_ps(high, 1)};
    KERN_UNROLL for (int i = 0; i < 4; i++) {
        __m256d v = _mm256_cvtps_pd(parts[i]);
        acc[i] = _mm256_fmadd_pd(v, v, acc[i]);
    }
}

/* The sum of squares is exact per product in f64, so fused or not is the same; lanes and tree are those of a dot product. */
static double square_sum(const float *x, size_t n)
{
    __m256d acc[4];
    KERN_UNROLL for (int i = 0; i < 4; i++) acc[i] = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + KERN_LANES <= n; i += KERN_LANES) add_squares(acc, _mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i + AVX2_LANES));
    if (i < n) {
        int rest = (int)(n - i);
        __m256 high = rest > AVX2_LANES ? _mm256_maskload_ps(x + i + AVX2_LANES, avx2_first(rest - AVX2_LANES)) : _mm256_setzero_ps();
        add_squares(acc, _mm256_maskload_ps(x + i, avx2_first(rest)), high);
    }
    __m256d h = _mm256_add_pd(_mm256_add_pd(acc[0], acc[2]), _mm256_add_pd(acc[1], acc[3]));
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

static void rms_norm(const float *x, const float *weight, size_t n, float eps, float *out)
{
    if (!n) return;
    double mean = square_sum(x, n) / (double)n + (double)eps, scale = mean > 0 ? 1.0 / sqrt(mean) : 0.0;
    __m256d by = _mm256_set1_pd(scale);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        __m256d v = _mm256_mul_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + i)), by);
        _mm_storeu_ps(out + i, _mm256_cvtpd_ps(_mm256_mul_pd(v, _mm256_cvtps_pd(_mm_loadu_ps(weight + i)))));
    }
    for (; i < n; i++) out[i] = (float)((double)x[i] * scale * (double)weight[i]);
}

/* v / (1 + e^-v) by t = e^-|v|, which cannot overflow: v / (1 + t), and below zero v t / (1 + t). */
static void swiglu(float *gate, const float *up, size_t n)
{
    __m256 sign = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        __m256i some = avx2_first((int)kern_min_size(AVX2_LANES, n - i));
        __m256 v = _mm256_maskload_ps(gate + i, some), t = avx2_exp(_mm256_or_ps(v, sign));
        __m256 top = _mm256_blendv_ps(v, _mm256_mul_ps(v, t), _mm256_cmp_ps(v, zero, _CMP_LT_OQ));
        __m256 silu = _mm256_div_ps(top, _mm256_add_ps(_mm256_set1_ps(1.0f), t));
        _mm256_maskstore_ps(gate + i, some, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, some)));
    }
}

static void add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + AVX2_LANES <= n; i += AVX2_LANES) _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

/* Pairs that are adjacent: each element times its cosine, plus or minus the other one times its sine. */
static size_t rotate_adjacent(const float *x, const float *cos_sin, size_t n_pairs, float scale, float *out)
{
    size_t i = 0;
    for (; i + 4 <= n_pairs; i += 4) {
        __m256 v = _mm256_loadu_ps(x + 2 * i), angles = _mm256_loadu_ps(cos_sin + 2 * i);
        __m256 own = _mm256_mul_ps(v, _mm256_moveldup_ps(angles)), other = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), _mm256_movehdup_ps(angles));
        _mm256_storeu_ps(out + 2 * i, _mm256_mul_ps(_mm256_addsub_ps(own, other), _mm256_set1_ps(scale)));
    }
    return i;
}

static size_t rotate_halves(const float *x, const float *cos_sin, size_t n_pairs, float scale, float *out)
{
    size_t i = 0;
    for (; i + AVX2_LANES <= n_pairs; i += AVX2_LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + n_pairs), by = _mm256_set1_ps(scale);
        __m256 low = _mm256_loadu_ps(cos_sin + 2 * i), high = _mm256_loadu_ps(cos_sin + 2 * i + AVX2_LANES);
        /* a shuffle leaves the middle two quarters in each other's place */
        __m256 c = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88)), 0xd8));
        __m256 s = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd)), 0xd8));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)), by));
        _mm256_storeu_ps(out + i + n_pairs, _mm256_mul_ps(_mm256_add_ps(_mm256_mul_ps(a, s), _mm256_mul_ps(b, c)), by));
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
    for (size_t i = 0; i < n; i += AVX2_LANES) {
        size_t some = kern_min_size(AVX2_LANES, n - i);
        __m256 v = some == AVX2_LANES ? _mm256_loadu_ps(src + i) : _mm256_maskload_ps(src + i, avx2_first((int)some));
        kern_f16 halves[AVX2_LANES];
        _mm_storeu_si128((__m128i *)(void *)halves, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        memcpy(dst + i, halves, some * sizeof *dst);
    }
}

void kern_fill_avx2_math(kern_table *t)
{
    t->gemm = gemm;
    t->rms_norm = rms_norm;
    t->swiglu = swiglu;
    t->add = add;
    t->rotate = rotate;
    t->to_f16 = to_f16;
}
