/* text_input.h - growable byte strings, and texts read from files and standard input byte for byte. */
#ifndef SPW_APP_TEXT_INPUT_H
#define SPW_APP_TEXT_INPUT_H

#include <stdbool.h>
#include <stddef.h>

/* data is NUL-terminated after the first append; the bytes before may hold NULs of their own. */
typedef struct text {
    char *data;
    size_t len, cap;
} text;

/* Memory for a program's own small needs: a failure prints one line and ends the program. */
void *app_alloc(size_t bytes);
void *app_realloc(void *p, size_t bytes);

void text_append(text *t, const char *data, size_t len);
void text_free(text *t);

/* Appends a whole file, or standard input where path is NULL.  On failure *why holds one line that names it. */
bool text_read(text *t, const char *path, char *why, size_t cap);

/* The text of a command: prompt, file, or both: the file, a blank line, the prompt; standard input where neither is given. */
bool text_read_prompt(text *t, const char *path, const char *prompt, char *why, size_t cap);

#endif
