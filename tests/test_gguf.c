/* test_gguf.c - reading GGUF files: what is there comes back, and of what is wrong each kind has its own message. */
#include "gguf.h"
#include "gguf_build.h"
#include "mem.h"
#include "quant.h"
#include "test.h"

#include <dirent.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char dir[] = "/tmp/spillway-gguf-XXXXXX";
static char path[512];

static const char *in_dir(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Keys of every type and two tensors; the last byte of the file belongs to the second tensor. */
static void build_good(gguf_build *b)
{
    float weights[32];
    for (int i = 0; i < 32; i++) weights[i] = (float)i;
    gguf_build_str(b, "general.architecture", "llama");
    gguf_build_u32(b, "an.u32", 7);
    gguf_build_scalar(b, "an.i8", B_I8, &(int8_t){-5}, 1);
    gguf_build_scalar(b, "a.u16", B_U16, &(uint16_t){65535}, 2);
    gguf_build_scalar(b, "an.u64", B_U64, &(uint64_t){UINT64_MAX}, 8);
    gguf_build_scalar(b, "an.i64", B_I64, &(int64_t){1} , 8);
    gguf_build_scalar(b, "an.f64", B_F64, &(double){0.5}, 8);
    gguf_build_f32(b, "an.f32", 1.25f);
    gguf_build_bool(b, "a.bool", 1);
    gguf_build_array(b, "some.i16", B_I16, 3);
    build_put(&b->keys, (int16_t[]){-1, 2, 300}, 6);
    gguf_build_array(b, "some.f64", B_F64, 2);
    build_put(&b->keys, (double[]){0.1, 2}, 16);
    gguf_build_tokens(b, "some.strings", 12);
    gguf_build_array(b, "nothing", B_STR, 0);
    gguf_build_tensor(b, "a", QUANT_F32, 2, (uint64_t[]){4, 8}, weights, sizeof weights);
    gguf_build_tensor(b, "b", QUANT_Q8_0, 1, (uint64_t[]){32}, NULL, 34);
}

static void test_values(void)
{
    gguf_build b = {0};
    gguf_file *f;
    spw_err err = {0};
    build_good(&b);
    CHECK(gguf_build_write(&b, in_dir("good.gguf")));
    spw_status st = gguf_open(&f, path, &err);
    CHECK_OK(st, err);
    if (st) return;
    uint32_t u = 0;
    float v = 0;
    bool flag = false;
    gguf_str s = {"", 0};
    const gguf_key *k = NULL;
    CHECK_INT(gguf_n_keys(f), 13);
    CHECK_INT(gguf_n_tensors(f), 2);
    CHECK_STR(gguf_path(f), path);
    CHECK_OK(gguf_get_u32(f, "an.u32", true, &u, &err), err);
    CHECK_INT(u, 7);
    CHECK_OK(gguf_get_u32(f, "a.u16", true, &u, &err), err);
    CHECK_INT(u, 65535);
    CHECK_OK(gguf_get_u32(f, "an.i64", true, &u, &err), err);
    CHECK_INT(u, 1);
    CHECK_OK(gguf_get_f32(f, "an.f64", true, &v, &err), err);
    CHECK_NEAR(v, 0.5, 0);
    CHECK_OK(gguf_get_f32(f, "an.f32", true, &v, &err), err);
    CHECK_NEAR(v, 1.25, 0);
    CHECK_OK(gguf_get_bool(f, "a.bool", true, &flag, &err), err);
    CHECK(flag);
    CHECK_OK(gguf_get_str(f, "general.architecture", true, &s, &err), err);
    CHECK(s.len == 5 && !memcmp(s.p, "llama", 5));
    CHECK_OK(gguf_get_array(f, "some.strings", GGUF_STRING, true, &k, &err), err);
    CHECK_INT(k->n, 12);
    s = gguf_array_str(k, 11);
    CHECK(s.len == 3 && !memcmp(s.p, "t11", 3));
    CHECK_OK(gguf_get_array(f, "some.i16", GGUF_I16, true, &k, &err), err);
    CHECK_INT(gguf_array_int(k, 0), -1);
    CHECK_INT(gguf_array_int(k, 2), 300);
    CHECK_OK(gguf_get_array(f, "some.f64", GGUF_F64, true, &k, &err), err);
    CHECK_NEAR(gguf_array_f64(k, 0), 0.1, 0);
    CHECK_OK(gguf_get_array(f, "nothing", GGUF_STRING, true, &k, &err), err);
    CHECK_INT(k->n, 0);
    const gguf_tensor *t = gguf_find_tensor(f, "a");
    CHECK(t && t->n_dims == 2 && t->dims[0] == 4 && t->dims[1] == 8 && t->dims[2] == 1 && t->bytes == 128);
    CHECK(t && ((const float *)t->data)[31] == 31);
    CHECK(!gguf_find_tensor(f, "c"));
    gguf_close(f);
}

static void test_wrong_getters(void)
{
    gguf_file *f;
    spw_err err = {0};
    spw_status st = gguf_open(&f, in_dir("good.gguf"), &err);
    CHECK_OK(st, err);
    if (st) return;
    uint32_t u = 3;
    float v = 0;
    bool flag = false;
    gguf_str s;
    const gguf_key *k = NULL;
    CHECK_OK(gguf_get_u32(f, "not.there", false, &u, &err), err);
    CHECK_INT(u, 3);
    CHECK_INT(gguf_get_u32(f, "not.there", true, &u, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "good.gguf: key \"not.there\" is missing");
    CHECK_INT(gguf_get_u32(f, "an.i8", true, &u, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "key \"an.i8\" is -5, expected 0 to 4294967295");
    CHECK_INT(gguf_get_u32(f, "an.u64", true, &u, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "exceeds 2^63");
    CHECK_INT(gguf_get_u32(f, "an.f32", true, &u, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "key \"an.f32\" has type f32, expected an integer");
    CHECK_INT(gguf_get_f32(f, "an.u32", true, &v, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "has type u32, expected f32");
    CHECK_INT(gguf_get_bool(f, "an.u32", true, &flag, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "has type u32, expected bool");
    CHECK_INT(gguf_get_str(f, "some.strings", true, &s, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "has type arr[str], expected str");
    CHECK_INT(gguf_get_array(f, "some.i16", GGUF_STRING, true, &k, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "has type arr[i16], expected arr[str]");
    CHECK_INT(u, 3);
    CHECK(!k);
    gguf_close(f);
}

/* ---- malformed files ---- */

static const uint64_t four[] = {4};

static void bad_version_1(gguf_build *b) { b->version = 1; }
static void bad_version_99(gguf_build *b) { b->version = 99; }
static void bad_big_endian(gguf_build *b) { b->version = 3u << 24; }
static void bad_key_count(gguf_build *b) { b->more_keys = 1; }
static void bad_key_count_huge(gguf_build *b) { b->more_keys = UINT64_MAX; }
static void bad_tensor_count(gguf_build *b) { b->more_tensors = 5; }
static void bad_tensor_count_huge(gguf_build *b) { b->more_tensors = (uint64_t)1 << 60; }
static void bad_key_name_empty(gguf_build *b) { gguf_build_bool(b, "", 1), build_zeros(&b->data, 32); }
static void bad_key_name_nul(gguf_build *b)
{
    build_u64(&b->keys, 3), build_put(&b->keys, "a\0b", 3), build_u32(&b->keys, B_U32), build_u32(&b->keys, 1);
    b->n_keys++;
}
static void bad_key_name_length(gguf_build *b) { build_u64(&b->keys, UINT64_MAX), build_zeros(&b->keys, 32), b->n_keys++; }
static void bad_key_name_long(gguf_build *b)
{
    build_u64(&b->keys, 70000), build_zeros(&b->keys, 70100), b->n_keys++;
}
static void bad_key_type(gguf_build *b) { gguf_build_key(b, "some.key", 13), build_zeros(&b->keys, 8); }
static void bad_key_twice(gguf_build *b) { gguf_build_u32(b, "some.key", 1), gguf_build_u32(b, "other", 2), gguf_build_u32(b, "some.key", 1); }
static void bad_bool(gguf_build *b) { gguf_build_bool(b, "some.flag", 2); }
static void bad_string_length(gguf_build *b) { gguf_build_key(b, "some.text", B_STR), build_u64(&b->keys, UINT64_MAX - 3); }
static void bad_array_type(gguf_build *b) { gguf_build_array(b, "some.list", 77, 1), build_zeros(&b->keys, 8); }
static void bad_array_nested(gguf_build *b) { gguf_build_array(b, "some.list", B_ARR, 1), build_zeros(&b->keys, 16); }
static void bad_array_count(gguf_build *b) { gguf_build_array(b, "some.list", B_U64, (uint64_t)1 << 61), build_zeros(&b->keys, 64); }
static void bad_array_strings(gguf_build *b) { gguf_build_array(b, "some.list", B_STR, 1u << 30), build_zeros(&b->keys, 64); }
static void bad_array_string_length(gguf_build *b) { gguf_build_array(b, "some.list", B_STR, 1), build_u64(&b->keys, 1000); }
static void bad_alignment_zero(gguf_build *b) { gguf_build_u32(b, "general.alignment", 0); }
static void bad_alignment_odd(gguf_build *b) { gguf_build_u32(b, "general.alignment", 48); }
static void bad_alignment_huge(gguf_build *b) { gguf_build_u32(b, "general.alignment", 1u << 31); }
static void bad_alignment_type(gguf_build *b) { gguf_build_str(b, "general.alignment", "32"); }
static void bad_tensor_twice(gguf_build *b)
{
    gguf_build_tensor(b, "x", QUANT_F32, 1, four, NULL, 16);
    gguf_build_tensor(b, "x", QUANT_F32, 1, four, NULL, 16);
}
static void bad_tensor_no_dims(gguf_build *b) { gguf_build_tensor(b, "x", QUANT_F32, 0, four, NULL, 64); }
static void bad_tensor_five_dims(gguf_build *b) { gguf_build_tensor(b, "x", QUANT_F32, 5, (uint64_t[]){1, 1, 1, 1, 1}, NULL, 64); }
static void bad_tensor_zero_dim(gguf_build *b) { gguf_build_tensor(b, "x", QUANT_F32, 2, (uint64_t[]){4, 0}, NULL, 64); }
static void bad_tensor_elements(gguf_build *b)
{
    gguf_build_tensor(b, "x", QUANT_F32, 3, (uint64_t[]){(uint64_t)1 << 32, (uint64_t)1 << 32, 4}, NULL, 64);
}
static void bad_tensor_bytes(gguf_build *b) { gguf_build_tensor(b, "x", QUANT_F32, 1, (uint64_t[]){(uint64_t)1 << 62}, NULL, 64); }
static void bad_tensor_block(gguf_build *b) { gguf_build_tensor(b, "x", QUANT_Q4_K, 2, (uint64_t[]){32, 8}, NULL, 144); }
static void bad_tensor_size(gguf_build *b) { gguf_build_tensor(b, "x", QUANT_F32, 1, (uint64_t[]){17}, NULL, 64); }
static void bad_tensor_offset(gguf_build *b) { gguf_build_tensor_at(b, "x", QUANT_F32, 1, four, 64), build_zeros(&b->data, 64); }
static void bad_tensor_offset_wraps(gguf_build *b)
{
    gguf_build_tensor_at(b, "x", QUANT_F32, 1, four, UINT64_MAX - 31), build_zeros(&b->data, 64);
}
static void bad_tensor_offset_odd(gguf_build *b) { gguf_build_tensor_at(b, "x", QUANT_F32, 1, four, 4), build_zeros(&b->data, 64); }
static void bad_tensor_unknown_offset(gguf_build *b) { gguf_build_tensor_at(b, "x", 99, 1, four, 96), build_zeros(&b->data, 64); }
static void bad_tensor_name_nul(gguf_build *b)
{
    build_u64(&b->tensors, 2), build_zeros(&b->tensors, 2), build_u32(&b->tensors, 1), build_u64(&b->tensors, 4);
    build_u32(&b->tensors, 0), build_u64(&b->tensors, 0), build_zeros(&b->data, 32);
    b->n_tensors++;
}
static void bad_split_name(gguf_build *b) { gguf_build_scalar(b, "split.count", B_U16, &(uint16_t){3}, 2); }
static void bad_split_second(gguf_build *b)
{
    gguf_build_scalar(b, "split.no", B_U16, &(uint16_t){1}, 2);
    gguf_build_scalar(b, "split.count", B_U16, &(uint16_t){3}, 2);
}
static void bad_split_count(gguf_build *b) { gguf_build_scalar(b, "split.count", B_I32, &(int32_t){-2}, 4); }

static const struct {
    const char *name;
    void (*make)(gguf_build *b);
    spw_status code;
    const char *part;
} bad_files[] = {
    {"version 1", bad_version_1, SPW_E_UNSUPPORTED, "is GGUF version 1; this build reads versions 2 and 3"},
    {"version 99", bad_version_99, SPW_E_UNSUPPORTED, "is GGUF version 99"},
    {"big-endian", bad_big_endian, SPW_E_UNSUPPORTED, "is a big-endian GGUF file"},
    {"one key too few", bad_key_count, SPW_E_FORMAT, "truncated: 1 keys need"},
    {"2^64 keys", bad_key_count_huge, SPW_E_FORMAT, "truncated: 18446744073709551615 keys need"},
    {"tensors missing", bad_tensor_count, SPW_E_FORMAT, "truncated: 5 tensors need"},
    {"2^60 tensors", bad_tensor_count_huge, SPW_E_FORMAT, "truncated: 1152921504606846976 tensors need"},
    {"empty key name", bad_key_name_empty, SPW_E_FORMAT, "the name of key 1 of 1 has 0 bytes, expected 1 to 65535"},
    {"NUL in a key name", bad_key_name_nul, SPW_E_FORMAT, "the name of key 1 of 1 holds a NUL byte"},
    {"key name of 2^64 bytes", bad_key_name_length, SPW_E_FORMAT, "truncated: the name of key 1 of 1 needs 18446744073709551615 bytes"},
    {"key name of 70000 bytes", bad_key_name_long, SPW_E_FORMAT, "has 70000 bytes, expected 1 to 65535"},
    {"key type", bad_key_type, SPW_E_FORMAT, "key \"some.key\" has type 13, expected 0 to 12"},
    {"key twice", bad_key_twice, SPW_E_FORMAT, "key \"some.key\" occurs twice"},
    {"bool of 2", bad_bool, SPW_E_FORMAT, "key \"some.flag\" is the bool 2, expected 0 or 1"},
    {"string length", bad_string_length, SPW_E_FORMAT, "truncated: key \"some.text\" needs 18446744073709551612 bytes"},
    {"array type", bad_array_type, SPW_E_FORMAT, "key \"some.list\" is an array of type 77"},
    {"array of arrays", bad_array_nested, SPW_E_UNSUPPORTED, "key \"some.list\" is an array of arrays"},
    {"array of 2^61", bad_array_count, SPW_E_FORMAT, "truncated: key \"some.list\" has 2305843009213693952 elements, but only 64 bytes follow"},
    {"array of too many strings", bad_array_strings, SPW_E_FORMAT, "truncated: key \"some.list\" has 1073741824 elements"},
    {"string in an array", bad_array_string_length, SPW_E_FORMAT, "truncated: key \"some.list\" needs 1000 bytes"},
    {"alignment 0", bad_alignment_zero, SPW_E_FORMAT, "\"general.alignment\" is 0, expected 1 to 1048576"},
    {"alignment 48", bad_alignment_odd, SPW_E_FORMAT, "\"general.alignment\" is 48, expected a power of two"},
    {"alignment 2^31", bad_alignment_huge, SPW_E_FORMAT, "\"general.alignment\" is 2147483648"},
    {"alignment as text", bad_alignment_type, SPW_E_FORMAT, "\"general.alignment\" has type str, expected an integer"},
    {"tensor twice", bad_tensor_twice, SPW_E_FORMAT, "tensor \"x\" occurs twice"},
    {"no dimensions", bad_tensor_no_dims, SPW_E_FORMAT, "tensor \"x\" has 0 dimensions, expected 1 to 4"},
    {"five dimensions", bad_tensor_five_dims, SPW_E_FORMAT, "tensor \"x\" has 5 dimensions"},
    {"dimension 0", bad_tensor_zero_dim, SPW_E_FORMAT, "tensor \"x\": dimension 1 is 0"},
    {"2^66 elements", bad_tensor_elements, SPW_E_FORMAT, "tensor \"x\" has more than 2^63 elements"},
    {"2^64 bytes", bad_tensor_bytes, SPW_E_FORMAT, "tensor \"x\" has more than 2^64 bytes"},
    {"part of a block", bad_tensor_block, SPW_E_FORMAT, "tensor \"x\" of type Q4_K: its rows have 32 elements, expected a multiple of 256"},
    {"tensor beyond the end", bad_tensor_size, SPW_E_FORMAT, "truncated: tensor \"x\" needs 68 bytes from byte 0 of the data, but only 64"},
    {"offset at the end", bad_tensor_offset, SPW_E_FORMAT, "truncated: tensor \"x\" needs 16 bytes from byte 64"},
    {"offset wraps", bad_tensor_offset_wraps, SPW_E_FORMAT, "truncated: tensor \"x\" needs 16 bytes from byte 18446744073709551584"},
    {"offset not aligned", bad_tensor_offset_odd, SPW_E_FORMAT, "tensor \"x\": its offset 4 is no multiple of the alignment 32"},
    {"unknown type beyond the end", bad_tensor_unknown_offset, SPW_E_FORMAT, "truncated: tensor \"x\""},
    {"NUL in a tensor name", bad_tensor_name_nul, SPW_E_FORMAT, "the name of tensor 1 of 1 holds a NUL byte"},
    {"part with a plain name", bad_split_name, SPW_E_FORMAT, "is the first of 3 parts, so its name must end in -00001-of-00003.gguf"},
    {"second part", bad_split_second, SPW_E_FORMAT, "is part 2 of 3: open the first part, whose name ends in -00001-of-00003.gguf"},
    {"negative number of parts", bad_split_count, SPW_E_FORMAT, "key \"split.count\" is -2, expected 0 to 99999"},
};

static void test_bad_files(void)
{
    for (size_t i = 0; i < sizeof bad_files / sizeof bad_files[0]; i++) {
        gguf_build b = {0};
        gguf_file *f = NULL;
        spw_err err = {0};
        int before = test_bad;
        size_t in_use = mem_in_use();
        bad_files[i].make(&b);
        CHECK(gguf_build_write(&b, in_dir("bad.gguf")));
        CHECK_INT(gguf_open(&f, path, &err), bad_files[i].code);
        CHECK_INT(err.code, bad_files[i].code);
        CHECK_HAS(err.msg, path);
        CHECK_HAS(err.msg, bad_files[i].part);
        CHECK(!f);
        CHECK_INT(mem_in_use(), in_use);
        if (test_bad != before) fprintf(stderr, "  in the case \"%s\"\n", bad_files[i].name);
    }
}

/* Opening bytes that are no GGUF file at all. */
static void check_raw(const char *bytes, size_t n, const char *part)
{
    gguf_file *f = NULL;
    spw_err err = {0};
    CHECK(build_write_file(in_dir("raw.gguf"), bytes, n));
    CHECK_INT(gguf_open(&f, path, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "raw.gguf");
    CHECK_HAS(err.msg, part);
}

static void test_not_gguf(void)
{
    gguf_file *f = NULL;
    spw_err err = {0};
    check_raw("", 0, "truncated: 0 bytes");
    check_raw("GGU", 3, "truncated: 3 bytes");
    check_raw("#!/bin/sh\n", 10, "is not a GGUF file: expected magic 'GGUF', found '#!/b'");
    check_raw("\x7f" "ELF", 4, "found '\\x7fELF'");
    check_raw("x", 1, "is not a GGUF file: expected magic 'GGUF', found 'x'");
    CHECK_INT(gguf_open(&f, in_dir("none.gguf"), &err), SPW_E_IO);
    CHECK_HAS(err.msg, "none.gguf: cannot open: No such file or directory");
    CHECK_INT(gguf_open(&f, dir, &err), SPW_E_IO);
    CHECK_HAS(err.msg, "is a directory, expected a GGUF file");
    CHECK_INT(gguf_open(&f, "/dev/null", &err), SPW_E_IO);
    CHECK_HAS(err.msg, "is not a regular file");
    char longer[3000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    memcpy(longer + sizeof longer - 10, "/end.gguf", 9);
    CHECK_INT(gguf_open(&f, longer, &err), SPW_E_IO);
    CHECK_HAS(err.msg, "/end.gguf: cannot open: File name too long");
    CHECK(!f);
}

static void test_every_cut(void)
{
    gguf_build b = {0};
    size_t size;
    build_good(&b);
    uint8_t *image = gguf_build_finish(&b, &size);
    for (size_t cut = 0; cut < size; cut++) {
        gguf_file *f = NULL;
        spw_err err = {0};
        int before = test_bad;
        CHECK(build_write_file(in_dir("cut.gguf"), image, cut));
        CHECK_INT(gguf_open(&f, path, &err), SPW_E_FORMAT);
        CHECK_HAS(err.msg, "cut.gguf: truncated: ");
        if (f) gguf_close(f);
        if (test_bad != before) {
            fprintf(stderr, "  cut at byte %zu of %zu\n", cut, size);
            break;
        }
    }
    free(image);
}

/* Any one byte changed: opens or is refused, never worse. */
static void test_every_byte(void)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    gguf_build b = {0};
    size_t size, opened = 0, refused = 0, in_use = mem_in_use();
    build_good(&b);
    uint8_t *image = gguf_build_finish(&b, &size);
    for (size_t i = 0; i < size; i++)
        for (size_t v = 0; v < sizeof values; v++) {
            gguf_file *f = NULL;
            spw_err err = {0};
            uint8_t old = image[i];
            image[i] = values[v];
            CHECK(build_write_file(in_dir("flip.gguf"), image, size));
            image[i] = old;
            if (gguf_open(&f, path, &err)) {
                refused++;
                CHECK_HAS(err.msg, "flip.gguf: ");
            } else opened++;
            gguf_close(f);
        }
    CHECK(opened > 100 && refused > 100);
    CHECK_INT(mem_in_use(), in_use);
    free(image);
}

static void test_no_memory(void)
{
    size_t in_use = mem_in_use();
    int refused = 0;
    for (long n = 0; n < 40; n++) {
        gguf_file *f = NULL;
        spw_err err = {0};
        mem_fail_after(n, true);
        spw_status st = gguf_open(&f, in_dir("good.gguf"), &err);
        mem_fail_after(-1, false);
        if (!st) gguf_close(f);
        else {
            refused++;
            CHECK_INT(st, SPW_E_NOMEM);
            CHECK_HAS(err.msg, "no memory");
        }
        CHECK_INT(mem_in_use(), in_use);
        if (!st) break;
    }
    CHECK(refused > 5 && refused < 40);
}

/* Versions, alignments and types that must be taken. */
static void test_good_variants(void)
{
    gguf_file *f = NULL;
    spw_err err = {0};
    gguf_build b = {.version = 2, .alignment = 128};
    gguf_build_u32(&b, "general.alignment", 128);
    gguf_build_tensor(&b, "x", 99, 1, four, NULL, 64);
    gguf_build_tensor(&b, "y", QUANT_F16, 1, four, NULL, 8);
    CHECK(gguf_build_write(&b, in_dir("ok.gguf")));
    CHECK_OK(gguf_open(&f, path, &err), err);
    if (!f) return;
    const gguf_tensor *x = gguf_find_tensor(f, "x"), *y = gguf_find_tensor(f, "y");
    CHECK(x && x->type == 99 && x->bytes == 0 && !x->data);
    CHECK(y && y->bytes == 8 && (uintptr_t)y->data % 128 == 0);
    gguf_close(f);
    gguf_build empty = {0};
    CHECK(gguf_build_write(&empty, in_dir("ok.gguf")));
    CHECK_OK(gguf_open(&f, path, &err), err);
    CHECK(!gguf_find_key(f, "x") && !gguf_find_tensor(f, "x"));
    gguf_close(f);
}

static void test_big_vocabulary(void)
{
    gguf_build b = {0};
    gguf_file *f = NULL;
    spw_err err = {0};
    const gguf_key *k = NULL;
    struct timespec t0, t1;
    gguf_build_tokens(&b, "tokenizer.ggml.tokens", 150000);
    for (int i = 0; i < 20000; i++) {
        char name[32];
        snprintf(name, sizeof name, "key.%d", i);
        gguf_build_u32(&b, name, (uint32_t)i);
    }
    CHECK(gguf_build_write(&b, in_dir("big.gguf")));
    clock_gettime(CLOCK_MONOTONIC, &t0);
    CHECK_OK(gguf_open(&f, path, &err), err);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    if (!f) return;
    uint32_t u = 0;
    CHECK_OK(gguf_get_u32(f, "key.19999", true, &u, &err), err);
    CHECK_INT(u, 19999);
    CHECK_OK(gguf_get_array(f, "tokenizer.ggml.tokens", GGUF_STRING, true, &k, &err), err);
    gguf_str s = gguf_array_str(k, 149999);
    CHECK(s.len == 7 && !memcmp(s.p, "t149999", 7));
    CHECK((double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec) < 1.0); /* a few ms; the bound leaves room for sanitizers */
    gguf_close(f);
}

/* gguf.c's hash, repeated: whoever wants to make its table slow can compute it too. */
static uint64_t hash_of(const char *name)
{
    uint64_t h = 14695981039346656037u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 1099511628211u;
    return h ^ h >> 29;
}

/* 400 names for the same place of the table: refused instead of searched through again and again. */
static void test_colliding_names(void)
{
    gguf_build b = {0};
    gguf_file *f = NULL;
    spw_err err = {0};
    for (int i = 0; b.n_keys < 400; i++) {
        char name[32];
        snprintf(name, sizeof name, "k%d", i);
        if (hash_of(name) % 1024 == 0) gguf_build_u32(&b, name, 1);
    }
    CHECK(gguf_build_write(&b, in_dir("slow.gguf")));
    CHECK_INT(gguf_open(&f, path, &err), SPW_E_FORMAT);
    CHECK_HAS(err.msg, "slow.gguf: the names of its keys are made to collide");
}

/* ---- split files ---- */

static void write_part(const char *name, int no, int count, int total, const char *tensor)
{
    gguf_build b = {0};
    if (no >= 0) gguf_build_scalar(&b, "split.no", B_U16, &(uint16_t){(uint16_t)no}, 2);
    gguf_build_scalar(&b, "split.count", B_U16, &(uint16_t){(uint16_t)count}, 2);
    gguf_build_scalar(&b, "split.tensors.count", B_I32, &(int32_t){total}, 4);
    if (no == 0) gguf_build_str(&b, "general.name", "parts");
    gguf_build_tensor(&b, tensor, QUANT_F32, 1, four, NULL, 16);
    CHECK(gguf_build_write(&b, in_dir(name)));
}

static void check_split(spw_status code, const char *part)
{
    gguf_file *f = NULL;
    spw_err err = {0};
    size_t in_use = mem_in_use();
    CHECK_INT(gguf_open(&f, in_dir("m-00001-of-00003.gguf"), &err), code);
    CHECK_HAS(err.msg, part);
    CHECK_INT(mem_in_use(), in_use);
    if (f) gguf_close(f);
}

static void test_split(void)
{
    gguf_file *f = NULL;
    spw_err err = {0};
    write_part("m-00001-of-00003.gguf", 0, 3, 3, "a");
    check_split(SPW_E_IO, "part 2 of 3 is missing: ");
    write_part("m-00002-of-00003.gguf", 1, 3, 3, "b");
    check_split(SPW_E_IO, "m-00003-of-00003.gguf");
    write_part("m-00003-of-00003.gguf", 2, 3, 3, "c");
    CHECK_OK(gguf_open(&f, in_dir("m-00001-of-00003.gguf"), &err), err);
    if (!f) return;
    CHECK_INT(gguf_n_tensors(f), 3);
    CHECK(gguf_find_tensor(f, "a") && gguf_find_tensor(f, "c") && gguf_find_tensor(f, "c")->data);
    CHECK_INT(gguf_n_keys(f), 4);
    gguf_close(f);
    write_part("m-00003-of-00003.gguf", 2, 3, 3, "a");
    check_split(SPW_E_FORMAT, "tensor \"a\" occurs twice");
    write_part("m-00003-of-00003.gguf", 1, 3, 3, "c");
    check_split(SPW_E_FORMAT, "m-00003-of-00003.gguf: its keys split.no and split.count are 1 and 3, expected 2 and 3");
    write_part("m-00003-of-00003.gguf", -1, 3, 3, "c");
    check_split(SPW_E_FORMAT, "split.count are -1 and 3");
    write_part("m-00003-of-00003.gguf", 2, 3, 3, "c");
    write_part("m-00001-of-00003.gguf", 0, 3, 4, "a");
    check_split(SPW_E_FORMAT, "its parts hold 3 tensors, expected 4");
    write_part("m-00001-of-00003.gguf", 0, 3, 3, "a");
    CHECK(build_write_file(in_dir("m-00002-of-00003.gguf"), "GGUF\3\0\0\0", 8));
    check_split(SPW_E_FORMAT, "m-00002-of-00003.gguf: truncated: the number of tensors needs 8 bytes");
}

/* ---- the real files ---- */

static void test_assets(void)
{
    static const char *const names[] = {
        "models/stories260K-f32.gguf", "models/stories15M-Q8_0.gguf", "models/needle-d64-l8.gguf", "models/needle-d128-Q4_0.gguf",
        "vocab/ggml-vocab-gpt-2.gguf", "vocab/ggml-vocab-llama-bpe.gguf", "vocab/ggml-vocab-llama-spm.gguf", "vocab/ggml-vocab-qwen2.gguf",
    };
    const char *assets = getenv("SPILLWAY_ASSETS");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char full[1024];
        gguf_file *f = NULL;
        spw_err err = {0};
        snprintf(full, sizeof full, "%s/%s", assets ? assets : "../shared/assets", names[i]);
        if (access(full, R_OK)) {
            SKIP(names[i], "not in the assets folder (SPILLWAY_ASSETS)");
            continue;
        }
        CHECK_OK(gguf_open(&f, full, &err), err);
        if (!f) continue;
        CHECK(gguf_find_key(f, "general.architecture"));
        CHECK((gguf_n_tensors(f) > 0) == !strncmp(names[i], "models", 6));
        gguf_close(f);
    }
}

static void remove_dir(void)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') unlink(in_dir(e->d_name));
    if (d) closedir(d);
    rmdir(dir);
}

int main(void)
{
    if (!mkdtemp(dir)) {
        perror(dir);
        return 1;
    }
    RUN(test_values);
    RUN(test_wrong_getters);
    RUN(test_bad_files);
    RUN(test_not_gguf);
    RUN(test_every_cut);
    RUN(test_every_byte);
    RUN(test_no_memory);
    RUN(test_good_variants);
    RUN(test_big_vocabulary);
    RUN(test_colliding_names);
    RUN(test_split);
    RUN(test_assets);
    remove_dir();
    return test_done();
}
