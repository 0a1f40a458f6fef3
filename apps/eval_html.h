/* eval_html.h - a report as one self-contained page: tables, and charts drawn as SVG. */
#ifndef SPW_APP_EVAL_HTML_H
#define SPW_APP_EVAL_HTML_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "eval_report.h"

/* Whether path can be written; asked before a long run.  False after one line of complaint. */
bool html_check(const char *path);
/* Writes the page: of kld divergence against bytes read, and maps by layer and head; of the others a map of scores for each policy; and the table that the columns make
 * of the report's array rows.  False after one line of complaint. */
bool html_write(const char *path, const json_t *report, const char *rows, const report_column *columns, size_t n_columns);

/* For the parts of a page.  Text with what HTML reads otherwise written out. */
void html_put_text(FILE *f, const char *s);
/* eval_html_layers.c: a report's layers. */
void html_put_layers(FILE *f, const json_t *layers);

#endif
