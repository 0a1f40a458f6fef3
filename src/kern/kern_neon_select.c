/* kern_neon_select.c - scores of rows of halves for NEON; the k largest are found by plain C.
 *
 * Four rows at a time, all quarters of their sums at once. */
#include "kern_neon.h"

/* The quarters of 16 elements. */
KERN_INLINE void halves_at(const kern_f16 *p, float32x4_t *x)
{
    KERN_UNROLL for (int v = 0; v < NEON_QUARTERS; v++) x[v] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + v * NEON_LANES)));
}

/* Scores of one query with n_t <= 4 rows. */
KERN_INLINE void score_tile(const kern_score_args *a, size_t first, size_t g, const int n_t)
{
    const kern_f16 *rows = a->rows + first * a->n;
    const float *q = a->q + g * a->q_stride;
    float total[4] = {0};
    for (size_t chunk = 0; chunk < a->n; chunk += KERN_CHUNK) {
        size_t end = chunk + kern_min_size(KERN_CHUNK, a->n - chunk);
        float32x4_t acc[NEON_TILE];
        KERN_UNROLL for (int i = 0; i < NEON_TILE; i++) acc[i] = vdupq_n_f32(0);
        for (size_t d = chunk; d < end; d += KERN_LANES) {
            KERN_UNROLL for (int t = 0; t < n_t; t++) {
                float32x4_t x[NEON_QUARTERS];
                halves_at(rows + (size_t)t * a->n + d, x);
                KERN_UNROLL for (int v = 0; v < NEON_QUARTERS; v++)
                    acc[t * NEON_QUARTERS + v] = vfmaq_f32(acc[t * NEON_QUARTERS + v], vld1q_f32(q + d + (size_t)v * NEON_LANES), x[v]);
            }
        }
        vst1q_f32(total, vaddq_f32(vld1q_f32(total), neon_fold4(acc)));
    }
    memcpy(a->scores + g * a->stride + first, total, (size_t)n_t * sizeof(float));
}

static void score_rows(const kern_score_args *a)
{
    size_t i = 0;
    for (; i + 4 <= a->n_rows; i += 4)
        for (size_t g = 0; g < a->n_q; g++) score_tile(a, i, g, 4);
    for (; i < a->n_rows; i++)
        for (size_t g = 0; g < a->n_q; g++) score_tile(a, i, g, 1);
}

void kern_fill_neon_select(kern_table *t)
{
    t->score_rows = score_rows;
}
