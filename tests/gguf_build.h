/* gguf_build.h - makes GGUF images in memory, good ones and, through the raw calls and the overrides, every kind of bad one.
 *
 * A zeroed gguf_build is an empty file of version 3.  Add keys and tensors in any order, then gguf_build_finish (frees what it was built from). */
#ifndef SPW_GGUF_BUILD_H
#define SPW_GGUF_BUILD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct build_bytes {
    uint8_t *p;
    size_t n, cap;
} build_bytes;

typedef struct gguf_build {
    build_bytes keys, tensors, data;
    uint64_t n_keys, n_tensors;
    uint32_t alignment; /* of the padding written here; 0: 32.  The key is the caller's */
    uint32_t version;   /* 0: 3 */
    uint64_t more_keys, more_tensors; /* added to the counts in the header only: lies */
} gguf_build;

enum { /* numbers of value types, written out here so that a test does not believe the header it tests */
    B_U8, B_I8, B_U16, B_I16, B_U32, B_I32, B_F32, B_BOOL, B_STR, B_ARR, B_U64, B_I64, B_F64,
};

static inline void build_put(build_bytes *b, const void *p, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n) + 256;
        b->p = realloc(b->p, b->cap);
        if (!b->p) abort();
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}

static inline void build_zeros(build_bytes *b, size_t n)
{
    static const uint8_t zeros[64];
    for (size_t left = n; left;) {
        size_t part = left < sizeof zeros ? left : sizeof zeros;
        build_put(b, zeros, part);
        left -= part;
    }
}

static inline void build_u32(build_bytes *b, uint32_t v)
{
    build_put(b, &v, sizeof v);
}

static inline void build_u64(build_bytes *b, uint64_t v)
{
    build_put(b, &v, sizeof v);
}

static inline void build_str(build_bytes *b, const char *s)
{
    build_u64(b, strlen(s));
    build_put(b, s, strlen(s));
}

/* Name and type of a key; its value is for the caller to put into b->keys. */
static inline void gguf_build_key(gguf_build *b, const char *name, uint32_t type)
{
    build_str(&b->keys, name);
    build_u32(&b->keys, type);
    b->n_keys++;
}

static inline void gguf_build_scalar(gguf_build *b, const char *name, uint32_t type, const void *value, size_t bytes)
{
    gguf_build_key(b, name, type);
    build_put(&b->keys, value, bytes);
}

static inline void gguf_build_u32(gguf_build *b, const char *name, uint32_t v)
{
    gguf_build_scalar(b, name, B_U32, &v, sizeof v);
}

static inline void gguf_build_f32(gguf_build *b, const char *name, float v)
{
    gguf_build_scalar(b, name, B_F32, &v, sizeof v);
}

static inline void gguf_build_bool(gguf_build *b, const char *name, uint8_t v)
{
    gguf_build_scalar(b, name, B_BOOL, &v, sizeof v);
}

static inline void gguf_build_str(gguf_build *b, const char *name, const char *v)
{
    gguf_build_key(b, name, B_STR);
    build_str(&b->keys, v);
}

/* The head of an array: n elements of type elem follow. */
static inline void gguf_build_array(gguf_build *b, const char *name, uint32_t elem, uint64_t n)
{
    gguf_build_key(b, name, B_ARR);
    build_u32(&b->keys, elem);
    build_u64(&b->keys, n);
}

static inline void gguf_build_u32s(gguf_build *b, const char *name, uint64_t n, const uint32_t *v)
{
    gguf_build_array(b, name, B_U32, n);
    build_put(&b->keys, v, (size_t)n * sizeof *v);
}

/* n strings "t0", "t1" ...: a vocabulary of n tokens. */
static inline void gguf_build_tokens(gguf_build *b, const char *name, uint64_t n)
{
    gguf_build_array(b, name, B_STR, n);
    for (uint64_t i = 0; i < n; i++) {
        char text[24];
        snprintf(text, sizeof text, "t%llu", (unsigned long long)i);
        build_str(&b->keys, text);
    }
}

/* The entry of a tensor alone. */
static inline void gguf_build_tensor_at(gguf_build *b, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, uint64_t offset)
{
    build_str(&b->tensors, name);
    build_u32(&b->tensors, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) build_u64(&b->tensors, dims[i]);
    build_u32(&b->tensors, type);
    build_u64(&b->tensors, offset);
    b->n_tensors++;
}

static inline void build_pad(build_bytes *b, size_t alignment)
{
    build_zeros(b, (alignment - b->n % alignment) % alignment);
}

/* A tensor with its data behind those before it; data NULL: zeros. */
static inline void gguf_build_tensor(gguf_build *b, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, const void *data, size_t bytes)
{
    build_pad(&b->data, b->alignment ? b->alignment : 32);
    gguf_build_tensor_at(b, name, type, n_dims, dims, b->data.n);
    if (data) build_put(&b->data, data, bytes);
    else build_zeros(&b->data, bytes);
}

/* The image, for the caller to free. */
static inline uint8_t *gguf_build_finish(gguf_build *b, size_t *size)
{
    build_bytes out = {0};
    build_put(&out, "GGUF", 4);
    build_u32(&out, b->version ? b->version : 3);
    build_u64(&out, b->n_tensors + b->more_tensors);
    build_u64(&out, b->n_keys + b->more_keys);
    build_put(&out, b->keys.p, b->keys.n);
    build_put(&out, b->tensors.p, b->tensors.n);
    if (b->data.n) build_pad(&out, b->alignment ? b->alignment : 32);
    build_put(&out, b->data.p, b->data.n);
    free(b->keys.p);
    free(b->tensors.p);
    free(b->data.p);
    memset(b, 0, sizeof *b);
    *size = out.n;
    return out.p;
}

static inline bool build_write_file(const char *path, const void *p, size_t n)
{
    remove(path); /* overwriting in place makes some file systems wait for the disk */
    FILE *f = fopen(path, "wb");
    if (!f) return false;
    bool ok = fwrite(p, 1, n, f) == n;
    return fclose(f) == 0 && ok;
}

/* Finishes b into a file. */
static inline bool gguf_build_write(gguf_build *b, const char *path)
{
    size_t n;
    uint8_t *p = gguf_build_finish(b, &n);
    bool ok = build_write_file(path, p, n);
    free(p);
    return ok;
}

#endif
