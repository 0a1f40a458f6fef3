/* policy_quest.c - blocks by an upper bound of their scores, each query head its own (Quest, Tang et al. 2024, arXiv:2406.10774, section 3.2),
 * with the sink and the window of Fluxion's baseline (Yao et al. 2026, arXiv:2605.07719): what other policies are compared with.
 *
 * A block's digest is the least and the largest value of every element of its keys; no key of the block can score higher than
 * sum_d max(q_d least_d, q_d largest_d).  The budget's blocks with the highest bounds are read, ties go to the first.
 *
 * The one thing to know: the state keeps digests of blocks that end before the window begins (and, with KV_Q8, lie in sealed pages), so what a
 * digest was made of never changes again, and its rows have been committed.  The few blocks of the middle behind them, of which the last grows by a
 * position with every token, get theirs anew each time.  Digests are made when a layer is first asked, by a stage of their own, so a session pays for
 * the layers that use them. */
#include <string.h>

#include "policy_blocks.h"

enum {
    MAKE_PART = 64,   /* blocks of one item that makes digests */
    SCORE_PART = 512, /* blocks of one item that scores them */
    CHUNK = 16,       /* elements that are looked at together */
};
enum { STAGE_MAKE, STAGE_SCORE, STAGE_CHOOSE, STAGES };

/* The digests of one layer and head: rows of [least | largest], from the block on that the sink does not cover. */
typedef struct quest_head {
    kern_f16 *rows;
    size_t n, cap;
} quest_head;

typedef struct quest_state {
    uint32_t dim, n_heads, max_heads; /* of all layers; of one layer */
    quest_head heads[];               /* [layer][max_heads] */
} quest_state;

/* One choice; lies at the beginning of its scratch. */
typedef struct quest_job {
    policy_blocks blocks;
    size_t n_kept;    /* of them, the first ones, whose digests the state keeps; n_made: that it had before */
    size_t n_made;
    size_t k, stride; /* blocks for each head; from one head's scores to the next's */
    kern_f16 *digest; /* one row */
    float *q;         /* [head][2 dim]: negative parts, then positive parts */
    float *scores;    /* [head][stride] */
    uint32_t *ids, *keys; /* likewise: what is chosen; scratch of the search, then the blocks of each set */
    uint32_t *masks;  /* of each block: the heads that have chosen it */
} quest_job;

/* ----------------------------------------------------------------------------------------------- digests ---- */

/* Halves as integers that sort alike, and back: the same operation. */
static inline int16_t half_key(uint16_t bits)
{
    return (int16_t)(bits ^ (uint16_t)((uint16_t)((int16_t)bits >> 15) & 0x7fff));
}

enum { KEY_MOST = 0x7bff, KEY_LEAST = -1 - KEY_MOST }; /* of the finite halves */

/* Key of the half next to x, away from zero or towards it; of halves that are normal numbers, zero, or the largest. */
static inline int16_t float_key(float x, bool away)
{
    enum { BIAS = 112 << 23, LEAST = 113 << 23, MOST = 0x477fe000, DROPPED = 13 };
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t size = bits & 0x7fffffff;
    if (size > MOST) size = MOST;
    if (size < LEAST) size = away && size ? LEAST : BIAS;
    else if (away) size += (1 << DROPPED) - 1;
    size = (size - BIAS) >> DROPPED;
    return (int16_t)(bits < 0 ? -1 - size : size);
}

static inline void widen(int16_t *least, int16_t *most, int16_t low, int16_t high)
{
    if (low < *least) *least = low;
    if (high > *most) *most = high;
}

/* The three kinds of rows: widens the keys of the bounds by the K of n rows. */
static void widen_by_halves(int16_t *least, int16_t *most, const kern_f16 *rows, uint32_t n, uint32_t dim)
{
    for (uint32_t d = 0; d < dim; d += CHUNK) {
        int16_t low[CHUNK], high[CHUNK];
        memcpy(low, least + d, sizeof low);
        memcpy(high, most + d, sizeof high);
        for (uint32_t i = 0; i < n; i++) {
            const kern_f16 *row = rows + (size_t)i * 2 * dim + d;
            for (int j = 0; j < CHUNK; j++) {
                int16_t key = half_key(row[j]);
                low[j] = key < low[j] ? key : low[j];
                high[j] = key > high[j] ? key : high[j];
            }
        }
        memcpy(least + d, low, sizeof low);
        memcpy(most + d, high, sizeof high);
    }
}

static void widen_by_floats(int16_t *least, int16_t *most, const float *rows, uint32_t n, uint32_t dim)
{
    for (uint32_t d = 0; d < dim; d += CHUNK) {
        float low[CHUNK], high[CHUNK];
        memcpy(low, rows + d, sizeof low);
        memcpy(high, rows + d, sizeof high);
        for (uint32_t i = 1; i < n; i++) {
            const float *row = rows + (size_t)i * 2 * dim + d;
            for (int j = 0; j < CHUNK; j++) {
                low[j] = row[j] < low[j] ? row[j] : low[j];
                high[j] = row[j] > high[j] ? row[j] : high[j];
            }
        }
        for (int j = 0; j < CHUNK; j++) widen(least + d + j, most + d + j, float_key(low[j], low[j] < 0), float_key(high[j], high[j] > 0));
    }
}

static void widen_by_bytes(int16_t *least, int16_t *most, const int8_t *rows, const float *scale, uint32_t n, uint32_t dim)
{
    for (uint32_t d = 0; d < dim; d += CHUNK) {
        int8_t low[CHUNK], high[CHUNK];
        memcpy(low, rows + d, sizeof low);
        memcpy(high, rows + d, sizeof high);
        for (uint32_t i = 1; i < n; i++) {
            const int8_t *row = rows + (size_t)i * 2 * dim + d;
            for (int j = 0; j < CHUNK; j++) {
                low[j] = row[j] < low[j] ? row[j] : low[j];
                high[j] = row[j] > high[j] ? row[j] : high[j];
            }
        }
        for (int j = 0; j < CHUNK; j++)
            widen(least + d + j, most + d + j, float_key(low[j] * scale[d + (uint32_t)j], low[j] < 0), float_key(high[j] * scale[d + (uint32_t)j], high[j] > 0));
    }
}

/* out = the digest of some adjacent positions of one block.  Positions are read as the query's row sees them. */
static void make_digest(const policy_query *q, policy_range r, kern_f16 *out)
{
    size_t row_bytes = kv_seq_row_bytes(q->seq);
    uint64_t border = kv_border(q->seq, q->n_pos - 1), end = r.first + r.n;
    int16_t *least = (int16_t *)out, *most = least + q->dim;
    for (uint32_t d = 0; d < q->dim; d++) least[d] = KEY_MOST, most[d] = KEY_LEAST;
    for (uint64_t at = r.first, stop; at < end; at = stop) {
        bool sealed = at < border;
        kern_span spans[KV_MAX_SPANS];
        stop = sealed && end > border ? border : end;
        size_t n = kv_spans(q->seq, q->layer, q->head, at, (uint32_t)(stop - at), sealed, spans);
        for (size_t i = 0; i < n; i++) {
            const kern_span *s = &spans[i];
            if (sealed) widen_by_bytes(least, most, s->rows, s->k_scale, s->n, q->dim);
            else if (row_bytes == 2 * q->dim * sizeof(float)) widen_by_floats(least, most, s->rows, s->n, q->dim);
            else widen_by_halves(least, most, s->rows, s->n, q->dim);
        }
    }
    for (uint32_t d = 0; d < 2 * q->dim; d++) { /* infinities, and what is not a number, are as the largest halves */
        int16_t key = least[d] < KEY_LEAST ? (int16_t)KEY_LEAST : least[d] > KEY_MOST ? (int16_t)KEY_MOST : least[d];
        out[d] = (kern_f16)half_key((uint16_t)key);
    }
}

/* ------------------------------------------------------------------------------------------------- state ---- */

static spw_status no_memory(spw_err *err, const char *what)
{
    return spw_fail(err, SPW_E_NOMEM, "KV policy quest: out of memory for %s", what);
}

static spw_status state_alloc(quest_state **out, uint32_t dim, uint32_t n_heads, uint32_t max_heads, spw_err *err)
{
    quest_state *st = mem_zalloc(sizeof *st + n_heads * sizeof st->heads[0]);
    if (!st) return no_memory(err, "its state");
    st->dim = dim;
    st->n_heads = n_heads;
    st->max_heads = max_heads;
    *out = st;
    return SPW_OK;
}

static spw_status quest_create(void **out, const policy_params *p, spw_err *err)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < p->n_layer; i++) most = p->n_head_kv[i] > most ? p->n_head_kv[i] : most;
    quest_state *st = NULL;
    spw_status s = state_alloc(&st, p->dim, p->n_layer * most, most, err);
    *out = st;
    return s;
}

static void quest_free(void *state)
{
    quest_state *st = state;
    for (uint32_t i = 0; st && i < st->n_heads; i++) mem_free(st->heads[i].rows);
    mem_free(st);
}

static size_t digest_halves(const quest_state *st)
{
    return 2 * (size_t)st->dim;
}

/* Room for n digests. */
static spw_status size_head(const quest_state *st, quest_head *h, size_t n, spw_err *err)
{
    if (n <= h->cap) return SPW_OK;
    size_t cap = n + n / 8 + CHUNK, bytes = digest_halves(st) * sizeof(kern_f16);
    kern_f16 *rows = mem_realloc(h->rows, h->n * bytes, cap * bytes);
    if (!rows) return no_memory(err, "digests");
    h->rows = rows;
    h->cap = cap;
    return SPW_OK;
}

static spw_status quest_fork(void **out, const void *state, spw_err *err)
{
    const quest_state *from = state;
    quest_state *st = NULL;
    spw_status s = state_alloc(&st, from->dim, from->n_heads, from->max_heads, err);
    for (uint32_t i = 0; i < from->n_heads && !s; i++) {
        const quest_head *h = &from->heads[i];
        s = h->n ? size_head(st, &st->heads[i], h->n, err) : SPW_OK;
        if (s || !h->n) continue;
        memcpy(st->heads[i].rows, h->rows, h->n * digest_halves(st) * sizeof(kern_f16));
        st->heads[i].n = h->n;
    }
    if (s) quest_free(st);
    else *out = st;
    return s;
}

/* Nobody says which positions were forgotten before others were appended, so all digests are made again: that reads the keys once, half of what one dense token reads. */
static spw_status quest_begin(void *state, const policy_params *p, const policy_start *start, spw_err *err)
{
    quest_state *st = state;
    for (uint32_t i = 0; i < st->n_heads; i++) st->heads[i].n = 0;
    (void)p, (void)start, (void)err;
    return SPW_OK;
}

static quest_head *head_of(quest_state *st, const policy_query *q)
{
    return &st->heads[q->layer * st->max_heads + q->head];
}

/* ------------------------------------------------------------------------------------------------ choice ---- */

/* Lays out the scratch of a choice; its bytes. */
static size_t lay_out(quest_job *job, void *scratch, uint32_t n_q, size_t dim)
{
    policy_layout l = {.base = scratch};
    policy_layout_take(&l, sizeof *job);
    job->digest = policy_layout_take(&l, 2 * dim * sizeof *job->digest);
    job->q = policy_layout_take(&l, n_q * 2 * dim * sizeof *job->q);
    job->scores = policy_layout_take(&l, n_q * job->stride * sizeof *job->scores);
    job->ids = policy_layout_take(&l, n_q * job->stride * sizeof *job->ids);
    job->keys = policy_layout_take(&l, n_q * job->stride * sizeof *job->keys);
    job->masks = policy_layout_take(&l, job->stride * sizeof *job->masks);
    return l.bytes;
}

static void split_query(const policy_query *q, float *out)
{
    for (uint32_t g = 0; g < q->n_q; g++) {
        const float *from = q->q + g * q->q_stride;
        for (uint32_t d = 0; d < q->dim; d++, out++) {
            out[0] = from[d] < 0 ? from[d] : 0;
            out[q->dim] = from[d] < 0 ? 0 : from[d];
        }
        out += q->dim;
    }
}

static void score(const policy_query *q, const quest_job *job, const kern_f16 *digests, size_t first, size_t n)
{
    size_t len = 2 * (size_t)q->dim;
    q->kern->score_rows(&(kern_score_args){.rows = digests, .n_rows = n, .n = len, .q = job->q, .q_stride = len, .n_q = q->n_q,
                                           .scores = job->scores + first, .stride = job->stride});
}

/* How many of the middle's blocks, from its first on, never change again. */
static size_t count_kept(const policy_query *q, const policy_blocks *b)
{
    uint64_t end = b->end;
    if (kv_seq_row_bytes(q->seq) != kv_seq_open_row_bytes(q->seq)) {
        uint64_t border = kv_border(q->seq, q->n_pos - 1);
        end = border < end ? border : end;
    }
    uint64_t last = end / b->block;
    return last > b->first ? (size_t)(last - b->first) : 0;
}

static spw_status quest_prepare(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    quest_job job = {.blocks = policy_blocks_of(p, q->n_pos)};
    job.k = policy_blocks_budget(p, &policy_quest, &job.blocks);
    c->dense = policy_is_dense(p, q->n_pos) || job.k == job.blocks.n;
    if (c->dense) return SPW_OK;
    quest_state *st = state;
    job.n_kept = count_kept(q, &job.blocks);
    job.n_made = head_of(st, q)->n;
    job.stride = (job.blocks.n + CHUNK - 1) / CHUNK * CHUNK;
    spw_status s = size_head(st, head_of(st, q), job.n_kept, err);
    if (!s) s = policy_choice_scratch(c, lay_out(&job, NULL, q->n_q, q->dim), err);
    if (s) return s;
    lay_out(&job, c->scratch, q->n_q, q->dim);
    *(quest_job *)c->scratch = job;
    split_query(q, job.q);
    for (size_t i = job.n_kept; i < job.blocks.n; i++) {
        make_digest(q, policy_blocks_at(&job.blocks, i), job.digest);
        score(q, &job, job.digest, i, 1);
    }
    return SPW_OK;
}

static const quest_job *job_of(const policy_choice *c)
{
    return c->scratch;
}

static uint32_t parts_of(size_t n, size_t part)
{
    return (uint32_t)((n + part - 1) / part);
}

static uint32_t quest_n_parts(const policy_params *p, const policy_query *q, const policy_choice *c, uint32_t stage)
{
    (void)p;
    if (c->dense) return 0;
    const quest_job *job = job_of(c);
    if (stage == STAGE_MAKE) return job->n_kept > job->n_made ? parts_of(job->n_kept - job->n_made, MAKE_PART) : 0;
    return stage == STAGE_SCORE ? parts_of(job->n_kept, SCORE_PART) : q->n_q;
}

/* Blocks of one item of a stage, from `from` on and before `end`. */
static void part_blocks(size_t *from, size_t *end, uint32_t part, size_t size)
{
    *from += part * size;
    if (*end > *from + size) *end = *from + size;
}

static void quest_work(void *state, const policy_params *p, const policy_query *q, policy_choice *c, uint32_t stage, uint32_t part)
{
    const quest_job *job = job_of(c);
    kern_f16 *rows = head_of(state, q)->rows;
    size_t len = 2 * (size_t)q->dim, from = stage == STAGE_MAKE ? job->n_made : 0, end = job->n_kept, at = part * job->stride;
    (void)p;
    if (stage == STAGE_MAKE) {
        part_blocks(&from, &end, part, MAKE_PART);
        for (size_t i = from; i < end; i++) make_digest(q, policy_blocks_at(&job->blocks, i), rows + i * len);
    } else if (stage == STAGE_SCORE) {
        part_blocks(&from, &end, part, SCORE_PART);
        score(q, job, rows + from * len, from, end - from);
    } else {
        q->kern->top_k(job->scores + at, job->blocks.n, job->k, job->ids + at, job->keys + at);
    }
}

/* Runs of adjacent heads, one after the other: all that begin with head 0, then with head 1. */
enum { MAX_RUNS = KERN_MAX_G * (KERN_MAX_G + 1) / 2 };

static uint32_t run_index(uint32_t first, uint32_t n, uint32_t n_q)
{
    return first * n_q - first * (first - 1) / 2 + n - 1;
}

/* The first run of heads in a mask, which loses it; false when the mask is empty. */
static bool next_run(uint32_t *mask, uint32_t *first, uint32_t *n)
{
    if (!*mask) return false;
    *first = (uint32_t)__builtin_ctz(*mask);
    uint64_t from = (uint64_t)*mask >> *first;
    *n = (uint32_t)__builtin_ctzll(~from);
    *mask &= (uint32_t) ~(((UINT64_C(1) << *n) - 1) << *first);
    return true;
}

/* Which heads have chosen each block. */
static void mark_blocks(const quest_job *job, uint32_t n_q)
{
    memset(job->masks, 0, job->blocks.n * sizeof *job->masks);
    for (uint32_t g = 0; g < n_q; g++)
        for (size_t i = 0; i < job->k; i++) job->masks[job->ids[g * job->stride + i]] |= UINT32_C(1) << g;
}

/* Sorts the blocks by the runs of heads that read them, into job->keys; ends[r]: where those of run r end.  Returns how many positions are read by any head. */
static uint64_t sort_blocks(const quest_job *job, uint32_t n_q, size_t ends[MAX_RUNS])
{
    uint32_t first, n, n_runs = n_q * (n_q + 1) / 2;
    uint64_t n_pos = 0;
    for (uint32_t r = 0; r < n_runs; r++) ends[r] = 0;
    for (size_t i = 0; i < job->blocks.n; i++) {
        uint32_t mask = job->masks[i];
        if (mask) n_pos += policy_blocks_at(&job->blocks, i).n;
        while (next_run(&mask, &first, &n)) ends[run_index(first, n, n_q)]++;
    }
    for (size_t r = 0, at = 0; r < n_runs; r++) {
        size_t count = ends[r];
        ends[r] = at;
        at += count;
    }
    for (size_t i = 0; i < job->blocks.n; i++) {
        uint32_t mask = job->masks[i];
        while (next_run(&mask, &first, &n)) job->keys[ends[run_index(first, n, n_q)]++] = (uint32_t)i;
    }
    return n_pos;
}

/* A block that adjacent heads have chosen is read once for all of them, so sets are those of runs of heads rather than of heads. */
static spw_status quest_select(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    if (c->dense) return policy_choice_all(c, q->n_pos, err);
    const quest_job *job = job_of(c);
    quest_head *h = head_of(state, q);
    size_t ends[MAX_RUNS], at = 0;
    if (h->n < job->n_kept) h->n = job->n_kept;
    mark_blocks(job, q->n_q);
    c->middle_rows = sort_blocks(job, q->n_q, ends);
    c->side_bytes = job->blocks.n * digest_halves(state) * sizeof(kern_f16);
    spw_status s = policy_choice_add(c, 0, job->blocks.begin, err);
    if (!s) s = policy_choice_add(c, job->blocks.end, p->window, err);
    for (uint32_t first = 0, r = 0; first < q->n_q; first++) {
        for (uint32_t n = 1; first + n <= q->n_q; n++, r++) {
            if (!s && at < ends[r]) s = policy_choice_set(c, first, n, err);
            for (; !s && at < ends[r]; at++) {
                policy_range range = policy_blocks_at(&job->blocks, job->keys[at]);
                s = policy_choice_add(c, range.first, range.n, err);
            }
        }
    }
    return s;
}

const policy_ops policy_quest = {
    .name = "quest",
    .needs_q = true,
    .n_stages = STAGES,
    .budget = 0.05,
    .block = 16,
    .create = quest_create,
    .fork = quest_fork,
    .free = quest_free,
    .begin = quest_begin,
    .prepare = quest_prepare,
    .n_parts = quest_n_parts,
    .work = quest_work,
    .select = quest_select,
};
