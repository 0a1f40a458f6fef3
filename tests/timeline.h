/* timeline.h - sequences that tests of policies read: prompts, generated rows, truncations; how a policy's choice is made as the planner makes it; and what holds for every choice.
 *
 * A choice holds nothing that does not exist, sink and window always, no position twice. */
#ifndef SPW_TEST_TIMELINE_H
#define SPW_TEST_TIMELINE_H

#include "kv.h"
#include "mem.h"
#include "policy.h"
#include "test.h"

/* The thread sanitizer and an emulator are an order of magnitude slower: fewer timelines, same paths. */
#if defined(__SANITIZE_THREAD__)
#define SLOW true
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOW true
#endif
#endif
#ifndef SLOW
#define SLOW test_is_emulated()
#endif

enum { LAYERS = 2, ARENAS = 3, DIM = 32, MAX_GROUP = 4, CTX = 1400 };
static const uint32_t heads[LAYERS] = {2, 1};
static const struct {
    uint32_t layer, head;
} arenas[ARENAS] = {{0, 0}, {0, 1}, {1, 0}};
static const kv_type types[] = {KV_F16, KV_Q8, KV_F32};

static spw_pool *pool;
static const kern_table *kern;

/* ----------------------------------------------------------------------------------------------- a timeline ---- */

/* A sequence, the policy that reads it, and what policies are told. */
typedef struct timeline {
    kv_store *store;
    kv_seq *seq;
    policy policy;
    bool stale;
    kv_type type;
    bool alike; /* all keys are the same */
} timeline;

static inline kv_store *new_store(kv_type type)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.type = type, .n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .index_planes = KERN_INDEX_USUAL, .kern = kern}, &err), err);
    return st;
}

static inline policy_params params_of(uint32_t group, uint32_t sink, uint32_t window, double budget, uint32_t block)
{
    return (policy_params){.n_layer = LAYERS, .n_head_kv = heads, .group = group, .dim = DIM, .sink = sink, .window = window, .budget = budget, .block = block, .beta = 1};
}

/* The numbers of a position are a function of it and of salt, so that a row can be written again. */
static inline void write_position(const timeline *t, uint64_t pos, uint64_t salt)
{
    for (uint32_t a = 0; a < ARENAS; a++) {
        uint64_t seed = (t->alike ? 1 : pos * ARENAS + 1) + a + (salt << 32);
        float size = t->alike || test_rand(&seed) % 8 ? 1 : 3;
        void *row = kv_row(t->seq, arenas[a].layer, arenas[a].head, pos);
        for (uint32_t d = 0; d < 2 * DIM; d++) {
            float x = size * test_uniform(&seed);
            if (!t->alike && test_rand(&seed) % 40 == 0) x *= 10; /* makes a page's bytes of the channel coarse */
            if (t->type == KV_F32) ((float *)row)[d] = x;
            else ((kern_f16 *)row)[d] = kern_f32_to_f16(x);
        }
    }
}

static inline void complete(const timeline *t)
{
    float *scratch = mem_alloc((kv_complete_scratch(t->store) + 1) * sizeof *scratch);
    CHECK(scratch != NULL);
    for (uint32_t a = 0; a < ARENAS && scratch; a++) kv_complete(t->seq, arenas[a].layer, arenas[a].head, scratch);
    mem_free(scratch);
}

/* A prompt of n positions. */
static inline void append(timeline *t, uint64_t n, uint64_t salt)
{
    spw_err err;
    uint64_t first = kv_seq_len(t->seq);
    CHECK_OK(kv_seq_reserve(t->seq, n, &err), err);
    CHECK_OK(kv_seq_open(t->seq, n, &err), err);
    for (uint64_t pos = first; pos < first + n; pos++) write_position(t, pos, salt);
    complete(t);
    kv_seq_commit(t->seq, n);
    t->stale = true;
}

static inline spw_status begin(timeline *t, spw_err *err)
{
    const policy *p = &t->policy;
    spw_status s = !t->stale || !p->ops->begin ? SPW_OK : p->ops->begin(p->state, &p->params, &(policy_start){.seq = t->seq, .kern = kern, .pool = pool}, err);
    if (!s) t->stale = false;
    return s;
}

/* Writes the row that is being generated, without committing it. */
static inline void open_row(timeline *t, uint64_t salt)
{
    spw_err err;
    CHECK_OK(kv_seq_reserve(t->seq, 1, &err), err);
    CHECK_OK(kv_seq_open(t->seq, 1, &err), err);
    write_position(t, kv_seq_len(t->seq), salt);
    complete(t);
}

static inline void free_timeline(timeline *t)
{
    policy_done(&t->policy);
    kv_seq_free(t->seq);
}

/* The query heads of a group at a position. */
static inline policy_query query_at(const timeline *t, uint32_t arena, float *q)
{
    uint64_t pos = kv_seq_len(t->seq), seed = 77 + pos * ARENAS + arena;
    uint32_t n_q = t->policy.params.group;
    for (uint32_t i = 0; i < n_q * DIM; i++) q[i] = test_uniform(&seed);
    return (policy_query){.seq = t->seq, .kern = kern, .n_pos = pos + 1, .layer = arenas[arena].layer, .head = arenas[arena].head, .n_q = n_q, .dim = DIM,
                          .q = t->policy.ops->needs_q ? q : NULL, .q_stride = DIM};
}

/* --------------------------------------------------------------------------------------------- slow attention ---- */

static inline double dot(const float *a, const float *b)
{
    double sum = 0;
    for (uint32_t d = 0; d < DIM; d++) sum += (double)a[d] * (double)b[d];
    return sum;
}

/* scores[g][pos] = q.k, K as the row sees it. */
static inline void true_scores(const policy_query *q, double scores[MAX_GROUP][CTX])
{
    float row[2 * DIM];
    for (uint64_t pos = 0; pos < q->n_pos; pos++) {
        kv_read_row(q->seq, q->layer, q->head, pos, row);
        for (uint32_t g = 0; g < q->n_q; g++) scores[g][pos] = dot(q->q + g * q->q_stride, row);
    }
}

typedef uint8_t chosen_map[MAX_GROUP][CTX]; /* how often each head attends to each position */

/* lse of each head over what it attends to. */
static inline void slow_lse(const policy_query *q, chosen_map map, float *lse)
{
    static double scores[MAX_GROUP][CTX];
    true_scores(q, scores);
    for (uint32_t g = 0; g < q->n_q; g++) {
        double most = -INFINITY, sum = 0;
        for (uint64_t pos = 0; pos < q->n_pos; pos++)
            if (map[g][pos]) most = fmax(most, scores[g][pos]);
        for (uint64_t pos = 0; pos < q->n_pos; pos++)
            if (map[g][pos]) sum += exp(scores[g][pos] - most);
        lse[g] = (float)(most + log(sum));
    }
}

/* ------------------------------------------------------------------------------------------------- a choice ---- */

/* What prepare wants attended first is: base_lse. */
static inline spw_status prepare(const policy *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    static chosen_map map;
    spw_status s = policy_choice_reset(c, q->n_q, err);
    if (!s && p->ops->prepare) s = p->ops->prepare(p->state, &p->params, q, c, err);
    if (s || !c->base) return s;
    memset(map, 0, sizeof map);
    for (size_t i = 0; i < c->n_sets; i++) {
        const policy_set *set = &c->sets[i];
        for (uint32_t g = set->q_first; g < set->q_first + set->n_q; g++)
            for (size_t r = set->first_range; r < set->first_range + set->n_ranges; r++) memset(map[g] + c->ranges[r].first, 1, c->ranges[r].n);
    }
    slow_lse(q, map, c->base_lse);
    return s;
}

typedef struct stage_job {
    const policy *policy;
    const policy_query *query;
    policy_choice *choice;
    uint32_t stage;
} stage_job;

static inline void run_part(void *ctx, size_t part, int worker)
{
    const stage_job *j = ctx;
    j->policy->ops->work(j->policy->state, &j->policy->params, j->query, j->choice, j->stage, (uint32_t)part);
    (void)worker;
}

/* All stages and the selection; the parts of a stage one after the other, backward, or side by side. */
static inline spw_status finish(const policy *p, const policy_query *q, policy_choice *c, bool backward, spw_err *err)
{
    stage_job j = {.policy = p, .query = q, .choice = c};
    for (; j.stage < p->ops->n_stages; j.stage++) {
        uint32_t n = p->ops->n_parts(&p->params, q, c, j.stage);
        for (uint32_t i = n; i && backward; i--) run_part(&j, i - 1, 0);
        if (!backward) pool_run(pool, n, run_part, &j);
    }
    if (p->ops->agree) p->ops->agree(p->state, &p->params, q, (policy_choice *const[]){c}, 1);
    return p->ops->select(p->state, &p->params, q, c, err);
}

static inline void choose(const policy *p, const policy_query *q, policy_choice *c, bool backward)
{
    spw_err err;
    CHECK_OK(prepare(p, q, c, &err), err);
    CHECK_OK(finish(p, q, c, backward, &err), err);
}

static inline bool same_choice(const policy_choice *a, const policy_choice *b)
{
    bool same = a->n == b->n && a->n_sets == b->n_sets && a->dense == b->dense && a->side_bytes == b->side_bytes && a->middle_rows == b->middle_rows;
    same = same && (!a->n || !memcmp(a->ranges, b->ranges, a->n * sizeof *a->ranges));
    for (size_t i = 0; same && i < a->n_sets; i++) {
        const policy_set *x = &a->sets[i], *y = &b->sets[i];
        same = x->q_first == y->q_first && x->n_q == y->n_q && x->first_range == y->first_range && x->n_ranges == y->n_ranges && x->n_rows == y->n_rows;
        same = same && (!x->n_rows || !memcmp(x->positions, y->positions, x->n_rows * sizeof *x->positions));
    }
    return same;
}

static inline void check_copies(const timeline *t, const policy_query *q, const policy_set *set)
{
    size_t row_bytes = kv_seq_open_row_bytes(t->seq);
    for (size_t i = 0; i < set->n_rows; i++) {
        CHECK(set->positions[i] < q->n_pos && (i == 0 || set->positions[i] > set->positions[i - 1]));
        if (t->type != KV_Q8 && set->positions[i] < q->n_pos)
            CHECK(!memcmp((const uint8_t *)set->rows + i * row_bytes, kv_row(t->seq, q->layer, q->head, set->positions[i]), row_bytes));
    }
}

/* Order and range of all sets; fills the map. */
static inline void read_choice(const timeline *t, const policy_query *q, const policy_choice *c, chosen_map map)
{
    memset(map, 0, sizeof(chosen_map));
    CHECK(c->n_sets >= 1 && c->sets[0].q_first == 0 && c->sets[0].n_q == q->n_q);
    for (size_t i = 0; i < c->n_sets; i++) {
        const policy_set *set = &c->sets[i];
        uint64_t end = 0;
        CHECK(set->n_q >= 1 && set->q_first + set->n_q <= q->n_q && set->first_range + set->n_ranges <= c->n);
        if (set->q_first + set->n_q > q->n_q) return;
        check_copies(t, q, set);
        for (size_t r = 0; r < set->n_ranges; r++) {
            policy_range range = c->ranges[set->first_range + r];
            CHECK(range.n > 0 && (r == 0 || range.first > end) && range.first < q->n_pos && range.n <= q->n_pos - range.first);
            end = range.first + range.n;
            for (uint32_t g = set->q_first; g < set->q_first + set->n_q; g++)
                for (uint64_t pos = range.first; pos < end && pos < CTX; pos++) map[g][pos]++;
        }
        for (uint32_t g = set->q_first; g < set->q_first + set->n_q; g++)
            for (size_t r = 0; r < set->n_rows; r++) map[g][set->positions[r]]++;
    }
}

/* What holds for every choice of every policy. */
static inline void check_choice(const timeline *t, const policy_query *q, const policy_choice *c, chosen_map map)
{
    spw_err err;
    const policy_params *p = &t->policy.params;
    uint64_t middle = policy_middle(p, q->n_pos), from = p->sink, in_union = 0, counted = 0;
    int bad = 0;
    read_choice(t, q, c, map);
    for (uint64_t pos = 0; pos < q->n_pos; pos++) {
        bool in_middle = pos >= from && pos < from + middle, chosen = false;
        for (uint32_t g = 0; g < q->n_q; g++) {
            bad += map[g][pos] > 1 || (!(in_middle && !c->dense) && map[g][pos] != 1);
            chosen |= map[g][pos] > 0;
        }
        in_union += in_middle && chosen;
    }
    CHECK_INT(bad, 0);
    CHECK_OK(policy_choice_rows(c, from, from + middle, &counted, &err), err);
    if (c->middle_rows != POLICY_COUNT) CHECK_INT(c->middle_rows, in_union);
    CHECK_INT(counted, in_union);
    for (uint32_t g = 0; g < q->n_q; g++) CHECK(c->mass[g] < 0 || c->mass[g] <= 1.0001f);
    if (policy_is_dense(p, q->n_pos) && p->budget > 0 && strcmp(t->policy.ops->name, "window")) CHECK(in_union == middle);
}

/* --------------------------------------------------------------------------------------------- generated rows ---- */

static policy_choice choices[ARENAS], others[ARENAS];

/* One generated row: every layer and head chooses, is checked, and is told what attention saw.  again: another policy in the same state, which must choose the same, or NULL. */
static inline void choose_row(timeline *t, const policy *again)
{
    static chosen_map map;
    float q[MAX_GROUP * DIM], lse[MAX_GROUP];
    spw_err err;
    CHECK_OK(begin(t, &err), err);
    open_row(t, 1);
    for (uint32_t a = 0; a < ARENAS; a++) {
        policy_query query = query_at(t, a, q);
        choose(&t->policy, &query, &choices[a], false);
        check_choice(t, &query, &choices[a], map);
        if (again) {
            choose(again, &query, &others[a], true);
            CHECK(same_choice(&choices[a], &others[a]));
        }
        if (!t->policy.ops->observe) continue;
        query.q = q;
        slow_lse(&query, map, lse);
        query.q = t->policy.ops->needs_q ? q : NULL;
        t->policy.ops->observe(t->policy.state, &t->policy.params, &query, &choices[a], lse);
        if (again) again->ops->observe(again->state, &again->params, &query, &others[a], lse);
    }
}

#endif
