/* test_eval_tasks.c - the made-up texts of eval: the same for a seed, as long as asked, what RULER says; scores; how policies are written; and how far apart predictions are.
 *
 * No model is needed: a count of words stands for a tokenizer. */
#include <math.h>

#include "eval_build.h"
#include "eval_divergence.h"
#include "eval_policies.h"
#include "test.h"
#include "word_list.h"

static size_t n_counts; /* calls of count_pieces */

/* "Tokens": runs of at most four bytes that end at a space or a newline. */
static size_t count_pieces(void *ctx, const task_turn *t)
{
    size_t n = 0, run = 0;
    const text *parts[] = {&t->question, &t->prefix};
    (void)ctx;
    n_counts++;
    for (size_t p = 0; p < 2; p++) {
        for (size_t i = 0; i < parts[p]->len; i++) {
            char c = parts[p]->data[i];
            run = run + 1 > 4 || c == ' ' || c == '\n' ? 1 : run + 1;
            n += run == 1;
        }
    }
    return n;
}

static size_t occurrences(const char *s, const char *part)
{
    size_t n = 0;
    for (const char *p = s; (p = strstr(p, part)); p += strlen(part)) n++;
    return n;
}

static task_cell cell_of(const char *name, size_t length)
{
    return (task_cell){.kind = task_find(name), .length = length, .n_keys = 30, .n_turns = 1, .depth = TASK_DEPTH_SPREAD};
}

static bool same_sample(const task_sample *a, const task_sample *b)
{
    return strcmp(a->turns[0].question.data, b->turns[0].question.data) == 0 && strcmp(a->turns[0].prefix.data, b->turns[0].prefix.data) == 0 &&
           strcmp(a->turns[0].references[0].data, b->turns[0].references[0].data) == 0;
}

static const char *const all_names[] = {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe", "passkey", "niah", "kv", "multiturn"};
enum { N_NAMES = sizeof all_names / sizeof *all_names, N_FITTED = 8 };

static void samples_depend_on_seed_and_number_alone(void)
{
    for (size_t i = 0; i < N_NAMES; i++) {
        task_sample a, b, other, seeded;
        task_cell c = cell_of(all_names[i], 2048), again = cell_of(all_names[i], 2048);
        CHECK(task_make(&c, 42, 3, count_pieces, NULL, &a));
        CHECK(task_make(&c, 42, 4, count_pieces, NULL, &other));
        CHECK(task_make(&again, 42, 3, count_pieces, NULL, &b));
        again.size = 0;
        CHECK(task_make(&again, 43, 3, count_pieces, NULL, &seeded));
        CHECK(same_sample(&a, &b));
        /* The needle in noise has nothing random but its place. */
        if (strcmp(all_names[i], "niah") != 0 && (same_sample(&a, &other) || same_sample(&a, &seeded)))
            test_bad++, fprintf(stderr, "%s: samples 3 and 4, or of seeds 42 and 43, are the same\n", all_names[i]);
        task_free(&a), task_free(&b), task_free(&other), task_free(&seeded);
    }
}

static void texts_fill_their_length(void)
{
    static const size_t lengths[] = {1024, 2048, 4096, 16384};
    for (size_t i = 0; i < N_FITTED; i++) {
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            task_cell c = cell_of(all_names[i], lengths[k]);
            for (size_t index = 0; index < 3; index++) {
                task_sample s;
                if (!task_make(&c, 7, index, count_pieces, NULL, &s)) {
                    test_bad++, fprintf(stderr, "%s does not fit in %zu\n", all_names[i], lengths[k]);
                    continue;
                }
                size_t n = count_pieces(NULL, &s.turns[0]) + task_new_tokens(c.kind);
                if (n > lengths[k] || n < lengths[k] * (lengths[k] < 2048 ? 6 : 8) / 10) test_bad++, fprintf(stderr, "%s takes %zu of %zu\n", all_names[i], n, lengths[k]);
                task_free(&s);
            }
        }
    }
}

static void sizes_are_found_once(void)
{
    task_sample s;
    task_cell c = cell_of("niah_single_1", 8192);
    CHECK(task_make(&c, 1, 0, count_pieces, NULL, &s));
    task_free(&s);
    size_t size = c.size, before = n_counts;
    CHECK(task_make(&c, 1, 1, count_pieces, NULL, &s));
    task_free(&s);
    CHECK_INT(c.size, size);
    CHECK(n_counts - before <= 3);
}

static void too_short_lengths_are_refused(void)
{
    for (size_t i = 0; i < N_FITTED; i++) {
        static const size_t lengths[] = {1, 4, 60, 150};
        for (size_t k = 0; k < 4; k++) {
            task_cell c = cell_of(all_names[i], lengths[k]);
            task_sample s = {0};
            if (!task_make(&c, 1, 0, count_pieces, NULL, &s)) continue;
            CHECK(count_pieces(NULL, &s.turns[0]) + task_new_tokens(c.kind) <= lengths[k]);
            task_free(&s);
        }
    }
}

static void needle_is_asked_for(void)
{
    static const char *const names[] = {"niah_single_1", "niah_multikey_2", "niah_multikey_3"};
    for (size_t i = 0; i < 3; i++) {
        bool uuids = i == 2;
        char line[300], key[100] = "";
        task_sample s;
        task_cell c = cell_of(names[i], 4096);
        CHECK(task_make(&c, 42, 0, count_pieces, NULL, &s));
        const task_turn *t = &s.turns[0];
        CHECK_INT(strncmp(t->question.data, uuids ? "A special magic uuid is hidden within the following text. Make sure to memorize it. I will quiz you about the uuid afterwards.\n"
                                                  : "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards.\n",
                          100), 0);
        CHECK(sscanf(t->prefix.data, uuids ? " The special magic uuid for %99s mentioned in the provided text is" : " The special magic number for %99s mentioned in the provided text is", key) == 1);
        snprintf(line, sizeof line, "\nOne of the special magic %s for %s is: %s.\n", uuids ? "uuids" : "numbers", key, t->references[0].data);
        CHECK_INT(occurrences(t->question.data, line), 1);
        CHECK_INT(occurrences(t->question.data, key), 2);
        CHECK_INT(t->references[0].len, uuids ? 36 : 7);
        CHECK_INT(occurrences(t->question.data, "One of the special magic"), i == 0 ? 1 : (long long)c.size + 1);
        CHECK_INT(occurrences(t->question.data, BUILD_NOISE "\n"), i == 0 ? (long long)c.size : 0);
        snprintf(line, sizeof line, "\nWhat is the special magic %s for %s mentioned in the provided text?", uuids ? "uuid" : "number", key);
        CHECK_STR(t->question.data + t->question.len - strlen(line), line);
        task_free(&s);
    }
}

static void chain_is_in_order(void)
{
    task_sample s;
    task_cell c = cell_of("vt", 4096);
    CHECK(task_make(&c, 42, 1, count_pieces, NULL, &s));
    const task_turn *t = &s.turns[0];
    CHECK_INT(t->n_references, 5);
    CHECK_INT(occurrences(t->question.data, "Memorize and track the chain(s)"), 2);
    CHECK_INT(occurrences(t->question.data, "they are:  "), 1);
    CHECK_INT(occurrences(t->question.data, "VAR "), 2 * 9);
    const char *p = strstr(t->question.data, "\n\n\n");
    char part[64];
    for (size_t i = 0; p && i < 5; i++) {
        if (i == 0) snprintf(part, sizeof part, "\nVAR %s = ", t->references[0].data);
        else snprintf(part, sizeof part, "\nVAR %s = VAR %s \n", t->references[i].data, t->references[i - 1].data);
        p = strstr(p, part);
    }
    CHECK(p);
    CHECK_HAS(t->prefix.data, " 5 variables are assigned the value ");
    task_free(&s);
}

static void common_words_are_common(void)
{
    task_sample s;
    task_cell c = cell_of("cwe", 8192);
    CHECK(task_make(&c, 42, 0, count_pieces, NULL, &s));
    const task_turn *t = &s.turns[0];
    char *list = strstr(t->question.data + 10, "Below is a numbered list");
    CHECK(list && t->n_references == 10);
    for (size_t i = 0; list && i < 10; i++) {
        char word[64];
        snprintf(word, sizeof word, " %s ", t->references[i].data);
        size_t n = occurrences(list, word);
        CHECK(n == 30 || n == 29); /* 29: the last of the list is followed by a newline */
    }
    /* The sample may have ten words fewer than the size that was found. */
    size_t entries = list ? occurrences(list, ". ") - 2 : 0; /* two full stops are in the instruction's lines */
    CHECK(entries == 10 * 30 + (c.size - 10) * 3 || entries == 10 * 30 + (c.size - 20) * 3);
    task_free(&s);
}

static size_t count_sorted_words(const char *list)
{
    size_t n = 1;
    char last[32] = "", word[32];
    for (const char *p = list; sscanf(p, "%31s", word) == 1; n++) {
        if (strcmp(last, word) >= 0) test_bad++, fprintf(stderr, "'%s' follows '%s'\n", word, last);
        memcpy(last, word, sizeof last);
        p += strlen(word);
        if (!*p++) break;
    }
    return n;
}

static void words_are_distinct(void)
{
    char all[] = " " WORD_LIST_NOUNS " ", word[34];
    CHECK(count_sorted_words(WORD_LIST_ADJECTIVES) > 1000);
    CHECK(count_sorted_words(WORD_LIST_NOUNS) > 1400);
    for (const char *p = WORD_LIST_ADJECTIVES; *p; p += strcspn(p, " "), p += *p ? 1 : 0) {
        snprintf(word, sizeof word, " %.*s ", (int)strcspn(p, " "), p);
        if (strstr(all, word)) test_bad++, fprintf(stderr, "'%s' is in both lists\n", word);
    }
}

/* More words than the lists have: pairs of them. */
static void words_do_not_run_out(void)
{
    eval_random r = random_start(1, "words", 0, 0);
    task_sample s = {0};
    task_cell c = cell_of("cwe", 1000);
    build_cwe(&(task_draw){.cell = &c, .size = 3000, .random = &r, .out = &s});
    CHECK_HAS(s.turns[0].question.data, "-");
    for (size_t i = 0; i < s.turns[0].n_references; i++)
        for (size_t j = 0; j < i; j++) CHECK(strcmp(s.turns[0].references[i].data, s.turns[0].references[j].data) != 0);
    task_free(&s);
}

static void frequent_words_are_frequent(void)
{
    task_sample s;
    task_cell c = cell_of("fwe", 4096);
    CHECK(task_make(&c, 42, 0, count_pieces, NULL, &s));
    const task_turn *t = &s.turns[0];
    size_t n[4];
    CHECK_INT(t->n_references, 3);
    n[0] = occurrences(t->question.data, "... ");
    for (size_t i = 0; i < 3; i++) n[i + 1] = occurrences(t->question.data, t->references[i].data);
    CHECK(n[0] > n[1] && n[1] > n[2] && n[2] > n[3] && n[3] > 3);
    CHECK_INT(n[1], (long long)((double)c.size / (4 * 1.6449340668482264)));
    task_free(&s);
}

static void dictionaries_are_asked_for_their_keys(void)
{
    task_sample s;
    task_cell c = cell_of("multiturn", 0);
    c.n_turns = 16, c.n_keys = 16;
    CHECK(task_make(&c, 5, 2, count_pieces, NULL, &s));
    CHECK_INT(s.n_turns, 16);
    const char *d = s.turns[0].question.data;
    CHECK(d[0] == '{' && d[1] == '"');
    CHECK_INT(strlen(d), 16 * (36 + 36 + 6) + 15 * 3 + 2 + 2);
    CHECK_INT(occurrences(d, "\",\n \""), 15);
    for (size_t i = 0; i < s.n_turns; i++) {
        char line[100];
        const task_turn *t = &s.turns[i];
        snprintf(line, sizeof line, "%s%s\"", t->prefix.data, t->references[0].data);
        CHECK_INT(occurrences(d, line), 1);
        for (size_t j = 0; j < i; j++) CHECK(strcmp(t->prefix.data, s.turns[j].prefix.data) != 0);
        if (i) CHECK_STR(t->question.data, "\n\n");
    }
    task_free(&s);
}

/* Five items: at most one near the end, where a window would find it. */
static void keys_are_spread(void)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        size_t late = 0;
        for (size_t i = 0; i < 5; i++) {
            task_sample s;
            task_cell c = cell_of("kv", 0);
            c.n_keys = 50;
            CHECK(task_make(&c, seed, i, count_pieces, NULL, &s));
            const char *at = strstr(s.turns[0].question.data, s.turns[0].prefix.data);
            CHECK(at);
            late += at && (size_t)(at - s.turns[0].question.data) > s.turns[0].question.len * 95 / 100;
            task_free(&s);
        }
        CHECK(late <= 1);
    }
}

static void needles_lie_at_their_depth(void)
{
    static const char book[] = "One is here. Two is there! Is three? Four ends. ";
    static const char needle[] = "The best thing to do in San Francisco is eat a sandwich";
    for (int depth = 0; depth <= 100; depth += 25) {
        task_sample s;
        task_cell c = cell_of("niah", 2000);
        c.depth = depth;
        if (depth % 50 == 0) c.haystack = book, c.haystack_len = strlen(book);
        CHECK(task_make(&c, 1, 1, count_pieces, NULL, &s));
        const char *q = s.turns[0].question.data, *at = strstr(q, needle);
        CHECK(at);
        double share = at ? (double)(at - q) / (double)s.turns[0].question.len : -1;
        CHECK_NEAR(share, depth / 100.0, 0.04);
        CHECK_INT(occurrences(q, needle), 1);
        task_free(&s);
    }
    task_sample s;
    task_cell c = cell_of("passkey", 1500);
    CHECK(task_make(&c, 1, 1, count_pieces, NULL, &s));
    CHECK_INT(s.turns[0].references[0].len, 5);
    CHECK_INT(occurrences(s.turns[0].question.data, s.turns[0].references[0].data), 2);
    task_free(&s);
}

static double score_of(const char *task, const char *answer, const char *a, const char *b)
{
    task_turn t = {0};
    build_reference(&t, a);
    if (b) build_reference(&t, b);
    double v = task_score(task_find(task), &t, answer, strlen(answer));
    text_free(&t.references[0]), text_free(&t.references[1]);
    return v;
}

static void scores_are_rulers(void)
{
    CHECK_NEAR(score_of("vt", "ABCDE and fghij.", "abcde", "FGHIJ"), 1, 0);
    CHECK_NEAR(score_of("vt", "ABCDE", "ABCDE", "FGHIJ"), 0.5, 0);
    CHECK_NEAR(score_of("vt", "", "ABCDE", "FGHIJ"), 0, 0);
    CHECK_NEAR(score_of("kv", "abc", "abcd", NULL), 0, 0);
    CHECK_NEAR(score_of("kv", "xabcdx", "abcd", NULL), 1, 0);
    CHECK_NEAR(score_of("passkey", " is 12345.", "12345", NULL), 1, 0);
    CHECK_NEAR(score_of("passkey", "123456", "12345", NULL), 0, 0);
    CHECK_NEAR(score_of("passkey", "1 12345", "12345", NULL), 0, 0);
    CHECK_NEAR(score_of("passkey", "none", "12345", NULL), 0, 0);
}

static void policies_are_read(void)
{
    char why[200];
    policy_list l;
    CHECK(policies_parse(&l, &(word_list){.v = {"full,quest:16:.05,adaptive:.02", "hgca:1.0,oracle:1:512,adaptive:auto,new"}, .n = 2}, why, sizeof why));
    CHECK_INT(l.n, 7);
    CHECK_STR(l.v[1].name, "quest");
    CHECK_STR(l.v[1].label, "quest:16:.05");
    CHECK_INT(l.v[1].block, 16);
    CHECK_NEAR(l.v[1].budget, 0.05, 0);
    CHECK_INT(l.v[2].block, 0);
    CHECK_NEAR(l.v[2].budget, 0.02, 0);
    CHECK_NEAR(l.v[3].beta, 1, 0);
    CHECK(l.v[3].budget < 0 && l.v[0].budget < 0 && l.v[6].budget < 0);
    CHECK_NEAR(l.v[4].budget, 512, 0);
    CHECK_NEAR(l.v[5].budget, 0, 0);
    CHECK(l.v[5].rule < 0);
    CHECK(policies_parse(&l, &(word_list){.n = 0}, why, sizeof why) && l.n >= 2);
    static const char *const bad[] = {"", ",", "full,", "full:1", "window:.1", "quest:16:.05:1", "quest:0:.05", "quest:1.5:.05", "quest:16:x", "quest:16:", "quest:", "adaptive:-1",
                                      "adaptive:0", "adaptive:1.5", "adaptive:nan", "adaptive:inf", "hgca:-1", "hgca:1:2", "adaptive:.1:mass=.1", "adaptive:threshold=.1:.1", "adaptive:.1:error=", "adaptive:.1:error=1", "adaptive:.1:error=0",
                                      "adaptive:.1:=.1", "adaptive:1:2:3:top-p=.1", "hgca:top-p=.1", ":.1", "full,full", "a b:c",
                                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (policies_parse(&l, &(word_list){.v = {bad[i]}, .n = 1}, why, sizeof why)) test_bad++, fprintf(stderr, "'%s' was taken\n", bad[i]);
}

static spw_session_params params_of(const char *spec)
{
    char why[200];
    policy_list l;
    spw_session_params p = spw_session_default_params();
    CHECK(policies_parse(&l, &(word_list){.v = {spec}, .n = 1}, why, sizeof why) && l.n == 1);
    policy_apply(&l.v[0], &p);
    return p;
}

static void policies_become_parameters(void)
{
    spw_session_params standard = spw_session_default_params(), p = params_of("adaptive:16:.01:threshold=.0003");
    CHECK(p.kv_block == 16 && p.kv_rule == SPW_KV_THRESHOLD);
    CHECK_NEAR(p.kv_budget, 0.01, 0);
    CHECK_NEAR(p.kv_threshold, 0.0003, 0);
    p = params_of("adaptive:top-p=.2");
    CHECK(p.kv_rule == SPW_KV_TOP_P && p.kv_block == standard.kv_block);
    CHECK_NEAR(p.kv_budget, standard.kv_budget, 0);
    CHECK_NEAR(p.kv_threshold, 0.2, 0);
    p = params_of("adaptive:512:error=.05");
    CHECK(p.kv_rule == SPW_KV_ERROR);
    CHECK_NEAR(p.kv_budget, 512, 0);
    CHECK_NEAR(p.kv_error, 0.05, 0);
    CHECK_NEAR(p.kv_threshold, standard.kv_threshold, 0);
    p = params_of("hgca:2");
    CHECK(p.kv_rule == standard.kv_rule);
    CHECK(params_of("adaptive:.02:flat").kv_rule == SPW_KV_FLAT && params_of("adaptive:16:.02:layer").kv_rule == SPW_KV_LAYER && params_of("adaptive:.02:model").kv_rule == SPW_KV_MODEL);
    CHECK_NEAR(p.kv_beta, 2, 0);
    CHECK(standard.kv_rest == SPW_KV_REST_MEAN && params_of("adaptive:.02").kv_rest == SPW_KV_REST_MEAN && params_of("adaptive:.02:none").kv_rest == SPW_KV_REST_NONE);
    p = params_of("adaptive:16:.02:threshold=.5:none");
    CHECK(p.kv_rest == SPW_KV_REST_NONE && p.kv_rule == SPW_KV_THRESHOLD && p.kv_block == 16);
    p = params_of("adaptive:.02:flat:mean");
    CHECK(p.kv_rest == SPW_KV_REST_MEAN && p.kv_rule == SPW_KV_FLAT);
}

static void memory_of_policies_is_counted(void)
{
    char why[200];
    policy_list l;
    CHECK(policies_parse(&l, &(word_list){.v = {"full,window,oracle:1:.02"}, .n = 1}, why, sizeof why));
    uint64_t rows = policies_positions(&l, 1 << 16, 512);
    CHECK(rows >= 3 * 512 && rows < 3 * 2048);
    CHECK(policies_parse(&l, &(word_list){.v = {"full,window,oracle:1:.02,quest:16:.05"}, .n = 1}, why, sizeof why));
    CHECK(policies_positions(&l, 1 << 16, 512) >= rows + (1 << 16) / 16);
    CHECK(policies_parse(&l, &(word_list){.v = {"full,window,oracle:1:.02,hgca:0"}, .n = 1}, why, sizeof why));
    CHECK(policies_positions(&l, 1 << 16, 512) >= rows + (1 << 16));
}

/* What a seed stands for must not change by accident: first of the stream, and of a text. */
static void seeds_keep_their_meaning(void)
{
    eval_random r = {0};
    CHECK(random_next(&r) == UINT64_C(0xe220a8397b1dcdaf)); /* splitmix64's first number of state 0 */
    task_sample s;
    task_cell c = cell_of("kv", 0);
    CHECK(task_make(&c, 42, 0, count_pieces, NULL, &s));
    CHECK_INT(strncmp(s.turns[0].question.data, "{\"c039ac66-c186-91fb-d345-f2c9c1b70cf7\": \"4d0de643-bfd8-b005", 59), 0);
    CHECK_STR(s.turns[0].prefix.data, "\"79f7db43-b2e7-44f0-6eae-950cba03dfd2\": \"");
    task_free(&s);
}

/* Of p = 1/2, 1/4, 1/4 and q = 1/4, 1/4, 1/2, written as logits with an offset of their own: 1/2 ln 2 + 0 - 1/4 ln 2. */
static void divergences_are_by_definition(void)
{
    const float half = logf(0.5f), quarter = logf(0.25f);
    const float p[3] = {300 + half, 300 + quarter, 300 + quarter}, q[3] = {quarter - 90, quarter - 90, half - 90}, wrong[3] = {0, NAN, 0};
    double probabilities[3];
    size_t top;
    const double p_log = divergence_log_sum(p, 3, &top);
    CHECK_INT(top, 0);
    CHECK_NEAR(p_log, 300, 1e-4);
    const double q_log = divergence_log_sum(q, 3, &top);
    CHECK_INT(top, 2);
    divergence_probabilities(p, p_log, 3, probabilities);
    CHECK_NEAR(probabilities[0], 0.5, 1e-4);
    CHECK_NEAR(divergence_kld(probabilities, p, p_log, q, q_log, 3), 0.25 * log(2), 1e-4);
    CHECK(divergence_kld(probabilities, p, p_log, p, p_log, 3) == 0);
    CHECK(isnan(divergence_kld(probabilities, p, p_log, wrong, divergence_log_sum(wrong, 3, &top), 3)));
}

int main(void)
{
    RUN(samples_depend_on_seed_and_number_alone);
    RUN(texts_fill_their_length);
    RUN(sizes_are_found_once);
    RUN(too_short_lengths_are_refused);
    RUN(needle_is_asked_for);
    RUN(chain_is_in_order);
    RUN(common_words_are_common);
    RUN(words_are_distinct);
    RUN(words_do_not_run_out);
    RUN(frequent_words_are_frequent);
    RUN(dictionaries_are_asked_for_their_keys);
    RUN(keys_are_spread);
    RUN(needles_lie_at_their_depth);
    RUN(scores_are_rulers);
    RUN(policies_are_read);
    RUN(policies_become_parameters);
    RUN(memory_of_policies_is_counted);
    RUN(seeds_keep_their_meaning);
    RUN(divergences_are_by_definition);
    return test_done();
}
