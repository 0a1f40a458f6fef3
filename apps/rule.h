/* rule.h - the rules of the policy adaptive, and what stands for the rest, by name, as --kv-rule, --kv-rest and --policies write them. */
#ifndef SPW_RULE_H
#define SPW_RULE_H

#include <stdbool.h>
#include <string.h>

#include "spillway.h"

static const char *const rule_names[] = {[SPW_KV_FLAT] = "flat",   [SPW_KV_THRESHOLD] = "threshold", [SPW_KV_TOP_P] = "top-p",
                                         [SPW_KV_ERROR] = "error", [SPW_KV_LAYER] = "layer",         [SPW_KV_MODEL] = "model"};

/* The spw_kv_rule of that name; -1: none. */
static inline int rule_number(const char *name)
{
    for (size_t i = 0; i < sizeof rule_names / sizeof *rule_names; i++)
        if (strcmp(rule_names[i], name) == 0) return (int)i;
    return -1;
}

static const char *const rest_names[] = {[SPW_KV_REST_NONE] = "none", [SPW_KV_REST_MEAN] = "mean"};

/* The spw_kv_rest of that name; -1: none. */
static inline int rest_number(const char *name)
{
    for (size_t i = 0; i < sizeof rest_names / sizeof *rest_names; i++)
        if (strcmp(rest_names[i], name) == 0) return (int)i;
    return -1;
}

/* It reads until a limit of its own is met, not what a budget says. */
static inline bool rule_has_limit(int rule)
{
    return rule == SPW_KV_THRESHOLD || rule == SPW_KV_TOP_P || rule == SPW_KV_ERROR;
}

#endif
