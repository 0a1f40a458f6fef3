/* eval_questions.h - asks a model the questions of a sample, under several policies at once. */
#ifndef SPW_APP_EVAL_QUESTIONS_H
#define SPW_APP_EVAL_QUESTIONS_H

#include <jansson.h>

#include "eval_lanes.h"
#include "eval_tasks.h"

/* How a model is asked: which template is put around a question. */
typedef struct question_form {
    const spw_vocab *vocab;
    const char *chat_template; /* NULL: none, the text is continued */
    bool plain;                /* no template for this task */
    spw_err err;               /* of a count that failed */
} question_form;

/* The template by the flags, the model's own or none; false after one line of complaint. */
bool question_template(const options *o, const spw_vocab *v, const char **name);
/* A task_count_fn; ctx is a question_form.  SIZE_MAX where the text cannot be encoded. */
size_t question_tokens(void *ctx, const task_turn *turn);
/* Reads the sample's text once and answers its questions greedily, one after the other, under each policy that is wanted; results[i] becomes an object of policy i:
 * tokens, and of each turn score, answer, and bytes of the middle that there were, that were read and that were rows; and how like the answer of reading everything it is: same, letter for letter; kld, the
 * sum of the divergences of kld_n predictions, those behind the first token of the answer as long as the texts, of this and of earlier turns, are the same.  False after one line of complaint. */
bool question_ask(lanes *l, const question_form *form, const task_kind *kind, const task_sample *sample, const bool *wanted, json_t **results);

#endif
