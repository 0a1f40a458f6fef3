/* measure_index.c - benchmarks of the index of keys: scans of its codes, read from memory, and choosing positions from what they estimate.
 *
 * As in the KV store, what is scanned is one stream, and outer planes lie apart.  The memory holds copies of one set of pages, whose keys are random: so a threshold that a tenth of the positions reaches does it everywhere.  Bytes are those of kern_index.h. */
#include <math.h>
#include <string.h>

#include "measure.h"
#include "mem.h"

enum {
    PAGE_ROWS = 128,
    UNIT_PAGES = 64,          /* of a work unit: 8192 positions */
    UNIT_ROWS = UNIT_PAGES * PAGE_ROWS,
    SAMPLE_UNITS = 24,        /* units of a sample and thread; */
    RUN_UNITS = 36,           /* a thread that is faster takes up to so many */
    MEMORY_SHARE = 8,         /* codes take this part of what there is to measure with */
    HUGE_BYTES = 2 << 20,
    AHEAD_PAGES = 16,         /* behind a unit that may be asked for: in the store somebody scans them next */
    KEPT = 10, CHOSEN = 50,   /* one of so many positions */
    CHOOSE_RUNS = 65,
};

#define RECORD_SECONDS 0.6

typedef struct scan_worker {
    const void *pages[UNIT_PAGES + AHEAD_PAGES], *outer[UNIT_PAGES];
    uint32_t *ids;
    float *estimates;
    kern_span *rows; /* of kept positions */
    void *scratch;
    size_t n_kept;
    size_t n_taken; /* units of the running pass */
    uint64_t sum;
} scan_worker;

typedef struct scan_job {
    measure_bench *b;
    uint32_t dim, g;
    bool refine;
    size_t part_bytes, outer_bytes, n_units, use; /* of a page: what is scanned, its outer plane */
    const uint8_t *parts, *outer;
    void *query;
    float threshold;
    size_t *kept; /* bytes of a unit's outer planes at which the rows of kept positions stand */
    size_t n_kept;
    scan_worker *workers;
} scan_job;

enum { STRIDE = UNIT_ROWS + KERN_INDEX_GROUP };

static void job_free(scan_job *j)
{
    for (int w = 0; j->workers && w < pool_n_threads(j->b->pool); w++) {
        mem_free(j->workers[w].ids), mem_free(j->workers[w].estimates), mem_free(j->workers[w].rows), mem_free(j->workers[w].scratch);
    }
    mem_free(j->workers), mem_free(j->query), mem_free(j->kept);
}

static bool worker_create(const scan_job *j, scan_worker *w)
{
    w->ids = mem_alloc(STRIDE * sizeof *w->ids);
    w->estimates = mem_alloc((size_t)j->g * STRIDE * sizeof *w->estimates);
    w->rows = mem_alloc(UNIT_ROWS * sizeof *w->rows);
    w->scratch = mem_alloc(kern_index_scratch(j->g, j->dim));
    return w->ids && w->estimates && w->rows && w->scratch;
}

/* Sums of four uniform numbers: close enough to keys. */
static float random_value(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    uint32_t x = (uint32_t)(*seed >> 32);
    return (float)(x & 255) + (float)(x >> 8 & 255) + (float)(x >> 16 & 255) + (float)(x >> 24) - 510;
}

/* How many units fit. */
static size_t count_units(const measure_arena *codes, uint32_t dim)
{
    return codes->bytes / (UNIT_PAGES * kern_index_bytes(PAGE_ROWS, dim, KERN_INDEX_USUAL));
}

/* Memory full of codes: first what is scanned of all units, then their outer planes. */
static spw_status make_codes(measure_bench *b, measure_arena *codes, uint32_t dim, spw_err *err)
{
    uint64_t seed = 1;
    size_t n = (size_t)PAGE_ROWS * dim, both = kern_index_bytes(PAGE_ROWS, dim, KERN_INDEX_USUAL), one = kern_index_bytes(PAGE_ROWS, dim, 1);
    spw_status s = measure_arena_create(codes, b->arena->bytes / MEMORY_SHARE / HUGE_BYTES * HUGE_BYTES, 0, err);
    if (s) return s;
    float *k = mem_alloc(n * sizeof *k);
    uint8_t *code = mem_alloc(both);
    if (!k || !code) {
        mem_free(k), mem_free(code), measure_arena_free(codes);
        return spw_fail(err, SPW_E_NOMEM, "benchmark: out of memory for %d keys", PAGE_ROWS);
    }
    size_t n_pages = count_units(codes, dim) * UNIT_PAGES;
    uint8_t *parts = codes->base, *outer = parts + n_pages * one;
    for (size_t p = 0; p < UNIT_PAGES; p++) {
        for (size_t i = 0; i < n; i++) k[i] = random_value(&seed) * 0.01f;
        b->kern->index_code(k, dim, PAGE_ROWS, dim, KERN_INDEX_USUAL, code);
        memcpy(parts + p * one, code, one);
        memcpy(outer + p * (both - one), code + one, both - one);
    }
    for (size_t p = UNIT_PAGES; p < n_pages; p += UNIT_PAGES) {
        memcpy(parts + p * one, parts, UNIT_PAGES * one);
        memcpy(outer + p * (both - one), outer, UNIT_PAGES * (both - one));
    }
    mem_free(k), mem_free(code);
    return SPW_OK;
}

static bool make_query(const scan_job *j)
{
    uint64_t seed = 2;
    float *q = mem_alloc((size_t)j->g * j->dim * sizeof *q);
    for (size_t i = 0; q && i < (size_t)j->g * j->dim; i++) q[i] = random_value(&seed) * 0.001f;
    if (q) j->b->kern->index_query(q, j->dim, j->g, j->dim, j->query);
    mem_free(q);
    return q != NULL;
}

static size_t scan_unit_at(scan_job *j, size_t unit, int worker, float threshold)
{
    scan_worker *w = &j->workers[worker];
    const size_t left = (j->n_units - unit) * UNIT_PAGES, there = left < UNIT_PAGES + AHEAD_PAGES ? left : (size_t)UNIT_PAGES + AHEAD_PAGES;
    for (size_t p = 0; p < there; p++) w->pages[p] = j->parts + (unit * UNIT_PAGES + p) * j->part_bytes;
    for (size_t p = 0; p < UNIT_PAGES; p++) w->outer[p] = j->outer + (unit * UNIT_PAGES + p) * j->outer_bytes;
    return j->b->kern->index_scan(&(kern_index_scan){.query = j->query, .n_q = j->g, .dim = j->dim, .planes = KERN_INDEX_USUAL, .pages = w->pages, .outer = w->outer, .page_rows = PAGE_ROWS, .n_pages = there, .end = UNIT_ROWS,
                                                     .every = 1, .threshold = threshold, .refine = j->refine, .ids = w->ids, .estimates = w->estimates, .stride = STRIDE,
                                                     .scratch = w->scratch});
}

/* The threshold that one of KEPT positions reaches by signs, and which ones those are; the first worker's memory serves. */
static void find_threshold(scan_job *j)
{
    scan_worker *w = j->workers;
    const bool refine = j->refine;
    float *best = w->estimates;
    uint32_t *ids = w->ids, *scratch = (uint32_t *)(void *)w->rows;
    j->refine = false;
    scan_unit_at(j, 0, 0, -INFINITY);
    for (size_t i = 0; i < UNIT_ROWS; i++)
        for (size_t g = 1; g < j->g; g++) best[i] = fmaxf(best[i], w->estimates[g * STRIDE + i]);
    j->b->kern->top_k(best, UNIT_ROWS, UNIT_ROWS / KEPT, ids, scratch);
    j->threshold = INFINITY;
    for (size_t i = 0; i < UNIT_ROWS / KEPT; i++) j->threshold = fminf(j->threshold, best[ids[i]]);
    j->n_kept = scan_unit_at(j, 0, 0, j->threshold);
    for (size_t i = 0; i < j->n_kept; i++) j->kept[i] = w->ids[i] / PAGE_ROWS * j->outer_bytes + w->ids[i] % PAGE_ROWS * kern_index_refine_bytes(1, j->dim, KERN_INDEX_USUAL);
    j->refine = refine;
}

static spw_status job_create(scan_job *j, measure_bench *b, const measure_arena *codes, uint32_t dim, uint32_t g, bool refine, spw_err *err)
{
    size_t threads = (size_t)pool_n_threads(b->pool);
    *j = (scan_job){.b = b, .dim = dim, .g = g, .refine = refine, .parts = codes->base, .n_units = count_units(codes, dim), .part_bytes = kern_index_bytes(PAGE_ROWS, dim, 1)};
    j->outer_bytes = kern_index_bytes(PAGE_ROWS, dim, KERN_INDEX_USUAL) - j->part_bytes;
    j->outer = j->parts + j->n_units * UNIT_PAGES * j->part_bytes;
    j->query = mem_alloc(kern_index_query_bytes(g, dim));
    j->kept = mem_alloc(UNIT_ROWS * sizeof *j->kept);
    j->workers = mem_calloc(threads, sizeof *j->workers);
    bool done = j->query && j->kept && j->workers;
    for (size_t w = 0; done && w < threads; w++) done = worker_create(j, &j->workers[w]);
    if (!done || !make_query(j)) {
        job_free(j);
        return spw_fail(err, SPW_E_NOMEM, "benchmark: out of memory for scans of %u heads", g);
    }
    find_threshold(j);
    return SPW_OK;
}

/* ------------------------------------------------------------------------------------------------- scans ---- */

/* The unit that a worker takes next: each has a run of its own, as it has of the parts of a middle, so that what it asks for ahead of a unit's end is what it scans next. */
static size_t next_unit(scan_job *j, int worker)
{
    return (j->use + (size_t)worker * RUN_UNITS + j->workers[worker].n_taken++) % j->n_units;
}

static void scan_unit(void *ctx, size_t unit, int worker)
{
    scan_job *j = ctx;
    (void)unit;
    j->workers[worker].n_kept = scan_unit_at(j, next_unit(j, worker), worker, j->threshold);
}

static void cached_unit(void *ctx, size_t unit, int worker)
{
    scan_job *j = ctx;
    (void)unit;
    j->workers[worker].n_kept = scan_unit_at(j, (size_t)worker % j->n_units, worker, j->threshold);
}

/* The same lines, half of a page's part at a time, and those of kept positions. */
static void read_unit(void *ctx, size_t unit, int worker)
{
    scan_job *j = ctx;
    scan_worker *w = &j->workers[worker];
    const size_t page = next_unit(j, worker) * UNIT_PAGES;
    (void)unit;
    const kern_span part = {.rows = j->parts + page * j->part_bytes, .n = 2 * UNIT_PAGES};
    w->sum += measure_read(&part, 1, j->part_bytes / 2, j->b->arena->reading);
    if (!j->refine) return;
    for (size_t i = 0; i < j->n_kept; i++) w->rows[i] = (kern_span){.rows = j->outer + page * j->outer_bytes + j->kept[i], .n = 1};
    w->sum += measure_read(w->rows, j->n_kept, kern_index_refine_bytes(1, j->dim, KERN_INDEX_USUAL), j->b->arena->reading);
}

static double unit_bytes(const scan_job *j)
{
    return (double)(kern_index_scan_bytes(UNIT_ROWS, j->dim) + (j->refine ? kern_index_refine_bytes(j->n_kept, j->dim, KERN_INDEX_USUAL) : 0));
}

/* A pass over fresh codes; GB/s.  Lowers *on_cpu to its own. */
static double pass(scan_job *j, pool_fn *fn, double *on_cpu)
{
    const size_t n_threads = (size_t)pool_n_threads(j->b->pool), n = SAMPLE_UNITS * n_threads;
    for (size_t w = 0; w < n_threads; w++) j->workers[w].n_taken = 0;
    measure_time t = measure_run(j->b->pool, n, fn, j);
    j->use += RUN_UNITS * n_threads;
    if (t.on_cpu < *on_cpu) *on_cpu = t.on_cpu;
    return (double)n * unit_bytes(j) / t.seconds * 1e-9;
}

/* The scan with its codes in L2, by running time; GB/s. */
static double cached_pass(scan_job *j)
{
    size_t threads = (size_t)pool_n_threads(j->b->pool), n = 4 * threads;
    measure_time t = measure_run(j->b->pool, n, cached_unit, j);
    return (double)(n * threads) * unit_bytes(j) / t.cpu_seconds * 1e-9;
}

static void sample_scans(scan_job *j, spw_bench_record *r)
{
    measure_bench *b = j->b;
    measure_series series;
    for (measure_series_begin(&series, b->n_samples, RECORD_SECONDS); measure_series_goes_on(&series);) {
        measure_sample p = {.on_cpu = 1};
        double on_cpu;
        bool before = measure_bracket(b, NULL, &on_cpu);
        p.raw = pass(j, read_unit, &p.on_cpu);
        p.rate = pass(j, scan_unit, &p.on_cpu);
        cached_pass(j); /* brings the codes there */
        p.cached = cached_pass(j);
        p.clean = measure_bracket(b, NULL, &on_cpu) && before && p.on_cpu >= MEASURE_ON_CPU;
        p.roof = p.raw < p.cached ? p.raw : p.cached;
        measure_series_add(&series, p);
    }
    measure_series_record(&series, r);
}

static spw_status scan_record(measure_bench *b, const measure_arena *codes, uint32_t dim, uint32_t g, bool refine, spw_err *err)
{
    scan_job j;
    spw_status s = job_create(&j, b, codes, dim, g, refine, err);
    if (s) return s;
    spw_bench_record r = {.kernel = "index_scan", .type = refine ? "3 bit" : "1 bit", .g = g, .head_dim = dim, .threads = pool_n_threads(b->pool)};
    sample_scans(&j, &r);
    job_free(&j);
    return b->report(b->ctx, &r) ? SPW_OK : measure_stopped(err);
}

spw_status measure_index_scan(measure_bench *b, uint32_t dim, spw_err *err)
{
    static const uint32_t groups[] = {1, 4, 8};
    measure_arena codes;
    spw_status s = make_codes(b, &codes, dim, err);
    if (s) return s;
    for (size_t i = 0; i < 2 * sizeof groups / sizeof groups[0] && !s; i++) s = scan_record(b, &codes, dim, groups[i / 2], i % 2, err);
    measure_arena_free(&codes);
    return s;
}

/* ------------------------------------------------------------------------------------------------ choose ---- */

/* Votes on one of KEPT positions, and the one in CHOSEN of all that has the most; n counts all. */
spw_status measure_choose(measure_bench *b, spw_err *err)
{
    static const uint32_t groups[] = {1, 4, 8};
    enum { N = 16384, N_KEPT = N / KEPT, MAX_G = 8 };
    float *estimates = mem_alloc((MAX_G + 1) * N_KEPT * sizeof *estimates), lse[MAX_G];
    uint32_t *ids = mem_alloc(2 * N_KEPT * sizeof *ids);
    uint64_t seed = 3;
    spw_status s = estimates && ids ? SPW_OK : spw_fail(err, SPW_E_NOMEM, "benchmark: out of memory for %d estimates", MAX_G * N_KEPT);
    for (size_t i = 0; !s && i < MAX_G * N_KEPT; i++) estimates[i] = random_value(&seed) * 0.01f;
    if (!s) b->kern->index_lse(estimates, N_KEPT, N_KEPT, MAX_G, lse);
    for (size_t i = 0; i < sizeof groups / sizeof groups[0] && !s; i++) {
        float *votes = estimates + MAX_G * N_KEPT;
        double us[CHOOSE_RUNS];
        for (int run = -1; run < CHOOSE_RUNS; run++) {
            double start = measure_clock();
            b->kern->index_votes(estimates, N_KEPT, N_KEPT, groups[i], lse, false, votes);
            b->kern->top_k(votes, N_KEPT, N / CHOSEN, ids, ids + N_KEPT);
            if (run >= 0) us[run] = (measure_clock() - start) * 1e6;
        }
        spw_bench_record r = {.kernel = "choose", .type = "f32", .g = groups[i], .n = N, .threads = 1, .us = measure_median(us, CHOOSE_RUNS), .n_clean = CHOOSE_RUNS, .n_samples = CHOOSE_RUNS};
        if (!b->report(b->ctx, &r)) s = measure_stopped(err);
    }
    mem_free(estimates), mem_free(ids);
    return s;
}
