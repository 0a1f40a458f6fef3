/* engine.c - loads a model and everything that its sessions share (engine_private.h). */
#include <string.h>

#include "engine_private.h"
#include "measure.h"
#include "mem.h"
#include "system.h"

spw_engine_params spw_engine_default_params(void)
{
    return (spw_engine_params){0};
}

static uint32_t padded_dim(uint32_t head_dim)
{
    return (head_dim + 15) / 16 * 16;
}

/* Zeros become the defaults that they stand for, and kv_index the number of planes. */
static spw_status check_params(spw_engine_params *p, spw_err *err)
{
    if (p->n_threads < 0 || p->n_threads > MAX_THREADS) {
        return spw_fail(err, SPW_E_ARG, "threads: expected 0 to %d, found %d", MAX_THREADS, p->n_threads);
    }
    if (p->n_batch < 0 || p->n_batch > MAX_BATCH) return spw_fail(err, SPW_E_ARG, "batch: expected 0 to %d rows, found %d", MAX_BATCH, p->n_batch);
    if (p->kv_type != SPW_KV_F16 && p->kv_type != SPW_KV_F32 && p->kv_type != SPW_KV_Q8) {
        return spw_fail(err, SPW_E_ARG, "KV type: unknown number %d", (int)p->kv_type);
    }
    if (p->kv_index < SPW_KV_INDEX_NONE || p->kv_index > KERN_INDEX_PLANES) {
        return spw_fail(err, SPW_E_ARG, "KV index: expected up to %d bit planes, or SPW_KV_INDEX_NONE (%d), found %d", KERN_INDEX_PLANES, SPW_KV_INDEX_NONE, p->kv_index);
    }
    p->kv_index = p->kv_index == SPW_KV_INDEX_NONE ? 0 : p->kv_index ? p->kv_index : KERN_INDEX_USUAL;
    if (!p->n_threads) p->n_threads = system_n_cores() < MAX_THREADS ? system_n_cores() : MAX_THREADS;
    if (!p->n_batch) p->n_batch = DEFAULT_BATCH;
    return SPW_OK;
}

/* ---------------------------------------------------------------------------------------------- weights ---- */

/* Puts a weight on the device; one that the model lacks stays NULL. */
static spw_status load(spw_engine *e, const model_weight *w, dev_weight **out, spw_err *err)
{
    if (!w->data) return SPW_OK;
    bool lookup = w == &e->model->token_embd && e->model->output.data != w->data;
    dev_weight_desc desc = {.name = w->name, .type = w->type, .rows = w->rows, .cols = w->cols, .data = w->data, .lookup = lookup, .mapped = true};
    return e->dev->ops->weight_create(e->dev, &desc, out, err);
}

static spw_status load_layer(spw_engine *e, const model_layer *m, engine_layer *l, spw_err *err)
{
    const struct {
        const model_weight *from;
        dev_weight **to;
    } all[] = {
        {&m->attn_norm, &l->attn_norm}, {&m->wq, &l->wq}, {&m->wk, &l->wk}, {&m->wv, &l->wv}, {&m->wo, &l->wo}, {&m->ffn_norm, &l->ffn_norm},
        {&m->w_gate, &l->w_gate}, {&m->w_up, &l->w_up}, {&m->w_down, &l->w_down}, {&m->bq, &l->bq}, {&m->bk, &l->bk}, {&m->bv, &l->bv},
        {&m->bo, &l->bo}, {&m->q_norm, &l->q_norm}, {&m->k_norm, &l->k_norm},
    };
    spw_status s = SPW_OK;
    for (size_t i = 0; i < sizeof all / sizeof all[0] && !s; i++) s = load(e, all[i].from, all[i].to, err);
    return s;
}

static spw_status load_weights(spw_engine *e, spw_err *err)
{
    const model *m = e->model;
    e->layers = mem_calloc(m->hp.n_layer, sizeof *e->layers);
    if (!e->layers) return spw_fail(err, SPW_E_NOMEM, "engine: out of memory for %u layers", m->hp.n_layer);
    spw_status s = load(e, &m->token_embd, &e->token_embd, err);
    if (!s) s = load(e, &m->output_norm, &e->output_norm, err);
    if (!s && m->output.data == m->token_embd.data) e->output = e->token_embd;
    else if (!s) s = load(e, &m->output, &e->output, err);
    for (uint32_t i = 0; i < m->hp.n_layer && !s; i++) s = load_layer(e, &m->layers[i], &e->layers[i], err);
    return s;
}

static void free_weights(spw_engine *e)
{
    void (*drop)(dev *, dev_weight *) = e->dev->ops->weight_free;
    if (e->output != e->token_embd) drop(e->dev, e->output);
    drop(e->dev, e->token_embd);
    drop(e->dev, e->output_norm);
    for (uint32_t i = 0; e->layers && i < e->model->hp.n_layer; i++) {
        engine_layer *l = &e->layers[i];
        dev_weight *all[] = {l->attn_norm, l->wq, l->wk, l->wv, l->wo, l->ffn_norm, l->w_gate, l->w_up, l->w_down,
                             l->bq, l->bk, l->bv, l->bo, l->q_norm, l->k_norm};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) drop(e->dev, all[j]);
    }
    mem_free(e->layers);
}

/* ---------------------------------------------------------------------------------------------- buffers ---- */

enum { N_BUFS = sizeof(engine_bufs) / sizeof(dev_buf *) };

/* Floats of every member of engine_bufs, in its order. */
static void buf_sizes(const model_hparams *hp, size_t n_batch, size_t floats[N_BUFS])
{
    size_t dim = padded_dim(hp->head_dim), heads = hp->n_head, heads_kv = hp->n_head_kv;
    const size_t all[N_BUFS] = {n_batch * hp->n_embd, n_batch * hp->n_embd, n_batch * heads * hp->head_dim, n_batch * heads_kv * hp->head_dim,
                                n_batch * heads_kv * hp->head_dim, n_batch * heads * dim, n_batch * heads_kv * dim,
                                n_batch * heads * hp->head_dim, n_batch * hp->n_ff, n_batch * hp->n_ff, (size_t)LOGIT_ROWS * hp->n_embd,
                                (size_t)LOGIT_ROWS * hp->n_vocab};
    memcpy(floats, all, sizeof all);
}

static dev_buf **buf_at(engine_bufs *b, size_t i)
{
    dev_buf **const all[N_BUFS] = {&b->x, &b->h, &b->q, &b->k, &b->v, &b->q_rot, &b->k_rot, &b->o, &b->gate, &b->up, &b->logit_x, &b->logits};
    return all[i];
}

static spw_status create_bufs(spw_engine *e, spw_err *err)
{
    size_t floats[N_BUFS];
    buf_sizes(&e->model->hp, e->n_batch, floats);
    for (size_t i = 0; i < N_BUFS; i++) {
        spw_status s = e->dev->ops->buf_create(e->dev, floats[i] * sizeof(float), buf_at(&e->bufs, i), err);
        if (s) return s;
    }
    e->ids = mem_calloc(e->n_batch, sizeof *e->ids);
    e->cos_sin = mem_calloc(e->n_batch * 2, e->rope.n_pairs * sizeof *e->cos_sin);
    e->logit_rows = mem_calloc(LOGIT_ROWS, sizeof *e->logit_rows);
    if (!e->ids || !e->cos_sin || !e->logit_rows) return spw_fail(err, SPW_E_NOMEM, "engine: out of memory for %zu rows", e->n_batch);
    return SPW_OK;
}

/* ------------------------------------------------------------------------------------------------- open ---- */

static kv_type store_type(const spw_engine_params *p)
{
    return p->kv_type == SPW_KV_F32 ? KV_F32 : p->kv_type == SPW_KV_Q8 ? KV_Q8 : KV_F16;
}

static spw_status open_store(spw_engine *e, const spw_engine_params *p, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    e->n_head_kv = mem_calloc(hp->n_layer, sizeof *e->n_head_kv);
    if (!e->n_head_kv) return spw_fail(err, SPW_E_NOMEM, "engine: out of memory for %u layers", hp->n_layer);
    for (uint32_t i = 0; i < hp->n_layer; i++) e->n_head_kv[i] = hp->layer_kv[i].n_head_kv;
    kv_config config = {.type = store_type(p), .n_layer = hp->n_layer, .n_head_kv = e->n_head_kv, .dim = e->dim, .index_planes = (unsigned)p->kv_index,
                        .kern = e->kern, .numa = pool_numa(e->pool)};
    return kv_store_create(&e->store, &config, err);
}

/* All weights or none: what a result's bits are must not depend on which weight came before memory ran short. */
static void choose_repack(spw_engine *e, const spw_engine_params *p)
{
    if (p->no_repack) e->load_stats.repack = SPW_REPACK_REFUSED;
    else if (!e->kern->pack_x) e->load_stats.repack = SPW_REPACK_NO_KERNEL;
    else if (e->info.weight_bytes > system_memory_available() / 2) e->load_stats.repack = SPW_REPACK_NO_MEMORY;
}

static void add_load_stats(spw_engine *e)
{
    dev_repacked r = dev_host_repacked(e->dev);
    e->load_stats.repack_bytes = r.bytes;
    e->load_stats.repack_seconds = r.seconds;
}

/* Bytes of one position in all layers. */
static uint64_t bytes_per_pos(const model_hparams *hp, kv_type type, int kv_index)
{
    return (uint64_t)hp->n_layer * hp->n_head_kv * kv_pos_bytes(type, padded_dim(hp->head_dim), (unsigned)kv_index);
}

static spw_status open_parts(spw_engine *e, const char *path, const spw_engine_params *p, spw_err *err)
{
    spw_status s = kern_select(&e->kern, err);
    if (!s) s = gguf_open(&e->file, path, err);
    if (!s) s = model_bind(&e->model, e->file, p, err);
    if (!s) s = vocab_create(&e->vocab, e->file, err);
    if (s) return s;
    const model_hparams *hp = &e->model->hp;
    if ((uint32_t)spw_vocab_size(e->vocab) != hp->n_vocab) {
        return spw_fail(err, SPW_E_FORMAT, "%s: tensor token_embd.weight has %u rows, the tokenizer %d tokens", path, hp->n_vocab,
                        spw_vocab_size(e->vocab));
    }
    e->dim = padded_dim(hp->head_dim);
    e->group = hp->n_head / hp->n_head_kv;
    e->n_batch = (size_t)p->n_batch;
    model_fill_info(&e->info, hp, e->file);
    e->info.kv_bytes_per_pos = bytes_per_pos(hp, store_type(p), p->kv_index);
    s = rope_init(&e->rope, &hp->rope, e->model->rope_freqs.data, err);
    if (!s) s = pool_create(&e->pool, p->n_threads, err);
    choose_repack(e, p);
    if (!s) s = dev_host_create(&e->dev, e->kern, e->pool, e->load_stats.repack == SPW_REPACK_DONE, err);
    if (!s) s = load_weights(e, err);
    if (!s) add_load_stats(e);
    if (!s) s = create_bufs(e, err);
    if (!s) s = open_store(e, p, err);
    if (!s) s = exec_create(&e->exec, e->kern, e->pool, e->store, err);
    if (!s) {
        spw_machine machine;
        measure_machine(&machine, e->kern, e->pool);
        exec_set_tuning(e->exec, measure_tuning(&machine));
    }
    return s;
}

spw_status spw_engine_open(spw_engine **out, const char *path, const spw_engine_params *params, spw_err *err)
{
    spw_engine_params p = params ? *params : spw_engine_default_params();
    spw_status s = check_params(&p, err);
    if (s) return s;
    spw_engine *e = mem_zalloc(sizeof *e);
    if (!e) return spw_fail(err, SPW_E_NOMEM, "engine: out of memory");
    s = open_parts(e, path, &p, err);
    if (s) {
        spw_engine_close(e);
        return s;
    }
    *out = e;
    return SPW_OK;
}

void spw_engine_close(spw_engine *e)
{
    if (!e) return;
    exec_free(e->exec);
    kv_store_free(e->store);
    plan_free(&e->plan);
    observe_free(e);
    mem_free(e->n_head_kv);
    if (e->dev) {
        for (size_t i = 0; i < N_BUFS; i++) e->dev->ops->buf_free(e->dev, *buf_at(&e->bufs, i));
        free_weights(e);
        e->dev->ops->free(e->dev);
    }
    mem_free(e->ids);
    mem_free(e->cos_sin);
    mem_free(e->logit_rows);
    engine_free_step(e);
    mem_free(e->fill_stats);
    rope_free(&e->rope);
    pool_free(e->pool);
    spw_vocab_close(e->vocab);
    model_free(e->model);
    gguf_close(e->file);
    mem_free(e);
}

const spw_vocab *spw_engine_vocab(const spw_engine *e)
{
    return e->vocab;
}

const spw_model_info *spw_engine_info(const spw_engine *e)
{
    return &e->info;
}

spw_load_stats spw_engine_load_stats(const spw_engine *e)
{
    return e->load_stats;
}

int spw_engine_n_threads(const spw_engine *e)
{
    return pool_n_threads(e->pool);
}

int spw_engine_n_batch(const spw_engine *e)
{
    return (int)e->n_batch;
}

const char *spw_engine_isa(const spw_engine *e)
{
    return e->kern->isa;
}

spw_status spw_engine_check(spw_engine *e, spw_err *err)
{
    return kv_check(e->store, err);
}

/* ---------------------------------------------------------------------------------------------- memory ---- */

spw_status spw_file_memory(const spw_file *f, uint64_t n_pos, const spw_engine_params *params, spw_memory *out, spw_err *err)
{
    spw_engine_params p = params ? *params : spw_engine_default_params();
    spw_status s = check_params(&p, err);
    if (s) return s;
    model_hparams hp = {0};
    s = model_read_hparams(&hp, gguf_of_file(f), err);
    if (s) return s;
    spw_model_info info = {0};
    model_fill_info(&info, &hp, gguf_of_file(f));
    size_t floats[N_BUFS], sum = 2 * (size_t)hp.n_vocab + (size_t)p.n_batch * hp.head_dim;
    buf_sizes(&hp, (size_t)p.n_batch, floats);
    for (size_t i = 0; i < N_BUFS; i++) sum += floats[i];
    mem_free(hp.layer_kv);
    uint64_t pages = n_pos / KV_PAGE_ROWS + (n_pos % KV_PAGE_ROWS != 0), per_pos = bytes_per_pos(&hp, store_type(&p), p.kv_index), kv;
    if (__builtin_mul_overflow(pages, per_pos * KV_PAGE_ROWS, &kv)) kv = UINT64_MAX / 2;
    if (p.kv_type == SPW_KV_Q8) { /* rows that are not sealed: the tail, and the spill of a pass */
        sum += (2 * KV_PAGE_ROWS + (size_t)p.n_batch) * bytes_per_pos(&hp, KV_F16, 0) / sizeof(float);
    }
    *out = (spw_memory){.weights = info.weight_bytes, .kv = kv, .kv_bytes_per_pos = per_pos, .scratch = sum * sizeof(float),
                        .available = system_memory_available()};
    return SPW_OK;
}
