/* kv_index.c - what is made of a page when it is full: its bytes (KV_Q8), its code and the mean of its V (kv.h, "Index"), and the check that they belong to their rows.
 *
 * The one thing to know: making these and checking them start from the same place, the K and V that the full page holds; what a sequence has done to get there
 * plays no part. */
#include "kern_index.h"

#include <string.h>

#include "kv_private.h"
#include "mem.h"
#include "pool.h"

/* A worker's scratch: a code as the kernel makes it, in one piece, then the K or V of one page when they are not read where they lie. */
static size_t part_floats(const kv_store *st)
{
    return st->type == KV_F32 ? 0 : (size_t)KV_PAGE_ROWS * st->dim;
}

/* The K (at 0) or V (at dim) of a full page: rows of dim floats, *stride apart, in scratch or in the page itself. */
static const float *page_part(const kv_store *st, uint32_t page, uint32_t arena, size_t at, float *scratch, size_t *stride)
{
    const uint8_t *rows = kv_page_rows(st, page, arena) + at * (st->row_bytes / (2 * (size_t)st->dim));
    *stride = 2 * (size_t)st->dim;
    if (st->type == KV_F32) return (const float *)(const void *)rows;
    *stride = st->dim;
    const float *scales = st->type == KV_Q8 ? kv_page_scales(st, page, arena) + at : NULL; /* of channels of K, of positions of V */
    for (size_t i = 0; i < KV_PAGE_ROWS; i++, rows += st->row_bytes) {
        float *out = scratch + i * st->dim;
        if (!scales) st->kern->dequant[QUANT_F16](rows, st->dim, out);
        for (uint32_t d = 0; d < st->dim && scales; d++) out[d] = (float)((const int8_t *)rows)[d] * scales[at ? i : d];
    }
    return scratch;
}

static void make_code(const kv_store *st, uint32_t page, uint32_t arena, float *scratch, void *code)
{
    size_t stride;
    const float *k = page_part(st, page, arena, 0, scratch, &stride);
    st->kern->index_code(k, stride, KV_PAGE_ROWS, st->dim, st->index_planes, code);
}

static void make_mean(const kv_store *st, uint32_t page, uint32_t arena, float *scratch, kern_f16 *mean)
{
    size_t stride;
    const float *v = page_part(st, page, arena, st->dim, scratch, &stride);
    st->kern->index_mean(v, stride, KV_PAGE_ROWS, st->dim, mean);
}

size_t kv_complete_scratch(const kv_store *st)
{
    return st->index_planes ? kv_code_bytes(st) / sizeof(float) + part_floats(st) : 0;
}

void kv_complete(const kv_seq *s, uint32_t layer, uint32_t head, float *scratch)
{
    const kv_store *st = s->store;
    uint32_t arena = st->first_arena[layer] + head;
    if (!kv_completes(st)) return;
    for (uint64_t pos = kv_page_start(s->last_opened); pos + KV_PAGE_ROWS <= s->opened; pos += KV_PAGE_ROWS) {
        uint32_t page = s->pages[pos / KV_PAGE_ROWS];
        if (st->type == KV_Q8) kv_open_seal(s, arena, pos);
        if (!st->index_planes) continue;
        make_code(st, page, arena, scratch + kv_code_bytes(st) / sizeof(float), scratch);
        memcpy(kv_page_area(st, page, arena, KV_CODES), scratch, st->area_bytes[KV_CODES]);
        memcpy(kv_page_area(st, page, arena, KV_OUTER), (const uint8_t *)(const void *)scratch + st->area_bytes[KV_CODES], st->area_bytes[KV_OUTER]);
        make_mean(st, page, arena, scratch + kv_code_bytes(st) / sizeof(float), (kern_f16 *)(void *)kv_page_area(st, page, arena, KV_MEANS));
    }
}

const void *kv_code(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t page)
{
    const kv_store *st = s->store;
    if (!st->index_planes) return NULL;
    SPW_ASSERT((page + 1) * KV_PAGE_ROWS <= s->opened);
    return kv_page_area(st, s->pages[page], st->first_arena[layer] + head, KV_CODES);
}

const void *kv_code_outer(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t page)
{
    const kv_store *st = s->store;
    if (st->index_planes < 2) return NULL;
    SPW_ASSERT((page + 1) * KV_PAGE_ROWS <= s->opened);
    return kv_page_area(st, s->pages[page], st->first_arena[layer] + head, KV_OUTER);
}

const kern_f16 *kv_value_mean(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t page)
{
    const kv_store *st = s->store;
    if (!st->index_planes) return NULL;
    SPW_ASSERT((page + 1) * KV_PAGE_ROWS <= s->opened);
    return (const kern_f16 *)(const void *)kv_page_area(st, s->pages[page], st->first_arena[layer] + head, KV_MEANS);
}

/* The areas of n pages. */
static void list_areas(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, size_t n, kv_area area, const void **out)
{
    const kv_store *st = s->store;
    const uint32_t arena = st->first_arena[layer] + head;
    SPW_ASSERT(st->index_planes && (first + n) * KV_PAGE_ROWS <= s->opened);
    for (size_t i = 0; i < n; i++) out[i] = kv_page_area(st, s->pages[first + i], arena, area);
}

void kv_codes(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, size_t n, const void **codes, const void **outer)
{
    list_areas(s, layer, head, first, n, KV_CODES, codes);
    if (s->store->index_planes > 1) list_areas(s, layer, head, first, n, KV_OUTER, outer);
    else memset(outer, 0, n * sizeof *outer);
}

void kv_value_means(const kv_seq *s, uint32_t layer, uint32_t head, uint64_t first, size_t n, const kern_f16 **means)
{
    const kv_store *st = s->store;
    const uint32_t arena = st->first_arena[layer] + head;
    SPW_ASSERT(st->index_planes && (first + n) * KV_PAGE_ROWS <= s->opened);
    for (size_t i = 0; i < n; i++) means[i] = (const kern_f16 *)(const void *)kv_page_area(st, s->pages[first + i], arena, KV_MEANS);
}

/* ------------------------------------------------------------------------------------------------- check ---- */

/* Page number at of a sequence, in all layers and heads.  again: room for a code. */
static spw_status check_page(const kv_seq *s, uint32_t at, float *scratch, uint8_t *again, spw_err *err)
{
    const kv_store *st = s->store;
    kern_f16 mean[KERN_INDEX_DIM];
    for (uint32_t l = 0; l < st->n_layer; l++) {
        for (uint32_t a = st->first_arena[l]; a < st->first_arena[l + 1]; a++) {
            const size_t front = st->area_bytes[KV_CODES];
            const uint8_t *code = kv_page_area(st, s->pages[at], a, KV_CODES), *outer = kv_page_area(st, s->pages[at], a, KV_OUTER) - front;
            size_t i = 0;
            make_code(st, s->pages[at], a, scratch, again);
            make_mean(st, s->pages[at], a, scratch, mean);
            if (memcmp(mean, kv_page_area(st, s->pages[at], a, KV_MEANS), st->dim * sizeof *mean))
                return spw_fail(err, SPW_E_FORMAT, "KV store: invariant 7: the mean of V of page %u (positions from %llu), layer %u, head %u is not that of its rows", s->pages[at],
                                (unsigned long long)at * KV_PAGE_ROWS, l, a - st->first_arena[l]);
            while (i < kv_code_bytes(st) && (i < front ? code : outer)[i] == again[i]) i++;
            if (i == kv_code_bytes(st)) continue;
            if (i >= front) code = outer;
            return spw_fail(err, SPW_E_FORMAT,
                            "KV store: invariant 7: the code of page %u (positions from %llu), layer %u, head %u is not that of its rows: byte %zu is 0x%02x, expected 0x%02x",
                            s->pages[at], (unsigned long long)at * KV_PAGE_ROWS, l, a - st->first_arena[l], i, code[i], again[i]);
        }
    }
    return SPW_OK;
}

/* A page that several sequences have full is coded again once. */
spw_status kv_index_check(const kv_store *st, spw_err *err)
{
    bool *done = mem_calloc(st->n_pages, sizeof *done);
    float *scratch = mem_alloc(part_floats(st) * sizeof *scratch);
    uint8_t *again = mem_zalloc(kv_code_bytes(st));
    spw_status status = SPW_OK;
    if (!done || (part_floats(st) && !scratch) || !again) status = spw_fail(err, SPW_E_NOMEM, "KV store: out of memory for checking codes");
    uint64_t mode = pool_float_mode_enter(); /* as on the workers that made them */
    for (const kv_seq *s = st->seqs; s && !status; s = s->next) {
        for (uint32_t i = 0; i < s->len / KV_PAGE_ROWS && !status; i++) {
            if (done[s->pages[i]]) continue;
            done[s->pages[i]] = true;
            status = check_page(s, i, scratch, again, err);
        }
    }
    pool_float_mode_leave(mode);
    mem_free(done);
    mem_free(scratch);
    mem_free(again);
    return status;
}
