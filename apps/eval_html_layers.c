/* eval_html_layers.c - maps by layer and head of a page: what each policy read, what attention it missed, and what that did to the outputs.
 *
 * The scales are the same for every policy and every page, so that maps can be compared. */
#include <math.h>
#include <stdio.h>

#include "eval_html.h"

enum { LEFT = 40, TOP = 22, BOTTOM = 32, GAP = 8, WIDTH_MIN = 118, LEGEND_W = 180, LEGEND_H = 12, LEGEND_STEPS = 30 };

/* What is drawn of a policy.  Colours go from low to high by the logarithm of a share; shares beyond have the colours of the ends. */
typedef struct quantity {
    const char *key;     /* of the report's layers */
    const char *title;
    const char *columns; /* what they are */
    bool missed;         /* drawn is 1 minus the value */
    double low;          /* high is 1 */
    double ramp[3][3];   /* red, green and blue at the low end, in the middle, at the high end */
} quantity;

static const quantity quantities[] = {
    {"share_read", "bytes read", "KV head", false, 0.01, {{247, 251, 255}, {107, 174, 214}, {8, 48, 107}}},
    {"mass", "attention missed", "head", true, 0.001, {{255, 250, 235}, {253, 141, 60}, {103, 0, 13}}},
    {"output_error", "output error", "head", false, 0.001, {{255, 250, 235}, {253, 141, 60}, {103, 0, 13}}},
};
enum { N_QUANTITIES = sizeof quantities / sizeof *quantities };

/* at: 0 at the low end, 1 at the high one. */
static void put_fill(FILE *f, const quantity *q, double at)
{
    unsigned rgb[3];
    size_t part = at < 0.5 ? 0 : 1;
    for (size_t i = 0; i < 3; i++) rgb[i] = (unsigned)lround(q->ramp[part][i] + (q->ramp[part + 1][i] - q->ramp[part][i]) * (2 * at - (double)part));
    fprintf(f, "fill=\"#%02x%02x%02x\"", rgb[0], rgb[1], rgb[2]);
}

static double scale(const quantity *q, double share)
{
    if (!(share > q->low)) return 0;
    return share >= 1 ? 1 : 1 - log(share) / log(q->low);
}

static void put_percent(FILE *f, double share)
{
    fprintf(f, "%.*g %%", share < 0.1 ? 2 : 3, 100 * share);
}

static double value_at(const quantity *q, const json_t *row, size_t column)
{
    double v = json_number_value(json_array_get(row, column));
    return q->missed ? 1 - v : v;
}

typedef struct map_shape {
    size_t n_layers, n_columns;
    int cell_w, cell_h, width, height;
} map_shape;

static int clamp(int v, int low, int high)
{
    return v < low ? low : v > high ? high : v;
}

static map_shape shape_of(const json_t *matrix)
{
    map_shape m = {.n_layers = json_array_size(matrix)};
    size_t i;
    json_t *row;
    json_array_foreach(matrix, i, row) if (json_array_size(row) > m.n_columns) m.n_columns = json_array_size(row);
    m.cell_w = clamp(180 / (int)(m.n_columns ? m.n_columns : 1), 4, 15);
    m.cell_h = clamp(420 / (int)(m.n_layers ? m.n_layers : 1), 4, 12);
    m.width = LEFT + (int)m.n_columns * m.cell_w + GAP;
    if (m.width < WIDTH_MIN) m.width = WIDTH_MIN;
    m.height = TOP + (int)m.n_layers * m.cell_h + BOTTOM;
    return m;
}

/* Every so many rows or columns have their number beside them, so that numbers have room. */
static size_t label_step(size_t n, int cell, int room)
{
    static const size_t steps[] = {1, 2, 5, 10, 20, 50};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if ((int)steps[i] * cell >= room || steps[i] >= n) return steps[i];
    return 100;
}

static void put_labels(FILE *f, const quantity *q, const map_shape *m)
{
    int bottom = TOP + (int)m->n_layers * m->cell_h;
    size_t step = label_step(m->n_layers, m->cell_h, 24);
    fprintf(f, "<text x=\"%d\" y=\"14\">%s</text>\n", LEFT, q->title);
    for (size_t i = 0; i < m->n_layers; i += step)
        fprintf(f, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%zu</text>", LEFT - 5, TOP + ((double)i + 0.5) * m->cell_h + 4, i);
    step = label_step(m->n_columns, m->cell_w, m->n_columns > 10 ? 22 : 12);
    for (size_t i = 0; i < m->n_columns; i += step)
        fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%zu</text>", LEFT + ((double)i + 0.5) * m->cell_w, bottom + 13, i);
    fprintf(f, "\n<text x=\"%d\" y=\"%d\">%s</text>\n", LEFT, bottom + 28, q->columns);
    fprintf(f, "<text transform=\"translate(10 %d) rotate(-90)\" text-anchor=\"middle\">layer</text>\n", TOP + (bottom - TOP) / 2);
}

static void put_map(FILE *f, const quantity *q, const json_t *matrix)
{
    map_shape m = shape_of(matrix);
    size_t i;
    json_t *row;
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", m.width, m.height, m.width, m.height);
    put_labels(f, q, &m);
    json_array_foreach(matrix, i, row) {
        for (size_t h = 0; h < json_array_size(row); h++) {
            double share = value_at(q, row, h);
            fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" ", LEFT + (int)h * m.cell_w, TOP + (int)i * m.cell_h, m.cell_w, m.cell_h);
            put_fill(f, q, scale(q, share));
            fprintf(f, "><title>layer %zu, %s %zu: ", i, q->columns, h);
            put_percent(f, share);
            fputs("</title></rect>\n", f);
        }
    }
    fputs("</svg>\n", f);
}

/* Whether a policy left anything out. */
static bool is_sparse(const json_t *layers)
{
    size_t i, h;
    json_t *row, *share;
    json_array_foreach(json_object_get(layers, "share_read"), i, row)
        json_array_foreach(row, h, share) if (json_number_value(share) < 1) return true;
    return false;
}

/* The three scales, side by side. */
static void put_legend(FILE *f)
{
    const int pitch = LEGEND_W + 60, height = 48;
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", N_QUANTITIES * pitch, height, N_QUANTITIES * pitch, height);
    for (int k = 0; k < N_QUANTITIES; k++) {
        const quantity *q = &quantities[k];
        double step = (double)LEGEND_W / LEGEND_STEPS;
        int left = k * pitch + 20;
        fprintf(f, "<text x=\"%d\" y=\"12\">%s</text>\n", left, q->title);
        for (int i = 0; i < LEGEND_STEPS; i++) {
            fprintf(f, "<rect x=\"%.1f\" y=\"18\" width=\"%.1f\" height=\"%d\" ", left + i * step, step + 0.5, LEGEND_H);
            put_fill(f, q, (i + 0.5) / LEGEND_STEPS);
            fputs("/>\n", f);
        }
        for (double share = q->low; share < 1.5; share *= 10) {
            fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s%g %%</text>\n", left + LEGEND_W * scale(q, share), 18 + LEGEND_H + 14, share <= q->low ? "&#8804; " : "", 100 * share);
        }
    }
    fputs("</svg>\n", f);
}

void html_put_layers(FILE *f, const json_t *layers)
{
    size_t i;
    json_t *v;
    fputs("<h2>By layer and head</h2>\n<p>Means over all predictions. Bytes read: of those between sink and window, indices included. Attention missed: the share of a head's softmax "
          "that fell on positions that were not read. Output error: the distance of a head's output from what it would be had everything been read, relative to that. Policies that read "
          "everything are left out.</p>\n", f);
    put_legend(f);
    fputs("<div class=\"maps\">\n", f);
    json_array_foreach(layers, i, v) {
        if (!is_sparse(v)) continue;
        fputs("<figure><figcaption>", f);
        html_put_text(f, json_string_value(json_object_get(v, "policy")));
        fputs("</figcaption>\n", f);
        for (size_t k = 0; k < N_QUANTITIES; k++) {
            const json_t *matrix = json_object_get(v, quantities[k].key);
            if (json_is_array(matrix)) put_map(f, &quantities[k], matrix);
        }
        fputs("</figure>\n", f);
    }
    fputs("</div>\n", f);
}
