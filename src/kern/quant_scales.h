/* quant_scales.h - the packed scales of super-blocks, unpacked to bytes by word arithmetic: shared by the fast kernels.
 *
 * Little-endian only, like the weights themselves.  The layouts are drawn in kern_ref_quant.c. */
#ifndef SPW_QUANT_SCALES_H
#define SPW_QUANT_SCALES_H

#include <stdint.h>
#include <string.h>

/* Q4_K, Q5_K: 12 packed bytes to 8 scales, then 8 minima, 0 .. 63. */
static inline void quant_unpack_q4_k(const uint8_t *packed, uint8_t out[16])
{
    uint32_t p[3], w[4];
    memcpy(p, packed, 12);
    w[0] = p[0] & 0x3f3f3f3fu;
    w[1] = (p[2] & 0x0f0f0f0fu) | (p[0] >> 2 & 0x30303030u);
    w[2] = p[1] & 0x3f3f3f3fu;
    w[3] = (p[2] >> 4 & 0x0f0f0f0fu) | (p[1] >> 2 & 0x30303030u);
    memcpy(out, w, 16);
}

/* Q3_K: 12 packed bytes to 16 scales, 0 .. 63: the 32 that is to be taken off is still in them. */
static inline void quant_unpack_q3_k(const uint8_t *packed, uint8_t out[16])
{
    uint32_t p[3], w[4];
    memcpy(p, packed, 12);
    w[0] = (p[0] & 0x0f0f0f0fu) | (p[2] << 4 & 0x30303030u);
    w[1] = (p[1] & 0x0f0f0f0fu) | (p[2] << 2 & 0x30303030u);
    w[2] = (p[0] >> 4 & 0x0f0f0f0fu) | (p[2] & 0x30303030u);
    w[3] = (p[1] >> 4 & 0x0f0f0f0fu) | (p[2] >> 2 & 0x30303030u);
    memcpy(out, w, 16);
}

/* IQ4_XS: 2 bytes of upper and 4 of lower bits to 8 scales, 0 .. 63, likewise. */
static inline void quant_unpack_iq4_xs(const uint8_t *packed, uint8_t out[8])
{
    unsigned high = packed[0] | (unsigned)packed[1] << 8;
    for (int g = 0; g < 8; g++) out[g] = (uint8_t)((packed[2 + g / 2] >> g % 2 * 4 & 15) | (high >> 2 * g & 3) << 4);
}

#endif
