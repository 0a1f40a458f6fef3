/* kern_neondot_pack.c - products of packed weights and integer activations for AArch64 processors that sum four products of bytes in one instruction
 * (kern_neon_pack.h; the Makefile has the flag). */
#include "kern_neon_pack.h"

void kern_fill_neondot_pack(kern_table *t)
{
    neon_fill_pack_dots(t);
}
