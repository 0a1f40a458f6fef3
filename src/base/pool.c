/* pool.c - fork and join of a job's items.
 *
 * Each thread has a lane: a run of adjacent items, its share of the job, which it claims front to back, so that what it reads is one stream that it can ask for
 * ahead, and the same share of every job of that size.  A thread that has emptied its lane takes single items from the back of the others, so one that is off its core or
 * slower holds nobody up for longer than the item it is in.
 *
 * A lane's items are one word, first and end, and claiming is a compare and swap of it.  A claimed item keeps the job from ending, so the job's fields in the
 * lane are read after the claim and cannot change under the reader: a thread that comes late claims an item of whatever job is running, correctly, or none.
 *
 *   word      written by                        orders
 *   items     caller publishes, all claim       release of the lane's fields -> acquire by a claim
 *   told      caller, once per job of the lane, after the items of all lanes: whoever is told sees all items that nobody has claimed
 *   pending   caller sets, all count down       release of the items' results -> acquire by the caller
 *   sleeps    a waiting thread sets, who has something for it clears: futex word of that thread
 *
 * What a job costs beside its items is mostly cache lines that change cores: a lane's first line holds all that a worker is told and nothing that it writes while it waits or
 * works, and what only the caller uses lies apart from what workers look at.
 */
#include "pool.h"

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
/* Time that a waiting thread spins before it sleeps: about what sleeping and being woken takes.  Longer keeps the thread that it waits for from running where
 * others want the cores too, and what it burns is taken off its own share. */
#define SPIN_NS 20000
#define LOOK_NS 50000      /* time for which a worker is watched that a job waits for */
#define LEFT_OUT_NS 50000000 /* time for which a worker gets no items after it was off its core in the middle of one */

enum { LOOKS = 64 }; /* at what a thread waits for, between two looks at the clock */
#define FLOAT_MODE 0x9fc0u /* of MXCSR */

/* What one thread is to do, and where it sleeps. */
typedef struct pool_lane {
    alignas(64) atomic_uint_least64_t items; /* with the job's fields in one cache line: one miss tells a worker everything */
    pool_fn *fn;
    void *ctx;
    atomic_uint told, sleeps;
    alignas(64) unsigned heard; /* the worker's own: of told */
    atomic_bool inside;         /* the worker's own: it may be in an item */
    alignas(64) int64_t out_until; /* the caller's own: 0, or when the worker gets items again */
    bool has_share;                /* the caller's own: of the job being published */
    int number, node;
    spw_pool *pool;
    pthread_t thread;
} pool_lane;

struct spw_pool {
    alignas(64) atomic_size_t pending; /* items that are not known to be done */
    alignas(64) atomic_bool busy;      /* the caller's own, as n_out */
    int n_out; /* workers that get no items now */
    alignas(64) atomic_bool stop; /* this and what follows is written only when nobody works */
    int n_threads;
    int64_t spin_ns;
    numa_topology numa;
    pool_lane lanes[]; /* n_threads, the caller's first */
};

uint64_t pool_float_mode_enter(void)
{
#if defined(__x86_64__)
    uint64_t old = _mm_getcsr();
    if (old != FLOAT_MODE) _mm_setcsr(FLOAT_MODE); /* most jobs run where it is set already, and setting it is slow */
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
    if (old != FLOAT_MODE) _mm_setcsr((unsigned)old);
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

static void futex_wake(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static uint64_t make_items(size_t first, size_t end)
{
    return (uint64_t)first << 32 | (uint64_t)end;
}

static size_t first_of(uint64_t items)
{
    return (size_t)(items >> 32);
}

static size_t end_of(uint64_t items)
{
    return (size_t)(items & UINT32_MAX);
}

static bool is_empty(uint64_t items)
{
    return first_of(items) >= end_of(items);
}

/* True when thread l has something to go on with: the caller, that all items are done; a worker, that it was told of a job, or of the end of the pool. */
static bool is_ready(pool_lane *l)
{
    spw_pool *p = l->pool;
    if (l->number == 0) return atomic_load(&p->pending) == 0;
    return atomic_load(&l->told) != l->heard;
}

/* Spins until is_ready or the time is up; returns whether it is ready.  The clock is looked at only now and then, and not before it has been waited for a while: the
 * ends of most jobs come sooner than the clock answers. */
static bool spin(pool_lane *l, int64_t ns)
{
    if (ns == 0) return is_ready(l);
    for (int64_t end = 0, now = 0; now <= end; now = now_ns(), end = end ? end : now + ns) {
        for (int i = 0; i < LOOKS; i++) {
            if (is_ready(l)) return true;
            cpu_relax();
        }
    }
    return false;
}

/* Sequentially consistent, against "says that it sleeps, then looks whether it is ready": one of the two sees the other.  The word is cleared
 * before the wake, so a thread that is only on its way into the futex does not sleep there. */
static void wake(pool_lane *l)
{
    if (atomic_load(&l->sleeps) && atomic_exchange(&l->sleeps, 0)) futex_wake(&l->sleeps);
}

static int64_t running_ns(const pool_lane *l)
{
    clockid_t clock;
    struct timespec t;
    if (pthread_getcpuclockid(l->thread, &clock) != 0 || clock_gettime(clock, &t) != 0) return 0;
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The job's end does not come.  Another program may have the core of a worker that is in the middle of an item, and keep it for milliseconds, again and again: who is
 * caught like that is left out for a while, in which this program goes on with the cores that it has. */
static void look_for_absent(spw_pool *p)
{
    int64_t ran[MAX_THREADS], start = now_ns();
    for (int i = 1; i < p->n_threads; i++) ran[i] = atomic_load(&p->lanes[i].inside) ? running_ns(&p->lanes[i]) : -1;
    if (spin(&p->lanes[0], LOOK_NS)) return;
    int64_t now = now_ns();
    for (int i = 1; i < p->n_threads; i++) {
        pool_lane *l = &p->lanes[i];
        if (ran[i] < 0 || !atomic_load(&l->inside) || running_ns(l) - ran[i] > (now - start) / 2) continue;
        p->n_out += l->out_until == 0;
        l->out_until = now + LEFT_OUT_NS;
    }
}

static void call_back_absent(spw_pool *p, int64_t now)
{
    for (int i = 1; i < p->n_threads; i++) {
        pool_lane *l = &p->lanes[i];
        if (l->out_until == 0 || l->out_until > now) continue;
        l->out_until = 0;
        p->n_out--;
    }
}

static void wait_ready(pool_lane *l)
{
    spw_pool *p = l->pool;
    if (spin(l, p->spin_ns)) return;
    if (l->number == 0 && p->spin_ns > 0) look_for_absent(p);
    /* Said anew before every look: who made the thread ready the time before may be late and clear the word of this time.  An exchange, as emulators of
     * AArch64 let the look overtake a mere store. */
    for (;;) {
        atomic_exchange(&l->sleeps, 1);
        if (is_ready(l)) break;
        futex_wait(&l->sleeps, 1);
    }
    atomic_store(&l->sleeps, 0);
}

/* Claims and runs the items of one lane until none is left, from its front or its back; returns how many. */
static size_t run_lane(pool_lane *l, bool own, int worker)
{
    size_t n_done = 0;
    uint64_t items = atomic_load_explicit(&l->items, memory_order_relaxed);
    while (!is_empty(items)) {
        size_t first = first_of(items), end = end_of(items);
        uint64_t rest = own ? make_items(first + 1, end) : make_items(first, end - 1);
        if (!atomic_compare_exchange_weak_explicit(&l->items, &items, rest, memory_order_acquire, memory_order_relaxed)) continue;
        l->fn(l->ctx, own ? first : end - 1, worker);
        n_done++;
        items = atomic_load_explicit(&l->items, memory_order_relaxed);
    }
    return n_done;
}

/* The count of what was done is published once, which is what lets the job end. */
static void run_items(spw_pool *p, int worker)
{
    size_t n_done = run_lane(&p->lanes[worker], true, worker);
    for (int i = 1; i < p->n_threads; i++) n_done += run_lane(&p->lanes[(worker + i) % p->n_threads], false, worker);
    if (n_done > 0 && atomic_fetch_sub(&p->pending, n_done) == n_done && worker > 0) wake(&p->lanes[0]);
}

static void *worker_main(void *arg)
{
    pool_lane *l = arg;
    numa_pin(&l->pool->numa, l->node); /* refused: slower, no more */
    pool_float_mode_enter();
    for (;;) {
        wait_ready(l);
        l->heard = atomic_load(&l->told);
        if (atomic_load_explicit(&l->pool->stop, memory_order_relaxed)) return NULL;
        atomic_store_explicit(&l->inside, true, memory_order_relaxed);
        run_items(l->pool, l->number);
        atomic_store_explicit(&l->inside, false, memory_order_release);
    }
}

static void tell(pool_lane *l)
{
    atomic_fetch_add(&l->told, 1);
    wake(l);
}

/* Items of all lanes first: whoever is told sees everything. */
static void publish(spw_pool *p, size_t n_items, pool_fn *fn, void *ctx)
{
    size_t n_present = (size_t)(p->n_threads - p->n_out), at = 0, first = 0;
    atomic_store_explicit(&p->pending, n_items, memory_order_relaxed);
    for (int t = 0; t < p->n_threads; t++) {
        pool_lane *l = &p->lanes[t];
        size_t end = l->out_until ? first : n_items * ++at / n_present;
        l->fn = fn, l->ctx = ctx;
        l->has_share = end > first;
        atomic_store_explicit(&l->items, make_items(first, end), memory_order_release);
        first = end;
    }
    for (int t = p->n_threads - 1; t > 0; t--)
        if (p->lanes[t].has_share) tell(&p->lanes[t]);
}

static void run_job(spw_pool *p, size_t n_items, pool_fn *fn, void *ctx)
{
    publish(p, n_items, fn, ctx);
    run_items(p, 0);
    wait_ready(&p->lanes[0]);
}

static uint64_t begin_run(spw_pool *p)
{
    SPW_CHECK(!atomic_exchange(&p->busy, true));
    return pool_float_mode_enter();
}

static void end_run(spw_pool *p, uint64_t mode)
{
    pool_float_mode_leave(mode);
    atomic_store_explicit(&p->busy, false, memory_order_release);
}

void pool_run(spw_pool *p, size_t n_items, pool_fn *fn, void *ctx)
{
    uint64_t mode = begin_run(p);
    SPW_CHECK(n_items <= UINT32_MAX);
    if (p->n_out > 0) call_back_absent(p, now_ns());
    if (p->n_threads - p->n_out == 1 || n_items <= 1) {
        for (size_t i = 0; i < n_items; i++) fn(ctx, i, 0);
    } else {
        run_job(p, n_items, fn, ctx);
    }
    end_run(p, mode);
}

void pool_run_all(spw_pool *p, pool_fn *fn, void *ctx)
{
    uint64_t mode = begin_run(p);
    call_back_absent(p, INT64_MAX);
    if (p->n_threads == 1) fn(ctx, 0, 0);
    else run_job(p, (size_t)p->n_threads, fn, ctx);
    end_run(p, mode);
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

spw_status pool_create_on(spw_pool **out, int n_threads, const numa_topology *numa, spw_err *err)
{
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return spw_fail(err, SPW_E_ARG, "number of threads must be 1..%d, not %d", MAX_THREADS, n_threads);
    spw_pool *p = mem_zalloc(sizeof *p + (size_t)n_threads * sizeof p->lanes[0]);
    if (!p) return spw_fail(err, SPW_E_NOMEM, "no memory for a pool of %d threads", n_threads);
    /* With more threads than cores a spinning thread keeps the one that it waits for from running. */
    p->spin_ns = n_threads <= system_n_cores() ? SPIN_NS : 0;
    p->n_threads = 1;
    p->numa = *numa;
    for (int i = 0; i < n_threads; i++) p->lanes[i].pool = p, p->lanes[i].number = i, p->lanes[i].node = numa_node_of(numa, (size_t)i, (size_t)n_threads);
    sigset_t old;
    block_signals(&old);
    int failed = 0;
    for (int i = 1; i < n_threads && !failed; i++) {
        failed = pthread_create(&p->lanes[i].thread, NULL, worker_main, &p->lanes[i]);
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

spw_status pool_create(spw_pool **out, int n_threads, spw_err *err)
{
    numa_topology numa;
    numa_read_system(&numa);
    return pool_create_on(out, n_threads, &numa, err);
}

void pool_free(spw_pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    for (int i = 1; i < p->n_threads; i++) tell(&p->lanes[i]);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->lanes[i].thread, NULL);
    mem_free(p);
}

int pool_n_threads(const spw_pool *p)
{
    return p->n_threads;
}

const numa_topology *pool_numa(const spw_pool *p)
{
    return &p->numa;
}
