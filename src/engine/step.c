/* step.c - spw_step: rows of several sessions, cut into passes of at most n_batch rows.
 *
 * Nothing is committed to a session before the last pass has succeeded, except that later passes of the same step read the rows that earlier ones
 * wrote: those are reserved, and forgotten again when the step fails. */
#include <string.h>

#include "engine_private.h"
#include "mem.h"

static spw_status check_item(const spw_engine *e, const spw_work *w, size_t index, spw_err *err)
{
    if (!w->session || w->session->engine != e) return spw_fail(err, SPW_E_ARG, "step item %zu: its session belongs to another engine", index);
    if (w->session->in_step) return spw_fail(err, SPW_E_ARG, "step item %zu: its session occurs twice in the step", index);
    if (w->n < 1 || !w->tokens) return spw_fail(err, SPW_E_ARG, "step item %zu: expected at least 1 token, found 0", index);
    if (w->kind != SPW_PROMPT && w->kind != SPW_DECODE) return spw_fail(err, SPW_E_ARG, "step item %zu: unknown kind %d", index, (int)w->kind);
    if (w->kind == SPW_DECODE && w->n != 1) return spw_fail(err, SPW_E_ARG, "step item %zu: a generated row has 1 token, found %zu", index, w->n);
    if (w->n_logits > w->n || (w->n_logits && !w->logits))
        return spw_fail(err, SPW_E_ARG, "step item %zu: logits of %zu rows asked for, %zu are there", index, w->n_logits, w->n);
    uint64_t pos = kv_seq_len(w->session->seq), n_ctx = kv_seq_n_ctx(w->session->seq);
    if (w->n > n_ctx - pos) {
        return spw_fail(err, SPW_E_FULL, "the context holds %llu tokens: %llu are there, %zu more do not fit", (unsigned long long)n_ctx,
                        (unsigned long long)pos, w->n);
    }
    for (size_t i = 0; i < w->n; i++) {
        if (w->tokens[i] < 0 || (uint32_t)w->tokens[i] >= e->model->hp.n_vocab) {
            return spw_fail(err, SPW_E_ARG, "token %zu of step item %zu: expected an id below %u, found %d", i, index, e->model->hp.n_vocab,
                            w->tokens[i]);
        }
    }
    return SPW_OK;
}

/* The requests that rows [done, done + n) of an item make, row being the pass's row of the first; returns how many were added. */
static size_t add_requests(logit_request *out, const spw_work *w, size_t done, size_t n, uint32_t row, size_t n_vocab)
{
    size_t count = 0, first_wanted = w->n - w->n_logits;
    for (size_t i = 0; i < n; i++) {
        if (done + i >= first_wanted) out[count++] = (logit_request){row + (uint32_t)i, w->logits + (done + i - first_wanted) * n_vocab};
    }
    if (done + n == w->n) out[count++] = (logit_request){row + (uint32_t)n - 1, w->session->next_logits};
    return count;
}

void engine_free_step(spw_engine *e)
{
    mem_free(e->rows);
    mem_free(e->row_sessions);
    mem_free(e->progress);
    mem_free(e->reads);
    mem_free(e->requests);
}

/* Room for passes over n_work items; kept, so that decoding allocates nothing. */
static spw_status size_pass(spw_engine *e, size_t n_work, spw_err *err)
{
    if (n_work <= e->cap_work) return SPW_OK;
    size_t cap = n_work + n_work / 2, n_requests = e->n_batch + cap;
    plan_rows *rows = mem_calloc(cap, sizeof *rows);
    spw_session **sessions = mem_calloc(cap, sizeof *sessions);
    step_progress *prog = mem_calloc(cap, sizeof *prog);
    plan_reads *reads = mem_calloc(cap, sizeof *reads);
    logit_request *requests = mem_calloc(n_requests, sizeof *requests);
    if (!rows || !sessions || !prog || !reads || !requests) {
        mem_free(rows);
        mem_free(sessions);
        mem_free(prog);
        mem_free(reads);
        mem_free(requests);
        return spw_fail(err, SPW_E_NOMEM, "step: out of memory for %zu sessions", n_work);
    }
    engine_free_step(e);
    e->rows = rows;
    e->row_sessions = sessions;
    e->progress = prog;
    e->reads = reads;
    e->requests = requests;
    e->cap_work = cap;
    return SPW_OK;
}

/* Fills one pass from the items that are not done, in order, and runs it; *left is false when nothing was left to do. */
static spw_status run_pass(spw_engine *e, spw_work *work, size_t n_work, bool *left, spw_err *err)
{
    step_progress *prog = e->progress;
    plan_reads *reads = e->reads;
    size_t n_rows = 0, n_requests = 0;
    uint32_t total = 0;
    for (size_t i = 0; i < n_work && total < e->n_batch; i++) {
        size_t n = work[i].n - prog[i].done;
        if (!n) continue;
        if (n > e->n_batch - total) n = e->n_batch - total;
        spw_status opened = kv_seq_open(work[i].session->seq, n, err);
        if (opened) return opened;
        memcpy(e->ids + total, work[i].tokens + prog[i].done, n * sizeof *e->ids);
        e->rows[n_rows] = (plan_rows){.seq = work[i].session->seq, .policies = &work[i].session->policies, .first_pos = prog[i].start + prog[i].done,
                                      .first_row = total, .n_rows = (uint32_t)n, .decode = work[i].kind == SPW_DECODE,
                                      .watched = work[i].kind == SPW_DECODE && work[i].session->observe};
        e->row_sessions[n_rows] = work[i].session;
        n_requests += add_requests(e->requests + n_requests, &work[i], prog[i].done, n, total, e->model->hp.n_vocab);
        reads[n_rows++] = (plan_reads){0};
        total += (uint32_t)n;
    }
    *left = total > 0;
    if (!total) return SPW_OK;
    spw_status s = forward_pass(e, n_rows, total, e->requests, n_requests, reads, err);
    if (s) return s;
    for (size_t i = 0, row = 0; row < n_rows; i++) {
        if (prog[i].done == work[i].n) continue;
        prog[i].done += e->rows[row].n_rows;
        prog[i].reads = reads[row++]; /* only decode rows read through a policy, and they are whole in one pass */
    }
    return SPW_OK;
}

static void finish_item(spw_work *w, const step_progress *p)
{
    spw_session *s = w->session;
    kv_seq_commit(s->seq, w->n);
    float *logits = s->logits;
    s->logits = s->next_logits;
    s->next_logits = logits;
    s->has_logits = true;
    if (w->kind == SPW_PROMPT) s->policy_stale = true;
    if (w->kind == SPW_DECODE) {
        s->middle_bytes += p->reads.middle_bytes;
        s->read_rows_bytes += p->reads.row_bytes;
        s->read_bytes += p->reads.row_bytes + p->reads.side_bytes;
    }
}

/* Policies are told once that a prompt has been appended (or positions forgotten), before the next generated row. */
static spw_status begin_policies(const spw_work *w, spw_err *err)
{
    spw_session *s = w->session;
    if (w->kind != SPW_DECODE || !s->policy_stale) return SPW_OK;
    policy_start start = {.seq = s->seq, .kern = s->engine->kern, .pool = s->engine->pool};
    for (uint32_t i = 0; i < s->policies.n; i++) {
        policy *p = &s->policies.v[i];
        spw_status status = p->ops->begin ? p->ops->begin(p->state, &p->params, &start, err) : SPW_OK;
        if (status) return status;
    }
    s->policy_stale = false;
    return SPW_OK;
}

spw_status spw_step(spw_engine *e, spw_work *work, size_t n_work, spw_err *err)
{
    if (!n_work) return SPW_OK;
    spw_status s = SPW_OK;
    size_t checked = 0;
    for (; checked < n_work && !s; checked++) {
        s = check_item(e, &work[checked], checked, err);
        if (!s) work[checked].session->in_step = true;
    }
    if (s) checked--;
    for (size_t i = 0; i < checked; i++) work[i].session->in_step = false;
    if (s) return s;

    s = size_pass(e, n_work, err);
    if (s) return s;
    step_progress *prog = e->progress;
    memset(prog, 0, n_work * sizeof *prog);
    for (size_t i = 0; i < n_work && !s; i++) s = begin_policies(&work[i], err);
    size_t reserved = 0;
    for (; reserved < n_work && !s; reserved++) {
        prog[reserved].start = kv_seq_len(work[reserved].session->seq);
        s = kv_seq_reserve(work[reserved].session->seq, work[reserved].n, err);
    }
    bool left = true;
    uint64_t mode = pool_float_mode_enter(); /* what runs on this thread must not differ from what workers run */
    while (!s && left) s = run_pass(e, work, n_work, &left, err);
    pool_float_mode_leave(mode);
    for (size_t i = 0; i < reserved; i++) {
        if (s) kv_seq_truncate(work[i].session->seq, prog[i].start);
        else finish_item(&work[i], &prog[i]);
    }
    return s;
}
