/* chat.c - conversations as token ids, by known chat templates.
 *
 * A file carries its template as a Jinja program.  It is never run: the program's text is recognised by its marks (chat_fingerprint), and a
 * renderer of ours writes what that program would write.  The one thing to know: the turn marks become control tokens by vocab_find, and
 * every other piece of text, a user's above all, is encoded with special tokens off.  So no text can become a control token.  A mark
 * that is no single token of this vocabulary (llama2's [INST] everywhere, another family's marks) is written as plain text.
 *
 * Plain text between two control tokens is encoded in one piece, as the models' own tokenizers do. */
#include "chat.h"
#include "mem.h"
#include "status.h"
#include "tokenizer.h"

#include <string.h>

/* A turn is: open, role, close (a mark each, or one mark where role_in_mark), after_open, the content, end, after_end. */
typedef struct chat_style {
    const char *name;
    bool inst;                    /* llama2 and mistral: turns of a pair, [INST] user [/INST] assistant; the fields from open on are unused */
    bool bos;                     /* the template itself writes BOS */
    bool trim;                    /* white space round a content is dropped */
    bool has_system;              /* otherwise the system's text opens the user message that follows */
    bool role_in_mark;
    const char *open, *close;
    const char *after_open;
    const char *end;              /* NULL: the model's EOS */
    const char *after_end;
    const char *assistant;        /* what the template calls this role */
} chat_style;

static const chat_style chat_styles[] = {
    {.name = "chatml", .has_system = true, .open = "<|im_start|>", .close = "", .after_open = "\n", .end = "<|im_end|>", .after_end = "\n", .assistant = "assistant"},
    {.name = "llama2", .inst = true, .bos = true, .trim = true},
    {.name = "llama3", .bos = true, .trim = true, .has_system = true, .open = "<|start_header_id|>", .close = "<|end_header_id|>", .after_open = "\n\n",
     .end = "<|eot_id|>", .after_end = "", .assistant = "assistant"},
    {.name = "mistral", .inst = true, .bos = true},
    {.name = "zephyr", .has_system = true, .role_in_mark = true, .open = "<|", .close = "|>", .after_open = "\n", .after_end = "\n", .assistant = "assistant"},
    {.name = "gemma", .bos = true, .trim = true, .open = "<start_of_turn>", .close = "", .after_open = "\n", .end = "<end_of_turn>", .after_end = "\n",
     .assistant = "model"},
    {.name = "phi3", .has_system = true, .role_in_mark = true, .open = "<|", .close = "|>", .after_open = "\n", .end = "<|end|>", .after_end = "\n",
     .assistant = "assistant"},
};
enum { CHAT_N_STYLES = sizeof chat_styles / sizeof chat_styles[0] };

/* ------------------------------------------------------------------------------------------------- what a Jinja text says ---- */

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* Zephyr ends a user's turn with EOS, in the expression that opens it; others that use <|user|> do not. */
static bool user_turn_ends_with_eos(const char *jinja)
{
    const char *turn = strstr(jinja, "<|user|>");
    const char *stop = turn ? strstr(turn, "}}") : NULL;
    const char *eos = turn ? strstr(turn, "eos_token") : NULL, *literal = turn ? strstr(turn, "<|endoftext|>") : NULL;
    return stop && ((eos && eos < stop) || (literal && literal < stop));
}

/* Marks that other families share are decided first.  [SYSTEM_PROMPT] (mistral v7), <|im_sep|> (phi4) and [gMASK] (glm) make a different turn. */
const char *chat_fingerprint(const char *jinja)
{
    if (!jinja) return "";
    if (has(jinja, "[SYSTEM_PROMPT]") || has(jinja, "<|im_sep|>") || has(jinja, "[gMASK]")) return "unknown";
    if (has(jinja, "<|im_start|>")) return has(jinja, "<|im_end|>") ? "chatml" : "unknown";
    if (has(jinja, "<|start_header_id|>")) return has(jinja, "<|eot_id|>") ? "llama3" : "unknown";
    if (has(jinja, "[INST]")) return has(jinja, "<<SYS>>") ? "llama2" : "mistral";
    if (has(jinja, "<start_of_turn>")) return has(jinja, "<end_of_turn>") ? "gemma" : "unknown";
    if (has(jinja, "<|assistant|>") && has(jinja, "<|end|>")) return "phi3";
    if (has(jinja, "<|assistant|>") && user_turn_ends_with_eos(jinja)) return "zephyr";
    return "unknown";
}

/* One character of the template's text at *p, which is left behind it; inside quotes a backslash escapes. */
static char literal_char(const char **p, char quote)
{
    char c = *(*p)++;
    if (!quote || c != '\\' || !**p) return c;
    c = *(*p)++;
    return c == 'n' ? '\n' : c == 't' ? '\t' : c;
}

/* Copies the literal at p up to "<|im_end|>" into out (NULL: only counts); 0 when it is empty or ends before that. */
static size_t copy_literal(const char *p, char quote, char *out)
{
    static const char end[] = "<|im_end|>";
    char stop = quote ? quote : '{';
    size_t n = 0;
    while (strncmp(p, end, sizeof end - 1) != 0) {
        if (!*p || *p == stop) return 0;
        char c = literal_char(&p, quote);
        if (out) out[n] = c;
        n++;
    }
    return n;
}

/* The message that a chatml template inserts before a conversation without a system message: what stands between "<|im_start|>system\n"
 * and "<|im_end|>" with no expression in between, in a quoted literal or as bare text.  *out is NULL when there is none; freed by mem_free. */
static spw_status find_default_system(const char *jinja, char **out, spw_err *err)
{
    static const char mark[] = "<|im_start|>system";
    *out = NULL;
    for (const char *at = strstr(jinja, mark); at; at = strstr(at + 1, mark)) {
        char before = at > jinja ? at[-1] : '\0', quote = before == '\'' || before == '"' ? before : '\0';
        const char *p = at + sizeof mark - 1;
        if (literal_char(&p, quote) != '\n') continue;
        size_t n = copy_literal(p, quote, NULL);
        if (n == 0) continue;
        *out = mem_calloc(n + 1, 1);
        if (!*out) return spw_fail(err, SPW_E_NOMEM, "chat template: no memory for %zu bytes", n + 1);
        copy_literal(p, quote, *out);
        return SPW_OK;
    }
    return SPW_OK;
}

/* ------------------------------------------------------------------------------------------------------------- the output ---- */

typedef struct chat_out {
    const spw_vocab *vocab;
    const chat_style *style;
    const char *own;    /* Jinja text of the file where style was found by it, otherwise NULL */
    vocab_ids ids;
    char *text;         /* plain text not yet encoded */
    size_t n_text, cap_text;
    bool begin;         /* the next plain text starts the sequence or follows a control token */
    spw_status status;  /* of the first call that failed; later ones do nothing */
    spw_err *err;
} chat_out;

static void put_bytes(chat_out *o, const char *text, size_t len)
{
    size_t need;
    if (o->status != SPW_OK || len == 0) return;
    if (!add_size(o->n_text, len, &need)) need = SIZE_MAX;
    if (need > o->cap_text) {
        size_t cap = need < SIZE_MAX / 2 ? need * 2 : need;
        char *grown = mem_realloc(o->text, o->n_text, cap);
        if (!grown) {
            o->status = spw_fail(o->err, SPW_E_NOMEM, "chat: no memory for %zu bytes of text", cap);
            return;
        }
        o->text = grown, o->cap_text = cap;
    }
    memcpy(o->text + o->n_text, text, len);
    o->n_text = need;
}

static void put_text(chat_out *o, const char *text)
{
    put_bytes(o, text, strlen(text));
}

static void put_content(chat_out *o, const char *text, bool trim)
{
    static const char space[] = " \t\n\v\f\r";
    size_t len = strlen(text), lead = trim ? strspn(text, space) : 0;
    while (trim && len > lead && strchr(space, text[len - 1])) len--;
    put_bytes(o, text + lead, len - lead);
}

/* Encodes what is pending.  Text that brings its own leading space gets no second one from SentencePiece. */
static void flush_text(chat_out *o)
{
    if (o->status != SPW_OK || o->n_text == 0) return;
    bool begin = o->begin && o->text[0] != ' ';
    o->status = vocab_encode(o->vocab, o->text, o->n_text, false, begin, &o->ids, o->err);
    o->n_text = 0;
    o->begin = false;
}

static void put_id(chat_out *o, int32_t id)
{
    flush_text(o);
    if (o->status != SPW_OK) return;
    o->status = vocab_ids_push(&o->ids, id, o->err);
    o->begin = true;
}

static void put_mark(chat_out *o, const char *mark)
{
    int32_t id = *mark ? vocab_find(o->vocab, mark) : -1;
    if (id >= 0) put_id(o, id);
    else put_text(o, mark);
}

static void put_eos(chat_out *o)
{
    int32_t id = spw_vocab_eos(o->vocab);
    if (id >= 0) put_id(o, id);
    else put_mark(o, "</s>");
}

static void put_bos(chat_out *o)
{
    int32_t id = spw_vocab_bos(o->vocab);
    if (id >= 0) put_id(o, id);
}

/* ------------------------------------------------------------------------------------- turns that are alike for every role ---- */

static void open_turn(chat_out *o, const char *role)
{
    const chat_style *s = o->style;
    if (s->role_in_mark) {
        char mark[32] = "";
        strcat(strcat(strcat(mark, s->open), role), s->close); /* roles are our own words: they fit */
        put_mark(o, mark);
    } else {
        put_mark(o, s->open);
        put_text(o, role);
        put_mark(o, s->close);
    }
    put_text(o, s->after_open);
}

static void close_turn(chat_out *o)
{
    if (o->style->end) put_mark(o, o->style->end);
    else put_eos(o);
    put_text(o, o->style->after_end);
}

/* The text that Llama 3.1 and later put at the head of every system message; the date is the template's fixed one, so that a
 * conversation gives the same ids on every day. */
static const char *llama31_preamble(const chat_out *o)
{
    bool dated = o->own && strcmp(o->style->name, "llama3") == 0 && has(o->own, "Cutting Knowledge Date: December 2023");
    return dated ? "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" : "";
}

/* What comes before a conversation whose first message is not the system's. */
static void put_default_system(chat_out *o)
{
    char *text = NULL;
    const char *preamble = llama31_preamble(o);
    if (o->own && strcmp(o->style->name, "chatml") == 0) o->status = find_default_system(o->own, &text, o->err);
    if (text || *preamble) {
        open_turn(o, "system");
        put_text(o, text ? text : preamble);
        close_turn(o);
    }
    mem_free(text);
}

static bool is_role(const spw_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static void render_turns(chat_out *o, const spw_message *msgs, size_t n, size_t from)
{
    const chat_style *s = o->style;
    const char *folded = NULL; /* a system's text that waits for the user's message */
    if (from > 0) close_turn(o);
    else if (s->has_system && !is_role(&msgs[0], "system")) put_default_system(o);
    for (size_t i = from; i < n; i++) {
        const spw_message *m = &msgs[i];
        if (is_role(m, "system") && !s->has_system) {
            folded = m->text;
            continue;
        }
        open_turn(o, is_role(m, "assistant") ? s->assistant : m->role);
        if (i == 0 && is_role(m, "system")) put_text(o, llama31_preamble(o));
        if (folded && is_role(m, "user")) {
            put_text(o, folded);
            put_text(o, "\n\n");
            folded = NULL;
        }
        put_content(o, m->text, s->trim);
        close_turn(o);
    }
    open_turn(o, s->assistant);
}

/* ------------------------------------------------------------------------------------------------------ llama2 and mistral ---- */

/* llama2 begins every pair with BOS and wraps the system's text in <<SYS>>; mistral has one BOS and puts the text before the user's.
 * Mistral's templates differ in the spaces inside [INST]: the file's own text decides, "[INST] text [/INST]" is the default. */
static void render_inst(chat_out *o, const spw_message *msgs, size_t n, size_t from)
{
    bool llama2 = strcmp(o->style->name, "llama2") == 0, own = o->own && !llama2;
    const char *lead = own && !has(o->own, "[INST] ") ? "" : " ", *tail = own && !has(o->own, " [/INST]") ? "" : " ";
    const char *folded = NULL;
    bool started = from == 0; /* the BOS of a conversation is there already */
    if (from > 0) put_eos(o);
    for (size_t i = from; i < n; i++) {
        const spw_message *m = &msgs[i];
        if (is_role(m, "system")) {
            folded = m->text;
        } else if (is_role(m, "user")) {
            if (llama2 && !started) put_bos(o);
            started = false;
            put_mark(o, "[INST]");
            put_text(o, lead);
            if (folded) {
                put_text(o, llama2 ? "<<SYS>>\n" : "");
                put_text(o, folded);
                put_text(o, llama2 ? "\n<</SYS>>\n\n" : "\n\n");
            }
            put_content(o, m->text, o->style->trim);
            put_text(o, tail);
            put_mark(o, "[/INST]");
            folded = NULL;
        } else {
            put_text(o, lead);
            put_content(o, m->text, o->style->trim);
            put_text(o, llama2 ? " " : "");
            put_eos(o);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------ public calls ---- */

const char *spw_vocab_chat_template(const spw_vocab *v)
{
    return chat_fingerprint(vocab_template_text(v));
}

const char *spw_chat_templates(void)
{
    return "chatml, llama2, llama3, mistral, zephyr, gemma, phi3";
}

static const chat_style *find_style(const char *name)
{
    for (size_t i = 0; i < CHAT_N_STYLES; i++)
        if (strcmp(chat_styles[i].name, name) == 0) return &chat_styles[i];
    return NULL;
}

static spw_status choose_style(chat_out *o, const char *name, spw_err *err)
{
    const char *jinja = vocab_template_text(o->vocab), *own_name = chat_fingerprint(jinja);
    o->style = find_style(name ? name : own_name);
    if (!o->style && name) return spw_fail(err, SPW_E_UNSUPPORTED, "--chat-template %s is not known; known are %s, none", name, spw_chat_templates());
    if (!o->style)
        return spw_fail(err, SPW_E_UNSUPPORTED, "the model %s; choose one with --chat-template: %s, none",
                        *own_name ? "carries a chat template that is not known" : "carries no chat template", spw_chat_templates());
    o->own = strcmp(o->style->name, own_name) == 0 ? jinja : NULL;
    return SPW_OK;
}

static spw_status check_messages(const chat_style *s, const spw_message *msgs, size_t n, size_t from, spw_err *err)
{
    if (!msgs || from >= n) return spw_fail(err, SPW_E_ARG, "chat: expected messages from number %zu on, found %zu in all", from, n);
    for (size_t i = 0; i < n; i++) {
        const spw_message *m = &msgs[i];
        if (!m->role || !m->text) return spw_fail(err, SPW_E_ARG, "chat: message %zu has no %s", i, m->role ? "text" : "role");
        if (!is_role(m, "system") && !is_role(m, "user") && !is_role(m, "assistant"))
            return spw_fail(err, SPW_E_ARG, "chat: message %zu has role \"%s\", expected system, user or assistant", i, m->role);
        bool folds = is_role(m, "system") && !s->has_system && i >= from;
        if (folds && (i + 1 == n || !msgs[i + 1].role || !is_role(&msgs[i + 1], "user")))
            return spw_fail(err, SPW_E_ARG, "chat: template %s has no system role: expected a user message after system message %zu", s->name, i);
    }
    if (from > 0 && !is_role(&msgs[from - 1], "assistant"))
        return spw_fail(err, SPW_E_ARG, "chat: message %zu has role \"%s\", expected the assistant's answer before the new messages", from - 1, msgs[from - 1].role);
    return SPW_OK;
}

spw_status spw_chat_render(const spw_vocab *v, const char *name, const spw_message *msgs, size_t n_msgs, size_t from, int32_t **ids, size_t *n,
                           spw_err *err)
{
    if (!v || !ids || !n) return spw_fail(err, SPW_E_ARG, "chat: vocabulary, ids and n must not be NULL");
    chat_out o = {.vocab = v, .begin = from == 0, .err = err};
    spw_status status = choose_style(&o, name, err);
    if (status == SPW_OK) status = check_messages(o.style, msgs, n_msgs, from, err);
    if (status != SPW_OK) return status;
    if (from == 0 && (o.style->bos || spw_vocab_adds_bos(v) || (o.own && has(o.own, "bos_token")))) put_bos(&o);
    if (o.style->inst) render_inst(&o, msgs, n_msgs, from);
    else render_turns(&o, msgs, n_msgs, from);
    flush_text(&o);
    mem_free(o.text);
    if (o.status != SPW_OK) {
        vocab_ids_free(&o.ids);
        return o.status;
    }
    *ids = o.ids.ids;
    *n = o.ids.n;
    return SPW_OK;
}
