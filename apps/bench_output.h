/* bench_output.h - the results of bench as Markdown, CSV, JSON or JSON lines.  Lines are written as they come; a JSON array at the end. */
#ifndef SPW_APP_BENCH_OUTPUT_H
#define SPW_APP_BENCH_OUTPUT_H

#include "bench_run.h"
#include "report.h"

typedef enum bench_format { BENCH_MD, BENCH_CSV, BENCH_JSON, BENCH_JSONL } bench_format;

typedef struct bench_output {
    const options *flags; /* as given: which columns a table has */
    bench_format format;
    bool begun;    /* the head of the table has been written */
    json_t *list;  /* BENCH_JSON: the records so far */
    bool filled;   /* some depth was made up */
    uint64_t hash; /* over the hashes of all results */
} bench_output;

/* One step of a sweep. */
typedef struct bench_step {
    uint64_t n_prompt, n_gen, n_kv;
    double prompt_ns, gen_ns;
    bool filled;
    double share_read;
    uint64_t hash;
} bench_step;

void bench_output_begin(bench_output *out, const options *flags);
/* False when standard output cannot be written, after a complaint. */
bool bench_output_result(bench_output *out, const bench_run *b, const bench_result *r);
bool bench_output_step(bench_output *out, const bench_run *b, const bench_step *s);
/* Writes what is still to be written, the logits hash last: behind a table, else on standard error.  Returns an exit code. */
int bench_output_end(bench_output *out);
/* Forgets what has not been written. */
void bench_output_drop(bench_output *out);

#endif
