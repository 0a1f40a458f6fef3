/* plan.c - builds the items of one layer (plan.h). */
#include "plan.h"

#include "mem.h"

enum { BLOCK_QUERIES = 256 }; /* query rows of a prompt block at most: many make a tile of keys worth converting, few spread over workers */

uint32_t plan_block_rows(uint32_t group)
{
    return group >= BLOCK_QUERIES / 4 ? 4 : BLOCK_QUERIES / group;
}

bool plan_is_static(const plan_rows *rows, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++) {
        if (rows[i].decode && rows[i].policy->ops->needs_q) return false;
    }
    return true;
}

/* Room for one more element of a growing array. */
static void *grow(void *array, size_t n, size_t *cap, size_t elem, spw_status *status, spw_err *err)
{
    if (n < *cap) return array;
    size_t want = *cap ? 2 * *cap : 64;
    void *p = mem_realloc(array, n * elem, want * elem);
    if (!p) {
        *status = spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu items", want);
        return array;
    }
    *cap = want;
    return p;
}

static spw_status add_item(plan *p, plan_item item, spw_err *err)
{
    spw_status status = SPW_OK;
    p->items = grow(p->items, p->n_items, &p->cap_items, sizeof *p->items, &status, err);
    if (!status) p->items[p->n_items++] = item;
    return status;
}

/* Rows from row first on that lie in its page. */
static uint32_t rows_of_page(const plan_rows *r, uint32_t first)
{
    uint32_t left = r->n_rows - first, room = KV_PAGE_ROWS - (uint32_t)((r->first_pos + first) % KV_PAGE_ROWS);
    return left < room ? left : room;
}

static spw_status add_prompt(plan *p, const plan_rows *r, uint32_t index, const plan_shape *shape, spw_err *err)
{
    uint32_t block = plan_block_rows(shape->group);
    for (uint32_t first = 0, n; first < r->n_rows; first += n) {
        uint32_t left = rows_of_page(r, first), n_blocks = (left + block - 1) / block;
        n = (left + n_blocks - 1) / n_blocks; /* about alike: a block of two rows reads as much as a full one */
        for (uint32_t h = 0; h < shape->n_head_kv; h++) {
            spw_status s = add_item(p, (plan_item){.kind = PLAN_PROMPT, .rows = index, .head = h, .first_row = first, .n = n}, err);
            if (s) return s;
        }
    }
    return SPW_OK;
}

/* Positions of a choice that lie between sink and window. */
static uint64_t middle_chosen(const policy_params *pp, const policy_choice *c, uint64_t n_pos)
{
    uint64_t middle = policy_middle(pp, n_pos), from = pp->sink, to = from + middle, sum = 0;
    for (size_t i = 0; middle && i < c->n; i++) {
        uint64_t a = c->ranges[i].first, b = a + c->ranges[i].n;
        if (a < from) a = from;
        if (b > to) b = to;
        if (b > a) sum += b - a;
    }
    return sum;
}

uint64_t plan_cut(uint64_t at, uint64_t end, uint64_t border)
{
    uint64_t stop = (at / KERN_SPAN + 1) * KERN_SPAN;
    if (at < border && border < stop) stop = border;
    return stop < end ? stop : end;
}

static spw_status add_range(plan *p, policy_range range, uint64_t border, plan_item item, spw_err *err)
{
    uint64_t at = range.first, end = range.first + range.n;
    while (at < end) {
        uint64_t stop = plan_cut(at, end, border);
        item.first_pos = at;
        item.n = (uint32_t)(stop - at);
        item.partial = p->n_partials++;
        spw_status s = add_item(p, item, err);
        if (s) return s;
        at = stop;
    }
    return SPW_OK;
}

static spw_status add_decode(plan *p, const plan_rows *r, uint32_t index, const plan_shape *shape, spw_err *err)
{
    uint64_t row_bytes = kv_seq_row_bytes(r->seq), border = kv_border(r->seq, r->first_pos);
    for (uint32_t h = 0; h < shape->n_head_kv; h++) {
        policy_query q = {.seq = r->seq, .n_pos = r->first_pos + 1, .layer = shape->layer, .head = h, .n_q = shape->group};
        if (shape->q) {
            q.q_stride = shape->dim;
            q.q = shape->q + r->first_row * shape->q_row_stride + (size_t)h * shape->group * q.q_stride;
        }
        p->choice.n = 0;
        p->choice.side_bytes = 0;
        spw_status s = r->policy->ops->select(r->policy->state, &r->policy->params, &q, &p->choice, err);
        plan_merge m = {.rows = index, .head = h, .first_partial = p->n_partials};
        for (size_t i = 0; i < p->choice.n && !s; i++) {
            s = add_range(p, p->choice.ranges[i], border, (plan_item){.kind = PLAN_DECODE, .rows = index, .head = h}, err);
        }
        if (s) return s;
        m.n_partials = p->n_partials - m.first_partial;
        p->merges = grow(p->merges, p->n_merges, &p->cap_merges, sizeof *p->merges, &s, err);
        if (s) return s;
        p->merges[p->n_merges++] = m;
        plan_reads *reads = &p->reads[index];
        reads->middle_bytes += policy_middle(&r->policy->params, q.n_pos) * row_bytes;
        reads->row_bytes += middle_chosen(&r->policy->params, &p->choice, q.n_pos) * row_bytes;
        reads->side_bytes += p->choice.side_bytes;
    }
    return SPW_OK;
}

/* Largest first, so that no long item starts last: prompt items of a session are built in ascending cost and decode items are short, so putting
 * the prompt items first, in reverse, is enough. */
static void order_items(plan *p)
{
    size_t n_prompt = 0;
    for (size_t i = 0; i < p->n_items; i++) {
        if (p->items[i].kind != PLAN_PROMPT) continue;
        plan_item it = p->items[i];
        p->items[i] = p->items[n_prompt];
        p->items[n_prompt++] = it;
    }
    for (size_t a = 0, b = n_prompt; a + 1 < b; a++, b--) {
        plan_item it = p->items[a];
        p->items[a] = p->items[b - 1];
        p->items[b - 1] = it;
    }
}

spw_status plan_build(plan *p, const plan_rows *rows, size_t n_rows, const plan_shape *shape, spw_err *err)
{
    p->n_items = p->n_merges = 0;
    p->n_partials = 0;
    if (n_rows > p->cap_reads) {
        plan_reads *reads = mem_realloc(p->reads, 0, n_rows * sizeof *reads);
        if (!reads) return spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu sessions", n_rows);
        p->reads = reads;
        p->cap_reads = n_rows;
    }
    for (size_t i = 0; i < n_rows; i++) {
        p->reads[i] = (plan_reads){0};
        spw_status s = rows[i].decode ? add_decode(p, &rows[i], (uint32_t)i, shape, err) : add_prompt(p, &rows[i], (uint32_t)i, shape, err);
        if (s) return s;
    }
    order_items(p);
    return SPW_OK;
}

void plan_free(plan *p)
{
    mem_free(p->items);
    mem_free(p->merges);
    mem_free(p->reads);
    policy_choice_free(&p->choice);
    *p = (plan){0};
}
