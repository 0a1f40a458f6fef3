/* fuzz_tokenizer.c - any text through small built-in vocabularies, or any vocabulary made of the input.
 *
 * Byte 0 chooses: bits 0-2 the vocabulary (gpt-2, llama-bpe, qwen2, smollm, default, SentencePiece; 6 and 7: one whose tokens, types, scores and merges
 * come from the input, as BPE or SentencePiece), bits 3-4 the flags of spw_tokenize.  The rest is text; for 6 and 7 it holds lines that become
 * tokens and, where they have a space, merges, then a line "=" and the text.  Checked besides crashes: the bytes of a byte-level round trip, ids in
 * range, and that a stream of text is never longer than its bytes allow. */
#include "vocab_build.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "fuzz_tokenizer: %s\n", what);
    abort();
}

static spw_vocab *built_in(int which)
{
    static const char *const pres[] = {"gpt-2", "llama-bpe", "qwen2", "smollm", "default", NULL};
    static spw_vocab *made[6];
    if (made[which]) return made[which];
    vocab_table t = {0};
    vocab_image im = {0};
    spw_err err;
    if (pres[which]) tiny_bpe(&t);
    else tiny_spm(&t);
    table_image(&t, &im, pres[which] ? "gpt2" : "llama", pres[which]);
    require(image_open(&im, &made[which], &err) == SPW_OK, "the built-in vocabulary does not open");
    table_free(&t);
    return made[which];
}

/* Takes lines up to "=" from the text as tokens and merges; NULL when the loader refuses. */
static spw_vocab *from_input(bool spm, const char **text, size_t *len)
{
    vocab_table t = {0};
    vocab_image im = {0};
    spw_vocab *v = NULL;
    spw_err err;
    char line[128];
    while (*len && t.n < 200) {
        const char *end = memchr(*text, '\n', *len);
        size_t n = end ? (size_t)(end - *text) : *len, kept = n < sizeof line - 1 ? n : sizeof line - 1;
        memcpy(line, *text, kept);
        line[kept] = '\0';
        *text += n + (end != NULL), *len -= n + (end != NULL);
        if (!strcmp(line, "=")) break;
        if (strchr(line, ' ') && t.n_merges < TABLE_MAX) t.merge[t.n_merges++] = strdup(line);
        else table_add(&t, line + (line[0] != '\0'), (uint8_t)line[0] % 7, (float)(int8_t)line[0]); /* the first character is type and score */
    }
    table_image(&t, &im, spm ? "llama" : "gpt2", "gpt-2");
    image_key_u32(&im, "tokenizer.ggml.unknown_token_id", 0);
    image_key_u32(&im, "tokenizer.ggml.eos_token_id", 1);
    if (image_open(&im, &v, &err) != SPW_OK) v = NULL;
    table_free(&t);
    return v;
}

static void check_text(const spw_vocab *v, const char *text, size_t len, unsigned flags, bool exact)
{
    int32_t *ids = NULL;
    size_t n = 0, at = 0, n_bytes = 0, got;
    spw_detok *d = NULL;
    spw_err err;
    require(spw_tokenize(v, text, len, flags, &ids, &n, &err) == SPW_OK, "a text is refused");
    require(spw_detok_create(&d, v, &err) == SPW_OK, "no text of tokens");
    for (size_t i = 0; i < n; i++) {
        require(ids[i] >= 0 && ids[i] < spw_vocab_size(v), "an id out of range");
        const char *s = spw_token_text(v, ids[i], true, &got);
        if (exact) require(at + got <= len && !memcmp(text + at, s, got), "the text of the tokens differs");
        at += got;
        spw_detok_push(d, ids[i], &got);
        n_bytes += got;
    }
    if (exact) require(at == len, "the text of the tokens is too short");
    require(n_bytes <= 3 * at, "a stream is too long");
    spw_detok_flush(d, &got);
    spw_detok_free(d);
    spw_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    int which = data[0] & 7;
    unsigned flags = data[0] >> 3 & 3;
    const char *text = (const char *)data + 1;
    size_t len = size - 1;
    if (which < 6) {
        check_text(built_in(which), text, len, flags, which < 5);
        return 0;
    }
    spw_vocab *v = from_input(which == 7, &text, &len);
    if (v) check_text(v, text, len, flags, false);
    spw_vocab_close(v);
    return 0;
}
