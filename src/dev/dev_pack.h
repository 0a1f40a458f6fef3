/* dev_pack.h - weights of the host device repacked for the integer units (pack.h), and products with them; weights that kernels take as they are, moved.
 *
 * All of them lie in a few large areas that take memory as they are written, in huge pages where the system gives them. */
#ifndef SPW_DEV_PACK_H
#define SPW_DEV_PACK_H

#include "dev_host.h"

enum { DEV_PACK_ROWS = 512 }; /* rows of activations that are held at once */

typedef struct dev_pack dev_pack;

/* A repacked weight; panels NULL: it is not. */
typedef struct dev_panels {
    uint32_t type;
    size_t rows, cols;
    size_t panel_bytes;
    const uint8_t *panels;
    size_t item_pairs, pair_items, item_rows; /* of an item of a product: pairs of panels and rows; how many items take all pairs */
} dev_panels;

/* Keeps kern and pool. */
spw_status dev_pack_create(dev_pack **out, const kern_table *kern, spw_pool *pool, spw_err *err);
void dev_pack_free(dev_pack *p); /* and all panels; takes NULL */
/* Repacks a weight on the workers; leaves *out as it is where the type has no packed form or no kernel. */
spw_status dev_pack_add(dev_pack *p, const dev_weight_desc *desc, dev_panels *out, spw_err *err);
/* Moves a weight as it is into huge pages: without them half the time of reading it goes into finding its pages.  Leaves *data as it is where no kernel reads the type directly. */
spw_status dev_pack_move(dev_pack *p, const dev_weight_desc *desc, const uint8_t **data, spw_err *err);
dev_repacked dev_pack_stats(const dev_pack *p);

/* The kind of integers that products with w take, as a set; none when it is not repacked. */
unsigned dev_pack_kinds(const dev_panels *w);
/* Turns n_rows <= DEV_PACK_ROWS rows of cols floats, adjacent, into the integers that the items below take, of all these kinds. */
void dev_pack_set_x(dev_pack *p, const float *x, size_t n_rows, size_t cols, unsigned kinds);
/* A product is n_items independent items: some outputs of some rows each.  out is row-major, w->rows floats a row; bias may be NULL. */
size_t dev_pack_n_items(const dev_panels *w, size_t n_rows);
/* Which rows and outputs those are. */
typedef struct dev_item {
    size_t row, n_rows, out, n_out;
} dev_item;
dev_item dev_pack_item_of(const dev_panels *w, size_t n_rows, size_t item);
void dev_pack_item(const dev_pack *p, const dev_panels *w, const float *bias, size_t n_rows, size_t item, float *out);

#endif
