/* test_sparse.c - every policy through the whole engine, on the tiny models of tests/data: the same bits for any number of threads, any company, after forks; a budget of
 * everything is dense, bit for bit; watching a session changes nothing and tells the truth; an allocation that fails changes nothing.
 *
 * Uses the public header only, but for the failing allocator. */
#include <math.h>

#include "mem.h"
#include "spillway.h"
#include "test.h"

enum { N_TOKENS = 900, N_PROMPT = 800, MAX_POLICIES = 12 };

static int32_t tokens[N_TOKENS];
static spw_kv_type kv_type;
static char names[MAX_POLICIES][24];
static int n_names;

static void read_names(void)
{
    const char *p = spw_kv_policies();
    while (*p && n_names < MAX_POLICIES) {
        size_t len = strcspn(p, ",");
        snprintf(names[n_names++], sizeof names[0], "%.*s", (int)len, p);
        p += len;
        p += strspn(p, ", ");
    }
}

static spw_engine *open_model(const char *name, int threads)
{
    char path[200];
    spw_err err = {0};
    const char *dir = getenv("SPILLWAY_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s.gguf", dir ? dir : "tests/data", name);
    spw_engine *e = NULL;
    spw_engine_params p = spw_engine_default_params();
    p.n_threads = threads;
    p.kv_type = kv_type;
    CHECK_OK(spw_engine_open(&e, path, &p, &err), err);
    if (!e) exit(1);
    return e;
}

/* Small sink and window, so that there is a middle. */
static spw_session_params params_of(const char *policy, double budget)
{
    spw_session_params p = spw_session_default_params();
    p.kv_policy = policy;
    p.n_ctx = N_TOKENS;
    p.kv_sink = 16;
    p.kv_window = 140;
    p.sparse_min_ctx = 0;
    p.kv_budget = budget;
    return p;
}

static spw_session *session_with(spw_engine *e, spw_session_params p, size_t n_prompt)
{
    spw_err err = {0};
    spw_session *s = NULL;
    CHECK_OK(spw_session_create(&s, e, &p, &err), err);
    CHECK_OK(spw_session_eval(s, tokens, n_prompt, &err), err);
    return s;
}

/* Appends tokens[from .. to) as generated ones; the logits of all of them chained in a hash. */
static uint64_t decode(spw_session *s, size_t from, size_t to, size_t n_vocab)
{
    spw_err err = {0};
    uint64_t hash = 0;
    for (size_t i = from; i < to; i++) {
        CHECK_OK(spw_session_decode(s, tokens[i], &err), err);
        hash = spw_hash(hash, spw_session_logits(s), n_vocab * sizeof(float));
    }
    return hash;
}

static size_t vocab_of(const spw_engine *e)
{
    return (size_t)spw_vocab_size(spw_engine_vocab(e));
}

/* What a policy answers in a mixed life: generated rows, a turn appended, generated rows again, a fork, positions forgotten. */
static uint64_t whole_life(spw_engine *e, const char *policy, bool company)
{
    spw_err err = {0};
    size_t n_vocab = vocab_of(e);
    spw_session *s = session_with(e, params_of(policy, -1), 500), *other = company ? session_with(e, params_of("window", -1), 300) : NULL, *fork = NULL;
    uint64_t hash = decode(s, 500, 520, n_vocab);
    if (other) {
        spw_work work[] = {{.session = other, .tokens = tokens + 300, .n = 40}, {.session = s, .tokens = tokens + 520, .n = 1, .kind = SPW_DECODE}};
        CHECK_OK(spw_step(e, work, 2, &err), err);
        CHECK_OK(spw_session_decode(other, tokens[340], &err), err);
    } else {
        CHECK_OK(spw_session_decode(s, tokens[520], &err), err);
    }
    CHECK_OK(spw_session_eval(s, tokens + 521, 200, &err), err);
    hash ^= decode(s, 721, 730, n_vocab);
    CHECK_OK(spw_session_fork(&fork, s, NULL, &err), err);
    uint64_t a = decode(s, 730, 745, n_vocab), b = decode(fork, 730, 745, n_vocab);
    CHECK(a == b);
    hash ^= a;
    CHECK_OK(spw_session_truncate(s, 640, &err), err);
    hash ^= decode(s, 640, 660, n_vocab);
    CHECK_OK(spw_engine_check(e, &err), err);
    spw_session_free(fork);
    spw_session_free(other);
    spw_session_free(s);
    return hash;
}

static void test_same_bits(void)
{
    for (int i = 0; i < n_names; i++) {
        spw_engine *one = open_model("tiny-llama3", 1), *three = open_model("tiny-llama3", 3);
        uint64_t want = whole_life(one, names[i], false);
        CHECK(whole_life(one, names[i], true) == want);
        CHECK(whole_life(three, names[i], true) == want);
        spw_engine_close(one);
        spw_engine_close(three);
    }
}

static void test_whole_budget_is_dense(void)
{
    spw_engine *e = open_model("tiny-qwen2", 2);
    size_t n_vocab = vocab_of(e);
    spw_session *full = session_with(e, params_of("full", -1), N_PROMPT);
    uint64_t want = decode(full, N_PROMPT, N_PROMPT + 20, n_vocab);
    spw_session_free(full);
    for (int i = 0; i < n_names; i++) {
        if (!strcmp(names[i], "window")) continue;
        spw_session_params p = params_of(names[i], 1.0), short_context = params_of(names[i], 0.05);
        p.kv_beta = 0;
        short_context.sparse_min_ctx = N_TOKENS + 1;
        spw_session *s = session_with(e, p, N_PROMPT), *t = session_with(e, short_context, N_PROMPT);
        CHECK(decode(s, N_PROMPT, N_PROMPT + 20, n_vocab) == want);
        CHECK(decode(t, N_PROMPT, N_PROMPT + 20, n_vocab) == want);
        spw_session_stats stats = spw_session_get_stats(s);
        CHECK(stats.read_rows_bytes == stats.middle_bytes && stats.middle_bytes > 0);
        spw_session_free(s);
        spw_session_free(t);
    }
    spw_engine_close(e);
}

typedef struct watched {
    const char *policy;
    uint64_t pos, n_seen, middle, rows, side;
    double mass, error;
    spw_session_params params;
} watched;

/* Whether the sets of a KV head hold a position for a query head; never twice. */
static bool holds(const spw_observed_head *h, uint32_t q, uint64_t pos)
{
    int times = 0;
    for (size_t i = 0; i < h->n_sets; i++) {
        const spw_observed_set *s = &h->sets[i];
        if (q < s->q_first || q >= s->q_first + s->n_q) continue;
        for (size_t r = 0; r < s->n_ranges; r++) times += pos >= s->ranges[r].first && pos < s->ranges[r].first + s->ranges[r].n;
        for (size_t r = 0; r < s->n_positions; r++) times += s->positions[r] == pos;
    }
    CHECK(times <= 1);
    return times == 1;
}

static void watch(void *ctx, const spw_observation *o)
{
    watched *w = ctx;
    CHECK_INT(o->pos, w->pos);
    uint32_t group = o->n_head / o->n_head_kv;
    for (uint32_t h = 0; h < o->n_head; h++) {
        if (o->mass) {
            CHECK(o->mass[h] >= 0 && o->mass[h] <= 1 && o->output_error[h] >= 0);
            w->mass += (double)o->mass[h] / o->n_head;
            w->error += (double)o->output_error[h] / o->n_head;
        }
        CHECK(o->mass_estimate[h] <= 1.0001f);
        const spw_observed_head *kv = &o->heads[h / group];
        for (uint64_t pos = 0; pos < w->params.kv_sink; pos++) CHECK(holds(kv, h % group, pos));
        for (uint64_t pos = o->pos + 1 - w->params.kv_window; pos <= o->pos; pos++) CHECK(holds(kv, h % group, pos));
        CHECK(!holds(kv, h % group, o->pos + 1));
    }
    for (uint32_t h = 0; h < o->n_head_kv; h++) {
        w->middle += o->heads[h].middle_bytes;
        w->rows += o->heads[h].row_bytes;
        w->side += o->heads[h].side_bytes;
    }
    w->n_seen++;
}

static void test_watching(void)
{
    spw_engine *e = open_model("tiny-llama3", 2);
    size_t n_vocab = vocab_of(e);
    for (int i = 0; i < n_names; i++) {
        watched w = {.policy = names[i], .pos = N_PROMPT, .params = params_of(names[i], 0.05)};
        spw_session *seen = session_with(e, w.params, N_PROMPT), *alone = session_with(e, w.params, N_PROMPT);
        spw_session_observe(seen, watch, &w, true);
        for (; w.pos < N_PROMPT + 10; w.pos++) CHECK(decode(seen, w.pos, w.pos + 1, n_vocab) == decode(alone, w.pos, w.pos + 1, n_vocab));
        spw_session_stats stats = spw_session_get_stats(seen);
        CHECK(w.n_seen > 0 && stats.middle_bytes == w.middle && stats.read_rows_bytes == w.rows && stats.read_bytes == w.rows + w.side);
        bool exact = !strcmp(names[i], "full");
        if (exact) CHECK(fabs(w.mass - (double)w.n_seen) < 1e-9 && w.error < 1e-9);
        if (!strcmp(names[i], "window")) CHECK(w.mass < 0.99 * (double)w.n_seen && w.error > 0);
        uint64_t before = w.n_seen;
        spw_session_observe(seen, NULL, NULL, false);
        decode(seen, w.pos, w.pos + 1, n_vocab);
        CHECK_INT(w.n_seen, before);
        spw_session_free(seen);
        spw_session_free(alone);
    }
    spw_engine_close(e);
}

/* Layers with policies of their own: reads are those of some layers only. */
static void test_layers(void)
{
    spw_err err = {0};
    spw_engine *e = open_model("tiny-llama3", 2);
    spw_session *s = session_with(e, params_of("window,0=full", -1), N_PROMPT), *bad = NULL;
    decode(s, N_PROMPT, N_PROMPT + 3, vocab_of(e));
    spw_session_stats stats = spw_session_get_stats(s);
    uint32_t n_layer = spw_engine_info(e)->n_layer;
    CHECK_STR(stats.kv_policy, "mixed");
    CHECK_INT(stats.read_bytes * n_layer, stats.middle_bytes);
    spw_session_params p = params_of("window,99=full", -1);
    CHECK_INT(spw_session_create(&bad, e, &p, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "99=full");
    spw_session_free(s);
    spw_engine_close(e);
}

/* Every allocation of a turn refused in turn: the session goes on as if nothing had been tried. */
static void test_failing_allocator(void)
{
    for (int i = 0; i < n_names; i++) {
        spw_engine *e = open_model("tiny-qwen2", 2);
        size_t n_vocab = vocab_of(e);
        spw_session *calm = session_with(e, params_of(names[i], 0.05), 700);
        decode(calm, 700, 705, n_vocab);
        uint64_t want = decode(calm, 705, 715, n_vocab);
        spw_session_free(calm);
        spw_engine_close(e);
        e = open_model("tiny-qwen2", 2);
        spw_session *s = session_with(e, params_of(names[i], 0.05), 700);
        for (size_t t = 700; t < 705; t++) {
            for (long n = 0;; n++) {
                spw_err err = {0};
                mem_fail_after(n, true);
                spw_status status = spw_session_decode(s, tokens[t], &err);
                mem_fail_after(-1, false);
                if (!status) break;
                CHECK_INT(status, SPW_E_NOMEM);
                CHECK_INT(spw_session_pos(s), t);
                CHECK(n < 5000);
                if (n >= 5000) break;
            }
        }
        CHECK(decode(s, 705, 715, n_vocab) == want);
        spw_session_free(s);
        spw_engine_close(e);
    }
}

int main(void)
{
    uint64_t seed = 5;
    for (size_t i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)(test_rand(&seed) % 200 + 3);
    read_names();
    CHECK(n_names >= 2);
    for (kv_type = SPW_KV_F16; kv_type <= SPW_KV_Q8; kv_type++) {
        RUN(test_same_bits);
        RUN(test_whole_budget_is_dense);
        RUN(test_watching);
        RUN(test_failing_allocator);
    }
    kv_type = SPW_KV_F16;
    RUN(test_layers);
    return test_done();
}
