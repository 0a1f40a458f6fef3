/* eval_ruler.c - six tasks of RULER (github.com/NVIDIA/RULER): niah_single_1, niah_multikey_2, niah_multikey_3, vt, cwe, fwe.
 *
 * Texts, sizes and constants are RULER's; the random numbers and the list of words are not, so samples differ from those of its own scripts while their
 * distribution is the same up to the words. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval_build.h"
#include "word_list.h"

/* ---------------------------------------------------------------------------------------------------- words ---- */

enum { N_COMMON = 10, WORD_CAP = 48, SHORT_LENGTH = 4096 /* tokens; below it the tasks are smaller */ };

/* Both lists, cut into words once. */
static struct {
    const char *adjectives[1200], *nouns[1600];
    size_t n_adjectives, n_nouns;
} words;

static size_t cut_words(char *list, const char **out, size_t cap)
{
    size_t n = 0;
    for (char *save = NULL, *w = strtok_r(list, " ", &save); w && n < cap; w = strtok_r(NULL, " ", &save)) out[n++] = w;
    return n;
}

static void load_words(void)
{
    static char adjectives[] = WORD_LIST_ADJECTIVES, nouns[] = WORD_LIST_NOUNS;
    if (words.n_nouns) return;
    words.n_adjectives = cut_words(adjectives, words.adjectives, sizeof words.adjectives / sizeof *words.adjectives);
    words.n_nouns = cut_words(nouns, words.nouns, sizeof words.nouns / sizeof *words.nouns);
}

static size_t n_single_words(void)
{
    return words.n_adjectives + words.n_nouns;
}

/* Word i: first the single ones, behind them all pairs of adjective and noun. */
static void word_at(size_t i, char out[WORD_CAP])
{
    if (i < words.n_adjectives) snprintf(out, WORD_CAP, "%s", words.adjectives[i]);
    else if (i < n_single_words()) snprintf(out, WORD_CAP, "%s", words.nouns[i - words.n_adjectives]);
    else snprintf(out, WORD_CAP, "%s-%s", words.adjectives[(i - n_single_words()) / words.n_nouns], words.nouns[(i - n_single_words()) % words.n_nouns]);
}

static void shuffle(eval_random *r, uint32_t *v, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = random_below(r, i);
        uint32_t t = v[i - 1];
        v[i - 1] = v[j], v[j] = t;
    }
}

/* n distinct numbers below limit, in the order drawn; freed by the caller. */
static uint32_t *draw_distinct(eval_random *r, size_t n, size_t limit)
{
    uint32_t *v = app_alloc(limit * sizeof *v);
    for (size_t i = 0; i < limit; i++) v[i] = (uint32_t)i;
    for (size_t i = 0; i < n; i++) {
        size_t j = i + random_below(r, limit - i);
        uint32_t t = v[i];
        v[i] = v[j], v[j] = t;
    }
    return v;
}

/* --------------------------------------------------------------------------------------- needle in a haystack ---- */

typedef struct needle_words {
    const char *type;             /* of the values, in the plural */
    bool uuid_keys, uuid_values;
} needle_words;

static void draw_key(const needle_words *w, eval_random *r, char out[WORD_CAP])
{
    if (w->uuid_keys) build_uuid(r, true, out);
    else {
        size_t a = random_below(r, words.n_adjectives);
        snprintf(out, WORD_CAP, "%s-%s", words.adjectives[a], words.nouns[random_below(r, words.n_nouns)]);
    }
}

static void draw_value(const needle_words *w, eval_random *r, char out[WORD_CAP])
{
    if (w->uuid_values) build_uuid(r, true, out);
    else snprintf(out, WORD_CAP, "%zu", 1000000 + random_below(r, 9000000));
}

static void add_needle(text *t, const needle_words *w, const char *key, const char *value)
{
    build_add(t, "One of the special magic %s for %s is: %s.\n", w->type, key, value);
}

/* One key, one value, one query; the haystack is noise, or other needles. */
static void build_niah(task_draw *d, const needle_words *w, bool needles)
{
    char key[WORD_CAP], value[WORD_CAP], other[WORD_CAP], number[WORD_CAP], type[16];
    load_words();
    task_turn *t = build_turn(d);
    snprintf(type, sizeof type, "%.*s", (int)strlen(w->type) - 1, w->type);
    draw_key(w, d->random, key);
    draw_value(w, d->random, value);
    size_t at = random_below(d->random, d->size);
    build_add(&t->question, "A special magic %s is hidden within the following text. Make sure to memorize it. I will quiz you about the %s afterwards.\n", type, type);
    for (size_t i = 0; i < d->size; i++) {
        if (i == at) add_needle(&t->question, w, key, value);
        if (!needles) {
            build_add(&t->question, "%s\n", BUILD_NOISE);
            continue;
        }
        do draw_key(w, d->random, other);
        while (strcmp(other, key) == 0);
        draw_value(w, d->random, number);
        add_needle(&t->question, w, other, number);
    }
    build_add(&t->question, "What is the special magic %s for %s mentioned in the provided text?", type, key);
    build_add(&t->prefix, " The special magic %s for %s mentioned in the provided text is", type, key);
    build_reference(t, value);
}

void build_niah_noise(task_draw *d)
{
    build_niah(d, &(needle_words){.type = "numbers"}, false);
}

void build_niah_words(task_draw *d)
{
    build_niah(d, &(needle_words){.type = "numbers"}, true);
}

void build_niah_uuids(task_draw *d)
{
    build_niah(d, &(needle_words){.type = "uuids", .uuid_keys = true, .uuid_values = true}, true);
}

/* ------------------------------------------------------------------------------------------ variable tracking ---- */

enum { VT_NAMES = 5, VT_NAME = 5, VT_EXAMPLE_NAME = 3 };

typedef struct vt_chain {
    char names[VT_NAMES][VT_NAME + 1];
    unsigned value;
} vt_chain;

static void draw_chain(vt_chain *c, eval_random *r, size_t name_len)
{
    memset(c, 0, sizeof *c);
    for (size_t i = 0; i < VT_NAMES; i++) {
        bool again = true;
        while (again) {
            for (size_t k = 0; k < name_len; k++) c->names[i][k] = (char)('A' + random_below(r, 26));
            again = false;
            for (size_t j = 0; j < i; j++) again = again || strcmp(c->names[i], c->names[j]) == 0;
        }
    }
    c->value = 10000 + (unsigned)random_below(r, 89999);
}

/* Question and answer's beginning of one chain in n lines of noise; places are drawn from spots. */
static void add_chain(text *question, text *prefix, const vt_chain *c, size_t n, eval_random *spots)
{
    bool *here = app_alloc(n * sizeof *here);
    memset(here, 0, n * sizeof *here);
    for (size_t placed = 0; placed < VT_NAMES;) {
        size_t at = random_below(spots, n);
        placed += !here[at];
        here[at] = true;
    }
    build_add(question, "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n");
    for (size_t i = 0, next = 0; i < n; i++) {
        if (here[i]) {
            if (next == 0) build_add(question, "VAR %s = %u\n", c->names[0], c->value);
            else build_add(question, "VAR %s = VAR %s \n", c->names[next], c->names[next - 1]);
            next++;
        }
        build_add(question, "%s\n", BUILD_NOISE);
    }
    free(here);
    build_add(question, "Question: Find all variables that are assigned the value %u in the text above.", c->value);
    build_add(prefix, " Answer: According to the chain(s) of variable assignment in the text above, %d variables are assigned the value %u, they are: ", VT_NAMES, c->value);
}

/* The worked example: its places are the same for all samples of a seed, its names and its value are not. */
static void add_vt_example(task_draw *d, size_t size, text *out)
{
    vt_chain c;
    eval_random spots = random_start(d->seed, "vt example", 0, 0);
    draw_chain(&c, d->random, VT_EXAMPLE_NAME);
    add_chain(out, out, &c, size, &spots);
    for (size_t i = 0; i < VT_NAMES; i++) build_add(out, " %s", c.names[i]);
    build_add(out, "\n\n\n");
}

void build_vt_example(task_draw *d)
{
    add_vt_example(d, d->size, &build_turn(d)->question);
}

void build_vt(task_draw *d)
{
    vt_chain c;
    task_turn *t = build_turn(d);
    draw_chain(&c, d->random, VT_NAME);
    if (d->example_size) add_vt_example(d, d->example_size, &t->question);
    add_chain(&t->question, &t->prefix, &c, d->size, d->random);
    for (size_t i = 0; i < VT_NAMES; i++) build_reference(t, c.names[i]);
}

/* ---------------------------------------------------------------------------------- common and frequent words ---- */

#define CWE_ANSWER " Answer: The top 10 words that appear most often in the list are:"

/* A list of n distinct words, the first ten of them common times, the others rare times; common words into top. */
static void add_word_list(text *out, eval_random *r, size_t n, size_t common, size_t rare, char top[N_COMMON][WORD_CAP])
{
    size_t limit = n_single_words(), total = N_COMMON * common + (n - N_COMMON) * rare, at = 0;
    if (n > limit) limit += words.n_adjectives * words.n_nouns;
    uint32_t *chosen = draw_distinct(r, n, limit), *list = app_alloc(total * sizeof *list);
    eval_random fixed = {BUILD_SHUFFLE_SEED};
    char word[WORD_CAP];
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < (i < N_COMMON ? common : rare); k++) list[at++] = chosen[i];
    shuffle(&fixed, list, total);
    build_add(out, "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n");
    for (size_t i = 0; i < total; i++) {
        word_at(list[i], word);
        build_add(out, "%s%zu. %s", i ? " " : "", i + 1, word);
    }
    build_add(out, "\nQuestion: What are the 10 most common words in the above list?");
    for (size_t i = 0; i < N_COMMON; i++) word_at(chosen[i], top[i]);
    free(chosen);
    free(list);
}

void build_cwe(task_draw *d)
{
    char top[N_COMMON][WORD_CAP];
    bool small = d->cell->length < SHORT_LENGTH;
    load_words();
    task_turn *t = build_turn(d);
    add_word_list(&t->question, d->random, small ? 20 : 40, small ? 3 : 10, small ? 1 : 3, top);
    build_add(&t->question, CWE_ANSWER);
    for (size_t i = 0; i < N_COMMON; i++) build_add(&t->question, " %zu. %s", i + 1, top[i]);
    build_add(&t->question, "\n");
    add_word_list(&t->question, d->random, d->size, small ? 6 : 30, small ? 1 : 3, top);
    build_add(&t->prefix, CWE_ANSWER);
    for (size_t i = 0; i < N_COMMON; i++) build_reference(t, top[i]);
}

enum { CODED_WORD = 6, FWE_ANSWERS = 3 };
#define ZETA_2 1.6449340668482264

typedef char coded_word[CODED_WORD + 1];

static int compare_coded(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* n distinct coded words, sorted; freed by the caller. */
static coded_word *draw_coded(eval_random *r, size_t n)
{
    coded_word *v = app_alloc(n * sizeof *v);
    for (size_t have = 0; have < n;) {
        for (; have < n; have++) {
            for (size_t k = 0; k < CODED_WORD; k++) v[have][k] = (char)('a' + random_below(r, 26));
            v[have][CODED_WORD] = '\0';
        }
        qsort(v, n, sizeof *v, compare_coded);
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (kept == 0 || strcmp(v[kept - 1], v[i]) != 0) memmove(v[kept++], v[i], sizeof *v);
        have = kept;
    }
    return v;
}

void build_fwe(task_draw *d)
{
    size_t max_len = d->cell->length - task_new_tokens(d->cell->kind), n = max_len / 50, total = 0;
    if (n < FWE_ANSWERS + 1) n = FWE_ANSWERS + 1;
    coded_word *coded = draw_coded(d->random, n);
    uint32_t *rank = app_alloc(n * sizeof *rank), *list = app_alloc((d->size + 1) * sizeof *list);
    eval_random fixed = {BUILD_SHUFFLE_SEED}, fixed_list = {BUILD_SHUFFLE_SEED};
    for (size_t i = 0; i < n; i++) rank[i] = (uint32_t)i;
    shuffle(&fixed, rank, n);
    for (size_t k = 0; k < n; k++) {
        size_t count = (size_t)((double)d->size / ((double)((k + 1) * (k + 1)) * ZETA_2));
        for (size_t i = 0; i < count; i++) list[total++] = (uint32_t)k;
    }
    shuffle(&fixed_list, list, total);
    task_turn *t = build_turn(d);
    build_add(&t->question, "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. ");
    for (size_t i = 0; i < total; i++) build_add(&t->question, "%s%s", i ? " " : "", list[i] == 0 ? "..." : coded[rank[list[i]]]);
    build_add(&t->question, "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above coded "
                            "text?");
    build_add(&t->prefix, " Answer: According to the coded text above, the three most frequently appeared words are:");
    for (size_t i = 1; i <= FWE_ANSWERS; i++) build_reference(t, coded[rank[i]]);
    free(coded);
    free(rank);
    free(list);
}
