/* fork.c - two sessions from one prompt: the prompt is read once, its KV pages are shared, and both go on from there.
 *
 * usage: fork MODEL.gguf PROMPT [N_TOKENS]
 *
 * Shows what a fork promises: given the same tokens, the two produce the same logits, bit for bit; given different ones, neither disturbs
 * the other.  Exits with 1 if that does not hold. */
#include <spillway.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t logits_hash(const spw_session *s, const spw_vocab *vocab)
{
    return spw_hash(0, spw_session_logits(s), (size_t)spw_vocab_size(vocab) * sizeof(float));
}

/* The most likely token, or with rank 1 the second. */
static int32_t likely_token(const spw_session *s, const spw_vocab *vocab, int rank)
{
    const float *logits = spw_session_logits(s);
    int32_t best = 0, second = 1;
    for (int32_t i = 1; i < spw_vocab_size(vocab); i++) {
        if (logits[i] > logits[best]) second = best, best = i;
        else if (i != second && logits[i] > logits[second]) second = i;
    }
    return rank ? second : best;
}

/* Continues s by n greedy tokens and prints them, the first one given. */
static spw_status continue_from(spw_session *s, const spw_vocab *vocab, spw_detok *detok, int32_t first, int n, const char *label, spw_err *err)
{
    size_t len;
    const char *text;
    printf("%s: ...", label);
    for (int32_t id = first; n > 0 && !spw_vocab_is_end(vocab, id); n--, id = likely_token(s, vocab, 0)) {
        text = spw_detok_push(detok, id, &len);
        fwrite(text, 1, len, stdout);
        spw_status st = spw_session_decode(s, id, err);
        if (st == SPW_E_FULL) break;
        if (st != SPW_OK) return st;
    }
    text = spw_detok_flush(detok, &len);
    fwrite(text, 1, len, stdout);
    putchar('\n');
    return SPW_OK;
}

/* Gives both sessions the same n greedy tokens; *same tells whether all logits had the same bits. */
static spw_status walk_together(spw_session *a, spw_session *b, const spw_vocab *vocab, int n, bool *same, spw_err *err)
{
    *same = logits_hash(a, vocab) == logits_hash(b, vocab);
    for (int i = 0; i < n; i++) {
        int32_t id = likely_token(a, vocab, 0);
        spw_status st = spw_session_decode(a, id, err);
        if (st == SPW_OK) st = spw_session_decode(b, id, err);
        if (st != SPW_OK) return st;
        *same = *same && logits_hash(a, vocab) == logits_hash(b, vocab);
    }
    return SPW_OK;
}

int main(int argc, char **argv)
{
    int n = argc > 3 ? atoi(argv[3]) : 24;
    if (argc < 3 || argc > 4 || n < 1) {
        fprintf(stderr, "usage: %s MODEL.gguf PROMPT [N_TOKENS]\n", argv[0]);
        return 2;
    }
    spw_err err = {0};
    spw_engine *engine = NULL;
    spw_session *first = NULL, *second = NULL;
    spw_detok *detok = NULL;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    bool same = false;
    int rc = 1;

    spw_engine_params ep = spw_engine_default_params();
    if (spw_engine_open(&engine, argv[1], &ep, &err) != SPW_OK) goto done;
    const spw_vocab *vocab = spw_engine_vocab(engine);
    if (spw_detok_create(&detok, vocab, &err) != SPW_OK) goto done;
    if (spw_tokenize(vocab, argv[2], strlen(argv[2]), spw_vocab_adds_bos(vocab) ? SPW_TOK_BOS : 0, &ids, &n_ids, &err) != SPW_OK) goto done;
    if (n_ids == 0) {
        snprintf(err.msg, sizeof err.msg, "the prompt holds no token");
        goto done;
    }

    spw_session_params sp = spw_session_default_params();
    if (spw_session_create(&first, engine, &sp, &err) != SPW_OK) goto done;
    if (spw_session_eval(first, ids, n_ids, &err) != SPW_OK) goto done;

    /* The fork has the past and the logits of `first`; no row of KV is copied, only pages that either of them will write to. */
    if (spw_session_fork(&second, first, NULL, &err) != SPW_OK) goto done;
    printf("prompt of %zu tokens read once, held twice: %llu bytes of KV in either session's pages\n", n_ids,
           (unsigned long long)spw_session_get_stats(second).kv_bytes);

    uint64_t branch = spw_session_pos(first);
    if (walk_together(first, second, vocab, 4, &same, &err) != SPW_OK) goto done;
    printf("the same 4 tokens in both: the logits are %s\n", same ? "equal bit for bit" : "DIFFERENT");

    /* Back to the branch (the last prompt token is read again for its logits), and from there two ways. */
    if (spw_session_truncate(first, branch - 1, &err) != SPW_OK || spw_session_truncate(second, branch - 1, &err) != SPW_OK) goto done;
    if (spw_session_eval(first, &ids[n_ids - 1], 1, &err) != SPW_OK || spw_session_eval(second, &ids[n_ids - 1], 1, &err) != SPW_OK) goto done;
    if (continue_from(first, vocab, detok, likely_token(first, vocab, 0), n, "most likely token first", &err) != SPW_OK) goto done;
    if (continue_from(second, vocab, detok, likely_token(second, vocab, 1), n, "second most likely first", &err) != SPW_OK) goto done;
    rc = same ? 0 : 1;

done:
    if (rc && err.msg[0]) fprintf(stderr, "%s: %s\n", argv[0], err.msg);
    spw_session_free(second);
    spw_session_free(first);
    spw_free(ids);
    spw_detok_free(detok);
    spw_engine_close(engine);
    return rc;
}
