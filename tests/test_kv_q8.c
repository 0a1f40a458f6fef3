/* test_kv_q8.c - a KV store of bytes against a naive model: random appends in random passes, forks, truncations, failed steps and frees; every row of every page is compared, sealed or
 * not.  Built twice: with the product's pages, and with pages of 4 positions (make stress). */
#include "kv.h"
#include "mem.h"
#include "test.h"

enum { LAYERS = 2, ARENAS = 3, DIM = 16, MAX_SEQS = 8, CTX = 5 * KV_PAGE_ROWS + 3 };
static const uint32_t heads[LAYERS] = {2, 1};
static const struct {
    uint32_t layer, head;
} arenas[ARENAS] = {{0, 0}, {0, 1}, {1, 0}};

/* The naive model: the halves of every position, whether or not its page is sealed. */
typedef struct twin {
    kv_seq *seq;
    uint32_t len;
    kern_f16 rows[CTX][ARENAS][2 * DIM];
} twin;

static const kern_table *ref;

/* One page of one arena as the reference seals it. */
typedef struct sealed {
    int8_t bytes[KV_PAGE_ROWS][2 * DIM];
    float k_scale[DIM], v_scale[KV_PAGE_ROWS];
} sealed;

static void seal_page(const twin *t, uint32_t page, uint32_t arena, sealed *out)
{
    static kern_f16 rows[KV_PAGE_ROWS][2 * DIM];
    for (uint32_t i = 0; i < KV_PAGE_ROWS; i++) memcpy(rows[i], t->rows[page * KV_PAGE_ROWS + i][arena], sizeof rows[i]);
    ref->quantise_q8(rows[0], KV_PAGE_ROWS, DIM, out->bytes[0], out->k_scale, out->v_scale);
}

static float sealed_value(const sealed *p, uint32_t row, uint32_t d)
{
    return (float)p->bytes[row][d] * (d < DIM ? p->k_scale[d] : p->v_scale[row]);
}

static void make_row(kern_f16 *row, uint64_t *seed)
{
    for (uint32_t d = 0; d < 2 * DIM; d++) {
        uint64_t r = test_rand(seed);
        row[d] = d == 3 ? 0 : kern_f32_to_f16(((float)(r % 2001) - 1000) * (r % 64 ? 1e-3f : 0.5f));
    }
}

/* Positions first .. end - 1 of all arenas as one pass of a step writes and seals them, and what rows of the pass see of each other. */
static void write_pass(twin *t, uint32_t first, uint32_t end, uint64_t *seed)
{
    for (uint32_t pos = first; pos < end; pos++) {
        for (uint32_t a = 0; a < ARENAS; a++) {
            make_row(t->rows[pos][a], seed);
            memcpy(kv_row(t->seq, arenas[a].layer, arenas[a].head, pos), t->rows[pos][a], sizeof t->rows[pos][a]);
        }
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t h = 0; h < heads[l]; h++) kv_complete(t->seq, l, h, NULL);
    for (uint32_t pos = first; pos < end; pos++) {
        kern_span span[KV_MAX_SPANS];
        uint64_t border = kv_border(t->seq, pos);
        CHECK_INT(border, pos / KV_PAGE_ROWS * KV_PAGE_ROWS);
        for (uint32_t a = 0; a < ARENAS; a++) {
            uint32_t n = (uint32_t)(pos + 1 - border);
            CHECK_INT(kv_spans(t->seq, arenas[a].layer, arenas[a].head, border, n, false, span), 1);
            CHECK_INT(span[0].n, n);
            CHECK(!span[0].k_scale && !span[0].v_scale);
            for (uint32_t i = 0; i < n; i++) CHECK(!memcmp((const kern_f16 *)span[0].rows + i * 2 * DIM, t->rows[border + i][a], sizeof t->rows[0][0]) || test_bad > 10);
        }
    }
}

/* A step of n positions in passes of at most most; false when memory ran short, and then nothing has changed.  fail: the step is given up before its last pass is committed. */
static bool append(twin *t, uint32_t n, uint32_t most, bool fail, uint64_t *seed, spw_err *err)
{
    static twin before;
    if (kv_seq_reserve(t->seq, n, err)) return false;
    memcpy(&before, t, sizeof before);
    spw_status status = SPW_OK;
    for (uint32_t done = 0, pass; done < n && !status; done += pass) {
        pass = 1 + (uint32_t)(test_rand(seed) % most);
        if (pass > n - done) pass = n - done;
        status = kv_seq_open(t->seq, pass, err);
        if (!status) write_pass(t, t->len + done, t->len + done + pass, seed);
    }
    if (fail || status) {
        kv_seq_truncate(t->seq, t->len);
        memcpy(t, &before, sizeof before);
        return false;
    }
    kv_seq_commit(t->seq, n);
    t->len += n;
    return true;
}

static void truncate(twin *t, uint32_t len)
{
    uint32_t page = len / KV_PAGE_ROWS;
    if (page < t->len / KV_PAGE_ROWS) {
        for (uint32_t a = 0; a < ARENAS; a++) {
            sealed p;
            seal_page(t, page, a, &p);
            for (uint32_t i = 0; i < len % KV_PAGE_ROWS; i++)
                for (uint32_t d = 0; d < 2 * DIM; d++) t->rows[page * KV_PAGE_ROWS + i][a][d] = kern_f32_to_f16(sealed_value(&p, i, d));
        }
    }
    kv_seq_truncate(t->seq, len);
    t->len = len;
}

static void compare_sealed(const twin *t, uint32_t page, uint32_t a)
{
    sealed p;
    kern_span span[KV_MAX_SPANS];
    float values[2 * DIM];
    seal_page(t, page, a, &p);
    CHECK_INT(kv_spans(t->seq, arenas[a].layer, arenas[a].head, page * KV_PAGE_ROWS, KV_PAGE_ROWS, true, span), 1);
    CHECK(span[0].n == KV_PAGE_ROWS && !memcmp(span[0].rows, p.bytes, sizeof p.bytes));
    CHECK(!memcmp(span[0].k_scale, p.k_scale, sizeof p.k_scale));
    CHECK(!memcmp(span[0].v_scale, p.v_scale, sizeof p.v_scale));
    for (uint32_t i = 0; i < KV_PAGE_ROWS; i++) {
        kv_read_row(t->seq, arenas[a].layer, arenas[a].head, page * KV_PAGE_ROWS + i, values);
        for (uint32_t d = 0; d < 2 * DIM; d++) CHECK(values[d] == sealed_value(&p, i, d) || test_bad > 10);
    }
}

static void compare(const twin *t)
{
    float values[2 * DIM];
    CHECK_INT(kv_seq_len(t->seq), t->len);
    for (uint32_t a = 0; a < ARENAS; a++) {
        for (uint32_t page = 0; page < t->len / KV_PAGE_ROWS; page++) compare_sealed(t, page, a);
        for (uint32_t pos = t->len / KV_PAGE_ROWS * KV_PAGE_ROWS; pos < t->len; pos++) {
            CHECK(!memcmp(kv_row(t->seq, arenas[a].layer, arenas[a].head, pos), t->rows[pos][a], sizeof t->rows[pos][a]) || test_bad > 10);
            kv_read_row(t->seq, arenas[a].layer, arenas[a].head, pos, values);
            for (uint32_t d = 0; d < 2 * DIM; d++) CHECK(values[d] == kern_f16_to_f32(t->rows[pos][a][d]) || test_bad > 10);
        }
    }
}

static kv_store *new_store(size_t side_bytes)
{
    spw_err err;
    kv_store *st = NULL;
    CHECK_OK(kv_store_create(&st, &(kv_config){.type = KV_Q8, .n_layer = LAYERS, .n_head_kv = heads, .dim = DIM, .side_bytes = side_bytes, .kern = ref}, &err), err);
    return st;
}

static void random_operation(kv_store *st, twin *twins, int *n_twins, uint64_t *seed)
{
    spw_err err = {0};
    uint64_t r = test_rand(seed);
    twin *t = &twins[*n_twins ? (int)(r / 64 % (uint64_t)*n_twins) : 0];
    kv_seq *made = NULL;
    switch (*n_twins ? r % 8 : 0) {
    case 0:
        if (*n_twins == MAX_SEQS || kv_seq_create(&made, st, CTX, &err)) return;
        twins[*n_twins].seq = made;
        twins[(*n_twins)++].len = 0;
        return;
    case 1:
        if (*n_twins == MAX_SEQS || kv_seq_fork(&made, t->seq, CTX, &err)) return;
        memcpy(&twins[*n_twins], t, sizeof *t);
        twins[(*n_twins)++].seq = made;
        return;
    case 2:
        kv_seq_free(t->seq);
        if (t != &twins[--*n_twins]) memcpy(t, &twins[*n_twins], sizeof *t);
        return;
    case 3:
        truncate(t, (uint32_t)(test_rand(seed) % (t->len + 1)));
        return;
    default:
        if (t->len == CTX) return;
        uint32_t n = 1 + (uint32_t)(test_rand(seed) % (r & 512 ? CTX - t->len : (t->len < CTX - 3 ? 3 : 1)));
        append(t, n, r & 1024 ? n : 1 + KV_PAGE_ROWS * 3 / 2, r % 8 == 4, seed, &err);
    }
}

static void random_run(uint64_t seed, bool failing)
{
    spw_err err;
    kv_store *st = new_store(failing ? 0 : 48);
    static twin twins[MAX_SEQS];
    int n = 0;
    for (int step = 0; step < 200; step++) {
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
    for (uint64_t seed = 1; seed <= 6; seed++) random_run(seed * 77, false);
    CHECK_INT(mem_in_use(), before);
}

static void test_random_with_failing_allocator(void)
{
    size_t before = mem_in_use();
    for (uint64_t seed = 1; seed <= 6; seed++) random_run(seed * 991, true);
    CHECK_INT(mem_in_use(), before);
}

/* A step that runs out of memory in its second pass leaves the rows of its first page as they were. */
static void test_failed_step(void)
{
    spw_err err = {0};
    uint64_t seed = 4;
    kv_store *st = new_store(0);
    static twin t, before;
    t.len = 0;
    CHECK_OK(kv_seq_create(&t.seq, st, CTX, &err), err);
    CHECK(append(&t, KV_PAGE_ROWS + 2, CTX, false, &seed, &err));
    memcpy(&before, &t, sizeof t);
    CHECK_OK(kv_seq_reserve(t.seq, 3 * KV_PAGE_ROWS, &err), err);
    CHECK_OK(kv_seq_open(t.seq, KV_PAGE_ROWS - 2, &err), err); /* in the tail */
    write_pass(&t, t.len, t.len + KV_PAGE_ROWS - 2, &seed);
    mem_fail_after(0, true);
    CHECK_INT(kv_seq_open(t.seq, KV_PAGE_ROWS, &err), SPW_E_NOMEM);
    mem_fail_after(-1, false);
    CHECK_OK(kv_check(st, &err), err);
    kv_seq_truncate(t.seq, t.len);
    compare(&before);
    CHECK(append(&t, 2 * KV_PAGE_ROWS, CTX, false, &seed, &err));
    compare(&t);
    kv_seq_free(t.seq);
    kv_store_free(st);
}

/* However long the reservation, halves are kept for one pass; a fork has its own. */
static void test_open_rows_are_few(void)
{
    spw_err err = {0};
    uint64_t seed = 9;
    kv_store *st = new_store(0);
    static twin a, b;
    a.len = 0;
    const uint64_t page = kv_bytes_per_page(st), halves = 2ull * 2 * DIM * ARENAS * KV_PAGE_ROWS;
    CHECK(page >= halves / 2 && kv_pos_bytes(KV_Q8, DIM, 0) * ARENAS * KV_PAGE_ROWS >= page - 64 * ARENAS);
    CHECK_OK(kv_seq_create(&a.seq, st, CTX, &err), err);
    CHECK_OK(kv_seq_reserve(a.seq, CTX, &err), err);
    for (uint32_t pos = 0; pos < CTX; pos += KV_PAGE_ROWS) {
        uint32_t n = CTX - pos < KV_PAGE_ROWS ? CTX - pos : KV_PAGE_ROWS;
        CHECK_OK(kv_seq_open(a.seq, n, &err), err);
        write_pass(&a, pos, pos + n, &seed);
        CHECK(kv_seq_bytes(a.seq) <= 5 * page + 3 * halves);
        CHECK_OK(kv_check(st, &err), err);
    }
    kv_seq_commit(a.seq, CTX);
    a.len = CTX;
    compare(&a);
    CHECK_INT(kv_seq_bytes(a.seq), 5 * page + halves);
    memcpy(&b, &a, sizeof a);
    CHECK_OK(kv_seq_fork(&b.seq, a.seq, CTX, &err), err);
    CHECK(kv_row(a.seq, 0, 0, CTX - 1) != kv_row(b.seq, 0, 0, CTX - 1));
    truncate(&a, KV_PAGE_ROWS + 2);
    CHECK(append(&a, KV_PAGE_ROWS, CTX, false, &seed, &err)); /* seals a page again that b still has as it was */
    compare(&a);
    compare(&b);
    kv_seq_free(a.seq);
    kv_seq_free(b.seq);
    kv_store_free(st);
}

int main(void)
{
    ref = kern_get("ref");
    RUN(test_random);
    RUN(test_random_with_failing_allocator);
    RUN(test_failed_step);
    RUN(test_open_rows_are_few);
    return test_done();
}
