/* chat_vocab.h - a small vocabulary for the chat tests and the fuzz target: every byte is a token, and so are the marks of all known templates. */
#ifndef SPW_CHAT_VOCAB_H
#define SPW_CHAT_VOCAB_H

#include "vocab_build.h"

static const char *const chat_vocab_marks[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                                               "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"};
enum {
    CHAT_VOCAB_N_MARKS = sizeof chat_vocab_marks / sizeof chat_vocab_marks[0],
    CHAT_VOCAB_FIRST_MARK = 258, /* id of "<s>", which is BOS; "</s>", EOS, follows.  All ids from here on are control tokens */
};

typedef struct chat_vocab_spec {
    bool spm; /* SentencePiece, otherwise byte-level BPE */
    bool add_bos;
    bool only_bos_eos; /* the other marks are not in the vocabulary */
    const char *jinja; /* chat template, or NULL */
} chat_vocab_spec;

static inline spw_status chat_vocab_open(spw_vocab **out, const chat_vocab_spec *s, spw_err *err)
{
    static vocab_table t;
    vocab_image im = {0};
    char name[16];
    if (!s->spm) table_letters(&t);
    for (unsigned b = 0; s->spm && b < 256; b++) {
        snprintf(name, sizeof name, "<0x%02X>", b);
        table_add(&t, name, 6, 0);
    }
    table_add(&t, "<unk>", 2, 0);
    table_add(&t, s->spm ? "\xE2\x96\x81" : "<unused>", 1, -1);
    for (int i = 0; i < (s->only_bos_eos ? 2 : CHAT_VOCAB_N_MARKS); i++) table_add(&t, chat_vocab_marks[i], 3, 0);
    table_image(&t, &im, s->spm ? "llama" : "gpt2", s->spm ? NULL : "gpt-2");
    image_key_u32(&im, "tokenizer.ggml.bos_token_id", CHAT_VOCAB_FIRST_MARK);
    image_key_u32(&im, "tokenizer.ggml.eos_token_id", CHAT_VOCAB_FIRST_MARK + 1);
    image_bool(&im, "tokenizer.ggml.add_bos_token", s->add_bos);
    if (s->jinja) image_str(&im, "tokenizer.chat_template", s->jinja);
    table_free(&t);
    return image_open(&im, out, err);
}

#endif
