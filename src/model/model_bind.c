/* model_bind.c - finds every weight of a model in its file, by name, and checks type and shape: the one place that knows the names.
 *
 * A model that is bound can be computed without another check.  Weights stay in the mapping. */
#include "mem.h"
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What is asked of a tensor. */
enum {
    OPTIONAL = 1, /* may be missing */
    VECTOR = 2,   /* one dimension, F32: a norm or a bias */
};

typedef struct binder {
    const gguf_file *f;
    spw_err *err;
    spw_status st; /* the first failure; later bindings do nothing */
    char name[64]; /* the last name */
} binder;

/* What a weight would be bound to if this build knew it: skipping one of these would give wrong answers, so they are refused. */
static const char *const refused_layer[] = {
    "attn_qkv.weight", "attn_norm.bias", "ffn_norm.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias", "post_attention_norm.weight",
    "post_ffw_norm.weight", "attn_sub_norm.weight", "ffn_sub_norm.weight", "attn_sinks.weight", "ffn_gate_inp.weight",
};
static const char *const refused_top[] = {"output_norm.bias", "output.bias", "token_embd_norm.weight", "rope_factors_long.weight"};

static void shape_text(char *out, size_t cap, int n_dims, const uint64_t *dims)
{
    size_t at = 0;
    for (int i = 0; i < n_dims && at < cap; i++) at += (size_t)snprintf(out + at, cap - at, "%s%llu", i ? " x " : "[", (unsigned long long)dims[i]);
    if (at < cap) snprintf(out + at, cap - at, "]");
}

static spw_status check_shape(const binder *b, const gguf_tensor *t, int n_dims, const uint64_t *dims)
{
    if (t->dims[0] == dims[0] && t->dims[1] == dims[1] && t->dims[2] == 1 && t->dims[3] == 1) return SPW_OK;
    char expected[96], found[96];
    shape_text(expected, sizeof expected, n_dims, dims);
    shape_text(found, sizeof found, t->n_dims, t->dims);
    return gguf_fail(b->f, b->err, SPW_E_FORMAT, "tensor \"%s\": expected shape %s, found %s", t->name, expected, found);
}

static spw_status check_type(const binder *b, const gguf_tensor *t, bool vector)
{
    const quant_info *info = quant_get(t->type);
    if (!info) {
        const char *name = quant_ggml_name(t->type);
        char number[24];
        snprintf(number, sizeof number, "number %u", t->type);
        return gguf_fail(b->f, b->err, SPW_E_UNSUPPORTED, "tensor \"%s\" has type %s, which this build does not know", t->name, name ? name : number);
    }
    if (!vector) return SPW_OK;
    if (t->type != QUANT_F32)
        return gguf_fail(b->f, b->err, SPW_E_UNSUPPORTED, "tensor \"%s\" has type %s, expected F32 for a norm or bias", t->name, info->name);
    if ((uintptr_t)t->data % sizeof(float))
        return gguf_fail(b->f, b->err, SPW_E_UNSUPPORTED, "tensor \"%s\": its data is not aligned to 4 bytes (general.alignment)", t->name);
    return SPW_OK;
}

/* Binds b->name. */
static void bind(binder *b, uint64_t rows, uint64_t cols, int flags, model_weight *w)
{
    if (b->st) return;
    const gguf_tensor *t = gguf_find_tensor(b->f, b->name);
    if (!t) {
        if (!(flags & OPTIONAL)) b->st = gguf_fail(b->f, b->err, SPW_E_FORMAT, "tensor \"%s\" is missing", b->name);
        return;
    }
    b->st = check_shape(b, t, flags & VECTOR ? 1 : 2, (const uint64_t[]){cols, rows});
    if (!b->st) b->st = check_type(b, t, flags & VECTOR);
    if (b->st) return;
    *w = (model_weight){.name = t->name, .type = t->type, .rows = rows, .cols = cols, .data = t->data, .bytes = t->bytes};
}

static void bind_top(binder *b, const char *name, uint64_t rows, uint64_t cols, int flags, model_weight *w)
{
    snprintf(b->name, sizeof b->name, "%s", name);
    bind(b, rows, cols, flags, w);
}

static void bind_layer(binder *b, uint32_t layer, const char *name, uint64_t rows, uint64_t cols, int flags, model_weight *w)
{
    snprintf(b->name, sizeof b->name, "blk.%u.%s", layer, name);
    bind(b, rows, cols, flags, w);
}

/* Fails when the file has b->name. */
static void refuse(binder *b)
{
    const gguf_tensor *t = b->st ? NULL : gguf_find_tensor(b->f, b->name);
    if (t) b->st = gguf_fail(b->f, b->err, SPW_E_UNSUPPORTED, "tensor \"%s\" is of a kind that this build does not know", t->name);
}

static void refuse_layer(binder *b, uint32_t layer, bool qk_norm)
{
    for (size_t i = 0; i < sizeof refused_layer / sizeof refused_layer[0]; i++) {
        snprintf(b->name, sizeof b->name, "blk.%u.%s", layer, refused_layer[i]);
        refuse(b);
    }
    for (int k = 0; !qk_norm && k < 2; k++) {
        snprintf(b->name, sizeof b->name, "blk.%u.%s", layer, k ? "attn_k_norm.weight" : "attn_q_norm.weight");
        refuse(b);
    }
}

static void bind_layer_weights(binder *b, const model_hparams *hp, uint32_t i, model_layer *l)
{
    uint64_t d = hp->n_embd, ff = hp->n_ff;
    uint64_t q = (uint64_t)hp->n_head * hp->head_dim, kv = (uint64_t)hp->layer_kv[i].n_head_kv * hp->head_dim;
    int bias = VECTOR | (hp->qkv_bias ? 0 : OPTIONAL);
    refuse_layer(b, i, hp->qk_norm);
    bind_layer(b, i, "attn_norm.weight", 1, d, VECTOR, &l->attn_norm);
    bind_layer(b, i, "attn_q.weight", q, d, 0, &l->wq);
    bind_layer(b, i, "attn_k.weight", kv, d, 0, &l->wk);
    bind_layer(b, i, "attn_v.weight", kv, d, 0, &l->wv);
    bind_layer(b, i, "attn_output.weight", d, q, 0, &l->wo);
    bind_layer(b, i, "attn_q.bias", 1, q, bias, &l->bq);
    bind_layer(b, i, "attn_k.bias", 1, kv, bias, &l->bk);
    bind_layer(b, i, "attn_v.bias", 1, kv, bias, &l->bv);
    bind_layer(b, i, "attn_output.bias", 1, d, VECTOR | OPTIONAL, &l->bo);
    if (hp->qk_norm) {
        bind_layer(b, i, "attn_q_norm.weight", 1, hp->head_dim, VECTOR, &l->q_norm);
        bind_layer(b, i, "attn_k_norm.weight", 1, hp->head_dim, VECTOR, &l->k_norm);
    }
    bind_layer(b, i, "ffn_norm.weight", 1, d, VECTOR, &l->ffn_norm);
    bind_layer(b, i, "ffn_gate.weight", ff, d, 0, &l->w_gate);
    bind_layer(b, i, "ffn_up.weight", ff, d, 0, &l->w_up);
    bind_layer(b, i, "ffn_down.weight", d, ff, 0, &l->w_down);
}

static spw_status bind_weights(model *m, spw_err *err)
{
    const model_hparams *hp = &m->hp;
    binder b = {.f = m->file, .err = err};
    for (size_t i = 0; i < sizeof refused_top / sizeof refused_top[0]; i++) {
        snprintf(b.name, sizeof b.name, "%s", refused_top[i]);
        refuse(&b);
    }
    bind_top(&b, "token_embd.weight", hp->n_vocab, hp->n_embd, 0, &m->token_embd);
    bind_top(&b, "output_norm.weight", 1, hp->n_embd, VECTOR, &m->output_norm);
    m->output = m->token_embd;
    bind_top(&b, "output.weight", hp->n_vocab, hp->n_embd, OPTIONAL, &m->output);
    bind_top(&b, "rope_freqs.weight", 1, hp->rope.n_dims / 2, VECTOR | OPTIONAL, &m->rope_freqs);
    for (uint32_t i = 0; !b.st && i < hp->n_layer; i++) bind_layer_weights(&b, hp, i, &m->layers[i]);
    return b.st;
}

/* The caller's wishes over the file's.  Stretching by them also stretches the context that counts as trained. */
static spw_status override_rope(model_hparams *hp, const spw_engine_params *p, const gguf_file *f, spw_err *err)
{
    model_rope r = hp->rope;
    if (p->rope_scaling < SPW_ROPE_MODEL || p->rope_scaling > SPW_ROPE_YARN)
        return spw_fail(err, SPW_E_ARG, "rope_scaling is %d, expected 0 to %d", (int)p->rope_scaling, SPW_ROPE_YARN);
    if (!isfinite(p->rope_scale) || p->rope_scale < 0 || p->rope_scale > 1e6f)
        return spw_fail(err, SPW_E_ARG, "rope_scale is %g, expected a factor above 0 and at most 1e6, or 0 for the file's", (double)p->rope_scale);
    if (!isfinite(p->rope_freq_base) || p->rope_freq_base < 0)
        return spw_fail(err, SPW_E_ARG, "rope_freq_base is %g, expected a finite number above 0, or 0 for the file's", (double)p->rope_freq_base);
    if (p->rope_scaling != SPW_ROPE_MODEL) r.scaling = p->rope_scaling;
    if (p->rope_scale > 0) r.factor = p->rope_scale;
    if (p->rope_freq_base > 0) r.freq_base = p->rope_freq_base;
    if (p->yarn_orig_ctx) r.orig_ctx = p->yarn_orig_ctx;
    if (r.scaling == SPW_ROPE_NONE) {
        if (p->rope_scale > 0 && p->rope_scale != 1)
            return gguf_fail(f, err, SPW_E_ARG, "rope_scale is %g, but RoPE scaling is none: choose linear or yarn", (double)p->rope_scale);
        r.factor = 1;
    }
    hp->rope = r;
    double stretched = (double)r.orig_ctx * (double)r.factor;
    if ((p->rope_scaling != SPW_ROPE_MODEL || p->rope_scale > 0) && stretched > hp->n_ctx_train)
        hp->n_ctx_train = stretched < INT32_MAX ? (uint32_t)stretched : INT32_MAX;
    return SPW_OK;
}

/* Sums for statistics; file sizes bound the bytes, and elements of known types with them. */
static void sum_weights(model *m)
{
    spw_model_info info;
    model_fill_info(&info, &m->hp, m->file);
    m->n_params = info.n_params;
    m->weight_bytes = info.weight_bytes;
}

spw_status model_bind(model **out, gguf_file *f, const spw_engine_params *params, spw_err *err)
{
    model *m = mem_calloc(1, sizeof *m);
    if (!m) return gguf_fail(f, err, SPW_E_NOMEM, "no memory for the model");
    m->file = f;
    spw_status st = SPW_OK;
    if (gguf_n_tensors(f) == 0) st = gguf_fail(f, err, SPW_E_FORMAT, "holds a vocabulary but no weights");
    if (!st) st = model_read_hparams(&m->hp, f, err);
    if (!st && !m->hp.n_vocab) st = gguf_fail(f, err, SPW_E_FORMAT, "has no vocabulary: neither tokenizer.ggml.tokens nor token_embd.weight");
    if (!st && !(m->layers = mem_calloc(m->hp.n_layer, sizeof *m->layers))) st = gguf_fail(f, err, SPW_E_NOMEM, "no memory for %u layers", m->hp.n_layer);
    if (!st) st = bind_weights(m, err);
    if (!st && params) st = override_rope(&m->hp, params, f, err);
    if (st) {
        model_free(m);
        return st;
    }
    sum_weights(m);
    *out = m;
    return SPW_OK;
}

void model_free(model *m)
{
    if (!m) return;
    mem_free(m->hp.layer_kv);
    mem_free(m->layers);
    mem_free(m);
}
