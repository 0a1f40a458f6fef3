/* spillway.h - long-context language model inference with the KV cache in host memory.
 *
 * The only header an application includes; C11 and C++ clean.  The objects:
 *
 *   spw_vocab     a tokenizer and its chat template; immutable; may be shared between threads
 *   spw_engine    a loaded model; immutable once open; shared by its sessions
 *   spw_session   one token timeline: its KV cache and its logits; freed before its engine is closed
 *   spw_sampler   turns logits into tokens; seeded, so a run can be repeated
 *   spw_file      a GGUF file as data, for looking into it without loading it
 *
 * Rules that hold for every function below unless its comment says otherwise:
 *   - what can fail returns spw_status: SPW_OK, or a negative code;
 *   - on failure nothing that the caller can see has changed, and *err, if err is not NULL, holds the
 *     code and one line that names the object, what was expected and what was found;
 *   - pointer arguments are borrowed for the call and never kept;
 *   - spw_*_close and spw_*_free accept NULL;
 *   - the library never prints, exits or aborts on what it is given;
 *   - calls on one engine that evaluate tokens (spw_session_eval, spw_session_decode, spw_step) are
 *     made by one thread at a time; a vocabulary, a sampler per thread and a file need no lock.
 *
 * Reproducibility: on one machine the bits of a row's logits depend only on the model, on the tokens of
 * its session, on which of them were evaluated as prompt or as generated tokens, on the kernels (spw_engine_isa) and on
 * whether weights were repacked (spw_engine_load_stats: short memory at loading decides this): not on the number of threads, on
 * other rows of the same step, or on how the prompt was cut into calls (docs/NUMERICS.md; spw_session_truncate has two exceptions).
 */
#ifndef SPILLWAY_H
#define SPILLWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPW_VERSION "0.1.0"

/* The version of the library that is linked, as text: compare with SPW_VERSION. */
const char *spw_version(void);

typedef enum spw_status {
    SPW_OK = 0,
    SPW_E_ARG = -1,         /* the caller broke a documented precondition, or a value is out of range */
    SPW_E_NOMEM = -2,       /* host or device memory ran out */
    SPW_E_FORMAT = -3,      /* a file or text is malformed */
    SPW_E_UNSUPPORTED = -4, /* well formed, but of a kind that this build does not know */
    SPW_E_IO = -5,          /* the system could not open, read or write */
    SPW_E_FULL = -6,        /* the context limit would be exceeded */
    SPW_E_DEVICE = -7,      /* an accelerator failed */
} spw_status;

typedef struct spw_err {
    spw_status code;
    char msg[500]; /* NUL-terminated, one line, no newline at its end */
} spw_err;

/* Frees what a function below says must be freed by spw_free.  Takes NULL. */
void spw_free(void *p);

/* ---------------------------------------------------------------- files: a GGUF file as data ---- */

typedef struct spw_file spw_file;

typedef struct spw_file_key {
    const char *name;  /* "llama.context_length" */
    const char *type;  /* "u32", "str", "arr[str]"... */
    uint64_t n_elems;  /* 1 for a scalar, the length of an array */
} spw_file_key;

typedef struct spw_file_tensor {
    const char *name; /* "blk.0.attn_q.weight" */
    const char *type; /* "Q4_K", or "type 99" where unknown */
    int n_dims;       /* 1..4 */
    uint64_t dims[4]; /* dims[0] is contiguous in memory; 1 beyond n_dims */
    uint64_t bytes;   /* 0 where the type is unknown */
} spw_file_tensor;

/* What a model is, from its keys alone.  Values that the file lacks are 0, NaN-free and documented. */
typedef struct spw_model_info {
    char name[128];         /* general.name, or "" */
    char architecture[64];  /* general.architecture */
    char tokenizer[64];     /* tokenizer.ggml.model and .pre joined by '/', or "" */
    char chat_template[32]; /* a name that spw_chat_render takes, "unknown" for a template that is not known, "" for none */
    bool has_weights;       /* false for a vocabulary-only file */
    uint32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    uint32_t n_ctx_train;     /* trained context length in tokens */
    float rope_freq_base;
    char rope_scaling[16];    /* none, linear, yarn, llama3 */
    uint64_t n_params;        /* elements of all tensors */
    uint64_t weight_bytes;    /* bytes of all tensors */
    uint64_t kv_bytes_per_pos; /* host KV bytes of one position: all layers, K and V; as halves, or as the engine keeps them, index included */
} spw_model_info;

/* Opens a GGUF file, or the first part of a split one (the others are found beside it by name).
 * The mapping is kept until spw_file_close. */
spw_status spw_file_open(spw_file **out, const char *path, spw_err *err);
void spw_file_close(spw_file *f);
size_t spw_file_n_keys(const spw_file *f);
spw_file_key spw_file_key_at(const spw_file *f, size_t i);
/* The value of key i as text in out (always NUL-terminated when cap > 0), strings unquoted and arrays as
 * their first elements in brackets; returns the length that the whole text has. */
size_t spw_file_key_text(const spw_file *f, size_t i, char *out, size_t cap);
size_t spw_file_n_tensors(const spw_file *f);
spw_file_tensor spw_file_tensor_at(const spw_file *f, size_t i);
/* Hyper-parameters, checked for plausibility only.  SPW_E_UNSUPPORTED names an unknown architecture;
 * *info then still holds what could be read. */
spw_status spw_file_model_info(const spw_file *f, spw_model_info *info, spw_err *err);

/* ------------------------------------------------------------------------------- vocabulary ---- */

typedef struct spw_vocab spw_vocab;

enum {
    SPW_TOK_SPECIAL = 1, /* parse special tokens ("<|im_end|>") in the text; otherwise they are plain text */
    SPW_TOK_BOS = 2,     /* put the model's beginning-of-sequence token first, if it has one */
};

/* Loads the tokenizer of a GGUF file; vocabulary-only files do. */
spw_status spw_vocab_open(spw_vocab **out, const char *path, spw_err *err);
void spw_vocab_close(spw_vocab *v);

int32_t spw_vocab_size(const spw_vocab *v);
int32_t spw_vocab_bos(const spw_vocab *v); /* -1: none */
int32_t spw_vocab_eos(const spw_vocab *v); /* -1: none */
bool spw_vocab_adds_bos(const spw_vocab *v); /* the model was trained with BOS before a text */
/* True for every token that ends a generated turn: EOS, EOT, EOM, and what the templates use for them. */
bool spw_vocab_is_end(const spw_vocab *v, int32_t id);

/* Text (len bytes, any bytes) to ids; *ids is owned by the caller, freed by spw_free; *n may be 0 and *ids then is NULL.
 * Bytes that are not UTF-8 are encoded byte by byte.  O(len log len) whatever the text. */
spw_status spw_tokenize(const spw_vocab *v, const char *text, size_t len, unsigned flags, int32_t **ids, size_t *n, spw_err *err);

/* The bytes that one token stands for; not NUL-terminated, may be part of a character; owned by v.
 * Control tokens have length 0 unless special is set.  Ids out of range have length 0. */
const char *spw_token_text(const spw_vocab *v, int32_t id, bool special, size_t *len);

/* Turns generated ids into text for printing: never hands out part of a UTF-8 character, and drops the
 * leading space that SentencePiece puts before a text. */
typedef struct spw_detok spw_detok;
spw_status spw_detok_create(spw_detok **out, const spw_vocab *v, spw_err *err); /* keeps v */
void spw_detok_free(spw_detok *d);
/* Adds one token; returns the bytes that are complete now (valid until the next call on d), *len of them. */
const char *spw_detok_push(spw_detok *d, int32_t id, size_t *len);
/* What is left of an unfinished character, as U+FFFD; d is empty then and can be used again. */
const char *spw_detok_flush(spw_detok *d, size_t *len);

/* ------------------------------------------------------------------------------ chat templates ---- */

typedef struct spw_message {
    const char *role; /* "system", "user" or "assistant" */
    const char *text; /* NUL-terminated UTF-8; never parsed for special tokens */
} spw_message;

/* Name of the template that the file carries, found by fingerprint: chatml, llama2, llama3, mistral, zephyr, gemma, phi3; "unknown"
 * when it carries another one; "" when it carries none. */
const char *spw_vocab_chat_template(const spw_vocab *v);
/* Names of the known templates, separated by ", ". */
const char *spw_chat_templates(void);

/* Renders msgs[from .. n_msgs-1] as token ids, followed by the opening of an assistant's turn.
 * name     a known template, or NULL for the file's own (an unknown or missing one is SPW_E_UNSUPPORTED and names --chat-template)
 * from     0: a new conversation: BOS and the template's default system message come first as the template
 *          says.  k > 0: msgs[0..k-1] are in the session already, and the last of them is the assistant's answer as generated,
 *          without its end-of-turn token: the closing of that turn comes first.
 * *ids is freed by spw_free. */
spw_status spw_chat_render(const spw_vocab *v, const char *name, const spw_message *msgs, size_t n_msgs, size_t from, int32_t **ids, size_t *n,
                           spw_err *err);

/* --------------------------------------------------------------------------------------- engine ---- */

typedef struct spw_engine spw_engine;

typedef enum spw_rope_scaling {
    SPW_ROPE_MODEL = 0, /* what the file says */
    SPW_ROPE_NONE,
    SPW_ROPE_LINEAR,
    SPW_ROPE_YARN,
} spw_rope_scaling;

typedef enum spw_kv_type {
    SPW_KV_F16 = 0, /* K and V are kept as halves */
    SPW_KV_F32,     /* as floats: twice the memory and no faster; for comparing with implementations that do not round K and V */
    SPW_KV_Q8,      /* as signed bytes, about half the memory: K scaled for each channel of a page of 128 positions, V for each position.
                     * The newest up to 128 positions are halves until their page is full.  See spw_session_truncate */
} spw_kv_type;

enum { SPW_KV_INDEX_NONE = -1 };

typedef struct spw_engine_params {
    int n_threads;                 /* 0: one per core that is online; at most 256 */
    int n_batch;                   /* rows evaluated at once, 1..8192; 0: 512.  More costs memory, not exactness */
    spw_rope_scaling rope_scaling; /* how positions beyond the trained length are mapped */
    float rope_scale;              /* factor by which the context is stretched; 0: the file's, or 1 */
    float rope_freq_base;          /* 0: the file's */
    uint32_t yarn_orig_ctx;        /* trained length for YaRN; 0: the file's */
    spw_kv_type kv_type;
    int kv_index;                  /* bit planes of the index of keys, by which policies choose positions, each some 3 to 4 % of the bytes of halves: 1 to 4;
                                    * 0: 3; SPW_KV_INDEX_NONE: no index, and adaptive reads everything.  No effect on what is read in full */
    bool no_repack;                /* compute products in f32 from the file's values: slower, and exact up to f32 rounding.  See spw_load_stats */
} spw_engine_params;

spw_engine_params spw_engine_default_params(void); /* zeros */

/* Loads a model: maps the file, checks every tensor's type and shape, starts the workers. */
spw_status spw_engine_open(spw_engine **out, const char *path, const spw_engine_params *params, spw_err *err);
void spw_engine_close(spw_engine *e);
const spw_vocab *spw_engine_vocab(const spw_engine *e);
/* n_ctx_train, rope and so on after params; owned by e. */
const spw_model_info *spw_engine_info(const spw_engine *e);
int spw_engine_n_threads(const spw_engine *e);
int spw_engine_n_batch(const spw_engine *e);
/* Name of the kernels in use: ref, scalar, on x86-64 avx2, avx512, on AArch64 neon (environment variable SPILLWAY_ISA forces one). */
const char *spw_engine_isa(const spw_engine *e);

/* What loading did.  Weights of the common quantised types are copied into a layout that the processor's integer units like; products with
 * them take activations as integers of 12 to 16 bits (docs/NUMERICS.md).  The copy takes the bytes of the weights once more, so it is left out where it would exceed half of
 * the available memory. */
typedef enum spw_repack {
    SPW_REPACK_DONE = 0,
    SPW_REPACK_REFUSED,   /* by the parameters */
    SPW_REPACK_NO_KERNEL, /* the kernels in use (ref) have none for it */
    SPW_REPACK_NO_MEMORY,
} spw_repack;
typedef struct spw_load_stats {
    spw_repack repack;
    uint64_t repack_bytes; /* 0 also when no weight is of such a type */
    double repack_seconds;
} spw_load_stats;
spw_load_stats spw_engine_load_stats(const spw_engine *e);

/* Bytes needed to hold n_pos positions of one session of this model, and what the system has to give. */
typedef struct spw_memory {
    uint64_t weights;   /* mapped file, read on demand, or the repacked copy in its place */
    uint64_t kv;        /* host KV of n_pos positions */
    uint64_t kv_bytes_per_pos; /* of one position, of the type and with the index that the parameters ask for */
    uint64_t scratch;   /* activations, logits, and K and V that are not bytes yet (SPW_KV_Q8) */
    uint64_t available; /* what the system can give now, file cache included; cgroup and address space limits counted */
} spw_memory;
spw_status spw_file_memory(const spw_file *f, uint64_t n_pos, const spw_engine_params *params, spw_memory *out, spw_err *err);

/* ------------------------------------------------------------------------------------- sessions ---- */

typedef struct spw_session spw_session;

/* How the policy `adaptive` decides how many positions a KV group reads (docs/FIDELITY.md compares them). */
typedef enum spw_kv_rule {
    SPW_KV_FLAT = 0,  /* kv_budget of the middle, alike for all */
    SPW_KV_THRESHOLD, /* positions with more than kv_threshold of the group's mean attention, as estimated, and a floor */
    SPW_KV_TOP_P,     /* until every head has left out at most kv_threshold of its attention, as estimated */
    SPW_KV_ERROR,     /* until the error of every head's output, as estimated, is below kv_error of the layer's largest output */
    SPW_KV_LAYER,     /* kv_budget of the middle of all KV heads of a layer, spread over them by estimated attention, and a floor */
    SPW_KV_MODEL,     /* the same of all layers; so much on average over the tokens */
} spw_kv_rule;

/* What stands for the positions that the policy `adaptive` does not choose. */
typedef enum spw_kv_rest {
    SPW_KV_REST_NONE = 0, /* nothing, as if they did not exist */
    SPW_KV_REST_MEAN,     /* the mean of V of their pages, weighted by estimated attention: 0.4 % of the bytes of the rows more are read */
} spw_kv_rest;

typedef struct spw_session_params {
    uint64_t n_ctx;        /* positions at most; 0: the trained context.  Reserves address space, not memory */
    const char *kv_policy; /* a name of spw_kv_policies; "adaptive" when NULL.  Or several by layer: "adaptive,0-1=full" */
    uint32_t kv_sink;      /* first positions that are always attended; default 64 */
    uint32_t kv_window;    /* newest positions that are always attended, at least 1; default 256 */
    double kv_budget;      /* what may be read of the positions between them: up to 1 a share, above 1 positions, 0: the policy's own rule; default -1: the policy's default, of adaptive 2 % of up to 32768 positions, from where on it grows with the root of their number */
    uint32_t kv_block;     /* adjacent positions that are chosen together: 1, 16, 32, 64 or 128; default 0: the policy's default */
    spw_kv_rule kv_rule;   /* default SPW_KV_MODEL */
    spw_kv_rest kv_rest;   /* default SPW_KV_REST_MEAN */
    double kv_threshold;   /* below 1; 0: the rule's default */
    double kv_error;       /* below 1; 0: the rule's default */
    double kv_beta;        /* hgca keeps positions of at least kv_beta / n of the attention; 0 keeps everything; default 1 */
    uint64_t sparse_min_ctx; /* contexts shorter than this are read whole; default 2048 */
} spw_session_params;

spw_session_params spw_session_default_params(void);
spw_status spw_session_create(spw_session **out, spw_engine *e, const spw_session_params *params, spw_err *err);
/* A second session with the same past: shares the pages of KV and copies only what either of them changes.
 * params: NULL for from's own policy (with its state) and limit; otherwise the fork starts a policy of its own, and n_ctx, 0 or at least from's length, is its
 * limit.  So one long prompt can be read once and continued under several policies. */
spw_status spw_session_fork(spw_session **out, const spw_session *from, const spw_session_params *params, spw_err *err);
void spw_session_free(spw_session *s);
uint64_t spw_session_pos(const spw_session *s);   /* positions held: the next token takes this one */
uint64_t spw_session_n_ctx(const spw_session *s); /* positions at most */
/* Forgets every position from pos on (pos <= spw_session_pos); the logits become NULL unless nothing was forgotten.
 * SPW_KV_Q8: when pos lies inside a page that was full, up to 127 positions before pos go on as what their bytes stand for: later logits
 * then differ, by as much as bytes do from halves, from those of a session that never went beyond pos.  Not when pos is a multiple of 128,
 * or its page was not full.
 * The policies hgca and adaptive (where a model shares one budget) choose by what they saw at the tokens generated before: after a truncation, as after
 * a prompt, they begin anew. */
spw_status spw_session_truncate(spw_session *s, uint64_t pos, spw_err *err);
/* Names of the known policies, separated by ", ". */
const char *spw_kv_policies(void);

/* Appends prompt tokens: every one attends to its whole past, whatever the policy.  n may be larger than n_batch.
 * SPW_E_FULL when pos + n exceeds n_ctx; SPW_E_ARG names the index of the first id that is not below spw_vocab_size.
 * Afterwards spw_session_logits() are those of the last token. */
spw_status spw_session_eval(spw_session *s, const int32_t *tokens, size_t n, spw_err *err);
/* Appends one generated token, attending through the session's policy. */
spw_status spw_session_decode(spw_session *s, int32_t token, spw_err *err);
/* For benchmarks: appends n positions of made-up K and V, distinct at every position and of the scale that rows of this model have, at about the speed of
 * memory; so a session gets deep without hours of reading.  Whatever is generated afterwards costs what it would after a text of that length,
 * and means nothing.  The bits depend on the model, seed and the positions alone.  Only the first call on an engine evaluates something: 64 tokens, in a session of their own.
 * The logits become NULL until the next evaluation.  SPW_E_FULL as for spw_session_eval; n may be 0. */
spw_status spw_session_fill(spw_session *s, uint64_t n, uint64_t seed, spw_err *err);
/* spw_vocab_size floats: the logits of the last evaluated token; owned by s, valid until the next call that changes s;
 * NULL before the first evaluation. */
const float *spw_session_logits(const spw_session *s);

typedef enum spw_row_kind {
    SPW_PROMPT = 0, /* tokens attend to their whole past */
    SPW_DECODE = 1, /* the token attends through the session's policy; n is 1 */
} spw_row_kind;

/* One session's share of a step. */
typedef struct spw_work {
    spw_session *session;
    const int32_t *tokens;
    size_t n; /* at least 1 */
    spw_row_kind kind;
    float *logits;        /* NULL, or room for n_logits * spw_vocab_size floats: logits of the last n_logits tokens, oldest first */
    size_t n_logits;      /* 0..n */
} spw_work;

/* The engine's primitive: evaluates rows of several sessions at once, prompt chunks and generated tokens mixed.  All sessions
 * belong to e, none occurs twice.  The n of all items together may exceed n_batch (it is then cut).  On failure no session has advanced. */
spw_status spw_step(spw_engine *e, spw_work *work, size_t n_work, spw_err *err);

typedef struct spw_session_stats {
    uint64_t positions;     /* held now */
    uint64_t kv_bytes;      /* bytes of KV pages in use by this session, shared pages counted whole */
    char kv_policy[16];
    uint64_t middle_bytes;  /* since creation, over generated tokens: bytes of K and V between sink and window */
    uint64_t read_bytes;    /* of these, read (index and digests included) */
    uint64_t read_rows_bytes; /* of these, rows alone */
} spw_session_stats;
spw_session_stats spw_session_get_stats(const spw_session *s);

/* Adjacent positions. */
typedef struct spw_range {
    uint64_t first, n;
} spw_range;

/* What some query heads of a KV group attended to.  A head attends to all sets that name it. */
typedef struct spw_observed_set {
    uint32_t q_first, n_q;      /* query heads, counted in the group */
    const spw_range *ranges;    /* ascending */
    size_t n_ranges;
    const uint32_t *positions;  /* further single positions, ascending */
    size_t n_positions;
} spw_observed_set;

typedef struct spw_observed_head { /* one KV head */
    const spw_observed_set *sets;
    size_t n_sets;
    uint64_t middle_bytes, row_bytes, side_bytes; /* between sink and window: of all rows; of rows that were read; of index or digests that were read */
} spw_observed_head;

/* What one generated row attended to in one layer. */
typedef struct spw_observation {
    uint64_t pos; /* of the row */
    uint32_t layer, n_head, n_head_kv;
    const spw_observed_head *heads; /* n_head_kv */
    const float *mass_estimate;     /* n_head: share of a head's attention to the middle that was read, as the policy estimates it; negative: no estimate */
    const float *mass;              /* n_head: true share of a head's attention that was read; NULL unless truth was asked for */
    const float *output_error;      /* n_head: |output - dense output| / |dense output|; NULL likewise */
} spw_observation;

/* Called for every layer of every generated row, on the thread that evaluates; must not call into the engine.  What o points to is valid during the call. */
typedef void spw_observe_fn(void *ctx, const spw_observation *o);
/* Watches a session from now on; NULL: no longer.  truth: every layer attends to everything as well, from the same hidden states, and is compared; slow.  Results do not change. */
void spw_session_observe(spw_session *s, spw_observe_fn *observe, void *ctx, bool truth);

/* Asserts the invariants of the engine's KV store; SPW_E_FORMAT names the first that does not hold.  Slow. */
spw_status spw_engine_check(spw_engine *e, spw_err *err);

/* ------------------------------------------------------------------------------------- sampling ---- */

typedef struct spw_sampler spw_sampler;

typedef struct spw_sampler_params {
    float temp;           /* 0: greedy.  default 0.8 */
    int top_k;            /* 0: off.  default 40 */
    float top_p;          /* 1: off.  default 0.95 */
    float min_p;          /* 0: off.  default 0.05 */
    float repeat_penalty; /* 1: off.  default 1 */
    int repeat_last_n;    /* tokens that the penalty looks back; default 64 */
    uint64_t seed;
} spw_sampler_params;

spw_sampler_params spw_sampler_default_params(void);
spw_status spw_sampler_create(spw_sampler **out, const spw_sampler_params *params, spw_err *err);
void spw_sampler_free(spw_sampler *s);
/* Tells the sampler about a token of the text, for the repetition penalty. */
void spw_sampler_accept(spw_sampler *s, int32_t id);
/* Chooses a token from n logits.  Order: penalty, top-k, top-p, min-p, temperature.  Ties go to the lower id. */
int32_t spw_sampler_sample(spw_sampler *s, const float *logits, size_t n);

/* 64-bit hash of bytes, chained by seed: used for "the same bits". */
uint64_t spw_hash(uint64_t seed, const void *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
