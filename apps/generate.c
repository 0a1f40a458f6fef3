/* generate.c - reading a prompt with progress and generating an answer; shared by run and chat.
 *
 * The last generated token of a turn is never evaluated in vain: it stays pending, and is decoded only when the conversation goes on. */
#include "generate.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "progress.h"
#include "report.h"

/* Ctrl-C is looked for between pieces of the prompt, so a piece should take about this long. */
#define PIECE_SECONDS 0.5
#define FIRST_PIECE 64

/* Written by the signal handler, read by the loops below. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

void generate_watch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    /* SA_RESETHAND: the second one kills. */
    action.sa_flags = (int)SA_RESETHAND;
    sigemptyset(&action.sa_mask);
    interrupted = 0;
    sigaction(SIGINT, &action, NULL);
}

bool generate_interrupted(void)
{
    return interrupted != 0;
}

bool generator_open(generator *g, const loaded *model, const options *flags, bool stream)
{
    *g = (generator){.model = model, .flags = flags, .seed = options_seed(flags), .pending = -1, .stream = stream};
    spw_session_params session = options_session(flags, model->n_ctx);
    spw_sampler_params sampler = options_sampler(flags, g->seed);
    spw_err err = {0};
    if (spw_session_create(&g->session, model->engine, &session, &err) != SPW_OK || spw_sampler_create(&g->sampler, &sampler, &err) != SPW_OK ||
        spw_detok_create(&g->detok, model->vocab, &err) != SPW_OK) {
        report_error(model->command, "%s", err.msg);
        generator_close(g);
        return false;
    }
    if (flags->ignore_eos) g->masked = app_alloc((size_t)spw_vocab_size(model->vocab) * sizeof *g->masked);
    return true;
}

void generator_close(generator *g)
{
    free(g->masked);
    spw_detok_free(g->detok);
    spw_sampler_free(g->sampler);
    spw_session_free(g->session);
    *g = (generator){0};
}

bool generator_reset(generator *g)
{
    spw_err err = {0};
    if (spw_session_truncate(g->session, 0, &err) != SPW_OK) {
        report_error(g->model->command, "%s", err.msg);
        return false;
    }
    g->pending = -1;
    return true;
}

void turn_free(turn *t)
{
    free(t->tokens);
    text_free(&t->answer);
    *t = (turn){0};
}

static void turn_add(turn *t, int32_t id)
{
    if (t->n_tokens == t->cap_tokens) {
        t->cap_tokens = t->cap_tokens ? 2 * t->cap_tokens : 256;
        t->tokens = app_realloc(t->tokens, t->cap_tokens * sizeof *t->tokens);
    }
    t->tokens[t->n_tokens++] = id;
}

/* Reads the prompt piece by piece.  Results do not depend on how it is cut, so the pieces follow the speed. */
static bool read_prompt(generator *g, const int32_t *ids, size_t n, turn *t)
{
    spw_err err = {0};
    progress bar;
    double start = app_seconds();
    size_t batch = (size_t)spw_engine_n_batch(g->model->engine), piece = batch < FIRST_PIECE ? batch : FIRST_PIECE;
    bool ok = true;
    progress_begin(&bar, "reading", n);
    if (g->pending >= 0) ok = spw_session_decode(g->session, g->pending, &err) == SPW_OK;
    g->pending = -1;
    while (ok && t->n_prompt < n && !interrupted) {
        size_t left = n - t->n_prompt, take = left < piece ? left : piece;
        double before = app_seconds();
        ok = spw_session_eval(g->session, ids + t->n_prompt, take, &err) == SPW_OK;
        if (!ok) break;
        t->n_prompt += take;
        double wanted = (double)take * PIECE_SECONDS / fmax(app_seconds() - before, 1e-6);
        piece = wanted >= (double)batch ? batch : wanted <= 32 ? (batch < 32 ? batch : 32) : (size_t)wanted / 32 * 32;
        progress_update(&bar, t->n_prompt, NULL);
    }
    progress_end(&bar);
    t->prompt_seconds = app_seconds() - start;
    if (!ok) report_error(g->model->command, "%s", err.msg);
    return ok;
}

static bool emit(generator *g, turn *t, const char *data, size_t len)
{
    text_append(&t->answer, data, len);
    if (!g->stream || len == 0 || report_write(data, len)) return true;
    report_output_failed(g->model->command);
    return false;
}

/* Samples from the session's logits and chains their bits into the turn's hash. */
static int32_t choose(generator *g, turn *t)
{
    const float *logits = spw_session_logits(g->session);
    size_t n = (size_t)spw_vocab_size(g->model->vocab);
    t->logits_hash = spw_hash(t->logits_hash, logits, n * sizeof *logits);
    if (g->masked) {
        memcpy(g->masked, logits, n * sizeof *logits);
        for (size_t i = 0; i < n; i++)
            if (spw_vocab_is_end(g->model->vocab, (int32_t)i)) g->masked[i] = -INFINITY;
        logits = g->masked;
    }
    return spw_sampler_sample(g->sampler, logits, n);
}

static bool write_answer(generator *g, turn *t)
{
    spw_err err = {0};
    int64_t limit = g->flags->predict;
    size_t len;
    const char *piece;
    t->stop = STOP_LENGTH;
    while (limit < 0 || t->n_tokens < (uint64_t)limit) {
        if (interrupted) {
            t->stop = STOP_INTERRUPT;
            break;
        }
        if (g->pending >= 0) {
            if (spw_session_pos(g->session) >= spw_session_n_ctx(g->session)) {
                t->context_full = true;
                break;
            }
            if (spw_session_decode(g->session, g->pending, &err) != SPW_OK) {
                report_error(g->model->command, "%s", err.msg);
                return false;
            }
            g->pending = -1;
        }
        int32_t id = choose(g, t);
        if (spw_vocab_is_end(g->model->vocab, id) && !g->masked) {
            t->stop = STOP_EOS;
            break;
        }
        spw_sampler_accept(g->sampler, id);
        turn_add(t, id);
        g->pending = id;
        piece = spw_detok_push(g->detok, id, &len);
        if (!emit(g, t, piece, len)) return false;
    }
    piece = spw_detok_flush(g->detok, &len);
    return emit(g, t, piece, len);
}

bool generate_turn(generator *g, const int32_t *ids, size_t n, turn *t)
{
    *t = (turn){0};
    text_append(&t->answer, "", 0);
    if (!read_prompt(g, ids, n, t)) return false;
    if (t->n_prompt < n) {
        t->stop = STOP_INTERRUPT;
        return true;
    }
    for (size_t i = 0; i < n; i++) spw_sampler_accept(g->sampler, ids[i]);
    if (g->continues) {
        size_t len;
        spw_detok_push(g->detok, ids[n - 1], &len); /* what it hands out is the prompt's */
    }
    double start = app_seconds();
    bool ok = write_answer(g, t);
    t->predicted_seconds = app_seconds() - start;
    /* A terminal's next line must not start behind the text; in a pipe the text is what the model wrote and nothing else. */
    if (ok && g->stream && isatty(STDOUT_FILENO) && t->answer.len && t->answer.data[t->answer.len - 1] != '\n') ok = report_write("\n", 1);
    return ok;
}

static double per_second(size_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

static const char *stop_in_words(const turn *t)
{
    if (t->stop == STOP_EOS) return "end of text";
    if (t->stop == STOP_INTERRUPT) return "interrupted";
    return t->context_full ? "the context is full" : "length reached";
}

void generate_print_stats(const generator *g, const turn *t)
{
    spw_session_stats s = spw_session_get_stats(g->session);
    char kv[24], seed[40] = "";
    if (g->flags->temp > 0) snprintf(seed, sizeof seed, ", seed %" PRIu64, g->seed);
    fprintf(stderr, "prompt %zu tokens in %.1f s (%.0f tok/s), generated %zu in %.1f s (%.*f tok/s), kv %s, policy %s%s, %s\n", t->n_prompt, t->prompt_seconds,
            per_second(t->n_prompt, t->prompt_seconds), t->n_tokens, t->predicted_seconds, per_second(t->n_tokens, t->predicted_seconds) < 10 ? 2 : 0,
            per_second(t->n_tokens, t->predicted_seconds), report_bytes(s.kv_bytes, kv), s.kv_policy, seed, stop_in_words(t));
}

static json_t *load_to_json(spw_load_stats s)
{
    static const char *const words[] = {[SPW_REPACK_DONE] = "done", [SPW_REPACK_REFUSED] = "refused", [SPW_REPACK_NO_KERNEL] = "no kernel",
                                        [SPW_REPACK_NO_MEMORY] = "no memory"};
    json_t *o = json_object();
    json_object_set_new(o, "repack", json_string(words[s.repack]));
    json_object_set_new(o, "repack_bytes", report_count(s.repack_bytes));
    json_object_set_new(o, "repack_ms", report_real(1e3 * s.repack_seconds));
    return o;
}

json_t *generate_to_json(const generator *g, const turn *t)
{
    static const char *const stops[] = {[STOP_EOS] = "eos", [STOP_LENGTH] = "length", [STOP_INTERRUPT] = "interrupt"};
    spw_session_stats s = spw_session_get_stats(g->session);
    const spw_engine *e = g->model->engine;
    char hash[17];
    json_t *o = json_object(), *ids = json_array(), *timings = json_object(), *kv = json_object();
    snprintf(hash, sizeof hash, "%016" PRIx64, t->logits_hash);
    for (size_t i = 0; i < t->n_tokens; i++) json_array_append_new(ids, json_integer(t->tokens[i]));
    json_object_set_new(o, "text", report_text(t->answer.data, t->answer.len));
    json_object_set_new(o, "tokens", ids);
    json_object_set_new(o, "n_prompt", report_count(t->n_prompt));
    json_object_set_new(o, "n_generated", report_count(t->n_tokens));
    json_object_set_new(o, "stop", json_string(stops[t->stop]));
    json_object_set_new(timings, "prompt_ms", report_real(1e3 * t->prompt_seconds));
    json_object_set_new(timings, "prompt_per_second", report_real(per_second(t->n_prompt, t->prompt_seconds)));
    json_object_set_new(timings, "predicted_ms", report_real(1e3 * t->predicted_seconds));
    json_object_set_new(timings, "predicted_per_second", report_real(per_second(t->n_tokens, t->predicted_seconds)));
    json_object_set_new(o, "timings", timings);
    json_object_set_new(kv, "type", json_string(g->flags->cache_k));
    json_object_set_new(kv, "bytes", report_count(s.kv_bytes));
    json_object_set_new(kv, "positions", report_count(s.positions));
    json_object_set_new(kv, "policy", json_string(s.kv_policy));
    json_object_set_new(kv, "share_read", report_real(s.middle_bytes ? (double)s.read_bytes / (double)s.middle_bytes : 1.0));
    json_object_set_new(o, "kv", kv);
    json_object_set_new(o, "load", load_to_json(spw_engine_load_stats(e)));
    json_object_set_new(o, "logits_hash", json_string(hash));
    json_object_set_new(o, "model", report_text(g->flags->model, strlen(g->flags->model)));
    json_object_set_new(o, "isa", json_string(spw_engine_isa(e)));
    json_object_set_new(o, "threads", json_integer(spw_engine_n_threads(e)));
    json_object_set_new(o, "seed", report_count(g->seed));
    return o;
}
