/* kern_many.h - what many_tile shares between ISAs (kern.h has the arithmetic): steps, scratch, what is known of a group of queries. */
#ifndef SPW_KERN_MANY_H
#define SPW_KERN_MANY_H

#include "kern_attend.h"

enum { MANY_QUERIES = 6, MANY_K_MOST = 8191, MANY_V_MOST = 4095, MANY_P_MOST = 4095 }; /* queries of a group; largest integers of keys, values and weights */

/* The parts of the scratch. */
typedef struct many_work {
    int32_t *k;          /* pairs of channels 2j and 2j + 1 of KERN_MANY positions */
    int32_t *v;          /* pairs of positions 2i and 2i + 1 of dim channels */
    float *mid, *step;   /* [2 * dim]: of K's channels, then V's */
    int16_t *q;          /* [MANY_QUERIES][dim] */
    float *s;            /* [MANY_QUERIES][KERN_MANY] */
    int16_t *p;          /* [MANY_QUERIES][KERN_MANY] */
} many_work;

static inline many_work many_lay_out(void *scratch, size_t dim)
{
    many_work w;
    uint8_t *at = scratch;
    w.k = (int32_t *)(void *)at, at += dim / 2 * KERN_MANY * sizeof *w.k;
    w.v = (int32_t *)(void *)at, at += KERN_MANY / 2 * dim * sizeof *w.v;
    w.mid = (float *)(void *)at, at += 2 * dim * sizeof *w.mid;
    w.step = (float *)(void *)at, at += 2 * dim * sizeof *w.step;
    w.s = (float *)(void *)at, at += MANY_QUERIES * KERN_MANY * sizeof *w.s;
    w.p = (int16_t *)(void *)at, at += MANY_QUERIES * KERN_MANY * sizeof *w.p;
    w.q = (int16_t *)(void *)at;
    return w;
}

/* What is known of a group's queries in one tile; lane r: query r. */
typedef struct many_group {
    float step[KERN_LANES], base[KERN_LANES]; /* of scores: what an integer is worth, and what all have in common */
    float most[KERN_LANES], sum[KERN_LANES];  /* largest score; sum of weights */
} many_group;

/* A query's steps are as small as 16 bits and the sum of its products with MANY_K_MOST allow: rounding adds at most half a step a channel. */
#define MANY_Q_MOST 32767.0f
#define MANY_SUM_MOST 261900.0f /* 2^31 / MANY_K_MOST, less KERN_MANY_DIM / 2 */

/* 2^x, x between -1/2 and 1/2; relative error 3e-6. */
#define MANY_EXP2_C4 0.00957010188f
#define MANY_EXP2_C3 0.0559178639f
#define MANY_EXP2_C2 0.240247449f
#define MANY_EXP2_C1 0.693121814f
#define MANY_EXP2_C0 0.999999261f

static inline float many_lse(float m, float l)
{
    return l > 0 ? (float)((double)m * 0.69314718055994531 + log((double)l / MANY_P_MOST)) : -INFINITY;
}

#endif
