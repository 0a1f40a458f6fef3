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
