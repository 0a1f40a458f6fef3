/* test_index.c - the index of keys: codes are the same bits in every ISA, estimates and kept sets are those of the slow reference, and they follow the true scores. */
#include "test.h"

#include "isas.h"
#include "kern.h"
#include "tolerance.h"

#if defined(__x86_64__)
enum { N_TABLES = N_ISA + 1 };
#else
enum { N_TABLES = N_ISA };
#endif
enum { GUARD = 0x5a };

/* The sets of kernels, and behind them the scan that a processor with AVX-512 but without VBMI would run.  NULL: not here. */
static const kern_table *table_at(size_t i)
{
    if (i < N_ISA) return kern_get(isas[i]);
#if defined(__x86_64__)
    static kern_table plain;
    if (!kern_get("avx512")) return NULL;
    plain = *kern_get("avx512");
    kern_fill_avx512_index(&plain);
    return &plain;
#else
    return NULL;
#endif
}

static const size_t dims[] = {16, 48, 64, 80, 96, 112, 128, 256};
enum { N_DIMS = sizeof dims / sizeof *dims };

static void *get(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    if (!p) abort();
    memset(p, GUARD, (bytes + 127) & ~(size_t)63);
    return p;
}

static bool is_guarded(const void *p, size_t bytes)
{
    for (size_t i = bytes; i < bytes + 16; i++)
        if (((const uint8_t *)p)[i] != GUARD) return false;
    return true;
}

/* Nearly normal: variance 1. */
static float normal(uint64_t *seed)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += test_uniform(seed);
    return sum * 0.70710678f;
}

enum { KEYS_PLAIN, KEYS_BIASED, KEYS_EQUAL, KEYS_HUGE, KEYS_BROKEN, KEYS_KINDS };

/* Keys as models have them; biased: all share a vector whose channels differ by orders of magnitude. */
static void make_keys(int kind, float *k, size_t n, size_t dim, uint64_t *seed)
{
    float bias[KERN_INDEX_DIM];
    for (size_t d = 0; d < dim; d++) bias[d] = kind == KEYS_BIASED || kind == KEYS_EQUAL ? (d % 13 ? 3 : 100) * test_uniform(seed) : 0;
    for (size_t i = 0; i < n * dim; i++) {
        k[i] = kern_f16_to_f32(kern_f32_to_f16(bias[i % dim] + (kind == KEYS_EQUAL ? 0 : normal(seed))));
        if (kind == KEYS_HUGE) k[i] = copysignf(65504, k[i]);
    }
    if (kind == KEYS_BROKEN) k[dim] = INFINITY, k[2 * dim + 1] = NAN;
}

/* ------------------------------------------------------------------------------------------------- codes ---- */

static void check_code(const kern_table *kern, int kind, size_t n_rows, size_t dim, unsigned planes)
{
    uint64_t seed = 5 + n_rows + dim;
    size_t stride = dim + 5, bytes = kern_index_bytes(n_rows, dim, planes);
    float *k = get(n_rows * dim * sizeof *k), *apart = get(n_rows * stride * sizeof *apart);
    void *want = get(bytes), *got = get(bytes);
    make_keys(kind, k, n_rows, dim, &seed);
    for (size_t i = 0; i < n_rows; i++) memcpy(apart + i * stride, k + i * dim, dim * sizeof *k);
    kern_get("ref")->index_code(k, dim, n_rows, dim, planes, want);
    kern->index_code(apart, stride, n_rows, dim, planes, got);
    CHECK(!memcmp(want, got, bytes));
    CHECK(bytes % 64 == 0 && is_guarded(want, bytes) && is_guarded(got, bytes));
    free(k), free(apart), free(want), free(got);
}

static void test_codes(void)
{
    static const size_t rows[] = {1, 4, 15, 64, 100, 128};
    for (size_t i = 0; i < N_TABLES; i++)
        for (size_t r = 0; table_at(i) && r < sizeof rows / sizeof *rows; r++)
            for (size_t d = 0; d < N_DIMS; d++)
                for (int kind = 0; kind < KEYS_KINDS - (r == 0); kind++)
                    for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++)
                        if (kind != KEYS_BROKEN || rows[r] > 2) check_code(table_at(i), kind, rows[r], dims[d], planes);
}

/* ------------------------------------------------------------------------------------------------- scans ---- */

/* Pages of keys, their codes, queries; what a scan writes. */
typedef struct scene {
    size_t n, dim, n_q, page_rows;
    float *k, *q;
    void *codes, *prepared, *scratch;
    const void **pages, **outer; /* outer: elsewhere */
    uint8_t *planes;
    float norm[KERN_MAX_G], size[KERN_MAX_G]; /* size: length of a query */
    bool has_norm;
    kern_index_scan a;
} scene;

static scene scene_make(int kind, size_t n_pages, size_t page_rows, size_t dim, size_t n_q, unsigned planes, uint64_t seed)
{
    size_t n = n_pages * page_rows, bytes = kern_index_bytes(page_rows, dim, planes);
    scene s = {.n = n, .dim = dim, .n_q = n_q, .page_rows = page_rows, .k = get(n * dim * sizeof *s.k), .q = get(n_q * dim * sizeof *s.q), .codes = get(n_pages * bytes),
               .prepared = get(kern_index_query_bytes(n_q, dim)), .scratch = get(kern_index_scratch(n_q, dim)), .pages = get(n_pages * sizeof *s.pages), .outer = get(n_pages * sizeof *s.outer),
               .planes = get(n * (KERN_INDEX_PLANES - 1) * (dim / 8))};
    make_keys(kind, s.k, n, dim, &seed);
    for (size_t i = 0; i < n_q * dim; i++) s.q[i] = normal(&seed) / sqrtf((float)dim);
    for (size_t g = 0; g < n_q; g++) {
        s.norm[g] = test_uniform(&seed);
        for (size_t d = 0; d < dim; d++) s.size[g] += s.q[g * dim + d] * s.q[g * dim + d];
        s.size[g] = sqrtf(s.size[g]);
    }
    for (size_t p = 0; p < n_pages; p++) {
        kern_get("ref")->index_code(s.k + p * page_rows * dim, dim, page_rows, dim, planes, (uint8_t *)s.codes + p * bytes);
        s.pages[p] = (uint8_t *)s.codes + p * bytes;
        size_t of_page = page_rows * (planes - 1) * (dim / 8);
        s.outer[p] = s.planes + p * of_page;
        memcpy(s.planes + p * of_page, (uint8_t *)s.codes + p * bytes + kern_index_bytes(page_rows, dim, 1), of_page);
    }
    s.a = (kern_index_scan){.query = s.prepared, .n_q = n_q, .dim = dim, .planes = planes, .pages = s.pages, .page_rows = page_rows, .end = (uint32_t)n, .every = 1,
                            .threshold = -INFINITY, .scratch = s.scratch};
    s.has_norm = true;
    return s;
}

static void scene_free(scene *s)
{
    free(s->k), free(s->q), free(s->codes), free(s->prepared), free(s->scratch), free(s->pages), free(s->outer), free(s->planes);
}

typedef struct kept {
    uint32_t *ids;
    float *estimates;
    size_t n, stride;
} kept;

static kept run(const kern_table *kern, const scene *s)
{
    kern_index_scan a = s->a;
    size_t room = a.end - a.first + 64;
    kept r = {.ids = get(room * sizeof *r.ids), .stride = room, .estimates = get(s->n_q * room * sizeof *r.estimates)};
    a.ids = r.ids, a.estimates = r.estimates, a.stride = room, a.norm = s->has_norm ? s->norm : NULL;
    kern->index_query(s->q, s->dim, s->n_q, s->dim, s->prepared);
    r.n = kern->index_scan(&a);
    CHECK(is_guarded(s->prepared, kern_index_query_bytes(s->n_q, s->dim)) && is_guarded(s->scratch, kern_index_scratch(s->n_q, s->dim)));
    CHECK(is_guarded(r.ids, room * sizeof *r.ids) && is_guarded(r.estimates, s->n_q * room * sizeof *r.estimates));
    return r;
}

static void kept_free(kept *r)
{
    free(r->ids), free(r->estimates);
}

/* How far an estimate may be from the reference: rounding of the query, which a scale multiplies; no scale of these keys is above 1. */
static float room_of(const scene *s, size_t g, float value)
{
    return (float)TOL_INDEX_QUERY * s->size[g] + (float)TOL_INDEX_REL * fabsf(value);
}

/* What the reference estimates when it keeps everything, from signs and as the scan is asked to. */
typedef struct truth {
    kept signs, wanted;
} truth;

static truth truth_make(const scene *s)
{
    scene all = *s;
    truth t;
    all.a.first = 0, all.a.end = (uint32_t)s->n, all.a.every = 1, all.a.threshold = -INFINITY;
    t.wanted = run(kern_get("ref"), &all);
    all.a.refine = false;
    t.signs = run(kern_get("ref"), &all);
    return t;
}

static void truth_free(truth *t)
{
    kept_free(&t->signs), kept_free(&t->wanted);
}

static bool is_scanned(const scene *s, size_t position)
{
    size_t groups = (s->page_rows + KERN_INDEX_GROUP - 1) / KERN_INDEX_GROUP, group = position / s->page_rows * groups + position % s->page_rows / KERN_INDEX_GROUP;
    return position >= s->a.first && position < s->a.end && group % s->a.every == 0;
}

/* Every position that is clearly good enough is there, none that clearly is not, with the right estimates. */
static void check_scan(const kern_table *kern, scene *s, const truth *t)
{
    kept got = run(kern, s);
    size_t at = 0, wrong = 0;
    for (size_t i = 0; i < s->n; i++) {
        float best = -INFINITY, room = 0;
        bool is_kept = at < got.n && got.ids[at] == i;
        for (size_t g = 0; g < s->n_q; g++) {
            best = fmaxf(best, t->signs.estimates[g * t->signs.stride + i] - (s->has_norm ? s->norm[g] : 0));
            room = fmaxf(room, room_of(s, g, t->signs.estimates[g * t->signs.stride + i]));
        }
        if (!is_scanned(s, i)) wrong += is_kept;
        else if (is_kept ? best < s->a.threshold - room : best >= s->a.threshold + room) wrong++;
        for (size_t g = 0; g < s->n_q && is_kept; g++) {
            float w = t->wanted.estimates[g * t->wanted.stride + i], e = got.estimates[g * got.stride + at];
            wrong += !(fabsf(w - e) <= room_of(s, g, w));
        }
        at += is_kept;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(at, got.n);
    kept_free(&got);
}

static void check_scans(const kern_table *kern, scene *s, const truth *t)
{
    static const uint32_t ends[][2] = {{0, 0}, {0, 1}, {1, 64}, {63, 65}, {130, 517}, {5, 259}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        s->a.first = ends[i][0], s->a.end = ends[i][1];
        s->a.threshold = i % 2 ? -INFINITY : 0.5f;
        check_scan(kern, s, t);
    }
    s->a.first = 0, s->a.end = (uint32_t)s->n;
    static const float thresholds[] = {-INFINITY, 0, 0.8f, 1000};
    for (size_t i = 0; i < sizeof thresholds / sizeof *thresholds; i++) {
        s->a.threshold = thresholds[i];
        check_scan(kern, s, t);
    }
    for (uint32_t every = 2; every < 6; every += 3) {
        s->a.every = every, s->a.first = 70;
        check_scan(kern, s, t);
    }
    s->a.every = 1, s->a.first = 0, s->has_norm = false;
    check_scan(kern, s, t);
}

static void test_scans(void)
{
    static const size_t queries[] = {1, 3, 4, 6, 7, 8, 9, 32};
    for (size_t d = 0; d < N_DIMS; d++) {
        for (size_t q = 0; q < sizeof queries / sizeof *queries; q++) {
            if (test_is_emulated() && (d + q) % 3) continue;
            scene s = scene_make(q % 3 == 2 ? KEYS_BIASED : KEYS_PLAIN, 5, q == 1 ? 104 : 128, dims[d], queries[q], 1 + (unsigned)(d + q) % KERN_INDEX_PLANES, 1 + d * 10 + q);
            s.a.refine = q % 4 != 3;
            truth t = truth_make(&s);
            for (size_t i = queries[q] < 9 ? 0 : 1; i < N_TABLES; i++) {
                scene again = s;
                if (table_at(i)) check_scans(table_at(i), &again, &t);
            }
            truth_free(&t), scene_free(&s);
        }
    }
}

/* Pages of four positions, as the stress build has them. */
static void test_small_pages(void)
{
    scene s = scene_make(KEYS_PLAIN, 200, 4, 64, 4, 3, 77);
    s.a.refine = true, s.a.first = 3, s.a.end = 789, s.a.threshold = 0.4f;
    truth t = truth_make(&s);
    for (uint32_t every = 1; every < 9; every += 7) {
        s.a.every = every;
        for (size_t i = 0; i < N_TABLES; i++)
            if (table_at(i)) check_scan(table_at(i), &s, &t);
    }
    truth_free(&t), scene_free(&s);
}

/* Queries that are integers when they are rotated, and whose step is 1: nothing is rounded, so estimates are the reference's to the last digits. */
static void test_exact(void)
{
    static const size_t powers[] = {16, 64, 128, 256};
    for (size_t i = 0; i < N_TABLES; i++) {
        for (size_t d = 0; table_at(i) && d < sizeof powers / sizeof *powers; d++) {
            size_t dim = powers[d], chunk = dim < 24 ? dim : 24;
            scene s = scene_make(KEYS_PLAIN, 3, 128, dim, 5, 2 + (unsigned)d % (KERN_INDEX_PLANES - 1), 9);
            uint64_t seed = 3;
            for (size_t g = 0; g < s.n_q; g++) {
                float x[KERN_INDEX_DIM], sum = 0;
                for (size_t j = 0; j < dim; j++) x[j] = j < chunk ? (float)(int)(9.5f * test_uniform(&seed)) : (float)(int)(7.5f * test_uniform(&seed));
                for (size_t j = 1; j < chunk; j++) sum += fabsf(x[j]);
                x[0] = 242 - sum;
                for (size_t a = 0; a < dim; a++) { /* the transform is its own inverse */
                    double y = 0;
                    for (size_t b = 0; b < dim; b++) y += (double)x[b] * (__builtin_popcountll(a & b) % 2 ? -1 : 1);
                    s.q[g * dim + a] = (float)(y / sqrt((double)dim));
                }
                s.size[g] = 0;
            }
            s.a.refine = true;
            kept want = run(kern_get("ref"), &s), got = run(table_at(i), &s);
            size_t wrong = got.n != want.n;
            for (size_t g = 0; g < s.n_q; g++)
                for (size_t p = 0; p < want.n; p++) wrong += !(fabsf(got.estimates[g * got.stride + p] - want.estimates[g * want.stride + p]) <= 0.001f);
            CHECK_INT(wrong, 0);
            kept_free(&want), kept_free(&got), scene_free(&s);
        }
    }
}

/* Outer planes may lie anywhere: the bits are the same, and what follows the other areas is not looked at. */
static void test_outer_apart(void)
{
    for (size_t i = 0; i < N_TABLES; i++) {
        if (!table_at(i)) continue;
        scene s = scene_make(KEYS_PLAIN, 5, 128, 96, 4, 3, 41);
        size_t one = kern_index_bytes(128, 96, 1), all = kern_index_bytes(128, 96, 3);
        s.a.refine = true, s.a.threshold = 0.5f, s.a.first = 9;
        kept want = run(table_at(i), &s);
        for (size_t p = 0; p < 5; p++) memset((uint8_t *)s.codes + p * all + one, 0x33, all - one);
        s.a.outer = s.outer;
        kept got = run(table_at(i), &s);
        CHECK(want.n > 50 && want.n < s.n);
        CHECK_INT(got.n, want.n);
        for (size_t g = 0; g < s.n_q; g++) CHECK(!memcmp(got.estimates + g * got.stride, want.estimates + g * want.stride, want.n * sizeof(float)));
        kept_free(&want), kept_free(&got), scene_free(&s);
    }
}

/* The bits of an estimate depend on its position and its query alone. */
static void test_company(void)
{
    for (size_t i = 0; i < N_TABLES; i++) {
        if (!table_at(i)) continue;
        scene s = scene_make(KEYS_PLAIN, 4, 128, 80, 11, 3, 19);
        s.a.refine = true;
        kept all = run(table_at(i), &s);
        CHECK_INT(all.n, s.n);
        for (uint32_t p = 0; p < s.n; p += 37) {
            scene one = s;
            one.prepared = get(kern_index_query_bytes(1, s.dim)), one.scratch = get(kern_index_scratch(1, s.dim));
            one.a.first = p, one.a.end = p + 1, one.n_q = one.a.n_q = 1, one.q = s.q + (p % 11) * s.dim, one.a.query = one.prepared, one.a.scratch = one.scratch;
            kept alone = run(table_at(i), &one);
            CHECK(alone.n == 1 && alone.ids[0] == p && !memcmp(alone.estimates, all.estimates + (p % 11) * all.stride + p, sizeof(float)));
            kept_free(&alone), free(one.prepared), free(one.scratch);
        }
        s.a.threshold = 2;
        kept some = run(table_at(i), &s);
        CHECK(some.n > 20 && some.n < s.n);
        for (size_t j = 0; j < some.n; j++)
            for (size_t g = 0; g < s.n_q; g++)
                CHECK(!memcmp(&some.estimates[g * some.stride + j], &all.estimates[g * all.stride + some.ids[j]], sizeof(float)));
        kept_free(&all), kept_free(&some), scene_free(&s);
    }
}

static double correlation(const scene *s, const kept *r, size_t g)
{
    double x = 0, y = 0, xx = 0, yy = 0, xy = 0, n = (double)r->n;
    for (size_t i = 0; i < r->n; i++) {
        double score = 0, e = (double)r->estimates[g * r->stride + i];
        for (size_t d = 0; d < s->dim; d++) score += (double)s->q[g * s->dim + d] * (double)s->k[r->ids[i] * s->dim + d];
        x += score, y += e, xx += score * score, yy += e * e, xy += score * e;
    }
    return (xy - x * y / n) / sqrt((xx - x * x / n) * (yy - y * y / n));
}

/* Of Gaussian vectors signs keep sqrt(2 / pi) = 0.80 of the correlation, four levels sqrt(.881) = 0.94, eight .981 and 16 .994; a page's mean is known, which helps. */
static void test_estimates_follow_scores(void)
{
    for (size_t i = 0; i < N_TABLES; i++) {
        static const double least[KERN_INDEX_PLANES + 1] = {0, 0.76, 0.92, 0.97, 0.985};
        for (int kind = KEYS_PLAIN; table_at(i) && kind <= KEYS_BIASED; kind++) {
            for (unsigned planes = 2; planes <= KERN_INDEX_PLANES; planes++) {
                scene s = scene_make(kind, 8, 128, 128, 4, planes, 23);
                kept signs = run(table_at(i), &s);
                s.a.refine = true;
                kept all = run(table_at(i), &s);
                for (size_t g = 0; g < s.n_q; g++) {
                    double by_signs = correlation(&s, &signs, g), by_all = correlation(&s, &all, g);
                    CHECK(by_signs > least[1] && by_all > least[planes] && by_all > by_signs);
                }
                kept_free(&signs), kept_free(&all), scene_free(&s);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------- votes ---- */

static void check_votes(const kern_table *kern, size_t n, size_t n_q, float spread)
{
    uint64_t seed = 3 + n + n_q;
    size_t stride = n + 7;
    float *estimates = get(n_q * stride * sizeof *estimates), *want = get(n * sizeof *want), *got = get(n * sizeof *got), want_lse[KERN_MAX_G], got_lse[KERN_MAX_G];
    for (size_t i = 0; i < n_q * stride; i++) estimates[i] = spread * test_uniform(&seed);
    kern_get("ref")->index_lse(estimates, stride, n, n_q, want_lse);
    kern->index_lse(estimates, stride, n, n_q, got_lse);
    for (size_t g = 0; g < n_q; g++) {
        if (n) CHECK_NEAR(got_lse[g], want_lse[g], TOL_INDEX_LSE * (double)fmaxf(1, fabsf(want_lse[g])));
        else CHECK(isinf(got_lse[g]) && got_lse[g] < 0);
        want_lse[g] -= (float)g * 40; /* a sample may have missed the largest ones */
    }
    for (int largest = 0; largest < 2; largest++) {
        kern_get("ref")->index_votes(estimates, stride, n, n_q, want_lse, largest, want);
        kern->index_votes(estimates, stride, n, n_q, want_lse, largest, got);
        for (size_t i = 0; i < n; i++) CHECK_NEAR(got[i], want[i], TOL_INDEX_VOTE_REL * (double)want[i] + 1e-36);
        CHECK(is_guarded(got, n * sizeof *got));
    }
    free(estimates), free(want), free(got);
}

static void test_votes(void)
{
    static const size_t sizes[] = {0, 1, 2, 15, 16, 17, 63, 64, 100, 1000}, queries[] = {1, 3, 4, 8, 32};
    for (size_t i = 0; i < N_TABLES; i++)
        for (size_t n = 0; table_at(i) && n < sizeof sizes / sizeof *sizes; n++)
            for (size_t q = 0; q < sizeof queries / sizeof *queries; q++)
                check_votes(table_at(i), sizes[n], queries[q], 2), check_votes(table_at(i), sizes[n], queries[q], 200);
}

/* ------------------------------------------------------------------------------------------------- means ---- */

static void test_means(void)
{
    static const size_t rows[] = {1, 4, 100, 128};
    for (size_t i = 0; i < N_TABLES; i++)
        for (size_t r = 0; table_at(i) && r < sizeof rows / sizeof *rows; r++)
            for (size_t d = 0; d < N_DIMS; d++)
                for (int kind = 0; kind < KEYS_KINDS - (r == 0); kind++) {
                    uint64_t seed = 5 + rows[r] + dims[d];
                    size_t n = rows[r], dim = dims[d], stride = dim + 5;
                    float *v = get(n * stride * sizeof *v), *apart = get(n * stride * sizeof *apart);
                    kern_f16 *want = get(dim * sizeof *want), *got = get(dim * sizeof *got);
                    make_keys(kind, v, n, dim, &seed);
                    for (size_t k = 0; k < n; k++) memcpy(apart + k * stride, v + k * dim, dim * sizeof *v);
                    kern_get("ref")->index_mean(v, dim, n, dim, want);
                    table_at(i)->index_mean(apart, stride, n, dim, got);
                    CHECK(!memcmp(want, got, dim * sizeof *got) && is_guarded(got, dim * sizeof *got));
                    for (size_t k = 0; k < dim; k++) CHECK(isfinite(kern_f16_to_f32(got[k])));
                    if (kind == KEYS_PLAIN && n > 1) CHECK(fabsf(kern_f16_to_f32(got[3]) - (v[3] + v[dim + 3]) / 2) < (n == 2 ? 1e-3f : 4));
                    free(v), free(apart), free(want), free(got);
                }
}

static void check_mix(const kern_table *kern, size_t n, size_t dim)
{
    uint64_t seed = 3 + n;
    float *weights = get(n * sizeof *weights), *want = get(dim * sizeof *want), *got = get(dim * sizeof *got);
    kern_f16 *halves = get(n * dim * sizeof *halves);
    const kern_f16 **means = get(n * sizeof *means);
    for (size_t i = 0; i < n; i++) weights[i] = test_uniform(&seed);
    for (size_t i = 0; i < n * dim; i++) halves[i] = kern_f32_to_f16(normal(&seed));
    for (size_t i = 0; i < n; i++) means[i] = halves + (i * 7 + 3) % n * dim;
    kern_get("ref")->index_mix(weights, means, n, dim, want);
    kern->index_mix(weights, means, n, dim, got);
    for (size_t i = 0; i < dim; i++) CHECK_NEAR(got[i], want[i], 1e-6 * (double)(n + 1));
    CHECK(is_guarded(got, dim * sizeof *got));
    free(weights), free(want), free(got), free(halves), free(means);
}

static void test_mixes(void)
{
    static const size_t sizes[] = {0, 1, 2, 64, 300};
    for (size_t i = 0; i < N_TABLES; i++)
        for (size_t n = 0; table_at(i) && n < sizeof sizes / sizeof *sizes; n++)
            for (size_t d = 0; d < N_DIMS; d++) check_mix(table_at(i), sizes[n], dims[d]);
}

/* AVX2, AVX-512 and NEON compute the same. */
static void test_vector_isas_agree(void)
{
    static const uint64_t scans[] = {UINT64_C(0x7764a86076a000fc), UINT64_C(0x701f6279bd015f28), UINT64_C(0x20dd355316e35460)};
    for (unsigned planes = 2; planes <= KERN_INDEX_PLANES; planes++) {
        scene s = scene_make(KEYS_PLAIN, 6, 128, 112, 7, planes, 31);
        s.a.refine = true, s.a.threshold = 0.5f;
        for (size_t i = FIRST_VECTOR_ISA; i < N_TABLES; i++) {
            if (!table_at(i)) continue;
            kept r = run(table_at(i), &s);
            uint64_t hash = ISA_HASH_START;
            for (size_t g = 0; g < s.n_q; g++) hash = isa_hash(hash, r.estimates + g * r.stride, r.n);
            CHECK_ISA_HASH(table_at(i)->isa, "index_scan", hash, scans[planes - 2]);
            kept_free(&r);
        }
        scene_free(&s);
    }
    scene s = scene_make(KEYS_PLAIN, 6, 128, 112, 7, 2, 31);
    s.a.refine = true, s.a.threshold = 0.5f;
    for (size_t i = FIRST_VECTOR_ISA; i < N_TABLES; i++) {
        const kern_table *t = table_at(i);
        if (!t) continue;
        float lse[KERN_MAX_G], votes[6 * 128];
        kept r = run(t, &s);
        t->index_lse(r.estimates, r.stride, r.n, s.n_q, lse);
        t->index_votes(r.estimates, r.stride, r.n, s.n_q, lse, false, votes);
        CHECK_ISA_HASH(t->isa, "index_lse, index_votes", isa_hash(isa_hash(ISA_HASH_START, lse, s.n_q), votes, r.n), UINT64_C(0x6c819ad7ffc09885));
        kept_free(&r);
    }
    for (size_t i = FIRST_VECTOR_ISA; i < N_TABLES; i++) {
        const kern_table *t = table_at(i);
        if (!t) continue;
        uint64_t seed = 77;
        float weights[40], o[112];
        kern_f16 halves[40 * 112];
        const kern_f16 *means[40];
        for (size_t k = 0; k < 40; k++) weights[k] = test_uniform(&seed);
        for (size_t k = 0; k < 40 * 112; k++) halves[k] = kern_f32_to_f16(normal(&seed));
        for (size_t k = 0; k < 40; k++) means[k] = halves + k * 112;
        t->index_mix(weights, means, 40, 112, o);
        CHECK_ISA_HASH(t->isa, "index_mix", isa_hash(ISA_HASH_START, o, 112), UINT64_C(0x132313ed3ef73356));
    }
    scene_free(&s);
}

int main(void)
{
    for (size_t i = 0; i < N_ISA; i++)
        if (!kern_get(isas[i])) SKIP(isas[i], "this processor or build lacks it");
    RUN(test_codes);
    RUN(test_scans);
    RUN(test_small_pages);
    RUN(test_exact);
    RUN(test_outer_apart);
    RUN(test_company);
    RUN(test_estimates_follow_scores);
    RUN(test_votes);
    RUN(test_means);
    RUN(test_mixes);
    RUN(test_vector_isas_agree);
    return test_done();
}
