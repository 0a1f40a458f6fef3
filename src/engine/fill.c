/* fill.c - spw_session_fill: positions of made-up K and V, so that a benchmark at great depth need not read a text of that length first.
 *
 * A row is what a row of this model looks like: every dimension has the mean and the spread that it has over a short real prompt, per layer and KV head, and noise
 * that is a function of the seed, the layer, the head and the position alone.  So no two rows are the same, and neither the number of threads nor the
 * cutting into calls changes a bit. */
#include <math.h>
#include <string.h>

#include "engine_private.h"
#include "mem.h"

enum {
    SAMPLE_TOKENS = 64, /* length of the real prompt */
    SAMPLE_FROM = 4,    /* the first rows of a text are outliers in most models */
    PARTS = 4, /* of the statistics of one KV head, dim floats each: mean and spread of K, mean and spread of V */
};
#define HALF_MAX 65504.0

/* Rows of one page, being made in all layers and heads. */
typedef struct fill_job {
    const spw_session *session;
    uint64_t seed;
    uint64_t first, n; /* positions */
    float *scratch;    /* for each worker a row, and what kv_complete needs */
    size_t worker_floats;
} fill_job;

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* ------------------------------------------------------------------------------------------- statistics ---- */

/* Mean and spread over the sample of one element of a row; rows are row_len floats apart. */
static void measure_element(const float *sample, size_t row_len, float *mean, float *spread)
{
    double sum = 0, squares = 0, n = SAMPLE_TOKENS - SAMPLE_FROM;
    for (size_t i = SAMPLE_FROM; i < SAMPLE_TOKENS; i++) {
        double x = (double)sample[i * row_len];
        sum += x;
        squares += x * x;
    }
    double m = sum / n, variance = squares / n - m * m, room = (HALF_MAX - fabs(m)) / 4; /* noise stays below 4 spreads */
    *mean = (float)m;
    *spread = (float)fmin(variance > 0 ? sqrt(variance) : 0, room);
}

static size_t count_heads(const model_hparams *hp)
{
    size_t n = 0;
    for (uint32_t l = 0; l < hp->n_layer; l++) n += hp->layer_kv[l].n_head_kv;
    return n;
}

/* Statistics of all layers and heads, [arena][PARTS][dim], kept by the engine: a function of the model alone. */
static spw_status measure(spw_engine *e, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    spw_session_params params = spw_session_default_params();
    params.n_ctx = SAMPLE_TOKENS;
    spw_session *s = NULL;
    int32_t ids[SAMPLE_TOKENS];
    size_t n_heads = count_heads(hp), dim = e->dim;
    float *stats = mem_calloc(n_heads, PARTS * dim * sizeof *stats), *sample = mem_calloc(SAMPLE_TOKENS, 2 * dim * sizeof *sample);
    if (!stats || !sample) {
        mem_free(stats);
        mem_free(sample);
        return spw_fail(err, SPW_E_NOMEM, "fill: out of memory for the statistics of %zu KV heads", n_heads);
    }
    for (uint32_t i = 0; i < SAMPLE_TOKENS; i++) ids[i] = (int32_t)(mix(i + 1) % hp->n_vocab);
    spw_status status = spw_session_create(&s, e, &params, err);
    if (!status) status = spw_session_eval(s, ids, SAMPLE_TOKENS, err);
    float *at = stats;
    for (uint32_t l = 0; l < hp->n_layer && !status; l++) {
        for (uint32_t h = 0; h < hp->layer_kv[l].n_head_kv; h++, at += PARTS * dim) {
            for (size_t i = 0; i < SAMPLE_TOKENS; i++) kv_read_row(s->seq, l, h, i, sample + i * 2 * dim);
            for (size_t i = 0; i < dim; i++) {
                measure_element(sample + i, 2 * dim, &at[i], &at[dim + i]);
                measure_element(sample + dim + i, 2 * dim, &at[2 * dim + i], &at[3 * dim + i]);
            }
        }
    }
    spw_session_free(s);
    mem_free(sample);
    if (status) mem_free(stats);
    else e->fill_stats = stats;
    return status;
}

/* ------------------------------------------------------------------------------------------------- rows ---- */

/* out[i] = mean[i] + spread[i] * noise, the noise near enough to normal: the sum of four random bytes, centred, of variance 1. */
static void make_values(uint64_t key, const float *mean, const float *spread, size_t n, float *out)
{
    const uint64_t bytes = UINT64_C(0x00ff00ff00ff00ff);
    const float unit = 1.0f / 147.8006f;
    for (size_t i = 0; i < n; i += 4) {
        uint64_t a = mix(key + i), b = a * UINT64_C(0xd6e8feb86659fd93);
        b ^= b >> 32;
        uint64_t sums = (a & bytes) + (a >> 8 & bytes) + (b & bytes) + (b >> 8 & bytes); /* four sums, 0 to 1020 */
        for (size_t j = 0; j < 4; j++) out[i + j] = mean[i + j] + spread[i + j] * ((float)((int)(sums >> 16 * j & 0xffff) - 510) * unit);
    }
}

static void write_row(const fill_job *f, void *to, const float *values)
{
    const spw_engine *e = f->session->engine;
    if (kv_store_type(e->store) == KV_F32) memcpy(to, values, 2 * e->dim * sizeof *values);
    else e->kern->to_f16(values, 2 * e->dim, to);
}

/* Item: one KV head of one layer. */
static void make_rows(void *ctx, size_t item, int worker)
{
    const fill_job *f = ctx;
    const spw_engine *e = f->session->engine;
    const model_layer_kv *kv = e->model->hp.layer_kv;
    uint32_t dim = e->dim, layer = 0;
    size_t head = item;
    while (head >= kv[layer].n_head_kv) head -= kv[layer++].n_head_kv;
    const float *stats = e->fill_stats + item * PARTS * dim;
    float *values = f->scratch + f->worker_floats * (size_t)worker;
    uint64_t layer_key = mix(mix(f->seed + 1) + layer);
    for (uint64_t pos = f->first; pos < f->first + f->n; pos++) {
        uint64_t key = mix(layer_key + pos * kv[layer].n_head_kv + head);
        make_values(key, stats, stats + dim, dim, values);
        make_values(~key, stats + 2 * dim, stats + 3 * dim, dim, values + dim);
        write_row(f, kv_row(f->session->seq, layer, (uint32_t)head, pos), values);
    }
    kv_complete(f->session->seq, layer, (uint32_t)head, values + 2 * dim);
}

spw_status spw_session_fill(spw_session *s, uint64_t n, uint64_t seed, spw_err *err)
{
    spw_engine *e = s->engine;
    const model_hparams *hp = &e->model->hp;
    uint64_t first = kv_seq_len(s->seq), n_ctx = kv_seq_n_ctx(s->seq);
    if (n > n_ctx - first) {
        return spw_fail(err, SPW_E_FULL, "fill: the context holds %llu positions: %llu are there, %llu more do not fit", (unsigned long long)n_ctx,
                        (unsigned long long)first, (unsigned long long)n);
    }
    if (!n) return SPW_OK;
    spw_status status = e->fill_stats ? SPW_OK : measure(e, err);
    if (status) return status;
    fill_job f = {.session = s, .seed = seed, .first = first, .worker_floats = 2 * (size_t)e->dim + kv_complete_scratch(e->store)};
    f.scratch = mem_calloc((size_t)pool_n_threads(e->pool), f.worker_floats * sizeof *f.scratch);
    if (!f.scratch) return spw_fail(err, SPW_E_NOMEM, "fill: out of memory for the rows of %d workers", pool_n_threads(e->pool));
    status = kv_seq_reserve(s->seq, n, err);
    for (uint64_t end = first + n; f.first < end && !status; f.first += f.n) {
        f.n = KV_PAGE_ROWS - f.first % KV_PAGE_ROWS;
        if (f.n > end - f.first) f.n = end - f.first;
        SPW_CHECK(kv_seq_open(s->seq, f.n, err) == SPW_OK); /* inside one page it cannot fail, so what has been committed needs no undoing */
        pool_run(e->pool, count_heads(hp), make_rows, &f);
        kv_seq_commit(s->seq, f.n);
    }
    if (!status) {
        s->has_logits = false;
        s->policy_stale = true;
    }
    mem_free(f.scratch);
    return status;
}
