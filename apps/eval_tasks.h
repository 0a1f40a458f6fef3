/* eval_tasks.h - made-up tasks with known answers: texts, questions, references and scores.
 *
 * Nothing here needs a model: how long a text is for one is asked through a callback, so a sample depends on the seed, its own number, its cell and the tokenizer.
 * Six tasks are RULER's (github.com/NVIDIA/RULER), with its sizes, texts and scores; the words come from a list of our own. */
#ifndef SPW_APP_EVAL_TASKS_H
#define SPW_APP_EVAL_TASKS_H

#include "eval_random.h"
#include "text_input.h"

enum { TASK_REFERENCES_MAX = 10, TASK_TURNS_MAX = 16, TASK_DEPTH_SPREAD = -1 };

/* One question. */
typedef struct task_turn {
    text question; /* what is appended to the context: the user's message where there is a chat template */
    text prefix;   /* the beginning of the answer, which the model is given */
    text references[TASK_REFERENCES_MAX];
    size_t n_references;
} task_turn;

typedef struct task_sample {
    task_turn turns[TASK_TURNS_MAX]; /* the first holds the document; the others follow its answer */
    size_t n_turns;
} task_sample;

typedef struct task_kind task_kind;

/* What is asked at one place of a table of results. */
typedef struct task_cell {
    const task_kind *kind;
    size_t length;  /* tokens that question, prefix and answer may take together; 0: as many as n_keys make */
    size_t n_keys;  /* of a dictionary */
    size_t n_turns; /* 1 but for multiturn */
    int depth;      /* percent of the text that precede what is to be found; TASK_DEPTH_SPREAD: another for each sample */
    const char *haystack; /* niah: text to hide the needle in; NULL: RULER's noise */
    size_t haystack_len;
    size_t size; /* units of text that fill length, found with the first sample; 0: not known yet */
} task_cell;

/* Tokens that the model is given for a first turn. */
typedef size_t task_count_fn(void *ctx, const task_turn *turn);

const task_kind *task_find(const char *name); /* NULL: there is none */
const char *task_name(const task_kind *k);
size_t task_new_tokens(const task_kind *k); /* that an answer may take */
bool task_is_plain(const task_kind *k);     /* a text to be continued, whatever the model's chat template */
char task_stop(const task_kind *k);         /* a character that ends the answer; '\0': none */
/* RULER's tasks that need no data, separated by commas. */
extern const char task_ruler_names[];

/* Sample number index of the cell; freed by task_free.  False when not even the smallest text fits the cell's length. */
bool task_make(task_cell *c, uint64_t seed, size_t index, task_count_fn *count, void *ctx, task_sample *out);
void task_free(task_sample *s);
/* 0 .. 1: the share of the references that the answer holds, whatever their case; passkey: whether its first number is the reference. */
double task_score(const task_kind *k, const task_turn *turn, const char *answer, size_t len);

#endif
