/* test_hgca.c - the policy hgca against a slow simulation: what every head keeps, row by row, through appended turns, forks, truncations, steps that fail and are repeated, and failing
 * allocations; that copies are the store's rows; and attention over them. */
#include "exec.h"
#include "isas.h"
#include "mem.h"
#include "test.h"
#include "tolerance.h"

enum { LAYERS = 2, ARENAS = 3, DIM = 32, GROUP = 3, MAX_POS = 5200, USUAL_POS = 1200, SINK = 20, WINDOW = 40, BLOCK = 64 };
static const uint32_t heads[LAYERS] = {2, 1};
static const uint32_t arena_layer[ARENAS] = {0, 0, 1}, arena_head[ARENAS] = {0, 1, 0};
static const double RATE = 1.0 / 32;

static spw_pool *pool;
static const kern_table *kern;

/* What a head should be like; doubles, and lists with an entry for every position. */
typedef struct sim_head {
    uint8_t kept[MAX_POS]; /* MAYBE: too close to tell from here, the policy decides */
    double average[MAX_POS];
    bool averaged[MAX_POS];
    uint64_t copy[MAX_POS]; /* hash of the copy when it was first seen; 0: not seen */
} sim_head;
enum { NO, YES, MAYBE };

typedef struct sim_arena {
    bool live;
    uint64_t edge;
    sim_head q[GROUP];
} sim_arena;

typedef struct session {
    kv_seq *seq;
    policy pol;
    bool stale;
    sim_arena sim[ARENAS];
} session;

static struct {
    long after; /* allocations; -1: none fails */
    uint32_t arena; /* in whose choice */
    bool sticky;
} fail = {.after = -1};

static policy_choice choice; /* of all tests in turn, so that what was in its scratch is garbage */
static size_t n_maybe, n_decided, n_kept, n_evicted;

static policy_params params_of(double beta, uint64_t min_ctx)
{
    return (policy_params){.n_layer = LAYERS, .n_head_kv = heads, .group = GROUP, .dim = DIM, .sink = SINK, .window = WINDOW, .min_ctx = min_ctx, .beta = beta};
}

static void open_session(session *s, kv_store *st, const policy_params *pp)
{
    spw_err err;
    memset(s, 0, sizeof *s);
    CHECK_OK(kv_seq_create(&s->seq, st, MAX_POS, &err), err);
    CHECK_OK(policy_init(&s->pol, "hgca", pp, &err), err);
    s->stale = true;
}

static void close_session(session *s)
{
    policy_done(&s->pol);
    kv_seq_free(s->seq);
}

static kv_store *new_store(kv_type type)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.type = type, .n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .kern = kern}, &err), err);
    return st;
}

/* Keys of a few directions, so that what a query likes is spread unevenly. */
static void write_row(kv_seq *seq, kv_type type, uint32_t arena, uint64_t pos, uint64_t *seed)
{
    float values[2 * DIM];
    for (int i = 0; i < 2 * DIM; i++) values[i] = test_uniform(seed);
    if (test_rand(seed) % 8 == 0) values[test_rand(seed) % 4] += 3;
    void *row = kv_row(seq, arena_layer[arena], arena_head[arena], pos);
    if (type == KV_F32) memcpy(row, values, sizeof values);
    else kern->to_f16(values, 2 * DIM, row);
}

static void write_rows(session *s, kv_type type, uint64_t n, uint64_t *seed)
{
    for (uint32_t a = 0; a < ARENAS; a++) {
        for (uint64_t i = 0; i < n; i++) write_row(s->seq, type, a, kv_seq_len(s->seq) + i, seed);
        kv_complete(s->seq, arena_layer[a], arena_head[a], NULL);
    }
}

static void append_prompt(session *s, kv_type type, uint64_t n, uint64_t *seed)
{
    spw_err err;
    CHECK_OK(kv_seq_reserve(s->seq, n, &err), err);
    CHECK_OK(kv_seq_open(s->seq, n, &err), err);
    write_rows(s, type, n, seed);
    kv_seq_commit(s->seq, n);
    s->stale = true;
}

/* ------------------------------------------------------------------------------------------- simulation ---- */

static uint64_t edge_of(const policy_params *p, uint64_t n_pos)
{
    uint64_t edge = 0;
    while (edge + BLOCK + p->window <= n_pos) edge += BLOCK;
    return edge < p->sink ? p->sink : edge;
}

/* scores[g][pos] = q.k, K as the row sees it. */
static void score_all(const policy_query *q, double scores[GROUP][MAX_POS])
{
    for (uint64_t pos = 0; pos < q->n_pos; pos++) {
        float row[2 * DIM];
        kv_read_row(q->seq, q->layer, q->head, pos, row);
        for (uint32_t g = 0; g < GROUP; g++) {
            double sum = 0;
            for (int d = 0; d < DIM; d++) sum += (double)q->q[g * q->q_stride + (size_t)d] * (double)row[d];
            scores[g][pos] = sum;
        }
    }
}

static double lse_over(const double *scores, const bool *in, uint64_t n)
{
    double most = -INFINITY, sum = 0;
    for (uint64_t i = 0; i < n; i++)
        if (in[i]) most = fmax(most, scores[i]);
    for (uint64_t i = 0; i < n; i++)
        if (in[i]) sum += exp(scores[i] - most);
    return most + log(sum);
}

static uint8_t decide(double weight, double least)
{
    n_decided++;
    if (fabs(weight - least) > 1e-3 * least) return weight > least ? YES : NO;
    n_maybe++;
    return MAYBE;
}

/* Positions that query head g attends to, as the choice says; no position twice, none that does not exist. */
static void read_choice(const policy_choice *c, uint64_t n_pos, uint32_t g, bool *in)
{
    memset(in, 0, MAX_POS * sizeof *in);
    for (size_t i = 0; i < c->n_sets; i++) {
        const policy_set *set = &c->sets[i];
        if (g < set->q_first || g >= set->q_first + set->n_q) continue;
        for (size_t r = set->first_range; r < set->first_range + set->n_ranges; r++) {
            for (uint64_t pos = c->ranges[r].first; pos < c->ranges[r].first + c->ranges[r].n; pos++) {
                CHECK(pos < n_pos && !in[pos]);
                if (pos < n_pos) in[pos] = true;
            }
        }
        for (size_t r = 0; r < set->n_rows; r++) {
            uint32_t pos = set->positions[r];
            CHECK(pos < n_pos && !in[pos]);
            CHECK(!r || set->positions[r - 1] < pos);
            if (pos < n_pos) in[pos] = true;
        }
    }
}

/* A copy is the row of the store, as it is when the copy is first used, and stays so. */
static void check_copies(const policy_query *q, const policy_choice *c, sim_arena *sim)
{
    size_t bytes = kv_seq_open_row_bytes(q->seq);
    bool f32 = bytes == 2 * DIM * sizeof(float);
    for (size_t i = 0; i < c->n_sets; i++) {
        const policy_set *set = &c->sets[i];
        if (!set->n_rows) continue;
        CHECK_INT(set->n_q, 1);
        CHECK((uintptr_t)set->rows % 32 == 0);
        for (size_t r = 0; r < set->n_rows; r++) {
            const uint8_t *row = (const uint8_t *)set->rows + r * bytes;
            uint64_t hash = ISA_HASH_START;
            for (size_t b = 0; b < bytes; b += sizeof hash) {
                uint64_t word;
                memcpy(&word, row + b, sizeof word);
                hash = (hash ^ word ^ word >> 32) * UINT64_C(1099511628211);
            }
            uint64_t *first = &sim->q[set->q_first].copy[set->positions[r]];
            if (!*first) {
                float want[2 * DIM];
                int wrong = 0;
                kv_read_row(q->seq, q->layer, q->head, set->positions[r], want);
                for (int d = 0; d < 2 * DIM; d++) {
                    if (f32) wrong += memcmp(row + 4 * d, want + d, 4) != 0;
                    else wrong += ((const kern_f16 *)(const void *)row)[d] != kern_f32_to_f16(want[d]);
                }
                CHECK_INT(wrong, 0);
                *first = hash;
            }
            CHECK(*first == hash);
        }
    }
}

static void set_evaluated(sim_arena *sim, const policy_params *p, const policy_query *q, double scores[GROUP][MAX_POS])
{
    static bool all[MAX_POS];
    memset(sim, 0, sizeof *sim);
    sim->live = true;
    sim->edge = edge_of(p, q->n_pos);
    for (uint32_t g = 0; g < GROUP; g++) {
        for (uint64_t i = 0; i < q->n_pos; i++) all[i] = true;
        double lse = lse_over(scores[g], all, q->n_pos);
        for (uint64_t i = p->sink; i < sim->edge; i++) sim->q[g].kept[i] = decide(exp(scores[g][i] - lse), p->beta / (double)q->n_pos);
        for (uint64_t i = sim->edge; i < q->n_pos; i++) sim->q[g].average[i] = exp(scores[g][i] - lse), sim->q[g].averaged[i] = true;
    }
}

/* What could not be told is as the policy has it. */
static void settle(sim_arena *sim, uint32_t g, const bool *in)
{
    for (uint64_t i = 0; i < sim->edge; i++)
        if (sim->q[g].kept[i] == MAYBE) sim->q[g].kept[i] = in[i] ? YES : NO;
}

static void evict_block(sim_arena *sim, const policy_params *p, uint64_t n_pos, uint64_t edge)
{
    for (uint32_t g = 0; g < GROUP; g++) {
        uint64_t n = p->sink + n_pos - sim->edge;
        for (uint64_t i = 0; i < sim->edge; i++) n += sim->q[g].kept[i] == YES;
        for (uint64_t i = sim->edge; i < edge; i++) {
            CHECK(sim->q[g].averaged[i]);
            sim->q[g].kept[i] = decide(sim->q[g].average[i], p->beta / (double)n);
            n_evicted++;
            n_kept += sim->q[g].kept[i] == YES;
        }
    }
    sim->edge = edge;
}

/* Checks one choice and takes the simulation to the next row; lse: what attention would say. */
static void check_row(session *s, uint32_t arena, const policy_query *q, const policy_choice *c, float *lse)
{
    static double scores[GROUP][MAX_POS];
    static bool in[GROUP][MAX_POS];
    const policy_params *p = &s->pol.params;
    sim_arena *sim = &s->sim[arena];
    uint64_t n_pos = q->n_pos, n_union = 0, counted = 0, middle = policy_middle(p, n_pos);
    bool dense = p->beta == 0 || policy_is_dense(p, n_pos), follows = !dense && sim->live, all = true;
    for (uint32_t g = 0; g < GROUP; g++) read_choice(c, n_pos, g, in[g]);
    for (uint32_t g = 0; g < GROUP && follows; g++) settle(sim, g, in[g]);
    if (follows && edge_of(p, n_pos) > sim->edge) evict_block(sim, p, n_pos, edge_of(p, n_pos));
    int wrong = 0;
    score_all(q, scores);
    for (uint32_t g = 0; g < GROUP; g++) {
        if (follows) settle(sim, g, in[g]);
        for (uint64_t i = 0; i < n_pos; i++) {
            bool want = !follows || i < p->sink || i >= sim->edge || sim->q[g].kept[i] == YES;
            all &= want;
            wrong += in[g][i] != want;
        }
        lse[g] = (float)lse_over(scores[g], in[g], n_pos);
        for (uint64_t i = sim->edge; i < n_pos && follows; i++) {
            double weight = exp(scores[g][i] - (double)lse[g]), *average = &sim->q[g].average[i];
            *average = sim->q[g].averaged[i] ? *average + RATE * (weight - *average) : weight;
            sim->q[g].averaged[i] = true;
        }
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(c->dense, all);
    if (all) CHECK(c->n_sets == 1 && c->n == 1);
    for (uint64_t i = p->sink; i < p->sink + middle; i++) n_union += in[0][i] || in[1][i] || in[2][i];
    spw_err err;
    CHECK_OK(policy_choice_rows(c, p->sink, p->sink + middle, &counted, &err), err);
    CHECK_INT(counted, n_union);
    if (c->middle_rows != POLICY_COUNT) CHECK_INT(c->middle_rows, n_union);
    CHECK_INT(c->side_bytes, 0);
    check_copies(q, c, sim);
    if (dense) sim->live = false;
    else if (!follows) set_evaluated(sim, p, q, scores);
}

/* ------------------------------------------------------------------------------------------------ steps ---- */

typedef struct work_job {
    session *s;
    const policy_query *q;
    uint32_t stage;
} work_job;

static void work_item(void *ctx, size_t item, int worker)
{
    const work_job *job = ctx;
    const policy *pol = &job->s->pol;
    pol->ops->work(pol->state, &pol->params, job->q, &choice, job->stage, (uint32_t)item);
    (void)worker;
}

static spw_status choose(session *s, const policy_query *q, spw_err *err)
{
    const policy *pol = &s->pol;
    spw_status status = policy_choice_reset(&choice, GROUP, err);
    if (!status) status = pol->ops->prepare(pol->state, &pol->params, q, &choice, err);
    for (uint32_t stage = 0; stage < pol->ops->n_stages && !status; stage++)
        pool_run(pool, pol->ops->n_parts(&pol->params, q, &choice, stage), work_item, &(work_job){s, q, stage});
    return status ? status : pol->ops->select(pol->state, &pol->params, q, &choice, err);
}

/* One generated row; n_layers: it fails after so many KV heads.  On failure everything is as before, also in the simulation. */
static spw_status decode(session *s, kv_type type, uint32_t n_done, uint64_t *seed, spw_err *err)
{
    static sim_arena before[ARENAS];
    static float queries[ARENAS][GROUP * DIM];
    spw_status status = SPW_OK;
    uint64_t len = kv_seq_len(s->seq);
    bool fails = n_done < ARENAS || fail.after >= 0;
    if (fails) memcpy(before, s->sim, sizeof before);
    for (uint32_t a = 0; a < ARENAS; a++)
        for (int i = 0; i < GROUP * DIM; i++) queries[a][i] = test_uniform(seed) + (i % DIM < 4 ? 0.5f : 0);
    if (s->stale) {
        for (uint32_t a = 0; a < ARENAS; a++) s->sim[a].live = before[a].live = false;
        status = s->pol.ops->begin(s->pol.state, &s->pol.params, &(policy_start){s->seq, kern, pool}, err);
        if (status) return status;
        s->stale = false;
    }
    status = kv_seq_reserve(s->seq, 1, err);
    if (!status) status = kv_seq_open(s->seq, 1, err);
    if (!status) write_rows(s, type, 1, seed);
    for (uint32_t a = 0; a < ARENAS && a < n_done && !status; a++) {
        policy_query q = {.seq = s->seq, .kern = kern, .n_pos = len + 1, .layer = arena_layer[a], .head = arena_head[a], .n_q = GROUP, .dim = DIM, .q = queries[a], .q_stride = DIM};
        float lse[GROUP];
        if (fail.after >= 0 && a == fail.arena) mem_fail_after(fail.after, fail.sticky);
        status = choose(s, &q, err);
        mem_fail_after(-1, false); /* the test's own checks are not to fail */
        if (status) break;
        check_row(s, a, &q, &choice, lse);
        s->pol.ops->observe(s->pol.state, &s->pol.params, &q, &choice, lse);
    }
    if (!status && n_done >= ARENAS) {
        kv_seq_commit(s->seq, 1);
        return SPW_OK;
    }
    kv_seq_truncate(s->seq, len);
    if (fails) memcpy(s->sim, before, sizeof before);
    return status;
}

static void fork_session(session *to, const session *from)
{
    spw_err err;
    memcpy(to, from, sizeof *to);
    CHECK_OK(policy_fork(&to->pol, &from->pol, &err), err);
    CHECK_OK(kv_seq_fork(&to->seq, from->seq, MAX_POS, &err), err);
}

/* ------------------------------------------------------------------------------------------------ tests ---- */

/* Two sessions, one now and then replaced by a fork of the other. */
static void random_run(kv_type type, double beta, uint64_t min_ctx, uint64_t seed, bool failing)
{
    static session s[2];
    spw_err err;
    kv_store *st = new_store(type);
    policy_params pp = params_of(beta, min_ctx);
    for (int i = 0; i < 2; i++) open_session(&s[i], st, &pp);
    for (int step = 0; step < 30 && !test_bad; step++) {
        session *a = &s[test_rand(&seed) % 2];
        uint64_t len = kv_seq_len(a->seq), kind = test_rand(&seed) % 10, n = 1 + test_rand(&seed) % (kind ? 90 : 400);
        if (len + n + 90 > USUAL_POS || kind == 1) {
            kv_seq_truncate(a->seq, len - test_rand(&seed) % (len + 1));
            a->stale = true;
        } else if (kind == 0 || kind == 2) {
            append_prompt(a, type, n, &seed);
        } else if (kind == 3) {
            session *b = a == s ? s + 1 : s;
            close_session(b);
            fork_session(b, a);
        }
        for (uint64_t i = 0; i < n && kind > 3; i++) {
            while (test_rand(&seed) % 6 == 0) decode(a, type, (uint32_t)(test_rand(&seed) % (ARENAS + 1)) % ARENAS, &seed, &err);
            while (failing && test_rand(&seed) % 6 == 0) {
                fail.after = (long)(test_rand(&seed) % 6);
                fail.arena = (uint32_t)(test_rand(&seed) % ARENAS);
                fail.sticky = test_rand(&seed) % 2;
                decode(a, type, ARENAS - 1, &seed, &err);
                fail.after = -1;
            }
            CHECK_OK(decode(a, type, ARENAS, &seed, &err), err);
        }
    }
    for (int i = 0; i < 2; i++) close_session(&s[i]);
    kv_store_free(st);
}

static const kv_type types[] = {KV_F16, KV_F32, KV_Q8};

static void test_random(void)
{
    size_t before = mem_in_use();
    n_maybe = n_decided = n_kept = n_evicted = 0;
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *table = kern_get(isas[i]);
        if (!table) continue;
        kern = table;
        for (size_t t = 0; t < 3; t++) random_run(types[t], t == 0 ? 1.0 : 0.7, t == 0 ? 100 : 0, 11 + 31 * i + t, false);
    }
    policy_choice_free(&choice);
    CHECK_INT(mem_in_use(), before);
    CHECK(n_maybe * 50 < n_decided);
    CHECK(n_kept > n_evicted / 50 && n_kept < n_evicted / 2); /* the test would see little otherwise */
}

static void test_failing_allocations(void)
{
    size_t before = mem_in_use();
    for (size_t t = 0; t < 3; t++) random_run(types[t], 1.0, 0, 77 + t, true);
    policy_choice_free(&choice);
    CHECK_INT(mem_in_use(), before);
}

/* Creating and forking, with every allocation failing once. */
static void test_failing_fork(void)
{
    spw_err err;
    uint64_t seed = 5;
    static session s;
    kv_store *st = new_store(KV_F16);
    policy_params pp = params_of(1, 0);
    size_t before = mem_in_use();
    long n = 0;
    for (policy made = {0}; n < 100; n++) {
        mem_fail_after(n, false);
        spw_status status = policy_init(&made, "hgca", &pp, &err);
        mem_fail_after(-1, false);
        if (!status) {
            policy_done(&made);
            break;
        }
        CHECK_INT(status, SPW_E_NOMEM);
        CHECK_INT(mem_in_use(), before);
    }
    CHECK(n >= 3 && n < 100);
    open_session(&s, st, &pp);
    append_prompt(&s, KV_F16, 400, &seed);
    for (int i = 0; i < 100; i++) CHECK_OK(decode(&s, KV_F16, ARENAS, &seed, &err), err);
    before = mem_in_use();
    for (n = 0; n < 200; n++) {
        policy copy = {0};
        mem_fail_after(n, false);
        spw_status status = policy_fork(&copy, &s.pol, &err);
        mem_fail_after(-1, false);
        if (!status) {
            policy_done(&copy);
            break;
        }
        CHECK_INT(status, SPW_E_NOMEM);
        CHECK_INT(mem_in_use(), before);
    }
    CHECK(n >= 3 + ARENAS * (3 + 2 * GROUP) && n < 200);
    close_session(&s);
    kv_store_free(st);
    policy_choice_free(&choice);
}

/* Beta 0 keeps everything and is dense; so is one so small that it keeps everything. */
static void test_keeps_everything(void)
{
    for (int i = 0; i < 2; i++) {
        spw_err err;
        uint64_t seed = 3;
        static session s;
        kv_store *st = new_store(KV_Q8);
        policy_params pp = params_of(i ? 1e-30 : 0, 0);
        open_session(&s, st, &pp);
        size_t before = mem_in_use();
        append_prompt(&s, KV_Q8, 300, &seed);
        for (int k = 0; k < 150; k++) {
            CHECK_OK(decode(&s, KV_Q8, ARENAS, &seed, &err), err);
            CHECK(choice.dense);
        }
        policy_choice_free(&choice);
        if (!i) CHECK_INT(mem_in_use(), before);
        close_session(&s);
        kv_store_free(st);
    }
}

/* Changes after which the next row has the number of the last one, or the one after: nothing but begin tells. */
static void test_forgotten_positions(void)
{
    static session s;
    spw_err err;
    uint64_t seed = 9;
    kv_store *st = new_store(KV_F16);
    policy_params pp = params_of(1, 0);
    open_session(&s, st, &pp);
    append_prompt(&s, KV_F16, 300, &seed);
    for (uint64_t forget = 1; forget < 40; forget += 2) {
        for (uint64_t i = 0; i < forget; i++) CHECK_OK(decode(&s, KV_F16, ARENAS, &seed, &err), err);
        kv_seq_truncate(s.seq, kv_seq_len(s.seq) - forget);
        s.stale = true;
        if (forget > 1) append_prompt(&s, KV_F16, forget - forget % 4 / 3, &seed); /* one less, or all */
        for (uint64_t i = 0; i < 5; i++) CHECK_OK(decode(&s, KV_F16, ARENAS, &seed, &err), err);
    }
    close_session(&s);
    kv_store_free(st);
    policy_choice_free(&choice);
}

/* More positions than one part weighs, and more copies than one part makes. */
static void test_long(void)
{
    for (size_t t = 0; t < 3; t++) {
        static session s;
        spw_err err;
        uint64_t seed = 21 + t;
        kv_store *st = new_store(types[t]);
        policy_params pp = params_of(0.5, 0);
        open_session(&s, st, &pp);
        append_prompt(&s, types[t], 4990, &seed);
        for (int i = 0; i < 70; i++) CHECK_OK(decode(&s, types[t], ARENAS, &seed, &err), err);
        size_t n_copies = 0;
        for (size_t i = 0; i < choice.n_sets; i++) n_copies += choice.sets[i].n_rows;
        CHECK(n_copies > 1024);
        close_session(&s);
        kv_store_free(st);
    }
    policy_choice_free(&choice);
}

/* What the workers make of the choice of one KV head, against sums in f64 over the positions that it names. */
static void check_attention(const plan_part *part, const float *o, double tolerance)
{
    static double scores[GROUP][MAX_POS];
    static bool in[MAX_POS];
    const policy_query *q = &part->query;
    score_all(q, scores);
    for (uint32_t g = 0; g < GROUP; g++) {
        double want[DIM] = {0}, most = 1, worst = 0;
        read_choice(&part->choice, q->n_pos, g, in);
        double lse = lse_over(scores[g], in, q->n_pos);
        for (uint64_t i = 0; i < q->n_pos; i++) {
            float row[2 * DIM];
            kv_read_row(q->seq, q->layer, q->head, i, row);
            for (int d = 0; d < DIM && in[i]; d++) want[d] += exp(scores[g][i] - lse) * (double)row[DIM + d], most = fmax(most, fabs((double)row[DIM + d]));
        }
        for (int d = 0; d < DIM; d++) worst = fmax(worst, fabs(want[d] - (double)o[g * DIM + (uint32_t)d]));
        CHECK_NEAR(worst, 0, tolerance * most);
    }
}

typedef struct attended {
    float q[2 * GROUP * DIM], k[2 * DIM], v[2 * DIM], o[2 * GROUP * DIM], lse[2 * GROUP];
} attended;

/* A generated row through planner and workers: layer 0 is attended, layer 1 has its rows written. */
static void attend_row(exec *x, plan *p, kv_seq *seq, const policy_layers *layers, attended *a, uint64_t *seed)
{
    spw_err err;
    plan_rows rows = {.seq = seq, .policies = layers, .first_pos = kv_seq_len(seq), .n_rows = 1, .decode = true};
    exec_layer l = {.n_head_kv = 2, .group = GROUP, .head_dim = DIM, .q = a->q, .k = a->k, .v = a->v, .o = a->o, .lse = a->lse}, second = l;
    plan_shape shape = {.n_head_kv = 2, .group = GROUP, .dim = DIM, .q = a->q, .q_row_stride = 2 * GROUP * DIM};
    for (int i = 0; i < 2 * GROUP * DIM; i++) a->q[i] = test_uniform(seed) + (i % DIM < 4 ? 0.5f : 0);
    for (int i = 0; i < 2 * DIM; i++) a->k[i] = test_uniform(seed), a->v[i] = test_uniform(seed);
    second.layer = 1;
    second.n_head_kv = 1;
    CHECK_OK(kv_seq_reserve(seq, 1, &err), err);
    CHECK_OK(kv_seq_open(seq, 1, &err), err);
    exec_append(x, &rows, 1, &l);
    exec_append(x, &rows, 1, &second);
    CHECK_OK(plan_begin(p, &rows, 1, &shape, pool, kern, &err), err);
    CHECK(!p->has_base);
    CHECK_OK(plan_choose(p, pool, &err), err);
    CHECK_OK(exec_attend(x, p, &rows, &l, true, &err), err);
    plan_observe(p, a->lse, pool);
}

static void test_attention(void)
{
    for (size_t t = 0; t < 3; t++) {
        static session s;
        static attended a, b;
        spw_err err;
        uint64_t seed = 41 + t;
        kv_store *st = new_store(types[t]);
        policy_params pp = params_of(0.6, 0);
        policy_layers layers[3];
        exec *x = NULL;
        plan p = {0};
        size_t n_copies = 0;
        CHECK_OK(exec_create(&x, kern, pool, st, &err), err);
        for (int i = 0; i < 3; i++) {
            pp.beta = i == 1 ? 0 : 0.6;
            CHECK_OK(policy_layers_init(&layers[i], i == 2 ? "full" : "hgca", &pp, &err), err);
        }
        open_session(&s, st, &pp);
        append_prompt(&s, types[t], 900, &seed);
        for (int row = 0; row < 150; row++) {
            uint64_t again = seed, len = kv_seq_len(s.seq);
            for (int i = 1; i < 3; i++) { /* beta 0 and full: the same bits */
                seed = again;
                attend_row(x, &p, s.seq, &layers[i], i == 1 ? &a : &b, &seed);
                kv_seq_truncate(s.seq, len);
            }
            CHECK(!memcmp(a.o, b.o, sizeof a.o) && !memcmp(a.lse, b.lse, sizeof a.lse));
            seed = again;
            attend_row(x, &p, s.seq, &layers[0], &a, &seed);
            for (uint32_t h = 0; h < 2; h++) check_attention(&p.parts[h], a.o + h * GROUP * DIM, types[t] == KV_Q8 ? TOL_Q8_OUTPUT : TOL_ATTEND_REL);
            for (size_t i = 0; i < p.n_items; i++) n_copies += p.items[i].kind == PLAN_COPY;
            kv_seq_commit(s.seq, 1);
        }
        CHECK(n_copies > 500);
        plan_free(&p);
        exec_free(x);
        for (int i = 0; i < 3; i++) policy_layers_done(&layers[i]);
        close_session(&s);
        kv_store_free(st);
    }
}

int main(void)
{
    spw_err err;
    CHECK_OK(pool_create(&pool, 2, &err), err);
    CHECK_OK(kern_select(&kern, &err), err);
    const kern_table *best = kern;
    RUN(test_random);
    kern = best;
    RUN(test_forgotten_positions);
    RUN(test_long);
    RUN(test_failing_allocations);
    RUN(test_failing_fork);
    RUN(test_keeps_everything);
    RUN(test_attention);
    pool_free(pool);
    return test_done();
}
