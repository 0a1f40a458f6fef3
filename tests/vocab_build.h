/* vocab_build.h - vocabulary-only GGUF images made in memory, for the tokenizer's tests and fuzz target: keys are appended one by one, then opened as a file
 * that has no name on disk.
 *
 * Errors of the system end the program: they are no finding. */
#ifndef SPW_VOCAB_BUILD_H
#define SPW_VOCAB_BUILD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tokenizer.h"

typedef struct vocab_image {
    uint8_t *p;
    size_t n, cap;
    uint64_t n_keys;
} vocab_image;

static inline void image_put(vocab_image *im, const void *data, size_t n)
{
    if (im->n + n > im->cap) {
        im->cap = 2 * (im->n + n);
        im->p = realloc(im->p, im->cap);
        if (!im->p) abort();
    }
    if (n) memcpy(im->p + im->n, data, n);
    im->n += n;
}
static inline void image_u32(vocab_image *im, uint32_t x)
{
    image_put(im, &x, sizeof x);
}
static inline void image_u64(vocab_image *im, uint64_t x)
{
    image_put(im, &x, sizeof x);
}
static inline void image_text(vocab_image *im, const char *s)
{
    image_u64(im, strlen(s));
    image_put(im, s, strlen(s));
}
static inline void image_key(vocab_image *im, const char *name, uint32_t type)
{
    image_text(im, name);
    image_u32(im, type);
    im->n_keys++;
}
static inline void image_str(vocab_image *im, const char *name, const char *value)
{
    image_key(im, name, 8);
    image_text(im, value);
}
static inline void image_key_u32(vocab_image *im, const char *name, uint32_t value)
{
    image_key(im, name, 4);
    image_u32(im, value);
}
static inline void image_bool(vocab_image *im, const char *name, bool value)
{
    image_key(im, name, 7);
    image_put(im, value ? "\1" : "\0", 1);
}
static inline void image_array(vocab_image *im, const char *name, uint32_t elem_type, uint64_t n)
{
    image_key(im, name, 9);
    image_u32(im, elem_type);
    image_u64(im, n);
}
static inline void image_strs(vocab_image *im, const char *name, char *const *strs, size_t n)
{
    image_array(im, name, 8, n);
    for (size_t i = 0; i < n; i++) image_text(im, strs[i]);
}
static inline void image_i32s(vocab_image *im, const char *name, const int32_t *x, size_t n)
{
    image_array(im, name, 5, n);
    image_put(im, x, n * sizeof *x);
}
static inline void image_f32s(vocab_image *im, const char *name, const float *x, size_t n)
{
    image_array(im, name, 6, n);
    image_put(im, x, n * sizeof *x);
}

/* Opens the image as a vocabulary and frees it. */
static inline spw_status image_open(vocab_image *im, spw_vocab **out, spw_err *err)
{
    char path[64];
    uint32_t version = 3;
    uint64_t n_tensors = 0;
    int fd = memfd_create("vocab", 0);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!f) abort();
    fwrite("GGUF", 1, 4, f);
    fwrite(&version, 1, sizeof version, f);
    fwrite(&n_tensors, 1, sizeof n_tensors, f);
    fwrite(&im->n_keys, 1, sizeof im->n_keys, f);
    fwrite(im->p, 1, im->n, f);
    if (fflush(f)) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    spw_status st = spw_vocab_open(out, path, err);
    fclose(f);
    free(im->p);
    *im = (vocab_image){0};
    return st;
}

/* The tokens of a vocabulary under construction. */
#define TABLE_MAX 4096
typedef struct vocab_table {
    char *text[TABLE_MAX];
    int32_t type[TABLE_MAX];
    float score[TABLE_MAX];
    size_t n;
    char *merge[TABLE_MAX];
    size_t n_merges;
} vocab_table;

static inline int32_t table_add(vocab_table *t, const char *text, int32_t type, float score)
{
    if (t->n == TABLE_MAX) abort();
    t->text[t->n] = strdup(text), t->type[t->n] = type, t->score[t->n] = score;
    return (int32_t)t->n++;
}
/* A merge and the token that it makes. */
static inline int32_t table_merge(vocab_table *t, const char *left, const char *right)
{
    char both[256];
    snprintf(both, sizeof both, "%s %s", left, right);
    if (t->n_merges == TABLE_MAX) abort();
    t->merge[t->n_merges++] = strdup(both);
    snprintf(both, sizeof both, "%s%s", left, right);
    return table_add(t, both, 1, 0);
}
/* The 256 tokens of single bytes, as byte-level BPE writes them; ids are the bytes. */
static inline void table_letters(vocab_table *t)
{
    unsigned other = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        unsigned cp = itself ? b : other++;
        char s[3] = {(char)cp};
        if (cp >= 0x80) s[0] = (char)(0xC0 | cp >> 6), s[1] = (char)(0x80 | (cp & 0x3F));
        table_add(t, s, 1, 0);
    }
}
static inline void table_free(vocab_table *t)
{
    for (size_t i = 0; i < t->n; i++) free(t->text[i]);
    for (size_t i = 0; i < t->n_merges; i++) free(t->merge[i]);
    *t = (vocab_table){0};
}
/* Puts model, pre (NULL: none), tokens, types, scores and merges into an image. */
static inline void table_image(const vocab_table *t, vocab_image *im, const char *model, const char *pre)
{
    image_str(im, "tokenizer.ggml.model", model);
    if (pre) image_str(im, "tokenizer.ggml.pre", pre);
    image_strs(im, "tokenizer.ggml.tokens", t->text, t->n);
    image_i32s(im, "tokenizer.ggml.token_type", t->type, t->n);
    image_f32s(im, "tokenizer.ggml.scores", t->score, t->n);
    image_strs(im, "tokenizer.ggml.merges", t->merge, t->n_merges);
}

/* A small byte-level vocabulary.  Ids 0..255 are the bytes; the others are in tiny_id's order. */
enum { TINY_HE = 256, TINY_LL, TINY_HELL, TINY_HELLO, TINY_SPACES, TINY_A2, TINY_A4, TINY_A8, TINY_12,
       TINY_EN, TINY_EACUTE, TINY_BOS, TINY_START, TINY_END, TINY_TOOL, TINY_TOOLS, TINY_N };
static inline void tiny_bpe(vocab_table *t)
{
    table_letters(t);
    table_merge(t, "h", "e");
    table_merge(t, "l", "l");
    table_merge(t, "he", "ll");
    table_merge(t, "hell", "o");
    table_merge(t, "\xC4\xA0", "\xC4\xA0"); /* two spaces */
    table_merge(t, "a", "a");
    table_merge(t, "aa", "aa");
    table_merge(t, "aaaa", "aaaa");
    table_merge(t, "1", "2");
    table_merge(t, "e", "n");
    table_merge(t, "\xC3\x83", "\xC2\xA9"); /* the bytes C3 A9, e with an acute accent */
    table_add(t, "<|bos|>", 3, 0);
    table_add(t, "<|im_start|>", 3, 0);
    table_add(t, "<|im_end|>", 3, 0);
    table_add(t, "<tool>", 4, 0);
    table_add(t, "<tool>s", 4, 0);
}

/* A small SentencePiece vocabulary: unknown, <s>, </s>, the bytes (id 3 + byte), then these. */
enum { TINY_SPM_SPACE = 259, TINY_SPM_A, TINY_SPM_B, TINY_SPM_AB, TINY_SPM_SPACE_A, TINY_SPM_SPACE_AB,
       TINY_SPM_SPACES, TINY_SPM_EACUTE, TINY_SPM_TOOL, TINY_SPM_END, TINY_SPM_S, TINY_SPM_N };
static inline void tiny_spm(vocab_table *t)
{
    char name[16];
    table_add(t, "<unk>", 2, 0);
    table_add(t, "<s>", 3, 0);
    table_add(t, "</s>", 3, 0);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(name, sizeof name, "<0x%02X>", b);
        table_add(t, name, 6, 0);
    }
    table_add(t, "\xE2\x96\x81", 1, -1);
    table_add(t, "a", 1, -2);
    table_add(t, "b", 1, -3);
    table_add(t, "ab", 1, -4);
    table_add(t, "\xE2\x96\x81" "a", 1, -5);
    table_add(t, "\xE2\x96\x81" "ab", 1, -6);
    table_add(t, "\xE2\x96\x81\xE2\x96\x81", 1, -7);
    table_add(t, "\xC3\xA9", 1, -8);
    table_add(t, "<tool>", 4, 0);
    table_add(t, "<|im_end|>", 3, 0);
    table_add(t, "s", 1, -9);
}

#endif
