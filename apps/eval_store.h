/* eval_store.h - results of finished samples, in memory and, with --resume, in a file that a later run goes on from.
 *
 * The file holds JSON lines: the first says what the results depend on, every further one is the result of one policy for one unit (a
 * sample, or a chunk of text).  A run whose first line would differ is refused; a last line that was cut short is dropped. */
#ifndef SPW_APP_EVAL_STORE_H
#define SPW_APP_EVAL_STORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct eval_store {
    json_t *results;  /* object: "policy unit" -> result */
    FILE *file;       /* NULL: in memory alone */
    const char *path;
    size_t n_resumed; /* results that the file held */
} eval_store;

/* path may be NULL.  Takes header, an object.  False after one line of complaint; to be closed in any case. */
bool store_open(eval_store *s, const char *path, json_t *header);
/* The result of a policy for a unit, owned by the store, or NULL. */
json_t *store_find(const eval_store *s, const char *policy, const char *unit);
/* Takes result and writes its line.  False after one line of complaint. */
bool store_add(eval_store *s, const char *policy, const char *unit, json_t *result);
void store_close(eval_store *s);

#endif
