/* test_kv.c - the KV store against a naive model: random appends, forks, truncations and frees, with every row's content checked.
 * Built twice: with the product's pages, and with pages of 4 positions (make stress). */
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kv.h"
#include "mem.h"
#include "test.h"

enum { LAYERS = 3, DIM = 16, MAX_SEQS = 12, CTX = 9 * KV_PAGE_ROWS + 3 };
static const uint32_t heads[LAYERS] = {2, 1, 3};

/* The naive model: a sequence is the list of stamps of its rows. */
typedef struct twin {
    kv_seq *seq;
    uint32_t stamps[CTX];
    uint32_t len;
} twin;

static uint32_t next_stamp;

static void fill_row(kern_f16 *row, uint32_t stamp, uint32_t layer, uint32_t head)
{
    for (uint32_t i = 0; i < 2 * DIM; i++) row[i] = (kern_f16)(stamp * 31 + layer * 7 + head * 3 + i);
}

static bool row_is(const kern_f16 *row, uint32_t stamp, uint32_t layer, uint32_t head)
{
    kern_f16 want[2 * DIM];
    fill_row(want, stamp, layer, head);
    return !memcmp(row, want, sizeof want);
}

static bool append(twin *t, uint32_t n, spw_err *err)
{
    if (kv_seq_reserve(t->seq, n, err)) return false;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t stamp = next_stamp++, pos = t->len + i;
        for (uint32_t l = 0; l < LAYERS; l++) {
            for (uint32_t h = 0; h < heads[l]; h++) {
                fill_row(kv_row(t->seq, l, h, pos), stamp, l, h);
                uint8_t *side = kv_side(t->seq, l, h, pos);
                side[pos % KV_PAGE_ROWS] = (uint8_t)stamp;
            }
        }
        t->stamps[pos] = stamp;
    }
    kv_seq_commit(t->seq, n);
    t->len += n;
    return true;
}

static void compare(const twin *t)
{
    CHECK_INT(kv_seq_len(t->seq), t->len);
    for (uint32_t pos = 0; pos < t->len; pos++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            for (uint32_t h = 0; h < heads[l]; h++) {
                CHECK(row_is(kv_row(t->seq, l, h, pos), t->stamps[pos], l, h));
                const uint8_t *side = kv_side(t->seq, l, h, pos);
                CHECK_INT(side[pos % KV_PAGE_ROWS], (uint8_t)t->stamps[pos]);
            }
        }
    }
}

static kv_store *new_store(void)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .side_bytes = KV_PAGE_ROWS}, &err), err);
    return st;
}

/* One random operation on the set of twins; allocation failures are allowed to refuse it, never to damage it. */
static void random_operation(kv_store *st, twin *twins, int *n_twins, uint64_t *seed)
{
    spw_err err;
    uint64_t r = test_rand(seed);
    int i = *n_twins ? (int)(r / 64 % (uint64_t)*n_twins) : 0;
    twin *t = &twins[i];
    switch (*n_twins ? r % 8 : 0) {
    case 0:
        if (*n_twins == MAX_SEQS || kv_seq_create(&twins[*n_twins].seq, st, CTX, &err)) return;
        twins[(*n_twins)++].len = 0;
        return;
    case 1:
        if (*n_twins == MAX_SEQS) return;
        kv_seq *fork = NULL;
        if (kv_seq_fork(&fork, t->seq, CTX, &err)) return;
        twins[*n_twins] = *t;
        twins[(*n_twins)++].seq = fork;
        return;
    case 2:
        kv_seq_free(t->seq);
        *t = twins[--*n_twins];
        return;
    case 3:
        t->len = (uint32_t)(test_rand(seed) % (t->len + 1));
        kv_seq_truncate(t->seq, t->len);
        return;
    case 4: /* reserved and given up, as a failed step does */
        if (t->len < CTX && !kv_seq_reserve(t->seq, 1 + test_rand(seed) % (CTX - t->len), &err)) kv_seq_truncate(t->seq, t->len);
        return;
    default:
        if (t->len < CTX) append(t, 1 + (uint32_t)(test_rand(seed) % (r & 512 ? CTX - t->len : (t->len < CTX - 3 ? 3 : 1))), &err);
    }
}

static void random_run(uint64_t seed, bool failing)
{
    spw_err err;
    kv_store *st = new_store();
    static twin twins[MAX_SEQS];
    int n = 0;
    for (int step = 0; step < 300; step++) {
        if (failing) mem_fail_after((long)(test_rand(&seed) % 4), test_rand(&seed) % 2);
        random_operation(st, twins, &n, &seed);
        mem_fail_after(-1, false);
        CHECK_OK(kv_check(st, &err), err);
        if (step % 10 == 0) {
            for (int i = 0; i < n; i++) compare(&twins[i]);
        }
        if (test_bad) break;
    }
    for (int i = 0; i < n; i++) {
        compare(&twins[i]);
        kv_seq_free(twins[i].seq);
    }
    CHECK_OK(kv_check(st, &err), err);
    kv_store_free(st);
}

static void test_random(void)
{
    size_t before = mem_in_use();
    for (uint64_t seed = 1; seed <= 8; seed++) random_run(seed * 77, false);
    CHECK_INT(mem_in_use(), before);
}

static void test_random_with_failing_allocator(void)
{
    size_t before = mem_in_use();
    for (uint64_t seed = 1; seed <= 8; seed++) random_run(seed * 991, true);
    CHECK_INT(mem_in_use(), before);
}

static void test_fork_shares_until_written(void)
{
    spw_err err;
    kv_store *st = new_store();
    static twin a, b;
    a.len = 0;
    CHECK_OK(kv_seq_create(&a.seq, st, CTX, &err), err);
    append(&a, 2 * KV_PAGE_ROWS + 1, &err);
    b = a;
    CHECK_OK(kv_seq_fork(&b.seq, a.seq, CTX, &err), err);
    CHECK(kv_row(a.seq, 1, 0, 0) == kv_row(b.seq, 1, 0, 0));
    CHECK(kv_row(a.seq, 1, 0, 2 * KV_PAGE_ROWS) == kv_row(b.seq, 1, 0, 2 * KV_PAGE_ROWS));
    append(&b, 1, &err);
    CHECK(kv_row(a.seq, 1, 0, 0) == kv_row(b.seq, 1, 0, 0));
    CHECK(kv_row(a.seq, 1, 0, 2 * KV_PAGE_ROWS) != kv_row(b.seq, 1, 0, 2 * KV_PAGE_ROWS));
    append(&a, 1, &err);
    compare(&a);
    compare(&b);
    CHECK_OK(kv_check(st, &err), err);
    kv_seq_free(a.seq);
    kv_seq_free(b.seq);
    kv_store_free(st);
}

static void test_full(void)
{
    spw_err err;
    kv_store *st = new_store();
    static twin a;
    a.len = 0;
    CHECK_OK(kv_seq_create(&a.seq, st, 5, &err), err);
    CHECK(append(&a, 5, &err));
    CHECK_INT(kv_seq_reserve(a.seq, 1, &err), SPW_E_FULL);
    CHECK_HAS(err.msg, "the context holds 5");
    CHECK_OK(kv_seq_reserve(a.seq, 0, &err), err);
    CHECK_OK(kv_check(st, &err), err);
    kv_seq_free(a.seq);
    CHECK_INT(kv_seq_create(&a.seq, st, UINT64_MAX / 2, &err), SPW_E_ARG);
    kv_store_free(st);
}

static void test_spans_cover_the_rows(void)
{
    spw_err err;
    kv_store *st = new_store();
    static twin a, b;
    a.len = b.len = 0;
    CHECK_OK(kv_seq_create(&a.seq, st, CTX, &err), err);
    CHECK_OK(kv_seq_create(&b.seq, st, CTX, &err), err);
    uint64_t seed = 5;
    while (a.len < CTX) { /* two sequences that grow in turns break each other's runs of pages */
        uint32_t n = 1 + (uint32_t)(test_rand(&seed) % (KV_PAGE_ROWS + 2));
        append(&a, n < CTX - a.len ? n : CTX - a.len, &err);
        if (b.len < CTX) append(&b, 1, &err);
    }
    for (int i = 0; i < 500; i++) {
        uint64_t first = test_rand(&seed) % a.len;
        uint32_t n = (uint32_t)(test_rand(&seed) % (a.len - first + 1)), seen = 0;
        if (n > KERN_SPAN) n = KERN_SPAN;
        kern_span spans[KV_MAX_SPANS];
        size_t count = kv_spans(a.seq, 2, 1, first, n, false, spans);
        CHECK(count <= KV_MAX_SPANS);
        for (size_t s = 0; s < count; s++) {
            CHECK(spans[s].n > 0);
            for (uint32_t j = 0; j < spans[s].n; j++, seen++) CHECK((const kern_f16 *)spans[s].rows + (size_t)j * 2 * DIM == kv_row(a.seq, 2, 1, first + seen));
        }
        CHECK_INT(seen, n);
    }
    for (int i = 0; i < 200; i++) { /* ascending ranges, single positions and others, across pages too */
        spw_range ranges[20];
        kern_span spans[20 * KV_MAX_SPANS];
        size_t n_ranges = 0, count, in_range = 0, of_range = 0;
        uint32_t limit = (uint32_t)(test_rand(&seed) % 200), sum = 0, seen = 0;
        for (uint64_t at = test_rand(&seed) % 8; at < a.len && n_ranges < 20; at += ranges[n_ranges++].n + test_rand(&seed) % 8) {
            uint64_t n = test_rand(&seed) % 3 ? 1 : 1 + test_rand(&seed) % (2 * KV_PAGE_ROWS);
            if (n > KERN_SPAN) n = KERN_SPAN;
            ranges[n_ranges] = (spw_range){at, n < a.len - at ? n : a.len - at};
        }
        for (size_t r = 0; r < n_ranges && sum < limit; r++) sum += (uint32_t)ranges[r].n;
        count = kv_gather(a.seq, 2, 1, ranges, n_ranges, limit, false, spans);
        for (size_t s = 0; s < count; s++)
            for (uint32_t j = 0; j < spans[s].n; j++, seen++) {
                CHECK((const kern_f16 *)spans[s].rows + (size_t)j * 2 * DIM == kv_row(a.seq, 2, 1, ranges[of_range].first + in_range));
                if (++in_range == ranges[of_range].n) of_range++, in_range = 0;
            }
        CHECK_INT(seen, sum);
    }
    kv_seq_free(a.seq);
    kv_seq_free(b.seq);
    kv_store_free(st);
}

static size_t resident_bytes(void)
{
    unsigned long long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%llu %llu", &size, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

/* A million positions of a model with 90 heads are 45 GB of address space; rows alone cost memory. */
static void test_memory_grows_with_use(void)
{
    spw_err err;
    enum { BIG_LAYERS = 30 };
    uint32_t three[BIG_LAYERS];
    for (int i = 0; i < BIG_LAYERS; i++) three[i] = 3;
    kv_store *st = NULL;
    kv_seq *s = NULL;
    size_t before = resident_bytes(), tables = (2u << 20) + (size_t)(1 << 20) / KV_PAGE_ROWS * 16;
    CHECK_OK(kv_store_create(&st, &(kv_config){.n_layer = BIG_LAYERS, .n_head_kv = three, .dim = 64}, &err), err);
    CHECK_OK(kv_seq_create(&s, st, 1 << 20, &err), err);
    CHECK(resident_bytes() - before < tables);
    CHECK_OK(kv_seq_reserve(s, 256, &err), err);
    for (uint32_t l = 0; l < BIG_LAYERS; l++) {
        for (uint32_t h = 0; h < 3; h++) {
            for (uint32_t p = 0; p < 256; p++) memset(kv_row(s, l, h, p), 1, 256);
        }
    }
    size_t used = resident_bytes() - before, rows = 256 * 90 * 256;
    CHECK(used >= rows && used < rows + 2 * tables);
    kv_seq_free(s);
    CHECK(resident_bytes() - before < tables);
    kv_store_free(st);
}

/* The system's placement policy of the page at an address; -1 when it will not say. */
static int placement_of(const void *addr)
{
    enum { AT_ADDRESS = 2 };
    unsigned long mask[16] = {0};
    int mode;
    return syscall(SYS_get_mempolicy, &mode, mask, 8 * sizeof mask, addr, AT_ADDRESS) ? -1 : mode;
}

/* Two made-up nodes that are both the first one: what was asked for can be seen, on any machine whose system knows nodes. */
static void test_heads_are_placed(void)
{
    enum { PREFERRED = 1 };
    static numa_topology twice = {.n_nodes = 2, .nodes = {{.n_cpus = 1}, {.n_cpus = 1}}};
    spw_err err;
    for (int with = 0; with < 2; with++) {
        kv_store *st = NULL;
        kv_seq *s = NULL;
        CHECK_OK(kv_store_create(&st, &(kv_config){.n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .side_bytes = 4096, .numa = with ? &twice : NULL}, &err), err);
        CHECK_OK(kv_seq_create(&s, st, CTX, &err), err);
        CHECK_OK(kv_seq_reserve(s, 1, &err), err);
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t h = 0; h < heads[l]; h++) CHECK_INT(placement_of(kv_row(s, l, h, 0)) == PREFERRED, with);
        CHECK_INT(placement_of(kv_side(s, 0, 0, 0)) == PREFERRED, with);
        kv_seq_free(s);
        kv_store_free(st);
    }
}

int main(void)
{
    RUN(test_random);
    RUN(test_random_with_failing_allocator);
    RUN(test_fork_shares_until_written);
    RUN(test_full);
    RUN(test_spans_cover_the_rows);
    if (placement_of(heads) < 0) SKIP("test_heads_are_placed", "this system does not tell where it puts pages");
    else RUN(test_heads_are_placed);
    if (test_is_emulated()) SKIP("test_memory_grows_with_use", "the emulator's own memory is counted with the test's");
    else RUN(test_memory_grows_with_use);
    return test_done();
}
