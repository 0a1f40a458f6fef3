/* cmd_eval.c - spillway eval: finds the measure that was asked for. */
#include <string.h>

#include "commands.h"
#include "eval.h"
#include "report.h"

/* What can be measured. */
static const struct {
    const char *name;
    int (*main)(const options *o);
} evals[] = {
    {"ppl", eval_ppl}, {"kld", eval_kld}, {"ruler", eval_ruler}, {"kv", eval_kv}, {"passkey", eval_passkey}, {"niah", eval_niah}, {"multiturn", eval_multiturn},
};
#define N_EVALS (sizeof evals / sizeof *evals)

static int eval_main(const options *o)
{
    char names[100] = "";
    for (size_t i = 0; i < N_EVALS; i++) {
        if (o->operand && strcmp(o->operand, evals[i].name) == 0) return evals[i].main(o);
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", evals[i].name);
    }
    if (o->operand) report_error(command_eval.name, "expected one of %s, found '%s'", names, o->operand);
    else report_error(command_eval.name, "what to measure is missing: one of %s", names);
    return EXIT_USAGE;
}

const command command_eval = {
    .bit = CMD_EVAL,
    .name = "eval",
    .summary = "measure a model on a text, and what a KV policy loses",
    .synopsis = "MEASURE -m MODEL [-f TEXT] [-c CTX,...] [--policies LIST] [options]",
    .description =
        "ppl: the perplexity of a text, read from -f or standard input, exactly as llama-perplexity defines it. The text is tokenized once and cut into "
        "chunks of CTX tokens; each is evaluated from an empty context, and the predictions of the second half of each chunk are scored; where the "
        "model wants a beginning-of-text token, it replaces the first token of every chunk. Printed with its standard error.\n\n"
        "kld: how far predictions under each policy are from our own dense ones, on a text. The first part of every chunk of CTX tokens is read densely, once for all policies; "
        "the last --eval-tokens predictions are made token by token under each policy. Printed: Kullback-Leibler divergence (mean, median, 99 %, 99.9 %, maximum), how often "
        "the most likely token is the same, both perplexities, and which share of the K and V between sink and window was read: share_read with the bytes of indices, share_rows "
        "without. Every layer also attends to everything, from the hidden states that the policy led to, and is compared: mass is the true share of the attention that fell on what was "
        "read, output_error the distance of a head's output relative to it, both means over predictions, layers and heads; --no-truth leaves this out.\n\n"
        "ruler: six tasks of RULER (niah_single_1, niah_multikey_2, niah_multikey_3, vt, cwe, fwe) with its sizes, texts and scores; the words come from our own word list. "
        "kv: a dictionary of --keys random keys and values, and one of the keys. multiturn: --turns keys of one dictionary, one after the other in one session. passkey: a number "
        "hidden in noise. niah: a sentence hidden in the text of -f, or in noise, at each of --depths places. Answers are greedy; prompts are read exactly under every policy, once "
        "for all of them. The chat template of the model is used, but for kv and multiturn, which are texts to be continued. same_answer is the share of answers that are letter for letter those of full, and kld_mean the mean divergence from full of the predictions of an answer behind its first token, as long as both have written the same: it tells policies apart where few answers change.\n\n"
        "A policy is written NAME[:BLOCK]:BUDGET or hgca:BETA, a name alone stands for its defaults; adaptive takes a rule too, as in adaptive:.02:flat or adaptive:.01:threshold=.0003, and what stands for the rest, as in adaptive:.02:none. The same seed gives "
        "the same numbers. Ctrl-C ends a run with a report of the chunks or samples that were done. With --resume a run goes on where another one was stopped.\n\n"
        "With --json one object is printed. ppl: ppl, ppl_stderr, nll_mean, n_predictions, n_tokens (of the text), chunks, ctx, model, isa, threads, timings. kld: policies, an array of "
        "objects with policy, kld_mean, kld_median, kld_p99, kld_p999, kld_max, same_top, ppl, ppl_full, share_read, share_rows, mass, output_error (null with --no-truth); and layers, an array with "
        "policy, mass and output_error by [layer][head], share_read by [layer][KV head]. "
        "The others: policies, an array with policy, score (ruler, 0 to 100) or accuracy (0 to 1), n, same_answer, kld_mean, share_read, share_rows; and rows, the same for each task, length, depth or turn.",
    .examples = "  spillway eval ppl -m model.gguf -f book.txt -c 2048 --chunks 8\n"
                "  spillway eval kld -m model.gguf -f book.txt -c 8192 --chunks 2 --html kld.html\n"
                "  spillway eval ruler -m model.gguf -c 4096,8192 -n 50 --policies full,window --resume ruler.jsonl\n"
                "  spillway eval kv -m model.gguf --keys 192 -n 20 --json\n",
    .operand = "MEASURE",
    .main = eval_main,
};
