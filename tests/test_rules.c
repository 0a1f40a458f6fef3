/* test_rules.c - how many positions the adaptive policy reads: floors, every rule, blocks, and budgets that KV heads share. */
#include "adaptive_world.h"

static void test_counts(void)
{
    world w;
    open_best(&w, (world_config){.n = 9000, .clustered = true, .seed = 21});
    uint64_t middle = 9000 - 320;
    static const double budgets[] = {0.001, 1, 100, 128, 129, 0.02, 777, 0.1, 0.3};
    static const uint64_t counts[] = {128, 128, 128, 128, 129, 174, 777, 868, 2604};
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        if (budgets[i] == 1) continue; /* a share of one is everything */
        policy_params pp = params(budgets[i]);
        policy_choice c = {0};
        CHECK_INT(choose(&w, &pp, 0, w.n, &c), counts[i]);
        CHECK(!c.dense);
        policy_choice_free(&c);
    }
    /* Blocks are whole but for the ends of the middle, and as many as the budget holds. */
    for (uint32_t block = 16; block <= 128; block *= 2) {
        policy_params pp = params(0.05);
        policy_choice c = {0};
        pp.block = block;
        uint64_t n_blocks = 0;
        choose(&w, &pp, 1, w.n, &c);
        for (uint64_t b = 64 / block; b <= (64 + middle - 1) / block; b++) {
            uint64_t first = b * block < 64 ? 64 : b * block, end = (b + 1) * block > 64 + middle ? 64 + middle : (b + 1) * block, n = 0;
            for (uint64_t pos = first; pos < end; pos++) n += chosen[pos];
            CHECK(n == 0 || n == end - first);
            n_blocks += n > 0;
        }
        CHECK_INT(n_blocks, (434 + block - 1) / block);
        policy_choice_free(&c);
    }
    close_world(&w);
}

static uint64_t count_by_rule(const world *w, policy_rule rule, double threshold, double error, double *left)
{
    policy_params pp = params(rule == POLICY_FLAT ? 0 : 0.02);
    policy_choice c = {0};
    double mass[GROUP];
    pp.rule = rule;
    pp.threshold = threshold;
    pp.error = error;
    uint64_t k = choose(w, &pp, 0, w->n, &c);
    true_mass(w, 0, pp.sink, w->n - pp.window, chosen, mass);
    *left = 0;
    for (uint32_t g = 0; g < GROUP; g++) *left = fmax(*left, 1 - mass[g]);
    policy_choice_free(&c);
    return k;
}

static void test_rules(void)
{
    world w;
    double left, before;
    open_best(&w, (world_config){.n = 9000, .clustered = true, .seed = 22});
    uint64_t least = 128, all = 9000 - 320;
    CHECK_INT(count_by_rule(&w, POLICY_THRESHOLD, 0.9, 0, &left), least);
    uint64_t few = count_by_rule(&w, POLICY_THRESHOLD, 1e-3, 0, &left), many = count_by_rule(&w, POLICY_THRESHOLD, 1e-4, 0, &before);
    CHECK(few >= least && few < many && many < all / 3 && left > before);
    CHECK_INT(count_by_rule(&w, POLICY_FLAT, 1e-3, 0, &left), few); /* no budget */
    few = count_by_rule(&w, POLICY_TOP_P, 0.3, 0, &left);
    CHECK(few > least && left < 0.4);
    many = count_by_rule(&w, POLICY_TOP_P, 0.15, 0, &before);
    CHECK(few < many && before < left);
    CHECK_INT(count_by_rule(&w, POLICY_TOP_P, 0.99, 0, &left), least);
    few = count_by_rule(&w, POLICY_ERROR, 0, 0.5, &left);
    many = count_by_rule(&w, POLICY_ERROR, 0, 0.2, &before);
    CHECK(few < many && before < left);
    CHECK_INT(count_by_rule(&w, POLICY_ERROR, 0, 0.999, &left), least);
    close_world(&w);
}

/* Both heads of the row with n_pos positions; count[h]: positions of the middle.  Returns the sum over all query heads of the share of their attention that they see. */
static double choose_row(const world *w, const policy *p, uint64_t n_pos, uint64_t *count)
{
    spw_err err;
    policy_query q[HEADS];
    policy_choice c[HEADS] = {{0}}, *all[HEADS];
    double sum = 0, mass[GROUP];
    for (uint32_t h = 0; h < HEADS; h++) {
        q[h] = query_of(w, h, n_pos), all[h] = &c[h];
        CHECK_OK(run_stages(p, &q[h], NULL, &c[h], &err), err);
    }
    p->ops->agree(p->state, &p->params, &q[0], all, HEADS);
    for (uint32_t h = 0; h < HEADS; h++) {
        CHECK_OK(p->ops->select(p->state, &p->params, &q[h], &c[h], &err), err);
        count[h] = mark(&p->params, &c[h], n_pos, chosen);
        true_mass(w, h, 0, n_pos, chosen, mass);
        sum += GROUP * mean_of(mass);
        policy_choice_free(&c[h]);
    }
    return sum;
}

/* The last row alone, by a policy of its own. */
static double choose_both(const world *w, const policy_params *pp, uint64_t *count)
{
    policy p = start(pp);
    double sum = choose_row(w, &p, w->n, count);
    policy_done(&p);
    return sum;
}

/* A layer's budget goes where it holds more attention than even shares do; every group keeps its floor, and the sum is not exceeded. */
static void test_layer_budget(void)
{
    static const uint32_t blocks[] = {1, 16};
    world w;
    open_best(&w, (world_config){.n = 20000, .clustered = true, .seed = 23});
    for (size_t i = 0; i < GROUP * DIM; i++) w.q[0][i] *= 0.25f; /* it looks at everything alike */
    for (size_t b = 0; b < 2; b++) {
        policy_params pp = params(0.03);
        uint64_t even[HEADS], count[HEADS];
        pp.block = blocks[b];
        double flat = choose_both(&w, &pp, even);
        pp.rule = POLICY_LAYER;
        double layer = choose_both(&w, &pp, count);
        CHECK(layer > 1.01 * flat);
        CHECK(4 * count[0] >= even[0] - 4 * pp.block && 4 * count[1] >= even[1] - 4 * pp.block && count[0] != count[1]);
        CHECK(count[0] + count[1] <= even[0] + even[1] && 100 * (count[0] + count[1]) > 98 * (even[0] + even[1]));
        pp.budget = 0.005; /* 128 each */
        choose_both(&w, &pp, count);
        CHECK(count[0] + count[1] <= 256 && count[0] >= 32 && count[1] >= 32);
        pp.budget = 1;
        choose_both(&w, &pp, count);
        CHECK_INT(count[0], policy_middle(&pp, w.n));
    }
    close_world(&w);
}

/* A model's budget: rows with the queries of a world, some louder than others, so that what they want differs.  The first is as a flat one; the others have the budget on average, see more
 * than even shares do, keep their floors, and come out the same when they are made again, by a copy, and after everything was forgotten. */
static void test_model_budget(void)
{
    enum { ROWS = 40 };
    static const uint32_t blocks[] = {1, 16};
    static const float loud[] = {1, 0.5f, 1.3f, 0.8f, 1.1f};
    spw_err err;
    world w;
    open_best(&w, (world_config){.n = 20000, .clustered = true, .seed = 24});
    float queries[HEADS][GROUP * DIM];
    for (size_t i = 0; i < GROUP * DIM; i++) w.q[0][i] *= 0.25f;
    memcpy(queries, w.q, sizeof queries);
    for (size_t b = 0; b < 2; b++) {
        policy_params pp = params(0.03);
        pp.block = blocks[b];
        policy flat = start(&pp), copy, p;
        pp.rule = POLICY_MODEL;
        p = start(&pp);
        double even_sum = 0, sum = 0, seen_even = 0, seen = 0;
        uint64_t even[HEADS], count[HEADS], again[HEADS], first[HEADS] = {0};
        for (int row = 0; row < ROWS; row++) {
            uint64_t n_pos = w.n - ROWS + (uint64_t)row;
            for (uint32_t h = 0; h < HEADS; h++)
                for (size_t i = 0; i < GROUP * DIM; i++) w.q[h][i] = queries[h][i] * loud[row % 5];
            seen_even += choose_row(&w, &flat, n_pos, even);
            double got = choose_row(&w, &p, n_pos, count);
            seen += got;
            for (uint32_t h = 0; h < HEADS; h++) {
                even_sum += (double)even[h], sum += (double)count[h];
                CHECK(4 * count[h] >= even[h] - 4 * pp.block);
                if (row == 0) CHECK_INT(count[h], even[h]);
            }
            CHECK(choose_row(&w, &p, n_pos, again) == got && !memcmp(again, count, sizeof count));
            if (row == 0) memcpy(first, count, sizeof first);
            if (row != 20) continue;
            CHECK_OK(policy_fork(&copy, &p, &err), err);
            policy_done(&p);
            p = copy;
        }
        CHECK(sum > 0.9 * even_sum && sum < 1.1 * even_sum && seen > 1.01 * seen_even);
        CHECK_OK(p.ops->begin(p.state, &p.params, &(policy_start){.seq = w.seq}, &err), err);
        choose_row(&w, &p, w.n - ROWS, count);
        CHECK(!memcmp(count, first, sizeof first));
        policy_done(&p);
        policy_done(&flat);
    }
    close_world(&w);
}

int main(void)
{
    RUN(test_counts);
    RUN(test_rules);
    RUN(test_layer_budget);
    RUN(test_model_budget);
    return test_done();
}
