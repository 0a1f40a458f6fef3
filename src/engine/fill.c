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
    ITEM_ROWS = 128,
    PARTS = 4, /* of the statistics of one KV head, dim floats each: mean and spread of K, mean and spread of V */
};
#define HALF_MAX 65504.0

/* One layer's rows, being made. */
typedef struct fill_job {
    const spw_session *session;
    const float *stats; /* of the layer: [head][PARTS][dim] */
    uint32_t layer, n_head_kv;
    uint64_t key; /* of seed and layer */
    uint64_t first, n; /* positions */
    float *scratch;    /* one row for each worker */
} fill_job;

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* ------------------------------------------------------------------------------------------- statistics ---- */

static float row_value(const spw_engine *e, const void *row, size_t i)
{
    return kv_store_type(e->store) == KV_F32 ? ((const float *)row)[i] : kern_f16_to_f32(((const kern_f16 *)row)[i]);
}

/* Mean and spread over the sample of one dimension of one head; at counts from the start of the row. */
static void measure_dim(const spw_engine *e, const kv_seq *seq, uint32_t layer, uint32_t head, size_t at, float *mean, float *spread)
{
    double sum = 0, squares = 0, n = SAMPLE_TOKENS - SAMPLE_FROM;
    for (uint64_t pos = SAMPLE_FROM; pos < SAMPLE_TOKENS; pos++) {
        double x = (double)row_value(e, kv_row(seq, layer, head, pos), at);
        sum += x;
        squares += x * x;
    }
    double m = sum / n, variance = squares / n - m * m, room = (HALF_MAX - fabs(m)) / 4; /* noise stays below 4 spreads */
    *mean = (float)m;
    *spread = (float)fmin(variance > 0 ? sqrt(variance) : 0, room);
}

/* Statistics of all layers and heads, [arena][PARTS][dim], kept by the engine: a function of the model alone. */
static spw_status measure(spw_engine *e, spw_err *err)
{
    const model_hparams *hp = &e->model->hp;
    spw_session_params params = spw_session_default_params();
    params.n_ctx = SAMPLE_TOKENS;
    spw_session *s = NULL;
    int32_t ids[SAMPLE_TOKENS];
    size_t n_heads = 0;
    for (uint32_t l = 0; l < hp->n_layer; l++) n_heads += hp->layer_kv[l].n_head_kv;
    float *stats = mem_calloc(n_heads, PARTS * e->dim * sizeof *stats);
    if (!stats) return spw_fail(err, SPW_E_NOMEM, "fill: out of memory for the statistics of %zu KV heads", n_heads);
    for (uint32_t i = 0; i < SAMPLE_TOKENS; i++) ids[i] = (int32_t)(mix(i + 1) % hp->n_vocab);
    spw_status status = spw_session_create(&s, e, &params, err);
    if (!status) status = spw_session_eval(s, ids, SAMPLE_TOKENS, err);
    float *at = stats;
    for (uint32_t l = 0; l < hp->n_layer && !status; l++) {
        for (uint32_t h = 0; h < hp->layer_kv[l].n_head_kv; h++, at += PARTS * e->dim) {
            for (size_t i = 0; i < e->dim; i++) {
                measure_dim(e, s->seq, l, h, i, &at[i], &at[e->dim + i]);
                measure_dim(e, s->seq, l, h, e->dim + i, &at[2 * e->dim + i], &at[3 * e->dim + i]);
            }
        }
    }
    spw_session_free(s);
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

static void make_rows(void *ctx, size_t item, int worker)
{
    const fill_job *f = ctx;
    uint32_t dim = f->session->engine->dim;
    uint64_t from = item * ITEM_ROWS, to = from + ITEM_ROWS < f->n ? from + ITEM_ROWS : f->n;
    float *values = f->scratch + 2 * dim * (size_t)worker;
    for (uint32_t h = 0; h < f->n_head_kv; h++) {
        const float *stats = f->stats + (size_t)h * PARTS * dim;
        for (uint64_t pos = f->first + from; pos < f->first + to; pos++) {
            uint64_t key = mix(f->key + pos * f->n_head_kv + h);
            make_values(key, stats, stats + dim, dim, values);
            make_values(~key, stats + 2 * dim, stats + 3 * dim, dim, values + dim);
            write_row(f, kv_row(f->session->seq, f->layer, h, pos), values);
        }
    }
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
    fill_job f = {.session = s, .stats = e->fill_stats, .first = first, .n = n};
    f.scratch = mem_calloc((size_t)pool_n_threads(e->pool), 2 * e->dim * sizeof *f.scratch);
    if (!f.scratch) return spw_fail(err, SPW_E_NOMEM, "fill: out of memory for the rows of %d workers", pool_n_threads(e->pool));
    status = kv_seq_reserve(s->seq, n, err);
    for (; f.layer < hp->n_layer && !status; f.layer++) {
        f.n_head_kv = hp->layer_kv[f.layer].n_head_kv;
        f.key = mix(mix(seed + 1) + f.layer);
        pool_run(e->pool, (size_t)((n + ITEM_ROWS - 1) / ITEM_ROWS), make_rows, &f);
        f.stats += (size_t)f.n_head_kv * PARTS * e->dim;
    }
    if (!status) {
        kv_seq_commit(s->seq, n);
        s->has_logits = false;
        s->policy_stale = true;
    }
    mem_free(f.scratch);
    return status;
}
