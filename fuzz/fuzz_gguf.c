/* fuzz_gguf.c - any bytes as a GGUF file: opened, looked through, bound as a model, its RoPE table made.
 *
 * What is accepted is also used as its users would: every key as text, every byte of every tensor. */
#include "mem.h"
#include "model.h"
#include "rope.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink; /* keeps the reads of the data */

static void require(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "fuzz_gguf: %s\n", what);
    abort();
}

/* A failure has its code and one line that starts with the path. */
static void require_message(spw_status st, const spw_err *err)
{
    if (!st) return;
    require(err->code == st, "code of the message");
    require(!strncmp(err->msg, "/proc/self/fd/", 14) && !strchr(err->msg, '\n'), "text of the message");
}

static void use_file(const char *path)
{
    spw_file *f;
    spw_err err = {0};
    spw_model_info info;
    char text[64];
    spw_status st = spw_file_open(&f, path, &err);
    require_message(st, &err);
    if (st) return;
    for (size_t i = 0; i < spw_file_n_keys(f); i++) {
        spw_file_key k = spw_file_key_at(f, i);
        size_t len = spw_file_key_text(f, i, text, sizeof text);
        require(k.name[0] && k.type && strlen(text) <= len, "a key");
    }
    uint64_t hash = 0;
    for (size_t i = 0; i < spw_file_n_tensors(f); i++) {
        const gguf_tensor *t = gguf_tensor_at(gguf_of_file(f), i);
        require(spw_file_tensor_at(f, i).type[0], "a tensor");
        if (t->bytes) hash = spw_hash(hash, t->data, (size_t)t->bytes);
    }
    sink = hash;
    st = spw_file_model_info(f, &info, &err);
    require_message(st, &err);
    spw_file_close(f);
}

static void use_model(const char *path)
{
    gguf_file *f;
    model *m = NULL;
    rope_table t;
    spw_err err = {0};
    if (gguf_open(&f, path, &err)) return;
    spw_status st = model_bind(&m, f, NULL, &err);
    require_message(st, &err);
    if (!st && !rope_init(&t, &m->hp.rope, m->rope_freqs.data, &err)) {
        float cos_sin[1024];
        require(2 * t.n_pairs <= 1024, "size of a head");
        rope_angles(&t, 1 << 20, cos_sin);
        rope_free(&t);
    }
    model_free(m);
    gguf_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    size_t in_use = mem_in_use();
    int fd = memfd_create("gguf", 0);
    require(fd >= 0 && write(fd, data, size) == (ssize_t)size, "memfd");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    use_file(path);
    use_model(path);
    close(fd);
    require(mem_in_use() == in_use, "memory left in use");
    return 0;
}
