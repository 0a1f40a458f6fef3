/* policy_hgca.c - per query head a static set of salient positions beside the window, after HGCA (Deng et al. 2025, arXiv:2507.03153, and the version at HPDC 2026).
 *
 * While a position is in the window, every head keeps a moving average of the attention it gets.  Positions leave the window a BLOCK at a time, and head h keeps position i if
 *
 *     average(h, i) >= beta / n,      n: entries of the head's softmax
 *
 * so beta = 1 keeps what gets at least as much as it would get if all got the same.  Rows that are kept are copied, one after another, into a cache of the head, which attention reads
 * as one stream.  The set does not depend on the query; nothing but evictions changes it until a turn is appended or positions are forgotten.
 *
 *     | sink | ... kept of these by each head, in copies of its own ... | leaving, up to BLOCK - 1 | window |
 *     0                                                              edge                              n_pos
 *
 * The paper then weighs everything anew with the queries of the appended turn.  Those do not come to policies: here the first generated row does it.  It attends to everything, and
 * its own attention to all positions (the "latest weights" of the newer version) decides what is kept from the next row on; n is then all positions.
 *
 * Where the store has sealed rows of bytes, copies are halves of what the bytes stand for.  Memory: each head's kept rows once more, so with a small beta up to group times the store.
 *
 * A step may be repeated or fail: what a row saw is held back until the next row comes, and the first row's decision is made again whenever that row is. */
#include "policy.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "mem.h"

enum {
    BLOCK = 64,         /* positions that leave the window together: a tile of attention.  On average half of them are read beyond the window, an
                           eighth of the usual 256: smaller blocks would evict more often and save little */
    PART_ROWS = 2048,   /* positions of a part when all are weighed: 64 parts at 128K, for many threads */
    COPY_ROWS = 512,    /* rows of a part when kept ones are copied */
    TILE_FLOATS = 8192, /* of sealed keys that are scored together: they stay in L1 */
    LANES = 16,         /* elements of a key that are converted together; dim is a multiple */
    WORD = 64,          /* positions of a word of marks */
};
/* Of the moving average: about the last 32 rows count, so a position is judged by what it got shortly before it left, not by its first rows, when all look at their neighbours.  Measured
 * (SmolLM2, two texts, 1400 tokens after 2700, beta 1): 1/4 and 1 have 5 to 15 % more KL divergence at about the same share read;
 * 1/128 still remembers the first rows and reads 18 % instead of 7 %. */
#define RATE 0.03125f

/* What a query head keeps beyond the window. */
typedef struct hgca_cache {
    uint32_t *positions; /* ascending, below edge */
    uint8_t *rows;       /* copies, of the type of the store's open rows */
    size_t n, cap;
    size_t n_copied;     /* the first so many rows are there; the others are copied before the next choice */
} hgca_cache;

/* Of one layer and KV head.  Touched by its choices alone. */
typedef struct hgca_head {
    bool live;          /* false: all is to be weighed anew, and the rest means nothing but memory */
    uint64_t n_pos;     /* of the row that was prepared last */
    uint64_t evaluated; /* of the row by which all was weighed */
    uint64_t edge;
    size_t row_bytes;   /* of a copy */
    uint64_t n_union;   /* positions that at least one head keeps */
    uint64_t averaged;  /* positions below have an average */
    uint64_t observed;  /* n_pos of the row that seen is about; 0: none */
    float *average;     /* [group][n_window], of position edge + i */
    float *seen;        /* the same: the last row's attention, not yet in the average */
    hgca_cache *caches; /* group */
} hgca_head;

typedef struct hgca_state {
    uint32_t n_layer, group;
    size_t n_window; /* positions from edge on, at most */
    uint32_t *first_head; /* of each layer; the last entry is the number of heads */
    hgca_head *heads;
} hgca_state;

typedef enum hgca_mode { HGCA_DENSE, HGCA_EVALUATE, HGCA_FOLLOW } hgca_mode;

/* What lies in the scratch of a choice. */
typedef struct hgca_work {
    hgca_mode mode;
    uint32_t n_eval_parts, n_copy_parts;
    float *queries; /* [query][2 * dim]: zeros against V */
    /* evaluation: */
    float *scores;     /* [query][n_pos] */
    float *most, *sum; /* [part][query]: the largest score, the sum of exponentials below it */
    uint64_t *marks;   /* [query][n_words]: kept positions */
    size_t n_words;
} hgca_work;

static hgca_head *head_of(const hgca_state *st, const policy_query *q)
{
    return &st->heads[st->first_head[q->layer] + q->head];
}

/* Positions before it have left the window when n_pos exist. */
static uint64_t edge_of(const policy_params *p, uint64_t n_pos)
{
    uint64_t edge = (n_pos - p->window) / BLOCK * BLOCK;
    return edge > p->sink ? edge : p->sink;
}

/* ------------------------------------------------------------------------------------------------ state ---- */

static void free_caches(hgca_head *h, uint32_t group)
{
    for (uint32_t g = 0; h->caches && g < group; g++) {
        mem_free(h->caches[g].positions);
        mem_free(h->caches[g].rows);
    }
    mem_free(h->caches);
    mem_free(h->average);
    mem_free(h->seen);
}

static void hgca_free(void *state)
{
    hgca_state *st = state;
    if (!st) return;
    for (uint32_t i = 0; st->heads && i < st->first_head[st->n_layer]; i++) free_caches(&st->heads[i], st->group);
    mem_free(st->heads);
    mem_free(st->first_head);
    mem_free(st);
}

/* first_head: as of the state, copied. */
static hgca_state *alloc_state(const uint32_t *first_head, uint32_t n_layer, uint32_t group, size_t n_window)
{
    hgca_state *st = mem_zalloc(sizeof *st);
    if (!st) return NULL;
    *st = (hgca_state){.n_layer = n_layer, .group = group, .n_window = n_window};
    st->first_head = mem_calloc((size_t)n_layer + 1, sizeof *st->first_head);
    if (st->first_head) memcpy(st->first_head, first_head, ((size_t)n_layer + 1) * sizeof *first_head);
    if (st->first_head) st->heads = mem_calloc(first_head[n_layer], sizeof *st->heads);
    if (st->heads) return st;
    hgca_free(st);
    return NULL;
}

static spw_status hgca_create(void **out, const policy_params *p, spw_err *err)
{
    uint32_t *first = mem_calloc((size_t)p->n_layer + 1, sizeof *first);
    for (uint32_t i = 0; first && i < p->n_layer; i++) first[i + 1] = first[i] + p->n_head_kv[i];
    hgca_state *st = first ? alloc_state(first, p->n_layer, p->group, (size_t)p->window + BLOCK) : NULL;
    mem_free(first);
    if (!st) return spw_fail(err, SPW_E_NOMEM, "KV policy hgca: out of memory for the state of %u layers", p->n_layer);
    *out = st;
    return SPW_OK;
}

/* The memory of a head that does not depend on what it keeps. */
static spw_status size_head(const hgca_state *st, hgca_head *h, spw_err *err)
{
    size_t n;
    bool fits = mul_size(st->n_window, st->group, &n);
    if (!h->caches) h->caches = mem_calloc(st->group, sizeof *h->caches);
    if (!h->average && fits) h->average = mem_calloc(n, sizeof *h->average);
    if (!h->seen && fits) h->seen = mem_calloc(n, sizeof *h->seen);
    if (h->caches && h->average && h->seen) return SPW_OK;
    return spw_fail(err, SPW_E_NOMEM, "KV policy hgca: out of memory for the averages of %zu positions", st->n_window);
}

/* Room for n entries; those that are there stay. */
static spw_status size_cache(hgca_cache *k, size_t n, size_t row_bytes, spw_err *err)
{
    if (n <= k->cap) return SPW_OK;
    size_t cap = n + n / 8 + 4 * BLOCK;
    uint32_t *positions = mem_realloc(k->positions, k->n * sizeof *positions, cap * sizeof *positions);
    if (positions) k->positions = positions;
    uint8_t *rows = positions ? mem_realloc(k->rows, k->n_copied * row_bytes, cap * row_bytes) : NULL;
    if (!rows) return spw_fail(err, SPW_E_NOMEM, "KV policy hgca: out of memory for copies of %zu rows", cap);
    k->rows = rows;
    k->cap = cap;
    return SPW_OK;
}

static spw_status copy_cache(hgca_cache *to, const hgca_cache *from, size_t row_bytes, spw_err *err)
{
    spw_status s = size_cache(to, from->n, row_bytes, err);
    if (s || !from->n) return s;
    memcpy(to->positions, from->positions, from->n * sizeof *to->positions);
    memcpy(to->rows, from->rows, from->n_copied * row_bytes);
    to->n = from->n;
    to->n_copied = from->n_copied;
    return SPW_OK;
}

static spw_status copy_head(const hgca_state *st, hgca_head *to, const hgca_head *from, spw_err *err)
{
    size_t bytes = st->n_window * st->group * sizeof(float);
    spw_status s = size_head(st, to, err);
    for (uint32_t g = 0; g < st->group && !s; g++) s = copy_cache(&to->caches[g], &from->caches[g], from->row_bytes, err);
    if (s) return s;
    memcpy(to->average, from->average, bytes);
    memcpy(to->seen, from->seen, bytes);
    hgca_head made = *from;
    made.average = to->average;
    made.seen = to->seen;
    made.caches = to->caches;
    *to = made;
    return SPW_OK;
}

static spw_status hgca_fork(void **out, const void *state, spw_err *err)
{
    const hgca_state *from = state;
    hgca_state *st = alloc_state(from->first_head, from->n_layer, from->group, from->n_window);
    if (!st) return spw_fail(err, SPW_E_NOMEM, "KV policy hgca: out of memory for the state of %u layers", from->n_layer);
    spw_status s = SPW_OK;
    for (uint32_t i = 0; i < st->first_head[st->n_layer] && !s; i++) {
        if (from->heads[i].live) s = copy_head(st, &st->heads[i], &from->heads[i], err);
    }
    if (s) hgca_free(st);
    else *out = st;
    return s;
}

static spw_status hgca_begin(void *state, const policy_params *p, const policy_start *start, spw_err *err)
{
    hgca_state *st = state;
    for (uint32_t i = 0; i < st->first_head[st->n_layer]; i++) st->heads[i].live = false;
    (void)p, (void)start, (void)err;
    return SPW_OK;
}

/* ----------------------------------------------------------------------------------------------- scores ---- */

/* Sealed keys as floats, a tile at a time. */
static void score_sealed(const policy_query *q, const kern_span *span, float *out, size_t stride)
{
    float tile[TILE_FLOATS];
    const size_t dim = q->dim, fit = TILE_FLOATS / dim;
    for (size_t at = 0, n; at < span->n; at += n) {
        n = span->n - at < fit ? span->n - at : fit;
        for (size_t i = 0; i < n; i++) {
            const int8_t *k = (const int8_t *)span->rows + (at + i) * 2 * dim;
            for (size_t d = 0; d < dim; d += LANES) {
                float x[LANES]; /* that nothing else can point to: compilers make vectors of it */
                for (size_t j = 0; j < LANES; j++) x[j] = (float)k[d + j] * span->k_scale[d + j];
                memcpy(tile + i * dim + d, x, sizeof x);
            }
        }
        q->kern->gemm(q->q, q->q_stride, q->n_q, tile, dim, n, dim, out + at, stride);
    }
}

/* Scores of all query heads with the n positions from first on: out[query * stride + i].  queries: as in hgca_work.  What is no number counts as the lowest score, as in attention. */
static void score_positions(const policy_query *q, const float *queries, uint64_t first, size_t n, float *out, size_t stride)
{
    const size_t width = 2 * (size_t)q->dim;
    const bool f32 = kv_seq_open_row_bytes(q->seq) == width * sizeof(float);
    const uint64_t end = first + n, border = kv_border(q->seq, q->n_pos - 1);
    float *to = out;
    for (uint64_t at = first, stop; at < end; at = stop) {
        kern_span spans[KV_MAX_SPANS];
        stop = end - at > KERN_SPAN ? at + KERN_SPAN : end;
        if (at < border && border < stop) stop = border;
        size_t n_spans = kv_spans(q->seq, q->layer, q->head, at, (uint32_t)(stop - at), at < border, spans);
        for (size_t i = 0; i < n_spans; to += spans[i++].n) {
            if (at < border) score_sealed(q, &spans[i], to, stride);
            else if (f32) q->kern->gemm(q->q, q->q_stride, q->n_q, spans[i].rows, width, spans[i].n, q->dim, to, stride);
            else q->kern->score_rows(&(kern_score_args){.rows = spans[i].rows, .n_rows = spans[i].n, .n = width, .q = queries, .q_stride = width, .n_q = q->n_q, .scores = to, .stride = stride});
        }
    }
    for (uint32_t g = 0; g < q->n_q; g++) {
        float *s = out + g * stride;
        for (size_t i = 0; i < n; i++) {
            s[i] = s[i] > -FLT_MAX ? s[i] : -FLT_MAX;
            s[i] = s[i] < FLT_MAX ? s[i] : FLT_MAX;
        }
    }
}

/* ------------------------------------------------------------------------------------------- evaluation ---- */

static size_t padded(size_t bytes)
{
    return (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

/* Lays out the scratch. */
static spw_status size_work(const policy_query *q, policy_choice *c, hgca_mode mode, spw_err *err)
{
    hgca_work w = {.mode = mode};
    bool evaluates = mode == HGCA_EVALUATE;
    size_t n_q = q->n_q, width = 2 * (size_t)q->dim, n = evaluates ? (size_t)q->n_pos : 0;
    w.n_eval_parts = (uint32_t)((n + PART_ROWS - 1) / PART_ROWS);
    w.n_words = (n + WORD - 1) / WORD;
    size_t queries = mode == HGCA_DENSE ? 0 : padded(n_q * width * sizeof(float)), scores = padded(n_q * n * sizeof(float)), sums = padded(w.n_eval_parts * n_q * sizeof(float));
    spw_status s = policy_choice_scratch(c, padded(sizeof w) + queries + scores + 2 * sums + n_q * w.n_words * sizeof(uint64_t), err);
    if (s) return s;
    uint8_t *at = (uint8_t *)c->scratch + padded(sizeof w);
    w.queries = (float *)(void *)at, at += queries;
    w.scores = (float *)(void *)at, at += scores;
    w.most = (float *)(void *)at, at += sums;
    w.sum = (float *)(void *)at, at += sums;
    w.marks = (uint64_t *)(void *)at;
    memcpy(c->scratch, &w, sizeof w);
    for (size_t g = 0; g < n_q && queries; g++) {
        memcpy(w.queries + g * width, q->q + g * q->q_stride, q->dim * sizeof(float));
        memset(w.queries + g * width + q->dim, 0, q->dim * sizeof(float));
    }
    return SPW_OK;
}

/* Positions first .. end - 1 of a part. */
static uint64_t part_first(uint32_t part)
{
    return (uint64_t)part * PART_ROWS;
}

static uint64_t part_end(const policy_query *q, uint32_t part)
{
    uint64_t end = part_first(part + 1);
    return end < q->n_pos ? end : q->n_pos;
}

static void score_part(const policy_query *q, hgca_work *w, uint32_t part)
{
    uint64_t first = part_first(part);
    size_t n = (size_t)(part_end(q, part) - first), stride = (size_t)q->n_pos;
    score_positions(q, w->queries, first, n, w->scores + first, stride);
    for (uint32_t g = 0; g < q->n_q; g++) {
        const float *s = w->scores + g * stride + first;
        float most = s[0], sum = 0;
        for (size_t i = 1; i < n; i++) most = s[i] > most ? s[i] : most;
        for (size_t i = 0; i < n; i++) sum += expf(s[i] - most);
        w->most[part * q->n_q + g] = most;
        w->sum[part * q->n_q + g] = sum;
    }
}

/* The least score that query g keeps. */
static float least_score(const policy_params *p, const policy_query *q, const hgca_work *w, uint32_t g)
{
    double most = (double)w->most[g], sum = 0;
    for (uint32_t i = 1; i < w->n_eval_parts; i++) most = fmax(most, (double)w->most[i * q->n_q + g]);
    for (uint32_t i = 0; i < w->n_eval_parts; i++) sum += (double)w->sum[i * q->n_q + g] * exp((double)w->most[i * q->n_q + g] - most);
    return (float)(most + log(sum) + log(p->beta / (double)q->n_pos));
}

static void mark_part(const policy_params *p, const policy_query *q, hgca_work *w, uint32_t part)
{
    uint64_t first = part_first(part), end = part_end(q, part), edge = edge_of(p, q->n_pos);
    for (uint32_t g = 0; g < q->n_q; g++) {
        const float least = least_score(p, q, w, g), *s = w->scores + g * (size_t)q->n_pos;
        for (uint64_t at = first; at < end; at += WORD) {
            uint64_t word = 0, stop = at + WORD < edge ? at + WORD : edge;
            for (uint64_t i = at > p->sink ? at : p->sink; i < stop; i++) word |= (uint64_t)(s[i] >= least) << (i - at);
            w->marks[g * w->n_words + at / WORD] = word;
        }
    }
}

/* Makes the lists of what is kept out of the marks.  On failure all is to be weighed again. */
static spw_status take_marks(const hgca_state *st, const policy_params *p, const policy_query *q, hgca_head *h, const hgca_work *w, spw_err *err)
{
    spw_status s = size_head(st, h, err);
    h->row_bytes = kv_seq_open_row_bytes(q->seq);
    for (uint32_t g = 0; g < st->group && !s; g++) {
        hgca_cache *k = &h->caches[g];
        const uint64_t *marks = w->marks + g * w->n_words;
        size_t n = 0;
        for (size_t i = 0; i < w->n_words; i++) n += (size_t)__builtin_popcountll(marks[i]);
        k->n = k->n_copied = 0;
        s = size_cache(k, n, h->row_bytes, err);
        for (size_t i = 0; i < w->n_words && !s; i++)
            for (uint64_t left = marks[i]; left; left &= left - 1) k->positions[k->n++] = (uint32_t)(i * WORD + (size_t)__builtin_ctzll(left));
    }
    if (s) return s;
    h->n_union = 0;
    for (size_t i = 0; i < w->n_words; i++) {
        uint64_t any = 0;
        for (uint32_t g = 0; g < st->group; g++) any |= w->marks[g * w->n_words + i];
        h->n_union += (uint64_t)__builtin_popcountll(any);
    }
    h->edge = h->averaged = edge_of(p, q->n_pos);
    h->observed = 0;
    h->n_pos = h->evaluated = q->n_pos;
    h->live = true;
    return SPW_OK;
}

/* -------------------------------------------------------------------------------------------- evictions ---- */

/* What the row before saw, which is committed by now, goes into the averages. */
static void fold_seen(const hgca_state *st, hgca_head *h)
{
    size_t n = (size_t)(h->observed - h->edge), old = (size_t)(h->averaged - h->edge);
    for (uint32_t g = 0; g < st->group; g++) {
        float *average = h->average + g * st->n_window;
        const float *seen = h->seen + g * st->n_window;
        for (size_t i = 0; i < n; i++) average[i] = i < old ? average[i] + RATE * (seen[i] - average[i]) : seen[i];
    }
    h->averaged = h->observed;
}

/* Moves what has left the window to the heads that keep it.  A position whose attention nobody saw is kept. */
static spw_status evict(const hgca_state *st, const policy_params *p, const policy_query *q, hgca_head *h, spw_err *err)
{
    uint64_t edge = edge_of(p, q->n_pos);
    size_t n_out = (size_t)(edge - h->edge), n_left = h->averaged > edge ? (size_t)(h->averaged - edge) : 0;
    float least[KERN_MAX_G];
    for (uint32_t g = 0; g < st->group; g++) {
        spw_status s = size_cache(&h->caches[g], h->caches[g].n + n_out, h->row_bytes, err);
        if (s) return s;
        least[g] = (float)(p->beta / (double)(p->sink + h->caches[g].n + (q->n_pos - h->edge)));
    }
    for (size_t i = 0; i < n_out; i++) {
        bool any = false;
        for (uint32_t g = 0; g < st->group; g++) {
            hgca_cache *k = &h->caches[g];
            if (h->edge + i < h->averaged && h->average[g * st->n_window + i] < least[g]) continue;
            k->positions[k->n++] = (uint32_t)(h->edge + i);
            any = true;
        }
        h->n_union += any;
    }
    for (uint32_t g = 0; g < st->group; g++) memmove(h->average + g * st->n_window, h->average + g * st->n_window + n_out, n_left * sizeof *h->average);
    h->edge = edge;
    return SPW_OK;
}

static spw_status follow(const hgca_state *st, const policy_params *p, const policy_query *q, hgca_head *h, spw_err *err)
{
    if (q->n_pos != h->n_pos && h->observed == h->n_pos) fold_seen(st, h);
    h->n_pos = q->n_pos;
    return edge_of(p, q->n_pos) > h->edge ? evict(st, p, q, h, err) : SPW_OK;
}

/* Copies entries of a cache; other threads copy others. */
static void copy_rows(const hgca_head *h, const policy_query *q, hgca_cache *k, size_t from, size_t n)
{
    const uint64_t border = kv_border(q->seq, q->n_pos - 1);
    for (size_t i = from; i < from + n; i++) {
        float values[2 * KERN_Q8_DIM];
        if (k->positions[i] >= border) {
            memcpy(k->rows + i * h->row_bytes, kv_row(q->seq, q->layer, q->head, k->positions[i]), h->row_bytes);
        } else {
            kv_read_row(q->seq, q->layer, q->head, k->positions[i], values);
            q->kern->to_f16(values, 2 * (size_t)q->dim, (kern_f16 *)(void *)(k->rows + i * h->row_bytes));
        }
    }
}

/* A part of what is still to be copied, counted over all heads. */
static void copy_part(const hgca_state *st, const hgca_head *h, const policy_query *q, uint32_t part)
{
    size_t at = (size_t)part * COPY_ROWS, left = COPY_ROWS;
    for (uint32_t g = 0; g < st->group && left; g++) {
        hgca_cache *k = &h->caches[g];
        size_t pending = k->n - k->n_copied;
        if (at >= pending) {
            at -= pending;
            continue;
        }
        size_t n = pending - at < left ? pending - at : left;
        copy_rows(h, q, k, k->n_copied + at, n);
        at = 0;
        left -= n;
    }
}

/* ----------------------------------------------------------------------------------------------- policy ---- */

static spw_status hgca_prepare(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    const hgca_state *st = state;
    hgca_head *h = head_of(st, q);
    bool follows = h->live && q->n_pos != h->evaluated && (q->n_pos == h->n_pos || q->n_pos == h->n_pos + 1);
    bool dense = p->beta == 0 || policy_is_dense(p, q->n_pos);
    if (dense || !follows) {
        h->live = false;
        return size_work(q, c, dense ? HGCA_DENSE : HGCA_EVALUATE, err);
    }
    spw_status s = follow(st, p, q, h, err);
    if (!s) s = size_work(q, c, HGCA_FOLLOW, err);
    if (s) return s;
    size_t n = 0;
    for (uint32_t g = 0; g < st->group; g++) n += h->caches[g].n - h->caches[g].n_copied;
    ((hgca_work *)c->scratch)->n_copy_parts = (uint32_t)((n + COPY_ROWS - 1) / COPY_ROWS);
    return SPW_OK;
}

enum { STAGE_SCORE, STAGE_MARK, STAGE_COPY, N_STAGES };

static uint32_t hgca_n_parts(const policy_params *p, const policy_query *q, const policy_choice *c, uint32_t stage)
{
    const hgca_work *w = c->scratch;
    (void)p, (void)q;
    return stage == STAGE_COPY ? w->n_copy_parts : w->n_eval_parts;
}

static void hgca_work_part(void *state, const policy_params *p, const policy_query *q, policy_choice *c, uint32_t stage, uint32_t part)
{
    hgca_work *w = c->scratch;
    if (stage == STAGE_SCORE) score_part(q, w, part);
    else if (stage == STAGE_MARK) mark_part(p, q, w, part);
    else copy_part(state, head_of(state, q), q, part);
}

static spw_status hgca_select(void *state, const policy_params *p, const policy_query *q, policy_choice *c, spw_err *err)
{
    const hgca_state *st = state;
    const hgca_work *w = c->scratch;
    hgca_head *h = head_of(st, q);
    spw_status s = w->mode == HGCA_EVALUATE ? take_marks(st, p, q, h, w, err) : SPW_OK;
    if (s) return s;
    bool all = true;
    for (uint32_t g = 0; g < st->group && w->mode == HGCA_FOLLOW; g++) {
        h->caches[g].n_copied = h->caches[g].n;
        all &= h->caches[g].n == h->edge - p->sink;
    }
    if (all) return policy_choice_all(c, q->n_pos, err);
    s = policy_choice_add(c, 0, p->sink, err);
    if (!s) s = policy_choice_add(c, h->edge, q->n_pos - h->edge, err);
    for (uint32_t g = 0; g < st->group && !s; g++) {
        const hgca_cache *k = &h->caches[g];
        if (!k->n) continue;
        s = policy_choice_set(c, g, 1, err);
        if (s) return s;
        policy_set *set = &c->sets[c->n_sets - 1];
        set->rows = k->rows;
        set->positions = k->positions;
        set->n_rows = k->n;
    }
    c->middle_rows = h->n_union + (q->n_pos - p->window - h->edge);
    return s;
}

static void hgca_observe(void *state, const policy_params *p, const policy_query *q, const policy_choice *c, const float *lse)
{
    const hgca_state *st = state;
    const hgca_work *w = c->scratch;
    hgca_head *h = head_of(st, q);
    if (w->mode == HGCA_DENSE) return;
    size_t n = (size_t)(q->n_pos - h->edge);
    score_positions(q, w->queries, h->edge, n, h->seen, st->n_window);
    for (uint32_t g = 0; g < st->group; g++) {
        float *seen = h->seen + g * st->n_window;
        for (size_t i = 0; i < n; i++) seen[i] = expf(seen[i] - lse[g]);
    }
    h->observed = q->n_pos;
    (void)p;
}

const policy_ops policy_hgca = {
    .name = "hgca", .needs_q = true, .n_stages = N_STAGES, .create = hgca_create, .fork = hgca_fork, .free = hgca_free, .begin = hgca_begin, .prepare = hgca_prepare,
    .n_parts = hgca_n_parts, .work = hgca_work_part, .select = hgca_select, .observe = hgca_observe,
};
