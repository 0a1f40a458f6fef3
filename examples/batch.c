/* batch.c - many sessions advanced together: one spw_step reads all prompts, and then one for each token of all of them.
 *
 * usage: batch MODEL.gguf N_TOKENS PROMPT...
 *
 * A step reads every weight once for all its rows, so ten sessions cost little more than one.  What a session computes does not depend
 * on the rows beside it: the example ends by running the first prompt alone, and exits with 1 unless it gets the same bits. */
#include <spillway.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PROMPTS 64

typedef struct line {
    spw_session *session;
    int32_t *prompt;
    size_t n_prompt;
    int32_t *ids; /* what was generated */
    size_t n_ids;
    bool ended;
    float *logits; /* of the newest token */
    uint64_t hash; /* over the logits of every step */
} line;

static int32_t best_token(const float *logits, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static spw_status open_line(line *l, spw_engine *e, const char *prompt, size_t n_tokens, spw_err *err)
{
    const spw_vocab *vocab = spw_engine_vocab(e);
    spw_session_params sp = spw_session_default_params();
    spw_status st = spw_tokenize(vocab, prompt, strlen(prompt), spw_vocab_adds_bos(vocab) ? SPW_TOK_BOS : 0, &l->prompt, &l->n_prompt, err);
    if (st == SPW_OK) st = spw_session_create(&l->session, e, &sp, err);
    l->ids = calloc(n_tokens, sizeof *l->ids);
    l->logits = calloc((size_t)spw_vocab_size(vocab), sizeof *l->logits);
    if (st == SPW_OK && (!l->ids || !l->logits)) {
        snprintf(err->msg, sizeof err->msg, "out of memory");
        return SPW_E_NOMEM;
    }
    return st;
}

static void close_line(line *l)
{
    spw_session_free(l->session);
    spw_free(l->prompt);
    free(l->ids);
    free(l->logits);
}

/* Reads the prompts of all lines in one step, then generates n_tokens for each, one step a token. */
static spw_status run_lines(spw_engine *e, line *lines, size_t n_lines, size_t n_tokens, spw_err *err)
{
    const spw_vocab *vocab = spw_engine_vocab(e);
    int32_t n_vocab = spw_vocab_size(vocab);
    spw_work work[MAX_PROMPTS];
    for (size_t i = 0; i < n_lines; i++)
        work[i] = (spw_work){.session = lines[i].session, .tokens = lines[i].prompt, .n = lines[i].n_prompt, .kind = SPW_PROMPT,
                             .logits = lines[i].logits, .n_logits = 1};
    spw_status st = spw_step(e, work, n_lines, err);

    for (size_t t = 0; t < n_tokens && st == SPW_OK; t++) {
        size_t n_work = 0;
        for (size_t i = 0; i < n_lines; i++) {
            line *l = &lines[i];
            if (l->ended) continue;
            l->hash = spw_hash(l->hash, l->logits, (size_t)n_vocab * sizeof *l->logits);
            int32_t id = best_token(l->logits, n_vocab);
            /* A line that is done leaves the batch; the others go on. */
            l->ended = spw_vocab_is_end(vocab, id) || spw_session_pos(l->session) >= spw_session_n_ctx(l->session);
            if (l->ended) continue;
            l->ids[l->n_ids] = id;
            work[n_work++] = (spw_work){.session = l->session, .tokens = &l->ids[l->n_ids++], .n = 1, .kind = SPW_DECODE, .logits = l->logits, .n_logits = 1};
        }
        if (n_work == 0) break;
        st = spw_step(e, work, n_work, err);
    }
    return st;
}

static spw_status print_line(const spw_vocab *vocab, const char *prompt, const line *l, spw_err *err)
{
    spw_detok *detok;
    spw_status st = spw_detok_create(&detok, vocab, err);
    if (st != SPW_OK) return st;
    size_t len;
    const char *text;
    printf("%s|", prompt);
    for (size_t i = 0; i < l->n_ids; i++) {
        text = spw_detok_push(detok, l->ids[i], &len);
        fwrite(text, 1, len, stdout);
    }
    text = spw_detok_flush(detok, &len);
    fwrite(text, 1, len, stdout);
    printf("\n\n");
    spw_detok_free(detok);
    return SPW_OK;
}

int main(int argc, char **argv)
{
    int n_tokens = argc > 2 ? atoi(argv[2]) : 0;
    if (argc < 4 || argc > 3 + MAX_PROMPTS || n_tokens < 1) {
        fprintf(stderr, "usage: %s MODEL.gguf N_TOKENS PROMPT...   (at most %d prompts)\n", argv[0], MAX_PROMPTS);
        return 2;
    }
    size_t n_lines = (size_t)argc - 3;
    spw_err err = {0};
    spw_engine *engine = NULL;
    line lines[MAX_PROMPTS] = {0}, alone = {0};
    int rc = 1;

    spw_engine_params ep = spw_engine_default_params();
    if (spw_engine_open(&engine, argv[1], &ep, &err) != SPW_OK) goto done;
    for (size_t i = 0; i < n_lines; i++) {
        if (open_line(&lines[i], engine, argv[3 + i], (size_t)n_tokens, &err) != SPW_OK) goto done;
    }
    if (run_lines(engine, lines, n_lines, (size_t)n_tokens, &err) != SPW_OK) goto done;
    for (size_t i = 0; i < n_lines; i++) {
        if (print_line(spw_engine_vocab(engine), argv[3 + i], &lines[i], &err) != SPW_OK) goto done;
    }

    if (open_line(&alone, engine, argv[3], (size_t)n_tokens, &err) != SPW_OK) goto done;
    if (run_lines(engine, &alone, 1, (size_t)n_tokens, &err) != SPW_OK) goto done;
    rc = alone.hash == lines[0].hash ? 0 : 1;
    printf("the first prompt alone and among %zu: the logits are %s\n", n_lines, rc ? "DIFFERENT" : "equal bit for bit");

done:
    if (rc && err.msg[0]) fprintf(stderr, "%s: %s\n", argv[0], err.msg);
    close_line(&alone);
    for (size_t i = 0; i < n_lines; i++) close_line(&lines[i]);
    spw_engine_close(engine);
    return rc;
}
