/* fuzz_chat.c - chat templates under a fuzzer: any template text, any messages.
 *
 * Input: sections separated by a line "%%".  The first is two letters: 's' for SentencePiece, and a digit: 0 for the file's template, or
 * the number of a known one; the second the template's text; the others messages, whose first letter is the role (s, u, a, else none that is known).
 *
 * Checked: an id is one of the vocabulary's; an error carries a message; and what the messages say never changes which control tokens come out. */
#include "chat.h"
#include "../tests/chat_vocab.h"
#include "mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(cond) ((cond) ? (void)0 : abort())
enum { MAX_MESSAGES = 16 };

/* Cuts text at lines "%%" in place and returns the number of sections, at most max. */
static size_t cut_sections(char *text, char **sections, size_t max)
{
    size_t n = 0;
    while (text && n < max) {
        char *end = strstr(text, "\n%%\n");
        sections[n++] = text;
        if (end) *end = '\0';
        text = end ? end + 4 : NULL;
    }
    return n;
}

static size_t render_controls(const spw_vocab *v, const char *name, const spw_message *msgs, size_t n_msgs, size_t from, spw_status *status, int32_t **controls)
{
    spw_err err = {0};
    size_t n = 0, n_controls = 0;
    *controls = NULL;
    *status = spw_chat_render(v, name, msgs, n_msgs, from, controls, &n, &err);
    REQUIRE(*status == SPW_OK ? n > 0 : err.code == *status && err.msg[0]);
    for (size_t i = 0; i < n; i++) {
        int32_t id = (*controls)[i];
        REQUIRE(id >= 0 && id < spw_vocab_size(v));
        if (id >= CHAT_VOCAB_FIRST_MARK) (*controls)[n_controls++] = id;
    }
    return n_controls;
}

static void compare(const spw_vocab *v, const char *name, const spw_message *msgs, const spw_message *tame, size_t n_msgs, size_t from)
{
    spw_status status, tame_status;
    int32_t *got, *want;
    size_t n_got = render_controls(v, name, msgs, n_msgs, from, &status, &got), n_want = render_controls(v, name, tame, n_msgs, from, &tame_status, &want);
    REQUIRE(status == tame_status && n_got == n_want);
    REQUIRE(n_got == 0 || memcmp(got, want, n_got * sizeof *got) == 0);
    spw_free(got);
    spw_free(want);
}

static const char *role_of(char letter)
{
    return letter == 's' ? "system" : letter == 'u' ? "user" : letter == 'a' ? "assistant" : "robot";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {NULL, "chatml", "llama2", "llama3", "mistral", "zephyr", "gemma", "phi3", "none", ""};
    char *text = malloc(size + 1), *sections[2 + MAX_MESSAGES];
    spw_message msgs[MAX_MESSAGES], tame[MAX_MESSAGES];
    spw_vocab *v = NULL;
    spw_err err;
    REQUIRE(text);
    if (size) memcpy(text, data, size);
    text[size] = '\0';
    size_t n_sections = cut_sections(text, sections, 2 + MAX_MESSAGES), n_msgs = 0;
    for (size_t i = 2; i < n_sections; i++, n_msgs++) {
        char letter = sections[i][0];
        msgs[n_msgs] = (spw_message){role_of(letter), letter ? sections[i] + 1 : ""};
        tame[n_msgs] = (spw_message){msgs[n_msgs].role, "x"};
    }
    chat_vocab_spec spec = {.spm = text[0] == 's', .add_bos = text[0] == 's', .jinja = n_sections > 1 ? sections[1] : NULL};
    size_t number = text[0] && text[1] >= '0' && text[1] <= '9' ? (size_t)(text[1] - '0') : 0;
    REQUIRE(chat_vocab_open(&v, &spec, &err) == SPW_OK);
    REQUIRE(chat_fingerprint(spec.jinja) != NULL);
    for (size_t from = 0; from <= n_msgs; from++) compare(v, names[number], msgs, tame, n_msgs, from);
    spw_vocab_close(v);
    free(text);
    return 0;
}
