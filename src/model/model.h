/* model.h - hyper-parameters and weights of a model, bound by name, type and shape in one place.
 *
 * To add an architecture: one entry in the table of model_hparams.c. */
#ifndef SPW_MODEL_H
#define SPW_MODEL_H

#include "gguf.h"
#include "quant.h"

typedef enum model_rope_order {
    MODEL_ROPE_PAIRS,  /* dims 2i, 2i+1 turn together (llama) */
    MODEL_ROPE_HALVES, /* dims i, i + n/2 turn together (qwen2, qwen3: NEOX) */
} model_rope_order;

typedef struct model_rope {
    model_rope_order order;
    uint32_t n_dims;    /* dims of a head that are rotated */
    float freq_base;
    spw_rope_scaling scaling; /* NONE, LINEAR or YARN here, never MODEL */
    float factor;       /* stretch of the context, >= 1 normally */
    float attn_factor;  /* rope.scaling.attn_factor, 1 */
    float yarn_ext_factor, yarn_beta_fast, yarn_beta_slow; /* 1, 32, 1 */
    uint32_t orig_ctx;  /* trained length before stretching */
} model_rope;

/* What a layer keeps in the KV store; all layers alike today, per layer so that sliding and other kinds can differ. */
typedef struct model_layer_kv {
    uint32_t n_head_kv; /* > 0 */
    uint32_t sliding;   /* window of a sliding layer; 0: whole context */
} model_layer_kv;

typedef struct model_hparams {
    char arch[64], name[128];
    uint32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab, n_ctx_train;
    float norm_eps;
    float attn_scale; /* multiplies q.k; 1/sqrt(head_dim) unless the file says otherwise */
    bool qkv_bias;    /* q, k and v must have biases (qwen2); elsewhere they may */
    bool qk_norm;     /* RMS norm over each head of q and k before RoPE (qwen3) */
    model_rope rope;
    model_layer_kv *layer_kv; /* n_layer; owned by the model */
} model_hparams;

/* A weight in the mapping.  rows = outputs, cols = inputs (contiguous).  data == NULL: the model has none. */
typedef struct model_weight {
    const char *name;
    uint32_t type;
    uint64_t rows, cols;
    const void *data;
    uint64_t bytes;
} model_weight;

typedef struct model_layer {
    model_weight attn_norm, wq, wk, wv, wo, ffn_norm, w_gate, w_up, w_down; /* always there; norms are [1][n] F32 */
    model_weight bq, bk, bv, bo;   /* biases, F32; may be absent */
    model_weight q_norm, k_norm;   /* per-head norms (qwen3), F32 [1][head_dim]; may be absent */
} model_layer;

typedef struct model {
    model_hparams hp;
    gguf_file *file; /* not owned */
    model_weight token_embd, output_norm, output; /* output is token_embd when tied */
    model_weight rope_freqs; /* F32 [1][n_dims/2]: divides the frequencies (Llama 3); may be absent */
    model_layer *layers;
    uint64_t n_params, weight_bytes;
} model;

/* Reads and checks the hyper-parameters alone: for inspect and for memory estimates.  hp->layer_kv is owned by the caller (mem_free).  file
 * may be vocabulary-only, then sizes may be 0.  A key out of its plausible range is SPW_E_FORMAT that names key and value; a head count that does not
 * divide, a head_dim that is no multiple of 8, and the like are named too.  SPW_E_UNSUPPORTED: architecture unknown (names it and the known
 * ones); hp then still holds what could be read.  After any failure layer_kv is NULL. */
spw_status model_read_hparams(model_hparams *hp, const gguf_file *f, spw_err *err);
/* Binds every tensor: a missing one, a wrong shape (expected and found) or an unknown type is an error that names it.  Weights only of types quant_get knows;
 * norms, biases and rope_freqs must be F32.  rope fields are then overridden by params (may be NULL): scaling NONE/LINEAR/YARN, factor, base, orig ctx; where
 * they stretch the context, n_ctx_train grows to orig ctx times factor.  A vocabulary-only file is SPW_E_FORMAT "... holds a vocabulary but no weights".  Keeps f. */
spw_status model_bind(model **out, gguf_file *f, const spw_engine_params *params, spw_err *err);
void model_free(model *m);
/* The public summary; tokenizer and chat_template are left "" (the caller fills them). */
void model_fill_info(spw_model_info *info, const model_hparams *hp, const gguf_file *f);

#endif
