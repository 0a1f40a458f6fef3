/* policy.c - the table of policies and what they share. */
#include "policy.h"

#include <string.h>

#include "mem.h"

static const policy_ops *const table[] = {&policy_full, &policy_window};
enum { N_POLICIES = sizeof table / sizeof table[0] };

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
    return "full, window";
}

spw_status policy_init(policy *p, const char *name, const policy_params *params, spw_err *err)
{
    const policy_ops *ops = policy_find(name);
    if (!ops) return spw_fail(err, SPW_E_ARG, "KV policy: expected one of %s, found '%s'", spw_kv_policies(), name);
    if (params->window < 1) return spw_fail(err, SPW_E_ARG, "KV window: expected at least 1 position, found 0");
    policy made = {.ops = ops, .params = *params};
    if (ops->create) {
        spw_status s = ops->create(&made.state, params, err);
        if (s) return s;
    }
    *p = made;
    return SPW_OK;
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

spw_status policy_choice_add(policy_choice *c, uint64_t first, uint64_t n, spw_err *err)
{
    if (!n) return SPW_OK;
    if (c->n) {
        policy_range *last = &c->ranges[c->n - 1];
        SPW_CHECK(first >= last->first + last->n);
        if (first == last->first + last->n) {
            last->n += n;
            return SPW_OK;
        }
    }
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 16;
        policy_range *r = mem_realloc(c->ranges, c->n * sizeof *r, cap * sizeof *r);
        if (!r) return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for %zu ranges", cap);
        c->ranges = r;
        c->cap = cap;
    }
    c->ranges[c->n++] = (policy_range){first, n};
    return SPW_OK;
}

void policy_choice_free(policy_choice *c)
{
    mem_free(c->ranges);
    *c = (policy_choice){0};
}

uint64_t policy_middle(const policy_params *p, uint64_t n_pos)
{
    uint64_t kept = (uint64_t)p->sink + p->window;
    return n_pos > kept ? n_pos - kept : 0;
}
