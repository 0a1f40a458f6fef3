/* gguf_get.c - values of keys, by type.  gguf.c has checked that every value lies inside the mapping; what is checked here is that it is of
 * the kind that the caller needs.  Values have no alignment, so they are copied out. */
#include "gguf.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    uint32_t bytes; /* 0: not of fixed size */
} type_infos[GGUF_TYPES] = {
    [GGUF_U8] = {"u8", 1},   [GGUF_I8] = {"i8", 1},   [GGUF_U16] = {"u16", 2},  [GGUF_I16] = {"i16", 2}, [GGUF_U32] = {"u32", 4},
    [GGUF_I32] = {"i32", 4}, [GGUF_F32] = {"f32", 4}, [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"str", 0}, [GGUF_ARRAY] = {"arr", 0},
    [GGUF_U64] = {"u64", 8}, [GGUF_I64] = {"i64", 8}, [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(gguf_type t)
{
    return (unsigned)t < GGUF_TYPES ? type_infos[t].name : "?";
}

uint32_t gguf_type_bytes(gguf_type t)
{
    return (unsigned)t < GGUF_TYPES ? type_infos[t].bytes : 0;
}

bool gguf_key_int(const gguf_key *k, int64_t *out)
{
    switch (k->type) {
    case GGUF_U8: case GGUF_I8: case GGUF_U16: case GGUF_I16: case GGUF_U32: case GGUF_I32: case GGUF_I64: break;
    case GGUF_U64: {
        uint64_t v;
        memcpy(&v, k->data, sizeof v);
        if (v > INT64_MAX) return false;
        break;
    }
    default: return false;
    }
    *out = gguf_array_int(k, 0);
    return true;
}

/* *out = the key, NULL when it is missing and may be. */
static spw_status find_for_get(const gguf_file *f, const char *name, bool required, const gguf_key **out, spw_err *err)
{
    *out = gguf_find_key(f, name);
    if (!*out && required) return gguf_fail(f, err, SPW_E_FORMAT, "key \"%s\" is missing", name);
    return SPW_OK;
}

static spw_status wrong_type(const gguf_file *f, const gguf_key *k, const char *expected, spw_err *err)
{
    if (k->type == GGUF_ARRAY)
        return gguf_fail(f, err, SPW_E_FORMAT, "key \"%s\" has type arr[%s], expected %s", k->name, gguf_type_name(k->elem_type), expected);
    return gguf_fail(f, err, SPW_E_FORMAT, "key \"%s\" has type %s, expected %s", k->name, gguf_type_name(k->type), expected);
}

spw_status gguf_get_u32(const gguf_file *f, const char *name, bool required, uint32_t *out, spw_err *err)
{
    const gguf_key *k;
    int64_t v;
    spw_status st = find_for_get(f, name, required, &k, err);
    if (st || !k) return st;
    if (!gguf_key_int(k, &v)) {
        if (k->type == GGUF_U64) return gguf_fail(f, err, SPW_E_FORMAT, "key \"%s\" exceeds 2^63", name);
        return wrong_type(f, k, "an integer (u32)", err);
    }
    if (v < 0 || v > UINT32_MAX) return gguf_fail(f, err, SPW_E_FORMAT, "key \"%s\" is %lld, expected 0 to 4294967295", name, (long long)v);
    *out = (uint32_t)v;
    return SPW_OK;
}

spw_status gguf_get_f32(const gguf_file *f, const char *name, bool required, float *out, spw_err *err)
{
    const gguf_key *k;
    spw_status st = find_for_get(f, name, required, &k, err);
    if (st || !k) return st;
    if (k->type != GGUF_F32 && k->type != GGUF_F64) return wrong_type(f, k, "f32", err);
    *out = gguf_array_f32(k, 0);
    return SPW_OK;
}

spw_status gguf_get_bool(const gguf_file *f, const char *name, bool required, bool *out, spw_err *err)
{
    const gguf_key *k;
    spw_status st = find_for_get(f, name, required, &k, err);
    if (st || !k) return st;
    if (k->type != GGUF_BOOL) return wrong_type(f, k, "bool", err);
    *out = *k->data != 0;
    return SPW_OK;
}

spw_status gguf_get_str(const gguf_file *f, const char *name, bool required, gguf_str *out, spw_err *err)
{
    const gguf_key *k;
    spw_status st = find_for_get(f, name, required, &k, err);
    if (st || !k) return st;
    if (k->type != GGUF_STRING) return wrong_type(f, k, "str", err);
    *out = gguf_array_str(k, 0);
    return SPW_OK;
}

spw_status gguf_get_array(const gguf_file *f, const char *name, gguf_type elem, bool required, const gguf_key **out, spw_err *err)
{
    const gguf_key *k;
    spw_status st = find_for_get(f, name, required, &k, err);
    if (st || !k) return st;
    if (k->type != GGUF_ARRAY || k->elem_type != elem) {
        char expected[16];
        snprintf(expected, sizeof expected, "arr[%s]", gguf_type_name(elem));
        return wrong_type(f, k, expected, err);
    }
    *out = k;
    return SPW_OK;
}

gguf_str gguf_array_str(const gguf_key *k, uint64_t i)
{
    SPW_CHECK(i < k->n && k->elem_type == GGUF_STRING);
    const uint8_t *p = k->data + (k->str_at ? k->str_at[i] : 0);
    uint64_t len;
    memcpy(&len, p, sizeof len);
    return (gguf_str){(const char *)p + sizeof len, (size_t)len};
}

int64_t gguf_array_int(const gguf_key *k, uint64_t i)
{
    SPW_CHECK(i < k->n && gguf_type_bytes(k->elem_type));
    uint32_t bytes = gguf_type_bytes(k->elem_type);
    uint64_t u = 0;
    memcpy(&u, k->data + i * bytes, bytes);
    switch (k->elem_type) {
    case GGUF_I8: return (int8_t)u;
    case GGUF_I16: return (int16_t)u;
    case GGUF_I32: return (int32_t)u;
    default: return (int64_t)u;
    }
}

double gguf_array_f64(const gguf_key *k, uint64_t i)
{
    SPW_CHECK(i < k->n && (k->elem_type == GGUF_F32 || k->elem_type == GGUF_F64));
    if (k->elem_type == GGUF_F64) {
        double v;
        memcpy(&v, k->data + i * sizeof v, sizeof v);
        return v;
    }
    float v;
    memcpy(&v, k->data + i * sizeof v, sizeof v);
    return (double)v;
}

float gguf_array_f32(const gguf_key *k, uint64_t i)
{
    return (float)gguf_array_f64(k, i);
}

void gguf_copy_str(char *dst, size_t cap, gguf_str s)
{
    size_t n = s.len < cap - 1 ? s.len : cap - 1;
    if (n < s.len)
        while (n > 0 && ((uint8_t)s.p[n] & 0xc0) == 0x80) n--;
    for (size_t i = 0; i < n; i++) dst[i] = (uint8_t)s.p[i] < ' ' || s.p[i] == 127 ? '?' : s.p[i];
    dst[n] = '\0';
}
