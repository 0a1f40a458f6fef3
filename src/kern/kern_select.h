/* kern_select.h - what the kernels that choose share: scores as integers that sort alike, and the search for the k-th largest.
 *
 * The one thing to know: a search holds two keys, low and high, such that at least k scores are at or above low and fewer than k at or above high.  When they are
 * neighbours, everything from high on is chosen, and of the scores at low as many as are still wanted, first come first.  When exactly k are at or above low it is
 * over too. */
#ifndef SPW_KERN_SELECT_H
#define SPW_KERN_SELECT_H

#include <string.h>

#include "kern_simd.h"

/* Order of floats as order of integers; both zeros are one. */
KERN_INLINE int32_t select_key(float score)
{
    int32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
}

KERN_INLINE float select_score(int32_t key)
{
    float score;
    int32_t bits = key ^ (int32_t)((uint32_t)(key >> 31) >> 1);
    memcpy(&score, &bits, sizeof score);
    return score;
}

typedef struct select_search {
    int32_t low, high;
    size_t from_low, above; /* scores at or above low; at or above high */
    uint32_t step;
} select_search;

/* A key strictly between low and high, which are not neighbours: by turns the middle of the scores, which suits scores that are spread evenly, and the middle of
 * the keys, which ends in 32 steps whatever they are. */
static inline int32_t select_middle(select_search *s)
{
    if (s->step++ % 2 == 0) {
        float a = select_score(s->low), b = select_score(s->high);
        int32_t key = select_key(a * 0.5f + b * 0.5f);
        if (key > s->low && key < s->high) return key;
    }
    return (int32_t)(((int64_t)s->low + s->high) >> 1);
}

static inline bool select_open(const select_search *s, size_t k)
{
    return s->from_low != k && (int64_t)s->high - s->low > 1;
}

/* count: how many scores are at or above middle. */
static inline void select_narrow(select_search *s, int32_t middle, size_t count, size_t k)
{
    if (count >= k) s->low = middle, s->from_low = count;
    else s->high = middle, s->above = count;
}

#endif
