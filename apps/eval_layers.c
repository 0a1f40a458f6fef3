/* eval_layers.c - what a policy read and missed in every layer and head, summed over generated rows. */
#include "eval_layers.h"

#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "text_input.h"

/* Zeroed room for n layers. */
static void size_layers(eval_layers *s, size_t n)
{
    if (n <= s->n) return;
    s->v = app_realloc(s->v, n * sizeof *s->v);
    memset(s->v + s->n, 0, (n - s->n) * sizeof *s->v);
    s->n = n;
}

static void *zeros(size_t n, size_t size)
{
    void *p = app_alloc(n * size);
    memset(p, 0, n * size);
    return p;
}

/* Zeroed sums of a layer that has none yet. */
static void size_heads(layer_sums *l, size_t n_head, size_t n_head_kv)
{
    if (l->mass || n_head == 0 || n_head_kv == 0) return;
    l->n_head = n_head;
    l->n_head_kv = n_head_kv;
    l->mass = zeros(n_head, sizeof *l->mass);
    l->error = zeros(n_head, sizeof *l->error);
    l->middle = zeros(n_head_kv, sizeof *l->middle);
    l->read = zeros(n_head_kv, sizeof *l->read);
}

static void observe(void *ctx, const spw_observation *o)
{
    eval_layers *s = ctx;
    if (o->layer >= s->n) return;
    layer_sums *l = &s->v[o->layer];
    size_heads(l, o->n_head, o->n_head_kv);
    for (size_t h = 0; h < l->n_head_kv; h++) {
        l->middle[h] += o->heads[h].middle_bytes;
        l->read[h] += o->heads[h].row_bytes + o->heads[h].side_bytes;
    }
    if (s->truth == LAYERS_NO_TRUTH) return;
    s->n_rows += o->layer == 0;
    for (size_t h = 0; h < l->n_head; h++) {
        l->mass[h] += o->mass ? (double)o->mass[h] : 1;
        l->error[h] += o->output_error ? (double)o->output_error[h] : 0;
    }
}

void layers_watch(eval_layers *s, spw_session *session, size_t n_layer, layers_truth truth)
{
    s->truth = truth;
    size_layers(s, n_layer);
    spw_session_observe(session, observe, s, truth == LAYERS_MEASURED);
}

void layers_free(eval_layers *s)
{
    for (size_t i = 0; i < s->n; i++) {
        free(s->v[i].mass);
        free(s->v[i].error);
        free(s->v[i].middle);
        free(s->v[i].read);
    }
    free(s->v);
    *s = (eval_layers){0};
}

/* ----------------------------------------------------------------------------------------------- as JSON ---- */

static json_t *reals(const double *v, size_t n, double divisor)
{
    json_t *a = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(a, json_real(v[i] / divisor));
    return a;
}

static json_t *counts(const uint64_t *v, size_t n)
{
    json_t *a = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(a, report_count(v[i]));
    return a;
}

json_t *layers_sums(const eval_layers *s)
{
    json_t *mass = json_array(), *error = json_array(), *middle = json_array(), *read = json_array(), *v = json_object();
    for (size_t i = 0; i < s->n; i++) {
        const layer_sums *l = &s->v[i];
        json_array_append_new(middle, counts(l->middle, l->n_head_kv));
        json_array_append_new(read, counts(l->read, l->n_head_kv));
        if (s->n_rows == 0) continue;
        json_array_append_new(mass, reals(l->mass, l->n_head, 1));
        json_array_append_new(error, reals(l->error, l->n_head, 1));
    }
    json_object_set_new(v, "n", report_count(s->n_rows));
    json_object_set_new(v, "middle", middle);
    json_object_set_new(v, "read", read);
    json_object_set_new(v, "mass", mass);
    json_object_set_new(v, "output_error", error);
    return v;
}

static void add_reals(double *to, size_t n, const json_t *more)
{
    for (size_t i = 0; i < n; i++) to[i] += json_number_value(json_array_get(more, i));
}

static void add_counts(uint64_t *to, size_t n, const json_t *more)
{
    for (size_t i = 0; i < n; i++) to[i] += (uint64_t)json_integer_value(json_array_get(more, i));
}

void layers_add(eval_layers *s, const json_t *sums)
{
    const json_t *mass = json_object_get(sums, "mass"), *error = json_object_get(sums, "output_error");
    const json_t *middle = json_object_get(sums, "middle"), *read = json_object_get(sums, "read");
    size_layers(s, json_array_size(middle));
    s->n_rows += (uint64_t)json_integer_value(json_object_get(sums, "n"));
    for (size_t i = 0; i < s->n; i++) {
        layer_sums *l = &s->v[i];
        size_t n_head_kv = json_array_size(json_array_get(middle, i)), n_head = json_array_size(json_array_get(mass, i));
        size_heads(l, n_head ? n_head : n_head_kv, n_head_kv);
        add_counts(l->middle, l->n_head_kv, json_array_get(middle, i));
        add_counts(l->read, l->n_head_kv, json_array_get(read, i));
        add_reals(l->mass, l->n_head, json_array_get(mass, i));
        add_reals(l->error, l->n_head, json_array_get(error, i));
    }
}

void layers_set(json_t *row, const eval_layers *s)
{
    double mass = 0, error = 0;
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        for (size_t h = 0; h < s->v[i].n_head; h++) {
            mass += s->v[i].mass[h];
            error += s->v[i].error[h];
        }
        n += s->v[i].n_head;
    }
    double divisor = (double)s->n_rows * (double)n;
    json_object_set_new(row, "mass", divisor > 0 ? report_real(mass / divisor) : json_null());
    json_object_set_new(row, "output_error", divisor > 0 ? report_real(error / divisor) : json_null());
}

/* 1 where there was no middle: everything was read. */
static json_t *shares(const layer_sums *l)
{
    json_t *a = json_array();
    for (size_t h = 0; h < l->n_head_kv; h++) json_array_append_new(a, json_real(l->middle[h] ? (double)l->read[h] / (double)l->middle[h] : 1));
    return a;
}

json_t *layers_means(const eval_layers *s)
{
    json_t *mass = s->n_rows ? json_array() : json_null(), *error = s->n_rows ? json_array() : json_null(), *share = json_array(), *v = json_object();
    for (size_t i = 0; i < s->n; i++) {
        const layer_sums *l = &s->v[i];
        json_array_append_new(share, shares(l));
        if (s->n_rows == 0) continue;
        json_array_append_new(mass, reals(l->mass, l->n_head, (double)s->n_rows));
        json_array_append_new(error, reals(l->error, l->n_head, (double)s->n_rows));
    }
    json_object_set_new(v, "share_read", share);
    json_object_set_new(v, "mass", mass);
    json_object_set_new(v, "output_error", error);
    return v;
}
