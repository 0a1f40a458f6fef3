/* eval_retrieval.c - spillway eval ruler, kv, passkey, niah, multiturn: made-up tasks with known answers, under several policies.
 *
 * A run is a list of cells (a task at a length, at a depth), each with as many samples as asked for.  A sample is a unit: its prompt is read
 * once, and every policy that has no result for it yet answers from a fork. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "eval.h"
#include "eval_html.h"
#include "eval_questions.h"
#include "eval_report.h"
#include "eval_store.h"
#include "report.h"

enum { UNIT = 80, SAMPLES = 20 };

typedef struct retrieval {
    const options *flags;
    const char *measure;
    policy_list policies;
    task_cell *cells;
    size_t n_cells, n_samples;
    uint64_t seed;
    text haystack;
    loaded model;
    question_form form;
    lanes lanes;
    eval_store store;
} retrieval;

static bool is_ruler(const retrieval *r)
{
    return strcmp(r->measure, "ruler") == 0;
}

/* The name of a sample, the same whatever else the run holds. */
static void unit_name(char out[UNIT], const task_cell *c, size_t sample)
{
    char depth[16] = "";
    if (c->depth != TASK_DEPTH_SPREAD) snprintf(depth, sizeof depth, "@%d", c->depth);
    snprintf(out, UNIT, "%s@%zu%s#%zu", task_name(c->kind), c->length ? c->length : c->n_keys, depth, sample);
}

/* ---------------------------------------------------------------------------------------------------- cells ---- */

static void add_cell(retrieval *r, task_cell c)
{
    r->cells = app_realloc(r->cells, (r->n_cells + 1) * sizeof *r->cells);
    r->cells[r->n_cells++] = c;
}

static size_t n_lengths(const retrieval *r)
{
    return r->flags->lengths.n ? r->flags->lengths.n : 1;
}

static size_t length_at(const retrieval *r, size_t i)
{
    return r->flags->lengths.n ? (size_t)r->flags->lengths.v[i] : 4096;
}

/* The cells of one task, a length after the other. */
static void add_lengths(retrieval *r, const task_kind *kind, int depth)
{
    for (size_t i = 0; i < n_lengths(r); i++) add_cell(r, (task_cell){.kind = kind, .length = length_at(r, i), .n_turns = 1, .depth = depth});
}

static bool in_list(const char *list, const char *name, size_t len)
{
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p ? 1 : 0)
        if (strcspn(p, ",") == len && strncmp(p, name, len) == 0) return true;
    return false;
}

static bool add_ruler(retrieval *r)
{
    const char *names = r->flags->tasks ? r->flags->tasks : task_ruler_names;
    char name[32];
    for (const char *p = names;; p++) {
        size_t len = strcspn(p, ",");
        if (len == 0 || !in_list(task_ruler_names, p, len)) {
            report_error(command_eval.name, "--tasks: expected some of %s, found '%.*s'", task_ruler_names, (int)(len < 80 ? len : 80), p);
            return false;
        }
        snprintf(name, sizeof name, "%.*s", (int)len, p);
        add_lengths(r, task_find(name), TASK_DEPTH_SPREAD);
        p += len;
        if (!*p) return true;
    }
}

static bool add_dictionary(retrieval *r)
{
    bool turns = strcmp(r->measure, "multiturn") == 0;
    size_t n_turns = turns ? (size_t)r->flags->n_turns : 1, n_keys = (size_t)r->flags->n_keys;
    if (r->flags->lengths.n > 1) report_error(command_eval.name, "-c: expected one context for %s, found %zu", r->measure, r->flags->lengths.n);
    else if (n_turns > n_keys) report_error(command_eval.name, "--turns: expected at most as many as --keys, %zu, found '%zu'", n_keys, n_turns);
    else {
        add_cell(r, (task_cell){.kind = task_find(r->measure), .n_keys = n_keys, .n_turns = n_turns, .depth = TASK_DEPTH_SPREAD});
        return true;
    }
    return false;
}

static bool add_cells(retrieval *r)
{
    const task_kind *kind = task_find(r->measure);
    int64_t depths = r->flags->depths;
    if (is_ruler(r)) return add_ruler(r);
    if (task_is_plain(kind)) return add_dictionary(r);
    if (strcmp(r->measure, "niah") != 0) {
        add_lengths(r, kind, TASK_DEPTH_SPREAD);
        return true;
    }
    for (int64_t i = 0; i < depths; i++) add_lengths(r, kind, depths > 1 ? (int)lround(100.0 * (double)i / (double)(depths - 1)) : 50);
    return true;
}

/* The text of -f, without NUL bytes, as every cell's haystack. */
static bool read_haystack(retrieval *r)
{
    char why[600];
    if (!r->flags->file || strcmp(r->measure, "niah") != 0) return true;
    if (!text_read(&r->haystack, r->flags->file, why, sizeof why)) {
        report_error(command_eval.name, "%s", why);
        return false;
    }
    if (r->haystack.len == 0) {
        report_error(command_eval.name, "%s: expected a text to hide the needle in, found an empty file", r->flags->file);
        return false;
    }
    for (size_t i = 0; i < r->haystack.len; i++)
        if (r->haystack.data[i] == '\0') r->haystack.data[i] = ' ';
    for (size_t i = 0; i < r->n_cells; i++) r->cells[i].haystack = r->haystack.data, r->cells[i].haystack_len = r->haystack.len;
    return true;
}

/* ---------------------------------------------------------------------------------------------------- running ---- */

/* Context that the dictionary of a cell takes.  Samples differ a little, as random digits do. */
static bool size_dictionary(const retrieval *r, uint64_t *n_ctx)
{
    spw_vocab *v = NULL;
    spw_err err = {0};
    task_sample sample;
    if (spw_vocab_open(&v, r->flags->model, &err) != SPW_OK) {
        report_file_error(command_eval.name, r->flags->model, &err);
        return false;
    }
    question_form form = {.vocab = v, .plain = true};
    task_cell c = r->cells[0];
    task_make(&c, r->seed, 0, question_tokens, &form, &sample);
    size_t n = question_tokens(&form, &sample.turns[0]), turn = c.n_turns * (task_new_tokens(c.kind) + 64);
    task_free(&sample);
    spw_vocab_close(v);
    *n_ctx = n + n / 32 + turn + 64;
    return true;
}

static bool find_context(const retrieval *r, uint64_t *n_ctx)
{
    *n_ctx = 0;
    if (r->cells[0].length == 0 && r->flags->lengths.n == 0) return size_dictionary(r, n_ctx);
    for (size_t i = 0; i < n_lengths(r); i++)
        if (length_at(r, i) > *n_ctx) *n_ctx = length_at(r, i);
    return true;
}

/* Tokens that a policy's session takes beyond the text that all share, at most. */
static size_t new_tokens(const retrieval *r)
{
    size_t most = 0;
    for (size_t i = 0; i < r->n_cells; i++) {
        size_t n = r->cells[i].n_turns * (task_new_tokens(r->cells[i].kind) + 64);
        if (n > most) most = n;
    }
    return most;
}

static size_t find_wanted(const retrieval *r, const task_cell *c, size_t sample, bool *wanted)
{
    char unit[UNIT];
    size_t n = 0;
    unit_name(unit, c, sample);
    for (size_t i = 0; i < r->policies.n; i++) {
        wanted[i] = !store_find(&r->store, r->policies.v[i].label, unit);
        n += wanted[i];
    }
    return n;
}

static bool run_sample(retrieval *r, task_cell *c, size_t index, const bool *wanted)
{
    char unit[UNIT];
    task_sample sample;
    json_t *results[LIST_MAX];
    r->form.plain = task_is_plain(c->kind);
    if (!task_make(c, r->seed, index, question_tokens, &r->form, &sample)) {
        if (r->form.err.code) report_error(command_eval.name, "%s", r->form.err.msg);
        else report_error(command_eval.name, "-c: %s does not fit in %zu tokens", task_name(c->kind), c->length);
        return false;
    }
    unit_name(unit, c, index);
    bool ok = question_ask(&r->lanes, &r->form, c->kind, &sample, wanted, results);
    for (size_t i = 0; i < r->policies.n; i++) {
        if (!ok || !results[i]) continue;
        if (!store_add(&r->store, r->policies.v[i].label, unit, results[i])) ok = false;
        results[i] = NULL;
    }
    for (size_t i = 0; !ok && i < r->policies.n; i++) json_decref(results[i]);
    task_free(&sample);
    return ok;
}

/* Samples that every policy has answered. */
static size_t count_done(const retrieval *r)
{
    bool wanted[LIST_MAX];
    size_t n = 0;
    for (size_t c = 0; c < r->n_cells; c++)
        for (size_t i = 0; i < r->n_samples; i++) n += find_wanted(r, &r->cells[c], i, wanted) == 0;
    return n;
}

static bool run_samples(retrieval *r)
{
    bool wanted[LIST_MAX], ok = true;
    size_t total = 0;
    for (size_t c = 0; c < r->n_cells; c++)
        for (size_t i = 0; i < r->n_samples; i++)
            if (find_wanted(r, &r->cells[c], i, wanted)) total += r->cells[c].length ? r->cells[c].length : (size_t)r->model.n_ctx;
    loading_warn(&r->model);
    progress_begin(&r->lanes.bar, r->measure, total);
    for (size_t c = 0, due = 0; ok && c < r->n_cells; c++) {
        for (size_t i = 0; ok && i < r->n_samples; i++) {
            if (!find_wanted(r, &r->cells[c], i, wanted)) continue;
            ok = run_sample(r, &r->cells[c], i, wanted);
            due += r->cells[c].length ? r->cells[c].length : (size_t)r->model.n_ctx;
            r->lanes.done = due;
        }
    }
    progress_end(&r->lanes.bar);
    return ok;
}

/* -------------------------------------------------------------------------------------------------- reporting ---- */

typedef struct row_sums {
    double score;
    size_t n;
    size_t n_compared, n_same; /* answers that were compared with those of reading everything, and that are these */
    double kld;                /* their predictions' sum */
    size_t n_kld;
    share_sums share;
} row_sums;

/* A turn of a file from before there was a comparison says nothing of it; a divergence that is no number is null. */
static void add_likeness(const json_t *turn, row_sums *s)
{
    const json_t *same = json_object_get(turn, "same"), *kld = json_object_get(turn, "kld");
    size_t n = (size_t)json_integer_value(json_object_get(turn, "kld_n"));
    if (!same) return;
    s->n_compared++;
    s->n_same += json_is_true(same);
    s->n_kld += n;
    if (n) s->kld += json_is_number(kld) ? json_number_value(kld) : (double)NAN;
}

/* Adds one turn of a policy's samples in a cell. */
static void add_turn(const retrieval *r, const char *policy, const task_cell *c, size_t turn, row_sums *s)
{
    char unit[UNIT];
    for (size_t i = 0; i < r->n_samples; i++) {
        unit_name(unit, c, i);
        const json_t *t = json_array_get(json_object_get(store_find(&r->store, policy, unit), "turns"), turn);
        if (!t) continue; /* interrupted before */
        s->score += json_number_value(json_object_get(t, "score"));
        s->n++;
        share_add(&s->share, t);
        add_likeness(t, s);
    }
}

/* RULER's scores are percent with two digits. */
static void set_score(const retrieval *r, json_t *row, const row_sums *s)
{
    double mean = s->score / (double)s->n;
    if (is_ruler(r)) json_object_set_new(row, "score", json_real(round(1e4 * mean) / 100));
    else json_object_set_new(row, "accuracy", json_real(mean));
    json_object_set_new(row, "n", report_count(s->n));
    if (s->n_compared) {
        json_object_set_new(row, "same_answer", json_real((double)s->n_same / (double)s->n_compared));
        json_object_set_new(row, "kld_mean", s->n_kld ? report_real(s->kld / (double)s->n_kld) : json_null());
    }
    share_set(row, &s->share);
}

static json_t *cell_row(const retrieval *r, const char *policy, const task_cell *c, size_t turn, const row_sums *s)
{
    json_t *row = json_object();
    json_object_set_new(row, "policy", json_string(policy));
    json_object_set_new(row, "task", json_string(task_name(c->kind)));
    if (c->length) json_object_set_new(row, "length", report_count(c->length));
    else json_object_set_new(row, "keys", report_count(c->n_keys));
    if (c->depth != TASK_DEPTH_SPREAD) json_object_set_new(row, "depth", json_integer(c->depth));
    if (c->n_turns > 1) json_object_set_new(row, "turn", report_count(turn + 1));
    set_score(r, row, s);
    return row;
}

/* The rows of every policy, and one of all of them together; RULER's is the mean of its rows. */
static void add_rows(const retrieval *r, const char *policy, json_t *rows, json_t *policies)
{
    row_sums all = {0};
    for (size_t c = 0; c < r->n_cells; c++) {
        for (size_t t = 0; t < r->cells[c].n_turns; t++) {
            row_sums s = {0};
            add_turn(r, policy, &r->cells[c], t, &s);
            add_turn(r, policy, &r->cells[c], t, &all);
            if (s.n == 0) continue;
            json_array_append_new(rows, cell_row(r, policy, &r->cells[c], t, &s));
        }
    }
    if (all.n == 0) return;
    json_t *row = json_object();
    json_object_set_new(row, "policy", json_string(policy));
    set_score(r, row, &all);
    json_array_append_new(policies, row);
}

/* Columns that the rows of this measure have. */
static size_t find_columns(const json_t *rows, report_column *out)
{
    static const report_column columns[] = {{"policy", 0}, {"task", 0}, {"length", 0}, {"keys", 0}, {"depth", 0}, {"turn", 0}, {"n", 0},
                                            {"score", 2}, {"accuracy", 3}, {"same_answer", 3}, {"kld_mean", 4}, {"share_read", 4}, {"share_rows", 4}};
    size_t n = 0;
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        if (json_object_get(json_array_get(rows, 0), columns[i].key)) out[n++] = columns[i];
    return n;
}

static int report_retrieval(const retrieval *r)
{
    report_column columns[16];
    char note[200];
    const char *form = r->form.plain || !r->form.chat_template ? "plain text" : r->form.chat_template;
    json_t *v = report_begin(r->flags, &r->model, r->measure, r->seed), *rows = json_array(), *policies = json_array();
    for (size_t i = 0; i < r->policies.n; i++) add_rows(r, r->policies.v[i].label, rows, policies);
    json_object_set_new(v, "policies", policies);
    json_object_set_new(v, "rows", rows);
    json_object_set_new(v, "ctx", report_count(r->model.n_ctx));
    json_object_set_new(v, "n_samples", report_count(r->n_samples));
    json_object_set_new(v, "prompt", json_string(form));
    if (is_ruler(r)) json_object_set_new(v, "words", json_string("own word list"));
    if (strcmp(r->measure, "niah") == 0) json_object_set_new(v, "haystack", json_string(r->flags->file ? r->flags->file : "noise"));
    snprintf(note, sizeof note, "%zu samples, seed %" PRIu64 ", %s%s%s", r->n_samples, r->seed, form, strcmp(form, "plain text") == 0 ? "" : " template",
             is_ruler(r) ? ", own word list" : "");
    return report_rows(r->flags, v, "rows", columns, find_columns(rows, columns), note);
}

/* ------------------------------------------------------------------------------------------------------- all ---- */

static bool open_store(retrieval *r)
{
    char hash[17];
    json_t *header = report_dependencies(r->flags, &r->model, r->measure, r->seed);
    snprintf(hash, sizeof hash, "%016" PRIx64, spw_hash(0, r->haystack.data, r->haystack.len));
    json_object_set_new(header, "template", json_string(r->form.chat_template ? r->form.chat_template : "none"));
    json_object_set_new(header, "haystack_hash", json_string(hash));
    json_object_set_new(header, "turns", report_count(r->cells[0].n_turns));
    return store_open(&r->store, r->flags->resume, header);
}

static int run(retrieval *r)
{
    r->form.vocab = r->model.vocab;
    r->form.plain = task_is_plain(r->cells[0].kind);
    if (!question_template(r->flags, r->model.vocab, &r->form.chat_template) || !lanes_open(&r->lanes, &r->model, r->flags, &r->policies) ||
        (r->flags->html && !html_check(r->flags->html)) || !open_store(r))
        return EXIT_FAILED;
    bool ok = run_samples(r);
    if (!r->lanes.interrupted) return ok ? report_retrieval(r) : EXIT_FAILED;
    size_t done = count_done(r);
    return report_interrupted(&r->model, done, r->n_cells * r->n_samples, "samples", done ? report_retrieval(r) : EXIT_OK);
}

static int measure(const options *o, const char *name)
{
    retrieval r = {.flags = o, .measure = name, .seed = o->seed >= 0 ? (uint64_t)o->seed : EVAL_SEED};
    char why[200];
    uint64_t n_ctx = 0;
    int code = EXIT_USAGE;
    r.n_samples = o->samples ? (size_t)o->samples : strcmp(name, "niah") == 0 ? 1 : SAMPLES;
    if (!policies_parse(&r.policies, &o->policies, why, sizeof why)) report_error(command_eval.name, "--policies: %s", why);
    else if (add_cells(&r)) {
        code = EXIT_FAILED;
        if (read_haystack(&r) && find_context(&r, &n_ctx) &&
            loading_check_forks(&r.model, &command_eval, o, n_ctx, r.policies.n + 1, policies_positions(&r.policies, n_ctx, new_tokens(&r))) && loading_open(&r.model, o))
            code = run(&r);
    }
    lanes_close(&r.lanes);
    store_close(&r.store);
    loading_close(&r.model);
    text_free(&r.haystack);
    free(r.cells);
    return code;
}

int eval_ruler(const options *o)
{
    return measure(o, "ruler");
}

int eval_kv(const options *o)
{
    return measure(o, "kv");
}

int eval_passkey(const options *o)
{
    return measure(o, "passkey");
}

int eval_niah(const options *o)
{
    return measure(o, "niah");
}

int eval_multiturn(const options *o)
{
    return measure(o, "multiturn");
}
