/* policy_adaptive.c - the default: estimates the score of every position from low-bit codes of the keys (kern_index.h), and names the best positions.
 *
 * The one thing to know: a choice is a function of the queries, the codes and the number of positions alone, and where the model shares one budget of what the rows before noted (policy_tally.h).  Work is cut at fixed positions, never by threads.
 *
 *     prepare   everything, or how much of the middle; the queries' tables; sink and window are attended
 *     sample    one group of 64 positions in so many: the mass of each head, and the threshold that as many positions pass as there are to be candidates
 *     scan      estimates of all positions from the signs alone; those that pass, the candidates, are estimated again from all planes
 *     rescan    without a threshold, when too few passed: the sample was not like the rest
 *     vote      a candidate's vote is the sum over the heads of its estimated share of their attention, sink and window included; where groups share a budget the sum of the
 *               squares, by which they compare better (docs/FIDELITY.md)
 *     agree     where a layer or the model has one budget: how much of it each group gets, or the vote that decides it
 *     select    the best win; the rule says how many, and means of V stand for the others (policy_rest.h)
 *
 * That few bits sort out most and more bits the rest is the idea of RaBitQ (Gao and Long 2024); its bound is a sampled threshold here.
 *
 * Positions of the middle in a page that is not full have no code; they are always attended. */
#include <math.h>
#include <string.h>

#include "kern_index.h"
#include "policy_rest.h"
#include "policy_tally.h"

enum {
    PART_LEAST = 2048,   /* positions of a work item: so few that a short middle keeps several threads busy, */
    PART_MOST = 16384,   /* and so many that what it costs to begin does not count; a middle has PARTS of them in between */
    PARTS = 8,
    SAMPLE_EVERY = 16,   /* one group in so many is sampled ... */
    SAMPLE_LEAST = 512,  /* ... but so many positions at least, */
    SAMPLE_MOST = 2048,  /* and no more than these, which tell the threshold well enough for any length */
    SAMPLE_FEWEST = 4,   /* a middle so short that more groups had to be sampled is refined whole: that costs no more */
    WIDTH = 16,          /* floats that are worked on at a time */
    CHOOSE_LEAST = 128,  /* positions for every group: a small share of a short middle is too little */
};
/* How many positions pass the signs, the candidates: so many times what is chosen for each query head of the group, as every head brings its own.  On seven heads 10 times what is chosen diverge a quarter less
 * than 5 times; on three 3 times are enough (docs/FIDELITY.md). */
#define CANDIDATES_HEAD 1.25
/* A head whose signs tell its scores badly has its border so many standard deviations of what they err lower than another: of the same number of candidates it gets more.  0.5 to 1 have a fifth to a third less divergence than 0
 * on the model whose scores err most, and nothing changes on another (docs/FIDELITY.md). */
#define CLEARANCE 0.75f
#define ERROR_MOST 64.0f /* nats: a border that is a number whatever the codes hold */
#define CANDIDATES_OVER 4.0 /* times, at least: fewer, and too few pass too often */
/* What is chosen counts as so much of the middle at least: of a flat budget; by a threshold, and by top-p or error, which may choose any of the candidates. */
#define CHOSEN_FLAT      0.01
#define CHOSEN_THRESHOLD 0.025
#define CHOSEN_COVER     0.05
#define ROOT_FROM       32768 /* positions of the middle: a default budget grows with their root from here on, 1 % of 128K and 0.35 % of a million; docs/FIDELITY.md */
#define DENSE_SHARE     0.5  /* of the middle: a budget above reads everything, for scattered rows cost about twice what a stream costs; where exactly the two meet was not measured */
#define RULE_LEAST      0.01 /* share of the middle that every group gets whatever the rule */
#define SPREAD_FLOOR    0.25 /* of an even share of a layer's or the model's budget every group gets; 0 to 0.75 differ by up to 7 % of divergence, in both directions (docs/FIDELITY.md) */
#define THRESHOLD       2e-4 /* of the heads' mean attention: 1.9 to 3.8 % of the middle of three models at 8K and 16K; docs/FIDELITY.md has what that is worth */
#define TOP_P           0.2
#define ERROR           0.1  /* Fluxion's tau */
#define CLOSE_ENOUGH    1.02 /* ratio of too few to enough, at which the search for enough ends */

/* What wins: candidates or blocks. */
typedef struct units {
    const float *votes;
    size_t n, size; /* size: positions of one */
} units;

/* What one part of the scan found. */
typedef struct scan_part {
    size_t at, n; /* of all candidates, the number of its first; how many */
    size_t n_scanned, n_refined; /* positions; both count what was read a second time */
    float sum[KERN_MAX_G];       /* of the candidates' masses */
} scan_part;

/* The scratch of a choice begins with this. */
typedef struct adaptive {
    policy_blocks blocks; /* of that part of the middle that has codes */
    uint64_t base;        /* the position that the scan counts from: a page's first */
    uint32_t first, end;  /* what has codes, counted from there */
    uint32_t every;       /* of the sample; 0: none */
    uint32_t n_parts, part; /* of the scan, and positions of each */
    size_t room;            /* for the candidates of one, whole vectors */
    unsigned planes;
    uint32_t block_bits;  /* log2 of the positions of a block */
    size_t wanted;        /* candidates or blocks: of a flat budget so many, of a rule at least */
    size_t floor;         /* of POLICY_LAYER and _MODEL: the fewest of them.  wanted is an even share, of a layer's budget after agree this group's part */
    bool has_cut;         /* of POLICY_MODEL, set by agree: units with a larger vote than cut win; false: an even share does */
    float cut;
    double candidates;    /* share of the middle */
    size_t n_sampled;
    /* A mass is e to the score - norm: the share of the head's attention, if the sample were right. */
    float variance;           /* of an estimate from all planes, for a query of length 1 */
    float bar[KERN_MAX_G];    /* what the signs' estimates of a head are measured from when candidates are looked for: the norm, less CLEARANCE */
    float norm[KERN_MAX_G];   /* as the sample has it; without one, that of sink and window alone is taken */
    float ends[KERN_MAX_G];   /* mass of sink and window, exact */
    float rest[KERN_MAX_G];   /* mass of what does not pass, as the sample has it */
    float middle[KERN_MAX_G]; /* mass of what has codes */
    float threshold;
    size_t n_candidates; /* of all parts, as units from vote on */
    units units;
    /* behind it in the scratch */
    const void **pages, **outer;
    scan_part *parts;
    void *query;
    uint8_t *scan_scratch; /* of each part */
    uint32_t *ids;         /* of each part room for candidates; then of all, adjacent */
    float *estimates, *masses; /* of each part [n_q][room] */
    float *shares, *votes; /* of each candidate, the sum over the heads of its share of their attention, for what stands for the rest; and what decides */
    float *sums;           /* of blocks */
    uint32_t *chosen, *picked, *top; /* chosen candidates or blocks; candidates in chosen blocks; scratch of top_k */
    policy_rest_work rest_work;
} adaptive;

static float log_add(float a, float b)
{
    float high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1pf(expf(low - high));
}

static policy_rule rule_of(const policy_params *p)
{
    bool counts = p->rule == POLICY_FLAT || p->rule == POLICY_LAYER || p->rule == POLICY_MODEL;
    return counts && p->budget == 0 ? POLICY_THRESHOLD : p->rule;
}

/* The budget is a number of positions that several groups share. */
static bool is_spread(const policy_params *p)
{
    return rule_of(p) == POLICY_LAYER || rule_of(p) == POLICY_MODEL;
}

/* The budget is a number of positions. */
static bool is_counted(const policy_params *p)
{
    return rule_of(p) == POLICY_FLAT || is_spread(p);
}

/* ------------------------------------------------------------------------------------------------ prepare ---- */

/* What is scanned and how; false: everything is attended.  The page of the token itself counts as not full: what the step writes plays no part. */
static bool set_out(adaptive *a, const policy_params *p, const policy_query *q)
{
    uint64_t coded = (q->n_pos - 1) / KV_PAGE_ROWS * KV_PAGE_ROWS;
    if (policy_is_dense(p, q->n_pos) || coded <= p->sink || !kv_code(q->seq, q->layer, q->head, 0)) return false;
    a->blocks = policy_blocks_of(p, q->n_pos);
    if (coded < a->blocks.end) {
        a->blocks.end = coded;
        a->blocks.n = (size_t)((coded - 1) / p->block + 1 - a->blocks.first);
    }
    while (p->block >> a->block_bits > 1) a->block_bits++;
    a->base = a->blocks.begin / KV_PAGE_ROWS * KV_PAGE_ROWS;
    a->first = (uint32_t)(a->blocks.begin - a->base);
    a->end = (uint32_t)(a->blocks.end - a->base);
    a->planes = kv_index_planes(kv_seq_store(q->seq));
    uint32_t n = a->end - a->first;
    uint64_t middle = policy_middle(p, q->n_pos);
    double budget = is_counted(p) ? (double)policy_budget(p, middle) : ceil(RULE_LEAST * (double)middle);
    if (budget < CHOOSE_LEAST) budget = CHOOSE_LEAST;
    if (budget >= DENSE_SHARE * n) return false;
    a->wanted = ((size_t)budget + p->block - 1) / p->block;
    a->floor = (size_t)(SPREAD_FLOOR * (double)a->wanted);
    double least = is_counted(p) ? CHOSEN_FLAT : rule_of(p) == POLICY_THRESHOLD ? CHOSEN_THRESHOLD : CHOSEN_COVER;
    double share = fmax((double)a->wanted / n, least);
    a->candidates = share * fmax(CANDIDATES_OVER, CANDIDATES_HEAD * q->n_q);
    a->every = n / SAMPLE_LEAST < SAMPLE_EVERY ? n / SAMPLE_LEAST : SAMPLE_EVERY;
    if (a->every < n / SAMPLE_MOST) a->every = n / SAMPLE_MOST;
    if (a->every < SAMPLE_FEWEST || a->candidates >= 1) a->every = 0;
    a->part = (a->end / PARTS + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS * KV_PAGE_ROWS;
    a->part = a->part < PART_LEAST ? PART_LEAST : a->part > PART_MOST ? PART_MOST : a->part;
    a->room = a->part + KERN_INDEX_GROUP;
    a->n_parts = (a->end + a->part - 1) / a->part;
    a->threshold = -INFINITY;
    return true;
}

/* Of what has codes. */
static size_t pages_of(const adaptive *a)
{
    return ((size_t)a->end + KV_PAGE_ROWS - 1) / KV_PAGE_ROWS;
}

/* Places everything in the scratch, and returns its bytes; memory NULL: for these alone. */
static size_t lay_out(adaptive *a, const policy_params *p, const policy_query *q, void *memory)
{
    size_t n = (size_t)a->n_parts * a->room, n_pages = pages_of(a);
    policy_layout l = {.base = memory};
    policy_layout_take(&l, sizeof *a);
    a->pages = policy_layout_take(&l, n_pages * sizeof *a->pages);
    a->outer = policy_layout_take(&l, n_pages * sizeof *a->outer);
    a->parts = policy_layout_take(&l, a->n_parts * sizeof *a->parts);
    a->query = policy_layout_take(&l, kern_index_query_bytes(q->n_q, q->dim));
    a->scan_scratch = policy_layout_take(&l, a->n_parts * kern_index_scratch(q->n_q, q->dim));
    a->ids = policy_layout_take(&l, n * sizeof *a->ids);
    a->estimates = policy_layout_take(&l, n * q->n_q * sizeof *a->estimates);
    a->masses = policy_layout_take(&l, n * q->n_q * sizeof *a->masses);
    a->votes = policy_layout_take(&l, n * sizeof *a->votes);
    a->shares = is_spread(p) && p->stand_in == POLICY_MEANS ? policy_layout_take(&l, n * sizeof *a->shares) : a->votes;
    a->chosen = policy_layout_take(&l, n * sizeof *a->chosen);
    a->top = policy_layout_take(&l, n * sizeof *a->top);
    if (p->stand_in == POLICY_MEANS) policy_rest_lay_out(&a->rest_work, &l, q, n_pages);
    if (a->blocks.block == 1) return l.bytes;
    a->sums = policy_layout_take(&l, a->blocks.n * sizeof *a->sums);
    a->picked = policy_layout_take(&l, n * sizeof *a->picked);
    return l.bytes;
}

static spw_status adaptive_prepare(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    (void)state;
    adaptive a = {0};
    c->dense = !set_out(&a, p, q);
    if (c->dense) return SPW_OK;
    spw_status s = policy_choice_scratch(c, lay_out(&a, p, q, NULL), err);
    if (!s) s = policy_choice_add(c, 0, a.blocks.begin, err);
    if (!s) s = policy_choice_add(c, a.blocks.end, q->n_pos - a.blocks.end, err);
    if (s) return s;
    c->base = true;
    lay_out(&a, p, q, c->scratch);
    kv_codes(q->seq, q->layer, q->head, a.base / KV_PAGE_ROWS, pages_of(&a), a.pages, a.outer);
    a.variance = kern_index_variance(a.pages, pages_of(&a), KV_PAGE_ROWS, q->dim, a.planes);
    memset(a.parts, 0, a.n_parts * sizeof *a.parts);
    q->kern->index_query(q->q, q->q_stride, q->n_q, q->dim, a.query);
    *(adaptive *)c->scratch = a;
    return SPW_OK;
}

/* --------------------------------------------------------------------------------------------------- scan ---- */

enum { STAGE_SAMPLE, STAGE_SCAN, STAGE_RESCAN, STAGE_VOTE, STAGES };

static uint32_t adaptive_n_parts(const policy_params *p, const policy_query *q, const policy_choice *c, uint32_t stage)
{
    (void)q;
    if (c->dense) return 0;
    const adaptive *a = c->scratch;
    if (stage == STAGE_SAMPLE) return a->every ? 1 : 0;
    if (stage == STAGE_SCAN) return a->n_parts;
    if (stage == STAGE_VOTE) return rule_of(p) == POLICY_LAYER ? 1 : 0; /* otherwise select comes right behind */
    size_t n = 0;
    for (uint32_t i = 0; i < a->n_parts; i++) n += a->parts[i].n;
    return n < a->wanted ? a->n_parts : 0;
}

/* Everything, from the signs. */
static kern_index_scan scan_of(const adaptive *a, const policy_query *q)
{
    return (kern_index_scan){.query = a->query, .n_q = q->n_q, .dim = q->dim, .planes = a->planes, .pages = a->pages, .outer = a->outer, .page_rows = KV_PAGE_ROWS, .n_pages = a->end / KV_PAGE_ROWS, .first = a->first, .end = a->end,
                             .every = 1, .threshold = -INFINITY, .ids = a->ids, .estimates = a->estimates, .stride = a->room, .scratch = a->scan_scratch};
}

/* most[i] = the largest of the heads' estimate - norm, of n positions; whole steps of WIDTH are written. */
static void best_of_heads(const float *estimates, size_t stride, size_t n, uint32_t n_q, const float *norm, float *most)
{
    for (size_t i = 0; i < n; i += WIDTH) {
        for (size_t j = 0; j < WIDTH; j++) most[i + j] = estimates[i + j] - norm[0];
        for (uint32_t g = 1; g < n_q; g++) {
            const float *e = estimates + g * stride + i;
            for (size_t j = 0; j < WIDTH; j++) most[i + j] = e[j] - norm[g] > most[i + j] ? e[j] - norm[g] : most[i + j];
        }
    }
}

/* Masses of n positions, and each head's sum of them. */
static void make_masses(const policy_query *q, const float *norm, const float *estimates, size_t stride, size_t n, float *masses, float *sum)
{
    for (uint32_t g = 0; g < q->n_q; g++) {
        float *m = masses + g * stride, of_lane[WIDTH] = {0};
        size_t i = 0;
        q->kern->index_votes(estimates + g * stride, stride, n, 1, &norm[g], false, m);
        for (; i + WIDTH <= n; i += WIDTH)
            for (size_t j = 0; j < WIDTH; j++) of_lane[j] += m[i + j];
        for (size_t j = 0; i + j < n; j++) of_lane[j] += m[i + j];
        sum[g] = 0;
        for (size_t j = 0; j < WIDTH; j++) sum[g] += of_lane[j];
    }
}

/* Where the heads' borders lie beside each other: the better the signs tell a head's scores, the higher. */
static void set_bars(adaptive *a, const policy_query *q)
{
    for (uint32_t g = 0; g < q->n_q; g++) {
        const float *x = q->q + g * q->q_stride;
        float length = 0;
        for (uint32_t d = 0; d < q->dim; d++) length += x[d] * x[d];
        a->bar[g] = a->norm[g] - CLEARANCE * fminf(sqrtf(kern_index_sign_variance(a->planes) * a->variance * length), ERROR_MOST);
    }
}

/* Every head's norm, the threshold, and the mass of what does not pass it. */
static void sample(adaptive *a, const policy_query *q, const float *ends)
{
    size_t stride = (size_t)a->n_parts * a->room;
    float of_sample[KERN_MAX_G];
    kern_index_scan scan = scan_of(a, q);
    scan.every = a->every;
    scan.stride = stride;
    size_t n = a->n_sampled = q->kern->index_scan(&scan), k = (size_t)(a->candidates * (double)n) + 1;
    float times = (float)(a->end - a->first) / (float)n;
    if (k > n) k = n;
    q->kern->index_lse(a->estimates, stride, n, q->n_q, of_sample);
    for (uint32_t g = 0; g < q->n_q; g++) a->norm[g] = log_add(of_sample[g] + logf(times), ends[g]);
    set_bars(a, q);
    best_of_heads(a->estimates, stride, n, q->n_q, a->bar, a->votes);
    q->kern->top_k(a->votes, n, k, a->chosen, a->top);
    make_masses(q, a->norm, a->estimates, stride, n, a->masses, a->rest);
    a->threshold = INFINITY;
    for (size_t i = 0; i < k; i++) {
        if (a->votes[a->chosen[i]] < a->threshold) a->threshold = a->votes[a->chosen[i]];
        for (uint32_t g = 0; g < q->n_q; g++) a->rest[g] -= a->masses[g * stride + a->chosen[i]];
    }
    for (uint32_t g = 0; g < q->n_q; g++) a->rest[g] = a->rest[g] > 0 ? a->rest[g] * times : 0;
}

/* Without a sample, masses are relative to sink and window. */
static const float *norm_of(const adaptive *a, const policy_choice *c)
{
    return a->every ? a->norm : c->base_lse;
}

static void scan_part_of(adaptive *a, const policy_query *q, const float *norm, uint32_t i, float threshold)
{
    kern_index_scan scan = scan_of(a, q);
    if (scan.first < i * a->part) scan.first = i * a->part;
    if (scan.end > (i + 1) * a->part) scan.end = (i + 1) * a->part;
    scan.norm = a->every ? a->bar : norm;
    scan.threshold = threshold;
    scan.refine = a->planes > 1;
    scan.ids += (size_t)i * a->room;
    scan.estimates += (size_t)i * q->n_q * a->room;
    scan.scratch = a->scan_scratch + i * kern_index_scratch(q->n_q, q->dim);
    a->parts[i].n = q->kern->index_scan(&scan);
    a->parts[i].n_scanned += scan.end - scan.first;
    a->parts[i].n_refined += a->parts[i].n;
    make_masses(q, norm, scan.estimates, a->room, a->parts[i].n, a->masses + (size_t)i * q->n_q * a->room, a->parts[i].sum);
}

/* -------------------------------------------------------------------------------------------------- votes ---- */

typedef float four __attribute__((vector_size(16)));

static inline four load_four(const float *p)
{
    four x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void store_sixteen(float *p, four a, four b, four c, four d)
{
    memcpy(p, &a, sizeof a);
    memcpy(p + 4, &b, sizeof b);
    memcpy(p + 8, &c, sizeof c);
    memcpy(p + 12, &d, sizeof d);
}

/* sums[i] = the sum over the heads of weight * mass, squares[i] that of the squares of these, of n positions; either may be NULL.  Whole steps of WIDTH are written. */
static void weigh(const float *restrict masses, size_t room, size_t n, uint32_t n_q, const float *weight, float *restrict sums, float *restrict squares)
{
    for (size_t i = 0; i < n; i += WIDTH) {
        four s0 = {0}, s1 = s0, s2 = s0, s3 = s0, q0 = s0, q1 = s0, q2 = s0, q3 = s0;
        for (uint32_t g = 0; g < n_q; g++) {
            const float *m = masses + g * room + i;
            const four w = {weight[g], weight[g], weight[g], weight[g]};
            const four a = w * load_four(m), b = w * load_four(m + 4), c = w * load_four(m + 8), d = w * load_four(m + 12);
            s0 += a, s1 += b, s2 += c, s3 += d;
            q0 += a * a, q1 += b * b, q2 += c * c, q3 += d * d;
        }
        if (sums) store_sixteen(sums + i, s0, s1, s2, s3);
        if (squares) store_sixteen(squares + i, q0, q1, q2, q3);
    }
}

/* Makes the parts' candidates adjacent, and their votes; returns how many. */
static size_t join_parts(adaptive *a, const policy_params *p, const policy_query *q, const policy_choice *c)
{
    float weight[KERN_MAX_G];
    size_t n = 0;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        memmove(a->ids + n, a->ids + (size_t)i * a->room, a->parts[i].n * sizeof *a->ids);
        a->parts[i].at = n;
        n += a->parts[i].n;
    }
    for (uint32_t g = 0; g < q->n_q; g++) {
        a->middle[g] = n < a->end - a->first ? a->rest[g] : 0;
        for (uint32_t i = 0; i < a->n_parts; i++) a->middle[g] += a->parts[i].sum[g];
        a->ends[g] = expf(c->base_lse[g] - norm_of(a, c)[g]);
        weight[g] = 1 / (a->middle[g] + a->ends[g]);
    }
    for (uint32_t i = 0; i < a->n_parts; i++) {
        const size_t at = a->parts[i].at;
        const bool spread = is_spread(p), shares = !spread || a->shares != a->votes;
        weigh(a->masses + (size_t)i * q->n_q * a->room, a->room, a->parts[i].n, q->n_q, weight, shares ? a->shares + at : NULL, spread ? a->votes + at : NULL);
    }
    return n;
}

/* Of a candidate, the number of its block. */
static size_t block_of(const adaptive *a, uint32_t id)
{
    return (size_t)(((a->base + id) >> a->block_bits) - a->blocks.first);
}

/* The candidates, or the blocks of the middle, each with the votes of the candidates in it. */
static units units_of(adaptive *a, size_t n)
{
    if (a->blocks.block == 1) return (units){.votes = a->votes, .n = n, .size = 1};
    memset(a->sums, 0, a->blocks.n * sizeof *a->sums);
    for (size_t i = 0; i < n; i++) a->sums[block_of(a, a->ids[i])] += a->votes[i];
    return (units){.votes = a->sums, .n = a->blocks.n, .size = a->blocks.block};
}

static void vote(adaptive *a, const policy_params *p, const policy_query *q, const policy_choice *c)
{
    a->n_candidates = join_parts(a, p, q, c);
    a->units = units_of(a, a->n_candidates);
}

static void adaptive_work(void *state, const policy_params *p, const policy_query *q, policy_choice *c, uint32_t stage, uint32_t part)
{
    (void)state;
    adaptive *a = c->scratch;
    if (stage == STAGE_SAMPLE) sample(a, q, c->base_lse);
    else if (stage == STAGE_VOTE) vote(a, p, q, c);
    else scan_part_of(a, q, norm_of(a, c), part, stage == STAGE_SCAN ? a->threshold : -INFINITY);
}

/* Candidates in the k chosen units. */
static const uint32_t *pick_candidates(adaptive *a, const units *u, size_t n, size_t k, size_t *n_picked)
{
    *n_picked = k;
    if (u->size == 1) return a->chosen;
    *n_picked = 0;
    for (size_t i = 0, j = 0; i < n; i++) {
        size_t block = block_of(a, a->ids[i]);
        while (j < k && a->chosen[j] < block) j++;
        a->picked[*n_picked] = (uint32_t)i;
        *n_picked += j < k && a->chosen[j] == block;
    }
    return a->picked;
}

/* The share of each head's mass in the middle that some candidates hold. */
static void sum_candidates(const adaptive *a, const policy_query *q, const uint32_t *picked, size_t n, float *share)
{
    const scan_part *part = a->parts;
    float sum[KERN_MAX_G] = {0};
    for (size_t i = 0; i < n; i++) {
        while (picked[i] >= part->at + part->n) part++;
        const float *m = a->masses + (size_t)(part - a->parts) * q->n_q * a->room + (picked[i] - part->at);
        for (uint32_t g = 0; g < q->n_q; g++) sum[g] += m[g * a->room];
    }
    for (uint32_t g = 0; g < q->n_q; g++) share[g] = a->middle[g] > 0 ? fminf(sum[g] / a->middle[g], 1) : 1;
}

/* --------------------------------------------------------------------------------------------------- rules ---- */

/* Chooses the k best units. */
static void choose(adaptive *a, const policy_query *q, const units *u, size_t k)
{
    q->kern->top_k(u->votes, u->n, k, a->chosen, a->top);
}

/* Estimates each head's share of the middle's mass that the k chosen units hold. */
static void weigh_chosen(adaptive *a, const policy_query *q, const units *u, size_t n, size_t k, float *mass)
{
    size_t n_picked;
    const uint32_t *picked = pick_candidates(a, u, n, k, &n_picked);
    sum_candidates(a, q, picked, n_picked, mass);
}

static size_t count_above(const units *u, float vote)
{
    size_t n = 0;
    for (size_t i = 0; i < u->n; i++) n += u->votes[i] > vote;
    return n;
}

/* The vote of a unit whose positions have the threshold of the heads' attention on average. */
static float threshold_vote(const policy_params *p, const policy_query *q, const units *u)
{
    return (float)(p->threshold > 0 ? p->threshold : THRESHOLD) * (float)q->n_q * (float)u->size;
}

/* The share of each head's mass in the middle that may be left out.  Fluxion (Yao et al. 2026, Eq. 2) bounds the error of a head's output by tau times the largest output of the layer.
 * Values are not known before rows are read; here each is taken to be as large as that output, and the error to be as large as what is left out of the head's whole attention. */
static void left_at_most(const adaptive *a, const policy_params *p, const policy_query *q, float *left)
{
    float tau = (float)(p->error > 0 ? p->error : ERROR), share = (float)(p->threshold > 0 ? p->threshold : TOP_P);
    for (uint32_t g = 0; g < q->n_q; g++) {
        left[g] = rule_of(p) == POLICY_TOP_P ? share : tau * (1 + a->ends[g] / a->middle[g]);
    }
}

/* Whether the k best units leave out no more than that. */
static bool is_enough(adaptive *a, const policy_query *q, const units *u, size_t n, size_t k, const float *left)
{
    float mass[KERN_MAX_G];
    choose(a, q, u, k);
    weigh_chosen(a, q, u, n, k, mass);
    for (uint32_t g = 0; g < q->n_q; g++)
        if (1 - mass[g] > left[g]) return false;
    return true;
}

/* The fewest units, at least `least`, that leave out no more than the rule lets; all when that is not enough either. */
static size_t search_enough(adaptive *a, const policy_params *p, const policy_query *q, const units *u, size_t n, size_t least)
{
    float left[KERN_MAX_G];
    left_at_most(a, p, q, left);
    if (is_enough(a, q, u, n, least, left)) return least;
    size_t few = least, enough = u->n;
    while ((double)enough > CLOSE_ENOUGH * (double)few + 1) {
        size_t k = (size_t)sqrt((double)few * (double)enough);
        if (k <= few) k = few + 1;
        if (is_enough(a, q, u, n, k, left)) enough = k;
        else few = k;
    }
    return enough;
}

static size_t count_units(adaptive *a, const policy_params *p, const policy_query *q, const units *u, size_t n)
{
    size_t least = a->has_cut ? a->floor : a->wanted, k;
    if (least > u->n) least = u->n;
    k = least;
    if (a->has_cut) k = count_above(u, a->cut);
    if (rule_of(p) == POLICY_THRESHOLD) k = count_above(u, threshold_vote(p, q, u));
    if (rule_of(p) == POLICY_TOP_P || rule_of(p) == POLICY_ERROR) k = search_enough(a, p, q, u, n, least);
    if (k < least) k = least;
    return k < u->n ? k : u->n;
}

/* How many of all groups' units win when those do whose vote is above this, and each group's floor besides; sets what each group gets. */
static size_t count_layer(policy_choice *const *c, uint32_t n, float above)
{
    size_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (c[i]->dense) continue;
        adaptive *a = c[i]->scratch;
        size_t k = count_above(&a->units, above), least = a->floor < a->units.n ? a->floor : a->units.n;
        a->wanted = k > least ? k : least;
        total += a->wanted;
    }
    return total;
}

/* One budget for all groups of a layer: the best votes win, whosever they are.  Votes are sums of shares, so groups compare; no vote is negative, and floats that are not are in the
 * order of their bits. */
static void agree_on_layer(policy_choice *const *c, uint32_t n)
{
    size_t budget = 0;
    for (uint32_t i = 0; i < n; i++) budget += c[i]->dense ? 0 : ((const adaptive *)c[i]->scratch)->wanted;
    uint32_t low = 0, high = 0x7f800000u; /* infinity: only the floors */
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        float above;
        memcpy(&above, &mid, sizeof above);
        if (count_layer(c, n, above) <= budget) high = mid;
        else low = mid + 1;
    }
    float above;
    memcpy(&above, &high, sizeof above);
    count_layer(c, n, above);
}

/* One budget for all groups of the model: the best votes win, whosever they are, by what votes were like in the rows before.  A row may so take more or less than the budget, and that is
 * as it should be: the mean over the rows is kept. */
static void agree_on_model(policy_tally *t, const policy_query *q, policy_choice *const *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        adaptive *a = c[i]->scratch;
        if (!c[i]->dense) a->has_cut = policy_tally_cut(t, q->n_pos, a->wanted, a->floor, &a->cut);
    }
}

static void adaptive_agree(void *state, const policy_params *p, const policy_query *q, policy_choice *const *c, uint32_t n)
{
    if (rule_of(p) == POLICY_LAYER) agree_on_layer(c, n);
    if (rule_of(p) == POLICY_MODEL) agree_on_model(state, q, c, n);
}

/* -------------------------------------------------------------------------------------------------- select ---- */

static spw_status add_positions(const adaptive *a, policy_choice *c, size_t k, spw_err *err)
{
    c->middle_rows += k;
    return policy_choice_add_each(c, a->base, a->ids, a->chosen, k, err);
}

static spw_status add_blocks(const adaptive *a, policy_choice *c, size_t k, spw_err *err)
{
    spw_status s = SPW_OK;
    for (size_t i = 0; i < k && !s; i++) {
        policy_range r = policy_blocks_at(&a->blocks, a->chosen[i]);
        s = policy_choice_add(c, r.first, r.n, err);
        c->middle_rows += r.n;
    }
    return s;
}

/* The group's attention to candidates of a part that are not chosen, by pages: differences of sums up to each page's last.  shares become these sums, two at a time, so that one addition waits for another half as often. */
static void take_left(const adaptive *a, const policy_query *q, uint32_t i)
{
    const policy_rest_work *w = &a->rest_work;
    const scan_part *part = &a->parts[i];
    const size_t first = (size_t)i * a->part / KV_PAGE_ROWS, n_pages = w->n_pages - first < a->part / KV_PAGE_ROWS ? w->n_pages - first : a->part / KV_PAGE_ROWS;
    const uint32_t *ids = a->ids + part->at;
    float *shares = a->shares + part->at, sum = 0, before = 0;
    uint32_t ends[PART_MOST / KV_PAGE_ROWS] = {0}; /* behind each page's last candidate; 0: it has none */
    size_t k = 0;
    policy_rest_ask(w, q, a->base / KV_PAGE_ROWS, first, n_pages);
    for (; k + 2 <= part->n; k += 2) {
        const float both = shares[k] + shares[k + 1];
        shares[k] += sum;
        shares[k + 1] = sum += both;
        ends[ids[k] / KV_PAGE_ROWS - first] = (uint32_t)k + 1;
        ends[ids[k + 1] / KV_PAGE_ROWS - first] = (uint32_t)k + 2;
    }
    if (k < part->n) {
        shares[k] += sum;
        ends[ids[k] / KV_PAGE_ROWS - first] = (uint32_t)k + 1;
    }
    for (size_t p = 0; p < n_pages; p++) {
        const float upto = ends[p] ? shares[ends[p] - 1] : before, left = upto - before - w->chosen[first + p];
        w->left[first + p] = left > 0 ? left : 0;
        before = upto;
    }
}

/* What stands for the candidates that are not picked, and for what is none; shares are gone afterwards.  share: of each head's mass in the middle that the picked ones hold. */
static policy_rest stand_in(adaptive *a, const policy_query *q, const float *norm, const uint32_t *picked, size_t n_picked, const float *share)
{
    const policy_rest_work *w = &a->rest_work;
    float mass[KERN_MAX_G];
    memset(w->chosen, 0, w->n_pages * sizeof *w->chosen);
    for (size_t i = 0; i < n_picked; i++) w->chosen[a->ids[picked[i]] / KV_PAGE_ROWS] += a->shares[picked[i]];
    for (uint32_t i = 0; i < a->n_parts; i++) take_left(a, q, i);
    for (uint32_t g = 0; g < q->n_q; g++) mass[g] = (1 - share[g]) * a->middle[g];
    return policy_rest_make(&a->rest_work, q, norm, mass, a->variance);
}

static uint64_t bytes_read(const adaptive *a, const policy_params *p, const policy_query *q)
{
    size_t n_scanned = a->n_sampled, n_refined = 0;
    for (uint32_t i = 0; i < a->n_parts; i++) n_scanned += a->parts[i].n_scanned, n_refined += a->parts[i].n_refined;
    return kern_index_scan_bytes(n_scanned, q->dim) + kern_index_refine_bytes(n_refined, q->dim, a->planes) + (p->stand_in == POLICY_MEANS ? policy_rest_bytes(q, pages_of(a)) : 0);
}

static spw_status adaptive_select(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    if (c->dense) return policy_choice_all(c, q->n_pos, err);
    adaptive *a = c->scratch;
    if (rule_of(p) != POLICY_LAYER) vote(a, p, q, c);
    if (rule_of(p) == POLICY_MODEL) policy_tally_note(state, q->layer, q->head, q->n_pos, a->units.votes, a->units.n);
    size_t n = a->n_candidates, k = count_units(a, p, q, &a->units, n);
    choose(a, q, &a->units, k);
    if (q->watched || p->stand_in == POLICY_MEANS) {
        size_t n_picked;
        float share[KERN_MAX_G];
        const uint32_t *picked = pick_candidates(a, &a->units, n, k, &n_picked);
        sum_candidates(a, q, picked, n_picked, share);
        if (p->stand_in == POLICY_MEANS) c->rest = stand_in(a, q, norm_of(a, c), picked, n_picked, share);
        if (q->watched) memcpy(c->mass, share, q->n_q * sizeof *share);
    }
    c->side_bytes = bytes_read(a, p, q);
    c->middle_rows = p->sink + policy_middle(p, q->n_pos) - a->blocks.end; /* those without a code */
    spw_status s = policy_choice_set(c, 0, q->n_q, err);
    if (s) return s;
    return a->units.size == 1 ? add_positions(a, c, k, err) : add_blocks(a, c, k, err);
}

/* --------------------------------------------------------------------------------------------------- state ---- */

/* The tally of POLICY_MODEL; other rules need nothing but the row itself. */
static spw_status adaptive_create(void **out, const policy_params *p, spw_err *err)
{
    policy_tally *t = NULL;
    spw_status s = rule_of(p) == POLICY_MODEL ? policy_tally_create(&t, p->n_layer, p->n_head_kv, err) : SPW_OK;
    *out = t;
    return s;
}

static spw_status adaptive_fork(void **out, const void *state, spw_err *err)
{
    policy_tally *t = NULL;
    spw_status s = state ? policy_tally_copy(&t, state, err) : SPW_OK;
    *out = t;
    return s;
}

static void adaptive_free(void *state)
{
    policy_tally_free(state);
}

static spw_status adaptive_begin(void *state, const policy_params *p, const policy_start *start, spw_err *err)
{
    (void)p, (void)start, (void)err;
    if (state) policy_tally_forget(state);
    return SPW_OK;
}

const policy_ops policy_adaptive = {
    .name = "adaptive",
    .needs_q = true,
    .n_stages = STAGES,
    .budget = 0.02,
    .share_until = ROOT_FROM,
    .block = 1,
    .create = adaptive_create,
    .fork = adaptive_fork,
    .free = adaptive_free,
    .begin = adaptive_begin,
    .prepare = adaptive_prepare,
    .n_parts = adaptive_n_parts,
    .work = adaptive_work,
    .agree = adaptive_agree,
    .select = adaptive_select,
};
