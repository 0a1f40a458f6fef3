/* test_policy.c - every policy of the table over random timelines: prompts, generated rows, forks, truncations, steps that fail.  A choice holds nothing
 * that does not exist, sink and window always, no position twice; and what quest and oracle choose is compared with slow and obvious computations. */
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

static kv_store *new_store(kv_type type)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.type = type, .n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .index_planes = KERN_INDEX_USUAL, .kern = kern}, &err), err);
    return st;
}

static policy_params params_of(uint32_t group, uint32_t sink, uint32_t window, double budget, uint32_t block)
{
    return (policy_params){.n_layer = LAYERS, .n_head_kv = heads, .group = group, .dim = DIM, .sink = sink, .window = window, .budget = budget, .block = block, .beta = 1};
}

/* The numbers of a position are a function of it and of salt, so that a row can be written again. */
static void write_position(const timeline *t, uint64_t pos, uint64_t salt)
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

static void complete(const timeline *t)
{
    float *scratch = mem_alloc((kv_complete_scratch(t->store) + 1) * sizeof *scratch);
    CHECK(scratch != NULL);
    for (uint32_t a = 0; a < ARENAS && scratch; a++) kv_complete(t->seq, arenas[a].layer, arenas[a].head, scratch);
    mem_free(scratch);
}

/* A prompt of n positions. */
static void append(timeline *t, uint64_t n, uint64_t salt)
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

static spw_status begin(timeline *t, spw_err *err)
{
    const policy *p = &t->policy;
    spw_status s = !t->stale || !p->ops->begin ? SPW_OK : p->ops->begin(p->state, &p->params, &(policy_start){.seq = t->seq, .kern = kern, .pool = pool}, err);
    if (!s) t->stale = false;
    return s;
}

/* Writes the row that is being generated, without committing it. */
static void open_row(timeline *t, uint64_t salt)
{
    spw_err err;
    CHECK_OK(kv_seq_reserve(t->seq, 1, &err), err);
    CHECK_OK(kv_seq_open(t->seq, 1, &err), err);
    write_position(t, kv_seq_len(t->seq), salt);
    complete(t);
}

static void free_timeline(timeline *t)
{
    policy_done(&t->policy);
    kv_seq_free(t->seq);
}

/* The query heads of a group at a position. */
static policy_query query_at(const timeline *t, uint32_t arena, float *q)
{
    uint64_t pos = kv_seq_len(t->seq), seed = 77 + pos * ARENAS + arena;
    uint32_t n_q = t->policy.params.group;
    for (uint32_t i = 0; i < n_q * DIM; i++) q[i] = test_uniform(&seed);
    return (policy_query){.seq = t->seq, .kern = kern, .n_pos = pos + 1, .layer = arenas[arena].layer, .head = arenas[arena].head, .n_q = n_q, .dim = DIM,
                          .q = t->policy.ops->needs_q ? q : NULL, .q_stride = DIM};
}

/* --------------------------------------------------------------------------------------------- slow attention ---- */

static double dot(const float *a, const float *b)
{
    double sum = 0;
    for (uint32_t d = 0; d < DIM; d++) sum += (double)a[d] * (double)b[d];
    return sum;
}

/* scores[g][pos] = q.k, K as the row sees it. */
static void true_scores(const policy_query *q, double scores[MAX_GROUP][CTX])
{
    float row[2 * DIM];
    for (uint64_t pos = 0; pos < q->n_pos; pos++) {
        kv_read_row(q->seq, q->layer, q->head, pos, row);
        for (uint32_t g = 0; g < q->n_q; g++) scores[g][pos] = dot(q->q + g * q->q_stride, row);
    }
}

typedef uint8_t chosen_map[MAX_GROUP][CTX]; /* how often each head attends to each position */

/* lse of each head over what it attends to. */
static void slow_lse(const policy_query *q, chosen_map map, float *lse)
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
static spw_status prepare(const policy *p, const policy_query *q, policy_choice *c, spw_err *err)
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

static void run_part(void *ctx, size_t part, int worker)
{
    const stage_job *j = ctx;
    j->policy->ops->work(j->policy->state, &j->policy->params, j->query, j->choice, j->stage, (uint32_t)part);
    (void)worker;
}

/* All stages and the selection; the parts of a stage one after the other, backward, or side by side. */
static spw_status finish(const policy *p, const policy_query *q, policy_choice *c, bool backward, spw_err *err)
{
    stage_job j = {.policy = p, .query = q, .choice = c};
    for (; j.stage < p->ops->n_stages; j.stage++) {
        uint32_t n = p->ops->n_parts(&p->params, q, c, j.stage);
        for (uint32_t i = n; i && backward; i--) run_part(&j, i - 1, 0);
        if (!backward) pool_run(pool, n, run_part, &j);
    }
    if (p->ops->agree) p->ops->agree(&p->params, (policy_choice *const[]){c}, 1);
    return p->ops->select(p->state, &p->params, q, c, err);
}

static void choose(const policy *p, const policy_query *q, policy_choice *c, bool backward)
{
    spw_err err;
    CHECK_OK(prepare(p, q, c, &err), err);
    CHECK_OK(finish(p, q, c, backward, &err), err);
}

static bool same_choice(const policy_choice *a, const policy_choice *b)
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

static void check_copies(const timeline *t, const policy_query *q, const policy_set *set)
{
    size_t row_bytes = kv_seq_open_row_bytes(t->seq);
    for (size_t i = 0; i < set->n_rows; i++) {
        CHECK(set->positions[i] < q->n_pos && (i == 0 || set->positions[i] > set->positions[i - 1]));
        if (t->type != KV_Q8 && set->positions[i] < q->n_pos)
            CHECK(!memcmp((const uint8_t *)set->rows + i * row_bytes, kv_row(t->seq, q->layer, q->head, set->positions[i]), row_bytes));
    }
}

/* Order and range of all sets; fills the map. */
static void read_choice(const timeline *t, const policy_query *q, const policy_choice *c, chosen_map map)
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
static void check_choice(const timeline *t, const policy_query *q, const policy_choice *c, chosen_map map)
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

/* ----------------------------------------------------------------------------------------------- every policy ---- */

static policy_choice choices[ARENAS], others[ARENAS];

/* One generated row: every layer and head chooses, is checked, and is told what attention saw.  again: another policy in the same state, which must choose the same, or NULL. */
static void choose_row(timeline *t, const policy *again)
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

/* A step that fails after its choices leaves nothing behind: another row in its place is chosen for as by a policy that has not seen the failed one. */
static void fail_step(timeline *t)
{
    spw_err err;
    policy unaware;
    float q[MAX_GROUP * DIM];
    CHECK_OK(begin(t, &err), err);
    CHECK_OK(policy_fork(&unaware, &t->policy, &err), err);
    open_row(t, 9);
    for (uint32_t a = 0; a < ARENAS; a++) {
        policy_query query = query_at(t, a, q);
        choose(&t->policy, &query, &choices[a], false);
    }
    kv_seq_truncate(t->seq, kv_seq_len(t->seq));
    choose_row(t, &unaware);
    kv_seq_truncate(t->seq, kv_seq_len(t->seq));
    policy_done(&unaware);
}

/* A fork goes on as its parent would; *t becomes the fork, or stays. */
static void fork_timeline(timeline *t, bool keep_fork)
{
    spw_err err;
    timeline f = *t;
    CHECK_OK(kv_seq_fork(&f.seq, t->seq, CTX, &err), err);
    CHECK_OK(policy_fork(&f.policy, &t->policy, &err), err);
    CHECK_OK(begin(t, &err), err);
    CHECK_OK(begin(&f, &err), err);
    choose_row(t, &f.policy);
    kv_seq_commit(t->seq, 1);
    if (keep_fork) {
        timeline parent = *t;
        append(&f, 1, 1);
        f.stale = false; /* its policy has seen the row being generated */
        *t = f, f = parent;
    }
    free_timeline(&f);
}

static void random_step(timeline *t, uint64_t *seed)
{
    uint64_t len = kv_seq_len(t->seq);
    switch (test_rand(seed) % 8) {
    case 0:
        if (len < CTX - 400) append(t, 1 + test_rand(seed) % 300, 1 + test_rand(seed) % 5);
        return;
    case 1:
        kv_seq_truncate(t->seq, test_rand(seed) % 3 ? len - test_rand(seed) % (len < 40 ? len : 40) : 1 + test_rand(seed) % len);
        t->stale = true;
        return;
    case 2:
        if (len < CTX - 10) fork_timeline(t, test_rand(seed) % 2);
        return;
    case 3:
        if (len < CTX - 10) fail_step(t);
        return;
    default:
        for (uint64_t n = 1 + test_rand(seed) % 6; n && kv_seq_len(t->seq) < CTX - 10; n--) {
            choose_row(t, NULL);
            kv_seq_commit(t->seq, 1);
        }
    }
}

static const policy_ops *running; /* the row of the table that is tested */

static void test_random_timelines(void)
{
    static const uint32_t blocks[] = {1, 16, 32, 64, 128}, sinks[] = {0, 1, 16, 64, 100}, windows[] = {1, 5, 64, 256};
    static const double budgets[] = {0.02, 0.05, 0.3, 1, 7, 100, 0};
    spw_err err;
    uint64_t seed = 5;
    CHECK(policy_find(running->name) == running);
    CHECK_HAS(spw_kv_policies(), running->name);
    for (int round = 0; round < (SLOW ? 6 : 24); round++) {
        size_t before = mem_in_use();
        timeline t = {.type = types[round % 3]};
        policy_params pp = params_of(1 + (uint32_t)(test_rand(&seed) % MAX_GROUP), sinks[test_rand(&seed) % 5], windows[test_rand(&seed) % 4], budgets[test_rand(&seed) % 7],
                                     blocks[test_rand(&seed) % 5]);
        if (test_rand(&seed) % 4 == 0) pp.min_ctx = test_rand(&seed) % 600;
        t.store = new_store(t.type);
        CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
        CHECK_OK(policy_init(&t.policy, running->name, &pp, &err), err);
        append(&t, 1 + test_rand(&seed) % 700, 1);
        for (int step = 0; step < 25; step++) random_step(&t, &seed);
        free_timeline(&t);
        kv_store_free(t.store);
        for (uint32_t a = 0; a < ARENAS; a++) policy_choice_free(&choices[a]), policy_choice_free(&others[a]);
        CHECK_INT(mem_in_use(), before);
    }
}

/* The whole budget, or a context that is short, is everything in one range, of all heads. */
static void test_everything(void)
{
    spw_err err;
    if (!strcmp(running->name, "window")) return;
    for (int round = 0; round < 4; round++) {
        timeline t = {.type = types[round % 3], .store = new_store(types[round % 3])};
        policy_params pp = params_of(3, 64, 100, round % 2 ? 1.0 : 0.05, 0);
        pp.beta = 0;
        if (round % 2 == 0) pp.min_ctx = 502;
        CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
        CHECK_OK(policy_init(&t.policy, running->name, &pp, &err), err);
        append(&t, 500, 1);
        choose_row(&t, NULL);
        for (uint32_t a = 0; a < ARENAS; a++) {
            CHECK(choices[a].n == 1 && choices[a].n_sets == 1 && choices[a].ranges[0].first == 0 && choices[a].ranges[0].n == 501);
            CHECK_INT(choices[a].side_bytes, 0);
        }
        free_timeline(&t);
        kv_store_free(t.store);
    }
    for (uint32_t a = 0; a < ARENAS; a++) policy_choice_free(&choices[a]);
}

/* Each allocation of a policy's life fails once. */
static void test_failing_allocator(void)
{
    spw_err err;
    size_t before = mem_in_use();
    timeline t = {.type = KV_F16, .store = new_store(KV_F16)};
    policy_params pp = params_of(2, 16, 64, 0.1, 0);
    float q[MAX_GROUP * DIM];
    int refused = 0;
    bool through = false;
    CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
    append(&t, 700, 1);
    open_row(&t, 1);
    for (long n = 0; !through && n < 500; n++) {
        policy copy = {0};
        policy_choice c = {0};
        memset(&t.policy, 0, sizeof t.policy);
        mem_fail_after(n, false);
        spw_status s = policy_init(&t.policy, running->name, &pp, &err);
        t.stale = true;
        if (!s) s = begin(&t, &err);
        policy_query query = {0};
        if (t.policy.ops) query = query_at(&t, 0, q);
        if (!s) s = prepare(&t.policy, &query, &c, &err);
        if (!s) s = finish(&t.policy, &query, &c, false, &err);
        if (!s) s = policy_fork(&copy, &t.policy, &err);
        mem_fail_after(-1, false);
        through = !s;
        refused += s == SPW_E_NOMEM;
        CHECK(!s || s == SPW_E_NOMEM);
        if (t.policy.ops) { /* whatever failed, it works when there is memory */
            static chosen_map map;
            CHECK_OK(begin(&t, &err), err);
            choose(&t.policy, &query, &c, false);
            check_choice(&t, &query, &c, map);
        }
        policy_done(&copy);
        policy_done(&t.policy);
        policy_choice_free(&c);
    }
    CHECK(through && refused > 0);
    kv_seq_free(t.seq);
    kv_store_free(t.store);
    CHECK_INT(mem_in_use(), before);
}

/* ------------------------------------------------------------------------------------- quest and oracle, slowly ---- */

/* The middle's blocks, obviously: number of every position's. */
typedef struct slow_blocks {
    uint64_t first, end; /* positions */
    size_t n, k;         /* blocks; how many of them the budget allows */
} slow_blocks;

static slow_blocks blocks_of(const policy_params *p, uint64_t n_pos)
{
    slow_blocks b = {.first = p->sink, .end = n_pos - p->window};
    for (uint64_t pos = b.first; pos < b.end; pos++) b.n += pos == b.first || pos % p->block == 0;
    size_t n = (size_t)ceil(p->budget > 1 ? p->budget : p->budget * (double)(b.end - b.first));
    b.k = (n + p->block - 1) / p->block;
    return b;
}

/* That whole blocks are chosen, k of them, and none whose value is below that of one left out by more than slack. */
static void check_best(const policy_params *p, const slow_blocks *b, const uint8_t *map, const double *values, double slack)
{
    size_t chosen = 0;
    double least = INFINITY, most = -INFINITY;
    for (uint64_t pos = b->first, i = 0; pos < b->end; pos++) {
        if (pos > b->first && pos % p->block == 0) i++;
        if (pos == b->first || pos % p->block == 0) {
            chosen += map[pos];
            if (map[pos]) least = fmin(least, values[i]);
            else most = fmax(most, values[i]);
        } else {
            CHECK(map[pos] == map[pos - 1]);
        }
    }
    CHECK_INT(chosen, b->k);
    CHECK(least >= most - slack);
    if (least < most - slack) fprintf(stderr, "a chosen block has %g, one that is not has %g\n", least, most);
}

/* Bounds of each head's blocks from the keys of the middle; sizes[g]: the largest sum of absolute values. */
static void slow_bounds(const policy_query *q, const policy_params *p, const slow_blocks *b, double bounds[MAX_GROUP][CTX], double sizes[MAX_GROUP])
{
    float low[DIM], high[DIM], row[2 * DIM];
    for (uint64_t pos = b->first, i = 0; pos < b->end; pos++) {
        bool fresh = pos == b->first || pos % p->block == 0;
        kv_read_row(q->seq, q->layer, q->head, pos, row);
        if (fresh && pos > b->first) i++;
        for (uint32_t d = 0; d < DIM; d++) {
            low[d] = fresh || row[d] < low[d] ? row[d] : low[d];
            high[d] = fresh || row[d] > high[d] ? row[d] : high[d];
        }
        for (uint32_t g = 0; g < q->n_q; g++) {
            const float *x = q->q + g * q->q_stride;
            double size = bounds[g][i] = 0;
            for (uint32_t d = 0; d < DIM; d++) {
                bounds[g][i] += fmax((double)x[d] * (double)low[d], (double)x[d] * (double)high[d]);
                size += fabs((double)x[d]) * fmax(fabs((double)low[d]), fabs((double)high[d]));
            }
            sizes[g] = fmax(sizes[g], size);
        }
    }
}

/* How much of the attention each block has: of each head, and of all. */
static void slow_votes(const policy_query *q, const policy_params *p, const slow_blocks *b, double masses[MAX_GROUP][CTX], double votes[CTX])
{
    true_scores(q, masses);
    memset(votes, 0, CTX * sizeof *votes);
    for (uint32_t g = 0; g < q->n_q; g++) {
        double most = -INFINITY, sum = 0;
        for (uint64_t pos = 0; pos < q->n_pos; pos++) most = fmax(most, masses[g][pos]);
        for (uint64_t pos = 0; pos < q->n_pos; pos++) sum += masses[g][pos] = exp(masses[g][pos] - most);
        for (uint64_t pos = 0; pos < q->n_pos; pos++) masses[g][pos] /= sum;
        for (uint64_t pos = b->first, i = 0; pos < b->end; pos++) {
            if (pos > b->first && pos % p->block == 0) i++;
            votes[i] += masses[g][pos];
        }
    }
}

static void check_quest(const timeline *t, const policy_query *q, const policy_choice *c, chosen_map map)
{
    static double bounds[MAX_GROUP][CTX];
    const policy_params *p = &t->policy.params;
    slow_blocks b = blocks_of(p, q->n_pos);
    double sizes[MAX_GROUP] = {0};
    slow_bounds(q, p, &b, bounds, sizes);
    for (uint32_t g = 0; g < q->n_q; g++) {
        /* Halves are exact; other values are rounded to halves. */
        check_best(p, &b, map[g], bounds[g], sizes[g] * (t->type == KV_F16 ? 1e-6 : 1.0 / 1024) + 1e-4);
        CHECK(c->mass[g] < 0);
    }
    CHECK_INT(c->side_bytes, b.n * 2 * DIM * sizeof(kern_f16));
}

static void check_oracle(const timeline *t, const policy_query *q, const policy_choice *c, chosen_map map)
{
    static double masses[MAX_GROUP][CTX], votes[CTX];
    const policy_params *p = &t->policy.params;
    slow_blocks b = blocks_of(p, q->n_pos);
    slow_votes(q, p, &b, masses, votes);
    check_best(p, &b, map[0], votes, 1e-6);
    for (uint32_t g = 0; g < q->n_q; g++) {
        double chosen = 0, all = 0;
        CHECK(!memcmp(map[g], map[0], sizeof map[0]));
        for (uint64_t pos = b.first; pos < b.end; pos++) all += masses[g][pos], chosen += map[g][pos] ? masses[g][pos] : 0;
        CHECK_NEAR(c->mass[g], chosen / all, 1e-5);
    }
    CHECK_INT(c->side_bytes, 0);
}

/* Prompts, generated rows and truncations; at every row the choice is the slow one, and that of a policy which has not seen the past. */
static void check_against_slow(const char *name, void (*check)(const timeline *, const policy_query *, const policy_choice *, chosen_map))
{
    static const uint32_t blocks[] = {16, 1, 128, 32, 64}, sinks[] = {64, 0, 3}, windows[] = {256, 1, 40};
    static chosen_map map;
    spw_err err;
    for (uint32_t round = 0; round < (SLOW ? 9u : 45u); round++) {
        timeline t = {.type = types[round % 3], .store = new_store(types[round % 3])}, fresh;
        policy_params pp = params_of(1 + round % MAX_GROUP, sinks[round / 3 % 3], windows[round / 9 % 3], round % 2 ? 0.1 : 70, blocks[round % 5]);
        float q[MAX_GROUP * DIM];
        uint64_t seed = 100 + round;
        CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
        CHECK_OK(policy_init(&t.policy, name, &pp, &err), err);
        append(&t, 700 + test_rand(&seed) % 100, 1);
        for (int row = 0; row < 30; row++) {
            if (row == 10) append(&t, 1 + test_rand(&seed) % 200, 2);
            if (row == 20) kv_seq_truncate(t.seq, kv_seq_len(t.seq) - 1 - test_rand(&seed) % 250), append(&t, 1 + test_rand(&seed) % 200, 3);
            fresh = t;
            CHECK_OK(policy_init(&fresh.policy, name, &pp, &err), err);
            choose_row(&t, &fresh.policy);
            policy_done(&fresh.policy);
            for (uint32_t a = 0; a < ARENAS; a++) {
                policy_query query = query_at(&t, a, q);
                read_choice(&t, &query, &choices[a], map);
                if (!choices[a].dense) check(&t, &query, &choices[a], map);
            }
            kv_seq_commit(t.seq, 1);
        }
        free_timeline(&t);
        kv_store_free(t.store);
    }
    for (uint32_t a = 0; a < ARENAS; a++) policy_choice_free(&choices[a]), policy_choice_free(&others[a]);
}

static void test_quest(void)
{
    check_against_slow("quest", check_quest);
}

static void test_oracle(void)
{
    check_against_slow("oracle", check_oracle);
}

/* Where all blocks are worth the same, the first ones are chosen. */
static void test_ties(void)
{
    static const char *const names[] = {"quest", "oracle"};
    static chosen_map map;
    spw_err err;
    for (int i = 0; i < 2; i++) {
        timeline t = {.type = KV_F16, .store = new_store(KV_F16), .alike = true};
        policy_params pp = params_of(2, 64, 256, 0.1, 16);
        float q[MAX_GROUP * DIM];
        CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
        CHECK_OK(policy_init(&t.policy, names[i], &pp, &err), err);
        append(&t, 64 + 256 + 640 - 1, 1);
        choose_row(&t, NULL);
        policy_query query = query_at(&t, 0, q);
        read_choice(&t, &query, &choices[0], map);
        for (uint64_t pos = 0; pos < query.n_pos; pos++) CHECK_INT(map[1][pos], pos < 64 + 4 * 16 || pos >= query.n_pos - 256);
        free_timeline(&t);
        kv_store_free(t.store);
    }
    for (uint32_t a = 0; a < ARENAS; a++) policy_choice_free(&choices[a]);
}

/* Rounding a digest to halves must not make a bound of what is not one: of two blocks whose keys differ by less than halves do, the better one is taken, although it comes later. */
static void test_bounds_are_rounded_outward(void)
{
    const float fine = 0x1p-12f, step = 0x1p-10f;
    const struct {
        float q, best, second, rest;
    } cases[] = {{1, 1 + fine, 1, 0}, {-1, -1 - fine, -1, 0}, {-1, 1 + step - fine, 1 + step, 2}, {1, fine - 1 - step, -1 - step, -2}, {1, 1e-6f, 0, -1}, {-1, -1e-6f, 0, 1}};
    static chosen_map map;
    spw_err err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        timeline t = {.type = KV_F32, .store = new_store(KV_F32)};
        policy_params pp = params_of(1, 64, 100, 16, 16);
        float q[MAX_GROUP * DIM] = {0};
        CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
        CHECK_OK(policy_init(&t.policy, "quest", &pp, &err), err);
        append(&t, 900, 1);
        for (uint64_t pos = 0; pos < 900; pos++) *(float *)kv_row(t.seq, 0, 0, pos) = pos / 16 == 9 ? cases[i].second : pos / 16 == 30 ? cases[i].best : cases[i].rest;
        open_row(&t, 1);
        policy_query query = query_at(&t, 0, q);
        for (uint32_t d = 0; d < DIM; d++) q[d] = d ? 0 : cases[i].q;
        choose(&t.policy, &query, &choices[0], false);
        check_choice(&t, &query, &choices[0], map);
        CHECK(map[0][30 * 16] == 1 && map[0][9 * 16] == 0);
        free_timeline(&t);
        kv_store_free(t.store);
    }
    policy_choice_free(&choices[0]);
}

/* Keys beyond the range of halves, or that are not numbers, count as the largest halves: a query of zeros scores all blocks alike. */
static void test_hostile_keys(void)
{
    static const kern_f16 hostile[] = {0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7bff, 0xfbff};
    static chosen_map map;
    spw_err err;
    timeline t = {.type = KV_F16, .store = new_store(KV_F16)};
    policy_params pp = params_of(3, 64, 100, 0.1, 16);
    float q[MAX_GROUP * DIM];
    CHECK_OK(kv_seq_create(&t.seq, t.store, CTX, &err), err);
    CHECK_OK(policy_init(&t.policy, "quest", &pp, &err), err);
    append(&t, 900, 1);
    for (uint32_t pos = 100; pos < 700; pos += 7) {
        kern_f16 *row = kv_row(t.seq, 0, 0, pos);
        row[pos % DIM] = hostile[pos % 6];
    }
    open_row(&t, 1);
    policy_query query = query_at(&t, 0, q);
    for (uint32_t d = 0; d < DIM; d++) q[d] = 0;
    choose(&t.policy, &query, &choices[0], false);
    check_choice(&t, &query, &choices[0], map);
    for (uint64_t pos = 64; pos < 801; pos++) CHECK_INT(map[0][pos], pos < 64 + 16 * 5);
    policy_choice_free(&choices[0]);
    free_timeline(&t);
    kv_store_free(t.store);
}

int main(void)
{
    spw_err err;
    if (kern_select(&kern, &err) || pool_create(&pool, 2, &err)) return fprintf(stderr, "%s\n", err.msg), 1;
    for (size_t i = 0; (running = policy_at(i)) != NULL; i++) {
        printf("policy %s\n", running->name);
        RUN(test_random_timelines);
        RUN(test_everything);
        if (running->create || running->prepare) RUN(test_failing_allocator);
    }
    RUN(test_quest);
    RUN(test_oracle);
    RUN(test_ties);
    RUN(test_bounds_are_rounded_outward);
    RUN(test_hostile_keys);
    pool_free(pool);
    return test_done();
}
