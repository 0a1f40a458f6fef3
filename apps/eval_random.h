/* eval_random.h - the random numbers of eval's made-up texts: the same on every machine for a seed.
 *
 * A stream is started from a seed, a name and two numbers, so that a sample is the same whatever else is asked for beside it. */
#ifndef SPW_APP_EVAL_RANDOM_H
#define SPW_APP_EVAL_RANDOM_H

#include <stddef.h>
#include <stdint.h>

typedef struct eval_random {
    uint64_t state;
} eval_random;

/* splitmix64 */
static inline uint64_t random_next(eval_random *r)
{
    uint64_t x = r->state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline eval_random random_start(uint64_t seed, const char *name, uint64_t a, uint64_t b)
{
    eval_random r = {seed};
    for (const char *p = name; *p; p++) r.state = random_next(&r) ^ (unsigned char)*p;
    r.state = random_next(&r) ^ a;
    r.state = random_next(&r) ^ b;
    return r;
}

/* 0 .. n-1; n is at least 1 and below 2^32. */
static inline size_t random_below(eval_random *r, size_t n)
{
    return (size_t)(((random_next(r) >> 32) * (uint64_t)n) >> 32);
}

/* [0, 1) */
static inline double random_unit(eval_random *r)
{
    return (double)(random_next(r) >> 11) / 9007199254740992.0;
}

#endif
