/* kern_scalar_select.c - what choosing positions needs, in plain C: scores of rows of halves, and the k largest of many scores.
 *
 * Also the reference: the k-th largest is found by halving the range of keys, which needs no memory and no luck. */
#include "kern_scalar.h"
#include "kern_select.h"

static void score_rows(const kern_score_args *a)
{
    for (size_t i = 0; i < a->n_rows; i++) {
        const kern_f16 *row = a->rows + i * a->n;
        for (size_t g = 0; g < a->n_q; g++) {
            float sum = 0;
            for (size_t k = 0; k < a->n; k += KERN_CHUNK) {
                size_t n = kern_min_size(KERN_CHUNK, a->n - k);
                float x[KERN_CHUNK];
                for (size_t j = 0; j < n; j++) x[j] = scalar_from_half(row[k + j]);
                sum += scalar_dot(a->q + g * a->q_stride + k, x, n);
            }
            a->scores[g * a->stride + i] = sum;
        }
    }
}

static size_t count_from(const float *scores, size_t n, int32_t key)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += select_key(scores[i]) >= key;
    return count;
}

static void top_k(const float *scores, size_t n, size_t k, uint32_t *ids, uint32_t *scratch)
{
    (void)scratch;
    if (!k) return;
    int32_t most = select_key(scores[0]), least = most;
    for (size_t i = 1; i < n; i++) {
        int32_t key = select_key(scores[i]);
        least = key < least ? key : least;
        most = key > most ? key : most;
    }
    select_search s = {.low = least, .high = most + 1, .from_low = n}; /* keys of numbers are below INT32_MAX */
    while (select_open(&s, k)) {
        int32_t middle = select_middle(&s);
        select_narrow(&s, middle, count_from(scores, n, middle), k);
    }
    size_t at = 0, ties = k - s.above;
    for (size_t i = 0; i < n && at < k; i++) {
        int32_t key = select_key(scores[i]);
        if (key < s.low || (key < s.high && !ties)) continue;
        ties -= key < s.high;
        ids[at++] = (uint32_t)i;
    }
}

void kern_fill_scalar_select(kern_table *t)
{
    t->score_rows = score_rows;
    t->top_k = top_k;
}
