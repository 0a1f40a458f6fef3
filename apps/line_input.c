/* line_input.c - lines from a terminal, with editing and history where libedit is built in, or from a pipe.
 *
 * The history is a convenience: where its file cannot be made or written, there is none, and nothing is said. */
#include "line_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef HAVE_LIBEDIT
#include <editline/readline.h>
#include <langinfo.h>
#include <locale.h>
#endif

#include "text_input.h"

#ifdef HAVE_LIBEDIT
#define HISTORY_LINES 1000

/* Makes the folders above path, private to the user.  Failures show when the file is opened. */
static void make_folders(char *path)
{
    for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = '\0';
        mkdir(path, 0700);
        *p = '/';
    }
}

/* Path of a history file that can be written, or NULL. */
static char *history_path(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME"), *file = "/spillway/history";
    text path = {0};
    if (state && *state == '/') {
        text_append(&path, state, strlen(state));
    } else if (home && *home == '/') {
        text_append(&path, home, strlen(home));
        text_append(&path, "/.local/state", 13);
    } else {
        return NULL;
    }
    text_append(&path, file, strlen(file));
    make_folders(path.data);
    int fd = open(path.data, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    else text_free(&path);
    return path.data;
}

static void editing_begin(line_input *in)
{
    /* Models take UTF-8, so lines are edited as UTF-8, even where the user's locale says nothing. */
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
    using_history();
    stifle_history(HISTORY_LINES);
    rl_bind_key('\t', rl_insert);
    in->history = history_path();
    if (in->history) read_history(in->history);
}

static bool read_edited(line_input *in, const char *prompt, size_t *len)
{
    free(in->line);
    in->line = readline(prompt);
    if (!in->line) return false;
    *len = strlen(in->line);
    if (*len) add_history(in->line);
    if (*len && in->history) write_history(in->history);
    return true;
}
#endif

void line_input_open(line_input *in, bool quiet)
{
    *in = (line_input){.interactive = !quiet && isatty(STDIN_FILENO)};
#ifdef HAVE_LIBEDIT
    if (in->interactive && isatty(STDOUT_FILENO)) editing_begin(in);
#endif
}

void line_input_close(line_input *in)
{
    free(in->history);
    free(in->line);
    *in = (line_input){0};
}

bool line_input_read(line_input *in, const char *prompt, size_t *len)
{
#ifdef HAVE_LIBEDIT
    if (in->interactive && isatty(STDOUT_FILENO)) return read_edited(in, prompt, len);
#endif
    if (in->interactive) {
        fputs(prompt, stderr);
        fflush(stderr);
    }
    ssize_t got = getline(&in->line, &in->cap, stdin);
    if (got < 0) {
        if (errno == EINTR) clearerr(stdin);
        return false;
    }
    if (got > 0 && in->line[got - 1] == '\n') in->line[--got] = '\0';
    if (got > 0 && in->line[got - 1] == '\r') in->line[--got] = '\0';
    *len = (size_t)got;
    return true;
}
