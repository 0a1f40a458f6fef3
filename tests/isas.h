/* isas.h - the sets of kernels that a processor of this architecture can have, weakest first, and the hash by which those of different
 * architectures are compared.
 *
 * Tests run every set that kern_get gives.  AVX2, AVX-512 and NEON do the same operations on the same 16 lanes in the same order, so one hash stands
 * for all three. */
#ifndef SPW_ISAS_H
#define SPW_ISAS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static const char *const isas[] = {
    "ref", "scalar",
#if defined(__x86_64__)
    "avx2", "avx512",
#elif defined(__aarch64__)
    "neon",
#endif
};
enum { N_ISA = sizeof isas / sizeof *isas, FIRST_VECTOR_ISA = 2 };

#define ISA_HASH_START UINT64_C(14695981039346656037)

/* FNV-1a over the bits of n floats. */
static inline uint64_t isa_hash(uint64_t hash, const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, v + i, sizeof bits);
        for (int b = 0; b < 4; b++) hash = (hash ^ (bits >> 8 * b & 255)) * UINT64_C(1099511628211);
    }
    return hash;
}

/* Whether a set of kernels gave the bits that all vector kernels give; says what it gave otherwise. */
#define CHECK_ISA_HASH(isa, what, got, want)                                                                                            \
    do {                                                                                                                                \
        uint64_t g_ = (got), w_ = (want);                                                                                               \
        if (g_ != w_) test_bad++, fprintf(stderr, "%s:%d: %s %s: hash 0x%016" PRIx64 ", expected 0x%016" PRIx64 "\n", __FILE__, __LINE__, isa, what, g_, w_); \
    } while (0)

#endif
