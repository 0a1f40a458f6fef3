/* sampler.c - turns logits into tokens: penalty, top-k, top-p, min-p, temperature, draw.
 *
 * Everything is a function of the logits, the parameters, the accepted tokens and the number of draws so far, on any machine with the
 * same exp(): candidates are ordered by (logit descending, id ascending), which leaves no ties.  NaN counts as minus infinity. */
#include "spillway.h"

#include <math.h>
#include <string.h>

#include "mem.h"
#include "status.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct spw_sampler {
    spw_sampler_params params;
    uint64_t rng[4];
    int32_t *recent; /* ring of the last repeat_last_n accepted ids; NULL when the penalty is off */
    size_t n_recent, at_recent;
    candidate *cand; /* scratch, grown to the largest vocabulary seen: candidates, and behind them one for each block of logits */
    double *weight;  /* beside cand; until weights are wanted, room for penalised logits */
    size_t cap;
};

/* Logits are first looked at in blocks: a block's largest says whether any of it can be among the best. */
enum { BLOCK = 64, BLOCK_LANES = 8 };

/* ------------------------------------------------------------------------------ random numbers ---- */

/* xoshiro256++, its state filled by splitmix64 so that seeds that are close give streams that are not. */
static void rng_seed(uint64_t s[4], uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        s[i] = z ^ (z >> 31);
    }
}

static uint64_t rotate_left(uint64_t x, int n)
{
    return (x << n) | (x >> (64 - n));
}

/* Uniform in [0, 1). */
static double rng_uniform(uint64_t s[4])
{
    uint64_t result = rotate_left(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0], s[3] ^= s[1], s[1] ^= s[2], s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

/* ---------------------------------------------------------------------------------- selection ---- */

static bool comes_before(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void swap_candidates(candidate *a, candidate *b)
{
    candidate t = *a;
    *a = *b, *b = t;
}

/* Restores the heap below node i; its root is the candidate that comes last. */
static void sift_down(candidate *c, size_t n, size_t i)
{
    for (;;) {
        size_t last = i, left = 2 * i + 1, right = left + 1;
        if (left < n && comes_before(c[last], c[left])) last = left;
        if (right < n && comes_before(c[last], c[right])) last = right;
        if (last == i) return;
        swap_candidates(&c[i], &c[last]);
        i = last;
    }
}

/* Heap sort, best first: n log n in the worst case, and no memory. */
static void sort_candidates(candidate *c, size_t n)
{
    for (size_t i = n / 2; i-- > 0;) sift_down(c, n, i);
    for (size_t end = n; end > 1; end--) {
        swap_candidates(&c[0], &c[end - 1]);
        sift_down(c, end - 1, 0);
    }
}

/* Moves the k best of n to the front, in order.  For the usual k of some tens nearly every candidate fails the one comparison with the
 * heap's root, so this is one pass over the vocabulary. */
static void select_top_k(candidate *c, size_t n, size_t k)
{
    for (size_t i = k / 2; i-- > 0;) sift_down(c, k, i);
    for (size_t i = k; i < n; i++) {
        if (!comes_before(c[i], c[0])) continue;
        swap_candidates(&c[i], &c[0]);
        sift_down(c, k, 0);
    }
    sort_candidates(c, k);
}

static void put_best_first(candidate *c, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (comes_before(c[i], c[best])) best = i;
    }
    swap_candidates(&c[0], &c[best]);
}

/* ------------------------------------------------------------------------------------- filters ---- */

/* exp of each logit's distance to the best over temp, and their sum; c is not empty and c[0] is the best. */
static double fill_weights(const candidate *c, size_t n, double temp, double *weight)
{
    double sum = 0, best = (double)c[0].logit;
    for (size_t i = 0; i < n; i++) {
        /* Equal infinities have no difference; they are equally likely. */
        weight[i] = c[i].logit == c[0].logit ? 1 : exp(((double)c[i].logit - best) / temp);
        sum += weight[i];
    }
    return sum;
}

/* Keeps the smallest number of best candidates that reach the share top_p of the probability.  It usually takes few, so only as many as
 * that are put in order: 64, and eight times as many when they fall short. */
static size_t keep_top_p(candidate *c, size_t n, double top_p, double *weight)
{
    double wanted = top_p * fill_weights(c, n, 1, weight);
    for (size_t m = n < 64 ? n : 64;; m = n / 8 < m ? n : 8 * m) {
        select_top_k(c, n, m);
        fill_weights(c, m, 1, weight);
        double reached = 0;
        for (size_t i = 0; i < m; i++) {
            reached += weight[i];
            if (reached >= wanted) return i + 1;
        }
        if (m == n) return n; /* rounding only */
    }
}

/* Keeps, in their order, those that are at least min_p times as likely as the best. */
static size_t keep_min_p(candidate *c, size_t n, double min_p, double *weight)
{
    size_t n_kept = 0;
    fill_weights(c, n, 1, weight);
    for (size_t i = 0; i < n; i++) {
        if (weight[i] >= min_p) c[n_kept++] = c[i];
    }
    return n_kept;
}

static int32_t draw(spw_sampler *s, const double *weight, size_t n, double sum)
{
    double point = rng_uniform(s->rng) * sum;
    size_t last = 0; /* rounding may leave the point beyond the sum: then the last that is possible */
    for (size_t i = 0; i < n; i++) {
        if (weight[i] <= 0) continue;
        last = i;
        if (point < weight[i]) break;
        point -= weight[i];
    }
    return s->cand[last].id;
}

/* ------------------------------------------------------------------------------------- sampler ---- */

spw_sampler_params spw_sampler_default_params(void)
{
    return (spw_sampler_params){.temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1, .repeat_last_n = 64};
}

/* Every test is written so that NaN fails it. */
static spw_status check_params(const spw_sampler_params *p, spw_err *err)
{
    if (!(p->temp >= 0 && isfinite(p->temp))) return spw_fail(err, SPW_E_ARG, "temp must be a finite number of at least 0, not %g", (double)p->temp);
    if (p->top_k < 0) return spw_fail(err, SPW_E_ARG, "top_k must be at least 0 (0: off), not %d", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1)) return spw_fail(err, SPW_E_ARG, "top_p must be above 0 and at most 1 (1: off), not %g", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1)) return spw_fail(err, SPW_E_ARG, "min_p must be 0..1 (0: off), not %g", (double)p->min_p);
    if (!(p->repeat_penalty > 0 && isfinite(p->repeat_penalty)))
        return spw_fail(err, SPW_E_ARG, "repeat_penalty must be a finite number above 0 (1: off), not %g", (double)p->repeat_penalty);
    if (p->repeat_last_n < 0) return spw_fail(err, SPW_E_ARG, "repeat_last_n must be at least 0, not %d", p->repeat_last_n);
    return SPW_OK;
}

spw_status spw_sampler_create(spw_sampler **out, const spw_sampler_params *params, spw_err *err)
{
    spw_sampler_params used = params ? *params : spw_sampler_default_params();
    spw_status status = check_params(&used, err);
    if (status != SPW_OK) return status;
    spw_sampler *s = mem_zalloc(sizeof *s);
    if (!s) return spw_fail(err, SPW_E_NOMEM, "no memory for a sampler");
    s->params = used;
    rng_seed(s->rng, used.seed);
    if (used.repeat_penalty != 1 && used.repeat_last_n > 0) {
        s->recent = mem_calloc((size_t)used.repeat_last_n, sizeof s->recent[0]);
        if (!s->recent) {
            mem_free(s);
            return spw_fail(err, SPW_E_NOMEM, "no memory for a sampler that looks back repeat_last_n = %d tokens", used.repeat_last_n);
        }
    }
    *out = s;
    return SPW_OK;
}

void spw_sampler_free(spw_sampler *s)
{
    if (!s) return;
    mem_free(s->recent);
    mem_free(s->cand);
    mem_free(s->weight);
    mem_free(s);
}

void spw_sampler_accept(spw_sampler *s, int32_t id)
{
    if (!s->recent) return;
    size_t cap = (size_t)s->params.repeat_last_n;
    s->recent[s->at_recent] = id;
    s->at_recent = s->at_recent + 1 == cap ? 0 : s->at_recent + 1;
    if (s->n_recent < cap) s->n_recent++;
}

static float clean_logit(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

static float penalised(const spw_sampler *s, float logit)
{
    return logit > 0 ? logit / s->params.repeat_penalty : logit * s->params.repeat_penalty;
}

static float larger(float a, float b)
{
    return a > b ? a : b;
}

/* The largest of a whole block; minus infinity when all are NaN, which no comparison lets win.  Lanes of their own, so that a compiler can use vectors. */
static float block_best(const float *v)
{
    float l[BLOCK_LANES];
    for (int j = 0; j < BLOCK_LANES; j++) l[j] = -INFINITY;
    for (int i = 0; i < BLOCK; i += BLOCK_LANES) {
        for (int j = 0; j < BLOCK_LANES; j++) l[j] = larger(v[i + j], l[j]);
    }
    return larger(larger(larger(l[0], l[4]), larger(l[1], l[5])), larger(larger(l[2], l[6]), larger(l[3], l[7])));
}

/* The best, the first of equals; 0 when all are NaN or minus infinity. */
static int32_t find_best(const float *logits, size_t n)
{
    float best = -INFINITY;
    size_t at = 0, i = 0;
    for (size_t b = 0; b + BLOCK <= n; b += BLOCK) {
        float largest = block_best(logits + b);
        if (largest > best) best = largest, at = b;
        i = b + BLOCK;
    }
    for (; i < n; i++) {
        if (logits[i] > best) best = logits[i], at = i;
    }
    if (best == -INFINITY) return 0;
    while (!(logits[at] >= best)) at++;
    return (int32_t)at;
}

/* Makes room for n candidates; false when there is no memory. */
static bool grow_scratch(spw_sampler *s, size_t n)
{
    size_t cand_bytes, weight_bytes;
    if (n <= s->cap) return true;
    if (!mul_size(n + n / BLOCK, sizeof s->cand[0], &cand_bytes) || !mul_size(n, sizeof s->weight[0], &weight_bytes)) return false;
    candidate *cand = mem_alloc(cand_bytes);
    double *weight = cand ? mem_alloc(weight_bytes) : NULL;
    if (!weight) {
        mem_free(cand);
        return false;
    }
    mem_free(s->cand);
    mem_free(s->weight);
    s->cand = cand, s->weight = weight, s->cap = n;
    return true;
}

/* The logits with the penalty, in scratch.  A recent id is penalised once however often it occurs: the penalty is taken of the original logit. */
static const float *penalise(spw_sampler *s, const float *logits, size_t n)
{
    float *out = (float *)(void *)s->weight;
    if (s->n_recent == 0) return logits;
    memcpy(out, logits, n * sizeof *out);
    for (size_t i = 0; i < s->n_recent; i++) {
        int32_t id = s->recent[i];
        if (id >= 0 && (size_t)id < n) out[id] = penalised(s, clean_logit(logits[id]));
    }
    return out;
}

static void fill_candidates(candidate *c, const float *logits, size_t first, size_t end)
{
    for (size_t i = first; i < end; i++) *c++ = (candidate){clean_logit(logits[i]), (int32_t)i};
}

/* Leaves the k best of n logits, k < n, at the front of the candidates, in order.  The k-th best block has k logits that are at least as large as
 * its best, so what is below that is out, which is nearly everything. */
static void take_top_k(spw_sampler *s, const float *logits, size_t n, size_t k)
{
    size_t n_blocks = n / BLOCK, n_taken = 0;
    candidate *blocks = s->cand + n;
    if (k > n_blocks) {
        fill_candidates(s->cand, logits, 0, n);
        select_top_k(s->cand, n, k);
        return;
    }
    for (size_t b = 0; b < n_blocks; b++) blocks[b] = (candidate){block_best(logits + b * BLOCK), (int32_t)b};
    select_top_k(blocks, n_blocks, k);
    float least = blocks[k - 1].logit;
    for (size_t b = 0; b < n_blocks; b++) {
        if (blocks[b].logit < least) continue;
        for (size_t i = (size_t)blocks[b].id * BLOCK, end = i + BLOCK; i < end; i++) {
            if (clean_logit(logits[i]) >= least) s->cand[n_taken++] = (candidate){clean_logit(logits[i]), (int32_t)i};
        }
    }
    fill_candidates(s->cand + n_taken, logits, n_blocks * BLOCK, n);
    select_top_k(s->cand, n_taken + n - n_blocks * BLOCK, k);
}

/* top_p and min_p look at the probabilities before temperature.  Candidates are in order only as far as a filter needs it; the best is
 * always first.  Without memory for the candidates the choice is the best logit, without penalty. */
int32_t spw_sampler_sample(spw_sampler *s, const float *logits, size_t n)
{
    const spw_sampler_params *p = &s->params;
    bool greedy = p->temp <= 0;
    if ((greedy && s->n_recent == 0) || n == 0 || !grow_scratch(s, n)) return find_best(logits, n);
    logits = penalise(s, logits, n);
    if (greedy) return find_best(logits, n);
    if (p->top_k > 0 && (size_t)p->top_k < n) {
        take_top_k(s, logits, n, (size_t)p->top_k);
        n = (size_t)p->top_k;
    } else {
        fill_candidates(s->cand, logits, 0, n);
        put_best_first(s->cand, n);
    }
    if (p->top_p < 1) n = keep_top_p(s->cand, n, (double)p->top_p, s->weight);
    if (p->min_p > 0) n = keep_min_p(s->cand, n, (double)p->min_p, s->weight);
    double sum = fill_weights(s->cand, n, (double)p->temp, s->weight);
    return draw(s, s->weight, n, sum);
}
