/* kern_pack_ask.h - asking for weights before they are needed: one stream of lines, in the order of addresses and in step with the lines used.
 *
 * What follows a panel, or some rows of a weight, in memory is what is used next, so the stream runs on over their ends; it reads nothing.  Each line is asked for again
 * nearer by, because processors drop what is asked for when too much is on its way, and at last into L1.
 * Measured on Zen 4, one thread, share of sequential reading for Q8_0 / Q4_0 / Q4_1 / Q4_K: 0.93 / 0.98 / 0.98 / 1.0; asked for once 24 KiB ahead 0.70 / 0.86 / 0.80 / 0.85, and
 * without the scales between the integers of two panels 0.67 / 0.75 / 0.65 / 0.65.  Where arithmetic is the limit (one row, AVX2) less is on its way, and asking for L2 once is
 * faster by the slots that requests take: 3 to 8 %. */
#ifndef SPW_KERN_PACK_ASK_H
#define SPW_KERN_PACK_ASK_H

#include "kern_simd.h"

enum { ASK_AHEAD = 48 << 10, ASK_LINE = 64 }; /* bytes */

typedef struct kern_ask {
    const char *at;
    size_t part; /* of a line that is due */
    kern_hint hint;
    bool again; /* two more times, on the way */
} kern_ask;

KERN_INLINE kern_ask kern_ask_from(const void *p, const kern_tuning *tuning)
{
    return (kern_ask){.at = p, .part = ASK_LINE - 1, .again = true, .hint = tuning ? tuning->hint : KERN_TUNING_DEFAULT.hint};
}

KERN_INLINE void kern_ask_line(const char *p, kern_hint hint, bool again)
{
    if (hint == KERN_HINT_T1) {
        __builtin_prefetch(p + ASK_AHEAD, 0, 2);
        if (again) __builtin_prefetch(p + ASK_AHEAD / 2, 0, 2);
        if (again) __builtin_prefetch(p + ASK_AHEAD / 4, 0, 2);
        __builtin_prefetch(p + ASK_AHEAD / 8, 0, 3);
    } else if (hint == KERN_HINT_T0) {
        __builtin_prefetch(p + ASK_AHEAD / 4, 0, 3);
        __builtin_prefetch(p + ASK_AHEAD / 8, 0, 3);
    }
}

/* Moves the stream on by whole lines and, in all calls together, by the bytes of part (at most a line each). */
KERN_INLINE void kern_ask_on(kern_ask *a, size_t whole, size_t part)
{
    KERN_UNROLL for (size_t i = 0; i < whole; i += ASK_LINE) kern_ask_line(a->at + i, a->hint, a->again);
    a->at += whole;
    a->part += part;
    if (a->part < ASK_LINE) return;
    kern_ask_line(a->at, a->hint, a->again);
    a->at += ASK_LINE;
    a->part -= ASK_LINE;
}

#endif
