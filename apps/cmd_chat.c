/* cmd_chat.c - spillway chat: a conversation.  Every turn is appended to one session; what was said before is never read again. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "generate.h"
#include "line_input.h"
#include "report.h"

typedef struct chat {
    const options *flags;
    const loaded *model;
    const char *name; /* the template */
    generator generator;
    line_input in;
    spw_message *messages; /* texts are owned, roles are not */
    size_t n, cap;
    size_t n_held; /* messages that the session holds, the last of them an answer */
    size_t n_turns;
    turn last;
} chat;

/* What became of a line. */
typedef enum outcome { GO_ON, LEAVE, FAIL } outcome;

static void push_message(chat *c, const char *role, const char *data, size_t len)
{
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 16;
        c->messages = app_realloc(c->messages, c->cap * sizeof *c->messages);
    }
    char *copy = app_alloc(len + 1);
    memcpy(copy, data, len);
    copy[len] = '\0';
    c->messages[c->n++] = (spw_message){role, copy};
}

static void drop_messages(chat *c, size_t keep)
{
    while (c->n > keep) free((void *)(uintptr_t)c->messages[--c->n].text);
}

static void begin_conversation(chat *c)
{
    drop_messages(c, 0);
    c->n_held = 0;
    if (c->flags->system) push_message(c, "system", c->flags->system, strlen(c->flags->system));
}

/* Shows what a finished turn made; the answer itself has been streamed. */
static outcome show_turn(chat *c)
{
    if (c->flags->json) {
        json_t *o = generate_to_json(&c->generator, &c->last);
        json_object_set_new(o, "turn", report_count(c->n_turns));
        return report_json(command_chat.name, o, 0) == EXIT_OK ? GO_ON : FAIL;
    }
    if (!isatty(STDOUT_FILENO) && !report_write("\n", 1)) {
        report_output_failed(command_chat.name);
        return FAIL;
    }
    if (c->last.stop == STOP_INTERRUPT) fprintf(stderr, "(interrupted)\n");
    if (!c->last.context_full) return GO_ON;
    report_error(command_chat.name, "the context of %" PRIu64 " positions is full: raise -c%s", c->model->n_ctx,
                 c->in.interactive ? ", or /reset starts a new conversation" : "");
    return c->in.interactive ? GO_ON : FAIL;
}

static outcome evaluate_turn(chat *c, const int32_t *ids, size_t n)
{
    generator *g = &c->generator;
    uint64_t before = spw_session_pos(g->session) + (g->pending >= 0);
    if (before + n > c->model->n_ctx) {
        report_error(command_chat.name, "the turn takes %zu tokens, and %" PRIu64 " of the context's %" PRIu64 " are taken: raise -c%s", n, before,
                     c->model->n_ctx, c->in.interactive ? ", or /reset starts a new conversation" : "");
        return c->in.interactive ? GO_ON : FAIL;
    }
    turn_free(&c->last);
    generate_watch_interrupts();
    if (!generate_turn(g, ids, n, &c->last)) return FAIL;
    c->n_turns++;
    if (c->last.n_prompt < n) {
        /* The turn was interrupted while it was read: as if it had not been said. */
        spw_err err = {0};
        if (spw_session_truncate(g->session, before, &err) != SPW_OK) {
            report_error(command_chat.name, "%s", err.msg);
            return FAIL;
        }
        return show_turn(c);
    }
    push_message(c, "assistant", c->last.answer.data, c->last.answer.len);
    c->n_held = c->n;
    return show_turn(c);
}

static outcome say(chat *c, const char *line, size_t len)
{
    int32_t *ids = NULL;
    size_t n = 0;
    spw_err err = {0};
    outcome result = FAIL;
    if (strlen(line) != len) {
        report_error(command_chat.name, "turn %zu holds a NUL byte: no text for a chat template", c->n_turns + 1);
        return FAIL;
    }
    push_message(c, "user", line, len);
    if (spw_chat_render(c->model->vocab, c->name, c->messages, c->n, c->n_held, &ids, &n, &err) != SPW_OK)
        report_error(command_chat.name, "%s", err.msg);
    else result = evaluate_turn(c, ids, n);
    spw_free(ids);
    /* A turn that was not answered is forgotten; the system message stays. */
    if (c->n_held < c->n) drop_messages(c, c->n_held ? c->n_held : c->flags->system != NULL);
    return result;
}

static outcome obey(chat *c, const char *line)
{
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return LEAVE;
    if (strcmp(line, "/reset") == 0) {
        if (!generator_reset(&c->generator)) return FAIL;
        begin_conversation(c);
        fprintf(stderr, "A new conversation.\n");
    } else if (strcmp(line, "/stats") == 0) {
        generate_print_stats(&c->generator, &c->last);
        fprintf(stderr, "context %" PRIu64 " of %" PRIu64 " positions\n", spw_session_pos(c->generator.session), c->model->n_ctx);
    } else {
        if (strcmp(line, "/help") != 0) fprintf(stderr, "Unknown command.\n");
        fprintf(stderr, "/help   this list\n/reset  start a new conversation\n/stats  statistics of the last answer\n/quit   leave; Ctrl-D does too\n");
    }
    return GO_ON;
}

static int converse(chat *c)
{
    bool hinted = false; /* the last thing that happened was Ctrl-C at the prompt */
    for (;;) {
        size_t len;
        generate_watch_interrupts();
        if (!line_input_read(&c->in, "> ", &len)) {
            if (!generate_interrupted()) {
                if (c->in.interactive) fputc('\n', stderr);
                return EXIT_OK;
            }
            if (hinted || !c->in.interactive) return EXIT_INTERRUPTED;
            hinted = true;
            fprintf(stderr, "\nCtrl-C again, Ctrl-D or /quit leaves.\n");
            continue;
        }
        hinted = false;
        if (len == 0) continue;
        outcome result = c->in.line[0] == '/' && !c->flags->json ? obey(c, c->in.line) : say(c, c->in.line, len);
        if (result == LEAVE) return EXIT_OK;
        if (result == FAIL) return EXIT_FAILED;
        if (c->last.stop == STOP_INTERRUPT && !c->in.interactive && generate_interrupted()) return EXIT_INTERRUPTED;
    }
}

static bool choose_template(const options *o, const loaded *l, const char **name)
{
    const char *own = spw_vocab_chat_template(l->vocab);
    *name = o->chat_template ? o->chat_template : own;
    if (**name && strcmp(*name, "unknown") != 0) return true;
    report_error(command_chat.name, "%s: %s: give one with --chat-template (%s)", o->model,
                 **name ? "its chat template is not known" : "a base model without a chat template", spw_chat_templates());
    return false;
}

static void greet(const chat *c)
{
    const char *name = *c->model->info->name ? c->model->info->name : c->flags->model;
    report_print_safe(stderr, name, strlen(name));
    fprintf(stderr, ", context %" PRIu64 ". /help lists the commands, Ctrl-C stops an answer.\n", c->model->n_ctx);
}

static int chat_main(const options *o)
{
    loaded l = {0};
    chat c = {.flags = o, .model = &l};
    int code = EXIT_FAILED;
    if (o->chat_template && strcmp(o->chat_template, "none") == 0) {
        report_error(command_chat.name, "--chat-template: a conversation needs a template, found 'none'");
        return EXIT_USAGE;
    }
    if (loading_check(&l, &command_chat, o, (uint64_t)o->ctx) && loading_open(&l, o) && choose_template(o, &l, &c.name) &&
        generator_open(&c.generator, &l, o, !o->json)) {
        loading_warn(&l);
        line_input_open(&c.in, o->json);
        if (c.in.interactive) greet(&c);
        begin_conversation(&c);
        code = converse(&c);
        line_input_close(&c.in);
    }
    drop_messages(&c, 0);
    free(c.messages);
    turn_free(&c.last);
    generator_close(&c.generator);
    loading_close(&l);
    return code;
}

const command command_chat = {
    .bit = CMD_CHAT,
    .name = "chat",
    .summary = "have a conversation",
    .synopsis = "-m MODEL [--system TEXT] [options]",
    .description = "A conversation with an instruct model: line by line from standard input, on a terminal with line editing and a history that is kept in "
                   "$XDG_STATE_HOME/spillway/history or ~/.local/state/spillway/history. Every turn is appended to one session; nothing is read twice.\n\n"
                   "Lines that begin with a slash are commands: /help, /reset, /stats, /quit. Ctrl-C stops an answer, and at the prompt it drops the line; "
                   "twice in a row there it leaves. Empty lines are skipped. When the context is full, the conversation ends with an error; on a terminal "
                   "/reset starts a new one.\n\n"
                   "With --json every line of standard input is a turn, slash or not, and one JSON object a line answers it: the fields of "
                   "spillway run, and turn; n_prompt counts the tokens that were appended for the turn.",
    .examples = "  spillway chat -m model.gguf\n"
                "  spillway chat -m model.gguf --system 'Answer in one sentence.' --temp 0\n"
                "  printf 'What is the capital of France?\\nAnd of Italy?\\n' | spillway chat -m model.gguf --json\n",
    .main = chat_main,
};
