/* progress.h - a progress bar with rate and time left on standard error; draws nothing where that is no terminal. */
#ifndef SPW_APP_PROGRESS_H
#define SPW_APP_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct progress {
    const char *what; /* "reading" */
    size_t total;     /* tokens */
    double started, drawn; /* seconds; drawn is 0 before the first drawing */
    bool on;
} progress;

/* Seconds of the monotonic clock. */
double app_seconds(void);

void progress_begin(progress *p, const char *what, size_t total);
/* note (may be NULL) is put behind the time left. */
void progress_update(progress *p, size_t done, const char *note);
/* Clears the line. */
void progress_end(progress *p);

#endif
