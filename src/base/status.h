/* status.h - how functions say what went wrong.  The types are the public ones. */
#ifndef SPW_STATUS_H
#define SPW_STATUS_H

#include "spillway.h"

/* Fills *err (may be NULL) with code and a formatted line; returns code, so that `return spw_fail(err, ...)` works.
 * Control characters of the text are replaced by '?', so that a message stays one line whatever a file holds. */
spw_status spw_fail(spw_err *err, spw_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Always on, cheap, at module edges: a broken invariant of our own, never input. */
#define SPW_CHECK(cond) ((cond) ? (void)0 : spw_check_failed(#cond, __FILE__, __LINE__))
_Noreturn void spw_check_failed(const char *cond, const char *file, int line);

#ifdef SPW_DEBUG
#define SPW_ASSERT(cond) SPW_CHECK(cond)
#else
#define SPW_ASSERT(cond) ((void)sizeof(cond))
#endif

#endif
