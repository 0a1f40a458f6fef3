/* policy_rest.c - means of V for what is not chosen (policy_rest.h).  docs/FIDELITY.md has what the constants are worth. */
#include "policy_rest.h"

#include <math.h>
#include <string.h>

#define LEAN  0.5f   /* 0.4 to 0.6 differ by a tenth of the divergence, 0 and 0.8 double it */
#define DOUBT 0.1f   /* masses count e^(-DOUBT s^4) times, s^2 the variance of an estimate: nearly whole up to a variance of 1 nat, hardly from 5 on */
#define LEAST 1e-20f /* masses below and above mean that head and norm have nothing to do with each other */
#define MOST  1e20f

void policy_rest_lay_out(policy_rest_work *w, policy_layout *l, const policy_query *q, size_t n_pages)
{
    w->n_pages = n_pages;
    w->chosen = policy_layout_take(l, q->n_q * n_pages * sizeof *w->chosen);
    w->left = policy_layout_take(l, q->n_q * n_pages * sizeof *w->left);
    w->means = policy_layout_take(l, n_pages * sizeof *w->means);
    w->o = policy_layout_take(l, (size_t)q->n_q * q->dim * sizeof *w->o);
    w->lse = policy_layout_take(l, q->n_q * sizeof *w->lse);
}

size_t policy_rest_bytes(const policy_query *q, size_t n_pages)
{
    return n_pages * q->dim * sizeof(kern_f16);
}

void policy_rest_ask(const policy_rest_work *w, const policy_query *q, uint64_t first_page, size_t first, size_t n)
{
    for (size_t p = first; p < first + n; p++) {
        w->means[p] = kv_value_mean(q->seq, q->layer, q->head, first_page + p);
        for (size_t d = 0; d < q->dim; d += MEM_ALIGN / sizeof(kern_f16)) __builtin_prefetch(w->means[p] + d, 0, 2);
    }
}

static float sum_of(const float *x, size_t n)
{
    enum { WIDTH = 16 };
    float lane[WIDTH] = {0}, sum = 0;
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        for (size_t j = 0; j < WIDTH; j++) lane[j] += x[i + j];
    for (; i < n; i++) lane[0] += x[i];
    for (size_t j = 0; j < WIDTH; j++) sum += lane[j];
    return sum;
}

static float length_squared(const float *q, size_t dim)
{
    float sum = 0;
    for (size_t d = 0; d < dim; d++) sum += q[d] * q[d];
    return sum;
}

/* How far masses can be believed whose scores have errors of this variance. */
static float trust(float variance)
{
    return expf(-DOUBT * variance * variance);
}

/* Makes the masses of a head the weights of the pages' means, in the place of left; returns the mass of all that is left, 0: nothing can be said. */
static float weigh_head(const policy_rest_work *w, size_t g, float other)
{
    float *chosen = w->chosen + g * w->n_pages, *left = w->left + g * w->n_pages;
    const float all_chosen = sum_of(chosen, w->n_pages), all_left = sum_of(left, w->n_pages), mass = all_left + other;
    if (!(all_left > LEAST && mass < MOST && all_chosen < MOST)) {
        memset(left, 0, w->n_pages * sizeof *left);
        return 0;
    }
    const float of_left = 1 / all_left, of_chosen = all_chosen > LEAST ? LEAN / all_chosen : 0;
    for (size_t p = 0; p < w->n_pages; p++) left[p] = of_left * left[p] - of_chosen * chosen[p];
    return mass;
}

policy_rest policy_rest_make(policy_rest_work *w, const policy_query *q, const float *norm, const float *other, float variance)
{
    for (uint32_t g = 0; g < q->n_q; g++) {
        const float mass = trust(variance * length_squared(q->q + g * q->q_stride, q->dim)) * weigh_head(w, g, other[g]);
        w->lse[g] = mass > LEAST ? norm[g] + logf(mass) : -INFINITY;
    }
    q->kern->index_mix(w->left, w->n_pages, q->n_q, w->means, w->n_pages, q->dim, w->o);
    return (policy_rest){.o = w->o, .lse = w->lse, .lean = LEAN};
}
