/* kv_open.c - the rows of a KV_Q8 sequence that are still halves, and sealing (kv.h draws where they lie).
 *
 * The one thing to know: rows below len in the tail are never written or moved before a commit or a truncation, so a step that fails needs nothing
 * undone. */
#include <string.h>

#include "kv_private.h"
#include "mem.h"

static size_t row_halves(const kv_store *st)
{
    return 2 * (size_t)st->dim;
}

static bool halves_hold(const kv_halves *h, uint64_t pos)
{
    return h->rows && pos >= h->first && pos - h->first < h->n_rows;
}

static kern_f16 *halves_row(const kv_seq *s, const kv_halves *h, uint32_t arena, uint64_t pos)
{
    return h->rows + (arena * h->n_rows + (size_t)(pos - h->first)) * row_halves(s->store);
}

static spw_status halves_alloc(const kv_seq *s, kv_halves *h, size_t n_rows, spw_err *err)
{
    size_t bytes;
    bool fits = mul_size(n_rows, row_halves(s->store) * sizeof(kern_f16), &bytes) && mul_size(bytes, kv_n_arenas(s->store), &bytes);
    kern_f16 *rows = fits ? mem_alloc(bytes) : NULL;
    if (!rows) return spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for the halves of %zu positions", n_rows);
    *h = (kv_halves){.rows = rows, .n_rows = n_rows};
    return SPW_OK;
}

spw_status kv_open_create(kv_seq *s, spw_err *err)
{
    return halves_alloc(s, &s->tail, KV_PAGE_ROWS, err);
}

static void drop_spill(kv_seq *s)
{
    mem_free(s->spill.rows);
    s->spill = (kv_halves){0};
}

void kv_open_free(kv_seq *s)
{
    mem_free(s->tail.rows);
    mem_free(s->spill.rows);
}

kern_f16 *kv_open_row(const kv_seq *s, uint32_t arena, uint64_t pos)
{
    if (halves_hold(&s->tail, pos)) return halves_row(s, &s->tail, arena, pos);
    return halves_hold(&s->spill, pos) ? halves_row(s, &s->spill, arena, pos) : NULL;
}

void kv_open_fork(kv_seq *s, const kv_seq *from)
{
    size_t bytes = (size_t)(from->len - from->tail.first) * row_halves(s->store) * sizeof(kern_f16);
    s->tail.first = from->tail.first;
    for (uint32_t a = 0; a < kv_n_arenas(s->store); a++)
        memcpy(halves_row(s, &s->tail, a, s->tail.first), halves_row(s, &from->tail, a, s->tail.first), bytes);
}

/* Rows of positions first .. end - 1 from where they are now to h. */
static void move_rows(const kv_seq *s, const kv_halves *h, uint64_t first, uint64_t end)
{
    size_t bytes = (size_t)(end - first) * row_halves(s->store) * sizeof(kern_f16);
    for (uint32_t a = 0; a < kv_n_arenas(s->store) && bytes; a++) memmove(halves_row(s, h, a, first), kv_open_row(s, a, first), bytes);
}

spw_status kv_open_grow(kv_seq *s, uint64_t n, spw_err *err)
{
    uint64_t tail_end = s->tail.first + KV_PAGE_ROWS, first = kv_page_start(s->opened);
    if (s->opened + n <= tail_end) return SPW_OK;
    if (first < tail_end) first = tail_end;
    /* One page more than n fills: the first may begin before them.  So passes of one size keep their spill. */
    size_t n_rows = (size_t)kv_pages_for(n) * KV_PAGE_ROWS + KV_PAGE_ROWS;
    kv_halves grown = s->spill;
    if (grown.n_rows < n_rows) {
        spw_status status = halves_alloc(s, &grown, n_rows, err);
        if (status) return status;
    }
    grown.first = first;
    if (first < s->opened) move_rows(s, &grown, first, s->opened);
    if (grown.rows != s->spill.rows) drop_spill(s);
    s->spill = grown;
    return SPW_OK;
}

void kv_open_read_sealed(const kv_seq *s, uint32_t arena, uint64_t pos, float *out)
{
    const kv_store *st = s->store;
    uint32_t page = s->pages[pos / KV_PAGE_ROWS];
    size_t at = (size_t)(pos % KV_PAGE_ROWS);
    const int8_t *row = (const int8_t *)kv_page_rows(st, page, arena) + at * st->row_bytes;
    const float *k_scale = kv_page_scales(st, page, arena), v_scale = k_scale[st->dim + at];
    for (uint32_t d = 0; d < st->dim; d++) out[d] = (float)row[d] * k_scale[d];
    for (uint32_t d = st->dim; d < 2 * st->dim; d++) out[d] = (float)row[d] * v_scale;
}

/* Halves of sealed rows: what their bytes stand for, rounded. */
static void restore_rows(const kv_seq *s, const kv_halves *h, uint64_t first, uint64_t end)
{
    float values[2 * KERN_Q8_DIM];
    for (uint32_t a = 0; a < kv_n_arenas(s->store); a++) {
        for (uint64_t pos = first; pos < end; pos++) {
            kern_f16 *row = halves_row(s, h, a, pos);
            kv_open_read_sealed(s, a, pos, values);
            for (size_t d = 0; d < row_halves(s->store); d++) row[d] = kern_f32_to_f16(values[d]);
        }
    }
}

void kv_open_set_len(kv_seq *s, uint64_t len)
{
    kv_halves to = s->tail;
    to.first = kv_page_start(len);
    if (to.first != s->tail.first && len > to.first) {
        if (halves_hold(&s->spill, to.first)) move_rows(s, &to, to.first, len);
        else restore_rows(s, &to, to.first, len);
    }
    s->tail = to;
    drop_spill(s);
}

void kv_open_seal(const kv_seq *s, uint32_t arena, uint64_t pos)
{
    const kv_store *st = s->store;
    uint32_t page = s->pages[pos / KV_PAGE_ROWS];
    float *scales = kv_page_scales(st, page, arena);
    st->kern->quantise_q8(kv_open_row(s, arena, pos), KV_PAGE_ROWS, st->dim, (int8_t *)kv_page_rows(st, page, arena), scales, scales + st->dim);
}

size_t kv_open_bytes(const kv_seq *s)
{
    return (s->tail.n_rows + s->spill.n_rows) * row_halves(s->store) * sizeof(kern_f16) * kv_n_arenas(s->store);
}

spw_status kv_open_check(const kv_seq *s, spw_err *err)
{
    const kv_halves *t = &s->tail, *p = &s->spill;
    bool needs_spill = s->opened > t->first + KV_PAGE_ROWS;
    bool ok = t->rows && t->n_rows == KV_PAGE_ROWS && t->first == kv_page_start(s->len) && s->last_opened <= s->opened && (p->rows != NULL) == needs_spill;
    if (ok && needs_spill) {
        ok = p->first % KV_PAGE_ROWS == 0 && p->n_rows % KV_PAGE_ROWS == 0 && p->first >= t->first + KV_PAGE_ROWS && s->opened <= p->first + p->n_rows &&
             (p->first <= s->last_opened || p->first == t->first + KV_PAGE_ROWS);
    }
    if (ok) return SPW_OK;
    return spw_fail(err, SPW_E_FORMAT, "KV store: invariant 6: tail from %llu, spill from %llu of %zu rows, opened %llu to %llu, len %llu",
                    (unsigned long long)t->first, (unsigned long long)p->first, p->n_rows, (unsigned long long)s->last_opened,
                    (unsigned long long)s->opened, (unsigned long long)s->len);
}
