/* test_engine.c - the engine's promises on the tiny models of tests/data: the same bits for any number of threads, any cutting of the prompt, any
 * company in the step, after forks and truncations; policies; limits; failures.  All of it with K and V as halves, and again with bytes.
 *
 * A token has other bits as part of a prompt than as a generated one where prompts attend in integers (kern_many): there the two are compared with a tolerance, and sequences
 * of both kinds have a reference of their own.
 *
 * Uses the public header only, but for the failing allocator and the question which kernels run. */
#include <fenv.h>

#include "kern.h"
#include "mem.h"
#include "spillway.h"
#include "test.h"

enum { N_TOKENS = 700 }; /* more than one span of attention, several prompt blocks */

static const char *const models[] = {"tiny-llama3", "tiny-linear", "tiny-yarn", "tiny-qwen2", "tiny-qwen3"};
enum { N_MODELS = sizeof models / sizeof models[0] };

static int32_t tokens[N_TOKENS];
static spw_kv_type kv_type;

static spw_engine *open_model(const char *name, int threads, int batch)
{
    char path[200];
    spw_err err = {0};
    const char *dir = getenv("SPILLWAY_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s.gguf", dir ? dir : "tests/data", name);
    spw_engine *e = NULL;
    spw_engine_params p = {.n_threads = threads, .n_batch = batch, .kv_type = kv_type};
    CHECK_OK(spw_engine_open(&e, path, &p, &err), err);
    if (!e) exit(1);
    return e;
}

static spw_session *new_session(spw_engine *e, const char *policy, uint64_t n_ctx)
{
    spw_err err = {0};
    spw_session *s = NULL;
    spw_session_params p = spw_session_default_params();
    p.kv_policy = policy;
    p.n_ctx = n_ctx;
    CHECK_OK(spw_session_create(&s, e, &p, &err), err);
    return s;
}

static bool same_logits(const spw_session *s, const float *want, size_t n_vocab)
{
    const float *got = spw_session_logits(s);
    return got && !memcmp(got, want, n_vocab * sizeof *want);
}

/* Logits of every position of tokens, evaluated as one prompt with one thread: what everything else must equal. */
static float *all_logits(const char *name)
{
    spw_err err = {0};
    spw_engine *e = open_model(name, 1, 0);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    float *out = malloc(N_TOKENS * n_vocab * sizeof *out);
    spw_session *s = new_session(e, "full", N_TOKENS);
    CHECK_OK(spw_step(e, &(spw_work){.session = s, .tokens = tokens, .n = N_TOKENS, .logits = out, .n_logits = N_TOKENS}, 1, &err), err);
    for (size_t i = 0; i < N_TOKENS * n_vocab; i++) CHECK(isfinite(out[i]) || (test_bad > 10));
    CHECK(same_logits(s, out + (N_TOKENS - 1) * n_vocab, n_vocab));
    spw_session_free(s);
    spw_engine_close(e);
    return out;
}

static double distance(const float *a, const float *b, size_t n)
{
    double difference = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        difference += d * d;
        all += (double)a[i] * (double)a[i];
    }
    return difference / all;
}

/* Whether a token of a prompt and the same token generated may differ by rounding. */
static bool prompts_differ(void)
{
    const kern_table *kern;
    spw_err err;
    return kv_type == SPW_KV_F16 && !kern_select(&kern, &err) && kern->many_tile;
}

/* Logits of s against those of a prompt, s having generated. */
static bool agrees(const spw_session *s, const float *want, size_t n_vocab)
{
    const float *got = spw_session_logits(s);
    if (!prompts_differ()) return same_logits(s, want, n_vocab);
    return got && distance(got, want, n_vocab) < 5e-5;
}

/* Of a mixed sequence: positions of one kind from pos on, N_TOKENS - pos at most.  60 of 100 are prompt, the rest is generated. */
static size_t stretch(size_t pos, spw_row_kind *kind)
{
    size_t at = pos % 100, n = at < 60 ? 60 - at : 100 - at;
    *kind = at < 60 ? SPW_PROMPT : SPW_DECODE;
    return n < N_TOKENS - pos ? n : N_TOKENS - pos;
}

/* Logits of every position of a mixed sequence, one thread. */
static float *mixed_logits(const char *name)
{
    spw_err err = {0};
    spw_engine *e = open_model(name, 1, 0);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    float *out = malloc(N_TOKENS * n_vocab * sizeof *out);
    spw_session *s = new_session(e, "full", N_TOKENS);
    for (size_t pos = 0, n; pos < N_TOKENS; pos += n) {
        spw_work w = {.session = s, .tokens = tokens + pos, .logits = out + pos * n_vocab};
        n = stretch(pos, &w.kind);
        if (w.kind == SPW_DECODE) n = 1;
        w.n = w.n_logits = n;
        CHECK_OK(spw_step(e, &w, 1, &err), err);
    }
    spw_session_free(s);
    spw_engine_close(e);
    return out;
}

static void test_threads_and_cuts(void)
{
    spw_err err = {0};
    for (int m = 0; m < N_MODELS; m++) {
        float *whole = all_logits(models[m]), *mixed = mixed_logits(models[m]);
        for (int run = 0; run < (prompts_differ() ? 8 : 5); run++) { /* four of a prompt, the rest mixed */
            static const int batches[] = {512, 1, 7, 333};
            int threads = 1 + run % 4;
            const float *want = run < 4 ? whole : mixed;
            spw_engine *e = open_model(models[m], threads, batches[threads - 1]);
            size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
            spw_session *s = new_session(e, "full", 1000);
            uint64_t seed = 17 * (uint64_t)threads;
            for (size_t done = 0; done < N_TOKENS;) {
                spw_row_kind kind = SPW_PROMPT;
                size_t n = 1 + test_rand(&seed) % 90, most = run < 4 ? N_TOKENS - done : stretch(done, &kind);
                if (n > most) n = most;
                if (kind == SPW_DECODE) n = 1;
                if (kind == SPW_DECODE) CHECK_OK(spw_session_decode(s, tokens[done], &err), err);
                else CHECK_OK(spw_session_eval(s, tokens + done, n, &err), err);
                done += n;
                CHECK(same_logits(s, want + (done - 1) * n_vocab, n_vocab) || test_bad > 10);
            }
            CHECK_INT(spw_session_pos(s), N_TOKENS);
            CHECK_OK(spw_engine_check(e, &err), err);
            spw_session_free(s);
            spw_engine_close(e);
        }
        free(whole);
        free(mixed);
    }
}

/* Token by token is the whole prompt, also when the calling thread rounds upward by itself. */
static void test_decode_equals_prompt(void)
{
    spw_err err = {0};
    for (int m = 0; m < N_MODELS; m++) {
        float *want = all_logits(models[m]);
        spw_engine *e = open_model(models[m], 2, 64);
        size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
        spw_session *s = new_session(e, "full", N_TOKENS);
        for (size_t i = 0; i < N_TOKENS; i++) {
            fesetround(i % 2 ? FE_UPWARD : FE_TONEAREST);
            CHECK_OK(spw_session_decode(s, tokens[i], &err), err);
            CHECK_INT(fegetround(), i % 2 ? FE_UPWARD : FE_TONEAREST);
            fesetround(FE_TONEAREST);
            CHECK(agrees(s, want + i * n_vocab, n_vocab));
            if (test_bad > 10) break;
        }
        CHECK_INT(spw_session_decode(s, 1, &err), SPW_E_FULL);
        CHECK_HAS(err.msg, "700");
        spw_session_free(s);
        spw_engine_close(e);
        free(want);
    }
}

/* Prompts and generated rows of six sessions in the same steps, at random. */
static void test_company_does_not_matter(void)
{
    enum { N = 6 };
    spw_err err = {0};
    float *want = mixed_logits("tiny-qwen2");
    spw_engine *e = open_model("tiny-qwen2", 3, 50);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e)), done[N] = {0};
    spw_session *s[N];
    for (int i = 0; i < N; i++) s[i] = new_session(e, "full", N_TOKENS);
    uint64_t seed = 99;
    for (int step = 0; step < 90; step++) {
        spw_work work[N];
        size_t n_work = 0, who[N];
        for (size_t i = 0; i < N; i++) {
            spw_row_kind kind = SPW_PROMPT;
            size_t most = done[i] < N_TOKENS ? stretch(done[i], &kind) : 0, n = test_rand(&seed) % 2 ? 1 : test_rand(&seed) % 40;
            if (n > most) n = most;
            if (!n) continue;
            if (kind == SPW_DECODE) n = 1;
            who[n_work] = i;
            work[n_work++] = (spw_work){.session = s[i], .tokens = tokens + done[i], .n = n, .kind = kind};
            done[i] += n;
        }
        CHECK_OK(spw_step(e, work, n_work, &err), err);
        for (size_t k = 0; k < n_work; k++) CHECK(same_logits(s[who[k]], want + (done[who[k]] - 1) * n_vocab, n_vocab));
    }
    CHECK_OK(spw_engine_check(e, &err), err);
    for (int i = 0; i < N; i++) spw_session_free(s[i]);
    spw_engine_close(e);
    free(want);
}

static void test_forks_and_truncations(void)
{
    spw_err err = {0};
    float *want = all_logits("tiny-llama3");
    spw_engine *e = open_model("tiny-llama3", 2, 0);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    spw_session *a = new_session(e, "full", N_TOKENS), *b = NULL;
    CHECK_OK(spw_session_eval(a, tokens, 300, &err), err);
    CHECK_OK(spw_session_fork(&b, a, NULL, &err), err);
    CHECK(same_logits(b, want + 299 * n_vocab, n_vocab));
    int32_t other[50];
    for (int i = 0; i < 50; i++) other[i] = (tokens[i] + 1) % 256;
    CHECK_OK(spw_session_eval(b, other, 50, &err), err); /* b goes elsewhere, a must not notice */
    CHECK_OK(spw_session_eval(a, tokens + 300, 400, &err), err);
    CHECK(same_logits(a, want + 699 * n_vocab, n_vocab));
    CHECK_OK(spw_session_truncate(b, 300, &err), err);
    CHECK(!spw_session_logits(b));
    CHECK_OK(spw_session_eval(b, tokens + 300, 400, &err), err);
    CHECK(same_logits(b, want + 699 * n_vocab, n_vocab));
    CHECK_INT(spw_session_truncate(b, 701, &err), SPW_E_ARG);
    uint64_t kept = kv_type == SPW_KV_Q8 ? 128 : 10; /* bytes do not become the halves that they were: test_truncated_into_bytes */
    CHECK_OK(spw_session_truncate(b, kept, &err), err);
    CHECK_OK(spw_session_eval(b, tokens + kept, 1, &err), err);
    CHECK(same_logits(b, want + kept * n_vocab, n_vocab));
    CHECK_OK(spw_engine_check(e, &err), err);
    spw_session_free(a);
    CHECK_OK(spw_session_eval(b, tokens + kept + 1, N_TOKENS - 1 - kept, &err), err);
    CHECK(same_logits(b, want + 699 * n_vocab, n_vocab));
    spw_session_free(b);
    spw_engine_close(e);
    free(want);
}

/* A step of many passes that fails in any of them: the session is where it was, and goes on to the same bits. */
static void test_failed_steps(void)
{
    spw_err err = {0};
    float *want = all_logits("tiny-llama3");
    spw_engine *e = open_model("tiny-llama3", 2, 40);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    spw_session *s = new_session(e, "full", N_TOKENS);
    CHECK_OK(spw_session_eval(s, tokens, 100, &err), err);
    int refused = 0;
    for (long n = 0; spw_session_pos(s) == 100 && n < 100; n++) {
        mem_fail_after(n, true);
        spw_status st = spw_session_eval(s, tokens + 100, 500, &err);
        mem_fail_after(-1, false);
        CHECK_INT(st, spw_session_pos(s) == 100 ? SPW_E_NOMEM : SPW_OK);
        if (st) CHECK(same_logits(s, want + 99 * n_vocab, n_vocab));
        CHECK_OK(spw_engine_check(e, &err), err);
        refused += st != SPW_OK;
    }
    CHECK(refused > 0 || kv_type == SPW_KV_F16);
    CHECK(same_logits(s, want + 599 * n_vocab, n_vocab));
    CHECK_OK(spw_session_eval(s, tokens + 600, 100, &err), err);
    CHECK(same_logits(s, want + 699 * n_vocab, n_vocab));
    spw_session_free(s);
    spw_engine_close(e);
    free(want);
}

/* Mean square of the difference of two sets of logits, as a share of that of the first. */
/* Rows of a page that was full go on as what their bytes stand for: near what they were, the same for all who do it, and exact where the page was not full. */
static void test_truncated_into_bytes(void)
{
    spw_err err = {0};
    float *want = all_logits("tiny-qwen2");
    spw_engine *e = open_model("tiny-qwen2", 2, 0);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    spw_session *a = new_session(e, "full", N_TOKENS), *b = NULL;
    CHECK_OK(spw_session_eval(a, tokens, 300, &err), err);
    CHECK_OK(spw_session_fork(&b, a, NULL, &err), err);
    CHECK_OK(spw_session_truncate(a, 200, &err), err);
    CHECK_OK(spw_session_truncate(b, 200, &err), err);
    CHECK_OK(spw_engine_check(e, &err), err);
    CHECK_OK(spw_session_eval(a, tokens + 200, 70, &err), err);
    for (size_t i = 200; i < 270; i++) CHECK_OK(spw_session_decode(b, tokens[i], &err), err);
    CHECK(same_logits(b, spw_session_logits(a), n_vocab));
    CHECK(!same_logits(a, want + 269 * n_vocab, n_vocab));
    CHECK(distance(spw_session_logits(a), want + 269 * n_vocab, n_vocab) < 1e-3);
    CHECK_OK(spw_session_truncate(a, 128, &err), err);
    CHECK_OK(spw_session_eval(a, tokens + 128, 142, &err), err);
    CHECK(same_logits(a, want + 269 * n_vocab, n_vocab));
    CHECK_OK(spw_session_truncate(a, 260, &err), err);
    CHECK_OK(spw_session_eval(a, tokens + 260, 10, &err), err);
    CHECK(same_logits(a, want + 269 * n_vocab, n_vocab));
    spw_session_free(a);
    spw_session_free(b);
    spw_engine_close(e);
    free(want);
}

/* Bytes move logits, and not by much. */
static void test_bytes_are_near_halves(void)
{
    for (int m = 0; m < N_MODELS; m++) {
        spw_engine *e = open_model(models[m], 1, 0);
        size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
        float *bytes = all_logits(models[m]), *halves;
        kv_type = SPW_KV_F16;
        halves = all_logits(models[m]);
        kv_type = SPW_KV_Q8;
        double first = distance(bytes, halves, 128 * n_vocab), later = distance(bytes, halves, N_TOKENS * n_vocab);
        CHECK(first == 0); /* no page is full yet */
        CHECK(later > 0 && later < 2e-3);
        free(bytes);
        free(halves);
        spw_engine_close(e);
    }
}

static void test_window_policy(void)
{
    spw_err err = {0};
    float *want = all_logits("tiny-qwen3");
    spw_engine *e = open_model("tiny-qwen3", 2, 0);
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    spw_session *s = new_session(e, "window", N_TOKENS);
    CHECK_OK(spw_session_eval(s, tokens, 320, &err), err);
    CHECK(same_logits(s, want + 319 * n_vocab, n_vocab)); /* prompts are exact under every policy */
    CHECK_OK(spw_session_truncate(s, 319, &err), err);
    CHECK_OK(spw_session_decode(s, tokens[319], &err), err);
    CHECK(agrees(s, want + 319 * n_vocab, n_vocab)); /* 320 positions are sink and window */
    CHECK_INT(spw_session_get_stats(s).middle_bytes, 0);
    CHECK_OK(spw_session_eval(s, tokens + 320, 300, &err), err);
    CHECK(agrees(s, want + 619 * n_vocab, n_vocab));
    CHECK_OK(spw_session_decode(s, tokens[620], &err), err);
    CHECK(!agrees(s, want + 620 * n_vocab, n_vocab));
    spw_session_stats st = spw_session_get_stats(s);
    CHECK_INT(st.middle_bytes, (621 - 320) * 2 * 2 * 32 * (kv_type == SPW_KV_Q8 ? 2 : 4));
    CHECK_INT(st.read_bytes, 0);
    CHECK_STR(st.kv_policy, "window");
    /* One past, two policies: a fork of the windowed session that attends to everything is exact again. */
    spw_session *f = NULL;
    spw_session_params p = spw_session_default_params();
    p.kv_policy = "full";
    CHECK_OK(spw_session_truncate(s, 620, &err), err);
    CHECK_OK(spw_session_fork(&f, s, &p, &err), err);
    CHECK_OK(spw_session_decode(f, tokens[620], &err), err);
    CHECK(agrees(f, want + 620 * n_vocab, n_vocab));
    CHECK_STR(spw_session_get_stats(f).kv_policy, "full");
    CHECK_INT(spw_session_get_stats(f).read_bytes, spw_session_get_stats(f).middle_bytes);
    spw_session_free(f);
    p.n_ctx = 619;
    CHECK_INT(spw_session_fork(&f, s, &p, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "620");
    spw_session_free(s);
    spw_engine_close(e);
    free(want);
}

static void test_limits_and_bad_arguments(void)
{
    spw_err err = {0};
    spw_engine *e = open_model("tiny-linear", 2, 0), *e2 = NULL;
    size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
    spw_session *s = new_session(e, "full", 20), *t = new_session(e, "full", 20);
    CHECK_INT(spw_session_n_ctx(s), 20);
    CHECK(!spw_session_logits(s));
    CHECK_INT(spw_session_eval(s, tokens, 21, &err), SPW_E_FULL);
    CHECK_HAS(err.msg, "20");
    CHECK_INT(spw_session_eval(s, (int32_t[]){1, 2, (int32_t)n_vocab}, 3, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "token 2");
    CHECK_INT(spw_session_eval(s, (int32_t[]){-1}, 1, &err), SPW_E_ARG);
    CHECK_INT(spw_session_eval(s, tokens, 0, &err), SPW_E_ARG);
    CHECK_INT(spw_session_pos(s), 0);
    spw_work twice[2] = {{.session = s, .tokens = tokens, .n = 2}, {.session = s, .tokens = tokens, .n = 2}};
    CHECK_INT(spw_step(e, twice, 2, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "twice");
    spw_work half[2] = {{.session = s, .tokens = tokens, .n = 2}, {.session = t, .tokens = tokens, .n = 25}};
    CHECK_INT(spw_step(e, half, 2, &err), SPW_E_FULL);
    CHECK_INT(spw_session_pos(s), 0);
    CHECK_INT(spw_step(e, &(spw_work){.session = s, .tokens = tokens, .n = 2, .kind = SPW_DECODE}, 1, &err), SPW_E_ARG);
    CHECK_OK(spw_session_eval(s, tokens, 20, &err), err);
    CHECK_INT(spw_session_decode(s, 1, &err), SPW_E_FULL);
    spw_session_params p = spw_session_default_params();
    p.kv_policy = "magic";
    spw_session *none = NULL;
    CHECK_INT(spw_session_create(&none, e, &p, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "magic");
    CHECK_INT(spw_engine_open(&e2, "tests/data/none.gguf", NULL, &err), SPW_E_IO);
    CHECK_HAS(err.msg, "none.gguf");
    CHECK_INT(spw_engine_open(&e2, "tests/data/tiny-linear.gguf", &(spw_engine_params){.n_threads = 1000}, &err), SPW_E_ARG);
    spw_session_free(t);
    spw_session_free(s);
    spw_engine_close(e);
}

/* Every allocation of load, session and steps fails once, alone and with all that follow: an error each time, no leak, and what is left works. */
static void test_failing_allocator(void)
{
    spw_err err = {0};
    size_t before = mem_in_use();
    int refused = 0, in_a_row = 0; /* a failure may be survived (a cache that stays empty), so one success is not the end */
    for (long n = 0; in_a_row < 20; n++) {
        mem_fail_after(n, n % 2);
        spw_engine *e = NULL;
        spw_session *s = NULL, *f = NULL;
        spw_status st = spw_engine_open(&e, "tests/data/tiny-linear.gguf", &(spw_engine_params){.n_threads = 2, .n_batch = 16, .kv_type = kv_type}, &err);
        if (!st) st = spw_session_create(&s, e, NULL, &err);
        if (!st) st = spw_session_eval(s, tokens, 170, &err);
        if (!st) st = spw_session_fork(&f, s, NULL, &err);
        if (!st) st = spw_session_decode(f, 7, &err);
        mem_fail_after(-1, false);
        in_a_row = st ? 0 : in_a_row + 1;
        refused += st != SPW_OK;
        if (st) CHECK_INT(st, SPW_E_NOMEM);
        if (e) CHECK_OK(spw_engine_check(e, &err), err);
        if (s && st) { /* the session still works */
            spw_session_truncate(s, 0, &err);
            CHECK_OK(spw_session_eval(s, tokens, 5, &err), err);
        }
        spw_session_free(f);
        spw_session_free(s);
        spw_engine_close(e);
        CHECK_INT(mem_in_use(), before);
        if (test_bad > 10) return;
    }
    CHECK(refused > 20);
}

int main(void)
{
    uint64_t seed = 42;
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)(test_rand(&seed) % 256);
    for (int i = 0; i < 2; i++) {
        kv_type = i ? SPW_KV_Q8 : SPW_KV_F16;
        RUN(test_threads_and_cuts);
        RUN(test_decode_equals_prompt);
        RUN(test_company_does_not_matter);
        RUN(test_forks_and_truncations);
        RUN(test_failed_steps);
        RUN(test_window_policy);
        RUN(test_failing_allocator);
    }
    RUN(test_truncated_into_bytes);
    RUN(test_bytes_are_near_halves);
    kv_type = SPW_KV_F16;
    RUN(test_limits_and_bad_arguments);
    return test_done();
}
