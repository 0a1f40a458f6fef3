/* plan.c - builds the items of one layer (plan.h): prompt rows are cut into blocks; for generated rows the policies choose, one part for each row and KV head, and a part makes its
 * items where it made its choice, so that a step of many heads is not planned by one thread. */
#include "plan.h"

#include <string.h>

#include "mem.h"

enum {
    BLOCK_QUERIES = 1024, BLOCK_FEWEST = 256, /* query rows of a prompt block at most: many make a tile of keys worth converting (256: prompts of 16K up to 6 % slower), */
    BLOCK_SHARED = 2048, /* and few spread over workers: so many over all of them */
    SHORT_RANGE = 129,   /* ranges below, blocks of all sizes among them, are gathered: an item for each would cost more than it reads */
};

uint32_t plan_block_rows(uint32_t group, int n_threads)
{
    uint32_t n = BLOCK_SHARED / (uint32_t)(n_threads > 0 ? n_threads : 1);
    n = n < BLOCK_FEWEST ? BLOCK_FEWEST : n > BLOCK_QUERIES ? BLOCK_QUERIES : n;
    uint32_t rows = group >= n / 4 ? 4 : n / group;
    return rows < KV_PAGE_ROWS ? rows : KV_PAGE_ROWS;
}

bool plan_is_static(const plan_rows *rows, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++) {
        if (rows[i].decode && (rows[i].policies->n > 1 || rows[i].policies->v[0].ops->needs_q)) return false;
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

static spw_status add_prompt(plan *p, const plan_rows *r, uint32_t index, const plan_shape *shape, int n_threads, spw_err *err)
{
    uint32_t block = plan_block_rows(shape->group, n_threads);
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

uint64_t plan_cut(uint64_t at, uint64_t end, uint64_t border)
{
    uint64_t stop = (at / KERN_SPAN + 1) * KERN_SPAN;
    if (at < border && border < stop) stop = border;
    return stop < end ? stop : end;
}

/* ------------------------------------------------------------------------------------------------- parts ---- */

static spw_status add_part_item(plan_part *part, plan_item item, spw_err *err)
{
    spw_status status = SPW_OK;
    part->items = grow(part->items, part->n_items, &part->cap_items, sizeof *part->items, &status, err);
    if (status) return status;
    item.rows = part->rows;
    item.head = part->head;
    item.partial = part->n_partials;
    part->n_partials += item.n_q;
    part->items[part->n_items++] = item;
    return SPW_OK;
}

static spw_status add_spans(plan_part *part, const policy_set *set, policy_range range, uint64_t border, spw_err *err)
{
    spw_status s = SPW_OK;
    for (uint64_t at = range.first, end = range.first + range.n, stop; at < end && !s; at = stop) {
        stop = plan_cut(at, end, border);
        s = add_part_item(part, (plan_item){.kind = PLAN_SPAN, .q_first = set->q_first, .n_q = set->n_q, .first_pos = at, .n = (uint32_t)(stop - at)}, err);
    }
    return s;
}

static bool is_short(policy_range r, uint64_t border)
{
    return r.n < SHORT_RANGE && (r.first >= border || r.first + r.n <= border);
}

/* As many short ranges from i on as one item takes; returns the first that it does not. */
static size_t gather_end(const policy_range *r, size_t i, size_t n, uint64_t border, uint32_t *n_pos)
{
    bool sealed = r[i].first < border;
    *n_pos = 0;
    for (; i < n && is_short(r[i], border) && (r[i].first < border) == sealed && *n_pos + r[i].n <= KERN_SPAN; i++) *n_pos += (uint32_t)r[i].n;
    return i;
}

static spw_status add_set(plan_part *part, const policy_set *set, uint64_t border, spw_err *err)
{
    const policy_range *r = part->choice.ranges + set->first_range;
    spw_status s = SPW_OK;
    for (size_t i = 0, end; i < set->n_ranges && !s; i = end) {
        uint32_t n_pos = 0;
        end = gather_end(r, i, set->n_ranges, border, &n_pos);
        if (end > i) {
            s = add_part_item(part, (plan_item){.kind = PLAN_GATHER, .q_first = set->q_first, .n_q = set->n_q, .ranges = r + i, .n_ranges = end - i, .n = n_pos}, err);
        } else {
            s = add_spans(part, set, r[i], border, err);
            end = i + 1;
        }
    }
    for (size_t at = 0, n; at < set->n_rows && !s; at += n) {
        n = set->n_rows - at < KERN_SPAN ? set->n_rows - at : (size_t)KERN_SPAN;
        const uint8_t *rows = (const uint8_t *)set->rows + at * kv_seq_open_row_bytes(part->query.seq);
        s = add_part_item(part, (plan_item){.kind = PLAN_COPY, .q_first = set->q_first, .n_q = set->n_q, .copy = rows, .n = (uint32_t)n}, err);
    }
    return s;
}

static spw_status count_reads(plan_part *part, spw_err *err)
{
    const policy_params *pp = &part->policy->params;
    uint64_t row_bytes = kv_seq_row_bytes(part->query.seq), middle = policy_middle(pp, part->query.n_pos), chosen = part->choice.middle_rows;
    if (chosen == POLICY_COUNT && middle) {
        spw_status s = policy_choice_rows(&part->choice, pp->sink, pp->sink + middle, &chosen, err);
        if (s) return s;
    }
    part->reads = (plan_reads){.middle_bytes = middle * row_bytes, .row_bytes = middle ? chosen * row_bytes : 0, .side_bytes = part->choice.side_bytes};
    return SPW_OK;
}

/* Items of the sets that have none yet. */
static spw_status plan_sets(plan_part *part, const plan_rows *r, spw_err *err)
{
    spw_status s = SPW_OK;
    part->n_items = 0;
    part->n_partials = 0;
    for (; part->n_planned < part->choice.n_sets && !s; part->n_planned++) s = add_set(part, &part->choice.sets[part->n_planned], kv_border(r->seq, r->first_pos), err);
    return s;
}

static void prepare_part(void *ctx, size_t item, int worker)
{
    plan *p = ctx;
    plan_part *part = &p->parts[item];
    const policy *pol = part->policy;
    part->n_items = part->n_planned = 0;
    part->n_partials = 0;
    spw_status s = policy_choice_reset(&part->choice, part->query.n_q, &part->err);
    if (!s && pol->ops->prepare) s = pol->ops->prepare(pol->state, &pol->params, &part->query, &part->choice, &part->err);
    if (!s && part->choice.base) s = plan_sets(part, &p->rows[part->rows], &part->err);
    part->err.code = s;
    (void)worker;
}

static void select_part(void *ctx, size_t item, int worker)
{
    plan *p = ctx;
    plan_part *part = &p->parts[item];
    const policy *pol = part->policy;
    spw_status s = pol->ops->select(pol->state, &pol->params, &part->query, &part->choice, &part->err);
    if (!s) s = plan_sets(part, &p->rows[part->rows], &part->err);
    if (!s) s = count_reads(part, &part->err);
    part->err.code = s;
    (void)worker;
}

/* Item: one part of a policy's stage; which choice it belongs to is found by its number. */
static void work_part(void *ctx, size_t item, int worker)
{
    plan *p = ctx;
    size_t low = 0, high = p->n_parts - 1;
    while (low < high) {
        size_t mid = (low + high + 1) / 2;
        if (p->first_work[mid] <= item) low = mid;
        else high = mid - 1;
    }
    plan_part *part = &p->parts[low];
    const policy *pol = part->policy;
    pol->ops->work(pol->state, &pol->params, &part->query, &part->choice, p->stage, (uint32_t)(item - p->first_work[low]));
    (void)worker;
}

static spw_status first_error(const plan *p, spw_err *err)
{
    for (size_t i = 0; i < p->n_parts; i++) {
        if (!p->parts[i].err.code) continue;
        if (err) *err = p->parts[i].err;
        return p->parts[i].err.code;
    }
    return SPW_OK;
}

/* Room for n parts; those that are there keep their memory. */
static spw_status size_parts(plan *p, size_t n, spw_err *err)
{
    if (n > p->cap_parts) {
        plan_part *parts = mem_realloc(p->parts, p->cap_parts * sizeof *parts, n * sizeof *parts);
        if (!parts) return spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu choices", n);
        memset(parts + p->cap_parts, 0, (n - p->cap_parts) * sizeof *parts);
        p->parts = parts;
        p->cap_parts = n;
    }
    if (n > p->cap_choices) {
        policy_choice **choices = mem_realloc(p->choices, 0, n * sizeof *choices);
        if (!choices) return spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu choices", n);
        p->choices = choices;
        p->cap_choices = n;
    }
    if (n > p->cap_work) {
        size_t *first = mem_realloc(p->first_work, 0, n * sizeof *first);
        if (!first) return spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu choices", n);
        p->first_work = first;
        p->cap_work = n;
    }
    return SPW_OK;
}

static spw_status list_parts(plan *p, const plan_rows *rows, size_t n_rows, const plan_shape *shape, const kern_table *kern, spw_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < n_rows; i++) n += rows[i].decode ? shape->n_head_kv : 0;
    spw_status s = size_parts(p, n, err);
    p->n_parts = s ? 0 : n;
    p->n_heads = shape->n_head_kv;
    for (size_t i = 0, at = 0; i < n_rows && !s; i++) {
        const plan_rows *r = &rows[i];
        for (uint32_t h = 0; h < shape->n_head_kv && r->decode; h++) {
            plan_part *part = &p->parts[at];
            p->choices[at++] = &part->choice;
            part->rows = (uint32_t)i;
            part->head = h;
            part->policy = policy_of_layer(r->policies, shape->layer);
            part->query = (policy_query){.seq = r->seq, .kern = kern, .n_pos = r->first_pos + 1, .layer = shape->layer, .head = h, .n_q = shape->group, .dim = shape->dim,
                                          .watched = r->watched};
            if (!shape->q) continue;
            part->query.q_stride = shape->dim;
            part->query.q = shape->q + r->first_row * shape->q_row_stride + (size_t)h * shape->group * shape->dim;
        }
    }
    return s;
}

/* Runs all stages of all policies, each stage of all choices at once. */
static void run_stages(plan *p, spw_pool *pool)
{
    uint32_t n_stages = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        if (p->parts[i].policy->ops->n_stages > n_stages) n_stages = p->parts[i].policy->ops->n_stages;
    }
    for (p->stage = 0; p->stage < n_stages; p->stage++) {
        size_t total = 0;
        for (size_t i = 0; i < p->n_parts; i++) {
            const plan_part *part = &p->parts[i];
            p->first_work[i] = total;
            if (p->stage < part->policy->ops->n_stages) total += part->policy->ops->n_parts(&part->policy->params, &part->query, &part->choice, p->stage);
        }
        if (total) pool_run(pool, total, work_part, p);
    }
}

/* Item: the parts of one row. */
static void agree_row(void *ctx, size_t item, int worker)
{
    plan *p = ctx;
    const plan_part *first = &p->parts[item * p->n_heads];
    const policy *pol = first->policy;
    if (pol->ops->agree) pol->ops->agree(pol->state, &pol->params, &first->query, p->choices + item * p->n_heads, p->n_heads);
    (void)worker;
}

/* Room for how to merge what the parts leave. */
static spw_status size_merges(plan *p, spw_err *err)
{
    if (p->n_parts <= p->cap_merges) return SPW_OK;
    plan_merge *merges = mem_realloc(p->merges, 0, p->n_parts * sizeof *merges);
    if (!merges) return spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu choices", p->n_parts);
    p->merges = merges;
    p->cap_merges = p->n_parts;
    return SPW_OK;
}

/* The items of all parts, behind those that are there. */
static spw_status join_items(plan *p, bool base, spw_err *err)
{
    for (size_t i = 0; i < p->n_parts; i++) {
        plan_part *part = &p->parts[i];
        plan_merge *m = &p->merges[i];
        if (base) *m = (plan_merge){.rows = part->rows, .head = part->head, .first_base = p->n_items, .n_base = part->n_items};
        else m->first_item = p->n_items, m->n_items = part->n_items;
        for (size_t j = 0; j < part->n_items; j++) {
            spw_status s = add_item(p, part->items[j], err);
            if (s) return s;
            p->items[p->n_items - 1].partial += p->n_partials;
        }
        p->n_partials += part->n_partials;
        p->has_base |= base && part->n_items;
    }
    return SPW_OK;
}

static void add_reads(plan *p)
{
    for (size_t i = 0; i < p->n_parts; i++) {
        plan_reads *sum = &p->reads[p->parts[i].rows];
        const plan_reads *r = &p->parts[i].reads;
        sum->middle_bytes += r->middle_bytes;
        sum->row_bytes += r->row_bytes;
        sum->side_bytes += r->side_bytes;
    }
}

/* Prompt items of a session are built in ascending cost: in reverse, so that no long item starts last. */
static void reverse_items(plan *p)
{
    for (size_t a = 0, b = p->n_items; a + 1 < b; a++, b--) {
        plan_item it = p->items[a];
        p->items[a] = p->items[b - 1];
        p->items[b - 1] = it;
    }
}

spw_status plan_begin(plan *p, const plan_rows *rows, size_t n_rows, const plan_shape *shape, spw_pool *pool, const kern_table *kern, spw_err *err)
{
    p->n_items = p->n_parts = 0;
    p->n_partials = 0;
    p->has_base = false;
    p->rows = rows;
    if (n_rows > p->cap_reads) {
        plan_reads *reads = mem_realloc(p->reads, 0, n_rows * sizeof *reads);
        if (!reads) return spw_fail(err, SPW_E_NOMEM, "attention plan: out of memory for %zu sessions", n_rows);
        p->reads = reads;
        p->cap_reads = n_rows;
    }
    for (size_t i = 0; i < n_rows; i++) {
        p->reads[i] = (plan_reads){0};
        spw_status s = rows[i].decode ? SPW_OK : add_prompt(p, &rows[i], (uint32_t)i, shape, pool_n_threads(pool), err);
        if (s) return s;
    }
    reverse_items(p);
    spw_status s = list_parts(p, rows, n_rows, shape, kern, err);
    if (!s) s = size_merges(p, err);
    if (s || !p->n_parts) return s;
    pool_run(pool, p->n_parts, prepare_part, p);
    s = first_error(p, err);
    return s ? s : join_items(p, true, err);
}

spw_status plan_choose(plan *p, spw_pool *pool, spw_err *err)
{
    if (!p->n_parts) return SPW_OK;
    run_stages(p, pool);
    pool_run(pool, p->n_parts / p->n_heads, agree_row, p);
    pool_run(pool, p->n_parts, select_part, p);
    spw_status s = first_error(p, err);
    if (!s) s = join_items(p, false, err);
    if (!s) add_reads(p);
    return s;
}

typedef struct observe_job {
    plan *plan;
    const float *lse;
} observe_job;

static void observe_part(void *ctx, size_t item, int worker)
{
    const observe_job *job = ctx;
    plan_part *part = &job->plan->parts[item];
    const policy *pol = part->policy;
    if (pol->ops->observe) pol->ops->observe(pol->state, &pol->params, &part->query, &part->choice, job->lse + item * part->query.n_q);
    (void)worker;
}

void plan_observe(plan *p, const float *lse, spw_pool *pool)
{
    for (size_t i = 0; i < p->n_parts; i++) {
        if (!p->parts[i].policy->ops->observe) continue;
        pool_run(pool, p->n_parts, observe_part, &(observe_job){p, lse});
        return;
    }
}

void plan_free(plan *p)
{
    for (size_t i = 0; i < p->cap_parts; i++) {
        policy_choice_free(&p->parts[i].choice);
        mem_free(p->parts[i].items);
    }
    mem_free(p->parts);
    mem_free(p->choices);
    mem_free(p->first_work);
    mem_free(p->items);
    mem_free(p->merges);
    mem_free(p->reads);
    *p = (plan){0};
}
