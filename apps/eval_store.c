/* eval_store.c - results of finished samples, in memory and in a file that a later run goes on from. */
#include "eval_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "report.h"
#include "text_input.h"

/* Seventeen digits: a number that comes back from the file is the number that was written. */
#define LINE_FLAGS (JSON_COMPACT | JSON_REAL_PRECISION(17))

static bool complain(const eval_store *s, const char *what)
{
    report_error(command_eval.name, "--resume: %s: %s", s->path, what);
    return false;
}

static void keep(eval_store *s, const char *policy, const char *unit, json_t *result)
{
    text key = {0};
    text_append(&key, policy, strlen(policy));
    text_append(&key, " ", 1);
    text_append(&key, unit, strlen(unit));
    json_object_set_new(s->results, key.data, result);
    text_free(&key);
}

static bool write_line(eval_store *s, const json_t *v)
{
    char *line = json_dumps(v, LINE_FLAGS);
    errno = 0;
    bool ok = line && fputs(line, s->file) >= 0 && fputc('\n', s->file) != EOF && fflush(s->file) == 0;
    free(line);
    return ok || complain(s, errno ? strerror(errno) : "out of memory");
}

/* Whether the file's first line says what this run's would. */
static bool check_header(const eval_store *s, const json_t *found, json_t *wanted)
{
    const char *key;
    json_t *v;
    if (!json_is_object(found) || !json_object_get(found, "spillway_eval")) return complain(s, "expected results of spillway eval, found another file");
    json_object_foreach(wanted, key, v) {
        const json_t *other = json_object_get(found, key);
        if (other && json_equal(v, other)) continue;
        char *a = json_dumps(other, JSON_ENCODE_ANY), *b = json_dumps(v, JSON_ENCODE_ANY);
        report_error(command_eval.name, "--resume: %s: its results were made with %s %s, this run has %s", s->path, key, a ? a : "missing", b ? b : "?");
        free(a);
        free(b);
        return false;
    }
    return true;
}

static bool keep_line(eval_store *s, const json_t *line)
{
    const char *policy = json_string_value(json_object_get(line, "policy")), *unit = json_string_value(json_object_get(line, "unit"));
    json_t *result = json_object_get(line, "result");
    if (!policy || !unit || !json_is_object(result)) return false;
    keep(s, policy, unit, json_incref(result));
    s->n_resumed++;
    return true;
}

/* Takes over what the file holds; *whole is how many of its bytes are complete lines. */
static bool read_lines(eval_store *s, const text *all, json_t *header, size_t *whole)
{
    size_t n = 0;
    *whole = 0;
    for (char *line = all->data, *end; (end = memchr(line, '\n', all->len - *whole)); line = end + 1, n++) {
        json_t *v = json_loadb(line, (size_t)(end - line), 0, NULL);
        bool ok = n == 0 ? check_header(s, v, header) : keep_line(s, v);
        json_decref(v);
        if (!ok && n > 0) report_error(command_eval.name, "--resume: %s: line %zu is no result", s->path, n + 1);
        if (!ok) return false;
        *whole += (size_t)(end - line) + 1;
    }
    return n > 0 || all->len == 0 || complain(s, "expected results of spillway eval, found another file");
}

bool store_open(eval_store *s, const char *path, json_t *header)
{
    char why[600];
    text all = {0};
    size_t whole = 0;
    *s = (eval_store){.results = json_object(), .path = path};
    json_object_set_new(header, "spillway_eval", json_integer(1));
    bool ok = true;
    if (path) {
        s->file = fopen(path, "a");
        ok = s->file ? true : complain(s, strerror(errno));
        if (ok && !text_read(&all, path, why, sizeof why)) {
            report_error(command_eval.name, "--resume: %s", why);
            ok = false;
        }
        ok = ok && read_lines(s, &all, header, &whole);
        if (ok && whole < all.len && ftruncate(fileno(s->file), (off_t)whole) != 0) ok = complain(s, strerror(errno));
        if (ok && whole == 0) ok = write_line(s, header);
    }
    text_free(&all);
    json_decref(header);
    return ok;
}

json_t *store_find(const eval_store *s, const char *policy, const char *unit)
{
    char key[256];
    snprintf(key, sizeof key, "%s %s", policy, unit);
    return json_object_get(s->results, key);
}

bool store_add(eval_store *s, const char *policy, const char *unit, json_t *result)
{
    bool ok = true;
    if (s->file) {
        json_t *line = json_object();
        json_object_set_new(line, "policy", json_string(policy));
        json_object_set_new(line, "unit", json_string(unit));
        json_object_set(line, "result", result);
        ok = write_line(s, line);
        json_decref(line);
    }
    keep(s, policy, unit, result);
    return ok;
}

void store_close(eval_store *s)
{
    if (s->file) fclose(s->file);
    json_decref(s->results);
    *s = (eval_store){0};
}
