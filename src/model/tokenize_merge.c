/* tokenize_merge.c - the merging that both kinds of BPE share; they differ only in which pairs merge and in what order.
 *
 * A candidate in the heap may be stale: one of its symbols has been merged since.  Symbols only grow and never move, so the left symbol being alive and
 * the two lengths adding up to what they did proves that the pair is the one that was queued. */
#include "mem.h"
#include "vocab_private.h"

spw_status merge_reserve(merge_work *m, size_t n_syms, spw_err *err)
{
    if (n_syms <= m->cap) return SPW_OK;
    size_t cap = m->cap ? m->cap : 64;
    while (cap < n_syms) cap *= 2;
    merge_free(m);
    m->syms = mem_calloc(cap, sizeof *m->syms);
    m->heap = mem_calloc(cap, 2 * sizeof *m->heap);
    if (!m->syms || !m->heap) {
        merge_free(m);
        return spw_fail(err, SPW_E_NOMEM, "no memory to tokenize a piece of %zu characters", n_syms);
    }
    m->cap = cap;
    return SPW_OK;
}

void merge_free(merge_work *m)
{
    mem_free(m->syms);
    mem_free(m->heap);
    *m = (merge_work){0};
}

static void heap_push(merge_work *m, merge_pair pair)
{
    size_t i = m->n_heap++;
    SPW_ASSERT(m->n_heap <= 2 * m->cap);
    for (size_t up; i && m->heap[up = (i - 1) / 2].key > pair.key; i = up) m->heap[i] = m->heap[up];
    m->heap[i] = pair;
}

static merge_pair heap_pop(merge_work *m)
{
    merge_pair top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0, n = m->n_heap;
    for (size_t down; (down = 2 * i + 1) < n; i = down) {
        if (down + 1 < n && m->heap[down + 1].key < m->heap[down].key) down++;
        if (m->heap[down].key >= last.key) break;
        m->heap[i] = m->heap[down];
    }
    m->heap[i] = last;
    return top;
}

/* Queues the symbol at index left and its right neighbour when they merge. */
static void queue_pair(merge_work *m, uint32_t left, const spw_vocab *v, const char *text, merge_rule *rule)
{
    const merge_sym *a = &m->syms[left];
    if (a->next == MERGE_END) return;
    const merge_sym *b = &m->syms[a->next];
    uint32_t order;
    int32_t id;
    if (rule(v, text, a, b, &order, &id)) heap_push(m, (merge_pair){.key = (uint64_t)order << 32 | left, .len = a->len + b->len, .id = id});
}

/* Every merge takes one candidate out and puts two in, and there are fewer than n merges of n symbols: 2n candidates always fit. */
void merge_run(merge_work *m, size_t n, const spw_vocab *v, const char *text, merge_rule *rule)
{
    m->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        m->syms[i].prev = i ? (uint32_t)(i - 1) : MERGE_END;
        m->syms[i].next = i + 1 < n ? (uint32_t)(i + 1) : MERGE_END;
    }
    for (size_t i = 0; i + 1 < n; i++) queue_pair(m, (uint32_t)i, v, text, rule);
    while (m->n_heap) {
        merge_pair pair = heap_pop(m);
        uint32_t left = (uint32_t)pair.key;
        merge_sym *a = &m->syms[left];
        if (!a->len || a->next == MERGE_END) continue;
        merge_sym *b = &m->syms[a->next];
        if (a->len + b->len != pair.len) continue;
        a->len = pair.len, a->id = pair.id, a->next = b->next;
        b->len = 0; /* dead */
        if (a->next != MERGE_END) m->syms[a->next].prev = left;
        if (a->prev != MERGE_END) queue_pair(m, a->prev, v, text, rule);
        queue_pair(m, left, v, text, rule);
    }
}
