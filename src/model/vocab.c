/* vocab.c - the public face of a vocabulary: text to ids, and questions about tokens.  Loading is in vocab_load.c.
 *
 * A text is first cut at special tokens, the longest that starts earliest; what lies between them is encoded as plain text and can
 * never become a control token. */
#include "mem.h"
#include "vocab_private.h"

#include <string.h>

#define CACHE_ENTRIES 4096u  /* a power of two */
#define CACHE_MAX_PIECE 64u  /* bytes; longer pieces hardly repeat */
#define CACHE_MIN_TEXT 2048u /* bytes; clearing the cache costs more than it saves on shorter texts */

spw_status vocab_ids_push(vocab_ids *list, int32_t id, spw_err *err)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 64, bytes;
        int32_t *grown = mul_size(cap, sizeof *grown, &bytes) ? mem_realloc(list->ids, list->n * sizeof *grown, bytes) : NULL;
        if (!grown) return spw_fail(err, SPW_E_NOMEM, "no memory for %zu token ids", cap);
        list->ids = grown, list->cap = cap;
    }
    list->ids[list->n++] = id;
    return SPW_OK;
}

void vocab_ids_free(vocab_ids *list)
{
    mem_free(list->ids);
    *list = (vocab_ids){0};
}

int32_t vocab_lookup(const spw_vocab *v, const char *text, size_t len)
{
    for (size_t i = (size_t)spw_hash(0, text, len) & v->plain_mask; v->plain[i] >= 0; i = (i + 1) & v->plain_mask) {
        const vocab_token *t = &v->tokens[v->plain[i]];
        if (t->len == len && !memcmp(v->text + t->at, text, len)) return v->plain[i];
    }
    return -1;
}

spw_status vocab_encode_cached(vocab_encoder *e, const char *piece, size_t len, piece_fn *encode, spw_err *err)
{
    if (!e->cache || len > CACHE_MAX_PIECE) return encode(e, piece, len, err);
    piece_entry *hit = &e->cache[(size_t)spw_hash(1, piece, len) & (CACHE_ENTRIES - 1)];
    spw_status st = SPW_OK;
    if (hit->epoch == e->epoch && hit->len == len && !memcmp(hit->p, piece, len)) {
        for (size_t i = 0; st == SPW_OK && i < hit->n_ids; i++) st = vocab_ids_push(e->list, e->list->ids[hit->ids_at + i], err);
        return st;
    }
    size_t ids_at = e->list->n;
    st = encode(e, piece, len, err);
    if (st == SPW_OK) *hit = (piece_entry){.p = piece, .len = (uint32_t)len, .epoch = e->epoch, .ids_at = ids_at, .n_ids = e->list->n - ids_at};
    return st;
}

/* The longest special token that text starts with, or -1; *n: its bytes.  Without special only user-defined tokens count.  The specials are sorted, so those that
 * share the first d bytes are a range, and the shortest of them comes first. */
static int32_t special_at(const spw_vocab *v, const char *text, size_t len, bool special, size_t *n)
{
    size_t lo = v->special_from[(uint8_t)text[0]], hi = v->special_from[(uint8_t)text[0] + 1];
    int32_t best = -1;
    *n = 0;
    for (size_t d = 1; lo < hi; d++) {
        for (; lo < hi && v->special[lo].len == d; lo++)
            if (*n != d && (special || v->tokens[v->special[lo].id].type == TOKEN_USER)) best = v->special[lo].id, *n = d;
        if (d == len) break;
        size_t a = lo, b = hi; /* [lo, hi) becomes those whose byte at d is text[d] */
        while (a < b) {
            size_t mid = a + (b - a) / 2;
            if ((uint8_t)v->special[mid].p[d] < (uint8_t)text[d]) a = mid + 1;
            else b = mid;
        }
        lo = a, b = hi;
        while (a < b) {
            size_t mid = a + (b - a) / 2;
            if ((uint8_t)v->special[mid].p[d] <= (uint8_t)text[d]) a = mid + 1;
            else b = mid;
        }
        hi = a;
    }
    return best;
}

static spw_status encode_plain(vocab_encoder *e, const char *text, size_t len, bool begin, spw_err *err)
{
    if (!len) return SPW_OK;
    return e->v->spm ? spm_encode(e, text, len, begin, err) : bpe_encode(e, text, len, err);
}

static spw_status encode_text(vocab_encoder *e, const char *text, size_t len, bool special, bool begin, spw_err *err)
{
    spw_status st = SPW_OK;
    size_t from = 0, n;
    for (size_t at = 0; st == SPW_OK && at < len; at++) {
        uint8_t first = (uint8_t)text[at];
        if (e->v->special_from[first] == e->v->special_from[first + 1]) continue;
        int32_t id = special_at(e->v, text + at, len - at, special, &n);
        if (id < 0) continue;
        st = encode_plain(e, text + from, at - from, begin, err);
        if (st == SPW_OK) st = vocab_ids_push(e->list, id, err);
        from = at + n, at = from - 1, begin = true;
    }
    return st == SPW_OK ? encode_plain(e, text + from, len - from, begin, err) : st;
}

spw_status vocab_encode(const spw_vocab *v, const char *text, size_t len, bool special, bool begin, vocab_ids *list, spw_err *err)
{
    if (len >= INT32_MAX) return spw_fail(err, SPW_E_ARG, "a text of %zu bytes is too long to tokenize at once (at most %d)", len, INT32_MAX - 1);
    vocab_encoder e = {.v = v, .list = list, .epoch = 1};
    size_t before = list->n;
    if (len >= CACHE_MIN_TEXT) e.cache = mem_calloc(CACHE_ENTRIES, sizeof *e.cache); /* without it: slower, the same ids */
    spw_status st = encode_text(&e, text, len, special, begin, err);
    if (st != SPW_OK) list->n = before;
    mem_free(e.cache);
    mem_free(e.buf);
    merge_free(&e.merge);
    pretok_work_free(e.pre);
    return st;
}

int32_t vocab_find(const spw_vocab *v, const char *text)
{
    size_t len = strlen(text);
    uint8_t first = (uint8_t)text[0];
    for (size_t i = v->special_from[first]; i < v->special_from[first + 1]; i++) {
        const vocab_special *s = &v->special[i];
        if (v->tokens[s->id].type == TOKEN_CONTROL && s->len == len && !memcmp(s->p, text, len)) return s->id;
    }
    return -1;
}

const char *vocab_template_text(const spw_vocab *v)
{
    return v->chat_template;
}

spw_status spw_vocab_open(spw_vocab **out, const char *path, spw_err *err)
{
    gguf_file *f;
    spw_status st = gguf_open(&f, path, err);
    if (st != SPW_OK) return st;
    st = vocab_create(out, f, err);
    gguf_close(f);
    return st;
}

int32_t spw_vocab_size(const spw_vocab *v)
{
    return v->n_tokens;
}

int32_t spw_vocab_bos(const spw_vocab *v)
{
    return v->bos;
}

int32_t spw_vocab_eos(const spw_vocab *v)
{
    return v->eos;
}

bool spw_vocab_adds_bos(const spw_vocab *v)
{
    return v->add_bos && v->bos >= 0;
}

bool spw_vocab_is_end(const spw_vocab *v, int32_t id)
{
    return id >= 0 && id < v->n_tokens && v->tokens[id].ends;
}

spw_status spw_tokenize(const spw_vocab *v, const char *text, size_t len, unsigned flags, int32_t **ids, size_t *n, spw_err *err)
{
    if (flags & ~(unsigned)(SPW_TOK_SPECIAL | SPW_TOK_BOS)) return spw_fail(err, SPW_E_ARG, "tokenize: flags %#x are not known", flags);
    if (!text && len) return spw_fail(err, SPW_E_ARG, "tokenize: text is NULL, but its length is %zu", len);
    vocab_ids list = {0};
    spw_status st = SPW_OK;
    if (flags & SPW_TOK_BOS && v->bos >= 0) st = vocab_ids_push(&list, v->bos, err);
    if (st == SPW_OK) st = vocab_encode(v, text, len, flags & SPW_TOK_SPECIAL, true, &list, err);
    if (st != SPW_OK || !list.n) vocab_ids_free(&list);
    if (st != SPW_OK) return st;
    *ids = list.ids, *n = list.n;
    return SPW_OK;
}

const char *spw_token_text(const spw_vocab *v, int32_t id, bool special, size_t *len)
{
    *len = 0;
    if (id < 0 || id >= v->n_tokens) return "";
    const vocab_token *t = &v->tokens[id];
    if (!special && (t->type == TOKEN_CONTROL || t->type == TOKEN_UNKNOWN)) return "";
    *len = t->len;
    return v->text + t->at;
}
