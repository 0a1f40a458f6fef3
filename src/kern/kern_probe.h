/* kern_probe.h - loops that do nothing but arithmetic: what a core of this machine could do at most, for comparison with what kernels do.
 *
 * Each runs `rounds` rounds in registers, writes a value that depends on all of them to *sink, and returns the operations done (a multiplication and an
 * addition are two).  How long that took is the caller's business. */
#ifndef SPW_KERN_PROBE_H
#define SPW_KERN_PROBE_H

#include <stddef.h>

typedef double kern_peak_fn(size_t rounds, float *sink);

typedef struct kern_probe {
    const char *isa;
    kern_peak_fn *f32;  /* fused multiply-add, or the fastest that there is */
    kern_peak_fn *int8; /* dot products of bytes into 32 bits; NULL: none */
    kern_peak_fn *bf16; /* dot products of bf16 pairs into f32; NULL: none */
} kern_probe;

/* The loops for a table's ISA (kern_table.isa). */
const kern_probe *kern_probe_get(const char *isa);

kern_peak_fn kern_scalar_peak_f32;
kern_peak_fn kern_avx2_peak_f32, kern_avx2_peak_int8;
kern_peak_fn kern_avx512_peak_f32, kern_avx512vnni_peak_int8, kern_avx512bf16_peak;

#endif
