/* test_math.c - the matrix product, normalisation and elementwise kernels of every ISA against the reference, and the rule that the bits of an
 * output depend on its own inputs alone. */
#include "test.h"

#include "isas.h"
#include "kern.h"
#include "tolerance.h"

#include <float.h>

enum { GUARD = 16 };

static const kern_table *ref;

/* n floats and a guard on both sides; the floats start at an address that is aligned to 4 bytes only. */
typedef struct buf {
    float *mem, *at;
    size_t n;
} buf;

static const uint32_t guard_bits = 0x7fc0dead;

static buf buf_make(size_t n)
{
    buf b = {.mem = malloc((n + 2 * GUARD + 1) * sizeof(float)), .n = n};
    if (!b.mem) abort();
    b.at = b.mem + GUARD + ((uintptr_t)b.mem % 8 == 0);
    for (size_t i = 0; i < n + 2 * GUARD + 1; i++) memcpy(&b.mem[i], &guard_bits, 4);
    return b;
}

static buf buf_random(size_t n, float scale, uint64_t *seed)
{
    buf b = buf_make(n);
    for (size_t i = 0; i < n; i++) b.at[i] = scale * test_uniform(seed);
    return b;
}

static buf buf_copy(const buf *from)
{
    buf b = buf_make(from->n);
    if (from->n) memcpy(b.at, from->at, from->n * sizeof(float));
    return b;
}

static bool guards_whole(const buf *b)
{
    const float *end = b->mem + b->n + 2 * GUARD + 1;
    for (const float *p = b->mem; p < end; p++) {
        if (p >= b->at && p < b->at + b->n) continue;
        if (memcmp(p, &guard_bits, 4)) return false;
    }
    return true;
}

static void buf_free(buf *b)
{
    free(b->mem);
}

static bool same_bits(const float *a, const float *b, size_t n)
{
    return !n || !memcmp(a, b, n * sizeof *a);
}

/* ---- gemm ----------------------------------------------------------------------------------- */

/* Error of every element against f64, in units of sum |x| |w|. */
static double gemm_error(const buf *x, const buf *w, const buf *y, size_t n_rows, size_t n_out, size_t n_in, size_t xs, size_t ws, size_t ys)
{
    double worst = 0;
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t j = 0; j < n_out; j++) {
            double sum = 0, size = 0, e;
            for (size_t k = 0; k < n_in; k++) {
                double p = (double)x->at[r * xs + k] * (double)w->at[j * ws + k];
                sum += p, size += fabs(p);
            }
            e = fabs((double)y->at[r * ys + j] - sum);
            if (!(e <= size * 1e9)) e = size > 0 ? INFINITY : e; /* not a number counts as wrong */
            if (size > 0) e /= size;
            worst = e > worst ? e : worst;
        }
    }
    return worst;
}

static void check_gemm(const kern_table *t, size_t n_rows, size_t n_out, size_t n_in, float scale)
{
    uint64_t seed = 1 + n_rows * 1000003 + n_out * 1009 + n_in;
    size_t xs = n_in + 3, ws = n_in + 1, ys = n_out + 2;
    buf x = buf_random(n_rows * xs, scale, &seed), w = buf_random(n_out * ws, 1, &seed), y = buf_make(n_rows * ys), one = buf_make(n_out),
        cell = buf_make(1);
    t->gemm(x.at, xs, n_rows, w.at, ws, n_out, n_in, y.at, ys);
    double e = gemm_error(&x, &w, &y, n_rows, n_out, n_in, xs, ws, ys);
    if (!(e <= TOL_GEMM_REL)) test_bad++, fprintf(stderr, "gemm %s %zu x %zu x %zu: error %.3g, allowed %.3g\n", t->isa, n_rows, n_out, n_in, e,
        TOL_GEMM_REL);
    CHECK(guards_whole(&y));
    for (size_t r = 0; r < n_rows; r++) { /* the gaps between rows are not ours */
        uint32_t gap;
        memcpy(&gap, &y.at[r * ys + n_out], 4);
        CHECK(gap == guard_bits);
    }
    for (size_t r = 0; r < n_rows; r++) {
        t->gemm(x.at + r * xs, xs, 1, w.at, ws, n_out, n_in, one.at, n_out);
        CHECK(same_bits(one.at, y.at + r * ys, n_out));
    }
    for (size_t j = 0; j < n_out && n_rows; j += 7) {
        t->gemm(x.at, xs, 1, w.at + j * ws, ws, 1, n_in, cell.at, 1);
        CHECK(same_bits(cell.at, y.at + j, 1));
    }
    CHECK(guards_whole(&one) && guards_whole(&cell));
    buf_free(&x), buf_free(&w), buf_free(&y), buf_free(&one), buf_free(&cell);
}

static void test_gemm(void)
{
    static const size_t rows[] = {0, 1, 2, 3, 4, 5, 6, 7, 11, 33}, outs[] = {0, 1, 2, 3, 5, 8, 9, 17, 32};
    static const size_t ins[] = {0, 1, 7, 8, 9, 15, 16, 17, 64, 511, 512, 513, 520, 576, 1100};
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        for (size_t a = 0; a < sizeof rows / sizeof *rows; a++)
            for (size_t b = 0; b < sizeof outs / sizeof *outs; b++)
                for (size_t c = 0; c < sizeof ins / sizeof *ins; c++) check_gemm(t, rows[a], outs[b], ins[c], 1);
        check_gemm(t, 3, 5, 577, 1e30f);
        check_gemm(t, 3, 5, 577, 1e-30f);
        check_gemm(t, 2, 3, 4097, 1);
    }
}

/* A sum that f32 in one lane would lose: the lanes and chunks keep it within the tolerance on long rows of equal sign. */
static void test_gemm_one_sign(void)
{
    enum { N = 16384 };
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        uint64_t seed = 5;
        buf x = buf_random(N, 1, &seed), w = buf_random(N, 1, &seed), y = buf_make(1);
        for (size_t k = 0; k < N; k++) x.at[k] = fabsf(x.at[k]), w.at[k] = fabsf(w.at[k]);
        t->gemm(x.at, N, 1, w.at, N, 1, N, y.at, 1);
        CHECK(gemm_error(&x, &w, &y, 1, 1, N, N, N, 1) <= TOL_GEMM_REL);
        buf_free(&x), buf_free(&w), buf_free(&y);
    }
}

/* ---- the rest ------------------------------------------------------------------------------- */

static const size_t lengths[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 576, 1537};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

static void check_rms_norm(const kern_table *t, size_t n, float scale, float eps)
{
    uint64_t seed = 77 + n;
    buf x = buf_random(n, scale, &seed), weight = buf_random(n, 3, &seed), want = buf_make(n), got = buf_make(n), in_place = buf_copy(&x);
    ref->rms_norm(x.at, weight.at, n, eps, want.at);
    t->rms_norm(x.at, weight.at, n, eps, got.at);
    t->rms_norm(in_place.at, weight.at, n, eps, in_place.at);
    for (size_t i = 0; i < n; i++) CHECK_NEAR(got.at[i], want.at[i], TOL_RMS_NORM_REL * fabs((double)want.at[i]));
    CHECK(same_bits(got.at, in_place.at, n));
    CHECK(guards_whole(&got) && guards_whole(&in_place));
    buf_free(&x), buf_free(&weight), buf_free(&want), buf_free(&got), buf_free(&in_place);
}

static void test_rms_norm(void)
{
    float three[3] = {1, -2, 2}, ones[3] = {1, 1, 2}, out[3];
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        t->rms_norm(three, ones, 3, 0, out);
        CHECK_NEAR(out[0], 1 / sqrt(3.0), 1e-6);
        CHECK_NEAR(out[1], -2 / sqrt(3.0), 1e-6);
        CHECK_NEAR(out[2], 4 / sqrt(3.0), 1e-6);
        for (size_t l = 0; l < N_LENGTHS; l++) {
            check_rms_norm(t, lengths[l], 1, 1e-5f);
            check_rms_norm(t, lengths[l], 3e38f, 1e-5f);
            check_rms_norm(t, lengths[l], 1e-30f, 0);
            check_rms_norm(t, lengths[l], 0, 0);
        }
    }
}

static void test_swiglu(void)
{
    static const float special[] = {0, -0.0f, 1, -1, 20, -20, 86.9f, -86.9f, 87.1f, -87.1f, 1e4f, -1e4f, 3e37f, -3e37f, 1e-40f, -1e-40f, 1e-30f};
    enum { N_SPECIAL = sizeof special / sizeof *special };
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        for (size_t l = 0; l < N_LENGTHS; l++) {
            uint64_t seed = 3 + l;
            size_t n = lengths[l];
            buf gate = buf_random(n, 12, &seed), up = buf_random(n, 5, &seed);
            for (size_t k = 0; k < n && k < N_SPECIAL; k++) gate.at[n - 1 - k] = special[k];
            buf want = buf_copy(&gate), again = buf_copy(&gate);
            for (size_t k = 0; k < n; k++) { /* in double here, so that the reference itself is checked too */
                double v = (double)gate.at[k];
                want.at[k] = (float)(v / (1 + exp(-v)) * (double)up.at[k]);
            }
            t->swiglu(gate.at, up.at, n);
            for (size_t k = 0; k < n; k++)
                CHECK_NEAR(gate.at[k], want.at[k], TOL_SWIGLU_REL * fabs((double)want.at[k]) + TOL_SWIGLU_ABS * fabs((double)up.at[k]));
            for (size_t k = 0; k < n; k++) t->swiglu(again.at + k, up.at + k, 1);
            CHECK(same_bits(again.at, gate.at, n));
            CHECK(guards_whole(&gate) && guards_whole(&again));
            buf_free(&gate), buf_free(&up), buf_free(&want), buf_free(&again);
        }
    }
}

static void test_add(void)
{
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        for (size_t l = 0; l < N_LENGTHS; l++) {
            uint64_t seed = 9 + l;
            size_t n = lengths[l];
            buf x = buf_random(n, 1e30f, &seed), y = buf_random(n, 1e30f, &seed), want = buf_copy(&x);
            for (size_t k = 0; k < n; k++) want.at[k] += y.at[k];
            t->add(x.at, y.at, n);
            CHECK(same_bits(x.at, want.at, n));
            CHECK(guards_whole(&x));
            buf_free(&x), buf_free(&y), buf_free(&want);
        }
    }
}

/* Against the formula, with the reference's bits, into another place and in place. */
static void test_rotate(void)
{
    static const size_t pairs[] = {0, 1, 3, 4, 5, 8, 9, 16, 17, 32, 48, 50, 64};
    for (size_t i = 0; i < 2 * N_ISA; i++) {
        const kern_table *t = kern_get(isas[i / 2]);
        bool halves = i % 2;
        for (size_t l = 0; l < sizeof pairs / sizeof *pairs && t; l++) {
            uint64_t seed = 41 + l;
            size_t n = pairs[l];
            buf x = buf_random(2 * n, 3, &seed), angles = buf_random(2 * n, 1, &seed), want = buf_make(2 * n), got = buf_make(2 * n), in_place = buf_copy(&x);
            ref->rotate(x.at, angles.at, n, halves, 0.3f, want.at);
            t->rotate(x.at, angles.at, n, halves, 0.3f, got.at);
            t->rotate(in_place.at, angles.at, n, halves, 0.3f, in_place.at);
            for (size_t p = 0; p < n; p++) {
                size_t a = halves ? p : 2 * p, b = halves ? p + n : 2 * p + 1;
                double c = (double)angles.at[2 * p], s = (double)angles.at[2 * p + 1], xa = (double)x.at[a], xb = (double)x.at[b];
                CHECK_NEAR(got.at[a], 0.3 * (xa * c - xb * s), 1e-6);
                CHECK_NEAR(got.at[b], 0.3 * (xa * s + xb * c), 1e-6);
            }
            CHECK(same_bits(got.at, want.at, 2 * n) && same_bits(got.at, in_place.at, 2 * n));
            CHECK(guards_whole(&got) && guards_whole(&in_place));
            buf_free(&x), buf_free(&angles), buf_free(&want), buf_free(&got), buf_free(&in_place);
        }
    }
}

/* Every half, every midpoint between two halves, and their neighbours, against the rule itself: the nearest half, the even one of two. */
static void test_to_f16_all(void)
{
    enum { N = 0x7c00 };
    float *src = malloc(6 * N * sizeof *src);
    kern_f16 *got = malloc(6 * N * sizeof *got), *want = malloc(6 * N * sizeof *want);
    if (!src || !got || !want) abort();
    for (uint32_t h = 0; h < N; h++) {
        double a = (double)kern_f16_to_f32((kern_f16)h), b = h + 1 < N ? (double)kern_f16_to_f32((kern_f16)(h + 1)) : 65536.0;
        float mid = (float)((a + b) / 2);
        kern_f16 low = (kern_f16)h, high = (kern_f16)(h + 1);
        src[6 * h] = (float)a, want[6 * h] = low;
        src[6 * h + 1] = nextafterf(mid, 0), want[6 * h + 1] = low;
        src[6 * h + 2] = mid, want[6 * h + 2] = h % 2 ? high : low;
        src[6 * h + 3] = nextafterf(mid, 1e30f), want[6 * h + 3] = high;
        src[6 * h + 4] = -mid, want[6 * h + 4] = (kern_f16)(0x8000 | (h % 2 ? high : low));
        src[6 * h + 5] = -(float)a, want[6 * h + 5] = (kern_f16)(0x8000 | low);
    }
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        t->to_f16(src, 6 * N, got);
        size_t bad = 0;
        for (size_t k = 0; k < 6 * N; k++) {
            if (got[k] != want[k] && bad++ < 3) fprintf(stderr, "to_f16 %s: %a gives %04x, expected %04x\n", t->isa, (double)src[k], got[k], want[k]);
        }
        CHECK_INT(bad, 0);
    }
    free(src), free(got), free(want);
}

static void test_to_f16_tails(void)
{
    static const float big[] = {INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 65519.996f, 65520, 1e-45f, 0, -0.0f};
    static const kern_f16 big_halves[] = {0x7c00, 0xfc00, 0x7c00, 0xfc00, 0x7bff, 0x7c00, 0, 0, 0x8000};
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        for (size_t l = 0; l < N_LENGTHS; l++) {
            uint64_t seed = 21 + l;
            size_t n = lengths[l];
            buf src = buf_random(n, 100, &seed);
            for (size_t k = 0; k < n && k < 9; k++) src.at[n - 1 - k] = big[k];
            kern_f16 *dst = malloc((n + 3) * sizeof *dst);
            if (!dst) abort();
            for (size_t k = 0; k < n + 3; k++) dst[k] = 0xabcd;
            t->to_f16(src.at, n, dst + 1);
            for (size_t k = 0; k < n; k++) CHECK_INT(dst[1 + k], n - 1 - k < 9 ? big_halves[n - 1 - k] : kern_f32_to_f16(src.at[k]));
            CHECK(dst[0] == 0xabcd && dst[n + 1] == 0xabcd && dst[n + 2] == 0xabcd);
            free(dst);
            buf_free(&src);
        }
    }
}

/* AVX2 and AVX-512 do the same operations on the same 16 lanes. */
static void test_vector_isas_agree(void)
{
    const kern_table *a = kern_get("avx2"), *b = kern_get("avx512");
    static const size_t ins[] = {1, 15, 17, 576, 1100, 1536};
    for (size_t i = 0; i < sizeof ins / sizeof *ins; i++) {
        uint64_t seed = 31 + i;
        size_t n = ins[i];
        buf x = buf_random(5 * n, 2, &seed), w = buf_random(9 * n, 2, &seed), ya = buf_make(45), yb = buf_make(45), na = buf_make(n), nb = buf_make(n);
        a->gemm(x.at, n, 5, w.at, n, 9, n, ya.at, 9);
        b->gemm(x.at, n, 5, w.at, n, 9, n, yb.at, 9);
        CHECK(same_bits(ya.at, yb.at, 45));
        a->rms_norm(x.at, w.at, n, 1e-5f, na.at);
        b->rms_norm(x.at, w.at, n, 1e-5f, nb.at);
        CHECK(same_bits(na.at, nb.at, n));
        a->swiglu(na.at, w.at, n);
        b->swiglu(nb.at, w.at, n);
        CHECK(same_bits(na.at, nb.at, n));
        buf_free(&x), buf_free(&w), buf_free(&ya), buf_free(&yb), buf_free(&na), buf_free(&nb);
    }
}

/* The same on other processors: by hash. */
static void test_vector_isas_have_known_bits(void)
{
    static const size_t ins[] = {1, 15, 17, 576, 1100, 1536};
    for (size_t k = FIRST_VECTOR_ISA; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        if (!t) continue;
        uint64_t gemm = ISA_HASH_START, norm = ISA_HASH_START, act = ISA_HASH_START;
        for (size_t i = 0; i < sizeof ins / sizeof *ins; i++) {
            uint64_t seed = 61 + i;
            size_t n = ins[i];
            buf x = buf_random(7 * n, 2, &seed), w = buf_random(9 * n, 2, &seed), y = buf_make(63), out = buf_make(n);
            t->gemm(x.at, n, 7, w.at, n, 9, n, y.at, 9);
            gemm = isa_hash(gemm, y.at, 63);
            t->rms_norm(x.at, w.at, n, 1e-5f, out.at);
            norm = isa_hash(norm, out.at, n);
            t->swiglu(out.at, w.at, n);
            act = isa_hash(act, out.at, n);
            buf_free(&x), buf_free(&w), buf_free(&y), buf_free(&out);
        }
        CHECK_ISA_HASH(t->isa, "gemm", gemm, UINT64_C(0xd34da3ad506c279f));
        CHECK_ISA_HASH(t->isa, "rms_norm", norm, UINT64_C(0x47cefdf87817ec25));
        CHECK_ISA_HASH(t->isa, "swiglu", act, UINT64_C(0x5d05764a1526fe5c));
    }
}

int main(void)
{
    ref = kern_get("ref");
    for (size_t i = 0; i < N_ISA; i++)
        if (!kern_get(isas[i])) SKIP(isas[i], "this processor or build lacks it");
    RUN(test_gemm);
    RUN(test_gemm_one_sign);
    RUN(test_rms_norm);
    RUN(test_swiglu);
    RUN(test_add);
    RUN(test_rotate);
    RUN(test_to_f16_all);
    RUN(test_to_f16_tails);
    RUN(test_vector_isas_have_known_bits);
    if (kern_get("avx2") && kern_get("avx512")) RUN(test_vector_isas_agree);
    else SKIP("test_vector_isas_agree", "needs both AVX2 and AVX-512");
    return test_done();
}
