/* text_input.c - growable byte strings, and texts read from files and standard input byte for byte.
 *
 * Nothing is converted or trimmed: what a file holds is what the tokenizer gets. */
#include "text_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A text longer than this cannot be a prompt; the limit keeps a mistake such as -f /dev/zero from eating all memory. */
#define TEXT_MAX ((size_t)1 << 30)

void *app_realloc(void *p, size_t bytes)
{
    void *q = realloc(p, bytes ? bytes : 1);
    if (!q) {
        fprintf(stderr, "spillway: out of memory: %zu bytes were asked for\n", bytes);
        exit(1);
    }
    return q;
}

void *app_alloc(size_t bytes)
{
    return app_realloc(NULL, bytes);
}

static void text_reserve(text *t, size_t extra)
{
    size_t need = t->len + extra + 1;
    if (need <= t->cap) return;
    size_t cap = t->cap ? t->cap : 256;
    while (cap < need) cap *= 2;
    t->data = app_realloc(t->data, cap);
    t->cap = cap;
}

void text_append(text *t, const char *data, size_t len)
{
    text_reserve(t, len);
    if (len) memcpy(t->data + t->len, data, len);
    t->len += len;
    t->data[t->len] = '\0';
}

void text_free(text *t)
{
    free(t->data);
    *t = (text){0};
}

bool text_read(text *t, const char *path, char *why, size_t cap)
{
    const char *name = path ? path : "standard input";
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (fd < 0) {
        snprintf(why, cap, "%s: %s", name, strerror(errno));
        return false;
    }
    ssize_t got;
    do {
        text_reserve(t, 1 << 16);
        got = read(fd, t->data + t->len, 1 << 16);
        if (got > 0) t->len += (size_t)got;
    } while ((got > 0 && t->len <= TEXT_MAX) || (got < 0 && errno == EINTR));
    int error = errno;
    t->data[t->len] = '\0';
    if (path) close(fd);
    if (got < 0) snprintf(why, cap, "%s: %s", name, strerror(error));
    else if (got > 0) snprintf(why, cap, "%s: longer than the %zu MiB that a text may have", name, TEXT_MAX >> 20);
    return got == 0;
}

bool text_read_prompt(text *t, const char *path, const char *prompt, char *why, size_t cap)
{
    if (path || !prompt) {
        if (!text_read(t, path, why, cap)) return false;
    }
    if (!prompt) return true;
    if (t->len) {
        /* A blank line ends the file's text, however many newlines it brings itself. */
        if (t->data[t->len - 1] != '\n') text_append(t, "\n", 1);
        if (t->len < 2 || t->data[t->len - 2] != '\n') text_append(t, "\n", 1);
    }
    text_append(t, prompt, strlen(prompt));
    return true;
}
