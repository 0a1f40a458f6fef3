/* device.h - what a device can do for the forward pass: one table of functions.
 *
 * Buffers and weights are opaque: nothing above this table assumes that the CPU can read their bytes.  What the host needs (q, k, v for the store and for host
 * attention) it asks for with `view`, and what it has made it hands over with `stage` and `commit`.  The host device answers these with the memory
 * itself; a device with its own memory answers with pinned copies.
 *
 * Operations on one device run in the order of the calls.  All activations are f32, row-major, rows adjacent.  Buffers of different arguments do not
 * overlap unless a function says so.  A row's result depends on that row alone (kern.h).  Creation and `view` may fail; the other operations of a device that has failed do
 * nothing, and the next `view` says so. */
#ifndef SPW_DEVICE_H
#define SPW_DEVICE_H

#include "status.h"

typedef struct dev dev;
typedef struct dev_buf dev_buf;
typedef struct dev_weight dev_weight;

/* A weight as it lies in the file; data must stay mapped while the dev_weight lives. */
typedef struct dev_weight_desc {
    const char *name;
    uint32_t type; /* quant_type */
    uint64_t rows, cols;
    const void *data;
    bool lookup; /* for embed alone, never a factor of a product */
    bool mapped; /* data is in a mapped file, whose pages may be dropped: they are read again when they are touched */
} dev_weight_desc;

/* What a device has rearranged at weight_create. */
typedef struct dev_repacked {
    uint64_t bytes;
    double seconds;
} dev_repacked;

/* out[row][w->rows] = x[row][w->cols] . w^T + bias */
typedef struct dev_product {
    const dev_weight *w;
    const dev_weight *bias; /* F32, 1 x w->rows; NULL: none */
    dev_buf *out;
    float *host; /* memory of the host in place of out, for a single row; written when the next view returns.  NULL: out */
} dev_product;

/* Optional RMS norm of each head, rotation, scaling, and padding of the head to dim_out. */
typedef struct dev_rope {
    const dev_buf *x; /* [row][n_heads][head_dim] */
    dev_buf *out;     /* [row][n_heads][dim_out], zeros from head_dim on */
    size_t n_rows;
    uint32_t n_heads, head_dim, dim_out;
    uint32_t n_pairs;       /* rotated pairs; dims beyond 2 * n_pairs pass unrotated */
    bool halves;            /* pairs (i, i + n_pairs) instead of (2i, 2i + 1) */
    const float *cos_sin;   /* host memory: [row][n_pairs][2] */
    float scale;            /* multiplies the result */
    const dev_weight *norm; /* per-head norm weight before rotation; NULL: none */
    float eps;
} dev_rope;

typedef struct dev_ops {
    const char *name;
    void (*free)(dev *d);
    spw_status (*buf_create)(dev *d, size_t bytes, dev_buf **out, spw_err *err); /* zeroed */
    void (*buf_free)(dev *d, dev_buf *b);                                        /* takes NULL */
    /* bytes [at, at + bytes) as the CPU may read them, valid until the next operation that writes b */
    spw_status (*view)(dev *d, const dev_buf *b, size_t at, size_t bytes, const void **out, spw_err *err);
    /* memory for the CPU to write the new content of b's first bytes into, handed over by commit */
    void *(*stage)(dev *d, dev_buf *b, size_t bytes);
    void (*commit)(dev *d, dev_buf *b, size_t bytes);
    spw_status (*weight_create)(dev *d, const dev_weight_desc *desc, dev_weight **out, spw_err *err);
    void (*weight_free)(dev *d, dev_weight *w); /* takes NULL */

    /* out[row] = row ids[row] of w, dequantised; ids in host memory */
    void (*embed)(dev *d, const dev_weight *w, const int32_t *ids, size_t n_rows, dev_buf *out);
    /* out[row] = x[rows[row]], n floats each; rows in host memory */
    void (*gather)(dev *d, const dev_buf *x, const uint32_t *rows, size_t n_rows, size_t n, dev_buf *out);
    /* A hint, which changes nothing: a norm's weight will be read soon, by this thread.  Between two uses all other weights have passed through the caches. */
    void (*expect)(dev *d, const dev_weight *w);
    /* out = RMS norm of each row times w; out may be x */
    void (*rms_norm)(dev *d, const dev_buf *x, const dev_weight *w, size_t n_rows, float eps, dev_buf *out);
    /* several products of the same input rows */
    void (*matmul)(dev *d, const dev_buf *x, size_t n_rows, const dev_product *products, size_t n_products);
    void (*rope)(dev *d, const dev_rope *r);
    /* The two products of the same rows, then gate->out = silu(gate->out) * up->out, silu(v) = v / (1 + e^-v); up->out is used up. */
    void (*gated)(dev *d, const dev_buf *x, size_t n_rows, const dev_product *gate, const dev_product *up);
    /* x += y, n floats */
    void (*add)(dev *d, dev_buf *x, const dev_buf *y, size_t n);
} dev_ops;

/* First member of every device. */
struct dev {
    const dev_ops *ops;
};

#endif
