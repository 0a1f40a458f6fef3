/* kern_neon_math.c - matrix product, normalisation and the elementwise kernels for AArch64.
 *
 * The matrix product works in register tiles of 16 vectors: 4, 2 or 1 rows by 4 outputs, with 1, 2 or 4 quarters of the lanes at a time, folded
 * together at the end.  An element never knows which tile it was in. */
#include "kern_neon.h"

#include <math.h>

enum { OUT_BLOCK = 8 }; /* outputs whose chunk of weights stays in L1 while the rows pass: 16 KiB */

typedef struct gemm_tile {
    const float *x, *w; /* at the tile's corner and the chunk's start */
    size_t x_stride, w_stride, y_stride;
    size_t n_k;   /* 1 .. KERN_CHUNK */
    size_t n_out; /* outputs that exist, at least 1; the tile computes the last of them again in place of those that don't */
    float *y;
    bool add; /* false for the first chunk */
} gemm_tile;

/* The n <= 4 elements from k on, of n_r rows by 4 outputs, into the vectors that hold their quarter. */
KERN_INLINE void gemm_rest(const gemm_tile *t, const float *const *w, size_t k, size_t n, float32x4_t *acc, const int n_r, const int n_q)
{
    KERN_UNROLL for (int c = 0; c < NEON_COLUMNS; c++) {
        float32x4_t v = neon_load_first(w[c] + k, n);
        KERN_UNROLL for (int r = 0; r < n_r; r++) {
            float32x4_t *a = acc + (r * NEON_COLUMNS + c) * n_q;
            *a = vfmaq_f32(*a, neon_load_first(t->x + (size_t)r * t->x_stride + k, n), v);
        }
    }
}

/* Quarters [first, first + n_q) of n_r rows by 4 outputs; n_r * n_q is 4.  acc: n_q quarters of an element, then those of the next. */
KERN_INLINE void gemm_quarters(const gemm_tile *t, const float *const *w, int first, float32x4_t *acc, const int n_r, const int n_q)
{
    size_t from = (size_t)first * NEON_LANES, k = 0;
    KERN_UNROLL for (int i = 0; i < NEON_TILE; i++) acc[i] = vdupq_n_f32(0);
    for (; k + KERN_LANES <= t->n_k; k += KERN_LANES) {
        float32x4_t x[NEON_QUARTERS];
        KERN_UNROLL for (int r = 0; r < n_r; r++)
            KERN_UNROLL for (int q = 0; q < n_q; q++) x[r * n_q + q] = vld1q_f32(t->x + (size_t)r * t->x_stride + k + from + (size_t)q * NEON_LANES);
        KERN_UNROLL for (int c = 0; c < NEON_COLUMNS; c++) {
            KERN_UNROLL for (int q = 0; q < n_q; q++) {
                float32x4_t v = vld1q_f32(w[c] + k + from + (size_t)q * NEON_LANES);
                KERN_UNROLL for (int r = 0; r < n_r; r++) {
                    float32x4_t *a = acc + (r * NEON_COLUMNS + c) * n_q + q;
                    *a = vfmaq_f32(*a, x[r * n_q + q], v);
                }
            }
        }
    }
    KERN_UNROLL for (int q = 0; q < n_q; q++) {
        size_t at = k + from + (size_t)q * NEON_LANES;
        if (at < t->n_k) gemm_rest(t, w, at, kern_min_size(NEON_LANES, t->n_k - at), acc + q, n_r, n_q);
    }
}

/* The chunk's part of n_r rows by 4 outputs. */
KERN_INLINE void gemm_tile_run(const gemm_tile *t, const int n_r)
{
    const int n_q = NEON_QUARTERS / n_r;
    const float *w[NEON_COLUMNS];
    float32x4_t all[NEON_TILE * NEON_QUARTERS], part[NEON_TILE];
    KERN_UNROLL for (int c = 0; c < NEON_COLUMNS; c++) w[c] = t->w + kern_min_size((size_t)c, t->n_out - 1) * t->w_stride;
    for (int first = 0; first < NEON_QUARTERS; first += n_q) {
        gemm_quarters(t, w, first, part, n_r, n_q);
        KERN_UNROLL for (int i = 0; i < NEON_TILE; i++) all[i / n_q * NEON_QUARTERS + first + i % n_q] = part[i];
    }
    size_t n = kern_min_size(NEON_COLUMNS, t->n_out);
    KERN_UNROLL for (int r = 0; r < n_r; r++) {
        float *y = t->y + (size_t)r * t->y_stride, sum[NEON_COLUMNS];
        vst1q_f32(sum, neon_fold4(all + r * NEON_TILE));
        for (size_t c = 0; c < n; c++) y[c] = t->add ? y[c] + sum[c] : sum[c];
    }
}

/* Rows [r, r + n_r) by outputs [j, end) of one chunk; t holds corner (0, 0). */
KERN_INLINE void gemm_rows(const gemm_tile *t, size_t r, size_t j, size_t end, const int n_r)
{
    gemm_tile u = *t;
    u.x += r * t->x_stride;
    for (; j < end; j += NEON_COLUMNS) {
        u.w = t->w + j * t->w_stride;
        u.y = t->y + r * t->y_stride + j;
        u.n_out = end - j;
        gemm_tile_run(&u, n_r);
    }
}

static void gemm(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_out, size_t n_in, float *y, size_t y_stride)
{
    for (size_t r = 0; r < n_rows && !n_in; r++) memset(y + r * y_stride, 0, n_out * sizeof *y);
    for (size_t k = 0; k < n_in; k += KERN_CHUNK) {
        gemm_tile t = {.x = x + k, .w = w + k, .x_stride = x_stride, .w_stride = w_stride, .y_stride = y_stride, .y = y, .add = k > 0};
        t.n_k = kern_min_size(KERN_CHUNK, n_in - k);
        for (size_t j = 0; j < n_out; j += OUT_BLOCK) {
            size_t r = 0, end = kern_min_size(j + OUT_BLOCK, n_out);
            for (; r + 4 <= n_rows; r += 4) gemm_rows(&t, r, j, end, 4);
            if (n_rows & 2) gemm_rows(&t, r, j, end, 2);
            if (n_rows & 1) gemm_rows(&t, n_rows - 1, j, end, 1);
        }
    }
}

/* acc[i]: lanes 2 i and 2 i + 1 of the 16. */
KERN_INLINE void add_squares(float64x2_t *acc, float32x4_t x)
{
    float64x2_t low = vcvt_f64_f32(vget_low_f32(x)), high = vcvt_high_f64_f32(x);
    acc[0] = vfmaq_f64(acc[0], low, low);
    acc[1] = vfmaq_f64(acc[1], high, high);
}

/* The sum of squares is exact per product in f64, so fused or not is the same; lanes and tree are those of a dot product. */
static double square_sum(const float *x, size_t n)
{
    float64x2_t acc[8];
    KERN_UNROLL for (int i = 0; i < 8; i++) acc[i] = vdupq_n_f64(0);
    size_t i = 0;
    for (; i + KERN_LANES <= n; i += KERN_LANES)
        KERN_UNROLL for (int q = 0; q < NEON_QUARTERS; q++) add_squares(acc + 2 * q, vld1q_f32(x + i + (size_t)q * NEON_LANES));
    for (int q = 0; q < NEON_QUARTERS && i < n; q++, i += NEON_LANES) add_squares(acc + 2 * q, neon_load_first(x + i, kern_min_size(NEON_LANES, n - i)));
    KERN_UNROLL for (int j = 0; j < 4; j++) acc[j] = vaddq_f64(acc[j], acc[j + 4]);
    float64x2_t h = vaddq_f64(vaddq_f64(acc[0], acc[2]), vaddq_f64(acc[1], acc[3]));
    return vgetq_lane_f64(h, 0) + vgetq_lane_f64(h, 1);
}

static void rms_norm(const float *x, const float *weight, size_t n, float eps, float *out)
{
    if (!n) return;
    double mean = square_sum(x, n) / (double)n + (double)eps, scale = mean > 0 ? 1.0 / sqrt(mean) : 0.0;
    float64x2_t by = vdupq_n_f64(scale);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(x + i), w = vld1q_f32(weight + i);
        float64x2_t low = vmulq_f64(vmulq_f64(vcvt_f64_f32(vget_low_f32(v)), by), vcvt_f64_f32(vget_low_f32(w)));
        float64x2_t high = vmulq_f64(vmulq_f64(vcvt_high_f64_f32(v), by), vcvt_high_f64_f32(w));
        vst1q_f32(out + i, vcvt_high_f32_f64(vcvt_f32_f64(low), high));
    }
    for (; i < n; i++) out[i] = (float)((double)x[i] * scale * (double)weight[i]);
}

/* v / (1 + e^-v) by t = e^-|v|, which cannot overflow: v / (1 + t), and below zero v t / (1 + t). */
KERN_INLINE float32x4_t silu(float32x4_t v)
{
    float32x4_t t = neon_exp(vnegq_f32(vabsq_f32(v)));
    float32x4_t top = vbslq_f32(vcltzq_f32(v), vmulq_f32(v, t), v);
    return vdivq_f32(top, vaddq_f32(vdupq_n_f32(1.0f), t));
}

static void swiglu(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + NEON_LANES <= n; i += NEON_LANES) vst1q_f32(gate + i, vmulq_f32(silu(vld1q_f32(gate + i)), vld1q_f32(up + i)));
    if (i == n) return;
    float last[NEON_LANES];
    vst1q_f32(last, vmulq_f32(silu(neon_load_first(gate + i, n - i)), neon_load_first(up + i, n - i)));
    memcpy(gate + i, last, (n - i) * sizeof *gate);
}

static void add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + NEON_LANES <= n; i += NEON_LANES) vst1q_f32(x + i, vaddq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

static void rotate(const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out)
{
    size_t i = 0;
    for (; i + NEON_LANES <= n_pairs; i += NEON_LANES) {
        float32x4x2_t angles = vld2q_f32(cos_sin + 2 * i), v;
        if (halves) v.val[0] = vld1q_f32(x + i), v.val[1] = vld1q_f32(x + i + n_pairs);
        else v = vld2q_f32(x + 2 * i);
        float32x4_t c = angles.val[0], s = angles.val[1], a = v.val[0], b = v.val[1];
        v.val[0] = vmulq_n_f32(vsubq_f32(vmulq_f32(a, c), vmulq_f32(b, s)), scale);
        v.val[1] = vmulq_n_f32(vaddq_f32(vmulq_f32(a, s), vmulq_f32(b, c)), scale);
        if (halves) vst1q_f32(out + i, v.val[0]), vst1q_f32(out + i + n_pairs, v.val[1]);
        else vst2q_f32(out + 2 * i, v);
    }
    if (i < n_pairs) kern_rotate_rest(i, x, cos_sin, n_pairs, halves, scale, out);
}

static void to_f16(const float *src, size_t n, kern_f16 *dst)
{
    size_t i = 0;
    for (; i + NEON_LANES <= n; i += NEON_LANES) vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
    for (; i < n; i++) dst[i] = kern_f32_to_f16(src[i]);
}

void kern_fill_neon_math(kern_table *t)
{
    t->gemm = gemm;
    t->rms_norm = rms_norm;
    t->swiglu = swiglu;
    t->add = add;
    t->rotate = rotate;
    t->to_f16 = to_f16;
}
