/* kern_avx2_list.h - lists of set bits, eight at a time: what AVX2 has in place of compressing stores. */
#ifndef SPW_KERN_AVX2_LIST_H
#define SPW_KERN_AVX2_LIST_H

#include "kern_avx2.h"

/* Numbers of the bits of a byte, ascending, the first in the lowest byte; zeros behind them. */
#define LIST_BIT(m, b)   ((uint64_t)(b) << 8 * LIST_BELOW(m, b))
#define LIST_BELOW(m, b) LIST_COUNT((m) & ((1 << (b)) - 1))
#define LIST_COUNT(m)    (((m) & 1) + ((m) >> 1 & 1) + ((m) >> 2 & 1) + ((m) >> 3 & 1) + ((m) >> 4 & 1) + ((m) >> 5 & 1) + ((m) >> 6 & 1))
#define LIST_IF(m, b)    ((m) >> (b) & 1 ? LIST_BIT(m, b) : 0)
#define LIST_1(m)        (LIST_IF(m, 1) | LIST_IF(m, 2) | LIST_IF(m, 3) | LIST_IF(m, 4) | LIST_IF(m, 5) | LIST_IF(m, 6) | LIST_IF(m, 7))
#define LIST_4(m)        LIST_1(m), LIST_1((m) + 1), LIST_1((m) + 2), LIST_1((m) + 3)
#define LIST_16(m)       LIST_4(m), LIST_4((m) + 4), LIST_4((m) + 8), LIST_4((m) + 12)
#define LIST_64(m)       LIST_16(m), LIST_16((m) + 16), LIST_16((m) + 32), LIST_16((m) + 48)
static const uint64_t avx2_lists[256] = {LIST_64(0), LIST_64(64), LIST_64(128), LIST_64(192)};

/* The numbers of the bits of mask < 256 in the lower eight bytes. */
KERN_INLINE __m128i avx2_list(unsigned mask)
{
    return _mm_loadl_epi64((const __m128i *)(const void *)(avx2_lists + mask));
}

/* What shuffles the eight 16-bit numbers that a list names to the front. */
KERN_INLINE __m128i avx2_list_pairs(__m128i list)
{
    __m128i twice = _mm_unpacklo_epi8(list, list);
    return _mm_add_epi8(_mm_add_epi8(twice, twice), _mm_set1_epi16(0x0100));
}

#endif
