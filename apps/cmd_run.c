/* cmd_run.c - spillway run: one prompt in, one text out. */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "generate.h"
#include "report.h"

/* The template to apply, NULL for none; false after a complaint. */
static bool choose_template(const options *o, const spw_vocab *v, const char **name)
{
    const char *own = spw_vocab_chat_template(v);
    *name = o->chat_template ? o->chat_template : own;
    if (strcmp(*name, "none") == 0 || **name == '\0') *name = NULL;
    if (*name && strcmp(*name, "unknown") == 0) {
        report_error(command_run.name, "%s: its chat template is not known: give one with --chat-template (%s), or none for plain text", o->model,
                     spw_chat_templates());
        return false;
    }
    if (!*name && o->system) {
        report_error(command_run.name, "--system: %s has no chat template: give one with --chat-template (%s)", o->model, spw_chat_templates());
        return false;
    }
    return true;
}

static bool encode_chat(const options *o, const spw_vocab *v, const char *name, const text *input, int32_t **ids, size_t *n)
{
    spw_err err = {0};
    spw_message messages[2];
    size_t count = 0;
    if (input->len == 0) {
        report_error(command_run.name, "the prompt is empty: give it with -p, -f or on standard input");
        return false;
    }
    if (memchr(input->data, 0, input->len)) {
        report_error(command_run.name, "the prompt holds a NUL byte at offset %zu: no text for a chat template; --chat-template none takes any bytes",
                     (size_t)((char *)memchr(input->data, 0, input->len) - input->data));
        return false;
    }
    if (o->system) messages[count++] = (spw_message){"system", o->system};
    messages[count++] = (spw_message){"user", input->data};
    if (spw_chat_render(v, name, messages, count, 0, ids, n, &err) == SPW_OK) return true;
    report_error(command_run.name, "%s", err.msg);
    return false;
}

static bool encode_plain(const spw_vocab *v, const text *input, int32_t **ids, size_t *n)
{
    spw_err err = {0};
    unsigned flags = spw_vocab_adds_bos(v) || (input->len == 0 && spw_vocab_bos(v) >= 0) ? (unsigned)SPW_TOK_BOS : 0u;
    if (spw_tokenize(v, input->data, input->len, flags, ids, n, &err) != SPW_OK) {
        report_error(command_run.name, "%s", err.msg);
        return false;
    }
    if (*n == 0) report_error(command_run.name, "the prompt is empty, and the model has no token to begin a text with");
    return *n > 0;
}

/* *plain: no template was put around the text. */
static bool encode_prompt(const options *o, const loaded *l, const text *input, int32_t **ids, size_t *n, bool *plain)
{
    const char *name;
    if (!choose_template(o, l->vocab, &name)) return false;
    *plain = !name;
    if (!(name ? encode_chat(o, l->vocab, name, input, ids, n) : encode_plain(l->vocab, input, ids, n))) return false;
    if (*n <= l->n_ctx) return true;
    report_error(command_run.name, "the prompt takes %zu tokens, the context holds %" PRIu64 ": raise -c, or shorten the prompt", *n, l->n_ctx);
    return false;
}

static int answer(const options *o, const loaded *l, const int32_t *ids, size_t n, bool plain)
{
    generator g;
    turn t;
    if (!generator_open(&g, l, o, !o->json)) return EXIT_FAILED;
    g.continues = plain;
    loading_warn(l);
    generate_watch_interrupts();
    int code = generate_turn(&g, ids, n, &t) ? EXIT_OK : EXIT_FAILED;
    if (code == EXIT_OK) {
        if (o->json) code = report_json(command_run.name, generate_to_json(&g, &t), 0);
        else generate_print_stats(&g, &t);
        if (code == EXIT_OK && t.stop == STOP_INTERRUPT) code = EXIT_INTERRUPTED;
    }
    turn_free(&t);
    generator_close(&g);
    return code;
}

static bool read_input(const options *o, text *input)
{
    char why[600];
    if (!o->prompt && !o->file && isatty(STDIN_FILENO)) fprintf(stderr, "Type the prompt; Ctrl-D on an empty line ends it.\n");
    if (text_read_prompt(input, o->file, o->prompt, why, sizeof why)) return true;
    report_error(command_run.name, "%s", why);
    return false;
}

static int run_main(const options *o)
{
    loaded l = {0};
    text input = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    bool plain = false;
    int code = EXIT_FAILED;
    if (loading_check(&l, &command_run, o, (uint64_t)o->ctx) && read_input(o, &input) && loading_open(&l, o) && encode_prompt(o, &l, &input, &ids, &n, &plain))
        code = answer(o, &l, ids, n, plain);
    spw_free(ids);
    text_free(&input);
    loading_close(&l);
    return code;
}

const command command_run = {
    .bit = CMD_RUN,
    .name = "run",
    .summary = "read a prompt and write the model's text",
    .synopsis = "-m MODEL [-f FILE] [-p PROMPT] [options]",
    .description = "Reads a prompt from -f, -p, both (the file's text first) or standard input, and streams the model's text to standard output; everything "
                   "else goes to standard error: a progress bar while the prompt is read (on a terminal only) and one line of statistics at the end.\n\n"
                   "The chat template of an instruct model is applied unless --chat-template says otherwise; a base model continues the text. Text of a prompt "
                   "can never become a control token of the model.\n\n"
                   "Ctrl-C ends the run cleanly, with the statistics; a second one kills it. With --json nothing is streamed; one object is printed at the "
                   "end: text, tokens, n_prompt, n_generated, stop (eos, length or interrupt), timings, kv (bytes, positions, policy, share_read), load (repack, repack_bytes, repack_ms), "
                   "logits_hash (over the bits of every generated step's logits), model, isa, threads, seed.",
    .examples = "  spillway run -m model.gguf -p 'Why is the sky blue?'\n"
                "  spillway run -m model.gguf -f book.txt -p 'Who is the narrator?' -c 32768\n"
                "  git diff | spillway run -m model.gguf --system 'Review this change.'\n"
                "  spillway run -m base.gguf --chat-template none -p 'Once upon a time' -n 100 --temp 0\n"
                "  spillway run -m model.gguf -f long.txt -c 131072 --rope-scaling yarn --rope-scale 4\n",
    .main = run_main,
};
