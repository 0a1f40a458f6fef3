/* eval_html.c - a report as one self-contained page: tables, and charts drawn as SVG.
 *
 * The page needs nothing from elsewhere and runs no script; the report itself is in it, as JSON. */
#include "eval_html.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "report.h"

static bool complain(const char *path)
{
    report_error(command_eval.name, "--html: %s: %s", path, strerror(errno));
    return false;
}

bool html_check(const char *path)
{
    FILE *f = fopen(path, "a");
    if (!f || fclose(f) != 0) return complain(path);
    return true;
}

void html_put_text(FILE *f, const char *s)
{
    for (; *s; s++) {
        if (*s == '<') fputs("&lt;", f);
        else if (*s == '>') fputs("&gt;", f);
        else if (*s == '&') fputs("&amp;", f);
        else if (*s == '"') fputs("&quot;", f);
        else fputc(*s, f);
    }
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

/* ---------------------------------------------------------------------------------- divergence against bytes ---- */

enum { CHART_W = 1040, CHART_H = 560, LEFT = 76, RIGHT = 150, TOP = 16, BOTTOM = 52, LABEL_H = 14, LETTER_W = 7, DOT_R = 5, BESIDE = 9 };

/* Scale of the divergence: powers of ten, from low to high. */
typedef struct chart {
    int low, high;
} chart;

/* Shares are drawn by their square root: 0 has a place, and small ones have room. */
static double chart_x(double share)
{
    return LEFT + (CHART_W - LEFT - RIGHT) * sqrt(share < 0 ? 0 : share > 1 ? 1 : share);
}

/* What is below the scale, 0 above all, lies on its lower edge. */
static double chart_y(const chart *c, double kld)
{
    double at = kld > 0 ? log10(kld) : c->low;
    at = at < c->low ? c->low : at > c->high ? c->high : at;
    return TOP + (CHART_H - TOP - BOTTOM) * (c->high - at) / (c->high - c->low);
}

static chart find_scale(const json_t *rows)
{
    double low = INFINITY, high = 0;
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row) {
        double median = json_number_value(json_object_get(row, "kld_median")), mean = json_number_value(json_object_get(row, "kld_mean"));
        double p99 = json_number_value(json_object_get(row, "kld_p99"));
        if (median > 1e-6 && median < low) low = median;
        if (mean > 1e-6 && mean < low) low = mean;
        if (p99 > high) high = p99;
    }
    if (high <= 0) return (chart){-4, 0};
    chart c = {(int)floor(log10(low < high ? low : high)), (int)ceil(log10(high))};
    if (c.high == c.low) c.low--;
    return c;
}

static void put_axes(FILE *f, const chart *c)
{
    static const double shares[] = {0, 0.01, 0.05, 0.1, 0.2, 0.5, 1};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        double x = chart_x(shares[i]);
        fprintf(f, "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>", x, TOP, x, CHART_H - BOTTOM);
        fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g %%</text>\n", x, CHART_H - BOTTOM + 18, 100 * shares[i]);
    }
    for (int k = c->low; k <= c->high; k++) {
        double y = chart_y(c, pow(10, k));
        fprintf(f, "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>", LEFT, y, CHART_W - RIGHT, y);
        fprintf(f, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s%g</text>\n", LEFT - 8, y + 4, k == c->low ? "&#8804; " : "", pow(10, k));
    }
    fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">share of the bytes between sink and window that was read, indices included</text>\n",
            LEFT + (CHART_W - LEFT - RIGHT) / 2, CHART_H - 12);
    fprintf(f, "<text transform=\"translate(16 %d) rotate(-90)\" text-anchor=\"middle\">Kullback-Leibler divergence</text>\n", TOP + (CHART_H - TOP - BOTTOM) / 2);
}

/* A dot or a label: its left edge, its middle. */
typedef struct label_box {
    double x, y, width, height;
} label_box;

static bool is_free(const label_box *taken, size_t n, const label_box *b)
{
    for (size_t i = 0; i < n; i++) {
        const label_box *t = &taken[i];
        if (b->x < t->x + t->width && t->x < b->x + b->width && fabs(t->y - b->y) < (t->height + b->height) / 2) return false;
    }
    return true;
}

/* A place for a label right or left of the dot at (x, y), as near to it as what is there leaves room. */
static label_box place_label(double x, double y, const char *label, label_box *taken, size_t n)
{
    double width = LETTER_W * (double)strlen(label);
    label_box b = {x + BESIDE, y, width, LABEL_H};
    for (int k = 1; !is_free(taken, n, &b) && k < CHART_H; k++) {
        bool left = k % 2 && x - BESIDE - width > LEFT;
        int step = k / 2;
        b.x = left ? x - BESIDE - width : x + BESIDE;
        b.y = y + (step % 2 ? 1 : -1) * ((step + 1) / 2) * LABEL_H / 2.0;
    }
    return taken[n] = b;
}

/* The label, and a line to its dot where it had to move away. */
static void put_label(FILE *f, double x, double y, const label_box *b, const char *label, const char *colour)
{
    if (fabs(b->y - y) > LABEL_H / 2.0)
        fprintf(f, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"0.7\"/>\n", x, y, b->x > x ? b->x - 1 : b->x + b->width + 1, b->y, colour);
    fprintf(f, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\"%s style=\"fill:%s\">", b->x > x ? b->x : b->x + b->width, b->y + 4, b->x > x ? "" : " text-anchor=\"end\"", colour);
    html_put_text(f, label);
    fputs("</text>\n", f);
}

static bool same_family(const char *a, const char *b)
{
    size_t n = strcspn(a, ":");
    return strcspn(b, ":") == n && strncmp(a, b, n) == 0;
}

/* Numbers the policies of rows by their names before the first colon: one number for all budgets of a policy. */
static void number_families(const json_t *rows, size_t *out)
{
    size_t n_families = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        out[i] = n_families;
        for (size_t k = 0; k < i; k++)
            if (same_family(text_of(json_array_get(rows, i), "policy"), text_of(json_array_get(rows, k), "policy"))) out[i] = out[k];
        n_families += out[i] == n_families;
    }
}

static void put_divergence(FILE *f, const json_t *rows)
{
    static const char *const colours[] = {"#4477aa", "#ee6677", "#228833", "#aa3377", "#b8860b", "#3a9bc1", "#d2691e", "#777777"};
    chart c = find_scale(rows);
    size_t i, n = json_array_size(rows);
    label_box *taken = app_alloc((2 * n + 1) * sizeof *taken); /* dots, then labels */
    size_t *family = app_alloc(n * sizeof *family);
    number_families(rows, family);
    json_t *row;
    fprintf(f, "<h2>Divergence against bytes read</h2>\n<svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", CHART_W, CHART_H, CHART_W, CHART_H);
    put_axes(f, &c);
    json_array_foreach(rows, i, row) {
        double x = chart_x(json_number_value(json_object_get(row, "share_read"))), y = chart_y(&c, json_number_value(json_object_get(row, "kld_mean")));
        taken[i] = (label_box){x - DOT_R, y, 2 * DOT_R, 2 * DOT_R};
        double median = chart_y(&c, json_number_value(json_object_get(row, "kld_median"))), p99 = chart_y(&c, json_number_value(json_object_get(row, "kld_p99")));
        const char *colour = colours[family[i] % (sizeof colours / sizeof *colours)];
        fprintf(f, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"1.5\" opacity=\"0.4\"/><circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" fill=\"%s\"/>\n",
                x, p99, x, median, colour, x, y, colour);
    }
    for (i = 0; i < n; i++) {
        double x = taken[i].x + DOT_R, y = taken[i].y;
        const char *label = text_of(json_array_get(rows, i), "policy"), *colour = colours[family[i] % (sizeof colours / sizeof *colours)];
        label_box b = place_label(x, y, label, taken, n + i);
        put_label(f, x, y, &b, label, colour);
    }
    free(taken);
    free(family);
    fputs("</svg>\n<p>The dot is the mean; the line goes from the median to the 99th percentile. Both scales are stretched: the share by its square root, the divergence by its "
          "logarithm.</p>\n", f);
}

/* ------------------------------------------------------------------------------------------------ score maps ---- */

enum { MAP_W = 64, MAP_H = 26, MAP_LEFT = 130, MAP_TOP = 30, MAP_MAX = 128 };

/* The distinct values of key in the rows of a policy, in order; none where the rows lack it. */
static size_t distinct(const json_t *rows, const char *policy, const char *key, const json_t **out)
{
    size_t i, n = 0;
    json_t *row;
    json_array_foreach(rows, i, row) {
        const json_t *v = json_object_get(row, key);
        bool is_new = v && strcmp(text_of(row, "policy"), policy) == 0 && n < MAP_MAX;
        for (size_t k = 0; k < n && is_new; k++) is_new = !json_equal(out[k], v);
        if (is_new) out[n++] = v;
    }
    return n;
}

static void put_value(FILE *f, const json_t *v)
{
    if (json_is_string(v)) html_put_text(f, json_string_value(v));
    else if (json_is_integer(v)) fprintf(f, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
}

/* The row of a policy that has these values; y may be NULL. */
static const json_t *find_row(const json_t *rows, const char *policy, const char *x_key, const json_t *x, const char *y_key, const json_t *y)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
        if (strcmp(text_of(row, "policy"), policy) == 0 && json_equal(json_object_get(row, x_key), x) &&
            (!y || json_equal(json_object_get(row, y_key), y)))
            return row;
    return NULL;
}

/* From red over white to blue, which eyes that confuse red and green tell apart. */
static void put_cell(FILE *f, double x, double y, double share)
{
    static const double low[3] = {178, 24, 43}, middle[3] = {247, 247, 247}, high[3] = {33, 102, 172};
    int rgb[3];
    for (size_t i = 0; i < 3; i++)
        rgb[i] = (int)lround(share < 0.5 ? low[i] + (middle[i] - low[i]) * 2 * share : middle[i] + (high[i] - middle[i]) * (2 * share - 1));
    fprintf(f, "<rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" fill=\"#%02x%02x%02x\"/>", x, y, MAP_W - 2, MAP_H - 2, (unsigned)rgb[0], (unsigned)rgb[1],
            (unsigned)rgb[2]);
    fprintf(f, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\" style=\"fill:%s\">%.0f</text>\n", x + MAP_W / 2.0 - 1, y + MAP_H / 2.0 + 3,
            fabs(share - 0.5) > 0.3 ? "#fff" : "#000", 100 * share);
}

static void put_map(FILE *f, const json_t *rows, const char *policy, const char *x_key, const char *y_key)
{
    const json_t *xs[MAP_MAX], *ys[MAP_MAX];
    size_t nx = distinct(rows, policy, x_key, xs), ny = y_key ? distinct(rows, policy, y_key, ys) : 1;
    int left = y_key ? MAP_LEFT : 4, width = left + (int)nx * MAP_W + 8, height = MAP_TOP + (int)ny * MAP_H + 22;
    fputs("<figure><figcaption>", f);
    html_put_text(f, policy);
    fprintf(f, "</figcaption><svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", width, height, width, height);
    for (size_t j = 0; j < ny; j++) {
        if (y_key) {
            fprintf(f, "<text x=\"%d\" y=\"%.0f\" text-anchor=\"end\">", left - 8, MAP_TOP + (double)j * MAP_H + MAP_H / 2.0 + 3);
            put_value(f, ys[j]);
            fprintf(f, "%s</text>\n", strcmp(y_key, "depth") == 0 ? " %" : "");
        }
        for (size_t i = 0; i < nx; i++) {
            const json_t *row = find_row(rows, policy, x_key, xs[i], y_key, y_key ? ys[j] : NULL), *score = json_object_get(row, "score");
            double share = score ? json_number_value(score) / 100 : json_number_value(json_object_get(row, "accuracy"));
            if (row) put_cell(f, left + (double)i * MAP_W, MAP_TOP + (double)j * MAP_H, share);
        }
    }
    for (size_t i = 0; i < nx; i++) {
        fprintf(f, "<text x=\"%.0f\" y=\"%d\" text-anchor=\"middle\">", left + ((double)i + 0.5) * MAP_W - 1, MAP_TOP - 8);
        put_value(f, xs[i]);
        fputs("</text>\n", f);
    }
    fprintf(f, "<text x=\"%d\" y=\"%d\">%s</text>\n", left, height - 6, x_key);
    fputs("</svg></figure>\n", f);
}

static void put_maps(FILE *f, const json_t *report, const json_t *rows)
{
    const json_t *first = json_array_get(rows, 0);
    const char *x_key = json_object_get(first, "turn") ? "turn" : json_object_get(first, "length") ? "length" : "keys";
    const char *y_key = json_object_get(first, "depth") ? "depth" : strcmp(text_of(report, "measure"), "ruler") == 0 ? "task" : NULL;
    size_t i;
    json_t *row;
    fprintf(f, "<h2>Right answers, in percent</h2>\n<div class=\"maps\">\n");
    json_array_foreach(json_object_get(report, "policies"), i, row) put_map(f, rows, text_of(row, "policy"), x_key, y_key);
    fputs("</div>\n", f);
}

/* ------------------------------------------------------------------------------------------------------ page ---- */

static void put_table(FILE *f, const json_t *rows, const report_column *columns, size_t n)
{
    size_t i;
    json_t *row;
    fputs("<h2>Table</h2>\n<table><thead><tr>", f);
    for (size_t c = 0; c < n; c++)
        fprintf(f, "<th%s>%s</th>", json_is_string(json_object_get(json_array_get(rows, 0), columns[c].key)) ? " class=\"name\"" : "", columns[c].key);
    fputs("</tr></thead><tbody>\n", f);
    json_array_foreach(rows, i, row) {
        fputs("<tr>", f);
        for (size_t c = 0; c < n; c++) {
            const json_t *v = json_object_get(row, columns[c].key);
            fputs(json_is_string(v) ? "<td class=\"name\">" : "<td>", f);
            if (json_is_real(v)) fprintf(f, "%.*f", columns[c].digits, json_real_value(v));
            else if (json_is_null(v)) fputs("&#8211;", f);
            else put_value(f, v);
            fputs("</td>", f);
        }
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table>\n", f);
}

/* One line of what the report says of itself: everything that is a word or a number, and not "" or a setting that was left alone. */
static void put_settings(FILE *f, const json_t *report)
{
    const char *key;
    json_t *v;
    bool any = false;
    fputs("<p class=\"settings\">", f);
    json_object_foreach((json_t *)report, key, v) {
        if (json_is_array(v) || json_is_null(v) || strcmp(key, "model") == 0 || (json_is_string(v) && !*json_string_value(v))) continue;
        if ((json_is_real(v) && json_real_value(v) == 0) || (strcmp(key, "yarn_orig_ctx") == 0 && json_integer_value(v) == 0)) continue;
        fprintf(f, "%s%s ", any ? " &middot; " : "", key);
        if (json_is_real(v)) fprintf(f, "%g", json_real_value(v));
        else if (json_is_boolean(v)) fputs(json_is_true(v) ? "yes" : "no", f);
        else put_value(f, v);
        any = true;
    }
    fputs("</p>\n", f);
}

/* The report as JSON in a script element, which nothing in it can end. */
static void put_json(FILE *f, const json_t *report)
{
    char *dump = json_dumps(report, JSON_COMPACT | JSON_REAL_PRECISION(10));
    fputs("<script type=\"application/json\" id=\"report\">", f);
    for (const char *p = dump ? dump : "null"; *p; p++) {
        if (*p == '<') fputs("\\u003c", f);
        else fputc(*p, f);
    }
    fputs("</script>\n", f);
    free(dump);
}

static const char style[] =
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}"
    "h1{font-size:1.5em;margin-bottom:0}h2{font-size:1.15em;margin-top:2em}.settings{color:#777;font-size:.9em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85em;display:block;overflow-x:auto}"
    "th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}.name{text-align:left}"
    "svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}.grid{stroke:#8884}svg text.label{paint-order:stroke;stroke:Canvas;stroke-width:3px}"
    ".maps{display:flex;flex-wrap:wrap;gap:1.5em}figure{margin:0}figcaption{font-weight:600}";

bool html_write(const char *path, const json_t *report, const char *rows_key, const report_column *columns, size_t n_columns)
{
    FILE *f = fopen(path, "w");
    if (!f) return complain(path);
    const json_t *rows = json_object_get(report, rows_key);
    const char *measure = text_of(report, "measure"), *model = text_of(report, "model"), *slash = strrchr(model, '/');
    fprintf(f, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<title>%s, ", measure);
    html_put_text(f, slash ? slash + 1 : model);
    fprintf(f, "</title>\n<style>%s</style></head><body>\n<h1>spillway eval %s: ", style, measure);
    html_put_text(f, slash ? slash + 1 : model);
    fputs("</h1>\n", f);
    put_settings(f, report);
    if (strcmp(measure, "kld") == 0) put_divergence(f, rows);
    else put_maps(f, report, rows);
    put_table(f, rows, columns, n_columns);
    if (strcmp(measure, "kld") == 0) html_put_layers(f, json_object_get(report, "layers"));
    put_json(f, report);
    fputs("</body></html>\n", f);
    errno = 0;
    bool bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) return complain(path);
    return true;
}
