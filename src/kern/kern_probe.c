/* kern_probe.c - which arithmetic loops belong to an ISA, and the plain one.
 *
 * A processor that runs AVX-512 kernels need not have VNNI or BF16: these are asked for one by one. */
#include "kern_probe.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

static kern_probe probes[3] = {{.isa = "", .f32 = kern_scalar_peak_f32}};
static size_t n_probes = 1;
static pthread_once_t probes_once = PTHREAD_ONCE_INIT;

static void fill_probes(void)
{
#if defined(__x86_64__)
    bool vnni = __builtin_cpu_supports("avx512vnni"), bf16 = __builtin_cpu_supports("avx512bf16");
    probes[n_probes++] = (kern_probe){.isa = "avx2", .f32 = kern_avx2_peak_f32, .int8 = kern_avx2_peak_int8};
    probes[n_probes++] = (kern_probe){.isa = "avx512", .f32 = kern_avx512_peak_f32, .int8 = vnni ? kern_avx512vnni_peak_int8 : kern_avx2_peak_int8,
                                      .bf16 = bf16 ? kern_avx512bf16_peak : NULL};
#endif
}

const kern_probe *kern_probe_get(const char *isa)
{
    pthread_once(&probes_once, fill_probes);
    for (size_t i = n_probes; i-- > 1;)
        if (!strcmp(probes[i].isa, isa)) return &probes[i];
    return &probes[0];
}

double kern_scalar_peak_f32(size_t rounds, float *sink)
{
    enum { LANES = 32 };
    float a[LANES], sum = 0;
    for (int i = 0; i < LANES; i++) a[i] = (float)i;
    for (size_t k = 0; k < rounds; k++)
        for (int i = 0; i < LANES; i++) a[i] = a[i] * 0.75f + 0.25f;
    for (int i = 0; i < LANES; i++) sum += a[i];
    *sink = sum;
    return 2.0 * LANES * (double)rounds;
}
