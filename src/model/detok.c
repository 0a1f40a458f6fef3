/* detok.c - generated tokens to text that can be printed: whole characters only.
 *
 * At most three bytes wait for the rest of their character; bytes that no continuation can make valid are replaced by U+FFFD at once.  The buffer is made for
 * the longest token, so that pushing allocates nothing and cannot fail. */
#include "mem.h"
#include "utf8.h"
#include "vocab_private.h"

#include <string.h>

#define MAX_PENDING 3
#define REPLACEMENT "\xEF\xBF\xBD"

struct spw_detok {
    const spw_vocab *v;
    bool drop_space; /* the next text may start with the space that SentencePiece puts before a text */
    size_t n_pending;
    char *in;  /* pending bytes, then those of a token */
    char *out; /* three bytes for each of in: each may be replaced */
};

spw_status spw_detok_create(spw_detok **out, const spw_vocab *v, spw_err *err)
{
    size_t room = (size_t)v->longest + MAX_PENDING;
    spw_detok *d = mem_zalloc(sizeof *d);
    if (d) d->in = mem_alloc(room), d->out = mem_calloc(room, strlen(REPLACEMENT));
    if (!d || !d->in || !d->out) {
        spw_detok_free(d);
        return spw_fail(err, SPW_E_NOMEM, "no memory for the text of tokens of up to %u bytes", v->longest);
    }
    d->v = v;
    d->drop_space = v->space_prefix;
    *out = d;
    return SPW_OK;
}

void spw_detok_free(spw_detok *d)
{
    if (!d) return;
    mem_free(d->in);
    mem_free(d->out);
    mem_free(d);
}

const char *spw_detok_push(spw_detok *d, int32_t id, size_t *len)
{
    size_t n_text, n_in = d->n_pending, n_out = 0, n;
    const char *text = spw_token_text(d->v, id, false, &n_text);
    if (n_text) {
        size_t skip = d->drop_space && text[0] == ' ';
        d->drop_space = false;
        memcpy(d->in + n_in, text + skip, n_text - skip);
        n_in += n_text - skip;
    }
    d->n_pending = 0;
    for (size_t at = 0; at < n_in; at += n) {
        utf8_kind kind = utf8_step(d->in + at, n_in - at, &n);
        if (kind == UTF8_CHAR) {
            memcpy(d->out + n_out, d->in + at, n);
            n_out += n;
        } else if (kind == UTF8_BAD) {
            memcpy(d->out + n_out, REPLACEMENT, strlen(REPLACEMENT));
            n_out += strlen(REPLACEMENT);
        } else {
            d->n_pending = n;
            memmove(d->in, d->in + at, n);
            break;
        }
    }
    *len = n_out;
    return d->out;
}

const char *spw_detok_flush(spw_detok *d, size_t *len)
{
    *len = d->n_pending ? strlen(REPLACEMENT) : 0;
    d->n_pending = 0;
    d->drop_space = d->v->space_prefix;
    return REPLACEMENT;
}
