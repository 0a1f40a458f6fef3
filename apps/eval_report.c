/* eval_report.c - the results of a measure: one JSON object, printed as such, as CSV, or as a table. */
#include "eval_report.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "eval_html.h"
#include "report.h"

enum { CELL = 96, N_COLUMNS_MAX = 20, HASH_PIECES = 64, HASH_PIECE = 1 << 16 };

/* Hash of the file's size and of pieces spread over it: enough to tell models apart without reading gigabytes.  "" where it cannot be read. */
static void hash_file(const char *path, char out[17])
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *out = '\0';
    if (fd < 0 || fstat(fd, &st) != 0) {
        if (fd >= 0) close(fd);
        return;
    }
    uint64_t size = (uint64_t)st.st_size, hash = spw_hash(0, &size, sizeof size);
    char *piece = app_alloc(HASH_PIECE);
    for (uint64_t i = 0; i < HASH_PIECES; i++) {
        ssize_t n = pread(fd, piece, HASH_PIECE, (off_t)(size / HASH_PIECES * i));
        if (n > 0) hash = spw_hash(hash, piece, (size_t)n);
    }
    free(piece);
    close(fd);
    snprintf(out, 17, "%016" PRIx64, hash);
}

json_t *report_dependencies(const options *o, const loaded *l, const char *measure, uint64_t seed)
{
    char hash[17];
    json_t *v = json_object();
    hash_file(o->model, hash);
    json_object_set_new(v, "measure", json_string(measure));
    json_object_set_new(v, "model_hash", json_string(hash));
    json_object_set_new(v, "seed", report_count(seed));
    json_object_set_new(v, "isa", json_string(spw_engine_isa(l->engine)));
    json_object_set_new(v, "repacked", json_boolean(spw_engine_load_stats(l->engine).repack == SPW_REPACK_DONE));
    json_object_set_new(v, "kv_type", json_string(o->cache_k));
    json_object_set_new(v, "kv_sink", json_integer(o->kv_sink));
    json_object_set_new(v, "kv_window", json_integer(o->kv_window));
    json_object_set_new(v, "sparse_min_ctx", json_integer(o->sparse_min_ctx));
    json_object_set_new(v, "kv_budget", o->kv_budget < 0 ? json_null() : json_real(o->kv_budget));
    json_object_set_new(v, "kv_block", json_string(o->kv_block ? o->kv_block : ""));
    json_object_set_new(v, "kv_rule", json_string(options_kv_rule(o)));
    json_object_set_new(v, "kv_rest", json_string(options_kv_rest(o)));
    json_object_set_new(v, "kv_threshold", json_real(o->kv_threshold));
    json_object_set_new(v, "kv_error", json_real(o->kv_error));
    json_object_set_new(v, "kv_beta", json_real(o->kv_beta));
    json_object_set_new(v, "kv_index", json_string(o->kv_index ? o->kv_index : ""));
    json_object_set_new(v, "rope_scaling", json_string(o->rope_scaling ? o->rope_scaling : ""));
    json_object_set_new(v, "rope_scale", json_real(o->rope_scale));
    json_object_set_new(v, "rope_freq_base", json_real(o->rope_freq_base));
    json_object_set_new(v, "yarn_orig_ctx", json_integer(o->yarn_orig_ctx));
    return v;
}

json_t *report_begin(const options *o, const loaded *l, const char *measure, uint64_t seed)
{
    json_t *v = report_dependencies(o, l, measure, seed);
    json_object_set_new(v, "model", report_text(o->model, strlen(o->model)));
    json_object_set_new(v, "threads", json_integer(spw_engine_n_threads(l->engine)));
    return v;
}

/* The text of a value in a cell; for a table null is a dash. */
static void format_cell(char out[CELL], const json_t *v, int digits, bool csv)
{
    if (json_is_string(v)) snprintf(out, CELL, "%s", json_string_value(v));
    else if (json_is_integer(v)) snprintf(out, CELL, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    else if (json_is_real(v) && csv) snprintf(out, CELL, "%.10g", json_real_value(v));
    else if (json_is_real(v)) snprintf(out, CELL, "%.*f", digits, json_real_value(v));
    else snprintf(out, CELL, "%s", csv ? "" : "-");
}

static void print_csv(const json_t *rows, const report_column *columns, size_t n)
{
    char cell[CELL];
    size_t i;
    json_t *row;
    for (size_t c = 0; c < n; c++) printf("%s%s", c ? "," : "", columns[c].key);
    printf("\n");
    json_array_foreach(rows, i, row) {
        for (size_t c = 0; c < n; c++) {
            format_cell(cell, json_object_get(row, columns[c].key), columns[c].digits, true);
            printf("%s%s", c ? "," : "", cell);
        }
        printf("\n");
    }
}

static void print_table(const json_t *rows, const report_column *columns, size_t n)
{
    char cell[CELL];
    int width[N_COLUMNS_MAX];
    size_t i;
    json_t *row;
    for (size_t c = 0; c < n; c++) {
        width[c] = (int)strlen(columns[c].key);
        json_array_foreach(rows, i, row) {
            format_cell(cell, json_object_get(row, columns[c].key), columns[c].digits, false);
            if ((int)strlen(cell) > width[c]) width[c] = (int)strlen(cell);
        }
        bool left = json_is_string(json_object_get(json_array_get(rows, 0), columns[c].key));
        printf("%s%*s", c ? "  " : "", left ? -width[c] : width[c], columns[c].key);
    }
    printf("\n");
    json_array_foreach(rows, i, row) {
        for (size_t c = 0; c < n; c++) {
            const json_t *v = json_object_get(row, columns[c].key);
            format_cell(cell, v, columns[c].digits, false);
            printf("%s%*s", c ? "  " : "", json_is_string(v) ? -width[c] : width[c], cell);
        }
        printf("\n");
    }
}

int report_rows(const options *o, json_t *report, const char *rows, const report_column *columns, size_t n_columns, const char *note)
{
    if (o->html && !html_write(o->html, report, rows, columns, n_columns)) {
        json_decref(report);
        return EXIT_FAILED;
    }
    if (o->json) return report_json(command_eval.name, report, 0);
    const json_t *array = json_object_get(report, rows);
    if (o->csv) print_csv(array, columns, n_columns);
    else print_table(array, columns, n_columns);
    if (note && !o->csv) printf("%s\n", note);
    json_decref(report);
    return report_finish(command_eval.name);
}

int report_interrupted(const loaded *l, size_t done, size_t of, const char *what, int code)
{
    report_warning(l->command, "interrupted: %zu of %zu %s were done", done, of, what);
    return code == EXIT_OK ? EXIT_INTERRUPTED : code;
}

void share_add(share_sums *s, const json_t *result)
{
    s->middle += (uint64_t)json_integer_value(json_object_get(result, "middle"));
    s->read += (uint64_t)json_integer_value(json_object_get(result, "read"));
    s->rows += (uint64_t)json_integer_value(json_object_get(result, "rows"));
}

void share_set(json_t *row, const share_sums *s)
{
    json_object_set_new(row, "share_read", json_real(s->middle ? (double)s->read / (double)s->middle : 1));
    json_object_set_new(row, "share_rows", json_real(s->middle ? (double)s->rows / (double)s->middle : 1));
}
