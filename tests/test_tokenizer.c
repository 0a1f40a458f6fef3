/* test_tokenizer.c - vocabularies made here, and the vectors of real ones where the assets are: ids, round trips, special tokens, hostile texts,
 * malformed files, and text from tokens. */
#include "test.h"

#include <time.h>

#include "mem.h"
#include "vocab_build.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW_BUILD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLOW_BUILD 1
#endif
#endif
#ifdef SLOW_BUILD
#define SECONDS 20.0
#else
#define SECONDS 2.0 /* for a megabyte; what is not linear takes minutes */
#endif

static spw_vocab *open_table(const vocab_table *t, const char *model, const char *pre)
{
    vocab_image im = {0};
    spw_vocab *v = NULL;
    spw_err err;
    table_image(t, &im, model, pre);
    CHECK_OK(image_open(&im, &v, &err), err);
    if (!v) exit(1);
    return v;
}

static spw_vocab *open_tiny(const char *pre) /* NULL: the SentencePiece one */
{
    vocab_table t = {0};
    if (pre) tiny_bpe(&t);
    else tiny_spm(&t);
    spw_vocab *v = open_table(&t, pre ? "gpt2" : "llama", pre);
    table_free(&t);
    return v;
}

/* The ids of a text as "1 2 3", in a buffer that the next call overwrites. */
static const char *ids_text(const spw_vocab *v, const char *text, size_t len, unsigned flags)
{
    static char out[4096];
    int32_t *ids = NULL;
    size_t n = 0, at = 0;
    spw_err err;
    CHECK_OK(spw_tokenize(v, text, len, flags, &ids, &n, &err), err);
    CHECK((ids == NULL) == (n == 0));
    out[0] = '\0';
    for (size_t i = 0; i < n && at < sizeof out - 16; i++) at += (size_t)snprintf(out + at, sizeof out - at, i ? " %d" : "%d", ids[i]);
    spw_free(ids);
    return out;
}
#define CHECK_IDS(v, text, flags, want) CHECK_STR(ids_text(v, text, sizeof(text) - 1, flags), want)

static void bpe_ids(void)
{
    spw_vocab *v = open_tiny("gpt-2");
    CHECK_INT(spw_vocab_size(v), TINY_N);
    CHECK_IDS(v, "", 0, "");
    CHECK_IDS(v, "hello", 0, "259");
    CHECK_IDS(v, "hell", 0, "258");
    CHECK_IDS(v, "ahen", 0, "97 256 110"); /* "h e" is ranked before "e n" */
    CHECK_IDS(v, "hello hello", 0, "259 32 259");
    CHECK_IDS(v, "a   a", 0, "97 260 32 97"); /* the last space goes with the word */
    CHECK_IDS(v, "aaaaa", 0, "262 97");
    CHECK_IDS(v, "\xC3\xA9", 0, "266");
    CHECK_IDS(v, "\xC3\xA9\xC3", 0, "266 195"); /* not UTF-8: byte by byte */
    CHECK_IDS(v, "he\0he", 0, "256 0 256");
    CHECK_IDS(v, "12", 0, "264");
    spw_vocab_close(v);
    v = open_tiny("smollm"); /* digits one by one */
    CHECK_IDS(v, "12 12", 0, "49 50 32 49 50");
    spw_vocab_close(v);
    v = open_tiny("qwen2");
    CHECK_IDS(v, "12", 0, "49 50");
    CHECK_IDS(v, "hello\n\n  hello", 0, "259 10 10 32 32 259"); /* space goes with the word */
    spw_vocab_close(v);
    v = open_tiny("llama-bpe");
    CHECK_IDS(v, "12", 0, "264");
    CHECK(!spw_vocab_adds_bos(v)); /* the tiny file names no BOS */
    spw_vocab_close(v);
    v = open_tiny("default"); /* numbers are cut from words, then in threes from the left, and punctuation from spaces */
    CHECK_IDS(v, "1212", 0, "264 49 50");
    CHECK_IDS(v, "aa,aa", 0, "261 44 261");
    spw_vocab_close(v);
}

/* A missing pre-tokenizer is "default"; Llama 3 takes a piece that is a token whole. */
static void bpe_variants(void)
{
    vocab_table t = {0};
    tiny_bpe(&t);
    table_add(&t, "xyz", 1, 0); /* 272: no merge makes it */
    spw_vocab *v = open_table(&t, "gpt2", NULL);
    CHECK_IDS(v, "1212", 0, "264 49 50");
    CHECK_IDS(v, "xyz", 0, "120 121 122");
    spw_vocab_close(v);
    v = open_table(&t, "gpt2", "llama-v3");
    CHECK_IDS(v, "xyz", 0, "272");
    spw_vocab_close(v);
    table_free(&t);
}

static void spm_ids(void)
{
    spw_vocab *v = open_tiny(NULL);
    CHECK_IDS(v, "", 0, "");
    CHECK_IDS(v, "ab", 0, "264");           /* with the space in front */
    CHECK_IDS(v, "a", 0, "263");
    CHECK_IDS(v, " a", 0, "259 263");       /* " a" scores above "  " */
    CHECK_IDS(v, "b ab", 0, "259 261 264");
    CHECK_IDS(v, "z", 0, "259 125");        /* by bytes */
    CHECK_IDS(v, "\xC3\xA9", 0, "259 266");
    CHECK_IDS(v, "\xE4\xB8\xAD", 0, "259 231 187 176");
    CHECK_IDS(v, "\xFF\0", 0, "259 258 3"); /* neither is UTF-8 text of the vocabulary */
    CHECK_IDS(v, "\xE2\x96\x81" "a", 0, "259 263"); /* U+2581 is a space to SentencePiece */
    CHECK_IDS(v, "<s>", 0, "259 63 269 65"); /* text never becomes a control token */
    CHECK_IDS(v, "<s>a", SPW_TOK_SPECIAL, "1 263"); /* what follows a special token starts with a space again */
    CHECK_IDS(v, "<tool>a", 0, "267 263");
    CHECK_IDS(v, "<0x0A>", 0, "259 63 51 123 51 68 65");
    vocab_ids list = {0}; /* in the middle of a text no space is put in front, but after a special token one is */
    spw_err err;
    CHECK_OK(vocab_encode(v, "a<s>a", 5, true, false, &list, &err), err);
    CHECK(list.n == 3 && list.ids[0] == TINY_SPM_A && list.ids[1] == 1 && list.ids[2] == TINY_SPM_SPACE_A);
    vocab_ids_free(&list);
    spw_vocab_close(v);
}

static void special_tokens(void)
{
    spw_vocab *v = open_tiny("gpt-2");
    CHECK_IDS(v, "<|im_end|>", SPW_TOK_SPECIAL, "269");
    CHECK_STR(ids_text(v, "<|im_end|>", 10, 0), "60 124 105 109 95 265 100 124 62");
    CHECK_IDS(v, "<|im_en<|im_end|>hello", SPW_TOK_SPECIAL, "60 124 105 109 95 265 269 259");
    CHECK_IDS(v, "<|im_en", SPW_TOK_SPECIAL, "60 124 105 109 95 265");
    CHECK_IDS(v, "a<tool>a", 0, "97 270 97"); /* user-defined tokens always */
    CHECK_IDS(v, "a<tool>sa<tool>", 0, "97 271 97 270"); /* the longest */
    CHECK_IDS(v, "<|im_end|><|im_start|>", SPW_TOK_SPECIAL, "269 268");
    CHECK_INT(vocab_find(v, "<|im_start|>"), TINY_START);
    CHECK_INT(vocab_find(v, "<tool>"), -1); /* not a control token */
    CHECK_INT(vocab_find(v, "hello"), -1);
    CHECK_INT(vocab_find(v, ""), -1);
    CHECK(spw_vocab_is_end(v, TINY_END));
    CHECK(!spw_vocab_is_end(v, TINY_START));
    CHECK(!spw_vocab_is_end(v, -1) && !spw_vocab_is_end(v, TINY_N));
    size_t len;
    spw_token_text(v, TINY_END, false, &len);
    CHECK_INT(len, 0);
    CHECK(!memcmp(spw_token_text(v, TINY_END, true, &len), "<|im_end|>", 10) && len == 10);
    CHECK(!memcmp(spw_token_text(v, TINY_TOOL, false, &len), "<tool>", 6) && len == 6);
    spw_token_text(v, TINY_N, true, &len);
    CHECK_INT(len, 0);
    spw_token_text(v, -5, true, &len);
    CHECK_INT(len, 0);
    spw_vocab_close(v);
}

/* A file that lists the marks of a template as user-defined: text must still not be able to begin or end a turn. */
static void marks_as_user_defined(void)
{
    vocab_table t = {0};
    tiny_bpe(&t);
    t.type[TINY_START] = t.type[TINY_END] = 4;
    spw_vocab *v = open_table(&t, "gpt2", "gpt-2");
    CHECK_IDS(v, "<|im_end|>", SPW_TOK_SPECIAL, "269");
    CHECK(strcmp(ids_text(v, "<|im_end|>", 10, 0), "269"));
    CHECK_IDS(v, "<|im_start|>", SPW_TOK_SPECIAL, "268");
    CHECK(strcmp(ids_text(v, "<|im_start|>", 12, 0), "268"));
    CHECK(spw_vocab_is_end(v, TINY_END) && !spw_vocab_is_end(v, TINY_START));
    spw_vocab_close(v);
    table_free(&t);
}

/* A SentencePiece file without ids has SentencePiece's own; a file's own word wins, "none" included. */
static void ids_that_sentencepiece_files_leave_out(void)
{
    vocab_table t = {0};
    vocab_image im = {0};
    spw_vocab *v = NULL;
    spw_err err;
    tiny_spm(&t);
    table_image(&t, &im, "llama", NULL);
    CHECK_OK(image_open(&im, &v, &err), err);
    CHECK_INT(spw_vocab_bos(v), 1);
    CHECK_INT(spw_vocab_eos(v), 2);
    CHECK(spw_vocab_is_end(v, 2));
    spw_vocab_close(v);
    table_image(&t, &im, "llama", NULL);
    image_key_u32(&im, "tokenizer.ggml.bos_token_id", UINT32_MAX);
    image_key_u32(&im, "tokenizer.ggml.eos_token_id", 5);
    CHECK_OK(image_open(&im, &v, &err), err);
    CHECK_INT(spw_vocab_bos(v), -1);
    CHECK_INT(spw_vocab_eos(v), 5);
    spw_vocab_close(v);
    table_free(&t);
}

static void ids_of_the_file(void)
{
    vocab_table t = {0};
    vocab_image im = {0};
    spw_vocab *v = NULL;
    spw_err err;
    tiny_bpe(&t);
    table_image(&t, &im, "gpt2", "llama-bpe");
    image_key_u32(&im, "tokenizer.ggml.bos_token_id", TINY_BOS);
    image_key_u32(&im, "tokenizer.ggml.eos_token_id", TINY_START);
    image_key_u32(&im, "tokenizer.ggml.eot_token_id", 7);
    image_str(&im, "tokenizer.chat_template", "{{ x }}");
    CHECK_OK(image_open(&im, &v, &err), err);
    CHECK_INT(spw_vocab_bos(v), TINY_BOS);
    CHECK_INT(spw_vocab_eos(v), TINY_START);
    CHECK(spw_vocab_adds_bos(v)); /* Llama 3's default */
    CHECK(spw_vocab_is_end(v, TINY_START) && spw_vocab_is_end(v, TINY_END) && spw_vocab_is_end(v, 7) && !spw_vocab_is_end(v, 8));
    CHECK_STR(vocab_template_text(v), "{{ x }}");
    CHECK_IDS(v, "hello", SPW_TOK_BOS, "267 259");
    CHECK_IDS(v, "", SPW_TOK_BOS, "267");
    spw_vocab_close(v);
    table_image(&t, &im, "gpt2", "llama-bpe");
    image_key_u32(&im, "tokenizer.ggml.bos_token_id", TINY_BOS);
    image_bool(&im, "tokenizer.ggml.add_bos_token", false);
    CHECK_OK(image_open(&im, &v, &err), err);
    CHECK(!spw_vocab_adds_bos(v));
    CHECK(vocab_template_text(v) == NULL);
    spw_vocab_close(v);
    table_free(&t);
    v = open_tiny("gpt-2");
    CHECK_INT(spw_vocab_bos(v), -1);
    CHECK_INT(spw_vocab_eos(v), -1);
    CHECK_IDS(v, "hello", SPW_TOK_BOS, "259");
    int32_t *ids;
    size_t n;
    CHECK_INT(spw_tokenize(v, "a", 1, 64, &ids, &n, &err), SPW_E_ARG);
    CHECK_INT(spw_tokenize(v, NULL, 1, 0, &ids, &n, &err), SPW_E_ARG);
    spw_vocab_close(v);
}

static void spm_without_prefix(void)
{
    vocab_table t = {0};
    vocab_image im = {0};
    spw_vocab *v = NULL;
    spw_err err;
    tiny_spm(&t);
    table_image(&t, &im, "llama", "default");
    image_bool(&im, "tokenizer.ggml.add_space_prefix", false);
    CHECK_OK(image_open(&im, &v, &err), err);
    CHECK_IDS(v, "ab", 0, "262");
    spw_vocab_close(v);
    t.n = TINY_SPM_N;
    for (int i = 3; i < 259; i++) t.type[i] = 5; /* no byte tokens: the unknown one */
    table_image(&t, &im, "llama", NULL);
    image_key_u32(&im, "tokenizer.ggml.unknown_token_id", 0);
    CHECK_OK(image_open(&im, &v, &err), err);
    CHECK_IDS(v, "\xE4\xB8\xAD", 0, "259 0");
    spw_vocab_close(v);
    table_free(&t);
}

static void check_round_trip(const spw_vocab *v, const char *text, size_t len)
{
    int32_t *ids = NULL;
    size_t n = 0, at = 0, got;
    spw_err err;
    CHECK_OK(spw_tokenize(v, text, len, 0, &ids, &n, &err), err);
    for (size_t i = 0; i < n; i++) {
        const char *s = spw_token_text(v, ids[i], false, &got);
        if (at + got > len || memcmp(text + at, s, got)) break;
        at += got;
    }
    CHECK_INT(at, len);
    spw_free(ids);
}

static size_t put_char(char *out, unsigned cp)
{
    if (cp < 0x80) return out[0] = (char)cp, 1;
    if (cp < 0x800) return out[0] = (char)(0xC0 | cp >> 6), out[1] = (char)(0x80 | (cp & 63)), 2;
    if (cp < 0x10000) return out[0] = (char)(0xE0 | cp >> 12), out[1] = (char)(0x80 | (cp >> 6 & 63)), out[2] = (char)(0x80 | (cp & 63)), 3;
    out[0] = (char)(0xF0 | cp >> 18), out[1] = (char)(0x80 | (cp >> 12 & 63)), out[2] = (char)(0x80 | (cp >> 6 & 63)), out[3] = (char)(0x80 | (cp & 63));
    return 4;
}

static size_t random_text(char *out, size_t cap, uint64_t *seed)
{
    static const unsigned ranges[][2] = {{32, 126}, {9, 13}, {32, 32}, {48, 57}, {0xA0, 0x24F}, {0x370, 0x3FF}, {0x4E00, 0x9FFF}, {0x1F300, 0x1F6FF},
                                         {0x300, 0x36F}, {0x2000, 0x206F}};
    size_t n = 0;
    while (n + 4 <= cap) {
        const unsigned *r = ranges[test_rand(seed) % (sizeof ranges / sizeof *ranges)];
        for (size_t k = test_rand(seed) % 5; k && n + 4 <= cap; k--) n += put_char(out + n, r[0] + (unsigned)(test_rand(seed) % (r[1] - r[0] + 1)));
    }
    return n;
}

static void round_trips(void)
{
    static const char *const pres[] = {"gpt-2", "default", "llama-bpe", "llama3", "llama-v3", "qwen2", "smollm"};
    uint64_t seed = 7;
    char text[6000];
    for (size_t p = 0; p < sizeof pres / sizeof *pres; p++) {
        spw_vocab *v = open_tiny(pres[p]);
        for (int i = 0; i < 60; i++) {
            size_t len = (size_t)(test_rand(&seed) % (i < 50 ? 200 : sizeof text));
            check_round_trip(v, text, random_text(text, len, &seed));
            for (size_t k = 0; k < len; k++) text[k] = (char)test_rand(&seed);
            check_round_trip(v, text, len);
        }
        spw_vocab_close(v);
    }
}

/* Merging by the definition: the best pair of the whole text, again and again.  Symbols are strings of one-byte characters; order gives a
 * pair's place (lower first), -1 for none. */
static size_t merge_naive(const vocab_table *t, bool spm, const char *text, int32_t *ids)
{
    char sym[64][64], both[130];
    size_t n = 0;
    for (; text[n]; n++) sym[n][0] = text[n], sym[n][1] = '\0';
    for (;;) {
        size_t best = n;
        double best_order = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            snprintf(both, sizeof both, spm ? "%s%s" : "%s %s", sym[i], sym[i + 1]);
            for (size_t k = 0; k < (spm ? t->n : t->n_merges); k++) {
                if (strcmp(both, spm ? t->text[k] : t->merge[k])) continue;
                double order = spm ? -(double)t->score[k] : (double)k;
                if (best == n || order < best_order) best = i, best_order = order;
                break;
            }
        }
        if (best == n) break;
        snprintf(both, sizeof both, "%s%s", sym[best], sym[best + 1]);
        memcpy(sym[best], both, sizeof sym[best]);
        n--;
        for (size_t i = best + 1; i < n; i++) memcpy(sym[i], sym[i + 1], sizeof sym[i]);
    }
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < t->n; k++)
            if (!strcmp(sym[i], t->text[k])) {
                ids[i] = (int32_t)k;
                break;
            }
    return n;
}

static void merges_as_defined(void)
{
    uint64_t seed = 99;
    for (int round = 0; round < 60; round++) {
        bool spm = round & 1;
        vocab_table t = {0};
        for (const char *c = "abcd"; *c; c++) table_add(&t, (char[]){*c, 0}, 1, 0);
        for (int i = 0; i < 25; i++) { /* random tokens made of earlier ones; repeated texts and scores occur */
            const char *left = t.text[test_rand(&seed) % t.n], *right = t.text[test_rand(&seed) % t.n];
            if (strlen(left) + strlen(right) > 12) continue;
            int32_t id = table_merge(&t, left, right);
            t.score[id] = (float)(test_rand(&seed) % 8) - 4.0f;
        }
        if (spm) /* a repeated text would have two scores */
            for (size_t i = 0; i < t.n; i++)
                for (size_t k = 0; k < i; k++)
                    if (!strcmp(t.text[k], t.text[i])) t.score[i] = t.score[k];
        vocab_image im = {0};
        spw_vocab *v = NULL;
        spw_err err;
        table_image(&t, &im, spm ? "llama" : "gpt2", "gpt-2");
        if (spm) image_bool(&im, "tokenizer.ggml.add_space_prefix", false);
        CHECK_OK(image_open(&im, &v, &err), err);
        for (int k = 0; k < 40; k++) {
            char text[64] = "";
            int32_t want[64], *got = NULL;
            size_t len = 1 + (size_t)(test_rand(&seed) % 40), n_got = 0;
            for (size_t i = 0; i < len; i++) text[i] = "abcd"[test_rand(&seed) % 4];
            size_t n_want = merge_naive(&t, spm, text, want);
            CHECK_OK(spw_tokenize(v, text, len, 0, &got, &n_got, &err), err);
            CHECK_INT(n_got, n_want);
            if (n_got == n_want) CHECK(!memcmp(got, want, n_got * sizeof *got));
            spw_free(got);
        }
        spw_vocab_close(v);
        table_free(&t);
    }
}

/* Long texts go through a cache of pieces, short ones do not. */
static void cache_changes_nothing(void)
{
    static const char *const words[] = {"hello", " hello", "aaaa", "  ", " ab", "\n", "12", "hell", "<tool>", "\xC3\xA9", "b"};
    uint64_t seed = 5;
    for (int spm = 0; spm < 2; spm++) {
        spw_vocab *v = open_tiny(spm ? NULL : "gpt-2");
        char text[8192];
        size_t len = 0, n = 0;
        spw_err err;
        vocab_ids cut = {0};
        int32_t *whole = NULL;
        while (len < 6000) { /* lines of a user-defined token each: fragments are independent */
            size_t from = len;
            for (int k = 0; k < 12; k++) len += (size_t)sprintf(text + len, "%s", words[test_rand(&seed) % 11]);
            len += (size_t)sprintf(text + len, "<tool>");
            CHECK_OK(vocab_encode(v, text + from, len - from, false, true, &cut, &err), err);
        }
        CHECK_OK(spw_tokenize(v, text, len, 0, &whole, &n, &err), err);
        CHECK_INT(n, cut.n);
        CHECK(n == cut.n && !memcmp(whole, cut.ids, n * sizeof *whole));
        spw_free(whole);
        vocab_ids_free(&cut);
        spw_vocab_close(v);
    }
}

static void time_text(const spw_vocab *v, const char *text, size_t len, const char *what)
{
    int32_t *ids = NULL;
    size_t n = 0;
    spw_err err;
    clock_t start = clock();
    CHECK_OK(spw_tokenize(v, text, len, SPW_TOK_SPECIAL, &ids, &n, &err), err);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (seconds > SECONDS) fprintf(stderr, "%s: %zu bytes\n", what, len);
    CHECK(seconds <= SECONDS);
    spw_free(ids);
}

/* A megabyte of each of the patterns that are worst for merging and for special tokens; with all, also what is hard for the regular expressions. */
static void hostile_texts_on(const spw_vocab *v, bool all)
{
    size_t len = 1 << 20, n_patterns = all ? SIZE_MAX : 3;
    uint64_t seed = 3;
    char *text = malloc(len);
    static const char *const patterns[] = {"a", " ", "<", "\n", "\n ", "ab", "1", "<|im_en", "\t\t\t\t\n", "'", "\xC3\xA9", "\xE2\x96\x81", "\xE2\x96", " a",
                                           "hello "};
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns && p < n_patterns; p++) {
        size_t n = strlen(patterns[p]);
        for (size_t i = 0; i < len; i++) text[i] = patterns[p][i % n];
        time_text(v, text, p < 3 ? len : len / 4, patterns[p]);
    }
    if (!all) {
        free(text);
        return;
    }
    memset(text, ' ', len);
    text[len - 1] = 'x';
    time_text(v, text, len, "spaces and a letter");
    text[0] = '\n';
    time_text(v, text, len, "a line end, spaces and a letter");
    for (size_t i = 0; i < len; i++) text[i] = (char)test_rand(&seed);
    time_text(v, text, len, "random bytes");
    time_text(v, text, random_text(text, len, &seed), "random text");
    free(text);
}

static void hostile_texts(void)
{
    static const char *const pres[] = {"gpt-2", "llama-bpe", "default", "smollm", NULL};
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++) {
        spw_vocab *v = open_tiny(pres[i]);
        hostile_texts_on(v, true);
        spw_vocab_close(v);
    }
}

/* ---- malformed files ---- */

typedef struct bad_file {
    const char *model, *pre; /* NULL: no key */
    const char *key;         /* a u32 key to add, or NULL */
    uint32_t value;
    int short_types, short_scores; /* elements missing */
    int bad_type;                  /* type of token 5, or 0 */
    bool no_tokens, int_tokens, no_merges, no_scores;
    spw_status code;
    const char *says;
} bad_file;

static const bad_file bad_files[] = {
    {.model = "bert", .code = SPW_E_UNSUPPORTED, .says = "tokenizer 'bert' is not known (known: gpt2, llama)"},
    {.model = "no_vocab", .code = SPW_E_UNSUPPORTED, .says = "tokenizer 'no_vocab'"},
    {.model = NULL, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.model"},
    {.model = "gpt2", .pre = "tekken", .code = SPW_E_UNSUPPORTED,
     .says = "pre-tokenizer 'tekken' is not known (known: default, gpt-2, llama-bpe, llama3, llama-v3, qwen2, smollm)"},
    {.model = "gpt2", .no_tokens = true, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.tokens"},
    {.model = "gpt2", .int_tokens = true, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.tokens"},
    {.model = "gpt2", .no_merges = true, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.merges"},
    {.model = "llama", .no_scores = true, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.scores"},
    {.model = "llama", .short_scores = 1, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.scores has 271 elements, but there are 272 tokens"},
    {.model = "gpt2", .short_types = 2, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.token_type has 270 elements, but there are 272 tokens"},
    {.model = "gpt2", .bad_type = 9, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.token_type of token 5 is 9, expected 0 to 6"},
    {.model = "gpt2", .bad_type = -1, .code = SPW_E_FORMAT, .says = "token 5 is -1"},
    {.model = "gpt2", .key = "tokenizer.ggml.bos_token_id", .value = 272, .code = SPW_E_FORMAT,
     .says = "tokenizer.ggml.bos_token_id is 272, but there are 272 tokens"},
    {.model = "gpt2", .key = "tokenizer.ggml.eos_token_id", .value = 5000, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.eos_token_id is 5000"},
    {.model = "gpt2", .key = "tokenizer.ggml.eot_token_id", .value = 5000, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.eot_token_id is 5000"},
    {.model = "gpt2", .key = "tokenizer.ggml.add_bos_token", .value = 1, .code = SPW_E_FORMAT, .says = "tokenizer.ggml.add_bos_token"},
    {.model = "gpt2", .key = "tokenizer.chat_template", .value = 1, .code = SPW_E_FORMAT, .says = "tokenizer.chat_template"},
};

static void malformed_files(void)
{
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        const bad_file *b = &bad_files[i];
        vocab_table t = {0};
        vocab_image im = {0};
        spw_vocab *v = NULL;
        spw_err err = {0};
        size_t held = mem_in_use();
        tiny_bpe(&t);
        if (b->bad_type) t.type[5] = b->bad_type;
        if (b->model) image_str(&im, "tokenizer.ggml.model", b->model);
        if (b->pre) image_str(&im, "tokenizer.ggml.pre", b->pre);
        if (b->int_tokens) image_i32s(&im, "tokenizer.ggml.tokens", t.type, t.n);
        else if (!b->no_tokens) image_strs(&im, "tokenizer.ggml.tokens", t.text, t.n);
        image_i32s(&im, "tokenizer.ggml.token_type", t.type, t.n - (size_t)b->short_types);
        if (!b->no_scores) image_f32s(&im, "tokenizer.ggml.scores", t.score, t.n - (size_t)b->short_scores);
        if (!b->no_merges) image_strs(&im, "tokenizer.ggml.merges", t.merge, t.n_merges);
        if (b->key) image_key_u32(&im, b->key, b->value);
        CHECK_INT(image_open(&im, &v, &err), b->code);
        CHECK_HAS(err.msg, b->says);
        CHECK(v == NULL);
        CHECK_INT(mem_in_use(), held);
        table_free(&t);
    }
}

/* Odd but usable: repeated and empty tokens, merges that can never apply. */
static void odd_files(void)
{
    vocab_table t = {0};
    tiny_bpe(&t);
    table_add(&t, "hello", 1, 0);
    table_add(&t, "", 1, 0);
    table_add(&t, "", 3, 0);
    table_add(&t, "<|im_end|>", 3, 0);
    table_add(&t, "two words \xE4\xB8\xAD", 1, 0);
    t.merge[t.n_merges++] = strdup("");
    t.merge[t.n_merges++] = strdup(" ");
    t.merge[t.n_merges++] = strdup("nospace");
    t.merge[t.n_merges++] = strdup("x ");
    t.merge[t.n_merges++] = strdup("q q");   /* no such token */
    t.merge[t.n_merges++] = strdup("h e");   /* again */
    t.merge[t.n_merges++] = strdup("\xE4\xB8\xAD x");
    spw_vocab *v = open_table(&t, "gpt2", "gpt-2");
    CHECK_IDS(v, "hello qq", 0, "259 32 113 113");
    CHECK_IDS(v, "<|im_end|>", SPW_TOK_SPECIAL, "269");
    spw_vocab_close(v);
    table_free(&t);
    table_add(&t, "a", 1, 0); /* most bytes have no token, and there is no unknown one */
    v = open_table(&t, "gpt2", "gpt-2");
    CHECK_IDS(v, "bab", 0, "0");
    spw_vocab_close(v);
    table_free(&t);
}

/* Every allocation fails once: the call fails cleanly or does without. */
static void memory_runs_out(void)
{
    static const char text[] = "hello aaaa <tool> hello \xC3\xA9 z";
    char longer[3000];
    for (size_t i = 0; i < sizeof longer; i++) longer[i] = text[i % (sizeof text - 1)];
    for (int spm = 0; spm < 2; spm++) {
        size_t held = mem_in_use();
        vocab_table t = {0};
        spw_vocab *v = NULL;
        spw_err err;
        if (spm) tiny_spm(&t);
        else tiny_bpe(&t);
        spw_status st = SPW_E_NOMEM;
        for (long n = 0; st != SPW_OK && n < 5000; n++) {
            vocab_image im = {0};
            table_image(&t, &im, spm ? "llama" : "gpt2", "gpt-2");
            image_str(&im, "tokenizer.chat_template", "x");
            mem_fail_after(n, false);
            st = image_open(&im, &v, &err);
            mem_fail_after(-1, false);
            if (st == SPW_OK) break;
            CHECK_INT(st, SPW_E_NOMEM);
            CHECK_INT(mem_in_use(), held);
        }
        CHECK_OK(st, err);
        size_t with_vocab = mem_in_use();
        int32_t *want = NULL, *got = NULL;
        size_t n_want = 0, n_got = 0;
        CHECK_OK(spw_tokenize(v, longer, sizeof longer, 0, &want, &n_want, &err), err);
        for (long n = 0; n < 40; n++) {
            mem_fail_after(n, false);
            st = spw_tokenize(v, longer, sizeof longer, 0, &got, &n_got, &err);
            mem_fail_after(-1, false);
            if (st == SPW_OK) {
                CHECK(n_got == n_want && !memcmp(got, want, n_got * sizeof *got));
                spw_free(got);
            } else CHECK_INT(st, SPW_E_NOMEM);
        }
        spw_free(want);
        CHECK_INT(mem_in_use(), with_vocab);
        spw_vocab_close(v);
        CHECK_INT(mem_in_use(), held);
        table_free(&t);
    }
}

/* ---- text from tokens ---- */

/* Pushes ids and checks what each push hands out; wants holds one string an id, then that of the flush. */
static void check_detok(spw_detok *d, const int32_t *ids, size_t n, const char *const *wants)
{
    for (size_t i = 0; i <= n; i++) {
        size_t len = 0;
        char got[64] = "";
        const char *s = i < n ? spw_detok_push(d, ids[i], &len) : spw_detok_flush(d, &len);
        CHECK(len < sizeof got);
        memcpy(got, s, len);
        CHECK_STR(got, wants[i]);
    }
}

static void detok_holds_back(void)
{
    spw_vocab *v = open_tiny("gpt-2");
    spw_detok *d = NULL;
    spw_err err;
    CHECK_OK(spw_detok_create(&d, v, &err), err);
    check_detok(d, (int32_t[]){0xE4, 0xB8, 0xAD, 'x'}, 4, (const char *[]){"", "", "\xE4\xB8\xAD", "x", ""});
    check_detok(d, (int32_t[]){0xF0, 0x9F, 0x98}, 3, (const char *[]){"", "", "", "\xEF\xBF\xBD"});
    check_detok(d, (int32_t[]){0xE4, 0xB8, TINY_HELLO}, 3, (const char *[]){"", "", "\xEF\xBF\xBDhello", ""}); /* cannot be completed any more */
    check_detok(d, (int32_t[]){0xFF, 0x80, 0xC0}, 3, (const char *[]){"\xEF\xBF\xBD", "\xEF\xBF\xBD", "\xEF\xBF\xBD", ""});
    check_detok(d, (int32_t[]){0xED, 0xA0}, 2, (const char *[]){"", "\xEF\xBF\xBD\xEF\xBF\xBD", ""}); /* a surrogate */
    check_detok(d, (int32_t[]){0xC3, TINY_END, 0xA9, TINY_EACUTE}, 4, (const char *[]){"", "", "\xC3\xA9", "\xC3\xA9", ""});
    check_detok(d, (int32_t[]){-1, TINY_N, ' ', TINY_TOOL}, 4, (const char *[]){"", "", " ", "<tool>", ""});
    spw_detok_free(d);
    spw_detok_free(NULL);
    spw_vocab_close(v);
}

static void detok_drops_first_space(void)
{
    spw_vocab *v = open_tiny(NULL);
    spw_detok *d = NULL;
    spw_err err;
    CHECK_OK(spw_detok_create(&d, v, &err), err);
    check_detok(d, (int32_t[]){1, TINY_SPM_SPACE_AB, TINY_SPM_SPACE_A, 2}, 4, (const char *[]){"", "ab", " a", "", ""});
    check_detok(d, (int32_t[]){TINY_SPM_B, TINY_SPM_SPACE_A, 3 + 0xC3, 3 + 0xA9}, 4, (const char *[]){"b", " a", "", "\xC3\xA9", ""});
    check_detok(d, (int32_t[]){TINY_SPM_SPACE, TINY_SPM_SPACES}, 2, (const char *[]){"", "  ", ""});
    spw_detok_free(d);
    spw_vocab_close(v);
}

/* Whatever the bytes, the stream is valid UTF-8 after every push, and equals the text where that is valid. */
static void detok_streams(void)
{
    uint64_t seed = 11;
    spw_vocab *v = open_tiny("gpt-2");
    spw_detok *d = NULL;
    spw_err err;
    char text[400], got[400];
    CHECK_OK(spw_detok_create(&d, v, &err), err);
    for (int round = 0; round < 100; round++) {
        size_t len = random_text(text, sizeof text, &seed), n_got = 0, len_out;
        for (size_t i = 0; i < len; i++) {
            const char *s = spw_detok_push(d, (uint8_t)text[i], &len_out);
            CHECK(len_out <= 4 && n_got + len_out <= len);
            memcpy(got + n_got, s, len_out);
            n_got += len_out;
        }
        spw_detok_flush(d, &len_out);
        CHECK_INT(len_out, 0);
        CHECK_INT(n_got, len);
        CHECK(!memcmp(got, text, len));
    }
    spw_detok_free(d);
    spw_vocab_close(v);
}

/* ---- real vocabularies ---- */

static char *read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(n + 1);
    *len = fread(text, 1, n, f);
    text[*len] = '\0';
    fclose(f);
    return text;
}

static const char *asset_path(char *out, size_t cap, const char *name)
{
    const char *root = getenv("SPILLWAY_ASSETS");
    snprintf(out, cap, "%s/vocab/%s", root && *root ? root : "../shared/assets", name);
    return out;
}

/* Every case of "x.inp" against its line of ids in "x.out", for the vocabulary in model. */
static void check_vectors(const char *model, const char *vectors)
{
    static const char sep[] = "\n__ggml_vocab_test__\n";
    size_t n_inp = 0, n_out = 0;
    char inp_path[600], out_path[600];
    snprintf(inp_path, sizeof inp_path, "%.590s.inp", vectors);
    snprintf(out_path, sizeof out_path, "%.590s.out", vectors);
    char *inp = read_file(inp_path, &n_inp), *out = read_file(out_path, &n_out), *text = inp, *line = out;
    spw_vocab *v = NULL;
    spw_err err;
    CHECK_OK(spw_vocab_open(&v, model, &err), err);
    int n_cases = 0;
    for (; v && inp && out && text; n_cases++) {
        char *end = strstr(text, sep), *eol = strchr(line, '\n'), want[4096] = "";
        if (eol) *eol = '\0';
        size_t len = end ? (size_t)(end - text) : strlen(text), n_want = 0;
        for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
            n_want += (size_t)snprintf(want + n_want, sizeof want - n_want, n_want ? " %s" : "%s", word);
        CHECK_STR(ids_text(v, text, len, 0), want);
        text = end ? end + sizeof sep - 1 : NULL;
        line = eol ? eol + 1 : line + strlen(line);
    }
    CHECK(n_cases > 40);
    if (v) hostile_texts_on(v, false);
    spw_vocab_close(v);
    free(inp);
    free(out);
}

static void check_asset(const char *name)
{
    char path[600];
    asset_path(path, sizeof path, name);
    check_vectors(path, path);
}

static void vectors_gpt_2(void) { check_asset("ggml-vocab-gpt-2.gguf"); }
static void vectors_llama_bpe(void) { check_asset("ggml-vocab-llama-bpe.gguf"); }
static void vectors_llama_spm(void) { check_asset("ggml-vocab-llama-spm.gguf"); }
static void vectors_qwen2(void) { check_asset("ggml-vocab-qwen2.gguf"); }

static const char *smollm_path(char *out, size_t cap)
{
    const char *models = getenv("MODELS");
    snprintf(out, cap, "%s/SmolLM2-135M-Instruct-Q4_1.gguf", models && *models ? models : "build/models");
    return out;
}

static void vectors_smollm(void)
{
    char model[600], path[600];
    check_vectors(smollm_path(model, sizeof model), asset_path(path, sizeof path, "smollm"));
}

static void real_vocabularies(void)
{
    char path[600];
    if (access(asset_path(path, sizeof path, "smollm.inp"), R_OK)) {
        SKIP("vectors", "no assets folder (SPILLWAY_ASSETS)");
        return;
    }
    RUN(vectors_gpt_2);
    RUN(vectors_llama_bpe);
    RUN(vectors_llama_spm);
    RUN(vectors_qwen2);
    if (!access(smollm_path(path, sizeof path), R_OK)) RUN(vectors_smollm);
    else SKIP("vectors_smollm", "no SmolLM2-135M-Instruct-Q4_1.gguf in build/models (MODELS names another folder)");
}

int main(void)
{
    RUN(bpe_ids);
    RUN(bpe_variants);
    RUN(spm_ids);
    RUN(special_tokens);
    RUN(marks_as_user_defined);
    RUN(ids_that_sentencepiece_files_leave_out);
    RUN(ids_of_the_file);
    RUN(spm_without_prefix);
    RUN(round_trips);
    RUN(merges_as_defined);
    RUN(cache_changes_nothing);
    RUN(hostile_texts);
    RUN(malformed_files);
    RUN(odd_files);
    RUN(memory_runs_out);
    RUN(detok_holds_back);
    RUN(detok_drops_first_space);
    RUN(detok_streams);
    real_vocabularies();
    return test_done();
}
