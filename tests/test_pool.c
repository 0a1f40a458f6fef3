/* test_pool.c - every item of every job runs once, by whatever number of threads; jobs that overlap, sleep and crowd. */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "mem.h"
#include "pool.h"
#include "system.h"

/* The thread sanitizer is an order of magnitude slower: fewer jobs, same paths. */
#if defined(__SANITIZE_THREAD__)
#define SLOWER 10
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOWER 10
#endif
#endif
#ifndef SLOWER
#define SLOWER 1
#endif

#define MAX_ITEMS 1000

static const int thread_counts[] = {1, 2, 3, 8};
#define N_COUNTS (sizeof thread_counts / sizeof thread_counts[0])

static spw_pool *make(int n_threads)
{
    spw_pool *p = NULL;
    spw_err err;
    CHECK_OK(pool_create(&p, n_threads, &err), err);
    if (!p) exit(1);
    CHECK_INT(pool_n_threads(p), n_threads);
    return p;
}

static void pause_ns(long ns)
{
    nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

/* A job whose items count how often they ran, and say which job they believe to belong to.  Plain integers: that two threads never
 * have the same item, and that the caller sees what workers wrote, is for the pool to see to (and for the thread sanitizer to say). */
typedef struct tally {
    unsigned job;
    int n_threads;
    unsigned ran[MAX_ITEMS]; /* the job that an item ran for last */
    unsigned times[MAX_ITEMS];
    unsigned bad_worker[MAX_ITEMS];
} tally;

static void tally_item(void *ctx, size_t item, int worker)
{
    tally *t = ctx;
    t->ran[item] = t->job;
    t->times[item]++;
    t->bad_worker[item] += worker < 0 || worker >= t->n_threads;
}

/* Runs jobs of sizes given by size(job), and checks after each that its items ran for it, once. */
static void run_jobs(int n_threads, unsigned n_jobs, size_t (*size)(unsigned job), void (*between)(unsigned job))
{
    spw_pool *p = make(n_threads);
    tally *t = mem_zalloc(2 * sizeof *t); /* by turns: a late item of the job before would show in the wrong one */
    unsigned wanted[2][MAX_ITEMS] = {{0}};
    size_t n_wrong = 0;
    t[0].n_threads = t[1].n_threads = n_threads;
    for (unsigned job = 1; job <= n_jobs; job++) {
        tally *now = &t[job % 2];
        size_t n = size(job);
        now->job = job;
        pool_run(p, n, tally_item, now);
        for (size_t i = 0; i < n; i++) n_wrong += now->ran[i] != job || now->times[i] != ++wanted[job % 2][i];
        if (between) between(job);
    }
    for (int turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < MAX_ITEMS; i++) n_wrong += t[turn].times[i] != wanted[turn][i] || t[turn].bad_worker[i] != 0;
    }
    CHECK_INT(n_wrong, 0);
    mem_free(t);
    pool_free(p);
}

static size_t size_tiny(unsigned job)
{
    return 2 + job % 3;
}

static void test_many_tiny_jobs(void)
{
    run_jobs(1, 100000 / SLOWER, size_tiny, NULL);
    run_jobs(2, 100000 / SLOWER, size_tiny, NULL);
    run_jobs(3, 20000 / SLOWER, size_tiny, NULL);
}

static size_t size_varied(unsigned job)
{
    static const size_t sizes[] = {0, 1, 2, 1000, 3, 1, 64, 0, 17, 500, 5};
    return sizes[job % (sizeof sizes / sizeof sizes[0])];
}

static void test_jobs_of_varied_size(void)
{
    for (size_t i = 0; i < N_COUNTS; i++) run_jobs(thread_counts[i], 10000 / SLOWER, size_varied, NULL);
}

/* From shorter to longer than the time that workers spin, so that jobs meet workers awake, asleep and on the way. */
static void sleep_between(unsigned job)
{
    pause_ns((long)(job % 30) * 10000);
}

static void test_sleep_between_jobs(void)
{
    run_jobs(2, 1500 / SLOWER, size_tiny, sleep_between);
    run_jobs(8, 700 / SLOWER, size_tiny, sleep_between);
}

static void test_oversubscribed(void)
{
    run_jobs(64, 2000 / SLOWER, size_varied, NULL);
}

/* ------------------------------------------------------------------------------------- others ---- */

/* Every item is slow at times, so the caller has to wait, and sleep, for the others. */
static void slow_item(void *ctx, size_t item, int worker)
{
    if (worker > 0 && item % 2) pause_ns(400000);
    ((int *)ctx)[item]++;
}

static void test_caller_waits(void)
{
    for (int n_threads = 2; n_threads <= 3; n_threads++) {
        spw_pool *p = make(n_threads);
        int ran[6] = {0};
        for (int job = 1; job <= 200; job++) {
            pool_run(p, 6, slow_item, ran);
            for (int i = 0; i < 6; i++) CHECK_INT(ran[i], job);
        }
        pool_free(p);
    }
}

/* With more threads than cores nobody spins: the caller goes to sleep just when the last item ends, in every other job. */
static void test_wakes_are_not_lost(void)
{
    run_jobs(system_n_cores() + 1, test_is_emulated() ? 5000 : 200000 / SLOWER, size_tiny, NULL);
}

/* Items that wait for others: bounded, so that what never comes is a failure and not a hang. */
typedef struct gate {
    size_t n_items, closed; /* the item that waits for all others */
    int n_threads;
    atomic_size_t n_done;
    atomic_bool late;
    int worker[16];
} gate;

static void wait_for(gate *g, size_t n)
{
    for (int i = 0; atomic_load(&g->n_done) < n; i++) {
        if (i == 20000) {
            atomic_store(&g->late, true);
            return;
        }
        pause_ns(100000);
    }
}

static void closed_item(void *ctx, size_t item, int worker)
{
    gate *g = ctx;
    (void)worker;
    if (item == g->closed) wait_for(g, g->n_items - 1);
    else pause_ns(200000); /* so that the closed one is begun while there is work */
    atomic_fetch_add(&g->n_done, 1);
}

/* A thread that is stuck in an item holds up that item alone: the others take the rest of its share. */
static void test_shares_are_taken_over(void)
{
    for (int n_threads = 2; n_threads <= 3; n_threads++) {
        for (size_t closed = 0; closed < 12; closed++) {
            spw_pool *p = make(n_threads); /* in which nobody is left out yet */
            gate g = {.n_items = 12, .closed = closed};
            pool_run(p, g.n_items, closed_item, &g);
            CHECK_INT(atomic_load(&g.n_done), 12);
            CHECK(!atomic_load(&g.late));
            pool_free(p);
        }
    }
}

static void shared_item(void *ctx, size_t item, int worker)
{
    gate *g = ctx;
    g->worker[item] = worker;
    atomic_fetch_add(&g->n_done, 1);
    wait_for(g, (size_t)g->n_threads);
}

/* The same item of a job is the same thread's, which is what keeps its data in that thread's cache and on its node; but for a thread that is late from the job
 * before and meets another's item on its way out. */
static void test_shares_stay(void)
{
    int n_home = 0;
    spw_pool *p = make(4);
    for (int job = 0; job < 50; job++) {
        gate g = {.n_threads = 4};
        pool_run_all(p, shared_item, &g);
        for (int i = 0; i < 4; i++) n_home += g.worker[i] == i;
        CHECK(!atomic_load(&g.late));
    }
    CHECK(n_home > 100); /* by chance: 50 */
    pool_free(p);
}

static void sleepy_item(void *ctx, size_t item, int worker)
{
    (void)ctx, (void)item;
    if (worker > 0) pause_ns(5000000); /* as if another program had the core */
}

static void count_item(void *ctx, size_t item, int worker)
{
    (void)item;
    if (worker > 0) atomic_fetch_add((atomic_int *)ctx, 1);
    pause_ns(100000);
}

/* Whether more threads want to run than there are cores, where the system tells. */
static bool cores_are_wanted(void)
{
    int running = 0;
    FILE *f = fopen("/proc/loadavg", "re");
    if (f && fscanf(f, "%*f %*f %*f %d", &running) != 1) running = 0;
    if (f) fclose(f);
    return running > system_n_cores();
}

/* A worker that a job waits for, and that does not run, gets no items for a while, and then some again.  pool_run_all knows no such thing. */
static void test_absent_are_left_out(void)
{
    if (system_n_cores() < 2) return; /* with more threads than cores everybody is absent at times */
    bool left_out = false, called_back = false;
    spw_pool *p = make(2);
    for (int i = 0; i < 400 && !left_out; i++) { /* this thread may have been off its core itself */
        atomic_int n = 0;
        pool_run_all(p, sleepy_item, NULL);
        pool_run(p, 8, count_item, &n);
        left_out = atomic_load(&n) == 0;
    }
    if (!left_out && cores_are_wanted()) {
        SKIP("test_absent_are_left_out", "other programs want the cores");
        pool_free(p);
        return;
    }
    CHECK(left_out);
    gate g = {.n_threads = 2};
    pool_run_all(p, shared_item, &g);
    CHECK(!atomic_load(&g.late));
    for (int i = 0; i < 100 && !called_back; i++) {
        atomic_int n = 0;
        pause_ns(10000000);
        pool_run(p, 8, count_item, &n);
        called_back = atomic_load(&n) > 0;
    }
    CHECK(called_back);
    pool_free(p);
}

/* A sum in floating point whose order is fixed by the item, whoever runs it. */
typedef struct sums {
    double of_item[97];
} sums;

static void sum_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    double sum = 0;
    for (size_t i = 1; i < 200; i++) sum += 1.0 / (double)(i * (item + 1));
    ((sums *)ctx)->of_item[item] = sum;
}

static void test_results_identical(void)
{
    sums first;
    for (size_t i = 0; i < N_COUNTS; i++) {
        spw_pool *p = make(thread_counts[i]);
        for (int again = 0; again < 50; again++) {
            sums s = {{0}};
            pool_run(p, 97, sum_item, &s);
            if (i == 0 && again == 0) first = s;
            CHECK(!memcmp(&s, &first, sizeof s));
        }
        pool_free(p);
    }
}

/* Half of the smallest normal number: 0 where results are flushed. */
static float half_of_tiny(void)
{
    volatile float tiny = 0x1p-126f, half = 0.5f;
    return tiny * half;
}

/* The smallest subnormal times a large number: 0 where inputs are taken as zero. */
static float subnormal_times_big(void)
{
    volatile uint32_t bits = 1;
    uint32_t copy = bits;
    volatile float big = 0x1p120f;
    float f;
    memcpy(&f, &copy, sizeof f);
    return f * big;
}

static void flush_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    pause_ns(20000); /* so that all threads get items */
    ((float *)ctx)[item] = half_of_tiny() + subnormal_times_big();
}

static void test_subnormals_are_flushed(void)
{
#if defined(__x86_64__) || defined(__aarch64__)
    for (size_t i = 0; i < N_COUNTS; i++) {
        spw_pool *p = make(thread_counts[i]);
        float got[40];
        for (size_t item = 0; item < 40; item++) got[item] = -1;
        pool_run(p, 40, flush_item, got);
        for (size_t item = 0; item < 40; item++) CHECK(got[item] == 0);
        pool_run(p, 1, flush_item, got + 1); /* the short way for one item */
        CHECK(half_of_tiny() > 0 && subnormal_times_big() > 0); /* the caller's own mode is back */
        pool_free(p);
    }
#endif
}

static atomic_int n_seen_by_workers;

static void signal_item(void *ctx, size_t item, int worker)
{
    sigset_t set;
    (void)ctx, (void)item;
    pause_ns(20000);
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    if (worker > 0 && (!sigismember(&set, SIGINT) || sigismember(&set, SIGSEGV))) atomic_fetch_add(&n_seen_by_workers, 1);
}

/* Ctrl-C goes to the application's threads. */
static void test_signals_are_blocked(void)
{
    sigset_t set;
    spw_pool *p = make(3);
    pool_run(p, 30, signal_item, NULL);
    CHECK_INT(atomic_load(&n_seen_by_workers), 0);
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    CHECK(!sigismember(&set, SIGINT));
    pool_free(p);
}

/* Two pools at once, each with a caller of its own. */
static void *other_caller(void *arg)
{
    (void)arg;
    run_jobs(2, 2000 / SLOWER, size_varied, NULL);
    return NULL;
}

static void test_two_pools(void)
{
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, other_caller, NULL), 0);
    run_jobs(3, 2000 / SLOWER, size_varied, NULL);
    pthread_join(thread, NULL);
}

static void test_create_and_free(void)
{
    size_t before = mem_in_use();
    spw_pool *p = NULL;
    spw_err err;
    for (int i = 0; i < 100; i++) pool_free(make(1 + i % 5)); /* workers that never had a job */
    pool_free(NULL);
    CHECK_INT(pool_create(&p, 0, &err), SPW_E_ARG);
    CHECK_STR(err.msg, "number of threads must be 1..256, not 0");
    CHECK_INT(pool_create(&p, 257, &err), SPW_E_ARG);
    mem_fail_after(0, false);
    CHECK_INT(pool_create(&p, 2, &err), SPW_E_NOMEM);
    CHECK(p == NULL);
    CHECK_INT(mem_in_use(), before);
}

int main(void)
{
    RUN(test_many_tiny_jobs);
    RUN(test_jobs_of_varied_size);
    RUN(test_sleep_between_jobs);
    RUN(test_oversubscribed);
    RUN(test_caller_waits);
    RUN(test_wakes_are_not_lost);
    RUN(test_shares_are_taken_over);
    RUN(test_shares_stay);
    RUN(test_absent_are_left_out);
    RUN(test_results_identical);
    RUN(test_subnormals_are_flushed);
    RUN(test_signals_are_blocked);
    RUN(test_two_pools);
    RUN(test_create_and_free);
    return test_done();
}
