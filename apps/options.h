/* options.h - the flags of all subcommands: one table, one parser, one help printer.
 *
 * A flag is declared once, in the table of options.c, with the set of subcommands that take it; a subcommand finds its
 * values in one plain struct. */
#ifndef SPW_APP_OPTIONS_H
#define SPW_APP_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spillway.h"

/* Exit codes of the program. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_INTERRUPTED = 130,
};

/* Subcommands, as bits. */
enum {
    CMD_RUN = 1,
    CMD_CHAT = 2,
    CMD_TOKENIZE = 4,
    CMD_EVAL = 8,
    CMD_INSPECT = 16,
    CMD_BENCH = 32,
};

enum { LIST_MAX = 32 };

/* Values of a flag that takes lists (512,1024 or 0-4096+1024 or 1-16*2) and may be given several times: all of them, in order. */
typedef struct number_list {
    int64_t v[LIST_MAX];
    size_t n;
} number_list;

typedef struct word_list {
    const char *v[LIST_MAX];
    size_t n;
} word_list;

typedef struct options {
    const char *model, *file, *prompt; /* NULL: not given */
    const char *operand;               /* the argument that is no flag, where the subcommand takes one; NULL: not given */
    int64_t ctx;                       /* 0: not given */
    int64_t predict;                   /* -1: no limit */
    int64_t threads, batch;
    int64_t chunks;
    /* eval */
    number_list lengths; /* -c; empty: the measure's own */
    word_list policies;
    const char *tasks, *resume, *html;
    int64_t samples, eval_tokens, n_keys, n_turns, depths; /* samples: 0: not given */
    bool csv, no_truth;
    double temp, top_p, min_p, repeat_penalty;
    int64_t top_k, repeat_last_n;
    int64_t seed; /* -1: not given */
    const char *cache_k, *cache_v; /* the same name; bench has lists */
    const char *kv_policy; /* a name, or several by layer */
    int64_t kv_sink, kv_window, sparse_min_ctx;
    double kv_budget;      /* up to 1 a share, above 1 positions, 0: the policy's own rule; negative: not given */
    const char *kv_block, *kv_index; /* numbers; NULL: not given */
    const char *kv_rule, *kv_rest;
    double kv_threshold, kv_error, kv_beta; /* threshold and error: 0: not given */
    const char *rope_scaling; /* NULL: as the file says */
    double rope_scale, rope_freq_base;
    int64_t yarn_orig_ctx;
    const char *chat_template; /* NULL: the file's own; "none": no template */
    const char *system;
    bool no_repack, ignore_eos, json, ids, special, bos, keys, tensors;
    /* bench: empty lists stand for the defaults */
    word_list models;
    number_list n_prompt, n_gen, pairs, n_depth, n_threads, n_batch;
    number_list type_k, type_v; /* of spw_kv_type */
    spw_kv_type kv_type; /* what the name stands for; bench: of the engine that is being measured */
    int64_t repetitions, sweep_step;
    const char *output;
    bool fill, sweep, no_warmup, kernels, machine;
} options;

typedef struct command {
    int bit;
    const char *name;
    const char *summary;      /* one line */
    const char *synopsis;     /* what follows the name */
    const char *description;  /* paragraphs, separated by "\n\n"; wrapped when printed */
    const char *examples;     /* printed as they are */
    const char *operand;      /* name of the argument that is no flag, or NULL */
    int (*main)(const options *o);
} command;

typedef enum parse_result {
    PARSE_OK,
    PARSE_HELP, /* the help was asked for and has been printed */
    PARSE_BAD,  /* one line on standard error says what is wrong */
} parse_result;

/* Parses argv[0 .. argc-1], the arguments behind the subcommand's name. */
parse_result options_parse(options *o, const command *c, int argc, char **argv);
void options_print_help(const command *c);
/* Prints text to standard output, wrapped and indented. */
void options_print_wrapped(const char *text, int indent);

/* Edit distance of two words, for "did you mean". */
int options_distance(const char *a, const char *b);

/* The library's parameters as the flags set them. */
spw_engine_params options_engine(const options *o);
/* How the policy adaptive counts: what --kv-rule says, or what --kv-threshold and --kv-error imply. */
const char *options_kv_rule(const options *o);
/* What stands for what it does not read. */
const char *options_kv_rest(const options *o);
spw_session_params options_session(const options *o, uint64_t n_ctx);
/* seed: what -s gave, or a fresh random one. */
spw_sampler_params options_sampler(const options *o, uint64_t seed);
uint64_t options_seed(const options *o);

#endif
