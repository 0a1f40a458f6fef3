/* model_hparams.c - what a model is, read from its keys: one table of architectures, every value checked against a plausible range.
 *
 * The ranges are wide (no real model comes near them) and exist so that no product of sizes can overflow afterwards.  What would change the
 * computation and is not known here is refused by name, never ignored: a wrong answer is worse than none. */
#include "kern.h"
#include "mem.h"
#include "model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_LAYERS = 1024,
    MAX_EMBD = 65536,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 512,
    MAX_FF = 1 << 20,
    MAX_VOCAB = 1 << 24,
    MAX_CTX = INT32_MAX,
};

typedef struct model_arch {
    const char *name;
    model_rope_order rope_order;
    bool qkv_bias, qk_norm, sliding; /* sliding: attention.sliding_window holds for every layer */
} model_arch;

static const model_arch arches[] = {
    {.name = "llama", .rope_order = MODEL_ROPE_PAIRS, .sliding = true},
    {.name = "qwen2", .rope_order = MODEL_ROPE_HALVES, .qkv_bias = true},
    {.name = "qwen3", .rope_order = MODEL_ROPE_HALVES, .qk_norm = true},
};
enum { N_ARCHES = sizeof arches / sizeof arches[0] };

/* Keys that change what is computed in ways that this build lacks: a value other than the two neutral ones is refused. */
static const struct {
    const char *suffix;
    float neutral[2];
} refused_keys[] = {
    {"attn_logit_softcapping", {0, 0}}, {"final_logit_softcapping", {0, 0}}, {"logit_scale", {0, 1}},
    {"embedding_scale", {0, 1}},        {"residual_scale", {0, 1}},
};

/* The keys of one architecture, read one by one.  The first failure sticks and later reads do nothing, so that a list of reads needs one check.
 * lenient: failures leave the value 0 instead, for an architecture that is refused anyway. */
typedef struct key_reader {
    const gguf_file *f;
    const char *arch;
    bool lenient;
    spw_status st;
    spw_err *err;
    char key[160]; /* the last key */
} key_reader;

static const char *name_key(key_reader *r, const char *suffix)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, suffix);
    return r->key;
}

__attribute__((format(printf, 3, 4))) static void refuse(key_reader *r, spw_status code, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!r->st && !r->lenient) r->st = gguf_fail(r->f, r->err, code, "key \"%s\" %s", r->key, text);
}

/* An integer, or an array of one per layer that are all equal (then n_layer must be their number). */
static void read_int(key_reader *r, const char *suffix, bool required, uint32_t low, uint32_t high, uint32_t n_layer, uint32_t *out)
{
    uint32_t v = *out;
    if (r->st) return;
    const gguf_key *k = gguf_find_key(r->f, name_key(r, suffix));
    if (k && k->type == GGUF_ARRAY && n_layer && gguf_type_bytes(k->elem_type) && k->elem_type != GGUF_F32 && k->elem_type != GGUF_F64) {
        if (k->n != n_layer) {
            refuse(r, SPW_E_FORMAT, "has %llu elements, expected one for each of %u layers", (unsigned long long)k->n, n_layer);
            return;
        }
        int64_t first = gguf_array_int(k, 0);
        for (uint64_t i = 1; i < k->n; i++)
            if (gguf_array_int(k, i) != first) {
                refuse(r, SPW_E_UNSUPPORTED, "differs between layers, which this build does not know");
                return;
            }
        v = first < 0 || first > UINT32_MAX ? UINT32_MAX : (uint32_t)first;
    } else {
        spw_status st = gguf_get_u32(r->f, r->key, required && !r->lenient, &v, r->lenient ? NULL : r->err);
        if (st || !k) {
            if (!r->lenient) r->st = st;
            return;
        }
    }
    if (v < low || v > high) refuse(r, SPW_E_FORMAT, "is %u, expected %u to %u", v, low, high);
    else *out = v;
}

/* A finite number, not negative, and above 0 where positive is set. */
static void read_float(key_reader *r, const char *suffix, bool required, bool positive, float *out)
{
    float v = *out;
    if (r->st) return;
    spw_status st = gguf_get_f32(r->f, name_key(r, suffix), required && !r->lenient, &v, r->lenient ? NULL : r->err);
    if (st) {
        if (!r->lenient) r->st = st;
        return;
    }
    if (gguf_find_key(r->f, r->key) && (!isfinite(v) || v < 0 || (positive && v == 0)))
        refuse(r, SPW_E_FORMAT, "is %g, expected a finite number %s 0", (double)v, positive ? "above" : "not below");
    else *out = v;
}

static void read_rope_scaling(key_reader *r, model_rope *rope)
{
    gguf_str type = {"", 0};
    float factor = 0;
    if (r->st) return;
    spw_status st = gguf_get_str(r->f, name_key(r, "rope.scaling.type"), false, &type, r->lenient ? NULL : r->err);
    if (st) {
        if (!r->lenient) r->st = st;
        return;
    }
    char name[64];
    gguf_copy_str(name, sizeof name, type);
    if (!strcmp(name, "none")) rope->scaling = SPW_ROPE_NONE;
    else if (!strcmp(name, "linear") || !name[0]) rope->scaling = SPW_ROPE_LINEAR; /* a factor alone means linear */
    else if (!strcmp(name, "yarn")) rope->scaling = SPW_ROPE_YARN;
    else refuse(r, SPW_E_UNSUPPORTED, "is \"%s\", which this build does not know; known: none, linear, yarn", name);
    read_float(r, "rope.scale_linear", false, false, &factor); /* the key of old files */
    read_float(r, "rope.scaling.factor", false, false, &factor);
    rope->factor = factor > 0 ? factor : 1;
    if (rope->scaling == SPW_ROPE_NONE) rope->factor = 1;
    if (rope->scaling == SPW_ROPE_LINEAR && rope->factor == 1) rope->scaling = SPW_ROPE_NONE;
    read_int(r, "rope.scaling.original_context_length", false, 0, MAX_CTX, 0, &rope->orig_ctx);
    read_float(r, "rope.scaling.yarn_attn_factor", false, true, &rope->attn_factor);
    read_float(r, "rope.scaling.attn_factor", false, true, &rope->attn_factor);
    read_float(r, "rope.scaling.yarn_ext_factor", false, false, &rope->yarn_ext_factor);
    read_float(r, "rope.scaling.yarn_beta_fast", false, true, &rope->yarn_beta_fast);
    read_float(r, "rope.scaling.yarn_beta_slow", false, true, &rope->yarn_beta_slow);
}

static void read_rope(key_reader *r, model_hparams *hp)
{
    hp->rope = (model_rope){
        .n_dims = hp->head_dim, .freq_base = 10000, .factor = 1, .attn_factor = 1, .yarn_ext_factor = 1, .yarn_beta_fast = 32, .yarn_beta_slow = 1,
        .scaling = SPW_ROPE_NONE,
    };
    read_int(r, "rope.dimension_count", false, 2, MAX_HEAD_DIM, 0, &hp->rope.n_dims);
    if (hp->head_dim && (hp->rope.n_dims > hp->head_dim || hp->rope.n_dims % 2)) {
        name_key(r, "rope.dimension_count");
        refuse(r, SPW_E_FORMAT, "is %u, expected an even number up to %u, the size of a head", hp->rope.n_dims, hp->head_dim);
    }
    read_float(r, "rope.freq_base", false, true, &hp->rope.freq_base);
    read_rope_scaling(r, &hp->rope);
    if (!hp->rope.orig_ctx) hp->rope.orig_ctx = hp->n_ctx_train;
}

/* Size of a head: key_length, or an equal share of the embedding. */
static void read_head_dim(key_reader *r, model_hparams *hp, bool weights)
{
    uint32_t value_len = 0;
    if (hp->n_head && hp->n_embd % hp->n_head == 0) hp->head_dim = hp->n_embd / hp->n_head;
    read_int(r, "attention.key_length", false, 1, MAX_HEAD_DIM, 0, &hp->head_dim);
    if (!hp->head_dim && weights) {
        name_key(r, "attention.head_count");
        refuse(r, SPW_E_FORMAT, "is %u, which does not divide the embedding of %u", hp->n_head, hp->n_embd);
    }
    if (hp->head_dim % 8 || hp->head_dim > MAX_HEAD_DIM) {
        name_key(r, "attention.key_length");
        refuse(r, SPW_E_UNSUPPORTED, "(the size of a head) is %u, expected a multiple of 8 up to %d", hp->head_dim, MAX_HEAD_DIM);
    }
    value_len = hp->head_dim;
    read_int(r, "attention.value_length", false, 1, MAX_HEAD_DIM, 0, &value_len);
    if (value_len != hp->head_dim) {
        name_key(r, "attention.value_length");
        refuse(r, SPW_E_UNSUPPORTED, "is %u, expected %u, the length of keys", value_len, hp->head_dim);
    }
}

static void read_heads(key_reader *r, model_hparams *hp, bool weights)
{
    read_int(r, "attention.head_count", weights, 1, MAX_HEADS, hp->n_layer, &hp->n_head);
    hp->n_head_kv = hp->n_head;
    read_int(r, "attention.head_count_kv", false, 1, MAX_HEADS, hp->n_layer, &hp->n_head_kv);
    if (hp->n_head_kv && hp->n_head % hp->n_head_kv) {
        name_key(r, "attention.head_count_kv");
        refuse(r, SPW_E_FORMAT, "is %u, expected a divisor of the %u heads", hp->n_head_kv, hp->n_head);
    } else if (hp->n_head_kv && hp->n_head / hp->n_head_kv > KERN_MAX_G) {
        name_key(r, "attention.head_count_kv");
        refuse(r, SPW_E_UNSUPPORTED, "is %u for %u heads; this build shares a KV head among at most %d", hp->n_head_kv, hp->n_head, KERN_MAX_G);
    }
    read_head_dim(r, hp, weights);
    hp->attn_scale = hp->head_dim ? 1 / sqrtf((float)hp->head_dim) : 0;
    read_float(r, "attention.scale", false, true, &hp->attn_scale);
}

/* The vocabulary counts its tokens; a file without one has a row of the embedding for each. */
static void read_vocab_size(key_reader *r, model_hparams *hp)
{
    const gguf_key *k = gguf_find_key(r->f, "tokenizer.ggml.tokens");
    const gguf_tensor *t = gguf_find_tensor(r->f, "token_embd.weight");
    uint64_t n = k && k->type == GGUF_ARRAY ? k->n : t ? t->dims[1] : 0;
    snprintf(r->key, sizeof r->key, "tokenizer.ggml.tokens");
    if (n > MAX_VOCAB) refuse(r, SPW_E_FORMAT, "has %llu elements, expected at most %d", (unsigned long long)n, MAX_VOCAB);
    else hp->n_vocab = (uint32_t)n;
}

static void refuse_unknown(key_reader *r)
{
    uint32_t n_expert = 0;
    read_int(r, "expert_count", false, 0, UINT32_MAX, 0, &n_expert);
    if (n_expert) refuse(r, SPW_E_UNSUPPORTED, "is %u: mixtures of experts are not known to this build", n_expert);
    for (size_t i = 0; i < sizeof refused_keys / sizeof refused_keys[0]; i++) {
        float v = refused_keys[i].neutral[0];
        if (r->st) return;
        r->st = gguf_get_f32(r->f, name_key(r, refused_keys[i].suffix), false, &v, r->err);
        if (v != refused_keys[i].neutral[0] && v != refused_keys[i].neutral[1])
            refuse(r, SPW_E_UNSUPPORTED, "is %g, and this build does not know that operation", (double)v);
    }
}

static void read_sizes(key_reader *r, model_hparams *hp)
{
    bool weights = gguf_n_tensors(r->f) > 0;
    read_int(r, "block_count", weights, 1, MAX_LAYERS, 0, &hp->n_layer);
    read_int(r, "embedding_length", weights, 1, MAX_EMBD, 0, &hp->n_embd);
    read_int(r, "feed_forward_length", weights, 1, MAX_FF, hp->n_layer, &hp->n_ff);
    read_int(r, "context_length", weights, 1, MAX_CTX, 0, &hp->n_ctx_train);
    read_heads(r, hp, weights);
    read_float(r, "attention.layer_norm_rms_epsilon", weights, true, &hp->norm_eps);
    read_vocab_size(r, hp);
    read_rope(r, hp);
}

static spw_status make_layer_kv(key_reader *r, model_hparams *hp, bool sliding)
{
    uint32_t window = 0;
    if (sliding) read_int(r, "attention.sliding_window", false, 0, UINT32_MAX, hp->n_layer, &window);
    if (r->st || !hp->n_layer) return r->st;
    hp->layer_kv = mem_calloc(hp->n_layer, sizeof *hp->layer_kv);
    if (!hp->layer_kv) return gguf_fail(r->f, r->err, SPW_E_NOMEM, "no memory for %u layers", hp->n_layer);
    for (uint32_t i = 0; i < hp->n_layer; i++) hp->layer_kv[i] = (model_layer_kv){.n_head_kv = hp->n_head_kv, .sliding = window};
    return SPW_OK;
}

static spw_status unknown_arch(const gguf_file *f, const char *arch, spw_err *err)
{
    char known[128] = "";
    for (size_t i = 0, at = 0; i < N_ARCHES && at < sizeof known; i++)
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", arches[i].name);
    return gguf_fail(f, err, SPW_E_UNSUPPORTED, "architecture \"%s\" is not known to this build; known: %s", arch, known);
}

spw_status model_read_hparams(model_hparams *hp, const gguf_file *f, spw_err *err)
{
    gguf_str arch, name = {"", 0};
    memset(hp, 0, sizeof *hp);
    spw_status st = gguf_get_str(f, "general.architecture", true, &arch, err);
    if (!st) st = gguf_get_str(f, "general.name", false, &name, err);
    if (st) return st;
    gguf_copy_str(hp->arch, sizeof hp->arch, arch);
    gguf_copy_str(hp->name, sizeof hp->name, name);
    const model_arch *a = NULL;
    for (size_t i = 0; i < N_ARCHES; i++)
        if (!strcmp(hp->arch, arches[i].name)) a = &arches[i];
    key_reader r = {.f = f, .arch = hp->arch, .lenient = !a, .err = err};
    read_sizes(&r, hp);
    if (!a) return unknown_arch(f, hp->arch, err);
    hp->rope.order = a->rope_order;
    hp->qkv_bias = a->qkv_bias;
    hp->qk_norm = a->qk_norm;
    refuse_unknown(&r);
    return make_layer_kv(&r, hp, a->sliding);
}

static uint64_t add_capped(uint64_t a, uint64_t b)
{
    return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

static const char *rope_text(const model_hparams *hp, const gguf_file *f)
{
    if (hp->rope.scaling == SPW_ROPE_LINEAR) return "linear";
    if (hp->rope.scaling == SPW_ROPE_YARN) return "yarn";
    return gguf_find_tensor(f, "rope_freqs.weight") ? "llama3" : "none";
}

void model_fill_info(spw_model_info *info, const model_hparams *hp, const gguf_file *f)
{
    *info = (spw_model_info){
        .has_weights = gguf_n_tensors(f) > 0,
        .n_layer = hp->n_layer, .n_embd = hp->n_embd, .n_head = hp->n_head, .n_head_kv = hp->n_head_kv,
        .head_dim = hp->head_dim, .n_ff = hp->n_ff, .n_vocab = hp->n_vocab,
        .n_ctx_train = hp->n_ctx_train,
        .rope_freq_base = hp->rope.freq_base,
        .kv_bytes_per_pos = (uint64_t)hp->n_layer * hp->n_head_kv * ((hp->head_dim + 15) & ~15u) * 4,
    };
    snprintf(info->name, sizeof info->name, "%s", hp->name);
    snprintf(info->architecture, sizeof info->architecture, "%s", hp->arch);
    snprintf(info->rope_scaling, sizeof info->rope_scaling, "%s", rope_text(hp, f));
    for (size_t i = 0; i < gguf_n_tensors(f); i++) {
        const gguf_tensor *t = gguf_tensor_at(f, i);
        info->n_params = add_capped(info->n_params, t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]);
        info->weight_bytes = add_capped(info->weight_bytes, t->bytes);
    }
}
