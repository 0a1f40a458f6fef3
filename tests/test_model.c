/* test_model.c - hyper-parameters, bound weights, RoPE tables and the public view of files. */
#include "gguf_build.h"
#include "kern.h"
#include "mem.h"
#include "model.h"
#include "rope.h"
#include "test.h"

#include <unistd.h>

static char path[] = "/tmp/spillway-model-XXXXXX";

enum { LAYERS = 2, EMBD = 32, HEADS = 4, HEADS_KV = 2, HEAD = 8, FF = 64, VOCAB = 16, CTX = 64 };

/* A small model with at most one thing wrong. */
typedef struct recipe {
    const char *arch;        /* NULL: llama */
    const char *skip, *skip2; /* keys or tensors to leave out */
    void (*extra)(gguf_build *b, const char *arch); /* more keys and tensors; a key in skip can be given another value here */
    const char *odd;         /* a tensor of another type or shape: */
    uint32_t odd_type;
    uint64_t odd_dims[2];    /* {0}: the right ones */
    bool no_tensors;
} recipe;

static bool skipped(const recipe *r, const char *name)
{
    return (r->skip && !strcmp(r->skip, name)) || (r->skip2 && !strcmp(r->skip2, name));
}

static void add_u32(gguf_build *b, const recipe *r, const char *suffix, uint32_t v)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", r->arch ? r->arch : "llama", suffix);
    if (!skipped(r, suffix)) gguf_build_u32(b, name, v);
}

static void add_f32(gguf_build *b, const recipe *r, const char *suffix, float v)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", r->arch ? r->arch : "llama", suffix);
    if (!skipped(r, suffix)) gguf_build_f32(b, name, v);
}

/* rows 0: a vector. */
static void add_tensor(gguf_build *b, const recipe *r, const char *name, uint64_t cols, uint64_t rows)
{
    uint64_t dims[2] = {cols, rows}, bytes = 0;
    uint32_t type = QUANT_F32, n_dims = rows ? 2 : 1;
    if (skipped(r, name)) return;
    if (r->odd && !strcmp(r->odd, name)) {
        type = r->odd_type;
        if (r->odd_dims[0]) memcpy(dims, r->odd_dims, sizeof dims);
        n_dims = dims[1] ? 2 : 1;
    }
    if (!quant_bytes(type, dims[0] * (n_dims > 1 ? dims[1] : 1), &bytes)) bytes = 32;
    gguf_build_tensor(b, name, type, n_dims, dims, NULL, bytes);
}

static void add_layer(gguf_build *b, const recipe *r, int i)
{
    static const struct { const char *name; uint64_t cols, rows; } parts[] = {
        {"attn_norm.weight", EMBD, 0}, {"attn_q.weight", EMBD, HEADS * HEAD}, {"attn_k.weight", EMBD, HEADS_KV * HEAD},
        {"attn_v.weight", EMBD, HEADS_KV * HEAD}, {"attn_output.weight", HEADS * HEAD, EMBD}, {"ffn_norm.weight", EMBD, 0},
        {"ffn_gate.weight", EMBD, FF}, {"ffn_up.weight", EMBD, FF}, {"ffn_down.weight", FF, EMBD},
        {"attn_q.bias", HEADS * HEAD, 0}, {"attn_k.bias", HEADS_KV * HEAD, 0}, {"attn_v.bias", HEADS_KV * HEAD, 0},
        {"attn_q_norm.weight", HEAD, 0}, {"attn_k_norm.weight", HEAD, 0},
    };
    bool bias = r->arch && !strcmp(r->arch, "qwen2"), norms = r->arch && !strcmp(r->arch, "qwen3");
    for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
        char name[64];
        if ((p >= 9 && p < 12 && !bias) || (p >= 12 && !norms)) continue;
        snprintf(name, sizeof name, "blk.%d.%s", i, parts[p].name);
        add_tensor(b, r, name, parts[p].cols, parts[p].rows);
    }
}

static void write_model(const recipe *r)
{
    gguf_build b = {0};
    if (!skipped(r, "general.architecture")) gguf_build_str(&b, "general.architecture", r->arch ? r->arch : "llama");
    gguf_build_str(&b, "general.name", "tiny\nmodel");
    add_u32(&b, r, "block_count", LAYERS);
    add_u32(&b, r, "embedding_length", EMBD);
    add_u32(&b, r, "feed_forward_length", FF);
    add_u32(&b, r, "context_length", CTX);
    add_u32(&b, r, "attention.head_count", HEADS);
    add_u32(&b, r, "attention.head_count_kv", HEADS_KV);
    add_f32(&b, r, "attention.layer_norm_rms_epsilon", 1e-5f);
    if (!skipped(r, "tokens")) gguf_build_tokens(&b, "tokenizer.ggml.tokens", VOCAB);
    if (r->extra) r->extra(&b, r->arch ? r->arch : "llama");
    if (!r->no_tensors) {
        add_tensor(&b, r, "token_embd.weight", EMBD, VOCAB);
        add_tensor(&b, r, "output_norm.weight", EMBD, 0);
        for (int i = 0; i < LAYERS; i++) add_layer(&b, r, i);
    }
    if (!gguf_build_write(&b, path)) test_bad++;
}

/* Opens, binds and closes what lies at path; params may be NULL. */
static spw_status try_bind(const spw_engine_params *params, spw_err *err)
{
    gguf_file *f = NULL;
    model *m = NULL;
    spw_status st = gguf_open(&f, path, err);
    if (!st) st = model_bind(&m, f, params, err);
    model_free(m);
    gguf_close(f);
    return st;
}

static void test_good(void)
{
    static const char *const arches[] = {"llama", "qwen2", "qwen3"};
    for (int i = 0; i < 3; i++) {
        gguf_file *f = NULL;
        model *m = NULL;
        spw_err err = {0};
        size_t in_use = mem_in_use();
        write_model(&(recipe){.arch = arches[i]});
        CHECK_OK(gguf_open(&f, path, &err), err);
        if (!f) continue;
        CHECK_OK(model_bind(&m, f, NULL, &err), err);
        if (m) {
            const model_hparams *hp = &m->hp;
            CHECK_STR(hp->arch, arches[i]);
            CHECK_STR(hp->name, "tiny?model");
            CHECK(hp->n_layer == LAYERS && hp->n_embd == EMBD && hp->n_head == HEADS && hp->n_head_kv == HEADS_KV && hp->head_dim == HEAD);
            CHECK(hp->n_ff == FF && hp->n_vocab == VOCAB && hp->n_ctx_train == CTX);
            CHECK_NEAR(hp->attn_scale, 0.353553391, 1e-7);
            CHECK_NEAR(hp->norm_eps, 1e-5, 1e-12);
            CHECK_INT(hp->rope.order, i ? MODEL_ROPE_HALVES : MODEL_ROPE_PAIRS);
            CHECK(hp->rope.n_dims == HEAD && hp->rope.freq_base == 10000 && hp->rope.scaling == SPW_ROPE_NONE && hp->rope.orig_ctx == CTX);
            CHECK(hp->layer_kv[1].n_head_kv == HEADS_KV && hp->layer_kv[1].sliding == 0);
            CHECK(m->output.data == m->token_embd.data && m->output.rows == VOCAB);
            CHECK((m->layers[1].bq.data != NULL) == (i == 1));
            CHECK((m->layers[1].q_norm.data != NULL) == (i == 2));
            CHECK(!m->layers[0].bo.data && !m->rope_freqs.data);
            CHECK_STR(m->layers[1].w_down.name, "blk.1.ffn_down.weight");
            CHECK(m->layers[1].wk.rows == HEADS_KV * HEAD && m->layers[1].wk.cols == EMBD && m->layers[1].wk.bytes == 4 * HEADS_KV * HEAD * EMBD);
            CHECK_INT(m->weight_bytes, 4 * m->n_params);
        }
        model_free(m);
        gguf_close(f);
        CHECK_INT(mem_in_use(), in_use);
    }
}

/* ---- what must be refused ---- */

static const char *key_of(const char *arch, const char *suffix)
{
    static char name[96];
    snprintf(name, sizeof name, "%s.%s", arch, suffix);
    return name;
}

static void layers_0(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "block_count"), 0); }
static void layers_huge(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "block_count"), UINT32_MAX); }
static void layers_text(gguf_build *b, const char *a) { gguf_build_str(b, key_of(a, "block_count"), "2"); }
static void embd_huge(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "embedding_length"), 65544); }
static void ff_differs(gguf_build *b, const char *a) { gguf_build_u32s(b, key_of(a, "feed_forward_length"), 2, (uint32_t[]){FF, 2 * FF}); }
static void heads_3(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "attention.head_count"), 3); }
static void kv_3(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "attention.head_count_kv"), 3); }
static void kv_0(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "attention.head_count_kv"), 0); }
static void kv_differs(gguf_build *b, const char *a) { gguf_build_u32s(b, key_of(a, "attention.head_count_kv"), 2, (uint32_t[]){2, 1}); }
static void kv_three(gguf_build *b, const char *a) { gguf_build_u32s(b, key_of(a, "attention.head_count_kv"), 3, (uint32_t[]){2, 2, 2}); }
static void heads_64(gguf_build *b, const char *a)
{
    gguf_build_u32(b, key_of(a, "attention.head_count"), 64);
    gguf_build_u32(b, key_of(a, "attention.head_count_kv"), 1);
    gguf_build_u32(b, key_of(a, "attention.key_length"), 8);
}
static void head_12(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "attention.key_length"), 12); }
static void value_16(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "attention.value_length"), 16); }
static void eps_nan(gguf_build *b, const char *a) { gguf_build_f32(b, key_of(a, "attention.layer_norm_rms_epsilon"), NAN); }
static void eps_0(gguf_build *b, const char *a) { gguf_build_f32(b, key_of(a, "attention.layer_norm_rms_epsilon"), 0); }
static void rope_dims_odd(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "rope.dimension_count"), 7); }
static void rope_dims_16(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "rope.dimension_count"), 16); }
static void rope_base(gguf_build *b, const char *a) { gguf_build_f32(b, key_of(a, "rope.freq_base"), -1); }
static void rope_longrope(gguf_build *b, const char *a) { gguf_build_str(b, key_of(a, "rope.scaling.type"), "longrope"); }
static void rope_factor(gguf_build *b, const char *a) { gguf_build_f32(b, key_of(a, "rope.scaling.factor"), INFINITY); }
static void experts(gguf_build *b, const char *a) { gguf_build_u32(b, key_of(a, "expert_count"), 8); }
static void softcap(gguf_build *b, const char *a) { gguf_build_f32(b, key_of(a, "attn_logit_softcapping"), 50); }
static void vocab_17(gguf_build *b, const char *a) { (void)a, gguf_build_tokens(b, "tokenizer.ggml.tokens", 17); }
static void fused(gguf_build *b, const char *a)
{
    (void)a;
    gguf_build_tensor(b, "blk.0.attn_qkv.weight", QUANT_F32, 2, (uint64_t[]){EMBD, 64}, NULL, 4 * EMBD * 64);
}
static void ffn_bias(gguf_build *b, const char *a) { (void)a, gguf_build_tensor(b, "blk.1.ffn_up.bias", QUANT_F32, 1, (uint64_t[]){FF}, NULL, 4 * FF); }
static void odd_q_norm(gguf_build *b, const char *a)
{
    (void)a;
    gguf_build_tensor(b, "blk.0.attn_q_norm.weight", QUANT_F32, 1, (uint64_t[]){HEAD}, NULL, 4 * HEAD);
}
static void freqs_8(gguf_build *b, const char *a) { (void)a, gguf_build_tensor(b, "rope_freqs.weight", QUANT_F32, 1, (uint64_t[]){8}, NULL, 32); }
static void output_narrow(gguf_build *b, const char *a)
{
    (void)a;
    gguf_build_tensor(b, "output.weight", QUANT_F32, 2, (uint64_t[]){EMBD, 15}, NULL, 4 * EMBD * 15);
}
/* Everything shifted by one byte: F32 vectors cannot be read as they lie. */
static void align_1(gguf_build *b, const char *a)
{
    (void)a;
    b->alignment = 1;
    gguf_build_u32(b, "general.alignment", 1);
    gguf_build_tensor(b, "byte", 24 /* I8, of a size that is not known here */, 1, (uint64_t[]){1}, NULL, 1);
}

static const struct {
    recipe r;
    spw_status code;
    const char *part;
} refusals[] = {
    {{.skip = "general.architecture"}, SPW_E_FORMAT, "key \"general.architecture\" is missing"},
    {{.arch = "mamba"}, SPW_E_UNSUPPORTED, "architecture \"mamba\" is not known to this build; known: llama, qwen2, qwen3"},
    {{.no_tensors = true}, SPW_E_FORMAT, "holds a vocabulary but no weights"},
    {{.skip = "block_count"}, SPW_E_FORMAT, "key \"llama.block_count\" is missing"},
    {{.skip = "embedding_length"}, SPW_E_FORMAT, "key \"llama.embedding_length\" is missing"},
    {{.skip = "feed_forward_length"}, SPW_E_FORMAT, "key \"llama.feed_forward_length\" is missing"},
    {{.skip = "context_length"}, SPW_E_FORMAT, "key \"llama.context_length\" is missing"},
    {{.skip = "attention.head_count"}, SPW_E_FORMAT, "key \"llama.attention.head_count\" is missing"},
    {{.skip = "attention.layer_norm_rms_epsilon", .arch = "qwen2"}, SPW_E_FORMAT, "key \"qwen2.attention.layer_norm_rms_epsilon\" is missing"},
    {{.skip = "block_count", .extra = layers_0}, SPW_E_FORMAT, "key \"llama.block_count\" is 0, expected 1 to 1024"},
    {{.skip = "block_count", .extra = layers_huge}, SPW_E_FORMAT, "key \"llama.block_count\" is 4294967295, expected 1 to 1024"},
    {{.skip = "block_count", .extra = layers_text}, SPW_E_FORMAT, "key \"llama.block_count\" has type str, expected an integer"},
    {{.skip = "embedding_length", .extra = embd_huge}, SPW_E_FORMAT, "key \"llama.embedding_length\" is 65544, expected 1 to 65536"},
    {{.skip = "feed_forward_length", .extra = ff_differs}, SPW_E_UNSUPPORTED, "key \"llama.feed_forward_length\" differs between layers"},
    {{.skip = "attention.head_count", .extra = heads_3}, SPW_E_FORMAT, "key \"llama.attention.head_count_kv\" is 2, expected a divisor of the 3 heads"},
    {{.skip = "attention.head_count_kv", .extra = kv_3}, SPW_E_FORMAT, "key \"llama.attention.head_count_kv\" is 3, expected a divisor of the 4 heads"},
    {{.skip = "attention.head_count_kv", .extra = kv_0}, SPW_E_FORMAT, "key \"llama.attention.head_count_kv\" is 0, expected 1 to 1024"},
    {{.skip = "attention.head_count_kv", .extra = kv_differs}, SPW_E_UNSUPPORTED, "key \"llama.attention.head_count_kv\" differs between layers"},
    {{.skip = "attention.head_count_kv", .extra = kv_three}, SPW_E_FORMAT, "key \"llama.attention.head_count_kv\" has 3 elements, expected one for each of 2 layers"},
    {{.skip = "attention.head_count", .skip2 = "attention.head_count_kv", .extra = heads_64}, SPW_E_UNSUPPORTED, "head_count_kv\" is 1 for 64 heads; this build shares a KV head among at most 32"},
    {{.extra = head_12}, SPW_E_UNSUPPORTED, "key \"llama.attention.key_length\" (the size of a head) is 12, expected a multiple of 8"},
    {{.extra = value_16}, SPW_E_UNSUPPORTED, "key \"llama.attention.value_length\" is 16, expected 8, the length of keys"},
    {{.skip = "attention.layer_norm_rms_epsilon", .extra = eps_nan}, SPW_E_FORMAT, "layer_norm_rms_epsilon\" is nan, expected a finite number above 0"},
    {{.skip = "attention.layer_norm_rms_epsilon", .extra = eps_0}, SPW_E_FORMAT, "layer_norm_rms_epsilon\" is 0, expected a finite number above 0"},
    {{.extra = rope_dims_odd}, SPW_E_FORMAT, "key \"llama.rope.dimension_count\" is 7, expected an even number up to 8"},
    {{.extra = rope_dims_16}, SPW_E_FORMAT, "key \"llama.rope.dimension_count\" is 16, expected an even number up to 8"},
    {{.extra = rope_base}, SPW_E_FORMAT, "key \"llama.rope.freq_base\" is -1, expected a finite number above 0"},
    {{.extra = rope_longrope}, SPW_E_UNSUPPORTED, "key \"llama.rope.scaling.type\" is \"longrope\", which this build does not know; known: none, linear, yarn"},
    {{.extra = rope_factor}, SPW_E_FORMAT, "key \"llama.rope.scaling.factor\" is inf"},
    {{.extra = experts}, SPW_E_UNSUPPORTED, "key \"llama.expert_count\" is 8: mixtures of experts"},
    {{.extra = softcap}, SPW_E_UNSUPPORTED, "key \"llama.attn_logit_softcapping\" is 50"},
    {{.skip = "tokens", .extra = vocab_17}, SPW_E_FORMAT, "tensor \"token_embd.weight\": expected shape [32 x 17], found [32 x 16]"},
    {{.skip = "token_embd.weight"}, SPW_E_FORMAT, "tensor \"token_embd.weight\" is missing"},
    {{.skip = "output_norm.weight"}, SPW_E_FORMAT, "tensor \"output_norm.weight\" is missing"},
    {{.skip = "blk.1.attn_v.weight"}, SPW_E_FORMAT, "tensor \"blk.1.attn_v.weight\" is missing"},
    {{.skip = "blk.1.attn_k.bias", .arch = "qwen2"}, SPW_E_FORMAT, "tensor \"blk.1.attn_k.bias\" is missing"},
    {{.skip = "blk.0.attn_q_norm.weight", .arch = "qwen3"}, SPW_E_FORMAT, "tensor \"blk.0.attn_q_norm.weight\" is missing"},
    {{.odd = "blk.0.attn_k.weight", .odd_dims = {32, 32}}, SPW_E_FORMAT, "tensor \"blk.0.attn_k.weight\": expected shape [32 x 16], found [32 x 32]"},
    {{.odd = "blk.1.ffn_norm.weight", .odd_dims = {33}}, SPW_E_FORMAT, "tensor \"blk.1.ffn_norm.weight\": expected shape [32], found [33]"},
    {{.odd = "blk.1.attn_norm.weight", .odd_type = QUANT_F16}, SPW_E_UNSUPPORTED, "tensor \"blk.1.attn_norm.weight\" has type F16, expected F32 for a norm or bias"},
    {{.odd = "blk.1.ffn_up.weight", .odd_type = 99}, SPW_E_UNSUPPORTED, "tensor \"blk.1.ffn_up.weight\" has type number 99, which this build does not know"},
    {{.odd = "blk.0.ffn_up.weight", .odd_type = 16}, SPW_E_UNSUPPORTED, "tensor \"blk.0.ffn_up.weight\" has type IQ2_XXS, which this build does not know"},
    {{.extra = fused}, SPW_E_UNSUPPORTED, "tensor \"blk.0.attn_qkv.weight\" is of a kind that this build does not know"},
    {{.extra = ffn_bias}, SPW_E_UNSUPPORTED, "tensor \"blk.1.ffn_up.bias\" is of a kind"},
    {{.extra = odd_q_norm}, SPW_E_UNSUPPORTED, "tensor \"blk.0.attn_q_norm.weight\" is of a kind"},
    {{.extra = freqs_8}, SPW_E_FORMAT, "tensor \"rope_freqs.weight\": expected shape [4], found [8]"},
    {{.extra = output_narrow}, SPW_E_FORMAT, "tensor \"output.weight\": expected shape [32 x 16], found [32 x 15]"},
    {{.extra = align_1}, SPW_E_UNSUPPORTED, "tensor \"output_norm.weight\": its data is not aligned to 4 bytes"},
};

static void test_refusals(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        spw_err err = {0};
        int before = test_bad;
        size_t in_use = mem_in_use();
        write_model(&refusals[i].r);
        CHECK_INT(try_bind(NULL, &err), refusals[i].code);
        CHECK_HAS(err.msg, path);
        CHECK_HAS(err.msg, refusals[i].part);
        CHECK_INT(mem_in_use(), in_use);
        if (test_bad != before) fprintf(stderr, "  in case %zu: %s\n", i, refusals[i].part);
    }
}

static void test_no_memory(void)
{
    write_model(&(recipe){0});
    size_t in_use = mem_in_use();
    bool done = false;
    for (long n = 0; n < 60 && !done; n++) {
        spw_err err = {0};
        mem_fail_after(n, true);
        spw_status st = try_bind(NULL, &err);
        mem_fail_after(-1, false);
        done = st == SPW_OK;
        if (!done) CHECK_INT(st, SPW_E_NOMEM);
        CHECK_INT(mem_in_use(), in_use);
    }
    CHECK(done);
}

/* ---- RoPE ---- */

static void kv_equal(gguf_build *b, const char *a)
{
    gguf_build_u32s(b, key_of(a, "attention.head_count_kv"), 2, (uint32_t[]){2, 2});
    gguf_build_u32(b, key_of(a, "attention.sliding_window"), 4096);
    gguf_build_f32(b, key_of(a, "rope.scale_linear"), 4);
    gguf_build_f32(b, key_of(a, "attention.scale"), 0.25f);
}
static void yarn_keys(gguf_build *b, const char *a)
{
    gguf_build_str(b, key_of(a, "rope.scaling.type"), "yarn");
    gguf_build_f32(b, key_of(a, "rope.scaling.factor"), 4);
    gguf_build_u32(b, key_of(a, "rope.scaling.original_context_length"), 16);
    gguf_build_f32(b, key_of(a, "rope.scaling.attn_factor"), 0.5f);
    gguf_build_f32(b, key_of(a, "rope.scaling.yarn_beta_fast"), 16);
}

/* hp->layer_kv is NULL afterwards: the list dies with the model.  *sliding: its first window. */
static void read_back(const recipe *r, const spw_engine_params *params, model_hparams *hp, uint32_t *sliding)
{
    gguf_file *f = NULL;
    model *m = NULL;
    spw_err err = {0};
    memset(hp, 0, sizeof *hp);
    write_model(r);
    CHECK_OK(gguf_open(&f, path, &err), err);
    if (f) CHECK_OK(model_bind(&m, f, params, &err), err);
    if (m) {
        *hp = m->hp;
        *sliding = hp->layer_kv[0].sliding;
        hp->layer_kv = NULL;
    }
    model_free(m);
    gguf_close(f);
}

static void test_rope_keys(void)
{
    model_hparams hp;
    uint32_t sliding = 0;
    read_back(&(recipe){.skip = "attention.head_count_kv", .extra = kv_equal}, NULL, &hp, &sliding);
    CHECK_INT(hp.n_head_kv, 2);
    CHECK_INT(sliding, 4096);
    CHECK_INT(hp.rope.scaling, SPW_ROPE_LINEAR);
    CHECK_NEAR(hp.rope.factor, 4, 0);
    CHECK_NEAR(hp.attn_scale, 0.25, 0);
    read_back(&(recipe){.extra = yarn_keys}, NULL, &hp, &sliding);
    CHECK_INT(hp.rope.scaling, SPW_ROPE_YARN);
    CHECK_NEAR(hp.rope.factor, 4, 0);
    CHECK_NEAR(hp.rope.attn_factor, 0.5, 0);
    CHECK_NEAR(hp.rope.yarn_beta_fast, 16, 0);
    CHECK_NEAR(hp.rope.yarn_beta_slow, 1, 0);
    CHECK_INT(hp.rope.orig_ctx, 16);
    CHECK_INT(hp.n_ctx_train, CTX);
}

static void test_rope_params(void)
{
    model_hparams hp;
    uint32_t sliding = 0;
    spw_err err = {0};
    read_back(&(recipe){0}, &(spw_engine_params){.rope_scaling = SPW_ROPE_YARN, .rope_scale = 4}, &hp, &sliding);
    CHECK_INT(hp.rope.scaling, SPW_ROPE_YARN);
    CHECK_INT(hp.rope.orig_ctx, CTX);
    CHECK_INT(hp.n_ctx_train, 4 * CTX);
    CHECK_NEAR(hp.rope.factor, 4, 0);
    read_back(&(recipe){.extra = yarn_keys}, &(spw_engine_params){.rope_scaling = SPW_ROPE_NONE, .rope_freq_base = 5e5f}, &hp, &sliding);
    CHECK_INT(hp.rope.scaling, SPW_ROPE_NONE);
    CHECK_NEAR(hp.rope.factor, 1, 0);
    CHECK_NEAR(hp.rope.freq_base, 5e5, 0);
    read_back(&(recipe){.extra = yarn_keys}, &(spw_engine_params){.rope_scale = 8, .yarn_orig_ctx = 32}, &hp, &sliding);
    CHECK_INT(hp.rope.scaling, SPW_ROPE_YARN);
    CHECK_NEAR(hp.rope.factor, 8, 0);
    CHECK_INT(hp.rope.orig_ctx, 32);
    CHECK_INT(hp.n_ctx_train, 256);
    write_model(&(recipe){0});
    CHECK_INT(try_bind(&(spw_engine_params){.rope_scale = 4}, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "rope_scale is 4, but RoPE scaling is none");
    CHECK_INT(try_bind(&(spw_engine_params){.rope_scaling = SPW_ROPE_YARN, .rope_scale = -1}, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "rope_scale is -1");
    CHECK_INT(try_bind(&(spw_engine_params){.rope_freq_base = INFINITY}, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "rope_freq_base is inf");
    CHECK_INT(try_bind(&(spw_engine_params){.rope_scaling = (spw_rope_scaling)9}, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "rope_scaling is 9");
}

static model_rope plain_rope(uint32_t n_dims, float base)
{
    return (model_rope){.n_dims = n_dims, .freq_base = base, .factor = 1, .attn_factor = 1, .yarn_ext_factor = 1, .yarn_beta_fast = 32,
                        .yarn_beta_slow = 1, .orig_ctx = 32768, .scaling = SPW_ROPE_NONE};
}

static void test_rope_tables(void)
{
    rope_table t;
    spw_err err = {0};
    float cs[128];
    model_rope r = plain_rope(8, 10000);
    CHECK_OK(rope_init(&t, &r, NULL, &err), err);
    CHECK_INT(t.n_pairs, 4);
    for (int i = 0; i < 4; i++) CHECK_NEAR(t.freq[i], pow(10, -i), 1e-15);
    CHECK_NEAR(t.mscale, 1, 0);
    rope_angles(&t, 1000003, cs);
    for (uint32_t i = 0; i < 4; i++) {
        long double angle = 1000003.0L * powl(10, -(long double)i);
        CHECK_NEAR(cs[2 * i], cosl(angle), 1e-7);
        CHECK_NEAR(cs[2 * i + 1], sinl(angle), 1e-7);
    }
    rope_angles(&t, 0, cs);
    CHECK_NEAR(cs[0], 1, 0);
    CHECK_NEAR(cs[1], 0, 0);
    rope_free(&t);
    r.scaling = SPW_ROPE_LINEAR, r.factor = 4;
    CHECK_OK(rope_init(&t, &r, (float[]){1, 2, 4, 8}, &err), err);
    for (int i = 0; i < 4; i++) CHECK_NEAR(t.freq[i], pow(10, -i) / (4 << i), 1e-15);
    CHECK_NEAR(t.mscale, 1, 0);
    rope_free(&t);
    CHECK_INT(rope_init(&t, &r, (float[]){1, 2, 0, 8}, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "rope_freqs.weight\": element 2 is 0");
}

/* Qwen2.5's own stretch, worked by hand: heads of 128, base 1e6, factor 4 over 32768.  The pair that turns 32 times over the trained length is
 * 64 ln(32768 / (32 * 2 pi)) / ln 1e6 = 23.6, rounded down to 23; once: 39.6, rounded up to 40. */
static void test_rope_yarn(void)
{
    rope_table t;
    spw_err err = {0};
    float cs[128];
    model_rope r = plain_rope(128, 1e6f);
    r.scaling = SPW_ROPE_YARN, r.factor = 4;
    CHECK_OK(rope_init(&t, &r, NULL, &err), err);
    CHECK_NEAR(t.mscale, 1.1386294, 1e-6);
    for (uint32_t i = 0; i < 64; i++) {
        double f = pow(1e6, -(double)i / 64), interpolated = i <= 23 ? 0 : i >= 40 ? 1 : (i - 23) / 17.0;
        CHECK_NEAR(t.freq[i] / f, 1 - 0.75 * interpolated, 1e-12);
    }
    rope_angles(&t, 0, cs);
    CHECK_NEAR(cs[126], 1.1386294, 1e-6);
    rope_free(&t);
    r.yarn_ext_factor = 0; /* pure interpolation, no scale of the logits */
    CHECK_OK(rope_init(&t, &r, NULL, &err), err);
    CHECK_NEAR(t.freq[0], 0.25, 0);
    CHECK_NEAR(t.mscale, 1, 0);
    rope_free(&t);
}

/* ---- the public view ---- */

static void info_keys(gguf_build *b, const char *a)
{
    (void)a;
    gguf_build_str(b, "tokenizer.ggml.model", "gpt2");
    gguf_build_str(b, "tokenizer.ggml.pre", "smollm");
    gguf_build_array(b, "mixed.f32", B_F32, 2);
    build_put(&b->keys, (float[]){0.1f, 1e-5f}, 8);
    gguf_build_bool(b, "yes", 1);
    gguf_build_scalar(b, "wide", B_U64, &(uint64_t){UINT64_MAX}, 8);
    gguf_build_scalar(b, "low", B_I64, &(int64_t){INT64_MIN}, 8);
    gguf_build_tensor(b, "odd", 99, 1, (uint64_t[]){5}, NULL, 32);
    gguf_build_tensor(b, "rope_freqs.weight", QUANT_F32, 1, (uint64_t[]){HEAD / 2}, (float[]){1, 1, 2, 2}, 16);
}

static void check_key(const spw_file *f, const char *name, const char *type, uint64_t n, const char *text)
{
    char got[256];
    for (size_t i = 0; i < spw_file_n_keys(f); i++) {
        spw_file_key k = spw_file_key_at(f, i);
        if (strcmp(k.name, name)) continue;
        CHECK_STR(k.type, type);
        CHECK_INT(k.n_elems, n);
        CHECK_INT(spw_file_key_text(f, i, got, sizeof got), strlen(text));
        CHECK_STR(got, text);
        memset(got, 'x', sizeof got);
        CHECK_INT(spw_file_key_text(f, i, got, 3), strlen(text));
        CHECK(strlen(got) <= 2 && !strncmp(got, text, strlen(got)) && got[3] == 'x');
        CHECK_INT(spw_file_key_text(f, i, NULL, 0), strlen(text));
        return;
    }
    test_bad++, fprintf(stderr, "no key \"%s\"\n", name);
}

static void test_file(void)
{
    spw_file *f = NULL;
    spw_err err = {0};
    spw_model_info info;
    size_t in_use = mem_in_use();
    write_model(&(recipe){.extra = info_keys});
    CHECK_OK(spw_file_open(&f, path, &err), err);
    if (!f) return;
    check_key(f, "general.architecture", "str", 1, "llama");
    check_key(f, "llama.block_count", "u32", 1, "2");
    check_key(f, "tokenizer.ggml.tokens", "arr[str]", VOCAB, "[t0, t1, t2, t3, t4, t5, t6, t7, ...]");
    check_key(f, "mixed.f32", "arr[f32]", 2, "[0.1, 1e-05]");
    check_key(f, "yes", "bool", 1, "true");
    check_key(f, "wide", "u64", 1, "18446744073709551615");
    check_key(f, "low", "i64", 1, "-9223372036854775808");
    spw_file_tensor t = spw_file_tensor_at(f, 0);
    CHECK_STR(t.name, "odd");
    CHECK_STR(t.type, "type 99");
    CHECK(t.n_dims == 1 && t.dims[0] == 5 && t.dims[1] == 1 && t.bytes == 0);
    t = spw_file_tensor_at(f, 2);
    CHECK_STR(t.name, "token_embd.weight");
    CHECK_STR(t.type, "F32");
    CHECK_STR(spw_file_tensor_at(f, 10000).name, "");
    CHECK_OK(spw_file_model_info(f, &info, &err), err);
    CHECK_STR(info.architecture, "llama");
    CHECK_STR(info.tokenizer, "gpt2/smollm");
    CHECK_STR(info.chat_template, "");
    CHECK_STR(info.rope_scaling, "llama3");
    CHECK(info.has_weights && info.n_vocab == VOCAB && info.n_ctx_train == CTX);
    CHECK_INT(info.kv_bytes_per_pos, LAYERS * HEADS_KV * 16 * 4);
    spw_file_close(f);
    CHECK_INT(mem_in_use(), in_use);
}

static void test_file_unknown(void)
{
    spw_file *f = NULL;
    spw_err err = {0};
    spw_model_info info;
    write_model(&(recipe){.arch = "mamba", .extra = info_keys});
    CHECK_OK(spw_file_open(&f, path, &err), err);
    if (!f) return;
    CHECK_INT(spw_file_model_info(f, &info, &err), SPW_E_UNSUPPORTED);
    CHECK_HAS(err.msg, "\"mamba\"");
    CHECK_STR(info.architecture, "mamba");
    CHECK_STR(info.tokenizer, "gpt2/smollm");
    CHECK_INT(info.n_layer, LAYERS);
    spw_file_close(f);
    memset(&info, 0x55, sizeof info);
    write_model(&(recipe){.skip = "block_count"});
    f = NULL;
    CHECK_OK(spw_file_open(&f, path, &err), err);
    if (!f) return;
    CHECK_INT(spw_file_model_info(f, &info, &err), SPW_E_FORMAT);
    CHECK_INT(info.n_layer, 0x55555555);
    spw_file_close(f);
}

/* ---- the real files ---- */

static bool open_asset(const char *name, gguf_file **f)
{
    const char *assets = getenv("SPILLWAY_ASSETS");
    char full[1024];
    spw_err err = {0};
    snprintf(full, sizeof full, "%s/%s", assets ? assets : "../shared/assets", name);
    *f = NULL;
    if (access(full, R_OK)) {
        SKIP(name, "not in the assets folder (SPILLWAY_ASSETS)");
        return false;
    }
    CHECK_OK(gguf_open(f, full, &err), err);
    return *f != NULL;
}

static void test_assets(void)
{
    static const struct { const char *name; uint32_t layers, heads, heads_kv, head_dim, vocab, ctx; } models[] = {
        {"models/stories260K-f32.gguf", 5, 8, 4, 8, 512, 512},
        {"models/stories15M-Q8_0.gguf", 6, 6, 6, 48, 32000, 256},
        {"models/stories15M-Q4_0.gguf", 6, 6, 6, 48, 32000, 256},
    };
    gguf_file *f;
    spw_err err = {0};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        model *m = NULL;
        if (!open_asset(models[i].name, &f)) continue;
        CHECK_OK(model_bind(&m, f, NULL, &err), err);
        if (m) {
            CHECK_INT(m->hp.n_layer, models[i].layers);
            CHECK_INT(m->hp.n_head, models[i].heads);
            CHECK_INT(m->hp.n_head_kv, models[i].heads_kv);
            CHECK_INT(m->hp.head_dim, models[i].head_dim);
            CHECK_INT(m->hp.n_vocab, models[i].vocab);
            CHECK_INT(m->hp.n_ctx_train, models[i].ctx);
        }
        model_free(m);
        gguf_close(f);
    }
    static const char *const needles[] = {"models/needle-d64-l8.gguf", "models/needle-d128-Q8_0.gguf", "models/needle-d128-Q4_0.gguf"};
    for (int i = 0; i < 3; i++) {
        model *m = NULL;
        if (!open_asset(needles[i], &f)) continue;
        CHECK_OK(model_bind(&m, f, NULL, &err), err);
        if (m) CHECK(m->hp.n_head == 8 && m->hp.n_head_kv == 2 && m->hp.head_dim == (i ? 128 : 64) && m->hp.n_ctx_train >= 131072);
        model_free(m);
        gguf_close(f);
    }
    model *none = NULL;
    static const char *const vocabs[] = {"vocab/ggml-vocab-qwen2.gguf", "vocab/ggml-vocab-gpt-2.gguf", "vocab/ggml-vocab-llama-spm.gguf"};
    for (int i = 0; i < 3; i++) {
        if (!open_asset(vocabs[i], &f)) continue;
        CHECK_INT(model_bind(&none, f, NULL, &err), SPW_E_FORMAT);
        CHECK_HAS(err.msg, vocabs[i]);
        CHECK_HAS(err.msg, ".gguf: holds a vocabulary but no weights");
        gguf_close(f);
    }
}

int main(void)
{
    int fd = mkstemp(path);
    if (fd < 0) {
        perror(path);
        return 1;
    }
    close(fd);
    RUN(test_good);
    RUN(test_refusals);
    RUN(test_no_memory);
    RUN(test_rope_keys);
    RUN(test_rope_params);
    RUN(test_rope_tables);
    RUN(test_rope_yarn);
    RUN(test_file);
    RUN(test_file_unknown);
    RUN(test_assets);
    unlink(path);
    return test_done();
}
