/* pool.c - fork and join of a job's items.
 *
 * One word, `left`, says how many items of the running job nobody has claimed yet; claiming is left -> left - 1 by compare and swap, and
 * the item's number is n_items - left.  A claimed item keeps the job from ending, so the job's fields are read after the claim and cannot
 * change under the reader: a worker that comes late claims an item of whatever job is running, correctly, or none.
 *
 *   word      written by                        orders
 *   left      caller publishes, all claim       release of the job's fields -> acquire by a claim
 *   pending   caller sets, all count down       release of the items' results -> acquire by the caller
 *   epoch     caller, once per job              futex word of sleeping workers; n_sleeping says whether a wake is needed
 *   caller_sleeps  caller sets, the thread that takes pending to 0 clears: futex word of the caller
 */
#include "pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"
#include "system.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MAX_THREADS 256
#define SPIN_NS 100000 /* time that a waiting thread spins before it sleeps */

typedef struct pool_worker {
    spw_pool *pool;
    pthread_t thread;
    int number;
} pool_worker;

struct spw_pool {
    alignas(64) atomic_size_t left; /* with the job's fields in one cache line: one miss tells a worker everything */
    size_t n_items;
    pool_fn *fn;
    void *ctx;
    alignas(64) atomic_size_t pending; /* items that are not known to be done */
    atomic_uint caller_sleeps;
    alignas(64) atomic_uint epoch;
    atomic_uint n_sleeping;
    atomic_bool stop;
    alignas(64) atomic_bool busy;
    int n_threads;
    int64_t spin_ns;
    pool_worker workers[]; /* n_threads - 1 */
};

uint64_t pool_float_mode_enter(void)
{
#if defined(__x86_64__)
    uint64_t old = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    return old;
#elif defined(__aarch64__)
    uint64_t old, fz = (uint64_t)1 << 24;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(fz));
    return old;
#else
    return 0;
#endif
}

void pool_float_mode_leave(uint64_t old)
{
#if defined(__x86_64__)
    _mm_setcsr((unsigned)old);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
#else
    (void)old;
#endif
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* True when the caller has something to go on with (is_caller: all items done; a worker: items to claim, or the end of the pool). */
static bool is_ready(spw_pool *p, bool is_caller)
{
    if (is_caller) return atomic_load(&p->pending) == 0;
    return atomic_load(&p->left) > 0 || atomic_load_explicit(&p->stop, memory_order_relaxed);
}

/* Spins until is_ready or the time is up; returns whether it is ready.  The clock is looked at only now and then. */
static bool spin(spw_pool *p, bool is_caller)
{
    if (is_ready(p, is_caller)) return true;
    if (p->spin_ns == 0) return false;
    for (int64_t end = now_ns() + p->spin_ns; now_ns() < end;) {
        for (int i = 0; i < 32; i++) {
            cpu_relax();
            if (is_ready(p, is_caller)) return true;
        }
    }
    return false;
}

/* Claims and runs items until none is left.  The count of what was done is published once, which is what lets the job end. */
static void run_items(spw_pool *p, int worker)
{
    size_t n_done = 0, left = atomic_load_explicit(&p->left, memory_order_relaxed);
    while (left > 0) {
        if (!atomic_compare_exchange_weak_explicit(&p->left, &left, left - 1, memory_order_acquire, memory_order_relaxed)) continue;
        p->fn(p->ctx, p->n_items - left, worker);
        n_done++;
        left = atomic_load_explicit(&p->left, memory_order_relaxed);
    }
    if (n_done == 0 || atomic_fetch_sub(&p->pending, n_done) != n_done || worker == 0) return;
    /* Sequentially consistent, against the caller's "says that it sleeps, then looks at pending": one of the two sees the other.  The word
     * is cleared before the wake, so a caller that is only on its way into the futex does not sleep there. */
    if (atomic_load(&p->caller_sleeps) && atomic_exchange(&p->caller_sleeps, 0)) futex_wake(&p->caller_sleeps, 1);
}

/* The epoch is read before the last look at the job, so a job published in between changes it and the futex does not sleep. */
static void worker_wait(spw_pool *p)
{
    while (!spin(p, false)) {
        unsigned epoch = atomic_load(&p->epoch);
        if (is_ready(p, false)) return;
        atomic_fetch_add(&p->n_sleeping, 1);
        futex_wait(&p->epoch, epoch);
        atomic_fetch_sub(&p->n_sleeping, 1);
    }
}

static void *worker_main(void *arg)
{
    pool_worker *w = arg;
    spw_pool *p = w->pool;
    pool_float_mode_enter();
    while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
        run_items(p, w->number);
        worker_wait(p);
    }
    return NULL;
}

static void caller_wait(spw_pool *p)
{
    if (spin(p, true)) return;
    /* Said anew before every look: the thread that ended the job before may be late and clear the word of this one.  An exchange, as emulators of
     * AArch64 let the look overtake a mere store. */
    for (;;) {
        atomic_exchange(&p->caller_sleeps, 1);
        if (is_ready(p, true)) break;
        futex_wait(&p->caller_sleeps, 1);
    }
    atomic_store(&p->caller_sleeps, 0);
}

/* Tells the workers that there is a job or an end; wakes n of those that sleep. */
static void wake_workers(spw_pool *p, size_t n)
{
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->n_sleeping) > 0) futex_wake(&p->epoch, n < INT_MAX ? (int)n : INT_MAX);
}

void pool_run(spw_pool *p, size_t n_items, pool_fn *fn, void *ctx)
{
    SPW_CHECK(!atomic_exchange(&p->busy, true));
    uint64_t mode = pool_float_mode_enter();
    if (p->n_threads == 1 || n_items <= 1) {
        for (size_t i = 0; i < n_items; i++) fn(ctx, i, 0);
    } else {
        p->n_items = n_items, p->fn = fn, p->ctx = ctx;
        atomic_store_explicit(&p->pending, n_items, memory_order_relaxed);
        atomic_store_explicit(&p->left, n_items, memory_order_release);
        wake_workers(p, n_items - 1);
        run_items(p, 0);
        caller_wait(p);
    }
    pool_float_mode_leave(mode);
    atomic_store(&p->busy, false);
}

/* Workers leave the application's signals to the application's threads, except those that a thread causes itself. */
static void block_signals(sigset_t *old)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF};
    sigset_t set;
    sigfillset(&set);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&set, own[i]);
    pthread_sigmask(SIG_SETMASK, &set, old);
}

spw_status pool_create(spw_pool **out, int n_threads, spw_err *err)
{
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return spw_fail(err, SPW_E_ARG, "number of threads must be 1..%d, not %d", MAX_THREADS, n_threads);
    spw_pool *p = mem_zalloc(sizeof *p + (size_t)(n_threads - 1) * sizeof p->workers[0]);
    if (!p) return spw_fail(err, SPW_E_NOMEM, "no memory for a pool of %d threads", n_threads);
    /* With more threads than cores a spinning thread keeps the one that it waits for from running. */
    p->spin_ns = n_threads <= system_n_cores() ? SPIN_NS : 0;
    p->n_threads = 1;
    sigset_t old;
    block_signals(&old);
    int failed = 0;
    for (int i = 1; i < n_threads && !failed; i++) {
        pool_worker *w = &p->workers[i - 1];
        w->pool = p, w->number = i;
        failed = pthread_create(&w->thread, NULL, worker_main, w);
        if (!failed) p->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
        spw_fail(err, SPW_E_NOMEM, "cannot start thread %d of %d: %s", p->n_threads + 1, n_threads, strerror(failed));
        pool_free(p);
        return SPW_E_NOMEM;
    }
    *out = p;
    return SPW_OK;
}

void pool_free(spw_pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    wake_workers(p, MAX_THREADS);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->workers[i - 1].thread, NULL);
    mem_free(p);
}

int pool_n_threads(const spw_pool *p)
{
    return p->n_threads;
}
