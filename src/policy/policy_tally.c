/* policy_tally.c - counts of votes in bins half an octave wide, of the last two rows. */
#include "policy_tally.h"

#include <string.h>

#include "mem.h"

enum {
    BIN_SHIFT = 22,          /* of a float's bits: the exponent and one bit of the fraction, the order of floats that are not negative */
    LOWEST = (127 - 48) << 1, /* votes below 2^-48, the square of 2^-24 of a head's attention, are alike */
    BINS = 56 << 1,          /* up to 2^8: more than all heads of a group have together */
    NOTE_MOST = 1024,        /* of more votes every so many is counted, not the same ones at every row */
};
#define RATE 0.03125f /* about the last 32 rows count: a token that looks at more than most reads more than most */

/* What a group left at one row. */
typedef struct tally_group {
    uint64_t n_pos; /* of that row; 0: none */
    uint32_t n_rows; /* that the mean is of */
    float at_least[BINS]; /* votes in this bin or a higher one; [0]: all */
} tally_group;

struct policy_tally {
    uint32_t n_layer;
    uint32_t *first; /* group of each layer; the last entry is the number of groups */
    tally_group *groups[2]; /* of rows with an even and an odd number of positions */
    uint64_t cut_pos; /* row that the cut is for; 0: none */
    bool has_cut;
    float cut;
};

static uint32_t n_groups(const policy_tally *t)
{
    return t->first[t->n_layer];
}

void policy_tally_free(policy_tally *t)
{
    if (!t) return;
    mem_free(t->groups[0]);
    mem_free(t->groups[1]);
    mem_free(t->first);
    mem_free(t);
}

spw_status policy_tally_create(policy_tally **out, uint32_t n_layer, const uint32_t *n_head_kv, spw_err *err)
{
    policy_tally *t = mem_zalloc(sizeof *t);
    if (t) t->n_layer = n_layer;
    if (t) t->first = mem_calloc((size_t)n_layer + 1, sizeof *t->first);
    for (uint32_t i = 0; t && t->first && i < n_layer; i++) t->first[i + 1] = t->first[i] + n_head_kv[i];
    for (int i = 0; i < 2 && t && t->first; i++) t->groups[i] = mem_calloc(n_groups(t), sizeof *t->groups[i]);
    if (t && t->groups[0] && t->groups[1]) {
        *out = t;
        return SPW_OK;
    }
    policy_tally_free(t);
    return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for the votes of %u layers", n_layer);
}

spw_status policy_tally_copy(policy_tally **out, const policy_tally *from, spw_err *err)
{
    policy_tally *t = mem_zalloc(sizeof *t);
    uint32_t n = n_groups(from);
    if (t) *t = (policy_tally){.n_layer = from->n_layer, .cut_pos = from->cut_pos, .has_cut = from->has_cut, .cut = from->cut};
    if (t) t->first = mem_calloc((size_t)from->n_layer + 1, sizeof *t->first);
    for (int i = 0; i < 2 && t; i++) t->groups[i] = mem_calloc(n, sizeof *t->groups[i]);
    if (!t || !t->first || !t->groups[0] || !t->groups[1]) {
        policy_tally_free(t);
        return spw_fail(err, SPW_E_NOMEM, "KV policy: out of memory for the votes of %u layers", from->n_layer);
    }
    memcpy(t->first, from->first, ((size_t)from->n_layer + 1) * sizeof *t->first);
    for (int i = 0; i < 2; i++) memcpy(t->groups[i], from->groups[i], n * sizeof *t->groups[i]);
    *out = t;
    return SPW_OK;
}

void policy_tally_forget(policy_tally *t)
{
    t->cut_pos = 0;
    for (int i = 0; i < 2; i++)
        for (uint32_t g = 0; g < n_groups(t); g++) t->groups[i][g].n_pos = 0;
}

static uint32_t bin_of(float vote)
{
    uint32_t bits;
    memcpy(&bits, &vote, sizeof bits);
    uint32_t bin = bits >> BIN_SHIFT;
    return bin < LOWEST ? 0 : bin - LOWEST < BINS ? bin - LOWEST : BINS - 1;
}

/* The least vote of a bin. */
static float bin_edge(uint32_t bin)
{
    uint32_t bits = (LOWEST + bin) << BIN_SHIFT;
    float edge;
    memcpy(&edge, &bits, sizeof edge);
    return bin ? edge : 0;
}

void policy_tally_note(policy_tally *t, uint32_t layer, uint32_t head, uint64_t n_pos, const float *votes, size_t n)
{
    uint32_t i = t->first[layer] + head, count[BINS] = {0};
    const tally_group *before = &t->groups[(n_pos - 1) % 2][i];
    tally_group *g = &t->groups[n_pos % 2][i];
    size_t step = (n + NOTE_MOST - 1) / NOTE_MOST;
    for (size_t j = step ? n_pos % step : 0; j < n; j += step) count[bin_of(votes[j])]++;
    bool goes_on = before->n_pos == n_pos - 1;
    g->n_pos = n_pos;
    g->n_rows = goes_on ? before->n_rows + 1 : 1;
    float rate = 1 / (float)g->n_rows > RATE ? 1 / (float)g->n_rows : RATE;
    size_t sum = 0;
    for (uint32_t b = BINS; b-- > 0;) {
        sum += count[b] * step;
        float old = goes_on ? before->at_least[b] : 0;
        g->at_least[b] = old + rate * ((float)sum - old);
    }
}

/* How many lie in this bin or a higher one, of all groups that the row with n_pos positions has noted. */
static double count_at_least(const policy_tally *t, uint64_t n_pos, uint32_t bin, size_t least)
{
    const tally_group *groups = t->groups[n_pos % 2];
    double sum = 0;
    for (uint32_t i = 0; i < n_groups(t); i++) {
        if (groups[i].n_pos != n_pos) continue;
        float n = groups[i].at_least[bin], floor = groups[i].at_least[0] < (float)least ? groups[i].at_least[0] : (float)least;
        sum += n > floor ? n : floor;
    }
    return sum;
}

/* Counts fall from bin to bin: the last with enough is found, and the place in it where they are exactly enough if its votes lie evenly. */
static bool find_cut(const policy_tally *t, uint64_t n_pos, size_t each, size_t least, float *above)
{
    const tally_group *groups = t->groups[n_pos % 2];
    uint32_t n = 0, low = 0, high = BINS;
    for (uint32_t i = 0; i < n_groups(t); i++) n += groups[i].n_pos == n_pos;
    double budget = (double)each * n;
    while (high - low > 1) {
        uint32_t mid = (low + high) / 2;
        if (count_at_least(t, n_pos, mid, least) >= budget) low = mid;
        else high = mid;
    }
    double most = count_at_least(t, n_pos, low, least), fewest = high < BINS ? count_at_least(t, n_pos, high, least) : 0;
    double part = most > fewest && most > budget ? (most - budget) / (most - fewest) : 0;
    *above = bin_edge(low) + (float)part * (bin_edge(high) - bin_edge(low));
    return n > 0;
}

bool policy_tally_cut(policy_tally *t, uint64_t n_pos, size_t each, size_t least, float *above)
{
    if (t->cut_pos != n_pos) {
        t->has_cut = find_cut(t, n_pos - 1, each, least, &t->cut);
        t->cut_pos = n_pos;
    }
    *above = t->cut;
    return t->has_cut;
}
