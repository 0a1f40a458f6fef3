/* eval_questions.c - asks a model the questions of a sample, under several policies at once, and compares them with reading everything, which is one more lane where no policy does.
 *
 * The first token of an answer follows from the prompt, which is read exactly whatever the policy; the policy acts from the second on. */
#include "eval_questions.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "eval_divergence.h"
#include "report.h"

bool question_template(const options *o, const spw_vocab *v, const char **name)
{
    *name = o->chat_template ? o->chat_template : spw_vocab_chat_template(v);
    if (strcmp(*name, "none") == 0 || **name == '\0') *name = NULL;
    if (!*name || strcmp(*name, "unknown") != 0) return true;
    report_error("eval", "%s: its chat template is not known: give one with --chat-template (%s), or none for plain text", o->model, spw_chat_templates());
    return false;
}

static void append_ids(int32_t **ids, size_t *n, const int32_t *more, size_t n_more)
{
    *ids = app_realloc(*ids, (*n + n_more) * sizeof **ids);
    if (n_more) memcpy(*ids + *n, more, n_more * sizeof **ids);
    *n += n_more;
}

/* A turn's tokens, freed by free(). */
static bool encode(const question_form *f, const task_turn *t, bool first, int32_t **ids, size_t *n, spw_err *err)
{
    int32_t *part = NULL;
    size_t n_part = 0;
    text whole = {0};
    *ids = NULL;
    *n = 0;
    bool chat = f->chat_template && !f->plain;
    if (chat) {
        spw_message message = {"user", t->question.data};
        if (spw_chat_render(f->vocab, f->chat_template, &message, 1, 0, &part, &n_part, err) != SPW_OK) return false;
        append_ids(ids, n, part, n_part);
        spw_free(part);
    } else {
        text_append(&whole, t->question.data, t->question.len);
    }
    text_append(&whole, t->prefix.data, t->prefix.len);
    unsigned flags = !chat && first && spw_vocab_adds_bos(f->vocab) ? (unsigned)SPW_TOK_BOS : 0u;
    bool ok = spw_tokenize(f->vocab, whole.data, whole.len, flags, &part, &n_part, err) == SPW_OK;
    if (ok) append_ids(ids, n, part, n_part), spw_free(part);
    text_free(&whole);
    return ok;
}

size_t question_tokens(void *ctx, const task_turn *turn)
{
    question_form *f = ctx;
    int32_t *ids;
    size_t n;
    bool ok = encode(f, turn, true, &ids, &n, &f->err);
    free(ids);
    return ok ? n : SIZE_MAX / 4;
}

static int32_t most_likely(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* How like the lane that reads everything the others are, as long as their texts are the same. */
typedef struct likeness {
    size_t full;           /* that lane */
    bool alike[LANES_MAX]; /* the texts are the same so far */
    double kld[LANES_MAX]; /* of the answer's predictions, but the first, which the prompt makes: their sum, */
    size_t n[LANES_MAX];   /* and how many there are */
    double *probabilities; /* n_vocab, of the lane that reads everything */
} likeness;

static bool reads_all(const lanes *l, size_t i)
{
    return l->v[i].policy == LANE_DENSE || policy_is_full(&l->policies->v[l->v[i].policy]);
}

static likeness likeness_begin(const lanes *l)
{
    likeness k = {.probabilities = app_alloc(l->n_vocab * sizeof *k.probabilities)};
    while (!reads_all(l, k.full)) k.full++;
    for (size_t i = 0; i < l->n; i++) k.alike[i] = true;
    return k;
}

/* A lane for each policy that is wanted, and a dense one if none of them reads everything. */
static bool fork_lanes(lanes *l, const bool *wanted)
{
    bool full = false;
    for (size_t i = 0; i < l->policies->n; i++) full = full || (wanted[i] && policy_is_full(&l->policies->v[i]));
    return lanes_fork(l, wanted, !full);
}

/* Adds the predictions of lanes that go on and are alike. */
static void likeness_add(likeness *k, const lanes *l, const bool *going)
{
    size_t top;
    if (!going[k->full]) return;
    const float *p = l->v[k->full].logits;
    const double p_log = divergence_log_sum(p, l->n_vocab, &top);
    divergence_probabilities(p, p_log, l->n_vocab, k->probabilities);
    for (size_t i = 0; i < l->n; i++) {
        if (!k->alike[i] || !going[i]) continue;
        const float *q = l->v[i].logits;
        k->kld[i] += divergence_kld(k->probabilities, p, p_log, q, divergence_log_sum(q, l->n_vocab, &top), l->n_vocab);
        k->n[i]++;
    }
}

/* Of the turn that has been answered, into its result: the sum of divergences, null where there was no prediction to compare, of how many, and whether the answer is that of reading everything. */
static void likeness_set(likeness *k, size_t i, const text *answers, json_t *result)
{
    const text *a = &answers[i], *full = &answers[k->full];
    json_object_set_new(result, "kld", k->n[i] ? report_real(k->kld[i]) : json_null());
    json_object_set_new(result, "kld_n", report_count(k->n[i]));
    json_object_set_new(result, "same", json_boolean(a->len == full->len && memcmp(a->data, full->data, a->len) == 0));
    k->kld[i] = 0, k->n[i] = 0;
}

/* Takes the lane's next token, which is *id_out, into its answer; false when the answer ends with it or before it.  A token that ends it stays the lane's next only if it is text. */
static bool take_token(lane *a, const lanes *l, char stop, text *answer, int32_t *id_out)
{
    size_t len;
    int32_t id = *id_out = most_likely(a->logits, l->n_vocab);
    if (spw_vocab_is_end(l->model->vocab, id)) return false;
    const char *piece = spw_token_text(l->model->vocab, id, false, &len);
    text_append(answer, piece, len);
    a->next = id;
    return !stop || !len || !memchr(piece, stop, len);
}

/* All lanes answer; a lane whose answer ended keeps its last token as next, which the session has not taken. */
static bool answer_all(lanes *l, const task_kind *kind, text *answers, likeness *k)
{
    int32_t last[LANES_MAX], id[LANES_MAX];
    bool going[LANES_MAX], any = true;
    for (size_t i = 0; i < l->n; i++) text_append(&answers[i], "", 0), going[i] = true, last[i] = -1;
    for (size_t made = 1; any; made++) {
        any = false;
        for (size_t i = 0; i < l->n; i++) {
            if (!going[i]) continue;
            going[i] = take_token(&l->v[i], l, task_stop(kind), &answers[i], &id[i]) && made < task_new_tokens(kind);
            any = any || going[i];
            if (!going[i]) last[i] = l->v[i].next, l->v[i].next = -1;
        }
        for (size_t i = 0; i < l->n; i++) k->alike[i] = k->alike[i] && id[i] == id[k->full];
        if (any && !lanes_step(l)) return false;
        likeness_add(k, l, going);
    }
    for (size_t i = 0; i < l->n; i++) l->v[i].next = last[i];
    return true;
}

static json_t *turn_result(const lane *a, const spw_session_stats *before, double score, const text *answer)
{
    spw_session_stats now = spw_session_get_stats(a->session);
    json_t *v = json_object();
    json_object_set_new(v, "score", json_real(score));
    json_object_set_new(v, "middle", report_count(now.middle_bytes - before->middle_bytes));
    json_object_set_new(v, "read", report_count(now.read_bytes - before->read_bytes));
    json_object_set_new(v, "rows", report_count(now.read_rows_bytes - before->read_rows_bytes));
    json_object_set_new(v, "answer", report_text(answer->data, answer->len));
    return v;
}

/* The lanes have read the turn's question; what they answer goes into results. */
static bool ask_turn(lanes *l, const task_kind *kind, const task_turn *turn, likeness *k, json_t **results)
{
    spw_session_stats before[LANES_MAX];
    text answers[LANES_MAX] = {0};
    for (size_t i = 0; i < l->n; i++) before[i] = spw_session_get_stats(l->v[i].session);
    bool ok = answer_all(l, kind, answers, k);
    for (size_t i = 0; ok && i < l->n; i++) {
        if (l->v[i].policy == LANE_DENSE) continue;
        double score = task_score(kind, turn, answers[i].data, answers[i].len);
        json_t *result = turn_result(&l->v[i], &before[i], score, &answers[i]);
        likeness_set(k, i, answers, result);
        json_array_append_new(json_object_get(results[l->v[i].policy], "turns"), result);
    }
    for (size_t i = 0; i < l->n; i++) text_free(&answers[i]);
    return ok;
}

/* Positions of the longest lane. */
static uint64_t longest(const lanes *l)
{
    uint64_t n = 0;
    for (size_t i = 0; i < l->n; i++)
        if (spw_session_pos(l->v[i].session) > n) n = spw_session_pos(l->v[i].session);
    return n;
}

bool question_ask(lanes *l, const question_form *form, const task_kind *kind, const task_sample *sample, const bool *wanted, json_t **results)
{
    bool ok = true;
    likeness alike = {0};
    for (size_t i = 0; i < l->policies->n; i++) results[i] = wanted[i] ? json_pack("{s:i, s:[]}", "tokens", 0, "turns") : NULL;
    for (size_t t = 0; ok && t < sample->n_turns; t++) {
        int32_t *ids = NULL;
        size_t n = 0;
        spw_err err = {0};
        ok = encode(form, &sample->turns[t], t == 0, &ids, &n, &err);
        uint64_t held = t ? longest(l) + 1 : 0;
        if (!ok) report_error(l->model->command, "%s", err.msg);
        else if (held + n + task_new_tokens(kind) > l->model->n_ctx) {
            report_error(l->model->command, "%s: a sample takes %" PRIu64 " tokens, the context holds %" PRIu64 ": raise -c", task_name(kind),
                         held + n + task_new_tokens(kind), l->model->n_ctx);
            ok = false;
        }
        if (ok && t == 0) ok = lanes_read(l, ids, n) && fork_lanes(l, wanted);
        else if (ok) ok = lanes_step(l) && lanes_append(l, ids, n);
        for (size_t i = 0; ok && t == 0 && i < l->policies->n; i++)
            if (results[i]) json_object_set_new(results[i], "tokens", report_count(n));
        if (ok && t == 0) alike = likeness_begin(l);
        ok = ok && ask_turn(l, kind, &sample->turns[t], &alike, results);
        free(ids);
    }
    free(alike.probabilities);
    for (size_t i = 0; !ok && i < l->policies->n; i++) json_decref(results[i]), results[i] = NULL;
    return ok;
}
