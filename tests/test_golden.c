/* test_golden.c - the engine against its independent twin: logits at every position of real and tiny models.
 *
 * tests/data/golden_*.bin were written by `tools/reference.py MODEL --ids-file IDS --f64 --kv-f32 -o golden_NAME.bin`, whose write_golden states the
 * layout; the ids are in the file.  Every model is evaluated four times: with the reference kernels and with those that this machine would choose,
 * both with K and V kept as floats, so that arithmetic alone is compared; with the latter and K and V kept as halves; and with repacked weights, as users run it, but for K and V as
 * floats, so that their rounding does not hide what integer activations do.  The stories
 * models are found in SPILLWAY_ASSETS, the larger ones in MODELS or build/models, the tiny ones beside the goldens. */
#include "spillway.h"
#include "test.h"
#include "tolerance.h"

#include <glob.h>

typedef struct golden {
    uint32_t n_tokens, n_vocab, n_sample, n_top;
    const int32_t *ids;
    const uint32_t *sample;
    const uint32_t *rows; /* n_tokens times: lse, n_sample logits, n_top of (id, logit); 4 bytes each */
    void *data;
} golden;

/* What a comparison of all positions found. */
typedef struct deviation {
    double max_logit, sum_logit, max_kld, sum_kld, max_lse;
    size_t n_logits, n_flips; /* flips: the largest logit is another's, and the golden's two largest are no tie */
} deviation;

static float f32_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static const char *data_folder(void)
{
    const char *dir = getenv("SPILLWAY_TEST_DATA");
    return dir ? dir : "tests/data";
}

static bool golden_read(golden *g, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/golden_%s.bin", data_folder(), name);
    FILE *f = fopen(path, "rb");
    *g = (golden){0};
    if (!f) return false;
    enum { MAX = 200 * 1024 };
    char *data = malloc(MAX);
    size_t n = data ? fread(data, 1, MAX, f) : 0;
    fclose(f);
    g->data = data;
    if (n < 24 || memcmp(data, "SPWGOLD1", 8) != 0) return false;
    memcpy(&g->n_tokens, data + 8, 16);
    size_t head = 24 + 4 * ((size_t)g->n_tokens + g->n_sample), row = 4 * (1 + (size_t)g->n_sample + 2 * (size_t)g->n_top);
    if (n != head + g->n_tokens * row || g->n_top < 2) return false;
    g->ids = (const int32_t *)(const void *)(data + 24);
    g->sample = (const uint32_t *)(const void *)(data + 24) + g->n_tokens;
    g->rows = g->sample + g->n_sample;
    return true;
}

static double log_sum_exp(const float *logits, size_t n)
{
    double top = logits[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > top) top = logits[i];
    for (size_t i = 0; i < n; i++) sum += exp(logits[i] - top);
    return top + log(sum);
}

static void add_logit(deviation *d, float got, float want)
{
    double diff = fabs((double)got - (double)want);
    if (!(diff <= d->max_logit)) d->max_logit = diff; /* also when it is NaN */
    d->sum_logit += diff;
    d->n_logits++;
}

/* One position.  The divergence is that of the golden's n_top likeliest tokens, each by itself, and all others taken together: never more
 * than that of the whole distributions, and all that a golden can tell. */
static void compare_row(const golden *g, size_t pos, const float *logits, deviation *d)
{
    const uint32_t *row = g->rows + pos * (1 + g->n_sample + 2 * g->n_top), *top = row + 1 + g->n_sample;
    double want_lse = f32_of(row[0]), got_lse = log_sum_exp(logits, g->n_vocab), kld = 0, want_rest = 1, got_rest = 1;
    size_t best = 0;
    for (size_t i = 1; i < g->n_vocab; i++)
        if (logits[i] > logits[best]) best = i;
    for (size_t i = 0; i < g->n_sample; i++) add_logit(d, logits[g->sample[i]], f32_of(row[1 + i]));
    for (size_t i = 0; i < g->n_top; i++) {
        float want = f32_of(top[2 * i + 1]), got = logits[top[2 * i]];
        double log_p = (double)want - want_lse, log_q = (double)got - got_lse;
        add_logit(d, got, want);
        kld += exp(log_p) * (log_p - log_q);
        want_rest -= exp(log_p), got_rest -= exp(log_q);
    }
    if (want_rest > 1e-6 && got_rest > 1e-6) kld += want_rest * log(want_rest / got_rest);
    if (!(kld <= d->max_kld)) d->max_kld = kld;
    d->sum_kld += kld;
    if (!(fabs(got_lse - want_lse) <= d->max_lse)) d->max_lse = fabs(got_lse - want_lse);
    if (best != top[0] && f32_of(top[1]) - f32_of(top[3]) > TOL_GOLDEN_TIE) d->n_flips++;
}

/* Evaluates the golden's ids as one prompt and compares every position; false when the model cannot be evaluated. */
static bool compare_model(const char *path, spw_kv_type kv_type, bool repack, const golden *g, const char **isa, deviation *d)
{
    spw_err err = {0};
    spw_engine *e = NULL;
    spw_session *s = NULL;
    spw_engine_params params = spw_engine_default_params();
    params.kv_type = kv_type;
    params.no_repack = !repack;
    float *logits = malloc((size_t)g->n_tokens * g->n_vocab * sizeof *logits);
    *d = (deviation){0};
    CHECK_OK(spw_engine_open(&e, path, &params, &err), err);
    bool fits = e && logits && (uint32_t)spw_vocab_size(spw_engine_vocab(e)) == g->n_vocab;
    CHECK(fits);
    if (fits) {
        *isa = spw_engine_isa(e);
        CHECK_OK(spw_session_create(&s, e, NULL, &err), err);
    }
    if (s) {
        spw_work work = {.session = s, .tokens = g->ids, .n = g->n_tokens, .kind = SPW_PROMPT, .logits = logits, .n_logits = g->n_tokens};
        int bad = test_bad;
        CHECK_OK(spw_step(e, &work, 1, &err), err);
        for (size_t pos = 0; bad == test_bad && pos < g->n_tokens; pos++) compare_row(g, pos, logits + pos * g->n_vocab, d);
    }
    spw_session_free(s);
    spw_engine_close(e);
    free(logits);
    return d->n_logits > 0;
}

/* What a run may differ by: any logit and the log-sum-exp, the mean over logits, the divergence of a position. */
typedef struct bounds {
    double logit, mean, kld;
} bounds;

static const char *model_name, *model_path, *model_isa; /* of the running test; model_isa NULL: the machine's choice */
static spw_kv_type model_kv;
static bool model_repack;
static bounds model_bounds;

static void test_model(void)
{
    golden g;
    deviation d;
    const char *isa = "";
    if (model_isa) setenv("SPILLWAY_ISA", model_isa, 1);
    CHECK(golden_read(&g, model_name));
    if (!test_bad && compare_model(model_path, model_kv, model_repack, &g, &isa, &d)) {
        printf("      %s, %s%s, KV %s: logits max %.2g mean %.2g, lse max %.2g, KLD max %.2g mean %.2g\n", model_name, isa, model_repack ? " repacked" : "",
               model_kv == SPW_KV_F32 ? "f32" : "f16", d.max_logit, d.sum_logit / (double)d.n_logits, d.max_lse, d.max_kld, d.sum_kld / g.n_tokens);
        CHECK_NEAR(d.max_logit, 0, model_bounds.logit);
        CHECK_NEAR(d.sum_logit / (double)d.n_logits, 0, model_bounds.mean);
        CHECK_NEAR(d.max_lse, 0, model_bounds.logit);
        CHECK_NEAR(d.max_kld, 0, model_bounds.kld);
        CHECK_INT(d.n_flips, 0);
    } else {
        fprintf(stderr, "%s: nothing was compared\n", model_name);
        test_bad++;
    }
    free(g.data);
}

/* A comparison that could not tell a wrong logit from a right one would pass above: it must find one. */
static void test_finds_errors(void)
{
    golden g;
    deviation d = {0}, wrong = {0};
    CHECK(golden_read(&g, "stories260K"));
    if (!test_bad) {
        const uint32_t *row = g.rows, *top = row + 1 + g.n_sample;
        float *logits = malloc(g.n_vocab * sizeof *logits);
        for (size_t i = 0; i < g.n_vocab; i++) logits[i] = -30.0f; /* what a golden does not hold hardly matters here */
        for (size_t i = 0; i < g.n_sample; i++) logits[g.sample[i]] = f32_of(row[1 + i]);
        for (size_t i = 0; i < g.n_top; i++) logits[top[2 * i]] = f32_of(top[2 * i + 1]);
        compare_row(&g, 0, logits, &d);
        CHECK(d.max_logit == 0 && d.n_flips == 0);
        logits[top[0]] -= 0.01f;
        compare_row(&g, 0, logits, &wrong);
        CHECK_NEAR(wrong.max_logit, 0.01, 1e-5);
        logits[top[0]] = -30.0f;
        wrong = (deviation){0};
        compare_row(&g, 0, logits, &wrong);
        CHECK_INT(wrong.n_flips, 1);
        CHECK(wrong.max_kld > TOL_GOLDEN_F16_KLD);
        free(logits);
    }
    free(g.data);
}

static void run_model(const char *name, const char *folder, const char *pattern)
{
    char path[4096], why[256], *chosen = getenv("SPILLWAY_ISA");
    char forced[32] = "";
    glob_t found;
    snprintf(path, sizeof path, "%s/%s", folder, pattern);
    if (glob(path, 0, NULL, &found) != 0) {
        snprintf(why, sizeof why, "no %s in its folder (SPILLWAY_ASSETS, MODELS)", pattern);
        SKIP(name, why);
        return;
    }
    if (chosen) snprintf(forced, sizeof forced, "%s", chosen);
    model_name = name, model_path = found.gl_pathv[0];
    model_isa = NULL;
    model_kv = SPW_KV_F16;
    model_bounds = (bounds){TOL_GOLDEN_F16_LOGIT, TOL_GOLDEN_F16_MEAN, TOL_GOLDEN_F16_KLD};
    RUN(test_model);
    model_kv = SPW_KV_F32;
    model_bounds = (bounds){TOL_GOLDEN_FAST_LOGIT, TOL_GOLDEN_FAST_MEAN, TOL_GOLDEN_FAST_KLD};
    if (strcmp(forced, "ref") != 0) {
        RUN(test_model);
        model_repack = true;
        model_bounds = (bounds){TOL_GOLDEN_PACK_LOGIT, TOL_GOLDEN_PACK_MEAN, TOL_GOLDEN_PACK_KLD};
        RUN(test_model);
        model_repack = false;
    }
    model_isa = "ref";
    model_bounds = (bounds){TOL_GOLDEN_REF_LOGIT, TOL_GOLDEN_REF_LOGIT, TOL_GOLDEN_FAST_KLD};
    RUN(test_model);
    if (chosen) setenv("SPILLWAY_ISA", forced, 1);
    else unsetenv("SPILLWAY_ISA");
    globfree(&found);
}

int main(void)
{
    const char *assets = getenv("SPILLWAY_ASSETS"), *models = getenv("MODELS");
    char stories[4096];
    snprintf(stories, sizeof stories, "%s/models", assets ? assets : "../shared/assets");
    if (!models) models = "build/models";
    RUN(test_finds_errors);
    run_model("tiny-llama3", data_folder(), "tiny-llama3.gguf");
    run_model("tiny-linear", data_folder(), "tiny-linear.gguf");
    run_model("tiny-yarn", data_folder(), "tiny-yarn.gguf");
    run_model("tiny-qwen2", data_folder(), "tiny-qwen2.gguf");
    run_model("tiny-qwen3", data_folder(), "tiny-qwen3.gguf");
    run_model("stories260K", stories, "stories260K-f32.gguf");
    run_model("stories15M", stories, "stories15M-Q8_0.gguf");
    if (getenv("TEST_SANITIZED")) {
        SKIP("smollm2, qwen2", "mostly arithmetic: left out under sanitizers");
        return test_done();
    }
    run_model("smollm2", models, "SmolLM2-135M-Instruct*.gguf");
    run_model("qwen2", models, "Qwen2.5-Coder-0.5B-Instruct*.gguf");
    return test_done();
}
