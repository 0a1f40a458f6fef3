/* test_plan.c - policies and plans: what is chosen, what is read, and that every position of a choice is in exactly one item. */
#include "mem.h"
#include "plan.h"
#include "test.h"

static kv_store *new_store(uint32_t n_head_kv, kv_type type)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.type = type, .n_layer = 1, .n_head_kv = &n_head_kv, .dim = 16}, &err), err);
    return st;
}

/* Every policy of the table, random lengths, sinks and windows: ascending, in range, sink and window inside. */
static void test_policies_keep_sink_and_window(void)
{
    spw_err err;
    uint64_t seed = 3;
    for (size_t i = 0; policy_at(i); i++) {
        CHECK(policy_find(policy_at(i)->name) == policy_at(i));
        CHECK_HAS(spw_kv_policies(), policy_at(i)->name);
        for (int round = 0; round < 2000; round++) {
            policy p;
            policy_params pp = {.n_layer = 1, .sink = (uint32_t)(test_rand(&seed) % 70), .window = 1 + (uint32_t)(test_rand(&seed) % 300)};
            CHECK_OK(policy_init(&p, policy_at(i)->name, &pp, &err), err);
            uint64_t n_pos = 1 + test_rand(&seed) % 1000;
            policy_choice c = {0};
            CHECK_OK(p.ops->select(p.state, &p.params, &(policy_query){.n_pos = n_pos, .n_q = 1}, &c, &err), err);
            static bool chosen[1001];
            memset(chosen, 0, sizeof chosen);
            uint64_t end = 0;
            for (size_t r = 0; r < c.n; r++) {
                CHECK(c.ranges[r].n > 0 && (r == 0 || c.ranges[r].first > end));
                end = c.ranges[r].first + c.ranges[r].n;
                CHECK(end <= n_pos);
                for (uint64_t pos = c.ranges[r].first; pos < end && pos < 1000; pos++) chosen[pos] = true;
            }
            for (uint64_t pos = 0; pos < n_pos; pos++) {
                if (pos < pp.sink || pos + pp.window >= n_pos) CHECK(chosen[pos]);
                else CHECK_INT(chosen[pos], !strcmp(p.ops->name, "full"));
            }
            policy_choice_free(&c);
            policy_done(&p);
        }
    }
}

static void test_bad_policies(void)
{
    spw_err err;
    policy p;
    policy_params pp = {.n_layer = 1, .window = 1};
    CHECK_INT(policy_init(&p, "magic", &pp, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "magic");
    CHECK_HAS(err.msg, "full, window");
    pp.window = 0;
    CHECK_INT(policy_init(&p, "full", &pp, &err), SPW_E_ARG);
}

/* No item mixes rows that are seen sealed with rows that are not; the rows of a prompt block see the same ones sealed. */
static void check_borders(const plan *p, const plan_rows *rows)
{
    for (size_t i = 0; i < p->n_items; i++) {
        const plan_item *it = &p->items[i];
        const plan_rows *r = &rows[it->rows];
        uint64_t first = r->first_pos + it->first_row, border = kv_border(r->seq, first);
        if (it->kind == PLAN_PROMPT) CHECK(kv_border(r->seq, first + it->n - 1) == border);
        else CHECK(it->first_pos >= border || it->first_pos + it->n <= border);
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
                else CHECK(it->n >= 1 && it->n <= KERN_SPAN && it->first_pos / KERN_SPAN == (it->first_pos + it->n - 1) / KERN_SPAN);
            }
            if (!rows[i].decode) CHECK_INT(covered, rows[i].n_rows);
            for (size_t m = 0; m < p->n_merges; m++) {
                if (p->merges[m].rows != i || p->merges[m].head != h) continue;
                for (uint32_t part = 0; part < p->merges[m].n_partials; part++) {
                    for (size_t k = 0; k < p->n_items; k++) {
                        const plan_item *it = &p->items[k];
                        if (it->kind != PLAN_DECODE || it->partial != p->merges[m].first_partial + part) continue;
                        CHECK(it->rows == i && it->head == h && it->first_pos >= next);
                        next = it->first_pos + it->n;
                        covered += it->n;
                    }
                }
            }
            if (rows[i].decode) {
                uint64_t n_pos = rows[i].first_pos + 1, middle = policy_middle(&rows[i].policy->params, n_pos);
                CHECK_INT(covered, !strcmp(rows[i].policy->ops->name, "full") ? n_pos : n_pos - middle);
            }
        }
    }
}

static void run_plans(kv_type type)
{
    spw_err err;
    kv_store *st = new_store(3, type);
    policy full, window;
    policy_params pp = {.n_layer = 1, .sink = 64, .window = 256};
    CHECK_OK(policy_init(&full, "full", &pp, &err), err);
    CHECK_OK(policy_init(&window, "window", &pp, &err), err);
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
            rows[i] = (plan_rows){.seq = s[i], .policy = i % 2 ? &window : &full, .first_pos = test_rand(&seed) % 4000, .first_row = row, .n_rows = n, .decode = decode};
            row += n;
        }
        CHECK_OK(plan_build(&p, rows, 3, &(plan_shape){.n_head_kv = 3, .group = 1 + (uint32_t)(test_rand(&seed) % 16)}, &err), err);
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
    CHECK_OK(plan_build(&p, &rows, 1, &(plan_shape){.n_head_kv = 1, .group = 4}, &err), err);
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
    policy full;
    policy_params pp = {.n_layer = 1, .sink = 4, .window = 4};
    CHECK_OK(policy_init(&full, "full", &pp, &err), err);
    CHECK_OK(kv_seq_create(&s, st, 100000, &err), err);
    CHECK_OK(kv_seq_reserve(s, 100000, &err), err);
    plan_rows rows = {.seq = s, .policy = &full, .first_pos = 99999, .n_rows = 1, .decode = true};
    size_t before = mem_in_use();
    int refused = 0;
    for (long n = 0; n < 40; n++) {
        plan p = {0};
        mem_fail_after(n, true);
        spw_status status = plan_build(&p, &rows, 1, &(plan_shape){.n_head_kv = 2, .group = 1}, &err);
        mem_fail_after(-1, false);
        if (status) {
            CHECK_INT(status, SPW_E_NOMEM);
            refused++;
        }
        plan_free(&p);
    }
    CHECK(refused > 3 && refused < 40);
    CHECK_INT(mem_in_use(), before);
    kv_seq_free(s);
    kv_store_free(st);
}

int main(void)
{
    RUN(test_policies_keep_sink_and_window);
    RUN(test_bad_policies);
    RUN(test_plans);
    RUN(test_cuts);
    RUN(test_longest_first);
    RUN(test_failing_allocator);
    return test_done();
}
