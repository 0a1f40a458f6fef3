/* test_sampler.c - which tokens the filters leave, how often each is drawn, and what is repeatable. */
#include "test.h"

#include "mem.h"
#include "status.h"

#define N_DRAWS 20000

static const spw_sampler_params plain = {.temp = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .repeat_last_n = 64, .seed = 1};

static spw_sampler *make(spw_sampler_params params)
{
    spw_sampler *s = NULL;
    spw_err err;
    CHECK_OK(spw_sampler_create(&s, &params, &err), err);
    if (!s) exit(1);
    return s;
}

static int32_t sample_once(spw_sampler_params params, const float *logits, size_t n)
{
    spw_sampler *s = make(params);
    int32_t id = spw_sampler_sample(s, logits, n);
    spw_sampler_free(s);
    return id;
}

/* Draws N_DRAWS times; counts[i] of n. */
static void count_draws(spw_sampler *s, const float *logits, size_t n, int *counts)
{
    memset(counts, 0, n * sizeof counts[0]);
    for (int i = 0; i < N_DRAWS; i++) {
        int32_t id = spw_sampler_sample(s, logits, n);
        CHECK(id >= 0 && (size_t)id < n);
        if (id >= 0 && (size_t)id < n) counts[id]++;
    }
}

/* The ids that are ever drawn are those whose bit is set in want, and their share of the draws is their share of prob (any scale). */
static void check_draws(spw_sampler_params params, const float *logits, const double *prob, size_t n, unsigned want)
{
    spw_sampler *s = make(params);
    int counts[32];
    double sum = 0, chi = 0;
    int n_free = -1;
    count_draws(s, logits, n, counts);
    for (size_t i = 0; i < n; i++) sum += want >> i & 1 ? prob[i] : 0;
    for (size_t i = 0; i < n; i++) {
        CHECK_INT(counts[i] > 0, want >> i & 1);
        if (!(want >> i & 1)) continue;
        double expected = prob[i] / sum * N_DRAWS, d = counts[i] - expected;
        chi += d * d / expected;
        n_free++;
    }
    CHECK(chi < n_free + 5 * sqrt(2.0 * n_free) + 5); /* five standard deviations of chi square */
    spw_sampler_free(s);
}

/* p = 0.40 0.24 0.16 0.12 0.08, shuffled */
static const double prob5[5] = {0.16, 0.40, 0.08, 0.24, 0.12};

static void logits_of(const double *prob, size_t n, float *logits)
{
    for (size_t i = 0; i < n; i++) logits[i] = (float)(log(prob[i]) + 3);
}

/* ------------------------------------------------------------------------------------- greedy ---- */

static void test_greedy(void)
{
    spw_sampler_params p = plain;
    p.temp = 0;
    CHECK_INT(sample_once(p, (float[]){1, 3, 2}, 3), 1);
    CHECK_INT(sample_once(p, (float[]){1, 3, 3, 3}, 4), 1); /* ties: the lower id */
    CHECK_INT(sample_once(p, (float[]){-5}, 1), 0);
    CHECK_INT(sample_once(p, (float[]){NAN, -4, NAN, -3}, 4), 3);
    CHECK_INT(sample_once(p, (float[]){NAN, NAN}, 2), 0);
    CHECK_INT(sample_once(p, (float[]){-INFINITY, -INFINITY, -1e30f}, 3), 2);
    CHECK_INT(sample_once(p, (float[]){0, INFINITY, INFINITY}, 3), 1);
    p.top_k = 1, p.temp = 1; /* the same by another way */
    CHECK_INT(sample_once(p, (float[]){1, 3, 3, 3}, 4), 1);
}

/* The obvious way. */
static int32_t best_slowly(const float *l, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        float a = isnan(l[i]) ? -INFINITY : l[i], b = isnan(l[best]) ? -INFINITY : l[best];
        if (a > b) best = i;
    }
    return (int32_t)best;
}

/* Every size around the blocks that the sampler looks at, with ties, NaN and infinities; top_k finds the same one by its own way. */
static void test_best_of_any_size(void)
{
    float l[400];
    uint64_t state = 11;
    int n_wrong = 0;
    spw_sampler_params p = plain, k = plain;
    p.temp = 0, k.top_k = 1;
    spw_sampler *greedy = make(p), *first = make(k);
    for (size_t n = 1; n <= 400; n++) {
        for (size_t i = 0; i < n; i++) {
            float u = test_uniform(&state);
            l[i] = u < -0.8f ? NAN : u < -0.6f ? -INFINITY : floorf(u * 20 - (float)(n % 3) * 40);
        }
        if (n % 7 == 0) l[n / 2] = INFINITY;
        int32_t want = best_slowly(l, n);
        n_wrong += spw_sampler_sample(greedy, l, n) != want || (n > 1 && spw_sampler_sample(first, l, n) != want);
    }
    CHECK_INT(n_wrong, 0);
    for (size_t i = 0; i < 400; i++) l[i] = i % 2 ? -INFINITY : NAN;
    CHECK_INT(spw_sampler_sample(greedy, l, 400), 0);
    l[70] = l[130] = 1; /* fewer than top_k that are possible at all */
    k.top_k = 4;
    for (uint64_t seed = 0; seed < 50; seed++) {
        k.seed = seed;
        int32_t id = sample_once(k, l, 400);
        n_wrong += id != 70 && id != 130;
    }
    CHECK_INT(n_wrong, 0);
    spw_sampler_free(greedy), spw_sampler_free(first);
}

/* Without memory for scratch the sampler still answers. */
static void test_no_memory(void)
{
    spw_sampler *s = make(plain);
    mem_fail_after(0, true);
    CHECK_INT(spw_sampler_sample(s, (float[]){0, 0, 1, 0}, 4), 2);
    mem_fail_after(1, true);
    CHECK_INT(spw_sampler_sample(s, (float[]){0, 0, 1, 0}, 4), 2);
    mem_fail_after(-1, false);
    spw_sampler_free(s);
    for (int i = 0; i < 2; i++) {
        spw_sampler_params p = plain;
        spw_err err;
        p.repeat_penalty = 2, s = NULL;
        mem_fail_after(i, false);
        CHECK_INT(spw_sampler_create(&s, &p, &err), SPW_E_NOMEM);
        CHECK(s == NULL);
    }
    mem_fail_after(-1, false);
}

/* ------------------------------------------------------------------------------------ filters ---- */

static void test_filters(void)
{
    float l[5];
    spw_sampler_params p = plain;
    logits_of(prob5, 5, l);
    check_draws(p, l, prob5, 5, 0x1f);
    p.top_k = 2;
    check_draws(p, l, prob5, 5, 0x0a);
    p.top_k = 4;
    check_draws(p, l, prob5, 5, 0x1b);
    p.top_k = 100; /* more than there are */
    check_draws(p, l, prob5, 5, 0x1f);
    p = plain, p.top_p = 0.3f; /* the best alone has more */
    check_draws(p, l, prob5, 5, 0x02);
    p.top_p = 0.5f;
    check_draws(p, l, prob5, 5, 0x0a);
    p.top_p = 0.79f;
    check_draws(p, l, prob5, 5, 0x0b);
    p.top_p = 0.81f;
    check_draws(p, l, prob5, 5, 0x1b);
    p = plain, p.min_p = 0.35f; /* of 0.40: 0.14 */
    check_draws(p, l, prob5, 5, 0x0b);
    p.min_p = 1;
    check_draws(p, l, prob5, 5, 0x02);
}

/* Each order of the filters gives another set here. */
static void test_filter_order(void)
{
    float l[5];
    spw_sampler_params p = plain;
    logits_of(prob5, 5, l);
    /* Of the best three (0.40 0.24 0.16) the best two are 80 %: top_p is of what top_k left. */
    p.top_k = 3, p.top_p = 0.78f;
    check_draws(p, l, prob5, 5, 0x0a);
    /* The filters come before temperature: at temp 4, 0.40 would be only twice as likely as 0.08. */
    double flat[5];
    for (int i = 0; i < 5; i++) flat[i] = pow(prob5[i], 1 / 4.0);
    p = plain, p.temp = 4, p.min_p = 0.35f;
    check_draws(p, l, flat, 5, 0x0b);
    p = plain, p.temp = 4, p.top_p = 0.5f;
    check_draws(p, l, flat, 5, 0x0a);
    /* min_p comes after top_p: 0.5 of the mass is two; were 0.16 and less dropped before, one would do (0.40 of 0.64). */
    p = plain, p.top_p = 0.5f, p.min_p = 0.5f;
    check_draws(p, l, prob5, 5, 0x0a);
}

static void test_temperature(void)
{
    float l[5];
    double prob[5];
    logits_of(prob5, 5, l);
    spw_sampler_params p = plain;
    for (int step = 0; step < 3; step++) {
        p.temp = step == 0 ? 0.5f : step == 1 ? 1.0f : 3.0f;
        for (int i = 0; i < 5; i++) prob[i] = pow(prob5[i], 1 / (double)p.temp);
        check_draws(p, l, prob, 5, 0x1f);
    }
    p.temp = 1e-30f; /* nearly greedy must not become NaN */
    CHECK_INT(sample_once(p, l, 5), 1);
}

static void test_equal_and_infinite(void)
{
    const double one[4] = {1, 1, 1, 1};
    const float equal[4] = {2, 2, 2, 2}, holes[4] = {1, NAN, -INFINITY, 1}, up[4] = {0, INFINITY, 5, INFINITY};
    const float none[4] = {-INFINITY, NAN, -INFINITY, -INFINITY}, huge[4] = {3e38f, -3e38f, 3e38f, 0};
    spw_sampler_params p = plain;
    check_draws(p, equal, one, 4, 0xf);
    check_draws(p, holes, one, 4, 0x9);
    check_draws(p, up, one, 4, 0xa);
    check_draws(p, none, one, 4, 0xf);
    check_draws(p, huge, one, 4, 0x5);
    p.top_k = 2; /* ties at the edge: the lower ids stay */
    check_draws(p, equal, one, 4, 0x3);
    p.top_k = 0, p.top_p = 0.5f;
    check_draws(p, equal, one, 4, 0x3);
    CHECK_INT(sample_once(plain, equal, 0), 0);
}

static int compare_down(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* In a large vocabulary, with many ties: what is drawn is among the k best, and all of those are drawn. */
static void test_large_vocabulary(void)
{
    enum { n = 150000, k = 50 };
    float *l = mem_alloc(n * sizeof *l), *sorted = mem_alloc(n * sizeof *sorted);
    int *counts = mem_alloc(n * sizeof *counts);
    uint64_t state = 5;
    for (size_t i = 0; i < n; i++) l[i] = sorted[i] = floorf(test_uniform(&state) * 5000) / 5000;
    qsort(sorted, n, sizeof *sorted, compare_down);
    spw_sampler_params p = plain;
    p.top_k = k;
    spw_sampler *s = make(p);
    memset(counts, 0, n * sizeof *counts);
    for (int i = 0; i < 1500; i++) counts[spw_sampler_sample(s, l, n)]++;
    spw_sampler_free(s);
    int n_seen = 0, n_wrong = 0;
    for (size_t i = 0; i < n; i++) n_seen += counts[i] > 0, n_wrong += counts[i] > 0 && l[i] < sorted[k - 1];
    CHECK_INT(n_seen, k);
    CHECK_INT(n_wrong, 0);

    /* top_p without top_k, where it takes more than the first guesses: flat, so half of the mass is about half of the ids. */
    for (size_t i = 0; i < n; i++) l[i] = (float)(i % 1000) * 1e-6f;
    p = plain, p.top_p = 0.5f;
    s = make(p);
    n_wrong = 0;
    int n_low = 0;
    for (int i = 0; i < 20; i++) {
        int32_t id = spw_sampler_sample(s, l, n);
        n_wrong += id % 1000 < 499;
        n_low += id % 1000 < 750;
    }
    CHECK_INT(n_wrong, 0);
    CHECK(n_low > 0 && n_low < 20);
    spw_sampler_free(s);
    mem_free(l), mem_free(sorted), mem_free(counts);
}

/* ------------------------------------------------------------------------------------ penalty ---- */

static void test_penalty(void)
{
    spw_sampler_params p = plain;
    p.temp = 0, p.repeat_penalty = 2, p.repeat_last_n = 2;
    spw_sampler *s = make(p);
    const float up[4] = {1, 3, 2, 1.6f}, down[3] = {-1, -1.5f, -3};
    CHECK_INT(spw_sampler_sample(s, up, 4), 1);
    spw_sampler_accept(s, 1);
    CHECK_INT(spw_sampler_sample(s, up, 4), 2); /* 3 / 2 = 1.5 */
    spw_sampler_accept(s, 2);
    CHECK_INT(spw_sampler_sample(s, up, 4), 3);
    spw_sampler_accept(s, 3); /* 1 is forgotten */
    CHECK_INT(spw_sampler_sample(s, up, 4), 1);
    spw_sampler_accept(s, 0), spw_sampler_accept(s, 0);
    CHECK_INT(spw_sampler_sample(s, down, 3), 1); /* -1 * 2 = -2: a negative logit is multiplied, and once only */
    spw_sampler_accept(s, -1), spw_sampler_accept(s, 1000000); /* ids that no logit belongs to */
    CHECK_INT(spw_sampler_sample(s, down, 3), 0);
    spw_sampler_free(s);

    p.repeat_penalty = 0.5f; /* a reward */
    s = make(p);
    spw_sampler_accept(s, 3);
    CHECK_INT(spw_sampler_sample(s, up, 4), 3);
    spw_sampler_free(s);

    p.repeat_last_n = 0, p.repeat_penalty = 2;
    s = make(p);
    spw_sampler_accept(s, 1);
    CHECK_INT(spw_sampler_sample(s, up, 4), 1);
    spw_sampler_free(s);
}

/* The penalty comes before the filters: it decides who is among the best. */
static void test_penalty_before_filters(void)
{
    const float l[3] = {3, 2, 1.8f};
    spw_sampler_params p = plain;
    p.repeat_penalty = 2, p.top_k = 2;
    spw_sampler *s = make(p);
    spw_sampler_accept(s, 0);
    int counts[3];
    count_draws(s, l, 3, counts);
    CHECK_INT(counts[0], 0);
    CHECK(counts[1] > counts[2] && counts[2] > 0);
    spw_sampler_free(s);
}

/* ------------------------------------------------------------------------------------- params ---- */

static void test_seeds(void)
{
    float l[20] = {0};
    spw_sampler_params p = plain;
    int same = 0;
    p.seed = 42;
    spw_sampler *a = make(p), *b = make(p);
    p.seed = 43;
    spw_sampler *c = make(p);
    for (int i = 0; i < 1000; i++) {
        int32_t id = spw_sampler_sample(a, l, 20);
        CHECK_INT(spw_sampler_sample(b, l, 20), id);
        same += spw_sampler_sample(c, l, 20) == id;
    }
    CHECK_NEAR(same, 50, 40);
    spw_sampler_free(a), spw_sampler_free(b), spw_sampler_free(c);
    spw_sampler_free(NULL);
}

static void check_bad(spw_sampler_params p, const char *part)
{
    spw_sampler *s = NULL;
    spw_err err = {SPW_OK, ""};
    size_t before = mem_in_use();
    CHECK_INT(spw_sampler_create(&s, &p, &err), SPW_E_ARG);
    CHECK_INT(err.code, SPW_E_ARG);
    CHECK_HAS(err.msg, part);
    CHECK(s == NULL && mem_in_use() == before);
}

static void test_bad_params(void)
{
    spw_sampler_params good = spw_sampler_default_params(), p;
    p = good, p.temp = -0.5f, check_bad(p, "temp must be a finite number of at least 0, not -0.5");
    p = good, p.temp = NAN, check_bad(p, "temp");
    p = good, p.temp = INFINITY, check_bad(p, "not inf");
    p = good, p.top_k = -3, check_bad(p, "top_k must be at least 0 (0: off), not -3");
    p = good, p.top_p = 0, check_bad(p, "top_p must be above 0 and at most 1 (1: off), not 0");
    p = good, p.top_p = 1.5f, check_bad(p, "not 1.5");
    p = good, p.top_p = NAN, check_bad(p, "top_p");
    p = good, p.min_p = -1, check_bad(p, "min_p must be 0..1 (0: off), not -1");
    p = good, p.min_p = 2, check_bad(p, "not 2");
    p = good, p.repeat_penalty = 0, check_bad(p, "repeat_penalty must be a finite number above 0 (1: off), not 0");
    p = good, p.repeat_penalty = INFINITY, check_bad(p, "repeat_penalty");
    p = good, p.repeat_last_n = -1, check_bad(p, "repeat_last_n must be at least 0, not -1");
}

static void test_defaults(void)
{
    spw_sampler *s = NULL;
    spw_err err;
    size_t before = mem_in_use();
    CHECK_OK(spw_sampler_create(&s, NULL, &err), err);
    spw_sampler_free(s);
    CHECK_INT(mem_in_use(), before);
    spw_sampler_params p = spw_sampler_default_params();
    CHECK_NEAR(p.temp, 0.8, 1e-6);
    CHECK_INT(p.top_k, 40);
    CHECK_NEAR(p.top_p, 0.95, 1e-6);
    CHECK_NEAR(p.min_p, 0.05, 1e-6);
    CHECK_NEAR(p.repeat_penalty, 1, 0);
    CHECK_INT(p.repeat_last_n, 64);
}

/* After the first call with a vocabulary, sampling takes no memory. */
static void test_no_allocation(void)
{
    float l[100];
    uint64_t state = 9;
    for (int i = 0; i < 100; i++) l[i] = test_uniform(&state);
    spw_sampler_params p = spw_sampler_default_params();
    p.repeat_penalty = 1.1f;
    spw_sampler *s = make(p);
    spw_sampler_sample(s, l, 100);
    size_t before = mem_in_use();
    mem_fail_after(0, false);
    for (int i = 0; i < 100; i++) spw_sampler_accept(s, spw_sampler_sample(s, l, 100));
    CHECK(mem_alloc(8) == NULL); /* the failure is still there: nobody asked */
    CHECK_INT(mem_in_use(), before);
    spw_sampler_free(s);
}

int main(void)
{
    RUN(test_greedy);
    RUN(test_best_of_any_size);
    RUN(test_no_memory);
    RUN(test_filters);
    RUN(test_filter_order);
    RUN(test_temperature);
    RUN(test_equal_and_infinite);
    RUN(test_large_vocabulary);
    RUN(test_penalty);
    RUN(test_penalty_before_filters);
    RUN(test_seeds);
    RUN(test_bad_params);
    RUN(test_defaults);
    RUN(test_no_allocation);
    return test_done();
}
