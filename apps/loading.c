/* loading.c - opens a model for a subcommand that evaluates: all refusals come before anything is loaded, and warnings wait
 * until the caller knows that the run goes on, so that a refusal is one line. */
#include "loading.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "report.h"

/* Of sessions that were forked from one. */
typedef struct forks {
    size_t n;
    uint64_t positions; /* that they hold beside it */
    uint32_t n_vocab;
} forks;

static uint64_t needed(const spw_memory *m, const forks *more)
{
    uint64_t logits = 3 * sizeof(float) * (uint64_t)more->n_vocab; /* two rows of a session, one that its owner keeps */
    return m->weights + m->kv + m->scratch + more->positions * m->kv_bytes_per_pos + more->n * logits;
}

/* The largest context up to n_ctx whose needs fit what is available; 0: none does. */
static uint64_t largest_fit(const spw_file *f, const spw_engine_params *p, uint64_t n_ctx, const forks *more)
{
    const uint64_t grain = 128; /* whole pages of the store */
    uint64_t low = 0, high = n_ctx / grain;
    while (low < high) {
        uint64_t middle = low + (high - low + 1) / 2;
        spw_memory m;
        if (spw_file_memory(f, middle * grain, p, &m, NULL) == SPW_OK && needed(&m, more) <= m.available) low = middle;
        else high = middle - 1;
    }
    return low * grain;
}

static bool check_memory(loaded *l, const spw_file *f, const options *o, bool may_lower, const forks *more)
{
    spw_engine_params p = options_engine(o);
    spw_memory m;
    spw_err err = {0};
    char need[24], have[24];
    if (spw_file_memory(f, l->n_ctx, &p, &m, &err) != SPW_OK) {
        report_file_error(l->command, o->model, &err);
        return false;
    }
    if (needed(&m, more) <= m.available) return true;
    report_bytes(needed(&m, more), need), report_bytes(m.available, have);
    uint64_t fits = largest_fit(f, &p, l->n_ctx, more);
    if (fits == 0 || !may_lower) {
        char hint[80] = "";
        if (fits) snprintf(hint, sizeof hint, "; -c %" PRIu64 " would fit", fits);
        report_error(l->command, "not enough memory for a context of %" PRIu64 ": needed %s, available %s%s", l->n_ctx, need, have, hint);
        return false;
    }
    snprintf(l->warning[0], sizeof l->warning[0], "the context is lowered from %" PRIu64 " to %" PRIu64 " positions: the full one needs %s, available are %s",
             l->n_ctx, fits, need, have);
    l->n_ctx = fits;
    return true;
}

static bool check_info(loaded *l, const spw_file *f, const options *o, uint64_t n_ctx, uint32_t *n_vocab)
{
    spw_model_info info = {0};
    spw_err err = {0};
    if (spw_file_model_info(f, &info, &err) != SPW_OK) {
        report_file_error(l->command, o->model, &err);
        return false;
    }
    if (!info.has_weights) {
        report_error(l->command, "%s: holds a vocabulary only, no weights", o->model);
        return false;
    }
    if (n_ctx == 0 && info.n_ctx_train == 0) {
        report_error(l->command, "%s: does not state its trained context: give one with -c", o->model);
        return false;
    }
    *n_vocab = info.n_vocab;
    l->n_ctx = n_ctx ? n_ctx : info.n_ctx_train;
    bool stretched = o->rope_scaling && strcmp(o->rope_scaling, "none") != 0;
    double reach = (double)(o->yarn_orig_ctx ? o->yarn_orig_ctx : info.n_ctx_train) * (stretched && o->rope_scale > 1 ? o->rope_scale : 1);
    if (info.n_ctx_train && (double)l->n_ctx > reach && l->n_ctx > info.n_ctx_train)
        snprintf(l->warning[1], sizeof l->warning[1],
                 "-c %" PRIu64 " is beyond the %u positions that the model was trained on, expect nonsense there: --rope-scaling yarn --rope-scale %" PRIu64
                 " stretches them",
                 l->n_ctx, info.n_ctx_train, (l->n_ctx + info.n_ctx_train - 1) / info.n_ctx_train);
    return true;
}

static bool check(loaded *l, const command *c, const options *o, uint64_t n_ctx, forks more)
{
    spw_file *f = NULL;
    spw_err err = {0};
    *l = (loaded){.command = c->name};
    if (spw_file_open(&f, o->model, &err) != SPW_OK) {
        report_file_error(c->name, o->model, &err);
        return false;
    }
    bool ok = check_info(l, f, o, n_ctx, &more.n_vocab) && check_memory(l, f, o, n_ctx == 0, &more);
    spw_file_close(f);
    return ok;
}

bool loading_check(loaded *l, const command *c, const options *o, uint64_t n_ctx)
{
    return check(l, c, o, n_ctx, (forks){0});
}

bool loading_check_forks(loaded *l, const command *c, const options *o, uint64_t n_ctx, size_t n_sessions, uint64_t n_more)
{
    return check(l, c, o, n_ctx, (forks){.n = n_sessions, .positions = n_more});
}

bool loading_open(loaded *l, const options *o)
{
    spw_engine_params p = options_engine(o);
    spw_err err = {0};
    if (spw_engine_open(&l->engine, o->model, &p, &err) != SPW_OK) {
        report_file_error(l->command, o->model, &err);
        return false;
    }
    l->vocab = spw_engine_vocab(l->engine);
    l->info = spw_engine_info(l->engine);
    return true;
}

void loading_warn(const loaded *l)
{
    for (size_t i = 0; i < sizeof l->warning / sizeof *l->warning; i++)
        if (*l->warning[i]) report_warning(l->command, "%s", l->warning[i]);
}

void loading_close(loaded *l)
{
    spw_engine_close(l->engine);
    l->engine = NULL;
}
