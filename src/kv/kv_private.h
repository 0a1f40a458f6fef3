/* kv_private.h - what the files of the KV store share: segments, pages, sequences.
 *
 *   kv_store.c   the store: segments and pages, and the check of all invariants
 *   kv_seq.c     sequences: creating, forking, reserving, committing; rows and spans
 *   kv_open.c    KV_Q8: rows that are still halves, and sealing
 *   kv_index.c   what is made when a page is full: its bytes, its code; and the check of codes
 *
 * Page ids are dense over all segments, in the order the segments were added; a page's id never changes while the store lives. */
#ifndef SPW_KV_PRIVATE_H
#define SPW_KV_PRIVATE_H

#include "kv.h"

#define KV_NO_PAGE UINT32_MAX

/* What lies beside the rows.  A side arena has, of all its pages, first the codes without their outer planes, so that a scan reads one stream; then the outer planes of all; then the means
 * of V; then the scales of KV_Q8; then the room for digests. */
typedef enum kv_area { KV_CODES, KV_OUTER, KV_MEANS, KV_SCALES, KV_ROOM, KV_AREAS } kv_area;

typedef struct kv_segment {
    uint8_t *base;
    size_t bytes;
    size_t row_arena_bytes, side_arena_bytes; /* distance from one arena to the next */
    size_t area_at[KV_AREAS];                 /* where they begin in a side arena */
    uint32_t first_page, n_pages;
    uint32_t n_huge, n_huge_area[KV_AREAS];   /* first chunks of 2 MiB of every row arena, and of every side arena's areas, that huge pages have been asked for */
} kv_segment;

typedef struct kv_page {
    uint32_t refs;
    uint32_t segment;
} kv_page;

struct kv_store {
    kv_type type;
    uint32_t n_layer, dim;
    uint32_t *first_arena; /* n_layer + 1: arena of head 0 of each layer; the last entry is the number of arenas */
    unsigned index_planes;
    const kern_table *kern;
    size_t row_bytes, page_bytes;
    size_t area_bytes[KV_AREAS], side_bytes; /* of one page in one arena: each area's part, and of all */
    const numa_topology *numa; /* NULL: no placement */
    kv_segment *segments;
    uint32_t n_segments;
    kv_page *pages;
    uint32_t n_pages, n_used;
    uint64_t promised; /* pages */
    kv_seq *seqs;      /* linked list of all sequences */
};

/* Halves of some positions: [arena][n_rows][2 * dim]. */
typedef struct kv_halves {
    kern_f16 *rows; /* NULL: none */
    uint64_t first; /* position of row 0, where a page begins */
    size_t n_rows;  /* whole pages */
} kv_halves;

struct kv_seq {
    kv_store *store;
    kv_seq *prev, *next;
    uint64_t n_ctx, len, reserved;
    uint64_t opened, last_opened; /* end of the positions that are open, and where those that were opened last begin */
    kv_halves tail, spill;        /* KV_Q8 */
    uint32_t n_pages, max_pages;
    uint32_t pages[]; /* max_pages ids */
};

static inline uint64_t kv_pages_for(uint64_t n_pos)
{
    return n_pos / KV_PAGE_ROWS + (n_pos % KV_PAGE_ROWS != 0);
}

/* Where the page that holds pos begins. */
static inline uint64_t kv_page_start(uint64_t pos)
{
    return pos - pos % KV_PAGE_ROWS;
}

static inline uint32_t kv_n_arenas(const kv_store *st)
{
    return st->first_arena[st->n_layer];
}

/* Pages that a sequence may need at once: those of its context, and one more while a shared last page is being copied. */
static inline uint64_t kv_promise_of(uint64_t n_ctx)
{
    return kv_pages_for(n_ctx) + 1;
}

/* Address of a page's rows in one arena, and of its side area. */
static inline uint8_t *kv_page_rows(const kv_store *st, uint32_t page, uint32_t arena)
{
    const kv_segment *seg = &st->segments[st->pages[page].segment];
    return seg->base + arena * seg->row_arena_bytes + (size_t)(page - seg->first_page) * st->page_bytes;
}

static inline uint8_t *kv_side_arena(const kv_store *st, const kv_segment *seg, uint32_t arena)
{
    return seg->base + kv_n_arenas(st) * seg->row_arena_bytes + arena * seg->side_arena_bytes;
}

static inline uint8_t *kv_page_area(const kv_store *st, uint32_t page, uint32_t arena, kv_area area)
{
    const kv_segment *seg = &st->segments[st->pages[page].segment];
    return kv_side_arena(st, seg, arena) + seg->area_at[area] + (size_t)(page - seg->first_page) * st->area_bytes[area];
}

/* The bytes of a page's code in one arena, with its outer planes. */
static inline size_t kv_code_bytes(const kv_store *st)
{
    return st->area_bytes[KV_CODES] + st->area_bytes[KV_OUTER];
}

/* The scales of a sealed page: of K [dim], of V [KV_PAGE_ROWS]. */
static inline float *kv_page_scales(const kv_store *st, uint32_t page, uint32_t arena)
{
    return (float *)(void *)kv_page_area(st, page, arena, KV_SCALES);
}

/* Whether something is made of full pages, so that rows must be opened and completed. */
static inline bool kv_completes(const kv_store *st)
{
    return st->type == KV_Q8 || st->index_planes;
}

/* ---- kv_store.c ---- */

/* Sees to it that n more pages can be promised. */
spw_status kv_promise(kv_store *st, uint64_t n_pages, spw_err *err);
/* A free page, the one after `after` if it can be had; KV_NO_PAGE when there is none.  The caller owns its first reference. */
uint32_t kv_take_page(kv_store *st, uint32_t after);
/* Drops one reference. */
void kv_drop_page(kv_store *st, uint32_t page);
/* Gives back the memory of free pages among ids[0..n). */
void kv_release_memory(kv_store *st, const uint32_t *ids, uint32_t n);
/* Copies the rows and the side area that positions 0 .. n_rows-1 of a page use. */
void kv_copy_page(kv_store *st, uint32_t to, uint32_t from, size_t n_rows);

/* ---- kv_open.c, for KV_Q8 ---- */

/* An empty tail for a sequence of length 0, or NOMEM. */
spw_status kv_open_create(kv_seq *s, spw_err *err);
void kv_open_free(kv_seq *s);
/* Copies the rows of from's tail; lengths are equal. */
void kv_open_fork(kv_seq *s, const kv_seq *from);
/* Room for positions opened .. opened + n - 1. */
spw_status kv_open_grow(kv_seq *s, uint64_t n, spw_err *err);
/* The length becomes len, not above opened: brings the rows of its page to the tail, undoing the sealing where their halves are gone; the spill goes. */
void kv_open_set_len(kv_seq *s, uint64_t len);
/* The open row of a position, or NULL. */
kern_f16 *kv_open_row(const kv_seq *s, uint32_t arena, uint64_t pos);
/* Makes bytes of the open rows of the page that begins at pos. */
void kv_open_seal(const kv_seq *s, uint32_t arena, uint64_t pos);
/* The values of a row whose page is sealed. */
void kv_open_read_sealed(const kv_seq *s, uint32_t arena, uint64_t pos, float *out);
size_t kv_open_bytes(const kv_seq *s);
/* Invariant 6. */
spw_status kv_open_check(const kv_seq *s, spw_err *err);

/* ---- kv_index.c ---- */

/* Invariant 7, or NOMEM. */
spw_status kv_index_check(const kv_store *st, spw_err *err);

#endif
