/* exec.c - workers take the items of a plan (exec.h).
 *
 * A prompt item and the decode items of the same row compute the same partials over the same spans and merge them in the same order, so the bits agree; unless a prompt takes
 * the pages before its own by many_tile (kern.h), which is a function of the row's position alone. */
#include "exec.h"

#include <string.h>

#include "mem.h"

_Static_assert(KV_PAGE_ROWS <= KERN_MANY, "a page is one tile of many_tile");

enum {
    APPEND_ROWS = 16,         /* rows that one append item converts */
    MAX_SPANS = KERN_SPAN,    /* an item's positions at most, each a span of its own at worst */
};

/* What a worker needs for one prompt block or decode item. */
typedef struct exec_scratch {
    float *q, *part, *total; /* [queries][dim] */
    float *part_lse, *total_lse;
    uint32_t *n_valid;
    float *m, *l; /* of whole pages: kern_many */
    void *kern;
    kern_span *spans, *ahead; /* of one item, and of the next: MAX_SPANS */
    void *block; /* owns all of the above */
    size_t n_queries;
} exec_scratch;

struct exec {
    const kern_table *kern;
    spw_pool *pool;
    uint32_t dim;
    bool f32; /* rows are written as floats */
    bool many; /* prompts attend to whole pages of halves by many_tile */
    kern_tuning tuning;
    exec_scratch *scratch; /* one per worker */
    float *complete;       /* of kv_complete: complete_floats per worker */
    size_t complete_floats;
    float *partials;       /* [partial][dim], one for each query head of an item */
    float *lse;
    size_t cap_partials;
    size_t n_done; /* items and partials of the running layer that exec_base has made */
    uint32_t partials_done;
    /* the running job */
    const plan *plan;
    const plan_rows *rows;
    const exec_layer *layer;
    size_t n_rows, first_item;
};

spw_status exec_create(exec **out, const kern_table *kern, spw_pool *pool, const kv_store *store, spw_err *err)
{
    exec *x = mem_zalloc(sizeof *x);
    if (!x) return spw_fail(err, SPW_E_NOMEM, "attention: out of memory");
    size_t n_workers = (size_t)pool_n_threads(pool);
    x->kern = kern;
    x->pool = pool;
    x->complete_floats = kv_complete_scratch(store);
    x->scratch = mem_calloc(n_workers, sizeof *x->scratch);
    if (x->complete_floats) x->complete = mem_calloc(n_workers, x->complete_floats * sizeof *x->complete);
    if (!x->scratch || (x->complete_floats && !x->complete)) {
        exec_free(x);
        return spw_fail(err, SPW_E_NOMEM, "attention: out of memory for %zu workers", n_workers);
    }
    x->dim = kv_dim(store);
    x->f32 = kv_store_type(store) == KV_F32;
    x->many = kv_store_type(store) == KV_F16 && kern->many_tile && x->dim <= KERN_MANY_DIM;
    x->tuning = KERN_TUNING_DEFAULT;
    *out = x;
    return SPW_OK;
}

void exec_set_tuning(exec *x, kern_tuning tuning)
{
    x->tuning = tuning;
}

void exec_free(exec *x)
{
    if (!x) return;
    for (int i = 0; x->scratch && i < pool_n_threads(x->pool); i++) mem_free(x->scratch[i].block);
    mem_free(x->scratch);
    mem_free(x->complete);
    mem_free(x->partials);
    mem_free(x->lse);
    mem_free(x);
}

/* ------------------------------------------------------------------------------------------------ append ---- */

static void write_row(const exec *x, const exec_layer *l, void *to, size_t at, uint32_t head)
{
    const float *k = l->k + (at * l->n_head_kv + head) * x->dim, *v = l->v + (at * l->n_head_kv + head) * l->head_dim;
    size_t pad = x->dim - l->head_dim;
    if (x->f32) {
        float *row = to;
        memcpy(row, k, x->dim * sizeof *row);
        memcpy(row + x->dim, v, l->head_dim * sizeof *row);
        memset(row + x->dim + l->head_dim, 0, pad * sizeof *row);
    } else {
        kern_f16 *row = to;
        x->kern->to_f16(k, x->dim, row);
        x->kern->to_f16(v, l->head_dim, row + x->dim);
        memset(row + x->dim + l->head_dim, 0, pad * sizeof *row);
    }
}

static void append_block(void *ctx, size_t item, int worker)
{
    const exec *x = ctx;
    const exec_layer *l = x->layer;
    size_t from = item * APPEND_ROWS, to = from + APPEND_ROWS;
    for (size_t i = 0; i < x->n_rows; i++) {
        const plan_rows *r = &x->rows[i];
        size_t a = r->first_row < from ? from : r->first_row, end = r->first_row + (size_t)r->n_rows, b = end < to ? end : to;
        for (; a < b; a++) {
            for (uint32_t h = 0; h < l->n_head_kv; h++) write_row(x, l, kv_row(r->seq, l->layer, h, r->first_pos + a - r->first_row), a, h);
        }
    }
    (void)worker;
}

/* Item: one head of one session's rows. */
static void complete_head(void *ctx, size_t item, int worker)
{
    const exec *x = ctx;
    const exec_layer *l = x->layer;
    float *scratch = x->complete ? x->complete + (size_t)worker * x->complete_floats : NULL;
    kv_complete(x->rows[item / l->n_head_kv].seq, l->layer, (uint32_t)(item % l->n_head_kv), scratch);
}

static bool fills_page(const plan_rows *r)
{
    return (r->first_pos + r->n_rows) / KV_PAGE_ROWS > r->first_pos / KV_PAGE_ROWS;
}

void exec_expect(const exec *x, const plan_rows *rows, size_t n_rows, uint32_t layer, uint32_t n_head_kv)
{
    size_t bytes = 2 * (size_t)x->dim * (x->f32 ? sizeof(float) : sizeof(kern_f16));
    for (size_t i = 0; i < n_rows; i++) {
        for (uint32_t h = 0; h < n_head_kv && rows[i].decode; h++) {
            const char *row = kv_row(rows[i].seq, layer, h, rows[i].first_pos);
            for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 1);
        }
    }
}

void exec_append(exec *x, const plan_rows *rows, size_t n_rows, const exec_layer *l)
{
    size_t total = 0;
    for (size_t i = 0; i < n_rows; i++) {
        size_t end = rows[i].first_row + (size_t)rows[i].n_rows;
        if (end > total) total = end;
    }
    x->rows = rows;
    x->n_rows = n_rows;
    x->layer = l;
    pool_run(x->pool, (total + APPEND_ROWS - 1) / APPEND_ROWS, append_block, x);
    bool fills = false;
    for (size_t i = 0; i < n_rows; i++) fills |= fills_page(&rows[i]);
    if (fills) pool_run(x->pool, n_rows * l->n_head_kv, complete_head, x);
}

/* ------------------------------------------------------------------------------------------------ attend ---- */

/* Makes room for n queries in every worker's scratch. */
static spw_status size_scratch(exec *x, size_t n, spw_err *err)
{
    for (int w = 0; w < pool_n_threads(x->pool); w++) {
        exec_scratch *s = &x->scratch[w];
        if (s->n_queries >= n) continue;
        size_t rows = n * x->dim * sizeof(float), lse = (n * sizeof(float) + 63) & ~(size_t)63;
        size_t scratch = kern_attend_scratch(n, x->dim), many = kern_many_scratch(x->dim);
        size_t kern = ((scratch > many ? scratch : many) + 63) & ~(size_t)63;
        uint8_t *p = mem_alloc(3 * rows + 5 * lse + kern + 2 * MAX_SPANS * sizeof(kern_span));
        if (!p) return spw_fail(err, SPW_E_NOMEM, "attention: out of memory for the scratch of %zu queries", n);
        mem_free(s->block);
        s->block = p;
        s->q = (float *)(void *)p, p += rows;
        s->part = (float *)(void *)p, p += rows;
        s->total = (float *)(void *)p, p += rows;
        s->part_lse = (float *)(void *)p, p += lse;
        s->total_lse = (float *)(void *)p, p += lse;
        s->n_valid = (uint32_t *)(void *)p, p += lse;
        s->m = (float *)(void *)p, p += lse;
        s->l = (float *)(void *)p, p += lse;
        s->kern = p, p += kern;
        s->spans = (kern_span *)(void *)p;
        s->ahead = s->spans + MAX_SPANS;
        s->n_queries = n;
    }
    return SPW_OK;
}

/* Room for n partials; those that are there are kept. */
static spw_status size_partials(exec *x, size_t n, spw_err *err)
{
    if (n <= x->cap_partials) return SPW_OK;
    size_t want = n + n / 2, kept = x->partials_done;
    float *o = mem_alloc(want * x->dim * sizeof *o), *lse = mem_alloc(want * sizeof *lse);
    if (!o || !lse) {
        mem_free(o);
        mem_free(lse);
        return spw_fail(err, SPW_E_NOMEM, "attention: out of memory for %zu partials", want);
    }
    if (kept) {
        memcpy(o, x->partials, kept * x->dim * sizeof *o);
        memcpy(lse, x->lse, kept * sizeof *lse);
    }
    mem_free(x->partials);
    mem_free(x->lse);
    x->partials = o;
    x->lse = lse;
    x->cap_partials = want;
    return SPW_OK;
}

/* Where query row (row, KV head) starts in q. */
static const float *q_at(const exec *x, size_t row, uint32_t head)
{
    const exec_layer *l = x->layer;
    return l->q + (row * l->n_head_kv + head) * l->group * x->dim;
}

static float *o_at(const exec *x, size_t row, uint32_t head)
{
    const exec_layer *l = x->layer;
    return l->o + (row * l->n_head_kv + head) * l->group * l->head_dim;
}

static void store_out(const exec *x, float *out, const float *o)
{
    for (uint32_t g = 0; g < x->layer->group; g++) memcpy(out + g * x->layer->head_dim, o + g * x->dim, x->layer->head_dim * sizeof *out);
}

static void set_empty(float *o, float *lse, size_t n, size_t dim)
{
    memset(o, 0, n * dim * sizeof *o);
    for (size_t i = 0; i < n; i++) lse[i] = -__builtin_inff();
}

static kern_attend_fn *attend_of(const exec *x, bool sealed)
{
    return sealed ? x->kern->attend_q8 : x->kern->attend;
}

/* Partials of n queries over positions first .. first+n_pos-1, folded into the totals. */
static void fold_span(exec *x, exec_scratch *s, const plan_rows *r, uint32_t head, uint64_t first, uint32_t n_pos, bool sealed, size_t n, bool masked)
{
    kern_span spans[KV_MAX_SPANS];
    size_t n_spans = kv_spans(r->seq, x->layer->layer, head, first, n_pos, sealed, spans);
    kern_attend_args args = {.q = s->q, .q_stride = x->dim, .n_q = n, .dim = x->dim, .spans = spans, .n_spans = n_spans,
                             .n_valid = masked ? s->n_valid : NULL, .f32 = x->f32, .o = s->part, .o_stride = x->dim, .lse = s->part_lse,
                             .scratch = s->kern};
    attend_of(x, sealed)(&args);
    for (size_t i = 0; i < n; i++) x->kern->merge(s->total + i * x->dim, &s->total_lse[i], s->part + i * x->dim, s->part_lse[i], x->dim);
}

/* Partials of n queries over the pages before position end, which begins a page, into the totals. */
static void fold_pages(exec *x, exec_scratch *s, const plan_rows *r, uint32_t head, uint64_t end, size_t n)
{
    kern_many a = {.q = s->q, .n_q = n, .dim = x->dim, .o = s->total, .m = s->m, .l = s->l, .scratch = s->kern};
    for (size_t i = 0; i < n; i++) s->m[i] = -__builtin_inff(), s->l[i] = 0;
    for (uint64_t at = 0; at < end; at += KV_PAGE_ROWS) x->kern->many_tile(&a, kv_row(r->seq, x->layer->layer, head, at), KV_PAGE_ROWS);
    x->kern->many_end(&a, s->total_lse);
}

static void run_prompt(exec *x, const plan_item *it, exec_scratch *s)
{
    const plan_rows *r = &x->rows[it->rows];
    uint32_t group = x->layer->group;
    size_t n = (size_t)it->n * group, row0 = r->first_row + (size_t)it->first_row;
    uint64_t pos0 = r->first_pos + it->first_row, end = pos0 + it->n, border = kv_border(r->seq, pos0); /* the last row sees positions below end */
    for (uint32_t i = 0; i < it->n; i++) memcpy(s->q + (size_t)i * group * x->dim, q_at(x, row0 + i, it->head), group * x->dim * sizeof(float));
    set_empty(s->total, s->total_lse, n, x->dim);
    uint64_t done = x->many ? pos0 - pos0 % KV_PAGE_ROWS : 0; /* a block lies in one page */
    if (done) fold_pages(x, s, r, it->head, done, n);
    for (uint64_t first = done, stop; first < end; first = stop) {
        stop = plan_cut(first, end, border);
        uint32_t n_pos = (uint32_t)(stop - first);
        bool masked = first + n_pos > pos0 + 1;
        for (uint32_t i = 0; i < it->n && masked; i++) {
            uint64_t sees = pos0 + i + 1 > first ? pos0 + i + 1 - first : 0;
            for (uint32_t g = 0; g < group; g++) s->n_valid[i * group + g] = sees < n_pos ? (uint32_t)sees : n_pos;
        }
        fold_span(x, s, r, it->head, first, n_pos, first < border, n, masked);
    }
    for (uint32_t i = 0; i < it->n; i++) store_out(x, o_at(x, row0 + i, it->head), s->total + (size_t)i * group * x->dim);
}

static uint64_t first_position(const plan_item *it)
{
    return it->kind == PLAN_GATHER ? it->ranges[0].first : it->first_pos;
}

/* True when an item of a decode row is about positions that its row sees sealed. */
static bool is_sealed(const exec *x, const plan_item *it)
{
    const plan_rows *r = &x->rows[it->rows];
    return it->kind != PLAN_COPY && first_position(it) < kv_border(r->seq, r->first_pos);
}

/* Spans of the item's positions, about as many as limit says. */
static size_t item_spans(const exec *x, const plan_item *it, uint32_t limit, bool sealed, kern_span spans[MAX_SPANS])
{
    const kv_seq *seq = x->rows[it->rows].seq;
    uint32_t layer = x->layer->layer;
    if (it->kind == PLAN_COPY) {
        spans[0] = (kern_span){.rows = it->copy, .n = it->n};
        return 1;
    }
    if (it->kind == PLAN_SPAN) return kv_spans(seq, layer, it->head, it->first_pos, it->n < limit ? it->n : limit, sealed, spans);
    return kv_gather(seq, layer, it->head, it->ranges, it->n_ranges, limit, sealed, spans);
}

/* The next item of the same kind that this worker will most likely take, or NULL: its share is a run of items, and between the sealed rows of two
 * heads lies one item of rows that are not. */
static const plan_item *next_like(const exec *x, size_t item)
{
    bool sealed = is_sealed(x, &x->plan->items[item]);
    for (size_t i = item + 1; i < x->plan->n_items && i <= item + 2; i++) {
        const plan_item *it = &x->plan->items[i];
        if (it->kind != PLAN_PROMPT && is_sealed(x, it) == sealed) return it;
    }
    return NULL;
}

/* next: an item of the same kind whose first rows are to be asked for, or NULL. */
static void run_decode(exec *x, const plan_item *it, const plan_item *next, exec_scratch *s)
{
    const plan_rows *r = &x->rows[it->rows];
    size_t at = it->partial;
    bool sealed = is_sealed(x, it);
    const uint32_t ahead = sealed && it->kind == PLAN_SPAN ? KERN_SPAN : KERN_AHEAD; /* pages' scales are asked for a whole call ahead */
    size_t n_spans = item_spans(x, it, KERN_SPAN, sealed, s->spans), n_ahead = next ? item_spans(x, next, ahead, sealed, s->ahead) : 0;
    kern_attend_args args = {.q = q_at(x, r->first_row, it->head) + it->q_first * x->dim, .q_stride = x->dim, .n_q = it->n_q, .dim = x->dim, .spans = s->spans,
                             .n_spans = n_spans, .ahead = s->ahead, .n_ahead = n_ahead, .tuning = &x->tuning, .f32 = x->f32, .o = x->partials + at * x->dim,
                             .o_stride = x->dim, .lse = x->lse + at, .scratch = s->kern};
    attend_of(x, sealed)(&args);
}

static void run_item(void *ctx, size_t item, int worker)
{
    exec *x = ctx;
    item += x->first_item;
    const plan_item *it = &x->plan->items[item];
    if (it->kind == PLAN_PROMPT) run_prompt(x, it, &x->scratch[worker]);
    else run_decode(x, it, next_like(x, item), &x->scratch[worker]);
}

/* Folds the partials of a run of items, in their order, into o and lse. */
static void fold_items(const exec *x, size_t first, size_t n, float *o, float *lse)
{
    for (size_t i = first; i < first + n; i++) {
        const plan_item *it = &x->plan->items[i];
        for (size_t g = it->q_first, at = it->partial; g < (size_t)it->q_first + it->n_q; g++, at++)
            x->kern->merge(o + g * x->dim, &lse[g], x->partials + at * x->dim, x->lse[at], x->dim);
    }
}

/* Adds to the totals what stands for positions that were not chosen (policy_rest); s->part: of each head what those give that were. */
static void add_rest(const exec *x, const policy_rest *rest, exec_scratch *s)
{
    for (size_t g = 0; g < x->layer->group; g++) {
        float *value = s->part + g * x->dim;
        for (size_t d = 0; d < x->dim; d++) value[d] = rest->o[d] + rest->lean * value[d];
        x->kern->merge(s->total + g * x->dim, &s->total_lse[g], value, rest->lse[g], x->dim);
    }
}

/* Everything of one (row, head); part: its number in the plan. */
static void run_merge(exec *x, size_t part, exec_scratch *s)
{
    const plan_merge *m = &x->plan->merges[part];
    size_t group = x->layer->group;
    const policy_rest *rest = &x->plan->parts[part].choice.rest;
    set_empty(s->total, s->total_lse, group, x->dim);
    fold_items(x, m->first_base, m->n_base, s->total, s->total_lse);
    if (rest->o) {
        set_empty(s->part, s->part_lse, group, x->dim);
        fold_items(x, m->first_item, m->n_items, s->part, s->part_lse);
        for (size_t g = 0; g < group; g++) x->kern->merge(s->total + g * x->dim, &s->total_lse[g], s->part + g * x->dim, s->part_lse[g], x->dim);
    } else {
        fold_items(x, m->first_item, m->n_items, s->total, s->total_lse);
    }
    if (x->layer->lse) memcpy(x->layer->lse + part * group, s->total_lse, group * sizeof(float));
    if (rest->o) add_rest(x, rest, s);
    store_out(x, o_at(x, x->rows[m->rows].first_row, m->head), s->total);
}

/* Items from n_done on. */
static spw_status run_items(exec *x, const plan *p, const plan_rows *rows, const exec_layer *l, spw_err *err)
{
    spw_status s = size_scratch(x, (size_t)plan_block_rows(l->group, pool_n_threads(x->pool)) * l->group, err);
    if (!s) s = size_partials(x, p->n_partials, err);
    if (s) return s;
    x->plan = p;
    x->rows = rows;
    x->layer = l;
    x->first_item = x->n_done;
    pool_run(x->pool, p->n_items - x->first_item, run_item, x);
    x->n_done = p->n_items;
    x->partials_done = p->n_partials;
    return SPW_OK;
}

spw_status exec_base(exec *x, plan *p, const plan_rows *rows, const exec_layer *l, spw_err *err)
{
    x->n_done = x->partials_done = 0;
    spw_status s = run_items(x, p, rows, l, err);
    for (size_t i = 0; i < p->n_parts && !s; i++) {
        exec_scratch *w = &x->scratch[0];
        set_empty(w->total, w->total_lse, l->group, x->dim);
        fold_items(x, p->merges[i].first_base, p->merges[i].n_base, w->total, w->total_lse);
        memcpy(p->parts[i].choice.base_lse, w->total_lse, l->group * sizeof(float));
    }
    return s;
}

spw_status exec_attend(exec *x, const plan *p, const plan_rows *rows, const exec_layer *l, bool fresh, spw_err *err)
{
    if (fresh) x->n_done = x->partials_done = 0;
    spw_status s = run_items(x, p, rows, l, err);
    for (size_t i = 0; i < p->n_parts && !s; i++) run_merge(x, i, &x->scratch[0]);
    x->n_done = x->partials_done = 0;
    return s;
}
