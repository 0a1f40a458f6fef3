/* generate_text.c - the shortest whole use of the library: load a model, read a prompt, write what follows.
 *
 * usage: generate_text MODEL.gguf PROMPT [N_TOKENS]
 *
 * The text is continued as it stands; a conversation would be rendered by spw_chat_render first. */
#include <spillway.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Samples and prints up to n tokens after what s holds.  The session's logits are those of the last token it was given, so the loop is:
 * choose from the logits, print, give the choice back to the session. */
static spw_status write_tokens(spw_session *s, const spw_vocab *vocab, spw_sampler *sampler, spw_detok *detok, int n, spw_err *err)
{
    size_t len;
    const char *text;
    for (int i = 0; i < n; i++) {
        int32_t id = spw_sampler_sample(sampler, spw_session_logits(s), (size_t)spw_vocab_size(vocab));
        if (spw_vocab_is_end(vocab, id)) break;
        spw_sampler_accept(sampler, id);
        text = spw_detok_push(detok, id, &len); /* never part of a character: what is incomplete waits for the next token */
        fwrite(text, 1, len, stdout);
        fflush(stdout);
        spw_status st = spw_session_decode(s, id, err);
        if (st == SPW_E_FULL) break; /* the context is full: what there is, is whole */
        if (st != SPW_OK) return st;
    }
    text = spw_detok_flush(detok, &len);
    fwrite(text, 1, len, stdout);
    putchar('\n');
    return SPW_OK;
}

int main(int argc, char **argv)
{
    int n = argc > 3 ? atoi(argv[3]) : 64;
    if (argc < 3 || argc > 4 || n < 1) {
        fprintf(stderr, "usage: %s MODEL.gguf PROMPT [N_TOKENS]\n", argv[0]);
        return 2;
    }
    spw_err err = {0};
    spw_engine *engine = NULL;
    spw_session *session = NULL;
    spw_sampler *sampler = NULL;
    spw_detok *detok = NULL;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    int rc = 1;

    spw_engine_params ep = spw_engine_default_params();
    if (spw_engine_open(&engine, argv[1], &ep, &err) != SPW_OK) goto done;
    const spw_vocab *vocab = spw_engine_vocab(engine);
    unsigned flags = spw_vocab_adds_bos(vocab) ? SPW_TOK_BOS : 0;
    if (spw_tokenize(vocab, argv[2], strlen(argv[2]), flags, &ids, &n_ids, &err) != SPW_OK) goto done;
    if (n_ids == 0) {
        snprintf(err.msg, sizeof err.msg, "the prompt holds no token");
        goto done;
    }

    spw_session_params sp = spw_session_default_params(); /* the trained context; exact attention */
    if (spw_session_create(&session, engine, &sp, &err) != SPW_OK) goto done;
    if (spw_session_eval(session, ids, n_ids, &err) != SPW_OK) goto done;

    spw_sampler_params tp = spw_sampler_default_params();
    tp.temp = 0.0f; /* greedy: the same text every time */
    if (spw_sampler_create(&sampler, &tp, &err) != SPW_OK) goto done;
    if (spw_detok_create(&detok, vocab, &err) != SPW_OK) goto done;
    if (write_tokens(session, vocab, sampler, detok, n, &err) != SPW_OK) goto done;
    rc = 0;

done:
    if (rc) fprintf(stderr, "%s: %s\n", argv[0], err.msg);
    spw_detok_free(detok);
    spw_sampler_free(sampler);
    spw_session_free(session); /* sessions before their engine */
    spw_free(ids);
    spw_engine_close(engine);
    return rc;
}
