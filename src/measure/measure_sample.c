/* measure_sample.c - one timed run of work on all threads of a pool. */
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "measure.h"

typedef struct run_state {
    int n_threads;
    size_t n_units;
    pool_fn *fn;
    void *ctx;
    atomic_int n_arrived;
    atomic_size_t next;
    atomic_llong start, end; /* first start and last end, nanoseconds */
    atomic_llong cpu;        /* running time of all threads */
    atomic_llong off;        /* longest time that a thread was not running */
} run_state;

static long long clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void atomic_least(atomic_llong *word, long long v)
{
    long long old = atomic_load(word);
    while (v < old && !atomic_compare_exchange_weak(word, &old, v)) {}
}

static void atomic_most(atomic_llong *word, long long v)
{
    long long old = atomic_load(word);
    while (v > old && !atomic_compare_exchange_weak(word, &old, v)) {}
}

/* One item a thread: they wait for each other, so all start together. */
static void run_thread(void *ctx, size_t item, int worker)
{
    run_state *s = ctx;
    (void)item;
    atomic_fetch_add(&s->n_arrived, 1);
    while (atomic_load(&s->n_arrived) < s->n_threads) {}
    long long wall = clock_ns(CLOCK_MONOTONIC), cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (size_t unit; (unit = atomic_fetch_add(&s->next, 1)) < s->n_units;) s->fn(s->ctx, unit, worker);
    long long end = clock_ns(CLOCK_MONOTONIC);
    cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    atomic_least(&s->start, wall);
    atomic_most(&s->end, end);
    atomic_fetch_add(&s->cpu, cpu);
    atomic_most(&s->off, end - wall - cpu);
}

measure_time measure_run(spw_pool *pool, size_t n_units, pool_fn *fn, void *ctx)
{
    run_state s = {.n_threads = pool_n_threads(pool), .n_units = n_units, .fn = fn, .ctx = ctx};
    atomic_init(&s.start, INT64_MAX);
    pool_run_all(pool, run_thread, &s);
    long long took = atomic_load(&s.end) - atomic_load(&s.start);
    if (took < 1) took = 1;
    long long cpu = atomic_load(&s.cpu) > 0 ? atomic_load(&s.cpu) : 1;
    return (measure_time){.seconds = (double)took * 1e-9, .cpu_seconds = (double)cpu * 1e-9, .on_cpu = 1 - (double)atomic_load(&s.off) / (double)took};
}

double measure_clock(void)
{
    return (double)clock_ns(CLOCK_MONOTONIC) * 1e-9;
}

double measure_process_clock(void)
{
    return (double)clock_ns(CLOCK_PROCESS_CPUTIME_ID) * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double measure_median(double *v, size_t n)
{
    if (n == 0) return 0;
    qsort(v, n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

void measure_series_begin(measure_series *s, int wanted, double seconds)
{
    s->n = s->n_clean = 0;
    s->wanted = wanted < MEASURE_MAX_SAMPLES ? wanted : (int)MEASURE_MAX_SAMPLES;
    s->end = measure_clock() + seconds;
}

bool measure_series_goes_on(const measure_series *s)
{
    return s->n_clean < s->wanted && s->n < MEASURE_MAX_SAMPLES && (s->n < s->wanted || measure_clock() < s->end);
}

void measure_series_add(measure_series *s, measure_sample sample)
{
    s->v[s->n++] = sample;
    s->n_clean += sample.clean;
}

/* Clean ones first, then those that were off their cores least. */
static int by_trust(const void *a, const void *b)
{
    const measure_sample *x = a, *y = b;
    if (x->clean != y->clean) return x->clean ? -1 : 1;
    return (x->on_cpu < y->on_cpu) - (x->on_cpu > y->on_cpu);
}

static int by_share(const void *a, const void *b)
{
    const measure_sample *x = a, *y = b;
    double u = x->rate / x->roof, v = y->rate / y->roof;
    return (u > v) - (u < v);
}

void measure_series_record(measure_series *s, spw_bench_record *r)
{
    int n = s->n_clean ? s->n_clean : s->n < s->wanted ? s->n : s->wanted;
    qsort(s->v, (size_t)s->n, sizeof *s->v, by_trust);
    qsort(s->v, (size_t)n, sizeof *s->v, by_share);
    measure_sample median = s->v[n / 2];
    r->rate = median.rate, r->roof = median.roof, r->raw_gbps = median.raw, r->share = median.rate / median.roof;
    r->l2_gbps = median.cached;
    r->n_samples = s->n, r->n_clean = s->n_clean;
}
