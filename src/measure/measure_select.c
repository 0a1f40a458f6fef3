/* measure_select.c - benchmarks of what choosing costs: scores of digests, read from memory, and the k largest of many scores.
 *
 * Digests are rows of 2 * head_dim halves, one per block: the least and the largest keys of a block take that much. */
#include "measure.h"
#include "mem.h"

enum {
    UNIT_BYTES = 512 << 10,   /* of digests in a work unit */
    SAMPLE_UNITS = 32,        /* units of a sample and thread: 16 MiB */
    CACHED_ROWS = 256,        /* of a pass over digests that stay in L2 */
    TOP_N = 8192, TOP_RUNS = 65,
};

#define RECORD_SECONDS 0.6

typedef struct score_worker {
    float *scores;
    uint64_t sum;
} score_worker;

typedef struct score_job {
    measure_bench *b;
    size_t n, g, unit_rows; /* halves of a digest; queries; digests of a unit */
    size_t use;             /* units used so far */
    float *q;
    score_worker *workers;
    void *memory;
} score_job;

static void job_free(score_job *j)
{
    mem_free(j->memory);
    mem_free(j->workers);
}

static spw_status job_create(score_job *j, measure_bench *b, uint32_t dim, uint32_t g, spw_err *err)
{
    size_t threads = (size_t)pool_n_threads(b->pool);
    *j = (score_job){.b = b, .n = 2 * (size_t)dim, .g = g, .unit_rows = UNIT_BYTES / (4 * (size_t)dim)};
    size_t q = g * j->n, each = g * j->unit_rows;
    j->workers = mem_calloc(threads, sizeof *j->workers);
    j->memory = mem_alloc((q + threads * each) * sizeof(float));
    if (!j->workers || !j->memory) {
        job_free(j);
        return spw_fail(err, SPW_E_NOMEM, "benchmark: out of memory for %zu scores", threads * each);
    }
    j->q = j->memory;
    for (size_t i = 0; i < q; i++) j->q[i] = (float)(i % 13) * 0.01f - 0.06f;
    for (size_t w = 0; w < threads; w++) j->workers[w].scores = j->q + q + w * each;
    return SPW_OK;
}

static const uint8_t *unit_at(const score_job *j, size_t unit)
{
    return j->b->arena->base + (j->use + unit) % (j->b->arena->bytes / UNIT_BYTES) * UNIT_BYTES;
}

static void score_rows(const score_job *j, const void *rows, size_t n_rows, int worker)
{
    j->b->kern->score_rows(&(kern_score_args){.rows = rows, .n_rows = n_rows, .n = j->n, .q = j->q, .q_stride = j->n, .n_q = j->g,
                                              .scores = j->workers[worker].scores, .stride = j->unit_rows});
}

static void score_unit(void *ctx, size_t unit, int worker)
{
    score_job *j = ctx;
    score_rows(j, unit_at(j, unit), j->unit_rows, worker);
}

static void cached_unit(void *ctx, size_t unit, int worker)
{
    score_job *j = ctx;
    const uint8_t *rows = j->b->arena->base + (size_t)worker * UNIT_BYTES;
    (void)unit;
    for (size_t done = 0; done < j->unit_rows; done += CACHED_ROWS) score_rows(j, rows, CACHED_ROWS, worker);
}

static void read_unit(void *ctx, size_t unit, int worker)
{
    score_job *j = ctx;
    kern_span span = {.rows = unit_at(j, unit), .n = (uint32_t)j->unit_rows};
    j->workers[worker].sum += measure_read(&span, 1, 2 * j->n, j->b->arena->reading);
}

/* A pass over fresh digests; GB/s.  Lowers *on_cpu to its own. */
static double pass(score_job *j, pool_fn *fn, double *on_cpu)
{
    size_t n = SAMPLE_UNITS * (size_t)pool_n_threads(j->b->pool);
    measure_time t = measure_run(j->b->pool, n, fn, j);
    j->use += n;
    if (t.on_cpu < *on_cpu) *on_cpu = t.on_cpu;
    return (double)n * UNIT_BYTES / t.seconds * 1e-9;
}

/* The scores of digests in L2, by running time; GB/s. */
static double cached_pass(score_job *j)
{
    size_t threads = (size_t)pool_n_threads(j->b->pool), n = 2 * threads;
    measure_time t = measure_run(j->b->pool, n, cached_unit, j);
    return (double)(n * UNIT_BYTES * threads) / t.cpu_seconds * 1e-9;
}

/* The best of some short runs, as for the peak it is compared with. */
static double cached_rate(score_job *j)
{
    double best = 0;
    for (int i = 0; i < 11; i++) {
        double rate = cached_pass(j);
        if (rate > best) best = rate;
    }
    return best;
}

/* Passes of mere reading and of scoring between two sequential probes. */
static void sample_scores(score_job *j, spw_bench_record *r)
{
    measure_bench *b = j->b;
    measure_series series;
    for (measure_series_begin(&series, b->n_samples, RECORD_SECONDS); measure_series_goes_on(&series);) {
        measure_sample p = {.on_cpu = 1};
        double on_cpu;
        bool before = measure_bracket(b, NULL, &on_cpu);
        p.raw = pass(j, read_unit, &p.on_cpu);
        p.rate = pass(j, score_unit, &p.on_cpu);
        cached_pass(j); /* brings the digests there */
        p.cached = cached_pass(j);
        p.clean = measure_bracket(b, NULL, &on_cpu) && before && p.on_cpu >= MEASURE_ON_CPU;
        p.roof = p.raw < p.cached ? p.raw : p.cached;
        measure_series_add(&series, p);
    }
    measure_series_record(&series, r);
}

spw_status measure_digest_score(measure_bench *b, uint32_t dim, spw_err *err)
{
    static const uint32_t groups[] = {1, 4, 8};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        score_job j;
        spw_status s = job_create(&j, b, dim, groups[i], err);
        if (s) return s;
        int threads = pool_n_threads(b->pool);
        spw_bench_record r = {.kernel = "digest_score", .type = "f16", .g = groups[i], .head_dim = dim, .threads = threads};
        r.l2_peak = cached_rate(&j) * groups[i] / (b->f32_peak * threads); /* 2 bytes and 2 operations per element and query */
        sample_scores(&j, &r);
        job_free(&j);
        if (!b->report(b->ctx, &r)) return measure_stopped(err);
    }
    return SPW_OK;
}

/* Softmax-like scores: a few large ones, the rest small and spread over many magnitudes. */
static void make_scores(float *scores, size_t n)
{
    uint64_t seed = 88172645463325252u;
    for (size_t i = 0; i < n; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        float u = (float)(seed >> 40) * 0x1p-24f;
        scores[i] = u * u * u * u / (1.0f + 50.0f * (float)(seed >> 20 & 255) / 255.0f);
    }
}

spw_status measure_top_k(measure_bench *b, spw_err *err)
{
    static const uint32_t sizes[] = {1024, 4096, TOP_N};
    float *scores = mem_alloc(TOP_N * sizeof *scores);
    uint32_t *ids = mem_alloc(2 * TOP_N * sizeof *ids);
    spw_status s = scores && ids ? SPW_OK : spw_fail(err, SPW_E_NOMEM, "benchmark: out of memory for %d scores", TOP_N);
    if (!s) make_scores(scores, TOP_N);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && !s; i++) {
        double us[TOP_RUNS];
        for (int run = -1; run < TOP_RUNS; run++) {
            double start = measure_clock();
            b->kern->top_k(scores, sizes[i], sizes[i] / 20, ids, ids + TOP_N);
            if (run >= 0) us[run] = (measure_clock() - start) * 1e6;
        }
        spw_bench_record r = {.kernel = "top_k", .type = "f32", .n = sizes[i], .threads = 1, .us = measure_median(us, TOP_RUNS), .n_clean = TOP_RUNS, .n_samples = TOP_RUNS};
        if (!b->report(b->ctx, &r)) s = measure_stopped(err);
    }
    mem_free(scores);
    mem_free(ids);
    return s;
}
