/* tolerance.h - how far a fast kernel may be from the reference (f64), one constant per operation.  docs/NUMERICS.md explains them; a test never
 * loosens one on its own. */
#ifndef SPW_TOLERANCE_H
#define SPW_TOLERANCE_H

/* gemm: error of an element relative to sum_k |x_k| |w_k|.  At most 32 additions in a lane, 4 in the tree, and one for each chunk of 512. */
#define TOL_GEMM_REL 1e-6
/* rms_norm: error relative to |out|; all is f64 until one rounding. */
#define TOL_RMS_NORM_REL 2e-7
/* packed products: error of an element relative to sum_k |x_k| |w_k|, against exact sums of the integers' values. */
#define TOL_PACK_REL 2e-6
/* swiglu: error relative to |out|, plus an absolute part for what the exponential flushes (|up| times it). */
#define TOL_SWIGLU_REL 1e-6
#define TOL_SWIGLU_ABS 1e-35
/* attention over rows whose halves are exact: error of o relative to the largest |v| (o is a mean of them); of lse absolute, and relative to the
 * largest sum |q| |k|, which is what a score's rounding is relative to. */
#define TOL_ATTEND_REL 1e-5
#define TOL_ATTEND_LSE 1e-5
#define TOL_ATTEND_SCORE_REL 1e-6
/* attention over rows of bytes: as above, but weights are rounded to 1 / 32512 of the largest of 64, or in flat tiles to 1 / 255: half of that each, at random. */
#define TOL_ATTEND_Q8_REL 1e-4
#define TOL_ATTEND_Q8_FLAT_REL 1.5e-3
/* What sealing Gaussian rows of 128 elements into bytes costs against f64 over the halves: of o, root mean square over |o|; of lse. */
#define TOL_Q8_OUTPUT 0.016
#define TOL_Q8_LSE 0.03
/* attention of many queries in 16-bit integers, on Gaussian halves: root mean square error of o relative to o; lse absolute, for scores whose spread is 1 */
#define TOL_MANY_OUTPUT 2e-3
#define TOL_MANY_LSE 1e-3
/* Estimates of the index: error relative to the length of the query times the key's scale (at most 1 in the test), by rounding the query to integers; and relative to the
 * estimate, whose parts may cancel.  lse absolute, and relative where it is above 1; votes relative. */
#define TOL_INDEX_QUERY 0.35
#define TOL_INDEX_REL 1e-5
#define TOL_INDEX_LSE 2e-6
#define TOL_INDEX_VOTE_REL 2e-5
/* merge: any split against no split, o relative to the largest |v|, lse relative to max(1, |lse|). */
#define TOL_MERGE_REL 1e-6
/* golden logits of the independent twin (test_golden.c): absolute error of any logit and of the log-sum-exp, mean over all compared logits,
 * Kullback-Leibler divergence of a position in nats.  REF and FAST keep K and V as floats, so they see arithmetic alone; F16 is what users run: a K or V beside
 * the middle of two halves goes one way here and the other way there.  PACK is repacked weights and activations of 12 to 16 bits.  TIE: the distance of the two
 * largest logits below which either may be first. */
#define TOL_GOLDEN_REF_LOGIT 1e-4
#define TOL_GOLDEN_FAST_LOGIT 1e-4
#define TOL_GOLDEN_FAST_MEAN 2e-5
#define TOL_GOLDEN_FAST_KLD 5e-6
#define TOL_GOLDEN_F16_LOGIT 6e-2
#define TOL_GOLDEN_F16_MEAN 6e-3
#define TOL_GOLDEN_F16_KLD 2e-4
#define TOL_GOLDEN_PACK_LOGIT 1.5e-1
#define TOL_GOLDEN_PACK_MEAN 2.5e-2
#define TOL_GOLDEN_PACK_KLD 1e-3
#define TOL_GOLDEN_TIE 2e-3

#endif
