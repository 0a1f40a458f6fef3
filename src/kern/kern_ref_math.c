/* kern_ref_math.c - matrix product, normalisation and the elementwise kernels, slow and obvious: sums in f64, libm. */
#include "kern.h"

#include <math.h>

static void gemm(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_out, size_t n_in, float *y, size_t y_stride)
{
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t j = 0; j < n_out; j++) {
            double sum = 0;
            for (size_t k = 0; k < n_in; k++) sum += (double)x[r * x_stride + k] * (double)w[j * w_stride + k];
            y[r * y_stride + j] = (float)sum;
        }
    }
}

/* A zero vector without eps stays zero. */
static void rms_norm(const float *x, const float *weight, size_t n, float eps, float *out)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    double mean = n ? sum / (double)n + (double)eps : 0;
    double scale = mean > 0 ? 1.0 / sqrt(mean) : 0.0;
    for (size_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * scale * (double)weight[i]);
}

static void swiglu(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) gate[i] = (float)((double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i]);
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

/* In f32 like all others. */
static void rotate(const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out)
{
    for (size_t i = 0; i < n_pairs; i++) {
        size_t at = halves ? i : 2 * i, to = halves ? i + n_pairs : 2 * i + 1;
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = x[at], b = x[to];
        out[at] = (a * c - b * s) * scale;
        out[to] = (a * s + b * c) * scale;
    }
}

static void to_f16(const float *src, size_t n, kern_f16 *dst)
{
    for (size_t i = 0; i < n; i++) dst[i] = kern_f32_to_f16(src[i]);
}

void kern_fill_ref_math(kern_table *t)
{
    t->gemm = gemm;
    t->rms_norm = rms_norm;
    t->swiglu = swiglu;
    t->add = add;
    t->rotate = rotate;
    t->to_f16 = to_f16;
}
