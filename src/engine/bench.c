/* bench.c - the public measurements: which kernels are measured with what, and the products, which are measured through the device that the engine uses.
 *
 * Weights are random bytes with sane scales: the time of a product does not depend on their values. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dev_host.h"
#include "measure.h"
#include "mem.h"
#include "plan.h"
#include "spillway_bench.h"
#include "system.h"

enum {
    HUGE_BYTES = 2 << 20,
    PROBE_BYTES = 256 << 20,
    VECTOR_BYTES = 64 << 20,  /* of a weight that is multiplied by one row: many times any L2, and several times the L3 of most */
    COLS = 2048,
    MATRIX_ROWS = 2048,       /* outputs of a weight that is multiplied by many rows */
    PROMPT_ROWS = 512,
};

#define RECORD_SECONDS 1.0 /* after which no more than the wanted number of samples is taken */

static const char *const no_memory = "benchmark: out of memory";

spw_bench_params spw_bench_default_params(void)
{
    return (spw_bench_params){.n_samples = 7, .bytes = (uint64_t)3 << 29};
}

spw_status spw_bench_machine(spw_machine *out, int n_threads, spw_err *err)
{
    const kern_table *kern;
    spw_pool *pool;
    spw_status s = kern_select(&kern, err);
    if (!s) s = pool_create(&pool, n_threads ? n_threads : system_n_cores(), err);
    if (s) return s;
    measure_machine(out, kern, pool);
    pool_free(pool);
    return SPW_OK;
}

/* ----------------------------------------------------------------------------------------------- products ---- */

typedef struct product {
    measure_bench *b;
    dev *d;
    dev_weight *w;
    dev_buf *x, *y;
    uint8_t *data;
    size_t n_rows;
    uint64_t bytes; /* of the weight */
} product;

/* Offsets of the halves in a block that are scales; the other bytes may be anything. */
static void set_scales(uint32_t type, uint8_t *block)
{
    const kern_f16 scale = kern_f32_to_f16(0.01f);
    memcpy(block + (type == QUANT_Q6_K ? 208 : 0), &scale, sizeof scale);
    if (type == QUANT_Q4_1 || type == QUANT_Q4_K) memcpy(block + 2, &scale, sizeof scale);
}

static void fill_weight(uint32_t type, uint8_t *data, size_t bytes)
{
    uint64_t seed = 0x9e3779b97f4a7c15u;
    size_t block = quant_get(type)->block_bytes;
    for (size_t i = 0; i < bytes; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        data[i] = (uint8_t)(seed >> 56);
    }
    for (size_t at = 0; at + block <= bytes; at += block) {
        if (type == QUANT_F16) data[at + 1] = (uint8_t)((data[at + 1] & 0x8fu) | 0x20u); /* no infinities */
        else set_scales(type, data + at);
    }
}

static void product_free(product *p)
{
    if (p->w) p->d->ops->weight_free(p->d, p->w);
    p->d->ops->buf_free(p->d, p->x);
    p->d->ops->buf_free(p->d, p->y);
    p->d->ops->free(p->d);
    mem_free(p->data);
}

static spw_status product_open(product *p, measure_bench *b, uint32_t type, uint64_t rows, size_t n_rows, spw_err *err)
{
    uint64_t row_bytes;
    *p = (product){.b = b, .n_rows = n_rows};
    if (!quant_bytes(type, COLS, &row_bytes)) return spw_fail(err, SPW_E_ARG, "benchmark: no weight of type %u has %d columns", type, COLS);
    p->bytes = rows * row_bytes;
    spw_status s = dev_host_create(&p->d, b->kern, b->pool, b->kern->pack_x != NULL, err);
    if (s) return s;
    p->data = mem_alloc(p->bytes);
    s = p->data ? SPW_OK : spw_fail(err, SPW_E_NOMEM, "%s", no_memory);
    if (!s) fill_weight(type, p->data, p->bytes);
    if (!s) s = p->d->ops->weight_create(p->d, &(dev_weight_desc){.name = "synthetic", .type = type, .rows = rows, .cols = COLS, .data = p->data}, &p->w, err);
    if (!s) s = p->d->ops->buf_create(p->d, n_rows * COLS * sizeof(float), &p->x, err);
    if (!s) s = p->d->ops->buf_create(p->d, n_rows * rows * sizeof(float), &p->y, err);
    if (s) {
        product_free(p);
        return s;
    }
    float *x = p->d->ops->stage(p->d, p->x, n_rows * COLS * sizeof(float));
    for (size_t i = 0; i < n_rows * COLS; i++) x[i] = (float)(i % 251) * 0.008f - 1;
    p->d->ops->commit(p->d, p->x, n_rows * COLS * sizeof(float));
    return SPW_OK;
}

/* The running time of a pool's threads, each read by the thread itself: what the kernel says of other threads is some milliseconds old. */
typedef struct thread_clocks {
    int n_threads;
    atomic_int n_arrived;
    atomic_llong ns;
} thread_clocks;

/* The clocks are read at one time. */
static void clock_item(void *ctx, size_t item, int worker)
{
    thread_clocks *c = ctx;
    struct timespec t;
    (void)item, (void)worker;
    atomic_fetch_add(&c->n_arrived, 1);
    while (atomic_load(&c->n_arrived) < c->n_threads) {}
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    atomic_fetch_add(&c->ns, (long long)t.tv_sec * 1000000000 + t.tv_nsec);
}

static double running_time(spw_pool *pool)
{
    thread_clocks c = {.n_threads = pool_n_threads(pool)};
    pool_run_all(pool, clock_item, &c);
    return (double)atomic_load(&c.ns) * 1e-9;
}

/* One product; lowers *on_cpu to the share of the time that the threads were running. */
static double product_seconds(product *p, double *on_cpu)
{
    double cpu = running_time(p->b->pool), start = measure_clock();
    p->d->ops->matmul(p->d, p->x, p->n_rows, &(dev_product){.w = p->w, .out = p->y}, 1);
    double took = measure_clock() - start;
    double share = (running_time(p->b->pool) - cpu) / (took * pool_n_threads(p->b->pool));
    if (share < *on_cpu) *on_cpu = share;
    return took;
}

/* One row: bytes of the weight as in the file, against sequential reading just before and after. */
static spw_status bench_matvec(measure_bench *b, uint32_t type, spw_err *err)
{
    product p;
    uint64_t row_bytes;
    if (!quant_bytes(type, COLS, &row_bytes)) return SPW_OK;
    spw_status s = product_open(&p, b, type, VECTOR_BYTES / row_bytes, 1, err);
    if (s) return s;
    spw_bench_record r = {.kernel = "matvec", .type = quant_get(type)->name, .threads = pool_n_threads(b->pool)};
    measure_series series;
    product_seconds(&p, &(double){1});
    for (measure_series_begin(&series, b->n_samples, RECORD_SECONDS); measure_series_goes_on(&series);) {
        measure_sample v = {.on_cpu = 1};
        double before, after, on_cpu;
        bool clean = measure_bracket(b, &before, &on_cpu);
        v.rate = (double)p.bytes / product_seconds(&p, &v.on_cpu) * 1e-9;
        v.clean = measure_bracket(b, &after, &on_cpu) && clean && v.on_cpu >= MEASURE_ON_CPU;
        v.raw = v.roof = (before + after) / 2;
        measure_series_add(&series, v);
    }
    product_free(&p);
    measure_series_record(&series, &r);
    return b->report(b->ctx, &r) ? SPW_OK : measure_stopped(err);
}

/* Many rows: operations against the peak of the units that this type is multiplied in, by all threads at once just before and after: clocks change. */
static spw_status bench_matmul(measure_bench *b, uint32_t type, spw_err *err)
{
    product p;
    spw_status s = product_open(&p, b, type, MATRIX_ROWS, PROMPT_ROWS, err);
    if (s) return s;
    const kern_probe *probe = kern_probe_get(b->kern->isa);
    kern_peak_fn *loop = b->kern->pack_dot[type] && probe->int8 ? probe->int8 : probe->f32;
    spw_bench_record r = {.kernel = "matmul", .type = quant_get(type)->name, .threads = pool_n_threads(b->pool), .is_ops = true};
    measure_series series;
    product_seconds(&p, &(double){1});
    double before = measure_peak(b->pool, loop), after;
    for (measure_series_begin(&series, b->n_samples, RECORD_SECONDS); measure_series_goes_on(&series); before = after) {
        measure_sample v = {.on_cpu = 1};
        v.rate = 2.0 * PROMPT_ROWS * MATRIX_ROWS * COLS / product_seconds(&p, &v.on_cpu) * 1e-9;
        after = measure_peak(b->pool, loop);
        v.roof = (before + after) / 2;
        v.clean = v.on_cpu >= MEASURE_ON_CPU;
        measure_series_add(&series, v);
    }
    product_free(&p);
    measure_series_record(&series, &r);
    return b->report(b->ctx, &r) ? SPW_OK : measure_stopped(err);
}

/* ------------------------------------------------------------------------------------------------ kernels ---- */

static spw_status bench_attention(measure_bench *b, spw_err *err)
{
    static const uint32_t dims[] = {64, 128}, blocks[] = {0, 1, 16, 32, 64}, q8_blocks[] = {0, 1, 16};
    spw_status s = SPW_OK;
    for (size_t d = 0; d < 2 && !s; d++) {
        for (size_t i = 0; i < sizeof blocks / sizeof blocks[0] && !s; i++) s = measure_attend_decode(b, dims[d], blocks[i], false, err);
        for (size_t i = 0; i < sizeof q8_blocks / sizeof q8_blocks[0] && !s; i++) s = measure_attend_decode(b, dims[d], q8_blocks[i], true, err);
        if (!s) s = measure_attend_prefill(b, dims[d], 4, plan_block_rows(4, pool_n_threads(b->pool)), err);
        if (!s) s = measure_attend_peaked(b, dims[d], 4, err);
        if (!s) s = measure_digest_score(b, dims[d], err);
        if (!s) s = measure_index_scan(b, dims[d], err);
    }
    return s;
}

static spw_status bench_products(measure_bench *b, spw_err *err)
{
    static const uint32_t types[] = {QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q4_K, QUANT_Q5_0, QUANT_Q6_K, QUANT_F16};
    spw_status s = SPW_OK;
    for (size_t i = 0; i < sizeof types / sizeof types[0] && !s; i++) {
        s = bench_matvec(b, types[i], err);
        if (!s) s = bench_matmul(b, types[i], err);
    }
    return s;
}

static spw_status bench_with(measure_bench *b, int n_threads, spw_err *err)
{
    spw_status s = pool_create(&b->pool, n_threads, err);
    if (s) return s;
    b->best_reading = 0;
    measure_arena_tune(b->arena, b->pool);
    s = measure_fork_join(b) ? SPW_OK : measure_stopped(err);
    if (!s && n_threads == 1) s = measure_top_k(b, err);
    if (!s && n_threads == 1) s = measure_choose(b, err);
    if (!s) s = bench_products(b, err);
    if (!s) s = bench_attention(b, err);
    pool_free(b->pool);
    return s;
}

static spw_status check_params(spw_bench_params *p, spw_err *err)
{
    const uint64_t least = 64u << 20;
    if (p->n_threads == 0) p->n_threads = system_n_cores();
    if (p->n_threads < 1 || p->n_threads > 256) return spw_fail(err, SPW_E_ARG, "number of threads must be 1..256, not %d", p->n_threads);
    if (p->n_samples < 1) return spw_fail(err, SPW_E_ARG, "number of samples must be at least 1, not %d", p->n_samples);
    if (p->bytes < least || p->bytes > SIZE_MAX / 2)
        return spw_fail(err, SPW_E_ARG, "memory to measure with must be at least %llu bytes, not %llu", (unsigned long long)least, (unsigned long long)p->bytes);
    p->bytes = p->bytes / HUGE_BYTES * HUGE_BYTES;
    if (p->bytes + PROBE_BYTES > system_memory_available())
        return spw_fail(err, SPW_E_NOMEM, "benchmark: %llu bytes are wanted, and %llu available", (unsigned long long)(p->bytes + PROBE_BYTES),
                        (unsigned long long)system_memory_available());
    return SPW_OK;
}

spw_status spw_bench_kernels(const spw_bench_params *params, spw_bench_fn *report, void *ctx, spw_err *err)
{
    spw_bench_params p = params ? *params : spw_bench_default_params();
    const kern_table *kern;
    spw_machine machine;
    measure_arena arena = {0};
    spw_pool *one = NULL;
    spw_status s = check_params(&p, err);
    if (!s) s = kern_select(&kern, err);
    if (!s) s = spw_bench_machine(&machine, p.n_threads, err);
    if (!s) s = pool_create(&one, 1, err);
    if (s) return s;
    const kern_probe *probe = kern_probe_get(kern->isa);
    measure_bench b = {.kern = kern, .arena = &arena, .machine = &machine, .n_samples = p.n_samples, .report = report, .ctx = ctx};
    b.f32_peak = measure_peak(one, probe->f32);
    b.int8_peak = measure_peak(one, probe->int8);
    pool_free(one);
    s = measure_arena_create(&arena, p.bytes, PROBE_BYTES, err);
    if (!s) s = bench_with(&b, 1, err);
    if (!s && p.n_threads > 1) s = bench_with(&b, p.n_threads, err);
    measure_arena_free(&arena);
    return s;
}
