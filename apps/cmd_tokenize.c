/* cmd_tokenize.c - spillway tokenize: a text's tokens.  Loads the vocabulary alone, so vocabulary-only files do. */
#include <inttypes.h>
#include <string.h>

#include "commands.h"
#include "report.h"
#include "text_input.h"

static void print_ids(const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) printf("%s%" PRId32, i ? " " : "", ids[i]);
    if (n) putchar('\n');
}

static void print_pieces(const spw_vocab *v, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *piece = spw_token_text(v, ids[i], true, &len);
        printf("%" PRId32 "\t'", ids[i]);
        report_print_safe(stdout, piece, len);
        fputs("'\n", stdout);
    }
}

static json_t *to_json(const spw_vocab *v, const int32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *piece = spw_token_text(v, ids[i], true, &len);
        json_t *item = json_object();
        json_object_set_new(item, "id", json_integer(ids[i]));
        json_object_set_new(item, "text", report_text(piece, len));
        json_array_append_new(list, item);
    }
    return list;
}

static int tokenize_text(const options *o, const spw_vocab *v)
{
    const char *name = command_tokenize.name;
    text input = {0};
    char why[600];
    int32_t *ids = NULL;
    size_t n = 0;
    spw_err err = {0};
    int code = EXIT_FAILED;
    unsigned flags = (o->special ? (unsigned)SPW_TOK_SPECIAL : 0u) | (o->bos ? (unsigned)SPW_TOK_BOS : 0u);
    if (!text_read_prompt(&input, o->file, o->prompt, why, sizeof why)) {
        report_error(name, "%s", why);
    } else if (spw_tokenize(v, input.data, input.len, flags, &ids, &n, &err) != SPW_OK) {
        report_error(name, "%s", err.msg);
    } else if (o->json) {
        code = report_json(name, to_json(v, ids, n), 0);
    } else {
        if (o->ids) print_ids(ids, n);
        else print_pieces(v, ids, n);
        code = report_finish(name);
    }
    spw_free(ids);
    text_free(&input);
    return code;
}

static int tokenize_main(const options *o)
{
    spw_vocab *v = NULL;
    spw_err err = {0};
    if (o->file && o->prompt) {
        report_error(command_tokenize.name, "-f and -p: give one of them");
        return EXIT_USAGE;
    }
    if (o->ids && o->json) {
        report_error(command_tokenize.name, "--ids and --json: give one of them");
        return EXIT_USAGE;
    }
    if (spw_vocab_open(&v, o->model, &err) != SPW_OK) {
        report_file_error(command_tokenize.name, o->model, &err);
        return EXIT_FAILED;
    }
    int code = tokenize_text(o, v);
    spw_vocab_close(v);
    return code;
}

const command command_tokenize = {
    .bit = CMD_TOKENIZE,
    .name = "tokenize",
    .summary = "print the tokens of a text",
    .synopsis = "-m MODEL [-p TEXT | -f FILE] [--ids | --json] [--special] [--bos]",
    .description = "Prints the tokens of a text, one a line: its id, a tab, and the bytes that it stands for, in quotes, control characters and bytes that are "
                   "not UTF-8 as escapes. The text is read byte for byte: no beginning-of-text token is added and special tokens are plain text unless "
                   "asked for. Vocabulary-only files do; nothing else of the model is loaded.",
    .examples = "  spillway tokenize -m model.gguf -p 'Hello world'\n"
                "  spillway tokenize -m model.gguf -f book.txt --ids | wc -w\n",
    .main = tokenize_main,
};
