/* kern_q8.h - what the kernels of 8-bit rows share: the numbers of their arithmetic, which is integer wherever it sums (kern.h says what they compute).
 *
 * The one thing to know: sums of integers are exact, so how a kernel groups rows, queries and elements cannot change a bit; only what is listed here is
 * rounded, and each of these operations is the same in every ISA. */
#ifndef SPW_KERN_Q8_H
#define SPW_KERN_Q8_H

#include "kern_attend.h"

/* The largest integer of a scaled query and of a weight: 127 * 256, so that either is two bytes. */
#define KERN_Q8_MOST 32512.0f
/* Below this the largest |q * k_scale| of a query and the largest weight of a tile count as 0: their reciprocals would not be finite. */
#define KERN_Q8_LEAST 1e-30f

#endif
