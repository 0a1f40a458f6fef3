/* pretokenize.c - pre-tokenizers as lists of regular expressions for PCRE2.
 *
 * A list is applied in stages: every match of the first expression and every gap between two matches is a text of its own for the next stage, whose
 * look-ahead ends at that text's end.  None of the expressions can backtrack over more than what it has just read, so a text is
 * cut in linear time whatever it holds; PCRE2's match limit is a second belt, set from the length of the text. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "pretokenize.h"

#include <pcre2.h>
#include <string.h>

#include "mem.h"
#include "utf8.h"

#define PRETOK_MAX_STAGES 4

/* White space as Unicode's property White_Space has it; PCRE2's \s would add U+180E. */
#define WS "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACE "[" WS "]"
#define OTHER "[^" WS "\\p{L}\\p{N}]"
#define SPACES SPACE "+(?![^" WS "])|" SPACE "+"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?" OTHER "+|" SPACES
#define LLAMA3(digits)                                                                                                                  \
    "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?" OTHER "+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACES

typedef struct pretok_rule {
    const char *name;
    bool llama3;
    const char *stages[PRETOK_MAX_STAGES];
} pretok_rule;

static const pretok_rule pretok_rules[] = {
    {"default", false, {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"gpt-2", false, {GPT2}},
    {"llama-bpe", true, {LLAMA3("\\p{N}{1,3}")}},
    {"llama3", true, {LLAMA3("\\p{N}{1,3}")}},
    {"llama-v3", true, {LLAMA3("\\p{N}{1,3}")}},
    {"qwen2", false, {LLAMA3("\\p{N}")}},
    {"smollm", false, {"\\p{N}", GPT2}},
};
#define PRETOK_KNOWN "default, gpt-2, llama-bpe, llama3, llama-v3, qwen2, smollm"

struct pretok {
    const pretok_rule *rule;
    int n_stages;
    pcre2_code *code[PRETOK_MAX_STAGES];
};

struct pretok_work {
    pcre2_match_context *limits;
    pcre2_match_data *data[PRETOK_MAX_STAGES];
};

static void *pcre_alloc(size_t bytes, void *ctx)
{
    (void)ctx;
    return mem_alloc(bytes);
}

static void pcre_free(void *p, void *ctx)
{
    (void)ctx;
    mem_free(p);
}

static const pretok_rule *find_rule(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof pretok_rules / sizeof *pretok_rules; i++)
        if (strlen(pretok_rules[i].name) == len && !memcmp(pretok_rules[i].name, name, len)) return &pretok_rules[i];
    return NULL;
}

/* The expressions are ours, so compiling fails for lack of memory alone.  Without a just-in-time compiler (or where the system forbids it) PCRE2
 * interprets: slower, same pieces. */
static spw_status compile_stage(pcre2_code **out, const char *expr, pcre2_compile_context *ctx, spw_err *err)
{
    int code;
    size_t at;
    *out = pcre2_compile((PCRE2_SPTR)expr, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, ctx);
    if (!*out) return spw_fail(err, SPW_E_NOMEM, "a pre-tokenizer's regular expression could not be compiled (PCRE2 error %d at %zu)", code, at);
    (void)pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return SPW_OK;
}

spw_status pretok_create(pretok **out, const char *name, size_t len, spw_err *err)
{
    const pretok_rule *rule = find_rule(name, len);
    if (!rule)
        return spw_fail(err, SPW_E_UNSUPPORTED, "pre-tokenizer '%.*s' is not known (known: " PRETOK_KNOWN ")", len < 64 ? (int)len : 64, name);
    pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    pcre2_compile_context *compile = general ? pcre2_compile_context_create(general) : NULL;
    pretok *p = mem_zalloc(sizeof *p);
    spw_status st = SPW_OK;
    if (!compile || !p) st = spw_fail(err, SPW_E_NOMEM, "no memory for the pre-tokenizer");
    for (int i = 0; st == SPW_OK && i < PRETOK_MAX_STAGES && rule->stages[i]; i++) {
        st = compile_stage(&p->code[i], rule->stages[i], compile, err);
        p->n_stages = i + 1;
    }
    pcre2_compile_context_free(compile);
    pcre2_general_context_free(general);
    if (st != SPW_OK) {
        pretok_free(p);
        return st;
    }
    p->rule = rule;
    *out = p;
    return SPW_OK;
}

void pretok_free(pretok *p)
{
    if (!p) return;
    for (int i = 0; i < p->n_stages; i++) pcre2_code_free(p->code[i]);
    mem_free(p);
}

bool pretok_is_llama3(const pretok *p)
{
    return p->rule->llama3;
}

spw_status pretok_work_create(pretok_work **out, const pretok *p, spw_err *err)
{
    pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    pretok_work *w = mem_zalloc(sizeof *w);
    bool ok = general && w;
    if (ok) ok = (w->limits = pcre2_match_context_create(general)) != NULL;
    for (int i = 0; ok && i < p->n_stages; i++) ok = (w->data[i] = pcre2_match_data_create(1, general)) != NULL;
    pcre2_general_context_free(general);
    if (!ok) {
        pretok_work_free(w);
        return spw_fail(err, SPW_E_NOMEM, "no memory for the pre-tokenizer");
    }
    *out = w;
    return SPW_OK;
}

void pretok_work_free(pretok_work *w)
{
    if (!w) return;
    for (int i = 0; i < PRETOK_MAX_STAGES; i++) pcre2_match_data_free(w->data[i]);
    pcre2_match_context_free(w->limits);
    mem_free(w);
}

typedef struct pretok_run {
    const pretok *p;
    pretok_work *w;
    pretok_fn *fn;
    void *ctx;
    spw_err *err;
} pretok_run;

/* Finds the first match of a stage in s[at..n): 1 and its bounds, 0 for none, or a negative PCRE2 error. */
static int find_match(const pretok_run *r, int stage, const char *s, size_t n, size_t at, size_t *from, size_t *to)
{
    const pcre2_code *code = r->p->code[stage];
    pcre2_match_data *data = r->w->data[stage];
    int rc = pcre2_match(code, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, data, r->w->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = pcre2_match(code, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, r->w->limits);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) return rc;
    const size_t *bounds = pcre2_get_ovector_pointer(data);
    *from = bounds[0], *to = bounds[1];
    return 1;
}

static spw_status split_stage(const pretok_run *r, int stage, const char *s, size_t n)
{
    if (stage == r->p->n_stages) return r->fn(r->ctx, s, n, r->err);
    spw_status st = SPW_OK;
    for (size_t at = 0, from = 0, to = 0; st == SPW_OK && at < n; at = to) {
        int found = find_match(r, stage, s, n, at, &from, &to);
        if (found < 0) {
            spw_status code = found == PCRE2_ERROR_NOMEMORY || found == PCRE2_ERROR_HEAPLIMIT ? SPW_E_NOMEM : SPW_E_FORMAT;
            return spw_fail(r->err, code, "the pre-tokenizer gave up on a text of %zu bytes (PCRE2 error %d)", n, found);
        }
        if (!found) return split_stage(r, stage + 1, s + at, n - at);
        SPW_CHECK(from >= at && to > from);
        if (from > at) st = split_stage(r, stage + 1, s + at, from - at);
        if (st == SPW_OK) st = split_stage(r, stage + 1, s + from, to - from);
    }
    return st;
}

spw_status pretok_split(const pretok *p, pretok_work *w, const char *text, size_t len, pretok_fn *fn, void *ctx, spw_err *err)
{
    pretok_run r = {.p = p, .w = w, .fn = fn, .ctx = ctx, .err = err};
    size_t limit = len < UINT32_MAX / 32 ? 16 * len + 1000000 : UINT32_MAX;
    (void)pcre2_set_match_limit(w->limits, (uint32_t)limit);
    spw_status st = SPW_OK;
    for (size_t at = 0; st == SPW_OK && at < len;) {
        size_t n = utf8_valid_prefix(text + at, len - at);
        if (n) st = split_stage(&r, 0, text + at, n);
        else st = fn(ctx, text + at, n = 1, err);
        at += n;
    }
    return st;
}
