/* tokenize_bpe.c - byte-level BPE: a piece starts as single bytes; the pair of neighbours with the lowest rank in the list of merges is joined until none
 * is left.  Pairs are looked up by the ids of their two tokens. */
#include "vocab_private.h"

static bool bpe_rule(const spw_vocab *v, const char *text, const merge_sym *a, const merge_sym *b, uint32_t *order, int32_t *id)
{
    (void)text;
    if (a->id < 0 || b->id < 0) return false;
    for (size_t i = vocab_hash_pair(a->id, b->id) & v->merge_mask; v->merges[i].left >= 0; i = (i + 1) & v->merge_mask) {
        const vocab_merge *m = &v->merges[i];
        if (m->left != a->id || m->right != b->id) continue;
        *order = m->rank, *id = m->id;
        return true;
    }
    return false;
}

/* A byte for which the vocabulary has no token becomes the unknown token, or nothing where there is none: no other id could be right. */
static spw_status push_or_unknown(vocab_encoder *e, int32_t id, spw_err *err)
{
    if (id < 0) id = e->v->unk;
    return id < 0 ? SPW_OK : vocab_ids_push(e->list, id, err);
}

static spw_status merge_piece(vocab_encoder *e, const char *piece, size_t len, spw_err *err)
{
    const spw_vocab *v = e->v;
    if (v->whole_pieces) {
        int32_t id = vocab_lookup(v, piece, len);
        if (id >= 0) return vocab_ids_push(e->list, id, err);
    }
    spw_status st = merge_reserve(&e->merge, len, err);
    if (st != SPW_OK) return st;
    merge_sym *syms = e->merge.syms;
    for (size_t i = 0; i < len; i++) syms[i] = (merge_sym){.at = (uint32_t)i, .len = 1, .id = v->byte_id[(uint8_t)piece[i]]};
    merge_run(&e->merge, len, v, piece, bpe_rule);
    for (uint32_t i = 0; st == SPW_OK && i != MERGE_END; i = syms[i].next) st = push_or_unknown(e, syms[i].id, err);
    return st;
}

static spw_status encode_piece(void *ctx, const char *piece, size_t len, spw_err *err)
{
    vocab_encoder *e = ctx;
    if (len == 1) return push_or_unknown(e, e->v->byte_id[(uint8_t)*piece], err);
    return vocab_encode_cached(e, piece, len, merge_piece, err);
}

spw_status bpe_encode(vocab_encoder *e, const char *text, size_t len, spw_err *err)
{
    spw_status st = SPW_OK;
    if (!e->pre) st = pretok_work_create(&e->pre, e->v->pre, err);
    return st == SPW_OK ? pretok_split(e->v->pre, e->pre, text, len, encode_piece, e, err) : st;
}
