/* report.h - everything that a subcommand says: error lines, standard output that may fail, JSON values, quantities in words. */
#ifndef SPW_APP_REPORT_H
#define SPW_APP_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "spillway.h"

/* Prints "spillway WHO: ..." as one line on standard error, control characters replaced.  who is a subcommand or NULL. */
void report_error(const char *who, const char *format, ...) __attribute__((format(printf, 2, 3)));
void report_warning(const char *who, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* An error of the library about the file at path: the path is put in front where the message lacks it. */
void report_file_error(const char *who, const char *path, const spw_err *err);

/* Writes bytes to standard output and flushes them.  False when they could not be written: report_output_failed says so. */
bool report_write(const char *data, size_t len);
/* Call after a failed write, with errno as it left it: one line, or none for a closed pipe, whose reader wants no more. */
void report_output_failed(const char *who);
/* Prints v and a newline on standard output and frees v; returns an exit code. */
int report_json(const char *who, json_t *v, size_t flags);
/* Flushes what printf put into standard output; returns an exit code. */
int report_finish(const char *who);

/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD. */
json_t *report_text(const char *data, size_t len);
/* A JSON number, or null where v is not finite. */
json_t *report_real(double v);
json_t *report_count(uint64_t v);

/* Prints bytes with control characters as escapes, so that a file's text can do nothing to a terminal. */
void report_print_safe(FILE *out, const char *data, size_t len);

/* "329 MiB"; out holds at least 24 bytes; returns out. */
const char *report_bytes(uint64_t bytes, char *out);

#endif
