/* kv_store.c - the host KV store: segments of address space, the pages in them, and the check of everything (layout and invariants: kv.h). */
#include <string.h>
#include <sys/mman.h>

#include "kern_index.h"
#include "kv_private.h"
#include "mem.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1: make huge pages now instead of some time */
#endif

/* SIDE_SMALL: bytes of codes or side areas that are left to small pages.  Beside them lie many times as many bytes of rows, so the rest of a huge page is little. */
enum { HUGE_BYTES = 2 << 20, SIDE_SMALL = HUGE_BYTES / 2, SEGMENT_MIN_PAGES = 16 };

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* ------------------------------------------------------------------------------------------------ store ---- */

static size_t elem_bytes(kv_type type)
{
    return type == KV_F32 ? sizeof(float) : type == KV_F16 ? sizeof(kern_f16) : sizeof(int8_t);
}

/* Of one KV_Q8 page in one arena. */
static size_t scale_bytes(uint32_t dim)
{
    return (dim + (size_t)KV_PAGE_ROWS) * sizeof(float);
}

/* Of one page in one arena. */
static size_t code_bytes(uint32_t dim, unsigned planes)
{
    return planes ? kern_index_bytes(KV_PAGE_ROWS, dim, planes) : 0;
}

/* The mean value of one page in one arena, which a store with an index keeps. */
static size_t mean_bytes(uint32_t dim, unsigned planes)
{
    return planes ? round_up(dim * sizeof(kern_f16), MEM_ALIGN) : 0;
}

/* A position's part of what a page has. */
static size_t part_of(size_t page_bytes)
{
    return (page_bytes + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS;
}

size_t kv_pos_bytes(kv_type type, uint32_t dim, unsigned index_planes)
{
    return 2 * (size_t)dim * elem_bytes(type) + part_of(type == KV_Q8 ? scale_bytes(dim) : 0) + part_of(code_bytes(dim, index_planes)) + part_of(mean_bytes(dim, index_planes));
}

spw_status kv_store_create(kv_store **out, const kv_config *config, spw_err *err)
{
    SPW_CHECK(config->n_layer > 0 && config->dim > 0 && config->dim % 16 == 0 && (config->type != KV_Q8 || config->dim <= KERN_Q8_DIM));
    SPW_CHECK(config->index_planes <= KERN_INDEX_PLANES && (config->kern || (config->type != KV_Q8 && !config->index_planes)));
    kv_store *st = mem_zalloc(sizeof *st);
    if (!st) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory");
    st->n_layer = config->n_layer;
    st->dim = config->dim;
    st->type = config->type;
    st->index_planes = config->index_planes;
    st->kern = config->kern;
    st->numa = config->numa;
    st->row_bytes = 2 * (size_t)config->dim * elem_bytes(config->type);
    st->page_bytes = st->row_bytes * KV_PAGE_ROWS;
    st->area_bytes[KV_CODES] = code_bytes(config->dim, config->index_planes ? 1 : 0);
    st->area_bytes[KV_OUTER] = code_bytes(config->dim, config->index_planes) - st->area_bytes[KV_CODES];
    st->area_bytes[KV_MEANS] = mean_bytes(config->dim, config->index_planes);
    st->area_bytes[KV_SCALES] = config->type == KV_Q8 ? round_up(scale_bytes(config->dim), MEM_ALIGN) : 0;
    st->area_bytes[KV_ROOM] = round_up(config->side_bytes, MEM_ALIGN);
    for (int i = 0; i < KV_AREAS; i++) st->side_bytes += st->area_bytes[i];
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

unsigned kv_index_planes(const kv_store *st)
{
    return st->index_planes;
}

uint64_t kv_bytes_per_page(const kv_store *st)
{
    return (uint64_t)kv_n_arenas(st) * (st->page_bytes + st->side_bytes);
}

uint64_t kv_index_bytes_per_page(const kv_store *st)
{
    return (uint64_t)kv_n_arenas(st) * (kv_code_bytes(st) + st->area_bytes[KV_MEANS]);
}

/* Asks for the memory of each KV head's arenas on the node that will read it; refusals are ignored. */
static void place_arenas(const kv_store *st, const kv_segment *seg)
{
    if (!st->numa || st->numa->n_nodes < 2) return;
    uint8_t *side = seg->base + kv_n_arenas(st) * seg->row_arena_bytes;
    for (uint32_t l = 0; l < st->n_layer; l++) {
        uint32_t first = st->first_arena[l], n_heads = st->first_arena[l + 1] - first;
        for (uint32_t h = 0; h < n_heads; h++) {
            int node = numa_node_of(st->numa, h, n_heads);
            numa_prefer(st->numa, seg->base + (first + h) * seg->row_arena_bytes, seg->row_arena_bytes, node);
            numa_prefer(st->numa, side + (first + h) * seg->side_arena_bytes, seg->side_arena_bytes, node);
        }
    }
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
        size_t unit = side > SIDE_SMALL ? (size_t)HUGE_BYTES : 4096;
        seg.row_arena_bytes = round_up(rows, HUGE_BYTES);
        for (int i = 0; i < KV_AREAS; i++) {
            seg.area_at[i] = seg.side_arena_bytes;
            seg.side_arena_bytes += round_up((size_t)n_pages * st->area_bytes[i], unit);
        }
        fits = add_size(seg.row_arena_bytes, seg.side_arena_bytes, &per_arena) && mul_size(per_arena, kv_n_arenas(st), &seg.bytes) &&
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
    place_arenas(st, &seg);
    for (uint32_t i = 0; i < seg.n_pages; i++) pages[st->n_pages + i] = (kv_page){.segment = st->n_segments};
    segments[st->n_segments++] = seg;
    st->n_pages += seg.n_pages;
    return SPW_OK;
}

spw_status kv_promise(kv_store *st, uint64_t n_pages, spw_err *err)
{
    uint64_t want = st->promised + n_pages;
    return want > st->n_pages ? add_segment(st, want - st->n_pages, err) : SPW_OK;
}

/* Asks for huge pages for the first used bytes of all arenas, rounded up, once that is more than small.  The first chunk is collapsed then, because it was
 * filled with small pages.  Advice only: refusals are ignored. */
static void advise_arenas(const kv_store *st, uint8_t *base, size_t arena_bytes, size_t used, size_t small, uint32_t *n_huge)
{
    uint32_t chunks = (uint32_t)(round_up(used, HUGE_BYTES) / HUGE_BYTES);
    if (used <= small || chunks <= *n_huge) return;
    size_t from = (size_t)*n_huge * HUGE_BYTES;
    for (uint32_t a = 0; a < kv_n_arenas(st); a++, base += arena_bytes) {
        madvise(base + from, (size_t)chunks * HUGE_BYTES - from, MADV_HUGEPAGE);
        if (!from) madvise(base, HUGE_BYTES, MADV_COLLAPSE);
    }
    *n_huge = chunks;
}

/* When a page is taken into use.  The room for digests, which may never be used, stays with small pages. */
static void advise_huge(kv_store *st, uint32_t page)
{
    kv_segment *seg = &st->segments[st->pages[page].segment];
    size_t used = (size_t)(page - seg->first_page) + 1;
    advise_arenas(st, seg->base, seg->row_arena_bytes, used * st->page_bytes, HUGE_BYTES, &seg->n_huge);
    for (int i = 0; i < KV_ROOM; i++)
        advise_arenas(st, kv_side_arena(st, seg, 0) + seg->area_at[i], seg->side_arena_bytes, used * st->area_bytes[i], SIDE_SMALL, &seg->n_huge_area[i]);
}

/* Start of the best run of free pages for a sequence that begins: the longest one; its middle when it follows a page in use, which is probably the end of a
 * sequence that still grows. */
static uint32_t find_run(const kv_store *st)
{
    uint32_t best = KV_NO_PAGE, best_n = 0;
    for (uint32_t i = 0; i < st->n_segments; i++) {
        uint32_t end = st->segments[i].first_page + st->segments[i].n_pages, run = 0;
        for (uint32_t p = st->segments[i].first_page; p < end; p++) {
            run = st->pages[p].refs ? 0 : run + 1;
            if (run > best_n) best_n = run, best = p + 1 - run;
        }
    }
    if (best == KV_NO_PAGE || best == st->segments[st->pages[best].segment].first_page || best_n < 4) return best;
    return best + best_n / 2;
}

uint32_t kv_take_page(kv_store *st, uint32_t after)
{
    uint32_t page = KV_NO_PAGE;
    if (after != KV_NO_PAGE && after + 1 < st->n_pages && !st->pages[after + 1].refs) page = after + 1;
    if (page == KV_NO_PAGE) page = find_run(st);
    if (page == KV_NO_PAGE) return KV_NO_PAGE;
    st->pages[page].refs = 1;
    st->n_used++;
    advise_huge(st, page);
    return page;
}

void kv_drop_page(kv_store *st, uint32_t page)
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

/* Adjacent pages go back in one call. */
void kv_release_memory(kv_store *st, const uint32_t *ids, uint32_t n)
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
        for (uint32_t a = 0; a < kv_n_arenas(st); a++) {
            release_range(kv_page_rows(st, ids[i], a), run * st->page_bytes);
            for (int k = 0; k < KV_AREAS; k++) release_range(kv_page_area(st, ids[i], a, (kv_area)k), run * st->area_bytes[k]);
        }
        i += run;
    }
}

void kv_copy_page(kv_store *st, uint32_t to, uint32_t from, size_t n_rows)
{
    size_t bytes = st->type == KV_Q8 ? 0 : n_rows * st->row_bytes; /* what is not full has no rows in its page yet */
    for (uint32_t a = 0; a < kv_n_arenas(st); a++) {
        memcpy(kv_page_rows(st, to, a), kv_page_rows(st, from, a), bytes);
        for (int k = 0; k < KV_AREAS; k++)
            if (st->area_bytes[k]) memcpy(kv_page_area(st, to, a, (kv_area)k), kv_page_area(st, from, a, (kv_area)k), st->area_bytes[k]);
    }
}

/* ------------------------------------------------------------------------------------------------- check ---- */

static spw_status check_seq(const kv_store *st, const kv_seq *s, uint32_t *counted, uint32_t *seen, uint32_t mark, spw_err *err)
{
    if (s->len > s->opened || s->opened > s->reserved || s->reserved > s->n_ctx) {
        return spw_fail(err, SPW_E_FORMAT, "KV store: invariant 4: len %llu, opened %llu, reserved %llu, n_ctx %llu", (unsigned long long)s->len,
                        (unsigned long long)s->opened, (unsigned long long)s->reserved, (unsigned long long)s->n_ctx);
    }
    if (s->n_pages != kv_pages_for(s->reserved)) {
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
    return st->type == KV_Q8 ? kv_open_check(s, err) : SPW_OK;
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
        promised += kv_promise_of(s->n_ctx);
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
    if (!status && st->index_planes) status = kv_index_check(st, err);
    return status;
}
