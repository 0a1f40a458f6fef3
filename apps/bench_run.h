/* bench_run.h - one model, one session, and the clock: brings the context to a depth and measures tests there. */
#ifndef SPW_APP_BENCH_RUN_H
#define SPW_APP_BENCH_RUN_H

#include "loading.h"
#include "options.h"
#include "progress.h"

/* Reads n_prompt tokens, then generates n_gen, n_depth positions being there before. */
typedef struct bench_test {
    uint64_t n_prompt, n_gen, n_depth;
} bench_test;

typedef struct bench_run {
    const options *flags; /* threads, batch and kv_type are those of this run */
    loaded model;
    spw_session *session;
    bool filled; /* positions of the present depth were made up */
    progress *bar; /* drawn between the times, tokens_done of it; NULL: none */
    size_t tokens_done;
} bench_run;

/* One time taken. */
typedef struct bench_time {
    double prompt_ns, gen_ns;
    uint64_t hash; /* over the logits of the last prompt token and of every generated one */
} bench_time;

typedef struct bench_result {
    bench_test test;
    bool filled;
    size_t n;           /* samples */
    double *samples_ns; /* owned */
    double avg_ns, stddev_ns, avg_ts, stddev_ts; /* ts: tokens per second */
    double share_read;  /* of the bytes between sink and window, by generated tokens; 1 where there are none */
    uint64_t hash;      /* of a sample; all samples agree */
} bench_result;

/* Loads the model for contexts of n_ctx positions (0: the trained one).  warn: prints the warnings that loading gave.  False after a complaint. */
bool bench_open(bench_run *b, const options *flags, uint64_t n_ctx, bool warn);
void bench_close(bench_run *b);
/* Makes the context exactly depth positions long, read or filled as the flags say, forgetting or adding at its end. */
bool bench_go_to(bench_run *b, uint64_t depth);
/* Reads and generates once from the present depth; the context is longer afterwards. */
bool bench_take_time(bench_run *b, uint64_t n_prompt, uint64_t n_gen, bench_time *out);
/* Goes to the test's depth, warms up, and measures; leaves the context at that depth. */
bool bench_measure(bench_run *b, const bench_test *t, bench_result *out);
/* The unmeasured run before a measurement; the context is as before. */
bool bench_warm_up(bench_run *b, uint64_t n_prompt, uint64_t n_gen);
void bench_result_free(bench_result *r);
/* Share of the middle's bytes that was read between two looks at the session. */
double bench_share_read(const spw_session_stats *before, const spw_session_stats *after);

/* "pp512+tg128 @ d4096"; out holds 80 bytes; returns out. */
const char *bench_test_name(const bench_test *t, char *out);

#endif
