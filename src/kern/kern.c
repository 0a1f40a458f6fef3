/* kern.c - which kernels run: one table per instruction set, and the choice among them.
 *
 * The table of an ISA is made by running the fillers from the weakest to that ISA, so an entry that it has no kernel for keeps the best one below it.
 * Tables are made once, by the first caller, and never change afterwards: reading them needs no lock. */
#include "kern.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

/* Strongest last among those that one processor can have. */
enum { ISA_REF, ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_NEON, N_ISA };

static const char *const isa_names[N_ISA] = {"ref", "scalar", "avx2", "avx512", "neon"};
static kern_table tables[N_ISA];
static bool available[N_ISA]; /* the build has it and the processor can run it */
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* __builtin_cpu_supports also asks whether the operating system saves the wide registers.  Not every compiler knows "f16c" as a name, hence the bit;
 * F16C works on ymm registers, so AVX2's answer stands for the system's part. */
static bool cpu_has_avx2(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool cpu_has_avx512(void)
{
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

static void fill_tables(void)
{
    kern_table t = {.isa = isa_names[ISA_REF]};
    kern_fill_ref_quant(&t), kern_fill_ref_math(&t), kern_fill_ref_attend(&t), kern_fill_ref_q8(&t), kern_fill_ref_index(&t);
    kern_fill_scalar_select(&t);
    tables[ISA_REF] = t, available[ISA_REF] = true;

    t.isa = isa_names[ISA_SCALAR];
    kern_fill_scalar_quant(&t), kern_fill_scalar_math(&t), kern_fill_scalar_attend(&t), kern_fill_scalar_pack(&t), kern_fill_scalar_q8(&t);
    tables[ISA_SCALAR] = t, available[ISA_SCALAR] = true;

#if defined(__x86_64__)
    t.isa = isa_names[ISA_AVX2];
    kern_fill_avx2_quant(&t), kern_fill_avx2_math(&t), kern_fill_avx2_attend(&t), kern_fill_avx2_select(&t), kern_fill_avx2_pack(&t), kern_fill_avx2_q8(&t);
    kern_fill_avx2_index(&t), kern_fill_avx2_many(&t);
    tables[ISA_AVX2] = t, available[ISA_AVX2] = cpu_has_avx2();

    t.isa = isa_names[ISA_AVX512];
    kern_fill_avx512_quant(&t), kern_fill_avx512_math(&t), kern_fill_avx512_attend(&t), kern_fill_avx512_select(&t), kern_fill_avx512_index(&t);
    t.many_tile = NULL, t.many_end = NULL; /* of AVX2: f32 in 16 lanes is as fast */
    if (__builtin_cpu_supports("avx512vnni")) kern_fill_avx512vnni_pack(&t), kern_fill_avx512vnni_q8(&t), kern_fill_avx512vnni_many(&t);
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2")) kern_fill_avx512vbmi_index(&t);
    tables[ISA_AVX512] = t, available[ISA_AVX512] = cpu_has_avx512();
#elif defined(__aarch64__)
    t.isa = isa_names[ISA_NEON]; /* every AArch64 processor has it */
    kern_fill_neon_quant(&t), kern_fill_neon_math(&t), kern_fill_neon_attend(&t), kern_fill_neon_select(&t), kern_fill_neon_pack(&t), kern_fill_neon_q8(&t);
    kern_fill_neon_index(&t);
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) kern_fill_neondot_pack(&t);
    tables[ISA_NEON] = t, available[ISA_NEON] = true;
#endif
}

const kern_table *kern_get(const char *isa)
{
    pthread_once(&tables_once, fill_tables);
    for (int i = 0; i < N_ISA; i++)
        if (available[i] && !strcmp(isa, isa_names[i])) return &tables[i];
    return NULL;
}

/* SPILLWAY_ISA set to nothing counts as not set. */
spw_status kern_select(const kern_table **out, spw_err *err)
{
    pthread_once(&tables_once, fill_tables);
    const char *wanted = getenv("SPILLWAY_ISA");
    if (wanted && *wanted) {
        const kern_table *t = kern_get(wanted);
        if (t) return *out = t, SPW_OK;
        char choices[64] = "";
        for (int i = 0; i < N_ISA; i++) {
            if (!available[i]) continue;
            if (*choices) strcat(choices, ", ");
            strcat(choices, isa_names[i]);
        }
        return spw_fail(err, SPW_E_ARG, "SPILLWAY_ISA is '%.40s', which is unknown or not available on this processor; choices: %s", wanted, choices);
    }
    int best = N_ISA - 1;
    while (!available[best]) best--;
    *out = &tables[best];
    return SPW_OK;
}

/* half: sign 1, exponent 5 (bias 15), fraction 10.  Integer work throughout, but for one exact product of normal numbers, so that
 * neither the rounding mode nor flushing of subnormals can change the result.  A signalling NaN becomes quiet, as the hardware's conversion does. */
float kern_f16_to_f32(kern_f16 h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu, bits;
    float f;
    if (exponent == 31) bits = sign | 0x7f800000u | fraction << 13 | (fraction ? 0x00400000u : 0u);
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        f = (float)fraction * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    memcpy(&f, &bits, 4);
    return f;
}

kern_f16 kern_f32_to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (kern_f16)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu)); /* NaN: quiet, the top of its payload kept */
    if (magnitude >= 0x477ff000u) return (kern_f16)(sign | 0x7c00u);                             /* 65520 and above round to infinity */
    if (magnitude < 0x33000000u) return (kern_f16)sign;                                          /* below 2^-25, half the smallest subnormal */

    /* value = kept * 2^-k with the bits below the half's last place in rest; a carry out of the fraction correctly moves to the exponent. */
    uint32_t kept, rest, half;
    if (magnitude >= 0x38800000u) { /* 2^-14 and above: normal */
        kept = (magnitude - (112u << 23)) >> 13, rest = magnitude & 0x1fffu, half = 0x1000u;
    } else { /* subnormal: the fraction with its leading one, in units of 2^-24 */
        uint32_t shift = 126 - (magnitude >> 23), fraction = (magnitude & 0x7fffffu) | 0x800000u;
        kept = fraction >> shift, rest = fraction & ((1u << shift) - 1), half = 1u << (shift - 1);
    }
    if (rest > half || (rest == half && (kept & 1))) kept++;
    return (kern_f16)(sign | kept);
}
