/* eval_lanes.h - one context continued under several policies.
 *
 * A text is read once, densely; then every policy gets a fork of it, a lane.  Lanes advance together: one pass over the weights serves all
 * of them, and what a lane computes does not depend on the others. */
#ifndef SPW_APP_EVAL_LANES_H
#define SPW_APP_EVAL_LANES_H

#include "eval_policies.h"
#include "loading.h"
#include "progress.h"

enum { LANES_MAX = LIST_MAX + 1, LANE_DENSE = -1 };

typedef struct lane {
    int policy;    /* index in the list of policies; LANE_DENSE: full, whatever the list says */
    spw_session *session;
    float *logits; /* n_vocab, of its last token */
    int32_t next;  /* token that lanes_step appends; -1: none */
} lane;

typedef struct lanes {
    const loaded *model;
    const policy_list *policies;
    spw_session_params params; /* of all sessions, up to the policy */
    spw_session *base;
    size_t n_vocab;
    lane v[LANES_MAX];
    size_t n;
    float *logits; /* of all lanes */
    progress bar;  /* begun by the caller, with the tokens of all texts */
    size_t done;   /* tokens read */
    bool interrupted; /* by Ctrl-C: what runs returned false without a complaint */
} lanes;

/* False after one line of complaint, also where the library does not know a policy; to be closed in any case.  From now on Ctrl-C ends lanes_read and lanes_step, a second one kills. */
bool lanes_open(lanes *l, const loaded *model, const options *o, const policy_list *policies);
void lanes_close(lanes *l);
/* Forgets everything and reads a text. */
bool lanes_read(lanes *l, const int32_t *ids, size_t n);
/* Makes a lane for each policy whose flag is set, and first of all a dense one if asked for; their logits are those of the text's last token. */
bool lanes_fork(lanes *l, const bool *wanted, bool dense);
/* Every lane that has a next token appends it as a generated one; next is -1 then. */
bool lanes_step(lanes *l);
/* Every lane appends these as a prompt. */
bool lanes_append(lanes *l, const int32_t *ids, size_t n);

#endif
