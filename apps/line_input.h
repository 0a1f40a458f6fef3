/* line_input.h - lines from a terminal, with editing and history where libedit is built in, or from a pipe. */
#ifndef SPW_APP_LINE_INPUT_H
#define SPW_APP_LINE_INPUT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct line_input {
    bool interactive; /* somebody types: a prompt is shown and lines go to the history */
    char *history;    /* path of the history file, or NULL */
    char *line;       /* the line that was read last */
    size_t cap;
} line_input;

/* quiet: never show a prompt. */
void line_input_open(line_input *in, bool quiet);
void line_input_close(line_input *in);
/* Reads one line without its newline into in->line, *len bytes of it.  False at the end of input or after a signal. */
bool line_input_read(line_input *in, const char *prompt, size_t *len);

#endif
