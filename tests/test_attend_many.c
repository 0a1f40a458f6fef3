/* test_attend_many.c - attention of many queries in 16-bit integers against the reference (sums in f64 over the same halves), for every set of kernels that has it. */
#include "test.h"

#include "isas.h"
#include "kern.h"
#include "tolerance.h"

enum { MAX_Q = 40 };

/* What the rows are like. */
typedef enum rows_kind { ROWS_PLAIN, ROWS_SHIFTED, ROWS_CONSTANT, ROWS_HUGE, ROWS_TINY, N_ROWS_KINDS } rows_kind;

static float gauss(uint64_t *seed)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += test_uniform(seed);
    return sum * 0.7f;
}

static float make_element(rows_kind kind, size_t channel, uint64_t *seed)
{
    float x = gauss(seed);
    switch (kind) {
    case ROWS_SHIFTED: return channel % 16 < 2 ? 200 + 3 * x : x;
    case ROWS_CONSTANT: return channel % 3 ? x : 1.5f;
    case ROWS_HUGE: return 20000 * test_uniform(seed);
    case ROWS_TINY: return 1e-7f * x;
    default: return x;
    }
}

typedef struct many_case {
    size_t dim, n_q, n_tiles;
    uint32_t last; /* positions of the last tile */
    kern_f16 *rows;
    float *q, *o, *lse, *want_o, *want_lse, *m, *l;
    void *scratch;
} many_case;

static many_case make_case(rows_kind kind, size_t dim, size_t n_q, size_t n_tiles, uint32_t last, float spread)
{
    many_case c = {.dim = dim, .n_q = n_q, .n_tiles = n_tiles, .last = last};
    uint64_t seed = 1 + dim + 3 * n_q + 7 * n_tiles + 11 * last + (uint64_t)kind;
    size_t n = (n_tiles - 1) * KERN_MANY + last, row = 2 * dim;
    c.rows = malloc(n * row * sizeof *c.rows); /* exactly: a sanitizer sees what is read beyond */
    c.q = malloc(n_q * dim * sizeof *c.q), c.o = malloc(n_q * dim * sizeof *c.o), c.want_o = malloc(n_q * dim * sizeof *c.o);
    c.lse = malloc(n_q * sizeof *c.lse), c.want_lse = malloc(n_q * sizeof *c.lse), c.m = malloc(n_q * sizeof *c.m), c.l = malloc(n_q * sizeof *c.l);
    c.scratch = aligned_alloc(64, (kern_many_scratch(dim) + 63) / 64 * 64);
    for (size_t i = 0; i < n * row; i++) c.rows[i] = kern_f32_to_f16(make_element(kind, i % row % dim, &seed));
    for (size_t i = 0; i < n_q * dim; i++) c.q[i] = spread * gauss(&seed) / sqrtf((float)dim);
    return c;
}

static void free_case(many_case *c)
{
    free(c->rows), free(c->q), free(c->o), free(c->want_o), free(c->lse), free(c->want_lse), free(c->m), free(c->l), free(c->scratch);
}

static void run_many(const kern_table *t, const many_case *c, size_t q0, size_t n_q, float *o, float *lse)
{
    kern_many a = {.q = c->q + q0 * c->dim, .n_q = n_q, .dim = c->dim, .o = o, .m = c->m, .l = c->l, .scratch = c->scratch};
    memset(o, 0, n_q * c->dim * sizeof *o);
    for (size_t i = 0; i < n_q; i++) c->m[i] = -INFINITY, c->l[i] = 0;
    for (size_t i = 0; i < c->n_tiles; i++)
        t->many_tile(&a, c->rows + i * KERN_MANY * 2 * c->dim, i + 1 < c->n_tiles ? (uint32_t)KERN_MANY : c->last);
    t->many_end(&a, lse);
}

/* The reference takes at most KERN_SPAN positions a call. */
static void run_ref(const many_case *c)
{
    const kern_table *ref = kern_get("ref");
    size_t n = (c->n_tiles - 1) * KERN_MANY + c->last;
    float *part = malloc(c->n_q * c->dim * sizeof *part), *lse = malloc(c->n_q * sizeof *lse);
    void *scratch = aligned_alloc(64, (kern_attend_scratch(c->n_q, c->dim) + 63) / 64 * 64);
    memset(c->want_o, 0, c->n_q * c->dim * sizeof *part);
    for (size_t i = 0; i < c->n_q; i++) c->want_lse[i] = -INFINITY;
    for (size_t at = 0; at < n; at += KERN_SPAN) {
        kern_span span = {.rows = c->rows + at * 2 * c->dim, .n = (uint32_t)(n - at < KERN_SPAN ? n - at : (size_t)KERN_SPAN)};
        ref->attend(&(kern_attend_args){.q = c->q, .q_stride = c->dim, .n_q = c->n_q, .dim = c->dim, .spans = &span, .n_spans = 1, .o = part, .o_stride = c->dim, .lse = lse,
                                        .scratch = scratch});
        for (size_t i = 0; i < c->n_q; i++) ref->merge(c->want_o + i * c->dim, &c->want_lse[i], part + i * c->dim, lse[i], c->dim);
    }
    free(part), free(lse), free(scratch);
}

/* The root of the mean square error, relative to that of the values. */
static double output_error(const many_case *c)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < c->n_q * c->dim; i++) {
        double d = (double)c->o[i] - (double)c->want_o[i];
        error += d * d, size += (double)c->want_o[i] * (double)c->want_o[i];
    }
    return size > 0 ? sqrt(error / size) : sqrt(error);
}

static double lse_error(const many_case *c)
{
    double worst = 0;
    for (size_t i = 0; i < c->n_q; i++) worst = fmax(worst, fabs((double)c->lse[i] - (double)c->want_lse[i]));
    return worst;
}

static void check_near(const kern_table *t, rows_kind kind, size_t dim, size_t n_q, size_t n_tiles, uint32_t last)
{
    static const float spreads[] = {0.3f, 1, 3};
    for (int i = 0; i < 3; i++) {
        many_case c = make_case(kind, dim, n_q, n_tiles, last, spreads[i]);
        run_many(t, &c, 0, n_q, c.o, c.lse);
        run_ref(&c);
        double o = output_error(&c), lse = lse_error(&c);
        CHECK(o <= TOL_MANY_OUTPUT && lse <= TOL_MANY_LSE * (spreads[i] > 1 ? spreads[i] : 1));
        if (test_bad) fprintf(stderr, "%s: kind %d, dim %zu, %zu queries, %zu tiles, spread %.1f: error %.2e, lse %.2e\n", t->isa, (int)kind, dim, n_q, n_tiles, (double)spreads[i], o, lse);
        free_case(&c);
        if (test_bad > 4) return;
    }
}

#define FOR_EACH_MANY(t)               \
    for (size_t i_ = 0; i_ < N_ISA; i_++) \
        for (const kern_table *t = kern_get(isas[i_]); t && t->many_tile; t = NULL)

static void test_near_reference(void)
{
    static const size_t dims[] = {16, 48, 64, 80, 96, 128, 256, 512};
    FOR_EACH_MANY(t) {
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            check_near(t, ROWS_PLAIN, dims[d], 13, 3, KERN_MANY);
            check_near(t, ROWS_SHIFTED, dims[d], 6, 2, KERN_MANY);
            check_near(t, ROWS_CONSTANT, dims[d], 7, 2, 77);
        }
        for (uint32_t last = 1; last <= KERN_MANY; last += last < 20 ? 1 : 9) check_near(t, ROWS_PLAIN, 64, 7, 1, last);
        check_near(t, ROWS_PLAIN, 128, 24, 40, KERN_MANY);
    }
}

/* Scores far apart and values of the largest halves: everything stays a number, o within the range of the values, and the largest score decides. */
static void test_extremes(void)
{
    FOR_EACH_MANY(t) {
        for (int kind = ROWS_HUGE; kind <= ROWS_TINY; kind++) {
            for (float spread = 1e-20f; spread < 1e32f; spread *= 1e6f) {
                many_case c = make_case((rows_kind)kind, 64, 9, 2, 100, spread);
                run_many(t, &c, 0, c.n_q, c.o, c.lse);
                for (size_t i = 0; i < c.n_q * c.dim; i++) CHECK(isfinite(c.o[i]) && fabsf(c.o[i]) <= (kind == ROWS_HUGE ? 20010.0f : 1e-6f));
                for (size_t i = 0; i < c.n_q; i++) CHECK(isfinite(c.lse[i]));
                free_case(&c);
            }
        }
        many_case c = make_case(ROWS_PLAIN, 64, 6, 1, 50, 0); /* queries of zeros: the mean of the values */
        run_many(t, &c, 0, c.n_q, c.o, c.lse);
        run_ref(&c);
        CHECK(output_error(&c) <= TOL_MANY_OUTPUT && lse_error(&c) < 1e-5);
        free_case(&c);
        kern_many none = {.dim = 64};
        t->many_tile(&none, NULL, 0);
        t->many_end(&none, NULL);
    }
}

/* The bits of a query are the same in any company. */
static void test_company(void)
{
    FOR_EACH_MANY(t) {
        for (size_t dim = 64; dim <= 96; dim += 32) {
            many_case c = make_case(ROWS_PLAIN, dim, MAX_Q, 3, 90, 1.5f);
            float o[96], lse;
            run_many(t, &c, 0, MAX_Q, c.o, c.lse);
            for (size_t i = 0; i < MAX_Q; i++) {
                run_many(t, &c, i, 1, o, &lse);
                CHECK(!memcmp(o, c.o + i * dim, dim * sizeof *o) && !memcmp(&lse, &c.lse[i], sizeof lse));
            }
            for (size_t n = 2; n < 14; n++) {
                run_many(t, &c, 5, n, c.want_o, c.want_lse);
                CHECK(!memcmp(c.want_o, c.o + 5 * dim, n * dim * sizeof *o) && !memcmp(c.want_lse, c.lse + 5, n * sizeof lse));
            }
            free_case(&c);
        }
    }
}

/* All sets of kernels give the same bits: by hash; of the means alone, as lse has a logarithm of the C library in it. */
static void test_known_bits(void)
{
    static const size_t dims[] = {16, 48, 64, 128};
    static const float spreads[] = {0.3f, 3, 1000};
    FOR_EACH_MANY(t) {
        uint64_t hash = ISA_HASH_START;
        for (int kind = 0; kind < N_ROWS_KINDS; kind++) {
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
                for (size_t i = 0; i < sizeof spreads / sizeof *spreads; i++) {
                    many_case c = make_case((rows_kind)kind, dims[d], 9, 3, 37, spreads[i]);
                    run_many(t, &c, 0, c.n_q, c.o, c.lse);
                    hash = isa_hash(hash, c.o, c.n_q * c.dim);
                    free_case(&c);
                }
            }
        }
        CHECK_ISA_HASH(t->isa, "many", hash, UINT64_C(0x6f1614c197f4b0e5));
    }
}

int main(void)
{
    int n = 0;
    FOR_EACH_MANY(t) n++;
    if (!n) SKIP("test_attend_many", "no set of kernels on this processor has it");
    if (!n) return test_done();
    RUN(test_near_reference);
    RUN(test_extremes);
    RUN(test_company);
    RUN(test_known_bits);
    return test_done();
}
