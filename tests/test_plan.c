/* test_plan.c - policies and plans: what is chosen, what is read, and that every position of a choice is in exactly one item. */
#include <math.h>

#include "mem.h"
#include "plan.h"
#include "test.h"

static spw_pool *pool;
static const kern_table *kern;

static spw_status build(plan *p, const plan_rows *rows, size_t n_rows, const plan_shape *shape, spw_err *err)
{
    spw_status s = plan_begin(p, rows, n_rows, shape, pool, kern, err);
    return s ? s : plan_choose(p, pool, err);
}

static kv_store *new_store(uint32_t n_head_kv, kv_type type)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.type = type, .n_layer = 1, .n_head_kv = &n_head_kv, .dim = 16, .kern = kern}, &err), err);
    return st;
}

static void test_bad_policies(void)
{
    spw_err err;
    policy p;
    policy_params pp = {.n_layer = 1, .window = 1};
    CHECK_INT(policy_init(&p, "magic", &pp, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "magic");
    CHECK_HAS(err.msg, "full, window");
    const policy_params bad[] = {{.window = 0}, {.window = 1, .block = 24}, {.window = 1, .budget = 7.5}, {.window = 1, .budget = NAN}, {.window = 1, .threshold = 1},
                                 {.window = 1, .error = -1}, {.window = 1, .beta = -0.5}, {.window = 1, .beta = INFINITY}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_INT(policy_init(&p, "full", &bad[i], &err), SPW_E_ARG);
}

/* Which policy each layer has; specs that make no sense. */
static void test_layers(void)
{
    spw_err err;
    const uint32_t heads[6] = {1, 1, 1, 1, 1, 1};
    policy_params pp = {.n_layer = 6, .n_head_kv = heads, .group = 1, .dim = 16, .window = 1};
    const struct {
        const char *spec, *names[6];
    } good[] = {
        {"window", {"window", "window", "window", "window", "window", "window"}},
        {"2=window", {"full", "full", "window", "full", "full", "full"}},
        {"0-1=full,window", {"full", "full", "window", "window", "window", "window"}},
        {"window,1-4=full,3=window", {"window", "full", "full", "window", "full", "window"}},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        policy_layers l, copy;
        CHECK_OK(policy_layers_init(&l, good[i].spec, &pp, &err), err);
        CHECK_OK(policy_layers_fork(&copy, &l, &err), err);
        for (uint32_t j = 0; j < 6; j++) {
            CHECK_STR(policy_of_layer(&l, j)->ops->name, good[i].names[j]);
            CHECK(policy_of_layer(&copy, j)->ops == policy_of_layer(&l, j)->ops);
        }
        policy_layers_done(&l);
        policy_layers_done(&copy);
    }
    const char *bad[] = {"", "window,", "6=full", "0-6=full", "3-2=full", "a=full", "1-=full", "=full", "1=", "1=magic", "0-5=window=full", "99999999999999999999=full"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        policy_layers l;
        CHECK_INT(policy_layers_init(&l, bad[i], &pp, &err), SPW_E_ARG);
    }
}

/* A choice of several sets counts what they hold together, once. */
static void test_choice_rows(void)
{
    spw_err err;
    policy_choice c = {0};
    uint64_t n;
    const uint32_t copied[] = {3, 50, 51};
    CHECK_OK(policy_choice_reset(&c, 4, &err), err);
    CHECK_OK(policy_choice_add(&c, 0, 10, &err), err);
    CHECK_OK(policy_choice_add(&c, 10, 5, &err), err);
    CHECK_INT(c.n, 1);
    CHECK_OK(policy_choice_rows(&c, 4, 100, &n, &err), err);
    CHECK_INT(n, 11);
    CHECK_OK(policy_choice_set(&c, 1, 2, &err), err);
    CHECK_OK(policy_choice_add(&c, 12, 8, &err), err);
    CHECK_OK(policy_choice_add(&c, 40, 2, &err), err);
    CHECK_OK(policy_choice_set(&c, 3, 1, &err), err);
    c.sets[2].positions = copied;
    c.sets[2].n_rows = 3;
    CHECK_OK(policy_choice_rows(&c, 4, 100, &n, &err), err);
    CHECK_INT(n, 16 + 2 + 2);
    CHECK_OK(policy_choice_rows(&c, 0, 51, &n, &err), err);
    CHECK_INT(n, 20 + 2 + 1);
    policy_choice_free(&c);
}

/* No item mixes rows that are seen sealed with rows that are not; the rows of a prompt block see the same ones sealed. */
static void check_borders(const plan *p, const plan_rows *rows)
{
    for (size_t i = 0; i < p->n_items; i++) {
        const plan_item *it = &p->items[i];
        const plan_rows *r = &rows[it->rows];
        uint64_t first = r->first_pos + it->first_row, border = kv_border(r->seq, first);
        if (it->kind == PLAN_PROMPT) CHECK(kv_border(r->seq, first + it->n - 1) == border);
        else if (it->kind == PLAN_SPAN) CHECK(it->first_pos >= border || it->first_pos + it->n <= border);
        else CHECK(it->ranges[0].first >= border || it->ranges[it->n_ranges - 1].first + it->ranges[it->n_ranges - 1].n <= border);
    }
}

/* Rows of a prompt and of decode sessions: every (row, head, position) that must be attended is in exactly one item. */
static void check_plan(const plan *p, const plan_rows *rows, size_t n_rows, uint32_t heads)
{
    for (size_t i = 0; i < n_rows; i++) {
        for (uint32_t h = 0; h < heads; h++) {
            uint64_t covered = 0, next = 0;
            for (size_t k = 0; k < p->n_items; k++) {
                const plan_item *it = &p->items[k];
                if (it->rows != i || it->head != h) continue;
                if (it->kind == PLAN_PROMPT) covered += it->n;
                else CHECK(it->n >= 1 && it->n <= KERN_SPAN);
                if (it->kind == PLAN_SPAN) CHECK(it->first_pos / KERN_SPAN == (it->first_pos + it->n - 1) / KERN_SPAN);
            }
            if (!rows[i].decode) CHECK_INT(covered, rows[i].n_rows);
            for (size_t m = 0; m < p->n_parts; m++) {
                const plan_merge *merge = &p->merges[m];
                if (merge->rows != i || merge->head != h) continue;
                for (size_t k = merge->first_item; k < merge->first_item + merge->n_items; k++) {
                    const plan_item *it = &p->items[k];
                    CHECK(it->rows == i && it->head == h);
                    policy_range one = {it->first_pos, it->n};
                    size_t n_ranges = it->kind == PLAN_GATHER ? it->n_ranges : 1;
                    for (size_t r = 0; r < n_ranges; r++) {
                        policy_range range = it->kind == PLAN_GATHER ? it->ranges[r] : one;
                        CHECK(range.first >= next);
                        next = range.first + range.n;
                        covered += range.n;
                    }
                }
            }
            if (rows[i].decode) {
                const policy *pol = policy_of_layer(rows[i].policies, 0);
                uint64_t n_pos = rows[i].first_pos + 1, middle = policy_middle(&pol->params, n_pos);
                CHECK_INT(covered, !strcmp(pol->ops->name, "full") ? n_pos : n_pos - middle);
            }
        }
    }
}

static void run_plans(kv_type type)
{
    spw_err err;
    kv_store *st = new_store(3, type);
    policy_layers full, window;
    policy_params pp = {.n_layer = 1, .sink = 64, .window = 256};
    CHECK_OK(policy_layers_init(&full, "full", &pp, &err), err);
    CHECK_OK(policy_layers_init(&window, "window", &pp, &err), err);
    kv_seq *s[3];
    for (int i = 0; i < 3; i++) {
        CHECK_OK(kv_seq_create(&s[i], st, 5000, &err), err);
        CHECK_OK(kv_seq_reserve(s[i], 5000, &err), err);
    }
    uint64_t seed = 11;
    plan p = {0};
    for (int round = 0; round < 300; round++) {
        plan_rows rows[3];
        uint32_t row = 0;
        for (uint32_t i = 0; i < 3; i++) {
            bool decode = test_rand(&seed) % 2;
            uint32_t n = decode ? 1 : 1 + (uint32_t)(test_rand(&seed) % 300);
            rows[i] = (plan_rows){.seq = s[i], .policies = i % 2 ? &window : &full, .first_pos = test_rand(&seed) % 4000, .first_row = row, .n_rows = n, .decode = decode};
            row += n;
        }
        CHECK_OK(build(&p, rows, 3, &(plan_shape){.n_head_kv = 3, .group = 1 + (uint32_t)(test_rand(&seed) % 16)}, &err), err);
        check_plan(&p, rows, 3, 3);
        check_borders(&p, rows);
        for (int i = 0; i < 3; i++) {
            uint64_t row_bytes = 16 * (type == KV_Q8 ? 2 : 4), middle = rows[i].decode ? policy_middle(&pp, rows[i].first_pos + 1) * 3 * row_bytes : 0;
            CHECK_INT(p.reads[i].middle_bytes, middle);
            CHECK_INT(p.reads[i].row_bytes, i % 2 ? 0 : middle);
        }
        if (test_bad) break;
    }
    plan_free(&p);
    policy_layers_done(&full);
    policy_layers_done(&window);
    for (int i = 0; i < 3; i++) kv_seq_free(s[i]);
    kv_store_free(st);
}

static void test_plans(void)
{
    run_plans(KV_F16);
    run_plans(KV_Q8);
}

/* Pieces end at multiples of KERN_SPAN, at the border, and where the positions do. */
static void test_cuts(void)
{
    CHECK_INT(plan_cut(0, 2000, 0), KERN_SPAN);
    CHECK_INT(plan_cut(0, 100, 0), 100);
    CHECK_INT(plan_cut(KERN_SPAN, 2000, KERN_SPAN + 128), KERN_SPAN + 128);
    CHECK_INT(plan_cut(KERN_SPAN + 128, KERN_SPAN + 130, KERN_SPAN + 128), KERN_SPAN + 130);
    CHECK_INT(plan_cut(5, 2000, 3 * KERN_SPAN), KERN_SPAN);
    CHECK_INT(plan_cut(130, 140, 256), 140);
}

/* A prompt of many blocks comes out longest first. */
static void test_longest_first(void)
{
    spw_err err;
    kv_store *st = new_store(1, KV_F16);
    kv_seq *s = NULL;
    CHECK_OK(kv_seq_create(&s, st, 1000, &err), err);
    CHECK_OK(kv_seq_reserve(s, 1000, &err), err);
    plan p = {0};
    plan_rows rows = {.seq = s, .first_pos = 0, .n_rows = 512};
    CHECK_OK(build(&p, &rows, 1, &(plan_shape){.n_head_kv = 1, .group = 4}, &err), err);
    for (size_t i = 1; i < p.n_items; i++) CHECK(p.items[i].first_row < p.items[i - 1].first_row);
    plan_free(&p);
    kv_seq_free(s);
    kv_store_free(st);
}

static void test_failing_allocator(void)
{
    spw_err err;
    kv_store *st = new_store(2, KV_F16);
    kv_seq *s = NULL;
    policy_layers full;
    policy_params pp = {.n_layer = 1, .sink = 4, .window = 4};
    CHECK_OK(policy_layers_init(&full, "full", &pp, &err), err);
    CHECK_OK(kv_seq_create(&s, st, 100000, &err), err);
    CHECK_OK(kv_seq_reserve(s, 100000, &err), err);
    plan_rows rows = {.seq = s, .policies = &full, .first_pos = 99999, .n_rows = 1, .decode = true};
    size_t before = mem_in_use();
    int refused = 0;
    for (long n = 0; n < 40; n++) {
        plan p = {0};
        mem_fail_after(n, true);
        spw_status status = build(&p, &rows, 1, &(plan_shape){.n_head_kv = 2, .group = 1}, &err);
        mem_fail_after(-1, false);
        if (status) {
            CHECK_INT(status, SPW_E_NOMEM);
            refused++;
        }
        plan_free(&p);
    }
    CHECK(refused > 3 && refused < 40);
    CHECK_INT(mem_in_use(), before);
    policy_layers_done(&full);
    kv_seq_free(s);
    kv_store_free(st);
}

int main(void)
{
    spw_err err;
    CHECK_OK(pool_create(&pool, 2, &err), err);
    CHECK_OK(kern_select(&kern, &err), err);
    RUN(test_bad_policies);
    RUN(test_layers);
    RUN(test_choice_rows);
    RUN(test_plans);
    RUN(test_cuts);
    RUN(test_longest_first);
    RUN(test_failing_allocator);
    pool_free(pool);
    return test_done();
}
