/* test_engine_index.c - the engine and the index of keys: what it costs and changes (bytes, and no result), codes that belong to their rows whatever a session does, and damage that
 * spw_engine_check finds. */
#include "engine_private.h"
#include "mem.h"
#include "test.h"

enum { N_CTX = 600, N_TOKENS = 370 };

static const spw_kv_type types[] = {SPW_KV_F16, SPW_KV_F32, SPW_KV_Q8};
static int32_t tokens[N_TOKENS];

static const char *model_path(void)
{
    static char path[200];
    const char *dir = getenv("SPILLWAY_TEST_DATA");
    snprintf(path, sizeof path, "%s/tiny-qwen2.gguf", dir ? dir : "tests/data");
    return path;
}

static spw_engine *open_engine(int threads, spw_kv_type type, int planes)
{
    spw_err err = {0};
    spw_engine *e = NULL;
    CHECK_OK(spw_engine_open(&e, model_path(), &(spw_engine_params){.n_threads = threads, .n_batch = 150, .kv_type = type, .kv_index = planes ? planes : SPW_KV_INDEX_NONE}, &err), err);
    if (!e) exit(1);
    return e;
}

static spw_session *new_session(spw_engine *e)
{
    spw_err err = {0};
    spw_session *s = NULL;
    spw_session_params p = spw_session_default_params();
    p.n_ctx = N_CTX;
    CHECK_OK(spw_session_create(&s, e, &p, &err), err);
    return s;
}

/* Hash of the codes of all full pages. */
static uint64_t hash_codes(const spw_session *s)
{
    const spw_engine *e = s->engine;
    const model_hparams *hp = &e->model->hp;
    unsigned planes = kv_index_planes(e->store);
    size_t bytes = kern_index_bytes(KV_PAGE_ROWS, e->dim, 1), outer = kern_index_bytes(KV_PAGE_ROWS, e->dim, planes) - bytes;
    uint64_t hash = 0;
    for (uint32_t l = 0; l < hp->n_layer; l++)
        for (uint32_t h = 0; h < hp->layer_kv[l].n_head_kv; h++)
            for (uint64_t page = 0; page < spw_session_pos(s) / KV_PAGE_ROWS; page++) {
                hash = spw_hash(hash, kv_code(s->seq, l, h, page), bytes);
                if (outer) hash = spw_hash(hash, kv_code_outer(s->seq, l, h, page), outer);
            }
    return hash;
}

static void check(spw_engine *e)
{
    spw_err err = {0};
    CHECK_OK(spw_engine_check(e, &err), err);
}

/* Codes do not depend on how a prompt is cut nor on threads; forks, generated tokens, truncations and fills keep them right. */
static void test_sessions(void)
{
    spw_err err = {0};
    for (int t = 0; t < 3; t++) {
        for (int planes = 1; planes <= KERN_INDEX_PLANES; planes++) {
            uint64_t want = 0;
            for (int threads = 1; threads <= 3; threads += 2) {
                spw_engine *e = open_engine(threads, types[t], planes);
                spw_session *s = new_session(e), *fork = NULL;
                for (size_t done = 0, n = threads == 1 ? N_TOKENS : 61; done < N_TOKENS; done += n) {
                    if (n > N_TOKENS - done) n = N_TOKENS - done;
                    CHECK_OK(spw_session_eval(s, tokens + done, n, &err), err);
                }
                uint64_t hash = hash_codes(s);
                if (threads == 1) want = hash;
                CHECK(hash == want && hash);
                CHECK_OK(spw_session_fork(&fork, s, NULL, &err), err);
                for (int i = 0; i < 20; i++) CHECK_OK(spw_session_decode(fork, tokens[i], &err), err);
                check(e);
                CHECK_OK(spw_session_truncate(fork, 240, &err), err);
                CHECK_OK(spw_session_eval(fork, tokens + 9, 160, &err), err);
                check(e);
                CHECK_OK(spw_session_fill(fork, 150, 3, &err), err);
                check(e);
                CHECK(hash_codes(s) == want);
                spw_session_free(s);
                spw_session_free(fork);
                spw_engine_close(e);
            }
        }
    }
}

/* The index is for choosing: whoever reads everything sees no difference. */
static void test_no_effect_on_results(void)
{
    spw_err err = {0};
    for (int t = 0; t < 3; t++) {
        uint64_t want = 0;
        for (int planes = 0; planes <= KERN_INDEX_PLANES; planes++) {
            spw_engine *e = open_engine(2, types[t], planes);
            spw_session *s = new_session(e);
            CHECK_OK(spw_session_eval(s, tokens, 260, &err), err);
            uint64_t hash = spw_hash(0, spw_session_logits(s), e->model->hp.n_vocab * sizeof(float));
            CHECK_OK(spw_session_decode(s, tokens[0], &err), err);
            hash = spw_hash(hash, spw_session_logits(s), e->model->hp.n_vocab * sizeof(float));
            if (!planes) want = hash;
            CHECK(hash == want);
            check(e);
            spw_session_free(s);
            spw_engine_close(e);
        }
    }
}

static void test_parameters_and_bytes(void)
{
    spw_err err = {0};
    spw_engine *e = NULL;
    spw_engine_params p = spw_engine_default_params();
    static const int bad[] = {-2, KERN_INDEX_PLANES + 1, 100};
    for (int i = 0; i < 3; i++) {
        p.kv_index = bad[i];
        CHECK_INT(spw_engine_open(&e, model_path(), &p, &err), SPW_E_ARG);
        CHECK_HAS(err.msg, "index");
    }
    CHECK_OK(spw_engine_open(&e, model_path(), NULL, &err), err);
    CHECK_INT(kv_index_planes(e->store), KERN_INDEX_USUAL);
    spw_engine_close(e);
    spw_file *f = NULL;
    CHECK_OK(spw_file_open(&f, model_path(), &err), err);
    for (int t = 0; t < 3; t++) {
        uint64_t without = 0;
        for (int planes = 0; planes <= KERN_INDEX_PLANES; planes++) {
            spw_memory m;
            e = open_engine(1, types[t], planes);
            spw_session *s = new_session(e);
            p.kv_type = types[t], p.kv_index = planes ? planes : SPW_KV_INDEX_NONE;
            CHECK_OK(spw_file_memory(f, 2 * KV_PAGE_ROWS, &p, &m, &err), err);
            CHECK_INT(m.kv_bytes_per_pos, spw_engine_info(e)->kv_bytes_per_pos);
            CHECK_OK(spw_session_fill(s, 2 * KV_PAGE_ROWS, 1, &err), err);
            uint64_t used = 2 * kv_bytes_per_page(e->store); /* every part is rounded up, by less than a byte a position, layer and head */
            CHECK(m.kv >= used && m.kv - used < 4 * KV_PAGE_ROWS * (uint64_t)e->info.n_layer * e->info.n_head_kv);
            CHECK(spw_session_get_stats(s).kv_bytes >= used);
            if (!planes) without = used;
            CHECK_INT(used - without, 2 * kv_index_bytes_per_page(e->store));
            spw_session_free(s);
            spw_engine_close(e);
        }
    }
    spw_file_close(f);
}

static void test_damage_is_found(void)
{
    spw_err err = {0};
    spw_engine *e = open_engine(2, SPW_KV_F16, 2);
    spw_session *s = new_session(e);
    CHECK_OK(spw_session_eval(s, tokens, 300, &err), err);
    uint8_t *code = (uint8_t *)(uintptr_t)kv_code(s->seq, 1, 0, 1);
    code[10] ^= 1;
    CHECK_INT(spw_engine_check(e, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "layer 1, head 0");
    code[10] ^= 1;
    check(e);
    spw_session_free(s);
    spw_engine_close(e);
}

/* Every allocation of opening and of a step refused in turn. */
static void test_failing_allocator(void)
{
    spw_err err = {0};
    size_t before = mem_in_use();
    for (long n = 0, done = 0; !done; n++) {
        spw_engine *e = NULL;
        mem_fail_after(n, true);
        spw_status status = spw_engine_open(&e, model_path(), &(spw_engine_params){.n_threads = 2}, &err);
        mem_fail_after(-1, false);
        if (status) CHECK_INT(status, SPW_E_NOMEM);
        else spw_engine_close(e), done = 1;
    }
    CHECK_INT(mem_in_use(), before);
    spw_engine *e = open_engine(2, SPW_KV_Q8, 2);
    spw_session *s = new_session(e);
    for (long n = 0, done = 0; !done; n++) {
        mem_fail_after(n, true);
        spw_status status = spw_session_eval(s, tokens, 300, &err);
        if (!status) status = spw_session_fill(s, 200, 1, &err);
        mem_fail_after(-1, false);
        if (status) CHECK_INT(status, SPW_E_NOMEM);
        else done = 1;
        check(e);
        CHECK_OK(spw_session_truncate(s, done ? 500 : 0, &err), err);
    }
    spw_session_free(s);
    spw_engine_close(e);
    CHECK_INT(mem_in_use(), before);
}

int main(void)
{
    uint64_t seed = 5;
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)(test_rand(&seed) % 200);
    RUN(test_sessions);
    RUN(test_no_effect_on_results);
    RUN(test_parameters_and_bytes);
    RUN(test_damage_is_found);
    RUN(test_failing_allocator);
    return test_done();
}
