/* policy.c - the table of policies and what they share. */
#include "policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

static const policy_ops *const table[] = {&policy_full, &policy_window, &policy_quest, &policy_hgca, &policy_oracle, &policy_adaptive};
enum { N_POLICIES = sizeof table / sizeof table[0], NAME_MAX_LEN = 32 };

const policy_ops *policy_at(size_t i)
{
    return i < N_POLICIES ? table[i] : NULL;
}

const policy_ops *policy_find(const char *name)
{
    for (size_t i = 0; i < N_POLICIES; i++) {
        if (!strcmp(table[i]->name, name)) return table[i];
    }
    return NULL;
}

const char *spw_kv_policies(void)
{
    return "full, window, quest, hgca, oracle, adaptive";
}

/* ------------------------------------------------------------------------------------------- parameters ---- */

static bool is_block(uint32_t block)
{
    return block == 1 || block == 16 || block == 32 || block == 64 || block == 128;
}

static spw_status check_params(const policy_params *p, spw_err *err)
{
    if (p->window < 1) return spw_fail(err, SPW_E_ARG, "KV window: expected at least 1 position, found 0");
    if (!is_block(p->block)) return spw_fail(err, SPW_E_ARG, "KV block: expected 1, 16, 32, 64 or 128 positions, found %u", p->block);
    if (!(p->budget >= 0) || (p->budget > 1 && (p->budget != floor(p->budget) || p->budget > 1e15)))
        return spw_fail(err, SPW_E_ARG, "KV budget: expected a share up to 1, or a whole number of positions above 1, found %g", p->budget);
    if (!(p->threshold >= 0 && p->threshold < 1)) return spw_fail(err, SPW_E_ARG, "KV threshold: expected a share of the attention below 1, found %g", p->threshold);
    if (!(p->error >= 0 && p->error < 1)) return spw_fail(err, SPW_E_ARG, "KV error: expected a share below 1, found %g", p->error);
    if (!(p->beta >= 0 && isfinite(p->beta))) return spw_fail(err, SPW_E_ARG, "KV beta: expected a number that is not negative, found %g", p->beta);
    return SPW_OK;
}

spw_status policy_init(policy *p, const char *name, const policy_params *params, spw_err *err)
{
    const policy_ops *ops = policy_find(name);
    if (!ops) return spw_fail(err, SPW_E_ARG, "KV policy: expected one of %s, found '%s'", spw_kv_policies(), name);
    policy made = {.ops = ops, .params = *params};
    if (made.params.budget < 0) made.params.budget = ops->budget, made.params.share_until = ops->share_until;
    if (made.params.block == 0) made.params.block = ops->block ? ops->block : 1;
    spw_status s = check_params(&made.params, err);
    if (!s && ops->create) s = ops->create(&made.state, &made.params, err);
    if (!s) *p = made;
    return s;
}

spw_status policy_fork(policy *out, const policy *from, spw_err *err)
{
    policy made = *from;
    made.state = NULL;
    if (from->ops->fork) {
        spw_status s = from->ops->fork(&made.state, from->state, err);
        if (s) return s;
    }
    *out = made;
    return SPW_OK;
}

void policy_done(policy *p)
{
    if (p->ops && p->ops->free) p->ops->free(p->state);
    *p = (policy){0};
}

/* ------------------------------------------------------------------------------------- one for each layer ---- */

/* A part of the text: which layers, and the name. */
typedef struct spec_part {
    uint32_t first, last;
    bool all;
    char name[NAME_MAX_LEN];
} spec_part;

/* A number below limit at *at, which moves behind it. */
static bool read_layer(const char **at, uint32_t limit, uint32_t *out)
{
    char *end;
    if (**at < '0' || **at > '9') return false;
    unsigned long v = strtoul(*at, &end, 10);
    *at = end;
    *out = (uint32_t)v;
    return v < limit;
}

static spw_status read_part(spec_part *out, const char *text, size_t len, uint32_t n_layer, spw_err *err)
{
    const char *equals = memchr(text, '=', len), *name = equals ? equals + 1 : text;
    size_t name_len = len - (size_t)(name - text);
    *out = (spec_part){.all = !equals};
    if (equals) {
        const char *at = text;
        bool ok = read_layer(&at, n_layer, &out->first);
        out->last = out->first;
        if (ok && *at == '-') at++, ok = read_layer(&at, n_layer, &out->last);
        if (!ok || at != equals || out->last < out->first)
            return spw_fail(err, SPW_E_ARG, "KV policy: expected layers 0 to %u as LAYER=NAME or FIRST-LAST=NAME, found '%.*s'", n_layer - 1, (int)(len < 80 ? len : 80), text);
    }
    if (name_len >= sizeof out->name) name_len = sizeof out->name - 1;
    memcpy(out->name, name, name_len);
    return SPW_OK;
}

/* Index of the policy of that name, made when there is none yet. */
static spw_status want_policy(policy_layers *l, const char *name, const policy_params *params, uint8_t *index, spw_err *err)
{
    for (uint32_t i = 0; i < l->n; i++) {
        if (strcmp(l->v[i].ops->name, name)) continue;
        *index = (uint8_t)i;
        return SPW_OK;
    }
    if (l->n == POLICY_MAX) return spw_fail(err, SPW_E_ARG, "KV policy: expected at most %d different ones", POLICY_MAX);
    spw_status s = policy_init(&l->v[l->n], name, params, err);
    if (!s) *index = (uint8_t)l->n++;
    return s;
}

static spw_status apply_spec(policy_layers *l, const char *spec, const policy_params *params, spw_err *err)
{
    bool named = false;
    for (int wanted_all = 1; wanted_all >= 0; wanted_all--) { /* the name for all layers first, wherever it stands */
        for (const char *at = spec;; at++) {
            size_t len = strcspn(at, ",");
            spec_part part;
            uint8_t index = 0;
            spw_status s = read_part(&part, at, len, params->n_layer, err);
            if (!s && part.all == (bool)wanted_all) {
                s = want_policy(l, part.name, params, &index, err);
                if (!s && part.all) memset(l->of_layer, index, params->n_layer), named = true;
                for (uint32_t i = part.first; !s && !part.all && i <= part.last; i++) l->of_layer[i] = index;
            }
            if (s) return s;
            at += len;
            if (!*at) break;
        }
        if (wanted_all && !named) {
            uint8_t full = 0;
            spw_status s = want_policy(l, "full", params, &full, err);
            if (s) return s;
            memset(l->of_layer, full, params->n_layer);
        }
    }
    return SPW_OK;
}

static spw_status layers_alloc(policy_layers *l, uint32_t n_layer, spw_err *err)
{
    *l = (policy_layers){.v = mem_calloc(POLICY_MAX, sizeof *l->v), .of_layer = mem_zalloc(n_layer)};
    if (l->v && l->of_layer) return SPW_OK;
    policy_layers_done(l);
    return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for the policies of %u layers", n_layer);
}

spw_status policy_layers_init(policy_layers *out, const char *spec, const policy_params *params, spw_err *err)
{
    policy_layers made;
    spw_status s = layers_alloc(&made, params->n_layer, err);
    if (!s) s = apply_spec(&made, spec, params, err);
    if (s) policy_layers_done(&made);
    else *out = made;
    return s;
}

spw_status policy_layers_fork(policy_layers *out, const policy_layers *from, spw_err *err)
{
    policy_layers made;
    uint32_t n_layer = from->v[0].params.n_layer;
    spw_status s = layers_alloc(&made, n_layer, err);
    if (s) return s;
    memcpy(made.of_layer, from->of_layer, n_layer);
    for (; made.n < from->n && !s; made.n += !s) s = policy_fork(&made.v[made.n], &from->v[made.n], err);
    if (s) policy_layers_done(&made);
    else *out = made;
    return s;
}

void policy_layers_done(policy_layers *l)
{
    for (uint32_t i = 0; i < l->n; i++) policy_done(&l->v[i]);
    mem_free(l->v);
    mem_free(l->of_layer);
    *l = (policy_layers){0};
}

/* ----------------------------------------------------------------------------------------------- choices ---- */

spw_status policy_choice_reset(policy_choice *c, uint32_t n_q, spw_err *err)
{
    c->n = c->n_sets = 0;
    c->side_bytes = 0;
    c->middle_rows = POLICY_COUNT;
    c->dense = c->base = false;
    c->rest = (policy_rest){0};
    for (uint32_t i = 0; i < KERN_MAX_G; i++) c->mass[i] = -1;
    return policy_choice_set(c, 0, n_q, err);
}

void policy_choice_free(policy_choice *c)
{
    mem_free(c->ranges);
    mem_free(c->sets);
    mem_free(c->scratch);
    *c = (policy_choice){0};
}

spw_status policy_choice_scratch(policy_choice *c, size_t bytes, spw_err *err)
{
    if (bytes <= c->scratch_bytes) return SPW_OK;
    bytes += bytes / 4; /* a context grows token by token */
    void *p = mem_alloc(bytes);
    if (!p) return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for %zu bytes of scratch", bytes);
    mem_free(c->scratch);
    c->scratch = p;
    c->scratch_bytes = bytes;
    return SPW_OK;
}

spw_status policy_choice_set(policy_choice *c, uint32_t q_first, uint32_t n_q, spw_err *err)
{
    if (c->n_sets == c->cap_sets) {
        size_t cap = c->cap_sets ? 2 * c->cap_sets : 4;
        policy_set *sets = mem_realloc(c->sets, c->n_sets * sizeof *sets, cap * sizeof *sets);
        if (!sets) return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for %zu sets", cap);
        c->sets = sets;
        c->cap_sets = cap;
    }
    c->sets[c->n_sets++] = (policy_set){.q_first = q_first, .n_q = n_q, .first_range = c->n};
    return SPW_OK;
}

/* For n more ranges. */
static spw_status make_room(policy_choice *c, size_t n, spw_err *err)
{
    size_t cap = c->cap ? c->cap : 16;
    while (cap - c->n < n) cap *= 2;
    if (cap == c->cap) return SPW_OK;
    policy_range *r = mem_realloc(c->ranges, c->n * sizeof *r, cap * sizeof *r);
    if (!r) return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for %zu ranges", cap);
    c->ranges = r;
    c->cap = cap;
    return SPW_OK;
}

spw_status policy_choice_add(policy_choice *c, uint64_t first, uint64_t n, spw_err *err)
{
    if (!n) return SPW_OK;
    policy_set *set = &c->sets[c->n_sets - 1];
    if (set->n_ranges) {
        policy_range *last = &c->ranges[c->n - 1];
        SPW_CHECK(first >= last->first + last->n);
        if (first == last->first + last->n) {
            last->n += n;
            return SPW_OK;
        }
    }
    spw_status s = make_room(c, 1, err);
    if (s) return s;
    c->ranges[c->n++] = (policy_range){first, n};
    set->n_ranges++;
    return SPW_OK;
}

spw_status policy_choice_add_each(policy_choice *c, uint64_t base, const uint32_t *ids, const uint32_t *which, size_t n, spw_err *err)
{
    spw_status s = n ? policy_choice_add(c, base + ids[which[0]], 1, err) : SPW_OK;
    if (!s) s = make_room(c, n, err);
    if (s || !n) return s;
    policy_range *last = &c->ranges[c->n - 1];
    for (size_t i = 1; i < n; i++) {
        uint64_t at = base + ids[which[i]];
        SPW_ASSERT(at >= last->first + last->n);
        if (at == last->first + last->n) last->n++;
        else *++last = (policy_range){at, 1};
    }
    size_t added = (size_t)(last - c->ranges) + 1 - c->n;
    c->n += added;
    c->sets[c->n_sets - 1].n_ranges += added;
    return SPW_OK;
}

spw_status policy_choice_all(policy_choice *c, uint64_t n_pos, spw_err *err)
{
    c->dense = true;
    return policy_choice_add(c, 0, n_pos, err);
}

/* Where a range of the middle begins (+1) or ends (-1). */
typedef struct range_edge {
    uint64_t at;
    int step;
} range_edge;

static int compare_edges(const void *a, const void *b)
{
    const range_edge *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

static void add_edges(range_edge *edges, size_t *n, uint64_t a, uint64_t b, uint64_t from, uint64_t to)
{
    if (a < from) a = from;
    if (b > to) b = to;
    if (a >= b) return;
    edges[(*n)++] = (range_edge){a, 1};
    edges[(*n)++] = (range_edge){b, -1};
}

/* One set is counted directly; of several the edges are sorted and swept. */
spw_status policy_choice_rows(const policy_choice *c, uint64_t from, uint64_t to, uint64_t *n_rows, spw_err *err)
{
    uint64_t sum = 0;
    bool one = c->n_sets == 1 && !c->sets[0].n_rows;
    size_t n_edges = 0, cap = 2 * c->n;
    for (size_t i = 0; i < c->n_sets; i++) cap += 2 * c->sets[i].n_rows;
    range_edge *edges = one ? NULL : mem_alloc((cap ? cap : 1) * sizeof *edges);
    if (!one && !edges) return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for %zu ranges", cap);
    for (size_t i = 0; i < c->n; i++) {
        uint64_t a = c->ranges[i].first, b = a + c->ranges[i].n;
        if (!one) add_edges(edges, &n_edges, a, b, from, to);
        else if (a < to && b > from) sum += (b < to ? b : to) - (a > from ? a : from);
    }
    for (size_t i = 0; i < c->n_sets && !one; i++) {
        const policy_set *set = &c->sets[i];
        for (size_t j = 0; j < set->n_rows; j++) add_edges(edges, &n_edges, set->positions[j], set->positions[j] + 1u, from, to);
    }
    if (n_edges) qsort(edges, n_edges, sizeof *edges, compare_edges);
    int depth = 0;
    for (size_t i = 0; i < n_edges; i++) {
        if (depth > 0) sum += edges[i].at - edges[i - 1].at;
        depth += edges[i].step;
    }
    mem_free(edges);
    *n_rows = sum;
    return SPW_OK;
}

/* ------------------------------------------------------------------------------------------------ budget ---- */

uint64_t policy_middle(const policy_params *p, uint64_t n_pos)
{
    uint64_t kept = (uint64_t)p->sink + p->window;
    return n_pos > kept ? n_pos - kept : 0;
}

uint64_t policy_budget(const policy_params *p, uint64_t middle)
{
    double of = p->share_until && middle > p->share_until ? sqrt((double)p->share_until * (double)middle) : (double)middle;
    double n = p->budget > 1 ? p->budget : ceil(p->budget * of);
    return n < (double)middle ? (uint64_t)n : middle;
}

bool policy_is_dense(const policy_params *p, uint64_t n_pos)
{
    uint64_t middle = policy_middle(p, n_pos);
    return n_pos < p->min_ctx || !middle || (p->budget > 0 && policy_budget(p, middle) >= middle);
}
