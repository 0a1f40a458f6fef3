/* status.c - error messages, broken invariants, and the two public functions that belong to no other module.
 *
 * A message often quotes a file's own text, so nothing of it may reach a terminal as a control sequence: see clean_text. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

/* Replaces control characters by '?': C0 and DEL, and C1 in its UTF-8 form (a terminal takes U+009B as "ESC ["). */
static void clean_text(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        if (*c < 0x20 || *c == 0x7f) *c = '?';
        else if (*c == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f) c[0] = '?', c[1] = '?';
    }
}

/* Puts "..." at the end of a text that was cut, in place of whole UTF-8 characters. */
static void mark_cut(char *text, size_t len)
{
    size_t at = len - 3;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80) at--;
    memcpy(text + at, "...", 4);
}

spw_status spw_fail(spw_err *err, spw_status code, const char *format, ...)
{
    if (!err) return code;
    char text[sizeof err->msg]; /* not err->msg itself: the arguments may quote the message that it holds */
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len < 0) memcpy(text, "unknown error", sizeof "unknown error");
    else if ((size_t)len >= sizeof text) mark_cut(text, sizeof text - 1);
    clean_text(text);
    err->code = code;
    memcpy(err->msg, text, strlen(text) + 1);
    return code;
}

_Noreturn void spw_check_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "spillway: %s:%d: broken invariant: %s\n", file, line, cond);
    abort();
}

void spw_free(void *p)
{
    mem_free(p);
}

const char *spw_version(void)
{
    return SPW_VERSION;
}
