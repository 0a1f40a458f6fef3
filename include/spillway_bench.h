/* spillway_bench.h - measurements: what this machine can do, and how near to it the kernels come.
 *
 * Rates are in GB/s or 1e9 operations per second.  A share is of a roof that was measured in the same milliseconds, with the same
 * threads: on a shared machine only shares can be compared from one run to the next. */
#ifndef SPILLWAY_BENCH_H
#define SPILLWAY_BENCH_H

#include "spillway.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The roofline of this machine, and the choices that were made from it. */
typedef struct spw_machine {
    char model[64];        /* the processor's name */
    char host[64];
    char isa[16];          /* kernels that run */
    int threads;           /* with which the rates "all" were measured */
    double read_one, read_all; /* sequential reading, GB/s */
    double l2_read;        /* one thread, GB/s */
    double f32_peak;       /* one thread */
    double int8_peak;      /* 0: no such units */
    double bf16_peak;      /* 0: no such units */
    char hint[8];          /* decode attention asks for rows ahead: "T0" (into L1), "T1" (into L2) or "none" */
    uint32_t ahead;        /* so many positions ahead */
    uint32_t tile;         /* positions per tile of attention */
    char arithmetic[8];    /* of decode attention: "f32" */
    char prompt_arithmetic[8]; /* of a prompt's attention to whole pages of halves: "int16" where the units are fast at it, else "f32" */
    bool cached;           /* read from the cache file, not measured now */
} spw_machine;

/* n_threads 0: all cores.  Measures in some tens of milliseconds what the cache file does not know (SPILLWAY_CACHE=off: never read or written). */
spw_status spw_bench_machine(spw_machine *out, int n_threads, spw_err *err);

typedef struct spw_bench_record {
    const char *kernel; /* attn_decode, attn_prefill, attn_peaked, digest_score, top_k, index_scan, choose, matvec, matmul, fork_join */
    const char *type;   /* f16, q8 (rows of the KV store), 1 bit, 3 bit (planes of the index), or the weight type */
    uint32_t g, head_dim; /* query heads per KV head; 0 where there are none */
    uint32_t block;     /* positions per block; 0: dense, 1: single positions */
    uint32_t n;         /* top_k: scores; choose: positions that were scanned, of which a fifth has votes; 0 elsewhere */
    int threads;
    bool is_ops;        /* rate counts operations, not bytes */
    double rate;
    /* Each 0 where it does not apply. */
    double raw_gbps;    /* merely reading the same addresses in the same order, GB/s */
    double l2_gbps;     /* the kernel with its data in L2, GB/s of rows; measured with every sample like raw_gbps, and where there is none (attn_prefill, attn_peaked) the best of some runs */
    double l2_peak;     /* the share of the arithmetic peak that it reaches there at best */
    double roof;        /* in the unit of rate */
    double share;       /* of the roof */
    double us;          /* fork_join, top_k, choose: microseconds */
    int n_clean, n_samples; /* samples that counted, of all taken; few of many: a busy machine */
} spw_bench_record;

/* Called for each record as soon as it is measured; false ends the run. */
typedef bool spw_bench_fn(void *ctx, const spw_bench_record *r);

typedef struct spw_bench_params {
    int n_threads;   /* everything is measured with one thread, and with these; 0: all cores */
    int n_samples;   /* clean samples per record; default 7 */
    uint64_t bytes;  /* of memory to read from, at least 64 MiB; default 1.5 GiB.  Results mean something only when it is many times the caches */
} spw_bench_params;
spw_bench_params spw_bench_default_params(void);

/* Measures every kernel; some two minutes. */
spw_status spw_bench_kernels(const spw_bench_params *params, spw_bench_fn *report, void *ctx, spw_err *err);

#ifdef __cplusplus
}
#endif
#endif
