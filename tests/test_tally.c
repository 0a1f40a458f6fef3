/* test_tally.c - the vote above which a model's budget lies: against counting, in the rows after one, for groups that note nothing, after copies and rows that are made again. */
#include "mem.h"
#include "policy_tally.h"
#include "test.h"

enum { LAYERS = 3, MOST = 20000 };
static const uint32_t heads[LAYERS] = {2, 1, 3};
static float votes[LAYERS][3][MOST];

/* Groups differ by a factor of 4 each; most votes are small. */
static void make_votes(uint64_t seed, size_t n, float scale)
{
    float of_group = scale;
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (uint32_t h = 0; h < heads[l]; h++, of_group *= 0.25f)
            for (size_t i = 0; i < n; i++) votes[l][h][i] = of_group * powf(fabsf(test_uniform(&seed)), 8);
    }
}

static void note_layer(policy_tally *t, uint32_t layer, uint64_t n_pos, size_t n)
{
    for (uint32_t h = 0; h < heads[layer]; h++) policy_tally_note(t, layer, h, n_pos, votes[layer][h], n);
}

static void note_row(policy_tally *t, uint64_t n_pos, size_t n)
{
    for (uint32_t l = 0; l < LAYERS; l++) note_layer(t, l, n_pos, n);
}

/* What lies above, of the layers from `first` on. */
static double count(uint32_t first, size_t n, size_t least, float above)
{
    double sum = 0;
    for (uint32_t l = first; l < LAYERS; l++) {
        for (uint32_t h = 0; h < heads[l]; h++) {
            size_t k = 0;
            for (size_t i = 0; i < n; i++) k += votes[l][h][i] > above;
            sum += (double)(k > least ? k : least < n ? least : n);
        }
    }
    return sum;
}

static policy_tally *start(void)
{
    spw_err err;
    policy_tally *t;
    CHECK_OK(policy_tally_create(&t, LAYERS, heads, &err), err);
    return t;
}

static void test_counts(void)
{
    static const size_t each[] = {3, 40, 300, 500}, least[] = {0, 4, 1}; /* a budget is never less than its floors */
    for (size_t i = 0; i < 4; i++) {
        for (size_t j = 0; j < 3; j++) {
            for (size_t n = 1000; n <= MOST; n *= 20) { /* of more than a few thousand not all are counted */
                policy_tally *t = start();
                float above;
                make_votes(i + 1, n, 0.5f);
                note_row(t, 77, n);
                CHECK(policy_tally_cut(t, 78, each[i], each[i] * least[j] / 8, &above));
                double found = count(0, n, each[i] * least[j] / 8, above), wanted = (double)each[i] * 6, off = fabs(found - wanted);
                CHECK(off <= 0.05 * wanted + (n > 1000 ? 30 : 6));
                policy_tally_free(t);
            }
        }
    }
}

/* Fewer votes than the budget: all lie above.  Votes of nothing, and larger ones than there can be, are counted too. */
static void test_ends(void)
{
    policy_tally *t = start();
    float above;
    make_votes(9, 100, 1);
    note_row(t, 10, 100);
    CHECK(policy_tally_cut(t, 11, 200, 10, &above) && above == 0);
    memset(votes, 0, sizeof votes);
    note_row(t, 11, 100);
    CHECK(policy_tally_cut(t, 12, 50, 10, &above) && above >= 0 && above < 1e-7f);
    policy_tally_forget(t);
    for (size_t i = 0; i < 100; i++) votes[0][0][i] = i % 2 ? 1e30f : 1e-30f;
    note_row(t, 12, 100);
    CHECK(policy_tally_cut(t, 13, 8, 0, &above) && above > 100 && above < 1e30f);
    note_row(t, 13, 0); /* groups without any */
    CHECK(policy_tally_cut(t, 14, 8, 4, &above));
    policy_tally_free(t);
}

/* A tally tells of the row before alone, and layers that note nothing do not count. */
static void test_what_counts(void)
{
    policy_tally *t = start();
    float above;
    make_votes(4, 2000, 1);
    CHECK(!policy_tally_cut(t, 50, 10, 0, &above));
    note_row(t, 50, 2000);
    CHECK(!policy_tally_cut(t, 50, 10, 0, &above));
    CHECK(!policy_tally_cut(t, 52, 10, 0, &above));
    CHECK(!policy_tally_cut(t, 49, 10, 0, &above));
    CHECK(policy_tally_cut(t, 51, 10, 0, &above));
    policy_tally_forget(t);
    CHECK(!policy_tally_cut(t, 51, 10, 0, &above));
    note_layer(t, 1, 50, 2000);
    note_layer(t, 2, 50, 2000);
    policy_tally_forget(t);
    note_layer(t, 1, 50, 2000);
    note_layer(t, 2, 50, 2000);
    CHECK(policy_tally_cut(t, 51, 100, 0, &above));
    double found = count(1, 2000, 0, above);
    CHECK(found > 370 && found < 430);
    policy_tally_free(t);
}

/* The mean of the rows: a row unlike the others moves the cut by its share of them. */
static void test_mean(void)
{
    policy_tally *t = start();
    float before, after, other, moved;
    uint64_t n_pos = 100;
    make_votes(5, 1000, 1);
    for (; n_pos < 300; n_pos++) note_row(t, n_pos, 1000);
    CHECK(policy_tally_cut(t, n_pos, 100, 5, &before));
    make_votes(5, 1000, 0.1f);
    note_row(t, n_pos++, 1000);
    CHECK(policy_tally_cut(t, n_pos, 100, 5, &after));
    CHECK(after < before && after > 0.9f * before);
    policy_tally *fresh = start();
    note_row(fresh, 7, 1000);
    CHECK(policy_tally_cut(fresh, 8, 100, 5, &other));
    for (; n_pos < 600; n_pos++) note_row(t, n_pos, 1000);
    CHECK(policy_tally_cut(t, n_pos, 100, 5, &moved));
    CHECK(fabsf(moved - other) < 0.01f * other);
    policy_tally_free(t);
    policy_tally_free(fresh);
}

/* A row that fails in any layer and is made again leaves what it would have; a copy goes on as the original. */
static void test_again(void)
{
    policy_tally *a = start(), *b = start(), *c;
    spw_err err;
    uint64_t seed = 1;
    for (uint64_t n_pos = 40; n_pos < 80; n_pos++) {
        float x = -1, y = -2;
        bool known = policy_tally_cut(a, n_pos, 60, 5, &x);
        CHECK(known == policy_tally_cut(b, n_pos, 60, 5, &y) && (!known || x == y));
        make_votes(1000 + n_pos, 2000, 1);
        for (uint32_t layer = 0; layer < test_rand(&seed) % (LAYERS + 1); layer++) note_layer(b, layer, n_pos, 2000);
        CHECK(known == policy_tally_cut(b, n_pos, 60, 5, &y) && (!known || x == y));
        note_row(a, n_pos, 2000);
        note_row(b, n_pos, 2000);
        if (n_pos != 60) continue;
        CHECK_OK(policy_tally_copy(&c, b, &err), err);
        policy_tally_free(b);
        b = c;
    }
    policy_tally_free(a);
    policy_tally_free(b);
}

static void test_failing_allocator(void)
{
    spw_err err;
    policy_tally *t = start(), *other = NULL;
    size_t before = mem_in_use();
    int refused = 0;
    for (int n = 0; n < 10; n++) {
        mem_fail_after(n, true);
        spw_status s = n % 2 ? policy_tally_create(&other, LAYERS, heads, &err) : policy_tally_copy(&other, t, &err);
        mem_fail_after(-1, false);
        if (s) CHECK_INT(s, SPW_E_NOMEM);
        else policy_tally_free(other);
        refused += s != SPW_OK;
        CHECK_INT(mem_in_use(), before);
    }
    CHECK(refused >= 3);
    policy_tally_free(t);
}

int main(void)
{
    RUN(test_counts);
    RUN(test_ends);
    RUN(test_what_counts);
    RUN(test_mean);
    RUN(test_again);
    RUN(test_failing_allocator);
    return test_done();
}
