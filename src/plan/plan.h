/* plan.h - one layer's attention over the host store as plain data: what is to be computed, in items that any worker can take in any order.
 *
 * Two kinds of item.  A prompt item is a block of rows of one session for one KV head: it walks the whole past, KERN_SPAN positions at a time, and
 * finishes its rows alone.  A decode item is one generated row, one KV head and at most KERN_SPAN chosen positions: it leaves a partial, and partials of a (row, head) are
 * merged in ascending order of positions afterwards.
 *
 * Both cut positions at the same places (plan_cut: multiples of KERN_SPAN, the border from which on a row sees its own page as it was written, and the
 * ends of chosen ranges), which is what makes a row's bits independent of whether it was evaluated alone or in a block.  All rows of a prompt item lie in one
 * page, so they have one border. */
#ifndef SPW_PLAN_H
#define SPW_PLAN_H

#include "policy.h"

/* Rows of one session in a step. */
typedef struct plan_rows {
    kv_seq *seq;
    const policy *policy; /* of decode rows; may be NULL for prompt rows */
    uint64_t first_pos;   /* position of the first row */
    uint32_t first_row;   /* index of the first row in the step's buffers */
    uint32_t n_rows;
    bool decode;          /* n_rows is 1 then */
} plan_rows;

typedef enum plan_kind { PLAN_PROMPT, PLAN_DECODE } plan_kind;

typedef struct plan_item {
    plan_kind kind;
    uint32_t rows;      /* index into the step's plan_rows */
    uint32_t head;      /* KV head */
    uint32_t first_row; /* prompt: first row of the block, counted from the session's first row in this step */
    uint32_t n;         /* prompt: rows of the block; decode: positions */
    uint32_t partial;   /* decode: where the result goes */
    uint64_t first_pos; /* decode: first position */
} plan_item;

/* The partials of one (decode row, KV head): adjacent slots, ascending positions. */
typedef struct plan_merge {
    uint32_t rows, head;
    uint32_t first_partial, n_partials;
} plan_merge;

/* What decode rows read in this layer, in bytes of rows and of side areas. */
typedef struct plan_reads {
    uint64_t middle_bytes, row_bytes, side_bytes;
} plan_reads;

typedef struct plan {
    plan_item *items; /* prompt items first, the longest first */
    size_t n_items, cap_items;
    plan_merge *merges;
    size_t n_merges, cap_merges;
    uint32_t n_partials;
    plan_reads *reads; /* one per plan_rows */
    size_t cap_reads;
    policy_choice choice; /* scratch */
} plan;

typedef struct plan_shape {
    uint32_t layer, n_head_kv, group; /* group: query heads per KV head */
    uint32_t dim;                     /* floats of a query */
    const float *q;                   /* scaled queries [row][head][dim], readable by the CPU; NULL when no policy needs them */
    size_t q_row_stride;              /* floats */
} plan_shape;

/* Where the piece of positions that begins at `at` ends, for rows that see positions from border on as they were written (kv_border). */
uint64_t plan_cut(uint64_t at, uint64_t end, uint64_t border);
/* True when the plan of one layer serves the next: no decode row has a policy that looks at q. */
bool plan_is_static(const plan_rows *rows, size_t n_rows);
/* Replaces the content of *p (zeroed at first). */
spw_status plan_build(plan *p, const plan_rows *rows, size_t n_rows, const plan_shape *shape, spw_err *err);
void plan_free(plan *p);
/* Rows of a prompt block for G query heads at most: a function of G alone. */
uint32_t plan_block_rows(uint32_t group);

#endif
