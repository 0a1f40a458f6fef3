/* policy.h - which positions a generated token attends to, per layer and KV group.
 *
 * A policy is one file in this folder and one row of the table in policy.c.  It names positions; the planner turns them into work and the kernels read the rows.
 * Sink and window are always part of what it names.  Prompt rows never come here: they attend to their whole past.
 *
 * One choice, of one row and KV group, is made in this order, and everything it computes lies in its policy_choice:
 *
 *     prepare   sizes the scratch; may fail                                          threads: one for each choice, choices side by side
 *     (attention to what prepare has named already, if it says base)
 *     work      n_stages stages of n_parts parts each; cannot fail                   all parts of a stage side by side, of all choices
 *     agree     what the choices of one row and layer decide together; cannot fail   one for each row
 *     select    names the positions                                                  as prepare
 *     (attention)
 *     observe   what attention saw                                                   as prepare
 *
 * A policy that does not look at q has only select, and its choice must depend on n_pos and the layer alone.  What several choices of a step share (state) may be changed only where it belongs to that layer and head; by
 * work only what no other part of the stage touches; by agree, which no other choice of the session runs beside, anywhere.
 *
 * A step may fail after a policy has made its choice, and be made again or not at all: state must come out the same, so it is kept by position, and
 * what it says of the row's own position (n_pos - 1) is never used before that is committed.
 *
 * To add a policy: write policy_NAME.c with a policy_ops, name it in the table, add its options to policy_params; the tests in tests/test_policy.c run
 * over every row of the table. */
#ifndef SPW_POLICY_H
#define SPW_POLICY_H

#include "kv.h"
#include "pool.h"

/* How `adaptive` makes a budget of positions out of estimated masses (policy_adaptive.c). */
typedef enum policy_rule {
    POLICY_FLAT,      /* a share of the middle, alike for every KV group */
    POLICY_THRESHOLD, /* positions above a share of the group's mean mass, and a floor */
    POLICY_TOP_P,     /* until a share of every head's mass is reached */
    POLICY_ERROR,     /* until the estimated error of every head's output is small enough */
    POLICY_LAYER,     /* a share of the middle of all KV groups of a layer, spread over them by votes, and a floor */
    POLICY_MODEL,     /* the same of all layers, as far as the tokens before tell: so much on average */
} policy_rule;

/* What stands for positions that `adaptive` does not choose. */
typedef enum policy_stand_in {
    POLICY_NOTHING,
    POLICY_MEANS, /* means of V (policy_rest.h) */
} policy_stand_in;

/* Of one policy of a session.  Values are checked by policy_init. */
typedef struct policy_params {
    uint32_t n_layer;
    const uint32_t *n_head_kv;  /* per layer; kept by the owner of the sequences' store */
    uint32_t group, dim;        /* G query heads per KV head; floats of a query */
    uint32_t sink, window;      /* positions; window >= 1 */
    uint64_t min_ctx;           /* below so many positions everything is attended */
    double budget;              /* of the middle: in (0, 1] a share, above 1 positions, 0: the policy's own rule; negative: the policy's default */
    uint64_t share_until;       /* positions of the middle from which on a share is of the geometric mean of these and the middle, so that it grows with the root; 0: never.  Set with a default budget */
    uint32_t block;             /* 1, 16, 32, 64 or 128 adjacent positions are chosen together; 0: the policy's default */
    policy_rule rule;
    double threshold;           /* POLICY_THRESHOLD: share of the mass; POLICY_TOP_P: share of the mass that is left out at most; 0: default */
    double error;               /* POLICY_ERROR: Fluxion's tau */
    policy_stand_in stand_in;
    double beta;                /* hgca: kept are positions of at least beta / n of the attention */
} policy_params;

typedef spw_range policy_range; /* adjacent positions */

/* What some query heads of the group attend to.  A head attends to all sets that name it; they hold no position twice. */
typedef struct policy_set {
    uint32_t q_first, n_q;
    size_t first_range, n_ranges; /* of the choice: ascending, neither overlapping nor touching */
    const void *rows;             /* copies of rows, adjacent, of the type of the store's open rows: attended besides.  NULL: none */
    const uint32_t *positions;    /* theirs, ascending */
    size_t n_rows;
} policy_set;

#define POLICY_COUNT UINT64_MAX

/* What stands for the positions that are not chosen.  To each head's attention is added, as one more part, mass e^lse[g] whose value is o + lean * c: c is what the head's attention to the sets of
 * select gives by itself, so the value leans on what was read, and o, the same for all heads, holds the rest of it.  o, lse: [dim], [n_q], in the choice's scratch; an lse of -infinity adds nothing. */
typedef struct policy_rest {
    const float *o, *lse; /* o NULL: nothing stands for them */
    float lean;
} policy_rest;

/* What a policy chose for one KV group.  Owned by the planner, which resets it before every use; memory is kept. */
typedef struct policy_choice {
    policy_range *ranges;
    size_t n, cap;
    policy_set *sets; /* the first, of all heads, is there from the beginning */
    size_t n_sets, cap_sets;
    uint64_t side_bytes;     /* bytes of index or digests that were read to choose */
    uint64_t middle_rows;    /* rows of the middle that are read; POLICY_COUNT: count the union of all sets */
    float mass[KERN_MAX_G];  /* of each head: estimated share of its attention to the middle that is chosen; negative: no estimate, as where nobody watches */
    policy_rest rest;        /* set by select of a choice with base */
    bool dense;              /* everything, because it is as cheap or as the budget says so */
    bool base;               /* set by prepare: the sets that are there are attended before the stages; select adds others */
    float base_lse[KERN_MAX_G]; /* then, for the stages: log of the summed exponentials of each head over those */
    void *scratch;           /* 64-byte aligned, for what the stages hand on */
    size_t scratch_bytes;
} policy_choice;

typedef struct policy_query {
    const kv_seq *seq;
    const kern_table *kern;
    uint64_t n_pos;       /* positions that exist, the token's own included: 0 .. n_pos - 1 may be chosen */
    uint32_t layer, head; /* KV head */
    uint32_t n_q, dim;    /* G query heads; floats of each */
    const float *q;       /* n_q rows of dim floats, scaled; NULL for a policy that does not need them */
    size_t q_stride;
    bool watched;         /* somebody is told of the choice: estimates of its masses are wanted */
} policy_query;

/* What is there when a policy begins. */
typedef struct policy_start {
    const kv_seq *seq; /* its length: what has been read */
    const kern_table *kern;
    spw_pool *pool;
} policy_start;

typedef struct policy_ops {
    const char *name;
    bool needs_q;     /* false: the choice depends on n_pos and layer alone, and q is not given */
    uint32_t n_stages;
    double budget;    /* defaults of policy_params: where the caller says nothing */
    uint64_t share_until;
    uint32_t block;
    /* State of one session, or *out = NULL for a policy without any; may be NULL, as all that follow but select. */
    spw_status (*create)(void **out, const policy_params *p, spw_err *err);
    spw_status (*fork)(void **out, const void *state, spw_err *err);
    void (*free)(void *state);
    /* A prompt was read, a turn appended or positions forgotten since the last generated row.  On failure nothing has changed. */
    spw_status (*begin)(void *state, const policy_params *p, const policy_start *start, spw_err *err);
    spw_status (*prepare)(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err);
    uint32_t (*n_parts)(const policy_params *p, const policy_query *q, const policy_choice *c, uint32_t stage);
    void (*work)(void *state, const policy_params *p, const policy_query *q, policy_choice *c, uint32_t stage, uint32_t part);
    /* c: of all KV groups of a row, n; q: of the first.  What of a choice is written here depends on them and the state, not on their order or other rows. */
    void (*agree)(void *state, const policy_params *p, const policy_query *q, policy_choice *const *c, uint32_t n);
    /* Adds the chosen ranges. */
    spw_status (*select)(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err);
    /* What attention saw: lse of each query head over everything chosen. */
    void (*observe)(void *state, const policy_params *p, const policy_query *q, const policy_choice *c, const float *lse);
} policy_ops;

/* A policy of one session. */
typedef struct policy {
    const policy_ops *ops;
    policy_params params;
    void *state;
} policy;

/* The policies of a session, and which of them each layer has. */
typedef struct policy_layers {
    policy *v;
    uint32_t n;
    uint8_t *of_layer;
} policy_layers;

/* NULL for an unknown name. */
const policy_ops *policy_find(const char *name);
/* Row i of the table, NULL past its end. */
const policy_ops *policy_at(size_t i);
/* SPW_E_ARG names an unknown policy and the known ones, or a parameter that is out of range.  Defaults are filled in. */
spw_status policy_init(policy *p, const char *name, const policy_params *params, spw_err *err);
spw_status policy_fork(policy *out, const policy *from, spw_err *err);
void policy_done(policy *p);

/* spec: a name for all layers, or parts separated by commas, each NAME or FIRST-LAST=NAME or LAYER=NAME; later parts win, layers that no part names have the name alone, or
 * are full.  At most POLICY_MAX different names. */
enum { POLICY_MAX = 8 };
spw_status policy_layers_init(policy_layers *out, const char *spec, const policy_params *params, spw_err *err);
spw_status policy_layers_fork(policy_layers *out, const policy_layers *from, spw_err *err);
void policy_layers_done(policy_layers *l);
static inline policy *policy_of_layer(const policy_layers *l, uint32_t layer)
{
    return &l->v[l->of_layer[layer]];
}

/* Empty, with one set of all n_q heads; memory is kept. */
spw_status policy_choice_reset(policy_choice *c, uint32_t n_q, spw_err *err);
void policy_choice_free(policy_choice *c);
/* Room for bytes in c->scratch; what was there is lost. */
spw_status policy_choice_scratch(policy_choice *c, size_t bytes, spw_err *err);
/* Begins another set; what is added goes there. */
spw_status policy_choice_set(policy_choice *c, uint32_t q_first, uint32_t n_q, spw_err *err);
/* Appends n positions from first to the last set; joins them to its last range when they touch it; n == 0 does nothing.  first is not below the end of that range. */
spw_status policy_choice_add(policy_choice *c, uint64_t first, uint64_t n, spw_err *err);
/* The same with n positions, base + ids[which[i]] for i from 0 on, which ascend. */
spw_status policy_choice_add_each(policy_choice *c, uint64_t base, const uint32_t *ids, const uint32_t *which, size_t n, spw_err *err);
/* Everything; c is as after the reset. */
spw_status policy_choice_all(policy_choice *c, uint64_t n_pos, spw_err *err);
/* Rows of positions [from, to) that at least one set holds. */
spw_status policy_choice_rows(const policy_choice *c, uint64_t from, uint64_t to, uint64_t *n_rows, spw_err *err);

/* Positions strictly between sink and window when n_pos exist: policy_middle of them, from sink on. */
uint64_t policy_middle(const policy_params *p, uint64_t n_pos);
/* How many positions of a middle the budget allows. */
uint64_t policy_budget(const policy_params *p, uint64_t middle);
/* True where everything is attended before anything is scored: a short context, nothing in the middle, a budget of all of it. */
bool policy_is_dense(const policy_params *p, uint64_t n_pos);

extern const policy_ops policy_full, policy_window, policy_quest, policy_hgca, policy_oracle, policy_adaptive;

#endif
