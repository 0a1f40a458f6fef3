/* observe.c - tells policies what their rows attended to, and tells whoever watches a session (spw_session_observe).
 *
 * For the truth every layer is attended once more, to everything, from the same queries, into memory of its own: what the pass computes does not change. */
#include <math.h>
#include <string.h>

#include "engine_private.h"
#include "mem.h"

/* Makes room for n floats at *p, forgetting what is there. */
static spw_status size_floats(float **p, size_t *cap, size_t n, spw_err *err)
{
    if (n <= *cap) return SPW_OK;
    float *made = mem_alloc(n * sizeof *made);
    if (!made) return spw_fail(err, SPW_E_NOMEM, "observation: out of memory for %zu floats", n);
    mem_free(*p);
    *p = made;
    *cap = n;
    return SPW_OK;
}

/* What stays for the life of the engine, made when the first session is watched. */
static spw_status start_observer(spw_engine *e, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    observer *ob = &e->observer;
    if (ob->full.v) return SPW_OK;
    if (!ob->mass) ob->mass = mem_calloc(hp->n_head, 3 * sizeof *ob->mass);
    if (!ob->heads) ob->heads = mem_calloc(hp->n_head_kv, sizeof *ob->heads);
    if (!ob->mass || !ob->heads) return spw_fail(err, SPW_E_NOMEM, "observation: out of memory for %u heads", hp->n_head);
    ob->error = ob->mass + hp->n_head;
    ob->estimate = ob->error + hp->n_head;
    policy_params pp = {.n_layer = hp->n_layer, .n_head_kv = e->n_head_kv, .group = e->group, .dim = e->dim, .window = 1};
    return policy_layers_init(&ob->full, "full", &pp, err);
}

spw_status observe_begin(spw_engine *e, size_t n_rows, uint32_t n_total, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    observer *ob = &e->observer;
    size_t n_decode = 0;
    bool watched = false, truth = false;
    for (size_t i = 0; i < n_rows; i++) {
        n_decode += e->rows[i].decode;
        watched |= e->rows[i].watched;
        truth |= e->rows[i].watched && e->row_sessions[i]->observe_truth;
    }
    spw_status s = size_floats(&ob->lse, &ob->cap_lse, n_decode * hp->n_head, err);
    if (!s && watched) s = start_observer(e, err);
    if (!s && truth) s = size_floats(&ob->o, &ob->cap_o, (size_t)n_total * hp->n_head * hp->head_dim, err);
    if (!s && truth) s = size_floats(&ob->dense_lse, &ob->cap_dense_lse, n_decode * hp->n_head, err);
    if (s || !truth || n_decode <= ob->cap_rows) return s;
    plan_rows *rows = mem_alloc(n_decode * sizeof *rows);
    if (!rows) return spw_fail(err, SPW_E_NOMEM, "observation: out of memory for %zu rows", n_decode);
    mem_free(ob->rows);
    ob->rows = rows;
    ob->cap_rows = n_decode;
    return SPW_OK;
}

/* Attends to everything for the rows whose truth is wanted. */
static spw_status attend_dense(spw_engine *e, size_t n_rows, const exec_layer *l, spw_err *err)
{
    observer *ob = &e->observer;
    size_t n = 0;
    for (size_t i = 0; i < n_rows; i++) {
        if (!e->rows[i].watched || !e->row_sessions[i]->observe_truth) continue;
        ob->rows[n] = e->rows[i];
        ob->rows[n++].policies = &ob->full;
    }
    if (!n) return SPW_OK;
    plan_shape shape = {.layer = l->layer, .n_head_kv = l->n_head_kv, .group = l->group, .dim = e->dim};
    exec_layer dense = *l;
    dense.o = ob->o;
    dense.lse = ob->dense_lse;
    spw_status s = plan_begin(&ob->plan, ob->rows, n, &shape, e->pool, e->kern, err);
    if (!s) s = plan_choose(&ob->plan, e->pool, err);
    return s ? s : exec_attend(e->exec, &ob->plan, ob->rows, &dense, true, err);
}

/* |a - b| / |b|; 0 where both are nothing. */
static float relative_error(const float *a, const float *b, size_t n)
{
    double diff = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return diff > 0 ? (float)sqrt(diff / (size > 0 ? size : diff)) : 0;
}

/* part: the first of the row's in the plan; dense: its first in the observers' plan. */
static void compare(spw_engine *e, const exec_layer *l, size_t row, size_t part, size_t dense)
{
    observer *ob = &e->observer;
    size_t n_head = (size_t)l->n_head_kv * l->group, hd = l->head_dim;
    for (size_t h = 0; h < n_head; h++) {
        size_t at = (row * n_head + h) * hd;
        float captured = expf(l->lse[part * l->group + h] - ob->dense_lse[dense * l->group + h]);
        ob->mass[h] = captured < 1 ? captured : 1;
        ob->error[h] = relative_error(l->o + at, ob->o + at, hd);
    }
}

static spw_status describe(spw_engine *e, const exec_layer *l, size_t part, spw_err *err)
{
    observer *ob = &e->observer;
    size_t n = 0;
    for (uint32_t h = 0; h < l->n_head_kv; h++) n += e->plan.parts[part + h].choice.n_sets;
    if (n > ob->cap_sets) {
        spw_observed_set *sets = mem_alloc(n * sizeof *sets);
        if (!sets) return spw_fail(err, SPW_E_NOMEM, "observation: out of memory for %zu sets", n);
        mem_free(ob->sets);
        ob->sets = sets;
        ob->cap_sets = n;
    }
    spw_observed_set *to = ob->sets;
    for (uint32_t h = 0; h < l->n_head_kv; h++) {
        const plan_part *p = &e->plan.parts[part + h];
        const policy_choice *c = &p->choice;
        ob->heads[h] = (spw_observed_head){.sets = to, .n_sets = c->n_sets, .middle_bytes = p->reads.middle_bytes, .row_bytes = p->reads.row_bytes, .side_bytes = p->reads.side_bytes};
        for (size_t i = 0; i < c->n_sets; i++) {
            const policy_set *s = &c->sets[i];
            *to++ = (spw_observed_set){.q_first = s->q_first, .n_q = s->n_q, .ranges = c->ranges + s->first_range, .n_ranges = s->n_ranges,
                                       .positions = s->positions, .n_positions = s->n_rows};
        }
        memcpy(ob->estimate + h * l->group, c->mass, l->group * sizeof *c->mass);
    }
    return SPW_OK;
}

spw_status observe_layer(spw_engine *e, size_t n_rows, const exec_layer *l, spw_err *err)
{
    observer *ob = &e->observer;
    plan_observe(&e->plan, l->lse, e->pool);
    bool watched = false;
    for (size_t i = 0; i < n_rows; i++) watched |= e->rows[i].watched;
    if (!watched) return SPW_OK;
    spw_status s = attend_dense(e, n_rows, l, err);
    size_t part = 0, dense = 0;
    for (size_t i = 0; i < n_rows && !s; i++) {
        if (!e->rows[i].decode) continue;
        const spw_session *session = e->row_sessions[i];
        if (session->observe) s = describe(e, l, part, err);
        if (session->observe && !s) {
            spw_observation o = {.pos = e->rows[i].first_pos, .layer = l->layer, .n_head = l->n_head_kv * l->group, .n_head_kv = l->n_head_kv, .heads = ob->heads,
                                 .mass_estimate = ob->estimate};
            if (session->observe_truth) {
                compare(e, l, e->rows[i].first_row, part, dense);
                o.mass = ob->mass;
                o.output_error = ob->error;
                dense += l->n_head_kv;
            }
            session->observe(session->observe_ctx, &o);
        }
        part += l->n_head_kv;
    }
    return s;
}

void observe_free(spw_engine *e)
{
    observer *ob = &e->observer;
    if (ob->full.v) policy_layers_done(&ob->full);
    plan_free(&ob->plan);
    mem_free(ob->rows);
    mem_free(ob->o);
    mem_free(ob->lse);
    mem_free(ob->dense_lse);
    mem_free(ob->mass);
    mem_free(ob->heads);
    mem_free(ob->sets);
    *ob = (observer){0};
}
