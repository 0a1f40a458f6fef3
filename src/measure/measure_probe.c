/* measure_probe.c - reading memory as fast as it can be read, and doing arithmetic as fast as it can be done.
 *
 * Reading is one load of each cache line: what it costs to bring the line to the core and nothing else. */
#include <string.h>
#include <sys/mman.h>

#include "kern_simd.h"
#include "measure.h"
#include "mem.h"

enum { LINE = 64, PROBE_UNIT = 1 << 20, PROBE_BYTES = 48 << 20, HUGE_BYTES = 2 << 20, PEAK_ROUNDS = 20000, PEAK_SAMPLES = 12 };

/* Where the row is that follows others by `ahead` rows: a second walk over the same spans. */
typedef struct read_cursor {
    const kern_span *span, *end;
    uint32_t at;
} read_cursor;

static inline const uint8_t *cursor_row(const read_cursor *c, size_t row_bytes)
{
    return (const uint8_t *)c->span->rows + c->at * row_bytes;
}

/* Stays at the last row when there are no more. */
static inline void cursor_step(read_cursor *c)
{
    if (c->at + 1 < c->span->n) c->at++;
    else if (c->span + 1 < c->end) c->span++, c->at = 0;
}

static inline uint64_t touch_row(const uint8_t *row, size_t bytes)
{
    uint64_t sum = 0, word;
    for (size_t b = 0; b < bytes; b += LINE) {
        memcpy(&word, row + b, sizeof word);
        sum += word;
    }
    return sum;
}

/* Always inline: to gcc a function that only asks ahead has no effect, and calls of it go away. */
KERN_INLINE void ask_row(const uint8_t *row, size_t bytes, kern_hint hint)
{
    for (size_t b = 0; b < bytes; b += LINE) {
        if (hint == KERN_HINT_T0) __builtin_prefetch(row + b, 0, 3);
        else __builtin_prefetch(row + b, 0, 2);
    }
}

enum { MAX_CURSORS = 4 };

uint64_t measure_read(const kern_span *spans, size_t n_spans, size_t row_bytes, measure_reading way)
{
    read_cursor ask[MAX_CURSORS];
    int n_ask = way.hint == KERN_HINT_NONE ? 0 : way.again ? MAX_CURSORS : 1;
    uint64_t sum = 0;
    if (n_spans == 0) return 0;
    for (int c = 0; c < n_ask; c++) {
        ask[c] = (read_cursor){.span = spans, .end = spans + n_spans};
        for (uint32_t i = way.ahead >> c; i > 0; i--) {
            if (c == 0) ask_row(cursor_row(&ask[c], row_bytes), row_bytes, way.hint);
            cursor_step(&ask[c]);
        }
    }
    for (size_t s = 0; s < n_spans; s++) {
        const uint8_t *row = spans[s].rows;
        for (uint32_t i = 0; i < spans[s].n; i++, row += row_bytes) {
            for (int c = 0; c < n_ask; c++) {
                ask_row(cursor_row(&ask[c], row_bytes), row_bytes, c == MAX_CURSORS - 1 ? KERN_HINT_T0 : way.hint);
                cursor_step(&ask[c]);
            }
            sum += touch_row(row, row_bytes);
        }
    }
    return sum;
}

/* ------------------------------------------------------------------------------------------------- arena ---- */

/* Halves between -1 and 1, none subnormal: exponents 2^-4 .. 2^-1. */
static void fill_halves(uint16_t *to, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        to[i] = (uint16_t)(0x2c00u + (seed >> 33) % 0x1000u + (seed >> 62 & 1) * 0x8000u);
    }
}

spw_status measure_arena_create(measure_arena *a, size_t bytes, size_t probe_bytes, spw_err *err)
{
    size_t total;
    *a = (measure_arena){.bytes = bytes, .probe_bytes = probe_bytes};
    if (add_size(bytes, probe_bytes, &total)) a->base = mem_reserve(total);
    if (!a->base) return spw_fail(err, SPW_E_NOMEM, "benchmark: no address space for %zu bytes", total);
    a->reserved = total;
    madvise(a->base, total, MADV_HUGEPAGE);
    fill_halves((uint16_t *)(void *)a->base, HUGE_BYTES / 2, 1);
    for (size_t at = HUGE_BYTES; at < total; at += HUGE_BYTES) memcpy(a->base + at, a->base, HUGE_BYTES);
    return SPW_OK;
}

void measure_arena_free(measure_arena *a)
{
    if (a->base) mem_unreserve(a->base, a->reserved);
    a->base = NULL;
}

typedef struct probe_job {
    const measure_arena *a;
    size_t first_unit;
    uint64_t *sums; /* one per worker, a cache line apart */
} probe_job;

enum { MAX_WORKERS = 256, SUM_STRIDE = 8 };

static void probe_unit(void *ctx, size_t unit, int worker)
{
    const probe_job *j = ctx;
    size_t at = (j->first_unit + unit) % (j->a->probe_bytes / PROBE_UNIT) * PROBE_UNIT;
    kern_span span = {.rows = j->a->base + j->a->bytes + at, .n = PROBE_UNIT / 1024};
    j->sums[worker * SUM_STRIDE] += measure_read(&span, 1, 1024, j->a->reading);
}

double measure_sequential(measure_arena *a, spw_pool *pool, double *on_cpu)
{
    uint64_t sums[MAX_WORKERS * SUM_STRIDE];
    memset(sums, 0, sizeof sums);
    probe_job j = {.a = a, .first_unit = a->probe_at, .sums = sums};
    size_t n_units = (size_t)PROBE_BYTES / PROBE_UNIT * (size_t)pool_n_threads(pool);
    a->probe_at = (a->probe_at + n_units) % (a->probe_bytes / PROBE_UNIT);
    measure_time t = measure_run(pool, n_units, probe_unit, &j);
    if (on_cpu) *on_cpu = t.on_cpu;
    return (double)n_units * PROBE_UNIT / t.seconds * 1e-9;
}

void measure_arena_tune(measure_arena *a, spw_pool *pool)
{
    static const measure_reading ways[] = {{KERN_HINT_NONE, 0, false}, {KERN_HINT_T0, 2, false}, {KERN_HINT_T0, 8, false},
                                           {KERN_HINT_T1, 8, false},   {KERN_HINT_T1, 32, false}, {KERN_HINT_T1, 32, true}};
    double best = 0;
    measure_reading chosen = a->reading;
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            a->reading = ways[i];
            double rate = measure_sequential(a, pool, NULL);
            if (rate > best) best = rate, chosen = ways[i];
        }
    }
    a->reading = chosen;
}

/* ------------------------------------------------------------------------------------------------- peaks ---- */

typedef struct peak_job {
    kern_peak_fn *loop;
    double ops[MAX_WORKERS];
    float sinks[MAX_WORKERS];
} peak_job;

static void peak_unit(void *ctx, size_t unit, int worker)
{
    peak_job *j = ctx;
    (void)unit;
    j->ops[worker] += j->loop(PEAK_ROUNDS, &j->sinks[worker]);
}

double measure_peak(spw_pool *pool, kern_peak_fn *loop)
{
    double best = 0;
    if (!loop) return 0;
    for (int i = 0; i < PEAK_SAMPLES; i++) {
        peak_job j = {.loop = loop};
        double ops = 0, rate;
        measure_time t = measure_run(pool, 2 * (size_t)pool_n_threads(pool), peak_unit, &j);
        for (int w = 0; w < pool_n_threads(pool); w++) ops += j.ops[w];
        rate = ops / t.cpu_seconds * pool_n_threads(pool) * 1e-9;
        if (rate > best) best = rate;
    }
    return best;
}
