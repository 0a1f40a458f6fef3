/* cmd_inspect.c - spillway inspect: what a GGUF file holds and what running it takes.  Reads the header; loads nothing. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "report.h"
#include "text_input.h"

/* Longest text of a key's value that is shown, and room for it in a list of many keys. */
#define VALUE_SHOWN 200

/* Tensors of one type. */
typedef struct type_sum {
    const char *type;
    uint64_t n, bytes;
} type_sum;

/* All that is known of one file. */
typedef struct inspection {
    const options *flags;
    const char *path;
    spw_file *file;
    spw_vocab *vocab; /* NULL where it cannot be read */
    spw_model_info info;
    spw_err info_error, vocab_error; /* code SPW_OK: none */
    type_sum *types;
    size_t n_types;
    bool has_memory;
    uint64_t n_ctx;
    spw_memory memory;
} inspection;

static void sum_types(inspection *x)
{
    size_t n = spw_file_n_tensors(x->file);
    for (size_t i = 0; i < n; i++) {
        spw_file_tensor t = spw_file_tensor_at(x->file, i);
        size_t at = 0;
        while (at < x->n_types && strcmp(x->types[at].type, t.type) != 0) at++;
        if (at == x->n_types) {
            x->types = app_realloc(x->types, (x->n_types + 1) * sizeof *x->types);
            x->types[x->n_types++] = (type_sum){.type = t.type};
        }
        x->types[at].n++;
        x->types[at].bytes += t.bytes;
    }
}

/* Value of key i, at most VALUE_SHOWN bytes and a mark where it is longer; returns a text to be freed. */
static text key_value(const spw_file *f, size_t i)
{
    char shown[VALUE_SHOWN + 1];
    text value = {0};
    size_t len = spw_file_key_text(f, i, shown, sizeof shown);
    size_t have = len < sizeof shown ? len : sizeof shown - 1;
    /* No character is cut in two. */
    while (len > have && have > 0 && ((unsigned char)shown[have - 1] & 0xc0) == 0x80) have--;
    if (len > have && have > 0 && (unsigned char)shown[have - 1] >= 0xc0) have--;
    text_append(&value, shown, have);
    if (len > have) text_append(&value, "...", 3);
    return value;
}

/* -------------------------------------------------------------------------------------------- as text ---- */

static void print_field(const char *name, const char *value)
{
    printf("  %-22s ", name);
    report_print_safe(stdout, value, strlen(value));
    putchar('\n');
}

static void print_number(const char *name, uint64_t v, const char *unit)
{
    printf("  %-22s %" PRIu64 "%s\n", name, v, unit);
}

static void print_bytes(const char *name, uint64_t bytes)
{
    char words[24];
    printf("  %-22s %s (%" PRIu64 " bytes)\n", name, report_bytes(bytes, words), bytes);
}

static void print_model(const inspection *x)
{
    const spw_model_info *m = &x->info;
    char real[32];
    printf("Model\n");
    print_field("file", x->path);
    print_field("name", *m->name ? m->name : "(none)");
    print_field("architecture", *m->architecture ? m->architecture : "(none)");
    if (x->info_error.code != SPW_OK) print_field("note", x->info_error.msg);
    if (!m->has_weights) print_field("note", "a vocabulary only, no weights");
    if (m->n_layer) {
        printf("\nHyper-parameters\n");
        print_number("layers", m->n_layer, "");
        print_number("width", m->n_embd, "");
        print_number("feed-forward width", m->n_ff, "");
        print_number("query heads", m->n_head, "");
        print_number("KV heads", m->n_head_kv, "");
        print_number("head dimension", m->head_dim, "");
        print_number("trained context", m->n_ctx_train, " positions");
        snprintf(real, sizeof real, "%g", (double)m->rope_freq_base);
        print_field("rope base", real);
        print_field("rope scaling", m->rope_scaling);
    }
    printf("\nTokenizer\n");
    print_field("kind", *m->tokenizer ? m->tokenizer : "(none)");
    if (!x->vocab) {
        print_field("note", x->vocab_error.msg);
    } else {
        print_number("tokens", (uint64_t)spw_vocab_size(x->vocab), "");
        snprintf(real, sizeof real, "%" PRId32 "%s", spw_vocab_bos(x->vocab), spw_vocab_adds_bos(x->vocab) ? ", put before a text" : "");
        print_field("BOS", spw_vocab_bos(x->vocab) < 0 ? "(none)" : real);
        snprintf(real, sizeof real, "%" PRId32, spw_vocab_eos(x->vocab));
        print_field("EOS", spw_vocab_eos(x->vocab) < 0 ? "(none)" : real);
    }
    print_field("chat template", *m->chat_template ? m->chat_template : "(none)");
}

static void print_tensors(const inspection *x)
{
    char words[24];
    size_t n = spw_file_n_tensors(x->file);
    printf("\nTensors\n");
    print_number("tensors", n, "");
    print_number("parameters", x->info.n_params, "");
    for (size_t i = 0; i < x->n_types; i++) {
        printf("  ");
        report_print_safe(stdout, x->types[i].type, strlen(x->types[i].type));
        int pad = 22 - (int)strlen(x->types[i].type);
        printf("%*s %" PRIu64 " tensors, %s\n", pad > 0 ? pad : 0, "", x->types[i].n, report_bytes(x->types[i].bytes, words));
    }
    for (size_t i = 0; x->flags->tensors && i < n; i++) {
        spw_file_tensor t = spw_file_tensor_at(x->file, i);
        printf("  ");
        report_print_safe(stdout, t.name, strlen(t.name));
        printf("  %s  [", t.type);
        for (int d = 0; d < t.n_dims; d++) printf("%s%" PRIu64, d ? ", " : "", t.dims[d]);
        printf("]  %s\n", report_bytes(t.bytes, words));
    }
}

static void print_keys(const inspection *x)
{
    printf("\nKeys\n");
    for (size_t i = 0; i < spw_file_n_keys(x->file); i++) {
        spw_file_key k = spw_file_key_at(x->file, i);
        text value = key_value(x->file, i);
        printf("  ");
        report_print_safe(stdout, k.name, strlen(k.name));
        printf("  %s", k.type);
        if (strncmp(k.type, "arr", 3) == 0) printf(" of %" PRIu64, k.n_elems);
        printf("  ");
        report_print_safe(stdout, value.data, value.len);
        putchar('\n');
        text_free(&value);
    }
}

static void print_memory(const inspection *x)
{
    printf("\nMemory for a context of %" PRIu64 " positions\n", x->n_ctx);
    print_bytes("weights", x->memory.weights);
    print_bytes("KV per position", x->info.kv_bytes_per_pos);
    print_bytes("KV", x->memory.kv);
    print_bytes("scratch", x->memory.scratch);
    print_bytes("together", x->memory.weights + x->memory.kv + x->memory.scratch);
    print_bytes("available now", x->memory.available);
}

static int print_all(const inspection *x)
{
    print_model(x);
    print_tensors(x);
    if (x->has_memory) print_memory(x);
    if (x->flags->keys) print_keys(x);
    return report_finish(command_inspect.name);
}

/* -------------------------------------------------------------------------------------------- as JSON ---- */

static json_t *words(const char *s)
{
    return report_text(s, strlen(s));
}

static json_t *model_to_json(const inspection *x)
{
    const spw_model_info *m = &x->info;
    json_t *o = json_object();
    json_object_set_new(o, "file", words(x->path));
    json_object_set_new(o, "name", words(m->name));
    json_object_set_new(o, "architecture", words(m->architecture));
    json_object_set_new(o, "supported", json_boolean(x->info_error.code == SPW_OK));
    json_object_set_new(o, "has_weights", json_boolean(m->has_weights));
    json_object_set_new(o, "n_layer", report_count(m->n_layer));
    json_object_set_new(o, "n_embd", report_count(m->n_embd));
    json_object_set_new(o, "n_ff", report_count(m->n_ff));
    json_object_set_new(o, "n_head", report_count(m->n_head));
    json_object_set_new(o, "n_head_kv", report_count(m->n_head_kv));
    json_object_set_new(o, "head_dim", report_count(m->head_dim));
    json_object_set_new(o, "n_vocab", report_count(m->n_vocab));
    json_object_set_new(o, "n_ctx_train", report_count(m->n_ctx_train));
    json_object_set_new(o, "rope_freq_base", report_real((double)m->rope_freq_base));
    json_object_set_new(o, "rope_scaling", words(m->rope_scaling));
    json_object_set_new(o, "n_params", report_count(m->n_params));
    json_object_set_new(o, "weight_bytes", report_count(m->weight_bytes));
    json_object_set_new(o, "kv_bytes_per_pos", report_count(m->kv_bytes_per_pos));
    json_object_set_new(o, "tokenizer", words(m->tokenizer));
    json_object_set_new(o, "chat_template", words(m->chat_template));
    json_object_set_new(o, "bos", x->vocab ? json_integer(spw_vocab_bos(x->vocab)) : json_null());
    json_object_set_new(o, "eos", x->vocab ? json_integer(spw_vocab_eos(x->vocab)) : json_null());
    json_object_set_new(o, "adds_bos", x->vocab ? json_boolean(spw_vocab_adds_bos(x->vocab)) : json_null());
    return o;
}

static json_t *tensors_to_json(const inspection *x)
{
    json_t *list = json_array();
    for (size_t i = 0; i < spw_file_n_tensors(x->file); i++) {
        spw_file_tensor t = spw_file_tensor_at(x->file, i);
        json_t *o = json_object(), *dims = json_array();
        for (int d = 0; d < t.n_dims; d++) json_array_append_new(dims, report_count(t.dims[d]));
        json_object_set_new(o, "name", words(t.name));
        json_object_set_new(o, "type", words(t.type));
        json_object_set_new(o, "dims", dims);
        json_object_set_new(o, "bytes", report_count(t.bytes));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *keys_to_json(const inspection *x)
{
    json_t *list = json_array();
    for (size_t i = 0; i < spw_file_n_keys(x->file); i++) {
        spw_file_key k = spw_file_key_at(x->file, i);
        text value = key_value(x->file, i);
        json_t *o = json_object();
        json_object_set_new(o, "name", words(k.name));
        json_object_set_new(o, "type", words(k.type));
        json_object_set_new(o, "n_elems", report_count(k.n_elems));
        json_object_set_new(o, "value", report_text(value.data, value.len));
        json_array_append_new(list, o);
        text_free(&value);
    }
    return list;
}

static json_t *memory_to_json(const inspection *x)
{
    if (!x->has_memory) return json_null();
    json_t *o = json_object();
    json_object_set_new(o, "n_ctx", report_count(x->n_ctx));
    json_object_set_new(o, "weights", report_count(x->memory.weights));
    json_object_set_new(o, "kv", report_count(x->memory.kv));
    json_object_set_new(o, "scratch", report_count(x->memory.scratch));
    json_object_set_new(o, "available", report_count(x->memory.available));
    return o;
}

static json_t *to_json(const inspection *x)
{
    json_t *o = model_to_json(x), *types = json_array();
    for (size_t i = 0; i < x->n_types; i++) {
        json_t *t = json_object();
        json_object_set_new(t, "type", words(x->types[i].type));
        json_object_set_new(t, "tensors", report_count(x->types[i].n));
        json_object_set_new(t, "bytes", report_count(x->types[i].bytes));
        json_array_append_new(types, t);
    }
    json_object_set_new(o, "types", types);
    json_object_set_new(o, "memory", memory_to_json(x));
    json_object_set_new(o, "tensors", tensors_to_json(x));
    json_object_set_new(o, "keys", keys_to_json(x));
    return o;
}

/* ------------------------------------------------------------------------------------------------------ */

static void look(inspection *x)
{
    /* An unknown architecture or tokenizer is a finding here, no failure. */
    x->info_error.code = spw_file_model_info(x->file, &x->info, &x->info_error);
    x->vocab_error.code = spw_vocab_open(&x->vocab, x->path, &x->vocab_error);
    if (x->vocab_error.code != SPW_OK) x->vocab = NULL;
    sum_types(x);
    x->n_ctx = x->flags->ctx ? (uint64_t)x->flags->ctx : x->info.n_ctx_train;
    spw_engine_params params = options_engine(x->flags);
    x->has_memory = x->info_error.code == SPW_OK && x->info.has_weights && x->n_ctx > 0 && spw_file_memory(x->file, x->n_ctx, &params, &x->memory, NULL) == SPW_OK;
    if (x->has_memory) x->info.kv_bytes_per_pos = x->memory.kv_bytes_per_pos;
}

static int inspect_main(const options *o)
{
    inspection x = {.flags = o, .path = o->operand ? o->operand : o->model};
    spw_err err = {0};
    if (!x.path || (o->operand && o->model)) {
        report_error(command_inspect.name, x.path ? "two files given: '%s' and -m" : "no file given: 'spillway inspect FILE'", x.path ? x.path : "");
        return EXIT_USAGE;
    }
    if (spw_file_open(&x.file, x.path, &err) != SPW_OK) {
        report_file_error(command_inspect.name, x.path, &err);
        return EXIT_FAILED;
    }
    look(&x);
    int code = o->json ? report_json(command_inspect.name, to_json(&x), JSON_INDENT(1)) : print_all(&x);
    free(x.types);
    spw_vocab_close(x.vocab);
    spw_file_close(x.file);
    return code;
}

const command command_inspect = {
    .bit = CMD_INSPECT,
    .name = "inspect",
    .summary = "show what a model file holds and what it takes to run it",
    .synopsis = "FILE [-c N] [--tensors] [--keys] [--json]",
    .description = "Shows a GGUF file's architecture, hyper-parameters, tokenizer, chat template and tensor types, and the memory that a context of N positions takes: "
                   "weights, keys and values, scratch, and what the system has available. Only the header is read. Values of keys are shortened.\n\n"
                   "With --json one object holds the same, with all tensors and keys.",
    .examples = "  spillway inspect model.gguf\n"
                "  spillway inspect model.gguf -c 131072 -ctk q8_0 -ctv q8_0\n"
                "  spillway inspect model.gguf --json | jq .memory\n",
    .operand = "FILE",
    .main = inspect_main,
};
