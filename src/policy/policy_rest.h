/* policy_rest.h - what stands for the positions that a policy does not choose: means of V over pages, weighted by estimated attention.
 *
 * The one thing to know: it only fills a place that would be empty.  A head whose estimates cannot be believed gets nothing, and is as it would be without.
 *
 * Of each page the attention of two kinds of candidates is known as an estimate: of those that are chosen, whose rows are read, and of those that are left.  Of all that is left the value is
 *
 *     sum over pages p of left[p] mean[p] / sum of left  +  LEAN (c - sum over pages of chosen[p] mean[p] / sum of chosen)
 *
 * where c is what attention to the chosen gives.  The first part would be right if a page's values had nothing to do with its scores.  The bracket is by how much that is wrong of the chosen, exactly; what a head
 * asks for little is half like what it asks for much (a regression estimator, with the slope fixed).  Attention is that of all heads of the group together; only c, and how much there is of it, are a head's
 * own.  Nothing is known of where positions are that are no candidates: they count where candidates are left. */
#ifndef SPW_POLICY_REST_H
#define SPW_POLICY_REST_H

#include "policy_blocks.h"

/* In the scratch of a choice. */
typedef struct policy_rest_work {
    size_t n_pages;
    float *chosen, *left;   /* of each page */
    const kern_f16 **means;
    float *o, *lse;         /* what comes out */
} policy_rest_work;

/* Places what n_pages pages need. */
void policy_rest_lay_out(policy_rest_work *w, policy_layout *l, const policy_query *q, size_t n_pages);
/* Bytes of means that are read for so many pages. */
size_t policy_rest_bytes(const policy_query *q, size_t n_pages);
/* Looks up the means of pages first .. first + n - 1 and asks for their memory, while attention is added up.  first_page: of the sequence, that of page 0. */
void policy_rest_ask(const policy_rest_work *w, const policy_query *q, uint64_t first_page, size_t first, size_t n);
/* From chosen and left, which are changed; all pages have been asked for.  A mass is e to the score - norm; mass: of each head, of all that is not chosen; variance: of an estimate, for a query of length 1
 * (kern_index_variance). */
policy_rest policy_rest_make(policy_rest_work *w, const policy_query *q, const float *norm, const float *mass, float variance);

#endif
