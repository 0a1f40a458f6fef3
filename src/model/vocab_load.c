/* vocab_load.c - builds a vocabulary from the keys of a GGUF file.
 *
 * Nothing in the file is trusted: types, lengths of arrays and ids are checked here, once, and the encoder then relies on them.  What is merely odd is
 * tolerated: tokens with the same text (the first is used), empty tokens, merges whose parts or result are no tokens (they can never apply). */
#include "mem.h"
#include "vocab_private.h"

#include <stdlib.h>
#include <string.h>

typedef struct load {
    spw_vocab *v;
    const gguf_file *f;
    const char *path;
    bool has_types;
    char *scratch; /* room for one merge, decoded */
    spw_err *err;
} load;

static spw_status no_memory(const load *l)
{
    return spw_fail(l->err, SPW_E_NOMEM, "%s: no memory for the vocabulary", l->path);
}

/* ---- text of tokens ---- */

/* Byte-level BPE writes each byte as a letter: printable ones as they are, the 68 others as U+0100 and up, in order.  Returns -1 for any other code point. */
static int byte_of_letter(unsigned cp)
{
    bool itself = (cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xAC) || (cp >= 0xAE && cp <= 0xFF);
    if (itself) return (int)cp;
    if (cp < 0x100 || cp >= 0x100 + 68) return -1;
    unsigned k = cp - 0x100;
    if (k <= 0x20) return (int)k;                       /* 00..20 */
    if (k <= 0x20 + 34) return (int)(0x7F + (k - 0x21)); /* 7F..A0 */
    return 0xAD;
}

/* Decodes letters into bytes; false when the text has a character that stands for no byte. */
static bool decode_letters(gguf_str s, char *out, uint32_t *n)
{
    *n = 0;
    for (size_t i = 0; i < s.len; i++) {
        unsigned cp = (uint8_t)s.p[i];
        if (cp >= 0x80) { /* all letters beyond ASCII have two bytes */
            if (cp < 0xC2 || cp > 0xC5 || i + 1 == s.len || ((uint8_t)s.p[i + 1] & 0xC0) != 0x80) return false;
            cp = (cp & 0x1F) << 6 | ((uint8_t)s.p[++i] & 0x3F);
        }
        int byte = byte_of_letter(cp);
        if (byte < 0) return false;
        out[(*n)++] = (char)byte;
    }
    return true;
}

/* U+2581 becomes a space; false when the text has a space of its own, which no text that is encoded can become. */
static bool decode_spaces(gguf_str s, char *out, uint32_t *n)
{
    *n = 0;
    for (size_t i = 0; i < s.len; i++) {
        if (s.p[i] == ' ') return false;
        if (s.len - i >= 3 && !memcmp(s.p + i, "\xE2\x96\x81", 3)) out[(*n)++] = ' ', i += 2;
        else out[(*n)++] = s.p[i];
    }
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0x0A>", or -1. */
static int byte_of_name(gguf_str s)
{
    if (s.len != 6 || memcmp(s.p, "<0x", 3) || s.p[5] != '>') return -1;
    int high = hex_digit(s.p[3]), low = hex_digit(s.p[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool is_one_of(gguf_str s, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(names[i]) == s.len && !memcmp(names[i], s.p, s.len)) return true;
    return false;
}

/* Marks of chat templates by what they are called.  Files exist that list them as user-defined; text could then begin or end a turn, so they are control
 * tokens here. */
static bool is_begin_name(gguf_str s)
{
    static const char *const names[] = {"<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|system|>", "<|user|>",
                                        "<|assistant|>"};
    return is_one_of(s, names, sizeof names / sizeof *names);
}

static bool is_end_name(gguf_str s)
{
    static const char *const names[] = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>", "<|endoftext|>",
                                        "</s>", "<|eom_id|>", "<EOT>"};
    return is_one_of(s, names, sizeof names / sizeof *names);
}

/* Fills token id from its text in the file; its bytes go to out, which has room for s.len. */
static void load_token(load *l, int32_t id, gguf_str s, char *out)
{
    spw_vocab *v = l->v;
    vocab_token *t = &v->tokens[id];
    if (is_begin_name(s)) t->type = TOKEN_CONTROL;
    if (is_end_name(s)) t->type = TOKEN_CONTROL, t->ends = true;
    int byte = v->spm && (t->type == TOKEN_BYTE || !l->has_types) ? byte_of_name(s) : -1;
    bool verbatim = t->type == TOKEN_CONTROL || t->type == TOKEN_USER || t->type == TOKEN_UNKNOWN;
    if (byte >= 0) {
        t->type = TOKEN_BYTE, t->len = 1;
        out[0] = (char)byte;
        if (v->byte_id[byte] < 0) v->byte_id[byte] = id;
        return;
    }
    if (!verbatim) t->plain = v->spm ? decode_spaces(s, out, &t->len) : decode_letters(s, out, &t->len);
    if (t->plain && t->len) return;
    t->plain = false, t->len = (uint32_t)s.len;
    if (s.len) memcpy(out, s.p, s.len);
}

/* ---- arrays of the file ---- */

static spw_status load_types(load *l)
{
    spw_vocab *v = l->v;
    const gguf_key *types = NULL, *scores = NULL;
    const char *name = "tokenizer.ggml.token_type";
    spw_status st = SPW_OK;
    if (gguf_find_key(l->f, name)) st = gguf_get_array(l->f, name, GGUF_I32, true, &types, l->err);
    if (st == SPW_OK) st = gguf_get_array(l->f, "tokenizer.ggml.scores", GGUF_F32, v->spm, &scores, l->err);
    if (st != SPW_OK) return st;
    if (types && types->n != (uint64_t)v->n_tokens)
        return spw_fail(l->err, SPW_E_FORMAT, "%s: %s has %llu elements, but there are %d tokens", l->path, name, (unsigned long long)types->n, v->n_tokens);
    if (scores && scores->n != (uint64_t)v->n_tokens)
        return spw_fail(l->err, SPW_E_FORMAT, "%s: tokenizer.ggml.scores has %llu elements, but there are %d tokens", l->path,
                        (unsigned long long)scores->n, v->n_tokens);
    l->has_types = types != NULL;
    for (int32_t i = 0; i < v->n_tokens; i++) {
        int64_t type = types ? gguf_array_int(types, (uint64_t)i) : TOKEN_NORMAL;
        if (type < 0 || type > TOKEN_BYTE)
            return spw_fail(l->err, SPW_E_FORMAT, "%s: %s of token %d is %lld, expected 0 to %d", l->path, name, i, (long long)type, TOKEN_BYTE);
        v->tokens[i].type = (uint8_t)type;
        v->tokens[i].score = scores ? gguf_array_f32(scores, (uint64_t)i) : 0.0f;
    }
    return SPW_OK;
}

static spw_status load_tokens(load *l)
{
    spw_vocab *v = l->v;
    const gguf_key *k = NULL;
    spw_status st = gguf_get_array(l->f, "tokenizer.ggml.tokens", GGUF_STRING, true, &k, l->err);
    if (st != SPW_OK) return st;
    if (k->n < 1 || k->n > INT32_MAX / 2)
        return spw_fail(l->err, SPW_E_FORMAT, "%s: tokenizer.ggml.tokens has %llu elements, expected 1 to %d", l->path, (unsigned long long)k->n, INT32_MAX / 2);
    v->n_tokens = (int32_t)k->n;
    v->tokens = mem_calloc((size_t)k->n, sizeof *v->tokens);
    if (!v->tokens) return no_memory(l);
    st = load_types(l);
    if (st != SPW_OK) return st;
    size_t bytes = 1; /* never 0 */
    for (int32_t i = 0; i < v->n_tokens; i++) {
        gguf_str s = gguf_array_str(k, (uint64_t)i);
        if (s.len > INT32_MAX) return spw_fail(l->err, SPW_E_FORMAT, "%s: token %d has %zu bytes, at most %d are taken", l->path, i, s.len, INT32_MAX);
        bytes += s.len; /* cannot wrap: the strings are in a mapped file */
    }
    v->text = mem_alloc(bytes);
    if (!v->text) return no_memory(l);
    uint64_t at = 0;
    for (int32_t i = 0; i < v->n_tokens; i++) {
        v->tokens[i].at = at;
        load_token(l, i, gguf_array_str(k, (uint64_t)i), v->text + at);
        at += v->tokens[i].len;
        if (v->tokens[i].len > v->longest) v->longest = v->tokens[i].len;
    }
    return SPW_OK;
}

/* Reads a token id; -1 when the key is missing, or says "none" by the largest number. */
static spw_status load_id(load *l, const char *name, int32_t *out)
{
    uint32_t id = UINT32_MAX;
    *out = -1;
    spw_status st = gguf_get_u32(l->f, name, false, &id, l->err);
    if (st != SPW_OK || id == UINT32_MAX) return st;
    if (id >= (uint32_t)l->v->n_tokens) return spw_fail(l->err, SPW_E_FORMAT, "%s: %s is %u, but there are %d tokens", l->path, name, id, l->v->n_tokens);
    *out = (int32_t)id;
    return SPW_OK;
}

/* Ids with a part of their own.  A file without token types says nowhere else that they are control tokens. */
static spw_status load_ids(load *l)
{
    spw_vocab *v = l->v;
    static const int32_t spm_ids[5] = {1, 2, -1, -1, 0}; /* SentencePiece's own, where a file leaves them out */
    static const char *const names[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id"};
    int32_t ids[5];
    for (int i = 0; i < 5; i++) {
        spw_status st = load_id(l, names[i], &ids[i]);
        if (st != SPW_OK) return st;
        if (v->spm && !gguf_find_key(l->f, names[i]) && spm_ids[i] < v->n_tokens) ids[i] = spm_ids[i];
        if (ids[i] < 0 || l->has_types || i == 4) continue;
        v->tokens[ids[i]].type = TOKEN_CONTROL, v->tokens[ids[i]].plain = false;
    }
    for (int i = 1; i < 4; i++)
        if (ids[i] >= 0) v->tokens[ids[i]].ends = true;
    v->bos = ids[0], v->eos = ids[1], v->unk = ids[4];
    if (v->unk >= 0 && v->tokens[v->unk].type == TOKEN_CONTROL) v->unk = -1; /* text must never become a control token */
    v->add_bos = v->spm || pretok_is_llama3(v->pre);
    v->space_prefix = v->spm;
    spw_status st = gguf_get_bool(l->f, "tokenizer.ggml.add_bos_token", false, &v->add_bos, l->err);
    if (st == SPW_OK) st = gguf_get_bool(l->f, "tokenizer.ggml.add_space_prefix", false, &v->space_prefix, l->err);
    v->space_prefix = v->space_prefix && v->spm;
    return st;
}

/* ---- tables ---- */

/* Smallest power of two that leaves a hash table of n entries a third empty. */
static size_t table_size(size_t n)
{
    size_t size = 4;
    while (size < n + n / 2) size *= 2;
    return size;
}

static spw_status build_plain(load *l)
{
    spw_vocab *v = l->v;
    size_t size = table_size((size_t)v->n_tokens);
    v->plain = mem_calloc(size, sizeof *v->plain);
    if (!v->plain) return no_memory(l);
    v->plain_mask = size - 1;
    for (size_t i = 0; i < size; i++) v->plain[i] = -1;
    for (int32_t id = 0; id < v->n_tokens; id++) {
        const vocab_token *t = &v->tokens[id];
        if (!t->plain || vocab_lookup(v, v->text + t->at, t->len) >= 0) continue;
        size_t i = (size_t)spw_hash(0, v->text + t->at, t->len) & v->plain_mask;
        while (v->plain[i] >= 0) i = (i + 1) & v->plain_mask;
        v->plain[i] = id;
        if (!v->spm && t->len == 1) v->byte_id[(uint8_t)v->text[t->at]] = id;
    }
    return SPW_OK;
}

static int compare_special(const void *a, const void *b)
{
    const vocab_special *x = a, *y = b;
    int c = memcmp(x->p, y->p, x->len < y->len ? x->len : y->len);
    if (c) return c;
    if (x->len != y->len) return x->len < y->len ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static bool is_special(const vocab_token *t)
{
    return t->len && (t->type == TOKEN_CONTROL || t->type == TOKEN_UNKNOWN || t->type == TOKEN_USER);
}

static spw_status build_special(load *l)
{
    spw_vocab *v = l->v;
    size_t n = 0;
    for (int32_t id = 0; id < v->n_tokens; id++) n += is_special(&v->tokens[id]);
    if (!n) return SPW_OK;
    v->special = mem_calloc(n, sizeof *v->special);
    if (!v->special) return no_memory(l);
    for (int32_t id = 0; id < v->n_tokens; id++) {
        const vocab_token *t = &v->tokens[id];
        if (is_special(t)) v->special[v->n_special++] = (vocab_special){.p = v->text + t->at, .len = t->len, .id = id};
    }
    qsort(v->special, n, sizeof *v->special, compare_special);
    for (size_t i = 0, byte = 0; byte <= 256; byte++) {
        while (i < n && (uint8_t)v->special[i].p[0] < byte) i++;
        v->special_from[byte] = i;
    }
    return SPW_OK;
}

static spw_status build_joins(load *l)
{
    spw_vocab *v = l->v;
    v->joins = mem_calloc(65536 / 64, sizeof *v->joins);
    if (!v->joins) return no_memory(l);
    for (int32_t id = 0; id < v->n_tokens; id++) {
        const vocab_token *t = &v->tokens[id];
        const uint8_t *s = (const uint8_t *)v->text + t->at;
        for (uint32_t i = 1; t->plain && i < t->len; i++) {
            unsigned pair = (unsigned)s[i - 1] << 8 | s[i];
            v->joins[pair / 64] |= UINT64_C(1) << (pair % 64);
        }
    }
    return SPW_OK;
}

/* Adds the merge "LEFT RIGHT" unless it can never apply or was listed before.  The space is looked for from the second byte: LEFT is never empty. */
static void add_merge(load *l, gguf_str s, uint32_t rank)
{
    spw_vocab *v = l->v;
    const char *space = s.len > 1 ? memchr(s.p + 1, ' ', s.len - 1) : NULL;
    if (!space) return;
    size_t left_len = (size_t)(space - s.p);
    uint32_t n, m;
    if (!decode_letters((gguf_str){s.p, left_len}, l->scratch, &n)) return;
    if (!decode_letters((gguf_str){space + 1, s.len - left_len - 1}, l->scratch + n, &m)) return;
    int32_t left = vocab_lookup(v, l->scratch, n), right = vocab_lookup(v, l->scratch + n, m), id = vocab_lookup(v, l->scratch, (size_t)n + m);
    if (left < 0 || right < 0 || id < 0) return;
    size_t i = vocab_hash_pair(left, right) & v->merge_mask;
    for (; v->merges[i].left >= 0; i = (i + 1) & v->merge_mask)
        if (v->merges[i].left == left && v->merges[i].right == right) return;
    v->merges[i] = (vocab_merge){.left = left, .right = right, .rank = rank, .id = id};
}

static spw_status build_merges(load *l)
{
    spw_vocab *v = l->v;
    const gguf_key *k = NULL;
    spw_status st = gguf_get_array(l->f, "tokenizer.ggml.merges", GGUF_STRING, true, &k, l->err);
    if (st != SPW_OK) return st;
    if (k->n > INT32_MAX)
        return spw_fail(l->err, SPW_E_FORMAT, "%s: tokenizer.ggml.merges has %llu elements, expected at most %d", l->path, (unsigned long long)k->n, INT32_MAX);
    size_t size = table_size((size_t)k->n), longest = 1;
    for (uint64_t i = 0; i < k->n; i++)
        if (gguf_array_str(k, i).len > longest) longest = gguf_array_str(k, i).len;
    v->merges = mem_calloc(size, sizeof *v->merges);
    l->scratch = mem_alloc(longest);
    if (!v->merges || !l->scratch) return no_memory(l);
    v->merge_mask = size - 1;
    for (size_t i = 0; i < size; i++) v->merges[i].left = -1;
    for (uint64_t i = 0; i < k->n; i++) add_merge(l, gguf_array_str(k, i), (uint32_t)i);
    return SPW_OK;
}

/* ---- all of it ---- */

static bool equals(gguf_str s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.p, text, s.len);
}

/* What kind of tokenizer the file has, and its pre-tokenizer. */
static spw_status load_kind(load *l)
{
    gguf_str model = {0}, pre = {"default", strlen("default")};
    spw_status st = gguf_get_str(l->f, "tokenizer.ggml.model", true, &model, l->err);
    if (st != SPW_OK) return st;
    l->v->spm = equals(model, "llama");
    if (l->v->spm) return SPW_OK;
    if (!equals(model, "gpt2"))
        return spw_fail(l->err, SPW_E_UNSUPPORTED, "%s: tokenizer '%.*s' is not known (known: gpt2, llama)", l->path,
                        model.len < 64 ? (int)model.len : 64, model.p);
    st = gguf_get_str(l->f, "tokenizer.ggml.pre", false, &pre, l->err);
    if (st != SPW_OK) return st;
    spw_err why;
    st = pretok_create(&l->v->pre, pre.p, pre.len, &why);
    if (st != SPW_OK) return spw_fail(l->err, st, "%s: %s", l->path, why.msg);
    l->v->whole_pieces = pretok_is_llama3(l->v->pre);
    return SPW_OK;
}

static spw_status load_template(load *l)
{
    gguf_str s = {0};
    spw_status st = gguf_get_str(l->f, "tokenizer.chat_template", false, &s, l->err);
    if (st != SPW_OK || !s.p) return st;
    l->v->chat_template = mem_strndup(s.p, s.len);
    return l->v->chat_template ? SPW_OK : no_memory(l);
}

spw_status vocab_create(spw_vocab **out, const gguf_file *f, spw_err *err)
{
    load l = {.f = f, .path = gguf_path(f), .err = err, .v = mem_zalloc(sizeof *l.v)};
    if (!l.v) return no_memory(&l);
    for (int i = 0; i < 256; i++) l.v->byte_id[i] = -1;
    spw_status st = load_kind(&l);
    if (st == SPW_OK) st = load_tokens(&l);
    if (st == SPW_OK) st = load_ids(&l);
    if (st == SPW_OK) st = build_plain(&l);
    if (st == SPW_OK) st = build_special(&l);
    if (st == SPW_OK) st = l.v->spm ? build_joins(&l) : build_merges(&l);
    if (st == SPW_OK) st = load_template(&l);
    mem_free(l.scratch);
    if (st != SPW_OK) {
        spw_vocab_close(l.v);
        return st;
    }
    *out = l.v;
    return SPW_OK;
}

void spw_vocab_close(spw_vocab *v)
{
    if (!v) return;
    mem_free(v->tokens);
    mem_free(v->text);
    mem_free(v->plain);
    mem_free(v->special);
    mem_free(v->merges);
    mem_free(v->joins);
    mem_free(v->chat_template);
    pretok_free(v->pre);
    mem_free(v);
}
