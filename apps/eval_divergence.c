/* eval_divergence.c - how far apart two predictions are. */
#include "eval_divergence.h"

#include <math.h>

double divergence_log_sum(const float *x, size_t n, size_t *top)
{
    double sum = 0;
    *top = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[*top]) *top = i;
    for (size_t i = 0; i < n; i++) sum += (double)expf(x[i] - x[*top]);
    return (double)x[*top] + log(sum);
}

void divergence_probabilities(const float *x, double log_sum, size_t n, double *probabilities)
{
    for (size_t i = 0; i < n; i++) probabilities[i] = exp((double)x[i] - log_sum);
}

double divergence_kld(const double *probabilities, const float *p, double p_log, const float *q, double q_log, size_t n)
{
    double kld = 0;
    for (size_t i = 0; i < n; i++) kld += probabilities[i] * (((double)p[i] - p_log) - ((double)q[i] - q_log));
    return kld <= 0 ? 0 : kld;
}
