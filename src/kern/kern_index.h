/* kern_index.h - the index of keys: low-bit codes of pages of keys, and the scan that estimates scores from them; and mean values of pages, which stand for what is not read.
 *
 * The one thing to know: a page's code is a function of the page's own keys, and the same bits in every ISA; estimates are the same bits in every ISA with vectors.
 * The idea is that of RaBitQ (Gao and Long 2024, section 3): rotate what is left of a vector behind a mean, keep signs and one factor, and estimate inner products from those.
 *
 * Code of a page of n_rows positions of one layer and KV head:
 *
 *   mean      of each channel, over the page; rotated; rounded to half: m
 *   rotation  Hadamard transforms of the powers of two that add up to dim, largest first (96: 64 then 32), divided by the root of their size; when there is more than one, then
 *             once more on blocks of the same sizes that are counted from the back, so that no channel stays among those of its block
 *   levels    of r = rotated k - m, P planes: the odd numbers from 1 - 2^P to 2^P - 1; |r| belongs to 2 i + 1 from i steps on, a step so many root mean squares of r that Gaussian
 *             values are coded best.  A level is written as the sum of 2^(P-1-p) s_p with signs s_p, p < P: s_0 is the sign of r
 *   scale     half: sum r c / sum c c of the levels c (least squares; one plane: mean |r|)
 *
 *   q.k is about q.m + scale * (sum of 2^(P-1-p) S_p), where S_p = sum q s_p, q rotated alike.  From signs alone: q.m + f scale S_0, f (1 of one plane) the best for Gaussian r.
 *
 * Layout, every area on a multiple of 64 bytes, the code itself too:
 *
 *   signs   [groups of 64 positions][dim / 8][64] bytes: bit b of byte j, entry e is channel 8 j + b (1: s = +1) of position 32 (e % 2) + e / 2 of its group
 *   scales  [groups][64] halves, in order of positions
 *   mean    [dim] halves
 *   outer   the other planes: [n_rows][planes - 1][dim / 8] bytes, bit 1: +1; begins after kern_index_bytes of one plane, and may be kept elsewhere: few of its rows are read, and what is
 *           scanned is then one stream
 *
 * Positions that fill up the last group have zeros.  The order of entries is such that sums of bytes, widened to 16 bits by taking even and odd ones, are in order of positions. */
#ifndef SPW_KERN_INDEX_H
#define SPW_KERN_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant.h"

enum { KERN_INDEX_GROUP = 64, KERN_INDEX_DIM = 512, KERN_INDEX_PLANES = 4 }; /* positions of a group; channels at most, a multiple of 16; planes at most */
enum { KERN_INDEX_USUAL = 3 }; /* planes of the default (docs/FIDELITY.md) */

/* Bytes of a page's code, a multiple of 64. */
size_t kern_index_bytes(size_t n_rows, size_t dim, unsigned planes);
/* Bytes that a scan reads for n positions (signs, scale, and the share of the mean of a page of 128), and that refining reads for n more (0 with one plane). */
size_t kern_index_scan_bytes(size_t n_pos, size_t dim);
size_t kern_index_refine_bytes(size_t n_pos, size_t dim, unsigned planes);

/* The variance of an estimated score for a query of length 1, from all planes: what is left of Gaussian r, from some of the scales of these pages.  n_pages >= 1. */
float kern_index_variance(const void *const *pages, size_t n_pages, size_t page_rows, size_t dim, unsigned planes);
/* How many times as large the variance of an estimate from the signs alone is. */
float kern_index_sign_variance(unsigned planes);

/* Makes the code of n_rows >= 1 keys, row stride in floats.  Writes every byte of kern_index_bytes. */
typedef void kern_index_code_fn(const float *k, size_t stride, size_t n_rows, size_t dim, unsigned planes, void *code);

/* Prepares n_q <= KERN_MAX_G queries, already scaled: rotates them, rounds them to integers of 8 bits at most and makes look-up tables.  prepared: kern_index_query_bytes,
 * 64-byte aligned; read by the scan of the same table of kernels only, by any number of threads. */
size_t kern_index_query_bytes(size_t n_q, size_t dim);
typedef void kern_index_query_fn(const float *q, size_t q_stride, size_t n_q, size_t dim, void *prepared);

/* One scan: the estimated scores of positions that are good enough for one of the heads.  Compute-bound for many heads, memory-bound for few. */
typedef struct kern_index_scan {
    const void *query;        /* prepared */
    size_t n_q, dim;
    unsigned planes;          /* of the codes */
    const void *const *pages; /* codes of adjacent full pages; position 0 is the first of pages[0] */
    const void *const *outer; /* the outer planes of these pages; NULL: they lie behind the codes' other areas */
    size_t page_rows, n_pages; /* of a page; how many pages there are: those behind the last that is scanned are asked for, as somebody will scan them next; 0: none are behind */
    uint32_t first, end;      /* positions to scan: any */
    uint32_t every;           /* 1: all; k: only every k-th group, counted from the first of pages[0] (of each page ceil(page_rows / 64)), for sampling */
    const float *norm;        /* n_q, or NULL for zeros: subtracted from a head's estimates before heads are compared */
    float threshold;          /* kept are positions whose largest of the heads' (estimate from signs - norm) is at least this; -INFINITY keeps all */
    bool refine;              /* with several planes: estimates of kept positions are made from all */
    uint32_t *ids;            /* out: kept positions, ascending; room for end - first + 64 */
    float *estimates;         /* out: [n_q][stride] estimated q.k, the mean's part included, norm not subtracted */
    size_t stride;            /* at least end - first + 64: whole vectors are written */
    void *scratch;            /* kern_index_scratch bytes, 64-byte aligned */
} kern_index_scan;
size_t kern_index_scratch(size_t n_q, size_t dim); /* the same for every ISA and number of planes */
/* Returns how many positions were kept. */
typedef size_t kern_index_scan_fn(const kern_index_scan *a);

/* lse[g] = log of the sum of e^estimates[g * stride + i] over i < n; -INFINITY when n is 0. */
typedef void kern_index_lse_fn(const float *estimates, size_t stride, size_t n, size_t n_q, float *lse);

/* votes[i] = sum over heads g of e^(estimates[g * stride + i] - lse[g]), or the largest of them; no exponent counts for more than KERN_INDEX_VOTE. */
#define KERN_INDEX_VOTE 80.0f
typedef void kern_index_votes_fn(const float *estimates, size_t stride, size_t n, size_t n_q, const float *lse, bool largest, float *votes);

/* mean[d] = the mean of channel d of n_rows >= 1 rows, stride in floats, rounded to half; beyond halves or not a number: the largest half.  The same bits in every ISA. */
typedef void kern_index_mean_fn(const float *v, size_t stride, size_t n_rows, size_t dim, kern_f16 *mean);

/* o[d] = sum over i < n of weights[i] * means[i][d], in the order of i.  The same bits in every ISA with vectors. */
typedef void kern_index_mix_fn(const float *weights, const kern_f16 *const *means, size_t n, size_t dim, float *o);

#endif
