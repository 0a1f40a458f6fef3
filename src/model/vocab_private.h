/* vocab_private.h - what the files of the tokenizer share; nobody else includes it.
 *
 * The one thing to know: after loading, a token's text is the bytes that it stands for (byte-level letters decoded, U+2581 turned into a space), so encoding
 * and decoding both work on plain bytes.  "Plain" tokens are those that text can become by merging; control, unknown and
 * byte tokens never are, whatever the text says. */
#ifndef SPW_VOCAB_PRIVATE_H
#define SPW_VOCAB_PRIVATE_H

#include "pretokenize.h"
#include "tokenizer.h"

enum { /* tokenizer.ggml.token_type */
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4, /* matched in text before anything is merged, special or not */
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

typedef struct vocab_token {
    uint64_t at; /* of its bytes in spw_vocab.text */
    uint32_t len;
    uint8_t type;
    bool plain;
    bool ends; /* ends a generated turn */
    float score;
} vocab_token;

/* Tokens that are matched as they stand: control, unknown, user-defined.  Sorted by text, then id. */
typedef struct vocab_special {
    const char *p;
    uint32_t len;
    int32_t id;
} vocab_special;

typedef struct vocab_merge { /* an entry of the hash table of merges; left < 0: empty */
    int32_t left, right;
    uint32_t rank;
    int32_t id;
} vocab_merge;

struct spw_vocab {
    bool spm;          /* SentencePiece BPE, otherwise byte-level BPE */
    bool add_bos;
    bool space_prefix; /* spm: a text starts with a space */
    bool whole_pieces; /* bpe: a piece that is a token is taken without merging */
    int32_t n_tokens;
    int32_t bos, eos, unk; /* -1: none */
    uint32_t longest;      /* bytes of the longest token */
    vocab_token *tokens;
    char *text;
    int32_t byte_id[256]; /* bpe: the token of one byte; spm: its fallback token; -1: none */
    int32_t *plain;       /* hash table of plain tokens by text; -1: empty */
    size_t plain_mask;
    vocab_special *special;
    size_t n_special;
    size_t special_from[257]; /* first special that starts with this byte or a higher one */
    vocab_merge *merges;      /* bpe */
    size_t merge_mask;
    uint64_t *joins; /* spm: 65536 bits; bit a * 256 + b: byte b follows byte a inside some plain token */
    pretok *pre;     /* bpe */
    char *chat_template;
};

/* Id of the plain token with exactly this text, or -1. */
int32_t vocab_lookup(const spw_vocab *v, const char *text, size_t len);
static inline size_t vocab_hash_pair(int32_t left, int32_t right)
{
    uint64_t x = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(x ^ x >> 29);
}

/* Merging: symbols in a linked list, candidate pairs in a heap, best first and leftmost among equals.  n symbols take O(n log n). */
#define MERGE_END UINT32_MAX
typedef struct merge_sym {
    uint32_t at, len;    /* bytes of the piece */
    uint32_t prev, next; /* MERGE_END: none */
    int32_t id;          /* -1: no token */
} merge_sym;

typedef struct merge_pair { /* a candidate: the symbol at index (uint32_t)key and the one after it */
    uint64_t key;           /* order << 32 | index of the left symbol; smaller goes first */
    uint32_t len;           /* of both together: when it has changed, the candidate is stale */
    int32_t id;             /* what they become */
} merge_pair;

typedef struct merge_work {
    merge_sym *syms;
    merge_pair *heap;
    size_t n_heap, cap; /* cap: symbols that fit; the heap has room for twice as many */
} merge_work;

/* Whether two neighbours merge: their order (smaller first) and the token. */
typedef bool merge_rule(const spw_vocab *v, const char *text, const merge_sym *a, const merge_sym *b, uint32_t *order, int32_t *id);

spw_status merge_reserve(merge_work *m, size_t n_syms, spw_err *err);
/* Merges syms[0..n-1], whose prev and next it sets; what is left is the list that starts at 0. */
void merge_run(merge_work *m, size_t n, const spw_vocab *v, const char *text, merge_rule *rule);
void merge_free(merge_work *m);

/* State of one call of vocab_encode.  The cache remembers pieces seen in this call: where their ids are in the list, so a
 * hit copies ids and nothing is stored twice. */
typedef struct piece_entry {
    const char *p;
    uint32_t len, epoch; /* an entry of another epoch is empty */
    size_t ids_at, n_ids;
} piece_entry;

typedef struct vocab_encoder {
    const spw_vocab *v;
    vocab_ids *list;
    merge_work merge;
    pretok_work *pre;
    piece_entry *cache; /* NULL for short texts */
    uint32_t epoch;     /* raised when the text of earlier pieces goes away */
    char *buf;          /* spm: the fragment as it is merged */
    size_t buf_cap;
} vocab_encoder;

typedef spw_status piece_fn(vocab_encoder *e, const char *piece, size_t len, spw_err *err);
/* Appends the ids of a piece from the cache, or by calling encode and remembering what it appended. */
spw_status vocab_encode_cached(vocab_encoder *e, const char *piece, size_t len, piece_fn *encode, spw_err *err);

/* One fragment of text without special tokens. */
spw_status bpe_encode(vocab_encoder *e, const char *text, size_t len, spw_err *err);
spw_status spm_encode(vocab_encoder *e, const char *text, size_t len, bool begin, spw_err *err);

#endif
