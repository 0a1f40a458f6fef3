/* eval_policies.c - the policies that eval compares: from --policies to the parameters of a session. */
#include "eval_policies.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "rule.h"

#define DEFAULT_POLICIES "full,window,quest:16:.05,hgca:1.0,adaptive:.02,oracle:1:.02"

/* What may follow a name; one that is not listed takes [block:]budget[:rule or :rule=value][:rest]. */
static const struct {
    const char *name;
    const char *takes; /* "": nothing */
} forms[] = {{"full", ""}, {"window", ""}, {"hgca", "beta"}};

static const char *takes(const char *name)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(forms[i].name, name) == 0) return forms[i].takes;
    return "[block:]budget[:rule or :rule=value][:rest]";
}

/* A number that is the whole of part and at least min. */
static bool parse_number(const char *part, double min, double *out)
{
    char *end;
    *out = strtod(part, &end);
    return end != part && *end == '\0' && isfinite(*out) && *out >= min;
}

/* A rule alone, where the budget says how much, or name=value: then part is cut at its '='. */
static bool parse_rule(policy_spec *s, char *part)
{
    char *value = strchr(part, '=');
    if (value) *value++ = '\0';
    s->rule = rule_number(part);
    if (s->rule < 0 || rule_has_limit(s->rule) != (value != NULL)) return false;
    return !value || (parse_number(value, 0, &s->limit) && s->limit > 0 && s->limit < 1);
}

/* [block:]budget[:rule or :rule=value][:rest] */
static bool parse_budget(policy_spec *s, char **part, size_t n)
{
    double block = 0;
    if (n && (s->rest = rest_number(part[n - 1])) >= 0) n--;
    if (n && (strchr(part[n - 1], '=') || rule_number(part[n - 1]) >= 0)) {
        if (!parse_rule(s, part[--n])) return false;
    }
    if (n > 2 || (n && !budget_read(part[n - 1], &s->budget))) return false;
    if (n == 2 && !(parse_number(part[0], 1, &block) && block == floor(block) && block <= 1 << 20)) return false;
    s->block = (int64_t)block;
    return true;
}

static bool parse_spec(policy_spec *s, const char *word, size_t len, char *why, size_t cap)
{
    enum { PARTS = 5 };
    char parts[sizeof s->label], *part[PARTS] = {0};
    size_t n = 0;
    *s = (policy_spec){.budget = -1, .beta = -1, .rule = -1, .rest = -1};
    if (len == 0 || len >= sizeof s->label) {
        snprintf(why, cap, "expected policies separated by commas, found '%.*s'", (int)(len < 80 ? len : 80), word);
        return false;
    }
    snprintf(s->label, sizeof s->label, "%.*s", (int)len, word);
    memcpy(parts, s->label, sizeof parts);
    for (char *p = parts; p; n++) {
        char *colon = strchr(p, ':');
        if (colon) *colon++ = '\0';
        if (n < PARTS) part[n] = p;
        p = colon;
    }
    snprintf(s->name, sizeof s->name, "%s", part[0]);
    const char *form = takes(part[0]);
    bool ok = n <= PARTS && *part[0] && strlen(part[0]) < sizeof s->name;
    if (*form == '\0') ok = ok && n == 1;
    else if (strcmp(form, "beta") == 0) ok = ok && n <= 2 && (n == 1 || parse_number(part[1], 0, &s->beta));
    else ok = ok && parse_budget(s, part + 1, n - 1);
    if (!ok) snprintf(why, cap, "expected %s%s%s, found '%s'", *part[0] ? part[0] : "name", *form ? ":" : " alone", form, s->label);
    return ok;
}

static bool parse_words(policy_list *out, const char *words, char *why, size_t cap)
{
    for (const char *p = words;; p++) {
        size_t len = strcspn(p, ",");
        if (out->n == LIST_MAX) {
            snprintf(why, cap, "expected at most %d policies", LIST_MAX);
            return false;
        }
        policy_spec *s = &out->v[out->n];
        if (!parse_spec(s, p, len, why, cap)) return false;
        for (size_t i = 0; i < out->n; i++) {
            if (strcmp(out->v[i].label, s->label) != 0) continue;
            snprintf(why, cap, "expected each policy once, found '%s' again", s->label);
            return false;
        }
        out->n++;
        p += len;
        if (!*p) return true;
    }
}

bool policies_parse(policy_list *out, const word_list *written, char *why, size_t cap)
{
    out->n = 0;
    if (written->n == 0) return parse_words(out, DEFAULT_POLICIES, why, cap);
    for (size_t i = 0; i < written->n; i++)
        if (!parse_words(out, written->v[i], why, cap)) return false;
    return true;
}

void policy_apply(const policy_spec *spec, spw_session_params *params)
{
    params->kv_policy = spec->name;
    if (spec->budget >= 0) params->kv_budget = spec->budget;
    if (spec->block) params->kv_block = (uint32_t)spec->block;
    if (spec->beta >= 0) params->kv_beta = spec->beta;
    if (spec->rest >= 0) params->kv_rest = (spw_kv_rest)spec->rest;
    if (spec->rule < 0) return;
    params->kv_rule = (spw_kv_rule)spec->rule;
    if (!rule_has_limit(spec->rule)) return;
    if (spec->rule == SPW_KV_ERROR) params->kv_error = spec->limit;
    else params->kv_threshold = spec->limit;
}

bool policy_is_full(const policy_spec *spec)
{
    return strcmp(spec->name, "full") == 0;
}

/* Share of the K and V that a policy keeps once more.  quest: two halves for each element of a block's keys.  hgca: rows that each query head keeps by itself; measured on real
 * models, where beta 1 keeps some 2 to 15 % for a head, and 4 to 8 heads share K and V. */
static double kept_share(const policy_spec *spec)
{
    if (strcmp(spec->name, "quest") == 0) return 1.0 / (spec->block ? (double)spec->block : 16);
    if (strcmp(spec->name, "hgca") == 0) return spec->beta > 0.1 || spec->beta < 0 ? 0.6 : 6;
    return 0;
}

uint64_t policies_positions(const policy_list *list, uint64_t n_ctx, uint64_t n_new)
{
    const uint64_t pages = 256; /* the last one shared is copied, the last one new is not full */
    double kept = 0;
    for (size_t i = 0; i < list->n; i++) kept += kept_share(&list->v[i]);
    return (uint64_t)(kept * (double)n_ctx) + list->n * (n_new + pages);
}

bool policies_check(const policy_list *list, spw_engine *e, const spw_session_params *params, spw_err *err)
{
    for (size_t i = 0; i < list->n; i++) {
        spw_session_params p = *params;
        spw_session *s = NULL;
        policy_apply(&list->v[i], &p);
        if (spw_session_create(&s, e, &p, err) != SPW_OK) return false;
        spw_session_free(s);
    }
    return true;
}
