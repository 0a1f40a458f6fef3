/* pretokenize.h - cuts text into the pieces that byte-level BPE may not merge across, by the regular expressions that the file names. */
#ifndef SPW_PRETOKENIZE_H
#define SPW_PRETOKENIZE_H

#include "status.h"

typedef struct pretok pretok;           /* compiled, immutable, shared by threads */
typedef struct pretok_work pretok_work; /* scratch of one thread */
typedef spw_status pretok_fn(void *ctx, const char *piece, size_t len, spw_err *err);

/* name: value of tokenizer.ggml.pre, len bytes.  SPW_E_UNSUPPORTED names it and the known ones. */
spw_status pretok_create(pretok **out, const char *name, size_t len, spw_err *err);
void pretok_free(pretok *p);
/* True for Llama 3's rules: a piece that is a token is taken whole, and BOS comes first unless the file says otherwise. */
bool pretok_is_llama3(const pretok *p);

spw_status pretok_work_create(pretok_work **out, const pretok *p, spw_err *err);
void pretok_work_free(pretok_work *w);

/* Calls fn for every piece in order; together they are the text.  Bytes that are not UTF-8 become pieces of one byte.  Stops at fn's first failure.
 * Time is linear in len. */
spw_status pretok_split(const pretok *p, pretok_work *w, const char *text, size_t len, pretok_fn *fn, void *ctx, spw_err *err);

#endif
