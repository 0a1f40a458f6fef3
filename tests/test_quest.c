/* test_quest.c - what quest and oracle choose against slow and obvious computations; ties, rounded bounds, hostile keys. */
#include "timeline.h"

/* ------------------------------------------------------------------------------------------------- the slow way ---- */

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
    RUN(test_quest);
    RUN(test_oracle);
    RUN(test_ties);
    RUN(test_bounds_are_rounded_outward);
    RUN(test_hostile_keys);
    pool_free(pool);
    return test_done();
}
