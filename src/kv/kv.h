/* kv.h - the host KV store: every K and V row of every session, in pages that sessions share.
 *
 * Layout.  A row is one position of one layer and one KV head: K [dim] then V [dim] as halves (floats for KV_F32, bytes for KV_Q8), dim = head_dim
 * rounded up to 16, the padding zero.  A page is KV_PAGE_ROWS positions of all layers and KV heads: the grain of allocation, sharing and copying.  In
 * memory the pages of one (layer, KV head) lie one after another in an arena, so that a session that grows alone reads each head as one sequential stream:
 *
 *     segment:  | arena (layer 0, head 0)      | arena (0, 1) | ... | side arena (0, 0) | ...
 *     arena:    | page 0 | page 1 | ...  page = KV_PAGE_ROWS rows
 *
 * A segment is one reservation of address space; the store adds segments as sessions are created, so that a page, once promised to a
 * session, can always be had.  Memory appears when rows are written.  Arenas start at multiples of 2 MiB; huge pages are asked for from an arena's second
 * 2 MiB on (of what lies beside rows, the room for digests left out, from the second half of the first on), so that short sessions stay small.  A side arena has, of all its pages, first the codes without their outer planes (those of
 * adjacent pages are one stream), then the outer planes, then the means of V, then the scales of KV_Q8, then side_bytes of room for the digests of policies.  All are shared and copied with the rows.
 *
 * Full pages are immutable and may belong to several sequences; the last page of a sequence is copied before it is written when it is shared.
 *
 * KV_Q8.  Rows are written as halves, and a page becomes bytes when it is full (it is *sealed*): one scale for each channel of K, one for each position
 * of V.  Rows of pages that are not full belong to the sequence alone and lie beside the pages: those of the page that holds position len in its tail,
 * those beyond while a step runs in its spill.
 *
 *     positions:   | sealed page | sealed page | tail page: rows below len, and new ones | new rows of later pages |
 *     they lie:    | bytes in the page         | halves in the tail                      | halves in the spill      |
 *
 * A step opens its rows one pass after the other, so the spill is as long as a pass, however long the prompt.  A row at position p is to see its own page
 * as halves and all pages before it as bytes (kv_border), whether or not its page has been sealed meanwhile: so what it sees does not depend on how a prompt
 * was cut.  The tail is not touched below len until rows are committed: a step that fails has changed nothing.  Only truncation into a sealed page has to
 * make halves of its bytes again.
 *
 * Index.  A store may keep low-bit codes of all keys (kern_index.h), by which policies choose positions: one code for each full page, layer and head.  It is a
 * function of the K that this page holds and of nothing else, its own mean key included, and is made once, when the page is full (kv_complete).  So it does not
 * depend on how rows came, no state of a sequence goes with it, and whoever has a page has its code.  For KV_Q8 it is the code of what the bytes stand
 * for: what attention will read, and what remains to check it by.  Positions of a page that is not full have no code.  Beside the code of its K a page has the mean of its V, made
 * alike, which may stand for rows that are not read (policy_rest.h).
 *
 * Invariants, asserted by kv_check:
 *   1. refs of a page = how many sequence entries name it;
 *   2. a page is marked used if and only if refs > 0, and n_used counts those;
 *   3. a sequence holds ceil(max(len, reserved) / KV_PAGE_ROWS) pages, all ids in range, none twice;
 *   4. len <= opened <= reserved <= n_ctx of the sequence;
 *   5. promised = sum over sequences of the pages of n_ctx, plus one each for copying; it never exceeds the pages of all segments;
 *   6. a KV_Q8 sequence has a tail, and a spill if and only if it opened positions beyond the tail page: whole pages that hold the last opened ones;
 *   7. with an index, the code and the mean of V of every full page below len are, byte for byte, those of its rows.
 *
 * One thread at a time changes the store; reading rows of distinct or the same sequences from many threads is safe while nobody reserves or frees. */
#ifndef SPW_KV_H
#define SPW_KV_H

#include "kern.h"
#include "numa.h"

#ifndef KV_PAGE_ROWS
#define KV_PAGE_ROWS 128 /* positions; the stress build uses 4 */
#endif

/* Spans that cover any KERN_SPAN adjacent positions. */
enum { KV_MAX_SPANS = KERN_SPAN / KV_PAGE_ROWS + 2 };

typedef struct kv_store kv_store;
typedef struct kv_seq kv_seq; /* the timeline of one session in the store */

typedef enum kv_type {
    KV_F16,
    KV_F32, /* twice the bytes: for comparing with implementations that do not round K and V */
    KV_Q8,  /* half the bytes, and the scales */
} kv_type;

typedef struct kv_config {
    kv_type type;
    uint32_t n_layer;
    const uint32_t *n_head_kv; /* per layer, each > 0; copied */
    uint32_t dim;              /* multiple of 16; at most KERN_Q8_DIM for KV_Q8 */
    unsigned index_planes;     /* bits of a code for each dimension of K, KERN_INDEX_PLANES at most; 0: no index */
    size_t side_bytes;         /* for digests: per page, layer and head; 0: none */
    const kern_table *kern;    /* kept; may be NULL unless the type is KV_Q8 or there is an index */
    const numa_topology *numa; /* NULL or of one node: pages lie where the system puts them.  Else each KV head's on the node whose workers get its items (numa.h); kept */
} kv_config;

spw_status kv_store_create(kv_store **out, const kv_config *config, spw_err *err);
/* All sequences must have been freed. */
void kv_store_free(kv_store *st);
uint32_t kv_dim(const kv_store *st);
kv_type kv_store_type(const kv_store *st);
unsigned kv_index_planes(const kv_store *st);
/* Bytes of one position in one layer and head, its part of a page's scales and code included (each rounded up). */
size_t kv_pos_bytes(kv_type type, uint32_t dim, unsigned index_planes);
/* Of all layers and heads. */
uint64_t kv_bytes_per_page(const kv_store *st); /* side area included */
uint64_t kv_index_bytes_per_page(const kv_store *st); /* codes alone; 0 without an index */
/* SPW_E_FORMAT names the first invariant that does not hold.  Cost: pages + entries of all sequences, and with an index all pages are coded again. */
spw_status kv_check(const kv_store *st, spw_err *err);

/* Promises room for n_ctx positions (>= 1): address space, not memory. */
spw_status kv_seq_create(kv_seq **out, kv_store *st, uint64_t n_ctx, spw_err *err);
/* Shares all pages of the len positions of from; n_ctx >= len. */
spw_status kv_seq_fork(kv_seq **out, const kv_seq *from, uint64_t n_ctx, spw_err *err);
void kv_seq_free(kv_seq *s); /* takes NULL; memory of pages nobody else holds goes back to the system */
const kv_store *kv_seq_store(const kv_seq *s);
uint64_t kv_seq_len(const kv_seq *s);
uint64_t kv_seq_n_ctx(const kv_seq *s);
size_t kv_seq_row_bytes(const kv_seq *s); /* of a row in a page */
size_t kv_seq_open_row_bytes(const kv_seq *s); /* of a row as it is written */
uint64_t kv_seq_bytes(const kv_seq *s); /* of its pages, shared ones counted whole, and of its tail and spill */
/* Makes sure of room for positions len .. len + n - 1 (copying a shared last page); on failure nothing has changed.  SPW_E_FULL beyond n_ctx. */
spw_status kv_seq_reserve(kv_seq *s, uint64_t n, spw_err *err);
/* Opens the next n reserved positions, from len on after kv_seq_reserve.  Must come before their rows are written when the type is KV_Q8 or there is an index, and
 * kv_complete after.  KV_Q8 forgets the halves of pages that were full before; on failure nothing has changed, and nothing can fail while the positions
 * lie in the page of position len. */
spw_status kv_seq_open(kv_seq *s, uint64_t n, spw_err *err);
/* The first n reserved positions are now part of the sequence.  When they had to be opened, they have been, and what was opened beyond them must be again. */
void kv_seq_commit(kv_seq *s, uint64_t n);
/* Keeps the first len positions; drops what was reserved beyond them. */
void kv_seq_truncate(kv_seq *s, uint64_t len);

/* When all rows last opened have been written in this layer and head: makes bytes of the pages that they fill (KV_Q8), their codes and means (index); otherwise nothing.
 * Threads may do it for different layers and heads at the same time, each with a scratch of kv_complete_scratch floats of its own (0: NULL will do). */
void kv_complete(const kv_seq *s, uint32_t layer, uint32_t head, float *scratch);
size_t kv_complete_scratch(const kv_store *st);
/* First position that the row at pos sees as it was written (kv_spans, not sealed); it sees those before sealed.  0 unless KV_Q8. */
uint64_t kv_border(const kv_seq *s, uint64_t pos);

/* The row of a position below reserved as it is written; writable from kv_seq_len on.  KV_Q8: of an open position, as halves. */
void *kv_row(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos);
/* out[0 .. 2 * dim) = the values of the row of any position below reserved. */
void kv_read_row(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos, float *out);
/* The code of the sequence's page number page, which rows that have been completed fill: kern_index_bytes(KV_PAGE_ROWS, dim, 1) bytes, aligned to 64.
 * NULL without an index. */
const void *kv_code(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t page);
/* Its outer planes, which lie apart; NULL with fewer than two planes.  kv_code has the areas before it. */
const void *kv_code_outer(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t page);
/* The mean of V over a full page, as halves [dim]; NULL without an index. */
const kern_f16 *kv_value_mean(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t page);
/* The same of n pages from page number first on, of a store with an index; outer as kv_code_outer. */
void kv_codes(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, size_t n, const void **codes, const void **outer);
void kv_value_means(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, size_t n, const kern_f16 **means);
/* The room for digests of the page that holds pos, side_bytes aligned to 64, or NULL when the store has none. */
void *kv_side(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos);
/* Spans of positions first .. first + n - 1 (n <= KERN_SPAN, all below reserved), adjacent pages joined; returns how many, at most KV_MAX_SPANS.
 * KV_Q8: sealed ones are spans of bytes, each inside one page; others are halves, and all n in one open page. */
size_t kv_spans(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, uint32_t n, bool sealed, kern_span spans[KV_MAX_SPANS]);
/* The same of ranges of at most KERN_SPAN positions each, one after the other and not joined, until they hold `limit` positions: the range that reaches it is taken whole.  Never more spans than positions. */
size_t kv_gather(const kv_seq *s, uint32_t layer, uint32_t head, const spw_range *ranges, size_t n_ranges, uint32_t limit, bool sealed, kern_span *spans);

#endif
