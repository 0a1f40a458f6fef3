/* progress.c - a progress bar with rate and time left on standard error; draws nothing where that is no terminal. */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_SECONDS 0.1

double app_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_begin(progress *p, const char *what, size_t total)
{
    *p = (progress){.what = what, .total = total, .started = app_seconds(), .on = isatty(STDERR_FILENO) && total > 0};
    progress_update(p, 0, NULL);
}

static size_t terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void format_seconds(double s, char *out, size_t cap)
{
    if (s < 100) snprintf(out, cap, "%.0f s", s);
    else if (s < 6000) snprintf(out, cap, "%.0f min %02d s", (double)(int)(s / 60), (int)s % 60);
    else snprintf(out, cap, "%.1f h", s / 3600);
}

void progress_update(progress *p, size_t done, const char *note)
{
    double now = app_seconds();
    if (!p->on || (p->drawn > 0 && done < p->total && now - p->drawn < REDRAW_SECONDS)) return;
    p->drawn = now;

    char tail[160], left[32];
    double rate = now > p->started ? (double)done / (now - p->started) : 0;
    int n = snprintf(tail, sizeof tail, " %zu/%zu", done, p->total);
    if (done > 0 && rate > 0) {
        format_seconds((double)(p->total - done) / rate, left, sizeof left);
        n += snprintf(tail + n, sizeof tail - (size_t)n, "  %.0f tok/s  %s left", rate, left);
    }
    snprintf(tail + n, sizeof tail - (size_t)n, "%s%s", note ? "  " : "", note ? note : "");

    char bar[41];
    size_t columns = terminal_columns(), used = strlen(p->what) + strlen(tail) + 4, width = sizeof bar - 1;
    if (used + width > columns) width = columns > used ? columns - used : 0;
    size_t filled = (size_t)((double)width * (double)done / (double)p->total);
    memset(bar, '.', width);
    memset(bar, '#', filled < width ? filled : width);
    bar[width] = '\0';
    fprintf(stderr, "\r%s [%s]%s\033[K", p->what, bar, tail);
    fflush(stderr);
}

void progress_end(progress *p)
{
    if (!p->on) return;
    fprintf(stderr, "\r\033[K");
    fflush(stderr);
    p->on = false;
}
