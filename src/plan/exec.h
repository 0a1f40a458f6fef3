/* exec.h - runs a layer's attention plan on the CPU workers, and writes new rows into the store. */
#ifndef SPW_EXEC_H
#define SPW_EXEC_H

#include "plan.h"
#include "pool.h"

typedef struct exec exec;

/* Everything a layer's attention reads and writes; all memory readable by the CPU.  n_head = n_head_kv * group. */
typedef struct exec_layer {
    uint32_t layer, n_head_kv, group, head_dim;
    const float *q; /* [row][n_head][dim]: scaled, rotated, padded with zeros */
    const float *k; /* [row][n_head_kv][dim]: rotated, padded */
    const float *v; /* [row][n_head_kv][head_dim] */
    float *o;       /* [row][n_head][head_dim] */
    float *lse;     /* of the plan's parts: [part][group]; NULL: not wanted */
} exec_layer;

/* Keeps kern and pool; all rows are those of sequences of store. */
spw_status exec_create(exec **out, const kern_table *kern, spw_pool *pool, const kv_store *store, spw_err *err);
void exec_free(exec *x);
/* How decode attention asks for rows ahead; without a call KERN_TUNING_DEFAULT.  No effect on results. */
void exec_set_tuning(exec *x, kern_tuning tuning);
/* Asks for the memory of a layer's new generated rows, which will be written soon: nobody has touched it for a token's time.  Changes nothing. */
void exec_expect(const exec *x, const plan_rows *rows, size_t n_rows, uint32_t layer, uint32_t n_head_kv);
/* Writes K and V of all rows to their positions, which have been reserved. */
void exec_append(exec *x, const plan_rows *rows, size_t n_rows, const exec_layer *l);
/* Between plan_begin and plan_choose: runs the items that are there, and tells each part what they came to (choice.base_lse).  The rows' own K and V have been appended. */
spw_status exec_base(exec *x, plan *p, const plan_rows *rows, const exec_layer *l, spw_err *err);
/* Attention of every row: runs the items that have not been run and merges; fresh: none has (a plan that is used again). */
spw_status exec_attend(exec *x, const plan *p, const plan_rows *rows, const exec_layer *l, bool fresh, spw_err *err);

#endif
