/* eval_ppl.c - spillway eval ppl: the perplexity of a text.
 *
 * It is what llama-perplexity defines, so that its figures can be compared: the text is tokenized once and cut into chunks of C
 * tokens; each is evaluated from an empty session, with BOS in place of its first token where the model wants one; the
 * logits at positions C/2 .. C-2 of a chunk are scored on the token that follows. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "eval.h"
#include "loading.h"
#include "progress.h"
#include "report.h"
#include "text_input.h"

/* Logits that are held at once: pieces of the second half of a chunk are cut to it. */
#define LOGITS_BYTES ((size_t)128 << 20)

typedef struct perplexity {
    double sum, sum_squares; /* of the negative log-likelihoods */
    uint64_t n;
    size_t n_tokens, n_chunks; /* tokens of the text; chunks evaluated */
    double seconds;
} perplexity;

/* Negative log-likelihood of token under n logits. */
static double score(const float *logits, size_t n, int32_t token)
{
    float top = logits[0];
    double sum = 0;
    for (size_t i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
    for (size_t i = 0; i < n; i++) sum += (double)expf(logits[i] - top);
    return log(sum) - (double)(logits[token] - top);
}

static double mean_nll(const perplexity *p)
{
    return p->n ? p->sum / (double)p->n : NAN;
}

/* Standard error of the perplexity, by the standard error of the mean. */
static double perplexity_error(const perplexity *p)
{
    double mean = mean_nll(p), variance = p->sum_squares / (double)p->n - mean * mean;
    return p->n > 1 && variance > 0 ? sqrt(variance / (double)(p->n - 1)) * exp(mean) : 0;
}

/* One chunk's state: its session and the room for logits. */
typedef struct chunk_run {
    spw_engine *engine;
    spw_session *session;
    size_t ctx, n_vocab, batch, rows;
    float *logits; /* rows * n_vocab */
    progress bar;
    size_t done; /* tokens over all chunks */
} chunk_run;

static bool evaluate_chunk(chunk_run *r, const int32_t *tokens, perplexity *p, spw_err *err)
{
    size_t first = r->ctx / 2;
    if (spw_session_truncate(r->session, 0, err) != SPW_OK) return false;
    /* The last token predicts nothing that is known: it is not evaluated. */
    for (size_t at = 0; at + 1 < r->ctx;) {
        bool scored = at >= first;
        size_t end = scored ? r->ctx - 1 : first, take = scored ? r->rows : r->batch;
        if (take > end - at) take = end - at;
        spw_work work = {.session = r->session, .tokens = tokens + at, .n = take, .kind = SPW_PROMPT, .logits = scored ? r->logits : NULL, .n_logits = scored ? take : 0};
        if (spw_step(r->engine, &work, 1, err) != SPW_OK) return false;
        for (size_t i = 0; scored && i < take; i++) {
            double nll = score(r->logits + i * r->n_vocab, r->n_vocab, tokens[at + i + 1]);
            p->sum += nll;
            p->sum_squares += nll * nll;
            p->n++;
        }
        at += take;
        r->done += take;
        char note[64] = "";
        if (p->n) snprintf(note, sizeof note, "ppl %.4f", exp(mean_nll(p)));
        progress_update(&r->bar, r->done, note);
    }
    return true;
}

static bool evaluate_chunks(const options *o, const loaded *l, int32_t *tokens, perplexity *p)
{
    spw_err err = {0};
    chunk_run r = {.engine = l->engine, .ctx = (size_t)l->n_ctx, .n_vocab = (size_t)spw_vocab_size(l->vocab), .batch = (size_t)spw_engine_n_batch(l->engine)};
    size_t fit = LOGITS_BYTES / (r.n_vocab * sizeof *r.logits);
    r.rows = fit == 0 ? 1 : fit < r.batch ? fit : r.batch;
    r.logits = app_alloc(r.rows * r.n_vocab * sizeof *r.logits);
    spw_session_params params = options_session(o, l->n_ctx);
    bool ok = spw_session_create(&r.session, l->engine, &params, &err) == SPW_OK;
    double start = app_seconds();
    if (ok) {
        loading_warn(l);
        progress_begin(&r.bar, "evaluating", p->n_chunks * (r.ctx - 1));
    }
    for (size_t i = 0; ok && i < p->n_chunks; i++) {
        int32_t *chunk = tokens + i * r.ctx;
        if (spw_vocab_adds_bos(l->vocab)) chunk[0] = spw_vocab_bos(l->vocab);
        ok = evaluate_chunk(&r, chunk, p, &err);
    }
    progress_end(&r.bar);
    p->seconds = app_seconds() - start;
    if (!ok) report_error(command_eval.name, "%s", err.msg);
    spw_session_free(r.session);
    free(r.logits);
    return ok;
}

static int report_perplexity(const options *o, const loaded *l, const perplexity *p)
{
    double ppl = exp(mean_nll(p)), evaluated = (double)p->n_chunks * (double)(l->n_ctx - 1);
    if (!o->json) {
        printf("ppl %.4f +/- %.5f (%" PRIu64 " predictions, %zu chunks of %" PRIu64 " tokens, text of %zu tokens)\n", ppl, perplexity_error(p), p->n, p->n_chunks,
               l->n_ctx, p->n_tokens);
        int code = report_finish(command_eval.name);
        if (code == EXIT_OK) fprintf(stderr, "%.0f tokens in %.1f s (%.0f tok/s)\n", evaluated, p->seconds, p->seconds > 0 ? evaluated / p->seconds : 0);
        return code;
    }
    json_t *v = json_object(), *timings = json_object();
    json_object_set_new(v, "ppl", report_real(ppl));
    json_object_set_new(v, "ppl_stderr", report_real(perplexity_error(p)));
    json_object_set_new(v, "nll_mean", report_real(mean_nll(p)));
    json_object_set_new(v, "n_predictions", report_count(p->n));
    json_object_set_new(v, "n_tokens", report_count(p->n_tokens));
    json_object_set_new(v, "chunks", report_count(p->n_chunks));
    json_object_set_new(v, "ctx", report_count(l->n_ctx));
    json_object_set_new(v, "model", report_text(o->model, strlen(o->model)));
    json_object_set_new(v, "kv_type", json_string(o->cache_k));
    json_object_set_new(v, "isa", json_string(spw_engine_isa(l->engine)));
    json_object_set_new(v, "threads", json_integer(spw_engine_n_threads(l->engine)));
    json_object_set_new(timings, "eval_ms", report_real(1e3 * p->seconds));
    json_object_set_new(timings, "eval_per_second", report_real(p->seconds > 0 ? evaluated / p->seconds : 0));
    json_object_set_new(v, "timings", timings);
    return report_json(command_eval.name, v, 0);
}

static int measure_perplexity(const options *o, const loaded *l, const text *input)
{
    int32_t *ids = NULL;
    perplexity p = {0};
    spw_err err = {0};
    int code = EXIT_FAILED;
    size_t ctx = (size_t)l->n_ctx;
    if (spw_tokenize(l->vocab, input->data, input->len, spw_vocab_adds_bos(l->vocab) ? (unsigned)SPW_TOK_BOS : 0u, &ids, &p.n_tokens, &err) != SPW_OK) {
        report_error(command_eval.name, "%s", err.msg);
        return EXIT_FAILED;
    }
    p.n_chunks = p.n_tokens / ctx;
    if (o->chunks >= 0 && p.n_chunks > (size_t)o->chunks) p.n_chunks = (size_t)o->chunks;
    if (p.n_chunks == 0)
        report_error(command_eval.name, "the text has %zu tokens, one chunk takes %zu: lower -c, or give a longer text", p.n_tokens, ctx);
    else if (evaluate_chunks(o, l, ids, &p)) code = report_perplexity(o, l, &p);
    spw_free(ids);
    return code;
}

int eval_ppl(const options *o)
{
    loaded l = {0};
    text input = {0};
    char why[600];
    int code = EXIT_FAILED;
    if (o->chunks == 0) {
        report_error(command_eval.name, "--chunks: expected -1 or at least 1, found '0'");
        return EXIT_USAGE;
    }
    if (o->lengths.n > 1) {
        report_error(command_eval.name, "-c: expected one length for ppl, found %zu", o->lengths.n);
        return EXIT_USAGE;
    }
    if (loading_check(&l, &command_eval, o, o->lengths.n ? (uint64_t)o->lengths.v[0] : 512)) {
        if (!text_read(&input, o->file, why, sizeof why)) report_error(command_eval.name, "%s", why);
        else if (loading_open(&l, o)) code = measure_perplexity(o, &l, &input);
    }
    text_free(&input);
    loading_close(&l);
    return code;
}
