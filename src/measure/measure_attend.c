/* measure_attend.c - benchmarks of the attention kernels against their roofs.
 *
 * The rows are read in the way that a step reads them: spans of at most KERN_SPAN positions a call, the coming call's spans named, partials merged. No address
 * is read again before much more than the caches hold has been read in between. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "measure.h"
#include "mem.h"

enum {
    UNIT_ROWS = 2048,          /* positions of a work unit: four calls */
    UNIT_CALLS = UNIT_ROWS / KERN_SPAN,
    SAMPLE_BYTES = 16 << 20,   /* rows that a thread reads in a sample */
    L2_SAMPLES = 11, L2_UNITS = 4,
    Q8_RUN = 128, /* rows of bytes that share scales: those of the arena's have theirs, one set after the other, as the store's pages do */
};

#define RECORD_SECONDS 0.6 /* after which no more than the wanted number of samples is taken */

/* What one worker computes with. */
typedef struct attend_worker {
    kern_span spans[2 * UNIT_ROWS]; /* of a unit, then of the next one */
    float *q, *o, *lse, *total, *total_lse;
    void *scratch;
    uint64_t sum;
} attend_worker;

typedef struct attend_job {
    measure_bench *b;
    uint32_t dim, g, block; /* block 0: dense */
    size_t n_q, row_bytes;
    bool q8;
    bool many; /* by many_tile */
    measure_arena scales; /* of rows of bytes, floats: for each Q8_RUN of the arena k_scale [dim], v_scale [Q8_RUN] */
    uint32_t span_rows, call_spans; /* positions per span, spans per call */
    uint32_t starts[UNIT_ROWS];     /* first position of each span of a unit */
    size_t extent;                  /* bytes from a unit's first row to the next unit's */
    size_t use;                     /* units used so far: where the next sample goes on */
    kern_tuning tuning;
    measure_reading reading;
    attend_worker *workers;
    void *memory;
} attend_job;

/* Ascending starts: blocks of 16 and more at 5 % of all, single positions at 2 %. */
static void choose_starts(attend_job *j)
{
    uint64_t seed = 88172645463325252u;
    uint32_t n = UNIT_ROWS / j->span_rows, mean = j->block == 0 ? 1 : j->block == 1 ? 50 : 20, at = 0;
    for (uint32_t i = 0; i < n; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        if (i && j->block) at += (uint32_t)(1 + (seed >> 11) % (2 * mean - 1));
        else if (i) at++;
        j->starts[i] = at * j->span_rows;
    }
    j->extent = ((size_t)at + mean) * j->span_rows * j->row_bytes;
}

static void job_free(attend_job *j)
{
    mem_free(j->memory);
    measure_arena_free(&j->scales);
    mem_free(j->workers);
    mem_free(j);
}

/* For all rows of the arena, in huge pages as the store's are. */
static spw_status make_scales(attend_job *j, spw_err *err)
{
    const size_t n = (j->b->arena->bytes / j->row_bytes / Q8_RUN + 1) * (j->dim + Q8_RUN), huge = 2 << 20;
    spw_status s = measure_arena_create(&j->scales, (n * sizeof(float) + huge - 1) / huge * huge, 0, err);
    for (size_t i = 0; i < n && !s; i++) ((float *)(void *)j->scales.base)[i] = 1.0f / 127;
    return s;
}

static spw_status job_create(attend_job **out, measure_bench *b, uint32_t dim, uint32_t g, uint32_t block, bool q8, size_t n_q, spw_err *err)
{
    size_t n = (size_t)pool_n_threads(b->pool), row = n_q * dim * sizeof(float), lse = (n_q * sizeof(float) + 63) & ~(size_t)63;
    size_t attend = kern_attend_scratch(n_q, dim), many = (kern_many_scratch(dim) + 63) & ~(size_t)63, each = 3 * row + 2 * lse + (attend > many ? attend : many);
    attend_job *j = mem_zalloc(sizeof *j);
    if (j) j->workers = mem_calloc(n, sizeof *j->workers), j->memory = mem_alloc(n * each);
    if (!j || !j->workers || !j->memory) {
        if (j) job_free(j);
        return spw_fail(err, SPW_E_NOMEM, "benchmark: out of memory for %zu queries", n_q);
    }
    j->b = b, j->dim = dim, j->g = g, j->block = block, j->n_q = n_q;
    j->q8 = q8;
    j->row_bytes = (q8 ? 2 : 4) * (size_t)dim;
    spw_status s = q8 ? make_scales(j, err) : SPW_OK;
    if (s) {
        job_free(j);
        return s;
    }
    j->span_rows = block ? block : q8 ? (uint32_t)Q8_RUN : (uint32_t)KERN_SPAN;
    j->call_spans = KERN_SPAN / j->span_rows;
    j->tuning = measure_tuning(b->machine);
    j->reading = b->arena->reading;
    choose_starts(j);
    for (size_t w = 0; w < n; w++) {
        attend_worker *a = &j->workers[w];
        uint8_t *p = (uint8_t *)j->memory + w * each;
        a->q = (float *)(void *)p, p += row;
        a->o = (float *)(void *)p, p += row;
        a->total = (float *)(void *)p, p += row;
        a->lse = (float *)(void *)p, p += lse;
        a->total_lse = (float *)(void *)p, p += lse;
        a->scratch = p;
        for (size_t i = 0; i < n_q * dim; i++) a->q[i] = (float)(i % 13) * 0.01f - 0.06f;
        memset(a->total, 0, row);
        for (size_t i = 0; i < n_q; i++) a->total_lse[i] = -INFINITY;
    }
    *out = j;
    return SPW_OK;
}

/* The span that starts with row `at` of a unit. */
static kern_span unit_span(const attend_job *j, const uint8_t *base, uint32_t at)
{
    kern_span span = {.rows = base + at * j->row_bytes, .n = j->span_rows};
    if (!j->q8) return span;
    const size_t row = (size_t)((const uint8_t *)span.rows - j->b->arena->base) / j->row_bytes;
    span.k_scale = (const float *)(const void *)j->scales.base + row / Q8_RUN * (j->dim + Q8_RUN);
    span.v_scale = span.k_scale + j->dim + row % Q8_RUN;
    return span;
}

/* The spans of a unit; each time round the arena the same pattern lies some rows further on. */
static void place_unit(const attend_job *j, size_t unit, kern_span *spans)
{
    const measure_arena *a = j->b->arena;
    size_t shift_rows = 7 * (size_t)j->span_rows, n_shifts = 16, room = a->bytes - (n_shifts - 1) * shift_rows * j->row_bytes;
    size_t n_slots = room > j->extent ? room / j->extent : 1, use = j->use + unit;
    const uint8_t *base = a->base + use % n_slots * j->extent + use / n_slots % n_shifts * shift_rows * j->row_bytes;
    uint32_t n = UNIT_ROWS / j->span_rows;
    for (uint32_t i = 0; i < n; i++) spans[i] = unit_span(j, base, j->starts[i]);
}

static void read_unit(void *ctx, size_t unit, int worker)
{
    attend_job *j = ctx;
    attend_worker *w = &j->workers[worker];
    place_unit(j, unit, w->spans);
    w->sum += measure_read(w->spans, UNIT_ROWS / j->span_rows, j->row_bytes, j->reading);
}

static void attend_call(const attend_job *j, attend_worker *w, const kern_span *spans, const kern_span *ahead, size_t n_ahead)
{
    const kern_table *kern = j->b->kern;
    kern_attend_fn *attend = j->q8 ? kern->attend_q8 : kern->attend;
    attend(&(kern_attend_args){.q = w->q, .q_stride = j->dim, .n_q = j->n_q, .dim = j->dim, .spans = spans, .n_spans = j->call_spans, .ahead = ahead,
                                     .n_ahead = n_ahead, .tuning = &j->tuning, .o = w->o, .o_stride = j->dim, .lse = w->lse, .scratch = w->scratch});
    for (size_t i = 0; i < j->n_q; i++) kern->merge(w->total + i * j->dim, &w->total_lse[i], w->o + i * j->dim, w->lse[i], j->dim);
}

static void attend_unit(void *ctx, size_t unit, int worker)
{
    attend_job *j = ctx;
    attend_worker *w = &j->workers[worker];
    place_unit(j, unit, w->spans);
    place_unit(j, unit + (size_t)pool_n_threads(j->b->pool), w->spans + UNIT_CALLS * j->call_spans); /* as a step names the item after the coming one */
    for (size_t c = 0; c < UNIT_CALLS; c++) {
        const kern_span *spans = w->spans + c * j->call_spans;
        attend_call(j, w, spans, spans + j->call_spans, j->call_spans);
    }
}

/* The same calls over rows that stay in the core's L2: adjacent ones, in spans of the same length. */
static void cached_unit(void *ctx, size_t unit, int worker)
{
    attend_job *j = ctx;
    attend_worker *w = &j->workers[worker];
    const uint8_t *base = j->b->arena->base + (size_t)worker * (size_t)KERN_SPAN * j->row_bytes;
    (void)unit;
    if (j->many) {
        kern_many a = {.q = w->q, .n_q = j->n_q, .dim = j->dim, .o = w->total, .m = w->lse, .l = w->total_lse, .scratch = w->scratch};
        for (size_t i = 0; i < j->n_q; i++) a.m[i] = -INFINITY, a.l[i] = 0;
        for (size_t at = 0; at < UNIT_ROWS; at += KERN_MANY) j->b->kern->many_tile(&a, base + at % KERN_SPAN * j->row_bytes, KERN_MANY);
        return;
    }
    for (uint32_t i = 0; i < j->call_spans; i++) w->spans[i] = unit_span(j, base, i * j->span_rows);
    for (size_t c = 0; c < UNIT_CALLS; c++) attend_call(j, w, w->spans, w->spans, j->call_spans);
}

/* ----------------------------------------------------------------------------------------------- samples ---- */

bool measure_bracket(measure_bench *b, double *out, double *on_cpu)
{
    double rate = measure_sequential(b->arena, b->pool, on_cpu);
    if (out) *out = rate;
    b->best_reading = b->best_reading * 0.998 > rate ? b->best_reading * 0.998 : rate;
    return *on_cpu >= MEASURE_ON_CPU && rate >= 0.85 * b->best_reading;
}

/* A pass over fresh rows; GB/s.  Lowers *on_cpu to its own. */
static double pass(attend_job *j, pool_fn *unit, size_t n_units, double *on_cpu)
{
    measure_time t = measure_run(j->b->pool, n_units, unit, j);
    j->use += n_units;
    if (t.on_cpu < *on_cpu) *on_cpu = t.on_cpu;
    return (double)n_units * UNIT_ROWS * (double)j->row_bytes / t.seconds * 1e-9;
}

static size_t sample_units(const attend_job *j)
{
    return SAMPLE_BYTES / (UNIT_ROWS * j->row_bytes) * (size_t)pool_n_threads(j->b->pool);
}

/* The best way of merely reading this pattern. */
static void tune_reading(attend_job *j)
{
    static const measure_reading ways[] = {{KERN_HINT_NONE, 0, false}, {KERN_HINT_T0, 8, false},  {KERN_HINT_T0, 32, false}, {KERN_HINT_T1, 16, false},
                                           {KERN_HINT_T1, 64, false},  {KERN_HINT_T1, 32, true}, {KERN_HINT_T1, 64, true}, {KERN_HINT_T0, 16, true}};
    double best = 0;
    measure_reading chosen = j->reading;
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            double on_cpu = 1;
            j->reading = ways[i];
            double rate = pass(j, read_unit, sample_units(j), &on_cpu);
            if (rate > best) best = rate, chosen = ways[i];
        }
    }
    j->reading = chosen;
}

/* The kernel with its data in L2, all threads at once, by their running time; GB/s. */
static double cached_pass(attend_job *j)
{
    size_t threads = (size_t)pool_n_threads(j->b->pool), n_units = L2_UNITS * threads;
    measure_time t = measure_run(j->b->pool, n_units, cached_unit, j);
    return (double)(n_units * UNIT_ROWS * j->row_bytes * threads) / t.cpu_seconds * 1e-9;
}

/* The best of some short runs, as for the peaks it is compared with. */
static double cached_rate(attend_job *j)
{
    double best = 0;
    for (int i = 0; i < L2_SAMPLES; i++) best = fmax(best, cached_pass(j));
    return best;
}

/* Passes of mere reading and of attention, in turns the one first and the other, between two sequential probes. */
static void sample_decode(attend_job *j, spw_bench_record *r)
{
    measure_bench *b = j->b;
    measure_series series;
    double on_cpu_before, on_cpu_after;
    bool before = measure_bracket(b, NULL, &on_cpu_before);
    for (measure_series_begin(&series, b->n_samples, RECORD_SECONDS); measure_series_goes_on(&series);) {
        bool raw_first = series.n % 2 == 0;
        measure_sample p = {.on_cpu = on_cpu_before};
        if (raw_first) p.raw = pass(j, read_unit, sample_units(j), &p.on_cpu);
        p.rate = pass(j, attend_unit, sample_units(j), &p.on_cpu);
        if (!raw_first) p.raw = pass(j, read_unit, sample_units(j), &p.on_cpu);
        cached_pass(j); /* brings the rows there */
        p.cached = cached_pass(j);
        bool after = measure_bracket(b, NULL, &on_cpu_after);
        if (on_cpu_after < p.on_cpu) p.on_cpu = on_cpu_after;
        p.roof = fmin(p.raw, p.cached);
        p.clean = before && after && p.on_cpu >= MEASURE_ON_CPU;
        measure_series_add(&series, p);
        before = after, on_cpu_before = on_cpu_after;
    }
    measure_series_record(&series, r);
}

spw_status measure_stopped(spw_err *err)
{
    return spw_fail(err, SPW_E_ARG, "benchmark: stopped by its caller");
}

spw_status measure_attend_decode(measure_bench *b, uint32_t dim, uint32_t block, bool q8, spw_err *err)
{
    static const uint32_t groups[] = {1, 2, 3, 4, 6, 7, 8};
    int threads = pool_n_threads(b->pool);
    measure_reading reading = b->arena->reading;
    size_t use = 0;
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        if (q8 && groups[i] != 1 && groups[i] % 4) continue; /* 1, 4 and 8 say enough */
        attend_job *j;
        spw_status s = job_create(&j, b, dim, groups[i], block, q8, groups[i], err);
        if (s) return s;
        j->use = use;
        j->reading = reading;
        if (i == 0) tune_reading(j);
        spw_bench_record r = {.kernel = "attn_decode", .type = q8 ? "q8" : "f16", .g = groups[i], .head_dim = dim, .block = block, .threads = threads};
        double best = cached_rate(j);
        /* 4 bytes and 4 operations per dimension and query; of bytes 2, and 8, as queries and weights have two terms */
        if (!q8) r.l2_peak = best * groups[i] / (b->f32_peak * threads);
        else if (b->int8_peak > 0) r.l2_peak = 4 * best * groups[i] / (b->int8_peak * threads);
        sample_decode(j, &r);
        use = j->use, reading = j->reading;
        job_free(j);
        if (!b->report(b->ctx, &r)) return measure_stopped(err);
    }
    return SPW_OK;
}

spw_status measure_attend_prefill(measure_bench *b, uint32_t dim, uint32_t g, size_t n_rows, spw_err *err)
{
    attend_job *j;
    spw_status s = job_create(&j, b, dim, g, 0, false, n_rows * g, err);
    if (s) return s;
    int threads = pool_n_threads(b->pool);
    spw_bench_record r = {.kernel = "attn_prefill", .type = "f16", .g = g, .head_dim = dim, .threads = threads, .is_ops = true, .n_clean = L2_SAMPLES, .n_samples = L2_SAMPLES};
    j->many = b->kern->many_tile != NULL; /* as prompts do it */
    r.l2_gbps = cached_rate(j);
    r.rate = r.l2_gbps * (double)j->n_q;
    r.roof = b->f32_peak * threads;
    r.share = r.l2_peak = r.rate / r.roof;
    job_free(j);
    return b->report(b->ctx, &r) ? SPW_OK : measure_stopped(err);
}

spw_status measure_attend_peaked(measure_bench *b, uint32_t dim, uint32_t g, spw_err *err)
{
    attend_job *j;
    spw_status s = job_create(&j, b, dim, g, 0, false, g, err);
    if (s) return s;
    int threads = pool_n_threads(b->pool);
    spw_bench_record r = {.kernel = "attn_peaked", .type = "f16", .g = g, .head_dim = dim, .threads = threads, .n_clean = L2_SAMPLES, .n_samples = L2_SAMPLES};
    r.roof = cached_rate(j);
    for (int w = 0; w < threads; w++)
        for (size_t i = 0; i < j->n_q * dim; i++) j->workers[w].q[i] *= 200; /* scores some hundreds apart: most exponentials are tiny or zero */
    r.rate = r.l2_gbps = cached_rate(j);
    r.l2_peak = r.l2_gbps * g / (b->f32_peak * threads);
    r.share = r.rate / r.roof;
    job_free(j);
    return b->report(b->ctx, &r) ? SPW_OK : measure_stopped(err);
}

/* -------------------------------------------------------------------------------------------- fork-join ---- */

static void no_work(void *ctx, size_t item, int worker)
{
    (void)ctx, (void)item, (void)worker;
}

bool measure_fork_join(measure_bench *b)
{
    enum { JOBS = 2001 };
    double us[JOBS];
    int threads = pool_n_threads(b->pool);
    for (int i = 0; i < JOBS; i++) {
        double start = measure_clock();
        pool_run(b->pool, (size_t)threads, no_work, NULL);
        us[i] = (measure_clock() - start) * 1e6;
    }
    spw_bench_record r = {.kernel = "fork_join", .type = "", .threads = threads, .us = measure_median(us, JOBS), .n_clean = JOBS, .n_samples = JOBS};
    return b->report(b->ctx, &r);
}
