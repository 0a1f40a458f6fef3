/* eval_policies.h - the policies that eval compares: from --policies to the parameters of a session.
 *
 * A policy is written name[:block]:budget[:rule or :rule=value][:rest], or hgca:beta; a name alone stands for the defaults. */
#ifndef SPW_APP_EVAL_POLICIES_H
#define SPW_APP_EVAL_POLICIES_H

#include "options.h"

typedef struct policy_spec {
    char label[64]; /* as it was written: the name of its rows */
    char name[24];
    int64_t block;  /* positions; 0: not given */
    double budget;  /* up to 1 a share of the middle, above 1 positions, 0: the policy's own rule; negative: not given */
    double beta;    /* negative: not given */
    int rule;       /* spw_kv_rule; negative: not given */
    double limit;   /* of the rule */
    int rest;       /* spw_kv_rest; negative: not given */
} policy_spec;

typedef struct policy_list {
    policy_spec v[LIST_MAX];
    size_t n;
} policy_list;

/* What was written, comma-separated and possibly several times; the default where nothing was.  On failure *why holds what is wrong.  Whether a name is known is for
 * the library to say. */
bool policies_parse(policy_list *out, const word_list *written, char *why, size_t cap);
/* Sets what spec says in *params. */
void policy_apply(const policy_spec *spec, spw_session_params *params);
/* Whether a policy reads everything always. */
bool policy_is_full(const policy_spec *spec);
/* Positions whose K and V take about the memory of one session for each policy, forked from n_ctx positions, to which n_new are appended: their own rows,
 * and what the policies keep. */
uint64_t policies_positions(const policy_list *list, uint64_t n_ctx, uint64_t n_new);
/* Whether the library takes every one of them; params says the rest.  *err holds its own words. */
bool policies_check(const policy_list *list, spw_engine *e, const spw_session_params *params, spw_err *err);

#endif
