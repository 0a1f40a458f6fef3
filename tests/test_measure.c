/* test_measure.c - the cache file of what was measured, choices that change no bit, and benchmark records that make sense.  Nothing here depends on how fast
 * the machine is. */
#include <sys/stat.h>
#include <unistd.h>

#include "kern.h"
#include "measure.h"
#include "mem.h"
#include "test.h"

static char folder[] = "/tmp/spillway-measure-XXXXXX";

static spw_machine example(void)
{
    return (spw_machine){.model = "Some Processor 7 (x)", .host = "here", .isa = "avx2", .threads = 4, .read_one = 12.5, .read_all = 40, .l2_read = 99.25,
                         .f32_peak = 117, .int8_peak = 470.5, .bf16_peak = 0, .hint = "T0", .ahead = 48, .tile = KERN_TILE, .arithmetic = "f32"};
}

/* What a reader knows before it has read. */
static spw_machine asked(void)
{
    spw_machine m = {.threads = 1};
    memcpy(m.model, "Some Processor 7 (x)", 21);
    memcpy(m.host, "here", 5);
    memcpy(m.isa, "avx2", 5);
    return m;
}

static void path_in(char *path, size_t size, const char *name)
{
    snprintf(path, size, "%s/%s", folder, name);
}

static void test_cache_round_trip(void)
{
    char path[256];
    path_in(path, sizeof path, "a/b/machine.json");
    spw_machine m = example(), r = asked();
    CHECK(measure_cache_write(path, &m));
    CHECK(measure_cache_read(path, &r));
    CHECK(r.cached);
    CHECK_STR(r.hint, "T0");
    CHECK_STR(r.arithmetic, "f32");
    CHECK_INT(r.ahead, 48);
    CHECK_INT(r.threads, 4);
    CHECK_INT(measure_tuning(&r).hint, KERN_HINT_T0);
    CHECK_NEAR(r.l2_read, 99.25, 1e-9);
    CHECK_NEAR(r.int8_peak, 470.5, 1e-9);
    CHECK_NEAR(r.bf16_peak, 0, 0);
}

/* Every way of being damaged: cut at any length, one byte changed, something behind the end. */
static void test_cache_damage(void)
{
    char path[256], text[2048];
    path_in(path, sizeof path, "damage.json");
    spw_machine m = example();
    CHECK(measure_cache_write(path, &m));
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    CHECK(n > 100);
    for (size_t i = 0; i <= n; i++) {
        spw_machine r = asked();
        char damaged[2048];
        memcpy(damaged, text, n);
        size_t len = n;
        if (i % 2 || i == n) damaged[i < n ? i : 0] = '\x01';
        else len = i;
        if (!(f = fopen(path, "wb"))) continue;
        fwrite(damaged, 1, len, f);
        fclose(f);
        CHECK(!measure_cache_read(path, &r));
        CHECK(!r.cached);
    }
    f = fopen(path, "wb");
    if (f) fwrite(text, 1, n, f), fwrite("\n", 1, 1, f), fclose(f);
    spw_machine r = asked();
    CHECK(!measure_cache_read(path, &r));
}

static void test_cache_of_another_machine(void)
{
    char path[256];
    path_in(path, sizeof path, "other.json");
    spw_machine m = example(), r = asked();
    CHECK(measure_cache_write(path, &m));
    memcpy(r.host, "elsewhere", 10);
    CHECK(!measure_cache_read(path, &r));
    r = asked();
    memcpy(r.model, "Some Processor 8", 17);
    CHECK(!measure_cache_read(path, &r));
    m = example();
    memcpy(m.hint, "T7", 3); /* a hint of a later version */
    CHECK(measure_cache_write(path, &m));
    r = asked();
    CHECK(!measure_cache_read(path, &r));
    path_in(path, sizeof path, "missing.json");
    CHECK(!measure_cache_read(path, &r));
    CHECK(!measure_cache_read(folder, &r));
    CHECK(!measure_cache_write("/proc/spillway/machine.json", &m));
}

static void test_cache_path(void)
{
    char path[512];
    setenv("XDG_CACHE_HOME", folder, 1);
    unsetenv("SPILLWAY_CACHE");
    CHECK(measure_cache_path(path, sizeof path, "AMD EPYC / ../x", "avx512"));
    CHECK_HAS(path, "/spillway/machine-AMD-EPYC-x-avx512.json");
    CHECK(!measure_cache_path(path, 20, "AMD", "avx512"));
    setenv("SPILLWAY_CACHE", "off", 1);
    CHECK(!measure_cache_path(path, sizeof path, "AMD", "avx512"));
    unsetenv("SPILLWAY_CACHE");
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", "relative", 1);
    CHECK(!measure_cache_path(path, sizeof path, "AMD", "avx512"));
    setenv("XDG_CACHE_HOME", folder, 1);
}

static void test_machine_is_cached(void)
{
    spw_machine a, b;
    spw_err err;
    CHECK_OK(spw_bench_machine(&a, 1, &err), err);
    CHECK_OK(spw_bench_machine(&b, 1, &err), err);
    CHECK(a.read_one > 0 && a.f32_peak > 0 && a.l2_read > 0);
    CHECK(b.cached);
    CHECK_STR(b.hint, a.hint);
    CHECK_INT(b.ahead, a.ahead);
    CHECK_INT(b.tile, KERN_TILE);
}

enum { DIM = 64, G = 3, N = 200 };

/* Rows, queries and the list of single positions that both calls attend to. */
static void attend(const kern_table *kern, const kern_tuning *tuning, const uint16_t *rows, const float *q, float *o, float *lse, void *scratch)
{
    kern_span spans[N], ahead = {.rows = rows, .n = N};
    for (uint32_t i = 0; i < N; i++) spans[i] = (kern_span){.rows = rows + (size_t)i * 2 * 2 * DIM, .n = 1};
    kern->attend(&(kern_attend_args){.q = q, .q_stride = DIM, .n_q = G, .dim = DIM, .spans = spans, .n_spans = N, .ahead = &ahead, .n_ahead = 1,
                                     .tuning = tuning, .o = o, .o_stride = DIM, .lse = lse, .scratch = scratch});
}

static void test_tuning_changes_no_bit(void)
{
    static const char *const isas[] = {"ref", "scalar", "avx2", "avx512", "neon"};
    static const kern_tuning ways[] = {{KERN_HINT_NONE, 0}, {KERN_HINT_T0, 1}, {KERN_HINT_T0, 1000}, {KERN_HINT_T1, 0}, {KERN_HINT_T1, KERN_AHEAD}};
    uint64_t seed = 5;
    uint16_t *rows = mem_alloc((size_t)2 * N * 2 * DIM * sizeof *rows);
    float q[G * DIM], want[G * DIM], got[G * DIM], want_lse[G], got_lse[G];
    void *scratch = mem_alloc(kern_attend_scratch(G, DIM));
    CHECK(rows && scratch);
    for (size_t i = 0; rows && i < (size_t)2 * N * 2 * DIM; i++) rows[i] = kern_f32_to_f16(test_uniform(&seed));
    for (size_t i = 0; i < G * DIM; i++) q[i] = test_uniform(&seed);
    for (size_t k = 0; rows && scratch && k < sizeof isas / sizeof isas[0]; k++) {
        const kern_table *kern = kern_get(isas[k]);
        if (!kern) continue;
        attend(kern, NULL, rows, q, want, want_lse, scratch);
        for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
            attend(kern, &ways[w], rows, q, got, got_lse, scratch);
            CHECK(!memcmp(got, want, sizeof want) && !memcmp(got_lse, want_lse, sizeof want_lse));
        }
    }
    mem_free(rows);
    mem_free(scratch);
}

static void test_median(void)
{
    double odd[] = {3, 1, 2}, even[] = {4, 1, 3, 2};
    CHECK_NEAR(measure_median(odd, 3), 2, 0);
    CHECK_NEAR(measure_median(even, 4), 2.5, 0);
    CHECK_NEAR(measure_median(NULL, 0), 0, 0);
}

typedef struct seen {
    int n_records, n_decode, n_matvec, n_matmul, n_prefill, n_fork, n_scan, n_choose;
    int stop_after;
} seen;

static bool see(void *ctx, const spw_bench_record *r)
{
    seen *s = ctx;
    s->n_records++;
    s->n_decode += !strcmp(r->kernel, "attn_decode"), s->n_matvec += !strcmp(r->kernel, "matvec"), s->n_matmul += !strcmp(r->kernel, "matmul");
    s->n_prefill += !strcmp(r->kernel, "attn_prefill"), s->n_fork += !strcmp(r->kernel, "fork_join");
    s->n_scan += !strcmp(r->kernel, "index_scan"), s->n_choose += !strcmp(r->kernel, "choose");
    CHECK(r->threads == 1 && r->n_samples >= 1 && r->n_clean >= 0 && r->n_clean <= r->n_samples);
    if (!strcmp(r->kernel, "fork_join") || !strcmp(r->kernel, "top_k") || !strcmp(r->kernel, "choose")) CHECK(r->us > 0);
    else CHECK(r->rate > 0 && r->roof > 0 && r->share > 0 && fabs(r->share - r->rate / r->roof) < 1e-6);
    if (!strcmp(r->kernel, "index_scan")) CHECK(r->raw_gbps > 0 && r->l2_gbps > 0);
    if (!strcmp(r->kernel, "attn_decode")) CHECK(r->g >= 1 && (r->head_dim == 64 || r->head_dim == 128) && r->raw_gbps > 0 && r->l2_gbps > 0 && r->l2_peak > 0);
    return s->n_records != s->stop_after;
}

#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* One sample of each kernel, on little memory: which records there are, not what they say. */
static void test_records(void)
{
    spw_bench_params p = {.n_threads = 1, .n_samples = 1, .bytes = 64 << 20};
    seen s = {0};
    spw_err err;
    size_t before = mem_in_use();
    CHECK_OK(spw_bench_kernels(&p, see, &s, &err), err);
    CHECK_INT(s.n_decode, 2 * (5 * 7 + 3 * 3)); /* halves, bytes */
    CHECK_INT(s.n_matvec, 7);
    CHECK_INT(s.n_matmul, 7);
    CHECK_INT(s.n_prefill, 2);
    CHECK_INT(s.n_fork, 1);
    CHECK_INT(s.n_scan, 2 * 3 * 2); /* dimensions, groups, planes */
    CHECK_INT(s.n_choose, 3);
    CHECK_INT(mem_in_use(), before);
}

static void test_bad_calls(void)
{
    spw_bench_params p = {.n_threads = 1, .n_samples = 1, .bytes = 64 << 20};
    seen s = {.stop_after = 2};
    spw_err err;
    size_t before = mem_in_use();
    CHECK_INT(spw_bench_kernels(&p, see, &s, &err), SPW_E_ARG);
    CHECK_INT(s.n_records, 2);
    CHECK_INT(mem_in_use(), before);
    p.n_samples = 0;
    CHECK_INT(spw_bench_kernels(&p, see, &s, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "samples");
    p.n_samples = 1, p.bytes = 1000;
    CHECK_INT(spw_bench_kernels(&p, see, &s, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "memory");
    p.bytes = 64 << 20, p.n_threads = -1;
    CHECK_INT(spw_bench_kernels(&p, see, &s, &err), SPW_E_ARG);
    CHECK_HAS(err.msg, "threads");
}

int main(void)
{
    char command[128];
    if (!mkdtemp(folder)) return perror(folder), 1;
    RUN(test_cache_round_trip);
    RUN(test_cache_damage);
    RUN(test_cache_of_another_machine);
    RUN(test_cache_path);
    RUN(test_machine_is_cached);
    RUN(test_tuning_changes_no_bit);
    RUN(test_median);
    if (SANITIZED) SKIP("test_records", "the kernels are many times slower under a sanitizer");
    else RUN(test_records);
    RUN(test_bad_calls);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) ? 1 : test_done();
}
