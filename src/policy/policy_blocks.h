/* policy_blocks.h - the middle in blocks of adjacent positions, for policies that choose whole blocks; and how they lay out their scratch.
 *
 * Block b of a session holds the positions from b * block on, whatever sink and window are; of the blocks that sink and window cut, the part between
 * the two is what can be chosen.  So no position is in two blocks, none is in a block and in sink or window, and every position of the middle is in one. */
#ifndef SPW_POLICY_BLOCKS_H
#define SPW_POLICY_BLOCKS_H

#include "mem.h"
#include "policy.h"

typedef struct policy_blocks {
    uint64_t begin, end; /* positions of the middle */
    uint64_t first;      /* the block that holds begin */
    uint32_t block;
    size_t n;            /* blocks with a position of the middle: first .. first + n - 1 */
} policy_blocks;

static inline policy_blocks policy_blocks_of(const policy_params *p, uint64_t n_pos)
{
    policy_blocks b = {.begin = p->sink, .block = p->block};
    b.end = b.begin + policy_middle(p, n_pos);
    b.first = b.begin / b.block;
    if (b.end > b.begin) b.n = (size_t)((b.end - 1) / b.block + 1 - b.first);
    return b;
}

/* The positions of the middle in the i-th of its blocks. */
static inline policy_range policy_blocks_at(const policy_blocks *b, size_t i)
{
    uint64_t from = (b->first + i) * b->block, to = from + b->block;
    if (from < b->begin) from = b->begin;
    if (to > b->end) to = b->end;
    return (policy_range){from, to - from};
}

/* How many blocks the budget allows: enough for its positions if they were full.  A budget of 0 asks for the policy's own rule, which is its default here. */
static inline size_t policy_blocks_budget(const policy_params *p, const policy_ops *ops, const policy_blocks *b)
{
    policy_params own = {.budget = p->budget > 0 ? p->budget : ops->budget};
    uint64_t n = (policy_budget(&own, b->end - b->begin) + b->block - 1) / b->block;
    return n < b->n ? (size_t)n : b->n;
}

/* Pieces of a choice's scratch, one after the other, each 64-byte aligned.  With base NULL they are only counted. */
typedef struct policy_layout {
    void *base;
    size_t bytes;
} policy_layout;

static inline void *policy_layout_take(policy_layout *l, size_t bytes)
{
    void *p = l->base ? (uint8_t *)l->base + l->bytes : NULL;
    l->bytes += (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    return p;
}

#endif
