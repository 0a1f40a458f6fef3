/* dev_pack.c - repacks weights once and multiplies with them (dev_pack.h).
 *
 * Panels go in pairs, as the kernels take them. */
#include "dev_pack.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "mem.h"
#include "pack.h"

#define HUGE_BYTES ((size_t)2 << 20)
#define AREA_BYTES ((size_t)64 << 20) /* of an area, unless a weight needs more */

enum {
    X_BLOCK_BYTES = 512 << 10, /* activations of an item with many rows: they stay in L2 while its panels go by */
    MIN_ITEM_BYTES = 8 << 10,  /* of panels in an item: small products are shared evenly, large ones cost few claims */
    MAX_ITEM_BYTES = 64 << 10,
    ITEMS_WANTED = 32,         /* of a product, between these */
    GROUP = 8,                 /* rows of a group at most */
    MIN_ROWS = 40,             /* of an item with many: fewer do not pay for unpacking (8960 columns, 16 and 40 rows: 1.05 to 1.1x) */
    MAX_ROWS = 128,
    INLINE_X = 1 << 14,        /* activations that are not worth a fork */
};

typedef struct area {
    uint8_t *base;
    size_t bytes, used;
} area;

struct dev_pack {
    const kern_table *kern;
    spw_pool *pool;
    area *areas;
    size_t n_areas;
    uint8_t *x[PACK_KINDS];    /* activations of a kind */
    size_t x_cols[PACK_KINDS]; /* room for so many columns */
    dev_repacked stats;
};

spw_status dev_pack_create(dev_pack **out, const kern_table *kern, spw_pool *pool, spw_err *err)
{
    dev_pack *p = mem_zalloc(sizeof *p);
    if (!p) return spw_fail(err, SPW_E_NOMEM, "host device: out of memory");
    p->kern = kern;
    p->pool = pool;
    *out = p;
    return SPW_OK;
}

void dev_pack_free(dev_pack *p)
{
    if (!p) return;
    for (size_t i = 0; i < p->n_areas; i++) mem_unreserve(p->areas[i].base, p->areas[i].bytes);
    mem_free(p->areas);
    for (size_t i = 0; i < PACK_KINDS; i++) mem_free(p->x[i]);
    mem_free(p);
}

dev_repacked dev_pack_stats(const dev_pack *p)
{
    return p->stats;
}

/* ------------------------------------------------------------------------------------------- repacking ---- */

/* Room for bytes (a multiple of 64) in the last area, or in a new one; NULL when there is none. */
static uint8_t *take_room(dev_pack *p, size_t bytes)
{
    area *last = p->n_areas ? &p->areas[p->n_areas - 1] : NULL;
    if (!last || bytes > last->bytes - last->used) {
        size_t whole;
        if (!add_size(bytes, HUGE_BYTES - 1, &whole)) return NULL;
        whole = whole / HUGE_BYTES * HUGE_BYTES;
        if (whole < AREA_BYTES) whole = AREA_BYTES;
        area *areas = mem_realloc(p->areas, p->n_areas * sizeof *areas, (p->n_areas + 1) * sizeof *areas);
        if (!areas) return NULL;
        p->areas = areas;
        last = &areas[p->n_areas];
        *last = (area){.base = mem_reserve(whole), .bytes = whole};
        if (!last->base) return NULL;
        madvise(last->base, whole, MADV_HUGEPAGE);
        p->n_areas++;
    }
    uint8_t *room = last->base + last->used;
    last->used += bytes;
    return room;
}

/* Bytes of a block of a row of activations. */
static size_t x_bytes(const dev_pack *p, pack_kind kind)
{
    return pack_form_bytes(p->kern->pack_form, kind);
}

/* Room for the activations of DEV_PACK_ROWS rows: a row alone, which may take as much as two, is the last of fewer, as the number is even. */
static bool grow_x(dev_pack *p, pack_kind kind, size_t cols)
{
    size_t bytes;
    if (cols <= p->x_cols[kind]) return true;
    if (!mul_size(cols / PACK_COLS, DEV_PACK_ROWS * x_bytes(p, kind), &bytes)) return false;
    uint8_t *x = mem_alloc(bytes);
    if (!x) return false;
    mem_free(p->x[kind]);
    p->x[kind] = x;
    p->x_cols[kind] = cols;
    return true;
}

typedef struct repack_job {
    const dev_weight_desc *desc;
    const dev_panels *w;
    uint8_t *panels;
    size_t row_bytes;
} repack_job;

static void repack_item(void *ctx, size_t item, int worker)
{
    const repack_job *j = ctx;
    size_t row = item * PACK_ROWS, n = j->w->rows - row < PACK_ROWS ? j->w->rows - row : PACK_ROWS;
    pack_panel(j->w->type, (const uint8_t *)j->desc->data + row * j->row_bytes, j->row_bytes, n, j->w->cols, j->panels + item * j->w->panel_bytes);
    (void)worker;
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The pages of the file that a weight fills whole: until they are touched again their memory is better used. */
static void drop_mapped(const dev_weight_desc *desc, uint64_t bytes)
{
    const uintptr_t page = 4096;
    uintptr_t from = ((uintptr_t)desc->data + page - 1) / page * page, to = ((uintptr_t)desc->data + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

static spw_status no_room(const dev_weight_desc *desc, uint64_t row_bytes, spw_err *err)
{
    return spw_fail(err, SPW_E_NOMEM, "tensor %s: out of memory for repacking %llu rows of %llu bytes", desc->name, (unsigned long long)desc->rows,
                    (unsigned long long)row_bytes);
}

static void count(dev_pack *p, size_t bytes, double start)
{
    p->stats.bytes += bytes;
    p->stats.seconds += seconds_now() - start;
}

/* How a product is cut: pairs of panels and rows of an item. */
static void cut_items(const dev_pack *p, dev_panels *w)
{
    size_t n_pairs = (w->rows + 2 * PACK_ROWS - 1) / (2 * PACK_ROWS), bytes = 2 * n_pairs * w->panel_bytes / ITEMS_WANTED;
    if (bytes < MIN_ITEM_BYTES) bytes = MIN_ITEM_BYTES;
    if (bytes > MAX_ITEM_BYTES) bytes = MAX_ITEM_BYTES;
    w->item_pairs = bytes > 2 * w->panel_bytes ? bytes / (2 * w->panel_bytes) : 1;
    w->pair_items = (n_pairs + w->item_pairs - 1) / w->item_pairs;
    w->item_rows = X_BLOCK_BYTES / (w->cols / PACK_COLS * x_bytes(p, pack_kind_of(w->type))) / GROUP * GROUP;
    if (w->item_rows < MIN_ROWS) w->item_rows = MIN_ROWS;
    if (w->item_rows > MAX_ROWS) w->item_rows = MAX_ROWS;
}

spw_status dev_pack_add(dev_pack *p, const dev_weight_desc *desc, dev_panels *out, spw_err *err)
{
    size_t panel_bytes = pack_panel_bytes(desc->type, desc->cols), n_panels = (desc->rows + PACK_ROWS - 1) / PACK_ROWS, bytes;
    uint64_t row_bytes;
    if (!panel_bytes || !p->kern->pack_dot[desc->type] || !quant_bytes(desc->type, desc->cols, &row_bytes)) return SPW_OK;
    double start = seconds_now();
    uint8_t *panels = mul_size(panel_bytes, n_panels, &bytes) && grow_x(p, pack_kind_of(desc->type), desc->cols) ? take_room(p, bytes) : NULL;
    if (!panels) return no_room(desc, row_bytes, err);
    *out = (dev_panels){.type = desc->type, .rows = desc->rows, .cols = desc->cols, .panel_bytes = panel_bytes, .panels = panels};
    cut_items(p, out);
    pool_run(p->pool, n_panels, repack_item, &(repack_job){desc, out, panels, row_bytes});
    if (desc->mapped) drop_mapped(desc, row_bytes * desc->rows);
    count(p, bytes, start);
    return SPW_OK;
}

typedef struct move_job {
    const uint8_t *from;
    uint8_t *to;
    size_t bytes;
} move_job;

static void move_item(void *ctx, size_t item, int worker)
{
    const move_job *j = ctx;
    size_t at = item * HUGE_BYTES;
    memcpy(j->to + at, j->from + at, j->bytes - at < HUGE_BYTES ? j->bytes - at : HUGE_BYTES);
    (void)worker;
}

spw_status dev_pack_move(dev_pack *p, const dev_weight_desc *desc, const uint8_t **data, spw_err *err)
{
    size_t bytes, rounded;
    uint64_t row_bytes;
    if (!p->kern->few[desc->type] || !quant_bytes(desc->type, desc->cols, &row_bytes)) return SPW_OK;
    double start = seconds_now();
    bool fits = mul_size(row_bytes, desc->rows, &bytes) && add_size(bytes, 63, &rounded);
    uint8_t *room = fits ? take_room(p, rounded / 64 * 64) : NULL;
    if (!room) return no_room(desc, row_bytes, err);
    pool_run(p->pool, (bytes + HUGE_BYTES - 1) / HUGE_BYTES, move_item, &(move_job){desc->data, room, bytes});
    if (desc->mapped) drop_mapped(desc, bytes);
    *data = room;
    count(p, bytes, start);
    return SPW_OK;
}

/* -------------------------------------------------------------------------------------------- products ---- */

typedef struct x_job {
    const dev_pack *p;
    const float *x;
    size_t n_rows, cols;
    unsigned kinds;
} x_job;

/* Eight rows, or what is left. */
static void x_item(void *ctx, size_t item, int worker)
{
    const x_job *j = ctx;
    size_t row = item * GROUP, end = row + GROUP < j->n_rows ? row + GROUP : j->n_rows;
    while (row < end) {
        size_t n = pack_group_rows(row, j->n_rows);
        for (pack_kind kind = 0; kind < PACK_KINDS; kind++) {
            if (!(j->kinds >> kind & 1)) continue;
            size_t bytes = x_bytes(j->p, kind), step = pack_step_bytes(j->p->kern->pack_form, kind, n);
            uint8_t *to = j->p->x[kind] + row * (j->cols / PACK_COLS) * bytes;
            for (size_t r = 0; r < n; r++) j->p->kern->pack_x(j->x + (row + r) * j->cols, j->cols, kind, to + r * bytes, step);
        }
        row += n;
    }
    (void)worker;
}

unsigned dev_pack_kinds(const dev_panels *w)
{
    return w->panels ? 1u << pack_kind_of(w->type) : 0;
}

void dev_pack_set_x(dev_pack *p, const float *x, size_t n_rows, size_t cols, unsigned kinds)
{
    x_job j = {p, x, n_rows, cols, kinds};
    size_t n_items = (n_rows + GROUP - 1) / GROUP;
    if (n_items > 1 && n_rows * cols > INLINE_X) {
        pool_run(p->pool, n_items, x_item, &j);
        return;
    }
    for (size_t i = 0; i < n_items; i++) x_item(&j, i, 0);
}

size_t dev_pack_n_items(const dev_panels *w, size_t n_rows)
{
    return w->pair_items * ((n_rows + w->item_rows - 1) / w->item_rows);
}

dev_item dev_pack_item_of(const dev_panels *w, size_t n_rows, size_t item)
{
    const size_t item_outs = w->item_pairs * 2 * PACK_ROWS;
    size_t row = 0;
    for (; item >= w->pair_items; item -= w->pair_items) row += w->item_rows; /* few rows have no second block: a division would cost more */
    size_t out = item * item_outs;
    return (dev_item){.row = row, .n_rows = n_rows - row < w->item_rows ? n_rows - row : w->item_rows,
                      .out = out, .n_out = w->rows - out < item_outs ? w->rows - out : item_outs};
}

void dev_pack_item(const dev_pack *p, const dev_panels *w, const float *bias, size_t n_rows, size_t item, float *out)
{
    const dev_item it = dev_pack_item_of(w, n_rows, item);
    kern_pack_args a = {.panel_bytes = w->panel_bytes, .n_cols = w->cols, .n_rows = it.n_rows, .y_stride = w->rows};
    a.x = p->x[pack_kind_of(w->type)] + it.row * (w->cols / PACK_COLS) * x_bytes(p, pack_kind_of(w->type));
    for (size_t j = it.out, end = it.out + it.n_out; j < end; j += 2 * PACK_ROWS) {
        a.panel = w->panels + j / PACK_ROWS * w->panel_bytes;
        a.n_out = end - j < 2 * PACK_ROWS ? end - j : 2 * PACK_ROWS;
        a.y = out + it.row * w->rows + j;
        p->kern->pack_dot[w->type](&a);
        if (!bias) continue;
        for (size_t r = 0; r < a.n_rows; r++)
            for (size_t i = 0; i < a.n_out; i++) a.y[r * w->rows + i] += bias[j + i];
    }
}
