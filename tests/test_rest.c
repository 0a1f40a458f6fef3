/* test_rest.c - what stands for positions that `adaptive` does not choose (policy_rest.h): the formula in f64, masses that mean nothing, and what the workers make of it. */
#include "adaptive_world.h"
#include "exec.h"
#include "policy_rest.h"
#include "tolerance.h"

enum { MAX_PAGES = CTX / KV_PAGE_ROWS + 1 };
#define LEAN 0.5  /* as policy_rest.c has them */
#define DOUBT 0.1

/* The attention of a group by pages, and of each head the mass of what is left. */
typedef struct page_masses {
    double chosen[MAX_PAGES], left[MAX_PAGES], mass[GROUP];
} page_masses;

/* The mean of V of a page, from its rows. */
static void slow_mean(const world *w, uint32_t head, uint64_t page, double *mean)
{
    memset(mean, 0, DIM * sizeof *mean);
    for (uint64_t pos = page * KV_PAGE_ROWS; pos < (page + 1) * KV_PAGE_ROWS; pos++) {
        float row[2 * DIM];
        kv_read_row(w->seq, 0, head, pos, row);
        for (int d = 0; d < DIM; d++) mean[d] += (double)row[DIM + d] / KV_PAGE_ROWS;
    }
}

static double length_squared(const float *q)
{
    double sum = 0;
    for (int d = 0; d < DIM; d++) sum += (double)q[d] * (double)q[d];
    return sum;
}

static double sum_of(const double *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += v[i];
    return sum;
}

static void slow_value(const world *w, uint32_t head, uint64_t first_page, size_t n_pages, const page_masses *m, double *o)
{
    double all_chosen = sum_of(m->chosen, n_pages), all_left = sum_of(m->left, n_pages);
    memset(o, 0, DIM * sizeof *o);
    for (size_t p = 0; p < n_pages; p++) {
        double mean[DIM];
        slow_mean(w, head, first_page + p, mean);
        for (int d = 0; d < DIM; d++) o[d] += (m->left[p] / all_left - LEAN * m->chosen[p] / all_chosen) * mean[d];
    }
}

static double slow_lse(const world *w, uint32_t head, uint32_t g, const page_masses *m, double norm, double variance)
{
    double s2 = variance * length_squared(w->q[head] + g * DIM);
    return norm + log(m->mass[g]) - DOUBT * s2 * s2;
}

static void check_value(const policy_rest *r, const double *o, double tolerance)
{
    CHECK_NEAR(r->lean, LEAN, 0);
    for (int d = 0; d < DIM; d++) CHECK_NEAR(r->o[d], o[d], tolerance);
}

/* ------------------------------------------------------------------------------------------------ formula ---- */

/* A store, and a place for what comes out. */
typedef struct bench {
    world w;
    policy_query q;
    policy_rest_work work;
    void *scratch;
    page_masses masses;
    float norm[GROUP], mass[GROUP];
} bench;

static bench *open_bench(const char *isa, size_t n_pages)
{
    bench *b = calloc(1, sizeof *b);
    uint64_t seed = 7;
    open_world(&b->w, &(world_config){.isa = isa, .planes = KERN_INDEX_USUAL, .n = 3000, .seed = 3});
    b->q = query_of(&b->w, 1, 3000);
    policy_layout l = {0};
    policy_rest_lay_out(&b->work, &l, &b->q, n_pages);
    l = (policy_layout){.base = b->scratch = mem_alloc(l.bytes)};
    policy_rest_lay_out(&b->work, &l, &b->q, n_pages);
    for (uint32_t g = 0; g < GROUP; g++) {
        b->norm[g] = 10 * test_uniform(&seed);
        b->masses.mass[g] = b->mass[g] = 1.5f + test_uniform(&seed);
    }
    for (size_t p = 0; p < n_pages; p++) {
        b->masses.chosen[p] = b->work.chosen[p] = p % 3 ? 0 : 1.5f + test_uniform(&seed);
        b->masses.left[p] = b->work.left[p] = n_pages == 1 || p % 5 ? 1.5f + test_uniform(&seed) : 0;
    }
    return b;
}

static void close_bench(bench *b)
{
    mem_free(b->scratch);
    close_world(&b->w);
    free(b);
}

static policy_rest rest_of(bench *b, uint64_t first_page, float variance)
{
    policy_rest_ask(&b->work, &b->q, first_page, 0, b->work.n_pages);
    return policy_rest_make(&b->work, &b->q, b->norm, b->mass, variance);
}

static void test_formula(void)
{
    static const size_t pages[] = {1, 2, 7, 20};
    static const float variances[] = {0, 0.05f, 0.4f, 3};
    for (size_t i = 0; i < N_ISA * 4; i++) {
        if (!kern_get(isas[i / 4])) continue;
        size_t n = pages[i % 4];
        bench *b = open_bench(isas[i / 4], n);
        policy_rest r = rest_of(b, 2, variances[i % 4]);
        double o[DIM];
        slow_value(&b->w, 1, 2, n, &b->masses, o);
        check_value(&r, o, 2e-3); /* means are halves */
        for (uint32_t g = 0; g < GROUP; g++) CHECK_NEAR(r.lse[g], slow_lse(&b->w, 1, g, &b->masses, (double)b->norm[g], (double)variances[i % 4]), 1e-4);
        CHECK_INT(policy_rest_bytes(&b->q, n), n * DIM * 2);
        close_bench(b);
    }
}

/* What is nothing, too much or no number, or whose scores are all error, adds nothing; heads beside it are as ever. */
static void test_masses_that_mean_nothing(void)
{
    enum { PAGES = 20 };
    for (int what = 0; what < 5; what++) {
        bench *b = open_bench("ref", PAGES);
        if (what == 0) b->mass[1] = 0;
        if (what == 1) b->mass[1] = INFINITY;
        if (what == 2) b->mass[1] = NAN;
        if (what == 3) b->mass[1] = 1e30f;
        if (what == 4) for (int d = 0; d < DIM; d++) b->w.q[1][DIM + d] *= 100;
        policy_rest r = rest_of(b, 0, 0.02f);
        double o[DIM];
        slow_value(&b->w, 1, 0, PAGES, &b->masses, o);
        check_value(&r, o, 2e-3);
        for (uint32_t g = 0; g < GROUP; g++) {
            if (g == 1) CHECK(r.lse[g] == -INFINITY);
            else CHECK_NEAR(r.lse[g], slow_lse(&b->w, 1, g, &b->masses, (double)b->norm[g], 0.02), 1e-4);
        }
        close_bench(b);
    }
    for (int what = 0; what < 4; what++) {
        bench *b = open_bench("ref", PAGES);
        if (what == 0) memset(b->work.left, 0, PAGES * sizeof *b->work.left);
        if (what == 1) b->work.left[4] = INFINITY;
        if (what == 2) b->work.left[4] = NAN;
        if (what == 3) b->work.chosen[3] = INFINITY;
        CHECK(!rest_of(b, 0, 0.02f).o);
        close_bench(b);
    }
    bench *b = open_bench("ref", 3); /* nothing chosen: nothing to lean on */
    memset(b->work.chosen, 0, 3 * sizeof *b->work.chosen);
    policy_rest r = rest_of(b, 0, 0);
    for (int d = 0; d < DIM; d++) CHECK(isfinite(r.o[d]));
    for (uint32_t g = 0; g < GROUP; g++) CHECK(isfinite(r.lse[g]));
    close_bench(b);
}

/* ------------------------------------------------------------------------------------- masses of a choice ---- */

/* Estimates of a middle that is refined whole, from all planes, in f64. */
static void slow_masses(const world *w, const policy_params *pp, const policy_choice *c, uint32_t head, uint64_t n_pos, page_masses *m)
{
    static float estimates[GROUP][CTX + KERN_INDEX_GROUP];
    static uint32_t ids[CTX + KERN_INDEX_GROUP];
    const kern_table *ref = kern_get("ref");
    const void *pages[MAX_PAGES], *outer[MAX_PAGES];
    void *query = mem_alloc(kern_index_query_bytes(GROUP, DIM));
    uint32_t to = (uint32_t)((n_pos - 1) / KV_PAGE_ROWS * KV_PAGE_ROWS);
    if (to > n_pos - pp->window) to = (uint32_t)(n_pos - pp->window);
    for (uint32_t i = 0; i * KV_PAGE_ROWS < to; i++) pages[i] = kv_code(w->seq, 0, head, i), outer[i] = kv_code_outer(w->seq, 0, head, i);
    ref->index_query(w->q[head], DIM, GROUP, DIM, query);
    kern_index_scan scan = {.query = query, .n_q = GROUP, .dim = DIM, .planes = kv_index_planes(w->store), .pages = pages, .outer = outer, .page_rows = KV_PAGE_ROWS, .first = pp->sink, .end = to, .every = 1,
                            .threshold = -INFINITY, .refine = true, .ids = ids, .estimates = estimates[0], .stride = CTX + KERN_INDEX_GROUP};
    CHECK_INT(ref->index_scan(&scan), to - pp->sink);
    memset(m, 0, sizeof *m);
    for (uint32_t g = 0; g < GROUP; g++) {
        double all = 1; /* sink and window */
        for (uint32_t i = 0; i < to - pp->sink; i++) all += exp((double)estimates[g][i] - (double)c->base_lse[g]);
        for (uint32_t i = 0; i < to - pp->sink; i++) {
            uint32_t pos = pp->sink + i, page = pos / KV_PAGE_ROWS - pp->sink / KV_PAGE_ROWS;
            double mass = exp((double)estimates[g][i] - (double)c->base_lse[g]);
            (chosen[pos] ? m->chosen : m->left)[page] += mass / all;
            m->mass[g] += chosen[pos] ? 0 : mass;
        }
    }
    mem_free(query);
}

/* Of single positions and of blocks: the sums over candidates are those that the definition has.  Other kernels than the reference round queries to integers. */
static void test_masses(void)
{
    for (size_t i = 0; i < N_ISA; i++) {
        if (!kern_get(isas[i])) continue;
        world w;
        open_world(&w, &(world_config){.isa = isas[i], .planes = KERN_INDEX_USUAL, .n = 2200, .clustered = true, .seed = 5});
        for (int round = 0; round < 4; round++) {
            static page_masses m;
            policy_params pp = params(0.1);
            policy_choice c = {0};
            const void *pages[MAX_PAGES];
            pp.block = round % 2 ? 16 : 1;
            pp.rule = round / 2 ? POLICY_MODEL : POLICY_FLAT; /* that votes by squares of what is added up here */
            pp.sink = 200;
            choose(&w, &pp, 1, w.n, &c);
            CHECK(c.rest.o && c.base);
            slow_masses(&w, &pp, &c, 1, w.n, &m);
            size_t n_pages = (w.n - 256 + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS - 1;
            for (size_t p = 0; p < n_pages; p++) pages[p] = kv_code(w.seq, 0, 1, p + 1);
            float variance = kern_index_variance(pages, n_pages, KV_PAGE_ROWS, DIM, KERN_INDEX_USUAL);
            CHECK(variance > 0.02f && variance < 0.2f);
            double o[DIM], tolerance = strcmp(isas[i], "ref") ? 0.1 : 2e-3;
            slow_value(&w, 1, 1, n_pages, &m, o);
            check_value(&c.rest, o, tolerance);
            for (uint32_t g = 0; g < GROUP; g++) CHECK_NEAR(c.rest.lse[g], slow_lse(&w, 1, g, &m, (double)c.base_lse[g], (double)variance), tolerance);
            policy_choice_free(&c);
        }
        close_world(&w);
    }
}

/* The variance of estimates, from all planes and from the signs alone, is what errors of estimates are like. */
static void test_variance(void)
{
    for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) {
        static float estimates[CTX + KERN_INDEX_GROUP];
        static uint32_t ids[CTX + KERN_INDEX_GROUP];
        const kern_table *ref = kern_get("ref");
        const void *pages[MAX_PAGES], *outer[MAX_PAGES];
        world w;
        open_best(&w, (world_config){.planes = planes, .n = 70 * KV_PAGE_ROWS, .seed = 15});
        void *query = mem_alloc(kern_index_query_bytes(1, DIM));
        for (uint32_t i = 0; i < 70; i++) pages[i] = kv_code(w.seq, 0, 0, i), outer[i] = kv_code_outer(w.seq, 0, 0, i);
        ref->index_query(w.q[0], DIM, 1, DIM, query);
        kern_index_scan scan = {.query = query, .n_q = 1, .dim = DIM, .planes = planes, .pages = pages, .outer = outer, .page_rows = KV_PAGE_ROWS, .end = (uint32_t)w.n, .every = 1, .threshold = -INFINITY,
                                .ids = ids, .estimates = estimates, .stride = CTX + KERN_INDEX_GROUP};
        for (int all = 0; all < 2; all++) {
            double sum = 0, want = (double)kern_index_variance(pages, 70, KV_PAGE_ROWS, DIM, planes) * length_squared(w.q[0]) * (all ? 1 : (double)kern_index_sign_variance(planes));
            scan.refine = all;
            CHECK_INT(ref->index_scan(&scan), w.n);
            for (uint64_t pos = 0; pos < w.n; pos++) sum += pow((double)estimates[pos] - score_of(&w, 0, 0, pos), 2) / (double)w.n;
            if (!(sum > 0.7 * want && sum < 1.4 * want)) test_bad++, fprintf(stderr, "%u planes%s: variance %g, estimated %g\n", planes, all ? "" : ", signs alone", sum, want);
        }
        mem_free(query);
        close_world(&w);
    }
}

/* --------------------------------------------------------------------------------------------- attention ---- */

/* Exact: what a head gets from positions that are marked, and the log of their mass. */
static double attend(const world *w, uint32_t head, uint32_t g, const bool *marked, double *o)
{
    double mass = 0, most = -1e30;
    memset(o, 0, DIM * sizeof *o);
    for (uint64_t pos = 0; pos < w->n; pos++) most = fmax(most, score_of(w, head, g, pos));
    for (uint64_t pos = 0; pos < w->n; pos++) {
        if (!marked[pos]) continue;
        float row[2 * DIM];
        double e = exp(score_of(w, head, g, pos) - most);
        kv_read_row(w->seq, 0, head, pos, row);
        mass += e;
        for (int d = 0; d < DIM; d++) o[d] += e * (double)row[DIM + d];
    }
    for (int d = 0; d < DIM && mass > 0; d++) o[d] /= mass;
    return most + log(mass);
}

static double distance(const double *a, const double *b)
{
    double sum = 0;
    for (int d = 0; d < DIM; d++) sum += (a[d] - b[d]) * (a[d] - b[d]);
    return sqrt(sum);
}

/* What the planner and the workers make of a choice with a rest, and of the same without; adds up how far both are from attending to everything. */
static void check_output(const world *w, const plan_part *part, const float *o, const float *lse, double tolerance, double *with, double *without)
{
    static bool all[CTX], middle[CTX];
    const policy_choice *c = &part->choice;
    const policy_params *pp = &part->policy->params;
    mark(pp, c, w->n, chosen);
    for (uint64_t pos = 0; pos < w->n; pos++) {
        all[pos] = true;
        middle[pos] = chosen[pos] && pos >= pp->sink && pos < w->n - pp->window && pos < (w->n - 1) / KV_PAGE_ROWS * KV_PAGE_ROWS;
    }
    for (uint32_t g = 0; g < GROUP; g++) {
        double truth[DIM], read[DIM], own[DIM], got[DIM];
        attend(w, part->head, g, all, truth);
        double read_lse = attend(w, part->head, g, chosen, read), share = 1 / (1 + exp(read_lse - (double)c->rest.lse[g]));
        attend(w, part->head, g, middle, own);
        CHECK_NEAR(lse[g], read_lse, tolerance);
        *without += distance(read, truth);
        for (int d = 0; d < DIM; d++) {
            double want = (1 - share) * read[d] + share * ((double)c->rest.o[d] + (double)c->rest.lean * own[d]);
            got[d] = o[g * DIM + (uint32_t)d];
            CHECK_NEAR(got[d], want, tolerance);
        }
        *with += distance(got, truth);
    }
}

static void test_attention(void)
{
    spw_err err;
    for (kv_type type = KV_F16; type <= KV_Q8; type++) {
        for (int clustered = 0; clustered < 2; clustered++) {
            world w;
            exec *x;
            spw_pool *pool;
            plan p = {0};
            policy_layers layers;
            policy_params pp = params(0.05);
            float o[HEADS * GROUP * DIM], lse[HEADS * GROUP], again[HEADS * GROUP * DIM];
            double with = 0, without = 0;
            open_best(&w, (world_config){.n = 9001, .type = type, .clustered = clustered, .seed = 71});
            CHECK_OK(pool_create(&pool, 2, &err), err);
            CHECK_OK(exec_create(&x, w.kern, pool, w.store, &err), err);
            CHECK_OK(policy_layers_init(&layers, "adaptive", &pp, &err), err);
            plan_rows rows = {.seq = w.seq, .policies = &layers, .first_pos = w.n - 1, .n_rows = 1, .decode = true};
            exec_layer l = {.n_head_kv = HEADS, .group = GROUP, .head_dim = DIM, .q = w.q[0], .o = o, .lse = lse};
            plan_shape shape = {.n_head_kv = HEADS, .group = GROUP, .dim = DIM, .q = w.q[0], .q_row_stride = HEADS * GROUP * DIM};
            for (int round = 0; round < 2; round++) {
                CHECK_OK(plan_begin(&p, &rows, 1, &shape, pool, w.kern, &err), err);
                CHECK(p.has_base);
                CHECK_OK(exec_base(x, &p, &rows, &l, &err), err);
                CHECK_OK(plan_choose(&p, pool, &err), err);
                CHECK_OK(exec_attend(x, &p, &rows, &l, false, &err), err);
                if (!round) memcpy(again, o, sizeof o);
                l.lse = NULL; /* nobody wants to know */
            }
            CHECK(!memcmp(again, o, sizeof o));
            for (uint32_t h = 0; h < HEADS; h++) check_output(&w, &p.parts[h], o + h * GROUP * DIM, lse + h * GROUP, type == KV_Q8 ? 2 * TOL_ATTEND_Q8_FLAT_REL : 10 * TOL_ATTEND_REL, &with, &without);
            if (!(with < 0.8 * without)) test_bad++, fprintf(stderr, "%s: error %g with what stands for the rest, %g without\n", clustered ? "clustered" : "random", with, without);
            plan_free(&p);
            exec_free(x);
            policy_layers_done(&layers);
            pool_free(pool);
            close_world(&w);
        }
    }
}

int main(void)
{
    RUN(test_formula);
    RUN(test_masses_that_mean_nothing);
    RUN(test_masses);
    RUN(test_variance);
    RUN(test_attention);
    return test_done();
}
