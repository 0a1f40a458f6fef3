/* test_attend.c - the attention kernels of every ISA against the reference, the merge of partials, and the rule that neither the other queries of
 * a call nor the cut into spans changes a bit of a result.
 *
 * Rows end at an unreadable page, so that a kernel that reads past the last position is caught by the processor. */
#include "test.h"

#include "isas.h"
#include "kern.h"
#include "pool.h"
#include "tolerance.h"

#include <float.h>
#include <sys/mman.h>
#include <unistd.h>

static const size_t dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 256};
static const uint32_t counts[] = {0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 130, 511, 512};
enum { N_DIMS = sizeof dims / sizeof *dims, N_COUNTS = sizeof counts / sizeof *counts, MAX_Q = 100, MAX_DIM = 512, GUARD = 16 };

static const kern_table *ref;
static const uint32_t guard_bits = 0x7fc0dead;

/* ---- rows ----------------------------------------------------------------------------------- */

typedef struct rows {
    void *map;
    size_t map_bytes;
    kern_f16 *at; /* the last row ends where memory ends */
} rows;

static rows rows_make(size_t n, size_t dim)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = n * 4 * dim, whole = (bytes + page - 1) / page * page;
    rows r = {.map_bytes = whole + page};
    r.map = mmap(NULL, r.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r.map == MAP_FAILED || mprotect((char *)r.map + whole, page, PROT_NONE)) abort();
    r.at = (kern_f16 *)(void *)((char *)r.map + whole - bytes);
    return r;
}

static void rows_free(rows *r)
{
    munmap(r->map, r->map_bytes);
}

static rows rows_random(size_t n, size_t dim, float k_scale, float v_scale, uint64_t *seed)
{
    rows r = rows_make(n, dim);
    for (size_t i = 0; i < n * 2 * dim; i++) r.at[i] = kern_f32_to_f16((i / dim % 2 ? v_scale : k_scale) * test_uniform(seed));
    return r;
}

/* ---- one call ------------------------------------------------------------------------------- */

/* A problem and its answer.  Queries and outputs are aligned to 4 bytes only, and outputs lie between guards. */
typedef struct job {
    size_t n_q, dim, q_stride, o_stride;
    const kern_span *spans;
    size_t n_spans;
    const uint32_t *n_valid;
    bool f32;
    const float *q;
    float o[GUARD + MAX_Q * (MAX_DIM + 5) + GUARD], lse[GUARD + MAX_Q + GUARD];
} job;

static void fill_guards(float *p, size_t n)
{
    for (size_t i = 0; i < n; i++) memcpy(p + i, &guard_bits, 4);
}

static bool is_guard(const float *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(p + i, &guard_bits, 4)) return false;
    return true;
}

static float *job_o(job *j, size_t i)
{
    return j->o + GUARD + i * j->o_stride;
}

static void job_run(job *j, const kern_table *t)
{
    size_t bytes = kern_attend_scratch(j->n_q, j->dim), room = (bytes + 63) / 64 * 64;
    unsigned char *scratch = aligned_alloc(64, room + 64);
    if (!scratch) abort();
    memset(scratch, 0xff, room + 64); /* not a number anywhere */
    j->o_stride = j->dim + 5;
    fill_guards(j->o, GUARD + j->n_q * j->o_stride + GUARD);
    fill_guards(j->lse, GUARD + j->n_q + GUARD);
    kern_attend_args a = {.q = j->q, .q_stride = j->q_stride, .n_q = j->n_q, .dim = j->dim, .spans = j->spans, .n_spans = j->n_spans,
                          .n_valid = j->n_valid, .f32 = j->f32, .o = j->o + GUARD, .o_stride = j->o_stride, .lse = j->lse + GUARD, .scratch = scratch};
    t->attend(&a);
    CHECK(is_guard(j->o, GUARD) && is_guard(j->lse, GUARD) && is_guard(j->lse + GUARD + j->n_q, GUARD));
    for (size_t i = 0; i < j->n_q; i++) CHECK(is_guard(job_o(j, i) + j->dim, 5));
    CHECK(is_guard(job_o(j, j->n_q), GUARD));
    for (size_t i = bytes; i < room + 64; i++) CHECK(scratch[i] == 0xff);
    free(scratch);
}

static job *job_new(void)
{
    job *j = calloc(1, sizeof *j);
    if (!j) abort();
    return j;
}

static float *queries_random(size_t n_q, size_t stride, float scale, uint64_t *seed)
{
    float *q = malloc((n_q * stride + 1) * sizeof *q);
    if (!q) abort();
    for (size_t i = 0; i < n_q * stride + 1; i++) q[i] = scale * test_uniform(seed);
    return q;
}

static uint32_t span_count(const kern_span *spans, size_t n_spans)
{
    uint32_t n = 0;
    for (size_t s = 0; s < n_spans; s++) n += spans[s].n;
    return n;
}

/* Compares with the reference; a score may be off by a share of sum |q| |k|, and that moves lse by as much and o by twice as much of |v|. */
static void compare(const char *what, job *got, job *want, double score_size, double v_size)
{
    double slack = TOL_ATTEND_SCORE_REL * score_size, lse_tol = TOL_ATTEND_LSE + slack, o_tol = (TOL_ATTEND_REL + 2 * slack) * v_size;
    for (size_t i = 0; i < got->n_q; i++) {
        float a = got->lse[GUARD + i], b = want->lse[GUARD + i];
        if (!(a == b || fabs((double)a - (double)b) <= lse_tol))
            test_bad++, fprintf(stderr, "%s dim %zu query %zu of %zu: lse %.9g, expected %.9g within %.3g\n", what, got->dim, i, got->n_q, (double)a,
                (double)b, lse_tol);
        for (size_t d = 0; d < got->dim; d++) {
            float x = job_o(got, i)[d], y = job_o(want, i)[d];
            if (fabs((double)x - (double)y) <= o_tol) continue;
            test_bad++, fprintf(stderr, "%s dim %zu query %zu of %zu: o[%zu] %.9g, expected %.9g within %.3g\n", what, got->dim, i, got->n_q, d,
                (double)x, (double)y, o_tol);
            return;
        }
    }
}

static bool same_answer(job *a, size_t i, job *b, size_t k)
{
    return !memcmp(job_o(a, i), job_o(b, k), a->dim * sizeof(float)) && !memcmp(&a->lse[GUARD + i], &b->lse[GUARD + k], sizeof(float));
}

/* The problem for every ISA against the reference, and each query on its own against the call with all. */
static void check_problem(job *p, double score_size, double v_size, bool singles)
{
    job *want = job_new(), *one = job_new();
    *want = *p;
    job_run(want, ref);
    for (size_t k = 0; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        if (!t) continue;
        job_run(p, t);
        compare(t->isa, p, want, score_size, v_size);
        for (size_t i = 0; i < p->n_q && singles; i++) {
            one->q = p->q + i * p->q_stride, one->q_stride = p->q_stride, one->n_q = 1, one->dim = p->dim;
            one->spans = p->spans, one->n_spans = p->n_spans, one->n_valid = p->n_valid ? p->n_valid + i : NULL;
            job_run(one, t);
            if (same_answer(one, 0, p, i)) continue;
            test_bad++, fprintf(stderr, "%s dim %zu: query %zu of %zu has other bits on its own\n", t->isa, p->dim, i, p->n_q);
            break;
        }
    }
    free(want), free(one);
}

/* Random rows and queries; scale is that of the queries, about what a score is for dim 16. */
static void check_random(size_t n_q, size_t dim, uint32_t n, float scale, float v_scale, bool singles)
{
    uint64_t seed = 1 + n_q * 7919 + dim * 104729 + n;
    rows r = rows_random(n, dim, 1, v_scale, &seed);
    float *q = queries_random(n_q, dim + 3, scale, &seed);
    kern_span span = {.rows = r.at, .n = n};
    job *p = job_new();
    p->n_q = n_q, p->dim = dim, p->q = q + 1, p->q_stride = dim + 3, p->spans = &span, p->n_spans = 1;
    check_problem(p, (double)scale * (double)dim, (double)v_scale, singles);
    free(p), free(q);
    rows_free(&r);
}

/* ---- against the reference ------------------------------------------------------------------ */

/* Two positions by hand: this is what checks the reference itself. */
static void test_by_hand(void)
{
    enum { DIM = 16 };
    rows r = rows_make(2, DIM);
    float q[DIM] = {2, -1};
    const float k0[2] = {0.5f, 0.25f}, k1[2] = {1, 1.5f}, v0[2] = {3, -1}, v1[2] = {-5, 7};
    for (int i = 0; i < 2; i++) {
        r.at[i] = kern_f32_to_f16(k0[i]), r.at[DIM + i] = kern_f32_to_f16(v0[i]);
        r.at[2 * DIM + i] = kern_f32_to_f16(k1[i]), r.at[3 * DIM + i] = kern_f32_to_f16(v1[i]);
    }
    double s0 = 0.75, s1 = 0.5, e0 = exp(s0), e1 = exp(s1);
    kern_span span = {.rows = r.at, .n = 2};
    job *p = job_new();
    p->n_q = 1, p->dim = DIM, p->q = q, p->q_stride = DIM, p->spans = &span, p->n_spans = 1;
    for (size_t i = 0; i < N_ISA; i++) {
        const kern_table *t = kern_get(isas[i]);
        if (!t) continue;
        job_run(p, t);
        CHECK_NEAR(p->lse[GUARD], log(e0 + e1), 1e-6);
        for (int d = 0; d < 2; d++) CHECK_NEAR(job_o(p, 0)[d], (e0 * (double)v0[d] + e1 * (double)v1[d]) / (e0 + e1), 2e-6);
        for (int d = 2; d < DIM; d++) CHECK(job_o(p, 0)[d] == 0);
    }
    free(p);
    rows_free(&r);
}

static void test_every_group_and_dim(void)
{
    for (size_t d = 0; d < N_DIMS; d++)
        for (size_t g = 1; g <= 17; g++) check_random(g, dims[d], 70, 0.5f, 1, true);
    check_random(5, MAX_DIM, 70, 0.3f, 1, true);
}

static void test_every_count(void)
{
    static const size_t groups[] = {1, 2, 3, 4, 7, 18};
    for (size_t c = 0; c < N_COUNTS; c++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) check_random(groups[g], 48, counts[c], 0.5f, 1, true);
    check_random(0, 64, 100, 1, 1, false);
    check_random(96, 64, 300, 0.5f, 1, true);
    check_random(MAX_Q, 32, 129, 0.5f, 1, true);
}

/* Flat scores, peaked ones, huge ones, tiny values. */
static void test_magnitudes(void)
{
    static const size_t groups[] = {1, 3, 11, 19};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        check_random(groups[g], 64, 200, 0, 1, true);
        check_random(groups[g], 64, 200, 20, 1, true);
        check_random(groups[g], 64, 200, 1e4f, 1, true);
        check_random(groups[g], 64, 200, 0.5f, 60000, true);
        check_random(groups[g], 64, 200, 0.5f, 3e-6f, true); /* subnormal halves */
    }
}

/* All scores near +size or near -size, in ascending and descending order: the maximum moves at every tile, or never. */
static void test_large_offsets(void)
{
    enum { DIM = 32, N = 300, N_Q = 19 };
    static const float sizes[] = {1e4f, -1e4f, 3e-5f};
    for (size_t c = 0; c < 2 * sizeof sizes / sizeof *sizes; c++) {
        uint64_t seed = 3;
        float size = sizes[c / 2], step = c % 2 ? 0.03125f : -0.03125f;
        rows r = rows_random(N, DIM, 0, 1, &seed);
        float *q = queries_random(N_Q, DIM, 0, &seed);
        for (size_t i = 0; i < N_Q; i++) q[i * DIM] = size, q[i * DIM + 1] = 1 + (float)i;
        for (size_t i = 0; i < N; i++) r.at[i * 2 * DIM] = kern_f32_to_f16(1), r.at[i * 2 * DIM + 1] = kern_f32_to_f16(step * (float)i);
        kern_span span = {.rows = r.at, .n = N};
        job *p = job_new();
        p->n_q = N_Q, p->dim = DIM, p->q = q, p->q_stride = DIM, p->spans = &span, p->n_spans = 1;
        check_problem(p, fabs((double)size) + N_Q * N * 0.03125, 1, true);
        free(p), free(q);
        rows_free(&r);
    }
}

/* Scores beyond the range of floats, of both signs at once: no value is promised, but numbers are. */
static void test_no_nan(void)
{
    enum { DIM = 64, N = 100, N_Q = 20 };
    uint64_t seed = 17;
    rows r = rows_random(N, DIM, 65000, 65000, &seed);
    kern_span span = {.rows = r.at, .n = N};
    job *p = job_new();
    for (int same = 0; same < 2; same++) {
        float *q = queries_random(N_Q, DIM, FLT_MAX, &seed);
        if (same)
            for (size_t i = 0; i < N * 2 * DIM; i++) r.at[i] = 0xfbff; /* -65504 */
        p->n_q = N_Q, p->dim = DIM, p->q = q, p->q_stride = DIM, p->spans = &span, p->n_spans = 1;
        for (size_t k = 0; k < N_ISA; k++) {
            const kern_table *t = kern_get(isas[k]);
            if (!t) continue;
            job_run(p, t);
            for (size_t i = 0; i < N_Q; i++) {
                CHECK(!isnan(p->lse[GUARD + i]));
                for (size_t d = 0; d < DIM; d++) CHECK(isfinite(job_o(p, i)[d]));
            }
        }
        free(q);
    }
    free(p);
    rows_free(&r);
}

/* The workers of the engine flush subnormals; halves must not suffer. */
static void test_flushing(void)
{
    uint64_t saved = pool_float_mode_enter();
    check_random(1, 64, 200, 0.5f, 3e-6f, true);
    check_random(19, 64, 200, 0.5f, 3e-6f, true);
    check_random(19, 64, 200, 20, 1, true);
    pool_float_mode_leave(saved);
}

/* ---- masks and spans ------------------------------------------------------------------------ */

/* A query that sees n of the positions has the bits of a call that has only n. */
static void test_masks(void)
{
    enum { DIM = 80, N = 200, N_Q = 37 };
    uint64_t seed = 23;
    rows r = rows_random(N, DIM, 1, 1, &seed);
    float *q = queries_random(N_Q, DIM, 0.5f, &seed);
    uint32_t n_valid[N_Q];
    kern_span span = {.rows = r.at, .n = N}, part;
    job *p = job_new(), *one = job_new();
    for (int kind = 0; kind < 4; kind++) {
        for (uint32_t i = 0; i < N_Q; i++) {
            uint32_t any = (uint32_t)(test_rand(&seed) % (N + 1));
            n_valid[i] = kind == 0 ? 0 : kind == 1 ? 100 + i / 3 : kind == 2 ? (i % 4 ? any : 0) : i % 2 ? 64 : 128;
        }
        for (size_t n_q = 1; n_q <= N_Q; n_q += 6) { /* kernels may treat few queries and many differently */
            p->n_q = n_q, p->dim = DIM, p->q = q, p->q_stride = DIM, p->spans = &span, p->n_spans = 1, p->n_valid = n_valid;
            check_problem(p, DIM, 1, true);
            for (size_t k = 0; k < N_ISA; k++) {
                const kern_table *t = kern_get(isas[k]);
                if (!t) continue;
                job_run(p, t);
                for (size_t i = 0; i < n_q; i++) {
                    part = (kern_span){.rows = r.at, .n = n_valid[i]};
                    one->n_q = 1, one->dim = DIM, one->q = q + i * DIM, one->q_stride = DIM, one->spans = &part, one->n_spans = 1;
                    job_run(one, t);
                    CHECK(same_answer(one, 0, p, i));
                    if (n_valid[i]) continue;
                    CHECK(p->lse[GUARD + i] == -INFINITY);
                    for (size_t d = 0; d < DIM; d++) CHECK(job_o(p, i)[d] == 0);
                }
            }
        }
    }
    free(p), free(one), free(q);
    rows_free(&r);
}

/* The spans of each cut lie in pieces of memory of their own, each before an unreadable page; empty spans among them. */
static void check_cut(const rows *r, const float *q, size_t n_q, size_t dim, uint32_t n, uint32_t cut, uint32_t cut2)
{
    uint32_t parts[5] = {cut, 0, cut2 - cut, n - cut2, 0}, at = 0;
    rows pieces[5];
    kern_span spans[5], span = {.rows = r->at, .n = n};
    for (size_t i = 0; i < 5; i++) {
        pieces[i] = rows_make(parts[i], dim);
        if (parts[i]) memcpy(pieces[i].at, r->at + at * 2 * dim, parts[i] * 4 * dim);
        spans[i] = (kern_span){.rows = pieces[i].at, .n = parts[i]};
        at += parts[i];
    }
    job *whole = job_new(), *cuts = job_new();
    whole->n_q = n_q, whole->dim = dim, whole->q = q, whole->q_stride = dim, whole->spans = &span, whole->n_spans = 1;
    *cuts = *whole;
    cuts->spans = spans, cuts->n_spans = 5;
    CHECK_INT(span_count(spans, 5), n);
    for (size_t k = 0; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        if (!t) continue;
        job_run(whole, t);
        job_run(cuts, t);
        for (size_t i = 0; i < n_q; i++) CHECK(same_answer(whole, i, cuts, i));
    }
    for (size_t i = 0; i < 5; i++) rows_free(&pieces[i]);
    free(whole), free(cuts);
}

static void test_cuts(void)
{
    enum { DIM = 48, N = 150, N_Q = 20 };
    uint64_t seed = 29;
    rows r = rows_random(N, DIM, 1, 1, &seed);
    float *q = queries_random(N_Q, DIM, 0.5f, &seed);
    for (uint32_t cut = 0; cut <= N; cut++) {
        uint32_t cut2 = cut + (uint32_t)(test_rand(&seed) % (N - cut + 1));
        check_cut(&r, q, cut % 2 ? 3 : N_Q, DIM, N, cut, cut2);
    }
    free(q);
    rows_free(&r);
}

/* ---- merge ---------------------------------------------------------------------------------- */

static void test_merge_identity(void)
{
    for (size_t k = 0; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        if (!t) continue;
        for (size_t dim = 1; dim <= 70; dim += 3) {
            float a[70 + GUARD], b[70], zero[70] = {0}, la = -3.25f, none = -INFINITY;
            uint64_t seed = 41;
            fill_guards(a, 70 + GUARD);
            for (size_t d = 0; d < dim; d++) b[d] = a[d] = test_uniform(&seed);
            b[0] = a[0] = -0.0f;
            t->merge(a, &la, zero, -INFINITY, dim);
            CHECK(la == -3.25f && !memcmp(a, b, dim * sizeof *a) && is_guard(a + dim, GUARD));
            t->merge(zero, &none, b, -3.25f, dim);
            CHECK(none == -3.25f && !memcmp(zero, b, dim * sizeof *b));
            memset(zero, 0, sizeof zero), none = -INFINITY;
            t->merge(zero, &none, a, -INFINITY, dim);
            CHECK(none == -INFINITY && zero[0] == 0);
            t->merge(a, &la, b, -3.25f, dim); /* with itself: the same mean, ln 2 more */
            CHECK_NEAR(la, -3.25 + log(2), 1e-6);
            for (size_t d = 0; d < dim; d++) CHECK_NEAR(a[d], b[d], 1e-6);
            CHECK(is_guard(a + dim, GUARD));
            t->merge(a, &la, zero, -1e4f, dim); /* far below: nothing changes */
            CHECK_NEAR(la, -3.25 + log(2), 1e-6);
            for (size_t d = 0; d < dim; d++) CHECK_NEAR(a[d], b[d], 1e-6);
            t->merge(a, &la, zero, 1e4f, dim); /* far above: replaced */
            CHECK(la == 1e4f);
            for (size_t d = 0; d < dim; d++) CHECK_NEAR(a[d], 0, 1e-6);
        }
    }
}

/* Two and many parts against one. */
static void check_split(const kern_table *t, const rows *r, const float *q, size_t dim, uint32_t n, uint32_t part)
{
    kern_span span = {.rows = r->at, .n = n};
    job *whole = job_new(), *piece = job_new();
    float o[MAX_DIM] = {0}, lse = -INFINITY;
    whole->n_q = 1, whole->dim = dim, whole->q = q, whole->q_stride = dim, whole->spans = &span, whole->n_spans = 1;
    job_run(whole, t);
    *piece = *whole;
    for (uint32_t at = 0; at < n; at += part) {
        kern_span s = {.rows = r->at + at * 2 * dim, .n = n - at < part ? n - at : part};
        piece->spans = &s;
        job_run(piece, t);
        t->merge(o, &lse, job_o(piece, 0), piece->lse[GUARD], dim);
    }
    double want = (double)whole->lse[GUARD];
    CHECK_NEAR(lse, want, TOL_MERGE_REL * fmax(1, fabs(want)));
    for (size_t d = 0; d < dim; d++) CHECK_NEAR(o[d], job_o(whole, 0)[d], TOL_MERGE_REL);
    free(whole), free(piece);
}

static void test_merge_splits(void)
{
    enum { DIM = 64, N = 180 };
    uint64_t seed = 43;
    rows r = rows_random(N, DIM, 1, 1, &seed);
    for (int kind = 0; kind < 3; kind++) {
        float *q = queries_random(1, DIM, kind == 0 ? 0.4f : kind == 1 ? 0 : 2, &seed);
        for (size_t k = 0; k < N_ISA; k++) {
            const kern_table *t = kern_get(isas[k]);
            for (uint32_t part = 1; part < N && t; part += part < 10 ? 1 : 7) check_split(t, &r, q, DIM, N, part);
        }
        free(q);
    }
    rows_free(&r);
}

/* Rows of floats that hold what the halves hold give the bits of the halves, in both regimes and across borders of spans. */
static void test_rows_of_floats(void)
{
    enum { N = 150 };
    uint64_t seed = 53;
    job *a = job_new(), *b = job_new();
    for (size_t d = 0; d < N_DIMS; d++) {
        size_t n_elems = N * 2 * dims[d];
        rows half = rows_random(N, dims[d], 1, 1, &seed), whole = rows_make(2 * N, dims[d]);
        float *f = (float *)(void *)whole.at;
        for (size_t i = 0; i < n_elems; i++) f[i] = kern_f16_to_f32(half.at[i]);
        float *q = queries_random(21, dims[d], 0.5f, &seed);
        kern_span span = {.rows = half.at, .n = N}, float_spans[2] = {{.rows = f, .n = 70}, {.rows = f + 70 * 2 * dims[d], .n = N - 70}};
        for (size_t n_q = 1; n_q <= 21; n_q += 5) {
            a->n_q = n_q, a->dim = dims[d], a->q = q, a->q_stride = dims[d], a->spans = &span, a->n_spans = 1;
            *b = *a;
            b->spans = float_spans, b->n_spans = 2, b->f32 = true;
            for (size_t k = 0; k < N_ISA; k++) {
                const kern_table *t = kern_get(isas[k]);
                if (!t) continue;
                job_run(a, t);
                job_run(b, t);
                for (size_t i = 0; i < n_q; i++) CHECK(same_answer(a, i, b, i));
            }
        }
        free(q);
        rows_free(&half);
        rows_free(&whole);
    }
    free(a), free(b);
}

/* AVX2 and AVX-512 do the same operations on the same 16 lanes. */
static void test_vector_isas_agree(void)
{
    uint64_t seed = 47;
    job *a = job_new(), *b = job_new();
    for (size_t d = 0; d < N_DIMS; d++) {
        rows r = rows_random(150, dims[d], 1, 1, &seed);
        float *q = queries_random(21, dims[d], 0.5f, &seed);
        kern_span span = {.rows = r.at, .n = 150};
        for (size_t n_q = 1; n_q <= 21; n_q += 5) {
            a->n_q = n_q, a->dim = dims[d], a->q = q, a->q_stride = dims[d], a->spans = &span, a->n_spans = 1;
            *b = *a;
            job_run(a, kern_get("avx2"));
            job_run(b, kern_get("avx512"));
            for (size_t i = 0; i < n_q; i++) CHECK(same_answer(a, i, b, i));
        }
        free(q);
        rows_free(&r);
    }
    free(a), free(b);
}

/* The same on other processors: by hash; of the means alone, as lse has a logarithm of the C library in it. */
static void test_vector_isas_have_known_bits(void)
{
    for (size_t k = FIRST_VECTOR_ISA; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        uint64_t seed = 59, hash = ISA_HASH_START;
        job *p = job_new();
        for (size_t d = 0; d < N_DIMS && t; d++) {
            rows r = rows_random(150, dims[d], 1, 1, &seed);
            float *q = queries_random(21, dims[d], 0.5f, &seed);
            kern_span span = {.rows = r.at, .n = 150};
            for (size_t n_q = 1; n_q <= 21; n_q += 5) {
                p->n_q = n_q, p->dim = dims[d], p->q = q, p->q_stride = dims[d], p->spans = &span, p->n_spans = 1;
                job_run(p, t);
                for (size_t i = 0; i < n_q; i++) hash = isa_hash(hash, job_o(p, i), dims[d]);
            }
            free(q);
            rows_free(&r);
        }
        if (t) CHECK_ISA_HASH(t->isa, "attend", hash, UINT64_C(0x2e42758bedeecb8b));
        free(p);
    }
}

int main(void)
{
    ref = kern_get("ref");
    for (size_t i = 0; i < N_ISA; i++)
        if (!kern_get(isas[i])) SKIP(isas[i], "this processor or build lacks it");
    RUN(test_by_hand);
    RUN(test_every_group_and_dim);
    RUN(test_every_count);
    RUN(test_magnitudes);
    RUN(test_large_offsets);
    RUN(test_no_nan);
    RUN(test_flushing);
    RUN(test_masks);
    RUN(test_cuts);
    RUN(test_rows_of_floats);
    RUN(test_merge_identity);
    RUN(test_merge_splits);
    RUN(test_vector_isas_have_known_bits);
    if (kern_get("avx2") && kern_get("avx512")) RUN(test_vector_isas_agree);
    else SKIP("test_vector_isas_agree", "needs both AVX2 and AVX-512");
    return test_done();
}
