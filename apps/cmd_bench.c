/* cmd_bench.c - spillway bench: llama-bench's tests and tables, at depths that are read or filled, and the context sweep.
 *
 * Loading a model is slow and deep contexts are slower, so everything that needs another engine is an outer loop, and depths follow each other in one
 * session. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_kernels.h"
#include "bench_output.h"
#include "commands.h"
#include "report.h"
#include "text_input.h"

enum { DEFAULT_PROMPT = 512, DEFAULT_GEN = 128, DEFAULT_BATCH = 512 };

/* The tests at one depth, and what the engines are to be. */
typedef struct bench_plan {
    const options *flags;
    word_list models;
    number_list n_threads, n_batch, types, n_depth; /* none empty */
    bench_test tests[3 * LIST_MAX];
    size_t n_tests;
    text names; /* owns what models points into */
} bench_plan;

static number_list or_default(number_list list, int64_t v)
{
    if (!list.n) list.v[list.n++] = v;
    return list;
}

/* Every -m names a file, or several separated by commas. */
static bool split_models(bench_plan *p)
{
    const word_list *given = &p->flags->models;
    size_t at = 0;
    for (size_t i = 0; i < given->n; i++) text_append(&p->names, given->v[i], strlen(given->v[i]) + 1);
    for (size_t i = 0; i < given->n; i++) {
        char *name = p->names.data + at, *next;
        at += strlen(name) + 1;
        bool whole = access(name, F_OK) == 0;
        for (; name; name = next) {
            next = whole ? NULL : strchr(name, ',');
            if (next) *next++ = '\0';
            if (p->models.n == LIST_MAX) {
                report_error(command_bench.name, "-m: expected at most %d models, found more", LIST_MAX);
                return false;
            }
            p->models.v[p->models.n++] = name;
        }
    }
    return true;
}

static bool check_types(bench_plan *p)
{
    number_list k = or_default(p->flags->type_k, SPW_KV_F16), v = or_default(p->flags->type_v, SPW_KV_F16);
    p->types = k;
    if (k.n == v.n && memcmp(k.v, v.v, k.n * sizeof *k.v) == 0) return true;
    report_error(command_bench.name, "-ctk and -ctv: expected the same types for keys and values, found different ones");
    return false;
}

static void add_test(bench_plan *p, int64_t n_prompt, int64_t n_gen)
{
    if (n_prompt || n_gen) p->tests[p->n_tests++] = (bench_test){.n_prompt = (uint64_t)n_prompt, .n_gen = (uint64_t)n_gen};
}

static bool plan_tests(bench_plan *p)
{
    const options *o = p->flags;
    number_list n_prompt = or_default(o->n_prompt, DEFAULT_PROMPT), n_gen = or_default(o->n_gen, DEFAULT_GEN);
    if (o->pairs.n % 2) {
        report_error(command_bench.name, "-pg: expected pairs P,G, found %zu numbers", o->pairs.n);
        return false;
    }
    for (size_t i = 0; i < n_prompt.n; i++) add_test(p, n_prompt.v[i], 0);
    for (size_t i = 0; i < n_gen.n; i++) add_test(p, 0, n_gen.v[i]);
    for (size_t i = 0; i + 1 < o->pairs.n; i += 2) add_test(p, o->pairs.v[i], o->pairs.v[i + 1]);
    if (p->n_tests) return true;
    report_error(command_bench.name, "no test is left: -p, -n and -pg ask for no tokens");
    return false;
}

/* What a sweep needs one of must not be a list. */
static bool check_sweep(const bench_plan *p)
{
    const options *o = p->flags;
    const struct {
        const char *name;
        size_t n, most;
        bool positive;
    } rules[] = {
        {"-m", p->models.n, 1, true},  {"-p", o->n_prompt.n, 1, !o->n_prompt.n || o->n_prompt.v[0]}, {"-n", o->n_gen.n, 1, !o->n_gen.n || o->n_gen.v[0]},
        {"-pg", o->pairs.n, 0, true},  {"-d", o->n_depth.n, 0, true},                                 {"-t", o->n_threads.n, 1, true},
        {"-b", o->n_batch.n, 1, true}, {"-ctk", o->type_k.n, 1, true},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (rules[i].n > rules[i].most) {
            report_error(command_bench.name, "%s: %s", rules[i].name, rules[i].most ? "a sweep takes one value, found several" : "a sweep takes none: it has its own depths");
            return false;
        }
        if (!rules[i].positive) {
            report_error(command_bench.name, "%s: a sweep needs at least 1 token, found 0", rules[i].name);
            return false;
        }
    }
    return true;
}

static bool plan_bench(bench_plan *p, const options *o)
{
    *p = (bench_plan){.flags = o};
    p->n_threads = or_default(o->n_threads, 0);
    p->n_batch = or_default(o->n_batch, DEFAULT_BATCH);
    p->n_depth = or_default(o->n_depth, 0);
    return split_models(p) && check_types(p) && (o->sweep ? check_sweep(p) : plan_tests(p));
}

/* The flags of engine number i, counted through all lists; false past the last. */
static bool engine_flags(const bench_plan *p, size_t i, options *out)
{
    *out = *p->flags;
    out->threads = p->n_threads.v[i % p->n_threads.n], i /= p->n_threads.n;
    out->kv_type = (spw_kv_type)p->types.v[i % p->types.n], i /= p->types.n;
    out->batch = p->n_batch.v[i % p->n_batch.n], i /= p->n_batch.n;
    if (i >= p->models.n) return false;
    out->model = p->models.v[i];
    return true;
}

static uint64_t longest_context(const bench_plan *p)
{
    uint64_t most = 0, depth = 0;
    for (size_t i = 0; i < p->n_tests; i++) {
        uint64_t n = p->tests[i].n_prompt + p->tests[i].n_gen;
        if (n > most) most = n;
    }
    for (size_t i = 0; i < p->n_depth.n; i++)
        if ((uint64_t)p->n_depth.v[i] > depth) depth = (uint64_t)p->n_depth.v[i];
    return depth + most;
}

/* All tests at all depths on one engine. */
static bool run_tests(const bench_plan *p, bench_run *b, bench_output *out)
{
    for (size_t d = 0; d < p->n_depth.n; d++) {
        for (size_t i = 0; i < p->n_tests; i++) {
            bench_test t = p->tests[i];
            bench_result r;
            t.n_depth = (uint64_t)p->n_depth.v[d];
            bool ok = bench_measure(b, &t, &r) && bench_output_result(out, b, &r);
            bench_result_free(&r);
            if (!ok) return false;
        }
    }
    return true;
}

/* Generating and reading at every depth; what is read there stays when it leads to the next depth. */
static bool run_sweep(const bench_plan *p, bench_run *b, bench_output *out)
{
    uint64_t n_prompt = (uint64_t)or_default(p->flags->n_prompt, DEFAULT_PROMPT).v[0], n_gen = (uint64_t)or_default(p->flags->n_gen, DEFAULT_GEN).v[0];
    uint64_t step = p->flags->sweep_step ? (uint64_t)p->flags->sweep_step : n_prompt, needed = n_prompt > n_gen ? n_prompt : n_gen;
    if (needed > b->model.n_ctx) {
        report_error(command_bench.name, "-c: a sweep of %" PRIu64 " tokens at a time needs at least as many positions, found %" PRIu64, needed, b->model.n_ctx);
        return false;
    }
    for (uint64_t depth = 0; depth + needed <= b->model.n_ctx; depth += step) {
        bench_step s = {.n_prompt = n_prompt, .n_gen = n_gen, .n_kv = depth};
        bench_time gen, prompt;
        if (!bench_go_to(b, depth) || (depth == 0 && !bench_warm_up(b, n_prompt, n_gen))) return false;
        s.filled = b->filled;
        spw_session_stats before = spw_session_get_stats(b->session), after;
        if (!bench_take_time(b, 0, n_gen, &gen)) return false;
        after = spw_session_get_stats(b->session);
        if (!bench_go_to(b, depth) || !bench_take_time(b, n_prompt, 0, &prompt)) return false;
        s.gen_ns = gen.gen_ns;
        s.prompt_ns = prompt.prompt_ns;
        s.share_read = bench_share_read(&before, &after);
        s.hash = spw_hash(gen.hash, &prompt.hash, sizeof prompt.hash);
        if (!bench_output_step(out, b, &s)) return false;
    }
    return true;
}

static int run_plan(const bench_plan *p)
{
    options flags;
    bench_output out;
    const char *warned = NULL; /* the model whose warnings have been printed */
    bool ok = true;
    bench_output_begin(&out, p->flags);
    for (size_t i = 0; ok && engine_flags(p, i, &flags); i++) {
        bench_run b = {0};
        ok = bench_open(&b, &flags, p->flags->sweep ? (uint64_t)p->flags->ctx : longest_context(p), flags.model != warned);
        warned = flags.model;
        if (ok) ok = p->flags->sweep ? run_sweep(p, &b, &out) : run_tests(p, &b, &out);
        bench_close(&b);
    }
    int code = ok ? bench_output_end(&out) : EXIT_FAILED;
    bench_output_drop(&out);
    return code;
}

/* The modes without a model take one number of threads and two formats. */
static int run_without_model(const options *o)
{
    options flags = *o;
    bool is_json = o->json || strcmp(o->output, "json") == 0;
    if ((o->kernels && o->machine) || o->sweep || o->models.n) {
        report_error(command_bench.name, "--%s: stands alone, found %s too", o->kernels ? "kernels" : "machine",
                     o->kernels && o->machine ? "--machine" : o->sweep ? "--sweep" : "-m");
        return EXIT_USAGE;
    }
    if (o->n_threads.n > 1 || (!is_json && strcmp(o->output, "md") != 0)) {
        report_error(command_bench.name, "--%s: expected one number of threads and -o md or json", o->kernels ? "kernels" : "machine");
        return EXIT_USAGE;
    }
    flags.json = is_json;
    flags.threads = o->n_threads.n ? o->n_threads.v[0] : 0;
    return o->kernels ? bench_kernels_main(&flags) : bench_machine_main(&flags);
}

static int bench_main(const options *o)
{
    if (o->kernels || o->machine) return run_without_model(o);
    bench_plan *p = app_alloc(sizeof *p);
    int code = plan_bench(p, o) ? run_plan(p) : EXIT_USAGE;
    text_free(&p->names);
    free(p);
    return code;
}

const command command_bench = {
    .bit = CMD_BENCH,
    .name = "bench",
    .summary = "measure how fast a model reads and generates, at any depth of context",
    .synopsis = "-m MODEL [-p N,...] [-n N,...] [-pg P,G] [-d N,...] [--fill] [options]\n  spillway bench -m MODEL --sweep [-c N] [options]\n"
                "  spillway bench --kernels | --machine [-t N] [--json]",
    .description = "Runs the tests of llama-bench and prints its tables: pp512 reads 512 tokens, tg128 generates 128, pp512+tg128 does one after the other, and "
                   "'@ d32768' says how many positions were in the context before. Evaluation alone is timed: no tokenizing, no sampling; one unmeasured run comes "
                   "first. The result is tokens per second, mean and standard deviation of the repetitions. Flags that take lists take 512,1024 and ranges "
                   "0-4096+1024 or 1-16*2, and may be given several times.\n\n"
                   "Depth is really read unless --fill is given. The tokens are the same in every run, so the hash of the logits, which ends every run, is too: a "
                   "changed hash is a changed result.\n\n"
                   "With --sweep one context grows from depth 0 to -c, and each line has the number of tokens read and generated at that depth, their times and rates.\n\n"
                   "Formats: md (a table), csv, json (an array) and jsonl (an object a line), with llama-bench's fields in its order and isa, kv_policy, filled, "
                   "share_read, repack_bytes, repack_ms and logits_hash behind them. Progress is shown on a terminal only.",
    .examples = "  spillway bench -m model.gguf\n"
                "  spillway bench -m model.gguf -p 512 -n 32 -d 0,8192,32768 --fill -r 3\n"
                "  spillway bench -m a.gguf,b.gguf -p 0 -n 64 -t 1,2,4 -o json\n"
                "  spillway bench --kernels -t 2 --json\n"
                "  spillway bench -m model.gguf --sweep -c 32768 -p 512 -n 32 --fill --sweep-step 4096\n",
    .main = bench_main,
};
