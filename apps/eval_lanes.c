/* eval_lanes.c - one context continued under several policies. */
#include "eval_lanes.h"

#include <stdlib.h>
#include <string.h>

#include "generate.h"
#include "report.h"
#include "text_input.h"

static bool complain(const lanes *l, const spw_err *err)
{
    report_error(l->model->command, "%s", err->msg);
    return false;
}

bool lanes_open(lanes *l, const loaded *model, const options *o, const policy_list *policies)
{
    spw_err err = {0};
    *l = (lanes){.model = model, .policies = policies, .params = options_session(o, model->n_ctx), .n_vocab = (size_t)spw_vocab_size(model->vocab)};
    if (!policies_check(policies, model->engine, &l->params, &err)) return complain(l, &err);
    spw_session_params dense = l->params;
    dense.kv_policy = "full";
    if (spw_session_create(&l->base, model->engine, &dense, &err) != SPW_OK) return complain(l, &err);
    l->logits = app_alloc((policies->n + 1) * l->n_vocab * sizeof *l->logits);
    generate_watch_interrupts();
    return true;
}

static void drop_forks(lanes *l)
{
    for (size_t i = 0; i < l->n; i++) spw_session_free(l->v[i].session);
    l->n = 0;
}

void lanes_close(lanes *l)
{
    drop_forks(l);
    spw_session_free(l->base);
    free(l->logits);
    *l = (lanes){0};
}

static bool is_interrupted(lanes *l)
{
    return l->interrupted = generate_interrupted();
}

bool lanes_read(lanes *l, const int32_t *ids, size_t n)
{
    spw_err err = {0};
    size_t batch = (size_t)spw_engine_n_batch(l->model->engine);
    drop_forks(l);
    if (spw_session_truncate(l->base, 0, &err) != SPW_OK) return complain(l, &err);
    for (size_t at = 0; at < n;) {
        size_t take = n - at < batch ? n - at : batch;
        if (is_interrupted(l)) return false;
        if (spw_session_eval(l->base, ids + at, take, &err) != SPW_OK) return complain(l, &err);
        at += take;
        l->done += take;
        progress_update(&l->bar, l->done, NULL);
    }
    return true;
}

static bool add_lane(lanes *l, int policy)
{
    spw_err err = {0};
    spw_session_params p = l->params;
    lane *a = &l->v[l->n];
    *a = (lane){.policy = policy, .logits = l->logits + l->n * l->n_vocab, .next = -1};
    if (policy == LANE_DENSE) p.kv_policy = "full";
    else policy_apply(&l->policies->v[policy], &p);
    if (spw_session_fork(&a->session, l->base, &p, &err) != SPW_OK) return complain(l, &err);
    memcpy(a->logits, spw_session_logits(l->base), l->n_vocab * sizeof *a->logits);
    l->n++;
    return true;
}

bool lanes_fork(lanes *l, const bool *wanted, bool dense)
{
    if (dense && !add_lane(l, LANE_DENSE)) return false;
    for (size_t i = 0; i < l->policies->n; i++)
        if (wanted[i] && !add_lane(l, (int)i)) return false;
    return true;
}

bool lanes_step(lanes *l)
{
    spw_err err = {0};
    spw_work work[LANES_MAX];
    size_t n = 0;
    if (is_interrupted(l)) return false;
    for (size_t i = 0; i < l->n; i++) {
        lane *a = &l->v[i];
        if (a->next >= 0) work[n++] = (spw_work){.session = a->session, .tokens = &a->next, .n = 1, .kind = SPW_DECODE, .logits = a->logits, .n_logits = 1};
    }
    if (n && spw_step(l->model->engine, work, n, &err) != SPW_OK) return complain(l, &err);
    for (size_t i = 0; i < l->n; i++) l->v[i].next = -1;
    return true;
}

bool lanes_append(lanes *l, const int32_t *ids, size_t n)
{
    spw_err err = {0};
    spw_work work[LANES_MAX];
    for (size_t i = 0; i < l->n; i++)
        work[i] = (spw_work){.session = l->v[i].session, .tokens = ids, .n = n, .kind = SPW_PROMPT, .logits = l->v[i].logits, .n_logits = 1};
    if (l->n && n && spw_step(l->model->engine, work, l->n, &err) != SPW_OK) return complain(l, &err);
    return true;
}
