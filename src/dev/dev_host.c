/* dev_host.c - the host device: buffers are plain memory, weights are repacked (dev_pack.h) or stay in the mapped file and are dequantised a tile at a time.
 *
 * Products with weights of the file.  The outputs of a weight are cut into panels of PANEL_OUTS; a worker takes a panel, and for every TILE_COLS inputs dequantises a tile of the
 * panel to f32 and multiplies all rows by it.  Sums over a tile are added in ascending order of inputs, so a result has the same bits for one row and for many,
 * for one thread and for many. */
#include "dev_host.h"

#include <string.h>

#include "dev_pack.h"
#include "mem.h"

enum {
    PANEL_OUTS = 32,     /* outputs per work item: 32 x 512 floats of tile are 64 KiB and stay in L2 */
    PANEL_OUTS_ONE = 8,  /* outputs per tile for KERN_FEW_ROWS rows: 16 KiB stay in L1 */
    TILE_COLS = 512,     /* inputs per tile; a multiple of every type's block */
    TILE_ROWS = DEV_PACK_ROWS, /* rows multiplied by one tile at a time */
    TILE_FLOATS = PANEL_OUTS * TILE_COLS + TILE_ROWS * PANEL_OUTS,
    ROWS_PER_ITEM = 8,   /* rows of an elementwise work item */
    INLINE_FLOATS = 1 << 15, /* elementwise work below this is not worth a fork */
    MAX_PRODUCTS = 4,
};

struct dev_buf {
    size_t bytes;
    float *data;
};

struct dev_weight {
    uint32_t type;
    size_t rows, cols, row_bytes;
    const uint8_t *data;
    dev_panels packed; /* panels NULL: not repacked */
};

typedef struct dev_host {
    dev base;
    const kern_table *kern;
    spw_pool *pool;
    dev_pack *pack; /* NULL: nothing is repacked */
    float *tiles; /* per worker: a tile of weights, PANEL_OUTS x TILE_COLS, then its sums, TILE_ROWS x PANEL_OUTS */
} dev_host;

static dev_host *host_of(dev *d)
{
    return (dev_host *)(void *)d;
}

/* --------------------------------------------------------------------------------- buffers and weights ---- */

static spw_status host_buf_create(dev *d, size_t bytes, dev_buf **out, spw_err *err)
{
    (void)d;
    dev_buf *b = mem_zalloc(sizeof *b);
    if (b) b->data = mem_zalloc(bytes ? bytes : 1);
    if (!b || !b->data) {
        mem_free(b);
        return spw_fail(err, SPW_E_NOMEM, "host device: out of memory for a buffer of %zu bytes", bytes);
    }
    b->bytes = bytes;
    *out = b;
    return SPW_OK;
}

static void host_buf_free(dev *d, dev_buf *b)
{
    (void)d;
    if (!b) return;
    mem_free(b->data);
    mem_free(b);
}

static spw_status host_view(dev *d, const dev_buf *b, size_t at, size_t bytes, const void **out, spw_err *err)
{
    (void)d, (void)err;
    SPW_CHECK(at <= b->bytes && bytes <= b->bytes - at);
    *out = (const uint8_t *)b->data + at;
    return SPW_OK;
}

static void *host_stage(dev *d, dev_buf *b, size_t bytes)
{
    (void)d;
    SPW_CHECK(bytes <= b->bytes);
    return b->data;
}

static void host_commit(dev *d, dev_buf *b, size_t bytes)
{
    (void)d, (void)b, (void)bytes; /* the staged memory is the buffer */
}

static spw_status host_weight_create(dev *d, const dev_weight_desc *desc, dev_weight **out, spw_err *err)
{
    uint64_t row_bytes;
    if (desc->type >= QUANT_TYPES || !host_of(d)->kern->dequant[desc->type] || !quant_bytes(desc->type, desc->cols, &row_bytes)) {
        return spw_fail(err, SPW_E_UNSUPPORTED, "tensor %s: the host device has no kernel for %llu columns of type %u", desc->name,
                        (unsigned long long)desc->cols, desc->type);
    }
    dev_weight *w = mem_alloc(sizeof *w);
    if (!w) return spw_fail(err, SPW_E_NOMEM, "tensor %s: out of memory", desc->name);
    *w = (dev_weight){.type = desc->type, .rows = desc->rows, .cols = desc->cols, .row_bytes = row_bytes, .data = desc->data};
    dev_pack *pack = host_of(d)->pack;
    spw_status s = pack && !desc->lookup ? dev_pack_add(pack, desc, &w->packed, err) : SPW_OK;
    if (!s && pack && !desc->lookup && !w->packed.panels) s = dev_pack_move(pack, desc, &w->data, err);
    if (s) {
        mem_free(w);
        return s;
    }
    *out = w;
    return SPW_OK;
}

static void host_weight_free(dev *d, dev_weight *w)
{
    (void)d;
    mem_free(w);
}

/* ------------------------------------------------------------------------------------------- row by row ---- */

/* One elementwise or row-wise operation as a job. */
typedef struct row_job {
    const dev_host *h;
    void (*run)(const struct row_job *j, size_t from, size_t to);
    size_t n_rows, n;
    const float *x, *y;
    float *out;
    const dev_weight *w;
    const int32_t *ids;
    const uint32_t *rows;
    float eps;
    const dev_rope *rope;
} row_job;

static void row_item(void *ctx, size_t item, int worker)
{
    const row_job *j = ctx;
    size_t from = item * ROWS_PER_ITEM, to = from + ROWS_PER_ITEM;
    j->run(j, from, to < j->n_rows ? to : j->n_rows);
    (void)worker;
}

/* Small jobs run on the calling thread: forking costs more than they do. */
static void run_rows(dev *d, row_job *j)
{
    j->h = host_of(d);
    if (j->n_rows * j->n <= INLINE_FLOATS) j->run(j, 0, j->n_rows);
    else pool_run(j->h->pool, (j->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, row_item, j);
}

static void embed_rows(const row_job *j, size_t from, size_t to)
{
    for (size_t r = from; r < to; r++) {
        SPW_ASSERT((size_t)j->ids[r] < j->w->rows);
        j->h->kern->dequant[j->w->type](j->w->data + (size_t)j->ids[r] * j->w->row_bytes, j->n, j->out + r * j->n);
    }
}

static void host_embed(dev *d, const dev_weight *w, const int32_t *ids, size_t n_rows, dev_buf *out)
{
    run_rows(d, &(row_job){.run = embed_rows, .n_rows = n_rows, .n = w->cols, .w = w, .ids = ids, .out = out->data});
}

static void gather_rows(const row_job *j, size_t from, size_t to)
{
    for (size_t r = from; r < to; r++) memcpy(j->out + r * j->n, j->x + j->rows[r] * j->n, j->n * sizeof(float));
}

static void host_gather(dev *d, const dev_buf *x, const uint32_t *rows, size_t n_rows, size_t n, dev_buf *out)
{
    run_rows(d, &(row_job){.run = gather_rows, .n_rows = n_rows, .n = n, .x = x->data, .rows = rows, .out = out->data});
}

static void norm_rows(const row_job *j, size_t from, size_t to)
{
    for (size_t r = from; r < to; r++) j->h->kern->rms_norm(j->x + r * j->n, (const float *)(const void *)j->w->data, j->n, j->eps, j->out + r * j->n);
}

static void host_expect(dev *d, const dev_weight *w)
{
    enum { LINE = 64, MOST = 16 << 10 };
    (void)d;
    for (size_t at = 0; at < w->row_bytes && at < MOST; at += LINE) __builtin_prefetch(w->data + at, 0, 2);
}

static void host_rms_norm(dev *d, const dev_buf *x, const dev_weight *w, size_t n_rows, float eps, dev_buf *out)
{
    run_rows(d, &(row_job){.run = norm_rows, .n_rows = n_rows, .n = w->cols, .x = x->data, .w = w, .eps = eps, .out = out->data});
}

static void swiglu_rows(const row_job *j, size_t from, size_t to)
{
    j->h->kern->swiglu(j->out + from * j->n, j->y + from * j->n, (to - from) * j->n);
}

static void add_rows(const row_job *j, size_t from, size_t to)
{
    j->h->kern->add(j->out + from * j->n, j->y + from * j->n, (to - from) * j->n);
}

/* Elementwise operations see n floats as rows of 1024 and a rest. */
static void run_flat(dev *d, row_job j, size_t n)
{
    size_t whole = n / 1024 * 1024;
    j.n = 1024;
    j.n_rows = n / 1024;
    run_rows(d, &j);
    j.out += whole;
    j.y += whole;
    j.n = n - whole;
    j.n_rows = 1;
    run_rows(d, &j);
}

static void host_add(dev *d, dev_buf *x, const dev_buf *y, size_t n)
{
    run_flat(d, (row_job){.run = add_rows, .out = x->data, .y = y->data}, n);
}

/* One head of one row: norm, rotation, scale, padding.  head has room for head_dim floats. */
static void rope_head(const row_job *j, const float *x, const float *cos_sin, float *out)
{
    const dev_rope *r = j->rope;
    if (r->norm) {
        j->h->kern->rms_norm(x, (const float *)(const void *)r->norm->data, r->head_dim, r->eps, out);
        x = out;
    }
    j->h->kern->rotate(x, cos_sin, r->n_pairs, r->halves, r->scale, out);
    for (size_t i = 2 * (size_t)r->n_pairs; i < r->head_dim; i++) out[i] = x[i] * r->scale;
    for (size_t i = r->head_dim; i < r->dim_out; i++) out[i] = 0;
}

static void rope_rows(const row_job *j, size_t from, size_t to)
{
    const dev_rope *r = j->rope;
    for (size_t row = from; row < to; row++) {
        const float *cos_sin = r->cos_sin + row * r->n_pairs * 2;
        for (size_t h = row * r->n_heads; h < (row + 1) * r->n_heads; h++) rope_head(j, j->x + h * r->head_dim, cos_sin, j->out + h * r->dim_out);
    }
}

static void host_rope(dev *d, const dev_rope *r)
{
    run_rows(d, &(row_job){.run = rope_rows, .n_rows = r->n_rows, .n = (size_t)r->n_heads * r->dim_out, .x = r->x->data, .out = r->out->data, .rope = r});
}

/* --------------------------------------------------------------------------------------------- products ---- */

typedef struct product_job {
    dev_host *h;
    const float *x;
    size_t n_rows;
    const dev_product *products;
    size_t first_item[MAX_PRODUCTS + 1]; /* item at which product i starts */
} product_job;

static size_t n_items_of(const dev_weight *w, size_t n_rows)
{
    return w->packed.panels ? dev_pack_n_items(&w->packed, n_rows) : (w->rows + PANEL_OUTS - 1) / PANEL_OUTS;
}

static void add_bias(const product_job *job, const dev_product *p, size_t j0, size_t n_out)
{
    const float *bias = (const float *)(const void *)p->bias->data + j0;
    for (size_t r = 0; r < job->n_rows; r++) {
        float *to = p->out->data + r * p->w->rows + j0;
        for (size_t j = 0; j < n_out; j++) to[j] += bias[j];
    }
}

/* Outputs [j0, j0 + n_out) of one product for all rows. */
static void panel_run(const product_job *job, const dev_product *p, size_t j0, size_t n_out, float *tile)
{
    const dev_weight *w = p->w;
    const kern_table *kern = job->h->kern;
    float *sums = tile + PANEL_OUTS * TILE_COLS, *out = p->out->data;
    for (size_t k0 = 0; k0 < w->cols; k0 += TILE_COLS) {
        size_t n_k = w->cols - k0 < TILE_COLS ? w->cols - k0 : TILE_COLS;
        uint64_t skip = 0;
        bool ok = quant_bytes(w->type, k0, &skip);
        SPW_ASSERT(ok);
        (void)ok;
        for (size_t j = 0; j < n_out; j++) kern->dequant[w->type](w->data + (j0 + j) * w->row_bytes + skip, n_k, tile + j * TILE_COLS);
        if (k0 == 0) {
            kern->gemm(job->x, w->cols, job->n_rows, tile, TILE_COLS, n_out, n_k, out + j0, w->rows);
            continue;
        }
        kern->gemm(job->x + k0, w->cols, job->n_rows, tile, TILE_COLS, n_out, n_k, sums, PANEL_OUTS);
        for (size_t r = 0; r < job->n_rows; r++) {
            float *to = out + r * w->rows + j0, *from = sums + r * PANEL_OUTS;
            for (size_t j = 0; j < n_out; j++) to[j] += from[j];
        }
    }
    if (p->bias) add_bias(job, p, j0, n_out);
}

/* The same for few rows, by a kernel that reads the weights as they are. */
static void few_run(const product_job *job, const dev_product *p, size_t j0, size_t n_out)
{
    const dev_weight *w = p->w;
    kern_few_args a = {.w = w->data + j0 * w->row_bytes, .n_cols = w->cols, .n_out = n_out, .x = job->x, .x_stride = w->cols, .n_rows = job->n_rows};
    a.y = p->out->data + j0, a.y_stride = w->rows;
    job->h->kern->few[w->type](&a);
    if (p->bias) add_bias(job, p, j0, n_out);
}

static void run_product(const product_job *job, size_t i, size_t item, int worker)
{
    const dev_product *p = &job->products[i];
    if (p->w->packed.panels) {
        const float *bias = p->bias ? (const float *)(const void *)p->bias->data : NULL;
        dev_pack_item(job->h->pack, &p->w->packed, bias, job->n_rows, item, p->out->data);
        return;
    }
    size_t j0 = item * PANEL_OUTS, end = j0 + PANEL_OUTS < p->w->rows ? j0 + PANEL_OUTS : p->w->rows;
    if (job->n_rows <= KERN_FEW_ROWS && job->h->kern->few[p->w->type]) {
        few_run(job, p, j0, end - j0);
        return;
    }
    size_t step = job->n_rows <= KERN_FEW_ROWS ? (size_t)PANEL_OUTS_ONE : (size_t)PANEL_OUTS;
    float *tile = job->h->tiles + (size_t)worker * TILE_FLOATS;
    for (; j0 < end; j0 += step) panel_run(job, p, j0, end - j0 < step ? end - j0 : step, tile);
}

static void product_item(void *ctx, size_t item, int worker)
{
    const product_job *job = ctx;
    size_t i = 0;
    while (item >= job->first_item[i + 1]) i++;
    run_product(job, i, item - job->first_item[i], worker);
}

/* The same outputs of both products, which are cut alike. */
static void gated_item(void *ctx, size_t item, int worker)
{
    const product_job *job = ctx;
    const dev_weight *w = job->products[0].w;
    for (size_t i = 0; i < 2; i++) run_product(job, i, item, worker);
    dev_item it = dev_pack_item_of(&w->packed, job->n_rows, item);
    for (size_t r = it.row; r < it.row + it.n_rows; r++)
        job->h->kern->swiglu(job->products[0].out->data + r * w->rows + it.out, job->products[1].out->data + r * w->rows + it.out, it.n_out);
}

/* Products of the same rows; gated: two that are cut alike, and what gated_item does. */
static void run_products(dev_host *h, const float *x, size_t n_all, const dev_product *products, size_t n_products, bool gated)
{
    SPW_CHECK(n_products <= MAX_PRODUCTS && (n_all == 1 || !products[0].host));
    for (size_t r0 = 0; r0 < n_all; r0 += TILE_ROWS) {
        product_job job = {.h = h, .x = x + r0 * products[0].w->cols, .n_rows = n_all - r0 < TILE_ROWS ? n_all - r0 : TILE_ROWS};
        dev_product shifted[MAX_PRODUCTS];
        dev_buf outs[MAX_PRODUCTS];
        unsigned kinds = 0;
        for (size_t i = 0; i < n_products; i++) {
            outs[i] = (dev_buf){.data = products[i].host ? products[i].host : products[i].out->data + r0 * products[i].w->rows};
            shifted[i] = (dev_product){.w = products[i].w, .bias = products[i].bias, .out = &outs[i]};
            kinds |= dev_pack_kinds(&products[i].w->packed);
            job.first_item[i + 1] = job.first_item[i] + n_items_of(products[i].w, job.n_rows);
        }
        if (kinds) dev_pack_set_x(h->pack, job.x, job.n_rows, products[0].w->cols, kinds);
        job.products = shifted;
        if (gated) pool_run(h->pool, job.first_item[1], gated_item, &job);
        else pool_run(h->pool, job.first_item[n_products], product_item, &job);
    }
}

static void host_matmul(dev *d, const dev_buf *x, size_t n_rows, const dev_product *products, size_t n_products)
{
    run_products(host_of(d), x->data, n_rows, products, n_products, false);
}

static bool is_cut_alike(const dev_panels *a, const dev_panels *b)
{
    return a->panels && b->panels && a->rows == b->rows && a->item_pairs == b->item_pairs && a->item_rows == b->item_rows;
}

static void host_gated(dev *d, const dev_buf *x, size_t n_rows, const dev_product *gate, const dev_product *up)
{
    const dev_product both[] = {*gate, *up};
    bool alike = is_cut_alike(&gate->w->packed, &up->w->packed);
    run_products(host_of(d), x->data, n_rows, both, 2, alike);
    if (!alike) run_flat(d, (row_job){.run = swiglu_rows, .out = gate->out->data, .y = up->out->data}, n_rows * gate->w->rows);
}

/* ----------------------------------------------------------------------------------------------- create ---- */

static void host_free(dev *d)
{
    if (!d) return;
    dev_pack_free(host_of(d)->pack);
    mem_free(host_of(d)->tiles);
    mem_free(d);
}

static const dev_ops host_ops = {
    .name = "host", .free = host_free, .buf_create = host_buf_create, .buf_free = host_buf_free, .view = host_view, .stage = host_stage,
    .commit = host_commit, .weight_create = host_weight_create, .weight_free = host_weight_free, .embed = host_embed, .gather = host_gather,
    .expect = host_expect, .rms_norm = host_rms_norm, .matmul = host_matmul, .rope = host_rope, .gated = host_gated, .add = host_add,
};

dev_repacked dev_host_repacked(const dev *d)
{
    const dev_host *h = (const dev_host *)(const void *)d;
    return h->pack ? dev_pack_stats(h->pack) : (dev_repacked){0};
}

spw_status dev_host_create(dev **out, const kern_table *kern, spw_pool *pool, bool repack, spw_err *err)
{
    dev_host *h = mem_zalloc(sizeof *h);
    if (!h) return spw_fail(err, SPW_E_NOMEM, "host device: out of memory");
    h->base.ops = &host_ops;
    h->kern = kern;
    h->pool = pool;
    h->tiles = mem_alloc((size_t)pool_n_threads(pool) * TILE_FLOATS * sizeof *h->tiles);
    if (!h->tiles) {
        mem_free(h);
        return spw_fail(err, SPW_E_NOMEM, "host device: out of memory for the tiles of %d workers", pool_n_threads(pool));
    }
    spw_status s = repack ? dev_pack_create(&h->pack, kern, pool, err) : SPW_OK;
    if (s) {
        host_free(&h->base);
        return s;
    }
    *out = &h->base;
    return SPW_OK;
}
