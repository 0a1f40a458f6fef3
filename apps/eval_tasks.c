/* eval_tasks.c - the table of tasks, how a text is made as long as asked, and the tasks that are not RULER's: kv, passkey, niah, multiturn. */
#include "eval_tasks.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval_build.h"

/* Below this many tokens texts grow by smaller steps, as in RULER. */
#define SHORT_TEXT 4096
/* Stream of the texts that are made to find a size: no sample has this number. */
#define SIZING UINT64_MAX
#define EXAMPLE_TOKENS 500
#define LEAST_TEXT 64 /* tokens: no task fits into fewer */

typedef enum task_fit {
    FIT_NONE,   /* the cell says how much text there is */
    FIT_SEARCH, /* by bisection */
    FIT_GROW,   /* by steps from a first guess, fwe's way */
} task_fit;

typedef enum task_rule { RULE_ALL, RULE_NUMBER } task_rule;

struct task_kind {
    const char *name;
    build_fn *build, *build_example;
    size_t n_new;
    task_fit fit;
    size_t step, step_short; /* units of text; the least a text has, too */
    size_t sample;           /* units of the text that the estimate is made from; 0: step */
    size_t reach;            /* the search goes up to this many times the estimate */
    task_rule rule;
    bool plain;
    char stop;
};

/* ------------------------------------------------------------------------------------------------- building ---- */

void build_add(text *t, const char *format, ...)
{
    char piece[501];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    text_append(t, piece, n < 0 ? 0 : (size_t)n < sizeof piece ? (size_t)n : sizeof piece - 1);
}

task_turn *build_turn(task_draw *d)
{
    task_turn *t = &d->out->turns[d->out->n_turns++];
    text_append(&t->question, "", 0);
    text_append(&t->prefix, "", 0);
    return t;
}

void build_reference(task_turn *t, const char *answer)
{
    text_append(&t->references[t->n_references++], answer, strlen(answer));
}

void build_uuid(eval_random *r, bool version4, char out[BUILD_UUID])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i + 1 < BUILD_UUID; i++) out[i] = i == 8 || i == 13 || i == 18 || i == 23 ? '-' : digits[random_below(r, 16)];
    if (version4) out[14] = '4', out[19] = digits[8 + random_below(r, 4)];
    out[BUILD_UUID - 1] = '\0';
}

/* [0, 1), another for each number and spread evenly over any run of them: where things are put must not depend on how many samples there are. */
static double spread(const task_draw *d, size_t number)
{
    eval_random start = random_start(d->seed, task_name(d->cell->kind), d->cell->length, d->cell->n_keys);
    double x = random_unit(&start) + (double)number * 0.6180339887498949;
    return x - (double)(size_t)x;
}

static double depth_of(const task_draw *d)
{
    return d->cell->depth == TASK_DEPTH_SPREAD ? spread(d, d->index) : (double)d->cell->depth / 100;
}

/* A dictionary of random keys and values, and for each turn the start of the line of one of its keys. */
static void build_dictionary(task_draw *d)
{
    size_t n = d->cell->n_keys;
    char(*keys)[BUILD_UUID] = app_alloc(2 * n * sizeof *keys), (*values)[BUILD_UUID] = keys + n;
    bool *asked = app_alloc(n * sizeof *asked);
    task_turn *t = build_turn(d);
    for (size_t i = 0; i < n; i++) {
        build_uuid(d->random, false, keys[i]);
        build_uuid(d->random, false, values[i]);
        build_add(&t->question, "%s\"%s\": \"%s\"", i ? ",\n " : "{", keys[i], values[i]);
        asked[i] = false;
    }
    build_add(&t->question, "}\n\n");
    for (size_t i = 0; i < d->cell->n_turns; i++) {
        if (i) t = build_turn(d), build_add(&t->question, "\n\n");
        size_t which = (size_t)(spread(d, d->index * d->cell->n_turns + i) * (double)n);
        while (asked[which]) which = (which + 1) % n;
        asked[which] = true;
        build_add(&t->prefix, "\"%s\": \"", keys[which]);
        build_reference(t, values[which]);
    }
    free(asked);
    free(keys);
}

static void build_passkey(task_draw *d)
{
    char key[8];
    task_turn *t = build_turn(d);
    size_t at = (size_t)(depth_of(d) * (double)d->size + 0.5);
    snprintf(key, sizeof key, "%zu", 10000 + random_below(d->random, 90000));
    build_add(&t->question, "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important information "
                            "there.\n\n");
    for (size_t i = 0; i <= d->size; i++) {
        if (i == at) build_add(&t->question, "The pass key is %s. Remember it. %s is the pass key.\n", key, key);
        if (i < d->size) build_add(&t->question, "%s\n", BUILD_NOISE);
    }
    build_add(&t->question, "\nWhat is the pass key?");
    build_add(&t->prefix, " The pass key is");
    build_reference(t, key);
}

/* The end of the sentence that starts at p: behind its mark and the white space after it. */
static const char *sentence_end(const char *p, const char *end)
{
    for (; p < end; p++) {
        if (!strchr(".!?", *p) || *p == '\0' || p + 1 == end || !isspace((unsigned char)p[1])) continue;
        for (p++; p < end && isspace((unsigned char)*p); p++) {}
        return p;
    }
    return end;
}

/* gkamradt's needle in sentences of the haystack, which starts over when it ends, or in lines of noise. */
static void build_needle(task_draw *d)
{
    static const char needle[] = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.";
    const char *noise = BUILD_NOISE "\n", *first = d->cell->haystack ? d->cell->haystack : noise;
    const char *end = first + (d->cell->haystack ? d->cell->haystack_len : strlen(noise)), *p = first;
    task_turn *t = build_turn(d);
    size_t at = (size_t)(depth_of(d) * (double)d->size + 0.5);
    /* Another sample starts at another sentence. */
    if (d->cell->haystack && d->index) p = sentence_end(first + (size_t)(spread(d, d->index) * (double)(end - first)), end);
    for (size_t i = 0; i <= d->size; i++) {
        if (i == at) build_add(&t->question, "%s\n", needle);
        if (i == d->size) break;
        const char *next = d->cell->haystack ? sentence_end(p == end ? first : p, end) : end;
        if (p == end) p = first;
        text_append(&t->question, p, (size_t)(next - p));
        p = next;
    }
    build_add(&t->question, "\nWhat is the best thing to do in San Francisco?");
    build_add(&t->prefix, " The best thing to do in San Francisco is");
    build_reference(t, "sandwich");
    build_reference(t, "Dolores Park");
    build_reference(t, "sunny day");
}

/* ------------------------------------------------------------------------------------------- table and sizes ---- */

static const task_kind kinds[] = {
    {.name = "niah_single_1", .build = build_niah_noise, .n_new = 128, .fit = FIT_SEARCH, .step = 25, .step_short = 5, .reach = 3},
    {.name = "niah_multikey_2", .build = build_niah_words, .n_new = 128, .fit = FIT_SEARCH, .step = 25, .step_short = 5, .reach = 3},
    {.name = "niah_multikey_3", .build = build_niah_uuids, .n_new = 128, .fit = FIT_SEARCH, .step = 25, .step_short = 5, .reach = 3},
    {.name = "vt", .build = build_vt, .build_example = build_vt_example, .n_new = 30, .fit = FIT_SEARCH, .step = 10, .step_short = 5, .reach = 3},
    {.name = "cwe", .build = build_cwe, .n_new = 120, .fit = FIT_SEARCH, .step = 10, .step_short = 10, .sample = 4096, .reach = 2},
    {.name = "fwe", .build = build_fwe, .n_new = 50, .fit = FIT_GROW},
    /* A value takes at most its 36 bytes; the closing quote ends it. */
    {.name = "kv", .build = build_dictionary, .n_new = 40, .plain = true, .stop = '"'},
    {.name = "multiturn", .build = build_dictionary, .n_new = 40, .plain = true, .stop = '"'},
    {.name = "passkey", .build = build_passkey, .n_new = 12, .fit = FIT_SEARCH, .step = 5, .step_short = 5, .reach = 3, .rule = RULE_NUMBER},
    {.name = "niah", .build = build_needle, .n_new = 48, .fit = FIT_SEARCH, .step = 5, .step_short = 5, .reach = 3},
};

const char task_ruler_names[] = "niah_single_1,niah_multikey_2,niah_multikey_3,vt,cwe,fwe";

const task_kind *task_find(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    return NULL;
}

const char *task_name(const task_kind *k)
{
    return k->name;
}

size_t task_new_tokens(const task_kind *k)
{
    return k->n_new;
}

bool task_is_plain(const task_kind *k)
{
    return k->plain;
}

char task_stop(const task_kind *k)
{
    return k->stop;
}

void task_free(task_sample *s)
{
    for (size_t i = 0; i < s->n_turns; i++) {
        text_free(&s->turns[i].question);
        text_free(&s->turns[i].prefix);
        for (size_t j = 0; j < s->turns[i].n_references; j++) text_free(&s->turns[i].references[j]);
    }
    *s = (task_sample){0};
}

/* What sizing needs: how texts are built and counted. */
typedef struct sizing {
    const task_cell *cell;
    uint64_t seed;
    size_t example_size;
    build_fn *build;
    task_count_fn *count;
    void *ctx;
} sizing;

static void build_sample(const sizing *s, uint64_t index, size_t size, task_sample *out)
{
    eval_random r = random_start(s->seed, task_name(s->cell->kind), s->cell->length, index);
    *out = (task_sample){0};
    s->build(&(task_draw){.cell = s->cell, .seed = s->seed, .index = (size_t)index, .size = size, .example_size = s->example_size, .random = &r, .out = out});
}

/* Tokens of the text and its answer at this size. */
static size_t tokens_at(const sizing *s, size_t size)
{
    task_sample sample;
    build_sample(s, SIZING, size, &sample);
    size_t n = s->count(s->ctx, &sample.turns[0]) + s->cell->kind->n_new;
    task_free(&sample);
    return n;
}

/* The largest size that fits limit, or step where none does. */
static size_t search_size(const sizing *s, size_t limit, size_t step, size_t sample, size_t reach)
{
    double per_unit = (double)(tokens_at(s, sample) - s->cell->kind->n_new) / (double)sample;
    size_t low = step, high = (size_t)((double)limit / per_unit * (double)reach), best = step;
    if (high < 2 * step) high = 2 * step;
    while (low <= high) {
        size_t middle = low + (high - low) / 2;
        if (tokens_at(s, middle) <= limit) best = middle, low = middle + 1;
        else high = middle - 1;
    }
    return best;
}

/* From a sixth of the tokens up by 1/32 of them, as long as it fits. */
static size_t grow_size(const sizing *s, size_t limit, size_t step)
{
    size_t size = (limit - s->cell->kind->n_new) / 6;
    while (tokens_at(s, size) <= limit) size += step;
    return size > step ? size - step : size;
}

static size_t step_of(const task_cell *c)
{
    if (c->kind->fit == FIT_GROW) return (c->length - c->kind->n_new) / 32;
    return c->length < SHORT_TEXT ? c->kind->step_short : c->kind->step;
}

bool task_make(task_cell *c, uint64_t seed, size_t index, task_count_fn *count, void *ctx, task_sample *out)
{
    const task_kind *k = c->kind;
    sizing s = {.cell = c, .seed = seed, .build = k->build, .count = count, .ctx = ctx};
    if (k->fit == FIT_NONE) {
        build_sample(&s, index, c->n_keys, out);
        return true;
    }
    if (c->length < k->n_new + LEAST_TEXT) return false;
    size_t step = step_of(c);
    if (k->build_example) {
        s.build = k->build_example;
        s.example_size = search_size(&s, EXAMPLE_TOKENS, 5, 5, 3);
        s.build = k->build;
    }
    if (c->size == 0) c->size = k->fit == FIT_GROW ? grow_size(&s, c->length, step) : search_size(&s, c->length, step, k->sample ? k->sample : step, k->reach);
    for (size_t size = c->size;; size = size - step > step ? size - step : step) {
        build_sample(&s, index, size, out);
        if (count(ctx, &out->turns[0]) + k->n_new <= c->length) return true;
        task_free(out);
        if (size <= step) return false;
    }
}

/* -------------------------------------------------------------------------------------------------- scoring ---- */

static bool holds(const char *answer, size_t len, const text *part)
{
    for (size_t i = 0; i + part->len <= len; i++) {
        size_t k = 0;
        while (k < part->len && tolower((unsigned char)answer[i + k]) == tolower((unsigned char)part->data[k])) k++;
        if (k == part->len) return true;
    }
    return false;
}

static bool first_number_is(const char *answer, size_t len, const text *number)
{
    size_t at = 0, n = 0;
    while (at < len && !isdigit((unsigned char)answer[at])) at++;
    while (at + n < len && isdigit((unsigned char)answer[at + n])) n++;
    return n == number->len && memcmp(answer + at, number->data, n) == 0;
}

double task_score(const task_kind *k, const task_turn *turn, const char *answer, size_t len)
{
    size_t found = 0;
    if (k->rule == RULE_NUMBER) return first_number_is(answer, len, &turn->references[0]) ? 1 : 0;
    for (size_t i = 0; i < turn->n_references; i++) found += holds(answer, len, &turn->references[i]);
    return (double)found / (double)turn->n_references;
}
