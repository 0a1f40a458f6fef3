/* hash.c - spw_hash: eight bytes at a time, multiply and xor-shift.
 *
 * The value is part of what users compare between machines: words are read as little-endian, and any change of a constant is a change of
 * every published hash.  It is no protection against an adversary. */
#include "spillway.h"

#include <string.h>

#define MUL_A UINT64_C(0x9e3779b97f4a7c15) /* odd, bits well mixed */
#define MUL_B UINT64_C(0xd6e8feb86659fd93)

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= MUL_B;
    x ^= x >> 29;
    x *= MUL_B;
    return x ^ (x >> 32);
}

static uint64_t load_word(const unsigned char *p, size_t n)
{
    uint64_t w = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(&w, p, n);
#else
    for (size_t i = 0; i < n; i++) w |= (uint64_t)p[i] << (8 * i);
#endif
    return w;
}

uint64_t spw_hash(uint64_t seed, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    uint64_t h = mix(seed + MUL_A) ^ ((uint64_t)bytes * MUL_A); /* the length separates texts that differ only in zeros at the end */
    for (; bytes >= 8; p += 8, bytes -= 8) {
        h = (h ^ load_word(p, 8)) * MUL_A;
        h ^= h >> 31;
    }
    if (bytes) h = (h ^ load_word(p, bytes)) * MUL_A;
    return mix(h);
}
