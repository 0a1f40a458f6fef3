/* test_quant.c - weight types: sizes, names, and every ISA's dequantisation against gguf's and against the reference, bit for bit.
 *
 * tests/data/quant_golden.bin holds blocks and what PyPI's gguf package makes of them; tools/make_quant_golden.py wrote it
 * (its head has the command).  Run from the root of the source tree. */
#include "isas.h"
#include "kern.h"
#include "pool.h"
#include "test.h"

#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const uint32_t all_types[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0,   QUANT_Q5_1,   QUANT_Q8_0,
                                     QUANT_Q2_K, QUANT_Q3_K, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K, QUANT_IQ4_NL, QUANT_IQ4_XS, QUANT_MXFP4};
enum { N_TYPES = sizeof all_types / sizeof all_types[0] };

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Memory with an unreadable page on either side. */
typedef struct fence {
    uint8_t *mem;
    size_t bytes, page;
} fence;

static fence fence_make(size_t at_least)
{
    fence f = {.page = (size_t)sysconf(_SC_PAGESIZE)};
    f.bytes = (at_least + f.page - 1) / f.page * f.page;
    uint8_t *whole = mmap(NULL, f.bytes + 2 * f.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) abort();
    mprotect(whole, f.page, PROT_NONE), mprotect(whole + f.page + f.bytes, f.page, PROT_NONE);
    f.mem = whole + f.page;
    return f;
}

static void fence_free(fence *f)
{
    munmap(f->mem - f->page, f->bytes + 2 * f->page);
}

/* Reports the first value of got that differs; NaN equals NaN where any_nan is set. */
static bool same_values(const float *got, const float *want, size_t n, bool any_nan, const char *isa, uint32_t type, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        if (bits_of(got[i]) == bits_of(want[i]) || (any_nan && isnan(got[i]) && isnan(want[i]))) continue;
        fprintf(stderr, "%s %s, %s: value %zu of %zu is %.9g (%08x), expected %.9g (%08x)\n", isa, quant_get(type)->name, what, i, n, (double)got[i],
                bits_of(got[i]), (double)want[i], bits_of(want[i]));
        return false;
    }
    return true;
}

/* ---- golden ---------------------------------------------------------------------------------- */

static uint8_t *golden;
static size_t golden_bytes;

static uint32_t golden_u32(size_t at)
{
    uint32_t v = 0;
    CHECK(at + 4 <= golden_bytes);
    if (at + 4 <= golden_bytes) memcpy(&v, golden + at, 4);
    return v;
}

static void golden_load(void)
{
    const char *path = "tests/data/quant_golden.bin";
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "cannot open %s: run from the root of the source tree\n", path);
        test_bad++;
        return;
    }
    golden = malloc(1 << 20);
    golden_bytes = golden ? fread(golden, 1, 1 << 20, f) : 0;
    fclose(f);
}

static void golden_compare(const kern_table *t, uint32_t type, const uint8_t *src, size_t n_bytes, const float *want, size_t n)
{
    fence f = fence_make(n_bytes + 4);
    float *got = malloc(n * sizeof *got);
    for (size_t before = 0; got && before < 4; before++) { /* every alignment; the last byte is the last one that can be read for before = 0 */
        uint8_t *p = f.mem + f.bytes - n_bytes - before;
        memcpy(p, src, n_bytes);
        memset(got, 0xa5, n * sizeof *got);
        t->dequant[type](p, n, got);
        CHECK(same_values(got, want, n, false, t->isa, type, "golden"));
    }
    free(got);
    fence_free(&f);
}

/* skip_mxfp4: with subnormals flushed its smallest scales are not what gguf says. */
static void golden_compare_all(bool skip_mxfp4)
{
    bool seen[QUANT_TYPES] = {false};
    CHECK(golden_bytes > 8 && !memcmp(golden, "QGLD", 4));
    uint32_t n_types = golden_u32(4);
    CHECK_INT(n_types, N_TYPES);
    size_t at = 8;
    for (uint32_t k = 0; k < n_types && !test_bad; k++) {
        uint32_t type = golden_u32(at), n = golden_u32(at + 4), n_bytes = golden_u32(at + 8);
        uint64_t bytes = 0;
        CHECK(quant_bytes(type, n, &bytes));
        CHECK_INT(bytes, n_bytes);
        CHECK(at + 12 + n_bytes + 4 * (size_t)n <= golden_bytes);
        if (test_bad) return;
        float *want = malloc(4 * (size_t)n);
        if (!want) abort();
        memcpy(want, golden + at + 12 + n_bytes, 4 * (size_t)n);
        for (int i = 0; i < N_ISA; i++) {
            const kern_table *t = kern_get(isas[i]);
            if (t && !(skip_mxfp4 && type == QUANT_MXFP4)) golden_compare(t, type, golden + at + 12, n_bytes, want, n);
        }
        free(want);
        seen[type] = true;
        at += 12 + n_bytes + 4 * (size_t)n;
    }
    CHECK_INT(at, golden_bytes);
    for (int k = 0; k < N_TYPES; k++) CHECK(seen[all_types[k]]);
}

static void test_golden(void)
{
    golden_load();
    golden_compare_all(false);
}

/* As the pool's workers run: subnormal inputs and results count as zero. */
static void test_golden_flushing_subnormals(void)
{
    uint64_t before = pool_float_mode_enter();
    golden_compare_all(true);
    pool_float_mode_leave(before);
}

/* ---- every ISA against the reference ------------------------------------------------------------ */

enum { GUARD = 16 };

static void compare_with_ref(const kern_table *t, uint32_t type, size_t n_blocks, uint64_t *seed)
{
    const quant_info *info = quant_get(type);
    size_t n = n_blocks * info->block_elems, n_bytes = n_blocks * info->block_bytes;
    fence src = fence_make(n_bytes + 8), dst = fence_make((n + 2 * GUARD) * sizeof(float));
    float *want = malloc((n + 1) * sizeof *want), *out = (float *)(void *)dst.mem + GUARD;
    if (!want) abort();
    for (size_t i = 0; i < src.bytes; i++) src.mem[i] = (uint8_t)(test_rand(seed) >> 32);
    kern_dequant_fn *ref = kern_get("ref")->dequant[type];
    for (size_t shift = 0; shift < 10; shift++) { /* against the front fence, then against the rear one */
        const uint8_t *p = shift < 5 ? src.mem + shift : src.mem + src.bytes - n_bytes - (shift - 5);
        ref(p, n, want);
        memset(dst.mem, 0x5a, (n + 2 * GUARD) * sizeof(float));
        t->dequant[type](p, n, out);
        CHECK(same_values(out, want, n, true, t->isa, type, "random"));
        for (int i = 1; i <= GUARD; i++) {
            CHECK_INT(bits_of(out[-i]), 0x5a5a5a5a);
            CHECK_INT(bits_of(out[n + (size_t)i - 1]), 0x5a5a5a5a);
        }
    }
    free(want);
    fence_free(&src), fence_free(&dst);
}

static void test_isas_agree(void)
{
    static const size_t counts[] = {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 129};
    uint64_t seed = 42;
    for (int i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        for (int k = 0; k < N_TYPES; k++)
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) compare_with_ref(t, all_types[k], counts[c], &seed);
    }
}

/* Every half, also those at unaligned addresses and NaNs: a NaN stays one. */
static void test_all_halves(void)
{
    static uint16_t halves[65536];
    static float want[65536], got[65536];
    for (uint32_t i = 0; i < 65536; i++) halves[i] = (uint16_t)i, want[i] = kern_f16_to_f32((kern_f16)i);
    for (int i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        t->dequant[QUANT_F16](halves, 65536, got);
        CHECK(same_values(got, want, 65536, false, t->isa, QUANT_F16, "all halves"));
    }
}

/* ---- conversions -------------------------------------------------------------------------------- */

/* By the definition of the format. */
static void test_f16_to_f32(void)
{
    for (uint32_t h = 0; h < 65536; h++) {
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double sign = h & 0x8000 ? -1 : 1;
        float got = kern_f16_to_f32((kern_f16)h);
        if (exponent == 31 && fraction) {
            CHECK(isnan(got));
            CHECK_INT(bits_of(got), (h & 0x8000) << 16 | 0x7fc00000u | (h & 1023) << 13);
        } else if (exponent == 31) {
            CHECK_INT(bits_of(got), h & 0x8000 ? 0xff800000u : 0x7f800000u);
        } else {
            double want = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
            CHECK_INT(bits_of(got), bits_of((float)(sign * want)));
        }
    }
}

/* Every half comes back, and so do the floats on both sides of every midpoint between two neighbours; the midpoint goes to the even one. */
static void test_f32_to_f16(void)
{
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float low = kern_f16_to_f32((kern_f16)h), high = h == 0x7bff ? 65536.0f : kern_f16_to_f32((kern_f16)(h + 1)), mid = (low + high) / 2;
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            float s = sign ? -1.0f : 1.0f;
            CHECK_INT(kern_f32_to_f16(s * low), sign | h);
            CHECK_INT(kern_f32_to_f16(s * nextafterf(mid, 0)), sign | h);
            CHECK_INT(kern_f32_to_f16(s * mid), sign | (h + (h & 1)));
            CHECK_INT(kern_f32_to_f16(s * nextafterf(mid, INFINITY)), sign | (h + 1));
        }
    }
    CHECK_INT(kern_f32_to_f16(INFINITY), 0x7c00);
    CHECK_INT(kern_f32_to_f16(-INFINITY), 0xfc00);
    CHECK_INT(kern_f32_to_f16(3.0e38f), 0x7c00);
    CHECK_INT(kern_f32_to_f16(-1.0e-40f), 0x8000);
    CHECK_INT(kern_f32_to_f16(from_bits(0x7f800001)), 0x7e00); /* a NaN whose payload is below a half's stays a NaN */
    CHECK_INT(kern_f32_to_f16(from_bits(0xffffffff)), 0xffff);
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) static uint16_t hardware_f32_to_f16(float f)
{
    return (uint16_t)_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT), 0);
}

static void test_f32_to_f16_against_hardware(void)
{
    uint64_t seed = 7;
    for (int i = 0; i < 4000000; i++) {
        uint32_t bits = (uint32_t)(test_rand(&seed) >> 32);
        if (i & 1) bits = (bits & 0x8fffffffu) | 0x30000000u; /* half of them where halves are */
        float f = from_bits(bits);
        if (kern_f32_to_f16(f) == hardware_f32_to_f16(f)) continue;
        fprintf(stderr, "%08x converts to %04x, the processor says %04x\n", bits, kern_f32_to_f16(f), hardware_f32_to_f16(f));
        test_bad++;
        return;
    }
}
#endif

/* ---- sizes, names, tables -------------------------------------------------------------------------- */

static void test_sizes(void)
{
    uint64_t bytes = 77;
    CHECK(quant_bytes(QUANT_Q4_K, 0, &bytes));
    CHECK_INT(bytes, 0);
    CHECK(quant_bytes(QUANT_Q4_K, 512, &bytes));
    CHECK_INT(bytes, 288);
    CHECK(quant_bytes(QUANT_F32, 3, &bytes));
    CHECK_INT(bytes, 12);
    CHECK(quant_bytes(QUANT_MXFP4, 32, &bytes));
    CHECK_INT(bytes, 17);

    bytes = 77;
    CHECK(!quant_bytes(QUANT_Q4_K, 255, &bytes));
    CHECK(!quant_bytes(QUANT_Q8_0, 33, &bytes));
    CHECK(!quant_bytes(9, 32, &bytes));           /* Q8_1: a name, but no weight type here */
    CHECK(!quant_bytes(QUANT_TYPES, 32, &bytes));
    CHECK(!quant_bytes(UINT32_MAX, 32, &bytes));
    CHECK(!quant_bytes(QUANT_F32, UINT64_MAX / 4 + 1, &bytes));
    CHECK(!quant_bytes(QUANT_Q8_0, UINT64_MAX - 31, &bytes)); /* a multiple of 32 whose bytes wrap */
    CHECK_INT(bytes, 77);
    CHECK(quant_bytes(QUANT_F32, UINT64_MAX / 4, &bytes));
    CHECK(bytes == UINT64_MAX - 3);
    CHECK(quant_bytes(QUANT_Q4_0, UINT64_MAX - 31, &bytes)); /* smaller than its count: does not wrap */
}

static void test_names(void)
{
    for (int k = 0; k < N_TYPES; k++) {
        CHECK(quant_get(all_types[k]));
        CHECK_STR(quant_get(all_types[k])->name, quant_ggml_name(all_types[k]));
    }
    int known = 0;
    for (uint32_t type = 0; type < 100; type++) known += quant_get(type) != NULL;
    CHECK_INT(known, N_TYPES);
    CHECK(!quant_get(UINT32_MAX));
    CHECK_STR(quant_ggml_name(16), "IQ2_XXS");
    CHECK_STR(quant_ggml_name(15), "Q8_K");
    CHECK_STR(quant_ggml_name(QUANT_MXFP4), "MXFP4");
    CHECK(!quant_ggml_name(1000));
    CHECK(!quant_ggml_name(UINT32_MAX));
}

static void test_tables(void)
{
    CHECK(kern_get("ref") && kern_get("scalar"));
    CHECK(!kern_get("") && !kern_get("sse9") && !kern_get("AVX2"));
    for (int i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) {
            printf("      (%s is not available here)\n", isas[i]);
            continue;
        }
        CHECK_STR(t->isa, isas[i]);
        for (uint32_t type = 0; type < QUANT_TYPES; type++) CHECK_INT(t->dequant[type] != NULL, quant_get(type) != NULL);
        CHECK(t->gemm && t->rms_norm && t->swiglu && t->add && t->to_f16 && t->attend && t->merge);
    }
}

static void test_select(void)
{
    const char *given = getenv("SPILLWAY_ISA");
    char *saved = given ? strdup(given) : NULL;
    const kern_table *t = NULL, *strongest = NULL;
    for (int i = 0; i < N_ISA; i++)
        if (kern_get(isas[i])) strongest = kern_get(isas[i]);
    spw_err err = {0};
    unsetenv("SPILLWAY_ISA");
    CHECK_OK(kern_select(&t, &err), err);
    CHECK(t == strongest);
    for (int i = 0; i < N_ISA; i++) {
        setenv("SPILLWAY_ISA", isas[i], 1);
        t = NULL;
        if (kern_get(isas[i])) CHECK_OK(kern_select(&t, &err), err);
        else CHECK_INT(kern_select(&t, &err), SPW_E_ARG);
        CHECK(t == kern_get(isas[i]));
    }
    setenv("SPILLWAY_ISA", "sse9", 1);
    t = NULL;
    CHECK_INT(kern_select(&t, &err), SPW_E_ARG);
    CHECK(!t);
    CHECK_HAS(err.msg, "SPILLWAY_ISA is 'sse9'");
    CHECK_HAS(err.msg, "choices: ref, scalar");
    CHECK_INT(kern_select(&t, NULL), SPW_E_ARG);
    if (saved) setenv("SPILLWAY_ISA", saved, 1);
    else unsetenv("SPILLWAY_ISA");
    free(saved);
}

int main(void)
{
    RUN(test_sizes);
    RUN(test_names);
    RUN(test_tables);
    RUN(test_select);
    RUN(test_f16_to_f32);
    RUN(test_f32_to_f16);
#if defined(__x86_64__)
    if (kern_get("avx2")) RUN(test_f32_to_f16_against_hardware);
    else SKIP("test_f32_to_f16_against_hardware", "the processor has no F16C");
#endif
    RUN(test_golden);
    RUN(test_golden_flushing_subnormals);
    RUN(test_all_halves);
    RUN(test_isas_agree);
    free(golden);
    return test_done();
}
