/* forward.c - one pass of rows through the model, in terms of the device table and the attention plan.
 *
 * A pass mixes prompt rows and generated rows of several sessions.  Products, norms and rotations do not care which row belongs to whom; only
 * attention does, and it goes by e->rows. */
#include <string.h>

#include "engine_private.h"
#include "mem.h"

static spw_status view_floats(dev *d, const dev_buf *b, size_t n, const float **out, spw_err *err)
{
    const void *p;
    spw_status s = d->ops->view(d, b, 0, n * sizeof(float), &p, err);
    *out = s ? NULL : (const float *)p;
    return s;
}

/* Angles of every row's position, once for all layers. */
static void fill_angles(spw_engine *e, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++) {
        const plan_rows *r = &e->rows[i];
        for (uint32_t j = 0; j < r->n_rows; j++)
            rope_angles(&e->rope, r->first_pos + j, e->cos_sin + ((size_t)r->first_row + j) * e->rope.n_pairs * 2);
    }
}

/* q, k and v of all rows, rotated. */
static void project(spw_engine *e, const engine_layer *l, size_t n)
{
    const model_hparams *hp = &e->model->hp;
    const engine_bufs *b = &e->bufs;
    dev *d = e->dev;
    d->ops->rms_norm(d, b->x, l->attn_norm, n, hp->norm_eps, b->h);
    d->ops->matmul(d, b->h, n, (dev_product[]){{.w = l->wq, .bias = l->bq, .out = b->q}, {.w = l->wk, .bias = l->bk, .out = b->k}, {.w = l->wv, .bias = l->bv, .out = b->v}}, 3);
    dev_rope r = {.x = b->q, .out = b->q_rot, .n_rows = n, .n_heads = hp->n_head, .head_dim = hp->head_dim, .dim_out = e->dim,
                  .n_pairs = e->rope.n_pairs, .halves = hp->rope.order == MODEL_ROPE_HALVES, .cos_sin = e->cos_sin, .scale = hp->attn_scale,
                  .norm = l->q_norm, .eps = hp->norm_eps};
    d->ops->rope(d, &r);
    r.x = b->k, r.out = b->k_rot, r.n_heads = hp->n_head_kv, r.scale = 1.0f, r.norm = l->k_norm;
    d->ops->rope(d, &r);
}

/* Writes the rows' keys and values to the store and, unless that is all that is wanted, attends: b->o. */
static spw_status attend(spw_engine *e, uint32_t layer, size_t n_rows, size_t n, bool build, bool only_append, plan_reads *reads, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    const engine_bufs *b = &e->bufs;
    dev *d = e->dev;
    uint32_t heads_kv = hp->layer_kv[layer].n_head_kv;
    exec_layer l = {.layer = layer, .n_head_kv = heads_kv, .group = e->group, .head_dim = hp->head_dim, .lse = e->observer.lse};
    spw_status s = view_floats(d, b->q_rot, n * hp->n_head * e->dim, &l.q, err);
    if (!s) s = view_floats(d, b->k_rot, n * heads_kv * e->dim, &l.k, err);
    if (!s) s = view_floats(d, b->v, n * heads_kv * hp->head_dim, &l.v, err);
    if (s) return s;
    size_t o_bytes = n * hp->n_head * hp->head_dim * sizeof(float);
    if (!only_append) l.o = d->ops->stage(d, b->o, o_bytes);
    exec_append(e->exec, e->rows, n_rows, &l);
    if (only_append) return SPW_OK;
    bool fresh = true;
    if (build) {
        plan_shape shape = {.layer = layer, .n_head_kv = heads_kv, .group = e->group, .dim = e->dim, .q = l.q, .q_row_stride = (size_t)hp->n_head * e->dim};
        s = plan_begin(&e->plan, e->rows, n_rows, &shape, e->pool, e->kern, err);
        fresh = !e->plan.has_base;
        if (!s && !fresh) s = exec_base(e->exec, &e->plan, e->rows, &l, err);
        if (!s) s = plan_choose(&e->plan, e->pool, err);
        if (s) return s;
    }
    s = exec_attend(e->exec, &e->plan, e->rows, &l, fresh, err);
    if (!s) s = observe_layer(e, n_rows, &l, err);
    if (s) return s;
    d->ops->commit(d, b->o, o_bytes);
    for (size_t i = 0; i < n_rows; i++) {
        reads[i].middle_bytes += e->plan.reads[i].middle_bytes;
        reads[i].row_bytes += e->plan.reads[i].row_bytes;
        reads[i].side_bytes += e->plan.reads[i].side_bytes;
    }
    return SPW_OK;
}

/* The layer's rest for n rows of the residual stream x and what they attended to; next_norm: what is used after it. */
static void finish_layer(spw_engine *e, const engine_layer *l, dev_buf *x, const dev_buf *o, const dev_weight *next_norm, size_t n)
{
    const model_hparams *hp = &e->model->hp;
    const engine_bufs *b = &e->bufs;
    dev *d = e->dev;
    d->ops->expect(d, l->ffn_norm);
    d->ops->matmul(d, o, n, (dev_product[]){{.w = l->wo, .bias = l->bo, .out = b->h}}, 1);
    d->ops->add(d, x, b->h, n * hp->n_embd);
    d->ops->rms_norm(d, x, l->ffn_norm, n, hp->norm_eps, b->h);
    d->ops->gated(d, b->h, n, &(dev_product){.w = l->w_gate, .out = b->gate}, &(dev_product){.w = l->w_up, .out = b->up});
    d->ops->expect(d, next_norm);
    d->ops->matmul(d, b->gate, n, (dev_product[]){{.w = l->w_down, .out = b->h}}, 1);
    d->ops->add(d, x, b->h, n * hp->n_embd);
}

/* The requests' rows of x, and of what they attended to, one after the other: into logit_x and q. */
static void narrow(spw_engine *e, const logit_request *requests, size_t n)
{
    const model_hparams *hp = &e->model->hp;
    const engine_bufs *b = &e->bufs;
    dev *d = e->dev;
    for (size_t i = 0; i < n; i++) e->logit_rows[i] = requests[i].row;
    d->ops->gather(d, b->x, e->logit_rows, n, hp->n_embd, b->logit_x);
    d->ops->gather(d, b->o, e->logit_rows, n, (size_t)hp->n_head * hp->head_dim, b->q);
}

/* Logits of the requested rows, LOGIT_ROWS at a time; narrowed: they are in logit_x already. */
static spw_status output(spw_engine *e, const logit_request *requests, size_t n_requests, bool narrowed, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    const engine_bufs *b = &e->bufs;
    dev *d = e->dev;
    for (size_t at = 0; at < n_requests; at += LOGIT_ROWS) {
        size_t n = n_requests - at < LOGIT_ROWS ? n_requests - at : (size_t)LOGIT_ROWS;
        for (size_t i = 0; i < n; i++) e->logit_rows[i] = requests[at + i].row;
        if (!narrowed) d->ops->gather(d, b->x, e->logit_rows, n, hp->n_embd, b->logit_x);
        d->ops->rms_norm(d, b->logit_x, e->output_norm, n, hp->norm_eps, b->logit_x);
        float *only = n == 1 ? requests[at].out : NULL;
        d->ops->matmul(d, b->logit_x, n, (dev_product[]){{.w = e->output, .out = b->logits, .host = only}}, 1);
        const float *logits;
        spw_status s = view_floats(d, b->logits, only ? 0 : n * hp->n_vocab, &logits, err);
        if (s) return s;
        for (size_t i = 0; i < n && !only; i++) memcpy(requests[at + i].out, logits + i * hp->n_vocab, hp->n_vocab * sizeof *logits);
    }
    return SPW_OK;
}

static bool has_decode(const spw_engine *e, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++)
        if (e->rows[i].decode) return true;
    return false;
}

/* Of the last layer only what somebody asked for is computed: K and V of all rows, the rest for the rows whose logits are wanted. */
spw_status forward_pass(spw_engine *e, size_t n_rows, uint32_t n_total, const logit_request *requests, size_t n_requests, plan_reads *reads,
                        spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    const engine_bufs *b = &e->bufs;
    dev *d = e->dev;
    bool is_static = plan_is_static(e->rows, n_rows), narrowed = n_requests < n_total && n_requests <= LOGIT_ROWS;
    spw_status begun = observe_begin(e, n_rows, n_total, err);
    if (begun) return begun;
    fill_angles(e, n_rows);
    d->ops->embed(d, e->token_embd, e->ids, n_total, b->x);
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        const engine_layer *l = &e->layers[i];
        bool last = i + 1 == hp->n_layer, only_append = last && n_requests == 0 && !has_decode(e, n_rows);
        exec_expect(e->exec, e->rows, n_rows, i, hp->layer_kv[i].n_head_kv);
        project(e, l, n_total);
        bool build = i == 0 || !is_static || hp->layer_kv[i].n_head_kv != hp->layer_kv[i - 1].n_head_kv;
        spw_status s = attend(e, i, n_rows, n_total, build, only_append, reads, err);
        if (s) return s;
        if (last && narrowed) {
            narrow(e, requests, n_requests);
            finish_layer(e, l, b->logit_x, b->q, e->output_norm, n_requests);
        } else {
            finish_layer(e, l, b->x, b->o, last ? e->output_norm : e->layers[i + 1].attn_norm, n_total);
        }
    }
    return output(e, requests, n_requests, narrowed, err);
}
