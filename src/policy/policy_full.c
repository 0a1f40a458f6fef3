/* policy_full.c - every position: exact, and the yardstick for all others. */
#include "policy.h"

static spw_status full_select(void *state, const policy_params *p, const policy_query *q, policy_choice *choice, spw_err *err)
{
    (void)state, (void)p;
    return policy_choice_add(choice, 0, q->n_pos, err);
}

const policy_ops policy_full = {.name = "full", .select = full_select};
