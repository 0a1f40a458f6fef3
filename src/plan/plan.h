/* plan.h - one layer's attention over the host store as plain data: what is to be computed, in items that any worker can take in any order.
 *
 * A prompt item is a block of rows of one session for one KV head: it walks the whole past, KERN_SPAN positions at a time, and
 * finishes its rows alone.  The other items are of one generated row, one KV head, some of its query heads and at most KERN_SPAN positions: they leave a partial for each of these heads,
 * which are merged in the order of the items afterwards.
 *
 *     span     adjacent positions
 *     gather   several short ranges of positions
 *     copy     rows that a policy keeps by itself
 *
 * Prompt items and spans cut positions at the same places (plan_cut: multiples of KERN_SPAN, the border from which on a row sees its own page as it was written, and the
 * ends of chosen ranges), which is what makes a row's bits independent of whether it was evaluated alone or in a block.  All rows of a prompt item lie in one
 * page, so they have one border. */
#ifndef SPW_PLAN_H
#define SPW_PLAN_H

#include "policy.h"

/* Rows of one session in a step. */
typedef struct plan_rows {
    kv_seq *seq;
    const policy_layers *policies; /* of decode rows; may be NULL for prompt rows */
    uint64_t first_pos;            /* position of the first row */
    uint32_t first_row;            /* index of the first row in the step's buffers */
    uint32_t n_rows;
    bool decode;                   /* n_rows is 1 then */
    bool watched;                  /* somebody is told of its choices */
} plan_rows;

typedef enum plan_kind { PLAN_PROMPT, PLAN_SPAN, PLAN_GATHER, PLAN_COPY } plan_kind;

typedef struct plan_item {
    plan_kind kind;
    uint32_t rows;      /* index into the step's plan_rows */
    uint32_t head;      /* KV head */
    uint32_t first_row; /* prompt: first row of the block, counted from the session's first row in this step */
    uint32_t n;         /* prompt: rows of the block; else: positions */
    uint32_t q_first, n_q; /* query heads of the group; prompt: all */
    uint32_t partial;   /* not prompt: where the result of the first of these heads goes */
    uint64_t first_pos; /* span: first position */
    const policy_range *ranges; /* gather: ascending, owned by the plan */
    size_t n_ranges;
    const void *copy;   /* copy: the rows */
} plan_item;

/* The partials of one (decode row, KV head): those of two runs of items. */
typedef struct plan_merge {
    uint32_t rows, head;
    size_t first_base, n_base; /* of what is attended before the policy has chosen */
    size_t first_item, n_items;
} plan_merge;

/* What decode rows read in this layer, in bytes of rows and of side areas. */
typedef struct plan_reads {
    uint64_t middle_bytes, row_bytes, side_bytes;
} plan_reads;

/* One (decode row, KV head): its choice, and the items made of it. */
typedef struct plan_part {
    uint32_t rows, head;
    const policy *policy;
    policy_query query;
    policy_choice choice;
    plan_item *items;
    size_t n_items, cap_items;
    size_t n_planned; /* sets that have become items */
    uint32_t n_partials;
    plan_reads reads;
    spw_err err; /* code SPW_OK: none */
} plan_part;

typedef struct plan {
    plan_item *items; /* prompt items first, the longest first; then those of each part together */
    size_t n_items, cap_items;
    plan_merge *merges; /* one for each part */
    size_t cap_merges;
    plan_part *parts;   /* the first n_parts are in use */
    size_t n_parts, cap_parts;
    policy_choice **choices; /* theirs, those of a row adjacent */
    size_t cap_choices;
    uint32_t n_heads;   /* parts of a row */
    bool has_base;      /* there are items to be run between plan_begin and plan_choose */
    size_t *first_work, cap_work; /* of a stage: where each part's items begin; scratch */
    uint32_t n_partials;          /* query rows */
    plan_reads *reads;            /* one per plan_rows */
    size_t cap_reads;
    /* the running job */
    const plan_rows *rows;
    uint32_t stage;
} plan;

typedef struct plan_shape {
    uint32_t layer, n_head_kv, group; /* group: query heads per KV head */
    uint32_t dim;                     /* floats of a query */
    const float *q;                   /* scaled queries [row][head][dim], readable by the CPU; NULL when no policy needs them */
    size_t q_row_stride;              /* floats */
} plan_shape;

/* Where the piece of positions that begins at `at` ends, for rows that see positions from border on as they were written (kv_border). */
uint64_t plan_cut(uint64_t at, uint64_t end, uint64_t border);
/* True when the plan of one layer serves the next: no decode row has a policy that looks at q, or several. */
bool plan_is_static(const plan_rows *rows, size_t n_rows);
/* Replaces the content of *p (zeroed at first), in two steps: prompt rows and what the policies want attended first; then what they choose.  Between them, if has_base says so, the items
 * are run and each part's choice.base_lse is written.  The policies' stages run on pool with kern; rows stay until plan_choose has returned. */
spw_status plan_begin(plan *p, const plan_rows *rows, size_t n_rows, const plan_shape *shape, spw_pool *pool, const kern_table *kern, spw_err *err);
spw_status plan_choose(plan *p, spw_pool *pool, spw_err *err);
/* Tells the policies what their parts saw; lse: of each part, query heads of the group. */
void plan_observe(plan *p, const float *lse, spw_pool *pool);
void plan_free(plan *p);
/* Rows of a prompt block at most, for group query heads a KV head and so many threads: 4 .. KV_PAGE_ROWS.  No row's bits depend on it. */
uint32_t plan_block_rows(uint32_t group, int n_threads);

#endif
