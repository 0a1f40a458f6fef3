/* bench_output.c - the results of bench as Markdown, CSV, JSON or JSON lines.
 *
 * Names and order of the fields are those of llama-bench and of llama-sweep-bench, so that what reads their output reads ours; fields of our own follow at the end.
 * Fields for things that do not exist here hold the values that say so. */
#include "bench_output.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "commands.h"
#include "text_input.h"

static const char *const kv_type_names[] = {[SPW_KV_F16] = "f16", [SPW_KV_F32] = "f32", [SPW_KV_Q8] = "q8_0"};

void bench_output_begin(bench_output *out, const options *flags)
{
    static const char *const names[] = {[BENCH_MD] = "md", [BENCH_CSV] = "csv", [BENCH_JSON] = "json", [BENCH_JSONL] = "jsonl"};
    *out = (bench_output){.flags = flags, .format = flags->json ? BENCH_JSON : BENCH_MD};
    for (int i = 0; i < 4 && !flags->json; i++)
        if (strcmp(flags->output, names[i]) == 0) out->format = (bench_format)i;
}

/* ------------------------------------------------------------------------------------- what is measured ---- */

/* The processor's name, or "". */
static void name_cpu(char *name, size_t cap)
{
    char line[300];
    FILE *f = fopen("/proc/cpuinfo", "r");
    *name = '\0';
    while (f && !*name && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, "model name", 10) != 0) continue;
        snprintf(name, cap, "%.*s", (int)strcspn(colon + 1 + strspn(colon + 1, " "), "\n"), colon + 1 + strspn(colon + 1, " "));
    }
    if (f) fclose(f);
}

/* The name of a file's mixture of weight types by its number in the file, or the type that holds most of its bytes. */
static void name_weights(const spw_file *f, char *name, size_t cap)
{
    static const struct {
        const char *number, *name;
    } mixtures[] = {
        {"0", "all F32"}, {"1", "F16"}, {"2", "Q4_0"}, {"3", "Q4_1"}, {"7", "Q8_0"}, {"8", "Q5_0"}, {"9", "Q5_1"}, {"10", "Q2_K - Medium"}, {"11", "Q3_K - Small"},
        {"12", "Q3_K - Medium"}, {"13", "Q3_K - Large"}, {"14", "Q4_K - Small"}, {"15", "Q4_K - Medium"}, {"16", "Q5_K - Small"}, {"17", "Q5_K - Medium"},
        {"18", "Q6_K"}, {"25", "IQ4_NL - 4.5 bpw"}, {"30", "IQ4_XS - 4.25 bpw"}, {"32", "BF16"},
    };
    char value[32];
    for (size_t i = 0; i < spw_file_n_keys(f); i++) {
        if (strcmp(spw_file_key_at(f, i).name, "general.file_type") != 0) continue;
        spw_file_key_text(f, i, value, sizeof value);
        for (size_t m = 0; m < sizeof mixtures / sizeof *mixtures; m++) {
            if (strcmp(value, mixtures[m].number) != 0) continue;
            snprintf(name, cap, "%s", mixtures[m].name);
            return;
        }
    }
    uint64_t most = 0;
    snprintf(name, cap, "?");
    for (size_t i = 0; i < spw_file_n_tensors(f); i++) {
        uint64_t sum = 0;
        const char *type = spw_file_tensor_at(f, i).type;
        for (size_t j = 0; j < spw_file_n_tensors(f); j++)
            if (strcmp(spw_file_tensor_at(f, j).type, type) == 0) sum += spw_file_tensor_at(f, j).bytes;
        if (sum > most) most = sum, snprintf(name, cap, "%s", type);
    }
}

/* "llama 135M Q4_1". */
static void name_model(const bench_run *b, char *name, size_t cap)
{
    const spw_model_info *info = b->model.info;
    spw_file *f = NULL;
    char weights[64] = "?", size[24];
    double millions = (double)info->n_params / 1e6;
    if (spw_file_open(&f, b->flags->model, NULL) == SPW_OK) name_weights(f, weights, sizeof weights);
    spw_file_close(f);
    if (millions < 1000) snprintf(size, sizeof size, millions < 9.95 ? "%.1fM" : "%.0fM", millions);
    else snprintf(size, sizeof size, "%.1fB", millions / 1000);
    snprintf(name, cap, "%s %s %s", info->architecture, size, weights);
}

/* ---------------------------------------------------------------------------------------------- records ---- */

static json_t *words(const char *s)
{
    return report_text(s, strlen(s));
}

static void put(json_t *o, const char *key, json_t *v)
{
    json_object_set_new(o, key, v);
}

static json_t *hash_text(uint64_t hash)
{
    char hex[17];
    snprintf(hex, sizeof hex, "%016" PRIx64, hash);
    return json_string(hex);
}

/* Our own fields, behind those of llama-bench. */
static void put_own(json_t *o, const bench_run *b, bool filled, double share_read, uint64_t hash)
{
    spw_load_stats load = spw_engine_load_stats(b->model.engine);
    put(o, "isa", json_string(spw_engine_isa(b->model.engine)));
    put(o, "kv_policy", json_string(b->flags->kv_policy));
    put(o, "filled", json_boolean(filled));
    put(o, "share_read", report_real(share_read));
    put(o, "repack_bytes", report_count(load.repack_bytes));
    put(o, "repack_ms", report_real(1e3 * load.repack_seconds));
    put(o, "logits_hash", hash_text(hash));
}

static void put_setup(json_t *o, const bench_run *b)
{
    char cpu[200], model[200];
    const char *type = kv_type_names[b->flags->kv_type];
    name_cpu(cpu, sizeof cpu);
    name_model(b, model, sizeof model);
    put(o, "build_commit", json_string(spw_version()));
    put(o, "build_number", json_integer(0));
    put(o, "cpu_info", words(cpu));
    put(o, "gpu_info", json_string(""));
    put(o, "backends", json_string("CPU"));
    put(o, "model_filename", words(b->flags->model));
    put(o, "model_type", words(model));
    put(o, "model_size", report_count(b->model.info->weight_bytes));
    put(o, "model_n_params", report_count(b->model.info->n_params));
    put(o, "n_batch", json_integer(spw_engine_n_batch(b->model.engine)));
    put(o, "n_ubatch", json_integer(spw_engine_n_batch(b->model.engine)));
    put(o, "n_threads", json_integer(spw_engine_n_threads(b->model.engine)));
    put(o, "cpu_mask", json_string("0x0"));
    put(o, "cpu_strict", json_false());
    put(o, "poll", json_integer(0));
    put(o, "type_k", json_string(type));
    put(o, "type_v", json_string(type));
    put(o, "n_gpu_layers", json_integer(0));
    put(o, "n_cpu_moe", json_integer(0));
    put(o, "split_mode", json_string("none"));
    put(o, "main_gpu", json_integer(0));
    put(o, "no_kv_offload", json_false());
    put(o, "flash_attn", json_true());
    put(o, "devices", json_string("auto"));
    put(o, "tensor_split", json_string("0.00"));
    put(o, "tensor_buft_overrides", json_string("none"));
    put(o, "use_mmap", json_true());
    put(o, "use_direct_io", json_false());
    put(o, "embeddings", json_false());
    put(o, "no_op_offload", json_integer(0));
    put(o, "no_host", json_false());
}

static json_t *result_record(const bench_run *b, const bench_result *r, bool samples)
{
    json_t *o = json_object(), *ns = json_array(), *ts = json_array();
    char when[40];
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    put_setup(o, b);
    put(o, "n_prompt", report_count(r->test.n_prompt));
    put(o, "n_gen", report_count(r->test.n_gen));
    put(o, "n_depth", report_count(r->test.n_depth));
    put(o, "test_time", json_string(when));
    put(o, "avg_ns", json_integer(llround(r->avg_ns)));
    put(o, "stddev_ns", json_integer(llround(r->stddev_ns)));
    put(o, "avg_ts", report_real(r->avg_ts));
    put(o, "stddev_ts", report_real(r->stddev_ts));
    for (size_t i = 0; i < r->n; i++) {
        json_array_append_new(ns, json_integer(llround(r->samples_ns[i])));
        json_array_append_new(ts, report_real(1e9 * (double)(r->test.n_prompt + r->test.n_gen) / fmax(r->samples_ns[i], 1)));
    }
    if (samples) put(o, "samples_ns", json_incref(ns)), put(o, "samples_ts", json_incref(ts));
    json_decref(ns);
    json_decref(ts);
    put_own(o, b, r->filled, r->share_read, r->hash);
    return o;
}

static double rate(uint64_t n, double ns)
{
    return 1e9 * (double)n / fmax(ns, 1);
}

static json_t *step_record(const bench_run *b, const bench_step *s)
{
    json_t *o = json_object();
    const char *type = kv_type_names[b->flags->kv_type];
    put(o, "n_kv_max", report_count(b->model.n_ctx));
    put(o, "n_batch", json_integer(spw_engine_n_batch(b->model.engine)));
    put(o, "n_ubatch", json_integer(spw_engine_n_batch(b->model.engine)));
    put(o, "flash_attn", json_integer(1));
    put(o, "n_gpu_layers", json_integer(0));
    put(o, "n_threads", json_integer(spw_engine_n_threads(b->model.engine)));
    put(o, "n_threads_batch", json_integer(spw_engine_n_threads(b->model.engine)));
    put(o, "pp", report_count(s->n_prompt));
    put(o, "tg", report_count(s->n_gen));
    put(o, "n_kv", report_count(s->n_kv));
    put(o, "t_pp", report_real(1e-9 * s->prompt_ns));
    put(o, "speed_pp", report_real(rate(s->n_prompt, s->prompt_ns)));
    put(o, "t_tg", report_real(1e-9 * s->gen_ns));
    put(o, "speed_tg", report_real(rate(s->n_gen, s->gen_ns)));
    put(o, "model_filename", words(b->flags->model));
    put(o, "type_k", json_string(type));
    put(o, "type_v", json_string(type));
    put_own(o, b, s->filled, s->share_read, s->hash);
    return o;
}

/* ------------------------------------------------------------------------------------------------ files ---- */

/* Every value in quotation marks, as llama-bench has it. */
static void print_csv_value(const char *s)
{
    putchar('"');
    for (; *s; s++) printf(*s == '"' ? "\"\"" : "%c", *s);
    putchar('"');
}

static void print_csv(bench_output *out, json_t *record)
{
    const char *key, *comma = "";
    json_t *v;
    if (!out->begun) {
        json_object_foreach(record, key, v) {
            printf("%s%s", comma, key);
            comma = ",";
        }
        putchar('\n');
    }
    comma = "";
    json_object_foreach(record, key, v) {
        char *dump = json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(10));
        fputs(comma, stdout);
        print_csv_value(dump ? dump : json_string_value(v));
        free(dump);
        comma = ",";
    }
    putchar('\n');
}

/* Writes or keeps record, and frees it. */
static bool write_record(bench_output *out, json_t *record)
{
    if (out->format == BENCH_JSON) {
        if (!out->list) out->list = json_array();
        return json_array_append_new(out->list, record) == 0;
    }
    if (out->format == BENCH_JSONL) return report_json(command_bench.name, record, 0) == EXIT_OK;
    print_csv(out, record);
    json_decref(record);
    return report_finish(command_bench.name) == EXIT_OK;
}

/* --------------------------------------------------------------------------------------------- the table ---- */

typedef struct column {
    const char *name;
    int width;
    bool left;
    char value[200];
} column;

/* Characters of UTF-8 text. */
static int width_of(const char *s)
{
    int n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void print_cell(const column *c, const char *content)
{
    int pad = c->width > width_of(content) ? c->width - width_of(content) : 0;
    printf("| %*s", c->left ? 0 : pad, "");
    report_print_safe(stdout, content, strlen(content));
    printf("%*s ", c->left ? pad : 0, "");
}

static void print_row(bench_output *out, const column *columns, size_t n)
{
    for (size_t i = 0; i < n && !out->begun; i++) print_cell(&columns[i], columns[i].name);
    if (!out->begun) printf("|\n");
    for (size_t i = 0; i < n && !out->begun; i++) {
        printf("| ");
        for (int d = 0; d < columns[i].width - !columns[i].left; d++) putchar('-');
        printf(columns[i].left ? " " : ": ");
    }
    if (!out->begun) printf("|\n");
    for (size_t i = 0; i < n; i++) print_cell(&columns[i], columns[i].value);
    printf("|\n");
}

static void format_units(double v, double step, const char *const units[2], char *out, size_t cap)
{
    if (v >= step * step * step) snprintf(out, cap, "%.2f %s", v / (step * step * step), units[1]);
    else snprintf(out, cap, "%.2f %s", v / (step * step), units[0]);
}

/* One row of the table, as it is put together. */
typedef struct row {
    column columns[12];
    size_t n;
} row;

__attribute__((format(printf, 5, 6))) static void add_column(row *r, const char *name, int width, bool left, const char *format, ...)
{
    column *c = &r->columns[r->n++];
    va_list args;
    *c = (column){.name = name, .width = width, .left = left};
    va_start(args, format);
    vsnprintf(c->value, sizeof c->value, format, args);
    va_end(args);
}

static bool print_result(bench_output *out, const bench_run *b, const bench_result *r)
{
    static const char *const bytes[] = {"MiB", "GiB"}, *const counts[] = {"M", "B"};
    const options *f = out->flags;
    const char *type = kv_type_names[b->flags->kv_type];
    char model[200], size[40], params[40], test[80];
    row cells = {.n = 0};
    name_model(b, model, sizeof model);
    format_units((double)b->model.info->weight_bytes, 1024, bytes, size, sizeof size);
    format_units((double)b->model.info->n_params, 1000, counts, params, sizeof params);
    add_column(&cells, "model", 30, true, "%s", model);
    add_column(&cells, "size", 10, false, "%s", size);
    add_column(&cells, "params", 10, false, "%s", params);
    add_column(&cells, "backend", 10, true, "CPU");
    add_column(&cells, "threads", 7, false, "%d", spw_engine_n_threads(b->model.engine));
    if (f->n_batch.n) add_column(&cells, "n_batch", 7, false, "%d", spw_engine_n_batch(b->model.engine));
    if (f->type_k.n) add_column(&cells, "type_k", 6, false, "%s", type);
    if (f->type_v.n) add_column(&cells, "type_v", 6, false, "%s", type);
    if (strcmp(f->kv_policy, "full") != 0) add_column(&cells, "kv_policy", 9, true, "%s", f->kv_policy);
    if (f->fill) add_column(&cells, "filled", 6, true, r->filled ? "yes" : "no");
    add_column(&cells, "test", 15, false, "%s", bench_test_name(&r->test, test));
    add_column(&cells, "t/s", 20, false, "%.2f \u00b1 %.2f", r->avg_ts, r->stddev_ts);
    print_row(out, cells.columns, cells.n);
    return report_finish(command_bench.name) == EXIT_OK;
}

static bool print_step(bench_output *out, const bench_step *s)
{
    if (!out->begun) {
        printf("|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |\n");
        printf("|-------|--------|--------|----------|----------|----------|----------|\n");
    }
    printf("| %5" PRIu64 " | %6" PRIu64 " | %6" PRIu64 " | %8.3f | %8.2f | %8.3f | %8.2f |\n", s->n_prompt, s->n_gen, s->n_kv, 1e-9 * s->prompt_ns,
           rate(s->n_prompt, s->prompt_ns), 1e-9 * s->gen_ns, rate(s->n_gen, s->gen_ns));
    return report_finish(command_bench.name) == EXIT_OK;
}

bool bench_output_result(bench_output *out, const bench_run *b, const bench_result *r)
{
    bool ok = out->format == BENCH_MD ? print_result(out, b, r) : write_record(out, result_record(b, r, out->format != BENCH_CSV));
    out->hash = spw_hash(out->hash, &r->hash, sizeof r->hash);
    out->filled |= r->filled;
    out->begun = true;
    return ok;
}

bool bench_output_step(bench_output *out, const bench_run *b, const bench_step *s)
{
    bool ok = out->format == BENCH_MD ? print_step(out, s) : write_record(out, step_record(b, s));
    out->hash = spw_hash(out->hash, &s->hash, sizeof s->hash);
    out->filled |= s->filled;
    out->begun = true;
    return ok;
}

int bench_output_end(bench_output *out)
{
    FILE *f = out->format == BENCH_MD ? stdout : stderr;
    int code = EXIT_OK;
    if (out->format == BENCH_JSON) code = report_json(command_bench.name, out->list, JSON_INDENT(2));
    out->list = NULL;
    if (code != EXIT_OK) return code;
    if (f == stdout) putchar('\n');
    if (f == stdout && out->filled) printf("filled: K and V up to the depth were made up (--fill), not read\n");
    fprintf(f, "logits_hash: %016" PRIx64 "\n", out->hash);
    return report_finish(command_bench.name);
}

void bench_output_drop(bench_output *out)
{
    json_decref(out->list);
    out->list = NULL;
}
