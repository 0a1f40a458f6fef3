/* generate.h - reading a prompt with progress and generating an answer; shared by run and chat. */
#ifndef SPW_APP_GENERATE_H
#define SPW_APP_GENERATE_H

#include <jansson.h>

#include "loading.h"
#include "text_input.h"

typedef enum stop_reason { STOP_EOS, STOP_LENGTH, STOP_INTERRUPT } stop_reason;

/* One timeline that is written to, turn by turn.  Made by generator_open. */
typedef struct generator {
    const loaded *model;
    const options *flags;
    uint64_t seed;
    spw_session *session;
    spw_sampler *sampler;
    spw_detok *detok;
    float *masked;         /* copy of the logits, where the tokens that end an answer are ruled out; NULL otherwise */
    int32_t pending;       /* the last generated token, when the session has not taken it yet; -1: none */
    bool stream;           /* write the text to standard output as it comes */
    bool continues;        /* the answer goes on where the prompt's text ends, without a template between them: a space at its start is text */
} generator;

/* What one turn did. */
typedef struct turn {
    size_t n_prompt; /* tokens of the prompt that were read */
    double prompt_seconds, predicted_seconds;
    int32_t *tokens;
    size_t n_tokens, cap_tokens;
    text answer;
    stop_reason stop;
    uint64_t logits_hash;
    bool context_full; /* the answer was cut by the end of the context */
} turn;

/* False after one line of complaint. */
bool generator_open(generator *g, const loaded *model, const options *flags, bool stream);
void generator_close(generator *g);
/* Forgets the conversation. */
bool generator_reset(generator *g);

/* From now on the first Ctrl-C ends the turn that runs, and a second one before generate_watch_interrupts is called again kills. */
void generate_watch_interrupts(void);
bool generate_interrupted(void);

/* Reads ids and answers; fills *t, which turn_free empties.  False after one line of complaint (none when the reader of standard
 * output is gone); the prompt must fit: the caller has checked. */
bool generate_turn(generator *g, const int32_t *ids, size_t n, turn *t);
void turn_free(turn *t);

/* The statistics line on standard error, and the same as a JSON object. */
void generate_print_stats(const generator *g, const turn *t);
json_t *generate_to_json(const generator *g, const turn *t);

#endif
