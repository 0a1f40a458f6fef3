/* session.c - timelines (spillway.h): create, fork, truncate, statistics, and the one-session forms of spw_step. */
#include <stdio.h>
#include <string.h>

#include "engine_private.h"
#include "mem.h"

spw_session_params spw_session_default_params(void)
{
    return (spw_session_params){.kv_policy = "adaptive", .kv_sink = 64, .kv_window = 256, .kv_budget = -1, .kv_rule = SPW_KV_MODEL, .kv_rest = SPW_KV_REST_MEAN, .kv_beta = 1, .sparse_min_ctx = 2048};
}

/* A session without timeline and policy: what create and fork share. */
static spw_status session_alloc(spw_session **out, spw_engine *e, spw_err *err)
{
    spw_session *s = mem_zalloc(sizeof *s);
    size_t n_vocab = e->model->hp.n_vocab;
    if (s) {
        s->engine = e;
        s->logits = mem_calloc(n_vocab, sizeof *s->logits);
        s->next_logits = mem_calloc(n_vocab, sizeof *s->next_logits);
    }
    if (!s || !s->logits || !s->next_logits) {
        spw_session_free(s);
        return spw_fail(err, SPW_E_NOMEM, "session: out of memory for the logits of %zu tokens", n_vocab);
    }
    *out = s;
    return SPW_OK;
}

/* A sliding layer would need its own cut of the past; nothing forgets rows yet, so such models serve up to their window. */
static spw_status check_sliding(const model_hparams *hp, uint64_t n_ctx, spw_err *err)
{
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        uint32_t w = hp->layer_kv[i].sliding;
        if (w && n_ctx > w) {
            return spw_fail(err, SPW_E_UNSUPPORTED, "layer %u attends to a sliding window of %u positions: a context of %llu is not supported (-c at most %u)",
                            i, w, (unsigned long long)n_ctx, w);
        }
    }
    return SPW_OK;
}

static spw_status start_policies(spw_session *s, const spw_session_params *p, spw_err *err)
{
    static const policy_rule rules[] = {[SPW_KV_FLAT] = POLICY_FLAT, [SPW_KV_THRESHOLD] = POLICY_THRESHOLD, [SPW_KV_TOP_P] = POLICY_TOP_P, [SPW_KV_ERROR] = POLICY_ERROR,
                                         [SPW_KV_LAYER] = POLICY_LAYER, [SPW_KV_MODEL] = POLICY_MODEL};
    static const policy_stand_in stand_ins[] = {[SPW_KV_REST_NONE] = POLICY_NOTHING, [SPW_KV_REST_MEAN] = POLICY_MEANS};
    const spw_engine *e = s->engine;
    if ((unsigned)p->kv_rest >= sizeof stand_ins / sizeof *stand_ins) return spw_fail(err, SPW_E_ARG, "KV rest: unknown number %d", (int)p->kv_rest);
    if ((unsigned)p->kv_rule >= sizeof rules / sizeof *rules) return spw_fail(err, SPW_E_ARG, "KV rule: unknown number %d", (int)p->kv_rule);
    policy_params pp = {.n_layer = e->model->hp.n_layer, .n_head_kv = e->n_head_kv, .group = e->group, .dim = e->dim, .sink = p->kv_sink, .window = p->kv_window,
                        .min_ctx = p->sparse_min_ctx, .budget = p->kv_budget, .block = p->kv_block, .rule = rules[p->kv_rule], .threshold = p->kv_threshold,
                        .error = p->kv_error, .stand_in = stand_ins[p->kv_rest], .beta = p->kv_beta};
    return policy_layers_init(&s->policies, p->kv_policy ? p->kv_policy : "adaptive", &pp, err);
}

spw_status spw_session_create(spw_session **out, spw_engine *e, const spw_session_params *params, spw_err *err)
{
    spw_session_params p = params ? *params : spw_session_default_params();
    uint64_t n_ctx = p.n_ctx ? p.n_ctx : e->info.n_ctx_train;
    spw_session *s = NULL;
    spw_status status = check_sliding(&e->model->hp, n_ctx, err);
    if (!status) status = session_alloc(&s, e, err);
    if (!status) status = start_policies(s, &p, err);
    if (!status) status = kv_seq_create(&s->seq, e->store, n_ctx, err);
    if (status) {
        spw_session_free(s);
        return status;
    }
    s->policy_stale = true;
    *out = s;
    return SPW_OK;
}

spw_status spw_session_fork(spw_session **out, const spw_session *from, const spw_session_params *params, spw_err *err)
{
    spw_session *s = NULL;
    uint64_t n_ctx = params && params->n_ctx ? params->n_ctx : kv_seq_n_ctx(from->seq), len = kv_seq_len(from->seq);
    if (n_ctx < len) {
        return spw_fail(err, SPW_E_ARG, "fork: expected a context of at least %llu positions, found %llu", (unsigned long long)len,
                        (unsigned long long)n_ctx);
    }
    spw_status status = check_sliding(&from->engine->model->hp, n_ctx, err);
    if (!status) status = session_alloc(&s, from->engine, err);
    if (!status) status = params ? start_policies(s, params, err) : policy_layers_fork(&s->policies, &from->policies, err);
    if (!status) status = kv_seq_fork(&s->seq, from->seq, n_ctx, err);
    if (status) {
        spw_session_free(s);
        return status;
    }
    s->has_logits = from->has_logits;
    s->policy_stale = params || from->policy_stale;
    if (s->has_logits) memcpy(s->logits, from->logits, from->engine->model->hp.n_vocab * sizeof *s->logits);
    *out = s;
    return SPW_OK;
}

void spw_session_free(spw_session *s)
{
    if (!s) return;
    kv_seq_free(s->seq);
    if (s->policies.v) policy_layers_done(&s->policies);
    mem_free(s->logits);
    mem_free(s->next_logits);
    mem_free(s);
}

uint64_t spw_session_pos(const spw_session *s)
{
    return kv_seq_len(s->seq);
}

uint64_t spw_session_n_ctx(const spw_session *s)
{
    return kv_seq_n_ctx(s->seq);
}

spw_status spw_session_truncate(spw_session *s, uint64_t pos, spw_err *err)
{
    uint64_t len = kv_seq_len(s->seq);
    if (pos > len) {
        return spw_fail(err, SPW_E_ARG, "truncation: expected a position up to %llu, found %llu", (unsigned long long)len, (unsigned long long)pos);
    }
    if (pos == len) return SPW_OK;
    kv_seq_truncate(s->seq, pos);
    s->has_logits = false;
    s->policy_stale = true;
    return SPW_OK;
}

spw_status spw_session_eval(spw_session *s, const int32_t *tokens, size_t n, spw_err *err)
{
    return spw_step(s->engine, &(spw_work){.session = s, .tokens = tokens, .n = n, .kind = SPW_PROMPT}, 1, err);
}

spw_status spw_session_decode(spw_session *s, int32_t token, spw_err *err)
{
    return spw_step(s->engine, &(spw_work){.session = s, .tokens = &token, .n = 1, .kind = SPW_DECODE}, 1, err);
}

const float *spw_session_logits(const spw_session *s)
{
    return s->has_logits ? s->logits : NULL;
}

spw_session_stats spw_session_get_stats(const spw_session *s)
{
    spw_session_stats st = {.positions = kv_seq_len(s->seq), .kv_bytes = kv_seq_bytes(s->seq), .middle_bytes = s->middle_bytes,
                            .read_bytes = s->read_bytes, .read_rows_bytes = s->read_rows_bytes};
    const policy_layers *l = &s->policies;
    snprintf(st.kv_policy, sizeof st.kv_policy, "%s", l->v[l->of_layer[0]].ops->name);
    for (uint32_t i = 0; i < s->engine->model->hp.n_layer; i++)
        if (l->of_layer[i] != l->of_layer[0]) snprintf(st.kv_policy, sizeof st.kv_policy, "mixed");
    return st;
}

void spw_session_observe(spw_session *s, spw_observe_fn *observe, void *ctx, bool truth)
{
    s->observe = observe;
    s->observe_ctx = ctx;
    s->observe_truth = truth;
}
