/* policy_tally.h - how large the votes of a session's positions have been, of every layer and KV group: from it the vote above which lie as many positions as a budget for the whole model allows.
 *
 * A row's layers are computed one after the other, so what the last layer needs is not known when the first one chooses.  The rows before tell: each leaves, for every group, how many of its
 * positions have a vote of at least so much, averaged over the last rows.
 *
 * A step may fail and be made again: what a row leaves is kept by its number of positions, apart from what the row before left, and read by the row behind alone. */
#ifndef SPW_POLICY_TALLY_H
#define SPW_POLICY_TALLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct policy_tally policy_tally;

spw_status policy_tally_create(policy_tally **out, uint32_t n_layer, const uint32_t *n_head_kv, spw_err *err);
spw_status policy_tally_copy(policy_tally **out, const policy_tally *from, spw_err *err);
void policy_tally_free(policy_tally *t);
/* The next row finds nothing. */
void policy_tally_forget(policy_tally *t);

/* votes[n], none negative, of a group at the row with n_pos positions.  Different groups may be noted at once. */
void policy_tally_note(policy_tally *t, uint32_t layer, uint32_t head, uint64_t n_pos, const float *votes, size_t n);

/* The vote above which lie, of all groups that the row before has noted, `each` times their number: by the mean of the rows before, every group counting `least` at least.
 * False: that row has noted none.  Computed once for n_pos, by its first call; not for two threads at once. */
bool policy_tally_cut(policy_tally *t, uint64_t n_pos, size_t each, size_t least, float *above);

#endif
