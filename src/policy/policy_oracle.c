/* policy_oracle.c - the blocks (by default single positions) that have most of the group's true attention: what a choice of that size could reach at
 * best.  For measurements only, because it reads every key to choose; what it reports as read is what it chose.
 *
 * Each query head's attention over all positions - sink, window and middle - is computed exactly; a block's vote is the sum of what the group's heads
 * give its positions of the middle; the budget's blocks with most votes are read by all heads, ties go to the first. */
#include <math.h>

#include "policy_blocks.h"

enum {
    SCORE_PART = 1024, /* positions of one item that scores them */
    ALIGN = 16,        /* floats */
};
enum { STAGE_SCORE, STAGE_WEIGH, STAGES };

/* One choice; lies at the beginning of its scratch. */
typedef struct oracle_job {
    policy_blocks blocks;
    size_t k, stride; /* blocks to choose; from one head's weights to the next's */
    bool halves;      /* of the store's rows */
    float *q;         /* halves: [head][2 dim], a query and zeros for V */
    float *rows;      /* otherwise: one row for each item */
    float *weights;   /* [head][stride]: scores, then shares of the attention */
    float *votes;     /* of each block */
    uint32_t *ids, *keys;
} oracle_job;

static size_t lay_out(oracle_job *job, void *scratch, const policy_query *q)
{
    size_t row = 2 * (size_t)q->dim, n_parts = (size_t)((q->n_pos + SCORE_PART - 1) / SCORE_PART);
    policy_layout l = {.base = scratch};
    policy_layout_take(&l, sizeof *job);
    job->q = policy_layout_take(&l, job->halves ? q->n_q * row * sizeof *job->q : 0);
    job->rows = policy_layout_take(&l, job->halves ? 0 : n_parts * row * sizeof *job->rows);
    job->weights = policy_layout_take(&l, q->n_q * job->stride * sizeof *job->weights);
    job->votes = policy_layout_take(&l, job->blocks.n * sizeof *job->votes);
    job->ids = policy_layout_take(&l, job->k * sizeof *job->ids);
    job->keys = policy_layout_take(&l, job->blocks.n * sizeof *job->keys);
    return l.bytes;
}

static spw_status oracle_prepare(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    oracle_job job = {.blocks = policy_blocks_of(p, q->n_pos), .halves = kv_seq_row_bytes(q->seq) == 2 * q->dim * sizeof(kern_f16)};
    (void)state;
    job.k = policy_blocks_budget(p, &policy_oracle, &job.blocks);
    c->dense = policy_is_dense(p, q->n_pos) || job.k == job.blocks.n;
    if (c->dense) return SPW_OK;
    job.stride = (size_t)((q->n_pos + ALIGN - 1) / ALIGN * ALIGN);
    spw_status s = policy_choice_scratch(c, lay_out(&job, NULL, q), err);
    if (s) return s;
    lay_out(&job, c->scratch, q);
    *(oracle_job *)c->scratch = job;
    for (uint32_t g = 0; g < q->n_q && job.halves; g++) {
        float *to = job.q + g * 2 * (size_t)q->dim;
        for (uint32_t d = 0; d < q->dim; d++) to[d] = q->q[g * q->q_stride + d], to[q->dim + d] = 0;
    }
    return SPW_OK;
}

static const oracle_job *job_of(const policy_choice *c)
{
    return c->scratch;
}

static uint32_t oracle_n_parts(const policy_params *p, const policy_query *q, const policy_choice *c, uint32_t stage)
{
    (void)p;
    if (c->dense) return 0;
    return stage == STAGE_SCORE ? (uint32_t)((q->n_pos + SCORE_PART - 1) / SCORE_PART) : q->n_q;
}

/* Scores of n <= KERN_SPAN positions: rows of halves as they lie, of which V counts nothing. */
static void score_halves(const policy_query *q, const oracle_job *job, uint64_t first, uint32_t n)
{
    kern_span spans[KV_MAX_SPANS];
    size_t n_spans = kv_spans(q->seq, q->layer, q->head, first, n, false, spans), row = 2 * (size_t)q->dim;
    for (size_t i = 0; i < n_spans; first += spans[i++].n) {
        q->kern->score_rows(&(kern_score_args){.rows = spans[i].rows, .n_rows = spans[i].n, .n = row, .q = job->q, .q_stride = row, .n_q = q->n_q,
                                               .scores = job->weights + first, .stride = job->stride});
    }
}

static void score_any(const policy_query *q, const oracle_job *job, uint64_t first, uint64_t end, float *row)
{
    for (uint64_t pos = first; pos < end; pos++) {
        kv_read_row(q->seq, q->layer, q->head, pos, row);
        q->kern->gemm(q->q, q->q_stride, q->n_q, row, q->dim, 1, q->dim, job->weights + pos, job->stride);
    }
}

/* w[0..n) = the softmax of what they are. */
static void weigh(float *w, uint64_t n)
{
    float most = w[0];
    double sum = 0;
    for (uint64_t i = 1; i < n; i++) most = w[i] > most ? w[i] : most;
    for (uint64_t i = 0; i < n; i++) w[i] = expf(w[i] - most), sum += (double)w[i];
    float scale = (float)(1 / sum);
    for (uint64_t i = 0; i < n; i++) w[i] *= scale;
}

static void oracle_work(void *state, const policy_params *p, const policy_query *q, policy_choice *c, uint32_t stage, uint32_t part)
{
    const oracle_job *job = job_of(c);
    (void)state, (void)p;
    if (stage == STAGE_WEIGH) {
        weigh(job->weights + part * job->stride, q->n_pos);
        return;
    }
    uint64_t first = part * (uint64_t)SCORE_PART, end = first + SCORE_PART < q->n_pos ? first + SCORE_PART : q->n_pos;
    if (!job->halves) score_any(q, job, first, end, job->rows + part * 2 * (size_t)q->dim);
    for (uint64_t at = first; at < end && job->halves; at += KERN_SPAN)
        score_halves(q, job, at, (uint32_t)(end - at < KERN_SPAN ? end - at : KERN_SPAN));
}

static double sum_of(const float *w, policy_range r)
{
    double sum = 0;
    for (uint64_t i = 0; i < r.n; i++) sum += (double)w[r.first + i];
    return sum;
}

/* Of a head's attention to the middle, the share that is chosen. */
static float chosen_share(const oracle_job *job, const float *w)
{
    double chosen = 0, all = sum_of(w, (policy_range){job->blocks.begin, job->blocks.end - job->blocks.begin});
    for (size_t i = 0; i < job->k; i++) chosen += sum_of(w, policy_blocks_at(&job->blocks, job->ids[i]));
    return all > 0 ? (float)(chosen / all) : 1;
}

static spw_status choose_all(const policy_query *q, policy_choice *c, spw_err *err)
{
    for (uint32_t g = 0; g < q->n_q; g++) c->mass[g] = 1;
    return policy_choice_all(c, q->n_pos, err);
}

static spw_status oracle_select(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    (void)state;
    if (c->dense) return choose_all(q, c, err);
    const oracle_job *job = job_of(c);
    for (size_t i = 0; i < job->blocks.n; i++) {
        double votes = 0;
        for (uint32_t g = 0; g < q->n_q; g++) votes += sum_of(job->weights + g * job->stride, policy_blocks_at(&job->blocks, i));
        job->votes[i] = (float)votes;
    }
    q->kern->top_k(job->votes, job->blocks.n, job->k, job->ids, job->keys);
    for (uint32_t g = 0; g < q->n_q; g++) c->mass[g] = chosen_share(job, job->weights + g * job->stride);
    spw_status s = policy_choice_add(c, 0, job->blocks.begin, err);
    for (size_t i = 0; i < job->k && !s; i++) {
        policy_range r = policy_blocks_at(&job->blocks, job->ids[i]);
        s = policy_choice_add(c, r.first, r.n, err);
    }
    return s ? s : policy_choice_add(c, job->blocks.end, p->window, err);
}

const policy_ops policy_oracle = {
    .name = "oracle",
    .needs_q = true,
    .n_stages = STAGES,
    .budget = 0.02,
    .block = 1,
    .prepare = oracle_prepare,
    .n_parts = oracle_n_parts,
    .work = oracle_work,
    .select = oracle_select,
};
