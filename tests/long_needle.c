/* long_needle.c - retrieval at 128K positions: a long dictionary is read once, and every question is asked to a fork of that session.
 *
 * usage: long_needle MODEL.gguf N_KEYS N_QUESTIONS POLICY...
 *
 * Reading 128K tokens exactly takes some twenty minutes on two cores, a fork takes microseconds: twenty questions cost little more than one.
 * For every policy there is a line "POLICY: R of N right, P positions" on standard output; R decides, the exit code only tells whether it ran. */
#include "spillway.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORD = 36, PAIR = 2 * WORD + 9, CHUNK = 2048 };

typedef struct dict {
    char (*key)[WORD + 1], (*value)[WORD + 1];
    size_t n;
    char *text;
    size_t len;
} dict;

/* *rng is a linear congruential generator's state; its top bits are the random ones. */
static void random_word(char *out, uint64_t *rng)
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
    for (size_t i = 0; i < WORD; i++) {
        *rng = *rng * 6364136223846793005u + 1442695040888963407u;
        out[i] = shape[i] == 'x' ? "0123456789abcdef"[*rng >> 60] : '-';
    }
    out[WORD] = 0;
}

static bool dict_make(dict *d, size_t n)
{
    uint64_t rng = 20;
    d->n = n;
    d->key = calloc(n, sizeof *d->key);
    d->value = calloc(n, sizeof *d->value);
    d->text = malloc(n * PAIR + 8);
    if (!d->key || !d->value || !d->text) return false;
    char *p = d->text;
    *p++ = '{';
    for (size_t i = 0; i < n; i++) {
        random_word(d->key[i], &rng);
        random_word(d->value[i], &rng);
        p += sprintf(p, "\"%s\": \"%s\"%s", d->key[i], d->value[i], i + 1 < n ? ",\n " : "}\n\n");
    }
    d->len = (size_t)(p - d->text);
    return true;
}

/* Appends text to s as prompt tokens; progress goes to standard error where that is wanted. */
static spw_status read_text(spw_session *s, const spw_vocab *vocab, const char *text, size_t len, bool progress, spw_err *err)
{
    int32_t *ids;
    size_t n;
    spw_status st = spw_tokenize(vocab, text, len, 0, &ids, &n, err);
    time_t began = time(NULL);
    for (size_t i = 0; st == SPW_OK && i < n; i += CHUNK) {
        st = spw_session_eval(s, ids + i, n - i < CHUNK ? n - i : CHUNK, err);
        if (progress && i / CHUNK % 8 == 7) fprintf(stderr, "read %zu of %zu tokens, %lld s\n", i + CHUNK, n, (long long)(time(NULL) - began));
    }
    if (st == SPW_OK) spw_free(ids);
    return st;
}

/* Asks a fork of document for key; *right tells whether it wrote value. */
static spw_status ask(const spw_session *document, const spw_session_params *params, const spw_vocab *vocab, const char *key, const char *value, bool *right, spw_err *err)
{
    char question[WORD + 8], answer[4 * WORD] = "";
    spw_session *s;
    spw_status st = spw_session_fork(&s, document, params, err);
    if (st != SPW_OK) return st;
    int len = snprintf(question, sizeof question, "\"%s\": \"", key);
    st = read_text(s, vocab, question, (size_t)len, false, err);
    for (size_t n = 0; st == SPW_OK && n < WORD;) {
        const float *logits = spw_session_logits(s);
        int32_t best = 0;
        for (int32_t i = 1; i < spw_vocab_size(vocab); i++) {
            if (logits[i] > logits[best]) best = i;
        }
        size_t part;
        const char *text = spw_token_text(vocab, best, false, &part);
        if (part == 0 || n + part >= sizeof answer) break;
        memcpy(answer + n, text, part);
        n += part;
        st = spw_session_decode(s, best, err);
    }
    *right = st == SPW_OK && strcmp(answer, value) == 0;
    printf("%s  %s: %s%s%s\n", *right ? "right" : "wrong", key, answer, *right ? "" : ", expected ", *right ? "" : value);
    fflush(stdout);
    spw_session_free(s);
    return st;
}

/* n_ask questions spread over the whole document, but not over the newest positions, which any window sees. */
static spw_status ask_all(const spw_session *document, const char *policy, const spw_vocab *vocab, const dict *d, size_t n_ask, spw_err *err)
{
    spw_session_params params = spw_session_default_params();
    params.kv_policy = policy;
    size_t right = 0;
    for (size_t i = 0; i < n_ask; i++) {
        size_t k = n_ask > 1 ? i * (d->n - 8) / (n_ask - 1) : d->n / 2;
        bool ok;
        spw_status st = ask(document, &params, vocab, d->key[k], d->value[k], &ok, err);
        if (st != SPW_OK) return st;
        right += ok;
    }
    printf("%s: %zu of %zu right, %llu positions\n", policy, right, n_ask, (unsigned long long)spw_session_pos(document));
    return SPW_OK;
}

int main(int argc, char **argv)
{
    size_t n_keys = argc > 2 ? strtoull(argv[2], NULL, 10) : 0, n_ask = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (argc < 5 || n_keys < 9 || n_ask < 1) {
        fprintf(stderr, "usage: %s MODEL.gguf N_KEYS N_QUESTIONS POLICY...   (at least 9 keys)\n", argv[0]);
        return 2;
    }
    spw_err err = {0};
    spw_engine *e = NULL;
    spw_session *document = NULL;
    dict d = {0};
    int rc = 1;
    if (!dict_make(&d, n_keys)) goto done;
    if (spw_engine_open(&e, argv[1], NULL, &err) != SPW_OK) goto done;
    if (spw_session_create(&document, e, NULL, &err) != SPW_OK) goto done;
    if (read_text(document, spw_engine_vocab(e), d.text, d.len, true, &err) != SPW_OK) goto done;
    for (int i = 4; i < argc; i++) {
        if (ask_all(document, argv[i], spw_engine_vocab(e), &d, n_ask, &err) != SPW_OK) goto done;
    }
    if (spw_engine_check(e, &err) != SPW_OK) goto done;
    rc = 0;
done:
    if (rc) fprintf(stderr, "long_needle: %s\n", err.msg[0] ? err.msg : "out of memory");
    spw_session_free(document);
    spw_engine_close(e);
    free(d.key), free(d.value), free(d.text);
    return rc;
}
