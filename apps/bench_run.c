/* bench_run.c - one model, one session, and the clock: brings the context to a depth and measures tests there.
 *
 * Every position has its token, whatever was measured before: so the same test gives the same logits in every run, and a changed hash is a changed result.
 * Only evaluation is timed; tokens are made and logits hashed between the times. */
#include "bench_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "report.h"
#include "text_input.h"

#define FILL_SEED 1

static bool complain(const spw_err *err)
{
    report_error(command_bench.name, "%s", err->msg);
    return false;
}

bool bench_open(bench_run *b, const options *flags, uint64_t n_ctx, bool warn)
{
    spw_err err = {0};
    *b = (bench_run){.flags = flags};
    if (!loading_check(&b->model, &command_bench, flags, n_ctx) || !loading_open(&b->model, flags)) return false;
    spw_session_params p = options_session(flags, b->model.n_ctx);
    if (spw_session_create(&b->session, b->model.engine, &p, &err) != SPW_OK) return complain(&err);
    if (warn) loading_warn(&b->model);
    return true;
}

void bench_close(bench_run *b)
{
    spw_session_free(b->session);
    loading_close(&b->model);
    *b = (bench_run){0};
}

/* The token of a position: the one that begins a text where the model wants it, any other from the vocabulary. */
static int32_t token_at(const spw_vocab *v, uint64_t pos)
{
    if (pos == 0 && spw_vocab_adds_bos(v) && spw_vocab_bos(v) >= 0) return spw_vocab_bos(v);
    return (int32_t)(spw_hash(1, &pos, sizeof pos) % (uint64_t)spw_vocab_size(v));
}

/* The tokens of the n positions from the session's end on; owned by the caller. */
static int32_t *next_tokens(const bench_run *b, uint64_t n)
{
    uint64_t pos = spw_session_pos(b->session);
    int32_t *ids = app_alloc((size_t)n * sizeof *ids);
    for (uint64_t i = 0; i < n; i++) ids[i] = token_at(b->model.vocab, pos + i);
    return ids;
}

static bool read_tokens(bench_run *b, uint64_t n)
{
    spw_err err = {0};
    progress bar;
    uint64_t batch = (uint64_t)spw_engine_n_batch(b->model.engine), done = 0;
    bool ok = true;
    progress_begin(&bar, "reading up to the depth", (size_t)n);
    while (ok && done < n) {
        uint64_t take = n - done < batch ? n - done : batch;
        int32_t *ids = next_tokens(b, take);
        ok = spw_session_eval(b->session, ids, (size_t)take, &err) == SPW_OK;
        free(ids);
        done += take;
        progress_update(&bar, (size_t)done, NULL);
    }
    progress_end(&bar);
    return ok || complain(&err);
}

bool bench_go_to(bench_run *b, uint64_t depth)
{
    spw_err err = {0};
    uint64_t pos = spw_session_pos(b->session);
    if (depth == 0) b->filled = false;
    if (pos > depth) return spw_session_truncate(b->session, depth, &err) == SPW_OK || complain(&err);
    if (pos == depth) return true;
    if (!b->flags->fill) return read_tokens(b, depth - pos);
    b->filled = true;
    return spw_session_fill(b->session, depth - pos, FILL_SEED, &err) == SPW_OK || complain(&err);
}

/* After n tokens: their logits are part of the hash. */
static void note_tokens(bench_run *b, uint64_t n, uint64_t *hash)
{
    b->tokens_done += (size_t)n;
    if (b->bar) progress_update(b->bar, b->tokens_done, NULL);
    *hash = spw_hash(*hash, spw_session_logits(b->session), (size_t)spw_vocab_size(b->model.vocab) * sizeof(float));
}

bool bench_take_time(bench_run *b, uint64_t n_prompt, uint64_t n_gen, bench_time *out)
{
    spw_err err = {0};
    *out = (bench_time){0};
    if (n_prompt) {
        int32_t *ids = next_tokens(b, n_prompt);
        double start = app_seconds();
        bool ok = spw_session_eval(b->session, ids, (size_t)n_prompt, &err) == SPW_OK;
        out->prompt_ns = 1e9 * (app_seconds() - start);
        free(ids);
        if (!ok) return complain(&err);
        note_tokens(b, n_prompt, &out->hash);
    }
    for (uint64_t i = 0; i < n_gen; i++) {
        int32_t id = token_at(b->model.vocab, spw_session_pos(b->session));
        double start = app_seconds();
        if (spw_session_decode(b->session, id, &err) != SPW_OK) return complain(&err);
        out->gen_ns += 1e9 * (app_seconds() - start);
        note_tokens(b, 1, &out->hash);
    }
    return true;
}

bool bench_warm_up(bench_run *b, uint64_t n_prompt, uint64_t n_gen)
{
    uint64_t depth = spw_session_pos(b->session), batch = (uint64_t)spw_engine_n_batch(b->model.engine);
    bench_time unused;
    if (b->flags->no_warmup) return true;
    return bench_take_time(b, n_prompt < batch ? n_prompt : batch, n_gen > 0, &unused) && bench_go_to(b, depth);
}

double bench_share_read(const spw_session_stats *before, const spw_session_stats *after)
{
    uint64_t middle = after->middle_bytes - before->middle_bytes, n_read = after->read_bytes - before->read_bytes;
    return middle ? (double)n_read / (double)middle : 1;
}

/* Mean and standard deviation of n numbers. */
static void describe(const double *v, size_t n, double *avg, double *stddev)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += v[i];
    *avg = sum / (double)n;
    for (size_t i = 0; i < n; i++) squares += (v[i] - *avg) * (v[i] - *avg);
    *stddev = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
}

static void summarise(bench_result *r)
{
    double *rates = app_alloc(r->n * sizeof *rates);
    for (size_t i = 0; i < r->n; i++) rates[i] = 1e9 * (double)(r->test.n_prompt + r->test.n_gen) / fmax(r->samples_ns[i], 1);
    describe(r->samples_ns, r->n, &r->avg_ns, &r->stddev_ns);
    describe(rates, r->n, &r->avg_ts, &r->stddev_ts);
    free(rates);
}

bool bench_measure(bench_run *b, const bench_test *t, bench_result *out)
{
    *out = (bench_result){.test = *t};
    if (!bench_go_to(b, t->n_depth) || !bench_warm_up(b, t->n_prompt, t->n_gen)) return false;
    out->filled = b->filled;
    size_t n = (size_t)b->flags->repetitions;
    out->samples_ns = app_alloc(n * sizeof *out->samples_ns);
    spw_session_stats before = spw_session_get_stats(b->session), after;
    progress bar;
    char name[80];
    progress_begin(&bar, bench_test_name(t, name), n * (size_t)(t->n_prompt + t->n_gen));
    b->bar = &bar;
    b->tokens_done = 0;
    bool ok = true;
    for (; ok && out->n < n; out->n++) {
        bench_time taken;
        ok = bench_take_time(b, t->n_prompt, t->n_gen, &taken) && bench_go_to(b, t->n_depth);
        out->samples_ns[out->n] = taken.prompt_ns + taken.gen_ns;
        if (ok && out->n && taken.hash != out->hash) {
            progress_end(&bar);
            report_error(command_bench.name, "%s: repetition %zu gave other logits than the first: hash %016" PRIx64 ", expected %016" PRIx64, name, out->n + 1,
                         taken.hash, out->hash);
            ok = false;
        }
        out->hash = taken.hash;
    }
    progress_end(&bar);
    b->bar = NULL;
    after = spw_session_get_stats(b->session);
    out->share_read = bench_share_read(&before, &after);
    if (ok) summarise(out);
    return ok;
}

void bench_result_free(bench_result *r)
{
    free(r->samples_ns);
    *r = (bench_result){0};
}

const char *bench_test_name(const bench_test *t, char *out)
{
    char *at = out;
    *out = '\0';
    if (t->n_prompt) at += sprintf(at, "pp%" PRIu64, t->n_prompt);
    if (t->n_gen) at += sprintf(at, "%stg%" PRIu64, t->n_prompt ? "+" : "", t->n_gen);
    if (t->n_depth) sprintf(at, " @ d%" PRIu64, t->n_depth);
    return out;
}
