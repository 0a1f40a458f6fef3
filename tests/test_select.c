/* test_select.c - the kernels that choose: scores of rows of halves against sums in f64, and the k largest against a sort, in every ISA. */
#include "test.h"

#include "isas.h"
#include "kern.h"
#include "tolerance.h"

#include <inttypes.h>

enum { MAX_N = 9000 };

static float f16_at(const kern_f16 *p)
{
    return kern_f16_to_f32(*p);
}

/* ------------------------------------------------------------------------------------------------ scores ---- */

static void check_scores(const kern_table *kern, size_t n_rows, size_t n, size_t n_q)
{
    uint64_t seed = 7 * n_rows + n + n_q;
    size_t stride = n_rows + 3, q_stride = n + 16;
    kern_f16 *rows = malloc(n_rows * n * sizeof *rows + 1);
    float *q = malloc(n_q * q_stride * sizeof *q), *scores = malloc(n_q * stride * sizeof *scores), *alone = malloc((n_rows + 1) * sizeof *alone);
    for (size_t i = 0; i < n_rows * n; i++) rows[i] = kern_f32_to_f16(4 * test_uniform(&seed));
    for (size_t i = 0; i < n_q * q_stride; i++) q[i] = test_uniform(&seed);
    for (size_t i = 0; i < n_q * stride; i++) scores[i] = 12345;
    kern->score_rows(&(kern_score_args){.rows = rows, .n_rows = n_rows, .n = n, .q = q, .q_stride = q_stride, .n_q = n_q, .scores = scores, .stride = stride});
    for (size_t g = 0; g < n_q; g++) {
        for (size_t i = 0; i < n_rows; i++) {
            double sum = 0, size = 0;
            for (size_t k = 0; k < n; k++) {
                double term = (double)q[g * q_stride + k] * (double)f16_at(&rows[i * n + k]);
                sum += term, size += fabs(term);
            }
            CHECK(fabs((double)scores[g * stride + i] - sum) <= TOL_GEMM_REL * size);
        }
        for (size_t i = n_rows; i < stride; i++) CHECK(scores[g * stride + i] == 12345);
        /* The bits of a score do not depend on the company. */
        kern->score_rows(&(kern_score_args){.rows = rows, .n_rows = n_rows, .n = n, .q = q + g * q_stride, .q_stride = q_stride, .n_q = 1, .scores = alone, .stride = n_rows});
        CHECK(n_rows == 0 || !memcmp(alone, scores + g * stride, n_rows * sizeof *alone));
        for (size_t i = 0; i < n_rows; i += 5) {
            float one;
            kern->score_rows(&(kern_score_args){.rows = rows + i * n, .n_rows = 1, .n = n, .q = q + g * q_stride, .q_stride = q_stride, .n_q = 1, .scores = &one, .stride = 1});
            CHECK(!memcmp(&one, &alone[i], sizeof one));
        }
    }
    free(rows), free(q), free(scores), free(alone);
}

static void test_scores(void)
{
    static const size_t rows[] = {0, 1, 2, 3, 4, 5, 7, 15, 16, 17, 33, 100}, dims[] = {16, 48, 128, 160, 256, 512, 768}, queries[] = {1, 2, 3, 4, 5, 7, 8};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            for (size_t q = 0; q < sizeof queries / sizeof *queries; q++)
                for (size_t i = 0; i < N_ISA; i++)
                    if (kern_get(isas[i])) check_scores(kern_get(isas[i]), rows[r], dims[d], queries[q]);
}

/* ------------------------------------------------------------------------------------------------- top k ---- */

static const float *sorted_scores;

static int by_score(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    float x = sorted_scores[i], y = sorted_scores[j];
    if (x != y) return x < y ? 1 : -1;
    return i < j ? -1 : 1;
}

static int by_number(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return i < j ? -1 : i > j;
}

static void check_top_k(const kern_table *kern, const float *scores, size_t n, const uint32_t *order, size_t k)
{
    static uint32_t want[MAX_N], got[MAX_N + 1], scratch[MAX_N + 1];
    if (k) memcpy(want, order, k * sizeof *want);
    qsort(want, k, sizeof *want, by_number);
    got[k] = scratch[n] = 0xabcdef01u;
    kern->top_k(scores, n, k, got, scratch);
    CHECK(k == 0 || !memcmp(got, want, k * sizeof *want));
    CHECK(got[k] == 0xabcdef01u && scratch[n] == 0xabcdef01u);
}

/* kind 0: spread evenly; 1: many ties; 2: all the same; 3: over the whole range of floats; 4: softmax-like; 5: both zeros; 6: with infinities. */
static float make_score(int kind, size_t i, uint64_t *seed)
{
    float u = test_uniform(seed);
    switch (kind) {
    case 0: return u;
    case 1: return (float)(int)(u * 4);
    case 2: return 2.5f;
    case 3: return (u < 0 ? -1.0f : 1.0f) * ldexpf(1 + fabsf(u), (int)(test_uniform(seed) * 125));
    case 4: return expf(-80 * fabsf(u));
    case 5: return i % 3 ? (i % 2 ? 0.0f : -0.0f) : u;
    default: return i % 7 == 0 ? INFINITY : i % 5 == 0 ? -INFINITY : u;
    }
}

static void test_top_k(void)
{
    static const size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 100, 1000, 1024, 4096, 8191};
    static float scores[MAX_N];
    static uint32_t order[MAX_N];
    uint64_t seed = 3;
    for (int kind = 0; kind < 7; kind++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            size_t n = sizes[s];
            for (size_t i = 0; i < n; i++) scores[i] = make_score(kind, i, &seed), order[i] = (uint32_t)i;
            sorted_scores = scores;
            qsort(order, n, sizeof *order, by_score);
            const size_t ks[] = {0, 1, 2, n / 50, n / 20, n / 3, n / 2, n - 1, n};
            for (size_t i = 0; i < sizeof ks / sizeof *ks; i++)
                for (size_t t = 0; t < N_ISA && ks[i] <= n; t++)
                    if (kern_get(isas[t])) check_top_k(kern_get(isas[t]), scores, n, order, ks[i]);
        }
    }
}

/* AVX2, AVX-512 and NEON add in one order. */
static void test_vector_isas_agree(void)
{
    enum { ROWS = 37, N = 160, QUERIES = 5 };
    static kern_f16 rows[ROWS * N];
    static float q[QUERIES * N], scores[QUERIES * ROWS];
    uint64_t seed = 11;
    for (size_t i = 0; i < ROWS * N; i++) rows[i] = kern_f32_to_f16(test_uniform(&seed));
    for (size_t i = 0; i < QUERIES * N; i++) q[i] = test_uniform(&seed);
    for (size_t i = FIRST_VECTOR_ISA; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        t->score_rows(&(kern_score_args){.rows = rows, .n_rows = ROWS, .n = N, .q = q, .q_stride = N, .n_q = QUERIES, .scores = scores, .stride = ROWS});
        CHECK_ISA_HASH(t->isa, "score_rows", isa_hash(ISA_HASH_START, scores, QUERIES * ROWS), UINT64_C(0x931e1eeded3319b6));
    }
}

int main(void)
{
    for (size_t i = 0; i < N_ISA; i++)
        if (!kern_get(isas[i])) SKIP(isas[i], "this processor or build lacks it");
    RUN(test_scores);
    RUN(test_top_k);
    RUN(test_vector_isas_agree);
    return test_done();
}
