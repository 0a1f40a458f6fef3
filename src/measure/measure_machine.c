/* measure_machine.c - the roofline of this machine, and how decode attention should ask for its rows ahead.
 *
 * A wrong hint costs a factor of two, and which is wrong differs between processors of one instruction set; so the kernel itself is timed with each,
 * on memory that no cache holds.  A choice changes when rows arrive and never a bit of a result. */
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "measure.h"
#include "mem.h"
#include "system.h"

enum {
    DIM = 128, GROUP = 4,                 /* of the timed attention: the shape of most models */
    CALLS = 16,                           /* of KERN_SPAN positions each: 4 MiB of rows a sample */
    ROWS_BYTES = 80 << 20, PROBE_BYTES = 16 << 20, /* filling them is most of the cost; rows come back after 20 samples */
    L2_BYTES = 128 << 10, L2_PASSES = 32, /* fits into any L2 in use and no L1 */
    ROUNDS = 3, DUELS = 6,
};

static const char *const hint_names[KERN_HINTS] = {[KERN_HINT_NONE] = "none", [KERN_HINT_T0] = "T0", [KERN_HINT_T1] = "T1"};

#if defined(__x86_64__)
static void trim(char *s)
{
    size_t n = strlen(s), from = strspn(s, " ");
    memmove(s, s + from, n - from + 1);
    for (n -= from; n > 0 && s[n - 1] == ' '; n--) s[n - 1] = '\0';
}
#endif

static void find_model(char *model, size_t size)
{
    snprintf(model, size, "unknown processor");
#if defined(__x86_64__)
    unsigned words[12] = {0};
    if ((unsigned)__get_cpuid_max(0x80000000u, NULL) < 0x80000004u) return;
    for (unsigned i = 0; i < 3; i++) __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
    char name[sizeof words + 1];
    memcpy(name, words, sizeof words);
    name[sizeof words] = '\0';
    trim(name);
    /* Names of virtual processors say little ("AMD EPYC"): family, model and stepping tell generations apart. */
    unsigned a = 0, b, c, d;
    __get_cpuid(1, &a, &b, &c, &d);
    if (*name) snprintf(model, size, "%s %x", name, a);
    for (char *s = model; *s; s++)
        if ((unsigned char)*s < 32 || *s == '"' || *s == '\\') *s = '?';
#endif
}

/* ------------------------------------------------------------------------------------- timed attention ---- */

typedef struct trial {
    const kern_table *kern;
    const measure_arena *arena;
    size_t at; /* the sample's first row, in bytes */
    kern_tuning tuning;
    float q[GROUP * DIM], o[GROUP * DIM], lse[GROUP];
    void *scratch;
} trial;

static void trial_unit(void *ctx, size_t unit, int worker)
{
    trial *t = ctx;
    const size_t span_bytes = (size_t)KERN_SPAN * 4 * DIM;
    (void)unit, (void)worker;
    for (size_t i = 0; i < CALLS; i++) {
        kern_span spans[2];
        for (size_t s = 0; s < 2; s++) spans[s] = (kern_span){.rows = t->arena->base + (t->at + (i + s) * span_bytes) % t->arena->bytes, .n = KERN_SPAN};
        t->kern->attend(&(kern_attend_args){.q = t->q, .q_stride = DIM, .n_q = GROUP, .dim = DIM, .spans = spans, .n_spans = 1, .ahead = spans + 1,
                                            .n_ahead = 1, .tuning = &t->tuning, .o = t->o, .o_stride = DIM, .lse = t->lse, .scratch = t->scratch});
    }
}

/* Seconds of a sample of fresh rows. */
static double time_way(trial *t, spw_pool *one, kern_tuning way)
{
    t->tuning = way;
    double seconds = measure_run(one, 1, trial_unit, t).seconds;
    t->at = (t->at + (size_t)CALLS * KERN_SPAN * 4 * DIM) % t->arena->bytes;
    return seconds;
}

/* Whether a way is clearly faster than another one each time that both are tried. */
static bool always_wins(trial *t, spw_pool *one, kern_tuning way, kern_tuning other)
{
    for (int i = 0; i < DUELS; i++) {
        double seconds = time_way(t, one, way);
        if (seconds > 0.95 * time_way(t, one, other)) return false;
    }
    return true;
}

/* The best of a few rounds for each way of asking ahead.  The first stays unless another one is clearly better, now and again: a disturbance or rows
 * that a cache has kept must not change the choice, and the right one wins by far where it matters. */
static kern_tuning choose_tuning(const kern_table *kern, spw_pool *one, measure_arena *arena)
{
    static const kern_tuning ways[] = {{KERN_HINT_T1, 64}, {KERN_HINT_T1, 96}, {KERN_HINT_T0, 8}, {KERN_HINT_T0, 32}, {KERN_HINT_T0, 64}, {KERN_HINT_NONE, 0}};
    enum { N_WAYS = sizeof ways / sizeof ways[0] };
    double least[N_WAYS];
    trial t = {.kern = kern, .arena = arena, .scratch = mem_alloc(kern_attend_scratch(GROUP, DIM))};
    if (!t.scratch) return KERN_TUNING_DEFAULT;
    for (size_t i = 0; i < GROUP * DIM; i++) t.q[i] = (float)(i % 7) * 0.02f;
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < N_WAYS; i++) {
            double seconds = time_way(&t, one, ways[i]);
            if (round == 0 || seconds < least[i]) least[i] = seconds;
        }
    }
    size_t best = 0;
    for (size_t i = 1; i < N_WAYS; i++)
        if (least[i] < least[best]) best = i;
    if (best != 0 && (least[best] > 0.95 * least[0] || !always_wins(&t, one, ways[best], ways[0]))) best = 0;
    mem_free(t.scratch);
    return ways[best];
}

/* ----------------------------------------------------------------------------------------------- machine ---- */

typedef struct l2_job {
    const measure_arena *a;
    uint64_t sum;
} l2_job;

static void l2_unit(void *ctx, size_t unit, int worker)
{
    l2_job *j = ctx;
    kern_span span = {.rows = j->a->base, .n = L2_BYTES / 1024};
    (void)unit, (void)worker;
    for (int i = 0; i < L2_PASSES; i++) j->sum += measure_read(&span, 1, 1024, (measure_reading){0});
}

static double l2_rate(const measure_arena *a, spw_pool *one)
{
    double best = 0;
    for (int i = 0; i < 5; i++) {
        l2_job j = {.a = a};
        double rate = (double)L2_BYTES * L2_PASSES / measure_run(one, 1, l2_unit, &j).cpu_seconds * 1e-9;
        if (rate > best) best = rate;
    }
    return best;
}

/* The best of two ways of reading in order, one of which leaves it to the processor.  All of the memory is cycled through, or a cache would answer. */
static double best_sequential(measure_arena *a, spw_pool *pool)
{
    static const measure_reading ways[] = {{KERN_HINT_NONE, 0, false}, {KERN_HINT_T1, 32, false}};
    measure_arena whole = {.base = a->base, .probe_bytes = a->bytes + a->probe_bytes, .probe_at = a->probe_at};
    double best = 0;
    for (int i = 0; i < 2; i++) {
        whole.reading = ways[i];
        double rate = measure_sequential(&whole, pool, NULL);
        if (rate > best) best = rate;
    }
    a->probe_at = whole.probe_at;
    return best;
}

/* Plain kernels ask for nothing ahead, and the reference would take seconds. */
static bool asks_ahead(const kern_table *kern)
{
    return strcmp(kern->isa, "ref") != 0 && strcmp(kern->isa, "scalar") != 0;
}

static bool measure_now(spw_machine *m, const kern_table *kern, spw_pool *pool)
{
    const kern_probe *probe = kern_probe_get(kern->isa);
    measure_arena arena = {0};
    spw_pool *one = NULL;
    if (system_memory_available() < 8u * (uint64_t)(ROWS_BYTES + PROBE_BYTES)) return false; /* not worth what it may displace */
    bool ok = measure_arena_create(&arena, ROWS_BYTES, PROBE_BYTES, NULL) == SPW_OK && pool_create(&one, 1, NULL) == SPW_OK;
    if (ok) {
        kern_tuning t = asks_ahead(kern) ? choose_tuning(kern, one, &arena) : KERN_TUNING_DEFAULT;
        snprintf(m->hint, sizeof m->hint, "%s", hint_names[t.hint]);
        m->ahead = t.ahead;
        m->threads = pool_n_threads(pool);
        m->read_one = best_sequential(&arena, one);
        m->read_all = best_sequential(&arena, pool);
        m->l2_read = l2_rate(&arena, one);
        m->f32_peak = measure_peak(one, probe->f32);
        m->int8_peak = measure_peak(one, probe->int8);
        m->bf16_peak = measure_peak(one, probe->bf16);
    }
    pool_free(one);
    measure_arena_free(&arena);
    return ok;
}

void measure_machine(spw_machine *m, const kern_table *kern, spw_pool *pool)
{
    struct utsname names;
    char path[4096];
    *m = (spw_machine){.tile = KERN_TILE, .arithmetic = "f32", .hint = "T1", .ahead = KERN_TUNING_DEFAULT.ahead};
    find_model(m->model, sizeof m->model);
    if (uname(&names) == 0) snprintf(m->host, sizeof m->host, "%.63s", names.nodename);
    snprintf(m->isa, sizeof m->isa, "%s", kern->isa);
    bool may_cache = measure_cache_path(path, sizeof path, m->model, m->isa);
    bool known = may_cache && measure_cache_read(path, m);
    if (!known && measure_now(m, kern, pool) && may_cache) measure_cache_write(path, m);
    snprintf(m->prompt_arithmetic, sizeof m->prompt_arithmetic, "%s", kern->many_tile ? "int16" : "f32"); /* of the kernels, not of a measurement */
}

kern_tuning measure_tuning(const spw_machine *m)
{
    kern_tuning t = {.hint = KERN_HINT_T1, .ahead = m->ahead};
    for (kern_hint h = 0; h < KERN_HINTS; h++)
        if (!strcmp(m->hint, hint_names[h])) t.hint = h;
    return t;
}
