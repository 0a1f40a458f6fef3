/* report.c - everything that a subcommand says: error lines, standard output that may fail, JSON values, quantities in words. */
#include "report.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "text_input.h"

static void print_line(const char *who, const char *kind, const char *format, va_list args)
{
    char line[1200];
    vsnprintf(line, sizeof line, format, args);
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    fprintf(stderr, "spillway%s%s: %s%s\n", who ? " " : "", who ? who : "", kind, line);
}

void report_error(const char *who, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line(who, "", format, args);
    va_end(args);
}

void report_warning(const char *who, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line(who, "warning: ", format, args);
    va_end(args);
}

void report_file_error(const char *who, const char *path, const spw_err *err)
{
    const char *slash = strrchr(path, '/');
    if (strstr(err->msg, slash ? slash + 1 : path)) report_error(who, "%s", err->msg);
    else report_error(who, "%s: %s", path, err->msg);
}

bool report_write(const char *data, size_t len)
{
    return fwrite(data, 1, len, stdout) == len && fflush(stdout) == 0;
}

void report_output_failed(const char *who)
{
    if (errno != EPIPE) report_error(who, "standard output: %s", strerror(errno));
}

int report_finish(const char *who)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return EXIT_OK;
    if (errno == 0) errno = EIO;
    report_output_failed(who);
    return EXIT_FAILED;
}

int report_json(const char *who, json_t *v, size_t flags)
{
    char *dump = v ? json_dumps(v, flags | JSON_REAL_PRECISION(10)) : NULL;
    json_decref(v);
    if (!dump) {
        report_error(who, "out of memory for the JSON output");
        return EXIT_FAILED;
    }
    bool ok = fputs(dump, stdout) >= 0 && report_write("\n", 1);
    int error = errno;
    free(dump);
    errno = error;
    if (!ok) report_output_failed(who);
    return ok ? EXIT_OK : EXIT_FAILED;
}

/* Length of the valid UTF-8 character at p, or 0. */
static size_t utf8_char(const unsigned char *p, size_t left)
{
    if (p[0] < 0x80) return 1;
    size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    bool bad = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f);
    return bad ? 0 : n;
}

json_t *report_text(const char *data, size_t len)
{
    text clean = {0};
    text_append(&clean, "", 0);
    for (size_t i = 0; i < len;) {
        size_t n = utf8_char((const unsigned char *)data + i, len - i);
        if (n) text_append(&clean, data + i, n);
        else text_append(&clean, "\xef\xbf\xbd", 3);
        i += n ? n : 1;
    }
    json_t *v = json_stringn(clean.data, clean.len);
    text_free(&clean);
    return v;
}

json_t *report_real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

json_t *report_count(uint64_t v)
{
    return json_integer((json_int_t)v);
}

void report_print_safe(FILE *out, const char *data, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)data[i];
        size_t n = utf8_char((const unsigned char *)data + i, len - i);
        /* C2 80 .. C2 9F are control characters too. */
        bool control = n == 2 && c == 0xc2 && (unsigned char)data[i + 1] < 0xa0;
        if (c == '\n') fputs("\\n", out);
        else if (c == '\t') fputs("\\t", out);
        else if (c == '\r') fputs("\\r", out);
        else if (c == '\\') fputs("\\\\", out);
        else if (c < 0x20 || c == 0x7f || n == 0) fprintf(out, "\\x%02x", c);
        else if (control) fprintf(out, "\\xc2\\x%02x", (unsigned char)data[i + 1]);
        else fwrite(data + i, 1, n, out);
        i += n ? n : 1;
    }
}

const char *report_bytes(uint64_t bytes, char *out)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t unit = 0;
    while (v >= 1024 && unit + 1 < sizeof units / sizeof *units) v /= 1024, unit++;
    snprintf(out, 24, unit == 0 || v >= 100 ? "%.0f %s" : v >= 10 ? "%.1f %s" : "%.2f %s", v, units[unit]);
    return out;
}
