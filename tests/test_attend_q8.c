/* test_attend_q8.c - rows of bytes: sealing them in every ISA against the reference, attention in every ISA against the reference, the reference against f64 attention over
 * the values that the bytes stand for, the error that 8 bits cost, and the rule that neither the other queries of a call nor the cut into spans changes a bit.
 *
 * Every span lies at the end of readable memory of its own, and so do its scales. */
#include "test.h"

#include "isas.h"
#include "kern.h"
#include "pool.h"
#include "tolerance.h"

#include <float.h>
#include <sys/mman.h>
#include <unistd.h>

static const size_t dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 192, 256};
static const uint32_t counts[] = {0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130, 511, 512};
enum { N_DIMS = sizeof dims / sizeof *dims, N_COUNTS = sizeof counts / sizeof *counts, MAX_Q = 70, MAX_DIM = 512, GUARD = 16 };

static const kern_table *ref;
static const uint32_t guard_bits = 0x7fc0dead;

/* ---- memory that ends ----------------------------------------------------------------------------------------- */

/* bytes bytes, behind which nothing can be read; at is what fenced_free wants. */
typedef struct fenced {
    void *map, *at;
    size_t map_bytes;
} fenced;

static fenced fenced_make(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    fenced f = {.map_bytes = whole + page};
    f.map = mmap(NULL, f.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (f.map == MAP_FAILED || mprotect((char *)f.map + whole, page, PROT_NONE)) abort();
    f.at = (char *)f.map + whole - bytes;
    return f;
}

static void fenced_free(fenced *f)
{
    munmap(f->map, f->map_bytes);
}

/* ---- rows ----------------------------------------------------------------------------------------------------- */

/* n positions of halves, and the same sealed in runs of at most run positions; every cut-th position and every run starts a span. */
typedef struct store {
    size_t dim, n_spans, n_fenced;
    uint32_t n;
    kern_f16 *halves;
    kern_span spans[KERN_SPAN];
    fenced fenced[3 * KERN_SPAN];
} store;

static void *store_keep(store *st, size_t bytes)
{
    st->fenced[st->n_fenced] = fenced_make(bytes);
    return st->fenced[st->n_fenced++].at;
}

static store *store_seal(const kern_f16 *halves, uint32_t n, size_t dim, uint32_t run, uint32_t cut)
{
    store *st = calloc(1, sizeof *st);
    int8_t *bytes = malloc(KERN_SPAN * 2 * MAX_DIM);
    float *v_scale = malloc(KERN_SPAN * sizeof *v_scale);
    if (!st || !bytes || !v_scale) abort();
    st->dim = dim, st->n = n;
    st->halves = malloc((n * 2 * dim + 1) * sizeof *st->halves);
    if (!st->halves) abort();
    memcpy(st->halves, halves, n * 2 * dim * sizeof *halves);
    for (uint32_t at = 0; at < n; at += run) {
        uint32_t rows = n - at < run ? n - at : run;
        float *k_scale = store_keep(st, dim * sizeof *k_scale);
        ref->quantise_q8(halves + at * 2 * dim, rows, dim, bytes, k_scale, v_scale);
        for (uint32_t part = 0; part < rows; part += cut) {
            uint32_t here = rows - part < cut ? rows - part : cut;
            int8_t *b = store_keep(st, here * 2 * dim);
            float *vs = store_keep(st, here * sizeof *vs);
            memcpy(b, bytes + part * 2 * dim, here * 2 * dim);
            memcpy(vs, v_scale + part, here * sizeof *vs);
            st->spans[st->n_spans++] = (kern_span){.rows = b, .n = here, .k_scale = k_scale, .v_scale = vs};
        }
    }
    free(bytes), free(v_scale);
    return st;
}

static void store_free(store *st)
{
    for (size_t i = 0; i < st->n_fenced; i++) fenced_free(&st->fenced[i]);
    free(st->halves), free(st);
}

static double gaussian(uint64_t *seed)
{
    double u = (double)(test_rand(seed) >> 11) * 0x1p-53 + 0x1p-54, v = (double)(test_rand(seed) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static kern_f16 *halves_random(uint32_t n, size_t dim, float k_size, float v_size, uint64_t *seed)
{
    kern_f16 *h = malloc((n * 2 * dim + 1) * sizeof *h);
    if (!h) abort();
    for (size_t i = 0; i < n * 2 * dim; i++) h[i] = kern_f32_to_f16((i / dim % 2 ? v_size : k_size) * (float)gaussian(seed));
    return h;
}

static store *store_random(uint32_t n, size_t dim, uint32_t run, uint32_t cut, float v_size, uint64_t *seed)
{
    kern_f16 *h = halves_random(n, dim, 1, v_size, seed);
    store *st = store_seal(h, n, dim, run, cut);
    free(h);
    return st;
}

/* ---- one call ------------------------------------------------------------------------------------------------- */

/* A problem and its answer; queries and outputs have the alignment of floats only, and outputs lie between guards. */
typedef struct job {
    const store *st;
    const kern_span *spans;
    size_t n_spans, n_q, q_stride, o_stride;
    const uint32_t *n_valid;
    const kern_tuning *tuning;
    const float *q;
    double rounding; /* of weights, as a share of the largest value: TOL_ATTEND_Q8_... */
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

static job *job_new(const store *st, const float *q, size_t q_stride, size_t n_q)
{
    job *j = calloc(1, sizeof *j);
    if (!j) abort();
    j->st = st, j->spans = st->spans, j->n_spans = st->n_spans;
    j->q = q, j->q_stride = q_stride, j->n_q = n_q;
    j->rounding = TOL_ATTEND_Q8_FLAT_REL;
    return j;
}

static void job_run(job *j, const kern_table *t)
{
    size_t dim = j->st->dim, bytes = kern_attend_scratch(j->n_q, dim), room = (bytes + 63) / 64 * 64;
    unsigned char *scratch = aligned_alloc(64, room + 64);
    if (!scratch) abort();
    memset(scratch, 0xff, room + 64); /* not a number anywhere */
    j->o_stride = dim + 5;
    fill_guards(j->o, GUARD + j->n_q * j->o_stride + GUARD);
    fill_guards(j->lse, GUARD + j->n_q + GUARD);
    kern_attend_args a = {.q = j->q, .q_stride = j->q_stride, .n_q = j->n_q, .dim = dim, .spans = j->spans, .n_spans = j->n_spans, .ahead = j->spans,
                          .n_ahead = j->n_spans, .tuning = j->tuning, .n_valid = j->n_valid, .o = j->o + GUARD, .o_stride = j->o_stride,
                          .lse = j->lse + GUARD, .scratch = scratch};
    t->attend_q8(&a);
    CHECK(is_guard(j->o, GUARD) && is_guard(j->lse, GUARD) && is_guard(j->lse + GUARD + j->n_q, GUARD));
    for (size_t i = 0; i < j->n_q; i++) CHECK(is_guard(job_o(j, i) + dim, 5));
    CHECK(is_guard(job_o(j, j->n_q), GUARD));
    for (size_t i = bytes; i < room + 64; i++) CHECK(scratch[i] == 0xff);
    free(scratch);
}

static bool same_answer(job *a, size_t i, job *b, size_t k)
{
    return !memcmp(job_o(a, i), job_o(b, k), a->st->dim * sizeof(float)) && !memcmp(&a->lse[GUARD + i], &b->lse[GUARD + k], sizeof(float));
}

static float *queries_random(size_t n_q, size_t stride, float size, uint64_t *seed)
{
    float *q = malloc((n_q * stride + 1) * sizeof *q);
    if (!q) abort();
    for (size_t i = 0; i < n_q * stride + 1; i++) q[i] = size * (float)gaussian(seed);
    return q;
}

/* The largest sum of |q| |k| of any query and position, and the largest |v|. */
static void sizes(const job *j, double *score, double *v_size)
{
    const size_t dim = j->st->dim;
    *score = *v_size = 0;
    for (size_t s = 0; s < j->n_spans; s++) {
        const kern_span *span = &j->spans[s];
        for (size_t t = 0; t < span->n; t++) {
            const int8_t *row = (const int8_t *)span->rows + t * 2 * dim;
            for (size_t d = 0; d < dim; d++) *v_size = fmax(*v_size, fabs((double)span->v_scale[t] * row[dim + d]));
            for (size_t i = 0; i < j->n_q; i++) {
                double sum = 0;
                for (size_t d = 0; d < dim; d++) sum += fabs((double)j->q[i * j->q_stride + d] * (double)span->k_scale[d] * row[d]);
                *score = fmax(*score, sum);
            }
        }
    }
}

static void compare(const char *what, job *got, job *want)
{
    double score_size, v_size;
    sizes(got, &score_size, &v_size);
    double slack = TOL_ATTEND_SCORE_REL * score_size, lse_tol = TOL_ATTEND_LSE + slack, o_tol = (got->rounding + 2 * slack) * v_size;
    for (size_t i = 0; i < got->n_q; i++) {
        double a = (double)got->lse[GUARD + i], b = (double)want->lse[GUARD + i];
        if (!(a == b || fabs(a - b) <= lse_tol))
            test_bad++, fprintf(stderr, "%s dim %zu n %u query %zu of %zu: lse %.9g, expected %.9g within %.3g\n", what, got->st->dim, got->st->n, i, got->n_q, a, b,
                lse_tol);
        for (size_t d = 0; d < got->st->dim; d++) {
            double x = (double)job_o(got, i)[d], y = (double)job_o(want, i)[d];
            if (fabs(x - y) <= o_tol) continue;
            test_bad++, fprintf(stderr, "%s dim %zu n %u query %zu of %zu: o[%zu] %.9g, expected %.9g within %.3g\n", what, got->st->dim, got->st->n, i, got->n_q, d, x,
                y, o_tol);
            return;
        }
    }
}

/* Every ISA against the reference, and each query on its own against the call with all. */
static void check_job(job *p)
{
    job *want = job_new(p->st, p->q, p->q_stride, p->n_q), *one = job_new(p->st, p->q, p->q_stride, 1);
    want->n_valid = p->n_valid, want->spans = p->spans, want->n_spans = p->n_spans;
    one->spans = p->spans, one->n_spans = p->n_spans;
    job_run(want, ref);
    for (size_t k = 0; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        if (!t) continue;
        job_run(p, t);
        compare(t->isa, p, want);
        for (size_t i = 0; i < p->n_q && t != ref; i++) {
            one->q = p->q + i * p->q_stride, one->n_valid = p->n_valid ? p->n_valid + i : NULL;
            job_run(one, t);
            if (same_answer(one, 0, p, i)) continue;
            test_bad++, fprintf(stderr, "%s dim %zu n %u: query %zu of %zu has other bits on its own\n", t->isa, p->st->dim, p->st->n, i, p->n_q);
            break;
        }
    }
    free(want), free(one);
}

static void check_random(size_t n_q, size_t dim, uint32_t n, uint32_t run, uint32_t cut, float size, float v_size)
{
    uint64_t seed = 1 + n_q * 7919 + dim * 104729 + n;
    store *st = store_random(n, dim, run, cut, v_size, &seed);
    float *q = queries_random(n_q, dim + 3, size, &seed);
    job *p = job_new(st, q + 1, dim + 3, n_q);
    check_job(p);
    free(p), free(q);
    store_free(st);
}

/* ---- sealing -------------------------------------------------------------------------------------------------- */

static void test_sealing_by_hand(void)
{
    enum { DIM = 16 };
    kern_f16 h[2 * 2 * DIM] = {0};
    h[0] = kern_f32_to_f16(2), h[1] = kern_f32_to_f16(-1), h[2 * DIM] = kern_f32_to_f16(-4), h[2 * DIM + 1] = kern_f32_to_f16(0.5f);
    h[DIM] = kern_f32_to_f16(3), h[DIM + 1] = kern_f32_to_f16(-1.5f), h[3 * DIM + 2] = 0xfc00; /* -infinity */
    for (size_t k = 0; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        int8_t out[2 * 2 * DIM];
        float k_scale[DIM], v_scale[2];
        if (!t) continue;
        t->quantise_q8(h, 2, DIM, out, k_scale, v_scale);
        CHECK(k_scale[0] == 4.0f / 127 && k_scale[1] == 1.0f / 127 && k_scale[2] == 0 && v_scale[0] == 3.0f / 127 && v_scale[1] == 65504.0f / 127);
        CHECK_INT(out[0], 64); /* 63.5, to even */
        CHECK_INT(out[1], -127);
        CHECK_INT(out[2 * DIM], -127);
        CHECK_INT(out[2 * DIM + 1], 64);
        CHECK_INT(out[DIM], 127);
        CHECK_INT(out[DIM + 1], -64);
        CHECK_INT(out[3 * DIM + 2], -127);
        CHECK_INT(out[3 * DIM], 0);
    }
}

/* The bits of every ISA, of any halves at all, with guards behind what is written. */
static void test_sealing(void)
{
    static const uint32_t rows[] = {0, 1, 2, 3, 4, 127, 128};
    for (int kind = 0; kind < 3; kind++) {
        for (size_t d = 0; d < N_DIMS; d++) {
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                size_t dim = dims[d], n = rows[r];
                uint64_t seed = 5 + d + 31 * r;
                fenced in = fenced_make(n * 4 * dim), bytes[2] = {fenced_make(n * 2 * dim), fenced_make(n * 2 * dim)};
                fenced ks[2] = {fenced_make(4 * dim), fenced_make(4 * dim)}, vs[2] = {fenced_make(4 * n), fenced_make(4 * n)};
                for (size_t i = 0; i < n * 2 * dim; i++) {
                    kern_f16 any = (kern_f16)test_rand(&seed);
                    ((kern_f16 *)in.at)[i] = kind == 0 ? any : kind == 1 ? (kern_f16)(any & 0x83ff) : i % dim % 5 == 0 ? 0x8000 : kern_f32_to_f16((float)gaussian(&seed));
                }
                ref->quantise_q8(in.at, n, dim, bytes[0].at, ks[0].at, vs[0].at);
                for (size_t k = 1; k < N_ISA; k++) {
                    const kern_table *t = kern_get(isas[k]);
                    if (!t) continue;
                    t->quantise_q8(in.at, n, dim, bytes[1].at, ks[1].at, vs[1].at);
                    if (!memcmp(bytes[0].at, bytes[1].at, n * 2 * dim) && !memcmp(ks[0].at, ks[1].at, 4 * dim) && !memcmp(vs[0].at, vs[1].at, 4 * n)) continue;
                    test_bad++, fprintf(stderr, "%s: sealing %zu rows of dim %zu, kind %d: other bits than the reference's\n", t->isa, n, dim, kind);
                }
                fenced_free(&in);
                for (int i = 0; i < 2; i++) fenced_free(&bytes[i]), fenced_free(&ks[i]), fenced_free(&vs[i]);
            }
        }
    }
}

/* ---- the reference -------------------------------------------------------------------------------------------- */

/* f64 attention of query i over values of the bytes, or over the halves. */
static double exact(const job *j, size_t i, bool halves, double *o)
{
    const size_t dim = j->st->dim;
    const float *q = j->q + i * j->q_stride;
    double s[KERN_SPAN], m = -INFINITY, l = 0;
    const kern_f16 *h = j->st->halves;
    for (int pass = 0; pass < 2; pass++) {
        size_t at = 0;
        for (size_t d = 0; d < dim && pass; d++) o[d] = 0;
        for (size_t k = 0; k < j->n_spans; k++) {
            const kern_span *span = &j->spans[k];
            for (size_t t = 0; t < span->n; t++, at++) {
                const int8_t *row = (const int8_t *)span->rows + t * 2 * dim;
                if (pass == 0) {
                    s[at] = 0;
                    for (size_t d = 0; d < dim; d++)
                        s[at] += (double)q[d] * (halves ? (double)kern_f16_to_f32(h[at * 2 * dim + d]) : (double)span->k_scale[d] * row[d]);
                    m = fmax(m, s[at]);
                    continue;
                }
                double p = exp(s[at] - m);
                l += p;
                for (size_t d = 0; d < dim; d++)
                    o[d] += p * (halves ? (double)kern_f16_to_f32(h[at * 2 * dim + dim + d]) : (double)span->v_scale[t] * row[dim + d]);
            }
        }
    }
    for (size_t d = 0; d < dim; d++) o[d] /= l;
    return m + log(l);
}

/* Rounding a query moves each of its elements by at most half a step. */
static void test_reference(void)
{
    for (size_t d = 0; d < N_DIMS; d++) {
        uint64_t seed = 11 + d;
        size_t dim = dims[d];
        store *st = store_random(300, dim, 128, 128, 1, &seed);
        float *q = queries_random(3, dim, 0.5f, &seed);
        job *p = job_new(st, q, dim, 3);
        double o[MAX_DIM], score_size, v_size;
        job_run(p, ref);
        sizes(p, &score_size, &v_size);
        for (size_t i = 0; i < 3; i++) {
            double slack = 0, lse;
            for (size_t s = 0; s < st->n_spans; s++) {
                double most = 0;
                for (size_t e = 0; e < dim; e++) most = fmax(most, fabs((double)q[i * dim + e] * (double)st->spans[s].k_scale[e]));
                slack = fmax(slack, most / 65024 * 127 * (double)dim);
            }
            lse = exact(p, i, false, o);
            CHECK_NEAR(p->lse[GUARD + i], lse, slack + 1e-6);
            for (size_t e = 0; e < dim; e++) CHECK_NEAR(job_o(p, i)[e], o[e], (2 * slack + 1e-6) * v_size);
        }
        free(p), free(q);
        store_free(st);
    }
}

/* What 8 bits cost: |o - o of the halves in f64| over |o of the halves|, root mean square, and lse, on Gaussian rows. */
static void test_error_of_8_bits(void)
{
    enum { DIM = 128, N = 512, N_Q = 32 };
    static const float score_sizes[] = {0.3f, 1, 3}; /* standard deviations of scores */
    for (size_t c = 0; c < 3; c++) {
        uint64_t seed = 71 + c;
        store *st = store_random(N, DIM, 128, 128, 1, &seed);
        float *q = queries_random(N_Q, DIM, score_sizes[c] / sqrtf(DIM), &seed);
        job *p = job_new(st, q, DIM, N_Q);
        for (size_t k = 0; k < N_ISA; k++) {
            const kern_table *t = kern_get(isas[k]);
            double o[DIM], off = 0, size = 0, lse_off = 0;
            if (!t) continue;
            job_run(p, t);
            for (size_t i = 0; i < N_Q; i++) {
                lse_off = fmax(lse_off, fabs(exact(p, i, true, o) - (double)p->lse[GUARD + i]));
                for (size_t d = 0; d < DIM; d++) off += ((double)job_o(p, i)[d] - o[d]) * ((double)job_o(p, i)[d] - o[d]), size += o[d] * o[d];
            }
            if (getenv("TEST_VERBOSE")) printf("  %s, scores of size %g: output error %.5f, lse error %.5f\n", t->isa, (double)score_sizes[c], sqrt(off / size), lse_off);
            if (sqrt(off / size) > TOL_Q8_OUTPUT || lse_off > TOL_Q8_LSE)
                test_bad++, fprintf(stderr, "%s, scores of size %g: relative error of o %.4g, expected at most %g; of lse %.4g, at most %g\n", t->isa,
                    (double)score_sizes[c], sqrt(off / size), TOL_Q8_OUTPUT, lse_off, TOL_Q8_LSE);
        }
        free(p), free(q);
        store_free(st);
    }
}

/* ---- against the reference ------------------------------------------------------------------------------------ */

static void test_every_group_and_dim(void)
{
    for (size_t d = 0; d < N_DIMS; d++)
        for (size_t g = 1; g <= 9; g++) check_random(g, dims[d], 70, 128, 128, 0.5f, 1);
    check_random(5, MAX_DIM, 70, 128, 128, 0.1f, 1);
}

static void test_every_count(void)
{
    static const size_t groups[] = {1, 2, 3, 4, 7, 18};
    for (size_t c = 0; c < N_COUNTS; c++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) check_random(groups[g], 48, counts[c], 128, 128, 0.5f, 1);
    check_random(0, 64, 100, 128, 128, 1, 1);
    check_random(64, 64, 300, 128, 128, 0.5f, 1);
    check_random(MAX_Q, 32, 129, 128, 128, 0.5f, 1);
}

/* Scales that change within tiles: blocks, single positions, and spans that cut a run. */
static void test_runs_and_spans(void)
{
    static const uint32_t runs[] = {1, 2, 3, 4, 5, 7, 16, 20, 48, 60, 64, 100};
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
        check_random(1, 64, 140, runs[r], runs[r], 0.5f, 1);
        check_random(2, 80, 140, runs[r], 3, 0.5f, 1);
        check_random(4, 128, 140, runs[r], 1 + runs[r] / 2, 0.5f, 1);
        check_random(39, 32, 140, runs[r], runs[r], 0.5f, 1);
    }
}

/* Flat scores, peaked ones, huge ones; tiny and huge values. */
static void test_magnitudes(void)
{
    static const size_t groups[] = {1, 3, 11, 35};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        check_random(groups[g], 64, 200, 128, 128, 0, 1);
        check_random(groups[g], 64, 200, 128, 128, 20, 1);
        check_random(groups[g], 64, 200, 128, 128, 1e4f, 1);
        check_random(groups[g], 64, 200, 128, 128, 0.5f, 10000);
        check_random(groups[g], 64, 200, 128, 128, 0.5f, 3e-6f);
        check_random(groups[g], 64, 200, 128, 128, 1e-33f, 1); /* a query that counts as 0 */
    }
}

/* One or two positions of each tile have nearly all, and the others are not rounded away: so near is no tile whose weights are single bytes. */
static void test_peaks(void)
{
    enum { DIM = 64, N = 200, MOST = 6 };
    for (size_t n_q = 1; n_q <= MOST; n_q++) {
        uint64_t seed = 83 + n_q;
        kern_f16 *h = halves_random(N, DIM, 1, 1, &seed);
        float *q = queries_random(n_q, DIM, 0.1f, &seed);
        for (size_t t = 0; t < N; t += 37)
            for (size_t d = 0; d < DIM; d++) {
                float sum = 0;
                for (size_t i = 0; i < n_q; i++) sum += q[i * DIM + d];
                h[t * 2 * DIM + d] = kern_f32_to_f16(20 * sum);
            }
        store *st = store_seal(h, N, DIM, 128, 128);
        job *p = job_new(st, q, DIM, n_q);
        p->rounding = TOL_ATTEND_Q8_REL;
        check_job(p);
        free(p), free(q), free(h);
        store_free(st);
    }
}

/* All keys or all values zero, and rows of zeros among others. */
static void test_zeros(void)
{
    enum { DIM = 80, N = 150, N_Q = 7 };
    for (int kind = 0; kind < 4; kind++) {
        uint64_t seed = 29;
        kern_f16 *h = halves_random(N, DIM, 1, 1, &seed);
        for (size_t i = 0; i < N * 2 * DIM; i++)
            if (kind == 0 ? i / DIM % 2 == 0 : kind == 1 ? i / DIM % 2 == 1 : kind == 2 ? i % DIM % 3 == 0 : i / DIM % 5 == 1) h[i] = 0;
        store *st = store_seal(h, N, DIM, 60, 60);
        float *q = queries_random(N_Q, DIM, 0.5f, &seed);
        job *p = job_new(st, q, DIM, N_Q);
        check_job(p);
        free(p), free(q), free(h);
        store_free(st);
    }
}

/* Scores beyond the range of floats, of both signs at once: no value is promised, but numbers are. */
static void test_no_nan(void)
{
    enum { DIM = 64, N = 100, N_Q = 20 };
    uint64_t seed = 17;
    for (int same = 0; same < 2; same++) {
        kern_f16 *h = halves_random(N, DIM, 20000, 20000, &seed);
        float *q = queries_random(N_Q, DIM, 0, &seed);
        for (size_t i = 0; i < N * 2 * DIM && same; i++) h[i] = 0xfbff; /* -65504 */
        for (size_t i = 0; i < N_Q * DIM; i++) q[i] = test_rand(&seed) & 1 ? FLT_MAX : -FLT_MAX;
        store *st = store_seal(h, N, DIM, 128, 128);
        job *p = job_new(st, q, DIM, N_Q);
        for (size_t k = 0; k < N_ISA; k++) {
            const kern_table *t = kern_get(isas[k]);
            if (!t) continue;
            job_run(p, t);
            for (size_t i = 0; i < N_Q; i++) {
                CHECK(!isnan(p->lse[GUARD + i]));
                for (size_t d = 0; d < DIM; d++) CHECK(isfinite(job_o(p, i)[d]));
            }
        }
        free(p), free(q), free(h);
        store_free(st);
    }
}

/* The workers of the engine flush subnormals. */
static void test_flushing(void)
{
    uint64_t saved = pool_float_mode_enter();
    check_random(1, 64, 200, 128, 128, 0.5f, 3e-6f);
    check_random(19, 64, 200, 128, 128, 0.5f, 3e-6f);
    check_random(19, 64, 200, 128, 128, 20, 1);
    test_sealing();
    pool_float_mode_leave(saved);
}

/* ---- masks, cuts, hints --------------------------------------------------------------------------------------- */

/* A query that sees n of the positions has the bits of a call that has only n. */
static void test_masks(void)
{
    enum { DIM = 80, N = 200, N_Q = 37 };
    uint64_t seed = 23;
    store *st = store_random(N, DIM, 90, 90, 1, &seed);
    float *q = queries_random(N_Q, DIM, 0.5f, &seed);
    uint32_t n_valid[N_Q];
    job *p = job_new(st, q, DIM, N_Q), *one = job_new(st, q, DIM, 1);
    for (int kind = 0; kind < 4; kind++) {
        for (uint32_t i = 0; i < N_Q; i++) {
            uint32_t any = (uint32_t)(test_rand(&seed) % (N + 1));
            n_valid[i] = kind == 0 ? 0 : kind == 1 ? 100 + i / 3 : kind == 2 ? (i % 4 ? any : 0) : i % 2 ? 64 : 128;
        }
        p->n_valid = n_valid;
        for (p->n_q = 1; p->n_q <= N_Q; p->n_q += 6) {
            check_job(p);
            for (size_t k = 0; k < N_ISA; k++) {
                const kern_table *t = kern_get(isas[k]);
                if (!t) continue;
                job_run(p, t);
                for (size_t i = 0; i < p->n_q; i++) {
                    kern_span part[3];
                    uint32_t left = n_valid[i];
                    for (size_t s = 0; s < st->n_spans; s++) {
                        part[s] = st->spans[s];
                        part[s].n = left < part[s].n ? left : part[s].n;
                        left -= part[s].n;
                    }
                    one->q = q + i * DIM, one->spans = part;
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
    store_free(st);
}

/* The bits depend neither on where spans end, nor on hints. */
static void test_cuts_and_hints(void)
{
    enum { DIM = 96, N = 400 };
    static const size_t groups[] = {1, 2, 4, 5, 40};
    static const kern_tuning tunings[] = {{KERN_HINT_NONE, 0}, {KERN_HINT_T0, 17}, {KERN_HINT_T1, KERN_AHEAD}, {KERN_HINT_T1, 0}};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        uint64_t seed = 37, other = 37;
        store *a = store_random(N, DIM, 128, 128, 1, &seed), *b = store_random(N, DIM, 128, 5, 1, &other);
        float *q = queries_random(groups[g], DIM, 0.5f, &seed);
        job *x = job_new(a, q, DIM, groups[g]), *y = job_new(b, q, DIM, groups[g]);
        for (size_t k = 0; k < N_ISA; k++) {
            const kern_table *t = kern_get(isas[k]);
            if (!t) continue;
            job_run(x, t);
            for (size_t h = 0; h < sizeof tunings / sizeof *tunings; h++) {
                y->tuning = &tunings[h];
                job_run(y, t);
                for (size_t i = 0; i < groups[g]; i++) CHECK(same_answer(x, i, y, i));
            }
        }
        free(x), free(y), free(q);
        store_free(a), store_free(b);
    }
}

/* ---- the vector ISAs against each other ----------------------------------------------------------------------- */

/* By hash, so on any processor; of the means alone, as lse has a logarithm of the C library in it. */
static void test_vector_isas_have_known_bits(void)
{
    for (size_t k = FIRST_VECTOR_ISA; k < N_ISA; k++) {
        const kern_table *t = kern_get(isas[k]);
        uint64_t seed = 59, hash = ISA_HASH_START;
        for (size_t d = 0; d < N_DIMS && t; d++) {
            kern_f16 *h = malloc(150 * 2 * dims[d] * sizeof *h);
            float *q = malloc(21 * dims[d] * sizeof *q);
            if (!h || !q) abort();
            for (size_t i = 0; i < 150 * 2 * dims[d]; i++) h[i] = kern_f32_to_f16(test_uniform(&seed));
            for (size_t i = 0; i < 21 * dims[d]; i++) q[i] = test_uniform(&seed);
            store *st = store_seal(h, 150, dims[d], 50, 50);
            job *p = job_new(st, q, dims[d], 21);
            job_run(p, t);
            for (size_t i = 0; i < 21; i++) hash = isa_hash(hash, job_o(p, i), dims[d]);
            free(p), free(q), free(h);
            store_free(st);
        }
        if (t) CHECK_ISA_HASH(t->isa, "attend_q8", hash, UINT64_C(0x3984add709e2eaf0));
    }
}

int main(void)
{
    ref = kern_get("ref");
    for (size_t i = 0; i < N_ISA; i++)
        if (!kern_get(isas[i])) SKIP(isas[i], "this processor or build lacks it");
    RUN(test_sealing_by_hand);
    RUN(test_sealing);
    RUN(test_reference);
    RUN(test_error_of_8_bits);
    RUN(test_every_group_and_dim);
    RUN(test_every_count);
    RUN(test_runs_and_spans);
    RUN(test_magnitudes);
    RUN(test_peaks);
    RUN(test_zeros);
    RUN(test_no_nan);
    RUN(test_flushing);
    RUN(test_masks);
    RUN(test_cuts_and_hints);
    RUN(test_vector_isas_have_known_bits);
    return test_done();
}
