/* kern_avx512vnni.h - integer products with AVX-512 VNNI, as the kernels use them.
 *
 * acc += the products of 16-bit lanes (dot_words, dot_pairs), or of unsigned bytes x and signed ones y (dot_bytes, dot_quads), summed by 32 bits; dot_pairs and dot_quads
 * take y as one lane in memory.  Through the intrinsics gcc 12 copies accumulators before every instruction, and where they fill the registers it
 * stores each of them as well: a tenth to half of the time. */
#ifndef SPW_KERN_AVX512VNNI_H
#define SPW_KERN_AVX512VNNI_H

#include <immintrin.h>
#include <stdint.h>

/* One lane of pairs of words or quads of bytes, whatever it was written as. */
typedef int32_t __attribute__((may_alias)) dot_lane;

#if defined(__clang__)
#define load_anew(p) ((void)0)
#define dot_words(acc, x, y) ((acc) = _mm512_dpwssd_epi32(acc, x, y))
#define dot_pairs(acc, x, p) ((acc) = _mm512_dpwssd_epi32(acc, x, _mm512_set1_epi32(*(p))))
#define dot_bytes(acc, x, y) ((acc) = _mm512_dpbusd_epi32(acc, x, y))
#define dot_quads(acc, x, p) ((acc) = _mm512_dpbusd_epi32(acc, x, _mm512_set1_epi32(*(p))))
#else
#define load_anew(p) __asm__("" : "+r"(p)) /* or it keeps sixteen pointers in vector registers */
#define dot_words(acc, x, y) __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y))
#define dot_pairs(acc, x, p) __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(x), "m"(*(p)))
#define dot_bytes(acc, x, y) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y))
#define dot_quads(acc, x, p) __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(x), "m"(*(p)))
#endif

#endif
