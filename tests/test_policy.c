/* test_policy.c - every policy of the table over random timelines: prompts, generated rows, forks, truncations, steps that fail (timeline.h has what holds for every choice). */
#include "timeline.h"

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
        pp.rule = round % 2 ? POLICY_MODEL : (policy_rule)(test_rand(&seed) % POLICY_MODEL); /* of adaptive: the one that remembers needs more rounds */
        if (test_rand(&seed) % 3 > 0) pp.stand_in = POLICY_MEANS;
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
    pp.rule = POLICY_MODEL;
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

/* A default budget is a share up to 32768 positions of the middle and grows with the root from there; a budget that was asked for is what was asked for. */
static void test_budgets(void)
{
    static const struct {
        uint64_t middle, by_default, by_share;
    } at[] = {{0, 0, 0}, {1, 1, 1}, {10000, 200, 200}, {32768, 656, 656}, {131072, 1311, 2622}, {524288, 2622, 10486}, {1048576, 3708, 20972}};
    spw_err err;
    policy by_default, by_share;
    policy_params pp = params_of(1, 64, 256, -1, 0), fixed = params_of(1, 64, 256, 0.02, 0);
    CHECK_OK(policy_init(&by_default, "adaptive", &pp, &err), err);
    CHECK_OK(policy_init(&by_share, "adaptive", &fixed, &err), err);
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        CHECK_INT(policy_budget(&by_default.params, at[i].middle), at[i].by_default);
        CHECK_INT(policy_budget(&by_share.params, at[i].middle), at[i].by_share);
    }
    policy_done(&by_default);
    policy_done(&by_share);
}

int main(void)
{
    spw_err err;
    if (kern_select(&kern, &err) || pool_create(&pool, 2, &err)) return fprintf(stderr, "%s\n", err.msg), 1;
    RUN(test_budgets);
    for (size_t i = 0; (running = policy_at(i)) != NULL; i++) {
        printf("policy %s\n", running->name);
        RUN(test_random_timelines);
        RUN(test_everything);
        if (running->create || running->prepare) RUN(test_failing_allocator);
    }
    pool_free(pool);
    return test_done();
}
