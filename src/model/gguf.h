/* gguf.h - a GGUF v3 file (also v2), mapped and checked: every offset, count and product is verified before it is used.
 *
 * A split model (split.count > 1, "NAME-00001-of-00003.gguf") is opened by its first part; tensors of all parts appear in one list. */
#ifndef SPW_GGUF_H
#define SPW_GGUF_H

#include "status.h"

typedef enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64,
    GGUF_TYPES, /* how many */
} gguf_type;

typedef struct gguf_str { /* points into the mapping, not NUL-terminated */
    const char *p;
    size_t len;
} gguf_str;

typedef struct gguf_key {
    char *name;          /* NUL-terminated, owned by the file */
    gguf_type type;
    gguf_type elem_type; /* of an array; type itself for a scalar */
    uint64_t n;          /* elements: 1 for a scalar */
    const uint8_t *data; /* first element in the mapping, any alignment; strings are length-prefixed */
    uint64_t *str_at;    /* arrays of strings: offset from data of every element's length prefix; owned by the file */
} gguf_key;

typedef struct gguf_tensor {
    char *name;     /* NUL-terminated */
    uint32_t type;  /* ggml's number; may be unknown to quant_get */
    int n_dims;     /* 1..4 */
    uint64_t dims[4]; /* dims[0] contiguous; 1 beyond n_dims */
    uint64_t bytes; /* 0 for an unknown type, whose data is not checked */
    const void *data; /* in the mapping, NULL for an unknown type; aligned to general.alignment */
} gguf_tensor;

typedef struct gguf_file gguf_file;

/* Opens and checks everything that can be checked without knowing the architecture.  Messages start with the path. */
spw_status gguf_open(gguf_file **out, const char *path, spw_err *err);
/* spw_fail with the path before the text; a long path is shown by its end. */
spw_status gguf_fail(const gguf_file *f, spw_err *err, spw_status code, const char *format, ...) __attribute__((format(printf, 4, 5)));
void gguf_close(gguf_file *f);
const char *gguf_path(const gguf_file *f);
size_t gguf_n_keys(const gguf_file *f);
const gguf_key *gguf_key_at(const gguf_file *f, size_t i);
const gguf_key *gguf_find_key(const gguf_file *f, const char *name); /* hashed; NULL: not there */
size_t gguf_n_tensors(const gguf_file *f);
const gguf_tensor *gguf_tensor_at(const gguf_file *f, size_t i);
const gguf_tensor *gguf_find_tensor(const gguf_file *f, const char *name);

/* Typed getters.  A missing key leaves *out as it is (set the default before) and is SPW_OK unless required; a key of another type is
 * SPW_E_FORMAT with both types named.  Integers of any width are taken where the value fits. */
spw_status gguf_get_u32(const gguf_file *f, const char *name, bool required, uint32_t *out, spw_err *err);
spw_status gguf_get_f32(const gguf_file *f, const char *name, bool required, float *out, spw_err *err);
spw_status gguf_get_bool(const gguf_file *f, const char *name, bool required, bool *out, spw_err *err);
spw_status gguf_get_str(const gguf_file *f, const char *name, bool required, gguf_str *out, spw_err *err);
/* Arrays: the key itself after its type has been checked; *out stays NULL when it is missing and not required. */
spw_status gguf_get_array(const gguf_file *f, const char *name, gguf_type elem, bool required, const gguf_key **out, spw_err *err);
gguf_str gguf_array_str(const gguf_key *k, uint64_t i);
int64_t gguf_array_int(const gguf_key *k, uint64_t i); /* any integer element type */
float gguf_array_f32(const gguf_key *k, uint64_t i);   /* F32 or F64 elements */
double gguf_array_f64(const gguf_key *k, uint64_t i);  /* the same, not rounded */

const char *gguf_type_name(gguf_type t); /* "u32", "str", "arr" */
uint32_t gguf_type_bytes(gguf_type t);   /* 0 for strings and arrays */
/* *out = the integer of a scalar key of any integer type; false when it is none or exceeds an int64. */
bool gguf_key_int(const gguf_key *k, int64_t *out);
/* dst = s cut to cap - 1 bytes at a character's border, control characters shown as '?'; always NUL-terminated.  cap > 0. */
void gguf_copy_str(char *dst, size_t cap, gguf_str s);

/* The file behind the public handle. */
const gguf_file *gguf_of_file(const spw_file *f);

#endif
