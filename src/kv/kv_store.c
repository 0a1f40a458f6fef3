/* kv_store.c - segments, pages and sequences of the host KV store (layout and invariants: kv.h).
 *
 * Page ids are dense over all segments, in the order the segments were added; a page's id never changes while the store lives. */
#include "kv.h"

#include <string.h>
#include <sys/mman.h>

#include "mem.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1: make huge pages now instead of some time */
#endif

enum { HUGE_BYTES = 2 << 20, SEGMENT_MIN_PAGES = 16 };
static const uint32_t NO_PAGE = UINT32_MAX;

typedef struct kv_segment {
    uint8_t *base;
    size_t bytes;
    size_t row_arena_bytes, side_arena_bytes; /* distance from one arena to the next */
    uint32_t first_page, n_pages;
    uint32_t n_huge; /* chunks of HUGE_BYTES, from the second on, that huge pages have been asked for, in every row arena */
} kv_segment;

typedef struct kv_page {
    uint32_t refs;
    uint32_t segment;
} kv_page;

struct kv_store {
    kv_type type;
    uint32_t n_layer, dim;
    uint32_t *first_arena; /* n_layer + 1: arena of head 0 of each layer; the last entry is the number of arenas */
    size_t row_bytes, page_bytes, side_bytes;
    kv_segment *segments;
    uint32_t n_segments;
    kv_page *pages;
    uint32_t n_pages, n_used;
    uint64_t promised; /* pages */
    kv_seq *seqs;      /* linked list of all sequences */
};

struct kv_seq {
    kv_store *store;
    kv_seq *prev, *next;
    uint64_t n_ctx, len, reserved;
    uint32_t n_pages, max_pages;
    uint32_t pages[]; /* max_pages ids */
};

static uint64_t pages_for(uint64_t n_pos)
{
    return n_pos / KV_PAGE_ROWS + (n_pos % KV_PAGE_ROWS != 0);
}

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static uint32_t n_arenas(const kv_store *st)
{
    return st->first_arena[st->n_layer];
}

/* Pages that a sequence may need at once: those of its context, and one more while a shared last page is being copied. */
static uint64_t promise_of(uint64_t n_ctx)
{
    return pages_for(n_ctx) + 1;
}

/* ------------------------------------------------------------------------------------------------ store ---- */

spw_status kv_store_create(kv_store **out, const kv_config *config, spw_err *err)
{
    SPW_CHECK(config->n_layer > 0 && config->dim > 0 && config->dim % 16 == 0);
    kv_store *st = mem_zalloc(sizeof *st);
    if (!st) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory");
    st->n_layer = config->n_layer;
    st->dim = config->dim;
    st->type = config->type;
    st->row_bytes = (size_t)config->dim * 2 * (config->type == KV_F32 ? sizeof(float) : sizeof(kern_f16));
    st->page_bytes = st->row_bytes * KV_PAGE_ROWS;
    st->side_bytes = round_up(config->side_bytes, MEM_ALIGN);
    st->first_arena = mem_calloc((size_t)config->n_layer + 1, sizeof *st->first_arena);
    if (!st->first_arena) {
        mem_free(st);
        return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for %u layers", config->n_layer);
    }
    for (uint32_t l = 0; l < config->n_layer; l++) {
        SPW_CHECK(config->n_head_kv[l] > 0);
        st->first_arena[l + 1] = st->first_arena[l] + config->n_head_kv[l];
    }
    *out = st;
    return SPW_OK;
}

void kv_store_free(kv_store *st)
{
    if (!st) return;
    SPW_CHECK(!st->seqs);
    for (uint32_t i = 0; i < st->n_segments; i++) mem_unreserve(st->segments[i].base, st->segments[i].bytes);
    mem_free(st->segments);
    mem_free(st->pages);
    mem_free(st->first_arena);
    mem_free(st);
}

uint32_t kv_dim(const kv_store *st)
{
    return st->dim;
}

kv_type kv_store_type(const kv_store *st)
{
    return st->type;
}

uint64_t kv_bytes_per_pos(const kv_store *st)
{
    return (uint64_t)n_arenas(st) * st->row_bytes;
}

uint64_t kv_bytes_per_page(const kv_store *st)
{
    return (uint64_t)n_arenas(st) * (st->page_bytes + st->side_bytes);
}

/* Adds a segment of at least n_pages pages. */
static spw_status add_segment(kv_store *st, uint64_t n_pages, spw_err *err)
{
    if (n_pages < SEGMENT_MIN_PAGES) n_pages = SEGMENT_MIN_PAGES;
    if (n_pages > UINT32_MAX / 2 - st->n_pages) return spw_fail(err, SPW_E_NOMEM, "KV store: %llu pages are too many", (unsigned long long)n_pages);
    kv_segment seg = {.first_page = st->n_pages, .n_pages = (uint32_t)n_pages};
    size_t rows, side, per_arena;
    bool fits = mul_size((size_t)n_pages, st->page_bytes, &rows) && mul_size((size_t)n_pages, st->side_bytes, &side) && rows < SIZE_MAX / 4 &&
                side < SIZE_MAX / 4;
    if (fits) {
        seg.row_arena_bytes = round_up(rows, HUGE_BYTES);
        seg.side_arena_bytes = side ? round_up(side, 4096) : 0;
        fits = add_size(seg.row_arena_bytes, seg.side_arena_bytes, &per_arena) && mul_size(per_arena, n_arenas(st), &seg.bytes) &&
               seg.bytes < SIZE_MAX - HUGE_BYTES;
    }
    if (!fits) return spw_fail(err, SPW_E_NOMEM, "KV store: the bytes of %llu pages do not fit an address", (unsigned long long)n_pages);
    seg.bytes = round_up(seg.bytes, HUGE_BYTES);

    kv_page *pages = mem_realloc(st->pages, st->n_pages * sizeof *pages, (st->n_pages + (size_t)n_pages) * sizeof *pages);
    if (!pages) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for a table of %llu pages", (unsigned long long)n_pages);
    st->pages = pages;
    kv_segment *segments = mem_realloc(st->segments, st->n_segments * sizeof *segments, (st->n_segments + (size_t)1) * sizeof *segments);
    if (!segments) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for a table of segments");
    st->segments = segments;
    seg.base = mem_reserve(seg.bytes);
    if (!seg.base) {
        return spw_fail(err, SPW_E_NOMEM, "KV store: the system refuses %.1f GiB of address space for %llu positions", (double)seg.bytes / (1 << 30),
                        (unsigned long long)n_pages * KV_PAGE_ROWS);
    }
    madvise(seg.base, seg.bytes, MADV_NOHUGEPAGE);
    for (uint32_t i = 0; i < seg.n_pages; i++) pages[st->n_pages + i] = (kv_page){.segment = st->n_segments};
    segments[st->n_segments++] = seg;
    st->n_pages += seg.n_pages;
    return SPW_OK;
}

/* Address of a page's rows in one arena, and of its side area. */
static uint8_t *page_rows(const kv_store *st, uint32_t page, uint32_t arena)
{
    const kv_segment *seg = &st->segments[st->pages[page].segment];
    return seg->base + arena * seg->row_arena_bytes + (size_t)(page - seg->first_page) * st->page_bytes;
}

static uint8_t *page_side(const kv_store *st, uint32_t page, uint32_t arena)
{
    const kv_segment *seg = &st->segments[st->pages[page].segment];
    return seg->base + n_arenas(st) * seg->row_arena_bytes + arena * seg->side_arena_bytes + (size_t)(page - seg->first_page) * st->side_bytes;
}

/* Asks for huge pages once a page is used that lies beyond the first chunk of its arenas: for all chunks up to there.  The first chunk is
 * collapsed then, because it was filled with small pages.  Advice only: refusals are ignored. */
static void advise_huge(kv_store *st, uint32_t page)
{
    kv_segment *seg = &st->segments[st->pages[page].segment];
    size_t last_byte = ((size_t)(page - seg->first_page) + 1) * st->page_bytes - 1;
    uint32_t chunk = (uint32_t)(last_byte / HUGE_BYTES);
    if (chunk <= seg->n_huge) return;
    for (uint32_t a = 0; a < n_arenas(st); a++) {
        uint8_t *arena = seg->base + a * seg->row_arena_bytes;
        size_t from = seg->n_huge ? (size_t)(seg->n_huge + 1) * HUGE_BYTES : 0;
        madvise(arena + from, (size_t)(chunk + 1) * HUGE_BYTES - from, MADV_HUGEPAGE);
        if (!seg->n_huge) madvise(arena, HUGE_BYTES, MADV_COLLAPSE);
    }
    seg->n_huge = chunk;
}

/* Start of the best run of free pages for a sequence that begins: the longest one; its middle when it follows a page in use, which is probably the end of a
 * sequence that still grows. */
static uint32_t find_run(const kv_store *st)
{
    uint32_t best = NO_PAGE, best_n = 0;
    for (uint32_t i = 0; i < st->n_segments; i++) {
        uint32_t end = st->segments[i].first_page + st->segments[i].n_pages, run = 0;
        for (uint32_t p = st->segments[i].first_page; p < end; p++) {
            run = st->pages[p].refs ? 0 : run + 1;
            if (run > best_n) best_n = run, best = p + 1 - run;
        }
    }
    if (best == NO_PAGE || best == st->segments[st->pages[best].segment].first_page || best_n < 4) return best;
    return best + best_n / 2;
}

/* A free page, the one after `after` if it can be had; NO_PAGE when there is none.  The caller owns its first reference. */
static uint32_t take_page(kv_store *st, uint32_t after)
{
    uint32_t page = NO_PAGE;
    if (after != NO_PAGE && after + 1 < st->n_pages && !st->pages[after + 1].refs) page = after + 1;
    if (page == NO_PAGE) page = find_run(st);
    if (page == NO_PAGE) return NO_PAGE;
    st->pages[page].refs = 1;
    st->n_used++;
    advise_huge(st, page);
    return page;
}

/* Drops one reference; the memory of a page that nobody holds goes back to the system. */
static void drop_page(kv_store *st, uint32_t page)
{
    SPW_CHECK(st->pages[page].refs > 0);
    if (--st->pages[page].refs) return;
    st->n_used--;
}

/* Gives back whole system pages inside a range; what shares one with its neighbours stays. */
static void release_range(const uint8_t *at, size_t bytes)
{
    uintptr_t from = ((uintptr_t)at + 4095) & ~(uintptr_t)4095, to = ((uintptr_t)at + bytes) & ~(uintptr_t)4095;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

/* Gives back the memory of free pages among ids[0..n), adjacent ones in one call. */
static void release_memory(kv_store *st, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n;) {
        if (st->pages[ids[i]].refs) {
            i++;
            continue;
        }
        uint32_t run = 1;
        while (i + run < n && ids[i + run] == ids[i] + run && !st->pages[ids[i + run]].refs &&
               st->pages[ids[i + run]].segment == st->pages[ids[i]].segment)
            run++;
        for (uint32_t a = 0; a < n_arenas(st); a++) {
            release_range(page_rows(st, ids[i], a), run * st->page_bytes);
            release_range(page_side(st, ids[i], a), run * st->side_bytes);
        }
        i += run;
    }
}

/* -------------------------------------------------------------------------------------------- sequences ---- */

static spw_status seq_alloc(kv_seq **out, kv_store *st, uint64_t n_ctx, spw_err *err)
{
    uint64_t pages = pages_for(n_ctx);
    if (pages >= UINT32_MAX / 2) return spw_fail(err, SPW_E_ARG, "context of %llu positions: too many", (unsigned long long)n_ctx);
    uint64_t want = st->promised + promise_of(n_ctx);
    if (want > st->n_pages) {
        spw_status s = add_segment(st, want - st->n_pages, err);
        if (s) return s;
    }
    kv_seq *q = mem_zalloc(sizeof *q + (size_t)pages * sizeof q->pages[0]);
    if (!q) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for a page list of %llu positions", (unsigned long long)n_ctx);
    q->store = st;
    q->n_ctx = n_ctx;
    q->max_pages = (uint32_t)pages;
    q->next = st->seqs;
    if (st->seqs) st->seqs->prev = q;
    st->seqs = q;
    st->promised = want;
    *out = q;
    return SPW_OK;
}

spw_status kv_seq_create(kv_seq **out, kv_store *st, uint64_t n_ctx, spw_err *err)
{
    SPW_CHECK(n_ctx > 0);
    return seq_alloc(out, st, n_ctx, err);
}

spw_status kv_seq_fork(kv_seq **out, const kv_seq *from, uint64_t n_ctx, spw_err *err)
{
    SPW_CHECK(n_ctx >= from->len && n_ctx > 0);
    kv_store *st = from->store;
    spw_status s = seq_alloc(out, st, n_ctx, err);
    if (s) return s;
    kv_seq *q = *out;
    q->len = q->reserved = from->len;
    q->n_pages = (uint32_t)pages_for(from->len);
    memcpy(q->pages, from->pages, q->n_pages * sizeof q->pages[0]);
    for (uint32_t i = 0; i < q->n_pages; i++) st->pages[q->pages[i]].refs++;
    return SPW_OK;
}

void kv_seq_free(kv_seq *s)
{
    if (!s) return;
    kv_store *st = s->store;
    for (uint32_t i = 0; i < s->n_pages; i++) drop_page(st, s->pages[i]);
    release_memory(st, s->pages, s->n_pages);
    st->promised -= promise_of(s->n_ctx);
    if (s->prev) s->prev->next = s->next;
    else st->seqs = s->next;
    if (s->next) s->next->prev = s->prev;
    mem_free(s);
}

uint64_t kv_seq_len(const kv_seq *s)
{
    return s->len;
}

uint64_t kv_seq_n_ctx(const kv_seq *s)
{
    return s->n_ctx;
}

size_t kv_seq_row_bytes(const kv_seq *s)
{
    return s->store->row_bytes;
}

uint64_t kv_seq_bytes(const kv_seq *s)
{
    return s->n_pages * kv_bytes_per_page(s->store);
}

/* Copies the rows and the side area that positions 0 .. n_rows-1 of a page use. */
static void copy_page(kv_store *st, uint32_t to, uint32_t from, size_t n_rows)
{
    for (uint32_t a = 0; a < n_arenas(st); a++) {
        memcpy(page_rows(st, to, a), page_rows(st, from, a), n_rows * st->row_bytes);
        if (st->side_bytes) memcpy(page_side(st, to, a), page_side(st, from, a), st->side_bytes);
    }
}

spw_status kv_seq_reserve(kv_seq *s, uint64_t n, spw_err *err)
{
    kv_store *st = s->store;
    if (n > s->n_ctx - s->len) {
        return spw_fail(err, SPW_E_FULL, "%llu positions are held and %llu more asked for, the context holds %llu", (unsigned long long)s->len,
                        (unsigned long long)n, (unsigned long long)s->n_ctx);
    }
    kv_seq_truncate(s, s->len);
    uint32_t old_pages = s->n_pages, want = (uint32_t)pages_for(s->len + n);
    while (s->n_pages < want) {
        uint32_t page = take_page(st, s->n_pages ? s->pages[s->n_pages - 1] : NO_PAGE);
        if (page == NO_PAGE) goto full;
        s->pages[s->n_pages++] = page;
    }
    size_t tail = s->len % KV_PAGE_ROWS; /* rows of the last page that are in use */
    if (n && tail) {
        uint32_t *last = &s->pages[s->len / KV_PAGE_ROWS];
        if (st->pages[*last].refs > 1) {
            uint32_t page = take_page(st, last > s->pages ? last[-1] : NO_PAGE);
            if (page == NO_PAGE) goto full;
            copy_page(st, page, *last, tail);
            drop_page(st, *last);
            *last = page;
        }
    }
    s->reserved = s->len + n;
    return SPW_OK;

full:
    while (s->n_pages > old_pages) drop_page(st, s->pages[--s->n_pages]);
    return spw_fail(err, SPW_E_NOMEM, "KV store: no page is free for %llu more positions", (unsigned long long)n);
}

void kv_seq_commit(kv_seq *s, uint64_t n)
{
    SPW_CHECK(n <= s->reserved - s->len);
    s->len += n;
}

void kv_seq_truncate(kv_seq *s, uint64_t len)
{
    SPW_CHECK(len <= s->len);
    uint32_t keep = (uint32_t)pages_for(len), n = s->n_pages;
    for (uint32_t i = keep; i < n; i++) drop_page(s->store, s->pages[i]);
    release_memory(s->store, s->pages + keep, n - keep);
    s->n_pages = keep;
    s->len = s->reserved = len;
}

/* -------------------------------------------------------------------------------------------------- rows ---- */

void *kv_row(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos)
{
    SPW_ASSERT(pos < s->reserved);
    const kv_store *st = s->store;
    uint8_t *rows = page_rows(st, s->pages[pos / KV_PAGE_ROWS], st->first_arena[layer] + head);
    return rows + pos % KV_PAGE_ROWS * st->row_bytes;
}

void *kv_side(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos)
{
    SPW_ASSERT(pos < s->reserved);
    const kv_store *st = s->store;
    return st->side_bytes ? page_side(st, s->pages[pos / KV_PAGE_ROWS], st->first_arena[layer] + head) : NULL;
}

size_t kv_spans(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, uint32_t n, kern_span spans[KV_MAX_SPANS])
{
    SPW_ASSERT(n <= KERN_SPAN && first + n <= s->reserved);
    size_t count = 0, row_bytes = s->store->row_bytes;
    while (n) {
        uint32_t here = KV_PAGE_ROWS - (uint32_t)(first % KV_PAGE_ROWS);
        if (here > n) here = n;
        const uint8_t *rows = kv_row(s, layer, head, first);
        if (count && (const uint8_t *)spans[count - 1].rows + spans[count - 1].n * row_bytes == rows) spans[count - 1].n += here;
        else spans[count++] = (kern_span){rows, here};
        first += here;
        n -= here;
    }
    return count;
}

/* ------------------------------------------------------------------------------------------------- check ---- */

static spw_status check_seq(const kv_store *st, const kv_seq *s, uint32_t *counted, uint32_t *seen, uint32_t mark, spw_err *err)
{
    if (s->len > s->reserved || s->reserved > s->n_ctx) {
        return spw_fail(err, SPW_E_FORMAT, "KV store: invariant 4: len %llu, reserved %llu, n_ctx %llu", (unsigned long long)s->len,
                        (unsigned long long)s->reserved, (unsigned long long)s->n_ctx);
    }
    if (s->n_pages != pages_for(s->reserved)) {
        return spw_fail(err, SPW_E_FORMAT, "KV store: invariant 3: %u pages for %llu positions", s->n_pages, (unsigned long long)s->reserved);
    }
    for (uint32_t i = 0; i < s->n_pages; i++) {
        uint32_t page = s->pages[i];
        if (page >= st->n_pages || seen[page] == mark) {
            return spw_fail(err, SPW_E_FORMAT, "KV store: invariant 3: page %u of %u is out of range or named twice", page, st->n_pages);
        }
        seen[page] = mark;
        counted[page]++;
    }
    return SPW_OK;
}

spw_status kv_check(const kv_store *st, spw_err *err)
{
    if (!st->n_pages) return SPW_OK;
    uint32_t *counted = mem_calloc((size_t)st->n_pages * 2, sizeof *counted);
    if (!counted) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for checking");
    uint32_t mark = 0, used = 0;
    uint64_t promised = 0;
    spw_status status = SPW_OK;
    for (const kv_seq *s = st->seqs; s && !status; s = s->next) {
        promised += promise_of(s->n_ctx);
        status = check_seq(st, s, counted, counted + st->n_pages, ++mark, err);
    }
    for (uint32_t p = 0; p < st->n_pages && !status; p++) {
        if (counted[p] != st->pages[p].refs) {
            status = spw_fail(err, SPW_E_FORMAT, "KV store: invariant 1: page %u has %u references, %u are there", p, st->pages[p].refs, counted[p]);
        }
        used += st->pages[p].refs > 0;
    }
    if (!status && used != st->n_used) {
        status = spw_fail(err, SPW_E_FORMAT, "KV store: invariant 2: %u pages in use, %u counted", used, st->n_used);
    }
    if (!status && (promised != st->promised || promised > st->n_pages)) {
        status = spw_fail(err, SPW_E_FORMAT, "KV store: invariant 5: %llu pages promised, %llu recorded, %u there", (unsigned long long)promised,
                          (unsigned long long)st->promised, st->n_pages);
    }
    mem_free(counted);
    return status;
}
