/* rope.c - frequencies after scaling, and the cosines and sines of one position.
 *
 * Everything is computed in f64: at a million positions an angle kept in f32 would be off by a tenth of a turn. */
#include "rope.h"
#include "mem.h"

#include <math.h>

static const double two_pi = 6.283185307179586476925286766559;

/* The pair whose wave turns n_turns times over the trained context (not rounded). */
static double yarn_pair_of_turns(const model_rope *r, double n_turns)
{
    return r->n_dims * log(r->orig_ctx / (n_turns * two_pi)) / (2 * log((double)r->freq_base));
}

/* How much of the original frequency pair i keeps: 1 up to the pair that turns beta_fast times, 0 from the one that turns beta_slow times. */
static double yarn_keep(const model_rope *r, uint32_t i)
{
    double low = fmax(0, floor(yarn_pair_of_turns(r, (double)r->yarn_beta_fast)));
    double high = fmin(r->n_dims - 1.0, ceil(yarn_pair_of_turns(r, (double)r->yarn_beta_slow)));
    double ramp = (i - low) / fmax(0.001, high - low);
    return 1 - fmin(1, fmax(0, ramp));
}

static double scaled_freq(const model_rope *r, uint32_t i, double freq)
{
    if (r->scaling == SPW_ROPE_NONE) return freq;
    double interpolated = freq / (double)r->factor;
    if (r->scaling == SPW_ROPE_LINEAR) return interpolated;
    double mix = yarn_keep(r, i) * (double)r->yarn_ext_factor;
    return interpolated * (1 - mix) + freq * mix;
}

spw_status rope_init(rope_table *t, const model_rope *r, const float *freqs, spw_err *err)
{
    SPW_CHECK(r->n_dims >= 2 && r->n_dims % 2 == 0 && r->scaling != SPW_ROPE_MODEL);
    uint32_t n = r->n_dims / 2;
    for (uint32_t i = 0; freqs && i < n; i++)
        if (!isfinite(freqs[i]) || freqs[i] <= 0)
            return spw_fail(err, SPW_E_FORMAT, "tensor \"rope_freqs.weight\": element %u is %g, expected a finite number above 0", i, (double)freqs[i]);
    double *freq = mem_calloc(n, sizeof *freq);
    if (!freq) return spw_fail(err, SPW_E_NOMEM, "no memory for %u RoPE frequencies", n);
    for (uint32_t i = 0; i < n; i++) {
        double base = pow((double)r->freq_base, -2.0 * i / r->n_dims);
        freq[i] = scaled_freq(r, i, freqs ? base / (double)freqs[i] : base);
    }
    double mscale = (double)r->attn_factor;
    if (r->scaling == SPW_ROPE_YARN && r->yarn_ext_factor != 0 && r->factor > 1) mscale *= 1 + 0.1 * log((double)r->factor);
    *t = (rope_table){.n_pairs = n, .freq = freq, .mscale = (float)mscale};
    return SPW_OK;
}

void rope_free(rope_table *t)
{
    mem_free(t->freq);
    *t = (rope_table){0};
}

void rope_angles(const rope_table *t, uint64_t pos, float *cos_sin)
{
    double m = (double)t->mscale;
    for (uint32_t i = 0; i < t->n_pairs; i++) {
        double angle = fmod((double)pos * t->freq[i], two_pi);
        cos_sin[2 * i] = (float)(m * cos(angle));
        cos_sin[2 * i + 1] = (float)(m * sin(angle));
    }
}
