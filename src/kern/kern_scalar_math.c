/* kern_scalar_math.c - matrix product, normalisation and the elementwise kernels in plain C, f32: for any processor. */
#include "kern_scalar.h"

static void gemm(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_out, size_t n_in, float *y, size_t y_stride)
{
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t j = 0; j < n_out; j++) {
            float sum = 0;
            for (size_t k = 0; k < n_in; k += KERN_CHUNK)
                sum += scalar_dot(x + r * x_stride + k, w + j * w_stride + k, kern_min_size(KERN_CHUNK, n_in - k));
            y[r * y_stride + j] = sum;
        }
    }
}

/* The square sum has the lanes and the tree of a dot product. */
static void rms_norm(const float *x, const float *weight, size_t n, float eps, float *out)
{
    double acc[KERN_LANES] = {0};
    for (size_t i = 0; i < n; i++) acc[i % KERN_LANES] += (double)x[i] * (double)x[i];
    for (int half = KERN_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) acc[i] += acc[i + half];
    double mean = n ? acc[0] / (double)n + (double)eps : 0;
    double scale = mean > 0 ? 1.0 / sqrt(mean) : 0.0;
    for (size_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * scale * (double)weight[i]);
}

/* v / (1 + e^-v) by t = e^-|v|, which cannot overflow: v / (1 + t), and below zero v t / (1 + t). */
static void swiglu(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float v = gate[i], t = scalar_exp(-fabsf(v));
        gate[i] = (v < 0 ? v * t : v) / (1.0f + t) * up[i];
    }
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

void kern_rotate_rest(size_t from, const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out)
{
    for (size_t i = from; i < n_pairs; i++) {
        size_t at = halves ? i : 2 * i, to = halves ? i + n_pairs : 2 * i + 1;
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = x[at], b = x[to];
        out[at] = (a * c - b * s) * scale;
        out[to] = (a * s + b * c) * scale;
    }
}

static void rotate(const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out)
{
    kern_rotate_rest(0, x, cos_sin, n_pairs, halves, scale, out);
}

static void to_f16(const float *src, size_t n, kern_f16 *dst)
{
    for (size_t i = 0; i < n; i++) dst[i] = kern_f32_to_f16(src[i]);
}

void kern_fill_scalar_math(kern_table *t)
{
    t->gemm = gemm;
    t->rms_norm = rms_norm;
    t->swiglu = swiglu;
    t->add = add;
    t->rotate = rotate;
    t->to_f16 = to_f16;
}
