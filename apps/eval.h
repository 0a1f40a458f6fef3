/* eval.h - what spillway eval measures, one function each; each returns an exit code. */
#ifndef SPW_APP_EVAL_H
#define SPW_APP_EVAL_H

#include "options.h"

/* Seed where -s gives none: RULER's. */
#define EVAL_SEED 42

int eval_ppl(const options *o); /* perplexity of a text */
int eval_kld(const options *o); /* distance of every policy's predictions to our own dense ones, over a text */
/* Made-up tasks with known answers. */
int eval_ruler(const options *o);
int eval_kv(const options *o);
int eval_passkey(const options *o);
int eval_niah(const options *o);
int eval_multiturn(const options *o);

#endif
