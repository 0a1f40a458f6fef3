/* loading.h - opens a model for a subcommand that evaluates: all refusals come before anything is loaded, and warnings wait
 * until the caller knows that the run goes on. */
#ifndef SPW_APP_LOADING_H
#define SPW_APP_LOADING_H

#include "options.h"

typedef struct loaded {
    const char *command;
    spw_engine *engine;
    const spw_vocab *vocab;  /* owned by engine */
    const spw_model_info *info; /* owned by engine */
    uint64_t n_ctx;
    char warning[2][300];
} loaded;

/* Checks the file at o->model, its memory needs and the context length, n_ctx tokens or, where that is 0, the trained one, lowered to
 * what the memory holds.  Loads nothing.  False after one line of complaint. */
bool loading_check(loaded *l, const command *c, const options *o, uint64_t n_ctx);
/* The same for one text of n_ctx tokens and n_sessions that were forked from it and hold n_more positions of their own, all together; not lowered. */
bool loading_check_forks(loaded *l, const command *c, const options *o, uint64_t n_ctx, size_t n_sessions, uint64_t n_more);
/* Loads what loading_check accepted. */
bool loading_open(loaded *l, const options *o);
/* Prints the warnings that are due. */
void loading_warn(const loaded *l);
void loading_close(loaded *l);

#endif
