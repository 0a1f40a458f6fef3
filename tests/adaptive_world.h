/* adaptive_world.h - what the tests of the adaptive policy share: a store of keys in clusters or at random, one choice made as the planner makes it, and what it holds of the true attention.
 *
 * Clusters follow one another, as the topics of a text do; channels have a large common part, as in real models. */
#ifndef SPW_ADAPTIVE_WORLD_H
#define SPW_ADAPTIVE_WORLD_H

#include "isas.h"
#include "kern_index.h"
#include "mem.h"
#include "policy.h"
#include "pool.h"
#include "test.h"

enum { DIM = 64, GROUP = 4, HEADS = 2, CTX = 34000, CLUSTER = 37, N_CENTRES = 24 };

typedef struct world {
    kv_store *store;
    kv_seq *seq;
    const kern_table *kern;
    uint64_t n;
    float *keys[HEADS]; /* as the store has them */
    float q[HEADS][GROUP * DIM];
} world;

static inline float normal(uint64_t *seed)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += test_uniform(seed);
    return sum; /* of six numbers between -1 and 1: deviation 1.4 */
}

static inline void make_key(uint64_t pos, bool clustered, uint64_t *seed, const float *centres, float *key)
{
    const float *centre = centres + (pos / CLUSTER * 7 + pos / 500) % N_CENTRES * DIM;
    for (uint32_t d = 0; d < DIM; d++) key[d] = (d % 16 == 3 ? 9.0f : 0.0f) + normal(seed) + (clustered ? 1.2f * centre[d] : 0);
}

static inline void write_row(const world *w, uint32_t head, uint64_t pos, const float *k, uint64_t *seed)
{
    void *row = kv_row(w->seq, 0, head, pos);
    for (uint32_t d = 0; d < 2 * DIM; d++) {
        float v = d < DIM ? k[d] : normal(seed);
        if (kv_store_type(w->store) == KV_F32) ((float *)row)[d] = v;
        else ((kern_f16 *)row)[d] = kern_f32_to_f16(v);
    }
}

typedef struct world_config {
    const char *isa;
    kv_type type;
    unsigned planes;
    uint64_t n;
    bool clustered;
    uint64_t seed;
    uint64_t needle; /* a position whose key is what query head 2 looks for; 0: none */
    bool decoys;     /* the sampled groups are what all heads look for, and the rest is not */
} world_config;

static inline void open_world(world *w, const world_config *cfg)
{
    spw_err err;
    uint32_t heads = HEADS;
    uint64_t seed = cfg->seed + 1;
    float centres[N_CENTRES * DIM], *scratch;
    *w = (world){.kern = kern_get(cfg->isa), .n = cfg->n};
    CHECK_OK(kv_store_create(&w->store, &(kv_config){.type = cfg->type, .n_layer = 1, .n_head_kv = &heads, .dim = DIM, .index_planes = cfg->planes, .kern = w->kern}, &err), err);
    CHECK_OK(kv_seq_create(&w->seq, w->store, CTX, &err), err);
    CHECK_OK(kv_seq_reserve(w->seq, cfg->n, &err), err);
    CHECK_OK(kv_seq_open(w->seq, cfg->n, &err), err);
    for (size_t i = 0; i < sizeof centres / sizeof *centres; i++) centres[i] = normal(&seed);
    scratch = mem_alloc((kv_complete_scratch(w->store) + 1) * sizeof *scratch);
    for (uint32_t h = 0; h < HEADS; h++) {
        w->keys[h] = malloc(cfg->n * DIM * sizeof(float));
        for (size_t i = 0; i < GROUP * DIM; i++) w->q[h][i] = cfg->clustered ? 0.05f * (normal(&seed) + 1.5f * centres[i / DIM * 3 * DIM + i % DIM]) : 0.12f * normal(&seed);
        for (uint64_t pos = 0; pos < cfg->n; pos++) {
            float *key = w->keys[h] + pos * DIM;
            make_key(pos, cfg->clustered, &seed, centres, key);
            for (uint32_t d = 0; d < DIM && cfg->needle && pos == cfg->needle; d++) key[d] = 12 * w->q[h][2 * DIM + d];
            for (uint32_t d = 0; d < DIM && cfg->decoys && pos / KERN_INDEX_GROUP % 16 == 0; d++) key[d] += 5 * w->q[h][pos % GROUP * DIM + d];
            write_row(w, h, pos, key, &seed);
        }
        kv_complete(w->seq, 0, h, scratch);
    }
    mem_free(scratch);
    kv_seq_commit(w->seq, cfg->n);
    for (uint32_t h = 0; h < HEADS; h++) {
        for (uint64_t pos = 0; pos < cfg->n; pos++) {
            float row[2 * DIM];
            kv_read_row(w->seq, 0, h, pos, row);
            memcpy(w->keys[h] + pos * DIM, row, DIM * sizeof(float));
        }
    }
}

static inline void close_world(world *w)
{
    for (uint32_t h = 0; h < HEADS; h++) free(w->keys[h]);
    kv_seq_free(w->seq);
    kv_store_free(w->store);
}

static inline policy_params params(double budget)
{
    static const uint32_t heads = HEADS;
    return (policy_params){.n_layer = 1, .n_head_kv = &heads, .group = GROUP, .dim = DIM, .sink = 64, .window = 256, .budget = budget, .block = 1, .stand_in = POLICY_MEANS};
}

static inline policy_query query_of(const world *w, uint32_t head, uint64_t n_pos)
{
    return (policy_query){.seq = w->seq, .kern = w->kern, .n_pos = n_pos, .head = head, .n_q = GROUP, .dim = DIM, .q = w->q[head], .q_stride = DIM, .watched = true};
}

typedef struct stage_job {
    const policy *p;
    const policy_query *q;
    policy_choice *c;
    uint32_t stage;
} stage_job;

static inline void run_part(void *ctx, size_t item, int worker)
{
    stage_job *j = ctx;
    j->p->ops->work(j->p->state, &j->p->params, j->q, j->c, j->stage, (uint32_t)item);
    (void)worker;
}

/* log of the summed exponentials of a head over what has been named so far. */
static inline float named_lse(const policy_query *q, const policy_choice *c, uint32_t g)
{
    double most = -1e30, sum = 0;
    for (int again = 0; again < 2; again++) {
        for (size_t r = 0; r < c->n; r++) {
            for (uint64_t pos = c->ranges[r].first; pos < c->ranges[r].first + c->ranges[r].n; pos++) {
                float row[2 * DIM];
                double score = 0;
                kv_read_row(q->seq, q->layer, q->head, pos, row);
                for (uint32_t d = 0; d < DIM; d++) score += (double)q->q[g * q->q_stride + d] * (double)row[d];
                if (again) sum += exp(score - most);
                else most = fmax(most, score);
            }
        }
    }
    return (float)(most + log(sum));
}

/* As the planner does, up to what a row's choices agree on; pool NULL: backwards, by this thread. */
static inline spw_status run_stages(const policy *p, const policy_query *q, spw_pool *pool, policy_choice *c, spw_err *err)
{
    spw_status s = policy_choice_reset(c, q->n_q, err);
    if (!s) s = p->ops->prepare(p->state, &p->params, q, c, err);
    for (uint32_t g = 0; g < q->n_q && c->base; g++) c->base_lse[g] = named_lse(q, c, g);
    for (uint32_t stage = 0; stage < p->ops->n_stages && !s; stage++) {
        size_t n = p->ops->n_parts(&p->params, q, c, stage);
        stage_job job = {p, q, c, stage};
        if (pool) pool_run(pool, n, run_part, &job);
        else while (n) run_part(&job, --n, 0);
    }
    return s;
}

/* Of one KV head alone. */
static inline spw_status make_choice(const policy *p, const policy_query *q, spw_pool *pool, policy_choice *c, spw_err *err)
{
    spw_status s = run_stages(p, q, pool, c, err);
    if (!s) p->ops->agree(p->state, &p->params, q, (policy_choice *const[]){c}, 1);
    return s ? s : p->ops->select(p->state, &p->params, q, c, err);
}

static inline policy start(const policy_params *pp)
{
    spw_err err;
    policy p = {0};
    CHECK_OK(policy_init(&p, "adaptive", pp, &err), err);
    return p;
}

/* chosen[pos] for all positions; checks that the ranges of a set ascend and do not touch, that no position is named twice, and that sink and window are in. */
static inline uint64_t mark(const policy_params *pp, const policy_choice *c, uint64_t n_pos, bool *chosen)
{
    uint64_t middle = 0;
    memset(chosen, 0, n_pos * sizeof *chosen);
    for (size_t i = 0; i < c->n_sets; i++) {
        const policy_set *set = &c->sets[i];
        uint64_t end = 0;
        CHECK(set->q_first == 0 && set->n_q == GROUP && set->n_rows == 0);
        for (size_t r = set->first_range; r < set->first_range + set->n_ranges; r++) {
            CHECK(c->ranges[r].n > 0 && (r == set->first_range || c->ranges[r].first > end));
            end = c->ranges[r].first + c->ranges[r].n;
            CHECK(end <= n_pos);
            for (uint64_t pos = c->ranges[r].first; pos < end && pos < n_pos; pos++) {
                CHECK(!chosen[pos]);
                chosen[pos] = true;
            }
        }
    }
    for (uint64_t pos = 0; pos < n_pos; pos++) {
        if (pos < pp->sink || pos + pp->window >= n_pos) CHECK(chosen[pos]);
        else middle += chosen[pos];
    }
    CHECK(c->dense || c->middle_rows == middle);
    return middle;
}

static bool chosen[CTX];

static inline uint64_t choose(const world *w, const policy_params *pp, uint32_t head, uint64_t n_pos, policy_choice *c)
{
    spw_err err;
    policy p = start(pp);
    policy_query q = query_of(w, head, n_pos);
    CHECK_OK(make_choice(&p, &q, NULL, c, &err), err);
    policy_done(&p);
    return mark(pp, c, n_pos, chosen);
}

/* True score of a position for a head. */
static inline double score_of(const world *w, uint32_t head, uint32_t g, uint64_t pos)
{
    double sum = 0;
    for (uint32_t d = 0; d < DIM; d++) sum += (double)w->q[head][g * DIM + d] * (double)w->keys[head][pos * DIM + d];
    return sum;
}

/* Of each head, the share of the mass of positions [from, to) that is marked. */
static inline void true_mass(const world *w, uint32_t head, uint64_t from, uint64_t to, const bool *marked, double *mass)
{
    for (uint32_t g = 0; g < GROUP; g++) {
        double all = 0, in = 0;
        for (uint64_t pos = from; pos < to; pos++) {
            double e = exp(score_of(w, head, g, pos));
            all += e;
            in += marked[pos] ? e : 0;
        }
        mass[g] = in / all;
    }
}

static inline double mean_of(const double *v)
{
    double sum = 0;
    for (uint32_t g = 0; g < GROUP; g++) sum += v[g] / GROUP;
    return sum;
}

static inline void open_best(world *w, world_config cfg)
{
    spw_err err;
    const kern_table *kern;
    CHECK_OK(kern_select(&kern, &err), err);
    cfg.isa = kern->isa;
    cfg.planes = cfg.planes ? cfg.planes : KERN_INDEX_USUAL;
    open_world(w, &cfg);
}

#endif
