/* test_engine_fill.c - spw_session_fill: how many positions, rows that are all different and look like the model's, the same bits for the same seed however it is
 * cut and whoever computes it, and a session that goes on working afterwards. */
#include "engine_private.h"
#include "mem.h"
#include "test.h"

enum { N_CTX = 3000 };

static const char *const models[] = {"tiny-llama3", "tiny-yarn", "tiny-qwen2", "tiny-qwen3"};
enum { N_MODELS = sizeof models / sizeof models[0] };

static spw_engine *open_model(const char *name, int threads, spw_kv_type type)
{
    char path[200];
    spw_err err = {0};
    const char *dir = getenv("SPILLWAY_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s.gguf", dir ? dir : "tests/data", name);
    spw_engine *e = NULL;
    CHECK_OK(spw_engine_open(&e, path, &(spw_engine_params){.n_threads = threads, .kv_type = type}, &err), err);
    if (!e) exit(1);
    return e;
}

static spw_session *new_session(spw_engine *e, const char *policy_name)
{
    spw_err err = {0};
    spw_session *s = NULL;
    spw_session_params p = spw_session_default_params();
    p.kv_policy = policy_name;
    p.n_ctx = N_CTX;
    CHECK_OK(spw_session_create(&s, e, &p, &err), err);
    return s;
}

/* Hash of the values of all rows of positions from .. to - 1. */
static uint64_t hash_rows(const spw_session *s, uint64_t from, uint64_t to)
{
    const model_hparams *hp = &s->engine->model->hp;
    uint64_t hash = 0;
    float row[2 * KERN_Q8_DIM];
    for (uint32_t l = 0; l < hp->n_layer; l++)
        for (uint32_t h = 0; h < hp->layer_kv[l].n_head_kv; h++)
            for (uint64_t p = from; p < to; p++) kv_read_row(s->seq, l, h, p, row), hash = spw_hash(hash, row, 2 * s->engine->dim * sizeof *row);
    return hash;
}

static void test_positions_and_bits(void)
{
    spw_err err = {0};
    for (int m = 0; m < N_MODELS; m++) {
        uint64_t want[3] = {0}; /* by type of store */
        for (int threads = 1; threads <= 3; threads++) {
            for (int type = 0; type < 3; type++) {
                spw_engine *e = open_model(models[m], threads, (spw_kv_type)type);
                spw_session *a = new_session(e, "full"), *b = new_session(e, "full"), *c = new_session(e, "full");
                CHECK_OK(spw_session_fill(a, 1500, 7, &err), err);
                CHECK_INT(spw_session_pos(a), 1500);
                CHECK(!spw_session_logits(a));
                CHECK_OK(spw_session_fill(b, 1, 7, &err), err);
                CHECK_OK(spw_session_fill(b, 0, 7, &err), err);
                CHECK_OK(spw_session_fill(b, 1000, 7, &err), err);
                CHECK_OK(spw_session_fill(b, 499, 7, &err), err);
                CHECK_OK(spw_session_fill(c, 1500, 8, &err), err);
                uint64_t hash = hash_rows(a, 0, 1500);
                if (threads == 1) want[type] = hash;
                CHECK(hash == want[type]);
                CHECK(hash == hash_rows(b, 0, 1500));
                CHECK(hash != hash_rows(c, 0, 1500));
                CHECK_OK(spw_engine_check(e, &err), err);
                spw_session_free(a);
                spw_session_free(b);
                spw_session_free(c);
                spw_engine_close(e);
            }
        }
    }
}

static int compare_hashes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* No two rows are equal, in any layer, head or position. */
static void check_distinct(spw_kv_type type)
{
    spw_err err = {0};
    spw_engine *e = open_model("tiny-qwen3", 2, type);
    spw_session *s = new_session(e, "full");
    CHECK_OK(spw_session_fill(s, N_CTX, 1, &err), err);
    const model_hparams *hp = &e->model->hp;
    size_t n = 0, cap = (size_t)hp->n_layer * hp->n_head_kv * N_CTX;
    uint64_t *hashes = malloc(cap * sizeof *hashes);
    float row[2 * KERN_Q8_DIM];
    for (uint32_t l = 0; l < hp->n_layer; l++)
        for (uint32_t h = 0; h < hp->n_head_kv; h++)
            for (uint64_t p = 0; p < N_CTX; p++) kv_read_row(s->seq, l, h, p, row), hashes[n++] = spw_hash(1, row, 2 * e->dim * sizeof *row);
    CHECK_INT(n, cap);
    qsort(hashes, n, sizeof *hashes, compare_hashes);
    for (size_t i = 1; i < n; i++) CHECK(hashes[i] != hashes[i - 1] || test_bad > 10);
    free(hashes);
    spw_session_free(s);
    spw_engine_close(e);
}

static void test_rows_are_distinct(void)
{
    check_distinct(SPW_KV_F16);
    check_distinct(SPW_KV_Q8);
}

/* Means and squares of the made rows are those of real rows: over 64 random tokens against 64 others the same bounds hold. */
static void test_rows_look_real(void)
{
    enum { N = 256 };
    spw_err err = {0};
    spw_engine *e = open_model("tiny-llama3", 2, SPW_KV_F32);
    spw_session *made = new_session(e, "full"), *real = new_session(e, "full");
    int32_t ids[N];
    uint64_t seed = 5;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)(test_rand(&seed) % 256);
    CHECK_OK(spw_session_fill(made, N, 3, &err), err);
    CHECK_OK(spw_session_eval(real, ids, N, &err), err);
    const model_hparams *hp = &e->model->hp;
    for (uint32_t l = 0; l < hp->n_layer; l++) {
        for (uint32_t h = 0; h < hp->n_head_kv; h++) {
            for (size_t part = 0; part < 2; part++) { /* K, V */
                double squares[2] = {0};
                for (uint64_t p = 4; p < N; p++) {
                    const float *a = (const float *)kv_row(made->seq, l, h, p) + part * e->dim, *b = (const float *)kv_row(real->seq, l, h, p) + part * e->dim;
                    for (size_t i = 0; i < e->dim; i++) squares[0] += (double)(a[i] * a[i]), squares[1] += (double)(b[i] * b[i]);
                    for (size_t i = hp->head_dim; i < e->dim; i++) CHECK(a[i] == 0 || test_bad > 10);
                }
                CHECK(squares[0] > 0.6 * squares[1] && squares[0] < 1.6 * squares[1]);
            }
        }
    }
    spw_session_free(made);
    spw_session_free(real);
    spw_engine_close(e);
}

static bool all_finite(const float *v, size_t n)
{
    bool ok = v != NULL;
    for (size_t i = 0; i < n && ok; i++) ok = isfinite(v[i]);
    return ok;
}

/* A filled session reads, generates, forks and forgets like any other, under every policy. */
static void test_goes_on(void)
{
    static const char *const policies[] = {"full", "window"};
    spw_err err = {0};
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = 3 * i % 256;
    for (int i = 0; i < 4; i++) {
        int p = i % 2;
        spw_engine *e = open_model("tiny-qwen2", 2, i < 2 ? SPW_KV_F16 : SPW_KV_Q8);
        size_t n_vocab = (size_t)spw_vocab_size(spw_engine_vocab(e));
        spw_session *s = new_session(e, policies[p]), *f = NULL;
        CHECK_OK(spw_session_eval(s, ids, 40, &err), err);
        uint64_t before = hash_rows(s, 0, 40);
        CHECK_OK(spw_session_fill(s, 2000, 9, &err), err);
        CHECK(!spw_session_logits(s));
        CHECK_INT(spw_session_pos(s), 2040);
        CHECK(hash_rows(s, 0, 40) == before || i >= 2);
        CHECK_OK(spw_session_fork(&f, s, NULL, &err), err);
        CHECK_OK(spw_session_fill(f, 10, 9, &err), err); /* copies the shared last page */
        CHECK_OK(spw_session_decode(s, 17, &err), err);
        CHECK(all_finite(spw_session_logits(s), n_vocab));
        CHECK_OK(spw_session_eval(s, ids, 40, &err), err);
        CHECK(all_finite(spw_session_logits(s), n_vocab));
        CHECK_INT(spw_session_pos(f), 2050);
        CHECK_OK(spw_engine_check(e, &err), err);
        CHECK_OK(spw_session_truncate(s, 40, &err), err);
        CHECK(hash_rows(s, 0, 40) == before || i >= 2); /* bytes do not become the halves that they were */
        CHECK_OK(spw_engine_check(e, &err), err);
        spw_session_free(f);
        spw_session_free(s);
        spw_engine_close(e);
    }
}

static void check_failing_allocator(spw_kv_type type)
{
    spw_err err = {0};
    size_t before = mem_in_use();
    spw_engine *e = open_model("tiny-linear", 2, type);
    spw_session *s = new_session(e, "full");
    CHECK_OK(spw_session_fill(s, 0, 1, &err), err);
    CHECK_INT(spw_session_fill(s, N_CTX + 1, 1, &err), SPW_E_FULL);
    CHECK_HAS(err.msg, "3001");
    CHECK_INT(spw_session_fill(s, UINT64_MAX, 1, &err), SPW_E_FULL);
    CHECK_INT(spw_session_pos(s), 0);
    int refused = 0;
    for (long n = 0; spw_session_pos(s) < N_CTX && n < 1000; n++) {
        mem_fail_after(n, false);
        spw_status st = spw_session_fill(s, N_CTX, 1, &err);
        mem_fail_after(-1, false);
        if (st) CHECK_INT(st, SPW_E_NOMEM);
        CHECK_INT(spw_session_pos(s), st ? 0 : N_CTX);
        CHECK_OK(spw_engine_check(e, &err), err);
        refused += st != SPW_OK;
    }
    CHECK(refused > 3);
    CHECK_INT(spw_session_pos(s), N_CTX);
    CHECK_INT(spw_session_decode(s, 1, &err), SPW_E_FULL);
    spw_session_free(s);
    spw_engine_close(e);
    CHECK_INT(mem_in_use(), before);
}

static void test_limits_and_failing_allocator(void)
{
    check_failing_allocator(SPW_KV_F16);
    check_failing_allocator(SPW_KV_Q8);
}

int main(void)
{
    RUN(test_positions_and_bits);
    RUN(test_rows_are_distinct);
    RUN(test_rows_look_real);
    RUN(test_goes_on);
    RUN(test_limits_and_failing_allocator);
    return test_done();
}
