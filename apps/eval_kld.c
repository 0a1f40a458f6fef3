/* eval_kld.c - spillway eval kld: how far predictions under a policy are from our own dense ones.
 *
 * The first part of each chunk is read densely, once; then the rest is appended token by token to a dense lane and to one lane for each
 * policy, all of them in step, so that one row of logits a lane is all that is held.  A policy `full` is one more lane, and must come out
 * at 0.  The lanes of policies are watched: every layer of theirs attends to everything as well, from their own hidden states. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "eval.h"
#include "eval_divergence.h"
#include "eval_html.h"
#include "eval_lanes.h"
#include "eval_layers.h"
#include "eval_report.h"
#include "eval_store.h"
#include "report.h"
#include "text_input.h"

typedef struct kld_run {
    const options *flags;
    loaded model;
    policy_list policies;
    lanes lanes;
    eval_store store;
    uint64_t seed;
    int32_t *tokens; /* of the text, freed by spw_free */
    size_t n_tokens, ctx, n_chunks, n_eval;
    double *dense; /* n_vocab probabilities of the dense lane */
} kld_run;

/* One lane's sums over the predictions of a chunk. */
typedef struct kld_sums {
    json_t *kld; /* of each prediction, in order */
    size_t same_top;
    double nll, nll_full;
    eval_layers layers;
} kld_sums;

/* Scores every lane's logits against the dense ones, which are lane 0's; next is the token that follows. */
static void score_position(kld_run *r, int32_t next, kld_sums *sums)
{
    size_t n = r->lanes.n_vocab, top, other;
    const float *p = r->lanes.v[0].logits;
    double p_log = divergence_log_sum(p, n, &top);
    divergence_probabilities(p, p_log, n, r->dense);
    for (size_t k = 1; k < r->lanes.n; k++) {
        const float *q = r->lanes.v[k].logits;
        double q_log = divergence_log_sum(q, n, &other);
        json_array_append_new(sums[k].kld, report_real(divergence_kld(r->dense, p, p_log, q, q_log, n)));
        sums[k].same_top += top == other;
        sums[k].nll += q_log - (double)q[next];
        sums[k].nll_full += p_log - (double)p[next];
    }
}

static json_t *chunk_result(const kld_sums *s, const spw_session *session)
{
    spw_session_stats stats = spw_session_get_stats(session);
    json_t *v = json_object();
    json_object_set(v, "kld", s->kld);
    json_object_set_new(v, "same_top", report_count(s->same_top));
    json_object_set_new(v, "nll", report_real(s->nll));
    json_object_set_new(v, "nll_full", report_real(s->nll_full));
    json_object_set_new(v, "middle", report_count(stats.middle_bytes));
    json_object_set_new(v, "read", report_count(stats.read_bytes));
    json_object_set_new(v, "rows", report_count(stats.read_rows_bytes));
    json_object_set_new(v, "layers", layers_sums(&s->layers));
    return v;
}

static void unit_name(char out[32], size_t chunk)
{
    snprintf(out, 32, "chunk#%zu", chunk);
}

/* How many policies have no result for the chunk; wanted says which. */
static size_t find_wanted(const kld_run *r, size_t chunk, bool *wanted)
{
    char unit[32];
    size_t n = 0;
    unit_name(unit, chunk);
    for (size_t i = 0; i < r->policies.n; i++) {
        wanted[i] = !store_find(&r->store, r->policies.v[i].label, unit);
        n += wanted[i];
    }
    return n;
}

static void watch_lanes(kld_run *r, kld_sums *sums)
{
    for (size_t k = 1; k < r->lanes.n; k++) {
        const lane *a = &r->lanes.v[k];
        layers_truth truth = r->flags->no_truth ? LAYERS_NO_TRUTH : policy_is_full(&r->policies.v[a->policy]) ? LAYERS_EXACT : LAYERS_MEASURED;
        layers_watch(&sums[k].layers, a->session, r->model.info->n_layer, truth);
    }
}

/* The last token predicts nothing that is known: it is not evaluated. */
static bool measure_chunk(kld_run *r, size_t chunk, const bool *wanted)
{
    const int32_t *t = r->tokens + chunk * r->ctx;
    size_t first = r->ctx - 1 - r->n_eval;
    kld_sums sums[LANES_MAX] = {0};
    char unit[32];
    unit_name(unit, chunk);
    bool ok = lanes_read(&r->lanes, t, first) && lanes_fork(&r->lanes, wanted, true);
    for (size_t k = 0; k < r->lanes.n; k++) sums[k].kld = json_array();
    if (ok) watch_lanes(r, sums);
    for (size_t at = first; ok && at + 1 < r->ctx; at++) {
        for (size_t k = 0; k < r->lanes.n; k++) r->lanes.v[k].next = t[at];
        ok = lanes_step(&r->lanes);
        if (ok) score_position(r, t[at + 1], sums);
        progress_update(&r->lanes.bar, ++r->lanes.done, NULL);
    }
    for (size_t k = 0; k < r->lanes.n; k++) {
        const lane *a = &r->lanes.v[k];
        if (ok && a->policy != LANE_DENSE) ok = store_add(&r->store, r->policies.v[a->policy].label, unit, chunk_result(&sums[k], a->session));
        if (a->session) spw_session_observe(a->session, NULL, NULL, false);
        layers_free(&sums[k].layers);
        json_decref(sums[k].kld);
    }
    return ok;
}

/* Chunks that are done, up to the first that is not. */
static size_t count_done(const kld_run *r)
{
    bool wanted[LIST_MAX];
    size_t n = 0;
    while (n < r->n_chunks && find_wanted(r, n, wanted) == 0) n++;
    return n;
}

static bool measure_chunks(kld_run *r)
{
    bool wanted[LIST_MAX], ok = true;
    size_t total = 0;
    for (size_t i = 0; i < r->n_chunks; i++) total += find_wanted(r, i, wanted) ? r->ctx - 1 : 0;
    loading_warn(&r->model);
    progress_begin(&r->lanes.bar, "evaluating", total);
    for (size_t i = 0; ok && i < r->n_chunks; i++)
        if (find_wanted(r, i, wanted)) ok = measure_chunk(r, i, wanted);
    progress_end(&r->lanes.bar);
    return ok;
}

/* Of a policy whose logits are no numbers the store has null: it is as far away as can be. */
static double number_of(const json_t *v)
{
    return json_is_number(v) ? json_number_value(v) : INFINITY;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted values, interpolated between neighbours. */
static double percentile(const double *v, size_t n, double share)
{
    double at = share * (double)(n - 1);
    size_t low = (size_t)at;
    if (low + 1 < n && at > (double)low && !isfinite(v[low + 1])) return INFINITY;
    return low + 1 < n && at > (double)low ? v[low] + (at - (double)low) * (v[low + 1] - v[low]) : v[low];
}

/* The row of a policy; layers, which are empty, become what it did by layer and head. */
static json_t *policy_row(const kld_run *r, const char *label, eval_layers *layers)
{
    double *kld = app_alloc(r->n_chunks * r->n_eval * sizeof *kld), sum = 0, nll = 0, nll_full = 0;
    size_t n = 0, i;
    int64_t same = 0;
    share_sums share = {0};
    json_t *row = json_object(), *v;
    for (size_t c = 0; c < r->n_chunks; c++) {
        char unit[32];
        unit_name(unit, c);
        const json_t *result = store_find(&r->store, label, unit);
        json_array_foreach(json_object_get(result, "kld"), i, v) if (n < r->n_chunks * r->n_eval) sum += kld[n++] = number_of(v);
        same += json_integer_value(json_object_get(result, "same_top"));
        nll += number_of(json_object_get(result, "nll"));
        nll_full += number_of(json_object_get(result, "nll_full"));
        share_add(&share, result);
        layers_add(layers, json_object_get(result, "layers"));
    }
    qsort(kld, n, sizeof *kld, compare_doubles);
    json_object_set_new(row, "policy", json_string(label));
    json_object_set_new(row, "kld_mean", report_real(sum / (double)n));
    json_object_set_new(row, "kld_median", report_real(percentile(kld, n, 0.5)));
    json_object_set_new(row, "kld_p99", report_real(percentile(kld, n, 0.99)));
    json_object_set_new(row, "kld_p999", report_real(percentile(kld, n, 0.999)));
    json_object_set_new(row, "kld_max", report_real(kld[n - 1]));
    json_object_set_new(row, "same_top", report_real((double)same / (double)n));
    json_object_set_new(row, "ppl", report_real(exp(nll / (double)n)));
    json_object_set_new(row, "ppl_full", report_real(exp(nll_full / (double)n)));
    share_set(row, &share);
    layers_set(row, layers);
    json_object_set_new(row, "n_predictions", report_count(n));
    free(kld);
    return row;
}

static int report_kld(const kld_run *r)
{
    static const report_column columns[] = {{"policy", 0}, {"kld_mean", 6}, {"kld_median", 6}, {"kld_p99", 5}, {"kld_p999", 5}, {"kld_max", 4}, {"same_top", 4},
                                            {"ppl", 4}, {"ppl_full", 4}, {"share_read", 4}, {"share_rows", 4}, {"mass", 4}, {"output_error", 4}};
    char note[160];
    json_t *v = report_begin(r->flags, &r->model, "kld", r->seed), *rows = json_array(), *maps = json_array();
    for (size_t i = 0; i < r->policies.n; i++) {
        const char *label = r->policies.v[i].label;
        eval_layers layers = {0};
        json_array_append_new(rows, policy_row(r, label, &layers));
        json_t *map = layers_means(&layers);
        json_object_set_new(map, "policy", json_string(label));
        json_array_append_new(maps, map);
        layers_free(&layers);
    }
    json_object_set_new(v, "policies", rows);
    json_object_set_new(v, "layers", maps);
    json_object_set_new(v, "ctx", report_count(r->ctx));
    json_object_set_new(v, "chunks", report_count(r->n_chunks));
    json_object_set_new(v, "eval_tokens", report_count(r->n_eval));
    json_object_set_new(v, "n_tokens", report_count(r->n_tokens));
    snprintf(note, sizeof note, "%zu predictions: the last %zu of each of %zu chunks of %zu tokens", r->n_chunks * r->n_eval, r->n_eval, r->n_chunks, r->ctx);
    return report_rows(r->flags, v, "policies", columns, sizeof columns / sizeof *columns, note);
}

/* Cuts the text into chunks; false after one line of complaint. */
static bool cut_text(kld_run *r, const text *input)
{
    spw_err err = {0};
    bool bos = spw_vocab_adds_bos(r->model.vocab);
    if (spw_tokenize(r->model.vocab, input->data, input->len, bos ? (unsigned)SPW_TOK_BOS : 0u, &r->tokens, &r->n_tokens, &err) != SPW_OK) {
        report_error(command_eval.name, "%s", err.msg);
        return false;
    }
    r->n_chunks = r->n_tokens / r->ctx;
    if (r->flags->chunks >= 0 && r->n_chunks > (size_t)r->flags->chunks) r->n_chunks = (size_t)r->flags->chunks;
    if (r->n_chunks == 0) {
        report_error(command_eval.name, "the text has %zu tokens, one chunk takes %zu: lower -c, or give a longer text", r->n_tokens, r->ctx);
        return false;
    }
    for (size_t i = 0; bos && i < r->n_chunks; i++) r->tokens[i * r->ctx] = spw_vocab_bos(r->model.vocab);
    return true;
}

static bool open_store(kld_run *r, const text *input)
{
    json_t *header = report_dependencies(r->flags, &r->model, "kld", r->seed);
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, spw_hash(0, input->data, input->len));
    json_object_set_new(header, "text_hash", json_string(hash));
    json_object_set_new(header, "ctx", report_count(r->ctx));
    json_object_set_new(header, "eval_tokens", report_count(r->n_eval));
    json_object_set_new(header, "truth", json_boolean(!r->flags->no_truth));
    return store_open(&r->store, r->flags->resume, header);
}

static int measure(kld_run *r, const text *input)
{
    if (!cut_text(r, input) || !lanes_open(&r->lanes, &r->model, r->flags, &r->policies)) return EXIT_FAILED;
    if ((r->flags->html && !html_check(r->flags->html)) || !open_store(r, input)) return EXIT_FAILED;
    r->dense = app_alloc(r->lanes.n_vocab * sizeof *r->dense);
    bool ok = measure_chunks(r);
    if (!r->lanes.interrupted) return ok ? report_kld(r) : EXIT_FAILED;
    size_t wanted = r->n_chunks;
    r->n_chunks = count_done(r);
    return report_interrupted(&r->model, r->n_chunks, wanted, "chunks", r->n_chunks ? report_kld(r) : EXIT_OK);
}

/* What the flags say; false after one line of complaint. */
static bool check_flags(kld_run *r)
{
    const options *o = r->flags;
    char why[200];
    r->ctx = o->lengths.n ? (size_t)o->lengths.v[0] : 4096;
    r->n_eval = (size_t)o->eval_tokens;
    if (!policies_parse(&r->policies, &o->policies, why, sizeof why)) report_error(command_eval.name, "--policies: %s", why);
    else if (o->lengths.n > 1) report_error(command_eval.name, "-c: expected one length for kld, found %zu", o->lengths.n);
    else if (o->chunks == 0) report_error(command_eval.name, "--chunks: expected -1 or at least 1, found '0'");
    else if (r->n_eval > r->ctx - 2)
        report_error(command_eval.name, "--eval-tokens: expected at most %zu in a chunk of %zu tokens, found '%zu'", r->ctx - 2, r->ctx, r->n_eval);
    else return true;
    return false;
}

int eval_kld(const options *o)
{
    kld_run r = {.flags = o, .seed = o->seed >= 0 ? (uint64_t)o->seed : EVAL_SEED};
    text input = {0};
    char why[600];
    int code = EXIT_FAILED;
    if (!check_flags(&r)) return EXIT_USAGE;
    if (loading_check_forks(&r.model, &command_eval, o, r.ctx, r.policies.n + 1, policies_positions(&r.policies, r.ctx, r.n_eval))) {
        if (!text_read(&input, o->file, why, sizeof why)) report_error(command_eval.name, "%s", why);
        else if (loading_open(&r.model, o)) code = measure(&r, &input);
    }
    text_free(&input);
    lanes_close(&r.lanes);
    store_close(&r.store);
    spw_free(r.tokens);
    free(r.dense);
    loading_close(&r.model);
    return code;
}
