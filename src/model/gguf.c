/* gguf.c - opens a GGUF file: maps it, walks the header once, and checks every number of it before it is used.
 *
 * Layout: "GGUF", u32 version, u64 tensors, u64 keys; the keys (name, type, value); the tensors (name, dims, type, offset); padding to
 * general.alignment; the tensors' data.  A string is a u64 length and its bytes.  Everything is little-endian and has no alignment.
 *
 * A hostile file can ask for nothing that it does not pay for: a count is believed only when the bytes left could hold that many of the
 * smallest item, so memory and time stay proportional to the size of the file.  The walk keeps one cursor (gguf_reader); a read
 * beyond the end is the one place where "truncated" comes from. */
#include "gguf.h"
#include "mem.h"
#include "quant.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MIN_KEY_BYTES = 8 + 1 + 4 + 1,             /* name of one byte, type, a one-byte value */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,  /* name of one byte, one dimension, type, offset */
    MAX_NAME = 65535,
    MAX_ALIGNMENT = 1 << 20,
    MAX_PROBES = 256, /* at half load a run of 256 needs names made to collide */
    MAX_PARTS = 99999,
    ARENA_CHUNK = 16384,
    SHOWN_PATH = 200, /* bytes of a path in a message: the rest of the line must fit too */
};

/* Names and offset tables live as long as the file: carved from chunks, freed together. */
typedef struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size; /* of the bytes behind this header */
} arena_chunk;

typedef struct name_slot {
    uint64_t hash;
    uint64_t index; /* 1 + place in the list; 0: free */
} name_slot;

typedef struct name_table {
    name_slot *slots;
    size_t n_slots; /* a power of two, at least twice the names */
} name_table;

typedef struct gguf_map {
    void *base;
    size_t bytes;
} gguf_map;

struct gguf_file {
    char *path;
    gguf_map *maps; /* one per part */
    size_t n_maps;
    gguf_key *keys;
    size_t n_keys;
    gguf_tensor *tensors;
    size_t n_tensors;
    name_table key_table, tensor_table;
    arena_chunk *arena;
};

/* The walk over one part.  tensors: where this part's begin in f->tensors. */
typedef struct gguf_reader {
    gguf_file *f;
    const char *path; /* of this part */
    spw_err *err;
    const uint8_t *base;
    size_t size, pos;
    uint64_t n_keys, n_tensors;
    gguf_key *keys;
    uint64_t alignment;
} gguf_reader;

/* ---------------------------------------------------------------- messages ---- */

static spw_status fail_at(const char *path, spw_err *err, spw_status code, const char *format, va_list args)
{
    char text[sizeof err->msg];
    int n = vsnprintf(text, sizeof text, format, args);
    if (n < 0) text[0] = '\0';
    size_t len = strlen(path);
    const char *shown = len > SHOWN_PATH ? path + (len - SHOWN_PATH) : path;
    return spw_fail(err, code, "%s%s: %s", shown == path ? "" : "...", shown, text);
}

spw_status gguf_fail(const gguf_file *f, spw_err *err, spw_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    spw_status st = fail_at(f->path, err, code, format, args);
    va_end(args);
    return st;
}

__attribute__((format(printf, 3, 4))) static spw_status path_fail(const char *path, spw_err *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    spw_status st = fail_at(path, err, SPW_E_IO, format, args);
    va_end(args);
    return st;
}

__attribute__((format(printf, 3, 4))) static spw_status reader_fail(const gguf_reader *r, spw_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    spw_status st = fail_at(r->path, r->err, code, format, args);
    va_end(args);
    return st;
}

static spw_status reader_no_memory(const gguf_reader *r)
{
    return reader_fail(r, SPW_E_NOMEM, "no memory for the table of its contents");
}

/* ---------------------------------------------------------------- memory ---- */

/* bytes, 8-byte aligned; NULL when there is no memory. */
static void *arena_take(gguf_file *f, size_t bytes)
{
    size_t need, total;
    if (!add_size(bytes, 7, &need)) return NULL;
    need &= ~(size_t)7;
    arena_chunk *c = f->arena;
    if (!c || c->size - c->used < need) {
        size_t size = need > ARENA_CHUNK ? need : ARENA_CHUNK;
        if (!add_size(size, sizeof *c, &total) || !(c = mem_alloc(total))) return NULL;
        *c = (arena_chunk){.next = f->arena, .size = size};
        f->arena = c;
    }
    void *p = (uint8_t *)(c + 1) + c->used;
    c->used += need;
    return p;
}

static uint64_t name_hash(const char *name)
{
    uint64_t h = 14695981039346656037u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 1099511628211u;
    return h ^ h >> 29;
}

static spw_status table_init(name_table *t, uint64_t n, const gguf_reader *r)
{
    size_t n_slots = 8;
    while (n_slots < 2 * n) n_slots *= 2;
    t->slots = mem_calloc(n_slots, sizeof *t->slots);
    if (!t->slots) return reader_no_memory(r);
    t->n_slots = n_slots;
    return SPW_OK;
}

typedef const char *name_at_fn(const gguf_file *f, size_t i);

static const char *key_name(const gguf_file *f, size_t i)
{
    return f->keys[i].name;
}

static const char *tensor_name(const gguf_file *f, size_t i)
{
    return f->tensors[i].name;
}

/* The slot that holds name, or the free one where it belongs, or NULL after MAX_PROBES. */
static name_slot *table_slot(const name_table *t, const gguf_file *f, name_at_fn *name_at, const char *name, uint64_t hash)
{
    size_t at = hash & (t->n_slots - 1);
    for (int i = 0; i < MAX_PROBES; i++, at = (at + 1) & (t->n_slots - 1)) {
        name_slot *s = &t->slots[at];
        if (!s->index || (s->hash == hash && !strcmp(name_at(f, s->index - 1), name))) return s;
    }
    return NULL;
}

static spw_status table_add(name_table *t, const gguf_reader *r, name_at_fn *name_at, const char *what, size_t i)
{
    const char *name = name_at(r->f, i);
    uint64_t hash = name_hash(name);
    name_slot *s = table_slot(t, r->f, name_at, name, hash);
    if (!s) return reader_fail(r, SPW_E_FORMAT, "the names of its %ss are made to collide", what);
    if (s->index) return reader_fail(r, SPW_E_FORMAT, "%s \"%.80s\" occurs twice", what, name);
    *s = (name_slot){hash, i + 1};
    return SPW_OK;
}

/* Place of name in its list, or SIZE_MAX. */
static size_t table_find(const name_table *t, const gguf_file *f, name_at_fn *name_at, const char *name)
{
    if (!t->n_slots) return SIZE_MAX;
    const name_slot *s = table_slot(t, f, name_at, name, name_hash(name));
    return s && s->index ? (size_t)(s->index - 1) : SIZE_MAX;
}

/* ---------------------------------------------------------------- reading ---- */

static size_t reader_left(const gguf_reader *r)
{
    return r->size - r->pos;
}

/* Steps over n bytes and hands them out; what names them in the message. */
static spw_status read_bytes(gguf_reader *r, uint64_t n, const char *what, const uint8_t **out)
{
    *out = r->base + r->pos;
    if (n > reader_left(r))
        return reader_fail(r, SPW_E_FORMAT, "truncated: %s needs %llu bytes at byte %zu, but the file ends at byte %zu", what,
                           (unsigned long long)n, r->pos, r->size);
    r->pos += (size_t)n;
    return SPW_OK;
}

static spw_status read_u32(gguf_reader *r, const char *what, uint32_t *out)
{
    const uint8_t *p;
    *out = 0;
    spw_status st = read_bytes(r, sizeof *out, what, &p);
    if (!st) memcpy(out, p, sizeof *out);
    return st;
}

static spw_status read_u64(gguf_reader *r, const char *what, uint64_t *out)
{
    const uint8_t *p;
    *out = 0;
    spw_status st = read_bytes(r, sizeof *out, what, &p);
    if (!st) memcpy(out, p, sizeof *out);
    return st;
}

/* A name: 1 .. MAX_NAME bytes without NUL, copied with one at its end. */
static spw_status read_name(gguf_reader *r, const char *what, char **out)
{
    uint64_t len;
    const uint8_t *p;
    spw_status st = read_u64(r, what, &len);
    if (!st) st = read_bytes(r, len, what, &p);
    if (st) return st;
    if (len == 0 || len > MAX_NAME)
        return reader_fail(r, SPW_E_FORMAT, "%s has %llu bytes, expected 1 to %d", what, (unsigned long long)len, MAX_NAME);
    if (memchr(p, 0, (size_t)len)) return reader_fail(r, SPW_E_FORMAT, "%s holds a NUL byte", what);
    char *name = arena_take(r->f, (size_t)len + 1);
    if (!name) return reader_no_memory(r);
    memcpy(name, p, (size_t)len);
    name[len] = '\0';
    *out = name;
    return SPW_OK;
}

static spw_status read_array(gguf_reader *r, gguf_key *k, const char *what)
{
    uint32_t elem;
    uint64_t n;
    const uint8_t *p;
    spw_status st = read_u32(r, what, &elem);
    if (!st) st = read_u64(r, what, &n);
    if (st) return st;
    if (elem == GGUF_ARRAY) return reader_fail(r, SPW_E_UNSUPPORTED, "%s is an array of arrays, which this build does not read", what);
    if (elem >= GGUF_TYPES) return reader_fail(r, SPW_E_FORMAT, "%s is an array of type %u, expected 0 to %d", what, elem, GGUF_TYPES - 1);
    k->elem_type = (gguf_type)elem;
    k->n = n;
    k->data = r->base + r->pos;
    uint64_t size = elem == GGUF_STRING ? sizeof(uint64_t) : gguf_type_bytes((gguf_type)elem);
    if (n > reader_left(r) / size)
        return reader_fail(r, SPW_E_FORMAT, "truncated: %s has %llu elements, but only %zu bytes follow", what, (unsigned long long)n,
                           reader_left(r));
    if (elem != GGUF_STRING) return read_bytes(r, n * size, what, &p);
    k->str_at = arena_take(r->f, (size_t)n * sizeof *k->str_at);
    if (!k->str_at) return reader_no_memory(r);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t len;
        k->str_at[i] = (uint64_t)(r->base + r->pos - k->data);
        st = read_u64(r, what, &len);
        if (!st) st = read_bytes(r, len, what, &p);
        if (st) return st;
    }
    return SPW_OK;
}

static spw_status read_key(gguf_reader *r, uint64_t i, gguf_key *k)
{
    char what[128];
    uint32_t type;
    snprintf(what, sizeof what, "the name of key %llu of %llu", (unsigned long long)i + 1, (unsigned long long)r->n_keys);
    spw_status st = read_name(r, what, &k->name);
    if (st) return st;
    snprintf(what, sizeof what, "key \"%.80s\"", k->name);
    if ((st = read_u32(r, what, &type))) return st;
    if (type >= GGUF_TYPES) return reader_fail(r, SPW_E_FORMAT, "%s has type %u, expected 0 to %d", what, type, GGUF_TYPES - 1);
    k->type = k->elem_type = (gguf_type)type;
    k->n = 1;
    if (type == GGUF_ARRAY) return read_array(r, k, what);
    if (type == GGUF_STRING) {
        uint64_t len;
        const uint8_t *p;
        k->data = r->base + r->pos;
        st = read_u64(r, what, &len);
        return st ? st : read_bytes(r, len, what, &p);
    }
    st = read_bytes(r, gguf_type_bytes((gguf_type)type), what, &k->data);
    if (!st && type == GGUF_BOOL && *k->data > 1) return reader_fail(r, SPW_E_FORMAT, "%s is the bool %u, expected 0 or 1", what, *k->data);
    return st;
}

/* An integer key of the part being read, before there is a table: parts have few keys, or this is called a few times only. */
static spw_status part_int(const gguf_reader *r, const char *name, int64_t low, int64_t high, int64_t *out)
{
    for (uint64_t i = 0; i < r->n_keys; i++) {
        const gguf_key *k = &r->keys[i];
        if (strcmp(k->name, name)) continue;
        int64_t v;
        if (!gguf_key_int(k, &v)) return reader_fail(r, SPW_E_FORMAT, "key \"%s\" has type %s, expected an integer", name, gguf_type_name(k->type));
        if (v < low || v > high)
            return reader_fail(r, SPW_E_FORMAT, "key \"%s\" is %lld, expected %lld to %lld", name, (long long)v, (long long)low, (long long)high);
        *out = v;
        return SPW_OK;
    }
    return SPW_OK;
}

static spw_status read_keys(gguf_reader *r)
{
    if (r->n_keys > reader_left(r) / MIN_KEY_BYTES)
        return reader_fail(r, SPW_E_FORMAT, "truncated: %llu keys need %d bytes each or more, but only %zu bytes follow",
                           (unsigned long long)r->n_keys, MIN_KEY_BYTES, reader_left(r));
    r->keys = mem_calloc((size_t)r->n_keys + 1, sizeof *r->keys);
    if (!r->keys) return reader_no_memory(r);
    for (uint64_t i = 0; i < r->n_keys; i++) {
        spw_status st = read_key(r, i, &r->keys[i]);
        if (st) return st;
    }
    int64_t alignment = 32;
    spw_status st = part_int(r, "general.alignment", 1, MAX_ALIGNMENT, &alignment);
    if (!st && (alignment & (alignment - 1)))
        st = reader_fail(r, SPW_E_FORMAT, "key \"general.alignment\" is %lld, expected a power of two", (long long)alignment);
    r->alignment = (uint64_t)alignment;
    return st;
}

/* t->bytes from type and dims, 0 for an unknown type. */
static spw_status size_tensor(const gguf_reader *r, gguf_tensor *t)
{
    uint64_t elems = 1;
    for (int d = 0; d < t->n_dims; d++) {
        if (t->dims[d] == 0) return reader_fail(r, SPW_E_FORMAT, "tensor \"%.80s\": dimension %d is 0", t->name, d);
        if (t->dims[d] > (uint64_t)INT64_MAX / elems)
            return reader_fail(r, SPW_E_FORMAT, "tensor \"%.80s\" has more than 2^63 elements", t->name);
        elems *= t->dims[d];
    }
    const quant_info *info = quant_get(t->type);
    if (!info) return SPW_OK;
    if (t->dims[0] % info->block_elems)
        return reader_fail(r, SPW_E_FORMAT, "tensor \"%.80s\" of type %s: its rows have %llu elements, expected a multiple of %u", t->name,
                           info->name, (unsigned long long)t->dims[0], info->block_elems);
    if (!quant_bytes(t->type, elems, &t->bytes))
        return reader_fail(r, SPW_E_FORMAT, "tensor \"%.80s\" has more than 2^64 bytes", t->name);
    return SPW_OK;
}

/* offset: from the start of the part's data, which is known only after the last tensor. */
static spw_status read_tensor(gguf_reader *r, uint64_t i, gguf_tensor *t, uint64_t *offset)
{
    char what[128];
    uint32_t n_dims;
    snprintf(what, sizeof what, "the name of tensor %llu of %llu", (unsigned long long)i + 1, (unsigned long long)r->n_tensors);
    spw_status st = read_name(r, what, &t->name);
    if (st) return st;
    snprintf(what, sizeof what, "tensor \"%.80s\"", t->name);
    if ((st = read_u32(r, what, &n_dims))) return st;
    if (n_dims < 1 || n_dims > 4) return reader_fail(r, SPW_E_FORMAT, "%s has %u dimensions, expected 1 to 4", what, n_dims);
    t->n_dims = (int)n_dims;
    for (uint32_t d = 0; d < 4; d++) {
        t->dims[d] = 1;
        if (d < n_dims && (st = read_u64(r, what, &t->dims[d]))) return st;
    }
    st = read_u32(r, what, &t->type);
    if (!st) st = read_u64(r, what, offset);
    if (!st) st = size_tensor(r, t);
    if (st) return st;
    if (*offset % r->alignment)
        return reader_fail(r, SPW_E_FORMAT, "%s: its offset %llu is no multiple of the alignment %llu", what, (unsigned long long)*offset,
                           (unsigned long long)r->alignment);
    return SPW_OK;
}

/* Turns offsets into pointers once the start of the data is known. */
static spw_status place_tensors(gguf_reader *r, gguf_tensor *tensors, const uint64_t *offsets)
{
    uint64_t pad = (r->alignment - r->pos % r->alignment) % r->alignment;
    const uint8_t *p;
    if (r->n_tensors == 0) return SPW_OK;
    spw_status st = read_bytes(r, pad, "the padding before the tensors' data", &p);
    if (st) return st;
    uint64_t room = reader_left(r);
    for (uint64_t i = 0; i < r->n_tensors; i++) {
        gguf_tensor *t = &tensors[i];
        if (offsets[i] > room || t->bytes > room - offsets[i])
            return reader_fail(r, SPW_E_FORMAT, "truncated: tensor \"%.80s\" needs %llu bytes from byte %llu of the data, but only %llu bytes of data are there",
                               t->name, (unsigned long long)t->bytes, (unsigned long long)offsets[i], (unsigned long long)room);
        if (t->bytes) t->data = r->base + r->pos + offsets[i];
    }
    return SPW_OK;
}

/* Appends the tensors of this part to the file's list. */
static spw_status read_tensors(gguf_reader *r)
{
    gguf_file *f = r->f;
    if (r->n_tensors > reader_left(r) / MIN_TENSOR_BYTES)
        return reader_fail(r, SPW_E_FORMAT, "truncated: %llu tensors need %d bytes each or more, but only %zu bytes follow",
                           (unsigned long long)r->n_tensors, MIN_TENSOR_BYTES, reader_left(r));
    size_t n = (size_t)r->n_tensors, old = f->n_tensors * sizeof *f->tensors;
    gguf_tensor *tensors = mem_realloc(f->tensors, old, old + (n + 1) * sizeof *tensors);
    if (!tensors) return reader_no_memory(r);
    f->tensors = tensors;
    tensors += f->n_tensors;
    memset(tensors, 0, (n + 1) * sizeof *tensors);
    uint64_t *offsets = mem_calloc(n + 1, sizeof *offsets);
    if (!offsets) return reader_no_memory(r);
    spw_status st = SPW_OK;
    for (size_t i = 0; !st && i < n; i++) st = read_tensor(r, i, &tensors[i], &offsets[i]);
    if (!st) st = place_tensors(r, tensors, offsets);
    mem_free(offsets);
    if (!st) f->n_tensors += n;
    return st;
}

/* The first four bytes, told apart: a file cut inside them, a file of another kind, a file of the other byte order. */
static spw_status read_magic(gguf_reader *r)
{
    static const char magic[] = "GGUF";
    size_t n = r->size < 4 ? r->size : 4;
    if (n < 4 && !memcmp(r->base, magic, n))
        return reader_fail(r, SPW_E_FORMAT, "truncated: %zu bytes, too short for the header of a GGUF file", r->size);
    if (memcmp(r->base, magic, n)) {
        char found[4 * 4 + 1] = "";
        for (size_t i = 0, at = 0; i < n; i++) {
            bool plain = r->base[i] >= ' ' && r->base[i] < 127;
            at += (size_t)snprintf(found + at, sizeof found - at, plain ? "%c" : "\\x%02x", r->base[i]);
        }
        return reader_fail(r, SPW_E_FORMAT, "is not a GGUF file: expected magic 'GGUF', found '%s'", found);
    }
    r->pos = 4;
    return SPW_OK;
}

static spw_status read_part(gguf_reader *r)
{
    uint32_t version;
    spw_status st = read_magic(r);
    if (!st) st = read_u32(r, "the version", &version);
    if (st) return st;
    if (version && !(version & 0xffffff)) return reader_fail(r, SPW_E_UNSUPPORTED, "is a big-endian GGUF file; this build reads little-endian ones");
    if (version != 2 && version != 3) return reader_fail(r, SPW_E_UNSUPPORTED, "is GGUF version %u; this build reads versions 2 and 3", version);
    st = read_u64(r, "the number of tensors", &r->n_tensors);
    if (!st) st = read_u64(r, "the number of keys", &r->n_keys);
    if (!st) st = read_keys(r);
    if (!st) st = read_tensors(r);
    return st;
}

/* ---------------------------------------------------------------- opening ---- */

/* Maps path as one more part of f. */
static spw_status map_part(gguf_file *f, const char *path, gguf_reader *r)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return path_fail(path, r->err, "cannot open: %s", strerror(errno));
    spw_status st = SPW_OK;
    void *base = NULL;
    if (fstat(fd, &info)) st = path_fail(path, r->err, "cannot read its size: %s", strerror(errno));
    else if (S_ISDIR(info.st_mode)) st = path_fail(path, r->err, "is a directory, expected a GGUF file");
    else if (!S_ISREG(info.st_mode)) st = path_fail(path, r->err, "is not a regular file, and only those can be mapped");
    else if (info.st_size > 0) {
        base = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (base == MAP_FAILED) st = path_fail(path, r->err, "cannot map %lld bytes: %s", (long long)info.st_size, strerror(errno));
    }
    close(fd);
    if (st) return st;
    static const uint8_t nothing[1];
    r->path = path;
    r->base = base ? base : nothing;
    r->size = (size_t)info.st_size;
    if (base) {
        gguf_map *maps = mem_realloc(f->maps, f->n_maps * sizeof *maps, (f->n_maps + 1) * sizeof *maps);
        if (!maps) {
            munmap(base, r->size);
            return reader_no_memory(r);
        }
        f->maps = maps;
        maps[f->n_maps++] = (gguf_map){base, r->size};
    }
    return SPW_OK;
}

/* split.no and split.count of a part must say what its name says. */
static spw_status check_part(const gguf_reader *r, int64_t no, int64_t count)
{
    int64_t found_no = -1, found_count = -1;
    spw_status st = part_int(r, "split.no", 0, MAX_PARTS, &found_no);
    if (!st) st = part_int(r, "split.count", 0, MAX_PARTS, &found_count);
    if (!st && (found_no != no || found_count != count))
        st = reader_fail(r, SPW_E_FORMAT, "its keys split.no and split.count are %lld and %lld, expected %lld and %lld (-1: no such key)",
                         (long long)found_no, (long long)found_count, (long long)no, (long long)count);
    return st;
}

static spw_status read_other_part(gguf_file *f, const char *path, int64_t no, int64_t count, spw_err *err)
{
    gguf_reader r = {.f = f, .path = path, .err = err};
    if (access(path, F_OK) && errno == ENOENT)
        return gguf_fail(f, err, SPW_E_IO, "part %lld of %lld is missing: %.200s", (long long)no + 1, (long long)count, path);
    spw_status st = map_part(f, path, &r);
    if (!st) st = read_part(&r);
    if (!st) st = check_part(&r, no, count);
    mem_free(r.keys);
    return st;
}

/* Reads parts 2 .. count; first is the reader of part 1. */
static spw_status read_split(gguf_file *f, const gguf_reader *first, int64_t count)
{
    char tail[32], expected[32];
    int64_t no = 0, total = -1;
    spw_status st = part_int(first, "split.no", 0, MAX_PARTS - 1, &no);
    if (!st) st = part_int(first, "split.tensors.count", 0, INT64_MAX, &total);
    if (st) return st;
    snprintf(expected, sizeof expected, "-00001-of-%05d.gguf", (int)count);
    if (no) return reader_fail(first, SPW_E_FORMAT, "is part %lld of %lld: open the first part, whose name ends in %s", (long long)no + 1, (long long)count, expected);
    size_t len = strlen(f->path), tail_len = strlen(expected);
    if (len < tail_len || strcmp(f->path + len - tail_len, expected))
        return reader_fail(first, SPW_E_FORMAT, "is the first of %lld parts, so its name must end in %s", (long long)count, expected);
    char *path = mem_strndup(f->path, len);
    if (!path) return reader_no_memory(first);
    for (int64_t i = 1; !st && i < count; i++) {
        snprintf(tail, sizeof tail, "-%05d-of-%05d.gguf", (int)i + 1, (int)count);
        memcpy(path + len - tail_len, tail, tail_len);
        st = read_other_part(f, path, i, count, first->err);
    }
    mem_free(path);
    if (!st && total >= 0 && (uint64_t)total != f->n_tensors)
        st = reader_fail(first, SPW_E_FORMAT, "its parts hold %zu tensors, expected %lld (split.tensors.count)", f->n_tensors, (long long)total);
    return st;
}

static spw_status index_names(gguf_file *f, const gguf_reader *r)
{
    spw_status st = table_init(&f->key_table, f->n_keys, r);
    for (size_t i = 0; !st && i < f->n_keys; i++) st = table_add(&f->key_table, r, key_name, "key", i);
    if (!st) st = table_init(&f->tensor_table, f->n_tensors, r);
    for (size_t i = 0; !st && i < f->n_tensors; i++) st = table_add(&f->tensor_table, r, tensor_name, "tensor", i);
    return st;
}

spw_status gguf_open(gguf_file **out, const char *path, spw_err *err)
{
    int64_t count = 0;
    gguf_file *f = mem_calloc(1, sizeof *f);
    if (!f || !(f->path = mem_strndup(path, strlen(path)))) {
        mem_free(f);
        return spw_fail(err, SPW_E_NOMEM, "no memory to open a file");
    }
    gguf_reader r = {.f = f, .path = f->path, .err = err};
    spw_status st = map_part(f, f->path, &r);
    if (!st) st = read_part(&r);
    f->keys = r.keys;
    f->n_keys = (size_t)r.n_keys;
    if (!st) st = part_int(&r, "split.count", 0, MAX_PARTS, &count);
    if (!st && count > 1) st = read_split(f, &r, count);
    if (!st) st = index_names(f, &r);
    if (st) {
        gguf_close(f);
        return st;
    }
    *out = f;
    return SPW_OK;
}

void gguf_close(gguf_file *f)
{
    if (!f) return;
    for (size_t i = 0; i < f->n_maps; i++) munmap(f->maps[i].base, f->maps[i].bytes);
    for (arena_chunk *c = f->arena, *next; c; c = next) {
        next = c->next;
        mem_free(c);
    }
    mem_free(f->maps);
    mem_free(f->keys);
    mem_free(f->tensors);
    mem_free(f->key_table.slots);
    mem_free(f->tensor_table.slots);
    mem_free(f->path);
    mem_free(f);
}

/* ---------------------------------------------------------------- looking up ---- */

const char *gguf_path(const gguf_file *f)
{
    return f->path;
}

size_t gguf_n_keys(const gguf_file *f)
{
    return f->n_keys;
}

const gguf_key *gguf_key_at(const gguf_file *f, size_t i)
{
    SPW_CHECK(i < f->n_keys);
    return &f->keys[i];
}

const gguf_key *gguf_find_key(const gguf_file *f, const char *name)
{
    size_t i = table_find(&f->key_table, f, key_name, name);
    return i == SIZE_MAX ? NULL : &f->keys[i];
}

size_t gguf_n_tensors(const gguf_file *f)
{
    return f->n_tensors;
}

const gguf_tensor *gguf_tensor_at(const gguf_file *f, size_t i)
{
    SPW_CHECK(i < f->n_tensors);
    return &f->tensors[i];
}

const gguf_tensor *gguf_find_tensor(const gguf_file *f, const char *name)
{
    size_t i = table_find(&f->tensor_table, f, tensor_name, name);
    return i == SIZE_MAX ? NULL : &f->tensors[i];
}
