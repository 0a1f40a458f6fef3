/* quant.h - weight types of GGUF: sizes, names and dequantisation.
 *
 * Dequantisation is exact: every ISA gives the bits that the reference gives, which are those of PyPI's gguf package
 * (value = one rounding per operation, products before sums, never fused).  Two exceptions: which NaN a NaN scale gives, and, where
 * subnormals are flushed (as in the pool's workers), MXFP4 values below 2^-126. */
#ifndef SPW_QUANT_H
#define SPW_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum quant_type { /* the numbers are ggml's */
    QUANT_F32 = 0,
    QUANT_F16 = 1,
    QUANT_Q4_0 = 2,
    QUANT_Q4_1 = 3,
    QUANT_Q5_0 = 6,
    QUANT_Q5_1 = 7,
    QUANT_Q8_0 = 8,
    QUANT_Q2_K = 10,
    QUANT_Q3_K = 11,
    QUANT_Q4_K = 12,
    QUANT_Q5_K = 13,
    QUANT_Q6_K = 14,
    QUANT_IQ4_NL = 20,
    QUANT_IQ4_XS = 23,
    QUANT_BF16 = 30,
    QUANT_MXFP4 = 39,
    QUANT_TYPES = 40, /* one more than the largest number */
} quant_type;

typedef struct quant_info {
    const char *name;      /* "Q4_K" */
    uint32_t block_elems;  /* values per block: 1, 32 or 256 */
    uint32_t block_bytes;
} quant_info;

typedef uint16_t kern_f16; /* the bits of an IEEE half */

/* NULL for a type that this build does not know. */
const quant_info *quant_get(uint32_t type);
/* ggml's name of any type number it ever used ("IQ2_XXS"), or NULL: for messages. */
const char *quant_ggml_name(uint32_t type);
/* Bytes of n_elems values; false when the type is unknown, n_elems is no multiple of its block, or the product wraps. */
bool quant_bytes(uint32_t type, uint64_t n_elems, uint64_t *bytes);

#endif
