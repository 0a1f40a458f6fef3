/* policy_rest.c - means of V for what is not chosen (policy_rest.h).  docs/FIDELITY.md has what the constants are worth. */
#include "policy_rest.h"

#include <math.h>
#include <string.h>

#define LEAN  0.5f   /* 0.4 and 0.6 cost up to a fifth of the divergence, 0.8 two thirds, and with 0 SmolLM2 has 14 times as much */
#define DOUBT 0.1f   /* masses count e^(-DOUBT s^4) times, s^2 the variance of an estimate: nearly whole up to a variance of 1 nat^2, hardly from 5 on */
#define LEAST 1e-20f /* masses below and above mean that head and norm have nothing to do with each other */
#define MOST  1e20f

void policy_rest_lay_out(policy_rest_work *w, policy_layout *l, const policy_query *q, size_t n_pages)
{
    w->n_pages = n_pages;
    w->chosen = policy_layout_take(l, n_pages * sizeof *w->chosen);
    w->left = policy_layout_take(l, n_pages * sizeof *w->left);
    w->means = policy_layout_take(l, n_pages * sizeof *w->means);
    w->o = policy_layout_take(l, q->dim * sizeof *w->o);
    w->lse = policy_layout_take(l, q->n_q * sizeof *w->lse);
}

size_t policy_rest_bytes(const policy_query *q, size_t n_pages)
{
    return n_pages * q->dim * sizeof(kern_f16);
}

void policy_rest_ask(const policy_rest_work *w, const policy_query *q, uint64_t first_page, size_t first, size_t n)
{
    kv_value_means(q->seq, q->layer, q->head, first_page + first, n, w->means + first);
    for (size_t p = first; p < first + n; p++)
        for (size_t d = 0; d < q->dim; d += MEM_ALIGN / sizeof(kern_f16)) __builtin_prefetch(w->means[p] + d, 0, 2);
}

static float sum_of(const float *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
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

/* Makes the weights of the pages' means, in the place of left; false: there are none. */
static bool weigh_pages(const policy_rest_work *w)
{
    const float all_chosen = sum_of(w->chosen, w->n_pages), all_left = sum_of(w->left, w->n_pages);
    if (!(all_left > LEAST && all_left < MOST && all_chosen < MOST)) return false;
    const float of_left = 1 / all_left, of_chosen = all_chosen > LEAST ? LEAN / all_chosen : 0;
    for (size_t p = 0; p < w->n_pages; p++) w->left[p] = of_left * w->left[p] - of_chosen * w->chosen[p];
    return true;
}

policy_rest policy_rest_make(policy_rest_work *w, const policy_query *q, const float *norm, const float *mass, float variance)
{
    if (!weigh_pages(w)) return (policy_rest){0};
    for (uint32_t g = 0; g < q->n_q; g++) {
        const float believed = trust(variance * length_squared(q->q + g * q->q_stride, q->dim)) * mass[g];
        w->lse[g] = believed > LEAST && believed < MOST ? norm[g] + logf(believed) : -INFINITY;
    }
    q->kern->index_mix(w->left, w->means, w->n_pages, q->dim, w->o);
    return (policy_rest){.o = w->o, .lse = w->lse, .lean = LEAN};
}
