/* engine_private.h - what the files of the engine share: the loaded model on its device, and the sessions.
 *
 *   engine.c    opens and closes: file, vocabulary, weights on the device, workers, store, buffers
 *   session.c   timelines: create, fork, truncate, statistics, the one-session calls
 *   step.c      the primitive: cuts the work of several sessions into passes of at most n_batch rows
 *   forward.c   one pass: embedding, layers, logits
 *   observe.c   what generated rows attended to, for those who ask
 *   fill.c      positions of made-up K and V, for benchmarks */
#ifndef SPW_ENGINE_PRIVATE_H
#define SPW_ENGINE_PRIVATE_H

#include "dev_host.h"
#include "exec.h"
#include "model.h"
#include "rope.h"
#include "tokenizer.h"

enum { LOGIT_ROWS = 32, DEFAULT_BATCH = 512, MAX_BATCH = 8192, MAX_THREADS = 256 }; /* rows whose logits are computed at once */

typedef struct engine_layer {
    dev_weight *attn_norm, *wq, *wk, *wv, *wo, *ffn_norm, *w_gate, *w_up, *w_down;
    dev_weight *bq, *bk, *bv, *bo;   /* NULL: none */
    dev_weight *q_norm, *k_norm;     /* NULL: none */
} engine_layer;

/* Activations of n_batch rows on the device. */
typedef struct engine_bufs {
    dev_buf *x, *h;          /* residual stream; normed input or output of a product: [n_batch][n_embd] */
    dev_buf *q, *k, *v;      /* [n_batch][heads * head_dim] */
    dev_buf *q_rot, *k_rot;  /* [n_batch][heads][dim] */
    dev_buf *o;              /* [n_batch][n_head * head_dim] */
    dev_buf *gate, *up;      /* [n_batch][n_ff] */
    dev_buf *logit_x;        /* [LOGIT_ROWS][n_embd] */
    dev_buf *logits;         /* [LOGIT_ROWS][n_vocab] */
} engine_bufs;

/* A request for the logits of one row of a pass. */
typedef struct logit_request {
    uint32_t row;
    float *out; /* n_vocab floats */
} logit_request;

/* What observed rows would have attended to: everything. */
typedef struct observer {
    policy_layers full;
    plan_rows *rows; /* the observed ones of a pass */
    size_t cap_rows;
    plan plan;
    float *o;        /* [row][n_head][head_dim] */
    float *lse, *dense_lse; /* of the parts of both plans */
    size_t cap_o, cap_lse, cap_dense_lse;
    float *mass, *error, *estimate; /* n_head each, one allocation */
    spw_observed_head *heads;       /* n_head_kv */
    spw_observed_set *sets;
    size_t cap_sets;
} observer;

/* How far one item of a step has come. */
typedef struct step_progress {
    uint64_t start; /* session's length before the step */
    size_t done;    /* tokens evaluated */
    plan_reads reads;
} step_progress;

struct spw_engine {
    gguf_file *file;
    model *model;
    spw_vocab *vocab;
    spw_model_info info;
    spw_load_stats load_stats;
    const kern_table *kern;
    spw_pool *pool;
    dev *dev;
    kv_store *store;
    exec *exec;
    rope_table rope;
    uint32_t dim;   /* head_dim rounded up to 16 */
    uint32_t group; /* query heads per KV head */
    size_t n_batch;
    dev_weight *token_embd, *output_norm, *output; /* output == token_embd when tied */
    engine_layer *layers;
    engine_bufs bufs;
    /* scratch of one pass, n_batch entries each */
    int32_t *ids;
    float *cos_sin;       /* [row][n_pairs][2] */
    uint32_t *logit_rows; /* LOGIT_ROWS */
    plan plan;
    observer observer;
    uint32_t *n_head_kv;  /* per layer */
    /* scratch of a step of at most cap_work items, grown by step.c; reads are those of the running pass, and n_batch + cap_work requests */
    size_t cap_work;
    plan_rows *rows;
    spw_session **row_sessions; /* whose they are */
    step_progress *progress;
    plan_reads *reads;
    logit_request *requests;
    float *fill_stats; /* what rows of K and V look like; NULL until a session is filled (fill.c) */
};

struct spw_session {
    spw_engine *engine;
    kv_seq *seq;
    policy_layers policies;
    spw_observe_fn *observe; /* NULL: nobody watches */
    void *observe_ctx;
    bool observe_truth;
    float *logits;      /* n_vocab, of the last token when has_logits */
    float *next_logits; /* filled by a step, exchanged with logits when it succeeds */
    bool has_logits;
    bool in_step;
    bool policy_stale; /* the policies have not seen the last prompt or truncation yet */
    uint64_t middle_bytes, read_bytes, read_rows_bytes;
};

void engine_free_step(spw_engine *e);

/* Room for what observing the pass needs. */
spw_status observe_begin(spw_engine *e, size_t n_rows, uint32_t n_total, spw_err *err);
/* Tells policies and watchers about a layer that has been attended by e->plan. */
spw_status observe_layer(spw_engine *e, size_t n_rows, const exec_layer *l, spw_err *err);
void observe_free(spw_engine *e);

/* One pass: n_total rows, those of n_rows entries of e->rows, ids in e->ids; rows have been reserved in the store, nothing is committed.
 * Adds to each decode session's statistics what it read into reads[i] (n_rows entries). */
spw_status forward_pass(spw_engine *e, size_t n_rows, uint32_t n_total, const logit_request *requests, size_t n_requests, plan_reads *reads,
                        spw_err *err);

#endif
