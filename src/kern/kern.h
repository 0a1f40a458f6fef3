/* kern.h - the leaf kernels: what each computes, in which order, and the table that holds the chosen ones.
 *
 * One file per family and ISA fills entries of the table, weakest first: kern_ref_*.c (slow and obvious, sums in f64), kern_scalar_*.c
 * (plain C, f32), on x86-64 kern_avx2_*.c and kern_avx512_*.c, on AArch64 kern_neon_*.c and kern_neondot_*.c.  kern_select picks once at start-up;
 * SPILLWAY_ISA=ref|scalar|avx2|avx512|neon forces one.
 *
 * Fixed summation order (what makes results reproducible): within one ISA the bits of an output depend on its own inputs alone, never on how many
 * rows, queries or outputs the same call computes.  A kernel that handles one row and a kernel that handles many are the same
 * arithmetic in the same order, lane for lane.
 *
 * Contracts for all: pointers need the alignment of their element type only, unless said; outputs do not alias inputs; no
 * kernel reads or writes outside the ranges given; finite inputs never give NaN; n == 0 is allowed and does what nothing does. */
#ifndef SPW_KERN_H
#define SPW_KERN_H

#include "kern_index.h"
#include "quant.h"
#include "status.h"

/* dst[0..n) = the values of n weights of one type at src.  n is a multiple of the type's block.  src has no alignment. */
typedef void kern_dequant_fn(const void *src, size_t n, float *dst);

/* y[r * y_stride + j] = sum_k x[r * x_stride + k] * w[j * w_stride + k], for r < n_rows, j < n_out, k < n_in; any sizes, strides in floats.
 * The order of the sum over k is a function of n_in alone.  Compute-bound: 2 * n_rows * n_out * n_in flops; register-tiled over r and j. */
typedef void kern_gemm_fn(const float *x, size_t x_stride, size_t n_rows, const float *w, size_t w_stride, size_t n_out, size_t n_in, float *y,
                          size_t y_stride);

/* out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; out may be x.  The square sum is accumulated in f64 in every ISA. */
typedef void kern_rms_norm_fn(const float *x, const float *weight, size_t n, float eps, float *out);

/* gate[i] = silu(gate[i]) * up[i], silu(v) = v / (1 + e^-v). */
typedef void kern_swiglu_fn(float *gate, const float *up, size_t n);

/* x[i] += y[i]. */
typedef void kern_add_fn(float *x, const float *y, size_t n);

/* Rotates n_pairs pairs (a, b) by angles, cos_sin[2 i] = cos and cos_sin[2 i + 1] = sin of pair i, and scales them: out a = (a cos - b sin) scale,
 * out b = (a sin + b cos) scale, in f32 and unfused: the same bits in every ISA.  Pair i is elements 2 i and 2 i + 1, or with halves i and i + n_pairs.  out may be x. */
typedef void kern_rotate_fn(const float *x, const float *cos_sin, size_t n_pairs, bool halves, float scale, float *out);

/* Rounds to half, to nearest even; values beyond the range become infinities, as IEEE says. */
typedef void kern_to_f16_fn(const float *src, size_t n, kern_f16 *dst);

/* ---- attention ------------------------------------------------------------------------------
 *
 * Rows of the KV store: K [dim] then V [dim] as halves (or, for comparing with other implementations, as floats), dim = head_dim rounded up to a
 * multiple of 16, the padding zero; queries are padded alike.  A row takes 4 * dim bytes (8 * dim); rows are at least 32-byte aligned.
 *
 * A partial is (o, lse): o [dim] the weighted mean of V in f32, lse the natural logarithm of the summed exponentials of the scores
 * q.k (q comes already scaled).  The empty set is o = 0, lse = -inf.
 *
 * Both kernels below walk the positions of a span in tiles of KERN_TILE counted from its start; in each tile: scores, new maximum, rescale when
 * it grew, exponentials, sum, values in ascending order.  Their results are the same bits for the same query and positions.
 * Memory-bound for few queries (4 * n * dim bytes), compute-bound for many. */
enum { KERN_TILE = 64, KERN_SPAN = 512, KERN_MAX_G = 32 }; /* positions per tile; positions per span at most; query heads per call at most */

/* Adjacent positions: row i is i rows' bytes behind rows. */
typedef struct kern_span {
    const void *rows;
    uint32_t n; /* 0 .. KERN_SPAN */
    const float *k_scale, *v_scale; /* of rows of bytes, below; otherwise NULL */
} kern_span;

/* How to ask for rows before they are needed: best values differ between processors by more than a factor of two and are measured (measure.h).
 * No effect on results. */
typedef enum kern_hint { KERN_HINT_NONE, KERN_HINT_T0, KERN_HINT_T1, KERN_HINTS } kern_hint; /* not at all; into L1; into L2 */
typedef struct kern_tuning {
    kern_hint hint;
    uint32_t ahead; /* how many positions ahead of the arithmetic, at most KERN_AHEAD: of rows of halves; rows of bytes are asked for twice as far ahead */
} kern_tuning;
enum { KERN_AHEAD = 128 };
#define KERN_TUNING_DEFAULT ((kern_tuning){KERN_HINT_T1, KERN_TILE})

/* Attends n_q query rows to the first n positions of one or more spans that follow each other in memory order of the list, all together at most KERN_SPAN
 * positions (a span ends where a page ends).  Tiles run over the joined positions, across span borders.
 *
 * q        n_q rows of dim floats, row stride q_stride floats
 * ahead    spans of what this worker will most likely attend to next, or none: their first rows are asked for while the last ones of this call are worked on
 * tuning   NULL: KERN_TUNING_DEFAULT
 * n_valid  NULL: every query sees all n positions (n: the sum over the spans).  Otherwise query i sees the first n_valid[i] <= n of them
 * o, lse   o: n_q rows of dim floats, stride o_stride; lse: n_q floats.  Written whole, also for the empty set
 * n_q      any; the caller passes the G heads of one KV group for decode, G heads times several rows for a prompt
 * scratch  kern_attend_scratch(n_q, dim) bytes, 64-byte aligned, owned by the calling worker */
typedef struct kern_attend_args {
    const float *q;
    size_t q_stride;
    size_t n_q;
    size_t dim;
    const kern_span *spans;
    size_t n_spans;
    const kern_span *ahead;
    size_t n_ahead;
    const kern_tuning *tuning;
    const uint32_t *n_valid;
    bool f32; /* rows of floats */
    float *o;
    size_t o_stride;
    float *lse;
    void *scratch;
} kern_attend_args;
typedef void kern_attend_fn(const kern_attend_args *a);
size_t kern_attend_scratch(size_t n_q, size_t dim); /* the same for every ISA */

/* Rows of bytes: K [dim] then V [dim], signed, -127 .. 127; 2 * dim bytes a row, dim at most KERN_Q8_DIM.  Element d of a span's K is k_scale[d] times the byte
 * (so one scale per channel for all rows of a span), element d of row i's V is v_scale[i] times the byte.
 *
 * attend_q8 has the contract of attend (f32 is false; the scales of ahead may be NULL).  Its scores: for each k_scale the query is scaled by it and rounded to integers,
 * 16 bits of its largest element; a score is an exact integer times the step.  Its weights: exponential times v_scale, rounded to integers, 15 bits of the largest of the tile.
 *
 * quantise_q8 makes such rows from n_rows <= KERN_SPAN adjacent rows of halves: k_scale [dim] is the largest |K| of the channel / 127, v_scale [n_rows] the largest |V| of
 * the row / 127, values are rounded to nearest even, and infinities and what is not a number count as the largest half.  The same bits in every ISA. */
enum { KERN_Q8_DIM = 512 }; /* 32512 * 127 * 512 is the largest integer of a score, and fits 31 bits */
typedef void kern_quantise_q8_fn(const kern_f16 *rows, size_t n_rows, size_t dim, int8_t *out, float *k_scale, float *v_scale);

/* ---- attention of many queries to whole tiles, in integers of 16 bits ------------------------------------------------------------------
 *
 * What a prompt does most: many query rows against the same rows of halves.  Units for pairs of 16-bit integers do up to twice what f32 units do, and sums of their products
 * are exact.  For each tile of at most KERN_MANY positions:
 *
 *   keys     channel c: mid and half-width of its values in the tile; k = rne((K - mid) / (half / 8191))
 *   queries  Q * half / 8191 per channel, then q = rne(. / step), step as small as 16 bits, and 32 for the sum over dim, allow
 *   scores   s = (float)(q . k) * step + (Q . mid), in units of log 2
 *   weights  p = rne(4095 * 2^(s - the tile's largest s)); their sum is exact
 *   values   as keys, of 4095 steps; o += 2^(tile's largest - largest so far) * (half / 4095 * (p . v) + mid * sum of p), in f32
 *
 * Subtracting mid takes away what all keys of a tile have in common, which for some models is most of a key; no score changes but all of them.  Errors: docs/NUMERICS.md.
 * A query's bits depend on itself and the tiles alone, and are the same in every ISA that has the kernels. */
enum { KERN_MANY = 128, KERN_MANY_DIM = 512 }; /* positions of a tile at most; elements of a head at most */
typedef struct kern_many {
    const float *q;   /* n_q rows of dim floats, scaled; row stride dim */
    size_t n_q, dim;
    float *o;         /* n_q rows of dim: sums so far, not yet divided; zeros at first */
    float *m, *l;     /* n_q: largest score so far (log 2), -infinity at first; sum of weights so far, 0 at first */
    void *scratch;    /* kern_many_scratch(dim) bytes, 64-byte aligned */
} kern_many;
size_t kern_many_scratch(size_t dim);
/* Adds n <= KERN_MANY adjacent rows of halves, 4 * dim bytes each. */
typedef void kern_many_tile_fn(const kern_many *a, const void *rows, uint32_t n);
/* Divides o and writes lse (natural logarithm): a partial as of attend. */
typedef void kern_many_end_fn(const kern_many *a, float *lse);

/* Folds partial b into partial a: lse = logaddexp(la, lb), o = (e^(la-lse) oa + e^(lb-lse) ob).  Empty sets are the identity, bit for bit.
 * DESIGN 5. */
typedef void kern_merge_fn(float *oa, float *la, const float *ob, float lb, size_t dim);

/* ---- products of packed weights and integer activations (pack.h has the formats, and the order of sums) --------------------------------
 *
 * The same bits in every ISA that has the kernels, and for a row the same bits whatever n_rows is. */

/* How a table's kernels want activations (pack.h has the blocks). */
typedef enum pack_form {
    PACK_SPLIT, /* as bytes: for units that multiply bytes */
    PACK_WHOLE, /* as 16-bit integers; a row that is alone in its group as bytes */
} pack_form;

/* Turns a row of n_cols (a multiple of 32) floats into integers of one kind, in the table's form: block b at out + b * step bytes (pack_step_bytes). */
typedef enum pack_kind { PACK_WORDS, PACK_PAIRS_16, PACK_PAIRS_7, PACK_KINDS } pack_kind;
typedef void kern_pack_x_fn(const float *x, size_t n_cols, pack_kind kind, void *out, size_t step);

/* One panel or two times any number of rows of activations: y[r * y_stride + j] for j < n_out.  x holds groups of rows (pack_group_rows), one after the other; the
 * activations of block b and row r of a group of n are its entry number b * n + r.  panel is 64-byte aligned.  Memory-bound for few rows, compute-bound for
 * many; prefetches beyond the panel, which reads nothing. */
typedef struct kern_pack_args {
    const void *panel;
    size_t panel_bytes; /* from one panel to the next */
    size_t n_cols;
    const void *x; /* of the kind that the type takes (pack_kind_of) */
    size_t n_rows;
    const kern_tuning *tuning; /* NULL: KERN_TUNING_DEFAULT; of it, the hint serves for fewer than 8 rows */
    float *y;
    size_t y_stride;
    size_t n_out; /* at most 32; more than 16 take the second panel */
} kern_pack_args;
typedef void kern_pack_dot_fn(const kern_pack_args *a);

/* Few rows times weights of halves or floats as they lie in the file: y[r * y_stride + j] = sum_k x[r * x_stride + k] * w[j][k], j < n_out, k < n_cols, the bits those of gemm
 * with the dequantised weights.  Memory-bound: each weight's bytes once for KERN_FEW_ROWS rows; prefetches beyond w, which reads nothing. */
enum { KERN_FEW_ROWS = 4 };
typedef struct kern_few_args {
    const void *w; /* n_out rows of n_cols weights, adjacent, without alignment */
    size_t n_cols, n_out;
    const float *x;
    size_t x_stride;
    size_t n_rows; /* at most KERN_FEW_ROWS */
    const kern_tuning *tuning; /* as above */
    float *y;
    size_t y_stride;
} kern_few_args;
typedef void kern_few_fn(const kern_few_args *a);

/* ---- choosing ---------------------------------------------------------------------------------------------------------------------- */

/* scores[g * stride + i] = sum_k q[g * q_stride + k] * rows[i * n + k], g < n_q, i < n_rows: rows of n halves (n a multiple of 16), the order of the sum that of
 * gemm.  Digests are such rows: the mean key of a block, or its least and largest keys one after the other against the negative and the positive part of a query
 * (the upper bound of Quest, Tang et al. 2024, section 3.2).  Memory-bound: 2 * n_rows * n bytes. */
typedef struct kern_score_args {
    const kern_f16 *rows;
    size_t n_rows, n;
    const float *q;
    size_t q_stride;
    size_t n_q;
    float *scores;
    size_t stride;
} kern_score_args;
typedef void kern_score_fn(const kern_score_args *a);

/* ids[0..k) = which k of n scores are largest, ascending numbers; of equal scores the first.  k <= n < 2^31; no score is NaN.  scratch: n entries. */
typedef void kern_top_k_fn(const float *scores, size_t n, size_t k, uint32_t *ids, uint32_t *scratch);

typedef struct kern_table {
    const char *isa; /* ref, scalar, avx2, avx512, neon */
    kern_dequant_fn *dequant[QUANT_TYPES]; /* NULL where the type is unknown */
    kern_gemm_fn *gemm;
    kern_rms_norm_fn *rms_norm;
    kern_swiglu_fn *swiglu;
    kern_add_fn *add;
    kern_rotate_fn *rotate;
    kern_to_f16_fn *to_f16;
    kern_attend_fn *attend;
    kern_many_tile_fn *many_tile; /* this and the next NULL where attend is as fast */
    kern_many_end_fn *many_end;
    kern_merge_fn *merge;
    kern_attend_fn *attend_q8;
    kern_quantise_q8_fn *quantise_q8;
    kern_score_fn *score_rows;
    kern_top_k_fn *top_k;
    kern_index_code_fn *index_code; /* kern_index.h has these */
    kern_index_query_fn *index_query;
    kern_index_scan_fn *index_scan;
    kern_index_lse_fn *index_lse;
    kern_index_votes_fn *index_votes;
    kern_index_mean_fn *index_mean;
    kern_index_mix_fn *index_mix;
    pack_form pack_form;                     /* of what pack_x makes and pack_dot takes */
    kern_pack_x_fn *pack_x;                  /* NULL in ref, which computes with the values of the file */
    kern_pack_dot_fn *pack_dot[QUANT_TYPES]; /* NULL where the type has no packed form */
    kern_few_fn *few[QUANT_TYPES];           /* NULL where a tile of dequantised weights does it */
} kern_table;

/* The table of one ISA ("ref", "scalar", "avx2", "avx512", "neon"), or NULL when the name is unknown or this processor or build lacks it: for
 * tests, which run every one that is there. */
const kern_table *kern_get(const char *isa);
/* The table to use: SPILLWAY_ISA if set (a name that is unknown or not there is SPW_E_ARG and lists the choices), else the strongest. */
spw_status kern_select(const kern_table **out, spw_err *err);

/* Fillers, one per family and ISA; each overwrites the entries that it has a kernel for. */
void kern_fill_ref_quant(kern_table *t);
void kern_fill_ref_math(kern_table *t);
void kern_fill_ref_attend(kern_table *t);
void kern_fill_ref_q8(kern_table *t);
void kern_fill_ref_index(kern_table *t);
void kern_fill_scalar_quant(kern_table *t);
void kern_fill_scalar_math(kern_table *t);
void kern_fill_scalar_attend(kern_table *t);
void kern_fill_scalar_select(kern_table *t);
void kern_fill_scalar_pack(kern_table *t);
void kern_fill_scalar_q8(kern_table *t);
void kern_fill_avx2_quant(kern_table *t);
void kern_fill_avx2_math(kern_table *t);
void kern_fill_avx2_attend(kern_table *t);
void kern_fill_avx2_select(kern_table *t);
void kern_fill_avx2_pack(kern_table *t);
void kern_fill_avx2_pack_few(kern_table *t);   /* called by the one before */
void kern_fill_avx2_q8(kern_table *t);
void kern_fill_avx2_many(kern_table *t);
void kern_fill_avx2_index(kern_table *t);
void kern_fill_avx512_quant(kern_table *t);
void kern_fill_avx512_math(kern_table *t);
void kern_fill_avx512_attend(kern_table *t);
void kern_fill_avx512_select(kern_table *t);
void kern_fill_avx512_index(kern_table *t);
void kern_fill_avx512vbmi_index(kern_table *t);
void kern_fill_avx512vnni_pack(kern_table *t);
void kern_fill_avx512vnni_many(kern_table *t);
void kern_fill_avx512_pack_few(kern_table *t); /* called by the one before */
void kern_fill_avx512vnni_q8(kern_table *t);
void kern_fill_neon_quant(kern_table *t);
void kern_fill_neon_math(kern_table *t);
void kern_fill_neon_attend(kern_table *t);
void kern_fill_neon_select(kern_table *t);
void kern_fill_neon_pack(kern_table *t);
void kern_fill_neon_q8(kern_table *t);
void kern_fill_neon_index(kern_table *t);
void kern_fill_neondot_pack(kern_table *t);

/* Scalar conversions, exact. */
float kern_f16_to_f32(kern_f16 h);
kern_f16 kern_f32_to_f16(float f);

#endif
