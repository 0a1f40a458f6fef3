/* eval_policies.c - the policies that eval compares: from --policies to the parameters of a session. */
#include "eval_policies.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_POLICIES "full,window"

/* What may follow a name; one that is not listed takes [block:]budget. */
static const struct {
    const char *name;
    const char *takes; /* "": nothing */
} forms[] = {{"full", ""}, {"window", ""}, {"hgca", "beta"}};

static const char *takes(const char *name)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(forms[i].name, name) == 0) return forms[i].takes;
    return "[block:]budget";
}

/* A number that is the whole of part and at least min. */
static bool parse_number(const char *part, double min, double *out)
{
    char *end;
    *out = strtod(part, &end);
    return end != part && *end == '\0' && isfinite(*out) && *out >= min;
}

static bool parse_spec(policy_spec *s, const char *word, size_t len, char *why, size_t cap)
{
    char parts[sizeof s->label], *part[3] = {0};
    size_t n = 0;
    *s = (policy_spec){.budget = -1, .beta = -1};
    if (len == 0 || len >= sizeof s->label) {
        snprintf(why, cap, "expected policies separated by commas, found '%.*s'", (int)(len < 80 ? len : 80), word);
        return false;
    }
    snprintf(s->label, sizeof s->label, "%.*s", (int)len, word);
    memcpy(parts, s->label, sizeof parts);
    for (char *p = parts; p; n++) {
        char *colon = strchr(p, ':');
        if (colon) *colon++ = '\0';
        if (n < 3) part[n] = p;
        p = colon;
    }
    snprintf(s->name, sizeof s->name, "%s", part[0]);
    const char *form = takes(part[0]);
    double block = 0;
    bool ok = n <= 3 && *part[0] && strlen(part[0]) < sizeof s->name;
    if (*form == '\0') ok = ok && n == 1;
    else if (strcmp(form, "beta") == 0) ok = ok && n <= 2 && (n == 1 || parse_number(part[1], 0, &s->beta));
    else ok = ok && (n == 1 || options_read_budget(part[n - 1], &s->budget)) && (n < 3 || (parse_number(part[1], 1, &block) && block == floor(block) && block <= 1 << 20));
    s->block = (int64_t)block;
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
