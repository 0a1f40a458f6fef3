/* test_pack.c - products of packed weights and integer activations: repacking, every ISA against exact sums and against each other, one row
 * against many, the host device's cutting, and activations that are no numbers; few rows times weights as they lie in the file. */
#include "dev_host.h"
#include "isas.h"
#include "mem.h"
#include "pack.h"
#include "test.h"
#include "tolerance.h"

#include <float.h>

static const uint32_t types[] = {QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};
enum { N_TYPES = sizeof types / sizeof types[0], MOST_BYTES = sizeof(pack_alone_words) /* of a block of activations */ };
_Static_assert(sizeof(pack_words) <= MOST_BYTES && sizeof(pack_whole_pairs) <= MOST_BYTES && sizeof(pack_alone_pairs) <= MOST_BYTES, "the largest");

static size_t row_bytes_of(uint32_t type, size_t cols)
{
    uint64_t bytes = 0;
    CHECK(quant_bytes(type, cols, &bytes));
    return (size_t)bytes;
}

/* n rows of random blocks with scales such as models have. */
static uint8_t *random_weight(uint32_t type, size_t rows, size_t cols, uint64_t *seed)
{
    size_t bytes = rows * row_bytes_of(type, cols), block = quant_get(type)->block_bytes;
    uint8_t *w = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) w[i] = (uint8_t)(test_rand(seed) >> 24);
    for (size_t at = 0; at < bytes; at += block) {
        kern_f16 d = kern_f32_to_f16(0.01f * test_uniform(seed)), m = kern_f32_to_f16(0.05f * test_uniform(seed));
        memcpy(w + at + (type == QUANT_Q6_K ? 208 : 0), &d, 2);
        if (pack_has_minima(type)) memcpy(w + at + 2, &m, 2);
    }
    return w;
}

static uint8_t *packed(uint32_t type, const uint8_t *w, size_t rows, size_t cols)
{
    size_t panel = pack_panel_bytes(type, cols), n = (rows + PACK_ROWS - 1) / PACK_ROWS, row = row_bytes_of(type, cols);
    uint8_t *out = aligned_alloc(64, n * panel);
    for (size_t i = 0; i < n; i++)
        pack_panel(type, w + i * PACK_ROWS * row, row, rows - i * PACK_ROWS < PACK_ROWS ? rows - i * PACK_ROWS : PACK_ROWS, cols, out + i * panel);
    return out;
}

/* What the integers of a row stand for, and the step of each. */
static void values_of(pack_form form, const uint8_t *x, size_t cols, pack_kind kind, size_t step, double *out, double *steps)
{
    static const size_t places[] = {0, 2, 1, 3};
    for (size_t k = 0; k < cols; k++) {
        const uint8_t *at = x + k / 32 * step;
        size_t i = k % 32;
        if (form == PACK_WHOLE) {
            pack_whole_words b;
            pack_whole_pairs c;
            memcpy(&b, at, sizeof b), memcpy(&c, at, sizeof c);
            steps[k] = (double)b.scale * (kind == PACK_WORDS ? 1 : 1 << c.shift);
            out[k] = steps[k] * b.v[i / 4 * 4 + places[i % 4]];
        } else if (kind == PACK_WORDS) {
            pack_words b;
            memcpy(&b, at, sizeof b);
            steps[k] = (double)b.scale;
            out[k] = steps[k] * (256 * b.high[i] + b.low[i]);
        } else {
            pack_pairs b;
            memcpy(&b, at, sizeof b);
            CHECK(b.shift >= 0 && b.shift <= PACK_MAX_SHIFT);
            steps[k] = (double)b.scale * (1 << b.shift);
            out[k] = steps[k] * (256 * b.high[i] + (i < 16 ? 1 : pack_ratio(kind)) * b.low[i % 16]);
        }
    }
}

/* How far a rounded activation may be off, in steps: half of one, or of the cell that pack_lattice rounds to, spanned by (1, ratio) and what of across is perpendicular to it. */
static double most_off(pack_kind kind, size_t k)
{
    return kind == PACK_WORDS ? 0.5 : kind == PACK_PAIRS_16 ? 8.5 : k % 32 < 16 ? 18.5 : 6.1;
}

/* One panel times 8 rows in one ISA: against sums in f64 of the values that weights and activations stand for, and each row alone has the same bits.  y takes the results. */
static void check_panel(const kern_table *t, uint32_t type, size_t cols, const uint8_t *w, const float *x, float *y)
{
    const kern_table *ref = kern_get("ref");
    const pack_kind kind = pack_kind_of(type);
    size_t bytes = pack_form_bytes(t->pack_form, kind), row = row_bytes_of(type, cols);
    uint8_t *panel = packed(type, w, PACK_ROWS, cols), *ints = malloc(8 * cols / 32 * bytes);
    float *values = malloc(cols * sizeof *values);
    double *taken = malloc(8 * cols * sizeof *taken), *steps = malloc(cols * sizeof *steps), worst = 0;
    for (size_t r = 0; r < 8; r++) {
        t->pack_x(x + r * cols, cols, kind, ints + r * bytes, 8 * bytes);
        values_of(t->pack_form, ints + r * bytes, cols, kind, 8 * bytes, taken + r * cols, steps);
        for (size_t k = 0; k < cols; k++) CHECK_NEAR(taken[r * cols + k] - (double)x[r * cols + k], 0, (most_off(kind, k) + 1e-2) * steps[k]);
    }
    t->pack_dot[type](&(kern_pack_args){.panel = panel, .n_cols = cols, .x = ints, .n_rows = 8, .y = y, .y_stride = PACK_ROWS, .n_out = PACK_ROWS});
    for (size_t j = 0; j < PACK_ROWS; j++) {
        ref->dequant[type](w + j * row, cols, values);
        for (size_t r = 0; r < 8; r++) {
            double sum = 0, size = 0;
            for (size_t k = 0; k < cols; k++) sum += (double)values[k] * taken[r * cols + k], size += fabs((double)values[k] * taken[r * cols + k]);
            double off = size > 0 ? fabs(sum - (double)y[r * PACK_ROWS + j]) / size : fabs((double)y[r * PACK_ROWS + j]);
            if (!(off <= worst)) worst = off;
        }
    }
    for (size_t r = 0; r < 8; r++) {
        float alone[PACK_ROWS];
        t->pack_x(x + r * cols, cols, kind, ints, pack_step_bytes(t->pack_form, kind, 1));
        t->pack_dot[type](&(kern_pack_args){.panel = panel, .n_cols = cols, .x = ints, .n_rows = 1, .y = alone, .y_stride = PACK_ROWS, .n_out = PACK_ROWS});
        CHECK(!memcmp(alone, y + r * PACK_ROWS, sizeof alone));
    }
    if (!(worst <= TOL_PACK_REL)) fprintf(stderr, "%s %s %zu columns: off by %.2g\n", t->isa, quant_get(type)->name, cols, worst);
    CHECK(worst <= TOL_PACK_REL);
    free(panel), free(ints), free(values), free(taken), free(steps);
}

/* Blocks of all sizes, some with one large activation. */
static void fill_activations(float *x, size_t n, uint64_t *seed)
{
    for (size_t k = 0; k < n; k++) x[k] = test_uniform(seed) * (k % 37 == 0 && k % 5 ? 30.0f : 1.0f) / (float)(1 << k / 32 % 11);
}

static void test_panels(void)
{
    uint64_t seed = 5;
    for (size_t i = 0; i < N_TYPES; i++) {
        size_t grain = quant_get(types[i])->block_elems, sizes[] = {grain, 3 * grain, 1536};
        for (size_t s = 0; s < 3; s++) {
            size_t cols = sizes[s];
            uint8_t *w = random_weight(types[i], PACK_ROWS, cols, &seed);
            float *x = malloc(8 * cols * sizeof *x), first[8 * PACK_ROWS], y[8 * PACK_ROWS];
            fill_activations(x, 8 * cols, &seed);
            const kern_table *before = NULL;
            for (size_t a = 0; a < N_ISA; a++) {
                const kern_table *t = kern_get(isas[a]);
                if (!t || !t->pack_x) continue;
                check_panel(t, types[i], cols, w, x, y);
                if (before) CHECK(!memcmp(first, y, sizeof y));
                memcpy(first, y, sizeof y);
                before = t;
            }
            CHECK(before != NULL);
            free(w), free(x);
        }
    }
}

/* Every number of rows that a kernel takes gives a row the same bits; nothing beyond n_out is written. */
static void test_row_counts(void)
{
    enum { COLS = 512 };
    uint64_t seed = 6;
    static float x[8 * COLS];
    static uint8_t ints[8 * COLS / 32 * MOST_BYTES];
    for (size_t k = 0; k < 8 * COLS; k++) x[k] = test_uniform(&seed);
    for (size_t a = 0; a < N_ISA; a++) {
        const kern_table *t = kern_get(isas[a]);
        if (!t || !t->pack_x) continue;
        for (size_t i = 0; i < N_TYPES; i++) {
            uint8_t *w = random_weight(types[i], 11, COLS, &seed), *panel = packed(types[i], w, 11, COLS);
            size_t bytes = pack_form_bytes(t->pack_form, pack_kind_of(types[i]));
            float want[8][16], y[8 * 20];
            for (size_t n = 1; n <= 8; n *= 2) {
                for (size_t r = 0; r < n; r++) t->pack_x(x + r * COLS, COLS, pack_kind_of(types[i]), ints + r * bytes, pack_step_bytes(t->pack_form, pack_kind_of(types[i]), n));
                for (size_t k = 0; k < 8 * 20; k++) y[k] = 7;
                t->pack_dot[types[i]](&(kern_pack_args){.panel = panel, .n_cols = COLS, .x = ints, .n_rows = n, .y = y, .y_stride = 20, .n_out = 11});
                for (size_t r = 0; r < 8; r++) {
                    if (r < n && r < n / 2) CHECK(!memcmp(want[r], y + 20 * r, 11 * sizeof *y));
                    memcpy(want[r], y + 20 * r, 11 * sizeof *y);
                    for (size_t k = r < n ? 11 : 0; k < 20; k++) CHECK(y[20 * r + k] == 7);
                }
            }
            free(w), free(panel);
        }
    }
}

/* Two panels and any number of rows in one call: each row and output has the bits that it has alone, in every ISA; nothing beyond n_out is written. */
static void test_many_rows(void)
{
    enum { COLS = 576, ROWS = 87, STRIDE = 40 };
    static const size_t outs[] = {16, 17, 27, 32};
    uint64_t seed = 9;
    static float x[ROWS * COLS], want[ROWS][32], y[ROWS * STRIDE];
    static uint8_t ints[ROWS * COLS / 32 * MOST_BYTES], one[COLS / 32 * MOST_BYTES];
    fill_activations(x, ROWS * COLS, &seed);
    for (size_t a = 0; a < N_ISA; a++) {
        const kern_table *t = kern_get(isas[a]);
        if (!t || !t->pack_x) continue;
        for (size_t i = 0; i < 5; i++) { /* the types without super-blocks: 576 is no multiple of 256 */
            uint8_t *w = random_weight(types[i], 32, COLS, &seed), *panels = packed(types[i], w, 32, COLS);
            kern_pack_args args = {.panel = panels, .panel_bytes = pack_panel_bytes(types[i], COLS), .n_cols = COLS};
            const pack_kind kind = pack_kind_of(types[i]);
            size_t bytes = pack_form_bytes(t->pack_form, kind);
            for (size_t r = 0, n; r < ROWS; r += n) {
                n = pack_group_rows(r, ROWS);
                for (size_t g = 0; g < n; g++) t->pack_x(x + (r + g) * COLS, COLS, kind, ints + (r * (COLS / 32) + g) * bytes, pack_step_bytes(t->pack_form, kind, n));
            }
            args.x = one, args.n_rows = 1, args.y_stride = 32;
            for (size_t r = 0; r < ROWS; r++) {
                t->pack_x(x + r * COLS, COLS, kind, one, pack_step_bytes(t->pack_form, kind, 1));
                args.y = want[r], args.n_out = 32;
                t->pack_dot[types[i]](&args);
            }
            args.x = ints, args.n_rows = ROWS, args.y = y, args.y_stride = STRIDE;
            for (size_t o = 0; o < sizeof outs / sizeof *outs; o++) {
                for (size_t k = 0; k < ROWS * STRIDE; k++) y[k] = 7;
                args.n_out = outs[o];
                t->pack_dot[types[i]](&args);
                for (size_t r = 0; r < ROWS; r++) {
                    CHECK(!memcmp(want[r], y + r * STRIDE, outs[o] * sizeof *y));
                    for (size_t k = outs[o]; k < STRIDE; k++) CHECK(y[r * STRIDE + k] == 7);
                }
            }
            free(w), free(panels);
        }
    }
}

/* Weights read as they lie in the file: the bits of gemm with the dequantised ones, for odd sizes, misaligned weights and every number of rows. */
static void test_few(void)
{
    static const uint32_t plain[] = {QUANT_F16, QUANT_BF16, QUANT_F32};
    static const size_t sizes[] = {1, 16, 31, 512, 515, 1100};
    enum { OUTS = 9, STRIDE = 11, MOST = 1100 };
    uint64_t seed = 10;
    static float x[KERN_FEW_ROWS * MOST], values[OUTS * MOST];
    static uint8_t room[OUTS * MOST * 4 + 64];
    int n_tested = 0;
    for (size_t k = 0; k < KERN_FEW_ROWS * MOST; k++) x[k] = test_uniform(&seed);
    for (size_t a = 0; a < N_ISA; a++) {
        const kern_table *t = kern_get(isas[a]);
        for (size_t i = 0; t && i < 3; i++) {
            if (!t->few[plain[i]]) continue;
            n_tested++;
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                size_t cols = sizes[s], size = plain[i] == QUANT_F32 ? 4 : 2;
                uint8_t *w = room + (plain[i] == QUANT_F32 ? 4 : 2);
                for (size_t k = 0; k < OUTS * cols; k++) {
                    float v = test_uniform(&seed);
                    kern_f16 h = kern_f32_to_f16(v);
                    uint32_t bits;
                    memcpy(&bits, &v, 4);
                    if (plain[i] == QUANT_BF16) h = (kern_f16)(bits >> 16);
                    memcpy(w + k * size, size == 4 ? (const void *)&bits : (const void *)&h, size);
                }
                t->dequant[plain[i]](w, OUTS * cols, values);
                for (size_t n = 0; n <= KERN_FEW_ROWS; n++) {
                    float want[KERN_FEW_ROWS * STRIDE], y[KERN_FEW_ROWS * STRIDE];
                    for (size_t k = 0; k < KERN_FEW_ROWS * STRIDE; k++) want[k] = y[k] = 7;
                    t->gemm(x, MOST, n, values, cols, OUTS, cols, want, STRIDE);
                    t->few[plain[i]](&(kern_few_args){.w = w, .n_cols = cols, .n_out = OUTS, .x = x, .x_stride = MOST, .n_rows = n, .y = y, .y_stride = STRIDE});
                    CHECK(!memcmp(want, y, sizeof y));
                }
            }
        }
    }
#if defined(__x86_64__)
    CHECK(n_tested > 0 || !kern_get("avx2"));
#else
    (void)n_tested;
#endif
}

/* Zeros, the largest and the smallest numbers, and what is no number: the last gives NaN in its row and nowhere else. */
static void test_hostile_activations(void)
{
    enum { COLS = 64 };
    static const uint32_t kinds[] = {QUANT_Q4_1, QUANT_Q5_0, QUANT_Q8_0};
    static const float values[] = {0.0f, -0.0f, 1e-38f, FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN};
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        uint8_t *w = random_weight(kinds[i], PACK_ROWS, COLS, &seed), *panel = packed(kinds[i], w, PACK_ROWS, COLS);
        for (size_t a = 0; a < N_ISA; a++) {
            const kern_table *t = kern_get(isas[a]);
            if (!t || !t->pack_x) continue;
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                float x[COLS] = {0}, y[PACK_ROWS];
                uint8_t ints[COLS / 32 * MOST_BYTES];
                x[17] = values[v];
                t->pack_x(x, COLS, pack_kind_of(kinds[i]), ints, pack_step_bytes(t->pack_form, pack_kind_of(kinds[i]), 1));
                t->pack_dot[kinds[i]](&(kern_pack_args){.panel = panel, .n_cols = COLS, .x = ints, .n_rows = 1, .y = y, .y_stride = 16, .n_out = 16});
                for (size_t j = 0; j < PACK_ROWS; j++) {
                    if (v < 3) CHECK(y[j] == 0);
                    else if (v < 5) CHECK(!isnan(y[j]));
                    else CHECK(isnan(y[j]));
                }
            }
        }
        free(w), free(panel);
    }
}

/* The largest sums that weights and activations can give: all of the largest size, of either sign, and weights of the largest value; or all but a few of a size whose low byte is the
 * largest one. */
static void test_extremes(void)
{
    enum { COLS = 256 };
    static const float sizes[] = {1, 32384.0f / 32512, 30336.0f / 30400};
    for (size_t i = 0; i < N_TYPES; i++) {
        uint64_t seed = 11;
        uint8_t *w = random_weight(types[i], PACK_ROWS, COLS, &seed);
        size_t block = quant_get(types[i])->block_bytes, n = PACK_ROWS * row_bytes_of(types[i], COLS);
        kern_f16 one = kern_f32_to_f16(1);
        memset(w, types[i] == QUANT_Q8_0 ? 0x80 : 0xff, n);
        for (size_t at = 0; at < n; at += block) {
            memcpy(w + at + (types[i] == QUANT_Q6_K ? 208 : 0), &one, 2);
            if (pack_has_minima(types[i])) memcpy(w + at + 2, &one, 2);
        }
        for (int sign = 0; sign < 9; sign++) {
            float x[8 * COLS], first[8 * PACK_ROWS], y[8 * PACK_ROWS];
            const kern_table *before = NULL;
            for (size_t k = 0; k < 8 * COLS; k++) x[k] = (sign % 3 == 0 || (sign % 3 == 2 && k % 32 < 16) ? 1 : -1) * (k % 64 ? sizes[sign / 3] : 1);
            for (size_t a = 0; a < N_ISA; a++) {
                const kern_table *t = kern_get(isas[a]);
                if (!t || !t->pack_x) continue;
                check_panel(t, types[i], COLS, w, x, y);
                if (before) CHECK(!memcmp(first, y, sizeof y));
                memcpy(first, y, sizeof y);
                before = t;
            }
        }
        free(w);
    }
}

static dev_buf *buffer(dev *d, const float *data, size_t n)
{
    spw_err err = {0};
    dev_buf *b = NULL;
    CHECK_OK(d->ops->buf_create(d, n * sizeof *data, &b, &err), err);
    if (data) {
        memcpy(d->ops->stage(d, b, n * sizeof *data), data, n * sizeof *data);
        d->ops->commit(d, b, n * sizeof *data);
    }
    return b;
}

static const float *floats(dev *d, const dev_buf *b, size_t n)
{
    spw_err err = {0};
    const void *p = NULL;
    CHECK_OK(d->ops->view(d, b, 0, n * sizeof(float), &p, &err), err);
    return p;
}

/* The host device: odd numbers of outputs, a bias, packed and plain weights in one call, any number of rows: near the f32 path, and each row's bits
 * those of the row alone. */
static void test_device(void)
{
    enum { COLS = 256, ROWS = 530 };
    static const size_t outs[] = {37, 5, 150}, counts[] = {1, 2, 3, 7, 8, 13, 64, 67, ROWS};
    static const uint32_t kinds[] = {QUANT_Q4_K, QUANT_F16, QUANT_Q8_0};
    uint64_t seed = 8;
    spw_err err = {0};
    spw_pool *pool = NULL;
    dev *devs[2] = {NULL, NULL};
    const kern_table *t;
    CHECK_OK(kern_select(&t, &err), err);
    CHECK_OK(pool_create(&pool, 2, &err), err);
    static float x[ROWS * COLS], bias[150];
    for (size_t i = 0; i < ROWS * COLS; i++) x[i] = test_uniform(&seed);
    for (size_t i = 0; i < 150; i++) bias[i] = test_uniform(&seed);
    uint8_t *data[3];
    for (size_t i = 0; i < 3; i++) {
        data[i] = kinds[i] == QUANT_F16 ? calloc(outs[i], 2 * COLS) : random_weight(kinds[i], outs[i], COLS, &seed);
        for (size_t k = 0; kinds[i] == QUANT_F16 && k < outs[i] * COLS; k++) data[i][2 * k + 1] = (uint8_t)(0x30 + k % 11);
    }
    const float *want[3] = {NULL}; /* of the f32 path, all rows */
    for (int packs = 0; packs < 2; packs++) {
        dev *d;
        dev_weight *w[3], *b = NULL;
        CHECK_OK(dev_host_create(&devs[packs], t, pool, packs == 1, &err), err);
        d = devs[packs];
        for (size_t i = 0; i < 3; i++)
            CHECK_OK(d->ops->weight_create(d, &(dev_weight_desc){.name = "w", .type = kinds[i], .rows = outs[i], .cols = COLS, .data = data[i]}, &w[i], &err), err);
        CHECK_OK(d->ops->weight_create(d, &(dev_weight_desc){.name = "b", .type = QUANT_F32, .rows = 1, .cols = 150, .data = bias}, &b, &err), err);
        CHECK(!packs == !dev_host_repacked(d).bytes || !t->pack_x);
        dev_buf *in = buffer(d, x, ROWS * COLS), *one = buffer(d, x + 2 * COLS, COLS), *out[3], *alone[3];
        for (size_t i = 0; i < 3; i++) out[i] = buffer(d, NULL, ROWS * outs[i]), alone[i] = buffer(d, NULL, outs[i]);
        d->ops->matmul(d, one, 1, (dev_product[]){{.w = w[0], .out = alone[0]}, {.w = w[1], .out = alone[1]}, {.w = w[2], .bias = b, .out = alone[2]}}, 3);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            d->ops->matmul(d, in, counts[c], (dev_product[]){{.w = w[0], .out = out[0]}, {.w = w[1], .out = out[1]}, {.w = w[2], .bias = b, .out = out[2]}}, 3);
            for (size_t i = 0; i < 3 && counts[c] > 2; i++)
                CHECK(!memcmp(floats(d, out[i], ROWS * outs[i]) + 2 * outs[i], floats(d, alone[i], outs[i]), outs[i] * sizeof(float)));
        }
        for (size_t i = 0; i < 3; i++) {
            const float *got = floats(d, out[i], ROWS * outs[i]);
            float *kept = packs ? NULL : malloc(ROWS * outs[i] * sizeof *kept);
            double worst = 0, largest = 0;
            for (size_t k = 0; packs && k < ROWS * outs[i]; k++) {
                worst = fmax(worst, fabs((double)got[k] - (double)want[i][k]));
                largest = fmax(largest, fabs((double)want[i][k]));
            }
            CHECK_NEAR(worst, 0, (kinds[i] == QUANT_Q4_K ? 3e-4 : 5e-5) * largest);
            if (kept) memcpy(kept, got, ROWS * outs[i] * sizeof *kept), want[i] = kept;
            d->ops->buf_free(d, out[i]), d->ops->buf_free(d, alone[i]), d->ops->weight_free(d, w[i]);
        }
        d->ops->buf_free(d, in), d->ops->buf_free(d, one), d->ops->weight_free(d, b);
        d->ops->free(d);
    }
    for (size_t i = 0; i < 3; i++) free(data[i]), free((void *)(uintptr_t)want[i]);
    pool_free(pool);
}

static void test_sizes(void)
{
    CHECK_INT(pack_panel_bytes(QUANT_Q8_0, 64), 2 * (512 + 32));
    CHECK_INT(pack_panel_bytes(QUANT_Q4_K, 256), 16 * 144 + 64);  /* a row of the file takes 144; six-bit scales become bytes; rounded to 64 */
    CHECK_INT(pack_panel_bytes(QUANT_Q4_0, 33), 0);
    CHECK_INT(pack_panel_bytes(QUANT_F16, 64), 0);
    CHECK_INT(pack_panel_bytes(QUANT_Q8_0, UINT64_MAX / 64 * 32), 0);
}

int main(void)
{
    RUN(test_sizes);
    RUN(test_panels);
    RUN(test_row_counts);
    RUN(test_many_rows);
    RUN(test_few);
    RUN(test_extremes);
    RUN(test_hostile_activations);
    RUN(test_device);
    return test_done();
}
