/* measure.h - what this machine can do, and the choices made from it.
 *
 * The one thing to know: machines are shared.  A memory rate means nothing without one of mere reading taken in the same milliseconds, so samples are short,
 * stand between two sequential reads, and do not count when a thread was off its core or the reads around them were slow. */
#ifndef SPW_MEASURE_H
#define SPW_MEASURE_H

#include "kern.h"
#include "kern_probe.h"
#include "pool.h"
#include "spillway_bench.h"

/* ---- samples (measure_sample.c) ------------------------------------------------------------------ */

typedef struct measure_time {
    double seconds; /* from the first thread's start to the last one's end */
    double cpu_seconds; /* running time of all threads together: what counts for work that needs no memory */
    double on_cpu;  /* least share of that a thread was running; below MEASURE_ON_CPU the sample is disturbed */
} measure_time;
#define MEASURE_ON_CPU 0.97

/* Runs units 0 .. n_units-1, which the threads of the pool claim one by one; all of them start together. */
measure_time measure_run(spw_pool *pool, size_t n_units, pool_fn *fn, void *ctx);

/* What a record is made from: some samples of a kernel, each with its roof of the same milliseconds. */
typedef struct measure_sample {
    double rate, roof; /* in the record's unit */
    double raw;        /* of mere reading, GB/s; 0: none */
    double cached;     /* of the kernel with its data in L2, GB/s; 0: none */
    double on_cpu;     /* as in measure_time, the least of all that was timed for this sample */
    bool clean;
} measure_sample;
enum { MEASURE_MAX_SAMPLES = 64 };
typedef struct measure_series {
    measure_sample v[MEASURE_MAX_SAMPLES];
    int n, n_clean, wanted;
    double end;
} measure_series;
/* wanted clean samples; more than that are taken to find them, but none after so many seconds. */
void measure_series_begin(measure_series *s, int wanted, double seconds);
bool measure_series_goes_on(const measure_series *s);
void measure_series_add(measure_series *s, measure_sample sample);
/* Rate, roof, raw_gbps, l2_gbps, share and counts of the record, from the sample whose share of its roof is the median: of the clean ones, and where there are none of
 * those that were off their cores least.  Reorders the series, which has at least one sample. */
void measure_series_record(measure_series *s, spw_bench_record *r);

double measure_clock(void); /* seconds */
double measure_process_clock(void); /* running time of all threads of the process, seconds */
double measure_median(double *v, size_t n); /* reorders v; 0 when n is 0 */

/* ---- memory (measure_probe.c) -------------------------------------------------------------------- */

/* How to read: what is asked for ahead, in rows.  again: asked for once more at a half and a quarter of the distance, and into L1 at an eighth of it, because
 * processors drop what is asked for when too much is on its way. */
typedef struct measure_reading {
    kern_hint hint;
    uint32_t ahead;
    bool again;
} measure_reading;

/* Touches every cache line of the spans' rows in their order; returns a value that depends on all. */
uint64_t measure_read(const kern_span *spans, size_t n_spans, size_t row_bytes, measure_reading way);

/* Memory much larger than any cache: rows of halves that look like K and V, and a region that sequential probes cycle through. */
typedef struct measure_arena {
    uint8_t *base;
    size_t bytes, reserved;  /* rows; what to give back */
    size_t probe_bytes;      /* behind the rows */
    size_t probe_at;         /* the next sequential probe's start */
    measure_reading reading; /* the best way to read it in order */
} measure_arena;

/* bytes are multiples of 2 MiB. */
spw_status measure_arena_create(measure_arena *a, size_t bytes, size_t probe_bytes, spw_err *err);
void measure_arena_free(measure_arena *a);
/* One sequential read by all threads of the pool, of about 2 ms; GB/s.  *on_cpu (may be NULL) as in measure_time. */
double measure_sequential(measure_arena *a, spw_pool *pool, double *on_cpu);
/* Tries the ways of asking ahead and sets a->reading to the best for one thread. */
void measure_arena_tune(measure_arena *a, spw_pool *pool);

/* Operations per second of one peak loop run by all threads at once, in units of 1e9; the best of some short samples.  0 when there is no loop. */
double measure_peak(spw_pool *pool, kern_peak_fn *loop);

/* ---- the machine and its choices (measure_machine.c, measure_cache.c) ---------------------------- */

/* What is known of this machine with this kernel table: from the cache file if that fits, else measured (some tens of milliseconds) and cached.
 * Never fails: without memory or with SPILLWAY_CACHE=off and no time it is as good as the defaults. */
void measure_machine(spw_machine *m, const kern_table *kern, spw_pool *pool);
/* The choice for decode attention. */
kern_tuning measure_tuning(const spw_machine *m);

/* The cache file's path into path; false when the environment names no place or caching is off. */
bool measure_cache_path(char *path, size_t size, const char *model, const char *isa);
/* m->model, isa and threads say what is looked for; false when the file is missing, damaged, of another version or of another machine. */
bool measure_cache_read(const char *path, spw_machine *m);
/* Written beside and renamed: a reader sees a whole file or none.  False, and nothing left behind, when it cannot be written. */
bool measure_cache_write(const char *path, const spw_machine *m);

/* ---- benchmarks of attention (measure_attend.c) -------------------------------------------------- */

typedef struct measure_bench {
    const kern_table *kern;
    spw_pool *pool;
    measure_arena *arena;
    const spw_machine *machine;
    double f32_peak, int8_peak; /* of one thread, 1e9 operations per second */
    double best_reading; /* best sequential rate of late, GB/s */
    int n_samples;       /* clean samples wanted */
    spw_bench_fn *report;
    void *ctx;
} measure_bench;

/* A sequential probe for bracketing, its rate in *rate (may be NULL); false when it was disturbed (*on_cpu says how much) or slow beside the best of late. */
bool measure_bracket(measure_bench *b, double *rate, double *on_cpu);
/* The error of a benchmark that its caller ended. */
spw_status measure_stopped(spw_err *err);
/* Decode attention for one head dimension and block size (0: dense, 1: single positions), all group sizes; over halves, or bytes. */
spw_status measure_attend_decode(measure_bench *b, uint32_t dim, uint32_t block, bool q8, spw_err *err);
/* Attention of n_rows prompt rows with g heads each, data in L2, against the FMA peak. */
spw_status measure_attend_prefill(measure_bench *b, uint32_t dim, uint32_t g, size_t n_rows, spw_err *err);
/* Peaked scores against flat ones, data in L2. */
spw_status measure_attend_peaked(measure_bench *b, uint32_t dim, uint32_t g, spw_err *err);

/* ---- benchmarks of choosing (measure_select.c) --------------------------------------------------- */

/* Scores of digests of one head dimension, some group sizes. */
spw_status measure_digest_score(measure_bench *b, uint32_t dim, spw_err *err);
/* The 5 % largest of some numbers of scores, one thread. */
spw_status measure_top_k(measure_bench *b, spw_err *err);

/* ---- benchmarks of the index (measure_index.c) --------------------------------------------------- */

/* Scans of one head dimension that keep a fifth of the positions, some group sizes, each with signs alone and with the other planes for what is kept. */
spw_status measure_index_scan(measure_bench *b, uint32_t dim, spw_err *err);
/* Choosing a fiftieth of the positions among a fifth of them, some group sizes, one thread. */
spw_status measure_choose(measure_bench *b, spw_err *err);

/* ---- benchmarks of the pool ---------------------------------------------------------------------- */

/* Median time of a job of one empty item per thread; what report answered. */
bool measure_fork_join(measure_bench *b);

#endif
