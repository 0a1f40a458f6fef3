/* utf8.h - one step through bytes that may or may not be UTF-8. */
#ifndef SPW_UTF8_H
#define SPW_UTF8_H

#include <stddef.h>

typedef enum utf8_kind {
    UTF8_CHAR,    /* a whole, valid character (no surrogate, not overlong, at most U+10FFFF) */
    UTF8_PARTIAL, /* the text ends inside what could become one */
    UTF8_BAD,     /* no continuation can make these bytes valid */
} utf8_kind;

/* Looks at the start of s (len > 0).  *n: bytes of the character; of the unfinished one (all of s then); or of the bad sequence up to where it went wrong,
 * at least 1, which is what one U+FFFD stands for (Unicode's "maximal subpart"). */
utf8_kind utf8_step(const char *s, size_t len, size_t *n);
/* Length of the longest prefix of s that is whole, valid characters. */
size_t utf8_valid_prefix(const char *s, size_t len);

#endif
