/* utf8.c - UTF-8 by the table of well-formed byte sequences (Unicode standard, table 3-7): only the second byte's range depends on the first. */
#include "utf8.h"

#include <stdint.h>

utf8_kind utf8_step(const char *s, size_t len, size_t *n)
{
    uint8_t c = (uint8_t)s[0], low = 0x80, high = 0xBF;
    size_t need;
    *n = 1;
    if (c < 0x80) return UTF8_CHAR;
    if (c < 0xC2 || c > 0xF4) return UTF8_BAD;
    if (c < 0xE0) need = 2;
    else if (c < 0xF0) need = 3;
    else need = 4;
    if (c == 0xE0) low = 0xA0;      /* overlong below */
    else if (c == 0xED) high = 0x9F; /* surrogates above */
    else if (c == 0xF0) low = 0x90;
    else if (c == 0xF4) high = 0x8F;
    for (size_t i = 1; i < need; i++) {
        if (i == len) return UTF8_PARTIAL;
        uint8_t b = (uint8_t)s[i];
        if (b < low || b > high) return UTF8_BAD;
        low = 0x80, high = 0xBF;
        *n = i + 1;
    }
    return UTF8_CHAR;
}

size_t utf8_valid_prefix(const char *s, size_t len)
{
    size_t i = 0, n;
    while (i < len) {
        if ((uint8_t)s[i] < 0x80) i++;
        else if (utf8_step(s + i, len - i, &n) == UTF8_CHAR) i += n;
        else break;
    }
    return i;
}
