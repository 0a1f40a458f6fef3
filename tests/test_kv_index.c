/* test_kv_index.c - the codes that a KV store keeps of full pages: those of a fresh computation from the page's rows, whatever the type, the number of planes, the passes, forks,
 * truncations and failed steps; found when they are not.  Built twice: with the product's pages, and with pages of 4 positions (make stress). */
#include "kern.h"
#include "kv.h"
#include "mem.h"
#include "pool.h"
#include "test.h"

enum { LAYERS = 2, ARENAS = 3, DIM = 48, MAX_SEQS = 6, CTX = 5 * KV_PAGE_ROWS + 3, ROOM = 40 };
static const uint32_t heads[LAYERS] = {2, 1};
static const struct {
    uint32_t layer, head;
} arenas[ARENAS] = {{0, 0}, {0, 1}, {1, 0}};

static const kern_table *kern;
static spw_pool *pool;
static float *scratch[2]; /* of the pool's workers, for the store in use */

static kv_store *new_store(kv_type type, unsigned planes)
{
    spw_err err = {0};
    kv_store *st = NULL;
    kv_config config = {.type = type, .n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .index_planes = planes, .side_bytes = ROOM, .kern = kern};
    CHECK_OK(kv_store_create(&st, &config, &err), err);
    for (int i = 0; i < 2; i++) scratch[i] = mem_alloc(kv_complete_scratch(st) * sizeof(float));
    return st;
}

static void free_store(kv_store *st)
{
    kv_store_free(st);
    for (int i = 0; i < 2; i++) mem_free(scratch[i]);
}

static kv_seq *new_seq(kv_store *st)
{
    spw_err err = {0};
    kv_seq *s = NULL;
    CHECK_OK(kv_seq_create(&s, st, CTX, &err), err);
    return s;
}

/* A row is a function of its stamp and arena: what all keys have in common, some channels of it large, and noise. */
static float value_of(uint64_t stamp, uint32_t arena, uint32_t d)
{
    uint64_t seed = stamp * 1000 + arena * 100 + d + 1;
    float noise = (float)(test_rand(&seed) % 2001) / 1000 - 1;
    return noise + (d % 7 ? 0.25f : 20.0f) * (float)(arena + 1) + (stamp % 50 ? 0 : 3 * noise);
}

/* A pass over rows that have been opened, one arena an item. */
typedef struct pass {
    kv_seq *seq;
    kv_type type;
    uint64_t first, end, stamp; /* positions; stamp of the first */
} pass;

static void write_arena(void *ctx, size_t item, int worker)
{
    const pass *p = ctx;
    for (uint64_t pos = p->first; pos < p->end; pos++) {
        void *row = kv_row(p->seq, arenas[item].layer, arenas[item].head, pos);
        for (uint32_t d = 0; d < 2 * DIM; d++) {
            float v = value_of(p->stamp + pos - p->first, (uint32_t)item, d);
            if (p->type == KV_F32) ((float *)row)[d] = v;
            else ((kern_f16 *)row)[d] = kern_f32_to_f16(v);
        }
        *(uint8_t *)kv_side(p->seq, arenas[item].layer, arenas[item].head, pos) = (uint8_t)(p->stamp >> 3);
        ((uint8_t *)kv_side(p->seq, arenas[item].layer, arenas[item].head, pos))[ROOM - 1] = 77;
    }
    kv_complete(p->seq, arenas[item].layer, arenas[item].head, scratch[worker]);
}

/* A step of n positions whose rows have stamps from stamp on, in passes of at most most; given up before its commit when fail is set.  False when nothing has changed. */
static bool append(kv_seq *s, kv_type type, uint64_t n, uint64_t most, bool fail, uint64_t stamp, spw_err *err)
{
    uint64_t len = kv_seq_len(s);
    spw_status status = kv_seq_reserve(s, n, err);
    for (uint64_t done = 0, now; done < n && !status; done += now) {
        now = most < n - done ? most : n - done;
        status = kv_seq_open(s, now, err);
        pass p = {s, type, len + done, len + done + now, stamp + done};
        if (!status && now > 8) pool_run(pool, ARENAS, write_arena, &p);
        for (size_t a = 0; a < ARENAS && !status && now <= 8; a++) write_arena(&p, a, 0);
    }
    if (fail || status) kv_seq_truncate(s, len);
    else kv_seq_commit(s, n);
    return !fail && !status;
}

static const uint8_t *code_of(const kv_seq *s, uint32_t arena, uint64_t page)
{
    return kv_code(s, arenas[arena].layer, arenas[arena].head, page);
}

/* Every full page's code and mean are those of the values that can be read of its rows. */
static void compare(const kv_seq *s, unsigned planes)
{
    static float rows[KV_PAGE_ROWS][2 * DIM];
    size_t front = kern_index_bytes(KV_PAGE_ROWS, DIM, 1), bytes = kern_index_bytes(KV_PAGE_ROWS, DIM, planes);
    uint8_t *want = mem_alloc(bytes);
    for (uint64_t page = 0; page < kv_seq_len(s) / KV_PAGE_ROWS; page++) {
        for (uint32_t a = 0; a < ARENAS; a++) {
            for (uint32_t i = 0; i < KV_PAGE_ROWS; i++) kv_read_row(s, arenas[a].layer, arenas[a].head, page * KV_PAGE_ROWS + i, rows[i]);
            kern->index_code(rows[0], 2 * DIM, KV_PAGE_ROWS, DIM, planes, want);
            const uint8_t *code = code_of(s, a, page);
            CHECK((uintptr_t)code % MEM_ALIGN == 0 && !memcmp(code, want, front));
            if (planes > 1) CHECK(!memcmp(kv_code_outer(s, arenas[a].layer, arenas[a].head, page), want + front, bytes - front));
            kern_f16 mean[DIM];
            kern_get("ref")->index_mean(rows[0] + DIM, 2 * DIM, KV_PAGE_ROWS, DIM, mean);
            CHECK(!memcmp(kv_value_mean(s, arenas[a].layer, arenas[a].head, page), mean, sizeof mean));
            CHECK_INT(((const uint8_t *)kv_side(s, arenas[a].layer, arenas[a].head, page * KV_PAGE_ROWS))[ROOM - 1], 77);
        }
    }
    mem_free(want);
}

/* What is listed for many pages is what is found for each. */
static void compare_lists(const kv_seq *s, unsigned planes)
{
    const void *codes[CTX / KV_PAGE_ROWS], *outer[CTX / KV_PAGE_ROWS];
    const kern_f16 *means[CTX / KV_PAGE_ROWS];
    const uint64_t n_pages = kv_seq_len(s) / KV_PAGE_ROWS;
    for (uint64_t first = 0; first < n_pages; first++) {
        for (uint32_t a = 0; a < ARENAS; a++) {
            const uint32_t layer = arenas[a].layer, head = arenas[a].head;
            const size_t n = (size_t)(n_pages - first);
            kv_codes(s, layer, head, first, n, codes, outer);
            kv_value_means(s, layer, head, first, n, means);
            for (size_t i = 0; i < n; i++) {
                CHECK(codes[i] == kv_code(s, layer, head, first + i) && means[i] == kv_value_mean(s, layer, head, first + i));
                CHECK(outer[i] == (planes > 1 ? kv_code_outer(s, layer, head, first + i) : NULL));
            }
        }
    }
}

static const kv_type types[] = {KV_F16, KV_F32, KV_Q8};

static void random_operation(kv_store *st, kv_type type, kv_seq **seqs, int *n, uint64_t *seed)
{
    spw_err err = {0};
    uint64_t r = test_rand(seed);
    int i = *n ? (int)(r / 64 % (uint64_t)*n) : 0;
    uint64_t len = *n ? kv_seq_len(seqs[i]) : 0;
    switch (*n ? r % 8 : 0) {
    case 0:
        if (*n < MAX_SEQS && !kv_seq_create(&seqs[*n], st, CTX, &err)) ++*n;
        return;
    case 1:
        if (*n < MAX_SEQS && !kv_seq_fork(&seqs[*n], seqs[i], CTX, &err)) ++*n;
        return;
    case 2:
        kv_seq_free(seqs[i]);
        seqs[i] = seqs[--*n];
        return;
    case 3:
        kv_seq_truncate(seqs[i], test_rand(seed) % (len + 1));
        return;
    default:
        if (len == CTX) return;
        uint64_t count = 1 + test_rand(seed) % (r & 512 ? CTX - len : len < CTX - 3 ? 3 : 1);
        append(seqs[i], type, count, 1 + test_rand(seed) % count, r % 8 == 4, test_rand(seed), &err);
    }
}

static void random_run(uint64_t seed, kv_type type, unsigned planes, bool failing)
{
    spw_err err = {0};
    kv_store *st = new_store(type, planes);
    kv_seq *seqs[MAX_SEQS];
    int n = 0;
    for (int step = 0; step < 80 && !test_bad; step++) {
        if (failing) mem_fail_after((long)(test_rand(&seed) % 4), test_rand(&seed) % 2);
        random_operation(st, type, seqs, &n, &seed);
        mem_fail_after(-1, false);
        CHECK_OK(kv_check(st, &err), err);
        if (step % 10 == 9) {
            for (int i = 0; i < n; i++) compare(seqs[i], planes), compare_lists(seqs[i], planes);
        }
    }
    for (int i = 0; i < n; i++) {
        compare(seqs[i], planes);
        kv_seq_free(seqs[i]);
    }
    CHECK_OK(kv_check(st, &err), err);
    free_store(st);
}

static void test_random(void)
{
    size_t before = mem_in_use();
    for (int t = 0; t < 3; t++)
        for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) random_run(77 * planes + (uint64_t)t, types[t], planes, false);
    CHECK_INT(mem_in_use(), before);
}

static void test_random_with_failing_allocator(void)
{
    size_t before = mem_in_use();
    for (int t = 0; t < 3; t++)
        for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) random_run(991 * planes + (uint64_t)t, types[t], planes, true);
    CHECK_INT(mem_in_use(), before);
}

/* The same rows in passes of any size, in a session of its own or as a fork that goes on: the same codes. */
static void test_passes(void)
{
    spw_err err = {0};
    static const uint64_t sizes[] = {CTX, 1, 3, KV_PAGE_ROWS, KV_PAGE_ROWS + 1, 2 * KV_PAGE_ROWS - 1};
    for (int t = 0; t < 3; t++) {
        for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) {
            kv_store *st = new_store(types[t], planes);
            size_t bytes = kern_index_bytes(KV_PAGE_ROWS, DIM, 1);
            kv_seq *all = new_seq(st), *half = new_seq(st);
            CHECK(append(all, types[t], CTX, CTX, false, 5, &err));
            CHECK(append(half, types[t], KV_PAGE_ROWS * 3 / 2, 2, false, 5, &err));
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                kv_seq *s = NULL;
                CHECK_OK(i % 2 ? kv_seq_fork(&s, half, CTX, &err) : kv_seq_create(&s, st, CTX, &err), err);
                uint64_t len = kv_seq_len(s);
                CHECK(append(s, types[t], CTX - len, sizes[i], false, 5 + len, &err));
                for (uint64_t page = 0; page < CTX / KV_PAGE_ROWS; page++)
                    for (uint32_t a = 0; a < ARENAS; a++) CHECK(!memcmp(code_of(s, a, page), code_of(all, a, page), bytes));
                kv_seq_free(s);
            }
            CHECK(memcmp(code_of(all, 0, 0), code_of(all, 0, 1), bytes));
            CHECK(memcmp(code_of(all, 0, 0), code_of(all, 1, 0), bytes));
            kv_seq_free(all);
            kv_seq_free(half);
            free_store(st);
        }
    }
}

/* A fork shares codes with pages; who changes a page makes a code of its own, and the other's stays. */
static void test_forks_share_codes(void)
{
    spw_err err = {0};
    for (int t = 0; t < 3; t++) {
        kv_store *st = new_store(types[t], 2);
        size_t bytes = kern_index_bytes(KV_PAGE_ROWS, DIM, 1);
        kv_seq *a = new_seq(st), *b = NULL;
        CHECK(append(a, types[t], 3 * KV_PAGE_ROWS, CTX, false, 1, &err));
        CHECK_OK(kv_seq_fork(&b, a, CTX, &err), err);
        uint8_t *kept = mem_alloc(bytes);
        for (uint64_t page = 0; page < 3; page++) CHECK(code_of(a, 2, page) == code_of(b, 2, page));
        memcpy(kept, code_of(a, 2, 1), bytes);
        kv_seq_truncate(b, KV_PAGE_ROWS + 2);
        CHECK_OK(kv_check(st, &err), err);
        CHECK(append(b, types[t], KV_PAGE_ROWS, 3, true, 1000, &err) == false);
        CHECK_OK(kv_check(st, &err), err);
        CHECK(append(b, types[t], KV_PAGE_ROWS, 3, false, 1000, &err));
        CHECK(code_of(a, 2, 0) == code_of(b, 2, 0));
        CHECK(code_of(a, 2, 1) != code_of(b, 2, 1) && memcmp(code_of(a, 2, 1), code_of(b, 2, 1), bytes));
        CHECK(!memcmp(kept, code_of(a, 2, 1), bytes));
        compare(a, 2);
        compare(b, 2);
        kv_seq_truncate(a, KV_PAGE_ROWS + 2); /* the page is this sequence's alone now, and is written where it lies */
        CHECK(append(a, types[t], KV_PAGE_ROWS, 1, false, 2000, &err));
        CHECK(memcmp(kept, code_of(a, 2, 1), bytes));
        compare(a, 2);
        CHECK_OK(kv_check(st, &err), err);
        mem_free(kept);
        kv_seq_free(a);
        kv_seq_free(b);
        free_store(st);
    }
}

static void expect_bad(const kv_store *st, const char *where)
{
    spw_err err = {0};
    CHECK_INT(kv_check(st, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "invariant 7");
    CHECK_HAS(err.msg, where);
}

/* Any byte of a code or mean, and the rows under them. */
static void test_damage_is_found(void)
{
    spw_err err = {0};
    for (int t = 0; t < 3; t++) {
        for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) {
            kv_store *st = new_store(types[t], planes);
            kv_seq *s = new_seq(st);
            CHECK(append(s, types[t], 2 * KV_PAGE_ROWS + 1, CTX, false, 9, &err));
            CHECK_OK(kv_check(st, &err), err);
            for (size_t i = 0; i < kern_index_bytes(KV_PAGE_ROWS, DIM, planes); i += i % 64 == 63 ? 130 : 9) {
                size_t front = kern_index_bytes(KV_PAGE_ROWS, DIM, 1);
                uint8_t *code = (uint8_t *)(uintptr_t)code_of(s, 1, 1);
                if (i >= front) code = (uint8_t *)(uintptr_t)kv_code_outer(s, arenas[1].layer, arenas[1].head, 1) - front;
                code[i] ^= 16;
                expect_bad(st, "layer 0, head 1");
                code[i] ^= 16;
            }
            for (size_t i = 0; i < DIM; i += 5) {
                kern_f16 *mean = (kern_f16 *)(uintptr_t)kv_value_mean(s, 1, 0, 1);
                mean[i] ^= 1;
                expect_bad(st, "layer 1, head 0");
                mean[i] ^= 1;
            }
            kern_span span[KV_MAX_SPANS];
            kv_spans(s, 1, 0, 2, 1, types[t] == KV_Q8, span);
            uint8_t *key = (uint8_t *)(uintptr_t)span[0].rows;
            for (size_t i = 0; i < 4; i++) key[i] ^= 0x55;
            expect_bad(st, "layer 1, head 0");
            for (size_t i = 0; i < 4; i++) key[i] ^= 0x55;
            uint8_t *value = key + DIM * (types[t] == KV_F32 ? 4 : types[t] == KV_F16 ? 2 : 1);
            value[types[t] == KV_F32 ? 2 : 1] ^= 0x70;
            expect_bad(st, "mean of V");
            value[types[t] == KV_F32 ? 2 : 1] ^= 0x70;
            CHECK_OK(kv_check(st, &err), err);
            long needed = types[t] == KV_F32 ? 3 : 4; /* counts, and what the check of codes works with */
            for (long n = 0; n <= needed; n++) {
                mem_fail_after(n, false);
                spw_status status = kv_check(st, &err);
                mem_fail_after(-1, false);
                CHECK_INT(status, n < needed ? SPW_E_NOMEM : SPW_OK);
            }
            kv_seq_free(s);
            free_store(st);
        }
    }
}

static void test_bytes(void)
{
    spw_err err = {0};
    for (int t = 0; t < 3; t++) {
        kv_store *none = new_store(types[t], 0);
        uint64_t without = kv_bytes_per_page(none);
        CHECK_INT(kv_index_planes(none), 0);
        CHECK_INT(kv_index_bytes_per_page(none), 0);
        CHECK_INT(kv_complete_scratch(none), 0);
        kv_seq *s = new_seq(none);
        CHECK(append(s, types[t], KV_PAGE_ROWS, CTX, false, 1, &err));
        CHECK(!kv_code(s, 0, 0, 0) && !kv_value_mean(s, 0, 0, 0));
        kv_seq_free(s);
        free_store(none);
        for (unsigned planes = 1; planes <= KERN_INDEX_PLANES; planes++) {
            kv_store *st = new_store(types[t], planes);
            uint64_t code = kern_index_bytes(KV_PAGE_ROWS, DIM, planes), mean = (DIM * sizeof(kern_f16) + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
            CHECK_INT(kv_index_planes(st), planes);
            CHECK_INT(kv_index_bytes_per_page(st), ARENAS * (code + mean));
            CHECK_INT(kv_bytes_per_page(st), without + ARENAS * (code + mean));
            CHECK_INT(kv_pos_bytes(types[t], DIM, planes) - kv_pos_bytes(types[t], DIM, 0), (code + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS + (mean + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS);
            free_store(st);
        }
    }
}

int main(void)
{
    spw_err err = {0};
    CHECK_OK(kern_select(&kern, &err), err);
    CHECK_OK(pool_create(&pool, 2, &err), err);
    RUN(test_random);
    RUN(test_random_with_failing_allocator);
    RUN(test_passes);
    RUN(test_forks_share_codes);
    RUN(test_damage_is_found);
    RUN(test_bytes);
    pool_free(pool);
    return test_done();
}
