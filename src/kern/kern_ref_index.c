/* kern_ref_index.c - the index of keys, slow and obvious: codes row by row, estimates in f64 from the codes and the rotated query as it is, not rounded to integers. */
#include <math.h>
#include <string.h>

#include "kern.h"
#include "kern_index_code.h"
#include "kern_scalar.h"

size_t kern_index_bytes(size_t n_rows, size_t dim, unsigned planes)
{
    return index_layout_of(n_rows, dim, planes).bytes;
}

size_t kern_index_scan_bytes(size_t n_pos, size_t dim)
{
    return n_pos * (dim / 8 + sizeof(kern_f16)) + n_pos * dim * sizeof(kern_f16) / 128;
}

size_t kern_index_refine_bytes(size_t n_pos, size_t dim, unsigned planes)
{
    return n_pos * (planes - 1) * (dim / 8);
}

float kern_index_variance(const void *const *pages, size_t n_pages, size_t page_rows, size_t dim, unsigned planes)
{
    const index_layout at = index_layout_of(page_rows, dim, planes);
    const size_t step = (n_pages + INDEX_SOME - 1) / INDEX_SOME;
    size_t n = 0;
    float sum = 0;
    for (size_t i = 0; i < n_pages; i += step, n++) {
        const kern_f16 *scales = (const kern_f16 *)(const void *)((const uint8_t *)pages[i] + at.scales);
        const float mean = index_sign_factor(planes) * kern_f16_to_f32(scales[i % page_rows]); /* of |r| */
        sum += mean * mean;
    }
    return index_left(planes) * INDEX_HALF_PI * sum / (float)n;
}

float kern_index_sign_variance(unsigned planes)
{
    return index_left(1) / index_left(planes);
}

size_t kern_index_query_bytes(size_t n_q, size_t dim)
{
    return index_query_numbers(n_q, dim) * sizeof(float) + n_q * index_table_bytes(dim);
}

size_t kern_index_scratch(size_t n_q, size_t dim)
{
    return index_scratch_bytes(n_q, dim);
}

/* ---- codes ------------------------------------------------------------------------------------------ */

static void hadamard(float *x, size_t n)
{
    for (size_t h = 1; h < n; h *= 2)
        for (size_t i = 0; i < n; i++)
            if (!(i & h)) {
                float u = x[i], v = x[i + h];
                x[i] = u + v, x[i + h] = u - v;
            }
    for (size_t i = 0; i < n; i++) x[i] *= 1.0f / sqrtf((float)n);
}

static void rotate(float *x, size_t dim)
{
    size_t at = 0;
    for (size_t n = KERN_INDEX_DIM; n; n /= 2)
        if (dim & n) hadamard(x + at, n), at += n;
    for (size_t n = KERN_INDEX_DIM; n && (dim & (dim - 1)); n /= 2)
        if (dim & n) hadamard(x + at - n, n), at -= n;
}

/* A sum over channels: of 16 lanes, folded by a tree. */
static float sum_of(const float *x, size_t dim)
{
    float lanes[KERN_LANES] = {0};
    for (size_t d = 0; d < dim; d++) lanes[d % KERN_LANES] += x[d];
    return scalar_fold(lanes);
}

/* A row that is rotated and has no mean any more. */
static void code_row(const float *r, size_t dim, unsigned planes, size_t position, uint8_t *signs, kern_f16 *scale, uint8_t *outer)
{
    float square[KERN_INDEX_DIM], product[KERN_INDEX_DIM];
    for (size_t d = 0; d < dim; d++) square[d] = r[d] * r[d];
    float mean_square = sum_of(square, dim) / (float)dim;
    for (size_t d = 0; d < dim; d++) {
        int beyond = 0, most = 1 << (planes - 1);
        while (beyond + 1 < most && r[d] * r[d] > index_limit(mean_square, planes, beyond + 1)) beyond++;
        int level = 2 * beyond + 1, bits = ((r[d] >= 0 ? level : -level) + 2 * most - 1) / 2; /* the largest of them is of the sign */
        signs[d / 8 * KERN_INDEX_GROUP + index_entry(position)] |= (uint8_t)((bits >> (planes - 1)) << d % 8);
        for (unsigned p = 1; p < planes; p++) outer[(p - 1) * (dim / 8) + d / 8] |= (uint8_t)((bits >> (planes - 1 - p) & 1) << d % 8);
        product[d] = (float)level * fabsf(r[d]);
        square[d] = (float)(level * level);
    }
    *scale = index_half(sum_of(product, dim) / sum_of(square, dim));
}

static void code(const float *k, size_t stride, size_t n_rows, size_t dim, unsigned planes, void *out)
{
    index_layout at = index_layout_of(n_rows, dim, planes);
    uint8_t *base = out;
    kern_f16 *mean = (kern_f16 *)(void *)(base + at.mean), *scales = (kern_f16 *)(void *)(base + at.scales);
    float sum[KERN_INDEX_DIM] = {0}, r[KERN_INDEX_DIM];
    memset(out, 0, at.bytes);
    for (size_t d = 0; d < dim; d++) {
        for (size_t i = 0; i < n_rows; i++) sum[d] += k[i * stride + d];
        sum[d] /= (float)n_rows;
    }
    rotate(sum, dim);
    for (size_t d = 0; d < dim; d++) mean[d] = index_half(sum[d]);
    for (size_t i = 0; i < n_rows; i++) {
        memcpy(r, k + i * stride, dim * sizeof *r);
        rotate(r, dim);
        for (size_t d = 0; d < dim; d++) r[d] -= kern_f16_to_f32(mean[d]);
        code_row(r, dim, planes, i % KERN_INDEX_GROUP, base + i / KERN_INDEX_GROUP * at.group_bytes, &scales[i], base + at.outer + i * at.outer_bytes);
    }
}

/* ---- scans ------------------------------------------------------------------------------------------ */

static void prepare(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared)
{
    float *rotated = index_query_at(prepared, n_q, dim).rotated;
    for (size_t g = 0; g < n_q; g++) {
        memcpy(rotated + g * dim, q + g * q_stride, dim * sizeof *q);
        rotate(rotated + g * dim, dim);
    }
}

/* The estimate of one score, from the signs or from all planes. */
static double estimate(const kern_index_scan *a, size_t number, size_t row, size_t g, bool all)
{
    const uint8_t *page = a->pages[number];
    index_layout at = index_layout_of(a->page_rows, a->dim, a->planes);
    const uint8_t *signs = page + row / KERN_INDEX_GROUP * at.group_bytes, *outer = (a->outer ? (const uint8_t *)a->outer[number] : page + at.outer) + row * at.outer_bytes;
    const kern_f16 *mean = (const kern_f16 *)(const void *)(page + at.mean), *scales = (const kern_f16 *)(const void *)(page + at.scales);
    const float *q = index_query_at(a->query, a->n_q, a->dim).rotated + g * a->dim;
    double offset = 0, sum = 0, scale = (double)kern_f16_to_f32(scales[row]);
    for (size_t d = 0; d < a->dim; d++) {
        int s = signs[d / 8 * KERN_INDEX_GROUP + index_entry(row % KERN_INDEX_GROUP)] >> d % 8 & 1 ? 1 : -1, level = s;
        for (unsigned p = 1; all && p < a->planes; p++) level = 2 * level + (outer[(p - 1) * at.row_bytes + d / 8] >> d % 8 & 1 ? 1 : -1);
        offset += (double)q[d] * (double)kern_f16_to_f32(mean[d]);
        sum += (double)q[d] * level;
    }
    return offset + (all ? 1 : (double)index_sign_factor(a->planes)) * scale * sum;
}

static bool is_kept(const kern_index_scan *a, size_t page, size_t row)
{
    for (size_t g = 0; g < a->n_q; g++)
        if (estimate(a, page, row, g, false) - (double)(a->norm ? a->norm[g] : 0) >= (double)a->threshold) return true;
    return false;
}

static size_t scan(const kern_index_scan *a)
{
    size_t groups = (a->page_rows + KERN_INDEX_GROUP - 1) / KERN_INDEX_GROUP, n = 0;
    for (uint32_t p = a->first; p < a->end; p++) {
        size_t page = p / a->page_rows, row = p % a->page_rows;
        if ((page * groups + row / KERN_INDEX_GROUP) % a->every || !is_kept(a, page, row)) continue;
        for (size_t g = 0; g < a->n_q; g++)
            a->estimates[g * a->stride + n] = (float)estimate(a, page, row, g, a->refine && a->planes > 1);
        a->ids[n++] = p;
    }
    return n;
}

/* ---- votes ------------------------------------------------------------------------------------------ */

static void lse(const float *estimates, size_t stride, size_t n, size_t n_q, float *out)
{
    for (size_t g = 0; g < n_q; g++) {
        double most = -INFINITY, sum = 0;
        for (size_t i = 0; i < n; i++) most = fmax(most, (double)estimates[g * stride + i]);
        for (size_t i = 0; i < n; i++) sum += exp((double)estimates[g * stride + i] - most);
        out[g] = n ? (float)(most + log(sum)) : -INFINITY;
    }
}

static void votes(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse_of, bool largest, float *out)
{
    for (size_t i = 0; i < n; i++) {
        double vote = 0;
        for (size_t g = 0; g < n_q; g++) {
            double v = exp(fmin((double)estimates[g * stride + i] - (double)lse_of[g], (double)KERN_INDEX_VOTE));
            vote = largest ? fmax(vote, v) : vote + v;
        }
        out[i] = (float)vote;
    }
}

/* ---- means ------------------------------------------------------------------------------------------ */

static void mean_of(const float *v, size_t stride, size_t n_rows, size_t dim, kern_f16 *mean)
{
    for (size_t d = 0; d < dim; d++) {
        float sum = v[d];
        for (size_t i = 1; i < n_rows; i++) sum += v[i * stride + d];
        mean[d] = index_half(sum / (float)n_rows);
    }
}

static void mix(const float *weights, const kern_f16 *const *means, size_t n, size_t dim, float *o)
{
    for (size_t d = 0; d < dim; d++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += (double)weights[i] * (double)kern_f16_to_f32(means[i][d]);
        o[d] = (float)sum;
    }
}

void kern_fill_ref_index(kern_table *t)
{
    t->index_code = code;
    t->index_query = prepare;
    t->index_scan = scan;
    t->index_lse = lse;
    t->index_votes = votes;
    t->index_mean = mean_of;
    t->index_mix = mix;
}
