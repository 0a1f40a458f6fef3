/* eval_layers.h - what a policy read and missed in every layer and head, summed over generated rows.
 *
 * A watched session adds up; the sums are kept as JSON, one for each chunk of text; those of all chunks are added up again and become means. */
#ifndef SPW_APP_EVAL_LAYERS_H
#define SPW_APP_EVAL_LAYERS_H

#include <jansson.h>

#include "spillway.h"

/* Where the truth about a row comes from. */
typedef enum layers_truth {
    LAYERS_NO_TRUTH, /* nobody asks */
    LAYERS_MEASURED, /* every layer attends to everything as well */
    LAYERS_EXACT,    /* the policy reads everything: nothing is missed */
} layers_truth;

/* Sums of one layer. */
typedef struct layer_sums {
    size_t n_head, n_head_kv;
    double *mass, *error;    /* n_head: true share of the attention that was read; relative error of the output */
    uint64_t *middle, *read; /* n_head_kv: bytes between sink and window; those that were read, index or digests included */
} layer_sums;

typedef struct eval_layers {
    layer_sums *v;
    size_t n;        /* layers */
    uint64_t n_rows; /* that mass and error are of; 0: no truth */
    layers_truth truth;
} eval_layers;

/* Adds up what the session's generated rows do from now on; s, which is empty, must outlive the session or the watching. */
void layers_watch(eval_layers *s, spw_session *session, size_t n_layer, layers_truth truth);
void layers_free(eval_layers *s);

/* The sums, to be kept. */
json_t *layers_sums(const eval_layers *s);
/* Adds sums that were kept; they are of the same model. */
void layers_add(eval_layers *s, const json_t *sums);
/* mass and output_error of the row: means over rows, layers and heads; null without truth. */
void layers_set(json_t *row, const eval_layers *s);
/* An object of arrays: mass and output_error by [layer][head], null without truth, share_read by [layer][KV head]. */
json_t *layers_means(const eval_layers *s);

#endif
