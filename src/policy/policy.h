/* policy.h - which positions a generated token attends to, per layer and KV group.
 *
 * A policy is one file in this folder and one row of the table in policy.c.  It is a pure chooser: it names positions, the planner turns them into
 * work and the kernels read the rows.  Sink and window are always part of what it names.
 * Prompt rows never come here: they attend to their whole past.
 *
 * To add a policy: write policy_NAME.c with a policy_ops, name it in the table, add its options to policy_params; the tests in tests/test_policy.c run
 * over every row of the table. */
#ifndef SPW_POLICY_H
#define SPW_POLICY_H

#include "kv.h"

typedef struct policy_params {
    uint32_t n_layer;
    uint32_t sink, window; /* positions; window >= 1 */
} policy_params;

/* Adjacent positions. */
typedef struct policy_range {
    uint64_t first, n;
} policy_range;

/* What a policy chose for one KV group: ascending ranges that neither overlap nor touch empty.  ranges is owned by the planner, which grows it
 * through policy_choice_add. */
typedef struct policy_choice {
    policy_range *ranges;
    size_t n, cap;
    uint64_t side_bytes; /* bytes of index or digests that were read to choose */
} policy_choice;

typedef struct policy_query {
    const kv_seq *seq;
    uint64_t n_pos;       /* positions that exist, the token's own included: 0 .. n_pos - 1 may be chosen */
    uint32_t layer, head; /* KV head */
    uint32_t n_q;         /* G query heads */
    const float *q;       /* n_q rows of dim floats, scaled; NULL for a policy that does not need them */
    size_t q_stride;
} policy_query;

typedef struct policy_ops {
    const char *name;
    bool needs_q; /* false: the choice depends on n_pos and layer alone, and q is not given */
    /* State of one session, or *out = NULL for a policy without any. */
    spw_status (*create)(void **out, const policy_params *p, spw_err *err);
    spw_status (*fork)(void **out, const void *state, spw_err *err);
    void (*free)(void *state);
    /* A prompt was read, a turn appended or positions forgotten since the last generated row.  May be NULL. */
    spw_status (*begin)(void *state, const kv_seq *seq, spw_err *err);
    /* Adds the chosen ranges.  Called by one thread for one session at a time. */
    spw_status (*select)(void *state, const policy_params *p, const policy_query *q, policy_choice *choice, spw_err *err);
    /* What attention saw: lse of each query head over the ranges chosen.  May be NULL. */
    void (*observe)(void *state, const policy_query *q, const policy_choice *choice, const float *lse);
} policy_ops;

/* The policy of one session. */
typedef struct policy {
    const policy_ops *ops;
    policy_params params;
    void *state;
} policy;

/* NULL for an unknown name. */
const policy_ops *policy_find(const char *name);
/* Row i of the table, NULL past its end. */
const policy_ops *policy_at(size_t i);
/* SPW_E_ARG names an unknown policy and the known ones. */
spw_status policy_init(policy *p, const char *name, const policy_params *params, spw_err *err);
spw_status policy_fork(policy *out, const policy *from, spw_err *err);
void policy_done(policy *p);
/* Appends n positions from first; joins them to the last range when they touch it; n == 0 does nothing.  first is not below the end of the last range. */
spw_status policy_choice_add(policy_choice *c, uint64_t first, uint64_t n, spw_err *err);
void policy_choice_free(policy_choice *c);
/* Positions strictly between sink and window when n_pos exist. */
uint64_t policy_middle(const policy_params *p, uint64_t n_pos);

extern const policy_ops policy_full, policy_window;

#endif
