/* kv_seq.c - sequences of the host KV store: their pages, what is reserved and committed, and where rows are (kv.h). */
#include <string.h>

#include "kv_private.h"
#include "mem.h"

static spw_status seq_alloc(kv_seq **out, kv_store *st, uint64_t n_ctx, spw_err *err)
{
    uint64_t pages = kv_pages_for(n_ctx);
    if (pages >= UINT32_MAX / 2) return spw_fail(err, SPW_E_ARG, "context of %llu positions: too many", (unsigned long long)n_ctx);
    spw_status status = kv_promise(st, kv_promise_of(n_ctx), err);
    if (status) return status;
    kv_seq *q = mem_zalloc(sizeof *q + (size_t)pages * sizeof q->pages[0]);
    if (!q) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for a page list of %llu positions", (unsigned long long)n_ctx);
    q->store = st;
    q->n_ctx = n_ctx;
    q->max_pages = (uint32_t)pages;
    if (st->type == KV_Q8) status = kv_open_create(q, err);
    if (status) {
        mem_free(q);
        return status;
    }
    q->next = st->seqs;
    if (st->seqs) st->seqs->prev = q;
    st->seqs = q;
    st->promised += kv_promise_of(n_ctx);
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
    q->len = q->opened = q->last_opened = q->reserved = from->len;
    q->n_pages = (uint32_t)kv_pages_for(from->len);
    memcpy(q->pages, from->pages, q->n_pages * sizeof q->pages[0]);
    for (uint32_t i = 0; i < q->n_pages; i++) st->pages[q->pages[i]].refs++;
    if (st->type == KV_Q8) kv_open_fork(q, from);
    return SPW_OK;
}

void kv_seq_free(kv_seq *s)
{
    if (!s) return;
    kv_store *st = s->store;
    for (uint32_t i = 0; i < s->n_pages; i++) kv_drop_page(st, s->pages[i]);
    kv_release_memory(st, s->pages, s->n_pages);
    st->promised -= kv_promise_of(s->n_ctx);
    if (s->prev) s->prev->next = s->next;
    else st->seqs = s->next;
    if (s->next) s->next->prev = s->prev;
    kv_open_free(s);
    mem_free(s);
}

const kv_store *kv_seq_store(const kv_seq *s)
{
    return s->store;
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

size_t kv_seq_open_row_bytes(const kv_seq *s)
{
    return 2 * (size_t)s->store->dim * (s->store->type == KV_F32 ? sizeof(float) : sizeof(kern_f16));
}

uint64_t kv_seq_bytes(const kv_seq *s)
{
    if (s->store->type == KV_Q8) return s->reserved / KV_PAGE_ROWS * kv_bytes_per_page(s->store) + kv_open_bytes(s);
    return s->n_pages * kv_bytes_per_page(s->store);
}

spw_status kv_seq_reserve(kv_seq *s, uint64_t n, spw_err *err)
{
    kv_store *st = s->store;
    if (n > s->n_ctx - s->len) {
        return spw_fail(err, SPW_E_FULL, "%llu positions are held and %llu more asked for, the context holds %llu", (unsigned long long)s->len,
                        (unsigned long long)n, (unsigned long long)s->n_ctx);
    }
    kv_seq_truncate(s, s->len);
    uint32_t old_pages = s->n_pages, want = (uint32_t)kv_pages_for(s->len + n);
    while (s->n_pages < want) {
        uint32_t page = kv_take_page(st, s->n_pages ? s->pages[s->n_pages - 1] : KV_NO_PAGE);
        if (page == KV_NO_PAGE) goto full;
        s->pages[s->n_pages++] = page;
    }
    size_t tail = s->len % KV_PAGE_ROWS; /* rows of the last page that are in use */
    if (n && tail) {
        uint32_t *last = &s->pages[s->len / KV_PAGE_ROWS];
        if (st->pages[*last].refs > 1) {
            uint32_t page = kv_take_page(st, last > s->pages ? last[-1] : KV_NO_PAGE);
            if (page == KV_NO_PAGE) goto full;
            kv_copy_page(st, page, *last, tail);
            kv_drop_page(st, *last);
            *last = page;
        }
    }
    s->reserved = s->len + n;
    return SPW_OK;

full:
    while (s->n_pages > old_pages) kv_drop_page(st, s->pages[--s->n_pages]);
    return spw_fail(err, SPW_E_NOMEM, "KV store: no page is free for %llu more positions", (unsigned long long)n);
}

spw_status kv_seq_open(kv_seq *s, uint64_t n, spw_err *err)
{
    SPW_CHECK(n <= s->reserved - s->opened);
    spw_status status = s->store->type == KV_Q8 ? kv_open_grow(s, n, err) : SPW_OK;
    if (status) return status;
    s->last_opened = s->opened;
    s->opened += n;
    return SPW_OK;
}

/* Both changes of the length. */
static void set_len(kv_seq *s, uint64_t len)
{
    if (s->store->type == KV_Q8) kv_open_set_len(s, len);
    s->len = s->opened = s->last_opened = len;
}

void kv_seq_commit(kv_seq *s, uint64_t n)
{
    SPW_CHECK(n <= s->reserved - s->len && (!kv_completes(s->store) || n <= s->opened - s->len));
    set_len(s, s->len + n);
}

void kv_seq_truncate(kv_seq *s, uint64_t len)
{
    SPW_CHECK(len <= s->len);
    set_len(s, len);
    uint32_t keep = (uint32_t)kv_pages_for(len), n = s->n_pages;
    for (uint32_t i = keep; i < n; i++) kv_drop_page(s->store, s->pages[i]);
    kv_release_memory(s->store, s->pages + keep, n - keep);
    s->n_pages = keep;
    s->reserved = len;
}

/* -------------------------------------------------------------------------------------------------- rows ---- */

uint64_t kv_border(const kv_seq *s, uint64_t pos)
{
    return s->store->type == KV_Q8 ? kv_page_start(pos) : 0;
}

/* Where a page keeps the row of a position. */
static inline void *page_row(const kv_seq *s, uint32_t arena, uint64_t pos)
{
    const kv_store *st = s->store;
    return kv_page_rows(st, s->pages[pos / KV_PAGE_ROWS], arena) + pos % KV_PAGE_ROWS * st->row_bytes;
}

void *kv_row(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos)
{
    SPW_ASSERT(pos < s->reserved);
    uint32_t arena = s->store->first_arena[layer] + head;
    return s->store->type == KV_Q8 ? kv_open_row(s, arena, pos) : page_row(s, arena, pos);
}

void kv_read_row(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos, float *out)
{
    const kv_store *st = s->store;
    uint32_t arena = st->first_arena[layer] + head;
    const void *row = kv_row(s, layer, head, pos);
    if (st->type == KV_F32) {
        memcpy(out, row, st->row_bytes);
    } else if (row) {
        for (uint32_t d = 0; d < 2 * st->dim; d++) out[d] = kern_f16_to_f32(((const kern_f16 *)row)[d]);
    } else {
        kv_open_read_sealed(s, arena, pos, out);
    }
}

void *kv_side(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t pos)
{
    SPW_ASSERT(pos < s->reserved);
    const kv_store *st = s->store;
    if (!st->area_bytes[KV_ROOM]) return NULL;
    return kv_page_area(st, s->pages[pos / KV_PAGE_ROWS], st->first_arena[layer] + head, KV_ROOM);
}

/* Spans of sealed rows: pages have scales of their own, so none goes on into the next. */
static size_t sealed_spans(const kv_seq *s, uint32_t arena, uint64_t first, uint32_t n, kern_span spans[KV_MAX_SPANS])
{
    const kv_store *st = s->store;
    size_t count = 0;
    for (uint32_t here; n; first += here, n -= here) {
        uint32_t at = (uint32_t)(first % KV_PAGE_ROWS);
        const float *scales = kv_page_scales(st, s->pages[first / KV_PAGE_ROWS], arena);
        here = KV_PAGE_ROWS - at < n ? KV_PAGE_ROWS - at : n;
        spans[count++] = (kern_span){.rows = page_row(s, arena, first), .n = here, .k_scale = scales, .v_scale = scales + st->dim + at};
    }
    return count;
}

size_t kv_spans(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, uint32_t n, bool sealed, kern_span spans[KV_MAX_SPANS])
{
    SPW_ASSERT(n <= KERN_SPAN && first + n <= s->reserved);
    size_t count = 0, row_bytes = s->store->row_bytes;
    if (!n) return 0;
    if (sealed) return sealed_spans(s, s->store->first_arena[layer] + head, first, n, spans);
    if (s->store->type == KV_Q8) {
        SPW_ASSERT(first % KV_PAGE_ROWS + n <= KV_PAGE_ROWS);
        spans[0] = (kern_span){.rows = kv_row(s, layer, head, first), .n = n};
        SPW_ASSERT(spans[0].rows);
        return 1;
    }
    while (n) {
        uint32_t here = KV_PAGE_ROWS - (uint32_t)(first % KV_PAGE_ROWS);
        if (here > n) here = n;
        const uint8_t *rows = kv_row(s, layer, head, first);
        if (count && (const uint8_t *)spans[count - 1].rows + spans[count - 1].n * row_bytes == rows) spans[count - 1].n += here;
        else spans[count++] = (kern_span){.rows = rows, .n = here};
        first += here;
        n -= here;
    }
    return count;
}

size_t kv_gather(const kv_seq *s, uint32_t layer, uint32_t head, const spw_range *ranges, size_t n_ranges, uint32_t limit, bool sealed, kern_span *spans)
{
    const uint32_t arena = s->store->first_arena[layer] + head;
    const bool pages = s->store->type != KV_Q8;
    size_t n = 0;
    for (uint32_t i = 0, n_pos = 0; i < n_ranges && n_pos < limit; i++) {
        uint64_t first = ranges[i].first;
        uint32_t here = (uint32_t)ranges[i].n;
        n_pos += here;
        SPW_ASSERT(here && first + here <= s->reserved);
        if (pages && first % KV_PAGE_ROWS + here <= KV_PAGE_ROWS) spans[n++] = (kern_span){.rows = page_row(s, arena, first), .n = here}; /* most by far are a single position */
        else n += kv_spans(s, layer, head, first, here, sealed, spans + n);
    }
    return n;
}
