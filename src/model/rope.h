/* rope.h - rotary position embedding tables: per position and pair, cosine and sine after scaling.
 *
 * Linear scaling divides positions by the factor; YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2-3.4) mixes interpolated and original
 * frequencies by a ramp over dimensions and multiplies by 0.1 ln(factor) + 1; Llama 3 divides each frequency by the file's rope_freqs. */
#ifndef SPW_ROPE_H
#define SPW_ROPE_H

#include "model.h"

typedef struct rope_table {
    uint32_t n_pairs;
    double *freq; /* n_pairs: radians per position, scaling applied */
    float mscale; /* multiplies cosine and sine */
} rope_table;

/* freqs: model's rope_freqs divisors (n_pairs floats) or NULL.  Owned by the caller, rope_free. */
spw_status rope_init(rope_table *t, const model_rope *r, const float *freqs, spw_err *err);
void rope_free(rope_table *t);
/* cos_sin[2 * i], [2 * i + 1] = mscale * cos, sin of pair i at pos.  The angle is reduced in f64, so that a million positions keep their phase. */
void rope_angles(const rope_table *t, uint64_t pos, float *cos_sin);

#endif
