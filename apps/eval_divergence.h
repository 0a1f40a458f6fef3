/* eval_divergence.h - how far apart two predictions are. */
#ifndef SPW_APP_EVAL_DIVERGENCE_H
#define SPW_APP_EVAL_DIVERGENCE_H

#include <stddef.h>

/* log of the sum of exponentials of n logits; *top is the first of the largest. */
double divergence_log_sum(const float *x, size_t n, size_t *top);
/* Kullback-Leibler divergence of the prediction of logits q from that of p, natural logarithm.  probabilities: [n], those of p; p_log, q_log: their log sums.  0 where rounding would make it negative; not a number where a logit is
 * none. */
double divergence_kld(const double *probabilities, const float *p, double p_log, const float *q, double q_log, size_t n);
/* The probabilities of n logits whose log sum is given. */
void divergence_probabilities(const float *x, double log_sum, size_t n, double *probabilities);

#endif
