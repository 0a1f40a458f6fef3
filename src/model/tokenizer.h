/* tokenizer.h - text to ids and back: byte-level BPE (gpt2) and SentencePiece BPE (llama).  Public functions in spillway.h; this adds what the
 * chat renderer needs. */
#ifndef SPW_TOKENIZER_H
#define SPW_TOKENIZER_H

#include "gguf.h"

/* f may be closed afterwards: a vocabulary copies what it keeps. */
spw_status vocab_create(spw_vocab **out, const gguf_file *f, spw_err *err);

/* A growing list of ids. */
typedef struct vocab_ids {
    int32_t *ids;
    size_t n, cap;
} vocab_ids;
spw_status vocab_ids_push(vocab_ids *list, int32_t id, spw_err *err);
void vocab_ids_free(vocab_ids *list);

/* Appends the ids of text.  special: as SPW_TOK_SPECIAL.  begin: the text starts a sequence or follows a special token (SentencePiece then puts its space prefix
 * where the model wants one). */
spw_status vocab_encode(const spw_vocab *v, const char *text, size_t len, bool special, bool begin, vocab_ids *list, spw_err *err);
/* Id of a control token by its exact text, or -1. */
int32_t vocab_find(const spw_vocab *v, const char *text);
/* The file's chat template text (Jinja), NUL-terminated, or NULL. */
const char *vocab_template_text(const spw_vocab *v);

#endif
