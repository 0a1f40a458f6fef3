/* file.c - the public view of a GGUF file: keys and tensors as names and text, and the summary of a model.
 *
 * The text of a key is written through a counting buffer, so that the length of the whole is known however little room there is. */
#include "chat.h"
#include "mem.h"
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_ELEMS = 8, TYPE_TEXT = 24 };

struct spw_file {
    gguf_file *gguf;
    char (*unknown_type)[TYPE_TEXT]; /* per tensor: "type 99" where ggml's number has no name; else empty */
};

spw_status spw_file_open(spw_file **out, const char *path, spw_err *err)
{
    if (!out || !path) return spw_fail(err, SPW_E_ARG, "spw_file_open: out and path must not be NULL");
    spw_file *f = mem_calloc(1, sizeof *f);
    if (!f) return spw_fail(err, SPW_E_NOMEM, "no memory to open a file");
    spw_status st = gguf_open(&f->gguf, path, err);
    if (st) {
        mem_free(f);
        return st;
    }
    size_t n = gguf_n_tensors(f->gguf);
    f->unknown_type = mem_calloc(n + 1, sizeof *f->unknown_type);
    if (!f->unknown_type) {
        st = gguf_fail(f->gguf, err, SPW_E_NOMEM, "no memory for the names of %zu tensors", n);
        spw_file_close(f);
        return st;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t type = gguf_tensor_at(f->gguf, i)->type;
        if (!quant_ggml_name(type)) snprintf(f->unknown_type[i], TYPE_TEXT, "type %u", type);
    }
    *out = f;
    return SPW_OK;
}

void spw_file_close(spw_file *f)
{
    if (!f) return;
    gguf_close(f->gguf);
    mem_free(f->unknown_type);
    mem_free(f);
}

const gguf_file *gguf_of_file(const spw_file *f)
{
    return f->gguf;
}

size_t spw_file_n_keys(const spw_file *f)
{
    return gguf_n_keys(f->gguf);
}

static const char *key_type(const gguf_key *k)
{
    static const char *const arrays[GGUF_TYPES] = {
        [GGUF_U8] = "arr[u8]",   [GGUF_I8] = "arr[i8]",   [GGUF_U16] = "arr[u16]",  [GGUF_I16] = "arr[i16]",   [GGUF_U32] = "arr[u32]", [GGUF_I32] = "arr[i32]",
        [GGUF_F32] = "arr[f32]", [GGUF_BOOL] = "arr[bool]", [GGUF_STRING] = "arr[str]", [GGUF_U64] = "arr[u64]", [GGUF_I64] = "arr[i64]", [GGUF_F64] = "arr[f64]",
    };
    return k->type == GGUF_ARRAY ? arrays[k->elem_type] : gguf_type_name(k->type);
}

spw_file_key spw_file_key_at(const spw_file *f, size_t i)
{
    if (i >= gguf_n_keys(f->gguf)) return (spw_file_key){.name = "", .type = ""};
    const gguf_key *k = gguf_key_at(f->gguf, i);
    return (spw_file_key){.name = k->name, .type = key_type(k), .n_elems = k->n};
}

typedef struct text {
    char *out;
    size_t cap, len; /* len: of the whole text, also what did not fit */
} text;

static void text_add(text *t, const char *s, size_t n)
{
    if (t->len < t->cap) memcpy(t->out + t->len, s, n < t->cap - t->len ? n : t->cap - t->len);
    t->len += n;
}

/* The shortest decimal that reads back as the same number. */
static void text_add_number(text *t, double v, bool single)
{
    char buf[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, v);
        if (!isfinite(v) || (single ? strtof(buf, NULL) == (float)v : strtod(buf, NULL) == v)) break;
    }
    text_add(t, buf, strlen(buf));
}

static void text_add_elem(text *t, const gguf_key *k, uint64_t i)
{
    char buf[24] = "";
    switch (k->elem_type) {
    case GGUF_STRING: {
        gguf_str s = gguf_array_str(k, i);
        text_add(t, s.p, s.len);
        return;
    }
    case GGUF_F32:
    case GGUF_F64: text_add_number(t, gguf_array_f64(k, i), k->elem_type == GGUF_F32); return;
    case GGUF_BOOL: snprintf(buf, sizeof buf, "%s", gguf_array_int(k, i) ? "true" : "false"); break;
    case GGUF_U64: snprintf(buf, sizeof buf, "%llu", (unsigned long long)gguf_array_int(k, i)); break;
    default: snprintf(buf, sizeof buf, "%lld", (long long)gguf_array_int(k, i)); break;
    }
    text_add(t, buf, strlen(buf));
}

size_t spw_file_key_text(const spw_file *f, size_t i, char *out, size_t cap)
{
    text t = {.out = out, .cap = cap ? cap - 1 : 0};
    if (i < gguf_n_keys(f->gguf)) {
        const gguf_key *k = gguf_key_at(f->gguf, i);
        if (k->type != GGUF_ARRAY) text_add_elem(&t, k, 0);
        else {
            text_add(&t, "[", 1);
            for (uint64_t e = 0; e < k->n && e < SHOWN_ELEMS; e++) {
                if (e) text_add(&t, ", ", 2);
                text_add_elem(&t, k, e);
            }
            if (k->n > SHOWN_ELEMS) text_add(&t, ", ...", 5);
            text_add(&t, "]", 1);
        }
    }
    if (cap) out[t.len < t.cap ? t.len : t.cap] = '\0';
    return t.len;
}

size_t spw_file_n_tensors(const spw_file *f)
{
    return gguf_n_tensors(f->gguf);
}

spw_file_tensor spw_file_tensor_at(const spw_file *f, size_t i)
{
    if (i >= gguf_n_tensors(f->gguf)) return (spw_file_tensor){.name = "", .type = "", .n_dims = 1};
    const gguf_tensor *t = gguf_tensor_at(f->gguf, i);
    const char *name = quant_ggml_name(t->type);
    spw_file_tensor out = {.name = t->name, .type = name ? name : f->unknown_type[i], .n_dims = t->n_dims, .bytes = t->bytes};
    memcpy(out.dims, t->dims, sizeof out.dims);
    return out;
}

/* info->tokenizer and info->chat_template. */
static spw_status fill_tokenizer(spw_model_info *info, const gguf_file *f, spw_err *err)
{
    gguf_str kind = {"", 0}, pre = {"", 0}, chat = {NULL, 0};
    spw_status st = gguf_get_str(f, "tokenizer.ggml.model", false, &kind, err);
    if (!st) st = gguf_get_str(f, "tokenizer.ggml.pre", false, &pre, err);
    if (!st) st = gguf_get_str(f, "tokenizer.chat_template", false, &chat, err);
    if (st) return st;
    char first[32], second[31];
    gguf_copy_str(first, sizeof first, kind);
    gguf_copy_str(second, sizeof second, pre);
    snprintf(info->tokenizer, sizeof info->tokenizer, "%s%s%s", first, first[0] && second[0] ? "/" : "", second);
    char *jinja = chat.p ? mem_strndup(chat.p, chat.len) : NULL;
    if (chat.p && !jinja) return gguf_fail(f, err, SPW_E_NOMEM, "no memory for the chat template");
    snprintf(info->chat_template, sizeof info->chat_template, "%s", chat_fingerprint(jinja));
    mem_free(jinja);
    return SPW_OK;
}

spw_status spw_file_model_info(const spw_file *f, spw_model_info *info, spw_err *err)
{
    if (!f || !info) return spw_fail(err, SPW_E_ARG, "spw_file_model_info: file and info must not be NULL");
    model_hparams hp;
    spw_model_info found;
    spw_status st = model_read_hparams(&hp, f->gguf, err);
    if (st && st != SPW_E_UNSUPPORTED) return st;
    model_fill_info(&found, &hp, f->gguf);
    mem_free(hp.layer_kv);
    spw_status token_st = fill_tokenizer(&found, f->gguf, st ? NULL : err);
    if (token_st && !st) return token_st;
    *info = found;
    return st;
}
