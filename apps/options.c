/* options.c - the flags of all subcommands: one table, one parser, one help printer.
 *
 * The table is the truth: the parser's checks, the help pages and their defaults are all made from it. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "budget.h"
#include "report.h"
#include "rule.h"

#define HELP_COLUMNS 96

typedef enum option_type {
    OPTION_FLAG,
    OPTION_INT,
    OPTION_REAL,
    OPTION_TEXT,
    OPTION_CHOICE,
    OPTION_INTS,    /* number_list */
    OPTION_CHOICES, /* number_list of indices into choices */
    OPTION_TEXTS,   /* word_list */
    OPTION_POLICY,  /* a name of choices, or several by layer */
    OPTION_BUDGET,  /* double */
} option_type;

typedef struct option {
    int commands;
    const char *group;
    char letter;       /* 0: none */
    const char *names; /* long names without dashes, separated by '|'; one that begins with a dash is written with that dash alone: "-pg" */
    const char *meta;  /* name of the value in the help */
    option_type type;
    size_t at;         /* offset of the value in options */
    double min, max;
    const char *(*choices)(void); /* names separated by ", " */
    const char *also;             /* one more choice, or NULL */
    const char *standard;         /* the default in words; NULL: print the default value, "": print none */
    const char *help;
} option;

static const char *rope_choices(void)
{
    return "none, linear, yarn";
}

/* In the order of spw_kv_type. */
static const char *kv_type_choices(void)
{
    return "f16, f32, q8_0";
}

static const char *block_choices(void)
{
    return "1, 16, 32, 64, 128";
}

static const char *index_choices(void)
{
    return "0, 1, 2, 3, 4";
}

static const char *rule_choices(void)
{
    return "flat, threshold, top-p, error, layer, model";
}

static const char *rest_choices(void)
{
    return "mean, none";
}

static spw_kv_rest kv_rest(const options *o)
{
    return o->kv_rest ? (spw_kv_rest)rest_number(o->kv_rest) : spw_session_default_params().kv_rest; /* one of rest_choices */
}

const char *options_kv_rest(const options *o)
{
    return rest_names[kv_rest(o)];
}

/* What is not given follows from what is. */
static spw_kv_rule kv_rule(const options *o)
{
    if (o->kv_rule) return (spw_kv_rule)rule_number(o->kv_rule); /* one of rule_choices */
    return o->kv_error > 0 ? SPW_KV_ERROR : o->kv_threshold > 0 ? SPW_KV_THRESHOLD : spw_session_default_params().kv_rule;
}

const char *options_kv_rule(const options *o)
{
    return rule_names[kv_rule(o)];
}

static const char *output_choices(void)
{
    return "md, csv, json, jsonl";
}

#define GENERATING (CMD_RUN | CMD_CHAT)
#define LOADING (CMD_RUN | CMD_CHAT | CMD_EVAL)
#define MEASURING (LOADING | CMD_BENCH)
#define READING (CMD_RUN | CMD_TOKENIZE | CMD_EVAL)
#define ALL_COMMANDS (CMD_RUN | CMD_CHAT | CMD_TOKENIZE | CMD_EVAL | CMD_INSPECT)
#define AT(field) offsetof(options, field)
#define WHOLE(field, lo, hi) OPTION_INT, AT(field), lo, hi, NULL, NULL
#define REAL(field, lo, hi) OPTION_REAL, AT(field), lo, hi, NULL, NULL
#define WORDS(field) OPTION_TEXT, AT(field), 0, 0, NULL, NULL
#define ONE_OF(field, names, extra) OPTION_CHOICE, AT(field), 0, 0, names, extra
#define WHOLES(field, lo, hi) OPTION_INTS, AT(field), lo, hi, NULL, NULL
#define SOME_OF(field, names) OPTION_CHOICES, AT(field), 0, 0, names, NULL
#define SWITCH(field) OPTION_FLAG, AT(field), 0, 0, NULL, NULL

static const char group_kinds[] = "What is measured";
static const char group_tests[] = "Tests";
static const char group_input[] = "Model and input";
static const char group_context[] = "Context and KV cache";
static const char group_samples[] = "Policies and samples";
static const char group_rope[] = "Contexts longer than the trained one";
static const char group_template[] = "Chat template";
static const char group_generation[] = "Generation";
static const char group_machine[] = "Machine";
static const char group_output[] = "Output";

#define CACHE_TYPES \
    "f16: halves. f32: floats, twice the memory, for comparing. q8_0: bytes, about half the memory of f16; not in blocks of 32 as llama.cpp has them, " \
    "but keys with a scale for each channel of a page of 128 positions and values with one for each position; the newest up to 128 positions stay halves."

static const option table[] = {
    {ALL_COMMANDS, group_input, 'm', "model", "FILE", WORDS(model), "", "The model, a GGUF file; of a split model its first part."},
    {READING, group_input, 'f', "file", "FILE", WORDS(file), "", "Read the text from FILE, byte for byte."},
    {CMD_RUN, group_input, 'p', "prompt", "TEXT", WORDS(prompt), "",
     "The prompt. With -f too, the file's text comes first, then a blank line, then TEXT. Without -p and -f the prompt is read from standard input."},
    {CMD_TOKENIZE, group_input, 'p', "prompt", "TEXT", WORDS(prompt), "", "The text itself. Without -p and -f it is read from standard input."},

    {CMD_BENCH, group_kinds, 0, "kernels", NULL, SWITCH(kernels), "", "In place of a model's tests: how near the kernels come to the limits of this machine. No model is needed."},
    {CMD_BENCH, group_kinds, 0, "machine", NULL, SWITCH(machine), "", "In place of a model's tests: these limits, and what was chosen from them. No model is needed."},
    {CMD_BENCH, group_input, 'm', "model", "FILE,...", OPTION_TEXTS, AT(models), 0, 0, NULL, NULL, "", "The models, GGUF files."},
    {CMD_BENCH, group_tests, 'p', "n-prompt", "N,...", WHOLES(n_prompt, 0, 1 << 30), "512", "Tests that read a prompt of N tokens; 0: none."},
    {CMD_BENCH, group_tests, 'n', "n-gen", "N,...", WHOLES(n_gen, 0, 1 << 30), "128", "Tests that generate N tokens; 0: none."},
    {CMD_BENCH, group_tests, 0, "-pg", "P,G", WHOLES(pairs, 0, 1 << 30), "", "A test that reads P tokens and then generates G."},
    {CMD_BENCH, group_tests, 'd', "n-depth", "N,...", WHOLES(n_depth, 0, 1 << 30), "0", "Positions that are in the context before each test."},
    {CMD_BENCH, group_tests, 0, "fill", NULL, SWITCH(fill), "",
     "Put made-up K and V in the context up to the depth in place of reading that many tokens: distinct at every position and of the model's own scale. Takes seconds, not hours; the output says so."},
    {CMD_BENCH, group_tests, 'r', "repetitions", "N", WHOLE(repetitions, 1, 10000), NULL, "Repetitions of each test."},
    {CMD_BENCH, group_tests, 0, "no-warmup", NULL, SWITCH(no_warmup), "", "Leave out the unmeasured run before each test."},
    {CMD_BENCH, group_tests, 0, "sweep", NULL, SWITCH(sweep), "",
     "In place of the tests: one context from depth 0 to -c; at every step the time of generating -n tokens and of reading -p tokens."},
    {CMD_BENCH, group_tests, 0, "sweep-step", "N", WHOLE(sweep_step, 1, 1 << 30), "the value of -p", "Positions from one depth of the sweep to the next."},
    {CMD_BENCH, group_tests, 'c', "ctx-size", "N", WHOLE(ctx, 1, 1 << 30), "the model's trained context", "Positions at which the sweep ends."},

    {CMD_RUN | CMD_CHAT | CMD_INSPECT, group_context, 'c', "ctx-size", "N", WHOLE(ctx, 1, 1 << 30), "the model's trained context",
     "Positions that the context holds, prompt and answer together. Reserves address space; memory is taken as positions are used."},
    {CMD_EVAL, group_context, 'c', "ctx-size", "N,...", WHOLES(lengths, 4, 1 << 30), "512 for ppl, otherwise 4096; kv and multiturn: as needed",
     "ppl, kld: tokens of a chunk, the length at which the text is evaluated. ruler, passkey, niah: tokens of prompt and answer, one or several lengths. kv, multiturn: positions that the context holds."},
    {CMD_EVAL, group_context, 0, "chunks", "N", WHOLE(chunks, -1, 1 << 30), NULL, "Chunks to evaluate; -1: all that the text gives."},
    {GENERATING | CMD_BENCH, group_context, 0, "kv-policy", "NAME", OPTION_POLICY, AT(kv_policy), 0, 0, spw_kv_policies, NULL, "adaptive; bench: full",
     "What a generated token attends to beside the first --kv-sink and the newest --kv-window positions. full: everything. window: nothing else. adaptive: single positions that an index of low-bit key codes "
     "finds. quest: blocks, by the bounds of their keys. hgca: what had attention when it left the window. oracle: what has the most attention; for measuring, it reads everything to find out. "
     "Several by layer: adaptive,0-1=full."},
    {MEASURING, group_context, 0, "kv-budget", "SHARE|N|auto", OPTION_BUDGET, AT(kv_budget), 0, 0, NULL, NULL, "the policy's",
     "How much of the positions between them may be read: a share up to 1, a number above 1, or auto: as many as their attention asks for. Of adaptive by default 2 %, of more than 32768 positions less: their number grows with the root from there on, so that it is 1 % of 128K and 0.35 % of a million."},
    {MEASURING, group_context, 0, "kv-block", "N", ONE_OF(kv_block, block_choices, NULL), "the policy's", "Adjacent positions that are chosen together."},
    {MEASURING, group_context, 0, "kv-rule", "RULE", ONE_OF(kv_rule, rule_choices, NULL), "model",
     "adaptive: how many positions a KV head reads. flat: the budget, alike for all. threshold: those with more than --kv-threshold of the attention. top-p: until --kv-threshold of the attention is left. error: until the output's error is below --kv-error. layer: the budget of all KV heads of a layer, spread over them. model: the same of all layers, on average over the tokens. All by estimates."},
    {MEASURING, group_context, 0, "kv-rest", "WHAT", ONE_OF(kv_rest, rest_choices, NULL), "mean",
     "adaptive: what stands for the positions that are not read. mean: the mean value of their pages, weighted by estimated attention. none: nothing."},
    {MEASURING, group_context, 0, "kv-threshold", "P", REAL(kv_threshold, 0, 0.999999), "the rule's", "A share of the attention; sets --kv-rule threshold unless that is given."},
    {MEASURING, group_context, 0, "kv-error", "TAU", REAL(kv_error, 0, 0.999999), "the rule's", "A share of a layer's largest output; sets --kv-rule error unless that is given."},
    {MEASURING, group_context, 0, "kv-beta", "B", REAL(kv_beta, 0, 1e9), NULL, "hgca: keep positions with at least B times the mean attention; 0: all."},
    {MEASURING, group_context, 0, "kv-sink", "N", WHOLE(kv_sink, 0, 1 << 30), NULL, "First positions of the context that are always attended to."},
    {MEASURING, group_context, 0, "kv-window", "N", WHOLE(kv_window, 1, 1 << 30), NULL, "Newest positions that are always attended to."},
    {MEASURING, group_context, 0, "sparse-min-ctx", "N", WHOLE(sparse_min_ctx, 0, 1 << 30), NULL, "Contexts shorter than N positions are read whole."},
    {MEASURING, group_context, 0, "kv-index", "PLANES", ONE_OF(kv_index, index_choices, NULL), "3", "Bit planes of the index that adaptive searches: more bits find better and take more memory; 0: no index."},

    {CMD_EVAL, group_samples, 0, "policies", "NAME[:BLOCK]:BUDGET,...", OPTION_TEXTS, AT(policies), 0, 0, NULL, NULL, "full,window,quest:16:.05,hgca:1.0,adaptive:.02,oracle:1:.02",
     "Policies to compare. A budget up to 1 is a share of the positions between sink and window, above 1 a number of them, or auto; hgca takes its beta. adaptive may be followed by a rule: "
     "adaptive:.01:threshold=.0003, or top-p, or error, or adaptive:.02:flat, or layer, or model; and adaptive:.02:none or mean, for --kv-rest."},
    {CMD_EVAL, group_samples, 0, "eval-tokens", "N", WHOLE(eval_tokens, 1, 1 << 20), NULL, "kld: predictions of each chunk that are made token by token under each policy."},
    {CMD_EVAL, group_samples, 0, "no-truth", NULL, SWITCH(no_truth), "",
     "kld: leave out the attention to everything that mass and output error are measured against; faster with many policies."},
    {CMD_EVAL, group_samples, 'n', "samples", "N", WHOLE(samples, 1, 1 << 20), "20, niah: 1", "Samples of each task, length and depth."},
    {CMD_EVAL, group_samples, 0, "tasks", "NAME,...", WORDS(tasks), "all six", "ruler: tasks to run."},
    {CMD_EVAL, group_samples, 0, "keys", "N", WHOLE(n_keys, 1, 1 << 20), NULL, "kv, multiturn: keys of the dictionary."},
    {CMD_EVAL, group_samples, 0, "turns", "N", WHOLE(n_turns, 1, 16), NULL, "multiturn: questions asked one after the other."},
    {CMD_EVAL, group_samples, 0, "depths", "N", WHOLE(depths, 1, 101), NULL, "niah: places from the beginning to the end of the text."},
    {CMD_EVAL, group_samples, 's', "seed", "N", WHOLE(seed, 0, 4294967295.0), "42", "Seed of the samples."},
    {CMD_EVAL, group_samples, 0, "resume", "FILE", WORDS(resume), "", "Keep the result of every sample in FILE, as JSON lines, and take over those that it holds."},

    {MEASURING, group_rope, 0, "rope-scaling", "KIND", ONE_OF(rope_scaling, rope_choices, NULL), "as the model file says",
     "How positions beyond the trained context are mapped into it."},
    {MEASURING, group_rope, 0, "rope-scale", "X", REAL(rope_scale, 1, 1024), "as the model file says",
     "Factor by which the context is stretched; needs --rope-scaling linear or yarn."},
    {MEASURING, group_rope, 0, "rope-freq-base", "X", REAL(rope_freq_base, 1, 1e12), "as the model file says", "Base of the rotary frequencies."},
    {MEASURING, group_rope, 0, "yarn-orig-ctx", "N", WHOLE(yarn_orig_ctx, 1, 1 << 30), "the model's trained context", "Context that YaRN starts from."},

    {GENERATING | CMD_EVAL, group_template, 0, "chat-template", "NAME", ONE_OF(chat_template, spw_chat_templates, "none"), "the model's own",
     "Chat template to use in place of the model's own; none: the prompt is plain text to be continued."},
    {GENERATING, group_template, 0, "system", "TEXT", WORDS(system), "the template's", "System message."},

    {GENERATING, group_generation, 'n', "predict|n-predict", "N", WHOLE(predict, -1, 1 << 30), NULL,
     "Tokens to generate at most; -1: until the model ends its answer or the context is full."},
    {GENERATING, group_generation, 0, "temp", "X", REAL(temp, 0, 100), NULL, "Temperature; 0: always the most likely token."},
    {GENERATING, group_generation, 0, "top-k", "N", WHOLE(top_k, 0, 1 << 30), NULL, "Choose among the N most likely tokens; 0: off."},
    {GENERATING, group_generation, 0, "top-p", "X", REAL(top_p, 0, 1), NULL, "Choose among the most likely tokens that hold the share X of the probability; 1: off."},
    {GENERATING, group_generation, 0, "min-p", "X", REAL(min_p, 0, 1), NULL, "Leave out tokens less likely than X times the most likely one; 0: off."},
    {GENERATING, group_generation, 0, "repeat-penalty", "X", REAL(repeat_penalty, 0.01, 100), NULL, "Penalty for tokens that occurred lately; 1: off."},
    {GENERATING, group_generation, 0, "repeat-last-n", "N", WHOLE(repeat_last_n, 0, 1 << 20), NULL, "Tokens that the penalty looks back."},
    {GENERATING, group_generation, 's', "seed", "N", WHOLE(seed, -1, 4294967295.0), NULL, "Seed of the sampler; -1: a fresh one, which the statistics name."},
    {GENERATING, group_generation, 0, "ignore-eos", NULL, SWITCH(ignore_eos), "", "Never choose a token that ends the answer."},

    {LOADING | CMD_INSPECT, group_context, 0, "cache-type-k|-ctk", "TYPE", ONE_OF(cache_k, kv_type_choices, NULL), NULL, "How keys are kept. " CACHE_TYPES},
    {LOADING | CMD_INSPECT, group_context, 0, "cache-type-v|-ctv", "TYPE", ONE_OF(cache_v, kv_type_choices, NULL), NULL, "How values are kept: as the keys."},
    {CMD_BENCH, group_context, 0, "cache-type-k|-ctk", "TYPE,...", SOME_OF(type_k, kv_type_choices), "f16", "How keys are kept. " CACHE_TYPES},
    {CMD_BENCH, group_context, 0, "cache-type-v|-ctv", "TYPE,...", SOME_OF(type_v, kv_type_choices), "f16", "How values are kept: as the keys."},

    {CMD_BENCH, group_machine, 't', "threads", "N,...", WHOLES(n_threads, 1, 256), "one per core", "Threads that compute. Results do not depend on it."},
    {CMD_BENCH, group_machine, 'b', "batch-size", "N,...", WHOLES(n_batch, 1, 8192), "512", "Tokens of a prompt that are evaluated at once. Results do not depend on it."},
    {LOADING, group_machine, 't', "threads", "N", WHOLE(threads, 1, 256), "one per core", "Threads that compute. Results do not depend on it."},
    {LOADING, group_machine, 'b', "batch-size", "N", WHOLE(batch, 1, 8192), NULL, "Tokens of the prompt that are evaluated at once. Results do not depend on it."},

    {MEASURING, group_machine, 0, "no-repack", NULL, SWITCH(no_repack), "",
     "Compute with the weights as they lie in the file, in floating point: no copy of them in memory, slower, and exact up to rounding."},

    {CMD_TOKENIZE, group_output, 0, "ids", NULL, SWITCH(ids), "", "Print the ids alone, on one line, separated by spaces."},
    {CMD_TOKENIZE, group_output, 0, "special", NULL, SWITCH(special), "", "Parse special tokens such as <|im_end|> in the text; otherwise they are plain text."},
    {CMD_TOKENIZE, group_output, 0, "bos", NULL, SWITCH(bos), "", "Put the model's beginning-of-text token first, if it has one."},
    {CMD_INSPECT, group_output, 0, "keys", NULL, SWITCH(keys), "", "List the file's keys and values too."},
    {CMD_INSPECT, group_output, 0, "tensors", NULL, SWITCH(tensors), "", "List the file's tensors too."},
    {CMD_RUN, group_output, 0, "json", NULL, SWITCH(json), "", "Print one JSON object at the end in place of streaming text."},
    {CMD_CHAT, group_output, 0, "json", NULL, SWITCH(json), "", "Read turns from standard input, one a line; print one JSON object a line for each."},
    {CMD_TOKENIZE, group_output, 0, "json", NULL, SWITCH(json), "", "Print a JSON array of objects with id and text."},
    {CMD_BENCH, group_output, 'o', "output", "FORMAT", ONE_OF(output, output_choices, NULL), NULL, "Format of the results on standard output."},
    {CMD_BENCH, group_output, 0, "json", NULL, SWITCH(json), "", "The same as -o json."},
    {CMD_EVAL, group_output, 0, "html", "FILE", WORDS(html), "", "Write a page with tables and charts to FILE too; not for ppl."},
    {CMD_EVAL, group_output, 0, "csv", NULL, SWITCH(csv), "", "Print comma-separated values in place of a table."},
    {CMD_EVAL | CMD_INSPECT, group_output, 0, "json", NULL, SWITCH(json), "", "Print one JSON object."},
};
#define N_OPTIONS (sizeof table / sizeof *table)

static options options_defaults(void)
{
    spw_sampler_params sampler = spw_sampler_default_params();
    spw_session_params session = spw_session_default_params();
    return (options){
        .predict = -1, .chunks = -1, .eval_tokens = 512, .n_keys = 96, .n_turns = 4, .depths = 11, .seed = -1, .batch = 512, .repetitions = 5, .output = "md", .cache_k = "f16", .cache_v = "f16",
        .temp = (double)sampler.temp, .top_k = sampler.top_k, .top_p = (double)sampler.top_p, .min_p = (double)sampler.min_p,
        .repeat_penalty = (double)sampler.repeat_penalty, .repeat_last_n = sampler.repeat_last_n,
        .kv_sink = session.kv_sink, .kv_window = session.kv_window,
        .sparse_min_ctx = (int64_t)session.sparse_min_ctx, .kv_budget = session.kv_budget, .kv_beta = session.kv_beta,
    };
}

/* True when name (not NUL-terminated) is one of the words of list, which are separated by separator. */
static bool list_has(const char *list, const char *separator, const char *name, size_t len)
{
    size_t gap = strlen(separator);
    for (const char *p = list; *p;) {
        const char *end = strstr(p, separator);
        size_t n = end ? (size_t)(end - p) : strlen(p);
        if (n == len && memcmp(p, name, n) == 0) return true;
        p += n;
        if (end) p += gap;
    }
    return false;
}

/* NAME, or several as LAYER=NAME or FIRST-LAST=NAME; which layers there are is for the library to say. */
static bool is_policy_spec(const char *spec, const char *names)
{
    for (const char *at = spec;; at++) {
        size_t len = strcspn(at, ","), layers = strspn(at, "0123456789-");
        const char *name = layers && at[layers] == '=' ? at + layers + 1 : at;
        if (!list_has(names, ", ", name, len - (size_t)(name - at))) return false;
        at += len;
        if (!*at) return true;
    }
}

/* ------------------------------------------------------------------------------------------ parsing ---- */

int options_distance(const char *a, const char *b)
{
    enum { LONGEST = 63 };
    size_t na = strlen(a), nb = strlen(b);
    int row[LONGEST + 1];
    if (na > LONGEST || nb > LONGEST) return LONGEST;
    for (size_t j = 0; j <= nb; j++) row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]), drop = row[j] + 1, add = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = change < drop ? change : drop;
            if (add < row[j]) row[j] = add;
        }
    }
    return row[nb];
}

/* What is written before a long name. */
static const char *dashes(const char *name)
{
    return *name == '-' ? "" : "--";
}

static void complain_unknown(const command *c, const char *arg)
{
    char typed[64], name[64], best[64] = "";
    snprintf(typed, sizeof typed, "%.*s", (int)strcspn(arg, "="), arg);
    int least = (int)strlen(typed) / 3 + 1;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (!(table[i].commands & c->bit)) continue;
        for (const char *p = table[i].names; p; p = strchr(p, '|'), p += p ? 1 : 0) {
            snprintf(name, sizeof name, "%s%.*s", dashes(p), (int)strcspn(p, "|"), p);
            int distance = options_distance(typed, name);
            if (distance < least) least = distance, memcpy(best, name, sizeof best);
        }
    }
    if (*best) report_error(c->name, "unknown option '%s': did you mean %s?", typed, best);
    else report_error(c->name, "unknown option '%s': 'spillway %s --help' lists those that there are", typed, c->name);
}

static const option *find_option(const command *c, const char *arg)
{
    const char *name = arg + (arg[1] == '-' ? 2 : 1);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const option *o = &table[i];
        if (!(o->commands & c->bit)) continue;
        if (arg[1] != '-') {
            if ((o->letter && arg[1] == o->letter && arg[2] == '\0') || list_has(o->names, "|", arg, strlen(arg))) return o;
        } else if (name[0] != '-' && list_has(o->names, "|", name, strcspn(name, "="))) {
            return o;
        }
    }
    return NULL;
}

/* Words for what an option takes: "a number from 0 to 100". */
static void describe_value(const option *o, char *out, size_t cap)
{
    if (o->type == OPTION_INT) snprintf(out, cap, "a whole number from %.0f to %.0f", o->min, o->max);
    else if (o->type == OPTION_REAL) snprintf(out, cap, "a number from %g to %g", o->min, o->max);
    else if (o->type == OPTION_INTS)
        snprintf(out, cap, "at most %d whole numbers from %.0f to %.0f, separated by commas", LIST_MAX, o->min, o->max);
    else if (o->type == OPTION_CHOICES) snprintf(out, cap, "some of %s, separated by commas", o->choices());
    else if (o->type == OPTION_CHOICE) snprintf(out, cap, "one of %s%s%s", o->choices(), o->also ? ", " : "", o->also ? o->also : "");
    else if (o->type == OPTION_POLICY) snprintf(out, cap, "one of %s, or several by layer as 0-1=full,adaptive", o->choices());
    else if (o->type == OPTION_BUDGET) snprintf(out, cap, "a share up to 1, a whole number of positions above 1, or auto");
    else snprintf(out, cap, "a value");
}

static bool list_add(number_list *list, const option *o, int64_t v)
{
    if (list->n == LIST_MAX || (double)v < o->min || (double)v > o->max) return false;
    list->v[list->n++] = v;
    return true;
}

/* Appends the numbers of "512,1024", or of a range first-last, with +step or *factor behind it, to the list. */
static bool store_numbers(number_list *list, const option *o, const char *value)
{
    for (const char *p = value;; p++) {
        char *end;
        int64_t v[3] = {0, 0, 1}; /* first, last, step */
        char sign = '+';
        for (int part = 0;; part++) {
            if (*p < '0' || *p > '9') return false;
            errno = 0;
            v[part] = strtoll(p, &end, 10);
            if (errno) return false;
            p = end;
            if (part == 0) v[1] = v[0];
            if (part == 2 || (part == 0 && *p != '-') || (part == 1 && *p != '+' && *p != '*')) break;
            if (part == 1) sign = *p;
            p++;
        }
        if (v[1] > (1 << 30) || v[2] > (1 << 30) || v[1] < v[0] || v[2] < (sign == '+' ? 1 : 2) || (sign == '*' && v[0] < 1)) return false;
        for (int64_t x = v[0]; x <= v[1]; x = sign == '+' ? x + v[2] : x * v[2])
            if (!list_add(list, o, x)) return false;
        if (*p == '\0') return true;
        if (*p != ',') return false;
    }
}

/* Appends the indices of the named choices. */
static bool store_choices(number_list *list, const option *o, const char *value)
{
    for (const char *p = value;; p++) {
        size_t n = strcspn(p, ",");
        int64_t index = 0;
        const char *c = o->choices();
        for (; *c && (strncmp(c, p, n) != 0 || (c[n] != ',' && c[n] != '\0')); index++) c += strcspn(c, ","), c += *c ? 2 : 0;
        if (!*c || n == 0 || list->n == LIST_MAX) return false;
        list->v[list->n++] = index;
        p += n;
        if (!*p) return true;
    }
}

/* Stores value in *out as o says; false where it is not what o takes. */
static bool store_value(options *out, const option *o, const char *value)
{
    char *at = (char *)out + o->at, *end = NULL;
    switch (o->type) {
    case OPTION_INT: {
        errno = 0;
        long long v = strtoll(value, &end, 10);
        int64_t whole = (int64_t)v;
        if (end == value || *end || errno || (double)v < o->min || (double)v > o->max) return false;
        memcpy(at, &whole, sizeof whole);
        return true;
    }
    case OPTION_REAL: {
        double v = strtod(value, &end);
        if (end == value || *end || !(v >= o->min && v <= o->max)) return false;
        memcpy(at, &v, sizeof v);
        return true;
    }
    case OPTION_CHOICE:
        if (!list_has(o->choices(), ", ", value, strlen(value)) && !(o->also && strcmp(value, o->also) == 0)) return false;
        memcpy(at, &value, sizeof value);
        return true;
    case OPTION_POLICY:
        if (!is_policy_spec(value, o->choices())) return false;
        memcpy(at, &value, sizeof value);
        return true;
    case OPTION_BUDGET:
        return budget_read(value, (double *)(void *)at);
    case OPTION_TEXT:
        memcpy(at, &value, sizeof value);
        return true;
    case OPTION_INTS:
        return store_numbers((number_list *)(void *)at, o, value);
    case OPTION_CHOICES:
        return store_choices((number_list *)(void *)at, o, value);
    case OPTION_TEXTS: {
        word_list *list = (word_list *)(void *)at;
        if (list->n == LIST_MAX) return false;
        list->v[list->n++] = value;
        return true;
    }
    case OPTION_FLAG:
        break;
    }
    memcpy(at, &(bool){true}, sizeof(bool));
    return true;
}

/* Parses one option at argv[i]; returns how many arguments it took, or 0 after a complaint. */
static int parse_option(options *out, const command *c, int argc, char **argv, int i)
{
    const char *arg = argv[i], *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
    int shown = (int)(equals ? (size_t)(equals - arg) : strlen(arg));
    const option *o = find_option(c, arg);
    if (!o) {
        complain_unknown(c, arg);
        return 0;
    }
    if (o->type == OPTION_FLAG) {
        if (equals) {
            report_error(c->name, "%.*s: takes no value, found '%s'", shown, arg, equals + 1);
            return 0;
        }
        store_value(out, o, NULL);
        return 1;
    }
    const char *value = equals ? equals + 1 : i + 1 < argc ? argv[i + 1] : NULL;
    if (!value || !store_value(out, o, value)) {
        char wanted[300];
        describe_value(o, wanted, sizeof wanted);
        if (value) report_error(c->name, "%.*s: expected %s, found '%s'", shown, arg, wanted, value);
        else report_error(c->name, "%.*s: expected %s, found nothing", shown, arg, wanted);
        return 0;
    }
    return equals ? 1 : 2;
}

/* What no single option can check.  False after a complaint. */
static bool check_together(const options *o, const command *c)
{
    bool stretched = o->rope_scaling && strcmp(o->rope_scaling, "none") != 0;
    if (o->rope_scale > 0 && !stretched) {
        report_error(c->name, "--rope-scale: needs --rope-scaling linear or yarn");
        return false;
    }
    if (o->system && o->chat_template && strcmp(o->chat_template, "none") == 0) {
        report_error(c->name, "--system: needs a chat template, and --chat-template is none");
        return false;
    }
    if (strcmp(o->cache_k, o->cache_v) != 0) {
        report_error(c->name, "-ctk and -ctv: expected the same type for keys and values, found %s and %s", o->cache_k, o->cache_v);
        return false;
    }
    if (!o->model && !o->models.n && c->bit != CMD_INSPECT && !o->kernels && !o->machine) {
        report_error(c->name, "no model given: -m FILE names it");
        return false;
    }
    return true;
}

parse_result options_parse(options *o, const command *c, int argc, char **argv)
{
    *o = options_defaults();
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            options_print_help(c);
            return PARSE_HELP;
        }
    }
    for (int i = 0; i < argc;) {
        const char *arg = argv[i];
        if (arg[0] == '-' && arg[1] != '\0') {
            int taken = parse_option(o, c, argc, argv, i);
            if (taken == 0) return PARSE_BAD;
            i += taken;
        } else if (c->operand && !o->operand) {
            o->operand = arg;
            i++;
        } else {
            report_error(c->name, "unexpected argument '%s'%s", arg, c->bit == CMD_RUN ? ": a prompt is given with -p" : "");
            return PARSE_BAD;
        }
    }
    if (!o->kv_policy) o->kv_policy = c->bit == CMD_BENCH ? "full" : spw_session_default_params().kv_policy;
    o->kv_type = strcmp(o->cache_k, "f32") == 0 ? SPW_KV_F32 : strcmp(o->cache_k, "q8_0") == 0 ? SPW_KV_Q8 : SPW_KV_F16;
    return check_together(o, c) ? PARSE_OK : PARSE_BAD;
}

/* --------------------------------------------------------------------------------------------- help ---- */

void options_print_wrapped(const char *words, int indent)
{
    int column = 0;
    for (const char *p = words; *p;) {
        if (*p == '\n') {
            printf(column ? "\n" : "");
            printf(p[1] == '\n' ? "\n" : "");
            p += p[1] == '\n' ? 2 : 1;
            column = 0;
            continue;
        }
        int n = (int)strcspn(p, " \n");
        if (column && column + 1 + n > HELP_COLUMNS) {
            putchar('\n');
            column = 0;
        }
        if (column) column += printf(" %.*s", n, p);
        else column = printf("%*s%.*s", indent, "", n, p);
        p += n;
        while (*p == ' ') p++;
    }
    if (column) putchar('\n');
}

static void print_default(const option *o, const options *defaults, char *out, size_t cap)
{
    const char *at = (const char *)defaults + o->at;
    int64_t whole;
    double real;
    const char *words;
    *out = '\0';
    if (o->standard) {
        if (*o->standard) snprintf(out, cap, " [default: %s]", o->standard);
    } else if (o->type == OPTION_INT) {
        memcpy(&whole, at, sizeof whole);
        snprintf(out, cap, " [default: %lld]", (long long)whole);
    } else if (o->type == OPTION_REAL) {
        memcpy(&real, at, sizeof real);
        snprintf(out, cap, " [default: %g]", real);
    } else {
        memcpy(&words, at, sizeof words);
        snprintf(out, cap, " [default: %s]", words);
    }
}

static void print_option(const option *o, const options *defaults)
{
    char body[800], standard[100], choices[300] = "";
    printf("  ");
    if (o->letter) printf("-%c, ", o->letter);
    for (const char *p = o->names; p; p = strchr(p, '|'), p += p ? 1 : 0)
        printf("%s%s%.*s", p == o->names ? "" : ", ", dashes(p), (int)strcspn(p, "|"), p);
    printf("%s%s\n", o->meta ? " " : "", o->meta ? o->meta : "");
    print_default(o, defaults, standard, sizeof standard);
    if (o->type == OPTION_CHOICE || o->type == OPTION_CHOICES || o->type == OPTION_POLICY) snprintf(choices, sizeof choices, " Choices: %s%s%s.", o->choices(), o->also ? ", " : "", o->also ? o->also : "");
    snprintf(body, sizeof body, "%s%s%s", o->help, choices, standard);
    options_print_wrapped(body, 10);
}

void options_print_help(const command *c)
{
    options defaults = options_defaults();
    printf("spillway %s - %s\n\nUsage:\n  spillway %s %s\n\n", c->name, c->summary, c->name, c->synopsis);
    options_print_wrapped(c->description, 2);
    const char *group = NULL;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (!(table[i].commands & c->bit)) continue;
        if (table[i].group != group) printf("\n%s:\n", table[i].group);
        group = table[i].group;
        print_option(&table[i], &defaults);
    }
    printf("  -h, --help\n          Print this page.\n\nExamples:\n%s\n", c->examples);
    printf("Exit codes:\n  0    done\n  1    failed: one line on standard error says why\n  2    the command line is wrong\n");
    if (c->bit & (GENERATING | CMD_EVAL)) printf("  130  interrupted by Ctrl-C, after a clean end\n");
}

/* ------------------------------------------------------------------------------------- to parameters ---- */

spw_engine_params options_engine(const options *o)
{
    spw_engine_params p = spw_engine_default_params();
    p.n_threads = (int)o->threads;
    p.n_batch = (int)o->batch;
    p.kv_type = o->kv_type;
    p.no_repack = o->no_repack;
    if (o->kv_index) p.kv_index = strcmp(o->kv_index, "0") ? atoi(o->kv_index) : SPW_KV_INDEX_NONE;
    if (o->rope_scaling) {
        const char *s = o->rope_scaling;
        p.rope_scaling = strcmp(s, "yarn") == 0 ? SPW_ROPE_YARN : strcmp(s, "linear") == 0 ? SPW_ROPE_LINEAR : SPW_ROPE_NONE;
    }
    p.rope_scale = (float)o->rope_scale;
    p.rope_freq_base = (float)o->rope_freq_base;
    p.yarn_orig_ctx = (uint32_t)o->yarn_orig_ctx;
    return p;
}

spw_session_params options_session(const options *o, uint64_t n_ctx)
{
    spw_session_params p = spw_session_default_params();
    p.n_ctx = n_ctx;
    p.kv_policy = o->kv_policy;
    p.kv_sink = (uint32_t)o->kv_sink;
    p.kv_window = (uint32_t)o->kv_window;
    p.kv_budget = o->kv_budget;
    if (o->kv_block) p.kv_block = (uint32_t)atoi(o->kv_block);
    p.kv_rule = kv_rule(o);
    p.kv_rest = kv_rest(o);
    p.kv_threshold = o->kv_threshold;
    p.kv_error = o->kv_error;
    p.kv_beta = o->kv_beta;
    p.sparse_min_ctx = (uint64_t)o->sparse_min_ctx;
    return p;
}

uint64_t options_seed(const options *o)
{
    uint32_t seed;
    if (o->seed >= 0) return (uint64_t)o->seed;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) seed = (uint32_t)time(NULL);
    return seed;
}

spw_sampler_params options_sampler(const options *o, uint64_t seed)
{
    spw_sampler_params p = spw_sampler_default_params();
    p.temp = (float)o->temp;
    p.top_k = (int)o->top_k;
    p.top_p = (float)o->top_p;
    p.min_p = (float)o->min_p;
    p.repeat_penalty = (float)o->repeat_penalty;
    p.repeat_last_n = (int)o->repeat_last_n;
    p.seed = seed;
    return p;
}
