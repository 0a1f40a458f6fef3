/* test_adaptive.c - the adaptive policy: what it chooses against a slow selection from the same estimates and against the true masses; everything and borders; the same for any threads. */
#include "adaptive_world.h"

/* ------------------------------------------------------------------------------------ the slow selection ---- */

typedef struct scored {
    double score;
    uint32_t pos;
} scored;

static int by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return x->pos < y->pos ? -1 : 1;
}

/* Estimates of every position of [from, to) by the reference kernels. */
static void slow_estimates(const world *w, uint32_t head, uint32_t from, uint32_t to, bool all, float *out, size_t stride)
{
    const kern_table *ref = kern_get("ref");
    const void *pages[CTX / KV_PAGE_ROWS + 1], *outer[CTX / KV_PAGE_ROWS + 1];
    void *query = mem_alloc(kern_index_query_bytes(GROUP, DIM));
    uint32_t *ids = malloc(stride * sizeof *ids);
    for (uint32_t i = 0; i * KV_PAGE_ROWS < to; i++) pages[i] = kv_code(w->seq, 0, head, i), outer[i] = kv_code_outer(w->seq, 0, head, i);
    ref->index_query(w->q[head], DIM, GROUP, DIM, query);
    kern_index_scan scan = {.query = query, .n_q = GROUP, .dim = DIM, .planes = kv_index_planes(w->store), .pages = pages, .outer = outer, .page_rows = KV_PAGE_ROWS, .first = from, .end = to, .every = 1,
                            .threshold = -INFINITY, .refine = all, .ids = ids, .estimates = out, .stride = stride};
    CHECK_INT(ref->index_scan(&scan), to - from);
    mem_free(query);
    free(ids);
}

/* By how much the border of a query head lies lower for what signs err: three quarters of a standard deviation. */
static double clearance(const world *w, uint32_t head, uint32_t g, uint32_t from, uint32_t to)
{
    const void *pages[CTX / KV_PAGE_ROWS + 1];
    const unsigned planes = kv_index_planes(w->store);
    const uint32_t first = from / KV_PAGE_ROWS, end = (to + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS;
    double length = 0;
    for (uint32_t i = first; i < end; i++) pages[i - first] = kv_code(w->seq, 0, head, i);
    for (uint32_t d = 0; d < DIM; d++) length += (double)w->q[head][g * DIM + d] * (double)w->q[head][g * DIM + d];
    return 0.75 * sqrt((double)(kern_index_sign_variance(planes) * kern_index_variance(pages, end - first, KV_PAGE_ROWS, DIM, planes)) * length);
}

/* The k positions with the most votes among those that pass the signs: DESIGN 6 with a sample of one group in `every`, all sorted. */
static void slow_choice(const world *w, const policy_params *pp, uint32_t head, uint64_t n_pos, uint32_t every, double share, scored *votes)
{
    uint32_t from = pp->sink, to = (uint32_t)((n_pos - 1) / KV_PAGE_ROWS * KV_PAGE_ROWS), n = 0, n_sample = 0;
    if (to > n_pos - pp->window) to = (uint32_t)(n_pos - pp->window);
    size_t stride = to - from + KERN_INDEX_GROUP;
    float *signs = malloc(GROUP * stride * sizeof *signs), *both = malloc(GROUP * stride * sizeof *both);
    scored *sampled = malloc(stride * sizeof *sampled);
    double ends[GROUP] = {0}, norm[GROUP] = {0}, bar[GROUP], all[GROUP] = {0}, rest[GROUP] = {0}, threshold;
    slow_estimates(w, head, from, to, false, signs, stride);
    slow_estimates(w, head, from, to, true, both, stride);
    for (uint32_t g = 0; g < GROUP; g++) {
        for (uint64_t pos = 0; pos < n_pos; pos++)
            if (pos < from || pos >= to) ends[g] += exp(score_of(w, head, g, pos));
    }
    for (uint32_t i = 0; i < to - from; i++) n_sample += (from + i) / KERN_INDEX_GROUP % every == 0;
    for (uint32_t g = 0; g < GROUP; g++) {
        for (uint32_t i = 0; i < to - from; i++)
            if ((from + i) / KERN_INDEX_GROUP % every == 0) norm[g] += exp((double)signs[g * stride + i]) * (to - from) / n_sample;
        norm[g] = log(norm[g] + ends[g]);
        bar[g] = norm[g] - clearance(w, head, g, from, to);
    }
    for (uint32_t i = 0; i < to - from; i++) {
        votes[i] = (scored){-1e9, from + i};
        for (uint32_t g = 0; g < GROUP; g++) votes[i].score = fmax(votes[i].score, (double)signs[g * stride + i] - bar[g]);
        if ((from + i) / KERN_INDEX_GROUP % every == 0) sampled[n++] = votes[i];
    }
    qsort(sampled, n, sizeof *sampled, by_score);
    threshold = share < 1 ? sampled[(size_t)(share * n)].score : -1e30;
    for (uint32_t g = 0; g < GROUP; g++) {
        for (uint32_t i = 0; i < to - from; i++) {
            double most = -1e9;
            for (uint32_t h = 0; h < GROUP; h++) most = fmax(most, (double)signs[h * stride + i] - bar[h]);
            if (most >= threshold) all[g] += exp((double)both[g * stride + i]);
            else if ((from + i) / KERN_INDEX_GROUP % every == 0) rest[g] += exp((double)signs[g * stride + i]) * (to - from) / n_sample;
        }
        all[g] += rest[g] + ends[g];
    }
    for (uint32_t i = 0; i < to - from; i++) {
        bool passes = votes[i].score >= threshold;
        votes[i].score = passes ? 0 : -1;
        for (uint32_t g = 0; g < GROUP && passes; g++) votes[i].score += exp((double)both[g * stride + i]) / all[g];
    }
    qsort(votes, to - from, sizeof *votes, by_score);
    free(signs), free(both), free(sampled);
}

/* Reference kernels find the same but for the order of sums; others round queries to integers, and what is near the border may pass or not. */
static void compare_with_slow(const world *w, const char *isa, uint32_t head, uint64_t n_pos, double budget, uint32_t every, double share)
{
    static scored votes[CTX];
    policy_params pp = params(budget);
    policy_choice c = {0};
    uint64_t k = choose(w, &pp, head, n_pos, &c), same = 0;
    bool exact = !strcmp(isa, "ref");
    CHECK_INT(k, policy_budget(&pp, policy_middle(&pp, n_pos)));
    slow_choice(w, &pp, head, n_pos, every, share, votes);
    double border = votes[k - 1].score;
    for (uint64_t i = 0; i < k; i++) {
        same += chosen[votes[i].pos];
        if (!exact || chosen[votes[i].pos] || votes[i].score <= border * 1.001) continue;
        test_bad++;
        fprintf(stderr, "%" PRIu64 " positions, budget %g: position %u, %g times the border, is missing\n", n_pos, budget, votes[i].pos, votes[i].score / border);
    }
    if (!(same >= k - k / (exact ? 200 : 12))) {
        fprintf(stderr, "%s: %" PRIu64 " of %" PRIu64 " positions are those of the slow selection\n", isa, same, k);
        test_bad++;
    }
    policy_choice_free(&c);
}

static void test_against_slow_selection(void)
{
    for (size_t i = 0; i < N_ISA; i++) {
        if (!kern_get(isas[i])) continue;
        for (int clustered = 0; clustered < 2; clustered++) {
            world w;
            open_world(&w, &(world_config){.isa = isas[i], .planes = KERN_INDEX_USUAL, .n = 8900, .clustered = clustered, .seed = 5});
            for (uint32_t h = 0; h < HEADS; h++) {
                compare_with_slow(&w, isas[i], h, 8900, 0.02, 16, 0.1);
                compare_with_slow(&w, isas[i], h, 8837, 0.1, 16, 852.0 / 8517 * 5);
                compare_with_slow(&w, isas[i], h, 2200, 0.1, 1, 1);
            }
            close_world(&w);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ quality ---- */

/* The mass of the k positions with the largest sums over the heads of their shares of the true mass. */
static double best_mass(const world *w, uint32_t head, uint64_t from, uint64_t to, uint64_t k)
{
    static scored votes[CTX];
    static bool best[CTX];
    double sums[GROUP] = {0}, mass[GROUP];
    for (uint64_t pos = from; pos < to; pos++) {
        for (uint32_t g = 0; g < GROUP; g++) sums[g] += exp(score_of(w, head, g, pos));
    }
    for (uint64_t pos = from; pos < to; pos++) {
        votes[pos - from] = (scored){0, (uint32_t)pos};
        for (uint32_t g = 0; g < GROUP; g++) votes[pos - from].score += exp(score_of(w, head, g, pos)) / sums[g];
    }
    qsort(votes, to - from, sizeof *votes, by_score);
    memset(best, 0, sizeof best);
    for (uint64_t i = 0; i < k; i++) best[votes[i].pos] = true;
    true_mass(w, head, from, to, best, mass);
    return mean_of(mass);
}

/* Close to the best possible choice, the masses are estimated well, and the bytes are few. */
static void check_quality(const world *w, unsigned planes, uint32_t block, double budget, double least, double mass_error)
{
    for (uint32_t h = 0; h < HEADS; h++) {
        policy_params pp = params(budget);
        policy_choice c = {0};
        double mass[GROUP];
        pp.block = block;
        uint64_t from = pp.sink, to = w->n - pp.window, k = choose(w, &pp, h, w->n, &c);
        CHECK(k <= policy_budget(&pp, to - from) + 2 * block);
        true_mass(w, h, from, to, chosen, mass);
        if (block == 1) {
            double best = best_mass(w, h, from, to, k);
            if (mean_of(mass) < least * best) test_bad++, fprintf(stderr, "%u planes, budget %g: mass %g of %g\n", planes, budget, mean_of(mass), best);
            for (uint32_t g = 0; g < GROUP; g++) CHECK_NEAR(c.mass[g], mass[g], mass_error);
        }
        CHECK(c.side_bytes >= kern_index_scan_bytes(to - from, DIM) && c.side_bytes <= (to - from) * (DIM / 8 + 2 + 4) * 2);
        policy_choice_free(&c);
    }
}

static void test_quality(void)
{
    for (int clustered = 0; clustered < 2; clustered++) {
        for (kv_type type = KV_F16; type <= KV_Q8; type++) {
            for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) {
                world w;
                open_best(&w, (world_config){.type = type, .planes = planes, .n = 9000, .clustered = clustered, .seed = 9});
                check_quality(&w, planes, 1, 0.02, planes == 1 ? 0.5 : planes == 2 ? 0.83 : 0.87, 0.35);
                check_quality(&w, planes, 1, 0.1, planes == 1 ? 0.7 : planes == 2 ? 0.88 : 0.93, 0.35);
                check_quality(&w, planes, 16, 0.05, 0, 1);
                close_world(&w);
            }
        }
    }
    world w; /* a longer middle, of which the sample says more */
    open_best(&w, (world_config){.n = 33000, .clustered = true, .seed = 10});
    check_quality(&w, 2, 1, 0.02, 0.85, 0.15);
    close_world(&w);
}

/* One position that one head wants is found wherever it is, whatever the rule and the block. */
static void test_needle(void)
{
    static const uint64_t at[] = {64, 65, 2047, 4096 + 64, 5003, 8690, 8743};
    static const uint32_t blocks[] = {1, 16, 32, 64, 128};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        world w;
        open_best(&w, (world_config){.n = 9000, .needle = at[i], .seed = at[i]});
        for (uint32_t b = 0; b < 5; b++) {
            for (policy_rule rule = POLICY_FLAT; rule <= POLICY_MODEL; rule++) {
                policy_params pp = params(0.01);
                policy_choice c = {0};
                pp.block = blocks[b];
                pp.rule = rule;
                choose(&w, &pp, 1, w.n, &c);
                CHECK(chosen[at[i]]);
                CHECK(c.mass[2] > 0.8f);
                policy_choice_free(&c);
            }
        }
        close_world(&w);
    }
}

/* A sample that is not like the rest: too few pass its threshold, and the number that was asked for is chosen all the same. */
static void test_misleading_sample(void)
{
    world w;
    open_best(&w, (world_config){.n = 8600, .decoys = true, .seed = 3});
    policy_params pp = params(0.19);
    policy_choice c = {0};
    CHECK_INT(choose(&w, &pp, 0, w.n, &c), policy_budget(&pp, policy_middle(&pp, w.n)));
    CHECK(c.side_bytes > 2 * kern_index_scan_bytes(w.n - 320, DIM));
    policy_choice_free(&c);
    close_world(&w);
}

/* ------------------------------------------------------------------------------------- everything, and borders ---- */

static void test_everything(void)
{
    world w;
    open_best(&w, (world_config){.n = 3000, .seed = 31});
    for (int i = 0; i < 6; i++) {
        policy_params pp = params(0.02);
        policy_choice c = {0};
        uint64_t n_pos = 3000;
        if (i == 0) pp.budget = 1;
        if (i == 1) pp.budget = 1e6;
        if (i == 2) pp.min_ctx = 3001;
        if (i == 3) pp.budget = 0.6; /* reading all is as fast */
        if (i == 4) n_pos = 320;
        if (i == 5) pp.window = 10, n_pos = 128; /* the only page of the middle is that of the token itself */
        choose(&w, &pp, 0, n_pos, &c);
        CHECK(c.dense && !c.base && !c.rest.o);
        CHECK_INT(c.n, 1);
        CHECK(c.n == 1 && c.ranges[0].first == 0 && c.ranges[0].n == n_pos);
        policy_choice_free(&c);
    }
    policy_params pp = params(0.02);
    policy_choice c = {0};
    pp.min_ctx = 3000;
    choose(&w, &pp, 0, 3000, &c);
    CHECK(!c.dense && c.n > 1);
    policy_choice_free(&c);
    close_world(&w);
}

static void test_no_index(void)
{
    spw_err err;
    uint32_t heads = 1;
    kv_store *st;
    kv_seq *s;
    const kern_table *kern;
    policy_params pp = params(0.02);
    policy p = start(&pp);
    policy_choice c = {0};
    float q[GROUP * DIM] = {0};
    CHECK_OK(kern_select(&kern, &err), err);
    CHECK_OK(kv_store_create(&st, &(kv_config){.n_layer = 1, .n_head_kv = &heads, .dim = DIM}, &err), err);
    CHECK_OK(kv_seq_create(&s, st, 5000, &err), err);
    CHECK_OK(kv_seq_reserve(s, 5000, &err), err);
    kv_seq_commit(s, 5000);
    policy_query query = {.seq = s, .kern = kern, .n_pos = 5000, .n_q = GROUP, .dim = DIM, .q = q, .q_stride = DIM};
    CHECK_OK(make_choice(&p, &query, NULL, &c, &err), err);
    CHECK(c.dense && c.n == 1 && c.ranges[0].n == 5000);
    policy_choice_free(&c);
    policy_done(&p);
    kv_seq_free(s);
    kv_store_free(st);
}

/* Sinks and windows of any length, at any number of positions: positions without a code are attended, the budget is kept, bytes of a store of bytes are read as such. */
static void test_borders(void)
{
    uint64_t seed = 5;
    for (kv_type type = KV_F16; type <= KV_Q8; type++) {
        world w;
        open_best(&w, (world_config){.n = 3000, .type = type, .seed = 41});
        for (int round = 0; round < 120; round++) {
            policy_params pp = params(200);
            policy_choice c = {0};
            pp.sink = (uint32_t)(test_rand(&seed) % (round % 2 ? 5 : 300));
            pp.window = 1 + (uint32_t)(test_rand(&seed) % (round % 3 ? 30 : 400));
            pp.block = round % 4 ? 1 : 32;
            /* A store of bytes has the rows of the last page alone as halves: its choices are made at its end. */
            uint64_t n_pos = type == KV_Q8 ? w.n : 1300 + test_rand(&seed) % 1700, coded = (n_pos - 1) / KV_PAGE_ROWS * KV_PAGE_ROWS, tail = 0;
            uint64_t k = choose(&w, &pp, 0, n_pos, &c);
            for (uint64_t pos = coded; pos < n_pos; pos++) CHECK(chosen[pos]);
            if (coded < n_pos - pp.window) tail = n_pos - pp.window - coded;
            CHECK(!c.dense && k >= tail + 200 - 32 && k <= tail + 200 + 2 * 32);
            if (pp.block == 1) CHECK_INT(k, tail + 200);
            policy_choice_free(&c);
        }
        close_world(&w);
    }
}

/* --------------------------------------------------------------------------------------------- threads, memory ---- */

/* The positions, and what stands for the others. */
static bool same_choice(const policy_choice *a, const policy_choice *b)
{
    return !memcmp(a->rest.o, b->rest.o, DIM * sizeof *a->rest.o) && !memcmp(a->rest.lse, b->rest.lse, GROUP * sizeof *a->rest.lse) && a->n == b->n && !memcmp(a->ranges, b->ranges, a->n * sizeof *a->ranges) && a->middle_rows == b->middle_rows && a->side_bytes == b->side_bytes;
}

/* By every rule: the same for any number of threads, masses too; and whether somebody watches decides only whether those are estimated. */
static void test_threads_and_watchers(void)
{
    spw_err err;
    world w;
    open_best(&w, (world_config){.n = 11000, .clustered = true, .seed = 51});
    for (policy_rule rule = POLICY_FLAT; rule <= POLICY_MODEL; rule++) {
        policy_params pp = params(0.03);
        pp.rule = rule;
        policy p = start(&pp);
        policy_choice first = {0}, c = {0};
        policy_query q = query_of(&w, 0, w.n);
        CHECK_OK(make_choice(&p, &q, NULL, &first, &err), err);
        for (int n = 1; n <= 4; n++) {
            spw_pool *pool;
            CHECK_OK(pool_create(&pool, n, &err), err);
            CHECK_OK(make_choice(&p, &q, pool, &c, &err), err);
            CHECK(same_choice(&c, &first) && !memcmp(c.mass, first.mass, sizeof c.mass));
            pool_free(pool);
        }
        q.watched = false;
        CHECK_OK(make_choice(&p, &q, NULL, &c, &err), err);
        CHECK(same_choice(&c, &first));
        for (uint32_t g = 0; g < GROUP; g++) CHECK(first.mass[g] > 0 && c.mass[g] < 0);
        policy_choice_free(&c);
        policy_choice_free(&first);
        policy_done(&p);
    }
    close_world(&w);
}

static void test_failing_allocator(void)
{
    spw_err err;
    world w;
    open_best(&w, (world_config){.n = 5000, .seed = 61});
    policy_params pp = params(0.1);
    policy p = start(&pp);
    policy_query q = query_of(&w, 1, w.n);
    size_t before = mem_in_use();
    int refused = 0;
    for (long n = 0; n < 20; n++) {
        policy_choice c = {0};
        mem_fail_after(n, true);
        spw_status s = make_choice(&p, &q, NULL, &c, &err);
        mem_fail_after(-1, false);
        if (s) {
            CHECK_INT(s, SPW_E_NOMEM);
            refused++;
            CHECK_OK(make_choice(&p, &q, NULL, &c, &err), err);
        }
        mark(&pp, &c, w.n, chosen);
        policy_choice_free(&c);
    }
    CHECK(refused > 3 && refused < 20);
    CHECK_INT(mem_in_use(), before);
    policy_done(&p);
    close_world(&w);
}

int main(void)
{
    RUN(test_against_slow_selection);
    RUN(test_quality);
    RUN(test_needle);
    RUN(test_misleading_sample);
    RUN(test_everything);
    RUN(test_no_index);
    RUN(test_borders);
    RUN(test_threads_and_watchers);
    RUN(test_failing_allocator);
    return test_done();
}
