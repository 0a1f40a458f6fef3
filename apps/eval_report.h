/* eval_report.h - the results of a measure, kept as one JSON object: printed as such, as CSV, or as a table. */
#ifndef SPW_APP_EVAL_REPORT_H
#define SPW_APP_EVAL_REPORT_H

#include <jansson.h>

#include "loading.h"
#include "text_input.h"

typedef struct report_column {
    const char *key; /* of a row, and the column's head */
    int digits;      /* behind the point of a number that is not whole */
} report_column;

/* A report with what every measure says of its model and its settings. */
json_t *report_begin(const options *o, const loaded *l, const char *measure, uint64_t seed);
/* What results depend on, as a header of eval_store: model, kernels, type of KV, what policies are given beside their names, rotary settings. */
json_t *report_dependencies(const options *o, const loaded *l, const char *measure, uint64_t seed);
/* Prints report as the flags say and frees it: --html a page of its own, --json all of it, otherwise the rows of the array named rows, and
 * behind a table the note, which may be NULL.  Returns an exit code. */
int report_rows(const options *o, json_t *report, const char *rows, const report_column *columns, size_t n_columns, const char *note);

/* What a measure says of a run that Ctrl-C ended, when code is what report_rows returned. */
int report_interrupted(const loaded *l, size_t done, size_t of, const char *what, int code);

/* Bytes between sink and window, and those that were read of them. */
typedef struct share_sums {
    uint64_t middle, read, rows;
} share_sums;

void share_add(share_sums *s, const json_t *result);
/* share_read and share_rows: 1 where there was no middle, as everything was read then. */
void share_set(json_t *row, const share_sums *s);

#endif
