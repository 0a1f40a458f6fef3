/* policy_window.c - the first and the newest positions only, after StreamingLLM (Xiao et al. 2023, arXiv:2309.17453, section 3.2).  Positions keep
 * the rotation of their true place: nothing is re-indexed, because the rows between stay in the store. */
#include "policy.h"

static spw_status window_select(void *state, const policy_params *p, const policy_query *q, policy_choice *choice, spw_err *err)
{
    (void)state;
    uint64_t middle = policy_middle(p, q->n_pos);
    if (!middle) return policy_choice_add(choice, 0, q->n_pos, err);
    spw_status s = policy_choice_add(choice, 0, p->sink, err);
    return s ? s : policy_choice_add(choice, p->sink + middle, p->window, err);
}

const policy_ops policy_window = {.name = "window", .select = window_select};
