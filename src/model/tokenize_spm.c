/* tokenize_spm.c - SentencePiece BPE: a text starts as characters; the two neighbours that together are the token of the highest score are joined until
 * none are.  What is no token in the end becomes its bytes.
 *
 * The rule is defined over the whole text.  A text is nevertheless cut into pieces first, wherever two bytes meet that follow each other in no token: no
 * merge can reach across, so the ids are the same, and words repeat and can be remembered. */
#include "mem.h"
#include "utf8.h"
#include "vocab_private.h"

#include <string.h>

/* Floats as integers of the same order, turned round so that the highest score is the smallest. */
static uint32_t order_of_score(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are one score */
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static bool spm_rule(const spw_vocab *v, const char *text, const merge_sym *a, const merge_sym *b, uint32_t *order, int32_t *id)
{
    *id = vocab_lookup(v, text + a->at, (size_t)a->len + b->len);
    if (*id < 0) return false;
    *order = order_of_score(v->tokens[*id].score);
    return true;
}

/* A character that is no token: its bytes' tokens, or one unknown token when any of them has none. */
static spw_status push_bytes(vocab_encoder *e, const char *text, size_t len, spw_err *err)
{
    const spw_vocab *v = e->v;
    spw_status st = SPW_OK;
    for (size_t i = 0; i < len; i++)
        if (v->byte_id[(uint8_t)text[i]] < 0) return v->unk < 0 ? SPW_OK : vocab_ids_push(e->list, v->unk, err);
    for (size_t i = 0; st == SPW_OK && i < len; i++) st = vocab_ids_push(e->list, v->byte_id[(uint8_t)text[i]], err);
    return st;
}

static spw_status merge_piece(vocab_encoder *e, const char *piece, size_t len, spw_err *err)
{
    const spw_vocab *v = e->v;
    spw_status st = merge_reserve(&e->merge, len, err);
    if (st != SPW_OK) return st;
    merge_sym *syms = e->merge.syms;
    size_t n_syms = 0;
    for (size_t at = 0, n; at < len; at += n) {
        if (utf8_step(piece + at, len - at, &n) != UTF8_CHAR) n = 1;
        syms[n_syms++] = (merge_sym){.at = (uint32_t)at, .len = (uint32_t)n, .id = vocab_lookup(v, piece + at, n)};
    }
    merge_run(&e->merge, n_syms, v, piece, spm_rule);
    for (uint32_t i = 0; st == SPW_OK && i != MERGE_END; i = syms[i].next) {
        if (syms[i].id >= 0) st = vocab_ids_push(e->list, syms[i].id, err);
        else st = push_bytes(e, piece + syms[i].at, syms[i].len, err);
    }
    return st;
}

/* The fragment as it is merged: the space in front where the model wants one, and U+2581, which stands for a space, as a space. */
static spw_status prepare_text(vocab_encoder *e, const char *text, size_t len, bool prefix, size_t *out_len, spw_err *err)
{
    if (len + 1 > e->buf_cap) {
        char *grown = mem_realloc(e->buf, 0, len + 1);
        if (!grown) return spw_fail(err, SPW_E_NOMEM, "no memory to tokenize a text of %zu bytes", len);
        e->buf = grown, e->buf_cap = len + 1;
    }
    size_t n = 0;
    if (prefix) e->buf[n++] = ' ';
    for (size_t i = 0; i < len; i++) {
        if ((uint8_t)text[i] == 0xE2 && len - i >= 3 && !memcmp(text + i, "\xE2\x96\x81", 3)) e->buf[n++] = ' ', i += 2;
        else e->buf[n++] = text[i];
    }
    *out_len = n;
    return SPW_OK;
}

static bool may_join(const spw_vocab *v, const char *second)
{
    unsigned pair = (unsigned)(uint8_t)second[-1] << 8 | (uint8_t)second[0];
    return v->joins[pair / 64] >> (pair % 64) & 1;
}

spw_status spm_encode(vocab_encoder *e, const char *text, size_t len, bool begin, spw_err *err)
{
    size_t n = 0, char_len;
    spw_status st = prepare_text(e, text, len, begin && e->v->space_prefix, &n, err);
    e->epoch++; /* earlier pieces lay in the buffer */
    for (size_t from = 0, at = 0; st == SPW_OK && from < n; from = at) {
        do {
            if (utf8_step(e->buf + at, n - at, &char_len) != UTF8_CHAR) char_len = 1;
            at += char_len;
        } while (at < n && may_join(e->v, e->buf + at));
        st = vocab_encode_cached(e, e->buf + from, at - from, merge_piece, err);
    }
    return st;
}
